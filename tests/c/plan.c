/* What the layers above rely on in a plan and gdm.h does not show: how its work is cut, and that a gradient may be set
 * in its table. Exits with 1 and says what is wrong. */
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

int main(void) {
    pieces_are_cut_by_element_index();
    a_gradient_set_in_the_table();
    return 0;
}
