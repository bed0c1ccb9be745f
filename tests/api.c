/* api.c - the public functions one by one, each against a definition written here a second time. */
#include "../attn.h"
#include "isas.h"
#include "test.h"

#include <math.h>

/* ---- what the tests share --------------------------------------------------------------------------------------- */

static uint32_t float_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static float bits_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static void *get(size_t bytes) {
    void *p = malloc(bytes + 1);
    if (!p) {
        printf("out of memory\n");
        exit(2);
    }
    memset(p, 0xa5, bytes + 1);
    return p;
}

static float *random_floats(size_t count, uint64_t seed) {
    test_rng rng = { 0 };
    float *x = (float *)get(count * sizeof *x);
    size_t i;
    rng.state = seed;
    for (i = 0; i < count; i++) x[i] = test_uniform(&rng);
    return x;
}

static int32_t best_isa(void) {
    return (int32_t)attn_isa_detect();
}

/* A batch with its plan, data and memory. */
typedef struct job {
    attn_batch batch;
    attn_layer layer;
    attn_io io;
    attn_exec exec;
    attn_plan plan;
    void *plan_mem;
    size_t plan_bytes, o_bytes, lse_bytes;
    int32_t rows;
    int64_t keys;
    float *q, *k, *v;
} job;

/* Both of the kernel families, more than three units of 256 keys, more than two row tiles, two workers. */
enum { JOB_N = 5 };
static const int32_t job_q_len[JOB_N] = { 70, 1, 0, 3, 37 };
static const int32_t job_kv_len[JOB_N] = { 800, 900, 0, 700, 37 };
static const int32_t job_phase[JOB_N] = { ATTN_PREFILL, ATTN_DECODE, ATTN_PREFILL, ATTN_DECODE, ATTN_PREFILL };

static attn_layer job_layer(void) {
    attn_layer layer;
    memset(&layer, 0, sizeof layer);
    layer.heads = 4;
    layer.kv_heads = 2;
    layer.head_dim = 16;
    layer.v_dim = 24;
    layer.split_keys = 256;
    layer.row_tile = 16;
    layer.workers = 3;
    layer.isa = ATTN_ISA_SCALAR;
    return layer;
}

static void job_data(job *j) {
    const attn_layer *l = &j->plan.resolved;
    int32_t i;
    j->rows = 0;
    j->keys = 0;
    for (i = 0; i < j->batch.n; i++) {
        j->rows += j->batch.q_len ? j->batch.q_len[i] : 1;
        j->keys += j->batch.kv_len[i];
    }
    j->q = random_floats((size_t)(j->rows * l->heads * l->head_dim), 1);
    j->k = random_floats((size_t)(j->keys * l->kv_heads * l->head_dim), 2);
    j->v = random_floats((size_t)(j->keys * l->kv_heads * l->v_dim), 3);
    j->o_bytes = (size_t)(j->rows * l->heads * l->v_dim) * sizeof(float);
    j->lse_bytes = (size_t)(j->rows * l->heads) * sizeof(float);
    j->io.q = j->q;
    j->io.k = j->k;
    j->io.v = j->v;
    j->io.o = get(j->o_bytes);
    j->io.lse = (float *)get(j->lse_bytes);
}

static int job_plan(job *j) {
    attn_error error;
    j->plan_bytes = attn_plan_bytes(&j->batch, &j->layer);
    j->plan_mem = get(j->plan_bytes);
    if (attn_plan_make(&j->plan, &j->batch, &j->layer, j->plan_mem, j->plan_bytes, &error)) {
        CHECK(0, "%s", error.text);
        return 0;
    }
    j->exec.bytes = attn_exec_bytes(&j->plan, j->exec.lanes);
    j->exec.mem = get(j->exec.bytes);
    return 1;
}

/* 0 when the plan cannot be made: the failure is counted already. */
static int job_open(job *j, int32_t n, const int32_t *q_len, const int32_t *kv_len, const int32_t *phase,
                    attn_layer layer, int32_t lanes) {
    memset(j, 0, sizeof *j);
    j->batch.n = n;
    j->batch.q_len = q_len;
    j->batch.kv_len = kv_len;
    j->batch.phase = phase;
    j->layer = layer;
    j->exec.lanes = lanes;
    if (!job_plan(j)) {
        free(j->plan_mem);
        return 0;
    }
    job_data(j);
    return 1;
}

static int job_open_usual(job *j, int32_t lanes) {
    if (!job_open(j, JOB_N, job_q_len, job_kv_len, job_phase, job_layer(), lanes)) return 0;
    CHECK(j->plan.strips >= 4 && j->plan.tasks >= 4 && j->plan.merges >= 1 && j->plan.slots >= 2,
          "too small to prove anything: %d strips, %d tasks, %d merges, %d slots", j->plan.strips, j->plan.tasks,
          j->plan.merges, j->plan.slots);
    return 1;
}

static void job_close(job *j) {
    free(j->plan_mem);
    free(j->exec.mem);
    free(j->q);
    free(j->k);
    free(j->v);
    free(j->io.o);
    free(j->io.lse);
}

static void job_forward(job *j) {
    attn_error error;
    int status = attn_forward(&j->plan, &j->layer, &j->io, &j->exec, &error);
    CHECK(status == ATTN_OK, "%s", status ? error.text : "");
}

static void check_same(const job *a, const job *b, const char *what) {
    CHECK(a->o_bytes == b->o_bytes && !memcmp(a->io.o, b->io.o, a->o_bytes), "%s: o differs", what);
    CHECK(a->lse_bytes == b->lse_bytes && !memcmp(a->io.lse, b->io.lse, a->lse_bytes), "%s: lse differs", what);
}

/* ---- masks ------------------------------------------------------------------------------------------------------ */

/* The definition by counting: one step for each key between the query and the key, both included. */
static int sees(const attn_layer *l, int q_len, int kv_len, int prefix, int row, int key) {
    int position = kv_len - q_len + row, before = 0, after = 0, x;
    if (row < 0 || row >= q_len || key < 0 || key >= kv_len) return 0;
    if (l->mask == ATTN_CAUSAL && key > position) return 0;
    if (l->mask == ATTN_PREFIX && key > position && key >= prefix) return 0;
    if (l->mask == ATTN_BLOCK && key >= kv_len - q_len) {
        for (x = 0; x + l->chunk <= row; x += l->chunk) {
        }
        if (key - (kv_len - q_len) >= x + l->chunk) return 0;
    }
    if (l->mask == ATTN_CAUSAL && l->chunk) {
        for (x = key + 1; x <= position; x++) {
            if (x % l->chunk == 0) return 0;
        }
    }
    if (key < l->sink_keys) return 1;
    for (x = key; x <= position; x++) before++;
    for (x = position; x <= key; x++) after++;
    if (l->window_left > 0 && before > l->window_left) return 0;
    if (l->mask != ATTN_CAUSAL && l->window_right > 0 && after > l->window_right) return 0;
    return 1;
}

typedef struct mask_case {
    int32_t q_len[4], kv_len[4], prefix[4];
    attn_batch batch;
    attn_layer layer;
} mask_case;

