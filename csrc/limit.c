#include "limit.h"

#include <string.h>

int gdm_limit(size_t variant, char *const *buffers, size_t count, size_t bytes) {
    static const size_t pieces[] = {256, 512, 4096, 16384};
    if (variant >= sizeof pieces / sizeof *pieces) return 0;
    const size_t piece = pieces[variant];
    for (size_t i = 0; i < bytes; i += piece)
        for (size_t k = 0; k + 1 < count; k++)
            memcpy(buffers[k] + i, buffers[k + 1] + i, bytes - i < piece ? bytes - i : piece);
    return 1;
}
