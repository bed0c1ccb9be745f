/* llm.c - the engine of examples/llm.c: its logits against an oracle in double; the same text and the same bits of
   logits whatever happens around a request; files that are not what they should be; the tokenizer. */
#define _POSIX_C_SOURCE 200809L
#define ATTN_IMPLEMENTED /* in attn_cuda.o */
#define ATTN_CUDA_IMPLEMENTED
#define LLM_NO_MAIN
#include "../examples/llm.c"

#include "llm_ref.h"
#include "ref.h"
#include "test.h"

#include <sys/stat.h>
#include <unistd.h>

/* ---- files and models ------------------------------------------------------------------------------------------- */

static char folder[300];

static const char *path_of(const char *name) {
    static char path[400];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void open_folder(void) {
    const char *place = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/attn-llm.%ld", place && strlen(place) < 250 ? place : "/tmp", (long)getpid());
    if (mkdir(folder, 0700)) abort();
}

static void write_bytes(const char *name, const void *bytes, size_t count) {
    FILE *file = fopen(path_of(name), "wb");
    if (!file || fwrite(bytes, 1, count, file) != count || fclose(file)) abort();
}

/* The same file for the program and for the oracle. */
typedef struct subject {
    model *m;
    llm_ref ref;
} subject;

static void open_subject(subject *s, const llm_shape *shape, uint64_t seed) {
    char error[ERROR_BYTES];
    if (!llm_ref_write(shape, seed, path_of("model"))) abort();
    llm_ref_open(&s->ref, path_of("model"));
    s->m = model_load(path_of("model"), error);
    remove(path_of("model"));
    CHECK(s->m, "%s", error);
    if (!s->m) abort();
}

static void close_subject(subject *s) {
    model_close(s->m);
    llm_ref_close(&s->ref);
}

enum { MIXED, HALVES, BYTES, SHARED_BIN, BIN, WIDE, FEW, SHAPES };
static const char *const shape_names[SHAPES] = { "mixed", "f16", "int8", "llama2.c shared", "llama2.c", "wide", "few" };
static const llm_shape shapes[SHAPES] = {
    { LLM_LM, LLM_F32, 0, 32, 40, 3, 4, 2, 8, 40, 800, { 20, 0, 7 }, { 8, 4, 0 }, 1e4, 1e-5, 3 },
    { LLM_LM, LLM_F16, 1, 33, 0, 2, 3, 1, 10, 31, 800, { 0, 33 }, { 10, 4 }, 1e6, 1e-5, 2 },
    { LLM_LM, LLM_INT8, 0, 30, 41, 3, 6, 2, 7, 77, 800, { 1, 0, 64 }, { 6, 0, 2 }, 500, 1e-3, 2 },
    { LLM_LLAMA2C, LLM_F32, 1, 36, 50, 3, 6, 3, 6, 40, 800, { 0 }, { 6, 6, 6 }, 1e4, 1e-5, 2 },
    { LLM_LLAMA2C, LLM_F32, 0, 24, 34, 2, 4, 4, 6, 27, 800, { 0 }, { 6, 6 }, 1e4, 1e-5, 2 },
    { LLM_LM, LLM_INT8, 1, 51, 80, 2, 6, 1, 16, 33, 800, { 0, 100 }, { 16, 16 }, 1e4, 1e-5, 4 },
    { LLM_LM, LLM_F16, 0, 32, 24, 3, 4, 2, 8, 6, 800, { 0, 9, 30 }, { 8, 8, 8 }, 100, 1e-5, 3 } /* guesses are easy */
};

static void draw_tokens(uint64_t seed, int32_t vocab, int32_t *token, int32_t n) {
    test_rng rng = { seed };
    int32_t i;
    for (i = 0; i < n; i++) token[i] = test_range(&rng, 0, vocab - 1);
}

/* ---- the oracle ------------------------------------------------------------------------------------------------- */

static double *oracle_logits(const subject *s, llm_ref_pass pass, const int32_t *token, int32_t n) {
    double *logits = (double *)malloc(sizeof *logits * (size_t)n * (size_t)s->ref.vocab);
    if (!logits) abort();
    llm_ref_logits(&s->ref, &pass, token, n, logits);
    return logits;
}

static double largest_difference(const double *a, const double *b, int64_t n) {
    double largest = 0;
    int64_t i;
    for (i = 0; i < n; i++) {
        if (!(fabs(a[i] - b[i]) <= largest)) largest = fabs(a[i] - b[i]);
    }
    return largest;
}

static const llm_ref_pass exact = { 0, 0, 0, 0 };

/* How far arithmetic in f32 may lead off: what becomes of the oracle when each of its operations is off by a roundoff
   of random direction, with sums that are added up one term after the other. llm.c adds in a better order. */
static double rounding_tolerance(const subject *s, int kv_type, const double *logits, const int32_t *token, int32_t n) {
    double largest = 0;
    uint64_t i;
    for (i = 0; i < 3; i++) {
        llm_ref_pass shaken = { 0, 0, 5.96e-8, 0 };
        double *other;
        shaken.kv_type = kv_type;
        shaken.seed = i;
        other = oracle_logits(s, shaken, token, n);
        largest = fmax(largest, largest_difference(logits, other, (int64_t)n * s->ref.vocab));
        free(other);
    }
    return largest;
}

static void test_oracle(void) {
    enum { N = 90 };
    int32_t token[N], i;
    for (i = 0; i < SHAPES; i++) {
        static const llm_ref_pass relative = { 0, 1, 0, 0 };
        subject s;
        double *a, *b, off;
        open_subject(&s, &shapes[i], 1);
        draw_tokens(2, s.ref.vocab, token, N);
        a = oracle_logits(&s, exact, token, N);
        b = oracle_logits(&s, relative, token, N);
        off = largest_difference(a, b, (int64_t)N * s.ref.vocab);
        CHECK(off < 1e-9, "%s: the two formulations differ by %g", shape_names[i], off);
        free(a);
        free(b);
        close_subject(&s);
    }
}

/* One layer, four tokens, all matrices 1 but wq and wk, which are 0: every visible key has the same weight. Token t is
   the unit vector t, its norm 2 in place t, so that x = unit vector + 2 * the share of each token in the window. */
static void test_oracle_by_hand(void) {
    enum { N = 9, DIM = 4, WINDOW = 3 };
    static const int32_t token[N] = { 0, 1, 1, 3, 2, 0, 0, 1, 3 };
    double one[DIM * DIM] = { 0 }, zero[DIM * DIM] = { 0 }, norm[DIM] = { 1, 1, 1, 1 }, logits[N * DIM];
    llm_ref_layer layer = { WINDOW, 2, norm, zero, zero, one, one, NULL, NULL, NULL, NULL };
    llm_ref m = { DIM, 0, 1, 1, 1, DIM, DIM, N, 1, 1e4, 0, &layer, one, norm, one };
    int p, c, key;
    for (c = 0; c < DIM; c++) one[c * DIM + c] = 1;
    llm_ref_logits(&m, &exact, token, N, logits);
    for (p = 0; p < N; p++) {
        int first = p < WINDOW ? 0 : p - WINDOW + 1;
        double x[DIM] = { 0 }, square = 0;
        x[token[p]] = 1;
        for (key = first; key <= p; key++) x[token[key]] += 2.0 / (p - first + 1);
        for (c = 0; c < DIM; c++) square += x[c] * x[c] / DIM;
        for (c = 0; c < DIM; c++) {
            double want = x[c] / sqrt(square), got = logits[p * DIM + c];
            CHECK(fabs(got - want) < 1e-12, "row %d, token %d: %g, by hand %g", p, c, got, want);
        }
    }
}

/* ---- plays: requests through an engine -------------------------------------------------------------------------- */

enum { MOST = 24 };

typedef struct order {
    const int32_t *prompt, *forced;
    int32_t prompt_len, count, forced_len, score;
    int32_t after;                  /* comes after so many calls of engine_step */
    int32_t key;                    /* of its random numbers */
} order;

typedef struct play {
    const model *m, *draft;
    options o;
    double budget;                  /* ms of a call of engine_step; 0: a whole step */
    int32_t orders;
    order order[MOST];
} play;

/* What a request got. */
typedef struct outcome {
    int32_t len, prompt_len, shared, steps, rows;
    int32_t *token;
    float *logits;                  /* [len][vocab]; those before `from` were not wanted */
    unsigned char *seen;
} outcome;

typedef struct result {
    int32_t n, vocab;
    outcome of[MOST];
    stats stats;
    int32_t classes, calls, pauses, most_running, most_users;
    int32_t hints, right_hints;     /* that were tried; that were the next token */
    int32_t hint[MOST], hint_at[MOST];
    int32_t together, starved;      /* steps with rows of both phases; in which one waits although a slot is free */
    const engine *e;
} result;

static void catch_logits(void *user, const request *r, int32_t position, const float *logits) {
    result *all = (result *)user;
    size_t row = (size_t)all->vocab;
    int32_t i = 0;
    outcome *o;
    while (all->e->s.request[i] != r) i++;
    o = &all->of[i];
    CHECK(position >= 0 && position < r->max_len, "request %d: logits of row %d", i, position);
    if (o->seen[position]) {
        CHECK(!memcmp(o->logits + (size_t)position * row, logits, row * sizeof *logits), "row %d again", position);
        return;
    }
    CHECK(!o->rows || o->seen[position - 1], "request %d: row %d comes before the one before", i, position);
    memcpy(o->logits + (size_t)position * row, logits, row * sizeof *logits);
    o->seen[position] = 1;
    o->rows++;
}

static request *submit_order(engine *e, const order *w, outcome *o, int32_t vocab) {
    request *r = server_submit(&e->s, w->prompt, w->prompt_len, w->count);
    CHECK(r, "%s", e->error);
    if (!r) abort();
    r->key = (uint64_t)w->key;
    r->forced = w->forced;
    r->forced_len = w->forced_len;
    r->all_logits = w->score;
    o->logits = (float *)calloc((size_t)r->max_len * (size_t)vocab, sizeof(float));
    o->seen = (unsigned char *)calloc((size_t)r->max_len, 1);
    if (!o->logits || !o->seen) abort();
    return r;
}

static int32_t kept_pages(const engine *e) {
    int32_t p, kept = 0;
    for (p = 0; p < e->s.o.pages; p++) kept += e->s.page[p].kept != 0;
    return kept;
}

/* No page has a user when nobody runs, and what a kept page follows is kept. */
static void check_pages(const engine *e) {
    int32_t p;
    for (p = 0; p < e->s.o.pages; p++) {
        const page *g = &e->s.page[p];
        CHECK(!g->users, "page %d has %d users", p, g->users);
        CHECK(!g->kept || g->parent < 0 || e->s.page[g->parent].kept, "page %d follows page %d", p, g->parent);
    }
    CHECK(e->s.free_pages == e->s.o.pages, "%d pages: %d free", e->s.o.pages, e->s.free_pages);
}

static void watch(result *all, const engine *e) {
    int32_t i, running = 0, waiting = 0, phases[2] = { 0, 0 };
    for (i = 0; i < e->s.o.batch; i++) {
        running += e->s.slot[i] != NULL;
        phases[e->net[0].rows.decodes[i]] += e->net[0].rows.q_len[i] > 0;
    }
    for (i = 0; i < e->s.requests; i++) {
        const request *r = e->s.request[i];
        waiting += r->state == WAITING;
        if (all->hint_at[i] && r->len > all->hint_at[i]) {
            all->hints++;
            all->right_hints += r->token[all->hint_at[i]] == all->hint[i];
        }
        all->hint_at[i] = r->hints ? r->len : 0;
        all->hint[i] = r->token[r->len];
    }
    for (i = 0; i < e->s.o.pages; i++) {
        if (e->s.page[i].users > all->most_users) all->most_users = e->s.page[i].users;
    }
    if (running > all->most_running) all->most_running = running;
    all->together += phases[0] && phases[1];
    all->starved += waiting > 0 && running > 0 && running < e->s.o.batch;
}

/* On an engine that may have run other requests before; `all` has the outcome of those of this play. */
static void play_on(engine *e, const play *p, result *all) {
    int32_t before = e->s.requests, done = 0, i, did = STEP_COMPLETE;
    memset(all, 0, sizeof *all);
    all->n = p->orders;
    all->vocab = p->m->vocab;
    e->user = all;
    e->on_logits = catch_logits;
    all->e = e;
    CHECK(before == 0 || before + p->orders <= MOST, "too many");
    while (did > 0 || done < p->orders) {
        while (done < p->orders && (p->order[done].after <= all->calls || did <= 0)) {
            submit_order(e, &p->order[done], &all->of[before + done], p->m->vocab);
            done++;
        }
        did = engine_step(e, p->budget > 0 ? now_ms() + p->budget : 0);
        CHECK(did >= 0, "%s", e->error);
        CHECK(all->calls < 1000000, "it does not end");
        if (did < 0 || all->calls++ == 1000000) break;
        all->pauses += did == TIME_IS_UP;
        if (did == STEP_COMPLETE) watch(all, e);
    }
    for (i = 0; i < p->orders; i++) {
        request *r = e->s.request[before + i];
        outcome *o = &all->of[i];
        *o = all->of[before + i];
        CHECK(r->state == DONE, "request %d is not done", i);
        o->len = r->len;
        o->prompt_len = r->prompt_len;
        o->shared = r->shared;
        o->steps = r->steps;
        o->token = (int32_t *)malloc(sizeof *o->token * (size_t)r->len);
        if (!o->token) abort();
        memcpy(o->token, r->token, sizeof *o->token * (size_t)r->len);
    }
    all->stats = e->stats;
    all->classes = e->net[0].class_count;
    all->e = NULL;
    check_pages(e);
}

static engine *open_engine(const play *p) {
    char error[ERROR_BYTES];
    engine *e = engine_open(&p->o, p->m, p->draft, error);
    CHECK(e, "%s", error);
    if (!e) abort();
    return e;
}

static void run_play(const play *p, result *all) {
    engine *e = open_engine(p);
    play_on(e, p, all);
    engine_close(e);
}

static void close_result(result *all) {
    int32_t i;
    for (i = 0; i < all->n; i++) {
        free(all->of[i].token);
        free(all->of[i].logits);
        free(all->of[i].seen);
    }
}

/* Tokens, and the logits that chose them (the prompt's, too, if both have them). */
static void check_outcome(const outcome *a, const outcome *b, int32_t vocab, const char *what, int32_t i) {
    int32_t p, rows = 0;
    CHECK(a->len == b->len && a->prompt_len == b->prompt_len, "%s, request %d: %d tokens instead of %d", what, i,
          a->len, b->len);
    if (a->len != b->len) return;
    for (p = 0; p < a->len; p++) {
        CHECK(a->token[p] == b->token[p], "%s, request %d: token %d is %d instead of %d", what, i, p, a->token[p],
              b->token[p]);
        if (a->token[p] != b->token[p]) return;
        if (!a->seen[p] || !b->seen[p]) continue;
        rows++;
        CHECK(!memcmp(a->logits + (size_t)p * (size_t)vocab, b->logits + (size_t)p * (size_t)vocab,
                      sizeof(float) * (size_t)vocab), "%s, request %d: logits of row %d of %d", what, i, p, a->len);
    }
    CHECK(rows >= a->len - a->prompt_len && rows > 0, "%s, request %d: %d rows have logits", what, i, rows);
}

static void check_results(const result *a, const result *b, const char *what) {
    int32_t i;
    CHECK(a->n == b->n, "%s", what);
    for (i = 0; i < a->n; i++) check_outcome(&a->of[i], &b->of[i], a->vocab, what, i);
}

/* ---- logits ----------------------------------------------------------------------------------------------------- */

enum { SCORED = 130, FORCED = 70, TOKENS_IN_ALL = SCORED + FORCED };

/* A prompt that is scored, then given tokens: every row's logits, those of the prompt in phase PREFILL. */
static void play_given(const subject *s, options o, const int32_t *token, result *all) {
    play p = { 0 };
    p.m = s->m;
    p.o = o;
    p.orders = 1;
    p.order[0].prompt = token;
    p.order[0].prompt_len = SCORED;
    p.order[0].count = FORCED + 1;
    p.order[0].score = 1;
    p.order[0].forced = token + SCORED;
    p.order[0].forced_len = FORCED;
    run_play(&p, all);
    CHECK(all->of[0].rows == TOKENS_IN_ALL, "%d rows", all->of[0].rows);
}

static options small_options(attn_type kv) {
    options o = default_options();
    o.layer.kv_type = kv;
    o.serve.chunk = 37;
    o.serve.page = 8;
    o.serve.batch = 3;
    return o;
}

static double logits_off(const result *all, const double *want) {
    double largest = 0;
    int64_t i, n = (int64_t)TOKENS_IN_ALL * all->vocab;
    for (i = 0; i < n; i++) {
        double off = fabs((double)all->of[0].logits[i] - want[i]);
        if (!(off <= largest)) largest = off;
    }
    return largest;
}

static void check_rings(const subject *s, options o) {
    play p = { 0 };
    engine *e;
    int32_t c, rings = 0;
    p.m = s->m;
    p.o = o;
    e = open_engine(&p);
    for (c = 0; c < e->net[0].class_count; c++) {
        const attn_layer *layer = &e->net[0].classes[c].layer;
        CHECK(layer->ring < TOKENS_IN_ALL, "a ring of %d", layer->ring);
        CHECK(!layer->ring == !layer->window_left, "a window of %d, a ring of %d", layer->window_left, layer->ring);
        rings += layer->ring > 0;
    }
    CHECK(rings > 0, "no ring");
    engine_close(e);
}

static void test_logits(void) {
    int32_t token[TOKENS_IN_ALL], i, spec;
    for (i = 0; i < SHAPES; i++) {
        subject s;
        double *want, tolerance, size = 0;
        int64_t n;
        open_subject(&s, &shapes[i], 3);
        draw_tokens(4, s.ref.vocab, token, TOKENS_IN_ALL);
        want = oracle_logits(&s, exact, token, TOKENS_IN_ALL);
        tolerance = rounding_tolerance(&s, REF_F32, want, token, TOKENS_IN_ALL);
        for (n = 0; n < (int64_t)TOKENS_IN_ALL * s.ref.vocab; n++) size = fmax(size, fabs(want[n]));
        CHECK(tolerance < 2e-4 * size, "%s: a tolerance of %g for logits of %g", shape_names[i], tolerance, size);
        if (shapes[i].window[0] || shapes[i].window[1]) check_rings(&s, small_options(ATTN_F32));
        for (spec = 0; spec <= 5; spec += 5) {
            options o = small_options(ATTN_F32);
            result all;
            double off;
            o.serve.spec = spec;
            play_given(&s, o, token, &all);
            off = logits_off(&all, want);
            CHECK(off <= tolerance, "%s, %d drafts: off by %g, may be %g", shape_names[i], spec, off, tolerance);
            CHECK(all.of[0].steps == (spec ? (FORCED + spec) / (spec + 1) : FORCED), "%d steps", all.of[0].steps);
            close_result(&all);
        }
        free(want);
        close_subject(&s);
    }
}

/* The oracle rounds K and V as well. Now and then f32 and double fall to different sides of a boundary, which moves an
   element by a whole unit; most are the same. So half of what rounding all elements does is a generous bound. */
static void test_kv_types(void) {
    static const struct {
        attn_type type;
        int ref;
        const char *name;
    } types[] = { { ATTN_F16, REF_F16, "f16" }, { ATTN_BF16, REF_BF16, "bf16" }, { ATTN_E4M3, REF_E4M3, "e4m3" },
                  { ATTN_E5M2, REF_E5M2, "e5m2" }, { ATTN_INT8, REF_INT8, "int8" } };
    int32_t token[TOKENS_IN_ALL], size;
    size_t i;
    double *plain, tolerance;
    subject s;
    open_subject(&s, &shapes[MIXED], 3);
    draw_tokens(4, s.ref.vocab, token, TOKENS_IN_ALL);
    plain = oracle_logits(&s, exact, token, TOKENS_IN_ALL);
    tolerance = rounding_tolerance(&s, REF_F32, plain, token, TOKENS_IN_ALL);
    for (i = 0; i < sizeof types / sizeof *types; i++) {
        llm_ref_pass pass = exact;
        double *want, rounding;
        pass.kv_type = types[i].ref;
        want = oracle_logits(&s, pass, token, TOKENS_IN_ALL);
        rounding = largest_difference(want, plain, (int64_t)TOKENS_IN_ALL * s.ref.vocab);
        CHECK(rounding > 20 * tolerance, "%s: rounding moves the logits by %g only", types[i].name, rounding);
        for (size = 0; size <= 8; size += 8) {
            options o = small_options(types[i].type);
            result all;
            double off;
            o.serve.page = size;
            play_given(&s, o, token, &all);
            off = logits_off(&all, want);
            CHECK(off <= tolerance + rounding / 2, "%s: off by %g, rounding moves by %g", types[i].name, off, rounding);
            close_result(&all);
        }
        free(want);
    }
    free(plain);
    close_subject(&s);
}

/* ---- the same bits whatever happens around a request ------------------------------------------------------------- */

enum { CROWD = 6, LONGEST = 560, SHORTER = 230, CROWD_TOKENS = 36 };

/* Six requests. LONGEST is longer than two units of 256 keys. The second begins as the first does, and so do the last
   two, which find its pages if they come later; the third has a text that was given, the fourth is one token. */
static play crowd(const subject *s, options o, int32_t longest, int32_t *room) {
    const int32_t len[CROWD] = { longest, 150, 47, 1, 150, 97 }, from[CROWD] = { 0, 0, 180, 3, 0, 0 };
    play p = { 0 };
    int32_t i;
    draw_tokens(5, s->ref.vocab, room, LONGEST);
    p.m = s->m;
    p.o = o;
    p.orders = CROWD;
    for (i = 0; i < CROWD; i++) {
        p.order[i].prompt = room + from[i];
        p.order[i].prompt_len = len[i];
        p.order[i].count = CROWD_TOKENS + i;
        p.order[i].key = i * 11;
    }
    p.order[2].forced = room + 100;
    p.order[2].forced_len = 20;
    return p;
}

/* One at a time, whole prompts, a contiguous cache, no thread, no draft: what all others have to repeat. */
static options plain_options(attn_type kv, float temperature) {
    options o = default_options();
    o.layer.kv_type = kv;
    o.serve.page = 0;
    o.serve.batch = 1;
    o.serve.chunk = LONGEST;
    o.serve.temperature = temperature;
    o.serve.top_p = 0.95f;
    return o;
}

typedef struct variant {
    const char *name;
    int32_t batch, chunk, page, few, spec, tree, threads, row_tile, late; /* late: calls between arrivals */
    /* few: pages more than the longest request needs */
    double budget;
    enum { NO_DRAFTER, SAME_MODEL, OTHER_MODEL } drafter;
} variant;

static const variant variants[] = {
    { .name = "paged", .batch = 1, .chunk = LONGEST, .page = 16 },
    { .name = "contiguous, batched, chunked", .batch = 6, .chunk = 50 },
    { .name = "paged, batched", .batch = 6, .chunk = LONGEST, .page = 16 },
    { .name = "pages of 1", .batch = 6, .chunk = 256, .page = 1 },
    { .name = "pages of 5, chunks of 7", .batch = 4, .chunk = 7, .page = 5 },
    { .name = "pages of 64, chunks of 1000", .batch = 3, .chunk = 1000, .page = 64 },
    { .name = "chunks of 1", .batch = 2, .chunk = 1, .page = 16 },
    { .name = "late arrivals", .batch = 5, .chunk = 64, .page = 16, .late = 9 },
    { .name = "few pages", .batch = 6, .chunk = 64, .page = 16, .few = 3 },
    { .name = "few pages, late", .batch = 3, .chunk = 30, .page = 8, .few = 2, .late = 3 },
    { .name = "threads", .batch = 6, .chunk = 256, .page = 16, .threads = 3 },
    { .name = "frames", .batch = 6, .chunk = 100, .page = 16, .row_tile = 32, .budget = 0.02, .late = 40 },
    { .name = "frames and threads", .batch = 6, .chunk = 256, .page = 16, .threads = 2, .budget = 0.02 },
    { .name = "a draft", .batch = 2, .chunk = 256, .page = 16, .spec = 1 },
    { .name = "a chain", .batch = 6, .chunk = 100, .page = 16, .spec = 5 },
    { .name = "a chain, contiguous", .batch = 3, .chunk = 33, .spec = 7 },
    { .name = "the longest chain", .batch = 4, .chunk = 5, .page = 16, .spec = 31 },
    { .name = "a tree", .batch = 6, .chunk = 100, .page = 16, .spec = 7, .tree = 1 },
    { .name = "a tree, contiguous", .batch = 2, .chunk = 100, .spec = 12, .tree = 1 },
    { .name = "the largest tree", .batch = 6, .chunk = 20, .page = 4, .spec = 31, .tree = 1 },
    { .name = "a draft model", .batch = 6, .chunk = 100, .page = 16, .spec = 4, .drafter = OTHER_MODEL },
    { .name = "a draft model, long chain", .batch = 4, .chunk = 60, .page = 16, .spec = 9, .drafter = OTHER_MODEL },
    { .name = "itself as draft model", .batch = 6, .chunk = 100, .page = 16, .spec = 5, .drafter = SAME_MODEL },
    { .name = "itself, contiguous", .batch = 3, .chunk = 40, .spec = 5, .drafter = SAME_MODEL },
    { .name = "itself, longest chain", .batch = 6, .chunk = 100, .page = 16, .spec = 31, .tree = 1,
      .drafter = SAME_MODEL }, /* a draft model knows no trees */
    { .name = "all of it", .batch = 5, .chunk = 45, .page = 8, .few = 2, .spec = 5, .tree = 1, .threads = 2,
      .row_tile = 16, .late = 25, .budget = 0.05 },
    { .name = "all of it, draft model", .batch = 5, .chunk = 45, .page = 8, .few = 2, .spec = 5, .threads = 2,
      .late = 5, .budget = 0.05, .drafter = SAME_MODEL }
};
enum { VARIANTS = sizeof variants / sizeof *variants };

static void vary(play *p, const variant *v, const model *other) {
    int32_t i;
    p->o.serve.batch = v->batch;
    p->o.serve.chunk = v->chunk;
    p->o.serve.page = v->page;
    p->o.serve.pages = 0;
    if (v->few) p->o.serve.pages = (p->order[0].prompt_len + CROWD_TOKENS + v->spec + v->page - 1) / v->page + v->few;
    p->o.serve.spec = v->spec;
    p->o.serve.tree = v->tree;
    p->o.threads = v->threads ? v->threads : 1;
    p->o.layer.row_tile = v->row_tile;
    p->o.serve.context = LONGEST + CROWD_TOKENS;
    p->budget = v->budget;
    p->draft = v->drafter == SAME_MODEL ? p->m : v->drafter == OTHER_MODEL ? other : NULL;
    for (i = 0; i < p->orders; i++) p->order[i].after = v->late * i;
}

/* That a variant is what its name says. */
static void check_variant(const result *all, const variant *v, const play *p) {
    const stats *s = &all->stats;
    int64_t tokens = 0, steps = 0, prompts = 0;
    int32_t i;
    for (i = 0; i < all->n; i++) {
        prompts += all->of[i].prompt_len;
        tokens += all->of[i].len - all->of[i].prompt_len;
        steps += all->of[i].steps;
    }
    CHECK(tokens == s->tokens, "%s: %d tokens", v->name, (int)s->tokens);
    CHECK(s->prompt_tokens + s->shared_tokens == prompts, "%s: %d tokens of prompts and %d shared",
          v->name, (int)s->prompt_tokens, (int)s->shared_tokens);
    CHECK(all->most_running == (v->batch < CROWD ? v->batch : CROWD) || v->late || v->few, "%s: %d at once", v->name,
          all->most_running);
    CHECK(!v->few || all->starved > 0, "%s: nobody waits for pages", v->name);
    CHECK(!v->page || s->shared_tokens > 0 || v->batch == CROWD, "%s: nothing was shared", v->name);
    CHECK(v->budget <= 0 || all->pauses > 20, "%s: %d pauses", v->name, all->pauses);
    CHECK(v->batch == 1 || all->together > 0, "%s: no step has rows of both phases", v->name);
    CHECK(p->draft || s->plans == s->passes * all->classes, "%s: %d plans, %d passes, %d classes", v->name,
          (int)s->plans, (int)s->passes, all->classes);
    CHECK(s->attention_ms > 0 && s->plan_ms > 0 && s->attention_ms + s->plan_ms < s->ms[0] + s->ms[1],
          "%s: %g ms of attention, %g of planning, %g in all", v->name, s->attention_ms, s->plan_ms,
          s->ms[0] + s->ms[1]);
    if (!v->spec) {
        CHECK(steps == tokens - all->n, "%s: %d steps for %d tokens", v->name, (int)steps, (int)tokens);
        return;
    }
    CHECK(steps < tokens - all->n, "%s: no draft was accepted", v->name);
    CHECK(v->drafter == SAME_MODEL || s->drafts > tokens - all->n - steps, "%s: no draft was rejected", v->name);
    CHECK(!v->tree || p->o.serve.temperature <= 0 || v->drafter == SAME_MODEL || all->hints > 0,
          "%s: no side branch was accepted", v->name);
    CHECK(20 * all->right_hints >= 19 * all->hints, "%s: %d hints of %d were right", v->name, all->right_hints,
          all->hints);
    for (i = 0; i < all->n && v->drafter == SAME_MODEL; i++) { /* every guess of the first branch is right */
        int32_t depth = v->spec, rest = all->of[i].len - all->of[i].prompt_len - 1;
        CHECK(all->of[i].steps == (rest + depth) / (depth + 1) || p->order[i].forced,
              "%s, request %d: %d tokens in %d steps", v->name, i, rest, all->of[i].steps);
    }
}

static void run_variants(int shape, attn_type kv, float temperature, int32_t longest, int32_t first, int32_t stride) {
    int32_t room[LONGEST], i;
    subject s, other;
    result plain, all;
    play p;
    open_subject(&s, &shapes[shape], 11);
    open_subject(&other, &shapes[shape], 12);
    p = crowd(&s, plain_options(kv, temperature), longest, room);
    run_play(&p, &plain);
    CHECK(plain.stats.shared_tokens == 0 && plain.most_running == 1, "not plain");
    for (i = first; i < VARIANTS; i += stride) {
        if (variants[i].few && longest == LONGEST) continue; /* the others would find room beside each other */
        vary(&p, &variants[i], other.m);
        run_play(&p, &all);
        check_results(&all, &plain, variants[i].name);
        check_variant(&all, &variants[i], &p);
        close_result(&all);
    }
    close_result(&plain);
    close_subject(&s);
    close_subject(&other);
}

static void test_greedy(void) {
    run_variants(MIXED, ATTN_F16, 0, LONGEST, 0, 1);
}

static void test_greedy_in_few_pages(void) {
    int32_t i;
    for (i = 0; i < VARIANTS; i++) {
        if (variants[i].few) run_variants(MIXED, ATTN_F32, 0, SHORTER, i, VARIANTS); /* no rounding hides a bit */
    }
}

static void test_sampled(void) {
    run_variants(FEW, ATTN_F32, 0.7f, SHORTER, 0, 1);
}

static void test_other_types(void) {
    run_variants(HALVES, ATTN_INT8, 0.7f, SHORTER, 0, 6);
    run_variants(BYTES, ATTN_E4M3, 0, SHORTER, 1, 6);
    run_variants(WIDE, ATTN_BF16, 0.7f, LONGEST, 4, 6);
    run_variants(SHARED_BIN, ATTN_INT8, 0, SHORTER, 3, 6);
    run_variants(BIN, ATTN_F16, 0.7f, SHORTER, 2, 6);
    run_variants(MIXED, ATTN_E5M2, 0, SHORTER, 5, 6);
}

/* Tasks that take long enough for lanes to meet: what they have in common would be spoilt. */
static void test_lanes(void) {
    enum { LEN = 500 };
    const llm_shape shape = { LLM_LM, LLM_F32, 0, 16, 0, 2, 8, 4, 64, 10, 800, { 0, 300 }, { 64, 64 }, 1e4, 1e-5, 3 };
    int32_t token[LEN], i;
    subject s;
    result one, many;
    play p = { 0 };
    open_subject(&s, &shape, 13);
    draw_tokens(14, s.ref.vocab, token, LEN);
    p.m = s.m;
    p.o = default_options();
    p.o.serve.batch = 2;
    p.orders = 2;
    for (i = 0; i < 2; i++) {
        p.order[i].prompt = token + i;
        p.order[i].prompt_len = LEN - 10 * i - 1;
        p.order[i].count = 6;
        p.order[i].score = 1;
    }
    run_play(&p, &one);
    p.o.threads = 4;
    p.o.layer.row_tile = 16;
    for (i = 0; i < 3; i++) {
        run_play(&p, &many);
        check_results(&many, &one, "lanes");
        close_result(&many);
    }
    close_result(&one);
    close_subject(&s);
}

/* ---- shared beginnings ------------------------------------------------------------------------------------------- */

enum { PREFIX_PAGE = 16, PREFIX_TOKENS = 12 };

/* Runs one prompt on an engine that has seen others, and cold. Returns how many of its tokens were found. */
static int32_t run_warm(engine *e, const play *one, attn_type kv, const char *what) {
    play cold = *one;
    result a, b;
    int32_t shared;
    cold.o = plain_options(kv, 0);
    play_on(e, one, &a);
    run_play(&cold, &b);
    check_results(&a, &b, what);
    shared = a.of[0].shared;
    close_result(&a);
    close_result(&b);
    return shared;
}

static play one_prompt(const subject *s, const int32_t *prompt, int32_t len) {
    play p = { 0 };
    p.m = s->m;
    p.o = default_options();
    p.o.serve.page = PREFIX_PAGE;
    p.o.serve.chunk = 40;
    p.o.serve.batch = 3;
    p.o.serve.context = 300;
    p.orders = 1;
    p.order[0].prompt = prompt;
    p.order[0].prompt_len = len;
    p.order[0].count = PREFIX_TOKENS;
    return p;
}

static void run_prefixes(const subject *s, attn_type kv) {
    static const struct {
        const char *name;
        int32_t len, same, shared;
    } cases[] = {
        { "the first", 130, 130, 0 },
        { "a beginning of 100", 140, 100, 96 },
        { "the same again", 130, 130, 128 },
        { "a part that ends with a page", 96, 96, 80 },
        { "one token more than that", 97, 97, 96 },
        { "another first token", 130, 0, 0 },
        { "less than a page", 40, 15, 0 },
        { "the second again", 140, 100, 128 } /* finds what it left itself */
    };
    int32_t token[150], prompt[150] = { 0 }, i, j;
    play p = one_prompt(s, prompt, 1);
    engine *e;
    p.o.layer.kv_type = kv;
    e = open_engine(&p);
    draw_tokens(21, s->ref.vocab, token, 150);
    for (i = 0; i < (int32_t)(sizeof cases / sizeof *cases); i++) {
        int32_t shared;
        for (j = 0; j < 150; j++) prompt[j] = j < cases[i].same ? token[j] : (token[j] + 1) % s->ref.vocab;
        p.order[0].prompt_len = cases[i].len;
        shared = run_warm(e, &p, kv, cases[i].name);
        CHECK(shared == cases[i].shared, "%s: %d tokens were found, not %d", cases[i].name, shared, cases[i].shared);
    }
    engine_close(e);
}

static void test_prefixes(void) {
    static const attn_type types[] = { ATTN_F32, ATTN_F16, ATTN_E4M3, ATTN_INT8 };
    size_t i;
    subject s;
    open_subject(&s, &shapes[MIXED], 31);
    for (i = 0; i < sizeof types / sizeof *types; i++) run_prefixes(&s, types[i]);
    close_subject(&s);
}

/* A conversation: each prompt is the one before, what came of it, and something new. What was generated was computed in
   phase DECODE, so that only the prompt before is found. */
static void test_conversation(void) {
    int32_t prompt[280], len = 50, i;
    subject s;
    engine *e;
    play p;
    open_subject(&s, &shapes[MIXED], 32);
    draw_tokens(22, s.ref.vocab, prompt, len);
    p = one_prompt(&s, prompt, len);
    e = open_engine(&p);
    for (i = 0; i < 4; i++) {
        const request *r;
        int32_t before = i ? e->s.request[i - 1]->prompt_len : 0;
        int32_t shared = run_warm(e, &p, p.o.layer.kv_type, "conversation");
        CHECK(shared == before / PREFIX_PAGE * PREFIX_PAGE, "turn %d: %d tokens were found", i, shared);
        r = e->s.request[i];
        memcpy(prompt, r->token, sizeof *prompt * (size_t)r->len);
        draw_tokens(23 + (uint64_t)i, s.ref.vocab, prompt + r->len, 33);
        p.order[0].prompt_len = r->len + 33;
    }
    engine_close(e);
    close_subject(&s);
}

/* Two requests that run at the same time have their beginning in the same pages. */
static void test_pages_in_common(void) {
    int32_t token[130];
    subject s;
    result warm, both, twins, plain;
    engine *e;
    play p;
    open_subject(&s, &shapes[MIXED], 33);
    draw_tokens(24, s.ref.vocab, token, 130);
    p = one_prompt(&s, token, 130);
    e = open_engine(&p);
    play_on(e, &p, &warm);
    p.orders = 3;
    p.order[1] = p.order[2] = p.order[0];
    p.order[1].prompt_len = 100;
    play_on(e, &p, &both);
    CHECK(both.most_users == 3, "a page had %d users", both.most_users);
    CHECK(warm.most_users == 1, "a page had %d users", warm.most_users);
    run_play(&p, &twins);
    CHECK(twins.most_users == 3 && twins.stats.shared_tokens == 0, "a page had %d users", twins.most_users);
    p.o = plain_options(p.o.layer.kv_type, 0);
    run_play(&p, &plain);
    check_results(&both, &plain, "in common");
    check_results(&twins, &plain, "computed at the same time");
    close_result(&twins);
    engine_close(e);
    close_result(&warm);
    close_result(&both);
    close_result(&plain);
    close_subject(&s);
}

/* Fewer pages than all prompts together need: those that were used longest ago make room. */
static void test_eviction(void) {
    enum { PROMPTS = 6, LEN = 100, EACH = (LEN + PREFIX_TOKENS + PREFIX_PAGE - 1) / PREFIX_PAGE };
    int32_t token[PROMPTS][LEN], i;
    subject s;
    engine *e;
    play p;
    open_subject(&s, &shapes[MIXED], 34);
    p = one_prompt(&s, token[0], LEN);
    p.o.serve.pages = 3 * EACH;
    p.o.serve.context = 3 * EACH * PREFIX_PAGE;
    e = open_engine(&p);
    for (i = 0; i < PROMPTS; i++) {
        draw_tokens(25 + (uint64_t)i, s.ref.vocab, token[i], LEN);
        p.order[0].prompt = token[i];
        CHECK(run_warm(e, &p, p.o.layer.kv_type, "new") == 0, "prompt %d was known", i);
        if (i == 3) { /* the oldest is gone, the one before is there and is the youngest now */
            p.order[0].prompt = token[2];
            CHECK(run_warm(e, &p, p.o.layer.kv_type, "again") == 96, "prompt 2 was forgotten");
        }
    }
    p.order[0].prompt = token[PROMPTS - 1];
    CHECK(run_warm(e, &p, p.o.layer.kv_type, "the last again") == 96, "the latest prompt was forgotten");
    p.order[0].prompt = token[0];
    CHECK(run_warm(e, &p, p.o.layer.kv_type, "the first again") == 0, "the oldest prompt is still there");
    p.order[0].prompt_len = 1;
    p.order[0].count = 3 * EACH * PREFIX_PAGE - 1;
    CHECK(run_warm(e, &p, p.o.layer.kv_type, "a long text") == 0, "a token alone was found");
    CHECK(kept_pages(e) == 0, "%d pages are kept", kept_pages(e));
    p.order[0].prompt_len = LEN;
    p.order[0].count = PREFIX_TOKENS;
    CHECK(run_warm(e, &p, p.o.layer.kv_type, "after a long text") == 0, "its pages hold a text now");
    engine_close(e);
    close_subject(&s);
}

static void test_reset(void) {
    int32_t token[130], calls = 0, paused = 0;
    subject s;
    engine *e;
    play p;
    open_subject(&s, &shapes[MIXED], 35);
    draw_tokens(26, s.ref.vocab, token, 130);
    p = one_prompt(&s, token, 130);
    p.o.serve.batch = 1;
    e = open_engine(&p);
    CHECK(!server_reset_prefixes(&e->s), "a new engine: %s", e->error);
    CHECK(server_submit(&e->s, token, 130, 4) && server_submit(&e->s, token, 100, 3), "%s", e->error);
    CHECK(server_reset_prefixes(&e->s) && *e->error, "two wait");
    for (;; calls++) {
        int did = engine_step(e, calls % 2 ? 0 : 1e-3); /* the past: after one task the time is up */
        if (did == NOTHING_TO_DO) break;
        paused += did == TIME_IS_UP;
        if (e->s.request[1]->state == DONE) continue;
        CHECK(did > 0 && server_reset_prefixes(&e->s) && *e->error, "call %d: reset although a request is live", calls);
    }
    CHECK(paused > 3 && calls > 9, "%d calls, %d pauses", calls, paused);
    CHECK(e->s.request[1]->shared == 96, "%d tokens were found", e->s.request[1]->shared);
    CHECK(kept_pages(e) == 8, "%d pages are kept", kept_pages(e));
    CHECK(!server_reset_prefixes(&e->s) && !*e->error, "%s", e->error);
    CHECK(kept_pages(e) == 0 && e->s.free_pages == e->s.o.pages, "%d pages are kept", kept_pages(e));
    CHECK(run_warm(e, &p, p.o.layer.kv_type, "after a reset") == 0, "something was left");
    CHECK(run_warm(e, &p, p.o.layer.kv_type, "then again") == 128, "nothing is kept any more");
    engine_close(e);
    close_subject(&s);
}

/* ---- who waits, who is refused, who ends ------------------------------------------------------------------------- */

static void test_queue(void) {
    int32_t token[100], i, by_pages;
    subject s;
    open_subject(&s, &shapes[MIXED], 41);
    draw_tokens(42, s.ref.vocab, token, 100);
    for (by_pages = 0; by_pages < 2; by_pages++) { /* slots for two, or three slots and pages for one */
        play p = one_prompt(&s, token, 100);
        request *r[5];
        engine *e;
        int32_t most = 0, starved = 0;
        p.o.serve.batch = by_pages ? 3 : 2;
        p.o.serve.pages = by_pages ? 8 : 0;
        e = open_engine(&p);
        for (i = 0; i < 5; i++) {
            r[i] = server_submit(&e->s, token + i, 80 - i, 20);
            CHECK(r[i], "%s", e->error);
            if (!r[i]) abort();
        }
        while (engine_step(e, 0) > 0) {
            int32_t running = 0, waiting = 0;
            for (i = 0; i < 5; i++) {
                waiting += r[i]->state == WAITING;
                running += r[i]->state == RUNNING;
                CHECK(i == 0 || r[i]->state == WAITING || r[i - 1]->state != WAITING, "request %d overtakes", i);
                CHECK(r[i]->state != DONE || r[i]->len == r[i]->max_len, "request %d ended at %d", i, r[i]->len);
            }
            starved += waiting > 0 && running > 0 && running < p.o.serve.batch;
            if (running > most) most = running;
        }
        for (i = 0; i < 5; i++) CHECK(r[i]->state == DONE && r[i]->len == 100 - i, "request %d: %d", i, r[i]->len);
        CHECK(most == 2 || by_pages, "%d at once", most);
        CHECK(starved > 20 || !by_pages, "%d steps in which one waits although a slot is free", starved);
        CHECK(engine_step(e, 0) == NOTHING_TO_DO, "something is left to do");
        check_pages(e);
        engine_close(e);
    }
    close_subject(&s);
}

/* Nobody joins into pages that another request will need for its prompt. */
static void test_admission(void) {
    enum { LEN = 90 };
    int32_t token[2][LEN], after;
    subject s;
    open_subject(&s, &shapes[MIXED], 37);
    for (after = 0; after < 2; after++) {
        play p = one_prompt(&s, token[0], LEN);
        result all;
        int32_t i;
        for (i = 0; i < 2; i++) draw_tokens(28 + (uint64_t)i, s.ref.vocab, token[i], LEN);
        p.o.serve.pages = 10; /* a prompt needs 6, and the second finds 7 free */
        p.order[0].count = 4;
        p.order[1] = p.order[0];
        p.order[1].prompt = token[1];
        p.order[1].after = after;
        p.orders = 2;
        run_play(&p, &all);
        CHECK(all.most_running == 1, "%d at once", all.most_running);
        close_result(&all);
    }
    close_subject(&s);
}

/* With the time up from the beginning a call does one task. Here every job is one. */
static void test_short_frames(void) {
    enum { STAGES = 8 }; /* q, k, v, attention, o, and three of the FFN */
    const llm_shape shape = { LLM_LM, LLM_F32, 1, 16, 16, 2, 2, 1, 8, 16, 800, { 0 }, { 8, 8 }, 1e4, 1e-5, 0 };
    static const int32_t token[3] = { 1, 2, 3 };
    int32_t pauses = 0, did = STEP_COMPLETE;
    subject s;
    engine *e;
    play p;
    open_subject(&s, &shape, 38);
    p = one_prompt(&s, token, 3);
    e = open_engine(&p);
    CHECK(server_submit(&e->s, token, 3, 2), "%s", e->error);
    while (did > 0) {
        did = engine_step(e, 1e-3);
        pauses += did == TIME_IS_UP;
    }
    CHECK(pauses >= 2 * STAGES * s.m->layers, "%d pauses", pauses);
    CHECK(e->s.request[0]->state == DONE, "it is not done");
    engine_close(e);
    close_subject(&s);
}

static void check_refused(engine *e, const int32_t *prompt, int32_t len, int32_t count, const char *part) {
    int32_t before = e->s.requests;
    request *r = server_submit(&e->s, prompt, len, count);
    CHECK(!r && e->s.requests == before, "a prompt of %d and %d more was accepted", len, count);
    CHECK(strstr(e->error, part), "\"%s\" says nothing of %s", e->error, part);
}

static void test_refusals(void) {
    int32_t token[300];
    subject s;
    result all;
    engine *e;
    play p;
    open_subject(&s, &shapes[MIXED], 43);
    draw_tokens(44, s.ref.vocab, token, 300);
    p = one_prompt(&s, token, 60);
    p.o.serve.pages = 10;
    e = open_engine(&p);
    check_refused(e, token, 0, 5, "prompt");
    check_refused(e, token, -1, 5, "prompt");
    check_refused(e, token, 10, 0, "0 more");
    check_refused(e, token, 10, -3, "-3 more");
    check_refused(e, token, 300, 5, "300");
    check_refused(e, token, 150, 11, "10");
    check_refused(e, token, 10, INT32_MAX, "10");
    token[4] = -1;
    check_refused(e, token, 10, 5, "prompt[4]");
    token[4] = s.ref.vocab;
    check_refused(e, token, 10, 5, "prompt[4]");
    token[4] = 0;
    play_on(e, &p, &all);
    CHECK(all.of[0].len == 60 + PREFIX_TOKENS, "%d tokens", all.of[0].len);
    CHECK(server_submit(&e->s, token, 148, 12), "160 tokens have room in 10 pages: %s", e->error);
    close_result(&all);
    engine_close(e);
    close_subject(&s);
}

static void check_no_engine(const subject *s, options o, const model *drafter, const char *what) {
    char error[ERROR_BYTES] = "";
    engine *e = engine_open(&o, s->m, drafter, error);
    CHECK(!e && *error, "%s: accepted", what);
    engine_close(e);
}

static void test_bad_options(void) {
    const options good = default_options();
    options o;
    subject s, other;
    open_subject(&s, &shapes[MIXED], 45);
    open_subject(&other, &shapes[FEW], 45);
#define TRY(field, value) o = good, o.field = value, check_no_engine(&s, o, NULL, #field " = " #value)
    TRY(serve.batch, 0);
    TRY(serve.batch, -1);
    TRY(serve.chunk, 0);
    TRY(serve.page, -1);
    TRY(serve.pages, -1);
    TRY(serve.context, -1);
    TRY(threads, 0);
    TRY(serve.spec, -1);
    TRY(serve.spec, MAX_NODES);
    TRY(layer.kv_type, (attn_type)77);
    TRY(layer.skip.mode, 77);
    TRY(layer.skip.mode, ATTN_SKIP_LAMBDA);
    TRY(layer.skip.prefill, -1); /* of no mode */
#undef TRY
    o = good;
    o.serve.spec = 3;
    check_no_engine(&s, o, other.m, "a draft model of other tokens");
    close_subject(&s);
    close_subject(&other);
}

/* A text ends with the first stop token that was chosen, whatever was drafted behind it. */
static void test_stop(void) {
    int32_t token[80], spec, i;
    subject s;
    open_subject(&s, &shapes[FEW], 46);
    draw_tokens(47, s.ref.vocab, token, 80);
    for (spec = 0; spec < 8; spec += 1) {
        play p = one_prompt(&s, token, 80);
        result plain, all;
        int32_t at = 80, stop;
        p.order[0].count = 40;
        p.o.serve.temperature = 0.8f;
        run_play(&p, &plain);
        stop = plain.of[0].token[90 + spec];
        while (plain.of[0].token[at] != stop) at++;
        p.o.serve.stop[spec % 2] = stop;
        p.o.serve.spec = spec;
        p.o.serve.tree = spec > 4;
        p.draft = spec == 3 || spec == 7 ? s.m : NULL;
        run_play(&p, &all);
        CHECK(all.of[0].len == at + 1, "%d drafts: %d tokens instead of %d", spec, all.of[0].len, at + 1);
        for (i = 0; i < all.of[0].len && i <= at; i++) {
            CHECK(all.of[0].token[i] == plain.of[0].token[i], "%d drafts: token %d", spec, i);
        }
        close_result(&plain);
        close_result(&all);
    }
    close_subject(&s);
}

/* A program that runs on and on forgets what is done, also in the middle of a step: the others do not notice. */
static void test_forgetting(void) {
    int32_t token[120], i, calls = 0, forgotten = 0;
    subject s;
    result plain;
    request *last;
    engine *e;
    play p;
    open_subject(&s, &shapes[MIXED], 48);
    draw_tokens(49, s.ref.vocab, token, 120);
    p = one_prompt(&s, token, 120);
    p.o.serve.temperature = 0.9f;
    p.order[0].key = 9; /* numbers go on */
    run_play(&p, &plain);
    e = open_engine(&p);
    for (i = 0; i < 9; i++) server_submit(&e->s, token + i, 20 + 10 * i, 5 + i % 3);
    last = server_submit(&e->s, token, 120, PREFIX_TOKENS);
    while (last->state != DONE && engine_step(e, calls++ % 3 ? 1e-3 : 0) > 0) {
        int32_t before = e->s.requests, done = 0;
        for (i = 0; i < before; i++) done += e->s.request[i]->state == DONE;
        if (last->state == DONE) break;
        server_forget_done(&e->s);
        CHECK(e->s.requests == before - done, "%d requests of %d, %d were done", e->s.requests, before, done);
        forgotten += done;
    }
    CHECK(forgotten > 4 && last->state == DONE && last->key == 9, "%d forgotten", forgotten);
    CHECK(last->len == plain.of[0].len, "%d tokens", last->len);
    CHECK(!memcmp(last->token, plain.of[0].token, sizeof *last->token * (size_t)plain.of[0].len), "another text");
    while (engine_step(e, 0) > 0) {}
    server_forget_done(&e->s);
    CHECK(e->s.requests == 0 && !server_reset_prefixes(&e->s), "%d requests are left", e->s.requests);
    check_pages(e);
    close_result(&plain);
    engine_close(e);
    close_subject(&s);
}

/* ---- sampling ---------------------------------------------------------------------------------------------------- */

/* Probabilities of the tokens that are as likely as any, until they have top_p together. */
static void nucleus(const double *logits, int32_t vocab, double temperature, double top_p, double *p) {
    double sum = 0, taken = 0;
    int32_t i, best;
    double left[64];
    for (i = 0; i < vocab; i++) sum += exp(logits[i] / temperature);
    for (i = 0; i < vocab; i++) left[i] = exp(logits[i] / temperature) / sum;
    memset(p, 0, sizeof *p * (size_t)vocab);
    while (taken < top_p) {
        for (best = i = 0; i < vocab; i++) best = left[i] > left[best] ? i : best;
        if (left[best] <= 0) break;
        p[best] = left[best];
        taken += left[best];
        left[best] = 0;
    }
    for (i = 0; i < vocab; i++) p[i] /= taken;
}

/* Many requests with one prompt: how often each token follows, against the oracle's probabilities. */
static void test_distribution(void) {
    enum { DRAWS = 4000 };
    static const float temperatures[] = { 1.0f, 0.5f, 2.0f }, top_ps[] = { 0.8f, 1.0f, 0.3f };
    static const int32_t prompt[2] = { 3, 1 };
    int32_t k, i;
    double *logits;
    subject s;
    open_subject(&s, &shapes[BIN], 51);
    logits = oracle_logits(&s, exact, prompt, 2);
    for (k = 0; k < 3; k++) {
        double p[64], same = 0;
        int32_t count[64] = { 0 }, pairs = 0, kinds = 0;
        play q = one_prompt(&s, prompt, 2);
        engine *e;
        q.o.serve.batch = 64;
        q.o.serve.context = 16;
        q.o.layer.kv_type = ATTN_F32;
        q.o.serve.temperature = temperatures[k];
        q.o.serve.top_p = top_ps[k];
        q.o.serve.seed = 7 + k;
        e = open_engine(&q);
        for (i = 0; i < DRAWS; i++) server_submit(&e->s, prompt, 2, 1);
        while (engine_step(e, 0) > 0) {}
        for (i = 0; i < DRAWS; i++) {
            int32_t token = e->s.request[i]->token[2];
            CHECK(e->s.request[i]->len == 3, "draw %d", i);
            count[token]++;
            pairs += i > 0 && token == e->s.request[i - 1]->token[2];
        }
        nucleus(logits + s.ref.vocab, s.ref.vocab, (double)temperatures[k], (double)top_ps[k], p);
        for (i = 0; i < s.ref.vocab; i++) {
            double sigma = sqrt(DRAWS * p[i] * (1 - p[i]));
            CHECK(fabs(count[i] - DRAWS * p[i]) <= 4.5 * sigma, "token %d: %d times, %g were right", i, count[i],
                  DRAWS * p[i]);
            same += p[i] * p[i];
            kinds += p[i] > 0.01;
        }
        CHECK(kinds > 2, "%d kinds of tokens", kinds);
        CHECK(fabs(pairs - DRAWS * same) <= 4.5 * sqrt(DRAWS * same), "%d equal neighbours, %g were right", pairs,
              DRAWS * same);
        engine_close(e);
    }
    free(logits);
    close_subject(&s);
}

/* A seed says all; another seed or another key: another text. */
static void test_seeds(void) {
    int32_t token[30], i;
    subject s;
    result base, all;
    play p;
    open_subject(&s, &shapes[MIXED], 52);
    draw_tokens(53, s.ref.vocab, token, 30);
    p = one_prompt(&s, token, 30);
    p.order[0].count = 40;
    p.o.serve.temperature = 1;
    run_play(&p, &base);
    for (i = 0; i < 3; i++) {
        play q = p;
        int equal;
        q.o.serve.seed += i == 1;
        q.order[0].key += i == 2;
        run_play(&q, &all);
        equal = !memcmp(all.of[0].token, base.of[0].token, sizeof(int32_t) * (size_t)base.of[0].len);
        CHECK(equal == (i == 0), "case %d: the texts are %s", i, equal ? "equal" : "not equal");
        close_result(&all);
    }
    close_result(&base);
    close_subject(&s);
}

/* Temperature 0 and top_p 0 are the best token. */
static void test_best(void) {
    int32_t token[30], p, i;
    subject s;
    result greedy, narrow;
    play q;
    open_subject(&s, &shapes[MIXED], 54);
    draw_tokens(55, s.ref.vocab, token, 30);
    q = one_prompt(&s, token, 30);
    q.order[0].count = 40;
    run_play(&q, &greedy);
    q.o.serve.temperature = 1;
    q.o.serve.top_p = 0;
    run_play(&q, &narrow);
    check_results(&narrow, &greedy, "top_p 0");
    for (p = 29; p + 1 < greedy.of[0].len; p++) {
        const float *logits = greedy.of[0].logits + p * s.ref.vocab, best = logits[greedy.of[0].token[p + 1]];
        for (i = 0; i < s.ref.vocab; i++) CHECK(logits[i] <= best, "row %d: token %d", p, i);
    }
    close_result(&greedy);
    close_result(&narrow);
    close_subject(&s);
}

/* ---- skip-softmax ------------------------------------------------------------------------------------------------ */

/* What the hook has seen: attention computed again in double from the engine's own q, k and v. */
typedef struct witness {
    int64_t rows, skipped, moved;   /* rows that were looked at, that have a certificate, whose o it has moved */
    double largest[2];              /* certificate of each phase */
    double tightest;                /* the largest share of a bound that was used up */
    double logits;                  /* a sum over all rows */
} witness;

/* Where key `key` of a request has its k and v, in a contiguous cache. */
static int64_t key_at(const net *t, int32_t slot, int32_t key, int32_t kv_head) {
    const attn_layer *layer = &t->class_of[t->layer]->layer;
    if (layer->ring) key %= layer->ring;
    return slot * t->io[t->layer].k_page + ((int64_t)key * layer->kv_heads + kv_head) * layer->head_dim;
}

/* o of one row and head, densely; also what rounding may cost and how far apart the values are. */
static void dense_head(const net *t, int32_t slot, int32_t position, const float *q, int32_t kv_head, double *o,
                       double *rounding, double *spread) {
    const attn_layer *layer = &t->class_of[t->layer]->layer;
    int32_t d = layer->head_dim, first = 0, key, i;
    double sum = 0, largest = -INFINITY, reach = 0, low[64], high[64], logit[1024];
    if (layer->window_left && position >= layer->window_left) first = position + 1 - layer->window_left;
    for (i = 0; i < d; i++) {
        o[i] = 0;
        low[i] = INFINITY;
        high[i] = -INFINITY;
    }
    for (key = first; key <= position; key++) {
        const float *k = (const float *)t->io[t->layer].k + key_at(t, slot, key, kv_head);
        double size = 0;
        logit[key] = 0;
        for (i = 0; i < d; i++) {
            logit[key] += (double)q[i] * (double)k[i] / sqrt(d);
            size += fabs((double)q[i] * (double)k[i]) / sqrt(d);
        }
        largest = fmax(largest, logit[key]);
        reach = fmax(reach, size);
    }
    for (key = first; key <= position; key++) sum += exp(logit[key] - largest);
    *rounding = 0;
    for (key = first; key <= position; key++) {
        const float *v = (const float *)t->io[t->layer].v + key_at(t, slot, key, kv_head);
        for (i = 0; i < d; i++) {
            o[i] += exp(logit[key] - largest) / sum * (double)v[i];
            low[i] = fmin(low[i], (double)v[i]);
            high[i] = fmax(high[i], (double)v[i]);
            *rounding = fmax(*rounding, fabs((double)v[i]) * 6e-8 * (2 * reach * (d + 4) + 40 + position - first));
        }
    }
    *spread = 0;
    for (i = 0; i < d; i++) *spread = fmax(*spread, high[i] - low[i]);
}

static void watch_attention(void *user, engine *e, const net *t) {
    witness *w = (witness *)user;
    const model *m = t->m;
    int32_t i, j, h, c, row = 0;
    for (i = 0; i < e->s.o.batch; i++) {
        for (j = 0; j < t->rows.q_len[i]; j++, row++) {
            if (row % 9 && t->rows.decodes[i] == ATTN_PREFILL) continue;
            for (h = 0; h < m->heads; h++) {
                int64_t at = (int64_t)row * m->heads + h;
                double o[64], rounding, spread, off = 0;
                double certificate = (double)t->buffer[CERTIFICATE][at];
                dense_head(t, i, t->rows.kv_len[i] - t->rows.q_len[i] + j, t->buffer[QUERY] + at * m->head_dim,
                           h / (m->heads / m->kv_heads), o, &rounding, &spread);
                for (c = 0; c < m->head_dim; c++) {
                    off = fmax(off, fabs((double)t->buffer[ATTENDED][at * m->head_dim + c] - o[c]));
                }
                CHECK(off <= certificate * spread + rounding, "layer %d, row %d: off by %g, certificate %g * %g + %g",
                      t->layer, row, off, certificate, spread, rounding);
                w->rows++;
                w->skipped += certificate > 0;
                w->moved += off > 10 * rounding;
                w->tightest = fmax(w->tightest, certificate > 0 ? (off - rounding) / (certificate * spread) : 0);
                w->largest[t->rows.decodes[i]] = fmax(w->largest[t->rows.decodes[i]], certificate);
            }
        }
    }
}

static void add_logits(void *user, const request *r, int32_t position, const float *logits) {
    ((witness *)user)->logits += (double)logits[position % 2] * (r->cached % 3 + 1);
}

enum { SKIP_PROMPT = 700, SKIP_GIVEN = 24 };

static void play_skip(const subject *s, attn_skip skip, const int32_t *token, result *all, witness *w) {
    options o = default_options();
    play p = { 0 };
    engine *e;
    request *r;
    o.layer.kv_type = ATTN_F32;
    o.serve.page = 0;
    o.serve.batch = 2;
    o.layer.skip = skip;
    p.m = s->m;
    p.o = o;
    memset(all, 0, sizeof *all);
    memset(w, 0, sizeof *w);
    e = open_engine(&p);
    e->on_attention = watch_attention;
    e->on_logits = add_logits;
    e->user = w;
    r = server_submit(&e->s, token, SKIP_PROMPT, SKIP_GIVEN);
    if (!r) abort();
    r->forced = token + SKIP_PROMPT;
    r->forced_len = SKIP_GIVEN;
    while (engine_step(e, 0) > 0) {}
    CHECK(r->state == DONE && !*e->error, "%s", e->error);
    all->stats = e->stats;
    engine_close(e);
}

static void test_skipping(void) {
    static const attn_skip modes[] = { { ATTN_SKIP_OFF, 0, 0 },           { ATTN_SKIP_EPS, 0.05f, 0.05f },
                                       { ATTN_SKIP_FACTOR, 20, 20 } };
    int32_t token[SKIP_PROMPT + SKIP_GIVEN];
    llm_shape shape = shapes[WIDE];
    double dense = 0;
    size_t i;
    subject s;
    shape.sharp = 12;
    shape.window[1] = 400;
    open_subject(&s, &shape, 61);
    draw_tokens(62, s.ref.vocab, token, SKIP_PROMPT + SKIP_GIVEN);
    for (i = 0; i < sizeof modes / sizeof *modes; i++) {
        result all;
        witness w;
        const stats *t = &all.stats;
        int phase;
        play_skip(&s, modes[i], token, &all, &w);
        CHECK(w.rows > 700, "%d rows", (int)w.rows);
        if (!i) dense = w.logits;
        CHECK(i ? w.skipped > w.rows / 20 && w.moved > 9 && w.tightest > 0.1 : w.skipped == 0 && w.moved == 0,
              "mode %d: %d rows, %d skip, %d are moved, up to %g of the bound", modes[i].mode, (int)w.rows,
              (int)w.skipped, (int)w.moved, w.tightest);
        CHECK((w.logits == dense) == (i == 0), "mode %d: the same logits", modes[i].mode);
        for (phase = 0; phase < 2; phase++) {
            double most = modes[i].mode == ATTN_SKIP_EPS ? 0.05 / 1.05 * 1.00001 : 1;
            CHECK((t->counters[phase].tiles > 0) == (i > 0), "%d tiles", (int)t->counters[phase].tiles);
            CHECK((t->counters[phase].v_skipped > 0) == (i > 0), "%d skipped", (int)t->counters[phase].v_skipped);
            CHECK(w.largest[phase] <= (double)t->certificate[phase] && (double)t->certificate[phase] <= most,
                  "largest certificate %g, seen %g", (double)t->certificate[phase], w.largest[phase]);
            CHECK((t->certificate[phase] > 0) == (i > 0), "mode %d: certificate %g", modes[i].mode,
                  (double)t->certificate[phase]);
        }
    }
    close_subject(&s);
}

/* ---- checkpoints that are not what they should be ---------------------------------------------------------------- */

typedef struct bytes {
    unsigned char *at;
    size_t count;
} bytes;

static bytes bytes_of(const llm_shape *shape) {
    bytes b;
    FILE *file;
    b.count = (size_t)llm_ref_write(shape, 71, path_of("model"));
    b.at = (unsigned char *)malloc(b.count + 8);
    file = fopen(path_of("model"), "rb");
    if (!file || !b.at || fread(b.at, 1, b.count, file) != b.count || fclose(file)) abort();
    memset(b.at + b.count, 0, 8);
    return b;
}

/* 1: a model was loaded. Otherwise there is a sentence that names the file. */
static int loads(const bytes *b, size_t count, char *error) {
    model *m;
    write_bytes("model", b->at, count);
    memset(error, 0, ERROR_BYTES);
    m = model_load(path_of("model"), error);
    CHECK(m || strstr(error, path_of("model")), "\"%s\" does not name the file", error);
    CHECK(!m || !*error, "loaded, and \"%s\"", error);
    model_close(m);
    return m != NULL;
}

/* Cut at every place of the header, around the end, and here and there. */
static void test_truncated(void) {
    test_rng rng = { 72 };
    char error[ERROR_BYTES];
    int32_t i, j;
    for (i = 0; i < SHAPES; i++) {
        bytes b = bytes_of(&shapes[i]);
        CHECK(loads(&b, b.count, error), "%s: %s", shape_names[i], error);
        for (j = 0; j < 200; j++) {
            size_t count = j < 100 ? (size_t)j : j < 110 ? b.count - 1 - (size_t)(j - 100)
                                                         : (size_t)(test_next(&rng) % b.count);
            int loaded = loads(&b, count, error);
            CHECK(!loaded, "%s: loaded from %d bytes of %d", shape_names[i], (int)count, (int)b.count);
            CHECK(loaded || count < 8 || strstr(error, "needs") || strstr(error, "ends"), "%d bytes: %s", (int)count,
                  error);
        }
        for (j = 1; j <= 8; j++) CHECK(!loads(&b, b.count + (size_t)j, error), "%s: %d more", shape_names[i], j);
        CHECK(strstr(error, "8 bytes"), "%s", error);
        free(b.at);
    }
    remove(path_of("model"));
}

/* The sentence says which tensor it is, what it needs and what is missing. */
static void test_what_is_missing(void) {
    const llm_shape *s = &shapes[MIXED];
    char error[ERROR_BYTES];
    bytes b = bytes_of(s);
    size_t dim = (size_t)s->dim, q = (size_t)(s->heads * s->head_dim), kv = (size_t)(s->kv_heads * s->head_dim);
    size_t hidden = (size_t)s->hidden, layer = 4 * (dim + 2 * q * dim + 2 * kv * dim + dim + 3 * hidden * dim);
    size_t first = 8 + 4 * 12 + 8 * (size_t)s->layers + 4 * (size_t)s->vocab * dim;
    size_t wk = first + layer + 4 * (dim + q * dim);
    CHECK(!loads(&b, wk + 4 * kv * dim - 12, error), "loaded");
    CHECK(strstr(error, "layer 1") && strstr(error, "wk"), "%s", error);
    CHECK(strstr(error, "2048") && strstr(error, " 12 bytes"), "%s", error);
    CHECK(!loads(&b, b.count - 4, error) && strstr(error, "classifier"), "%s", error);
    CHECK(!loads(&b, first - 1, error) && strstr(error, "embedding"), "%s", error);
    CHECK(!loads(&b, 20, error) && strstr(error, "header"), "%s", error);
    free(b.at);
    remove(path_of("model"));
    CHECK(!model_load(path_of("nothing"), error) && strstr(error, path_of("nothing")), "%s", error);
    CHECK(!model_load(folder, error) && strstr(error, folder), "%s", error);
}

static void put_int32(bytes *b, size_t at, int32_t value) {
    memcpy(b->at + at, &value, 4);
}

/* Every number of the header becomes every one of these. What still loads must run. */
static void run_corrupted(const bytes *b, const char *what) {
    char error[ERROR_BYTES];
    static const int32_t prompt[3] = { 1, 0, 1 };
    options o = default_options();
    model *m;
    engine *e;
    write_bytes("model", b->at, b->count);
    m = model_load(path_of("model"), error);
    CHECK(m || strstr(error, path_of("model")), "%s: %s", what, error);
    if (!m) return;
    o.serve.context = 40;
    o.serve.spec = 2;
    e = engine_open(&o, m, NULL, error);
    CHECK(e || *error, "%s: no engine, no reason", what);
    if (e && server_submit(&e->s, prompt, 3, 3)) {
        while (engine_step(e, 0) > 0) {}
        CHECK(!*e->error && e->s.request[0]->state == DONE, "%s: %s", what, e->error);
    }
    engine_close(e);
    model_close(m);
}

static void test_corrupted(void) {
    static const int32_t values[] = { INT32_MIN, -1, 0, 1, 2, 3, 7, 4096, 65536, 1 << 20, 1 << 28, INT32_MAX };
    test_rng rng = { 73 };
    char what[100];
    int32_t i;
    size_t at, v;
    for (i = 0; i < SHAPES; i++) {
        bytes b = bytes_of(&shapes[i]);
        size_t header = shapes[i].format == LLM_LM ? 56 + 8 * (size_t)shapes[i].layers : 28;
        for (at = shapes[i].format == LLM_LM ? 8 : 0; at < header; at += 4) {
            unsigned char before[4];
            memcpy(before, b.at + at, 4);
            for (v = 0; v < sizeof values / sizeof *values; v++) {
                put_int32(&b, at, values[v]);
                snprintf(what, sizeof what, "%s: %d at %d", shape_names[i], values[v], (int)at);
                run_corrupted(&b, what);
            }
            memcpy(b.at + at, before, 4);
        }
        for (v = 0; v < 150; v++) { /* random bits: of the header, or anywhere */
            unsigned char before;
            at = (size_t)(test_next(&rng) % (v < 100 ? header : b.count));
            before = b.at[at];
            b.at[at] = (unsigned char)(before ^ 1u << test_range(&rng, 0, 7));
            snprintf(what, sizeof what, "%s: a bit at %d", shape_names[i], (int)at);
            run_corrupted(&b, what);
            b.at[at] = before;
        }
        free(b.at);
    }
    remove(path_of("model"));
}

/* Sizes far above the file's: refused before any memory is asked for. */
static void test_oversized(void) {
    static const struct {
        int shape, at[3], value[3];
    } cases[] = {
        { MIXED, { 8, 32, 12 }, { 65536, 1 << 20, 1 << 18 } },       /* dim, vocab, hidden */
        { MIXED, { 20, 24, 28 }, { 1024, 1024, 1024 } },             /* heads, kv_heads, head_dim */
        { BYTES, { 8, 32, 36 }, { 65536, 1 << 20, 1 << 24 } },       /* dim, vocab, max_len */
        { BIN, { 0, 4, 20 }, { 65536, 1 << 18, 1 << 20 } },          /* dim, hidden_dim, vocab_size */
        { BIN, { 24, 24, 24 }, { 1 << 24, 1 << 24, 1 << 24 } },      /* seq_len */
        { SHARED_BIN, { 8, 24, 20 }, { 1000, 1 << 20, -(1 << 20) } } /* n_layers, seq_len, vocab_size */
    };
    char error[ERROR_BYTES];
    size_t i;
    int j;
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        bytes b = bytes_of(&shapes[cases[i].shape]);
        for (j = 0; j < 3; j++) put_int32(&b, (size_t)cases[i].at[j], cases[i].value[j]);
        CHECK(!loads(&b, b.count, error) && strstr(error, "needs"), "case %d: %s", (int)i, error);
        free(b.at);
    }
    remove(path_of("model"));
}