static void draw_mask(mask_case *c, test_rng *rng) {
    int i;
    memset(c, 0, sizeof *c);
    c->layer.heads = 1;
    c->layer.head_dim = 8;
    c->layer.mask = (attn_mask)test_range(rng, ATTN_CAUSAL, ATTN_BLOCK);
    if (c->layer.mask == ATTN_BLOCK || (c->layer.mask == ATTN_CAUSAL && test_range(rng, 0, 1))) {
        c->layer.chunk = test_range(rng, 1, 20);
    }
    c->layer.window_left = test_range(rng, 0, 2) ? test_range(rng, 1, 40) : 0;
    c->layer.window_right = test_range(rng, 0, 2) ? test_range(rng, 1, 40) : 0;
    if (c->layer.mask != ATTN_CAUSAL || !c->layer.chunk) {
        c->layer.sink_keys = test_range(rng, 0, 1) ? test_range(rng, 1, 9) : 0;
    }
    for (i = 0; i < 4; i++) {
        c->kv_len[i] = test_range(rng, 0, 3) ? test_range(rng, 0, 70) : 32 * test_range(rng, 0, 2);
        c->q_len[i] = test_range(rng, 0, c->layer.mask == ATTN_FULL ? 20 : c->kv_len[i]);
        c->prefix[i] = test_range(rng, 0, c->kv_len[i]);
    }
    c->batch.n = 4;
    c->batch.q_len = c->q_len;
    c->batch.kv_len = c->kv_len;
    c->batch.prefix = c->prefix;
}

static void test_visible(void) {
    test_rng rng = { 11 };
    int round, i, row, key;
    long seen = 0, hidden = 0;
    for (round = 0; round < 200; round++) {
        mask_case c;
        draw_mask(&c, &rng);
        for (i = -1; i <= 4; i++) {
            int q_len = i < 0 || i > 3 ? 3 : c.q_len[i], kv_len = i < 0 || i > 3 ? 3 : c.kv_len[i];
            for (row = -1; row <= q_len; row++) {
                for (key = -1; key <= kv_len; key++) {
                    int want = i >= 0 && i < 4 && sees(&c.layer, q_len, kv_len, c.prefix[i], row, key);
                    int got = attn_visible(&c.batch, &c.layer, NULL, i, row, key);
                    CHECK(got == want, "mask %d, left %d, right %d, sinks %d, q_len %d, kv_len %d, row %d, key %d: %d",
                          (int)c.layer.mask, c.layer.window_left, c.layer.window_right, c.layer.sink_keys, q_len,
                          kv_len, row, key, got);
                    seen += want;
                    hidden += !want;
                }
            }
        }
    }
    CHECK(seen > 10000 && hidden > 10000, "%ld seen, %ld hidden", seen, hidden);
}

/* q_len NULL: one row each, at the last position. */
static void test_visible_decode(void) {
    static const int32_t kv_len[2] = { 5, 9 };
    attn_batch batch;
    attn_layer layer = job_layer();
    int key;
    memset(&batch, 0, sizeof batch);
    batch.n = 2;
    batch.kv_len = kv_len;
    layer.window_left = 3;
    for (key = 0; key < 10; key++) {
        CHECK(attn_visible(&batch, &layer, NULL, 1, 0, key) == (key >= 6 && key < 9), "key %d", key);
    }
    CHECK(attn_visible(&batch, &layer, NULL, 1, 1, 8) == 0, "a second row");
}

static void test_mask_bits(void) {
    enum { WORDS = 256 };
    static uint32_t bits[WORDS + 1];
    test_rng rng = { 12 };
    int round, i, row, key;
    for (round = 0; round < 100; round++) {
        mask_case c;
        draw_mask(&c, &rng);
        for (i = 0; i < 4; i++) {
            int words = (c.kv_len[i] + 31) / 32, used = words * c.q_len[i], status;
            attn_error error;
            memset(bits, 0xa5, sizeof bits);
            if (used > WORDS) continue;
            status = attn_mask_bits(&c.batch, &c.layer, NULL, i, bits, (size_t)used, &error);
            CHECK(status == ATTN_OK, "%s", status ? error.text : "");
            CHECK(bits[used] == 0xa5a5a5a5u, "wrote past %d words", used);
            for (row = 0; row < c.q_len[i]; row++) {
                for (key = 0; key < 32 * words; key++) {
                    int got = (int)(bits[row * words + key / 32] >> (key % 32) & 1);
                    CHECK(got == attn_visible(&c.batch, &c.layer, NULL, i, row, key), "row %d, key %d", row, key);
                }
            }
        }
    }
}

static void test_radius(void) {
    CHECK(attn_window_from_radius(-1, 1, 0) == 0, "-1 is off");
    CHECK(attn_window_from_radius(-7, 1, 0) == 0, "negative is off");
    CHECK(attn_window_from_radius(0, 1, 0) == 1, "0: only the query itself");
    CHECK(attn_window_from_radius(4095, 1, 0) == 4096, "4095 before it and itself");
    CHECK(attn_window_from_radius(4095, 0, 0) == 0, "not causal");
    CHECK(attn_window_from_radius(4095, 1, 1) == 0, "cross attention");
    CHECK(attn_window_from_radius(4095, 0, 1) == 0, "cross attention, not causal");
    CHECK(attn_window_from_radius(INT32_MAX, 1, 0) == INT32_MAX || attn_window_from_radius(INT32_MAX, 1, 0) == 0,
          "the largest radius must not wrap");
}

/* With q = 0 every visible key weighs the same, so lse is the logarithm of their number. */
static void count_keys(const attn_layer *layer, int32_t q_len, int32_t kv_len, int32_t phase) {
    job j;
    int row, key;
    if (!job_open(&j, 1, &q_len, &kv_len, &phase, *layer, 1)) return;
    memset(j.q, 0, (size_t)(q_len * layer->heads * layer->head_dim) * sizeof(float));
    job_forward(&j);
    for (row = 0; row < q_len; row++) {
        int want = 0, got = (int)floor(exp((double)j.io.lse[row * layer->heads]) + 0.5);
        for (key = 0; key < kv_len; key++) want += sees(layer, q_len, kv_len, 0, row, key);
        CHECK(got == want, "phase %d, left %d, sink keys %d, kv_len %d, row %d: %d keys instead of %d", phase,
              layer->window_left, layer->sink_keys, kv_len, row, got, want);
    }
    job_close(&j);
}

/* The window is read from the layer in one place: no kernel family may forget it or be off by one. */
static void test_window_everywhere(void) {
    static const int32_t windows[] = { 0, 1, 2, 31, 32, 33, 255, 256, 257, 599, 600, 4096 };
    size_t w;
    int32_t phase, split, sinks;
    for (w = 0; w < sizeof windows / sizeof windows[0]; w++) {
        for (phase = 0; phase < 2; phase++) {
            for (split = 0; split < 2; split++) {
                for (sinks = 0; sinks < 4; sinks += 3) {
                    attn_layer layer = job_layer();
                    layer.window_left = windows[w];
                    layer.split_keys = split ? 256 : 0;
                    layer.sink_keys = sinks;
                    count_keys(&layer, 20, 600, phase);
                }
            }
        }
    }
}

/* ---- append ----------------------------------------------------------------------------------------------------- */

