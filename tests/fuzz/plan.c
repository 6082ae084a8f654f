/* Decodes an input as a sequence of calls on a plan, and makes them on two plans, which run in two ways: on two
 * instruction sets, with other threads, alignments and tiles.
 *
 * Checks after each call that both plans and their buffers are the same, that a call wrote only what it may write, and
 * that a call that failed has changed nothing: if the input says so, the second plan does not make the calls that
 * failed on the first. Allocations fail where the input says so; the call is then made again. Now and then a new plan
 * continues where the second one ended.
 */
#include "options.h"
#include "ways.h"

enum { MOST_GROUPS = 4, MOST_ENTRIES = 8, MOST_CALLS = 64 };

/* A buffer of an entry; `at` is its place in memory. */
struct slot {
    size_t at;
    unsigned dtype; /* may be one that does not exist */
    int is_there;
};

enum { COPY = MAX_BUFFERS, AVERAGE, LOW_BITS, SCALES, SLOTS = SCALES + MAX_STATES };

struct item {
    size_t group, n;
    struct slot slots[SLOTS];
    double lr_factor;
    size_t state_count, args_size;
    int has_scales;
};

struct part {
    enum rule rule;
    union args args; /* the current ones */
};

/* What both plans have been told. */
static struct {
    gdm_plan *plans[RUNS];
    struct way ways[RUNS];
    struct part groups[MOST_GROUPS];
    struct item entries[MOST_ENTRIES];
    size_t group_count, entry_count;
    gdm_step_args around;
    int threads;
    int skips_failures; /* the second plan does not make the calls that failed on the first */
    int is_resumed;     /* the second plan is a new one, and has made no step yet */
    int is_strange;     /* some buffer has been given the memory of another one */
    int is_over;        /* one plan found that at once, and the other, to which entries have been added, would in its
                         * next step: they are no longer alike */
} all;

/* ---- allocations ------------------------------------------------------------------------------------------------- */

/* The core's allocations are made by these functions: see run.py. */
static unsigned fails_in; /* the allocation that fails: 1 is the next; 0: none does */
static int has_failed;

void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *old, size_t size);

static int is_to_fail(void) {
    if (!fails_in || --fails_in) return 0;
    return has_failed = 1;
}

void *__wrap_calloc(size_t count, size_t size) {
    return is_to_fail() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *old, size_t size) {
    return is_to_fail() ? NULL : __real_realloc(old, size);
}

/* ---- what may be written ----------------------------------------------------------------------------------------- */

enum writes { NOTHING, STEP, PREPARE, SWAP, TOTALS };

static size_t bytes_of(const struct item *entry, size_t k) {
    const size_t n = k >= SCALES ? scales_of(entry->n) : entry->n;
    return n * size_of((enum dtype)entry->slots[k].dtype);
}

static void accept_slot(unsigned run, const struct item *entry, size_t k) {
    if (entry->slots[k].is_there && entry->n) accept(run, entry->slots[k].at, bytes_of(entry, k));
}

static int is_averaged(enum rule rule) {
    switch (rule) {
#define GDM_AVERAGED(rule, share) case RULE_##rule:
#include "rules.def"
        return 1;
    default: return 0;
    }
}

static void accept_state(unsigned run, const struct item *entry, size_t k) {
    accept_slot(run, entry, STATE + k);
    accept_slot(run, entry, SCALES + k);
}

static void accept_writes(unsigned run, enum writes writes) {
    for (size_t i = 0; i < all.entry_count; i++) {
        const struct item *entry = &all.entries[i];
        const struct part *group = &all.groups[entry->group];
        const struct rule_info *info = &gdm_rules[group->rule];
        if (writes == SWAP ? !is_averaged(group->rule) : !entry->slots[GRAD].is_there) continue;
        for (unsigned k = 0; k < info->states && writes != SWAP; k++)
            if (needs_state(&group->args, group->rule, k) && (writes == STEP || info->state[k].kind == work))
                accept_state(run, entry, k);
        if (writes == PREPARE) continue;
        accept_slot(run, entry, PARAM);
        accept_slot(run, entry, LOW_BITS);
        accept_slot(run, entry, COPY);
        if (writes == STEP) accept_slot(run, entry, AVERAGE);
        if (writes == STEP && all.around.clear_grads) accept_slot(run, entry, GRAD);
    }
}

