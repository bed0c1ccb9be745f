/* llm.c - a complete small inference program: text from a language model, all of its attention through attn.h, or on an
   NVIDIA GPU through attn_cuda.h.

   Build   cc -O2 -I. examples/llm.c -o llm -lm -lpthread          (and -ldl for a glibc before 2.34)
   Use     llm                    continues a few texts with models/text.lm;  llm --help: the options
           llm --cuda             the same with attention on a GPU; where there is none a line says so
           llm --model stories15M.bin --tokenizer tokenizer.bin --prompt "Once upon a time"
   Result  text and a report; exit status 0, or 1 and a sentence on what is wrong.

   To be read from top to bottom: state, attention, the pass through the layers, the step, opening; then the program.
   llm_base.h (files, tokens, threads, matrix products) and llm_serve.h (requests, pages, drafts, sampling) know nothing
   of attn.h. A program of its own defines LLM_NO_MAIN, includes this file, and does

      char error[ERROR_BYTES];                                     a sentence if something is NULL
      model *m = model_load("models/text.lm", error);
      options o = default_options();
      engine *e = engine_open(&o, m, NULL, error);
      int32_t prompt[] = { 0, 'O', 'n', 'c', 'e', ' ' };           this model's tokens are bytes behind a 0
      request *r = server_submit(&e->s, prompt, 6, 200);           200 tokens more; any number of requests, at any time
      while (engine_step(e, 0) > 0) {}                             r->token[0 .. r->len - 1] is the text after each step
      engine_close(e);
      model_close(m);

   A request's text and logits are the same bits whatever happens around it: batches, chunks, shared pages, threads,
   frames, speculation. Rows of a prompt are computed in phase PREFILL, all others in phase DECODE; attn.h makes a row's
   bits follow from its own tokens and the phase, and every output of a matrix is one call of dot() on one row. (Not so
   while skipping: the rows of a tile decide together what is left out.) */
#define _POSIX_C_SOURCE 200809L /* threads and a clock */
#define ATTN_IMPLEMENTATION
#include "attn_cuda.h"
#include "llm_serve.h"

/* ---- state ------------------------------------------------------------------------------------------------------- */

typedef struct options {
    serve_options serve;
    attn_layer layer;            /* what is set in it holds for all layers: kv_type, skip, row_tile; no LAMBDA */
    attn_cuda *gpu;              /* where attention works; NULL: on the CPU */
    int32_t threads;
} options;

/* Layers with the same window: one plan a step for all of them. */
typedef struct layer_class {
    attn_layer layer;
    attn_io io;                  /* what its layers have in common */
    attn_plan plan;
    void *plan_mem;
    size_t plan_bytes;
    int32_t *table, columns;     /* of a ring that has pages: [slot][columns] */
} layer_class;

/* What a layer does, and the classifier at the end. */
enum { MAKE_Q, MAKE_K, MAKE_V, ATTEND, MERGE, MAKE_O, MAKE_W1, MAKE_W3, MAKE_W2, CLASSIFY };

/* Rows of floats that a pass works on; up to THERE also where attention works. */
enum { QUERY, KEY, VALUE, ATTENDED, CERTIFICATE, THERE, RESIDUAL = THERE, NORMED, HIDDEN, LOGITS, BUFFERS };

/* A model with its caches, and the rows that are on their way through it. `there`: where attention works. It is the
   host's own array, or on a device the copy of it. Caches, and memory of plans and exec, are only there. */
typedef struct net {
    const model *m;
    step_rows rows;
    layer_class *classes, **class_of;            /* [class_count], [layer] */
    int32_t class_count;
    attn_io *io;                                 /* [layer], all of it there */
    attn_exec exec;
    attn_meta meta;
    void *meta_mem;
    attn_counters *counters;                     /* [lane] */
    uint32_t *tree;                              /* [row][tree_words] */
    int32_t tree_words, *seq_lens, *batch, *batch_there, *position, *position_there; /* [slot], [3][slot], [row] */
    float *buffer[BUFFERS], *buffer_there[THERE];
    int32_t width[BUFFERS], layer, stage;
    product product;
} net;

/* [0]: steps with rows of prompts, [1]: without */
typedef struct stats {
    long long steps[2], rows[2], passes, plans, prompt_tokens, shared_tokens, tokens, drafts;
    double ms[2], attention_ms, plan_ms;
    attn_counters counters[2];
    float certificate[2];        /* the largest of each phase */
} stats;

/* An array that is copied to a device before each pass; here NULL: memory of the device alone. */
typedef struct mirror {
    struct mirror *next;
    void *there, *here;
    size_t bytes;
} mirror;

typedef struct engine {
    server s;                    /* the requests, and how far each of them is */
    attn_layer layer;            /* what all layers of attention have in common */
    attn_cuda *gpu;
    mirror *mirrors;
    int32_t max_q_len, max_kv_len; /* what no step exceeds: memory is sized by it */
    int64_t max_rows;
    net net[2];                  /* the model, and the draft model if there is one */
    int32_t nets, pass, kind;    /* of this step: see fill_rows, schedule; pass -1: no step has begun */
    pool pool;
    stats stats;
    void *user;
    /* Hooks, or NULL: logits of each row that stays, in order; attention of t->layer, with its caches in t->io. */
    void (*on_logits)(void *user, const request *r, int32_t position, const float *logits);
    void (*on_attention)(void *user, struct engine *e, const net *t);
    char error[ERROR_BYTES];
    arena *mem;
} engine;

