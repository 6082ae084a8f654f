/* gdm: gradient descent with momentum, in place, over contiguous float buffers.
 *
 *     float param[3] = {1, 2, 3}, velocity[3] = {0}, grad[3] = {0.5f, 0.5f, 0.5f};
 *     gdm_momentum_args args = GDM_MOMENTUM_DEFAULTS;
 *     args.lr = 0.1;
 *     gdm_status status = gdm_momentum_f32(param, velocity, grad, 3, &args);
 *
 * For every update function:
 *   buffers    Each has `n` contiguous elements and is aligned to its element type. A buffer that is written must not
 *              share memory with another buffer. A state that the options do not use may be NULL; it is not touched.
 *              Set the states to zero before the first step.
 *   args       The options. Start from the rule's GDM_<RULE>_DEFAULTS, then change what you want. The first field is
 *              the size of the struct in the caller's header. New fields come last, so a caller compiled against an
 *              older header keeps working. A struct of zeros is not the default: flags, decays and pointers that are 0
 *              are off, but lr = 0 changes nothing, betas = {0, 0} keep no averages, and eps = 0 gives NaN for an
 *              element whose gradient has always been 0. size = 0 is an error. If the rule has `step`, set it: step = 0
 *              is an error too.
 *   result     GDM_OK, or a status that says what is wrong; then nothing has been written. n = 0 is allowed and does
 *              nothing (pointers may then be NULL).
 *   numbers    Every operation is rounded once, in the order of the formula, without fused multiply-add: the same bits
 *              on every machine. Options and the numbers computed from them (1 - dampening, bias corrections) are
 *              double, and are rounded once to the element type. An option that is not finite in the element type is an
 *              error. NaN, infinities and subnormals propagate as in IEEE 754. A thread's rounding mode and
 *              flush-to-zero have no effect: each call computes in the default mode, then restores the thread's mode.
 *   threads    Any number of threads may call at the same time, on different buffers, also before main(). Nothing is
 *              allocated, except that the first large update starts the threads that share its work.
 *
 * In the formulas p is the parameter and g is the gradient, negated with `maximize`, plus weight_decay * p with coupled
 * decay. With lr_scale the learning rate of element i is lr * lr_scale[i], and decoupled decay multiplies the element
 * by 1 - (lr * weight_decay) * lr_scale[i].
 */
#ifndef GDM_GDM_H
#define GDM_GDM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* >>> version: written by tools/generate.py from src/gdm/__init__.py */
#define GDM_VERSION "0.1.0"
/* <<< version */

/* Changes only if callers compiled against an older header no longer work. */
#define GDM_ABI 1

typedef enum gdm_status {
    GDM_OK = 0,
    GDM_ERR_NULL = 1,        /* a buffer that is needed, `args` or a plan is NULL */
    GDM_ERR_STRUCT_SIZE = 2, /* args->size is 0 or too small, or a field that this library does not know is set */
    GDM_ERR_LENGTH = 3,      /* n elements would not fit into the address space */
    GDM_ERR_ALIGNMENT = 4,   /* a buffer is not aligned to its element type */
    GDM_ERR_OVERLAP = 5,     /* a buffer that is written shares memory with another one */
    GDM_ERR_ISA = 6,         /* an instruction set that is unknown, or that this machine cannot run */
    GDM_ERR_MEMORY = 7,      /* an allocation failed */
    GDM_ERR_THREADS = 8,     /* a number of threads that is not between 1 and GDM_MAX_THREADS */
    GDM_ERR_INDEX = 9,       /* no such rule, reduction, group, entry or state */
    GDM_ERR_IMPORT = 10,     /* gdm/import.h only: gdm_import() has not been called, or has failed */
    GDM_ERR_DTYPE = 11,      /* no such dtype, or dtypes of one entry that are not supported together */
    GDM_ERR_LR_FACTOR = 12,  /* lr_factor, or lr * lr_factor, is not finite in the compute dtype, or negative */
    GDM_ERR_NONFINITE = 13,  /* a gradient is NaN or infinite, and the plan is to refuse that */
    GDM_ERR_STEP_ARGS = 14,  /* a field of gdm_step_args is out of range */
    GDM_ERR_MODE = 15,       /* no such mode; or a step in the mode GDM_EVAL */
    /* >>> statuses: written by tools/generate.py from csrc/rules.def */
    GDM_ERR_LR = 16,                /* lr must be finite and not negative */
    GDM_ERR_MOMENTUM = 17,          /* momentum must be in [0, 1), and above 0 for Schedule-Free */
    GDM_ERR_DAMPENING = 18,         /* dampening must be in [0, 1], and 0 with nesterov or the classic form */
    GDM_ERR_WEIGHT_DECAY = 19,      /* weight_decay must be finite and not negative */
    GDM_ERR_NESTEROV = 20,          /* nesterov needs momentum > 0 */
    GDM_ERR_FORM = 21,              /* form must be GDM_FORM_TORCH or GDM_FORM_CLASSIC */
    GDM_ERR_STEP = 22,              /* step must be at least 1 */
    GDM_ERR_EPS = 23,               /* eps must be finite and not negative */
    GDM_ERR_BETAS = 24,             /* betas must each be in [0, 1), the first above 0 for Schedule-Free */
    GDM_ERR_ALPHA = 25,             /* alpha must be in [0, 1) */
    GDM_ERR_LR_DECAY = 26,          /* lr_decay must be finite and not negative */
    GDM_ERR_MOMENTUM_DECAY = 27,    /* momentum_decay must be finite and not negative */
    GDM_ERR_MU_PRODUCT = 28,        /* mu_product must point to a number in [0, 1] */
    GDM_ERR_LR_SCALE = 29,          /* lr_scale must be given to a plan by gdm_plan_set_lr_scale */
    GDM_ERR_RHO = 30,               /* rho must be in [0, 1] */
    GDM_ERR_TRUST_COEFFICIENT = 31, /* trust_coefficient must be finite and not negative */
    GDM_ERR_ETAS = 32,              /* etas must be a number in (0, 1) and a finite one above 1 */
    GDM_ERR_STEP_SIZES = 33,        /* step_sizes must be finite, >= 0, and the first one not above the second */
    GDM_ERR_LAMBD = 34,             /* lambd must be finite and not negative */
    GDM_ERR_T0 = 35,                /* t0 must be finite and not negative */
    GDM_ERR_ASGD_ALPHA = 36,        /* asgd_alpha must be finite and not negative */
    GDM_ERR_ADEMAMIX_ALPHA = 37,    /* ademamix_alpha must be finite and not negative */
    GDM_ERR_ADEMAMIX_BETAS = 38,    /* ademamix_betas must each be in [0, 1) */
    GDM_ERR_T_ALPHA = 39,           /* t_alpha must be finite and not negative */
    GDM_ERR_T_BETA3 = 40,           /* t_beta3 must be finite and not negative */
    GDM_ERR_ETA = 41,               /* eta must point to a finite number that is not negative */
    GDM_ERR_MU = 42,                /* mu must point to a number in [0, 1] */
    GDM_ERR_WARMUP_STEPS = 43,      /* warmup_steps must be finite and not negative */
    GDM_ERR_R = 44,                 /* r must be finite and not negative */
    GDM_ERR_WEIGHT_LR_POWER = 45,   /* weight_lr_power must be finite and not negative */
    GDM_ERR_WEIGHT_SUM = 46,        /* weight_sum must point to a finite number that is not negative */
    GDM_ERR_LR_MAX = 47,            /* lr_max must point to a finite number that is not negative */
    /* <<< statuses */
} gdm_status;

/* A status in English; never NULL. */
const char *gdm_strerror(gdm_status status);

/* The version of the loaded library, as in GDM_VERSION. */
const char *gdm_version(void);

/* The GDM_ABI of the loaded library. */
unsigned gdm_abi(void);

typedef enum gdm_form { GDM_FORM_TORCH = 0, GDM_FORM_CLASSIC = 1 } gdm_form;

/* >>> rules: written by tools/generate.py from csrc/rules.def */
/* ---- Gradient descent ----------------------------------------------------------------------------------------------
 *
 *     p = p * (1 - lr * weight_decay)     only with decoupled_weight_decay
 *     p = p - lr * g
 *
 * Source: A. Cauchy, "Méthode générale pour la résolution des systèmes d'équations simultanées", 1847.
 */
