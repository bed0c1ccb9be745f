/* cases.c - see cases.h */
#include "cases.h"
#include "isas.h"
#include "ref.h"

#include <math.h>

/* Under the address sanitizer the guards are off limits while the library runs, so a read past an array is seen too. */
#if defined(__SANITIZE_ADDRESS__)
#define CASE_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CASE_ASAN 1
#endif
#endif
#ifdef CASE_ASAN
#include <sanitizer/asan_interface.h>
#endif

/* ---- memory ----------------------------------------------------------------------------------------------------- */

enum { GUARD = 256 };

static void *allocate(size_t bytes) {
    void *p = malloc(bytes + 1);
    if (!p) {
        printf("out of memory: %zu bytes\n", bytes);
        abort();
    }
    return p;
}

static int ref_type(attn_type type) {
    static const int types[] = { REF_F32, REF_F16, REF_BF16, REF_E4M3, REF_E5M2, REF_INT8 };
    return types[type];
}

static size_t size_of(attn_type type) {
    return ref_size(ref_type(type));
}

static unsigned char canary(size_t i) {
    return (unsigned char)(i * 131 + 89);
}

static void buffer_open(case_buffer *b, size_t bytes, size_t offset) {
    b->bytes = bytes;
    b->guard = GUARD + offset;
    if (bytes > SIZE_MAX / 8) abort();
    b->base = (unsigned char *)allocate(bytes + offset + 2 * GUARD);
    b->data = b->base + b->guard;
}

static void buffer_close(case_buffer *b) {
    free(b->base);
    memset(b, 0, sizeof *b);
}

/* The canaries from byte i on: they repeat after 256, so that whole blocks can be copied and compared. */
static const unsigned char *canaries(size_t i) {
    static unsigned char twice[512];
    size_t n;
    for (n = 0; n < 512 && twice[511] != canary(511); n++) twice[n] = canary(n);
    return twice + i % 256;
}

/* Bytes first .. first + count of the memory become canaries, or are they? */
static void mark(case_buffer *b, size_t first, size_t count) {
    size_t n;
    for (; count; first += n, count -= n) {
        n = count < 256 ? count : 256;
        memcpy(b->base + first, canaries(first), n);
    }
}

static int marked(const case_buffer *b, size_t first, size_t count) {
    size_t n;
    for (; count; first += n, count -= n) {
        n = count < 256 ? count : 256;
        if (memcmp(b->base + first, canaries(first), n) != 0) return 0;
    }
    return 1;
}

/* Canaries everywhere, data included. */
static void buffer_mark(case_buffer *b) {
    mark(b, 0, b->guard + b->bytes + GUARD);
}

static int guards_intact(const case_buffer *b) {
    return marked(b, 0, b->guard) && marked(b, b->guard + b->bytes, GUARD);
}

static int untouched(const case_buffer *b) {
    return !b->base || marked(b, b->guard, b->bytes);
}

/* Element patterns that no finite result survives (CASE_HUGE and all of int8 show up through their size). */
static void poison_element(case_poison poison, attn_type type, size_t i, unsigned char *at) {
    static const uint32_t wide[] = { 0xFFFFFFFFu, 0x7F800000u, 0xFF800000u, 0x7F7FFFFFu };
    static const uint16_t half[] = { 0xFFFF, 0x7C00, 0xFC00, 0x7BFF };
    static const uint16_t brain[] = { 0xFFFF, 0x7F80, 0xFF80, 0x7F7F };
    static const uint8_t bytes[][4] = {
        { 0xFF, 0x7F, 0xFF, 0x7E }, { 0xFF, 0x7C, 0xFC, 0x7B }, { 0x80, 0x7F, 0x81, 0x7F }
    };
    size_t kind = poison == CASE_MIXED ? i % 4 : (size_t)poison;
    if (type == ATTN_F32) memcpy(at, &wide[kind], 4);
    else if (type >= ATTN_E4M3) *at = bytes[type - ATTN_E4M3][kind];
    else memcpy(at, type == ATTN_F16 ? &half[kind] : &brain[kind], 2);
}

/* Guards included, so that a read past the end is seen too. */
static void buffer_poison(case_buffer *b, case_poison poison, attn_type type) {
    size_t size = size_of(type);
    size_t first = b->guard % size;
    size_t count = (b->guard + b->bytes + GUARD - first) / size;
    unsigned char pattern[256];
    size_t done;
    size_t n;
    size_t i;
    for (i = 0; i < sizeof pattern / size; i++) poison_element(poison, type, i, pattern + i * size);
    for (done = 0; done < count * size; done += n) {
        n = count * size - done < sizeof pattern ? count * size - done : sizeof pattern;
        memcpy(b->base + first + done, pattern, n);
    }
}

static void guards_lock(const case_buffer *b, int lock) {
#ifdef CASE_ASAN
    if (!b->base) return;
    if (lock) {
        __asan_poison_memory_region(b->base, b->guard);
        __asan_poison_memory_region(b->data + b->bytes, GUARD);
    } else {
        __asan_unpoison_memory_region(b->base, b->guard + b->bytes + GUARD);
    }
#else
    (void)b;
    (void)lock;
#endif
}

static void all_guards_lock(const test_case *c, int lock) {
    guards_lock(&c->q, lock);
    guards_lock(&c->k, lock);
    guards_lock(&c->v, lock);
    guards_lock(&c->o, lock);
    guards_lock(&c->lse, lock);
    guards_lock(&c->table, lock);
    guards_lock(&c->sinks, lock);
    guards_lock(&c->alibi, lock);
    guards_lock(&c->k_scale, lock);
    guards_lock(&c->v_scale, lock);
    guards_lock(&c->tree, lock);
    guards_lock(&c->topk, lock);
    guards_lock(&c->plan_mem, lock);
    guards_lock(&c->exec_mem, lock);
}

/* Four at once: one after the other would wait for each product. */
static uint64_t hash_bytes(uint64_t h, const unsigned char *p, size_t n) {
    uint64_t lane[4] = { h, 1, 2, 3 };
    uint64_t word;
    size_t i;
    int k;
    for (i = 0; i + 32 <= n; i += 32) {
        for (k = 0; k < 4; k++) {
            memcpy(&word, p + i + 8 * k, 8);
            lane[k] = (lane[k] ^ word) * 0x9E3779B97F4A7C15u;
            lane[k] ^= lane[k] >> 29;
        }
    }
    for (; i < n; i++) lane[0] = (lane[0] ^ p[i]) * 0x100000001B3u;
    for (k = 1; k < 4; k++) lane[0] = (lane[0] ^ lane[k]) * 0x9E3779B97F4A7C15u;
    return lane[0];
}

static uint64_t hash_inputs(const test_case *c) {
    uint64_t h = hash_bytes(1, c->q.data, c->q.bytes);
    h = hash_bytes(h, c->k.data, c->k.bytes);
    h = hash_bytes(h, c->v.data, c->v.bytes);
    h = hash_bytes(h, c->table.data, c->table.bytes);
    h = hash_bytes(h, c->sinks.data, c->sinks.bytes);
    h = hash_bytes(h, c->alibi.data, c->alibi.bytes);
    h = hash_bytes(h, c->k_scale.data, c->k_scale.bytes);
    h = hash_bytes(h, c->v_scale.data, c->v_scale.bytes);
    h = hash_bytes(h, c->tree.data, c->tree.bytes);
    return hash_bytes(h, c->topk.data, c->topk.bytes);
}

/* What case_use said. */
static const case_backend *backend;

void case_use(const case_backend *other) {
    backend = other;
}

/* ---- data ------------------------------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t h, uint64_t x) {
    test_rng r;
    r.state = h ^ (x * 0xD6E8FEB86659FD93u);
    return test_next(&r);
}

static float amplitude(const case_spec *s, case_array array) {
    float a = array == CASE_Q ? s->q_amp : array == CASE_K ? s->k_amp : s->v_amp;
    return a != 0 ? a : 1;
}

/* 1 if V is a part of K. */
static int latent(const case_spec *s) {
    return (s->layer.flags & ATTN_V_IN_K) != 0;
}

static int repeat(const case_spec *s, int token) {
    return s->period ? token % s->period : token;
}

/* What a stored element of K or V means: itself times this. The largest code of an 8-bit type stands for 0.7 to 2
   times the largest datum, so that some data saturate. */
static float scale_value(const case_spec *s, case_array array, int request, int token, int head) {
    static const float largest[] = { 1, 1, 1, 448, 57344, 127 };
    int kind = s->layer.scale_kind;
    test_rng r;
    if (array == CASE_Q || !(array == CASE_K ? s->k_scale : s->v_scale)) return 1;
    r.state = mix(s->seed, 555 + (uint64_t)array);
    if (kind != ATTN_SCALE_PER_TENSOR) r.state = mix(r.state, (uint64_t)head);
    if (kind >= ATTN_SCALE_PER_REQUEST) r.state = mix(r.state, s->request[request].content);
    if (kind == ATTN_SCALE_PER_KEY) r.state = mix(r.state, (uint64_t)(int64_t)repeat(s, token));
    return amplitude(s, array) * (1.35f + 0.65f * test_uniform(&r)) / largest[s->layer.kv_type];
}

