/* access.c - loads, stores and atomics: where an address points, whether it may, and what it costs. */
#include "sim.h"

/* ---- addresses ------------------------------------------------------------------------------------------------- */

/* The space of a generic address, and the address there. */
static sim_space resolve(sim_space space, uint64_t *address) {
    uint64_t window = *address >> WINDOW_BITS << WINDOW_BITS;
    if (space != GENERIC) return space;
    if (window == SHARED_WINDOW) space = SHARED;
    else if (window == LOCAL_WINDOW) space = LOCAL;
    else if (window == PARAM_WINDOW) space = PARAM;
    else return GLOBAL;
    *address -= window;
    return space;
}

static void addresses(const sim_machine *m, const sim_instruction *in, int operand, uint64_t *a) {
    const void *base;
    int i;
    if (in->operand[operand] == NO_OPERAND) {
        for (i = 0; i < LANES; i++) a[i] = (uint64_t)in->offset;
        return;
    }
    base = sim_operand(m, in, operand);
    if (in->address_bytes == 4) {
        for (i = 0; i < LANES; i++) a[i] = (uint32_t)(((const uint32_t *)base)[i] + (uint32_t)in->offset);
    } else {
        for (i = 0; i < LANES; i++) a[i] = ((const uint64_t *)base)[i] + (uint64_t)in->offset;
    }
}

static void report_bounds(sim_machine *m, const sim_instruction *in, int lane, uint64_t address, uint32_t bytes,
                          int write) {
    const sim_buffer *b = sim_buffer_below(m->memory, address);
    const char *what = write ? "write" : "read";
    if (!b || address - b->base > ((uint64_t)1 << 24) + b->bytes) {
        sim_report(m, in, lane, PTXSIM_BOUNDS, CU_ILLEGAL_ADDRESS,
                   "global %s of %u bytes at 0x%llx, far from any buffer",
                   what, bytes, (unsigned long long)address);
    } else {
        sim_report(m, in, lane, PTXSIM_BOUNDS, CU_ILLEGAL_ADDRESS,
                   "global %s of %u bytes at offset %llu of a buffer of %llu%s",
                   what, bytes, (unsigned long long)(address - b->base), (unsigned long long)b->bytes,
                   b->freed ? ", which was freed" : "");
    }
}

/* NULL, and a report, when the access is wrong. */
uint8_t *sim_global(sim_machine *m, const sim_instruction *in, int lane, uint64_t address, uint32_t bytes, int write,
                    sim_buffer **buffer) {
    sim_buffer *b = m->last_buffer;
    if (!b || address < b->base || address + bytes > b->base + b->bytes) {
        b = sim_buffer_find(m->memory, address, bytes);
        if (!b) {
            report_bounds(m, in, lane, address, bytes, write);
            return NULL;
        }
        m->last_buffer = b;
    }
    if (address & (bytes - 1)) {
        sim_report(m, in, lane, PTXSIM_MISALIGNED, CU_MISALIGNED, "global %s of %u bytes at 0x%llx",
                   write ? "write" : "read", bytes, (unsigned long long)address);
        return NULL;
    }
    if (write && b->constant) {
        sim_report(m, in, lane, PTXSIM_READ_ONLY, CU_ILLEGAL_ADDRESS, "a write to constant memory");
        return NULL;
    }
    *buffer = b;
    return b->data + (address - b->base);
}

/* 1: the block has these bytes of shared memory. */
int sim_shared(sim_machine *m, const sim_instruction *in, int lane, uint64_t address, uint32_t bytes, int write) {
    const sim_kernel *k = m->kernel;
    const char *what = write ? "write" : "read";
    uint64_t offset = address - SHARED_FIRST;
    int i;
    if (address & (bytes - 1)) {
        sim_report(m, in, lane, PTXSIM_MISALIGNED, CU_MISALIGNED, "shared %s of %u bytes at 0x%llx", what, bytes,
                   (unsigned long long)address);
        return 0;
    }
    if (address < SHARED_FIRST || offset + bytes > m->shared_bytes) {
        sim_report(m, in, lane, PTXSIM_BOUNDS, CU_ILLEGAL_ADDRESS,
                   "shared %s of %u bytes at offset %lld, the block has %u", what, bytes, (long long)offset,
                   m->shared_bytes);
        return 0;
    }
    for (i = 0; i < k->red_zones; i++) {
        if (offset < k->red_zone[i][1] && offset + bytes > k->red_zone[i][0]) {
            sim_report(m, in, lane, PTXSIM_BOUNDS, CU_ILLEGAL_ADDRESS,
                       "shared %s of %u bytes at offset %llu, behind the end of a variable", what, bytes,
                       (unsigned long long)offset);
            return 0;
        }
    }
    return 1;
}

