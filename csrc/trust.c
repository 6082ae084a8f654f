/* Trust ratios: LARS and LAMB multiply a parameter's learning rate by a ratio that depends on two norms.
 *
 * The norms are roots of sums of squares, which are computed as in reduce.c: block by block, and combined in a fixed
 * tree. So a ratio does not depend on threads or the machine.
 */
#include "plan.h"

#include "tree.h"

#include <math.h>

/* The sums of squares of a parameter and of its direction. */
struct sums {
    double param, direction;
};

static struct sums sums_of_block(const struct vectors *of, size_t block) {
    const size_t first = block * BLOCK, n = of->n - first < BLOCK ? of->n - first : BLOCK;
    reducer *const sum_of_squares = of->isa->reducers[GDM_SUM_OF_SQUARES][of->dtype];
    _Alignas(CACHE_LINE) double params[BLOCK], directions[BLOCK]; /* or floats */
    const void *param = params;
    if (of->tiled) {
        gdm_load_direction(of, first, n, params, directions);
    } else {
        void *buffers[MAX_BUFFERS];
        for (size_t k = 0; k < MAX_BUFFERS; k++) buffers[k] = of->buffers[k];
        const uint8_t dtype = (uint8_t)of->dtype;
        move_on(buffers, (const uint8_t[MAX_BUFFERS]){dtype, dtype, dtype, dtype, dtype, dtype}, first);
        of->run(directions, buffers, n, of->constants);
        param = buffers[PARAM];
    }
    return (struct sums){sum_of_squares(param, n), sum_of_squares(directions, n)};
}

/* The threads get at most TRUST_WINDOW blocks at once; the results are on the caller's stack. */
enum { TRUST_WINDOW = 512 };

struct trust_window {
    const struct vectors *of;
    size_t first, last; /* blocks */
    struct sums results[TRUST_WINDOW];
};

static void sum_blocks(void *context, size_t i) {
    struct trust_window *window = context;
    window->results[i] = sums_of_block(window->of, window->first + i);
}

double gdm_trust_ratio(const struct vectors *of, const union args *args, unsigned threads, int elsewhere) {
    const struct trust_info *info = &gdm_trusts[of->rule];
    const size_t blocks = (of->n + BLOCK - 1) / BLOCK;
    struct tree params, directions;
    struct trust_window window;
    if (!*(const int *)((const char *)args + info->adapt)) return 1.0;
    params.count = directions.count = 0;
    window.of = of;
    for (window.first = 0; window.first < blocks; window.first = window.last) {
        window.last = blocks - window.first < TRUST_WINDOW ? blocks : window.first + TRUST_WINDOW;
        const size_t count = window.last - window.first;
        if (threads > 1 && count > 1)
            gdm_plan_spread(of->plan, threads, elsewhere, count, sum_blocks, &window);
        else
            for (size_t i = 0; i < count; i++) sum_blocks(&window, i);
        for (size_t i = 0; i < count; i++) {
            add_result(&params, GDM_SUM_OF_SQUARES, window.results[i].param);
            add_result(&directions, GDM_SUM_OF_SQUARES, window.results[i].direction);
        }
    }
    return info->ratio(args, sqrt(total(&params, GDM_SUM_OF_SQUARES)), sqrt(total(&directions, GDM_SUM_OF_SQUARES)));
}