/* No number may be infinite or NaN. */
static void test_not_finite(void) {
    static const uint32_t bad[] = { 0x7F800000u, 0xFF800000u, 0x7FC00000u };
    char error[ERROR_BYTES];
    int32_t i, j;
    for (i = 0; i < SHAPES; i++) {
        bytes b = bytes_of(&shapes[i]);
        size_t from = shapes[i].format == LLM_LM ? 56 + 8 * (size_t)shapes[i].layers : 28;
        size_t places[2];
        places[0] = b.count - 4; /* the end of the classifier, of its scales, or of norm_final */
        if (i == SHARED_BIN) places[0] -= 4 * (size_t)(shapes[i].max_len * shapes[i].head_dim); /* RoPE tables */
        places[1] = from + 40;
        if (shapes[i].weights == LLM_INT8) places[1] = from + ((size_t)(shapes[i].vocab * shapes[i].dim) + 3) / 4 * 4;
        for (j = 0; j < 6; j++) {
            unsigned char before[4];
            memcpy(before, b.at + places[j / 3], 4);
            memcpy(b.at + places[j / 3], &bad[j % 3], 4);
            CHECK(!loads(&b, b.count, error) && strstr(error, "finite"), "%s, place %d: %s", shape_names[i], j, error);
            memcpy(b.at + places[j / 3], before, 4);
        }
        CHECK(loads(&b, b.count, error), "%s", error);
        free(b.at);
    }
    remove(path_of("model"));
}

