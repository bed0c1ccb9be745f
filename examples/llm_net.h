/* llm_net.h - rows through a model: threads, the engine's state, attention, arithmetic. All calls of attn.h and of
   attn_cuda.h that plan, store keys or attend stand here, in one section. Used by llm_engine.h. */
#ifndef LLM_NET_H
#define LLM_NET_H

#include "llm_model.h"

#include "attn_cuda.h"

#ifndef _WIN32
#include <pthread.h>
#else /* one thread, which waits for nobody */
typedef int pthread_t, pthread_mutex_t, pthread_cond_t;
#define pthread_create(thread, attributes, function, argument) ((void)(function), -1)
#define pthread_join(thread, result) ((void)(thread))
#define pthread_mutex_init(mutex, attributes) ((void)(mutex))
#define pthread_mutex_lock(mutex) ((void)(mutex))
#define pthread_mutex_unlock(mutex) ((void)(mutex))
#define pthread_mutex_destroy(mutex) ((void)(mutex))
#define pthread_cond_init(cond, attributes) ((void)(cond))
#define pthread_cond_wait(cond, mutex) ((void)(cond))
#define pthread_cond_broadcast(cond) ((void)(cond))
#define pthread_cond_destroy(cond) ((void)(cond))
#endif

/* ---- threads: tasks of one job, pulled by all lanes until none is left or the time is up ------------------------- */

enum { MAX_THREADS = 256 };

typedef struct job {
    void (*fn)(void *context, int32_t index, int32_t lane);
    void *context;
    int32_t next, count;
    double cost; /* multiply-adds, roughly */
} job;

typedef struct pool {
    int32_t lanes;   /* this thread is lane 0 */
    double deadline; /* in ms as now_ms; 0: none */
    job *work;       /* NULL: nothing for other threads */
    int32_t busy, started, quit;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    pthread_t thread[MAX_THREADS];
} pool;

static int is_late(const pool *p) {
    return p->deadline > 0 && now_ms() >= p->deadline;
}

/* With the mutex held, and a task left. */
static void pull_tasks(pool *p, job *j, int32_t lane) {
    p->busy++;
    do {
        int32_t index = j->next++;
        pthread_mutex_unlock(&p->mutex);
        j->fn(j->context, index, lane);
        pthread_mutex_lock(&p->mutex);
    } while (j->next < j->count && !is_late(p));
    if (--p->busy == 0) pthread_cond_broadcast(&p->changed);
}

static void *serve_pool(void *argument) {
    pool *p = argument;
    pthread_mutex_lock(&p->mutex);
    for (int32_t lane = ++p->started; !p->quit;) {
        if (p->work && p->work->next < p->work->count && !is_late(p)) pull_tasks(p, p->work, lane);
        else pthread_cond_wait(&p->changed, &p->mutex);
    }
    pthread_mutex_unlock(&p->mutex);
    return NULL;
}

static void pool_open(pool *p, int32_t threads) {
    pthread_mutex_init(&p->mutex, NULL);
    pthread_cond_init(&p->changed, NULL);
    p->lanes = 1;
    while (p->lanes < threads && !pthread_create(&p->thread[p->lanes], NULL, serve_pool, p)) p->lanes++;
}

static void pool_close(pool *p) {
    pthread_mutex_lock(&p->mutex);
    p->quit = 1;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->mutex);
    for (int32_t i = 1; i < p->lanes; i++) pthread_join(p->thread[i], NULL);
    pthread_mutex_destroy(&p->mutex);
    pthread_cond_destroy(&p->changed);
}

/* Runs tasks, at least one if any is left; returns 1 when all are done, 0 when the time is up before. */
static int run_job(pool *p, job *j) {
    pthread_mutex_lock(&p->mutex);
    p->work = j->cost > 2e5 ? j : NULL; /* worth waking a thread */
    if (p->work && p->lanes > 1) pthread_cond_broadcast(&p->changed);
    if (j->next < j->count) pull_tasks(p, j, 0);
    while (p->busy > 0) pthread_cond_wait(&p->changed, &p->mutex);
    p->work = NULL;
    pthread_mutex_unlock(&p->mutex);
    return j->next == j->count;
}

/* ---- the engine's state ------------------------------------------------------------------------------------------ */

enum { MAX_NODES = 32 }; /* rows of a request that speculates: they fit into one word of tree bits */

