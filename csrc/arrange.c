/* Arranging a plan: finding the memory that its steps write to, and cutting its work into pieces. */
#include "plan.h"

#include <stdlib.h>

/* Cuts the elements of all entries, in order, into pieces. An entry is cut at multiples of BLOCK. */
static void cut(gdm_plan *plan) {
    size_t room = PIECE, k = 0;
    struct piece *pieces = plan->pieces;
    if (plan->count) pieces[k++] = (struct piece){0, 0};
    for (size_t i = 0; i < plan->count; i++) {
        size_t element = 0;
        while (plan->entries[i].n - element > room) {
            element += room / BLOCK * BLOCK;
            pieces[k++] = (struct piece){i, element};
            room = PIECE;
        }
        room -= plan->entries[i].n - element;
    }
    if (plan->count) pieces[k] = (struct piece){plan->count, 0};
    plan->piece_count = k;
}

static int is_written(size_t k) {
    return k != GRAD && k != SCALE;
}

/* The memory of an entry's k-th buffer. */
static struct span span_of(const gdm_plan *plan, size_t i, size_t k) {
    const struct entry *entry = &plan->entries[i];
    const uintptr_t start = (uintptr_t)entry->data[k];
    return (struct span){start, start ? start + entry->n * size_of((enum dtype)plan->details[i].dtypes[k]) : 0};
}

/* Finds the first and the last entry that write to this memory. Only called to report an error. */
static void find_writers(const gdm_plan *plan, struct span memory, size_t *first, size_t *last) {
    *first = *last = SIZE_MAX;
    for (size_t i = 0; i < plan->count; i++)
        for (size_t k = 0; k < MAX_BUFFERS; k++) {
            const struct span span = span_of(plan, i, k);
            if (!is_written(k) || span.end <= memory.start || span.start >= memory.end) continue;
            if (*first == SIZE_MAX) *first = i;
            *last = i;
        }
}

static int by_start(const void *a, const void *b) {
    const uintptr_t x = ((const struct span *)a)->start, y = ((const struct span *)b)->start;
    return (x > y) - (x < y);
}

gdm_status gdm_plan_arrange(gdm_plan *plan) {
    struct span *written = plan->written;
    plan->bytes = plan->written_count = 0;
    for (size_t i = 0; i < plan->count; i++)
        for (size_t k = 0; k < MAX_BUFFERS; k++) {
            const struct span span = span_of(plan, i, k);
            /* A gradient may be set later. */
            if (k == GRAD) plan->bytes += plan->entries[i].n * size_of((enum dtype)plan->details[i].dtypes[k]);
            if (k != GRAD) plan->bytes += span.end - span.start;
            if (is_written(k) && span.start < span.end) written[plan->written_count++] = span;
        }
    if (plan->written_count) qsort(written, plan->written_count, sizeof *written, by_start);
    for (size_t i = 1; i < plan->written_count; i++)
        if (written[i].start < written[i - 1].end) {
            const struct span shared = {written[i].start, written[i].start + 1};
            find_writers(plan, shared, &plan->error, &plan->other);
            return GDM_ERR_OVERLAP;
        }
    cut(plan);
    plan->changed = 0;
    return GDM_OK;
}

int gdm_plan_overlaps(const gdm_plan *plan, const void *start, size_t bytes) {
    const uintptr_t first = (uintptr_t)start, last = first + bytes;
    /* The spans before index `low` end at or before `first`; those from index `high` on do not. */
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

gdm_status gdm_plan_check_read(gdm_plan *plan, size_t entry, const void *start, size_t bytes) {
    size_t last;
    if (!gdm_plan_overlaps(plan, start, bytes)) return GDM_OK;
    plan->error = entry;
    find_writers(plan, (struct span){(uintptr_t)start, (uintptr_t)start + bytes}, &plan->other, &last);
    return GDM_ERR_OVERLAP;
}
