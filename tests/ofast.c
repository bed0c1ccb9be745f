/* ofast.c - prints a hash of the output bits for each instruction set and case. tests/fast_math.sh builds it with and
   without fast-math flags and compares; by itself it proves nothing.

   Only integers and exact conversions are used on the way in, so that the flags cannot change the inputs. */
#define ATTN_IMPLEMENTATION
#include "../attn.h"
#include "isas.h"

#include <stdio.h>
#include <stdlib.h>

enum { N = 5, HEADS = 4, KV_HEADS = 2, MAX_DIM = 80, MAX_ROWS = 128, MAX_KEYS = 2048 };

typedef struct hash_case {
    const char *name;
    int head_dim, v_dim;
    attn_type q_type, kv_type, o_type;
    attn_mask mask;
    int window_left, window_right, sink_keys, split_keys;
    int scale_bits, softcap_bits;   /* floats as bits: 0 is the default */
    int sinks;                      /* 1: finite ones and -inf */
    int phase;
    int loud;                       /* logits of hundreds instead of ones */
} hash_case;

/* 0x3e800000 = 0.25, 0x3c000000 = 1 / 128, 0x41f00000 = 30 */
static const hash_case cases[] = {
    { "f32", 64, 0, ATTN_F32, ATTN_F32, ATTN_F32, ATTN_CAUSAL, 0, 0, 0, 0, 0, 0, 0, 0, 0 },
    { "f16", 33, 0, ATTN_F16, ATTN_F16, ATTN_F16, ATTN_CAUSAL, 0, 0, 0, 0, 0, 0, 0, 0, 0 },
    { "bf16", 80, 16, ATTN_BF16, ATTN_BF16, ATTN_BF16, ATTN_CAUSAL, 0, 0, 0, 0, 0, 0, 1, 0, 0 },
    { "bf16 tiles", 64, 32, ATTN_BF16, ATTN_BF16, ATTN_BF16, ATTN_CAUSAL, 0, 0, 0, 0, 0, 0x41f00000, 1, 0, 1 },
    { "bf16 window", 32, 0, ATTN_BF16, ATTN_BF16, ATTN_BF16, ATTN_CAUSAL, 40, 0, 2, 0, 0, 0, 0, 0, 0 },
    { "split", 64, 0, ATTN_F32, ATTN_F16, ATTN_F32, ATTN_CAUSAL, 0, 0, 0, 256, 0, 0, 0, 0, 1 },
    { "window", 40, 0, ATTN_F32, ATTN_BF16, ATTN_F16, ATTN_CAUSAL, 9, 0, 2, 0, 0, 0, 1, 0, 1 },
    { "full", 16, 0, ATTN_F32, ATTN_F32, ATTN_F32, ATTN_FULL, 0, 0, 0, 0, 0x3e800000, 0, 0, 0, 0 },
    { "nothing visible", 16, 0, ATTN_F32, ATTN_F32, ATTN_F32, ATTN_FULL, 3, 1, 0, 0, 0, 0, 0, 0, 0 },
    { "sinks only", 16, 0, ATTN_F32, ATTN_F32, ATTN_BF16, ATTN_FULL, 3, 1, 0, 0, 0, 0, 1, 0, 0 },
    { "softcap", 64, 0, ATTN_F32, ATTN_F32, ATTN_F32, ATTN_CAUSAL, 0, 0, 0, 0, 0, 0x41f00000, 1, 0, 1 },
    { "fast int8", 72, 0, ATTN_F32, ATTN_INT8, ATTN_F32, ATTN_CAUSAL, 0, 0, 0, 0, 0x3c000000, 0, 0, 0, 0 },
    { "decode fast int8", 64, 0, ATTN_F32, ATTN_INT8, ATTN_F32, ATTN_CAUSAL, 0, 0, 0, 0, 0x3c000000, 0, 0, 1, 0 },
    { "decode f32", 64, 0, ATTN_F32, ATTN_F32, ATTN_F32, ATTN_CAUSAL, 0, 0, 0, 0, 0, 0, 0, 1, 0 },
    { "decode f16", 72, 24, ATTN_F16, ATTN_F16, ATTN_BF16, ATTN_CAUSAL, 0, 0, 0, 0, 0, 0x41f00000, 1, 1, 1 },
    { "decode bf16", 33, 0, ATTN_F32, ATTN_BF16, ATTN_F32, ATTN_CAUSAL, 300, 0, 4, 0, 0, 0, 0, 1, 1 },
    { "decode nothing visible", 16, 0, ATTN_F32, ATTN_F16, ATTN_F32, ATTN_FULL, 3, 1, 0, 0, 0, 0, 0, 1, 0 },
};

