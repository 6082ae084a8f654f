/* Making and changing a plan. */
#include "plan.h"

#include "fp_mode.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- making one ------------------------------------------------------------------------------------------------- */

gdm_status gdm_plan_create(gdm_plan **plan) {
    if (!plan) return GDM_ERR_NULL;
    *plan = calloc(1, sizeof **plan);
    if (!*plan) return GDM_ERR_MEMORY;
    (*plan)->error = (*plan)->other = SIZE_MAX;
    (*plan)->around = (gdm_step_args)GDM_STEP_DEFAULTS;
    (*plan)->stages.kernel_factor = (*plan)->stages.factor = (*plan)->stages.weight = 1.0;
    (*plan)->grad_norm = NAN;
    return GDM_OK;
}

void gdm_plan_destroy(gdm_plan *plan) {
    if (!plan) return;
    free(plan->groups);
    free(plan->entries);
    free(plan->details);
    free(plan->written);
    free(plan->pieces);
    free(plan);
}

/* Grows an array to at least `wanted` items, and at least to twice its size. */
static gdm_status make_room(void *array, size_t *room, size_t wanted, size_t itemsize) {
    void **items = array;
    const size_t more = wanted > 2 * *room ? wanted : 2 * *room;
    if (wanted <= *room) return GDM_OK;
    void *moved = more > SIZE_MAX / itemsize ? NULL : realloc(*items, more * itemsize);
    if (!moved) return GDM_ERR_MEMORY;
    *items = moved;
    *room = more;
    return GDM_OK;
}

/* Every call that may change the plan starts here: it clears the last error. */
static gdm_status start_call(gdm_plan *plan) {
    if (!plan) return GDM_ERR_NULL;
    plan->error = plan->other = SIZE_MAX;
    return GDM_OK;
}

/* GDM_OK for an index of a group or an entry. */
static gdm_status find(size_t index, size_t count) {
    return index < count ? GDM_OK : GDM_ERR_INDEX;
}

gdm_status gdm_plan_get_error(const gdm_plan *plan, size_t *entry, size_t *other) {
    if (!plan) return GDM_ERR_NULL;
    if (entry) *entry = plan->error;
    if (other) *other = plan->other;
    return GDM_OK;
}

gdm_status gdm_plan_set_num_threads(gdm_plan *plan, int n) {
    const gdm_status status = start_call(plan);
    if (status) return status;
    if (n < 0 || n > GDM_MAX_THREADS) return GDM_ERR_THREADS;
    plan->threads = (unsigned)n;
    return GDM_OK;
}

/* ---- groups ----------------------------------------------------------------------------------------------------- */

static int is_finite_in(double x, enum dtype dtype) {
    return x >= 0 && (dtype == F32 ? (double)(float)x : x) <= DBL_MAX;
}

/* Whether a group's entries can have this learning rate. If it is valid with the largest factor so far, the single
 * factors need no check. */
static gdm_status find_bad_lr(gdm_plan *plan, size_t group, double lr) {
    const struct group *its = &plan->groups[group];
    int fits = 1;
    for (int dtype = 0; dtype < DTYPES; dtype++) {
        if (!(its->dtypes >> dtype & 1) && (its->dtypes || dtype != F64)) continue;
        if (!is_finite_in(lr, (enum dtype)dtype)) return GDM_ERR_LR;
        fits &= is_finite_in(lr * its->largest_factor, (enum dtype)dtype);
    }
    for (size_t i = 0; !fits && i < plan->count; i++)
        if (plan->entries[i].group == group &&
            !is_finite_in(lr * plan->details[i].lr_factor, (enum dtype)plan->entries[i].dtype)) {
            plan->error = i;
            return GDM_ERR_LR_FACTOR;
        }
    return GDM_OK;
}

static gdm_status check_lr(gdm_plan *plan, size_t group, double lr) {
    const fp_mode found = set_default_fp_mode();
    const gdm_status status = find_bad_lr(plan, group, lr);
    restore_fp_mode(found);
    return status;
}

