/* check.cu - what device arrays may get wrong, found before anything is written; >>check of attn.h. */
#ifndef ATTN_CHECK_CU
#define ATTN_CHECK_CU

#include "cache.cu"
#include "grid.cu"

enum { TRUSTED = 1 };               /* attn_flag of attn.h */
enum { READ, WRITE, SCORE };        /* attn_cu_call.use */

/* Where a fault is, as one number: the smallest one is the fault that attn.h would name, whatever the order of the
   blocks. A stage is one of attn.h's loops over the requests; inside it counts
     ROWS    2 * row of all rows (+ 1: ks of the row)          TABLE  the request
     LAMBDA  the request                                       KEYS   the key of all keys; of a list: row, slot */
enum { STAGE_ROWS, STAGE_LAMBDA, STAGE_TABLE, STAGE_KEYS };

DEVICE u64 fault_at(int stage, i64 index) { return (u64)stage << 62 | (u64)index; }

DEVICE bool is_bad_page(const attn_cu_call &p, int page) { return page < 0 || page >= p.pages; }

DEVICE int column_of(const attn_cu_call &p, int key) { return slot_of(p.layer, key) / p.layer.page_size; }

DEVICE int page_of(const attn_cu_call &p, int request, int key) {
    return pointer<int>(p.page_table)[request * p.table_row + column_of(p, key)];
}

/* Columns of the page table that kv_len keys use. */
DEVICE int table_columns(const attn_cu_layer &l, int kv_len) {
    int keys = l.ring ? min_(kv_len, l.ring) : kv_len;
    return keys / l.page_size + (keys % l.page_size > 0);
}

/* lambda is 0 or more and finite. */
DEVICE bool is_bad_lambda(int bits) {
    return (bits & 0x7f800000) == 0x7f800000 || (bits < 0 && bits != (int)0x80000000u);
}

DEVICE const u32 *tree_row(const attn_cu_call &p, i64 row) {
    return pointer<u32>(p.tree) + row * ceil_div(p.plan.max_q_len, 32);
}

/* Do the keys of a row fit into its row of scores? */
DEVICE bool is_bad_column(const attn_cu_call &p, lengths n, int row, i64 at) {
    int first = p.ks ? pointer<int>(p.ks)[at] : 0;
    return first < 0 || (i64)first + horizon(p.layer, n, row) > p.score_row;
}

/* A row and, together with its first row, its request. */
DEVICE u64 row_fault(const attn_cu_call &p, const view &v, int request, int row) {
    lengths n = lengths_of(v, request);
    i64 at = (i64)v.q_start[request] + row;
    bool bad = false;
    if (p.use == READ) bad = p.layer.mask == TREE && !tree_bit(tree_row(p, at), row);
    if (p.use == WRITE) bad = row == 0 && n.kv_len < n.q_len;
    if (p.use == SCORE) bad = row == 0 && v.phase[request] != DECODE;
    if (bad) return fault_at(STAGE_ROWS, 2 * at);
    return p.use == SCORE && is_bad_column(p, n, row, at) ? fault_at(STAGE_ROWS, 2 * at + 1) : NO_FAULT;
}

DEVICE u64 row_faults(const attn_cu_call &p, const view &v) {
    walk w = walk_open(v.q_start, p.plan.n, (int)blockDim.x);
    u64 least = NO_FAULT;
    int first, last;
    if (p.use == READ && p.layer.mask != TREE) return NO_FAULT;
    while (walk_next(&w, &first, &last)) {
        int row = first + (int)threadIdx.x;
        if (row < last) least = min_(least, row_fault(p, v, w.request, row));
    }
    return least;
}

DEVICE u64 request_faults(const attn_cu_call &p, const view &v) {
    u64 least = NO_FAULT;
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < p.plan.n; i += (i64)gridDim.x * blockDim.x) {
        lengths n = lengths_of(v, (int)i);
        bool narrow = p.layer.page_size && n.q_len && table_columns(p.layer, n.kv_len) > p.table_row;
        if (narrow) least = min_(least, fault_at(STAGE_TABLE, i));
        if (p.use == READ && p.lambda && v.q_start[p.plan.n] && is_bad_lambda(pointer<int>(p.lambda)[i])) {
            least = min_(least, fault_at(STAGE_LAMBDA, i));
        }
    }
    return least;
}

