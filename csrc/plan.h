/* A plan: the table of buffers that one step walks. Nothing is allocated while stepping. */
#ifndef GDM_PLAN_H
#define GDM_PLAN_H

#include "core.h"

#include <stdint.h>

struct entry {
    void *buffers[MAX_BUFFERS]; /* PARAM, GRAD, STATE... */
    size_t n;
    unsigned group;
    unsigned char dtype;   /* an enum dtype */
    unsigned char started; /* its states have been through a step */
    unsigned char order;   /* the caller's own: in which order its elements are meant */
};

struct group {
    enum rule rule;
    struct prepared prepared;
};

/* Memory from start up to, and without, end. */
struct span {
    uintptr_t start, end;
};

/* Where a piece begins; it ends where the next one does. Pieces are what threads take: of one entry, or many small
 * ones. */
struct piece {
    size_t entry, element;
};

struct plan {
    struct group *groups;
    size_t group_count;
    struct entry *entries;
    size_t count;
    struct span *written; /* what steps write to, sorted, disjoint */
    size_t written_count;
    struct piece *pieces; /* and one more, behind the last */
    size_t piece_count;
    size_t bytes;     /* that a step walks */
    unsigned threads; /* that a step may use; 0: gdm_get_num_threads */
    int fresh;        /* some entry may not have been started */
};

/* Room for so many groups and entries, all zero; GDM_ERR_MEMORY leaves an empty plan. */
gdm_status gdm_plan_init(struct plan *plan, size_t groups, size_t entries);
void gdm_plan_free(struct plan *plan);

/* Takes in what has been set of the entries: to be called before the first step, and when states have been added. */
gdm_status gdm_plan_arrange(struct plan *plan);

/* Whether a step writes to any of these bytes. */
int gdm_plan_overlaps(const struct plan *plan, const void *start, size_t bytes);

/* Runs each group's rule over its entries and marks them started. The pointers are trusted. */
gdm_status gdm_plan_step(struct plan *plan);

#endif