/* Whether a step writes to a buffer. */
static int is_written(size_t k) {
    return k != SCALE && (k != GRAD || all.around.clear_grads);
}

/* Whether two buffers share memory, of which a step writes at least one. */
static int are_in_conflict(const struct item *a, size_t k, const struct item *b, size_t j) {
    const struct slot *x = &a->slots[k], *y = &b->slots[j];
    return x->is_there && y->is_there && a->n && b->n && (is_written(k) || is_written(j)) &&
           x->at < y->at + bytes_of(b, j) && y->at < x->at + bytes_of(a, k);
}

static int has_conflict(void) {
    for (size_t i = 0; i < all.entry_count * SLOTS; i++)
        for (size_t j = 0; j < i; j++)
            if (are_in_conflict(&all.entries[i / SLOTS], i % SLOTS, &all.entries[j / SLOTS], j % SLOTS)) return 1;
    return 0;
}

/* A step is refused if buffers are in conflict, and only then. */
static void check_overlap(gdm_status status) {
    if (!status && all.is_strange && has_conflict()) fail("a step on buffers that share memory");
    if (status == GDM_ERR_OVERLAP && !all.is_strange) fail("buffers that share no memory are refused");
}

/* ---- one call on both plans -------------------------------------------------------------------------------------- */

struct totals {
    gdm_buffer totals[RUNS][3], grads[RUNS][3];
    size_t lengths[3], at[3], count;
    double scale;
};

/* The arguments of a call. */
struct call {
    gdm_status (*make)(unsigned run, const struct call *call);
    enum writes writes;
    enum rule rule;
    size_t index;
    double value;
    uint64_t counts[2];
    const double *scalars;
    struct options *options;
    const struct item *entry;
    const void *lr_scale;
    const gdm_step_args *around;
    const struct totals *totals;
    double *results; /* of each run */
};

static void accept_totals(unsigned run, const struct totals *its) {
    for (size_t i = 0; i < its->count; i++)
        if (its->lengths[i]) accept(run, its->at[i], its->lengths[i] * size_of((enum dtype)its->totals[run][i].dtype));
}

static void observe_entry(size_t i) {
    uint64_t steps[RUNS];
    double scalars[RUNS][MAX_SCALARS] = {{0}};
    for (unsigned run = 0; run < RUNS; run++)
        if (gdm_plan_get_progress(all.plans[run], i, &steps[run], scalars[run])) fail("gdm_plan_get_progress");
    if (steps[0] != steps[1]) fail("the steps of an entry differ");
    for (unsigned k = 0; k < MAX_SCALARS; k++)
        if (!same_number(scalars[0][k], scalars[1][k])) fail("a scalar of an entry differs");
}

/* All that a plan tells of itself is the same. */
static void observe(void) {
    uint64_t steps[RUNS];
    gdm_mode modes[RUNS];
    gdm_step_report reports[RUNS];
    for (size_t i = 0; i < all.entry_count; i++) observe_entry(i);
    for (size_t g = 0; g < all.group_count; g++) {
        for (unsigned run = 0; run < RUNS; run++)
            if (gdm_plan_get_group_steps(all.plans[run], g, &steps[run])) fail("gdm_plan_get_group_steps");
        if (steps[0] != steps[1]) fail("the steps of a group differ");
    }
    for (unsigned run = 0; run < RUNS; run++) {
        reports[run].size = sizeof reports[run];
        if (gdm_plan_get_report(all.plans[run], &reports[run])) fail("gdm_plan_get_report");
        if (gdm_plan_get_mode(all.plans[run], &modes[run])) fail("gdm_plan_get_mode");
    }
    if (modes[0] != modes[1]) fail("the modes differ");
    if (reports[0].updates != reports[1].updates || reports[0].skipped != reports[1].skipped)
        fail("the numbers of updates differ");
    if (all.is_resumed) return;
    if (reports[0].was_skipped != reports[1].was_skipped) fail("a step was skipped on one plan only");
    if (!same_number(reports[0].grad_norm, reports[1].grad_norm)) fail("the norms of the gradients differ");
}

