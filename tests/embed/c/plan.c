/* The fit of fit.c with the signal in two halves, as a model has several layers: one plan, one step for both. */
#include <gdm/gdm.h>
#include <stdio.h>
#include <stdlib.h>

enum { N = 64, HALF = N / 2, STEPS = 50 };

/* A linear map that is its own transpose. */
static void blur(const float *x, float *out) {
    for (int i = 0; i < N; i++) out[i] = 0.25f * x[(i + N - 1) % N] + x[i] + 0.25f * x[(i + 1) % N];
}

static void check(gdm_status status) {
    if (status == GDM_OK) return;
    fprintf(stderr, "gdm: %s\n", gdm_strerror(status));
    exit(1);
}

static gdm_buffer floats(float *data) {
    gdm_buffer buffer = {data, GDM_FLOAT32};
    return buffer;
}

int main(void) {
    float signal[N], measured[N], residual[N], param[N] = {0}, velocity[N] = {0}, grad[N];
    for (int i = 0; i < N; i++) signal[i] = (float)(i % 7);
    blur(signal, measured);

    gdm_plan *plan;
    gdm_momentum_args options = GDM_MOMENTUM_DEFAULTS;
    options.lr = 0.1;
    options.weight_decay = 1e-4;
    options.nesterov = 1;
    gdm_entry_args half = GDM_ENTRY_DEFAULTS;
    check(gdm_plan_create(&plan));
    check(gdm_plan_add_group(plan, GDM_RULE_MOMENTUM, &options, &half.group));
    for (int begin = 0; begin < N; begin += HALF) {
        size_t entry;
        gdm_buffer state = floats(velocity + begin);
        half.n = HALF;
        half.param = floats(param + begin);
        half.grad = floats(grad + begin);
        half.states = &state;
        half.state_count = 1;
        check(gdm_plan_add(plan, &half, &entry));
    }

    for (int step = 0; step <= STEPS; step++) {
        double loss = 0, nonfinite;
        blur(param, residual);
        for (int i = 0; i < N; i++) {
            residual[i] -= measured[i];
            loss += 0.5 * residual[i] * residual[i];
        }
        blur(residual, grad);
        if (step % 10 == 0) printf("loss %.17g\n", loss);
        check(gdm_plan_reduce(plan, GDM_NONFINITE_COUNT, &nonfinite));
        if (nonfinite == 0) check(gdm_plan_step(plan));
    }
    for (int i = 0; i < N; i++) printf("param %.9g\n", param[i]);
    gdm_plan_destroy(plan);
    return 0;
}
