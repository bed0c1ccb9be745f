/* cuda_attention.c - attn_cuda_forward: random cases against the oracle in double, and by memcmp what must not change a
   bit; skip-softmax against attn.h; captured graphs. Small cases: the simulated device runs some ten million warp
   instructions a second.
   Usage: cuda_attention [name part [random cases [seed]]] */
#include "../attn_cuda.h"
#include "cases.h"
#include "cuda_pairs.h"
#include "cuda_test.h"

/* ---- cases on the device ----------------------------------------------------------------------------------------- */

/* Copies of a case's arrays; a buffer lies as far from an aligned address as it does on the host, and the device's
   allocations end where the arrays end. */
typedef struct device_buffer {
    unsigned char *base, *data;
    size_t bytes;
} device_buffer;

enum { INPUTS = 10, OUTPUTS = 2 };

typedef struct device_case {
    attn_batch batch;
    attn_io io;
    attn_exec exec;
    attn_plan made;                 /* by this CPU, with the counts */
    device_buffer arrays[INPUTS + OUTPUTS];
    void *q_len, *kv_len, *phase, *prefix, *words, *mem, *lambda, *certificate, *counters;
} device_case;

static int complain(test_case *c, const char *what) {
    snprintf(c->message, sizeof c->message, "%s", what);
    return -1;
}

static device_buffer upload(const case_buffer *b) {
    device_buffer d = { NULL, NULL, 0 };
    size_t offset = b->guard % 64;
    if (!b->base) return d;
    d.base = (unsigned char *)gpu_alloc(offset + b->bytes);
    d.data = d.base + offset;
    d.bytes = b->bytes;
    gpu_write(d.data, b->data, b->bytes);
    return d;
}

static void list_buffers(test_case *c, case_buffer *list[INPUTS + OUTPUTS]) {
    case_buffer *all[INPUTS + OUTPUTS] = { &c->q,       &c->k,       &c->v,    &c->table, &c->sinks, &c->alibi,
                                           &c->k_scale, &c->v_scale, &c->tree, &c->topk,  &c->o,     &c->lse };
    memcpy(list, all, sizeof all);
}

static void upload_arrays(test_case *c, device_case *d) {
    case_buffer *list[INPUTS + OUTPUTS];
    void *at[INPUTS + OUTPUTS];
    int i;
    list_buffers(c, list);
    for (i = 0; i < INPUTS + OUTPUTS; i++) {
        gpu_free(d->arrays[i].base);
        d->arrays[i] = upload(list[i]);
        at[i] = d->arrays[i].data;
    }
    d->io = c->io;
    d->io.q = at[0];
    d->io.k = at[1];
    d->io.v = at[2];
    d->io.page_table = (const int32_t *)at[3];
    d->io.sinks = (const float *)at[4];
    d->io.alibi = (const float *)at[5];
    d->io.k_scale = (float *)at[6];
    d->io.v_scale = (float *)at[7];
    d->io.tree = (const uint32_t *)at[8];
    d->io.topk = (const int32_t *)at[9];
    d->io.o = at[10];
    d->io.lse = (float *)at[11];
}

static void *upload_lengths(const int32_t *lengths, int n) {
    return gpu_upload(lengths, (size_t)n * sizeof *lengths);
}

static void device_close(test_case *c) {
    device_case *d = (device_case *)c->device;
    int i;
    if (!d) return;
    for (i = 0; i < INPUTS + OUTPUTS; i++) gpu_free(d->arrays[i].base);
    gpu_free(d->q_len);
    gpu_free(d->kv_len);
    gpu_free(d->phase);
    gpu_free(d->prefix);
    gpu_free(d->words);
    gpu_free(d->mem);
    gpu_free(d->lambda);
    gpu_free(d->certificate);
    gpu_free(d->counters);
    free(d);
    c->device = NULL;
}

/* The device needs capacities and a geometry. */
static void fit_to_device(test_case *c) {
    int32_t workers = c->layer.workers;
    int i;
    for (i = 0; i < c->batch.n; i++) {
        if (c->spec.more_q < 0 && c->q_len[i] > c->batch.max_q_len) c->batch.max_q_len = c->q_len[i];
        if (c->spec.more_kv < 0 && c->kv_len[i] > c->batch.max_kv_len) c->batch.max_kv_len = c->kv_len[i];
    }
    if (c->spec.more_rows < 0) c->batch.max_rows = c->rows;
    if (!c->batch.max_q_len) c->batch.max_q_len = 1;
    if (!c->batch.max_kv_len) c->batch.max_kv_len = 1;
    if (!c->batch.max_rows) c->batch.max_rows = 1;
    CHECK(!attn_cuda_geometry(gpu.cuda, &c->layer, &c->error), "%s", c->error.text);
    if (workers) c->layer.workers = workers;
}

/* The words of the plan that this CPU makes: the device's must be the same. c->plan_mem holds them. */
static int plan_here(test_case *c, attn_plan *plan) {
    size_t bytes = attn_plan_bytes(&c->batch, &c->layer);
    if (!bytes) return complain(c, "no plan");
    free(c->plan_mem.base);
    c->plan_mem.base = c->plan_mem.data = (unsigned char *)malloc(bytes);
    c->plan_mem.bytes = bytes;
    memset(c->plan_mem.data, 0, bytes);
    return attn_plan_make(plan, &c->batch, &c->layer, c->plan_mem.data, bytes, &c->error);
}

/* The words that the device wrote are those of this CPU. */
static int same_words(test_case *c, const device_case *d) {
    int32_t *words = (int32_t *)malloc(c->plan_mem.bytes);
    int32_t *want = (int32_t *)(void *)c->plan_mem.data;
    int32_t n = d->made.n;
    int same;
    gpu_read(words, d->words, c->plan_mem.bytes);
    same = !memcmp(words, want, (size_t)(32 + 4 * n + 2) * sizeof *words) &&
           !memcmp(words + want[13], want + want[13], (size_t)want[3] * 8 * sizeof *words) &&
           !memcmp(words + want[14], want + want[14], (size_t)want[4] * 5 * sizeof *words) &&
           !memcmp(words + want[15], want + want[15], (size_t)want[5] * 2 * sizeof *words);
    free(words);
    return same ? 0 : complain(c, "the plan is not the one that attn.h makes");
}

