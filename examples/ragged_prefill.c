/* ragged_prefill.c - prompts of different lengths in one batch, in one piece and in chunks.

   Shows   a ragged batch (rows packed, no padding), grouped-query attention, a causal layer and a sliding window
           with sink keys, the log-sum-exp output, the text of attn_plan_explain, and that a prompt which is
           processed chunk by chunk gives the same bits as the prompt in one piece.
   Build   cc -I. examples/ragged_prefill.c -o ragged_prefill
   Result  exit status 0 if every check held, else 1. */
#define ATTN_IMPLEMENTATION
#include "attn.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    PROMPTS = 4,
    LONGEST = 300,
    ROWS = 37 + 150 + 1 + LONGEST,
    CHUNK = 64, /* rows of one prompt in one step of the chunked run */
    HEADS = 8,
    KV_HEADS = 2, /* four query heads share one key/value head */
    HEAD_DIM = 64,
    Q_WIDTH = HEADS * HEAD_DIM,
    KV_WIDTH = KV_HEADS * HEAD_DIM
};

static const int32_t prompt_len[PROMPTS] = { 37, 150, 1, LONGEST };

/* Query rows are packed prompt after prompt. The cache is padded: prompt i starts at i * LONGEST * KV_WIDTH, so a key
   keeps its place while the prompt grows. */
static float q[ROWS * Q_WIDTH];
static float k[PROMPTS * LONGEST * KV_WIDTH];
static float v[PROMPTS * LONGEST * KV_WIDTH];

/* The outputs of one run, rows in the order of q. */
typedef struct output {
    float o[ROWS * Q_WIDTH];
    float lse[ROWS * HEADS];
} output;

static output whole, chunked;
static float step_q[ROWS * Q_WIDTH]; /* one step of the chunked run */
static output step;

/* Memory of the plan and of the calls. It is sized by the capacities, so one of each serves every step. */
typedef struct memory {
    void *plan;
    size_t plan_bytes;
    attn_exec exec;
} memory;

static float noise(uint32_t *state) {
    *state = *state * 1664525u + 1013904223u;
    return (float)(*state >> 8) / 8388608.0f - 1.0f;
}

static void fill_inputs(void) {
    uint32_t state = 1;
    for (int i = 0; i < ROWS * Q_WIDTH; i++) {
        /* The last head asks nothing: its logits are all 0, so its output is the mean of the values it sees. */
        q[i] = i / HEAD_DIM % HEADS == HEADS - 1 ? 0.0f : 2.0f * noise(&state);
    }
    for (int i = 0; i < PROMPTS * LONGEST * KV_WIDTH; i++) {
        k[i] = 2.0f * noise(&state);
        /* The last channel of every value is 1: the weights of a row add up to 1, so its output must be 1 there. */
        v[i] = i % HEAD_DIM == HEAD_DIM - 1 ? 1.0f : noise(&state);
    }
}

/* The capacities are those of the whole batch; a chunked step fills only a part of them. */
static attn_batch batch_of(const int32_t *q_len, const int32_t *kv_len) {
    attn_batch batch = { .n = PROMPTS, .q_len = q_len, .kv_len = kv_len };
    batch.max_q_len = LONGEST;
    batch.max_kv_len = LONGEST;
    batch.max_rows = ROWS;
    return batch;
}

static attn_io io_of(const float *rows, output *out) {
    attn_io io = { .q = rows, .k = k, .v = v, .o = out->o, .lse = out->lse };
    io.k_page = LONGEST * KV_WIDTH;
    io.v_page = LONGEST * KV_WIDTH;
    return io;
}

/* Plans one step and runs it. 0 if it worked. */
static int run(memory *mem, const attn_batch *batch, const attn_layer *layer, const attn_io *io, int explain) {
    attn_plan plan;
    attn_error err;
    if (!mem->plan) {
        mem->plan_bytes = attn_plan_bytes(batch, layer);
        mem->plan = malloc(mem->plan_bytes);
    }
    if (attn_plan_make(&plan, batch, layer, mem->plan, mem->plan_bytes, &err)) {
        printf("plan: %s\n", err.text);
        return 1;
    }
    if (!mem->exec.mem) {
        mem->exec.bytes = attn_exec_bytes(&plan, 1);
        mem->exec.mem = malloc(mem->exec.bytes);
    }
    if (explain) {
        char text[2048];
        attn_plan_explain(&plan, text, sizeof text);
        printf("%s\n", text);
    }
    if (attn_forward(&plan, layer, io, &mem->exec, &err)) {
        printf("forward: %s\n", err.text);
        return 1;
    }
    return 0;
}

/* All rows of all prompts in one step. */
static int run_whole(memory *mem, const attn_layer *layer) {
    attn_batch batch = batch_of(prompt_len, prompt_len);
    attn_io io = io_of(q, &whole);
    return run(mem, &batch, layer, &io, 1);
}

/* At most CHUNK rows of each prompt in one step: kv_len grows, the rows are the last q_len of it. A prompt that is
   done stays in the batch with q_len = 0. */
