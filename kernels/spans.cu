/* spans.cu - which keys a row sees, and how a plan is read; >>spans and >>plan of attn.h say the same in C. */
#ifndef ATTN_SPANS_CU
#define ATTN_SPANS_CU

#include "base.cu"

/* Keys [0, lead) and [lo, hi). All three grow with the row. */
struct span {
    int lead, lo, hi;
};

/* One request. */
struct lengths {
    int q_len, kv_len, prefix;
};

/* Keys below the horizon are what the mask alone lets a row see. */
DEVICE int horizon(const attn_cu_layer &l, lengths n, int row) {
    i64 past = (i64)n.kv_len - n.q_len;
    i64 own = max_(0ll, past + row + 1);
    if (l.mask == FULL || l.mask == TREE) return n.kv_len;
    if (l.mask == PREFIX) return (int)max_((i64)n.prefix, own);
    if (l.mask == BLOCK) own = min_((i64)n.kv_len, past + row - row % l.chunk + l.chunk);
    return (int)own;
}

DEVICE span key_span(const attn_cu_layer &l, lengths n, int row) {
    i64 position = (i64)n.kv_len - n.q_len + (l.mask == TREE ? 0 : row);
    bool right = l.mask != CAUSAL && l.mask != TREE && l.window_right;
    int end = horizon(l, n, row);
    span s = { 0, 0, end };
    if (right) s.hi = (int)max_(0ll, min_((i64)end, position + l.window_right));
    if (l.window_left) s.lo = (int)max_(0ll, position - l.window_left + 1);
    if (l.mask == CAUSAL && l.chunk) s.lo = (int)max_((i64)s.lo, position - position % l.chunk);
    if (l.window_left || right) s.lead = min_(l.sink_keys, end);
    return s;
}

/* TOPK: ranks in the list of the keys that a row does see. */
DEVICE span row_span(const attn_cu_layer &l, lengths n, int row) {
    span s = key_span(l, n, row);
    if (l.mask != TOPK) return s;
    span ranks = { 0, 0, min_(l.topk, min_(s.lead, s.lo) + s.hi - s.lo) };
    return ranks;
}

/* TREE: what the bits of one row say. A row's depth in the tree is its position behind the cached keys. */
DEVICE bool tree_bit(const u32 *bits, int row) { return bits[row / 32] >> (row % 32) & 1u; }

DEVICE int tree_depth(const u32 *bits, int q_len) {
    int depth = -1;
    for (int row = 0; row < q_len; row += 32) {
        u32 left = bits[row / 32];
        if (q_len - row < 32) left &= (1u << (q_len - row)) - 1u;
        depth += __popc(left);
    }
    return depth;
}

/* The windows for a distance of position - key. */
DEVICE bool in_window(const attn_cu_layer &l, i64 distance) {
    if (l.window_left && distance >= l.window_left) return false;
    return l.mask == CAUSAL || !l.window_right || -distance < l.window_right;
}

/* Keys that any of the rows first .. last sees. */
DEVICE span union_span(const attn_cu_layer &l, lengths n, int first, int last) {
    span a = row_span(l, n, first);
    span b = row_span(l, n, last);
    span s = { b.lead, a.lo, max_(b.hi, a.lo) };
    if (s.lead < s.lo) return s;
    span joined = { 0, 0, max_(s.hi, s.lead) };
    return joined;
}

/* The keys of [first, last) from the first one to the last one seen, as a range; empty if none is. */
DEVICE void clip(span s, int first, int last, int *begin, int *end) {
    int b = first;
    int e = min_(last, s.hi > s.lo ? s.hi : s.lead);
    if (b >= s.lead && b < s.lo) b = s.lo;
    if (e > s.lead && e <= s.lo) e = s.lead;
    *begin = b;
    *end = max_(b, e);
}

DEVICE int group_of(const attn_cu_layer &l) { return l.heads / l.kv_heads; }

DEVICE int unit_keys(const attn_cu_layer &l, int phase) {
    if (phase == DECODE) return UNIT;
    return l.split_keys ? l.split_keys : LARGEST_INT;
}

/* ---- the words of a plan ----------------------------------------------------------------------------------------- */

enum { HEADER_WORDS = 32, STRIP_WORDS = 8, TASK_WORDS = 5, MERGE_WORDS = 2 };
enum {
    HEADER_VERSION, HEADER_N, HEADER_ROWS, HEADER_STRIPS, HEADER_TASKS, HEADER_MERGES, HEADER_SLOTS, HEADER_ROW_TILE,
    HEADER_KEY_TILE, HEADER_WORKERS, HEADER_MAX_Q_LEN, HEADER_MAX_KV_LEN, HEADER_FAMILIES, HEADER_STRIPS_AT,
    HEADER_TASKS_AT, HEADER_MERGES_AT, HEADER_CLASS
};

