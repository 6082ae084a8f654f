/* The update of an entry tile by tile. A tile stays in L1 from the first stage to the last:
 *
 *     widen -> scale, limit -> the rule's kernel -> narrow, copy, average, clear the gradient
 *
 * A buffer that needs no conversion is not copied: the kernel and the stages run on it.
 */
#include "plan.h"

#include <string.h>

/* Tiles and everything that depends on the number of an element are cut by element index, at multiples of BLOCK.
 *
 * TILE is in bytes of the compute dtype. With 4096, a page, all streams of a DRAM-sized entry reach a new page at
 * once, and steps took 9 to 24 % longer on a Zen 4; in the caches, they took 1 to 3 % less. Software prefetch of the
 * next tiles gained nothing more. Scratch buffers begin a bit more than TILE bytes apart: a load would wait for a store
 * whose address has the same last 12 bits. */
enum { TILE = 2048, APART = TILE + 9 * CACHE_LINE };

/* ---- random bits ------------------------------------------------------------------------------------------------ */

/* The generator splitmix64 of G. Steele, D. Lea and C. Flood, "Fast splittable pseudorandom number generators", 2014.
 */
static inline uint64_t mix(uint64_t key, uint64_t word) {
    uint64_t z = key + word + 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

/* The key for the elements of an entry's k-th buffer from `first` on, up to the next multiple of 2^32. */
static inline struct key key_of(uint64_t seed, size_t k, size_t first) {
    const uint64_t z = mix(mix(seed, k), (uint64_t)first >> 32);
    return (struct key){(uint32_t)z, (uint32_t)(z >> 32)};
}

/* ---- one tile --------------------------------------------------------------------------------------------------- */

struct tiles {
    const gdm_plan *plan;
    const struct isa *isa;
    const struct entry *entry;
    const struct details *details;
    kernel *run;
    const void *constants;
    unsigned used; /* the states in use */
    uint64_t seed; /* of the random bits: mixed from the plan's seed, the number of the update, and the entry */
    char *scratch; /* for MAX_BUFFERS + 1 tiles */
};

static inline int is_used(const struct tiles *all, size_t k) {
    return all->entry->data[k] && (k < STATE || all->used >> (k - STATE) & 1);
}

static inline void *place(const void *data, unsigned dtype, size_t first) {
    return data ? (char *)data + first * size_of((enum dtype)dtype) : NULL;
}

static inline int is_direct(const struct tiles *all, size_t k) {
    return all->details->dtypes[k] == all->entry->dtype;
}

static inline enum state_kind kind_of(const struct tiles *all, size_t k) {
    return gdm_rules[all->plan->groups[all->entry->group].rule].state[k - STATE].kind;
}

/* As which kind a state is stored in int8. */
static inline enum state_kind int8_kind_of(const struct tiles *all, size_t k) {
    return kind_of(all, k) == square ? square : plain;
}

/* The tile of a buffer in the compute dtype: the buffer's own memory, or scratch. */
static void *load(const struct tiles *all, size_t k, size_t first, size_t n) {
    const unsigned dtype = all->details->dtypes[k], computed_in = all->entry->dtype;
    void *stored = place(all->entry->data[k], dtype, first), *wide = all->scratch + k * APART;
    if (is_direct(all, k)) return stored;
    if (k >= STATE && dtype == INT8)
        all->isa->load_int8[int8_kind_of(all, k)][computed_in](
            wide, stored, all->details->scales[k - STATE] + first / SCALE_BLOCK, n);
    else if (k == PARAM && all->details->low_bits)
        all->isa->load_split(wide, stored, all->details->low_bits + first, n);
    else
        all->isa->load[dtype][computed_in](wide, stored, n);
    return wide;
}

/* Writes a tile of a buffer that has been changed in scratch. */
static void store(const struct tiles *all, size_t k, size_t first, size_t n, const void *wide, int rounding) {
    const unsigned dtype = all->details->dtypes[k], computed_in = all->entry->dtype;
    const struct isa *isa = all->isa;
    void *stored = place(all->entry->data[k], dtype, first);
    if (is_direct(all, k)) return;
    if (k >= STATE && dtype == INT8)
        isa->store_int8[int8_kind_of(all, k)][computed_in](stored,
                                                           all->details->scales[k - STATE] + first / SCALE_BLOCK, wide,
                                                           n, key_of(all->seed, k, first), (uint32_t)first);
    else if (k == PARAM && all->details->low_bits)
        isa->store_split(stored, all->details->low_bits + first, wide, n);
    else if (rounding == GDM_STOCHASTIC && isa->store_random[dtype][computed_in])
        isa->store_random[dtype][computed_in](stored, wide, n, key_of(all->seed, k, first), (uint32_t)first);
    else
        isa->store[dtype][computed_in](stored, wide, n);
}

/* The gradient's tile, scaled and limited. */
static const void *load_grad(const struct tiles *all, size_t first, size_t n) {
    const struct stages *stages = &all->plan->stages;
    const unsigned computed_in = all->entry->dtype;
    void *wide = all->scratch + GRAD * APART;
    const void *grad = load(all, GRAD, first, n);
    if (stages->factor != 1) {
        all->isa->scale[computed_in](wide, grad, n, stages->factor);
        grad = wide;
    }
    if (stages->limit > 0) {
        all->isa->limit[computed_in](wide, grad, n, stages->limit);
        grad = wide;
    }
    return grad;
}

static void write_copy(const struct tiles *all, size_t first, size_t n, const void *param) {
    const unsigned dtype = all->details->copy.dtype, computed_in = all->entry->dtype;
    void *stored = place(all->details->copy.data, dtype, first);
    if (dtype == computed_in)
        memcpy(stored, param, n * size_of((enum dtype)dtype));
    else
        all->isa->store[dtype][computed_in](stored, param, n);
}

static void write_average(const struct tiles *all, size_t first, size_t n, const void *param) {
    const unsigned dtype = all->details->average.dtype, computed_in = all->entry->dtype;
    void *stored = place(all->details->average.data, dtype, first), *wide = stored;
    if (dtype != computed_in) {
        wide = all->scratch + MAX_BUFFERS * APART;
        all->isa->load[dtype][computed_in](wide, stored, n);
    }
    all->isa->average[computed_in](wide, param, n, all->plan->stages.weight);
    if (wide != stored) all->isa->store[dtype][computed_in](stored, wide, n);
}

static void update_tile(const struct tiles *all, size_t first, size_t n) {
    void *buffers[MAX_BUFFERS];
    for (size_t k = 0; k < MAX_BUFFERS; k++) buffers[k] = k != GRAD && is_used(all, k) ? load(all, k, first, n) : NULL;
    buffers[GRAD] = (void *)load_grad(all, first, n);
    all->run(buffers, n, all->constants);
    if (all->plan->stages.preparing) {
        for (size_t k = STATE; k < MAX_BUFFERS; k++)
            if (buffers[k] && kind_of(all, k) == work) store(all, k, first, n, buffers[k], all->plan->around.rounding);
        return;
    }
    for (size_t k = 0; k < MAX_BUFFERS; k++)
        if (k != GRAD && k != SCALE && buffers[k]) store(all, k, first, n, buffers[k], all->plan->around.rounding);
    if (all->details->copy.data) write_copy(all, first, n, buffers[PARAM]);
    if (all->details->average.data) write_average(all, first, n, buffers[PARAM]);
    if (all->plan->stages.clear) {
        const unsigned dtype = all->details->dtypes[GRAD];
        memset(place(all->entry->data[GRAD], dtype, first), 0, n * size_of((enum dtype)dtype));
    }
}

void gdm_load_direction(const struct vectors *of, size_t first, size_t n, void *params, void *directions) {
    _Alignas(CACHE_LINE) char scratch[(MAX_BUFFERS + 1) * APART];
    const struct entry *entry = &of->plan->entries[of->entry];
    const struct tiles all = {
        .plan = of->plan,
        .isa = of->isa,
        .entry = entry,
        .details = &of->plan->details[of->entry],
        .used = of->plan->groups[entry->group].choice.used,
        .scratch = scratch,
    };
    const size_t itemsize = size_of(of->dtype), tile = TILE / itemsize;
    for (size_t done = 0; done < n; done += tile) {
        const size_t count = n - done < tile ? n - done : tile;
        void *buffers[MAX_BUFFERS];
        for (size_t k = 0; k < MAX_BUFFERS; k++)
            buffers[k] = k != GRAD && is_used(&all, k) ? load(&all, k, first + done, count) : NULL;
        buffers[GRAD] = (void *)load_grad(&all, first + done, count);
        of->run((char *)directions + done * itemsize, buffers, count, of->constants);
        memcpy((char *)params + done * itemsize, buffers[PARAM], count * itemsize);
    }
}

/* Rounds to the nearest number in any case: a swap there and back then mostly ends where it began. */
static void swap_tile(const struct tiles *all, size_t first, size_t n, double weight) {
    void *param = load(all, PARAM, first, n);
    all->isa->average[all->entry->dtype](param, load(all, STATE, first, n), n, weight);
    store(all, PARAM, first, n, param, GDM_NEAREST);
    if (all->details->copy.data) write_copy(all, first, n, param);
}

/* ---- all tiles of a range --------------------------------------------------------------------------------------- */

/* How many elements come before the first whole tile: as in run_range, it begins at the parameter's first whole cache
 * line. int8 states do not allow that, since tiles must begin with a block of the scales. */
static size_t head_of(const struct entry *entry, const struct details *details, size_t n) {
    if (n < WORTH_ALIGNING) return 0;
    for (size_t k = STATE; k < MAX_BUFFERS; k++)
        if (details->dtypes[k] == INT8) return 0;
    return before_line(entry->data[PARAM], size_of((enum dtype)details->dtypes[PARAM]));
}

void gdm_update_tiles(const gdm_plan *plan, const struct isa *isa, size_t i, size_t first, size_t last, kernel *run,
                      const void *constants) {
    _Alignas(CACHE_LINE) char scratch[(MAX_BUFFERS + 1) * APART];
    const struct entry *entry = &plan->entries[i];
    const struct details *details = &plan->details[i];
    const struct tiles all = {
        .plan = plan,
        .isa = isa,
        .entry = entry,
        .details = details,
        .run = run,
        .constants = constants,
        .used = plan->groups[entry->group].choice.used,
        .seed = mix(mix(mix(0, plan->around.seed), plan->updates), i),
        .scratch = scratch,
    };
    const size_t itemsize = size_of((enum dtype)entry->dtype), tile = TILE / itemsize;
    const size_t head = head_of(entry, details, last - first);
    for (size_t block = first; block < last; block += BLOCK) {
        const size_t end = last - block < BLOCK ? last : block + BLOCK;
        size_t from = block, n = head && head < end - block ? head : tile;
        for (; from < end; from += n, n = tile) {
            if (n > end - from) n = end - from;
            update_tile(&all, from, n);
        }
    }
}

void gdm_swap_tiles(const gdm_plan *plan, const struct isa *isa, size_t i, size_t first, size_t last, double weight) {
    _Alignas(CACHE_LINE) char scratch[MAX_BUFFERS * APART];
    const struct tiles all = {
        .plan = plan,
        .isa = isa,
        .entry = &plan->entries[i],
        .details = &plan->details[i],
        .scratch = scratch,
    };
    const size_t tile = TILE / size_of((enum dtype)all.entry->dtype);
    size_t n = head_of(all.entry, all.details, last - first);
    for (n = n ? n : tile; first < last; first += n, n = tile) {
        if (n > last - first) n = last - first;
        swap_tile(&all, first, n, weight);
    }
}
