/* The pool and the plan under stress, for the sanitizers: many callers at once, nested runs, all sizes and thread
 * counts. Prints the number of runs; exits with 1 at the first task that did not run exactly once, or wrong result. */
#define _GNU_SOURCE /* os.h */

#include "../../csrc/os.h"
#include "../../csrc/pool.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined __linux__
#include <dirent.h>
#endif

enum { CALLERS = 3, MOST = 700, ELEMENTS = 100000 };

static atomic_long runs;

static void fail(const char *what) {
    fprintf(stderr, "FAILED: %s\n", what);
    exit(1);
}

/* xorshift32, by G. Marsaglia. */
static unsigned next_random(uint32_t *random) {
    *random ^= *random << 13;
    *random ^= *random >> 17;
    *random ^= *random << 5;
    return *random;
}

/* For about this long. Sleeping takes at least 15 ms on some systems. */
static void let_others_work(int64_t ns) {
    for (const int64_t end = now_ns() + ns; HAS_THREADS && now_ns() < end;) give_way();
}

struct counts {
    unsigned char done[MOST]; /* plain bytes: each is some task's own, and the caller's after the run */
    int nested;
};

static void count_one(void *context, size_t i) {
    ((struct counts *)context)->done[i]++;
}

static void count_and_nest(void *context, size_t i) {
    struct counts inner = {{0}, 0};
    count_one(context, i);
    gdm_pool_run(4, 5, count_one, &inner);
    for (size_t k = 0; k < 5; k++)
        if (inner.done[k] != 1) fail("a task of a nested run");
}

/* Another pool: it starts a thread for each index but 0, which is the caller's. */
struct started {
    gdm_task *task;
    void *context;
    size_t i;
};

static THREAD_RESULT run_started(void *started) {
    const struct started *own = started;
    own->task(own->context, own->i);
    return 0;
}

static void spread(void *host, size_t count, gdm_task *task, void *context) {
    thread threads[16];
    struct started started[16];
    int has_thread[16] = {0};
    if (host != &runs || count > 16) fail("the arguments of another pool");
    for (size_t i = 1; i < count; i++) {
        started[i] = (struct started){task, context, i};
        has_thread[i] = start_thread(&threads[i], run_started, &started[i]);
    }
    for (size_t i = 0; i < count; i++)
        if (!has_thread[i]) task(context, i);
    for (size_t i = 1; i < count; i++)
        if (has_thread[i]) join_thread(threads[i]);
}

static void one_run(uint32_t *random) {
    struct counts counts = {{0}, 0};
    const size_t count = next_random(random) % MOST;
    const int nested = next_random(random) % 8 == 0, elsewhere = next_random(random) % 8 == 0;
    const unsigned threads = 1 + next_random(random) % 9;
    gdm_task *task = nested ? count_and_nest : count_one;
    if (elsewhere)
        gdm_pool_run_on(spread, &runs, threads, count, task, &counts);
    else
        gdm_pool_run(threads, count, task, &counts);
    for (size_t i = 0; i < MOST; i++)
        if (counts.done[i] != (i < count)) fail("a task did not run exactly once");
    atomic_fetch_add(&runs, 1);
}

/* Tasks that take long enough for every worker to join in: no more threads than asked for do, however many workers
 * there are from earlier runs. */
static atomic_uint threads_seen;

static void note_thread(void *context, size_t i) {
    static _Thread_local unsigned noted;
    (void)i;
    if (noted != *(const unsigned *)context) {
        noted = *(const unsigned *)context;
        atomic_fetch_add(&threads_seen, 1);
    }
    let_others_work(100000);
}

/* The threads of this process that bear the pool's name; 0 where that is not known. */
static unsigned workers(void) {
    unsigned found = 0;
#if defined __linux__
    DIR *tasks = opendir("/proc/self/task");
    for (struct dirent *task; tasks && (task = readdir(tasks));) {
        char path[300], name[16] = "";
        snprintf(path, sizeof path, "/proc/self/task/%s/comm", task->d_name);
        FILE *file = fopen(path, "r");
        if (file && fgets(name, sizeof name, file) && !strcmp(name, "gdm\n")) found++;
        if (file) fclose(file);
    }
    if (tasks) closedir(tasks);
#endif
    return found;
}

