/* warp.c - instructions that look at several lanes, and those without an operand list of the usual shape. */
#include "sim.h"

void sim_nothing(sim_machine *m, const sim_instruction *in) {
    (void)m;
    (void)in;
}

void sim_trap(sim_machine *m, const sim_instruction *in) {
    sim_report(m, in, sim_first_lane(m->active), PTXSIM_TRAP, CU_ILLEGAL_INSTRUCTION, "the kernel gives up");
}

/* The address in a window from a generic one, or back. */
void sim_add_window(sim_machine *m, const sim_instruction *in) {
    const uint64_t *a = (const uint64_t *)sim_operand(m, in, 1);
    uint64_t result[LANES];
    int i;
    for (i = 0; i < LANES; i++) result[i] = a[i] + in->immediate;
    sim_keep(m, sim_operand(m, in, 0), result, 8);
}

/* Element 0 is the lowest part. */
void sim_pack(sim_machine *m, const sim_instruction *in) {
    int i, k, width = in->register_bytes, whole = width * in->vector;
    uint8_t result[8 * LANES];
    for (k = 0; k < in->vector; k++) {
        const uint8_t *part = (const uint8_t *)sim_operand(m, in, 1 + k);
        for (i = 0; i < LANES; i++) memcpy(result + i * whole + k * width, part + i * width, (size_t)width);
    }
    sim_keep(m, sim_operand(m, in, 0), result, (size_t)whole);
}

void sim_unpack(sim_machine *m, const sim_instruction *in) {
    int i, k, width = in->register_bytes, whole = width * in->vector;
    uint8_t from[8 * LANES], result[8 * LANES];
    memcpy(from, sim_operand(m, in, in->vector), (size_t)(whole * LANES));
    for (k = 0; k < in->vector; k++) {
        if (in->operand[k] == NO_OPERAND) continue;
        for (i = 0; i < LANES; i++) memcpy(result + i * width, from + i * whole + k * width, (size_t)width);
        sim_keep(m, sim_operand(m, in, k), result, (size_t)width);
    }
}

/* ---- shuffles -------------------------------------------------------------------------------------------------- */

enum { SHUFFLE_UP, SHUFFLE_DOWN, SHUFFLE_BUTTERFLY, SHUFFLE_INDEX };

/* The lane that lane i reads, or -1 when it is outside of the segment. c: segment mask << 8 | clamp. */
static int shuffle_source(int mode, uint32_t i, uint32_t b, uint32_t c) {
    uint32_t segment = c >> 8 & 31, clamp = c & 31, offset = b & 31;
    uint32_t low = i & segment, limit = low | (clamp & ~segment);
    int j;
    if (mode == SHUFFLE_UP) {
        j = (int)i - (int)offset;
        return j >= (int)limit ? j : -1;
    }
    if (mode == SHUFFLE_DOWN) j = (int)(i + offset);
    else if (mode == SHUFFLE_BUTTERFLY) j = (int)(i ^ offset);
    else j = (int)(low | (offset & ~segment));
    return j <= (int)limit ? j : -1;
}

static void shuffle(sim_machine *m, const sim_instruction *in) {
    const uint32_t *a = (const uint32_t *)sim_operand(m, in, 2), *b = (const uint32_t *)sim_operand(m, in, 3);
    const uint32_t *c = (const uint32_t *)sim_operand(m, in, 4);
    uint32_t result[LANES], inside[LANES];
    int i;
    for (i = 0; i < LANES; i++) {
        int j = shuffle_source(in->option, (uint32_t)i, b[i], c[i]);
        inside[i] = j >= 0 ? ~0u : 0;
        if (j < 0) j = i;
        result[i] = a[j];
        if (sim_active(m, i) && !sim_active(m, j)) {
            sim_report(m, in, i, PTXSIM_CONVERGENCE, 0, "shfl.sync reads lane %d, which does not take part", j);
        }
    }
    sim_keep(m, sim_operand(m, in, 0), result, 4);
    if (in->operand[1] != NO_OPERAND) sim_keep(m, sim_operand(m, in, 1), inside, 4);
}

/* ---- votes, matches, reductions -------------------------------------------------------------------------------- */

static void give_all(sim_machine *m, const sim_instruction *in, uint32_t value) {
    uint32_t result[LANES];
    int i;
    for (i = 0; i < LANES; i++) result[i] = value;
    sim_keep(m, sim_operand(m, in, 0), result, 4);
}

enum { VOTE_BALLOT, VOTE_ANY, VOTE_ALL, VOTE_UNIFORM };

static void vote(sim_machine *m, const sim_instruction *in) {
    const uint32_t *p = (const uint32_t *)sim_operand(m, in, 1);
    uint32_t ballot = 0;
    int i;
    for (i = 0; i < LANES; i++) ballot |= (uint32_t)((p[i] != 0) != in->negated_source) << i;
    ballot &= m->active;
    if (in->option == VOTE_BALLOT) give_all(m, in, ballot);
    else if (in->option == VOTE_ANY) give_all(m, in, ballot ? ~0u : 0);
    else if (in->option == VOTE_ALL) give_all(m, in, ballot == m->active ? ~0u : 0);
    else give_all(m, in, ballot == 0 || ballot == m->active ? ~0u : 0);
}

