/* tile.cu - one key tile of plain.cu: its pieces of q, K and V in shared memory, logits, masks, weights, values. */
#ifndef ATTN_TILE_CU
#define ATTN_TILE_CU

#include "cache.cu"

enum { THREADS = 128, WARPS = 4, STRIP_ROWS = 16, OWN = STRIP_ROWS / WARPS, TILE = 64 };    /* OWN: rows of a warp */
enum { K_DIMS = 64, K_PITCH = K_DIMS + 4 };         /* a piece of K: all keys of a tile; the pitch spreads the banks */
enum { V_KEYS = 32, V_COLUMNS = 128 };              /* a piece of V: half of the keys */
enum { V_PIECES = 2, PASS_COLUMNS = V_PIECES * V_COLUMNS }; /* more columns take another pass over the unit */
/* attn_skip_mode of attn.h */
enum { SKIP_OFF, SKIP_FACTOR, SKIP_LAMBDA, SKIP_EPS };
#define LOWEST (-3.402823466e+38f)

struct shared_memory {
    float piece[TILE * K_PITCH];                    /* of K, then of V */
    float q[STRIP_ROWS * K_DIMS];
    float weights[STRIP_ROWS * TILE];               /* first the logits */
    u32 mask[STRIP_ROWS][2];                        /* which keys of the tile a row sees, 32 to a word */
    i64 q_rows[STRIP_ROWS], k_rows[TILE], v_rows[TILE];     /* addresses; 0: nobody's, reads as zeros */
    float q_factor[STRIP_ROWS], k_factor[TILE], v_factor[TILE];
    float q_step[STRIP_ROWS];                       /* FAST_INT8: of a row's int8 */
    int key_position[TILE];
    int token[STRIP_ROWS], position[STRIP_ROWS];    /* of a row: in its request, and what windows and ALiBi compare */
    span spans[STRIP_ROWS];
    i64 scan[33];
};

/* What a task works on; in shared memory, since it is the same in all threads. */
struct job {
    strip s;
    lengths n;
    i64 first_row;                                  /* of the request, among all rows */
    span seen;                                      /* by any row */
    int phase, group, past;
    int rounds;                                     /* rows that a warp works on: 1, 2 or 4; some may not exist */
    u32 *bits;                                      /* TOPK: one per key, */
    int *picked;                                    /* and the keys by rank */
    bool wide_q, wide_k, wide_v;                    /* rows start where four elements can be read at once */
    bool fast_int8;
};

DEVICE int warp_index() { return (int)threadIdx.x / 32; }

/* Row i of this warp. */
DEVICE int own_row(int i) { return warp_index() + WARPS * i; }

/* ---- rows, keys, masks ------------------------------------------------------------------------------------------- */

DEVICE const u32 *tree_row(const attn_cu_call &p, const job &j, int row) {
    i64 words = (p.plan.max_q_len + 31ll) / 32;
    return pointer<u32>(p.tree) + (j.first_row + row) * words;
}

DEVICE int row_position(const attn_cu_call &p, const job &j, int row) {
    return j.past + (p.layer.mask == TREE ? tree_depth(tree_row(p, j, row), j.n.q_len) : row);
}

/* TOPK: the listed keys that the strip's token sees, ascending, whatever the order of the list; returns their number.
   They pass through a bit per key, so that the order costs no comparison. */
DEVICE int pick(const attn_cu_call &p, const job &j, shared_memory &m) {
    u32 *bits = j.bits;
    int row = j.s.row / j.group;
    const int *list = pointer<int>(p.topk) + (j.first_row + row) * p.layer.topk;
    span a = key_span(p.layer, j.n, row);
    int words = ceil_div32(a.hi, 32);
    int share = ceil_div32(words, THREADS);
    int first = min_((int)threadIdx.x * share, words);
    int last = min_(first + share, words);
    i64 count = 0;
    i64 total;
    for (int i = (int)threadIdx.x; i < words; i += THREADS) bits[i] = 0;
    __syncthreads();
    for (int i = (int)threadIdx.x; i < p.layer.topk; i += THREADS) {
        int key = list[i];
        if (key < 0 || key >= a.hi || (key < a.lo && key >= a.lead)) continue;
        atomicOr(&bits[key / 32], 1u << key % 32);
    }
    __syncthreads();
    for (int i = first; i < last; i++) count += __popc(bits[i]);
    i64 at = block_scan(count, m.scan, &total);
    for (int i = first; i < last; i++) {
        for (u32 left = bits[i]; left; left &= left - 1) j.picked[at++] = 32 * i + __ffs((int)left) - 1;
    }
    __syncthreads();
    return (int)total;
}