/* Only those that a run needs are started: the caller works, too. */
static void no_more_workers_than_needed(void) {
    for (unsigned threads = 1; threads < 6; threads++) {
        struct counts counts = {{0}, 0};
        gdm_pool_run(threads, 64, count_one, &counts);
        gdm_pool_run(threads, 64, count_one, &counts);
        if (workers() > threads - 1) fail("more workers than needed");
    }
}

static void no_more_threads_than_asked_for(void) {
    for (unsigned run = 1; run <= 40; run++) {
        const unsigned threads = run % 2 ? 8 : 2;
        atomic_store(&threads_seen, 0);
        gdm_pool_run(threads, 64, note_thread, (void *)&run);
        if (atomic_load(&threads_seen) > threads) fail("more threads than asked for");
    }
}

/* A plan of four entries, one large, one empty, stepped with changing numbers of threads: what one thread gives. */
static void one_plan(uint32_t *random) {
    static const size_t sizes[] = {ELEMENTS, 0, 7, 40000};
    const gdm_buffer none = {NULL, GDM_FLOAT32};
    gdm_buffer last_grad[2];
    double sums[2];
    gdm_plan *plans[2];
    float *memory[2];
    const gdm_momentum_args args = {.size = sizeof args, .lr = 0.1, .momentum = 0.9, .weight_decay = 0.01};
    for (int k = 0; k < 2; k++) {
        size_t group, entry;
        float *next = memory[k] = malloc(3 * sizeof(float) * (ELEMENTS + 7 + 40000));
        if (!next) fail("malloc");
        for (size_t i = 0; i < 3 * (ELEMENTS + 7 + 40000); i++) next[i] = (float)(i % 1000) * 0.01f;
        if (gdm_plan_create(&plans[k])) fail("gdm_plan_create");
        if (gdm_plan_add_group(plans[k], GDM_RULE_MOMENTUM, &args, &group)) fail("gdm_plan_add_group");
        for (int e = 0; e < 4; next += 3 * sizes[e++]) {
            const gdm_buffer velocity = {next + sizes[e], GDM_FLOAT32};
            gdm_entry_args added = GDM_ENTRY_DEFAULTS;
            added.group = group;
            added.n = sizes[e];
            added.param.data = next;
            added.grad.data = next + 2 * sizes[e];
            added.states = &velocity;
            added.state_count = 1;
            added.lr_factor = e == 3 ? 0.5 : 1;
            if (gdm_plan_add(plans[k], &added, &entry)) fail("gdm_plan_add");
            last_grad[k] = added.grad;
        }
    }
    gdm_plan_set_num_threads(plans[0], 1);
    for (int step = 0; step < 3; step++)
        for (int k = 0; k < 2; k++) {
            if (k) gdm_plan_set_num_threads(plans[k], 1 + next_random(random) % 8);
            if (gdm_plan_step(plans[k])) fail("gdm_plan_step");
            if (gdm_plan_reduce(plans[k], GDM_SUM_OF_SQUARES, &sums[k])) fail("gdm_plan_reduce");
            if (sums[k] != sums[0]) fail("the sum depends on the number of threads");
            /* In the second step one entry is left out. */
            if (gdm_plan_set_grad(plans[k], 3, step ? last_grad[k] : none)) fail("gdm_plan_set_grad");
        }
    for (size_t i = 0; i < 3 * (ELEMENTS + 7 + 40000); i++)
        if (memory[0][i] != memory[1][i]) fail("the result depends on the number of threads");
    for (int k = 0; k < 2; k++) {
        gdm_plan_destroy(plans[k]);
        free(memory[k]);
    }
    atomic_fetch_add(&runs, 1);
}

/* The same with narrow buffers and all stages, on entries whose pieces are not whole tiles; and accumulating. */
enum { LARGE = 250001, SMALL = 5003, TOGETHER = LARGE + SMALL };

struct narrow {
    uint16_t param[TOGETHER], low[TOGETHER], grad[TOGETHER], average[TOGETHER], total[TOGETHER];
    int8_t m[TOGETHER];
    uint8_t v[TOGETHER];
    float copy[TOGETHER], m_scales[TOGETHER / 128 + 2], v_scales[TOGETHER / 128 + 2];
};