/* ---- attention --------------------------------------------------------------------------------------------------- */

/* Memory where attention works, on the CPU `here` if that is set; NULL and e->error if a device has not so much. */
static void *need_there(engine *e, void *here, int64_t count, size_t size) {
    attn_error err;
    if (!e->gpu) return here ? here : need(&e->mem, count, size);
    mirror *c = need(&e->mem, 1, sizeof *c);
    *c = (mirror){ e->mirrors, attn_cuda_alloc(e->gpu, (size_t)count * size + 1, &err), here, (size_t)count * size };
    e->mirrors = c;
    if (!c->there) fail(e->error, "%lld * %zu bytes: %s", (long long)count, size, err.text);
    return c->there;
}

/* The class of layers with a window, which is made if there is none yet. io: what all layers have in common. */
static layer_class *class_of_window(engine *e, net *t, const attn_io *io, int32_t window) {
    int32_t unit = e->s.o.page ? e->s.o.page : 1;
    layer_class *c = t->classes;
    while (c < t->classes + t->class_count && c->layer.window_left != window) c++;
    if (c < t->classes + t->class_count) return c;
    t->class_count++;
    c->io = *io;
    c->layer = e->layer;
    c->layer.heads = t->m->heads;
    c->layer.kv_heads = t->m->kv_heads;
    c->layer.head_dim = t->m->head_dim;
    c->layer.window_left = window;
    if (e->gpu) attn_cuda_geometry(e->gpu, &c->layer, NULL);
    /* A ring holds the rows of a step and what the first one sees, in whole pages wherever they begin. */
    if (window) c->layer.ring = (window + e->max_q_len + 2 * unit - 3) / unit * unit;
    if (!window || !e->s.o.page) return c;
    c->io.page_table_row = c->columns = c->layer.ring / unit;
    c->table = need(&e->mem, e->s.o.batch * c->columns, sizeof *c->table);
    c->io.page_table = need_there(e, c->table, e->s.o.batch * c->columns, sizeof *c->table);
    return c;
}

/* A layer's keys and values. */
static void open_cache(engine *e, const net *t, const layer_class *c, attn_io *io) {
    static const size_t bytes[] = { 4, 2, 2, 1, 1, 1 };
    int64_t slots = c->layer.ring ? c->layer.ring : e->max_kv_len, width = t->width[KEY];
    int64_t keys = e->s.o.page ? (int64_t)e->s.o.pages * e->s.o.page : e->s.o.batch * slots;
    *io = c->io;
    io->k = need_there(e, NULL, keys * width, bytes[c->layer.kv_type]);
    io->v = need_there(e, NULL, keys * width, bytes[c->layer.kv_type]);
    if (c->layer.scale_kind) io->k_scale = need_there(e, NULL, keys * t->m->kv_heads, sizeof *io->k_scale);
    if (c->layer.scale_kind) io->v_scale = need_there(e, NULL, keys * t->m->kv_heads, sizeof *io->v_scale);
    if (!e->s.o.page) io->k_page = io->v_page = slots * width;
}

/* The mask of drafts with branches: a node sees what it descends from, other rows see those before them. */
static void fill_tree(const server *s, const net *t) {
    uint32_t *word = t->tree;
    for (int32_t i = 0; i < s->o.batch && t->rows.is_tree; i++) {
        for (int32_t j = 0; j < t->rows.q_len[i]; j++, word += t->tree_words) {
            for (int32_t w = 0; w < t->tree_words; w++) word[w] = w < j / 32 ? ~0u : 0;
            word[j / 32] = t->rows.decodes[i] ? s->slot[i]->bits[j] : ~0u >> (31 - j % 32);
        }
    }
}

/* What an engine would call the pass. */
static attn_mode mode_of(const engine *e, const step_rows *b) {
    if (e->pass > 0 && e->pass < e->s.o.spec) return ATTN_MODE_DRAFT_DECODE;
    if (b->prompts || !b->same) return b->decoding ? ATTN_MODE_MIXED : ATTN_MODE_EXTEND;
    if (e->pass < e->s.o.spec) return ATTN_MODE_DRAFT_EXTEND_V2;
    return b->same == 1 ? ATTN_MODE_DECODE : ATTN_MODE_TARGET_VERIFY;
}

static int plan_class(engine *e, net *t, layer_class *c, const attn_batch *batch, attn_error *err) {
    c->layer.mask = t->rows.is_tree ? ATTN_TREE : ATTN_CAUSAL;
    size_t bytes = attn_plan_bytes(batch, &c->layer);
    if (bytes > c->plan_bytes) c->plan_mem = need_there(e, NULL, 1, c->plan_bytes = bytes);
    int failed = e->gpu
                     ? attn_cuda_plan_make(e->gpu, &c->plan, batch, &c->layer, c->plan_mem, c->plan_bytes, NULL, err)
                     : attn_plan_make(&c->plan, batch, &c->layer, c->plan_mem, c->plan_bytes, err);
    if (failed) return failed;
    bytes = e->gpu ? attn_cuda_exec_bytes(e->gpu, &c->plan) : attn_exec_bytes(&c->plan, t->exec.lanes);
    if (bytes > t->exec.bytes) t->exec.mem = need_there(e, NULL, 1, t->exec.bytes = bytes);
    e->stats.plans++;
    return 0;
}

