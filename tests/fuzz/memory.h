/* The memory of two runs that must give the same. Both have the same buffers at the same offsets from their start; the
 * starts may differ by some cache lines or parts of one. AddressSanitizer sees each access outside of the buffers.
 */
#ifndef FUZZ_MEMORY_H
#define FUZZ_MEMORY_H

#include "core.h"
#include "input.h"

#include <sanitizer/asan_interface.h>

enum { ROOM = 1 << 16, MOST_SHIFT = 128, RUNS = 2, MOST_BUFFERS = 256 };

struct buffer {
    size_t at, n; /* the offset of its first element, and how many elements it has */
    enum dtype dtype;
};

struct memory {
    size_t used, count, shift[RUNS];
    struct buffer buffers[MOST_BUFFERS]; /* all that there are; no two of them overlap */
};

static _Alignas(4096) unsigned char room[RUNS][ROOM + MOST_SHIFT + CACHE_LINE];
static _Alignas(64) unsigned char before[RUNS][ROOM];
static struct memory memory = {.used = ROOM - 32}; /* so the first input wipes all of it */

static inline unsigned char *start_of(unsigned run) {
    return room[run] + memory.shift[run];
}

static inline void *address(unsigned run, size_t at) {
    return start_of(run) + at;
}

/* What the sanitizer must not check: whole runs are copied and compared, gaps between buffers included. */
#define WITHOUT_CHECKS no_sanitize("address", "undefined", "coverage")
#define UNCHECKED __attribute__((WITHOUT_CHECKS, no_builtin("memcpy", "memcmp", "memset"), noinline))
#define UNCHECKED_INLINE static inline __attribute__((WITHOUT_CHECKS, always_inline))

typedef uint64_t __attribute__((may_alias, aligned(1))) any_word;
typedef uint32_t __attribute__((may_alias, aligned(1))) any_single;
typedef uint16_t __attribute__((may_alias, aligned(1))) any_half;

UNCHECKED static void copy_words(void *to, const void *from, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 8) *(any_word *)((char *)to + i) = *(const any_word *)((const char *)from + i);
}

UNCHECKED static int same_words(const void *a, const void *b, size_t bytes) {
    uint64_t different = 0;
    for (size_t i = 0; i < bytes; i += 8)
        different |= *(const any_word *)((const char *)a + i) ^ *(const any_word *)((const char *)b + i);
    return !different;
}

UNCHECKED static void wipe(unsigned run, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 8) *(any_word *)(room[run] + i) = 0xa5a5a5a5a5a5a5a5;
}

/* Forgets all buffers. */
static void begin_memory(size_t shift) {
    for (unsigned run = 0; run < RUNS; run++) wipe(run, memory.used + 32 + MOST_SHIFT);
    memory.used = memory.count = 0;
    memory.shift[0] = 0;
    memory.shift[1] = shift % (MOST_SHIFT / 8) * 8;
    for (unsigned run = 0; run < RUNS; run++) ASAN_POISON_MEMORY_REGION(room[run], sizeof room[run]);
}

/* ---- contents --------------------------------------------------------------------------------------------------- */

UNCHECKED_INLINE uint64_t hashed(uint64_t x) {
    x = (x ^ x >> 31) * 0x9e3779b97f4a7c15;
    x = (x ^ x >> 29) * 0xbf58476d1ce4e5b9;
    return x ^ x >> 32;
}

/* The bits of an element of a style: 0 zeros, 1 and 2 numbers about 1, 3 positive ones, 4 of all magnitudes, 5 with
 * some that are special, 6 any bits, 7 one number again and again. */
UNCHECKED_INLINE uint64_t bits_of_element(enum dtype dtype, unsigned style, uint64_t seed, size_t i) {
    static const double special[] = {0.0,      -0.0,      INFINITY, -INFINITY, NAN,     FLT_MAX, FLT_MIN,
                                     0x1p-149, 0x1p-1074, DBL_MAX,  65504.0,   65520.0, 0x1p-24};
    const uint64_t random = hashed(seed + (style == 7 ? 0 : i) * 0x2545f4914f6cdd1d);
    double x = ((double)(random >> 40) / 0x1p23 - 1.0) * (style == 1 ? 0.01 : 1.0);
    if (style == 0) return 0;
    if (style == 6 || dtype == INT8) return random;
    if (style == 3) x = fabs(x);
    if (style == 4) x = ldexp(x, (int)(random % 280) - 150);
    if (style == 5 && random % 8 == 0) x = special[random / 8 % (sizeof special / sizeof *special)];
    union {
        float value;
        uint32_t bits;
    } narrow = {(float)x};
    union {
        double value;
        uint64_t bits;
    } wide = {x};
    switch (dtype) {
    case F64: return wide.bits;
    case F32: return narrow.bits;
    case BF16: return narrow.bits >> 16;
    default: return (narrow.bits >> 16 & 0x8000) | (0x2c00 + (random & 0x13ff)); /* float16 from 1/16 to 2 */
    }
}