/* Requests: a long one, one whose rows start before key 0 under ATTN_FULL, one without keys, an empty one. */
static const int32_t causal_q[N] = { 50, 3, 0, 1, 20 }, causal_kv[N] = { 900, 600, 7, 1, 20 };
static const int32_t full_q[N] = { 50, 9, 3, 0, 20 }, full_kv[N] = { 700, 4, 0, 0, 300 };

typedef union value {
    float f[MAX_KEYS * KV_HEADS * MAX_DIM];
    uint16_t h[MAX_KEYS * KV_HEADS * MAX_DIM];
    uint8_t b[MAX_KEYS * KV_HEADS * MAX_DIM];
} value;

static value q, k, v, o;
static float lse[MAX_ROWS * HEADS];
static uint64_t state;

static uint32_t next(void) {
    uint64_t z = state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (uint32_t)((z ^ (z >> 31)) >> 32);
}

/* Random sign and mantissa, an exponent of 2^-4 .. 2^1, or six higher: a valid number of every type. */
static void fill(value *x, int count, attn_type type, int loud) {
    int i;
    for (i = 0; i < count; i++) {
        uint32_t r = next(), exponent = r % 6 + (loud ? 6u : 0u);
        uint32_t bits = (r & 0x80000000u) | ((exponent + 123) << 23) | (next() >> 9);
        if (type == ATTN_F32) memcpy(&x->f[i], &bits, 4);
        if (type == ATTN_BF16) x->h[i] = (uint16_t)(bits >> 16);
        if (type == ATTN_INT8) x->b[i] = (uint8_t)(r % 255 + 129); /* not -128 */
        if (type == ATTN_F16) x->h[i] = (uint16_t)((r >> 31 << 15) | ((exponent + 11) << 10) | (next() >> 22));
    }
}

static uint64_t hash(uint64_t h, const void *data, size_t bytes) {
    const unsigned char *p = (const unsigned char *)data;
    size_t i;
    for (i = 0; i < bytes; i++) h = (h ^ p[i]) * 0x100000001B3u;
    return h;
}

