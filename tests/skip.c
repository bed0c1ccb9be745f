/* skip.c - skip-softmax: which tiles fall, what the counters and the certificate say, and what the outputs lose.

   Logits are set directly: the scale is 1 and query row r is a multiple c of the unit vector of dim r % head_dim, so
   that its logit for a key is c * k[r % head_dim], rounded once, in every instruction set. Two oracles in double, both
   of this file: one transcribes the algorithm with the vote units, tiles and runs of this implementation and predicts
   every decision (inputs in which a decision is within rounding of a tie are drawn again); the other knows nothing of
   the rule and reads off the output which tiles were skipped, from values that are one-hot in the tile's number.
   With SKIP_FIGURES in the environment the measured figures are printed. */
#define _DEFAULT_SOURCE
#include "../attn.h"
#include "isas.h"
#include "test.h"
#include "threads.h"

#include <math.h>
#if defined(__unix__) || defined(__APPLE__)
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#endif

enum { MOST = 8, RUN = 2048, TILE = 64 };

/* Where runs start: PREFILL in one, PREFILL in units of 2,048 keys, DECODE in groups of 2,048 keys. */
typedef enum form { WHOLE, SPLIT, DECODING, FORMS } form;

static const char *const form_names[FORMS] = { "prefill", "split prefill", "decode" };

/* A call. Data are logical: q [row][head][dim], k and v [key][kv_head][dim], requests one after another. */
typedef struct world {
    attn_layer layer;
    int n;
    int32_t q_len[MOST], kv_len[MOST], phase[MOST], prefix[MOST];
    float lambda[MOST];
    int lanes;                      /* of exec; above 1 they run one after another, in a shuffled order */
    int threads;                    /* or at the same time */
    int with_sinks, with_alibi, with_tree, with_scales, no_counters;
    /* from here on made by open_world */
    int rows, group, kv_heads, head_dim, v_dim;
    int first_row[MOST + 1], first_key[MOST + 1];
    int exact;                      /* the logits are known to the bit */
    float *q, *k, *v, *sinks, *alibi, *k_scale, *v_scale;
    uint32_t *tree;
    float *o, *lse, *certificate;
    attn_counters count;
    int strips, tasks;
} world;

static void *need(size_t bytes) {
    void *p = calloc(bytes ? bytes : 1, 1);
    if (!p) {
        printf("out of memory\n");
        exit(1);
    }
    return p;
}

static float *floats(size_t a, size_t b, size_t c) {
    return (float *)need(a * b * c * sizeof(float));
}

static int most(int a, int b) {
    return a > b ? a : b;
}

static int least(int a, int b) {
    return a < b ? a : b;
}

/* ---- worlds ----------------------------------------------------------------------------------------------------- */

/* One request of the form, skipping off; the caller changes what it likes before open_world. */
static void plain_world(world *w, form f, int heads, int kv_heads, int q_len, int kv_len) {
    memset(w, 0, sizeof *w);
    w->n = 1;
    w->q_len[0] = q_len;
    w->kv_len[0] = kv_len;
    w->phase[0] = f == DECODING ? ATTN_DECODE : ATTN_PREFILL;
    w->layer.heads = heads;
    w->layer.kv_heads = kv_heads;
    w->layer.head_dim = 16;
    w->layer.v_dim = 4;
    w->layer.scale = 1;
    w->layer.key_tile = TILE;
    w->layer.split_keys = f == SPLIT ? RUN : 0;
}

static void add_request(world *w, int q_len, int kv_len, int phase) {
    w->q_len[w->n] = q_len;
    w->kv_len[w->n] = kv_len;
    w->phase[w->n] = phase;
    w->n++;
}

static void open_world(world *w) {
    size_t rows, keys, heads = (size_t)w->layer.heads;
    int i;
    w->kv_heads = w->layer.kv_heads ? w->layer.kv_heads : w->layer.heads;
    w->group = w->layer.heads / w->kv_heads;
    w->head_dim = w->layer.head_dim;
    w->v_dim = w->layer.v_dim ? w->layer.v_dim : w->head_dim;
    for (i = 0; i < w->n; i++) {
        w->first_row[i + 1] = w->first_row[i] + w->q_len[i];
        w->first_key[i + 1] = w->first_key[i] + w->kv_len[i];
    }
    w->rows = w->first_row[w->n];
    rows = (size_t)w->rows;
    keys = (size_t)w->first_key[w->n];
    w->q = floats(rows, heads, (size_t)w->head_dim);
    w->k = floats(keys, (size_t)w->kv_heads, (size_t)w->head_dim);
    w->v = floats(keys, (size_t)w->kv_heads, (size_t)w->v_dim);
    w->k_scale = floats(keys, (size_t)w->kv_heads, 1);
    w->v_scale = floats(keys, (size_t)w->kv_heads, 1);
    w->sinks = floats(heads, 1, 1);
    w->alibi = floats(heads, 1, 1);
    w->tree = (uint32_t *)need(rows * 4);
    w->o = floats(rows, heads, (size_t)w->v_dim);
    w->lse = floats(rows, heads, 1);
    w->certificate = floats(rows, heads, 1);
}

static void close_world(world *w) {
    free(w->q);
    free(w->k);
    free(w->v);
    free(w->k_scale);
    free(w->v_scale);
    free(w->sinks);
    free(w->alibi);
    free(w->tree);
    free(w->o);
    free(w->lse);
    free(w->certificate);
}

static float *query(const world *w, int request, int row, int head) {
    return w->q + ((size_t)(w->first_row[request] + row) * (size_t)w->layer.heads + (size_t)head) * (size_t)w->head_dim;
}

static float *key_row(const world *w, int request, int key, int kv_head) {
    return w->k + ((size_t)(w->first_key[request] + key) * (size_t)w->kv_heads + (size_t)kv_head) * (size_t)w->head_dim;
}

static float *value_row(const world *w, int request, int key, int kv_head) {
    return w->v + ((size_t)(w->first_key[request] + key) * (size_t)w->kv_heads + (size_t)kv_head) * (size_t)w->v_dim;
}

static size_t out_at(const world *w, int request, int row, int head) {
    return (size_t)(w->first_row[request] + row) * (size_t)w->layer.heads + (size_t)head;
}

/* Packed row: the tokens' rows of one kv head, a token's heads beside each other. */
static int packed(const world *w, int row, int head) {
    return row * w->group + head % w->group;
}

/* Query rows as multiples of unit vectors, 1 - spread .. 1 + spread. */
static void fill_queries(world *w, test_rng *r, float spread) {
    int i, row, head;
    w->exact = 1;
    for (i = 0; i < w->n; i++) {
        for (row = 0; row < w->q_len[i]; row++) {
            for (head = 0; head < w->layer.heads; head++) {
                float c = 1.0f + spread * test_uniform(r);
                query(w, i, row, head)[packed(w, row, head) % w->head_dim] = c;
            }
        }
    }
}

static double normal(test_rng *r) {
    double u = ((double)(test_next(r) >> 11) + 1.0) / 9007199254740993.0;
    double v = (double)(test_next(r) >> 11) / 9007199254740992.0;
    return sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v);
}

/* Our generator of logits: per kv head and dim a drift from tile to tile, AR(1) with rho .9 and standard deviation
   `drift`, of which `common` (a share of the variance) is the same in all dims; noise per key; keys 0 .. 3 at `sink`.
   So `common` is the correlation between the rows of a group. */
static void fill_drift(world *w, test_rng *r, double drift, double common, double noise, double sink) {
    double *level = (double *)need(((size_t)w->head_dim + 1) * sizeof *level);
    double keep = 0.9, fresh = sqrt(1.0 - keep * keep);
    int i, h, key, x;
    for (i = 0; i < w->n; i++) {
        for (h = 0; h < w->kv_heads; h++) {
            for (x = 0; x <= w->head_dim; x++) level[x] = normal(r);
            for (key = 0; key < w->kv_len[i]; key++) {
                float *k = key_row(w, i, key, h);
                for (x = 0; x <= w->head_dim && key > 0 && key % TILE == 0; x++) {
                    level[x] = keep * level[x] + fresh * normal(r);
                }
                for (x = 0; x < w->head_dim; x++) {
                    double own = sqrt(common) * level[w->head_dim] + sqrt(1.0 - common) * level[x];
                    k[x] = (float)((key < 4 && sink > 0 ? sink : drift * own) + noise * normal(r));
                }
            }
        }
    }
    free(level);
}

static void fill_constant(world *w, int request, int first, int last, float logit) {
    int key, h, x;
    for (key = first; key < last; key++) {
        for (h = 0; h < w->kv_heads; h++) {
            for (x = 0; x < w->head_dim; x++) key_row(w, request, key, h)[x] = logit;
        }
    }
}

static void fill_values(world *w, test_rng *r) {
    size_t count = (size_t)w->first_key[w->n] * (size_t)w->kv_heads * (size_t)w->v_dim, i;
    for (i = 0; i < count; i++) w->v[i] = test_uniform(r);
}

/* ---- calls ------------------------------------------------------------------------------------------------------ */

static int row_count(const world *w) {
    return w->rows * w->layer.heads;
}

/* The types of a cache; int8 has no exponent. */
static const struct {
    const char *name;
    int bytes, mantissa, bias;
} formats[] = { { "f32", 4, 23, 127 }, { "f16", 2, 10, 15 }, { "bf16", 2, 7, 127 }, { "e4m3", 1, 3, 7 },
                { "e5m2", 1, 2, 15 }, { "int8", 1, 0, 0 } };

/* The code of a float type that is nearest to *x, which becomes what the code means. */
static unsigned encode(int type, float *x) {
    int mantissa = formats[type].mantissa, bias = formats[type].bias, exponent;
    unsigned sign = *x < 0;
    double steps;
    frexp((double)*x, &exponent);
    exponent = *x != 0 ? most(exponent - 1, 1 - bias) : 1 - bias;
    steps = floor(ldexp(fabs((double)*x), mantissa - exponent) + 0.5);
    *x = (float)ldexp(sign ? -steps : steps, exponent - mantissa);
    return (sign << (8 * formats[type].bytes - 1)) + ((unsigned)(exponent + bias - 1) << mantissa) + (unsigned)steps;
}

/* Writes a row to a cache; what is stored there becomes the logical data. scale: of the row; int8 sets it. */
static void store(const world *w, float *x, int dim, float *scale, char *to) {
    int type = (int)w->layer.kv_type, bytes = formats[type].bytes, i;
    float top = 0, s;
    if (type == ATTN_F32) {
        memcpy(to, x, (size_t)dim * sizeof *x);
        return;
    }
    for (i = 0; i < dim; i++) top = fabsf(x[i]) > top ? fabsf(x[i]) : top;
    if (type == ATTN_INT8) *scale = top > 0 ? top / 127.0f : 1.0f;
    s = w->with_scales ? *scale : 1.0f;
    for (i = 0; i < dim; i++, to += bytes) {
        float y = x[i] / s;
        unsigned code;
        uint16_t half;
        if (type == ATTN_INT8) y = (float)floor((double)y + 0.5);
        code = type == ATTN_INT8 ? (unsigned)(int)y : encode(type, &y);
        x[i] = y * s;
        half = (uint16_t)code;
        if (bytes == 1) *to = (char)(code & 255);
        if (bytes == 2) memcpy(to, &half, sizeof half);
    }
}

/* The physical cache and its page table; pages in a shuffled order, NaN where nothing is stored. Without pages a slot
   is a page, and the order that of the slots. */
typedef struct cache {
    char *k, *v;
    float *k_scale, *v_scale;       /* per key */
    int32_t *table;
    int pages, columns;
} cache;

/* Slots of a request. */
static int slots_of(const world *w, int request) {
    return w->layer.ring ? w->layer.ring : w->kv_len[request];
}

static void open_table(const world *w, cache *c) {
    int size = w->layer.page_size, slots = size ? size : 1, i, j, used = 0;
    int32_t *order;
    for (i = 0; i < w->n; i++) {
        c->columns = most(c->columns, (slots_of(w, i) + slots - 1) / slots);
        c->pages += (slots_of(w, i) + slots - 1) / slots;
    }
    c->table = (int32_t *)need((size_t)w->n * (size_t)most(1, c->columns) * sizeof *c->table);
    order = (int32_t *)need((size_t)c->pages * sizeof *order);
    for (i = 0; i < c->pages; i++) order[i] = i;
    for (i = c->pages - 1; i > 0 && size; i--) {
        int32_t swap = order[i];
        j = (int)((unsigned)i * 7919u % (unsigned)(i + 1));
        order[i] = order[j];
        order[j] = swap;
    }
    for (i = 0; i < w->n; i++) {
        for (j = 0; j * slots < slots_of(w, i); j++) c->table[i * c->columns + j] = order[used++];
    }
    free(order);
}

/* In a ring later keys take the slots of earlier ones. */
static void store_key(const world *w, const cache *c, int request, int key, int head) {
    int slots = most(1, w->layer.page_size), slot = w->layer.ring ? key % w->layer.ring : key;
    int page = c->table[request * c->columns + slot / slots], per_key = w->layer.scale_kind == ATTN_SCALE_PER_KEY;
    size_t to = (size_t)((page * slots + slot % slots) * w->kv_heads + head);
    size_t bytes = (size_t)formats[w->layer.kv_type].bytes, width = (size_t)w->v_dim * sizeof *w->v;
    int of = w->layer.scale_kind == ATTN_SCALE_PER_REQUEST ? request * w->kv_heads + head : head;
    float *k = key_row(w, request, key, head), *v = value_row(w, request, key, head);
    store(w, k, w->head_dim, per_key ? &c->k_scale[to] : &w->k_scale[of], c->k + to * (size_t)w->head_dim * bytes);
    if (w->layer.flags & ATTN_V_IN_K) {
        memcpy(v, k, width);
    } else {
        store(w, v, w->v_dim, per_key ? &c->v_scale[to] : &w->v_scale[of], c->v + to * (size_t)w->v_dim * bytes);
    }
}

static void open_cache(const world *w, cache *c) {
    size_t slot_heads, bytes = (size_t)formats[w->layer.kv_type].bytes;
    int i, key, h;
    memset(c, 0, sizeof *c);
    open_table(w, c);
    slot_heads = (size_t)c->pages * (size_t)most(1, w->layer.page_size) * (size_t)w->kv_heads;
    c->k = (char *)need(slot_heads * (size_t)w->head_dim * bytes);
    c->v = (char *)need(slot_heads * (size_t)w->v_dim * bytes);
    memset(c->k, 0xff, slot_heads * (size_t)w->head_dim * bytes);
    memset(c->v, 0xff, slot_heads * (size_t)w->v_dim * bytes);
    c->k_scale = floats(slot_heads, 1, 1);
    c->v_scale = floats(slot_heads, 1, 1);
    for (i = 0; i < w->n; i++) {
        for (key = 0; key < w->kv_len[i]; key++) {
            for (h = 0; h < w->kv_heads; h++) store_key(w, c, i, key, h);
        }
    }
}

static void close_cache(cache *c) {
    free(c->k);
    free(c->v);
    free(c->k_scale);
    free(c->v_scale);
    free(c->table);
}

/* A parallel_for: the lanes one after another, the last first. */
static void run_lanes(void *user, int lanes, void (*fn)(void *ctx, int lane), void *ctx) {
    (void)user;
    while (lanes > 0) fn(ctx, --lanes);
}

static void add_counters(attn_counters *a, const attn_counters *b) {
    int i;
    a->tiles += b->tiles;
    a->v_skipped += b->v_skipped;
    a->softmax_skipped += b->softmax_skipped;
    a->dense_tiles += b->dense_tiles;
    for (i = 0; i < 64; i++) a->histogram[i] += b->histogram[i];
}