/* Fills a buffer, in all runs alike. */
UNCHECKED static void fill(const struct buffer *buffer, unsigned style, uint64_t seed) {
    const size_t itemsize = size_of(buffer->dtype);
    for (size_t i = 0; i < buffer->n; i++) {
        const uint64_t bits = bits_of_element(buffer->dtype, style & 7, seed, i);
        for (unsigned run = 0; run < RUNS; run++) {
            void *element = room[run] + memory.shift[run] + buffer->at + i * itemsize;
            switch (itemsize) {
            case 1: *(uint8_t *)element = (uint8_t)bits; break;
            case 2: *(any_half *)element = (uint16_t)bits; break;
            case 4: *(any_single *)element = (uint32_t)bits; break;
            default: *(any_word *)element = bits;
            }
        }
    }
}

/* Lets calls access these bytes, which may lie beside or between buffers. */
static void expose(size_t at, size_t bytes) {
    for (unsigned run = 0; run < RUNS; run++) ASAN_UNPOISON_MEMORY_REGION(address(run, at), bytes);
    if (at + bytes > memory.used) memory.used = at + bytes;
}

/* Adds a buffer of n elements, with contents, `gap` elements behind the first free place. NULL if there is no room. */
static const struct buffer *add_buffer_of(enum dtype dtype, size_t n, size_t gap, unsigned style, uint64_t seed) {
    const size_t itemsize = size_of(dtype);
    const size_t at = (memory.used + 16 + 7) / 8 * 8 + gap * itemsize;
    if (memory.count == MOST_BUFFERS || at + n * itemsize + 32 > ROOM) return NULL;
    struct buffer *buffer = &memory.buffers[memory.count++];
    *buffer = (struct buffer){at, n, dtype};
    expose(at, n * itemsize);
    fill(buffer, style, seed);
    return buffer;
}

/* ---- checks ----------------------------------------------------------------------------------------------------- */

/* Bytes that are in use, to the end of the last gap. */
static inline size_t extent(void) {
    return (memory.used + 24) / 8 * 8;
}

static inline void remember(unsigned run) {
    copy_words(before[run], start_of(run), extent());
}

/* This buffer may have changed. Then everything else must be as it was remembered. */
static inline void accept(unsigned run, size_t at, size_t bytes) {
    memcpy(before[run] + at, address(run, at), bytes);
}

static inline void require_unchanged(unsigned run, const char *what) {
    if (!same_words(before[run], start_of(run), extent())) fail(what);
}

static int is_nan_of(enum dtype dtype, uint64_t bits) {
    switch (dtype) {
    case F32: return (bits & 0x7fffffff) > 0x7f800000;
    case F64: return (bits & 0x7fffffffffffffff) > 0x7ff0000000000000;
    case BF16: return (bits & 0x7fff) > 0x7f80;
    case F16: return (bits & 0x7fff) > 0x7c00;
    default: return 0;
    }
}

/* The same bits in all runs. Of a NaN only the place must be the same. */
static void require_same(const struct buffer *buffer, const char *what) {
    const size_t itemsize = size_of(buffer->dtype);
    const unsigned char *a = address(0, buffer->at), *b = address(1, buffer->at);
    if (!memcmp(a, b, buffer->n * itemsize)) return;
    for (size_t i = 0; i < buffer->n; i++) {
        uint64_t x = 0, y = 0;
        memcpy(&x, a + i * itemsize, itemsize);
        memcpy(&y, b + i * itemsize, itemsize);
        if (x == y || (is_nan_of(buffer->dtype, x) && is_nan_of(buffer->dtype, y))) continue;
        fprintf(stderr, "element %zu of %zu, dtype %d: %#llx and %#llx\n", i, buffer->n, (int)buffer->dtype,
                (unsigned long long)x, (unsigned long long)y);
        fail(what);
    }
}

static inline int same_number(double a, double b) {
    return !memcmp(&a, &b, sizeof a) || (a != a && b != b);
}

#endif
