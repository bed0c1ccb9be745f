/* ref.c - see ref.h. Slow on purpose: one loop per definition, no tiles, no running maximum. */
#include "ref.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* ---- masks ------------------------------------------------------------------------------------------------------ */

/* A row of a tree stands behind the cached keys, as deep as it has ancestors: its bits but its own. */
static long long row_position(const ref_problem *p, int row) {
    long long past = (long long)p->kv_len - p->q_len;
    int depth = -1;
    int bit;
    if (!p->tree) return past + row;
    for (bit = 0; bit < p->q_len; bit++) depth += (int)(p->tree[row * p->tree_words + bit / 32] >> bit % 32 & 1u);
    return past + depth;
}

static long long key_position(const ref_problem *p, int key) {
    int past = p->kv_len - p->q_len;
    return p->tree && key >= past ? row_position(p, key - past) : key;
}

static int in_window(const ref_problem *p, long long position, long long key) {
    long long left = p->window_left;
    long long right = p->causal && !p->prefix_lm && !p->block ? 0 : p->window_right;
    if (left > 0 && position - key >= left) return 0;
    if (right > 0 && key - position >= right) return 0;
    return 1;
}

static int mask_sees(const ref_problem *p, long long position, int row, int key) {
    if (p->tree) {
        int draft = key - (p->kv_len - p->q_len);
        return draft < 0 || (p->tree[row * p->tree_words + draft / 32] >> draft % 32 & 1u);
    }
    if (p->block) {
        long long block_start = (position - row) + (long long)(row / p->block) * p->block;
        return key < block_start + p->block;
    }
    if (p->prefix_lm && key < p->prefix) return 1;
    if (p->causal && key > position) return 0;
    return !p->chunk || key / p->chunk == position / p->chunk;
}

void ref_row(const ref_problem *p, int row, unsigned char *sees) {
    long long position = row_position(p, row);
    int i;
    int key;
    memset(sees, !p->list, (size_t)p->kv_len);
    for (i = 0; p->list && i < p->list_keys; i++) {
        key = p->list[(size_t)row * (size_t)p->list_keys + (size_t)i];
        if (key >= 0 && key < p->kv_len) sees[key] = 1;
    }
    for (key = 0; key < p->kv_len; key++) {
        if (!mask_sees(p, position, row, key)) sees[key] = 0;
        if (key >= p->sink_keys && !in_window(p, position, key_position(p, key))) sees[key] = 0;
    }
}

static void *allocate(size_t bytes) {
    void *p = malloc(bytes + 1);
    if (!p) abort();
    return p;
}

int ref_sees(const ref_problem *p, int row, int key) {
    unsigned char *sees = (unsigned char *)allocate((size_t)p->kv_len);
    int answer;
    ref_row(p, row, sees);
    answer = sees[key];
    free(sees);
    return answer;
}

/* ---- attention -------------------------------------------------------------------------------------------------- */

static double dot(const double *a, const double *b, int n, double *magnitude) {
    double sum = 0;
    double total = 0;
    int i;
    for (i = 0; i < n; i++) {
        double x = a[i] * b[i];
        sum += x;
        total += fabs(x);
    }
    *magnitude = total;
    return sum;
}

/* What n elements of q count as: nearest integers, ties to even, of what they are worth. The quotients are f32, since
   a tie of these decides. */
static void quantise(const double *q, int n, double *to) {
    float unit = ldexpf(1, -126);
    int i;
    for (i = 0; i < n; i++) {
        float share = (float)fabs(q[i]) / 127.0f;
        if (!(share <= unit)) unit = share;
        if (isnan(unit)) break;
    }
    for (i = 0; i < n; i++) to[i] = rint((double)((float)q[i] / unit)) * (double)unit;
}

/* *reach: by how many roundoffs the logit of a product may be off: the terms of the sum, damped by the slope of the
   cap, and the logit itself. */
static double logit(const ref_problem *p, double scale, double product, double magnitude, double *reach) {
    double x = scale * product;
    double bound = fabs(scale) * magnitude;
    double t;
    *reach = bound;
    if (p->softcap == 0) return x;
    t = tanh(x / p->softcap);
    *reach = fabs(p->softcap * t) + (t * t < 1 ? (1 - t * t) * bound : 0);
    return p->softcap * t;
}

