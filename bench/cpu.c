/* cpu.c - rates of the prefill and decode tiles on one thread, beside what the machine can do in the same run, and
   what skip-softmax saves or costs beside the same call without it.
   Build and run: make bench. Figures are medians of interleaved rounds; only visible query-key pairs count as work.
   Output: a table for people; with a file name as argument also lines `case,ours,ceiling,unit` for programs. */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 199309L
#endif
#define ATTN_IMPLEMENTATION
#include "../attn.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { ROUNDS = 7, SKIP_ROUNDS = 11, TILE = 64 };

typedef struct bench_case {
    const char *name;
    attn_phase phase;
    attn_type type;
    int32_t heads, kv_heads, dim, q_len, kv_len, isa;
} bench_case;

typedef struct bench_data {
    void *q, *k, *v, *o, *plan_mem;
    size_t cache_bytes;
    attn_layer layer;
    attn_batch batch;
    attn_io io;
    attn_plan plan;
    attn_exec exec;
    int32_t q_len, kv_len, phase;
} bench_data;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int n) {
    qsort(values, (size_t)n, sizeof *values, by_value);
    return values[n / 2];
}

static void *need(size_t bytes) {
    void *p = malloc(bytes);
    if (!p) {
        fprintf(stderr, "out of memory\n");
        exit(1);
    }
    return p;
}

/* Values in -1 .. 1 of the given type; they repeat after 4 million. */
static void *random_array(size_t count, attn_type type) {
    enum { PERIOD = 1 << 22 };
    uint32_t seed = 1;
    size_t i;
    size_t size = type == ATTN_F32 ? 4 : 2;
    char *data = (char *)need(count * size);
    for (i = 0; i < count && i < PERIOD; i++) {
        float x;
        seed = seed * 1664525u + 1013904223u;
        x = (float)(seed >> 8) / 8388608.0f - 1.0f;
        attn__narrow_scalar(data + i * size, &x, 1, type, NULL);
    }
    for (i = PERIOD; i < count; i += PERIOD) {
        memcpy(data + i * size, data, (count - i < PERIOD ? count - i : PERIOD) * size);
    }
    return data;
}

/* f32 multiply-adds of one thread, from registers: the ceiling of prefill. */
static double fma_rate(int32_t isa) {
    enum { D = 128, KEYS = 6 };
    const attn__leaves *f = attn__leaves_of(isa);
    static float s[(KEYS + 8) * 64], q[D * 64], k[KEYS * D];
    const char *rows[KEYS];
    attn__dots a;
    double start, best = 1e9;
    int i, round, repeats = 20000;
    for (i = 0; i < KEYS; i++) rows[i] = (const char *)(k + i * D);
    memset(&a, 0, sizeof a);
    a.s = s;
    a.q = q;
    a.k = rows;
    a.rows = f->lanes;
    a.n = KEYS;
    a.d = D;
    for (round = 0; round < 5; round++) {
        double t;
        start = now();
        for (i = 0; i < repeats; i++) f->lane_scores(&a);
        t = now() - start;
        if (t < best) best = t;
    }
    return 2.0 * D * KEYS * f->lanes * repeats / best * 1e-9;
}

/* Reads every byte once, eight streams of 8 bytes: the compiler makes vectors of it. */
static double read_time(const void *data, size_t bytes) {
    const uint64_t *p = (const uint64_t *)data;
    static volatile uint64_t sink;
    uint64_t sum[8] = { 0 };
    size_t i, j;
    double start = now();
    for (i = 0; i + 8 <= bytes / 8; i += 8) {
        for (j = 0; j < 8; j++) sum[j] += p[i + j];
    }
    for (j = 1; j < 8; j++) sum[0] += sum[j];
    sink = sum[0];
    (void)sink;
    return now() - start;
}

