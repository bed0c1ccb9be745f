/* cpu.c - the part of bench/cpu.py that is timed in C: attn.h, the ceilings, and the oracle that every competitor's
   result is held against. A shared library; see make bench-cpu. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#define ATTN_IMPLEMENTATION
#include "bench.h"

/* ---- for all competitors ----------------------------------------------------------------------------------------- */

void *bench_memory(int64_t bytes) {
    return need((size_t)bytes);
}

void bench_free(void *p) {
    free(p);
}

/* which: 0 Q, 1 K, 2 V of the case, as elements of `type`. */
void bench_fill(const bench_case *c, int32_t which, int32_t type, int32_t head_major, void *to) {
    int32_t rows = which ? c->kv_len : c->q_len, heads = which ? c->kv_heads : c->heads;
    fill(to, type, SEED_Q + (uint32_t)which, rows, heads, c->dim, head_major);
}

/* What `rows` rows of a head are worth, from `row` on. Returns where they end. */
static double *values(double *to, int type, uint32_t seed, int64_t row, int64_t rows, int64_t head, int64_t heads,
                      int64_t dim) {
    double worth[256];
    uint32_t code[256];
    int64_t r, x;
    make_codes(type, code);
    for (x = 0; x < 256; x++) worth[x] = ref_decode(type, &code[x]) * (type == REF_INT8 ? (double)INT8_SCALE : 1);
    for (r = 0; r < rows; r++) {
        for (x = 0; x < dim; x++) {
            to[r * dim + x] = worth[(uint8_t)element(seed, (uint64_t)(((row + r) * heads + head) * dim + x))];
        }
    }
    return to + rows * dim;
}

/* Largest error of a row of a head, and the largest |o| there. truth: room for a row of o, one of q, and K and V. */
static void row_error(const bench_case *c, int32_t row, int32_t head, int32_t type, const char *o, double *truth,
                      double *error, double *size) {
    int32_t keys = c->full ? c->kv_len : c->kv_len - c->q_len + row + 1, kv = head / (c->heads / c->kv_heads), x;
    double *q = truth + c->dim, *k = values(q, REF_F32, SEED_Q, row, 1, head, c->heads, c->dim);
    double *v = values(k, c->type, SEED_K, 0, keys, kv, c->kv_heads, c->dim), ignored[3];
    ref_problem p;
    values(v, c->type, SEED_V, 0, keys, kv, c->kv_heads, c->dim);
    memset(&p, 0, sizeof p);
    p.q_len = p.heads = p.kv_heads = 1;
    p.kv_len = keys;
    p.head_dim = p.v_dim = c->dim;
    p.scale = 1 / sqrt(c->dim);
    p.q = q;
    p.k = k;
    p.v = v;
    p.o = truth;
    p.lse = &ignored[0];
    p.reach = &ignored[1];
    p.v_max = &ignored[2];
    ref_attention(&p);
    for (x = 0; x < c->dim; x++) {
        *error = fmax(*error, fabs(ref_decode(type, o + (size_t)x * type_bytes(type)) - truth[x]));
        *size = fmax(*size, fabs(truth[x]));
    }
}

/* Largest |o - oracle| over the largest |oracle| of nine rows of heads; strides in elements of o. */
double bench_error(const bench_case *c, const void *o, int32_t type, int64_t o_row, int64_t o_head) {
    int32_t row[3] = { 0, c->q_len / 2, c->q_len - 1 }, head[3] = { 0, c->heads / 2 + 1, c->heads - 1 }, i, j;
    double error = 0, size = 0, *memory = (double *)need(2 * (size_t)(c->kv_len + 1) * (size_t)c->dim * sizeof *memory);
    for (i = c->q_len > 2 ? 0 : 2; i < 3; i++) {
        for (j = 0; j < 3; j++) {
            const char *at = (const char *)o + (size_t)(row[i] * o_row + head[j] * o_head) * type_bytes(type);
            row_error(c, row[i], head[j], type, at, memory, &error, &size);
        }
    }
    free(memory);
    return error / size;
}

/* ---- attn.h ------------------------------------------------------------------------------------------------------ */

pool *bench_threads(int32_t most) {
    return pool_start(most);
}

int32_t bench_isa(void) {
    return (int32_t)attn_isa_detect();
}

bench_run *bench_open(const bench_case *c, pool *threads) {
    return run_open(c, 1, NULL, threads);
}

/* One thread: processor time, which others on the machine hardly disturb. */
static void set_clock(int32_t threads) {
    bench_clock = threads == 1 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC;
}

double bench_time(bench_run *r, int32_t threads, double least) {
    set_clock(threads);
    return run_time(r, threads, least);
}

double bench_read(bench_run *r, int32_t threads, double least) {
    set_clock(threads);
    return run_read(r, threads, least);
}

double bench_run_error(bench_run *r) {
    run_time(r, r->threads->threads, 0);
    return bench_error(&r->c, r->o, r->layer.o_type, (int64_t)r->c.heads * r->c.dim, r->c.dim);
}

void bench_close(bench_run *r) {
    run_close(r);
}

double bench_multiply_adds(pool *threads, int32_t lanes, int32_t isa) {
    set_clock(lanes);
    return multiply_add_rate(threads, lanes, isa);
}

/* Seconds that a plan of 256 decoding requests takes, in pages of 16. */
double bench_plan(int32_t isa) {
    enum { REQUESTS = 256, PLANS = 200 };
    int32_t kv_len[REQUESTS], i;
    attn_batch batch = { 0 };
    attn_layer layer = { 0 };
    attn_plan plan;
    attn_error error;
    for (i = 0; i < REQUESTS; i++) kv_len[i] = 1000 + 7 * i;
    batch.n = REQUESTS;
    batch.kv_len = kv_len;
    layer.heads = 32;
    layer.kv_heads = 8;
    layer.head_dim = 128;
    layer.page_size = 16;
    layer.isa = isa;
    set_clock(1);
    size_t bytes = attn_plan_bytes(&batch, &layer);
    void *mem = need(bytes);
    double start = now();
    for (i = 0; i < PLANS; i++) must(attn_plan_make(&plan, &batch, &layer, mem, bytes, &error), &error);
    double time = (now() - start) / PLANS;
    free(mem);
    return time;
}
