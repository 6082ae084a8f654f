/* How many threads a step may use. */
#define _GNU_SOURCE /* sched_getaffinity */

#include "gdm/gdm.h"

#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The positive whole number at the beginning of the variable ("4", or OpenMP's "4,2"); 0 if there is none. */
static long from_environment(const char *name) {
    const char *text = getenv(name);
    if (!text) return 0;
    char *end;
    const long n = strtol(text, &end, 10);
    return end != text && (*end == '\0' || *end == ',') && n > 0 ? n : 0;
}

static long cpus(void) {
#if defined __linux__
    cpu_set_t set;
    if (!sched_getaffinity(0, sizeof set, &set)) return CPU_COUNT(&set);
#endif
    return sysconf(_SC_NPROCESSORS_ONLN);
}

/* The CPUs that a cgroup allows, quota / period, rounded up; 0 without a limit. Without a second file both numbers are
 * in the first one (cgroup v2, where "max" means no limit). */
static long quota(const char *path, const char *period_path) {
    double quota = 0, period = 0;
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    int found = fscanf(file, "%lf", &quota);
    if (!period_path) found += fscanf(file, "%lf", &period);
    fclose(file);
    if (period_path && (file = fopen(period_path, "r"))) {
        found += fscanf(file, "%lf", &period);
        fclose(file);
    }
    return found == 2 && quota > 0 && period > 0 ? (long)((quota + period - 1) / period) : 0;
}

static long quota_of_cgroup(void) {
    char line[512], path[600];
    long least = quota("/sys/fs/cgroup/cpu.max", NULL);
    if (!least) least = quota("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us");
    FILE *file = fopen("/proc/self/cgroup", "r");
    while (file && fgets(line, sizeof line, file)) {
        if (strncmp(line, "0::/", 4)) continue;
        line[strcspn(line, "\n")] = '\0';
        snprintf(path, sizeof path, "/sys/fs/cgroup%s/cpu.max", line + 3);
        const long own = quota(path, NULL);
        if (own && (!least || own < least)) least = own;
    }
    if (file) fclose(file);
    return least;
}

static long default_threads(void) {
    long n = from_environment("GDM_NUM_THREADS");
    if (!n) n = from_environment("OMP_NUM_THREADS");
    if (!n) {
        n = cpus();
        const long allowed = quota_of_cgroup();
        if (allowed && allowed < n) n = allowed;
    }
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
