/* llm.c - a complete small inference program: text from a language model, all of its attention through attn.h.

   Shows   two checkpoint formats (llama2.c's .bin with its tokenizer, and .lm); continuous batching over one paged KV
           cache, with chunked prompts and shared beginnings; windowed layers in ring caches; KV of 32, 16 or 8 bits;
           speculation by looking up n-grams or with a draft model, in chains and trees; threads; a budget for each
           frame; skip-softmax; a report.
   Order   files, tokens, threads and arithmetic; the engine's state; attention, the one place where plans, caches and
           masks are made and used; rows through a model; pages, requests, drafts and steps; options, report, main.
           With LLM_NO_MAIN defined it ends before the options: an engine for programs that include this file.
   Build   cc -O2 -I. examples/llm.c -o llm -lm -lpthread
   Use     llm                    continues a few texts with models/text.lm;  llm --help: the options
           llm --model stories15M.bin --tokenizer tokenizer.bin --prompt "Once upon a time"
   Result  text and a report; exit status 0, or 1 and a sentence on what is wrong.

   A request is a prompt that gets continued. engine_submit queues it, engine_step works on all of them: requests join
   and leave, prompts come in chunks beside others that decode, beginnings that are equal share pages, which stay for
   later requests, and when pages run out the youngest request waits again.

   One promise runs through all of it: the text and the logits of a request are the same bits whatever happens around
   it. Rows of a prompt are computed in phase PREFILL, all others in phase DECODE. attn.h makes a row's bits follow from
   its own tokens and the phase, and here every output of a matrix is one call of dot() on one row. So neither
   batches, chunks, shared pages, threads, frames nor speculation show in a text. (While skipping they may: the rows of
   a tile decide together what is left out.)

   The interface are the functions that are not static: default_options, engine_open, engine_submit, engine_step,
   engine_forget_done, engine_reset_prefixes, engine_close; requests and the engine's stats are there to be read. */
#ifndef _WIN32 /* there everything runs on one thread */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#include <pthread.h>
#endif

#define ATTN_IMPLEMENTATION
#include "attn.h"

