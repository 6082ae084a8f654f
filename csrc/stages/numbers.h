/* Single numbers: widening and narrowing them, and the random bits for that. The loops of the other files in this
 * folder, which the compiler vectorises, call these functions.
 *
 * Integer arithmetic, with two exceptions that are exact in the default floating-point mode: hardware conversions may
 * flush subnormal numbers to zero.
 *
 * It is included after a file of isa/ has set its target. If all of them are in one file, baseline.c is the first, and
 * the other instruction sets can inline its functions.
 */
#ifndef GDM_NUMBERS_H
#define GDM_NUMBERS_H

#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))

INLINE uint32_t bits_of(float x) {
    union {
        float value;
        uint32_t bits;
    } both = {x};
    return both.bits;
}

INLINE float float_of(uint32_t bits) {
    union {
        uint32_t bits;
        float value;
    } both = {bits};
    return both.value;
}

/* a where the condition is 1, b where it is 0. GCC makes branches from some uses of the operator ?, which cannot be
 * vectorised. */
INLINE uint32_t pick(uint32_t condition, uint32_t a, uint32_t b) {
    return b ^ ((a ^ b) & -condition);
}

#define INFINITY_OF_F32 0x7f800000u /* the bits of infinity. Larger ones, without a sign, are those of a NaN */

/* ---- bfloat16: the upper half of a float ------------------------------------------------------------------------ */

INLINE float widen_bf16(uint16_t x) {
    return float_of((uint32_t)x << 16);
}

/* The nearest one, ties to even: adds just less than half of the last place, and its last bit. */
INLINE uint16_t narrow_bf16(float x) {
    const uint32_t bits = bits_of(x), rounded = bits + 0x7fff + (bits >> 16 & 1);
    return (uint16_t)(pick((bits & 0x7fffffff) > INFINITY_OF_F32, bits | 0x400000, rounded) >> 16);
}

/* Away from zero with a probability that is the distance to the number on the other side, in last places. */
INLINE uint16_t narrow_bf16_random(float x, uint32_t random) {
    const uint32_t bits = bits_of(x), rounded = bits + (random >> 16);
    return (uint16_t)(pick((bits & 0x7fffffff) > INFINITY_OF_F32, bits | 0x400000, rounded) >> 16);
}

/* ---- float16: 5 bits of exponent, 10 of mantissa ---------------------------------------------------------------- */

#define BIAS_OF_F16 (112u << 23)         /* what a float's exponent has more than a float16's */
#define SMALLEST_NORMAL_F16 (113u << 23) /* 2^-14, as the bits of a float */
#define NAN_F16 0x7e00u
#define INFINITY_OF_F16 0x7c00u

/* As a float, the bits of a finite number have an exponent that is too small by the bias. The product is exact. */
INLINE float widen_f16(uint16_t x) {
    const uint32_t magnitude = (uint32_t)(x & 0x7fff) << 13, sign = (uint32_t)(x & 0x8000) << 16;
    const uint32_t finite = bits_of(float_of(magnitude) * 0x1p112f);
    return float_of(pick((x & 0x7fff) >= INFINITY_OF_F16, magnitude | INFINITY_OF_F32, finite) | sign);
}

/* The last place of a subnormal float16 is that of 0.5 as a float. So adding 0.5 rounds to it. */
INLINE uint16_t narrow_f16(float x) {
    const uint32_t bits = bits_of(x), magnitude = bits & 0x7fffffff, normal = magnitude - BIAS_OF_F16;
    const uint32_t rounded = (normal + 0xfff + (normal >> 13 & 1)) >> 13;
    const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
    uint32_t result = rounded < INFINITY_OF_F16 ? rounded : INFINITY_OF_F16;
    result = pick(magnitude < SMALLEST_NORMAL_F16, subnormal, result);
    result = pick(magnitude > INFINITY_OF_F32, NAN_F16, result);
    return (uint16_t)(result | (bits >> 16 & 0x8000));
}

/* A number m * 2^(e - 150), where e is the exponent in a float's bits, has m / 2^(126 - e) last places of a subnormal
 * float16. 31 bits of the quotient's fraction are kept. */
INLINE uint16_t narrow_f16_random(float x, uint32_t random) {
    const uint32_t bits = bits_of(x), magnitude = bits & 0x7fffffff, exponent = magnitude >> 23;
    const uint32_t rounded = (magnitude - BIAS_OF_F16 + (random >> 19)) >> 13;
    const uint32_t places = pick(exponent > 112, 14, 126 - (exponent + (exponent == 0)));
    const uint32_t mantissa = (magnitude & 0x7fffff) | (uint32_t)(exponent != 0) << 23;
    const uint32_t shift = places < 31 ? places : 31, lost = places - shift < 31 ? places - shift : 31;
    const uint32_t subnormal = ((mantissa >> lost) + (random >> (32 - shift))) >> shift;
    uint32_t result = rounded < INFINITY_OF_F16 ? rounded : INFINITY_OF_F16;
    result = pick(magnitude < SMALLEST_NORMAL_F16, subnormal, result);
    result = pick(magnitude > INFINITY_OF_F32, NAN_F16, result);
    return (uint16_t)(result | (bits >> 16 & 0x8000));
}

/* ---- random bits ------------------------------------------------------------------------------------------------ */

/* 32 random bits for an element. The multipliers were found with C. Wellons' program hash-prospector. Streams that
 * differ only in `add` would be parts of one sequence; so would they be, nearly, if `mix` were added, too. */
INLINE uint32_t draw(struct key key, uint32_t element) {
    uint32_t x = element + key.add;
    x ^= x >> 16;
    x *= 0x21f0aaad;
    x ^= x >> 15 ^ key.mix;
    x *= 0xd35a2d97;
    return x ^ x >> 15;
}

/* A number between 0 and 1. It has 17 bits behind the point, so that its sum with a number below 128 is exact. */
INLINE float fraction(uint32_t random) {
    return ((float)(int32_t)(random >> 16) + 0.5f) * 0x1p-16f;
}

/* ---- a float as a bfloat16 and 16 more bits --------------------------------------------------------------------- */

/* With ties to even, the 16 bits could not tell the two ties on both sides of a bfloat16 apart. So ties go away from
 * zero, and the 16 bits are what the bfloat16 lacks, as a signed number. */
INLINE uint32_t splittable(float x) {
    const uint32_t bits = bits_of(x);
    return pick((bits & 0x7fffffff) > INFINITY_OF_F32, 0x7fc00000, bits); /* 0x8000 more could make a number of a NaN */
}

#undef INLINE

#endif
