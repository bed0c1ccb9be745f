/* skip.c - what skip-softmax saves or costs beside the same call without it, in processor time of one thread. Build and
   run: make bench-skip. Every round runs all ways; the ratios are medians. With a file name as argument also lines
   `case,way,ratio` for programs. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#define ATTN_IMPLEMENTATION
#include "bench.h"

enum { ROUNDS = 11, TILE = 64 };

/* Ways to run the same call. `off` comes first: the others are compared with it. 96 keys a tile, the default of prompts
   without skipping, are refused with it; `off, 64 keys` tells what that alone costs. */
typedef struct bench_way {
    const char *name;
    int32_t mode, key_tile;
    float value;
} bench_way;

static const bench_way ways[] = {
    { "off", ATTN_SKIP_OFF, 0, 0 },
    { "off; 64 keys", ATTN_SKIP_OFF, TILE, 0 },
    { "lambda 1e-30", ATTN_SKIP_LAMBDA, 0, 1e-30f },
    { "lambda 1e-3", ATTN_SKIP_LAMBDA, 0, 1e-3f },
    { "eps 0.01", ATTN_SKIP_EPS, 0, 0.01f }
};
enum { WAYS = sizeof ways / sizeof ways[0] };

/* A token-major cache is the hard case for decoding: what a head leaves out are short holes between rows of others, and
   the hardware reads many of them ahead all the same. */
typedef struct skip_case {
    const char *name;
    bench_case c;
    int head_major;
} skip_case;

static const skip_case cases[] = {
    { "prefill causal d128 n2048 f32", { ATTN_PREFILL, 0, ATTN_F32, 8, 8, 128, 2048, 2048, 0, 0, 0 }, 0 },
    { "prefill causal d128 n8192 2/1 f16", { ATTN_PREFILL, 0, ATTN_F16, 2, 1, 128, 8192, 8192, 0, 0, 0 }, 0 },
    { "chunk 512 at 4096 32/8 d128 f16", { ATTN_PREFILL, 0, ATTN_F16, 32, 8, 128, 512, 4096, 0, 0, 0 }, 0 },
    { "decode 32/8 d128 kv4096 f16", { ATTN_DECODE, 0, ATTN_F16, 32, 8, 128, 1, 4096, 0, 0, 0 }, 0 },
    { "decode 32/8 d128 kv65536 f32", { ATTN_DECODE, 0, ATTN_F32, 32, 8, 128, 1, 65536, 0, 0, 0 }, 0 },
    { "decode 32/8 d128 kv131072 f16", { ATTN_DECODE, 0, ATTN_F16, 32, 8, 128, 1, 131072, 0, 0, 0 }, 0 },
    { "decode head-major kv131072 f16", { ATTN_DECODE, 0, ATTN_F16, 32, 8, 128, 1, 131072, 0, 0, 0 }, 1 },
    { "verify 4 at 32768 32/8 d128 f16", { ATTN_DECODE, 0, ATTN_F16, 32, 8, 128, 4, 32768, 0, 0, 0 }, 0 },
    { "prefill causal d128 n2048 f32 avx2", { ATTN_PREFILL, 0, ATTN_F32, 8, 8, 128, 2048, 2048, ATTN_ISA_AVX2, 0, 0 },
      0 },
    { "decode 32/8 d128 kv131072 f16 avx2", { ATTN_DECODE, 0, ATTN_F16, 32, 8, 128, 1, 131072, ATTN_ISA_AVX2, 0, 0 },
      0 }
};

/* Six of ten tiles, drawn for each kv head apart, get logits 12 below those of the others. The first stays. */
static void plant_quiet_tiles(bench_run *r) {
    int64_t k_row = r->io.k_row ? r->io.k_row : (int64_t)r->c.kv_heads * r->c.dim;
    int64_t k_head = r->io.k_head ? r->io.k_head : r->c.dim, size = (int64_t)type_bytes(r->c.type);
    int32_t key, h, i;
    for (i = 0; i < r->c.q_len * r->c.heads; i++) r->q[(size_t)i * (size_t)r->c.dim] = 4;
    for (key = 0; key < r->c.kv_len; key++) {
        for (h = 0; h < r->c.kv_heads; h++) {
            uint32_t chance = (uint32_t)(key / TILE * r->c.kv_heads + h) * 2654435761u;
            char *k = (char *)r->k[0] + (key * k_row + h * k_head) * size;
            ref_encode(r->c.type, key >= TILE && (chance >> 16) % 10 < 6 ? -3 * sqrtf((float)r->c.dim) : 0, k);
        }
    }
}

/* The same data, run another way. */
static bench_run open_way(const bench_run *r, const bench_way *w, float *lambda) {
    bench_run other = *r;
    other.plan_mem = other.exec.mem = NULL;
    other.layer.key_tile = w->key_tile;
    other.layer.skip.mode = w->mode;
    *lambda = w->value;
    if (w->mode == ATTN_SKIP_LAMBDA) other.io.lambda = lambda;
    if (w->mode == ATTN_SKIP_EPS) other.layer.skip.prefill = other.layer.skip.decode = w->value;
    run_plan(&other);
    return other;
}

/* Share of the tiles whose values were not needed. */
static double skipped_share(bench_run *r) {
    attn_counters counters;
    memset(&counters, 0, sizeof counters);
    r->io.counters = r->layer.skip.mode ? &counters : NULL;
    run_once(r);
    r->io.counters = NULL;
    return counters.tiles ? (double)counters.v_skipped / (double)counters.tiles : 0;
}

static void run_case(const skip_case *skip, pool *threads, FILE *lines) {
    bench_run *r = run_open(&skip->c, 1, NULL, threads), way[WAYS];
    double times[WAYS][ROUNDS], ratios[WAYS][ROUNDS], share[WAYS];
    float lambda[WAYS];
    int round, w, copies = r->copies;
    r->copies = 1;
    if (skip->head_major) {
        r->io.k_row = r->io.v_row = skip->c.dim;
        r->io.k_head = r->io.v_head = (int64_t)skip->c.kv_len * skip->c.dim;
    }
    plant_quiet_tiles(r);
    for (w = 0; w < (int)WAYS; w++) {
        way[w] = open_way(r, &ways[w], &lambda[w]);
        share[w] = skipped_share(&way[w]);
    }
    for (round = 0; round < ROUNDS; round++) {
        for (w = 0; w < (int)WAYS; w++) {
            times[w][round] = run_time(&way[w], 1, 0.05);
            ratios[w][round] = times[0][round] / times[w][round];
        }
    }
    for (w = 0; w < (int)WAYS; w++) {
        double ratio = median(ratios[w], ROUNDS);
        printf("%-36s %-13s %3.0f %% skipped %9.3f ms  %.3f x off\n", skip->name, ways[w].name, 100 * share[w],
               1e3 * median(times[w], ROUNDS), ratio);
        if (lines) fprintf(lines, "%s,%s,%.3f\n", skip->name, ways[w].name, ratio);
        free(way[w].plan_mem);
        free(way[w].exec.mem);
    }
    fflush(stdout);
    r->copies = copies;
    run_close(r);
}

int main(int argc, char **argv) {
    FILE *lines = argc > 1 ? fopen(argv[1], "w") : NULL;
    pool *threads = pool_start(1);
    size_t i;
    bench_clock = CLOCK_THREAD_CPUTIME_ID;
    for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        if (cases[i].c.isa <= (int32_t)attn_isa_detect()) run_case(&cases[i], threads, lines);
    }
    if (lines) fclose(lines);
    return 0;
}
