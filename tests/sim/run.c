/* run.c - blocks one after the other, their warps in turns, the lanes of a warp in lock-step.

   Lanes of a warp that went different ways are fragments. The one at the lowest address runs, and takes up others when
   it meets them. A fragment at an instruction that names lanes which are elsewhere waits until they come. */
#include "sim.h"

#include <stdlib.h>

enum { SLICE = 1 << 16, SEEDED_SLICE = 200, FAIRNESS = 64 };

/* ---- special registers ----------------------------------------------------------------------------------------- */

enum {
    TID,
    NTID = 3,
    CTAID = 6,
    NCTAID = 9,
    LANE_ID = 12,
    WARP_ID,
    N_WARP_ID,
    SM_ID,
    N_SM_ID,
    MASK_EQ,
    MASK_LE,
    MASK_LT,
    MASK_GE,
    MASK_GT,
    DYNAMIC_SIZE,
    TOTAL_SIZE
};

const char *sim_special_name(int which) {
    static const char *const name[] = {
        "%tid.x",      "%tid.y",       "%tid.z",     "%ntid.x",       "%ntid.y",       "%ntid.z",       "%ctaid.x",
        "%ctaid.y",    "%ctaid.z",     "%nctaid.x",  "%nctaid.y",     "%nctaid.z",     "%laneid",       "%warpid",
        "%nwarpid",    "%smid",        "%nsmid",     "%lanemask_eq",  "%lanemask_le",  "%lanemask_lt",  "%lanemask_ge",
        "%lanemask_gt", "%dynamic_smem_size", "%total_smem_size", NULL,
    };
    return name[which];
}

static uint32_t special_value(const sim_machine *m, int which, uint32_t warp, uint32_t lane) {
    uint32_t t = warp * LANES + lane;
    switch (which) {
        case TID: return t % m->block[0];
        case TID + 1: return t / m->block[0] % m->block[1];
        case TID + 2: return t / m->block[0] / m->block[1];
        case LANE_ID: return lane;
        case WARP_ID: return warp;
        case N_WARP_ID: return (uint32_t)m->warp_count;
        case SM_ID: return m->linear_block % (uint32_t)m->config->sms;
        case N_SM_ID: return (uint32_t)m->config->sms;
        case MASK_EQ: return 1u << lane;
        case MASK_LE: return (2u << lane) - 1;
        case MASK_LT: return (1u << lane) - 1;
        case MASK_GE: return ~((1u << lane) - 1);
        case MASK_GT: return ~((2u << lane) - 1);
        case DYNAMIC_SIZE: return m->shared_bytes - (uint32_t)m->kernel->dynamic_offset;
        case TOTAL_SIZE: return m->shared_bytes;
        default:
            if (which < CTAID) return m->block[which - NTID];
            return which < NCTAID ? m->block_index[which - CTAID] : m->grid[which - NCTAID];
    }
}

static void set_specials(const sim_machine *m, sim_warp *w) {
    const sim_kernel *k = m->kernel;
    int s, i;
    for (s = 0; s < k->specials; s++) {
        uint32_t *r = (uint32_t *)(w->registers + k->special[s].offset);
        for (i = 0; i < LANES; i++) r[i] = special_value(m, k->special[s].which, (uint32_t)w->index, (uint32_t)i);
    }
}

/* ---- fragments ------------------------------------------------------------------------------------------------- */

static void set_active(sim_machine *m, uint32_t lanes) {
    int i;
    if (lanes == m->active) return;
    m->active = lanes;
    m->all = lanes == ~0u;
    for (i = 0; i < LANES; i++) m->on[i] = 0 - (lanes >> i & 1);
}

static void remove_fragment(sim_warp *w, int k) {
    w->part[k] = w->part[--w->parts];
}

/* Fragments that stand at one instruction become one; it need not wait any more than its parts, but looks again. */
static void merge(sim_warp *w) {
    int i, j;
    for (i = 0; i < w->parts; i++) {
        for (j = w->parts - 1; j > i; j--) {
            if (w->part[i].pc != w->part[j].pc) continue;
            w->part[i].lanes |= w->part[j].lanes;
            w->part[i].waits = 0;
            remove_fragment(w, j);
        }
    }
}

/* The lowest fragment that can run becomes the current one, but now and then the highest: lanes that spin must not keep
   out those they wait for. 0: all of them wait. */
