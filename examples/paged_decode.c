/* paged_decode.c - a small serving loop: requests join and leave, the cache grows page by page.

   Shows   one plan a step for all layers, attn_append into a paged f16 cache, pages given when a request needs them
           and taken back when it leaves, prompts (PREFILL) and single tokens (DECODE) mixed in one batch, empty
           slots, memory sized once from capacities. The whole run is then repeated with a contiguous cache: every
           attention output of every layer and step must have the same bits.
   Build   cc -I. examples/paged_decode.c -o paged_decode
   Result  exit status 0 if the two runs agree, else 1. */
#define ATTN_IMPLEMENTATION
#include "attn.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    /* the model */
    LAYERS = 4,
    HEADS = 4,
    KV_HEADS = 2,
    HEAD_DIM = 32,
    HIDDEN = HEADS * HEAD_DIM,
    KV_WIDTH = KV_HEADS * HEAD_DIM,
    VOCAB = 26, /* tokens are printed as letters */
    /* the server: capacities of every step */
    SLOTS = 3,
    MAX_PROMPT = 300,
    MAX_KEYS = 384,
    MAX_ROWS = SLOTS * MAX_PROMPT,
    PAGE = 16,
    TABLE_WIDTH = MAX_KEYS / PAGE,
    PAGES = 32, /* fewer than SLOTS * TABLE_WIDTH: slots share them */
    CACHE = SLOTS * MAX_KEYS * KV_WIDTH,
    /* the requests */
    REQUESTS = 6,
    TRACE = 600 * LAYERS * HIDDEN
};

/* `generate` tokens are wanted; the request may join from step `arrival` on. */
typedef struct request {
    int32_t prompt, generate, arrival;
} request;

static const request requests[REQUESTS] = {
    { 300, 14, 0 }, { 20, 5, 0 }, { 5, 9, 1 }, { 48, 8, 2 }, { 90, 6, 6 }, { 3, 12, 8 },
};

/* Everything that one run changes. */
typedef struct server {
    int paged;
    int joined, left, step;            /* requests join in the order of their numbers */
    int32_t who[SLOTS];                /* the request in a slot, or -1 */
    int32_t token[SLOTS];              /* its latest token */
    int32_t made[SLOTS];               /* tokens generated so far */
    int32_t q_len[SLOTS], kv_len[SLOTS], phase[SLOTS];
    char text[REQUESTS][MAX_KEYS];     /* the generated letters */
    int32_t table[SLOTS * TABLE_WIDTH];
    int32_t free_page[PAGES], n_free;
    float hidden[MAX_ROWS * HIDDEN];
    float q[MAX_ROWS * HIDDEN], new_k[MAX_ROWS * KV_WIDTH], new_v[MAX_ROWS * KV_WIDTH], o[MAX_ROWS * HIDDEN];
    uint16_t k_cache[LAYERS][CACHE], v_cache[LAYERS][CACHE];
    float trace[TRACE];                /* o of every layer and step */
    size_t n_trace;
} server;

static server paged, contiguous;

/* ---- a toy model: hashed weights, but its next token does depend on every attention output -------------------- */

static uint32_t hash(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t h = a * 0x9E3779B1u ^ b * 0x85EBCA77u ^ c * 0xC2B2AE3Du;
    h = (h ^ (h >> 15)) * 0x2C1B3C6Du;
    h = (h ^ (h >> 12)) * 0x297A2D39u;
    return h ^ (h >> 15);
}

/* -1 .. 1 */
static float hashed(uint32_t a, uint32_t b, uint32_t c) {
    return (float)(hash(a, b, c) >> 8) / 8388608.0f - 1.0f;
}

static void embed(int32_t token, int32_t position, float *x) {
    for (int c = 0; c < HIDDEN; c++) {
        x[c] = hashed(1, (uint32_t)token, (uint32_t)c) + hashed(2, (uint32_t)position, (uint32_t)c);
    }
}

/* A sparse matrix: each output takes four inputs. `name` tells the matrices of a layer apart. */
static void project(int layer, int name, const float *x, float *y, int width) {
    for (int c = 0; c < width; c++) {
        y[c] = 0;
        for (int tap = 0; tap < 4; tap++) {
            uint32_t h = hash((uint32_t)(layer * 3 + name + 10), (uint32_t)c, (uint32_t)tap);
            y[c] += (h & 1 ? 1.0f : -1.0f) * x[(h >> 1) % HIDDEN];
        }
    }
}

/* Before attention: q, k and v of every new row. */
static void model_before(server *s, int layer, int rows) {
    for (int r = 0; r < rows; r++) {
        const float *x = s->hidden + r * HIDDEN;
        project(layer, 0, x, s->q + r * HIDDEN, HIDDEN);
        project(layer, 1, x, s->new_k + r * KV_WIDTH, KV_WIDTH);
        project(layer, 2, x, s->new_v + r * KV_WIDTH, KV_WIDTH);
    }
}