/* Metadata, masks, and one plan for each class, from the lengths of the pass. */
static int attention_plan(engine *e, net *t, attn_mode mode) {
    const step_rows *b = &t->rows;
    int64_t slots = e->s.o.batch;
    double start = now_ms();
    int32_t guess = mode == ATTN_MODE_DRAFT_DECODE ? e->pass : 0;
    int32_t later = mode == ATTN_MODE_TARGET_VERIFY ? b->same : guess; /* what this mode's seq_lens does not count */
    attn_mode_input lengths = { .n = e->s.o.batch, .seq_lens = t->seq_lens, .extend_lens = b->q_len,
                                .phase = b->decodes, .draft_tokens = b->same, .draft_step = guess ? guess - 1 : 0,
                                .max_q_len = e->max_q_len, .max_kv_len = e->max_kv_len, .max_rows = e->max_rows };
    attn_batch batch;
    attn_error err;
    for (int32_t i = 0; i < slots; i++) t->seq_lens[i] = b->q_len[i] ? b->kv_len[i] - later : -1;
    int failed = attn_batch_from_mode(&batch, mode, &lengths, t->batch, 3 * (size_t)slots, &err);
    size_t bytes = failed ? 0 : attn_meta_bytes(&batch, NULL, ATTN_META_POSITIONS); /* always the same */
    if (!t->meta_mem) t->meta_mem = need(&e->mem, 1, bytes);
    failed = failed || attn_meta_make(&t->meta, &batch, NULL, ATTN_META_POSITIONS, t->meta_mem, bytes, &err);
    for (int32_t r = 0; r < b->count && !failed; r++) t->position[r] = t->meta.positions[r] + b->shift[r];
    for (int32_t n = 0; n < t->class_count; n++) fill_ring(&e->s, b, t->classes[n].table, t->classes[n].columns);
    fill_tree(&e->s, t);
    for (const mirror *c = e->mirrors; c && !failed; c = c->next) {
        failed = c->here && c->bytes && attn_cuda_write(e->gpu, c->there, c->here, c->bytes, &err);
    }
    batch.q_len = t->batch_there;
    batch.kv_len = t->batch_there + slots;
    batch.phase = t->batch_there + 2 * slots;
    for (int32_t n = 0; n < t->class_count && !failed; n++) failed = plan_class(e, t, &t->classes[n], &batch, &err);
    e->stats.plan_ms += now_ms() - start;
    return failed ? fail(e->error, "plan: %s", err.text) : 0;
}

/* Buffers, classes, caches, and plans of nothing, which shows whether the layers can work. */
static void net_open(engine *e, net *t, const model *m) {
    int32_t q = m->heads * m->head_dim, kv = m->kv_heads * m->head_dim;
    const int32_t width[BUFFERS] = { q, kv, kv, q, m->heads, m->dim, m->dim, m->hidden, m->vocab };
    int64_t slots = e->s.o.batch, most = e->max_rows;
    t->m = m;
    memcpy(t->width, width, sizeof width);
    for (int i = 0; i < BUFFERS; i++) t->buffer[i] = need(&e->mem, most * width[i], sizeof(float));
    for (int i = 0; i < THERE; i++) { /* copied for each layer */
        t->buffer_there[i] = e->gpu ? need_there(e, NULL, most * width[i], sizeof(float)) : t->buffer[i];
    }
    rows_open(&t->rows, e->s.o.batch, most, &e->mem);
    t->tree_words = e->s.o.tree ? (e->max_q_len + 31) / 32 : 0;
    t->tree = need(&e->mem, most * t->tree_words, sizeof *t->tree);
    t->counters = need(&e->mem, e->pool.lanes, sizeof *t->counters);
    t->seq_lens = need(&e->mem, slots, sizeof *t->seq_lens);
    t->batch = need(&e->mem, 3 * slots, sizeof *t->batch);
    t->position = need(&e->mem, most, sizeof *t->position);
    t->batch_there = need_there(e, t->batch, 3 * slots, sizeof *t->batch);
    t->position_there = need_there(e, t->position, most, sizeof *t->position);
    attn_io io = { .q = t->buffer_there[QUERY], .o = t->buffer_there[ATTENDED],
                   .certificate = t->buffer_there[CERTIFICATE], .page_table_row = e->s.columns, .pages = e->s.o.pages };
    io.page_table = need_there(e, e->s.table, slots * e->s.columns, sizeof *e->s.table);
    io.tree = need_there(e, t->tree, most * t->tree_words, sizeof *t->tree);
    io.counters = need_there(e, t->counters, 1, sizeof *t->counters);
    t->exec.lanes = e->pool.lanes;
    t->classes = need(&e->mem, m->layers, sizeof *t->classes);
    t->class_of = need(&e->mem, m->layers, sizeof *t->class_of);
    t->io = need(&e->mem, m->layers, sizeof *t->io);
    for (int32_t l = 0; l < m->layers; l++) { /* a ring has bounds */
        t->class_of[l] = class_of_window(e, t, &io, least(m->of_layer[l].window, e->max_kv_len));
        open_cache(e, t, t->class_of[l], &t->io[l]);
    }
    if (!*e->error) attention_plan(e, t, ATTN_MODE_IDLE);
}

