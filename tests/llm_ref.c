/* llm_ref.c - see llm_ref.h. Slow on purpose: one loop per definition. */
#include "llm_ref.h"

#include "ref.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double *doubles(size_t count) {
    double *p = (double *)calloc(count + 1, sizeof *p);
    if (!p) abort();
    return p;
}

/* -1 .. 1 */
static double draw(uint64_t *state) {
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    return (double)(z >> 11) / 4503599627370496.0 - 1.0;
}

/* ---- writing ---------------------------------------------------------------------------------------------------- */

typedef struct writer {
    FILE *file;
    uint64_t state;
} writer;

static void put_bits(writer *w, uint32_t bits, int bytes) {
    int i;
    for (i = 0; i < bytes; i++) fputc((int)(bits >> (8 * i) & 255), w->file);
}

static void put_int(writer *w, int value) {
    put_bits(w, (uint32_t)value, 4);
}

static void put_float(writer *w, double value) {
    float f = (float)value;
    uint32_t bits;
    memcpy(&bits, &f, 4);
    put_bits(w, bits, 4);
}

static void put_half(writer *w, double value) {
    uint16_t half;
    ref_encode(REF_F16, (float)value, &half);
    put_bits(w, half, 2);
}

static void put_norm(writer *w, int count) {
    int i;
    for (i = 0; i < count; i++) put_float(w, 1 + 0.4 * draw(&w->state));
}

/* Elements of mean square (gain / sqrt(cols))^2, so that a row of mean square 1 keeps about its size. */
static void put_matrix(writer *w, int type, int rows, int cols, double gain) {
    double largest = 1.7 * gain / sqrt(cols);
    int count = rows * cols, bytes = type == LLM_F32 ? 4 : type == LLM_F16 ? 2 : 1, i;
    for (i = 0; i < count; i++) {
        double x = draw(&w->state);
        if (type == LLM_F32) put_float(w, x * largest);
        if (type == LLM_F16) put_half(w, x * largest);
        if (type == LLM_INT8) put_bits(w, (uint32_t)(int)floor(127 * x + 0.5), 1);
    }
    for (i = count * bytes; i % 4; i++) put_bits(w, 0, 1);
    for (i = 0; i < rows && type == LLM_INT8; i++) put_float(w, largest / 127 * (1 + 0.3 * draw(&w->state)));
}

enum { NORM_ATT = 0, WQ, WK, WV, WO, NORM_FFN, W1, W2, W3, PARTS };

static void put_part(writer *w, const llm_shape *s, int type, int part) {
    int q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim;
    switch (part) {
    case NORM_ATT: put_norm(w, s->dim); break;
    case WQ: put_matrix(w, type, q, s->dim, s->sharp > 0 ? s->sharp : 1); break;
    case WK: put_matrix(w, type, kv, s->dim, 1.3); break;
    case WV: put_matrix(w, type, kv, s->dim, 1.3); break;
    case WO: put_matrix(w, type, s->dim, q, 1); break;
    case NORM_FFN: if (s->hidden) put_norm(w, s->dim); break;
    case W1: if (s->hidden) put_matrix(w, type, s->hidden, s->dim, 1.3); break;
    case W2: if (s->hidden) put_matrix(w, type, s->dim, s->hidden, 1.3); break;
    default: if (s->hidden) put_matrix(w, type, s->hidden, s->dim, 1.3);
    }
}

static void write_lm(writer *w, const llm_shape *s) {
    int i, part;
    fwrite("ATTNLM1\n", 1, 8, w->file);
    put_int(w, s->dim);
    put_int(w, s->hidden);
    put_int(w, s->layers);
    put_int(w, s->heads);
    put_int(w, s->kv_heads);
    put_int(w, s->head_dim);
    put_int(w, s->vocab);
    put_int(w, s->max_len);
    put_int(w, s->weights);
    put_int(w, s->shared);
    put_float(w, s->theta);
    put_float(w, s->eps);
    for (i = 0; i < s->layers; i++) {
        put_int(w, s->window[i]);
        put_int(w, s->rotary[i]);
    }
    put_matrix(w, s->weights, s->vocab, s->dim, 2);
    for (i = 0; i < s->layers; i++) {
        for (part = 0; part < PARTS; part++) put_part(w, s, s->weights, part);
    }
    put_norm(w, s->dim);
    if (!s->shared) put_matrix(w, s->weights, s->vocab, s->dim, 2);
}

