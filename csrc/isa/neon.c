/* Neon, which every AArch64 machine has. Empty on other architectures. */
#include "../core.h"

#if defined __aarch64__
#define ISA neon
#include "../instantiate.inc"
#endif