/* On the device: all of it at once, and waits for it. */
static int attend_on_device(engine *e, net *t, const attn_rope_input *q, const attn_rope_input *k, attn_error *err) {
    const layer_class *c = t->class_of[t->layer];
    const attn_io *io = &t->io[t->layer];
    size_t bytes[THERE];
    for (int i = 0; i < THERE; i++) {
        bytes[i] = (size_t)t->rows.count * (size_t)t->width[i] * sizeof(float);
        if (i <= VALUE && attn_cuda_write(e->gpu, t->buffer_there[i], t->buffer[i], bytes[i], err)) return -1;
    }
    if ((q->rotary_dim && (attn_cuda_rope(e->gpu, q, &t->exec, err) || attn_cuda_rope(e->gpu, k, &t->exec, err))) ||
        attn_cuda_append(e->gpu, &c->plan, &c->layer, io, k->x, t->buffer_there[VALUE], &t->exec, err) ||
        attn_cuda_forward(e->gpu, &c->plan, &c->layer, io, &t->exec, err) ||
        attn_cuda_error(e->gpu, &c->plan, &t->exec, err) ||
        attn_cuda_read(e->gpu, t->buffer[ATTENDED], io->o, bytes[ATTENDED], err)) return -1;
    if (!c->layer.skip.mode) return 0;
    return attn_cuda_read(e->gpu, t->counters, io->counters, sizeof *t->counters, err) ||
           attn_cuda_read(e->gpu, t->buffer[CERTIFICATE], io->certificate, bytes[CERTIFICATE], err);
}

/* Turns q and k and stores k and v. On the CPU the tasks, which then follow, do the rest. */
static int attention_begin(engine *e, net *t) {
    const layer_class *c = t->class_of[t->layer];
    attn_rope_input q = { .x = t->buffer_there[QUERY], .rows = t->rows.count, .heads = t->m->heads,
                          .head_dim = t->m->head_dim, .rotary_dim = t->m->of_layer[t->layer].rotary, .interleaved = 1,
                          .positions = t->position_there, .base = t->m->rope_theta };
    attn_rope_input k = q;
    attn_error err;
    k.x = t->buffer_there[KEY];
    k.heads = t->m->kv_heads;
    int failed = e->gpu ? attend_on_device(e, t, &q, &k, &err)
                        : (q.rotary_dim && (attn_rope(&q, &err) || attn_rope(&k, &err))) ||
                              attn_append(&c->plan, &c->layer, &t->io[t->layer], k.x, t->buffer[VALUE], &err) ||
                              attn_check(&c->plan, &c->layer, &t->io[t->layer], &t->exec, &err);
    return failed ? fail(e->error, "layer %d: %s", t->layer, err.text) : 0;
}

static void attention_task(void *context, int32_t index, int32_t lane) {
    const net *t = context;
    attn_task(&t->class_of[t->layer]->plan, &t->io[t->layer], &t->exec, (attn_stage)(t->stage - ATTEND), index, lane);
}

/* What skipping may have cost. */
static void attention_end(engine *e, net *t) {
    const float *certificate = t->buffer[CERTIFICATE];
    if (e->on_attention) e->on_attention(e->user, e, t);
    for (int32_t r = 0; r < t->rows.count && e->layer.skip.mode; r++) {
        float *largest = &e->stats.certificate[t->rows.decodes[t->meta.row_request[r]]];
        for (int32_t h = 0; h < t->m->heads; h++) *largest = fmaxf(*largest, *certificate++);
    }
}

/* ---- a pass: rows through all layers, as jobs that can stop between any two tasks -------------------------------- */

/* x += wo attention(rope(wq n), rope(wk n), wv n); x += w2 (silu(w1 n) * w3 n); logits = classifier n; n = norm(x) */
static const struct stage {
    int32_t norm, weights, from, to, use; /* norm -1: none */
} stages[] = {
    [MAKE_Q] = { NORM_ATT, WQ, NORMED, QUERY, SET },  [MAKE_K] = { -1, WK, NORMED, KEY, SET },
    [MAKE_V] = { -1, WV, NORMED, VALUE, SET },        [ATTEND] = { -1, 0, 0, 0, 0 },
    [MERGE] = { -1, 0, 0, 0, 0 },                     [MAKE_O] = { -1, WO, ATTENDED, RESIDUAL, ADD },
    [MAKE_W1] = { NORM_FFN, W1, NORMED, HIDDEN, SET }, [MAKE_W3] = { -1, W3, NORMED, HIDDEN, GATE },
    [MAKE_W2] = { -1, W2, HIDDEN, RESIDUAL, ADD },    [CLASSIFY] = { NORM_FINAL, CLASSIFIER, NORMED, LOGITS, SET }
};

