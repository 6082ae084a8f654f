#define ISA neon
#include "../instantiate.inc"
