/* bench.h - what the programs of this folder share: a clock, threads that stay on their cores, data, ceilings, and
   calls of attn.h. Needs Linux, gcc or clang. Define _GNU_SOURCE before it. */
#ifndef BENCH_H
#define BENCH_H

#include "../attn.h"
#include "../tests/ref.h"
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* What runs on one thread takes processor time: what others do on the machine then disturbs less. */
static clockid_t bench_clock = CLOCK_MONOTONIC;

static double now(void) {
    struct timespec t;
    clock_gettime(bench_clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static inline double median(double *values, int n) {
    qsort(values, (size_t)n, sizeof *values, by_value);
    return values[n / 2];
}

static void stop(const char *sentence) {
    fprintf(stderr, "bench: %s\n", sentence);
    exit(1);
}

/* In large pages, as allocators of inference programs ask for; every competitor gets its data in such memory. */
static void *need(size_t bytes) {
    size_t large = (size_t)2 << 20, size = (bytes + large - 1) / large * large;
    void *p = bytes < large ? malloc(bytes + 64) : aligned_alloc(large, size);
    if (!p) stop("out of memory");
    if (bytes >= large) (void)madvise(p, size, MADV_HUGEPAGE);
    return p;
}

/* ---- threads ----------------------------------------------------------------------------------------------------- */

enum { MAX_THREADS = 64, SPINS = 1 << 14 };

/* Lane i stays on the i-th core that the process may use; the caller is lane 0. Without that two threads may share a
   core for seconds. A waiting thread spins first, since calls follow each other, then sleeps. */
typedef struct pool {
    pthread_t thread[MAX_THREADS];
    pthread_mutex_t lock;
    pthread_cond_t wake;
    size_t cpu[MAX_THREADS];
    int threads, lanes, started, left;
    unsigned call;                  /* counts the calls of pool_run */
    void (*fn)(void *ctx, int lane);
    void *ctx;
} pool;

static void pin(size_t cpu) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    (void)pthread_setaffinity_np(pthread_self(), sizeof one, &one);
}

static void *pool_thread(void *arg) {
    pool *p = (pool *)arg;
    int lane = __atomic_fetch_add(&p->started, 1, __ATOMIC_SEQ_CST);
    unsigned seen = 0;
    pin(p->cpu[lane]);
    for (;;) {
        int spin;
        for (spin = 0; spin < SPINS && __atomic_load_n(&p->call, __ATOMIC_ACQUIRE) == seen; spin++) {
#if defined(__x86_64__)
            _mm_pause();
#endif
        }
        pthread_mutex_lock(&p->lock);
        while (p->call == seen) pthread_cond_wait(&p->wake, &p->lock);
        seen = p->call;
        pthread_mutex_unlock(&p->lock);
        if (lane < p->lanes) p->fn(p->ctx, lane);
        __atomic_fetch_sub(&p->left, 1, __ATOMIC_RELEASE);
    }
    return NULL;
}

/* As attn_exec.parallel_for wants it; user is a pool. */
static void pool_run(void *user, int lanes, void (*fn)(void *ctx, int lane), void *ctx) {
    pool *p = (pool *)user;
    if (lanes > 1) {
        pthread_mutex_lock(&p->lock);
        p->fn = fn;
        p->ctx = ctx;
        p->lanes = lanes;
        p->left = p->threads - 1;
        __atomic_fetch_add(&p->call, 1, __ATOMIC_RELEASE);
        pthread_cond_broadcast(&p->wake);
        pthread_mutex_unlock(&p->lock);
    }
    fn(ctx, 0);
    while (lanes > 1 && __atomic_load_n(&p->left, __ATOMIC_ACQUIRE)) sched_yield();
}

/* As many threads as the process may use, `most` at most. They live as long as the process. */
static inline pool *pool_start(int most) {
    pool *p = (pool *)calloc(1, sizeof *p);
    cpu_set_t all;
    size_t cpu;
    int i;
    if (!p || sched_getaffinity(0, sizeof all, &all)) stop("no threads");
    for (cpu = 0; cpu < CPU_SETSIZE && p->threads < most && p->threads < MAX_THREADS; cpu++) {
        if (CPU_ISSET(cpu, &all)) p->cpu[p->threads++] = cpu;
    }
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    p->started = 1;
    for (i = 1; i < p->threads; i++) {
        if (pthread_create(&p->thread[i], NULL, pool_thread, p)) stop("no threads");
    }
    pin(p->cpu[0]);
    return p;
}

/* ---- data -------------------------------------------------------------------------------------------------------- */

/* Elements are i / 64, i = -127 .. 127, drawn by a hash of their place: f32, f16, bf16 and int8 (scale 1 / 64) hold
   them exactly, in every layout, so that all competitors compute from the same numbers. */
enum { SEED_Q = 1, SEED_K, SEED_V };
static const float INT8_SCALE = 1.0f / 64;

static inline int element(uint32_t seed, uint64_t place) {
    uint32_t h = (uint32_t)place * 2654435761u + (uint32_t)(place >> 32) * 40503u + seed * 374761393u;
    h ^= h >> 15;
    h *= 2246822519u;
    h ^= h >> 13;
    h *= 3266489917u;
    return (int)(h >> 24) == 128 ? 0 : (int)(int8_t)(h >> 24);
}

static size_t type_bytes(int type) {
    return ref_size(type);
}

/* The bits of all 256 elements. */
static void make_codes(int type, uint32_t *code) {
    int i;
    for (i = 0; i < 256; i++) {
        int8_t value = (int8_t)i;
        code[i] = 0;
        ref_encode(type, (float)value * (type == REF_INT8 ? 1 : INT8_SCALE), &code[i]);
    }
}

/* [row][head][dim], or [head][row][dim]: rows x heads x dim elements of a type. */
static void fill(void *to, int type, uint32_t seed, int64_t rows, int64_t heads, int64_t dim, int head_major) {
    uint32_t code[256];
    int64_t r, h, x, size = (int64_t)type_bytes(type);
    make_codes(type, code);
    for (r = 0; r < rows; r++) {
        for (h = 0; h < heads; h++) {
            char *row = (char *)to + (head_major ? h * rows + r : r * heads + h) * dim * size;
            uint64_t place = (uint64_t)((r * heads + h) * dim);
            for (x = 0; x < dim; x++) {
                uint32_t bits = code[(uint8_t)element(seed, place + (uint64_t)x)];
                if (size == 4) ((uint32_t *)(void *)row)[x] = bits;
                if (size == 2) ((uint16_t *)(void *)row)[x] = (uint16_t)bits;
                if (size == 1) ((uint8_t *)row)[x] = (uint8_t)bits;
            }
        }
    }
}

/* ---- ceilings ---------------------------------------------------------------------------------------------------- */

typedef struct effort {
    const char *data;               /* to read */
    int64_t bytes;
    int lanes, wide;                /* wide: AVX-512 */
    int64_t repeats;
} effort;

#if defined(__x86_64__)
static volatile float kept;

__attribute__((target("avx512f"))) static void multiply_add_wide(int64_t repeats) {
    __m512 a[24], x = _mm512_set1_ps(0.5f), y = _mm512_set1_ps(1);
    int64_t i;
    int j;
    for (j = 0; j < 24; j++) a[j] = y;
    for (i = 0; i < repeats; i++) {
#pragma GCC unroll 24
        for (j = 0; j < 24; j++) a[j] = _mm512_fmadd_ps(a[j], x, y);
    }
    for (j = 1; j < 24; j++) a[0] = _mm512_add_ps(a[0], a[j]);
    kept = _mm512_cvtss_f32(a[0]);
}

__attribute__((target("avx2,fma"))) static void multiply_add(int64_t repeats) {
    __m256 a[12], x = _mm256_set1_ps(0.5f), y = _mm256_set1_ps(1);
    int64_t i;
    int j;
    for (j = 0; j < 12; j++) a[j] = y;
    for (i = 0; i < repeats; i++) {
#pragma GCC unroll 12
        for (j = 0; j < 12; j++) a[j] = _mm256_fmadd_ps(a[j], x, y);
    }
    for (j = 1; j < 12; j++) a[0] = _mm256_add_ps(a[0], a[j]);
    kept = _mm256_cvtss_f32(a[0]);
}

static void multiply_add_lane(void *ctx, int lane) {
    const effort *e = (const effort *)ctx;
    (void)lane;
    if (e->wide) multiply_add_wide(e->repeats);
    else multiply_add(e->repeats);
}

/* f32 GFLOP/s of multiply-adds between registers; isa: attn_isa. 0 where there are none to measure. */
static inline double multiply_add_rate(pool *p, int lanes, int isa) {
    effort e = { NULL, 0, lanes, isa >= ATTN_ISA_AVX512, 40000 };
    double start;
    if (isa < ATTN_ISA_AVX2) return 0;
    pool_run(p, lanes, multiply_add_lane, &e);
    e.repeats = 1000000;
    start = now();
    pool_run(p, lanes, multiply_add_lane, &e);
    return (double)lanes * 2 * (e.wide ? 24 * 16 : 12 * 8) * (double)e.repeats / (now() - start) * 1e-9;
}
#else
static inline double multiply_add_rate(pool *p, int lanes, int isa) {
    (void)p;
    (void)lanes;
    (void)isa;
    return 0;
}
#endif

typedef uint64_t words4 __attribute__((vector_size(32), aligned(8)));

/* Every byte once, from front to back, in four chains. Without the fetches ahead it takes a third longer, and kernels
   that fetch would be faster than a plain read. */
static void read_lane(void *ctx, int lane) {
    enum { AHEAD = 2048 };
    const effort *e = (const effort *)ctx;
    int64_t part = e->bytes / e->lanes / 128 * 128, i;
    const char *at = e->data + lane * part;
    words4 a = { 0 }, b = { 0 }, c = { 0 }, d = { 0 };
    static volatile uint64_t sink;
    for (i = 0; i < part; i += 128) {
        const words4 *p = (const words4 *)(const void *)(at + i);
        __builtin_prefetch(at + i + AHEAD);
        __builtin_prefetch(at + i + AHEAD + 64);
        a |= p[0];
        b |= p[1];
        c |= p[2];
        d |= p[3];
    }
    a |= b | c | d;
    sink = a[0] | a[1] | a[2] | a[3];
    (void)sink;
}

static double read_time(pool *p, int lanes, const void *data, int64_t bytes) {
    effort e = { (const char *)data, bytes, lanes, 0, 0 };
    double start = now();
    pool_run(p, lanes, read_lane, &e);
    return now() - start;
}

/* ---- calls of attn.h --------------------------------------------------------------------------------------------- */

/* What is asked of all competitors. int32 only: a program in Python fills it in as well. type: of the cache; q and o
   are f32. page: slots a page, pages in random order; 0: contiguous, [key][kv_head][dim]. */
typedef struct bench_case {
    int32_t phase, full, type, heads, kv_heads, dim, q_len, kv_len, isa, flags, page;
} bench_case;

enum { MAX_COPIES = 8, APART = 32 << 20 };

/* A case that is ready to run. Calls take turns at copies of K and V, as the layers of a model do, or the small ones
   would come from the core's own cache. */
typedef struct bench_run {
    bench_case c;
    pool *threads;
    int copies, turn;
    int32_t requests, keys;         /* of all requests */
    int64_t cache_bytes;            /* of K, and of V */
    int32_t *lengths;               /* q_len, kv_len, phase of each request */
    int32_t *page_table;
    float *q, *o, *scale;
    void *k[MAX_COPIES], *v[MAX_COPIES], *plan_mem;
    attn_batch batch;
    attn_layer layer;
    attn_io io;
    attn_plan plan;
    attn_exec exec;
} bench_run;

static void must(int status, const attn_error *error) {
    if (status) stop(error->text);
}

/* Visible query-key pairs of a request with kv_len keys. */
static inline double pairs_of(const bench_case *c, double kv_len) {
    double q_len = c->q_len;
    return c->full ? q_len * kv_len : q_len * (kv_len - q_len) + 0.5 * q_len * (q_len + 1);
}

static void set_layer(bench_run *r) {
    const bench_case *c = &r->c;
    r->layer.heads = c->heads;
    r->layer.kv_heads = c->kv_heads;
    r->layer.head_dim = c->dim;
    r->layer.kv_type = (attn_type)c->type;
    r->layer.mask = c->full ? ATTN_FULL : ATTN_CAUSAL;
    r->layer.page_size = c->page;
    r->layer.isa = c->isa ? c->isa : (int32_t)attn_isa_detect();
    r->layer.flags = c->flags;
    if (c->type == ATTN_F16 || c->type == ATTN_BF16) r->layer.q_type = r->layer.o_type = (attn_type)c->type;
    r->layer.scale_kind = c->type == ATTN_INT8 ? ATTN_SCALE_PER_KEY : ATTN_SCALE_PER_TENSOR;
}

/* Lengths, and pages that are handed out in an order drawn by chance. Returns the slots of the cache. */
static int64_t set_batch(bench_run *r, const int32_t *kv_len) {
    const bench_case *c = &r->c;
    int32_t n = r->requests, i, p, pages = 0, columns = 0, *order;
    r->lengths = (int32_t *)need(3 * (size_t)n * sizeof(int32_t));
    r->keys = 0;
    for (i = 0; i < n; i++) {
        int32_t len = kv_len ? kv_len[i] : c->kv_len, used = c->page ? (len + c->page - 1) / c->page : 0;
        r->lengths[i] = c->q_len;
        r->lengths[n + i] = len;
        r->lengths[2 * n + i] = c->phase;
        r->keys += len;
        pages += used;
        columns = used > columns ? used : columns;
    }
    r->batch.n = n;
    r->batch.q_len = r->lengths;
    r->batch.kv_len = r->lengths + n;
    r->batch.phase = c->phase == ATTN_DECODE ? r->lengths + 2 * n : NULL; /* NULL: prompts alone */
    if (!c->page) return r->keys;
    order = (int32_t *)need((size_t)pages * sizeof *order);
    r->page_table = (int32_t *)need((size_t)n * (size_t)columns * sizeof *r->page_table);
    for (p = 0; p < pages; p++) {
        int32_t other = (int32_t)((uint64_t)p * 2654435761u % 4294967291u % (uint64_t)(p + 1));
        order[p] = order[other];
        order[other] = p;
    }
    for (i = 0, pages = 0; i < n; i++) {
        for (p = 0; p < columns; p++) {
            int32_t used = (r->batch.kv_len[i] + c->page - 1) / c->page;
            r->page_table[i * columns + p] = p < used ? order[pages++] : -1;
        }
    }
    free(order);
    r->io.page_table = r->page_table;
    r->io.pages = pages;
    return (int64_t)pages * c->page;
}

/* Again, too, after a change of the layer. */
static void run_plan(bench_run *r) {
    attn_error error;
    size_t bytes = attn_plan_bytes(&r->batch, &r->layer);
    free(r->plan_mem);
    free(r->exec.mem);
    r->plan_mem = need(bytes);
    must(attn_plan_make(&r->plan, &r->batch, &r->layer, r->plan_mem, bytes, &error), &error);
    r->exec.lanes = r->threads->threads;
    r->exec.user = r->threads;
    r->exec.parallel_for = pool_run;
    r->exec.bytes = attn_exec_bytes(&r->plan, r->exec.lanes);
    r->exec.mem = need(r->exec.bytes);
}

/* kv_len: of each request; NULL: that of the case. */
static inline bench_run *run_open(const bench_case *c, int32_t requests, const int32_t *kv_len, pool *threads) {
    bench_run *r = (bench_run *)calloc(1, sizeof *r);
    int64_t slots, i;
    if (!r) stop("out of memory");
    r->c = *c;
    r->threads = threads;
    r->requests = requests;
    set_layer(r);
    slots = set_batch(r, kv_len);
    r->cache_bytes = slots * c->kv_heads * c->dim * (int64_t)type_bytes(c->type);
    r->copies = (int)(1 + APART / (2 * r->cache_bytes + 1));
    r->copies = r->copies < MAX_COPIES ? r->copies : (int)MAX_COPIES;
    r->q = (float *)need((size_t)requests * (size_t)c->q_len * (size_t)(c->heads * c->dim) * sizeof(float));
    r->o = (float *)need((size_t)requests * (size_t)c->q_len * (size_t)(c->heads * c->dim) * sizeof(float));
    fill(r->q, r->layer.q_type, SEED_Q, (int64_t)requests * c->q_len, c->heads, c->dim, 0);
    for (i = 0; i < r->copies; i++) {
        r->k[i] = need((size_t)r->cache_bytes);
        r->v[i] = need((size_t)r->cache_bytes);
        if (i) memcpy(r->k[i], r->k[0], (size_t)r->cache_bytes);
        else fill(r->k[i], c->type, SEED_K, slots, c->kv_heads, c->dim, 0);
        if (i) memcpy(r->v[i], r->v[0], (size_t)r->cache_bytes);
        else fill(r->v[i], c->type, SEED_V, slots, c->kv_heads, c->dim, 0);
    }
    if (c->type == ATTN_INT8) {
        r->scale = (float *)need((size_t)(slots * c->kv_heads) * sizeof(float));
        for (i = 0; i < slots * c->kv_heads; i++) r->scale[i] = INT8_SCALE;
        r->io.k_scale = r->io.v_scale = r->scale;
    }
    r->io.q = r->q;
    r->io.o = r->o;
    r->io.k = r->k[0];
    r->io.v = r->v[0];
    run_plan(r);
    return r;
}

static inline void run_close(bench_run *r) {
    int i;
    for (i = 0; i < r->copies; i++) {
        free(r->k[i]);
        free(r->v[i]);
    }
    free(r->q);
    free(r->o);
    free(r->scale);
    free(r->lengths);
    free(r->page_table);
    free(r->plan_mem);
    free(r->exec.mem);
    free(r);
}

static void run_once(bench_run *r) {
    attn_error error;
    r->turn = (r->turn + 1) % r->copies;
    r->io.k = r->k[r->turn];
    r->io.v = r->v[r->turn];
    must(attn_forward(&r->plan, &r->layer, &r->io, &r->exec, &error), &error);
}

/* Seconds of a call, the mean of as many as take `least` seconds. */
static inline double run_time(bench_run *r, int threads, double least) {
    double start = now(), time;
    int calls = 0;
    r->exec.lanes = threads;
    do {
        run_once(r);
        calls++;
        time = now() - start;
    } while (time < least);
    return time / calls;
}

/* Seconds of a plain read of K and V, likewise. */
static inline double run_read(bench_run *r, int threads, double least) {
    double start = now(), sum = 0;
    int calls = 0;
    do {
        r->turn = (r->turn + 1) % r->copies;
        sum += read_time(r->threads, threads, r->k[r->turn], r->cache_bytes);
        sum += read_time(r->threads, threads, r->v[r->turn], r->cache_bytes);
        calls++;
    } while (now() - start < least);
    return sum / calls;
}

#endif