static int choose(sim_warp *w) {
    int i, best = -1, highest = ++w->turns % FAIRNESS == 0;
    merge(w);
    for (i = 0; i < w->parts; i++) {
        if (w->part[i].waits) continue;
        if (best < 0 || (w->part[i].pc > w->part[best].pc) == highest) best = i;
    }
    w->current = best < 0 ? 0 : best;
    return best >= 0;
}

/* The lanes of the current fragment wait for others. */
static void wait_for_lanes(sim_machine *m, sim_warp *w, const sim_instruction *in, uint32_t here, uint32_t wanted) {
    w->part[w->current].waits = 1;
    m->by_class[in->class_]--;
    m->counters->lanes -= sim_popcount(w->part[w->current].lanes);
    if (w->parts > 1 && choose(w)) return;
    sim_report(m, in, sim_first_lane(here), PTXSIM_CONVERGENCE, CU_LAUNCH_FAILED,
               "lanes %08x are here, the instruction waits for %08x", here, wanted);
}

static void divide(sim_machine *m, sim_warp *w, uint32_t taken, uint32_t target) {
    fragment *f = &w->part[w->current], *other = &w->part[w->parts++];
    f->lanes &= ~taken;
    f->pc++;
    other->lanes = taken;
    other->pc = target;
    other->waits = 0;
    m->counters->divergent_branches++;
}

/* ---- barriers -------------------------------------------------------------------------------------------------- */

static uint32_t warps_left(const sim_machine *m) {
    uint32_t left = 0;
    int i;
    for (i = 0; i < m->warp_count; i++) left |= (uint32_t)(m->warps[i].state != DONE) << i;
    return left;
}

static void give_reduction(sim_warp *w, const sim_barrier *b) {
    const sim_instruction *in = w->barrier;
    uint32_t value = in->option == BARRIER_POPC ? b->population : in->option == BARRIER_AND ? ~b->none : b->any;
    uint32_t *d;
    int i;
    if (in->option < BARRIER_POPC) return;
    d = (uint32_t *)(w->registers + in->operand[2]);
    for (i = 0; i < LANES; i++) d[i] = w->barrier_lanes >> i & 1 ? value : d[i];
}

static void release(sim_machine *m, sim_barrier *b) {
    int i;
    for (i = 0; i < m->warp_count; i++) {
        sim_warp *w = &m->warps[i];
        if (!(b->waiting >> i & 1)) continue;
        give_reduction(w, b);
        sim_join_clocks(w->seen, b->seen);
        sim_join_clocks(w->fenced, b->fenced);
        sim_join_knowledge(&w->known, &b->known);
        sim_join_knowledge(&w->observed, &b->observed);
        sim_join_knowledge(&w->published, &b->published);
        sim_tick(w);
        w->lane_clock++;
        w->state = RUNNING;
    }
    b->waiting = b->arrived = b->threads = b->needed = 0;
    b->population = b->any = b->none = 0;
    memset(b->seen, 0, sizeof b->seen);
    memset(b->fenced, 0, sizeof b->fenced);
    b->known.count = b->observed.count = b->published.count = 0;
}

static void release_if_complete(sim_machine *m, sim_barrier *b) {
    uint32_t left = warps_left(m);
    if (!b->arrived) return;
    if (b->needed ? b->threads >= b->needed : (b->arrived & left) == left) release(m, b);
}

static void vote_at_barrier(sim_machine *m, sim_warp *w, const sim_instruction *in, sim_barrier *b) {
    const uint32_t *p;
    int i;
    if (in->option < BARRIER_POPC) return;
    p = (const uint32_t *)sim_operand(m, in, 3);
    for (i = 0; i < LANES; i++) {
        int holds = (p[i] != 0) != in->negated_source;
        if (!(w->barrier_lanes >> i & 1)) continue;
        b->population += (uint32_t)holds;
        if (holds) b->any = ~0u;
        else b->none = ~0u;
    }
}

