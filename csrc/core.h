/* What the C files share: the rules, kernels and instruction sets by number. Not installed. */
#ifndef GDM_CORE_H
#define GDM_CORE_H

#include "gdm/gdm.h"
#include "internal.h"

#include <stdint.h>

#if defined _MSC_VER && !defined __clang__
#error "cl.exe compiles neither gdm's atomics nor its kernels: use clang-cl, which comes with Visual Studio"
#endif

/* 16: only _Float16, which is not used, may be computed in a wider type. GCC says so on CPUs with AVX512-FP16. */
#if __FLT_EVAL_METHOD__ != 0 && __FLT_EVAL_METHOD__ != 16
#error "float arithmetic is not rounded to float on this target (x87?): the results would not be the reference's"
#endif

/* GCC for Windows keeps wide vectors at addresses on the stack that are not aligned for them, and the program crashes
 * (https://gcc.gnu.org/bugzilla/show_bug.cgi?id=54412). So it has the baseline only. */
#if defined __x86_64__ && (defined __clang__ || !defined _WIN32)
#define HAS_AVX 1
#else
#define HAS_AVX 0
#endif

/* The dtypes in which buffers are stored. Kernels compute in the first two. */
enum dtype {
    F32 = GDM_FLOAT32,
    F64 = GDM_FLOAT64,
    DTYPES,
    BF16 = GDM_BFLOAT16,
    F16 = GDM_FLOAT16,
    FLOATS,
    INT8 = GDM_INT8,
    STORAGES,
};

static inline size_t size_of(enum dtype dtype) {
    static const uint8_t sizes[STORAGES] = {[F32] = 4, [F64] = 8, [BF16] = 2, [F16] = 2, [INT8] = 1};
    return sizes[dtype];
}

/* RULE_sgd, RULE_momentum, ..., RULES */
enum rule {
#define GDM_RULE(rule, states, switches) RULE_##rule,
#include "rules.def"
    RULES
};

/* The rules that multiply each parameter's learning rate by a trust ratio, as bits. */
enum {
    TRUST_RULES = 0
#define GDM_TRUST(rule) | 1 << RULE_##rule
#include "rules.def"
};
_Static_assert(RULES < 31, "TRUST_RULES needs a bit for each rule");
static inline int has_trust(enum rule rule) {
    return TRUST_RULES >> rule & 1;
}

/* Buffers: param, grad, lr_scale (or NULL), then the states (NULL for one that is not in use). A kernel does not check
 * them: its caller has done that. */
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

/* Each of these begins with the same constants. */
union constants {
    struct {
        GDM_COMMON_CONSTANTS(CONSTANT)
    } any;
#define GDM_RULE(rule, states, switches) struct rule##_constants rule;
#include "rules.def"
};
#undef CONSTANT

/* What follows from a rule's options alone. */
struct choice {
    unsigned variant; /* of the kernel */
    unsigned first;   /* the switch to add in an entry's first step; 0 if the rule has no special first step */
    unsigned prepare; /* the switch to add while a step is prepared; 0 if the rule's steps need no preparation */
    unsigned used;    /* a bit for each state that is in use */
};

/* What one step needs: the variant of the rule's kernel, and the constants that the kernel reads. */
struct prepared {
    unsigned variant;
    union constants constants;
};

/* What a plan keeps from one step to the next, to save computing it again. */
enum { SQUARES = 24 };
struct cache {
    double squares[2][SQUARES]; /* squares[k][j] is betas[k]^(2^j) */
    double next_mu;             /* NAdam's momentum of step next_step */
    uint64_t next_step;         /* 0: there is no next_mu */
};

/* A power by multiplications in a fixed order, since libraries' pow() differ between machines. With the squares from an
 * earlier step, this takes one multiplication for each bit that is set in the exponent. */
static inline double power(double base, uint64_t exponent, double *squares) {
    double result = 1.0;
    if (squares) {
        if (squares[0] != base) {
            squares[0] = base;
            for (int k = 1; k < SQUARES; k++) squares[k] = squares[k - 1] * squares[k - 1];
        }
        for (uint32_t low = exponent & ((1u << SQUARES) - 1); low; low &= low - 1)
            result = result * squares[__builtin_ctz(low)];
        exponent >>= SQUARES;
        base = squares[SQUARES - 1] * squares[SQUARES - 1];
    }
    for (; exponent; exponent >>= 1) {
        if (exponent & 1) result = result * base;
        base = base * base;
    }
    return result;
}

enum { MAX_SCALARS = 2 };

