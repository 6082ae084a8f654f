/* The ways in which the same call may run: instruction set, threads, order of the tasks, floating-point mode. */
#ifndef FUZZ_WAYS_H
#define FUZZ_WAYS_H

#include "core.h"
#include "input.h"

#if defined __x86_64__
#include <xmmintrin.h>
#endif

struct way {
    const struct isa *isa;
    int threads;
    unsigned order;   /* of tasks: see run_tasks; ORDERS: on gdm's own threads */
    unsigned fp_mode; /* bits of MXCSR that are turned over */
};

enum { ORDERS = 3 };

/* Runs all tasks on this thread: forwards, backwards, or the odd ones first. */
static void run_tasks(void *order, size_t count, gdm_task *task, void *context) {
    switch (*(const unsigned *)order) {
    case 0:
        for (size_t i = 0; i < count; i++) task(context, i);
        break;
    case 1:
        for (size_t i = count; i-- > 0;) task(context, i);
        break;
    default:
        for (size_t i = 1; i < count; i += 2) task(context, i);
        for (size_t i = 0; i < count; i += 2) task(context, i);
    }
}

/* The core asks for the instruction set in use by this function, in place of its own: gdm_set_isa executes cpuid, which
 * takes many microseconds in a virtual machine. See run.py. */
static const struct isa *isa_in_use;

const struct isa *__wrap_gdm_active_isa(void);
const struct isa *__wrap_gdm_active_isa(void) {
    return isa_in_use;
}

/* Those that this machine has; all but the last differ from the plain way. */
static const struct isa *isas[4];
static unsigned isa_count;

const struct isa *__real_gdm_active_isa(void);

__attribute__((constructor)) static void find_isas(void) {
    for (const char *name; (name = gdm_available_isa(isa_count)); isa_count++) {
        if (isa_count == sizeof isas / sizeof *isas) fail("more instruction sets than there is room for");
        if (gdm_set_isa(name)) fail("gdm_set_isa refuses an instruction set that is available");
        isas[isa_count] = __real_gdm_active_isa();
    }
}

/* The plain way: the last instruction set, which every machine has, on one thread. */
static struct way plain_way(void) {
    return (struct way){isas[isa_count - 1], 1, 0, 0};
}

static struct way other_way(struct input *in) {
    struct way way;
    way.isa = isas[below(in, isa_count)];
    way.threads = 1 + (int)below(in, 4);
    /* Threads of its own cost microseconds for each run, so they are seldom used. */
    const unsigned order = byte(in);
    way.order = order < 16 ? ORDERS : order % ORDERS;
    way.fp_mode = 0;
    if (byte(in) & 1) way.fp_mode = (unsigned)(word(in, 2) & 0xe040); /* rounding, flush to zero, subnormals are 0 */
    return way;
}

/* The calls after this run in this way. */
static void take_way(const struct way *way) {
    static unsigned order;
    order = way->order;
    isa_in_use = way->isa;
    if (gdm_set_num_threads(way->threads)) fail("gdm_set_num_threads");
    gdm_set_parallel_for(order < ORDERS ? run_tasks : NULL, &order);
}

/* Between these two lines the calling thread has the floating-point mode of the way. A call must leave it as it is. */
static inline unsigned enter_fp_mode(const struct way *way) {
#if defined __x86_64__
    const unsigned mode = _mm_getcsr();
    _mm_setcsr(mode ^ way->fp_mode);
    return mode;
#else
    (void)way;
    return 0;
#endif
}

static inline void leave_fp_mode(const struct way *way, unsigned mode) {
#if defined __x86_64__
    const unsigned found = _mm_getcsr();
    _mm_setcsr(mode);
    if ((found ^ way->fp_mode ^ mode) & 0xffc0) fail("a call has changed the thread's floating-point mode");
#else
    (void)way, (void)mode;
#endif
}

#endif