typedef struct options {
    int32_t batch, threads;      /* requests that run at the same time */
    int32_t chunk;               /* rows of prompts in a step */
    int32_t page, pages;         /* keys of a page, 0: a contiguous cache, which shares nothing; pages 0: enough */
    int32_t context;             /* tokens of the longest request; 0: the model's */
    int32_t spec, tree;          /* drafts verified in a step, below MAX_NODES; 1: as a tree */
    int32_t row_tile;            /* 0: attn.h's; 32 makes smaller tasks, for frames */
    attn_type kv;                /* ATTN_INT8: with a scale for each key */
    attn_skip skip;
    float lambda;                /* of ATTN_SKIP_LAMBDA */
    float temperature, top_p;
    int32_t seed, stop[2];       /* stop: tokens that end a text, -1: none */
    attn_cuda *gpu;              /* where attention works, see engine_device; NULL: on the CPU */
} options;

/* Its tokens: the prompt, what was generated (up to len), then guesses of what comes next; `hints` of them are good. */
typedef struct request {
    uint64_t key;                /* with the seed: the random numbers it draws; its number unless set otherwise */
    int32_t *token, len, prompt_len, max_len;
    const int32_t *forced;       /* the caller's: its first tokens after the prompt, instead of sampled ones */
    int32_t forced_len, all_logits; /* all_logits: on_logits gets those of the prompt, too */
    enum { WAITING, RUNNING, DONE } state;
    int32_t slot, pages, kept;   /* kept: its first pages that others may share */
    int32_t cached, drafted;     /* tokens in the cache of the model, of the draft model */
    int32_t complete, hints, rows, outs, first_out; /* rows of this step, drafts apart; `outs` of them get logits */
    int32_t nodes, node[MAX_NODES], depth[MAX_NODES]; /* drafts; node 0 is the latest token */
    uint32_t bits[MAX_NODES];    /* the nodes that a node sees: those it descends from, and itself */
    int32_t second[MAX_NODES];   /* of the draft model: the next best token at each depth */
    int32_t shared, sent_back, steps; /* tokens found in shared pages; steps after the prompt */
    arena *mem;
} request;

/* A page of the cache in all layers. A kept one holds a piece of a prompt, parent (-1: none) the piece before. */
typedef struct page {
    int32_t users, kept, parent;
    int64_t used;                /* when a kept page had its last user; 0: it holds nothing */
} page;

/* Layers with the same window: one plan a step for all of them. */
typedef struct layer_class {
    attn_layer layer;
    attn_plan plan;
    void *plan_mem;
    size_t plan_bytes;
    int32_t slots, columns;      /* of a request in a cache without pages; of a ring's page table: */
    int32_t *table, *table_there;
} layer_class;

/* Rows of floats that a pass works on. */
enum { RESIDUAL, NORMED, QUERY, KEY, VALUE, ATTENDED, HIDDEN, LOGITS, CERTIFICATE, BUFFERS };

/* A model with its caches, and the rows that are on their way through it. `there`: where attention works. It is the
   host's own array, or on a device the copy of it. Caches, and memory of plans and exec, are only there. */
typedef struct net {
    const model *m;
    layer_class *classes;
    int32_t class_count, *class_of;              /* [layer] */
    attn_io *io;                                 /* [layer], all of it there */
    attn_exec exec;
    attn_meta meta;
    void *meta_mem;
    size_t meta_bytes;
    attn_counters *counters;                     /* [lane] */
    float *buffer[BUFFERS], *buffer_there[BUFFERS]; /* there: QUERY .. ATTENDED and CERTIFICATE */
    float *lambda, *weights;                     /* weights [lane][OUTPUTS][weights_cols] */
    int32_t width[BUFFERS], weights_cols, has_avx2, rows, outs, stage_rows, is_tree, tree_words;
    int32_t *token, *shift, *position, *out_row; /* [row]; shift: a node's depth less its number */
    uint32_t *tree;
    int32_t *q_len, *kv_len, *phase, *seq_lens, *batch; /* [slot]; batch: [3][slot] */
    int32_t *position_there, *batch_there;
    struct device_block *on_device;
    int32_t layer, stage;
    job job;
} net;

typedef struct candidate {
    float p;
    int32_t token;
} candidate;

