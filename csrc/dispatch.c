/* Which instruction sets this machine has, and which one is in use. */
#include "core.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#if HAS_AVX
#include <cpuid.h>
#if defined __APPLE__
#include <sys/sysctl.h>
#endif

/* This calls cpuid itself: __builtin_cpu_supports would leave an undefined symbol of libgcc in the static library. */
static unsigned enabled_by_os(void) {
    unsigned a, b, c, d, xcr0, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return 0;
    __asm__("xgetbv" : "=a"(xcr0), "=d"(high) : "c"(0));
    return xcr0;
}

static unsigned features(void) {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) ? b : 0;
}

static int has_avx2(void) {
    const unsigned ymm = 0x06;
    return (enabled_by_os() & ymm) == ymm && (features() & bit_AVX2);
}

#if defined __APPLE__
/* macOS gives a thread the registers of AVX-512 only when it uses them first. Until then their bits of XCR0 are 0. */
static int has_avx512(void) {
    static const char *const needed[] = {"hw.optional.avx512f", "hw.optional.avx512bw", "hw.optional.avx512dq",
                                         "hw.optional.avx512vl"};
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++) {
        int found = 0;
        size_t size = sizeof found;
        if (sysctlbyname(needed[i], &found, &size, NULL, 0) || !found) return 0;
    }
    return 1;
}
#else
static int has_avx512(void) {
    const unsigned zmm = 0xe6, needed = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
    return (enabled_by_os() & zmm) == zmm && (features() & needed) == needed;
}
#endif
#endif

static int always(void) {
    return 1;
}

/* Best first. */
static const struct {
    const struct isa *isa;
    int (*supported)(void);
} ladder[] = {
#if HAS_AVX
    {&gdm_isa_avx512, has_avx512},
    {&gdm_isa_avx2, has_avx2},
#elif defined __aarch64__
    {&gdm_isa_neon, always},
#endif
    {&gdm_isa_baseline, always},
};
enum { RUNGS = sizeof ladder / sizeof *ladder };

static const struct isa *find_isa(const char *name) {
    for (size_t i = 0; i < RUNGS; i++)
        if (!strcmp(name, ladder[i].isa->name)) return ladder[i].supported() ? ladder[i].isa : NULL;
    return NULL;
}

static _Atomic(const struct isa *) active;

static const struct isa *choose(void) {
    const char *forced = getenv("GDM_ISA");
    const struct isa *isa = find_isa(forced && *forced ? forced : gdm_available_isa(0));
    const struct isa *current = NULL;
    if (isa && !atomic_compare_exchange_strong(&active, &current, isa)) return current; /* another thread was first */
    return isa;
}

const struct isa *gdm_active_isa(void) {
    const struct isa *isa = atomic_load_explicit(&active, memory_order_relaxed);
    return isa ? isa : choose();
}

const char *gdm_isa(void) {
    const struct isa *isa = gdm_active_isa();
    return isa ? isa->name : NULL;
}

const char *gdm_available_isa(size_t i) {
    for (size_t rung = 0; rung < RUNGS; rung++)
        if (ladder[rung].supported() && i-- == 0) return ladder[rung].isa->name;
    return NULL;
}

gdm_status gdm_set_isa(const char *name) {
    const struct isa *isa = name ? find_isa(name) : NULL;
    if (!isa) return GDM_ERR_ISA;
    atomic_store(&active, isa);
    return GDM_OK;
}
