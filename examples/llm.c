/* llm.c - a complete small inference program: text from a language model, all of its attention through attn.h.

   Build   cc -O2 -I. examples/llm.c -o llm -lm -lpthread
   Use     llm                    continues a few texts with models/text.lm;  llm --help: the options
           llm --model stories15M.bin --tokenizer tokenizer.bin --prompt "Once upon a time"
   Result  text and a report; exit status 0, or 1 and a sentence on what is wrong.
   Order   files, tokens, threads and arithmetic; the engine's state; attention, the one place where plans, caches and
           masks are made and used; rows through a model; pages, requests, drafts and steps; options, report, main.
           With LLM_NO_MAIN defined it ends before the options: an engine for programs that include this file.

   A request is a prompt that gets continued. engine_submit queues it, engine_step works on all of them: requests join
   and leave, prompts come in chunks beside others that decode, beginnings that are equal share pages, which stay for
   later requests, and when pages run out the youngest request waits again.

   One promise runs through all of it: the text and the logits of a request are the same bits whatever happens around
   it. Rows of a prompt are computed in phase PREFILL, all others in phase DECODE. attn.h makes a row's bits follow from
   its own tokens and the phase, and here every output of a matrix is one call of dot() on one row. So neither
   batches, chunks, shared pages, threads, frames nor speculation show in a text. (While skipping they may: the rows of
   a tile decide together what is left out.) */
#if !defined _POSIX_C_SOURCE && !defined _WIN32
#define _POSIX_C_SOURCE 200809L
#endif

#define ATTN_IMPLEMENTATION
#include "attn.h"

#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

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

/* ---- time, errors, memory ---------------------------------------------------------------------------------------- */

enum { ERROR_BYTES = 400 };

static double now_ms(void) {
#ifdef _WIN32
    return 1e3 * (double)clock() / CLOCKS_PER_SEC; /* wall time there */
#else
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
#endif
}

static int32_t least(int32_t a, int32_t b) {
    return a < b ? a : b;
}

/* Keeps the first error; returns -1. */
static int fail(char *error, const char *format, ...) {
    va_list list;
    va_start(list, format);
    if (!*error) vsnprintf(error, ERROR_BYTES, format, list);
    va_end(list);
    return -1;
}

/* Memory that goes back all at once. */
typedef union arena {
    union arena *next;
    double align[2]; /* 16 bytes, so that what follows is aligned as the block is */
} arena;

/* count * size zero bytes. */
static void *need(arena **owner, int64_t count, size_t size) {
    arena *a = (uint64_t)count < SIZE_MAX / 2 / (size + 1) ? calloc(1, sizeof *a + (size_t)count * size) : NULL;
    if (!a) {
        fprintf(stderr, "out of memory: %lld * %zu bytes\n", (long long)count, size);
        exit(1);
    }
    a->next = *owner;
    *owner = a;
    return a + 1;
}

static void release(arena *a) {
    while (a) {
        arena *next = a->next;
        free(a);
        a = next;
    }
}

/* ---- checkpoints: llama2.c's, and the .lm of models/README.md --------------------------------------------------- */

/* [rows][cols] */
typedef struct matrix {
    const void *data;   /* int8 if there are scales, else f32 */
    const float *scale; /* of each row */
    int32_t rows, cols;
} matrix;

/* Of a layer, in the order of both formats; then of the whole model. */
enum { NORM_ATT, WQ, WK, WV, WO, NORM_FFN, W1, W2, W3, PARTS, EMBEDDING = PARTS, NORM_FINAL, CLASSIFIER, ALL_PARTS };
static const char *const part_names[] = { "norm_att", "wq", "wk", "wv", "wo", "norm_ffn", "w1", "w2", "w3",
                                          "embedding", "norm_final", "classifier" };

typedef struct layer_weights {
    int32_t window; /* keys that a row sees, itself included; 0: all */
    int32_t rotary; /* the first elements of a head, which turn */
    matrix part[PARTS];
} layer_weights;

typedef struct model {
    int32_t dim, hidden, layers, heads, kv_heads, head_dim, vocab, max_len;
    float rope_theta, norm_eps;
    matrix part[ALL_PARTS]; /* from EMBEDDING on */
    layer_weights *of_layer;
    int64_t bytes;
    arena *mem;
} model;

/* A file in memory, with a 0 behind it, and how far it has been read. */
typedef struct reader {
    const char *path;
    unsigned char *data;
    int64_t size, at;
    char *error; /* empty: none so far */
} reader;

static int read_file(reader *r, arena **owner) {
    FILE *file = fopen(r->path, "rb");
    int is_read = 0;
    r->size = file && !fseek(file, 0, SEEK_END) ? ftell(file) : 0;
    if (r->size > 0 && r->size < LONG_MAX / 4) { /* a directory has any size */
        rewind(file);
        r->data = need(owner, r->size + 1, 1);
        is_read = fread(r->data, 1, (size_t)r->size, file) == (size_t)r->size;
    }
    if (file) fclose(file);
    return is_read ? 0 : fail(r->error, "%s: cannot be read, or is empty", r->path);
}

/* The next bytes of the file, or NULL and a sentence. */
static const void *take(reader *r, const char *name, int64_t bytes) {
    int64_t missing = bytes - (r->size - r->at);
    if (missing > 0) {
        fail(r->error, "%s: %s needs %lld bytes, the file ends %lld bytes earlier", r->path, name, (long long)bytes,
             (long long)missing);
    }
    if (*r->error) return NULL;
    r->at += bytes;
    return r->data + (r->at - bytes);
}

/* 13 more bits of mantissa and a larger exponent; the factor 2^112 moves it to its place, also for small numbers. */
static float widen_f16(uint16_t half) {
    uint32_t bits = (half & 0x8000u) << 16 | (half & 0x7FFFu) << 13;
    float wide;
    memcpy(&wide, &bits, 4);
    return (half & 0x7C00) == 0x7C00 ? INFINITY : wide * 5192296858534827628530496329220096.0f;
}

enum { F32, F16, INT8 }; /* in a file */

/* Part `part` of layer `layer`, -1: of the model. Without an FFN there are no parts of it. */
static void take_part(reader *r, model *m, int32_t layer, int32_t part, int32_t type) {
    int32_t q = m->heads * m->head_dim, kv = m->kv_heads * m->head_dim;
    const int32_t all_rows[] = { 1, q, kv, kv, m->dim, 1, m->hidden, m->dim, m->hidden, m->vocab, 1, m->vocab };
    int32_t rows = all_rows[part], cols = part == WO ? q : part == W2 ? m->hidden : m->dim;
    int64_t count = (int64_t)rows * cols;
    char name[40] = "";
    if (part >= NORM_FFN && part <= W3 && !m->hidden) return;
    if (part == NORM_ATT || part == NORM_FFN || part == NORM_FINAL) type = F32;
    if (layer >= 0) snprintf(name, sizeof name, "layer %d: ", (int)layer);
    strcat(name, part_names[part]);
    const void *data = take(r, name, type == F32 ? 4 * count : type == F16 ? (count + 1) / 2 * 4 : (count + 3) / 4 * 4);
    const float *scale = type == INT8 ? take(r, name, 4 * (int64_t)rows) : NULL;
    if (*r->error) return;
    if (type == F16) {
        float *wide = need(&m->mem, count, sizeof *wide);
        for (int64_t i = 0; i < count; i++) wide[i] = widen_f16(((const uint16_t *)data)[i]);
        data = wide;
    }
    for (int64_t i = 0; i < (scale ? rows : count); i++) {
        float number = scale ? scale[i] : ((const float *)data)[i];
        if (!(fabsf(number) < INFINITY)) fail(r->error, "%s: a number in %s is not finite", r->path, name);
    }
    *(layer < 0 ? &m->part[part] : &m->of_layer[layer].part[part]) = (matrix){ data, scale, rows, cols };
}

/* Both formats have the same sizes in the same order, but llama2.c's has no head_dim, and says by a negative vocab that
   the classifier is not the embedding. An .lm goes on. Returns the type of its matrices. */
