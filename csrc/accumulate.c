/* gdm_accumulate: adds gradients to totals. */
#include "core.h"

#include "fp_mode.h"
#include "pool.h"

#include <string.h>

/* The threads get the pieces of one pair of buffers after the other. */
struct sum {
    const struct isa *isa;
    gdm_buffer total, grad;
    size_t n;
    double scale;
};

enum { PART = 1024 }; /* elements that are converted at a time */

static void add_part(const struct sum *sum, size_t first, size_t n) {
    double wide_total[PART], wide_grad[PART];
    const struct isa *isa = sum->isa;
    const unsigned total_dtype = sum->total.dtype, grad_dtype = sum->grad.dtype;
    const unsigned computed_in = total_dtype == F64 ? F64 : F32;
    void *total = (char *)sum->total.data + first * size_of((enum dtype)total_dtype), *stored = total;
    const void *grad = (const char *)sum->grad.data + first * size_of((enum dtype)grad_dtype);
    if (grad_dtype != computed_in) {
        isa->load[grad_dtype][computed_in](wide_grad, grad, n);
        grad = wide_grad;
    }
    if (total_dtype != computed_in) {
        isa->load[total_dtype][computed_in](wide_total, stored, n);
        total = wide_total;
    }
    isa->accumulate[computed_in](total, grad, n, sum->scale);
    if (total != stored) isa->store[total_dtype][computed_in](stored, total, n);
}

static void add_piece(void *context, size_t piece) {
    const struct sum *sum = context;
    const size_t first = piece * PIECE, last = sum->n - first < PIECE ? sum->n : first + PIECE;
    for (size_t i = first; i < last; i += PART) add_part(sum, i, last - i < PART ? last - i : PART);
}

static gdm_status check_pair(gdm_buffer total, gdm_buffer grad, size_t n) {
    if ((unsigned)total.dtype >= FLOATS || (unsigned)grad.dtype >= FLOATS) return GDM_ERR_DTYPE;
    if (grad.dtype == GDM_FLOAT64 && total.dtype != GDM_FLOAT64) return GDM_ERR_DTYPE;
    const gdm_status status = check_buffer(total.data, n, (enum dtype)total.dtype);
    return status ? status : check_buffer(grad.data, n, (enum dtype)grad.dtype);
}

static size_t bytes_of(gdm_buffer buffer, size_t n) {
    return n * size_of((enum dtype)buffer.dtype);
}

static int share_memory(gdm_buffer a, gdm_buffer b, size_t n_of_a, size_t n_of_b) {
    const uintptr_t x = (uintptr_t)a.data, y = (uintptr_t)b.data;
    return n_of_a && n_of_b && x < y + bytes_of(b, n_of_b) && y < x + bytes_of(a, n_of_a);
}

gdm_status gdm_accumulate_unchecked(const gdm_buffer *totals, const gdm_buffer *grads, const size_t *lengths,
                                    size_t count, double scale) {
    const struct isa *isa = gdm_active_isa();
    if (!isa) return GDM_ERR_ISA;
    const fp_mode found = set_default_fp_mode();
    for (size_t i = 0; i < count; i++) {
        struct sum sum = {isa, totals[i], grads[i], lengths[i], scale};
        const size_t pieces = (lengths[i] + PIECE - 1) / PIECE;
        const size_t bytes = lengths[i] ? 2 * bytes_of(totals[i], lengths[i]) + bytes_of(grads[i], lengths[i]) : 0;
        const unsigned threads = gdm_pool_threads_for(bytes, (unsigned)gdm_get_num_threads());
        if (threads > 1)
            gdm_pool_run(threads, pieces, add_piece, &sum);
        else
            for (size_t piece = 0; piece < pieces; piece++) add_piece(&sum, piece);
    }
    restore_fp_mode(found);
    return GDM_OK;
}

gdm_status gdm_accumulate(const gdm_buffer *totals, const gdm_buffer *grads, const size_t *lengths, size_t count,
                          double scale) {
    if (count && (!totals || !grads || !lengths)) return GDM_ERR_NULL;
    for (size_t i = 0; i < count; i++) {
        const gdm_status status = lengths[i] ? check_pair(totals[i], grads[i], lengths[i]) : GDM_OK;
        if (status) return status;
    }
    for (size_t i = 0; i < count; i++)
        for (size_t k = 0; k < count; k++)
            if (share_memory(totals[i], grads[k], lengths[i], lengths[k]) ||
                (k < i && share_memory(totals[i], totals[k], lengths[i], lengths[k])))
                return GDM_ERR_OVERLAP;
    return gdm_accumulate_unchecked(totals, grads, lengths, count, scale);
}
