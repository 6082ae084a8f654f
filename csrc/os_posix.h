/* os.h for Linux (glibc and musl), macOS and other systems with POSIX threads. The C file that includes it defines
 * _GNU_SOURCE before its first header. */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#if defined __linux__
#include <sys/syscall.h>
#elif defined __APPLE__
#include <sys/sysctl.h>
#endif

#define HAS_THREADS 1
#define HAS_FORK 1

static inline int64_t in_ns(struct timespec t) {
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return in_ns(t);
}

static inline void give_way(void) {
    sched_yield();
}

struct monitor {
    pthread_mutex_t lock;
    pthread_cond_t wake;
};
#define MONITOR {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER}

static inline void enter(struct monitor *monitor) {
    pthread_mutex_lock(&monitor->lock);
}

static inline void leave(struct monitor *monitor) {
    pthread_mutex_unlock(&monitor->lock);
}

static inline void sleep_in(struct monitor *monitor) {
    pthread_cond_wait(&monitor->wake, &monitor->lock);
}

static inline void wake_all_in(struct monitor *monitor) {
    pthread_cond_broadcast(&monitor->wake);
}

typedef pthread_t thread;
#define THREAD_RESULT void *

static inline int start_thread(thread *out, THREAD_RESULT (*run)(void *), void *context) {
    sigset_t all, before;
    pthread_attr_t attributes;
    sigfillset(&all); /* the new thread inherits this mask: signals go to the program's own threads */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, THREAD_STACK);
    const int failed = pthread_create(out, &attributes, run, context);
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
#if defined __linux__
    if (!failed) pthread_setname_np(*out, "gdm");
#endif
    return !failed;
}

static inline void join_thread(thread which) {
    pthread_join(which, NULL);
}

/* Elsewhere start_thread() has done it. */
static inline void name_this_thread(void) {
#if defined __APPLE__
    pthread_setname_np("gdm");
#endif
}

#if defined __linux__
static inline int this_thread(void) {
    return (int)syscall(SYS_gettid);
}

static inline int64_t cpu_time_of(int which) {
    const clockid_t clock = (clockid_t)(~(unsigned)which << 3 | 6); /* as pthread_getcpuclockid() of libc computes it */
    struct timespec t;
    return clock_gettime(clock, &t) ? -1 : in_ns(t);
}
#else
static inline int this_thread(void) {
    return 0;
}

static inline int64_t cpu_time_of(int which) {
    (void)which;
    return -1;
}
#endif

/* ---- how many CPUs ---------------------------------------------------------------------------------------------- */

#if defined __linux__
/* The CPUs that a cgroup allows, quota / period, rounded up; 0 without a limit. Without a second file both numbers are
 * in the first one (cgroup v2, where "max" means no limit). */
static inline long quota(const char *path, const char *period_path) {
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

/* The smaller of two limits, of which 0 means none. */
static inline long smaller_limit(long a, long b) {
    return !a || (b && b < a) ? b : a;
}

enum { CGROUP_LINE = 4200 }; /* a line of /proc/self/cgroup: a path and a little more */

/* The least limit of a cgroup and of all that it lies in, since each of them holds. The path is "/a/b", "/" or "", and
 * is changed: its last part is cut off again and again. */
static inline long least_quota(char *path, int version) {
    char file[CGROUP_LINE + 64], period_file[CGROUP_LINE + 64];
    long least = 0;
    for (;;) {
        if (version == 2) {
            snprintf(file, sizeof file, "/sys/fs/cgroup%s/cpu.max", path);
            least = smaller_limit(least, quota(file, NULL));
        } else {
            snprintf(file, sizeof file, "/sys/fs/cgroup/cpu%s/cpu.cfs_quota_us", path);
            snprintf(period_file, sizeof period_file, "/sys/fs/cgroup/cpu%s/cpu.cfs_period_us", path);
            least = smaller_limit(least, quota(file, period_file));
        }
        char *last = strrchr(path, '/');
        if (!last) return least;
        *last = '\0';
    }
}

/* Whether "cpu" is one of these names, which commas separate. */
static inline int has_cpu(const char *names) {
    for (;;) {
        const size_t length = strcspn(names, ",");
        if (length == 3 && !memcmp(names, "cpu", 3)) return 1;
        if (!names[length]) return 0;
        names += length + 1;
    }
}

static inline long quota_of_cgroup(void) {
    char line[CGROUP_LINE], root[] = "";
    long least = smaller_limit(least_quota(root, 2), least_quota(root, 1));
    FILE *file = fopen("/proc/self/cgroup", "r");
    while (file && fgets(line, sizeof line, file)) { /* "0::/path" of version 2, "4:cpu,cpuacct:/path" of version 1 */
        char *controllers = strchr(line, ':'), *path = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!path) continue;
        *path++ = '\0';
        path[strcspn(path, "\n")] = '\0';
        if (!strcmp(line, "0:")) least = smaller_limit(least, least_quota(path, 2));
        if (has_cpu(controllers + 1)) least = smaller_limit(least, least_quota(path, 1));
    }
    if (file) fclose(file);
    return least;
}

static inline long usable_cpus(void) {
    cpu_set_t set;
    const long n = sched_getaffinity(0, sizeof set, &set) ? sysconf(_SC_NPROCESSORS_ONLN) : CPU_COUNT(&set);
    const long allowed = quota_of_cgroup();
    return allowed && allowed < n ? allowed : n;
}
#elif defined __APPLE__
/* The performance cores, where there are two kinds. Each thread of a step gets an equal share first. An efficiency core
 * would be late with its share, and the performance cores use most of the memory's bandwidth without it. */
static inline long usable_cpus(void) {
    int n = 0;
    size_t size = sizeof n;
    if (!sysctlbyname("hw.perflevel0.logicalcpu", &n, &size, NULL, 0) && n > 0) return n;
    return sysconf(_SC_NPROCESSORS_ONLN);
}
#else
static inline long usable_cpus(void) {
    return sysconf(_SC_NPROCESSORS_ONLN);
}
#endif
