/* cuda_tools.c - what attn_cuda.h does to rows before and after attention, and what it finds wrong with arrays: append,
   merge, rope, indexer scores, top-k and the checker, against the same functions of attn.h. */
#define ATTN_IMPLEMENTATION
#include "attn_cuda.h"

#include "cuda_test.h"

#include <math.h>

/* ---- the same data on both sides --------------------------------------------------------------------------------- */

typedef struct twin {
    void *host, *device;
    size_t bytes;
} twin;

enum { TWINS = 40 };
static twin twins[TWINS];
static int twin_count;

static twin *make_twin(size_t bytes) {
    twin *t = &twins[twin_count++];
    t->bytes = bytes;
    t->host = calloc(1, bytes + 1);
    t->device = gpu_alloc(bytes);
    return t;
}

/* After the host side has been filled in. */
static void upload_twins(void) {
    int i;
    for (i = 0; i < twin_count; i++) gpu_write(twins[i].device, twins[i].host, twins[i].bytes);
}

static int differs(const twin *t) {
    char *copy = (char *)malloc(t->bytes + 1);
    int result;
    gpu_read(copy, t->device, t->bytes);
    result = memcmp(copy, t->host, t->bytes) != 0;
    free(copy);
    return result;
}

/* Nothing differs: what had to be written was, and nothing else. */
static void compare_twins(const char *what, int number) {
    int i;
    for (i = 0; i < twin_count; i++) CHECK(!differs(&twins[i]), "%s %d: array %d differs", what, number, i);
}

static void free_twins(void) {
    while (twin_count) {
        free(twins[--twin_count].host);
        gpu_free(twins[twin_count].device);
    }
}

/* ---- a step on both sides ---------------------------------------------------------------------------------------- */

enum { RAGGED, PADDED, PAGED, RING, RING_PAGED, LAYOUTS };
enum { LARGEST = 12 };                          /* requests */

typedef struct step {
    attn_layer layer;
    attn_batch batch, device_batch;
    attn_plan plan, device_plan;
    attn_io io, device_io;
    attn_exec exec, device_exec;
    int32_t *q_len, *kv_len, *phase, *table;    /* host sides */
    int64_t table_row;
    int32_t rows;
    void *memory[2], *device_memory[2];
} step;

/* field of both io structs = both sides of one array. */
#define PUT(field, type, bytes)                                                                                       \
    do {                                                                                                              \
        const twin *put_ = make_twin((size_t)(bytes));                                                                \
        s->io.field = (type)put_->host;                                                                               \
        s->device_io.field = (type)put_->device;                                                                      \
    } while (0)

static void fill(test_rng *rng, void *to, attn_type type, int64_t count) {
    int64_t i;
    for (i = 0; i < count; i++) {
        float x = test_uniform(rng);
        attn__store((char *)to + i * attn__type_bytes(type), 0, type, type == ATTN_INT8 ? 100 * x : x);
    }
}

/* Numbers that roundings stumble over. */
static float odd_number(test_rng *rng) {
    static const float values[] = { 0.0f,   -0.0f,  1.0f,     448.0f,       464.0f,         465.0f, 57344.0f,
                                    65504.0f, 65520.0f, -1e30f, 1e-8f,      -6e-8f,         2.98e-8f, 0.001953125f,
                                    0.0009765625f, 1e-40f, 0.5f, -126.5f,   3e38f };
    static const uint32_t bits[] = { 0x7f800000u, 0xff800000u, 0x7fc12345u, 0xff923456u, 0x7f800001u, 0x3f808000u,
                                     0x3f818000u, 0x3f801000u, 0x3f803000u };
    int pick = test_range(rng, 0, ATTN__COUNT(values) + ATTN__COUNT(bits) - 1);
    if (pick < ATTN__COUNT(values)) return values[pick];
    return attn__float_of(bits[pick - ATTN__COUNT(values)]);
}

static void fill_odd(test_rng *rng, void *to, attn_type type, int64_t count) {
    int64_t i;
    fill(rng, to, type, count);
    for (i = 0; i < count; i += test_range(rng, 1, 12)) {
        float x = odd_number(rng);
        char *at = (char *)to + i * attn__type_bytes(type);
        if (type == ATTN_F32) memcpy(at, &x, 4); /* as they are */
        else attn__store(at, 0, type, x);
    }
}

static void draw_lengths(step *s, test_rng *rng, int32_t n, int32_t max_q, int32_t max_kv) {
    twin *q = make_twin((size_t)n * 4), *kv = make_twin((size_t)n * 4), *phase = make_twin((size_t)n * 4);
    int32_t i;
    s->q_len = (int32_t *)q->host;
    s->kv_len = (int32_t *)kv->host;
    s->phase = (int32_t *)phase->host;
    s->rows = 0;
    for (i = 0; i < n; i++) {
        s->q_len[i] = test_range(rng, 0, 5) ? test_range(rng, 1, max_q) : 0;
        s->kv_len[i] = test_range(rng, 0, 7) ? test_range(rng, s->q_len[i], max_kv) : s->q_len[i];
        s->phase[i] = ATTN_DECODE;
        s->rows += s->q_len[i];
    }
    const attn_batch host = { n, s->q_len, s->kv_len, s->phase, s->kv_len, max_q, max_kv, (int64_t)n * max_q };
    s->batch = s->device_batch = host;
    s->device_batch.q_len = (const int32_t *)q->device;
    s->device_batch.kv_len = s->device_batch.prefix = (const int32_t *)kv->device;
    s->device_batch.phase = (const int32_t *)phase->device;
}

/* Strides of one cache, and its elements. */
static int64_t lay_out(const step *s, int layout, int head_major, int32_t dim, int64_t *page, int64_t *row,
                       int64_t *head) {
    int32_t heads = s->layer.kv_heads, n = s->batch.n, i;
    int64_t slots = 0, places = 1;
    if (layout == RAGGED) for (i = 0; i < n; i++) slots += s->kv_len[i];
    if (layout == PADDED || layout == RING) {
        places = n;
        slots = layout == RING ? s->layer.ring : s->batch.max_kv_len + 3;
    }
    if (s->layer.page_size) {
        places = s->io.pages;
        slots = s->layer.page_size;
    }
    *row = head_major ? dim : heads * dim + 2;
    *head = head_major ? slots * dim : 0;
    *page = layout == RAGGED ? 0 : slots * heads * (dim + 2);
    return attn__max64(places * *page, slots * heads * (dim + 2));
}

/* Columns that a request's keys use. */
static int64_t table_columns(const attn_layer *l, int32_t kv_len) {
    return attn__ceil_div(l->ring ? attn__min(kv_len, l->ring) : kv_len, l->page_size);
}

/* A table of distinct pages; columns that are not needed hold nonsense. */
static void draw_table(step *s, test_rng *rng) {
    const attn_layer *l = &s->layer;
    int32_t n = s->batch.n, *free_page, i, c;
    s->table_row = l->ring ? l->ring / l->page_size : (s->batch.max_kv_len + l->page_size - 1) / l->page_size;
    s->io.pages = s->device_io.pages = (int32_t)(n * s->table_row) + 2;
    s->io.page_table_row = s->device_io.page_table_row = s->table_row + 1;
    PUT(page_table, const int32_t *, n * (s->table_row + 1) * 4);
    s->table = (int32_t *)(uintptr_t)s->io.page_table;
    free_page = (int32_t *)malloc((size_t)s->io.pages * sizeof *free_page);
    for (i = 0; i < s->io.pages; i++) {
        int32_t j = test_range(rng, 0, i);
        free_page[i] = free_page[j];
        free_page[j] = i;
    }
    for (i = 0; i < n; i++) {
        int64_t used = table_columns(l, s->kv_len[i]);
        for (c = 0; c <= s->table_row; c++) {
            s->table[i * (s->table_row + 1) + c] = c < used ? free_page[i * s->table_row + c] : -7;
        }
    }
    free(free_page);
}

/* Only the pages that some row sees, or the new keys need, exist. */
static void hide_pages(step *s, int appends) {
    const attn_layer *l = &s->layer;
    int32_t i, c;
    if (!s->table || l->ring) return;
    for (i = 0; i < s->batch.n; i++) {
        const attn__lengths n = { s->q_len[i], s->kv_len[i], s->kv_len[i] };
        attn__span u = { 0, n.kv_len - n.q_len, n.kv_len };
        if (!appends && n.q_len) u = attn__union_span(l, &n, 0, n.q_len - 1);
        for (c = 0; c * l->page_size < n.kv_len; c++) {
            int seen = c * l->page_size < u.lead || (c * l->page_size < u.hi && (c + 1) * l->page_size > u.lo);
            if (!seen || !n.q_len) s->table[i * s->io.page_table_row + c] = -7;
        }
    }
}

