/* llm.h - an inference engine in one header: checkpoints and tokens, requests, pages, drafts, steps; all of its
   attention through attn.h, or on an NVIDIA GPU through attn_cuda.h. Needs the C library and POSIX threads.

   In one .c file: #define ATTN_IMPLEMENTATION, then include this one; where attn.h is, cc -O2 -I. prog.c -lm -lpthread
   (and -ldl for a glibc before 2.34). llm.c is a whole program; the shortest one is

      char error[ERROR_BYTES];
      model *m = model_load("models/text.lm", error);              NULL and a sentence in error if it cannot be
      options o = default_options();
      engine *e = engine_open(&o, m, NULL, error);                 NULL: the same
      int32_t prompt[] = { 0, 'O', 'n', 'c', 'e', ' ' };           this model's tokens are bytes behind a 0
      request *r = engine_submit(e, prompt, 6, 200);               200 tokens more; any number of requests, at any time
      while (engine_step(e, 0) > 0) {}                             r->token[0 .. r->len - 1] is the text after each step
      engine_close(e);
      model_close(m);

   Other models have tokens of their own: tokenizer_load, _encode and _print. engine_step works on all requests: they
   join and leave, prompts come in chunks beside others that decode, beginnings that are equal share pages, which stay
   for later requests. engine_step(e, now_ms() + 2) returns after about 2 ms and goes on in the next call. Requests and
   stats are there to be read; default_options() are greedy, temperature > 0 draws.

   One promise runs through all of it: the text and the logits of a request are the same bits whatever happens around
   it. Rows of a prompt are computed in phase PREFILL, all others in phase DECODE. attn.h makes a row's bits follow from
   its own tokens and the phase, and here every output of a matrix is one call of dot() on one row. So neither
   batches, chunks, shared pages, threads, frames nor speculation show in a text. (While skipping they may: the rows of
   a tile decide together what is left out.)

   Contents: errors and memory, checkpoints, tokenizer, threads, the engine's state, attention (all calls of attn.h that
   plan, store keys or attend), arithmetic, a pass, pages, requests, the next token, drafts, the step, opening. */
#ifndef LLM_H
#define LLM_H

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif

#include "attn_cuda.h"

#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* ---- time, errors, memory ---------------------------------------------------------------------------------------- */

enum { ERROR_BYTES = 400 };

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
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

typedef struct matrix {
    const float *data; /* [rows][cols] */
    int32_t rows, cols;
} matrix;

/* Of a layer, in the order of both formats; then of the whole model. */
enum { NORM_ATT, WQ, WK, WV, WO, NORM_FFN, W1, W2, W3, PARTS, EMBEDDING = PARTS, NORM_FINAL, CLASSIFIER, ALL_PARTS };

typedef struct layer_weights {
    int32_t window; /* keys that a row sees, itself included; 0: all */
    int32_t rotary; /* the first elements of a head, which turn */
    matrix part[ALL_PARTS];
} layer_weights;