/* Normalises rows where that comes first, and makes a job of the rest. */
static int start_stage(engine *e, net *t) {
    const struct stage *s = &stages[t->stage];
    const matrix *part = t->m->of_layer[t->layer].part;
    int32_t dim = t->m->dim, is_last = t->stage == CLASSIFY, count = is_last ? t->rows.outs : t->rows.count;
    for (int64_t r = 0; r < count && s->norm >= 0; r++) {
        const float *x = t->buffer[RESIDUAL] + (is_last ? t->rows.out_row[r] : r) * dim;
        normalise(x, part[s->norm].data, dim, t->m->norm_eps, t->buffer[NORMED] + r * dim);
    }
    if (t->stage == ATTEND && attention_begin(e, t)) return -1;
    if (t->stage == MAKE_O) attention_end(e, t);
    if (t->stage == ATTEND || t->stage == MERGE) {
        const attn_plan *plan = &t->class_of[t->layer]->plan;
        int32_t tasks = e->gpu ? 0 : attn_task_count(plan, (attn_stage)(t->stage - ATTEND));
        set_job(&e->pool, attention_task, t, tasks, t->stage == ATTEND ? 2 * t->m->head_dim * plan->work : 0);
    } else {
        t->product = (product){ &part[s->weights], t->buffer[s->from], t->buffer[s->to], count, s->use,
                                e->layer.isa >= ATTN_ISA_AVX2 };
        set_product(&e->pool, &t->product);
    }
    return 0;
}

/* Plans a pass and looks its tokens up. */
static int begin_pass(engine *e, net *t) {
    fill_rows(&e->s, &t->rows, e->pass);
    if (!t->rows.count) return 0;
    if (attention_plan(e, t, mode_of(e, &t->rows))) return -1;
    e->stats.passes++;
    for (int64_t r = 0, dim = t->m->dim; r < t->rows.count; r++) {
        const float *row = t->m->of_layer[t->m->layers].part[EMBEDDING].data + t->rows.token[r] * dim;
        memcpy(t->buffer[RESIDUAL] + r * dim, row, (size_t)dim * sizeof *row);
    }
    t->layer = 0;
    t->stage = MAKE_Q;
    return start_stage(e, t);
}

/* Goes on with a pass. 1: it is complete, 0: the time is up, -1: an error. */
static int run_pass(engine *e, net *t) {
    while (t->rows.count) {
        double start = now_ms();
        int attends = t->stage == ATTEND || t->stage == MERGE, done = run_job(&e->pool);
        if (attends) e->stats.attention_ms += now_ms() - start;
        if (!done || t->stage == CLASSIFY) return done;
        t->stage++;
        if (t->stage == CLASSIFY || (t->stage == MAKE_W1 && !t->m->hidden)) {
            t->stage = ++t->layer == t->m->layers ? CLASSIFY : MAKE_Q;
        }
        start = now_ms();
        if (start_stage(e, t)) return -1;
        if (t->stage == ATTEND) e->stats.attention_ms += now_ms() - start; /* RoPE and append; on a device all of it */
        if (is_late(&e->pool)) return 0;
    }
    return 1;
}

/* ---- the step ---------------------------------------------------------------------------------------------------- */

/* Where the text ends the model chooses the next token, and then walks down the tree while it holds what is chosen.
   What is not accepted is not counted, and so overwritten. */
static void accept(engine *e, request *r, const float *logits) {
    int32_t at = 0, vocab = e->s.vocab;
    end_rows(&e->s, r);
    for (int32_t i = r->outs; i > 0 && e->on_logits; i--) {
        e->on_logits(e->user, r, r->cached - i, logits + (int64_t)(r->outs - i) * vocab);
    }
    if (!r->outs || r->cached < r->len) return;
    r->steps += decodes(r);
    e->stats.drafts += r->nodes - 1;
    while (at < r->nodes && !r->complete) {
        const float *row = logits + (int64_t)(r->outs - 1 + at) * vocab;
        if (at && r->depth[at] == at && e->on_logits) e->on_logits(e->user, r, r->cached, row);
        at = follow(&e->s, r, at, row);
    }
    if (!r->complete) return;
    e->stats.shared_tokens += r->shared;
    e->stats.prompt_tokens += r->prompt_len - r->shared;
    e->stats.tokens += r->len - r->prompt_len;
    leave(&e->s, r);
}

static void end_step(engine *e, net *t) {
    for (int32_t i = 0; i < e->s.o.batch; i++) {
        request *r = e->s.slot[i];
        if (!r || !r->rows) continue;
        accept(e, r, t->buffer[LOGITS] + (int64_t)r->first_out * e->s.vocab);
        r->rows = 0;
    }
    for (int32_t lane = 0; lane < e->pool.lanes; lane++) {
        int64_t *sum = (int64_t *)&e->stats.counters[e->kind], *one = (int64_t *)&t->counters[lane];
        for (size_t i = 0; i < sizeof *t->counters / sizeof *one; i++) sum[i] += one[i];
        memset(one, 0, sizeof *t->counters);
    }
    e->stats.steps[e->kind]++;
    e->stats.rows[e->kind] += t->rows.count;
}

enum { NOTHING_TO_DO = 0, STEP_COMPLETE, TIME_IS_UP };

/* Works until a step is complete or now_ms() reaches the deadline (0: none); then the next call goes on. -1: e->error
   has a sentence, and the engine is of no use any more. */
int engine_step(engine *e, double deadline) {
    double start = now_ms();
    int32_t last = e->s.o.spec, ran = 1;
    e->pool.deadline = deadline;
    if (e->pass < 0) {
        e->kind = schedule(&e->s);
        if (e->kind == NOBODY) return NOTHING_TO_DO;
        e->pass = e->nets > 1 ? 0 : last;
    }
    while (e->pass >= 0) {
        net *t = &e->net[e->pass < last];
        ran = !t->rows.count && begin_pass(e, t) ? -1 : run_pass(e, t);
        if (ran <= 0) break;
        if (e->pass < last) take_guesses(&e->s, &t->rows, e->pass, t->buffer[LOGITS]);
        else end_step(e, t);
        e->pass = e->pass == last ? -1 : e->pass + 1;
        t->rows.count = 0;
    }
    e->stats.ms[e->kind] += now_ms() - start;
    return ran < 0 ? -1 : ran ? STEP_COMPLETE : TIME_IS_UP;
}

