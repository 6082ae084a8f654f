/* Every rule, dtype and combination of options, first steps too, over sizes 0 to 257, from fixed pseudo-random numbers;
 * then every stage, over many patterns of bits. Prints the instruction set in use, and a line for each case: the rule,
 * the dtype, the options that are on, and a hash of the results; or "stage", its name and dtypes, and a hash. These
 * lines are the same on every machine. With the argument every-isa it is a test of its own. It prints each case in
 * which an instruction set of this machine differs from the first one, and fails if there is any.
 */
#include "../../csrc/core.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { SIZES = 258, MAX_CASES = 1 << 16 };

static uint64_t state, hash;
static uint64_t hashes[MAX_CASES], expected[MAX_CASES]; /* of this run, and of the first instruction set's */
static size_t cases, differences;
static enum { PRINT, RECORD, COMPARE } mode;
static double doubles[MAX_BUFFERS][SIZES];
static float floats[MAX_BUFFERS][SIZES];
static double scalars[MAX_SCALARS];

/* In (-1, 1) times a power of two; xorshift64, by G. Marsaglia. */
static double number(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    const double x = (double)(state >> 11) * 0x1p-52 - 1;
    return x * (double)(1u << (state & 15)) * 0x1p-8;
}

/* FNV-1a, over words in the machine's own order. */
static void add(const void *number, size_t bytes) {
    for (size_t i = 0; i < bytes; i += sizeof(uint32_t)) {
        uint32_t word;
        memcpy(&word, (const char *)number + i, sizeof word);
        hash = (hash ^ word) * 1099511628211u;
    }
}

/* The bits of a NaN are the machine's affair. */
static void add_all(enum dtype dtype, const void *buffer, size_t n) {
    const float *f = buffer, no_float = NAN;
    const double *d = buffer, no_double = NAN;
    for (size_t i = 0; i < n; i++)
        if (dtype == F32)
            add(isnan(f[i]) ? &no_float : &f[i], sizeof *f);
        else
            add(isnan(d[i]) ? &no_double : &d[i], sizeof *d);
}

static int every_size(enum rule rule, enum dtype dtype, const union args *args, const struct choice *choice,
                      int with_lr_scale) {
    static union {
        double doubles[MAX_BUFFERS][SIZES];
        float floats[MAX_BUFFERS][SIZES];
    } work;
    for (size_t n = 0; n < SIZES; n++) {
        void *buffers[MAX_BUFFERS], *given[MAX_BUFFERS];
        for (unsigned k = 0; k < MAX_BUFFERS; k++) {
            buffers[k] = dtype == F32 ? (void *)work.floats[k] : (void *)work.doubles[k];
            memcpy(buffers[k], dtype == F32 ? (void *)floats[k] : (void *)doubles[k], n * size_of(dtype));
            given[k] = k == SCALE && !with_lr_scale ? NULL : buffers[k];
        }
        for (unsigned k = 0; k < MAX_SCALARS; k++) scalars[k] = 0.5;
        if (gdm_run(rule, dtype, given, n, args, choice)) return 1;
        add(scalars, sizeof scalars);
        for (unsigned k = 0; k < STATE + gdm_rules[rule].states; k++) add_all(dtype, buffers[k], n);
    }
    return 0;
}

/* A legal value for an option, by its kind. `given` is for those that may be left off. */
static void set(union args *args, const struct option_info *option, int given, unsigned nth) {
    void *field = (char *)args + option->offset;
    const double unit = strncmp(option->name, "t_", 2) ? 0.0123 : 12.3; /* a number of steps, or not */
    switch (option->kind) {
    case not_negative:
    case below_one:
    case up_to_one: *(double *)field = given ? unit * nth : 0; break;
    case flag:
    case phase:
    case form: *(int *)field = given; break;
    case factors: *(const void **)field = given ? floats[SCALE] : NULL; break;
    case count: *(uint64_t *)field = nth; break;
    case betas: memcpy(field, (double[2]){0.9, 0.99}, 2 * sizeof(double)); break;
    case three_betas: memcpy(field, (double[3]){0.9, 0.99, 0.999}, 3 * sizeof(double)); break;
    case etas: memcpy(field, (double[2]){0.5, 1.2}, 2 * sizeof(double)); break;
    case step_sizes: memcpy(field, (double[2]){0.01, 10}, 2 * sizeof(double)); break;
    case scalar: break;
    }
}

static int may_be_off(enum kind kind) {
    return kind < count;
}

static void print_case(enum rule rule, enum dtype dtype, unsigned combination, int first) {
    printf("%s %s", gdm_rules[rule].name, dtype == F32 ? "f32" : "f64");
    unsigned bit = 0;
    for (const struct option_info *option = gdm_rules[rule].options; option->name; option++)
        if (may_be_off(option->kind) && combination >> bit++ & 1) printf(" %s", option->name);
    printf("%s", first ? " first-step" : "");
}

