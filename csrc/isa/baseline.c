#define ISA baseline
#include "../instantiate.inc"