static void observe_errors(void) {
    size_t entries[RUNS], others[RUNS];
    for (unsigned run = 0; run < RUNS; run++)
        if (gdm_plan_get_error(all.plans[run], &entries[run], &others[run])) fail("gdm_plan_get_error");
    if (entries[0] != entries[1] || others[0] != others[1]) fail("the errors are of different entries");
    if (entries[0] != SIZE_MAX && entries[0] >= all.entry_count) fail("an error of an entry that there is not");
    if (others[0] != SIZE_MAX && others[0] >= all.entry_count) fail("an error with an entry that there is not");
}

static gdm_status make_once(unsigned run, const struct call *call) {
    remember(run);
    const unsigned mode = enter_fp_mode(&all.ways[run]);
    const gdm_status status = call->make(run, call);
    leave_fp_mode(&all.ways[run], mode);
    if (!status && call->writes == TOTALS)
        accept_totals(run, call->totals);
    else if (!status && call->writes)
        accept_writes(run, call->writes);
    require_unchanged(run, status ? "a call that fails has changed something"
                                  : "a call has written to something that is not its own");
    return status;
}

/* Makes a call on the first plan, then on the second. An allocation may fail on the first; then it is made again. */
static gdm_status make(struct call *call) {
    gdm_status status, second;
    double results[RUNS] = {0};
    call->results = results;
    take_way(&all.ways[0]);
    has_failed = 0;
    status = make_once(0, call);
    if (has_failed && status != GDM_ERR_MEMORY) fail("an allocation fails, and the call does not say so");
    if (!has_failed && status == GDM_ERR_MEMORY) fail("a call says that an allocation fails, and none does");
    fails_in = 0;
    if (has_failed) status = make_once(0, call);
    if (!*gdm_strerror(status)) fail("a status without a text");
    if (!status || !all.skips_failures) {
        take_way(&all.ways[1]);
        second = make_once(1, call);
        if (status != second && !call->writes && (status == GDM_ERR_OVERLAP || second == GDM_ERR_OVERLAP) &&
            all.is_strange) {
            all.is_over = 1;
            return status;
        }
        if (status != second) fail("the status depends on the way");
        if (status && !call->totals) observe_errors();
    }
    if (!status && !same_number(results[0], results[1])) fail("a result depends on the way");
    if (call->writes == STEP) check_overlap(status);
    if (!status && call->writes == STEP) all.is_resumed = 0;
    observe();
    for (size_t k = 0; !status && call->writes && k < memory.count; k++)
        require_same(&memory.buffers[k], "the buffers depend on the way");
    return status;
}

/* ---- the calls --------------------------------------------------------------------------------------------------- */

static gdm_buffer buffer_of(unsigned run, const struct slot *slot) {
    return (gdm_buffer){slot->is_there ? address(run, slot->at) : NULL, (gdm_dtype)slot->dtype};
}

static gdm_status add_group(unsigned run, const struct call *call) {
    size_t group = SIZE_MAX;
    point_options(call->options, call->rule, run, call->lr_scale);
    const gdm_status status = gdm_plan_add_group(all.plans[run], (gdm_rule)call->rule, call->options->bytes, &group);
    if (!status && group != all.group_count) fail("the index of a new group");
    return status;
}

static gdm_status set_args(unsigned run, const struct call *call) {
    point_options(call->options, call->rule, run, call->lr_scale);
    return gdm_plan_set_args(all.plans[run], call->index, call->options->bytes);
}

