/* The fit of fit.c in mixed precision: the model has weights and gradients in bfloat16, the plan a float32 parameter.
 */
#include <gdm/gdm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N = 64, STEPS = 50 };

/* A linear map that is its own transpose. */
static void blur(const float *x, float *out) {
    for (int i = 0; i < N; i++) out[i] = 0.25f * x[(i + N - 1) % N] + x[i] + 0.25f * x[(i + 1) % N];
}

/* A bfloat16 is the upper half of a float. */
static float widen(uint16_t x) {
    const uint32_t bits = (uint32_t)x << 16;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

/* To the nearest one. */
static uint16_t narrow(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static void check(gdm_status status) {
    if (status == GDM_OK) return;
    fprintf(stderr, "gdm: %s\n", gdm_strerror(status));
    exit(1);
}

int main(void) {
    float signal[N], measured[N], wide[N], residual[N], param[N] = {0}, velocity[N] = {0};
    uint16_t weights[N] = {0}, grad[N];
    for (int i = 0; i < N; i++) signal[i] = (float)(i % 7);
    blur(signal, measured);

    gdm_plan *plan;
    gdm_momentum_args options = GDM_MOMENTUM_DEFAULTS;
    options.lr = 0.1;
    gdm_entry_args entry = GDM_ENTRY_DEFAULTS;
    const gdm_buffer state = {velocity, GDM_FLOAT32};
    entry.n = N;
    entry.param = (gdm_buffer){param, GDM_FLOAT32};
    entry.grad = (gdm_buffer){grad, GDM_BFLOAT16};
    entry.copy = (gdm_buffer){weights, GDM_BFLOAT16}; /* each step writes the parameter here */
    entry.states = &state;
    entry.state_count = 1;
    gdm_step_args around = GDM_STEP_DEFAULTS;
    around.max_grad_norm = 10;
    around.nonfinite = GDM_SKIP;
    size_t index;
    check(gdm_plan_create(&plan));
    check(gdm_plan_add_group(plan, GDM_RULE_MOMENTUM, &options, &entry.group));
    check(gdm_plan_add(plan, &entry, &index));
    check(gdm_plan_set_step_args(plan, &around));

    for (int step = 0; step <= STEPS; step++) {
        double loss = 0;
        for (int i = 0; i < N; i++) wide[i] = widen(weights[i]);
        blur(wide, residual);
        for (int i = 0; i < N; i++) {
            residual[i] -= measured[i];
            loss += 0.5 * residual[i] * residual[i];
        }
        blur(residual, wide);
        for (int i = 0; i < N; i++) grad[i] = narrow(wide[i]);
        check(gdm_plan_step(plan));

        gdm_step_report report = {.size = sizeof report};
        check(gdm_plan_get_report(plan, &report));
        if (step % 10 == 0) printf("loss %.17g\nnorm %.17g\n", loss, report.grad_norm);
    }
    for (int i = 0; i < N; i++) printf("param %.9g\n", param[i]);
    gdm_plan_destroy(plan);
    return 0;
}
