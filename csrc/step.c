/* A plan's step: updates the entries that have a gradient, then counts the step. */
#include "plan.h"

#include "fp_mode.h"
#include "pool.h"

#include <stdatomic.h>
#include <string.h>

/* ---- constants -------------------------------------------------------------------------------------------------- */

/* Computes what the step after `steps` steps needs. Writes the step and the pointers to scalars into `args`. */
static void prepare(const gdm_plan *plan, const struct group *group, union args *args, struct cache *cache,
                    uint64_t steps, double *scalars, struct prepared *prepared, double *next_scalars) {
    const struct rule_info *rule = &gdm_rules[group->rule];
    if (rule->step) *(uint64_t *)((char *)args + rule->step) = steps + 1;
    point_to_scalars(args, rule, scalars);
    prepared->variant = group->choice.variant | (steps ? 0 : group->choice.first) |
                        (plan->stages.preparing ? group->choice.prepare : 0);
    rule->compute(args, cache, &prepared->constants, next_scalars);
    prepared->constants.any.grad_scale *= plan->stages.kernel_factor;
}

static __attribute__((noinline)) void prepare_group(const gdm_plan *plan, struct group *group) {
    prepare(plan, group, &group->args, &group->cache, group->steps, group->scalars, &group->prepared,
            group->next_scalars);
    group->stale = 0;
}

/* What an entry with OWN_... bits needs. A step keeps the last one computed, since consecutive entries often share it.
 */
struct own {
    size_t group; /* SIZE_MAX: nothing has been computed yet */
    uint64_t lag;
    double lr_factor, scalars[MAX_SCALARS], next_scalars[MAX_SCALARS];
    double lr; /* the constant without the trust ratio */
    struct prepared prepared;
};

/* Computes an entry's trust ratio. `prepared` is what its step needs, but for that ratio. */
static __attribute__((noinline)) double find_trust(const gdm_plan *plan, size_t i, const struct prepared *prepared,
                                                   unsigned threads, int elsewhere) {
    const struct entry *entry = &plan->entries[i];
    const struct group *group = &plan->groups[entry->group];
    const struct isa *isa = gdm_active_isa();
    const struct vectors of = {
        .isa = isa,
        .rule = group->rule,
        .dtype = (enum dtype)entry->dtype,
        .n = entry->n,
        .run = isa->directions[group->rule][entry->dtype][prepared->variant & COUPLED_DECAY ? 1 : 0],
        .constants = &prepared->constants,
        .plan = plan,
        .entry = i,
        .buffers = entry->data,
        .tiled = entry->tiled | plan->stages.on_all,
    };
    return gdm_trust_ratio(&of, &group->args, threads, elsewhere);
}

/* Without the trust ratio. */
static const struct own *prepare_untrusted(const gdm_plan *plan, size_t i, struct own *own) {
    const struct entry *entry = &plan->entries[i];
    const struct details *details = &plan->details[i];
    const struct group *group = &plan->groups[entry->group];
    const double *scalars = entry->own & OWN_PROGRESS ? details->scalars : group->scalars;
    const size_t bytes = gdm_rules[group->rule].scalars * sizeof *scalars;
    if (own->group != entry->group || own->lag != details->lag || has_other_bits(own->lr_factor, details->lr_factor) ||
        memcmp(own->scalars, scalars, bytes)) {
        union args args = group->args;
        args.any.lr *= details->lr_factor;
        own->group = entry->group;
        own->lag = details->lag;
        own->lr_factor = details->lr_factor;
        memcpy(own->scalars, scalars, bytes);
        prepare(plan, group, &args, NULL, group->steps - details->lag, own->scalars, &own->prepared, own->next_scalars);
        own->lr = own->prepared.constants.any.lr;
    }
    return own;
}

static __attribute__((noinline)) const struct own *prepare_own(const gdm_plan *plan, size_t i, struct own *own) {
    prepare_untrusted(plan, i, own);
    if (plan->entries[i].own & OWN_TRUST) {
        const double trust = plan->knows_trust ? plan->details[i].trust : find_trust(plan, i, &own->prepared, 1, 0);
        own->prepared.constants.any.lr = own->lr * trust;
    }
    return own;
}

/* ---- the walk --------------------------------------------------------------------------------------------------- */

