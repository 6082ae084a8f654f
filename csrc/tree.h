/* The fixed tree in which the results of blocks are combined: see gdm.h. */
#ifndef GDM_TREE_H
#define GDM_TREE_H

#include "core.h"

static inline double combine(gdm_reduction reduction, double a, double b) {
    if (reduction != GDM_LARGEST_MAGNITUDE) return a + b;
    return a != a || a > b ? a : b; /* NaN if one of them is NaN */
}

/* Combines results one by one. It works like a binary counter: if bit k of count is set, part[k] is the combination of
 * 2^k results in a row. */
struct tree {
    double part[64];
    uint64_t count;
};

static inline void add_result(struct tree *tree, gdm_reduction reduction, double result) {
    int k = 0;
    for (; tree->count >> k & 1; k++) result = combine(reduction, tree->part[k], result);
    tree->part[k] = result;
    tree->count++;
}

/* All results combined; 0 if there are none. */
static inline double total(const struct tree *tree, gdm_reduction reduction) {
    double sum = 0;
    int found = 0;
    for (int k = 0; k < 64; k++)
        if (tree->count >> k & 1) {
            sum = found ? combine(reduction, tree->part[k], sum) : tree->part[k];
            found = 1;
        }
    return sum;
}

#endif