static int device_plan(test_case *c) {
    device_case *d;
    attn_plan made;
    int status;
    device_close(c);
    fit_to_device(c);
    status = plan_here(c, &made);
    if (status) return status;
    d = (device_case *)calloc(1, sizeof *d);
    c->device = d;
    d->made = made;
    d->batch = c->batch;
    d->batch.q_len = (const int32_t *)(d->q_len = upload_lengths(c->batch.q_len, c->batch.n));
    d->batch.kv_len = (const int32_t *)(d->kv_len = upload_lengths(c->batch.kv_len, c->batch.n));
    d->batch.phase = (const int32_t *)(d->phase = upload_lengths(c->batch.phase, c->batch.n));
    d->batch.prefix = (const int32_t *)(d->prefix = upload_lengths(c->batch.prefix, c->batch.n));
    d->words = gpu_alloc(c->plan_mem.bytes);
    gpu_fill(d->words, c->spec.fill, c->plan_mem.bytes);
    status = attn_cuda_plan_make(gpu.cuda, &c->plan, &d->batch, &c->layer, d->words, c->plan_mem.bytes, gpu.stream,
                                 &c->error);
    if (status) return status;
    if (!gpu_wait()) return complain(c, "the device failed");
    d->exec.stream = gpu.stream;
    d->exec.bytes = attn_cuda_exec_bytes(gpu.cuda, &c->plan);
    d->mem = gpu_alloc(d->exec.bytes);
    d->exec.mem = d->mem;
    return same_words(c, d);
}

/* Certificates and counters go through the memory of the device. */
static void upload_skip(test_case *c, device_case *d) {
    size_t rows = (size_t)c->rows * (size_t)c->heads;
    gpu_free(d->lambda);
    gpu_free(d->certificate);
    gpu_free(d->counters);
    d->lambda = gpu_upload(c->io.lambda, (size_t)c->batch.n * sizeof(float));
    d->certificate = gpu_upload(c->io.certificate, rows * sizeof(float));
    d->counters = gpu_upload(c->io.counters, sizeof *c->io.counters);
    d->io.lambda = (const float *)d->lambda;
    d->io.certificate = (float *)d->certificate;
    d->io.counters = (attn_counters *)d->counters;
}

static int device_forward(test_case *c) {
    device_case *d = (device_case *)c->device;
    size_t rows = (size_t)c->rows * (size_t)c->heads;
    case_buffer *list[INPUTS + OUTPUTS];
    int status;
    int i;
    upload_arrays(c, d);
    upload_skip(c, d);
    status = attn_cuda_forward(gpu.cuda, &c->plan, &c->layer, &d->io, &d->exec, &c->error);
    if (status) return status;
    if (!gpu_wait()) return complain(c, "the device failed");
    status = attn_cuda_error(gpu.cuda, &c->plan, &d->exec, &c->error);
    list_buffers(c, list);
    for (i = 0; i < INPUTS + OUTPUTS; i++) {
        if (list[i]->base) gpu_read(list[i]->data, d->arrays[i].data, list[i]->bytes);
    }
    if (c->io.certificate) gpu_read(c->io.certificate, d->certificate, rows * sizeof(float));
    if (c->io.counters) gpu_read(c->io.counters, d->counters, sizeof *c->io.counters);
    return status;
}

static const case_backend device = { device_plan, device_forward, device_close };

/* ---- tests ------------------------------------------------------------------------------------------------------- */

static void check_run(test_case *c) {
    char text[900];
    const char *message = case_run(c);
    case_describe(&c->spec, text, sizeof text);
    CHECK(!message, "%s: %s", message, text);
}

static void first(void) {
    case_spec s;
    test_case c;
    if (!gpu_ready()) return;
    case_defaults(&s);
    s.layer.heads = 4;
    s.layer.kv_heads = 2;
    s.layer.head_dim = 40;
    s.layer.scale_kind = ATTN_SCALE_PER_HEAD;
    s.k_scale = s.v_scale = 1;
    s.n = 2;
    s.request[0].q_len = 37;
    s.request[0].kv_len = 150;
    s.request[1].q_len = 1;
    s.request[1].kv_len = 700;
    s.request[1].phase = ATTN_DECODE;
    s.request[1].content = 1;
    case_open(&c, &s);
    check_run(&c);
    case_close(&c);
}

/* Types that are compiled, since each takes a second. The first six have every type of KV, the first nine also every
   pair of types of q and o; the others are for skipping. With the first one they are what cuda_pairs.h wants run. */
enum { FEW_TYPES = 6, DENSE_TYPES = 9, ALL_TYPES = 12 };

static const attn_type all_types[ALL_TYPES][3] = {
    { ATTN_F32, ATTN_F32, ATTN_F32 },   { ATTN_F16, ATTN_F16, ATTN_F16 },   { ATTN_BF16, ATTN_BF16, ATTN_F16 },
    { ATTN_F16, ATTN_E4M3, ATTN_F32 },  { ATTN_F16, ATTN_E5M2, ATTN_BF16 }, { ATTN_F32, ATTN_INT8, ATTN_BF16 },
    { ATTN_BF16, ATTN_F32, ATTN_BF16 }, { ATTN_BF16, ATTN_INT8, ATTN_F32 }, { ATTN_F32, ATTN_F16, ATTN_F16 },
    { ATTN_F32, ATTN_E4M3, ATTN_F32 },  { ATTN_F16, ATTN_F16, ATTN_BF16 },  { ATTN_BF16, ATTN_INT8, ATTN_F16 }
};

static void choose_types(attn_layer *l, int i) {
    l->q_type = all_types[i][0];
    l->kv_type = all_types[i][1];
    l->o_type = all_types[i][2];
}

static void pairs_are_run(void) {
    int i;
    for (i = 0; i < PAIRS; i++) {
        kernel_pair p = pair_at(i);
        int found = p.device != 0, t = p.skips ? DENSE_TYPES : 0, end = p.skips ? ALL_TYPES : FEW_TYPES;
        for (; t < end; t++) {
            const attn_type *x = all_types[t];
            found = found || ((int)x[0] == p.q_type && (int)x[1] == p.kv_type && (int)x[2] == p.o_type);
        }
        CHECK(found, "types %d, %d, %d are not run", p.q_type, p.kv_type, p.o_type);
    }
}

/* A random case of compiled types. */
static void draw(case_spec *s, test_rng *r, int types, double work) {
    case_random(s, r, work);
    choose_types(&s->layer, types);
    s->layer.key_tile = 0;
    s->layer.flags &= ~ATTN_FAST_INT8;
    if (s->layer.kv_type == ATTN_INT8) {
        s->layer.flags |= s->seed & 1 ? ATTN_FAST_INT8 : 0;
        s->k_scale = 1;
        s->v_scale = (s->layer.flags & ATTN_V_IN_K) == 0;
    } else if (s->layer.scale_kind == ATTN_SCALE_PER_KEY) {
        s->layer.scale_kind = ATTN_SCALE_PER_HEAD;
    }
}

static int random_count = 12;
static uint64_t random_seed = 20261;

static void random_cases(void) {
    test_rng r = { random_seed };
    int types = random_count < 100 ? FEW_TYPES : DENSE_TYPES;
    int i;
    if (!gpu_ready()) return;
    for (i = 0; i < random_count; i++) {
        uint64_t state = r.state;
        case_spec s;
        test_case c;
        draw(&s, &r, i % types, 3e5);
        case_open(&c, &s);
        check_run(&c);
        case_close(&c);
        if (!test.bad) continue;
        printf("  case %d, state %llu\n", i, (unsigned long long)state);
        return;
    }
}