/* The lowest and the highest address of some lanes, and the bits that occur in any of them. */
typedef struct reach {
    uint64_t low, high, bits;
} reach;

static reach reach_of(const uint64_t *address, uint32_t lanes) {
    reach r = { ~(uint64_t)0, 0, 0 };
    int i;
    for (i = 0; i < LANES; i++) {
        uint64_t on = 0 - (uint64_t)(lanes >> i & 1), low = address[i] | ~on, high = address[i] & on;
        r.low = low < r.low ? low : r.low;
        r.high = high > r.high ? high : r.high;
        r.bits |= high;
    }
    return r;
}

/* 1: all of the lanes may do this. 0: one may not, or it takes a closer look. */
static int all_shared(const sim_machine *m, uint32_t lanes, const uint64_t *address, uint32_t bytes) {
    const sim_kernel *k = m->kernel;
    reach r = reach_of(address, lanes);
    uint64_t from = r.low - SHARED_FIRST, end = r.high - SHARED_FIRST + bytes;
    int i;
    if (r.low < SHARED_FIRST || r.high > SHARED_LIMIT + SHARED_FIRST || end > m->shared_bytes) return 0;
    for (i = 0; i < k->red_zones; i++) {
        if (from < k->red_zone[i][1] && end > k->red_zone[i][0]) return 0;
    }
    return !(r.bits & (bytes - 1));
}

/* The offset in the memory of the warp, or -1. */
static int64_t local_offset(sim_machine *m, const sim_instruction *in, int lane, uint64_t address, uint32_t bytes) {
    size_t size = m->kernel->local_bytes;
    if (address + bytes > size || address + bytes < address) {
        sim_report(m, in, lane, PTXSIM_BOUNDS, CU_ILLEGAL_ADDRESS, "local access at %llu, the kernel has %lu bytes",
                   (unsigned long long)address, (unsigned long)size);
        return -1;
    }
    if (address & (bytes - 1)) {
        sim_report(m, in, lane, PTXSIM_MISALIGNED, CU_MISALIGNED, "local access of %u bytes at %llu", bytes,
                   (unsigned long long)address);
        return -1;
    }
    return (int64_t)((size_t)lane * size + address);
}

static int all_written(const uint8_t *written, uint32_t bytes) {
    uint32_t four;
    static const uint8_t ones[64] = {
        1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
        1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
    };
    if (bytes != 4) return !memcmp(written, ones, bytes);
    memcpy(&four, written, 4);
    return four == 0x01010101u;
}

/* 0 and a report when a byte was never written. */
int sim_check_written(sim_machine *m, const sim_instruction *in, int lane, const sim_buffer *b, size_t at,
                      uint32_t bytes) {
    if (!m->config->check || all_written(b->written + at, bytes)) return 1;
    sim_report(m, in, lane, PTXSIM_UNINITIALISED, 0,
               "global read of %u bytes at offset %lu of a buffer of %lu, never written", bytes, (unsigned long)at,
               (unsigned long)b->bytes);
    return 0;
}

/* ---- what an access costs -------------------------------------------------------------------------------------- */

uint64_t sim_count_sectors(const uint64_t *address, uint32_t active, uint32_t bytes) {
    uint64_t seen[LANES * 3], s;
    int n = 0, i, j;
    for (i = 0; i < LANES; i++) {
        if (!(active >> i & 1)) continue;
        for (s = address[i] / SECTOR; s <= (address[i] + bytes - 1) / SECTOR; s++) {
            for (j = n - 1; j >= 0 && seen[j] != s; j--) {}
            if (j < 0) seen[n++] = s;
        }
    }
    return (uint64_t)n;
}

/* Lanes whose shared access of this size is served together: those of 128 bytes. */
static int lanes_together(uint32_t bytes) {
    return bytes <= 4 ? 32 : bytes == 8 ? 16 : 8;
}