static int64_t scale_count(const step *s, int64_t slots) {
    int32_t kind = s->layer.scale_kind;
    if (kind == ATTN_SCALE_PER_TENSOR) return 1;
    if (kind == ATTN_SCALE_PER_HEAD) return s->layer.kv_heads;
    return kind == ATTN_SCALE_PER_REQUEST ? s->batch.n * s->layer.kv_heads : slots * s->layer.kv_heads;
}

/* A cache with its scales. Of PER_KEY the slots between two requests or pages follow from the strides. */
static void draw_caches(step *s, test_rng *rng, int layout, int with_v) {
    attn_layer *l = &s->layer;
    int head_major = test_range(rng, 0, 2) == 0, scaled = l->kv_type == ATTN_INT8 || test_range(rng, 0, 1);
    int32_t v_dim = l->v_dim ? l->v_dim : l->head_dim;
    int64_t count, i, keys;
    if (l->page_size) draw_table(s, rng);
    count = lay_out(s, layout, head_major, l->head_dim, &s->io.k_page, &s->io.k_row, &s->io.k_head);
    PUT(k, void *, count * attn__type_bytes(l->kv_type));
    fill(rng, s->io.k, l->kv_type, count);
    keys = scale_count(s, count);
    if (scaled) PUT(k_scale, float *, keys * 4);
    for (i = 0; scaled && i < keys; i++) s->io.k_scale[i] = 0.0625f + 0.5f * (float)test_range(rng, 0, 5);
    if (with_v) {
        count = lay_out(s, layout, head_major, v_dim, &s->io.v_page, &s->io.v_row, &s->io.v_head);
        PUT(v, void *, count * attn__type_bytes(l->kv_type));
        fill(rng, s->io.v, l->kv_type, count);
        keys = scale_count(s, count);
        if (scaled) PUT(v_scale, float *, keys * 4);
        for (i = 0; scaled && i < keys; i++) s->io.v_scale[i] = 0.25f + (float)test_range(rng, 0, 3);
    }
    s->device_io.k_page = s->io.k_page;
    s->device_io.k_row = s->io.k_row;
    s->device_io.k_head = s->io.k_head;
    s->device_io.v_page = s->io.v_page;
    s->device_io.v_row = s->io.v_row;
    s->device_io.v_head = s->io.v_head;
}

/* Fields of the layer that a layout asks for. */
static void choose_layout(attn_layer *l, test_rng *rng, int layout, int32_t max_q) {
    l->page_size = layout == PAGED ? test_range(rng, 1, 9) : layout == RING_PAGED ? test_range(rng, 1, 5) : 0;
    l->ring = 0;
    if (layout < RING) return;
    l->window_left = test_range(rng, 1, 20);
    l->ring = l->window_left - 1 + max_q + test_range(rng, 0, 5);
    if (l->page_size) l->ring = (l->ring / l->page_size + 1) * l->page_size;
}

/* Plans and scratch memory, once the lengths stand. Returns whether both plans were made. */
static int open_step(step *s) {
    attn_error error;
    size_t bytes = attn_plan_bytes(&s->batch, &s->layer);
    int status;
    upload_twins();
    s->memory[0] = malloc(bytes);
    s->device_memory[0] = gpu_alloc(bytes);
    status = attn_plan_make(&s->plan, &s->batch, &s->layer, s->memory[0], bytes, &error);
    CHECK(!status, "%s", error.text);
    if (status) return 0;
    status = attn_cuda_plan_make(gpu.cuda, &s->device_plan, &s->device_batch, &s->layer, s->device_memory[0], bytes,
                                 gpu.stream, &error);
    CHECK(!status, "%s", error.text);
    if (status) return 0;
    s->exec.bytes = attn_exec_bytes(&s->plan, 1);
    s->exec.mem = s->memory[1] = malloc(s->exec.bytes);
    s->device_exec.bytes = attn_cuda_exec_bytes(gpu.cuda, &s->device_plan);
    s->device_exec.mem = s->device_memory[1] = gpu_alloc(s->device_exec.bytes);
    s->device_exec.stream = gpu.stream;
    return 1;
}

static void close_step(step *s) {
    int i;
    for (i = 0; i < 2; i++) {
        free(s->memory[i]);
        gpu_free(s->device_memory[i]);
    }
    free_twins();
}

static void start_step(step *s, int32_t heads, int32_t kv_heads, int32_t dim) {
    attn_error error;
    memset(s, 0, sizeof *s);
    s->layer.heads = heads;
    s->layer.kv_heads = kv_heads;
    s->layer.head_dim = dim;
    CHECK(!attn_cuda_geometry(gpu.cuda, &s->layer, &error), "%s", error.text);
}

/* What attn.h says and what the device found, word for word. */
static void same_error(const char *what, int number, int status, const attn_error *a, int device_status,
                       const attn_error *b) {
    CHECK(status == device_status, "%s %d: %d %s, on the device %d %s", what, number, status, a->text, device_status,
          b->text);
    CHECK(!strcmp(a->text, b->text), "%s %d: \"%s\", on the device \"%s\"", what, number, a->text, b->text);
    CHECK(a->request == b->request && a->slot == b->slot, "%s %d: %d %d, on the device %d %d", what, number,
          a->request, a->slot, b->request, b->slot);
}

/* ---- append ------------------------------------------------------------------------------------------------------ */

typedef struct new_rows {
    twin *k, *v;
} new_rows;

static new_rows draw_new_rows(const step *s, test_rng *rng) {
    const attn_layer *l = &s->layer;
    int64_t vectors = s->batch.max_rows * l->kv_heads;
    int32_t v_dim = l->v_dim ? l->v_dim : l->head_dim;
    new_rows r = { make_twin((size_t)(vectors * l->head_dim * attn__type_bytes(l->q_type))), NULL };
    fill_odd(rng, r.k->host, l->q_type, vectors * l->head_dim);
    if (l->flags & ATTN_V_IN_K) return r;
    r.v = make_twin((size_t)(vectors * v_dim * attn__type_bytes(l->q_type)));
    fill_odd(rng, r.v->host, l->q_type, vectors * v_dim);
    return r;
}

/* Both sides; the same status and text, with whatever the device finds. */
static int append_both(const step *s, const new_rows *r, const char *what, int number) {
    attn_error error, device_error;
    int status = attn_append(&s->plan, &s->layer, &s->io, r->k->host, r->v ? r->v->host : NULL, &error);
    int device_status = attn_cuda_append(gpu.cuda, &s->device_plan, &s->layer, &s->device_io, r->k->device,
                                         r->v ? r->v->device : NULL, &s->device_exec, &device_error);
    if (!device_status) {
        device_status = attn_cuda_error(gpu.cuda, &s->device_plan, &s->device_exec, &device_error);
    }
    same_error(what, number, status, &error, device_status, &device_error);
    return status;
}

static void draw_append(step *s, test_rng *rng, int number) {
    static const int32_t dims[] = { 1, 7, 32, 64, 65, 130, 300 };
    int layout = number % LAYOUTS, latent = number % 7 == 6;
    int32_t max_q = test_range(rng, 1, 9), n = test_range(rng, 1, LARGEST);
    start_step(s, 1, latent ? 1 : test_range(rng, 1, 3), dims[test_range(rng, 0, ATTN__COUNT(dims) - 1)]);
    s->layer.heads = s->layer.kv_heads * 2;
    s->layer.q_type = (attn_type)(number % 3);
    s->layer.kv_type = (attn_type)(number / 3 % 6);
    s->layer.v_dim = latent ? s->layer.head_dim / 2 + 1 : test_range(rng, 0, 1) ? test_range(rng, 1, 70) : 0;
    s->layer.flags = latent ? ATTN_V_IN_K : 0;
    s->layer.scale = 0.1f;
    s->layer.scale_kind = test_range(rng, 0, s->layer.kv_type == ATTN_INT8 ? 3 : 2);
    choose_layout(&s->layer, rng, layout, max_q);
    draw_lengths(s, rng, n, max_q, 60);
    draw_caches(s, rng, layout, !latent);
    hide_pages(s, 1);
}

/* Shorter requests, some of them pads, other pages, new rows: what a replay may find, since all of it fits. */
static void draw_shorter(step *s, test_rng *rng, const new_rows *r) {
    const attn_layer *l = &s->layer;
    int64_t vectors = s->batch.max_rows * l->kv_heads, columns = s->batch.n * s->io.page_table_row, c;
    int32_t i;
    for (i = 0; i < s->batch.n; i++) {
        s->q_len[i] = test_range(rng, 0, s->q_len[i]);
        s->kv_len[i] = s->q_len[i] ? test_range(rng, s->q_len[i], s->kv_len[i]) : 0;
    }
    for (c = 0; s->table && c < columns; c++) {
        s->table[c] = (int32_t)(c / s->io.page_table_row * s->table_row + c % s->io.page_table_row);
    }
    fill_odd(rng, r->k->host, l->q_type, vectors * l->head_dim);
    if (r->v) fill_odd(rng, r->v->host, l->q_type, vectors * (l->v_dim ? l->v_dim : l->head_dim));
    upload_twins();
}