/* All lanes of the warp that are left have come. */
static void arrive(sim_machine *m, sim_warp *w, const sim_instruction *in) {
    int lane = sim_first_lane(w->live);
    uint32_t id = ((const uint32_t *)sim_operand(m, in, 0))[lane];
    uint32_t needed = in->operand[1] == NO_OPERAND ? 0 : ((const uint32_t *)sim_operand(m, in, 1))[lane];
    sim_barrier *b = &m->barrier[id % MAX_BARRIERS];
    if (id >= MAX_BARRIERS || needed % LANES || (b->arrived && b->needed != needed)) {
        sim_report(m, in, lane, PTXSIM_CONVERGENCE, CU_LAUNCH_FAILED,
                   "barrier %u for %u threads, others came for %u", id, needed, b->needed);
        return;
    }
    b->needed = needed;
    b->arrived |= 1u << w->index;
    b->threads += LANES;
    w->barrier = in;
    w->barrier_lanes = w->live;
    vote_at_barrier(m, w, in, b);
    sim_join_clocks(b->seen, w->seen);
    sim_join_clocks(b->fenced, w->fenced);
    sim_join_knowledge(&b->known, &w->known);
    sim_join_knowledge(&b->observed, &w->observed);
    sim_join_knowledge(&b->published, &w->published);
    m->counters->barriers++;
    w->part[w->current].pc++;
    if (in->option == BARRIER_ARRIVE) {
        sim_tick(w);
    } else {
        b->waiting |= 1u << w->index;
        w->state = AT_BARRIER;
    }
    release_if_complete(m, b);
}

/* ---- one instruction ------------------------------------------------------------------------------------------- */

static uint32_t guarded(const sim_machine *m, const sim_instruction *in, uint32_t lanes) {
    const uint32_t *p;
    uint32_t holds = 0;
    int i;
    if (in->predicate < 0) return lanes;
    p = (const uint32_t *)(m->registers + in->predicate);
    for (i = 0; i < LANES; i++) holds |= (p[i] & 1u) << i;
    return lanes & (in->negated ? ~holds : holds);
}

static void leave(sim_machine *m, sim_warp *w, const sim_instruction *in, uint32_t lanes) {
    fragment *f = &w->part[w->current];
    int i;
    sim_async_exit(m, in, lanes);
    w->live &= ~lanes;
    f->lanes &= ~lanes;
    f->pc++;
    if (!f->lanes) remove_fragment(w, w->current);
    for (i = 0; i < w->parts; i++) w->part[i].waits = 0;
    if (w->parts) {
        choose(w);
        return;
    }
    w->state = DONE;
    for (i = 0; i < MAX_BARRIERS; i++) release_if_complete(m, &m->barrier[i]);
}

static void sync_lanes(sim_machine *m, sim_warp *w, const sim_instruction *in, uint32_t on) {
    const uint32_t *mask = in->mask < 0 ? NULL : (const uint32_t *)sim_operand(m, in, in->mask);
    uint32_t named = mask ? mask[sim_first_lane(on)] : on;
    if (on & ~named) {
        sim_report(m, in, sim_first_lane(on & ~named), PTXSIM_CONVERGENCE, CU_LAUNCH_FAILED,
                   "the mask %08x does not name a lane that is here", named);
        return;
    }
    if (named & w->live & ~on) {
        wait_for_lanes(m, w, in, on, named & w->live);
        return;
    }
    set_active(m, on);
    in->run(m, in);
    w->part[w->current].pc++;
}

/* Instructions that no guard and no other fragment can interrupt. Returns how many ran. */
static uint64_t run_straight(sim_machine *m, sim_warp *w, uint64_t most) {
    fragment *f = &w->part[0];
    const sim_instruction *first = &m->kernel->code[f->pc], *in = first;
    uint64_t count;
    if (w->parts > 1) return 0;
    set_active(m, f->lanes);
    for (; in->flow == PLAIN && in->predicate < 0 && !m->error && (uint64_t)(in - first) < most; in++) {
        m->by_class[in->class_]++;
        in->run(m, in);
    }
    count = (uint64_t)(in - first);
    m->counters->lanes += count * sim_popcount(f->lanes);
    f->pc += (uint32_t)count;
    return count;
}

static void step(sim_machine *m, sim_warp *w) {
    fragment *f;
    const sim_instruction *in;
    uint32_t here, on;
    if (w->parts > 1) choose(w);
    f = &w->part[w->current];
    in = &m->kernel->code[f->pc];
    here = f->lanes;
    on = guarded(m, in, here);
    m->by_class[in->class_]++;
    m->counters->lanes += sim_popcount(here);
    if (!on) {
        f->pc++;
        return;
    }
    switch ((sim_flow)in->flow) {
        case PLAIN:
            set_active(m, on);
            in->run(m, in);
            f->pc++;
            break;
        case BRANCH:
            if (on == here) f->pc = (uint32_t)in->target;
            else divide(m, w, on, (uint32_t)in->target);
            break;
        case EXIT: leave(m, w, in, on); break;
        case BARRIER:
            if (on == w->live) arrive(m, w, in);
            else wait_for_lanes(m, w, in, on, w->live);
            break;
        case WARP_SYNC: sync_lanes(m, w, in, on); break;
        case WARP_ALIGNED:
            if (on == ~0u) sync_lanes(m, w, in, on);
            else wait_for_lanes(m, w, in, on, ~0u);
            break;
    }
}

