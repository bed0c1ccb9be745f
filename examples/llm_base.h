/* llm_base.h - what a small inference program takes from the shelf: memory and errors, options of a command line, the
   checkpoints of llama2.c and of models/README.md, tokens, threads, products of matrices with rows. What can fail
   leaves a sentence in error[ERROR_BYTES]. With -std=c99 define _POSIX_C_SOURCE 200809L before the first #include. */
#ifndef LLM_BASE_H
#define LLM_BASE_H

#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

double part(double a, double of) {
    return of > 0 ? a / of : 0;
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
    for (arena *next; a; a = next) {
        next = a->next;
        free(a);
    }
}

/* ---- options of a command line ----------------------------------------------------------------------------------- */

enum { IS_FLAG, IS_INT, IS_REAL, IS_TEXT, IS_LIST, MAX_TEXTS = 64 }; /* numbers are not negative */

typedef struct option {
    const char *name;
    int32_t kind;
    void *to; /* int32_t of IS_FLAG and IS_INT, float, const char *, texts */
    const char *help;
} option;

typedef struct texts {
    const char *at[MAX_TEXTS];
    int32_t count;
} texts;

static int set_option(const option *o, const char *value) {
    char *end;
    double number = strtod(value, &end);
    int is_number = end > value && !*end && number >= 0 && number <= INT32_MAX;
    texts *list = o->to;
    if ((o->kind == IS_INT || o->kind == IS_REAL) && !is_number) return -1;
    if (o->kind == IS_LIST && list->count == MAX_TEXTS) return -1;
    if (o->kind == IS_FLAG) *(int32_t *)o->to = 1;
    if (o->kind == IS_INT) *(int32_t *)o->to = (int32_t)number;
    if (o->kind == IS_REAL) *(float *)o->to = (float)number;
    if (o->kind == IS_TEXT) *(const char **)o->to = value;
    if (o->kind == IS_LIST) list->at[list->count++] = value;
    return 0;
}

/* --help prints the list behind `usage`, and the program ends. */
int parse_options(const char *usage, const option *list, int32_t count, int argc, char **argv, char *error) {
    for (int a = 1; a < argc; a++) {
        const char *name = argv[a], *value = a + 1 < argc ? argv[a + 1] : "";
        const option *o = list;
        if (!strcmp(name, "--help")) {
            printf("%s\n", usage);
            for (; o < list + count; o++) printf("  %-18s %s\n", o->name, o->help);
            exit(0);
        }
        while (o < list + count && strcmp(name, o->name)) o++;
        if (o < list + count && o->kind != IS_FLAG) a++;
        if (o == list + count || a == argc || set_option(o, value)) {
            return fail(error, "%s %s is no option; see --help", name, value);
        }
    }
    return 0;
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
    if (!is_lm) take(r, "RoPE table", (int64_t)m->max_len * m->head_dim * 4); /* it is computed anew */
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

/* ---- products of matrices with rows: a row's result never depends on the rows beside it -------------------------- */

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

enum { SET, ADD, GATE };   /* y = wx, y = y + wx, y = silu(y) * wx */
enum { OUTPUTS = 16 };     /* of a product: one task */

/* For each of the rows of x a row of y. */
typedef struct product {
    const matrix *w;
    const float *x;
    float *y;
    int32_t rows, use, has_avx2;
} product;

static void product_task(void *context, int32_t index, int32_t lane) {
    const product *p = context;
    const matrix *w = p->w;
    int32_t first = index * OUTPUTS, count = least(OUTPUTS, w->rows - first);
    float (*dot_of)(const float *, const float *, int32_t) = p->has_avx2 ? dot_avx2 : dot_plain;
    for (int64_t r = 0; r < p->rows; r++) {
        const float *x = p->x + r * w->cols;
        float *y = p->y + r * w->rows + first;
        for (int32_t i = 0; i < count; i++) {
            float sum = dot_of(w->data + (int64_t)(first + i) * w->cols, x, w->cols);
            y[i] = p->use == SET ? sum : p->use == ADD ? y[i] + sum : y[i] / (1 + expf(-y[i])) * sum;
        }
    }
    (void)lane;
}

static void set_product(pool *p, product *job) {
    const matrix *w = job->w;
    set_job(p, product_task, job, (w->rows + OUTPUTS - 1) / OUTPUTS, (int64_t)job->rows * w->rows * w->cols);
}

#endif
