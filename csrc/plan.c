#include "plan.h"

#include "pool.h"

#include <stdlib.h>

gdm_status gdm_plan_init(struct plan *plan, size_t groups, size_t entries) {
    *plan = (struct plan){
        .groups = calloc(groups ? groups : 1, sizeof *plan->groups),
        .entries = calloc(entries ? entries : 1, sizeof *plan->entries),
        .written = calloc(entries ? entries : 1, sizeof *plan->written * (1 + MAX_STATES)),
        .group_count = groups,
        .count = entries,
    };
    if (plan->groups && plan->entries && plan->written) return GDM_OK;
    gdm_plan_free(plan);
    return GDM_ERR_MEMORY;
}

void gdm_plan_free(struct plan *plan) {
    free(plan->groups);
    free(plan->entries);
    free(plan->written);
    free(plan->pieces);
    *plan = (struct plan){0};
}

static size_t itemsize(const struct entry *entry) {
    return entry->dtype == F32 ? sizeof(float) : sizeof(double);
}

static int by_start(const void *a, const void *b) {
    const uintptr_t x = ((const struct span *)a)->start, y = ((const struct span *)b)->start;
    return (x > y) - (x < y);
}

/* Cuts the elements of all entries, as if they lay in a row, into pieces. */
static gdm_status cut(struct plan *plan) {
    size_t total = 0, room = PIECE, k = 0;
    for (size_t i = 0; i < plan->count; i++) total += plan->entries[i].n;
    struct piece *pieces = realloc(plan->pieces, (total / (PIECE / 2) + 2) * sizeof *pieces);
    if (!pieces) return GDM_ERR_MEMORY;
    plan->pieces = pieces;
    pieces[k++] = (struct piece){0, 0};
    for (size_t i = 0; i < plan->count; i++) {
        size_t element = 0;
        const size_t head = before_line(plan->entries[i].buffers[PARAM], itemsize(&plan->entries[i]));
        while (plan->entries[i].n - element > room) {
            /* Whole cache lines of the parameter; a piece is never cut to less than half. */
            element = element + room < head ? element : head + (element + room - head) / 64 * 64;
            pieces[k++] = (struct piece){i, element};
            room = PIECE;
        }
        room -= plan->entries[i].n - element;
    }
    pieces[k] = (struct piece){plan->count, 0};
    plan->piece_count = k;
    return GDM_OK;
}

gdm_status gdm_plan_arrange(struct plan *plan) {
    struct span *span = plan->written;
    plan->bytes = 0;
    plan->fresh = 1;
    for (struct entry *entry = plan->entries, *end = entry + plan->count; entry < end; entry++)
        for (int i = 0; i < MAX_BUFFERS; i++) {
            const uintptr_t start = (uintptr_t)entry->buffers[i];
            const size_t bytes = entry->n * itemsize(entry);
            if (i == GRAD || start) plan->bytes += bytes;
            if (i != GRAD && start && bytes) *span++ = (struct span){start, start + bytes};
        }
    plan->written_count = (size_t)(span - plan->written);
    qsort(plan->written, plan->written_count, sizeof *plan->written, by_start);
    return cut(plan);
}

int gdm_plan_overlaps(const struct plan *plan, const void *start, size_t bytes) {
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

struct walk {
    const struct plan *plan;
    const struct isa *isa;
};

static inline void run(const struct walk *walk, const struct entry *entry, size_t first, size_t last) {
    const struct group *group = &walk->plan->groups[entry->group];
    const unsigned variant = group->prepared.variant | (entry->started ? 0 : group->prepared.first);
    run_range(walk->isa->kernels[group->rule][entry->dtype][variant], entry->buffers,
              STATE + gdm_rules[group->rule].states, itemsize(entry), first, last, &group->prepared.coefs);
}

static void run_piece(void *context, size_t i) {
    const struct walk *walk = context;
    const struct piece *from = &walk->plan->pieces[i], *to = from + 1;
    size_t first = from->element;
    for (size_t k = from->entry; k < to->entry; k++, first = 0)
        run(walk, &walk->plan->entries[k], first, walk->plan->entries[k].n);
    if (first < to->element) run(walk, &walk->plan->entries[to->entry], first, to->element);
}

gdm_status gdm_plan_step(struct plan *plan) {
    const struct walk walk = {plan, gdm_active_isa()};
    if (!walk.isa) return GDM_ERR_ISA;
    unsigned threads = 1;
    if (plan->piece_count > 1)
        threads = gdm_pool_threads_for(plan->bytes, plan->threads ? plan->threads : (unsigned)gdm_get_num_threads());
    if (threads > 1)
        gdm_pool_run(threads, plan->piece_count, run_piece, (void *)&walk);
    else
        for (const struct entry *entry = plan->entries, *end = entry + plan->count; entry < end; entry++)
            run(&walk, entry, 0, entry->n);
    if (plan->fresh) {
        for (struct entry *entry = plan->entries, *end = entry + plan->count; entry < end; entry++)
            entry->started |= gdm_rules[plan->groups[entry->group].rule].states > 0;
        plan->fresh = 0;
    }
    return GDM_OK;
}