static void make_plan(bench_data *d) {
    attn_error error;
    size_t bytes = attn_plan_bytes(&d->batch, &d->layer);
    d->plan_mem = need(bytes);
    if (attn_plan_make(&d->plan, &d->batch, &d->layer, d->plan_mem, bytes, &error)) {
        fprintf(stderr, "%s\n", error.text);
        exit(1);
    }
    d->exec.bytes = attn_exec_bytes(&d->plan, 1);
    d->exec.mem = need(d->exec.bytes);
}

static void setup(bench_data *d, const bench_case *c) {
    size_t keys = (size_t)c->kv_len * (size_t)c->kv_heads * (size_t)c->dim;
    size_t rows = (size_t)c->q_len * (size_t)c->heads * (size_t)c->dim;
    memset(d, 0, sizeof *d);
    d->q_len = c->q_len;
    d->kv_len = c->kv_len;
    d->phase = (int32_t)c->phase;
    d->batch.n = 1;
    d->batch.q_len = &d->q_len;
    d->batch.kv_len = &d->kv_len;
    d->batch.phase = &d->phase;
    d->layer.heads = c->heads;
    d->layer.kv_heads = c->kv_heads;
    d->layer.head_dim = c->dim;
    d->layer.kv_type = c->type;
    d->layer.isa = c->isa;
    d->cache_bytes = keys * (c->type == ATTN_F32 ? 4 : 2);
    d->q = random_array(rows, ATTN_F32);
    d->o = need(rows * sizeof(float));
    d->k = random_array(keys, c->type);
    d->v = random_array(keys, c->type);
    d->io.q = d->q;
    d->io.k = d->k;
    d->io.v = d->v;
    d->io.o = d->o;
    make_plan(d);
}

static void run_once(bench_data *d) {
    attn_error error;
    if (attn_forward(&d->plan, &d->layer, &d->io, &d->exec, &error)) {
        fprintf(stderr, "%s\n", error.text);
        exit(1);
    }
}

/* Median seconds of a call, at least 50 ms a round; beside it the same for a plain read of K and V. */
static void measure(bench_data *d, double *ours, double *plain) {
    double t_ours[ROUNDS], t_read[ROUNDS], start;
    int round, i, repeats;
    run_once(d);
    start = now();
    run_once(d);
    repeats = 1 + (int)(0.05 / (now() - start));
    for (round = 0; round < ROUNDS; round++) {
        start = now();
        for (i = 0; i < repeats; i++) run_once(d);
        t_ours[round] = (now() - start) / repeats;
        t_read[round] = 0;
        for (i = 0; i < 3; i++) t_read[round] += read_time(d->k, d->cache_bytes) + read_time(d->v, d->cache_bytes);
        t_read[round] /= 3;
    }
    *ours = median(t_ours, ROUNDS);
    *plain = median(t_read, ROUNDS);
}

static void teardown(bench_data *d) {
    free(d->q);
    free(d->o);
    free(d->k);
    free(d->v);
    free(d->plan_mem);
    free(d->exec.mem);
}

static const char *const isas[] = { "auto", "scalar", "avx2", "avx512" };

/* Prefill and verify are counted in GFLOP/s beside the multiply-add rate, decode in GB/s beside the plain read. */
static void report(const bench_case *c, const bench_data *d, double ours, double plain, FILE *table) {
    double past = c->kv_len - c->q_len;
    double pairs = (double)c->q_len * past + 0.5 * c->q_len * (c->q_len + 1.0);
    double gflops = 4.0 * c->dim * c->heads * pairs / ours * 1e-9;
    double rate = 2.0 * (double)d->cache_bytes / ours * 1e-9;
    double ceiling = 2.0 * (double)d->cache_bytes / plain * 1e-9;
    double peak = fma_rate(d->plan.resolved.isa);
    const char *isa = isas[d->plan.resolved.isa];
    printf("%-34s %-7s %8.3f ms  %7.1f GFLOP/s (%3.0f %% of %.0f)  %6.2f GB/s (%3.0f %% of %.2f)\n", c->name, isa,
           ours * 1e3, gflops, 100 * gflops / peak, peak, rate, 100 * rate / ceiling, ceiling);
    if (!table) return;
    if (c->phase == ATTN_PREFILL || c->q_len > 1) {
        fprintf(table, "%s %s,%.1f,%.1f,GFLOP/s\n", c->name, isa, gflops, peak);
    } else {
        fprintf(table, "%s %s,%.2f,%.2f,GB/s\n", c->name, isa, rate, ceiling);
    }
}