static void write_llama2c(writer *w, const llm_shape *s) {
    int i, part;
    put_int(w, s->dim);
    put_int(w, s->hidden);
    put_int(w, s->layers);
    put_int(w, s->heads);
    put_int(w, s->kv_heads);
    put_int(w, s->shared ? s->vocab : -s->vocab);
    put_int(w, s->max_len);
    put_matrix(w, LLM_F32, s->vocab, s->dim, 2);
    for (part = 0; part < PARTS; part++) {
        for (i = 0; i < s->layers; i++) put_part(w, s, LLM_F32, part);
    }
    put_norm(w, s->dim);
    for (i = 0; i < s->max_len * s->head_dim; i++) put_float(w, 1e9); /* RoPE tables: to be skipped */
    if (!s->shared) put_matrix(w, LLM_F32, s->vocab, s->dim, 2);
}

long llm_ref_write(const llm_shape *shape, uint64_t seed, const char *path) {
    writer w;
    long bytes;
    w.file = fopen(path, "wb");
    w.state = seed;
    if (!w.file) return 0;
    if (shape->format == LLM_LM) write_lm(&w, shape);
    if (shape->format == LLM_LLAMA2C) write_llama2c(&w, shape);
    bytes = ftell(w.file);
    return fclose(w.file) ? 0 : bytes;
}

/* ---- reading ---------------------------------------------------------------------------------------------------- */

static void get_bytes(FILE *file, void *to, size_t bytes) {
    if (fread(to, 1, bytes, file) != bytes) abort();
}