/* Waves of the lanes from `first` on: as many as words in the busiest bank. */
static uint64_t count_group(const uint64_t *address, uint32_t active, uint32_t bytes, int first) {
    uint64_t word[LANES][8], w;
    int used[LANES] = { 0 }, most = 0, i, j;
    for (i = first; i < first + lanes_together(bytes); i++) {
        if (!(active >> i & 1)) continue;
        for (w = address[i] / 4; w <= (address[i] + bytes - 1) / 4; w++) {
            int bank = (int)(w % 32), known = used[bank] < 8 ? used[bank] : 8;
            for (j = 0; j < known && word[bank][j] != w; j++) {}
            if (j < known) continue;
            if (used[bank] < 8) word[bank][used[bank]] = w;
            used[bank]++;
            most = used[bank] > most ? used[bank] : most;
        }
    }
    return (uint64_t)most;
}

/* 1: the lanes ask each bank for one word at most. */
static int is_free_of_conflicts(const uint64_t *address, uint32_t active, uint32_t bytes, int first) {
    uint64_t word[LANES], w;
    uint32_t asked = 0;
    int i;
    for (i = first; i < first + lanes_together(bytes); i++) {
        if (!(active >> i & 1)) continue;
        for (w = address[i] / 4; w <= (address[i] + bytes - 1) / 4; w++) {
            uint32_t bank = w % 32;
            if (asked >> bank & 1 && word[bank] != w) return 0;
            asked |= 1u << bank;
            word[bank] = w;
        }
    }
    return 1;
}

/* 1: all lanes have the same address, or lane i that of lane 0 and i words, as most accesses are. */
static int is_one_word_or_row(const uint64_t *address, uint32_t active) {
    int first = sim_first_lane(active), i;
    uint64_t start = address[first] - 4 * (uint64_t)first;
    uint32_t same = 0, row = 0;
    for (i = 0; i < LANES; i++) {
        same |= (uint32_t)(address[i] == address[first]) << i;
        row |= (uint32_t)(address[i] == start + 4 * (uint64_t)i) << i;
    }
    return !(active & ~same) || !(active & ~row);
}

static uint64_t count_waves(const uint64_t *address, uint32_t active, uint32_t bytes) {
    int group = lanes_together(bytes), first;
    uint64_t total = 0;
    if (bytes == 4 && is_one_word_or_row(address, active)) return 1;
    for (first = 0; first < LANES; first += group) {
        int some = (active >> first & (group == LANES ? ~0u : (1u << group) - 1)) != 0;
        if (is_free_of_conflicts(address, active, bytes, first)) total += (uint64_t)some;
        else total += count_group(address, active, bytes, first);
    }
    return total;
}

static void count(sim_machine *m, const uint64_t *address, sim_space space, uint32_t bytes, int write) {
    ptxsim_counters *c = m->counters;
    uint64_t all = (uint64_t)bytes * sim_popcount(m->active);
    if (space == GLOBAL && write) {
        c->global_stores++;
        c->global_store_bytes += all;
        c->global_store_sectors += sim_count_sectors(address, m->active, bytes);
    } else if (space == GLOBAL) {
        c->global_loads++;
        c->global_load_bytes += all;
        c->global_load_sectors += sim_count_sectors(address, m->active, bytes);
    } else if (space == SHARED) {
        c->shared_requests++;
        c->shared_waves += count_waves(address, m->active, bytes);
    } else if (space == LOCAL) {
        c->local_bytes += all;
    }
}

/* ---- loads ----------------------------------------------------------------------------------------------------- */

static const uint8_t *readable_global(sim_machine *m, const sim_instruction *in, int lane, uint64_t address,
                                      uint32_t bytes) {
    sim_buffer *b;
    uint8_t *p = sim_global(m, in, lane, address, bytes, 0, &b);
    if (!p) return NULL;
    sim_check_written(m, in, lane, b, (size_t)(p - b->data), bytes);
    sim_global_read(m, in, lane, b, (size_t)(p - b->data), bytes);
    return p;
}

static const uint8_t *readable_local(sim_machine *m, const sim_instruction *in, int lane, uint64_t address,
                                     uint32_t bytes) {
    int64_t at = local_offset(m, in, lane, address, bytes);
    if (at < 0) return NULL;
    if (m->config->check && !all_written(m->warp->local_written + at, bytes)) {
        sim_report(m, in, lane, PTXSIM_UNINITIALISED, 0, "local read of %u bytes at %llu, never written", bytes,
                   (unsigned long long)address);
    }
    return m->warp->local + at;
}

