/* properties.c - what must not change a bit, tested with memcmp: page layout, chunking, neighbours, order, threads,
   capacities, tile and worker counts, old memory. Every comparison first proves that its case has something to get
   wrong: at least 3 units of 256 keys, 2 row tiles, and merges where the work is cut.
   Usage: properties [name part] */
#define _POSIX_C_SOURCE 200809L
#include "../attn.h"
#include "cases.h"
#include "isas.h"
#include "ref.h"
#include "test.h"
#include "threads.h"

#include <math.h>
#include <pthread.h>

#define COUNT(list) ((int)(sizeof(list) / sizeof *(list)))

static attn_isa isas[4];
static int isa_count;

/* ---- layers ----------------------------------------------------------------------------------------------------- */

typedef struct layer_case {
    const char *name;
    int heads, kv_heads, head_dim, v_dim;
    attn_type q_type, kv_type, o_type;
    attn_mask mask;
    int left, right, sink_keys, split_keys, sinks;
    float softcap;
    int chunk;
} layer_case;

static const layer_case layers[] = {
    { "f32", 4, 2, 16, 16, ATTN_F32, ATTN_F32, ATTN_F32, ATTN_CAUSAL, 0, 0, 0, 0, 0, 0, 0 },
    { "f16 window", 4, 1, 24, 16, ATTN_F16, ATTN_F16, ATTN_F32, ATTN_CAUSAL, 600, 0, 0, 0, 0, 0, 0 },
    { "bf16 sinks softcap", 6, 2, 40, 20, ATTN_BF16, ATTN_BF16, ATTN_BF16, ATTN_CAUSAL, 0, 0, 0, 0, 1, 20, 0 },
    { "sink keys", 2, 2, 16, 8, ATTN_F32, ATTN_F16, ATTN_F16, ATTN_CAUSAL, 500, 0, 300, 0, 1, 0, 0 },
    { "split 256", 3, 1, 16, 16, ATTN_F32, ATTN_F32, ATTN_F32, ATTN_CAUSAL, 0, 0, 0, 256, 1, 0, 0 },
    { "split 512 window", 4, 2, 8, 24, ATTN_F16, ATTN_BF16, ATTN_F32, ATTN_CAUSAL, 650, 0, 3, 512, 0, 0, 0 },
    { "full windows", 4, 2, 16, 16, ATTN_F32, ATTN_F32, ATTN_F32, ATTN_FULL, 600, 70, 10, 256, 1, 0, 0 },
    { "chunks of 500", 4, 2, 16, 16, ATTN_F32, ATTN_F32, ATTN_F32, ATTN_CAUSAL, 0, 0, 0, 256, 0, 0, 500 },
    { "prefix", 4, 2, 16, 16, ATTN_F32, ATTN_F16, ATTN_F32, ATTN_PREFIX, 700, 0, 5, 256, 0, 0, 0 },
    { "blocks of 10", 4, 2, 16, 16, ATTN_F32, ATTN_F32, ATTN_F32, ATTN_BLOCK, 0, 0, 0, 256, 0, 0, 10 },
    { "fast int8", 4, 2, 24, 16, ATTN_F32, ATTN_INT8, ATTN_F32, ATTN_CAUSAL, 0, 0, 0, 0, 1, 0, 0 },
};