/* A 16-bit type by its fields: f16 has 5 exponent bits and 10 of mantissa, bf16 has 8 and 7. */
typedef struct half_format {
    attn_type type;
    int exponent_bits, mantissa_bits;
} half_format;

static const half_format f16 = { ATTN_F16, 5, 10 }, bf16 = { ATTN_BF16, 8, 7 };

static const half_format *format_of(attn_type type) {
    return type == ATTN_F16 ? &f16 : &bf16;
}

static int is_nan_pattern(const half_format *f, unsigned h) {
    return (h & 0x7fffu) > ((1u << f->exponent_bits) - 1) << f->mantissa_bits;
}

/* Value of a pattern below infinity; infinity gives the next power of two, which is where rounding to it starts. */
static double pattern_value(const half_format *f, unsigned h) {
    unsigned mantissa = h & ((1u << f->mantissa_bits) - 1), exponent = (h & 0x7fffu) >> f->mantissa_bits;
    int bias = (1 << (f->exponent_bits - 1)) - 1;
    double fraction = ldexp((double)mantissa, -f->mantissa_bits);
    double x = exponent ? ldexp(1 + fraction, (int)exponent - bias) : ldexp(fraction, 1 - bias);
    return h & 0x8000u ? -x : x;
}

/* The pattern nearest to x: positive patterns are in order of value, so a binary search finds its two neighbours. */
static unsigned round_to(const half_format *f, float x) {
    unsigned sign = float_bits(x) >> 31 << 15, low = 0, high = ((1u << f->exponent_bits) - 1) << f->mantissa_bits;
    double a = fabs((double)x), below, above;
    if (a >= pattern_value(f, high)) return sign | high;
    while (high - low > 1) {
        unsigned middle = (low + high) / 2;
        if (pattern_value(f, middle) <= a) {
            low = middle;
        } else {
            high = middle;
        }
    }
    below = a - pattern_value(f, low);
    above = pattern_value(f, high) - a;
    if (below < above) return sign | low;
    if (below > above) return sign | high;
    return sign | (low % 2 ? high : low);
}

/* What a cache of type `to` must hold for the stored number, as bits. NaN is any NaN: *any_nan. */
static uint32_t convert(uint32_t from_bits, attn_type from, attn_type to, int *any_nan) {
    float x;
    *any_nan = 0;
    if (from == to) return from_bits;
    if (from == ATTN_F32) {
        x = bits_float(from_bits);
    } else if (is_nan_pattern(format_of(from), from_bits)) {
        x = (float)NAN;
    } else if ((from_bits & 0x7fffu) == (from == ATTN_F16 ? 0x7c00u : 0x7f80u)) {
        x = from_bits & 0x8000u ? -(float)INFINITY : (float)INFINITY;
    } else {
        x = (float)pattern_value(format_of(from), from_bits);
    }
    *any_nan = isnan(x);
    if (isnan(x)) return 0;
    return to == ATTN_F32 ? float_bits(x) : round_to(format_of(to), x);
}

static int is_nan(uint32_t bits, attn_type type) {
    return type == ATTN_F32 ? (bits & 0x7fffffffu) > 0x7f800000u : is_nan_pattern(format_of(type), bits);
}

static uint32_t load(const void *data, int64_t i, attn_type type) {
    if (type == ATTN_F32) return ((const uint32_t *)data)[i];
    return ((const uint16_t *)data)[i];
}

static void store(void *data, int64_t i, attn_type type, uint32_t bits) {
    if (type == ATTN_F32) {
        ((uint32_t *)data)[i] = bits;
    } else {
        ((uint16_t *)data)[i] = (uint16_t)bits;
    }
}

enum { NUMBERS = 1 << 16, NUMBER_WIDTH = 32, NUMBER_ROWS = NUMBERS / NUMBER_WIDTH };

/* f32 numbers that matter to a rounding: patterns of the target, the middle to the next one, and what is beside it. */
static uint32_t draw_number(const half_format *f, int i, test_rng *rng) {
    unsigned h = (unsigned)test_range(rng, 0, 0x7fff);
    uint32_t sign = test_next(rng) & 1 ? 0x80000000u : 0;
    uint32_t low = float_bits((float)pattern_value(f, h)), middle;
    if (i % 8 == 0 || is_nan_pattern(f, h + 1)) return (uint32_t)test_next(rng);
    middle = float_bits((float)((pattern_value(f, h) + pattern_value(f, h + 1)) / 2));
    if (i % 8 == 1) return sign | low;
    if (i % 8 < 4) return sign | middle;
    if (i % 8 < 6) return sign | (middle + 1);
    return sign | (middle - 1);
}

static void fill_numbers(void *numbers, attn_type from, attn_type to) {
    static const uint32_t special[] = { 0, 0x80000000u, 1, 0x80000001u, 0x007fffffu, 0x00800000u, 0x7f7fffffu,
                                        0xff7fffffu, 0x7f800000u, 0xff800000u, 0x7f800001u, 0xffc00000u, 0x7fffffffu,
                                        0x477fefffu, 0x477ff000u, 0x7f7f7fffu, 0x7f7f8000u, 0x33000000u, 0x33000001u };
    test_rng rng = { 13 };
    int i;
    for (i = 0; i < NUMBERS; i++) {
        uint32_t bits = (uint32_t)i;
        if (from == ATTN_F32) bits = draw_number(to == ATTN_BF16 ? &bf16 : &f16, i, &rng);
        if (from == ATTN_F32 && i < (int)(sizeof special / sizeof special[0])) bits = special[i];
        store(numbers, i, from, bits);
    }
}

static void check_conversion(attn_type from, attn_type to, int32_t isa) {
    static uint32_t numbers[NUMBERS], cache_k[NUMBERS], cache_v[NUMBERS];
    static const int32_t length = NUMBER_ROWS;
    attn_layer layer = job_layer();
    attn_error error;
    job j;
    int i, any_nan, status;
    layer.heads = 2;
    layer.head_dim = NUMBER_WIDTH / 2;
    layer.v_dim = NUMBER_WIDTH / 2;
    layer.q_type = from;
    layer.kv_type = to;
    layer.isa = isa;
    if (!job_open(&j, 1, &length, &length, NULL, layer, 1)) return;
    fill_numbers(numbers, from, to);
    j.io.k = cache_k;
    j.io.v = cache_v;
    status = attn_append(&j.plan, &layer, &j.io, numbers, numbers, &error);
    CHECK(status == ATTN_OK, "%s", status ? error.text : "");
    for (i = 0; i < NUMBERS; i++) {
        uint32_t source = load(numbers, i, from), want = convert(source, from, to, &any_nan);
        uint32_t k = load(cache_k, i, to), v = load(cache_v, i, to);
        CHECK(any_nan ? is_nan(k, to) : k == want, "isa %d, type %d -> %d: k of %08lx is %08lx, not %08lx", isa,
              (int)from, (int)to, (unsigned long)source, (unsigned long)k, (unsigned long)want);
        CHECK(v == k, "isa %d, type %d -> %d: v of %08lx is %08lx", isa, (int)from, (int)to, (unsigned long)source,
              (unsigned long)v);
    }
    job_close(&j);
}