/* The plan and the append of a captured step, replayed. */
static void replay_append(step *s, test_rng *rng, const new_rows *r, int number) {
    size_t bytes = attn_plan_bytes(&s->batch, &s->layer);
    attn_error error;
    void *graph;
    gpu_record();
    CHECK(!attn_cuda_plan_make(gpu.cuda, &s->device_plan, &s->device_batch, &s->layer, s->device_memory[0], bytes,
                               gpu.stream, &error), "%s", error.text);
    CHECK(!attn_cuda_append(gpu.cuda, &s->device_plan, &s->layer, &s->device_io, r->k->device,
                            r->v ? r->v->device : NULL, &s->device_exec, &error), "%s", error.text);
    graph = gpu_recorded();
    draw_shorter(s, rng, r);
    gpu_replay(graph);
    CHECK(!attn_cuda_error(gpu.cuda, &s->device_plan, &s->device_exec, &error), "%s", error.text);
    CHECK(!attn_plan_make(&s->plan, &s->batch, &s->layer, s->memory[0], bytes, &error), "%s", error.text);
    CHECK(!attn_append(&s->plan, &s->layer, &s->io, r->k->host, r->v ? r->v->host : NULL, &error), "%s", error.text);
    compare_twins("replayed append", number);
    gpu_forget(graph);
}

/* Every pair of types, in every layout and with every kind of scale, also in a replayed graph. */
static void append_equals_the_cpu(void) {
    test_rng rng = { 51 };
    int i;
    if (!gpu_ready()) return;
    for (i = 0; i < 72; i++) {
        step s;
        new_rows r;
        int good;
        draw_append(&s, &rng, i);
        r = draw_new_rows(&s, &rng);
        good = open_step(&s);
        if (good) append_both(&s, &r, "append", i);
        compare_twins("append", i);
        if (good) replay_append(&s, &rng, &r, i);
        gpu_wait();
        close_step(&s);
    }
}

/* ---- merge ------------------------------------------------------------------------------------------------------- */

static void draw_lse(test_rng *rng, float *lse, int64_t count) {
    int64_t i;
    for (i = 0; i < count; i++) {
        int kind = test_range(rng, 0, 9);
        lse[i] = kind == 0 ? attn__float_of(0xff800000u) : (kind == 1 ? 80.0f : 4.0f) * test_uniform(rng);
    }
}

/* The tolerance is a share of `size`, or of the value where that is larger; infinities must be where they were. */
static void close_values(const char *what, int number, attn_type type, const twin *t, int64_t count, float tolerance,
                         float size) {
    char *copy = (char *)malloc(t->bytes + 1);
    int64_t i;
    gpu_read(copy, t->device, t->bytes);
    for (i = 0; i < count; i++) {
        size_t at = (size_t)(i * attn__type_bytes(type));
        float a = attn__load((char *)t->host + at, 0, type), b = attn__load(copy + at, 0, type);
        if (!memcmp((char *)t->host + at, copy + at, (size_t)attn__type_bytes(type))) continue;
        CHECK(a != 0 || b != 0, "%s %d: [%d] is 0 with another sign", what, number, (int)i);
        CHECK(fabsf(a - b) <= tolerance * fmaxf(size, fabsf(a)), "%s %d: [%d] %g, on the device %g", what, number,
              (int)i, a, b);
    }
    free(copy);
}

/* where: 0: o apart, 1: o is a_o, 2: o is b_o */
static void merge_case(test_rng *rng, attn_type type, int64_t rows, int32_t heads, int32_t v_dim, int where,
                       int with_lse) {
    static const float steps[3] = { 1e-6f, 1.0f / 1024, 1.0f / 128 };
    attn_layer layer = { .heads = heads, .head_dim = 8, .v_dim = v_dim, .o_type = type };
    int64_t vectors = rows * heads, i;
    size_t bytes = (size_t)(vectors * v_dim * attn__type_bytes(type));
    twin *a = make_twin(bytes), *b = make_twin(bytes), *o = where == 0 ? make_twin(bytes) : where == 1 ? a : b;
    twin *a_lse = make_twin((size_t)vectors * 4), *b_lse = make_twin((size_t)vectors * 4);
    twin *lse = where == 0 ? make_twin((size_t)vectors * 4) : where == 1 ? b_lse : a_lse;
    attn_error error;
    char *before = (char *)malloc(bytes + 1);
    fill(rng, a->host, type, vectors * v_dim);
    fill(rng, b->host, type, vectors * v_dim);
    for (i = 0; i < vectors * v_dim; i += 9) {
        attn__store(a->host, (int32_t)i, type, -0.0f);
        attn__store(b->host, (int32_t)i, type, -0.0f);
    }
    draw_lse(rng, (float *)a_lse->host, vectors);
    draw_lse(rng, (float *)b_lse->host, vectors);
    memset(o == a || o == b ? before : (char *)o->host, 0x55, bytes);
    upload_twins();
    CHECK(!attn_merge(&layer, rows, a->host, (float *)a_lse->host, b->host, (float *)b_lse->host, o->host,
                      with_lse ? (float *)lse->host : NULL, &error), "%s", error.text);
    CHECK(!attn_cuda_merge(gpu.cuda, &layer, rows, a->device, (float *)a_lse->device, b->device,
                           (float *)b_lse->device, o->device, with_lse ? (float *)lse->device : NULL, gpu.stream,
                           &error), "%s", error.text);
    close_values("o", (int)type * 3 + where, type, o, vectors * v_dim, steps[type], 1);
    close_values("lse", (int)type * 3 + where, ATTN_F32, lse, vectors, 1e-6f, 1);
    for (i = 0; i < twin_count; i++) { /* the inputs stay */
        if (&twins[i] != o && &twins[i] != lse) CHECK(!differs(&twins[i]), "input %d", (int)i);
    }
    gpu_wait();
    free(before);
    free_twins();
}

static void merge_equals_the_cpu(void) {
    test_rng rng = { 52 };
    int i;
    if (!gpu_ready()) return;
    for (i = 0; i < 18; i++) {
        merge_case(&rng, (attn_type)(i % 3), test_range(&rng, 1, 40), test_range(&rng, 1, 5), test_range(&rng, 1, 200),
                   i / 3 % 3, i % 4 != 3);
    }
    merge_case(&rng, ATTN_F32, 0, 3, 8, 0, 1);
}

/* Without a key on one side, or on both, the other side comes through bit by bit. */
static void merge_with_nothing(void) {
    enum { ROWS = 4, DIM = 40 };
    attn_layer layer = { .heads = 1, .head_dim = DIM };
    const uint32_t none = 0xff800000u;
    twin *a, *b, *o, *a_lse, *b_lse, *lse;
    attn_error error;
    int i;
    if (!gpu_ready()) return;
    a = make_twin(ROWS * DIM * 4);
    b = make_twin(ROWS * DIM * 4);
    o = make_twin(ROWS * DIM * 4);
    a_lse = make_twin(ROWS * 4);
    b_lse = make_twin(ROWS * 4);
    lse = make_twin(ROWS * 4);
    for (i = 0; i < ROWS * DIM; i++) {
        ((uint32_t *)a->host)[i] = i % 3 ? 0x7fa00001u + (uint32_t)i : 0x80000000u;
        ((float *)b->host)[i] = (float)i;
    }
    for (i = 0; i < ROWS; i++) {
        ((float *)a_lse->host)[i] = 1.5f;
        ((float *)b_lse->host)[i] = 2.5f;
        if (i % 2) memcpy((float *)a_lse->host + i, &none, 4);
        if (i != 1) memcpy((float *)b_lse->host + i, &none, 4);
    }
    upload_twins();
    CHECK(!attn_merge(&layer, ROWS, a->host, (float *)a_lse->host, b->host, (float *)b_lse->host, o->host,
                      (float *)lse->host, &error), "%s", error.text);
    CHECK(!attn_cuda_merge(gpu.cuda, &layer, ROWS, a->device, (float *)a_lse->device, b->device,
                           (float *)b_lse->device, o->device, (float *)lse->device, gpu.stream, &error), "%s",
          error.text);
    CHECK(((uint32_t *)o->host)[1] == 0x7fa00002u, "the host changed a NaN");
    compare_twins("merge", 0);
    gpu_wait();
    free_twins();
}

