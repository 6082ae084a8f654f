/* How many threads a step may use. */
#define _GNU_SOURCE /* sched_getaffinity */

#include "gdm/gdm.h"

#include "os.h"

#include <stdatomic.h>
#include <stdlib.h>

/* The positive whole number at the beginning of the variable ("4", or OpenMP's "4,2"); 0 if there is none. */
static long from_environment(const char *name) {
    const char *text = getenv(name);
    if (!text) return 0;
    char *end;
    const long n = strtol(text, &end, 10);
    return end != text && (*end == '\0' || *end == ',') && n > 0 ? n : 0;
}

static long default_threads(void) {
    long n = from_environment("GDM_NUM_THREADS");
    if (!n) n = from_environment("OMP_NUM_THREADS");
    if (!n) n = usable_cpus();
    return n < 1 ? 1 : n > GDM_MAX_THREADS ? GDM_MAX_THREADS : n;
}

static atomic_int threads; /* 0: not known yet */

int gdm_get_num_threads(void) {
    int n = atomic_load_explicit(&threads, memory_order_relaxed);
    if (n) return n;
    int unknown = 0;
    n = (int)default_threads();
    return atomic_compare_exchange_strong(&threads, &unknown, n) ? n : unknown;
}

gdm_status gdm_set_num_threads(int n) {
    if (n < 1 || n > GDM_MAX_THREADS) return GDM_ERR_THREADS;
    atomic_store(&threads, n);
    return GDM_OK;
}
