/* A small pool of threads for one thing: to run numbered tasks that do not depend on each other.
 *
 * Why not OpenMP: libgomp hangs after fork, clashes with the copy that PyTorch brings, and waits for threads that the
 * machine has no core for.
 */
#ifndef GDM_POOL_H
#define GDM_POOL_H

#include "gdm/gdm.h"

/* Runs the task for each i below count (< 2^32), on up to so many threads, and returns when all are done.
 *
 * The caller works too. Each thread begins with a share of its own, the same one in every run, so that it finds in its
 * caches what it left there; then it takes over, from the end, what others have not begun. The caller never waits for a
 * thread that has not begun. In a run within a run, or next to one, the caller does everything. */
void gdm_pool_run(unsigned threads, size_t count, gdm_task *run, void *context);

/* How many of these threads it is worth using to walk so many bytes; 0 or 1: do it alone. */
unsigned gdm_pool_threads_for(size_t bytes, unsigned threads);

/* How many forks lie between this process and the one that loaded the library. */
unsigned gdm_generation(void);

#endif
