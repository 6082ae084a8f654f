#include "plan.h"

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
    *plan = (struct plan){0};
}

static size_t bytes_of(const struct entry *entry) {
    return entry->n * (entry->dtype == F32 ? sizeof(float) : sizeof(double));
}

static int by_start(const void *a, const void *b) {
    const uintptr_t x = ((const struct span *)a)->start, y = ((const struct span *)b)->start;
    return (x > y) - (x < y);
}

void gdm_plan_written(struct plan *plan) {
    struct span *span = plan->written;
    for (struct entry *entry = plan->entries, *end = entry + plan->count; entry < end; entry++)
        for (int i = 0; i < MAX_BUFFERS; i++) {
            const uintptr_t start = (uintptr_t)entry->buffers[i];
            if (i != GRAD && start && entry->n) *span++ = (struct span){start, start + bytes_of(entry)};
        }
    plan->written_count = (size_t)(span - plan->written);
    qsort(plan->written, plan->written_count, sizeof *plan->written, by_start);
}

int gdm_plan_overlaps(const struct plan *plan, const void *start, size_t bytes) {
    const uintptr_t first = (uintptr_t)start, last = first + bytes;
    size_t low = 0,
           high = plan->written_count; /* the spans below `low` end before `first`, from `high` on they do not */
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (plan->written[middle].end <= first)
            low = middle + 1;
        else
            high = middle;
    }
    return bytes && low < plan->written_count && plan->written[low].start < last;
}

gdm_status gdm_plan_step(struct plan *plan) {
    const struct isa *isa = gdm_active_isa();
    if (!isa) return GDM_ERR_ISA;
    for (struct entry *entry = plan->entries, *end = entry + plan->count; entry < end; entry++) {
        const struct group *group = &plan->groups[entry->group];
        const unsigned first = entry->started ? 0 : group->prepared.first;
        isa->kernels[group->rule][entry->dtype][group->prepared.variant | first](entry->buffers, entry->n,
                                                                                 &group->prepared.coefs);
        entry->started |= gdm_rules[group->rule].states > 0;
    }
    return GDM_OK;
}