/* ---- tokenizer --------------------------------------------------------------------------------------------------- */

enum { SINGLES = 12, PIECES = 259 + SINGLES + 60 };

/* Pieces of a small vocabulary, and an encoder that tries every pair against every piece. */
typedef struct pieces {
    char text[PIECES][32];
    float score[PIECES];
} pieces;

static void draw_pieces(pieces *v, uint64_t seed) {
    static const char *const singles[SINGLES] = { " ", "a", "b", "c", "d", "e", "\xC3\xA9", "\xE2\x88\x91",
                                                  "\xF0\x9F\x98\x80", ".", "o", "n" };
    test_rng rng = { seed };
    int32_t i, j, same;
    memset(v, 0, sizeof *v);
    snprintf(v->text[0], 32, "<unk>");
    snprintf(v->text[1], 32, "\n<s>\n");
    snprintf(v->text[2], 32, "\n</s>\n");
    for (i = 3; i < 259; i++) snprintf(v->text[i], 32, "<0x%02X>", (unsigned)i - 3);
    for (i = 0; i < SINGLES; i++) snprintf(v->text[259 + i], 32, "%s", singles[i]);
    for (i = 259 + SINGLES; i < PIECES; i++) {
        do {
            const char *a = v->text[test_range(&rng, 259, i - 1)], *b = v->text[test_range(&rng, 259, i - 1)];
            same = strlen(a) + strlen(b) > 12;
            if (!same) strcat(strcpy(v->text[i], a), b);
            for (j = 259; j < i && !same; j++) same = !strcmp(v->text[i], v->text[j]);
        } while (same);
        v->score[i] = 10 * test_uniform(&rng);
    }
}