/* ---- rope -------------------------------------------------------------------------------------------------------- */

/* The same on both sides; with memory for a verdict a wrong frequency has the CPU's words, and nothing is written. */
static void rope_both(const attn_rope_input *in, const attn_rope_input *on_device, int number) {
    attn_exec exec = { .stream = gpu.stream, .bytes = 64, .mem = number % 4 ? gpu_alloc(64) : NULL };
    attn_error error, device_error;
    int status = attn_rope(in, &error);
    int device_status = attn_cuda_rope(gpu.cuda, on_device, &exec, &device_error);
    if (!device_status && exec.mem) device_status = attn_cuda_error(gpu.cuda, NULL, &exec, &device_error);
    same_error("rope", number, status, &error, device_status, &device_error);
    compare_twins("rope", number);
    gpu_wait();
    gpu_free(exec.mem);
}

/* number 44: more rows than a grid of the device has threads for. */
static void rope_case(test_rng *rng, int number) {
    static const int32_t far[] = { 0, 1, -1, 131071, 1048575, -1048576, INT32_MAX, INT32_MIN };
    attn_rope_input in = { .heads = test_range(rng, 1, 5), .head_dim = 2 * test_range(rng, 1, 70) }, on_device;
    int32_t i, half, with_frequencies = number % 3 == 2;
    twin *x, *positions, *frequencies = NULL;
    in.type = (attn_type)(number % 3);
    if (number == 44) in.head_dim = 140;
    in.rows = number == 44 ? 700 : number % 11 == 10 ? 0 : test_range(rng, 1, 30);
    in.interleaved = number / 3 % 2;
    in.rotary_dim = number % 5 == 0 ? 2 * test_range(rng, 1, in.head_dim / 2) : 0;
    in.base = number % 4 == 0 ? 500000.0f : number % 4 == 1 ? 1.0f : 0.0f;
    in.magnitude = number % 2 ? 1.1386294f : 0.0f;
    in.x_head = number % 7 == 3 ? in.head_dim + 3 : 0;
    in.x_row = number % 7 == 3 ? in.heads * (in.head_dim + 3) + 5 : 0;
    half = (in.rotary_dim ? in.rotary_dim : in.head_dim) / 2;
    x = make_twin((size_t)(in.rows * in.heads * (in.head_dim + 8) * 4));
    positions = make_twin((size_t)in.rows * 4);
    if (with_frequencies) frequencies = make_twin((size_t)half * 4);
    fill(rng, x->host, in.type, (int64_t)x->bytes / attn__type_bytes(in.type));
    for (i = 0; i < in.rows; i++) {
        ((int32_t *)positions->host)[i] = i % 4 == 3 ? far[test_range(rng, 0, 7)] : test_range(rng, 0, 9000);
    }
    for (i = 0; frequencies && i < half; i++) {
        ((float *)frequencies->host)[i] = i % 9 == 8 ? -65536.0f : (float)exp(-0.3 * i) * (1 + test_uniform(rng));
    }
    upload_twins();
    in.x = x->host;
    in.positions = (int32_t *)positions->host;
    in.inv_freq = frequencies ? (float *)frequencies->host : NULL;
    on_device = in;
    on_device.x = x->device;
    on_device.positions = (int32_t *)positions->device;
    on_device.inv_freq = frequencies ? (float *)frequencies->device : NULL;
    rope_both(&in, &on_device, number);
    free_twins();
}

/* Wrong frequencies: no number, too large; first, last and several, of many rows and of none. */
static void rope_frequencies(void) {
    enum { HALF = 600, ROWS = 3 };
    static const float bad[] = { NAN, INFINITY, -65537.0f, 65536.008f };
    static const int32_t places[] = { 0, 300, HALF - 1 };
    int number, i;
    if (!gpu_ready()) return;
    for (number = 0; number < 16; number++) {
        attn_rope_input in = { .heads = 1, .head_dim = 2 * HALF, .rows = number < 15 ? ROWS : 0 }, on_device;
        twin *x = make_twin(ROWS * 2 * HALF * 4), *positions = make_twin(ROWS * 4), *frequencies = make_twin(HALF * 4);
        memset(x->host, 0x33, x->bytes);
        for (i = 0; i < HALF; i++) ((float *)frequencies->host)[i] = i % 2 ? 65536.0f : -65536.0f;
        for (i = 0; i < 3; i++) {
            if (number / 4 == i || number >= 12) ((float *)frequencies->host)[places[i]] = bad[(number + i) % 4];
        }
        upload_twins();
        in.x = x->host;
        in.positions = (int32_t *)positions->host;
        in.inv_freq = (float *)frequencies->host;
        on_device = in;
        on_device.x = x->device;
        on_device.positions = (int32_t *)positions->device;
        on_device.inv_freq = (float *)frequencies->device;
        rope_both(&in, &on_device, 4 * number + 1);
        free_twins();
    }
}

static void rope_equals_the_cpu(void) {
    test_rng rng = { 53 };
    int i;
    if (!gpu_ready()) return;
    for (i = 0; i < 45; i++) rope_case(&rng, i);
}

/* ---- indexer scores ---------------------------------------------------------------------------------------------- */

typedef struct indexer {
    twin *weights, *ks, *scores;
    int64_t score_row;
} indexer;

static void draw_mask(attn_layer *l, test_rng *rng, int mask) {
    l->mask = (attn_mask)mask;
    if (mask == ATTN_BLOCK || (mask == ATTN_CAUSAL && test_range(rng, 0, 3) == 0)) l->chunk = test_range(rng, 1, 30);
    if (!l->window_left && test_range(rng, 0, 1)) l->window_left = test_range(rng, 1, 80);
    if (test_range(rng, 0, 2) == 0) l->window_right = test_range(rng, 1, 20);
    if (!l->ring && !(l->chunk && mask == ATTN_CAUSAL) && test_range(rng, 0, 1)) l->sink_keys = test_range(rng, 1, 9);
}

static indexer draw_indexer(step *s, test_rng *rng, int with_ks) {
    indexer x;
    int32_t i;
    x.weights = make_twin((size_t)(s->batch.max_rows * s->layer.heads * 4));
    x.ks = with_ks ? make_twin((size_t)s->batch.max_rows * 4) : NULL;
    x.score_row = s->batch.max_kv_len + 20;
    x.scores = make_twin((size_t)(s->batch.max_rows * x.score_row * 4));
    fill(rng, x.weights->host, ATTN_F32, s->batch.max_rows * s->layer.heads);
    for (i = 0; with_ks && i < s->rows; i++) ((int32_t *)x.ks->host)[i] = test_range(rng, 0, 20);
    memset(x.scores->host, 0x66, x.scores->bytes);
    return x;
}

static void draw_score(step *s, test_rng *rng, int number) {
    static const int32_t dims[] = { 5, 32, 64, 128, 129, 200 };
    int layout = number % LAYOUTS;
    int32_t max_q = test_range(rng, 2, 4);
    start_step(s, number % 4 == 3 ? test_range(rng, 17, 40) : test_range(rng, 1, 16), 1, dims[number % 6]);
    s->layer.q_type = (attn_type)(number / 2 % 3);
    s->layer.kv_type = (attn_type)(number % 6);
    s->layer.scale_kind = s->layer.kv_type == ATTN_INT8 ? ATTN_SCALE_PER_KEY * (number / 6 % 2) : number % 3;
    s->layer.flags = s->layer.kv_type == ATTN_INT8 && number / 12 % 2 ? ATTN_FAST_INT8 : 0;
    choose_layout(&s->layer, rng, layout, max_q);
    draw_mask(&s->layer, rng, number / 3 % 4);
    if (s->layer.scale_kind == ATTN_SCALE_PER_REQUEST) s->layer.scale = 0.25f;
    draw_lengths(s, rng, test_range(rng, 1, 6), max_q, 200);
    if (number % 8 == 7) { /* a row that sees nothing of a tile, behind one that does */
        s->layer.window_left = 1;
        s->q_len[0] = max_q;
        s->kv_len[0] = 65;
    }
    draw_caches(s, rng, layout, 0);
    hide_pages(s, 0);
    PUT(q, const void *, s->batch.max_rows * s->layer.heads * s->layer.head_dim * attn__type_bytes(s->layer.q_type));
    fill(rng, (void *)(uintptr_t)s->io.q, s->layer.q_type, s->batch.max_rows * s->layer.heads * s->layer.head_dim);
}