/* ---- bits -------------------------------------------------------------------------------------------------------- */

typedef struct layer_case {
    const char *name;
    int heads, kv_heads, head_dim, v_dim, types;
    int mask, left, right, sink_keys, split_keys, chunk, sinks, alibi;
    float softcap;
} layer_case;

static const layer_case layers[] = {
    { "f32", 4, 2, 16, 16, 0, ATTN_CAUSAL, 0, 0, 0, 0, 0, 0, 0, 0 },
    { "f16 window", 6, 1, 24, 20, 1, ATTN_CAUSAL, 600, 0, 0, 0, 0, 1, 0, 20 },
    { "sink keys, split", 10, 2, 8, 7, 2, ATTN_CAUSAL, 500, 0, 300, 256, 0, 0, 1, 0 },
    { "full windows", 4, 2, 12, 136, 3, ATTN_FULL, 600, 70, 10, 256, 0, 1, 0, 0 },
    { "int8 chunks", 3, 3, 70, 16, 5, ATTN_CAUSAL, 0, 0, 0, 256, 450, 0, 0, 0 },
};
enum { LAYERS = sizeof layers / sizeof *layers };

/* Most of what a layer has to show, it shows in both phases. */
static int tries(int layer, int phase) {
    return phase == ATTN_DECODE || layer == 0 || layer == 2;
}

static void set_layer(case_spec *s, const layer_case *l) {
    case_defaults(s);
    s->n = 0;
    s->layer.heads = l->heads;
    s->layer.kv_heads = l->kv_heads;
    s->layer.head_dim = l->head_dim;
    s->layer.v_dim = l->v_dim;
    s->layer.mask = (attn_mask)l->mask;
    s->layer.window_left = l->left;
    s->layer.window_right = l->right;
    s->layer.sink_keys = l->sink_keys;
    s->layer.split_keys = l->split_keys;
    s->layer.chunk = l->chunk;
    s->layer.softcap = l->softcap;
    s->layer.workers = 5;
    s->sinks = l->sinks;
    s->alibi = l->alibi;
    choose_types(&s->layer, l->types);
    s->k_scale = s->v_scale = s->layer.kv_type == ATTN_INT8;
    if (s->k_scale) s->layer.scale_kind = ATTN_SCALE_PER_KEY;
}

static void add_request(case_spec *s, int q_len, int kv_len, int phase, uint32_t content) {
    case_request *r = &s->request[s->n];
    memset(r, 0, sizeof *r);
    r->q_len = q_len;
    r->kv_len = kv_len;
    r->phase = phase;
    r->content = content;
    r->prefix = kv_len / 3;
    s->n++;
}

static void open_run(test_case *c, const case_spec *s) {
    char text[900];
    int status;
    case_open(c, s);
    status = case_plan(c);
    if (!status) status = case_forward(c);
    case_describe(s, text, sizeof text);
    CHECK(!status, "status %d: %s %s: %s", status, c->message, c->error.text, text);
}

/* Fails when the planned case could not show a difference. */
static void meaningful(const test_case *c) {
    const attn_plan *plan = &((const device_case *)c->device)->made;
    int most = 0;
    int cut = c->layer.split_keys != 0;
    int i;
    for (i = 0; i < c->spec.n; i++) {
        cut = cut || (c->q_len[i] && c->phase[i] == ATTN_DECODE);
        if (c->q_len[i] && c->kv_len[i] > most) most = c->kv_len[i];
    }
    CHECK(most > 512, "only %d keys", most);
    CHECK(plan->strips >= 2 && plan->tasks >= 2, "%d row tiles, %d tasks", plan->strips, plan->tasks);
    CHECK(!cut || plan->merges > 0, "nothing to merge");
}

static void same_rows(const test_case *a, int ra, int ja, const test_case *b, int rb, int jb, int rows,
                      const char *what) {
    int j;
    for (j = 0; j < rows; j++) {
        CHECK(case_same_row(a, ra, ja + j, b, rb, jb + j), "%s: row %d of request %d", what, ja + j, ra);
    }
}

/* Layout, pages, poison, capacities, workers: nothing of it may change a bit. */
static void any_layout(void) {
    test_rng r = { 77 };
    int l;
    int phase;
    if (!gpu_ready()) return;
    for (l = 0; l < LAYERS; l++) {
        for (phase = ATTN_PREFILL; phase <= ATTN_DECODE; phase++) {
            case_spec s;
            test_case a;
            test_case b;
            if (!tries(l, phase) && l != 3) continue;
            set_layer(&s, &layers[l]);
            add_request(&s, 17, 540, phase, 0);
            add_request(&s, 3, 530, phase, 1);
            add_request(&s, 1, 513, phase, 2);
            open_run(&a, &s);
            meaningful(&a);
            case_vary(&s, &r);
            open_run(&b, &s);
            CHECK(case_same(&a, &b), "%s, phase %d", layers[l].name, phase);
            case_close(&b);
            case_close(&a);
        }
    }
}

/* The rows of a prompt's chunks are those of the whole prompt; rows of drafts are those of plain decoding. */
static void any_chunks(void) {
    static const int chunks[][2] = { { 517, 17 }, { 534, 1 }, { 535, 15 }, { 550, 2 } };
    int l;
    int phase;
    size_t i;
    if (!gpu_ready()) return;
    for (l = 0; l < LAYERS; l++) {
        if (layers[l].mask != ATTN_CAUSAL) continue;
        for (phase = ATTN_PREFILL; phase <= ATTN_DECODE; phase++) {
            case_spec s;
            test_case whole;
            test_case c;
            if (!tries(l, phase)) continue;
            set_layer(&s, &layers[l]);
            add_request(&s, 35, 552, phase, 0);
            open_run(&whole, &s);
            meaningful(&whole);
            for (i = 0; i < sizeof chunks / sizeof *chunks; i++) {
                int start = chunks[i][0];
                int rows = chunks[i][1];
                s.n = 0;
                add_request(&s, rows, start + rows, phase, 0);
                open_run(&c, &s);
                same_rows(&c, 0, 0, &whole, 0, start - 517, rows, layers[l].name);
                case_close(&c);
            }
            case_close(&whole);
        }
    }
}