static bytes tokenizer_bytes(const pieces *v) {
    bytes b;
    size_t i;
    int32_t longest = 27;
    b.at = (unsigned char *)malloc(PIECES * 40 + 5);
    if (!b.at) abort();
    memcpy(b.at, &longest, 4);
    b.count = 4;
    for (i = 0; i < PIECES; i++) {
        int32_t len = (int32_t)strlen(v->text[i]);
        memcpy(b.at + b.count, &v->score[i], 4);
        memcpy(b.at + b.count + 4, &len, 4);
        memcpy(b.at + b.count + 8, v->text[i], (size_t)len);
        b.count += 8 + (size_t)len;
    }
    return b;
}

static int32_t find_text(const pieces *v, const char *text) {
    int32_t i;
    for (i = 0; i < PIECES; i++) {
        if (!strcmp(v->text[i], text)) return i;
    }
    return -1;
}

static int32_t encode_slowly(const pieces *v, const char *text, int32_t *token) {
    char source[310], one[5];
    int32_t n = 1, i;
    const char *p;
    snprintf(source, sizeof source, "%s%s", *text ? " " : "", text);
    token[0] = 1;
    for (p = source; *p;) {
        unsigned char lead = (unsigned char)*p;
        int len = lead < 0xC0 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
        snprintf(one, sizeof one, "%.*s", len, p);
        token[n] = find_text(v, one);
        for (i = 0; i < len && find_text(v, one) < 0; i++) token[n + i] = 3 + (unsigned char)p[i];
        n += i ? i : 1;
        p += len;
    }
    for (;;) {
        int32_t at = -1, merged = -1;
        for (i = 1; i + 1 < n; i++) {
            char both[64];
            int32_t found;
            snprintf(both, sizeof both, "%s%s", v->text[token[i]], v->text[token[i + 1]]);
            found = find_text(v, both);
            if (found < 0 || (merged >= 0 && v->score[found] <= v->score[merged])) continue;
            at = i;
            merged = found;
        }
        if (at < 0) return n;
        token[at] = merged;
        memmove(token + at + 1, token + at + 2, sizeof *token * (size_t)(n - at - 2));
        n--;
    }
}