/* A plan of a world, and everything that a call with it takes. */
typedef struct call {
    attn_batch batch;
    attn_io io;
    attn_exec exec;
    attn_plan plan;
    attn_counters *counters;        /* one more than lanes */
    cache cache;
    void *memory;
    int status;
} call;

static void fill_io(const world *w, call *c) {
    int latent = (w->layer.flags & ATTN_V_IN_K) != 0, per_key = w->layer.scale_kind == ATTN_SCALE_PER_KEY;
    attn_io *io = &c->io;
    io->q = w->q;
    io->k = c->cache.k;
    io->v = latent ? NULL : c->cache.v;
    io->o = w->o;
    io->lse = w->lse;
    io->certificate = w->certificate;
    io->counters = w->no_counters ? NULL : c->counters;
    io->lambda = w->layer.skip.mode == ATTN_SKIP_LAMBDA ? w->lambda : NULL;
    io->sinks = w->with_sinks ? w->sinks : NULL;
    io->alibi = w->with_alibi ? w->alibi : NULL;
    io->tree = w->with_tree ? w->tree : NULL;
    if (w->with_scales) io->k_scale = per_key ? c->cache.k_scale : w->k_scale;
    if (w->with_scales && !latent) io->v_scale = per_key ? c->cache.v_scale : w->v_scale;
    io->page_table = w->layer.page_size ? c->cache.table : NULL;
    io->page_table_row = w->layer.page_size ? c->cache.columns : 0;
    io->pages = c->cache.pages;
}

static void open_call(const world *w, call *c) {
    attn_error error;
    size_t bytes;
    memset(c, 0, sizeof *c);
    open_cache(w, &c->cache);
    c->counters = (attn_counters *)need((size_t)(most(1, w->lanes) + 1) * sizeof *c->counters);
    c->batch.n = w->n;
    c->batch.q_len = w->q_len;
    c->batch.kv_len = w->kv_len;
    c->batch.phase = w->phase;
    c->batch.prefix = w->prefix;
    fill_io(w, c);
    bytes = attn_plan_bytes(&c->batch, &w->layer);
    c->memory = need(bytes);
    c->status = attn_plan_make(&c->plan, &c->batch, &w->layer, c->memory, bytes, &error);
    CHECK(!c->status, "attn_plan_make: %s", error.text);
    c->exec.lanes = w->lanes;
    c->exec.parallel_for = w->threads ? thread_lanes : run_lanes;
    c->exec.bytes = c->status ? 0 : attn_exec_bytes(&c->plan, w->lanes);
    c->exec.mem = need(c->exec.bytes);
    memset(c->exec.mem, 0xff, c->exec.bytes);
}

/* Outputs are NaN before the call; a counter behind the last lane's must stay as it is. */
static void run_call(world *w, call *c) {
    attn_counters zero = { 0 };
    attn_error error;
    int i, lanes = most(1, w->lanes);
    memset(w->o, 0xff, (size_t)row_count(w) * (size_t)w->v_dim * sizeof *w->o);
    memset(w->lse, 0xff, (size_t)row_count(w) * sizeof *w->lse);
    memset(w->certificate, 0xff, (size_t)row_count(w) * sizeof *w->certificate);
    memset(c->counters, 0, (size_t)(lanes + 1) * sizeof *c->counters);
    memset(&w->count, 0, sizeof w->count);
    if (c->status) return;
    c->status = attn_forward(&c->plan, &w->layer, &c->io, &c->exec, &error);
    CHECK(!c->status, "attn_forward: %s", error.text);
    w->strips = c->plan.strips;
    w->tasks = c->plan.tasks;
    for (i = 0; i < lanes; i++) add_counters(&w->count, &c->counters[i]);
    CHECK(!memcmp(&c->counters[lanes], &zero, sizeof zero), "counters behind the last lane");
}

static void close_call(call *c) {
    free(c->exec.mem);
    free(c->memory);
    close_cache(&c->cache);
    free(c->counters);
}

static void forward(world *w) {
    call c;
    open_call(w, &c);
    run_call(w, &c);
    close_call(&c);
}

/* mode with one value for both phases, and for every request */
static void set_skip(world *w, int mode, float value) {
    int i;
    w->layer.skip.mode = mode;
    w->layer.skip.prefill = mode == ATTN_SKIP_LAMBDA ? 0 : value;
    w->layer.skip.decode = w->layer.skip.prefill;
    for (i = 0; i < MOST; i++) w->lambda[i] = mode == ATTN_SKIP_LAMBDA ? value : 0;
}

static int isas(attn_isa set[4]) {
    int n = 0, isa;
    for (isa = ATTN_ISA_SCALAR; isa; isa = next_isa(isa)) set[n++] = (attn_isa)isa;
    return n;
}

/* ---- what rows see, and their logits ---------------------------------------------------------------------------- */

static int ones(uint32_t bits) {
    int n = 0;
    for (; bits; bits &= bits - 1) n++;
    return n;
}

static uint32_t tree_row(const world *w, int request, int row) {
    return w->tree[w->first_row[request] + row];
}

static int position_of_key(const world *w, int request, int key) {
    int past = w->kv_len[request] - w->q_len[request];
    if (w->layer.mask != ATTN_TREE || key < past) return key;
    return past + ones(tree_row(w, request, key - past)) - 1;
}

static int position_of_row(const world *w, int request, int row) {
    return position_of_key(w, request, w->kv_len[request] - w->q_len[request] + row);
}

static int sees(const world *w, int request, int row, int key) {
    const attn_layer *l = &w->layer;
    int past = w->kv_len[request] - w->q_len[request];
    int position = position_of_row(w, request, row), other = position_of_key(w, request, key);
    int right = l->mask == ATTN_CAUSAL || l->mask == ATTN_TREE ? 0 : l->window_right;
    if (l->mask == ATTN_CAUSAL && key > position) return 0;
    if (l->mask == ATTN_CAUSAL && l->chunk && key / l->chunk != position / l->chunk) return 0;
    if (l->mask == ATTN_BLOCK && key >= past + l->chunk * (row / l->chunk + 1)) return 0;
    if (l->mask == ATTN_PREFIX && key >= w->prefix[request] && key > position) return 0;
    if (l->mask == ATTN_TREE && key >= past && !(tree_row(w, request, row) >> (key - past) & 1)) return 0;
    if ((l->window_left || right) && key < l->sink_keys) return 1;
    if (l->window_left && position - other >= l->window_left) return 0;
    return !right || other - position < right;
}

/* s[key] = the logit, -inf if the row does not see the key. Returns by how many roundoffs the logits may be off. */
static double row_logits(const world *w, int request, int row, int head, double *s) {
    const float *q = query(w, request, row, head);
    int x = packed(w, row, head) % w->head_dim, d, key;
    double reach = 0;
    for (key = 0; key < w->kv_len[request]; key++) {
        const float *k = key_row(w, request, key, head / w->group);
        double sum = 0, size = 0;
        s[key] = -INFINITY;
        if (!sees(w, request, row, key)) continue;
        if (w->exact) {
            volatile float product = q[x] * k[x];
            sum = (double)product;
        }
        for (d = 0; d < w->head_dim && !w->exact; d++) {
            double one = (double)w->layer.scale * (double)q[d] * (double)k[d];
            sum += one;
            size += fabs(one);
        }
        if (w->layer.softcap > 0) sum = (double)w->layer.softcap * tanh(sum / (double)w->layer.softcap);
        if (w->with_alibi) {
            int distance = position_of_key(w, request, key) - position_of_row(w, request, row);
            sum += (double)w->alibi[head] * (double)distance;
            size += fabs((double)w->alibi[head] * (double)distance);
        }
        s[key] = sum;
        if (size > reach) reach = size;
    }
    return reach;
}

/* ---- the oracle of the algorithm -------------------------------------------------------------------------------- */

typedef struct oracle {
    double *o, *lse, *certificate, *certificate_most, *slack;
    attn_counters count;
    int tie;                        /* a decision hangs on a rounding */
} oracle;

/* One row of a vote unit: mass of the run, as sums of exp(logit - m), and where the row's logits are. */
typedef struct voter {
    double m, kept, skipped;
    const double *s;
    int row, head, keys;            /* keys: so many the row may see, the measure of a budget */
} voter;

/* One vote unit of a request. */
typedef struct unit {
    const world *w;
    oracle *a;
    int request, kv_head, rows, run_keys, tiles;
    double gap, eps;                /* FACTOR, LAMBDA: skip above; EPS; 0: no */
    int dense;
    voter *voters;
    char *skipped;                  /* per tile */
    double *wide;                   /* per tile: keys from the first to the last one that a row of the unit sees */
} unit;

static double top_of(const voter *v, int first, int last) {
    double top = -INFINITY;
    int key;
    for (key = first; key < last; key++) top = v->s[key] > top ? v->s[key] : top;
    return top;
}

static double mass_of(const voter *v, int first, int last, double m) {
    double sum = 0;
    int key;
    for (key = first; key < last; key++) {
        if (v->s[key] > -INFINITY) sum += exp(v->s[key] - m);
    }
    return sum;
}

/* Keys first .. last - 1 that count for the row's budget: those it sees; in a tree, those that it would see at its
   position if the mask were CAUSAL. */
static int budget_keys(const unit *u, const voter *v, int first, int last) {
    const attn_layer *l = &u->w->layer;
    int position = position_of_row(u->w, u->request, v->row), n = 0, key;
    for (key = first; key < last; key++) {
        int inside = !l->window_left || key < l->sink_keys || position - key < l->window_left;
        n += l->mask == ATTN_TREE ? key <= position && inside : v->s[key] > -INFINITY;
    }
    return n;
}

/* Puts mass in the frame of the larger of both maxima. */
static void charge(voter *v, double m, double mass, int skip) {
    double top = v->m > m ? v->m : m;
    double scale = v->m > -INFINITY ? exp(v->m - top) : 0;
    v->kept = v->kept * scale + (skip ? 0 : mass * exp(m - top));
    v->skipped = v->skipped * scale + (skip ? mass * exp(m - top) : 0);
    v->m = top;
}

/* A run that starts behind key tile 0 takes that tile as its reference. */
static void open_run(const unit *u, int start) {
    int i, last = least(u->w->layer.key_tile, u->w->kv_len[u->request]);
    for (i = 0; i < u->rows; i++) {
        voter *v = &u->voters[i];
        double top = top_of(v, 0, last);
        v->m = -INFINITY;
        v->kept = 0;
        v->skipped = 0;
        if (start > 0 && top > -INFINITY) charge(v, top, mass_of(v, 0, last, top), 0);
    }
}

/* The smallest distance of a row's largest logit below its reference; -1: no row sees a key. */
static double vote(const unit *u, int first, int last) {
    double gap = -1;
    int i;
    for (i = 0; i < u->rows; i++) {
        const voter *v = &u->voters[i];
        double top = top_of(v, first, last), below = v->m - top;
        if (top == -INFINITY) continue;
        if (u->w->exact && below > 0) {
            volatile float rounded = (float)below;
            below = (double)rounded;
        }
        if (!(below > 0)) below = 0;
        if (gap < 0 || below < gap) gap = below;
    }
    return gap;
}

/* EPS: may every row lose the tile? slack widens or narrows the budgets. */
static int affordable(const unit *u, int start, int first, int last, double slack) {
    int i;
    for (i = 0; i < u->rows; i++) {
        voter after = u->voters[i];
        double top = top_of(&after, first, last), share;
        if (top == -INFINITY) continue;
        share = (double)budget_keys(u, &after, start, last) / (double)after.keys;
        charge(&after, top, mass_of(&after, first, last, top), 1);
        if (after.skipped > slack * u->eps * share * after.kept) return 0;
    }
    return 1;
}

static int decide(const unit *u, double gap, int start, int first, int last) {
    double margin = u->w->exact && !(u->w->layer.softcap > 0) ? 4e-6 : 3e-4;
    if (u->gap > 0) {
        if (fabs(gap - u->gap) < margin) u->a->tie = 1;
        return gap > u->gap;
    }
    if (!(u->eps > 0)) return 0;
    if (affordable(u, start, first, last, 1 - 5e-4) != affordable(u, start, first, last, 1 + 5e-4)) u->a->tie = 1;
    return affordable(u, start, first, last, 1);
}

static void count_tile(const unit *u, double gap, int skip) {
    attn_counters *c = &u->a->count;
    double nearest = floor(gap * 2 + 0.5) / 2;
    int no_weights = u->w->phase[u->request] == ATTN_PREFILL && u->w->layer.skip.mode != ATTN_SKIP_EPS;
    int rounded = !u->w->exact || u->w->layer.softcap > 0;
    if (rounded && gap > 0 && gap < 32 && nearest > 0 && fabs(gap - nearest) < 3e-4) u->a->tie = 1;
    c->tiles++;
    c->dense_tiles += u->dense;
    c->v_skipped += skip;
    c->softmax_skipped += skip && no_weights;
    c->histogram[gap < 31.5 ? (int)(gap * 2) : 63]++;
}

static void do_tile(const unit *u, int start, int tile) {
    int size = u->w->layer.key_tile, first = tile * size, last = least(first + size, u->w->kv_len[u->request]);
    int i, key, from = -1, to = -1;
    double gap = vote(u, first, last);
    if (gap < 0) return;
    for (key = first; key < last; key++) {
        for (i = 0; i < u->rows; i++) {
            if (u->voters[i].s[key] == -INFINITY) continue;
            from = from < 0 ? key : from;
            to = key;
        }
    }
    u->wide[tile] = to - from + 1;
    u->skipped[tile] = (char)decide(u, gap, start, first, last);
    count_tile(u, gap, u->skipped[tile]);
    for (i = 0; i < u->rows; i++) {
        voter *v = &u->voters[i];
        double top = top_of(v, first, last);
        if (top > -INFINITY) charge(v, top, mass_of(v, first, last, top), u->skipped[tile]);
    }
}

/* Output, lse and certificate of a row, now that the decisions are known. */
static void finish_voter(const unit *u, const voter *v, double reach) {
    const world *w = u->w;
    int kv = w->kv_len[u->request], size = w->layer.key_tile, key, tile, d;
    size_t at = out_at(w, u->request, v->row, v->head);
    int bounded = w->phase[u->request] == ATTN_PREFILL && w->layer.skip.mode != ATTN_SKIP_EPS;
    double top = top_of(v, 0, kv), kept = 0, lost = 0, lost_most = 0, sink = 0, *o = u->a->o + at * (size_t)w->v_dim;
    if (w->with_sinks) top = top > (double)w->sinks[v->head] ? top : (double)w->sinks[v->head];
    if (w->with_sinks) sink = exp((double)w->sinks[v->head] - top);
    for (key = 0; key < kv; key++) {
        double p = v->s[key] > -INFINITY ? exp(v->s[key] - top) : 0;
        if (u->skipped[key / size]) continue;
        kept += p;
        for (d = 0; d < w->v_dim && p > 0; d++) o[d] += p * (double)value_row(w, u->request, key, u->kv_head)[d];
    }
    for (tile = 0; tile < u->tiles; tile++) {
        int last = least((tile + 1) * size, kv);
        double largest = top_of(v, tile * size, last), exact, bound;
        if (!u->skipped[tile] || largest == -INFINITY) continue;
        exact = mass_of(v, tile * size, last, top);
        bound = u->wide[tile] * exp(largest - top);
        lost += bounded && w->layer.mask != ATTN_TREE ? bound : exact;
        lost_most += !bounded ? exact : w->layer.mask == ATTN_TREE ? size * exp(largest - top) : bound;
    }
    for (d = 0; d < w->v_dim && kept > 0; d++) o[d] /= kept + sink;
    u->a->lse[at] = kept + sink > 0 ? top + log(kept + sink) : -INFINITY;
    u->a->certificate[at] = lost > 0 ? lost / (kept + sink + lost) : 0;
    u->a->certificate_most[at] = lost_most > 0 ? lost_most / (kept + sink + lost_most) : 0;
    u->a->slack[at] = 2e-5 + 5e-7 * reach;
}

