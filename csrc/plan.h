/* The plan: the table of entries that one step updates. A step allocates nothing. */
#ifndef GDM_PLAN_H
#define GDM_PLAN_H

#include "core.h"
#include "pool.h"

#include <math.h>

/* What a step reads of an entry, in one cache line. A step leaves an entry out if data[GRAD] is NULL. The caller may
 * set data[GRAD] before each step without telling the plan. */
struct entry {
    void *data[MAX_BUFFERS]; /* PARAM, GRAD (NULL: left out), SCALE, STATE... */
    size_t n;
    uint32_t group;
    uint8_t dtype; /* an enum dtype: the one that its kernel computes in */
    uint8_t own;   /* bits OWN_...; 0: it uses the group's constants */
    uint8_t order; /* for the caller only: the memory order of its elements */
    uint8_t tiled; /* it is updated tile by tile: a buffer must be converted, or there is a copy or an average */
};
_Static_assert(sizeof(struct entry) <= CACHE_LINE, "an entry must fit into one cache line");

enum {
    OWN_PROGRESS = 1, /* its count of steps or its scalars differ from the group's */
    OWN_FACTOR = 2,   /* its lr_factor is not 1 */
    OWN_TRUST = 4,    /* its rule has a trust ratio */
};

/* What is rarely read of an entry. details[i] belongs to entries[i]. */
struct details {
    uint8_t dtypes[MAX_BUFFERS]; /* in which each buffer is stored */
    uint64_t lag;                /* group->steps minus the entry's own steps, modulo 2^64 */
    double lr_factor;
    double trust;                /* the trust ratio of the present step, if plan->knows_trust */
    double scalars[MAX_SCALARS]; /* only with OWN_PROGRESS; else the entry uses the group's */
    gdm_buffer copy, average;    /* see gdm_entry_args */
    uint16_t *low_bits;
    float *scales[MAX_STATES];
};

struct group {
    struct prepared prepared; /* for the next step, unless `stale`: for the entries without OWN_... bits */
    double scalars[MAX_SCALARS], next_scalars[MAX_SCALARS];
    uint64_t steps;        /* made by its entries without OWN_PROGRESS */
    uint64_t absent_steps; /* steps of the plan in which none of its entries had a gradient, modulo 2^64 */
    struct choice choice;
    enum rule rule;
    uint8_t changes;       /* its constants or scalars change from step to step */
    uint8_t stale;         /* the next step must first compute prepared and next_scalars */
    uint8_t dtypes;        /* a bit for each compute dtype among its entries */
    uint8_t present;       /* used during a step: some entry has a gradient */
    double largest_factor; /* no entry has a larger lr_factor */
    union args args;       /* `step` and the pointers to scalars are set before each use */
    struct cache cache;
};

/* The memory from start to end - 1. */
struct span {
    uintptr_t start, end;
};

/* How many buffers of an entry a step may write: the parameter, its low bits, a copy, an average, a cleared gradient;
 * the states and their scales. */
enum { SPANS = 5 + 2 * MAX_STATES };

/* Where a piece of the work begins: an element of an entry. It ends where the next piece begins. A piece is a part of
 * one entry, or many small entries; each thread takes pieces. */
struct piece {
    size_t entry, element;
};

/* What a step does to tiles beside the rule. */
struct stages {
    double kernel_factor; /* of the gradients: kernels multiply by it, with the sign of `maximize`, at no cost */
    double factor;        /* the same, but before the limit. One of the two is 1 */
    double limit;         /* of the gradients' magnitude; 0: none */
    double weight;        /* of the parameter in its average */
    uint8_t clear;        /* sets the gradients to 0 */
    uint8_t on_all;       /* some of these concern every entry, so that all are updated tile by tile */
    uint8_t preparing;    /* this is no step: only states of the kind `work` are written */
};

struct gdm_plan {
    struct group *groups;
    size_t group_count, group_room;
    struct entry *entries;
    struct details *details;
    size_t count, entry_room, detail_room;
    struct span *written; /* what steps write to, sorted */
    size_t written_count, written_room;
    struct piece *pieces; /* and one more: the end of the last */
    size_t piece_count, piece_room;
    size_t elements;
    size_t bytes;             /* of all buffers that a step reads or writes */
    size_t error, other;      /* see gdm_plan_get_error */
    unsigned threads;         /* that a step may use; 0: gdm_get_num_threads */
    gdm_parallel_for *spread; /* runs a step on the threads of another pool, `host`; NULL: the own pool */
    void *host;
    gdm_step_args around;      /* what steps do around the rule */
    struct stages stages;      /* of the present step; follows from `around` */
    uint64_t updates, skipped; /* see gdm_step_report */
    double grad_norm;
    uint8_t was_skipped;
    uint8_t asks;         /* a step must first decide what it does: see gdm_plan_decide */
    uint8_t changed;      /* entries have been added since gdm_plan_arrange */
    uint8_t unsettled;    /* counts of steps have been set: the next step must first compare groups and entries */
    uint8_t own_progress; /* some entry may have OWN_PROGRESS */
    uint8_t mode;         /* a gdm_mode */
    uint8_t has_trust;    /* some entry has OWN_TRUST */
    uint8_t knows_trust;  /* used during a step: the trust ratios are in `details` */
};