struct strip {
    int request, head, heads, row, rows, lead, unit, units;
};

struct task {
    int strip, begin, end, slot, slots;
};

/* Where the arrays are. */
struct view {
    int *header, *q_start, *kv_start, *phase, *prefix, *strips, *tasks, *merges;
};

DEVICE view view_of(const attn_cu_plan &p) {
    view v;
    v.header = pointer<int>(p.words);
    v.q_start = v.header + HEADER_WORDS;
    v.kv_start = v.q_start + p.n + 1;
    v.phase = v.kv_start + p.n + 1;
    v.prefix = v.phase + p.n;
    v.strips = v.header + p.strips_at;
    v.tasks = v.header + p.tasks_at;
    v.merges = v.header + p.merges_at;
    return v;
}

/* Was the plan made, without a fault, for this layer and these capacities? If not, only the header may be read. */
DEVICE bool plan_fits(const attn_cu_layer &l, const attn_cu_plan &p) {
    const int *h = pointer<int>(p.words);
    return h[HEADER_VERSION] == p.version && h[HEADER_CLASS] == p.class_id && h[HEADER_N] == p.n &&
           h[ATTN_CU_FAULT_AT] == 0 && h[HEADER_ROW_TILE] == l.row_tile && h[HEADER_KEY_TILE] == l.key_tile &&
           h[HEADER_WORKERS] == l.workers && h[HEADER_MAX_Q_LEN] == p.max_q_len &&
           h[HEADER_MAX_KV_LEN] == p.max_kv_len && h[HEADER_FAMILIES] == p.families &&
           h[HEADER_STRIPS_AT] == p.strips_at && h[HEADER_TASKS_AT] == p.tasks_at &&
           h[HEADER_MERGES_AT] == p.merges_at;
}

DEVICE lengths lengths_of(const view &v, int request) {
    const int *q = v.q_start + request;
    const int *kv = v.kv_start + request;
    lengths n = { q[1] - q[0], kv[1] - kv[0], v.prefix[request] };
    return n;
}

DEVICE strip strip_at(const view &v, i64 i) {
    const int *w = v.strips + i * STRIP_WORDS;
    strip s = { w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7] };
    return s;
}

DEVICE task task_at(const view &v, i64 i) {
    const int *w = v.tasks + i * TASK_WORDS;
    task t = { w[0], w[1], w[2], w[3], w[4] };
    return t;
}

/* Keys that any of `rows` packed rows of a strip sees, from row `row` on; n: of the strip's request. */
DEVICE span strip_span(const attn_cu_layer &l, lengths n, const strip &s, int row, int rows) {
    int group = group_of(l);
    return union_span(l, n, (s.row + row) / group, (s.row + row + rows - 1) / group);
}

/* Unit number of entry i of a strip's list. */
DEVICE int unit_at(const strip &s, int i) { return i < s.lead ? i : s.unit - s.lead + i; }

/* Height of the tree node above two units. */
DEVICE int level(int a, int b) { return bit_length((u32)a ^ (u32)b); }

/* ---- the merge tree ---------------------------------------------------------------------------------------------- */

/* A stack of states: units are pushed left to right, and two neighbours merge as soon as no further unit can belong to
   their node. before: the unit left of the run, -1 if the run starts the strip. The caller has the states. */
struct fold {
    int before, depth;
    int unit[72];
};

/* Must the two topmost states merge before `next` (-1: nothing follows) is pushed? If so, pops one. */
DEVICE bool fold_step(fold *f, int next) {
    if (f->depth < 2) return false;
    int left = f->unit[f->depth - 2];
    int right = f->unit[f->depth - 1];
    int node = level(left, right);
    if (next >= 0 && level(right, next) <= node) return false;
    if (f->before >= 0 && level(f->before, left) <= node) return false;
    f->depth--;
    return true;
}

/* Depth of that stack after entries begin .. end - 1 of a strip that has others, too: the nodes of the tree that hold
   some of these entries, none of the others, and are as large as that allows. */
DEVICE int fold_depth(const strip &s, int begin, int end) {
    int before = begin > 0 ? unit_at(s, begin - 1) : -1;
    int next = end < s.units ? unit_at(s, end) : -1;
    int depth = 0;
    for (int i = begin; i < end; depth++) {
        int unit = unit_at(s, i);
        int left = before >= 0 ? level(before, unit) : 32;
        int right = next >= 0 ? level(unit, next) : 32;
        int last = unit | ((1 << (min_(left, right) - 1)) - 1);
        i = last < s.lead ? last + 1 : max_(s.lead, s.lead + last + 1 - s.unit);
    }
    return depth;
}

#endif
