#define _GNU_SOURCE /* pthread_setname_np, syscall */

#include "pool.h"

#include "fp_mode.h"
#include "os.h"

#include <stdatomic.h>

/* How long a worker without work looks for new work before it sleeps: long enough for the gap between the steps of a
 * tight loop, too short to take a core from other programs. */
#define SPIN_NS 20000

/* How many bytes each thread must have for it to be worth using. Giving work to threads that look for it costs about
 * 0.3 us. Waking them costs 11 us, and they may begin much later (see docs/decisions.md). If steps follow each other so
 * closely that the threads stay awake, the smaller size holds. */
#define SHARE_IF_AWAKE (512 << 10)
#define SHARE_IF_ASLEEP (4 << 20)
#define STEPS_OF_A_LOOP 16

/* The same for the threads of another pool, which are only used while they are awake; and for how long a step looks
 * whether they are. */
#define SHARE_ELSEWHERE (256 << 10)
#define LOOK_NS 2000

/* If the caller waits STALL_NS for a worker inside a run, another program has the worker's core. Then the next
 * STEPS_ALONE steps do not use the pool, and no step does for TIMES_ALONE times the wait. So neither the mean nor the
 * 95th percentile of a step's time gets worse. Both numbers double, at most MOST_DOUBLINGS times, if it happens again
 * before GOOD_RUNS runs without such a wait. A caller that worked for LONG_NS may wait 1 / STALL_SHARE of that time:
 * its step is still faster than without the pool. */
#define STALL_NS 150000
#define LONG_NS 1000000
#define STALL_SHARE 4
#define STEPS_ALONE 32
#define TIMES_ALONE 16
#define GOOD_RUNS 64
#define MOST_DOUBLINGS 5

/* The tasks that a thread still has: from front (the high half) to back - 1 (the low half). It has its own cache line.
 */
struct share {
    _Alignas(64) _Atomic uint64_t left;
};

static struct {
    atomic_int running;    /* 1 during a run; the caller of a run sets it */
    _Atomic uint64_t gate; /* OPEN while workers may join the run, plus the number of workers inside the run */
    atomic_uint epoch;     /* counts the runs, so that a worker sees that there is a new one */
    atomic_uint awake;     /* workers that look for work without sleeping */
    atomic_int asleep;     /* some worker may be asleep; workers set it, the thread that wakes them clears it */
    atomic_int stop;
    _Atomic int64_t alone_until; /* see STALL_NS; 0: steps may use the pool */
    atomic_int steps_alone;

    /* The run: written while the gate is closed and no worker is inside. */
    gdm_task *task;
    void *context;
    unsigned threads;
    struct share shares[GDM_MAX_THREADS];

    unsigned workers; /* how many have been started; only the caller of a run starts more */
    thread handles[GDM_MAX_THREADS];
    struct monitor sleepers; /* workers sleep in it */
} pool = {.sleepers = MONITOR};

static const uint64_t OPEN = (uint64_t)1 << 32;

/* ---- a run ---------------------------------------------------------------------------------------------------- */

enum end { FRONT, BACK };

/* Claims one task from an end of the share; returns 0 if none is left. */
static int claim(struct share *from, enum end end, size_t *i) {
    uint64_t old = atomic_load_explicit(&from->left, memory_order_relaxed);
    for (;;) {
        const uint64_t front = old >> 32, back = old & UINT32_MAX;
        if (front >= back) return 0;
        *i = end == FRONT ? front : back - 1;
        const uint64_t rest = end == FRONT ? old + OPEN : old - 1;
        if (atomic_compare_exchange_weak_explicit(&from->left, &old, rest, memory_order_relaxed, memory_order_relaxed))
            return 1;
    }
}

