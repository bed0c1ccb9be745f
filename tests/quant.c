/* quant.c - small caches. attn_append stores exactly what an encoder written here stores, which searches all values of
   a type for the nearest; every code comes out of attn_forward as what it means; int8 with a scale per key survives
   rollback, rings and latent rows; NaN and inf in one key reach only rows that see it. */
#include "../attn.h"
#include "isas.h"
#include "test.h"

#include <math.h>

enum { MARK = 0xA5 };
enum { RAGGED, PADDED, PAGED };

static void *allocate(size_t bytes) {
    void *p = malloc(bytes ? bytes : 1);
    if (!p) abort();
    memset(p, MARK, bytes);
    return p;
}

static float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static int is_nan(float x) {
    return x != x;
}

/* ---- the types, from their definitions -------------------------------------------------------------------------- */

static size_t width_of(attn_type type) {
    return type == ATTN_F32 ? 4 : type <= ATTN_BF16 ? 2 : 1;
}

/* Magnitude of a code without its sign: fraction bits, bias, and whether the top exponent is infinity and NaN. */
static double magnitude(unsigned code, int mantissa, int bias, int infinities) {
    unsigned exponent = code >> mantissa, fraction = code & ((1u << mantissa) - 1);
    if (infinities && exponent == (unsigned)(2 * bias + 1)) return fraction ? (double)NAN : HUGE_VAL;
    if (!exponent) return ldexp(fraction, 1 - bias - mantissa);
    return ldexp(fraction + (1u << mantissa), (int)exponent - bias - mantissa);
}

static double decode(attn_type type, unsigned code) {
    double a = 0;
    if (type == ATTN_INT8) return code < 128 ? (double)code : (double)code - 256;
    if (type == ATTN_E4M3) a = (code & 127) == 127 ? (double)NAN : magnitude(code & 127, 3, 7, 0);
    if (type == ATTN_E5M2) a = magnitude(code & 127, 2, 15, 1);
    if (type == ATTN_F16) a = magnitude(code & 0x7FFF, 10, 15, 1);
    if (type == ATTN_BF16) a = magnitude(code & 0x7FFF, 7, 127, 1);
    return code >> (type <= ATTN_BF16 ? 15 : 7) & 1 ? -a : a;
}

/* The codes of a type's finite magnitudes run from 0 to this one, in order of size. */
static unsigned largest_code(attn_type type) {
    return type == ATTN_E4M3 ? 0x7E : type == ATTN_E5M2 ? 0x7B : type == ATTN_F16 ? 0x7BFF : 0x7F7F;
}

/* The code whose magnitude is nearest to a; of two equally near ones the even code. a is finite. */
static unsigned nearest(attn_type type, double a) {
    unsigned low = 0, high = largest_code(type);
    double below, above;
    if (a >= decode(type, high)) return high;
    while (high - low > 1) {
        unsigned middle = (low + high) / 2;
        if (decode(type, middle) <= a) {
            low = middle;
        } else {
            high = middle;
        }
    }
    below = a - decode(type, low);
    above = decode(type, high) - a;
    if (below != above) return below < above ? low : high;
    return low & 1 ? high : low;
}

static unsigned encode_int8(float x) {
    double low;
    int n;
    if (is_nan(x)) return 0;
    if (x >= 127) return 127;
    if (x <= -127) return 129;
    low = floor((double)x);
    n = (int)low;
    if ((double)x - low > 0.5 || ((double)x - low == 0.5 && n % 2)) n++;
    return (unsigned)n & 255;
}

/* 8-bit types saturate, infinities too; in the 16-bit ones half a step above the largest value is infinity. */
static unsigned encode(attn_type type, float x) {
    unsigned sign = signbit(x) ? 1u : 0u, top = largest_code(type);
    double a = fabs((double)x);
    int small = type >= ATTN_E4M3;
    if (type == ATTN_INT8) return encode_int8(x);
    sign <<= small ? 7 : 15;
    if (is_nan(x)) return small ? 0x7F : sign | (top + 2);
    if (!small && a >= decode(type, top) + (decode(type, top) - decode(type, top - 1)) / 2) return sign | (top + 1);
    return sign | nearest(type, a > decode(type, top) ? decode(type, top) : a);
}

static unsigned load_code(attn_type type, const unsigned char *at) {
    uint16_t half;
    if (type >= ATTN_E4M3) return at[0];
    memcpy(&half, at, sizeof half);
    return half;
}

/* An element of q_type as a float. */
static float load_input(attn_type type, const void *array, int64_t at) {
    float x;
    uint16_t half;
    if (type == ATTN_F32) {
        memcpy(&x, (const char *)array + at * 4, sizeof x);
        return x;
    }
    memcpy(&half, (const char *)array + at * 2, sizeof half);
    return (float)decode(type, half);
}

/* ---- the encoder itself: some values by hand -------------------------------------------------------------------- */

static void test_encoder(void) {
    static const struct {
        attn_type type;
        float value;
        unsigned code;
    } known[] = {
        { ATTN_E4M3, 1.0f, 0x38 },      { ATTN_E4M3, 448.0f, 0x7E },    { ATTN_E4M3, 464.0f, 0x7E },
        { ATTN_E4M3, 1e30f, 0x7E },     { ATTN_E4M3, -1e30f, 0xFE },    { ATTN_E4M3, 0.001953125f, 0x01 },
        { ATTN_E4M3, 0.0009765625f, 0 }, { ATTN_E4M3, 0.00146484375f, 0x01 }, { ATTN_E4M3, 1.0625f, 0x38 },
        { ATTN_E4M3, 1.1875f, 0x3A },   { ATTN_E4M3, -0.0f, 0x80 },     { ATTN_E5M2, 1.0f, 0x3C },
        { ATTN_E5M2, 57344.0f, 0x7B },  { ATTN_E5M2, 65536.0f, 0x7B },  { ATTN_E5M2, 1.125f, 0x3C },
        { ATTN_E5M2, 1.375f, 0x3E },    { ATTN_E5M2, 1.52587890625e-5f, 0x01 }, { ATTN_INT8, 0.5f, 0 },
        { ATTN_INT8, 1.5f, 2 },         { ATTN_INT8, -2.5f, 254 },      { ATTN_INT8, -126.5f, 130 },
        { ATTN_INT8, 300.0f, 127 },     { ATTN_INT8, -300.0f, 129 },    { ATTN_F16, 65504.0f, 0x7BFF },
        { ATTN_F16, 65519.0f, 0x7BFF }, { ATTN_F16, 65520.0f, 0x7C00 }, { ATTN_BF16, 1.00390625f, 0x3F80 },
        { ATTN_BF16, 1.01171875f, 0x3F82 }
    };
    size_t i;
    for (i = 0; i < sizeof known / sizeof known[0]; i++) {
        unsigned got = encode(known[i].type, known[i].value);
        CHECK(got == known[i].code, "type %d, %g: 0x%x, not 0x%x", (int)known[i].type, (double)known[i].value, got,
              known[i].code);
    }
}