/* The lanes with the same value. */
static void match_any(sim_machine *m, const sim_instruction *in) {
    const uint32_t *a = (const uint32_t *)sim_operand(m, in, 1);
    uint32_t result[LANES];
    int i, j;
    for (i = 0; i < LANES; i++) {
        result[i] = 0;
        for (j = 0; j < LANES; j++) result[i] |= (uint32_t)(sim_active(m, j) && a[j] == a[i]) << j;
    }
    sim_keep(m, sim_operand(m, in, 0), result, 4);
}

/* All lanes that take part when they have one value, else 0; and whether they have. */
static void match_all(sim_machine *m, const sim_instruction *in) {
    const uint32_t *a = (const uint32_t *)sim_operand(m, in, 2);
    uint32_t first = a[sim_first_lane(m->active)], same[LANES];
    int i, all = 1;
    for (i = 0; i < LANES; i++) all &= !sim_active(m, i) || a[i] == first;
    give_all(m, in, all ? m->active : 0);
    for (i = 0; i < LANES; i++) same[i] = all ? ~0u : 0;
    if (in->operand[1] != NO_OPERAND) sim_keep(m, sim_operand(m, in, 1), same, 4);
}

enum { REDUCE_ADD, REDUCE_MIN_S, REDUCE_MAX_S, REDUCE_MIN_U, REDUCE_MAX_U, REDUCE_AND, REDUCE_OR, REDUCE_XOR };

static uint32_t reduce_two(int how, uint32_t a, uint32_t b) {
    switch (how) {
        case REDUCE_ADD: return a + b;
        case REDUCE_MIN_S: return (int32_t)a < (int32_t)b ? a : b;
        case REDUCE_MAX_S: return (int32_t)a > (int32_t)b ? a : b;
        case REDUCE_MIN_U: return a < b ? a : b;
        case REDUCE_MAX_U: return a > b ? a : b;
        case REDUCE_AND: return a & b;
        case REDUCE_OR: return a | b;
        default: return a ^ b;
    }
}

static void reduce(sim_machine *m, const sim_instruction *in) {
    const uint32_t *a = (const uint32_t *)sim_operand(m, in, 1);
    int i = sim_first_lane(m->active);
    uint32_t value = a[i];
    for (i++; i < LANES; i++) {
        if (sim_active(m, i)) value = reduce_two(in->option, value, a[i]);
    }
    give_all(m, in, value);
}

static void active_mask(sim_machine *m, const sim_instruction *in) {
    give_all(m, in, m->active);
}

/* What the lanes wrote before is visible to each other after it. */
void sim_sync_lanes(sim_machine *m, const sim_instruction *in) {
    (void)in;
    m->warp->lane_clock++;
}

const sim_form sim_warp_forms[] = {
    { "shfl.sync.up.b32", "Pwwww", shuffle, WARP_WIDE, SHUFFLE_UP },
    { "shfl.sync.down.b32", "Pwwww", shuffle, WARP_WIDE, SHUFFLE_DOWN },
    { "shfl.sync.bfly.b32", "Pwwww", shuffle, WARP_WIDE, SHUFFLE_BUTTERFLY },
    { "shfl.sync.idx.b32", "Pwwww", shuffle, WARP_WIDE, SHUFFLE_INDEX },
    { "vote.sync.ballot.b32", "wnw", vote, WARP_WIDE, VOTE_BALLOT },
    { "vote.sync.any.pred", "pnw", vote, WARP_WIDE, VOTE_ANY },
    { "vote.sync.all.pred", "pnw", vote, WARP_WIDE, VOTE_ALL },
    { "vote.sync.uni.pred", "pnw", vote, WARP_WIDE, VOTE_UNIFORM },
    { "match.any.sync.b32", "www", match_any, WARP_WIDE, 0 },
    { "match.all.sync.b32", "Pww", match_all, WARP_WIDE, 0 },
    { "redux.sync.add.s32", "www", reduce, WARP_WIDE, REDUCE_ADD },
    { "redux.sync.add.u32", "www", reduce, WARP_WIDE, REDUCE_ADD },
    { "redux.sync.min.s32", "www", reduce, WARP_WIDE, REDUCE_MIN_S },
    { "redux.sync.max.s32", "www", reduce, WARP_WIDE, REDUCE_MAX_S },
    { "redux.sync.min.u32", "www", reduce, WARP_WIDE, REDUCE_MIN_U },
    { "redux.sync.max.u32", "www", reduce, WARP_WIDE, REDUCE_MAX_U },
    { "redux.sync.and.b32", "www", reduce, WARP_WIDE, REDUCE_AND },
    { "redux.sync.or.b32", "www", reduce, WARP_WIDE, REDUCE_OR },
    { "redux.sync.xor.b32", "www", reduce, WARP_WIDE, REDUCE_XOR },
    { "activemask.b32", "w", active_mask, WARP_WIDE, NO_MASK },
    { "bar.warp.sync", "w", sim_sync_lanes, WARP_WIDE, 0 },
    { NULL, NULL, NULL, WARP_WIDE, 0 }
};