static int score_both(const step *s, const indexer *x, const char *what, int number) {
    attn_error error, device_error;
    const int32_t *ks = x->ks ? (const int32_t *)x->ks->host : NULL;
    const int32_t *device_ks = x->ks ? (const int32_t *)x->ks->device : NULL;
    int status = attn_index_score(&s->plan, &s->layer, &s->io, (float *)x->weights->host, ks, (float *)x->scores->host,
                                  x->score_row, &s->exec, &error);
    int device_status = attn_cuda_index_score(gpu.cuda, &s->device_plan, &s->layer, &s->device_io,
                                              (float *)x->weights->device, device_ks, (float *)x->scores->device,
                                              x->score_row, &s->device_exec, &device_error);
    if (!device_status) {
        device_status = attn_cuda_error(gpu.cuda, &s->device_plan, &s->device_exec, &device_error);
    }
    same_error(what, number, status, &error, device_status, &device_error);
    return status;
}

static void close_scores(const char *what, int number, const twin *scores) {
    int64_t count = (int64_t)scores->bytes / 4, i;
    float largest = 1;
    for (i = 0; i < count; i++) {
        float x = fabsf(((float *)scores->host)[i]);
        if (x < 1e20f) largest = fmaxf(largest, x);
    }
    close_values(what, number, ATTN_F32, scores, count, 1e-5f, largest);
}

static void scores_equal_the_cpu(void) {
    test_rng rng = { 54 };
    int i;
    if (!gpu_ready()) return;
    for (i = 0; i < 48; i++) {
        step s;
        indexer x;
        draw_score(&s, &rng, i);
        x = draw_indexer(&s, &rng, i % 2);
        if (open_step(&s)) score_both(&s, &x, "score", i);
        close_scores("score", i, x.scores);
        gpu_wait();
        close_step(&s);
    }
}

/* ---- top-k ------------------------------------------------------------------------------------------------------- */

/* kind 0: many equal ones; 1: all different; 2: hardly any that can be taken; 3: close together */
static float draw_number(test_rng *rng, int kind) {
    int special = test_range(rng, 0, kind == 2 ? 1 : 30);
    float x = test_uniform(rng);
    if (special == 0) return attn__float_of(test_range(rng, 0, 1) ? 0xff800000u : 0x7fc00000u + (uint32_t)kind);
    if (special == 1) return test_range(rng, 0, 2) ? attn__float_of(0xffc00001u) : test_range(rng, 0, 1) ? 0.0f : -0.0f;
    if (special == 2) return attn__float_of(0x7f800000u);
    if (special == 3) return (float)test_range(rng, -1, 1) * 1e-42f;
    return kind == 0 ? (float)(int)(x * 4) : kind == 3 ? 1.0f + x * 1e-5f : x * 100;
}

static void topk_case(test_rng *rng, int number, int64_t rows, int32_t columns, int32_t topk, int kind) {
    int64_t score_row = columns + 3, r, i;
    twin *scores = make_twin((size_t)(rows * score_row * 4)), *ks = make_twin((size_t)rows * 4);
    twin *ke = make_twin((size_t)rows * 4), *indices = make_twin((size_t)(rows * topk * 4));
    int with_ks = number % 2;
    attn_exec exec = { .stream = gpu.stream, .bytes = 256 };
    attn_error error;
    if (number % 3) exec.mem = gpu_alloc(exec.bytes); /* without it nothing is checked */
    for (i = 0; i < rows * score_row; i++) ((float *)scores->host)[i] = draw_number(rng, kind);
    for (r = 0; r < rows; r++) {
        int32_t first = with_ks ? test_range(rng, 0, columns / 2) : 0;
        int32_t last = r == 0 ? columns : test_range(rng, first, columns);
        ((int32_t *)ks->host)[r] = first;
        ((int32_t *)ke->host)[r] = last;
    }
    memset(indices->host, 0x77, indices->bytes);
    upload_twins();
    CHECK(!attn_topk((float *)scores->host, score_row, rows, with_ks ? (int32_t *)ks->host : NULL, (int32_t *)ke->host,
                     topk, (int32_t *)indices->host, &error), "%s", error.text);
    CHECK(!attn_cuda_topk(gpu.cuda, (float *)scores->device, score_row, rows, with_ks ? (int32_t *)ks->device : NULL,
                          (int32_t *)ke->device, topk, (int32_t *)indices->device, &exec, &error), "%s", error.text);
    if (exec.mem) CHECK(!attn_cuda_error(gpu.cuda, NULL, &exec, &error), "%s", error.text);
    compare_twins("top-k", number);
    gpu_wait();
    gpu_free(exec.mem);
    free_twins();
}

static void topk_equals_the_cpu(void) {
    static const int32_t columns[] = { 1, 5, 31, 33, 100, 1023, 1025, 3000 }, wanted[] = { 1, 2, 40, 64, 500, 3100 };
    test_rng rng = { 55 };
    int i;
    if (!gpu_ready()) return;
    for (i = 0; i < 48; i++) topk_case(&rng, i, test_range(&rng, 1, 3), columns[i % 8], wanted[i % 6], i / 5 % 4);
    topk_case(&rng, 0, 0, 4, 4, 0);
    topk_case(&rng, 1, 20, 70, 8, 0);
    topk_case(&rng, 1, 300, 20, 16, 0); /* a block has several rows */
}

static void topk_of_a_million(void) {
    test_rng rng = { 56 };
    if (!gpu_ready()) return;
    topk_case(&rng, 0, 1, 1 << 20, 2048, 1);
}

/* Columns outside of the scores, in the first, a middle, the last row and in several: the CPU's words, and no list. */
static void topk_rows_that_do_not_fit(void) {
    enum { ROWS = 700, COLUMNS = 12, TOPK = 3 };
    static const int32_t bad[][2] = { { -1, 3 }, { 5, 4 }, { 0, COLUMNS + 1 }, { INT32_MIN, 0 }, { 2, INT32_MAX } };
    static const int32_t places[] = { 0, 333, ROWS - 1 };
    int number, i;
    if (!gpu_ready()) return;
    for (number = 0; number < 20; number++) {
        twin *scores = make_twin(ROWS * COLUMNS * 4), *ks = make_twin(ROWS * 4), *ke = make_twin(ROWS * 4);
        twin *indices = make_twin(ROWS * TOPK * 4);
        attn_exec exec = { .stream = gpu.stream, .bytes = 256, .mem = gpu_alloc(256) };
        attn_error error, device_error;
        int status, device_status;
        for (i = 0; i < ROWS; i++) ((int32_t *)ke->host)[i] = i % (COLUMNS + 1);
        memset(indices->host, 0x33, indices->bytes);
        for (i = 2; i >= 0; i--) {
            if (number % 4 < 3 && number % 4 != i) continue;
            ((int32_t *)ks->host)[places[i]] = bad[number / 4][0];
            ((int32_t *)ke->host)[places[i]] = bad[number / 4][1];
        }
        upload_twins();
        status = attn_topk((float *)scores->host, COLUMNS, ROWS, (int32_t *)ks->host, (int32_t *)ke->host, TOPK,
                           (int32_t *)indices->host, &error);
        CHECK(status == ATTN_E_ARGUMENT, "%d", status);
        device_status = attn_cuda_topk(gpu.cuda, (float *)scores->device, COLUMNS, ROWS, (int32_t *)ks->device,
                                       (int32_t *)ke->device, TOPK, (int32_t *)indices->device, &exec, &device_error);
        if (!device_status) device_status = attn_cuda_error(gpu.cuda, NULL, &exec, &device_error);
        same_error("columns", number, status, &error, device_status, &device_error);
        compare_twins("columns", number);
        gpu_wait();
        gpu_free(exec.mem);
        free_twins();
    }
}

/* ---- promises ---------------------------------------------------------------------------------------------------- */

/* A row's scores depend on itself and its keys alone: neither on the other rows of its request nor on where the cache
   has them, nor on capacities. 700 keys are 11 tiles. */
enum { BIT_HEADS = 20, BIT_DIM = 48, BIT_KEYS = 700, BIT_ROWS = 3, BIT_PAGE = 5 };

/* The same keys for every request, wherever they lie. */
static void place_keys(const step *s) {
    test_rng rng = { 59 };
    int32_t key, i;
    for (key = 0; key < BIT_KEYS; key++) {
        float row[BIT_DIM];
        fill(&rng, row, ATTN_F32, BIT_DIM);
        for (i = 0; i < s->batch.n && key < s->kv_len[i]; i++) {
            int64_t at = key * s->io.k_row;
            if (s->table) {
                int64_t page = s->table[i * s->io.page_table_row + key / BIT_PAGE];
                at = page * s->io.k_page + key % BIT_PAGE * s->io.k_row;
            }
            memcpy((float *)s->io.k + at, row, sizeof row);
        }
    }
}