/* Updates the elements of an entry from first to last - 1. Mostly the kernel runs on the buffers themselves. */
static inline void update_range(const gdm_plan *plan, const struct group *groups, const struct isa *isa,
                                const struct entry *entry, size_t first, size_t last, struct own *own) {
    const struct group *group = &groups[entry->group];
    const struct prepared *prepared = &group->prepared;
    const size_t i = (size_t)(entry - plan->entries);
    if (entry->own) prepared = &prepare_own(plan, i, own)->prepared;
    const unsigned variant = prepared->variant | (entry->data[SCALE] ? HAS_LR_SCALE : 0);
    kernel *run = isa->kernels[group->rule][entry->dtype][variant];
    if (__builtin_expect(entry->tiled | plan->stages.on_all, 0))
        gdm_update_tiles(plan, isa, i, first, last, run, &prepared->constants);
    else
        run_range(run, entry->data, plan->details[i].dtypes, first, last, &prepared->constants);
}

struct walk {
    const gdm_plan *plan;
    const struct isa *isa;
    atomic_int left_out; /* whether some entry was left out */
};

static inline void walk_piece(struct walk *walk, size_t piece, int preparing) {
    const gdm_plan *plan = walk->plan;
    const struct piece *from = &plan->pieces[piece], *to = from + 1;
    struct own own;
    own.group = SIZE_MAX;
    size_t first = from->element;
    for (size_t i = from->entry; i <= to->entry && i < plan->count; i++, first = 0) {
        const struct entry *entry = &plan->entries[i];
        const size_t last = i < to->entry ? entry->n : to->element;
        if (preparing && !plan->groups[entry->group].choice.prepare) continue;
        if (!entry->data[GRAD])
            atomic_store_explicit(&walk->left_out, 1, memory_order_relaxed);
        else if (first < last)
            update_range(plan, plan->groups, walk->isa, entry, first, last, &own);
    }
}

static void update_piece(void *walk, size_t piece) {
    walk_piece(walk, piece, 0);
}

/* The same for the rules that need a preparation, and for no others. */
static void prepare_piece(void *walk, size_t piece) {
    walk_piece(walk, piece, 1);
}

/* Updates everything on this thread. Returns whether some entry was left out. */
static int update_all(const gdm_plan *plan, const struct isa *isa) {
    const struct group *groups = plan->groups; /* in a register: kernels could change what plan points to */
    struct own own;
    int left_out = 0;
    own.group = SIZE_MAX;
    if (!plan->count) return 0; /* then plan->entries is NULL, and not even 0 may be added to it */
    for (const struct entry *entry = plan->entries, *end = entry + plan->count; entry < end; entry++)
        if (entry->data[GRAD])
            update_range(plan, groups, isa, entry, 0, entry->n, &own);
        else
            left_out = 1;
    return left_out;
}

void gdm_plan_spread(const gdm_plan *plan, unsigned threads, int elsewhere, size_t tasks,
                     void (*task)(void *context, size_t i), void *context) {
    if (elsewhere)
        gdm_pool_run_on(plan->spread, plan->host, threads, tasks, task, context);
    else
        gdm_pool_run(threads, tasks, task, context);
}

/* Computes the trust ratios of the entries that are not cut into several pieces. */
static void find_trusts_of_piece(void *context, size_t piece) {
    gdm_plan *plan = context;
    const struct piece *from = &plan->pieces[piece], *to = from + 1;
    struct own own;
    own.group = SIZE_MAX;
    for (size_t i = from->entry + (from->element > 0); i < to->entry && i < plan->count; i++)
        if (plan->entries[i].own & OWN_TRUST && plan->entries[i].data[GRAD])
            plan->details[i].trust = find_trust(plan, i, &prepare_untrusted(plan, i, &own)->prepared, 1, 0);
}

/* Computes all trust ratios. An entry that is cut into pieces needs its ratio before any of them is updated. */
static __attribute__((cold)) void find_trusts(gdm_plan *plan, unsigned threads, int elsewhere) {
    struct own own;
    own.group = SIZE_MAX;
    gdm_plan_spread(plan, threads, elsewhere, plan->piece_count, find_trusts_of_piece, plan);
    for (size_t k = 0, last = SIZE_MAX; k < plan->piece_count; k++) {
        const size_t i = plan->pieces[k].entry;
        if (!plan->pieces[k].element || i == last) continue; /* not cut, or done */
        last = i;
        if (plan->entries[i].own & OWN_TRUST && plan->entries[i].data[GRAD])
            plan->details[i].trust =
                find_trust(plan, i, &prepare_untrusted(plan, i, &own)->prepared, threads, elsewhere);
    }
    plan->knows_trust = 1;
}

