/* plan.cu - attn_cu_plan_make: from lengths to tasks on the device, word for word what attn_plan_make of attn.h writes
   (>>plan there). One block: the arrays are in order, so all is prefix sums, and a step has few thousand entries.

   Each stage turns a list into a longer one, requests into strips and strips into tasks, 1,024 at a time: what each
   makes is counted and summed up, and then every thread makes one of the new entries, finding its origin by a search
   in the sums. So one long request keeps all threads as busy as many short ones. */
#ifndef ATTN_PLAN_CU
#define ATTN_PLAN_CU

#include "spans.cu"

enum { PLANNERS = 1024 };

/* What the threads share. A round starts with scans, for which all threads wait, so it may write `starts` and `costs`
   without a barrier of its own against the round before. */
struct planner {
    i64 room[33];
    int starts[PLANNERS];       /* of what the entries of this round make, among all that the round makes */
    i64 costs[PLANNERS];        /* of the strips before */
};

/* The last entry whose start is not above x. Entries that make nothing share theirs with the next. */
DEVICE int origin_of(const int *starts, int x) {
    int at = 0;
#pragma unroll
    for (int step = PLANNERS / 2; step; step /= 2) {
        if (starts[at + step] <= x) at += step;
    }
    return at;
}

/* ---- lengths ----------------------------------------------------------------------------------------------------- */

struct given {
    int q_len, kv_len, phase, prefix;
};

DEVICE given given_of(const attn_cu_batch &b, i64 i) {
    given g = { 1, pointer<int>(b.kv_len)[i], b.q_len ? PREFILL : DECODE, 0 };
    if (b.q_len) g.q_len = pointer<int>(b.q_len)[i];
    if (b.phase) g.phase = pointer<int>(b.phase)[i];
    if (b.layer.mask == PREFIX) g.prefix = pointer<int>(b.prefix)[i];
    return g;
}

/* What attn__check_request finds. rows, keys: the sums up to and with this request. */
DEVICE int broken_rule(const attn_cu_batch &b, given g, i64 rows, i64 keys) {
    if (g.q_len < 0) return ATTN_CU_RULE_Q_NEGATIVE;
    if (g.kv_len < 0) return ATTN_CU_RULE_KV_NEGATIVE;
    if (g.phase != PREFILL && g.phase != DECODE) return ATTN_CU_RULE_PHASE;
    if (g.prefix < 0 || g.prefix > g.kv_len) return ATTN_CU_RULE_PREFIX;
    if (b.layer.mask != FULL && g.q_len > g.kv_len) return ATTN_CU_RULE_KV_SHORT;
    if (g.q_len > b.plan.max_q_len) return ATTN_CU_RULE_Q_CAPACITY;
    if (g.kv_len > b.plan.max_kv_len) return ATTN_CU_RULE_KV_CAPACITY;
    if (rows > LARGEST_INT) return ATTN_CU_RULE_ROW_SUM;
    return keys > LARGEST_INT ? ATTN_CU_RULE_KEY_SUM : ATTN_CU_RULE_NONE;
}

enum { RULES = 32 };

/* The first request that breaks a rule, times RULES, plus the rule; -1: none. *rows: the sum of all q_len. */
DEVICE i64 first_fault(const attn_cu_batch &b, planner *p, i64 *rows) {
    const i64 none = (i64)b.plan.n * RULES;
    i64 keys = 0;
    i64 first = none;
    *rows = 0;
    for (int base = 0; base < b.plan.n; base += PLANNERS) {
        int i = base + (int)threadIdx.x;
        given g = { 0, 0, 0, 0 };
        i64 more_rows, more_keys;
        if (i < b.plan.n) g = given_of(b, i);
        i64 rows_before = *rows + block_scan((i64)g.q_len, p->room, &more_rows);
        i64 keys_before = keys + block_scan((i64)g.kv_len, p->room, &more_keys);
        int rule = i < b.plan.n ? broken_rule(b, g, rows_before + g.q_len, keys_before + g.kv_len) : 0;
        if (rule) first = min_(first, (i64)i * RULES + rule);
        *rows += more_rows;
        keys += more_keys;
    }
    first = block_min(first, p->room);
    if (first < none) return first;
    return *rows > b.plan.max_rows ? none + ATTN_CU_RULE_MAX_ROWS : -1;
}