/* What the tokens behind the first say. */
static void check_printed(const tokenizer *t, const int32_t *token, int32_t n, const char *text) {
    char got[400];
    FILE *file = tmpfile();
    int32_t i;
    size_t count;
    if (!file) abort();
    for (i = 1; i < n; i++) tokenizer_print(t, token[i], i == 1, file);
    rewind(file);
    count = fread(got, 1, sizeof got, file);
    fclose(file);
    CHECK(count == strlen(text) && !memcmp(got, text, count), "\"%.*s\" instead of \"%s\"", (int)count, got, text);
}

static void test_tokenizer(void) {
    static const char *const words[] = { "a", "b", "c", "d", "e", " ", "\xC3\xA9", "\xE2\x88\x91", "\xF0\x9F\x98\x80",
                                         "no", ".", "  ", "z", "\n", "\xC3\xBC", "\xE2\x82\xAC",
                                         "\xF0\x9F\x98\x81", "aa" };
    pieces v;
    char error[ERROR_BYTES], text[300];
    int32_t i, j, merges = 0, bytes_alone = 0;
    for (i = 0; i < 200; i++) {
        test_rng rng = { 100 + (uint64_t)i };
        int32_t got[300], want[300], n, m, count = i ? test_range(&rng, 1, 20) : 0;
        tokenizer t;
        bytes b;
        draw_pieces(&v, 81 + (uint64_t)i / 50);
        b = tokenizer_bytes(&v);
        write_bytes("tokenizer", b.at, b.count);
        free(b.at);
        CHECK(!tokenizer_load(&t, path_of("tokenizer"), PIECES, error), "%s", error);
        for (*text = 0, j = 0; j < count; j++) {
            int32_t word = test_range(&rng, 0, i % 2 ? 9 : 17), any = test_range(&rng, 259, PIECES - 1);
            strcat(text, j % 3 ? words[word] : v.text[any]);
        }
        n = tokenizer_encode(&t, text, got);
        m = encode_slowly(&v, text, want);
        CHECK(n == m && !memcmp(got, want, sizeof *got * (size_t)n), "\"%s\": %d tokens, slowly %d", text, n, m);
        check_printed(&t, got, n, text);
        for (j = 1; j < n; j++) {
            merges += got[j] >= 259 + SINGLES;
            bytes_alone += got[j] < 259;
        }
        tokenizer_close(&t);
    }
    CHECK(merges > 500 && bytes_alone > 100, "%d merged pieces, %d bytes", merges, bytes_alone);
    remove(path_of("tokenizer"));
}

