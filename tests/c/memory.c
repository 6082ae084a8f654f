/* Memory and threads that are not to be had, at each call that asks for them. Linked with --wrap, so that the core's
 * calls come here first. Prints how many failures there were, a line for each operation; exits with 1 at the first
 * thing that is wrong. */
#define _GNU_SOURCE

#include "../../csrc/plan.h"
#include "../../csrc/pool.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static void fail(const char *what, size_t k) {
    fprintf(stderr, "FAILED: %s, failure %zu\n", what, k);
    exit(1);
}

/* ---- the functions that can fail -------------------------------------------------------------------------------- */

static size_t allocations, fail_at, blocks; /* the fail_at-th allocation from now fails; 0: none does */

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *old, size_t n);
void __real_free(void *memory);
int __real_pthread_create(pthread_t *handle, const pthread_attr_t *attributes, void *(*run)(void *), void *argument);

static int fails(void) {
    allocations++;
    return fail_at && allocations == fail_at;
}

static void *count_block(void *memory) {
    blocks += memory != NULL;
    return memory;
}

void *__wrap_malloc(size_t n) {
    return fails() ? NULL : count_block(__real_malloc(n));
}

void *__wrap_calloc(size_t n, size_t size) {
    return fails() ? NULL : count_block(__real_calloc(n, size));
}

void *__wrap_realloc(void *old, size_t n) {
    if (fails()) return NULL;
    void *moved = __real_realloc(old, n);
    blocks += moved && !old;
    return moved;
}

void __wrap_free(void *memory) {
    blocks -= memory != NULL;
    __real_free(memory);
}

static size_t threads_wanted, first_refused, last_refused;

int __wrap_pthread_create(pthread_t *handle, const pthread_attr_t *attributes, void *(*run)(void *), void *argument) {
    threads_wanted++;
    if (threads_wanted >= first_refused && threads_wanted <= last_refused) return EAGAIN;
    return __real_pthread_create(handle, attributes, run, argument);
}

static void fail_from_now(size_t k) {
    allocations = 0;
    fail_at = k;
}

/* ---- a plan, and all that can be seen of it --------------------------------------------------------------------- */

enum { MOST = 9, N = 3 * PIECE + 5, FIRST = 700 };

/* Two plans with the same calls behind them have the same bytes here. */
struct numbers {
    float param[MOST][N], momentum[MOST][N], copy[MOST][N], average[MOST][N];
    size_t count, groups;
    uint64_t steps[MOST], group_steps[MOST];
    gdm_step_report report;
};

struct world {
    gdm_plan *plan;
    size_t groups, entries; /* asked for so far */
    float grad[N];
    struct numbers its;
};

static struct world worlds[2];

static gdm_status add_group(struct world *world) {
    gdm_nadam_args options = GDM_NADAM_DEFAULTS;
    size_t group = 99;
    options.lr = 0.01 * (double)(1 + world->groups);
    const gdm_status status = gdm_plan_add_group(world->plan, GDM_RULE_NADAM, &options, &group);
    if (!status && group != world->groups) fail("the index of a group", fail_at);
    if (status && group != 99) fail("an index although there is no group", fail_at);
    world->groups += !status;
    return status;
}

static gdm_status add_entry(struct world *world) {
    const size_t i = world->entries, n = i % 2 ? N : FIRST + i;
    struct numbers *its = &world->its;
    const gdm_buffer states[] = {{its->momentum[i], GDM_FLOAT32}, {its->copy[i], GDM_FLOAT32}};
    gdm_entry_args added = GDM_ENTRY_DEFAULTS;
    size_t entry = 99;
    added.group = i % world->groups;
    added.n = n;
    added.param = (gdm_buffer){its->param[i], GDM_FLOAT32};
    added.grad = (gdm_buffer){world->grad, GDM_FLOAT32};
    added.average = (gdm_buffer){its->average[i], GDM_FLOAT32};
    added.states = states;
    added.state_count = 2;
    added.lr_factor = i % 3 ? 1 : 0.5;
    const gdm_status status = gdm_plan_add(world->plan, &added, &entry);
    if (!status && entry != i) fail("the index of an entry", fail_at);
    if (status && entry != 99) fail("an index although there is no entry", fail_at);
    world->entries += !status;
    return status;
}

static gdm_status create(struct world *world) {
    const gdm_status status = gdm_plan_create(&world->plan);
    if (status && world->plan) fail("a plan that could not be made", fail_at);
    return status;
}

static gdm_status around_the_rule(struct world *world) {
    gdm_step_args around = GDM_STEP_DEFAULTS;
    around.max_grad_norm = 1;
    around.average_decay = 0.9;
    return gdm_plan_set_step_args(world->plan, &around);
}

static gdm_status step(struct world *world) {
    return gdm_plan_step(world->plan);
}

static void must(gdm_status status, const char *what) {
    if (status) fail(what, fail_at);
}

