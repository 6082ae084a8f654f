/* The two modes of Schedule-Free rules: a pass that puts the averages in the place of the parameters, and back. */
#include "plan.h"

#include "fp_mode.h"

static int is_mode(gdm_mode mode) {
    return mode == GDM_TRAIN || mode == GDM_EVAL;
}

/* How much of the average is in the point y, between z and the average; 0 for other rules. */
static double share_of_average(const struct group *group) {
    switch (group->rule) {
#define GDM_AVERAGED(rule, share)                                                                                      \
    case RULE_##rule: return group->args.rule.share;
#include "rules.def"
    default: return 0.0;
    }
}

struct swap {
    const gdm_plan *plan;
    const struct isa *isa;
    gdm_mode to;
};

/* Swaps the elements of an entry from first to last - 1. Before its first step, y, z and the average are the same. */
static void swap_range(const struct swap *swap, size_t i, size_t first, size_t last) {
    const gdm_plan *plan = swap->plan;
    const struct group *group = &plan->groups[plan->entries[i].group];
    const double share = share_of_average(group);
    if (share > 0 && group->steps != plan->details[i].lag && first < last)
        gdm_swap_tiles(plan, swap->isa, i, first, last, swap->to == GDM_EVAL ? 1.0 - 1.0 / share : 1.0 - share);
}

static void swap_piece(void *context, size_t piece) {
    const struct swap *swap = context;
    const gdm_plan *plan = swap->plan;
    const struct piece *from = &plan->pieces[piece], *to = from + 1;
    size_t first = from->element;
    for (size_t i = from->entry; i <= to->entry && i < plan->count; i++, first = 0)
        swap_range(swap, i, first, i < to->entry ? plan->entries[i].n : to->element);
}

gdm_status gdm_plan_run_swap(gdm_plan *plan, gdm_mode mode) {
    struct swap swap = {plan, gdm_active_isa(), mode};
    int elsewhere;
    if (!swap.isa) return GDM_ERR_ISA;
    const fp_mode found = set_default_fp_mode();
    const unsigned threads = gdm_plan_threads(plan, &elsewhere);
    if (threads > 1)
        gdm_plan_spread(plan, threads, elsewhere, plan->piece_count, swap_piece, &swap);
    else
        for (size_t i = 0; i < plan->count; i++) swap_range(&swap, i, 0, plan->entries[i].n);
    plan->mode = (uint8_t)mode;
    restore_fp_mode(found);
    return GDM_OK;
}

gdm_status gdm_plan_swap(gdm_plan *plan, gdm_mode mode) {
    if (!plan) return GDM_ERR_NULL;
    plan->error = plan->other = SIZE_MAX;
    if (!is_mode(mode)) return GDM_ERR_MODE;
    if (plan->mode == mode) return GDM_OK;
    const gdm_status status = gdm_plan_check_memory(plan);
    return status ? status : gdm_plan_run_swap(plan, mode);
}

gdm_status gdm_plan_set_mode(gdm_plan *plan, gdm_mode mode) {
    if (!plan) return GDM_ERR_NULL;
    plan->error = plan->other = SIZE_MAX;
    if (!is_mode(mode)) return GDM_ERR_MODE;
    plan->mode = (uint8_t)mode;
    return GDM_OK;
}

gdm_status gdm_plan_get_mode(const gdm_plan *plan, gdm_mode *mode) {
    if (!plan || !mode) return GDM_ERR_NULL;
    *mode = (gdm_mode)plan->mode;
    return GDM_OK;
}