/* ---- skip-softmax ----------------------------------------------------------------------------------------------- */

/* Ways to run the same call. `off` comes first: the others are compared with it. 96 keys a tile, the default of prompts
   without skipping, are refused with it; `off, 64 keys` tells what that alone costs. */
typedef struct bench_way {
    const char *name;
    int32_t mode, key_tile;
    float value;
} bench_way;

static const bench_way ways[] = {
    { "off", ATTN_SKIP_OFF, 0, 0 },
    { "off, 64 keys", ATTN_SKIP_OFF, TILE, 0 },
    { "lambda 1e-30", ATTN_SKIP_LAMBDA, 0, 1e-30f },
    { "lambda 1e-3", ATTN_SKIP_LAMBDA, 0, 1e-3f },
    { "eps 0.01", ATTN_SKIP_EPS, 0, 0.01f }
};
enum { WAYS = sizeof ways / sizeof ways[0] };

/* A token-major cache is the hard case for decoding: what a head leaves out are short holes between rows of others, and
   the hardware reads many of them ahead all the same. */
typedef struct skip_case {
    bench_case c;
    int head_major;
} skip_case;

/* Six of ten tiles, drawn for each kv head apart, get logits 12 below those of the others. The first stays. */
static void plant_quiet_tiles(bench_data *d) {
    int64_t k_row = d->io.k_row ? d->io.k_row : (int64_t)d->layer.kv_heads * d->layer.head_dim;
    int64_t k_head = d->io.k_head ? d->io.k_head : d->layer.head_dim;
    int32_t key, h, i;
    char *k = (char *)d->k;
    size_t size = d->layer.kv_type == ATTN_F32 ? 4 : 2;
    for (i = 0; i < d->q_len * d->layer.heads; i++) ((float *)d->q)[(size_t)i * (size_t)d->layer.head_dim] = 4;
    for (key = 0; key < d->kv_len; key++) {
        for (h = 0; h < d->layer.kv_heads; h++) {
            uint32_t draw = (uint32_t)(key / TILE * d->layer.kv_heads + h) * 2654435761u;
            size_t at = (size_t)(key * k_row + h * k_head);
            float x = key >= TILE && (draw >> 16) % 10 < 6 ? -3 * (float)sqrt(d->layer.head_dim) : 0;
            attn__narrow_scalar(k + at * size, &x, 1, d->layer.kv_type, NULL);
        }
    }
}

/* Share of the tiles whose values were not needed. */
static double skipped_share(bench_data *d) {
    attn_counters counters;
    memset(&counters, 0, sizeof counters);
    d->io.counters = d->layer.skip.mode ? &counters : NULL;
    run_once(d);
    d->io.counters = NULL;
    return counters.tiles ? (double)counters.v_skipped / (double)counters.tiles : 0;
}

/* Every round runs all ways; times are medians, and so are the ratios off / way of each round. */
static void measure_ways(bench_data *d, double *ours, double *ratio) {
    double times[WAYS][SKIP_ROUNDS], ratios[WAYS][SKIP_ROUNDS], start;
    int round, w, i, repeats;
    start = now();
    run_once(&d[0]);
    repeats = 1 + (int)(0.05 / (now() - start));
    for (round = 0; round < SKIP_ROUNDS; round++) {
        for (w = 0; w < (int)WAYS; w++) {
            start = now();
            for (i = 0; i < repeats; i++) run_once(&d[w]);
            times[w][round] = (now() - start) / repeats;
            ratios[w][round] = times[0][round] / times[w][round];
        }
    }
    for (w = 0; w < (int)WAYS; w++) {
        ours[w] = median(times[w], SKIP_ROUNDS);
        ratio[w] = median(ratios[w], SKIP_ROUNDS);
    }
}