static void begin(struct world *world) {
    memset(world, 0, sizeof *world);
    for (size_t i = 0; i < N; i++) world->grad[i] = (float)(i % 89) - 40.5f;
}

/* A plan that has made a step with so many groups and entries. */
static void build(struct world *world, size_t groups, size_t entries) {
    begin(world);
    must(create(world), "create");
    while (world->groups < groups) must(add_group(world), "add a group");
    while (world->entries < entries) must(add_entry(world), "add an entry");
    must(around_the_rule(world), "gdm_plan_set_step_args");
    must(step(world), "step");
}

static void end(struct world *world) {
    gdm_plan_destroy(world->plan);
    if (blocks) fail("memory that is not given back", fail_at);
}

static const struct numbers *look(struct world *world) {
    struct numbers *its = &world->its;
    its->report = (gdm_step_report){.size = sizeof its->report};
    its->count = its->groups = 0;
    while (!gdm_plan_get_progress(world->plan, its->count, &its->steps[its->count], NULL)) its->count++;
    while (!gdm_plan_get_group_steps(world->plan, its->groups, &its->group_steps[its->groups])) its->groups++;
    must(gdm_plan_get_report(world->plan, &its->report), "gdm_plan_get_report");
    return its;
}

static void compare(const char *what, size_t k) {
    if (memcmp(look(&worlds[0]), look(&worlds[1]), sizeof worlds->its)) fail(what, k);
}

/* ---- memory ----------------------------------------------------------------------------------------------------- */

/* Lets each allocation of an operation fail, in a plan of so many groups and entries. The plan is as before, goes on as
 * if the call had never been made, and the same call then has its result. Returns the number of failures. */
static size_t each_failure(const char *what, gdm_status (*operation)(struct world *), size_t groups, size_t entries) {
    size_t failures = 0;
    for (size_t k = 1;; k++) {
        struct world *world = &worlds[0], *untouched = &worlds[1];
        build(untouched, groups, entries);
        const size_t before = blocks;
        build(world, groups, entries);
        fail_from_now(k);
        const gdm_status status = operation(world);
        const int came = allocations >= k;
        fail_at = 0;
        if (status != (came ? GDM_ERR_MEMORY : GDM_OK)) fail(what, k);
        if (came) {
            failures++;
            compare(what, k);
            must(step(world), what);
            must(step(untouched), what);
            compare(what, k);
            must(operation(world), what);
        }
        must(operation(untouched), what);
        must(step(world), what);
        must(step(untouched), what);
        compare(what, k);
        gdm_plan_destroy(untouched->plan);
        if (blocks > before + 6) fail("more blocks than a plan has", k);
        end(world);
        if (!came) return failures;
    }
}

/* Lets each allocation between the beginning and the end of a plan fail; the failed call is made again. */
static size_t each_failure_of_a_life(void) {
    size_t failures = 0;
    build(&worlds[1], MOST, MOST);
    must(step(&worlds[1]), "step");
    for (size_t k = 1;; k++) {
        struct world *world = &worlds[0];
        size_t failed = 0;
        begin(world);
        fail_from_now(k);
        while (create(world)) failed++;
        while (world->groups < MOST) failed += add_group(world) == GDM_ERR_MEMORY;
        while (world->entries < MOST) failed += add_entry(world) == GDM_ERR_MEMORY;
        must(around_the_rule(world), "gdm_plan_set_step_args");
        must(step(world), "step");
        must(step(world), "step");
        if (failed > 1 || (failed != (allocations >= k))) fail("a life of a plan", k);
        fail_at = 0;
        compare("a life of a plan", k);
        gdm_plan_destroy(world->plan);
        failures += failed;
        if (!failed) break;
    }
    end(&worlds[1]);
    return failures;
}

static size_t each_failure_of_create(void) {
    gdm_plan *plan = (gdm_plan *)&worlds;
    fail_from_now(1);
    if (gdm_plan_create(&plan) != GDM_ERR_MEMORY || plan) fail("gdm_plan_create", 1);
    fail_at = 0;
    return 1;
}

