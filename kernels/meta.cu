/* meta.cu - attn_cu_meta_make: the index arrays of attn_meta on the device, entry for entry what attn_meta_make writes.

   Launched with any number of blocks, which share nothing: each sums up all lengths, 1,024 requests at a time, and
   writes its share of what they make. Lengths that break a rule: nothing is written at all. */
#ifndef ATTN_META_CU
#define ATTN_META_CU

#include "base.cu"

enum { COUNTERS = 1024 };

/* What the threads of a block share: sums over the requests before each of this round. */
struct sums {
    i64 room[33];
    int rows[COUNTERS], keys[COUNTERS], sparse[COUNTERS];
    int q_len[COUNTERS], kv_len[COUNTERS];
};

/* Sums over all requests before this round. */
struct totals {
    i64 rows, keys, sparse;
};

/* An entry of those that a round makes: its request of the round, and its place there. */
struct entry {
    int at;
    i64 place;
};

/* Sum of min(max(0, x), topk) over x <= last. */
DEVICE i64 clamped_sum(i64 last, i64 topk) {
    i64 x = min_(last, topk);
    return last <= 0 ? 0 : x * (x + 1) / 2 + (last - x) * topk;
}

/* Sums up requests base .. base + 1023 and adds them to *t; returns whether this thread's lengths break a rule. The
   scans wait for all threads, so *s may still be read when this is called again. */
DEVICE bool add_round(const attn_cu_meta &m, sums *s, totals *t, int base) {
    int i = base + (int)threadIdx.x;
    int me = (int)threadIdx.x;
    i64 q_len = 0;
    i64 kv_len = 0;
    i64 all;
    if (i < m.n) {
        q_len = m.q_len ? pointer<int>(m.q_len)[i] : 1;
        kv_len = pointer<int>(m.kv_len)[i];
    }
    i64 listed = m.sparse_len ? clamped_sum(kv_len, m.sparse_topk) - clamped_sum(kv_len - q_len, m.sparse_topk) : 0;
    i64 rows = t->rows + block_scan(q_len, s->room, &all);
    t->rows += all;
    i64 keys = t->keys + block_scan(kv_len, s->room, &all);
    t->keys += all;
    i64 sparse = t->sparse + block_scan(listed, s->room, &all);
    t->sparse += all;
    s->rows[me] = (int)rows;
    s->keys[me] = (int)keys;
    s->sparse[me] = (int)sparse;
    s->q_len[me] = (int)q_len;
    s->kv_len[me] = (int)kv_len;
    __syncthreads();
    return q_len < 0 || kv_len < 0 || q_len > m.max_q_len || kv_len > m.max_kv_len ||
           (m.pad_len && kv_len - q_len + m.max_q_len > LARGEST_INT);
}

/* May the arrays be written? The sums of valid lengths only grow, so their end is their largest. */
DEVICE bool lengths_are_valid(const attn_cu_meta &m, sums *s) {
    totals t = { 0, 0, 0 };
    bool broken = false;
    for (int base = 0; base < m.n; base += COUNTERS) broken |= add_round(m, s, &t, base);
    if (__syncthreads_or(broken)) return false;
    return t.rows <= LARGEST_INT && t.keys <= LARGEST_INT && t.sparse <= LARGEST_INT && t.rows <= m.max_rows;
}

/* Request of row `row`, among those of the round: the last one that does not start behind it. */
DEVICE int request_of(const sums *s, i64 row) {
    int at = 0;
#pragma unroll
    for (int step = COUNTERS / 2; step; step /= 2) {
        if (s->rows[at + step] <= row) at += step;
    }
    return at;
}

DEVICE void put(i64 array, i64 i, int value) {
    if (array) pointer<int>(array)[i] = value;
}

/* ---- arrays per request and per row ------------------------------------------------------------------------------ */

DEVICE void put_request(const attn_cu_meta &m, const sums *s, int base, int at) {
    put(m.cu_seqlens_q, base + at, s->rows[at]);
    put(m.cu_seqlens_k, base + at, s->keys[at]);
    put(m.pad_len, base + at, s->kv_len[at] - s->q_len[at] + m.max_q_len);
}

