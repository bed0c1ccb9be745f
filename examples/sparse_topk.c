/* sparse_topk.c - sparse attention: a small indexer scores all keys, and attention reads only the best of them.

   Shows   the pipeline of DeepSeek's sparse attention: attn_meta_make for the page table and the index arrays,
           attn_index_score over the indexer's own small cache (e4m3 keys without values), attn_topk, and attn_forward
           with mask ATTN_TOPK; beside it dense attention over the same paged f16 cache. A few needles hide in every
           context: keys that answer the question of the new rows.
   Build   cc -I. examples/sparse_topk.c -o sparse_topk
   Result  exit status 0 if all needles are found, the error against dense attention stays within what the keys left
           out can make it, and lists of all keys give the bits of dense attention, else 1. */
#define ATTN_IMPLEMENTATION
#include "attn.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    REQUESTS = 4,
    MAX_KEYS = 8192,
    KEYS = MAX_KEYS + 4096 + 1500 + 300, /* of all requests */
    MAX_Q_LEN = 4,
    ROWS = 1 + 4 + 1 + 2,
    TOPK = 512,
    NEEDLES = 8,
    HEADS = 16,
    KV_HEADS = 2,
    HEAD_DIM = 128,
    Q_WIDTH = HEADS * HEAD_DIM,
    KV_WIDTH = KV_HEADS * HEAD_DIM,
    INDEX_HEADS = 4,
    INDEX_DIM = 32,
    INDEX_WIDTH = INDEX_HEADS * INDEX_DIM,
    TOPIC = 16, /* what a key or a question is about, as a vector */
    PAGE = 64,
    COLUMNS = MAX_KEYS / PAGE,
    PAGES = 256, /* a power of 2; the requests need 224 of them */
    REPEAT = 20  /* of the measurements */
};

/* New rows (decoding, or drafts that are verified) and keys, these rows included, of each request. */
static const int32_t q_len[REQUESTS] = { 1, 4, 1, 2 };
static const int32_t kv_len[REQUESTS] = { MAX_KEYS, 4096, 1500, 300 };
static const int32_t phase[REQUESTS] = { ATTN_DECODE, ATTN_DECODE, ATTN_DECODE, ATTN_DECODE };

/* The caches, filled by attn_append, and what goes in. */
static uint16_t k_cache[PAGES * PAGE * KV_WIDTH], v_cache[PAGES * PAGE * KV_WIDTH];
static uint8_t index_cache[PAGES * PAGE * INDEX_DIM];
static float new_k[KEYS * KV_WIDTH], new_v[KEYS * KV_WIDTH], new_index[KEYS * INDEX_DIM];
static int32_t req_to_token[REQUESTS * MAX_KEYS]; /* the cache slot of each token, as engines keep it */

/* The rows of the step. */
static float q[ROWS * Q_WIDTH], index_q[ROWS * INDEX_WIDTH], index_weights[ROWS * INDEX_HEADS];
static float scores[ROWS * KEYS]; /* one matrix over the keys of all requests, laid end to end */
static int32_t lists[ROWS * TOPK], whole_lists[ROWS * MAX_KEYS];

typedef struct output {
    float o[ROWS * Q_WIDTH];
    float lse[ROWS * HEADS];
} output;

static output dense, sparse, whole;

/* A kind of layer with the plan of this step and its memory. */
typedef struct work {
    attn_layer layer;
    attn_plan plan;
    void *plan_mem;
    attn_exec exec;
} work;

/* ---- data ------------------------------------------------------------------------------------------------------- */

/* -1 .. 1 */
static float hashed(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t h = a * 0x9E3779B1u ^ b * 0x85EBCA77u ^ c * 0xC2B2AE3Du;
    h = (h ^ (h >> 15)) * 0x2C1B3C6Du;
    h = (h ^ (h >> 12)) * 0x297A2D39u;
    return (float)((h ^ (h >> 15)) >> 8) / 8388608.0f - 1.0f;
}

