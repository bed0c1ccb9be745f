/* plain.cu - attention on CUDA cores, all arithmetic in f32: any head dim, type, mask and layout. >>tiles, >>prefill,
   >>decode and >>run of attn.h say the same in C.

   A block of four warps computes one task at a time: up to 16 packed rows of a kv head (a strip may hold several kv
   heads, one is done after another) over key tiles of 64 keys. Warp w owns the rows w, w + 4, w + 8, w + 12: their
   logits (a lane has two keys), their softmax, their sums of values (a lane has four columns of V out of 128). K, V and
   q pass through shared memory in pieces that all threads fetch together and widen to f32 once.
   What a row gets is one chain of FMAs over d, a fixed tree over the keys of a tile, and one chain of FMAs over the
   keys that it sees, in order: nothing depends on how many rows are at hand, on where tiles are read from, or on what
   other rows see. */
#ifndef ATTN_PLAIN_CU
#define ATTN_PLAIN_CU

#include "tile.cu"

/* How much too small, relatively, a sum of weights may have come out: every tile of a unit adds a few roundings. */
DEVICE float drift(const attn_cu_call &p, lengths n, int phase) {
    int keys = min_(n.kv_len, unit_keys(p.layer, phase));
    return 4e-6f + 2.5e-7f * (float)(keys / TILE);
}

#include "skip.cu"

/* Logits to weights; the rows' m, l and what was skipped follow, alpha is what o is multiplied by. keys: of the tile,
   up to last - 1. Returns whether the values count. */
DEVICE bool tile_weights(const attn_cu_call &p, const job &j, shared_memory &m, skip_memory &s, const skipper &k,
                         account (&ref)[OWN], i64 tile, int keys, i64 last, sums &t, float (&alpha)[OWN]) {
    bool early = ATTN_SKIP && j.phase == PREFILL;
    float top[OWN], sum[OWN];
    find_tops(j, m, top);
    float gap = early ? early_gap(j, s, ref, t.m, top) : -1.0f;
    bool light = early && k.gap > 0.0f && gap > k.gap; /* not even the weights: the largest logit bounds them */
    bool skip = light;
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        float old = t.m[i];
        t.m[i] = fmaxf(old, top[i]);
        alpha[i] = exp_(__fsub_rn(old, t.m[i]));
        sum[i] = 0.0f;
        if (light && top[i] != LOWEST) sum[i] = __fmul_rn((float)keys, exp_(__fsub_rn(top[i], t.m[i])));
        if (!light && own_row(i) < j.s.rows) sum[i] = weigh(m, own_row(i), t.m[i]);
    }
    if (early && k.eps > 0.0f) skip = prefill_affords(p, j, s, ref, tile, last, top, sum, alpha, t) && gap >= 0.0f;
    if (early) count_tile(p, k, gap, skip, light);
    if (ATTN_SKIP && !early) skip = decode_skips(p, j, s, k, ref, tile, last, top, sum, t);
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        t.l[i] = __fadd_rn(__fmul_rn(t.l[i], alpha[i]), skip ? 0.0f : sum[i]);
        if (ATTN_SKIP) t.skipped[i] = __fadd_rn(__fmul_rn(t.skipped[i], alpha[i]), skip ? sum[i] : 0.0f);
    }
    return !skip;
}

/* ---- states ------------------------------------------------------------------------------------------------------ */

/* A row's state, as in attn.h: v_dim sums of weighted values, the sum of weights, that of skipped weights, m. */
DEVICE void store_sums(const attn_cu_call &p, const job &j, const sums &t, int column, float *state) {
    int dim = p.layer.v_dim;
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        float *to = state + (i64)own_row(i) * p.state_stride;
        if (own_row(i) >= j.s.rows) continue;
#pragma unroll
        for (int c = 0; c < V_PIECES; c++) {
            int at = column + c * V_COLUMNS + 4 * lane();
            if (at < dim) to[at] = t.o[i][c].x;
            if (at + 1 < dim) to[at + 1] = t.o[i][c].y;
            if (at + 2 < dim) to[at + 2] = t.o[i][c].z;
            if (at + 3 < dim) to[at + 3] = t.o[i][c].w;
        }
        if (lane() == 0) {
            to[dim] = t.l[i];
            to[dim + 1] = t.skipped[i];
            to[dim + 2] = t.m[i];
        }
    }
}