static void test_append_rounding(void) {
    int32_t isa;
    int from, to;
    CHECK(round_to(&f16, 65519.0f) == 0x7bff && round_to(&f16, 65520.0f) == 0x7c00, "the converter of this test");
    CHECK(round_to(&f16, -1.0f) == 0xbc00 && round_to(&bf16, 1.00390625f) == 0x3f80, "the converter of this test");
    for (isa = ATTN_ISA_SCALAR; isa; isa = next_isa(isa)) {
        for (from = ATTN_F32; from <= ATTN_BF16; from++) {
            for (to = ATTN_F32; to <= ATTN_BF16; to++) check_conversion((attn_type)from, (attn_type)to, isa);
        }
    }
}

/* Where the key of a request lies, written from the struct comments. */
typedef struct layout {
    const char *name;
    int paged;
    int64_t page, row, head;        /* strides in elements, 0: packed */
} layout;

static int64_t address(const layout *s, const job *j, int32_t request, int32_t key, int head, int dim) {
    int64_t at_head = s->head ? s->head : dim, at_row = s->row ? s->row : j->plan.resolved.kv_heads * dim;
    int64_t start = 0;
    int32_t i;
    if (s->paged) {
        int32_t size = j->layer.page_size, page = j->io.page_table[request * j->io.page_table_row + key / size];
        int64_t at_page = s->page ? s->page : size * at_row;
        return page * at_page + key % size * at_row + head * at_head;
    }
    if (s->page) return request * s->page + key * at_row + head * at_head;
    for (i = 0; i < request; i++) start += j->batch.kv_len[i];
    return (start + key) * at_row + head * at_head;
}

/* Stores the new rows into `cache` one by one. */
static void append_rows(const layout *s, const job *j, float *cache, const float *rows, int dim) {
    int32_t i, r, done = 0;
    int h, heads = j->plan.resolved.kv_heads;
    for (i = 0; i < j->batch.n; i++) {
        for (r = 0; r < j->batch.q_len[i]; r++, done++) {
            int32_t key = j->batch.kv_len[i] - j->batch.q_len[i] + r;
            for (h = 0; h < heads; h++) {
                memcpy(cache + address(s, j, i, key, h, dim), rows + (done * heads + h) * dim,
                       (size_t)dim * sizeof *rows);
            }
        }
    }
}

static void shuffle_pages(int32_t *table, int pages) {
    test_rng rng = { 5 };
    int i;
    for (i = 0; i < pages; i++) table[i] = i;
    for (i = pages - 1; i > 0; i--) {
        int other = test_range(&rng, 0, i);
        int32_t page = table[i];
        table[i] = table[other];
        table[other] = page;
    }
}

static void check_layout(const layout *s) {
    enum { KEYS = 48, CACHE = 16384, PAGE = 5, COLUMNS = 10, REQUESTS = 4 };
    static const int32_t q_len[REQUESTS] = { 7, 0, 1, 20 }, kv_len[REQUESTS] = { 41, 9, 1, 20 };
    static float k[CACHE], v[CACHE], want_k[CACHE], want_v[CACHE];
    int32_t table[REQUESTS * COLUMNS];
    attn_layer layer = job_layer();
    attn_error error;
    float *new_k = random_floats(28 * 2 * 16, 8), *new_v = random_floats(28 * 2 * 24, 9);
    job j;
    int status;
    layer.page_size = s->paged ? PAGE : 0;
    if (job_open(&j, REQUESTS, q_len, kv_len, NULL, layer, 1)) {
        memset(k, 0xa5, sizeof k);
        memset(v, 0xa5, sizeof v);
        shuffle_pages(table, REQUESTS * COLUMNS);
        j.io.k = k;
        j.io.v = v;
        j.io.k_page = j.io.v_page = s->page;
        j.io.k_row = j.io.v_row = s->row;
        j.io.k_head = j.io.v_head = s->head;
        j.io.page_table = s->paged ? table : NULL;
        j.io.page_table_row = s->paged ? COLUMNS : 0;
        j.io.pages = s->paged ? REQUESTS * COLUMNS : 0;
        memcpy(want_k, k, sizeof k);
        memcpy(want_v, v, sizeof v);
        append_rows(s, &j, want_k, new_k, 16);
        append_rows(s, &j, want_v, new_v, 24);
        status = attn_append(&j.plan, &layer, &j.io, new_k, new_v, &error);
        CHECK(status == ATTN_OK, "%s: %s", s->name, status ? error.text : "");
        CHECK(memcmp(want_k, want_v, sizeof k), "%s: the test appends nothing", s->name);
        CHECK(!memcmp(k, want_k, sizeof k), "%s: k", s->name);
        CHECK(!memcmp(v, want_v, sizeof v), "%s: v", s->name);
        job_close(&j);
    }
    free(new_k);
    free(new_v);
}

static void test_append_layouts(void) {
    static const layout layouts[] = {
        { "contiguous", 0, 0, 0, 0 },
        { "contiguous, wide rows", 0, 0, 77, 0 },
        { "contiguous, wide heads", 0, 0, 60, 30 },
        { "contiguous, heads outside", 0, 0, 24, 24 * 80 },
        { "padded", 0, 2500, 0, 0 },
        { "padded, wide rows", 0, 3500, 60, 29 },
        { "paged", 1, 0, 0, 0 },
        { "paged, wide pages", 1, 301, 0, 0 },
        { "paged, wide rows and heads", 1, 400, 70, 31 },
        { "paged, heads outside slots", 1, 250, 24, 24 * 5 },
    };
    size_t i;
    for (i = 0; i < sizeof layouts / sizeof layouts[0]; i++) check_layout(&layouts[i]);
}

/* ---- merge ------------------------------------------------------------------------------------------------------ */

enum { MERGE_ROWS = 5, MERGE_HEADS = 3, MERGE_DIM = 20, MERGE_O = MERGE_ROWS * MERGE_HEADS * MERGE_DIM,
       MERGE_LSE = MERGE_ROWS * MERGE_HEADS };

static attn_layer merge_layer(attn_type type) {
    attn_layer layer;
    memset(&layer, 0, sizeof layer);
    layer.heads = MERGE_HEADS;
    layer.head_dim = 8;
    layer.v_dim = MERGE_DIM;
    layer.o_type = type;
    return layer;
}

/* lse and o of the union, from the definition in double. */
static void test_merge_formula(void) {
    attn_layer layer = merge_layer(ATTN_F32);
    float *a = random_floats(MERGE_O, 1), *b = random_floats(MERGE_O, 2), *lse_a = random_floats(MERGE_LSE, 3);
    float *lse_b = random_floats(MERGE_LSE, 4), o[MERGE_O], lse[MERGE_LSE];
    int i, d, status;
    for (i = 0; i < MERGE_LSE; i++) lse_a[i] *= i % 2 ? 3.0f : 60.0f;
    status = attn_merge(&layer, MERGE_ROWS, a, lse_a, b, lse_b, o, lse, NULL);
    CHECK(status == ATTN_OK, "status %d", status);
    for (i = 0; i < MERGE_LSE; i++) {
        double x = exp((double)lse_a[i]), y = exp((double)lse_b[i]);
        CHECK(fabs(log(x + y) - (double)lse[i]) < 1e-5 * (1 + fabs((double)lse[i])), "lse %g", (double)lse[i]);
        for (d = i * MERGE_DIM; d < (i + 1) * MERGE_DIM; d++) {
            double want = (x * (double)a[d] + y * (double)b[d]) / (x + y);
            CHECK(fabs(want - (double)o[d]) < 2e-6, "o %g, not %g", (double)o[d], want);
        }
    }
    free(a);
    free(b);
    free(lse_a);
    free(lse_b);
}