/* [0]: steps with rows of prompts, [1]: without */
typedef struct stats {
    int64_t steps[2], rows[2], passes, plans, prompt_tokens, shared_tokens, tokens, drafts, sent_back;
    double ms[2], attention_ms, plan_ms;
    attn_counters counters[2];
    float certificate[2];        /* the largest of each phase */
} stats;

typedef struct engine {
    options o;
    attn_mode_input most;        /* what no step exceeds: memory is sized by it */
    net net[2];                  /* the model, and the draft model if there is one */
    int32_t nets;
    pool pool;
    request **request, **slot;   /* all in their order; [batch] those that run */
    int32_t requests;
    uint64_t submitted;
    page *page;
    int32_t *page_token, free_pages; /* [pages][page]; free: without a user */
    int32_t *table, columns;     /* [slot][columns] */
    int64_t clock;
    int32_t pass, kind;          /* of this step: see fill_pass, stats; pass -1: no step has begun */
    candidate *candidate;
    stats stats;
    void *user;
    /* Hooks, or NULL. Logits: of each row that stays, in order, once (with all_logits and sent back: again). Attention:
       that of layer t->layer is complete; its caches are in t->io[t->layer], of a device if options.gpu is set. */
    void (*on_logits)(void *user, const request *r, int32_t position, const float *logits);
    void (*on_attention)(void *user, struct engine *e, const net *t);
    char error[ERROR_BYTES];
    arena *mem;
} engine;

/* ---- attention: all that the program knows of plans, caches and masks -------------------------------------------- */

/* A device for options.gpu, with its kernels compiled; NULL and a sentence if attention has to stay on the CPU. The
   caller closes it, attn_cuda_close, after the engines that use it. */
attn_cuda *engine_device(const options *o, char *error) {
    attn_layer layer = { .heads = 1, .head_dim = 8, .kv_type = o->kv, .skip = o->skip };
    attn_cuda *gpu = NULL;
    attn_error err;
    *error = 0;
    if (o->kv == ATTN_INT8) layer.scale_kind = ATTN_SCALE_PER_KEY;
    if (!attn_cuda_open(&gpu, NULL, &err) && !attn_cuda_prepare(gpu, &layer, 1, -1, &err)) return gpu;
    fail(error, "%s", err.text);
    attn_cuda_close(gpu);
    return NULL;
}

/* Memory of the device, freed with the engine. `here`: what is copied to it before each pass, or NULL. */
typedef struct device_block {
    struct device_block *next;
    void *there, *here;
    size_t bytes;
} device_block;

/* Memory where attention works, on the CPU `here` if that is set; NULL and e->error if a device has not so much. */
static void *need_there(engine *e, net *t, void *here, int64_t count, size_t size) {
    attn_error err;
    if (!e->o.gpu) return here ? here : need(&e->mem, count, size);
    device_block *b = need(&e->mem, 1, sizeof *b);
    b->bytes = (uint64_t)count < SIZE_MAX / 2 / (size + 1) ? (size_t)count * size : SIZE_MAX / 2;
    b->there = attn_cuda_alloc(e->o.gpu, b->bytes + 1, &err); /* none may be empty */
    b->here = here;
    b->next = t->on_device;
    t->on_device = b;
    if (!b->there) fail(e->error, "%lld * %zu bytes: %s", (long long)count, size, err.text);
    return b->there;
}

/* The class of layers with a window, which is made if there is none yet. */
static int32_t class_of_window(engine *e, net *t, int32_t window) {
    int32_t n = 0, unit = e->o.page ? e->o.page : 1;
    while (n < t->class_count && t->classes[n].layer.window_left != window) n++;
    if (n < t->class_count) return n;
    layer_class *c = &t->classes[t->class_count++];
    c->layer = (attn_layer){ .heads = t->m->heads, .kv_heads = t->m->kv_heads, .head_dim = t->m->head_dim,
                             .kv_type = e->o.kv, .page_size = e->o.page, .window_left = window,
                             .row_tile = e->o.row_tile, .skip = e->o.skip, .isa = (int32_t)attn_isa_detect() };
    if (e->o.gpu) attn_cuda_geometry(e->o.gpu, &c->layer, NULL);
    if (e->o.kv == ATTN_INT8) c->layer.scale_kind = ATTN_SCALE_PER_KEY;
    /* A ring holds the rows of a step and what the first one sees, in whole pages wherever they begin. */
    if (window) c->layer.ring = (window + e->most.max_q_len + 2 * unit - 3) / unit * unit;
    c->slots = window ? c->layer.ring : e->most.max_kv_len;
    c->columns = e->o.page ? c->layer.ring / unit : 0;
    int64_t entries = (int64_t)e->o.batch * c->columns;
    if (entries) c->table = need(&e->mem, entries, sizeof *c->table);
    if (entries) c->table_there = need_there(e, t, c->table, entries, sizeof *c->table);
    return n;
}