/* By hand: the best score first, then the leftmost; and what a stranger's bytes become. */
static void test_tokenizer_by_hand(void) {
    static const struct {
        const char *text;
        int32_t n, token[6];
    } cases[] = { { "", 1, { 1 } },
                  { "abc", 4, { 1, 259, 260, 273 } },     /* a + bc: bc scores more than ab, abc is none */
                  { "abab", 4, { 1, 259, 272, 272 } },
                  { "aaa", 4, { 1, 259, 274, 260 } },     /* the left pair of two equal ones */
                  { "z\x80", 4, { 1, 259, 125, 131 } },   /* bytes: 'z' + 3, 0x80 + 3 */
                  { "\x80", 3, { 1, 259, 131 } },         /* the space is a character of its own */
                  { "aa\x80", 5, { 1, 259, 260, 100, 131 } }, /* the second a begins no character, so it is a byte */
                  { "\xC3\xA9", 3, { 1, 259, 265 } } };
    int32_t got[20], i;
    char error[ERROR_BYTES];
    pieces v;
    tokenizer t;
    bytes b;
    draw_pieces(&v, 82);
    for (i = 259 + SINGLES; i < PIECES; i++) snprintf(v.text[i], 32, "=%d", i);
    snprintf(v.text[272], 32, "ab");
    snprintf(v.text[273], 32, "bc");
    snprintf(v.text[274], 32, "aa");
    v.score[273] = v.score[272] + 1;
    b = tokenizer_bytes(&v);
    write_bytes("tokenizer", b.at, b.count);
    CHECK(!tokenizer_load(&t, path_of("tokenizer"), PIECES, error), "%s", error);
    CHECK(t.stop[0] == 1 && t.stop[1] == 2, "a text ends with %d or %d", t.stop[0], t.stop[1]);
    for (i = 0; i < (int32_t)(sizeof cases / sizeof *cases); i++) {
        int32_t n = tokenizer_encode(&t, cases[i].text, got);
        CHECK(n == cases[i].n && !memcmp(got, cases[i].token, sizeof *got * (size_t)n), "\"%s\": %d tokens, %d %d ..",
              cases[i].text, n, got[1], got[2]);
        check_printed(&t, got, n, cases[i].text);
    }
    tokenizer_close(&t);
    for (i = 0; i < (int32_t)b.count; i += i < 100 ? 1 : 37) {
        write_bytes("tokenizer", b.at, (size_t)i);
        CHECK(tokenizer_load(&t, path_of("tokenizer"), PIECES, error) && strstr(error, "tokenizer"), "%d bytes: %s", i,
              error);
        tokenizer_close(&t);
    }
    b.at[b.count] = 0;
    write_bytes("tokenizer", b.at, b.count + 1);
    CHECK(tokenizer_load(&t, path_of("tokenizer"), PIECES, error) && *error, "a byte too many");
    tokenizer_close(&t);
    memset(b.at + 8, 0xFF, 4); /* a length of -1 */
    write_bytes("tokenizer", b.at, b.count);
    CHECK(tokenizer_load(&t, path_of("tokenizer"), PIECES, error) && *error, "a piece of -1 bytes");
    tokenizer_close(&t);
    CHECK(tokenizer_load(&t, path_of("tokenizer"), 100, error) && *error, "100 tokens");
    tokenizer_close(&t);
    CHECK(tokenizer_load(&t, path_of("nothing"), PIECES, error) && strstr(error, "nothing"), "%s", error);
    tokenizer_close(&t);
    CHECK(tokenizer_load(&t, NULL, PIECES, error) && *error, "no file, but more tokens than bytes");
    tokenizer_close(&t);
    free(b.at);
    remove(path_of("tokenizer"));
}