/* An output may be an input: the same bits as into fresh memory. */
static void test_merge_in_place(void) {
    attn_layer layer = merge_layer(ATTN_F32);
    float *a = random_floats(MERGE_O, 1), *b = random_floats(MERGE_O, 2), *lse_a = random_floats(MERGE_LSE, 3);
    float *lse_b = random_floats(MERGE_LSE, 4), o[MERGE_O], lse[MERGE_LSE], other_o[MERGE_O], other_lse[MERGE_LSE];
    attn_merge(&layer, MERGE_ROWS, a, lse_a, b, lse_b, o, lse, NULL);
    memcpy(other_o, a, sizeof other_o);
    memcpy(other_lse, lse_a, sizeof other_lse);
    attn_merge(&layer, MERGE_ROWS, other_o, other_lse, b, lse_b, other_o, other_lse, NULL);
    CHECK(!memcmp(o, other_o, sizeof o) && !memcmp(lse, other_lse, sizeof lse), "into a");
    memcpy(other_o, b, sizeof other_o);
    memcpy(other_lse, lse_b, sizeof other_lse);
    attn_merge(&layer, MERGE_ROWS, a, lse_a, other_o, other_lse, other_o, other_lse, NULL);
    CHECK(!memcmp(o, other_o, sizeof o) && !memcmp(lse, other_lse, sizeof lse), "into b");
    memset(other_o, 0, sizeof other_o);
    attn_merge(&layer, MERGE_ROWS, a, lse_a, b, lse_b, other_o, NULL, NULL);
    CHECK(!memcmp(o, other_o, sizeof o), "without lse");
    free(a);
    free(b);
    free(lse_a);
    free(lse_b);
}

/* features trap 17, sglang trap 20: a side that saw nothing leaves the bits of the other alone. */
static void check_identity(attn_type type) {
    attn_layer layer = merge_layer(type);
    uint32_t a[MERGE_O], zero[MERGE_O], o[MERGE_O];
    float *lse_a = random_floats(MERGE_LSE, 3), empty[MERGE_LSE], lse[MERGE_LSE];
    size_t bytes = MERGE_O * (type == ATTN_F32 ? 4u : 2u);
    test_rng rng = { 21 };
    int i;
    memset(zero, 0, sizeof zero);
    for (i = 0; i < MERGE_LSE; i++) empty[i] = -(float)INFINITY;
    for (i = 0; i < MERGE_O; i++) {
        float x = test_uniform(&rng);
        store(a, i, type, type == ATTN_F32 ? float_bits(x) : round_to(format_of(type), x));
    }
    memset(o, 0xa5, sizeof o);
    attn_merge(&layer, MERGE_ROWS, a, lse_a, zero, empty, o, lse, NULL);
    CHECK(!memcmp(o, a, bytes) && !memcmp(lse, lse_a, sizeof lse), "type %d: the second side is empty", (int)type);
    memset(o, 0xa5, sizeof o);
    attn_merge(&layer, MERGE_ROWS, zero, empty, a, lse_a, o, lse, NULL);
    CHECK(!memcmp(o, a, bytes) && !memcmp(lse, lse_a, sizeof lse), "type %d: the first side is empty", (int)type);
    memset(o, 0xa5, sizeof o);
    attn_merge(&layer, MERGE_ROWS, zero, empty, zero, empty, o, lse, NULL);
    CHECK(!memcmp(o, zero, bytes) && !memcmp(lse, empty, sizeof lse), "type %d: both sides are empty", (int)type);
    free(lse_a);
}

static void test_merge_identity(void) {
    check_identity(ATTN_F32);
    check_identity(ATTN_F16);
    check_identity(ATTN_BF16);
}

/* Two halves of the keys, sinks given to one of them, joined: attention over all keys. */
static void test_merge_halves(void) {
    enum { ROWS = 6, KEYS = 300, HALF = 130 };
    static const float sinks[4] = { 0.5f, -1.0f, 2.0f, 0.0f };
    attn_layer layer = job_layer();
    int32_t q_len = ROWS;
    int32_t whole_keys = KEYS, left_keys = HALF, right_keys = KEYS - HALF;
    job whole, left, right;
    size_t i;
    layer.mask = ATTN_FULL;
    layer.v_dim = 0;
    if (!job_open(&whole, 1, &q_len, &whole_keys, NULL, layer, 1)) return;
    if (!job_open(&left, 1, &q_len, &left_keys, NULL, layer, 1)) return;
    if (!job_open(&right, 1, &q_len, &right_keys, NULL, layer, 1)) return;
    whole.io.sinks = sinks;
    right.io.sinks = sinks;
    left.io.k = whole.k;
    left.io.v = whole.v;
    right.io.k = whole.k + HALF * 2 * 16;
    right.io.v = whole.v + HALF * 2 * 16;
    job_forward(&whole);
    job_forward(&left);
    job_forward(&right);
    attn_merge(&layer, ROWS, left.io.o, left.io.lse, right.io.o, right.io.lse, left.io.o, left.io.lse, NULL);
    for (i = 0; i < whole.o_bytes / sizeof(float); i++) {
        float want = ((float *)whole.io.o)[i], got = ((float *)left.io.o)[i];
        CHECK(fabsf(want - got) < 2e-6f, "o[%lu] = %g, not %g", (unsigned long)i, (double)got, (double)want);
    }
    for (i = 0; i < whole.lse_bytes / sizeof(float); i++) {
        CHECK(fabsf(whole.io.lse[i] - left.io.lse[i]) < 4e-6f, "lse[%lu]", (unsigned long)i);
    }
    job_close(&whole);
    job_close(&left);
    job_close(&right);
}

/* ---- dense, tasks ----------------------------------------------------------------------------------------------- */

static void test_dense(void) {
    int32_t q_len = 40, kv_len = 700, isa;
    for (isa = ATTN_ISA_SCALAR; isa; isa = next_isa(isa)) {
        attn_layer layer = job_layer();
        attn_error error;
        job j;
        size_t bytes;
        void *mem, *o;
        float *lse;
        int status;
        layer.isa = isa;
        if (!job_open(&j, 1, &q_len, &kv_len, NULL, layer, 1)) return;
        job_forward(&j);
        bytes = attn_dense_bytes(&layer, q_len, kv_len);
        mem = get(bytes);
        o = j.io.o;
        lse = j.io.lse;
        j.io.o = get(j.o_bytes);
        j.io.lse = (float *)get(j.lse_bytes);
        CHECK(bytes > 0, "attn_dense_bytes is 0");
        status = attn_dense(&layer, q_len, kv_len, &j.io, mem, bytes, &error);
        CHECK(status == ATTN_OK, "%s", status ? error.text : "");
        CHECK(!memcmp(o, j.io.o, j.o_bytes), "isa %d: o differs", isa);
        CHECK(!memcmp(lse, j.io.lse, j.lse_bytes), "isa %d: lse differs", isa);
        CHECK(((unsigned char *)mem)[bytes] == 0xa5, "wrote past the memory");
        status = attn_dense(&layer, q_len, kv_len, &j.io, mem, bytes - 1, &error);
        CHECK(status == ATTN_E_MEMORY, "one byte less than attn_dense_bytes is accepted");
        free(mem);
        free(o);
        free(lse);
        job_close(&j);
    }
}

