/* What the layers above rely on in a plan and gdm.h does not show: how its work is cut, and that a gradient may be set
 * in its table. And, for the sanitizers, steps of all stages on buffers of exactly their size. Exits with 1 and says
 * what is wrong. */
#include "../../csrc/plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 100000 };

static void fail(const char *what) {
    fprintf(stderr, "FAILED: %s\n", what);
    exit(1);
}

static gdm_plan *new_plan(void) {
    gdm_plan *plan;
    size_t group;
    const gdm_momentum_args options = GDM_MOMENTUM_DEFAULTS;
    if (gdm_plan_create(&plan)) fail("gdm_plan_create");
    if (gdm_plan_add_group(plan, GDM_RULE_MOMENTUM, &options, &group)) fail("gdm_plan_add_group");
    return plan;
}

static void add(gdm_plan *plan, double *param, double *velocity, double *grad, size_t n) {
    const gdm_buffer state = {velocity, GDM_FLOAT64};
    gdm_entry_args added = GDM_ENTRY_DEFAULTS;
    size_t entry;
    added.n = n;
    added.param = (gdm_buffer){param, GDM_FLOAT64};
    added.grad = (gdm_buffer){grad, GDM_FLOAT64};
    added.states = &state;
    added.state_count = 1;
    if (gdm_plan_add(plan, &added, &entry)) fail("gdm_plan_add");
}

/* Pieces cover all elements, are not larger than PIECE, and cut an entry at multiples of BLOCK only, wherever it lies.
 */
static void pieces_are_cut_by_element_index(void) {
    static const size_t sizes[] = {5, 70000, 0, 4096, 16384, 3, 16385, 64, 12289, 40960, 1, 0};
    static double memory[2 * (MOST + 1)];
    for (int offset = 0; offset < 2; offset++)
        for (size_t first = 0; first < sizeof sizes / sizeof *sizes; first++) {
            gdm_plan *plan = new_plan();
            size_t covered = 0, elements = 0;
            double *next = memory + offset;
            for (size_t i = first; i < sizeof sizes / sizeof *sizes && elements + sizes[i] < MOST; i++) {
                add(plan, next, next + sizes[i], NULL, sizes[i]);
                next += 2 * sizes[i];
                elements += sizes[i];
            }
            if (gdm_plan_arrange(plan)) fail("gdm_plan_arrange");
            for (size_t k = 0; k < plan->piece_count; k++) {
                const struct piece *from = &plan->pieces[k], *to = from + 1;
                size_t its = 0;
                if (from->element % BLOCK) fail("a piece does not begin at a multiple of BLOCK");
                for (size_t i = from->entry; i < to->entry; i++)
                    its += plan->entries[i].n - (i == from->entry ? from->element : 0);
                if (to->entry < plan->count) its += to->element - (to->entry == from->entry ? from->element : 0);
                if (its > PIECE) fail("a piece is too large");
                if (k + 1 < plan->piece_count && its <= PIECE - BLOCK) fail("a piece is too small");
                covered += its;
            }
            if (covered != elements) fail("the pieces are not all of the work");
            gdm_plan_destroy(plan);
        }
}

/* As an optimizer does before each step. */
static void a_gradient_set_in_the_table(void) {
    enum { N = 10000 };
    static double memory[2][3][N];
    gdm_plan *plans[2] = {new_plan(), new_plan()};
    for (int k = 0; k < 2; k++) {
        for (int row = 0; row < 3; row++)
            for (int i = 0; i < N; i++) memory[k][row][i] = 0.01 * i + row;
        add(plans[k], memory[k][0], memory[k][1], k ? NULL : memory[k][2], N);
        if (gdm_plan_arrange(plans[k])) fail("gdm_plan_arrange");
        plans[k]->entries[0].data[GRAD] = memory[k][2];
        for (int step = 0; step < 3; step++)
            if (gdm_plan_run(plans[k])) fail("gdm_plan_run");
        gdm_plan_destroy(plans[k]);
    }
    if (memcmp(memory[0], memory[1], sizeof memory[0])) fail("a gradient that is set in the table gives other results");
}

/* ---- stages, on memory that ends where the buffers do ----------------------------------------------------------- */

static void *allocate(size_t bytes) {
    void *memory = calloc(1, bytes ? bytes : 1);
    if (!memory) fail("calloc");
    return memory;
}

static gdm_buffer zeros(gdm_dtype dtype, size_t n) {
    return (gdm_buffer){allocate(n * size_of((enum dtype)dtype)), dtype};
}