/* One thread's part of a run: its own share from the front, then the shares of the others from the back. */
static void do_tasks(unsigned self) {
    size_t i;
    while (claim(&pool.shares[self], FRONT, &i)) pool.task(pool.context, i);
    for (unsigned k = 1; k < pool.threads; k++)
        while (claim(&pool.shares[(self + k) % pool.threads], BACK, &i)) pool.task(pool.context, i);
}

/* A worker goes in only while the gate is open. So when the caller has closed it, no more workers go in. */
static int go_in(void) {
    uint64_t gate = atomic_load_explicit(&pool.gate, memory_order_relaxed);
    while (gate & OPEN)
        if (atomic_compare_exchange_weak_explicit(&pool.gate, &gate, gate + 1, memory_order_acquire,
                                                  memory_order_relaxed))
            return 1;
    return 0;
}

static void go_out(void) {
    atomic_fetch_sub_explicit(&pool.gate, 1, memory_order_release);
}

/* Waits for a new run: first awake, for a short time, then asleep. */
static void wait_for_run(unsigned seen) {
    atomic_fetch_add(&pool.awake, 1);
    const int64_t end = now_ns() + SPIN_NS;
    do {
        for (int i = 0; i < 64; i++) {
            if (atomic_load_explicit(&pool.epoch, memory_order_acquire) != seen) {
                atomic_fetch_sub(&pool.awake, 1);
                return;
            }
            pause_briefly();
        }
    } while (now_ns() < end);
    atomic_fetch_sub(&pool.awake, 1);

    enter(&pool.sleepers);
    for (;;) {
        atomic_store(&pool.asleep, 1); /* before the last look at epoch: see run_together */
        if (atomic_load(&pool.epoch) != seen || atomic_load(&pool.stop)) break;
        sleep_in(&pool.sleepers);
    }
    leave(&pool.sleepers);
}

static THREAD_RESULT worker(void *index) {
    const unsigned self = (unsigned)(uintptr_t)index;
    unsigned seen = 0;
    name_this_thread();
    set_default_fp_mode(); /* a new thread has the mode of the thread that started it */
    while (!atomic_load(&pool.stop)) {
        wait_for_run(seen);
        seen = atomic_load_explicit(&pool.epoch, memory_order_acquire);
        if (go_in()) {
            if (self < pool.threads) do_tasks(self);
            go_out();
        }
    }
    return 0;
}

/* Decides, from how long the caller of the run worked and then waited, whether the next steps use the pool. */
static void judge(int64_t worked, int64_t waited, int64_t now) {
    static int doublings, good_runs = GOOD_RUNS;
    if (waited < STALL_NS || (worked > LONG_NS && waited < worked / STALL_SHARE)) {
        good_runs += good_runs < GOOD_RUNS;
        return;
    }
    doublings = good_runs >= GOOD_RUNS ? 0 : doublings < MOST_DOUBLINGS ? doublings + 1 : doublings;
    good_runs = 0;
    atomic_store_explicit(&pool.steps_alone, STEPS_ALONE << doublings, memory_order_relaxed);
    atomic_store_explicit(&pool.alone_until, now + (TIMES_ALONE * waited << doublings), memory_order_relaxed);
}

/* Whether the next step should not use the pool. */
static int is_left_alone(void) {
    const int64_t until = atomic_load_explicit(&pool.alone_until, memory_order_relaxed);
    if (!until) return 0;
    const int steps = atomic_fetch_sub_explicit(&pool.steps_alone, 1, memory_order_relaxed);
    if (steps > 0 || now_ns() < until) return 1;
    atomic_store_explicit(&pool.alone_until, 0, memory_order_relaxed);
    return 0;
}

static void wait_for_those_inside(int64_t run_began) {
    int64_t begin = 0;
    for (int spins = 0; atomic_load_explicit(&pool.gate, memory_order_acquire) != 0; spins++) {
        if (spins < 1000) {
            pause_briefly();
        } else {
            if (!begin) begin = now_ns();
            give_way(); /* a worker inside may need this core */
        }
    }
    const int64_t now = begin ? now_ns() : 0;
    judge(begin - run_began, now - begin, now);
}

