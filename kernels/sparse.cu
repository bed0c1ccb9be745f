/* sparse.cu - indexer scores and the keys they choose; >>sparse of attn.h. */
#ifndef ATTN_SPARSE_CU
#define ATTN_SPARSE_CU

#include "cache.cu"
#include "grid.cu"

/* ---- scores ------------------------------------------------------------------------------------------------------ */

/* A block works on a tile of keys, for every row of their request and some heads at a time; a thread has one key and
   half of these heads. */
enum { SCORE_KEYS = 64, SCORE_HEADS = 16, SCORE_DIMS = 128, SCORE_THREADS = 128, HALF_HEADS = SCORE_HEADS / 2 };

struct score_room {
    float q[SCORE_DIMS][SCORE_HEADS + 4];       /* rows of 16 bytes; the rest spreads them over the banks */
    float k[SCORE_DIMS][SCORE_KEYS + 1];
    float half[SCORE_KEYS];
    float scale[SCORE_KEYS];                    /* of a key */
    i64 address[SCORE_KEYS];                    /* 0: no row sees it, so it may not even exist */
};

struct score_tile {
    int request, first, last;
    lengths n;
};

DEVICE bool sees(span s, int key) { return key < s.lead || (key >= s.lo && key < s.hi); }

DEVICE void find_keys(const attn_cu_call &p, const view &v, const score_tile &t, score_room *room) {
    span seen = union_span(p.layer, t.n, 0, t.n.q_len - 1);
    int key = t.first + (int)threadIdx.x;
    if (threadIdx.x >= SCORE_KEYS) return;
    room->address[threadIdx.x] = 0;
    room->scale[threadIdx.x] = 1.0f;
    if (key >= t.last || !sees(seen, key)) return;
    place at = place_of(p, v, p.k.ragged, t.request, key);
    room->address[threadIdx.x] = value_address(p.k, at, 0);
    if (p.k.scale) room->scale[threadIdx.x] = *scale_address(p.k, at, 0);
}

/* Dims first .. first + dims - 1 of the tile's keys; a warp reads a key. */
DEVICE void stage_keys(const attn_cu_call &p, int first, int dims, score_room *room) {
    for (int i = (int)threadIdx.x / 32; i < SCORE_KEYS; i += SCORE_THREADS / 32) {
        const void *key = pointer<void>(room->address[i]);
        float scale = room->scale[i];
        for (int d = lane(); d < dims; d += 32) {
            room->k[d][i] = key ? __fmul_rn(load_as(p.layer.kv_type, key, first + d), scale) : 0.0f;
        }
    }
}

/* The same dims of some heads of a row of all rows; a warp reads a head. */
DEVICE void stage_heads(const attn_cu_call &p, i64 row, int head, int first, int dims, float factor, score_room *room) {
    const void *q = pointer<void>(p.q);
    bool fast = (p.layer.flags & FAST_INT8) != 0;
    for (int i = (int)threadIdx.x / 32; i < SCORE_HEADS; i += SCORE_THREADS / 32) {
        i64 at = row * p.q_row + (head + i) * p.q_head;
        bool is_head = head + i < p.layer.heads;
        float step = fast && is_head ? int8_step(p.layer.q_type, q, at, p.layer.head_dim) : 1.0f;
        for (int d = lane(); d < dims; d += 32) {
            float x = is_head ? load_as(p.layer.q_type, q, at + first + d) : 0.0f;
            room->q[d][i] = __fmul_rn(fast ? to_steps(x, step) : x, __fmul_rn(step, factor));
        }
    }
}