DEVICE void clear_sums(sums &t) {
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        t.m[i] = LOWEST;
        t.l[i] = t.skipped[i] = 0.0f;
#pragma unroll
        for (int c = 0; c < V_PIECES; c++) t.o[i][c] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
}

DEVICE void scale_sums(const attn_cu_call &p, const job &j, sums &t, const float (&alpha)[OWN], int column) {
#pragma unroll
    for (int i = 0; i < OWN; i++) {
#pragma unroll
        for (int c = 0; c < V_PIECES; c++) {
            if (i < j.rounds && column + c * V_COLUMNS < p.layer.v_dim) scale4(t.o[i][c], alpha[i]);
        }
    }
}

/* One unit of one kv head from a fresh state. A row that a tile does not concern goes through it unchanged: alpha is 1,
   the sum 0. starts: the unit is the first of the task or of a group. */
DEVICE void run_unit(const attn_cu_call &p, const job &j, shared_memory &m, skip_memory &s, skipper &k, int h,
                     int unit, bool starts, float *state) {
    i64 keys = unit_keys(p.layer, j.phase);
    i64 end = min_((unit + 1) * keys, (i64)max_(j.seen.lead, j.seen.hi));
    account ref[OWN];
    open_head(p, j, m, h);
    if (ATTN_SKIP) open_refs(p, j, m, s, k, h, unit, starts);
#pragma unroll 1
    for (int column = 0; column < p.layer.v_dim; column += PASS_COLUMNS) {
        sums t;
        clear_sums(t);
        k.counting = p.counters && column == 0;
        if (ATTN_SKIP) load_refs(j, s, h, ref); /* each pass decides alike */
#pragma unroll 1
        for (i64 tile = next_tile(j.seen, unit * keys); tile < end; tile = next_tile(j.seen, tile + TILE)) {
            float alpha[OWN];
            int first, last;
            clip(j.seen, (int)tile, (int)min_(tile + TILE, end), &first, &last);
            if (first == last) continue;
            open_tile(p, j, m, j.s.head + h, tile);
            tile_logits(p, j, m, j.s.head + h, tile);
            bool counts = tile_weights(p, j, m, s, k, ref, tile, last - first, last, t, alpha);
            scale_sums(p, j, t, alpha, column);
            if (counts) add_values(p, j, m, column, t);
        }
        store_sums(p, j, t, column, state);
    }
    if (ATTN_SKIP) store_refs(j, s, h, ref);
}

/* The rows of a strip, all kv heads, one per warp and round. */
DEVICE int state_rows(const strip &s) { return s.heads * s.rows; }

DEVICE void clear_state(const attn_cu_call &p, const strip &s, float *state) {
    int dim = p.layer.v_dim;
    for (int i = warp_index(); i < state_rows(s); i += WARPS) {
        float *row = state + (i64)i * p.state_stride;
        for (int x = lane(); x < dim + 2; x += 32) row[x] = 0.0f;
        if (lane() == 0) row[dim + 2] = LOWEST;
    }
}

DEVICE void copy_state(const attn_cu_call &p, const strip &s, float *to, const float *from) {
    for (int i = warp_index(); i < state_rows(s); i += WARPS) {
        i64 row = (i64)i * p.state_stride;
        for (int x = lane(); x < p.layer.v_dim + 3; x += 32) to[row + x] = from[row + x];
    }
}

/* a = a merged with b, row by row; a row that saw no key changes nothing. */
DEVICE void merge_states(const attn_cu_call &p, const strip &s, float *a, const float *b) {
    int dim = p.layer.v_dim;
    for (int i = warp_index(); i < state_rows(s); i += WARPS) {
        float *to = a + (i64)i * p.state_stride;
        const float *from = b + (i64)i * p.state_stride;
        float m_a = to[dim + 2];
        float m_b = from[dim + 2];
        bool none_a = to[dim] == 0.0f && to[dim + 1] == 0.0f;
        bool none_b = from[dim] == 0.0f && from[dim + 1] == 0.0f;
        float top = none_a ? m_b : fmaxf(m_a, m_b);
        float wa = none_a ? 0.0f : exp_(__fsub_rn(m_a, top));
        float wb = exp_(__fsub_rn(m_b, top));
        __syncwarp();
        if (none_b) continue;
        for (int x = lane(); x < dim + 2; x += 32) {
            to[x] = none_a ? from[x] : __fadd_rn(__fmul_rn(to[x], wa), __fmul_rn(from[x], wb));
        }
        if (lane() == 0) to[dim + 2] = top;
    }
}