typedef struct gdm_sgd_args {
    size_t size;                /* sizeof(gdm_sgd_args) */
    double lr;                  /* the learning rate, >= 0 */
    double weight_decay;        /* the weight decay, >= 0 */
    int maximize;               /* go up the gradient instead of down */
    int decoupled_weight_decay; /* multiply the parameter by 1 - lr * weight_decay; do not change the gradient */
    const void *lr_scale;       /* NULL, or n factors of the learning rate, of the element type; only read */
} gdm_sgd_args;

#define GDM_SGD_DEFAULTS {sizeof(gdm_sgd_args), 0.001, 0, 0, 0, NULL}

gdm_status gdm_sgd_f32(float *param, const float *grad, size_t n, const gdm_sgd_args *args);
gdm_status gdm_sgd_f64(double *param, const double *grad, size_t n, const gdm_sgd_args *args);

/* ---- Momentum: heavy ball and Nesterov -----------------------------------------------------------------------------
 *
 * In torch's form lr scales the whole velocity. In the classic form lr scales each gradient that enters the velocity.
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
typedef struct gdm_momentum_args {
    size_t size;                /* sizeof(gdm_momentum_args) */
    double lr;                  /* the learning rate, >= 0 */
    double momentum;            /* how much of the velocity or of an average is kept, in [0, 1) */
    double dampening;           /* in [0, 1]; only in torch's form, without nesterov */
    double weight_decay;        /* the weight decay, >= 0 */
    int nesterov;               /* look ahead along the velocity; needs momentum > 0 */
    int maximize;               /* go up the gradient instead of down */
    int decoupled_weight_decay; /* multiply the parameter by 1 - lr * weight_decay; do not change the gradient */
    int form;                   /* a gdm_form */
    const void *lr_scale;       /* NULL, or n factors of the learning rate, of the element type; only read */
} gdm_momentum_args;

#define GDM_MOMENTUM_DEFAULTS {sizeof(gdm_momentum_args), 0.001, 0.9, 0, 0, 0, 0, 0, GDM_FORM_TORCH, NULL}

gdm_status gdm_momentum_f32(float *param, float *velocity, const float *grad, size_t n, const gdm_momentum_args *args);
gdm_status gdm_momentum_f64(double *param, double *velocity, const double *grad, size_t n,
                            const gdm_momentum_args *args);

/* ---- Adagrad -------------------------------------------------------------------------------------------------------
 *
 *     s = s + g * g
 *     p = p - lr / (1 + (step - 1) * lr_decay) * (g / (sqrt(s) + eps))
 *
 * Source: J. Duchi, E. Hazan, Y. Singer, "Adaptive subgradient methods for online learning and stochastic
 * optimization", 2011; options as in torch.optim.Adagrad.
 */
typedef struct gdm_adagrad_args {
    size_t size;          /* sizeof(gdm_adagrad_args) */
    double lr;            /* the learning rate, >= 0 */
    double lr_decay;      /* the learning rate's decay per step, >= 0 */
    double eps;           /* added to the denominator, >= 0 */
    double weight_decay;  /* the weight decay, >= 0 */
    int maximize;         /* go up the gradient instead of down */
    uint64_t step;        /* the number of this step, from 1; a plan counts its steps itself */
    const void *lr_scale; /* NULL, or n factors of the learning rate, of the element type; only read */
} gdm_adagrad_args;

#define GDM_ADAGRAD_DEFAULTS {sizeof(gdm_adagrad_args), 0.01, 0, 1e-10, 0, 0, 0, NULL}

gdm_status gdm_adagrad_f32(float *param, float *state_sum, const float *grad, size_t n, const gdm_adagrad_args *args);
gdm_status gdm_adagrad_f64(double *param, double *state_sum, const double *grad, size_t n,
                           const gdm_adagrad_args *args);

/* ---- RMSprop, plain, centered, and with momentum -------------------------------------------------------------------
 *
 *     s = alpha * s + (1 - alpha) * (g * g)
 *     a = alpha * a + (1 - alpha) * g              only if centered; a is grad_avg
 *     d = sqrt(s) + eps                            sqrt(s - a * a) + eps, if centered
 *     p = p - lr * (g / d)
 *
 *     b = momentum * b + g / d                     instead, with momentum > 0; b is momentum_buffer
 *     p = p - lr * b
 *
 * Sources: G. Hinton, "Neural networks for machine learning", lecture 6e, 2012; centered: A. Graves, "Generating
 * sequences with recurrent neural networks", 2013; options as in torch.optim.RMSprop.
 */
typedef struct gdm_rmsprop_args {
    size_t size;          /* sizeof(gdm_rmsprop_args) */
    double lr;            /* the learning rate, >= 0 */
    double alpha;         /* how much of the average is kept, in [0, 1) */
    double eps;           /* added to the denominator, >= 0 */
    double momentum;      /* how much of the velocity or of an average is kept, in [0, 1) */
    double weight_decay;  /* the weight decay, >= 0 */
    int centered;         /* subtract the gradient's mean; needs grad_avg */
    int maximize;         /* go up the gradient instead of down */
    const void *lr_scale; /* NULL, or n factors of the learning rate, of the element type; only read */
} gdm_rmsprop_args;

#define GDM_RMSPROP_DEFAULTS {sizeof(gdm_rmsprop_args), 0.01, 0.99, 1e-8, 0, 0, 0, 0, NULL}

gdm_status gdm_rmsprop_f32(float *param, float *square_avg, float *grad_avg, float *momentum_buffer, const float *grad,
                           size_t n, const gdm_rmsprop_args *args);
gdm_status gdm_rmsprop_f64(double *param, double *square_avg, double *grad_avg, double *momentum_buffer,
                           const double *grad, size_t n, const gdm_rmsprop_args *args);

/* ---- Adam; with decoupled_weight_decay AdamW; with amsgrad AMSGrad -------------------------------------------------
 *
 *     p = p * (1 - lr * weight_decay)              only with decoupled_weight_decay
 *     m = beta1 * m + (1 - beta1) * g              m is exp_avg
 *     v = beta2 * v + (1 - beta2) * (g * g)        v is exp_avg_sq
 *     x = max(x, v)                                only with amsgrad; x is max_exp_avg_sq, and replaces v below
 *     p = p - lr / (1 - beta1^step) * (m / (sqrt(v) / sqrt(1 - beta2^step) + eps))
 *
 * The kernel multiplies by 1 / sqrt(1 - beta2^step), which is computed once for a step.
 *
 * Sources: D. Kingma, J. Ba, "Adam: a method for stochastic optimization", 2015; I. Loshchilov, F. Hutter, "Decoupled
 * weight decay regularization", 2019; S. Reddi, S. Kale, S. Kumar, "On the convergence of Adam and beyond", 2018; eps
 * is added where torch.optim.Adam adds it.
 */
typedef struct gdm_adam_args {
    size_t size;                /* sizeof(gdm_adam_args) */
    double lr;                  /* the learning rate, >= 0 */
    double betas[2];            /* how much of each average is kept, each in [0, 1) */
    double eps;                 /* added to the denominator, >= 0 */
    double weight_decay;        /* the weight decay, >= 0 */
    int amsgrad;                /* divide by the largest average so far; needs max_exp_avg_sq */
    int maximize;               /* go up the gradient instead of down */
    int decoupled_weight_decay; /* multiply the parameter by 1 - lr * weight_decay; do not change the gradient */
    uint64_t step;              /* the number of this step, from 1; a plan counts its steps itself */
    const void *lr_scale;       /* NULL, or n factors of the learning rate, of the element type; only read */
} gdm_adam_args;

#define GDM_ADAM_DEFAULTS {sizeof(gdm_adam_args), 0.001, {0.9, 0.999}, 1e-8, 0, 0, 0, 0, 0, NULL}

gdm_status gdm_adam_f32(float *param, float *exp_avg, float *exp_avg_sq, float *max_exp_avg_sq, const float *grad,
                        size_t n, const gdm_adam_args *args);