/* Reads a caller's argument struct. The plan has its own step counts and scalars; each entry has its own lr_scale. */
static gdm_status read_args(enum rule rule, const void *args, union args *own) {
    static double none[MAX_SCALARS];
    const struct rule_info *info = &gdm_rules[rule];
    const gdm_status status = info->read(args, own);
    if (status) return status;
    for (const struct option_info *option = info->options; option->name; option++)
        if (option->kind == factors && *(const void **)((char *)own + option->offset)) return GDM_ERR_LR_SCALE;
    if (info->step) *(uint64_t *)((char *)own + info->step) = 1;
    point_to_scalars(own, info, none);
    return GDM_OK;
}

/* Checks options for entries of these compute dtypes, one bit each; without entries as for float64. */
static gdm_status check_args(enum rule rule, unsigned dtypes, const union args *args, struct choice *choice) {
    gdm_status status = GDM_OK;
    const fp_mode found = set_default_fp_mode();
    if (!dtypes) dtypes = 1u << F64;
    for (int dtype = 0; dtype < DTYPES && !status; dtype++)
        if (dtypes >> dtype & 1) status = gdm_check(rule, (enum dtype)dtype, args, choice);
    restore_fp_mode(found);
    return status;
}

gdm_status gdm_plan_add_group(gdm_plan *plan, gdm_rule rule, const void *args, size_t *group) {
    struct group added = {.rule = (enum rule)rule, .stale = 1};
    gdm_status status = start_call(plan);
    if (status) return status;
    if (!group) return GDM_ERR_NULL;
    if ((unsigned)rule >= RULES) return GDM_ERR_INDEX;
    status = read_args(added.rule, args, &added.args);
    if (!status) status = check_args(added.rule, 0, &added.args, &added.choice);
    if (!status) status = make_room(&plan->groups, &plan->group_room, plan->group_count + 1, sizeof *plan->groups);
    if (status) return status;
    added.changes = gdm_rules[rule].step || gdm_rules[rule].scalars;
    gdm_rules[rule].begin(added.scalars);
    *group = plan->group_count;
    plan->groups[plan->group_count++] = added;
    return GDM_OK;
}

/* Whether an entry has the states that its group's options need. */
static int is_complete(const struct entry *entry, unsigned used) {
    for (size_t k = 0; k < MAX_STATES; k++)
        if (entry->n && used >> k & 1 && !entry->data[STATE + k]) return 0;
    return 1;
}

gdm_status gdm_plan_set_args(gdm_plan *plan, size_t group, const void *args) {
    union args own;
    struct choice choice;
    gdm_status status = start_call(plan);
    if (!status) status = find(group, plan->group_count);
    if (status) return status;
    struct group *its = &plan->groups[group];
    status = read_args(its->rule, args, &own);
    if (!status) status = check_args(its->rule, its->dtypes, &own, &choice);
    if (!status) status = check_lr(plan, group, own.any.lr);
    if (status) return status;
    if (choice.used & ~its->choice.used)
        for (size_t i = 0; i < plan->count; i++)
            if (plan->entries[i].group == group && !is_complete(&plan->entries[i], choice.used)) {
                plan->error = i;
                return GDM_ERR_NULL;
            }
    its->args = own;
    its->choice = choice;
    its->cache = (struct cache){.next_step = 0};
    its->stale = 1;
    return GDM_OK;
}

gdm_status gdm_plan_set_lr(gdm_plan *plan, size_t group, double lr) {
    gdm_status status = start_call(plan);
    if (!status) status = find(group, plan->group_count);
    if (status) return status;
    status = check_lr(plan, group, lr);
    if (status) return status;
    plan->groups[group].args.any.lr = lr;
    plan->groups[group].stale = 1;
    return GDM_OK;
}

/* ---- entries ---------------------------------------------------------------------------------------------------- */