/* What a row comes to: what its sums are multiplied by, its lse, and an upper bound of the share of the softmax that
   was skipped, relative to the exact sum. */
struct result {
    float factor, lse, certificate;
};

DEVICE result finish_row(const float *tail, bool has_sink, float sink, float drift) {
    float m = tail[2];
    result r = { 0.0f, has_sink ? sink : MINUS_INFINITY, 0.0f };
    if (tail[0] == 0.0f) return r;
    float top = has_sink && sink > m ? sink : m;
    float weight = exp_(__fsub_rn(m, top));
    float sum = __fmul_rn(tail[0], weight);
    if (has_sink) sum = __fadd_rn(sum, exp_(__fsub_rn(sink, top)));
    bool finite = (__float_as_uint(sum) & 0x7f800000u) != 0x7f800000u;
    r.factor = __fdiv_rn(weight, sum);
    r.lse = finite ? __fadd_rn(top, log_(sum)) : sum;
    if (ATTN_SKIP && tail[1] != 0.0f) {
        float lost = __fmul_rn(tail[1], weight);
        r.certificate = fminf(1.0f, __fdiv_rn((1.0f + drift) * lost, __fadd_rn(sum, lost)));
    }
    return r;
}

/* Writes the finished rows of a strip. */
DEVICE void emit(const attn_cu_call &p, const view &v, const strip &s, const float *state) {
    int dim = p.layer.v_dim;
    int group = group_of(p.layer);
    float widened = drift(p, lengths_of(v, s.request), v.phase[s.request]);
    for (int i = warp_index(); i < state_rows(s); i += WARPS) {
        const float *from = state + (i64)i * p.state_stride;
        int kv_head = s.head + i / s.rows;
        int packed = s.row + i % s.rows;
        i64 row = v.q_start[s.request] + packed / group;
        i64 head = (i64)kv_head * group + packed % group;
        result r = finish_row(from + dim, p.sinks != 0, p.sinks ? pointer<float>(p.sinks)[head] : 0.0f, widened);
        void *o = pointer<void>(p.o + (row * p.o_row + head * p.o_head) * type_bytes(ATTN_O_TYPE));
        /* without a key o is 0, whatever the scale */
        if (r.factor != 0.0f) r.factor = __fmul_rn(r.factor, head_scale(p.layer, p.v_scale, s.request, kv_head));
        for (int x = lane(); x < dim; x += 32) {
            store<ATTN_O_TYPE>(o, x, __fadd_rn(__fmul_rn(from[x], r.factor), 0.0f));
        }
        if (lane() == 0 && p.lse) pointer<float>(p.lse)[row * p.layer.heads + head] = r.lse;
        if (lane() == 0 && p.certificate) pointer<float>(p.certificate)[row * p.layer.heads + head] = r.certificate;
    }
}

/* ---- kernels ----------------------------------------------------------------------------------------------------- */

