/* Prints what a call on 64 floats takes, in nanoseconds: the median of many runs. */
#define _POSIX_C_SOURCE 200809L /* clock_gettime */

#include <gdm/gdm.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { N = 64, CALLS = 2000, RUNS = 501 };

static double now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int compare(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(void) {
    static _Alignas(64) float param[N], velocity[N], grad[N];
    static double times[RUNS];
    gdm_momentum_args args = GDM_MOMENTUM_DEFAULTS;
    int failed = 0;
    for (int run = 0; run < RUNS; run++) {
        const double begin = now_ns();
        for (int i = 0; i < CALLS; i++) failed |= gdm_momentum_f32(param, velocity, grad, N, &args);
        times[run] = (now_ns() - begin) / CALLS;
    }
    qsort(times, RUNS, sizeof *times, compare);
    printf("call %.2f ns (%s), at best %.2f\n", times[RUNS / 2], gdm_isa(), times[0]);
    return failed != 0;
}