/* Logits of one (row, head) for the keys it sees. Returns how many those are. */
static int row_logits(const ref_problem *p, int row, int head, const unsigned char *sees, double *x, double *reach) {
    const double *given = p->q + ((size_t)row * (size_t)p->heads + (size_t)head) * (size_t)p->head_dim;
    double *q = (double *)allocate((size_t)p->head_dim * sizeof *q);
    double position = (double)row_position(p, row);
    int kv_head = head / (p->heads / p->kv_heads);
    int seen = 0;
    int key;
    *reach = 0;
    memcpy(q, given, (size_t)p->head_dim * sizeof *q);
    if (p->fast_int8) quantise(given, p->head_dim, q);
    for (key = 0; key < p->kv_len; key++) {
        size_t at = (size_t)key * (size_t)p->kv_heads + (size_t)kv_head;
        double magnitude;
        double product;
        double r;
        if (!sees[key]) continue;
        seen++;
        product = dot(q, p->k + at * (size_t)p->head_dim, p->head_dim, &magnitude);
        x[key] = logit(p, p->k_scale ? p->scale * p->k_scale[at] : p->scale, product, magnitude, &r);
        if (p->alibi) {
            double bias = p->alibi[head] * ((double)key_position(p, key) - position);
            x[key] += bias;
            r += fabs(bias);
        }
        if (r > *reach && r < HUGE_VAL) *reach = r;
    }
    free(q);
    return seen;
}

/* o += w * v of one key; returns the largest |v|. */
static double add_value(const ref_problem *p, int key, int kv_head, double w, double *o) {
    size_t at = (size_t)key * (size_t)p->kv_heads + (size_t)kv_head;
    const double *v = p->v + at * (size_t)p->v_dim;
    double scale = p->v_scale ? p->v_scale[at] : 1;
    double most = 0;
    int d;
    for (d = 0; d < p->v_dim; d++) {
        double x = scale * v[d];
        if (fabs(x) > most) most = fabs(x);
        o[d] += w * x;
    }
    return most;
}

static void row_output(const ref_problem *p, int row, int head, const unsigned char *sees, double *x) {
    size_t at = (size_t)row * (size_t)p->heads + (size_t)head;
    double *o = p->o + at * (size_t)p->v_dim;
    int kv_head = head / (p->heads / p->kv_heads);
    int seen = row_logits(p, row, head, sees, x, &p->reach[at]);
    double m = p->sinks ? p->sinks[head] : -HUGE_VAL;
    double l = 0;
    int key;
    int d;
    memset(o, 0, (size_t)p->v_dim * sizeof *o);
    p->v_max[at] = 0;
    p->lse[at] = m;
    for (key = 0; key < p->kv_len; key++) {
        if (sees[key] && x[key] > m) m = x[key];
    }
    if (!seen || m == -HUGE_VAL) return;
    if (p->sinks) l = exp(p->sinks[head] - m);
    for (key = 0; key < p->kv_len; key++) {
        double w;
        double most;
        if (!sees[key]) continue;
        w = exp(x[key] - m);
        l += w;
        most = add_value(p, key, kv_head, w, o);
        if (most > p->v_max[at]) p->v_max[at] = most;
    }
    for (d = 0; d < p->v_dim; d++) o[d] /= l;
    p->lse[at] = m + log(l);
}

void ref_attention(const ref_problem *p) {
    double *x = (double *)allocate((size_t)p->kv_len * sizeof *x);
    unsigned char *sees = (unsigned char *)allocate((size_t)p->kv_len);
    int row;
    int head;
    for (row = 0; row < p->q_len; row++) {
        ref_row(p, row, sees);
        for (head = 0; head < p->heads; head++) row_output(p, row, head, sees, x);
    }
    free(x);
    free(sees);
}

/* ---- types ------------------------------------------------------------------------------------------------------ */

/* Fraction bits and largest exponent of the type; a 16-bit format is sign, exponent, fraction from the top. */
static int fraction_bits(int type) {
    return type == REF_F16 ? 10 : type == REF_BF16 ? 7 : 23;
}

static int exponent_limit(int type) {
    return type == REF_F16 ? 15 : 127;
}

size_t ref_size(int type) {
    return type == REF_F32 ? 4 : type <= REF_BF16 ? 2 : 1;
}

static double decode16(int type, unsigned bits) {
    int f = fraction_bits(type);
    int bias = exponent_limit(type);
    unsigned fraction = bits & ((1u << f) - 1u);
    unsigned exponent = (bits & 0x7FFFu) >> f;
    uint32_t wide = (exponent + 127u - (unsigned)bias) << 23 | fraction << (23 - f);
    double sign = (bits & 0x8000u) ? -1 : 1;
    float x;
    if (exponent == 2u * (unsigned)bias + 1u) return fraction ? (double)NAN : sign * HUGE_VAL;
    if (exponent == 0) return sign * ldexp((double)fraction, 1 - bias - f);
    memcpy(&x, &wide, sizeof x);
    return sign * (double)x;
}