/* What must ask for no memory at all. */
static void stepping_allocates_nothing(void) {
    gdm_schedule_free_sgd_args options = GDM_SCHEDULE_FREE_SGD_DEFAULTS;
    static float param[N], state[N], grad[N], total[N];
    const gdm_buffer buffers[] = {{param, GDM_FLOAT32}, {state, GDM_FLOAT32}, {grad, GDM_FLOAT32}};
    const gdm_buffer totals = {total, GDM_FLOAT32};
    const size_t n = N, lengths[] = {N, N, N};
    double norm;
    gdm_entry_args added = GDM_ENTRY_DEFAULTS;
    size_t index;
    for (unsigned threads = 1; threads <= 4; threads += 3) {
        struct world *world = &worlds[0];
        build(world, 3, 5);
        must(gdm_plan_add_group(world->plan, GDM_RULE_SCHEDULE_FREE_SGD, &options, &index), "add a group");
        added.n = N;
        added.group = index;
        added.param = buffers[0];
        added.states = &buffers[1];
        added.grad = buffers[2];
        added.state_count = 1;
        must(gdm_plan_add(world->plan, &added, &index), "add an entry");
        gdm_nadam_args changed = GDM_NADAM_DEFAULTS;
        gdm_adam_args adam = GDM_ADAM_DEFAULTS;
        fail_from_now(1);
        must(gdm_plan_set_num_threads(world->plan, (int)threads), "gdm_plan_set_num_threads");
        must(gdm_plan_set_args(world->plan, 0, &changed), "gdm_plan_set_args");
        must(gdm_plan_set_lr(world->plan, 1, 0.5), "gdm_plan_set_lr");
        must(gdm_plan_set_lr_factor(world->plan, 1, 0.25), "gdm_plan_set_lr_factor");
        must(gdm_plan_set_grad(world->plan, 0, added.grad), "gdm_plan_set_grad");
        must(gdm_plan_set_scale(world->plan, 0.5), "gdm_plan_set_scale");
        must(around_the_rule(world), "gdm_plan_set_step_args");
        for (int k = 0; k < 20; k++) must(step(world), "step");
        must(gdm_plan_prepare(world->plan), "gdm_plan_prepare");
        must(gdm_plan_swap(world->plan, GDM_EVAL), "gdm_plan_swap");
        must(gdm_plan_swap(world->plan, GDM_TRAIN), "gdm_plan_swap");
        must(gdm_plan_reduce(world->plan, GDM_SUM_OF_SQUARES, &norm), "gdm_plan_reduce");
        must(gdm_reduce(GDM_SUM_OF_SQUARES, buffers, lengths, 3, &norm), "gdm_reduce");
        must(gdm_accumulate(&totals, &added.grad, &n, 1, 0.5), "gdm_accumulate");
        adam.step = 1;
        must(gdm_adam_f32(param, state, total, NULL, grad, n, &adam), "gdm_adam_f32");
        look(world);
        fail_at = 0;
        if (allocations) fail("a step, or what belongs to it, allocates memory", allocations);
        end(world);
    }
}

/* ---- threads ---------------------------------------------------------------------------------------------------- */

static void count_one(void *done, size_t i) {
    ((unsigned char *)done)[i]++;
}

/* In a process of its own, since the pool keeps its threads: some threads cannot be started. */
static void step_with_fewer_threads(size_t first, size_t last) {
    enum { THREADS = 6, TASKS = 99, STEPS = 4 };
    first_refused = first, last_refused = last;
    for (int run = 0; run < 3; run++) {
        unsigned char done[TASKS] = {0};
        gdm_pool_run(THREADS, TASKS, count_one, done);
        for (size_t i = 0; i < TASKS; i++)
            if (done[i] != 1) fail("a task of a run with fewer threads", first);
    }
    if (threads_wanted < first) fail("no thread was wanted", first);
    for (int k = 0; k < 2; k++) {
        build(&worlds[k], 2, MOST);
        must(gdm_plan_set_num_threads(worlds[k].plan, k ? 1 : THREADS), "gdm_plan_set_num_threads");
        for (int i = 0; i < 40; i++) must(step(&worlds[k]), "a step with fewer threads");
    }
    compare("a step with fewer threads", first);
    gdm_plan_destroy(worlds[0].plan);
    end(&worlds[1]);
}

static size_t each_thread_that_does_not_start(void) {
    size_t processes = 0;
    for (size_t first = 1; first <= 5; first++)
        for (int forever = 0; forever < 2; forever++) {
            const pid_t child = fork();
            int status;
            if (!child) {
                step_with_fewer_threads(first, forever ? SIZE_MAX : first);
                exit(0);
            }
            if (child < 0 || waitpid(child, &status, 0) != child || status) fail("threads that do not start", first);
            processes++;
        }
    return processes;
}

int main(void) {
    size_t groups = 0, entries = 0;
    printf("threads that do not start: %zu\n", each_thread_that_does_not_start()); /* before there are any */
    fflush(stdout);
    for (size_t count = 1; count < MOST; count++) groups += each_failure("add a group", add_group, count, 3);
    for (size_t count = 0; count < MOST - 1; count++) entries += each_failure("add an entry", add_entry, 2, count);
    if (each_failure("step", step, 2, 3)) fail("a step allocates memory", 0);
    printf("gdm_plan_create: %zu\n", each_failure_of_create());
    printf("gdm_plan_add_group: %zu\n", groups);
    printf("gdm_plan_add: %zu\n", entries);
    printf("a plan from beginning to end: %zu\n", each_failure_of_a_life());
    stepping_allocates_nothing();
    return 0;
}