/* ---- one cache and its calls ------------------------------------------------------------------------------------ */

enum { MOST = 6 };

/* A batch, a cache of its own with room around it, and what a call needs. */
typedef struct cache {
    attn_layer layer;
    attn_batch batch;
    attn_io io;
    attn_plan plan;
    attn_exec exec;
    attn_error error;
    int32_t q_len[MOST], kv_len[MOST], phase[MOST], *table;
    int layout, columns, gap;
    int64_t capacity, scales, slots; /* keys a request may hold; scales in each array; keys in all */
    unsigned char *k, *v, *q;
    size_t k_bytes, v_bytes;
    float *k_scale, *v_scale, *o, *lse;
} cache;

static void cache_defaults(cache *c) {
    memset(c, 0, sizeof *c);
    c->layer.heads = 4;
    c->layer.kv_heads = 2;
    c->layer.head_dim = 16;
    c->layer.row_tile = 16;
    c->layer.workers = 3;
    c->layer.isa = ATTN_ISA_SCALAR;
}

static void add(cache *c, int32_t q_len, int32_t kv_len, int phase) {
    c->q_len[c->batch.n] = q_len;
    c->kv_len[c->batch.n] = kv_len;
    c->phase[c->batch.n] = phase;
    c->batch.n++;
}

static int v_dim(const cache *c) {
    return c->layer.v_dim ? c->layer.v_dim : c->layer.head_dim;
}

static void open_strides(cache *c) {
    int64_t k_row = c->layer.kv_heads * (c->layer.head_dim + c->gap) + c->gap;
    int64_t v_row = c->layer.kv_heads * (v_dim(c) + c->gap) + 2 * c->gap;
    int64_t keys = c->layout == PAGED ? c->layer.page_size : c->capacity;
    c->io.k_row = k_row;
    c->io.v_row = v_row;
    c->io.k_head = c->layer.head_dim + c->gap;
    c->io.v_head = v_dim(c) + c->gap;
    if (c->layout == RAGGED) return;
    c->io.k_page = keys * k_row + c->gap;
    c->io.v_page = keys * v_row + c->gap;
}

static void open_pages(cache *c) {
    int i;
    c->columns = (int)((c->capacity + c->layer.page_size - 1) / c->layer.page_size);
    c->table = (int32_t *)allocate(sizeof(int32_t) * (size_t)(c->batch.n * c->columns));
    c->io.pages = c->batch.n * c->columns + 1;
    for (i = 0; i < c->batch.n * c->columns; i++) c->table[i] = c->io.pages - 1 - i;
    c->io.page_table = c->table;
    c->io.page_table_row = c->columns;
}

/* Call after layer, layout, gap, capacity and requests are set. Everything holds MARK then. */
static void open_cache(cache *c) {
    int64_t rows = 0, keys = 0, blocks;
    int i;
    c->batch.q_len = c->q_len;
    c->batch.kv_len = c->kv_len;
    c->batch.phase = c->phase;
    for (i = 0; i < c->batch.n; i++) {
        rows += c->q_len[i];
        keys += c->kv_len[i];
        if (c->capacity < c->kv_len[i]) c->capacity = c->kv_len[i];
    }
    open_strides(c);
    c->slots = keys;
    if (c->layout == PADDED) c->slots = c->batch.n * c->capacity;
    if (c->layout == PAGED) {
        open_pages(c);
        c->slots = (int64_t)c->io.pages * c->layer.page_size;
    }
    blocks = c->layout == PAGED ? c->io.pages : c->batch.n;
    c->k_bytes = (size_t)(c->slots * c->io.k_row + blocks * c->gap + 8) * width_of(c->layer.kv_type);
    c->v_bytes = (size_t)(c->slots * c->io.v_row + blocks * c->gap + 8) * width_of(c->layer.kv_type);
    c->k = (unsigned char *)allocate(c->k_bytes);
    c->v = (unsigned char *)allocate(c->v_bytes);
    c->scales = (blocks * (c->io.k_page + c->io.v_page) + (keys + 64) * 2) * c->layer.kv_heads;
    c->k_scale = (float *)allocate(sizeof(float) * (size_t)c->scales);
    c->v_scale = (float *)allocate(sizeof(float) * (size_t)c->scales);
    c->q = (unsigned char *)allocate((size_t)(rows * c->layer.heads * c->layer.head_dim) * 4);
    c->o = (float *)allocate((size_t)(rows * c->layer.heads * v_dim(c)) * 4);
    c->lse = (float *)allocate((size_t)(rows * c->layer.heads) * 4);
    c->io.k = c->k;
    c->io.v = c->layer.flags & ATTN_V_IN_K ? NULL : c->v;
    c->io.k_scale = c->k_scale;
    c->io.v_scale = c->layer.flags & ATTN_V_IN_K ? NULL : c->v_scale;
    c->io.q = c->q;
    c->io.o = c->o;
    c->io.lse = c->lse;
    if (!(c->layer.flags & ATTN_V_IN_K)) return;
    c->io.v_row = 0;
    c->io.v_head = 0;
    c->io.v_page = 0;
}

static void close_cache(cache *c) {
    free(c->k);
    free(c->v);
    free(c->k_scale);
    free(c->v_scale);
    free(c->q);
    free(c->o);
    free(c->lse);
    free(c->table);
    free(c->plan.words);
    free(c->exec.mem);
}

static int64_t rows_of(const cache *c) {
    int64_t rows = 0;
    int i;
    for (i = 0; i < c->batch.n; i++) rows += c->q_len[i];
    return rows;
}