/* Sign, 4 or 5 bits of exponent, the rest fraction */
static double decode8(int type, unsigned bits) {
    int f = type == REF_E4M3 ? 3 : 2;
    int bias = type == REF_E4M3 ? 7 : 15;
    int fraction = (int)(bits & ((1u << f) - 1u));
    int exponent = (int)((bits & 0x7Fu) >> f);
    double sign = bits & 0x80u ? -1 : 1;
    if (type == REF_INT8) return bits & 0x80u ? (double)bits - 256 : (double)bits;
    if (type == REF_E4M3 && (bits & 0x7Fu) == 0x7Fu) return (double)NAN;
    if (type == REF_E5M2 && exponent == 31) return fraction ? (double)NAN : sign * HUGE_VAL;
    if (exponent == 0) return sign * ldexp(fraction, 1 - bias - f);
    return sign * ldexp((1 << f) + fraction, exponent - bias - f);
}

double ref_decode(int type, const void *at) {
    float x;
    uint16_t bits;
    if (type >= REF_E4M3) return decode8(type, *(const unsigned char *)at);
    if (type == REF_F32) {
        memcpy(&x, at, sizeof x);
        return (double)x;
    }
    memcpy(&bits, at, sizeof bits);
    return decode16(type, bits);
}

/* Exponent and fraction of the type for the float bits below the sign: the 24-bit significand loses `drop` bits, ties
   go to even, and a carry out of the fraction raises the exponent by itself. */
static uint32_t encode_magnitude(int type, uint32_t bits) {
    int f = fraction_bits(type);
    int bias = exponent_limit(type);
    uint32_t infinity = (uint32_t)(2 * bias + 1) << f;
    uint32_t significand = (bits & 0x7FFFFFu) | (bits >> 23 ? 1u << 23 : 0u);
    int exponent = (int)(bits >> 23) - 127 + (bits >> 23 ? 0 : 1);
    int kept = exponent > 1 - bias ? exponent : 1 - bias;
    int drop = 23 - f + kept - exponent;
    if (bits > 0x7F800000u) return infinity | 1u << (f - 1);
    if (drop > 25) return 0;
    significand += (1u << (drop - 1)) - 1u + (significand >> drop & 1u);
    significand = (significand >> drop) + ((uint32_t)(kept + bias - 1) << f);
    return significand > infinity ? infinity : significand;
}

/* The code whose value is nearest to |value|; codes without a sign ascend with their values. Of two that are equally
   near the even one. */
static unsigned nearest8(int type, double value) {
    static double values[3][128];
    double *v = values[type - REF_E4M3];
    unsigned low = 0;
    unsigned high = type == REF_E4M3 ? 0x7E : type == REF_E5M2 ? 0x7B : 0x7F;
    if (v[1] == 0) {
        unsigned code;
        for (code = 0; code < 128; code++) v[code] = decode8(type, code);
    }
    if (value >= v[high]) return high;
    while (high - low > 1) {
        unsigned middle = (low + high) / 2;
        if (v[middle] <= value) low = middle;
        else high = middle;
    }
    if (value - v[low] == v[high] - value) return low & 1u ? high : low;
    return value - v[low] < v[high] - value ? low : high;
}

static unsigned encode8(int type, double value) {
    unsigned code;
    if (isnan(value)) return type == REF_INT8 ? 0 : 0x7F;
    code = nearest8(type, fabs(value));
    if (!signbit(value)) return code;
    return type == REF_INT8 ? (256u - code) & 0xFFu : code | 0x80u;
}

void ref_encode(int type, float value, void *at) {
    uint32_t bits;
    uint16_t half;
    if (type >= REF_E4M3) {
        *(unsigned char *)at = (unsigned char)encode8(type, (double)value);
        return;
    }
    memcpy(&bits, &value, sizeof bits);
    if (type == REF_F32) {
        memcpy(at, &bits, sizeof bits);
        return;
    }
    half = (uint16_t)(encode_magnitude(type, bits & 0x7FFFFFFFu) | (bits >> 31) << 15);
    memcpy(at, &half, sizeof half);
}

double ref_rounding(int type, double value) {
    int f = fraction_bits(type);
    int lowest = 1 - exponent_limit(type);
    int exponent;
    if (value == 0) return ldexp(1, lowest - f - 1);
    (void)frexp(fabs(value), &exponent);
    exponent--;
    return ldexp(1, (exponent > lowest ? exponent : lowest) - f - 1);
}
