/* The public update functions: each checks everything, then runs one kernel. */
#include "host.h"

#include "fp_mode.h"
#include "plan.h"
#include "pool.h"

/* These run in each call. In one file with the rest of the core GCC would not inline them, and a call on 64 floats
 * would take a third longer. */
#define ALWAYS_INLINE inline __attribute__((always_inline))

/* ---- buffers ---------------------------------------------------------------------------------------------------- */

static inline int overlap(const void *a, const void *b, size_t bytes) {
    return (uintptr_t)a < (uintptr_t)b + bytes && (uintptr_t)b < (uintptr_t)a + bytes;
}

/* Checks the i-th buffer, and that it does not overlap an earlier one, unless both are only read. */
static ALWAYS_INLINE gdm_status check_one(void *const *buffers, size_t i, size_t n, enum dtype dtype) {
    const size_t itemsize = size_of(dtype);
    const gdm_status status = check_buffer(buffers[i], n, dtype);
    if (status) return status;
    if (i && overlap(buffers[i], buffers[PARAM], n * itemsize)) return GDM_ERR_OVERLAP;
    for (size_t j = GRAD; j < i && i >= STATE; j++)
        if (buffers[j] && overlap(buffers[i], buffers[j], n * itemsize)) return GDM_ERR_OVERLAP;
    return GDM_OK;
}

static ALWAYS_INLINE gdm_status check_buffers(void *const *buffers, size_t states, unsigned used, size_t n,
                                              enum dtype dtype) {
    gdm_status status = check_one(buffers, PARAM, n, dtype);
    if (!status) status = check_one(buffers, GRAD, n, dtype);
    if (!status && buffers[SCALE]) status = check_one(buffers, SCALE, n, dtype);
    for (size_t k = 0; k < states; k++)
        if (!status && used >> k & 1) status = check_one(buffers, STATE + k, n, dtype);
    return status;
}

/* ---- one update ------------------------------------------------------------------------------------------------- */

/* All buffers are stored in the dtype that the kernel computes in. */
static const uint8_t alike[DTYPES][MAX_BUFFERS] = {{F32, F32, F32, F32, F32, F32}, {F64, F64, F64, F64, F64, F64}};

struct update {
    kernel *kernel;
    void *const *buffers;
    const uint8_t *dtypes;
    const void *constants;
    size_t n;
};

static void run_piece(void *context, size_t i) {
    const struct update *update = context;
    const size_t first = i * PIECE, rest = update->n - first;
    run_range(update->kernel, update->buffers, update->dtypes, first, first + (rest < PIECE ? rest : PIECE),
              update->constants);
}

/* The learning rate times the trust ratio. */
static __attribute__((noinline)) double trusted_lr(enum rule rule, enum dtype dtype, void *const *buffers, size_t n,
                                                   const union args *args, const struct prepared *prepared,
                                                   unsigned threads) {
    const struct isa *isa = gdm_active_isa();
    const struct vectors of = {
        .isa = isa,
        .rule = rule,
        .dtype = dtype,
        .n = n,
        .run = isa->directions[rule][dtype][prepared->variant & COUPLED_DECAY ? 1 : 0],
        .constants = &prepared->constants,
        .buffers = buffers,
    };
    return prepared->constants.any.lr * gdm_trust_ratio(&of, args, threads, 0);
}

/* The variant of a call's kernel. A rule that counts its steps has its first one at step 1. */
static inline unsigned variant_of(const void *args, size_t step, const struct choice *choice) {
    const int first = step && *(const uint64_t *)((const char *)args + step) == 1;
    return choice->variant | (first ? choice->first : 0);
}

