/* Calls an update function with any options and buffers: gdm_sgd_f32, gdm_sgd_f64, ...
 *
 * Checks that an error changes nothing, that a call that succeeds had no reason to fail and wrote only what the rule
 * writes, and that it gives the same bits in two ways: on two instruction sets, with other threads and another
 * alignment.
 */
#include "options.h"
#include "ways.h"

typedef gdm_status update(void *const *buffers, size_t n, const void *args);

#define TAKE(name, kind) void *name = buffers[k++];
#define TAKE_OPTIONAL(name, kind, option) TAKE(name, kind)
#define PASS(name, kind) name,
#define PASS_OPTIONAL(name, kind, option) name,
#define DEFINE(rule, suffix)                                                                                           \
    static gdm_status call_##rule##_##suffix(void *const *buffers, size_t n, const void *args) {                       \
        size_t k = STATE;                                                                                              \
        GDM_STATES_##rule(TAKE, TAKE_OPTIONAL);                                                                        \
        (void)k;                                                                                                       \
        return gdm_##rule##_##suffix(buffers[PARAM], GDM_STATES_##rule(PASS, PASS_OPTIONAL) buffers[GRAD], n, args);   \
    }
#define GDM_RULE(rule, states, switches) DEFINE(rule, f32) DEFINE(rule, f64)
#include "rules.def"
static update *const updates[RULES][DTYPES] = {
#define GDM_RULE(rule, states, switches) {call_##rule##_f32, call_##rule##_f64},
#include "rules.def"
};

/* Where the buffers of a call are. */
struct given {
    size_t at[MAX_BUFFERS];
    unsigned char is_null[MAX_BUFFERS], is_used[MAX_BUFFERS];
};

/* A buffer of its own; or one that lies wrong: at an odd address, over another one, or just beside it. */
static int place_buffer(struct input *in, size_t k, size_t n, enum dtype dtype, size_t *at) {
    const unsigned how = byte(in), style = byte(in);
    const size_t itemsize = size_of(dtype);
    const struct buffer *added = add_buffer_of(dtype, n, how % 8, style, style / 8 + 97 * k);
    if (!added) return 0;
    *at = added->at;
    if (how < 224) return 1;
    if (how < 232) {
        *at += 1 + how % (itemsize - 1);
    } else if (k) {
        const struct buffer *other = &memory.buffers[how % k];
        const long most = (long)(n * itemsize) + 16, delta = (long)(word(in, 2) % (uint64_t)(2 * most)) - most;
        const long moved = (long)other->at + (how & 8 ? delta : delta / (long)itemsize * (long)itemsize);
        if (moved >= 0 && (size_t)moved + n * itemsize + 32 <= ROOM) *at = (size_t)moved;
    }
    expose(*at, n * itemsize);
    return 1;
}

/* Whether two buffers of n elements share memory. */
static int share(size_t a, size_t b, size_t bytes) {
    return bytes && a < b + bytes && b < a + bytes;
}

/* Whether the buffers allow the call. */
static gdm_status expected(const struct given *given, size_t n, enum dtype dtype) {
    const size_t itemsize = size_of(dtype);
    for (size_t i = 0; i < MAX_BUFFERS; i++) {
        if (!given->is_used[i]) continue;
        if (given->is_null[i]) return GDM_ERR_NULL;
        if (given->at[i] % itemsize) return GDM_ERR_ALIGNMENT;
        for (size_t k = 0; k < i; k++)
            if (given->is_used[k] && !(k == GRAD && i == SCALE) && share(given->at[i], given->at[k], n * itemsize))
                return GDM_ERR_OVERLAP;
    }
    return GDM_OK;
}

static gdm_status call(unsigned run, const struct way *way, enum rule rule, enum dtype dtype, const struct given *given,
                       size_t n, struct options *options) {
    void *buffers[MAX_BUFFERS];
    for (size_t k = 0; k < MAX_BUFFERS; k++) buffers[k] = given->is_null[k] ? NULL : address(run, given->at[k]);
    point_options(options, rule, run, buffers[SCALE]);
    take_way(way);
    remember(run);
    const unsigned mode = enter_fp_mode(way);
    const gdm_status status = updates[rule][dtype](buffers, n, options->bytes);
    leave_fp_mode(way, mode);
    if (!status && n)
        for (size_t k = 0; k < MAX_BUFFERS; k++)
            if (given->is_used[k] && k != GRAD && k != SCALE) accept(run, given->at[k], n * size_of(dtype));
    require_unchanged(run, status ? "an update that fails has changed something"
                                  : "an update has written to something that is not its own");
    return status;
}

/* The status fits the buffers, and after a success they are the same in both runs. */
static void check_buffers(gdm_status status, const struct given *given, size_t n, enum dtype dtype) {
    const gdm_status wanted = n ? expected(given, n, dtype) : GDM_OK;
    if (!*gdm_strerror(status)) fail("a status without a text");
    if (!status && wanted) fail("an update on buffers that do not allow it");
    if ((status == GDM_ERR_NULL || status == GDM_ERR_ALIGNMENT || status == GDM_ERR_OVERLAP) && status != wanted)
        fail("buffers that allow an update are refused");
    for (size_t k = 0; !status && k < MAX_BUFFERS; k++)
        if (given->is_used[k]) require_same(&(struct buffer){given->at[k], n, dtype}, "the result depends on the way");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct options options;
    struct input in = {data, size};
    const enum rule rule = (enum rule)below(&in, RULES);
    const unsigned flags = byte(&in);
    const enum dtype dtype = flags & 1 ? F64 : F32;
    const unsigned small = byte(&in);
    const size_t n = (flags & 18) == 18 ? small + 4 * word(&in, 1) : small % 80;
    const struct way ways[RUNS] = {plain_way(), other_way(&in)};
    const unsigned nulls = flags & 4 ? byte(&in) : 0;
    const int has_scale = flags & 8, is_too_long = flags >= 250;
    struct given given = {{0}, {0}, {0}};

    begin_memory(byte(&in));
    read_options(&in, rule, &options);
    for (size_t k = 0; k < STATE + gdm_rules[rule].states; k++) {
        if (!place_buffer(&in, k, n, dtype, &given.at[k])) return 0;
        given.is_null[k] = nulls >> k & 1;
        given.is_used[k] = k < STATE || needs_state(&options.read, rule, (unsigned)(k - STATE));
    }
    /* A buffer that the call need not look at may lie anywhere, or nowhere. */
    for (size_t k = STATE + gdm_rules[rule].states; k < MAX_BUFFERS; k++) given.is_null[k] = 1;
    if (!has_scale) given.is_null[SCALE] = 1;
    given.is_used[SCALE] = !given.is_null[SCALE] && can_have_lr_scale(&options, rule);

    const size_t length = is_too_long ? SIZE_MAX - small : n;
    gdm_status status[RUNS];
    double first_scalars[MAX_SCALARS];
    memcpy(first_scalars, options.scalars[0], sizeof first_scalars);
    for (unsigned run = 0; run < RUNS; run++)
        status[run] = call(run, &ways[run], rule, dtype, &given, length, &options);
    if (status[0] != status[1]) fail("the status depends on the way");
    for (unsigned k = 0; k < gdm_rules[rule].scalars; k++) {
        if (!same_number(options.scalars[0][k], options.scalars[1][k])) fail("a scalar depends on the way");
        if (status[0] && memcmp(&options.scalars[0][k], &first_scalars[k], sizeof(double)))
            fail("an update that fails has changed a scalar");
    }
    if (!status[0] && is_too_long) fail("an update of too many elements");
    check_buffers(status[0], &given, n, dtype);
    return 0;
}
