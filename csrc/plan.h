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
};

struct group {
    enum rule rule;
    struct prepared prepared;
};

/* Memory from start up to, and without, end. */
struct span {
    uintptr_t start, end;
};

struct plan {
    struct group *groups;
    size_t group_count;
    struct entry *entries;
    size_t count;
    struct span *written; /* what steps write to, sorted, disjoint */
    size_t written_count;
};

/* Room for so many groups and entries, all zero; GDM_ERR_MEMORY leaves an empty plan. */
gdm_status gdm_plan_init(struct plan *plan, size_t groups, size_t entries);
void gdm_plan_free(struct plan *plan);

/* Looks again at where the parameters and states are: to be called when any has been set. */
void gdm_plan_written(struct plan *plan);

/* Whether a step writes to any of these bytes. */
int gdm_plan_overlaps(const struct plan *plan, const void *start, size_t bytes);

/* Runs each group's rule over its entries and marks them started. The pointers are trusted. */
gdm_status gdm_plan_step(struct plan *plan);

#endif
