#include "plan.h"

#include "pool.h"

#include <stdlib.h>
#include <string.h>

/* ---- making one ------------------------------------------------------------------------------------------------- */

gdm_status gdm_plan_create(gdm_plan **plan) {
    if (!plan) return GDM_ERR_NULL;
    *plan = calloc(1, sizeof **plan);
    return *plan ? GDM_OK : GDM_ERR_MEMORY;
}

void gdm_plan_destroy(gdm_plan *plan) {
    if (!plan) return;
    free(plan->groups);
    free(plan->entries);
    free(plan->written);
    free(plan->pieces);
    free(plan);
}

/* Makes room in an array for so many items, at least twice what there was. */
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

/* Works out what the group's next step needs. */
static gdm_status prepare(struct group *group) {
    const struct rule_info *rule = &gdm_rules[group->rule];
    union args args = group->args;
    for (const struct option_info *option = rule->options; option->name; option++) {
        void *field = (char *)&args + option->offset;
        if (option->kind == count) *(uint64_t *)field = group->steps + 1;
        if (option->kind == scalar) *(double **)field = &group->product;
        if (option->kind == factors) *(const void **)field = NULL;
    }
    return rule->prepare(&args, &group->prepared);
}

gdm_status gdm_plan_configure(struct group *group, enum rule rule, const union args *args) {
    struct group changed = {.rule = rule, .steps = group->steps, .product = group->product, .args = *args};
    for (const struct option_info *option = gdm_rules[rule].options; option->name; option++)
        changed.counts |= option->kind == count;
    const gdm_status status = prepare(&changed);
    if (!status) *group = changed;
    return status;
}

/* Takes a caller's argument struct. Factors of the learning rate belong to a buffer, not to a group. */
static gdm_status read_args(enum rule rule, const void *args, union args *own) {
    const gdm_status status = gdm_rules[rule].read(args, own);
    if (status) return status;
    for (const struct option_info *option = gdm_rules[rule].options; option->name; option++)
        if (option->kind == factors && *(const void **)((char *)own + option->offset)) return GDM_ERR_LR_SCALE;
    return GDM_OK;
}

gdm_status gdm_plan_add_group(gdm_plan *plan, gdm_rule rule, const void *args, size_t *group) {
    union args own;
    struct group added = {.product = 1.0};
    if (!plan || !group) return GDM_ERR_NULL;
    if ((unsigned)rule >= RULES) return GDM_ERR_INDEX;
    gdm_status status = read_args((enum rule)rule, args, &own);
    if (!status) status = gdm_plan_configure(&added, (enum rule)rule, &own);
    if (!status) status = make_room(&plan->groups, &plan->group_room, plan->group_count + 1, sizeof *plan->groups);
    if (status) return status;
    *group = plan->group_count;
    plan->groups[plan->group_count++] = added;
    return GDM_OK;
}

/* Whether an entry has what its group's options need. */
static int is_complete(const struct entry *entry, unsigned used) {
    for (size_t k = 0; k < MAX_STATES; k++)
        if (entry->n && used >> k & 1 && !entry->buffers[STATE + k]) return 0;
    return 1;
}

gdm_status gdm_plan_set_args(gdm_plan *plan, size_t group, const void *args) {
    union args own;
    if (!plan) return GDM_ERR_NULL;
    if (group >= plan->group_count) return GDM_ERR_INDEX;
    struct group changed = plan->groups[group];
    gdm_status status = read_args(changed.rule, args, &own);
    if (!status) status = gdm_plan_configure(&changed, changed.rule, &own);
    for (size_t i = 0; i < plan->count && !status; i++)
        if (plan->entries[i].group == group && !is_complete(&plan->entries[i], changed.prepared.used))
            status = GDM_ERR_NULL;
    if (!status) plan->groups[group] = changed;
    return status;
}