/* With the numbers of the sentences of attn__check_request and attn__check_lengths. */
DEVICE attn_cu_fault fault_of(const attn_cu_batch &b, i64 first, i64 rows) {
    attn_cu_fault f = { (int)(first % RULES), (int)(first / RULES), -1, 0, 0, 0, 0, 0 };
    if (f.rule == ATTN_CU_RULE_MAX_ROWS) {
        f.request = -1;
        f.a = (int)rows;
        f.b = (int)b.plan.max_rows;
        return f;
    }
    given g = given_of(b, first / RULES);
    f.a = g.q_len;
    if (f.rule == ATTN_CU_RULE_PHASE) f.a = g.phase;
    if (f.rule == ATTN_CU_RULE_PREFIX) f.a = g.prefix;
    if (f.rule == ATTN_CU_RULE_KV_NEGATIVE || f.rule == ATTN_CU_RULE_KV_SHORT) f.a = g.kv_len;
    if (f.rule == ATTN_CU_RULE_KV_CAPACITY || f.rule == ATTN_CU_RULE_KEY_SUM) f.a = g.kv_len;
    if (f.rule == ATTN_CU_RULE_KV_SHORT) f.b = g.q_len;
    if (f.rule == ATTN_CU_RULE_Q_CAPACITY) f.b = b.plan.max_q_len;
    if (f.rule == ATTN_CU_RULE_KV_CAPACITY) f.b = b.plan.max_kv_len;
    return f;
}

/* q_start, kv_start, phase and prefix; both sums fit into an int, so one scan of their pair does. */
DEVICE void copy_lengths(const attn_cu_batch &b, const view &v, planner *p) {
    i64 before = 0;
    for (int base = 0; base < b.plan.n; base += PLANNERS) {
        int i = base + (int)threadIdx.x;
        given g = { 0, 0, 0, 0 };
        i64 more;
        if (i < b.plan.n) g = given_of(b, i);
        i64 pair = (i64)g.kv_len << 32 | g.q_len;
        i64 start = before + block_scan(pair, p->room, &more) + pair;
        before += more;
        if (i >= b.plan.n) continue;
        v.q_start[i + 1] = (int)start;
        v.kv_start[i + 1] = (int)(start >> 32);
        v.phase[i] = g.phase;
        v.prefix[i] = g.prefix;
    }
    if (threadIdx.x == 0) v.q_start[0] = v.kv_start[0] = 0;
    __syncthreads();
}

/* ---- strips ------------------------------------------------------------------------------------------------------ */

/* How the packed rows of a request are cut: into `pieces` of so many rows, these into row tiles, times groups of kv
   heads. TOPK: every token has keys of its own, so it is a piece. PREFILL: one head a group. */
struct cutting {
    int pieces, rows, tiles, heads, groups;
};

DEVICE cutting cutting_of(const attn_cu_layer &l, int q_len, int phase) {
    int group = group_of(l);
    cutting c = { 0, 0, 0, 0, 0 };
    if (q_len == 0) return c;
    c.pieces = l.mask == TOPK ? q_len : 1;
    c.rows = l.mask == TOPK ? group : q_len * group;
    c.tiles = ceil_div32(c.rows, l.row_tile);
    int heads = phase == PREFILL ? 1 : max_(1, l.row_tile / c.rows);
    c.groups = ceil_div32(l.kv_heads, heads);
    c.heads = ceil_div32(l.kv_heads, c.groups);
    c.groups = ceil_div32(l.kv_heads, c.heads);
    return c;
}

