/* What the C files share: the rules, kernels and instruction sets by number. Not installed. */
#ifndef GDM_CORE_H
#define GDM_CORE_H

#include "gdm/gdm.h"

#include <stdint.h>

#if __FLT_EVAL_METHOD__ != 0
#error "float arithmetic is not rounded to float on this target (x87?): the results would not be the reference's"
#endif

enum dtype { F32, F64, DTYPES };

/* RULE_sgd, RULE_momentum, ..., RULES */
enum rule {
#define GDM_RULE(rule, states, switches) RULE_##rule,
#include "kernels.def"
    RULES
};

/* buffers: param, grad, then the states. A kernel trusts them: checked, not overlapping. */
enum { PARAM, GRAD, STATE, MAX_STATES = 3, MAX_BUFFERS = STATE + MAX_STATES };
typedef void kernel(void *const *buffers, size_t n, const void *coefs);

/* struct sgd_coefs, struct momentum_coefs, ... */
#define GDM_COEF(name) double name;
#define GDM_RULE(rule, states, switches)                                                                               \
    struct rule##_coefs {                                                                                              \
        GDM_COEFS_##rule(GDM_COEF)                                                                                     \
    };
#include "kernels.def"
#undef GDM_COEF

/* A rule's arguments, checked and worked out: which of its kernels to call, and with what. */
struct prepared {
    unsigned variant;
    unsigned first; /* the switch to add in a buffer's first step; 0 if the rule makes no difference */
    union {
#define GDM_RULE(rule, states, switches) struct rule##_coefs rule;
#include "kernels.def"
    } coefs;
};

/* gdm_prepare_sgd, gdm_prepare_momentum, ...: every check of the options is here. */
#define GDM_RULE(rule, states, switches)                                                                               \
    gdm_status gdm_prepare_##rule(const gdm_##rule##_args *args, struct prepared *out);
#include "kernels.def"

/* The rows of kernels.def for those who enumerate them. Lists are of names, each followed by a space. */
struct rule_info {
    const char *name;
    unsigned states, switches;
    const char *state_names, *reals, *flags; /* reals: "lr:not_negative ..." */
};
extern const struct rule_info gdm_rules[RULES];

/* The elements that a thread takes at a time: some microseconds' work, so that what one of several threads has not
 * begun when it is held up is taken over by another. */
enum { PIECE = 16384 };

/* From so many elements on it pays to bring the parameter to the beginning of a cache line first: stores and loads that
 * straddle two lines cost a quarter of the time in L1 and L2 (see docs/decisions.md). */
enum { CACHE_LINE = 64, WORTH_ALIGNING = 2048 };

/* The elements before the first one that begins a cache line. */
static inline size_t before_line(const void *start, size_t itemsize) {
    return (CACHE_LINE - (uintptr_t)start % CACHE_LINE) % CACHE_LINE / itemsize;
}

/* Runs a kernel over the elements from first up to, and without, last. */
static inline void run_range(kernel *run, void *const *buffers, size_t count, size_t itemsize, size_t first,
                             size_t last, const void *coefs) {
    if (!first && last < WORTH_ALIGNING) {
        run(buffers, last, coefs);
        return;
    }
    void *from[MAX_BUFFERS];
    size_t n = last - first;
    for (size_t k = 0; k < count; k++) from[k] = (char *)buffers[k] + first * itemsize;
    const size_t head = n < WORTH_ALIGNING ? 0 : before_line(from[PARAM], itemsize);
    if (head) {
        run(from, head, coefs);
        for (size_t k = 0; k < count; k++) from[k] = (char *)from[k] + head * itemsize;
        n -= head;
    }
    run(from, n, coefs);
}

/* Checks the buffers (param, grad, states) and runs the rule over them. */
gdm_status gdm_run(enum rule rule, enum dtype dtype, void *const *buffers, size_t n, const struct prepared *prepared);

struct isa {
    const char *name;
    kernel *const *kernels[RULES][DTYPES]; /* indexed by variant */
};

extern const struct isa gdm_isa_baseline, gdm_isa_avx2, gdm_isa_avx512, gdm_isa_neon;

/* The one in use; NULL if GDM_ISA is wrong. */
const struct isa *gdm_active_isa(void);

#endif
