/* AVX-512: vectors of 512 bits. Empty on other architectures.
 *
 * The kernels load, compute and store in long loops, which wide vectors make faster. GCC uses 256 bits unless it is
 * told otherwise; Clang uses 256 bits only when it tunes for certain CPUs.
 */
#include "../core.h" /* before the target: the code of these headers must run on every machine */

#if HAS_AVX
#if defined __clang__
#pragma clang attribute push(__attribute__((target("arch=x86-64,tune=x86-64,avx512f,avx512bw,avx512dq,avx512vl"))),    \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=x86-64,tune=generic,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#endif

#define ISA avx512
#include "../instantiate.inc"

#if defined __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
