/* The rules' host parts: the checks of their options, and the constants that their kernels read.
 *
 * These functions are inlined into the public functions of each rule and into the table gdm_rules.
 */
#ifndef GDM_HOST_H
#define GDM_HOST_H

#include "core.h"
#include "real_power.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* ---- macros for the rules' files -------------------------------------------------------------------------------- */

/* CHOOSE(rule) checks the options against each other and sets out->variant, out->first and out->prepare, which
 * are 0 at first.
 * COMPUTE(rule) computes the constants, and the scalars after this step. */
#define UNUSED __attribute__((unused))
#define CHOOSE(rule)                                                                                                   \
    static inline gdm_status choose_##rule(UNUSED const gdm_##rule##_args *args, UNUSED struct choice *out)
#define COMPUTE(rule)                                                                                                  \
    static inline void compute_##rule(const gdm_##rule##_args *args, UNUSED struct cache *cache,                       \
                                      struct rule##_constants *out, UNUSED double *scalars)

/* The trust ratio of a parameter, from its norm and that of DIRECTION(rule). */
#define TRUST(rule)                                                                                                    \
    static inline double trust_##rule(UNUSED const gdm_##rule##_args *args, double param_norm, double direction_norm)

/* The constants that every rule has; and the bit for coupled decay. */
#define COMMON_CONSTANTS(args, rate, decoupled)                                                                        \
    .lr = (rate), .weight_decay = (args)->weight_decay, .grad_scale = (args)->maximize ? -1.0 : 1.0,                   \
    .decay_factor = (decoupled) ? 1.0 - (args)->lr * (args)->weight_decay : 1.0,                                       \
    .lr_times_decay = (decoupled) ? (args)->lr * (args)->weight_decay : 0.0
#define DECAY_VARIANT(args, decoupled) ((args)->weight_decay != 0 && !(decoupled) ? COUPLED_DECAY : 0)

/* The squares of a base that a plan keeps; NULL without a plan. */
#define SQUARES_OF(cache, k) ((cache) ? (cache)->squares[k] : NULL)

/* 0.96^x for x >= 0: e^y with y = x log(0.96). y is halved until it is small; then the series of e^y is squared as many
 * times. */
static inline double power_of_096(double x) {
    double y = x * -0.040821994520255166, sum = 1.0;
    int halved = 0;
    if (y < -745.0) return 0.0;
    for (; y < -0.125; halved++) y = y * 0.5;
    for (int k = 12; k >= 1; k--) sum = 1.0 + sum * y / k;
    for (; halved; halved--) sum = sum * sum;
    return sum;
}

/* What both Schedule-Free rules compute for a step. */
struct averaging {
    double lr;                 /* after the warm-up's factor */
    double weight_sum, lr_max; /* after this step */
    double weight;             /* of the newest z in the average x */
    double step_share;         /* how much of the step of z the parameter makes, too */
};

#define AVERAGING(args, kept)                                                                                          \
    averaging((args)->lr, kept, (double)(args)->step, (args)->warmup_steps, (args)->r, (args)->weight_lr_power,        \
              *(args)->weight_sum, *(args)->lr_max)

static inline double at_most_finite(double x) {
    return x <= DBL_MAX ? x : DBL_MAX; /* NaN, too: infinity * 0 */
}

/* x^exponent for x >= 0; the usual exponents at little cost. */
static inline double weight_power(double x, double exponent) {
    if (exponent == 0) return 1.0;
    if (exponent == 1) return x;
    if (exponent == 2) return x * x;
    return x > 0 ? real_power(x, exponent) : 0.0;
}

static inline struct averaging averaging(double lr, double kept, double step, double warmup_steps, double r,
                                         double weight_lr_power, double weight_sum, double lr_max) {
    struct averaging now;
    now.lr = step < warmup_steps ? lr * (step / warmup_steps) : lr;
    now.lr_max = now.lr > lr_max ? now.lr : lr_max;
    const double weight = at_most_finite(weight_power(step, r) * weight_power(now.lr_max, weight_lr_power));
    now.weight_sum = at_most_finite(weight_sum + weight);
    now.weight = now.weight_sum > 0 ? weight / now.weight_sum : 0.0;
    now.step_share = 1.0 - kept * (1.0 - now.weight);
    return now;
}

/* The product, with what its rounding left off. */
static inline struct two multiply(struct two a, struct two b) {
    const struct two product = product_of(a.high, b.high);
    return (struct two){product.high, product.low + (a.high * b.low + a.low * b.high)};
}

/* A power of a number in [0, 1], rounded once. It takes some 40 ns: where a few roundings make no difference, power()
 * is faster. */
static inline double power_to_nearest(double base, uint64_t exponent) {
    struct two result = {1.0, 0.0}, square = {base, 0.0};
    for (; exponent; exponent >>= 1) {
        if (exponent & 1) result = multiply(result, square);
        square = multiply(square, square);
    }
    return result.high + result.low;
}

