/* Every rule, dtype and combination of options, first steps too, over sizes 0 to 257, from fixed pseudo-random numbers.
 * Prints the instruction set in use, the number of updates, and a hash of their results: the same on every machine. */
#include "../../csrc/core.h"

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { SIZES = 258 };

static uint64_t state = 88172645463325252u, hash = 14695981039346656037u, updates;
static double doubles[MAX_BUFFERS][SIZES];
static float floats[MAX_BUFFERS][SIZES];

/* In (-1, 1) times a power of two; xorshift64, by G. Marsaglia. */
static double number(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    const double x = (double)(state >> 11) * 0x1p-52 - 1;
    return x * (double)(1u << (state & 15)) * 0x1p-8;
}

/* FNV-1a, over words in the machine's own order. */
static void add(const void *buffer, size_t bytes) {
    for (size_t i = 0; i < bytes; i += sizeof(uint32_t)) {
        uint32_t word;
        memcpy(&word, (const char *)buffer + i, sizeof word);
        hash = (hash ^ word) * 1099511628211u;
    }
}

static int every_size(enum rule rule, const struct prepared *prepared) {
    static union {
        double doubles[MAX_BUFFERS][SIZES];
        float floats[MAX_BUFFERS][SIZES];
    } work;
    for (size_t n = 0; n < SIZES; n++)
        for (enum dtype dtype = 0; dtype < DTYPES; dtype++) {
            void *buffers[MAX_BUFFERS];
            const size_t bytes = n * (dtype == F32 ? sizeof(float) : sizeof(double));
            for (unsigned k = 0; k < MAX_BUFFERS; k++) {
                buffers[k] = dtype == F32 ? (void *)work.floats[k] : (void *)work.doubles[k];
                memcpy(buffers[k], dtype == F32 ? (void *)floats[k] : (void *)doubles[k], bytes);
            }
            if (gdm_run(rule, dtype, buffers, n, prepared)) return 1;
            for (unsigned k = 0; k < STATE + gdm_rules[rule].states; k++) add(buffers[k], bytes);
            updates++;
        }
    return 0;
}

/* The bits of `options` say which options are on; combinations that are refused are passed over. */
#define SET_REAL(field, domain, status) args.field = options >> option++ & 1 ? 0.0123 * option : 0;
#define SET_FLAG(field) args.field = options >> option++ & 1;
#define GDM_RULE(rule, states, switches)                                                                               \
    static int every_##rule(void) {                                                                                    \
        for (unsigned options = 0;; options++) {                                                                       \
            gdm_##rule##_args args = {.size = sizeof args};                                                            \
            struct prepared prepared;                                                                                  \
            unsigned option = 0;                                                                                       \
            GDM_OPTIONS_##rule(SET_REAL, SET_FLAG) if (options >> option) return 0;                                    \
            if (gdm_prepare_##rule(&args, &prepared)) continue;                                                        \
            if (every_size(RULE_##rule, &prepared)) return 1;                                                          \
            prepared.variant |= prepared.first;                                                                        \
            if (prepared.first && every_size(RULE_##rule, &prepared)) return 1;                                        \
        }                                                                                                              \
    }
#include "../../csrc/kernels.def"

int main(void) {
    for (unsigned k = 0; k < MAX_BUFFERS; k++)
        for (size_t i = 0; i < SIZES; i++) {
            doubles[k][i] = number();
            floats[k][i] = (float)doubles[k][i];
        }
#define GDM_RULE(rule, states, switches)                                                                               \
    if (every_##rule()) return 1;
#include "../../csrc/kernels.def"
    printf("%s %" PRIu64 " %016" PRIx64 "\n", gdm_isa(), updates, hash);
    return 0;
}