int gdm_is_tiled(const struct entry *entry, const struct details *details) {
    int tiled = details->copy.data || details->average.data || details->low_bits;
    for (size_t k = 0; k < MAX_BUFFERS; k++) tiled |= entry->data[k] && details->dtypes[k] != entry->dtype;
    return tiled && entry->n;
}

/* Places in an entry beside its MAX_BUFFERS buffers. */
enum { COPY = MAX_BUFFERS, AVERAGE };

/* Whether there can be a buffer of this dtype in this place of an entry. */
static int fits(size_t k, enum dtype dtype, enum dtype computed_in) {
    if ((unsigned)dtype >= STORAGES) return 0;
    if (k == SCALE) return dtype == computed_in;
    if (dtype == F64) return computed_in == F64 || k == COPY; /* loading it would round it */
    return dtype != INT8 || (k >= STATE && k < MAX_BUFFERS);
}

static gdm_status check_in_place(size_t k, gdm_buffer buffer, size_t n, enum dtype computed_in) {
    if (!buffer.data) return GDM_OK;
    if (n && !fits(k, (enum dtype)buffer.dtype, computed_in)) return GDM_ERR_DTYPE;
    if ((unsigned)buffer.dtype >= STORAGES) return GDM_ERR_DTYPE;
    return n ? check_buffer(buffer.data, n, (enum dtype)buffer.dtype) : GDM_OK;
}

static gdm_status add_buffer(struct entry *entry, struct details *details, size_t k, gdm_buffer buffer) {
    const gdm_status status = check_in_place(k, buffer, entry->n, (enum dtype)entry->dtype);
    if (status || !buffer.data) return status;
    entry->data[k] = buffer.data;
    details->dtypes[k] = (uint8_t)buffer.dtype;
    return GDM_OK;
}

/* The buffers that only steps tile by tile have. */
static gdm_status add_companions(const gdm_entry_args *args, const struct entry *entry, struct details *details) {
    gdm_status status = check_in_place(COPY, args->copy, entry->n, (enum dtype)entry->dtype);
    if (!status) status = check_in_place(AVERAGE, args->average, entry->n, (enum dtype)entry->dtype);
    if (status) return status;
    if (args->low_bits && entry->n) {
        if (details->dtypes[PARAM] != BF16) return GDM_ERR_DTYPE;
        status = check_buffer(args->low_bits, entry->n, BF16);
    }
    details->copy = args->copy;
    details->average = args->average;
    details->low_bits = args->low_bits;
    for (size_t k = 0; k < args->state_count && entry->n && !status; k++) {
        if (!entry->data[STATE + k] || details->dtypes[STATE + k] != INT8) continue;
        details->scales[k] = args->state_scales ? args->state_scales[k] : NULL;
        status = check_buffer(details->scales[k], scales_of(entry->n), F32);
    }
    return status;
}

/* Reads the entry, and checks what does not depend on its group. */
static gdm_status read_entry(const gdm_entry_args *args, const struct rule_info *rule, struct entry *entry,
                             struct details *details) {
    if (args->n && !args->param.data) return GDM_ERR_NULL;
    if (args->state_count && !args->states) return GDM_ERR_NULL;
    if (args->state_count > rule->states) return GDM_ERR_INDEX;
    *entry = (struct entry){.n = args->n, .group = (uint32_t)args->group};
    *details = (struct details){.lr_factor = args->lr_factor};
    entry->dtype = args->param.data && args->param.dtype == GDM_FLOAT64 ? F64 : F32;
    gdm_status status = add_buffer(entry, details, PARAM, args->param);
    if (!status) status = add_buffer(entry, details, GRAD, args->grad);
    if (!status) status = add_buffer(entry, details, SCALE, args->lr_scale);
    for (size_t k = 0; k < MAX_STATES && k < args->state_count && !status; k++)
        status = add_buffer(entry, details, STATE + k, args->states[k]);
    if (!status) status = add_companions(args, entry, details);
    if (status) return status;
    for (size_t k = 0; k < MAX_BUFFERS; k++)
        if (!entry->data[k]) details->dtypes[k] = entry->dtype; /* the caller of a step may set data[GRAD] alone */
    entry->tiled = (uint8_t)gdm_is_tiled(entry, details);
    return GDM_OK;
}

