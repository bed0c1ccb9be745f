/* order.c - happens-before: which accesses may race.

   Inside a block every warp has a clock, and knows (seen) how far it is behind each other warp: barriers join that.
   An access of another warp is ordered when its clock is not above what this warp has seen. Lanes of one warp are
   ordered by bar.warp.sync and barriers only. Between blocks an order comes from a fence, a strong access that
   publishes, a strong access elsewhere that observes it, and a fence there: both fences are needed. Kernels of one
   launch after the other are always ordered. */
#include "sim.h"

#include <stdlib.h>

/* A release: what a block had behind it when one of its warps published. */
typedef struct release {
    uint32_t block;
    int32_t previous;           /* of the same block at the same address, or -1 */
    uint32_t fenced[MAX_WARPS];
} release;

/* An address where releases happen. Whoever observes it observes all that were there. */
typedef struct release_object {
    uint64_t address;
    release *item;
    int count, capacity;
    knowledge known;            /* what the publishers knew of other addresses */
} release_object;

struct release_log {
    release_object *object;
    int count, capacity;
};

/* The epochs of this launch; those with lower numbers are of earlier ones. */
struct epoch_table {
    struct epoch {
        uint32_t block, clock, warp;
    } *item;
    int count, capacity;
    uint32_t first;
};

/* ---- clocks ---------------------------------------------------------------------------------------------------- */

void sim_tick(sim_warp *w) {
    w->clock++;
    w->seen[w->index] = w->clock;
    w->epoch = 0;
}

void sim_join_clocks(uint32_t *into, const uint32_t *from) {
    int i;
    for (i = 0; i < MAX_WARPS; i++) into[i] = into[i] > from[i] ? into[i] : from[i];
}

static uint32_t *releases_known(knowledge *k, uint32_t object) {
    int i;
    for (i = 0; i < k->count; i++) {
        if (k->item[i].object == object) return &k->item[i].count;
    }
    k->item = (struct known_releases *)sim_grow(k->item, &k->capacity, k->count + 1, sizeof *k->item);
    k->item[k->count].object = object;
    k->item[k->count].count = 0;
    return &k->item[k->count++].count;
}

void sim_join_knowledge(knowledge *into, const knowledge *from) {
    int i;
    for (i = 0; i < from->count; i++) {
        uint32_t *known = releases_known(into, from->item[i].object);
        if (*known < from->item[i].count) *known = from->item[i].count;
    }
}

/* ---- shared memory --------------------------------------------------------------------------------------------- */

static uint32_t bytes_in_cell(uint32_t cell, uint32_t offset, uint32_t bytes) {
    uint32_t first = cell * 4 < offset ? offset - cell * 4 : 0;
    uint32_t end = offset + bytes - cell * 4 < 4 ? offset + bytes - cell * 4 : 4;
    return ((1u << end) - 1) & ~((1u << first) - 1);
}

static void report_in_flight(sim_machine *m, const sim_instruction *in, int lane, uint32_t c, const char *what) {
    sim_report(m, in, lane, PTXSIM_SHARED_RACE, 0,
               "shared %s at offset %u while a cp.async into it is still in flight", what, c * 4);
}

static int is_written_elsewhere(const sim_machine *m, const shared_cell *c, uint32_t mask) {
    return c->write_clock && (c->write_bytes & mask) && c->write_warp != m->warp->index &&
           c->write_clock > m->warp->seen[c->write_warp];
}

/* Those of the lanes that did not write it themselves, when another lane of the warp did. */
static uint32_t lanes_beside_writer(const sim_machine *m, const shared_cell *c, uint32_t mask, uint32_t lanes) {
    int fresh = c->write_clock && (c->write_bytes & mask) && c->write_warp == m->warp->index &&
                c->write_lane_clock == m->warp->lane_clock;
    return fresh ? lanes & ~(1u << c->write_lane) : 0;
}