gdm_status gdm_adam_f64(double *param, double *exp_avg, double *exp_avg_sq, double *max_exp_avg_sq, const double *grad,
                        size_t n, const gdm_adam_args *args);

/* ---- NAdam: Adam with Nesterov's momentum --------------------------------------------------------------------------
 *
 *     mu   = beta1 * (1 - 0.96^(step * momentum_decay) / 2)            next is the same for step + 1
 *     p    = p * (1 - lr * weight_decay)                               only with decoupled_weight_decay
 *     m    = beta1 * m + (1 - beta1) * g                               m is exp_avg
 *     v    = beta2 * v + (1 - beta2) * (g * g)                         v is exp_avg_sq
 *     M    = M * mu                                                    M is mu_product
 *     p    = p - lr * ((grad_factor * g + avg_factor * m) / (sqrt(v) / sqrt(1 - beta2^step) + eps))
 *
 * where grad_factor = (1 - mu) / (1 - M) and avg_factor = next / (1 - M * next). The kernel multiplies by
 * 1 / sqrt(1 - beta2^step), which is computed once for a step.
 *
 * Source: T. Dozat, "Incorporating Nesterov momentum into Adam", 2016; options as in torch.optim.NAdam.
 */
typedef struct gdm_nadam_args {
    size_t size;                /* sizeof(gdm_nadam_args) */
    double lr;                  /* the learning rate, >= 0 */
    double betas[2];            /* how much of each average is kept, each in [0, 1) */
    double eps;                 /* added to the denominator, >= 0 */
    double weight_decay;        /* the weight decay, >= 0 */
    double momentum_decay;      /* how fast the momentum warms up, >= 0 */
    int maximize;               /* go up the gradient instead of down */
    int decoupled_weight_decay; /* multiply the parameter by 1 - lr * weight_decay; do not change the gradient */
    uint64_t step;              /* the number of this step, from 1; a plan counts its steps itself */
    const void *lr_scale;       /* NULL, or n factors of the learning rate, of the element type; only read */
    double *mu_product;         /* the product of all momenta so far, at first 1; updated; a plan has its own */
} gdm_nadam_args;

#define GDM_NADAM_DEFAULTS {sizeof(gdm_nadam_args), 0.002, {0.9, 0.999}, 1e-8, 0, 0.004, 0, 0, 0, NULL, NULL}

gdm_status gdm_nadam_f32(float *param, float *exp_avg, float *exp_avg_sq, const float *grad, size_t n,
                         const gdm_nadam_args *args);
gdm_status gdm_nadam_f64(double *param, double *exp_avg, double *exp_avg_sq, const double *grad, size_t n,
                         const gdm_nadam_args *args);

/* ---- Lion ----------------------------------------------------------------------------------------------------------
 *
 *     p = p * (1 - lr * weight_decay)              the decay is always decoupled
 *     p = p - lr * sign(beta1 * m + (1 - beta1) * g)
 *     m = beta2 * m + (1 - beta2) * g              m is exp_avg
 *
 * sign(x) is 1, -1, or x itself where x is 0 or NaN.
 *
 * Source: X. Chen et al., "Symbolic discovery of optimization algorithms", 2023.
 */
typedef struct gdm_lion_args {
    size_t size;          /* sizeof(gdm_lion_args) */
    double lr;            /* the learning rate, >= 0 */
    double betas[2];      /* how much of each average is kept, each in [0, 1) */
    double weight_decay;  /* the weight decay, >= 0 */
    int maximize;         /* go up the gradient instead of down */
    const void *lr_scale; /* NULL, or n factors of the learning rate, of the element type; only read */
} gdm_lion_args;

#define GDM_LION_DEFAULTS {sizeof(gdm_lion_args), 1e-4, {0.9, 0.99}, 0, 0, NULL}

gdm_status gdm_lion_f32(float *param, float *exp_avg, const float *grad, size_t n, const gdm_lion_args *args);
gdm_status gdm_lion_f64(double *param, double *exp_avg, const double *grad, size_t n, const gdm_lion_args *args);

/* ---- signSGD -------------------------------------------------------------------------------------------------------
 *
 *     p = p * (1 - lr * weight_decay)     only with decoupled_weight_decay
 *     p = p - lr * sign(g)
 *
 * sign(x) is 1, -1, or x itself where x is 0 or NaN.
 *
 * Source: J. Bernstein, Y.-X. Wang, K. Azizzadenesheli, A. Anandkumar, "signSGD: compressed optimisation for non-convex
 * problems", 2018.
 */
typedef struct gdm_sign_sgd_args {
    size_t size;                /* sizeof(gdm_sign_sgd_args) */
    double lr;                  /* the learning rate, >= 0 */
    double weight_decay;        /* the weight decay, >= 0 */
    int maximize;               /* go up the gradient instead of down */
    int decoupled_weight_decay; /* multiply the parameter by 1 - lr * weight_decay; do not change the gradient */
    const void *lr_scale;       /* NULL, or n factors of the learning rate, of the element type; only read */
} gdm_sign_sgd_args;

#define GDM_SIGN_SGD_DEFAULTS {sizeof(gdm_sign_sgd_args), 0.001, 0, 0, 0, NULL}

gdm_status gdm_sign_sgd_f32(float *param, const float *grad, size_t n, const gdm_sign_sgd_args *args);
gdm_status gdm_sign_sgd_f64(double *param, const double *grad, size_t n, const gdm_sign_sgd_args *args);

/* ---- Signum: signSGD with momentum ---------------------------------------------------------------------------------
 *
 *     p = p * (1 - lr * weight_decay)     only with decoupled_weight_decay
 *     m = momentum * m + (1 - momentum) * g        m is exp_avg
 *     p = p - lr * sign(m)
 *
 * sign(x) is 1, -1, or x itself where x is 0 or NaN.
 *
 * Source: J. Bernstein, Y.-X. Wang, K. Azizzadenesheli, A. Anandkumar, "signSGD: compressed optimisation for non-convex
 * problems", 2018, algorithm 2.
 */
typedef struct gdm_signum_args {
    size_t size;                /* sizeof(gdm_signum_args) */
    double lr;                  /* the learning rate, >= 0 */
    double momentum;            /* how much of the velocity or of an average is kept, in [0, 1) */
    double weight_decay;        /* the weight decay, >= 0 */
    int maximize;               /* go up the gradient instead of down */
    int decoupled_weight_decay; /* multiply the parameter by 1 - lr * weight_decay; do not change the gradient */
    const void *lr_scale;       /* NULL, or n factors of the learning rate, of the element type; only read */
} gdm_signum_args;

#define GDM_SIGNUM_DEFAULTS {sizeof(gdm_signum_args), 0.001, 0.9, 0, 0, 0, NULL}

gdm_status gdm_signum_f32(float *param, float *exp_avg, const float *grad, size_t n, const gdm_signum_args *args);
gdm_status gdm_signum_f64(double *param, double *exp_avg, const double *grad, size_t n, const gdm_signum_args *args);

/* ---- RAdam: rectified Adam -----------------------------------------------------------------------------------------
 *
 *     p = p * (1 - lr * weight_decay)              only with decoupled_weight_decay
 *     m = beta1 * m + (1 - beta1) * g              m is exp_avg
 *     v = beta2 * v + (1 - beta2) * (g * g)        v is exp_avg_sq
 *     p = p - lr / (1 - beta1^step) * m                                                    while rho <= 5
 *     p = p - lr / (1 - beta1^step) * r * sqrt(1 - beta2^step) * (m / (sqrt(v) + eps))     after that
 *
 * where rho_inf = 2 / (1 - beta2) - 1,  rho = rho_inf - 2 * step * beta2^step / (1 - beta2^step)  and
 * r = sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)).
 *
 * Source: L. Liu et al., "On the variance of the adaptive learning rate and beyond", 2020; eps is added where
 * torch.optim.RAdam adds it.
 */