/* Rows first .. first + rows - 1 of a kv head vote together. */
static void do_unit(const world *w, oracle *a, int request, int kv_head, int first, int rows) {
    int kv = w->kv_len[request], size = w->layer.key_tile, i, start, tile;
    double *s = (double *)need((size_t)rows * (size_t)kv * sizeof *s);
    double *reach = (double *)need((size_t)rows * sizeof *reach);
    float value = w->phase[request] == ATTN_PREFILL ? w->layer.skip.prefill : w->layer.skip.decode;
    unit u;
    memset(&u, 0, sizeof u);
    u.w = w;
    u.a = a;
    u.request = request;
    u.kv_head = kv_head;
    u.rows = rows;
    u.tiles = (kv + size - 1) / size;
    u.voters = (voter *)need((size_t)rows * sizeof *u.voters);
    u.skipped = (char *)need((size_t)u.tiles);
    u.wide = (double *)need((size_t)u.tiles * sizeof *u.wide);
    u.run_keys = w->layer.split_keys ? w->layer.split_keys : most(1, kv);
    if (w->phase[request] == ATTN_DECODE) u.run_keys = RUN;
    if (w->layer.skip.mode == ATTN_SKIP_LAMBDA) value = w->lambda[request];
    if (w->layer.skip.mode == ATTN_SKIP_EPS) u.eps = (double)value;
    if ((w->layer.skip.mode == ATTN_SKIP_FACTOR || w->layer.skip.mode == ATTN_SKIP_LAMBDA) && value > 0) {
        u.gap = -log((double)value) + (w->layer.skip.mode == ATTN_SKIP_FACTOR ? log((double)kv) : 0);
        u.dense = u.gap <= 0;
    }
    for (i = 0; i < rows; i++) {
        voter *v = &u.voters[i];
        v->row = (first + i) / w->group;
        v->head = kv_head * w->group + (first + i) % w->group;
        v->s = s + (size_t)i * (size_t)kv;
        reach[i] = row_logits(w, request, v->row, v->head, s + (size_t)i * (size_t)kv);
        v->keys = budget_keys(&u, v, 0, kv);
    }
    for (start = 0; start < kv && w->layer.skip.mode; start += u.run_keys) {
        open_run(&u, start);
        for (tile = start / size; tile * size < least(start + u.run_keys, kv); tile++) do_tile(&u, start, tile);
    }
    for (i = 0; i < rows; i++) finish_voter(&u, &u.voters[i], reach[i]);
    free(s);
    free(reach);
    free(u.voters);
    free(u.skipped);
    free(u.wide);
}

/* A strip is up to row_tile packed rows of a kv head; its rows vote by panels in PREFILL, together in DECODE. */
static void open_oracle(const world *w, oracle *a) {
    static const int lanes[] = { 0, 16, 16, 64, 64, 64, 16 };
    int strip = w->layer.row_tile ? w->layer.row_tile : 256, i, h, first, row;
    size_t count = (size_t)row_count(w);
    memset(a, 0, sizeof *a);
    a->o = (double *)need(count * (size_t)w->v_dim * sizeof *a->o);
    a->lse = (double *)need(count * sizeof *a->lse);
    a->certificate = (double *)need(count * sizeof *a->certificate);
    a->certificate_most = (double *)need(count * sizeof *a->certificate_most);
    a->slack = (double *)need(count * sizeof *a->slack);
    for (i = 0; i < w->n; i++) {
        int rows = w->q_len[i] * w->group, panel = w->phase[i] == ATTN_PREFILL ? lanes[w->layer.isa] : strip;
        for (h = 0; h < w->kv_heads; h++) {
            for (first = 0; first < rows; first += strip) {
                int end = least(first + strip, rows);
                for (row = first; row < end; row += panel) do_unit(w, a, i, h, row, least(panel, end - row));
            }
        }
    }
}

static void close_oracle(oracle *a) {
    free(a->o);
    free(a->lse);
    free(a->certificate);
    free(a->certificate_most);
    free(a->slack);
}

static void describe(const world *w, char *text, size_t bytes) {
    const attn_layer *l = &w->layer;
    snprintf(text, bytes, "%s %s %s mode %d %g %g lambda %g heads %d/%d q %d kv %d of %d, tile %d split %d mask %d "
             "window %d %d sink keys %d chunk %d ring %d cap %g page %d", isa_name(l->isa), formats[l->kv_type].name,
             w->phase[0] == ATTN_DECODE ? "decode" : "prefill", l->skip.mode, (double)l->skip.prefill,
             (double)l->skip.decode, (double)w->lambda[0], l->heads, l->kv_heads, w->q_len[0], w->kv_len[0], w->n,
             l->key_tile, l->split_keys, l->mask, l->window_left, l->window_right, l->sink_keys, l->chunk, l->ring,
             (double)l->softcap, l->page_size);
}

static int differs(double got, double want, double slack) {
    if (want == -INFINITY) return !(got == -INFINITY);
    return !(fabs(got - want) <= slack);
}

/* Tolerances as in cases.c: 2e-5 for sums in f32, 5e-7 per unit of the logits' magnitude where they are sums. */
static void compare_outputs(const world *w, const oracle *a, const char *text) {
    int i, d;
    for (i = 0; i < row_count(w); i++) {
        double slack = a->slack[i], got = (double)w->certificate[i];
        double low = a->certificate[i] * (1 - 2 * slack) - 1e-34;
        double high = a->certificate_most[i] * (1 + 6e-5 + 2 * slack) + 1e-34;
        CHECK(!differs((double)w->lse[i], a->lse[i], slack + 2e-7 * fabs(a->lse[i])), "row %d: lse %.9g, not %.9g: %s",
              i, (double)w->lse[i], a->lse[i], text);
        CHECK(got >= low && got <= high, "row %d: certificate %.9g, not %.9g .. %.9g: %s", i, got, a->certificate[i],
              a->certificate_most[i], text);
        for (d = 0; d < w->v_dim; d++) {
            size_t at = (size_t)i * (size_t)w->v_dim + (size_t)d;
            CHECK(!differs((double)w->o[at], a->o[at], slack), "row %d dim %d: o %.9g, not %.9g: %s", i, d,
                  (double)w->o[at], a->o[at], text);
        }
    }
}

static void compare_counters(const attn_counters *got, const attn_counters *want, const char *text) {
    int i;
    CHECK(got->tiles == want->tiles, "%ld tiles, not %ld: %s", (long)got->tiles, (long)want->tiles, text);
    CHECK(got->v_skipped == want->v_skipped, "%ld of %ld tiles skipped, not %ld: %s", (long)got->v_skipped,
          (long)got->tiles, (long)want->v_skipped, text);
    CHECK(got->softmax_skipped == want->softmax_skipped, "%ld without exp, not %ld: %s", (long)got->softmax_skipped,
          (long)want->softmax_skipped, text);
    CHECK(got->dense_tiles == want->dense_tiles, "%ld dense tiles, not %ld: %s", (long)got->dense_tiles,
          (long)want->dense_tiles, text);
    for (i = 0; i < 64; i++) {
        CHECK(got->histogram[i] == want->histogram[i], "bin %d: %ld, not %ld: %s", i, (long)got->histogram[i],
              (long)want->histogram[i], text);
    }
}

/* Runs the world and compares everything with the oracle; 0 if the inputs are too close to a tie to tell. */
static int run_and_compare(world *w) {
    char text[300];
    oracle a;
    int tie;
    describe(w, text, sizeof text);
    forward(w);
    open_oracle(w, &a);
    tie = a.tie;
    if (!tie) {
        compare_counters(&w->count, &a.count, text);
        compare_outputs(w, &a, text);
    }
    close_oracle(&a);
    return !tie;
}

/* The subject is skipping: some tiles must fall, not all. */
static void some_skipped(const world *w) {
    char text[300];
    describe(w, text, sizeof text);
    CHECK(w->count.v_skipped > 0 && w->count.v_skipped < w->count.tiles, "%ld of %ld tiles skipped: %s",
          (long)w->count.v_skipped, (long)w->count.tiles, text);
}

/* ---- (a) nothing to skip: the bits of the dense kernel ---------------------------------------------------------- */

static void same_bits(const world *w, const float *o, const float *lse, const char *what) {
    size_t count = (size_t)row_count(w);
    int i, nonzero = 0;
    const char *isa = isa_name(w->layer.isa);
    CHECK(!memcmp(w->o, o, count * (size_t)w->v_dim * sizeof *o), "%s, %s: o differs from dense", isa, what);
    CHECK(!memcmp(w->lse, lse, count * sizeof *lse), "%s, %s: lse differs from dense", isa, what);
    for (i = 0; i < row_count(w); i++) nonzero += w->certificate[i] != 0;
    CHECK(!nonzero, "%s: %d certificates are not 0", what, nonzero);
    CHECK(w->count.v_skipped == 0 && w->count.dense_tiles == 0, "%s: skipped %ld", what, (long)w->count.v_skipped);
}

static void dense_bits(form f, int isa, int key_tile) {
    static const struct {
        int mode;
        float value;
    } off[] = {
        { ATTN_SKIP_FACTOR, 0.0f }, { ATTN_SKIP_FACTOR, 1e-30f }, { ATTN_SKIP_FACTOR, 1e-42f },
        { ATTN_SKIP_LAMBDA, 0.0f }, { ATTN_SKIP_LAMBDA, 1e-30f }, { ATTN_SKIP_LAMBDA, 1e-42f }, { ATTN_SKIP_EPS, 0.0f }
    };
    test_rng r = { 11 };
    world w;
    float *o, *lse;
    size_t count, i;
    plain_world(&w, f, 4, 2, f == DECODING ? 5 : 43, 4500);
    add_request(&w, 3, 2060, w.phase[0]);
    w.layer.isa = isa;
    w.layer.key_tile = key_tile;
    w.layer.row_tile = 64;
    w.layer.workers = 3;
    open_world(&w);
    fill_queries(&w, &r, 0.3f);
    fill_drift(&w, &r, 3, 0.5, 1, 8);
    fill_values(&w, &r);
    forward(&w);
    CHECK(w.strips >= 2 && w.tasks >= 3, "%d strips, %d tasks", w.strips, w.tasks);
    count = (size_t)row_count(&w);
    o = floats(count, (size_t)w.v_dim, 1);
    lse = floats(count, 1, 1);
    memcpy(o, w.o, count * (size_t)w.v_dim * sizeof *o);
    memcpy(lse, w.lse, count * sizeof *lse);
    for (i = 0; i < sizeof off / sizeof off[0]; i++) {
        set_skip(&w, off[i].mode, off[i].value);
        forward(&w);
        same_bits(&w, o, lse, form_names[f]);
        CHECK(w.count.tiles >= 100, "%ld tiles", (long)w.count.tiles);
    }
    set_skip(&w, ATTN_SKIP_LAMBDA, 0.02f); /* the same call can skip */
    forward(&w);
    some_skipped(&w);
    CHECK(memcmp(w.o, o, count * (size_t)w.v_dim * sizeof *o), "skipping changed nothing");
    free(o);
    free(lse);
    close_world(&w);
}

static void test_dense_bits(void) {
    attn_isa set[4];
    int n = isas(set), i, f;
    for (i = 0; i < n; i++) {
        for (f = 0; f < FORMS; f++) {
            dense_bits((form)f, (int)set[i], 64);
            dense_bits((form)f, (int)set[i], f == SPLIT ? 128 : 32);
        }
    }
}

/* Without skipping a certificate is 0, whatever was there. */
static void test_off(void) {
    test_rng r = { 5 };
    int f, i;
    for (f = 0; f < FORMS; f++) {
        world w;
        plain_world(&w, (form)f, 2, 1, 3, 300);
        w.layer.isa = ATTN_ISA_SCALAR;
        w.with_sinks = 1;
        open_world(&w);
        fill_queries(&w, &r, 0);
        fill_drift(&w, &r, 3, 0.5, 1, 8);
        forward(&w);
        for (i = 0; i < row_count(&w); i++) CHECK(w.certificate[i] == 0, "%g", (double)w.certificate[i]);
        CHECK(w.count.tiles == 0, "%ld tiles counted", (long)w.count.tiles);
        close_world(&w);
    }
}

/* ---- (b), (c) two tiles ----------------------------------------------------------------------------------------- */

/* Tile 0: logits 0, values 1. Tile 1: logits `second`, values `value`. Heads 2, the rows of one request. */
static void two_tiles(world *w, form f, int isa, float second, float value) {
    test_rng r = { 3 };
    int key, h, d;
    plain_world(w, f, 2, 1, 1, 2 * TILE);
    w->layer.isa = isa;
    open_world(w);
    fill_queries(w, &r, 0);
    fill_constant(w, 0, TILE, 2 * TILE, second);
    for (key = 0; key < 2 * TILE; key++) {
        for (h = 0; h < w->kv_heads; h++) {
            for (d = 0; d < w->v_dim; d++) value_row(w, 0, key, h)[d] = key < TILE ? 1.0f : value;
        }
    }
}

static void check_two(const world *w, double o, double lse, double certificate, const char *what) {
    int i, d;
    for (i = 0; i < row_count(w); i++) {
        CHECK(!differs((double)w->lse[i], lse, 1e-5), "%s: lse %g, not %g", what, (double)w->lse[i], lse);
        CHECK(!differs((double)w->certificate[i], certificate, 1e-5 * certificate), "%s: certificate %g, not %g", what,
              (double)w->certificate[i], certificate);
        for (d = 0; d < w->v_dim; d++) {
            double got = (double)w->o[(size_t)i * (size_t)w->v_dim + (size_t)d];
            CHECK(!differs(got, o, 1e-5), "%s: o %g, not %g", what, got, o);
        }
    }
}

/* lambda of 1 or more: dense and counted, not everything dropped. */
static void dense_above_one(form f, int isa) {
    static const float lambdas[] = { 1.0f, 2.0f, 1e30f };
    int i;
    for (i = 0; i < 3; i++) {
        int by_factor;
        for (by_factor = 0; by_factor < 2; by_factor++) {
            world w;
            float value = by_factor ? lambdas[i] * 2 * TILE : lambdas[i];
            two_tiles(&w, f, isa, 0.0f, -1.0f);
            set_skip(&w, by_factor ? ATTN_SKIP_FACTOR : ATTN_SKIP_LAMBDA, value);
            forward(&w);
            check_two(&w, 0, log(2.0 * TILE), 0, form_names[f]);
            CHECK(w.count.tiles == 2 && w.count.dense_tiles == 2 && w.count.v_skipped == 0, "%ld tiles, %ld dense",
                  (long)w.count.tiles, (long)w.count.dense_tiles);
            CHECK(w.count.histogram[0] == 2, "bin 0: %ld", (long)w.count.histogram[0]);
            close_world(&w);
        }
    }
}

static void test_above_one(void) {
    attn_isa set[4];
    int n = isas(set), i, f;
    for (i = 0; i < n; i++) {
        for (f = 0; f < FORMS; f++) dense_above_one((form)f, (int)set[i]);
    }
}