static void share_out(unsigned threads, size_t count, gdm_task *run, void *context) {
    pool.task = run;
    pool.context = context;
    pool.threads = threads;
    for (unsigned t = 0; t < threads; t++) {
        const uint64_t front = (uint64_t)count * t / threads, back = (uint64_t)count * (t + 1) / threads;
        atomic_store_explicit(&pool.shares[t].left, front << 32 | back, memory_order_relaxed);
    }
}

static void wake_workers(void) {
    enter(&pool.sleepers);
    wake_all_in(&pool.sleepers);
    leave(&pool.sleepers);
}

static void run_together(unsigned threads, size_t count, gdm_task *run, void *context) {
    const int64_t began = now_ns();
    share_out(threads, count, run, context);
    atomic_store_explicit(&pool.gate, OPEN, memory_order_release);
    /* Sequentially consistent, as in wait_for_run: either the worker sees the new epoch, or we see that it sleeps. */
    atomic_fetch_add(&pool.epoch, 1);
    if (atomic_exchange(&pool.asleep, 0)) wake_workers();
    do_tasks(0);
    atomic_fetch_and_explicit(&pool.gate, ~OPEN, memory_order_relaxed);
    wait_for_those_inside(began);
}

/* ---- threads: started when first needed, ended at exit ---------------------------------------------------------- */

static atomic_uint generation;

unsigned gdm_generation(void) {
    return atomic_load_explicit(&generation, memory_order_relaxed);
}

#if HAS_FORK
/* The child of a fork has no workers, so the pool must start again from its first state. */
static void start_anew(void) {
    atomic_store(&pool.running, 0);
    atomic_store(&pool.gate, 0);
    atomic_store(&pool.epoch, 0);
    atomic_store(&pool.awake, 0);
    atomic_store(&pool.asleep, 0);
    atomic_store(&pool.alone_until, 0);
    pool.workers = 0;
    pool.sleepers = (struct monitor)MONITOR;
    atomic_fetch_add(&generation, 1);
}

__attribute__((constructor)) static void at_load(void) {
    pthread_atfork(NULL, NULL, start_anew);
}

/* Before exit, and before the library is unloaded. */
__attribute__((destructor)) static void at_exit(void) {
    atomic_store(&pool.stop, 1);
    atomic_fetch_add(&pool.epoch, 1);
    wake_workers();
    for (unsigned i = 0; i < pool.workers; i++) join_thread(pool.handles[i]);
    pool.workers = 0;
}
#endif

/* Starts workers until there are this many. Fewer are not an error. */
static void start_workers(unsigned wanted) {
    while (pool.workers < wanted) {
        const unsigned next = pool.workers + 1;
        if (!start_thread(&pool.handles[pool.workers], worker, (void *)(uintptr_t)next)) break;
        pool.workers = next;
    }
}

static gdm_parallel_for *hosts_way;
static void *host;

void gdm_set_parallel_for(gdm_parallel_for *parallel_for, void *handed_on) {
    hosts_way = parallel_for;
    host = handed_on;
}

struct hosted {
    gdm_task *run;
    void *context;
};

/* A host's threads may be in any floating-point mode. */
static void run_hosted(void *context, size_t i) {
    const struct hosted *hosted = context;
    const fp_mode found = set_default_fp_mode();
    hosted->run(hosted->context, i);
    restore_fp_mode(found);
}

void gdm_pool_run(unsigned threads, size_t count, gdm_task *run, void *context) {
    if (hosts_way) {
        hosts_way(host, count, run_hosted, &(struct hosted){run, context});
        return;
    }
    if (threads > count) threads = (unsigned)count;
    int free_ = 0;
    if (threads > 1 && !atomic_load(&pool.stop) && atomic_compare_exchange_strong(&pool.running, &free_, 1)) {
        if (pool.workers < threads - 1) start_workers(threads - 1);
        run_together(pool.workers + 1 < threads ? pool.workers + 1 : threads, count, run, context);
        atomic_store(&pool.running, 0);
    } else {
        for (size_t i = 0; i < count; i++) run(context, i);
    }
}