/* Where a layer's keys and values are, beside what all layers have in common. */
static void open_cache(engine *e, net *t, const layer_class *c, attn_io *io) {
    static const size_t bytes[] = { 4, 2, 2, 1, 1, 1 };
    int64_t keys = e->o.page ? (int64_t)e->o.pages * e->o.page : (int64_t)e->o.batch * c->slots;
    int64_t width = t->width[KEY];
    io->k = need_there(e, t, NULL, keys * width, bytes[e->o.kv]);
    io->v = need_there(e, t, NULL, keys * width, bytes[e->o.kv]);
    if (e->o.kv == ATTN_INT8) io->k_scale = need_there(e, t, NULL, keys * t->m->kv_heads, sizeof *io->k_scale);
    if (e->o.kv == ATTN_INT8) io->v_scale = need_there(e, t, NULL, keys * t->m->kv_heads, sizeof *io->v_scale);
    if (!e->o.page) io->k_page = io->v_page = c->slots * width;
    if (c->table) io->page_table = c->table_there;
    if (c->table) io->page_table_row = c->columns;
}

/* Memory that grows to `want` bytes; what it held is lost. */
static void grow_memory(engine *e, net *t, void **mem, size_t *have, size_t want) {
    if (want > *have) *mem = need_there(e, t, NULL, 1, *have = want);
}

/* The columns of a ring are the latest pages of the request: windowed layers use the pages that all layers have, and so
   may share them. */
static void point_ring(const engine *e, const net *t, layer_class *c) {
    for (int32_t i = 0; i < e->o.batch && c->table; i++) {
        int32_t last = (t->kv_len[i] - 1) / e->o.page;
        for (int32_t p = last < c->columns ? 0 : last - c->columns + 1; p <= last; p++) {
            c->table[(int64_t)i * c->columns + p % c->columns] = e->table[(int64_t)i * e->columns + p];
        }
    }
}

static int plan_class(engine *e, net *t, layer_class *c, const attn_batch *batch, attn_error *err) {
    attn_cuda *gpu = e->o.gpu;
    c->layer.mask = t->is_tree ? ATTN_TREE : ATTN_CAUSAL;
    grow_memory(e, t, &c->plan_mem, &c->plan_bytes, attn_plan_bytes(batch, &c->layer));
    int failed = gpu ? attn_cuda_plan_make(gpu, &c->plan, batch, &c->layer, c->plan_mem, c->plan_bytes, NULL, err)
                     : attn_plan_make(&c->plan, batch, &c->layer, c->plan_mem, c->plan_bytes, err);
    if (failed) return failed;
    grow_memory(e, t, &t->exec.mem, &t->exec.bytes,
                gpu ? attn_cuda_exec_bytes(gpu, &c->plan) : attn_exec_bytes(&c->plan, t->exec.lanes));
    e->stats.plans++;
    return 0;
}