static int plan_cache(cache *c) {
    size_t bytes = attn_plan_bytes(&c->batch, &c->layer);
    void *mem = allocate(bytes);
    int status;
    free(c->plan.words);
    free(c->exec.mem);
    memset(&c->plan, 0, sizeof c->plan);
    c->exec.mem = NULL;
    status = attn_plan_make(&c->plan, &c->batch, &c->layer, mem, bytes, &c->error);
    CHECK(status == ATTN_OK, "attn_plan_make: %s", status ? c->error.text : "");
    if (status) {
        free(mem);
        memset(&c->plan, 0, sizeof c->plan);
        return status;
    }
    c->exec.bytes = attn_exec_bytes(&c->plan, 1);
    c->exec.mem = allocate(c->exec.bytes);
    return ATTN_OK;
}

static int append(cache *c, const void *new_k, const void *new_v) {
    int status = attn_append(&c->plan, &c->layer, &c->io, new_k, new_v, &c->error);
    CHECK(status == ATTN_OK, "attn_append: %s", status ? c->error.text : "");
    return status;
}

static int forward(cache *c) {
    int status = attn_forward(&c->plan, &c->layer, &c->io, &c->exec, &c->error);
    CHECK(status == ATTN_OK, "attn_forward: %s", status ? c->error.text : "");
    return status;
}

/* ---- where a key lies, from the layouts' definitions ------------------------------------------------------------ */

static int64_t key_slot(const cache *c, int i, int64_t key, int64_t *block) {
    int64_t before = 0;
    int j;
    *block = 0;
    if (c->layer.ring) key %= c->layer.ring;
    if (c->layout == PAGED) {
        *block = c->table[i * c->columns + key / c->layer.page_size];
        return key % c->layer.page_size;
    }
    if (c->layout == PADDED) {
        *block = i;
        return key;
    }
    for (j = 0; j < i; j++) before += c->kv_len[j];
    return before + key;
}

static unsigned char *element(const cache *c, int which_v, int i, int64_t key, int head, int d) {
    int64_t block, slot = key_slot(c, i, key, &block), at;
    if (which_v) {
        at = block * c->io.v_page + slot * c->io.v_row + head * c->io.v_head + d;
        return c->v + (size_t)at * width_of(c->layer.kv_type);
    }
    at = block * c->io.k_page + slot * c->io.k_row + head * c->io.k_head + d;
    return c->k + (size_t)at * width_of(c->layer.kv_type);
}

/* The factor of a key; PER_KEY: padded caches have one scale for each slot of a request. */
static float *scale_of(const cache *c, int which_v, int i, int64_t key, int head) {
    float *scale = which_v ? c->v_scale : c->k_scale;
    int64_t block, slot = key_slot(c, i, key, &block), per_block;
    if (c->layer.scale_kind == ATTN_SCALE_PER_TENSOR) return scale;
    if (c->layer.scale_kind == ATTN_SCALE_PER_HEAD) return scale + head;
    if (c->layer.scale_kind == ATTN_SCALE_PER_REQUEST) return scale + i * c->layer.kv_heads + head;
    per_block = c->layer.page_size;
    if (c->layout != PAGED) {
        int64_t width = c->layer.kv_heads * (int64_t)(which_v ? v_dim(c) : c->layer.head_dim);
        int64_t row = which_v ? c->io.v_row : c->io.k_row, head_step = which_v ? c->io.v_head : c->io.k_head;
        int64_t page = which_v ? c->io.v_page : c->io.k_page;
        row = row ? row : width;
        per_block = (c->layer.kv_heads > 1 && head_step >= row ? head_step : page) / row;
    }
    return scale + (block * per_block + slot) * c->layer.kv_heads + head;
}

/* ---- append against the encoder --------------------------------------------------------------------------------- */

/* Scales that a caller sets: one per tensor, head or request. */
static void set_scales(cache *c, float first) {
    int i, h;
    for (i = 0; i < c->batch.n; i++) {
        for (h = 0; h < c->layer.kv_heads; h++) {
            float x = first;
            if (c->layer.scale_kind == ATTN_SCALE_PER_HEAD) x = first * (float)(1 + h);
            if (c->layer.scale_kind == ATTN_SCALE_PER_REQUEST) x = first * (float)(1 + h + 3 * i);
            if (c->layer.scale_kind == ATTN_SCALE_PER_KEY) return;
            *scale_of(c, 0, i, 0, h) = x;
            *scale_of(c, 1, i, 0, h) = x * 1.7f;
        }
    }
}

/* What append must leave, starting from the bytes before it: only the elements and scales of new keys differ. */
static void append_reference(cache *c, int which_v, const void *rows) {
    int dim = which_v ? v_dim(c) : c->layer.head_dim, i, j, h, d;
    int64_t row = 0;
    for (i = 0; i < c->batch.n; i++) {
        for (j = 0; j < c->q_len[i]; j++, row++) {
            int64_t key = c->kv_len[i] - c->q_len[i] + j;
            for (h = 0; h < c->layer.kv_heads; h++) {
                int64_t at = (row * c->layer.kv_heads + h) * dim;
                float *scale = scale_of(c, which_v, i, key, h), most = 0;
                if (c->layer.scale_kind == ATTN_SCALE_PER_KEY) {
                    for (d = 0; d < dim; d++) {
                        float a = fabsf(load_input(c->layer.q_type, rows, at + d));
                        if (a > most || is_nan(a)) most = a;
                        if (is_nan(most)) break;
                    }
                    *scale = most / 127;
                }
                for (d = 0; d < dim; d++) {
                    float x = load_input(c->layer.q_type, rows, at + d);
                    float y = *scale == 0 ? 0 : x / *scale;
                    unsigned char *to = element(c, which_v, i, key, h, d);
                    uint16_t half = (uint16_t)encode(c->layer.kv_type, y);
                    if (c->layer.kv_type == ATTN_F32) memcpy(to, &y, sizeof y);
                    if (c->layer.kv_type == ATTN_F16 || c->layer.kv_type == ATTN_BF16) memcpy(to, &half, sizeof half);
                    if (c->layer.kv_type >= ATTN_E4M3) to[0] = (unsigned char)half;
                }
            }
        }
    }
}