static int get_int(FILE *file) {
    unsigned char b[4];
    get_bytes(file, b, 4);
    return (int)((uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24);
}

static double get_float(FILE *file) {
    int bits = get_int(file);
    float f;
    memcpy(&f, &bits, 4);
    return (double)f;
}

static double *get_floats(FILE *file, long count) {
    double *p = doubles((size_t)count);
    long i;
    for (i = 0; i < count; i++) p[i] = get_float(file);
    return p;
}

static double *get_matrix(FILE *file, int type, int rows, int cols) {
    static const int bytes[] = { 4, 2, 1 };
    long count = (long)rows * cols, i;
    double *p;
    if (type == LLM_F32) return get_floats(file, count);
    p = doubles((size_t)count);
    for (i = 0; i < count; i++) {
        unsigned char b[2];
        uint16_t half;
        get_bytes(file, b, (size_t)bytes[type]);
        half = (uint16_t)(b[0] | (type == LLM_F16 ? b[1] << 8 : 0));
        p[i] = type == LLM_F16 ? ref_decode(REF_F16, &half) : (double)(b[0] > 127 ? b[0] - 256 : b[0]);
    }
    if (fseek(file, (4 - count * bytes[type] % 4) % 4, SEEK_CUR)) abort();
    for (i = 0; i < rows && type == LLM_INT8; i++) {
        double scale = get_float(file);
        int c;
        for (c = 0; c < cols; c++) p[i * cols + c] *= scale;
    }
    return p;
}

static void open_lm(llm_ref *m, FILE *file) {
    int type, i;
    m->dim = get_int(file);
    m->hidden = get_int(file);
    m->layers = get_int(file);
    m->heads = get_int(file);
    m->kv_heads = get_int(file);
    m->head_dim = get_int(file);
    m->vocab = get_int(file);
    m->max_len = get_int(file);
    type = get_int(file);
    m->shared = get_int(file);
    m->theta = get_float(file);
    m->eps = get_float(file);
    m->layer = (llm_ref_layer *)calloc((size_t)m->layers, sizeof *m->layer);
    if (!m->layer) abort();
    for (i = 0; i < m->layers; i++) {
        m->layer[i].window = get_int(file);
        m->layer[i].rotary = get_int(file);
    }
    m->embedding = get_matrix(file, type, m->vocab, m->dim);
    for (i = 0; i < m->layers; i++) {
        llm_ref_layer *l = &m->layer[i];
        l->norm_att = get_floats(file, m->dim);
        l->wq = get_matrix(file, type, m->heads * m->head_dim, m->dim);
        l->wk = get_matrix(file, type, m->kv_heads * m->head_dim, m->dim);
        l->wv = get_matrix(file, type, m->kv_heads * m->head_dim, m->dim);
        l->wo = get_matrix(file, type, m->dim, m->heads * m->head_dim);
        if (!m->hidden) continue;
        l->norm_ffn = get_floats(file, m->dim);
        l->w1 = get_matrix(file, type, m->hidden, m->dim);
        l->w2 = get_matrix(file, type, m->dim, m->hidden);
        l->w3 = get_matrix(file, type, m->hidden, m->dim);
    }
    m->norm_final = get_floats(file, m->dim);
    if (!m->shared) m->classifier = get_matrix(file, type, m->vocab, m->dim);
}

static void open_llama2c(llm_ref *m, FILE *file) {
    long dim, q, kv;
    int i;
    m->dim = get_int(file);
    m->hidden = get_int(file);
    m->layers = get_int(file);
    m->heads = get_int(file);
    m->kv_heads = get_int(file);
    m->vocab = get_int(file);
    m->max_len = get_int(file);
    m->shared = m->vocab > 0;
    m->vocab = abs(m->vocab);
    m->head_dim = m->dim / m->heads;
    m->theta = 10000;
    m->eps = 1e-5;
    m->layer = (llm_ref_layer *)calloc((size_t)m->layers, sizeof *m->layer);
    if (!m->layer) abort();
    dim = m->dim;
    q = m->heads * m->head_dim;
    kv = m->kv_heads * m->head_dim;
    m->embedding = get_floats(file, m->vocab * dim);
    for (i = 0; i < m->layers; i++) m->layer[i].rotary = m->head_dim;
    for (i = 0; i < m->layers; i++) m->layer[i].norm_att = get_floats(file, dim);
    for (i = 0; i < m->layers; i++) m->layer[i].wq = get_floats(file, q * dim);
    for (i = 0; i < m->layers; i++) m->layer[i].wk = get_floats(file, kv * dim);
    for (i = 0; i < m->layers; i++) m->layer[i].wv = get_floats(file, kv * dim);
    for (i = 0; i < m->layers; i++) m->layer[i].wo = get_floats(file, dim * q);
    for (i = 0; i < m->layers; i++) m->layer[i].norm_ffn = get_floats(file, dim);
    for (i = 0; i < m->layers; i++) m->layer[i].w1 = get_floats(file, m->hidden * dim);
    for (i = 0; i < m->layers; i++) m->layer[i].w2 = get_floats(file, dim * m->hidden);
    for (i = 0; i < m->layers; i++) m->layer[i].w3 = get_floats(file, m->hidden * dim);
    m->norm_final = get_floats(file, dim);
    for (i = 0; i < m->max_len * m->head_dim; i++) get_float(file);
    if (!m->shared) m->classifier = get_floats(file, m->vocab * dim);
}

void llm_ref_open(llm_ref *m, const char *path) {
    FILE *file = fopen(path, "rb");
    char magic[8];
    memset(m, 0, sizeof *m);
    if (!file) abort();
    get_bytes(file, magic, 8);
    if (memcmp(magic, "ATTNLM1\n", 8) == 0) {
        open_lm(m, file);
    } else {
        rewind(file);
        open_llama2c(m, file);
    }
    if (m->shared) m->classifier = m->embedding;
    if (fgetc(file) != EOF) abort();
    fclose(file);
}

void llm_ref_close(llm_ref *m) {
    int i;
    for (i = 0; i < m->layers; i++) {
        llm_ref_layer *l = &m->layer[i];
        free(l->norm_att);
        free(l->wq);
        free(l->wk);
        free(l->wv);
        free(l->wo);
        free(l->norm_ffn);
        free(l->w1);
        free(l->w2);
        free(l->w3);
    }
    free(m->layer);
    free(m->embedding);
    free(m->norm_final);
    if (!m->shared) free(m->classifier);
    memset(m, 0, sizeof *m);
}

/* ---- arithmetic ------------------------------------------------------------------------------------------------- */

/* x after `steps` roundings of random direction and size: their sum grows as a random walk does. */
static double rounded(llm_ref_pass *pass, double x, double steps) {
    return pass->noise > 0 ? x * (1 + pass->noise * sqrt(steps) * draw(&pass->seed)) : x;
}

static double dot(llm_ref_pass *pass, const double *a, const double *b, int n) {
    double sum = 0;
    int i;
    for (i = 0; i < n; i++) sum += rounded(pass, a[i] * b[i], n + 1.0);
    return sum;
}

/* y[rows] = w x; for `relative` one column after the other */
static void multiply(llm_ref_pass *pass, const double *w, const double *x, int rows, int cols, double *y) {
    int r, c;
    memset(y, 0, sizeof *y * (size_t)rows);
    for (r = 0; r < rows && !pass->relative; r++) y[r] = dot(pass, w + (size_t)r * (size_t)cols, x, cols);
    for (c = 0; c < cols && pass->relative; c++) {
        for (r = 0; r < rows; r++) y[r] += w[(size_t)r * (size_t)cols + (size_t)c] * x[c];
    }
}

static void normalise(llm_ref_pass *pass, const double *x, const double *weight, int n, double eps, double *y) {
    double mean = 0;
    int i;
    for (i = 0; i < n; i++) mean += x[i] * x[i] / n;
    for (i = 0; i < n; i++) y[i] = rounded(pass, x[i] / sqrt(mean + eps) * weight[i], 4);
}

/* The pairs (2i, 2i + 1) of each head turn by position * theta^(-2i / rotary). */
static void rotate(llm_ref_pass *pass, double *x, int heads, int head_dim, int rotary, double theta, int position) {
    int h, i;
    for (i = 0; i < rotary / 2; i++) {
        double angle = position * rounded(pass, pow(theta, -2.0 * i / rotary), 1);
        for (h = 0; h < heads; h++) {
            double *pair = x + h * head_dim + 2 * i, a = pair[0], b = pair[1];
            pair[0] = rounded(pass, a * cos(angle) - b * sin(angle), 3);
            pair[1] = rounded(pass, a * sin(angle) + b * cos(angle), 3);
        }
    }
}

/* What a cache gives back: int8 has a scale for each key and head, the largest magnitude / 127. */
static void store(llm_ref_pass *pass, double *x, int heads, int head_dim) {
    int h, i;
    for (h = 0; h < heads * (pass->kv_type != REF_F32); h++) {
        double *head = x + h * head_dim, scale = 1, largest = 0;
        for (i = 0; i < head_dim; i++) largest = fmax(largest, fabs(head[i]));
        if (pass->kv_type == REF_INT8) scale = largest > 0 ? (double)(float)(largest / 127) : 1;
        for (i = 0; i < head_dim; i++) {
            uint32_t bits = 0;
            ref_encode(pass->kv_type, (float)(head[i] / scale), &bits);
            head[i] = ref_decode(pass->kv_type, &bits) * scale;
        }
    }
}

/* ---- attention -------------------------------------------------------------------------------------------------- */

typedef struct head_view {
    const double *q, *k, *v; /* of one head; k and v are those of key 0 */
    size_t row;              /* from key to key */
    int dim, first, position;
    double *weight;          /* room for each key */
} head_view;

static void attend(llm_ref_pass *pass, const head_view *s, double *o) {
    double largest = -INFINITY, sum = 0, scale = 1 / sqrt(s->dim);
    int key, i, keys = s->position + 1 - s->first;
    for (key = s->first; key <= s->position; key++) {
        s->weight[key] = rounded(pass, scale * dot(pass, s->q, s->k + (size_t)key * s->row, s->dim), 3);
        largest = fmax(largest, s->weight[key]);
    }
    for (key = s->first; key <= s->position; key++) {
        s->weight[key] = rounded(pass, exp(s->weight[key] - largest), 4);
        sum += s->weight[key];
    }
    memset(o, 0, sizeof *o * (size_t)s->dim);
    for (key = s->first; key <= s->position; key++) {
        for (i = 0; i < s->dim; i++) {
            o[i] += rounded(pass, s->weight[key] / sum * s->v[(size_t)key * s->row + (size_t)i], keys + 2.0);
        }
    }
}

/* The same from q and k that have not been turned: a pair of them as complex numbers contributes the real part of
   q conj(k) e^(i angle), where the angle follows from the distance. The softmax is carried along, newest key first. */
static void attend_relative(const head_view *s, int rotary, double theta, double *o) {
    double largest = -INFINITY, sum = 0;
    int key, i;
    memset(o, 0, sizeof *o * (size_t)s->dim);
    for (key = s->position; key >= s->first; key--) {
        const double *k = s->k + (size_t)key * s->row, *v = s->v + (size_t)key * s->row;
        double logit = 0, before, now;
        for (i = 0; i < rotary; i += 2) {
            double angle = (s->position - key) * exp(-log(theta) * i / rotary);
            double real = s->q[i] * k[i] + s->q[i + 1] * k[i + 1], imaginary = s->q[i + 1] * k[i] - s->q[i] * k[i + 1];
            logit += real * cos(angle) - imaginary * sin(angle);
        }
        for (i = rotary; i < s->dim; i++) logit += s->q[i] * k[i];
        logit /= sqrt(s->dim);
        before = logit > largest ? exp(largest - logit) : 1;
        largest = fmax(largest, logit);
        now = exp(logit - largest);
        for (i = 0; i < s->dim; i++) o[i] = (o[i] * before * sum + v[i] * now) / (before * sum + now);
        sum = before * sum + now;
    }
}

/* ---- the pass: all rows through one layer after the other -------------------------------------------------------- */

typedef struct pass_rooms {
    double *n, *q, *k, *v, *o, *h, *gate, *weight, *y;
} pass_rooms;

static void run_attention(const llm_ref *m, llm_ref_pass *pass, const llm_ref_layer *l, int rows, pass_rooms *s,
                          double *x) {
    int dim = m->head_dim, q = m->heads * dim, kv = m->kv_heads * dim, group = m->heads / m->kv_heads, p, h, i;
    for (p = 0; p < rows; p++) {
        normalise(pass, x + (size_t)p * (size_t)m->dim, l->norm_att, m->dim, m->eps, s->n);
        multiply(pass, l->wq, s->n, q, m->dim, s->q + (size_t)p * (size_t)q);
        multiply(pass, l->wk, s->n, kv, m->dim, s->k + (size_t)p * (size_t)kv);
        multiply(pass, l->wv, s->n, kv, m->dim, s->v + (size_t)p * (size_t)kv);
        if (pass->relative) continue;
        rotate(pass, s->q + (size_t)p * (size_t)q, m->heads, dim, l->rotary, m->theta, p);
        rotate(pass, s->k + (size_t)p * (size_t)kv, m->kv_heads, dim, l->rotary, m->theta, p);
        store(pass, s->k + (size_t)p * (size_t)kv, m->kv_heads, dim);
        store(pass, s->v + (size_t)p * (size_t)kv, m->kv_heads, dim);
    }
    for (p = 0; p < rows; p++) {
        for (h = 0; h < m->heads; h++) {
            head_view view = { s->q + (size_t)p * (size_t)q + h * dim, s->k + h / group * dim, s->v + h / group * dim,
                               (size_t)kv, dim, 0, p, s->weight };
            if (l->window && p + 1 > l->window) view.first = p + 1 - l->window;
            if (pass->relative) attend_relative(&view, l->rotary, m->theta, s->o + h * dim);
            if (!pass->relative) attend(pass, &view, s->o + h * dim);
        }
        multiply(pass, l->wo, s->o, m->dim, q, s->y);
        for (i = 0; i < m->dim; i++) {
            double *at = x + (size_t)p * (size_t)m->dim + i;
            *at = rounded(pass, *at + s->y[i], 1);
        }
    }
}

static void run_ffn(const llm_ref *m, llm_ref_pass *pass, const llm_ref_layer *l, int rows, pass_rooms *s, double *x) {
    int p, i;
    for (p = 0; p < rows && m->hidden; p++) {
        double *row = x + (size_t)p * (size_t)m->dim;
        normalise(pass, row, l->norm_ffn, m->dim, m->eps, s->n);
        multiply(pass, l->w1, s->n, m->hidden, m->dim, s->gate);
        multiply(pass, l->w3, s->n, m->hidden, m->dim, s->h);
        for (i = 0; i < m->hidden; i++) s->h[i] = rounded(pass, s->h[i] * s->gate[i] / (1 + exp(-s->gate[i])), 6);
        multiply(pass, l->w2, s->h, m->dim, m->hidden, s->y);
        for (i = 0; i < m->dim; i++) row[i] = rounded(pass, row[i] + s->y[i], 1);
    }
}

void llm_ref_logits(const llm_ref *m, const llm_ref_pass *pass, const int32_t *token, int n, double *logits) {
    size_t rows = (size_t)n, q = (size_t)(m->heads * m->head_dim), kv = (size_t)(m->kv_heads * m->head_dim);
    llm_ref_pass run = *pass;
    double *x = doubles(rows * (size_t)m->dim);
    pass_rooms s;
    int p, l;
    s.n = doubles((size_t)m->dim);
    s.q = doubles(rows * q);
    s.k = doubles(rows * kv);
    s.v = doubles(rows * kv);
    s.o = doubles(q);
    s.h = doubles((size_t)m->hidden);
    s.gate = doubles((size_t)m->hidden);
    s.weight = doubles(rows);
    s.y = doubles((size_t)m->dim);
    for (p = 0; p < n; p++) {
        memcpy(x + (size_t)p * (size_t)m->dim, m->embedding + (size_t)token[p] * (size_t)m->dim,
               sizeof *x * (size_t)m->dim);
    }
    for (l = 0; l < m->layers; l++) {
        run_attention(m, &run, &m->layer[l], n, &s, x);
        run_ffn(m, &run, &m->layer[l], n, &s, x);
    }
    for (p = 0; p < n; p++) {
        normalise(&run, x + (size_t)p * (size_t)m->dim, m->norm_final, m->dim, m->eps, s.n);
        multiply(&run, m->classifier, s.n, m->vocab, m->dim, logits + (size_t)p * (size_t)m->vocab);
    }
    free(x);
    free(s.n);
    free(s.q);
    free(s.k);
    free(s.v);
    free(s.o);
    free(s.h);
    free(s.gate);
    free(s.weight);
    free(s.y);
}
