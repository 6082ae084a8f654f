/* What the C files share: the rules, kernels and instruction sets by number. Not installed. */
#ifndef GDM_CORE_H
#define GDM_CORE_H

#include "gdm/gdm.h"

#include <stdint.h>

#if __FLT_EVAL_METHOD__ != 0
#error "float arithmetic is not rounded to float on this target (x87?): the results would not be the reference's"
#endif

enum dtype { F32 = GDM_FLOAT32, F64 = GDM_FLOAT64, DTYPES };

static inline size_t size_of(enum dtype dtype) {
    return dtype == F32 ? sizeof(float) : sizeof(double);
}

/* RULE_sgd, RULE_momentum, ..., RULES */
enum rule {
#define GDM_RULE(rule, states, switches) RULE_##rule,
#include "rules.def"
    RULES
};

/* Buffers: param, grad, lr_scale (or NULL), then the states (NULL for one that is not in use). A kernel trusts them:
 * checked, not overlapping. */
enum { PARAM, GRAD, SCALE, STATE, MAX_STATES = 3, MAX_BUFFERS = STATE + MAX_STATES };
typedef void kernel(void *const *buffers, size_t n, const void *constants);

/* The bits of a kernel's variant that all rules share; a rule's own follow. */
#define HAS_LR_SCALE 1u  /* there is an lr_scale */
#define COUPLED_DECAY 2u /* weight decay goes through the gradient */

/* struct sgd_constants, struct momentum_constants, ... */
#define CONSTANT(name) double name;
#define GDM_RULE(rule, states, switches)                                                                               \
    struct rule##_constants {                                                                                          \
        GDM_COMMON_CONSTANTS(CONSTANT) GDM_CONSTANTS_##rule(CONSTANT)                                                  \
    };
#include "rules.def"
#undef CONSTANT

/* A rule's arguments, checked, and its constants: which of its kernels to call, and with what. */
struct prepared {
    unsigned variant;
    unsigned first;     /* the switch to add in a buffer's first step; 0 if the rule makes no difference */
    unsigned used;      /* a bit for each state that is in use */
    const void *scale;  /* lr_scale */
    double *mu_product; /* what becomes `product` when the update has been made; or NULL */
    double product;
    union {
#define GDM_RULE(rule, states, switches) struct rule##_constants rule;
#include "rules.def"
    } constants;
};

/* The argument struct of any rule. */
union args {
    size_t size;
#define GDM_RULE(rule, states, switches) gdm_##rule##_args rule;
#include "rules.def"
};

/* The kinds of options: what they are in the argument struct. A scalar is a pointer to a double. */
enum kind { not_negative, below_one, up_to_one, flag, form, factors, count, betas, scalar };

/* The rows of rules.def for those who enumerate them. The scalars follow the options. */
struct option_info {
    const char *name; /* NULL behind the last */
    enum kind kind;
    size_t offset; /* in the argument struct */
};
struct state_info {
    const char *name;
    const char *option; /* without which it is not used; NULL if it always is */
};
struct rule_info {
    const char *name;
    unsigned states, switches;
    struct state_info state[MAX_STATES + 1];
    const struct option_info *options;
    size_t args_size;
    /* Copies a caller's argument struct, which may be an older or newer version's. */
    gdm_status (*read)(const void *args, union args *out);
    /* Every check of the options is here. */
    gdm_status (*prepare)(const union args *args, struct prepared *out);
};
extern const struct rule_info gdm_rules[RULES];

/* GDM_OK if there can be n elements of this size at an address. */
static inline gdm_status check_buffer(const void *buffer, size_t n, size_t itemsize) {
    const uintptr_t start = (uintptr_t)buffer;
    if (n > SIZE_MAX / 2 / itemsize) return GDM_ERR_LENGTH;
    if (!start) return GDM_ERR_NULL;
    if (start % itemsize) return GDM_ERR_ALIGNMENT;
    if (start > UINTPTR_MAX - n * itemsize) return GDM_ERR_LENGTH;
    return GDM_OK;
}

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
static inline void run_range(kernel *run, void *const *buffers, size_t itemsize, size_t first, size_t last,
                             const void *constants) {
    if (!first && last < WORTH_ALIGNING) {
        run(buffers, last, constants);
        return;
    }
    void *from[MAX_BUFFERS];
    size_t n = last - first;
    for (size_t k = 0; k < MAX_BUFFERS; k++) from[k] = buffers[k] ? (char *)buffers[k] + first * itemsize : NULL;
    const size_t head = n < WORTH_ALIGNING ? 0 : before_line(from[PARAM], itemsize);
    if (head) {
        run(from, head, constants);
        for (size_t k = 0; k < MAX_BUFFERS; k++) from[k] = from[k] ? (char *)from[k] + head * itemsize : NULL;
        n -= head;
    }
    run(from, n, constants);
}

/* Checks the buffers and runs the rule over them. */
gdm_status gdm_run(enum rule rule, enum dtype dtype, void *const *buffers, size_t n, const struct prepared *prepared);

struct isa {
    const char *name;
    kernel *const *kernels[RULES][DTYPES]; /* indexed by variant */
};

extern const struct isa gdm_isa_baseline, gdm_isa_avx2, gdm_isa_avx512, gdm_isa_neon;

/* The one in use; NULL if GDM_ISA is wrong. */
const struct isa *gdm_active_isa(void);

#endif