/* Metadata, and one plan for each class, from the lengths of the pass. */
static int attention_plan(engine *e, net *t, attn_mode mode, int32_t draft_step) {
    const int32_t want = ATTN_META_POSITIONS;
    double start = now_ms();
    attn_mode_input lengths = e->most;
    attn_batch batch;
    attn_error err;
    for (int32_t i = 0; i < e->o.batch; i++) { /* what this mode's seq_lens does not count */
        int32_t later = mode == ATTN_MODE_TARGET_VERIFY ? t->q_len[i] : 0;
        if (mode == ATTN_MODE_DRAFT_DECODE) later = draft_step + 1;
        t->seq_lens[i] = t->q_len[i] ? t->kv_len[i] - later : -1;
        if (t->q_len[i]) lengths.draft_tokens = t->q_len[i];
    }
    lengths.seq_lens = t->seq_lens;
    lengths.extend_lens = t->q_len;
    lengths.phase = t->phase;
    lengths.draft_step = draft_step;
    int failed = attn_batch_from_mode(&batch, mode, &lengths, t->batch, 3 * (size_t)e->o.batch, &err);
    if (!failed && !t->meta_mem) t->meta_mem = need(&e->mem, 1, t->meta_bytes = attn_meta_bytes(&batch, NULL, want));
    failed = failed || attn_meta_make(&t->meta, &batch, NULL, want, t->meta_mem, t->meta_bytes, &err);
    for (int32_t r = 0; r < t->rows && !failed; r++) t->position[r] = t->meta.positions[r] + t->shift[r];
    for (int32_t n = 0; n < t->class_count && !failed; n++) point_ring(e, t, &t->classes[n]);
    for (const device_block *b = t->on_device; b && !failed; b = b->next) {
        failed = b->here && b->bytes && attn_cuda_write(e->o.gpu, b->there, b->here, b->bytes, &err);
    }
    batch.q_len = t->batch_there;
    batch.kv_len = t->batch_there + e->o.batch;
    batch.phase = t->batch_there + 2 * (int64_t)e->o.batch;
    for (int32_t n = 0; n < t->class_count && !failed; n++) failed = plan_class(e, t, &t->classes[n], &batch, &err);
    e->stats.plan_ms += now_ms() - start;
    return failed ? fail(e->error, "plan: %s", err.text) : 0;
}

/* Classes, caches, and plans of nothing, which shows whether the layers can work and how much memory they need. */
static int attention_open(engine *e, net *t) {
    const model *m = t->m;
    int64_t slots = e->o.batch, rows = e->most.max_rows;
    for (int i = QUERY; i < BUFFERS; i++) {
        if (i == HIDDEN || i == LOGITS) continue;
        t->buffer_there[i] = e->o.gpu ? need_there(e, t, NULL, rows * t->width[i], sizeof(float)) : t->buffer[i];
    }
    t->batch_there = need_there(e, t, t->batch, 3 * slots, sizeof *t->batch);
    t->position_there = need_there(e, t, t->position, rows, sizeof *t->position);
    attn_io io = { .q = t->buffer_there[QUERY], .o = t->buffer_there[ATTENDED],
                   .certificate = t->buffer_there[CERTIFICATE], .page_table_row = e->columns, .pages = e->o.pages };
    io.page_table = need_there(e, t, e->table, slots * e->columns, sizeof *e->table);
    io.tree = need_there(e, t, t->tree, rows * t->tree_words, sizeof *t->tree);
    io.counters = need_there(e, t, t->counters, 1, sizeof *t->counters);
    if (e->o.skip.mode == ATTN_SKIP_LAMBDA) io.lambda = need_there(e, t, t->lambda, slots, sizeof *t->lambda);
    t->classes = need(&e->mem, m->layers, sizeof *t->classes);
    t->class_of = need(&e->mem, m->layers, sizeof *t->class_of);
    t->io = need(&e->mem, m->layers, sizeof *t->io);
    for (int32_t l = 0; l < m->layers; l++) { /* a ring has bounds */
        t->class_of[l] = class_of_window(e, t, least(m->of_layer[l].window, e->most.max_kv_len));
        t->io[l] = io;
        open_cache(e, t, &t->classes[t->class_of[l]], &t->io[l]);
    }
    return *e->error ? -1 : attention_plan(e, t, ATTN_MODE_IDLE, 0);
}

static void attention_close(engine *e, const net *t) {
    for (const device_block *b = t->on_device; b; b = b->next) attn_cuda_free(e->o.gpu, b->there);
}

static const layer_class *class_at(const net *t) {
    return &t->classes[t->class_of[t->layer]];
}

static size_t bytes_of_rows(const net *t, int32_t buffer) {
    return (size_t)t->rows * (size_t)t->width[buffer] * sizeof(float);
}