/* A run of units of one strip: merged as far as the tree allows, then written out or left in slots. */
DEVICE void compute(const attn_cu_call &p, job &j, shared_memory &m, skip_memory &skips, const task &t) {
    float *states = pointer<float>(p.blocks + blockIdx.x * p.block_bytes);
    fold f;
    skipper k;
    open_job(p, j, m, t);
    f.before = t.begin > 0 ? unit_at(j.s, t.begin - 1) : -1;
    f.depth = 0;
    if (ATTN_SKIP) open_skip(p, j, m, skips, k);
    if (!j.s.units) clear_state(p, j.s, states);
    for (int i = t.begin; i < t.end; i++) {
        int unit = unit_at(j.s, i);
        int next = i + 1 < j.s.units ? unit_at(j.s, i + 1) : -1;
        float *state = states + f.depth * p.slot_floats;
        bool starts = i == t.begin || (unit ^ unit_at(j.s, i - 1)) >= GROUP_KEYS / UNIT;
        for (int h = 0; h < j.s.heads; h++) {
            float *head_state = state + (i64)h * j.s.rows * p.state_stride;
            run_unit(p, j, m, skips, k, h, unit, starts, head_state);
        }
        __syncthreads();
        f.unit[f.depth++] = unit;
        while (fold_step(&f, next)) {
            merge_states(p, j.s, states + (f.depth - 1) * p.slot_floats, states + f.depth * p.slot_floats);
            __syncthreads();
        }
    }
    __syncthreads();
    if (t.slot < 0) emit(p, view_of(p.plan), j.s, states);
    for (int i = 0; t.slot >= 0 && i < t.slots; i++) {
        float *slot = pointer<float>(p.slots) + (t.slot + i) * p.slot_floats;
        copy_state(p, j.s, slot, states + i * p.slot_floats);
    }
    __syncthreads();
}

/* Entry behind the tree node that starts at entry i of a strip's list, in a run between the units before and next. */
DEVICE int node_end(const strip &s, int before, int next, int i) {
    int unit = unit_at(s, i);
    int left = before >= 0 ? level(before, unit) : 32;
    int right = next >= 0 ? level(unit, next) : 32;
    int last = unit | ((1 << (min_(left, right) - 1)) - 1);
    return last < s.lead ? last + 1 : max_(s.lead, s.lead + last + 1 - s.unit);
}

/* Finishes a strip from the slots of its tasks, in place: each holds a node of the tree. */
DEVICE void merge_strip(const attn_cu_call &p, const view &v, const strip &s, int first_task) {
    float *slots = pointer<float>(p.slots);
    int at[72];
    fold f;
    f.before = -1;
    f.depth = 0;
    for (int i = 0, number = first_task; i < s.units; number++) {
        task t = task_at(v, number);
        int before = t.begin > 0 ? unit_at(s, t.begin - 1) : -1;
        int next = t.end < s.units ? unit_at(s, t.end) : -1;
        for (int slot = t.slot; i < t.end; slot++) {
            int unit = unit_at(s, i);
            while (fold_step(&f, unit)) {
                merge_states(p, s, slots + at[f.depth - 1] * p.slot_floats, slots + at[f.depth] * p.slot_floats);
                __syncthreads();
            }
            at[f.depth] = slot;
            f.unit[f.depth++] = unit;
            i = node_end(s, before, next, i);
        }
    }
    while (fold_step(&f, -1)) {
        merge_states(p, s, slots + at[f.depth - 1] * p.slot_floats, slots + at[f.depth] * p.slot_floats);
        __syncthreads();
    }
    emit(p, v, s, slots + at[0] * p.slot_floats);
    __syncthreads();
}

enum { BLOCKS = ATTN_SKIP ? 2 : 3 };                /* on a multiprocessor; more would cost spilled registers */

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
attn_cu_forward(const __grid_constant__ attn_cu_call p) {
    __shared__ __align__(16) shared_memory memory;
    __shared__ skip_memory skips;
    __shared__ job j;
    view v = view_of(p.plan);
    if (!call_fits(p)) return;
    int tasks = v.header[HEADER_TASKS];
    for (int i = (int)blockIdx.x; i < tasks; i += (int)gridDim.x) compute(p, j, memory, skips, task_at(v, i));
}

/* Finishes strips from the slots of their tasks, in place: as the tasks were folded, so are their slots. */
extern "C" __global__ void __launch_bounds__(THREADS, 8) attn_cu_merge_runs(const __grid_constant__ attn_cu_call p) {
    view v = view_of(p.plan);
    if (!call_fits(p)) return;
    int merges = v.header[HEADER_MERGES];
    for (int i = (int)blockIdx.x; i < merges; i += (int)gridDim.x) {
        const int *merge = v.merges + (i64)i * MERGE_WORDS;
        merge_strip(p, v, strip_at(v, merge[0]), merge[1]);
    }
}

#endif