static gdm_status set_lr(unsigned run, const struct call *call) {
    return gdm_plan_set_lr(all.plans[run], call->index, call->value);
}

static gdm_status add_item(gdm_plan *plan, unsigned run, const struct item *from, size_t *index) {
    gdm_entry_args args = GDM_ENTRY_DEFAULTS;
    gdm_buffer states[MAX_STATES + 1] = {{NULL, GDM_FLOAT32}};
    float *scales[MAX_STATES + 1] = {NULL};
    for (size_t k = 0; k < MAX_STATES; k++) {
        states[k] = buffer_of(run, &from->slots[STATE + k]);
        scales[k] = buffer_of(run, &from->slots[SCALES + k]).data;
    }
    args.size = from->args_size;
    args.group = from->group;
    args.n = from->n;
    args.param = buffer_of(run, &from->slots[PARAM]);
    args.grad = buffer_of(run, &from->slots[GRAD]);
    args.lr_scale = buffer_of(run, &from->slots[SCALE]);
    args.copy = buffer_of(run, &from->slots[COPY]);
    args.average = buffer_of(run, &from->slots[AVERAGE]);
    args.low_bits = buffer_of(run, &from->slots[LOW_BITS]).data;
    args.states = states;
    args.state_count = from->state_count;
    args.state_scales = from->has_scales ? scales : NULL;
    args.lr_factor = from->lr_factor;
    return gdm_plan_add(plan, &args, index);
}

static gdm_status add_entry(unsigned run, const struct call *call) {
    size_t entry = SIZE_MAX;
    const gdm_status status = add_item(all.plans[run], run, call->entry, &entry);
    if (!status && entry != all.entry_count) fail("the index of a new entry");
    return status;
}

static gdm_status set_grad(unsigned run, const struct call *call) {
    return gdm_plan_set_grad(all.plans[run], call->index, buffer_of(run, &call->entry->slots[GRAD]));
}

static gdm_status set_lr_scale(unsigned run, const struct call *call) {
    return gdm_plan_set_lr_scale(all.plans[run], call->index, buffer_of(run, &call->entry->slots[SCALE]));
}

static gdm_status set_lr_factor(unsigned run, const struct call *call) {
    return gdm_plan_set_lr_factor(all.plans[run], call->index, call->value);
}

static gdm_status set_num_threads(unsigned run, const struct call *call) {
    return gdm_plan_set_num_threads(all.plans[run], (int)call->index);
}

static gdm_status set_step_args(unsigned run, const struct call *call) {
    return gdm_plan_set_step_args(all.plans[run], call->around);
}

static gdm_status set_scale(unsigned run, const struct call *call) {
    return gdm_plan_set_scale(all.plans[run], call->value);
}

static gdm_status step(unsigned run, const struct call *call) {
    (void)call;
    return gdm_plan_step(all.plans[run]);
}

static gdm_status prepare(unsigned run, const struct call *call) {
    (void)call;
    return gdm_plan_prepare(all.plans[run]);
}

static gdm_status swap(unsigned run, const struct call *call) {
    return gdm_plan_swap(all.plans[run], (gdm_mode)call->index);
}

static gdm_status set_mode(unsigned run, const struct call *call) {
    return gdm_plan_set_mode(all.plans[run], (gdm_mode)call->index);
}

static gdm_status set_updates(unsigned run, const struct call *call) {
    return gdm_plan_set_updates(all.plans[run], call->counts[0], call->counts[1]);
}

static gdm_status set_progress(unsigned run, const struct call *call) {
    return gdm_plan_set_progress(all.plans[run], call->index, call->counts[0], call->scalars);
}

static gdm_status set_group_steps(unsigned run, const struct call *call) {
    return gdm_plan_set_group_steps(all.plans[run], call->index, call->counts[0]);
}

static gdm_status reduce(unsigned run, const struct call *call) {
    return gdm_plan_reduce(all.plans[run], (gdm_reduction)call->index, &call->results[run]);
}