/* One head of one token, as it is stored. The same (seed, content, token, head) gives the same in every layout. */
static void make_vector(const case_spec *s, case_array array, int request, int token, int head, int dim, float *x) {
    int repeated = array == CASE_Q ? token : repeat(s, token);
    float amp = amplitude(s, array);
    float scale = scale_value(s, array, request, token, head);
    test_rng r;
    int d;
    r.state = mix(mix(mix(mix(s->seed, s->request[request].content), (uint64_t)array), (uint64_t)(int64_t)repeated),
                  (uint64_t)head);
    for (d = 0; d < dim; d++) {
        x[d] = amp * test_uniform(&r);
        if (s->edit) s->edit(s->edit_user, array, request, token, head, d, &x[d]);
        x[d] /= scale;
    }
}

static int query_token(const case_request *r, int row) {
    return r->key_start + r->kv_len - r->q_len + row + r->q_shift;
}

static void store_vector(const float *x, int dim, attn_type type, unsigned char *at) {
    size_t size = size_of(type);
    int d;
    if (type == ATTN_F32) {
        memcpy(at, x, (size_t)dim * size);
        return;
    }
    for (d = 0; d < dim; d++) ref_encode(ref_type(type), x[d], at + (size_t)d * size);
}

static void load_vector(const float *x, int dim, attn_type type, double *to) {
    unsigned char bytes[4];
    int d;
    for (d = 0; d < dim; d++) {
        ref_encode(ref_type(type), x[d], bytes);
        to[d] = ref_decode(ref_type(type), bytes);
    }
}

static int most_keys(const case_spec *s) {
    int most = 0;
    int i;
    for (i = 0; i < s->n; i++) most = s->request[i].kv_len > most ? s->request[i].kv_len : most;
    return most;
}

static float sink_value(const case_spec *s, int head) {
    test_rng r;
    r.state = mix(mix(s->seed, 77), (uint64_t)head);
    return 4 * test_uniform(&r);
}

/* Slopes as models have them: powers of two, and a few that are none. */
static float alibi_slope(int head) {
    static const float slopes[] = { 0.5f, 0.0078125f, 0.3f, 0, 0.0625f };
    return slopes[head % 5];
}

/* ---- trees and lists -------------------------------------------------------------------------------------------- */

static uint32_t *tree_row(const test_case *c, int row) {
    return (uint32_t *)(void *)c->tree.data + (size_t)row * (size_t)c->tree_words;
}

static int32_t *list_row(const test_case *c, int row) {
    return (int32_t *)(void *)c->topk.data + (size_t)row * (size_t)c->layer.topk;
}

static void shuffle(int32_t *list, int n, test_rng *r) {
    int i;
    for (i = n - 1; i > 0; i--) {
        int j = test_range(r, 0, i);
        int32_t t = list[i];
        list[i] = list[j];
        list[j] = t;
    }
}

/* A generator for one row, the same whatever q_len is. */
static test_rng row_rng(const case_spec *s, int request, int row, uint64_t purpose) {
    test_rng r;
    r.state = mix(mix(mix(s->seed, purpose), s->request[request].content), (uint64_t)row);
    return r;
}

static case_tree tree_shape(const case_spec *s, int request) {
    test_rng r = row_rng(s, request, 0, 301);
    return s->tree == CASE_TREE_ANY ? (case_tree)test_range(&r, CASE_TREE_CHAIN, CASE_TREE_WILD) : s->tree;
}

/* The draft that draft `row` follows; -1: a cached token */
static int tree_parent(const case_spec *s, int request, int row) {
    case_tree shape = tree_shape(s, request);
    test_rng r = row_rng(s, request, row, 302);
    if (row == 0) return -1;
    if (shape == CASE_TREE_CHAIN) return row - 1;
    if (shape == CASE_TREE_BINARY) return (row - 1) / 2;
    if (shape == CASE_TREE_SIBLINGS) return 0;
    return test_range(&r, 0, 1) ? row - 1 : test_range(&r, -1, row - 1);
}

static void set_bit(uint32_t *bits, int i) {
    bits[i / 32] |= (uint32_t)1 << i % 32;
}

static void fill_tree_row(test_case *c, int request, int row) {
    uint32_t *bits = tree_row(c, c->first_row[request] + row);
    int wild = tree_shape(&c->spec, request) == CASE_TREE_WILD;
    test_rng r = row_rng(&c->spec, request, row, 303);
    int ancestor;
    int b;
    memset(bits, 0, (size_t)c->tree_words * sizeof *bits);
    for (ancestor = row; ancestor >= 0 && !wild; ancestor = tree_parent(&c->spec, request, ancestor)) {
        set_bit(bits, ancestor);
    }
    for (b = 0; b < 32 * c->tree_words; b++) {
        int one = test_range(&r, 0, 2) == 0;
        if (b >= c->q_len[request] ? one || c->spec.poison == CASE_ONES : wild && (one || b == row)) set_bit(bits, b);
    }
}

/* A list of the row's keys, in an order that is none; returns how many. keys: room for all causal ones */
static int choose_keys(const test_case *c, int request, int row, int32_t *keys) {
    const case_spec *s = &c->spec;
    int horizon = c->kv_len[request] - c->q_len[request] + row + 1;
    int n = s->list_keys && s->list_keys < horizon ? s->list_keys : horizon;
    test_rng r = row_rng(s, request, s->request[request].key_start + horizon, 304);
    int i;
    for (i = 0; i < horizon; i++) keys[i] = i;
    shuffle(keys, horizon, &r);
    return s->list_ragged ? test_range(&r, 0, n) : n;
}