typedef struct gdm_radam_args {
    size_t size;                /* sizeof(gdm_radam_args) */
    double lr;                  /* the learning rate, >= 0 */
    double betas[2];            /* how much of each average is kept, each in [0, 1) */
    double eps;                 /* added to the denominator, >= 0 */
    double weight_decay;        /* the weight decay, >= 0 */
    int maximize;               /* go up the gradient instead of down */
    int decoupled_weight_decay; /* multiply the parameter by 1 - lr * weight_decay; do not change the gradient */
    uint64_t step;              /* the number of this step, from 1; a plan counts its steps itself */
    const void *lr_scale;       /* NULL, or n factors of the learning rate, of the element type; only read */
} gdm_radam_args;

#define GDM_RADAM_DEFAULTS {sizeof(gdm_radam_args), 0.001, {0.9, 0.999}, 1e-8, 0, 0, 0, 0, NULL}

gdm_status gdm_radam_f32(float *param, float *exp_avg, float *exp_avg_sq, const float *grad, size_t n,
                         const gdm_radam_args *args);
gdm_status gdm_radam_f64(double *param, double *exp_avg, double *exp_avg_sq, const double *grad, size_t n,
                         const gdm_radam_args *args);

/* ---- Adamax: Adam with the infinity norm ---------------------------------------------------------------------------
 *
 *     m = beta1 * m + (1 - beta1) * g              m is exp_avg
 *     u = max(beta2 * u, |g| + eps)                u is exp_inf
 *     p = p - lr / (1 - beta1^step) * (m / u)
 *
 * Source: D. Kingma, J. Ba, "Adam: a method for stochastic optimization", 2015, section 7.1; eps is added where
 * torch.optim.Adamax adds it, and the maximum is NaN if one of the two is, as there.
 */
typedef struct gdm_adamax_args {
    size_t size;          /* sizeof(gdm_adamax_args) */
    double lr;            /* the learning rate, >= 0 */
    double betas[2];      /* how much of each average is kept, each in [0, 1) */
    double eps;           /* added to the denominator, >= 0 */
    double weight_decay;  /* the weight decay, >= 0 */
    int maximize;         /* go up the gradient instead of down */
    uint64_t step;        /* the number of this step, from 1; a plan counts its steps itself */
    const void *lr_scale; /* NULL, or n factors of the learning rate, of the element type; only read */
} gdm_adamax_args;

#define GDM_ADAMAX_DEFAULTS {sizeof(gdm_adamax_args), 0.002, {0.9, 0.999}, 1e-8, 0, 0, 0, NULL}

gdm_status gdm_adamax_f32(float *param, float *exp_avg, float *exp_inf, const float *grad, size_t n,
                          const gdm_adamax_args *args);
gdm_status gdm_adamax_f64(double *param, double *exp_avg, double *exp_inf, const double *grad, size_t n,
                          const gdm_adamax_args *args);

/* ---- Adadelta ------------------------------------------------------------------------------------------------------
 *
 *     s = rho * s + (1 - rho) * (g * g)            s is square_avg
 *     x = sqrt((d + eps) / (s + eps)) * g
 *     d = rho * d + (1 - rho) * (x * x)            d is acc_delta
 *     p = p - lr * x
 *
 * Source: M. Zeiler, "ADADELTA: an adaptive learning rate method", 2012; options as in torch.optim.Adadelta. The root
 * of the quotient is one root fewer than the quotient of the roots.
 */
typedef struct gdm_adadelta_args {
    size_t size;          /* sizeof(gdm_adadelta_args) */
    double lr;            /* the learning rate, >= 0 */
    double rho;           /* how much of each average is kept, in [0, 1] */
    double eps;           /* added to the denominator, >= 0 */
    double weight_decay;  /* the weight decay, >= 0 */
    int maximize;         /* go up the gradient instead of down */
    const void *lr_scale; /* NULL, or n factors of the learning rate, of the element type; only read */
} gdm_adadelta_args;

#define GDM_ADADELTA_DEFAULTS {sizeof(gdm_adadelta_args), 1, 0.9, 1e-6, 0, 0, NULL}

gdm_status gdm_adadelta_f32(float *param, float *square_avg, float *acc_delta, const float *grad, size_t n,
                            const gdm_adadelta_args *args);
gdm_status gdm_adadelta_f64(double *param, double *square_avg, double *acc_delta, const double *grad, size_t n,
                            const gdm_adadelta_args *args);

/* ---- LARS: momentum, with a learning rate for each parameter -------------------------------------------------------
 *
 *     trust = trust_coefficient * |p| / (|g| + weight_decay * |p|)          1 if |p| or |g| is 0, or without adapt
 *     g     = g + weight_decay * p
 *     v     = momentum * v + lr * trust * g                                 v is velocity
 *     p     = p - v
 *
 * |x| is the norm of the whole parameter or gradient: the root of gdm_reduce's sum of squares.
 *
 * Source: Y. You, I. Gitman, B. Ginsburg, "Large batch training of convolutional networks", 2017.
 */
typedef struct gdm_lars_args {
    size_t size;              /* sizeof(gdm_lars_args) */
    double lr;                /* the learning rate, >= 0 */
    double momentum;          /* how much of the velocity or of an average is kept, in [0, 1) */
    double weight_decay;      /* the weight decay, >= 0 */
    double trust_coefficient; /* the factor of the trust ratio, >= 0 */
    int adapt;                /* multiply the learning rate by the trust ratio; 0 is for biases, for example */
    int maximize;             /* go up the gradient instead of down */
    const void *lr_scale;     /* NULL, or n factors of the learning rate, of the element type; only read */
} gdm_lars_args;

#define GDM_LARS_DEFAULTS {sizeof(gdm_lars_args), 0.001, 0.9, 0, 0.001, 1, 0, NULL}

gdm_status gdm_lars_f32(float *param, float *velocity, const float *grad, size_t n, const gdm_lars_args *args);
gdm_status gdm_lars_f64(double *param, double *velocity, const double *grad, size_t n, const gdm_lars_args *args);

/* ---- LAMB: Adam, with a learning rate for each parameter -----------------------------------------------------------
 *
 *     m     = beta1 * m + (1 - beta1) * g                                   m is exp_avg
 *     v     = beta2 * v + (1 - beta2) * (g * g)                             v is exp_avg_sq
 *     u     = (m / (1 - beta1^step)) / (sqrt(v) / sqrt(1 - beta2^step) + eps) + weight_decay * p
 *     trust = |p| / |u|                                                     1 if |p| or |u| is 0, or without adapt
 *     p     = p - lr * trust * u
 *
 * |x| is the norm of the whole parameter: the root of gdm_reduce's sum of squares. The kernel multiplies by
 * 1 / (1 - beta1^step) and 1 / sqrt(1 - beta2^step), which are computed once for a step.
 *
 * Source: Y. You et al., "Large batch optimization for deep learning: training BERT in 76 minutes", 2020.
 */
typedef struct gdm_lamb_args {
    size_t size;          /* sizeof(gdm_lamb_args) */
    double lr;            /* the learning rate, >= 0 */
    double betas[2];      /* how much of each average is kept, each in [0, 1) */
    double eps;           /* added to the denominator, >= 0 */
    double weight_decay;  /* the weight decay, >= 0 */
    int adapt;            /* multiply the learning rate by the trust ratio; 0 is for biases, for example */
    int maximize;         /* go up the gradient instead of down */
    uint64_t step;        /* the number of this step, from 1; a plan counts its steps itself */
    const void *lr_scale; /* NULL, or n factors of the learning rate, of the element type; only read */
} gdm_lamb_args;

#define GDM_LAMB_DEFAULTS {sizeof(gdm_lamb_args), 0.001, {0.9, 0.999}, 1e-6, 0, 1, 0, 0, NULL}

gdm_status gdm_lamb_f32(float *param, float *exp_avg, float *exp_avg_sq, const float *grad, size_t n,
                        const gdm_lamb_args *args);
gdm_status gdm_lamb_f64(double *param, double *exp_avg, double *exp_avg_sq, const double *grad, size_t n,
                        const gdm_lamb_args *args);