static void run_skip_case(const skip_case *skip, FILE *table) {
    const bench_case *c = &skip->c;
    bench_data d, way[WAYS];
    float lambda[WAYS];
    double ours[WAYS], ratio[WAYS], share[WAYS];
    int w;
    setup(&d, c);
    if (skip->head_major) {
        d.io.k_row = d.io.v_row = c->dim;
        d.io.k_head = d.io.v_head = (int64_t)c->kv_len * c->dim;
    }
    plant_quiet_tiles(&d);
    for (w = 0; w < (int)WAYS; w++) {
        way[w] = d;
        way[w].batch.q_len = &way[w].q_len;
        way[w].batch.kv_len = &way[w].kv_len;
        way[w].batch.phase = &way[w].phase;
        way[w].layer.key_tile = ways[w].key_tile;
        way[w].layer.skip.mode = ways[w].mode;
        lambda[w] = ways[w].value;
        if (ways[w].mode == ATTN_SKIP_LAMBDA) way[w].io.lambda = &lambda[w];
        if (ways[w].mode == ATTN_SKIP_EPS) {
            way[w].layer.skip.prefill = ways[w].value;
            way[w].layer.skip.decode = ways[w].value;
        }
        make_plan(&way[w]);
        share[w] = skipped_share(&way[w]);
    }
    measure_ways(way, ours, ratio);
    for (w = 0; w < (int)WAYS; w++) {
        const char *isa = isas[way[w].plan.resolved.isa];
        printf("%-34s %-7s %-13s %3.0f %% skipped %9.3f ms  %.3f x off\n", c->name, isa, ways[w].name, 100 * share[w],
               ours[w] * 1e3, ratio[w]);
        if (table) fprintf(table, "skip %s %s %s,%.3f,1.000,x off\n", c->name, isa, ways[w].name, ratio[w]);
        free(way[w].plan_mem);
        free(way[w].exec.mem);
    }
    teardown(&d);
}