/* On the device: all of it at once, and waits for it. */
static int attend_on_device(engine *e, net *t, const attn_rope_input *q, const attn_rope_input *k, attn_error *err) {
    attn_cuda *gpu = e->o.gpu;
    const layer_class *c = class_at(t);
    const attn_io *io = &t->io[t->layer];
    for (int i = QUERY; i <= VALUE; i++) {
        if (attn_cuda_write(gpu, t->buffer_there[i], t->buffer[i], bytes_of_rows(t, i), err)) return -1;
    }
    if ((q->rotary_dim && (attn_cuda_rope(gpu, q, &t->exec, err) || attn_cuda_rope(gpu, k, &t->exec, err))) ||
        attn_cuda_append(gpu, &c->plan, &c->layer, io, k->x, t->buffer_there[VALUE], &t->exec, err) ||
        attn_cuda_forward(gpu, &c->plan, &c->layer, io, &t->exec, err) ||
        attn_cuda_error(gpu, &c->plan, &t->exec, err) ||
        attn_cuda_read(gpu, t->buffer[ATTENDED], io->o, bytes_of_rows(t, ATTENDED), err)) return -1;
    if (!e->o.skip.mode) return 0;
    return attn_cuda_read(gpu, t->counters, io->counters, sizeof *t->counters, err) ||
           attn_cuda_read(gpu, t->buffer[CERTIFICATE], io->certificate, bytes_of_rows(t, CERTIFICATE), err);
}

/* On the CPU: turns q and k, stores k and v, and checks everything; the tasks come after. */
static int prepare_tasks(net *t, const attn_rope_input *q, const attn_rope_input *k, attn_error *err) {
    const layer_class *c = class_at(t);
    const attn_io *io = &t->io[t->layer];
    return (q->rotary_dim && (attn_rope(q, err) || attn_rope(k, err))) ||
           attn_append(&c->plan, &c->layer, io, k->x, t->buffer_there[VALUE], err) ||
           attn_check(&c->plan, &c->layer, io, &t->exec, err);
}

static int attention_begin(engine *e, net *t) {
    attn_rope_input q = { .x = t->buffer_there[QUERY], .rows = t->rows, .heads = t->m->heads,
                          .head_dim = t->m->head_dim, .rotary_dim = t->m->of_layer[t->layer].rotary, .interleaved = 1,
                          .positions = t->position_there, .base = t->m->rope_theta };
    attn_rope_input k = q;
    attn_error err;
    k.x = t->buffer_there[KEY];
    k.heads = t->m->kv_heads;
    int failed = e->o.gpu ? attend_on_device(e, t, &q, &k, &err) : prepare_tasks(t, &q, &k, &err);
    return failed ? fail(e->error, "layer %d: %s", (int)t->layer, err.text) : 0;
}

static void attention_task(void *context, int32_t index, int32_t lane) {
    const net *t = context;
    attn_task(&class_at(t)->plan, &t->io[t->layer], &t->exec, (attn_stage)t->stage, index, lane);
}

/* What attention_begin has left to do. */
static job attention_job(const engine *e, net *t) {
    const attn_plan *plan = &class_at(t)->plan;
    double cost = t->stage == ATTN_COMPUTE ? 2.0 * t->m->head_dim * (double)plan->work : 0;
    return (job){ attention_task, t, 0, e->o.gpu ? 0 : attn_task_count(plan, (attn_stage)t->stage), cost };
}

/* What skipping may have cost. */
static void attention_end(engine *e, net *t) {
    const float *certificate = t->buffer[CERTIFICATE];
    if (e->on_attention) e->on_attention(e->user, e, t);
    for (int32_t r = 0; r < t->rows && e->o.skip.mode; r++) {
        float *largest = &e->stats.certificate[t->phase[t->meta.row_request[r]]];
        for (int32_t h = 0; h < t->m->heads; h++) *largest = fmaxf(*largest, *certificate++);
    }
}

/* ---- arithmetic: a row's result never depends on the rows beside it ---------------------------------------------- */

#if defined(__GNUC__) && defined(__x86_64__) /* clang, too */
#define INLINED inline __attribute__((always_inline))
#define WITH_AVX2 __attribute__((target("avx2,fma")))
#else
#define INLINED inline
#define WITH_AVX2
#endif

/* Fixed counts in inner loops: then compilers use vectors without being asked for more than -O2. */
static INLINED float dot(const float *a, const float *b, int32_t n) {
    float sum[16] = { 0 };
    int32_t i = 0;
    for (; i + 16 <= n; i += 16) {
        for (int32_t j = 0; j < 16; j++) sum[j] += a[i + j] * b[i + j];
    }
    for (; i < n; i++) sum[i % 16] += a[i] * b[i];
    for (int32_t width = 8; width > 0; width /= 2) {
        for (int32_t j = 0; j < width; j++) sum[j] += sum[j + width];
    }
    return sum[0];
}