/* ---- Rprop: a step size for each element, which grows while its gradient keeps its sign ----------------------------
 *
 *     x    = g * prev
 *     size = size * (x > 0 ? etas[1] : x < 0 ? etas[0] : 1)      size is step_size
 *     size = min(max(size, step_sizes[0]), step_sizes[1])
 *     g    = x < 0 ? 0 : g
 *     p    = p - sign(g) * size
 *     prev = g
 *
 * In the first step (step = 1) prev and step_size are not read: size = lr, and x = 0. After it lr has no effect, and so
 * has lr_scale. sign(x) is 1, -1, or x itself where x is 0 or NaN.
 *
 * Source: M. Riedmiller, H. Braun, "A direct adaptive method for faster backpropagation learning: the RPROP algorithm",
 * 1993; the variant without weight backtracking, and options as in torch.optim.Rprop.
 */
typedef struct gdm_rprop_args {
    size_t size;          /* sizeof(gdm_rprop_args) */
    double lr;            /* the learning rate, >= 0 */
    double etas[2];       /* how a step size shrinks, and grows */
    double step_sizes[2]; /* the smallest and the largest step size, >= 0 */
    int maximize;         /* go up the gradient instead of down */
    uint64_t step;        /* the number of this step, from 1; a plan counts its steps itself */
    const void *lr_scale; /* NULL, or n factors of the learning rate, of the element type; only read */
} gdm_rprop_args;

#define GDM_RPROP_DEFAULTS {sizeof(gdm_rprop_args), 0.01, {0.5, 1.2}, {1e-6, 50}, 0, 0, NULL}

gdm_status gdm_rprop_f32(float *param, float *prev, float *step_size, const float *grad, size_t n,
                         const gdm_rprop_args *args);
gdm_status gdm_rprop_f64(double *param, double *prev, double *step_size, const double *grad, size_t n,
                         const gdm_rprop_args *args);

/* ---- ASGD: gradient descent, and the average of its path -----------------------------------------------------------
 *
 *     g  = g + weight_decay * p                        unless weight_decay is 0
 *     p  = p * (1 - lambd * eta) - eta * g
 *     ax = ax + mu * (p - ax)                          ax = p where mu is 1
 *
 * and for the next step
 *
 *     eta = lr / (1 + lambd * lr * step)^alpha
 *     mu  = 1 / max(1, step - t0)
 *
 * In the first step (step = 1) eta is lr if it is 0, its value before that. So a step has the eta that the lr of the
 * step before gave. The power is computed in a fixed order (real_power.h).
 *
 * Source: B. Polyak, A. Juditsky, "Acceleration of stochastic approximation by averaging", 1992; L. Bottou, "Stochastic
 * gradient descent tricks", 2012; options as in torch.optim.ASGD.
 */
typedef struct gdm_asgd_args {
    size_t size;          /* sizeof(gdm_asgd_args) */
    double lr;            /* the learning rate, >= 0 */
    double lambd;         /* how fast eta falls, and the decay, >= 0 */
    double alpha;         /* the exponent of eta's fall, >= 0 */
    double t0;            /* the step after which the average begins, >= 0 */
    double weight_decay;  /* the weight decay, >= 0 */
    int maximize;         /* go up the gradient instead of down */
    uint64_t step;        /* the number of this step, from 1; a plan counts its steps itself */
    const void *lr_scale; /* NULL, or n factors of the learning rate, of the element type; only read */
    double *eta;          /* the learning rate of this step, at first 0; updated; a plan has its own */
    double *mu;           /* the weight of this step in ax, at first 1; updated; a plan has its own */
} gdm_asgd_args;

#define GDM_ASGD_DEFAULTS {sizeof(gdm_asgd_args), 0.01, 1e-4, 0.75, 1e6, 0, 0, 0, NULL, NULL, NULL}

gdm_status gdm_asgd_f32(float *param, float *ax, const float *grad, size_t n, const gdm_asgd_args *args);
gdm_status gdm_asgd_f64(double *param, double *ax, const double *grad, size_t n, const gdm_asgd_args *args);

/* ---- AdEMAMix: Adam with a second, slow average of the gradients ---------------------------------------------------
 *
 *     p = p * (1 - lr * weight_decay)              the decay is always decoupled
 *     m = beta1 * m + (1 - beta1) * g              m is exp_avg
 *     s = b * s + (1 - b) * g                      s is exp_avg_slow
 *     v = beta2 * v + (1 - beta2) * (g * g)        v is exp_avg_sq
 *     p = p - lr * (m / (1 - beta1^step) + a * s) / (sqrt(v) / sqrt(1 - beta2^step) + eps)
 *
 * where a = alpha and b = beta3, unless there are schedules. Before step t_alpha, a = alpha * (step / t_alpha). Before
 * step t_beta3, b is between beta1 and beta3 so that its half-life grows linearly: with x = step / t_beta3,
 * 1 / log(b) = (1 - x) / log(beta1) + x / log(beta3), but b is not above beta3. The kernel has the factors of the
 * bracket's two terms in lr and in alpha, which are computed once for a step.
 *
 * Source: M. Pagliardini, P. Ablin, D. Grangier, "The AdEMAMix optimizer: better, faster, older", 2024.
 */
typedef struct gdm_ademamix_args {
    size_t size;          /* sizeof(gdm_ademamix_args) */
    double lr;            /* the learning rate, >= 0 */
    double betas[3];      /* how much is kept of exp_avg, exp_avg_sq and exp_avg_slow, each in [0, 1) */
    double alpha;         /* the slow average's weight, >= 0 */
    double t_alpha;       /* how many steps alpha grows for; 0: none */
    double t_beta3;       /* how many steps betas[2] grows for; 0: none */
    double eps;           /* added to the denominator, >= 0 */
    double weight_decay;  /* the weight decay, >= 0 */
    int maximize;         /* go up the gradient instead of down */
    uint64_t step;        /* the number of this step, from 1; a plan counts its steps itself */
    const void *lr_scale; /* NULL, or n factors of the learning rate, of the element type; only read */
} gdm_ademamix_args;

#define GDM_ADEMAMIX_DEFAULTS {sizeof(gdm_ademamix_args), 0.001, {0.9, 0.999, 0.9999}, 5, 0, 0, 1e-8, 0, 0, 0, NULL}

gdm_status gdm_ademamix_f32(float *param, float *exp_avg, float *exp_avg_slow, float *exp_avg_sq, const float *grad,
                            size_t n, const gdm_ademamix_args *args);
gdm_status gdm_ademamix_f64(double *param, double *exp_avg, double *exp_avg_slow, double *exp_avg_sq,
                            const double *grad, size_t n, const gdm_ademamix_args *args);

/* ---- Schedule-Free gradient descent --------------------------------------------------------------------------------
 *
 *     rate   = lr * min(step / warmup_steps, 1)
 *     lr_max = max(lr_max, rate)
 *     weight = step^r * lr_max^weight_lr_power
 *     sum    = sum + weight                        sum is weight_sum
 *     c      = weight / sum                        0 if the sum is 0
 *     d      = rate * g
 *     p      = p + c * (z - p) - (1 - momentum * (1 - c)) * d
 *     z      = z - d                               z begins as a copy of p
 *
 * p is the point y = (1 - momentum) * z + momentum * x at which gradients are computed. x is the average of all z, with
 * these weights. It is not kept: x = p + (1 - 1 / momentum) * (z - p). The result of a training is x.
 *
 * Source: A. Defazio, X. Yang, H. Mehta, K. Mishchenko, A. Khaled, A. Cutkosky, "The road less scheduled", 2024; names
 * and defaults as in schedulefree.SGDScheduleFree.
 */
typedef struct gdm_schedule_free_sgd_args {
    size_t size;            /* sizeof(gdm_schedule_free_sgd_args) */
    double lr;              /* the learning rate, >= 0 */
    double momentum;        /* how much of the velocity or of an average is kept, in [0, 1) */
    double weight_decay;    /* the weight decay, >= 0 */
    double warmup_steps;    /* lr rises linearly over so many steps, >= 0 */
    double r;               /* the average's weights grow as step^r, >= 0 */
    double weight_lr_power; /* the average's weights are proportional to this power of lr, >= 0 */
    int maximize;           /* go up the gradient instead of down */
    uint64_t step;          /* the number of this step, from 1; a plan counts its steps itself */
    const void *lr_scale;   /* NULL, or n factors of the learning rate, of the element type; only read */
    double *weight_sum;     /* the sum of all weights so far, at first 0; updated; a plan has its own */
    double *lr_max;         /* the largest lr so far, at first 0; updated; a plan has its own */
} gdm_schedule_free_sgd_args;