/* ---- opening and closing ----------------------------------------------------------------------------------------- */

options default_options(void) {
    return (options){ .serve = { .batch = 4, .chunk = 256, .page = 16, .top_p = 0.9f, .seed = 1, .stop = { -1, -1 } },
                      .layer.kv_type = ATTN_F16, .threads = 1 };
}

void engine_close(engine *e) {
    if (!e) return;
    pool_close(&e->pool);
    for (const mirror *c = e->mirrors; c; c = c->next) attn_cuda_free(e->gpu, c->there);
    server_close(&e->s);
    release(e->mem); /* e is in it */
}

/* drafter: NULL, or a small model of the same tokens that guesses. NULL and a sentence if the options cannot work. */
engine *engine_open(const options *o, const model *m, const model *drafter, char *error) {
    arena *mem = NULL;
    engine *e = need(&mem, 1, sizeof *e);
    int32_t nets = drafter && o->serve.spec ? 2 : 1, type = (int32_t)o->layer.kv_type;
    *e = (engine){ .layer = o->layer, .gpu = o->gpu, .nets = nets, .pass = -1, .mem = mem };
    e->s = (server){ .o = o->serve, .vocab = m->vocab, .has_drafter = nets > 1, .error = e->error };
    if (!e->s.o.context || e->s.o.context > m->max_len) e->s.o.context = m->max_len;
    pool_open(&e->pool, least(o->threads, MAX_THREADS));
    if (o->threads < 1 || o->threads > MAX_THREADS || type < ATTN_F32 || type > ATTN_INT8 ||
        o->layer.skip.mode == ATTN_SKIP_LAMBDA) {
        fail(e->error, "an option is out of range");
    } else if (drafter && drafter->vocab != m->vocab) {
        fail(e->error, "the draft model has %d tokens, the model %d", drafter->vocab, m->vocab);
    } else if (!server_open(&e->s, &e->mem)) {
        int32_t verified = o->serve.spec + 1;
        e->layer.page_size = o->serve.page;
        e->layer.isa = (int32_t)attn_isa_detect();
        if (type == ATTN_INT8) e->layer.scale_kind = ATTN_SCALE_PER_KEY;
        e->max_kv_len = e->s.o.context + o->serve.spec;
        e->max_q_len = o->serve.chunk > verified ? o->serve.chunk : verified;
        e->max_rows = o->serve.chunk + (int64_t)o->serve.batch * verified;
        for (int n = 0; n < nets && !*e->error; n++) net_open(e, &e->net[n], n ? drafter : m);
    }
    memset(&e->stats, 0, sizeof e->stats);
    if (!*e->error) return e;
    memcpy(error, e->error, ERROR_BYTES);
    engine_close(e);
    return NULL;
}

#ifndef LLM_NO_MAIN

/* ---- options ----------------------------------------------------------------------------------------------------- */

static struct {
    options o;
    const char *model_file, *draft_file, *tokenizer_file, *kv, *skip;
    texts prompts;
    int32_t new_tokens, wants_gpu, printed[MAX_TEXTS]; /* printed: tokens of each text */
    float frame_ms;
    model *m, *drafter;
    tokenizer t;
    arena *mem;
    double frames, longest, progress_ms;
    char error[ERROR_BYTES];
} app = { .model_file = "models/text.lm", .kv = "f16", .new_tokens = 300 };

static const char usage[] = "llm [options]; without any, or with --cuda alone: a demonstration, where models/ is";
static const option table[] = {
    { "--model", IS_TEXT, &app.model_file, "FILE: a checkpoint, llama2.c .bin or .lm (models/text.lm)" },
    { "--tokenizer", IS_TEXT, &app.tokenizer_file, "FILE: of a llama2.c model" },
    { "--prompt", IS_LIST, &app.prompts, "TEXT: can be given several times" },
    { "--tokens", IS_INT, &app.new_tokens, "N: generate so many for each prompt (300)" },
    { "--temperature", IS_REAL, &app.o.serve.temperature, "T: 0: always the best token (0.7)" },
    { "--top-p", IS_REAL, &app.o.serve.top_p, "P: choose among the likeliest tokens that have P together (0.9)" },
    { "--seed", IS_INT, &app.o.serve.seed, "N: of the random numbers (1)" },
    { "--batch", IS_INT, &app.o.serve.batch, "N: prompts that run at the same time (4)" },
    { "--chunk", IS_INT, &app.o.serve.chunk, "N: rows of prompts in a step (256)" },
    { "--page", IS_INT, &app.o.serve.page, "N: keys of a page (16), 0: a contiguous cache" },
    { "--pages", IS_INT, &app.o.serve.pages, "N: of the cache (0: enough for all)" },
    { "--kv", IS_TEXT, &app.kv, "TYPE: of the cache: f32, f16 (the default), bf16, e4m3, e5m2 or int8" },
    { "--threads", IS_INT, &app.o.threads, "N: (1)" },
    { "--cuda", IS_FLAG, &app.wants_gpu, "attention on a GPU, a layer at a time; on the CPU if there is none" },
    { "--frame-budget-ms", IS_REAL, &app.frame_ms, "T: return to the frame when its time is up" },
    { "--spec", IS_INT, &app.o.serve.spec, "N: verify N drafts a step, looked up in the text" },
    { "--tree", IS_FLAG, &app.o.serve.tree, "drafts are several continuations" },
    { "--draft", IS_TEXT, &app.draft_file, "FILE: a small model drafts instead, of the same tokens" },
    { "--skip", IS_TEXT, &app.skip, "eps:E, factor:PREFILL,DECODE or env: leave out keys that weigh little" }
};
enum { OPTIONS = sizeof table / sizeof *table };