/* The same on several threads. Not inlined into gdm_plan_run, so that a step of one small entry has a small frame. */
static __attribute__((noinline)) int update_together(gdm_plan *plan, const struct isa *isa, unsigned threads,
                                                     int elsewhere) {
    struct walk walk = {plan, isa, 0};
    if (plan->has_trust) find_trusts(plan, threads, elsewhere);
    gdm_plan_spread(plan, threads, elsewhere, plan->piece_count, update_piece, &walk);
    plan->knows_trust = 0;
    return atomic_load_explicit(&walk.left_out, memory_order_relaxed);
}

/* ---- counting --------------------------------------------------------------------------------------------------- */

/* Sets for each group whether some entry has a gradient. If no entry has one, the group makes no step, and the lag of
 * its entries does not change. */
static __attribute__((cold)) void find_present_groups(gdm_plan *plan, int left_out) {
    for (size_t g = 0; g < plan->group_count; g++) plan->groups[g].present = !left_out;
    for (size_t i = 0; left_out && i < plan->count; i++)
        if (plan->entries[i].data[GRAD]) plan->groups[plan->entries[i].group].present = 1;
}

/* Counts for the entries that differ from their group: those left out, and those with their own scalars. */
static __attribute__((cold)) void count_entries(gdm_plan *plan) {
    struct own own;
    own.group = SIZE_MAX;
    for (size_t i = 0; i < plan->count; i++) {
        struct entry *entry = &plan->entries[i];
        struct details *details = &plan->details[i];
        const struct group *group = &plan->groups[entry->group];
        const size_t bytes = gdm_rules[group->rule].scalars * sizeof *details->scalars;
        if (!group->present) continue;
        if (!entry->data[GRAD]) {
            if (!(entry->own & OWN_PROGRESS)) memcpy(details->scalars, group->scalars, bytes);
            entry->own |= OWN_PROGRESS;
            plan->own_progress = 1;
            details->lag++;
        } else if (bytes && entry->own & OWN_PROGRESS) {
            memcpy(details->scalars, prepare_untrusted(plan, i, &own)->next_scalars, bytes);
        }
    }
}

/* A step of one small entry takes some 15 ns, so every memory access here matters. */
static void count_step(gdm_plan *plan, int left_out) {
    if (left_out || plan->own_progress) {
        find_present_groups(plan, left_out);
        count_entries(plan);
    }
    struct group *group = plan->groups;
    for (size_t left = plan->group_count; left; left--, group++) {
        if (left_out && !group->present) {
            group->absent_steps++;
            continue;
        }
        group->steps++;
        if (!group->changes && group->steps > 1) continue;
        group->stale = 1; /* the second step may need another kernel than the first */
        memcpy(group->scalars, group->next_scalars, sizeof group->scalars);
    }
}

/* Called after step counts have been set. A group gets the count and the scalars of the entry that has made the most
 * steps; entries that differ keep their own, and so do those whose scalars may come to differ, since they have another
 * learning rate. */
static __attribute__((cold)) void settle(gdm_plan *plan) {
    struct details *details = plan->details;
    for (size_t g = 0; g < plan->group_count; g++) plan->groups[g].present = 0;
    for (size_t i = 0; i < plan->count; i++) { /* from here to the last loop, lag is the entry's own steps */
        const struct group *group = &plan->groups[plan->entries[i].group];
        if (!(plan->entries[i].own & OWN_PROGRESS)) memcpy(details[i].scalars, group->scalars, sizeof group->scalars);
        details[i].lag = group->steps - details[i].lag;
    }
    for (size_t i = 0; i < plan->count; i++) {
        struct group *group = &plan->groups[plan->entries[i].group];
        if (group->present && group->steps >= details[i].lag) continue;
        group->present = 1;
        group->absent_steps += group->steps - details[i].lag;
        group->steps = details[i].lag;
        memcpy(group->scalars, details[i].scalars, sizeof group->scalars);
        group->stale = 1;
    }
    plan->own_progress = 0;
    for (size_t i = 0; i < plan->count; i++) {
        struct entry *entry = &plan->entries[i];
        const struct group *group = &plan->groups[entry->group];
        const size_t bytes = gdm_rules[group->rule].scalars * sizeof(double);
        details[i].lag = group->steps - details[i].lag;
        const int has_own_lr = bytes && entry->own & OWN_FACTOR;
        const int alike = !details[i].lag && !has_own_lr && !memcmp(details[i].scalars, group->scalars, bytes);
        entry->own = (uint8_t)((entry->own & ~OWN_PROGRESS) | (alike ? 0 : OWN_PROGRESS));
        plan->own_progress |= !alike;
    }
    plan->unsettled = 0;
}