typedef struct model {
    int32_t dim, hidden, layers, heads, kv_heads, head_dim, vocab, max_len;
    float rope_theta, norm_eps;
    layer_weights *of_layer; /* [layers + 1]: behind the layers, the parts of the whole model */
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

/* A part of a layer, or behind the layers of the model, as f32. Without an FFN there are no parts of it. */
static void take_part(reader *r, model *m, int32_t layer, int32_t part, int32_t type) {
    static const char *const names[] = { "norm_att", "wq", "wk", "wv", "wo", "norm_ffn", "w1", "w2", "w3", "embedding",
                                         "norm_final", "classifier" };
    int32_t q = m->heads * m->head_dim, kv = m->kv_heads * m->head_dim;
    const int32_t all_rows[] = { 1, q, kv, kv, m->dim, 1, m->hidden, m->dim, m->hidden, m->vocab, 1, m->vocab };
    int32_t rows = all_rows[part], cols = part == WO ? q : part == W2 ? m->hidden : m->dim;
    int64_t count = (int64_t)rows * cols;
    char name[40] = "";
    if (part >= NORM_FFN && part <= W3 && !m->hidden) return;
    if (part == NORM_ATT || part == NORM_FFN || part == NORM_FINAL) type = F32;
    if (layer < m->layers) snprintf(name, sizeof name, "layer %d: ", layer);
    strcat(name, names[part]);
    const void *data = take(r, name, type == F32 ? 4 * count : type == F16 ? (count + 1) / 2 * 4 : (count + 3) / 4 * 4);
    const float *scale = type == INT8 ? take(r, name, 4 * (int64_t)rows) : NULL;
    if (*r->error) return;
    float *wide = type == F32 ? NULL : need(&m->mem, count, sizeof *wide);
    const float *number = wide ? wide : data;
    for (int64_t i = 0; i < count; i++) {
        if (type == F16) wide[i] = widen_f16(((const uint16_t *)data)[i]);
        if (type == INT8) wide[i] = scale[i / cols] * ((const int8_t *)data)[i];
        if (!(fabsf(number[i]) < INFINITY)) fail(r->error, "%s: a number in %s is not finite", r->path, name);
    }
    m->of_layer[layer].part[part] = (matrix){ number, rows, cols };
}

/* Both formats begin with sizes, but llama2.c's has no head_dim, and says by a negative vocab that the classifier is
   not the embedding. An .lm goes on. Returns the type of its matrices. */
static int32_t read_header(reader *r, model *m, int is_lm, int32_t *shared) {
    enum { SIZES = 10 };
    static const char *const name[SIZES] = { "dim", "hidden", "layers", "heads", "kv_heads", "head_dim", "vocab",
                                             "max_len", "type", "flags" };
    static const int32_t high[SIZES] = { 1 << 16, 1 << 18, 1024, 1024, 1024, 1 << 16, 1 << 20, 1 << 24, INT8, 1 };
    const int32_t *h = take(r, "header", is_lm ? 48 : 28);
    if (!h) return F32;
    int64_t n[SIZES] = { h[0], h[1], h[2], h[3], h[4], h[3] > 0 ? h[0] / h[3] : 0, llabs(h[5]), h[6], F32, h[5] > 0 };
    for (int i = 0; i < SIZES; i++) {
        if (is_lm) n[i] = h[i];
        if (n[i] >= (i != 1 && i < 8) && n[i] <= high[i]) continue;
        fail(r->error, "%s: %s is %lld (is this a checkpoint?)", r->path, name[i], (long long)n[i]);
        return F32;
    }
    *m = (model){ (int32_t)n[0], (int32_t)n[1], (int32_t)n[2], (int32_t)n[3], (int32_t)n[4], (int32_t)n[5],
                  (int32_t)n[6], (int32_t)n[7], .rope_theta = 10000, .norm_eps = 1e-5f, .mem = m->mem };
    if (is_lm) memcpy(&m->rope_theta, h + SIZES, 4);
    if (is_lm) memcpy(&m->norm_eps, h + SIZES + 1, 4);
    if (m->vocab < 2 || m->heads % m->kv_heads || !(m->rope_theta >= 1 && m->rope_theta < 1e30f) ||
        !(m->norm_eps >= 0 && m->norm_eps < 1e30f) || (!is_lm && (m->dim % m->heads || m->head_dim % 2))) {
        fail(r->error, "%s: the numbers of its header do not go together", r->path);
    }
    *shared = (int32_t)n[9];
    return (int32_t)n[8];
}

/* Tensors come layer by layer in an .lm, kind by kind in llama2.c's format. */
static void read_model(reader *r, model *m) {
    int is_lm = r->size >= 8 && !memcmp(r->data, "ATTNLM1\n", 8);
    r->at = is_lm ? 8 : 0;
    int32_t shared = 0, type = read_header(r, m, is_lm, &shared);
    const int32_t *kinds = is_lm ? take(r, "kinds of layers", 8 * (int64_t)m->layers) : NULL;
    if (*r->error) return;
    m->bytes = r->size;
    m->of_layer = need(&m->mem, m->layers + 1, sizeof *m->of_layer);
    for (int32_t l = 0; l < m->layers; l++) {
        layer_weights *w = &m->of_layer[l];
        w->window = is_lm ? kinds[2 * l] : 0;
        w->rotary = is_lm ? kinds[2 * l + 1] : m->head_dim;
        if (w->window >= 0 && w->rotary >= 0 && w->rotary <= m->head_dim && w->rotary % 2 == 0) continue;
        fail(r->error, "%s: layer %d: window %d, rotary %d", r->path, l, w->window, w->rotary);
    }
    take_part(r, m, m->layers, EMBEDDING, type);
    for (int32_t i = 0; i < m->layers * PARTS; i++) {
        take_part(r, m, is_lm ? i / PARTS : i % m->layers, is_lm ? i % PARTS : i / m->layers, type);
    }
    take_part(r, m, m->layers, NORM_FINAL, type);
    if (!is_lm) take(r, "RoPE table", (int64_t)m->max_len * m->head_dim * 4); /* attn_rope has its own */
    m->of_layer[m->layers].part[CLASSIFIER] = m->of_layer[m->layers].part[EMBEDDING];
    if (!shared) take_part(r, m, m->layers, CLASSIFIER, type);
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
    if (!*error) read_model(&r, m);
    if (!*error) return m;
    model_close(m);
    return NULL;
}

/* ---- tokenizer -------------------------------------------------------------------------------------------------- */

typedef struct subword {
    const char *text;
    int32_t len, token;
    float score;
} subword;

typedef struct tokenizer {
    int32_t tokens;          /* 0: tokens are bytes */
    int32_t stop[2];         /* tokens that end a text */
    subword *of_token, *sorted;
    arena *mem;
} tokenizer;

static int compare_subwords(const void *a, const void *b) {
    const subword *x = a, *y = b;
    int order = memcmp(x->text, y->text, (size_t)least(x->len, y->len));
    return order ? order : x->len - y->len;
}

static const subword *find_subword(const tokenizer *t, const char *text, int32_t len) {
    subword wanted = { text, len, 0, 0 };
    return bsearch(&wanted, t->sorted, (size_t)t->tokens, sizeof wanted, compare_subwords);
}

void tokenizer_close(tokenizer *t) {
    release(t->mem);
    memset(t, 0, sizeof *t);
}

enum { FIRST_BYTE = 3 };

/* A llama2.c tokenizer: int32 longest piece, then f32 score, int32 length and text of each token; 1 and 2 begin and end
   a text, 3 .. 258 are bytes. path NULL: tokens are bytes, of which 0 begins and ends a text. */
int tokenizer_load(tokenizer *t, const char *path, int32_t vocab, char *error) {
    reader r = { path, NULL, 0, 0, error };
    memset(t, 0, sizeof *t);
    *error = 0;
    if (!path) return vocab == 256 ? 0 : fail(error, "a model of %d tokens needs its --tokenizer", vocab);
    if (vocab < FIRST_BYTE + 256) return fail(error, "%s: not for a model of %d tokens", path, vocab);
    read_file(&r, &t->mem);
    *t = (tokenizer){ vocab, { 1, 2 }, NULL, NULL, t->mem };
    t->of_token = need(&t->mem, vocab, sizeof *t->of_token);
    t->sorted = need(&t->mem, vocab, sizeof *t->sorted);
    take(&r, "length of the longest piece", 4);
    for (int32_t i = 0; i < vocab && !*error; i++) {
        subword *p = &t->of_token[i];
        const void *score = take(&r, "score", 4), *len = take(&r, "length", 4);
        if (score) memcpy(&p->score, score, 4);
        if (len) memcpy(&p->len, len, 4);
        if (!(fabsf(p->score) <= 1e30f) || p->len < 0) fail(error, "%s: token %d cannot be", path, i);
        p->token = i;
        p->text = take(&r, "piece", p->len);
        t->sorted[i] = *p;
    }
    if (r.at < r.size) fail(error, "%s: has more than the %d tokens of the model", path, vocab);
    if (*error) tokenizer_close(t);
    else qsort(t->sorted, (size_t)vocab, sizeof *t->sorted, compare_subwords);
    return *error ? -1 : 0;
}

static int is_byte(int32_t token) {
    return token >= FIRST_BYTE && token < FIRST_BYTE + 256;
}

/* The score of symbols i and i + 1 as one. Symbols lie behind each other in a text; bytes stay alone. */
static void rate_symbol(const tokenizer *t, subword *s, int32_t n, int32_t i) {
    int can_join = i >= 0 && i + 1 < n && !is_byte(s[i].token) && !is_byte(s[i + 1].token);
    const subword *joined = can_join ? find_subword(t, s[i].text, s[i].len + s[i + 1].len) : NULL;
    if (i >= 0) s[i].score = joined ? joined->score : -2e30f;
}

/* Byte-pair encoding: neighbours become one symbol, best score first, until no two of them make a token. */
static int32_t merge_symbols(const tokenizer *t, subword *s, int32_t n) {
    for (int32_t i = 0; i < n; i++) rate_symbol(t, s, n, i);
    for (;;) {
        int32_t best = 0;
        for (int32_t i = 1; i < n; i++) {
            if (s[i].score > s[best].score) best = i;
        }
        if (n < 2 || s[best].score < -1e30f) return n;
        s[best].len += s[best + 1].len;
        s[best].token = find_subword(t, s[best].text, s[best].len)->token;
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
    subword *symbols = need(&mem, len + 2, sizeof *symbols);
    if (len) snprintf(source, (size_t)len + 2, " %s", text);
    for (const char *p = source, *end; *p; p = end) {
        end = p + 1; /* of a character in UTF-8; one that is no token becomes its bytes */
        while (p > source && (*end & 0xC0) == 0x80 && end < p + 4) end++;
        const subword *found = find_subword(t, p, (int32_t)(end - p));
        if (found) symbols[n++] = (subword){ p, found->len, found->token, 0 };
        for (; !found && p < end; p++) symbols[n++] = (subword){ p, 1, FIRST_BYTE + (unsigned char)*p, 0 };
    }
    n = merge_symbols(t, symbols, n);
    for (int32_t i = 0; i < n; i++) tokens[i + 1] = symbols[i].token;
    release(mem);
    return n + 1;
}

/* first: the text begins with this token, and the space before it is not part of it. */
void tokenizer_print(const tokenizer *t, int32_t token, int first, FILE *file) {
    if (!t->tokens || is_byte(token)) {
        fputc(t->tokens ? token - FIRST_BYTE : token, file);
    } else {
        const subword *p = &t->of_token[token];
        int32_t skip = first && p->len && p->text[0] == ' ';
        fwrite(p->text + skip, 1, (size_t)(p->len - skip), file);
    }
}

/* ---- threads: tasks of one job, pulled by all lanes until none is left or the time is up ------------------------- */

enum { MAX_THREADS = 256 };

typedef struct pool {
    void (*task)(void *context, int32_t index, int32_t lane); /* the job: tasks 0 .. count - 1, */
    void *context;
    int32_t next, count;         /* of which these are left */
    int32_t is_large, is_open;   /* worth waking threads; they may pull tasks now */
    int32_t lanes, busy, started, quit; /* this thread is lane 0 */
    double deadline;             /* in ms as now_ms; 0: none */
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    pthread_t thread[MAX_THREADS];
} pool;

static int is_late(const pool *p) {
    return p->deadline > 0 && now_ms() >= p->deadline;
}

/* With the mutex held, and a task left. */
static void pull_tasks(pool *p, int32_t lane) {
    p->busy++;
    do {
        int32_t index = p->next++;
        pthread_mutex_unlock(&p->mutex);
        p->task(p->context, index, lane);
        pthread_mutex_lock(&p->mutex);
    } while (p->next < p->count && !is_late(p));
    if (--p->busy == 0) pthread_cond_broadcast(&p->changed);
}

static void *serve_pool(void *argument) {
    pool *p = argument;
    pthread_mutex_lock(&p->mutex);
    for (int32_t lane = ++p->started; !p->quit;) {
        if (p->is_open && p->next < p->count && !is_late(p)) pull_tasks(p, lane);
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

/* work: multiply-adds, roughly. */
static void set_job(pool *p, void (*task)(void *, int32_t, int32_t), void *context, int32_t count, int64_t work) {
    p->task = task;
    p->context = context;
    p->next = 0;
    p->count = count;
    p->is_large = work > 200000;
}

/* Runs tasks of the job, at least one if any is left; returns 1 when all are done, 0 when the time is up before. */
static int run_job(pool *p) {
    pthread_mutex_lock(&p->mutex);
    p->is_open = p->is_large && p->lanes > 1;
    if (p->is_open) pthread_cond_broadcast(&p->changed);
    if (p->next < p->count) pull_tasks(p, 0);
    while (p->busy > 0) pthread_cond_wait(&p->changed, &p->mutex);
    p->is_open = 0;
    pthread_mutex_unlock(&p->mutex);
    return p->next == p->count;
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
    attn_skip skip;              /* not LAMBDA */
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
    int32_t slot, pages, kept, lacks; /* kept: its first pages that others may share; lacks: free pages to wait for */
    int32_t cached, drafted;     /* tokens in the cache of the model, of the draft model */
    int32_t complete, hints, rows, outs, first_out; /* rows of this step, drafts apart; `outs` of them get logits */
    int32_t nodes, node[MAX_NODES], depth[MAX_NODES]; /* drafts; node 0 is the latest token */
    uint32_t bits[MAX_NODES];    /* the nodes that a node sees: those it descends from, and itself */
    int32_t shared, steps;       /* tokens found in shared pages; steps after the prompt */
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
    attn_io io;                  /* what its layers have in common */
    attn_plan plan;
    void *plan_mem;
    size_t plan_bytes;
    int32_t *table;              /* of a ring that has pages: [slot][pages of the ring] */
} layer_class;

/* What a layer does, and the classifier at the end. */
enum { MAKE_Q, MAKE_K, MAKE_V, ATTEND, MERGE, MAKE_O, MAKE_W1, MAKE_W3, MAKE_W2, CLASSIFY };

/* Rows of floats that a pass works on; up to THERE also where attention works. */
enum { QUERY, KEY, VALUE, ATTENDED, CERTIFICATE, THERE, RESIDUAL = THERE, NORMED, HIDDEN, LOGITS, BUFFERS };

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
    float *buffer[BUFFERS], *buffer_there[THERE];
    int32_t width[BUFFERS], has_avx2, rows, outs, stage_rows, is_tree, tree_words;
    int32_t *token, *shift, *position, *out_row; /* [row]; shift: a node's depth less its number */
    uint32_t *tree;
    int32_t *q_len, *kv_len, *phase, *seq_lens, *batch; /* [slot]; batch: [3][slot] */
    int32_t *position_there, *batch_there;
    struct device_block *on_device;
    int32_t layer, stage;
} net;

typedef struct candidate {
    float p;
    int32_t token;
} candidate;

/* [0]: steps with rows of prompts, [1]: without */
typedef struct stats {
    long long steps[2], rows[2], passes, plans, prompt_tokens, shared_tokens, tokens, drafts;
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
    /* Hooks, or NULL. Logits: of each row that stays, in order. Attention: that of layer t->layer is complete; its
       caches are in t->io[t->layer], of a device if options.gpu is set. */
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
    size_t bytes = (uint64_t)count < SIZE_MAX / 2 / (size + 1) ? (size_t)count * size : SIZE_MAX / 2;
    *b = (device_block){ t->on_device, attn_cuda_alloc(e->o.gpu, bytes + 1, &err), here, bytes }; /* none is empty */
    t->on_device = b;
    if (!b->there) fail(e->error, "%lld * %zu bytes: %s", (long long)count, size, err.text);
    return b->there;
}

/* The class of layers with a window, which is made if there is none yet. common: what all layers have in common. */
static int32_t class_of_window(engine *e, net *t, const attn_io *common, int32_t window) {
    int32_t n = 0, unit = e->o.page ? e->o.page : 1;
    while (n < t->class_count && t->classes[n].layer.window_left != window) n++;
    if (n < t->class_count) return n;
    layer_class *c = &t->classes[t->class_count++];
    c->layer = (attn_layer){ .heads = t->m->heads, .kv_heads = t->m->kv_heads, .head_dim = t->m->head_dim,
                             .kv_type = e->o.kv, .page_size = e->o.page, .window_left = window,
                             .row_tile = e->o.row_tile, .skip = e->o.skip, .isa = (int32_t)attn_isa_detect() };
    if (e->o.gpu) attn_cuda_geometry(e->o.gpu, &c->layer, NULL);
    if (e->o.kv == ATTN_INT8) c->layer.scale_kind = ATTN_SCALE_PER_KEY;
    c->io = *common;
    /* A ring holds the rows of a step and what the first one sees, in whole pages wherever they begin. */
    if (window) c->layer.ring = (window + e->most.max_q_len + 2 * unit - 3) / unit * unit;
    if (!window || !e->o.page) return n;
    c->io.page_table_row = c->layer.ring / unit;
    c->table = need(&e->mem, e->o.batch * c->io.page_table_row, sizeof *c->table);
    c->io.page_table = need_there(e, t, c->table, e->o.batch * c->io.page_table_row, sizeof *c->table);
    return n;
}

/* A layer's keys and values. */
static void open_cache(engine *e, net *t, const layer_class *c, attn_io *io) {
    static const size_t bytes[] = { 4, 2, 2, 1, 1, 1 };
    int64_t slots = c->layer.ring ? c->layer.ring : e->most.max_kv_len, width = t->width[KEY];
    int64_t keys = e->o.page ? (int64_t)e->o.pages * e->o.page : e->o.batch * slots;
    *io = c->io;
    io->k = need_there(e, t, NULL, keys * width, bytes[e->o.kv]);
    io->v = need_there(e, t, NULL, keys * width, bytes[e->o.kv]);
    if (e->o.kv == ATTN_INT8) io->k_scale = need_there(e, t, NULL, keys * t->m->kv_heads, sizeof *io->k_scale);
    if (e->o.kv == ATTN_INT8) io->v_scale = need_there(e, t, NULL, keys * t->m->kv_heads, sizeof *io->v_scale);
    if (!e->o.page) io->k_page = io->v_page = slots * width;
}

/* The columns of a ring are the latest pages of the request: windowed layers use the pages that all layers have, and so
   may share them. */
static void point_ring(const engine *e, const net *t, const layer_class *c) {
    int32_t columns = (int32_t)c->io.page_table_row;
    for (int32_t i = 0; i < e->o.batch && c->table; i++) {
        int32_t last = (t->kv_len[i] - 1) / e->o.page;
        for (int32_t p = last < columns ? 0 : last - columns + 1; p <= last; p++) {
            c->table[(int64_t)i * columns + p % columns] = e->table[(int64_t)i * e->columns + p];
        }
    }
}

static int plan_class(engine *e, net *t, layer_class *c, const attn_batch *batch, attn_error *err) {
    attn_cuda *gpu = e->o.gpu;
    c->layer.mask = t->is_tree ? ATTN_TREE : ATTN_CAUSAL;
    size_t bytes = attn_plan_bytes(batch, &c->layer);
    if (bytes > c->plan_bytes) c->plan_mem = need_there(e, t, NULL, 1, c->plan_bytes = bytes);
    int failed = gpu ? attn_cuda_plan_make(gpu, &c->plan, batch, &c->layer, c->plan_mem, c->plan_bytes, NULL, err)
                     : attn_plan_make(&c->plan, batch, &c->layer, c->plan_mem, c->plan_bytes, err);
    if (failed) return failed;
    bytes = gpu ? attn_cuda_exec_bytes(gpu, &c->plan) : attn_exec_bytes(&c->plan, t->exec.lanes);
    if (bytes > t->exec.bytes) t->exec.mem = need_there(e, t, NULL, 1, t->exec.bytes = bytes);
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
    for (int i = 0; i < THERE; i++) {
        t->buffer_there[i] = e->o.gpu ? need_there(e, t, NULL, rows * t->width[i], sizeof(float)) : t->buffer[i];
    }
    t->batch_there = need_there(e, t, t->batch, 3 * slots, sizeof *t->batch);
    t->position_there = need_there(e, t, t->position, rows, sizeof *t->position);
    attn_io io = { .q = t->buffer_there[QUERY], .o = t->buffer_there[ATTENDED],
                   .certificate = t->buffer_there[CERTIFICATE], .page_table_row = e->columns, .pages = e->o.pages };
    io.page_table = need_there(e, t, e->table, slots * e->columns, sizeof *e->table);
    io.tree = need_there(e, t, t->tree, rows * t->tree_words, sizeof *t->tree);
    io.counters = need_there(e, t, t->counters, 1, sizeof *t->counters);
    t->classes = need(&e->mem, m->layers, sizeof *t->classes);
    t->class_of = need(&e->mem, m->layers, sizeof *t->class_of);
    t->io = need(&e->mem, m->layers, sizeof *t->io);
    for (int32_t l = 0; l < m->layers; l++) { /* a ring has bounds */
        t->class_of[l] = class_of_window(e, t, &io, least(m->of_layer[l].window, e->most.max_kv_len));
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

/* Turns q and k and stores k and v. On the CPU the tasks, which then follow, do the rest. */
static int attention_begin(engine *e, net *t) {
    const layer_class *c = class_at(t);
    const attn_io *io = &t->io[t->layer];
    attn_rope_input q = { .x = t->buffer_there[QUERY], .rows = t->rows, .heads = t->m->heads,
                          .head_dim = t->m->head_dim, .rotary_dim = t->m->of_layer[t->layer].rotary, .interleaved = 1,
                          .positions = t->position_there, .base = t->m->rope_theta };
    attn_rope_input k = q;
    attn_error err;
    k.x = t->buffer_there[KEY];
    k.heads = t->m->kv_heads;
    int failed = e->o.gpu ? attend_on_device(e, t, &q, &k, &err)
                          : (q.rotary_dim && (attn_rope(&q, &err) || attn_rope(&k, &err))) ||
                                attn_append(&c->plan, &c->layer, io, k.x, t->buffer_there[VALUE], &err) ||
                                attn_check(&c->plan, &c->layer, io, &t->exec, &err);
    return failed ? fail(e->error, "layer %d: %s", t->layer, err.text) : 0;
}

static void attention_task(void *context, int32_t index, int32_t lane) {
    const net *t = context;
    attn_task(&class_at(t)->plan, &t->io[t->layer], &t->exec, (attn_stage)(t->stage - ATTEND), index, lane);
}

/* What attention_begin has left to do. */
static void attention_job(engine *e, net *t) {
    const attn_plan *plan = &class_at(t)->plan;
    int32_t tasks = e->o.gpu ? 0 : attn_task_count(plan, (attn_stage)(t->stage - ATTEND));
    set_job(&e->pool, attention_task, t, tasks, t->stage == ATTEND ? 2 * t->m->head_dim * plan->work : 0);
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

/* y = x / rms(x) * weight */
static void normalise(const float *x, const float *w, int32_t n, float eps, float *y) {
    double sum = 0;
    for (int32_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    float scale = (float)(1 / sqrt(sum / n + eps));
    for (int32_t i = 0; i < n; i++) y[i] = x[i] * scale * w[i];
}

/* ---- a pass: rows through all layers, as jobs that can stop between any two tasks -------------------------------- */

enum { OUTPUTS = 16 };     /* of a matrix product: one task */
enum { SET, ADD, GATE };   /* y = wx, y = y + wx, y = silu(y) * wx */

/* x += wo attention(rope(wq n), rope(wk n), wv n); x += w2 (silu(w1 n) * w3 n); logits = classifier n; n = norm(x) */
static const struct {
    int32_t norm, weights, from, to, use; /* norm -1: none */
} stages[] = {
    [MAKE_Q] = { NORM_ATT, WQ, NORMED, QUERY, SET },  [MAKE_K] = { -1, WK, NORMED, KEY, SET },
    [MAKE_V] = { -1, WV, NORMED, VALUE, SET },        [ATTEND] = { -1, 0, 0, 0, 0 },
    [MERGE] = { -1, 0, 0, 0, 0 },                     [MAKE_O] = { -1, WO, ATTENDED, RESIDUAL, ADD },
    [MAKE_W1] = { NORM_FFN, W1, NORMED, HIDDEN, SET }, [MAKE_W3] = { -1, W3, NORMED, HIDDEN, GATE },
    [MAKE_W2] = { -1, W2, HIDDEN, RESIDUAL, ADD },    [CLASSIFY] = { NORM_FINAL, CLASSIFIER, NORMED, LOGITS, SET }
};

/* Some outputs for all rows. */
static void product_task(void *context, int32_t index, int32_t lane) {
    const net *t = context;
    (void)lane;
    const matrix *w = &t->m->of_layer[t->layer].part[stages[t->stage].weights];
    int32_t first = index * OUTPUTS, count = least(OUTPUTS, w->rows - first), use = stages[t->stage].use;
    float (*dot_of)(const float *, const float *, int32_t) = t->has_avx2 ? dot_avx2 : dot_plain;
    for (int64_t r = 0; r < t->stage_rows; r++) {
        const float *x = t->buffer[stages[t->stage].from] + r * w->cols;
        float *y = t->buffer[stages[t->stage].to] + r * w->rows + first;
        for (int32_t c = 0; c < count; c++) {
            float sum = dot_of(w->data + (int64_t)(first + c) * w->cols, x, w->cols);
            y[c] = use == SET ? sum : use == ADD ? y[c] + sum : y[c] / (1 + expf(-y[c])) * sum;
        }
    }
}

/* Normalises rows where that comes first, and makes a job of the rest. */
static int start_stage(engine *e, net *t) {
    const matrix *part = t->m->of_layer[t->layer].part, *w = &part[stages[t->stage].weights];
    int32_t dim = t->m->dim, norm = stages[t->stage].norm, attends = t->stage == ATTEND || t->stage == MERGE;
    t->stage_rows = t->stage == CLASSIFY ? t->outs : t->rows;
    for (int64_t r = 0; r < t->stage_rows && norm >= 0; r++) {
        int64_t from = t->stage == CLASSIFY ? t->out_row[r] : r;
        normalise(t->buffer[RESIDUAL] + from * dim, part[norm].data, dim, t->m->norm_eps, t->buffer[NORMED] + r * dim);
    }
    if (t->stage == ATTEND && attention_begin(e, t)) return -1;
    if (t->stage == MAKE_O) attention_end(e, t);
    int64_t work = (int64_t)t->stage_rows * w->rows * w->cols;
    if (attends) attention_job(e, t);
    else set_job(&e->pool, product_task, t, (w->rows + OUTPUTS - 1) / OUTPUTS, work);
    return 0;
}

/* Goes on with a pass. 1: it is complete, 0: the time is up, -1: an error. */
static int run_pass(engine *e, net *t) {
    while (t->rows) {
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

static int net_open(engine *e, net *t, const model *m) {
    int32_t q = m->heads * m->head_dim, kv = m->kv_heads * m->head_dim, slots = e->o.batch;
    const int32_t width[BUFFERS] = { q, kv, kv, q, m->heads, m->dim, m->dim, m->hidden, m->vocab };
    int32_t **per_slot[] = { &t->q_len, &t->kv_len, &t->phase, &t->seq_lens };
    int32_t **per_row[] = { &t->token, &t->shift, &t->position, &t->out_row };
    int64_t rows = e->most.max_rows;
    t->m = m;
    for (int i = 0; i < 4; i++) *per_slot[i] = need(&e->mem, slots, sizeof(int32_t));
    for (int i = 0; i < 4; i++) *per_row[i] = need(&e->mem, rows, sizeof(int32_t));
    memcpy(t->width, width, sizeof width);
    for (int i = 0; i < BUFFERS; i++) t->buffer[i] = need(&e->mem, rows * width[i], sizeof(float));
    t->batch = need(&e->mem, 3 * (int64_t)slots, sizeof(int32_t));
    t->tree_words = e->o.tree ? (e->most.max_q_len + 31) / 32 : 0;
    t->tree = need(&e->mem, rows * t->tree_words, sizeof *t->tree);
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

static void drop_page(engine *e, int32_t p) {
    if (--e->page[p].users > 0) return;
    e->page[p].used = e->page[p].kept ? ++e->clock : 0;
    e->free_pages++;
}

/* From the last to the first. So of two kept pages of a prompt without users the later one is older and thrown away
   first: a kept page's parent is always kept. */
static void drop_pages(engine *e, request *r) {
    while (r->pages > 0) drop_page(e, table_of(e, r)[--r->pages]);
}

/* A page for new keys: an empty one, else the kept one that was used longest ago. One must be free. */
static int32_t take_page(engine *e) {
    int32_t oldest = -1;
    for (int32_t p = 0; p < e->o.pages; p++) {
        if (!e->page[p].users && (oldest < 0 || e->page[p].used < e->page[oldest].used)) oldest = p;
    }
    e->page[oldest].kept = 0;
    return use_page(e, oldest);
}

/* All pages that a request can need: those that hold the beginning of its prompt, if there are any, then others. The
   last token of the prompt is always computed, to have its logits. Returns 0 if there are not enough. */
static int reserve_pages(engine *e, request *r) {
    int32_t *table = table_of(e, r), all = pages_of(e, r->max_len + e->o.spec), p = -1;
    int32_t most = e->o.page && !r->all_logits ? (r->prompt_len - 1) / e->o.page : 0;
    while (r->pages < most && (p = find_page(e, p, r->token + r->pages * e->o.page)) >= 0) {
        table[r->pages++] = use_page(e, p);
    }
    if (all - r->pages > e->free_pages) {
        drop_pages(e, r);
        r->lacks = e->free_pages + 1;
        return 0;
    }
    r->kept = r->pages;
    r->shared = r->cached = r->drafted = r->pages * e->o.page;
    e->stats.shared_tokens += r->shared;
    while (r->pages < all) table[r->pages++] = take_page(e);
    return 1;
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
        if (e->request[i]->state != DONE) return fail(e->error, "request %d is live: shared pages stay", i);
    }
    memset(e->page, 0, (size_t)e->o.pages * sizeof *e->page);
    return 0;
}

/* ---- requests: they wait, run and leave -------------------------------------------------------------------------- */

/* A request that continues `prompt` by at most `count` tokens; NULL and e->error if it can never run. */
request *engine_submit(engine *e, const int32_t *prompt, int32_t prompt_len, int32_t count) {
    int32_t max_len = count < e->o.context - prompt_len ? prompt_len + count : e->o.context;
    *e->error = 0;
    if (prompt_len < 1 || count < 1 || prompt_len >= e->o.context) {
        fail(e->error, "a prompt of %d tokens, %d more: the context has %d", prompt_len, count, e->o.context);
    } else if (pages_of(e, max_len + e->o.spec) > e->o.pages) {
        fail(e->error, "%d tokens do not fit into %d pages", max_len, e->o.pages);
    }
    for (int32_t i = 0; i < prompt_len && !*e->error; i++) {
        if (prompt[i] < 0 || prompt[i] >= e->net[0].m->vocab) fail(e->error, "prompt[%d] is no token", i);
    }
    request **list = *e->error ? NULL : realloc(e->request, ((size_t)e->requests + 1) * sizeof *list);
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

/* Who waits joins in order, when there is a slot and all pages that it can need: nobody who runs has to give way. */
static void join(engine *e) {
    for (int32_t i = 0, slot = 0; i < e->requests; i++) {
        request *r = e->request[i];
        if (r->state != WAITING) continue;
        while (slot < e->o.batch && e->slot[slot]) slot++;
        if (slot == e->o.batch || r->lacks > e->free_pages) return;
        r->slot = slot;
        if (!reserve_pages(e, r)) return;
        r->state = RUNNING;
        e->slot[slot] = r;
    }
}

static int decodes(const request *r) {
    return r->len > r->prompt_len;
}

/* Decides on the rows of a step, apart from drafts: all that decode, and as much of the prompts, oldest first, as the
   chunk takes. Returns 0 if nobody runs. */
static int schedule(engine *e) {
    int32_t left = e->o.chunk, any = 0;
    join(e);
    e->kind = 1;
    for (int32_t i = 0; i < e->requests; i++) {
        request *r = e->request[i];
        if (r->state != RUNNING) continue;
        r->rows = decodes(r) ? 1 : least(left, r->prompt_len - r->cached);
        any |= r->rows;
        if (decodes(r) || !r->rows) continue;
        left -= r->rows;
        e->kind = 0;
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

static int compare_candidates(const void *a, const void *b) {
    const candidate *x = a, *y = b;
    return x->p != y->p ? (x->p < y->p ? 1 : -1) : x->token - y->token;
}

/* Token number `position` of a request: the best, or one of the likely ones that together have top_p. */
static int32_t choose(engine *e, const request *r, int32_t position, const float *logits) {
    int32_t vocab = e->net[0].m->vocab, best = 0, n = 0, i = 0;
    double sum = 0, kept = 0;
    for (int32_t t = 1; t < vocab; t++) best = logits[t] > logits[best] ? t : best;
    if (e->o.temperature <= 0) return best;
    for (int32_t t = 0; t < vocab; t++) {
        float p = expf((logits[t] - logits[best]) / e->o.temperature);
        sum += p;
        if (p > 1e-6f) e->candidate[n++] = (candidate){ p, t };
    }
    qsort(e->candidate, (size_t)n, sizeof *e->candidate, compare_candidates);
    while (i < n && kept < e->o.top_p * sum) kept += e->candidate[i++].p;
    double at = random_number((uint64_t)e->o.seed, r->key, (uint64_t)position) * kept;
    for (n = i, i = 0; i + 1 < n; i++) {
        at -= e->candidate[i].p;
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
    return least(e->o.tree && e->nets == 1 ? (e->o.spec + 1) / 2 : e->o.spec, r->max_len - r->len - 1);
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

/* The tree of a request that decodes: what is given, or a draft model has guessed, or hints with n-grams behind them.
   With more than one branch the step runs with the mask of a tree. */
static void draft(engine *e, request *r) {
    int32_t *path = r->token + r->len, given = r->len - r->prompt_len, most = depth_limit(e, r);
    r->node[0] = path[-1];
    if (given < r->forced_len) {
        add_path(e, r, r->forced + given, least(most, r->forced_len - given));
    } else {
        add_path(e, r, path, e->nets > 1 ? most : least(most, r->hints));
        if (e->nets == 1) draft_ngrams(e, r, most - r->hints);
    }
}

/* Guesses are drawn with the random numbers that the model will use: then both often draw the same. */
static void take_guesses(engine *e, const net *t) {
    const float *logits = t->buffer[LOGITS];
    for (int32_t i = 0; i < e->o.batch; i++) {
        request *r = e->slot[i];
        if (!t->q_len[i] || !decodes(r)) continue;
        if (e->pass == 0) r->drafted = r->len;
        r->token[r->len + e->pass] = choose(e, r, r->len + e->pass, logits);
        logits += t->m->vocab;
    }
}

/* ---- the step ---------------------------------------------------------------------------------------------------- */

/* The next rows of a slot; `outs` of them, from first_out on, get logits. A row sees those of its request up to itself;
   nodes are not in such an order. */
static void add_rows(net *t, int32_t slot, const int32_t *token, int32_t count, int32_t first_out, int32_t outs) {
    for (int32_t i = 0; i < count; i++, t->rows++) {
        int32_t j = t->q_len[slot]++;
        if (i >= first_out && i < first_out + outs) t->out_row[t->outs++] = t->rows;
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
    r->outs = r->all_logits && !decodes(r) ? r->rows : r->cached + r->rows == r->len;
    r->first_out = t->outs;
    r->nodes = 1;
    r->bits[0] = 1;
    add_rows(t, r->slot, r->token + r->cached, r->rows, r->rows - r->outs, r->outs);
    if (!decodes(r)) return;
    draft(e, r);
    add_rows(t, r->slot, r->node + 1, r->nodes - 1, 0, r->nodes - 1);
    for (int32_t j = 1, row = t->rows - r->nodes + 1; j < r->nodes; j++, row++) {
        t->shift[row] = r->depth[j] - j;
        t->is_tree |= r->depth[j] != j;
        if (e->o.tree) t->tree[(int64_t)row * t->tree_words] = r->bits[j];
    }
}

/* Of the draft model. Pass 0: it takes in what is new, a fixed number of rows of each request, of which those behind
   the new ones are filling; pass 1, 2, ..: what follows its latest guess. */
static void add_guess(const engine *e, net *t, const request *r) {
    int32_t last = r->len - 1 + e->pass;
    t->kv_len[r->slot] = e->pass ? last : r->drafted;
    if (!e->pass) add_rows(t, r->slot, r->token + r->drafted, e->o.spec + 1, last - r->drafted, 1);
    else if (e->pass < depth_limit(e, r)) add_rows(t, r->slot, r->token + last, 1, 0, 1);
}

/* The rows of a pass, and the mode that an engine would call it. Passes of a step: 0: the draft model takes in what is
   new; 1 .. spec - 1: it guesses on; spec: the model's. */
static attn_mode fill_pass(engine *e, net *t) {
    int32_t text = 0, decoding = 0, same = -1;
    t->rows = t->outs = t->is_tree = 0;
    for (int32_t i = 0; i < e->o.batch; i++) {
        request *r = e->slot[i];
        t->q_len[i] = t->kv_len[i] = t->phase[i] = 0;
        if (!r || !r->rows) continue;
        t->phase[i] = decodes(r) ? ATTN_DECODE : ATTN_PREFILL;
        t->kv_len[i] = r->cached;
        if (e->pass == e->o.spec) add_text(e, t, r);
        else if (decodes(r)) add_guess(e, t, r);
        else if (e->pass == 0) add_rows(t, i, r->token + r->cached, r->rows, 0, 0);
        if (!decodes(r)) text++;
        else if (decoding++) same = same == t->q_len[i] ? same : 0;
        else same = t->q_len[i];
    }
    if (e->pass < e->o.spec && e->pass) return ATTN_MODE_DRAFT_DECODE;
    if (text || !same) return decoding ? ATTN_MODE_MIXED : ATTN_MODE_EXTEND;
    if (e->pass < e->o.spec) return ATTN_MODE_DRAFT_EXTEND_V2;
    return same == 1 ? ATTN_MODE_DECODE : ATTN_MODE_TARGET_VERIFY;
}

/* Plans a pass and looks its tokens up. */
static int begin_pass(engine *e, net *t) {
    attn_mode mode = fill_pass(e, t);
    if (!t->rows) return 0;
    if (attention_plan(e, t, mode, mode == ATTN_MODE_DRAFT_DECODE ? e->pass - 1 : 0)) return -1;
    e->stats.passes++;
    for (int64_t r = 0, dim = t->m->dim; r < t->rows; r++) {
        const float *row = t->m->of_layer[t->m->layers].part[EMBEDDING].data + t->token[r] * dim;
        memcpy(t->buffer[RESIDUAL] + r * dim, row, (size_t)dim * sizeof *row);
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
    if (!decodes(r)) e->stats.prompt_tokens += r->rows;
    if (!decodes(r)) r->drafted = r->cached + r->rows;
    r->cached += r->rows;
    keep_pages(e, r);
    for (int32_t i = r->outs; i > 0 && e->on_logits; i--) {
        e->on_logits(e->user, r, r->cached - i, logits + (int64_t)(r->outs - i) * vocab);
    }
    if (!r->outs || r->cached < r->len) return;
    r->steps += decodes(r);
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
        if (!r->complete) continue;
        drop_pages(e, r);
        r->state = DONE;
        e->slot[i] = NULL;
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
    int32_t last = e->o.spec, ran = 1;
    e->pool.deadline = deadline;
    if (e->pass < 0) {
        if (!schedule(e)) return NOTHING_TO_DO;
        e->pass = e->nets > 1 ? 0 : last;
    }
    while (e->pass >= 0) {
        net *t = &e->net[e->pass < last];
        ran = !t->rows && begin_pass(e, t) ? -1 : run_pass(e, t);
        if (ran <= 0) break;
        if (e->pass < last) take_guesses(e, t);
        else end_step(e, t);
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
    for (int32_t n = 0; n < e->nets; n++) attention_close(e, &e->net[n]);
    for (int32_t i = 0; i < e->requests; i++) release(e->request[i]->mem);
    free(e->request);
    release(e->mem); /* e is in it */
}

static int check_options(engine *e, const model *m, const model *drafter) {
    options *o = &e->o;
    if (!o->context || o->context > m->max_len) o->context = m->max_len;
    if (o->batch < 1 || o->batch > 1024 || o->chunk < 1 || o->chunk > 1 << 16 || o->page < 0 || o->page > 1 << 16 ||
        o->pages < 0 || o->context < 1 || o->threads < 1 || o->threads > MAX_THREADS || o->spec < 0 ||
        o->spec >= MAX_NODES || (int)o->kv < ATTN_F32 || o->kv > ATTN_INT8 || o->skip.mode == ATTN_SKIP_LAMBDA ||
        !(o->temperature >= 0) || !(o->top_p >= 0 && o->top_p <= 1)) {
        return fail(e->error, "an option is out of range");
    }
    if (drafter && drafter->vocab != m->vocab) {
        return fail(e->error, "the draft model has %d tokens, the model %d", drafter->vocab, m->vocab);
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

#endif