/* Checks the buffers and runs the kernel. */
static ALWAYS_INLINE gdm_status run_checked(enum rule rule, enum dtype dtype, size_t states, void *const *given,
                                            size_t n, unsigned used, const union args *args,
                                            struct prepared *prepared) {
    const struct isa *isa = gdm_active_isa();
    const size_t itemsize = size_of(dtype);
    void *buffers[MAX_BUFFERS] = {given[PARAM], given[GRAD], given[SCALE]};
    size_t count = STATE - !given[SCALE];
    if (!isa) return GDM_ERR_ISA;
    if (!n) return GDM_OK;
    for (size_t k = 0; k < states; k++)
        if (used >> k & 1) {
            buffers[STATE + k] = given[STATE + k];
            count++;
        }
    const gdm_status status = check_buffers(buffers, states, used, n, dtype);
    if (status) return status;
    kernel *const kernel = isa->kernels[rule][dtype][prepared->variant | (buffers[SCALE] ? HAS_LR_SCALE : 0)];
    unsigned threads = 1;
    if (n >= 2 * PIECE) threads = gdm_pool_threads_for(n * itemsize * count, (unsigned)gdm_get_num_threads());
    if (has_trust(rule)) prepared->constants.any.lr = trusted_lr(rule, dtype, buffers, n, args, prepared, threads);
    if (threads > 1) {
        struct update update = {kernel, buffers, alike[dtype], &prepared->constants, n};
        gdm_pool_run(threads, (n + PIECE - 1) / PIECE, run_piece, &update);
    } else {
        run_range(kernel, buffers, alike[dtype], 0, n, &prepared->constants);
    }
    return GDM_OK;
}

gdm_status gdm_run(enum rule rule, enum dtype dtype, void *const *buffers, size_t n, const union args *args,
                   const struct choice *choice) {
    const struct rule_info *info = &gdm_rules[rule];
    struct prepared prepared;
    double scalars[MAX_SCALARS];
    prepared.variant = variant_of(args, info->step, choice);
    info->compute(args, NULL, &prepared.constants, scalars);
    const gdm_status status = run_checked(rule, dtype, info->states, buffers, n, choice->used, args, &prepared);
    for (unsigned k = 0; !status && k < info->scalars; k++)
        **(double *const *)((const char *)args + info->scalar[k]) = scalars[k];
    return status;
}

#define PARAMETER_f32(name, kind) float *name,
#define PARAMETER_f64(name, kind) double *name,
#define OPTIONAL_f32(name, kind, option) float *name,
#define OPTIONAL_f64(name, kind, option) double *name,
#define POINTER(name, kind) name,
#define OPTIONAL_POINTER(name, kind, option) name,
#define STORE(rule, name) *args->name = *next++;
#define DEFINE(rule, states, suffix, type, dtype)                                                                      \
    gdm_status gdm_##rule##_##suffix(type *param,                                                                      \
                                     GDM_STATES_##rule(PARAMETER_##suffix, OPTIONAL_##suffix) const type *grad,        \
                                     size_t n, const gdm_##rule##_args *args) {                                        \
        struct choice choice;                                                                                          \
        struct prepared prepared;                                                                                      \
        double scalars[MAX_SCALARS];                                                                                   \
        union args own;                                                                                                \
        gdm_status status = GDM_OK;                                                                                    \
        const fp_mode found = set_default_fp_mode();                                                                   \
        if (!args || args->size != sizeof *args) {                                                                     \
            status = gdm_read_struct(&own.rule, sizeof own.rule, args);                                                \
            args = &own.rule;                                                                                          \
        }                                                                                                              \
        if (!status) status = check_##rule(args, dtype, &choice);                                                      \
        if (!status) {                                                                                                 \
            void *const buffers[] = {param, (void *)grad, (void *)args->lr_scale,                                      \
                                     GDM_STATES_##rule(POINTER, OPTIONAL_POINTER)};                                    \
            prepared.variant = choice.first ? variant_of(args, gdm_rules[RULE_##rule].step, &choice) : choice.variant; \
            compute_##rule(args, NULL, &prepared.constants.rule, scalars);                                             \
            status =                                                                                                   \
                run_checked(RULE_##rule, dtype, states, buffers, n, choice.used, (const union args *)args, &prepared); \
        }                                                                                                              \
        if (!status) {                                                                                                 \
            const double *next = scalars;                                                                              \
            GDM_SCALARS_##rule(STORE, rule);                                                                           \
            (void)next;                                                                                                \
        }                                                                                                              \
        restore_fp_mode(found);                                                                                        \
        return status;                                                                                                 \
    }
#define GDM_RULE(rule, states, switches) DEFINE(rule, states, f32, float, F32) DEFINE(rule, states, f64, double, F64)
#include "rules.def"
