/* The public update functions: check everything, then run one kernel. */
#include "core.h"
#include "pool.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* ---- the rules' host parts -------------------------------------------------------------------------------------- */

/* What a rule's file is written in here: the constants that every rule has, and the bit for coupled decay. */
#define COMMON_CONSTANTS(args, rate, decoupled)                                                                        \
    .lr = (rate), .weight_decay = (args)->weight_decay, .sign = (args)->maximize ? -1.0 : 1.0,                         \
    .decay_factor = (decoupled) ? 1.0 - (args)->lr * (args)->weight_decay : 1.0,                                       \
    .lr_times_decay = (decoupled) ? (args)->lr * (args)->weight_decay : 0.0
#define DECAY_VARIANT(args, decoupled) ((args)->weight_decay != 0 && !(decoupled) ? COUPLED_DECAY : 0)

/* Powers by multiplication alone, in a fixed order: libraries' pow() differ between machines. */
static double power(double base, uint64_t exponent) {
    double result = 1.0;
    for (; exponent; exponent >>= 1) {
        if (exponent & 1) result = result * base;
        base = base * base;
    }
    return result;
}

/* 0.96^x for x >= 0: e^y with y = x log(0.96), by its series where |y| is small, and squared as often as it was halved.
 */
static double power_of_096(double x) {
    double y = x * -0.040821994520255166, sum = 1.0;
    int halved = 0;
    if (y < -745.0) return 0.0;
    for (; y < -0.125; halved++) y = y * 0.5;
    for (int k = 12; k >= 1; k--) sum = 1.0 + sum * y / k;
    for (; halved; halved--) sum = sum * sum;
    return sum;
}

#define GDM_PREPARE
#define GDM_RULE_FILES
#include "rules.def"
#undef GDM_RULE_FILES
#undef GDM_PREPARE

/* ---- options ---------------------------------------------------------------------------------------------------- */

/* For each kind of option its type in the argument struct, and whether a value is legal. NaN never is. */
#define TYPE_not_negative double
#define TYPE_below_one double
#define TYPE_up_to_one double
#define TYPE_betas const double *
#define TYPE_flag int
#define TYPE_form int
#define TYPE_factors const void *
#define TYPE_count uint64_t
#define LEGAL_not_negative(x) ((x) >= 0 && (x) <= DBL_MAX)
#define LEGAL_below_one(x) ((x) >= 0 && (x) < 1)
#define LEGAL_up_to_one(x) ((x) >= 0 && (x) <= 1)
#define LEGAL_betas(x) (LEGAL_below_one((x)[0]) && LEGAL_below_one((x)[1]))
#define LEGAL_flag(x) ((void)(x), 1)
#define LEGAL_form(x) ((x) == GDM_FORM_TORCH || (x) == GDM_FORM_CLASSIC)
#define LEGAL_factors(x) ((void)(x), 1)
#define LEGAL_count(x) ((x) >= 1)

#define GDM_OPTION(name, kind, status, must, meaning)                                                                  \
    static inline gdm_status check_##name(TYPE_##kind x) {                                                             \
        return LEGAL_##kind(x) ? GDM_OK : (gdm_status)status;                                                          \
    }                                                                                                                  \
    enum { KIND_##name = kind };
#include "rules.def"
#define GDM_SCALAR(name, initial, domain, status, must, meaning)                                                       \
    static inline gdm_status check_##name(const double *x) {                                                           \
        return x && LEGAL_##domain(*x) ? GDM_OK : (gdm_status)status;                                                  \
    }                                                                                                                  \
    enum { KIND_##name = scalar };
#include "rules.def"

/* Copies a caller's args struct: fields that an older caller does not know are 0 (off); fields that we do not know must
 * be 0. */
static gdm_status translate(void *out, size_t size, const void *args) {
    size_t callers;
    if (!args) return GDM_ERR_NULL;
    memcpy(&callers, args, sizeof callers);
    if (callers < sizeof callers + sizeof(double) || callers > 4096) return GDM_ERR_STRUCT_SIZE;
    for (size_t i = size; i < callers; i++)
        if (((const unsigned char *)args)[i]) return GDM_ERR_STRUCT_SIZE;
    memset(out, 0, size);
    memcpy(out, args, callers < size ? callers : size);
    memcpy(out, &size, sizeof size);
    return GDM_OK;
}

#define CHECK(rule, name, default_value)                                                                               \
    if ((status = check_##name(args->name))) return status;
#define CHECK_SCALAR(rule, name) CHECK(rule, name, )
#define USED(name) out->used |= 1u << k++;
#define USED_WITH(name, option) out->used |= (unsigned)(args->option != 0) << k++;
#define GDM_RULE(rule, states, switches)                                                                               \
    static inline gdm_status check_and_prepare_##rule(const gdm_##rule##_args *args, struct prepared *out) {           \
        gdm_status status;                                                                                             \
        unsigned k = 0;                                                                                                \
        GDM_OPTIONS_##rule(CHECK, rule);                                                                               \
        GDM_SCALARS_##rule(CHECK_SCALAR, rule);                                                                        \
        out->variant = args->lr_scale ? HAS_LR_SCALE : 0;                                                              \
        out->first = out->used = 0;                                                                                    \
        out->scale = args->lr_scale;                                                                                   \
        out->mu_product = NULL;                                                                                        \
        GDM_STATES_##rule(USED, USED_WITH);                                                                            \
        (void)k;                                                                                                       \
        return prepare_##rule(args, out);                                                                              \
    }                                                                                                                  \
    static gdm_status read_##rule(const void *args, union args *out) {                                                 \
        return translate(&out->rule, sizeof out->rule, args);                                                          \
    }                                                                                                                  \
    static gdm_status prepare_any_##rule(const union args *args, struct prepared *out) {                               \
        return check_and_prepare_##rule(&args->rule, out);                                                             \
    }