static void one_gap(form f, int isa, int mode, float lambda, int skips) {
    world w;
    float value = mode == ATTN_SKIP_FACTOR ? lambda * 2 * TILE : lambda;
    double mass = TILE * exp(-10.0);
    two_tiles(&w, f, isa, -10.0f, skips ? NAN : -1.0f); /* V of a skipped tile is not looked at */
    set_skip(&w, mode, value);
    if (mode == ATTN_SKIP_FACTOR && f == DECODING) w.layer.skip.prefill = skips ? 0.0f : 1e9f;
    if (mode == ATTN_SKIP_FACTOR && f != DECODING) w.layer.skip.decode = skips ? 0.0f : 1e9f;
    forward(&w);
    if (skips) {
        check_two(&w, 1, log((double)TILE), mass / (TILE + mass), "skipped");
    } else {
        check_two(&w, (TILE - mass) / (TILE + mass), log(TILE + mass), 0, "kept");
    }
    CHECK(w.count.tiles == 2 && w.count.v_skipped == skips && w.count.dense_tiles == 0, "%s: %ld of %ld tiles skipped",
          form_names[f], (long)w.count.v_skipped, (long)w.count.tiles);
    CHECK(w.count.softmax_skipped == (f != DECODING && skips), "%ld", (long)w.count.softmax_skipped);
    CHECK(w.count.histogram[0] == 1 && w.count.histogram[20] == 1, "bin 20: %ld", (long)w.count.histogram[20]);
    close_world(&w);
}

static void test_one_gap(void) {
    attn_isa set[4];
    int n = isas(set), i, f;
    for (i = 0; i < n; i++) {
        for (f = 0; f < FORMS; f++) {
            int mode;
            for (mode = ATTN_SKIP_FACTOR; mode <= ATTN_SKIP_LAMBDA; mode++) {
                one_gap((form)f, (int)set[i], mode, expf(-9), 1);
                one_gap((form)f, (int)set[i], mode, expf(-9.99f), 1);
                one_gap((form)f, (int)set[i], mode, expf(-10.01f), 0);
                one_gap((form)f, (int)set[i], mode, expf(-11), 0);
            }
        }
    }
}

/* A tile that lies `eighths` / 8 below the reference counts in bin eighths / 4, from 31.5 on in the last one. */
static void test_bins(void) {
    int f, eighths;
    for (f = 0; f < FORMS; f++) {
        for (eighths = -4; eighths < 300; eighths++) {
            int bin = eighths < 0 ? 0 : least(63, eighths / 4), i;
            world w;
            two_tiles(&w, (form)f, 0, -(float)eighths / 8, 1);
            set_skip(&w, ATTN_SKIP_LAMBDA, 1e-30f);
            forward(&w);
            for (i = 0; i < 64; i++) {
                int want = (i == 0) + (i == bin);
                CHECK(w.count.histogram[i] == want, "%s, %d/8 below: bin %d is %ld", form_names[f], eighths, i,
                      (long)w.count.histogram[i]);
            }
            close_world(&w);
        }
    }
}

/* EPS: tile 0 weighs 64, tile 1 64 exp(-10), so eps just above and just below exp(-10) decide. The second world: one
   key of tile 1 is larger than all before it, yet cheaper than the budget; the maximum rises with a skipped tile. */
static void test_budget(void) {
    attn_isa set[4];
    int n = isas(set), i, f;
    for (i = 0; i < n; i++) {
        for (f = 0; f < FORMS; f++) {
            double mass = TILE * exp(-10.0);
            world w;
            two_tiles(&w, (form)f, (int)set[i], -10.0f, NAN);
            set_skip(&w, ATTN_SKIP_EPS, expf(-9.99f));
            forward(&w);
            check_two(&w, 1, log((double)TILE), mass / (TILE + mass), "within the budget");
            CHECK(w.count.v_skipped == 1 && w.count.softmax_skipped == 0, "%ld", (long)w.count.v_skipped);
            close_world(&w);
            two_tiles(&w, (form)f, (int)set[i], -10.0f, -1.0f);
            set_skip(&w, ATTN_SKIP_EPS, expf(-10.01f));
            forward(&w);
            check_two(&w, (TILE - mass) / (TILE + mass), log(TILE + mass), 0, "above the budget");
            close_world(&w);
            two_tiles(&w, (form)f, (int)set[i], -40.0f, -1.0f);
            fill_constant(&w, 0, TILE + 7, TILE + 8, 3.0f);
            set_skip(&w, ATTN_SKIP_EPS, 0.5f);
            forward(&w);
            check_two(&w, 1, log((double)TILE), exp(3.0) / (TILE + exp(3.0)), "a larger maximum");
            CHECK(w.count.v_skipped == 1 && w.count.histogram[0] == 2, "%ld", (long)w.count.v_skipped);
            close_world(&w);
        }
    }
}

/* ---- (d) random inputs against the oracle ----------------------------------------------------------------------- */

static void random_world(world *w, test_rng *r, form f, int isa) {
    static const int groups[] = { 1, 4, 8, 16 };
    static const float lambdas[] = { 0.3f, 0.1f, 0.03f, 0.01f, 0.003f };
    static const float budgets[] = { 0.9f, 0.3f, 0.05f, 0.01f, 0.001f };
    static const float strengths[] = { 0.0f, 4.0f, 8.0f, 10.5f };
    int group = groups[test_range(r, 0, 3)], kv_heads = test_range(r, 1, 2), i, n = test_range(r, 1, 3);
    int mode = test_range(r, ATTN_SKIP_FACTOR, ATTN_SKIP_EPS), most_kv = f == WHOLE ? 1500 : 4600;
    plain_world(w, f, group * kv_heads, kv_heads, 1, 1);
    w->layer.isa = isa;
    w->n = 0;
    for (i = 0; i < n; i++) {
        int kv = i ? test_range(r, 1, 400) : test_range(r, most_kv / 2, most_kv);
        int e = f == DECODING ? test_range(r, 1, 6) : test_range(r, 1, most(1, 100 / group));
        add_request(w, least(e, kv), kv, f == DECODING ? ATTN_DECODE : ATTN_PREFILL);
    }
    if (test_range(r, 0, 2) == 0) w->layer.key_tile = test_range(r, 0, 1) ? 32 : 128;
    if (test_range(r, 0, 2) == 0) w->layer.row_tile = test_range(r, 0, 1) ? 64 : 48;
    if (test_range(r, 0, 2) == 0) w->layer.page_size = test_range(r, 1, 70);
    w->layer.head_dim = test_range(r, 0, 1) ? 16 : 5;
    if (mode == ATTN_SKIP_EPS) set_skip(w, mode, budgets[test_range(r, 0, 4)]);
    if (mode == ATTN_SKIP_LAMBDA) set_skip(w, mode, lambdas[test_range(r, 0, 4)]);
    if (mode == ATTN_SKIP_FACTOR) set_skip(w, mode, (float)w->kv_len[0] * lambdas[test_range(r, 0, 4)]);
    open_world(w);
    fill_queries(w, r, test_range(r, 0, 1) ? 0.2f : 0.0f);
    fill_drift(w, r, 3, test_range(r, 0, 1) ? 0.9 : 0.5, 1, (double)strengths[test_range(r, 0, 3)]);
    fill_values(w, r);
}

enum { DRAWS = 24 };

static void test_random(void) {
    attn_isa set[4];
    int n = isas(set), i, f, draw, ties = 0, total = 0;
    test_rng r = { 2024 };
    for (i = 0; i < n; i++) {
        for (f = 0; f < FORMS; f++) {
            int64_t skipped = 0, tiles = 0, lazy = 0;
            for (draw = 0; draw < test_draws(DRAWS); draw++) {
                world w;
                random_world(&w, &r, (form)f, (int)set[i]);
                total++;
                ties += !run_and_compare(&w);
                skipped += w.count.v_skipped;
                tiles += w.count.tiles;
                lazy += w.count.softmax_skipped;
                close_world(&w);
            }
            CHECK(skipped * 20 > tiles && skipped * 20 < tiles * 19, "%s %s: %ld of %ld", isa_name((int)set[i]),
                  form_names[f], (long)skipped, (long)tiles);
            CHECK(f == DECODING ? lazy == 0 : lazy > 0 && lazy < skipped, "%s: %ld without exp", form_names[f],
                  (long)lazy);
        }
    }
    CHECK(ties * 5 < total, "%d of %d draws were too close to a tie", ties, total);
}

/* ---- (e) monotone in lambda, and the histogram is the curve ----------------------------------------------------- */

static void one_curve(form f, int isa, test_rng *r) {
    attn_counters curve;
    int64_t before = -1;
    int i, j;
    world w;
    plain_world(&w, f, 8, 2, f == DECODING ? 2 : 20, 4500);
    add_request(&w, 2, 700, w.phase[0]);
    w.layer.isa = isa;
    open_world(&w);
    fill_queries(&w, r, 0.2f);
    fill_drift(&w, r, 3, 0.9, 1, 9);
    set_skip(&w, ATTN_SKIP_LAMBDA, 1e-30f);
    forward(&w);
    curve = w.count;
    CHECK(curve.v_skipped == 0, "lambda = 1e-30 skipped %ld", (long)curve.v_skipped);
    for (i = 20; i > 0; i--) {
        int64_t sum = 0, distinct = 0;
        for (j = i; j < 64; j++) sum += curve.histogram[j];
        for (j = 0; j < 64; j++) distinct += curve.histogram[j];
        CHECK(distinct == curve.tiles, "the bins add up to %ld of %ld tiles", (long)distinct, (long)curve.tiles);
        set_skip(&w, ATTN_SKIP_LAMBDA, (float)exp(-0.5 * i));
        forward(&w);
        CHECK(w.count.v_skipped == sum, "%s %s, lambda e^-%g: %ld skipped, the curve says %ld", isa_name(isa),
              form_names[f], 0.5 * i, (long)w.count.v_skipped, (long)sum);
        CHECK(w.count.v_skipped >= before && w.count.tiles == curve.tiles, "fewer at a larger lambda");
        CHECK(!memcmp(w.count.histogram, curve.histogram, sizeof curve.histogram), "the histogram depends on lambda");
        before = w.count.v_skipped;
    }
    CHECK(before * 3 > curve.tiles && before < curve.tiles, "lambda e^-.5 skips %ld of %ld", (long)before,
          (long)curve.tiles);
    close_world(&w);
}

static void test_curve(void) {
    attn_isa set[4];
    int n = isas(set), i, f;
    test_rng r = { 77 };
    for (i = 0; i < n; i++) {
        for (f = 0; f < FORMS; f++) one_curve((form)f, (int)set[i], &r);
    }
}

/* ---- (f) guarantees, without knowing the rule ------------------------------------------------------------------- */

/* What fills the keys. DRIFT is random, the others are adversarial. */
typedef enum kind { DRIFT, NEAR_TIES, ONE_HUGE, ALL_EQUAL, GROWING, FALLING, STAIRS, KINDS } kind;

typedef struct tally {
    long rows, lossy;
    double *ratio;                  /* certificate / true mass, PREFILL with FACTOR or LAMBDA, 64-key tiles */
    long ratios, room;
    long by_kind[KINDS];
} tally;

static double adversarial(kind what, test_rng *r, int key, int kv, double gap) {
    int tile = key / TILE;
    switch (what) {
    case NEAR_TIES:                 /* one key a tile at the threshold, or within a few roundings of it */
        if (key % TILE != 5) return -gap - 3;
        return tile ? -gap + 1e-6 * (double)test_range(r, -3, 3) : 0;
    case ONE_HUGE:
        return key == kv / 2 ? 40 : key % 97 == 0 ? 5 : normal(r);
    case ALL_EQUAL:
        return 1.5;
    case GROWING:
        return 0.8 * tile + 0.1 * normal(r);
    case FALLING:
        return -0.8 * tile + 0.1 * normal(r);
    default:                        /* single keys, each a little above the maximum so far and cheap */
        return key % TILE == 0 ? 0.02 * tile : tile ? -30 : 0;
    }
}

static void fill_kind(world *w, test_rng *r, kind what, double gap) {
    static const double strengths[] = { 0, 5, 8, 10.5, 15 };
    int i, h, key, x;
    if (what == DRIFT) {
        fill_drift(w, r, 3, test_range(r, 0, 1) ? 0.9 : 0.5, 1, strengths[test_range(r, 0, 4)]);
        return;
    }
    for (i = 0; i < w->n; i++) {
        for (h = 0; h < w->kv_heads; h++) {
            for (key = 0; key < w->kv_len[i]; key++) {
                for (x = 0; x < w->head_dim; x++) {
                    key_row(w, i, key, h)[x] = (float)adversarial(what, r, key, w->kv_len[i], gap);
                }
            }
        }
    }
}

/* Values: one-hot in the tile, and in the last two dims random. */
static void fill_markers(world *w, test_rng *r) {
    int i, h, key;
    for (i = 0; i < w->n; i++) {
        for (h = 0; h < w->kv_heads; h++) {
            for (key = 0; key < w->kv_len[i]; key++) {
                float *v = value_row(w, i, key, h);
                v[key / w->layer.key_tile] = 1;
                v[w->v_dim - 2] = test_uniform(r);
                v[w->v_dim - 1] = 3 + test_uniform(r);
            }
        }
    }
}

/* The softmax of a row: mass per tile and values of the dense row, its largest logit taken off. */
typedef struct truth {
    double top, sum, o[2], low[2], high[2];
    double *tile;
} truth;

static void find_truth(const world *w, int request, int row, int head, double *s, truth *t) {
    int kv = w->kv_len[request], key, x;
    row_logits(w, request, row, head, s);
    t->top = w->with_sinks ? (double)w->sinks[head] : -INFINITY;
    for (key = 0; key < kv; key++) t->top = s[key] > t->top ? s[key] : t->top;
    t->sum = w->with_sinks ? exp((double)w->sinks[head] - t->top) : 0;
    memset(t->tile, 0, (size_t)w->v_dim * sizeof *t->tile);
    for (x = 0; x < 2; x++) {
        t->o[x] = 0;
        t->low[x] = INFINITY;
        t->high[x] = -INFINITY;
    }
    for (key = 0; key < kv; key++) {
        const float *v = value_row(w, request, key, head / w->group) + w->v_dim - 2;
        double p;
        if (s[key] == -INFINITY) continue;
        p = exp(s[key] - t->top);
        t->sum += p;
        t->tile[key / w->layer.key_tile] += p;
        for (x = 0; x < 2; x++) {
            t->o[x] += p * (double)v[x];
            t->low[x] = (double)v[x] < t->low[x] ? (double)v[x] : t->low[x];
            t->high[x] = (double)v[x] > t->high[x] ? (double)v[x] : t->high[x];
        }
    }
}

