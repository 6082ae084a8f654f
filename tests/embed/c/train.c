/* The fit of fit.c as a training that can be interrupted: AdamW, a learning rate that rises and falls, and a
 * checkpoint.
 *
 *     train              makes 100 steps and saves everything after 50 in train.state
 *     train --resume     goes on from there, to the same parameters, bit for bit
 */
#include <gdm/gdm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N = 64, HALF = N / 2, ENTRIES = 2, STEPS = 100, WARMUP = 10, SAVE_AFTER = 50 };
static const char FILE_NAME[] = "train.state";

/* All that a training needs to go on. A plan owns no buffers, so these are the program's, and the plan's counts are
 * asked for when the state is saved. Adam keeps no scalars; for rules that do, such as NAdam, save these as well. */
typedef struct training {
    float param[N], exp_avg[N], exp_avg_sq[N];
    uint64_t entry_steps[ENTRIES], group_steps, updates, skipped;
} training;

static void check(gdm_status status) {
    if (status == GDM_OK) return;
    fprintf(stderr, "gdm: %s\n", gdm_strerror(status));
    exit(1);
}

static void check_file(int good) {
    if (good) return;
    perror(FILE_NAME);
    exit(1);
}

/* A linear map that is its own transpose. */
static void blur(const float *x, float *out) {
    for (int i = 0; i < N; i++) out[i] = 0.25f * x[(i + N - 1) % N] + x[i] + 0.25f * x[(i + 1) % N];
}

/* The learning rate of a step, counted from 0: it rises for WARMUP steps, and then falls in a straight line. */
static double rate(uint64_t step) {
    const double peak = 0.5;
    if (step < WARMUP) return peak * (double)(step + 1) / WARMUP;
    return peak * (double)(STEPS - step) / (STEPS - WARMUP);
}

static void save(training *now, const gdm_plan *plan, size_t group) {
    gdm_step_report report = {.size = sizeof report};
    check(gdm_plan_get_report(plan, &report));
    now->updates = report.updates;
    now->skipped = report.skipped;
    check(gdm_plan_get_group_steps(plan, group, &now->group_steps));
    for (size_t i = 0; i < ENTRIES; i++) check(gdm_plan_get_progress(plan, i, &now->entry_steps[i], NULL));

    /* The old file stays whole until the new one is. */
    FILE *file = fopen("train.state.new", "wb");
    check_file(file && fwrite(now, sizeof *now, 1, file) == 1);
    check_file(fclose(file) == 0 && rename("train.state.new", FILE_NAME) == 0);
}

static void load(training *now, gdm_plan *plan, size_t group) {
    FILE *file = fopen(FILE_NAME, "rb");
    check_file(file && fread(now, sizeof *now, 1, file) == 1);
    fclose(file);
    check(gdm_plan_set_updates(plan, now->updates, now->skipped));
    check(gdm_plan_set_group_steps(plan, group, now->group_steps));
    for (size_t i = 0; i < ENTRIES; i++) check(gdm_plan_set_progress(plan, i, now->entry_steps[i], NULL));
}

int main(int argc, char **argv) {
    static training now; /* zeros */
    float signal[N], measured[N], residual[N], grad[N];
    for (int i = 0; i < N; i++) signal[i] = (float)(i % 7);
    blur(signal, measured);

    gdm_plan *plan;
    gdm_adam_args options = GDM_ADAM_DEFAULTS;
    options.weight_decay = 1e-4;
    options.decoupled_weight_decay = 1; /* AdamW */
    gdm_entry_args half = GDM_ENTRY_DEFAULTS;
    check(gdm_plan_create(&plan));
    check(gdm_plan_add_group(plan, GDM_RULE_ADAM, &options, &half.group));
    for (int begin = 0; begin < N; begin += HALF) {
        const gdm_buffer states[] = {{now.exp_avg + begin, GDM_FLOAT32}, {now.exp_avg_sq + begin, GDM_FLOAT32}};
        size_t entry;
        half.n = HALF;
        half.param = (gdm_buffer){now.param + begin, GDM_FLOAT32};
        half.grad = (gdm_buffer){grad + begin, GDM_FLOAT32};
        half.states = states;
        half.state_count = 2;
        check(gdm_plan_add(plan, &half, &entry));
    }
    if (argc > 1 && strcmp(argv[1], "--resume") == 0) load(&now, plan, half.group);

    uint64_t step;
    for (check(gdm_plan_get_group_steps(plan, half.group, &step)); step < STEPS; step++) {
        double loss = 0;
        blur(now.param, residual);
        for (int i = 0; i < N; i++) {
            residual[i] -= measured[i];
            loss += 0.5 * residual[i] * residual[i];
        }
        blur(residual, grad);
        if (step % 10 == 0) printf("loss %.17g\n", loss);
        check(gdm_plan_set_lr(plan, half.group, rate(step)));
        check(gdm_plan_step(plan));
        if (step + 1 == SAVE_AFTER) save(&now, plan, half.group);
    }
    for (int i = 0; i < N; i++) printf("param %.9g\n", now.param[i]);
    gdm_plan_destroy(plan);
    return 0;
}