/* The dtypes of an entry of AMSGrad; split: with low bits. */
struct mixture {
    gdm_dtype param, grad, state, copy, average;
    int split;
};
static const struct mixture mixtures[] = {
    {GDM_FLOAT32, GDM_BFLOAT16, GDM_BFLOAT16, GDM_FLOAT64, GDM_FLOAT16, 0},
    {GDM_BFLOAT16, GDM_FLOAT16, GDM_INT8, GDM_FLOAT32, GDM_FLOAT32, 0},
    {GDM_BFLOAT16, GDM_BFLOAT16, GDM_INT8, GDM_BFLOAT16, GDM_BFLOAT16, 1},
    {GDM_FLOAT64, GDM_FLOAT32, GDM_INT8, GDM_FLOAT16, GDM_FLOAT64, 0},
    {GDM_FLOAT16, GDM_FLOAT32, GDM_FLOAT16, GDM_FLOAT16, GDM_FLOAT16, 0},
    {GDM_FLOAT64, GDM_FLOAT64, GDM_FLOAT32, GDM_FLOAT32, GDM_FLOAT32, 0},
};
enum { MIXTURES = sizeof mixtures / sizeof *mixtures, ADAM_STATES = 3, OWNED = 6 + 2 * ADAM_STATES };

/* Adds an entry of zeros, with all that it can have. Writes its buffers to `owned`. */
static void add_mixture(gdm_plan *plan, const struct mixture *its, size_t n, void **owned) {
    gdm_buffer states[ADAM_STATES];
    float *scales[ADAM_STATES] = {NULL};
    gdm_entry_args added = GDM_ENTRY_DEFAULTS;
    size_t entry;
    added.n = n;
    added.param = zeros(its->param, n);
    added.grad = zeros(its->grad, n);
    added.lr_scale = zeros(its->param == GDM_FLOAT64 ? GDM_FLOAT64 : GDM_FLOAT32, n);
    added.copy = zeros(its->copy, n);
    added.average = zeros(its->average, n);
    if (its->split) added.low_bits = allocate(2 * n);
    for (int k = 0; k < ADAM_STATES; k++) {
        states[k] = zeros(its->state, n);
        if (its->state == GDM_INT8) scales[k] = allocate(scales_of(n) * sizeof(float));
        owned[6 + 2 * k] = states[k].data;
        owned[7 + 2 * k] = scales[k];
    }
    added.states = states;
    added.state_count = ADAM_STATES;
    added.state_scales = scales;
    if (gdm_plan_add(plan, &added, &entry)) fail("gdm_plan_add with narrow buffers");
    owned[0] = added.param.data;
    owned[1] = added.grad.data;
    owned[2] = added.lr_scale.data;
    owned[3] = added.copy.data;
    owned[4] = added.average.data;
    owned[5] = added.low_bits;
}

/* Bytes that make numbers of all kinds: in some tiles also infinities and NaN. */
static void fill_grad(const gdm_plan *plan, size_t i, unsigned step) {
    unsigned char *bytes = plan->entries[i].data[GRAD];
    const size_t size = plan->entries[i].n * size_of((enum dtype)plan->details[i].dtypes[GRAD]);
    for (size_t k = 0; k < size; k++) bytes[k] = (unsigned char)((k * 2654435761u + step * 40503u) >> 7);
}

static void every_stage_keeps_to_its_buffers(void) {
    static const size_t sizes[] = {0, 1, 127, 128, 129, 511, 513, 1025, 4097, 20001};
    enum { COUNT = MIXTURES * sizeof sizes / sizeof *sizes };
    static void *owned[COUNT][OWNED];
    const gdm_adam_args options = {.size = sizeof options, .lr = 0.1, .betas = {0.9, 0.99}, .eps = 1e-8, .amsgrad = 1};
    gdm_step_args around = GDM_STEP_DEFAULTS;
    gdm_plan *plan;
    size_t group;
    if (gdm_plan_create(&plan)) fail("gdm_plan_create");
    if (gdm_plan_add_group(plan, GDM_RULE_ADAM, &options, &group)) fail("gdm_plan_add_group");
    for (size_t i = 0; i < COUNT; i++) add_mixture(plan, &mixtures[i % MIXTURES], sizes[i / MIXTURES], owned[i]);
    for (unsigned step = 0; step < 8; step++) {
        around.scale = step ? -0.5 : 1;
        around.max_grad_value = step & 1 ? 1e30 : 0;
        around.max_grad_norm = step & 2 ? 1.0 : 0;
        around.nonfinite = step == 7 ? GDM_SKIP : GDM_PROPAGATE;
        around.clear_grads = step > 3;
        around.rounding = step & 1 ? GDM_STOCHASTIC : GDM_NEAREST;
        around.average_decay = 0.9;
        around.average_correction = step & 1;
        if (step && gdm_plan_set_step_args(plan, &around)) fail("gdm_plan_set_step_args");
        for (size_t i = 0; i < COUNT; i++) fill_grad(plan, i, step);
        if (gdm_plan_step(plan)) fail("gdm_plan_step with narrow buffers");
    }
    gdm_step_report report = {.size = sizeof report};
    if (gdm_plan_get_report(plan, &report)) fail("gdm_plan_get_report");
    if (report.updates != 7 || report.skipped != 1 || !report.was_skipped)
        fail("a step that was to be skipped was not");
    for (size_t i = 0; i < COUNT; i++)
        for (size_t k = 0; k < plan->entries[i].n; k++)
            if (((const unsigned char *)owned[i][1])[k]) fail("a gradient was not cleared");
    gdm_plan_destroy(plan);
    for (size_t i = 0; i < COUNT; i++)
        for (int k = 0; k < OWNED; k++) free(owned[i][k]);
}