static void check_row(const world *w, int request, int row, int head, const truth *t, tally *total, kind what) {
    size_t at = out_at(w, request, row, head);
    const float *o = w->o + at * (size_t)w->v_dim;
    double cert = (double)w->certificate[at], lse = (double)w->lse[at], lost = 0, share, gap;
    double eps = (double)(w->phase[request] == ATTN_PREFILL ? w->layer.skip.prefill : w->layer.skip.decode);
    /* where the logits are known to the bit the certificate is a bound without a tolerance; 1e-34: keys whose weight is
       less than the smallest float weigh nothing */
    double rounding = w->exact && !(w->layer.softcap > 0) ? 0 : 1e-5;
    int exact = w->layer.skip.mode == ATTN_SKIP_EPS || w->phase[request] == ATTN_DECODE, tile, x;
    char text[300];
    describe(w, text, sizeof text);
    total->rows++;
    if (t->top == -INFINITY) {
        CHECK(lse == -INFINITY && cert == 0 && o[0] == 0, "an empty row: lse %g, certificate %g", lse, cert);
        return;
    }
    for (tile = 0; tile < w->v_dim - 2; tile++) {
        if (o[tile] == 0) lost += t->tile[tile];
    }
    share = lost / t->sum;
    CHECK(t->sum > lost, "everything was skipped: %s", text);
    CHECK(share <= cert * (1 + rounding) + 1e-34, "kind %d: true mass %.9g, certificate %.9g: %s", (int)what, share,
          cert, text);
    CHECK(cert >= 0 && cert < 1, "certificate %g: %s", cert, text);
    if (w->layer.skip.mode == ATTN_SKIP_EPS) {
        CHECK(cert <= eps / (1 + eps), "kind %d: certificate %.9g above eps: %s", (int)what, cert, text);
    }
    CHECK(!exact || cert <= share * (1 + rounding + 6e-5) + 1e-34, "kind %d: certificate %.9g, true %.9g: %s",
          (int)what, cert, share, text);
    gap = t->top + log(t->sum) - lse;
    CHECK(gap >= -1e-5 - 2e-7 * fabs(lse) && gap <= -log(1 - share) + 1e-5 + 2e-7 * fabs(lse),
          "kind %d: lse %.9g is %.9g below dense, mass %.9g: %s", (int)what, lse, gap, share, text);
    for (tile = 0; tile < w->v_dim - 2; tile++) {
        double want = o[tile] == 0 ? 0 : t->tile[tile] / (t->sum - lost);
        CHECK(fabs((double)o[tile] - want) <= 2e-5, "kind %d tile %d: weight %.9g, not %.9g: %s", (int)what, tile,
              (double)o[tile], want, text);
    }
    for (x = 0; x < 2; x++) {
        /* a sink, if there is one, is a key of value 0 */
        double low = w->with_sinks && t->low[x] > 0 ? 0 : t->low[x], high = w->with_sinks && t->high[x] < 0 ? 0
                                                                                                           : t->high[x];
        double far = fabs((double)o[w->v_dim - 2 + x] - t->o[x] / t->sum);
        CHECK(far <= cert * (high - low) + 8e-5, "kind %d: o is %.9g off, certificate %.9g: %s", (int)what, far, cert,
              text);
    }
    if (share > 1e-9) total->lossy++;
    if (share > 1e-20) total->by_kind[what]++;
    if (exact || share <= 1e-9 || w->layer.key_tile != TILE || what != DRIFT || total->ratios == total->room) return;
    total->ratio[total->ratios++] = cert / share;
}

static void check_world(const world *w, tally *total, kind what) {
    int i, row, head, longest = 1;
    double *s;
    truth t;
    for (i = 0; i < w->n; i++) longest = most(longest, w->kv_len[i]);
    s = (double *)need((size_t)longest * sizeof *s);
    t.tile = (double *)need((size_t)w->v_dim * sizeof *t.tile);
    for (i = 0; i < w->n; i++) {
        for (row = 0; row < w->q_len[i]; row++) {
            for (head = 0; head < w->layer.heads; head++) {
                find_truth(w, i, row, head, s, &t);
                check_row(w, i, row, head, &t, total, what);
            }
        }
    }
    free(s);
    free(t.tile);
}

/* A ring as short as it may be: the rows' window and the rows themselves. */
static void set_ring(world *w) {
    int size = most(1, w->layer.page_size), longest = 0, i;
    for (i = 0; i < w->n; i++) longest = most(longest, w->q_len[i]);
    w->layer.ring = (w->layer.window_left - 1 + longest + size - 1) / size * size;
}

/* Windows that start in mid-tile, sink keys, sinks, softcap, pages, other masks, types, rings: each in some of the
   draws. */
static void draw_features(world *w, test_rng *r) {
    int i;
    if (test_range(r, 0, 3) == 0) w->layer.mask = ATTN_FULL;
    if (test_range(r, 0, 2) == 0) w->layer.window_left = test_range(r, 70, 500);
    if (w->layer.mask == ATTN_FULL && test_range(r, 0, 2) == 0) w->layer.window_right = test_range(r, 1, 300);
    if (w->layer.window_left && test_range(r, 0, 1)) w->layer.sink_keys = test_range(r, 1, 70);
    if (test_range(r, 0, 3) == 0) w->with_sinks = 1;
    if (test_range(r, 0, 4) == 0) w->layer.softcap = (float)test_range(r, 3, 8);
    if (test_range(r, 0, 2) == 0) w->layer.page_size = test_range(r, 1, 70);
    if (test_range(r, 0, 5) == 0) w->layer.key_tile = test_range(r, 0, 1) ? 32 : 128;
    if (test_range(r, 0, 2) == 0) w->layer.row_tile = 16 * test_range(r, 1, 8);
    for (i = 0; i < w->n && w->layer.mask == ATTN_FULL; i++) w->q_len[i] += test_range(r, 0, 2);
    if (w->layer.mask == ATTN_CAUSAL && !w->layer.sink_keys && test_range(r, 0, 4) == 0) {
        w->layer.mask = test_range(r, 0, 1) ? ATTN_BLOCK : ATTN_CAUSAL;
        w->layer.chunk = w->layer.mask == ATTN_BLOCK ? test_range(r, 1, 20) : test_range(r, 70, 500);
    }
    if (test_range(r, 0, 3) == 0) w->layer.kv_type = (attn_type)test_range(r, ATTN_F16, ATTN_E5M2);
    if (w->layer.window_left && !w->layer.sink_keys && test_range(r, 0, 1)) set_ring(w);
}