/* Adds q.k of the dims at hand to the scores of a thread. */
DEVICE void add_products(const score_room *room, int dims, float *score) {
    int key = (int)threadIdx.x % SCORE_KEYS;
    int half = (int)threadIdx.x / SCORE_KEYS * HALF_HEADS;
    for (int d = 0; d < dims; d++) {
        float k = room->k[d][key];
        const float4 *q = (const float4 *)&room->q[d][half];
#pragma unroll
        for (int i = 0; i < HALF_HEADS / 4; i++) {
            float4 four = q[i];
            score[4 * i] = __fmaf_rn(four.x, k, score[4 * i]);
            score[4 * i + 1] = __fmaf_rn(four.y, k, score[4 * i + 1]);
            score[4 * i + 2] = __fmaf_rn(four.z, k, score[4 * i + 2]);
            score[4 * i + 3] = __fmaf_rn(four.w, k, score[4 * i + 3]);
        }
    }
}

/* The sum over a thread's share of the heads. staged: the tile's keys are in shared memory, for they have few dims. */
DEVICE float sum_heads(const attn_cu_call &p, const score_tile &t, i64 row, bool staged, score_room *room) {
    const float *weights = pointer<float>(p.weights) + row * p.layer.heads;
    float factor = __fmul_rn(float_of(p.layer.scale), head_scale(p.layer, p.k_scale, t.request, 0));
    int half = (int)threadIdx.x / SCORE_KEYS * HALF_HEADS;
    float sum = 0.0f;
    for (int head = 0; head < p.layer.heads; head += SCORE_HEADS) {
        float score[HALF_HEADS] = { 0.0f };
        for (int first = 0; first < p.layer.head_dim; first += SCORE_DIMS) {
            int dims = min_((int)SCORE_DIMS, p.layer.head_dim - first);
            __syncthreads();
            stage_heads(p, row, head, first, dims, factor, room);
            if (!staged) stage_keys(p, first, dims, room);
            __syncthreads();
            add_products(room, dims, score);
        }
#pragma unroll
        for (int i = 0; i < HALF_HEADS; i++) {
            float x = score[i] < 0.0f ? 0.0f : score[i]; /* a NaN stays one */
            if (head + half + i < p.layer.heads) sum = __fmaf_rn(weights[head + half + i], x, sum);
        }
    }
    return sum;
}

/* One row: scores of the keys that it sees, -inf for the others below its horizon. */
DEVICE void score_row(const attn_cu_call &p, const view &v, const score_tile &t, int row, bool staged,
                      score_room *room) {
    span seen = row_span(p.layer, t.n, row);
    i64 at = (i64)v.q_start[t.request] + row;
    float *out = pointer<float>(p.scores) + at * p.score_row + (p.ks ? pointer<int>(p.ks)[at] : 0);
    int end = min_(t.last, horizon(p.layer, t.n, row));
    int key = t.first + (int)threadIdx.x % SCORE_KEYS;
    int begin, behind;
    float sum = 0.0f;
    clip(seen, t.first, t.last, &begin, &behind);
    if (begin < behind) sum = sum_heads(p, t, at, staged, room);
    if (threadIdx.x >= SCORE_KEYS) room->half[threadIdx.x - SCORE_KEYS] = sum;
    __syncthreads();
    if (threadIdx.x >= SCORE_KEYS || key >= end) return;
    out[key] = sees(seen, key) ? __fadd_rn(sum, room->half[threadIdx.x]) : MINUS_INFINITY;
}

extern "C" __global__ void __launch_bounds__(SCORE_THREADS)
    attn_cu_index_score(const __grid_constant__ attn_cu_call p) {
    __shared__ __align__(16) score_room room;
    view v = view_of(p.plan);
    bool staged = p.layer.head_dim <= SCORE_DIMS;
    score_tile t;
    if (!call_fits(p)) return;
    walk w = walk_open(v.kv_start, p.plan.n, SCORE_KEYS);
    while (walk_next(&w, &t.first, &t.last)) {
        t.request = w.request;
        t.n = lengths_of(v, w.request);
        if (!t.n.q_len) continue;
        find_keys(p, v, t, &room);
        __syncthreads();
        if (staged) stage_keys(p, 0, p.layer.head_dim, &room);
        for (int row = 0; row < t.n.q_len; row++) {
            __syncthreads(); /* what the row before left in `half` has been read */
            score_row(p, v, t, row, staged, &room);
        }
    }
}