/* A request has the same bits alone and among others. */
static void any_neighbours(void) {
    test_rng r = { 5 };
    int l;
    int phase;
    int i;
    if (!gpu_ready()) return;
    for (l = 0; l < LAYERS; l++) {
        for (phase = ATTN_PREFILL; phase <= ATTN_DECODE; phase++) {
            case_spec s;
            test_case alone;
            test_case crowd;
            if (!tries(l, phase)) continue;
            set_layer(&s, &layers[l]);
            add_request(&s, 9, 600, phase, 7);
            open_run(&alone, &s);
            meaningful(&alone);
            s.n = 0;
            for (i = 0; i < 5; i++) {
                int kv_len = i == 1 ? 200 : test_range(&r, 20, 80);
                add_request(&s, i == 3 ? 0 : test_range(&r, 1, 20), kv_len, i & 1, 20u + (uint32_t)i);
            }
            add_request(&s, 9, 600, phase, 7);
            add_request(&s, 2, 40, phase, 9);
            open_run(&crowd, &s);
            same_rows(&alone, 0, 0, &crowd, 5, 0, 9, layers[l].name);
            case_close(&crowd);
            case_close(&alone);
        }
    }
}

/* A chain of drafts has the bits of CAUSAL, and so has a list of all keys. */
static void other_masks(void) {
    int mask;
    int phase;
    if (!gpu_ready()) return;
    for (mask = ATTN_TREE; mask <= ATTN_TOPK; mask++) {
        for (phase = ATTN_PREFILL; phase <= ATTN_DECODE; phase++) {
            case_spec s;
            test_case a;
            test_case b;
            set_layer(&s, &layers[0]);
            s.tree = CASE_TREE_CHAIN;
            s.alibi = 1;
            if (mask == ATTN_TREE) s.layer.window_left = 560;
            add_request(&s, 20, 650, phase, 0);
            add_request(&s, 3, 600, phase, 1);
            open_run(&a, &s);
            meaningful(&a);
            s.layer.mask = (attn_mask)mask;
            if (mask == ATTN_TOPK) s.layer.topk = 700;
            s.list_order = 3;
            open_run(&b, &s);
            CHECK(case_same(&a, &b), "mask %d, phase %d", mask, phase);
            case_close(&a);
            case_close(&b);
        }
    }
}

/* A NaN in V of the last key of request 0, which its last row alone sees. */
static void edit_nan(void *user, case_array array, int request, int token, int head, int dim, float *value) {
    static const uint32_t bits = 0x7fc00000u;
    if (array == CASE_V && request == 0 && token == *(const int *)user && head == 0 && dim == 1) {
        memcpy(value, &bits, sizeof bits);
    }
}

static void nan_stays(void) {
    int phase;
    int j;
    if (!gpu_ready()) return;
    for (phase = ATTN_PREFILL; phase <= ATTN_DECODE; phase++) {
        int token = 599;
        case_spec s;
        test_case a;
        test_case b;
        set_layer(&s, &layers[0]);
        add_request(&s, 20, 600, phase, 0);
        add_request(&s, 2, 700, phase, 1);
        open_run(&a, &s);
        meaningful(&a);
        s.edit = edit_nan;
        s.edit_user = &token;
        open_run(&b, &s);
        for (j = 0; j < 19; j++) CHECK(case_same_row(&a, 0, j, &b, 0, j), "row %d, phase %d", j, phase);
        same_rows(&a, 1, 0, &b, 1, 0, 2, "other request");
        CHECK(case_o(&b, 0, 19, 0, 1) != case_o(&b, 0, 19, 0, 1), "the row that sees it is not spoilt");
        CHECK(case_o(&b, 0, 19, 2, 1) == case_o(&a, 0, 19, 2, 1), "another head");
        case_close(&a);
        case_close(&b);
    }
}

/* Trees of all kinds, their windows and positions; lists with windows. */
static void trees_and_lists(void) {
    static const int windows[][3] = { { 0, 0, 0 }, { 40, 0, 7 }, { 5, 2, 130 }, { 0, 3, 0 }, { 160, 0, 0 } };
    int shape;
    int i;
    if (!gpu_ready()) return;
    for (shape = CASE_TREE_CHAIN; shape <= CASE_TREE_WILD + 1; shape++) {
        int topk = shape > CASE_TREE_WILD;
        for (i = 0; i < 5; i++) {
            case_spec s;
            test_case c;
            if (!topk && (shape + i) % 3) continue;
            set_layer(&s, &layers[0]);
            s.layer.mask = topk ? ATTN_TOPK : ATTN_TREE;
            s.layer.window_left = windows[i][0];
            s.layer.window_right = windows[i][1];
            s.layer.sink_keys = windows[i][2];
            s.tree = (case_tree)shape;
            s.alibi = 1;
            s.hide = 1;
            s.layer.page_size = i == 1 || i == 2 ? 16 : 0;
            s.list_keys = topk ? 30 : 0;
            s.layer.topk = topk ? 37 : 0;
            s.list_order = i;
            add_request(&s, 37, 150, i % 2 ? ATTN_PREFILL : ATTN_DECODE, (uint32_t)shape);
            add_request(&s, 5, 300, ATTN_DECODE, 9);
            case_open(&c, &s);
            check_run(&c);
            case_close(&c);
        }
    }
}

/* The units' largest logits lie further apart than exp reaches. */
static void edit_units(void *user, case_array array, int request, int token, int head, int dim, float *value) {
    (void)user;
    (void)request;
    (void)head;
    (void)dim;
    if (array == CASE_K) *value *= token / 256 % 2 ? 0.1f : 6.0f;
}

static void steep_units(void) {
    case_spec s;
    test_case c;
    if (!gpu_ready()) return;
    set_layer(&s, &layers[0]);
    s.q_amp = 40;
    s.edit = edit_units;
    add_request(&s, 2, 800, ATTN_DECODE, 0);
    add_request(&s, 3, 500, ATTN_PREFILL, 1);
    case_open(&c, &s);
    check_run(&c);
    meaningful(&c);
    case_close(&c);
}

/* Shapes with paths of their own: latent attention, more columns of V than one pass takes, the ring cache. */
static void special_shapes(void) {
    static const int shapes[][5] = { { 16, 576, 512, 3, ATTN_V_IN_K }, { 2, 33, 600, 0, 0 }, { 5, 100, 1030, 0, 0 } };
    size_t i;
    int phase;
    if (!gpu_ready()) return;
    for (i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        for (phase = i ? ATTN_DECODE : ATTN_PREFILL; phase <= ATTN_DECODE; phase++) {
            case_spec s;
            test_case c;
            case_defaults(&s);
            s.layer.heads = shapes[i][0];
            s.layer.kv_heads = 1;
            s.layer.head_dim = shapes[i][1];
            s.layer.v_dim = shapes[i][2];
            s.layer.scale = 0.05f;
            s.layer.flags = shapes[i][4];
            s.layer.page_size = 16;
            choose_types(&s.layer, shapes[i][3]);
            s.n = 0;
            add_request(&s, 2, 300, phase, 0);
            add_request(&s, 1, 520, phase, 1);
            case_open(&c, &s);
            check_run(&c);
            case_close(&c);
        }
    }
}

/* ---- the ring cache ---------------------------------------------------------------------------------------------- */