/* Three rows of one request over a contiguous cache or, apart, each in a request of its own, over pages. */
static void score_rows(int apart, float *scores) {
    test_rng rng = { 58 };
    step step_at_hand, *s = &step_at_hand;
    int32_t n = apart ? BIT_ROWS : 1, i;
    twin *weights, *out;
    attn_error error;
    start_step(s, BIT_HEADS, 1, BIT_DIM);
    s->layer.page_size = apart ? BIT_PAGE : 0;
    draw_lengths(s, &rng, n, apart ? 1 : BIT_ROWS, BIT_KEYS + 64 * apart);
    for (i = 0; i < n; i++) {
        s->q_len[i] = apart ? 1 : BIT_ROWS;
        s->kv_len[i] = apart ? BIT_KEYS - BIT_ROWS + 1 + (n - 1 - i) : BIT_KEYS; /* the longest first: place_keys */
    }
    draw_caches(s, &rng, apart ? PAGED : RAGGED, 0);
    s->io.k_scale = s->device_io.k_scale = NULL;
    place_keys(s);
    PUT(q, const void *, BIT_ROWS * BIT_HEADS * BIT_DIM * 4);
    weights = make_twin(BIT_ROWS * BIT_HEADS * 4);
    out = make_twin(BIT_ROWS * BIT_KEYS * 4);
    for (i = 0; i < BIT_ROWS; i++) {
        int32_t row = apart ? BIT_ROWS - 1 - i : i;
        rng.state = 600 + (uint64_t)row;
        fill(&rng, (float *)(uintptr_t)s->io.q + i * BIT_HEADS * BIT_DIM, ATTN_F32, BIT_HEADS * BIT_DIM);
        fill(&rng, (float *)weights->host + i * BIT_HEADS, ATTN_F32, BIT_HEADS);
    }
    if (open_step(s)) {
        CHECK(!attn_cuda_index_score(gpu.cuda, &s->device_plan, &s->layer, &s->device_io, (float *)weights->device,
                                     NULL, (float *)out->device, BIT_KEYS, &s->device_exec, &error), "%s", error.text);
        CHECK(!attn_cuda_error(gpu.cuda, &s->device_plan, &s->device_exec, &error), "%s", error.text);
        gpu_read(out->host, out->device, out->bytes);
    }
    for (i = 0; i < BIT_ROWS; i++) {
        int32_t row = apart ? BIT_ROWS - 1 - i : i;
        memcpy(scores + row * BIT_KEYS, (float *)out->host + i * BIT_KEYS, BIT_KEYS * 4);
    }
    gpu_wait();
    close_step(s);
}

static void scores_keep_their_bits(void) {
    static float together[BIT_ROWS * BIT_KEYS], apart[BIT_ROWS * BIT_KEYS];
    int row;
    if (!gpu_ready()) return;
    score_rows(0, together);
    score_rows(1, apart);
    for (row = 0; row < BIT_ROWS; row++) {
        size_t keys = BIT_KEYS - BIT_ROWS + 1 + (size_t)row;
        const float *a = together + row * BIT_KEYS, *b = apart + row * BIT_KEYS;
        CHECK(a[0] != 0 && a[keys - 1] != 0, "row %d has no scores", row);
        CHECK(!memcmp(a, b, keys * 4), "row %d", row);
    }
}

/* ---- the checker ------------------------------------------------------------------------------------------------- */

enum { USE_FORWARD, USE_APPEND, USE_SCORE };
enum {
    BAD_PAGE, BAD_TREE, BAD_LAMBDA, BAD_LIST, BAD_TWICE, BAD_LISTED_PAGE, BAD_SHORT, BAD_PHASE, BAD_COLUMN, BAD_TABLE,
    BAD_KINDS
};

typedef struct suspect {
    step s;
    int use;
    indexer x;
    new_rows rows;
    int32_t *topk;
    float *lambda;
    uint32_t *tree;
} suspect;

static void draw_lists(suspect *c, test_rng *rng) {
    step *s = &c->s;
    int32_t i, j, slot, row = 0, topk = s->layer.topk;
    PUT(topk, const int32_t *, s->batch.max_rows * topk * 4);
    c->topk = (int32_t *)(uintptr_t)s->io.topk;
    for (i = 0; i < s->batch.n; i++) {
        for (j = 0; j < s->q_len[i]; j++, row++) {
            int32_t key = test_range(rng, 0, 3); /* ascending with gaps, then shuffled */
            for (slot = 0; slot < topk; slot++) {
                int32_t other = test_range(rng, 0, slot), *list = c->topk + row * topk;
                list[slot] = list[other];
                list[other] = test_range(rng, 0, 5) ? key : -1;
                key += test_range(rng, 1, 6);
            }
        }
    }
}

static void draw_trees(suspect *c, test_rng *rng) {
    step *s = &c->s;
    int32_t words = (s->batch.max_q_len + 31) / 32, i, j, w, row = 0;
    PUT(tree, const uint32_t *, s->batch.max_rows * words * 4);
    c->tree = (uint32_t *)(uintptr_t)s->io.tree;
    for (i = 0; i < s->batch.n; i++) {
        for (j = 0; j < s->q_len[i]; j++, row++) {
            for (w = 0; w < words; w++) c->tree[row * words + w] = (uint32_t)test_next(rng);
            c->tree[row * words + j / 32] |= 1u << j % 32;
        }
    }
}

static void draw_forward(suspect *c, test_rng *rng) {
    step *s = &c->s;
    int64_t rows = s->batch.max_rows;
    int32_t i;
    PUT(q, const void *, rows * s->layer.heads * s->layer.head_dim * 4);
    PUT(o, void *, rows * s->layer.heads * s->layer.head_dim * 4);
    if (s->layer.mask == ATTN_TREE) draw_trees(c, rng);
    if (s->layer.mask == ATTN_TOPK) draw_lists(c, rng);
    if (s->layer.skip.mode != ATTN_SKIP_LAMBDA) return;
    PUT(lambda, const float *, s->batch.n * 4);
    c->lambda = (float *)(uintptr_t)s->io.lambda;
    for (i = 0; i < s->batch.n; i++) c->lambda[i] = i % 3 ? fabsf(test_uniform(rng)) : -0.0f;
}

/* Everything right so far. busy: every request has rows and keys. */
static void draw_suspect(suspect *c, test_rng *rng, int use, int mask, int layout, int busy) {
    step *s = &c->s;
    int32_t max_q = test_range(rng, 1, use == USE_FORWARD && mask == ATTN_TREE ? 70 : 9), i;
    memset(c, 0, sizeof *c);
    c->use = use;
    start_step(s, 2, use == USE_SCORE ? 1 : 2, 8);
    choose_layout(&s->layer, rng, layout, max_q);
    draw_mask(&s->layer, rng, mask);
    if (mask == ATTN_TOPK) s->layer.topk = test_range(rng, 2, 40);
    if (use == USE_FORWARD && mask != ATTN_TOPK && test_range(rng, 0, 1)) s->layer.skip.mode = ATTN_SKIP_LAMBDA;
    draw_lengths(s, rng, busy ? LARGEST : test_range(rng, 1, LARGEST), max_q, 120);
    for (i = 0; i < s->batch.n && busy; i++) {
        if (s->q_len[i] == 0) s->rows++;
        s->q_len[i] = attn__max(1, s->q_len[i]);
        s->kv_len[i] = attn__max(100, s->kv_len[i]);
    }
    for (i = 0; i < s->batch.n && use != USE_SCORE; i++) s->phase[i] = test_range(rng, 0, 1);
    draw_caches(s, rng, layout, use != USE_SCORE);
    if (mask != ATTN_TOPK) hide_pages(s, use == USE_APPEND);
    if (use == USE_FORWARD) draw_forward(c, rng);
    if (use == USE_APPEND) c->rows = draw_new_rows(s, rng);
    if (use != USE_SCORE) return;
    PUT(q, const void *, s->batch.max_rows * s->layer.heads * s->layer.head_dim * 4);
    c->x = draw_indexer(s, rng, 1);
}

static int32_t rows_before(const step *s, int32_t request) {
    int32_t rows = 0, i;
    for (i = 0; i < request; i++) rows += s->q_len[i];
    return rows;
}

static float bad_lambda(test_rng *rng) {
    static const uint32_t values[] = { 0x7fc00000u, 0x7f800000u, 0xff800000u, 0xbf800000u, 0x80000001u, 0xffffffffu };
    return attn__float_of(values[test_range(rng, 0, 5)]);
}