static const uint8_t *readable_param(sim_machine *m, const sim_instruction *in, int lane, uint64_t address,
                                     uint32_t bytes) {
    if (address + bytes <= m->kernel->param_bytes && address + bytes > address) return m->params + address;
    sim_report(m, in, lane, PTXSIM_BOUNDS, CU_ILLEGAL_ADDRESS, "a read of parameters at %llu, there are %lu bytes",
               (unsigned long long)address, (unsigned long)m->kernel->param_bytes);
    return NULL;
}

static const uint8_t *readable(sim_machine *m, const sim_instruction *in, int lane, sim_space space, uint64_t address,
                               uint32_t bytes) {
    if (space == GLOBAL || space == CONSTANT) return readable_global(m, in, lane, address, bytes);
    if (space == LOCAL) return readable_local(m, in, lane, address, bytes);
    return readable_param(m, in, lane, address, bytes);
}

/* Of 1, 2, 4 or 8 bytes. */
static uint64_t value_at(const uint8_t *from, int bytes) {
    uint16_t half;
    uint32_t word;
    uint64_t both;
    switch (bytes) {
        case 1: return *from;
        case 2:
            memcpy(&half, from, 2);
            return half;
        case 4:
            memcpy(&word, from, 4);
            return word;
        default:
            memcpy(&both, from, 8);
            return both;
    }
}

static void set_value(uint8_t *to, uint64_t value, int bytes) {
    uint16_t half = (uint16_t)value;
    uint32_t word = (uint32_t)value;
    switch (bytes) {
        case 1: *to = (uint8_t)value; break;
        case 2: memcpy(to, &half, 2); break;
        case 4: memcpy(to, &word, 4); break;
        default: memcpy(to, &value, 8); break;
    }
}

/* One value into a register that may be wider. */
static void widen(uint8_t *to, int lane, const uint8_t *from, int bytes, int register_bytes, int is_signed) {
    uint64_t value = value_at(from, bytes);
    if (is_signed && bytes < 8 && value >> (8 * bytes - 1)) value |= ~(uint64_t)0 << (8 * bytes);
    set_value(to + lane * register_bytes, value, register_bytes);
}

static void put_words(uint8_t *to, uint32_t lanes, const uint8_t *const *from, int at) {
    int i;
    for (i = 0; i < LANES; i++) {
        if (lanes == ~0u || lanes >> i & 1) memcpy(to + 4 * i, from[i] + at, 4);
    }
}

/* from: where the lanes read. */
static void put(const sim_machine *m, const sim_instruction *in, uint32_t lanes, const uint8_t *const *from) {
    int k, i;
    for (k = 0; k < in->vector; k++) {
        uint8_t *to;
        if (in->operand[k] == NO_OPERAND) continue;
        to = (uint8_t *)sim_operand(m, in, k);
        if (in->bytes == 4 && in->register_bytes == 4) {
            put_words(to, lanes, from, 4 * k);
            continue;
        }
        for (i = 0; i < LANES; i++) {
            if (!(lanes >> i & 1)) continue;
            widen(to, i, from[i] + k * in->bytes, in->bytes, in->register_bytes, in->is_signed);
        }
    }
}

/* Shared memory is looked at for all lanes at once: what fits as a whole fits in each. */
static void load_shared(sim_machine *m, const sim_instruction *in, uint32_t lanes, const uint64_t *address,
                        uint32_t bytes) {
    const uint8_t *from[LANES];
    int i, fits = all_shared(m, lanes, address, bytes);
    for (i = 0; i < LANES && !fits; i++) {
        if (lanes >> i & 1 && !sim_shared(m, in, i, address[i], bytes, 0)) return;
    }
    sim_shared_read(m, in, lanes, address, bytes);
    for (i = 0; i < LANES; i++) from[i] = lanes >> i & 1 ? m->shared + (address[i] - SHARED_FIRST) : NULL;
    put(m, in, lanes, from);
}

/* A parameter at an address without a register, as nearly all are: the same for all lanes. */
static void load_param(sim_machine *m, const sim_instruction *in, uint32_t bytes) {
    const uint8_t *from[LANES];
    int i;
    from[0] = readable_param(m, in, sim_first_lane(m->active), (uint64_t)in->offset, bytes);
    if (!from[0]) return;
    for (i = 1; i < LANES; i++) from[i] = from[0];
    put(m, in, m->active, from);
}