static int set_skip(attn_skip *skip) {
    attn_error err;
    char more;
    if (!strcmp(app.skip, "env")) return attn_skip_from_env(skip, getenv, &err) ? fail(app.error, "%s", err.text) : 0;
    if (sscanf(app.skip, "factor:%f,%f%c", &skip->prefill, &skip->decode, &more) == 2) skip->mode = ATTN_SKIP_FACTOR;
    if (sscanf(app.skip, "eps:%f%c", &skip->prefill, &more) == 1) skip->mode = ATTN_SKIP_EPS;
    if (skip->mode == ATTN_SKIP_EPS) skip->decode = skip->prefill;
    return skip->mode ? 0 : fail(app.error, "--skip %s is no setting; see --help", app.skip);
}

/* Reads files and gives the engine its options, which it checks itself. */
static int prepare(void) {
    static const char *const types[] = { "f32", "f16", "bf16", "e4m3", "e5m2", "int8" };
    enum { TYPES = sizeof types / sizeof *types };
    serve_options *serve = &app.o.serve;
    attn_error err;
    int32_t type = 0;
    while (type < TYPES && strcmp(app.kv, types[type])) type++;
    app.o.layer.kv_type = (attn_type)type;
    if (type == TYPES) return fail(app.error, "--kv %s is no type; see --help", app.kv);
    if (app.skip && set_skip(&app.o.layer.skip)) return -1;
    app.m = model_load(app.model_file, app.error);
    if (app.m && app.draft_file) app.drafter = model_load(app.draft_file, app.error);
    if (*app.error || tokenizer_load(&app.t, app.tokenizer_file, app.m->vocab, app.error)) return -1;
    if (!app.prompts.count) return fail(app.error, "a --prompt is missing; see --help");
    for (int32_t i = 0; i < app.prompts.count; i++) { /* a text has at most as many tokens as bytes, and two more */
        int64_t context = (int64_t)strlen(app.prompts.at[i]) + 2 + app.new_tokens;
        if (context > serve->context) serve->context = context < app.m->max_len ? (int32_t)context : app.m->max_len;
    }
    memcpy(serve->stop, app.t.stop, sizeof serve->stop);
    if (app.drafter && !serve->spec) serve->spec = 5;
    if (app.frame_ms > 0) app.o.layer.row_tile = 32;
    attn_layer layer = { .heads = 1, .head_dim = 8, .kv_type = (attn_type)type, .skip = app.o.layer.skip };
    if (app.wants_gpu && (attn_cuda_open(&app.o.gpu, NULL, &err) || /* and compiles now, so that no step has to wait */
                          attn_cuda_prepare(app.o.gpu, &layer, 1, -1, &err))) {
        fprintf(stderr, "llm: attention on the CPU, because: %s\n", err.text);
        attn_cuda_close(app.o.gpu);
        app.o.gpu = NULL;
    }
    return 0;
}

/* ---- texts and the report ---------------------------------------------------------------------------------------- */

/* What is new of a text, if it is the only one, else all of it when it is complete; how far a long prompt is. */
static void print_text(const engine *e, int32_t i) {
    const request *r = e->s.request[i];
    if (r->state == RUNNING && r->cached < r->prompt_len && now_ms() > app.progress_ms + 1000) {
        fprintf(stderr, "prompt %d: %d of %d tokens\n", i + 1, r->cached, r->prompt_len);
        app.progress_ms = now_ms();
    }
    if ((app.prompts.count > 1 && r->state != DONE) || app.printed[i] == r->len) return;
    if (app.prompts.count > 1) printf("---- %d\n", i + 1);
    app.printed[i] = server_print(&e->s, r, app.printed[i], &app.t, stdout);
    printf("%s", r->state == DONE ? "\n" : "");
    fflush(stdout);
}

/* What was chosen for the classes of layers, from the first two lines of the explanation of their plans. */
static void print_classes(const net *t) {
    for (int32_t c = 0; c < t->class_count; c++) {
        char text[2000];
        attn_plan_explain(&t->classes[c].plan, text, sizeof text);
        const char *layer = strchr(text, '\n') + 1;
        printf("  %.*s; layers", (int)strcspn(text, ",\n"), text);
        for (int32_t l = 0; l < t->m->layers; l++) {
            if (t->class_of[l] == &t->classes[c]) printf(" %d", l);
        }
        printf("; %.*s\n", (int)strcspn(layer, "\n"), layer);
    }
}

