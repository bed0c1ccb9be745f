/* ring.c - a ring cache of R slots gives the bits of a cache that keeps every key: while decoding, in chunks, paged and
   contiguous, and after rows were appended and taken back. */
#include "../attn.h"
#include "isas.h"
#include "test.h"

enum { HEADS = 4, KV_HEADS = 2, DIM = 8, N = 2, KEYS = 900, MAX_ROWS = 40, WINDOW = 300, PAGE = 16, RING = 352 };
enum { COLUMNS = RING / PAGE, ROW = KV_HEADS * DIM, WIDTH = (KEYS + PAGE - 1) / PAGE };

/* One of the two caches, and what it takes to run on it. */
typedef struct store {
    float *k, *v;
    int32_t table[N * COLUMNS], wide_table[N * WIDTH];
    attn_layer layer;
    attn_io io;
    void *plan_mem, *exec_mem;
    float o[N * MAX_ROWS * HEADS * DIM];
} store;

static float *floats(size_t count) {
    float *p = (float *)malloc(count * sizeof *p);
    size_t i;
    for (i = 0; i < count; i++) p[i] = -1e30f; /* a slot that was not written spoils every sum */
    return p;
}

static void open_store(store *s, int ring, int page_size, int isa) {
    int i;
    memset(s, 0, sizeof *s);
    s->layer.heads = HEADS;
    s->layer.kv_heads = KV_HEADS;
    s->layer.head_dim = DIM;
    s->layer.window_left = WINDOW;
    s->layer.row_tile = 16;
    s->layer.workers = 3;
    s->layer.isa = isa;
    s->layer.ring = ring;
    s->layer.page_size = page_size;
    s->k = floats((size_t)N * KEYS * ROW);
    s->v = floats((size_t)N * KEYS * ROW);
    s->io.k = s->k;
    s->io.v = s->v;
    s->io.o = s->o;
    if (page_size) {
        for (i = 0; i < N * COLUMNS; i++) s->table[i] = (i * 7 + 3) % (N * COLUMNS); /* 7 and 44 share no factor */
        s->io.page_table = s->table;
        s->io.page_table_row = COLUMNS;
        s->io.pages = N * COLUMNS;
    } else if (!ring) {
        s->io.k_page = (int64_t)KEYS * ROW;
        s->io.v_page = (int64_t)KEYS * ROW;
    }
}

/* The table as attn_meta_make lays it out: page_table_row 0 means a column for every page of max_kv_len keys. */
static void widen_table(store *s) {
    int i;
    for (i = 0; i < N * WIDTH; i++) {
        int row = i / WIDTH, column = i % WIDTH;
        s->wide_table[i] = column < COLUMNS ? s->table[row * COLUMNS + column] : -1;
    }
    s->io.page_table = s->wide_table;
    s->io.page_table_row = 0;
}

static void close_store(store *s) {
    free(s->k);
    free(s->v);
    free(s->plan_mem);
    free(s->exec_mem);
}

/* New rows of every request: data from (seed, request, position) only. */
static void draw(float *x, uint64_t seed, int i, int32_t first, int32_t rows, int width) {
    int32_t r;
    for (r = 0; r < rows; r++) {
        test_rng rng = { 0 };
        int c;
        rng.state = seed * 1000003 + (uint64_t)i * 10007 + (uint64_t)(first + r);
        for (c = 0; c < width; c++) x[r * width + c] = test_uniform(&rng);
    }
}