/* Lane by lane; generic addresses may turn out to be shared ones. */
static void load_others(sim_machine *m, const sim_instruction *in, uint64_t *address, uint32_t bytes, sim_space *space,
                        uint32_t *in_shared) {
    const uint8_t *from[LANES];
    int i;
    for (i = 0; i < LANES; i++) {
        if (!sim_active(m, i)) continue;
        *space = resolve((sim_space)in->space, &address[i]);
        if (*space == SHARED) {
            *in_shared |= 1u << i;
            continue;
        }
        from[i] = readable(m, in, i, *space, address[i], bytes);
        if (!from[i]) return;
        if (in->strong && *space == GLOBAL && !in->block_scope) sim_observe(m, address[i]);
    }
    put(m, in, m->active & ~*in_shared, from);
}

void sim_load(sim_machine *m, const sim_instruction *in) {
    uint64_t address[LANES];
    uint32_t bytes = (uint32_t)in->bytes * in->vector, in_shared = in->space == SHARED ? m->active : 0;
    sim_space space = (sim_space)in->space;
    if (space == PARAM && in->operand[in->vector] == NO_OPERAND) {
        load_param(m, in, bytes);
        return;
    }
    addresses(m, in, in->vector, address);
    if (!in_shared) load_others(m, in, address, bytes, &space, &in_shared);
    if (in_shared) load_shared(m, in, in_shared, address, bytes);
    count(m, address, space, bytes, 0);
    if (in->acquire && !in->block_scope) sim_fence(m, in);
}

/* ---- stores ---------------------------------------------------------------------------------------------------- */

static int write_global(sim_machine *m, const sim_instruction *in, int lane, uint64_t address, const uint8_t *value,
                        uint32_t bytes) {
    sim_buffer *b;
    uint8_t *p = sim_global(m, in, lane, address, bytes, 1, &b);
    if (!p) return 0;
    sim_global_write(m, in, lane, b, (size_t)(p - b->data), bytes);
    memset(b->written + (p - b->data), 1, bytes);
    memcpy(p, value, bytes);
    if (in->strong && !in->block_scope) sim_publish(m, address);
    return 1;
}

static int write_shared(sim_machine *m, const sim_instruction *in, int lane, uint64_t address, const uint8_t *value,
                        uint32_t bytes) {
    uint32_t at = (uint32_t)(address - SHARED_FIRST);
    if (!sim_shared(m, in, lane, address, bytes, 1)) return 0;
    sim_shared_write(m, in, lane, at, bytes, ORDINARY, value);
    memset(m->shared_written + at, 1, bytes);
    memcpy(m->shared + at, value, bytes);
    return 1;
}

static int write_local(sim_machine *m, const sim_instruction *in, int lane, uint64_t address, const uint8_t *value,
                       uint32_t bytes) {
    int64_t at = local_offset(m, in, lane, address, bytes);
    if (at < 0) return 0;
    memset(m->warp->local_written + at, 1, bytes);
    memcpy(m->warp->local + at, value, bytes);
    return 1;
}

static int write_lane(sim_machine *m, const sim_instruction *in, int lane, sim_space space, uint64_t address,
                      const uint8_t *value, uint32_t bytes) {
    if (space == GLOBAL) return write_global(m, in, lane, address, value, bytes);
    if (space == SHARED) return write_shared(m, in, lane, address, value, bytes);
    if (space == LOCAL) return write_local(m, in, lane, address, value, bytes);
    sim_report(m, in, lane, PTXSIM_READ_ONLY, CU_ILLEGAL_ADDRESS, "a write to a parameter");
    return 0;
}

void sim_store(sim_machine *m, const sim_instruction *in) {
    uint64_t address[LANES];
    uint32_t bytes = (uint32_t)in->bytes * in->vector;
    sim_space space = (sim_space)in->space;
    int i, k;
    addresses(m, in, in->vector, address);
    if (in->release && !in->block_scope) sim_fence(m, in);
    for (i = 0; i < LANES; i++) {
        uint8_t value[64];
        if (!sim_active(m, i)) continue;
        for (k = 0; k < in->vector; k++) {
            const uint8_t *from = (const uint8_t *)sim_operand(m, in, k) + i * in->register_bytes;
            set_value(value + k * in->bytes, value_at(from, in->bytes), in->bytes);
        }
        space = resolve((sim_space)in->space, &address[i]);
        if (!write_lane(m, in, i, space, address[i], value, bytes)) return;
    }
    count(m, address, space, bytes, 1);
}

