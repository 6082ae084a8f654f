/* What the memory allows: moves the bytes of an update and computes nothing. For benchmarks only.
 *
 * An update reads param, states and grad, and writes param and states. So does this: each written buffer takes the
 * bytes of the next one, the last written one those of grad, by libc's memcpy (which knows the machine) in pieces that
 * stay in L1 from one buffer to the next. Which piece is best depends on where the data lies: the limit is the best
 * variant. A loop of plain 64-byte loads and stores was never faster than the best of these (L2, L3, DRAM on Zen 5).
 */
#ifndef GDM_LIMIT_H
#define GDM_LIMIT_H

#include <stddef.h>

/* buffers: param, states..., grad, of so many bytes each. Returns 0 behind the last variant. */
int gdm_limit(size_t variant, char *const *buffers, size_t count, size_t bytes);

#endif
