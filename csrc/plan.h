/* A plan: the table of buffers that one step walks. Nothing is allocated while stepping. */
#ifndef GDM_PLAN_H
#define GDM_PLAN_H

#include "core.h"

struct entry {
    void *buffers[MAX_BUFFERS]; /* PARAM, GRAD, SCALE, STATE... */
    size_t n;
    unsigned group;
    unsigned char dtype;   /* an enum dtype */
    unsigned char started; /* its states have been through a step */
    unsigned char order;   /* the caller's own: in which order its elements are meant */
};

struct group {
    enum rule rule;
    int counts;      /* its options depend on the step, so that each one prepares anew */
    uint64_t steps;  /* that have been made */
    double product;  /* NAdam's, of the momenta of those */
    union args args; /* without the pointers in it */
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

struct gdm_plan {
    struct group *groups;
    size_t group_count, group_room;
    struct entry *entries;
    size_t count, room;
    struct span *written; /* what steps write to, sorted */
    size_t written_count, written_room;
    struct piece *pieces; /* and one more, behind the last */
    size_t piece_count, piece_room;
    size_t elements;
    size_t bytes;     /* that a step walks */
    unsigned threads; /* that a step may use; 0: gdm_get_num_threads */
    int fresh;        /* some entry may not have been started */
    int changed;      /* since gdm_plan_arrange */
};

/* Takes in what has been set of the entries: to be called before the first step, and when entries or states have been
 * added. GDM_ERR_OVERLAP if two of the written buffers share memory. */
gdm_status gdm_plan_arrange(gdm_plan *plan);

/* Whether a step writes to any of these bytes. */
int gdm_plan_overlaps(const gdm_plan *plan, const void *start, size_t bytes);

/* Sets a group's rule and options as gdm_plan_set_args does its options. */
gdm_status gdm_plan_configure(struct group *group, enum rule rule, const union args *args);

/* gdm_plan_step without its checks of the buffers: runs each group's rule over its entries and marks them started. */
gdm_status gdm_plan_run(gdm_plan *plan);

#endif