/* Appends and compares every byte of cache and scales with the reference. */
static void check_append(cache *c, const void *new_k, const void *new_v, const char *what) {
    size_t scale_bytes = sizeof(float) * (size_t)c->scales, i;
    unsigned char *k = (unsigned char *)allocate(c->k_bytes), *v = (unsigned char *)allocate(c->v_bytes);
    float *ks = (float *)allocate(scale_bytes), *vs = (float *)allocate(scale_bytes);
    unsigned char *got_k = c->k, *got_v = c->v;
    float *got_ks = c->k_scale, *got_vs = c->v_scale;
    int latent = (c->layer.flags & ATTN_V_IN_K) != 0;
    memcpy(k, c->k, c->k_bytes);
    memcpy(v, c->v, c->v_bytes);
    memcpy(ks, c->k_scale, scale_bytes);
    memcpy(vs, c->v_scale, scale_bytes);
    if (!plan_cache(c)) append(c, new_k, latent ? NULL : new_v);
    c->k = k;
    c->v = v;
    c->k_scale = ks;
    c->v_scale = vs;
    append_reference(c, 0, new_k);
    if (!latent) append_reference(c, 1, new_v);
    c->k = got_k;
    c->v = got_v;
    c->k_scale = got_ks;
    c->v_scale = got_vs;
    for (i = 0; i < c->k_bytes; i++) {
        CHECK(k[i] == got_k[i], "%s: byte %d of k: 0x%x, not 0x%x", what, (int)i, got_k[i], k[i]);
    }
    for (i = 0; i < c->v_bytes; i++) {
        CHECK(v[i] == got_v[i], "%s: byte %d of v: 0x%x, not 0x%x", what, (int)i, got_v[i], v[i]);
    }
    CHECK(!memcmp(ks, got_ks, scale_bytes), "%s: scales of k", what);
    CHECK(!memcmp(vs, got_vs, scale_bytes), "%s: scales of v", what);
    free(k);
    free(v);
    free(ks);
    free(vs);
}

static const char *case_name(const cache *c) {
    static char text[100];
    snprintf(text, sizeof text, "q %d, kv %d, kind %d, layout %d, isa %d", (int)c->layer.q_type, (int)c->layer.kv_type,
             c->layer.scale_kind, c->layout, c->layer.isa);
    return text;
}

/* All 65536 codes of a 16-bit type as new rows: 64 of them with 2 heads of 512. */
static void run_all_inputs(attn_type q_type, attn_type kv_type, float scale, int isa) {
    cache c;
    uint16_t *rows = (uint16_t *)allocate(65536 * sizeof *rows);
    int32_t i;
    for (i = 0; i < 65536; i++) {
        int keep = kv_type >= ATTN_E4M3 || !(decode(q_type, (unsigned)i) != decode(q_type, (unsigned)i));
        rows[i] = (uint16_t)(keep ? i : 0); /* a 16-bit NaN may keep what it carries: not compared here */
    }
    cache_defaults(&c);
    c.layer.heads = 2;
    c.layer.head_dim = 512;
    c.layer.q_type = q_type;
    c.layer.kv_type = kv_type;
    c.layer.isa = isa;
    add(&c, 64, 64, ATTN_PREFILL);
    open_cache(&c);
    set_scales(&c, scale);
    *scale_of(&c, 1, 0, 0, 0) = scale == 1.0f ? 1.0f : 3.0f;
    check_append(&c, rows, rows, case_name(&c));
    close_cache(&c);
    free(rows);
}

static void test_all_inputs(void) {
    static const attn_type types[] = { ATTN_E4M3, ATTN_E5M2, ATTN_INT8, ATTN_F16, ATTN_BF16, ATTN_F32 };
    int isa, i, source;
    for (isa = ATTN_ISA_SCALAR; isa; isa = next_isa(isa)) {
        for (source = ATTN_F16; source <= ATTN_BF16; source++) {
            for (i = 0; i < 6; i++) {
                run_all_inputs((attn_type)source, types[i], 1.0f, isa);
                run_all_inputs((attn_type)source, types[i], 0.37f, isa);
            }
        }
    }
}

/* f32 inputs on, just below and just above the middle between two codes, and the ends of the range. */
static int draw_edges(attn_type type, float *x) {
    unsigned code, top = largest_code(type == ATTN_INT8 ? ATTN_E4M3 : type);
    int n = 0;
    for (code = 0; code < (type == ATTN_INT8 ? 127u : top); code++) {
        double middle = (decode(type, code) + decode(type, code + 1)) / 2;
        x[n++] = (float)middle;
        x[n++] = -(float)middle;
        x[n++] = nextafterf((float)middle, 1e30f);
        x[n++] = -nextafterf((float)middle, 0);
    }
    x[n++] = 3e38f;
    x[n++] = -HUGE_VALF;
    x[n++] = HUGE_VALF;
    x[n++] = float_of(0x7F800001);
    x[n++] = float_of(0xFFC00000);
    x[n++] = float_of(1);
    x[n++] = float_of(0x80000001);
    x[n++] = 1e-20f;
    return n;
}

static void test_edges(void) {
    static const attn_type types[] = { ATTN_E4M3, ATTN_E5M2, ATTN_INT8 };
    float x[19 * 32];
    int isa, i;
    for (isa = ATTN_ISA_SCALAR; isa; isa = next_isa(isa)) {
        for (i = 0; i < 3; i++) {
            cache c;
            int n;
            memset(x, 0, sizeof x);
            n = draw_edges(types[i], x);
            CHECK(n <= 19 * 32, "%d edges", n);
            cache_defaults(&c);
            c.layer.heads = 1;
            c.layer.kv_heads = 1;
            c.layer.head_dim = 19;
            c.layer.kv_type = types[i];
            c.layer.isa = isa;
            add(&c, 32, 32, ATTN_PREFILL);
            open_cache(&c);
            set_scales(&c, 1.0f);
            *scale_of(&c, 1, 0, 0, 0) = 1.0f;
            check_append(&c, x, x, case_name(&c));
            if (types[i] == ATTN_INT8) { /* without scales the factor is 1; int8 has to have them */
                close_cache(&c);
                continue;
            }
            memset(c.k, MARK, c.k_bytes);
            memset(c.v, MARK, c.v_bytes);
            c.io.k_scale = NULL;
            c.io.v_scale = NULL;
            check_append(&c, x, x, "no scales");
            close_cache(&c);
        }
    }
}

static void draw_floats(float *x, int64_t count, float amplitude, test_rng *r) {
    int64_t i;
    for (i = 0; i < count; i++) x[i] = test_uniform(r) * amplitude;
}

static void add_appends(cache *c) {
    add(c, 3, 3, ATTN_PREFILL);
    add(c, 1, 20, ATTN_DECODE);
    add(c, 0, 9, ATTN_DECODE);
    add(c, 6, 40, ATTN_PREFILL);
}