/* Strip `index` of a request: pieces, in them groups of heads, in them tiles; PREFILL: the last tile first, the longest
   one of causal rows. */
DEVICE strip strip_of(const attn_cu_layer &l, lengths n, int phase, int request, int index) {
    cutting c = cutting_of(l, n.q_len, phase);
    int tile = index % c.tiles;
    int head = index / c.tiles % c.groups * c.heads;
    int first = index / c.tiles / c.groups * c.rows;
    int row = (phase == PREFILL ? c.tiles - 1 - tile : tile) * l.row_tile;
    strip s = { request, head, min_(c.heads, l.kv_heads - head), first + row, min_(l.row_tile, c.rows - row), 0, 0, 0 };
    span u = strip_span(l, n, s, 0, s.rows);
    int size = unit_keys(l, phase);
    int end = u.hi > u.lo ? ceil_div32(u.hi, size) : 0;
    s.lead = ceil_div32(u.lead, size);
    s.unit = max_(s.lead, u.lo / size);
    s.units = s.lead + max_(0, end - s.unit);
    return s;
}

DEVICE void put_strip(const view &v, i64 i, const strip &s) {
    int *w = v.strips + i * STRIP_WORDS;
    w[0] = s.request;
    w[1] = s.head;
    w[2] = s.heads;
    w[3] = s.row;
    w[4] = s.rows;
    w[5] = s.lead;
    w[6] = s.unit;
    w[7] = s.units;
}

/* Cost of one unit: reading the keys weighs as much as four rows' arithmetic. */
DEVICE i64 unit_cost(const strip &s) { return (i64)s.heads * (4 + s.rows); }

/* The strips of all requests of a phase behind the first `count`; returns how many there are then. *cost: a thread's
   share of what its strips cost. */
DEVICE int add_strips(const attn_cu_batch &b, const view &v, planner *p, int phase, int count, i64 *cost) {
    for (int base = 0; base < b.plan.n; base += PLANNERS) {
        int i = base + (int)threadIdx.x;
        int made = 0;
        i64 more;
        if (i < b.plan.n && v.phase[i] == phase) {
            cutting c = cutting_of(b.layer, v.q_start[i + 1] - v.q_start[i], phase);
            made = c.pieces * c.tiles * c.groups;
        }
        p->starts[threadIdx.x] = (int)block_scan((i64)made, p->room, &more);
        __syncthreads();
        for (int index = (int)threadIdx.x; index < (int)more; index += PLANNERS) {
            int at = origin_of(p->starts, index);
            int request = base + at;
            strip s = strip_of(b.layer, lengths_of(v, request), phase, request, index - p->starts[at]);
            put_strip(v, (i64)count + index, s);
            *cost += unit_cost(s) * s.units;
        }
        count += (int)more;
    }
    return count;
}

/* ---- tasks ------------------------------------------------------------------------------------------------------- */

/* Groups of 2,048 keys: so many units of a list stand before group `index` of the strip. The sink keys' units make
   groups of their own, of which the last may go on with the window's first units. */
enum { GROUP_UNITS = GROUP_KEYS / UNIT };

DEVICE bool joins_lead(const strip &s) { return s.lead > 0 && ((s.unit ^ (s.lead - 1)) < GROUP_UNITS); }

DEVICE int group_count(const strip &s) {
    int lead = ceil_div32(s.lead, GROUP_UNITS);
    int last = s.unit + s.units - s.lead - 1;
    return lead + last / GROUP_UNITS - s.unit / GROUP_UNITS + 1 - joins_lead(s);
}

DEVICE int group_start(const strip &s, int index) {
    int lead = ceil_div32(s.lead, GROUP_UNITS);
    int behind = index - lead + joins_lead(s);
    if (index < lead) return index * GROUP_UNITS;
    return behind ? s.lead + (s.unit / GROUP_UNITS + behind) * GROUP_UNITS - s.unit : s.lead;
}