/* May four elements be read at once? */
DEVICE bool is_wide(i64 starts, int dim, int bytes) { return starts % (4 * bytes) == 0 && dim % 4 == 0; }

/* The strip of a task, and what all of its tiles need. */
DEVICE void read_job(const attn_cu_call &p, job &j, const task &t) {
    view v = view_of(p.plan);
    i64 scratch = p.blocks + blockIdx.x * p.block_bytes + p.depth * p.slot_floats * 4;
    int q_bytes = type_bytes(ATTN_Q_TYPE);
    int kv_bytes = type_bytes(ATTN_KV_TYPE);
    j.s = strip_at(v, t.strip);
    j.n = lengths_of(v, j.s.request);
    j.first_row = v.q_start[j.s.request];
    j.phase = v.phase[j.s.request];
    j.group = group_of(p.layer);
    j.past = j.n.kv_len - j.n.q_len;
    j.rounds = j.s.rows <= WARPS ? 1 : j.s.rows <= 2 * WARPS ? 2 : OWN;
    j.seen = strip_span(p.layer, j.n, j.s, 0, j.s.rows);
    j.bits = pointer<u32>(scratch);
    j.picked = pointer<int>(scratch + (p.plan.max_kv_len + 63ll) / 64 * 8);
    j.wide_q = is_wide(p.q | p.q_row * q_bytes | p.q_head * q_bytes, p.layer.head_dim, q_bytes);
    j.wide_k = is_wide(p.k.base | p.k.page | p.k.row | p.k.head, p.layer.head_dim, kv_bytes);
    j.wide_v = is_wide(p.v.base | p.v.page | p.v.row | p.v.head, p.layer.v_dim, kv_bytes);
    j.fast_int8 = ATTN_KV_TYPE == INT8 && (p.layer.flags & FAST_INT8);
}

DEVICE void open_job(const attn_cu_call &p, job &j, shared_memory &m, const task &t) {
    int row = (int)threadIdx.x;
    if (row == 0) read_job(p, j, t);
    __syncthreads();
    if (p.layer.mask == TOPK) {
        span ranks = { 0, 0, pick(p, j, m) };
        if (row == 0) j.seen = ranks;
        __syncthreads();
    }
    if (row < j.s.rows) {
        m.token[row] = (j.s.row + row) / j.group;
        m.position[row] = row_position(p, j, m.token[row]);
        m.spans[row] = p.layer.mask == TOPK ? j.seen : row_span(p.layer, j.n, m.token[row]);
    }
    /* rows that the strip lacks see everything and weigh nothing */
    for (int i = j.s.rows * TILE + row; i < WARPS * j.rounds * TILE; i += THREADS) m.weights[i] = 0.0f;
    if (row >= j.s.rows && row < STRIP_ROWS) m.mask[row][0] = m.mask[row][1] = ~0u;
    __syncthreads();
}

/* FAST_INT8: the steps of the warp's rows. */
DEVICE void find_steps(const attn_cu_call &p, const job &j, shared_memory &m) {
#pragma unroll 1
    for (int row = warp_index(); row < j.s.rows; row += WARPS) {
        float step = int8_step(ATTN_Q_TYPE, pointer<void>(m.q_rows[row]), 0, p.layer.head_dim);
        if (lane() == 0) m.q_step[row] = step;
    }
}

