/* The plan: the table of entries that one step walks. Nothing is allocated while stepping. */
#ifndef GDM_PLAN_H
#define GDM_PLAN_H

#include "core.h"

/* What a walk reads of an entry, in one cache line. data[GRAD] is the only mark of an entry that is left out of a step:
 * whoever steps may set it before each step without telling the plan. */
struct entry {
    void *data[MAX_BUFFERS]; /* PARAM, GRAD (NULL: left out), SCALE, STATE... */
    size_t n;
    uint32_t group;
    uint8_t dtype; /* an enum dtype: the one it is computed in */
    uint8_t own;   /* bits OWN_...; 0: the group's constants are its constants */
    uint8_t order; /* belongs to the caller: the memory order of its elements */
};
_Static_assert(sizeof(struct entry) <= CACHE_LINE, "an entry that a walk reads is one cache line");

enum {
    OWN_PROGRESS = 1, /* its count of steps or its scalars are not the group's */
    OWN_FACTOR = 2,   /* its lr_factor is not 1 */
};

/* What is rarely read of an entry. It lies at the same index of an array beside the entries. */
struct details {
    uint8_t dtypes[MAX_BUFFERS]; /* in which each buffer is stored */
    uint64_t lag;                /* group->steps less the entry's own steps, modulo 2^64 */
    double lr_factor;
    double scalars[MAX_SCALARS]; /* with OWN_PROGRESS only; else they are the group's */
};

struct group {
    struct prepared prepared; /* of the next step, unless `stale`: for its entries that have nothing of their own */
    double scalars[MAX_SCALARS], next_scalars[MAX_SCALARS];
    uint64_t steps;        /* that its entries without OWN_PROGRESS have made */
    uint64_t absent_steps; /* steps of the plan in which none of them had a gradient, modulo 2^64 */
    struct choice choice;
    enum rule rule;
    uint8_t changes;       /* its constants or scalars change from step to step */
    uint8_t stale;         /* prepared and next_scalars are to be computed before the next step */
    uint8_t dtypes;        /* a bit for each compute dtype among its entries */
    uint8_t present;       /* used within a step: some entry has a gradient */
    double largest_factor; /* no entry has a larger lr_factor */
    union args args;       /* `step` and the pointers to scalars are set before each use */
    struct cache cache;
};

/* Memory from start up to, and without, end. */
struct span {
    uintptr_t start, end;
};

/* Where a piece begins: an element of an entry. It ends where the next one begins. Threads share the work by pieces,
 * which are a part of one entry, or many small entries. */
struct piece {
    size_t entry, element;
};

struct gdm_plan {
    struct group *groups;
    size_t group_count, group_room;
    struct entry *entries;
    struct details *details;
    size_t count, entry_room, detail_room;
    struct span *written; /* what steps write to, sorted */
    size_t written_count, written_room;
    struct piece *pieces; /* and one more, behind the last */
    size_t piece_count, piece_room;
    size_t elements;
    size_t bytes;         /* that a step walks */
    size_t error, other;  /* see gdm_plan_get_error */
    unsigned threads;     /* that a step may use; 0: gdm_get_num_threads */
    uint8_t changed;      /* entries or buffers, since gdm_plan_arrange */
    uint8_t unsettled;    /* counts of steps have been set: groups and entries are to be compared before a step */
    uint8_t own_progress; /* some entry may have OWN_PROGRESS */
};

/* Finds what is written and cuts the work into pieces: to be called before gdm_plan_run when entries or states have
 * been added. GDM_ERR_OVERLAP if two of the written buffers share memory; gdm_plan_get_error says which. */
gdm_status gdm_plan_arrange(gdm_plan *plan);

/* Whether a step writes to any of these bytes. */
int gdm_plan_overlaps(const gdm_plan *plan, const void *start, size_t bytes);

/* GDM_ERR_OVERLAP if it does; then the error is that of this entry, which is to read them. */
gdm_status gdm_plan_check_read(gdm_plan *plan, size_t entry, const void *start, size_t bytes);

/* gdm_plan_step without its checks of the buffers. GDM_ERR_ISA is all that can go wrong. */
gdm_status gdm_plan_run(gdm_plan *plan);

#endif