/* ---- blocks ---------------------------------------------------------------------------------------------------- */

static uint32_t draw(sim_machine *m, uint32_t below) {
    m->random ^= m->random << 13;
    m->random ^= m->random >> 17;
    m->random ^= m->random << 5;
    return m->random % below;
}

static void run_warp(sim_machine *m, sim_warp *w) {
    uint64_t slice = m->config->seed ? 1 + draw(m, SEEDED_SLICE) : SLICE, start = slice;
    m->warp = w;
    m->registers = w->registers;
    while (w->state == RUNNING && !m->error && slice) {
        slice -= run_straight(m, w, slice);
        if (m->error || !slice) break;
        step(m, w);
        slice--;
    }
    m->steps += start - slice;
    if (m->steps > m->config->steps && !m->error) {
        sim_report(m, &m->kernel->code[w->part[w->current].pc], 0, PTXSIM_DEADLOCK, CU_LAUNCH_TIMEOUT,
                   "the launch does not end: %llu instructions. A block that waits for a later one waits forever here",
                   (unsigned long long)m->steps);
    }
}

/* 1: some warp could run. */
static int run_round(sim_machine *m) {
    int i, ran = 0, first = m->config->seed ? (int)draw(m, (uint32_t)m->warp_count) : 0;
    for (i = 0; i < m->warp_count && !m->error; i++) {
        sim_warp *w = &m->warps[(first + i) % m->warp_count];
        if (w->state != RUNNING) continue;
        run_warp(m, w);
        ran = 1;
    }
    return ran;
}

static void report_deadlock(sim_machine *m) {
    int i;
    for (i = 0; i < m->warp_count && m->warps[i].state != AT_BARRIER; i++) {}
    m->warp = &m->warps[i];
    sim_report(m, m->warp->barrier, sim_first_lane(m->warp->barrier_lanes), PTXSIM_DEADLOCK, CU_LAUNCH_FAILED,
               "the barrier waits for warps that never come; %u warps of the block are left",
               sim_popcount(warps_left(m)));
}

/* Clocks go on from block to block, so that what the last one left in the cells is behind everybody. */
static void start_warp(sim_machine *m, sim_warp *w, uint32_t clock) {
    uint32_t left = m->threads - (uint32_t)w->index * LANES;
    int i;
    w->live = left >= LANES ? ~0u : (1u << left) - 1;
    w->parts = 1;
    w->current = 0;
    w->turns = 0;
    w->part[0].pc = 0;
    w->part[0].lanes = w->live;
    w->part[0].waits = 0;
    w->state = RUNNING;
    for (i = 0; i < MAX_WARPS; i++) w->seen[i] = clock;
    w->clock = clock;
    sim_tick(w);
    w->lane_clock++;
    memset(w->fenced, 0, sizeof w->fenced);
    w->known.count = w->observed.count = w->published.count = 0;
    memset(w->registers, 0xA5, (size_t)m->kernel->register_bytes);
    memset(w->local_written, 0, LANES * m->kernel->local_bytes);
    set_specials(m, w);
    if (sim_async_reset(w)) memset(m->cell, 0, m->cells * sizeof *m->cell);
}

static void start_block(sim_machine *m, uint32_t block) {
    uint32_t clock = 0;
    int i;
    m->linear_block = block;
    m->block_index[0] = block % m->grid[0];
    m->block_index[1] = block / m->grid[0] % m->grid[1];
    m->block_index[2] = block / m->grid[0] / m->grid[1];
    memset(m->shared, 0xA5, m->shared_bytes);
    memset(m->shared_written, 0, m->shared_bytes);
    for (i = 0; i < m->warp_count; i++) clock = clock > m->warps[i].clock ? clock : m->warps[i].clock;
    for (i = 0; i < m->warp_count; i++) start_warp(m, &m->warps[i], clock);
}

static void run_block(sim_machine *m, uint32_t block) {
    start_block(m, block);
    while (!m->error && run_round(m)) {}
    if (!m->error && warps_left(m)) report_deadlock(m);
}

/* ---- launches -------------------------------------------------------------------------------------------------- */