/* Appends `rows` rows to both requests and attends. */
static void step(store *s, const int32_t *kv_before, int32_t rows, int phase, uint64_t seed) {
    static float q[N * MAX_ROWS * HEADS * DIM], k[N * MAX_ROWS * ROW], v[N * MAX_ROWS * ROW];
    int32_t q_len[N], kv_len[N], phases[N], i;
    attn_batch batch;
    attn_plan plan;
    attn_error error;
    attn_exec exec;
    size_t bytes;
    memset(&batch, 0, sizeof batch);
    memset(&exec, 0, sizeof exec);
    for (i = 0; i < N; i++) {
        q_len[i] = rows;
        kv_len[i] = kv_before[i] + rows;
        phases[i] = phase;
        draw(q + i * rows * HEADS * DIM, seed + 1, i, kv_before[i], rows, HEADS * DIM);
        draw(k + i * rows * ROW, seed + 2, i, kv_before[i], rows, ROW);
        draw(v + i * rows * ROW, seed + 3, i, kv_before[i], rows, ROW);
    }
    batch.n = N;
    batch.q_len = q_len;
    batch.kv_len = kv_len;
    batch.phase = phases;
    batch.max_q_len = MAX_ROWS;
    batch.max_kv_len = KEYS;
    batch.max_rows = N * MAX_ROWS;
    s->io.q = q;
    bytes = attn_plan_bytes(&batch, &s->layer);
    if (!s->plan_mem) s->plan_mem = malloc(bytes);
    CHECK(!attn_plan_make(&plan, &batch, &s->layer, s->plan_mem, bytes, &error), "%s", error.text);
    exec.bytes = attn_exec_bytes(&plan, 1);
    if (!s->exec_mem) s->exec_mem = malloc(exec.bytes);
    exec.mem = s->exec_mem;
    memset(s->o, 0, sizeof s->o);
    CHECK(!attn_append(&plan, &s->layer, &s->io, k, v, &error), "%s", error.text);
    CHECK(!attn_forward(&plan, &s->layer, &s->io, &exec, &error), "%s", error.text);
}

static void check_equal(const store *a, const store *b, int32_t rows, int32_t keys) {
    size_t bytes = sizeof(float) * N * (size_t)rows * HEADS * DIM;
    CHECK(!memcmp(a->o, b->o, bytes), "%d rows at %d keys differ", rows, keys);
    CHECK(a->o[0] == a->o[0] && a->o[0] != 0, "no result");
}

/* Chunks of many sizes in both phases, until the ring has turned more than twice. */
static void run_steps(int page_size, int isa) {
    static const int32_t sizes[] = { 40, 1, 17, 1, 33, 2, 40, 40, 5 };
    int32_t kv[N] = { 0, 0 };
    store ring, all, wide;
    int i;
    open_store(&ring, RING, page_size, isa);
    open_store(&all, 0, 0, isa);
    open_store(&wide, RING, page_size, isa);
    if (page_size) widen_table(&wide);
    for (i = 0; kv[0] + MAX_ROWS <= KEYS; i++) {
        int32_t rows = sizes[i % 9];
        step(&ring, kv, rows, i & 1, 5);
        step(&all, kv, rows, i & 1, 5);
        step(&wide, kv, rows, i & 1, 5);
        check_equal(&ring, &all, rows, kv[0]);
        check_equal(&wide, &all, rows, kv[0]);
        kv[0] += rows;
        kv[1] += rows;
    }
    CHECK(kv[0] > 2 * RING, "the ring turned %d times only", kv[0] / RING);
    close_store(&ring);
    close_store(&all);
    close_store(&wide);
}

static void each(void (*fn)(int page_size, int isa)) {
    int isa;
    for (isa = ATTN_ISA_SCALAR; isa; isa = next_isa(isa)) {
        fn(0, isa);
        fn(PAGE, isa);
    }
}

static void test_steps(void) {
    each(run_steps);
}

/* Drafts of up to MAX_ROWS rows are verified, some are taken back and others appended in their place: the cache is then
   as if the rejected rows had never been there. */
static void run_rollback(int page_size, int isa) {
    test_rng r = { 9 };
    int32_t kv[N] = { 0, 0 };
    store drafted, plain;
    open_store(&drafted, RING, page_size, isa);
    open_store(&plain, RING, page_size, isa);
    while (kv[0] + MAX_ROWS <= KEYS) {
        int32_t draft = test_range(&r, 1, MAX_ROWS), kept = test_range(&r, 1, draft);
        step(&drafted, kv, draft, ATTN_DECODE, 77); /* other content: all of it is rolled back */
        step(&drafted, kv, kept, ATTN_DECODE, 5);
        step(&plain, kv, kept, ATTN_DECODE, 5);
        check_equal(&drafted, &plain, kept, kv[0]);
        kv[0] += kept;
        kv[1] += kept;
    }
    close_store(&drafted);
    close_store(&plain);
}

static void test_rollback(void) {
    each(run_rollback);
}

int main(int argc, char **argv) {
    test.only = argc > 1 ? argv[1] : NULL;
    test_run("a ring cache has the bits of a whole cache", test_steps);
    test_run("features trap 7: append, roll back, append again = never drafted", test_rollback);
    return test_close("ring");
}