DEVICE void put_row(const attn_cu_meta &m, const sums *s, int base, i64 row) {
    int at = request_of(s, row);
    int j = (int)(row - s->rows[at]);
    int past = s->kv_len[at] - s->q_len[at];
    int seen = max_(-1, past + j) + 1;
    put(m.positions, row, past + j);
    put(m.row_request, row, base + at);
    put(m.seqlens_expand, row, seen);
    put(m.indexer_ks, row, s->keys[at]);
    put(m.indexer_ke, row, s->keys[at] + seen);
    put(m.topk_offset, row, s->keys[at]);
    put(m.unpad_row, row, (int)((i64)(base + at) * m.max_q_len + j));
    put(m.row_q_len, row, 1);
    put(m.row_kv_len, row, seen);
    if (!m.sparse_len) return;
    i64 listed = clamped_sum(past + j + 1, m.sparse_topk) - clamped_sum(past, m.sparse_topk);
    put(m.sparse_len, row, min_(seen, m.sparse_topk));
    put(m.cu_sparse, row + 1, s->sparse[at] + (int)listed);
}

/* ---- tables ------------------------------------------------------------------------------------------------------ */

/* Page of a column: -1 where there is no key, and in all of a request that the table of tokens does not cover. */
DEVICE int page_of(const attn_cu_meta &m, int request, int kv_len, i64 column) {
    int row = m.req_index ? pointer<int>(m.req_index)[request] : request;
    i64 key = column * m.page_size;
    if (key >= kv_len || row < 0 || row >= m.requests || kv_len > m.req_to_token_row || !m.req_to_token) return -1;
    int slot = pointer<int>(m.req_to_token)[row * m.req_to_token_row + key];
    return slot < 0 ? -1 : slot / m.page_size;
}

/* Threads of all blocks side by side. */
DEVICE i64 first_index() { return (i64)blockIdx.x * COUNTERS + threadIdx.x; }
DEVICE i64 index_step() { return (i64)gridDim.x * COUNTERS; }

DEVICE void put_tables(const attn_cu_meta &m, const sums *s, int base, int requests, i64 rows) {
    i64 width = m.table_row;
    for (i64 i = first_index(); m.page_table && i < requests * width; i += index_step()) {
        int at = (int)(i / width);
        put(m.page_table, base * width + i, page_of(m, base + at, s->kv_len[at], i % width));
    }
    for (i64 i = first_index(); m.row_table && i < rows * width; i += index_step()) {
        i64 row = s->rows[0] + i / width;
        int at = request_of(s, row);
        put(m.row_table, row * width + i % width, page_of(m, base + at, s->kv_len[at], i % width));
    }
    for (i64 i = first_index(); m.pad_row && i < (i64)requests * m.max_q_len; i += index_step()) {
        int at = (int)(i / m.max_q_len);
        int j = (int)(i % m.max_q_len);
        put(m.pad_row, (i64)base * m.max_q_len + i, j < s->q_len[at] ? s->rows[at] + j : -1);
    }
}

/* ---- the kernel -------------------------------------------------------------------------------------------------- */

extern "C" __global__ void __launch_bounds__(COUNTERS, 1) attn_cu_meta_make(const __grid_constant__ attn_cu_meta m) {
    __shared__ sums s;
    totals t = { 0, 0, 0 };
    if (!lengths_are_valid(m, &s)) return;
    for (int base = 0; base < m.n; base += COUNTERS) {
        int requests = min_(m.n - base, (int)COUNTERS);
        i64 before = t.rows;
        add_round(m, &s, &t, base);
        for (i64 i = first_index(); i < requests; i += index_step()) put_request(m, &s, base, (int)i);
        for (i64 i = first_index(); i < t.rows - before; i += index_step()) put_row(m, &s, base, before + i);
        put_tables(m, &s, base, requests, t.rows - before);
    }
    for (i64 row = t.rows + first_index(); row < m.max_rows; row += index_step()) {
        put(m.row_q_len, row, 0);
        put(m.row_kv_len, row, 0);
    }
    if (first_index() > 0) return;
    put(m.cu_seqlens_q, m.n, (int)t.rows);
    put(m.cu_seqlens_k, m.n, (int)t.keys);
    put(m.cu_sparse, 0, 0);
}

#endif
