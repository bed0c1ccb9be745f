/* tiles.c - attention made of calls of a BLAS: the method of PyTorch's CPU kernel (two matrix products a tile, softmax
   in between, tiles above the diagonal left out) on OpenBLAS. A competitor of bench/cpu.py, f32 only; compiled for this
   machine and with -ffast-math, so that the compiler makes vectors of the softmax. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "bench.h"

enum { ROW_MAJOR = 101, PLAIN = 111, TRANSPOSED = 112, KEY_TILE = 512, MOST_ROWS = 256 };

typedef void sgemm_fn(int order, int transpose_a, int transpose_b, int m, int n, int k, float alpha, const float *a,
                      int lda, const float *b, int ldb, float beta, float *c, int ldc);

typedef struct tile_call {
    bench_case c;
    sgemm_fn *sgemm;
    const float *q, *k, *v;
    float *o, *scratch;
    int rows, next;                 /* rows of a tile; the next task, from the last, longest one down */
} tile_call;

enum { SCRATCH = MOST_ROWS * KEY_TILE + 2 * MOST_ROWS };

/* e^x for x <= 0: 2^n times a polynomial of degree 5 on -.5 .. .5. */
static inline float exponential(float x) {
    float y = (x < -87 ? -87 : x) * 1.44269504f, n = __builtin_floorf(y + 0.5f), f = y - n, p;
    union { int32_t i; float f; } power;
    p = ((((0.0013333558f * f + 0.0096181291f) * f + 0.0555041087f) * f + 0.2402265070f) * f + 0.6931471806f) * f + 1;
    power.i = ((int32_t)n + 127) << 23;
    return p * power.f;
}

/* A row of scores to weights; the output so far shrinks if the row's maximum rose. */
static void weigh(float *s, int visible, int keys, float *m, float *sum, float *o, int dim) {
    float top = *m, total = 0, alpha;
    int i;
    for (i = 0; i < visible; i++) top = s[i] > top ? s[i] : top;
    for (i = 0; i < visible; i++) {
        s[i] = exponential(s[i] - top);
        total += s[i];
    }
    for (; i < keys; i++) s[i] = 0;
    alpha = exponential(*m - top);
    *sum = *sum * alpha + total;
    *m = top;
    for (i = 0; i < dim; i++) o[i] *= alpha;
}

static void tile_task(tile_call *t, int index, float *scratch) {
    const bench_case *c = &t->c;
    int head = index % c->heads, kv = head / (c->heads / c->kv_heads), first = index / c->heads * t->rows, key, i;
    int rows = c->q_len - first < t->rows ? c->q_len - first : t->rows, past = c->kv_len - c->q_len;
    int end = c->full ? c->kv_len : past + first + rows, q_row = c->heads * c->dim, k_row = c->kv_heads * c->dim;
    const float *q = t->q + (size_t)first * (size_t)q_row + head * c->dim;
    float *o = t->o + (size_t)first * (size_t)q_row + head * c->dim, *s = scratch;
    float *m = scratch + MOST_ROWS * KEY_TILE, *sum = m + MOST_ROWS;
    for (i = 0; i < rows; i++) {
        m[i] = -1e30f;
        sum[i] = 0;
        memset(o + (size_t)i * (size_t)q_row, 0, (size_t)c->dim * sizeof *o);
    }
    for (key = 0; key < end; key += KEY_TILE) {
        int keys = end - key < KEY_TILE ? end - key : KEY_TILE;
        size_t at = (size_t)key * (size_t)k_row + (size_t)(kv * c->dim);
        t->sgemm(ROW_MAJOR, PLAIN, TRANSPOSED, rows, keys, c->dim, 1 / sqrtf((float)c->dim), q, q_row, t->k + at, k_row,
                 0, s, KEY_TILE);
        for (i = 0; i < rows; i++) {
            int visible = c->full ? keys : past + first + i + 1 - key;
            visible = visible < 0 ? 0 : visible > keys ? keys : visible;
            weigh(s + i * KEY_TILE, visible, keys, &m[i], &sum[i], o + (size_t)i * (size_t)q_row, c->dim);
        }
        t->sgemm(ROW_MAJOR, PLAIN, PLAIN, rows, c->dim, keys, 1, s, KEY_TILE, t->v + at, k_row, 1, o, q_row);
    }
    for (i = 0; i < rows; i++) {
        int x;
        for (x = 0; x < c->dim; x++) o[(size_t)i * (size_t)q_row + (size_t)x] /= sum[i];
    }
}

static void tile_lane(void *ctx, int lane) {
    tile_call *t = (tile_call *)ctx;
    for (;;) {
        int index = __atomic_sub_fetch(&t->next, 1, __ATOMIC_RELAXED);
        if (index < 0) return;
        tile_task(t, index, t->scratch + (size_t)lane * SCRATCH);
    }
}

void bench_tiles(const bench_case *c, sgemm_fn *sgemm, pool *threads, int32_t lanes, const float *q, const float *k,
                 const float *v, float *o) {
    tile_call t = { *c, sgemm, q, k, v, o, NULL, 32, 0 };
    if (c->q_len >= 192) t.rows = 64;
    if (c->q_len >= 768) t.rows = MOST_ROWS;
    t.next = (c->q_len + t.rows - 1) / t.rows * c->heads;
    t.scratch = (float *)need((size_t)lanes * SCRATCH * sizeof(float));
    pool_run(threads, lanes, tile_lane, &t);
    free(t.scratch);
}

typedef struct product_call {
    sgemm_fn *sgemm;
    float *a, *b, *c;
    int size;
} product_call;

static void product_lane(void *ctx, int lane) {
    product_call *p = (product_call *)ctx;
    size_t at = (size_t)lane * (size_t)p->size * (size_t)p->size;
    int n = p->size;
    p->sgemm(ROW_MAJOR, PLAIN, PLAIN, n, n, n, 1, p->a, n, p->b, n, 0, p->c + at, n);
}

/* GFLOP/s of a product of square matrices, one on each lane. */
double bench_product(sgemm_fn *sgemm, pool *threads, int32_t lanes, int32_t size) {
    size_t elements = (size_t)size * (size_t)size, i;
    product_call p = { sgemm, NULL, NULL, NULL, size };
    double start, time;
    p.a = (float *)need(elements * sizeof(float));
    p.b = (float *)need(elements * sizeof(float));
    p.c = (float *)need((size_t)lanes * elements * sizeof(float));
    for (i = 0; i < elements; i++) p.a[i] = p.b[i] = (float)element(SEED_Q, i) / 64;
    pool_run(threads, lanes, product_lane, &p);
    bench_clock = lanes == 1 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC;
    start = now();
    pool_run(threads, lanes, product_lane, &p);
    time = now() - start;
    free(p.a);
    free(p.b);
    free(p.c);
    return 2.0 * (double)lanes * (double)elements * size / time * 1e-9;
}
