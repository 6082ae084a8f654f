/* The table of rules, for code that gets the rule as a number: plans, tests and the Python package. */
#include "host.h"

#define GDM_SCALAR(name, initial, domain, status, must, meaning)                                                       \
    static inline double initial_##name(void) {                                                                        \
        return initial;                                                                                                \
    }
#include "rules.def"

#define BEGIN(rule, name) *scalars++ = initial_##name();
gdm_status gdm_read_struct(void *out, size_t size, const void *args) {
    size_t callers;
    if (!args) return GDM_ERR_NULL;
    memcpy(&callers, args, sizeof callers);
    if (callers < sizeof callers + sizeof(double) || callers > 4096) return GDM_ERR_STRUCT_SIZE;
    for (size_t i = size; i < callers; i++)
        if (((const unsigned char *)args)[i]) return GDM_ERR_STRUCT_SIZE;
    memset(out, 0, size);
    memcpy(out, args, callers < size ? callers : size);
    memcpy(out, &size, sizeof size);
    return GDM_OK;
}

#define CHECK_SCALAR(rule, name)                                                                                       \
    if (!status) status = check_option_##name(scalars++);
#define GDM_RULE(rule, states, switches)                                                                               \
    static gdm_status read_any_##rule(const void *args, union args *out) {                                             \
        return gdm_read_struct(&out->rule, sizeof out->rule, args);                                                    \
    }                                                                                                                  \
    static gdm_status check_any_##rule(const union args *args, enum dtype dtype, struct choice *out) {                 \
        return check_##rule(&args->rule, dtype, out);                                                                  \
    }                                                                                                                  \
    static void begin_##rule(UNUSED double *scalars) {                                                                 \
        GDM_SCALARS_##rule(BEGIN, rule)                                                                                \
    }                                                                                                                  \
    static gdm_status check_scalars_##rule(UNUSED const double *scalars) {                                             \
        gdm_status status = GDM_OK;                                                                                    \
        GDM_SCALARS_##rule(CHECK_SCALAR, rule);                                                                        \
        return status;                                                                                                 \
    }                                                                                                                  \
    static void compute_any_##rule(const union args *args, struct cache *cache, union constants *out,                  \
                                   double *scalars) {                                                                  \
        compute_##rule(&args->rule, cache, &out->rule, scalars);                                                       \
    }
#include "rules.def"

#define OPTION_INFO(rule, name, ...) INFO(rule, name, ROW(name, __VA_ARGS__))
#define SCALAR_INFO(rule, name) INFO(rule, name, name)
#define INFO(rule, name, row) INFO_(rule, name, row)
#define INFO_(rule, name, row) {#name, (enum kind)KIND_##row, offsetof(gdm_##rule##_args, name)},
#define GDM_RULE(rule, states, switches)                                                                               \
    static const struct option_info rule##_options[] = {GDM_OPTIONS_##rule(OPTION_INFO, rule)                          \
                                                            GDM_SCALARS_##rule(SCALAR_INFO, rule){NULL, flag, 0}};
#include "rules.def"

/* The offset of the option `step`, the only count that a rule has. This adds up to it: all other options add 0. */
#define STEP_OFFSET(rule, name, ...) STEP_OFFSET_(rule, name, ROW(name, __VA_ARGS__))
#define STEP_OFFSET_(rule, name, row) STEP_OFFSET_BY(rule, name, row)
#define STEP_OFFSET_BY(rule, name, row) +((int)KIND_##row == count ? offsetof(gdm_##rule##_args, name) : 0)
#define ONE(rule, name) +1
#define SCALAR_OFFSET(rule, name) offsetof(gdm_##rule##_args, name),

#define STATE_INFO(name, kind) {#name, NULL, kind},
#define OPTIONAL_INFO(name, kind, option) {#name, #option, kind},
#define GDM_RULE(rule, number_of_states, number_of_switches)                                                           \
    _Static_assert(0 GDM_SCALARS_##rule(ONE, rule) <= MAX_SCALARS, "make MAX_SCALARS larger");                         \
    _Static_assert(number_of_states <= MAX_STATES, "make MAX_STATES larger");
#include "rules.def"
#define GDM_RULE(rule, number_of_states, number_of_switches)                                                           \
    [RULE_##rule] = {                                                                                                  \
        .name = #rule,                                                                                                 \
        .states = number_of_states,                                                                                    \
        .switches = number_of_switches,                                                                                \
        .scalars = 0 GDM_SCALARS_##rule(ONE, rule),                                                                    \
        .state = {GDM_STATES_##rule(STATE_INFO, OPTIONAL_INFO){NULL, NULL, plain}},                                    \
        .options = rule##_options,                                                                                     \
        .args_size = sizeof(gdm_##rule##_args),                                                                        \
        .step = 0 GDM_OPTIONS_##rule(STEP_OFFSET, rule),                                                               \
        .scalar = {GDM_SCALARS_##rule(SCALAR_OFFSET, rule) 0},                                                         \
        .begin = begin_##rule,                                                                                         \
        .check_scalars = check_scalars_##rule,                                                                         \
        .read = read_any_##rule,                                                                                       \
        .check = check_any_##rule,                                                                                     \
        .compute = compute_any_##rule,                                                                                 \
    },
GDM_INTERNAL const struct rule_info gdm_rules[RULES] = {
#include "rules.def"
};

#define GDM_TRUST(rule)                                                                                                \
    static double trust_any_##rule(const union args *args, double param_norm, double direction_norm) {                 \
        return trust_##rule(&args->rule, param_norm, direction_norm);                                                  \
    }
#include "rules.def"
#define GDM_TRUST(rule) [RULE_##rule] = {trust_any_##rule, offsetof(gdm_##rule##_args, adapt)},
GDM_INTERNAL const struct trust_info gdm_trusts[RULES] = {
#include "rules.def"
};

gdm_status gdm_check(enum rule rule, enum dtype dtype, const union args *args, struct choice *out) {
    return gdm_rules[rule].check(args, dtype, out);
}
