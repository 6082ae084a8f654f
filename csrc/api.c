/* The public update functions: check everything, then run one kernel. */
#include "core.h"
#include "pool.h"

#include <float.h>
#include <stdint.h>
#include <string.h>

#define GDM_PREPARE
#define GDM_RULE_FILES
#include "kernels.def"
#undef GDM_RULE_FILES
#undef GDM_PREPARE

/* NaN is in no domain. */
static inline int not_negative(double x) {
    return x >= 0 && x <= DBL_MAX;
}

static inline int below_one(double x) {
    return x >= 0 && x < 1;
}

static inline int up_to_one(double x) {
    return x >= 0 && x <= 1;
}

/* Copies a caller's args struct whose size differs from ours: fields that an older caller does not know are 0 (off);
 * fields that we do not know must be 0. */
static gdm_status translate(void *out, size_t size, const void *args) {
    size_t callers;
    memcpy(&callers, args, sizeof callers);
    if (callers < sizeof callers + sizeof(double) || callers > 4096) return GDM_ERR_STRUCT_SIZE;
    for (size_t i = size; i < callers; i++)
        if (((const unsigned char *)args)[i]) return GDM_ERR_STRUCT_SIZE;
    memset(out, 0, size);
    memcpy(out, args, callers < size ? callers : size);
    return GDM_OK;
}

#define CHECK_REAL(name, domain, status)                                                                               \
    if (!domain(args->name)) return status;
#define CHECK_FLAG(name)
#define GDM_RULE(rule, states, switches)                                                                               \
    gdm_status gdm_prepare_##rule(const gdm_##rule##_args *args, struct prepared *out) {                               \
        gdm_##rule##_args own;                                                                                         \
        if (!args) return GDM_ERR_NULL;                                                                                \
        if (args->size != sizeof own) {                                                                                \
            gdm_status status = translate(&own, sizeof own, args);                                                     \
            if (status) return status;                                                                                 \
            args = &own;                                                                                               \
        }                                                                                                              \
        GDM_OPTIONS_##rule(CHECK_REAL, CHECK_FLAG) return prepare_##rule(args, out);                                   \
    }
#include "kernels.def"