/* Tasks 0 .. count - 1 of one stage in a shuffled order. */
static int32_t *shuffled(int32_t count, test_rng *rng) {
    int32_t *order = (int32_t *)get((size_t)count * sizeof *order);
    int32_t i;
    for (i = 0; i < count; i++) order[i] = i;
    for (i = count - 1; i > 0; i--) {
        int32_t other = test_range(rng, 0, i), task = order[i];
        order[i] = order[other];
        order[other] = task;
    }
    return order;
}

/* One frame after the other: a few tasks of the first layer, a few of the second, each on any lane. */
static void run_frames(job *a, job *b, attn_stage stage, test_rng *rng) {
    int32_t count = attn_task_count(&a->plan, stage), done = 0;
    int32_t *order_a = shuffled(count, rng), *order_b = shuffled(count, rng);
    while (done < count) {
        int32_t end = done + test_range(rng, 1, 3), i;
        if (end > count) end = count;
        for (i = done; i < end; i++) attn_task(&a->plan, &a->io, &a->exec, stage, order_a[i], test_range(rng, 0, 3));
        for (i = done; i < end; i++) attn_task(&b->plan, &b->io, &b->exec, stage, order_b[i], test_range(rng, 0, 3));
        done = end;
    }
    free(order_a);
    free(order_b);
}

static void test_tasks(void) {
    test_rng rng = { 31 };
    int round;
    job whole, a, b;
    if (!job_open_usual(&whole, 1) || !job_open_usual(&a, 4) || !job_open_usual(&b, 4)) return;
    CHECK(attn_task_count(&a.plan, ATTN_COMPUTE) == a.plan.tasks, "compute tasks");
    CHECK(attn_task_count(&a.plan, ATTN_MERGE) == a.plan.merges, "merge tasks");
    job_forward(&whole);
    for (round = 0; round < 5; round++) {
        memset(a.io.o, 0x11, a.o_bytes);
        memset(b.io.o, 0x22, b.o_bytes);
        CHECK(attn_check(&a.plan, &a.layer, &a.io, &a.exec, NULL) == ATTN_OK, "attn_check");
        CHECK(attn_check(&b.plan, &b.layer, &b.io, &b.exec, NULL) == ATTN_OK, "attn_check");
        run_frames(&a, &b, ATTN_COMPUTE, &rng);
        run_frames(&a, &b, ATTN_MERGE, &rng);
        check_same(&whole, &a, "the first layer");
        check_same(&whole, &b, "the second layer");
    }
    CHECK(a.plan.largest_task > 0 && a.plan.largest_task < a.plan.work, "largest task %ld of %ld",
          (long)a.plan.largest_task, (long)a.plan.work);
    job_close(&whole);
    job_close(&a);
    job_close(&b);
}

/* ---- explain ---------------------------------------------------------------------------------------------------- */

/* A step without rows needs no new keys, no cache and no outputs. */
static void test_no_rows(void) {
    static const int32_t zero[2] = { 0, 0 };
    int32_t memory[512];
    attn_batch batch;
    attn_layer layer = job_layer();
    attn_io io;
    attn_plan plan;
    attn_exec exec;
    memset(&batch, 0, sizeof batch);
    memset(&io, 0, sizeof io);
    memset(&exec, 0, sizeof exec);
    batch.n = 2;
    batch.q_len = zero;
    batch.kv_len = zero;
    CHECK(!attn_plan_make(&plan, &batch, &layer, memory, sizeof memory, NULL), "a plan of pads");
    CHECK(!attn_append(&plan, &layer, &io, NULL, NULL, NULL), "append");
    exec.bytes = attn_exec_bytes(&plan, 1);
    exec.mem = malloc(exec.bytes);
    CHECK(!attn_forward(&plan, &layer, &io, &exec, NULL), "forward");
    free(exec.mem);
}

/* Linux shows what it lends. */
static int shows_amx(void) {
    char line[8192];
    int shown = 0;
    FILE *file = fopen("/proc/cpuinfo", "r");
    while (file && !shown && fgets(line, sizeof line, file)) shown = !!strstr(line, " amx_bf16 ");
    if (file) fclose(file);
    return shown;
}

/* What the compiler's own run-time library says of this CPU. */
static void test_detect(void) {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__TINYC__)
    int avx2, avx512, vnni, want;
    __builtin_cpu_init();
    avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    vnni = avx512 && __builtin_cpu_supports("avx512vnni");
    want = vnni ? ATTN_ISA_AVX512_VNNI : avx512 ? ATTN_ISA_AVX512 : avx2 ? ATTN_ISA_AVX2 : ATTN_ISA_SCALAR;
    if (vnni && shows_amx()) want = ATTN_ISA_AMX;
    CHECK((int)attn_isa_detect() == want, "detected %d, not %d", (int)attn_isa_detect(), want);
#else
    test_skip("no second opinion on this CPU");
#endif
}

/* Every part of the layer that a reader might ask about. */
static void test_explain_layer(void) {
    static const char *const wanted[] = {
        "4 heads on 2 kv heads", "head_dim 8, v_dim 4", "q f16, kv bf16, o f32", "; full", "window_left 9",
        "window_right 7", "sink_keys 3", "scale 0.25", "softcap 30", "pages of 16 keys"
    };
    static const int32_t kv_len[1] = { 5 };
    char text[2048];
    int32_t memory[256];
    attn_batch batch;
    attn_layer layer;
    attn_plan plan;
    size_t i;
    memset(&batch, 0, sizeof batch);
    memset(&layer, 0, sizeof layer);
    batch.n = 1;
    batch.kv_len = kv_len;
    layer.heads = 4;
    layer.kv_heads = 2;
    layer.head_dim = 8;
    layer.v_dim = 4;
    layer.q_type = ATTN_F16;
    layer.kv_type = ATTN_BF16;
    layer.mask = ATTN_FULL;
    layer.window_left = 9;
    layer.window_right = 7;
    layer.sink_keys = 3;
    layer.scale = 0.25f;
    layer.softcap = 30;
    layer.page_size = 16;
    layer.workers = 2;
    CHECK(!attn_plan_make(&plan, &batch, &layer, memory, sizeof memory, NULL), "a valid plan");
    attn_plan_explain(&plan, text, sizeof text);
    for (i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        CHECK(strstr(text, wanted[i]), "no %s in %s", wanted[i], text);
    }
    plan.words = NULL;
    plan.device = memory;
    CHECK(attn_plan_explain(&plan, text, sizeof text) == strlen(text), "the length, on a device");
    CHECK(!strncmp(text, "on a device\nlayer: ", 19) && strstr(text, "softcap 30"), "on a device: %s", text);
    layer.kv_type = ATTN_INT8;
    layer.flags = ATTN_FAST_INT8;
    for (layer.isa = ATTN_ISA_SCALAR; layer.isa; layer.isa = next_isa(layer.isa)) {
        CHECK(!attn_plan_make(&plan, &batch, &layer, memory, sizeof memory, NULL), "a valid plan of int8");
        attn_plan_explain(&plan, text, sizeof text);
        CHECK(strstr(text, "; int8 queries"), "%s", text);
        CHECK(!strstr(text, " with vnni") == (layer.isa != ATTN_ISA_AVX512_VNNI), "isa %d: %s", layer.isa, text);
    }
}

