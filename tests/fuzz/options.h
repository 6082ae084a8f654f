/* Argument structs of any rule: its defaults from rules.def, some of them changed. */
#ifndef FUZZ_OPTIONS_H
#define FUZZ_OPTIONS_H

#include "core.h"
#include "memory.h"

#define PAIR(a, b) {a, b}
#define TRIPLE(a, b, c) {a, b, c}
#define DEFAULT(rule, name, value, ...) .name = value,
#define GDM_RULE(rule, states, switches)                                                                               \
    static const gdm_##rule##_args default_##rule = {.size = sizeof(gdm_##rule##_args),                                \
                                                     GDM_OPTIONS_##rule(DEFAULT, rule)};
#include "rules.def"
static const void *const defaults[RULES] = {
#define GDM_RULE(rule, states, switches) &default_##rule,
#include "rules.def"
};

/* An argument struct as a caller has it; and a copy as the library reads it, in which fields behind the struct's end
 * are 0. */
struct options {
    _Alignas(16) unsigned char bytes[4096 + 16];
    union args read;
    size_t size;
    double scalars[RUNS][MAX_SCALARS];
};

static inline size_t numbers_of(enum kind kind) {
    return kind == three_betas ? 3 : kind == betas || kind == etas || kind == step_sizes ? 2 : 1;
}

static void change_option(struct input *in, const struct option_info *option, unsigned char *args) {
    double numbers[3];
    int flag_value;
    uint64_t steps;
    switch (option->kind) {
    case not_negative:
    case below_one:
    case up_to_one:
    case betas:
    case three_betas:
    case etas:
    case step_sizes:
        for (size_t i = 0; i < numbers_of(option->kind); i++) numbers[i] = number(in);
        memcpy(args + option->offset, numbers, numbers_of(option->kind) * sizeof *numbers);
        return;
    case flag:
    case form:
    case phase:
        flag_value = flag_of(in);
        memcpy(args + option->offset, &flag_value, sizeof flag_value);
        return;
    case count:
        steps = count_of(in);
        memcpy(args + option->offset, &steps, sizeof steps);
        return;
    case factors:
    case scalar: return; /* pointers: see point_options */
    }
    fail("an option of a kind that has no values here");
}

/* Sizes that are not that of the struct: those of older and newer callers, and wrong ones. */
static size_t change_size(struct input *in, struct options *out, size_t size) {
    const unsigned how = byte(in);
    switch (how % 6) {
    case 0: return size - how / 6 * 8 % size;
    case 1: return how / 6 % 6 * 8;
    case 2: return size + how / 6 * 8;
    case 3: out->bytes[size + how / 6] = 1; return size + how / 6 + 1;
    case 4: return 4096 + how / 6;
    default: return SIZE_MAX;
    }
}

/* Half of all inputs change few options. */
static void read_options(struct input *in, enum rule rule, struct options *out) {
    const struct rule_info *info = &gdm_rules[rule];
    const unsigned changed = (unsigned)word(in, 2);
    size_t size = info->args_size, i = 0;
    memset(out->bytes, 0, 1024);
    memcpy(out->bytes, defaults[rule], size);
    if (info->step) out->bytes[info->step] = 1;
    for (const struct option_info *option = info->options; option->name; option++, i++)
        if (changed >> i % 15 & 1) change_option(in, option, out->bytes);
    info->begin(out->scalars[0]);
    for (unsigned k = 0; k < info->scalars; k++) {
        if (changed >> 15) out->scalars[0][k] = number(in);
        for (unsigned run = 1; run < RUNS; run++) out->scalars[run][k] = out->scalars[0][k];
    }
    if (byte(in) > 247) size = change_size(in, out, size);
    memcpy(out->bytes, &size, sizeof size);
    out->size = size;
    memset(&out->read, 0, sizeof out->read);
    memcpy(&out->read, out->bytes, size < info->args_size ? size : info->args_size);
    out->read.size = info->args_size;
}

/* Sets the pointers of the struct: the factors of the learning rate, and the scalars of a run. */
static void point_options(struct options *options, enum rule rule, unsigned run, const void *lr_scale) {
    const struct rule_info *info = &gdm_rules[rule];
    for (const struct option_info *option = info->options; option->name; option++)
        if (option->kind == factors) memcpy(options->bytes + option->offset, &lr_scale, sizeof lr_scale);
    for (unsigned k = 0; k < info->scalars; k++) {
        double *scalar = &options->scalars[run][k];
        memcpy(options->bytes + info->scalar[k], &scalar, sizeof scalar);
    }
}

/* Whether the struct is long enough to have factors of the learning rate. */
__attribute__((unused)) static int can_have_lr_scale(const struct options *options, enum rule rule) {
    for (const struct option_info *option = gdm_rules[rule].options; option->name; option++)
        if (option->kind == factors) return option->offset < options->size;
    return 0;
}

/* Whether the options need the k-th state. */
static int needs_state(const union args *args, enum rule rule, unsigned k) {
    const char *name = gdm_rules[rule].state[k].option;
    if (!name) return 1;
    for (const struct option_info *option = gdm_rules[rule].options; option->name; option++) {
        const unsigned char *field = (const unsigned char *)args + option->offset;
        if (strcmp(option->name, name)) continue;
        return option->kind == flag ? *(const int *)field != 0 : *(const double *)field != 0;
    }
    fail("a state that needs an option which its rule does not have");
}

#endif