static void accumulate_keeps_to_its_buffers(void) {
    static const gdm_dtype dtypes[][2] = {{GDM_FLOAT32, GDM_BFLOAT16}, {GDM_BFLOAT16, GDM_FLOAT16},
                                          {GDM_FLOAT16, GDM_FLOAT32},  {GDM_BFLOAT16, GDM_BFLOAT16},
                                          {GDM_FLOAT64, GDM_FLOAT16},  {GDM_FLOAT64, GDM_FLOAT32},
                                          {GDM_FLOAT64, GDM_FLOAT64},  {GDM_FLOAT32, GDM_FLOAT32}};
    enum { PAIRS = sizeof dtypes / sizeof *dtypes };
    gdm_buffer totals[PAIRS], grads[PAIRS];
    size_t lengths[PAIRS];
    for (size_t n = 0; n < 3000; n = 3 * n + 1) {
        for (int i = 0; i < PAIRS; i++) {
            lengths[i] = n + (size_t)i;
            totals[i] = zeros(dtypes[i][0], lengths[i]);
            grads[i] = zeros(dtypes[i][1], lengths[i]);
        }
        if (gdm_accumulate(totals, grads, lengths, PAIRS, 0.5)) fail("gdm_accumulate");
        for (int i = 0; i < PAIRS; i++) free(totals[i].data), free(grads[i].data);
    }
}

/* A wrong dtype is found before it is used, wherever it is; that of a buffer without elements is not looked at. */
static void wrong_dtypes_are_not_used(void) {
    float memory[3] = {0};
    double result;
    const gdm_dtype wrong = (gdm_dtype)1000000;
    const gdm_buffer total = {memory, GDM_FLOAT32}, grad = {memory + 1, GDM_FLOAT32}, bad = {memory + 2, wrong};
    const gdm_buffer totals[] = {total, bad}, grads[] = {grad, bad};
    static const size_t lengths[] = {1, 1}, only_first[] = {1, 0};
    if (gdm_accumulate(totals, grads, lengths, 2, 1) != GDM_ERR_DTYPE) fail("a wrong dtype in gdm_accumulate");
    if (gdm_accumulate(totals, grads, only_first, 2, 1)) fail("a dtype without elements in gdm_accumulate");
    if (gdm_reduce(GDM_SUM_OF_SQUARES, grads, lengths, 2, &result) != GDM_ERR_DTYPE)
        fail("a wrong dtype in gdm_reduce");
    if (gdm_reduce(GDM_SUM_OF_SQUARES, grads, only_first, 2, &result)) fail("a dtype without elements in gdm_reduce");
}

/* A group's step leaves pointers to its scalars in the group, which moves when others are added. */
static void groups_that_have_moved_take_entries(void) {
    float single[4] = {1, 0, 0, 1};
    double wide[4] = {1, 0, 0, 1};
    const gdm_nadam_args options = GDM_NADAM_DEFAULTS;
    gdm_entry_args added = GDM_ENTRY_DEFAULTS;
    gdm_plan *plan;
    size_t group, entry;
    if (gdm_plan_create(&plan)) fail("gdm_plan_create");
    if (gdm_plan_add_group(plan, GDM_RULE_NADAM, &options, &added.group)) fail("gdm_plan_add_group");
    for (int is_wide = 0; is_wide < 2; is_wide++) {
        const gdm_dtype dtype = is_wide ? GDM_FLOAT64 : GDM_FLOAT32;
        void *const first = is_wide ? (void *)wide : (void *)single;
        const size_t itemsize = size_of((enum dtype)dtype);
        const gdm_buffer states[] = {{(char *)first + itemsize, dtype}, {(char *)first + 2 * itemsize, dtype}};
        added.n = 1;
        added.param = (gdm_buffer){first, dtype};
        added.grad = (gdm_buffer){(char *)first + 3 * itemsize, dtype};
        added.states = states;
        added.state_count = 2;
        if (gdm_plan_add(plan, &added, &entry)) fail("gdm_plan_add to a group that has moved");
        if (gdm_plan_step(plan)) fail("gdm_plan_step");
        for (int k = 0; k < 8; k++)
            if (gdm_plan_add_group(plan, GDM_RULE_NADAM, &options, &group)) fail("gdm_plan_add_group");
    }
    gdm_plan_destroy(plan);
}

int main(void) {
    groups_that_have_moved_take_entries();
    every_stage_keeps_to_its_buffers();
    accumulate_keeps_to_its_buffers();
    wrong_dtypes_are_not_used();
    pieces_are_cut_by_element_index();
    a_gradient_set_in_the_table();
    return 0;
}