static void set_kind(cache *c, attn_type type, int kind, int layout, int page_size, int isa) {
    cache_defaults(c);
    c->layer.kv_type = type;
    c->layer.scale_kind = kind;
    c->layer.isa = isa;
    c->layer.page_size = layout == PAGED ? page_size : 0;
    c->layout = layout;
}

/* Every type with every kind of scale in every layout, with gaps and without; all else keeps its bytes. */
static void run_kinds(attn_type type, int kind, int layout, int gap, int isa) {
    float k[10 * 2 * 33], v[10 * 2 * 20];
    test_rng r = { 5 };
    cache c;
    set_kind(&c, type, kind, layout, 8, isa);
    c.layer.head_dim = 33;
    c.layer.v_dim = 20;
    c.capacity = layout == RAGGED ? 0 : 48;
    c.gap = gap;
    add_appends(&c);
    open_cache(&c);
    set_scales(&c, 0.011f);
    draw_floats(k, 10 * 2 * 33, 3, &r);
    draw_floats(v, 10 * 2 * 20, 0.5f, &r);
    memset(k + 4 * 33, 0, 33 * sizeof *k); /* a key of zeros */
    check_append(&c, k, v, case_name(&c));
    close_cache(&c);
}

static void test_kinds(void) {
    int type, kind, layout, isa;
    for (isa = ATTN_ISA_SCALAR; isa; isa = next_isa(isa)) {
        for (type = ATTN_F32; type <= ATTN_INT8; type++) {
            for (kind = ATTN_SCALE_PER_TENSOR; kind <= ATTN_SCALE_PER_KEY; kind++) {
                if (kind == ATTN_SCALE_PER_KEY && type != ATTN_INT8) continue;
                for (layout = RAGGED; layout <= PAGED; layout++) {
                    run_kinds((attn_type)type, kind, layout, 0, isa);
                    run_kinds((attn_type)type, kind, layout, 3, isa);
                }
            }
        }
    }
}

/* ---- what the codes mean ---------------------------------------------------------------------------------------- */

static int same_value(float got, double want) {
    return want != want ? is_nan(got) : (double)got == (double)(float)want;
}

/* One key and one row: o is the value, code by code. */
static void run_values(attn_type type, int dim, float scale, int kind, int phase, int isa) {
    int first, d, h;
    for (first = 0; first < 256; first += dim) {
        cache c;
        cache_defaults(&c);
        c.layer.heads = 5;
        c.layer.kv_heads = 1;
        c.layer.head_dim = 8;
        c.layer.v_dim = dim;
        c.layer.kv_type = type;
        c.layer.scale_kind = kind;
        c.layer.isa = isa;
        add(&c, 1, 1, phase);
        open_cache(&c);
        memset(c.k, 0, c.k_bytes);
        memset(c.q, 0, 5 * 8 * 4);
        *scale_of(&c, 0, 0, 0, 0) = 1.0f;
        *scale_of(&c, 1, 0, 0, 0) = scale;
        for (d = 0; d < dim; d++) element(&c, 1, 0, 0, 0, d)[0] = (unsigned char)(first + d);
        if (!plan_cache(&c) && !forward(&c)) {
            for (h = 0; h < 5; h++) {
                for (d = 0; d < dim; d++) {
                    double want = decode(type, (unsigned)(first + d) & 255) * (double)scale;
                    float got = c.o[h * dim + d];
                    CHECK(same_value(got, want), "%s, phase %d, dim %d, code 0x%x: %.9g, not %.9g", case_name(&c),
                          phase, dim, (unsigned)(first + d) & 255, (double)got, want);
                }
            }
        }
        close_cache(&c);
    }
}

/* One key, 256 heads with one-hot rows: lse is the logit, which is the code. */
static void run_keys(attn_type type, float scale, int kind, int phase, int isa) {
    cache c;
    int h;
    cache_defaults(&c);
    c.layer.heads = 256;
    c.layer.kv_heads = 1;
    c.layer.head_dim = 256;
    c.layer.v_dim = 1;
    c.layer.kv_type = type;
    c.layer.scale_kind = kind;
    c.layer.scale = 1.0f;
    c.layer.isa = isa;
    add(&c, 1, 1, phase);
    open_cache(&c);
    memset(c.v, 0, c.v_bytes);
    memset(c.q, 0, 256 * 256 * 4);
    *scale_of(&c, 0, 0, 0, 0) = scale;
    *scale_of(&c, 1, 0, 0, 0) = 1.0f;
    for (h = 0; h < 256; h++) {
        double value = decode(type, (unsigned)h);
        float one = 1;
        element(&c, 0, 0, 0, 0, h)[0] = (unsigned char)(value - value == 0 ? h : 0); /* 0 * inf would spoil all heads */
        memcpy(c.q + (size_t)h * 257 * 4, &one, sizeof one);
    }
    if (!plan_cache(&c) && !forward(&c)) {
        for (h = 0; h < 256; h++) {
            double want = decode(type, (unsigned)h) * (double)scale;
            if (want - want != 0) want = 0;
            CHECK(same_value(c.lse[h], want), "%s, phase %d, code 0x%x: %.9g, not %.9g", case_name(&c), phase,
                  (unsigned)h, (double)c.lse[h], want);
        }
    }
    close_cache(&c);
}

static void test_codes(void) {
    int type, isa, phase, kind;
    for (isa = ATTN_ISA_SCALAR; isa; isa = next_isa(isa)) {
        for (type = ATTN_E4M3; type <= ATTN_INT8; type++) {
            for (phase = ATTN_PREFILL; phase <= ATTN_DECODE; phase++) {
                for (kind = ATTN_SCALE_PER_TENSOR; kind <= (type == ATTN_INT8 ? 3 : 2); kind++) {
                    run_values((attn_type)type, 256, 1.0f, kind, phase, isa);
                    run_values((attn_type)type, 256, 0.37f, kind, phase, isa);
                    run_values((attn_type)type, 37, 0.37f, kind, phase, isa);
                    run_keys((attn_type)type, 1.0f, kind, phase, isa);
                    run_keys((attn_type)type, 0.37f, kind, phase, isa);
                }
            }
        }
    }
}

/* ---- attention over small caches -------------------------------------------------------------------------------- */

/* New q for every row: data from (seed, request, position). */
static void draw_q(cache *c, uint64_t seed) {
    int64_t row = 0;
    int i, j, width = c->layer.heads * c->layer.head_dim;
    for (i = 0; i < c->batch.n; i++) {
        for (j = 0; j < c->q_len[i]; j++, row++) {
            test_rng r = { 0 };
            float x[1024];
            r.state = seed * 1000003 + (uint64_t)i * 10007 + (uint64_t)(c->kv_len[i] - c->q_len[i] + j);
            draw_floats(x, width, 1, &r);
            memcpy(c->q + (size_t)(row * width) * 4, x, (size_t)width * 4);
        }
    }
}