int main(int argc, char **argv) {
    static const bench_case cases[] = {
        { "prefill causal d128 n2048 f32", ATTN_PREFILL, ATTN_F32, 8, 8, 128, 2048, 2048, 0 },
        { "prefill causal d128 n2048 f16", ATTN_PREFILL, ATTN_F16, 8, 8, 128, 2048, 2048, 0 },
        { "prefill causal d128 n2048 bf16", ATTN_PREFILL, ATTN_BF16, 8, 8, 128, 2048, 2048, 0 },
        { "prefill causal d128 n512 f32", ATTN_PREFILL, ATTN_F32, 8, 8, 128, 512, 512, 0 },
        { "prefill causal d64 n2048 f32", ATTN_PREFILL, ATTN_F32, 8, 8, 64, 2048, 2048, 0 },
        { "chunk 512 at 4096 32/8 d128 f16", ATTN_PREFILL, ATTN_F16, 32, 8, 128, 512, 4096, 0 },
        { "decode 32/8 d128 kv4096 f32", ATTN_DECODE, ATTN_F32, 32, 8, 128, 1, 4096, 0 },
        { "decode 32/8 d128 kv4096 f16", ATTN_DECODE, ATTN_F16, 32, 8, 128, 1, 4096, 0 },
        { "decode 32/8 d128 kv4096 bf16", ATTN_DECODE, ATTN_BF16, 32, 8, 128, 1, 4096, 0 },
        { "decode 32/8 d128 kv32768 f32", ATTN_DECODE, ATTN_F32, 32, 8, 128, 1, 32768, 0 },
        { "decode 32/8 d128 kv32768 f16", ATTN_DECODE, ATTN_F16, 32, 8, 128, 1, 32768, 0 },
        { "verify 4 at 4096 32/8 d128 f16", ATTN_DECODE, ATTN_F16, 32, 8, 128, 4, 4096, 0 },
        { "verify 16 at 4096 32/8 d128 f16", ATTN_DECODE, ATTN_F16, 32, 8, 128, 16, 4096, 0 },
        { "verify 64 at 4096 32/8 d128 f16", ATTN_DECODE, ATTN_F16, 32, 8, 128, 64, 4096, 0 },
        { "prefill causal d128 n2048 f32", ATTN_PREFILL, ATTN_F32, 8, 8, 128, 2048, 2048, ATTN_ISA_AVX2 },
        { "decode 32/8 d128 kv4096 f16", ATTN_DECODE, ATTN_F16, 32, 8, 128, 1, 4096, ATTN_ISA_AVX2 },
        { "decode 32/8 d128 kv32768 f16", ATTN_DECODE, ATTN_F16, 32, 8, 128, 1, 32768, ATTN_ISA_AVX2 },
        { "verify 16 at 4096 32/8 d128 f16", ATTN_DECODE, ATTN_F16, 32, 8, 128, 16, 4096, ATTN_ISA_AVX2 },
        { "prefill causal d128 n512 f32", ATTN_PREFILL, ATTN_F32, 8, 8, 128, 512, 512, ATTN_ISA_SCALAR },
        { "decode 32/8 d128 kv4096 f16", ATTN_DECODE, ATTN_F16, 32, 8, 128, 1, 4096, ATTN_ISA_SCALAR }
    };
    static const skip_case skip_cases[] = {
        { { "prefill causal d128 n2048 f32", ATTN_PREFILL, ATTN_F32, 8, 8, 128, 2048, 2048, 0 }, 0 },
        { { "prefill causal d128 n8192 2/1 f16", ATTN_PREFILL, ATTN_F16, 2, 1, 128, 8192, 8192, 0 }, 0 },
        { { "chunk 512 at 4096 32/8 d128 f16", ATTN_PREFILL, ATTN_F16, 32, 8, 128, 512, 4096, 0 }, 0 },
        { { "decode 32/8 d128 kv4096 f16", ATTN_DECODE, ATTN_F16, 32, 8, 128, 1, 4096, 0 }, 0 },
        { { "decode 32/8 d128 kv65536 f32", ATTN_DECODE, ATTN_F32, 32, 8, 128, 1, 65536, 0 }, 0 },
        { { "decode 32/8 d128 kv131072 f16", ATTN_DECODE, ATTN_F16, 32, 8, 128, 1, 131072, 0 }, 0 },
        { { "decode head-major kv131072 f16", ATTN_DECODE, ATTN_F16, 32, 8, 128, 1, 131072, 0 }, 1 },
        { { "verify 4 at 32768 32/8 d128 f16", ATTN_DECODE, ATTN_F16, 32, 8, 128, 4, 32768, 0 }, 0 },
        { { "prefill causal d128 n2048 f32", ATTN_PREFILL, ATTN_F32, 8, 8, 128, 2048, 2048, ATTN_ISA_AVX2 }, 0 },
        { { "decode 32/8 d128 kv131072 f16", ATTN_DECODE, ATTN_F16, 32, 8, 128, 1, 131072, ATTN_ISA_AVX2 }, 0 }
    };
    FILE *table = argc > 1 ? fopen(argv[1], "w") : NULL;
    size_t i;
    for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        bench_data d;
        double ours, plain;
        if (cases[i].isa > (int32_t)attn_isa_detect()) continue;
        setup(&d, &cases[i]);
        measure(&d, &ours, &plain);
        report(&cases[i], &d, ours, plain, table);
        teardown(&d);
    }
    for (i = 0; i < sizeof skip_cases / sizeof skip_cases[0]; i++) {
        if (skip_cases[i].c.isa <= (int32_t)attn_isa_detect()) run_skip_case(&skip_cases[i], table);
    }
    if (table) fclose(table);
    return 0;
}
