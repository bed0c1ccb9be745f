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
    static const uint8_t ones[64] = {
        1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
        1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
    };
    return !memcmp(written, ones, bytes);
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

/* Waves of a shared access: lanes in groups of 128 bytes, each as many waves as words in its busiest bank. */
static uint64_t count_waves(const uint64_t *address, uint32_t active, uint32_t bytes) {
    int group = bytes <= 4 ? 32 : bytes == 8 ? 16 : 8, first, i, j;
    uint64_t total = 0;
    for (first = 0; first < LANES; first += group) {
        uint64_t word[LANES][8], w;
        int used[LANES] = { 0 }, most = 0;
        for (i = first; i < first + group; i++) {
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
        total += (uint64_t)most;
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

static const uint8_t *readable_shared(sim_machine *m, const sim_instruction *in, int lane, uint64_t address,
                                      uint32_t bytes) {
    if (!sim_shared(m, in, lane, address, bytes, 0)) return NULL;
    sim_shared_read(m, in, lane, (uint32_t)(address - SHARED_FIRST), bytes);
    return m->shared + (address - SHARED_FIRST);
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
    if (space == SHARED) return readable_shared(m, in, lane, address, bytes);
    if (space == LOCAL) return readable_local(m, in, lane, address, bytes);
    return readable_param(m, in, lane, address, bytes);
}

/* One value into a register that may be wider. */
static void widen(void *to, int lane, const uint8_t *from, int bytes, int register_bytes, int is_signed) {
    uint64_t value = 0;
    memcpy(&value, from, (size_t)bytes);
    if (is_signed && bytes < 8 && value >> (8 * bytes - 1)) value |= ~(uint64_t)0 << (8 * bytes);
    memcpy((uint8_t *)to + lane * register_bytes, &value, (size_t)register_bytes);
}

static void put_lane(const sim_machine *m, const sim_instruction *in, int lane, const uint8_t *from) {
    int k;
    for (k = 0; k < in->vector; k++) {
        if (in->operand[k] == NO_OPERAND) continue;
        widen(sim_operand(m, in, k), lane, from + k * in->bytes, in->bytes, in->register_bytes, in->is_signed);
    }
}

void sim_load(sim_machine *m, const sim_instruction *in) {
    uint64_t address[LANES];
    uint8_t value[LANES][64];
    uint32_t bytes = (uint32_t)in->bytes * in->vector;
    sim_space space = (sim_space)in->space;
    int i;
    addresses(m, in, in->vector, address);
    for (i = 0; i < LANES; i++) {
        const uint8_t *from;
        if (!sim_active(m, i)) continue;
        space = resolve((sim_space)in->space, &address[i]);
        from = readable(m, in, i, space, address[i], bytes);
        if (!from) return;
        memcpy(value[i], from, bytes);
        if (in->strong && space == GLOBAL && !in->block_scope) sim_observe(m, address[i]);
    }
    for (i = 0; i < LANES; i++) {
        if (sim_active(m, i)) put_lane(m, in, i, value[i]);
    }
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
            memcpy(value + k * in->bytes, from, in->bytes);
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