static double stored(const cache *c, int which_v, int i, int64_t key, int head, int d) {
    unsigned char *at = element(c, which_v, i, key, head, d);
    float x;
    memcpy(&x, at, c->layer.kv_type == ATTN_F32 ? sizeof x : 1);
    if (c->layer.kv_type == ATTN_F32) return (double)x;
    return decode(c->layer.kv_type, load_code(c->layer.kv_type, at));
}

/* One row and head in double from the stored codes and scales; the room is that of 300 roundoffs of a mean of values
   up to v_max, and of eight roundoffs in the largest logit. */
static void check_row(const cache *c, int i, int j, int64_t row, int head) {
    const attn_layer *l = &c->layer;
    int kv_head = head / (l->heads / l->kv_heads), dims = v_dim(c), d;
    int64_t key, at = row * l->heads + head, end = c->kv_len[i] - c->q_len[i] + j + 1;
    double o[64] = { 0 }, sum = 0, reach = 0, v_max = 0, room;
    for (key = 0; key < end; key++) {
        double dot = 0, size = 0, w, factor = (double)*scale_of(c, 0, i, key, kv_head) / sqrt(l->head_dim);
        for (d = 0; d < l->head_dim; d++) {
            double x = (double)load_input(ATTN_F32, c->q, at * l->head_dim + d) * stored(c, 0, i, key, kv_head, d);
            dot += x * factor;
            size += fabs(x * factor);
        }
        reach = size > reach ? size : reach;
        w = exp(dot);
        sum += w;
        for (d = 0; d < dims; d++) {
            double v = stored(c, 1, i, key, kv_head, d) * (double)*scale_of(c, 1, i, key, kv_head);
            v_max = fabs(v) > v_max ? fabs(v) : v_max;
            o[d] += w * v;
        }
    }
    room = 2e-5 + 5e-7 * reach;
    CHECK(fabs((double)c->lse[at] - log(sum)) <= room, "%s, request %d, row %d, head %d: lse %.9g, not %.9g",
          case_name(c), i, j, head, (double)c->lse[at], log(sum));
    for (d = 0; d < dims; d++) {
        double got = (double)c->o[at * dims + d];
        CHECK(fabs(got - o[d] / sum) <= room * v_max, "%s, request %d, row %d, head %d, element %d: %.9g, not %.9g",
              case_name(c), i, j, head, d, got, o[d] / sum);
    }
}

static void run_attention(attn_type type, int kind, int layout, int isa, uint64_t seed) {
    static float k[700 * 2 * 24], v[700 * 2 * 20];
    test_rng r;
    cache c;
    int64_t row = 0;
    int i, j, h;
    r.state = seed;
    set_kind(&c, type, kind, layout, 16, isa);
    c.layer.head_dim = 24;
    c.layer.v_dim = 20;
    c.gap = (int)(seed % 3);
    for (i = 0; i < 3; i++) {
        int32_t kv_len = i == 0 ? 300 : test_range(&r, 1, 200);
        add(&c, kv_len, kv_len, i % 2 ? ATTN_DECODE : ATTN_PREFILL);
    }
    open_cache(&c);
    set_scales(&c, 0.021f);
    draw_floats(k, 700 * 2 * 24, 3, &r);
    draw_floats(v, 700 * 2 * 20, 1, &r);
    if (!plan_cache(&c)) append(&c, k, v);
    for (i = 0; i < 3; i++) c.q_len[i] = c.kv_len[i] < 3 ? c.kv_len[i] : 3 + i; /* the last rows only */
    for (i = 0; i < 3; i++) c.q_len[i] = c.q_len[i] > c.kv_len[i] ? c.kv_len[i] : c.q_len[i];
    draw_q(&c, seed);
    if (!plan_cache(&c) && !forward(&c)) {
        for (i = 0; i < 3; i++) {
            for (j = 0; j < c.q_len[i]; j++, row++) {
                for (h = 0; h < c.layer.heads; h++) check_row(&c, i, j, row, h);
            }
        }
    }
    close_cache(&c);
}

static void test_attention(void) {
    int type, kind, layout, isa;
    uint64_t seed = 1;
    for (isa = ATTN_ISA_SCALAR; isa; isa = next_isa(isa)) {
        for (type = ATTN_F32; type <= ATTN_INT8; type++) {
            for (kind = ATTN_SCALE_PER_TENSOR; kind <= ATTN_SCALE_PER_KEY; kind++) {
                if (kind == ATTN_SCALE_PER_KEY && type != ATTN_INT8) continue;
                for (layout = RAGGED; layout <= PAGED; layout++) {
                    run_attention((attn_type)type, kind, layout, isa, seed++);
                }
            }
        }
    }
}

/* ---- int8 with a scale per key: histories ----------------------------------------------------------------------- */

enum { STEP_ROWS = 8, K_ROW = 2 * 16 };

/* Rows of new keys and values: from (seed, request, position); the last `wrong` of each request from another seed. */
static void draw_rows(const cache *c, float *x, uint64_t seed, int32_t wrong) {
    int64_t row = 0;
    int i, j;
    for (i = 0; i < c->batch.n; i++) {
        for (j = 0; j < c->q_len[i]; j++, row++) {
            test_rng r = { 0 };
            r.state = (j >= c->q_len[i] - wrong ? seed + 99 : seed) * 1000003;
            r.state += (uint64_t)i * 10007 + (uint64_t)(c->kv_len[i] - c->q_len[i] + j);
            draw_floats(x + row * K_ROW, K_ROW, 1.0f + (float)(r.state % 7), &r);
        }
    }
}

/* Every request grows by `rows`; append, then attention. */
static void step(cache *c, int32_t rows, int32_t wrong, int phase, uint64_t seed) {
    static float k[MOST * STEP_ROWS * K_ROW], v[MOST * STEP_ROWS * K_ROW];
    int i;
    for (i = 0; i < c->batch.n; i++) {
        c->q_len[i] = rows;
        c->kv_len[i] += rows;
        c->phase[i] = phase;
    }
    draw_rows(c, k, seed, wrong);
    draw_rows(c, v, seed + 1, wrong);
    draw_q(c, seed + 2);
    if (!plan_cache(c) && !append(c, k, v)) forward(c);
}