/* Keys 3, 3 + stride, ... of a request are its needles. */
static int32_t needle(int request, int n) {
    return 3 + n * ((kv_len[request] - 10) / NEEDLES);
}

static int is_needle(int request, int32_t key) {
    int stride = (kv_len[request] - 10) / NEEDLES;
    return key >= 3 && (key - 3) % stride == 0 && (key - 3) / stride < NEEDLES;
}

/* What a key is about: anything, or just what its request asks for. */
static void topic_of(int request, int32_t key, float *topic) {
    for (uint32_t c = 0; c < TOPIC; c++) {
        uint32_t row = is_needle(request, key) ? 0 : (uint32_t)key + 1;
        topic[c] = hashed((uint32_t)request + 1, row, c);
    }
}

/* A projection: vector c of head `head` takes its topic's element c mod TOPIC, with a sign, and a little noise. */
static void project(const float *topic, int matrix, int head, float gain, uint32_t seed, float *x, int width) {
    for (int c = 0; c < width; c++) {
        float sign = hashed((uint32_t)matrix, (uint32_t)head, (uint32_t)c) < 0 ? -1.0f : 1.0f;
        float noise = hashed((uint32_t)(matrix + 100 * head), seed, (uint32_t)c);
        x[c] = gain * (sign * topic[c % TOPIC] + 0.25f * noise);
    }
}

/* The model's keys and the indexer's keys are two projections of the same topic, with noise of their own. So are the
   queries, which share the matrices with the keys. */
static void fill_keys(void) {
    uint32_t key = 0;
    for (int i = 0; i < REQUESTS; i++) {
        for (int32_t p = 0; p < kv_len[i]; p++, key++) {
            float topic[TOPIC];
            topic_of(i, p, topic);
            for (int g = 0; g < KV_HEADS; g++) {
                project(topic, 21, g, 1.0f, key + 1, new_k + key * KV_WIDTH + (uint32_t)g * HEAD_DIM, HEAD_DIM);
            }
            project(topic, 22, 0, 1.0f, key + 1, new_index + key * INDEX_DIM, INDEX_DIM);
            for (uint32_t c = 0; c < KV_WIDTH; c++) {
                new_v[key * KV_WIDTH + c] = hashed(23, key, c);
            }
        }
    }
}

static void fill_rows(void) {
    uint32_t row = 0;
    for (int i = 0; i < REQUESTS; i++) {
        float topic[TOPIC];
        topic_of(i, needle(i, 0), topic);
        for (int32_t j = 0; j < q_len[i]; j++, row++) {
            for (int h = 0; h < HEADS; h++) {
                project(topic, 21, h / (HEADS / KV_HEADS), 3.2f, 900000 + row * HEADS + (uint32_t)h,
                        q + row * Q_WIDTH + (uint32_t)h * HEAD_DIM, HEAD_DIM);
            }
            for (int h = 0; h < INDEX_HEADS; h++) {
                project(topic, 22, 0, 1.0f, 990000 + row * INDEX_HEADS + (uint32_t)h,
                        index_q + row * INDEX_WIDTH + (uint32_t)h * INDEX_DIM, INDEX_DIM);
                index_weights[row * INDEX_HEADS + (uint32_t)h] = 1.0f + 0.5f * hashed(24, row, (uint32_t)h);
            }
        }
    }
}

/* Pages in an order that is nobody's; 77 is odd, so that no page comes twice. */
static void fill_pages(void) {
    int32_t taken = 0;
    for (int i = 0; i < REQUESTS; i++) {
        int32_t page = 0;
        for (int32_t p = 0; p < kv_len[i]; p++) {
            if (p % PAGE == 0) page = taken++ * 77 % PAGES;
            req_to_token[i * MAX_KEYS + p] = page * PAGE + p % PAGE;
        }
    }
}

/* ---- the pipeline ----------------------------------------------------------------------------------------------- */

static int report(int status, const char *where, const attn_error *err) {
    if (status) printf("%s: %s\n", where, err->text);
    return status;
}

