/* os.h for systems without threads: WebAssembly, unless it is compiled with -pthread, and all systems with
 * -DGDM_NO_THREADS. No thread can be started, so the caller of a run does everything. */
#define HAS_THREADS 0
#define HAS_FORK 0

/* Nothing is ever waited for. */
static inline int64_t now_ns(void) {
    return 0;
}

static inline void give_way(void) {
}

struct monitor {
    char unused;
};
#define MONITOR {0}

static inline void enter(struct monitor *monitor) {
    (void)monitor;
}

static inline void leave(struct monitor *monitor) {
    (void)monitor;
}

static inline void sleep_in(struct monitor *monitor) {
    (void)monitor;
}

static inline void wake_all_in(struct monitor *monitor) {
    (void)monitor;
}

typedef char thread;
#define THREAD_RESULT int

static inline int start_thread(thread *out, THREAD_RESULT (*run)(void *), void *context) {
    (void)out, (void)run, (void)context;
    return 0;
}

static inline void join_thread(thread which) {
    (void)which;
}

static inline void name_this_thread(void) {
}

static inline int this_thread(void) {
    return 0;
}

static inline int64_t cpu_time_of(int which) {
    (void)which;
    return -1;
}

static inline long usable_cpus(void) {
    return 1;
}