enum { R_SLOTS = 640, R_KEYS = 1500, R_ROWS = 5, R_WINDOW = 560, R_DIM = 12 };

static void fill_floats(float *x, size_t bytes, float amplitude, test_rng *r) {
    size_t i;
    for (i = 0; i < bytes / sizeof *x; i++) x[i] = amplitude * test_uniform(r);
}

/* One request of 5 rows over 1,500 keys in a window, from a cache that holds all keys, or a ring that holds the last
   640: slots of the other keys are poison. page_size 0: at the start of the cache. */
static void run_ring(int ring, int page_size, int phase, float *o) {
    static float q[R_ROWS * R_DIM], k[R_KEYS * R_DIM], v[R_KEYS * R_DIM];
    static const int32_t q_len = R_ROWS;
    static const int32_t kv_len = R_KEYS;
    int32_t table[R_KEYS / 20];
    test_rng r = { 8 };
    attn_layer layer;
    attn_batch batch;
    attn_plan plan;
    attn_exec exec;
    attn_error error;
    attn_io io;
    void *mem[8];
    size_t bytes;
    int status;
    int i;
    fill_floats(q, sizeof q, 3, &r);
    memset(k, 0xFF, sizeof k);
    memset(v, 0xFF, sizeof v);
    for (i = 0; i < R_KEYS; i++) {
        int slot = ring ? i % R_SLOTS : i;
        if (page_size) slot = (74 - slot / page_size) * page_size + slot % page_size;
        fill_floats(k + slot * R_DIM, R_DIM * sizeof *k, 1, &r);
        fill_floats(v + slot * R_DIM, R_DIM * sizeof *v, 1, &r);
    }
    for (i = 0; i < R_KEYS / 20; i++) table[i] = 74 - i;
    memset(&layer, 0, sizeof layer);
    layer.heads = layer.kv_heads = 1;
    layer.head_dim = R_DIM;
    layer.window_left = R_WINDOW;
    layer.page_size = page_size;
    layer.ring = ring ? R_SLOTS : 0;
    CHECK(!attn_cuda_geometry(gpu.cuda, &layer, &error), "%s", error.text);
    layer.workers = 3;
    memset(&batch, 0, sizeof batch);
    batch.n = 1;
    batch.q_len = (const int32_t *)(mem[0] = gpu_upload(&q_len, sizeof q_len));
    batch.kv_len = (const int32_t *)(mem[1] = gpu_upload(&kv_len, sizeof kv_len));
    batch.phase = (const int32_t *)(mem[2] = gpu_upload(&phase, sizeof phase));
    batch.max_q_len = R_ROWS;
    batch.max_kv_len = R_KEYS;
    batch.max_rows = R_ROWS;
    memset(&io, 0, sizeof io);
    io.q = mem[3] = gpu_upload(q, sizeof q);
    io.k = mem[4] = gpu_upload(k, sizeof k);
    io.v = mem[5] = gpu_upload(v, sizeof v);
    io.o = gpu_alloc(sizeof q);
    if (page_size) io.page_table = (const int32_t *)gpu_upload(table, sizeof table);
    io.pages = page_size ? 75 : 0;
    bytes = attn_plan_bytes(&batch, &layer);
    mem[6] = gpu_alloc(bytes);
    memset(&exec, 0, sizeof exec);
    exec.stream = gpu.stream;
    status = attn_cuda_plan_make(gpu.cuda, &plan, &batch, &layer, mem[6], bytes, gpu.stream, &error);
    exec.bytes = status ? 0 : attn_cuda_exec_bytes(gpu.cuda, &plan);
    exec.mem = mem[7] = gpu_alloc(exec.bytes);
    if (!status) status = attn_cuda_forward(gpu.cuda, &plan, &layer, &io, &exec, &error);
    if (!status) status = attn_cuda_error(gpu.cuda, &plan, &exec, &error);
    CHECK(!status, "%s", error.text);
    gpu_wait();
    gpu_read(o, io.o, sizeof q);
    for (i = 0; i < 8; i++) gpu_free(mem[i]);
    gpu_free(io.o);
    gpu_free((void *)(uintptr_t)io.page_table);
}

static void ring_equals_window(void) {
    float want[R_ROWS * R_DIM];
    float got[R_ROWS * R_DIM];
    int phase;
    if (!gpu_ready()) return;
    for (phase = ATTN_PREFILL; phase <= ATTN_DECODE; phase++) {
        run_ring(0, 0, phase, want);
        run_ring(1, 0, phase, got);
        CHECK(!memcmp(want, got, sizeof want), "ring, phase %d", phase);
        run_ring(1, 20, phase, got);
        CHECK(!memcmp(want, got, sizeof want), "pages of a ring, phase %d", phase);
        CHECK(want[3] == want[3] && want[3] != want[3 + R_DIM], "no numbers");
    }
}

/* ---- what is wrong ----------------------------------------------------------------------------------------------- */

/* A bad page: the sentence of attn.h, and no byte of the outputs written. */
static void bad_page(void) {
    attn_error errors[2];
    int status[2];
    int i;
    if (!gpu_ready()) return;
    for (i = 0; i < 2; i++) {
        case_spec s;
        test_case c;
        set_layer(&s, &layers[0]);
        s.layer.page_size = 16;
        add_request(&s, 3, 100, ATTN_PREFILL, 0);
        add_request(&s, 2, 90, ATTN_DECODE, 1);
        case_use(i ? &device : NULL);
        case_open(&c, &s);
        case_use(&device);
        ((int32_t *)(void *)c.table.data)[c.columns + 2] = c.io.pages;
        case_rehash(&c);
        status[i] = case_plan(&c);
        if (!status[i]) status[i] = case_forward(&c);
        CHECK(case_untouched(&c), "outputs written");
        CHECK(!c.message[0], "%s", c.message);
        errors[i] = c.error;
        case_close(&c);
    }
    CHECK(status[0] == ATTN_E_PAGE && status[1] == ATTN_E_PAGE, "status %d, %d", status[0], status[1]);
    CHECK(!strcmp(errors[0].text, errors[1].text), "\"%s\", want \"%s\"", errors[1].text, errors[0].text);
    CHECK(errors[0].request == errors[1].request && errors[0].slot == errors[1].slot, "indices differ");
}

/* ---- skip-softmax ------------------------------------------------------------------------------------------------ */

/* One tile in three has large logits, so that there is something to skip; key tile 1 is such a tile, tile 0 is not. */
static void edit_tiles(void *user, case_array array, int request, int token, int head, int dim, float *value) {
    (void)user;
    (void)request;
    (void)dim;
    if (array == CASE_K) *value *= (token / 64 + head) % 3 == 1 ? 3.0f : 0.25f;
}

typedef struct skip_case {
    const char *name;
    int mode;
    float prefill, decode;          /* LAMBDA: of the even and the odd requests */
    int mask, left, sink_keys, split_keys, v_dim, types;
} skip_case;