static void report(const engine *e) {
    const stats *s = &e->stats;
    double ms = s->ms[0] + s->ms[1], steps = 0;
    char device[2000] = "";
    for (int32_t i = 0; i < e->s.requests; i++) steps += e->s.request[i]->steps;
    if (e->gpu) attn_cuda_explain(e->gpu, device, sizeof device);
    printf("\n%s%s: %.1f MB, %d layers, attention by\n", device, app.model_file, 1e-6 * (double)app.m->bytes,
           app.m->layers);
    for (int32_t n = 0; n < e->nets; n++) print_classes(&e->net[n]);
    printf("%d prompts of %lld tokens, %lld more found in shared pages; %lld tokens generated, %.0f in a second\n",
           e->s.requests, s->prompt_tokens, s->shared_tokens, s->tokens, part(1e3 * (double)s->tokens, ms));
    printf("%lld steps with prompts, %.0f rows in a second; %lld without, %.0f rows in a second\n", s->steps[0],
           part(1e3 * (double)s->rows[0], s->ms[0]), s->steps[1], part(1e3 * (double)s->rows[1], s->ms[1]));
    printf("%.2f s, %.1f %% of it in attention, %.2f %% in planning, %.1f plans a pass\n", 1e-3 * ms,
           100 * part(s->attention_ms, ms), 100 * part(s->plan_ms, ms), part((double)s->plans, (double)s->passes));
    if (e->s.o.spec) { /* the first token of a request comes from its prompt */
        printf("speculation: %.2f tokens in a step of a request, %lld drafts verified\n",
               part((double)(s->tokens - e->s.requests), steps), s->drafts);
    }
    for (int i = 0; i < 2; i++) {
        double tiles = (double)s->counters[i].tiles;
        if (tiles <= 0) continue;
        printf("%s: %.1f %% of %.0f tiles skipped, largest certificate %.2g; %.1f %% had to run dense\n",
               i ? "decode" : "prefill", 100 * (double)s->counters[i].v_skipped / tiles, tiles, s->certificate[i],
               100 * (double)s->counters[i].dense_tiles / tiles);
    }
    if (app.frame_ms > 0) printf("%.0f frames of %g ms, longest %.1f ms\n", app.frames, app.frame_ms, app.longest);
}

/* ---- main -------------------------------------------------------------------------------------------------------- */

/* Works for a step, or as long as a frame allows, until all texts are complete. Returns a number that tells texts
   apart, 0: an error. */
static uint64_t run(int is_quiet) {
    engine *e = engine_open(&app.o, app.m, app.drafter, app.error);
    int did = STEP_COMPLETE;
    if (!e) return 0;
    for (int32_t i = 0; i < app.prompts.count && did > 0; i++) {
        int32_t *token = need(&app.mem, (int64_t)strlen(app.prompts.at[i]) + 2, sizeof *token);
        int32_t len = tokenizer_encode(&app.t, app.prompts.at[i], token);
        if (!server_submit(&e->s, token, len, app.new_tokens)) did = -1;
    }
    app.progress_ms = now_ms();
    while (did > 0) {
        double start = now_ms();
        did = engine_step(e, app.frame_ms > 0 ? start + app.frame_ms : 0);
        app.longest = fmax(app.longest, now_ms() - start); /* here a game draws its frame */
        app.frames++;
        for (int32_t i = 0; i < e->s.requests && !is_quiet; i++) print_text(e, i);
    }
    if (did < 0) fail(app.error, "%s", e->error);
    else report(e);
    uint64_t hash = did < 0 ? 0 : server_hash(&e->s);
    engine_close(e);
    return hash;
}

/* Three that begin alike, so that they share pages, and others. */
#define VILLAGE "Not far from the sea lay a village by the name of Otterford. It had thirty houses, a mill and " \
                "an inn, the Silver Goose. The innkeeper was Mara Fenwick, who was patient and often cheerful. " \
                "Everybody in Otterford knew Tobias Reed, the smith, who carried a copper whistle wherever he went.\n\n"
static const texts demo_prompts = {
    { VILLAGE "PLAYER: Good evening, Mara. Who lives in this village?\n", VILLAGE "One evening in autumn Tobias ",
      "It was a cold night, and the old king ", "PLAYER: I am looking for work.\n", VILLAGE "Dear Mara,\n" }, 5
};

/* The texts once more, with drafts: the same, in fewer steps. That is sooner where a step costs the same for one row as
   for many, since its time goes into reading weights from memory. */
static int run_again(uint64_t hash) {
    app.o.serve.spec = 8;
    app.o.serve.tree = 1;
    printf("\nthe same texts, with speculation: fewer steps, with more rows each\n");
    int is_same = run(1) == hash;
    printf("same texts: %s\n", is_same ? "yes" : "NO");
    return is_same ? 0 : fail(app.error, "speculation has changed a text");
}

int main(int argc, char **argv) {
    int is_demo = argc == 1 || (argc == 2 && !strcmp(argv[1], "--cuda"));
    app.o = default_options();
    app.o.serve.temperature = 0.7f;
    if (is_demo) app.prompts = demo_prompts;
    uint64_t hash = parse_options(usage, table, OPTIONS, argc, argv, app.error) || prepare() ? 0 : run(0);
    int failed = !hash || (is_demo && run_again(hash));
    if (failed) fprintf(stderr, "%s\n", app.error);
    attn_cuda_close(app.o.gpu);
    tokenizer_close(&app.t);
    model_close(app.m);
    model_close(app.drafter);
    release(app.mem);
    return failed;
}

#endif