/* kv head h of the strip: where its rows of q stand. */
DEVICE void open_head(const attn_cu_call &p, const job &j, shared_memory &m, int h) {
    int row = (int)threadIdx.x;
    int head = j.s.head + h;
    __syncthreads();
    if (row < STRIP_ROWS) {
        i64 q_head = (i64)head * j.group + (j.s.row + row) % j.group;
        i64 at = row < j.s.rows ? (j.first_row + m.token[row]) * p.q_row + q_head * p.q_head : 0;
        m.q_rows[row] = row < j.s.rows ? p.q + at * type_bytes(ATTN_Q_TYPE) : 0;
        m.q_factor[row] = __fmul_rn(float_of(p.layer.scale), head_scale(p.layer, p.k_scale, j.s.request, head));
    }
    if (ATTN_KV_TYPE != INT8 || !j.fast_int8) return;
    __syncthreads();
    find_steps(p, j, m);
}

DEVICE void address_key(const attn_cu_call &p, const job &j, const attn_cu_cache &c, int head, int key, i64 *address,
                        float *factor) {
    place at = place_of(p, view_of(p.plan), c.ragged, j.s.request, key);
    *address = value_address(c, at, head);
    if (ATTN_KV_TYPE == INT8 && c.scale) *factor = *scale_address(c, at, head);
}

/* Addresses of the keys (TOPK: ranks) of a tile. What no row can see gets none, since its page may not exist. */
DEVICE void open_tile(const attn_cu_call &p, const job &j, shared_memory &m, int head, i64 tile) {
    int slot = (int)threadIdx.x % TILE;
    bool is_v = threadIdx.x >= TILE;
    i64 at = tile + slot;
    bool seen = at < j.seen.lead || (at >= j.seen.lo && at < j.seen.hi);
    int key = !seen ? 0 : p.layer.mask == TOPK ? j.picked[at] : (int)at;
    i64 address = 0;
    float factor = 1.0f;
    __syncthreads();
    if (seen && is_v) address_key(p, j, p.v, head, key, &address, &factor);
    if (seen && !is_v) address_key(p, j, p.k, head, key, &address, &factor);
    if (is_v) {
        m.v_rows[slot] = address;
        m.v_factor[slot] = factor;
        return;
    }
    m.k_rows[slot] = address;
    m.k_factor[slot] = factor;
    if (p.layer.mask == TREE && seen && key >= j.past) key = row_position(p, j, key - j.past);
    m.key_position[slot] = key;
}

/* Does a row see key `slot` of a tile? */
DEVICE bool sees(const attn_cu_call &p, const job &j, const shared_memory &m, int row, i64 tile, int slot) {
    span a = m.spans[row];
    i64 at = tile + slot;
    bool inside = at < a.lead || (at >= a.lo && at < a.hi);
    if (p.layer.mask != TREE || !inside) return inside;
    if (at >= j.past && !tree_bit(tree_row(p, j, m.token[row]), (int)at - j.past)) return false;
    return at < p.layer.sink_keys || in_window(p.layer, (i64)m.position[row] - m.key_position[slot]);
}

/* First tile at or after `tile` that holds a seen key. */
DEVICE i64 next_tile(span seen, i64 tile) {
    return tile >= seen.lead && tile < seen.lo ? max_(tile, seen.lo / TILE * (i64)TILE) : tile;
}

/* ---- pieces of q, K and V in shared memory ----------------------------------------------------------------------- */

DEVICE void scale4(float4 &o, float w) {
    o.x = __fmul_rn(o.x, w);
    o.y = __fmul_rn(o.y, w);
    o.z = __fmul_rn(o.z, w);
    o.w = __fmul_rn(o.w, w);
}

/* Four elements at an address that is a multiple of their size. */
template <int TYPE> DEVICE float4 load_wide(i64 address) {
    float4 y;
    if (TYPE == F32) return *pointer<float4>(address);
    if (type_bytes(TYPE) == 2) {
        ushort4 h = *pointer<ushort4>(address);
        y.x = load<TYPE>(&h.x, 0);
        y.y = load<TYPE>(&h.y, 0);
        y.z = load<TYPE>(&h.z, 0);
        y.w = load<TYPE>(&h.w, 0);
        return y;
    }
    if (TYPE == INT8) {
        u32 w = *pointer<u32>(address);
        return make_float4((float)((int)(w << 24) >> 24), (float)((int)(w << 16) >> 24), (float)((int)(w << 8) >> 24),
                           (float)((int)w >> 24));
    }
    uchar4 b = *pointer<uchar4>(address);
    y.x = load<TYPE>(&b.x, 0);
    y.y = load<TYPE>(&b.y, 0);
    y.z = load<TYPE>(&b.z, 0);
    y.w = load<TYPE>(&b.w, 0);
    return y;
}

