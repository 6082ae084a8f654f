/* Reductions: one number from many buffers, the same on every machine and with any number of threads. */
#include "plan.h"

#include "fp_mode.h"
#include "pool.h"

/* ---- combining results ------------------------------------------------------------------------------------------ */

static double combine(gdm_reduction reduction, double a, double b) {
    if (reduction != GDM_LARGEST_MAGNITUDE) return a + b;
    return a != a || a > b ? a : b; /* the one that is NaN, if there is one */
}

/* Combines results as they come, in a tree: the left part has the largest power of two of the results that is less than
 * their number, the right part the rest. Works like a binary counter: part[k] is the result of 2^k in a row, if bit k
 * of count is set. */
struct tree {
    double part[64];
    uint64_t count;
};

static void add_result(struct tree *tree, gdm_reduction reduction, double result) {
    int k = 0;
    for (; tree->count >> k & 1; k++) result = combine(reduction, tree->part[k], result);
    tree->part[k] = result;
    tree->count++;
}

/* What all results come to; 0 without any. */
static double total(const struct tree *tree, gdm_reduction reduction) {
    double sum = 0;
    int found = 0;
    for (int k = 0; k < 64; k++)
        if (tree->count >> k & 1) {
            sum = found ? combine(reduction, tree->part[k], sum) : tree->part[k];
            found = 1;
        }
    return sum;
}

/* ---- one pass over many buffers --------------------------------------------------------------------------------- */

/* So many blocks are handed to the threads at once; their results lie on the caller's stack. */
enum { WINDOW = 1024, BLOCKS_OF_A_TASK = PIECE / REDUCTION_BLOCK };

struct block {
    const void *start;
    unsigned n, dtype;
};

struct window {
    const struct isa *isa;
    gdm_reduction reduction;
    size_t count;
    struct block blocks[WINDOW];
    double results[WINDOW];
};

static void reduce_blocks(void *context, size_t task) {
    struct window *window = context;
    const size_t first = task * BLOCKS_OF_A_TASK, end = first + BLOCKS_OF_A_TASK;
    for (size_t i = first; i < end && i < window->count; i++) {
        const struct block *block = &window->blocks[i];
        window->results[i] = window->isa->reducers[window->reduction][block->dtype](block->start, block->n);
    }
}

/* What is reduced: a caller's buffers, or the gradients of a plan. */
struct source {
    const gdm_buffer *buffers;
    const size_t *lengths;
    const gdm_plan *plan;
    size_t count;
};

static gdm_buffer get_buffer(const struct source *from, size_t i, size_t *n) {
    if (from->buffers) {
        *n = from->lengths[i];
        return from->buffers[i];
    }
    *n = from->plan->entries[i].n;
    return (gdm_buffer){from->plan->entries[i].data[GRAD], (gdm_dtype)from->plan->details[i].dtypes[GRAD]};
}

static void reduce(const struct isa *isa, gdm_reduction reduction, const struct source *from, unsigned threads,
                   double *result) {
    struct window window = {.isa = isa, .reduction = reduction};
    struct tree all = {.count = 0}, of_buffer = {.count = 0};
    size_t i = 0, element = 0; /* the next block begins here */
    size_t its = 0, done = 0;  /* the buffer, and the number of its elements, whose results are in of_buffer */
    while (i < from->count) {
        for (window.count = 0; window.count < WINDOW && i < from->count;) {
            size_t n;
            const gdm_buffer buffer = get_buffer(from, i, &n);
            if (buffer.data && element < n) {
                const size_t rest = n - element;
                window.blocks[window.count++] = (struct block){
                    (const char *)buffer.data + element * size_of((enum dtype)buffer.dtype),
                    (unsigned)(rest < REDUCTION_BLOCK ? rest : REDUCTION_BLOCK), (unsigned)buffer.dtype};
                element += REDUCTION_BLOCK;
            }
            if (!buffer.data || element >= n) i++, element = 0;
        }
        gdm_pool_run(threads, (window.count + BLOCKS_OF_A_TASK - 1) / BLOCKS_OF_A_TASK, reduce_blocks, &window);
        for (size_t k = 0; k < window.count; k++) {
            size_t n;
            while (!get_buffer(from, its, &n).data || !n) its++;
            add_result(&of_buffer, reduction, window.results[k]);
            done += window.blocks[k].n;
            if (done == n) {
                add_result(&all, reduction, total(&of_buffer, reduction));
                of_buffer.count = 0;
                its++, done = 0;
            }
        }
    }
    *result = total(&all, reduction);
}