#include "rules.def"

#define OPTION_INFO(rule, name, default_value) SCALAR_INFO(rule, name)
#define SCALAR_INFO(rule, name) {#name, (enum kind)KIND_##name, offsetof(gdm_##rule##_args, name)},
#define GDM_RULE(rule, states, switches)                                                                               \
    static const struct option_info rule##_options[] = {GDM_OPTIONS_##rule(OPTION_INFO, rule)                          \
                                                            GDM_SCALARS_##rule(SCALAR_INFO, rule){NULL, flag, 0}};
#include "rules.def"

#define STATE_INFO(name) {#name, NULL},
#define OPTIONAL_INFO(name, option) {#name, #option},
#define GDM_RULE(rule, states, switches)                                                                               \
    [RULE_##rule] = {#rule,          states,                                                                           \
                     switches,       {GDM_STATES_##rule(STATE_INFO, OPTIONAL_INFO){NULL, NULL}},                       \
                     rule##_options, sizeof(gdm_##rule##_args),                                                        \
                     read_##rule,    prepare_any_##rule},
const struct rule_info gdm_rules[RULES] = {
#include "rules.def"
};

/* ---- one update ------------------------------------------------------------------------------------------------- */

static inline int overlap(const void *a, const void *b, size_t bytes) {
    return (uintptr_t)a < (uintptr_t)b + bytes && (uintptr_t)b < (uintptr_t)a + bytes;
}

/* The i-th buffer by itself, and against those before it, unless both are only read. */
static inline __attribute__((always_inline)) gdm_status check_one(void *const *buffers, size_t i, size_t n,
                                                                  size_t itemsize) {
    const gdm_status status = check_buffer(buffers[i], n, itemsize);
    if (status) return status;
    if (i && overlap(buffers[i], buffers[PARAM], n * itemsize)) return GDM_ERR_OVERLAP;
    for (size_t j = GRAD; j < i && i >= STATE; j++)
        if (buffers[j] && overlap(buffers[i], buffers[j], n * itemsize)) return GDM_ERR_OVERLAP;
    return GDM_OK;
}

static inline gdm_status check_buffers(void *const *buffers, size_t states, unsigned used, size_t n, size_t itemsize) {
    gdm_status status = check_one(buffers, PARAM, n, itemsize);
    if (!status) status = check_one(buffers, GRAD, n, itemsize);
    if (!status && buffers[SCALE]) status = check_one(buffers, SCALE, n, itemsize);
    for (size_t k = 0; k < states; k++)
        if (!status && used >> k & 1) status = check_one(buffers, STATE + k, n, itemsize);
    return status;
}

struct whole {
    kernel *kernel;
    void *const *buffers;
    const void *constants;
    size_t n, itemsize, head; /* head: the elements before the parameter's first whole cache line */
};

static void run_piece(void *context, size_t i) {
    const struct whole *whole = context;
    const size_t first = i ? whole->head + i * PIECE : 0, last = whole->head + (i + 1) * PIECE;
    run_range(whole->kernel, whole->buffers, whole->itemsize, first, last < whole->n ? last : whole->n,
              whole->constants);
}

static inline gdm_status run_checked(enum rule rule, enum dtype dtype, size_t states, void *const *given, size_t n,
                                     const struct prepared *prepared) {
    const unsigned used = prepared->used; /* before the first call: behind it the compiler no longer knows its value */
    const struct isa *isa = gdm_active_isa();
    const size_t itemsize = size_of(dtype);
    void *buffers[MAX_BUFFERS] = {given[PARAM], given[GRAD], (void *)prepared->scale};
    size_t count = STATE - !prepared->scale;
    if (!isa) return GDM_ERR_ISA;
    for (size_t k = 0; k < states; k++)
        if (used >> k & 1) {
            buffers[STATE + k] = given[STATE + k];
            count++;
        }
    if (n) {
        const gdm_status status = check_buffers(buffers, states, used, n, itemsize);
        if (status) return status;
        kernel *const kernel = isa->kernels[rule][dtype][prepared->variant];
        unsigned threads = 1;
        if (n >= 2 * PIECE) threads = gdm_pool_threads_for(n * itemsize * count, (unsigned)gdm_get_num_threads());
        if (threads > 1) {
            const size_t head = before_line(buffers[PARAM], itemsize);
            struct whole whole = {kernel, buffers, &prepared->constants, n, itemsize, head};
            gdm_pool_run(threads, (n - head + PIECE - 1) / PIECE, run_piece, &whole);
        } else {
            run_range(kernel, buffers, itemsize, 0, n, &prepared->constants);
        }
    }
    if (prepared->mu_product) *prepared->mu_product = prepared->product;
    return GDM_OK;
}

gdm_status gdm_run(enum rule rule, enum dtype dtype, void *const *buffers, size_t n, const struct prepared *prepared) {
    return run_checked(rule, dtype, gdm_rules[rule].states, buffers, n, prepared);
}

#define PARAMETER_f32(name) float *name,
#define PARAMETER_f64(name) double *name,
#define OPTIONAL_f32(name, option) float *name,
#define OPTIONAL_f64(name, option) double *name,
#define POINTER(name) name,
#define OPTIONAL_POINTER(name, option) name,
#define DEFINE(rule, states, suffix, type, dtype)                                                                      \
    gdm_status gdm_##rule##_##suffix(type *param,                                                                      \
                                     GDM_STATES_##rule(PARAMETER_##suffix, OPTIONAL_##suffix) const type *grad,        \
                                     size_t n, const gdm_##rule##_args *args) {                                        \
        void *const buffers[] = {param, (void *)grad, NULL, GDM_STATES_##rule(POINTER, OPTIONAL_POINTER)};             \
        struct prepared prepared;                                                                                      \
        union args own;                                                                                                \
        gdm_status status = GDM_OK;                                                                                    \
        if (!args || args->size != sizeof *args) {                                                                     \
            status = read_##rule(args, &own);                                                                          \
            args = &own.rule;                                                                                          \
        }                                                                                                              \
        if (!status) status = check_and_prepare_##rule(args, &prepared);                                               \
        return status ? status : run_checked(RULE_##rule, dtype, states, buffers, n, &prepared);                       \
    }
#define GDM_RULE(rule, states, switches) DEFINE(rule, states, f32, float, F32) DEFINE(rule, states, f64, double, F64)
#include "rules.def"

/* ---- the library ------------------------------------------------------------------------------------------------ */

const char *gdm_version(void) {
    return GDM_VERSION;
}

unsigned gdm_abi(void) {
    return GDM_ABI;
}

const char *gdm_strerror(gdm_status status) {
    switch ((int)status) {
    case GDM_OK: return "success";
    case GDM_ERR_NULL: return "a buffer, the argument struct or a plan is NULL";
    case GDM_ERR_STRUCT_SIZE: return "the size field of the argument struct is wrong, or unknown fields are set";
    case GDM_ERR_LENGTH: return "the buffers would not fit into the address space";
    case GDM_ERR_ALIGNMENT: return "a buffer is not aligned to its element type";
    case GDM_ERR_OVERLAP: return "two buffers share memory";
    case GDM_ERR_ISA: return "unknown instruction set, or one that this machine cannot run";
    case GDM_ERR_MEMORY: return "out of memory";
    case GDM_ERR_THREADS: return "the number of threads must be between 1 and 256";
    case GDM_ERR_INDEX: return "there is no such rule, dtype, group, or buffer in the plan";
    case GDM_ERR_IMPORT: return "gdm_import() has not been called, or has failed";
    default: break;
    }
#define GDM_OPTION(name, kind, number, must, meaning)                                                                  \
    if (number && (int)status == number) return #name " " must;
#include "rules.def"
#define GDM_SCALAR(name, initial, domain, number, must, meaning)                                                       \
    if ((int)status == number) return #name " " must;
#include "rules.def"
    return "unknown status";
}