/* Elements x .. x + 3 of a row of `dim`; zeros past its end. */
template <int TYPE> DEVICE float4 load_narrow(i64 row, int x, int dim) {
    const void *from = pointer<void>(row);
    float4 y = make_float4(load<TYPE>(from, x), 0.0f, 0.0f, 0.0f);
    if (x + 1 < dim) y.y = load<TYPE>(from, x + 1);
    if (x + 2 < dim) y.z = load<TYPE>(from, x + 2);
    if (x + 3 < dim) y.w = load<TYPE>(from, x + 3);
    return y;
}

/* All threads: `count` rows, up to QUADS * 4 elements of each from element `first` on, times the row's factor. What
   lies past the end of a row is left as it is, but for the last four. wide: quads are whole and aligned. */
template <int TYPE, int QUADS, bool SCALED>
DEVICE void fetch(float *to, int pitch, const i64 *rows, const float *factors, int count, int first, int dim,
                  bool wide) {
    int quads = min_(QUADS, (dim - first + 3) / 4);
    int shift = bit_length((u32)quads - 1u);        /* threads to a row: a power of two, to save the division */
    int quad = (int)threadIdx.x & ((1 << shift) - 1);
    int step = THREADS >> shift;
    if (quad >= quads) return;
    to += 4 * quad;
    first += 4 * quad;
    if (wide) {
#pragma unroll 4
        for (int row = (int)threadIdx.x >> shift; row < count; row += step) {
            float4 y = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (rows[row]) y = load_wide<TYPE>(rows[row] + (i64)first * type_bytes(TYPE));
            if (SCALED) scale4(y, factors[row]);
            *(float4 *)(to + row * pitch) = y;
        }
        return;
    }
#pragma unroll 1
    for (int row = (int)threadIdx.x >> shift; row < count; row += step) {
        float4 y = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (rows[row]) y = load_narrow<TYPE>(rows[row], first, dim);
        if (SCALED) scale4(y, factors[row]);
        *(float4 *)(to + row * pitch) = y;
    }
}

/* FAST_INT8: q as fetch brings it, in whole steps. */
DEVICE void fetch_steps(shared_memory &m, int count, int first, int dim) {
#pragma unroll 1
    for (int i = (int)threadIdx.x; i < count * K_DIMS; i += THREADS) {
        int row = i / K_DIMS;
        int d = first + i % K_DIMS;
        float x = 0.0f;
        if (m.q_rows[row] && d < dim) x = to_steps(load<ATTN_Q_TYPE>(pointer<void>(m.q_rows[row]), d), m.q_step[row]);
        m.q[i] = m.q_rows[row] ? __fmul_rn(x, __fmul_rn(m.q_step[row], m.q_factor[row])) : 0.0f;
    }
}

/* ---- one tile ---------------------------------------------------------------------------------------------------- */

DEVICE float dot4(float4 a, float4 b, float sum) {
    sum = __fmaf_rn(a.x, b.x, sum);
    sum = __fmaf_rn(a.y, b.y, sum);
    sum = __fmaf_rn(a.z, b.z, sum);
    return __fmaf_rn(a.w, b.w, sum);
}