/* Keeps the hash of a case, or compares it. Returns whether the case is to be printed. */
static int end_case(void) {
    const uint64_t wanted = expected[cases];
    hashes[cases++] = hash;
    if (mode == RECORD || (mode == COMPARE && hash == wanted)) return 0;
    differences++;
    return 1;
}

/* Every dtype and size. */
static int every_dtype(enum rule rule, unsigned combination, const union args *args, const struct choice *choice,
                       int with_lr_scale, int first) {
    for (enum dtype dtype = 0; dtype < DTYPES; dtype++) {
        hash = 14695981039346656037u;
        if (cases == MAX_CASES || every_size(rule, dtype, args, choice, with_lr_scale)) return 1;
        if (!end_case()) continue;
        print_case(rule, dtype, combination, first);
        printf(" %016" PRIx64 "\n", hash);
    }
    return 0;
}

/* Combinations that are refused are passed over. */
static int every_option(enum rule rule) {
    const struct rule_info *info = &gdm_rules[rule];
    for (unsigned combination = 0;; combination++) {
        union args args = {.size = info->args_size};
        struct choice choice;
        unsigned bit = 0;
        int with_lr_scale = 0;
        for (unsigned k = 0; k < info->scalars; k++) *(double **)((char *)&args + info->scalar[k]) = &scalars[k];
        for (unsigned k = 0; k < MAX_SCALARS; k++) scalars[k] = 0.5;
        for (const struct option_info *option = info->options; option->name; option++) {
            set(&args, option, combination >> bit & 1, bit + 1);
            if (option->kind == factors) with_lr_scale = combination >> bit & 1;
            bit += may_be_off(option->kind);
        }
        if (combination >> bit) return 0;
        if (gdm_check(rule, F32, &args, &choice)) continue;
        if (every_dtype(rule, combination, &args, &choice, with_lr_scale, 0)) return 1;
        choice.variant |= choice.first;
        if (choice.first && every_dtype(rule, combination, &args, &choice, with_lr_scale, 1)) return 1;
    }
}

/* ---- stages ----------------------------------------------------------------------------------------------------- */

static const char *const names[STORAGES] = {"f32", "f64", "bf16", "f16", "int8"};

/* Adds a buffer of any dtype to the hash. */
static void add_stored(enum dtype dtype, const void *buffer, size_t n) {
    const uint8_t *bytes = buffer;
    const uint16_t *halves = buffer;
    if (dtype < DTYPES) add_all(dtype, buffer, n);
    for (size_t i = 0; i < n && dtype >= DTYPES; i++) {
        uint32_t word = dtype == INT8 ? bytes[i] : halves[i];
        if (dtype == BF16 && (word & 0x7fff) > 0x7f80) word = 0x7fc0;
        if (dtype == F16 && (word & 0x7fff) > 0x7c00) word = 0x7e00;
        add(&word, sizeof word);
    }
}

/* All patterns of 16 bits; as float they have any exponent, and in turn a tie, its neighbours and other lower halves.
 * As double they are those numbers, or near them. */
enum { PATTERNS = 1 << 16 };
static union pattern {
    uint16_t halves[PATTERNS];
    int8_t bytes[PATTERNS];
    float floats[PATTERNS];
    double doubles[PATTERNS];
    uint32_t words[PATTERNS];
} given[STORAGES], out, more;
static float scales[PATTERNS / SCALE_BLOCK];

static void fill_patterns(void) {
    static const uint32_t lower[] = {0x8000, 0x7fff, 0x8001, 0, 1, 0xffff, 0x1000, 0x0fff, 0x1001, 0x3000, 0xabcd};
    for (uint32_t i = 0; i < PATTERNS; i++) {
        given[F32].words[i] = i << 16 | lower[(i ^ i >> 8) % 11];
        given[F64].doubles[i] = given[F32].floats[i] * (i % 3 ? 1 : 1 + 0x1p-40);
        given[BF16].halves[i] = given[F16].halves[i] = (uint16_t)i;
        given[INT8].bytes[i] = (int8_t)(i % 251);
    }
}

/* Numbers for states in int8: blocks of them, some too small for a scale, some with a number that is not finite. */
static void fill_states(enum dtype dtype) {
    for (uint32_t i = 0; i < PATTERNS; i++) {
        const uint32_t block = i / SCALE_BLOCK;
        double x = number() * (block % 7 ? 1 : 0x1p-140);
        if (i % 1021 == 5) x = i % 2 ? INFINITY : NAN;
        if (block % 31 == 3) x = 0;
        if (dtype == F32)
            given[F32].floats[i] = (float)x;
        else
            given[F64].doubles[i] = x;
    }
}

/* Ends the case of a stage. */
static void end_stage(const char *stage, enum dtype from, enum dtype to) {
    if (end_case()) printf("stage %s %s %s %016" PRIx64 "\n", stage, names[from], names[to], hash);
    hash = 14695981039346656037u;
}