static void set_layer(case_spec *s, const layer_case *l) {
    s->layer.heads = l->heads;
    s->layer.kv_heads = l->kv_heads;
    s->layer.head_dim = l->head_dim;
    s->layer.v_dim = l->v_dim;
    s->layer.q_type = l->q_type;
    s->layer.kv_type = l->kv_type;
    s->layer.o_type = l->o_type;
    s->layer.mask = l->mask;
    s->layer.window_left = l->left;
    s->layer.window_right = l->right;
    s->layer.sink_keys = l->sink_keys;
    s->layer.split_keys = l->split_keys;
    s->layer.softcap = l->softcap;
    s->layer.chunk = l->chunk;
    s->layer.row_tile = 16;
    s->layer.workers = 7;
    s->sinks = l->sinks;
    if (l->kv_type == ATTN_INT8) {
        s->layer.flags = ATTN_FAST_INT8;
        s->layer.scale_kind = ATTN_SCALE_PER_KEY;
        s->k_scale = s->v_scale = 1;
    }
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

/* One long request of 40 rows and 1,000 keys and two short ones. */
static void base_spec(case_spec *s, const layer_case *l, int phase) {
    case_defaults(s);
    set_layer(s, l);
    s->n = 0;
    add_request(s, 40, 1000, phase, 0);
    add_request(s, 3, 700, phase, 1);
    add_request(s, 1, 513, phase, 2);
}

/* ---- running and comparing -------------------------------------------------------------------------------------- */

static void run(test_case *c) {
    int status = case_plan(c);
    if (status == 0) status = case_forward(c);
    CHECK(status == 0, "status %d: %s %s", status, c->message, c->error.text);
}

static void run_isa(test_case *c, attn_isa isa) {
    c->layer.isa = (int32_t)isa;
    run(c);
}

static void open_run(test_case *c, const case_spec *s, attn_isa isa) {
    case_open(c, s);
    run_isa(c, isa);
}

/* One specification, run with each of isas[]. */
typedef struct runs {
    test_case of[4];
} runs;

static void open_runs(runs *r, const case_spec *s) {
    int i;
    for (i = 0; i < isa_count; i++) open_run(&r->of[i], s, isas[i]);
}

static void close_runs(runs *r) {
    int i;
    for (i = 0; i < isa_count; i++) case_close(&r->of[i]);
}

/* Units of 256 keys that the first row of the request with the longest cache sees. */
static int units_seen(const test_case *c) {
    int units = 0;
    int i;
    for (i = 0; i < c->spec.n; i++) {
        int position = c->kv_len[i] - c->q_len[i];
        int first = c->layer.window_left ? position + 1 - c->layer.window_left : 0;
        int seen = position / 256 - (first > 0 ? first / 256 : 0) + 1;
        if (c->q_len[i] && seen > units) units = seen;
    }
    return units;
}

/* Fails when the planned case could not show a difference. */
static void meaningful(const test_case *c) {
    int cut = c->layer.split_keys != 0;
    int i;
    for (i = 0; i < c->spec.n; i++) cut = cut || (c->q_len[i] && c->phase[i] == ATTN_DECODE);
    CHECK(units_seen(c) >= 3, "only %d units", units_seen(c));
    CHECK(c->plan.strips >= 2, "only %d row tiles", c->plan.strips);
    CHECK(!cut || c->plan.merges > 0, "%d tasks but nothing to merge", c->plan.tasks);
    CHECK(c->plan.tasks >= 2, "only %d tasks", c->plan.tasks);
}

static void all_meaningful(const runs *r) {
    int i;
    for (i = 0; i < isa_count; i++) meaningful(&r->of[i]);
}

/* The first `rows` rows from row ja of request ra on are those of another request or run. */
static void same_rows(const test_case *a, int ra, int ja, const test_case *b, int rb, int jb, int rows,
                      const char *what) {
    int j;
    for (j = 0; j < rows; j++) {
        CHECK(case_same_row(a, ra, ja + j, b, rb, jb + j), "%s, %s: row %d of request %d", what,
              case_isa_name((attn_isa)a->layer.isa), ja + j, ra);
    }
}

/* Runs the specification with each instruction set: the first rows of request rs have the bits of those in `r` from row
   jr of request rr on. */
static void same_rows_as(const runs *r, int rr, int jr, const case_spec *s, int rs, int rows, const char *what) {
    test_case c;
    int i;
    case_open(&c, s);
    for (i = 0; i < isa_count; i++) {
        run_isa(&c, isas[i]);
        same_rows(&r->of[i], rr, jr, &c, rs, 0, rows, what);
    }
    case_close(&c);
}

/* What same_specs ran last: most tests compare one case with many. */
static struct {
    case_spec spec;
    runs runs;
    int is_open;
} base;

static void close_base(void) {
    if (base.is_open) close_runs(&base.runs);
    base.is_open = 0;
}

static void open_base(const case_spec *s) {
    if (base.is_open && !memcmp(&base.spec, s, sizeof *s)) return;
    close_base();
    memcpy(&base.spec, s, sizeof *s);
    open_runs(&base.runs, s);
    all_meaningful(&base.runs);
    base.is_open = 1;
}

/* a is meaningful; b holds the same requests and must give the same bits. */
static void same_specs(const case_spec *a, const case_spec *b, const char *what) {
    test_case c;
    int i;
    open_base(a);
    case_open(&c, b);
    for (i = 0; i < isa_count; i++) {
        run_isa(&c, isas[i]);
        CHECK(case_same(&base.runs.of[i], &c), "%s, %s", what, case_isa_name(isas[i]));
    }
    case_close(&c);
}

/* Calls test(layer, phase) for every layer and phase. */
static void each_layer(void (*fn)(const layer_case *l, int phase)) {
    int l;
    for (l = 0; l < COUNT(layers); l++) {
        fn(&layers[l], ATTN_PREFILL);
        fn(&layers[l], ATTN_DECODE);
    }
    close_base();
}

/* ---- layout ----------------------------------------------------------------------------------------------------- */

static void paged_layer(const layer_case *l, int phase) {
    static const int pages[] = { 1, 2, 3, 16, 48, 64, 256, 300 };
    case_spec a;
    case_spec b;
    int p;
    base_spec(&a, l, phase);
    b = a;
    b.padded = 1;
    b.q_head_gap = b.o_head_gap = b.k_head_gap = b.v_head_gap = 9;
    b.k_row_gap = 31;
    same_specs(&a, &b, "padded");
    b.padded = 0;
    b.head_major = 1;
    same_specs(&a, &b, "head-major");
    for (p = 0; p < COUNT(pages); p++) {
        b = a;
        b.layer.page_size = pages[p];
        b.order = (case_order)(p % 4);
        b.head_major = p & 1;
        b.k_head_gap = b.v_head_gap = p % 3 - 1;
        b.v_page_gap = p;
        b.shift = p;
        b.hide = 1;
        same_specs(&a, &b, l->name);
    }
}

static void paged_equals_contiguous(void) {
    each_layer(paged_layer);
}

/* ---- chunks and verify rows ------------------------------------------------------------------------------------- */

/* The chunk that starts at token `start` and has `rows` rows, compared with the same rows of the whole. */
static void chunk_run(const runs *whole, const layer_case *l, int phase, int start, int rows) {
    case_spec s;
    case_defaults(&s);
    set_layer(&s, l);
    s.n = 0;
    add_request(&s, rows, start + rows, phase, 0);
    same_rows_as(whole, 0, start, &s, 0, rows, l->name);
}

/* At most about 6 of the chunks of a size, the last one always. */
static void chunk_size(const runs *whole, const layer_case *l, int phase, int size) {
    int total = whole->of[0].kv_len[0];
    int chunks = (total + size - 1) / size;
    int step = chunks / 6 + 1;
    int i;
    for (i = (chunks - 1) % step; i < chunks; i += step) {
        int start = i * size;
        chunk_run(whole, l, phase, start, start + size < total ? size : total - start);
    }
}

static void chunk_layer(const layer_case *l, int phase) {
    static const int sizes[] = { 7, 16, 64, 250, 256, 899 };
    static const int rows[] = { 0, 1, 255, 256, 257, 600, 767, 768, 899 };
    case_spec s;
    runs whole;
    int i;
    int k;
    if (l->mask != ATTN_CAUSAL) return;
    case_defaults(&s);
    set_layer(&s, l);
    s.n = 0;
    add_request(&s, 900, 900, phase, 0);
    open_runs(&whole, &s);
    for (i = 0; i < isa_count; i++) {
        const test_case *c = &whole.of[i];
        CHECK(c->plan.strips >= 2 && c->kv_len[0] > 512, "%d strips", c->plan.strips);
        CHECK(phase == ATTN_PREFILL || c->plan.merges > 0, "nothing to merge");
    }
    for (k = 0; k < COUNT(sizes); k++) chunk_size(&whole, l, phase, sizes[k]);
    for (k = 0; k < COUNT(rows); k++) chunk_run(&whole, l, phase, rows[k], 1);
    close_runs(&whole);
}

static void chunks_equal_whole(void) {
    each_layer(chunk_layer);
}

/* Verifies `rows` drafts of two requests at once; every step-th row must have the bits of its token decoded alone. */
static void verify_rows(case_spec drafts, case_spec plain, int rows, int step, const char *name) {
    static const int kv_len[2] = { 1000, 801 };
    runs verify;
    test_case one;
    int i;
    int j;
    int k;
    drafts.n = plain.n = 0;
    for (k = 0; k < 2; k++) {
        add_request(&drafts, rows, kv_len[k], ATTN_DECODE, (uint32_t)k);
        add_request(&plain, 1, kv_len[k], ATTN_DECODE, (uint32_t)k);
    }
    open_runs(&verify, &drafts);
    all_meaningful(&verify);
    for (j = 0; j < rows; j += step) {
        for (k = 0; k < 2; k++) plain.request[k].kv_len = kv_len[k] - rows + 1 + j;
        case_open(&one, &plain);
        for (i = 0; i < isa_count; i++) {
            run_isa(&one, isas[i]);
            for (k = 0; k < 2; k++) same_rows(&one, k, 0, &verify.of[i], k, j, 1, name);
        }
        case_close(&one);
    }
    close_runs(&verify);
}

static void verify_layer(const layer_case *l, int phase) {
    case_spec s;
    int rows;
    if (phase != ATTN_DECODE || l->mask != ATTN_CAUSAL) return;
    case_defaults(&s);
    set_layer(&s, l);
    for (rows = 2; rows <= 17; rows++) verify_rows(s, s, rows, 1, l->name);
}

static void verify_equals_decode(void) {
    each_layer(verify_layer);
}

/* The last draft is NaN or inf, which no row before it sees. */
static void edit_last_draft(void *user, case_array array, int request, int token, int head, int dim, float *value) {
    (void)user;
    (void)head;
    if (array != CASE_Q && token == (request ? 800 : 999) && dim < 2) *value = dim ? INFINITY : NAN;
}

/* Many rows a kv head, which may be computed in another way than few: 64 and more stand in the lanes of AVX-512. */
static void many_rows(void) {
    static const layer_case many[] = {
        { "40 of f32", 8, 2, 40, 20, ATTN_F32, ATTN_F32, ATTN_F32, ATTN_CAUSAL, 0, 0, 0, 0, 1, 0, 0 },
        { "64 of f16, window", 8, 2, 64, 64, ATTN_F16, ATTN_F16, ATTN_F32, ATTN_CAUSAL, 615, 0, 70, 0, 0, 0, 0 },
        { "80 of bf16, softcap", 5, 1, 80, 80, ATTN_F32, ATTN_BF16, ATTN_BF16, ATTN_CAUSAL, 0, 0, 0, 0, 0, 20, 0 },
        { "128 of int8", 4, 1, 128, 128, ATTN_F32, ATTN_INT8, ATTN_F32, ATTN_CAUSAL, 0, 0, 0, 0, 1, 0, 0 },
        { "256 of e4m3, chunks", 4, 1, 256, 40, ATTN_F16, ATTN_E4M3, ATTN_F32, ATTN_CAUSAL, 0, 0, 0, 0, 0, 0, 990 },
        { "42 of f32, not in lanes", 4, 1, 42, 16, ATTN_F32, ATTN_F32, ATTN_F32, ATTN_CAUSAL, 0, 0, 0, 0, 0, 0, 0 },
    };
    case_spec s;
    int l;
    for (l = 0; l < COUNT(many); l++) {
        case_defaults(&s);
        set_layer(&s, &many[l]);
        s.layer.flags = 0;
        s.layer.row_tile = l == 1 ? 128 : 0;
        s.layer.key_tile = l == 0 ? 32 : 0;
        s.layer.page_size = l == 4 ? 48 : 0;
        s.alibi = l & 1;
        s.edit = s.layer.kv_type == ATTN_INT8 ? NULL : edit_last_draft;
        verify_rows(s, s, 8, 5, many[l].name);
        verify_rows(s, s, 12, 7, many[l].name);
        verify_rows(s, s, 16, 7, many[l].name);
        verify_rows(s, s, 64, 31, many[l].name);
    }
}

/* 144 rows of a kv head in strips of 80 and 64: only those of 64 stand in the lanes of AVX-512, and a plan without
   prompts has memory for that. */
static void lanes_beside_none(void) {
    static const layer_case layer = {
        "80 and 64", 144, 1, 64, 64, ATTN_F32, ATTN_F32, ATTN_F32, ATTN_CAUSAL, 0, 0, 0, 0, 0, 0, 0
    };
    case_spec a;
    case_spec b;
    case_defaults(&a);
    set_layer(&a, &layer);
    a.n = 0;
    a.null_arrays = 1;
    add_request(&a, 1, 600, ATTN_DECODE, 1);
    b = a;
    b.layer.row_tile = 80;
    same_specs(&a, &b, layer.name);
}

/* ---- neighbours ------------------------------------------------------------------------------------------------- */

enum { BATCH = 64 };

static void crowd(case_spec *s, test_rng *r, int full) {
    int i;
    for (i = 0; i < BATCH; i++) {
        int kv_len = i % 16 == 3 ? 700 + i : test_range(r, 0, 60);
        int q_len = i % 7 == 0 ? 0 : test_range(r, 0, full ? 20 : kv_len < 20 ? kv_len : 20);
        add_request(s, q_len, kv_len, test_range(r, 0, 1), (uint32_t)(100 + i));
    }
}

static void place_target(case_spec *s, int at, int phase) {
    case_request *r = &s->request[at];
    memset(r, 0, sizeof *r);
    r->q_len = 20;
    r->kv_len = 1000;
    r->phase = phase;
    r->content = 7;
}

static void batch_layer(const layer_case *l, int phase) {
    static const int places[] = { 0, 31, 63 };
    case_spec s;
    runs alone;
    test_rng r;
    int p;
    r.state = 5;
    case_defaults(&s);
    set_layer(&s, l);
    place_target(&s, 0, phase);
    open_runs(&alone, &s);
    all_meaningful(&alone);
    for (p = 0; p < COUNT(places); p++) {
        s.n = 0;
        crowd(&s, &r, l->mask == ATTN_FULL);
        place_target(&s, places[p], phase);
        s.layer.page_size = p == 1 ? 16 : 0;
        s.order = CASE_SHUFFLED;
        same_rows_as(&alone, 0, 0, &s, places[p], 20, l->name);
    }
    close_runs(&alone);
}

static void alone_equals_batch(void) {
    each_layer(batch_layer);
}

static void order_layer(const layer_case *l, int phase) {
    case_spec s;
    case_spec t;
    runs a;
    test_case b;
    test_rng r;
    int i;
    int k;
    (void)phase;
    r.state = 11;
    case_defaults(&s);
    set_layer(&s, l);
    s.n = 0;
    crowd(&s, &r, l->mask == ATTN_FULL);
    t = s;
    for (k = 0; k < BATCH; k++) t.request[k] = s.request[BATCH - 1 - k];
    open_runs(&a, &s);
    all_meaningful(&a);
    case_open(&b, &t);
    for (i = 0; i < isa_count; i++) {
        run_isa(&b, isas[i]);
        for (k = 0; k < BATCH; k++) {
            same_rows(&a.of[i], k, 0, &b, BATCH - 1 - k, 0, a.of[i].q_len[k], l->name);
        }
    }
    close_runs(&a);
    case_close(&b);
}

static void any_order(void) {
    each_layer(order_layer);
}

/* ---- threads ---------------------------------------------------------------------------------------------------- */

static void lanes_layer(const layer_case *l, int phase) {
    static const int lanes[] = { 1, 2, 3, 7 };
    case_spec s;
    runs a;
    test_case b;
    int i;
    int k;
    int threads;
    base_spec(&s, l, phase);
    open_runs(&a, &s);
    all_meaningful(&a);
    for (k = 0; k < COUNT(lanes); k++) {
        s.lanes = lanes[k];
        s.seed = a.of[0].spec.seed;
        case_open(&b, &s);
        for (threads = 0; threads < 3; threads++) {
            b.lane_seed = (uint64_t)(100 * k + threads);
            b.exec.parallel_for = threads ? thread_lanes : case_lanes;
            for (i = 0; i < isa_count; i++) {
                run_isa(&b, isas[i]);
                CHECK(case_same(&a.of[i], &b), "%s: %d %s, %s", l->name, lanes[k], threads ? "threads" : "lanes",
                      case_isa_name(isas[i]));
            }
        }
        case_close(&b);
    }
    close_runs(&a);
}

static void any_lanes(void) {
    each_layer(lanes_layer);
}

/* The tasks of a stage in an order drawn from the seed, on changing lanes. */
static void shuffled_tasks(test_case *c, attn_stage stage, test_rng *r) {
    int n = attn_task_count(&c->plan, stage);
    int *order = (int *)malloc(((size_t)n + 1) * sizeof *order);
    int i;
    if (!order) abort();
    for (i = 0; i < n; i++) order[i] = i;
    for (i = n - 1; i > 0; i--) {
        int j = test_range(r, 0, i);
        int t = order[i];
        order[i] = order[j];
        order[j] = t;
    }
    for (i = 0; i < n; i++) attn_task(&c->plan, &c->io, &c->exec, stage, order[i], i % c->exec.lanes);
    free(order);
}

static void tasks_layer(const layer_case *l, int phase) {
    case_spec s;
    test_case a;
    test_case b;
    test_rng r;
    int i;
    int status;
    for (i = 0; i < isa_count; i++) {
        r.state = 3;
        base_spec(&s, l, phase);
        open_run(&a, &s, isas[i]);
        meaningful(&a);
        s.lanes = 3;
        open_run(&b, &s, isas[i]);
        case_reset_outputs(&b);
        status = attn_check(&b.plan, &b.layer, &b.io, &b.exec, &b.error);
        CHECK(status == 0, "attn_check: %s", b.error.text);
        shuffled_tasks(&b, ATTN_COMPUTE, &r);
        shuffled_tasks(&b, ATTN_MERGE, &r);
        CHECK(memcmp(a.out, b.o.data, b.o.bytes) == 0, "%s: o, %s", l->name, case_isa_name(isas[i]));
        CHECK(memcmp(a.out_lse, b.lse.data, b.lse.bytes) == 0, "%s: lse, %s", l->name, case_isa_name(isas[i]));
        case_close(&a);
        case_close(&b);
    }
}

static void tasks_any_order(void) {
    each_layer(tasks_layer);
}

/* Threads that share one plan and one io but for the outputs. */
typedef struct sharer {
    const test_case *c;
    unsigned char *o;
    float *lse;
    int status;
} sharer;

static void *share_main(void *user) {
    sharer *s = (sharer *)user;
    attn_io io = s->c->io;
    attn_exec exec;
    int i;
    memset(&exec, 0, sizeof exec);
    exec.bytes = attn_exec_bytes(&s->c->plan, 1);
    exec.mem = malloc(exec.bytes + 1);
    io.o = s->o;
    io.lse = s->lse;
    s->status = exec.mem ? 0 : -1;
    for (i = 0; i < 3 && s->status == 0; i++) {
        s->status = attn_forward(&s->c->plan, &s->c->layer, &io, &exec, NULL);
    }
    free(exec.mem);
    return NULL;
}

static void shared_plan_layer(const layer_case *l, int phase) {
    enum { THREADS = 4 };
    pthread_t threads[THREADS];
    sharer sharers[THREADS];
    case_spec s;
    test_case c;
    int i;
    int t;
    for (i = 0; i < isa_count; i++) {
        base_spec(&s, l, phase);
        open_run(&c, &s, isas[i]);
        meaningful(&c);
        for (t = 0; t < THREADS; t++) {
            sharers[t].c = &c;
            sharers[t].o = (unsigned char *)calloc(1, c.o.bytes);
            sharers[t].lse = (float *)calloc(1, c.lse.bytes);
            if (!sharers[t].o || !sharers[t].lse) abort();
            if (pthread_create(&threads[t], NULL, share_main, &sharers[t]) != 0) abort();
        }
        for (t = 0; t < THREADS; t++) {
            pthread_join(threads[t], NULL);
            CHECK(sharers[t].status == 0, "status %d", sharers[t].status);
            CHECK(memcmp(sharers[t].o, c.out, c.o.bytes) == 0, "%s: o of thread %d", l->name, t);
            CHECK(memcmp(sharers[t].lse, c.out_lse, c.lse.bytes) == 0, "%s: lse of thread %d", l->name, t);
            free(sharers[t].o);
            free(sharers[t].lse);
        }
        case_close(&c);
    }
}

static void shared_plan(void) {
    each_layer(shared_plan_layer);
}

/* ---- plan and memory -------------------------------------------------------------------------------------------- */

static void capacities_layer(const layer_case *l, int phase) {
    static const int more[] = { 0, 1, 100, 5000, 1000000 };
    case_spec a;
    case_spec b;
    int i;
    base_spec(&a, l, phase);
    for (i = 0; i < COUNT(more); i++) {
        if (more[i] > 5000 && l->split_keys) continue;  /* scratch for every split of every row block: gigabytes */
        b = a;
        b.more_q = more[i] / 10;
        b.more_kv = more[i];
        b.more_rows = more[i] / 10;
        same_specs(&a, &b, l->name);
    }
}

static void any_capacities(void) {
    each_layer(capacities_layer);
}

static void workers_layer(const layer_case *l, int phase) {
    static const int workers[] = { 1, 2, 3, 64, 200 };
    case_spec a;
    case_spec b;
    int i;
    base_spec(&a, l, phase);
    for (i = 0; i < COUNT(workers); i++) {
        b = a;
        b.layer.workers = workers[i];
        same_specs(&a, &b, l->name);
    }
}

static void any_workers(void) {
    each_layer(workers_layer);
}

static void row_tile_layer(const layer_case *l, int phase) {
    static const int tiles[] = { 0, 32, 48, 112, 128, 256 };
    case_spec a;
    case_spec b;
    int i;
    base_spec(&a, l, phase);
    for (i = 0; i < COUNT(tiles); i++) {
        b = a;
        b.layer.row_tile = tiles[i];
        same_specs(&a, &b, l->name);
    }
}

static void any_row_tile(void) {
    each_layer(row_tile_layer);
}

static void fill_layer(const layer_case *l, int phase) {
    case_spec a;
    case_spec b;
    base_spec(&a, l, phase);
    b = a;
    b.fill = 0;
    same_specs(&a, &b, l->name);
    b.fill = 0x3F;
    b.more_kv = 3000;
    b.more_rows = 500;
    same_specs(&a, &b, l->name);
}

static void old_memory(void) {
    each_layer(fill_layer);
}

static void garbage_layer(const layer_case *l, int phase) {
    case_spec s;
    test_case a;
    test_case b;
    int i;
    int status;
    for (i = 0; i < isa_count; i++) {
        base_spec(&s, l, phase);
        open_run(&a, &s, isas[i]);
        meaningful(&a);
        case_open(&b, &s);
        b.layer.isa = (int32_t)isas[i];
        status = case_plan(&b);
        memset(b.q_len, 0x7B, sizeof b.q_len);
        memset(b.kv_len, 0xFF, sizeof b.kv_len);
        memset(b.phase, 0x33, sizeof b.phase);
        memset(&b.batch, 0xEE, sizeof b.batch);
        if (status == 0) status = case_forward(&b);
        CHECK(status == 0, "status %d %s", status, b.error.text);
        CHECK(memcmp(a.out, b.out, b.o.bytes) == 0, "%s: o", l->name);
        CHECK(memcmp(a.out_lse, b.out_lse, b.lse.bytes) == 0, "%s: lse", l->name);
        case_close(&a);
        case_close(&b);
    }
}

static void garbage_lengths(void) {
    each_layer(garbage_layer);
}

static void one_plan_layer(const layer_case *l, int phase) {
    enum { LAYERS = 4 };
    case_spec s;
    test_case own[LAYERS];
    test_case shared[LAYERS];
    int i;
    int n;
    for (i = 0; i < isa_count; i++) {
        base_spec(&s, l, phase);
        for (n = 0; n < LAYERS; n++) {
            s.seed = (uint64_t)(50 + n);
            open_run(&own[n], &s, isas[i]);
            meaningful(&own[n]);
            open_run(&shared[n], &s, isas[i]);
            shared[n].plan = shared[0].plan;
        }
        for (n = LAYERS - 1; n >= 0; n--) {
            CHECK(case_forward(&shared[n]) == 0, "%s", shared[n].error.text);
            CHECK(case_same(&own[n], &shared[n]), "%s: layer %d", l->name, n);
            CHECK(n == 0 || !case_same(&own[0], &own[n]), "layers 0 and %d have the same data", n);
        }
        for (n = 0; n < LAYERS; n++) {
            case_close(&own[n]);
            case_close(&shared[n]);
        }
    }
}

static void one_plan_many_layers(void) {
    each_layer(one_plan_layer);
}

/* Steps of growing and shrinking caches on one set of buffers that was sized once, against plans of their own. */
static void replay_layer(const layer_case *l, int phase) {
    static const int lengths[] = { 300, 256, 257, 1000, 1, 513, 999, 0 };
    enum { MOST_Q = 40, MOST_KV = 1000, MOST_ROWS = 90, LANES = 3 };
    case_spec s;
    test_case first;
    test_case eager;
    attn_plan plan;
    unsigned char *old;
    int i;
    int k;
    for (i = 0; i < isa_count; i++) {
        old = NULL;
        for (k = 0; k < COUNT(lengths); k++) {
            int kv_len = lengths[k];
            int rows = kv_len < MOST_Q ? kv_len : MOST_Q;
            int status;
            case_defaults(&s);
            set_layer(&s, l);
            s.lanes = LANES;
            s.n = 0;
            add_request(&s, rows, kv_len, phase, 1);
            add_request(&s, 1, 600 + k, phase, 2);
            add_request(&s, k & 1, k & 1, phase, 3);  /* a pad in every other step */
            case_open(&eager, &s);
            eager.layer.isa = (int32_t)isas[i];
            run(&eager);
            eager.batch.max_q_len = MOST_Q;
            eager.batch.max_kv_len = MOST_KV;
            eager.batch.max_rows = MOST_ROWS;
            if (!old) {
                first = eager;
                case_open(&first, &s);
                first.layer.isa = (int32_t)isas[i];
                first.batch.max_q_len = MOST_Q;
                first.batch.max_kv_len = MOST_KV;
                first.batch.max_rows = MOST_ROWS;
                run(&first);
                old = first.plan_mem.data;
            }
            CHECK(attn_plan_bytes(&eager.batch, &eager.layer) == first.plan_mem.bytes, "plan bytes, step %d", k);
            status = attn_plan_make(&plan, &eager.batch, &eager.layer, old, first.plan_mem.bytes, &eager.error);
            CHECK(status == 0, "%s", eager.error.text);
            CHECK(attn_exec_bytes(&plan, LANES) == first.exec_mem.bytes, "exec bytes, step %d", k);
            status = attn_forward(&plan, &eager.layer, &eager.io, &first.exec, &eager.error);
            CHECK(status == 0, "%s", eager.error.text);
            CHECK(memcmp(eager.o.data, eager.out, eager.o.bytes) == 0, "%s: o of step %d", l->name, k);
            CHECK(memcmp(eager.lse.data, eager.out_lse, eager.lse.bytes) == 0, "%s: lse of step %d", l->name, k);
            CHECK(kv_len < 1000 || (units_seen(&eager) >= 3 && plan.strips >= 2), "%d strips", plan.strips);
            case_close(&eager);
        }
        case_close(&first);
    }
}

static void replay(void) {
    each_layer(replay_layer);
}

/* ---- deep merge trees and random variants ----------------------------------------------------------------------- */

/* 20 to 45 units, so that runs end on every level of the merge tree. */
static void deep_layer(const layer_case *l, int phase) {
    static const int lengths[] = { 5000, 7937, 11264 };
    case_spec a;
    case_spec b;
    test_rng r;
    int i;
    int k;
    r.state = 17;
    for (i = 0; i < COUNT(lengths); i++) {
        case_defaults(&a);
        set_layer(&a, l);
        a.layer.head_dim = 4;
        a.layer.v_dim = 3;
        a.layer.window_left = l->left ? 4000 : 0;
        a.layer.sink_keys = l->sink_keys ? 800 : 0;
        a.n = 0;
        add_request(&a, 1 + 16 * (i & 1), lengths[i], phase, 0);
        add_request(&a, 9, 2100, phase, 1);
        for (k = 0; k < 4; k++) {
            b = a;
            case_vary(&b, &r);
            same_specs(&a, &b, l->name);
        }
    }
}

static void deep_trees(void) {
    each_layer(deep_layer);
}

/* Random cases and random variants of them that must keep the bits. */
static void random_variants(void) {
    char text[1000];
    case_spec s;
    case_spec t;
    test_case a;
    test_case b;
    test_rng r;
    int merges = 0;
    int strips = 0;
    int n;
    for (n = 0; n < test_draws(300); n++) {
        r.state = 77 + (uint64_t)n * 1000003u;
        case_random(&s, &r, n % 4 ? 1e6 : 4e6);
        t = s;
        case_vary(&t, &r);
        open_run(&a, &s, isas[n % isa_count]);
        open_run(&b, &t, isas[n % isa_count]);
        merges += a.plan.merges > 0 && b.plan.merges != a.plan.merges;
        strips += a.plan.strips > 1 && b.plan.strips != a.plan.strips;
        case_describe(&t, text, sizeof text);
        CHECK(case_same(&a, &b), "pair %d, %s: %s", n, case_isa_name(isas[n % isa_count]), text);
        case_close(&a);
        case_close(&b);
    }
    CHECK(merges > 5 && strips > 25, "%d pairs differ in merges, %d in row tiles", merges, strips);
}

/* ---- NaN -------------------------------------------------------------------------------------------------------- */

typedef struct nan_place {
    int request, token, arrays;     /* arrays: bits of case_array; token -1: all */
    float value;
} nan_place;

static void edit_nan(void *user, case_array array, int request, int token, int head, int dim, float *value) {
    const nan_place *n = (const nan_place *)user;
    (void)head;
    (void)dim;
    if (request != n->request || (n->token >= 0 && token != n->token)) return;
    if (n->arrays >> array & 1) *value = n->value;
}

static int row_sees(const test_case *c, int request, int row, int key) {
    ref_problem p;
    memset(&p, 0, sizeof p);
    p.q_len = c->q_len[request];
    p.kv_len = c->kv_len[request];
    p.causal = c->layer.mask != ATTN_FULL;
    p.chunk = c->layer.mask == ATTN_CAUSAL ? c->layer.chunk : 0;
    p.block = c->layer.mask == ATTN_BLOCK ? c->layer.chunk : 0;
    p.prefix_lm = c->layer.mask == ATTN_PREFIX;
    p.prefix = c->prefix[request];
    p.window_left = c->layer.window_left;
    p.window_right = c->layer.window_right;
    p.sink_keys = c->layer.sink_keys;
    return ref_sees(&p, row, key);
}

/* Rows that do not see the key keep their bits; some row must lose them, else the test shows nothing. */
static void spoil_key(const runs *clean, const case_spec *s, const nan_place *n) {
    case_spec t = *s;
    nan_place place = *n;
    test_case c;
    int i;
    int row;
    t.edit = edit_nan;
    t.edit_user = &place;
    case_open(&c, &t);
    for (i = 0; i < isa_count; i++) {
        int kept = 0;
        int lost = 0;
        run_isa(&c, isas[i]);
        for (row = 0; row < c.q_len[0]; row++) {
            int same = case_same_row(&clean->of[i], 0, row, &c, 0, row);
            if (row_sees(&c, 0, row, n->token)) {
                lost += !same;
                continue;
            }
            kept++;
            CHECK(same, "%s: row %d changed by key %d it does not see", case_isa_name(isas[i]), row, n->token);
        }
        CHECK(kept > 16 && lost > 16, "%d rows without the key, %d changed with it", kept, lost);
        same_rows(&clean->of[i], 1, 0, &c, 1, 0, c.q_len[1], "the next request");
    }
    case_close(&c);
}

static void nan_key_layer(const layer_case *l, int phase) {
    static const float values[] = { NAN, INFINITY };
    case_spec s;
    runs clean;
    int arrays;
    int v;
    base_spec(&s, l, phase);
    s.request[0].q_len = 120;
    open_runs(&clean, &s);
    all_meaningful(&clean);
    for (arrays = 1 << CASE_K; arrays <= (1 << CASE_K | 1 << CASE_V); arrays += 1 << CASE_K) {
        for (v = 0; v < 2; v++) {
            nan_place n = { 0, 940, 0, 0 };
            n.arrays = arrays;
            n.value = values[v];
            if (l->mask == ATTN_FULL) n.token = 999;
            spoil_key(&clean, &s, &n);
        }
    }
    close_runs(&clean);
}

static void nan_in_later_keys(void) {
    each_layer(nan_key_layer);
}

static void nan_neighbour_layer(const layer_case *l, int phase) {
    case_spec s;
    case_spec t;
    test_case clean;
    test_case c;
    int i;
    int page;
    for (i = 0; i < isa_count; i++) {
        for (page = 0; page <= 16; page += 16) {
            nan_place n = { 1, -1, 7, NAN };
            base_spec(&s, l, phase);
            s.layer.page_size = page;
            s.order = CASE_INTERLEAVED;
            t = s;
            t.edit = edit_nan;
            t.edit_user = &n;
            open_run(&clean, &s, isas[i]);
            open_run(&c, &t, isas[i]);
            meaningful(&c);
            same_rows(&clean, 0, 0, &c, 0, 0, 40, l->name);
            same_rows(&clean, 2, 0, &c, 2, 0, 1, l->name);
            CHECK(!case_same_row(&clean, 1, 0, &c, 1, 0), "the neighbour was not spoilt");
            case_close(&clean);
            case_close(&c);
        }
    }
}

static void nan_neighbour(void) {
    each_layer(nan_neighbour_layer);
}

/* NaN in the query of one row */
static void nan_row_layer(const layer_case *l, int phase) {
    case_spec s;
    case_spec t;
    test_case clean;
    test_case c;
    int i;
    for (i = 0; i < isa_count; i++) {
        nan_place n = { 0, 960 + 17, 1 << CASE_Q, NAN };
        base_spec(&s, l, phase);
        t = s;
        t.edit = edit_nan;
        t.edit_user = &n;
        open_run(&clean, &s, isas[i]);
        open_run(&c, &t, isas[i]);
        meaningful(&c);
        same_rows(&clean, 0, 0, &c, 0, 0, 17, l->name);
        same_rows(&clean, 0, 18, &c, 0, 18, 22, l->name);
        CHECK(!case_same_row(&clean, 0, 17, &c, 0, 17), "the row was not spoilt");
        case_close(&clean);
        case_close(&c);
    }
}

static void nan_row(void) {
    each_layer(nan_row_layer);
}

/* ---- merge ------------------------------------------------------------------------------------------------------ */

enum { MERGE_ROWS = 20, MERGE_KEYS = 1000 };

static void merge_spec(case_spec *s, attn_type o_type, int phase, int first, int last, int sinks) {
    case_defaults(s);
    s->layer.heads = 4;
    s->layer.kv_heads = 2;
    s->layer.head_dim = 24;
    s->layer.v_dim = 20;
    s->layer.mask = ATTN_FULL;
    s->layer.o_type = o_type;
    s->layer.row_tile = 16;
    s->layer.workers = 7;
    s->q_amp = 4;
    s->sinks = sinks;
    s->n = 0;
    add_request(s, MERGE_ROWS, last - first, phase, 0);
    s->request[0].key_start = first;
    s->request[0].q_shift = MERGE_KEYS - last;
}

/* Merged values against the oracle of one call. The two parts were rounded to o_type and the result is again, each
   by at most half an ulp of the largest |v|, which is 1. */
static void check_merged(test_case *whole, const unsigned char *o, const float *lse, const char *what) {
    attn_type type = whole->layer.o_type;
    size_t size = type == ATTN_F32 ? 4 : 2;
    double rounding = type == ATTN_F32 ? 0 : 2 * ref_rounding((int)type, 0.999);
    size_t rows = (size_t)whole->rows * (size_t)whole->heads;
    size_t i;
    const char *problem = case_compare(whole);
    CHECK(problem == NULL, "whole: %s", problem);
    for (i = 0; i < rows * (size_t)whole->v_dim; i++) {
        double want = whole->ref_o[i];
        double got = ref_decode((int)type, o + i * size);
        double slack = case_slack(whole, i / (size_t)whole->v_dim) + rounding;
        slack += ref_rounding((int)type, want);
        CHECK(fabs(got - want) <= slack, "%s: o[%zu] = %g, want %g", what, i, got, want);
    }
    for (i = 0; lse && i < rows; i++) {
        CHECK(fabs((double)lse[i] - whole->ref_lse[i]) <= whole->lse_slack[i], "%s: lse[%zu] = %g, want %g", what, i,
              (double)lse[i], whole->ref_lse[i]);
    }
}

/* All the ways in which the outputs may lie on the inputs give the same bits. */
static void merge_aliases(const test_case *a, const test_case *b, const unsigned char *o, const float *lse) {
    unsigned char *copy = (unsigned char *)malloc(a->o.bytes);
    float *copy_lse = (float *)malloc(a->lse.bytes);
    int status;
    if (!copy || !copy_lse) abort();
    memcpy(copy, a->out, a->o.bytes);
    memcpy(copy_lse, a->out_lse, a->lse.bytes);
    status = attn_merge(&a->layer, a->rows, copy, copy_lse, b->out, b->out_lse, copy, copy_lse, NULL);
    CHECK(status == 0 && memcmp(copy, o, a->o.bytes) == 0, "o = a_o, status %d", status);
    CHECK(memcmp(copy_lse, lse, a->lse.bytes) == 0, "lse = a_lse");
    memcpy(copy, b->out, a->o.bytes);
    memcpy(copy_lse, b->out_lse, a->lse.bytes);
    status = attn_merge(&a->layer, a->rows, a->out, a->out_lse, copy, copy_lse, copy, copy_lse, NULL);
    CHECK(status == 0 && memcmp(copy, o, a->o.bytes) == 0, "o = b_o, status %d", status);
    CHECK(memcmp(copy_lse, lse, a->lse.bytes) == 0, "lse = b_lse");
    status = attn_merge(&a->layer, a->rows, a->out, a->out_lse, b->out, b->out_lse, copy, NULL, NULL);
    CHECK(status == 0 && memcmp(copy, o, a->o.bytes) == 0, "lse = NULL, status %d", status);
    free(copy);
    free(copy_lse);
}

/* Two parts of the keys of `whole`, cut anywhere. */
static void merge_at(test_case *whole, int cut) {
    attn_isa isa = (attn_isa)whole->layer.isa;
    attn_type type = whole->layer.o_type;
    int sinks = whole->spec.sinks;
    case_spec s;
    test_case a;
    test_case b;
    unsigned char *o;
    float *lse;
    int status;
    merge_spec(&s, type, whole->phase[0], 0, cut, sinks);
    open_run(&a, &s, isa);
    merge_spec(&s, type, whole->phase[0], cut, MERGE_KEYS, 0);
    open_run(&b, &s, isa);
    o = (unsigned char *)malloc(whole->o.bytes);
    lse = (float *)malloc(whole->lse.bytes);
    if (!o || !lse) abort();
    status = attn_merge(&whole->layer, whole->rows, a.out, a.out_lse, b.out, b.out_lse, o, lse, &whole->error);
    CHECK(status == 0, "%s", whole->error.text);
    check_merged(whole, o, lse, "a, b");
    merge_aliases(&a, &b, o, lse);
    if (cut == 0 && !sinks) {
        CHECK(memcmp(o, b.out, b.o.bytes) == 0 && memcmp(lse, b.out_lse, b.lse.bytes) == 0, "lse = -inf on the left");
        CHECK(case_lse(&a, 0, 0, 0) < -1e38, "the left part is not empty");
    }
    if (cut == MERGE_KEYS) {
        CHECK(memcmp(o, a.out, a.o.bytes) == 0 && memcmp(lse, a.out_lse, a.lse.bytes) == 0, "lse = -inf on the right");
        CHECK(case_lse(&b, 0, 0, 0) < -1e38, "the right part is not empty");
    }
    status = attn_merge(&whole->layer, whole->rows, b.out, b.out_lse, a.out, a.out_lse, o, lse, &whole->error);
    CHECK(status == 0, "%s", whole->error.text);
    check_merged(whole, o, lse, "b, a");
    free(o);
    free(lse);
    case_close(&a);
    case_close(&b);
}

static void merge_equals_one_call(void) {
    static const int cuts[] = { 0, 1, 256, 300, 512, 999, 1000 };
    case_spec s;
    test_case whole;
    int i;
    int k;
    int variant;
    for (i = 0; i < isa_count; i++) {
        for (variant = 0; variant < 12; variant++) {
            merge_spec(&s, (attn_type)(variant % 3), variant / 3 & 1, 0, MERGE_KEYS, variant / 6);
            open_run(&whole, &s, isas[i]);
            meaningful(&whole);
            for (k = 0; k < COUNT(cuts); k++) merge_at(&whole, cuts[k]);
            case_close(&whole);
        }
    }
}

static void merge_nothing(void) {
    attn_layer layer;
    float o[8];
    float lse[2] = { 0, 0 };
    float empty[8] = { 0 };
    float low[2] = { -INFINITY, -INFINITY };
    int i;
    memset(&layer, 0, sizeof layer);
    layer.heads = 2;
    layer.head_dim = 4;
    for (i = 0; i < 8; i++) o[i] = 9;
    CHECK(attn_merge(&layer, 1, empty, low, empty, low, o, lse, NULL) == 0, "two empty sets");
    for (i = 0; i < 8; i++) CHECK(o[i] == 0, "o[%d] = %g", i, (double)o[i]);
    for (i = 0; i < 2; i++) CHECK(lse[i] == -INFINITY, "lse[%d] = %g", i, (double)lse[i]);
    CHECK(attn_merge(&layer, 0, empty, low, empty, low, o, lse, NULL) == 0, "no rows");
}

/* ---- trees, lists and 8-bit caches ------------------------------------------------------------------------------ */

static const layer_case drafts[] = {
    { "f32", 4, 2, 16, 16, ATTN_F32, ATTN_F32, ATTN_F32, ATTN_CAUSAL, 0, 0, 0, 0, 0, 0, 0 },
    { "f16 window alibi", 4, 1, 24, 16, ATTN_F16, ATTN_F16, ATTN_F32, ATTN_CAUSAL, 600, 0, 0, 0, 0, 0, 0 },
    { "bf16 sinks", 6, 2, 40, 20, ATTN_BF16, ATTN_BF16, ATTN_BF16, ATTN_CAUSAL, 500, 0, 300, 256, 1, 20, 0 },
    { "e4m3", 3, 1, 16, 16, ATTN_F32, ATTN_E4M3, ATTN_F32, ATTN_CAUSAL, 0, 0, 0, 256, 1, 0, 0 },
    { "int8", 4, 2, 16, 8, ATTN_F32, ATTN_INT8, ATTN_BF16, ATTN_CAUSAL, 0, 0, 0, 0, 0, 0, 0 },
};

static void set_draft_layer(case_spec *s, const layer_case *l, attn_mask mask) {
    set_layer(s, l);
    s->layer.mask = mask;
    s->layer.scale_kind = l->kv_type == ATTN_INT8 ? ATTN_SCALE_PER_KEY : ATTN_SCALE_PER_REQUEST;
    s->k_scale = s->v_scale = l->kv_type >= ATTN_E4M3;
    s->alibi = l->left == 600;
    s->tree = CASE_TREE_CHAIN;
    s->layer.topk = mask == ATTN_TOPK ? 1000 : 0;
}

static void draft_spec(case_spec *s, const layer_case *l, int phase, attn_mask mask) {
    base_spec(s, l, phase);
    set_draft_layer(s, l, mask);
}

/* Calls test(layer, phase) for every layer of drafts and phase. */
static void each_draft(void (*fn)(const layer_case *l, int phase)) {
    int l;
    for (l = 0; l < COUNT(drafts); l++) {
        fn(&drafts[l], ATTN_PREFILL);
        fn(&drafts[l], ATTN_DECODE);
    }
    close_base();
}

static void chain_layer(const layer_case *l, int phase) {
    static const int more[] = { -1, 0, 24, 100 };
    case_spec a;
    case_spec b;
    int i;
    draft_spec(&a, l, phase, ATTN_CAUSAL);
    for (i = 0; i < COUNT(more); i++) {
        draft_spec(&b, l, phase, ATTN_TREE);
        b.more_q = more[i];
        b.layer.row_tile = 16 << i;
        b.layer.page_size = i & 1 ? 16 : 0;
        b.hide = i & 1;
        same_specs(&a, &b, l->name);
    }
}

static void chain_equals_causal(void) {
    each_draft(chain_layer);
}

/* Not with a window: then the keys before it have no rank, and the first key seen starts a unit. */
static void whole_list_layer(const layer_case *l, int phase) {
    static const int orders[] = { 0, 1, 2 };
    case_spec a;
    case_spec b;
    int i;
    if (l->left) return;
    draft_spec(&a, l, phase, ATTN_CAUSAL);
    for (i = 0; i < COUNT(orders); i++) {
        draft_spec(&b, l, phase, ATTN_TOPK);
        b.list_order = orders[i];
        b.layer.topk += 100 * i;
        b.layer.page_size = i == 1 ? 3 : 0;
        b.layer.row_tile = 16 << i;
        same_specs(&a, &b, l->name);
    }
}

static void whole_list_equals_causal(void) {
    each_draft(whole_list_layer);
}

static void list_order_layer(const layer_case *l, int phase) {
    static const int more[] = { 0, 0, 1, 400 };
    case_spec a;
    case_spec b;
    int i;
    draft_spec(&a, l, phase, ATTN_TOPK);
    a.list_keys = 700;
    for (i = 0; i < COUNT(more); i++) {
        b = a;
        b.layer.topk = 700 + more[i];
        b.list_order = 1 + i;
        b.layer.workers = 1 + i;
        b.layer.page_size = i & 1 ? 16 : 0;
        b.hide = i & 1;
        same_specs(&a, &b, l->name);
    }
}

static void any_list_order(void) {
    each_draft(list_order_layer);
}

/* Takes what a row does not see off its list; returns how many entries those were. */
static int drop_unseen(test_case *c) {
    int32_t *list = (int32_t *)(void *)c->topk.data;
    unsigned char *sees = (unsigned char *)malloc(1000);
    int dropped = 0;
    int request;
    int row;
    int i;
    if (!sees) abort();
    for (request = 0; request < c->spec.n; request++) {
        for (row = 0; row < c->q_len[request]; row++, list += c->layer.topk) {
            case_sees(c, request, row, sees);
            for (i = 0; i < c->layer.topk; i++) {
                if (list[i] < 0 || (list[i] < c->kv_len[request] && sees[list[i]])) continue;
                list[i] = -1;
                dropped++;
            }
        }
    }
    free(sees);
    case_rehash(c);
    return dropped;
}

static void unseen_entries_layer(const layer_case *l, int phase) {
    case_spec s;
    test_case a;
    test_case b;
    int i;
    draft_spec(&s, l, phase, ATTN_TOPK);
    s.layer.window_left = 600;
    s.list_keys = 990;
    s.list_order = 3;
    for (i = 0; i < isa_count; i++) {
        int dropped;
        open_run(&a, &s, isas[i]);
        meaningful(&a);
        case_open(&b, &s);
        b.layer.isa = (int32_t)isas[i];
        dropped = drop_unseen(&b);
        CHECK(dropped > 1000, "%d entries dropped", dropped);
        run(&b);
        CHECK(case_same(&a, &b), "%s, %s", l->name, case_isa_name(isas[i]));
        case_close(&a);
        case_close(&b);
    }
}

static void unseen_entries(void) {
    each_draft(unseen_entries_layer);
}

/* Another query, key and value for draft n->token: rows that do not see it keep their bits, the others lose them. */
static int spoil_draft(const test_case *clean, const case_spec *s, const nan_place *n) {
    unsigned char sees[1000];
    case_spec t = *s;
    nan_place place = *n;
    test_case c;
    int kept = 0;
    int row;
    t.edit = edit_nan;
    t.edit_user = &place;
    open_run(&c, &t, (attn_isa)clean->layer.isa);
    for (row = 0; row < c.q_len[0]; row++) {
        int same = case_same_row(clean, 0, row, &c, 0, row);
        case_sees(&c, 0, row, sees);
        kept += !sees[n->token];
        CHECK(same == !sees[n->token], "%s: row %d and draft %d with %g, KV type %d",
              case_isa_name((attn_isa)c.layer.isa), row, n->token - 960, (double)n->value, (int)t.layer.kv_type);
    }
    same_rows(clean, 1, 0, &c, 1, 0, c.q_len[1], "the next request");
    case_close(&c);
    return kept;
}

static void siblings_layer(const layer_case *l, int phase) {
    static const int tokens[] = { 960, 963, 977, 999 };
    static const float values[] = { NAN, 7 };
    case_spec s;
    test_case clean;
    int i;
    int k;
    draft_spec(&s, l, phase, ATTN_TREE);
    s.tree = phase == ATTN_PREFILL ? CASE_TREE_BINARY : CASE_TREE_FOREST;
    for (i = 0; i < isa_count; i++) {
        int kept = 0;
        open_run(&clean, &s, isas[i]);
        meaningful(&clean);
        for (k = 0; k < 2 * COUNT(tokens); k++) {
            nan_place n = { 0, 0, 7, 0 };
            n.token = tokens[k / 2];
            n.value = values[k & 1];
            kept += spoil_draft(&clean, &s, &n);
        }
        CHECK(kept > 100, "only %d rows without a draft", kept);
        case_close(&clean);
    }
}

static void siblings(void) {
    each_draft(siblings_layer);
}

/* Runs `rows` rows from row `start` of `whole`'s first request on, as the second request of another batch. */
static void rows_elsewhere(const runs *whole, const layer_case *l, int start, int rows, int variant) {
    const case_spec *w = &whole->of[0].spec;
    const case_request *r = &w->request[0];
    case_spec s;
    case_defaults(&s);
    set_draft_layer(&s, l, w->layer.mask);
    s.tree = w->tree;
    s.list_keys = w->list_keys;
    s.list_order = variant;
    s.layer.topk += 5 * variant * (s.layer.topk > 0);
    s.layer.page_size = variant & 1 ? 16 : 0;
    s.layer.row_tile = 16 << variant % 4;
    s.hide = 1;
    s.more_q = variant * 20 - 1;
    s.n = 0;
    add_request(&s, 3, 300, 1 - r->phase, 5);
    add_request(&s, rows, r->kv_len - r->q_len + start + rows, r->phase, r->content);
    add_request(&s, 9, 500, r->phase, 6);
    same_rows_as(whole, 0, start, &s, 1, rows, l->name);
}

/* The drafts stand on both sides of a unit's border. */
static void tree_rows_layer(const layer_case *l, int phase) {
    static const case_tree trees[] = { CASE_TREE_CHAIN, CASE_TREE_BINARY, CASE_TREE_SIBLINGS, CASE_TREE_FOREST };
    static const int rows[] = { 1, 3, 17, 33 };
    case_spec s;
    runs whole;
    int k;
    int t;
    for (t = 0; t < COUNT(trees); t++) {
        case_defaults(&s);
        set_draft_layer(&s, l, ATTN_TREE);
        s.tree = trees[t];
        s.n = 0;
        add_request(&s, 40, 790, phase, 0);
        add_request(&s, 3, 700, phase, 1);
        open_runs(&whole, &s);
        all_meaningful(&whole);
        for (k = 0; k < COUNT(rows); k++) rows_elsewhere(&whole, l, 0, rows[k], k);
        close_runs(&whole);
    }
}

static void tree_rows(void) {
    each_draft(tree_rows_layer);
}

static void chunked_rows_layer(const layer_case *l, int phase, attn_mask mask) {
    static const int chunks[][2] = { { 0, 1 }, { 0, 17 }, { 39, 1 }, { 16, 24 }, { 7, 3 } };
    case_spec s;
    runs whole;
    int k;
    draft_spec(&s, l, phase, mask);
    s.list_keys = 700;
    open_runs(&whole, &s);
    all_meaningful(&whole);
    for (k = 0; k < COUNT(chunks); k++) rows_elsewhere(&whole, l, chunks[k][0], chunks[k][1], k);
    close_runs(&whole);
}

static void list_rows_layer(const layer_case *l, int phase) {
    chunked_rows_layer(l, phase, ATTN_TOPK);
}

static void list_rows(void) {
    each_draft(list_rows_layer);
}

static void byte_rows_layer(const layer_case *l, int phase) {
    if (l->kv_type >= ATTN_E4M3) chunked_rows_layer(l, phase, ATTN_CAUSAL);
}

static void byte_rows(void) {
    each_draft(byte_rows_layer);
}

static void verify_chain_layer(const layer_case *l, int phase) {
    static const int rows[] = { 2, 5, 17, 33 };
    case_spec chain;
    case_spec plain;
    int k;
    if (phase != ATTN_DECODE) return;
    case_defaults(&chain);
    case_defaults(&plain);
    set_draft_layer(&chain, l, ATTN_TREE);
    set_draft_layer(&plain, l, ATTN_CAUSAL);
    for (k = 0; k < COUNT(rows); k++) {
        chain.layer.row_tile = rows[k] == 33 ? 0 : 16;
        verify_rows(chain, plain, rows[k], 1, l->name);
    }
}

static void verify_chain(void) {
    each_draft(verify_chain_layer);
}

/* ---- main ------------------------------------------------------------------------------------------------------- */

/* Only the last row of a causal square sees the last key, in whichever panel and tile it stands. */
static void nan_in_last_key(void) {
    enum { MOST = 300 };
    static float q[MOST], k[MOST], v[MOST], o[MOST];
    int isa;
    int n;
    int i;
    for (isa = ATTN_ISA_SCALAR; isa; isa = next_isa(isa)) {
        for (n = 1; n <= MOST; n += n < 130 ? 1 : 17) {
            attn_layer layer;
            attn_io io;
            size_t bytes;
            void *mem;
            memset(&layer, 0, sizeof layer);
            memset(&io, 0, sizeof io);
            layer.heads = 1;
            layer.head_dim = 1;
            layer.isa = isa;
            for (i = 0; i < n; i++) v[i] = 1;
            v[n - 1] = (float)NAN;
            io.q = q;
            io.k = k;
            io.v = v;
            io.o = o;
            bytes = attn_dense_bytes(&layer, n, n);
            mem = malloc(bytes);
            CHECK(!attn_dense(&layer, n, n, &io, mem, bytes, NULL), "%d rows", n);
            for (i = 0; i < n - 1; i++) {
                CHECK(o[i] > 0.999f && o[i] < 1.001f, "isa %d, row %d of %d is %g", isa, i, n, (double)o[i]);
            }
            free(mem);
        }
    }
}

static void no_amx(void) {
    test_skip("this CPU or build has no AMX");
}

static void run_all(void) {
    test_run("paged, padded, head-major and strided caches keep the bits", paged_equals_contiguous);
    test_run("features trap 24: chunks of any size equal the whole, in both phases", chunks_equal_whole);
    test_run("features trap 24: a verify row equals the decode row", verify_equals_decode);
    test_run("features trap 24: many verify rows, in the vector lanes or not", many_rows);
    test_run("features trap 24: a strip in the vector lanes beside one that is not", lanes_beside_none);
    test_run("features trap 23: a request alone equals itself in a batch of 64", alone_equals_batch);
    test_run("features trap 23: any order of the requests", any_order);
    test_run("features traps 23, 28: any number of lanes and threads", any_lanes);
    test_run("tasks in any order on any lane", tasks_any_order);
    test_run("features trap 28: threads share a plan", shared_plan);
    test_run("any capacities", any_capacities);
    test_run("any number of workers", any_workers);
    test_run("any row tile", any_row_tile);
    test_run("features trap 23: any cut of 20 to 45 units", deep_trees);
    test_run("features trap 23: random cases and random variants of them", random_variants);
    test_run("plan and scratch memory may hold anything", old_memory);
    test_run("the length arrays may change after planning", garbage_lengths);
    test_run("sglang trap 14: one plan for many layers equals a plan each", one_plan_many_layers);
    test_run("features trap 12, sglang trap 16: a plan from capacities, used for longer and shorter caches", replay);
    test_run("NaN or Inf in a key changes only the rows that see it", nan_in_later_keys);
    test_run("NaN in the last value spoils the last row only", nan_in_last_key);
    test_run("NaN in a neighbour never leaks", nan_neighbour);
    test_run("NaN in a query changes only its row", nan_row);
    test_run("features trap 17: merging two key sets equals one call", merge_equals_one_call);
    test_run("merging two empty sets", merge_nothing);
    test_run("a chain of drafts has the bits of CAUSAL", chain_equals_causal);
    test_run("a list of all keys, in any order, has the bits of CAUSAL", whole_list_equals_causal);
    test_run("the order of a list, holes and what lies past the row", any_list_order);
    test_run("listed keys that the window hides", unseen_entries);
    test_run("a draft changes only the rows that see it", siblings);
    test_run("rows of a tree: any number of rows after them, any neighbours", tree_rows);
    test_run("rows with lists: chunks of any size, any neighbours", list_rows);
    test_run("8-bit caches: chunks of any size, any neighbours", byte_rows);
    test_run("a chain that is verified equals decoding one by one", verify_chain);
}

int main(int argc, char **argv) {
    test.only = argc > 1 ? argv[1] : NULL;
    isa_count = case_isas(isas);
    run_all();
    if (has_isa(ATTN_ISA_AMX)) {
        close_base(); /* its spec would be taken for one of bf16 */
        case_tiles(1);
        isas[0] = ATTN_ISA_AMX;
        isa_count = 1;
        test.suffix = ", amx";
        run_all();
    } else {
        test_run("all of this in bf16, amx", no_amx);
    }
    return test_close("properties");
}