/* One piece of q.k: x[i][0] and x[i][1] of the warp's row i and the keys lane, lane + 32. */
template <int ROUNDS> DEVICE void dot_piece(const shared_memory &m, int quads, float (&x)[OWN][2]) {
    const float4 *k = (const float4 *)(m.piece + lane() * K_PITCH);
    const float4 *q = (const float4 *)(m.q + warp_index() * K_DIMS);
#pragma unroll 2
    for (int d = 0; d < quads; d++) {
        float4 a = k[d];
        float4 b = k[32 * K_PITCH / 4 + d];
#pragma unroll
        for (int i = 0; i < ROUNDS; i++) {
            float4 y = q[i * WARPS * K_DIMS / 4 + d];
            x[i][0] = dot4(a, y, x[i][0]);
            x[i][1] = dot4(b, y, x[i][1]);
        }
    }
}

/* q.k of all rows and keys of a tile, left where the weights will be. */
DEVICE void tile_dots(const attn_cu_call &p, const job &j, shared_memory &m) {
    float x[OWN][2] = { { 0.0f, 0.0f }, { 0.0f, 0.0f }, { 0.0f, 0.0f }, { 0.0f, 0.0f } };
    int dim = p.layer.head_dim;
#pragma unroll 1
    for (int first = 0; first < dim; first += K_DIMS) {
        int quads = (min_((int)K_DIMS, dim - first) + 3) / 4;
        __syncthreads();
        fetch<ATTN_KV_TYPE, K_DIMS / 4, ATTN_KV_TYPE == INT8>(m.piece, K_PITCH, m.k_rows, m.k_factor, TILE, first, dim,
                                                              j.wide_k);
        if (ATTN_KV_TYPE == INT8 && j.fast_int8) {
            fetch_steps(m, WARPS * j.rounds, first, dim);
        } else {
            fetch<ATTN_Q_TYPE, K_DIMS / 4, true>(m.q, K_DIMS, m.q_rows, m.q_factor, WARPS * j.rounds, first, dim,
                                                 j.wide_q);
        }
        __syncthreads();
        if (j.rounds == 1) {
            dot_piece<1>(m, quads, x);
        } else if (j.rounds == 2) {
            dot_piece<2>(m, quads, x);
        } else {
            dot_piece<OWN>(m, quads, x);
        }
    }
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        if (own_row(i) >= j.s.rows) continue;
        m.weights[own_row(i) * TILE + lane()] = x[i][0];
        m.weights[own_row(i) * TILE + lane() + 32] = x[i][1];
    }
}

/* Dots to logits, and which keys each row sees. */
DEVICE void tile_logits(const attn_cu_call &p, const job &j, shared_memory &m, int head, i64 tile) {
    float cap = float_of(p.layer.softcap);
    float inverse = __frcp_rn(cap);
    tile_dots(p, j, m);
#pragma unroll 1
    for (int row = warp_index(); row < j.s.rows; row += WARPS) {
        float slope = 0.0f;
        if (p.alibi) slope = pointer<float>(p.alibi)[(i64)head * j.group + (j.s.row + row) % j.group];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int slot = lane() + 32 * i;
            float *x = &m.weights[row * TILE + slot];
            u32 bits = __ballot_sync(WARP_ALL, sees(p, j, m, row, tile, slot));
            if (lane() == 0) m.mask[row][i] = bits;
            if (cap > 0.0f) *x = __fmul_rn(cap, tanh_(__fmul_rn(*x, inverse)));
            if (p.alibi) *x = __fadd_rn(*x, __fmul_rn(slope, (float)(m.key_position[slot] - m.position[row])));
        }
    }
    __syncwarp();
}

/* Does a row see key lane + 32 * i of the tile? */
DEVICE bool is_visible(const shared_memory &m, int row, int i) {
    return m.mask[row][i] >> lane() & 1u;
}

/* The largest logit that each of the warp's rows sees. */
DEVICE void find_tops(const job &j, const shared_memory &m, float (&top)[OWN]) {
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        int row = own_row(i);
        top[i] = LOWEST;
        if (row >= j.s.rows) continue;
        if (is_visible(m, row, 0)) top[i] = fmaxf(top[i], m.weights[row * TILE + lane()]);
        if (is_visible(m, row, 1)) top[i] = fmaxf(top[i], m.weights[row * TILE + lane() + 32]);
        top[i] = warp_max(top[i]);
    }
}