static void open_warp(sim_machine *m, sim_warp *w, int index) {
    w->index = index;
    w->lane_clock = 1;
    w->registers = (uint8_t *)sim_allocate_aligned((size_t)m->kernel->register_bytes);
    w->local = (uint8_t *)sim_allocate(LANES * m->kernel->local_bytes);
    w->local_written = (uint8_t *)sim_allocate(LANES * m->kernel->local_bytes);
    sim_async_open(w);
}

static void close_warp(sim_warp *w) {
    free(w->registers);
    free(w->local);
    free(w->local_written);
    free(w->known.item);
    free(w->observed.item);
    free(w->published.item);
    sim_async_close(w);
}

static void open_machine(sim_machine *m, size_t dynamic_shared) {
    int i;
    m->threads = m->block[0] * m->block[1] * m->block[2];
    m->warp_count = (int)((m->threads + LANES - 1) / LANES);
    m->shared_bytes = (uint32_t)(dynamic_shared ? m->kernel->dynamic_offset + dynamic_shared
                                                : m->kernel->shared_layout);
    m->cells = m->shared_bytes / 4 + 1;
    m->shared = (uint8_t *)sim_allocate(m->shared_bytes);
    m->shared_written = (uint8_t *)sim_allocate(m->shared_bytes);
    m->cell = (shared_cell *)sim_allocate(m->cells * sizeof *m->cell);
    m->read_clock = (uint32_t *)sim_allocate((size_t)m->cells * (size_t)m->warp_count * 4);
    m->read_bytes = (uint8_t *)sim_allocate((size_t)m->cells * (size_t)m->warp_count);
    m->warps = (sim_warp *)sim_allocate((size_t)m->warp_count * sizeof *m->warps);
    for (i = 0; i < m->warp_count; i++) open_warp(m, &m->warps[i], i);
    sim_order_open(m);
}

static void close_machine(sim_machine *m) {
    int i;
    for (i = 0; i < m->warp_count; i++) close_warp(&m->warps[i]);
    for (i = 0; i < MAX_BARRIERS; i++) {
        free(m->barrier[i].known.item);
        free(m->barrier[i].observed.item);
        free(m->barrier[i].published.item);
    }
    sim_order_close(m);
    free(m->warps);
    free(m->shared);
    free(m->shared_written);
    free(m->cell);
    free(m->read_clock);
    free(m->read_bytes);
}

static void add_counters(const sim_machine *m) {
    ptxsim_counters *c = m->counters;
    const uint64_t *n = m->by_class;
    int i;
    for (i = 0; i < CLASSES; i++) c->instructions += n[i];
    c->integer += n[INTEGER];
    c->floating += n[FLOATING];
    c->special += n[SPECIAL];
    c->conversion += n[CONVERSION];
    c->move += n[MOVE];
    c->control += n[CONTROL];
    c->warp_wide += n[WARP_WIDE];
    c->memory += n[MEMORY];
    c->matrix += n[MATRIX];
    c->launches++;
}

static void run_blocks(sim_machine *m) {
    uint32_t count = m->grid[0] * m->grid[1] * m->grid[2], i;
    uint32_t *order = (uint32_t *)sim_allocate((size_t)count * 4);
    for (i = 0; i < count; i++) order[i] = i;
    for (i = count; m->config->seed && i > 1; i--) {
        uint32_t j = draw(m, i), swap = order[i - 1];
        order[i - 1] = order[j];
        order[j] = swap;
    }
    for (i = 0; i < count && !m->error; i++) run_block(m, order[i]);
    free(order);
}

/* 0, or a code of cuda.h. The caller has checked the sizes. */
int sim_launch(sim_memory *memory, const sim_config *config, const sim_kernel *kernel, const uint32_t *grid,
               const uint32_t *block, size_t dynamic_shared, const void *params, ptxsim_counters *counters) {
    sim_machine *m = (sim_machine *)sim_allocate(sizeof *m);
    int error;
    m->config = config;
    m->kernel = kernel;
    m->memory = memory;
    m->counters = counters;
    m->params = (const uint8_t *)params;
    memcpy(m->grid, grid, sizeof m->grid);
    memcpy(m->block, block, sizeof m->block);
    m->random = config->seed * 2654435761u | 1u;
    open_machine(m, dynamic_shared);
    run_blocks(m);
    add_counters(m);
    close_machine(m);
    error = m->error;
    free(m);
    return error;
}