static int32_t read_header(reader *r, model *m, int is_lm, int32_t *shared) {
    static const char *const name[] = { "dim", "hidden", "layers", "heads", "kv_heads", "head_dim", "vocab", "max_len",
                                        "type", "flags" };
    static const int32_t high[] = { 1 << 16, 1 << 18, 1024, 1024, 1024, 1 << 16, 1 << 20, 1 << 24, INT8, 1 };
    int32_t type = F32, *to[] = { &m->dim, &m->hidden, &m->layers, &m->heads, &m->kv_heads, &m->head_dim, &m->vocab,
                                  &m->max_len, &type, shared };
    const int32_t *header = take(r, "header", is_lm ? 48 : 28);
    if (!header) return F32;
    *shared = !is_lm && header[5] > 0;
    for (int i = 0; i < (is_lm ? 10 : 8); i++) {
        if (is_lm || i != 5) *to[i] = *header++;
        else m->head_dim = m->dim / m->heads;
        if (!is_lm && i == 6 && *to[i] >= -high[i]) *to[i] = abs(*to[i]);
        if (*to[i] >= (i != 1 && i < 8) && *to[i] <= high[i]) continue;
        fail(r->error, "%s: %s is %d (is this a checkpoint?)", r->path, name[i], (int)*to[i]);
        return F32;
    }
    if (is_lm) memcpy(&m->rope_theta, header, 4);
    if (is_lm) memcpy(&m->norm_eps, header + 1, 4);
    if (m->vocab < 2 || m->heads % m->kv_heads || !(m->rope_theta >= 1 && m->rope_theta < 1e30f) ||
        !(m->norm_eps >= 0 && m->norm_eps < 1e30f) || (!is_lm && (m->dim % m->heads || m->head_dim % 2))) {
        fail(r->error, "%s: the numbers of its header do not go together", r->path);
    }
    return type;
}

/* Tensors come layer by layer in an .lm, kind by kind in llama2.c's format. */
static void read_model(reader *r, model *m) {
    int is_lm = r->size >= 8 && !memcmp(r->data, "ATTNLM1\n", 8);
    r->at = is_lm ? 8 : 0;
    m->rope_theta = 10000;
    m->norm_eps = 1e-5f;
    int32_t shared = 0, type = read_header(r, m, is_lm, &shared);
    const int32_t *kinds = is_lm ? take(r, "kinds of layers", 8 * (int64_t)m->layers) : NULL;
    if (*r->error) return;
    m->of_layer = need(&m->mem, m->layers, sizeof *m->of_layer);
    for (int32_t l = 0; l < m->layers; l++) {
        layer_weights *w = &m->of_layer[l];
        w->window = is_lm ? kinds[2 * l] : 0;
        w->rotary = is_lm ? kinds[2 * l + 1] : m->head_dim;
        if (w->window >= 0 && w->rotary >= 0 && w->rotary <= m->head_dim && w->rotary % 2 == 0) continue;
        fail(r->error, "%s: layer %d: window %d, rotary %d", r->path, (int)l, (int)w->window, (int)w->rotary);
    }
    take_part(r, m, -1, EMBEDDING, type);
    for (int32_t i = 0; i < m->layers * PARTS; i++) {
        take_part(r, m, is_lm ? i / PARTS : i % m->layers, is_lm ? i % PARTS : i / m->layers, type);
    }
    take_part(r, m, -1, NORM_FINAL, type);
    if (!is_lm) take(r, "RoPE table", (int64_t)m->max_len * m->head_dim * 4); /* attn_rope has its own */
    m->part[CLASSIFIER] = m->part[EMBEDDING];
    if (!shared) take_part(r, m, -1, CLASSIFIER, type);
    if (r->at < r->size) fail(r->error, "%s: %lld bytes follow the last tensor", r->path, (long long)(r->size - r->at));
}

void model_close(model *m) {
    if (m) release(m->mem);
}

/* NULL and a sentence in error[ERROR_BYTES] if the file is not a checkpoint, whole and sound. Files are little-endian;
   on a machine that is not their sizes are out of range. */
model *model_load(const char *path, char *error) {
    arena *mem = NULL;
    model *m = need(&mem, 1, sizeof *m);
    reader r = { path, NULL, 0, 0, error };
    *error = 0;
    read_file(&r, &mem);
    m->mem = mem;
    m->bytes = r.size;
    if (!*error) read_model(&r, m);
    if (!*error) return m;
    model_close(m);
    return NULL;
}

/* ---- tokenizer -------------------------------------------------------------------------------------------------- */

typedef struct piece {
    const char *text;
    int32_t len, token;
    float score;
} piece;

typedef struct tokenizer {
    int32_t tokens;          /* 0: tokens are bytes */
    int32_t stop[2];         /* tokens that end a text */
    piece *of_token, *sorted;
    arena *mem;
} tokenizer;

static int compare_pieces(const void *a, const void *b) {
    const piece *x = a, *y = b;
    int order = memcmp(x->text, y->text, (size_t)least(x->len, y->len));
    return order ? order : x->len - y->len;
}

static const piece *find_piece(const tokenizer *t, const char *text, int32_t len) {
    piece wanted = { text, len, 0, 0 };
    return bsearch(&wanted, t->sorted, (size_t)t->tokens, sizeof wanted, compare_pieces);
}

void tokenizer_close(tokenizer *t) {
    release(t->mem);
    memset(t, 0, sizeof *t);
}

/* A llama2.c tokenizer: int32 longest piece, then f32 score, int32 length and text of each token; 1 and 2 begin and end
   a text, 3 .. 258 are bytes. path NULL: tokens are bytes, of which 0 begins and ends a text. */
int tokenizer_load(tokenizer *t, const char *path, int32_t vocab, char *error) {
    reader r = { path, NULL, 0, 0, error };
    memset(t, 0, sizeof *t);
    *error = 0;
    if (!path) return vocab == 256 ? 0 : fail(error, "a model of %d tokens needs its --tokenizer", (int)vocab);
    if (vocab < 259) return fail(error, "%s: not for a model of %d tokens", path, (int)vocab);
    read_file(&r, &t->mem);
    t->tokens = vocab;
    t->stop[0] = 1;
    t->stop[1] = 2;
    t->of_token = need(&t->mem, vocab, sizeof *t->of_token);
    t->sorted = need(&t->mem, vocab, sizeof *t->sorted);
    take(&r, "length of the longest piece", 4);
    for (int32_t i = 0; i < vocab && !*error; i++) {
        piece *p = &t->of_token[i];
        const void *score = take(&r, "score", 4), *len = take(&r, "length", 4);
        if (score) memcpy(&p->score, score, 4);
        if (len) memcpy(&p->len, len, 4);
        if (!(fabsf(p->score) <= 1e30f) || p->len < 0) fail(error, "%s: token %d cannot be", path, (int)i);
        p->token = i;
        p->text = take(&r, "piece", p->len);
        t->sorted[i] = *p;
    }
    if (r.at < r.size) fail(error, "%s: has more than the %d tokens of the model", path, (int)vocab);
    if (*error) tokenizer_close(t);
    else qsort(t->sorted, (size_t)vocab, sizeof *t->sorted, compare_pieces);
    return *error ? -1 : 0;
}

/* The score of symbols i and i + 1 as one. Symbols lie behind each other in a text. */
static void rate_symbol(const tokenizer *t, piece *s, int32_t n, int32_t i) {
    const piece *joined = i >= 0 && i + 1 < n ? find_piece(t, s[i].text, s[i].len + s[i + 1].len) : NULL;
    if (i >= 0) s[i].score = joined ? joined->score : -2e30f;
}

/* Byte-pair encoding: neighbours become one symbol, best score first, until no two of them make a token. */
static int32_t merge_symbols(const tokenizer *t, piece *s, int32_t n) {
    for (int32_t i = 0; i < n; i++) rate_symbol(t, s, n, i);
    for (;;) {
        int32_t best = 0;
        for (int32_t i = 1; i < n; i++) {
            if (s[i].score > s[best].score) best = i;
        }
        if (n < 2 || s[best].score < -1e30f) return n;
        s[best].len += s[best + 1].len;
        s[best].token = find_piece(t, s[best].text, s[best].len)->token;
        n--;
        memmove(s + best + 1, s + best + 2, (size_t)(n - best - 1) * sizeof *s);
        rate_symbol(t, s, n, best - 1);
        rate_symbol(t, s, n, best);
    }
}