gdm_status gdm_plan_add(gdm_plan *plan, size_t group, gdm_dtype dtype, void *param, void *const *states,
                        const void *grad, size_t n, size_t *buffer) {
    if (!plan || !buffer) return GDM_ERR_NULL;
    if (group >= plan->group_count || (unsigned)dtype >= DTYPES) return GDM_ERR_INDEX;
    const struct group *its = &plan->groups[group];
    struct entry entry = {{param, (void *)grad}, n, (unsigned)group, (unsigned char)dtype, 0, 0};
    for (unsigned k = 0; states && k < gdm_rules[its->rule].states; k++) entry.buffers[STATE + k] = states[k];
    if (n && !param) return GDM_ERR_NULL;
    for (size_t k = 0; n && k < MAX_BUFFERS; k++) {
        const gdm_status status =
            entry.buffers[k] ? check_buffer(entry.buffers[k], n, size_of((enum dtype)dtype)) : GDM_OK;
        if (status) return status;
    }
    if (!is_complete(&entry, its->prepared.used)) return GDM_ERR_NULL;
    if (n > SIZE_MAX / 4 - plan->elements) return GDM_ERR_LENGTH;

    /* Each room by itself: where a later one is not to be had, the next attempt must ask for that one again. */
    const size_t pieces = (plan->elements + n) / (PIECE / 2) + 2, spans = (plan->count + 1) * (1 + MAX_STATES);
    gdm_status status = make_room(&plan->entries, &plan->room, plan->count + 1, sizeof *plan->entries);
    if (!status) status = make_room(&plan->pieces, &plan->piece_room, pieces, sizeof *plan->pieces);
    if (!status) status = make_room(&plan->written, &plan->written_room, spans, sizeof *plan->written);
    if (status) return status;
    *buffer = plan->count;
    plan->entries[plan->count++] = entry;
    plan->elements += n;
    plan->changed = plan->fresh = 1;
    return GDM_OK;
}

/* A buffer that is only read takes its place. */
static gdm_status set_read(gdm_plan *plan, size_t buffer, int place, const void *start) {
    if (!plan) return GDM_ERR_NULL;
    if (buffer >= plan->count) return GDM_ERR_INDEX;
    struct entry *entry = &plan->entries[buffer];
    const size_t itemsize = size_of(entry->dtype);
    if (start && entry->n) {
        const gdm_status status = check_buffer(start, entry->n, itemsize);
        if (status) return status;
        if (!plan->changed && gdm_plan_overlaps(plan, start, entry->n * itemsize)) return GDM_ERR_OVERLAP;
    }
    entry->buffers[place] = (void *)start;
    return GDM_OK;
}

gdm_status gdm_plan_set_grad(gdm_plan *plan, size_t buffer, const void *grad) {
    return set_read(plan, buffer, GRAD, grad);
}

gdm_status gdm_plan_set_lr_scale(gdm_plan *plan, size_t buffer, const void *lr_scale) {
    return set_read(plan, buffer, SCALE, lr_scale);
}

gdm_status gdm_plan_set_num_threads(gdm_plan *plan, int n) {
    if (!plan) return GDM_ERR_NULL;
    if (n < 0 || n > GDM_MAX_THREADS) return GDM_ERR_THREADS;
    plan->threads = (unsigned)n;
    return GDM_OK;
}

gdm_status gdm_plan_get_progress(const gdm_plan *plan, size_t group, uint64_t *steps, double *mu_product) {
    if (!plan) return GDM_ERR_NULL;
    if (group >= plan->group_count) return GDM_ERR_INDEX;
    if (steps) *steps = plan->groups[group].steps;
    if (mu_product) *mu_product = plan->groups[group].product;
    return GDM_OK;
}

gdm_status gdm_plan_set_progress(gdm_plan *plan, size_t group, uint64_t steps, double mu_product) {
    if (!plan) return GDM_ERR_NULL;
    if (group >= plan->group_count) return GDM_ERR_INDEX;
    if (!(mu_product >= 0 && mu_product <= 1)) return GDM_ERR_MU_PRODUCT;
    plan->groups[group].steps = steps;
    plan->groups[group].product = mu_product;
    for (size_t i = 0; i < plan->count; i++)
        if (plan->entries[i].group == group) plan->entries[i].started = steps > 0;
    plan->fresh = 1;
    return GDM_OK;
}

/* ---- arranging it ----------------------------------------------------------------------------------------------- */

static int by_start(const void *a, const void *b) {
    const uintptr_t x = ((const struct span *)a)->start, y = ((const struct span *)b)->start;
    return (x > y) - (x < y);
}

/* Cuts the elements of all entries, as if they lay in a row, into pieces. */
static void cut(gdm_plan *plan) {
    size_t room = PIECE, k = 0;
    struct piece *pieces = plan->pieces;
    if (plan->count) pieces[k++] = (struct piece){0, 0};
    for (size_t i = 0; i < plan->count; i++) {
        size_t element = 0;
        const size_t head = before_line(plan->entries[i].buffers[PARAM], size_of(plan->entries[i].dtype));
        while (plan->entries[i].n - element > room) {
            /* Whole cache lines of the parameter; a piece is never cut to less than half. */
            element = element + room < head ? element : head + (element + room - head) / 64 * 64;
            pieces[k++] = (struct piece){i, element};
            room = PIECE;
        }
        room -= plan->entries[i].n - element;
    }
    if (plan->count) pieces[k] = (struct piece){plan->count, 0};
    plan->piece_count = k;
}