/* ---- a run on the threads of another pool ----------------------------------------------------------------------- */

/* A thread of the other pool that has worked in the last run there; 0 before the first. */
static atomic_int other_thread;

/* What one thread of the other pool does. The caller of the run does the part of index 0. */
static void join(void *context, size_t self) {
    (void)context;
    const fp_mode found = set_default_fp_mode();
    if (self == 1) atomic_store_explicit(&other_thread, this_thread(), memory_order_relaxed);
    do_tasks((unsigned)self);
    restore_fp_mode(found);
}

void gdm_pool_run_on(gdm_parallel_for *spread, void *elsewhere, unsigned threads, size_t count, gdm_task *run,
                     void *context) {
    int free_ = 0;
    if (threads > count) threads = (unsigned)count;
    if (threads > 1 && atomic_compare_exchange_strong(&pool.running, &free_, 1)) {
        share_out(threads, count, run, context);
        spread(elsewhere, threads, join, NULL);
        atomic_store(&pool.running, 0);
    } else {
        for (size_t i = 0; i < count; i++) run(context, i);
    }
}

/* Whether the threads of the other pool are awake. OpenMP's look for work for a while after each parallel region, and
 * keep the cores busy meanwhile. Then a run must use them, since threads of our own would have to compete with them. If
 * they sleep, a run must not use them: it would wait for each of them to wake up, which took up to 4 ms. */
static int others_are_awake(void) {
    const int one = atomic_load_explicit(&other_thread, memory_order_relaxed);
    const int64_t before = one ? cpu_time_of(one) : -1;
    if (before < 0) return 1; /* not known: the next run finds out */
    const int64_t begin = now_ns();
    int64_t now;
    do {
        pause_briefly();
        now = now_ns();
    } while (now - begin < LOOK_NS);
    const int64_t after = cpu_time_of(one);
    return after < 0 || 2 * (after - before) > now - begin;
}

unsigned gdm_pool_threads_on(size_t bytes, unsigned threads) {
    if (threads < 2 || bytes < 2 * SHARE_ELSEWHERE || !others_are_awake()) return 0;
    return bytes / SHARE_ELSEWHERE < threads ? (unsigned)(bytes / SHARE_ELSEWHERE) : threads;
}

/* ---- how many threads ------------------------------------------------------------------------------------------- */

/* Whether the last STEPS_OF_A_LOOP steps followed each other so closely that workers stay awake between them. */
static int in_a_tight_loop(size_t bytes) {
    static _Atomic int64_t last;
    static atomic_uint steps;
    const int64_t now = now_ns(), before = atomic_exchange_explicit(&last, now, memory_order_relaxed);
    const int64_t fast_step = (int64_t)(bytes / 50); /* at 50 GB/s */
    if (now - before < SPIN_NS + fast_step)
        return atomic_fetch_add_explicit(&steps, 1, memory_order_relaxed) >= STEPS_OF_A_LOOP;
    atomic_store_explicit(&steps, 0, memory_order_relaxed);
    return 0;
}

unsigned gdm_pool_threads_for(size_t bytes, unsigned threads) {
    if (threads < 2 || bytes < 2 * SHARE_IF_AWAKE) return 1;
    if (hosts_way) return threads; /* only the host knows what its threads cost */
    if (is_left_alone()) return 1;
    size_t share = SHARE_IF_AWAKE;
    if (!atomic_load_explicit(&pool.awake, memory_order_relaxed) && !in_a_tight_loop(bytes)) share = SHARE_IF_ASLEEP;
    return bytes / share < threads ? (unsigned)(bytes / share) : threads;
}