static float from_bits(int bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static void stop(const char *what, const char *text) {
    printf("%s: %s\n", what, text);
    exit(1);
}

static uint64_t run_case(const hash_case *c, attn_isa isa) {
    static const int32_t phases[2][N] = { { 0, 0, 0, 0, 0 }, { 1, 1, 1, 1, 1 } };
    static const int32_t sink_bits[HEADS] = { 0x3f000000, (int32_t)0xff800000u, (int32_t)0xc0400000u, 0x40000000 };
    float sinks[HEADS], one = 1;
    attn_batch batch;
    attn_layer layer;
    attn_io io;
    attn_exec exec;
    attn_plan plan;
    attn_error error;
    size_t bytes;
    void *mem;
    uint64_t h = 0xCBF29CE484222325u;
    memset(&batch, 0, sizeof batch);
    memset(&layer, 0, sizeof layer);
    memset(&io, 0, sizeof io);
    memset(&exec, 0, sizeof exec);
    memset(&o, 0x5a, sizeof o);
    memset(lse, 0x5a, sizeof lse);
    memcpy(sinks, sink_bits, sizeof sinks);
    state = 42;
    fill(&q, MAX_ROWS * HEADS * c->head_dim, c->q_type, 0);
    fill(&k, MAX_KEYS * KV_HEADS * c->head_dim, c->kv_type, c->loud);
    fill(&v, MAX_KEYS * KV_HEADS * MAX_DIM, c->kv_type, 0);
    batch.n = N;
    batch.q_len = c->mask == ATTN_FULL ? full_q : causal_q;
    batch.kv_len = c->mask == ATTN_FULL ? full_kv : causal_kv;
    batch.phase = phases[c->phase];
    layer.heads = HEADS;
    layer.kv_heads = KV_HEADS;
    layer.head_dim = c->head_dim;
    layer.v_dim = c->v_dim;
    layer.q_type = c->q_type;
    layer.kv_type = c->kv_type;
    layer.o_type = c->o_type;
    layer.mask = c->mask;
    layer.window_left = c->window_left;
    layer.window_right = c->window_right;
    layer.sink_keys = c->sink_keys;
    layer.split_keys = c->split_keys;
    layer.scale = from_bits(c->scale_bits);
    layer.softcap = from_bits(c->softcap_bits);
    layer.row_tile = 16;
    layer.workers = 3;
    layer.isa = (int32_t)isa;
    layer.flags = c->kv_type == ATTN_INT8 ? ATTN_FAST_INT8 : 0;
    io.k_scale = io.v_scale = &one;
    io.q = &q;
    io.k = &k;
    io.v = &v;
    io.o = &o;
    io.lse = lse;
    io.sinks = c->sinks ? sinks : NULL;
    bytes = attn_plan_bytes(&batch, &layer);
    mem = malloc(bytes + 1);
    if (attn_plan_make(&plan, &batch, &layer, mem, bytes, &error)) stop(c->name, error.text);
    exec.bytes = attn_exec_bytes(&plan, 1);
    exec.mem = malloc(exec.bytes + 1);
    if (attn_forward(&plan, &layer, &io, &exec, &error)) stop(c->name, error.text);
    h = hash(h, &o, sizeof o);
    h = hash(h, lse, sizeof lse);
    free(exec.mem);
    free(mem);
    return h;
}

/* attn_append of every kind of number: ties, overflow, subnormals, infinities and NaN. */
static uint64_t run_append(attn_type to, attn_isa isa) {
    static float rows[64 * 8];
    static const int32_t q_len = 64, kv_len = 64;
    attn_batch batch;
    attn_layer layer;
    attn_io io;
    attn_plan plan;
    attn_error error;
    double mem[4096];
    uint64_t h = 0xCBF29CE484222325u;
    int i;
    memset(&batch, 0, sizeof batch);
    memset(&layer, 0, sizeof layer);
    memset(&io, 0, sizeof io);
    state = 7;
    for (i = 0; i < 64 * 8; i++) {
        uint32_t bits = next();
        if (i % 4 == 1) bits = (bits & 0x80000000u) | 0x33000000u | (bits & 0x0fffffffu);
        if (i % 4 == 2) bits &= 0xfffff000u;
        if (i % 16 == 3) bits |= 0x7f800000u;
        memcpy(&rows[i], &bits, 4);
    }
    batch.n = 1;
    batch.q_len = &q_len;
    batch.kv_len = &kv_len;
    layer.heads = 1;
    layer.head_dim = 8;
    layer.kv_type = to;
    layer.isa = (int32_t)isa;
    io.k = &k;
    io.v = &v;
    memset(&k, 0, sizeof k);
    memset(&v, 0, sizeof v);
    if (attn_plan_make(&plan, &batch, &layer, mem, sizeof mem, &error)) stop("append", error.text);
    if (attn_append(&plan, &layer, &io, rows, rows, &error)) stop("append", error.text);
    return hash(h, &k, 64 * 8 * 4);
}

/* Two halves, one of which saw nothing in every third row. */
static uint64_t run_merge(attn_type type, attn_isa isa) {
    static value a, b;
    float a_lse[64], b_lse[64];
    attn_layer layer;
    attn_error error;
    int32_t minus_infinity = (int32_t)0xff800000u;
    uint64_t h = 0xCBF29CE484222325u;
    int i;
    memset(&layer, 0, sizeof layer);
    layer.heads = 4;
    layer.head_dim = 24;
    layer.o_type = type;
    layer.isa = (int32_t)isa;
    state = 9;
    fill(&a, 64 * 24, type, 0);
    fill(&b, 64 * 24, type, 0);
    for (i = 0; i < 64; i++) {
        a_lse[i] = (float)((int)(next() >> 16) - 32768) / 4096;
        b_lse[i] = (float)((int)(next() >> 16) - 32768) / 4096;
        if (i % 3 == 0) memcpy(&a_lse[i], &minus_infinity, 4);
        if (i % 6 == 0 || i % 9 == 1) memcpy(&b_lse[i], &minus_infinity, 4);
    }
    memset(&o, 0, sizeof o);
    if (attn_merge(&layer, 16, &a, a_lse, &b, b_lse, &o, lse, &error)) stop("merge", error.text);
    h = hash(h, &o, 64 * 24 * 4);
    return hash(h, lse, 64 * 4);
}

/* Cases whose name begins so. */
static void run_cases(const char *name, int isa) {
    int i;
    for (i = 0; i < (int)(sizeof cases / sizeof cases[0]); i++) {
        uint64_t h;
        if (strncmp(cases[i].name, name, strlen(name))) continue;
        h = run_case(&cases[i], (attn_isa)isa);
        printf("%s %s: %08lx%08lx\n", isa_name(isa), cases[i].name, (unsigned long)(h >> 32),
               (unsigned long)(h & 0xffffffffu));
    }
}

int main(void) {
    static const char *const types[] = { "f32", "f16", "bf16" };
    int isa, i;
    if (has_isa(ATTN_ISA_AMX)) run_cases("bf16 ", ATTN_ISA_AMX);
    for (isa = ATTN_ISA_SCALAR; isa; isa = next_isa(isa)) {
        run_cases("", isa);
        for (i = 0; i < 3; i++) {
            uint64_t h = run_append((attn_type)i, (attn_isa)isa), g = run_merge((attn_type)i, (attn_isa)isa);
            printf("%s append %s: %08lx%08lx\n", isa_name(isa), types[i], (unsigned long)(h >> 32),
                   (unsigned long)(h & 0xffffffffu));
            printf("%s merge %s: %08lx%08lx\n", isa_name(isa), types[i], (unsigned long)(g >> 32),
                   (unsigned long)(g & 0xffffffffu));
        }
    }
    return 0;
}