/* Reads a caller's struct, which may have been compiled with an older header: it then ends before `copy`. */
static gdm_status read_entry_args(const gdm_entry_args *args, gdm_entry_args *own) {
    const size_t known = sizeof *own, least = offsetof(gdm_entry_args, copy);
    if (!args) return GDM_ERR_NULL;
    if (args->size < least || args->size > 4096) return GDM_ERR_STRUCT_SIZE;
    for (size_t i = known; i < args->size; i++)
        if (((const unsigned char *)args)[i]) return GDM_ERR_STRUCT_SIZE;
    memset(own, 0, sizeof *own);
    memcpy(own, args, args->size < known ? args->size : known);
    return GDM_OK;
}

/* Whether this entry can be in the group. */
static gdm_status find_bad_entry(const struct group *group, const struct entry *entry, double lr_factor) {
    const enum dtype dtype = (enum dtype)entry->dtype;
    struct choice choice;
    if (!(group->dtypes >> dtype & 1)) {
        double scalars[MAX_SCALARS];
        union args args = group->args; /* its pointers are of the last step: since then the groups may have moved */
        memcpy(scalars, group->scalars, sizeof scalars);
        point_to_scalars(&args, &gdm_rules[group->rule], scalars);
        const gdm_status status = gdm_check(group->rule, dtype, &args, &choice);
        if (status) return status;
    }
    if (!is_finite_in(lr_factor, F64) || !is_finite_in(group->args.any.lr * lr_factor, dtype)) return GDM_ERR_LR_FACTOR;
    return is_complete(entry, group->choice.used) ? GDM_OK : GDM_ERR_NULL;
}

static gdm_status check_group(const struct group *group, const struct entry *entry, double lr_factor) {
    const fp_mode found = set_default_fp_mode();
    const gdm_status status = find_bad_entry(group, entry, lr_factor);
    restore_fp_mode(found);
    return status;
}

/* Makes room for one more entry in all arrays that steps need. Each array has its own size, so if memory runs out
 * between two of them, a later call can continue. The sum of the elements does not overflow, since there is memory for
 * all pieces. */
static gdm_status make_room_for_entry(gdm_plan *plan, size_t n) {
    const size_t pieces = (plan->elements + n) / (PIECE / 2) + 2, spans = (plan->count + 1) * SPANS;
    gdm_status status = make_room(&plan->entries, &plan->entry_room, plan->count + 1, sizeof *plan->entries);
    if (!status) status = make_room(&plan->details, &plan->detail_room, plan->count + 1, sizeof *plan->details);
    if (!status) status = make_room(&plan->pieces, &plan->piece_room, pieces, sizeof *plan->pieces);
    if (!status) status = make_room(&plan->written, &plan->written_room, spans, sizeof *plan->written);
    return status;
}

static void include_factor(struct group *group, struct entry *entry, double lr_factor) {
    if (lr_factor > group->largest_factor) group->largest_factor = lr_factor;
    entry->own = (uint8_t)((entry->own & ~OWN_FACTOR) | (lr_factor != 1 ? OWN_FACTOR : 0));
}