/* Without a file tokens are bytes, behind a 0. */
static void test_byte_tokens(void) {
    static const char text[] = " any \xC3\xA9 byte \xFF.\n";
    int32_t token[40], n, i;
    char error[ERROR_BYTES];
    tokenizer t;
    CHECK(!tokenizer_load(&t, NULL, 256, error), "%s", error);
    n = tokenizer_encode(&t, text, token);
    CHECK(n == (int32_t)sizeof text && token[0] == 0 && t.stop[0] == 0, "%d tokens, the first %d", n, token[0]);
    for (i = 1; i < n; i++) CHECK(token[i] == (unsigned char)text[i - 1], "token %d is %d", i, token[i]);
    check_printed(&t, token, n, text);
    tokenizer_close(&t);
}

int main(int argc, char **argv) {
    test.only = argc > 1 ? argv[1] : NULL;
    open_folder();
    test_run("llm: two formulations of the oracle agree", test_oracle);
    test_run("llm: the oracle agrees with pencil and paper", test_oracle_by_hand);
    test_run("llm: logits as in double, both formats, all shapes", test_logits);
    test_run("llm: logits with a cache of 16 and 8 bits", test_kv_types);
    test_run("llm: batched, chunked, paged, threaded, in frames, speculating: greedy text and logits are the same bits",
             test_greedy);
    test_run("llm: the same where pages are few", test_greedy_in_few_pages);
    test_run("llm: the same for sampled text", test_sampled);
    test_run("llm: the same for other models and types of the cache", test_other_types);
    test_run("llm: threads that meet", test_lanes);
    test_run("llm: a warm prefix gives the bits of a cold one", test_prefixes);
    test_run("llm: a conversation finds its beginning", test_conversation);
    test_run("llm: requests have pages in common", test_pages_in_common);
    test_run("llm: old prompts make room", test_eviction);
    test_run("llm: shared pages are reset, but not under a live request", test_reset);
    test_run("llm: requests wait for a slot and for pages, in order", test_queue);
    test_run("llm: nobody joins into pages that others will need", test_admission);
    test_run("llm: a frame that is over ends with the next job", test_short_frames);
    test_run("llm: what can never run is refused", test_refusals);
    test_run("llm: options that cannot work are refused", test_bad_options);
    test_run("llm: a stop token ends a text", test_stop);
    test_run("llm: requests that are done can be forgotten", test_forgetting);
    test_run("llm: tokens are drawn as often as their probabilities say", test_distribution);
    test_run("llm: a seed and a key say all", test_seeds);
    test_run("llm: temperature 0 and top_p 0 give the best token", test_best);
    test_run("llm: certificates bound what skipping does", test_skipping);
    test_run("llm: truncated checkpoints", test_truncated);
    test_run("llm: what is missing in a checkpoint is named", test_what_is_missing);
    test_run("llm: corrupted checkpoints", test_corrupted);
    test_run("llm: oversized checkpoints", test_oversized);
    test_run("llm: numbers that are not finite", test_not_finite);
    test_run("llm: tokenizer, against a slow one", test_tokenizer);
    test_run("llm: tokenizer, by hand, and its broken files", test_tokenizer_by_hand);
    test_run("llm: bytes as tokens", test_byte_tokens);
    rmdir(folder);
    return test_close("llm");
}