static void read_shared_cell(sim_machine *m, const sim_instruction *in, uint32_t lanes, uint32_t c, uint32_t mask) {
    const sim_warp *w = m->warp;
    size_t at = (size_t)w->index * m->cells + c;
    shared_cell *s = &m->cell[c];
    uint32_t others = lanes_beside_writer(m, s, mask, lanes);
    if (s->in_flight) report_in_flight(m, in, sim_first_lane(lanes), c, "read");
    if (is_written_elsewhere(m, s, mask)) {
        sim_report(m, in, sim_first_lane(lanes), PTXSIM_SHARED_RACE, 0,
                   "shared read at offset %u of a value of warp %u with no barrier between", c * 4,
                   (unsigned)s->write_warp);
    } else if (others) {
        sim_report(m, in, sim_first_lane(others), PTXSIM_SHARED_RACE, 0,
                   "shared read at offset %u of a value of lane %u of the same warp with no __syncwarp between", c * 4,
                   (unsigned)s->write_lane);
    }
    m->read_bytes[at] = (uint8_t)(m->read_clock[at] == w->clock ? m->read_bytes[at] | mask : mask);
    m->read_clock[at] = w->clock;
    if (s->read_warp != w->index || s->read_lane_clock != w->lane_clock) s->read_lanes = 0;
    s->read_warp = (uint8_t)w->index;
    s->read_lane_clock = w->lane_clock;
    s->read_lanes |= lanes;
    s->readers |= 1u << w->index;
}

/* All of the lanes read this. */
static void read_shared_bytes(sim_machine *m, const sim_instruction *in, uint32_t lanes, uint32_t offset,
                              uint32_t bytes) {
    uint32_t c, i;
    for (i = 0; i < bytes && m->shared_written[offset + i]; i++) {}
    if (i < bytes) {
        sim_report(m, in, sim_first_lane(lanes), PTXSIM_UNINITIALISED, 0,
                   "shared read at offset %u of a byte that nobody wrote", offset + i);
    }
    for (c = offset / 4; c <= (offset + bytes - 1) / 4; c++) {
        read_shared_cell(m, in, lanes, c, bytes_in_cell(c, offset, bytes));
    }
}

/* Those of the lanes that read at this address. */
static uint32_t lanes_at(const uint64_t *address, uint64_t here, uint32_t lanes) {
    uint32_t found = 0;
    int i;
    for (i = 0; i < LANES; i++) found |= (uint32_t)(address[i] == here) << i;
    return found & lanes;
}

/* Lanes often read all the same, which is then looked up once. */
void sim_shared_read(sim_machine *m, const sim_instruction *in, uint32_t lanes, const uint64_t *address,
                     uint32_t bytes) {
    uint32_t same = lanes_at(address, address[sim_first_lane(lanes)], lanes);
    int i;
    if (!m->config->check) return;
    if (same == lanes) {
        read_shared_bytes(m, in, lanes, (uint32_t)(address[sim_first_lane(lanes)] - SHARED_FIRST), bytes);
        return;
    }
    for (i = 0; i < LANES; i++) {
        if (lanes >> i & 1) read_shared_bytes(m, in, 1u << i, (uint32_t)(address[i] - SHARED_FIRST), bytes);
    }
}

/* A warp that may still read what is overwritten now, or -1. */
static int late_reader(const sim_machine *m, uint32_t c, uint32_t mask) {
    uint32_t others = m->cell[c].readers & ~(1u << m->warp->index);
    int w;
    for (w = 0; others; w++, others >>= 1) {
        size_t at = (size_t)w * m->cells + c;
        if (others & 1 && m->read_clock[at] > m->warp->seen[w] && (m->read_bytes[at] & mask)) return w;
    }
    return -1;
}