/* The pages of the keys first .. last - 1 of a request, a thread each. */
DEVICE u64 page_faults(const attn_cu_call &p, const view &v, int request, int first, int last) {
    int size = p.layer.page_size;
    u64 least = NO_FAULT;
    for (i64 page = first / size + (i64)threadIdx.x; page * size < last; page += blockDim.x) {
        int key = (int)max_((i64)first, page * size);
        if (is_bad_page(p, page_of(p, request, key))) {
            least = min_(least, fault_at(STAGE_KEYS, (i64)v.kv_start[request] + key));
        }
    }
    return least;
}

/* Append writes the new keys, the others read those that some row sees. */
DEVICE u64 key_faults(const attn_cu_call &p, const view &v) {
    walk w = walk_open(v.kv_start, p.plan.n, (int)blockDim.x * min_(p.layer.page_size, 4096));
    u64 least = NO_FAULT;
    int first, last;
    while (walk_next(&w, &first, &last)) {
        lengths n = lengths_of(v, w.request);
        span s = { 0, n.kv_len - n.q_len, n.kv_len };
        if (!n.q_len) continue;
        if (p.use != WRITE) s = union_span(p.layer, n, 0, n.q_len - 1);
        least = min_(least, page_faults(p, v, w.request, first, min_(last, s.lead)));
        least = min_(least, page_faults(p, v, w.request, max_(first, s.lo), min_(last, s.hi)));
    }
    return least;
}

/* ---- lists ------------------------------------------------------------------------------------------------------- */

/* One list, without its repetitions. */
struct listed {
    const int *keys;
    int request;
    lengths n;
    span seen;
};

DEVICE listed list_at(const attn_cu_call &p, const view &v, int request, i64 at) {
    listed l;
    l.keys = pointer<int>(p.topk) + at * p.layer.topk;
    l.request = request;
    l.n = lengths_of(v, request);
    l.seen = key_span(p.layer, l.n, (int)(at - v.q_start[request]));
    return l;
}

DEVICE bool is_bad_entry(const attn_cu_call &p, const listed &l, int key) {
    if (key < 0) return key < -1;
    if (!p.layer.page_size || key >= l.seen.hi || (key < l.seen.lo && key >= l.seen.lead)) return false;
    return is_bad_page(p, page_of(p, l.request, key));
}

/* Does the entry of a slot stand in an earlier one, too? */
DEVICE bool is_repeated(const listed &l, int slot) {
    int i = 0;
    if (l.keys[slot] < 0 || l.keys[slot] >= l.n.kv_len) return false;
    while (l.keys[i] != l.keys[slot]) i++;
    return i < slot;
}

/* Sets a bit per key, or takes them away again, and says whether one was set before. */
DEVICE bool mark_keys(const attn_cu_call &p, const listed &l, u32 *bits, bool set) {
    bool twice = false;
    for (int slot = (int)threadIdx.x; slot < p.layer.topk; slot += blockDim.x) {
        int key = l.keys[slot];
        u32 bit = 1u << (key & 31);
        if (key < 0 || key >= l.n.kv_len) continue;
        if (set) {
            twice |= (atomicOr(&bits[key / 32], bit) & bit) != 0;
        } else {
            atomicAnd(&bits[key / 32], ~bit);
        }
    }
    return twice;
}

/* Which of two equal entries comes first is looked up only in lists that have some. bits: all 0, before and after. */
DEVICE u64 list_fault(const attn_cu_call &p, const listed &l, i64 at, u32 *bits) {
    bool twice = __syncthreads_or(mark_keys(p, l, bits, true));
    u64 least = NO_FAULT;
    mark_keys(p, l, bits, false);
    for (int slot = (int)threadIdx.x; slot < p.layer.topk; slot += blockDim.x) {
        bool bad = is_bad_entry(p, l, l.keys[slot]) || (twice && is_repeated(l, slot));
        if (bad) least = min_(least, fault_at(STAGE_KEYS, at << 31 | slot));
    }
    return least;
}

DEVICE u64 list_faults(const attn_cu_call &p, const view &v) {
    u32 *bits = pointer<u32>(p.blocks + blockIdx.x * p.block_bytes);
    walk w = walk_open(v.q_start, p.plan.n, 1);
    u64 least = NO_FAULT;
    int first, last;
    for (int i = (int)threadIdx.x; i <= p.plan.max_kv_len / 32; i += blockDim.x) bits[i] = 0;
    while (walk_next(&w, &first, &last)) {
        i64 at = (i64)v.q_start[w.request] + first;
        __syncthreads();
        least = min_(least, list_fault(p, list_at(p, v, w.request, at), at, bits));
    }
    return least;
}

/* ---- the verdict ------------------------------------------------------------------------------------------------- */