/* Tokens of a text into `tokens`, which has room for strlen(text) + 2; returns how many. */
int32_t tokenizer_encode(const tokenizer *t, const char *text, int32_t *tokens) {
    arena *mem = NULL;
    int32_t len = (int32_t)strlen(text), n = 0;
    tokens[0] = t->tokens ? 1 : 0;
    for (int32_t i = 0; i < len; i++) tokens[i + 1] = (unsigned char)text[i];
    if (!t->tokens) return len + 1;
    char *source = need(&mem, len + 2, 1); /* with the space that begins every text */
    piece *symbols = need(&mem, len + 2, sizeof *symbols);
    if (len) snprintf(source, (size_t)len + 2, " %s", text);
    for (const char *p = source; *p; p += symbols[n++].len) {
        int32_t bytes = 1; /* of a character in UTF-8; one that is no token becomes its bytes */
        while (((unsigned char)p[bytes] & 0xC0) == 0x80 && bytes < 4) bytes++;
        const piece *found = find_piece(t, p, bytes);
        symbols[n] = (piece){ p, found ? bytes : 1, found ? found->token : 3 + (unsigned char)*p, 0 };
    }
    n = merge_symbols(t, symbols, n);
    for (int32_t i = 0; i < n; i++) tokens[i + 1] = symbols[i].token;
    release(mem);
    return n + 1;
}

/* first: the text begins with this token, and the space before it is not part of it. */
void tokenizer_print(const tokenizer *t, int32_t token, int first, FILE *file) {
    if (!t->tokens || (token >= 3 && token < 259)) {
        fputc(t->tokens ? token - 3 : token, file);
    } else {
        const piece *p = &t->of_token[token];
        int32_t skip = first && p->len && p->text[0] == ' ';
        fwrite(p->text + skip, 1, (size_t)(p->len - skip), file);
    }
}

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
    int32_t slots, columns, *table; /* of a request in a cache without pages; of a ring's page table */
} layer_class;

/* Rows of floats that a pass works on. */
enum { RESIDUAL, NORMED, QUERY, KEY, VALUE, ATTENDED, HIDDEN, LOGITS, CERTIFICATE, BUFFERS };

/* A model with its caches, and the rows that are on their way through it. */
typedef struct net {
    const model *m;
    layer_class *classes;
    int32_t class_count, *class_of;              /* [layer] */
    attn_io *io;                                 /* [layer] */
    attn_exec exec;
    attn_meta meta;
    void *meta_mem;
    size_t meta_bytes;
    attn_counters *counters;                     /* [lane] */
    float *buffer[BUFFERS], *lambda, *weights;   /* weights [lane][OUTPUTS][weights_cols] */
    int32_t weights_cols, has_avx2, rows, outs, stage_rows, is_tree, tree_words;
    int32_t *token, *shift, *position, *out_row; /* [row]; shift: a node's depth less its number */
    uint32_t *tree;
    int32_t *q_len, *kv_len, *phase, *seq_lens, *batch; /* [slot]; batch: [3][slot] */
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
       that of layer t->layer is complete; its rows and caches are in t->io[t->layer]. */
    void (*on_logits)(void *user, const request *r, int32_t position, const float *logits);
    void (*on_attention)(void *user, struct engine *e, const net *t);
    char error[ERROR_BYTES];
    arena *mem;
} engine;

/* ---- attention: all that the program knows of plans, caches and masks -------------------------------------------- */

/* The class of layers with a window, which is made if there is none yet. */
static int32_t class_of_window(engine *e, net *t, int32_t window) {
    int32_t n = 0, unit = e->o.page ? e->o.page : 1;
    while (n < t->class_count && t->classes[n].layer.window_left != window) n++;
    if (n < t->class_count) return n;
    layer_class *c = &t->classes[t->class_count++];
    c->layer = (attn_layer){ .heads = t->m->heads, .kv_heads = t->m->kv_heads, .head_dim = t->m->head_dim,
                             .kv_type = e->o.kv, .page_size = e->o.page, .window_left = window,
                             .row_tile = e->o.row_tile, .skip = e->o.skip, .isa = (int32_t)attn_isa_detect() };
    if (e->o.kv == ATTN_INT8) c->layer.scale_kind = ATTN_SCALE_PER_KEY;
    /* A ring holds the rows of a step and what the first one sees, in whole pages wherever they begin. */
    if (window) c->layer.ring = (window + e->most.max_q_len + 2 * unit - 3) / unit * unit;
    c->slots = window ? c->layer.ring : e->most.max_kv_len;
    c->columns = e->o.page ? c->layer.ring / unit : 0;
    if (c->columns) c->table = need(&e->mem, (int64_t)e->o.batch * c->columns, sizeof *c->table);
    return n;
}

/* Where a layer's keys and values are, and the rows that attend to them. */
static attn_io open_cache(engine *e, net *t, const layer_class *c) {
    static const size_t bytes[] = { 4, 2, 2, 1, 1, 1 };
    int64_t keys = e->o.page ? (int64_t)e->o.pages * e->o.page : (int64_t)e->o.batch * c->slots;
    int64_t width = (int64_t)t->m->kv_heads * t->m->head_dim;
    attn_io io = { .q = t->buffer[QUERY], .o = t->buffer[ATTENDED], .tree = t->tree, .counters = t->counters,
                   .certificate = t->buffer[CERTIFICATE], .pages = e->o.pages };
    io.k = need(&e->mem, keys * width, bytes[e->o.kv]);
    io.v = need(&e->mem, keys * width, bytes[e->o.kv]);
    if (e->o.kv == ATTN_INT8) io.k_scale = need(&e->mem, keys * t->m->kv_heads, sizeof *io.k_scale);
    if (e->o.kv == ATTN_INT8) io.v_scale = need(&e->mem, keys * t->m->kv_heads, sizeof *io.v_scale);
    if (!e->o.page) io.k_page = io.v_page = c->slots * width;
    io.page_table = c->table ? c->table : e->table;
    io.page_table_row = c->table ? c->columns : e->columns;
    if (e->o.skip.mode == ATTN_SKIP_LAMBDA) io.lambda = t->lambda;
    return io;
}