gdm_status gdm_plan_add(gdm_plan *plan, const gdm_entry_args *args, size_t *index) {
    gdm_entry_args own;
    struct entry entry;
    struct details details;
    gdm_status status = start_call(plan);
    if (status) return status;
    if (!index) return GDM_ERR_NULL;
    status = read_entry_args(args, &own);
    if (!status) status = find(own.group, plan->group_count);
    if (status) return status;
    struct group *group = &plan->groups[own.group];
    const struct rule_info *rule = &gdm_rules[group->rule];
    status = read_entry(&own, rule, &entry, &details);
    if (status) return status;
    status = check_group(group, &entry, own.lr_factor);
    if (!status) status = make_room_for_entry(plan, own.n);
    if (status) return status;

    rule->begin(details.scalars);
    details.lag = group->steps;
    const int has_own_lr = rule->scalars && own.lr_factor != 1; /* on which scalars may depend */
    if (group->steps || has_own_lr || memcmp(details.scalars, group->scalars, rule->scalars * sizeof(double))) {
        entry.own = OWN_PROGRESS;
        plan->own_progress = plan->unsettled = 1;
    }
    include_factor(group, &entry, own.lr_factor);
    if (has_trust(group->rule)) {
        entry.own |= OWN_TRUST;
        plan->has_trust = 1;
    }
    group->dtypes |= (uint8_t)(1u << entry.dtype);
    *index = plan->count;
    plan->entries[plan->count] = entry;
    plan->details[plan->count++] = details;
    plan->elements += own.n;
    plan->changed = 1;
    return GDM_OK;
}

/* Sets or removes a buffer that is only read. */
static gdm_status set_buffer(gdm_plan *plan, size_t index, size_t k, gdm_buffer buffer) {
    gdm_status status = start_call(plan);
    if (!status) status = find(index, plan->count);
    if (status) return status;
    struct entry entry = plan->entries[index];
    struct details details = plan->details[index];
    entry.data[k] = NULL;
    status = add_buffer(&entry, &details, k, buffer);
    if (!entry.data[k]) details.dtypes[k] = entry.dtype;
    entry.tiled = (uint8_t)gdm_is_tiled(&entry, &details);
    if (plan->around.clear_grads) plan->changed = 1; /* it must be compared with the gradients */
    if (!status && buffer.data && !plan->changed)
        status = gdm_plan_check_read(plan, index, buffer.data, entry.n * size_of((enum dtype)buffer.dtype));
    if (status) {
        plan->error = index;
        return status;
    }
    plan->entries[index] = entry;
    plan->details[index] = details;
    return GDM_OK;
}

gdm_status gdm_plan_set_grad(gdm_plan *plan, size_t entry, gdm_buffer grad) {
    return set_buffer(plan, entry, GRAD, grad);
}

gdm_status gdm_plan_set_lr_scale(gdm_plan *plan, size_t entry, gdm_buffer lr_scale) {
    return set_buffer(plan, entry, SCALE, lr_scale);
}

gdm_status gdm_plan_set_lr_factor(gdm_plan *plan, size_t index, double lr_factor) {
    gdm_status status = start_call(plan);
    if (!status) status = find(index, plan->count);
    if (status) return status;
    struct entry *entry = &plan->entries[index];
    struct group *group = &plan->groups[entry->group];
    status = check_group(group, entry, lr_factor);
    if (status) {
        plan->error = index;
        return status;
    }
    plan->details[index].lr_factor = lr_factor;
    include_factor(group, entry, lr_factor);
    if (gdm_rules[group->rule].scalars) plan->own_progress = plan->unsettled = 1;
    return GDM_OK;
}

/* ---- progress --------------------------------------------------------------------------------------------------- */

gdm_status gdm_plan_get_progress(const gdm_plan *plan, size_t index, uint64_t *steps, double *scalars) {
    if (!plan) return GDM_ERR_NULL;
    if (index >= plan->count) return GDM_ERR_INDEX;
    const struct details *details = &plan->details[index];
    const struct group *group = &plan->groups[plan->entries[index].group];
    const double *its = plan->entries[index].own & OWN_PROGRESS ? details->scalars : group->scalars;
    if (steps) *steps = group->steps - details->lag;
    if (scalars) memcpy(scalars, its, gdm_rules[group->rule].scalars * sizeof *scalars);
    return GDM_OK;
}