DEVICE u64 call_faults(const attn_cu_call &p, const view &v) {
    bool listed = p.layer.mask == TOPK && p.use == READ;
    bool trusted = (p.layer.flags & TRUSTED) != 0;
    u64 least = min_(row_faults(p, v), request_faults(p, v));
    if (p.layer.page_size && !listed && !trusted) least = min_(least, key_faults(p, v));
    if (listed && !trusted) least = min_(least, list_faults(p, v));
    return least;
}

DEVICE attn_cu_fault describe_row(const attn_cu_call &p, const view &v, i64 index) {
    int at = (int)(index / 2);
    int request = request_at(v.q_start, p.plan.n, at);
    int row = at - v.q_start[request];
    lengths n = lengths_of(v, request);
    attn_cu_fault tree = { ATTN_CU_RULE_TREE, request, row, at, row };
    attn_cu_fault shorter = { ATTN_CU_RULE_KV_SHORT, request, -1, n.kv_len, n.q_len };
    attn_cu_fault phase = { ATTN_CU_RULE_SCORE_PHASE, request, -1, v.phase[request] };
    if (p.use == READ) return tree;
    if (p.use == WRITE) return shorter;
    if (index % 2 == 0) return phase;
    attn_cu_fault column = { ATTN_CU_RULE_SCORE_COLUMN, request, row, at, p.ks ? pointer<int>(p.ks)[at] : 0, 0,
                             (int)(u32)p.score_row, (int)(p.score_row >> 32) };
    return column;
}

DEVICE attn_cu_fault describe_page(const attn_cu_call &p, int request, int key) {
    int column = column_of(p, key);
    attn_cu_fault f = { ATTN_CU_RULE_PAGE, request, column, page_of(p, request, key), p.pages, column };
    return f;
}

DEVICE attn_cu_fault describe_entry(const attn_cu_call &p, const view &v, i64 index) {
    int at = (int)(index >> 31);
    int slot = (int)(index & 0x7fffffff);
    listed l = list_at(p, v, request_at(v.q_start, p.plan.n, at), at);
    int key = l.keys[slot];
    int rule = key < 0 ? ATTN_CU_RULE_LIST_NEGATIVE : ATTN_CU_RULE_LIST_TWICE;
    attn_cu_fault f = { rule, l.request, slot, at, slot, key };
    return key < 0 || is_repeated(l, slot) ? f : describe_page(p, l.request, key);
}

/* The numbers of a fault, found once more from where it is. */
DEVICE attn_cu_fault describe(const attn_cu_call &p, const view &v, u64 fault) {
    int stage = (int)(fault >> 62);
    i64 index = (i64)(fault & ~0ull >> 2);
    int i = (int)index;
    if (stage == STAGE_ROWS) return describe_row(p, v, index);
    if (stage == STAGE_KEYS && p.layer.mask == TOPK && p.use == READ) return describe_entry(p, v, index);
    if (stage == STAGE_KEYS) {
        int request = request_at(v.kv_start, p.plan.n, index);
        return describe_page(p, request, i - v.kv_start[request]);
    }
    lengths n = lengths_of(v, i);
    attn_cu_fault lambda = { ATTN_CU_RULE_LAMBDA, i, -1, stage == STAGE_LAMBDA ? pointer<int>(p.lambda)[i] : 0 };
    if (stage == STAGE_LAMBDA) return lambda;
    attn_cu_fault table = { ATTN_CU_RULE_TABLE_ROW, i, -1, (int)p.table_row, table_columns(p.layer, n.kv_len),
                            n.kv_len };
    return table;
}

/* Is this a plan of the layer whose lengths were bad? Then its own header says what is wrong. */
DEVICE bool is_faulted_plan(const attn_cu_plan &p) {
    const int *h = pointer<int>(p.words);
    return h[HEADER_VERSION] == p.version && h[HEADER_CLASS] == p.class_id && h[HEADER_N] == p.n &&
           h[ATTN_CU_FAULT_AT];
}

extern "C" __global__ void __launch_bounds__(256) attn_cu_check(const __grid_constant__ attn_cu_call p) {
    __shared__ u64 room[32];
    attn_cu_verdict *verdict = pointer<attn_cu_verdict>(p.exec);
    attn_cu_fault foreign = { ATTN_CU_RULE_PLAN, -1, -1 };
    view v = view_of(p.plan);
    bool fits = plan_fits(p.layer, p.plan);
    u64 least = block_min(fits ? call_faults(p, v) : NO_FAULT, room);
    if (threadIdx.x || !agree(verdict, &least)) return;
    if (least != NO_FAULT) verdict->fault = describe(p, v, least);
    if (!fits && !is_faulted_plan(p.plan)) verdict->fault = foreign;
}

#endif