#define NAME(name) #name " "
#define REAL_NAME(name, domain, status) #name ":" #domain " "
#define GDM_RULE(rule, states, switches)                                                                               \
    [RULE_##rule] = {#rule,                                                                                            \
                     states,                                                                                           \
                     switches,                                                                                         \
                     "" GDM_STATES_##rule(NAME),                                                                       \
                     "" GDM_OPTIONS_##rule(REAL_NAME, NOTHING),                                                        \
                     "" GDM_OPTIONS_##rule(NOTHING, NAME)},
#define NOTHING(...)
const struct rule_info gdm_rules[RULES] = {
#include "kernels.def"
};

static inline gdm_status check_buffers(void *const *buffers, size_t count, size_t n, size_t itemsize) {
    if (n > SIZE_MAX / 2 / itemsize) return GDM_ERR_LENGTH;
    const size_t bytes = n * itemsize;
    for (size_t i = 0; i < count; i++) {
        const uintptr_t start = (uintptr_t)buffers[i];
        if (!start) return GDM_ERR_NULL;
        if (start % itemsize) return GDM_ERR_ALIGNMENT;
        if (start > UINTPTR_MAX - bytes) return GDM_ERR_LENGTH;
        for (size_t j = 0; j < i; j++) {
            const uintptr_t other = (uintptr_t)buffers[j];
            if (start < other + bytes && other < start + bytes) return GDM_ERR_OVERLAP;
        }
    }
    return GDM_OK;
}

struct whole {
    kernel *kernel;
    void *const *buffers;
    const void *coefs;
    size_t count, n, itemsize, head; /* head: the elements before the parameter's first whole cache line */
};

static void run_piece(void *context, size_t i) {
    const struct whole *whole = context;
    const size_t first = i ? whole->head + i * PIECE : 0, last = whole->head + (i + 1) * PIECE;
    run_range(whole->kernel, whole->buffers, whole->count, whole->itemsize, first, last < whole->n ? last : whole->n,
              whole->coefs);
}

gdm_status gdm_run(enum rule rule, enum dtype dtype, void *const *buffers, size_t n, const struct prepared *prepared) {
    const struct isa *isa = gdm_active_isa();
    if (!isa) return GDM_ERR_ISA;
    if (!n) return GDM_OK;
    const size_t count = STATE + gdm_rules[rule].states, itemsize = dtype == F32 ? sizeof(float) : sizeof(double);
    const gdm_status status = check_buffers(buffers, count, n, itemsize);
    if (status) return status;
    kernel *const kernel = isa->kernels[rule][dtype][prepared->variant];
    if (n >= 2 * PIECE) {
        const unsigned threads = gdm_pool_threads_for(n * itemsize * count, (unsigned)gdm_get_num_threads());
        if (threads > 1) {
            const size_t head = before_line(buffers[PARAM], itemsize);
            struct whole whole = {kernel, buffers, &prepared->coefs, count, n, itemsize, head};
            gdm_pool_run(threads, (n - head + PIECE - 1) / PIECE, run_piece, &whole);
            return GDM_OK;
        }
    }
    run_range(kernel, buffers, count, itemsize, 0, n, &prepared->coefs);
    return GDM_OK;
}

#define STATE_F32(name) float *name,
#define STATE_F64(name) double *name,
#define POINTER(name) name,
#define DEFINE(rule, suffix, type, dtype, STATE)                                                                       \
    gdm_status gdm_##rule##_##suffix(type *param, GDM_STATES_##rule(STATE) const type *grad, size_t n,                 \
                                     const gdm_##rule##_args *args) {                                                  \
        void *const buffers[] = {param, (void *)grad, GDM_STATES_##rule(POINTER)};                                     \
        struct prepared prepared;                                                                                      \
        const gdm_status status = gdm_prepare_##rule(args, &prepared);                                                 \
        return status ? status : gdm_run(RULE_##rule, dtype, buffers, n, &prepared);                                   \
    }
#define GDM_RULE(rule, states, switches)                                                                               \
    DEFINE(rule, f32, float, F32, STATE_F32) DEFINE(rule, f64, double, F64, STATE_F64)
#include "kernels.def"

const char *gdm_version(void) {
    return GDM_VERSION;
}

const char *gdm_strerror(gdm_status status) {
    switch (status) {
    case GDM_OK: return "success";
    case GDM_ERR_NULL: return "a buffer or the argument struct is NULL";
    case GDM_ERR_STRUCT_SIZE: return "the size field of the argument struct is wrong, or unknown fields are set";
    case GDM_ERR_LENGTH: return "the buffers would not fit into the address space";
    case GDM_ERR_ALIGNMENT: return "a buffer is not aligned to its element type";
    case GDM_ERR_OVERLAP: return "two buffers share memory";
    case GDM_ERR_LR: return "lr must be finite and not negative";
    case GDM_ERR_WEIGHT_DECAY: return "weight_decay must be finite and not negative";
    case GDM_ERR_MOMENTUM: return "momentum must be in [0, 1)";
    case GDM_ERR_DAMPENING: return "dampening must be in [0, 1], and 0 with nesterov or the classic form";
    case GDM_ERR_NESTEROV: return "nesterov needs momentum > 0";
    case GDM_ERR_FORM: return "form must be GDM_FORM_TORCH or GDM_FORM_CLASSIC";
    case GDM_ERR_ISA: return "unknown instruction set, or one that this machine cannot run";
    case GDM_ERR_MEMORY: return "out of memory";
    case GDM_ERR_THREADS: return "the number of threads must be between 1 and 256";
    }
    return "unknown status";
}