/* After attention: the residual stream takes the output in. */
static void model_after(server *s, int rows) {
    for (int i = 0; i < rows * HIDDEN; i++) {
        s->hidden[i] = 0.7f * s->hidden[i] + 0.5f * s->o[i];
    }
}

static int32_t next_token(const float *x) {
    int32_t best = 0;
    float best_score = 0;
    for (int32_t token = 0; token < VOCAB; token++) {
        float score = 0;
        for (int c = 0; c < HIDDEN; c++) {
            score += x[c] * hashed(3, (uint32_t)token, (uint32_t)c);
        }
        if (token == 0 || score > best_score) {
            best = token;
            best_score = score;
        }
    }
    return best;
}

/* ---- slots and pages -------------------------------------------------------------------------------------------- */

/* Pages that a request holds at its end: its last token is not stored. */
static int pages_of(const request *r) {
    return (r->prompt + r->generate - 1 + PAGE - 1) / PAGE;
}

/* Admission: a request joins when a slot is empty and the pages of all who run, at their ends, suffice. The contiguous
   run follows the same rule, so that both see the same batches. */
static void join(server *s) {
    int promised = 0;
    for (int i = 0; i < SLOTS; i++) {
        if (s->who[i] >= 0) promised += pages_of(&requests[s->who[i]]);
    }
    for (int i = 0; i < SLOTS; i++) {
        if (s->who[i] >= 0) continue;
        s->q_len[i] = 0; /* a pad until somebody joins */
        s->kv_len[i] = 0;
        if (s->joined == REQUESTS || requests[s->joined].arrival > s->step) continue;
        if (promised + pages_of(&requests[s->joined]) > PAGES) continue;
        promised += pages_of(&requests[s->joined]);
        s->who[i] = s->joined++;
        s->made[i] = 0;
        s->q_len[i] = requests[s->who[i]].prompt;
        s->phase[i] = ATTN_PREFILL;
        printf("  step %2d: request %d joins in slot %d with a prompt of %d tokens\n", s->step, (int)s->who[i], i,
               (int)s->q_len[i]);
    }
}

/* The new rows are counted in; a page is taken for every key that starts one. */
static int grow(server *s) {
    int rows = 0;
    for (int i = 0; i < SLOTS; i++) {
        for (int32_t key = s->kv_len[i]; key < s->kv_len[i] + s->q_len[i]; key++) {
            if (key % PAGE == 0) s->table[i * TABLE_WIDTH + key / PAGE] = s->free_page[--s->n_free];
        }
        s->kv_len[i] += s->q_len[i];
        rows += s->q_len[i];
    }
    return rows;
}

static void leave(server *s, int slot) {
    int32_t *row = s->table + slot * TABLE_WIDTH;
    for (int p = 0; p < TABLE_WIDTH; p++) {
        if (row[p] >= 0) s->free_page[s->n_free++] = row[p];
        row[p] = -1;
    }
    printf("  step %2d: request %d leaves slot %d: %s\n", s->step, (int)s->who[slot], slot, s->text[s->who[slot]]);
    s->who[slot] = -1;
    s->left++;
}

/* Rows are packed in slot order: the prompt of who has just joined, else the latest token. */
static void embed_rows(server *s) {
    int row = 0;
    for (int i = 0; i < SLOTS; i++) {
        for (int32_t j = 0; j < s->q_len[i]; j++) {
            int32_t prompt_token = (int32_t)(hash(4, (uint32_t)s->who[i], (uint32_t)j) % VOCAB);
            int32_t token = s->phase[i] == ATTN_PREFILL ? prompt_token : s->token[i];
            embed(token, s->kv_len[i] - s->q_len[i] + j, s->hidden + row * HIDDEN);
            row++;
        }
    }
}

/* The last row of each slot chooses its next token, which will be the one row of the next step. */
static void choose_tokens(server *s) {
    int rows = 0;
    for (int i = 0; i < SLOTS; i++) {
        rows += s->q_len[i];
        if (s->who[i] < 0) continue;
        s->token[i] = next_token(s->hidden + (rows - 1) * HIDDEN);
        s->text[s->who[i]][s->made[i]++] = (char)('a' + s->token[i]);
        s->q_len[i] = 1;
        s->phase[i] = ATTN_DECODE;
        if (s->made[i] == requests[s->who[i]].generate) leave(s, i);
    }
}

/* ---- the loop --------------------------------------------------------------------------------------------------- */

