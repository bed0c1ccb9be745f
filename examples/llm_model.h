/* llm_model.h - files to weights and tokens: checkpoints of llama2.c and of our own, a byte-pair tokenizer. Needs the C
   library only. Errors are sentences in char[ERROR_BYTES]. Used by llm.c. */
#ifndef LLM_MODEL_H
#define LLM_MODEL_H

#if !defined _POSIX_C_SOURCE && !defined _WIN32
#define _POSIX_C_SOURCE 200809L
#endif

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

static int compare_pieces(const void *a, const void *b) {
    const subword *x = a, *y = b;
    int order = memcmp(x->text, y->text, (size_t)least(x->len, y->len));
    return order ? order : x->len - y->len;
}

static const subword *find_piece(const tokenizer *t, const char *text, int32_t len) {
    subword wanted = { text, len, 0, 0 };
    return bsearch(&wanted, t->sorted, (size_t)t->tokens, sizeof wanted, compare_pieces);
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
    if (!path) return vocab == 256 ? 0 : fail(error, "a model of %d tokens needs its --tokenizer", (int)vocab);
    if (vocab < FIRST_BYTE + 256) return fail(error, "%s: not for a model of %d tokens", path, (int)vocab);
    read_file(&r, &t->mem);
    t->tokens = vocab;
    t->stop[0] = 1;
    t->stop[1] = 2;
    t->of_token = need(&t->mem, vocab, sizeof *t->of_token);
    t->sorted = need(&t->mem, vocab, sizeof *t->sorted);
    take(&r, "length of the longest piece", 4);
    for (int32_t i = 0; i < vocab && !*error; i++) {
        subword *p = &t->of_token[i];
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

static int is_byte(int32_t token) {
    return token >= FIRST_BYTE && token < FIRST_BYTE + 256;
}

/* The score of symbols i and i + 1 as one. Symbols lie behind each other in a text; bytes stay alone. */
static void rate_symbol(const tokenizer *t, subword *s, int32_t n, int32_t i) {
    int can_join = i >= 0 && i + 1 < n && !is_byte(s[i].token) && !is_byte(s[i + 1].token);
    const subword *joined = can_join ? find_piece(t, s[i].text, s[i].len + s[i + 1].len) : NULL;
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
    subword *symbols = need(&mem, len + 2, sizeof *symbols);
    if (len) snprintf(source, (size_t)len + 2, " %s", text);
    for (const char *p = source, *end; *p; p = end) {
        end = p + 1; /* of a character in UTF-8; one that is no token becomes its bytes */
        while (p > source && (*end & 0xC0) == 0x80 && end < p + 4) end++;
        const subword *found = find_piece(t, p, (int32_t)(end - p));
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

#endif
