/* A thread may be in another rounding mode, or flush subnormal numbers to zero. Steps and reductions have the same bits
 * as in the default mode, with one thread and with several, and the thread is still in its mode afterwards. Prints the
 * number of modes of this machine; exits with 1 and says what is wrong. */
#include "gdm/gdm.h"

#include <fenv.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined __x86_64__ || defined __i386__
#include <xmmintrin.h>
#endif

enum { N = 100000, STEPS = 3, FLUSH_TO_ZERO = -1 };

static const struct mode {
    const char *name;
    int rounding; /* of fenv.h, or FLUSH_TO_ZERO */
} modes[] = {
#ifdef FE_DOWNWARD
    {"down", FE_DOWNWARD},
    {"up", FE_UPWARD},
    {"towards zero", FE_TOWARDZERO},
#endif
#if defined __x86_64__ || defined __i386__ || defined __aarch64__
    {"flush to zero", FLUSH_TO_ZERO},
#endif
    {NULL, 0},
};

/* The register that says whether subnormal numbers are flushed, and its values if not and if so. */
#if defined __x86_64__ || defined __i386__
enum { KEEPS = 0x1f80, FLUSHES = 0x9fc0, MODE_BITS = 0xffc0 };
static void set_register(unsigned value) {
    _mm_setcsr(value);
}
static unsigned get_register(void) {
    return _mm_getcsr();
}
#elif defined __aarch64__
enum { KEEPS = 0, FLUSHES = 1 << 24, MODE_BITS = -1 };
static void set_register(unsigned value) {
    __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)value));
}
static unsigned get_register(void) {
    uint64_t value;
    __asm__ volatile("mrs %0, fpcr" : "=r"(value));
    return (unsigned)value;
}
#else
enum { KEEPS, FLUSHES, MODE_BITS };
static void set_register(unsigned value) {
    (void)value;
}
static unsigned get_register(void) {
    return KEEPS;
}
#endif

static void enter(const struct mode *mode) {
    if (!mode) return;
    if (mode->rounding == FLUSH_TO_ZERO)
        set_register(FLUSHES);
    else
        fesetround(mode->rounding);
}

/* Whether the thread was in the mode. */
static int leave(const struct mode *mode) {
    if (!mode) return 1;
    const int flushes = (get_register() & (unsigned)MODE_BITS) == FLUSHES, rounding = fegetround();
    fesetround(FE_TONEAREST);
    set_register(KEEPS);
    return mode->rounding == FLUSH_TO_ZERO ? flushes : rounding == mode->rounding;
}

static void require(int holds, const char *what, const struct mode *mode) {
    if (holds) return;
    fprintf(stderr, "FAILED: %s; the mode: %s\n", what, mode ? mode->name : "default");
    exit(1);
}

/* All that steps read and write. */
struct memory {
    double param64[N], grad64[N], states64[2][N];
    float param32[N], grad32[N], states32[2][N];
    uint16_t param16[N], grad16[N], states16[2][N], copy[N], average[N];
    double grad_norm, sum_of_squares;
};

static float random_float(uint32_t *random) {
    *random ^= *random << 13;
    *random ^= *random >> 17;
    *random ^= *random << 5; /* xorshift32, by G. Marsaglia */
    const float number = (float)(*random >> 8) * 0x1p-24f - 0.5f;
    return *random & 32 ? number : number * 0x1p-120f; /* whose squares and products are subnormal or 0 */
}

static void fill(struct memory *memory) {
    uint32_t random = 1;
    memset(memory, 0, sizeof *memory);
    for (size_t i = 0; i < N; i++) {
        memory->param64[i] = random_float(&random) * 0x1p-900;
        memory->grad64[i] = random_float(&random) * 0x1p-900;
        memory->param32[i] = random_float(&random);
        memory->grad32[i] = random_float(&random);
        memory->param16[i] = random >> 16 & 0xbfff;      /* bfloat16, below 2 */
        memory->grad16[i] = (uint16_t)(random & 0x83ff); /* float16, subnormal */
    }
}