/* ---- top-k: a block per row, the bound found eleven bits at a time ----------------------------------------------- */

enum { TOPK_THREADS = 1024, TOPK_WARPS = TOPK_THREADS / 32, BINS = 2048 };

struct topk_room {
    int count[BINS];
    int sums[33];
    int bin, left;
    int above[TOPK_WARPS], equal[TOPK_WARPS];   /* of a warp's columns */
};

/* Scores of one row, and which of them to take: all ranks above the bound, and `ties` of those equal to it. */
struct topk_row {
    const float *x;
    int n;
    u32 bound;
    int ties;
};

DEVICE int topk_first(const attn_cu_select &p, i64 row) { return p.ks ? pointer<int>(p.ks)[row] : 0; }

DEVICE bool is_bad_row(const attn_cu_select &p, i64 row) {
    int first = topk_first(p, row);
    int end = pointer<int>(p.ke)[row];
    return first < 0 || end < first || end > p.score_row;
}

/* Orders floats as integers; 0 for what is never taken. */
DEVICE u32 rank_of(float x) {
    u32 u = __float_as_uint(x);
    if (is_nan(x) || u == 0xff800000u) return 0;
    if (u == 0x80000000u) u = 0;
    return u >> 31 ? ~u : u | 0x80000000u;
}

/* Counts the ranks that agree with the bound above the bits at hand. */
DEVICE void count_bins(const topk_row &r, int shift, int bits, topk_room *room) {
    u32 known = shift + bits < 32 ? ~0u << (shift + bits) : 0;
    for (int i = (int)threadIdx.x; i < BINS; i += TOPK_THREADS) room->count[i] = 0;
    __syncthreads();
#pragma unroll 4
    for (int i = (int)threadIdx.x; i < r.n; i += TOPK_THREADS) {
        u32 rank = rank_of(r.x[i]);
        if ((rank & known) == r.bound) atomicAdd(&room->count[rank >> shift & ((1u << bits) - 1)], 1);
    }
    __syncthreads();
}

/* The bin, from the top, in which the wanted number is reached, to room->bin, and how many of that bin are wanted, to
   room->left. All of them hold more than that. A thread looks at a few neighbouring bins. */
DEVICE void find_bin(int left, topk_room *room) {
    enum { EACH = BINS / TOPK_THREADS };
    int top = BINS - 1 - (int)threadIdx.x * EACH;
    int sum = 0;
    int all;
    for (int i = 0; i < EACH; i++) sum += room->count[top - i];
    int before = block_scan(sum, room->sums, &all);
    if (before < left && left <= before + sum) {
        while (before + room->count[top] < left) before += room->count[top--];
        room->bin = top;
        room->left = left - before;
    }
    __syncthreads();
}

/* The rank of the topk-th largest score; 1 and all of them if no more than topk can be taken. */
DEVICE void find_bound(topk_row *r, int topk, topk_room *room) {
    const int shifts[3] = { 21, 10, 0 };
    r->bound = 0;
    r->ties = topk;
#pragma unroll
    for (int i = 0; i < 3 && r->n > topk; i++) {
        int bits = i < 2 ? 11 : 10;
        count_bins(*r, shifts[i], bits, room);
        find_bin(r->ties, room);
        r->bound |= (u32)room->bin << shifts[i];
        r->ties = room->left;
    }
    if (r->bound == 0) r->bound = 1; /* rank 0 is never taken */
}

/* A warp has a run of columns, so that ascending order needs only the sums of the warps before it. */
struct topk_run {
    int first, last;
};

DEVICE topk_run run_of_warp(int n) {
    int columns = (int)ceil_div(n, TOPK_THREADS) * 32;
    int warp = (int)threadIdx.x / 32;
    topk_run run = { (int)min_((i64)n, (i64)warp * columns), (int)min_((i64)n, ((i64)warp + 1) * columns) };
    return run;
}

