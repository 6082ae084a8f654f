/* The instructions that every machine of the architecture has. On x86-64 that is SSE2. */
#include "../core.h" /* before the target: the code of these headers must run on every machine */

#if defined __clang__ && defined __x86_64__
#pragma clang attribute push(__attribute__((target("arch=x86-64,tune=x86-64"))), apply_to = function)
#elif defined __x86_64__
#pragma GCC push_options
#pragma GCC target("arch=x86-64,tune=generic")
#endif

#define ISA baseline
#include "../instantiate.inc"

#if defined __clang__ && defined __x86_64__
#pragma clang attribute pop
#elif defined __x86_64__
#pragma GCC pop_options
#endif