static int open_work(work *w, const attn_layer *layer, const attn_batch *batch) {
    attn_error err;
    size_t bytes = attn_plan_bytes(batch, layer);
    memset(w, 0, sizeof *w);
    w->layer = *layer;
    w->plan_mem = malloc(bytes);
    if (report(attn_plan_make(&w->plan, batch, layer, w->plan_mem, bytes, &err), "plan", &err)) return 1;
    w->exec.bytes = attn_exec_bytes(&w->plan, 1);
    w->exec.mem = malloc(w->exec.bytes);
    return 0;
}

static void close_work(work *w) {
    free(w->plan_mem);
    free(w->exec.mem);
}

static attn_layer main_layer(attn_mask mask, int32_t topk) {
    attn_layer layer = { .heads = HEADS, .kv_heads = KV_HEADS, .head_dim = HEAD_DIM, .kv_type = ATTN_F16 };
    layer.page_size = PAGE;
    layer.mask = mask;
    layer.topk = topk;
    layer.isa = (int32_t)attn_isa_detect();
    return layer;
}

/* ATTN_V_IN_K: the cache holds keys only, which is what an indexer has. */
static attn_layer index_layer(void) {
    attn_layer layer = { .heads = INDEX_HEADS, .kv_heads = 1, .head_dim = INDEX_DIM, .kv_type = ATTN_E4M3 };
    layer.flags = ATTN_V_IN_K;
    layer.scale = 1.0f;
    layer.page_size = PAGE;
    layer.isa = (int32_t)attn_isa_detect();
    return layer;
}

static attn_io main_io(const attn_meta *meta) {
    attn_io io = { .q = q, .k = k_cache, .v = v_cache, .page_table = meta->page_table, .pages = PAGES };
    return io; /* page_table_row = 0: ceil(max_kv_len / page_size), as attn_meta_make has it */
}

static attn_io index_io(const attn_meta *meta) {
    attn_io io = { .q = index_q, .k = index_cache, .page_table = meta->page_table, .pages = PAGES };
    return io; /* one page table serves both caches */
}

/* As a prompt would: all keys of all requests go into both caches. */
static int fill_caches(const attn_meta *meta) {
    attn_batch batch = { .n = REQUESTS, .q_len = kv_len, .kv_len = kv_len };
    attn_layer model = main_layer(ATTN_CAUSAL, 0), indexer = index_layer();
    attn_io io = main_io(meta), indexer_io = index_io(meta);
    attn_error err;
    work w;
    memset(k_cache, 0xFF, sizeof k_cache); /* NaN, in both types: what is not written must not matter */
    memset(v_cache, 0xFF, sizeof v_cache);
    memset(index_cache, 0xFF, sizeof index_cache);
    int failed = open_work(&w, &model, &batch) ||
                 report(attn_append(&w.plan, &model, &io, new_k, new_v, &err), "append", &err);
    close_work(&w);
    if (failed) return 1;
    failed = open_work(&w, &indexer, &batch) ||
             report(attn_append(&w.plan, &indexer, &indexer_io, new_index, NULL, &err), "append to the indexer", &err);
    close_work(&w);
    return failed;
}

/* Which keys shall each row attend to? Scores of all its keys, then the best of them. */
static int select_keys(const attn_meta *meta, work *indexer, int32_t topk, int32_t *list, clock_t *middle) {
    attn_io io = index_io(meta);
    attn_error err;
    int status = attn_index_score(&indexer->plan, &indexer->layer, &io, index_weights, meta->indexer_ks, scores,
                                  meta->keys, &indexer->exec, &err);
    *middle = clock();
    if (!status) {
        status = attn_topk(scores, meta->keys, meta->rows, meta->indexer_ks, meta->indexer_ke, topk, list, &err);
    }
    return report(status, "select", &err);
}