/* Whoever is ordered behind this write is so behind the reads before it, which need not be looked at again. */
static void check_write(sim_machine *m, const sim_instruction *in, int lane, uint32_t c, uint32_t mask, int changes) {
    shared_cell *s = &m->cell[c];
    const sim_warp *w = m->warp;
    int reader = late_reader(m, c, mask);
    if (is_written_elsewhere(m, s, mask)) {
        sim_report(m, in, lane, PTXSIM_SHARED_RACE, 0,
                   "shared write at offset %u over a value of warp %u with no barrier between", c * 4,
                   (unsigned)s->write_warp);
    } else if (changes && lanes_beside_writer(m, s, mask, 1u << lane)) {
        sim_report(m, in, lane, PTXSIM_SHARED_RACE, 0,
                   "shared write at offset %u over another value of lane %u of the same warp", c * 4,
                   (unsigned)s->write_lane);
    }
    if (reader >= 0) {
        sim_report(m, in, lane, PTXSIM_SHARED_RACE, 0,
                   "shared write at offset %u that warp %d may still read: no barrier between", c * 4, reader);
    } else if (s->read_warp == w->index && s->read_lane_clock == w->lane_clock && (s->read_lanes & ~(1u << lane))) {
        sim_report(m, in, lane, PTXSIM_SHARED_RACE, 0,
                   "shared write at offset %u that another lane of the warp may still read: no __syncwarp between",
                   c * 4);
    }
    if (mask == CELL_BYTES) s->readers = 0;
}

/* The kernel's own view of an atomic: it never races with another one. */
static int both_atomic(const shared_cell *s, shared_access how) {
    return how == ATOMIC && s->write_atomic;
}

/* data: what an ordinary store writes, so that lanes that store the same value do not race. */
void sim_shared_write(sim_machine *m, const sim_instruction *in, int lane, uint32_t offset, uint32_t bytes,
                      shared_access how, const uint8_t *data) {
    const sim_warp *w = m->warp;
    int changes = !data || memcmp(m->shared + offset, data, bytes) != 0;
    uint32_t c;
    if (!m->config->check) return;
    for (c = offset / 4; c <= (offset + bytes - 1) / 4; c++) {
        shared_cell *s = &m->cell[c];
        uint32_t mask = bytes_in_cell(c, offset, bytes);
        int same = s->write_warp == w->index && s->write_clock == w->clock && s->write_lane_clock == w->lane_clock;
        if (s->in_flight && how != ASYNC_END) report_in_flight(m, in, lane, c, "write");
        if (how != ASYNC_END && !both_atomic(s, how)) check_write(m, in, lane, c, mask, changes);
        s->in_flight = how == ASYNC_START;
        if (how == ASYNC_START) continue;
        s->write_bytes = (uint8_t)(same ? s->write_bytes | mask : mask);
        s->write_clock = w->clock;
        s->write_lane_clock = w->lane_clock;
        s->write_warp = (uint8_t)w->index;
        s->write_lane = (uint8_t)lane;
        s->write_atomic = how == ATOMIC;
    }
}

/* ---- global memory --------------------------------------------------------------------------------------------- */

static int is_released(const release_object *o, uint32_t count, uint32_t block, uint32_t warp, uint32_t clock) {
    int i = (int)count - 1;
    while (i >= 0 && o->item[i].block != block) i--;
    for (; i >= 0; i = o->item[i].previous) {
        if (clock <= o->item[i].fenced[warp]) return 1;
    }
    return 0;
}

/* Whether an earlier access of this launch lies behind this warp. */
static int is_ordered(const sim_machine *m, const struct epoch *e) {
    const sim_warp *w = m->warp;
    int i;
    if (e->block == m->linear_block) return e->warp == (uint32_t)w->index || e->clock <= w->seen[e->warp];
    for (i = 0; i < w->known.count; i++) {
        const struct known_releases *k = &w->known.item[i];
        if (is_released(&m->releases->object[k->object], k->count, e->block, e->warp, e->clock)) return 1;
    }
    return 0;
}

static uint32_t new_epoch(sim_machine *m) {
    struct epoch_table *t = m->epochs;
    struct epoch *e;
    t->item = (struct epoch *)sim_grow(t->item, &t->capacity, t->count + 1, sizeof *t->item);
    e = &t->item[t->count++];
    e->block = m->linear_block;
    e->clock = m->warp->clock;
    e->warp = (uint32_t)m->warp->index;
    m->warp->epoch = m->memory->epochs++;
    return m->warp->epoch;
}