#define GDM_SCHEDULE_FREE_SGD_DEFAULTS                                                                                 \
    {sizeof(gdm_schedule_free_sgd_args), 1.0, 0.9, 0, 0, 0, 2, 0, 0, NULL, NULL, NULL}

gdm_status gdm_schedule_free_sgd_f32(float *param, float *z, const float *grad, size_t n,
                                     const gdm_schedule_free_sgd_args *args);
gdm_status gdm_schedule_free_sgd_f64(double *param, double *z, const double *grad, size_t n,
                                     const gdm_schedule_free_sgd_args *args);

/* ---- Schedule-Free AdamW -------------------------------------------------------------------------------------------
 *
 *     v = beta2 * v + (1 - beta2) * (g * g)        v is exp_avg_sq
 *     d = rate * (g / (sqrt(v) / sqrt(1 - beta2^step) + eps) + weight_decay * p)
 *     p = p + c * (z - p) - (1 - beta1 * (1 - c)) * d
 *     z = z - d                                    z begins as a copy of p
 *
 * rate and c are those of Schedule-Free gradient descent, and so is all else, with beta1 for its momentum. The kernel
 * multiplies by 1 / sqrt(1 - beta2^step), which is computed once for a step.
 *
 * Source: A. Defazio, X. Yang, H. Mehta, K. Mishchenko, A. Khaled, A. Cutkosky, "The road less scheduled", 2024; names
 * and defaults as in schedulefree.AdamWScheduleFree.
 */
typedef struct gdm_schedule_free_adamw_args {
    size_t size;            /* sizeof(gdm_schedule_free_adamw_args) */
    double lr;              /* the learning rate, >= 0 */
    double betas[2];        /* how much of each average is kept, each in [0, 1) */
    double eps;             /* added to the denominator, >= 0 */
    double weight_decay;    /* the weight decay, >= 0 */
    double warmup_steps;    /* lr rises linearly over so many steps, >= 0 */
    double r;               /* the average's weights grow as step^r, >= 0 */
    double weight_lr_power; /* the average's weights are proportional to this power of lr, >= 0 */
    int maximize;           /* go up the gradient instead of down */
    uint64_t step;          /* the number of this step, from 1; a plan counts its steps itself */
    const void *lr_scale;   /* NULL, or n factors of the learning rate, of the element type; only read */
    double *weight_sum;     /* the sum of all weights so far, at first 0; updated; a plan has its own */
    double *lr_max;         /* the largest lr so far, at first 0; updated; a plan has its own */
} gdm_schedule_free_adamw_args;

#define GDM_SCHEDULE_FREE_ADAMW_DEFAULTS                                                                               \
    {sizeof(gdm_schedule_free_adamw_args), 0.0025, {0.9, 0.999}, 1e-8, 0, 0, 0, 2, 0, 0, NULL, NULL, NULL}

gdm_status gdm_schedule_free_adamw_f32(float *param, float *z, float *exp_avg_sq, const float *grad, size_t n,
                                       const gdm_schedule_free_adamw_args *args);
gdm_status gdm_schedule_free_adamw_f64(double *param, double *z, double *exp_avg_sq, const double *grad, size_t n,
                                       const gdm_schedule_free_adamw_args *args);

/* ---- Muon, for matrices --------------------------------------------------------------------------------------------
 *
 *     v = momentum * v + (1 - momentum) * g
 *     update = v                                          only with prepare, which changes nothing else
 *     update = momentum * v + (1 - momentum) * g          instead, if nesterov
 *
 *     p = p * (1 - lr * weight_decay)                     without prepare; the decay is always decoupled
 *     p = p - lr * update
 *
 * An update takes two calls, with the same velocity and gradient. After the first one, with prepare, the caller
 * replaces the matrix in `update` by an orthogonal one near it, times a factor that may depend on the shape. That is a
 * matter of matrix products, for which this library has no function. In a plan gdm_plan_prepare stands for the first
 * call.
 *
 * Source: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.
 */
typedef struct gdm_muon_args {
    size_t size;          /* sizeof(gdm_muon_args) */
    double lr;            /* the learning rate, >= 0 */
    double momentum;      /* how much of the velocity or of an average is kept, in [0, 1) */
    double weight_decay;  /* the weight decay, >= 0 */
    int nesterov;         /* look ahead along the velocity; needs momentum > 0 */
    int maximize;         /* go up the gradient instead of down */
    int prepare;          /* only write `update`, the matrix to orthogonalize; a plan sets this itself */
    const void *lr_scale; /* NULL, or n factors of the learning rate, of the element type; only read */
} gdm_muon_args;

#define GDM_MUON_DEFAULTS {sizeof(gdm_muon_args), 0.001, 0.95, 0.1, 1, 0, 0, NULL}

gdm_status gdm_muon_f32(float *param, float *velocity, float *update, const float *grad, size_t n,
                        const gdm_muon_args *args);
gdm_status gdm_muon_f64(double *param, double *velocity, double *update, const double *grad, size_t n,
                        const gdm_muon_args *args);
/* <<< rules */

/* ---- Buffers --------------------------------------------------------------------------------------------------- */

typedef enum gdm_dtype {
    GDM_FLOAT32 = 0,
    GDM_FLOAT64 = 1,
    GDM_BFLOAT16 = 2, /* uint16_t: the upper half of a float's bits */
    GDM_FLOAT16 = 3,  /* uint16_t: IEEE 754's binary16 */
    GDM_INT8 = 4,     /* for states only: see gdm_entry_args */
} gdm_dtype;

/* Memory and the type of its elements. data is NULL where there is no buffer; the dtype does not matter then. */
typedef struct gdm_buffer {
    void *data;
    gdm_dtype dtype;
} gdm_buffer;

/* ---- Plans: one step over many parameters -----------------------------------------------------------------------
 *
 * A plan is a table of the buffers that one step updates. An entry is one parameter with its gradient and its states.
 * The entries of a group share a rule and its options. A step is one call, which divides the work of all entries, small
 * and large, among threads. The memory belongs to the caller, and must stay at its address.
 *
 *     float weight[6] = {0}, grad[6] = {1, 1, 1, 1, 1, 1}, velocity[6] = {0};
 *     gdm_momentum_args options = GDM_MOMENTUM_DEFAULTS;
 *     gdm_entry_args layer = GDM_ENTRY_DEFAULTS;
 *     gdm_buffer state = {velocity, GDM_FLOAT32};
 *     gdm_plan *plan;
 *     size_t entry;
 *
 *     gdm_plan_create(&plan);
 *     gdm_plan_add_group(plan, GDM_RULE_MOMENTUM, &options, &layer.group);
 *     layer.n = 6;
 *     layer.param = (gdm_buffer){weight, GDM_FLOAT32};
 *     layer.grad = (gdm_buffer){grad, GDM_FLOAT32};
 *     layer.states = &state;
 *     layer.state_count = 1;
 *     gdm_plan_add(plan, &layer, &entry);
 *     for (int i = 0; i < 100; i++) gdm_plan_step(plan);
 *     gdm_plan_destroy(plan);
 *
 * The plan counts the steps of each entry and keeps the rule's scalars: in the options of a group `step` and the
 * pointers to scalars are not read, and `lr_scale` must be NULL. In an entry's first step torch's form of momentum
 * sets the velocity to the gradient, without dampening, as PyTorch does; the Schedule-Free rules set z to the
 * parameter.
 *
 * A step leaves out an entry whose gradient is NULL: its parameter, states, scalars and count of steps do not change.
 * The same holds for an entry without elements.
 *
 * Only one thread at a time may use a plan. Different threads may use different plans at the same time.
 */
typedef struct gdm_plan gdm_plan;