static void guarantee_world(world *w, test_rng *r, form f, int isa, kind what) {
    static const int groups[] = { 1, 4, 8, 16 };
    static const float budgets[] = { 0.999f, 0.5f, 0.05f, 0.05f, 0.01f, 0.001f };
    int group = groups[test_range(r, 0, 3)], kv_heads = test_range(r, 1, 2), n = test_range(r, 1, 4), i, longest = 1;
    int mode = test_range(r, ATTN_SKIP_FACTOR, ATTN_SKIP_EPS), large = test_range(r, 0, 9) == 0;
    double gap = test_range(r, 1, 16) * 0.5;
    plain_world(w, f, group * kv_heads, kv_heads, 1, 1);
    w->layer.isa = isa;
    w->layer.workers = test_range(r, 1, 8);
    w->n = 0;
    for (i = 0; i < (large ? 1 : n); i++) {
        int kv = large ? test_range(r, 2049, 4600) : test_range(r, 1, 600);
        int e = f == DECODING ? test_range(r, 1, 12) : test_range(r, 1, large ? 16 : 48);
        add_request(w, least(e, kv), kv, f == DECODING ? ATTN_DECODE : ATTN_PREFILL);
        longest = most(longest, kv);
    }
    draw_features(w, r);
    w->no_counters = test_range(r, 0, 1);
    w->layer.v_dim = (longest + w->layer.key_tile - 1) / w->layer.key_tile + 2;
    if (mode == ATTN_SKIP_EPS) set_skip(w, mode, budgets[test_range(r, 0, 5)]);
    if (mode == ATTN_SKIP_LAMBDA) set_skip(w, mode, (float)exp(-gap));
    if (mode == ATTN_SKIP_FACTOR) set_skip(w, mode, (float)(exp(-gap) * longest));
    open_world(w);
    fill_queries(w, r, what == DRIFT && test_range(r, 0, 1) ? 0.2f : 0.0f);
    fill_kind(w, r, what, gap);
    fill_markers(w, r);
    for (i = 0; i < w->layer.heads; i++) w->sinks[i] = 3 * test_uniform(r);
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void test_guarantees(void) {
    attn_isa set[4];
    int n = isas(set), draw, i;
    test_rng r = { 4711 };
    tally total;
    memset(&total, 0, sizeof total);
    total.room = 200000;
    total.ratio = (double *)need((size_t)total.room * sizeof *total.ratio);
    for (draw = 0; total.rows < test_draws(110000) || draw < 300; draw++) {
        kind what = draw % 3 ? (kind)(draw / 3 % KINDS) : DRIFT;
        form f = (form)test_range(&r, 0, FORMS - 1);
        world w;
        guarantee_world(&w, &r, f, (int)set[draw % n], what);
        forward(&w);
        check_world(&w, &total, what);
        close_world(&w);
    }
    CHECK(total.rows >= 100000, "%ld rows", total.rows);
    CHECK(total.lossy * 5 > total.rows, "only %ld of %ld rows lost anything", total.lossy, total.rows);
    for (i = 0; i < KINDS; i++) CHECK(total.by_kind[i] > 100, "kind %d: %ld rows lost mass", i, total.by_kind[i]);
    CHECK(total.ratios > 1000, "%ld ratios", total.ratios);
    qsort(total.ratio, (size_t)total.ratios, sizeof *total.ratio, ascending);
    CHECK(total.ratio[total.ratios / 2] <= 20, "median certificate / true mass %g", total.ratio[total.ratios / 2]);
    CHECK(total.ratio[0] >= 1 - 1e-3, "smallest certificate / true mass %g", total.ratio[0]);
    if (getenv("SKIP_FIGURES")) {
        printf("  rows %ld, lossy %ld, draws %d, ratios %ld, median %g\n", total.rows, total.lossy, draw, total.ratios,
               total.ratio[total.ratios / 2]);
    }
    free(total.ratio);
}

/* ---- (g) shapes ------------------------------------------------------------------------------------------------- */

typedef void shape_fn(world *w, form f, test_rng *r);

/* Logits for the shapes below: a strong first key of every run of tiles, tiles that drift. */
static void shape_data(world *w, test_rng *r) {
    int i;
    open_world(w);
    fill_queries(w, r, 0.1f);
    fill_drift(w, r, 3, 0.9, 1, 9);
    fill_values(w, r);
    for (i = 0; i < w->layer.heads; i++) {
        w->sinks[i] = 6 + 2 * test_uniform(r);
        w->alibi[i] = 0.002f * (float)(i + 1);
    }
}

/* 1, 3 or 17 rows: a panel of 16 or 64 has lanes without a row, whose logits of 0 must not vote. */
static void shape_padding(world *w, form f, test_rng *r) {
    plain_world(w, f, 1, 1, 17, 2500);
    add_request(w, 1, 900, w->phase[0]);
    add_request(w, 3, 300, w->phase[0]);
    shape_data(w, r);
}

/* FULL with E > KV and window_right 1: rows at negative positions see nothing, others not the last tiles. */
static void shape_masked(world *w, form f, test_rng *r) {
    plain_world(w, f, 4, 2, 330, 300);
    w->layer.mask = ATTN_FULL;
    w->layer.window_right = 1;
    shape_data(w, r);
}

static void shape_window(world *w, form f, test_rng *r) {
    plain_world(w, f, 4, 2, 30, 4500);
    w->layer.window_left = 1000;
    shape_data(w, r);
}

static void shape_sink_keys(world *w, form f, test_rng *r) {
    plain_world(w, f, 4, 2, 30, 4500);
    w->layer.window_left = 1000;
    w->layer.sink_keys = 5;
    shape_data(w, r);
}

/* The largest key is a sink key behind tile 0, in another run than the window, whose first unit starts in mid-run: it
   must not count as that run's reference. */
static void shape_many_sink_keys(world *w, form f, test_rng *r) {
    plain_world(w, f, 4, 2, 30, 4500);
    w->layer.window_left = 1000;
    w->layer.sink_keys = 200;
    shape_data(w, r);
    fill_constant(w, 0, 150, 152, 12);
}

static void shape_both_windows(world *w, form f, test_rng *r) {
    plain_world(w, f, 4, 2, 40, 700);
    w->layer.mask = ATTN_FULL;
    w->layer.window_left = 333;
    w->layer.window_right = 77;
    w->layer.sink_keys = 70;
    shape_data(w, r);
}

static void shape_sinks(world *w, form f, test_rng *r) {
    plain_world(w, f, 8, 2, 10, 2500);
    w->with_sinks = 1;
    shape_data(w, r);
}

static void shape_softcap(world *w, form f, test_rng *r) {
    plain_world(w, f, 8, 2, 10, 2500);
    w->layer.softcap = 10;
    shape_data(w, r);
}

static void shape_alibi(world *w, form f, test_rng *r) {
    plain_world(w, f, 8, 2, 10, 2500);
    w->with_alibi = 1;
    shape_data(w, r);
    w->exact = 0;
}

/* Trees of 20 drafts, each row's parent is drawn among the rows before it. */
static void tree_world(world *w, form f, test_rng *r, int window, int sink_keys) {
    int i, row;
    plain_world(w, f, 4, 2, 20, 2200);
    add_request(w, 5, 700, w->phase[0]);
    w->layer.mask = ATTN_TREE;
    w->layer.window_left = window;
    w->layer.sink_keys = sink_keys;
    w->with_tree = 1;
    shape_data(w, r);
    for (i = 0; i < w->n; i++) {
        for (row = 0; row < w->q_len[i]; row++) {
            uint32_t parent = row ? w->tree[w->first_row[i] + test_range(r, 0, row - 1)] : 0;
            w->tree[w->first_row[i] + row] = parent | (uint32_t)1 << row;
        }
    }
}

static void shape_tree(world *w, form f, test_rng *r) {
    tree_world(w, f, r, 0, 0);
}

static void shape_tree_window(world *w, form f, test_rng *r) {
    tree_world(w, f, r, 600, 5);
}

static void shape_prefix(world *w, form f, test_rng *r) {
    plain_world(w, f, 4, 2, 30, 900);
    w->layer.mask = ATTN_PREFIX;
    w->prefix[0] = 885;
    shape_data(w, r);
}

static void shape_blocks(world *w, form f, test_rng *r) {
    plain_world(w, f, 4, 2, 30, 900);
    add_request(w, 20, 90, w->phase[0]);
    w->layer.mask = ATTN_BLOCK;
    w->layer.chunk = 8;
    shape_data(w, r);
}

/* Row 12 is the first one of a chunk. */
static void shape_chunks(world *w, form f, test_rng *r) {
    plain_world(w, f, 4, 2, 30, 3018);
    w->layer.chunk = 1000;
    shape_data(w, r);
}

static void ring_world(world *w, form f, test_rng *r, attn_type type, int page_size) {
    plain_world(w, f, 4, 2, 30, 2600);
    add_request(w, 3, 700, w->phase[0]);
    w->layer.window_left = 1000;
    w->layer.kv_type = type;
    w->layer.page_size = page_size;
    set_ring(w);
    shape_data(w, r);
}

static void shape_ring(world *w, form f, test_rng *r) {
    ring_world(w, f, r, ATTN_F16, 0);
}

static void shape_paged_ring(world *w, form f, test_rng *r) {
    ring_world(w, f, r, ATTN_BF16, 16);
}

static void scaled_world(world *w, form f, test_rng *r, attn_type type, attn_scale shape) {
    int i;
    plain_world(w, f, 8, 2, 8, 2300);
    add_request(w, 3, 900, w->phase[0]);
    w->layer.kv_type = type;
    w->layer.scale_kind = (int32_t)shape;
    w->with_scales = 1;
    shape_data(w, r);
    for (i = 0; i < w->n * w->kv_heads; i++) {
        w->k_scale[i] = 0.5f + 0.4f * test_uniform(r);
        w->v_scale[i] = 0.5f + 0.4f * test_uniform(r);
    }
    w->exact = 0;                   /* the scale rounds once more */
}

static void shape_request_scales(world *w, form f, test_rng *r) {
    scaled_world(w, f, r, ATTN_E4M3, ATTN_SCALE_PER_REQUEST);
}

static void shape_head_scales(world *w, form f, test_rng *r) {
    scaled_world(w, f, r, ATTN_E5M2, ATTN_SCALE_PER_HEAD);
}

static void shape_int8(world *w, form f, test_rng *r) {
    plain_world(w, f, 8, 2, 8, 2300);
    w->layer.kv_type = ATTN_INT8;
    w->layer.scale_kind = ATTN_SCALE_PER_KEY;
    w->layer.page_size = 16;
    w->with_scales = 1;
    shape_data(w, r);
    w->exact = 0;                   /* the cache rounds */
}

/* Absorbed MLA: 16 heads on one latent row of 576, values are its first 512. The drift is one dim of many. */
static void shape_mla(world *w, form f, test_rng *r) {
    size_t i;
    int row, head;
    plain_world(w, f, 16, 1, f == DECODING ? 2 : 1, f == WHOLE ? 700 : 2200);
    w->layer.head_dim = 576;
    w->layer.v_dim = 512;
    w->layer.flags = ATTN_V_IN_K;
    w->layer.scale = 0.125f;
    open_world(w);
    fill_drift(w, r, 3, 0.9, 1, 9);
    for (i = 0; i < (size_t)w->rows * 16 * 576; i++) w->q[i] = 0.1f * test_uniform(r);
    for (row = 0; row < w->q_len[0]; row++) {
        for (head = 0; head < 16; head++) query(w, 0, row, head)[570] = 8;
    }
}

/* MLA as it is prefilled: every head has keys of 192 and values of 128. */
static void shape_wide(world *w, form f, test_rng *r) {
    size_t i;
    int row, head;
    plain_world(w, f, 2, 2, 20, f == SPLIT ? 2200 : 700);
    w->layer.head_dim = 192;
    w->layer.v_dim = 128;
    open_world(w);
    fill_drift(w, r, 3, 0.9, 1, 9);
    fill_values(w, r);
    for (i = 0; i < (size_t)w->rows * 2 * 192; i++) w->q[i] = 0.02f * test_uniform(r);
    for (row = 0; row < w->q_len[0]; row++) {
        for (head = 0; head < 2; head++) query(w, 0, row, head)[100] = 1;
    }
}

static const struct {
    const char *name;
    shape_fn *make;
} shapes[] = {
    { "padding rows", shape_padding }, { "masked rows", shape_masked }, { "a window", shape_window },
    { "a window and sink keys", shape_sink_keys }, { "many sink keys", shape_many_sink_keys },
    { "two windows", shape_both_windows }, { "sinks", shape_sinks },
    { "softcap", shape_softcap }, { "alibi", shape_alibi }, { "a tree", shape_tree },
    { "a tree, a window and sink keys", shape_tree_window }, { "a prefix", shape_prefix }, { "blocks", shape_blocks },
    { "chunks", shape_chunks }, { "f16 in a ring", shape_ring }, { "bf16 in a ring of pages", shape_paged_ring },
    { "e4m3, a scale per request", shape_request_scales }, { "e5m2, a scale per head", shape_head_scales },
    { "int8, a scale per key", shape_int8 }, { "latent", shape_mla }, { "192 and 128", shape_wide }
};

/* A tie only says that this seed is no test: the next one is taken. */
static void one_shape(size_t which, form f, int isa, int mode, float value) {
    uint64_t seed;
    for (seed = 1; seed < 9; seed++) {
        test_rng r = { seed * 1000 + which };
        world w;
        int agreed;
        shapes[which].make(&w, f, &r);
        w.layer.isa = isa;
        set_skip(&w, mode, value);
        agreed = run_and_compare(&w);
        if (agreed) some_skipped(&w);
        close_world(&w);
        if (agreed) return;
    }
    CHECK(0, "%s, %s: every seed is a tie", shapes[which].name, form_names[f]);
}

static void test_shapes(void) {
    attn_isa set[4];
    size_t which;
    int n = isas(set), i, f;
    for (which = 0; which < sizeof shapes / sizeof shapes[0]; which++) {
        int bad = test.bad;
        for (i = 0; i < n; i++) {
            for (f = 0; f < FORMS; f++) {
                one_shape(which, (form)f, (int)set[i], ATTN_SKIP_LAMBDA, 0.02f);
                one_shape(which, (form)f, (int)set[i], ATTN_SKIP_EPS, 0.2f);
            }
        }
        if (test.bad > bad) printf("  the shape was: %s\n", shapes[which].name);
    }
}

/* Lengths around a tile. One tile is never skipped; from 65 keys on a second one is there to fall. */
static void one_length(form f, int isa, int mode, int kv) {
    test_rng r = { 9 };
    world w;
    int i, tiles = (kv + TILE - 1) / TILE;
    plain_world(&w, f, 2, 2, 2, kv);
    w.layer.mask = ATTN_FULL;
    w.layer.isa = isa;
    set_skip(&w, mode, mode == ATTN_SKIP_EPS ? 0.05f : mode == ATTN_SKIP_FACTOR ? 0.01f * (float)kv : 0.01f);
    open_world(&w);
    fill_queries(&w, &r, 0);
    fill_constant(&w, 0, least(kv, TILE), kv, -12);
    fill_values(&w, &r);
    CHECK(run_and_compare(&w), "kv %d is a tie", kv);
    CHECK(w.count.tiles == 2 * tiles, "kv %d: %ld tiles", kv, (long)w.count.tiles);
    CHECK(w.count.v_skipped == 2 * most(0, tiles - 1), "kv %d: %ld skipped", kv, (long)w.count.v_skipped);
    for (i = 0; i < row_count(&w) && !kv; i++) {
        CHECK(w.o[i] == 0 && w.lse[i] == -INFINITY && w.certificate[i] == 0, "kv 0: o %g, lse %g, certificate %g",
              (double)w.o[i], (double)w.lse[i], (double)w.certificate[i]);
    }
    close_world(&w);
}

static void test_lengths(void) {
    static const int lengths[] = { 0, 1, 63, 64, 65, 127, 128, 129, 256, 257, 2047, 2048, 2049, 2112, 2113 };
    attn_isa set[4];
    size_t j;
    int n = isas(set), i, f, mode;
    for (i = 0; i < n; i++) {
        for (f = 0; f < FORMS; f++) {
            for (mode = ATTN_SKIP_FACTOR; mode <= ATTN_SKIP_EPS; mode++) {
                for (j = 0; j < sizeof lengths / sizeof lengths[0]; j++) {
                    one_length((form)f, (int)set[i], mode, lengths[j]);
                }
            }
        }
    }
}

/* A large key 0 is the reference of every run: whole groups fall, and what remains is tile 0. */
static void one_sink_world(form f, int isa, int mode, int with_sink) {
    test_rng r = { 31 };
    int i, x;
    world w;
    plain_world(&w, f, 4, 2, 3, 3 * RUN);
    w.layer.mask = ATTN_FULL;
    w.layer.isa = isa;
    w.layer.workers = 3;
    w.with_sinks = with_sink;
    set_skip(&w, mode, mode == ATTN_SKIP_LAMBDA ? 1e-4f : 0.05f);
    open_world(&w);
    fill_queries(&w, &r, 0);
    fill_drift(&w, &r, 1, 0.5, 1, 0);
    for (i = 0; i < w.kv_heads; i++) {
        for (x = 0; x < w.head_dim; x++) key_row(&w, 0, 0, i)[x] = 30;
    }
    for (i = 0; i < w.layer.heads; i++) w.sinks[i] = 29;
    fill_values(&w, &r);
    for (i = TILE; i < w.kv_len[0]; i++) {
        value_row(&w, 0, i, 0)[0] = NAN; /* not even looked at */
        value_row(&w, 0, i, 1)[0] = NAN;
    }
    forward(&w);
    CHECK(w.count.tiles == 2 * 96 && w.count.v_skipped == 2 * 95, "%s: %ld of %ld tiles skipped", form_names[f],
          (long)w.count.v_skipped, (long)w.count.tiles);
    CHECK(w.tasks >= (f == WHOLE ? 2 : 3), "%d tasks", w.tasks);
    for (i = 0; i < row_count(&w); i++) {
        const float *first = value_row(&w, 0, 0, i % w.layer.heads / w.group);
        double key = with_sink ? 1 / (1 + exp(-1.0)) : 1, lse = 30 + (with_sink ? log(1 + exp(-1.0)) : 0);
        for (x = 0; x < w.v_dim; x++) {
            double got = (double)w.o[(size_t)i * (size_t)w.v_dim + (size_t)x];
            CHECK(!differs(got, key * (double)first[x], 1e-5), "o %g, not %g", got, key * (double)first[x]);
        }
        CHECK(!differs((double)w.lse[i], lse, 1e-5), "lse %g, not %g", (double)w.lse[i], lse);
        CHECK(w.certificate[i] > 0 && w.certificate[i] < 1e-7f, "certificate %g", (double)w.certificate[i]);
    }
    close_world(&w);
}

static void test_all_skipped(void) {
    attn_isa set[4];
    int n = isas(set), i, f;
    for (i = 0; i < n; i++) {
        for (f = 0; f < FORMS; f++) {
            one_sink_world((form)f, (int)set[i], ATTN_SKIP_LAMBDA, 0);
            one_sink_world((form)f, (int)set[i], ATTN_SKIP_EPS, 0);
            one_sink_world((form)f, (int)set[i], ATTN_SKIP_LAMBDA, 1);
        }
    }
}

/* Long rows of equal tiles: f32 sums of equal addends all round the same way, and the certificate must allow for it. */
static void one_long_row(form f, int isa, int kv, double gap, float lambda) {
    double each = 64 * exp((double)(float)-gap), kept, skipped, share;
    int key;
    world w;
    plain_world(&w, f, 1, 1, 1, kv);
    w.layer.isa = isa;
    w.layer.head_dim = 1;
    w.layer.v_dim = 1;
    set_skip(&w, ATTN_SKIP_LAMBDA, lambda);
    open_world(&w);
    w.exact = 1;
    query(&w, 0, 0, 0)[0] = 1;
    for (key = TILE; key < kv; key++) key_row(&w, 0, key, 0)[0] = (float)-gap;
    forward(&w);
    kept = 64 + each * (double)(kv / TILE - 1 - w.count.v_skipped);
    skipped = each * (double)w.count.v_skipped;
    share = skipped / (kept + skipped);
    CHECK(w.count.v_skipped == kv / TILE - 1, "%s: %ld tiles skipped", form_names[f], (long)w.count.v_skipped);
    CHECK((double)w.certificate[0] >= share && w.certificate[0] <= 1, "%s, %d keys: certificate %.9g, share %.9g",
          form_names[f], kv, (double)w.certificate[0], share);
    CHECK((double)w.certificate[0] <= share * (f == DECODING ? 1.00001 : 1.01), "%s, %d keys: certificate %.9g, share "
          "%.9g", form_names[f], kv, (double)w.certificate[0], share);
    close_world(&w);
}

static void test_long_rows(void) {
    attn_isa set[4];
    int n = isas(set), i, f;
    for (i = 0; i < n; i++) {
        for (f = 0; f < FORMS; f++) {
            one_long_row((form)f, (int)set[i], 65536, 7.5, 0.1f);
            one_long_row((form)f, (int)set[i], 262144, 8.9, 0.1f);
            one_long_row((form)f, (int)set[i], 1048576, 0.01, 0.995f);
        }
    }
}

/* Two rows vote. Tile 32 lies 200 below row 0's reference and is kept for row 1's sake; tile 33, 197 above it, is
   skipped for both: row 0's sums must follow its larger m, or tile 32's values stay in o as if they weighed e^-3. */
static void one_leap(form f, int isa) {
    int key, row;
    world w;
    plain_world(&w, f, 2, 1, 1, 2 * RUN);
    w.layer.isa = isa;
    set_skip(&w, ATTN_SKIP_LAMBDA, 0.1f);
    open_world(&w);
    w.exact = 1;
    for (row = 0; row < 2; row++) query(&w, 0, 0, row)[row] = 1;
    for (key = 0; key < w.kv_len[0]; key++) {
        int tile = key / TILE;
        key_row(&w, 0, key, 0)[0] = tile == 0 ? 0.0f : tile == 32 ? -200.0f : tile == 33 ? -3.0f : -150.0f;
        key_row(&w, 0, key, 0)[1] = tile == 0 || tile == 32 ? 0.0f : -150.0f;
        value_row(&w, 0, key, 0)[0] = tile == 32 ? 1000.0f : 1.0f;
    }
    forward(&w);
    CHECK(w.count.tiles == 64 && w.count.v_skipped == 62, "%s: %ld of %ld tiles skipped", form_names[f],
          (long)w.count.v_skipped, (long)w.count.tiles);
    CHECK(!differs((double)w.o[0], 1, 1e-5), "%s: row 0: o %g, not 1", form_names[f], (double)w.o[0]);
    CHECK(!differs((double)w.o[w.v_dim], 500.5, 1e-3), "%s: row 1: o %g, not 500.5", form_names[f],
          (double)w.o[w.v_dim]);
    close_world(&w);
}

static void test_leap(void) {
    attn_isa set[4];
    int n = isas(set), i;
    for (i = 0; i < n; i++) {
        one_leap(SPLIT, (int)set[i]);
        one_leap(DECODING, (int)set[i]);
    }
}

/* A NaN among what one row sees (its query; the value of a key that only it sees) leaves the rows that vote with it
   finite, and within their guarantees. */
static void one_nan(form f, int isa, int mode, int in_query) {
    enum { ROWS = 6, BAD = ROWS - 1 };
    test_rng r = { 19 };
    tally total;
    truth t;
    double *s;
    int kv = 2500, row;
    world w;
    memset(&total, 0, sizeof total);
    plain_world(&w, f, 1, 1, ROWS, kv);
    w.layer.isa = isa;
    w.layer.v_dim = (kv + TILE - 1) / TILE + 2;
    set_skip(&w, mode, mode == ATTN_SKIP_EPS ? 0.05f : mode == ATTN_SKIP_FACTOR ? 0.02f * (float)kv : 0.02f);
    open_world(&w);
    fill_queries(&w, &r, 0.2f);
    fill_drift(&w, &r, 3, 0.9, 1, 8);
    fill_markers(&w, &r);
    if (in_query) query(&w, 0, BAD, 0)[3] = NAN;
    for (row = 0; row < w.v_dim && !in_query; row++) value_row(&w, 0, kv - 1, 0)[row] = NAN;
    forward(&w);
    some_skipped(&w);
    s = (double *)need((size_t)kv * sizeof *s);
    t.tile = (double *)need((size_t)w.v_dim * sizeof *t.tile);
    for (row = 0; row < ROWS; row++) {
        if (row == BAD) continue;
        find_truth(&w, 0, row, 0, s, &t);
        check_row(&w, 0, row, 0, &t, &total, NEAR_TIES);
    }
    CHECK(total.lossy > 0, "no other row lost anything");
    free(s);
    free(t.tile);
    close_world(&w);
}

static void test_nan(void) {
    attn_isa set[4];
    int n = isas(set), i, f, mode;
    for (i = 0; i < n; i++) {
        for (f = 0; f < FORMS; f++) {
            for (mode = ATTN_SKIP_FACTOR; mode <= ATTN_SKIP_EPS; mode++) {
                one_nan((form)f, (int)set[i], mode, 0);
                one_nan((form)f, (int)set[i], mode, 1);
            }
        }
    }
}

/* ---- (j) batches ------------------------------------------------------------------------------------------------ */

/* Outputs of one request, and what a call of it alone would count. */
static void same_request(const world *a, int at, const world *b, int other, const char *what) {
    size_t rows = (size_t)a->q_len[at] * (size_t)a->layer.heads;
    size_t x = out_at(a, at, 0, 0), y = out_at(b, other, 0, 0), dim = (size_t)a->v_dim;
    CHECK(!memcmp(a->o + x * dim, b->o + y * dim, rows * dim * sizeof *a->o), "%s %s: o of request %d",
          isa_name(a->layer.isa), what, at);
    CHECK(!memcmp(a->lse + x, b->lse + y, rows * sizeof *a->lse), "%s: lse of request %d", what, at);
    CHECK(!memcmp(a->certificate + x, b->certificate + y, rows * sizeof *a->lse), "%s: certificate of request %d", what,
          at);
}

/* A world with some requests of another, in any order. */
static void pick_world(world *w, const world *from, const int *pick, int n) {
    int i;
    memset(w, 0, sizeof *w);
    w->layer = from->layer;
    w->with_sinks = from->with_sinks;
    w->exact = from->exact;
    for (i = 0; i < n; i++) {
        add_request(w, from->q_len[pick[i]], from->kv_len[pick[i]], from->phase[pick[i]]);
        w->lambda[i] = from->lambda[pick[i]];
    }
    open_world(w);
    for (i = 0; i < n; i++) {
        size_t q = (size_t)w->q_len[i] * (size_t)w->layer.heads * (size_t)w->head_dim * sizeof(float);
        size_t k = (size_t)w->kv_len[i] * (size_t)w->kv_heads * sizeof(float);
        if (q) memcpy(query(w, i, 0, 0), query(from, pick[i], 0, 0), q);
        if (k) memcpy(key_row(w, i, 0, 0), key_row(from, pick[i], 0, 0), k * (size_t)w->head_dim);
        if (k) memcpy(value_row(w, i, 0, 0), value_row(from, pick[i], 0, 0), k * (size_t)w->v_dim);
    }
    memcpy(w->sinks, from->sinks, (size_t)w->layer.heads * sizeof *w->sinks);
}

/* Both phases, a pad, long and short requests; every request has a lambda of its own. */
static void mixed_world(world *w, test_rng *r, int isa) {
    static const float lambdas[] = { 0.3f, 1e-3f, 0.05f, 0.0f, 2.0f, 0.1f };
    int i;
    plain_world(w, WHOLE, 8, 2, 20, 2500);
    add_request(w, 2, 4500, ATTN_DECODE);
    add_request(w, 0, 0, ATTN_PREFILL);
    add_request(w, 1, 300, ATTN_DECODE);
    add_request(w, 40, 700, ATTN_PREFILL);
    add_request(w, 5, 2100, ATTN_DECODE);
    w->layer.isa = isa;
    w->layer.workers = 3;
    w->layer.row_tile = 64;
    w->with_sinks = 1;
    open_world(w);
    for (i = 0; i < w->n; i++) w->lambda[i] = lambdas[i];
    fill_queries(w, r, 0.2f);
    fill_drift(w, r, 3, 0.9, 1, 8);
    fill_values(w, r);
    for (i = 0; i < w->layer.heads; i++) w->sinks[i] = 3 * test_uniform(r);
}

/* How the call is cut and laid out: no bit of any request may change, nor a decision. */
static void one_variation(const world *base, const char *what, int lanes, int workers, int page_size, int reverse) {
    int pick[MOST], i;
    world w;
    for (i = 0; i < base->n; i++) pick[i] = reverse ? base->n - 1 - i : i;
    pick_world(&w, base, pick, base->n);
    w.lanes = lanes;
    w.layer.workers = workers;
    w.layer.page_size = page_size;
    forward(&w);
    for (i = 0; i < base->n; i++) same_request(base, pick[i], &w, i, what);
    CHECK(!memcmp(&w.count, &base->count, sizeof w.count), "%s: other counts, %ld tiles skipped, not %ld", what,
          (long)w.count.v_skipped, (long)base->count.v_skipped);
    close_world(&w);
}

static void variations(world *base) {
    attn_counters sum;
    int i;
    world w;
    forward(base);
    some_skipped(base);
    CHECK(base->strips >= 4 && base->tasks >= base->strips, "%d strips, %d tasks", base->strips, base->tasks);
    one_variation(base, "5 lanes", 5, 3, 0, 0);
    one_variation(base, "1 worker", 1, 1, 0, 0);
    one_variation(base, "64 workers", 3, 64, 0, 0);
    one_variation(base, "pages of 16", 0, 3, 16, 0);
    one_variation(base, "pages of 67", 2, 7, 67, 0);
    one_variation(base, "the order", 0, 3, 0, 1);
    memset(&sum, 0, sizeof sum);
    for (i = 0; i < base->n; i++) {
        pick_world(&w, base, &i, 1);
        forward(&w);
        same_request(base, i, &w, 0, "alone");
        add_counters(&sum, &w.count);
        close_world(&w);
    }
    CHECK(!memcmp(&sum, &base->count, sizeof sum), "the requests alone skip %ld tiles, together %ld",
          (long)sum.v_skipped, (long)base->count.v_skipped);
}

static void test_batches(void) {
    attn_isa set[4];
    test_rng r = { 55 };
    int n = isas(set), i;
    for (i = 0; i < n; i++) {
        world w;
        mixed_world(&w, &r, (int)set[i]);
        w.layer.skip.mode = ATTN_SKIP_LAMBDA;
        variations(&w);
        CHECK(w.count.dense_tiles > 0, "no request is dense");
        set_skip(&w, ATTN_SKIP_FACTOR, 60);
        variations(&w);
        set_skip(&w, ATTN_SKIP_EPS, 0.1f);
        variations(&w);
        w.layer.split_keys = RUN;
        variations(&w);
        close_world(&w);
    }
}

/* Lanes that are threads: the same bits, and the counters of all lanes add up to the same. */
static void test_threads(void) {
    attn_isa set[4];
    test_rng r = { 57 };
    int n = isas(set), i, j, mode, lanes;
    for (i = 0; i < n; i++) {
        int all[MOST] = { 0, 1, 2, 3, 4, 5 };
        world base;
        mixed_world(&base, &r, (int)set[i]);
        for (mode = ATTN_SKIP_FACTOR; mode <= ATTN_SKIP_EPS; mode++) {
            set_skip(&base, mode, mode == ATTN_SKIP_EPS ? 0.1f : mode == ATTN_SKIP_FACTOR ? 60.0f : 0.03f);
            forward(&base);
            some_skipped(&base);
            for (lanes = 1; lanes <= MOST; lanes++) {
                world w;
                pick_world(&w, &base, all, base.n);
                w.lanes = lanes;
                w.threads = 1;
                forward(&w);
                for (j = 0; j < w.n; j++) same_request(&base, j, &w, j, "threads");
                CHECK(!memcmp(&w.count, &base.count, sizeof w.count), "mode %d, %d threads: %ld tiles skipped, not %ld",
                      mode, lanes, (long)w.count.v_skipped, (long)base.count.v_skipped);
                close_world(&w);
            }
        }
        close_world(&base);
    }
}

/* The plan does not read thresholds: one plan and its memory serve call after call with others, and every call gives
   what a plan of its own would. */
static void one_replay(form f, int isa) {
    enum { CALLS = 5 };
    static const float lambdas[CALLS] = { 0.02f, 0.5f, 0.005f, 2.0f, 0.0f };
    static const int both[] = { 0, 1 };
    test_rng r = { 21 };
    int64_t skipped[CALLS];
    int i, j;
    world w, fresh;
    call c;
    plain_world(&w, f, 4, 2, 5, 2500);
    add_request(&w, 3, 900, w.phase[0]);
    w.layer.isa = isa;
    w.layer.skip.mode = ATTN_SKIP_LAMBDA;
    open_world(&w);
    fill_queries(&w, &r, 0.2f);
    fill_drift(&w, &r, 3, 0.9, 1, 8);
    fill_values(&w, &r);
    open_call(&w, &c);
    for (i = 0; i < CALLS; i++) {
        w.lambda[0] = lambdas[i];
        w.lambda[1] = lambdas[(i + 1) % CALLS];
        run_call(&w, &c);
        skipped[i] = w.count.v_skipped;
        for (j = 0; j < i; j++) {
            CHECK(skipped[i] != skipped[j], "%s: calls %d and %d skip %ld", form_names[f], j, i, (long)skipped[i]);
        }
        pick_world(&fresh, &w, both, 2);
        forward(&fresh);
        for (j = 0; j < 2; j++) same_request(&w, j, &fresh, j, "a replay");
        CHECK(!memcmp(&w.count, &fresh.count, sizeof w.count), "%s, call %d: %ld tiles skipped, not %ld", form_names[f],
              i, (long)skipped[i], (long)fresh.count.v_skipped);
        close_world(&fresh);
    }
    close_call(&c);
    close_world(&w);
}

static void test_replays(void) {
    attn_isa set[4];
    int n = isas(set), i, f;
    for (i = 0; i < n; i++) {
        for (f = 0; f < FORMS; f++) one_replay((form)f, (int)set[i]);
    }
}

/* Drafts in a chain are a tree without branches: the bits, certificates and counters of CAUSAL. The paces of EPS count
   keys, so they must agree about which. Returns how many tiles were skipped. */
static int64_t one_chain(form f, int isa, int window, int sink_keys, test_rng *r) {
    static const int both[] = { 0, 1 };
    int64_t skipped;
    int i, row;
    world w, chain;
    plain_world(&w, f, 4, 2, 24, 1300);
    add_request(&w, 9, 2300, w.phase[0]);
    w.layer.isa = isa;
    w.layer.window_left = window;
    w.layer.sink_keys = sink_keys;
    set_skip(&w, ATTN_SKIP_EPS, 0.1f);
    shape_data(&w, r);
    pick_world(&chain, &w, both, 2);
    chain.layer.mask = ATTN_TREE;
    chain.with_tree = 1;
    for (i = 0; i < 2; i++) {
        for (row = 0; row < chain.q_len[i]; row++) chain.tree[chain.first_row[i] + row] = ((uint32_t)2 << row) - 1;
    }
    forward(&w);
    forward(&chain);
    skipped = w.count.v_skipped;
    for (i = 0; i < 2; i++) same_request(&w, i, &chain, i, "a chain");
    CHECK(!memcmp(&w.count, &chain.count, sizeof w.count), "%s, window %d: %ld tiles skipped, causal %ld",
          form_names[f], window, (long)chain.count.v_skipped, (long)skipped);
    close_world(&w);
    close_world(&chain);
    return skipped;
}

static void test_chain(void) {
    attn_isa set[4];
    test_rng r = { 83 };
    int n = isas(set), i, f, draw;
    for (i = 0; i < n; i++) {
        for (f = 0; f < FORMS; f++) {
            int64_t skipped[3] = { 0, 0, 0 };
            for (draw = 0; draw < 6; draw++) {
                skipped[0] += one_chain((form)f, (int)set[i], 0, 0, &r);
                skipped[1] += one_chain((form)f, (int)set[i], 500, 0, &r);
                skipped[2] += one_chain((form)f, (int)set[i], 500, 70, &r);
            }
            for (draw = 0; draw < 3; draw++) CHECK(skipped[draw] > 0, "%s: nothing skipped", form_names[f]);
        }
    }
}

/* ---- V of skipped tiles ----------------------------------------------------------------------------------------- */

#if defined(__unix__) || defined(__APPLE__)
static int kept_tile(int tile) {
    return tile == 0 || tile == 37 || tile == 38;
}

/* The first run keeps tile 0, the second tiles 37 and 38, the third nothing; the values of a tile fill a page. */
static void open_locked(world *w, form f, int isa, attn_type type, int mode, int page) {
    test_rng r = { 61 };
    int tile;
    plain_world(w, f, 2, 1, 3, 3 * RUN);
    w->layer.isa = isa;
    w->layer.mask = ATTN_FULL;
    w->layer.kv_type = type;
    w->layer.v_dim = page / TILE / formats[type].bytes;
    w->with_scales = type == ATTN_INT8;
    w->layer.scale_kind = type == ATTN_INT8 ? ATTN_SCALE_PER_KEY : ATTN_SCALE_PER_TENSOR;
    set_skip(w, mode, mode == ATTN_SKIP_EPS ? 0.01f : mode == ATTN_SKIP_FACTOR ? 0.01f * 3 * RUN : 0.01f);
    open_world(w);
    fill_queries(w, &r, 0);
    for (tile = 1; tile < 3 * RUN / TILE; tile++) {
        fill_constant(w, 0, tile * TILE, (tile + 1) * TILE, kept_tile(tile) ? -0.5f : -30.0f);
    }
    fill_values(w, &r);
}

/* The call in a process of its own, which a read of a locked page kills. Its status: 0 if the output was o. */
static int run_in_child(world *w, call *c, const float *o) {
    int status = -1;
    pid_t child;
    fflush(stdout);
    child = fork();
    if (child == 0) {
        signal(SIGSEGV, SIG_DFL);   /* a sanitizer would report it */
        signal(SIGBUS, SIG_DFL);
        run_call(w, c);
        _exit(memcmp(w->o, o, (size_t)row_count(w) * (size_t)w->v_dim * sizeof *o) != 0);
    }
    if (child < 0 || waitpid(child, &status, 0) != child) return -1;
    return status;
}

static void one_locked(form f, int isa, attn_type type, int mode) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), tiles = 3 * RUN / TILE, count, tile;
    world w;
    call c;
    char *v = (char *)mmap(NULL, tiles * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
    float *o;
    char text[300];
    CHECK(v != MAP_FAILED, "mmap");
    if (v == MAP_FAILED) return;
    open_locked(&w, f, isa, type, mode, (int)page);
    describe(&w, text, sizeof text);
    open_call(&w, &c);
    memcpy(v, c.cache.v, tiles * page);
    c.io.v = v;
    run_call(&w, &c);
    CHECK(w.count.v_skipped == (int64_t)tiles - 3, "%ld tiles skipped: %s", (long)w.count.v_skipped, text);
    count = (size_t)row_count(&w) * (size_t)w.v_dim;
    o = floats(count, 1, 1);
    memcpy(o, w.o, count * sizeof *o);
    for (tile = 0; tile < tiles; tile++) {
        if (!kept_tile((int)tile)) CHECK(!mprotect(v + tile * page, page, PROT_NONE), "mprotect");
    }
    CHECK(run_in_child(&w, &c, o) == 0, "V of a skipped tile was read: %s", text);
    if (mode == ATTN_SKIP_LAMBDA) { /* the pages are locked indeed */
        w.lambda[0] = 0;
        CHECK(run_in_child(&w, &c, o) != 0, "V of a kept tile was not read: %s", text);
    }
    free(o);
    close_call(&c);
    close_world(&w);
    munmap(v, tiles * page);
}