/* The epoch of a record, NULL: of an earlier launch, or of these bytes there is none. */
static const struct epoch *epoch_of(const sim_machine *m, uint32_t record, uint32_t bytes) {
    uint32_t number = record >> EPOCH_SHIFT;
    return number >= m->epochs->first && (record & bytes) ? &m->epochs->item[number - m->epochs->first] : NULL;
}

/* The record of an access of these bytes; what the same warp left there in this epoch stays. */
static uint32_t new_record(sim_machine *m, uint32_t old, uint32_t bytes, int mark) {
    uint32_t number = m->warp->epoch ? m->warp->epoch : new_epoch(m);
    uint32_t record = number << EPOCH_SHIFT | bytes | (mark ? CELL_MARK : 0);
    return old >> EPOCH_SHIFT == number ? record | old : record;
}

static global_cell *cell_at(sim_buffer *b, size_t cell) {
    global_cell **page = &b->cells[cell / CELL_PAGE];
    if (!*page) *page = (global_cell *)sim_allocate(CELL_PAGE * sizeof **page);
    return *page + cell % CELL_PAGE;
}

static void report_global(sim_machine *m, const sim_instruction *in, int lane, size_t at, const char *what,
                          const char *whose, const struct epoch *e) {
    sim_report(m, in, lane, PTXSIM_GLOBAL_RACE, 0,
               "global %s (offset %lu of the buffer) %s warp %u of block %u: no barrier, or no fence, atomic and fence "
               "between",
               what, (unsigned long)at, whose, (unsigned)e->warp, (unsigned)e->block);
}

static void read_cell(sim_machine *m, const sim_instruction *in, int lane, global_cell *g, size_t at, uint32_t bytes) {
    const struct epoch *writer = epoch_of(m, g->write, bytes);
    if (writer && in->read_only) {
        sim_report(m, in, lane, PTXSIM_READ_ONLY, 0,
                   "ld.global.nc of data that this launch wrote (offset %lu of the buffer)", (unsigned long)at);
    } else if (writer && !(in->strong && (g->write & CELL_MARK)) && !is_ordered(m, writer)) {
        report_global(m, in, lane, at, "read", "of a value of", writer);
    }
    if (in->strong) return;
    if (epoch_of(m, g->read, CELL_MARK)) g->read = new_record(m, g->read, bytes, 1);
    else g->read = new_record(m, g->read, bytes, in->read_only);
}

/* The mark of a writer: it was strong. Of a reader: somebody used .nc. */
void sim_global_read(sim_machine *m, const sim_instruction *in, int lane, sim_buffer *b, size_t at, uint32_t bytes) {
    size_t c;
    if (!m->config->check || b->constant) return;
    for (c = at / 4; c <= (at + bytes - 1) / 4; c++) {
        uint32_t mask = bytes_in_cell((uint32_t)(c - at / 4), (uint32_t)(at % 4), bytes);
        read_cell(m, in, lane, cell_at(b, c), at, mask);
    }
}

/* Of the readers of a cell only the last is remembered. */
static void write_cell(sim_machine *m, const sim_instruction *in, int lane, global_cell *g, size_t at, uint32_t bytes) {
    const struct epoch *writer = epoch_of(m, g->write, bytes), *reader = epoch_of(m, g->read, bytes);
    if (reader && (g->read & CELL_MARK)) {
        sim_report(m, in, lane, PTXSIM_READ_ONLY, 0,
                   "a write to data that ld.global.nc read in this launch (offset %lu of the buffer)",
                   (unsigned long)at);
    }
    if (writer && !(in->strong && (g->write & CELL_MARK)) && !is_ordered(m, writer)) {
        report_global(m, in, lane, at, "write", "over a value of", writer);
    } else if (reader && !is_ordered(m, reader)) {
        report_global(m, in, lane, at, "write", "over what is read by", reader);
    }
    g->write = new_record(m, g->write, bytes, 0);
    if (in->strong) g->write |= CELL_MARK;
    else g->write &= ~(uint32_t)CELL_MARK;
}

