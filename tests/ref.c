/* ref.c - see ref.h. Slow on purpose: one loop per definition, no tiles, no running maximum. */
#include "ref.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* ---- masks ------------------------------------------------------------------------------------------------------ */

static int in_window(const ref_problem *p, long long position, long long key) {
    long long left = p->window_left;
    long long right = p->causal && !p->prefix_lm && !p->block ? 0 : p->window_right;
    if (left > 0 && position - key >= left) return 0;
    if (right > 0 && key - position >= right) return 0;
    return 1;
}

static int mask_sees(const ref_problem *p, long long position, int row, int key) {
    if (p->block) {
        long long block_start = (position - row) + (long long)(row / p->block) * p->block;
        return key < block_start + p->block;
    }
    if (p->prefix_lm && key < p->prefix) return 1;
    if (p->causal && key > position) return 0;
    return !p->chunk || key / p->chunk == position / p->chunk;
}

int ref_sees(const ref_problem *p, int row, int key) {
    long long position = (long long)p->kv_len - p->q_len + row;
    if (!mask_sees(p, position, row, key)) return 0;
    return key < p->sink_keys || in_window(p, position, key);
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

/* *reach: by how many roundoffs the logit of a product may be off: the terms of the sum, damped by the slope of the
   cap, and the logit itself. */
static double logit(const ref_problem *p, double product, double magnitude, double *reach) {
    double x = p->scale * product;
    double bound = fabs(p->scale) * magnitude;
    double t;
    *reach = bound;
    if (p->softcap == 0) return x;
    t = tanh(x / p->softcap);
    *reach = fabs(p->softcap * t) + (t * t < 1 ? (1 - t * t) * bound : 0);
    return p->softcap * t;
}

/* Logits of one (row, head); -inf marks a key that does not count. Returns how many keys are visible. */
static int row_logits(const ref_problem *p, int row, int head, double *x, double *reach) {
    const double *q = p->q + ((size_t)row * (size_t)p->heads + (size_t)head) * (size_t)p->head_dim;
    int kv_head = head / (p->heads / p->kv_heads);
    int seen = 0;
    int key;
    *reach = 0;
    for (key = 0; key < p->kv_len; key++) {
        const double *k = p->k + ((size_t)key * (size_t)p->kv_heads + (size_t)kv_head) * (size_t)p->head_dim;
        double magnitude;
        double product;
        double r;
        x[key] = -HUGE_VAL;
        if (!ref_sees(p, row, key)) continue;
        seen++;
        product = dot(q, k, p->head_dim, &magnitude);
        x[key] = logit(p, product, magnitude, &r);
        if (p->alibi) {
            double bias = p->alibi[head] * (key - ((double)p->kv_len - p->q_len + row));
            x[key] += bias;
            r += fabs(bias);
        }
        if (r > *reach && r < HUGE_VAL) *reach = r;
    }
    return seen;
}

static void row_output(const ref_problem *p, int row, int head, double *x) {
    size_t at = (size_t)row * (size_t)p->heads + (size_t)head;
    double *o = p->o + at * (size_t)p->v_dim;
    int kv_head = head / (p->heads / p->kv_heads);
    int seen = row_logits(p, row, head, x, &p->reach[at]);
    double m = p->sinks ? p->sinks[head] : -HUGE_VAL;
    double l = 0;
    int key;
    int d;
    memset(o, 0, (size_t)p->v_dim * sizeof *o);
    p->v_max[at] = 0;
    p->lse[at] = m;
    for (key = 0; key < p->kv_len; key++) {
        if (x[key] > m) m = x[key];
    }
    if (!seen || m == -HUGE_VAL) return;
    if (p->sinks) l = exp(p->sinks[head] - m);
    for (key = 0; key < p->kv_len; key++) {
        const double *v = p->v + ((size_t)key * (size_t)p->kv_heads + (size_t)kv_head) * (size_t)p->v_dim;
        double w;
        if (!ref_sees(p, row, key)) continue;
        w = exp(x[key] - m);
        l += w;
        for (d = 0; d < p->v_dim; d++) {
            if (fabs(v[d]) > p->v_max[at]) p->v_max[at] = fabs(v[d]);
            o[d] += w * v[d];
        }
    }
    for (d = 0; d < p->v_dim; d++) o[d] /= l;
    p->lse[at] = m + log(l);
}

void ref_attention(const ref_problem *p) {
    double *x = (double *)malloc(((size_t)p->kv_len + 1) * sizeof *x);
    int row;
    int head;
    if (!x) abort();
    for (row = 0; row < p->q_len; row++) {
        for (head = 0; head < p->heads; head++) row_output(p, row, head, x);
    }
    free(x);
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
    return type == REF_F32 ? 4 : 2;
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

double ref_decode(int type, const void *at) {
    float x;
    uint16_t bits;
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

void ref_encode(int type, float value, void *at) {
    uint32_t bits;
    uint16_t half;
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