static void test_locked(void) {
    attn_isa set[4];
    int n = isas(set), i, f, type, mode;
    for (i = 0; i < n; i++) {
        for (f = 0; f < FORMS; f++) {
            for (type = ATTN_F32; type <= ATTN_INT8; type++) {
                for (mode = ATTN_SKIP_FACTOR; mode <= ATTN_SKIP_EPS; mode++) {
                    one_locked((form)f, (int)set[i], (attn_type)type, mode);
                }
            }
        }
    }
}
#else
static void test_locked(void) {
    test_skip("needs mmap and fork");
}
#endif

/* The factors are the phases': a huge one for PREFILL leaves decode rows dense, to the bit, and the other way round. */
static void test_phases(void) {
    attn_isa set[4];
    test_rng r = { 56 };
    int n = isas(set), i, j, mode;
    for (i = 0; i < n; i++) {
        for (mode = ATTN_SKIP_FACTOR; mode <= ATTN_SKIP_EPS; mode += 2) {
            float large = mode == ATTN_SKIP_EPS ? 0.9f : 250.0f;
            world w, dense;
            int all[MOST] = { 0, 1, 2, 3, 4, 5 }, phase;
            mixed_world(&w, &r, (int)set[i]);
            pick_world(&dense, &w, all, w.n);
            forward(&dense);
            for (phase = ATTN_PREFILL; phase <= ATTN_DECODE; phase++) {
                int changed = 0;
                w.layer.skip.mode = mode;
                w.layer.skip.prefill = phase == ATTN_PREFILL ? large : 0;
                w.layer.skip.decode = phase == ATTN_DECODE ? large : 0;
                forward(&w);
                some_skipped(&w);
                for (j = 0; j < w.n; j++) {
                    size_t rows = (size_t)w.q_len[j] * (size_t)w.layer.heads, at = out_at(&w, j, 0, 0), x;
                    if (w.phase[j] != phase) {
                        same_request(&w, j, &dense, j, "the other phase");
                        continue;
                    }
                    for (x = at; x < at + rows; x++) changed += w.certificate[x] > 0;
                }
                CHECK(changed > 10, "mode %d, phase %d: %d rows lost anything", mode, phase, changed);
            }
            close_world(&w);
            close_world(&dense);
        }
    }
}