typedef enum gdm_rule {
    /* >>> rule numbers: written by tools/generate.py from csrc/rules.def */
    GDM_RULE_SGD = 0,
    GDM_RULE_MOMENTUM = 1,
    GDM_RULE_ADAGRAD = 2,
    GDM_RULE_RMSPROP = 3,
    GDM_RULE_ADAM = 4,
    GDM_RULE_NADAM = 5,
    GDM_RULE_LION = 6,
    GDM_RULE_SIGN_SGD = 7,
    GDM_RULE_SIGNUM = 8,
    GDM_RULE_RADAM = 9,
    GDM_RULE_ADAMAX = 10,
    GDM_RULE_ADADELTA = 11,
    GDM_RULE_LARS = 12,
    GDM_RULE_LAMB = 13,
    GDM_RULE_RPROP = 14,
    GDM_RULE_ASGD = 15,
    GDM_RULE_ADEMAMIX = 16,
    GDM_RULE_SCHEDULE_FREE_SGD = 17,
    GDM_RULE_SCHEDULE_FREE_ADAMW = 18,
    GDM_RULE_MUON = 19,
    /* <<< rule numbers */
} gdm_rule;

/* Makes a new, empty plan. If there is no memory, returns GDM_ERR_MEMORY and sets *plan to NULL. */
gdm_status gdm_plan_create(gdm_plan **plan);

/* Frees the plan, which may be NULL. It does not free the buffers. */
void gdm_plan_destroy(gdm_plan *plan);

/* Adds a group and writes its index (0, 1, ...) to *group; `group` must not be NULL. `args` must be the argument struct
 * of the rule, such as gdm_momentum_args for GDM_RULE_MOMENTUM. Nothing can check that. */
gdm_status gdm_plan_add_group(gdm_plan *plan, gdm_rule rule, const void *args, size_t *group);

/* Changes the options of a group, from the next step on. The entries must have the states that these options need. */
gdm_status gdm_plan_set_args(gdm_plan *plan, size_t group, const void *args);

/* Changes only the learning rate of a group: the cheapest change. */
gdm_status gdm_plan_set_lr(gdm_plan *plan, size_t group, double lr);

typedef struct gdm_entry_args {
    size_t size;                /* sizeof(gdm_entry_args) */
    size_t group;               /* the index of its group */
    size_t n;                   /* the number of elements of each buffer */
    gdm_buffer param;           /* updated */
    gdm_buffer grad;            /* only read; if its data is NULL, steps leave the entry out until a gradient is set */
    gdm_buffer lr_scale;        /* a factor of the learning rate for each element, only read; data may be NULL */
    const gdm_buffer *states;   /* in the order of the rule's function; data may be NULL if the options do not use it */
    size_t state_count;         /* the length of `states`; the entry has no states after these */
    double lr_factor;           /* a factor of the group's learning rate, applied in double; finite, >= 0 */
    gdm_buffer copy;            /* each step writes the parameter here; data may be NULL */
    gdm_buffer average;         /* the moving average of the parameter; data may be NULL */
    uint16_t *low_bits;         /* for a bfloat16 parameter: the other 16 bits of a float32 parameter; may be NULL */
    float *const *state_scales; /* for each int8 state (n + 127) / 128 scales; may be NULL if there are none */
} gdm_entry_args;

#define GDM_ENTRY_DEFAULTS                                                                                             \
    {sizeof(gdm_entry_args),                                                                                           \
     0,                                                                                                                \
     0,                                                                                                                \
     {NULL, GDM_FLOAT32},                                                                                              \
     {NULL, GDM_FLOAT32},                                                                                              \
     {NULL, GDM_FLOAT32},                                                                                              \
     NULL,                                                                                                             \
     0,                                                                                                                \
     1.0,                                                                                                              \
     {NULL, GDM_FLOAT32},                                                                                              \
     {NULL, GDM_FLOAT32},                                                                                              \
     NULL,                                                                                                             \
     NULL}

/* Adds an entry, which has made no step, and writes its index (0, 1, ...) to *entry; `entry` must not be NULL. The next
 * step checks whether it shares memory with other entries. If it does, every step fails, since entries cannot be
 * removed: destroy the plan.
 *
 * The entry is computed in float64 if its parameter is float64, else in float32. Each buffer has a dtype of its own.
 * Narrower numbers are widened exactly. With a float32 or narrower parameter only the copy may be float64 (else
 * GDM_ERR_DTYPE). What a step writes is rounded to the dtype of its buffer: to the nearest number, or as `rounding`
 * says in gdm_step_args; float64 to bfloat16 or float16 by way of float32.
 *
 * int8 states: block i, elements 128 i ... 128 i + 127, has the scale state_scales[k][i]. An element is its number
 * times the scale; or, where the rule uses the square root of the state (exp_avg_sq and its like), the square of that,
 * with numbers from 0 to 255. They are always rounded stochastically: else small changes would be lost at every step.
 * Set both to zero before the first step.
 *
 * low_bits: the bits of the float32 parameter are ((uint32_t)high << 16) + (int16_t)low. `high` is then the nearest
 * bfloat16. Set the low bits to zero to begin with the bfloat16 parameter. */
gdm_status gdm_plan_add(gdm_plan *plan, const gdm_entry_args *args, size_t *entry);

/* Sets the gradient that the next steps read. If data is NULL, they leave the entry out. */
gdm_status gdm_plan_set_grad(gdm_plan *plan, size_t entry, gdm_buffer grad);

/* Sets the learning-rate factors of an entry's elements; if data is NULL, there are none. */
gdm_status gdm_plan_set_lr_scale(gdm_plan *plan, size_t entry, gdm_buffer lr_scale);

/* Sets the learning-rate factor of a whole entry. */
gdm_status gdm_plan_set_lr_factor(gdm_plan *plan, size_t entry, double lr_factor);

/* Sets how many threads a step may use; 0, the default, means the result of gdm_get_num_threads. */
gdm_status gdm_plan_set_num_threads(gdm_plan *plan, int n);

typedef enum gdm_rounding { GDM_NEAREST = 0, GDM_STOCHASTIC = 1 } gdm_rounding;
typedef enum gdm_nonfinite { GDM_PROPAGATE = 0, GDM_SKIP = 1, GDM_REFUSE = 2 } gdm_nonfinite;

/* What is done around the rule, for all entries of a plan, in the same pass over memory.
 *
 *     g = g * (scale * clip)         clip is max_grad_norm / (norm + 1e-6) if that is below 1; norm is that of all
 *                                    gradients, after `scale`
 *     g = min(max(g, -max_grad_value), max_grad_value)
 *     ... the rule ...
 *     average = average + weight * (p - average)
 *
 * The weight is 1 - average_decay. With average_correction it is (1 - average_decay) / (1 - average_decay^t) in the
 * t-th update of the plan: the average of an entry that takes part from the first update on then does not depend on
 * what it begins with.
 *
 * With clear_grads the gradients are written, so each must have its memory for itself.
 */
typedef struct gdm_step_args {
    size_t size;            /* sizeof(gdm_step_args) */
    double scale;           /* a factor of all gradients; finite */
    double max_grad_norm;   /* > 0; 0: no limit */
    double max_grad_value;  /* > 0; 0: no limit */
    double average_decay;   /* in [0, 1); for entries that have an average */
    int average_correction; /* see above */
    int nonfinite;          /* a gdm_nonfinite: what to do if a gradient is NaN or infinite. Skip: nothing changes */
    int clear_grads;        /* set the gradients to 0 after they have been read, also in a step that is skipped */
    int rounding;           /* a gdm_rounding, for parameters and states that are bfloat16 or float16 */
    uint64_t seed;          /* of the random bits. They also depend on the update, the entry and the element */
} gdm_step_args;

#define GDM_STEP_DEFAULTS {sizeof(gdm_step_args), 1.0, 0.0, 0.0, 0.0, 0, GDM_PROPAGATE, 0, GDM_NEAREST, 0}

/* Sets these for the next steps. */
gdm_status gdm_plan_set_step_args(gdm_plan *plan, const gdm_step_args *args);

/* Sets only the factor of the gradients: the cheapest change. */
gdm_status gdm_plan_set_scale(gdm_plan *plan, double scale);

/* Makes one step for every entry that has a gradient. After an error nothing has been written or counted. */
gdm_status gdm_plan_step(gdm_plan *plan);

/* For rules that need a preparation, which is Muon: writes into the state `update` of each of their entries that has a
 * gradient what is to be orthogonalized, after all that gdm_step_args says about gradients. Change it in place, and
 * then call gdm_plan_step. This writes nothing else and counts nothing; entries of other rules are left out. If the
 * report then says was_skipped, the step will be skipped, and nothing has been written. */