DEVICE void count_runs(const topk_row &r, topk_run run, topk_room *room) {
    int above = 0;
    int equal = 0;
#pragma unroll 4
    for (int i = run.first + lane(); i < run.last; i += 32) {
        u32 rank = rank_of(r.x[i]);
        above += rank > r.bound;
        equal += rank == r.bound;
    }
    above = warp_scan(above);
    equal = warp_scan(equal);
    if (lane() == 31) {
        room->above[threadIdx.x / 32] = above;
        room->equal[threadIdx.x / 32] = equal;
    }
    __syncthreads();
}

/* Writes the indices of the warp's run. Those taken before a column: all above the bound, and of the equal ones as many
   as there are ties. */
DEVICE void write_run(const topk_row &r, topk_run run, const topk_room *room, int *indices) {
    u32 before = (1u << lane()) - 1u;
    int above = 0;
    int equal = 0;
    for (int i = 0; i < (int)threadIdx.x / 32; i++) {
        above += room->above[i];
        equal += room->equal[i];
    }
    for (int base = run.first; base < run.last; base += 32) {
        int i = base + lane();
        u32 rank = i < run.last ? rank_of(r.x[i]) : 0;
        u32 larger = __ballot_sync(WARP_ALL, rank > r.bound);
        u32 same = __ballot_sync(WARP_ALL, rank == r.bound);
        int tie = equal + __popc(same & before);
        int at = above + __popc(larger & before) + min_(tie, r.ties);
        if (rank > r.bound || (rank == r.bound && tie < r.ties)) indices[at] = i;
        above += __popc(larger);
        equal += __popc(same);
    }
}

DEVICE void select_row(const attn_cu_select &p, i64 row, topk_room *room) {
    int first = topk_first(p, row);
    int n = is_bad_row(p, row) ? 0 : pointer<int>(p.ke)[row] - first;
    int *indices = pointer<int>(p.indices) + row * p.topk;
    topk_row r = { pointer<float>(p.scores) + row * p.score_row + first, n, 0, 0 };
    topk_run run = run_of_warp(n);
    int above = 0;
    int equal = 0;
    find_bound(&r, p.topk, room);
    count_runs(r, run, room);
    write_run(r, run, room, indices);
    for (int i = 0; i < TOPK_WARPS; i++) {
        above += room->above[i];
        equal += room->equal[i];
    }
    int count = above + min_(equal, r.ties);
    for (int i = count + (int)threadIdx.x; i < p.topk; i += TOPK_THREADS) indices[i] = -1;
}

extern "C" __global__ void __launch_bounds__(TOPK_THREADS) attn_cu_topk(const __grid_constant__ attn_cu_select p) {
    __shared__ topk_room room;
    if (p.verdict && pointer<attn_cu_verdict>(p.verdict)->fault.rule) return;
    for (i64 row = blockIdx.x; row < p.rows; row += gridDim.x) {
        __syncthreads(); /* what the row before counted has been read */
        select_row(p, row, &room);
    }
}

/* The first row whose columns do not fit, as attn_cu_check does it for the other calls. */
extern "C" __global__ void __launch_bounds__(256) attn_cu_topk_check(const __grid_constant__ attn_cu_select p) {
    __shared__ u64 room[32];
    attn_cu_verdict *verdict = pointer<attn_cu_verdict>(p.verdict);
    u64 least = NO_FAULT;
    for (i64 row = (i64)blockIdx.x * blockDim.x + threadIdx.x; row < p.rows; row += (i64)gridDim.x * blockDim.x) {
        if (is_bad_row(p, row)) least = min_(least, (u64)row);
    }
    least = block_min(least, room);
    if (threadIdx.x || !agree(verdict, &least) || least == NO_FAULT) return;
    i64 row = (i64)least;
    attn_cu_fault fault = { ATTN_CU_RULE_SELECT, -1, -1, (int)row, pointer<int>(p.ke)[row], topk_first(p, row),
                            (int)(u32)p.score_row, (int)(p.score_row >> 32) };
    verdict->fault = fault;
}

#endif