static void every_conversion(const struct isa *isa, enum dtype computed_in) {
    const struct key key = {0x12345678, 0x9abcdef0};
    for (enum dtype dtype = 0; dtype < FLOATS; dtype++) {
        if (dtype == computed_in) continue;
        isa->load[dtype][computed_in](&out, &given[dtype], PATTERNS);
        add_stored(computed_in, &out, PATTERNS);
        end_stage("load", dtype, computed_in);
        isa->store[dtype][computed_in](&out, &given[computed_in], PATTERNS);
        add_stored(dtype, &out, PATTERNS);
        end_stage("store", computed_in, dtype);
        if (dtype < DTYPES) continue;
        isa->store_random[dtype][computed_in](&out, &given[computed_in], PATTERNS, key, 0xffff8000);
        add_stored(dtype, &out, PATTERNS);
        end_stage("store_random", computed_in, dtype);
    }
}

static void every_int8(const struct isa *isa, enum dtype computed_in) {
    static const char *const stages[][2] = {{"store_int8_plain", "load_int8_plain"},
                                            {"store_int8_square", "load_int8_square"}};
    const struct key key = {0x9abcdef0, 0x12345678};
    for (int kind = plain; kind <= square; kind++) {
        fill_states(computed_in);
        for (size_t i = 0; i < PATTERNS && kind == square; i++) {
            given[F32].floats[i] = fabsf(given[F32].floats[i]);
            given[F64].doubles[i] = fabs(given[F64].doubles[i]);
        }
        isa->store_int8[kind][computed_in](&out, scales, &given[computed_in], PATTERNS - 9, key, 128);
        add_stored(INT8, &out, PATTERNS - 9);
        add_stored(F32, scales, PATTERNS / SCALE_BLOCK);
        end_stage(stages[kind][0], computed_in, INT8);
        isa->load_int8[kind][computed_in](&out, &given[INT8], scales, PATTERNS - 9);
        add_stored(computed_in, &out, PATTERNS - 9);
        end_stage(stages[kind][1], INT8, computed_in);
    }
}

static void every_arithmetic(const struct isa *isa, enum dtype dtype) {
    isa->scale[dtype](&out, &given[dtype], PATTERNS, 1.0 / 3);
    add_stored(dtype, &out, PATTERNS);
    end_stage("scale", dtype, dtype);
    isa->limit[dtype](&out, &given[dtype], PATTERNS, 1.0 / 3);
    add_stored(dtype, &out, PATTERNS);
    end_stage("limit", dtype, dtype);
    /* The other number of each pair is one of another magnitude. */
    memset(&more, 0, sizeof more);
    memcpy(&more, (const char *)&given[dtype] + 12345 * size_of(dtype), (PATTERNS - 12345) * size_of(dtype));
    isa->average[dtype](&more, &given[dtype], PATTERNS, 0.1);
    add_stored(dtype, &more, PATTERNS);
    end_stage("average", dtype, dtype);
    isa->accumulate[dtype](&more, &given[dtype], PATTERNS, 0.1);
    add_stored(dtype, &more, PATTERNS);
    end_stage("accumulate", dtype, dtype);
}

static void every_stage(const struct isa *isa) {
    hash = 14695981039346656037u;
    fill_patterns();
    for (enum dtype dtype = 0; dtype < DTYPES; dtype++) {
        every_conversion(isa, dtype);
        every_arithmetic(isa, dtype);
    }
    isa->load_split(out.floats, given[BF16].halves, (const uint16_t *)&given[F32] + 1, PATTERNS);
    add_stored(F32, &out, PATTERNS);
    end_stage("load_split", BF16, F32);
    isa->store_split(out.halves, more.halves, given[F32].floats, PATTERNS);
    add_stored(BF16, &out, PATTERNS);
    add_stored(BF16, &more, PATTERNS);
    end_stage("store_split", F32, BF16);
    for (enum dtype dtype = 0; dtype < DTYPES; dtype++) every_int8(isa, dtype);
}

static int run(void) {
    state = 88172645463325252u, cases = 0, differences = 0;
    printf("%s\n", gdm_isa());
    for (enum rule rule = 0; rule < RULES; rule++) {
        for (unsigned k = 0; k < MAX_BUFFERS; k++) {
            const char *name =
                k >= STATE && k < STATE + gdm_rules[rule].states ? gdm_rules[rule].state[k - STATE].name : "";
            const int square = strstr(name, "sq") || strstr(name, "sum"); /* of which a root is taken */
            for (size_t i = 0; i < SIZES; i++) {
                doubles[k][i] = square ? fabs(number()) : number();
                floats[k][i] = (float)doubles[k][i];
            }
        }
        if (every_option(rule)) return 1;
    }
    every_stage(gdm_active_isa());
    return 0;
}

int main(int count, char **arguments) {
    if (count < 2 || strcmp(arguments[1], "every-isa")) return run();
    int failed = 0;
    for (size_t i = 0; gdm_available_isa(i); i++) {
        mode = i ? COMPARE : RECORD;
        if (gdm_set_isa(gdm_available_isa(i)) || run()) return 1;
        if (mode == RECORD) memcpy(expected, hashes, sizeof expected);
        if (differences) failed = 1;
    }
    return failed;
}