/* Logits to weights exp(x - most), 0 for what the row does not see; returns their sum. */
DEVICE float weigh(shared_memory &m, int row, float most) {
    float *x = &m.weights[row * TILE + lane()];
    float a = is_visible(m, row, 0) ? exp_(__fsub_rn(x[0], most)) : 0.0f;
    float b = is_visible(m, row, 1) ? exp_(__fsub_rn(x[32], most)) : 0.0f;
    x[0] = a;
    x[32] = b;
    return warp_sum(__fadd_rn(a, b));
}

/* Sums of the warp's rows: o[i][c] is the lane's four columns of piece c. */
struct sums {
    float m[OWN], l[OWN], skipped[OWN];
    float4 o[OWN][V_PIECES];
};

DEVICE void add4(float4 &o, float w, float4 v) {
    o.x = __fmaf_rn(w, v.x, o.x);
    o.y = __fmaf_rn(w, v.y, o.y);
    o.z = __fmaf_rn(w, v.z, o.z);
    o.w = __fmaf_rn(w, v.w, o.w);
}

/* o += weights * V for the 32 keys at hand. Keys that a row does not see are left out, not added with weight 0: their V
   may hold a NaN. */
template <int ROUNDS> DEVICE void add_piece(const shared_memory &m, int half, float4 (&o)[OWN][V_PIECES], int c) {
    const float4 *v = (const float4 *)m.piece + lane();
    const float *w = m.weights + warp_index() * TILE + V_KEYS * half;
    u32 mask[ROUNDS];
    u32 all = ~0u;
#pragma unroll
    for (int i = 0; i < ROUNDS; i++) {
        mask[i] = m.mask[own_row(i)][half];
        all &= mask[i];
    }
    if (all == ~0u) {
#pragma unroll 1
        for (int key = 0; key < V_KEYS; key += 4) {
            float4 y[4];
#pragma unroll
            for (int e = 0; e < 4; e++) y[e] = v[(key + e) * V_COLUMNS / 4];
#pragma unroll
            for (int i = 0; i < ROUNDS; i++) {
                float4 x = *(const float4 *)(w + i * WARPS * TILE + key);
                add4(o[i][c], x.x, y[0]);
                add4(o[i][c], x.y, y[1]);
                add4(o[i][c], x.z, y[2]);
                add4(o[i][c], x.w, y[3]);
            }
        }
        return;
    }
#pragma unroll 1
    for (int key = 0; key < V_KEYS; key++) {
        float4 y = v[key * V_COLUMNS / 4];
#pragma unroll
        for (int i = 0; i < ROUNDS; i++) {
            if (mask[i] >> key & 1u) add4(o[i][c], w[i * WARPS * TILE + key], y);
        }
    }
}

/* The values of a tile, columns column .. column + 511. */
DEVICE void add_values(const attn_cu_call &p, const job &j, shared_memory &m, int column, sums &t) {
    int dim = p.layer.v_dim;
    int pieces = min_((int)V_PIECES, ceil_div32(dim - column, V_COLUMNS));
#pragma unroll 1
    for (int i = 0; i < pieces * (TILE / V_KEYS); i++) {
        int half = i % (TILE / V_KEYS);
        int first = column + i / (TILE / V_KEYS) * V_COLUMNS;
        __syncthreads();
        fetch<ATTN_KV_TYPE, V_COLUMNS / 4, ATTN_KV_TYPE == INT8>(m.piece, V_COLUMNS, m.v_rows + V_KEYS * half,
                                                                 m.v_factor + V_KEYS * half, V_KEYS, first, dim,
                                                                 j.wide_v);
        __syncthreads();
        if (first + 4 * lane() >= dim) continue;
#pragma unroll
        for (int c = 0; c < V_PIECES; c++) {
            if (i / (TILE / V_KEYS) != c) continue; /* known to the compiler, so that o stays in registers */
            if (j.rounds == 1) {
                add_piece<1>(m, half, t.o, c);
            } else if (j.rounds == 2) {
                add_piece<2>(m, half, t.o, c);
            } else {
                add_piece<OWN>(m, half, t.o, c);
            }
        }
    }
}

#endif