/* One mistake in a request; whether it counts depends on what is read. Returns 0 if this kind cannot be made. */
static int spoil(suspect *c, test_rng *rng, int kind, int32_t i) {
    static const int32_t pages[] = { -1, INT32_MIN, INT32_MAX, 0 };
    step *s = &c->s;
    int32_t q = s->q_len[i], row = q ? test_range(rng, 0, q - 1) : 0, topk = s->layer.topk;
    int32_t *list = c->topk && q ? c->topk + (rows_before(s, i) + row) * topk : NULL;
    int slot = list ? test_range(rng, 0, topk - 1) : 0, other = list ? test_range(rng, 0, topk - 1) : 0;
    int64_t at = rows_before(s, i) + row;
    if (kind == BAD_PAGE && s->table) {
        int64_t used = table_columns(&s->layer, s->kv_len[i]);
        int32_t column = test_range(rng, 0, 3) ? (int32_t)used - 1 : test_range(rng, 0, (int)used);
        int pick = test_range(rng, 0, 3);
        if (column < 0) return 0;
        s->table[i * s->io.page_table_row + column] = pick == 3 ? s->io.pages : pages[pick];
        return 1;
    }
    if (kind == BAD_TREE && c->tree && q) {
        c->tree[at * ((s->batch.max_q_len + 31) / 32) + row / 32] &= ~(1u << row % 32);
        return 1;
    }
    if (kind == BAD_LAMBDA && c->lambda) {
        c->lambda[i] = bad_lambda(rng);
        return 1;
    }
    if (kind == BAD_LIST && list) {
        list[slot] = test_range(rng, 0, 1) ? -2 : INT32_MIN;
        return 1;
    }
    if (kind == BAD_TWICE && list && slot != other && s->kv_len[i]) {
        list[slot] = list[other] = test_range(rng, 0, s->kv_len[i] - 1);
        return 1;
    }
    if (kind == BAD_LISTED_PAGE && list && s->table && s->kv_len[i]) {
        int32_t key = test_range(rng, 0, s->kv_len[i] - 1);
        s->table[i * s->io.page_table_row + attn__slot_of(&s->layer, key) / s->layer.page_size] = s->io.pages;
        return 1;
    }
    if (kind == BAD_SHORT && s->layer.mask == ATTN_FULL && c->use == USE_APPEND && q > 0) {
        s->kv_len[i] = test_range(rng, 0, q - 1);
        return 1;
    }
    if (kind == BAD_PHASE && c->use == USE_SCORE) {
        s->phase[i] = ATTN_PREFILL;
        return q > 0;
    }
    if (kind == BAD_COLUMN && c->use == USE_SCORE && q) {
        ((int32_t *)c->x.ks->host)[at] = test_range(rng, 0, 1) ? -1 : (int32_t)c->x.score_row;
        return s->kv_len[i] > 0;
    }
    if (kind == BAD_TABLE && s->table && s->io.page_table_row > 1) {
        s->io.page_table_row = s->device_io.page_table_row = test_range(rng, 1, (int)s->io.page_table_row - 1);
        return 1;
    }
    return 0;
}

/* Both sides say the same. Returns the status; *error: the CPU's. */
static int judge(const suspect *c, const char *what, int number, attn_error *error) {
    const step *s = &c->s;
    attn_error device_error;
    int status, device_status;
    if (c->use == USE_APPEND) {
        status = append_both(s, &c->rows, what, number);
        attn_append(&s->plan, &s->layer, &s->io, c->rows.k->host, c->rows.v ? c->rows.v->host : NULL, error);
    } else if (c->use == USE_SCORE) {
        status = score_both(s, &c->x, what, number);
        attn_index_score(&s->plan, &s->layer, &s->io, (float *)c->x.weights->host, (int32_t *)c->x.ks->host,
                         (float *)c->x.scores->host, c->x.score_row, &s->exec, error);
    } else {
        status = attn_check(&s->plan, &s->layer, &s->io, &s->exec, error);
        device_status = attn_cuda_check(gpu.cuda, &s->device_plan, &s->layer, &s->device_io, &s->device_exec,
                                        &device_error);
        same_error(what, number, status, error, device_status, &device_error);
    }
    if (status) compare_twins(what, number); /* nothing was written */
    return status;
}

/* A few mistakes anywhere, some of them in what nobody reads. */
static void random_mistakes(void) {
    test_rng rng = { 60 };
    int i, j, broken = 0;
    if (!gpu_ready()) return;
    for (i = 0; i < 108; i++) {
        suspect c;
        attn_error error;
        int use = i % 3, mistakes = test_range(&rng, 0, 3);
        int mask = use == USE_FORWARD ? i / 3 % 6 : use == USE_APPEND ? i / 3 % 2 : i / 3 % 4;
        draw_suspect(&c, &rng, use, mask, test_range(&rng, 0, LAYOUTS - 1), i % 2);
        for (j = 0; j < 5 * mistakes; j++) { /* most kinds do not fit most layers */
            spoil(&c, &rng, test_range(&rng, 0, BAD_TABLE), test_range(&rng, 0, c.s.batch.n - 1));
        }
        if (open_step(&c.s)) broken += judge(&c, "mistakes", i, &error) != 0;
        gpu_wait();
        close_step(&c.s);
    }
    CHECK(broken > 40 && broken < 100, "%d of 108", broken);
}

/* Every rule in the first, a middle and the last request, and in all three at once. */
static void every_rule_everywhere(void) {
    static const int uses[BAD_KINDS] = { USE_FORWARD, USE_FORWARD, USE_FORWARD, USE_FORWARD, USE_FORWARD, USE_FORWARD,
                                         USE_APPEND, USE_SCORE, USE_SCORE, USE_APPEND };
    static const int masks[BAD_KINDS] = { ATTN_FULL, ATTN_TREE, ATTN_CAUSAL, ATTN_TOPK, ATTN_TOPK, ATTN_TOPK,
                                          ATTN_FULL, ATTN_CAUSAL, ATTN_CAUSAL, ATTN_CAUSAL };
    static const int32_t places[] = { 0, LARGEST / 2, LARGEST - 1 };
    test_rng rng = { 61 };
    int kind, place, i;
    if (!gpu_ready()) return;
    for (kind = 0; kind < BAD_KINDS; kind++) {
        for (place = 0; place < 4; place++) {
            suspect c;
            attn_error error;
            int status = -1, made = 0, tries;
            for (tries = 0; tries < 50 && !made; tries++) {
                if (tries) free_twins();
                draw_suspect(&c, &rng, uses[kind], masks[kind], PAGED, 1);
                if (kind == BAD_LAMBDA && !c.lambda) continue;
                made = 1;
                for (i = 2; i >= 0; i--) { /* the first one last: its lengths decide what the others' slots are */
                    if (place == 3 || place == i) made = spoil(&c, &rng, kind, places[i]) && made;
                }
                if (made && attn__check_lengths(&c.s.batch, c.s.layer.mask, NULL)) made = 0;
            }
            CHECK(made, "kind %d cannot be made", kind);
            if (open_step(&c.s)) status = judge(&c, "kind", 10 * kind + place, &error);
            if (kind != BAD_LISTED_PAGE && kind != BAD_TABLE && kind != BAD_PAGE) {
                CHECK(status > 0 && error.request == places[place % 3], "kind %d at %d: %d, request %d", kind, place,
                      status, error.request);
            }
            gpu_wait();
            close_step(&c.s);
        }
    }
}

/* Trusted layers: neither page ids nor lists are looked at; trees are. */
static void trusted_layers(void) {
    static const struct {
        int mask, kind, status;
    } cases[] = {
        { ATTN_CAUSAL, BAD_PAGE, ATTN_OK }, { ATTN_TOPK, BAD_LIST, ATTN_OK }, { ATTN_TREE, BAD_TREE, ATTN_E_ARGUMENT }
    };
    test_rng rng = { 62 };
    int i;
    if (!gpu_ready()) return;
    for (i = 0; i < ATTN__COUNT(cases); i++) {
        suspect c;
        attn_error error;
        draw_suspect(&c, &rng, USE_FORWARD, cases[i].mask, PAGED, 1);
        c.s.layer.window_left = c.s.layer.sink_keys = c.s.layer.chunk = 0;
        c.s.layer.flags = ATTN_TRUSTED;
        CHECK(spoil(&c, &rng, cases[i].kind, 3), "kind %d cannot be made", cases[i].kind);
        if (open_step(&c.s)) CHECK(judge(&c, "trusted", i, &error) == cases[i].status, "%s", error.text);
        gpu_wait();
        close_step(&c.s);
    }
}