DEVICE bool new_group(const strip &s, int index) {
    return index > 0 && (unit_at(s, index) ^ unit_at(s, index - 1)) >= GROUP_UNITS;
}

/* The unit that starts at cost c belongs to worker c / quota. `before`: cost of the strips before. */
DEVICE i64 worker_of(const strip &s, i64 before, i64 quota, int unit) { return (before + unit_cost(s) * unit) / quota; }

/* Entries of a strip's list where a task may begin. PREFILL: all. DECODE: one per worker that a unit belongs to, and
   where units are dearer than a worker's quota that is each of them; with skipping, starts of groups. */
DEVICE int candidates_of(const attn_cu_batch &b, const strip &s, int phase, i64 before, i64 quota) {
    if (s.units == 0) return 1;
    if (phase == PREFILL) return s.units;
    if (b.layer.skip_mode) return group_count(s);
    if (unit_cost(s) >= quota) return s.units;
    return (int)(worker_of(s, before, quota, s.units - 1) - before / quota) + 1;
}

/* The task of a candidate, or one with strip -1: it belongs to the task before. */
DEVICE task task_of(const attn_cu_batch &b, const strip &s, int at, int phase, i64 before, i64 quota, int candidate) {
    i64 cost = unit_cost(s);
    task t = { at, candidate, min_(s.units, candidate + 1), -1, 0 };
    if (phase == PREFILL || s.units == 0) return t;
    if (b.layer.skip_mode) {
        t.begin = group_start(s, candidate);
    } else if (cost < quota && candidate > 0) {
        t.begin = (int)ceil_div((before / quota + candidate) * quota - before, cost);
    }
    i64 worker = worker_of(s, before, quota, t.begin);
    if (b.layer.skip_mode && candidate > 0) {
        if (worker_of(s, before, quota, group_start(s, candidate - 1)) == worker) t.strip = -1;
    }
    i64 end = min_((i64)s.units, ceil_div((worker + 1) * quota - before, cost));
    t.end = (int)end;
    while (b.layer.skip_mode && t.end < s.units && !new_group(s, t.end)) t.end++;
    return t;
}

DEVICE void put_task(const view &v, i64 i, const task &t) {
    int *w = v.tasks + i * TASK_WORDS;
    w[0] = t.strip;
    w[1] = t.begin;
    w[2] = t.end;
    w[3] = t.slot;
    w[4] = t.slots;
}

struct counts {
    int tasks, merges, slots;
};

/* The task of a thread, numbered behind those of the threads before it; t.strip < 0: it has none. */
DEVICE void add_task(const view &v, planner *p, task t, int units, counts *c) {
    enum { BITS = 16 };     /* of each of two sums in one scan */
    int *room = (int *)p->room;
    bool is_task = t.strip >= 0;
    bool is_part = is_task && t.end - t.begin < units;
    bool is_first = is_part && t.begin == 0;
    int both, slots;
    int before = block_scan(is_task + (is_first << BITS), room, &both);
    int slot = c->slots + block_scan(t.slots, room, &slots);
    int at = c->tasks + (before & ((1 << BITS) - 1));
    if (is_part) t.slot = slot;
    if (is_task) put_task(v, at, t);
    if (is_first) {
        int *w = v.merges + (i64)(c->merges + (before >> BITS)) * MERGE_WORDS;
        w[0] = t.strip;
        w[1] = at;
    }
    c->tasks += both & ((1 << BITS) - 1);
    c->merges += both >> BITS;
    c->slots += slots;
}