/* The argument struct of any rule. */
union args {
    size_t size;
    struct {
        size_t size;
        double lr;
    } any;
#define GDM_RULE(rule, states, switches) gdm_##rule##_args rule;
#include "rules.def"
};
#define GDM_RULE(rule, states, switches)                                                                               \
    _Static_assert(offsetof(gdm_##rule##_args, lr) == offsetof(union args, any.lr), "lr is the first option");
#include "rules.def"

/* The kinds of options: each has its type in the argument struct. A scalar is a pointer to a double. */
enum kind {
    not_negative,
    below_one,
    up_to_one,
    flag,
    form,
    factors,
    count,
    betas,
    scalar,
    three_betas,
    etas,
    step_sizes,
    phase,
};

/* The rows of rules.def, for code that enumerates them. The scalars follow the options. */
struct option_info {
    const char *name; /* NULL after the last */
    enum kind kind;
    size_t offset; /* in the argument struct */
};
enum state_kind { plain, square, work }; /* see rules.def */
struct state_info {
    const char *name;
    const char *option; /* the option that needs it; NULL if it is always used */
    enum state_kind kind;
};
struct rule_info {
    const char *name;
    unsigned states, switches, scalars;
    struct state_info state[MAX_STATES + 1];
    const struct option_info *options;
    size_t args_size;
    size_t step;                    /* the offset of `step` in the argument struct; 0 if the rule has no `step` */
    size_t scalar[MAX_SCALARS + 1]; /* the offsets of the pointers to the scalars in the argument struct */
    void (*begin)(double *scalars); /* sets the scalars to their values before the first step */
    gdm_status (*check_scalars)(const double *scalars);
    /* Copies a caller's argument struct, which may be of an older or newer version. */
    gdm_status (*read)(const void *args, union args *out);
    /* Checks all options, for kernels that compute in this dtype. */
    gdm_status (*check)(const union args *args, enum dtype dtype, struct choice *out);
    /* Computes the constants for one step, and the scalars after it. The arguments have been checked. `cache` belongs
     * to these arguments, or is NULL. */
    void (*compute)(const union args *args, struct cache *cache, union constants *out, double *scalars);
};
GDM_INTERNAL_TABLE const struct rule_info gdm_rules[RULES];

/* The trust ratio that multiplies a parameter's learning rate, from the norms of the parameter and its direction; and
 * the offset of the option `adapt` in the argument struct. Empty for rules without one. */
struct trust_info {
    double (*ratio)(const union args *args, double param_norm, double direction_norm);
    size_t adapt;
};
GDM_INTERNAL_TABLE const struct trust_info gdm_trusts[RULES];

/* GDM_OK if n elements of this dtype can be at this address. */
static inline gdm_status check_buffer(const void *buffer, size_t n, enum dtype dtype) {
    const uintptr_t start = (uintptr_t)buffer;
    const size_t itemsize = size_of(dtype);
    if (n > SIZE_MAX / 2 / itemsize) return GDM_ERR_LENGTH;
    if (!start) return GDM_ERR_NULL;
    if (start % itemsize) return GDM_ERR_ALIGNMENT;
    if (start > UINTPTR_MAX - n * itemsize) return GDM_ERR_LENGTH;
    return GDM_OK;
}

/* Work is cut into pieces by element index, never by address: an entry is cut only at multiples of BLOCK elements, so
 * updates and reductions cut at the same places. A thread works on PIECE elements at a time, which take some
 * microseconds: if a thread is interrupted, the others can do the pieces that it has not begun. */
enum { BLOCK = 4096, PIECE = 4 * BLOCK };

/* From WORTH_ALIGNING elements on, a kernel first runs over the few elements before the parameter's first whole cache
 * line: stores and loads that cross two lines cost a quarter of the time in L1 and L2 (see docs/decisions.md). */
enum { CACHE_LINE = 64, WORTH_ALIGNING = 2048 };

/* How many elements come before the first one at the start of a cache line. */
static inline size_t before_line(const void *start, size_t itemsize) {
    return (CACHE_LINE - (uintptr_t)start % CACHE_LINE) % CACHE_LINE / itemsize;
}

/* Advances each buffer's address by this number of elements of its own dtype. */
static inline void move_on(void **buffers, const uint8_t *dtypes, size_t elements) {
    for (size_t k = 0; k < MAX_BUFFERS; k++)
        if (buffers[k]) buffers[k] = (char *)buffers[k] + elements * size_of((enum dtype)dtypes[k]);
}

/* Runs a kernel over the elements from first to last - 1. `dtypes` are those in which the buffers are stored. */
static inline __attribute__((always_inline)) void run_range(kernel *run, void *const *buffers, const uint8_t *dtypes,
                                                            size_t first, size_t last, const void *constants) {
    if (!first && last < WORTH_ALIGNING) {
        run(buffers, last, constants);
        return;
    }
    void *from[MAX_BUFFERS];
    size_t n = last - first;
    for (size_t k = 0; k < MAX_BUFFERS; k++) from[k] = buffers[k];
    move_on(from, dtypes, first);
    const size_t head = n < WORTH_ALIGNING ? 0 : before_line(from[PARAM], size_of((enum dtype)dtypes[PARAM]));
    if (head) {
        run(from, head, constants);
        move_on(from, dtypes, head);
        n -= head;
    }
    run(from, n, constants);
}

/* Copies a caller's argument struct, which may have another size: fields that an older caller does not have become 0
 * (off); fields that this library does not have must be 0. */
GDM_INTERNAL gdm_status gdm_read_struct(void *out, size_t size, const void *args);

/* Both are called in the default floating-point mode (fp_mode.h).
 *
 * Checks options for kernels that compute in this dtype. */
GDM_INTERNAL gdm_status gdm_check(enum rule rule, enum dtype dtype, const union args *args, struct choice *out);

/* Checks the buffers and runs the rule on them. gdm_check has checked `args` and set `choice`. The factors of the
 * learning rate are in buffers[SCALE], not in args. */
GDM_INTERNAL gdm_status gdm_run(enum rule rule, enum dtype dtype, void *const *buffers, size_t n,
                                const union args *args, const struct choice *choice);

/* gdm_accumulate without its checks, which compare each total with all other buffers. */
GDM_INTERNAL gdm_status gdm_accumulate_unchecked(const gdm_buffer *totals, const gdm_buffer *grads,
                                                 const size_t *lengths, size_t count, double scale);

enum { REDUCTIONS = 3 };
typedef double reducer(const void *block, size_t n); /* at most BLOCK elements */

/* ---- stages: what is done to a tile of a buffer beside the rule -------------------------------------------------- */

/* Two numbers that choose the random bits of a buffer's elements: see draw() in stages/numbers.h. */
struct key {
    uint32_t add, mix;
};

/* int8 storage: each block of so many elements of an entry has a scale. */
enum { SCALE_BLOCK = 128 };
static inline size_t scales_of(size_t n) {
    return (n + SCALE_BLOCK - 1) / SCALE_BLOCK;
}

/* `out` and `in` are `n` elements. Those without a type are of the dtype that a table below has as an index. `first` is
 * the number of the first element in its entry, modulo 2^32. A load gives compute dtypes, a store takes them. */
typedef void stage_load(void *out, const void *in, size_t n);
typedef void stage_store(void *out, const void *in, size_t n);
typedef void stage_store_random(void *out, const void *in, size_t n, struct key key, uint32_t first);
typedef void stage_load_int8(void *out, const void *in, const float *scales, size_t n);
typedef void stage_store_int8(void *out, float *scales, const void *in, size_t n, struct key key, uint32_t first);
typedef void stage_load_split(float *out, const uint16_t *high, const uint16_t *low, size_t n);
typedef void stage_store_split(uint16_t *high, uint16_t *low, const float *in, size_t n);
typedef void stage_scale(void *out, const void *in, size_t n, double factor);
typedef void stage_limit(void *out, const void *in, size_t n, double most);
typedef void stage_average(void *average, const void *param, size_t n, double weight);
typedef void stage_accumulate(void *total, const void *grad, size_t n, double factor);

/* Writes the direction whose norm a trust ratio needs. Changes no buffer. */
typedef void direction(void *out, void *const *buffers, size_t n, const void *constants);

struct isa {
    const char *name;
    kernel *const *kernels[RULES][DTYPES]; /* indexed by variant */
    direction
        *directions[RULES][DTYPES][2];     /* the second one has coupled decay; NULL for rules without a trust ratio */
    reducer *reducers[REDUCTIONS][DTYPES]; /* indexed by gdm_reduction */
    /* Indexed by storage dtype and compute dtype. NULL where both are the same. */
    stage_load *load[FLOATS][DTYPES];
    stage_store *store[FLOATS][DTYPES];
    stage_store_random *store_random[FLOATS][DTYPES]; /* NULL for float32 and float64, too */
    stage_load_int8 *load_int8[2][DTYPES];            /* indexed by state_kind */
    stage_store_int8 *store_int8[2][DTYPES];
    stage_load_split *load_split;
    stage_store_split *store_split;
    stage_scale *scale[DTYPES];
    stage_limit *limit[DTYPES];
    stage_average *average[DTYPES];
    stage_accumulate *accumulate[DTYPES];
};

GDM_INTERNAL_TABLE const struct isa gdm_isa_baseline, gdm_isa_avx2, gdm_isa_avx512, gdm_isa_neon;

/* The instruction set in use; NULL if GDM_ISA is wrong. */
GDM_INTERNAL const struct isa *gdm_active_isa(void);

#endif