/* Unlike !=, this tells 0 from -0, which give other results. */
static inline int has_other_bits(double a, double b) {
    return a != b || (a == 0 && !signbit(a) != !signbit(b));
}

/* Sets an argument struct's pointers to the scalars of its rule. */
static inline void point_to_scalars(union args *args, const struct rule_info *rule, double *scalars) {
    for (unsigned k = 0; k < rule->scalars; k++) *(double **)((char *)args + rule->scalar[k]) = &scalars[k];
}

/* Finds the memory that steps write to, and cuts the work into pieces. Must be called before gdm_plan_run if entries
 * have been added. GDM_ERR_OVERLAP if two of the written buffers share memory; gdm_plan_get_error says which. */
GDM_INTERNAL gdm_status gdm_plan_arrange(gdm_plan *plan);

/* GDM_ERR_OVERLAP if a gradient shares memory with another gradient or with an lr_scale, which it may not if steps
 * clear it. Uses the room behind the spans of plan->written. */
GDM_INTERNAL gdm_status gdm_plan_check_grads_apart(gdm_plan *plan);

/* Whether a step writes to any of these bytes. */
GDM_INTERNAL int gdm_plan_overlaps(const gdm_plan *plan, const void *start, size_t bytes);

/* GDM_ERR_OVERLAP if it does; gdm_plan_get_error then names this entry, which reads these bytes. */
GDM_INTERNAL gdm_status gdm_plan_check_read(gdm_plan *plan, size_t entry, const void *start, size_t bytes);

/* If entries have been added: checks that no buffer shares memory with one that is written. */
GDM_INTERNAL gdm_status gdm_plan_check_memory(gdm_plan *plan);

/* How many threads a pass over the plan uses; and whether they are those of the other pool that the plan may use. */
static inline __attribute__((always_inline)) unsigned gdm_plan_threads(const gdm_plan *plan, int *elsewhere) {
    *elsewhere = 0;
    if (plan->piece_count < 2) return 1;
    const unsigned most = plan->threads ? plan->threads : (unsigned)gdm_get_num_threads();
    const unsigned others = plan->spread ? gdm_pool_threads_on(plan->bytes, most) : 0;
    *elsewhere = others > 0;
    return others ? others : gdm_pool_threads_for(plan->bytes, most);
}

/* gdm_plan_swap without its checks of the buffers. GDM_ERR_ISA is the only possible error. */
GDM_INTERNAL gdm_status gdm_plan_run_swap(gdm_plan *plan, gdm_mode mode);

/* gdm_plan_step without its checks of the buffers. GDM_ERR_ISA and GDM_ERR_NONFINITE are the only possible errors. */
GDM_INTERNAL gdm_status gdm_plan_run(gdm_plan *plan);

/* gdm_plan_prepare without its checks of the buffers. If plan->was_skipped is set then, the step will be skipped. */
GDM_INTERNAL gdm_status gdm_plan_run_preparation(gdm_plan *plan);

/* Decides what this step does to the gradients, and whether it is skipped: sets plan->stages, grad_norm and
 * was_skipped. Called in the default floating-point mode. */
GDM_INTERNAL gdm_status gdm_plan_decide(gdm_plan *plan);

/* What a step does that is skipped. */
GDM_INTERNAL void gdm_plan_skip(gdm_plan *plan);

/* Updates the elements of an entry from first, a multiple of BLOCK, to last - 1: tile by tile, with the kernel of a
 * rule and all stages that the plan and the entry ask for. */
GDM_INTERNAL void gdm_update_tiles(const gdm_plan *plan, const struct isa *isa, size_t entry, size_t first, size_t last,
                                   kernel *run, const void *constants);

/* Sets the parameter of an entry to param + weight * (state - param), where the state is its first one, tile by tile;
 * writes the copy. */
GDM_INTERNAL void gdm_swap_tiles(const gdm_plan *plan, const struct isa *isa, size_t entry, size_t first, size_t last,
                                 double weight);

/* What a trust ratio is computed from: all elements of an entry, or the buffers of one update. */
struct vectors {
    const struct isa *isa;
    enum rule rule;
    enum dtype dtype; /* that is computed in */
    size_t n;
    direction *run;
    const void *constants;
    const gdm_plan *plan; /* NULL: of one update */
    size_t entry;
    void *const *buffers; /* all of the dtype that is computed in, unless `tiled` */
    uint8_t tiled;        /* the entry must be loaded tile by tile */
};

/* The trust ratio. `args` are those of the rule, checked. */
GDM_INTERNAL double gdm_trust_ratio(const struct vectors *of, const union args *args, unsigned threads, int elsewhere);

/* Loads n elements of an entry's parameter from `first`, a multiple of BLOCK, and computes their direction. */
GDM_INTERNAL void gdm_load_direction(const struct vectors *of, size_t first, size_t n, void *params, void *directions);

/* Runs tasks on several threads: on those of the other pool that the plan may use if `elsewhere`. */
GDM_INTERNAL void gdm_plan_spread(const gdm_plan *plan, unsigned threads, int elsewhere, size_t tasks,
                                  void (*task)(void *context, size_t i), void *context);

/* Whether an entry must be updated tile by tile. */
GDM_INTERNAL int gdm_is_tiled(const struct entry *entry, const struct details *details);

#endif