static void test_explain(void) {
    char full[4096], part[4096];
    int32_t isa;
    for (isa = ATTN_ISA_SCALAR; isa; isa = next_isa(isa)) {
        attn_layer layer = job_layer();
        size_t length, bytes;
        job j;
        layer.isa = isa;
        layer.row_tile = 48;
        layer.key_tile = 32;
        layer.workers = 37;
        if (!job_open(&j, JOB_N, job_q_len, job_kv_len, job_phase, layer, 1)) return;
        length = attn_plan_explain(&j.plan, full, sizeof full);
        CHECK(length > 40 && length < sizeof full && strlen(full) == length, "%lu characters", (unsigned long)length);
        CHECK(attn_plan_explain(&j.plan, NULL, 0) == length, "the length without a buffer");
        for (bytes = 1; bytes <= length + 2; bytes++) {
            size_t kept = bytes > length ? length : bytes - 1;
            memset(part, 0x7f, sizeof part);
            CHECK(attn_plan_explain(&j.plan, part, bytes) == length, "length with %lu bytes", (unsigned long)bytes);
            CHECK(!memcmp(part, full, kept) && part[kept] == 0, "text with %lu bytes", (unsigned long)bytes);
            CHECK(part[bytes] == 0x7f, "wrote past %lu bytes", (unsigned long)bytes);
        }
        CHECK(strstr(full, isa_name(isa)), "no \"%s\" in\n%s", isa_name(isa), full);
        CHECK(strstr(full, "48") && strstr(full, "32") && strstr(full, "37"), "no tile sizes in\n%s", full);
        job_close(&j);
    }
}

/* ---- memory and plans ------------------------------------------------------------------------------------------- */

static void set_capacities(attn_batch *batch) {
    batch->max_q_len = 100;
    batch->max_kv_len = 1000;
    batch->max_rows = 400;
}

static size_t exec_bytes_of(attn_batch batch, attn_layer layer, int32_t lanes) {
    size_t plan_bytes = attn_plan_bytes(&batch, &layer), bytes;
    void *mem = get(plan_bytes);
    attn_plan plan;
    int status = attn_plan_make(&plan, &batch, &layer, mem, plan_bytes, NULL);
    CHECK(status == ATTN_OK, "status %d", status);
    CHECK(((unsigned char *)mem)[plan_bytes] == 0xa5, "wrote past attn_plan_bytes");
    bytes = attn_exec_bytes(&plan, lanes);
    free(mem);
    return bytes;
}

/* The scratch memory of a step is that of every step with the same n and capacities. */
static void test_exec_bytes(void) {
    static const int32_t small_q[JOB_N] = { 1, 0, 2, 0, 0 }, small_kv[JOB_N] = { 9, 0, 2, 0, 0 };
    static const int32_t zero[JOB_N] = { 0, 0, 0, 0, 0 };
    attn_batch big, small, none;
    attn_layer layer = job_layer();
    size_t bytes;
    memset(&big, 0, sizeof big);
    set_capacities(&big);
    big.n = JOB_N;
    big.q_len = job_q_len;
    big.kv_len = job_kv_len;
    big.phase = job_phase;
    small = big;
    small.q_len = small_q;
    small.kv_len = small_kv;
    none = big;
    none.q_len = zero;
    none.kv_len = zero;
    bytes = exec_bytes_of(big, layer, 2);
    CHECK(bytes > 0, "no bytes");
    CHECK(exec_bytes_of(small, layer, 2) == bytes, "a smaller batch: %lu and %lu bytes",
          (unsigned long)exec_bytes_of(small, layer, 2), (unsigned long)bytes);
    CHECK(exec_bytes_of(none, layer, 2) == bytes, "an empty batch");
    CHECK(exec_bytes_of(big, layer, 0) == exec_bytes_of(big, layer, 1), "0 lanes is 1");
    CHECK(exec_bytes_of(big, layer, 1) < bytes, "1 lane takes less than 2");
    CHECK(exec_bytes_of(big, layer, 3) > bytes, "3 lanes take more than 2");
    CHECK(exec_bytes_of(big, layer, 3) - bytes == bytes - exec_bytes_of(big, layer, 1), "a lane has its own price");
}

/* With all capacities set, sizes come from them: the arrays may live on a device, or not exist yet. */
static void test_plan_bytes(void) {
    attn_batch batch;
    attn_layer layer = job_layer();
    size_t bytes;
    memset(&batch, 0, sizeof batch);
    set_capacities(&batch);
    batch.n = JOB_N;
    bytes = attn_plan_bytes(&batch, &layer);
    CHECK(bytes > 0, "no arrays: 0 bytes");
    batch.q_len = job_q_len;
    batch.kv_len = job_kv_len;
    batch.phase = job_phase;
    CHECK(attn_plan_bytes(&batch, &layer) == bytes, "with arrays: %lu, without: %lu",
          (unsigned long)attn_plan_bytes(&batch, &layer), (unsigned long)bytes);
    CHECK(exec_bytes_of(batch, layer, 1) > 0, "the plan does not fit into its bytes");
}

/* The plan of a step is made once and read often: layer after layer, with the length arrays gone. */
static void test_plan_reuse(void) {
    int32_t q_len[JOB_N], kv_len[JOB_N], phase[JOB_N];
    int layer, step;
    job once, again;
    memcpy(q_len, job_q_len, sizeof q_len);
    memcpy(kv_len, job_kv_len, sizeof kv_len);
    memcpy(phase, job_phase, sizeof phase);
    if (!job_open_usual(&once, 1)) return;
    if (!job_open(&again, JOB_N, q_len, kv_len, phase, job_layer(), 2)) return;
    memset(q_len, 0x7f, sizeof q_len);
    memset(kv_len, 0x7f, sizeof kv_len);
    memset(phase, 0x7f, sizeof phase);
    for (step = 0; step < 2; step++) {
        for (layer = 0; layer < 4; layer++) {
            test_rng rng = { 100 };
            int32_t i;
            rng.state += (uint64_t)layer;
            for (i = 0; i < once.rows * 4 * 16; i++) once.q[i] = again.q[i] = test_uniform(&rng);
            memset(once.exec.mem, 0, once.exec.bytes);
            memset(again.io.o, step, again.o_bytes);
            job_forward(&once);
            job_forward(&again);
            check_same(&once, &again, "one plan for all layers");
        }
    }
    job_close(&once);
    job_close(&again);
}

