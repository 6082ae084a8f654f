#include "limit.h"

#include <string.h>

static const struct {
    size_t piece, ahead; /* bytes to copy at a time, and how far ahead to prefetch; 0: not */
} variants[] = {{256, 0}, {512, 0}, {256, 1024}, {256, 2048}, {256, 4096}};

static void prefetch(char *buffer, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(buffer + i);
}

int gdm_limit(size_t variant, char *const *buffers, size_t count, size_t bytes) {
    if (variant >= sizeof variants / sizeof *variants) return 0;
    const size_t piece = variants[variant].piece, ahead = variants[variant].ahead;
    for (size_t i = 0; i < bytes; i += piece) {
        for (size_t k = 0; ahead && k < count; k++) prefetch(buffers[k] + i + ahead, piece);
        for (size_t k = 0; k + 1 < count; k++)
            memcpy(buffers[k] + i, buffers[k + 1] + i, bytes - i < piece ? bytes - i : piece);
    }
    return 1;
}
