/* AVX2: vectors of 256 bits. Empty on other architectures. */
#include "../core.h" /* before the target: the code of these headers must run on every machine */

#if HAS_AVX
#if defined __clang__
#pragma clang attribute push(__attribute__((target("arch=x86-64,tune=x86-64,avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=x86-64,tune=generic,avx2")
#endif

#define ISA avx2
#include "../instantiate.inc"

#if defined __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