/* FACTOR divides by the request's own length: a short request beside a long one is dense where factor >= its keys. */
static void test_own_length(void) {
    attn_isa set[4];
    int n = isas(set), i, f;
    for (i = 0; i < n; i++) {
        for (f = 0; f < FORMS; f++) {
            test_rng r = { 8 };
            world w;
            plain_world(&w, (form)f, 2, 1, 1, 128);
            add_request(&w, 1, 4096, w.phase[0]);
            add_request(&w, 1, 256, w.phase[0]);
            w.layer.isa = (int)set[i];
            set_skip(&w, ATTN_SKIP_FACTOR, 200);
            open_world(&w);
            fill_queries(&w, &r, 0);
            fill_constant(&w, 0, 64, 128, -20);
            fill_constant(&w, 1, 64, 4096, -2.9f);  /* ln(4096 / 200) = 3.02 */
            fill_constant(&w, 1, 128, 192, -3.1f);
            fill_constant(&w, 2, 64, 256, -0.3f);   /* ln(256 / 200) = 0.247 */
            fill_values(&w, &r);
            CHECK(run_and_compare(&w), "a tie");
            CHECK(w.count.dense_tiles == 2, "%ld dense tiles", (long)w.count.dense_tiles);
            CHECK(w.count.v_skipped == 1 + 3, "%s: %ld skipped", form_names[f], (long)w.count.v_skipped);
            CHECK(w.certificate[0] == 0 && w.certificate[2] > 0 && w.certificate[4] > 0, "certificates");
            close_world(&w);
        }
    }
}

/* Without counters the vote may end early; outputs are the same. lse and certificate may be left out, too. Calls add to
   the counters, and a task adds to those of its lane. */
static void leave_out(form f, int isa, int mode) {
    test_rng r = { 12 };
    attn_counters counters[3], once;
    world w;
    call c;
    float *o;
    size_t count;
    int round, i;
    plain_world(&w, f, 4, 2, 9, 2500);
    w.layer.isa = isa;
    w.layer.row_tile = 16;
    w.lanes = 2;
    set_skip(&w, mode, mode == ATTN_SKIP_EPS ? 0.1f : mode == ATTN_SKIP_FACTOR ? 50.0f : 0.02f);
    open_world(&w);
    fill_queries(&w, &r, 0.2f);
    fill_drift(&w, &r, 3, 0.9, 1, 8);
    fill_values(&w, &r);
    open_call(&w, &c);
    run_call(&w, &c);
    some_skipped(&w);
    once = w.count;
    count = (size_t)row_count(&w) * (size_t)w.v_dim;
    o = floats(count, 1, 1);
    c.io.o = o;
    c.io.lse = NULL;
    c.io.certificate = NULL;
    memset(counters, 0, sizeof counters);
    for (round = 0; round < 3; round++) {
        c.io.counters = round ? counters : NULL;
        memset(o, 0xff, count * sizeof *o);
        CHECK(!attn_forward(&c.plan, &w.layer, &c.io, &c.exec, NULL), "attn_forward");
        CHECK(!memcmp(o, w.o, count * sizeof *o), "%s %s mode %d, round %d: other bits", isa_name(isa), form_names[f],
              mode, round);
    }
    add_counters(&counters[0], &counters[1]);
    add_counters(&once, &w.count);
    CHECK(!memcmp(&counters[0], &once, sizeof once), "%ld tiles of two calls, not %ld", (long)counters[0].tiles,
          (long)once.tiles);
    memset(counters, 0, sizeof counters);
    for (i = 0; i < attn_task_count(&c.plan, ATTN_COMPUTE); i++) {
        attn_task(&c.plan, &c.io, &c.exec, ATTN_COMPUTE, i, i % 2);
    }
    CHECK(counters[0].tiles > 0 && counters[1].tiles > 0 && counters[2].tiles == 0, "%ld, %ld and %ld tiles",
          (long)counters[0].tiles, (long)counters[1].tiles, (long)counters[2].tiles);
    CHECK(counters[0].tiles + counters[1].tiles == w.count.tiles, "not %ld tiles", (long)w.count.tiles);
    free(o);
    close_call(&c);
    close_world(&w);
}

static void test_optional(void) {
    attn_isa set[4];
    int n = isas(set), i, f, mode;
    for (i = 0; i < n; i++) {
        for (f = 0; f < FORMS; f++) {
            for (mode = ATTN_SKIP_FACTOR; mode <= ATTN_SKIP_EPS; mode++) leave_out((form)f, (int)set[i], mode);
        }
    }
}

/* ---- how much falls --------------------------------------------------------------------------------------------- */

/* The figures of the design are promises on synthetic logits, and the generator (fill_drift) is ours: they rank rules
   and catch an implementation that hardly skips; they do not predict a model. 32,768 keys in tiles of 64, 8 rows of one
   kv head, drift of deviation 3 shared to .9, noise 1, sink keys at 8, 10.5 or 15. */
static void test_how_much(void) {
    enum { KV = 32768, SEEDS = 5 };
    static const double strengths[3] = { 8, 10.5, 15 };
    static const double least_skipped[2][3] = { { .40, .45, .60 }, { .10, .20, .50 } };
    double share[2][3] = { { 0 } };
    int seed, s, phase, i, x;
    for (seed = 0; seed < SEEDS; seed++) {
        test_rng r = { 100 + (uint64_t)seed };
        float first[4][8];
        world w;
        plain_world(&w, WHOLE, 8, 1, 1, KV);
        w.layer.head_dim = 8;
        open_world(&w);
        fill_queries(&w, &r, 0);
        fill_drift(&w, &r, 3, 0.9, 1, 1e-9);
        fill_values(&w, &r);
        set_skip(&w, ATTN_SKIP_EPS, 0.05f);
        for (i = 0; i < 4; i++) memcpy(first[i], key_row(&w, 0, i, 0), sizeof first[i]);
        for (s = 0; s < 3; s++) {
            for (i = 0; i < 4; i++) {
                for (x = 0; x < 8; x++) key_row(&w, 0, i, 0)[x] = first[i][x] + (float)strengths[s];
            }
            for (phase = 0; phase < 2; phase++) {
                w.phase[0] = phase ? ATTN_DECODE : ATTN_PREFILL;
                forward(&w);
                CHECK(w.count.tiles == KV / TILE, "%ld tiles", (long)w.count.tiles);
                share[phase][s] += (double)w.count.v_skipped / (double)w.count.tiles / SEEDS;
                for (i = 0; i < 8; i++) CHECK((double)w.certificate[i] <= .05 / 1.05, "%g", (double)w.certificate[i]);
            }
        }
        close_world(&w);
    }
    for (phase = 0; phase < 2; phase++) {
        for (s = 0; s < 3; s++) {
            CHECK(share[phase][s] >= least_skipped[phase][s] && share[phase][s] < 1, "phase %d, sink %g: %.3f skipped",
                  phase, strengths[s], share[phase][s]);
            if (getenv("SKIP_FIGURES")) printf("  phase %d, sink %g: %.3f\n", phase, strengths[s], share[phase][s]);
        }
    }
}

/* ---- AMX, which needs all types in bf16 ------------------------------------------------------------------------- */

enum { TILES_Q = 70, TILES_KV = 3000, TILES_DIM = 64 };

static float of_bf16(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Numbers of -1 .. 1 with eight bits, which bf16 holds. */
static void fill_bf16(uint16_t *x, int n, test_rng *r) {
    int i;
    for (i = 0; i < n; i++) {
        float y = (float)test_range(r, -128, 128) / 128;
        uint32_t bits;
        memcpy(&bits, &y, sizeof bits);
        x[i] = (uint16_t)(bits >> 16);
    }
}

/* Element 0 of q is 64, so that of a key decides its logit: 0 in every fourth tile, else 16 lower. */
static void quiet_tiles(uint16_t *q, uint16_t *k) {
    int i;
    for (i = 0; i < TILES_Q; i++) q[i * TILES_DIM] = 0x4280;
    for (i = 0; i < TILES_KV; i++) k[i * TILES_DIM] = i / TILE % 4 ? 0xc000 : 0;
}

/* One row: DECODE, else a prompt. */
static void dense_bf16(attn_layer *layer, int32_t rows, attn_io *io, int mode, float value, float *lambda) {
    const int32_t kv_len = TILES_KV, phase = rows > 1 ? ATTN_PREFILL : ATTN_DECODE;
    attn_batch batch;
    attn_plan plan;
    attn_exec exec;
    attn_error error;
    size_t bytes;
    void *mem;
    layer->skip.mode = mode;
    layer->skip.prefill = layer->skip.decode = mode == ATTN_SKIP_LAMBDA ? 0 : value;
    *lambda = value;
    io->lambda = mode == ATTN_SKIP_LAMBDA ? lambda : NULL;
    memset(&batch, 0, sizeof batch);
    memset(&exec, 0, sizeof exec);
    batch.n = 1;
    batch.q_len = &rows;
    batch.kv_len = &kv_len;
    batch.phase = &phase;
    bytes = attn_plan_bytes(&batch, layer);
    mem = need(bytes);
    CHECK(!attn_plan_make(&plan, &batch, layer, mem, bytes, &error), "%s", error.text);
    exec.bytes = attn_exec_bytes(&plan, 1);
    exec.mem = need(exec.bytes);
    CHECK(!attn_forward(&plan, layer, io, &exec, &error), "%s", error.text);
    free(exec.mem);
    free(mem);
}

/* Against the dense bits: equal where nothing can fall, else off by no more than the certificate says. */
static void check_bf16(attn_layer *layer, int rows, attn_io *io, int mode, float value) {
    static uint16_t dense[TILES_Q * TILES_DIM];
    static float certificate[TILES_Q];
    attn_counters count[2];
    uint16_t *o = (uint16_t *)io->o;
    float lambda, lost = 0;
    int i;
    io->counters = NULL;
    io->certificate = NULL;
    dense_bf16(layer, rows, io, ATTN_SKIP_OFF, 0, &lambda);
    memcpy(dense, o, sizeof dense); /* all rows, of which DECODE has one */
    memset(count, 0, sizeof count);
    io->counters = count;
    io->certificate = certificate;
    dense_bf16(layer, rows, io, mode, value, &lambda);
    if (value < 1e-20f) CHECK(!memcmp(o, dense, sizeof dense), "mode %d of %g changes bits", mode, (double)value);
    CHECK((count->v_skipped > 0) == (value > 1e-20f), "mode %d of %g: %ld skipped", mode, (double)value,
          (long)count->v_skipped);
    for (i = 0; i < rows * TILES_DIM; i++) { /* o and the weights are rounded; values are -1 .. 1 */
        double got = (double)of_bf16(o[i]), want = (double)of_bf16(dense[i]);
        CHECK(fabs(got - want) <= 2 * (double)certificate[i / TILES_DIM] + 1.0 / 64, "row %d: %g, dense %g",
              i / TILES_DIM, got, want);
        lost = certificate[i / TILES_DIM] > lost ? certificate[i / TILES_DIM] : lost;
    }
    CHECK((lost > 0 && lost < 0.06f) == (value > 1e-20f), "mode %d of %g: certificate %g", mode, (double)value,
          (double)lost);
}

static void test_amx(void) {
    static uint16_t q[TILES_Q * TILES_DIM], k[TILES_KV * TILES_DIM], v[TILES_KV * TILES_DIM], o[TILES_Q * TILES_DIM];
    attn_layer layer;
    attn_io io;
    test_rng r = { 31 };
    if (!has_isa(ATTN_ISA_AMX)) {
        test_skip("this CPU or build has no AMX");
        return;
    }
    memset(&layer, 0, sizeof layer);
    memset(&io, 0, sizeof io);
    layer.heads = 1;
    layer.head_dim = TILES_DIM;
    layer.q_type = layer.kv_type = layer.o_type = ATTN_BF16;
    layer.isa = ATTN_ISA_AMX;
    layer.key_tile = TILE;
    fill_bf16(q, TILES_Q * TILES_DIM, &r);
    fill_bf16(k, TILES_KV * TILES_DIM, &r);
    fill_bf16(v, TILES_KV * TILES_DIM, &r);
    quiet_tiles(q, k);
    io.q = q;
    io.k = k;
    io.v = v;
    io.o = o;
    for (layer.split_keys = 0; layer.split_keys <= RUN; layer.split_keys += RUN) {
        int rows;
        for (rows = TILES_Q; rows > 0; rows -= TILES_Q - 1) { /* a prompt, a row of DECODE */
            check_bf16(&layer, rows, &io, ATTN_SKIP_LAMBDA, 1e-30f);
            check_bf16(&layer, rows, &io, ATTN_SKIP_LAMBDA, 0.01f);
            check_bf16(&layer, rows, &io, ATTN_SKIP_FACTOR, 10.0f);
            check_bf16(&layer, rows, &io, ATTN_SKIP_EPS, 0.05f);
        }
    }
}

int main(int argc, char **argv) {
    if (argc > 1) test.only = argv[1];
    test_run("nothing to skip: the bits of the dense kernel", test_dense_bits);
    test_run("skipping off: the certificate is 0", test_off);
    test_run("lambda of 1 or more: dense, and counted", test_above_one);
    test_run("a tile 10 below: ln lambda -9 skips, -11 keeps", test_one_gap);
    test_run("distances and bins of the histogram", test_bins);
    test_run("EPS: a budget just above and just below a tile", test_budget);
    test_run("random inputs: decisions and outputs of the oracle", test_random);
    test_run("monotone in lambda, and the histogram is the curve", test_curve);
    test_run("guarantees on 100,000 rows", test_guarantees);
    test_run("masks, windows, sinks, types, head dims", test_shapes);
    test_run("lengths around a tile", test_lengths);
    test_run("runs in which everything is skipped", test_all_skipped);
    test_run("certificates of long rows", test_long_rows);
    test_run("a skipped tile far above what its run kept", test_leap);
    test_run("a NaN spoils its row only", test_nan);
    test_run("decisions and bits do not depend on the batch", test_batches);
    test_run("threads: the same bits and counts", test_threads);
    test_run("one plan, other thresholds in every call", test_replays);
    test_run("EPS: a chain of drafts has the bits of CAUSAL", test_chain);
    test_run("V of skipped tiles is not read", test_locked);
    test_run("each phase has its own factor", test_phases);
    test_run("each request has its own length", test_own_length);
    test_run("counters add up, outputs are optional", test_optional);
    test_run("how much falls at eps .05", test_how_much);
    test_run("bf16 on amx, prompts and DECODE: bits, certificates", test_amx);
    return test_close("skip");
}