gdm_status gdm_plan_arrange(gdm_plan *plan) {
    struct span *span = plan->written;
    plan->bytes = 0;
    plan->fresh = 1;
    for (struct entry *entry = plan->entries, *end = entry + plan->count; entry < end; entry++)
        for (int i = 0; i < MAX_BUFFERS; i++) {
            const uintptr_t start = (uintptr_t)entry->buffers[i];
            const size_t bytes = entry->n * size_of(entry->dtype);
            if (i == GRAD || start) plan->bytes += bytes;
            if (i != GRAD && i != SCALE && start && bytes) *span++ = (struct span){start, start + bytes};
        }
    plan->written_count = (size_t)(span - plan->written);
    if (plan->written_count) qsort(plan->written, plan->written_count, sizeof *plan->written, by_start);
    for (size_t i = 1; i < plan->written_count; i++)
        if (plan->written[i].start < plan->written[i - 1].end) return GDM_ERR_OVERLAP;
    cut(plan);
    plan->changed = 0;
    return GDM_OK;
}

int gdm_plan_overlaps(const gdm_plan *plan, const void *start, size_t bytes) {
    const uintptr_t first = (uintptr_t)start, last = first + bytes;
    /* The spans below low end before `first`; those from high on do not. */
    size_t low = 0, high = plan->written_count;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (plan->written[middle].end <= first)
            low = middle + 1;
        else
            high = middle;
    }
    return bytes && low < plan->written_count && plan->written[low].start < last;
}

/* ---- the step --------------------------------------------------------------------------------------------------- */

struct walk {
    const gdm_plan *plan;
    const struct isa *isa;
};

static inline void run(const struct walk *walk, const struct entry *entry, size_t first, size_t last) {
    const struct group *group = &walk->plan->groups[entry->group];
    const unsigned variant = group->prepared.variant | (entry->buffers[SCALE] ? HAS_LR_SCALE : 0) |
                             (entry->started ? 0 : group->prepared.first);
    run_range(walk->isa->kernels[group->rule][entry->dtype][variant], entry->buffers, size_of(entry->dtype), first,
              last, &group->prepared.constants);
}

static void run_piece(void *context, size_t i) {
    const struct walk *walk = context;
    const struct piece *from = &walk->plan->pieces[i], *to = from + 1;
    size_t first = from->element;
    for (size_t k = from->entry; k < to->entry; k++, first = 0)
        run(walk, &walk->plan->entries[k], first, walk->plan->entries[k].n);
    if (first < to->element) run(walk, &walk->plan->entries[to->entry], first, to->element);
}

gdm_status gdm_plan_run(gdm_plan *plan) {
    const struct walk walk = {plan, gdm_active_isa()};
    if (!walk.isa) return GDM_ERR_ISA;
    for (struct group *group = plan->groups, *end = group + plan->group_count; group < end; group++) {
        const gdm_status status = group->counts ? prepare(group) : GDM_OK;
        if (status) return status;
    }
    unsigned threads = 1;
    if (plan->piece_count > 1)
        threads = gdm_pool_threads_for(plan->bytes, plan->threads ? plan->threads : (unsigned)gdm_get_num_threads());
    if (threads > 1)
        gdm_pool_run(threads, plan->piece_count, run_piece, (void *)&walk);
    else
        for (const struct entry *entry = plan->entries, *end = entry + plan->count; entry < end; entry++)
            run(&walk, entry, 0, entry->n);
    for (struct group *group = plan->groups, *end = group + plan->group_count; group < end; group++) {
        group->steps++;
        if (group->prepared.mu_product) group->product = group->prepared.product;
    }
    if (plan->fresh) {
        for (struct entry *entry = plan->entries, *end = entry + plan->count; entry < end; entry++)
            entry->started |= gdm_rules[plan->groups[entry->group].rule].states > 0;
        plan->fresh = 0;
    }
    return GDM_OK;
}

gdm_status gdm_plan_step(gdm_plan *plan) {
    if (!plan) return GDM_ERR_NULL;
    const int changed = plan->changed;
    gdm_status status = changed ? gdm_plan_arrange(plan) : GDM_OK;
    for (const struct entry *entry = plan->entries, *end = entry + plan->count; !status && entry < end; entry++) {
        const size_t bytes = entry->n * size_of(entry->dtype);
        if (bytes && !entry->buffers[GRAD])
            status = GDM_ERR_NULL;
        else if (changed && (gdm_plan_overlaps(plan, entry->buffers[GRAD], bytes) ||
                             (entry->buffers[SCALE] && gdm_plan_overlaps(plan, entry->buffers[SCALE], bytes))))
            status = GDM_ERR_OVERLAP;
    }
    if (!status) return gdm_plan_run(plan);
    plan->changed = changed; /* what was not looked at must be, next time */
    return status;
}