/* ---- atomics --------------------------------------------------------------------------------------------------- */

static int64_t as_signed(uint64_t v, int bytes) {
    return bytes == 4 ? (int64_t)(int32_t)v : (int64_t)v;
}

static uint64_t combine(const sim_instruction *in, uint64_t old, uint64_t b, uint64_t c) {
    int less = in->is_signed ? as_signed(old, in->bytes) < as_signed(b, in->bytes) : old < b;
    switch (in->option) {
        case ATOMIC_ADD:
            if (!in->is_float) return old + b;
            return sim_as_bits(sim_as_float((uint32_t)old) + sim_as_float((uint32_t)b));
        case ATOMIC_EXCH: return b;
        case ATOMIC_CAS: return old == b ? c : old;
        case ATOMIC_MIN: return less ? old : b;
        case ATOMIC_MAX: return less ? b : old;
        case ATOMIC_AND: return old & b;
        case ATOMIC_OR: return old | b;
        case ATOMIC_XOR: return old ^ b;
        case ATOMIC_INC: return old >= b ? 0 : old + 1;
        default: return old == 0 || old > b ? b : old - 1;
    }
}

static uint8_t *atomic_global(sim_machine *m, const sim_instruction *in, int lane, uint64_t address) {
    sim_buffer *b;
    uint8_t *p = sim_global(m, in, lane, address, in->bytes, 1, &b);
    size_t at;
    if (!p) return NULL;
    at = (size_t)(p - b->data);
    sim_check_written(m, in, lane, b, at, in->bytes);
    sim_global_write(m, in, lane, b, at, in->bytes);
    memset(b->written + at, 1, in->bytes);
    if (in->block_scope) return p;
    if (in->operand[0] != NO_OPERAND) sim_observe(m, address);
    sim_publish(m, address);
    return p;
}

static uint8_t *atomic_shared(sim_machine *m, const sim_instruction *in, int lane, uint64_t address) {
    uint32_t at = (uint32_t)(address - SHARED_FIRST);
    if (!sim_shared(m, in, lane, address, in->bytes, 1)) return NULL;
    if (m->config->check && !all_written(m->shared_written + at, in->bytes)) {
        sim_report(m, in, lane, PTXSIM_UNINITIALISED, 0, "shared atomic at offset %u, never written", at);
    }
    sim_shared_write(m, in, lane, at, in->bytes, ATOMIC, NULL);
    memset(m->shared_written + at, 1, in->bytes);
    return m->shared + at;
}

void sim_atomic(sim_machine *m, const sim_instruction *in) {
    uint64_t address[LANES];
    int i;
    addresses(m, in, 1, address);
    if (in->release && !in->block_scope) sim_fence(m, in);
    for (i = 0; i < LANES; i++) {
        uint64_t old = 0, b = 0, c = 0, result;
        sim_space space;
        uint8_t *p;
        if (!sim_active(m, i)) continue;
        space = resolve((sim_space)in->space, &address[i]);
        if (space == GLOBAL) p = atomic_global(m, in, i, address[i]);
        else if (space == SHARED) p = atomic_shared(m, in, i, address[i]);
        else p = NULL;
        if (!p) {
            if (!m->error) sim_report(m, in, i, PTXSIM_BOUNDS, CU_ILLEGAL_ADDRESS, "an atomic on local memory");
            return;
        }
        memcpy(&old, p, in->bytes);
        memcpy(&b, (uint8_t *)sim_operand(m, in, 2) + i * in->bytes, in->bytes);
        if (in->operands > 3) memcpy(&c, (uint8_t *)sim_operand(m, in, 3) + i * in->bytes, in->bytes);
        result = combine(in, old, b, c);
        memcpy(p, &result, in->bytes);
        if (in->operand[0] != NO_OPERAND) memcpy((uint8_t *)sim_operand(m, in, 0) + i * in->bytes, &old, in->bytes);
        m->counters->atomics++;
    }
    if (in->acquire && !in->block_scope) sim_fence(m, in);
}