static void add_narrow(gdm_plan *plan, struct narrow *its, size_t group, size_t first, size_t n) {
    const size_t block = first ? first / 128 + 1 : 0;
    const gdm_buffer states[] = {{its->m + first, GDM_INT8}, {its->v + first, GDM_INT8}};
    float *const scales[] = {its->m_scales + block, its->v_scales + block};
    gdm_entry_args added = GDM_ENTRY_DEFAULTS;
    size_t entry;
    added.group = group;
    added.n = n;
    added.param = (gdm_buffer){its->param + first, GDM_BFLOAT16};
    added.grad = (gdm_buffer){its->grad + first, GDM_BFLOAT16};
    added.average = (gdm_buffer){its->average + first, GDM_FLOAT16};
    added.copy = (gdm_buffer){its->copy + first, GDM_FLOAT32};
    if (!first) added.low_bits = its->low;
    added.states = states;
    added.state_count = 2;
    added.state_scales = scales;
    if (gdm_plan_add(plan, &added, &entry)) fail("gdm_plan_add with narrow buffers");
}

static void one_narrow_plan(uint32_t *random) {
    const gdm_adam_args args = {.size = sizeof args, .lr = 0.1, .betas = {0.9, 0.99}, .eps = 1e-8};
    gdm_step_args around = GDM_STEP_DEFAULTS;
    gdm_plan *plans[2];
    struct narrow *memory[2];
    around.max_grad_norm = 1;
    around.average_decay = 0.9;
    around.clear_grads = 1;
    around.rounding = GDM_STOCHASTIC;
    around.seed = next_random(random);
    for (int k = 0; k < 2; k++) {
        size_t group;
        memory[k] = calloc(1, sizeof *memory[k]);
        if (!memory[k]) fail("calloc");
        if (gdm_plan_create(&plans[k])) fail("gdm_plan_create");
        if (gdm_plan_add_group(plans[k], GDM_RULE_ADAM, &args, &group)) fail("gdm_plan_add_group");
        add_narrow(plans[k], memory[k], group, 0, LARGE);
        add_narrow(plans[k], memory[k], group, LARGE, SMALL);
        if (gdm_plan_set_step_args(plans[k], &around)) fail("gdm_plan_set_step_args");
    }
    gdm_plan_set_num_threads(plans[0], 1);
    for (int step = 0; step < 2; step++)
        for (int k = 0; k < 2; k++) {
            const gdm_buffer total = {memory[k]->total, GDM_BFLOAT16}, grad = {memory[k]->grad, GDM_BFLOAT16};
            const size_t n = TOGETHER;
            if (k) gdm_plan_set_num_threads(plans[k], 1 + next_random(random) % 8);
            for (size_t i = 0; i < TOGETHER; i++) memory[k]->grad[i] = (uint16_t)(0x3c00 + (i + (size_t)step) % 1000);
            if (gdm_accumulate(&total, &grad, &n, 1, 0.5)) fail("gdm_accumulate");
            if (gdm_plan_step(plans[k])) fail("gdm_plan_step with narrow buffers");
        }
    if (memcmp(memory[0], memory[1], sizeof *memory[0])) fail("the result of narrow buffers depends on the threads");
    for (int k = 0; k < 2; k++) {
        gdm_plan_destroy(plans[k]);
        free(memory[k]);
    }
    atomic_fetch_add(&runs, 1);
}

static THREAD_RESULT caller(void *seed) {
    uint32_t random = (uint32_t)(size_t)seed;
    const time_t end = time(NULL) + 4;
    while (time(NULL) < end) {
        for (int i = 0; i < 50; i++) one_run(&random);
        if (next_random(&random) % 2)
            one_plan(&random);
        else
            one_narrow_plan(&random);
        /* Now and then long enough for the workers to fall asleep. */
        if (next_random(&random) % 4 == 0) let_others_work(200000);
    }
    return 0;
}

int main(void) {
    thread threads[CALLERS];
    size_t started = 0;
    no_more_workers_than_needed();
    no_more_threads_than_asked_for();
    while (started < CALLERS - 1 && start_thread(&threads[started], caller, (void *)(started + 1))) started++;
    if (HAS_THREADS && started < CALLERS - 1) fail("a thread that does not start");
    caller((void *)(started + 1)); /* this thread is one of them; without threads, the only one */
    for (size_t i = 0; i < started; i++) join_thread(threads[i]);
    printf("%ld runs\n", atomic_load(&runs));
    return 0;
}