/* Memory of a plan that holds something else by now, in one word or in all of them. */
static void overwritten_plans(void) {
    enum { ALL = 17 };
    test_rng rng = { 63 };
    suspect c;
    attn_error error;
    int32_t header[32];
    int word;
    if (!gpu_ready()) return;
    for (word = 0; word <= ALL; word++) {
        if (word >= 2 && word <= 6) continue; /* counts: any number may be right */
        draw_suspect(&c, &rng, USE_APPEND, ATTN_CAUSAL, RAGGED, 1);
        if (!open_step(&c.s)) break;
        gpu_read(header, c.s.device_memory[0], sizeof header);
        CHECK(header[24] == 0 && header[1] == LARGEST, "no plan");
        if (word < ALL) header[word] ^= 1;
        else memset(header, 0x5A, sizeof header);
        gpu_write(c.s.device_memory[0], header, sizeof header);
        CHECK(!attn_cuda_append(gpu.cuda, &c.s.device_plan, &c.s.layer, &c.s.device_io, c.rows.k->device,
                                c.rows.v->device, &c.s.device_exec, &error), "%s", error.text);
        CHECK(attn_cuda_error(gpu.cuda, &c.s.device_plan, &c.s.device_exec, &error) == ATTN_E_PLAN, "word %d: %s", word,
              error.text);
        CHECK(attn_cuda_error(gpu.cuda, NULL, &c.s.device_exec, &error) == ATTN_E_PLAN, "word %d: %s", word,
              error.text);
        compare_twins("plan", word);
        gpu_wait();
        close_step(&c.s);
    }
}

/* ---- graphs ------------------------------------------------------------------------------------------------------ */

/* Append, scores, top-k: captured once, replayed with other lengths, pads and a mistake. */
enum { CHAIN = 5, CHAIN_Q = 2, CHAIN_KV = 150, CHAIN_TOPK = 20, CHAIN_ROWS = CHAIN * CHAIN_Q, REPLAYS = 6 };

typedef struct chain {
    step s;
    new_rows rows;
    indexer x;
    twin *ends, *indices;               /* columns of each row, its list */
    size_t plan_bytes;
} chain;

static void draw_chain(chain *c, test_rng *rng) {
    enum { HEADS = 3, DIM = 16 };
    step *s = &c->s;
    int i;
    start_step(s, HEADS, 1, DIM);
    s->layer.scale = 1;
    s->layer.flags = ATTN_V_IN_K;
    s->layer.page_size = 4;
    draw_lengths(s, rng, CHAIN, CHAIN_Q, CHAIN_KV);
    for (i = 0; i < CHAIN; i++) s->kv_len[i] = CHAIN_KV; /* so that the table has all pages */
    draw_caches(s, rng, PAGED, 0);
    s->io.k_scale = s->device_io.k_scale = NULL;
    c->rows = draw_new_rows(s, rng);
    fill(rng, c->rows.k->host, ATTN_F32, CHAIN_ROWS * DIM);
    c->x = draw_indexer(s, rng, 0);
    PUT(q, const void *, CHAIN_ROWS * HEADS * DIM * 4);
    fill(rng, (void *)(uintptr_t)s->io.q, ATTN_F32, CHAIN_ROWS * HEADS * DIM);
    c->ends = make_twin(CHAIN_ROWS * 4);
    c->indices = make_twin(CHAIN_ROWS * CHAIN_TOPK * 4);
    c->plan_bytes = attn_plan_bytes(&s->batch, &s->layer);
}

/* Other lengths; rows past the last one have no columns. */
static void draw_replay(chain *c, test_rng *rng, int only_pads) {
    step *s = &c->s;
    int32_t *ends = (int32_t *)c->ends->host;
    int row = 0, i, j;
    for (i = 0; i < CHAIN; i++) {
        s->q_len[i] = only_pads ? 0 : test_range(rng, 0, CHAIN_Q);
        s->kv_len[i] = s->q_len[i] ? test_range(rng, s->q_len[i] + 1, CHAIN_KV) : 0;
        for (j = 0; j < s->q_len[i]; j++) ends[row++] = s->kv_len[i] - s->q_len[i] + 1 + j;
    }
    while (row < CHAIN_ROWS) ends[row++] = 0;
    memset(c->indices->host, 0x11, c->indices->bytes);
    for (i = 0; i < CHAIN_ROWS * (CHAIN_KV + 20); i++) ((float *)c->x.scores->host)[i] = -1;
}

static void launch_chain(chain *c) {
    const attn_exec unchecked = { .stream = gpu.stream };
    step *s = &c->s;
    attn_error error;
    CHECK(!attn_cuda_plan_make(gpu.cuda, &s->device_plan, &s->device_batch, &s->layer, s->device_memory[0],
                               c->plan_bytes, gpu.stream, &error), "%s", error.text);
    CHECK(!attn_cuda_append(gpu.cuda, &s->device_plan, &s->layer, &s->device_io, c->rows.k->device, NULL,
                            &s->device_exec, &error), "%s", error.text);
    CHECK(!attn_cuda_index_score(gpu.cuda, &s->device_plan, &s->layer, &s->device_io, (float *)c->x.weights->device,
                                 NULL, (float *)c->x.scores->device, c->x.score_row, &s->device_exec, &error), "%s",
          error.text);
    CHECK(!attn_cuda_topk(gpu.cuda, (float *)c->x.scores->device, c->x.score_row, CHAIN_ROWS, NULL,
                          (int32_t *)c->ends->device, CHAIN_TOPK, (int32_t *)c->indices->device, &unchecked, &error),
          "%s", error.text);
}

/* The CPU's step, or its error, and what the device has. The lists follow from the device's own scores. */
static void compare_chain(chain *c, int replay, int wanted) {
    step *s = &c->s;
    attn_error error;
    int status = attn_plan_make(&s->plan, &s->batch, &s->layer, s->memory[0], c->plan_bytes, &error);
    if (!status) status = attn_append(&s->plan, &s->layer, &s->io, c->rows.k->host, NULL, &error);
    CHECK(status == wanted, "replay %d: %d %s", replay, status, error.text);
    if (!status) {
        status = attn_index_score(&s->plan, &s->layer, &s->io, (float *)c->x.weights->host, NULL,
                                  (float *)c->x.scores->host, c->x.score_row, &s->exec, &error);
        CHECK(!status, "%s", error.text);
    }
    close_scores("captured score", replay, c->x.scores);
    gpu_read(c->x.scores->host, c->x.scores->device, c->x.scores->bytes);
    attn_topk((float *)c->x.scores->host, c->x.score_row, CHAIN_ROWS, NULL, (int32_t *)c->ends->host, CHAIN_TOPK,
              (int32_t *)c->indices->host, &error);
    compare_twins("captured", replay);
}

static void no_copies(void) {
    ptxsim_counters counters;
    if (!gpu.is_simulated) return;
    gpu.ptxsim_get_counters(&counters);
    CHECK(counters.copies_to_device == 0 && counters.copies_to_host == 0, "copies in a replayed step");
}

static void captured_once(void) {
    test_rng rng = { 64 };
    chain c;
    void *graph = NULL;
    int replay;
    if (!gpu_ready()) return;
    draw_chain(&c, &rng);
    if (open_step(&c.s)) {
        launch_chain(&c); /* loads the kernels */
        gpu_wait();
        gpu_record();
        launch_chain(&c);
        graph = gpu_recorded();
    }
    for (replay = 0; graph && replay < REPLAYS; replay++) {
        int bad = replay == 3;
        draw_replay(&c, &rng, replay == 1);
        if (bad) c.s.q_len[2] = c.s.kv_len[2] = 1;
        if (bad) c.s.table[2 * c.s.io.page_table_row] ^= 0x40000000;
        upload_twins();
        if (gpu.is_simulated) gpu.ptxsim_reset_counters();
        gpu_replay(graph);
        gpu_wait();
        no_copies();
        compare_chain(&c, replay, bad ? ATTN_E_PAGE : ATTN_OK);
        if (bad) c.s.table[2 * c.s.io.page_table_row] ^= 0x40000000;
    }
    if (graph) gpu.cuGraphExecDestroy(graph);
    close_step(&c.s);
}

int main(int argc, char **argv) {
    test.only = argc > 1 ? argv[1] : NULL;
    gpu_open();
    test_run("append_equals_the_cpu", append_equals_the_cpu);
    test_run("merge_equals_the_cpu", merge_equals_the_cpu);
    test_run("merge_with_nothing", merge_with_nothing);
    test_run("rope_equals_the_cpu", rope_equals_the_cpu);
    test_run("rope_frequencies", rope_frequencies);
    test_run("scores_equal_the_cpu", scores_equal_the_cpu);
    test_run("scores_keep_their_bits", scores_keep_their_bits);
    test_run("topk_equals_the_cpu", topk_equals_the_cpu);
    test_run("topk_of_a_million", topk_of_a_million);
    test_run("topk_rows_that_do_not_fit", topk_rows_that_do_not_fit);
    test_run("random_mistakes", random_mistakes);
    test_run("every_rule_everywhere", every_rule_everywhere);
    test_run("trusted_layers", trusted_layers);
    test_run("overwritten_plans", overwritten_plans);
    test_run("captured_once", captured_once);
    gpu_close();
    return test_close("cuda_tools");
}