static void start(server *s, int is_paged) {
    memset(s, 0, sizeof *s);
    s->paged = is_paged;
    memset(s->k_cache, 0xFF, sizeof s->k_cache); /* NaN: what is not written yet must not matter */
    memset(s->v_cache, 0xFF, sizeof s->v_cache);
    memset(s->table, 0xFF, sizeof s->table); /* -1: no page */
    memset(s->who, 0xFF, sizeof s->who);     /* -1: empty */
    for (int p = PAGES - 1; p >= 0; p--) {
        s->free_page[s->n_free++] = p;
    }
}

/* The layers of one step, all with the same plan. */
static int run_layers(server *s, const attn_plan *plan, const attn_layer *layer, const attn_exec *exec, int rows) {
    attn_io io = { .q = s->q, .o = s->o };
    attn_error err;
    if (s->paged) {
        io.page_table = s->table;
        io.page_table_row = TABLE_WIDTH;
        io.pages = PAGES;
    } else {
        io.k_page = MAX_KEYS * KV_WIDTH; /* slot i starts here times i */
        io.v_page = MAX_KEYS * KV_WIDTH;
    }
    for (int l = 0; l < LAYERS; l++) {
        model_before(s, l, rows);
        io.k = s->k_cache[l];
        io.v = s->v_cache[l];
        if (attn_append(plan, layer, &io, s->new_k, s->new_v, &err) || attn_forward(plan, layer, &io, exec, &err)) {
            printf("layer %d: %s\n", l, err.text);
            return 1;
        }
        model_after(s, rows);
        if (s->n_trace + (size_t)(rows * HIDDEN) > TRACE) {
            printf("the trace is full\n");
            return 1;
        }
        memcpy(s->trace + s->n_trace, s->o, (size_t)(rows * HIDDEN) * sizeof *s->o);
        s->n_trace += (size_t)(rows * HIDDEN);
    }
    return 0;
}

static int serve(server *s, int is_paged) {
    start(s, is_paged);
    printf("%s cache\n", is_paged ? "paged" : "contiguous");
    attn_layer layer = { .heads = HEADS, .kv_heads = KV_HEADS, .head_dim = HEAD_DIM, .kv_type = ATTN_F16 };
    layer.page_size = is_paged ? PAGE : 0;
    layer.isa = (int32_t)attn_isa_detect();
    attn_batch batch = { .n = SLOTS, .q_len = s->q_len, .kv_len = s->kv_len, .phase = s->phase };
    batch.max_q_len = MAX_PROMPT;
    batch.max_kv_len = MAX_KEYS;
    batch.max_rows = MAX_ROWS;
    size_t plan_bytes = attn_plan_bytes(&batch, &layer); /* from the capacities: once, not in every step */
    void *plan_mem = malloc(plan_bytes);
    attn_exec exec = { 0 };
    int failed = 0;
    for (; s->left < REQUESTS && !failed; s->step++) {
        attn_plan plan;
        attn_error err;
        join(s);
        int rows = grow(s);
        embed_rows(s);
        if (attn_plan_make(&plan, &batch, &layer, plan_mem, plan_bytes, &err)) {
            printf("plan: %s\n", err.text);
            failed = 1;
            break;
        }
        if (!exec.mem) {
            exec.bytes = attn_exec_bytes(&plan, 1);
            exec.mem = malloc(exec.bytes);
        }
        if (is_paged) {
            printf("  step %2d: %3d rows, keys %3d %3d %3d, %2d of %d pages in use\n", s->step, rows,
                   (int)s->kv_len[0], (int)s->kv_len[1], (int)s->kv_len[2], PAGES - (int)s->n_free, PAGES);
        }
        failed = run_layers(s, &plan, &layer, &exec, rows);
        if (!failed) choose_tokens(s);
    }
    free(exec.mem);
    free(plan_mem);
    return failed;
}

int main(void) {
    if (serve(&paged, 1) || serve(&contiguous, 0)) return 1;
    int same_text = memcmp(paged.text, contiguous.text, sizeof paged.text) == 0;
    int same_bits = paged.n_trace == contiguous.n_trace &&
                    memcmp(paged.trace, contiguous.trace, paged.n_trace * sizeof *paged.trace) == 0;
    int finite = 1;
    for (size_t i = 0; i < paged.n_trace; i++) {
        finite &= paged.trace[i] - paged.trace[i] == 0; /* false for NaN and infinities */
    }
    printf("%zu outputs of %d layers in %d steps, all finite: %s\n", paged.n_trace, LAYERS, paged.step,
           finite ? "yes" : "NO");
    printf("paged and contiguous: same text: %s, same bits: %s\n", same_text ? "yes" : "NO", same_bits ? "yes" : "NO");
    return !(same_text && same_bits && finite);
}
