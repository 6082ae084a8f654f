/* Decodes the bytes of an input. Every byte string is a valid input: after its end, all values are 0. */
#ifndef FUZZ_INPUT_H
#define FUZZ_INPUT_H

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct input {
    const uint8_t *at;
    size_t left;
};

/* Ends the process, so that the fuzzer stores the input. */
__attribute__((noreturn, cold, unused)) static void fail(const char *what) {
    fprintf(stderr, "FAILED: %s\n", what);
    abort();
}

static inline uint64_t word(struct input *in, size_t bytes) {
    uint64_t value = 0;
    const size_t n = bytes < in->left ? bytes : in->left;
    memcpy(&value, in->at, n);
    in->at += n;
    in->left -= n;
    return value;
}

static inline unsigned byte(struct input *in) {
    return (unsigned)word(in, 1);
}

/* A number below `end`. */
static inline unsigned below(struct input *in, unsigned end) {
    return byte(in) % end;
}

/* Mostly small, sometimes any. */
static inline uint64_t count_of(struct input *in) {
    const unsigned first = byte(in);
    return first < 240 ? first : first < 248 ? word(in, 2) : word(in, 8);
}

/* A number for an option: one that is often used, or near the end of a range, or any double. */
static double number(struct input *in) {
    static const double usual[] = {
        0.0,      1.0,           0.9,           0.999,         0.5,     0.1,     0.01,    1e-3,     1e-8,
        2.0,      1.2,           5.0,           50.0,          1e-6,    1e6,     0.25,    0x1p-24,  -0.0,
        -1.0,     -1e-300,       DBL_MIN,       0x1p-1074,     DBL_MAX, FLT_MAX, FLT_MIN, 0x1p-149, 0x1.fffffffp127,
        0x1p128,  1.0 - 0x1p-53, 1.0 - 0x1p-24, 1.0 + 0x1p-52, 1e300,   1e30,    1e-30,   NAN,      INFINITY,
        -INFINITY};
    enum { USUAL = sizeof usual / sizeof *usual };
    const unsigned first = byte(in);
    union {
        uint64_t bits;
        double value;
    } any;
    if (first < 192) return usual[first % USUAL];
    if (first < 240) return (double)byte(in) / 256.0;
    any.bits = word(in, 8);
    return any.value;
}

/* A flag: 0 or 1, seldom another number. */
static inline int flag_of(struct input *in) {
    const unsigned first = byte(in);
    return first < 250 ? (int)(first & 1) : (int)(uint32_t)word(in, 4);
}

#endif
