/* Reductions: one number from many buffers, the same on every machine and with any number of threads. */
#include "plan.h"

#include "fp_mode.h"
#include "pool.h"
#include "tree.h"

/* ---- one pass over many buffers --------------------------------------------------------------------------------- */

/* The threads get at most WINDOW blocks at once; the results are on the caller's stack. */
enum { WINDOW = 1024, BLOCKS_OF_A_TASK = PIECE / BLOCK };

struct block {
    const void *start;
    unsigned n;
    uint8_t dtype, last; /* last: it is the last block of its buffer */
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
        const void *start = block->start;
        float wide[BLOCK];
        if (block->dtype >= DTYPES) {
            window->isa->load[block->dtype][F32](wide, start, block->n);
            start = wide;
        }
        window->results[i] = window->isa->reducers[window->reduction][block->dtype == F64 ? F64 : F32](start, block->n);
    }
}

/* What is reduced: a caller's buffers, or the gradients of a plan. */
struct source {
    const gdm_buffer *buffers;
    const size_t *lengths;
    const gdm_plan *plan;
    size_t count;
};

/* A buffer that is left out has n = 0; its dtype may be anything. */
static gdm_buffer get_buffer(const struct source *from, size_t i, size_t *n) {
    gdm_buffer buffer;
    if (from->buffers) {
        buffer = from->buffers[i];
        *n = from->lengths[i];
    } else {
        buffer = (gdm_buffer){from->plan->entries[i].data[GRAD], (gdm_dtype)from->plan->details[i].dtypes[GRAD]};
        *n = from->plan->entries[i].n;
    }
    if (!buffer.data) *n = 0;
    return buffer;
}

/* Fills the window with the next blocks, from this element of this buffer on. Advances i and element past them. */
static void fill(struct window *window, const struct source *from, size_t *i, size_t *element) {
    window->count = 0;
    for (; *i < from->count; (*i)++, *element = 0) {
        size_t n;
        const gdm_buffer buffer = get_buffer(from, *i, &n);
        for (; *element < n; *element += BLOCK) {
            const size_t rest = n - *element;
            if (window->count == WINDOW) return;
            window->blocks[window->count++] = (struct block){
                .start = (const char *)buffer.data + *element * size_of((enum dtype)buffer.dtype),
                .n = (unsigned)(rest < BLOCK ? rest : BLOCK),
                .dtype = (uint8_t)buffer.dtype,
                .last = rest <= BLOCK,
            };
        }
    }
}

static gdm_status reduce(gdm_reduction reduction, const struct source *from, unsigned allowed, double *result) {
    struct window window;
    struct tree of_buffer, of_all;
    size_t i = 0, element = 0, bytes = 0;
    of_buffer.count = of_all.count = 0;
    window.isa = gdm_active_isa();
    window.reduction = reduction;
    if (!window.isa) return GDM_ERR_ISA;
    for (size_t k = 0, n; k < from->count; k++) {
        const gdm_buffer buffer = get_buffer(from, k, &n);
        if (n) bytes += n * size_of((enum dtype)buffer.dtype);
    }
    const fp_mode found = set_default_fp_mode();
    const unsigned threads = gdm_pool_threads_for(bytes, allowed ? allowed : (unsigned)gdm_get_num_threads());
    for (fill(&window, from, &i, &element); window.count; fill(&window, from, &i, &element)) {
        const size_t tasks = (window.count + BLOCKS_OF_A_TASK - 1) / BLOCKS_OF_A_TASK;
        if (threads > 1)
            gdm_pool_run(threads, tasks, reduce_blocks, &window);
        else
            for (size_t task = 0; task < tasks; task++) reduce_blocks(&window, task);
        for (size_t k = 0; k < window.count; k++) {
            add_result(&of_buffer, reduction, window.results[k]);
            if (!window.blocks[k].last) continue;
            add_result(&of_all, reduction, total(&of_buffer, reduction));
            of_buffer.count = 0;
        }
    }
    *result = total(&of_all, reduction);
    restore_fp_mode(found);
    return GDM_OK;
}

/* ---- the public functions --------------------------------------------------------------------------------------- */

gdm_status gdm_reduce(gdm_reduction reduction, const gdm_buffer *buffers, const size_t *lengths, size_t count,
                      double *result) {
    if ((unsigned)reduction >= REDUCTIONS) return GDM_ERR_INDEX;
    if (!result || (count && (!buffers || !lengths))) return GDM_ERR_NULL;
    for (size_t i = 0; i < count; i++) {
        if (!buffers[i].data || !lengths[i]) continue;
        if ((unsigned)buffers[i].dtype >= FLOATS) return GDM_ERR_DTYPE;
        const gdm_status status = check_buffer(buffers[i].data, lengths[i], (enum dtype)buffers[i].dtype);
        if (status) return status;
    }
    return reduce(reduction, &(struct source){buffers, lengths, NULL, count}, 0, result);
}

gdm_status gdm_plan_reduce(gdm_plan *plan, gdm_reduction reduction, double *result) {
    if (!plan || !result) return GDM_ERR_NULL;
    plan->error = plan->other = SIZE_MAX;
    if ((unsigned)reduction >= REDUCTIONS) return GDM_ERR_INDEX;
    return reduce(reduction, &(struct source){NULL, NULL, plan, plan->count}, plan->threads, result);
}