static const skip_case skips[] = {
    { "factor", ATTN_SKIP_FACTOR, 8, 4, ATTN_CAUSAL, 0, 0, 0, 0, 9 },
    { "factor, split, window", ATTN_SKIP_FACTOR, 8, 4, ATTN_CAUSAL, 2600, 70, 2048, 0, 10 },
    { "factor above 1", ATTN_SKIP_FACTOR, 1e5f, 1e5f, ATTN_CAUSAL, 0, 0, 0, 0, 0 },
    { "lambda", ATTN_SKIP_LAMBDA, 0.002f, 0.01f, ATTN_CAUSAL, 0, 0, 2048, 20, 11 },
    { "lambda, only counting", ATTN_SKIP_LAMBDA, 1e-30f, 1e-30f, ATTN_FULL, 0, 0, 0, 0, 0 },
    { "lambda, wide v", ATTN_SKIP_LAMBDA, 0.004f, 0.004f, ATTN_CAUSAL, 0, 0, 2048, 516, 10 },
    { "eps", ATTN_SKIP_EPS, 0.02f, 0.05f, ATTN_CAUSAL, 0, 0, 0, 0, 0 },
    { "eps, tree, split", ATTN_SKIP_EPS, 0.03f, 0.03f, ATTN_TREE, 2500, 10, 2048, 0, 9 },
};
enum { SKIPS = sizeof skips / sizeof *skips, SKIP_REQUESTS = 5, SKIP_ROWS = 30, SKIP_HEADS = 4 };

static void skip_spec(case_spec *s, const skip_case *k) {
    static const int lengths[SKIP_REQUESTS][3] = {
        { 3, 2900, ATTN_DECODE }, { 7, 300, ATTN_DECODE }, { 17, 450, ATTN_PREFILL }, { 2, 2500, ATTN_PREFILL },
        { 1, 2200, ATTN_DECODE }
    };
    int i;
    case_defaults(s);
    s->n = 0;
    for (i = 0; i < SKIP_REQUESTS; i++) add_request(s, lengths[i][0], lengths[i][1], lengths[i][2], (uint32_t)i);
    s->layer.heads = SKIP_HEADS;
    s->layer.kv_heads = 2;
    s->layer.head_dim = 16;
    s->layer.v_dim = k->v_dim;
    s->layer.mask = (attn_mask)k->mask;
    s->layer.window_left = k->left;
    s->layer.sink_keys = k->sink_keys;
    s->layer.split_keys = k->split_keys;
    s->layer.skip.mode = k->mode;
    if (k->mode != ATTN_SKIP_LAMBDA) {
        s->layer.skip.prefill = k->prefill;
        s->layer.skip.decode = k->decode;
    }
    s->layer.workers = 6;
    s->q_amp = 4;
    s->edit = edit_tiles;
    choose_types(&s->layer, k->types);
    s->k_scale = s->v_scale = s->layer.kv_type == ATTN_INT8;
    if (s->k_scale) s->layer.scale_kind = ATTN_SCALE_PER_KEY;
}

/* What a call with skipping gives besides o and lse. */
typedef struct skip_run {
    test_case c;
    float lambda[SKIP_REQUESTS], certificate[SKIP_ROWS * SKIP_HEADS];
    attn_counters counters;
} skip_run;

static void open_skip_run(skip_run *x, const case_spec *s, const skip_case *k, const case_backend *backend) {
    test_case *c = &x->c;
    int status;
    int i;
    case_use(backend);
    case_open(c, s);
    case_use(&device);
    memset(&x->counters, 0, sizeof x->counters);
    memset(x->certificate, 0xFF, sizeof x->certificate);
    for (i = 0; i < SKIP_REQUESTS; i++) x->lambda[i] = i % 2 ? k->decode : k->prefill;
    if (s->layer.skip.mode == ATTN_SKIP_LAMBDA) c->io.lambda = x->lambda;
    c->io.certificate = x->certificate;
    c->io.counters = &x->counters;
    if (!backend) {
        c->layer.isa = ATTN_ISA_SCALAR; /* 16 rows vote, as on the device */
        c->layer.row_tile = 16;
        c->layer.key_tile = 64;
    }
    status = case_plan(c);
    if (!status) status = case_forward(c);
    CHECK(!status, "%s: status %d: %s %s", k->name, status, c->message, c->error.text);
}

static void same_counters(const attn_counters *a, const attn_counters *b, const char *name) {
    int i;
    CHECK(a->tiles == b->tiles, "%s: %d tiles, %d", name, (int)a->tiles, (int)b->tiles);
    CHECK(a->v_skipped == b->v_skipped, "%s: V skipped: %d, %d", name, (int)a->v_skipped, (int)b->v_skipped);
    CHECK(a->softmax_skipped == b->softmax_skipped, "%s: softmax skipped: %d, %d", name, (int)a->softmax_skipped,
          (int)b->softmax_skipped);
    CHECK(a->dense_tiles == b->dense_tiles, "%s: dense: %d, %d", name, (int)a->dense_tiles, (int)b->dense_tiles);
    for (i = 0; i < 64; i++) {
        CHECK(a->histogram[i] == b->histogram[i], "%s: bin %d: %d, %d", name, i, (int)a->histogram[i],
              (int)b->histogram[i]);
    }
}

/* The device decides as attn.h does with the same tiles: the same counters, certificates and, but for rounding, o. */
static void close_results(const skip_run *a, const skip_run *b, const char *name) {
    static const double rounding[] = { 0, 1.0 / 1024, 1.0 / 128 };  /* of o's type: one unit in the last place */
    double unit = rounding[a->c.layer.o_type];
    int i;
    int j;
    int h;
    int d;
    for (i = 0; i < SKIP_REQUESTS; i++) {
        for (j = 0; j < a->c.q_len[i]; j++) {
            for (h = 0; h < SKIP_HEADS; h++) {
                int at = (a->c.first_row[i] + j) * SKIP_HEADS + h;
                double x = (double)a->certificate[at];
                double y = (double)b->certificate[at];
                double lse = case_lse(&a->c, i, j, h) - case_lse(&b->c, i, j, h);
                CHECK(x >= y - 1e-3 * y && x <= y + 1e-3 * y, "%s: certificate of row %d.%d: %g, %g", name, i, j, x, y);
                CHECK(lse < 5e-5 && lse > -5e-5, "%s: lse of row %d.%d is off by %g", name, i, j, lse);
                for (d = 0; d < a->c.v_dim; d++) {
                    double want = case_o(&b->c, i, j, h, d), o = case_o(&a->c, i, j, h, d) - want;
                    double most = 5e-5 + unit * (want < 0 ? -want : want);
                    CHECK(o < most && o > -most, "%s: o of row %d.%d is off by %g", name, i, j, o);
                }
            }
        }
    }
}