static int run_chunked(memory *mem, const attn_layer *layer, int *steps) {
    int32_t done[PROMPTS] = { 0 };
    for (*steps = 0;; ++*steps) {
        int32_t q_len[PROMPTS], kv_len[PROMPTS];
        int rows = 0;
        for (int i = 0, first = 0; i < PROMPTS; first += prompt_len[i], i++) {
            int32_t left = prompt_len[i] - done[i];
            q_len[i] = left < CHUNK ? left : CHUNK;
            kv_len[i] = done[i] + q_len[i];
            memcpy(step_q + rows * Q_WIDTH, q + (first + done[i]) * Q_WIDTH, (size_t)q_len[i] * Q_WIDTH * sizeof *q);
            rows += q_len[i];
        }
        if (rows == 0) return 0;
        attn_batch batch = batch_of(q_len, kv_len);
        attn_io io = io_of(step_q, &step);
        if (run(mem, &batch, layer, &io, 0)) return 1;
        for (int i = 0, first = 0, from = 0; i < PROMPTS; first += prompt_len[i], i++) {
            size_t n = (size_t)q_len[i];
            memcpy(chunked.o + (first + done[i]) * Q_WIDTH, step.o + from * Q_WIDTH, n * Q_WIDTH * sizeof *step.o);
            memcpy(chunked.lse + (first + done[i]) * HEADS, step.lse + from * HEADS, n * HEADS * sizeof *step.lse);
            from += q_len[i];
            done[i] += q_len[i];
        }
    }
}

static float distance(float a, float b) {
    return a < b ? b - a : a - b;
}

/* The weights of every row and head add up to 1. Written so that a NaN fails. */
static int check_weights(void) {
    int bad = 0;
    for (int i = 0; i < ROWS * HEADS; i++) {
        bad += !(distance(whole.o[i * HEAD_DIM + HEAD_DIM - 1], 1.0f) < 1e-5f);
    }
    return bad;
}

/* The last head of every row returns the mean of the values that attn_visible names. */
static int check_means(const attn_layer *layer) {
    attn_batch batch = batch_of(prompt_len, prompt_len);
    int bad = 0;
    for (int i = 0, first = 0; i < PROMPTS; first += prompt_len[i], i++) {
        for (int row = 0; row < prompt_len[i]; row++) {
            double sum[HEAD_DIM] = { 0 };
            int seen = 0;
            for (int key = 0; key < prompt_len[i]; key++) {
                const float *value = v + (i * LONGEST + key) * KV_WIDTH + (KV_HEADS - 1) * HEAD_DIM;
                if (!attn_visible(&batch, layer, NULL, i, row, key)) continue;
                seen++;
                for (int c = 0; c < HEAD_DIM; c++) {
                    sum[c] += value[c];
                }
            }
            const float *o = whole.o + (first + row) * Q_WIDTH + (HEADS - 1) * HEAD_DIM;
            for (int c = 0; c < HEAD_DIM; c++) {
                bad += !(distance(o[c], (float)(sum[c] / seen)) < 1e-5f);
            }
        }
    }
    return bad;
}

static void print_last_rows(const attn_layer *layer) {
    attn_batch batch = batch_of(prompt_len, prompt_len);
    printf("  prompt  rows  keys seen by the last row  lse (head 0)   o[0] (head 0)\n");
    for (int i = 0, first = 0; i < PROMPTS; first += prompt_len[i], i++) {
        int last = prompt_len[i] - 1, seen = 0;
        for (int key = 0; key < prompt_len[i]; key++) {
            seen += attn_visible(&batch, layer, NULL, i, last, key);
        }
        printf("  %6d  %4d  %25d  %12.6f  %14.6f\n", i, (int)prompt_len[i], seen,
               (double)whole.lse[(first + last) * HEADS], (double)whole.o[(first + last) * Q_WIDTH]);
    }
}

static int demo(const char *name, const attn_layer *layer) {
    memory mem = { 0 };
    int steps = 0;
    printf("==== %s\n", name);
    memset(&whole, 0xFF, sizeof whole); /* NaN: a row that is not written cannot pass */
    memset(&chunked, 0xEE, sizeof chunked);
    int failed = run_whole(&mem, layer) || run_chunked(&mem, layer, &steps);
    free(mem.plan);
    free(mem.exec.mem);
    if (failed) return 1;
    print_last_rows(layer);
    int weights = check_weights();
    int means = check_means(layer);
    int same = memcmp(&whole, &chunked, sizeof whole) == 0;
    printf("  the weights of every row add up to 1: %s\n", weights ? "NO" : "yes");
    printf("  the last head, with q = 0, returns the mean of the values it sees: %s\n", means ? "NO" : "yes");
    printf("  one step or %d steps of at most %d rows a prompt, same bits (o and lse): %s\n\n", steps, CHUNK,
           same ? "yes" : "NO");
    return weights || means || !same;
}

int main(void) {
    attn_layer causal = { .heads = HEADS, .kv_heads = KV_HEADS, .head_dim = HEAD_DIM };
    causal.isa = (int32_t)attn_isa_detect(); /* once; 0 would detect in every plan */
    attn_layer window = causal;
    window.window_left = 48; /* the query's own key and the 47 before it */
    window.sink_keys = 4;    /* keys 0..3 stay visible */
    fill_inputs();
    int failed = demo("causal", &causal);
    failed |= demo("sliding window of 48 keys, 4 sink keys", &window);
    return failed;
}