static gdm_status reduce_list(unsigned run, const struct call *call) {
    const struct totals *its = call->totals;
    return gdm_reduce((gdm_reduction)call->index, its->grads[run], its->lengths, its->count, &call->results[run]);
}

static gdm_status accumulate(unsigned run, const struct call *call) {
    const struct totals *its = call->totals;
    return gdm_accumulate(its->totals[run], its->grads[run], its->lengths, its->count, its->scale);
}

/* ---- their arguments --------------------------------------------------------------------------------------------- */

/* An index, seldom the first one that there is not. */
static size_t index_of(struct input *in, size_t count) {
    const unsigned any = byte(in);
    return any > 250 || !count ? count : any % count;
}

static void decode_group(struct input *in, struct options *options) {
    struct call call = {.make = add_group, .options = options};
    call.rule = (enum rule)below(in, RULES);
    if (all.group_count == MOST_GROUPS) return;
    read_options(in, call.rule, options);
    if (byte(in) > 252) call.lr_scale = start_of(0);
    if (make(&call)) return;
    all.groups[all.group_count].rule = call.rule;
    all.groups[all.group_count++].args = options->read;
}

static void decode_set_args(struct input *in, struct options *options) {
    struct call call = {.make = set_args, .options = options};
    call.index = index_of(in, all.group_count);
    if (call.index < all.group_count) call.rule = all.groups[call.index].rule;
    read_options(in, call.rule, options);
    if (byte(in) > 252) call.lr_scale = start_of(0);
    if (!make(&call)) all.groups[call.index].args = options->read;
}

static size_t length_of(struct input *in) {
    const unsigned any = byte(in);
    if (any < 160) return any % 48;
    if (any < 250) return word(in, 2) % 700;
    if (any < 254) return 0;
    return any == 254 ? SIZE_MAX : SIZE_MAX / 2 + 1;
}

/* A dtype for a buffer: that which is computed in, or another that is allowed, or any. */
static unsigned dtype_for(struct input *in, size_t k, enum dtype computed_in, int is_mixed) {
    const unsigned any = is_mixed ? byte(in) : 0;
    if (k >= SCALES) return F32;
    if (k == LOW_BITS) return BF16;
    if (any > 248) return any - 249;
    if (!is_mixed || k == SCALE) return computed_in;
    if (k == PARAM) return computed_in == F64 ? F64 : (unsigned[]){F32, BF16, F16}[any % 3];
    if (any % 2 == 0) return (unsigned[]){BF16, F16}[any / 2 % 2];
    if (k >= STATE && k < MAX_BUFFERS && any % 4 == 1) return INT8;
    return computed_in == F64 && any % 8 == 3 ? F32 : computed_in;
}

/* Gives a buffer memory of its own; or, rarely, a part of another one's, or a wrong address. 0: there is no room. */
static int place_slot(struct input *in, struct slot *slot, size_t n) {
    const unsigned how = byte(in), style = byte(in);
    const enum dtype dtype = slot->dtype < STORAGES ? (enum dtype)slot->dtype : F64;
    const struct buffer *added = add_buffer_of(dtype, n, how % 8, style, style / 8 + 31 * memory.count);
    if (!added) return 0;
    slot->at = added->at;
    slot->is_there = 1;
    if (how < 250) return 1;
    all.is_strange = 1;
    const struct buffer *other = &memory.buffers[how * 37u % memory.count];
    if (how < 253)
        slot->at = other->at + word(in, 1) % (other->n + 1) * size_of(other->dtype);
    else
        slot->at += 1;
    if (slot->at + n * size_of(dtype) + 32 > ROOM) return 0;
    expose(slot->at, n * size_of(dtype));
    return 1;
}