/* EPS: what a row lost is within the budget of its phase, and some row has used a good part of it. */
static void within_budget(const skip_run *x, const skip_case *k) {
    double most = 0;
    int i, j;
    for (i = 0; i < SKIP_REQUESTS; i++) {
        double eps = (double)(x->c.phase[i] == ATTN_PREFILL ? k->prefill : k->decode), allowed = eps / (1 + eps);
        for (j = 0; j < x->c.q_len[i] * SKIP_HEADS; j++) {
            double lost = (double)x->certificate[x->c.first_row[i] * SKIP_HEADS + j] / allowed;
            CHECK(lost <= 1, "%s: row %d of request %d lost %g of its budget", k->name, j / SKIP_HEADS, i, lost);
            most = lost > most ? lost : most;
        }
    }
    CHECK(most > 0.5, "%s: at most %g of a budget is used", k->name, most);
}

static void skips_as_attn_h(void) {
    static skip_run here;
    static skip_run there;
    size_t k;
    if (!gpu_ready()) return;
    for (k = 0; k < SKIPS; k++) {
        const skip_case *sk = &skips[k];
        case_spec s;
        skip_spec(&s, sk);
        open_skip_run(&here, &s, sk, NULL);
        open_skip_run(&there, &s, sk, &device);
        same_counters(&there.counters, &here.counters, sk->name);
        close_results(&there, &here, sk->name);
        if (sk->mode == ATTN_SKIP_EPS) within_budget(&there, sk);
        if (k == 2) {
            CHECK(here.counters.dense_tiles == here.counters.tiles, "%s: not dense", sk->name);
        } else if (k != 4) {
            CHECK(here.counters.v_skipped * 5 > here.counters.tiles, "%s: %d of %d tiles skipped", sk->name,
                  (int)here.counters.v_skipped, (int)here.counters.tiles);
        }
        case_close(&here.c);
        case_close(&there.c);
    }
}

/* Where nothing is skipped, the kernel with skipping has the bits of the one without; and what is skipped does not
   depend on pages, capacities and workers. */
static void skip_bits(void) {
    static skip_run a;
    static skip_run b;
    static const int which[] = { 4, 3, 7 };
    test_rng r = { 3 };
    size_t i;
    if (!gpu_ready()) return;
    for (i = 0; i < sizeof which / sizeof *which; i++) {
        const skip_case *sk = &skips[which[i]];
        case_spec s;
        skip_spec(&s, sk);
        open_skip_run(&a, &s, sk, &device);
        if (i == 0) s.layer.skip.mode = ATTN_SKIP_OFF;
        if (i != 0) case_vary(&s, &r);
        open_skip_run(&b, &s, sk, &device);
        CHECK(case_same(&a.c, &b.c), "%s", sk->name);
        if (i != 0) same_counters(&a.counters, &b.counters, sk->name);
        if (i != 0) CHECK(!memcmp(a.certificate, b.certificate, sizeof a.certificate), "%s", sk->name);
        case_close(&a.c);
        case_close(&b.c);
    }
}

/* ---- graphs ------------------------------------------------------------------------------------------------------ */

enum { G_N = 3, G_ROWS = 6, G_KEYS = 1300, G_HEADS = 4, G_KV_HEADS = 2, G_DIM = 16, G_PAGE = 16, G_PAGES = 260 };
enum { G_COLUMNS = (G_KEYS + G_PAGE - 1) / G_PAGE };

/* The arrays of a step, here and there. */
typedef struct graph_step {
    int32_t q_len[G_N], kv_len[G_N], table[G_N][G_COLUMNS];
    float lambda[G_N];
    float q[G_ROWS][G_HEADS][G_DIM], new_k[G_ROWS][G_KV_HEADS][G_DIM], new_v[G_ROWS][G_KV_HEADS][G_DIM];
    float k[G_PAGES][G_PAGE][G_KV_HEADS][G_DIM], v[G_PAGES][G_PAGE][G_KV_HEADS][G_DIM];
} graph_step;

typedef struct graph_result {
    float o[G_ROWS][G_HEADS][G_DIM], lse[G_ROWS][G_HEADS];
    attn_counters counters;
} graph_result;

/* Step 1 has other lengths, thresholds and pages than step 0, step 2 one request less. */
static void fill_step(graph_step *s, int step, test_rng *r) {
    static const int32_t q_len[3][G_N] = { { 2, 2, 2 }, { 1, 2, 1 }, { 2, 0, 1 } };
    static const int32_t kv_len[3][G_N] = { { 900, 1300, 700 }, { 1111, 514, 1 }, { 65, 0, 1290 } };
    static const float lambda[3] = { 0.01f, 1e-30f, 0.3f };
    int key;
    int i;
    for (i = 0; i < G_N; i++) {
        s->q_len[i] = q_len[step][i];
        s->kv_len[i] = kv_len[step][i];
        s->lambda[i] = lambda[(step + i) % 3];
        for (key = 0; key < G_COLUMNS; key++) s->table[i][key] = (i * G_COLUMNS + key + 7 * step) % G_PAGES;
    }
    fill_floats(&s->q[0][0][0], sizeof s->q, 4, r);
    fill_floats(&s->new_k[0][0][0], sizeof s->new_k, 1, r);
    fill_floats(&s->new_v[0][0][0], sizeof s->new_v, 1, r);
    fill_floats(&s->k[0][0][0][0], sizeof s->k, 1, r);
    fill_floats(&s->v[0][0][0][0], sizeof s->v, 1, r);
    for (i = 0; i < G_PAGES; i++) {
        for (key = 0; key < G_PAGE * G_KV_HEADS * G_DIM; key++) (&s->k[i][0][0][0])[key] *= i / 4 % 3 ? 0.25f : 3.0f;
    }
}

static void graph_call(attn_batch *batch, attn_layer *layer, attn_io *io, graph_step *s, graph_result *result) {
    memset(batch, 0, sizeof *batch);
    batch->n = G_N;
    batch->q_len = s->q_len;
    batch->kv_len = s->kv_len;
    batch->max_q_len = 2;
    batch->max_kv_len = G_KEYS;
    batch->max_rows = G_ROWS;
    memset(layer, 0, sizeof *layer);
    layer->heads = G_HEADS;
    layer->kv_heads = G_KV_HEADS;
    layer->head_dim = G_DIM;
    layer->page_size = G_PAGE;
    layer->skip.mode = ATTN_SKIP_LAMBDA;
    layer->row_tile = 16;
    layer->key_tile = 64;
    layer->workers = 5;
    memset(io, 0, sizeof *io);
    io->q = s->q;
    io->k = s->k;
    io->v = s->v;
    io->o = result->o;
    io->lse = &result->lse[0][0];
    io->page_table = &s->table[0][0];
    io->pages = G_PAGES;
    io->lambda = s->lambda;
    io->counters = &result->counters;
}