gdm_status gdm_plan_set_progress(gdm_plan *plan, size_t index, uint64_t steps, const double *scalars) {
    gdm_status status = start_call(plan);
    if (!status) status = find(index, plan->count);
    if (status) return status;
    const struct group *group = &plan->groups[plan->entries[index].group];
    const struct rule_info *rule = &gdm_rules[group->rule];
    const fp_mode found = set_default_fp_mode();
    if (rule->scalars) status = scalars ? rule->check_scalars(scalars) : GDM_ERR_NULL;
    restore_fp_mode(found);
    if (status) {
        plan->error = index;
        return status;
    }
    if (rule->scalars) memcpy(plan->details[index].scalars, scalars, rule->scalars * sizeof *scalars);
    plan->details[index].lag = group->steps - steps;
    plan->entries[index].own |= OWN_PROGRESS;
    plan->own_progress = plan->unsettled = 1;
    return GDM_OK;
}

gdm_status gdm_plan_get_group_steps(const gdm_plan *plan, size_t group, uint64_t *steps) {
    if (!plan) return GDM_ERR_NULL;
    if (group >= plan->group_count) return GDM_ERR_INDEX;
    if (steps) *steps = plan->groups[group].steps + plan->groups[group].absent_steps;
    return GDM_OK;
}

gdm_status gdm_plan_set_group_steps(gdm_plan *plan, size_t group, uint64_t steps) {
    gdm_status status = start_call(plan);
    if (!status) status = find(group, plan->group_count);
    if (!status) plan->groups[group].absent_steps = steps - plan->groups[group].steps;
    return status;
}

/* ---- around the rule -------------------------------------------------------------------------------------------- */

static int is_positive_or_off(double x) {
    return x >= 0 && x <= DBL_MAX;
}

static int is_legal(const gdm_step_args *args) {
    return fabs(args->scale) <= DBL_MAX && is_positive_or_off(args->max_grad_norm) &&
           is_positive_or_off(args->max_grad_value) && args->average_decay >= 0 && args->average_decay < 1 &&
           args->nonfinite >= GDM_PROPAGATE && args->nonfinite <= GDM_REFUSE &&
           (args->rounding == GDM_NEAREST || args->rounding == GDM_STOCHASTIC);
}

gdm_status gdm_plan_set_step_args(gdm_plan *plan, const gdm_step_args *args) {
    gdm_step_args own;
    gdm_status status = start_call(plan);
    if (!status) status = args ? gdm_read_struct(&own, sizeof own, args) : GDM_ERR_NULL;
    if (status) return status;
    const fp_mode found = set_default_fp_mode();
    const int legal = is_legal(&own);
    restore_fp_mode(found);
    if (!legal) return GDM_ERR_STEP_ARGS;
    if (own.clear_grads && !plan->around.clear_grads)
        plan->changed = 1; /* gradients must be compared with each other */
    plan->around = own;
    plan->asks = 1;
    return GDM_OK;
}

gdm_status gdm_plan_set_scale(gdm_plan *plan, double scale) {
    const gdm_status status = start_call(plan);
    if (status) return status;
    if (!isfinite(scale)) return GDM_ERR_STEP_ARGS; /* unlike <=, isfinite does not trap for NaN in the caller's mode */
    plan->around.scale = scale;
    plan->asks = 1;
    return GDM_OK;
}

gdm_status gdm_plan_get_report(const gdm_plan *plan, gdm_step_report *report) {
    if (!plan || !report) return GDM_ERR_NULL;
    if (report->size < sizeof *report) return GDM_ERR_STRUCT_SIZE;
    *report = (gdm_step_report){report->size, plan->updates, plan->skipped, plan->grad_norm, plan->was_skipped};
    return GDM_OK;
}

gdm_status gdm_plan_set_updates(gdm_plan *plan, uint64_t updates, uint64_t skipped) {
    const gdm_status status = start_call(plan);
    if (status) return status;
    plan->updates = updates;
    plan->skipped = skipped;
    return GDM_OK;
}