void sim_global_write(sim_machine *m, const sim_instruction *in, int lane, sim_buffer *b, size_t at, uint32_t bytes) {
    size_t c;
    if (!m->config->check) return;
    for (c = at / 4; c <= (at + bytes - 1) / 4; c++) {
        uint32_t mask = bytes_in_cell((uint32_t)(c - at / 4), (uint32_t)(at % 4), bytes);
        write_cell(m, in, lane, cell_at(b, c), at, mask);
    }
}

/* ---- releases -------------------------------------------------------------------------------------------------- */

void sim_order_open(sim_machine *m) {
    m->releases = (struct release_log *)sim_allocate(sizeof *m->releases);
    m->epochs = (struct epoch_table *)sim_allocate(sizeof *m->epochs);
    if (m->memory->epochs > MAX_EPOCHS) {
        sim_memory_forget_cells(m->memory);
        m->memory->epochs = 0;
    }
    if (!m->memory->epochs) m->memory->epochs = 1;
    m->epochs->first = m->memory->epochs;
}

void sim_order_close(sim_machine *m) {
    int i;
    free(m->epochs->item);
    free(m->epochs);
    for (i = 0; i < m->releases->count; i++) {
        free(m->releases->object[i].item);
        free(m->releases->object[i].known.item);
    }
    free(m->releases->object);
    free(m->releases);
}

static int find_object(const sim_machine *m, uint64_t address) {
    int i;
    for (i = m->releases->count - 1; i >= 0 && m->releases->object[i].address != address; i--) {}
    return i;
}

static int make_object(sim_machine *m, uint64_t address) {
    struct release_log *r = m->releases;
    r->object = (release_object *)sim_grow(r->object, &r->capacity, r->count + 1, sizeof *r->object);
    r->object[r->count].address = address;
    return r->count++;
}

/* A strong read: what was released there is known after the next fence. */
void sim_observe(sim_machine *m, uint64_t address) {
    int at = find_object(m, address);
    release_object *o = at < 0 ? NULL : &m->releases->object[at];
    uint32_t *seen;
    if (!m->config->check || !o || !o->count) return;
    seen = releases_known(&m->warp->observed, (uint32_t)at);
    if (*seen < (uint32_t)o->count) *seen = (uint32_t)o->count;
    sim_join_knowledge(&m->warp->observed, &o->known);
}

/* A strong write. An atomic keeps the releases before it alive. A store would end them for those who see it; that is
   not modelled, so such a race may be missed. */
void sim_publish(sim_machine *m, uint64_t address) {
    int at = find_object(m, address), i;
    sim_warp *w = m->warp;
    release_object *o;
    release *r;
    if (!m->config->check) return;
    if (at < 0) at = make_object(m, address);
    o = &m->releases->object[at];
    o->item = (release *)sim_grow(o->item, &o->capacity, o->count + 1, sizeof *o->item);
    r = &o->item[o->count];
    r->block = m->linear_block;
    for (i = o->count - 1; i >= 0 && o->item[i].block != m->linear_block; i--) {}
    r->previous = i;
    memcpy(r->fenced, w->fenced, sizeof r->fenced);
    o->count++;
    sim_join_knowledge(&o->known, &w->published);
}

void sim_fence(sim_machine *m, const sim_instruction *in) {
    sim_warp *w = m->warp;
    (void)in;
    memcpy(w->fenced, w->seen, sizeof w->fenced);
    sim_join_knowledge(&w->known, &w->observed);
    sim_join_knowledge(&w->published, &w->known);
    sim_tick(w);
}

/* Inside a block the clocks of the warps are joined by barriers alone. */
void sim_fence_block(sim_machine *m, const sim_instruction *in) {
    (void)m;
    (void)in;
}