static float dot_plain(const float *a, const float *b, int32_t n) {
    return dot(a, b, n);
}

WITH_AVX2 static float dot_avx2(const float *a, const float *b, int32_t n) {
    return dot(a, b, n);
}

static void widen_int8(const int8_t *restrict from, float scale, float *restrict y, int32_t n) {
    int32_t i = 0;
    for (; i + 16 <= n; i += 16) {
        for (int32_t j = 0; j < 16; j++) y[i + j] = scale * (float)from[i + j];
    }
    for (; i < n; i++) y[i] = scale * (float)from[i];
}

/* A row as f32, in `buffer` unless the matrix has it so. */
static const float *matrix_row(const matrix *m, int32_t row, float *buffer) {
    int64_t at = (int64_t)row * m->cols;
    if (!m->scale) return (const float *)m->data + at;
    widen_int8((const int8_t *)m->data + at, m->scale[row], buffer, m->cols);
    return buffer;
}

/* y = x / rms(x) * weight */
static void normalise(const float *x, const matrix *weight, float eps, float *y) {
    const float *w = weight->data;
    int32_t n = weight->cols;
    double sum = 0;
    for (int32_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    float scale = (float)(1 / sqrt(sum / n + (double)eps));
    for (int32_t i = 0; i < n; i++) y[i] = x[i] * scale * w[i];
}

/* ---- a pass: rows through all layers, as jobs that can stop between any two tasks -------------------------------- */

enum { OUTPUTS = 16 };     /* of a matrix product: one task */
enum { SET, ADD, GATE };   /* y = wx, y = y + wx, y = silu(y) * wx */
enum { ATTEND = ATTN_COMPUTE, MERGE = ATTN_MERGE, MAKE_Q, MAKE_K, MAKE_V, MAKE_O, MAKE_W1, MAKE_W3, MAKE_W2, CLASSIFY };

/* x += wo attention(rope(wq n), rope(wk n), wv n); x += w2 (silu(w1 n) * w3 n); logits = classifier n; n = norm(x) */
static const struct {
    int32_t next, norm, weights, from, to, use; /* norm -1: none */
} stages[] = {
    [MAKE_Q] = { MAKE_K, NORM_ATT, WQ, NORMED, QUERY, SET },
    [MAKE_K] = { MAKE_V, -1, WK, NORMED, KEY, SET },
    [MAKE_V] = { ATTEND, -1, WV, NORMED, VALUE, SET },
    [ATTEND] = { MERGE, -1, 0, 0, 0, 0 },
    [MERGE] = { MAKE_O, -1, 0, 0, 0, 0 },
    [MAKE_O] = { MAKE_W1, -1, WO, ATTENDED, RESIDUAL, ADD },
    [MAKE_W1] = { MAKE_W3, NORM_FFN, W1, NORMED, HIDDEN, SET },
    [MAKE_W3] = { MAKE_W2, -1, W3, NORMED, HIDDEN, GATE },
    [MAKE_W2] = { MAKE_Q, -1, W2, HIDDEN, RESIDUAL, ADD },
    [CLASSIFY] = { 0, NORM_FINAL, CLASSIFIER, NORMED, LOGITS, SET }
};

static const matrix *part_of(const model *m, int32_t layer, int32_t part) {
    return part < PARTS ? &m->of_layer[layer].part[part] : &m->part[part];
}

/* Some outputs for all rows. */
static void product_task(void *context, int32_t index, int32_t lane) {
    const net *t = context;
    const matrix *w = part_of(t->m, t->layer, stages[t->stage].weights);
    int32_t first = index * OUTPUTS, count = least(OUTPUTS, w->rows - first), use = stages[t->stage].use;
    float (*dot_of)(const float *, const float *, int32_t) = t->has_avx2 ? dot_avx2 : dot_plain;
    const float *row[OUTPUTS];
    for (int32_t c = 0; c < count; c++) {
        row[c] = matrix_row(w, first + c, t->weights + ((int64_t)lane * OUTPUTS + c) * t->weights_cols);
    }
    for (int64_t r = 0; r < t->stage_rows; r++) {
        const float *x = t->buffer[stages[t->stage].from] + r * w->cols;
        float *y = t->buffer[stages[t->stage].to] + r * w->rows + first;
        for (int32_t c = 0; c < count; c++) {
            float sum = dot_of(row[c], x, w->cols);
            y[c] = use == SET ? sum : use == ADD ? y[c] + sum : y[c] / (1 + expf(-y[c])) * sum;
        }
    }
}

static int start_stage(engine *e, net *t) {
    const matrix *norm = stages[t->stage].norm < 0 ? NULL : part_of(t->m, t->layer, stages[t->stage].norm);
    t->stage_rows = t->stage == CLASSIFY ? t->outs : t->rows;
    for (int64_t r = 0; r < t->stage_rows && norm; r++) {
        int64_t from = t->stage == CLASSIFY ? t->out_row[r] : r;
        normalise(t->buffer[RESIDUAL] + from * norm->cols, norm, t->m->norm_eps, t->buffer[NORMED] + r * norm->cols);
    }
    if (t->stage == ATTEND && attention_begin(e, t)) return -1;
    if (t->stage == MAKE_O) attention_end(e, t);
    if (t->stage == ATTEND || t->stage == MERGE) {
        t->job = attention_job(e, t);
    } else {
        const matrix *w = part_of(t->m, t->layer, stages[t->stage].weights);
        double cost = (double)t->stage_rows * w->rows * w->cols;
        t->job = (job){ product_task, t, 0, (w->rows + OUTPUTS - 1) / OUTPUTS, cost };
    }
    return 0;
}

/* Goes on with a pass. 1: it is complete, 0: the time is up, -1: an error. */
static int run_pass(engine *e, net *t) {
    while (t->rows) {
        double start = now_ms();
        int attends = t->stage == ATTEND || t->stage == MERGE, done = run_job(&e->pool, &t->job);
        if (attends) e->stats.attention_ms += now_ms() - start;
        if (!done || t->stage == CLASSIFY) return done;
        t->stage = t->stage == MAKE_O && !t->m->hidden ? MAKE_Q : stages[t->stage].next;
        if (t->stage == MAKE_Q && ++t->layer == t->m->layers) t->stage = CLASSIFY;
        start = now_ms();
        if (start_stage(e, t)) return -1;
        if (t->stage == ATTEND) e->stats.attention_ms += now_ms() - start; /* RoPE and append; on a device all of it */
        if (is_late(&e->pool)) return 0;
    }
    return 1;
}

static int net_open(engine *e, net *t, const model *m) {
    int32_t q = m->heads * m->head_dim, kv = m->kv_heads * m->head_dim, slots = e->o.batch;
    const int32_t width[] = { m->dim, m->dim, q, kv, kv, q, m->hidden, m->vocab, m->heads };
    int32_t **per_slot[] = { &t->q_len, &t->kv_len, &t->phase, &t->seq_lens };
    int32_t **per_row[] = { &t->token, &t->shift, &t->position, &t->out_row };
    int64_t rows = e->most.max_rows;
    t->m = m;
    for (int i = 0; i < 4; i++) *per_slot[i] = need(&e->mem, slots, sizeof(int32_t));
    for (int i = 0; i < 4; i++) *per_row[i] = need(&e->mem, rows, sizeof(int32_t));
    memcpy(t->width, width, sizeof width);
    for (int i = 0; i < BUFFERS; i++) t->buffer[i] = need(&e->mem, rows * width[i], sizeof(float));
    for (int i = 0; i <= HIDDEN; i++) t->weights_cols = width[i] > t->weights_cols ? width[i] : t->weights_cols;
    t->batch = need(&e->mem, 3 * (int64_t)slots, sizeof(int32_t));
    t->tree_words = e->o.tree ? (e->most.max_q_len + 31) / 32 : 0;
    t->tree = need(&e->mem, rows * t->tree_words, sizeof *t->tree);
    t->weights = need(&e->mem, (int64_t)e->pool.lanes * OUTPUTS * t->weights_cols, sizeof(float));
    t->lambda = need(&e->mem, slots, sizeof *t->lambda);
    for (int32_t i = 0; i < slots; i++) t->lambda[i] = e->o.lambda;
    t->counters = need(&e->mem, e->pool.lanes, sizeof *t->counters);
    t->exec.lanes = e->pool.lanes;
    t->has_avx2 = attn_isa_detect() >= ATTN_ISA_AVX2;
    return attention_open(e, t);
}

#endif