/* Plan, append and forward on the device. */
static void graph_launch(const attn_batch *batch, const attn_layer *layer, const attn_io *io, const graph_step *s,
                         attn_plan *plan, void *words, attn_exec *exec) {
    attn_error error;
    int status = attn_cuda_plan_make(gpu.cuda, plan, batch, layer, words, attn_plan_bytes(batch, layer), gpu.stream,
                                     &error);
    if (!status) status = attn_cuda_append(gpu.cuda, plan, layer, io, s->new_k, s->new_v, exec, &error);
    if (!status) status = attn_cuda_forward(gpu.cuda, plan, layer, io, exec, &error);
    CHECK(!status, "%s", error.text);
}

static void graph_here(graph_step *s, graph_result *result) {
    attn_batch batch;
    attn_layer layer;
    attn_io io;
    attn_exec exec;
    attn_plan plan;
    attn_error error;
    size_t bytes;
    void *words;
    int status;
    memset(result, 0, sizeof *result);
    graph_call(&batch, &layer, &io, s, result);
    batch.phase = (const int32_t[G_N]) { ATTN_DECODE, ATTN_DECODE, ATTN_DECODE };
    layer.isa = ATTN_ISA_SCALAR;
    bytes = attn_plan_bytes(&batch, &layer);
    words = malloc(bytes);
    status = attn_plan_make(&plan, &batch, &layer, words, bytes, &error);
    memset(&exec, 0, sizeof exec);
    exec.bytes = attn_exec_bytes(&plan, 1);
    exec.mem = malloc(exec.bytes);
    if (!status) status = attn_append(&plan, &layer, &io, s->new_k, s->new_v, &error);
    if (!status) status = attn_forward(&plan, &layer, &io, &exec, &error);
    CHECK(!status, "%s", error.text);
    free(words);
    free(exec.mem);
}

static void compare_results(const graph_result *a, const graph_result *b, const graph_step *s, int step) {
    int rows = s->q_len[0] + s->q_len[1] + s->q_len[2];
    int i;
    for (i = 0; i < rows * G_HEADS * G_DIM; i++) {
        float x = (&a->o[0][0][0])[i] - (&b->o[0][0][0])[i];
        CHECK(x < 2e-5f && x > -2e-5f, "step %d: element %d of o is off by %g", step, i, (double)x);
    }
    for (i = 0; i < rows * G_HEADS; i++) {
        float x = (&a->lse[0][0])[i] - (&b->lse[0][0])[i];
        CHECK(x < 5e-5f && x > -5e-5f, "step %d: lse %d is off by %g", step, i, (double)x);
    }
    same_counters(&a->counters, &b->counters, "graph");
}

/* A captured step, replayed with other lengths, pages, data and thresholds: the bits of the same step called directly,
   and the results of attn.h. */
static void replays(void) {
    static graph_step step;
    static graph_result want, got, direct;
    static const int32_t decode[G_N] = { ATTN_DECODE, ATTN_DECODE, ATTN_DECODE };
    graph_step *s;
    graph_result *result;
    void *phase;
    void *words;
    void *graph;
    attn_batch batch;
    attn_layer layer;
    attn_io io;
    attn_exec exec;
    attn_plan plan;
    attn_error error;
    test_rng r = { 11 };
    int skipped[3];
    int i;
    if (!gpu_ready()) return;
    s = (graph_step *)gpu_alloc(sizeof *s);
    result = (graph_result *)gpu_alloc(sizeof *result);
    phase = gpu_upload(decode, sizeof decode);
    graph_call(&batch, &layer, &io, s, result);
    batch.phase = (const int32_t *)phase;
    words = gpu_alloc(attn_plan_bytes(&batch, &layer));
    CHECK(!attn_cuda_prepare(gpu.cuda, &layer, 1, -1, &error), "%s", error.text);
    fill_step(&step, 0, &r);
    gpu_write(s, &step, sizeof step);
    memset(&exec, 0, sizeof exec);
    exec.stream = gpu.stream;
    CHECK(!attn_cuda_plan_make(gpu.cuda, &plan, &batch, &layer, words, attn_plan_bytes(&batch, &layer), gpu.stream,
                               &error), "%s", error.text);
    exec.bytes = attn_cuda_exec_bytes(gpu.cuda, &plan);
    exec.mem = gpu_alloc(exec.bytes);
    gpu_record();
    graph_launch(&batch, &layer, &io, s, &plan, words, &exec);
    graph = gpu_recorded();
    for (i = 0; i < 3; i++) {
        if (i > 0) fill_step(&step, i, &r);
        gpu_write(s, &step, sizeof step);
        gpu_fill(result, 0, sizeof *result);
        gpu_fill(words, 0xFF, attn_plan_bytes(&batch, &layer));
        gpu_replay(graph);
        gpu_wait();
        gpu_read(&got, result, sizeof got);
        gpu_write(s, &step, sizeof step);
        gpu_fill(result, 0, sizeof *result);
        graph_launch(&batch, &layer, &io, s, &plan, words, &exec);
        gpu_wait();
        gpu_read(&direct, result, sizeof direct);
        CHECK(!memcmp(&got, &direct, sizeof got), "step %d", i);
        graph_here(&step, &want);
        compare_results(&got, &want, &step, i);
        skipped[i] = (int)got.counters.v_skipped;
    }
    CHECK(skipped[0] > 10 && skipped[1] != skipped[0], "skipped: %d, %d", skipped[0], skipped[1]);
    gpu.cuGraphExecDestroy(graph);
    gpu_free(s);
    gpu_free(result);
    gpu_free(phase);
    gpu_free(words);
    gpu_free(exec.mem);
}

int main(int argc, char **argv) {
    if (argc > 1) test.only = argv[1];
    random_count = argc > 2 ? atoi(argv[2]) : test_draws(random_count);
    if (argc > 3) random_seed = strtoull(argv[3], NULL, 10);
    gpu_open();
    case_use(&device);
    test_run("cuda_pairs_are_run", pairs_are_run);
    test_run("cuda_first", first);
    test_run("cuda_random", random_cases);
    test_run("cuda_special_shapes", special_shapes);
    test_run("cuda_any_layout", any_layout);
    test_run("cuda_any_chunks", any_chunks);
    test_run("cuda_any_neighbours", any_neighbours);
    test_run("cuda_other_masks", other_masks);
    test_run("cuda_trees_and_lists", trees_and_lists);
    test_run("cuda_steep_units", steep_units);
    test_run("cuda_nan_stays", nan_stays);
    test_run("cuda_ring_equals_window", ring_equals_window);
    test_run("cuda_bad_page", bad_page);
    test_run("cuda_skips_as_attn_h", skips_as_attn_h);
    test_run("cuda_skip_bits", skip_bits);
    test_run("cuda_replays", replays);
    gpu_close();
    return test_close("cuda_attention");
}
