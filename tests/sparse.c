/* sparse.c - sparse attention from scores to output: attn_index_score against a double reference, attn_topk against a
   sort, and both followed by attn_forward with ATTN_TOPK, which equals dense attention where the lists hold every key
   and an oracle in double where they do not. The data depend on (content, position) only, so that one token has the
   same bytes in every batch. */
#include "../attn.h"
#include "isas.h"
#include "test.h"

#include <math.h>

enum { MOST = 10, GUARD = 64 };
enum { RAGGED, PADDED, PAGED };
enum { OF_Q = 1, OF_K, OF_V, OF_WEIGHT, OF_SCALE };

static const uint32_t canary = 0x7FC0FFEE;
static const uint32_t minus_infinity = 0xFF800000;

static void *allocate(size_t bytes) {
    void *p = malloc(bytes ? bytes : 1);
    if (!p) abort();
    memset(p, 0xFF, bytes);
    return p;
}

static uint32_t bits_of(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static void mark(float *x, size_t count) {
    size_t i;
    for (i = 0; i < count; i++) memcpy(x + i, &canary, sizeof canary);
}

/* ---- numbers ---------------------------------------------------------------------------------------------------- */

static size_t width_of(attn_type type) {
    return type == ATTN_F32 ? 4 : type <= ATTN_BF16 ? 2 : 1;
}

static double decode_small(unsigned code, int mantissa, int bias, int infinities) {
    unsigned exponent = code >> mantissa, fraction = code & ((1u << mantissa) - 1);
    if (infinities && exponent == (unsigned)(2 * bias + 1)) return fraction ? (double)NAN : HUGE_VAL;
    if (!exponent) return ldexp(fraction, 1 - bias - mantissa);
    return ldexp(fraction + (1u << mantissa), (int)exponent - bias - mantissa);
}

static double decode(attn_type type, const unsigned char *at) {
    uint16_t half;
    float x;
    double a;
    if (type == ATTN_F32) {
        memcpy(&x, at, sizeof x);
        return (double)x;
    }
    if (type == ATTN_INT8) return at[0] < 128 ? at[0] : at[0] - 256;
    if (type == ATTN_E4M3) {
        a = (at[0] & 127) == 127 ? (double)NAN : decode_small(at[0] & 127u, 3, 7, 0);
        return at[0] & 128 ? -a : a;
    }
    if (type == ATTN_E5M2) {
        a = decode_small(at[0] & 127u, 2, 15, 1);
        return at[0] & 128 ? -a : a;
    }
    memcpy(&half, at, sizeof half);
    a = decode_small(half & 0x7FFFu, type == ATTN_F16 ? 10 : 7, type == ATTN_F16 ? 15 : 127, 1);
    return half & 0x8000 ? -a : a;
}

/* Random elements as codes of the type, about -2 .. 2 (int8: -127 .. 127), and what they mean. */
static void draw(attn_type type, test_rng *r, int count, unsigned char *bytes, double *real) {
    int i;
    for (i = 0; i < count; i++) {
        unsigned char *at = bytes + (size_t)i * width_of(type);
        float x = test_uniform(r);
        uint32_t word = bits_of(x);
        if (type == ATTN_F32) memcpy(at, &x, sizeof x);
        if (type == ATTN_BF16) word >>= 16;
        if (type == ATTN_F16) word = (word >> 16 & 0x8000) | 13u << 10 | (word & 0x7FF); /* 0.25 .. 1 */
        if (type == ATTN_BF16 || type == ATTN_F16) {
            uint16_t half = (uint16_t)word;
            memcpy(at, &half, sizeof half);
        }
        if (type == ATTN_E4M3) at[0] = (unsigned char)((test_next(r) & 0x80) | test_next(r) % 64);
        if (type == ATTN_E5M2) at[0] = (unsigned char)((test_next(r) & 0x80) | test_next(r) % 64);
        if (type == ATTN_INT8) at[0] = (unsigned char)test_range(r, -127, 127);
        real[i] = decode(type, at);
    }
}

static test_rng rng_of(int what, int content, int token) {
    test_rng r;
    r.state = (uint64_t)what << 56 ^ (uint64_t)content << 32 ^ (uint64_t)token * 1000003u;
    test_next(&r);
    return r;
}

/* ---- an indexer call -------------------------------------------------------------------------------------------- */

typedef struct index_spec {
    attn_layer layer;
    int n;
    int32_t q_len[MOST], kv_len[MOST], prefix[MOST], content[MOST];
    int layout, gaps;               /* gaps: unused elements after heads, rows and pages */
    int one_matrix;                 /* ks: column of key 0 among the keys of all requests; else NULL */
    int lanes, more_keys;           /* more_keys: capacity above the longest request */
} index_spec;

typedef struct index_case {
    index_spec spec;
    int rows, columns, first_row[MOST + 1];
    int64_t keys, first_key[MOST + 1];
    int32_t phase[MOST];
    attn_batch batch;
    attn_layer layer;
    attn_io io;
    attn_plan plan;
    attn_exec exec;
    attn_error error;
    uint64_t lane_order;
    unsigned char *q, *k;
    float *k_scale, *weights, *scores, *score_memory;
    int32_t *table, *ks;
    int64_t score_row, k_page, k_row, scale_page;
    size_t score_count;
    double *q_real, *k_real;        /* [row][head][dim], [request][key][dim] scaled */
} index_case;

static void spec_defaults(index_spec *s) {
    memset(s, 0, sizeof *s);
    s->layer.heads = 8;
    s->layer.kv_heads = 1;
    s->layer.head_dim = 32;
    s->layer.row_tile = 16;
    s->layer.workers = 3;
    s->layer.isa = ATTN_ISA_SCALAR;
}

static void add_request(index_spec *s, int32_t content, int32_t q_len, int32_t kv_len) {
    s->content[s->n] = content;
    s->q_len[s->n] = q_len;
    s->kv_len[s->n] = kv_len;
    s->prefix[s->n] = kv_len / 2;
    s->n++;
}

/* Position of row 0 of a request, which names its data. */
static int position_of(const index_case *c, int i, int row) {
    return c->spec.kv_len[i] - c->spec.q_len[i] + row;
}

static int64_t longest(const index_spec *s) {
    int64_t most = 0;
    int i;
    for (i = 0; i < s->n; i++) most = s->kv_len[i] > most ? s->kv_len[i] : most;
    return most;
}

/* Slot of a key in the cache, in keys of k_row elements from the start of its page or request. */
static unsigned char *key_at(const index_case *c, int i, int64_t key, int64_t *scale) {
    int64_t page = c->spec.layer.page_size, at, slot;
    if (c->spec.layout == PAGED) {
        int64_t id = c->table[i * c->columns + key / page];
        at = id * c->k_page + key % page * c->k_row;
        slot = id * page + key % page;
    } else if (c->spec.layout == PADDED) {
        at = i * c->k_page + key * c->k_row;
        slot = i * c->scale_page + key;
    } else {
        slot = c->first_key[i] + key;
        at = slot * c->k_row;
    }
    *scale = slot;
    return c->k + (size_t)at * width_of(c->spec.layer.kv_type);
}

static void open_table(index_case *c) {
    int64_t page = c->spec.layer.page_size;
    int i, column, used = 0, pages;
    c->columns = (int)((c->batch.max_kv_len + page - 1) / page);
    c->table = (int32_t *)allocate(sizeof(int32_t) * (size_t)(c->spec.n * c->columns + 1));
    for (i = 0; i < c->spec.n * c->columns; i++) c->table[i] = INT32_MAX;
    for (i = 0; i < c->spec.n; i++) used += (int)((c->spec.kv_len[i] + page - 1) / page);
    pages = used + 3;
    for (i = 0, used = 0; i < c->spec.n; i++) {
        for (column = 0; column < (int)((c->spec.kv_len[i] + page - 1) / page); column++) {
            c->table[i * c->columns + column] = pages - 1 - used++; /* descending, so not the order of the keys */
        }
    }
    c->io.page_table = c->table;
    c->io.pages = pages;
}

static void open_cache(index_case *c) {
    const index_spec *s = &c->spec;
    int64_t gap = s->gaps ? 5 : 0, slots;
    c->k_row = s->layer.head_dim + gap;
    c->k_page = 0;
    if (s->layout == PAGED) c->k_page = s->layer.page_size * c->k_row + gap;
    if (s->layout == PADDED) c->k_page = (longest(s) + 2) * c->k_row + gap;
    c->scale_page = s->layout == PAGED ? s->layer.page_size : c->k_page / c->k_row;
    if (s->layout == PAGED) open_table(c);
    slots = s->layout == PAGED ? (int64_t)c->io.pages * s->layer.page_size
            : s->layout == PADDED ? s->n * c->scale_page
                                  : c->keys;
    c->k = (unsigned char *)allocate(((size_t)(slots * (c->k_row + gap)) + 64) * width_of(s->layer.kv_type));
    c->k_scale = (float *)allocate(sizeof(float) * (size_t)(slots + 8));
    c->io.k = c->k;
    if (s->gaps) c->io.k_row = c->k_row;
    if (s->gaps || s->layout == PADDED) c->io.k_page = c->k_page;
    if (s->layer.kv_type == ATTN_INT8 || s->layer.kv_type == ATTN_E4M3) c->io.k_scale = c->k_scale;
}

static double scale_at(index_case *c, int i, int64_t key, int64_t slot) {
    test_rng r = rng_of(OF_SCALE, c->spec.content[i], (int)key);
    float scale = 0.01f + 0.005f * test_uniform(&r);
    float tensor = 0.37f, request = 0.25f + 0.03f * (float)c->spec.content[i];
    if (!c->io.k_scale) return 1;
    if (c->spec.layer.scale_kind == ATTN_SCALE_PER_TENSOR || c->spec.layer.scale_kind == ATTN_SCALE_PER_HEAD) {
        c->k_scale[0] = tensor;
        return (double)tensor;
    }
    if (c->spec.layer.scale_kind == ATTN_SCALE_PER_REQUEST) {
        c->k_scale[i] = request;
        return (double)request;
    }
    c->k_scale[slot] = scale;
    return (double)scale;
}

static void fill_keys(index_case *c) {
    int dim = c->spec.layer.head_dim, i, d;
    int64_t key;
    c->k_real = (double *)allocate(sizeof(double) * (size_t)(c->keys * dim));
    for (i = 0; i < c->spec.n; i++) {
        for (key = 0; key < c->spec.kv_len[i]; key++) {
            double *real = c->k_real + (c->first_key[i] + key) * dim, scale;
            test_rng r = rng_of(OF_K, c->spec.content[i], (int)key);
            int64_t slot;
            unsigned char *at = key_at(c, i, key, &slot);
            draw(c->spec.layer.kv_type, &r, dim, at, real);
            scale = scale_at(c, i, key, slot);
            for (d = 0; d < dim; d++) real[d] *= scale;
        }
    }
}

static void fill_rows(index_case *c) {
    const attn_layer *l = &c->spec.layer;
    int64_t gap = c->spec.gaps ? 3 : 0, head = l->head_dim + gap, row = l->heads * head + 2 * gap;
    int i, j, h;
    c->q = (unsigned char *)allocate((size_t)(row * (c->rows + 1)) * width_of(l->q_type));
    c->q_real = (double *)allocate(sizeof(double) * (size_t)(c->rows * l->heads * l->head_dim));
    c->weights = (float *)allocate(sizeof(float) * (size_t)(c->rows * l->heads));
    for (i = 0; i < c->spec.n; i++) {
        for (j = 0; j < c->spec.q_len[i]; j++) {
            int64_t at = c->first_row[i] + j;
            test_rng q = rng_of(OF_Q, c->spec.content[i], position_of(c, i, j));
            test_rng w = rng_of(OF_WEIGHT, c->spec.content[i], position_of(c, i, j));
            for (h = 0; h < l->heads; h++) {
                draw(l->q_type, &q, l->head_dim, c->q + (size_t)(at * row + h * head) * width_of(l->q_type),
                     c->q_real + (at * l->heads + h) * l->head_dim);
                c->weights[at * l->heads + h] = test_uniform(&w) * 0.7f + 0.3f;
            }
        }
    }
    c->io.q = c->q;
    if (!gap) return;
    c->io.q_row = row;
    c->io.q_head = head;
}

/* Runs the lanes one after another in a drawn order. */
static void lanes_in_disorder(void *user, int lanes, void (*fn)(void *ctx, int lane), void *ctx) {
    test_rng r;
    int order[16], i;
    r.state = *(uint64_t *)user;
    if (lanes > 16) abort();
    for (i = 0; i < lanes; i++) order[i] = i;
    for (i = lanes - 1; i > 0; i--) {
        int j = test_range(&r, 0, i), t = order[i];
        order[i] = order[j];
        order[j] = t;
    }
    for (i = 0; i < lanes; i++) fn(ctx, order[i]);
}

static void open_scores(index_case *c) {
    int i, j;
    c->score_row = (c->spec.one_matrix ? c->keys : longest(&c->spec)) + 3;
    c->score_count = 2 * GUARD + (size_t)(c->score_row * c->rows);
    c->score_memory = (float *)allocate(sizeof(float) * c->score_count);
    c->scores = c->score_memory + GUARD;
    mark(c->score_memory, c->score_count);
    c->ks = NULL;
    if (!c->spec.one_matrix) return;
    c->ks = (int32_t *)allocate(sizeof(int32_t) * (size_t)(c->rows + 1));
    for (i = 0; i < c->spec.n; i++) {
        for (j = 0; j < c->spec.q_len[i]; j++) c->ks[c->first_row[i] + j] = (int32_t)c->first_key[i];
    }
}

static void open_index(index_case *c, const index_spec *s) {
    int i;
    memset(c, 0, sizeof *c);
    c->spec = *s;
    c->spec.layer.page_size = s->layout == PAGED ? s->layer.page_size : 0;
    c->layer = c->spec.layer;
    for (i = 0; i < s->n; i++) {
        c->first_row[i + 1] = c->first_row[i] + s->q_len[i];
        c->first_key[i + 1] = c->first_key[i] + s->kv_len[i];
        c->phase[i] = ATTN_DECODE;
    }
    c->rows = c->first_row[s->n];
    c->keys = c->first_key[s->n];
    c->batch.n = s->n;
    c->batch.q_len = c->spec.q_len;
    c->batch.kv_len = c->spec.kv_len;
    c->batch.prefix = c->spec.prefix;
    c->batch.phase = c->phase;
    c->batch.max_kv_len = (int32_t)longest(s) + s->more_keys;
    open_cache(c);
    fill_keys(c);
    fill_rows(c);
    open_scores(c);
    c->lane_order = 99;
    c->exec.lanes = s->lanes;
    c->exec.user = &c->lane_order;
    c->exec.parallel_for = s->lanes > 1 ? lanes_in_disorder : NULL;
}

static void close_index(index_case *c) {
    free(c->q);
    free(c->k);
    free(c->k_scale);
    free(c->weights);
    free(c->score_memory);
    free(c->table);
    free(c->ks);
    free(c->q_real);
    free(c->k_real);
    free(c->plan.words);
    free(c->exec.mem);
}

static int plan_index(index_case *c) {
    size_t bytes = attn_plan_bytes(&c->batch, &c->layer);
    void *mem = allocate(bytes);
    int status;
    free(c->plan.words);
    free(c->exec.mem);
    c->exec.mem = NULL;
    status = attn_plan_make(&c->plan, &c->batch, &c->layer, mem, bytes, &c->error);
    CHECK(status == ATTN_OK, "attn_plan_make: %s", status ? c->error.text : "");
    if (status) {
        free(mem);
        c->plan.words = NULL;
        return status;
    }
    c->exec.bytes = attn_exec_bytes(&c->plan, c->exec.lanes);
    c->exec.mem = allocate(c->exec.bytes);
    return status;
}

static int score_index(index_case *c) {
    return attn_index_score(&c->plan, &c->layer, &c->io, c->weights, c->ks, c->scores, c->score_row, &c->exec,
                            &c->error);
}

static int plan_and_score(index_case *c) {
    int status = plan_index(c);
    if (status) return status;
    status = score_index(c);
    CHECK(status == ATTN_OK, "attn_index_score: %s", status ? c->error.text : "");
    return status;
}

/* ---- the reference of a score ----------------------------------------------------------------------------------- */

/* Keys below the horizon are written, those in a window are scored. */
static int64_t horizon_of(const index_case *c, int i, int j) {
    const attn_layer *l = &c->spec.layer;
    int64_t position = position_of(c, i, j), end = position + 1;
    if (l->mask == ATTN_FULL) end = c->spec.kv_len[i];
    if (l->mask == ATTN_PREFIX && end < c->spec.prefix[i]) end = c->spec.prefix[i];
    if (l->mask == ATTN_BLOCK) end = position - j + (int64_t)l->chunk * (j / l->chunk + 1);
    return end < c->spec.kv_len[i] ? end : c->spec.kv_len[i];
}

static int sees(const index_case *c, int i, int j, int64_t key) {
    const attn_layer *l = &c->spec.layer;
    int64_t position = position_of(c, i, j);
    if (l->mask == ATTN_CAUSAL && l->chunk && key / l->chunk != position / l->chunk) return 0;
    if (key < l->sink_keys) return 1;
    if (l->window_left && position - key >= l->window_left) return 0;
    return !(l->mask != ATTN_CAUSAL && l->window_right && key - position >= l->window_right);
}

/* The score, and the most that roundings of f32 can add up to in any order of summation. */
static double reference(const index_case *c, int i, int row, int64_t key, double *bound) {
    const attn_layer *l = &c->spec.layer;
    const double *k = c->k_real + (c->first_key[i] + key) * l->head_dim;
    double scale = l->scale != 0 ? (double)l->scale : 1 / sqrt(l->head_dim);
    double sum = 0, products = 0, terms = 0;
    int h, d;
    for (h = 0; h < l->heads; h++) {
        const double *q = c->q_real + ((int64_t)row * l->heads + h) * l->head_dim;
        double weight = (double)c->weights[(int64_t)row * l->heads + h], dot = 0, reach = 0;
        for (d = 0; d < l->head_dim; d++) {
            dot += q[d] * k[d];
            reach += fabs(q[d] * k[d]);
        }
        products += fabs(weight * scale) * reach;
        if (scale * dot <= 0) continue;
        sum += weight * scale * dot;
        terms += fabs(weight * scale * dot);
    }
    *bound = ldexp((l->head_dim + 8) * products + (l->heads + 4) * terms, -24) + 1e-30;
    return sum;
}

static void check_score_row(index_case *c, int i, int j, unsigned char *written) {
    int64_t first = c->spec.one_matrix ? c->first_key[i] : 0, row = c->first_row[i] + j, key;
    for (key = 0; key < horizon_of(c, i, j); key++) {
        int64_t at = row * c->score_row + first + key;
        float got = c->scores[at];
        double bound, want;
        written[at] = 1;
        if (!sees(c, i, j, key)) {
            CHECK(bits_of(got) == minus_infinity, "request %d, row %d, hidden key %d: %g", i, j, (int)key,
                  (double)got);
            continue;
        }
        want = reference(c, i, (int)row, key, &bound);
        CHECK(fabs((double)got - want) <= bound, "request %d, row %d, key %d: %.9g, not %.9g (room %.2g)", i, j,
              (int)key, (double)got, want, bound);
    }
}

/* Every score, and the canaries of all that is not one. */
static void check_scores(index_case *c) {
    unsigned char *written = (unsigned char *)allocate((size_t)(c->score_row * c->rows));
    int64_t at;
    int i, j;
    memset(written, 0, (size_t)(c->score_row * c->rows));
    for (i = 0; i < c->spec.n; i++) {
        for (j = 0; j < c->spec.q_len[i]; j++) check_score_row(c, i, j, written);
    }
    for (at = -GUARD; at < c->score_row * c->rows + GUARD; at++) {
        if (at >= 0 && at < c->score_row * c->rows && written[at]) continue;
        CHECK(bits_of(c->scores[at]) == canary, "row %d, column %d was written", (int)(at / c->score_row),
              (int)(at % c->score_row));
    }
    free(written);
}

static void run_index(const index_spec *s) {
    index_case c;
    open_index(&c, s);
    if (!plan_and_score(&c)) check_scores(&c);
    close_index(&c);
}

/* 1 if both calls gave a row the same bits up to its horizon in a. */
static int same_scores(const index_case *a, int i, int j, const index_case *b, int k, int l) {
    int64_t at_a = (a->first_row[i] + j) * a->score_row + (a->spec.one_matrix ? a->first_key[i] : 0);
    int64_t at_b = (b->first_row[k] + l) * b->score_row + (b->spec.one_matrix ? b->first_key[k] : 0);
    return !memcmp(a->scores + at_a, b->scores + at_b, sizeof(float) * (size_t)horizon_of(a, i, j));
}

/* ---- tests of attn_index_score ---------------------------------------------------------------------------------- */

static void mixed_requests(index_spec *s) {
    add_request(s, 1, 1, 1);
    add_request(s, 2, 3, 90);
    add_request(s, 3, 0, 0);
    add_request(s, 4, 1, 613);
    add_request(s, 5, 7, 300);
    add_request(s, 6, 2, 2);
    add_request(s, 7, 0, 40);
}

static void test_shapes(void) {
    static const int32_t heads[] = { 1, 3, 64, 200 }, dims[] = { 64, 128, 40 }, tiles[] = { 0, 128, 32 };
    size_t h, d;
    int isa;
    for (isa = ATTN_ISA_SCALAR; isa; isa = next_isa(isa)) {
        for (h = 0; h < 4; h++) {
            for (d = 0; d < 3; d++) {
                index_spec s;
                spec_defaults(&s);
                s.layer.isa = isa;
                s.layer.heads = heads[h];
                s.layer.head_dim = dims[d];
                s.layer.key_tile = tiles[(h + d) % 3];
                s.one_matrix = (int)((h + d) % 2);
                s.layout = (int)((h + 2 * d) % 3);
                s.layer.page_size = 16;
                add_request(&s, 1, 3, 70);
                add_request(&s, 2, 1, 290);
                run_index(&s);
            }
        }
    }
}

/* Every type of q and K, every layout, both forms of the matrix. */
static void test_types(void) {
    static const attn_type types[] = { ATTN_F32, ATTN_BF16, ATTN_F16, ATTN_E4M3, ATTN_E5M2, ATTN_INT8 };
    int layout, isa, i, gaps;
    for (isa = ATTN_ISA_SCALAR; isa; isa = next_isa(isa)) {
        for (i = 0; i < 6; i++) {
            for (layout = RAGGED; layout <= PAGED; layout++) {
                for (gaps = 0; gaps < 2; gaps++) {
                    index_spec s;
                    spec_defaults(&s);
                    s.layer.isa = isa;
                    s.layer.q_type = (attn_type)((i + layout) % 3);
                    s.layer.kv_type = types[i];
                    s.layer.scale_kind = types[i] == ATTN_INT8 ? ATTN_SCALE_PER_KEY : (layout + gaps) % 3;
                    s.layer.head_dim = gaps ? 27 : 32;
                    s.layer.key_tile = gaps ? 32 : 0;
                    s.layer.heads = 5;
                    s.layer.scale = gaps ? 0.4f : 0;
                    s.layer.page_size = gaps ? 64 : 7;
                    s.layout = layout;
                    s.gaps = gaps;
                    s.one_matrix = (layout + gaps) % 2;
                    s.more_keys = gaps ? 500 : 0;
                    mixed_requests(&s);
                    run_index(&s);
                }
            }
        }
    }
}

/* AMX serves layers whose q, K and o are bf16. */
static void test_amx(void) {
    static const int32_t heads[] = { 1, 5, 40 };
    int h, layout;
    if (!has_isa(ATTN_ISA_AMX)) {
        test_skip("this CPU or build has no AMX");
        return;
    }
    for (h = 0; h < 3; h++) {
        for (layout = RAGGED; layout <= PAGED; layout++) {
            index_spec s;
            spec_defaults(&s);
            s.layer.isa = ATTN_ISA_AMX;
            s.layer.q_type = s.layer.kv_type = s.layer.o_type = ATTN_BF16;
            s.layer.heads = heads[h];
            s.layer.head_dim = 32 << h;
            s.layer.row_tile = h == 2 ? 0 : 16;
            s.layer.scale_kind = layout;
            s.layer.page_size = h ? 64 : 7;
            s.layout = layout;
            s.gaps = h % 2;
            mixed_requests(&s);
            run_index(&s);
        }
    }
}

static void test_int8_kinds(void) {
    int kind, isa;
    for (isa = ATTN_ISA_SCALAR; isa; isa = next_isa(isa)) {
        for (kind = ATTN_SCALE_PER_TENSOR; kind <= ATTN_SCALE_PER_KEY; kind++) {
            index_spec s;
            spec_defaults(&s);
            s.layer.isa = isa;
            s.layer.kv_type = ATTN_INT8;
            s.layer.scale_kind = kind;
            s.layout = PADDED;
            mixed_requests(&s);
            run_index(&s);
        }
    }
}

/* What a window or a chunk hides is -inf below the horizon, also under the other masks. */
static void test_windows(void) {
    static const struct {
        attn_mask mask;
        int32_t left, right, sink, chunk;
    } windows[] = {
        { ATTN_CAUSAL, 1, 0, 0, 0 },    { ATTN_CAUSAL, 100, 0, 0, 0 }, { ATTN_CAUSAL, 37, 5, 4, 0 },
        { ATTN_CAUSAL, 0, 0, 0, 64 },   { ATTN_CAUSAL, 20, 0, 0, 64 }, { ATTN_FULL, 0, 0, 0, 0 },
        { ATTN_FULL, 50, 3, 0, 0 },     { ATTN_FULL, 0, 1, 2, 0 },     { ATTN_PREFIX, 0, 0, 0, 0 },
        { ATTN_PREFIX, 60, 80, 1, 0 },  { ATTN_BLOCK, 0, 0, 0, 4 },    { ATTN_BLOCK, 9, 2, 3, 3 },
        { ATTN_CAUSAL, 5000, 0, 0, 0 }
    };
    size_t w;
    int isa;
    for (isa = ATTN_ISA_SCALAR; isa; isa = next_isa(isa)) {
        for (w = 0; w < sizeof windows / sizeof windows[0]; w++) {
            index_spec s;
            spec_defaults(&s);
            s.layer.isa = isa;
            s.layer.heads = 3;
            s.layer.head_dim = 16;
            s.layer.mask = windows[w].mask;
            s.layer.window_left = windows[w].left;
            s.layer.window_right = windows[w].right;
            s.layer.sink_keys = windows[w].sink;
            s.layer.chunk = windows[w].chunk;
            s.layer.page_size = 16;
            s.layout = w % 2 ? PAGED : RAGGED;
            s.one_matrix = w % 3 == 0;
            mixed_requests(&s);
            if (s.layer.mask == ATTN_FULL) add_request(&s, 9, 6, 2); /* more rows than keys */
            if (s.layer.mask == ATTN_FULL) add_request(&s, 8, 2, 0);
            run_index(&s);
        }
    }
}

/* A window's older pages are not read: their ids may be anything. */
static void test_unread_pages(void) {
    index_spec s;
    index_case c, d;
    int column;
    spec_defaults(&s);
    s.layer.window_left = 100;
    s.layer.page_size = 16;
    s.layout = PAGED;
    add_request(&s, 1, 2, 500);
    open_index(&c, &s);
    open_index(&d, &s);
    for (column = 0; column < 20; column++) d.table[column] = column % 2 ? -9 : INT32_MAX;
    if (!plan_and_score(&c) && !plan_and_score(&d)) {
        CHECK(!memcmp(c.score_memory, d.score_memory, sizeof(float) * c.score_count), "scores differ");
    }
    close_index(&c);
    close_index(&d);
}

/* softcap, sinks and alibi do not apply. */
static void test_ignored(void) {
    static const float eight[8] = { 1, 2, 3, 4, 5, 6, 7, 8 };
    index_spec s;
    index_case c, d;
    spec_defaults(&s);
    mixed_requests(&s);
    open_index(&c, &s);
    s.layer.softcap = 0.5f;
    open_index(&d, &s);
    d.io.sinks = eight;
    d.io.alibi = eight;
    if (!plan_and_score(&c) && !plan_and_score(&d)) {
        CHECK(!memcmp(c.score_memory, d.score_memory, sizeof(float) * c.score_count), "scores differ");
        check_scores(&d);
    }
    close_index(&c);
    close_index(&d);
}

/* What must not change a bit: lanes, their order, workers, row_tile, layout, strides, capacity, the form of the
   matrix. 700 keys are three units and 40 rows of 8 heads many tiles. */
static void test_same_bits(void) {
    int isa, variant, i, j;
    for (isa = ATTN_ISA_SCALAR; isa; isa = next_isa(isa)) {
        index_spec s;
        index_case base;
        spec_defaults(&s);
        s.layer.isa = isa;
        s.layer.kv_type = isa == ATTN_ISA_SCALAR ? ATTN_F32 : ATTN_INT8;
        s.layer.scale_kind = isa == ATTN_ISA_SCALAR ? ATTN_SCALE_PER_TENSOR : ATTN_SCALE_PER_KEY;
        s.layer.page_size = 16;
        add_request(&s, 1, 40, 700);
        add_request(&s, 2, 1, 900);
        add_request(&s, 3, 3, 5);
        open_index(&base, &s);
        if (!plan_and_score(&base)) check_scores(&base);
        CHECK(base.plan.tasks >= 2, "only %d tasks", base.plan.tasks);
        for (variant = 0; variant < 8; variant++) {
            index_spec t = s;
            index_case c;
            if (variant < 4) t.lanes = 2 + 3 * variant;
            if (variant == 3) t.layer.workers = 64;
            if (variant == 4) t.layout = PADDED;
            if (variant >= 5) t.layout = PAGED;
            if (variant >= 6) t.gaps = 1;
            t.one_matrix = variant % 2;
            if (variant == 7) t.layer.row_tile = 128;
            t.more_keys = variant * 100;
            open_index(&c, &t);
            c.lane_order = (uint64_t)variant;
            if (!plan_and_score(&c)) {
                for (i = 0; i < s.n; i++) {
                    for (j = 0; j < s.q_len[i]; j++) {
                        CHECK(same_scores(&base, i, j, &c, i, j), "isa %d, variant %d, request %d, row %d", isa,
                              variant, i, j);
                    }
                }
            }
            close_index(&c);
        }
        close_index(&base);
    }
}

/* A row alone (E = 1, a batch of one) has the scores it has among neighbours and in a longer E. */
static void test_neighbours(void) {
    int isa, i, j;
    for (isa = ATTN_ISA_SCALAR; isa; isa = next_isa(isa)) {
        index_spec s;
        index_case all;
        spec_defaults(&s);
        s.layer.isa = isa;
        s.layer.kv_type = ATTN_BF16;
        s.one_matrix = 1;
        add_request(&s, 1, 5, 600);
        add_request(&s, 2, 33, 40);
        add_request(&s, 3, 2, 257);
        open_index(&all, &s);
        if (plan_and_score(&all)) {
            close_index(&all);
            return;
        }
        for (i = 0; i < s.n; i++) {
            for (j = 0; j < s.q_len[i]; j += 1 + i) {
                index_spec t;
                index_case one;
                spec_defaults(&t);
                t.layer = s.layer;
                add_request(&t, s.content[i], 1, s.kv_len[i] - s.q_len[i] + j + 1);
                open_index(&one, &t);
                if (!plan_and_score(&one)) {
                    CHECK(same_scores(&all, i, j, &one, 0, 0), "isa %d, request %d, row %d", isa, i, j);
                }
                close_index(&one);
            }
        }
        close_index(&all);
    }
}

/* A NaN in one key stays in that key's column. */
static void test_nan_key(void) {
    int isa;
    for (isa = ATTN_ISA_SCALAR; isa; isa = next_isa(isa)) {
        index_spec s;
        index_case clean, spoiled;
        uint32_t nan = 0x7FC00000;
        int64_t slot, key;
        int j;
        spec_defaults(&s);
        s.layer.isa = isa;
        add_request(&s, 1, 9, 300);
        open_index(&clean, &s);
        open_index(&spoiled, &s);
        memcpy(key_at(&spoiled, 0, 295, &slot), &nan, sizeof nan);
        memcpy(key_at(&spoiled, 0, 17, &slot) + 4 * 31, &nan, sizeof nan);
        if (!plan_and_score(&clean) && !plan_and_score(&spoiled)) {
            for (j = 0; j < 9; j++) {
                for (key = 0; key < 292 + j; key++) {
                    int64_t at = j * clean.score_row + key;
                    if (key == 295 || key == 17) continue;
                    CHECK(bits_of(clean.scores[at]) == bits_of(spoiled.scores[at]), "isa %d, row %d, key %d", isa, j,
                          (int)key);
                }
            }
        }
        close_index(&clean);
        close_index(&spoiled);
    }
}

static void test_nothing_to_score(void) {
    index_spec s;
    spec_defaults(&s);
    run_index(&s);
    add_request(&s, 1, 0, 30);
    add_request(&s, 2, 0, 0);
    run_index(&s);
}

/* ---- errors of attn_index_score --------------------------------------------------------------------------------- */

/* The arguments of a call, to be broken one at a time. */
typedef struct score_call {
    index_case *c;
    attn_layer layer;
    attn_io io;
    attn_exec exec;
    const attn_plan *plan;
    const attn_layer *layer_arg;
    const attn_io *io_arg;
    const attn_exec *exec_arg;
    const float *weights;
    const int32_t *ks;
    float *scores;
    int64_t score_row;
} score_call;

static void reset_call(score_call *a, index_case *c) {
    a->c = c;
    a->layer = c->layer;
    a->io = c->io;
    a->exec = c->exec;
    a->plan = &c->plan;
    a->layer_arg = &a->layer;
    a->io_arg = &a->io;
    a->exec_arg = &a->exec;
    a->weights = c->weights;
    a->ks = c->ks;
    a->scores = c->scores;
    a->score_row = c->score_row;
}

static void refuse_score(const score_call *a, attn_status status, int32_t request, int32_t slot, const char *text,
                         const char *more) {
    attn_error error;
    int got, silent;
    size_t i;
    memset(&error, 0x7F, sizeof error);
    got = attn_index_score(a->plan, a->layer_arg, a->io_arg, a->weights, a->ks, a->scores, a->score_row, a->exec_arg,
                           &error);
    silent = attn_index_score(a->plan, a->layer_arg, a->io_arg, a->weights, a->ks, a->scores, a->score_row,
                              a->exec_arg, NULL);
    CHECK(got == (int)status, "\"%s\": status %d, not %d", text, got, (int)status);
    CHECK(silent == got, "\"%s\": status %d without an attn_error", text, silent);
    if (got) {
        CHECK(strstr(error.text, text), "\"%s\" lacks \"%s\"", error.text, text);
        CHECK(strstr(error.text, more), "\"%s\" lacks \"%s\"", error.text, more);
        CHECK(error.request == request, "\"%s\": request %d, not %d", error.text, error.request, request);
        CHECK(error.slot == slot, "\"%s\": slot %d, not %d", error.text, error.slot, slot);
    }
    for (i = 0; i < a->c->score_count; i++) {
        CHECK(bits_of(a->c->score_memory[i]) == canary, "\"%s\": score %d was written", text, (int)i - GUARD);
    }
}

#define REFUSE(change, status, request, slot, text, more)                                                             \
    do {                                                                                                              \
        reset_call(&a, &c);                                                                                           \
        change;                                                                                                       \
        refuse_score(&a, status, request, slot, text, more);                                                          \
    } while (0)

static void *shifted(const void *p, int bytes) {
    return (char *)(uintptr_t)p + bytes;
}

/* Opens and plans; 1 if the valid call then passes, so that what follows fails for its own reason. */
static int open_valid(index_case *c, const index_spec *s) {
    int valid;
    open_index(c, s);
    valid = !plan_and_score(c);
    mark(c->score_memory, c->score_count);
    return valid;
}

static void test_score_errors(void) {
    index_spec s;
    index_case c;
    score_call a;
    spec_defaults(&s);
    s.one_matrix = 1;
    mixed_requests(&s);
    if (open_valid(&c, &s)) {
        REFUSE(a.plan = NULL, ATTN_E_ARGUMENT, -1, -1, "plan", "NULL");
        REFUSE(a.layer_arg = NULL, ATTN_E_ARGUMENT, -1, -1, "layer", "NULL");
        REFUSE(a.io_arg = NULL, ATTN_E_ARGUMENT, -1, -1, "io", "NULL");
        REFUSE(a.exec_arg = NULL, ATTN_E_ARGUMENT, -1, -1, "exec", "NULL");
        REFUSE(a.weights = NULL, ATTN_E_ARGUMENT, -1, -1, "weights", "NULL");
        REFUSE(a.scores = NULL, ATTN_E_ARGUMENT, -1, -1, "scores", "NULL");
        REFUSE(a.io.q = NULL, ATTN_E_ARGUMENT, -1, -1, "io.q ", "NULL");
        REFUSE(a.io.k = NULL, ATTN_E_ARGUMENT, -1, -1, "io.k ", "NULL");
        REFUSE(a.io.q = shifted(c.q, 1), ATTN_E_ARGUMENT, -1, -1, "io.q ", "aligned");
        REFUSE(a.io.k = shifted(c.k, 2), ATTN_E_ARGUMENT, -1, -1, "io.k ", "aligned");
        REFUSE(a.weights = (float *)shifted(c.weights, 1), ATTN_E_ARGUMENT, -1, -1, "weights ", "aligned");
        REFUSE(a.scores = (float *)shifted(c.scores, 2), ATTN_E_ARGUMENT, -1, -1, "scores ", "aligned");
        REFUSE(a.ks = (int32_t *)shifted(c.ks, 2), ATTN_E_ARGUMENT, -1, -1, "ks ", "aligned");
        REFUSE(a.io.q_row = -3, ATTN_E_ARGUMENT, -1, -1, "io.q_row = -3", "");
        REFUSE(a.io.k_row = -4, ATTN_E_ARGUMENT, -1, -1, "io.k_row = -4", "");
        REFUSE(a.score_row = -1, ATTN_E_ARGUMENT, 0, 0, "score_row = -1", "ks[0] = 0");
        REFUSE(a.exec.mem = NULL, ATTN_E_MEMORY, -1, -1, "exec.mem ", "NULL");
        REFUSE(a.exec.bytes--, ATTN_E_MEMORY, -1, -1, "exec.mem", "bytes = ");
        REFUSE(a.exec.lanes = -1, ATTN_E_ARGUMENT, -1, -1, "exec.lanes = -1", "");
        REFUSE(a.layer.heads = 4, ATTN_E_PLAN, -1, -1, "layer.heads = 4", "plan has 8");
        REFUSE(a.layer.scale = 2, ATTN_E_PLAN, -1, -1, "layer.scale = 2", "plan has 0");
    }
    close_index(&c);
}

/* A row of the matrix must hold the columns of its keys. Rows 4 .. 10 belong to request 4. */
static void test_column_errors(void) {
    index_spec s;
    index_case c;
    score_call a;
    int32_t ks[16];
    spec_defaults(&s);
    s.one_matrix = 1;
    mixed_requests(&s);
    if (open_valid(&c, &s)) {
        memcpy(ks, c.ks, sizeof(int32_t) * (size_t)c.rows);
        ks[6] = -1;
        REFUSE(a.ks = ks, ATTN_E_ARGUMENT, 4, 1, "ks[6] = -1", "");
        ks[6] = INT32_MAX;
        REFUSE(a.ks = ks, ATTN_E_ARGUMENT, 4, 1, "ks[6] = 2147483647", "");
        /* row 4 sees 613 keys from column 91 on */
        REFUSE(a.score_row = 703, ATTN_E_ARGUMENT, 3, 0, "score_row = 703", "");
        REFUSE((a.ks = NULL, a.score_row = 612), ATTN_E_ARGUMENT, 3, 0, "score_row = 612", "");
    }
    close_index(&c);
}

/* Layers and phases that have no scores. */
static void test_layer_errors(void) {
    index_spec s;
    index_case c;
    score_call a;
    spec_defaults(&s);
    s.layer.kv_heads = 2;
    add_request(&s, 1, 2, 30);
    open_index(&c, &s);
    if (!plan_index(&c)) REFUSE((void)0, ATTN_E_LAYER, -1, -1, "layer.kv_heads = 2", "");
    close_index(&c);
    s.layer.kv_heads = 1;
    for (s.layer.skip.mode = ATTN_SKIP_FACTOR; s.layer.skip.mode <= ATTN_SKIP_EPS; s.layer.skip.mode++) {
        char text[] = "layer.skip.mode = 0, but indexer scores skip nothing";
        text[18] = (char)('0' + s.layer.skip.mode);
        open_index(&c, &s);
        if (!plan_index(&c)) REFUSE((void)0, ATTN_E_LAYER, -1, -1, text, "");
        close_index(&c);
    }
    s.layer.skip.mode = ATTN_SKIP_OFF;
    s.layer.mask = ATTN_TREE;
    open_index(&c, &s);
    if (!plan_index(&c)) REFUSE((void)0, ATTN_E_LAYER, -1, -1, "layer.mask = 4", "");
    close_index(&c);
    s.layer.mask = ATTN_TOPK;
    s.layer.topk = 8;
    open_index(&c, &s);
    if (!plan_index(&c)) REFUSE((void)0, ATTN_E_LAYER, -1, -1, "layer.mask = 5", "");
    close_index(&c);
    s.layer.mask = ATTN_CAUSAL;
    s.layer.topk = 0;
    add_request(&s, 2, 1, 9);
    open_index(&c, &s);
    c.phase[1] = ATTN_PREFILL;
    if (!plan_index(&c)) REFUSE((void)0, ATTN_E_PLAN, 1, -1, "phase[1] = 0", "DECODE");
    close_index(&c);
}

static void test_page_errors(void) {
    index_spec s;
    index_case c;
    score_call a;
    spec_defaults(&s);
    s.layout = PAGED;
    s.layer.page_size = 16;
    add_request(&s, 1, 2, 30);
    add_request(&s, 2, 2, 300);
    if (open_valid(&c, &s)) {
        REFUSE(a.io.page_table = NULL, ATTN_E_ARGUMENT, -1, -1, "io.page_table ", "NULL");
        c.table[c.columns + 7] = 999;
        REFUSE((void)0, ATTN_E_PAGE, 1, 7, "page_table[1][7] = 999", "pages");
        c.table[c.columns + 7] = -1;
        REFUSE((void)0, ATTN_E_PAGE, 1, 7, "page_table[1][7] = -1", "pages");
    }
    close_index(&c);
    s.layer.kv_type = ATTN_INT8;
    s.layer.scale_kind = ATTN_SCALE_PER_KEY;
    if (open_valid(&c, &s)) {
        REFUSE(a.io.k_scale = NULL, ATTN_E_ARGUMENT, -1, -1, "io.k_scale ", "NULL");
        REFUSE(a.io.k_scale = (float *)shifted(c.k_scale, 2), ATTN_E_ARGUMENT, -1, -1, "io.k_scale ", "aligned");
    }
    close_index(&c);
}

/* ---- attn_topk: the reference ----------------------------------------------------------------------------------- */

typedef struct candidate {
    float score;
    int32_t index;
} candidate;

/* Larger scores first; of equal ones, +0 and -0 included, the smaller index. */
static int by_score(const void *x, const void *y) {
    const candidate *a = (const candidate *)x, *b = (const candidate *)y;
    if (a->score != b->score) return a->score > b->score ? -1 : 1;
    return a->index < b->index ? -1 : a->index > b->index;
}

static int by_index(const void *x, const void *y) {
    const int32_t *a = (const int32_t *)x, *b = (const int32_t *)y;
    return *a < *b ? -1 : *a > *b;
}

/* Returns how many entries are not -1. */
static int select_reference(const float *scores, int32_t count, int32_t topk, int32_t *indices) {
    candidate *all = (candidate *)allocate(sizeof *all * (size_t)count);
    int32_t i, n = 0, taken;
    for (i = 0; i < count; i++) {
        if (scores[i] != scores[i] || bits_of(scores[i]) == minus_infinity) continue;
        all[n].score = scores[i];
        all[n++].index = i;
    }
    if (n > 1) qsort(all, (size_t)n, sizeof *all, by_score);
    taken = n < topk ? n : topk;
    for (i = 0; i < topk; i++) indices[i] = i < taken ? all[i].index : -1;
    if (taken > 1) qsort(indices, (size_t)taken, sizeof *indices, by_index);
    free(all);
    return taken;
}

/* Calls attn_topk with guards around the lists and compares every row. */
static void run_topk(const float *scores, int64_t score_row, int rows, const int32_t *ks, const int32_t *ke,
                     int32_t topk, const char *what) {
    size_t count = (size_t)rows * (size_t)topk, i;
    int32_t *got = (int32_t *)allocate(sizeof *got * (count + 2 * GUARD)), *want;
    attn_error error;
    int status, row;
    memset(got, 0x5A, sizeof *got * (count + 2 * GUARD));
    want = (int32_t *)allocate(sizeof *want * (size_t)topk);
    status = attn_topk(scores, score_row, rows, ks, ke, topk, got + GUARD, &error);
    CHECK(status == ATTN_OK, "%s: %s", what, status ? error.text : "");
    for (row = 0; row < rows; row++) {
        int32_t first = ks ? ks[row] : 0, k;
        select_reference(scores + row * score_row + first, ke[row] - first, topk, want);
        for (k = 0; k < topk; k++) {
            int32_t entry = got[GUARD + (int64_t)row * topk + k];
            CHECK(entry == want[k], "%s, topk %d, row %d, entry %d: %d, not %d", what, topk, row, k, entry, want[k]);
        }
    }
    for (i = 0; i < GUARD; i++) {
        CHECK(got[i] == 0x5A5A5A5A && got[GUARD + count + i] == 0x5A5A5A5A, "%s: a guard was written", what);
    }
    free(want);
    free(got);
}

/* ---- tests of attn_topk ----------------------------------------------------------------------------------------- */

/* Every row of six from an alphabet of the special cases, for every topk from 1 to 7. */
static void test_topk_every_row(void) {
    enum { LETTERS = 6, LENGTH = 5, ROWS = 7776 };
    static float scores[ROWS * LENGTH];
    static int32_t ke[ROWS];
    float letters[LETTERS] = { 0, -0.0f, 1, -1, 0, 0 };
    uint32_t nan = 0xFFC00001;
    int row, i, topk;
    memcpy(&letters[4], &nan, sizeof nan);
    memcpy(&letters[5], &minus_infinity, sizeof minus_infinity);
    for (row = 0; row < ROWS; row++) {
        int rest = row;
        for (i = 0; i < LENGTH; i++, rest /= LETTERS) scores[row * LENGTH + i] = letters[rest % LETTERS];
        ke[row] = LENGTH;
    }
    for (topk = 1; topk <= LENGTH + 2; topk++) run_topk(scores, LENGTH, ROWS, NULL, ke, topk, "alphabet");
}

/* Long rows: random, few different values, one value, sorted both ways, the whole range of floats. */
static void draw_scores(float *scores, int count, int kind, test_rng *r) {
    int i;
    for (i = 0; i < count; i++) {
        uint32_t word = (uint32_t)test_next(r);
        float x = test_uniform(r);
        if (kind == 1) x = (float)(int)(x * 3);
        if (kind == 2) x = 0.25f;
        if (kind == 3) x = (float)i;
        if (kind == 4) x = (float)-i;
        if (kind == 5) memcpy(&x, &word, sizeof x); /* NaNs, infinities and subnormals among them */
        if (kind == 6) x = i % 2 ? 0.0f : -0.0f;
        if (kind == 7 && i % 3) memcpy(&x, &minus_infinity, sizeof x);
        if (kind == 8) x = 1 + x * 2e-7f; /* neighbours of 1 */
        scores[i] = x;
    }
}

static void test_topk_long(void) {
    static const int32_t topks[] = { 1, 2, 100, 2047, 2048, 2049, 4999, 5000, 5001 };
    enum { COUNT = 5000, KINDS = 9 };
    float *scores = (float *)allocate(sizeof(float) * KINDS * COUNT);
    int32_t ke[KINDS];
    test_rng r = { 17 };
    size_t t;
    int kind;
    for (kind = 0; kind < KINDS; kind++) {
        draw_scores(scores + kind * COUNT, COUNT, kind, &r);
        ke[kind] = COUNT;
    }
    for (t = 0; t < sizeof topks / sizeof topks[0]; t++) {
        run_topk(scores, COUNT, KINDS, NULL, ke, topks[t], "5000 scores");
    }
    free(scores);
}

/* Ranges of any start and end, shorter and longer than topk, empty ones too; the row stride is wider. */
static void test_topk_ranges(void) {
    enum { ROWS = 400, ROW = 300 };
    float *scores = (float *)allocate(sizeof(float) * ROWS * ROW);
    int32_t ks[ROWS], ke[ROWS], none[ROWS];
    test_rng r = { 23 };
    int row, topk;
    for (row = 0; row < ROWS; row++) {
        draw_scores(scores + row * ROW, ROW, row % 9, &r);
        ks[row] = test_range(&r, 0, 280);
        ke[row] = test_range(&r, ks[row], ROW);
        if (row % 50 == 7) ke[row] = ks[row];
        none[row] = 0;
    }
    for (topk = 1; topk <= 300; topk = topk * 3 + 1) {
        run_topk(scores, ROW, ROWS, ks, ke, topk, "ranges");
        run_topk(scores, ROW, ROWS, NULL, ke, topk, "ranges from 0");
        run_topk(scores, ROW, ROWS, NULL, none, topk, "empty ranges");
    }
    free(scores);
}

/* Columns outside the range are not looked at, whatever they hold. */
static void test_topk_outside(void) {
    static const float outside[] = { 1e30f, HUGE_VALF, -1e30f };
    float scores[60];
    int32_t ks = 20, ke = 40, want[8], got[8];
    test_rng r = { 29 };
    int i, round;
    draw_scores(scores, 60, 0, &r);
    CHECK(!attn_topk(scores, 60, 1, &ks, &ke, 8, want, NULL), "attn_topk");
    for (round = 0; round < 3; round++) {
        for (i = 0; i < 60; i++) {
            if (i < ks || i >= ke) scores[i] = outside[round];
        }
        CHECK(!attn_topk(scores, 60, 1, &ks, &ke, 8, got, NULL), "attn_topk");
        CHECK(!memcmp(want, got, sizeof got), "columns outside the range changed the list");
    }
    CHECK(want[0] >= 0 && want[7] < 20, "a list of %d .. %d", want[0], want[7]);
}

static void refuse_topk(const float *scores, int64_t score_row, int64_t rows, const int32_t *ks, const int32_t *ke,
                        int32_t topk, int32_t *indices, const char *text, const char *more) {
    attn_error error;
    int status;
    memset(&error, 0x7F, sizeof error);
    status = attn_topk(scores, score_row, rows, ks, ke, topk, indices, &error);
    CHECK(status == ATTN_E_ARGUMENT, "\"%s\": status %d", text, status);
    if (status) CHECK(strstr(error.text, text), "\"%s\" lacks \"%s\"", error.text, text);
    if (status) CHECK(strstr(error.text, more), "\"%s\" lacks \"%s\"", error.text, more);
    CHECK(attn_topk(scores, score_row, rows, ks, ke, topk, indices, NULL) == status, "\"%s\": no attn_error", text);
}

static void test_topk_errors(void) {
    float scores[24] = { 0 };
    int32_t ks[2] = { 0, 3 }, ke[2] = { 5, 12 }, out[9], before[9], bad[2];
    memset(out, 0x5A, sizeof out);
    memcpy(before, out, sizeof out);
    refuse_topk(NULL, 12, 2, ks, ke, 4, out, "scores", "NULL");
    refuse_topk(scores, 12, 2, ks, NULL, 4, out, "ke", "NULL");
    refuse_topk(scores, 12, 2, ks, ke, 4, NULL, "indices", "NULL");
    refuse_topk(scores, 12, -1, ks, ke, 4, out, "rows = -1", "");
    refuse_topk(scores, -12, 2, ks, ke, 4, out, "score_row = -12", "");
    refuse_topk(scores, 12, 2, ks, ke, 0, out, "topk = 0", "");
    refuse_topk(scores, 12, 2, ks, ke, -4, out, "topk = -4", "");
    refuse_topk((float *)shifted(scores, 2), 12, 1, ks, ke, 4, out, "scores ", "aligned");
    refuse_topk(scores, 12, 1, (int32_t *)shifted(ks, 1), ke, 4, out, "ks ", "aligned");
    refuse_topk(scores, 12, 1, ks, (int32_t *)shifted(ke, 2), 4, out, "ke ", "aligned");
    refuse_topk(scores, 12, 1, ks, ke, 4, (int32_t *)shifted(out, 1), "indices ", "aligned");
    refuse_topk(scores, 11, 2, ks, ke, 4, out, "ke[1] = 12", "11");
    bad[0] = 0;
    bad[1] = -1;
    refuse_topk(scores, 12, 2, bad, ke, 4, out, "ks[1] = -1", "");
    refuse_topk(scores, 12, 2, NULL, bad, 4, out, "ke[1] = -1", "");
    bad[1] = 2;
    refuse_topk(scores, 12, 2, ks, bad, 4, out, "ke[1] = 2", "");
    CHECK(!memcmp(out, before, sizeof out), "a refused call wrote");
    CHECK(attn_topk(scores, 12, 2, ks, ke, 4, out, NULL) == ATTN_OK, "the unbroken call");
    memcpy(out, before, sizeof out);
    CHECK(attn_topk(scores, 12, 0, ks, ke, 4, out, NULL) == ATTN_OK, "no rows");
    CHECK(!memcmp(out, before, sizeof out), "a call without rows wrote");
}

/* ---- scores, lists, attention ----------------------------------------------------------------------------------- */

enum { A_HEADS = 4, A_KV_HEADS = 2, A_DIM = 16, A_ROW = A_KV_HEADS * A_DIM };

/* The attention layer of the same batch: its own data and cache, paged or not. */
typedef struct attention {
    const index_case *c;
    attn_layer layer;
    attn_batch batch;
    attn_io io;
    int32_t phase[MOST];
    float *q, *k, *v, *o, *lse;
    double *k_real, *v_real;
} attention;

static void fill_attention(attention *t, const int32_t *table, int64_t table_row, int page) {
    const index_case *c = t->c;
    double real[A_HEADS * A_DIM];
    int i, j, key;
    for (i = 0; i < c->spec.n; i++) {
        for (key = 0; key < c->spec.kv_len[i]; key++) {
            int64_t token = c->first_key[i] + key, slot = token;
            test_rng rk = rng_of(OF_K, 100 + c->spec.content[i], key);
            test_rng rv = rng_of(OF_V, 100 + c->spec.content[i], key);
            if (page) slot = (int64_t)table[i * table_row + key / page] * page + key % page;
            draw(ATTN_F32, &rk, A_ROW, (unsigned char *)(t->k + slot * A_ROW), t->k_real + token * A_ROW);
            draw(ATTN_F32, &rv, A_ROW, (unsigned char *)(t->v + slot * A_ROW), t->v_real + token * A_ROW);
        }
        for (j = 0; j < c->spec.q_len[i]; j++) {
            test_rng rq = rng_of(OF_Q, 100 + c->spec.content[i], position_of(c, i, j));
            draw(ATTN_F32, &rq, A_HEADS * A_DIM,
                 (unsigned char *)(t->q + (int64_t)(c->first_row[i] + j) * A_HEADS * A_DIM), real);
        }
    }
}

/* pages: 0, or what the table's ids are below. */
static void open_attention(attention *t, const index_case *c, const int32_t *table, int64_t table_row, int page,
                           int32_t pages) {
    size_t slots = page ? (size_t)pages * (size_t)page : (size_t)c->keys;
    size_t rows = (size_t)c->rows * A_HEADS;
    memset(t, 0, sizeof *t);
    t->c = c;
    t->layer.heads = A_HEADS;
    t->layer.kv_heads = A_KV_HEADS;
    t->layer.head_dim = A_DIM;
    t->layer.row_tile = 16;
    t->layer.key_tile = 32;
    t->layer.workers = 3;
    t->layer.isa = c->spec.layer.isa;
    t->layer.page_size = page;
    t->batch = c->batch;
    t->batch.phase = t->phase;
    t->q = (float *)allocate(sizeof(float) * rows * A_DIM);
    t->o = (float *)allocate(sizeof(float) * rows * A_DIM);
    t->lse = (float *)allocate(sizeof(float) * rows);
    t->k = (float *)allocate(sizeof(float) * slots * A_ROW);
    t->v = (float *)allocate(sizeof(float) * slots * A_ROW);
    t->k_real = (double *)allocate(sizeof(double) * (size_t)c->keys * A_ROW);
    t->v_real = (double *)allocate(sizeof(double) * (size_t)c->keys * A_ROW);
    fill_attention(t, table, table_row, page);
    t->io.q = t->q;
    t->io.k = t->k;
    t->io.v = t->v;
    t->io.o = t->o;
    t->io.lse = t->lse;
    t->io.page_table = page ? table : NULL;
    t->io.page_table_row = page ? table_row : 0;
    t->io.pages = pages;
}

static void close_attention(attention *t) {
    free(t->q);
    free(t->k);
    free(t->v);
    free(t->o);
    free(t->lse);
    free(t->k_real);
    free(t->v_real);
}

static int attend(attention *t, attn_mask mask, int32_t topk, const int32_t *lists, int phase) {
    attn_plan plan;
    attn_error error;
    attn_exec exec;
    size_t bytes;
    void *mem;
    int i, status;
    for (i = 0; i < MOST; i++) t->phase[i] = phase;
    t->layer.mask = mask;
    t->layer.topk = topk;
    t->io.topk = lists;
    bytes = attn_plan_bytes(&t->batch, &t->layer);
    mem = allocate(bytes);
    status = attn_plan_make(&plan, &t->batch, &t->layer, mem, bytes, &error);
    CHECK(status == ATTN_OK, "attn_plan_make: %s", status ? error.text : "");
    if (!status) {
        memset(&exec, 0, sizeof exec);
        exec.bytes = attn_exec_bytes(&plan, 1);
        exec.mem = allocate(exec.bytes);
        status = attn_forward(&plan, &t->layer, &t->io, &exec, &error);
        CHECK(status == ATTN_OK, "attn_forward: %s", status ? error.text : "");
        free(exec.mem);
    }
    free(mem);
    return status;
}

/* One row and head over its list in double. Room: as much as 300 roundoffs of a mean of values below 1, and what
   roundings of the logits, about eight per unit of the largest sum of |q.k|, do to the weights. */
static void check_attended(const attention *t, int i, int64_t row, int head, const int32_t *list, int32_t topk) {
    const float *q = t->q + (row * A_HEADS + head) * A_DIM;
    int kv_head = head / (A_HEADS / A_KV_HEADS), d;
    double o[A_DIM] = { 0 }, sum = 0, reach = 0, room;
    int32_t s;
    for (s = 0; s < topk && list[s] >= 0; s++) {
        int64_t at = (t->c->first_key[i] + list[s]) * A_ROW + kv_head * A_DIM;
        double dot = 0, size = 0, w;
        for (d = 0; d < A_DIM; d++) {
            dot += (double)q[d] * t->k_real[at + d];
            size += fabs((double)q[d] * t->k_real[at + d]);
        }
        w = exp(dot * 0.25);
        reach = size * 0.25 > reach ? size * 0.25 : reach;
        sum += w;
        for (d = 0; d < A_DIM; d++) o[d] += w * t->v_real[at + d];
    }
    room = 2e-5 + 5e-7 * reach;
    for (d = 0; d < A_DIM; d++) {
        double got = (double)t->o[(row * A_HEADS + head) * A_DIM + d];
        CHECK(fabs(got - o[d] / sum) <= room, "request %d, row %d, head %d, element %d: %.9g, not %.9g", i, (int)row,
              head, d, got, o[d] / sum);
    }
    CHECK(fabs((double)t->lse[row * A_HEADS + head] - log(sum)) <= room,
          "request %d, row %d, head %d: lse %.9g, not %.9g", i, (int)row, head,
          (double)t->lse[row * A_HEADS + head], log(sum));
}

/* The lists of all rows: what the metadata say of them, what the sort says, and that they are the best scores. */
static int check_lists(const index_case *c, const attn_meta *m, const int32_t *lists, int32_t topk) {
    int32_t *want = (int32_t *)allocate(sizeof *want * (size_t)topk), s;
    int row, wrong = 0;
    for (row = 0; row < c->rows; row++) {
        const int32_t *list = lists + (int64_t)row * topk;
        const float *scores = c->scores + row * c->score_row + m->indexer_ks[row];
        int32_t taken = select_reference(scores, m->indexer_ke[row] - m->indexer_ks[row], topk, want);
        CHECK(taken == m->sparse_len[row], "row %d: %d keys, sparse_len %d", row, taken, m->sparse_len[row]);
        CHECK(m->indexer_ke[row] - m->indexer_ks[row] == m->seqlens_expand[row], "row %d: indexer range", row);
        CHECK(m->cu_sparse[row + 1] - m->cu_sparse[row] == taken, "row %d: cu_sparse", row);
        wrong += memcmp(list, want, sizeof *want * (size_t)topk) != 0;
        CHECK(!memcmp(list, want, sizeof *want * (size_t)topk), "row %d: list %d %d %d ..., not %d %d %d ...", row,
              list[0], topk > 1 ? list[1] : -1, topk > 2 ? list[2] : -1, want[0], topk > 1 ? want[1] : -1,
              topk > 2 ? want[2] : -1);
        for (s = 0; s < taken; s++) { /* a ragged list names columns of the matrix over all keys */
            int32_t column = list[s] + m->topk_offset[row];
            CHECK(column >= m->indexer_ks[row] && column < m->indexer_ke[row], "row %d: column %d", row, column);
        }
    }
    free(want);
    return wrong;
}

/* Rows that see no more than topk keys have the bits of dense attention, the others agree with the oracle. */
static void check_sparse(attention *t, const attn_meta *m, const int32_t *lists, int32_t topk, int phase) {
    const index_case *c = t->c;
    size_t row_bytes = sizeof(float) * A_HEADS * A_DIM, bytes = row_bytes * (size_t)c->rows;
    float *dense = (float *)allocate(bytes), *dense_lse = (float *)allocate(bytes);
    int i, j, h, differ = 0, longer = 0;
    if (!attend(t, ATTN_CAUSAL, 0, NULL, phase)) {
        memcpy(dense, t->o, bytes);
        memcpy(dense_lse, t->lse, sizeof(float) * (size_t)c->rows * A_HEADS);
        memset(t->o, 0xFF, bytes);
        memset(t->lse, 0xFF, sizeof(float) * (size_t)c->rows * A_HEADS);
        attend(t, ATTN_TOPK, topk, lists, phase);
        for (i = 0; i < c->spec.n; i++) {
            for (j = 0; j < c->spec.q_len[i]; j++) {
                int64_t row = c->first_row[i] + j, at = row * A_HEADS;
                int same = !memcmp(dense + at * A_DIM, t->o + at * A_DIM, row_bytes) &&
                           !memcmp(dense_lse + at, t->lse + at, sizeof(float) * A_HEADS);
                if (m->seqlens_expand[row] <= topk) {
                    CHECK(same, "phase %d, request %d, row %d: all keys, but not the bits of CAUSAL", phase, i, j);
                } else {
                    longer++;
                    differ += !same;
                }
                for (h = 0; h < A_HEADS; h++) check_attended(t, i, row, h, lists + row * topk, topk);
            }
        }
        CHECK(differ == longer, "%d of %d rows with more keys than topk have the bits of CAUSAL", longer - differ,
              longer);
    }
    free(dense);
    free(dense_lse);
}

/* A token table of pages in descending order, as the metadata want it. */
static int32_t *make_tokens(const index_case *c, int page, int64_t row, int32_t *pages) {
    int32_t *tokens = (int32_t *)allocate(sizeof *tokens * (size_t)(row * c->spec.n + 1)), next = 1;
    int i, key;
    for (i = c->spec.n - 1; i >= 0; i--) {
        for (key = 0; key < c->spec.kv_len[i]; key++) {
            tokens[i * row + key] = (next + (c->spec.kv_len[i] - 1) / page - key / page) * page + key % page;
        }
        next += (c->spec.kv_len[i] + page - 1) / page;
    }
    *pages = next;
    return tokens;
}

/* Scores over one matrix, lists, attention in both phases. page 0: the attention's cache is contiguous. */
static void run_pipeline(const index_spec *s, int32_t topk, int page) {
    index_case c;
    attention t;
    attn_meta m;
    attn_meta_input input;
    attn_error error;
    int32_t *tokens, *lists, pages = 0;
    int32_t want = ATTN_META_EXPAND | ATTN_META_SPARSE | ATTN_META_INDEXER | ATTN_META_TOPK_OFFSET;
    int64_t tokens_row = longest(s) + 1;
    size_t bytes;
    void *mem;
    int status;
    open_index(&c, s);
    memset(&input, 0, sizeof input);
    input.topk = topk;
    tokens = make_tokens(&c, page ? page : 1, tokens_row, &pages);
    input.req_to_token = tokens;
    input.req_to_token_row = tokens_row;
    input.requests = s->n;
    input.page_size = page ? page : 1;
    if (page) want |= ATTN_META_PAGE_TABLE;
    bytes = attn_meta_bytes(&c.batch, &input, want);
    mem = allocate(bytes);
    status = attn_meta_make(&m, &c.batch, &input, want, mem, bytes, &error);
    CHECK(status == ATTN_OK, "attn_meta_make: %s", status ? error.text : "");
    lists = (int32_t *)allocate(sizeof *lists * (size_t)c.rows * (size_t)topk);
    if (!status) {
        free(c.ks);
        c.ks = (int32_t *)allocate(sizeof *c.ks * (size_t)(c.rows + 1));
        memcpy(c.ks, m.indexer_ks, sizeof *c.ks * (size_t)c.rows);
        status = plan_and_score(&c);
    }
    if (!status) {
        status = attn_topk(c.scores, c.score_row, c.rows, m.indexer_ks, m.indexer_ke, topk, lists, &error);
        CHECK(status == ATTN_OK, "attn_topk: %s", status ? error.text : "");
    }
    if (!status && !check_lists(&c, &m, lists, topk)) {
        open_attention(&t, &c, page ? m.page_table : NULL, m.table_row, page, pages);
        check_sparse(&t, &m, lists, topk, ATTN_DECODE);
        check_sparse(&t, &m, lists, topk, ATTN_PREFILL);
        close_attention(&t);
    }
    free(lists);
    free(mem);
    free(tokens);
    close_index(&c);
}

static void pipeline_defaults(index_spec *s, int isa) {
    spec_defaults(s);
    s->layer.isa = isa;
    s->layer.heads = 4;
    s->layer.head_dim = 16;
    s->layer.kv_type = ATTN_BF16;
    s->one_matrix = 1;
}

/* `count` requests of E new rows over KV keys. */
static void run_uniform(int isa, int count, int32_t q_len, int32_t kv_len, int32_t topk, int page) {
    index_spec s;
    int i;
    pipeline_defaults(&s, isa);
    for (i = 0; i < count; i++) add_request(&s, i, q_len, kv_len);
    run_pipeline(&s, topk, page);
}

/* The batches of SGLang's sparse attention tests: topk 256, decode, verify, a nearly full prefix. */
static void test_matrix(void) {
    static const int batches[] = { 1, 3, 8 };
    static const int32_t lengths[] = { 1, 64, 256, 512 };
    int isa, b, l;
    for (isa = ATTN_ISA_SCALAR; isa; isa = next_isa(isa)) {
        for (b = 0; b < 3; b++) {
            for (l = 0; l < 4; l++) {
                run_uniform(isa, batches[b], 1, lengths[l], 256, l % 2 ? 64 : 0);
                run_uniform(isa, batches[b], 4, lengths[l] + 3, 256, l % 2 ? 0 : 64);
            }
            run_uniform(isa, batches[b], 1, 200, 256, 64);
            run_uniform(isa, batches[b], 1, 200, 128, 64);
        }
    }
}

/* Prompts: all of 360 tokens, and 180 more after 180. */
static void test_prompts(void) {
    int isa;
    for (isa = ATTN_ISA_SCALAR; isa; isa = next_isa(isa)) {
        run_uniform(isa, 1, 360, 360, 256, 64);
        run_uniform(isa, 3, 180, 360, 256, 0);
        run_uniform(isa, 1, 200, 200, 256, 16);
    }
}

static void test_ragged(void) {
    int isa, round, i;
    test_rng r = { 37 };
    for (isa = ATTN_ISA_SCALAR; isa; isa = next_isa(isa)) {
        for (round = 0; round < 12; round++) {
            static const int32_t topks[] = { 256, 1, 33, 700, 255, 257 };
            index_spec s;
            int n = test_range(&r, 1, MOST);
            pipeline_defaults(&s, isa);
            for (i = 0; i < n; i++) {
                int32_t rows = i % 4 == 3 ? 0 : test_range(&r, 1, round % 3 ? 3 : 30);
                add_request(&s, i, rows, rows + test_range(&r, 0, round % 2 ? 700 : 270));
            }
            s.layer.kv_type = round % 2 ? ATTN_INT8 : ATTN_E4M3;
            s.layer.scale_kind = round % 2 ? ATTN_SCALE_PER_KEY : ATTN_SCALE_PER_TENSOR;
            s.lanes = round % 3;
            run_pipeline(&s, topks[round % 6], round % 4 ? 16 * (round % 4) : 0);
        }
    }
}

/* A window over the indexer leaves fewer keys than topk: the lists end in -1, and the rest is as ever. */
static void test_windowed_lists(void) {
    index_spec s;
    index_case c;
    int32_t lists[3 * 40], ke[3], k;
    int j;
    spec_defaults(&s);
    s.layer.window_left = 20;
    s.layer.sink_keys = 4;
    add_request(&s, 1, 3, 300);
    open_index(&c, &s);
    for (j = 0; j < 3; j++) ke[j] = 298 + j;
    if (!plan_and_score(&c) && !attn_topk(c.scores, c.score_row, 3, NULL, ke, 40, lists, NULL)) {
        for (j = 0; j < 3; j++) {
            for (k = 0; k < 40; k++) {
                int32_t want = k < 4 ? k : k < 24 ? 278 + j + k - 4 : -1;
                CHECK(lists[j * 40 + k] == want, "row %d, entry %d: %d, not %d", j, k, lists[j * 40 + k], want);
            }
        }
    }
    close_index(&c);
}

int main(int argc, char **argv) {
    if (argc > 1) test.only = argv[1];
    test_run("index scores: heads 1 to 200, dims 40 to 128", test_shapes);
    test_run("index scores: types, layouts, both matrices", test_types);
    test_run("index scores: bf16, amx", test_amx);
    test_run("index scores: int8 with every kind of scale", test_int8_kinds);
    test_run("index scores: windows, chunks and the other masks", test_windows);
    test_run("index scores: pages before a window are not read", test_unread_pages);
    test_run("index scores: softcap, sinks and alibi do not apply", test_ignored);
    test_run("index scores: lanes, layouts and capacities keep the bits", test_same_bits);
    test_run("index scores: neighbours and E keep the bits", test_neighbours);
    test_run("index scores: NaN stays in its column", test_nan_key);
    test_run("index scores: nothing to score", test_nothing_to_score);
    test_run("index scores: wrong arguments", test_score_errors);
    test_run("index scores: columns outside the matrix", test_column_errors);
    test_run("index scores: layers and phases that have none", test_layer_errors);
    test_run("index scores: pages and scales", test_page_errors);
    test_run("top-k: every row of five special values", test_topk_every_row);
    test_run("top-k: 5000 scores, topk 1 to 5001", test_topk_long);
    test_run("top-k: ranges", test_topk_ranges);
    test_run("top-k: columns outside the range", test_topk_outside);
    test_run("top-k: wrong arguments", test_topk_errors);
    test_run("sparse: scores, lists, attention (SGLang's matrix)", test_matrix);
    test_run("sparse: prompts and chunks of prompts", test_prompts);
    test_run("sparse: ragged batches", test_ragged);
    test_run("sparse: lists from a windowed indexer", test_windowed_lists);
    return test_close("sparse");
}