#define GDM_HOST
#define GDM_RULE_FILES
#include "rules.def"
#undef GDM_RULE_FILES
#undef GDM_HOST

/* ---- options ---------------------------------------------------------------------------------------------------- */

/* The largest number that is still finite after it is rounded to a dtype. For float it is the double just below FLT_MAX
 * plus half a unit in its last place. */
static inline double largest_finite(enum dtype dtype) {
    return dtype == F32 ? 0x1.fffffefffffffp127 : DBL_MAX;
}

/* For each kind of option: its type in the argument struct, and whether a value is legal for kernels that compute in
 * this dtype. NaN is never legal. */
#define TYPE_not_negative double
#define TYPE_below_one double
#define TYPE_up_to_one double
#define TYPE_betas const double *
#define TYPE_three_betas const double *
#define TYPE_etas const double *
#define TYPE_step_sizes const double *
#define TYPE_flag int
#define TYPE_form int
#define TYPE_factors const void *
#define TYPE_count uint64_t
#define TYPE_phase int
#define LEGAL_not_negative(x, dtype) ((x) >= 0 && (x) <= largest_finite(dtype))
#define LEGAL_below_one(x, dtype) ((x) >= 0 && (x) < 1)
#define LEGAL_up_to_one(x, dtype) ((x) >= 0 && (x) <= 1)
#define LEGAL_betas(x, dtype) (LEGAL_below_one((x)[0], dtype) && LEGAL_below_one((x)[1], dtype))
#define LEGAL_three_betas(x, dtype) (LEGAL_betas(x, dtype) && LEGAL_below_one((x)[2], dtype))
#define LEGAL_etas(x, dtype) ((x)[0] > 0 && (x)[0] < 1 && (x)[1] > 1 && (x)[1] <= largest_finite(dtype))
#define LEGAL_step_sizes(x, dtype) ((x)[0] >= 0 && (x)[0] <= (x)[1] && (x)[1] <= largest_finite(dtype))
#define LEGAL_flag(x, dtype) ((void)(x), 1)
#define LEGAL_form(x, dtype) ((x) == GDM_FORM_TORCH || (x) == GDM_FORM_CLASSIC)
#define LEGAL_factors(x, dtype) ((void)(x), 1)
#define LEGAL_count(x, dtype) ((x) >= 1)
#define LEGAL_phase(x, dtype) ((void)(x), 1)

#define GDM_OPTION(name, kind, status, must, meaning)                                                                  \
    static inline gdm_status check_option_##name(TYPE_##kind x, enum dtype dtype) {                                    \
        (void)dtype;                                                                                                   \
        return LEGAL_##kind(x, dtype) ? GDM_OK : (gdm_status)status;                                                   \
    }                                                                                                                  \
    enum { KIND_##name = kind };
#include "rules.def"
#define GDM_SCALAR(name, initial, domain, status, must, meaning)                                                       \
    static inline gdm_status check_option_##name(const double *x) {                                                    \
        return x && LEGAL_##domain(*x, F64) ? GDM_OK : (gdm_status)status;                                             \
    }                                                                                                                  \
    enum { KIND_##name = scalar };
#include "rules.def"

/* The row of an option in rules.def: OPTION(R, name, default) or OPTION(R, name, default, row). */
#define ROW(name, ...) THIRD(name, __VA_ARGS__, name, )
#define THIRD(name, default_value, row, ...) row

#define CHECK(rule, name, ...) CHECK_BY(ROW(name, __VA_ARGS__), name)
#define CHECK_BY(row, name) CHECK_BY_(row, name)
#define CHECK_BY_(row, name)                                                                                           \
    if ((status = check_option_##row(args->name, dtype))) return status;
#define CHECK_SCALAR(rule, name)                                                                                       \
    if ((status = check_option_##name(args->name))) return status;
#define USED(name, kind) out->used |= 1u << k++;
#define USED_WITH(name, kind, option) out->used |= (unsigned)(args->option != 0) << k++;
#define GDM_RULE(rule, states, switches)                                                                               \
    static inline gdm_status check_##rule(const gdm_##rule##_args *args, enum dtype dtype, struct choice *out) {       \
        gdm_status status;                                                                                             \
        unsigned k = 0;                                                                                                \
        GDM_OPTIONS_##rule(CHECK, rule);                                                                               \
        GDM_SCALARS_##rule(CHECK_SCALAR, rule);                                                                        \
        *out = (struct choice){0, 0, 0, 0};                                                                            \
        GDM_STATES_##rule(USED, USED_WITH);                                                                            \
        (void)k;                                                                                                       \
        return choose_##rule(args, out);                                                                               \
    }
#include "rules.def"
#undef CHECK
#undef CHECK_BY
#undef CHECK_BY_
#undef CHECK_SCALAR
#undef USED
#undef USED_WITH

#endif