static void decode_entry(struct input *in) {
    struct item entry = {.args_size = sizeof(gdm_entry_args)};
    struct call call = {.make = add_entry, .entry = &entry};
    if (all.entry_count == MOST_ENTRIES) return;
    entry.group = index_of(in, all.group_count);
    entry.n = length_of(in);
    const unsigned flags = (unsigned)word(in, 2), wrong = byte(in);
    const enum dtype computed_in = flags & 1 ? F64 : F32;
    const int is_mixed = flags & 2;
    const size_t room = entry.n < ROOM ? entry.n : 1;
    const enum rule rule = entry.group < all.group_count ? all.groups[entry.group].rule : RULE_adam;
    entry.state_count = gdm_rules[rule].states;
    for (size_t k = 0; k < SLOTS; k++) {
        struct slot *slot = &entry.slots[k];
        slot->dtype = dtype_for(in, k, computed_in, is_mixed);
        if (k == GRAD && flags & 4) continue;
        if ((k == SCALE && !(flags & 8)) || (k == COPY && !(flags & 16)) || (k == AVERAGE && !(flags & 32))) continue;
        if (k == LOW_BITS && !(entry.slots[PARAM].dtype == BF16 && flags & 64) && wrong < 250) continue;
        if (k >= STATE && k < MAX_BUFFERS && k >= STATE + entry.state_count) continue;
        if (k >= SCALES && entry.slots[k - SCALES + STATE].dtype != INT8) continue;
        if (k >= SCALES && !entry.slots[k - SCALES + STATE].is_there) continue;
        if (!place_slot(in, slot, k >= SCALES ? scales_of(room) : room)) return;
    }
    entry.has_scales = 1;
    entry.lr_factor = flags & 128 ? number(in) : 1.0;
    switch (wrong) {
    case 249: entry.args_size = offsetof(gdm_entry_args, copy); break;
    case 248: entry.args_size = byte(in) % 96 + (flags & 256 ? 4097 : 0); break;
    case 247: entry.state_count = below(in, MAX_STATES + 2); break;
    case 246: entry.has_scales = 0; break;
    case 245: entry.slots[below(in, SLOTS)].is_there = 0; break;
    default: break;
    }
    for (size_t k = entry.state_count; k < MAX_STATES; k++) /* they are not given */
        entry.slots[STATE + k].is_there = entry.slots[SCALES + k].is_there = 0;
    for (size_t k = COPY; k < SLOTS; k++) /* an older struct ends before them */
        entry.slots[k].is_there &= entry.args_size == sizeof(gdm_entry_args);
    if (!make(&call)) all.entries[all.entry_count++] = entry;
}

/* An entry that there is; the first one if the index is that of none. */
static const struct item *some_entry(struct input *in) {
    return &all.entries[index_of(in, all.entry_count) % all.entry_count];
}

/* Sets a gradient or factors of the learning rate: none, new ones, those that were given first, or those of another
 * entry; rarely its parameters. */
static void decode_read_buffer(struct input *in, size_t k) {
    struct call call = {.make = k == GRAD ? set_grad : set_lr_scale};
    struct item entry = {.n = 1};
    call.index = index_of(in, all.entry_count);
    if (call.index < all.entry_count) entry = all.entries[call.index];
    call.entry = &entry;
    struct slot *slot = &entry.slots[k];
    const unsigned how = byte(in);
    if (how % 4 == 0) {
        slot->is_there = 0;
    } else if (how % 4 == 1) {
        const enum dtype computed_in = entry.slots[PARAM].dtype == F64 ? F64 : F32;
        slot->dtype = dtype_for(in, k, computed_in, how & 4);
        if (!place_slot(in, slot, entry.n)) return;
    } else if (how % 4 == 2 && all.entry_count) {
        const struct item *other = some_entry(in);
        if (other->n < entry.n) return;
        all.is_strange = 1;
        *slot = other->slots[how > 240 ? PARAM : k];
    }
    if (!make(&call)) all.entries[call.index].slots[k] = *slot;
}

