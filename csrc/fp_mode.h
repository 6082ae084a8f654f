/* The floating-point mode: gdm computes in the default mode, then restores the thread's mode.
 *
 * Other libraries set flush-to-zero or a rounding mode in their threads (torch.set_flush_denormal(True)). The results
 * of a call must not depend on that, or on which thread does which part.
 *
 *     const fp_mode found = set_default_fp_mode();
 *     ...
 *     restore_fp_mode(found);
 *
 * Comparing the register costs about a nanosecond, writing it about ten: so it is written only if it differs. The
 * memory clobbers keep the arithmetic between the two calls, since its numbers are read from memory and written to it.
 */
#ifndef GDM_FP_MODE_H
#define GDM_FP_MODE_H

#include <stdint.h>

#if defined __x86_64__

/* MXCSR: bits 0 to 5 only record which exceptions have occurred; if only they differ, they are not changed. */
typedef unsigned fp_mode;
enum { MXCSR_DEFAULT = 0x1f80, MXCSR_MODE = 0xffc0 };

static inline fp_mode set_default_fp_mode(void) {
    fp_mode found;
    __asm__ volatile("stmxcsr %0" : "=m"(found));
    if (__builtin_expect((found & MXCSR_MODE) != MXCSR_DEFAULT, 0)) {
        const unsigned wanted = MXCSR_DEFAULT;
        __asm__ volatile("ldmxcsr %0" : : "m"(wanted) : "memory");
    }
    return found;
}

static inline void restore_fp_mode(fp_mode found) {
    if (__builtin_expect((found & MXCSR_MODE) != MXCSR_DEFAULT, 0))
        __asm__ volatile("ldmxcsr %0" : : "m"(found) : "memory");
}

#elif defined __aarch64__

typedef uint64_t fp_mode; /* FPCR, 0 by default */

static inline fp_mode set_default_fp_mode(void) {
    fp_mode found;
    __asm__ volatile("mrs %0, fpcr" : "=r"(found));
    if (__builtin_expect(found != 0, 0)) __asm__ volatile("msr fpcr, %0" : : "r"((fp_mode)0) : "memory");
    return found;
}

static inline void restore_fp_mode(fp_mode found) {
    if (__builtin_expect(found != 0, 0)) __asm__ volatile("msr fpcr, %0" : : "r"(found) : "memory");
}

#else

#include <fenv.h>

typedef fenv_t fp_mode;

static inline fp_mode set_default_fp_mode(void) {
    fp_mode found;
    fegetenv(&found);
    fesetenv(FE_DFL_ENV);
    return found;
}

static inline void restore_fp_mode(fp_mode found) {
    fesetenv(&found);
}

#endif

#endif