#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

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
static void *need(arena **owner, size_t count, size_t size) {
    arena *a = count < SIZE_MAX / 2 / size ? (arena *)calloc(1, sizeof *a + count * size) : NULL;
    if (!a) {
        fprintf(stderr, "out of memory: %zu * %zu bytes\n", count, size);
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

/* ---- checkpoint ------------------------------------------------------------------------------------------------- */

enum { F32 = 0, F16, INT8 };
static const int32_t element_bytes[] = { 4, 2, 1 };

/* [rows][cols], inside the file's memory. */
typedef struct matrix {
    const void *data;
    const float *scale; /* INT8: of each row */
    int32_t rows, cols, type;
} matrix;

/* The parts of a layer, in the order that both formats have. */
enum { NORM_ATT = 0, WQ, WK, WV, WO, NORM_FFN, W1, W2, W3, PARTS };
static const char *const part_names[PARTS] = { "norm_att", "wq", "wk", "wv", "wo", "norm_ffn", "w1", "w2", "w3" };

typedef struct layer_weights {
    int32_t window; /* keys that a row sees, itself included; 0: all */
    int32_t rotary; /* the first elements of a head, which turn */
    matrix part[PARTS];
} layer_weights;

typedef struct model {
    int32_t dim, hidden, layers, heads, kv_heads, head_dim, vocab, max_len;
    float rope_theta, norm_eps;
    matrix embedding, classifier, norm_final;
    layer_weights *of_layer;
    int64_t bytes;
    arena *mem;
} model;

/* A file in memory, and how far it has been read. */
typedef struct reader {
    const char *path;
    unsigned char *data;
    int64_t size, at;
    char *error; /* empty: none so far */
} reader;

static void read_file(reader *r, arena **owner) {
    FILE *file = fopen(r->path, "rb");
    if (file && fseek(file, 0, SEEK_END) == 0) r->size = ftell(file);
    if (r->size <= 0 || r->size > LONG_MAX / 4) { /* a directory has any size */
        fail(r->error, "%s: cannot be read, or is empty", r->path);
    } else {
        rewind(file);
        r->data = (unsigned char *)need(owner, (size_t)r->size, 1);
        if (fread(r->data, 1, (size_t)r->size, file) != (size_t)r->size) fail(r->error, "%s: cannot be read", r->path);
    }
    if (file) fclose(file);
}

/* The next part of the file, or NULL and a sentence. layer -1: of none. */
static const void *take(reader *r, int32_t layer, const char *name, int64_t bytes) {
    char place[32] = "";
    if (*r->error) return NULL;
    if (layer >= 0) snprintf(place, sizeof place, "layer %d: ", (int)layer);
    if (bytes > r->size - r->at) {
        fail(r->error, "%s: %s%s needs %lld bytes, the file ends %lld bytes earlier", r->path, place, name,
             (long long)bytes, (long long)(bytes - (r->size - r->at)));
        return NULL;
    }
    r->at += bytes;
    return r->data + (r->at - bytes);
}

static int32_t take_int(reader *r, const char *name, int32_t low, int32_t high) {
    int32_t value = low;
    const void *from = take(r, -1, name, 4);
    if (from) memcpy(&value, from, 4);
    if (value < low || value > high) {
        fail(r->error, "%s: %s is %d, not %d .. %d", r->path, name, (int)value, (int)low, (int)high);
    }
    return value;
}

static float take_float(reader *r, const char *name, float low) {
    float value = low;
    const void *from = take(r, -1, name, 4);
    if (from) memcpy(&value, from, 4);
    if (!(value >= low && value < 1e30f)) fail(r->error, "%s: %s is %g", r->path, name, (double)value);
    return value;
}

static void check_finite(reader *r, const char *name, const void *data, int64_t count, int32_t type) {
    uint32_t bits = 0, exponent = type == F16 ? 0x7C00 : 0x7F800000;
    for (int64_t i = 0; i < count && !*r->error; i++) {
        memcpy(&bits, (const char *)data + i * element_bytes[type], (size_t)element_bytes[type]);
        if ((bits & exponent) == exponent) fail(r->error, "%s: a number in %s is not finite", r->path, name);
    }
}

static void take_matrix(reader *r, int32_t layer, const char *name, int32_t rows, int32_t cols, int32_t type,
                        matrix *m) {
    int64_t count = (int64_t)rows * cols;
    *m = (matrix){ NULL, NULL, rows, cols, type };
    m->data = take(r, layer, name, (count * element_bytes[type] + 3) / 4 * 4);
    if (type == INT8) m->scale = (const float *)take(r, layer, name, 4 * (int64_t)rows);
    if (type == INT8) check_finite(r, name, m->scale, rows, F32);
    if (type != INT8) check_finite(r, name, m->data, count, type);
}

/* Part `part` of layer `layer`. */
static void take_part(reader *r, model *m, int32_t part, int32_t layer, int32_t type) {
    int32_t q = m->heads * m->head_dim, kv = m->kv_heads * m->head_dim, is_norm = part == NORM_ATT || part == NORM_FFN;
    const int32_t rows[PARTS] = { 1, q, kv, kv, m->dim, 1, m->hidden, m->dim, m->hidden };
    int32_t cols = part == WO ? q : part == W2 ? m->hidden : m->dim;
    if (part >= NORM_FFN && !m->hidden) return;
    take_matrix(r, layer, part_names[part], rows[part], cols, is_norm ? F32 : type, &m->of_layer[layer].part[part]);
}

/* .lm, little-endian: "ATTNLM1\n"; int32 dim, hidden (0: no FFN), layers, heads, kv_heads, head_dim, vocab, max_len,
   type of the matrices (0 f32, 1 f16, 2 int8 with an f32 scale for each row behind them), flags (1: the classifier is
   the embedding); f32 rope_theta, norm_eps; int32 window, rotary of each layer; embedding [vocab][dim]; of each layer
   norm_att [dim], wq [heads * head_dim][dim], wk and wv [kv_heads * head_dim][dim], wo [dim][heads * head_dim], with an
   FFN norm_ffn [dim], w1 [hidden][dim], w2 [dim][hidden], w3 [hidden][dim]; norm_final [dim]; classifier [vocab][dim].
   Norms are f32, matrices are padded to 4 bytes. A vocabulary of 256 means bytes, of which 0 ends a text. */
static void read_lm(reader *r, model *m) {
    r->at = 8;
    m->dim = take_int(r, "dim", 1, 1 << 16);
    m->hidden = take_int(r, "hidden", 0, 1 << 18);
    m->layers = take_int(r, "layers", 1, 1024);
    m->heads = take_int(r, "heads", 1, 1024);
    m->kv_heads = take_int(r, "kv_heads", 1, 1024);
    m->head_dim = take_int(r, "head_dim", 1, 1024);
    m->vocab = take_int(r, "vocab", 2, 1 << 20);
    m->max_len = take_int(r, "max_len", 1, 1 << 24);
    int32_t type = take_int(r, "type of the matrices", F32, INT8);
    int32_t shared = take_int(r, "flags", 0, 1);
    m->rope_theta = take_float(r, "rope_theta", 1);
    m->norm_eps = take_float(r, "norm_eps", 0);
    if (!*r->error && m->heads % m->kv_heads) fail(r->error, "%s: kv_heads does not divide heads", r->path);
    if (*r->error) return;
    m->of_layer = (layer_weights *)need(&m->mem, (size_t)m->layers, sizeof *m->of_layer);
    for (int32_t l = 0; l < m->layers; l++) {
        m->of_layer[l].window = take_int(r, "window", 0, INT32_MAX);
        m->of_layer[l].rotary = take_int(r, "rotary", 0, m->head_dim);
        if (m->of_layer[l].rotary % 2) fail(r->error, "%s: layer %d: rotary is odd", r->path, (int)l);
    }
    take_matrix(r, -1, "embedding", m->vocab, m->dim, type, &m->embedding);
    for (int32_t i = 0; i < m->layers * PARTS; i++) take_part(r, m, i % PARTS, i / PARTS, type);
    take_matrix(r, -1, "norm_final", 1, m->dim, F32, &m->norm_final);
    m->classifier = m->embedding;
    if (!shared) take_matrix(r, -1, "classifier", m->vocab, m->dim, type, &m->classifier);
}

/* llama2.c, version 0: seven int32, then f32 tensors, each kind for all layers together. */
static void read_llama2c(reader *r, model *m) {
    m->dim = take_int(r, "dim (as in a llama2.c checkpoint)", 1, 1 << 16);
    m->hidden = take_int(r, "hidden_dim", 1, 1 << 18);
    m->layers = take_int(r, "n_layers", 1, 1024);
    m->heads = take_int(r, "n_heads", 1, 1024);
    m->kv_heads = take_int(r, "n_kv_heads", 1, 1024);
    m->vocab = take_int(r, "vocab_size", -(1 << 20), 1 << 20);
    m->max_len = take_int(r, "seq_len", 1, 1 << 24);
    m->rope_theta = 10000;
    m->norm_eps = 1e-5f;
    if (*r->error) return;
    int shared = m->vocab > 0;
    if (!shared) m->vocab = -m->vocab;
    m->head_dim = m->dim / m->heads;
    if (m->vocab < 2 || m->dim % m->heads || m->head_dim % 2 || m->head_dim < 2 || m->heads % m->kv_heads) {
        fail(r->error, "%s: dim %d, %d heads, %d kv heads, %d tokens do not go together", r->path, (int)m->dim,
             (int)m->heads, (int)m->kv_heads, (int)m->vocab);
        return;
    }
    m->of_layer = (layer_weights *)need(&m->mem, (size_t)m->layers, sizeof *m->of_layer);
    take_matrix(r, -1, "token_embedding", m->vocab, m->dim, F32, &m->embedding);
    for (int32_t i = 0; i < PARTS * m->layers; i++) take_part(r, m, i / m->layers, i % m->layers, F32);
    for (int32_t l = 0; l < m->layers; l++) m->of_layer[l].rotary = m->head_dim;
    take_matrix(r, -1, "rms_final", 1, m->dim, F32, &m->norm_final);
    take(r, -1, "RoPE table", (int64_t)m->max_len * m->head_dim * 4); /* attn_rope has its own */
    m->classifier = m->embedding;
    if (!shared) take_matrix(r, -1, "classifier", m->vocab, m->dim, F32, &m->classifier);
}

void model_close(model *m) {
    if (m) release(m->mem);
}

/* NULL and a sentence in error[ERROR_BYTES] if the file is not a checkpoint, whole and sound. */
model *model_load(const char *path, char *error) {
    static const uint16_t one = 1;
    arena *mem = NULL;
    model *m = (model *)need(&mem, 1, sizeof *m);
    reader r = { path, NULL, 0, 0, error };
    *error = 0;
    if (!*(const unsigned char *)&one) fail(error, "checkpoints are little-endian, this machine is not");
    read_file(&r, &mem);
    m->mem = mem;
    m->bytes = r.size;
    if (*error) r.size = 0;
    if (r.size >= 8 && memcmp(r.data, "ATTNLM1\n", 8) == 0) {
        read_lm(&r, m);
    } else {
        read_llama2c(&r, m);
    }
    if (r.at < r.size) fail(error, "%s: %lld bytes follow the last tensor", path, (long long)(r.size - r.at));
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
    const piece *x = (const piece *)a, *y = (const piece *)b;
    int order = memcmp(x->text, y->text, (size_t)least(x->len, y->len));
    return order ? order : x->len - y->len;
}

void tokenizer_close(tokenizer *t) {
    release(t->mem);
}

/* A llama2.c tokenizer: int32 longest piece, then f32 score, int32 length and text of each token; 1 and 2 begin and end
   a text, 3 .. 258 are bytes. path NULL: bytes. */
int tokenizer_load(tokenizer *t, const char *path, int32_t vocab, char *error) {
    reader r = { path, NULL, 0, 0, error };
    *t = (tokenizer){ 0, { 0, 0 }, NULL, NULL, NULL };
    *error = 0;
    if (!path) return vocab == 256 ? 0 : fail(error, "a model of %d tokens needs its --tokenizer", (int)vocab);
    read_file(&r, &t->mem);
    if (!*error && vocab < 259) fail(error, "%s: not for a model of %d tokens", path, (int)vocab);
    if (!*error) {
        *t = (tokenizer){ vocab, { 1, 2 }, NULL, NULL, t->mem };
        t->of_token = (piece *)need(&t->mem, (size_t)vocab, sizeof *t->of_token);
        t->sorted = (piece *)need(&t->mem, (size_t)vocab, sizeof *t->sorted);
        take_int(&r, "length of the longest piece", 0, INT32_MAX);
    }
    for (int32_t i = 0; i < vocab && !*error; i++) {
        piece *p = &t->of_token[i];
        p->token = i;
        p->score = take_float(&r, "score", -1e30f);
        p->len = take_int(&r, "length", 0, 1 << 16);
        p->text = (const char *)take(&r, -1, "piece", p->len);
        t->sorted[i] = *p;
    }
    if (r.at < r.size) fail(error, "%s: has more than the %d tokens of the model", path, (int)vocab);
    if (!*error) {
        qsort(t->sorted, (size_t)vocab, sizeof *t->sorted, compare_pieces);
        return 0;
    }
    tokenizer_close(t);
    *t = (tokenizer){ 0, { 0, 0 }, NULL, NULL, NULL };
    return -1;
}

/* The token that symbols s and s + 1 make together, or NULL. */
static const piece *join_symbols(const tokenizer *t, const piece *s) {
    piece joined = { s[0].text, s[0].len + s[1].len, 0, 0 };
    return (const piece *)bsearch(&joined, t->sorted, (size_t)t->tokens, sizeof joined, compare_pieces);
}

static void rate_symbol(const tokenizer *t, piece *s, int32_t n, int32_t i) {
    const piece *joined = i >= 0 && i + 1 < n ? join_symbols(t, s + i) : NULL;
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
        s[best].token = join_symbols(t, s + best)->token;
        s[best].len += s[best + 1].len;
        n--;
        memmove(s + best + 1, s + best + 2, (size_t)(n - best - 1) * sizeof *s);
        rate_symbol(t, s, n, best - 1);
        rate_symbol(t, s, n, best);
    }
}

/* Tokens of a text into `tokens`, which has room for strlen(text) + 2; returns how many. */
int32_t tokenizer_encode(const tokenizer *t, const char *text, int32_t *tokens) {
    arena *mem = NULL;
    size_t len = strlen(text);
    int32_t n = 0;
    tokens[0] = t->tokens ? 1 : 0;
    if (!t->tokens) {
        for (size_t i = 0; i < len; i++) tokens[i + 1] = (unsigned char)text[i];
        return (int32_t)len + 1;
    }
    char *source = (char *)need(&mem, len + 2, 1); /* with the space that begins every text */
    piece *symbols = (piece *)need(&mem, len + 2, sizeof *symbols);
    if (len) snprintf(source, len + 2, " %s", text);
    for (const char *p = source; *p;) {
        piece *s = &symbols[n], one = { p, 1, 0, 0 };
        while (((unsigned char)p[one.len] & 0xC0) == 0x80 && one.len < 4) one.len++;
        const piece *found = (const piece *)bsearch(&one, t->sorted, (size_t)t->tokens, sizeof one, compare_pieces);
        *s = found ? (piece){ p, one.len, found->token, 0 } : (piece){ p, 1, 3 + (unsigned char)*p, 0 };
        p += s->len;
        n++;
    }
    n = merge_symbols(t, symbols, n);
    for (int32_t i = 0; i < n; i++) tokens[i + 1] = symbols[i].token;
    release(mem);
    return n + 1;
}

/* first: the text begins with this token, and the space before it is not part of it. */
void tokenizer_print(const tokenizer *t, int32_t token, int first, FILE *file) {
    if (!t->tokens) {
        fputc(token, file);
    } else if (token >= 3 && token < 259) {
        fputc(token - 3, file);
    } else {
        const piece *p = &t->of_token[token];
        int32_t skip = first && p->len && p->text[0] == ' ';
        fwrite(p->text + skip, 1, (size_t)(p->len - skip), file);
    }
}

/* ---- threads: tasks of one job, pulled by all lanes until none is left or the time is up ------------------------- */

typedef struct job {
    void (*fn)(void *context, int32_t index, int32_t lane);
    void *context;
    int32_t next, count;
    double cost; /* multiply-adds, roughly */
} job;

typedef struct pool {
    int32_t lanes;   /* this thread is lane 0 */
    double deadline; /* in ms as now_ms; 0: none */
#ifndef _WIN32
    job *work;       /* NULL: nothing to do */
    int32_t busy, started, quit;
    pthread_mutex_t mutex;
    pthread_cond_t start, finished;
    pthread_t *thread;
#endif
} pool;

static int late(double deadline) {
    return deadline > 0 && now_ms() >= deadline;
}

#ifndef _WIN32

static const double small_job = 2e5; /* not worth waking a thread */

/* With the mutex held. */
static void pull_task(pool *p, int32_t lane) {
    job *j = p->work;
    int32_t index = j->next++;
    p->busy++;
    pthread_mutex_unlock(&p->mutex);
    j->fn(j->context, index, lane);
    pthread_mutex_lock(&p->mutex);
    if (--p->busy == 0) pthread_cond_signal(&p->finished);
}

static void *serve_pool(void *argument) {
    pool *p = (pool *)argument;
    pthread_mutex_lock(&p->mutex);
    int32_t lane = ++p->started;
    while (!p->quit) {
        if (p->work && p->work->next < p->work->count && !late(p->deadline)) {
            pull_task(p, lane);
        } else {
            pthread_cond_wait(&p->start, &p->mutex);
        }
    }
    pthread_mutex_unlock(&p->mutex);
    return NULL;
}

static void pool_open(pool *p, int32_t threads, arena **mem) {
    pthread_mutex_init(&p->mutex, NULL);
    pthread_cond_init(&p->start, NULL);
    pthread_cond_init(&p->finished, NULL);
    p->thread = (pthread_t *)need(mem, (size_t)threads, sizeof *p->thread);
    p->lanes = 1;
    while (p->lanes < threads && !pthread_create(&p->thread[p->lanes], NULL, serve_pool, p)) p->lanes++;
}

static void pool_close(pool *p) {
    pthread_mutex_lock(&p->mutex);
    p->quit = 1;
    pthread_cond_broadcast(&p->start);
    pthread_mutex_unlock(&p->mutex);
    for (int32_t i = 1; i < p->lanes; i++) pthread_join(p->thread[i], NULL);
    pthread_mutex_destroy(&p->mutex);
    pthread_cond_destroy(&p->start);
    pthread_cond_destroy(&p->finished);
}

static void run_on_all(pool *p, job *j) {
    pthread_mutex_lock(&p->mutex);
    p->work = j;
    pthread_cond_broadcast(&p->start);
    do {
        pull_task(p, 0);
    } while (j->next < j->count && !late(p->deadline));
    while (p->busy > 0) pthread_cond_wait(&p->finished, &p->mutex);
    p->work = NULL;
    pthread_mutex_unlock(&p->mutex);
}

#else

static const double small_job = 1e300; /* one thread */

static void pool_open(pool *p, int32_t threads, arena **mem) {
    (void)threads;
    (void)mem;
    p->lanes = 1;
}

static void pool_close(pool *p) {
    (void)p;
}

static void run_on_all(pool *p, job *j) {
    (void)p;
    (void)j;
}

#endif

/* Runs tasks, at least one; returns 1 when all are done, 0 when the time is up before. */
static int run_job(pool *p, job *j) {
    if (p->lanes > 1 && j->next < j->count && j->cost > small_job) {
        run_on_all(p, j);
        return j->next == j->count;
    }
    while (j->next < j->count) {
        j->fn(j->context, j->next++, 0);
        if (late(p->deadline)) break;
    }
    return j->next == j->count;
}

/* ---- arithmetic: a row's result never depends on the rows beside it ---------------------------------------------- */

#if defined(__GNUC__) || defined(__clang__)
#define NOINLINE __attribute__((noinline))
#define INLINE static inline __attribute__((always_inline))
#else
#define NOINLINE
#define INLINE static inline
#endif

INLINE float dot_of(const float *a, const float *b, int32_t n) {
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

/* Never inlined, so that the compiler has no chance to add in another order at another place. */
NOINLINE static float dot_plain(const float *a, const float *b, int32_t n) {
    return dot_of(a, b, n);
}

#if (defined(__GNUC__) || defined(__clang__)) && defined(__x86_64__)
__attribute__((noinline, target("avx2,fma"))) static float dot_avx2(const float *a, const float *b, int32_t n) {
    return dot_of(a, b, n);
}
#else
#define dot_avx2 dot_plain
#endif

typedef float (*dot_fn)(const float *a, const float *b, int32_t n);

/* Fixed counts in inner loops: then compilers use vectors without being asked for more than -O2. */
static void widen_int8(const int8_t *restrict from, float scale, float *restrict y, int32_t n) {
    int32_t i = 0;
    for (; i + 16 <= n; i += 16) {
        for (int32_t j = 0; j < 16; j++) y[i + j] = scale * (float)from[i + j];
    }
    for (; i < n; i++) y[i] = scale * (float)from[i];
}

/* 13 more bits of mantissa and a larger exponent; the factor 2^112 moves it to its place, also for small numbers. */
static void widen_f16(const uint16_t *restrict from, float *restrict y, int32_t n) {
    for (int32_t i = 0; i < n; i += 16) {
        uint32_t bits[16] = { 0 };
        float wide[16];
        int32_t count = least(16, n - i);
        for (int32_t j = 0; j < count; j++) bits[j] = from[i + j];
        for (int32_t j = 0; j < 16; j++) bits[j] = (bits[j] & 0x8000) << 16 | (bits[j] & 0x7FFF) << 13;
        memcpy(wide, bits, sizeof wide);
        for (int32_t j = 0; j < 16; j++) wide[j] *= 5192296858534827628530496329220096.0f;
        memcpy(y + i, wide, (size_t)count * sizeof *y);
    }
}

/* A row as f32, in `buffer` unless the file has it so. */
static const float *matrix_row(const matrix *m, int32_t row, float *buffer) {
    const char *data = (const char *)m->data + (int64_t)row * m->cols * element_bytes[m->type];
    if (m->type == F32) return (const float *)(const void *)data;
    if (m->type == F16) widen_f16((const uint16_t *)(const void *)data, buffer, m->cols);
    if (m->type == INT8) widen_int8((const int8_t *)data, m->scale[row], buffer, m->cols);
    return buffer;
}

/* y = x / rms(x) * weight */
NOINLINE static void normalise(const float *x, const matrix *weight, float eps, float *y) {
    const float *w = (const float *)weight->data;
    int32_t n = weight->cols;
    double sum = 0;
    for (int32_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    float scale = (float)(1 / sqrt(sum / n + (double)eps));
    for (int32_t i = 0; i < n; i++) y[i] = x[i] * scale * w[i];
}

enum { OUTPUTS = 16 }; /* of a matrix product: one task */
enum { SET, ADD, GATE }; /* y = wx, y = y + wx, y = silu(y) * wx */

/* y[row][rows of w] from x[row][cols of w] */
typedef struct product {
    const matrix *w;
    const float *x;
    float *y, *buffer; /* buffer [lane][OUTPUTS][buffer_cols] */
    int32_t rows, use, buffer_cols;
    dot_fn dot;
} product;

static void product_task(void *context, int32_t index, int32_t lane) {
    const product *p = (const product *)context;
    int32_t cols = p->w->cols, first = index * OUTPUTS, count = least(OUTPUTS, p->w->rows - first);
    float *buffer = p->buffer + (int64_t)lane * OUTPUTS * p->buffer_cols;
    const float *w[OUTPUTS];
    for (int32_t c = 0; c < count; c++) w[c] = matrix_row(p->w, first + c, buffer + c * cols);
    for (int32_t r = 0; r < p->rows; r++) {
        float *y = p->y + (int64_t)r * p->w->rows + first;
        for (int32_t c = 0; c < count; c++) {
            float sum = p->dot(w[c], p->x + (int64_t)r * cols, cols);
            y[c] = p->use == SET ? sum : p->use == ADD ? y[c] + sum : y[c] / (1 + expf(-y[c])) * sum;
        }
    }
}

enum { MAX_NODES = 32 }; /* rows of a request that speculates: they fit into one word of tree bits */

/* ---- the engine's state ------------------------------------------------------------------------------------------ */

typedef struct options {
    int32_t batch;       /* requests that run at the same time */
    int32_t chunk;       /* rows of prompts in a step */
    int32_t page;        /* keys of a page; 0: a contiguous cache, which shares nothing */
    int32_t pages;       /* 0: enough for a batch of the longest requests */
    int32_t context;     /* tokens of the longest request; 0: the model's */
    int32_t threads;
    int32_t spec, tree;  /* drafts verified in a step, below MAX_NODES; 1: as a tree */
    int32_t row_tile;    /* 0: attn.h's; 32 makes smaller tasks, for frames */
    attn_type kv;        /* ATTN_INT8: with a scale for each key */
    attn_skip skip;
    float lambda;        /* of ATTN_SKIP_LAMBDA */
    float temperature, top_p;
    uint64_t seed;
    int32_t stop[2];     /* tokens that end a text, -1: none */
} options;

/* Its tokens: the prompt, what was generated (up to len), then `hints` guesses of what comes next. */
typedef struct request {
    uint64_t key;                 /* with the seed: the random numbers it draws; its number unless set otherwise */
    int32_t *token, len, prompt_len, max_len;
    const int32_t *forced;        /* the caller's: its first tokens after the prompt, instead of sampled ones */
    int32_t forced_len;
    int32_t score_prompt;         /* 1: the tokens of the prompt are scored, too */
    double logprob;               /* sum of ln p of the scored tokens: those that were given, not chosen */
    int32_t scored;
    enum { WAITING, RUNNING, DONE } state;
    int32_t slot, pages, kept;    /* kept: its first pages that others may share */
    int32_t cached, drafted;      /* tokens in the cache of the model, of the draft model */
    int32_t complete, hints, rows, outs, first_out; /* rows of this step; the last `outs` of them get logits */
    int32_t nodes, node[MAX_NODES], depth[MAX_NODES], parent[MAX_NODES]; /* drafts; node 0 is the latest token */
    uint32_t bits[MAX_NODES];     /* the nodes that a node sees */
    int32_t guess[2][MAX_NODES];  /* of the draft model: the best token at each depth, the next best */
    int32_t shared, sent_back, steps; /* tokens found in shared pages; steps after the prompt */
    double submitted_ms, first_ms; /* first_ms: when its first token came */
    arena *mem;
} request;

/* A page of the full layers. A kept one holds a piece of a prompt, its parent the piece before. */
typedef struct page {
    int32_t users, kept, parent, child, sibling;
    int64_t used;                 /* when: the oldest is thrown away first */
    int32_t *token;               /* [page] */
    unsigned char *windowed;      /* the same keys in the windowed layers */
} page;

/* Layers with the same window: one plan a step for all of them. */
typedef struct layer_class {
    attn_layer layer;
    attn_plan plan;
    void *plan_mem[2];            /* of steps without and with a tree */
    size_t plan_bytes[2];
    int32_t slots, *table;        /* of a request in a ring or a contiguous cache; the rings' pages, which stay */
} layer_class;

enum { KEYS, VALUES, KEY_SCALES, VALUE_SCALES, CACHES };
enum { STAGE_Q, STAGE_K, STAGE_V, STAGE_ATTEND, STAGE_MERGE, STAGE_O, STAGE_W1, STAGE_W3, STAGE_W2, STAGE_LOGITS };

/* A model with its caches, and the rows that are on their way through it. */
typedef struct net {
    const model *m;
    layer_class *classes;
    int32_t class_count, *class_of;               /* [layer] */
    unsigned char *(*cache)[CACHES];              /* [layer] */
    size_t key_bytes[CACHES];                     /* of one key of one layer; 0: there is no such cache */
    attn_exec exec;
    attn_io io;
    attn_meta meta;
    void *meta_mem;
    size_t meta_bytes;
    attn_counters *counters;                      /* [lane] */
    float *x, *n, *q, *k, *v, *o, *h, *logits, *certificate, *lambda, *buffer; /* x .. certificate: [row][...] */
    int32_t buffer_cols, rows, outs, is_tree;
    int32_t *token, *shift, *position, *out_row;  /* [row]; shift: a node's depth less its number */
    uint32_t *tree;
    int32_t *q_len, *kv_len, *phase, *seq_lens, *prefix, *normal; /* [slot]; normal: [3][slot], the batch's memory */
    int32_t layer, stage;
    job job;
    product product;
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
    float certificate[2];         /* the largest of each phase */
} stats;

typedef struct engine {
    options o;
    net net[2];                   /* the model, and the draft model if there is one */
    int32_t nets;
    pool pool;
    request **request, **slot;    /* all in their order; [batch] those that run */
    int32_t requests, request_room, first; /* first: all before it are done */
    uint64_t submitted;
    page *page;
    int32_t *free_page, free_pages, idle_pages, root, columns, *table; /* idle: kept, but without a user */
    int64_t clock;
    size_t windowed_bytes;        /* of a page's keys in all windowed layers */
    enum { IDLE, DRAFTING, STEPPING, FOLLOWING } state;
    int32_t draft_step;           /* -1: the draft model takes in what is new */
    double step_ms;
    candidate *candidate;
    stats stats;
    void *user;
    /* Hooks, or NULL. Logits: of each row that stays, in order, once (a prompt that is scored and sent back: again).
       Attention: that of layer t->layer is complete; its rows and caches are in t->io. */
    void (*on_logits)(void *user, const request *r, int32_t position, const float *logits);
    void (*on_attention)(void *user, struct engine *e, const net *t);
    char error[ERROR_BYTES];
    arena *mem;
} engine;

static void *room_for(engine *e, int64_t count, size_t size) {
    return need(&e->mem, (size_t)(count > 0 ? count : 1), size);
}

/* ---- attention: all that the program knows of plans, caches and masks -------------------------------------------- */

/* What no step exceeds: memory is sized by it, once. */
static attn_mode_input capacities(const options *o) {
    attn_mode_input c = { .n = o->batch, .max_kv_len = o->context + o->spec };
    c.max_q_len = o->chunk > o->spec + 1 ? o->chunk : o->spec + 1;
    c.max_rows = o->chunk + (int64_t)o->batch * (o->spec + 1);
    return c;
}

static int class_open(engine *e, net *t, layer_class *c, int32_t window) {
    attn_mode_input most = capacities(&e->o);
    attn_batch batch;
    attn_error err;
    int32_t size = e->o.page, unit = size ? size : 1, before = window > unit ? window - 1 : unit - 1;
    c->layer = (attn_layer){ .heads = t->m->heads, .kv_heads = t->m->kv_heads, .head_dim = t->m->head_dim };
    c->layer.kv_type = e->o.kv;
    c->layer.scale_kind = e->o.kv == ATTN_INT8 ? ATTN_SCALE_PER_KEY : ATTN_SCALE_PER_TENSOR;
    c->layer.page_size = size;
    c->layer.window_left = window;
    /* A step's rows, and what their first one sees or, for keep_pages, the page that it is in. */
    if (window) c->layer.ring = (before + most.max_q_len + unit - 1) / unit * unit;
    c->layer.row_tile = e->o.row_tile;
    c->layer.skip = e->o.skip;
    c->layer.isa = (int32_t)attn_isa_detect();
    c->slots = window ? c->layer.ring : most.max_kv_len;
    for (int32_t tree = 0; tree < 2; tree++) {
        c->layer.mask = tree ? ATTN_TREE : ATTN_CAUSAL;
        if (attn_batch_from_mode(&batch, ATTN_MODE_IDLE, &most, t->normal, 3 * (size_t)most.n, &err)) break;
        c->plan_bytes[tree] = attn_plan_bytes(&batch, &c->layer);
        c->plan_mem[tree] = room_for(e, (int64_t)c->plan_bytes[tree], 1);
        if (attn_plan_make(&c->plan, &batch, &c->layer, c->plan_mem[tree], c->plan_bytes[tree], &err)) break;
        size_t bytes = attn_exec_bytes(&c->plan, t->exec.lanes);
        if (bytes > t->exec.bytes) t->exec.bytes = bytes;
    }
    if (*err.text) return fail(e->error, "attention: %s", err.text);
    t->meta_bytes = attn_meta_bytes(&batch, NULL, ATTN_META_CU_SEQLENS | ATTN_META_POSITIONS);
    if (window && size) c->table = (int32_t *)room_for(e, (int64_t)most.n * c->slots / size, sizeof *c->table);
    for (int32_t i = 0; window && size && i < most.n * (c->slots / size); i++) c->table[i] = i;
    return 0;
}

/* Classes and caches. */
static int attention_open(engine *e, net *t) {
    static const size_t bytes[] = { 4, 2, 2, 1, 1, 1 };
    const model *m = t->m;
    t->classes = (layer_class *)room_for(e, m->layers, sizeof *t->classes);
    t->class_of = (int32_t *)room_for(e, m->layers, sizeof *t->class_of);
    t->cache = (unsigned char *(*)[CACHES])room_for(e, m->layers, sizeof *t->cache);
    t->key_bytes[KEYS] = t->key_bytes[VALUES] = (size_t)m->kv_heads * (size_t)m->head_dim * bytes[e->o.kv];
    t->key_bytes[KEY_SCALES] = t->key_bytes[VALUE_SCALES] = e->o.kv == ATTN_INT8 ? (size_t)m->kv_heads * 4 : 0;
    for (int32_t l = 0; l < m->layers; l++) {
        int32_t c = 0, window = least(m->of_layer[l].window, capacities(&e->o).max_kv_len); /* a ring has bounds */
        while (c < t->class_count && t->classes[c].layer.window_left != window) c++;
        if (c == t->class_count && class_open(e, t, &t->classes[t->class_count++], window)) return -1;
        t->class_of[l] = c;
        int64_t keys = (int64_t)e->o.batch * t->classes[c].slots;
        if (!window && e->o.page) keys = (int64_t)e->o.pages * e->o.page;
        for (int32_t i = 0; i < CACHES; i++) {
            if (t->key_bytes[i]) t->cache[l][i] = (unsigned char *)room_for(e, keys, t->key_bytes[i]);
            if (window) e->windowed_bytes += t->key_bytes[i] * (size_t)e->o.page;
        }
    }
    t->exec.mem = room_for(e, (int64_t)t->exec.bytes, 1);
    t->meta_mem = room_for(e, (int64_t)t->meta_bytes, 1);
    return 0;
}

/* Between a windowed layer's ring, page `index` of a request, and the copy that stays with a shared page. */
static void copy_windowed(engine *e, int32_t slot, int32_t index, unsigned char *copy, int to_ring) {
    for (int32_t i = 0; i < e->nets * CACHES; i++) {
        net *t = &e->net[i / CACHES];
        size_t bytes = t->key_bytes[i % CACHES] * (size_t)e->o.page;
        for (int32_t l = 0; l < t->m->layers && bytes; l++) {
            const layer_class *c = &t->classes[t->class_of[l]];
            int32_t ring_pages = c->layer.ring / e->o.page;
            if (!ring_pages) continue;
            unsigned char *ring = t->cache[l][i % CACHES] + (size_t)(slot * ring_pages + index % ring_pages) * bytes;
            memcpy(to_ring ? ring : copy, to_ring ? copy : ring, bytes);
            copy += bytes;
        }
    }
}

/* One plan for each class, from the lengths of the pass. */
static int attention_plan(engine *e, net *t, attn_mode mode, int32_t draft_step) {
    double start = now_ms();
    attn_mode_input lengths = capacities(&e->o);
    attn_batch batch;
    attn_error err;
    for (int32_t i = 0; i < e->o.batch; i++) { /* what this mode's seq_lens does not count */
        int32_t before = mode == ATTN_MODE_TARGET_VERIFY ? t->q_len[i] : 0;
        if (mode == ATTN_MODE_DRAFT_DECODE) before = draft_step + 1;
        t->seq_lens[i] = t->q_len[i] ? t->kv_len[i] - before : -1;
        t->prefix[i] = t->kv_len[i] - t->q_len[i];
        if (t->q_len[i]) lengths.draft_tokens = t->q_len[i];
    }
    lengths.seq_lens = t->seq_lens;
    lengths.extend_lens = t->q_len;
    lengths.prefix_lens = t->prefix;
    lengths.phase = t->phase;
    lengths.draft_step = draft_step;
    int failed = attn_batch_from_mode(&batch, mode, &lengths, t->normal, 3 * (size_t)e->o.batch, &err) ||
                 attn_meta_make(&t->meta, &batch, NULL, ATTN_META_CU_SEQLENS | ATTN_META_POSITIONS, t->meta_mem,
                                t->meta_bytes, &err);
    for (int32_t i = 0; i < t->class_count && !failed; i++) {
        layer_class *c = &t->classes[i];
        c->layer.mask = t->is_tree ? ATTN_TREE : ATTN_CAUSAL;
        failed = attn_plan_make(&c->plan, &batch, &c->layer, c->plan_mem[t->is_tree], c->plan_bytes[t->is_tree], &err);
        e->stats.plans++;
    }
    e->stats.plan_ms += now_ms() - start;
    return failed ? fail(e->error, "plan: %s", err.text) : 0;
}

static void attention_task(void *context, int32_t index, int32_t lane) {
    const net *t = (const net *)context;
    const layer_class *c = &t->classes[t->class_of[t->layer]];
    attn_task(&c->plan, &t->io, &t->exec, t->stage == STAGE_ATTEND ? ATTN_COMPUTE : ATTN_MERGE, index, lane);
}

/* Turns q and k, stores k and v, and checks everything; the tasks come after. */
static int attention_begin(engine *e, net *t) {
    const layer_weights *b = &t->m->of_layer[t->layer];
    const layer_class *c = &t->classes[t->class_of[t->layer]];
    int64_t slots = c->slots * (int64_t)t->m->kv_heads * t->m->head_dim;
    unsigned char **cache = t->cache[t->layer];
    attn_rope_input turn = { .x = t->q, .rows = t->rows, .heads = t->m->heads, .head_dim = t->m->head_dim };
    attn_error err;
    turn.rotary_dim = b->rotary;
    turn.interleaved = 1;
    turn.positions = t->position;
    turn.base = t->m->rope_theta;
    t->io = (attn_io){ .q = t->q, .k = cache[KEYS], .v = cache[VALUES], .o = t->o, .tree = t->tree };
    t->io.k_scale = (float *)(void *)cache[KEY_SCALES];
    t->io.v_scale = (float *)(void *)cache[VALUE_SCALES];
    if (!e->o.page) t->io.k_page = t->io.v_page = slots;
    if (e->o.page) {
        t->io.page_table = c->table ? c->table : e->table;
        t->io.page_table_row = c->table ? c->slots / e->o.page : e->columns;
        t->io.pages = c->table ? e->o.batch * (c->slots / e->o.page) : e->o.pages;
    }
    if (e->o.skip.mode == ATTN_SKIP_LAMBDA) t->io.lambda = t->lambda;
    if (e->o.skip.mode) t->io.certificate = t->certificate;
    if (e->o.skip.mode) t->io.counters = t->counters;
    int failed = b->rotary && attn_rope(&turn, &err);
    turn.x = t->k;
    turn.heads = t->m->kv_heads;
    failed = failed || (b->rotary && attn_rope(&turn, &err)) ||
             attn_append(&c->plan, &c->layer, &t->io, t->k, t->v, &err) ||
             attn_check(&c->plan, &c->layer, &t->io, &t->exec, &err);
    return failed ? fail(e->error, "layer %d: %s", (int)t->layer, err.text) : 0;
}

/* What skipping has cost and saved. */
static void attention_end(engine *e, net *t) {
    if (e->on_attention) e->on_attention(e->user, e, t);
    for (int32_t i = 0; i < e->o.batch && t->io.certificate; i++) {
        float *largest = &e->stats.certificate[t->phase[i]];
        int64_t from = (int64_t)t->meta.cu_seqlens_q[i] * t->m->heads, to = from + (int64_t)t->q_len[i] * t->m->heads;
        for (; from < to; from++) {
            if (t->certificate[from] > *largest) *largest = t->certificate[from];
        }
    }
}

/* ---- a pass: rows through all layers, as jobs that can stop between any two tasks -------------------------------- */

static int net_open(engine *e, net *t, const model *m) {
    attn_mode_input most = capacities(&e->o);
    int64_t rows = most.max_rows, q = (int64_t)m->heads * m->head_dim, kv = (int64_t)m->kv_heads * m->head_dim;
    int32_t **per_slot[] = { &t->q_len, &t->kv_len, &t->phase, &t->seq_lens, &t->prefix };
    int32_t **per_row[] = { &t->token, &t->shift, &t->position, &t->out_row };
    float **wide[] = { &t->x, &t->n, &t->q, &t->o, &t->k, &t->v, &t->h, &t->logits, &t->certificate };
    const int64_t width[] = { m->dim, m->dim, q, q, kv, kv, m->hidden, m->vocab, m->heads };
    t->m = m;
    t->buffer_cols = m->hidden > m->dim ? m->hidden : m->dim;
    if (q > t->buffer_cols) t->buffer_cols = (int32_t)q;
    for (int i = 0; i < 5; i++) *per_slot[i] = (int32_t *)room_for(e, most.n, 4);
    for (int i = 0; i < 4; i++) *per_row[i] = (int32_t *)room_for(e, rows, 4);
    for (int i = 0; i < 9; i++) *wide[i] = (float *)room_for(e, rows * width[i], 4);
    t->normal = (int32_t *)room_for(e, 3 * most.n, 4);
    t->tree = (uint32_t *)room_for(e, rows * ((most.max_q_len + 31) / 32), 4);
    t->buffer = (float *)room_for(e, (int64_t)e->pool.lanes * OUTPUTS * t->buffer_cols, 4);
    t->lambda = (float *)room_for(e, most.n, 4);
    for (int32_t i = 0; i < most.n; i++) t->lambda[i] = e->o.lambda;
    t->counters = (attn_counters *)room_for(e, e->pool.lanes, sizeof *t->counters);
    t->exec.lanes = e->pool.lanes;
    return attention_open(e, t);
}

static void start_product(net *t, const matrix *w, const float *x, float *y, int32_t rows, int32_t use) {
    dot_fn dot = t->classes[0].layer.isa >= ATTN_ISA_AVX2 ? dot_avx2 : dot_plain;
    t->product = (product){ w, x, y, t->buffer, rows, use, t->buffer_cols, dot };
    t->job = (job){ product_task, &t->product, 0, (w->rows + OUTPUTS - 1) / OUTPUTS, 0 };
    t->job.cost = (double)rows * w->rows * w->cols;
    if (!rows) t->job.count = 0;
}

static void normalise_rows(net *t, const matrix *weight) {
    for (int64_t r = 0; r < t->rows; r++) normalise(t->x + r * t->m->dim, weight, t->m->norm_eps, t->n + r * t->m->dim);
}

/* x += wo attention(rope(wq n), rope(wk n), wv n); x += w2 (silu(w1 n) * w3 n); logits = classifier n; n = norm(x) */
static int start_stage(engine *e, net *t) {
    const model *m = t->m;
    const matrix *part = m->of_layer[t->layer < m->layers ? t->layer : 0].part;
    const attn_plan *plan = &t->classes[t->class_of[t->layer < m->layers ? t->layer : 0]].plan;
    if (t->stage == STAGE_Q) normalise_rows(t, &part[NORM_ATT]);
    if (t->stage == STAGE_W1) normalise_rows(t, &part[NORM_FFN]);
    if (t->stage == STAGE_O) attention_end(e, t);
    if (t->stage == STAGE_ATTEND && attention_begin(e, t)) return -1;
    switch (t->stage) {
    case STAGE_Q: start_product(t, &part[WQ], t->n, t->q, t->rows, SET); break;
    case STAGE_K: start_product(t, &part[WK], t->n, t->k, t->rows, SET); break;
    case STAGE_V: start_product(t, &part[WV], t->n, t->v, t->rows, SET); break;
    case STAGE_ATTEND:
        t->job = (job){ attention_task, t, 0, attn_task_count(plan, ATTN_COMPUTE), 2.0 * m->head_dim };
        t->job.cost *= (double)plan->work;
        break;
    case STAGE_MERGE: t->job = (job){ attention_task, t, 0, attn_task_count(plan, ATTN_MERGE), 0 }; break;
    case STAGE_O: start_product(t, &part[WO], t->o, t->x, t->rows, ADD); break;
    case STAGE_W1: start_product(t, &part[W1], t->n, t->h, t->rows, SET); break;
    case STAGE_W3: start_product(t, &part[W3], t->n, t->h, t->rows, GATE); break;
    case STAGE_W2: start_product(t, &part[W2], t->h, t->x, t->rows, ADD); break;
    default:
        for (int64_t i = 0; i < t->outs; i++) {
            normalise(t->x + (int64_t)t->out_row[i] * m->dim, &m->norm_final, m->norm_eps, t->n + i * m->dim);
        }
        start_product(t, &m->classifier, t->n, t->logits, t->outs, SET);
    }
    return 0;
}

static void clear_pass(engine *e, net *t) {
    t->rows = t->outs = t->is_tree = 0;
    for (int32_t i = 0; i < e->o.batch; i++) t->q_len[i] = t->kv_len[i] = t->phase[i] = 0;
}

/* The next row of slot `i`; the slots come in their order. */
static void add_row(net *t, int32_t i, int32_t token, int32_t shift, int wants_logits) {
    if (wants_logits) t->out_row[t->outs++] = t->rows;
    t->token[t->rows] = token;
    t->shift[t->rows++] = shift;
    t->q_len[i]++;
}

/* Plans a pass and looks its tokens up. */
static int begin_pass(engine *e, net *t, attn_mode mode, int32_t draft_step) {
    int32_t dim = t->m->dim;
    if (attention_plan(e, t, mode, draft_step)) return -1;
    e->stats.passes++;
    for (int32_t r = 0; r < t->rows; r++) {
        float *x = t->x + (int64_t)r * dim;
        t->position[r] = t->meta.positions[r] + t->shift[r];
        const float *row = matrix_row(&t->m->embedding, t->token[r], x);
        if (row != x) memcpy(x, row, (size_t)dim * sizeof *x);
    }
    t->layer = t->stage = 0;
    return start_stage(e, t);
}

/* Goes on with a pass. 1: it is complete, 0: the time is up, -1: an error. */
static int run_pass(engine *e, net *t) {
    for (;;) {
        double start = now_ms();
        int attends = t->stage == STAGE_ATTEND || t->stage == STAGE_MERGE, done = run_job(&e->pool, &t->job);
        if (attends) e->stats.attention_ms += now_ms() - start;
        if (done && t->stage == STAGE_LOGITS) return 1;
        if (done) {
            t->stage = t->stage == STAGE_O && !t->m->hidden ? STAGE_Q : t->stage == STAGE_W2 ? STAGE_Q : t->stage + 1;
            if (t->stage == STAGE_Q && ++t->layer == t->m->layers) t->stage = STAGE_LOGITS;
            start = now_ms();
            if (start_stage(e, t)) return -1;
            if (t->stage == STAGE_ATTEND) e->stats.attention_ms += now_ms() - start; /* RoPE and append */
        }
        if (late(e->pool.deadline)) return 0;
    }
}

enum {
    NGRAM_MAX = 9, /* the longest and the shortest piece of text that is looked up */
    NGRAM_MIN = 2,
    BRANCHES = 3   /* of a tree of n-grams */
};

/* ---- pages: shared by requests that begin alike ------------------------------------------------------------------ */

static int32_t *list_of(engine *e, int32_t parent) {
    return parent < 0 ? &e->root : &e->page[parent].child;
}

/* The kept page that follows `parent` (-1: begins a text) and holds these tokens, or -1. */
static int32_t find_page(engine *e, int32_t parent, const int32_t *token) {
    int32_t p = *list_of(e, parent);
    while (p >= 0 && memcmp(e->page[p].token, token, (size_t)e->o.page * sizeof *token)) p = e->page[p].sibling;
    return p;
}

static void use_page(engine *e, int32_t p) {
    if (e->page[p].users++ == 0) e->idle_pages--;
    e->page[p].used = ++e->clock;
}

static void drop_page(engine *e, int32_t p) {
    if (--e->page[p].users > 0) return;
    if (e->page[p].kept) e->idle_pages++;
    else e->free_page[e->free_pages++] = p;
}

/* A kept page without users or followers is free again. */
static void forget_page(engine *e, int32_t p) {
    int32_t *link = list_of(e, e->page[p].parent);
    while (*link != p) link = &e->page[*link].sibling;
    *link = e->page[p].sibling;
    e->page[p].kept = 0;
    e->free_page[e->free_pages++] = p;
    e->idle_pages--;
}

/* A page of its own for a request: a free one, else that of the prompt that was used longest ago; -1: there is none. */
static int32_t take_page(engine *e) {
    int32_t oldest = -1;
    for (int32_t p = 0; p < e->o.pages && !e->free_pages; p++) {
        const page *g = &e->page[p];
        if (g->kept && !g->users && g->child < 0 && (oldest < 0 || g->used < e->page[oldest].used)) oldest = p;
    }
    if (oldest >= 0) forget_page(e, oldest);
    if (!e->free_pages) return -1;
    int32_t p = e->free_page[--e->free_pages];
    e->page[p].users = 1;
    return p;
}

static int32_t *table_of(engine *e, const request *r) {
    return e->table + (int64_t)r->slot * e->columns;
}

/* A request starts behind the pages that hold the beginning of its prompt. The last token is always computed, to have
   its logits. The windowed layers get their keys from the copies: their rings are as if the prompt had passed by. */
static void share_pages(engine *e, request *r) {
    int32_t *table = table_of(e, r), most = e->o.page && !r->score_prompt ? (r->prompt_len - 1) / e->o.page : 0;
    while (r->pages < most) {
        int32_t p = find_page(e, r->pages ? table[r->pages - 1] : -1, r->token + r->pages * e->o.page);
        if (p < 0) break;
        use_page(e, p);
        copy_windowed(e, r->slot, r->pages, e->page[p].windowed, 1);
        table[r->pages++] = p;
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
            use_page(e, twin);
            drop_page(e, p);
            table[r->kept] = twin;
            continue;
        }
        page *g = &e->page[p];
        g->kept = 1;
        g->used = ++e->clock;
        g->parent = parent;
        g->child = -1;
        g->sibling = *list_of(e, parent);
        *list_of(e, parent) = p;
        memcpy(g->token, token, (size_t)size * sizeof *token);
        copy_windowed(e, r->slot, r->kept, g->windowed, 0);
    }
}

/* Forgets what is kept of prompts, so that a measurement starts cold; an error while a request is not done. */
int engine_reset_prefixes(engine *e) {
    *e->error = 0;
    for (int32_t i = e->first; i < e->requests; i++) {
        if (e->request[i]->state != DONE) return fail(e->error, "request %d is live: shared pages stay", (int)i);
    }
    e->root = -1;
    e->idle_pages = e->free_pages = 0;
    for (int32_t p = e->o.pages - 1; p >= 0; p--) {
        e->page[p].kept = e->page[p].users = 0;
        e->free_page[e->free_pages++] = p;
    }
    return 0;
}

/* ---- requests: they wait, run and leave; when pages run out the youngest waits again ----------------------------- */

static int32_t pages_of(const engine *e, int32_t keys) {
    return e->o.page ? (keys + e->o.page - 1) / e->o.page : 0;
}

/* A request that continues `prompt` by at most `count` tokens; NULL and e->error if it can never run. */
request *engine_submit(engine *e, const int32_t *prompt, int32_t prompt_len, int32_t count) {
    *e->error = 0;
    int32_t max_len = count < e->o.context - prompt_len ? prompt_len + count : e->o.context;
    if (prompt_len < 1 || count < 1 || prompt_len >= e->o.context) {
        fail(e->error, "a prompt of %d tokens and %d more, but the context has %d", (int)prompt_len, (int)count,
             (int)e->o.context);
    } else if (pages_of(e, max_len + e->o.spec) > e->o.pages && e->o.page) {
        fail(e->error, "%d tokens need %d pages, but there are %d", (int)max_len,
             (int)pages_of(e, max_len + e->o.spec), (int)e->o.pages);
    }
    for (int32_t i = 0; i < prompt_len && !*e->error; i++) {
        if (prompt[i] < 0 || prompt[i] >= e->net[0].m->vocab) fail(e->error, "prompt[%d] is no token", (int)i);
    }
    if (*e->error) return NULL;
    if (e->requests == e->request_room) {
        request **more = (request **)room_for(e, 2 * e->requests + 8, sizeof *more);
        if (e->requests) memcpy(more, e->request, (size_t)e->requests * sizeof *more);
        e->request = more;
        e->request_room = 2 * e->requests + 8;
    }
    arena *mem = NULL;
    request *r = (request *)need(&mem, 1, sizeof *r);
    r->token = (int32_t *)need(&mem, (size_t)max_len + MAX_NODES, sizeof *r->token);
    r->mem = mem;
    r->key = e->submitted++;
    memcpy(r->token, prompt, (size_t)prompt_len * sizeof *prompt);
    r->len = r->prompt_len = prompt_len;
    r->max_len = max_len;
    r->submitted_ms = now_ms();
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
    e->first = 0;
}

static void leave(engine *e, request *r, int is_done) {
    for (int32_t i = 0; i < r->pages; i++) drop_page(e, table_of(e, r)[i]);
    e->slot[r->slot] = NULL;
    r->pages = r->kept = r->cached = r->drafted = r->hints = r->rows = 0;
    r->state = is_done ? DONE : WAITING;
    if (!is_done && r->len == r->prompt_len) r->logprob = r->scored = 0; /* its prompt is scored again */
}

/* Who waits joins in order, if there is a slot, and pages for its tokens and one more for each that runs. */
static void join(engine *e) {
    int32_t slot = 0, running = 0;
    for (int32_t i = 0; i < e->o.batch; i++) running += e->slot[i] != NULL;
    for (int32_t i = e->first; i < e->requests; i++) {
        request *r = e->request[i];
        if (r->state != WAITING) continue;
        while (slot < e->o.batch && e->slot[slot]) slot++;
        if (slot == e->o.batch) return;
        if (running && e->o.page && pages_of(e, r->len + e->o.spec) + running > e->free_pages + e->idle_pages) return;
        r->state = RUNNING;
        r->slot = slot;
        e->slot[slot] = r;
        share_pages(e, r);
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

/* Decides on the rows of a step: all that decode, oldest first, and as much of the prompts as the chunk takes. The rows
   of those that decode are counted when their drafts are known. Returns 0 if nobody runs. */
static int schedule(engine *e) {
    int32_t left = e->o.chunk, any = 0;
    join(e);
    for (int32_t i = e->first; i < e->requests; i++) {
        request *r = e->request[i];
        if (r->state != RUNNING) continue;
        int32_t end = r->cached < r->prompt_len ? r->prompt_len : r->len - 1;
        int32_t rows = decodes(r) ? 1 : least(left, end - r->cached);
        if (!grow(e, r, decodes(r) ? r->len + e->o.spec : r->cached + rows)) continue;
        if (!decodes(r)) left -= rows;
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
    const candidate *x = (const candidate *)a, *y = (const candidate *)b;
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
    double at = random_number(e->o.seed, r->key, (uint64_t)position) * kept;
    for (n = i, i = 0; i + 1 < n; i++) {
        at -= (double)e->candidate[i].p;
        if (at < 0) break;
    }
    return e->candidate[i].token;
}

static void score(engine *e, request *r, int32_t token, const float *logits) {
    int32_t vocab = e->net[0].m->vocab, best = best_token(logits, vocab, -1);
    double sum = 0;
    for (int32_t t = 0; t < vocab; t++) sum += exp((double)logits[t] - (double)logits[best]);
    r->logprob += (double)logits[token] - (double)logits[best] - log(sum);
    r->scored++;
}

/* The next token follows from the right logits. Returns it; the request may be complete then. */
static int32_t append_token(engine *e, request *r, const float *logits) {
    int32_t given = r->len - r->prompt_len, is_given = given < r->forced_len;
    int32_t token = is_given ? r->forced[given] : choose(e, r, r->len, logits);
    if (is_given) score(e, r, token, logits);
    if (!given) r->first_ms = now_ms();
    r->token[r->len++] = token;
    r->hints = 0;
    e->stats.tokens++;
    r->complete = r->len == r->max_len || (!is_given && (token == e->o.stop[0] || token == e->o.stop[1]));
    return token;
}

/* ---- drafts: guesses that the model checks, all in one step ------------------------------------------------------ */

/* Adds a path from the latest token to the tree, as far as there is room; its beginning may be there already. The first
   path is one branch of nodes 1, 2, ..: node numbers equal depths in it, and nowhere else. */
static void add_path(engine *e, request *r, const int32_t *token, int32_t count) {
    for (int32_t at = 0, i = 0; i < count; i++) {
        int32_t child = 1;
        while (child < r->nodes && (r->parent[child] != at || r->node[child] != token[i])) child++;
        if (child > e->o.spec) return;
        if (child == r->nodes) {
            r->node[child] = token[i];
            r->parent[child] = at;
            r->depth[child] = r->depth[at] + 1;
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

/* What came after the latest tokens when they were seen before in this text: the longest, then the latest match. */
static void draft_ngrams(engine *e, request *r) {
    int32_t path[MAX_NODES], *tail = path + r->hints, n = r->len + r->hints, branches = 0;
    int32_t most = depth_limit(e, r) - r->hints;
    memcpy(path, r->token + r->len, (size_t)r->hints * sizeof *path);
    for (int32_t size = NGRAM_MAX; size >= NGRAM_MIN && most > 0; size--) {
        const int32_t *end = r->token + n - size;
        for (int32_t at = n - size - 1; at >= 0 && branches < (e->o.tree ? BRANCHES : 1); at--) {
            const int32_t *seen = r->token + at;
            if (*seen != *end || memcmp(seen, end, (size_t)size * sizeof *seen)) continue;
            int32_t before = r->nodes, gap = n - at - size; /* where the text ends the draft repeats itself */
            int32_t count = least(most, size);              /* a short match is no reason for a long draft */
            for (int32_t i = 0; i < count; i++) tail[i] = i < gap ? seen[size + i] : tail[i - gap];
            add_path(e, r, path, r->hints + count);
            branches += r->nodes > before;
        }
    }
}

/* The tree of a request that decodes: hints are the beginning of every path; what is given needs no guesses. With more
   than one branch the step runs with the mask of a tree. */
static void draft(engine *e, request *r) {
    int32_t path[MAX_NODES], given = r->len - r->prompt_len, most = depth_limit(e, r);
    r->nodes = 1;
    r->node[0] = r->token[r->len - 1];
    r->depth[0] = 0;
    r->bits[0] = 1;
    if (given < r->forced_len) {
        add_path(e, r, r->forced + given, least(most, r->forced_len - given));
        return;
    }
    memcpy(path, r->token + r->len, (size_t)r->hints * sizeof *path);
    add_path(e, r, path, least(most, r->hints));
    if (e->nets == 1) draft_ngrams(e, r);
    if (e->nets == 1 || most <= r->hints) return;
    memcpy(path + r->hints, r->guess[0], (size_t)(most - r->hints) * sizeof *path);
    add_path(e, r, path, most);
    for (int32_t d = r->hints; d < most && e->o.tree; d++) {
        path[d] = r->guess[1][d - r->hints];
        add_path(e, r, path, d + 1);
        path[d] = r->guess[0][d - r->hints];
    }
}

/* A pass of the draft model. Step -1: it takes in what is new, a fixed number of rows of each request, of which those
   behind the new ones are filling; steps 0, 1, ..: what follows its best guess. Returns 0 if there is nothing to do. */
static int begin_drafting(engine *e) {
    net *t = &e->net[1];
    int32_t step = e->draft_step;
    clear_pass(e, t);
    for (int32_t i = 0; i < e->o.batch; i++) {
        request *r = e->slot[i];
        if (!r || !r->rows || !decodes(r)) continue;
        int32_t known = r->len + r->hints, last = known - r->drafted - 1;
        t->phase[i] = ATTN_DECODE;
        if (step < 0) {
            for (int32_t j = 0; j <= e->o.spec; j++) {
                add_row(t, i, j <= last ? r->token[r->drafted + j] : 0, 0, j == last);
            }
            t->kv_len[i] = r->drafted + e->o.spec + 1;
        } else if (step < depth_limit(e, r) - r->hints - 1) {
            add_row(t, i, r->guess[0][step], 0, 1);
            t->kv_len[i] = known + step + 1;
        }
    }
    if (!t->rows) return 0;
    attn_mode mode = step < 0 ? ATTN_MODE_DRAFT_EXTEND_V2 : ATTN_MODE_DRAFT_DECODE;
    return begin_pass(e, t, mode, step < 0 ? 0 : step) ? -1 : 1;
}

/* Guesses are drawn with the random numbers that the model will use: then both often draw the same. */
static void take_guesses(engine *e) {
    net *t = &e->net[1];
    int32_t vocab = t->m->vocab, step = e->draft_step + 1;
    const float *logits = t->logits;
    for (int32_t i = 0; i < e->o.batch; i++) {
        request *r = e->slot[i];
        if (!t->q_len[i]) continue;
        if (step == 0) r->drafted = r->len;
        r->guess[0][step] = choose(e, r, r->len + r->hints + step, logits);
        r->guess[1][step] = best_token(logits, vocab, r->guess[0][step]);
        logits += vocab;
    }
}

/* ---- the step ---------------------------------------------------------------------------------------------------- */

/* Rows of prompts, or of what was generated before a request was sent back. */
static void add_text(net *t, request *r, int wants_logits) {
    int32_t end = r->cached + r->rows, from = r->score_prompt ? r->cached : end == r->prompt_len ? end - 1 : end;
    for (int32_t p = r->cached; p < end; p++) {
        add_row(t, r->slot, r->token[p], 0, wants_logits && p >= from && r->len == r->prompt_len);
    }
    if (wants_logits) r->outs = t->outs - r->first_out;
    t->kv_len[r->slot] = end;
    t->phase[r->slot] = r->cached < r->prompt_len ? ATTN_PREFILL : ATTN_DECODE;
}

/* Row j of a request sees its rows up to itself, or the nodes that its node descends from. */
static void fill_tree(engine *e, net *t) {
    int32_t words = (capacities(&e->o).max_q_len + 31) / 32, row = 0;
    for (int32_t i = 0; i < e->o.batch; i++) {
        for (int32_t j = 0; j < t->q_len[i]; j++, row++) {
            uint32_t *bits = t->tree + (int64_t)row * words;
            memset(bits, 0, (size_t)words * sizeof *bits);
            for (int32_t b = 0; b <= j; b++) bits[b / 32] |= 1u << (b % 32);
            if (decodes(e->slot[i])) bits[0] = e->slot[i]->bits[j];
        }
    }
}

/* The rows of all requests, and the mode that an engine would call such a step. */
static int begin_step(engine *e) {
    net *t = &e->net[0];
    int32_t prompts = 0, decoding = 0, same = -1; /* same: rows of all who decode, 0: they differ */
    clear_pass(e, t);
    for (int32_t i = 0; i < e->o.batch; i++) {
        request *r = e->slot[i];
        if (!r || !r->rows) continue;
        r->first_out = t->outs;
        if (!decodes(r)) {
            add_text(t, r, 1);
            prompts++;
            continue;
        }
        draft(e, r);
        r->rows = r->nodes;
        for (int32_t j = 0; j < r->nodes; j++) {
            add_row(t, i, r->node[j], r->depth[j] - j, 1);
            t->is_tree |= r->depth[j] != j;
        }
        t->kv_len[i] = r->cached + r->nodes;
        t->phase[i] = ATTN_DECODE;
        same = same < 0 || same == r->nodes ? r->nodes : 0;
        decoding++;
    }
    if (t->is_tree) fill_tree(e, t);
    return begin_pass(e, t, prompts && !decoding ? ATTN_MODE_EXTEND : prompts || same == 0 ? ATTN_MODE_MIXED :
                      same == 1 ? ATTN_MODE_DECODE : ATTN_MODE_TARGET_VERIFY, 0);
}

/* The draft model takes in the same prompts. */
static int begin_following(engine *e) {
    net *t = &e->net[1];
    clear_pass(e, t);
    for (int32_t i = 0; i < e->o.batch; i++) {
        request *r = e->slot[i];
        if (r && r->rows && !decodes(r)) add_text(t, r, 0);
    }
    return t->rows ? begin_pass(e, t, ATTN_MODE_MIXED, 0) ? -1 : 1 : 0;
}

/* Scores the prompt if that is wanted; its last row gives the first token. */
static void end_text(engine *e, request *r, const float *logits) {
    if (r->cached < r->prompt_len) e->stats.prompt_tokens += r->rows;
    r->cached += r->rows;
    r->drafted = r->cached;
    keep_pages(e, r);
    for (int32_t p = r->cached - r->outs; p < r->cached; p++, logits += e->net[0].m->vocab) {
        if (e->on_logits) e->on_logits(e->user, r, p, logits);
        if (p + 1 < r->prompt_len) score(e, r, r->token[p + 1], logits);
        else append_token(e, r, logits);
    }
}

/* Walks down the tree while it holds what the model chooses. The first branch has its keys in the slots, and so the
   logits in the bits, of plain decoding. A side branch has not: what it says is only a hint of the drafts to come, its
   first token apart, which the row before it has chosen. What is not accepted is not counted, and so overwritten. */
static void accept(engine *e, request *r, const float *logits) {
    int32_t at = 0, child = 0;
    r->steps++;
    e->stats.drafts += r->nodes - 1;
    for (; child < r->nodes && !r->complete; at = child) {
        const float *row = logits + (int64_t)at * e->net[0].m->vocab;
        int32_t token;
        if (r->depth[at] == at) {
            if (e->on_logits) e->on_logits(e->user, r, r->cached, row);
            r->cached++;
            token = append_token(e, r, row);
        } else {
            token = choose(e, r, r->len + r->hints, row);
            r->token[r->len + r->hints++] = token;
        }
        for (child = 1; child < r->nodes; child++) {
            if (r->parent[child] == at && r->node[child] == token) break;
        }
    }
}

static void end_step(engine *e) {
    net *t = &e->net[0];
    int kind = 1;
    for (int32_t i = 0; i < e->o.batch; i++) {
        request *r = e->slot[i];
        if (!r || !r->rows) continue;
        const float *logits = t->logits + (int64_t)r->first_out * t->m->vocab;
        if (t->phase[i] == ATTN_PREFILL) kind = 0;
        if (decodes(r)) accept(e, r, logits);
        else end_text(e, r, logits);
        r->rows = 0;
        if (r->complete) leave(e, r, 1);
    }
    while (e->first < e->requests && e->request[e->first]->state == DONE) e->first++;
    for (int32_t lane = 0; lane < e->pool.lanes; lane++) {
        int64_t *sum = (int64_t *)&e->stats.counters[kind], *one = (int64_t *)&t->counters[lane];
        for (size_t i = 0; i < sizeof *t->counters / sizeof *one; i++) sum[i] += one[i];
        memset(one, 0, sizeof *t->counters);
    }
    e->stats.steps[kind]++;
    e->stats.rows[kind] += t->rows;
    e->stats.ms[kind] += e->step_ms;
    e->step_ms = 0;
}

/* Ends what is done and begins the next pass of the step: the draft model's, the model's, and the draft model again for
   the prompts. 1: the step is complete. */
static int next_pass(engine *e) {
    int begun = 0;
    if (e->state == IDLE) e->draft_step = -1;
    if (e->state == DRAFTING) take_guesses(e);
    if (e->state == DRAFTING) e->draft_step++;
    if (e->state == STEPPING || e->state == FOLLOWING) {
        begun = e->state == STEPPING && e->nets > 1 ? begin_following(e) : 0;
        e->state = begun ? FOLLOWING : IDLE;
        if (!begun) end_step(e);
        return begun ? begun > 0 ? 0 : -1 : 1;
    }
    if (e->nets > 1) begun = begin_drafting(e);
    e->state = begun ? DRAFTING : STEPPING;
    return begun ? begun > 0 ? 0 : -1 : begin_step(e);
}

enum { NOTHING_TO_DO = 0, STEP_COMPLETE, TIME_IS_UP };

/* Works until a step is complete or now_ms() reaches the deadline (0: none); then the next call goes on. -1: e->error
   has a sentence, and the engine is of no use any more. */
int engine_step(engine *e, double deadline) {
    double start = now_ms();
    int done = 0;
    e->pool.deadline = deadline;
    if (e->state == IDLE) {
        if (!schedule(e)) return NOTHING_TO_DO;
        done = next_pass(e);
    }
    while (!done) {
        net *t = &e->net[e->state != STEPPING];
        int ran = run_pass(e, t);
        if (ran <= 0) {
            done = ran ? -1 : TIME_IS_UP;
            break;
        }
        e->step_ms += now_ms() - start;
        start = now_ms();
        done = next_pass(e);
    }
    e->step_ms += now_ms() - start;
    return done;
}

/* ---- opening and closing -------------------------------------------------------------------------------------- */

options default_options(void) {
    options o = { .batch = 4, .chunk = 256, .page = 16, .threads = 1, .kv = ATTN_F16, .top_p = 0.9f, .seed = 1 };
    o.stop[0] = -1; /* no token ends a text */
    o.stop[1] = -1;
    return o;
}

void engine_close(engine *e) {
    if (!e) return;
    pool_close(&e->pool);
    for (int32_t i = 0; i < e->requests; i++) release(e->request[i]->mem);
    release(e->mem); /* e is in it */
}

static int check_options(engine *e, const model *draft) {
    options *o = &e->o;
    const model *m = e->net[0].m;
    if (!o->context || o->context > m->max_len) o->context = m->max_len;
    if (o->batch < 1 || o->batch > 1024 || o->chunk < 1 || o->chunk > 1 << 16 || o->page < 0 || o->page > 1 << 16 ||
        o->pages < 0 || o->context < 1 || o->threads < 1 || o->threads > 256 || o->spec < 0 || o->spec >= MAX_NODES ||
        (int)o->kv < ATTN_F32 || o->kv > ATTN_INT8) {
        return fail(e->error, "an option is out of range");
    }
    if (draft && draft->vocab != m->vocab) {
        return fail(e->error, "the draft model has %d tokens, the model %d", (int)draft->vocab, (int)m->vocab);
    }
    e->columns = o->page ? (o->context + o->spec + o->page - 1) / o->page : 0;
    if ((int64_t)e->columns * o->batch > INT32_MAX) return fail(e->error, "too many pages");
    if (!o->page || !o->pages) o->pages = e->columns * o->batch;
    return 0;
}

/* draft: NULL, or a small model of the same tokens that guesses. NULL and a sentence if the options cannot work. */
engine *engine_open(const options *o, const model *m, const model *draft, char *error) {
    arena *mem = NULL;
    engine *e = (engine *)need(&mem, 1, sizeof *e);
    e->mem = mem;
    e->o = *o;
    e->net[0].m = m;
    e->nets = draft && o->spec ? 2 : 1;
    int failed = check_options(e, draft);
    pool_open(&e->pool, failed ? 1 : e->o.threads, &e->mem);
    failed = failed || net_open(e, &e->net[0], m) || (e->nets > 1 && net_open(e, &e->net[1], draft));
    if (failed) {
        memcpy(error, e->error, ERROR_BYTES);
        engine_close(e);
        return NULL;
    }
    e->slot = (request **)room_for(e, e->o.batch, sizeof *e->slot);
    e->table = (int32_t *)room_for(e, (int64_t)e->o.batch * e->columns, 4);
    e->page = (page *)room_for(e, e->o.pages, sizeof *e->page);
    e->free_page = (int32_t *)room_for(e, e->o.pages, 4);
    e->candidate = (candidate *)room_for(e, m->vocab, sizeof *e->candidate);
    int32_t *token = (int32_t *)room_for(e, (int64_t)e->o.pages * e->o.page, 4);
    unsigned char *windowed = (unsigned char *)room_for(e, e->o.pages, e->windowed_bytes + 1);
    for (int32_t p = 0; p < e->o.pages; p++) {
        e->page[p].token = token + (int64_t)p * e->o.page;
        e->page[p].windowed = windowed + (size_t)p * e->windowed_bytes;
    }
    engine_reset_prefixes(e);
    return e;
}

#ifndef LLM_NO_MAIN

enum { MAX_PROMPTS = 1024 };
enum { TOKENS, TEMPERATURE, TOP_P, SEED, BATCH, CHUNK, PAGE, PAGES, THREADS, SPEC, FRAME_MS, NUMBERS };
static const struct {
    const char *name;
    double value, low, high; /* value: unless given */
} numbers[NUMBERS] = {
    { "--tokens", 300, 1, 1e6 },   { "--temperature", 0.7, 0, 100 }, { "--top-p", 0.9, 0, 1 },
    { "--seed", 1, 0, 9e15 },      { "--batch", 4, 1, 1024 },        { "--chunk", 256, 1, 65536 },
    { "--page", 16, 0, 65536 },    { "--pages", 0, 0, 1e9 },         { "--threads", 1, 1, 256 },
    { "--spec", 0, 0, MAX_NODES - 1 }, { "--frame-budget-ms", 0, 0, 1e6 }
};
enum { MODEL, TOKENIZER, DRAFT, PROMPTS, FILES };
static const char *const files[FILES] = { "--model", "--tokenizer", "--draft", "--prompts" };
static const char *const types[] = { "f32", "f16", "bf16", "e4m3", "e5m2", "int8" };

static const char help[] =
    "llm [options]           without any: a demonstration with models/text.lm\n"
    "  --model FILE          a checkpoint, llama2.c .bin or .lm\n"
    "  --tokenizer FILE      of a llama2.c model\n"
    "  --prompt TEXT         can be given several times;  --prompts FILE: one a line\n"
    "  --tokens N            generate so many for each prompt (300)\n"
    "  --temperature T       0: always the best token (0.7);  --top-p P (0.9);  --seed N\n"
    "  --batch N             prompts that run at the same time (4);  --chunk N: rows of prompts in a step (256)\n"
    "  --page N              keys of a page (16), 0: a contiguous cache;  --pages N: 0: enough for all\n"
    "  --kv TYPE             f32, f16 (default), bf16, e4m3, e5m2 or int8\n"
    "  --threads N           --frame-budget-ms T: return to the frame when its time is up\n"
    "  --spec N              verify N drafts a step, looked up in the text;  --tree: several continuations\n"
    "  --draft FILE          a small model drafts instead, of the same tokens\n"
    "  --skip eps:E          or factor:PREFILL,DECODE or lambda:L: leave out keys that weigh little\n"
    "  --env                 skip as ATTN_SKIP_SOFTMAX_PREFILL_... and ..._DECODE_THRESHOLD_SCALE_FACTOR say\n";

/* Three that begin alike, so that they share pages, and others. */
#define VILLAGE "Not far from the sea lay a village by the name of Otterford. It had thirty houses, a mill and " \
                "an inn, the Silver Goose. The innkeeper was Mara Fenwick, who was patient and often cheerful. " \
                "Everybody in Otterford knew Tobias Reed, the smith, who carried a copper whistle wherever he went.\n\n"
static const char *const demo_prompts[] = {
    VILLAGE "PLAYER: Good evening, Mara. Who lives in this village?\n", VILLAGE "One evening in autumn Tobias ",
    "It was a cold night, and the old king ", "PLAYER: I am looking for work.\n", VILLAGE "Dear Mara,\n"
};

typedef struct program {
    double number[NUMBERS];
    const char *file[FILES], *prompt[MAX_PROMPTS];
    int32_t prompts, *tokens[MAX_PROMPTS], length[MAX_PROMPTS], is_quiet;
    options o;
    model *m, *draft;
    tokenizer t;
    arena *mem;
    int32_t printed[MAX_PROMPTS]; /* tokens of each text */
    double frames, longest, progress_ms;
    char error[ERROR_BYTES];
} program;

/* One option; returns how many arguments it takes, 0: it is none, or its value is not possible. */
static int parse_option(program *p, const char *name, const char *value) {
    options *o = &p->o;
    float a = 0, b = 0;
    char end = 0;
    attn_error err;
    if (!strcmp(name, "--tree")) return o->tree = 1;
    if (!strcmp(name, "--env") && attn_skip_from_env(&o->skip, getenv, &err)) fail(p->error, "%s", err.text);
    if (!strcmp(name, "--env")) return 1;
    if (!value) return 0;
    for (int i = 0; i < NUMBERS; i++) {
        double *to = &p->number[i];
        if (strcmp(name, numbers[i].name)) continue;
        return sscanf(value, "%lf%c", to, &end) == 1 && *to >= numbers[i].low && *to <= numbers[i].high ? 2 : 0;
    }
    for (int i = 0; i < FILES; i++) {
        if (strcmp(name, files[i])) continue;
        p->file[i] = value;
        return 2;
    }
    for (int i = 0; i < 6 && !strcmp(name, "--kv"); i++) {
        if (strcmp(value, types[i])) continue;
        o->kv = (attn_type)i;
        return 2;
    }
    if (!strcmp(name, "--prompt") && p->prompts < MAX_PROMPTS) {
        p->prompt[p->prompts++] = value;
        return 2;
    }
    if (strcmp(name, "--skip")) return 0;
    if (sscanf(value, "factor:%f,%f%c", &a, &b, &end) == 2) {
        o->skip = (attn_skip){ ATTN_SKIP_FACTOR, a, b };
    } else if (sscanf(value, "eps:%f%c", &a, &end) == 1) {
        o->skip = (attn_skip){ ATTN_SKIP_EPS, a, a };
    } else if (sscanf(value, "lambda:%f%c", &a, &end) == 1) {
        o->skip = (attn_skip){ ATTN_SKIP_LAMBDA, 0, 0 };
    }
    o->lambda = a;
    return o->skip.mode ? 2 : 0;
}

static int parse(program *p, int argc, char **argv) {
    p->o = default_options();
    for (int i = 0; i < NUMBERS; i++) p->number[i] = numbers[i].value;
    for (int i = 1; i < argc;) {
        int taken = parse_option(p, argv[i], i + 1 < argc ? argv[i + 1] : NULL);
        if (!taken) return fail(p->error, "%s with this value is no option; llm --help", argv[i]);
        i += taken;
    }
    p->o.temperature = (float)p->number[TEMPERATURE];
    p->o.top_p = (float)p->number[TOP_P];
    p->o.seed = (uint64_t)p->number[SEED];
    p->o.batch = (int32_t)p->number[BATCH];
    p->o.chunk = (int32_t)p->number[CHUNK];
    p->o.page = (int32_t)p->number[PAGE];
    p->o.pages = (int32_t)p->number[PAGES];
    p->o.threads = (int32_t)p->number[THREADS];
    p->o.spec = (int32_t)p->number[SPEC];
    p->o.row_tile = p->number[FRAME_MS] > 0 ? 32 : 0;
    return *p->error ? -1 : 0;
}

/* The lines of a file are prompts. */
static int read_prompts(program *p) {
    reader r = { p->file[PROMPTS], NULL, 0, 0, p->error };
    if (!r.path) return 0;
    read_file(&r, &p->mem);
    for (char *line = (char *)r.data, *end = line; !*p->error && line - (char *)r.data < r.size; line = end + 1) {
        char *last = (char *)r.data + r.size;
        for (end = line; end < last && *end != '\n';) end++;
        if (end == line) continue;
        if (p->prompts == MAX_PROMPTS) return fail(p->error, "%s: more than %d prompts", r.path, MAX_PROMPTS);
        char *text = (char *)need(&p->mem, (size_t)(end - line) + 1, 1);
        memcpy(text, line, (size_t)(end - line));
        p->prompt[p->prompts++] = text;
    }
    return *p->error ? -1 : 0;
}

/* What is new of a text, if it is the only one, else all of it when it is complete. */
static void print_text(program *p, engine *e, int32_t i) {
    const request *r = e->request[i];
    int32_t from = p->printed[i] > 1 ? p->printed[i] : 1; /* token 0 is no text */
    if (p->prompts > 1 && r->state != DONE) return;
    if (p->printed[i] == r->len) return;
    if (!p->printed[i] && p->prompts > 1) printf("---- %d\n", (int)i + 1);
    for (int32_t n = from; n < r->len; n++) {
        int ends = n >= r->prompt_len && (r->token[n] == e->o.stop[0] || r->token[n] == e->o.stop[1]);
        if (!ends) tokenizer_print(&p->t, r->token[n], n == 1, stdout);
    }
    p->printed[i] = r->len;
    if (r->state == DONE) printf("\n");
    fflush(stdout);
}

static void print_progress(program *p, engine *e) {
    for (int32_t i = e->first; i < e->requests && now_ms() > p->progress_ms + 1000; i++) {
        const request *r = e->request[i];
        if (r->state != RUNNING || r->cached >= r->prompt_len) continue;
        fprintf(stderr, "prompt %d: %d of %d tokens\n", (int)i + 1, (int)r->cached, (int)r->prompt_len);
        p->progress_ms = now_ms();
    }
}

/* What attn.h chose for a class of layers. */
static void print_class(const net *t, int32_t c) {
    char text[2000];
    attn_plan_explain(&t->classes[c].plan, text, sizeof text);
    const char *isa = strchr(text, ' ') + 1, *layer = strstr(text, "layer: ") + 7;
    printf("  %.*s; layers", (int)strcspn(isa, ","), isa);
    for (int32_t l = 0; l < t->m->layers; l++) {
        if (t->class_of[l] == c) printf(" %d", (int)l);
    }
    printf(": %.*s\n", (int)strcspn(layer, "\n"), layer);
}

static double rate(int64_t count, double ms) {
    return ms > 0 ? 1e3 * (double)count / ms : 0;
}

static void report(const program *p, const engine *e) {
    const stats *s = &e->stats;
    double ms = s->ms[0] + s->ms[1];
    double wait = 0;
    int64_t steps = 0, made = 0;
    for (int32_t i = 0; i < e->requests; i++) {
        const request *r = e->request[i];
        steps += r->steps;
        made += r->len - r->prompt_len - 1; /* the first token comes from the prompt */
        if (r->first_ms - r->submitted_ms > wait) wait = r->first_ms - r->submitted_ms;
    }
    printf("\n%s: %.1f MB, %d layers, attention by\n", p->file[MODEL], 1e-6 * (double)p->m->bytes, (int)p->m->layers);
    for (int32_t n = 0; n < e->nets; n++) {
        for (int32_t c = 0; c < e->net[n].class_count; c++) print_class(&e->net[n], c);
    }
    printf("%d prompts of %lld tokens, %lld more found in shared pages; %lld tokens generated, %.0f in a second\n",
           (int)e->requests, (long long)s->prompt_tokens, (long long)s->shared_tokens, (long long)s->tokens,
           rate(s->tokens, ms));
    printf("%lld steps with prompts, %.0f rows in a second; %lld without, %.0f rows in a second; %lld sent back\n",
           (long long)s->steps[0], rate(s->rows[0], s->ms[0]), (long long)s->steps[1], rate(s->rows[1], s->ms[1]),
           (long long)s->sent_back);
    printf("%.2f s, %.1f %% of it in attention, %.2f %% in planning, %.1f plans a pass; first tokens within %.0f ms\n",
           1e-3 * ms, 100 * s->attention_ms / ms, 100 * s->plan_ms / ms, (double)s->plans / (double)s->passes, wait);
    if (e->o.spec) {
        printf("speculation: %.2f tokens in a step of a request, %lld drafts verified\n",
               steps ? (double)made / (double)steps : 0, (long long)s->drafts);
    }
    for (int i = 0; i < 2; i++) {
        const attn_counters *c = &s->counters[i];
        if (!c->tiles) continue;
        printf("%s: %.1f %% of %lld tiles skipped, largest certificate %.2g; %.1f %% had to run dense\n",
               i ? "decode" : "prefill", 100 * (double)c->v_skipped / (double)c->tiles, (long long)c->tiles,
               (double)s->certificate[i], 100 * (double)c->dense_tiles / (double)c->tiles);
    }
    if (p->frames > 0) {
        printf("%.0f frames of %g ms, the longest took %.1f ms\n", p->frames, p->number[FRAME_MS], p->longest);
    }
}

/* Submits the prompts, then works for a step, or as long as a frame allows, until all texts are complete. */
static int generate(program *p, engine *e) {
    double budget = p->number[FRAME_MS];
    int did = STEP_COMPLETE;
    p->progress_ms = now_ms();
    for (int32_t i = 0; i < p->prompts; i++) {
        p->printed[i] = 0;
        if (!engine_submit(e, p->tokens[i], p->length[i], (int32_t)p->number[TOKENS])) {
            return fail(p->error, "prompt %d: %s", (int)i + 1, e->error);
        }
    }
    while (did == STEP_COMPLETE || did == TIME_IS_UP) {
        double start = now_ms();
        did = engine_step(e, budget > 0 ? start + budget : 0);
        double ms = now_ms() - start; /* here a game draws its frame */
        p->frames += budget > 0;
        if (ms > p->longest) p->longest = ms;
        for (int32_t i = 0; i < e->requests && !p->is_quiet; i++) print_text(p, e, i);
        if (!p->is_quiet) print_progress(p, e);
    }
    return did < 0 ? fail(p->error, "%s", e->error) : 0;
}

/* A number that tells texts apart. */
static uint64_t hash_texts(const engine *e) {
    uint64_t hash = 1;
    for (int32_t i = 0; i < e->requests; i++) {
        const request *r = e->request[i];
        for (int32_t n = 0; n < r->len; n++) hash = (hash ^ (uint64_t)r->token[n]) * 0x100000001B3u;
    }
    return hash;
}

static int run(program *p, uint64_t *hash) {
    engine *e = engine_open(&p->o, p->m, p->draft, p->error);
    if (!e) return -1;
    int failed = generate(p, e);
    if (!failed) report(p, e);
    *hash = hash_texts(e);
    engine_close(e);
    return failed;
}

/* The texts once more, with drafts: the same, in fewer steps. That is sooner where a step costs the same for one row as
   for many, since its time goes into reading weights from memory. */
static int run_again(program *p, uint64_t hash) {
    uint64_t again = 0;
    p->o.spec = 8;
    p->o.tree = 1;
    p->is_quiet = 1;
    printf("\nthe same texts, with speculation:\n");
    if (run(p, &again)) return -1;
    printf("same texts: %s\n", again == hash ? "yes" : "NO");
    return again == hash ? 0 : fail(p->error, "speculation has changed a text");
}

/* Files, and the prompts as tokens. The cache is made for the longest of them. */
static int prepare(program *p, int demo) {
    if (!p->file[MODEL]) p->file[MODEL] = "models/text.lm";
    p->m = model_load(p->file[MODEL], p->error);
    if (p->m && p->file[DRAFT]) p->draft = model_load(p->file[DRAFT], p->error);
    if (*p->error || tokenizer_load(&p->t, p->file[TOKENIZER], p->m->vocab, p->error) || read_prompts(p)) return -1;
    for (size_t i = 0; i < sizeof demo_prompts / sizeof *demo_prompts && demo; i++) {
        p->prompt[p->prompts++] = demo_prompts[i];
    }
    if (!p->prompts) return fail(p->error, "a --prompt is missing; llm --help");
    for (int32_t i = 0; i < p->prompts; i++) {
        p->tokens[i] = (int32_t *)need(&p->mem, strlen(p->prompt[i]) + 2, sizeof **p->tokens);
        p->length[i] = tokenizer_encode(&p->t, p->prompt[i], p->tokens[i]);
        int32_t context = p->length[i] + (int32_t)p->number[TOKENS];
        if (context > p->o.context) p->o.context = context;
    }
    memcpy(p->o.stop, p->t.stop, sizeof p->o.stop);
    if (p->draft && !p->o.spec) p->o.spec = 5;
    return 0;
}

int main(int argc, char **argv) {
    static program p;
    uint64_t hash = 0;
    int is_demo = argc == 1;
    if (argc == 2 && !strcmp(argv[1], "--help")) {
        printf("%s", help);
        return 0;
    }
    int failed = parse(&p, argc, argv) || prepare(&p, is_demo) || run(&p, &hash) || (is_demo && run_again(&p, hash));
    if (failed) fprintf(stderr, "%s\n", p.error);
    if (is_demo && !p.m) fprintf(stderr, "run it where models/ is, or give a --model and a --prompt: llm --help\n");
    tokenizer_close(&p.t);
    model_close(p.m);
    model_close(p.draft);
    release(p.mem);
    return failed ? 1 : 0;
}
#endif
