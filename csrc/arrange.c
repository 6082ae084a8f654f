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

static struct span span_at(const void *start, size_t n, unsigned dtype) {
    const uintptr_t first = (uintptr_t)start;
    return (struct span){first, first ? first + n * size_of((enum dtype)dtype) : 0};
}

/* The memory of an entry's gradient, or of its lr_scale. */
static struct span span_of_read(const gdm_plan *plan, size_t i, size_t k) {
    return span_at(plan->entries[i].data[k], plan->entries[i].n, plan->details[i].dtypes[k]);
}

/* The memory of all that a step always writes of an entry; empty spans for what there is not. */
static void find_written(const gdm_plan *plan, size_t i, struct span *spans) {
    const struct entry *entry = &plan->entries[i];
    const struct details *details = &plan->details[i];
    size_t k = 0;
    spans[k++] = span_at(entry->data[PARAM], entry->n, details->dtypes[PARAM]);
    spans[k++] = span_at(details->low_bits, entry->n, BF16);
    spans[k++] = span_at(details->copy.data, entry->n, details->copy.dtype);
    spans[k++] = span_at(details->average.data, entry->n, details->average.dtype);
    for (size_t j = 0; j < MAX_STATES; j++) {
        spans[k++] = span_at(entry->data[STATE + j], entry->n, details->dtypes[STATE + j]);
        spans[k++] = span_at(details->scales[j], scales_of(entry->n), F32);
    }
}

enum { ALWAYS = SPANS - 1 }; /* all but the gradient */

/* Finds the first and the last entry that write to this memory. Only called to report an error. */
static void find_writers(const gdm_plan *plan, struct span memory, size_t *first, size_t *last) {
    struct span spans[ALWAYS];
    *first = *last = SIZE_MAX;
    for (size_t i = 0; i < plan->count; i++) {
        find_written(plan, i, spans);
        for (size_t k = 0; k < ALWAYS; k++) {
            if (spans[k].end <= memory.start || spans[k].start >= memory.end) continue;
            if (*first == SIZE_MAX) *first = i;
            *last = i;
        }
    }
}

static int by_start(const void *a, const void *b) {
    const uintptr_t x = ((const struct span *)a)->start, y = ((const struct span *)b)->start;
    return (x > y) - (x < y);
}

gdm_status gdm_plan_arrange(gdm_plan *plan) {
    struct span *written = plan->written, spans[ALWAYS];
    plan->bytes = plan->written_count = 0;
    for (size_t i = 0; i < plan->count; i++) {
        find_written(plan, i, spans);
        for (size_t k = 0; k < ALWAYS; k++) {
            plan->bytes += spans[k].end - spans[k].start;
            if (spans[k].start < spans[k].end) written[plan->written_count++] = spans[k];
        }
        /* A gradient may be set later. */
        plan->bytes += plan->entries[i].n * size_of((enum dtype)plan->details[i].dtypes[GRAD]);
        if (plan->entries[i].data[SCALE])
            plan->bytes += plan->entries[i].n * size_of((enum dtype)plan->entries[i].dtype);
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

/* The first of some spans that shares memory with this one; `count` if none does. The spans are sorted, and share no
 * memory with each other. */
static size_t find_shared(const struct span *spans, size_t count, struct span memory) {
    /* The spans before index `low` end at or before the memory's start; those from index `high` on do not. */
    size_t low = 0, high = count;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (spans[middle].end <= memory.start)
            low = middle + 1;
        else
            high = middle;
    }
    return memory.start < memory.end && low < count && spans[low].start < memory.end ? low : count;
}

/* Finds the first and the last entry whose gradient has this byte. Only called to report an error. */
static void find_grads(const gdm_plan *plan, uintptr_t byte, size_t *first, size_t *last) {
    *first = *last = SIZE_MAX;
    for (size_t i = 0; i < plan->count; i++) {
        const struct span span = span_of_read(plan, i, GRAD);
        if (span.end <= byte || span.start > byte) continue;
        if (*first == SIZE_MAX) *first = i;
        *last = i;
    }
}

gdm_status gdm_plan_check_grads_apart(gdm_plan *plan) {
    if (!plan->count) return GDM_OK; /* and plan->written may be NULL */
    struct span *grads = plan->written + plan->written_count;
    size_t count = 0, last;
    for (size_t i = 0; i < plan->count; i++) {
        const struct span span = span_of_read(plan, i, GRAD);
        if (span.start < span.end) grads[count++] = span;
    }
    if (count) qsort(grads, count, sizeof *grads, by_start);
    for (size_t k = 1; k < count; k++) {
        if (grads[k].start >= grads[k - 1].end) continue;
        find_grads(plan, grads[k].start, &plan->error, &plan->other);
        return GDM_ERR_OVERLAP;
    }
    for (size_t i = 0; i < plan->count; i++) {
        const struct span scale = span_of_read(plan, i, SCALE);
        const size_t k = find_shared(grads, count, scale);
        if (k == count) continue;
        plan->error = i;
        find_grads(plan, grads[k].start, &plan->other, &last);
        return GDM_ERR_OVERLAP;
    }
    return GDM_OK;
}

int gdm_plan_overlaps(const gdm_plan *plan, const void *start, size_t bytes) {
    const uintptr_t first = (uintptr_t)start;
    return find_shared(plan->written, plan->written_count, (struct span){first, first + bytes}) < plan->written_count;
}

gdm_status gdm_plan_check_read(gdm_plan *plan, size_t entry, const void *start, size_t bytes) {
    size_t last;
    if (!gdm_plan_overlaps(plan, start, bytes)) return GDM_OK;
    plan->error = entry;
    find_writers(plan, (struct span){(uintptr_t)start, (uintptr_t)start + bytes}, &plan->other, &last);
    return GDM_ERR_OVERLAP;
}