/* The tasks of the strips of a round, the first of which is `base`; candidates: how many these have. */
DEVICE void add_tasks_of_round(const attn_cu_batch &b, const view &v, planner *p, int base, int candidates, i64 quota,
                               counts *c) {
    for (int first = 0; first < candidates; first += PLANNERS) {
        int index = first + (int)threadIdx.x;
        task t = { -1, 0, 0, -1, 0 };
        int units = 0;
        if (index < candidates) {
            int at = origin_of(p->starts, index);
            strip s = strip_at(v, base + at);
            units = s.units;
            t = task_of(b, s, base + at, v.phase[s.request], p->costs[at], quota, index - p->starts[at]);
            if (t.strip >= 0 && t.end - t.begin < units) t.slots = fold_depth(s, t.begin, t.end);
        }
        add_task(v, p, t, units, c);
    }
}

/* Tasks of all strips, in their order. */
DEVICE counts add_tasks(const attn_cu_batch &b, const view &v, planner *p, int strips, i64 quota) {
    counts c = { 0, 0, 0 };
    i64 cost = 0;
    for (int base = 0; base < strips; base += PLANNERS) {
        int i = base + (int)threadIdx.x;
        int phase = PREFILL;
        int made = 0;
        i64 more, mine = 0;
        strip s = { 0, 0, 0, 0, 0, 0, 0, 0 };
        if (i < strips) {
            s = strip_at(v, i);
            phase = v.phase[s.request];
            mine = phase == DECODE ? unit_cost(s) * s.units : 0;
        }
        i64 before = cost + block_scan(mine, p->room, &more);
        cost += more;
        p->costs[threadIdx.x] = before;
        if (i < strips) made = candidates_of(b, s, phase, before, quota);
        p->starts[threadIdx.x] = (int)block_scan((i64)made, p->room, &more);
        __syncthreads();
        add_tasks_of_round(b, v, p, base, (int)more, quota, &c);
    }
    return c;
}

/* ---- the kernel -------------------------------------------------------------------------------------------------- */

/* With a fault: version, class, n and nothing else. One thread writes it. */
DEVICE void put_header(const attn_cu_batch &b, const view &v, int rows, int strips, counts c, attn_cu_fault f) {
    const attn_cu_plan &p = b.plan;
    bool fine = f.rule == ATTN_CU_RULE_NONE;
    const int header[HEADER_WORDS] = {
        p.version, p.n, rows, strips, c.tasks, c.merges, c.slots, fine ? b.layer.row_tile : 0,
        fine ? b.layer.key_tile : 0, fine ? b.layer.workers : 0, fine ? p.max_q_len : 0, fine ? p.max_kv_len : 0,
        fine ? p.families : 0, fine ? p.strips_at : 0, fine ? p.tasks_at : 0, fine ? p.merges_at : 0, p.class_id,
        0, 0, 0, 0, 0, 0, 0, f.rule, f.request, f.slot, f.a, f.b, f.c, f.d, f.e
    };
#pragma unroll
    for (int i = 0; i < HEADER_WORDS; i++) v.header[i] = header[i];
}

/* Launched with one block. */
extern "C" __global__ void __launch_bounds__(PLANNERS, 1) attn_cu_plan_make(const __grid_constant__ attn_cu_batch b) {
    __shared__ planner p;
    view v = view_of(b.plan);
    counts c = { 0, 0, 0 };
    attn_cu_fault fault = { 0, 0, 0, 0, 0, 0, 0, 0 };
    i64 rows;
    i64 cost = 0;
    i64 total;
    i64 first = first_fault(b, &p, &rows);
    if (first >= 0) {
        if (threadIdx.x == 0) put_header(b, v, 0, 0, c, fault_of(b, first, rows));
        return;
    }
    copy_lengths(b, v, &p);
    int strips = add_strips(b, v, &p, PREFILL, 0, &cost);
    cost = 0;
    strips = add_strips(b, v, &p, DECODE, strips, &cost);
    block_scan(cost, p.room, &total);
    c = add_tasks(b, v, &p, strips, max_(1ll, ceil_div(total, b.layer.workers)));
    if (threadIdx.x == 0) put_header(b, v, (int)rows, strips, c, fault);
}

#endif