static int attend(const attn_meta *meta, work *w, const int32_t *list, output *out) {
    attn_io io = main_io(meta);
    attn_error err;
    io.o = out->o;
    io.lse = out->lse;
    io.topk = list;
    return report(attn_forward(&w->plan, &w->layer, &io, &w->exec, &err), "forward", &err);
}

/* ---- checks and report ------------------------------------------------------------------------------------------ */

static double distance(double a, double b) {
    return a < b ? b - a : a - b;
}

/* e^x for small x: the series of x / 1024, squared ten times. */
static double exponential(double x) {
    double t = x / 1024, y = 1 + t + t * t / 2 + t * t * t / 6;
    for (int i = 0; i < 10; i++) {
        y *= y;
    }
    return y;
}

/* What a request's rows got out of their lists. */
typedef struct result {
    int32_t keys;            /* in the list of the last row */
    int needles, lengths_ok, bound_ok;
    double mass, least_mass; /* of dense attention that the listed keys hold: mean, and the least of a row and head */
    double error;            /* largest distance of an output element from dense */
} result;

static int listed(const int32_t *list, int32_t key) {
    for (int n = 0; n < TOPK; n++) {
        if (list[n] == key) return 1;
    }
    return 0;
}

/* With m the mass of the listed keys, dense = m * sparse + (1 - m) * rest, where `sparse` and `rest` are means of
   values between -1 and 1: the two differ by at most 2 (1 - m). And lse is the log of the sum that m is a share of. */
static void compare_head(int row, int head, result *r) {
    double mass = exponential((double)sparse.lse[row * HEADS + head] - (double)dense.lse[row * HEADS + head]);
    for (int c = 0; c < HEAD_DIM; c++) {
        int at = row * Q_WIDTH + head * HEAD_DIM + c;
        double d = distance((double)sparse.o[at], (double)dense.o[at]);
        if (!(d <= r->error)) r->error = d;
        r->bound_ok &= d <= 2 * (1 - mass) + 1e-5;
    }
    r->mass += mass;
    if (!(mass >= r->least_mass)) r->least_mass = mass;
    r->bound_ok &= mass < 1 + 1e-5;
}

static result compare(const attn_meta *meta, int request, int first_row) {
    result r = { .lengths_ok = 1, .bound_ok = 1, .least_mass = 1 };
    for (int row = first_row; row < first_row + q_len[request]; row++) {
        const int32_t *list = lists + row * TOPK;
        r.keys = 0;
        for (int n = 0; n < TOPK; n++) {
            r.keys += list[n] >= 0;
        }
        r.lengths_ok &= r.keys == meta->sparse_len[row];
        for (int n = 0; n < NEEDLES; n++) {
            r.needles += listed(list, needle(request, n));
        }
        for (int h = 0; h < HEADS; h++) {
            compare_head(row, h, &r);
        }
    }
    r.mass /= q_len[request] * HEADS;
    return r;
}

/* Returns 1 if every request is as it should be. */
static int report_requests(const attn_meta *meta) {
    int ok = 1;
    printf("    keys  rows  listed  needles found  mass of dense (mean, least)  largest error\n");
    for (int i = 0, row = 0; i < REQUESTS; row += q_len[i], i++) {
        result r = compare(meta, i, row);
        int good = r.lengths_ok && r.bound_ok && r.needles == NEEDLES * q_len[i];
        size_t bytes = (size_t)q_len[i] * Q_WIDTH * sizeof *dense.o;
        int same = memcmp(dense.o + row * Q_WIDTH, sparse.o + row * Q_WIDTH, bytes) == 0;
        if (kv_len[i] <= TOPK) good &= same; /* the list is long enough for all */
        printf("  %6d  %4d  %6d  %7d of %2d  %14.2f %%  %6.2f %%  %15.1e%s%s\n", (int)kv_len[i], (int)q_len[i],
               (int)r.keys, r.needles, NEEDLES * (int)q_len[i], 100 * r.mass, 100 * r.least_mass, r.error,
               same ? ", same bits" : "", good ? "" : "  WRONG");
        ok &= good;
    }
    return ok;
}