static void decode_step_args(struct input *in) {
    gdm_step_args around = GDM_STEP_DEFAULTS;
    struct call call = {.make = set_step_args, .around = &around};
    const unsigned flags = (unsigned)word(in, 2);
    if (flags & 1) around.scale = number(in);
    if (flags & 2) around.max_grad_norm = number(in);
    if (flags & 4) around.max_grad_value = number(in);
    if (flags & 8) around.average_decay = number(in);
    around.average_correction = flags >> 4 & 1;
    around.clear_grads = flags >> 5 & 1;
    around.rounding = flags >> 6 & 1;
    around.seed = flags >> 7 & 1 ? word(in, 8) : 0;
    around.nonfinite = (int)(flags >> 8 & 3);
    if (flags >> 12 == 1) around.rounding = (int)word(in, 4);
    if (flags >> 12 == 2) around.size = below(in, sizeof around);
    if (!make(&call)) {
        all.around = around;
        if (around.size < sizeof around) /* the fields that are missing are 0 */
            memset((char *)&all.around + around.size, 0, sizeof around - around.size);
        all.around.size = sizeof around;
    }
}

static void decode_progress(struct input *in) {
    double scalars[MAX_SCALARS];
    struct call call = {.make = set_progress, .scalars = scalars};
    call.index = index_of(in, all.entry_count);
    call.counts[0] = count_of(in);
    for (unsigned k = 0; k < MAX_SCALARS; k++) scalars[k] = number(in);
    if (byte(in) > 252) call.scalars = NULL;
    make(&call);
}

/* Pairs of buffers of entries, for gdm_accumulate and gdm_reduce. */
static void decode_totals(struct input *in) {
    struct totals its = {.count = 1 + below(in, 3)};
    struct call call = {.make = accumulate, .writes = TOTALS, .totals = &its};
    const unsigned how = byte(in);
    if (!all.entry_count) return;
    for (size_t i = 0; i < its.count; i++) {
        const struct item *a = some_entry(in), *b = some_entry(in);
        const struct slot *total = &a->slots[below(in, LOW_BITS)], *grad = &b->slots[below(in, LOW_BITS)];
        its.lengths[i] = a->n < b->n ? a->n : b->n;
        if (!total->is_there || !grad->is_there || !its.lengths[i]) its.lengths[i] = how & 2 ? 0 : its.lengths[i];
        its.at[i] = total->is_there ? total->at : 0;
        for (unsigned run = 0; run < RUNS; run++) {
            its.totals[run][i] = buffer_of(run, total);
            its.grads[run][i] = buffer_of(run, grad);
        }
    }
    its.scale = number(in);
    if (how & 1) {
        call.make = reduce_list;
        call.writes = NOTHING;
        call.index = below(in, 4);
    }
    make(&call);
}

/* The second plan ends, and a new one continues from what it tells of itself. */
static void resume(void) {
    gdm_plan *old = all.plans[1], *plan;
    gdm_step_report report = {.size = sizeof report};
    gdm_mode mode;
    size_t index;
    uint64_t steps;
    double scalars[MAX_SCALARS];
    fails_in = 0;
    take_way(&all.ways[1]);
    if (gdm_plan_create(&plan)) fail("gdm_plan_create");
    for (size_t g = 0; g < all.group_count; g++)
        if (gdm_plan_add_group(plan, (gdm_rule)all.groups[g].rule, &all.groups[g].args, &index))
            fail("a group that one plan has is refused by another");
    for (size_t i = 0; i < all.entry_count; i++) {
        if (add_item(plan, 1, &all.entries[i], &index)) fail("an entry that one plan has is refused by another");
        if (gdm_plan_get_progress(old, i, &steps, scalars)) fail("gdm_plan_get_progress");
        if (gdm_plan_set_progress(plan, i, steps, scalars)) fail("the progress of one plan is refused by another");
    }
    for (size_t g = 0; g < all.group_count; g++)
        if (gdm_plan_get_group_steps(old, g, &steps) || gdm_plan_set_group_steps(plan, g, steps))
            fail("the steps of a group are refused");
    if (gdm_plan_get_report(old, &report) || gdm_plan_get_mode(old, &mode)) fail("gdm_plan_get_report");
    if (gdm_plan_set_updates(plan, report.updates, report.skipped)) fail("gdm_plan_set_updates");
    if (gdm_plan_set_mode(plan, mode)) fail("gdm_plan_set_mode");
    if (gdm_plan_set_step_args(plan, &all.around)) fail("gdm_plan_set_step_args");
    if (gdm_plan_set_num_threads(plan, all.threads)) fail("gdm_plan_set_num_threads");
    gdm_plan_destroy(old);
    all.plans[1] = plan;
    all.is_resumed = 1;
    observe();
}