/* What stood in the plan's memory and in the scratch memory before must not matter. */
static void test_dirty_memory(void) {
    static const int fill[] = { 0x00, 0xff, 0xa5 };
    job j;
    size_t i;
    unsigned char *words = NULL;
    void *o = NULL;
    if (!job_open_usual(&j, 2)) return;
    words = (unsigned char *)get(j.plan_bytes);
    o = get(j.o_bytes);
    for (i = 0; i < 3; i++) {
        attn_error error;
        int status;
        memset(j.plan_mem, fill[i], j.plan_bytes);
        memset(&j.plan, fill[i], sizeof j.plan);
        memset(j.exec.mem, fill[i], j.exec.bytes);
        status = attn_plan_make(&j.plan, &j.batch, &j.layer, j.plan_mem, j.plan_bytes, &error);
        CHECK(status == ATTN_OK, "%s", status ? error.text : "");
        job_forward(&j);
        if (i == 0) memcpy(o, j.io.o, j.o_bytes);
        CHECK(!memcmp(o, j.io.o, j.o_bytes), "memory of %02x: o differs", fill[i]);
    }
    memcpy(words, j.plan_mem, j.plan_bytes);
    job_forward(&j);
    CHECK(!memcmp(words, j.plan_mem, j.plan_bytes), "attn_forward changed the plan");
    free(words);
    free(o);
    job_close(&j);
}

/* A plan is plain data: the copy works when the original is gone. */
static void test_plan_copy(void) {
    job whole, copy;
    attn_plan plan;
    if (!job_open_usual(&whole, 1) || !job_open_usual(&copy, 1)) return;
    job_forward(&whole);
    plan = copy.plan;
    memset(&copy.plan, 0xff, sizeof copy.plan);
    CHECK(attn_forward(&plan, &copy.layer, &copy.io, &copy.exec, NULL) == ATTN_OK, "a copied plan");
    check_same(&whole, &copy, "a copied plan");
    job_close(&whole);
    job_close(&copy);
}

/* Every request idle: a plan without tasks, and nothing is divided by zero. */
static void test_all_zero(void) {
    static const int32_t zero[3] = { 0, 0, 0 };
    int capacities;
    for (capacities = 0; capacities < 2; capacities++) {
        attn_layer layer = job_layer();
        attn_batch batch;
        attn_plan plan;
        attn_exec exec;
        attn_io io;
        attn_error error;
        float data[64];
        char text[1024];
        size_t bytes;
        void *mem;
        int status;
        memset(&batch, 0, sizeof batch);
        memset(&exec, 0, sizeof exec);
        memset(&io, 0, sizeof io);
        batch.n = 3;
        batch.q_len = zero;
        batch.kv_len = zero;
        if (capacities) set_capacities(&batch);
        bytes = attn_plan_bytes(&batch, &layer);
        mem = get(bytes);
        status = attn_plan_make(&plan, &batch, &layer, mem, bytes, &error);
        CHECK(status == ATTN_OK, "%s", status ? error.text : "");
        if (status == ATTN_OK) {
            CHECK(plan.rows == 0 && plan.tasks == 0 && plan.merges == 0 && plan.work == 0, "rows %d, tasks %d",
                  plan.rows, plan.tasks);
            CHECK(attn_plan_explain(&plan, text, sizeof text) > 0, "nothing to explain");
            exec.bytes = attn_exec_bytes(&plan, 1);
            exec.mem = get(exec.bytes);
            io.q = io.k = io.v = io.o = data;
            status = attn_forward(&plan, &layer, &io, &exec, &error);
            CHECK(status == ATTN_OK, "%s", status ? error.text : "");
            status = attn_append(&plan, &layer, &io, data, data, &error);
            CHECK(status == ATTN_OK, "%s", status ? error.text : "");
            free(exec.mem);
        }
        free(mem);
    }
}

/* Equal geometry or no forward: a plan of one layer class is refused by another, and serves its own again. */
static void test_plan_key(void) {
    attn_error error;
    job j;
    if (!job_open_usual(&j, 1)) return;
    j.layer.window_left = 128;
    CHECK(attn_forward(&j.plan, &j.layer, &j.io, &j.exec, &error) == ATTN_E_PLAN, "another window");
    j.layer.window_left = 0;
    j.layer.heads = 8;
    CHECK(attn_forward(&j.plan, &j.layer, &j.io, &j.exec, &error) == ATTN_E_PLAN, "more heads");
    j.layer = j.plan.layer;
    job_forward(&j);
    job_close(&j);
}

/* Defaults are filled in once, and `layer` stays as it was given. */
static void test_defaults(void) {
    static const int32_t one = 1;
    attn_layer layer;
    job j;
    memset(&layer, 0, sizeof layer);
    layer.heads = 6;
    layer.head_dim = 64;
    if (!job_open(&j, 1, &one, &one, NULL, layer, 0)) return;
    CHECK(!memcmp(&j.plan.layer, &layer, sizeof layer), "plan.layer is not what was given");
    CHECK(j.plan.resolved.kv_heads == 6 && j.plan.resolved.v_dim == 64, "kv_heads, v_dim");
    CHECK(j.plan.resolved.scale == 0.125f, "scale %g", (double)j.plan.resolved.scale);
    CHECK(j.plan.resolved.row_tile == 256 && j.plan.resolved.workers == 64, "row_tile, workers");
    CHECK(j.plan.resolved.isa == best_isa() && best_isa() >= ATTN_ISA_SCALAR, "isa %d", j.plan.resolved.isa);
    CHECK(j.plan.n == 1 && j.plan.rows == 1 && j.plan.max_kv_len == 1 && j.plan.max_rows == 1, "capacities");
    job_close(&j);
}

int main(int argc, char **argv) {
    if (argc > 1) test.only = argv[1];
    test_run("attn_visible: the definition", test_visible);
    test_run("attn_visible: q_len NULL", test_visible_decode);
    test_run("attn_mask_bits: attn_visible as bits", test_mask_bits);
    test_run("attn_window_from_radius (sglang trap 21)", test_radius);
    test_run("features trap 14: the window reaches every kernel family", test_window_everywhere);
    test_run("attn_append: rounding of every type to every type", test_append_rounding);
    test_run("attn_append: layouts and strides (sglang trap 9), no other byte", test_append_layouts);
    test_run("attn_merge: the formula", test_merge_formula);
    test_run("attn_merge: in place", test_merge_in_place);
    test_run("features trap 17: merging with a side that saw nothing", test_merge_identity);
    test_run("attn_merge: two halves are the whole", test_merge_halves);
    test_run("attn_dense: plan and forward", test_dense);
    test_run("attn_task: any order, several frames, two layers at once", test_tasks);
    test_run("attn_plan_explain: length, truncation, contents", test_explain);
    test_run("attn_plan_explain: the layer", test_explain_layer);
    test_run("a step without rows needs no arrays", test_no_rows);
    test_run("attn_isa_detect", test_detect);
    test_run("attn_exec_bytes: capacities and lanes only", test_exec_bytes);
    test_run("attn_plan_bytes: capacities instead of arrays", test_plan_bytes);
    test_run("sglang trap 14: one plan for all layers, length arrays gone", test_plan_reuse);
    test_run("features trap 13: memory full of anything before planning", test_dirty_memory);
    test_run("attn_plan: a copy of the struct", test_plan_copy);
    test_run("sglang trap 15: the plan is keyed on geometry", test_plan_key);
    test_run("sglang trap 17: all-zero lengths, no division by zero", test_all_zero);
    test_run("attn_layer: defaults", test_defaults);
    return test_close("api");
}