gdm_status gdm_plan_prepare(gdm_plan *plan);

/* What the parameters of Schedule-Free rules are: the points at which gradients are computed (GDM_TRAIN, the mode of a
 * new plan), or the averages, which are the result of a training and what to evaluate (GDM_EVAL). */
typedef enum gdm_mode { GDM_TRAIN = 0, GDM_EVAL = 1 } gdm_mode;

/* Brings a plan into a mode: does nothing if it is in it, else changes the parameters of the entries with a
 * Schedule-Free rule that have made a step, and their copies, in one pass:
 *
 *     p = p + (1 - 1 / momentum) * (z - p)     to GDM_EVAL; betas[0] is the momentum of Schedule-Free AdamW
 *     p = p + (1 - momentum) * (z - p)         to GDM_TRAIN
 *
 * What is narrow is rounded to the nearest number. Two swaps may change the last bits of a parameter. Change the
 * momentum in GDM_EVAL: in GDM_TRAIN that would change what the average is. After an error nothing has been written.
 */
gdm_status gdm_plan_swap(gdm_plan *plan, gdm_mode mode);

/* Sets what the parameters are, to continue where another plan ended. It does not change them. */
gdm_status gdm_plan_set_mode(gdm_plan *plan, gdm_mode mode);

/* Gets the mode. */
gdm_status gdm_plan_get_mode(const gdm_plan *plan, gdm_mode *mode);

typedef struct gdm_step_report {
    size_t size;      /* sizeof(gdm_step_report), set by the caller */
    uint64_t updates; /* steps that were not skipped */
    uint64_t skipped; /* steps that were */
    double grad_norm; /* of the last step, with max_grad_norm; else NaN */
    int was_skipped;  /* the last step */
} gdm_step_report;

/* Gets what the steps so far have done. */
gdm_status gdm_plan_get_report(const gdm_plan *plan, gdm_step_report *report);

/* Sets the number of updates and of skipped steps, to continue where another plan ended. */
gdm_status gdm_plan_set_updates(gdm_plan *plan, uint64_t updates, uint64_t skipped);

/* Gets how many steps an entry has made, and its current scalars, in the order of the rule's argument struct. Either
 * pointer may be NULL. */
gdm_status gdm_plan_get_progress(const gdm_plan *plan, size_t entry, uint64_t *steps, double *scalars);

/* Sets both, to continue where another plan ended; `scalars` may be NULL if the rule has no scalars. */
gdm_status gdm_plan_set_progress(gdm_plan *plan, size_t entry, uint64_t steps, const double *scalars);

/* Gets how many steps the plan has made since the group was added, with or without gradients. A learning-rate schedule
 * counts these steps. */
gdm_status gdm_plan_get_group_steps(const gdm_plan *plan, size_t group, uint64_t *steps);

/* Sets that number. The step counts of the entries do not change. */
gdm_status gdm_plan_set_group_steps(gdm_plan *plan, size_t group, uint64_t steps);

/* After a call that did not return GDM_OK: *entry is the index of the entry that caused the error. After
 * GDM_ERR_OVERLAP, *other is the index of the entry that it shares memory with, which may be the same entry. An index
 * is SIZE_MAX if no entry is concerned. Either pointer may be NULL. */
gdm_status gdm_plan_get_error(const gdm_plan *plan, size_t *entry, size_t *other);

/* ---- Reductions: one number from many buffers -------------------------------------------------------------------
 *
 * A reduction only reads. Its result does not depend on the instruction set, the alignment or the number of threads:
 * each buffer is cut into blocks of 4,096 elements. Element i of a block is added to lane i % 32, in double. Then lane
 * j + 16 is added to lane j, then lane j + 8, j + 4, j + 2 and j + 1. The results of a buffer's blocks are added in a
 * tree: the left part has the first 2^k blocks, where 2^k is the largest power of two below their number; the right
 * part has the others; each part is added in the same way. The results of the buffers are added in such a tree, too.
 * Buffers without data or without elements are left out.
 */
typedef enum gdm_reduction {
    GDM_SUM_OF_SQUARES = 0,    /* the sum of the squares of all elements, each squared in double */
    GDM_LARGEST_MAGNITUDE = 1, /* the largest absolute value; NaN if any element is NaN; 0 without elements */
    GDM_NONFINITE_COUNT = 2,   /* how many elements are NaN or infinite */
} gdm_reduction;

/* Reduces `count` buffers; buffer i has lengths[i] elements. */
gdm_status gdm_reduce(gdm_reduction reduction, const gdm_buffer *buffers, const size_t *lengths, size_t count,
                      double *result);

/* Reduces the gradients of a plan's entries, with as many threads as its steps may use. */
gdm_status gdm_plan_reduce(gdm_plan *plan, gdm_reduction reduction, double *result);

/* Adds gradients to totals: total = total + scale * grad, in the dtype of the total if that is float32 or float64, else
 * in float32, then rounded to the nearest number. `totals` and `grads` have `count` buffers of any dtype but int8;
 * those with index i have lengths[i] elements. A float64 gradient needs a float64 total. No total may share memory with
 * another buffer. */
gdm_status gdm_accumulate(const gdm_buffer *totals, const gdm_buffer *grads, const size_t *lengths, size_t count,
                          double scale);

/* ---- Instruction sets -------------------------------------------------------------------------------------------
 *
 * The first call chooses the best instruction set that the CPU and the operating system support. The environment
 * variable GDM_ISA forces one; if that one is unknown or unsupported, every update returns GDM_ERR_ISA.
 */

/* The name of the instruction set in use: "baseline", "avx2", "avx512" or "neon"; NULL if GDM_ISA is wrong. */
const char *gdm_isa(void);

/* The i-th instruction set that this machine can run, best first; NULL after the last. */
const char *gdm_available_isa(size_t i);

/* Sets the instruction set for every thread. If this machine cannot run it, changes nothing and returns GDM_ERR_ISA. */
gdm_status gdm_set_isa(const char *name);

/* ---- Threads ----------------------------------------------------------------------------------------------------
 *
 * gdm divides large updates among its own threads. It starts them when it first needs them; between updates they sleep.
 * The results do not depend on the number of threads. Only one call at a time uses them: any other call runs on its own
 * thread alone. After a fork the child process starts new threads.
 */

#define GDM_MAX_THREADS 256

/* How many threads an update may use: the number that was set, else GDM_NUM_THREADS, else OMP_NUM_THREADS, else the
 * number of CPUs that this process may use (affinity, cgroup quota). */
int gdm_get_num_threads(void);

/* Sets that number for the whole process. Changes nothing and returns GDM_ERR_THREADS unless
 * 1 <= n <= GDM_MAX_THREADS. */
gdm_status gdm_set_num_threads(int n);

/* Does piece `i` of an update's work. */
typedef void gdm_task(void *context, size_t i);

/* The host program's own function to run work in parallel. It must call task(context, i) exactly once for each i below
 * count, in any order, on any threads, and return when all these calls have returned. */
typedef void gdm_parallel_for(void *host, size_t count, gdm_task *task, void *context);

/* Makes large updates use the host's threads; gdm then starts no threads. `host` is passed to each call of
 * parallel_for. NULL for parallel_for means gdm's own threads again. This holds for the whole process; do not call it
 * while an update runs. */
void gdm_set_parallel_for(gdm_parallel_for *parallel_for, void *host);

/* ---- The table of all these functions, for those who call them without linking -------------------------------------
 *
 * The PyCapsule gdm._core.c_api holds a gdm_table (see gdm/import.h); gdm.c_functions() is the same in Python.
 */
typedef struct gdm_function {
    const char *name;
    void (*address)(void);
    const char *signature; /* the C prototype */
} gdm_function;

/* New fields and functions are only added at the end. */
typedef struct gdm_table {
    size_t size;         /* sizeof(gdm_table) in the loaded library */
    unsigned abi;        /* GDM_ABI */
    const char *version; /* GDM_VERSION */
    const gdm_function *functions;
    size_t count; /* of functions */
} gdm_table;

const gdm_table *gdm_get_table(void);

#ifdef __cplusplus
}
#endif

#endif