static void decode_call(struct input *in, struct options *options) {
    struct call call = {.writes = NOTHING};
    const unsigned which = below(in, 32);
    switch (which) {
    case 0: decode_group(in, options); return;
    case 1:
    case 2: decode_entry(in); return;
    case 3: decode_set_args(in, options); return;
    case 4: decode_read_buffer(in, GRAD); return;
    case 5: decode_read_buffer(in, SCALE); return;
    case 6: decode_step_args(in); return;
    case 7: decode_progress(in); return;
    case 8: decode_totals(in); return;
    case 9: resume(); return;
    case 10: fails_in = 1 + below(in, 6); return;
    case 11:
        if (memory.count) fill(&memory.buffers[byte(in) % memory.count], byte(in), word(in, 2));
        return;
    case 12:
        call.make = set_lr;
        call.index = index_of(in, all.group_count);
        call.value = number(in);
        if (!make(&call)) all.groups[call.index].args.any.lr = call.value;
        return;
    case 13:
        call.make = set_lr_factor;
        call.index = index_of(in, all.entry_count);
        call.value = number(in);
        if (!make(&call)) all.entries[call.index].lr_factor = call.value;
        return;
    case 14:
        call.make = set_num_threads;
        call.index = byte(in) > 250 ? word(in, 4) : below(in, 5);
        if (!make(&call)) all.threads = (int)call.index;
        return;
    case 15:
        call.make = set_scale;
        call.value = number(in);
        if (!make(&call)) all.around.scale = call.value;
        return;
    case 16: call.make = prepare, call.writes = PREPARE; break;
    case 17: call.make = swap, call.writes = SWAP, call.index = below(in, 3); break;
    case 18: call.make = set_mode, call.index = below(in, 3); break;
    case 19: call.make = set_updates, call.counts[0] = count_of(in), call.counts[1] = count_of(in); break;
    case 20:
        call.make = set_group_steps;
        call.index = index_of(in, all.group_count);
        call.counts[0] = count_of(in);
        break;
    case 21: call.make = reduce, call.index = below(in, 4); break;
    default: call.make = step, call.writes = STEP;
    }
    make(&call);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct options options;
    struct input in = {data, size};
    memset(&all, 0, sizeof all);
    all.around = (gdm_step_args)GDM_STEP_DEFAULTS;
    all.ways[0] = plain_way();
    all.ways[1] = other_way(&in);
    const unsigned flags = byte(&in);
    all.skips_failures = flags & 1;
    fails_in = 0;
    begin_memory(flags / 2);
    for (unsigned run = 0; run < RUNS; run++) {
        fails_in = flags == 255;
        if (gdm_plan_create(&all.plans[run]) != (flags == 255 ? GDM_ERR_MEMORY : GDM_OK)) fail("gdm_plan_create");
    }
    /* Every plan begins with a group, an entry and what steps do, so that few inputs are idle. */
    if (flags != 255) decode_group(&in, &options), decode_entry(&in), decode_step_args(&in);
    for (unsigned calls = 0; calls < MOST_CALLS && in.left && flags != 255 && !all.is_over; calls++)
        decode_call(&in, &options);
    for (unsigned run = 0; run < RUNS; run++) gdm_plan_destroy(all.plans[run]);
    return 0;
}