/* Memory that grows to `want` bytes; what it held is lost. */
static void grow_memory(engine *e, void **mem, size_t *have, size_t want) {
    if (want > *have) *mem = need(&e->mem, 1, *have = want);
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

/* Metadata, and one plan for each class, from the lengths of the pass. */
static int attention_plan(engine *e, net *t, attn_mode mode, int32_t draft_step) {
    const int32_t want = ATTN_META_CU_SEQLENS | ATTN_META_POSITIONS;
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
    if (!failed) grow_memory(e, &t->meta_mem, &t->meta_bytes, attn_meta_bytes(&batch, NULL, want));
    failed = failed || attn_meta_make(&t->meta, &batch, NULL, want, t->meta_mem, t->meta_bytes, &err);
    for (layer_class *c = t->classes; c < t->classes + t->class_count && !failed; c++) {
        c->layer.mask = t->is_tree ? ATTN_TREE : ATTN_CAUSAL;
        grow_memory(e, &c->plan_mem, &c->plan_bytes, attn_plan_bytes(&batch, &c->layer));
        failed = attn_plan_make(&c->plan, &batch, &c->layer, c->plan_mem, c->plan_bytes, &err);
        if (!failed) grow_memory(e, &t->exec.mem, &t->exec.bytes, attn_exec_bytes(&c->plan, t->exec.lanes));
        point_ring(e, t, c);
        e->stats.plans++;
    }
    e->stats.plan_ms += now_ms() - start;
    return failed ? fail(e->error, "plan: %s", err.text) : 0;
}

/* Classes, caches, and plans of nothing, which shows whether the layers can work and how much memory they need. */
static int attention_open(engine *e, net *t) {
    const model *m = t->m;
    t->classes = need(&e->mem, m->layers, sizeof *t->classes);
    t->class_of = need(&e->mem, m->layers, sizeof *t->class_of);
    t->io = need(&e->mem, m->layers, sizeof *t->io);
    for (int32_t l = 0; l < m->layers; l++) { /* a ring has bounds */
        t->class_of[l] = class_of_window(e, t, least(m->of_layer[l].window, e->most.max_kv_len));
        t->io[l] = open_cache(e, t, &t->classes[t->class_of[l]]);
    }
    return attention_plan(e, t, ATTN_MODE_IDLE, 0);
}

static const layer_class *class_at(const net *t) {
    return &t->classes[t->class_of[t->layer]];
}

static void attention_task(void *context, int32_t index, int32_t lane) {
    const net *t = context;
    attn_task(&class_at(t)->plan, &t->io[t->layer], &t->exec, (attn_stage)t->stage, index, lane);
}

/* Turns q and k, stores k and v, and checks everything; the tasks come after. */
static int attention_begin(engine *e, net *t) {
    const layer_class *c = class_at(t);
    const attn_io *io = &t->io[t->layer];
    int32_t rotary = t->m->of_layer[t->layer].rotary;
    attn_rope_input q = { .x = t->buffer[QUERY], .rows = t->rows, .heads = t->m->heads, .head_dim = t->m->head_dim,
                          .rotary_dim = rotary, .interleaved = 1, .positions = t->position };
    q.base = t->m->rope_theta;
    attn_rope_input k = q;
    attn_error err;
    k.x = t->buffer[KEY];
    k.heads = t->m->kv_heads;
    int failed = (rotary && (attn_rope(&q, &err) || attn_rope(&k, &err))) ||
                 attn_append(&c->plan, &c->layer, io, t->buffer[KEY], t->buffer[VALUE], &err) ||
                 attn_check(&c->plan, &c->layer, io, &t->exec, &err);
    return failed ? fail(e->error, "layer %d: %s", (int)t->layer, err.text) : 0;
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
        const attn_plan *plan = &class_at(t)->plan;
        double cost = t->stage == ATTEND ? 2.0 * t->m->head_dim * (double)plan->work : 0;
        t->job = (job){ attention_task, t, 0, attn_task_count(plan, (attn_stage)t->stage), cost };
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
        if (t->stage == ATTEND) e->stats.attention_ms += now_ms() - start; /* RoPE and append */
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

/* ---- pages: shared by requests that begin alike ------------------------------------------------------------------ */

static int32_t pages_of(const engine *e, int32_t keys) {
    return e->o.page ? (keys + e->o.page - 1) / e->o.page : 0;
}

static int32_t *table_of(engine *e, const request *r) {
    return e->table + (int64_t)r->slot * e->columns;
}

/* The kept page that follows `parent` and holds these tokens, or -1. */
static int32_t find_page(engine *e, int32_t parent, const int32_t *token) {
    size_t bytes = (size_t)e->o.page * sizeof *token;
    for (int32_t p = 0; p < e->o.pages; p++) {
        if (!e->page[p].kept || e->page[p].parent != parent) continue;
        if (!memcmp(e->page_token + (int64_t)p * e->o.page, token, bytes)) return p;
    }
    return -1;
}

static int32_t use_page(engine *e, int32_t p) {
    if (e->page[p].users++ == 0) e->free_pages--;
    return p;
}

/* A request gives back its pages from the last to the first. So of two kept pages of a prompt without users the later
   one is older and thrown away first: a kept page's parent is always kept. */
static void drop_page(engine *e, int32_t p) {
    if (--e->page[p].users > 0) return;
    e->page[p].used = e->page[p].kept ? ++e->clock : 0;
    e->free_pages++;
}

/* A page for new keys: an empty one, else the kept one that was used longest ago; -1: all have users. */
static int32_t take_page(engine *e) {
    int32_t oldest = -1;
    for (int32_t p = 0; p < e->o.pages && e->free_pages; p++) {
        if (e->page[p].users) continue;
        if (oldest < 0 || e->page[p].used < e->page[oldest].used) oldest = p;
    }
    if (oldest < 0) return -1;
    e->page[oldest].kept = 0;
    return use_page(e, oldest);
}

/* A request starts behind the pages that hold the beginning of its prompt. The last token is always computed, to have
   its logits. */
static void share_pages(engine *e, request *r) {
    int32_t *table = table_of(e, r), most = e->o.page && !r->all_logits ? (r->prompt_len - 1) / e->o.page : 0, p = -1;
    while (r->pages < most && (p = find_page(e, p, r->token + r->pages * e->o.page)) >= 0) {
        table[r->pages++] = use_page(e, p);
    }
    r->kept = r->pages;
    r->cached = r->drafted = r->pages * e->o.page;
    r->shared += r->cached;
    e->stats.shared_tokens += r->cached;
}

/* From now on others find the pages that this prompt has filled. Where another request was faster its page replaces
   this one, which has the same bits. */
static void keep_pages(engine *e, request *r) {
    int32_t *table = table_of(e, r), size = e->o.page;
    for (; size && (r->kept + 1) * size <= least(r->cached, r->prompt_len); r->kept++) {
        int32_t parent = r->kept ? table[r->kept - 1] : -1, p = table[r->kept];
        const int32_t *token = r->token + r->kept * size;
        int32_t twin = find_page(e, parent, token);
        if (twin >= 0) {
            table[r->kept] = use_page(e, twin);
            drop_page(e, p);
        } else {
            e->page[p].kept = 1;
            e->page[p].parent = parent;
            memcpy(e->page_token + (int64_t)p * size, token, (size_t)size * sizeof *token);
        }
    }
}

/* Forgets what is kept of prompts, so that a measurement starts cold; an error while a request is not done. */
int engine_reset_prefixes(engine *e) {
    *e->error = 0;
    for (int32_t i = 0; i < e->requests; i++) {
        if (e->request[i]->state != DONE) return fail(e->error, "request %d is live: shared pages stay", (int)i);
    }
    memset(e->page, 0, (size_t)e->o.pages * sizeof *e->page);
    return 0;
}

/* ---- requests: they wait, run and leave; when pages run out the youngest waits again ----------------------------- */

/* A request that continues `prompt` by at most `count` tokens; NULL and e->error if it can never run. */
request *engine_submit(engine *e, const int32_t *prompt, int32_t prompt_len, int32_t count) {
    int32_t max_len = count < e->o.context - prompt_len ? prompt_len + count : e->o.context;
    *e->error = 0;
    if (prompt_len < 1 || count < 1 || prompt_len >= e->o.context) {
        fail(e->error, "a prompt of %d tokens and %d more, but the context has %d", (int)prompt_len, (int)count,
             (int)e->o.context);
    } else if (pages_of(e, max_len + e->o.spec) > e->o.pages) {
        fail(e->error, "%d tokens do not fit into %d pages", (int)max_len, (int)e->o.pages);
    }
    for (int32_t i = 0; i < prompt_len && !*e->error; i++) {
        if (prompt[i] < 0 || prompt[i] >= e->net[0].m->vocab) fail(e->error, "prompt[%d] is no token", (int)i);
    }
    if (*e->error) return NULL;
    request **list = realloc(e->request, ((size_t)e->requests + 1) * sizeof *list);
    if (!list) fail(e->error, "out of memory");
    if (!list) return NULL;
    arena *mem = NULL;
    request *r = need(&mem, 1, sizeof *r);
    r->token = need(&mem, (int64_t)max_len + MAX_NODES, sizeof *r->token);
    r->mem = mem;
    r->key = e->submitted++;
    memcpy(r->token, prompt, (size_t)prompt_len * sizeof *prompt);
    r->len = r->prompt_len = prompt_len;
    r->max_len = max_len;
    e->request = list;
    e->request[e->requests++] = r;
    return r;
}

/* Frees the requests that are done. A program that runs on calls it now and then; e->request has fewer entries then. */
void engine_forget_done(engine *e) {
    int32_t left = 0;
    for (int32_t i = 0; i < e->requests; i++) {
        request *r = e->request[i];
        if (r->state == DONE) release(r->mem);
        else e->request[left++] = r;
    }
    e->requests = left;
}

static void leave(engine *e, request *r, int is_done) {
    while (r->pages > 0) drop_page(e, table_of(e, r)[--r->pages]);
    e->slot[r->slot] = NULL;
    r->kept = r->cached = r->drafted = r->hints = r->rows = 0;
    r->state = is_done ? DONE : WAITING;
}

/* Who waits joins in order, if there is a slot, and pages for its tokens beside what those who run still lack for
   theirs, and one more for each of them. Those who run are older than those who wait. */
static void join(engine *e) {
    int32_t slot = 0, left = e->free_pages, running = 0;
    for (int32_t i = 0; i < e->requests; i++) {
        request *r = e->request[i];
        if (r->state == DONE) continue;
        left -= pages_of(e, r->len + e->o.spec) - r->pages;
        if (r->state == WAITING) {
            while (slot < e->o.batch && e->slot[slot]) slot++;
            if (slot == e->o.batch || (running && e->o.page && left < 0)) return;
            r->state = RUNNING;
            r->slot = slot;
            e->slot[slot] = r;
            share_pages(e, r);
        }
        left--;
        running++;
    }
}

/* Pages for `keys` keys. When there is none left the youngest request goes back to wait: 0 if it is r itself. What it
   has generated is computed again later, in phase DECODE, which gives the same bits. */
static int grow(engine *e, request *r, int32_t keys) {
    while (r->pages < pages_of(e, keys)) {
        int32_t p = take_page(e), youngest = e->requests - 1;
        if (p >= 0) {
            table_of(e, r)[r->pages++] = p;
            continue;
        }
        while (e->request[youngest]->state != RUNNING) youngest--;
        request *last = e->request[youngest];
        leave(e, last, 0);
        last->sent_back++;
        e->stats.sent_back++;
        if (last == r) return 0;
    }
    return 1;
}

static int decodes(const request *r) {
    return r->len > r->prompt_len && r->cached == r->len - 1;
}

/* Decides on the rows of a step, apart from drafts: all that decode, oldest first, and as much of the prompts as the
   chunk takes. Returns 0 if nobody runs. */
static int schedule(engine *e) {
    int32_t left = e->o.chunk, any = 0;
    join(e);
    e->kind = 1;
    for (int32_t i = 0; i < e->requests; i++) {
        request *r = e->request[i];
        if (r->state != RUNNING) continue;
        int32_t is_prompt = r->cached < r->prompt_len, end = is_prompt ? r->prompt_len : r->len;
        int32_t rows = decodes(r) ? 1 : least(left, end - r->cached);
        if (!grow(e, r, decodes(r) ? r->len + e->o.spec : r->cached + rows)) continue;
        if (!decodes(r)) left -= rows;
        if (rows && is_prompt) e->kind = 0;
        r->rows = rows;
        any |= rows > 0;
    }
    return any;
}

/* ---- the next token ---------------------------------------------------------------------------------------------- */

/* 0 .. 1, the same for the same request and position in every run. */
static double random_number(uint64_t seed, uint64_t key, uint64_t position) {
    uint64_t z = (seed * 0x9E3779B97F4A7C15u) ^ (key * 0xD1342543DE82EF95u) ^ (position * 0xAF251AF3B0F025B5u);
    for (int i = 0; i < 3; i++) z = (z ^ (z >> 29)) * 0xBF58476D1CE4E5B9u + 0x94D049BB133111EBu;
    return (double)(z >> 11) / 9007199254740992.0;
}

static int32_t best_token(const float *logits, int32_t n, int32_t except) {
    int32_t best = except == 0;
    for (int32_t i = best + 1; i < n; i++) {
        if (logits[i] > logits[best] && i != except) best = i;
    }
    return best;
}

static int compare_candidates(const void *a, const void *b) {
    const candidate *x = a, *y = b;
    return x->p != y->p ? (x->p < y->p ? 1 : -1) : x->token - y->token;
}

/* Token number `position` of a request: the best, or one of the likely ones that together have top_p. */
static int32_t choose(engine *e, const request *r, int32_t position, const float *logits) {
    int32_t vocab = e->net[0].m->vocab, best = best_token(logits, vocab, -1), n = 0, i = 0;
    double sum = 0, kept = 0;
    if (e->o.temperature <= 0) return best;
    for (int32_t t = 0; t < vocab; t++) {
        float p = expf((logits[t] - logits[best]) / e->o.temperature);
        sum += (double)p;
        if (p > 1e-6f) e->candidate[n++] = (candidate){ p, t };
    }
    qsort(e->candidate, (size_t)n, sizeof *e->candidate, compare_candidates);
    while (i < n && kept < (double)e->o.top_p * sum) kept += (double)e->candidate[i++].p;
    double at = random_number((uint64_t)e->o.seed, r->key, (uint64_t)position) * kept;
    for (n = i, i = 0; i + 1 < n; i++) {
        at -= (double)e->candidate[i].p;
        if (at < 0) break;
    }
    return e->candidate[i].token;
}

/* The next token follows from the right logits. Returns it; the request may be complete then. */
static int32_t append_token(engine *e, request *r, const float *logits) {
    int32_t given = r->len - r->prompt_len, is_given = given < r->forced_len;
    int32_t token = is_given ? r->forced[given] : choose(e, r, r->len, logits);
    r->token[r->len++] = token;
    r->hints = 0;
    e->stats.tokens++;
    r->complete = r->len == r->max_len || (!is_given && (token == e->o.stop[0] || token == e->o.stop[1]));
    return token;
}

/* ---- drafts: guesses that the model checks, all in one step ------------------------------------------------------ */

enum { NGRAM_MAX = 9, NGRAM_MIN = 2, BRANCHES = 3 }; /* pieces of text that are looked up; of a tree of n-grams */

/* The child of a node that holds a token; r->nodes: there is none. */
static int32_t find_child(const request *r, int32_t node, int32_t token) {
    int32_t c = node + 1;
    while (c < r->nodes && (r->node[c] != token || r->bits[c] != (r->bits[node] | 1u << c))) c++;
    return c;
}

/* Adds a path from the latest token to the tree, as far as there is room; its beginning may be there already. The first
   path is one branch of nodes 1, 2, ..: node numbers equal depths in it, and nowhere else. */
static void add_path(engine *e, request *r, const int32_t *token, int32_t count) {
    for (int32_t at = 0, i = 0; i < count; i++) {
        int32_t child = find_child(r, at, token[i]);
        if (child > e->o.spec) return;
        if (child == r->nodes) {
            r->node[child] = token[i];
            r->depth[child] = i + 1;
            r->bits[child] = r->bits[at] | 1u << child;
            r->nodes++;
        }
        at = child;
    }
}

/* How many guesses may follow each other. */
static int32_t depth_limit(const engine *e, const request *r) {
    return least(e->o.tree ? (e->o.spec + 1) / 2 : e->o.spec, r->max_len - r->len - 1);
}

/* Behind the hints, what came after the latest tokens when they were seen before in this text: the longest, then the
   latest match. */
static void draft_ngrams(engine *e, request *r, int32_t most) {
    int32_t n = r->len + r->hints, branches = 0, *tail = r->token + n;
    for (int32_t size = NGRAM_MAX; size >= NGRAM_MIN && most > 0; size--) {
        for (int32_t at = n - size - 1; at >= 0 && branches < (e->o.tree ? BRANCHES : 1); at--) {
            const int32_t *seen = r->token + at;
            if (*seen != tail[-size] || memcmp(seen, tail - size, (size_t)size * sizeof *seen)) continue;
            int32_t before = r->nodes, count = least(most, size); /* a short match is no reason for a long draft */
            for (int32_t i = 0; i < count; i++) tail[i] = seen[size + i]; /* where the text ends it repeats itself */
            add_path(e, r, r->token + r->len, r->hints + count);
            branches += r->nodes > before;
        }
    }
}

/* The tree of a request that decodes: hints are the beginning of every path; what is given needs no guesses. With more
   than one branch the step runs with the mask of a tree. */
static void draft(engine *e, request *r) {
    int32_t *path = r->token + r->len, given = r->len - r->prompt_len, most = depth_limit(e, r);
    r->nodes = 1;
    r->node[0] = path[-1];
    r->bits[0] = 1;
    if (given < r->forced_len) {
        add_path(e, r, r->forced + given, least(most, r->forced_len - given));
    } else if (e->nets == 1) {
        add_path(e, r, path, least(most, r->hints));
        draft_ngrams(e, r, most - r->hints);
    } else {
        add_path(e, r, path, most);
        for (int32_t d = r->hints; d < most && e->o.tree; d++) {
            int32_t first = path[d];
            path[d] = r->second[d - r->hints];
            add_path(e, r, path, d + 1);
            path[d] = first;
        }
    }
}

/* Guesses are drawn with the random numbers that the model will use: then both often draw the same. */
static void take_guesses(engine *e, const net *t) {
    const float *logits = t->buffer[LOGITS];
    for (int32_t i = 0; i < e->o.batch; i++) {
        request *r = e->slot[i];
        if (!t->q_len[i]) continue;
        int32_t at = r->len + r->hints + e->pass;
        if (e->pass == 0) r->drafted = r->len;
        r->token[at] = choose(e, r, at, logits);
        r->second[e->pass] = best_token(logits, t->m->vocab, r->token[at]);
        logits += t->m->vocab;
    }
}

/* ---- the step ---------------------------------------------------------------------------------------------------- */

/* The slots come in their order. A row sees those of its request up to itself; nodes are not in such an order. */
static void add_rows(net *t, int32_t slot, const int32_t *token, int32_t count, int wants_logits) {
    for (int32_t i = 0; i < count; i++, t->rows++) {
        int32_t j = t->q_len[slot]++;
        if (wants_logits) t->out_row[t->outs++] = t->rows;
        t->token[t->rows] = token[i];
        t->shift[t->rows] = 0;
        t->kv_len[slot]++;
        for (int32_t w = 0; w < t->tree_words; w++) {
            t->tree[(int64_t)t->rows * t->tree_words + w] = w < j / 32 ? ~0u : w > j / 32 ? 0 : ~0u >> (31 - j % 32);
        }
    }
}

/* Rows that the model has to compute, and drafts behind the latest token. */
static void add_text(engine *e, net *t, request *r) {
    const int32_t *token = r->token + r->cached;
    r->outs = r->all_logits && r->len == r->prompt_len ? r->rows : r->cached + r->rows == r->len;
    r->first_out = t->outs;
    r->nodes = 1;
    r->bits[0] = 1;
    t->kv_len[r->slot] = r->cached;
    add_rows(t, r->slot, token, r->rows - r->outs, 0);
    add_rows(t, r->slot, token + r->rows - r->outs, r->outs, 1);
    if (!decodes(r)) return;
    draft(e, r);
    add_rows(t, r->slot, r->node + 1, r->nodes - 1, 1);
    for (int32_t j = 1, row = t->rows - r->nodes + 1; j < r->nodes; j++, row++) {
        t->shift[row] = r->depth[j] - j;
        t->is_tree |= r->depth[j] != j;
        if (e->o.tree) t->tree[(int64_t)row * t->tree_words] = r->bits[j];
    }
}

/* Of the draft model. Step -1: it takes in what is new, a fixed number of rows of each request, of which those behind
   the new ones are filling; steps 0, 1, ..: what follows its best guess. */
static void add_guess(engine *e, net *t, const request *r, int32_t step) {
    int32_t known = r->len + r->hints, more = known - r->drafted - 1;
    if (step < 0) {
        t->kv_len[r->slot] = r->drafted;
        add_rows(t, r->slot, r->token + r->drafted, more, 0);
        add_rows(t, r->slot, r->token + known - 1, 1, 1);
        add_rows(t, r->slot, r->token + known, e->o.spec - more, 0);
    } else if (step < depth_limit(e, r) - r->hints - 1) {
        t->kv_len[r->slot] = known + step;
        add_rows(t, r->slot, r->token + known + step, 1, 1);
    }
}

/* The rows of a pass, and the mode that an engine would call it. Passes of a step: 0: the draft model takes in what is
   new; 1 .. spec - 1: it guesses on; spec: it takes in the rows of prompts; spec + 1: the model's. */
static attn_mode fill_pass(engine *e, net *t) {
    int32_t text = 0, decoding = 0, same = -1, drafting = e->pass < e->o.spec, last = e->pass > e->o.spec;
    t->rows = t->outs = t->is_tree = 0;
    for (int32_t i = 0; i < e->o.batch; i++) {
        request *r = e->slot[i];
        t->q_len[i] = t->kv_len[i] = t->phase[i] = 0;
        if (!r || !r->rows) continue;
        t->phase[i] = r->cached < r->prompt_len ? ATTN_PREFILL : ATTN_DECODE;
        if (last) add_text(e, t, r);
        else if (drafting && decodes(r)) add_guess(e, t, r, e->pass - 1);
        else if (!drafting && !decodes(r)) {
            t->kv_len[i] = r->cached;
            add_rows(t, i, r->token + r->cached, r->rows, 0);
        }
        if (!decodes(r)) text++;
        else if (decoding++) same = same == t->q_len[i] ? same : 0;
        else same = t->q_len[i];
    }
    if (drafting) return e->pass ? ATTN_MODE_DRAFT_DECODE : ATTN_MODE_DRAFT_EXTEND_V2;
    if (!decoding || !last) return ATTN_MODE_EXTEND;
    return text || !same ? ATTN_MODE_MIXED : same == 1 ? ATTN_MODE_DECODE : ATTN_MODE_TARGET_VERIFY;
}

/* Plans a pass and looks its tokens up. */
static int begin_pass(engine *e, net *t) {
    attn_mode mode = fill_pass(e, t);
    if (!t->rows) return 0;
    if (attention_plan(e, t, mode, mode == ATTN_MODE_DRAFT_DECODE ? e->pass - 1 : 0)) return -1;
    e->stats.passes++;
    for (int32_t r = 0; r < t->rows; r++) {
        float *x = t->buffer[RESIDUAL] + (int64_t)r * t->m->dim;
        const float *row = matrix_row(&t->m->part[EMBEDDING], t->token[r], x);
        if (row != x) memcpy(x, row, (size_t)t->m->dim * sizeof *x);
        t->position[r] = t->meta.positions[r] + t->shift[r];
    }
    t->layer = 0;
    t->stage = MAKE_Q;
    return start_stage(e, t);
}

/* Where the text ends the model chooses the next token, and then walks down the tree while it holds what is chosen. The
   first branch has its keys in the slots, and so the logits in the bits, of plain decoding. A side branch has not: what
   it says is only a hint of the drafts to come, its first token apart, which the row before it has chosen. What is not
   accepted is not counted, and so overwritten. */
static void accept(engine *e, request *r, const float *logits) {
    int32_t vocab = e->net[0].m->vocab, at = 0;
    if (r->cached < r->prompt_len) e->stats.prompt_tokens += r->rows;
    if (!decodes(r)) r->drafted = r->cached + r->rows;
    r->cached += r->rows;
    keep_pages(e, r);
    for (int32_t i = r->outs; i > 0 && e->on_logits; i--) {
        e->on_logits(e->user, r, r->cached - i, logits + (int64_t)(r->outs - i) * vocab);
    }
    if (r->cached < r->len || !r->outs) return;
    r->steps += r->len > r->prompt_len;
    e->stats.drafts += r->nodes - 1;
    while (at < r->nodes && !r->complete) {
        const float *row = logits + (int64_t)(r->outs - 1 + at) * vocab;
        int32_t token, is_first_branch = r->depth[at] == at;
        if (is_first_branch && at && e->on_logits) e->on_logits(e->user, r, r->cached, row);
        if (is_first_branch) {
            r->cached += at > 0;
            token = append_token(e, r, row);
        } else {
            token = choose(e, r, r->len + r->hints, row);
            r->token[r->len + r->hints++] = token;
        }
        at = find_child(r, at, token);
    }
}

static void end_step(engine *e, net *t) {
    for (int32_t i = 0; i < e->o.batch; i++) {
        request *r = e->slot[i];
        if (!r || !r->rows) continue;
        accept(e, r, t->buffer[LOGITS] + (int64_t)r->first_out * t->m->vocab);
        r->rows = 0;
        if (r->complete) leave(e, r, 1);
    }
    for (int32_t lane = 0; lane < e->pool.lanes; lane++) {
        int64_t *sum = (int64_t *)&e->stats.counters[e->kind], *one = (int64_t *)&t->counters[lane];
        for (size_t i = 0; i < sizeof *t->counters / sizeof *one; i++) sum[i] += one[i];
        memset(one, 0, sizeof *t->counters);
    }
    e->stats.steps[e->kind]++;
    e->stats.rows[e->kind] += t->rows;
}

enum { NOTHING_TO_DO = 0, STEP_COMPLETE, TIME_IS_UP };

/* Works until a step is complete or now_ms() reaches the deadline (0: none); then the next call goes on. -1: e->error
   has a sentence, and the engine is of no use any more. */
int engine_step(engine *e, double deadline) {
    double start = now_ms();
    int32_t last = e->o.spec + 1, ran = 1;
    e->pool.deadline = deadline;
    if (e->pass < 0) {
        if (!schedule(e)) return NOTHING_TO_DO;
        e->pass = e->nets > 1 ? 0 : last;
    }
    while (e->pass >= 0) {
        net *t = &e->net[e->pass < last];
        ran = !t->rows && begin_pass(e, t) ? -1 : run_pass(e, t);
        if (ran <= 0) break;
        if (e->pass < e->o.spec) take_guesses(e, t);
        if (e->pass == last) end_step(e, t);
        e->pass = e->pass == last ? -1 : e->pass + 1;
        t->rows = 0;
    }
    e->stats.ms[e->kind] += now_ms() - start;
    return ran < 0 ? -1 : ran ? STEP_COMPLETE : TIME_IS_UP;
}

/* ---- opening and closing ----------------------------------------------------------------------------------------- */

options default_options(void) {
    return (options){ .batch = 4, .chunk = 256, .page = 16, .threads = 1, .kv = ATTN_F16, .top_p = 0.9f, .seed = 1,
                      .stop = { -1, -1 } };
}

void engine_close(engine *e) {
    if (!e) return;
    pool_close(&e->pool);
    for (int32_t i = 0; i < e->requests; i++) release(e->request[i]->mem);
    free(e->request);
    release(e->mem); /* e is in it */
}

static int check_options(engine *e, const model *m, const model *drafter) {
    options *o = &e->o;
    if (!o->context || o->context > m->max_len) o->context = m->max_len;
    if (o->batch < 1 || o->batch > 1024 || o->chunk < 1 || o->chunk > 1 << 16 || o->page < 0 || o->page > 1 << 16 ||
        o->pages < 0 || o->context < 1 || o->threads < 1 || o->threads > MAX_THREADS || o->spec < 0 ||
        o->spec >= MAX_NODES || (int)o->kv < ATTN_F32 || o->kv > ATTN_INT8 || !(o->temperature >= 0) ||
        !(o->top_p >= 0 && o->top_p <= 1)) {
        return fail(e->error, "an option is out of range");
    }
    if (drafter && drafter->vocab != m->vocab) {
        return fail(e->error, "the draft model has %d tokens, the model %d", (int)drafter->vocab, (int)m->vocab);
    }
    e->columns = pages_of(e, o->context + o->spec);
    if ((int64_t)e->columns * o->batch > INT32_MAX) return fail(e->error, "too many pages");
    if (!o->page || !o->pages) o->pages = e->columns * o->batch;
    e->free_pages = o->pages;
    e->most = (attn_mode_input){ .n = o->batch, .max_kv_len = o->context + o->spec };
    e->most.max_q_len = o->chunk > o->spec + 1 ? o->chunk : o->spec + 1;
    e->most.max_rows = o->chunk + (int64_t)o->batch * (o->spec + 1);
    return 0;
}

/* drafter: NULL, or a small model of the same tokens that guesses. NULL and a sentence if the options cannot work. */
engine *engine_open(const options *o, const model *m, const model *drafter, char *error) {
    arena *mem = NULL;
    engine *e = need(&mem, 1, sizeof *e);
    e->mem = mem;
    e->o = *o;
    e->pass = -1;
    e->nets = drafter && o->spec ? 2 : 1;
    int failed = check_options(e, m, drafter);
    pool_open(&e->pool, failed ? 1 : o->threads);
    if (!failed) {
        e->slot = need(&e->mem, e->o.batch, sizeof *e->slot);
        e->table = need(&e->mem, (int64_t)e->o.batch * e->columns, sizeof *e->table);
        e->page = need(&e->mem, e->o.pages, sizeof *e->page);
        e->page_token = need(&e->mem, (int64_t)e->o.pages * e->o.page, sizeof *e->page_token);
        e->candidate = need(&e->mem, m->vocab, sizeof *e->candidate);
        failed = net_open(e, &e->net[0], m) || (e->nets > 1 && net_open(e, &e->net[1], drafter));
    }
    memset(&e->stats, 0, sizeof e->stats);
    if (!failed) return e;
    memcpy(error, e->error, ERROR_BYTES);
    engine_close(e);
    return NULL;
}

#ifndef LLM_NO_MAIN

/* ---- options ----------------------------------------------------------------------------------------------------- */

enum { MAX_PROMPTS = 64 };

typedef struct program {
    options o;
    const char *model_file, *draft_file, *tokenizer_file, *prompt[MAX_PROMPTS];
    int32_t new_tokens, prompts, printed[MAX_PROMPTS]; /* printed: tokens of each text */
    float frame_ms;
    model *m, *drafter;
    tokenizer t;
    arena *mem;
    double frames, longest, progress_ms;
    char error[ERROR_BYTES];
} program;

enum { FLAG, INT, REAL, TEXT, PROMPT, PROMPT_FILE, TYPE, SKIP };
#define FIELD(name) offsetof(program, name) /* where an option goes */
static const struct {
    const char *name;
    int32_t kind;
    size_t at;
    const char *help;
} table[] = {
    { "--model", TEXT, FIELD(model_file), "FILE: a checkpoint, llama2.c .bin or .lm (models/text.lm)" },
    { "--tokenizer", TEXT, FIELD(tokenizer_file), "FILE: of a llama2.c model" },
    { "--prompt", PROMPT, 0, "TEXT: can be given several times" },
    { "--file", PROMPT_FILE, 0, "FILE: what it holds is a prompt; can be given several times" },
    { "--tokens", INT, FIELD(new_tokens), "N: generate so many for each prompt (300)" },
    { "--temperature", REAL, FIELD(o.temperature), "T: 0: always the best token (0.7)" },
    { "--top-p", REAL, FIELD(o.top_p), "P: choose among the likeliest tokens that have P together (0.9)" },
    { "--seed", INT, FIELD(o.seed), "N: of the random numbers (1)" },
    { "--batch", INT, FIELD(o.batch), "N: prompts that run at the same time (4)" },
    { "--chunk", INT, FIELD(o.chunk), "N: rows of prompts in a step (256)" },
    { "--page", INT, FIELD(o.page), "N: keys of a page (16), 0: a contiguous cache" },
    { "--pages", INT, FIELD(o.pages), "N: of the cache (0: enough for all)" },
    { "--kv", TYPE, 0, "TYPE: of the cache: f32, f16 (the default), bf16, e4m3, e5m2 or int8" },
    { "--threads", INT, FIELD(o.threads), "N: (1)" },
    { "--frame-budget-ms", REAL, FIELD(frame_ms), "T: return to the frame when its time is up" },
    { "--spec", INT, FIELD(o.spec), "N: verify N drafts a step, looked up in the text" },
    { "--tree", FLAG, FIELD(o.tree), "drafts are several continuations" },
    { "--draft", TEXT, FIELD(draft_file), "FILE: a small model drafts instead, of the same tokens" },
    { "--skip", SKIP, 0, "eps:E, factor:PREFILL,DECODE, lambda:L, or env: leave out keys that weigh little" }
};
enum { OPTIONS = sizeof table / sizeof *table };

/* Returns 0 if it is right. What the engine checks is not checked here. */
static int parse_value(program *p, int32_t i, const char *value) {
    static const char *const types[] = { "f32", "f16", "bf16", "e4m3", "e5m2", "int8" };
    int32_t kind = table[i].kind, type = 0;
    void *to = (char *)p + table[i].at;
    attn_skip *s = &p->o.skip;
    attn_error err;
    reader r = { value, NULL, 0, 0, p->error };
    char *end, more;
    double number = strtod(value, &end);
    int is_number = end > value && !*end && number >= 0 && number <= INT32_MAX;
    switch (kind) {
    case FLAG: return *(int32_t *)to = 1, 0;
    case INT: *(int32_t *)to = is_number ? (int32_t)number : 0; return !is_number;
    case REAL: *(float *)to = is_number ? (float)number : 0; return !is_number;
    case TEXT: *(const char **)to = value; return 0;
    case PROMPT:
    case PROMPT_FILE:
        if (p->prompts == MAX_PROMPTS || (kind == PROMPT_FILE && read_file(&r, &p->mem))) return -1;
        p->prompt[p->prompts++] = kind == PROMPT ? value : (const char *)r.data;
        return 0;
    case TYPE:
        while (type < 6 && strcmp(value, types[type])) type++;
        p->o.kv = (attn_type)type;
        return type == 6;
    default:
        if (!strcmp(value, "env")) return attn_skip_from_env(s, getenv, &err) ? fail(p->error, "%s", err.text) : 0;
        if (sscanf(value, "factor:%f,%f%c", &s->prefill, &s->decode, &more) == 2) s->mode = ATTN_SKIP_FACTOR;
        if (sscanf(value, "lambda:%f%c", &p->o.lambda, &more) == 1) s->mode = ATTN_SKIP_LAMBDA;
        if (sscanf(value, "eps:%f%c", &s->prefill, &more) == 1) s->mode = ATTN_SKIP_EPS;
        if (s->mode == ATTN_SKIP_EPS) s->decode = s->prefill;
        return !s->mode;
    }
}

static int parse(program *p, int argc, char **argv) {
    for (int a = 1; a < argc; a++) {
        const char *name = argv[a], *value = a + 1 < argc ? argv[a + 1] : "";
        int32_t i = 0;
        while (i < OPTIONS && strcmp(name, table[i].name)) i++;
        if (i < OPTIONS && table[i].kind != FLAG) a++;
        if (i == OPTIONS || a == argc || parse_value(p, i, value)) {
            return fail(p->error, "%s %s is no option; llm --help", name, value);
        }
    }
    return 0;
}

/* ---- texts and the report ---------------------------------------------------------------------------------------- */

/* What is new of a text, if it is the only one, else all of it when it is complete; how far a long prompt is. */
static void print_text(program *p, const engine *e, int32_t i) {
    const request *r = e->request[i];
    if (r->state == RUNNING && r->cached < r->prompt_len && now_ms() > p->progress_ms + 1000) {
        fprintf(stderr, "prompt %d: %d of %d tokens\n", (int)i + 1, (int)r->cached, (int)r->prompt_len);
        p->progress_ms = now_ms();
    }
    if ((p->prompts > 1 && r->state != DONE) || p->printed[i] == r->len) return;
    if (p->prompts > 1) printf("---- %d\n", (int)i + 1);
    for (int32_t n = p->printed[i] ? p->printed[i] : 1; n < r->len; n++) { /* token 0 is no text */
        int ends = n >= r->prompt_len && (r->token[n] == e->o.stop[0] || r->token[n] == e->o.stop[1]);
        if (!ends) tokenizer_print(&p->t, r->token[n], n == 1, stdout);
    }
    p->printed[i] = r->len;
    if (r->state == DONE) printf("\n");
    fflush(stdout);
}

/* What attn.h chose for the classes of layers, from the first two lines of its explanation. */
static void print_classes(const net *t) {
    for (int32_t c = 0; c < t->class_count; c++) {
        char text[2000];
        attn_plan_explain(&t->classes[c].plan, text, sizeof text);
        const char *layer = strchr(text, '\n') + 1;
        printf("  %.*s; layers", (int)strcspn(text, ","), text);
        for (int32_t l = 0; l < t->m->layers; l++) {
            if (t->class_of[l] == c) printf(" %d", (int)l);
        }
        printf("; %.*s\n", (int)strcspn(layer, "\n"), layer);
    }
}

static double part(double a, double of) {
    return of > 0 ? a / of : 0;
}

static void report(const program *p, const engine *e) {
    const stats *s = &e->stats;
    double ms = s->ms[0] + s->ms[1], steps = 0;
    for (int32_t i = 0; i < e->requests; i++) steps += e->request[i]->steps;
    printf("\n%s: %.1f MB, %d layers, attention by\n", p->model_file, 1e-6 * (double)p->m->bytes, (int)p->m->layers);
    for (int32_t n = 0; n < e->nets; n++) print_classes(&e->net[n]);
    printf("%d prompts of %lld tokens, %lld more found in shared pages; %lld tokens generated, %.0f in a second\n"
           "%lld steps with prompts, %.0f rows in a second; %lld without, %.0f rows in a second; %lld sent back\n"
           "%.2f s, %.1f %% of it in attention, %.2f %% in planning, %.1f plans a pass\n",
           (int)e->requests, (long long)s->prompt_tokens, (long long)s->shared_tokens, (long long)s->tokens,
           part(1e3 * (double)s->tokens, ms), (long long)s->steps[0], part(1e3 * (double)s->rows[0], s->ms[0]),
           (long long)s->steps[1], part(1e3 * (double)s->rows[1], s->ms[1]), (long long)s->sent_back, 1e-3 * ms,
           100 * part(s->attention_ms, ms), 100 * part(s->plan_ms, ms), part((double)s->plans, (double)s->passes));
    if (e->o.spec) { /* the first token of a request comes from its prompt */
        printf("speculation: %.2f tokens in a step of a request, %lld drafts verified\n",
               part((double)(s->tokens - e->requests), steps), (long long)s->drafts);
    }
    for (int i = 0; i < 2; i++) {
        double tiles = (double)s->counters[i].tiles;
        if (tiles <= 0) continue;
        printf("%s: %.1f %% of %.0f tiles skipped, largest certificate %.2g; %.1f %% had to run dense\n",
               i ? "decode" : "prefill", 100 * (double)s->counters[i].v_skipped / tiles, tiles,
               (double)s->certificate[i], 100 * (double)s->counters[i].dense_tiles / tiles);
    }
    if (p->frames <= 0) return;
    printf("%.0f frames of %g ms, the longest took %.1f ms\n", p->frames, (double)p->frame_ms, p->longest);
}

/* ---- main -------------------------------------------------------------------------------------------------------- */

static int prepare(program *p) {
    p->m = model_load(p->model_file, p->error);
    if (p->m && p->draft_file) p->drafter = model_load(p->draft_file, p->error);
    if (*p->error || tokenizer_load(&p->t, p->tokenizer_file, p->m->vocab, p->error)) return -1;
    if (!p->prompts) return fail(p->error, "a --prompt is missing; llm --help");
    for (int32_t i = 0; i < p->prompts; i++) { /* a text has at most as many tokens as bytes, and two more */
        int64_t context = (int64_t)strlen(p->prompt[i]) + 2 + p->new_tokens;
        if (context > p->o.context) p->o.context = context < p->m->max_len ? (int32_t)context : p->m->max_len;
    }
    memcpy(p->o.stop, p->t.stop, sizeof p->o.stop);
    if (p->drafter && !p->o.spec) p->o.spec = 5;
    if (p->frame_ms > 0) p->o.row_tile = 32;
    return 0;
}

/* Works for a step, or as long as a frame allows, until all texts are complete. Returns a number that tells texts
   apart, 0: an error. */
static uint64_t run(program *p, int is_quiet) {
    engine *e = engine_open(&p->o, p->m, p->drafter, p->error);
    uint64_t hash = 1;
    int did = STEP_COMPLETE;
    if (!e) return 0;
    for (int32_t i = 0; i < p->prompts && did > 0; i++) {
        int32_t *token = need(&p->mem, (int64_t)strlen(p->prompt[i]) + 2, sizeof *token);
        int32_t len = tokenizer_encode(&p->t, p->prompt[i], token);
        if (!engine_submit(e, token, len, p->new_tokens)) did = -1;
    }
    p->progress_ms = now_ms();
    while (did > 0) {
        double start = now_ms();
        did = engine_step(e, p->frame_ms > 0 ? start + (double)p->frame_ms : 0);
        p->longest = fmax(p->longest, now_ms() - start); /* here a game draws its frame */
        p->frames += p->frame_ms > 0;
        for (int32_t i = 0; i < e->requests && !is_quiet; i++) print_text(p, e, i);
    }
    if (did < 0) fail(p->error, "%s", e->error);
    else report(p, e);
    for (int32_t i = 0; i < e->requests; i++) {
        const request *r = e->request[i];
        for (int32_t n = 0; n < r->len; n++) hash = (hash ^ (uint64_t)r->token[n]) * 0x100000001B3u;
    }
    engine_close(e);
    return did < 0 ? 0 : hash;
}

/* Three that begin alike, so that they share pages, and others. */
#define VILLAGE "Not far from the sea lay a village by the name of Otterford. It had thirty houses, a mill and " \
                "an inn, the Silver Goose. The innkeeper was Mara Fenwick, who was patient and often cheerful. " \
                "Everybody in Otterford knew Tobias Reed, the smith, who carried a copper whistle wherever he went.\n\n"
static const char *const demo_prompts[] = {
    VILLAGE "PLAYER: Good evening, Mara. Who lives in this village?\n", VILLAGE "One evening in autumn Tobias ",
    "It was a cold night, and the old king ", "PLAYER: I am looking for work.\n", VILLAGE "Dear Mara,\n"
};

/* The texts once more, with drafts: the same, in fewer steps. That is sooner where a step costs the same for one row as
   for many, since its time goes into reading weights from memory. */
static int run_again(program *p, uint64_t hash) {
    p->o.spec = 8;
    p->o.tree = 1;
    printf("\nthe same texts, with speculation:\n");
    int is_same = run(p, 1) == hash;
    printf("same texts: %s\n", is_same ? "yes" : "NO");
    return is_same ? 0 : fail(p->error, "speculation has changed a text");
}

int main(int argc, char **argv) {
    static program p = { .model_file = "models/text.lm", .new_tokens = 300 };
    p.o = default_options();
    p.o.temperature = 0.7f;
    if (argc == 2 && !strcmp(argv[1], "--help")) {
        printf("llm [options]; without any: a demonstration, run it where models/ is\n");
        for (int32_t i = 0; i < OPTIONS; i++) printf("  %-18s %s\n", table[i].name, table[i].help);
        return 0;
    }
    if (argc == 1) p.prompts = sizeof demo_prompts / sizeof *demo_prompts;
    if (argc == 1) memcpy(p.prompt, demo_prompts, sizeof demo_prompts);
    uint64_t hash = parse(&p, argc, argv) || prepare(&p) ? 0 : run(&p, 0);
    int failed = !hash || (argc == 1 && run_again(&p, hash));
    if (failed) fprintf(stderr, "%s\n", p.error);
    tokenizer_close(&p.t);
    model_close(p.m);
    model_close(p.drafter);
    release(p.mem);
    return failed;
}
#endif