static int ascending(const void *a, const void *b) {
    int32_t x = *(const int32_t *)a;
    int32_t y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

/* What fills a list behind its keys: nothing, or keys past the row, or keys that nobody has. */
static int32_t filler(int horizon, int i, test_rng *r) {
    int kind = test_range(r, 0, 3);
    return kind < 2 ? -1 : kind == 2 ? horizon + i : INT32_MAX - i;
}

static void fill_list_row(test_case *c, int request, int row, int32_t *keys) {
    int32_t *list = list_row(c, c->first_row[request] + row);
    int horizon = c->kv_len[request] - c->q_len[request] + row + 1;
    int n = choose_keys(c, request, row, keys);
    test_rng r;
    int i;
    if (n > c->layer.topk) abort();
    memcpy(list, keys, (size_t)n * sizeof *list);
    if (!c->spec.list_order) {
        qsort(list, (size_t)n, sizeof *list, ascending);
        for (i = n; i < c->layer.topk; i++) list[i] = -1;
        return;
    }
    r = row_rng(&c->spec, request, row, 1000 + (uint64_t)c->spec.list_order);
    for (i = n; i < c->layer.topk; i++) list[i] = filler(horizon, i, &r);
    shuffle(list, c->layer.topk, &r);
}

static void open_masks(test_case *c) {
    size_t offset = (size_t)c->spec.shift * sizeof(int32_t);
    int32_t *keys = (int32_t *)allocate((size_t)most_keys(&c->spec) * sizeof *keys);
    int i;
    int row;
    if (c->layer.mask == ATTN_TREE) {
        buffer_open(&c->tree, (size_t)c->rows * (size_t)c->tree_words * sizeof(uint32_t), offset);
        buffer_poison(&c->tree, c->spec.poison, ATTN_F32);
    }
    if (c->layer.mask == ATTN_TOPK) {
        buffer_open(&c->topk, (size_t)c->rows * (size_t)c->layer.topk * sizeof(int32_t), offset);
        buffer_poison(&c->topk, c->spec.poison, ATTN_F32);
    }
    for (i = 0; i < c->spec.n; i++) {
        for (row = 0; row < c->q_len[i]; row++) {
            if (c->layer.mask == ATTN_TREE) fill_tree_row(c, i, row);
            if (c->layer.mask == ATTN_TOPK) fill_list_row(c, i, row, keys);
        }
    }
    free(keys);
}

/* ---- oracle ----------------------------------------------------------------------------------------------------- */

static void ref_shape(const test_case *c, int request, ref_problem *p) {
    memset(p, 0, sizeof *p);
    p->q_len = c->spec.request[request].q_len;
    p->kv_len = c->spec.request[request].kv_len;
    p->heads = c->heads;
    p->kv_heads = c->kv_heads;
    p->head_dim = c->head_dim;
    p->v_dim = c->v_dim;
    p->causal = c->layer.mask != ATTN_FULL && c->layer.mask != ATTN_TREE;
    p->chunk = c->layer.mask == ATTN_CAUSAL ? c->layer.chunk : 0;
    p->block = c->layer.mask == ATTN_BLOCK ? c->layer.chunk : 0;
    p->prefix_lm = c->layer.mask == ATTN_PREFIX;
    p->prefix = c->spec.request[request].prefix;
    p->tree = c->tree.base ? tree_row(c, c->first_row[request]) : NULL;
    p->tree_words = c->tree_words;
    p->list = c->topk.base ? list_row(c, c->first_row[request]) : NULL;
    p->list_keys = c->layer.topk;
    p->window_left = c->layer.window_left;
    p->window_right = c->layer.window_right;
    p->sink_keys = c->layer.sink_keys;
    p->scale = c->layer.scale != 0 ? (double)c->layer.scale : 1 / sqrt((double)c->head_dim);
    p->softcap = (double)c->layer.softcap;
    p->fast_int8 = (c->layer.flags & ATTN_FAST_INT8) != 0;
}

/* What the oracle is given, decoded */
typedef struct ref_arrays {
    double *q, *k, *v, *k_scale, *v_scale, *sinks, *alibi;
} ref_arrays;

static double *doubles(size_t a, size_t b, size_t c) {
    return (double *)allocate(a * b * c * sizeof(double));
}

static void open_ref_arrays(ref_arrays *a, const ref_problem *p) {
    size_t rows = (size_t)p->q_len;
    size_t keys = (size_t)p->kv_len;
    size_t heads = (size_t)p->heads;
    size_t kv_heads = (size_t)p->kv_heads;
    a->q = doubles(rows, heads, (size_t)p->head_dim);
    a->k = doubles(keys, kv_heads, (size_t)p->head_dim);
    a->v = doubles(keys, kv_heads, (size_t)p->v_dim);
    a->k_scale = doubles(keys, kv_heads, 1);
    a->v_scale = doubles(keys, kv_heads, 1);
    a->sinks = doubles(heads, 1, 1);
    a->alibi = doubles(heads, 1, 1);
}

static void close_ref_arrays(ref_arrays *a) {
    free(a->q);
    free(a->k);
    free(a->v);
    free(a->k_scale);
    free(a->v_scale);
    free(a->sinks);
    free(a->alibi);
}

static void ref_queries(const test_case *c, int request, double *q, float *x) {
    const case_request *r = &c->spec.request[request];
    int i;
    int h;
    for (i = 0; i < r->q_len; i++) {
        for (h = 0; h < c->heads; h++) {
            size_t at = (size_t)i * (size_t)c->heads + (size_t)h;
            make_vector(&c->spec, CASE_Q, request, query_token(r, i), h, c->head_dim, x);
            load_vector(x, c->head_dim, c->layer.q_type, q + at * (size_t)c->head_dim);
        }
    }
}

/* K or V with the scales */
static void ref_cache(const test_case *c, case_array array, int request, int dim, double *to, double *scales,
                      float *x) {
    const case_request *r = &c->spec.request[request];
    int i;
    int h;
    for (i = 0; i < r->kv_len; i++) {
        for (h = 0; h < c->kv_heads; h++) {
            size_t at = (size_t)i * (size_t)c->kv_heads + (size_t)h;
            make_vector(&c->spec, array, request, r->key_start + i, h, dim, x);
            load_vector(x, dim, c->layer.kv_type, to + at * (size_t)dim);
            scales[at] = (double)scale_value(&c->spec, array, request, r->key_start + i, h);
        }
    }
}

static void ref_data(const test_case *c, int request, ref_arrays *a) {
    int most = c->head_dim > c->v_dim ? c->head_dim : c->v_dim;
    float *x = (float *)allocate((size_t)most * sizeof *x);
    int h;
    ref_queries(c, request, a->q, x);
    ref_cache(c, CASE_K, request, c->head_dim, a->k, a->k_scale, x);
    ref_cache(c, latent(&c->spec) ? CASE_K : CASE_V, request, c->v_dim, a->v, a->v_scale, x);
    for (h = 0; h < c->heads; h++) {
        a->sinks[h] = (double)sink_value(&c->spec, h);
        a->alibi[h] = (double)alibi_slope(h);
    }
    free(x);
}

/* What f32 arithmetic may cost. A logit is a sum of head_dim products; its error is a small multiple of the unit
   roundoff times the sum of their magnitudes, `reach`, and it moves the weights by that much. The weighted mean of v
   is a chain of up to kv_len additions whose roundings mostly cancel: 2e-5 of the largest |v| is 300 roundoffs. A key
   too many or too few among n moves the mean by about 1 / n of it, 1e-3 and more in these cases. */
static void ref_slack(const ref_problem *p, double *o_slack, double *lse_slack) {
    size_t i;
    for (i = 0; i < (size_t)p->q_len * (size_t)p->heads; i++) {
        double relative = 2e-5 + 5e-7 * p->reach[i];
        o_slack[i] = relative * p->v_max[i];
        lse_slack[i] = relative;
    }
}

static void ref_request(const test_case *c, int request) {
    size_t at = (size_t)c->first_row[request] * (size_t)c->heads;
    const case_spec *s = &c->spec;
    ref_problem p;
    ref_arrays a;
    ref_shape(c, request, &p);
    open_ref_arrays(&a, &p);
    ref_data(c, request, &a);
    p.q = a.q;
    p.k = a.k;
    p.v = a.v;
    p.k_scale = s->k_scale ? a.k_scale : NULL;
    p.v_scale = (latent(s) ? s->k_scale : s->v_scale) ? a.v_scale : NULL;
    p.sinks = s->sinks ? a.sinks : NULL;
    p.alibi = s->alibi ? a.alibi : NULL;
    p.o = c->ref_o + at * (size_t)c->v_dim;
    p.lse = c->ref_lse + at;
    p.reach = doubles((size_t)p.q_len, (size_t)p.heads, 1);
    p.v_max = c->v_max + at;
    ref_attention(&p);
    ref_slack(&p, c->o_slack + at, c->lse_slack + at);
    close_ref_arrays(&a);
    free(p.reach);
}

static void make_ref(test_case *c) {
    size_t rows = (size_t)c->rows * (size_t)c->heads;
    int i;
    c->ref_o = (double *)allocate(rows * (size_t)c->v_dim * sizeof(double));
    c->ref_lse = (double *)allocate(rows * sizeof(double));
    c->o_slack = (double *)allocate(rows * sizeof(double));
    c->lse_slack = (double *)allocate(rows * sizeof(double));
    c->v_max = (double *)allocate(rows * sizeof(double));
    for (i = 0; i < c->spec.n; i++) ref_request(c, i);
}

/* ---- layout ----------------------------------------------------------------------------------------------------- */

typedef struct kv_layout {
    int64_t page, row, head;
} kv_layout;

/* Keys that one head holds between two page (or request) starts. */
static int64_t block_keys(const test_case *c) {
    if (c->layer.page_size) return c->layer.page_size;
    return c->spec.padded ? most_keys(&c->spec) + 3 : c->first_key[c->spec.n];
}

static kv_layout kv_strides(const test_case *c, int dim, int head_gap, int row_gap, int page_gap) {
    int64_t block = block_keys(c);
    kv_layout s;
    if (head_gap < 0 || !c->spec.head_major) {
        s.head = dim + (head_gap > 0 ? head_gap : 0);
        s.row = s.head * c->kv_heads + (head_gap < 0 ? 0 : row_gap);
        s.page = s.row * block + (head_gap < 0 ? 0 : page_gap);
    } else {
        s.row = dim + row_gap;
        s.head = s.row * (block ? block : 1) + head_gap;
        s.page = s.head * c->kv_heads + page_gap;
    }
    return s;
}

static kv_layout k_strides(const test_case *c) {
    return kv_strides(c, c->head_dim, c->spec.k_head_gap, c->spec.k_row_gap, c->spec.k_page_gap);
}

static kv_layout v_strides(const test_case *c) {
    return kv_strides(c, c->v_dim, c->spec.v_head_gap, c->spec.v_row_gap, c->spec.v_page_gap);
}

static int64_t kv_elements(const test_case *c, const kv_layout *s) {
    if (c->layer.page_size) return s->page * c->io.pages;
    if (c->spec.padded) return s->page * c->spec.n;
    if (s->head * c->kv_heads > s->row * c->first_key[c->spec.n]) return s->head * c->kv_heads;  /* heads outside */
    return s->row * c->first_key[c->spec.n];
}

static int64_t kv_at(const test_case *c, const kv_layout *s, int request, int key, int head) {
    int size = c->layer.page_size;
    int64_t at = head * s->head;
    if (size) {
        int page = c->map[(size_t)request * (size_t)c->columns + (size_t)(key / size)];
        return at + page * s->page + key % size * s->row;
    }
    if (c->spec.padded) return at + request * s->page + key * s->row;
    return at + (c->first_key[request] + key) * s->row;
}

/* Scales per key: no gaps, and beside a padded cache one for each slot. */
static kv_layout scale_strides(const test_case *c, const kv_layout *s) {
    kv_layout scales;
    int64_t slots = (c->kv_heads > 1 && s->head >= s->row ? s->head : s->page) / s->row;
    scales.head = 1;
    scales.row = c->kv_heads;
    scales.page = c->kv_heads * (c->layer.page_size ? c->layer.page_size : slots);
    return scales;
}

static int64_t q_head_stride(const test_case *c) {
    return c->head_dim + (c->spec.q_head_gap > 0 ? c->spec.q_head_gap : 0);
}

static int64_t q_row_stride(const test_case *c) {
    return q_head_stride(c) * c->heads + (c->spec.q_head_gap < 0 ? 0 : c->spec.q_row_gap);
}

static int64_t o_head_stride(const test_case *c) {
    return c->v_dim + (c->spec.o_head_gap > 0 ? c->spec.o_head_gap : 0);
}

static int64_t o_row_stride(const test_case *c) {
    return o_head_stride(c) * c->heads + (c->spec.o_head_gap < 0 ? 0 : c->spec.o_row_gap);
}

static void set_strides(test_case *c) {
    kv_layout k = k_strides(c);
    kv_layout v = v_strides(c);
    int blocks = c->layer.page_size || c->spec.padded;
    if (c->spec.q_head_gap >= 0) {
        c->io.q_head = q_head_stride(c);
        c->io.q_row = q_row_stride(c);
    }
    if (c->spec.o_head_gap >= 0) {
        c->io.o_head = o_head_stride(c);
        c->io.o_row = o_row_stride(c);
    }
    if (c->spec.k_head_gap >= 0) {
        c->io.k_head = k.head;
        c->io.k_row = k.row;
    }
    if (c->spec.padded || (blocks && c->spec.k_head_gap >= 0)) c->io.k_page = k.page;
    if (latent(&c->spec)) return;
    if (c->spec.v_head_gap >= 0) {
        c->io.v_head = v.head;
        c->io.v_row = v.row;
    }
    if (c->spec.padded || (blocks && c->spec.v_head_gap >= 0)) c->io.v_page = v.page;
}

/* ---- pages ------------------------------------------------------------------------------------------------------ */

/* The request whose pages `request` uses: the first of its content when pages are shared. */
static int page_owner(const test_case *c, int request) {
    const case_request *r = c->spec.request;
    int i;
    if (!c->spec.share) return request;
    for (i = 0; i < request; i++) {
        if (r[i].content == r[request].content && r[i].key_start == r[request].key_start) return i;
    }
    return request;
}

static int page_column(const test_case *c, int column) {
    int size = c->layer.page_size;
    int period = c->spec.period;
    return c->spec.share && period && period % size == 0 ? column % (period / size) : column;
}

/* Columns of `owner` that some request uses. */
static int columns_owned(const test_case *c, int owner) {
    int most = 0;
    int i;
    for (i = owner; i < c->spec.n; i++) {
        int columns = (c->kv_len[i] + c->layer.page_size - 1) / c->layer.page_size;
        if (page_owner(c, i) == owner && columns > most) most = columns;
    }
    return most;
}

/* Gives page ids to the columns of the owners: request by request, or column by column when interleaved. */
static int number_pages(test_case *c, int32_t *owned) {
    int interleaved = c->spec.order == CASE_INTERLEAVED;
    int outer = interleaved ? c->columns : c->spec.n;
    int inner = interleaved ? c->spec.n : c->columns;
    int count = 0;
    int a;
    int b;
    for (a = 0; a < outer; a++) {
        for (b = 0; b < inner; b++) {
            int i = interleaved ? b : a;
            int column = interleaved ? a : b;
            if (column < owned[i] && page_column(c, column) == column) {
                c->map[(size_t)i * (size_t)c->columns + (size_t)column] = count++;
            }
        }
    }
    return count;
}

static void order_pages(test_case *c, int used, int32_t *place) {
    test_rng r;
    int i;
    r.state = c->spec.seed ^ 0x5EED;
    for (i = 0; i < c->io.pages; i++) place[i] = c->spec.order == CASE_DESCENDING && i < used ? used - 1 - i : i;
    if (c->spec.order == CASE_SHUFFLED) shuffle(place, c->io.pages, &r);
}

static void make_map(test_case *c) {
    size_t entries = (size_t)c->spec.n * (size_t)c->columns;
    int32_t *owned = (int32_t *)allocate((size_t)c->spec.n * sizeof *owned);
    int32_t *place;
    int used;
    int i;
    int column;
    c->map = (int32_t *)allocate(entries * sizeof *c->map);
    memset(c->map, 0, entries * sizeof *c->map);
    for (i = 0; i < c->spec.n; i++) owned[i] = page_owner(c, i) == i ? columns_owned(c, i) : 0;
    used = number_pages(c, owned);
    c->io.pages = used + c->spec.spare_pages;
    place = (int32_t *)allocate((size_t)c->io.pages * sizeof *place);
    order_pages(c, used, place);
    for (i = 0; i < c->spec.n; i++) {
        int32_t *row = c->map + (size_t)i * (size_t)c->columns;
        for (column = 0; column < owned[i]; column++) {
            row[column] = page_column(c, column) == column ? place[row[column]] : row[page_column(c, column)];
        }
    }
    for (i = 0; i < c->spec.n; i++) {
        size_t owner = (size_t)page_owner(c, i);
        memcpy(c->map + (size_t)i * (size_t)c->columns, c->map + owner * (size_t)c->columns,
               (size_t)c->columns * sizeof *c->map);
    }
    free(owned);
    free(place);
}

/* ---- what no row sees ------------------------------------------------------------------------------------------- */

void case_sees(const test_case *c, int request, int row, unsigned char *sees) {
    ref_problem p;
    ref_shape(c, request, &p);
    ref_row(&p, row, sees);
}

/* hidden[key] = 1 if no row of the request sees the key; the caller frees it. */
static unsigned char *hidden_keys(const ref_problem *p) {
    unsigned char *hidden = (unsigned char *)allocate((size_t)p->kv_len);
    unsigned char *sees = (unsigned char *)allocate((size_t)p->kv_len);
    int row;
    int key;
    memset(hidden, 1, (size_t)p->kv_len);
    for (row = 0; row < p->q_len; row++) {
        ref_row(p, row, sees);
        for (key = 0; key < p->kv_len; key++) hidden[key] &= !sees[key];
    }
    free(sees);
    return hidden;
}

/* A page that lies before every row's window, or whose keys are on no row's list, or that belongs to a request without
   rows. Where the first row of a tree stands is not known before its bits are read: it counts as the first draft. */
static int page_hidden(const ref_problem *p, const unsigned char *hidden, int column, int size) {
    int key = column * size;
    int end = key + size < p->kv_len ? key + size : p->kv_len;
    int past = p->kv_len - p->q_len;
    if (p->q_len && !p->list && end > past) return 0;
    if (p->q_len && p->tree && end > past - p->window_left + 1) return 0;
    for (; key < end; key++) {
        if (!hidden[key]) return 0;
    }
    return 1;
}

static int32_t bad_page(int i) {
    static const int32_t bad[] = { -1, INT32_MAX, INT32_MIN, 0x40000000, -77 };
    return bad[i % 5];
}

static void fill_table(test_case *c) {
    int size = c->layer.page_size;
    size_t width = (size_t)(c->io.page_table_row ? c->io.page_table_row : c->columns);
    int32_t *table = (int32_t *)(void *)c->table.data;
    unsigned char *hidden;
    ref_problem p;
    size_t t;
    int i;
    int column;
    for (t = 0; t < c->table.bytes / sizeof *table; t++) table[t] = bad_page((int)t);
    for (i = 0; i < c->spec.n; i++) {
        ref_shape(c, i, &p);
        hidden = c->spec.hide ? hidden_keys(&p) : NULL;
        for (column = 0; column * size < p.kv_len; column++) {
            if (c->spec.hide && page_hidden(&p, hidden, column, size)) continue;
            table[(size_t)i * width + (size_t)column] = c->map[(size_t)i * (size_t)c->columns + (size_t)column];
        }
        free(hidden);
    }
}

/* ---- building --------------------------------------------------------------------------------------------------- */

static void fill_q(test_case *c) {
    float *x = (float *)allocate((size_t)c->head_dim * sizeof *x);
    size_t size = size_of(c->layer.q_type);
    int i;
    int row;
    int h;
    for (i = 0; i < c->spec.n; i++) {
        for (row = 0; row < c->q_len[i]; row++) {
            for (h = 0; h < c->heads; h++) {
                int64_t at = (c->first_row[i] + row) * q_row_stride(c) + h * q_head_stride(c);
                make_vector(&c->spec, CASE_Q, i, query_token(&c->spec.request[i], row), h, c->head_dim, x);
                store_vector(x, c->head_dim, c->layer.q_type, c->q.data + (size_t)at * size);
            }
        }
    }
    free(x);
}

/* K or V and its scales */
typedef struct cache {
    case_array array;
    case_buffer *data, *scale;
    kv_layout strides, scale_strides;
    int dim;
    float *x;                       /* room for one vector */
} cache;

static void open_cache(cache *k, test_case *c, case_array array) {
    k->array = array;
    k->data = array == CASE_K ? &c->k : &c->v;
    k->scale = array == CASE_K ? &c->k_scale : &c->v_scale;
    k->strides = array == CASE_K ? k_strides(c) : v_strides(c);
    k->dim = array == CASE_K ? c->head_dim : c->v_dim;
    k->scale_strides = scale_strides(c, &k->strides);
    k->x = (float *)allocate((size_t)k->dim * sizeof *k->x);
}

/* Calls store for every key that is not left poisoned. */
static void each_key(test_case *c, const cache *k,
                     void (*store)(const test_case *c, const cache *k, int request, int key, int head)) {
    int hide = c->spec.hide && !c->spec.share;
    unsigned char *hidden = NULL;
    ref_problem p;
    int i;
    int key;
    int h;
    for (i = 0; i < c->spec.n; i++) {
        ref_shape(c, i, &p);
        if (hide) hidden = hidden_keys(&p);
        for (key = 0; key < p.kv_len; key++) {
            if (hide && hidden[key]) continue;
            for (h = 0; h < c->kv_heads; h++) store(c, k, i, key, h);
        }
        if (hide) free(hidden);
    }
}

static void store_key(const test_case *c, const cache *k, int request, int key, int head) {
    size_t at = (size_t)kv_at(c, &k->strides, request, key, head) * size_of(c->layer.kv_type);
    make_vector(&c->spec, k->array, request, c->spec.request[request].key_start + key, head, k->dim, k->x);
    store_vector(k->x, k->dim, c->layer.kv_type, k->data->data + at);
}

static void store_scale(const test_case *c, const cache *k, int request, int key, int head, int64_t at) {
    int token = c->spec.request[request].key_start + key;
    ((float *)(void *)k->scale->data)[at] = scale_value(&c->spec, k->array, request, token, head);
}

static void store_key_scale(const test_case *c, const cache *k, int request, int key, int head) {
    store_scale(c, k, request, key, head, kv_at(c, &k->scale_strides, request, key, head));
}

static void open_scales(test_case *c, const cache *k) {
    int kind = c->layer.scale_kind;
    int64_t heads = kind == ATTN_SCALE_PER_TENSOR ? 1 : c->kv_heads;
    int64_t count = kind == ATTN_SCALE_PER_REQUEST ? heads * c->spec.n : heads;
    int64_t i;
    if (kind == ATTN_SCALE_PER_KEY) count = kv_elements(c, &k->scale_strides);
    buffer_open(k->scale, (size_t)count * sizeof(float), (size_t)c->spec.shift * sizeof(float));
    buffer_poison(k->scale, c->spec.poison, ATTN_F32);
    if (kind == ATTN_SCALE_PER_KEY) {
        each_key(c, k, store_key_scale);
        return;
    }
    for (i = 0; i < count; i++) {
        int request = (int)(i / heads);
        int unused = kind == ATTN_SCALE_PER_REQUEST && (!c->q_len[request] || !c->kv_len[request]);
        if (!(c->spec.hide && unused)) store_scale(c, k, request, 0, (int)(i % heads), i);
    }
}

static void open_kv(test_case *c, case_array array) {
    size_t size = size_of(c->layer.kv_type);
    cache k;
    open_cache(&k, c, array);
    buffer_open(k.data, (size_t)kv_elements(c, &k.strides) * size, (size_t)c->spec.shift * size);
    buffer_poison(k.data, c->spec.poison, c->layer.kv_type);
    each_key(c, &k, store_key);
    if (array == CASE_K ? c->spec.k_scale : c->spec.v_scale) open_scales(c, &k);
    free(k.x);
}

static void open_arrays(test_case *c) {
    size_t q_size = size_of(c->layer.q_type);
    size_t o_size = size_of(c->layer.o_type);
    size_t shift = (size_t)c->spec.shift;
    size_t width;
    int h;
    buffer_open(&c->q, (size_t)(c->rows * q_row_stride(c)) * q_size, shift * q_size);
    buffer_poison(&c->q, c->spec.poison, c->layer.q_type);
    fill_q(c);
    open_kv(c, CASE_K);
    if (!latent(&c->spec)) open_kv(c, CASE_V);
    buffer_open(&c->o, (size_t)(c->rows * o_row_stride(c)) * o_size, shift * o_size);
    if (c->spec.lse) buffer_open(&c->lse, (size_t)c->rows * (size_t)c->heads * sizeof(float), shift * sizeof(float));
    if (c->layer.page_size) {
        width = (size_t)(c->io.page_table_row ? c->io.page_table_row : c->columns);
        buffer_open(&c->table, (size_t)c->spec.n * width * sizeof(int32_t), 0);
        fill_table(c);
    }
    if (c->spec.alibi) {
        buffer_open(&c->alibi, (size_t)c->heads * sizeof(float), 0);
        buffer_poison(&c->alibi, c->spec.poison, ATTN_F32);
        for (h = 0; h < c->heads; h++) ((float *)(void *)c->alibi.data)[h] = alibi_slope(h);
    }
    if (c->spec.sinks) {
        buffer_open(&c->sinks, (size_t)c->heads * sizeof(float), 0);
        buffer_poison(&c->sinks, c->spec.poison, ATTN_F32);
        for (h = 0; h < c->heads; h++) ((float *)(void *)c->sinks.data)[h] = sink_value(&c->spec, h);
    }
}

static void set_batch(test_case *c) {
    const case_spec *s = &c->spec;
    int most_q = 0;
    int most_kv = 0;
    int ones = 1;
    int decodes = 0;
    int i;
    for (i = 0; i < s->n; i++) {
        c->q_len[i] = s->request[i].q_len;
        c->kv_len[i] = s->request[i].kv_len;
        c->phase[i] = s->request[i].phase;
        c->prefix[i] = s->request[i].prefix;
        c->first_row[i + 1] = c->first_row[i] + c->q_len[i];
        c->first_key[i + 1] = c->first_key[i] + c->kv_len[i];
        most_q = c->q_len[i] > most_q ? c->q_len[i] : most_q;
        most_kv = c->kv_len[i] > most_kv ? c->kv_len[i] : most_kv;
        ones = ones && c->q_len[i] == 1;
        decodes += c->phase[i] == ATTN_DECODE;
    }
    c->rows = c->first_row[s->n];
    c->batch.n = s->n;
    c->batch.q_len = s->null_arrays && ones ? NULL : c->q_len;
    c->batch.kv_len = c->kv_len;
    c->batch.prefix = c->layer.mask == ATTN_PREFIX || !s->null_arrays ? c->prefix : NULL;
    c->batch.phase = s->null_arrays && decodes == (c->batch.q_len ? 0 : s->n) ? NULL : c->phase;
    if (s->more_q >= 0) c->batch.max_q_len = most_q + s->more_q;
    if (s->more_kv >= 0) c->batch.max_kv_len = most_kv + s->more_kv;
    if (s->more_rows >= 0) c->batch.max_rows = c->rows + s->more_rows;
    c->tree_words = ((c->batch.max_q_len ? c->batch.max_q_len : most_q) + 31) / 32;
    if (s->layer.page_size) {
        c->columns = (most_kv + (s->more_kv > 0 ? s->more_kv : 0) + s->layer.page_size - 1) / s->layer.page_size;
    }
}

static void set_exec(test_case *c) {
    c->exec.lanes = c->spec.lanes;
    if (c->spec.lanes) {
        c->lane_seed = c->spec.seed;
        c->exec.user = &c->lane_seed;
        c->exec.parallel_for = case_lanes;
    }
}

static int tiles;

void case_tiles(int on) {
    tiles = on;
}

static void make_tiles(attn_layer *l) {
    l->q_type = l->kv_type = l->o_type = ATTN_BF16;
    l->head_dim = (l->head_dim + 31) / 32 * 32;
    l->v_dim = (l->v_dim + 31) / 32 * 32;
    l->flags &= ~ATTN_FAST_INT8;
    if (l->scale_kind == ATTN_SCALE_PER_KEY) l->scale_kind = ATTN_SCALE_PER_TENSOR;
}

void case_open(test_case *c, const case_spec *given) {
    const case_spec *s = &c->spec;
    memset(c, 0, sizeof *c);
    c->spec = *given;
    if (tiles) make_tiles(&c->spec.layer);
    c->backend = backend;
    c->layer = s->layer;
    c->heads = s->layer.heads;
    c->kv_heads = s->layer.kv_heads ? s->layer.kv_heads : s->layer.heads;
    c->head_dim = s->layer.head_dim;
    c->v_dim = s->layer.v_dim ? s->layer.v_dim : s->layer.head_dim;
    set_batch(c);
    set_exec(c);
    if (s->layer.page_size) {
        make_map(c);
        if (s->table_gap) c->io.page_table_row = c->columns + s->table_gap;
    }
    open_masks(c);
    open_arrays(c);
    set_strides(c);
    c->io.q = c->q.data;
    c->io.k = c->k.data;
    c->io.v = c->v.data;
    c->io.o = c->o.data;
    c->io.lse = s->lse ? (float *)(void *)c->lse.data : NULL;
    c->io.page_table = c->table.base ? (const int32_t *)(void *)c->table.data : NULL;
    c->io.sinks = s->sinks ? (const float *)(void *)c->sinks.data : NULL;
    c->io.alibi = s->alibi ? (const float *)(void *)c->alibi.data : NULL;
    c->io.k_scale = (float *)(void *)c->k_scale.data;
    c->io.v_scale = (float *)(void *)c->v_scale.data;
    c->io.tree = (const uint32_t *)(void *)c->tree.data;
    c->io.topk = (const int32_t *)(void *)c->topk.data;
    c->out = (unsigned char *)allocate((size_t)c->rows * (size_t)c->heads * (size_t)c->v_dim * 4);
    c->out_lse = (float *)allocate((size_t)c->rows * (size_t)c->heads * sizeof(float));
    case_rehash(c);
    case_reset_outputs(c);
}

void case_rehash(test_case *c) {
    c->input_hash = hash_inputs(c);
}

void case_close(test_case *c) {
    if (c->backend) c->backend->close(c);
    buffer_close(&c->q);
    buffer_close(&c->k);
    buffer_close(&c->v);
    buffer_close(&c->o);
    buffer_close(&c->lse);
    buffer_close(&c->table);
    buffer_close(&c->sinks);
    buffer_close(&c->alibi);
    buffer_close(&c->k_scale);
    buffer_close(&c->v_scale);
    buffer_close(&c->tree);
    buffer_close(&c->topk);
    buffer_close(&c->plan_mem);
    buffer_close(&c->exec_mem);
    free(c->map);
    free(c->out);
    free(c->out_lse);
    free(c->ref_o);
    free(c->ref_lse);
    free(c->o_slack);
    free(c->lse_slack);
    free(c->v_max);
    memset(c, 0, sizeof *c);
}

/* ---- running ---------------------------------------------------------------------------------------------------- */

void case_lanes(void *user, int lanes, void (*fn)(void *ctx, int lane), void *ctx) {
    test_rng r;
    int32_t order[64];
    int i;
    r.state = *(uint64_t *)user;
    if (lanes > 64) abort();
    for (i = 0; i < lanes; i++) order[i] = i;
    shuffle(order, lanes, &r);
    for (i = 0; i < lanes; i++) fn(ctx, order[i]);
}

static int complain(test_case *c, const char *what) {
    snprintf(c->message, sizeof c->message, "%s", what);
    return -1;
}

/* Marked memory of exactly `bytes`, aligned to `align` and to nothing above. */
static void open_work(case_buffer *b, size_t bytes, size_t offset, int fill) {
    if (b->base) buffer_close(b);
    buffer_open(b, bytes, offset);
    mark(b, 0, b->guard);
    memset(b->data, fill, bytes);
    mark(b, b->guard + bytes, GUARD);
}

static int plan_here(test_case *c) {
    size_t bytes = attn_plan_bytes(&c->batch, &c->layer);
    int status;
    open_work(&c->plan_mem, bytes, 8, c->spec.fill);
    memset(&c->plan, 0xCC, sizeof c->plan);
    memset(&c->error, 0, sizeof c->error);
    all_guards_lock(c, 1);
    status = attn_plan_make(&c->plan, &c->batch, &c->layer, c->plan_mem.data, bytes, &c->error);
    all_guards_lock(c, 0);
    if (!guards_intact(&c->plan_mem)) return complain(c, "attn_plan_make wrote outside its memory");
    if (status == ATTN_OK && bytes == 0) return complain(c, "attn_plan_bytes is 0 for a valid plan");
    if (status != ATTN_OK && bytes != 0) return complain(c, "attn_plan_bytes is not 0 for a plan that is refused");
    return status;
}

int case_plan(test_case *c) {
    return c->backend ? c->backend->plan(c) : plan_here(c);
}

void case_reset_outputs(test_case *c) {
    buffer_mark(&c->o);
    if (c->lse.base) buffer_mark(&c->lse);
}

int case_untouched(const test_case *c) {
    return untouched(&c->o) && untouched(&c->lse) && guards_intact(&c->o) && (!c->lse.base || guards_intact(&c->lse));
}

/* Copies the outputs out of their strides and puts canaries back in their place: then all must be canaries. */
static void gather(test_case *c) {
    size_t size = size_of(c->layer.o_type);
    size_t dim = (size_t)c->v_dim * size;
    int row;
    int h;
    for (row = 0; row < c->rows; row++) {
        for (h = 0; h < c->heads; h++) {
            size_t at = (size_t)(row * o_row_stride(c) + h * o_head_stride(c)) * size;
            memcpy(c->out + ((size_t)row * (size_t)c->heads + (size_t)h) * dim, c->o.data + at, dim);
            mark(&c->o, c->o.guard + at, dim);
        }
    }
    if (c->lse.base) {
        memcpy(c->out_lse, c->lse.data, c->lse.bytes);
        mark(&c->lse, c->lse.guard, c->lse.bytes);
    }
}

static int forward_here(test_case *c) {
    size_t bytes = attn_exec_bytes(&c->plan, c->exec.lanes);
    int status;
    open_work(&c->exec_mem, bytes, 0, c->spec.fill);
    c->exec.mem = c->exec_mem.data;
    c->exec.bytes = bytes;
    memset(&c->error, 0, sizeof c->error);
    all_guards_lock(c, 1);
    status = attn_forward(&c->plan, &c->layer, &c->io, &c->exec, &c->error);
    all_guards_lock(c, 0);
    if (!guards_intact(&c->exec_mem)) return complain(c, "attn_forward wrote outside exec.mem");
    if (!guards_intact(&c->plan_mem)) return complain(c, "attn_forward wrote beside the plan's memory");
    return status;
}

int case_forward(test_case *c) {
    int status;
    case_reset_outputs(c);
    status = c->backend ? c->backend->forward(c) : forward_here(c);
    if (status < 0) return status;
    if (hash_inputs(c) != c->input_hash) return complain(c, "attn_forward changed an input");
    if (status == ATTN_OK) gather(c);
    if (!case_untouched(c)) {
        return complain(c, status ? "attn_forward wrote outputs and failed" : "attn_forward wrote beside the outputs");
    }
    return status;
}

/* ---- comparison ------------------------------------------------------------------------------------------------- */

static double out_element(const test_case *c, size_t i) {
    return ref_decode(ref_type(c->layer.o_type), c->out + i * size_of(c->layer.o_type));
}

double case_o(const test_case *c, int request, int row, int head, int dim) {
    size_t at = (size_t)(c->first_row[request] + row) * (size_t)c->heads + (size_t)head;
    return out_element(c, at * (size_t)c->v_dim + (size_t)dim);
}

double case_lse(const test_case *c, int request, int row, int head) {
    return (double)c->out_lse[(size_t)(c->first_row[request] + row) * (size_t)c->heads + (size_t)head];
}

static int close_enough(double got, double want, double slack) {
    if (got == want) return 1;
    return fabs(got - want) <= slack;
}

static int request_of(const test_case *c, size_t at) {
    int row = (int)(at / (size_t)c->heads);
    int request = 0;
    while (c->first_row[request + 1] <= row) request++;
    return request;
}

/* AMX rounds the weights of prompts to bf16 where q, cache and o are bf16: each by up to 2^-8 of itself. That hides a
   key too many among 250 and more here, but not in lse. */
double case_slack(const test_case *c, size_t at) {
    const attn_layer *l = &c->layer;
    int bf16 = l->q_type == ATTN_BF16 && l->kv_type == ATTN_BF16 && l->o_type == ATTN_BF16;
    int amx = bf16 && c->plan.resolved.isa == ATTN_ISA_AMX && c->head_dim % 32 == 0 && c->v_dim % 32 == 0;
    return c->o_slack[at] + (amx && c->phase[request_of(c, at)] == ATTN_PREFILL ? ldexp(c->v_max[at], -8) : 0);
}

static const char *differs(test_case *c, size_t at, int dim, double got, double want, double slack) {
    int row = (int)(at / (size_t)c->heads);
    int request = request_of(c, at);
    snprintf(c->message, sizeof c->message, "%s request %d row %d head %d dim %d: got %.9g, want %.9g +- %.2g (isa %s)",
             dim < 0 ? "lse" : "o", request, row - c->first_row[request], (int)(at % (size_t)c->heads), dim, got, want,
             slack, case_isa_name((attn_isa)c->layer.isa));
    return c->message;
}

const char *case_compare(test_case *c) {
    size_t rows = (size_t)c->rows * (size_t)c->heads;
    int type = ref_type(c->layer.o_type);
    size_t at;
    int d;
    if (!c->ref_o) make_ref(c);
    for (at = 0; at < rows; at++) {
        double got = (double)c->out_lse[at], room = case_slack(c, at);
        if (c->lse.base && !close_enough(got, c->ref_lse[at], c->lse_slack[at])) {
            return differs(c, at, -1, got, c->ref_lse[at], c->lse_slack[at]);
        }
        for (d = 0; d < c->v_dim; d++) {
            size_t i = at * (size_t)c->v_dim + (size_t)d;
            double want = c->ref_o[i];
            double slack = room + ref_rounding(type, fabs(want) + room);
            got = out_element(c, i);
            if (!close_enough(got, want, slack)) return differs(c, at, d, got, want, slack);
        }
    }
    return NULL;
}

const char *case_run(test_case *c) {
    int status = case_plan(c);
    if (status > 0) snprintf(c->message, sizeof c->message, "attn_plan_make: %d %s", status, c->error.text);
    if (status) return c->message;
    status = case_forward(c);
    if (status > 0) snprintf(c->message, sizeof c->message, "attn_forward: %d %s", status, c->error.text);
    if (status) return c->message;
    return case_compare(c);
}

int case_same_row(const test_case *a, int request_a, int row_a, const test_case *b, int request_b, int row_b) {
    size_t heads = (size_t)a->heads;
    size_t bytes = heads * (size_t)a->v_dim * size_of(a->layer.o_type);
    size_t i = (size_t)(a->first_row[request_a] + row_a);
    size_t j = (size_t)(b->first_row[request_b] + row_b);
    if (a->heads != b->heads || a->v_dim != b->v_dim || a->layer.o_type != b->layer.o_type) return 0;
    if (memcmp(a->out + i * bytes, b->out + j * bytes, bytes) != 0) return 0;
    if (!a->lse.base || !b->lse.base) return 1;
    return memcmp(a->out_lse + i * heads, b->out_lse + j * heads, heads * sizeof(float)) == 0;
}

int case_same(const test_case *a, const test_case *b) {
    int i;
    int row;
    if (a->spec.n != b->spec.n) return 0;
    for (i = 0; i < a->spec.n; i++) {
        if (a->q_len[i] != b->q_len[i]) return 0;
        for (row = 0; row < a->q_len[i]; row++) {
            if (!case_same_row(a, i, row, b, i, row)) return 0;
        }
    }
    return 1;
}

/* ---- specifications --------------------------------------------------------------------------------------------- */

void case_defaults(case_spec *s) {
    memset(s, 0, sizeof *s);
    s->layer.heads = 2;
    s->layer.head_dim = 16;
    s->n = 1;
    s->request[0].q_len = 1;
    s->request[0].kv_len = 1;
    s->q_head_gap = -1;
    s->o_head_gap = -1;
    s->k_head_gap = -1;
    s->v_head_gap = -1;
    s->more_q = -1;
    s->more_kv = -1;
    s->more_rows = -1;
    s->poison = CASE_MIXED;
    s->lse = 1;
    s->fill = 0xFF;
    s->seed = 1;
}

static int pick(test_rng *r, const int *list, int n) {
    return list[test_range(r, 0, n - 1)];
}

static int chance(test_rng *r, int percent) {
    return test_range(r, 1, 100) <= percent;
}

#define PICK(r, list) pick(r, list, (int)(sizeof(list) / sizeof *(list)))

static void random_heads(attn_layer *l, test_rng *r) {
    static const int ratios[] = { 1, 1, 1, 2, 2, 3, 4, 4, 5, 6, 7, 8, 8, 9, 10, 11, 12, 13, 14, 15, 16, 32, 64 };
    static const int dims[] = { 1, 3, 8, 16, 16, 40, 64, 64, 72, 80, 88, 96, 112, 128, 128, 192, 256, 576 };
    static const int v_dims[] = { 1, 5, 8, 16, 24, 64, 100, 128, 512 };
    int ratio = PICK(r, ratios);
    int kv_heads = ratio > 16 ? 1 : test_range(r, 1, 4);
    l->heads = ratio * kv_heads;
    l->kv_heads = ratio == 1 && chance(r, 50) ? 0 : kv_heads;
    l->head_dim = PICK(r, dims);
    if (l->head_dim == 576) l->v_dim = 512;
    else if (l->head_dim == 192 && chance(r, 50)) l->v_dim = 128;
    else if (chance(r, 25)) l->v_dim = PICK(r, v_dims);
    if (kv_heads == 1 && l->v_dim <= l->head_dim && chance(r, l->head_dim == 576 ? 70 : 15)) l->flags |= ATTN_V_IN_K;
}

static void random_types(case_spec *s, test_rng *r) {
    static const attn_type types[] = { ATTN_F32, ATTN_F16, ATTN_BF16, ATTN_E4M3, ATTN_E5M2, ATTN_INT8 };
    attn_layer *l = &s->layer;
    int percent;
    l->q_type = types[test_range(r, 0, 2)];
    l->kv_type = chance(r, 30) ? types[test_range(r, 3, 5)] : chance(r, 50) ? l->q_type : types[test_range(r, 0, 2)];
    l->o_type = chance(r, 50) ? l->q_type : types[test_range(r, 0, 2)];
    percent = l->kv_type == ATTN_INT8 ? 100 : l->kv_type >= ATTN_E4M3 ? 70 : 10;
    l->scale_kind = test_range(r, ATTN_SCALE_PER_TENSOR, ATTN_SCALE_PER_KEY - (l->kv_type != ATTN_INT8));
    s->k_scale = chance(r, percent);
    s->v_scale = chance(r, percent) && !latent(s);
}

static void random_mask(attn_layer *l, test_rng *r) {
    static const int windows[] = { 1, 1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 95, 96, 97, 127, 128, 129, 255, 256,
                                   257, 400, 513, 100000, INT32_MAX };
    static const int keys[] = { 1, 4, 63, 64, 65, 300, INT32_MAX };
    static const int chunks[] = { 1, 2, 7, 16, 32, 64, 96, 100, 256, 300, INT32_MAX };
    static const int masks[] = { ATTN_CAUSAL, ATTN_CAUSAL, ATTN_CAUSAL, ATTN_FULL, ATTN_FULL, ATTN_PREFIX, ATTN_BLOCK };
    l->mask = (attn_mask)PICK(r, masks);
    if (chance(r, 16)) l->mask = chance(r, 50) ? ATTN_TREE : ATTN_TOPK;
    if (l->mask == ATTN_BLOCK || (l->mask == ATTN_CAUSAL && chance(r, 15))) l->chunk = PICK(r, chunks);
    if (chance(r, 50)) l->window_left = PICK(r, windows);
    if (chance(r, l->mask != ATTN_CAUSAL ? 40 : 10)) l->window_right = PICK(r, windows);
    if (chance(r, 30) && !(l->mask == ATTN_CAUSAL && l->chunk)) l->sink_keys = PICK(r, keys);
}

static void random_score(attn_layer *l, test_rng *r) {
    static const float caps[] = { 0.5f, 5, 30, 50 };
    static const float scales[] = { 0.01f, 0.125f, 0.3f, 1 };
    if (chance(r, 30)) l->softcap = caps[test_range(r, 0, 3)];
    if (chance(r, 40) || l->flags & ATTN_V_IN_K) l->scale = scales[test_range(r, 0, 3)];
}

static void random_tiles(attn_layer *l, test_rng *r) {
    static const int key_tiles[] = { 0, 32, 64, 96, 128 };
    static const int workers[] = { 0, 1, 2, 3, 7, 64, 200 };
    if (chance(r, 40)) l->split_keys = 256 * test_range(r, 1, 3);
    l->key_tile = chance(r, 50) ? 0 : PICK(r, key_tiles);
    if (l->split_keys && l->key_tile == 96) l->key_tile = 64;
    l->row_tile = chance(r, 40) ? 0 : 16 * test_range(r, 1, 16);
    l->workers = PICK(r, workers);
    if (chance(r, 20)) l->flags |= ATTN_TRUSTED;
}

static int random_length(test_rng *r) {
    static const int edges[] = { 1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 95, 96, 97, 127, 128, 129, 191, 192, 193,
                                 255, 256, 257, 511, 512, 513, 767, 768, 769, 1025 };
    if (chance(r, 6)) return 0;
    if (chance(r, 30)) return test_range(r, 1, 40);
    if (chance(r, 60)) return PICK(r, edges);
    return test_range(r, 1, 1100);
}

static int random_rows(test_rng *r, int kv_len, int causal) {
    static const int edges[] = { 1, 1, 1, 2, 3, 4, 5, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 256, 257 };
    int rows = chance(r, 4) ? 0 : chance(r, 20) ? kv_len : PICK(r, edges);
    return causal && rows > kv_len ? kv_len : rows;
}

/* Lengths until the work is spent: a request that would cost too much is cut. */
static void random_requests(case_spec *s, test_rng *r, double work) {
    static const int counts[] = { 0, 1, 1, 2, 3, 4, 5, 8, 17, 33 };
    const attn_layer *l = &s->layer;
    double per_pair = (double)l->heads * (l->head_dim + (l->v_dim ? l->v_dim : l->head_dim));
    int phases = test_range(r, 0, 2);
    int i;
    s->n = chance(r, 2) ? 0 : PICK(r, counts);
    for (i = 0; i < s->n; i++) {
        case_request *q = &s->request[i];
        q->kv_len = random_length(r);
        q->q_len = random_rows(r, q->kv_len, l->mask != ATTN_FULL);
        while (q->q_len > 1 && q->q_len * (double)q->kv_len * per_pair > work) q->q_len = (q->q_len + 1) / 2;
        while (q->kv_len > q->q_len && q->q_len * (double)q->kv_len * per_pair > work) q->kv_len -= q->kv_len / 8 + 1;
        if (q->kv_len < 0) q->kv_len = 0;
        if (l->mask != ATTN_FULL && q->q_len > q->kv_len) q->q_len = q->kv_len;
        q->prefix = test_range(r, 0, q->kv_len);
        work -= q->q_len * (double)q->kv_len * per_pair;
        q->phase = phases == 2 ? test_range(r, 0, 1) : phases;
        q->content = (uint32_t)(chance(r, 30) ? 0 : i);
    }
}

static int random_gap(test_rng *r) {
    static const int gaps[] = { 0, 0, 1, 3, 8, 16, 33 };
    return PICK(r, gaps);
}

static void random_gaps(test_rng *r, int *head, int *row, int *page) {
    *head = chance(r, 50) ? -1 : random_gap(r);
    *row = random_gap(r);
    *page = random_gap(r);
}

static void random_lists(case_spec *s, test_rng *r) {
    static const int keys[] = { 0, 0, 1, 2, 31, 32, 33, 64, 100, 255, 256, 257, 300, 600 };
    if (s->layer.mask != ATTN_TOPK) return;
    s->list_keys = PICK(r, keys);
    s->list_ragged = chance(r, 30);
}

/* How lists are written: the set of their keys stays. */
static void random_list_layout(case_spec *s, test_rng *r) {
    static const int more[] = { 0, 0, 1, 7, 64 };
    if (s->layer.mask != ATTN_TOPK) return;
    s->layer.topk = (s->list_keys ? s->list_keys : most_keys(s)) + PICK(r, more);
    if (s->layer.topk == 0) s->layer.topk = 1;
    s->list_order = chance(r, 30) ? 0 : test_range(r, 1, 1000);
}

static void random_layout(case_spec *s, test_rng *r) {
    static const int pages[] = { 1, 2, 3, 16, 16, 48, 64, 256 };
    int unused;
    if (chance(r, 50)) s->layer.page_size = PICK(r, pages);
    else s->padded = chance(r, 40);
    s->head_major = chance(r, 40);
    random_gaps(r, &s->q_head_gap, &s->q_row_gap, &unused);
    random_gaps(r, &s->o_head_gap, &s->o_row_gap, &unused);
    random_gaps(r, &s->k_head_gap, &s->k_row_gap, &s->k_page_gap);
    random_gaps(r, &s->v_head_gap, &s->v_row_gap, &s->v_page_gap);
    s->shift = chance(r, 50) ? 0 : test_range(r, 1, 17);
    s->order = (case_order)test_range(r, CASE_CONTIGUOUS, CASE_DESCENDING);
    s->share = s->layer.page_size && chance(r, 30);
    if (s->share && chance(r, 30)) s->period = s->layer.page_size * test_range(r, 1, 3);
    s->spare_pages = test_range(r, 0, 3);
    s->table_gap = chance(r, 50) ? 0 : test_range(r, 1, 9);
    s->poison = (case_poison)test_range(r, 0, CASE_POISONS - 1);
    s->hide = chance(r, 60);
    random_list_layout(s, r);
}

static void random_call(case_spec *s, test_rng *r) {
    static const int more[] = { -1, -1, 0, 1, 7, 300 };
    static const int lanes[] = { 0, 0, 1, 2, 3, 7 };
    s->sinks = chance(r, 35);
    s->alibi = chance(r, 15);
    s->lse = chance(r, 80);
    s->null_arrays = chance(r, 50);
    s->more_q = PICK(r, more);
    s->more_kv = PICK(r, more);
    s->more_rows = PICK(r, more);
    s->lanes = PICK(r, lanes);
    s->fill = chance(r, 80) ? 0xFF : test_range(r, 0, 255);
}

void case_random(case_spec *s, test_rng *r, double work) {
    static const float amps[] = { 1, 1, 1, 4, 12 };
    case_defaults(s);
    s->seed = test_next(r);
    random_heads(&s->layer, r);
    random_types(s, r);
    random_mask(&s->layer, r);
    random_score(&s->layer, r);
    random_tiles(&s->layer, r);
    random_requests(s, r, work);
    random_lists(s, r);
    random_layout(s, r);
    random_call(s, r);
    s->q_amp = amps[test_range(r, 0, 4)];
    s->v_amp = amps[test_range(r, 0, 4)];
    if (s->layer.kv_type == ATTN_INT8 && chance(r, 50)) s->layer.flags |= ATTN_FAST_INT8;
}

void case_vary(case_spec *s, test_rng *r) {
    static const int workers[] = { 0, 1, 2, 3, 5, 7, 13, 64, 200 };
    int lse = s->lse;
    int period = s->period;
    int sinks = s->sinks;
    int alibi = s->alibi;
    s->layer.page_size = 0;
    s->padded = 0;
    random_layout(s, r);
    random_call(s, r);
    s->lse = lse;
    s->period = period;
    s->sinks = sinks;
    s->alibi = alibi;
    s->layer.row_tile = chance(r, 30) ? 0 : 16 * test_range(r, 1, 16);
    s->layer.workers = PICK(r, workers);
}

void case_describe(const case_spec *s, char *text, size_t bytes) {
    const attn_layer *l = &s->layer;
    size_t at;
    int i;
    snprintf(text, bytes, "n %d heads %d/%d dim %d/%d types %d%d%d mask %d window %d/%d sink_keys %d page %d split %d "
             "tile %d/%d workers %d scale %g softcap %g sinks %d padded %d major %d share %d hide %d lanes %d",
             s->n, l->heads, l->kv_heads, l->head_dim, l->v_dim, (int)l->q_type, (int)l->kv_type, (int)l->o_type,
             (int)l->mask, l->window_left, l->window_right, l->sink_keys, l->page_size, l->split_keys, l->row_tile,
             l->key_tile, l->workers, (double)l->scale, (double)l->softcap, s->sinks, s->padded, s->head_major,
             s->share, s->hide, s->lanes);
    at = strlen(text);
    snprintf(text + at, bytes - at, " flags %d scales %d%d kind %d tree %d topk %d keys %d%s order %d alibi %d:",
             l->flags, s->k_scale, s->v_scale, l->scale_kind, (int)s->tree, l->topk, s->list_keys,
             s->list_ragged ? " at most" : "", s->list_order, s->alibi);
    for (i = 0; i < s->n; i++) {
        at = strlen(text);
        snprintf(text + at, bytes - at, " %d/%d%s", s->request[i].q_len, s->request[i].kv_len,
                 s->request[i].phase == ATTN_DECODE ? "d" : "p");
    }
}

/* ---- instruction sets ------------------------------------------------------------------------------------------- */

int case_isas(attn_isa set[4]) {
    int n = 0;
    int isa;
    for (isa = ATTN_ISA_SCALAR; isa; isa = next_isa(isa)) set[n++] = (attn_isa)isa;
    return n;
}

const char *case_isa_name(attn_isa isa) {
    return isa_name((int)isa);
}
