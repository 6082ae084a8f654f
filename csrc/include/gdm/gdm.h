/* gdm: gradient descent with momentum, in place, over contiguous float buffers.
 *
 * What holds for every update function
 *   buffers    `n` contiguous elements each, aligned to their element type. No two may share memory.
 *   args       options; the first field is the size of the struct as the caller knows it, so that fields can be
 *              appended: write `gdm_sgd_args args = {.size = sizeof args, .lr = 0.1};`. A field left 0 is an option
 *              left off.
 *   result     GDM_OK, or a status that says what is wrong; then nothing has been written. n = 0 is fine and does
 *              nothing (pointers may then be NULL).
 *   numbers    every operation is rounded once, in the order the formula is written, with no fused multiply-add: the
 *              same bits on every machine. NaN, infinities and subnormals propagate as IEEE 754 says.
 *   threads    may be called from any number of threads at once on different buffers. Nothing is allocated, but for the
 *              threads that share the work of large updates, at the first one (see the end).
 *
 * In the formulas g is the gradient after `maximize` (negated) and coupled decay (g + weight_decay * p).
 */
#ifndef GDM_GDM_H
#define GDM_GDM_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#define GDM_VERSION "0.1.0"

typedef enum gdm_status {
    GDM_OK = 0,
    GDM_ERR_NULL,         /* a buffer is NULL although n > 0, or `args` is NULL */
    GDM_ERR_STRUCT_SIZE,  /* args->size is 0 or too small, or names fields this library does not know */
    GDM_ERR_LENGTH,       /* n elements would not fit into the address space */
    GDM_ERR_ALIGNMENT,    /* a buffer is not aligned to its element type */
    GDM_ERR_OVERLAP,      /* two buffers share memory */
    GDM_ERR_LR,           /* lr is NaN, infinite or negative */
    GDM_ERR_WEIGHT_DECAY, /* weight_decay is NaN, infinite or negative */
    GDM_ERR_MOMENTUM,     /* momentum is outside [0, 1) */
    GDM_ERR_DAMPENING,    /* dampening is outside [0, 1], or not 0 with nesterov or with the classic form */
    GDM_ERR_NESTEROV,     /* nesterov with momentum 0 */
    GDM_ERR_FORM,         /* form is neither GDM_FORM_TORCH nor GDM_FORM_CLASSIC */
    GDM_ERR_ISA,          /* an instruction set that is unknown, or that this machine cannot run */
    GDM_ERR_MEMORY,       /* an allocation failed */
    GDM_ERR_THREADS       /* a number of threads that is not between 1 and GDM_MAX_THREADS */
} gdm_status;

/* One English sentence for a status; never NULL. */
const char *gdm_strerror(gdm_status status);

/* The version of the library that is linked, as in GDM_VERSION. */
const char *gdm_version(void);

/* ---- Gradient descent -------------------------------------------------------------------------------------------
 *
 *     p = p * (1 - lr * weight_decay)     only with decoupled_weight_decay
 *     p = p - lr * g
 *
 * Source: A. Cauchy, "Méthode générale pour la résolution des systèmes d'équations simultanées", 1847.
 */
typedef struct gdm_sgd_args {
    size_t size;                /* sizeof(gdm_sgd_args) */
    double lr;                  /* the learning rate, >= 0 */
    double weight_decay;        /* >= 0 */
    int maximize;               /* walk up the gradient instead of down */
    int decoupled_weight_decay; /* shrink the parameter itself, not through the gradient */
} gdm_sgd_args;

gdm_status gdm_sgd_f32(float *param, const float *grad, size_t n, const gdm_sgd_args *args);
gdm_status gdm_sgd_f64(double *param, const double *grad, size_t n, const gdm_sgd_args *args);

/* ---- Momentum: heavy ball and Nesterov --------------------------------------------------------------------------
 *
 *     p = p * (1 - lr * weight_decay)     only with decoupled_weight_decay
 *
 *     GDM_FORM_TORCH                                   GDM_FORM_CLASSIC
 *     v = momentum * v + (1 - dampening) * g           v = momentum * v - lr * g
 *     p = p - lr * v                                   p = p + v
 *     p = p - lr * (g + momentum * v)  (nesterov)      p = p + (momentum * v - lr * g)  (nesterov)
 *
 * Sources: B. Polyak, "Some methods of speeding up the convergence of iteration methods", 1964; Y. Nesterov, "A method
 * of solving a convex programming problem with convergence rate O(1/k^2)", 1983; both forms as in I. Sutskever et al.,
 * "On the importance of initialization and momentum in deep learning", 2013, section 2.
 */
typedef enum gdm_form { GDM_FORM_TORCH = 0, GDM_FORM_CLASSIC = 1 } gdm_form;

typedef struct gdm_momentum_args {
    size_t size;                /* sizeof(gdm_momentum_args) */
    double lr;                  /* the learning rate, >= 0 */
    double momentum;            /* the share of the velocity that is kept, in [0, 1) */
    double dampening;           /* in [0, 1]; torch form without nesterov only */
    double weight_decay;        /* >= 0 */
    int nesterov;               /* look ahead along the velocity; needs momentum > 0 */
    int maximize;               /* walk up the gradient instead of down */
    int decoupled_weight_decay; /* shrink the parameter itself, not through the gradient */
    int form;                   /* a gdm_form */
} gdm_momentum_args;

gdm_status gdm_momentum_f32(float *param, float *velocity, const float *grad, size_t n, const gdm_momentum_args *args);
gdm_status gdm_momentum_f64(double *param, double *velocity, const double *grad, size_t n,
                            const gdm_momentum_args *args);

/* ---- Instruction sets -------------------------------------------------------------------------------------------
 *
 * The best one that CPU and operating system support is chosen at the first call. The environment variable GDM_ISA
 * forces one; if it names one that is unknown or unsupported, every update returns GDM_ERR_ISA.
 */

/* The name of the one in use: "baseline", "avx2", "avx512" or "neon"; NULL if GDM_ISA is wrong. */
const char *gdm_isa(void);

/* The i-th one that this machine can run, best first; NULL behind the last. */
const char *gdm_available_isa(size_t i);

/* Uses the named one from now on, in every thread. GDM_ERR_ISA, and no change, if this machine cannot run it. */
gdm_status gdm_set_isa(const char *name);

/* ---- Threads ----------------------------------------------------------------------------------------------------
 *
 * Large updates are split over threads of gdm's own, which are started when first needed and sleep in between; the
 * results do not depend on how many there are. A call from within another one, or next to one, runs alone.
 */

#define GDM_MAX_THREADS 256

/* How many threads an update may use: as set, else what GDM_NUM_THREADS says, else OMP_NUM_THREADS, else as many as the
 * CPUs that this process may use (affinity, cgroup quota). */
int gdm_get_num_threads(void);

/* Sets that, for the whole process. GDM_ERR_THREADS, and no change, unless 1 <= n <= GDM_MAX_THREADS. */
gdm_status gdm_set_num_threads(int n);

#ifdef __cplusplus
}
#endif

#endif
