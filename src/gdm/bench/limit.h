/* What the memory allows: moves the bytes of an update and computes nothing. For benchmarks only.
 *
 * An update reads param, states and grad, and writes param and states. So does this: each written buffer takes the
 * bytes of the next one, the last written one those of grad. Either a cache line of each in turn, in the widest
 * registers there are; or by libc's memcpy in small pieces: from about 2 KiB on glibc uses `rep movsb`, which does not
 * read what it overwrites, so that fewer bytes move than in an update. With and without software prefetch: the limit is
 * the best of the variants.
 */
#ifndef GDM_LIMIT_H
#define GDM_LIMIT_H

#include <stddef.h>

/* buffers: param, states..., grad, of so many bytes each. Returns 0 behind the last variant. */
int gdm_limit(size_t variant, char *const *buffers, size_t count, size_t bytes);

#endif