/* ---- the step --------------------------------------------------------------------------------------------------- */

gdm_status gdm_plan_run(gdm_plan *plan) {
    const struct isa *isa = gdm_active_isa();
    if (!isa) return GDM_ERR_ISA;
    const fp_mode found = set_default_fp_mode();
    if (__builtin_expect(plan->asks, 0)) {
        const gdm_status status = gdm_plan_decide(plan);
        if (status || plan->was_skipped) {
            if (!status) gdm_plan_skip(plan);
            restore_fp_mode(found);
            return status;
        }
    }
    if (plan->unsettled) settle(plan);
    struct group *group = plan->groups;
    for (size_t left = plan->group_count; left; left--, group++)
        if (group->stale) prepare_group(plan, group);
    int elsewhere;
    const unsigned threads = gdm_plan_threads(plan, &elsewhere);
    const int left_out = threads > 1 ? update_together(plan, isa, threads, elsewhere) : update_all(plan, isa);
    count_step(plan, left_out);
    plan->updates++;
    restore_fp_mode(found);
    return GDM_OK;
}

/* Computes the constants of the groups whose rule needs a preparation: those for it, or those for a step. */
static void prepare_groups(gdm_plan *plan, int preparing) {
    plan->stages.preparing = (uint8_t)preparing;
    struct group *group = plan->groups;
    for (size_t left = plan->group_count; left; left--, group++)
        if (group->choice.prepare) prepare_group(plan, group);
}

gdm_status gdm_plan_run_preparation(gdm_plan *plan) {
    const struct isa *isa = gdm_active_isa();
    if (!isa) return GDM_ERR_ISA;
    const fp_mode found = set_default_fp_mode();
    const double norm = plan->grad_norm; /* that of the last step, which this is not */
    const uint8_t asks = plan->asks;     /* the step itself decides again */
    gdm_status status = GDM_OK;
    if (asks) status = gdm_plan_decide(plan);
    plan->grad_norm = norm;
    plan->asks = asks;
    if (!status && !plan->was_skipped) {
        int elsewhere;
        const unsigned threads = gdm_plan_threads(plan, &elsewhere);
        struct walk walk = {plan, isa, 0};
        if (plan->unsettled) settle(plan);
        prepare_groups(plan, 1);
        gdm_plan_spread(plan, threads, elsewhere, plan->piece_count, prepare_piece, &walk);
        prepare_groups(plan, 0);
    }
    restore_fp_mode(found);
    return status;
}

gdm_status gdm_plan_check_memory(gdm_plan *plan) {
    if (!plan->changed) return GDM_OK;
    gdm_status status = gdm_plan_arrange(plan);
    for (size_t i = 0; i < plan->count && !status; i++) {
        const struct entry *entry = &plan->entries[i];
        const uint8_t *dtypes = plan->details[i].dtypes;
        for (size_t k = GRAD; k <= SCALE && !status; k++)
            if (entry->data[k])
                status = gdm_plan_check_read(plan, i, entry->data[k], entry->n * size_of((enum dtype)dtypes[k]));
    }
    if (!status && plan->around.clear_grads) status = gdm_plan_check_grads_apart(plan);
    if (status) plan->changed = 1; /* the next step checks again */
    return status;
}

gdm_status gdm_plan_step(gdm_plan *plan) {
    if (!plan) return GDM_ERR_NULL;
    plan->error = plan->other = SIZE_MAX;
    if (plan->mode != GDM_TRAIN) return GDM_ERR_MODE;
    const gdm_status status = gdm_plan_check_memory(plan);
    return status ? status : gdm_plan_run(plan);
}

gdm_status gdm_plan_prepare(gdm_plan *plan) {
    if (!plan) return GDM_ERR_NULL;
    plan->error = plan->other = SIZE_MAX;
    if (plan->mode != GDM_TRAIN) return GDM_ERR_MODE;
    const gdm_status status = gdm_plan_check_memory(plan);
    return status ? status : gdm_plan_run_preparation(plan);
}