static void take_back(cache *c, int32_t rows) {
    int i;
    for (i = 0; i < c->batch.n; i++) c->kv_len[i] -= rows;
}

/* n requests that may grow to `capacity` keys. */
static void open_int8(cache *c, int layout, int64_t capacity, int n, int isa) {
    int i;
    cache_defaults(c);
    c->layer.kv_type = ATTN_INT8;
    c->layer.scale_kind = ATTN_SCALE_PER_KEY;
    c->layer.isa = isa;
    c->layer.page_size = layout == PAGED ? 16 : 0;
    c->layout = layout;
    c->capacity = capacity;
    for (i = 0; i < n; i++) add(c, STEP_ROWS, 0, ATTN_DECODE);
    c->batch.max_q_len = STEP_ROWS;
    c->batch.max_kv_len = 1000;
}

static void start(cache *c) {
    int i;
    open_cache(c);
    for (i = 0; i < c->batch.n; i++) c->kv_len[i] = 0;
}

static int same_output(const cache *a, const cache *b) {
    size_t bytes = (size_t)(rows_of(a) * a->layer.heads) * sizeof(float);
    return !memcmp(a->o, b->o, bytes * (size_t)v_dim(a)) && !memcmp(a->lse, b->lse, bytes);
}

/* Drafts are appended, the last of them taken back and replaced by others: no byte of cache and scales tells. */
static void run_rollback(int layout, int isa) {
    cache drafted, plain;
    int32_t draft, back;
    test_rng r = { 43 };
    int round;
    open_int8(&drafted, layout, 300, layout == RAGGED ? 1 : 3, isa);
    open_int8(&plain, layout, 300, layout == RAGGED ? 1 : 3, isa);
    if (layout == RAGGED) drafted.kv_len[0] = plain.kv_len[0] = 300; /* sizes the cache */
    start(&drafted);
    start(&plain);
    for (round = 0; drafted.kv_len[0] + STEP_ROWS <= 300; round++) {
        draft = test_range(&r, 1, STEP_ROWS);
        back = test_range(&r, 1, draft);
        step(&drafted, draft, back, ATTN_DECODE, 7);
        take_back(&drafted, back);
        step(&drafted, back, 0, ATTN_DECODE, 7);
        if (draft > back) step(&plain, draft - back, 0, ATTN_DECODE, 7);
        step(&plain, back, 0, ATTN_DECODE, 7);
        CHECK(same_output(&drafted, &plain), "layout %d, isa %d, round %d: outputs differ", layout, isa, round);
        CHECK(!memcmp(drafted.k, plain.k, plain.k_bytes), "layout %d, round %d: k differs", layout, round);
        CHECK(!memcmp(drafted.v, plain.v, plain.v_bytes), "layout %d, round %d: v differs", layout, round);
        CHECK(!memcmp(drafted.k_scale, plain.k_scale, sizeof(float) * (size_t)plain.scales), "round %d: k_scale",
              round);
        CHECK(!memcmp(drafted.v_scale, plain.v_scale, sizeof(float) * (size_t)plain.scales), "round %d: v_scale",
              round);
    }
    CHECK(round > 20, "%d rounds", round);
    close_cache(&drafted);
    close_cache(&plain);
}

static void test_rollback(void) {
    int isa, layout;
    for (isa = ATTN_ISA_SCALAR; isa; isa = next_isa(isa)) {
        for (layout = RAGGED; layout <= PAGED; layout++) run_rollback(layout, isa);
    }
}

/* A ring has the bits of a cache that keeps every key, after it has turned more than twice. packed: strides left 0. */
static void run_ring(int layout, int packed, int gap, int isa) {
    static const int32_t sizes[] = { 8, 1, 5, 1, 1, 3, 8, 2 };
    cache ring, all;
    int i;
    open_int8(&ring, layout, 96, 2, isa);
    open_int8(&all, PADDED, 400, 2, isa);
    ring.layer.ring = 96;
    ring.gap = gap;
    ring.layer.window_left = 80;
    all.layer.window_left = 80;
    start(&ring);
    start(&all);
    if (packed) {
        ring.io.k_page = ring.io.k_row = ring.io.k_head = 0;
        ring.io.v_page = ring.io.v_row = ring.io.v_head = 0;
    }
    for (i = 0; all.kv_len[0] + STEP_ROWS <= 400; i++) {
        step(&ring, sizes[i % 8], 0, i & 1, 11);
        step(&all, sizes[i % 8], 0, i & 1, 11);
        CHECK(same_output(&ring, &all), "layout %d, isa %d, %d keys", layout, isa, all.kv_len[0]);
    }
    CHECK(all.kv_len[0] > 3 * 96, "the ring turned %d times", all.kv_len[0] / 96);
    CHECK(all.o[0] == all.o[0] && all.o[0] != 0, "no result");
    close_cache(&ring);
    close_cache(&all);
}

static void test_ring(void) {
    int isa;
    for (isa = ATTN_ISA_SCALAR; isa; isa = next_isa(isa)) {
        run_ring(PADDED, 0, 0, isa);
        run_ring(PADDED, 1, 0, isa);
        run_ring(PADDED, 0, 5, isa);
        run_ring(PAGED, 0, 0, isa);
        run_ring(PAGED, 0, 3, isa);
    }
}