/* Milliseconds of processor time. */
static double ms(clock_t from, clock_t to) {
    return 1000.0 * (double)(to - from) / CLOCKS_PER_SEC;
}

static double least(double a, double b) {
    return a < b ? a : b;
}

/* The best of several rounds, in which the ways take turns. */
static int measure(const attn_meta *meta, work *model, work *indexer, work *picked) {
    double full = 1e30, score = 1e30, topk = 1e30, few = 1e30;
    for (int n = 0; n < REPEAT; n++) {
        clock_t start = clock(), middle;
        if (attend(meta, model, NULL, &dense)) return 1;
        clock_t after_dense = clock();
        if (select_keys(meta, indexer, TOPK, lists, &middle)) return 1;
        clock_t selected = clock();
        if (attend(meta, picked, lists, &sparse)) return 1;
        full = least(full, ms(start, after_dense));
        score = least(score, ms(after_dense, middle));
        topk = least(topk, ms(middle, selected));
        few = least(few, ms(selected, clock()));
    }
    printf("\n  dense   %7.3f ms\n", full);
    printf("  sparse  %7.3f ms = %.3f indexer + %.3f top-k + %.3f attention\n", score + topk + few, score, topk, few);
    printf("  dense / sparse = %.2f; attention alone %.2f\n\n", full / (score + topk + few), full / few);
    return 0;
}

static int run(const attn_batch *batch, const attn_meta *meta) {
    attn_layer dense_layer = main_layer(ATTN_CAUSAL, 0), sparse_layer = main_layer(ATTN_TOPK, TOPK);
    attn_layer whole_layer = main_layer(ATTN_TOPK, MAX_KEYS), indexer_layer = index_layer();
    work model, indexer, picked, all;
    clock_t middle;
    if (fill_caches(meta)) return 1;
    if (open_work(&model, &dense_layer, batch) || open_work(&indexer, &indexer_layer, batch) ||
        open_work(&picked, &sparse_layer, batch) || open_work(&all, &whole_layer, batch)) {
        return 1;
    }
    memset(&dense, 0xFF, sizeof dense); /* NaN: a row that is not written cannot pass */
    memset(&sparse, 0xEE, sizeof sparse);
    memset(&whole, 0xEE, sizeof whole);
    if (measure(meta, &model, &indexer, &picked) || select_keys(meta, &indexer, MAX_KEYS, whole_lists, &middle) ||
        attend(meta, &all, whole_lists, &whole)) {
        return 1;
    }
    int good = report_requests(meta);
    int same = memcmp(&dense, &whole, sizeof dense) == 0;
    printf("\nneedles, lengths and errors are as they should be:         %s\n", good ? "yes" : "NO");
    printf("a list of %d holds every key; it and dense, same bits: %s\n", MAX_KEYS, same ? "yes" : "NO");
    close_work(&model);
    close_work(&indexer);
    close_work(&picked);
    close_work(&all);
    return !(good && same);
}

int main(void) {
    attn_batch batch = { .n = REQUESTS, .q_len = q_len, .kv_len = kv_len, .phase = phase };
    attn_meta_input input = { .req_to_token = req_to_token, .req_to_token_row = MAX_KEYS, .requests = REQUESTS };
    int32_t want = ATTN_META_PAGE_TABLE | ATTN_META_INDEXER | ATTN_META_SPARSE;
    attn_meta meta;
    attn_error err;
    input.page_size = PAGE;
    input.topk = TOPK;
    fill_keys();
    fill_rows();
    fill_pages();
    size_t bytes = attn_meta_bytes(&batch, &input, want);
    void *mem = malloc(bytes);
    printf("%d rows of %d requests; each attends to the %d best of its keys\n", ROWS, REQUESTS, TOPK);
    int failed = report(attn_meta_make(&meta, &batch, &input, want, mem, bytes, &err), "meta", &err) ||
                 run(&batch, &meta);
    free(mem);
    return failed;
}
