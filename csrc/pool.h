/* A small pool of threads, which runs numbered tasks that do not depend on each other.
 *
 * Why not OpenMP: libgomp hangs after fork, conflicts with PyTorch's own copy of it, and waits for threads even if the
 * machine has no free core for them.
 */
#ifndef GDM_POOL_H
#define GDM_POOL_H

#include "gdm/gdm.h"
#include "internal.h"

/* Runs the task for each i below count (< 2^32), on at most this number of threads (<= GDM_MAX_THREADS), and returns
 * when all are done.
 *
 * The caller works too. Each thread starts with its own share, the same one in every run, because the data may still be
 * in its caches. Then it does tasks that other threads have not begun, from the end of their shares. The caller never
 * waits for a thread that has not begun. If another run is in progress, the caller does everything itself. */
GDM_INTERNAL void gdm_pool_run(unsigned threads, size_t count, gdm_task *run, void *context);

/* The same, but the threads are those of another pool: `spread(host, n, join, NULL)` calls join for each i < n, at the
 * same time if it can. */
GDM_INTERNAL void gdm_pool_run_on(gdm_parallel_for *spread, void *host, unsigned threads, size_t count, gdm_task *run,
                                  void *context);

/* How many threads, of at most `threads`, are worth using for this number of bytes; 0 or 1: only the caller. */
GDM_INTERNAL unsigned gdm_pool_threads_for(size_t bytes, unsigned threads);

/* The same for the threads of another pool; 0: use the own pool, since those do not seem to be awake. */
GDM_INTERNAL unsigned gdm_pool_threads_on(size_t bytes, unsigned threads);

/* How many forks there were from the process that loaded the library to this one. */
GDM_INTERNAL unsigned gdm_generation(void);

#endif