/* V in K: only k_scale is written, and the result is that of a V of its own with the same codes and scales. */
static void run_latent(int layout, int phase, int isa) {
    static float rows[90 * 48];
    cache c, apart;
    test_rng r = { 47 };
    size_t i;
    int64_t key;
    int d, request;
    draw_floats(rows, 90 * 48, 2, &r);
    cache_defaults(&c);
    c.layer.heads = 16;
    c.layer.kv_heads = 1;
    c.layer.head_dim = 48;
    c.layer.v_dim = 32;
    c.layer.scale = 0.1f;
    c.layer.kv_type = ATTN_INT8;
    c.layer.scale_kind = ATTN_SCALE_PER_KEY;
    c.layer.flags = ATTN_V_IN_K;
    c.layer.isa = isa;
    c.layer.page_size = layout == PAGED ? 16 : 0;
    c.layout = layout;
    add(&c, 70, 70, phase);
    add(&c, 20, 20, phase);
    apart = c;
    apart.layer.flags = 0;
    open_cache(&c);
    open_cache(&apart);
    check_append(&c, rows, NULL, "latent");
    for (i = 0; i < (size_t)c.scales; i++) {
        unsigned char mark[4] = { MARK, MARK, MARK, MARK };
        CHECK(!memcmp(c.v_scale + i, mark, 4), "v_scale was written");
    }
    for (request = 0; request < 2; request++) {
        for (key = 0; key < c.kv_len[request]; key++) {
            *scale_of(&apart, 0, request, key, 0) = *scale_of(&c, 0, request, key, 0);
            *scale_of(&apart, 1, request, key, 0) = *scale_of(&c, 0, request, key, 0);
            for (d = 0; d < 48; d++) *element(&apart, 0, request, key, 0, d) = *element(&c, 0, request, key, 0, d);
            for (d = 0; d < 32; d++) *element(&apart, 1, request, key, 0, d) = *element(&c, 0, request, key, 0, d);
        }
    }
    draw_q(&c, 3);
    draw_q(&apart, 3);
    if (!plan_cache(&c) && !forward(&c) && !plan_cache(&apart) && !forward(&apart)) {
        CHECK(same_output(&c, &apart), "layout %d, phase %d, isa %d", layout, phase, isa);
        CHECK(c.o[0] == c.o[0] && c.o[0] != 0, "no result");
    }
    close_cache(&c);
    close_cache(&apart);
}

static void test_latent(void) {
    int isa, layout;
    for (isa = ATTN_ISA_SCALAR; isa; isa = next_isa(isa)) {
        for (layout = RAGGED; layout <= PAGED; layout++) {
            run_latent(layout, ATTN_PREFILL, isa);
            run_latent(layout, ATTN_DECODE, isa);
        }
    }
}

/* ---- NaN and inf in one key ------------------------------------------------------------------------------------- */

enum { BAD_KEY = 21, BAD_KEYS = 50 };

static void open_spoiled(cache *c, attn_type type, int kind, int phase, int isa, int which_v, float bad) {
    static float k[2 * BAD_KEYS * K_ROW], v[2 * BAD_KEYS * K_ROW];
    test_rng r = { 53 };
    cache_defaults(c);
    c->layer.kv_type = type;
    c->layer.scale_kind = kind;
    c->layer.isa = isa;
    c->layout = PADDED;
    add(c, BAD_KEYS, BAD_KEYS, phase);
    add(c, BAD_KEYS, BAD_KEYS, phase);
    open_cache(c);
    set_scales(c, 0.013f);
    draw_floats(k, 2 * BAD_KEYS * K_ROW, 1, &r);
    draw_floats(v, 2 * BAD_KEYS * K_ROW, 1, &r);
    (which_v ? v : k)[BAD_KEY * K_ROW + 5] = bad != 0 ? bad : 0.5f; /* kv head 0 of request 0 */
    draw_q(c, 9);
    if (!plan_cache(c) && !append(c, k, v)) forward(c);
}

static void check_spoiled(const cache *c, const cache *clean, int expect, const char *what) {
    int row, h, d, bad = 0;
    for (row = 0; row < 2 * BAD_KEYS; row++) {
        for (h = 0; h < 4; h++) {
            const float *a = c->o + (row * 4 + h) * 16, *b = clean->o + (row * 4 + h) * 16;
            int may = row >= BAD_KEY && row < BAD_KEYS && h < 2;
            for (d = 0; d < 16; d++) bad += !(a[d] - a[d] == 0);
            CHECK(may || !memcmp(a, b, 16 * sizeof *a), "%s: row %d, head %d is spoilt", what, row, h);
            CHECK(may || !memcmp(c->lse + row * 4 + h, clean->lse + row * 4 + h, sizeof(float)), "%s: lse of row %d",
                  what, row);
        }
    }
    CHECK((bad > 0) == expect, "%s: %d elements of o are not finite", what, bad);
}

static void run_spoiled(attn_type type, int kind, int isa, int which_v, float bad) {
    /* e4m3 and e5m2 keep a NaN and saturate an inf; int8 has neither, but a scale per key keeps both */
    int expect = type == ATTN_INT8 ? kind == ATTN_SCALE_PER_KEY : is_nan(bad);
    int phase;
    for (phase = ATTN_PREFILL; phase <= ATTN_DECODE; phase++) {
        cache c, clean;
        open_spoiled(&c, type, kind, phase, isa, which_v, bad);
        open_spoiled(&clean, type, kind, phase, isa, which_v, 0);
        check_spoiled(&c, &clean, expect, case_name(&c));
        if (kind == ATTN_SCALE_PER_KEY) {
            float scale = *scale_of(&c, which_v, 0, BAD_KEY, 0);
            CHECK(scale - scale != 0, "the scale of the bad key is %g", (double)scale);
        }
        close_cache(&c);
        close_cache(&clean);
    }
}

static void test_spoiled(void) {
    int isa, which_v, i;
    for (isa = ATTN_ISA_SCALAR; isa; isa = next_isa(isa)) {
        for (which_v = 0; which_v < 2; which_v++) {
            for (i = 0; i < 3; i++) {
                float bad = i == 0 ? float_of(0x7FC00000) : i == 1 ? HUGE_VALF : -HUGE_VALF;
                run_spoiled(ATTN_E4M3, ATTN_SCALE_PER_TENSOR, isa, which_v, bad);
                run_spoiled(ATTN_E5M2, ATTN_SCALE_PER_HEAD, isa, which_v, bad);
                run_spoiled(ATTN_INT8, ATTN_SCALE_PER_KEY, isa, which_v, bad);
                run_spoiled(ATTN_INT8, ATTN_SCALE_PER_REQUEST, isa, which_v, bad);
            }
        }
    }
}

int main(int argc, char **argv) {
    if (argc > 1) test.only = argv[1];
    test_run("quant: the encoder of these tests", test_encoder);
    test_run("quant: all 65536 inputs of f16 and bf16", test_all_inputs);
    test_run("quant: f32 at ties and ends of the range", test_edges);
    test_run("quant: append, every type, kind of scale and layout", test_kinds);
    test_run("quant: what the 256 codes mean", test_codes);
    test_run("quant: attention against the oracle", test_attention);
    test_run("int8 per key: append, roll back, append again = never drafted", test_rollback);
    test_run("int8 per key: a ring has the bits of a whole cache", test_ring);
    test_run("int8 per key: V in K", test_latent);
    test_run("quant: NaN and inf in one key", test_spoiled);
    return test_close("quant");
}
