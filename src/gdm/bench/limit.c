#include "limit.h"

#include <stdint.h>
#include <string.h>

enum { LINE = 64 };

/* Not on Windows: GCC does not align the stack for wide vectors there, and clang-cl links nothing that answers
 * __builtin_cpu_supports. */
#if defined __x86_64__ && !defined _WIN32
#define HAS_AVX 1
#else
#define HAS_AVX 0
#endif

typedef char line __attribute__((vector_size(LINE), aligned(1), may_alias));

/* A cache line of each buffer after the other, from where the first one's begin, in the widest registers there are:
 * what a kernel does, without its arithmetic. */
static inline __attribute__((always_inline)) void by_lines(char *const *buffers, size_t count, size_t bytes) {
    size_t i = -(uintptr_t)buffers[0] % LINE;
    if (i > bytes) i = bytes;
    for (size_t k = 0; k + 1 < count; k++) memcpy(buffers[k], buffers[k + 1], i);
    for (; i + LINE <= bytes; i += LINE)
#pragma GCC unroll 8
        for (size_t k = 0; k + 1 < count; k++) *(line *)(buffers[k] + i) = *(const line *)(buffers[k + 1] + i);
    for (size_t k = 0; k + 1 < count; k++) memcpy(buffers[k] + i, buffers[k + 1] + i, bytes - i);
}

/* With the count a constant, so that the inner loop is unrolled. */
static inline __attribute__((always_inline)) void move_lines(char *const *buffers, size_t count, size_t bytes) {
    if (count == 3)
        by_lines(buffers, 3, bytes);
    else if (count == 4)
        by_lines(buffers, 4, bytes);
    else
        by_lines(buffers, count, bytes);
}

static void lines(char *const *buffers, size_t count, size_t bytes) {
    move_lines(buffers, count, bytes);
}

#if HAS_AVX
__attribute__((target("avx2"))) static void lines_avx2(char *const *buffers, size_t count, size_t bytes) {
    move_lines(buffers, count, bytes);
}

__attribute__((target("avx512f"))) static void lines_avx512(char *const *buffers, size_t count, size_t bytes) {
    move_lines(buffers, count, bytes);
}
#endif

static void widest_lines(char *const *buffers, size_t count, size_t bytes) {
#if HAS_AVX
    if (__builtin_cpu_supports("avx512f")) {
        lines_avx512(buffers, count, bytes);
        return;
    }
    if (__builtin_cpu_supports("avx2")) {
        lines_avx2(buffers, count, bytes);
        return;
    }
#endif
    lines(buffers, count, bytes);
}

static const struct {
    size_t piece, ahead; /* bytes to copy at a time, and how far ahead to prefetch; 0: not */
} variants[] = {{0, 0}, {256, 0}, {512, 0}, {256, 1024}, {256, 2048}, {256, 4096}};

static void prefetch(char *buffer, size_t bytes) {
    for (size_t i = 0; i < bytes; i += LINE) __builtin_prefetch(buffer + i);
}

int gdm_limit(size_t variant, char *const *buffers, size_t count, size_t bytes) {
    if (variant >= sizeof variants / sizeof *variants) return 0;
    const size_t piece = variants[variant].piece, ahead = variants[variant].ahead;
    if (!piece) {
        widest_lines(buffers, count, bytes);
        return 1;
    }
    for (size_t i = 0; i < bytes; i += piece) {
        for (size_t k = 0; ahead && k < count; k++) prefetch(buffers[k] + i + ahead, piece);
        for (size_t k = 0; k + 1 < count; k++)
            memcpy(buffers[k] + i, buffers[k + 1] + i, bytes - i < piece ? bytes - i : piece);
    }
    return 1;
}