static const gdm_buffer nothing = {NULL, GDM_FLOAT32};

static void add(gdm_plan *plan, size_t group, gdm_buffer param, gdm_buffer grad, gdm_buffer first, gdm_buffer second,
                gdm_buffer copy, gdm_buffer average) {
    const gdm_buffer states[] = {first, second};
    gdm_entry_args added = GDM_ENTRY_DEFAULTS;
    size_t entry;
    added.group = group;
    added.n = N;
    added.param = param;
    added.grad = grad;
    added.states = states;
    added.state_count = 2;
    added.copy = copy;
    added.average = average;
    added.lr_factor = 1 / 3.0;
    require(!gdm_plan_add(plan, &added, &entry), "gdm_plan_add", NULL);
}

#define BUFFER(member, dtype) ((gdm_buffer){memory->member, dtype})

/* Everything is called in the mode, from making the plan on. */
static void train(struct memory *memory, int threads, gdm_rounding rounding, const struct mode *mode) {
    const gdm_nadam_args nadam = GDM_NADAM_DEFAULTS; /* it keeps a number of its own, which the host computes */
    gdm_step_args around = GDM_STEP_DEFAULTS;
    gdm_step_report report = {sizeof report, 0, 0, 0, 0};
    const gdm_buffer grads = BUFFER(grad32, GDM_FLOAT32);
    const size_t length = N;
    gdm_plan *plan;
    size_t group;
    int failed = 0;
    around.scale = around.max_grad_norm = around.average_decay = 1 / 3.0;
    around.average_correction = 1;
    around.rounding = (int)rounding;
    fill(memory);
    enter(mode);
    failed |= gdm_plan_create(&plan) != GDM_OK;
    failed |= gdm_plan_add_group(plan, GDM_RULE_NADAM, &nadam, &group) != GDM_OK;
    add(plan, group, BUFFER(param64, GDM_FLOAT64), BUFFER(grad64, GDM_FLOAT64), BUFFER(states64[0], GDM_FLOAT64),
        BUFFER(states64[1], GDM_FLOAT64), nothing, nothing);
    add(plan, group, BUFFER(param32, GDM_FLOAT32), BUFFER(grad32, GDM_FLOAT32), BUFFER(states32[0], GDM_FLOAT32),
        BUFFER(states32[1], GDM_FLOAT32), nothing, nothing);
    add(plan, group, BUFFER(param16, GDM_BFLOAT16), BUFFER(grad16, GDM_FLOAT16), BUFFER(states16[0], GDM_BFLOAT16),
        BUFFER(states16[1], GDM_BFLOAT16), BUFFER(copy, GDM_FLOAT16), BUFFER(average, GDM_BFLOAT16));
    failed |= gdm_plan_set_step_args(plan, &around) != GDM_OK;
    failed |= gdm_plan_set_num_threads(plan, threads) != GDM_OK;
    for (int i = 0; i < STEPS; i++) failed |= gdm_plan_step(plan) != GDM_OK;
    failed |= gdm_plan_get_report(plan, &report) != GDM_OK;
    failed |= gdm_reduce(GDM_SUM_OF_SQUARES, &grads, &length, 1, &memory->sum_of_squares) != GDM_OK;
    gdm_plan_destroy(plan);
    require(leave(mode), "the thread is no longer in its mode", mode);
    require(!failed, "a call", mode);
    memory->grad_norm = report.grad_norm;
}

int main(void) {
    static struct memory expected, found;
    unsigned count = 0;
    for (const struct mode *mode = modes; mode->name; mode++) {
        enter(mode);
        if (!leave(mode)) continue; /* the machine has no such mode */
        count++;
        for (int rounding = GDM_NEAREST; rounding <= GDM_STOCHASTIC; rounding++)
            for (int threads = 1; threads <= 4; threads += 3) {
                train(&expected, 1, (gdm_rounding)rounding, NULL);
                train(&found, threads, (gdm_rounding)rounding, mode);
                require(!memcmp(&expected, &found, sizeof found), "other bits than in the default mode", mode);
            }
    }
    printf("%u\n", count);
    return 0;
}
