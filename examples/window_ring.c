/* window_ring.c - a sliding-window layer keeps its last keys in a ring and forgets the others.

   Shows   layer.ring: a cache of a fixed size beside one that keeps every key, and the same bits from both while
           prompts come in chunks, decoding goes on far past the end of the ring, and drafts are appended and taken
           back; attn_window_from_radius for a window given as a radius; how large a ring must be, and the sentence
           with which a smaller one is refused.
   Build   cc -I. examples/window_ring.c -o window_ring
   Result  exit status 0 if all outputs agree in every bit and the ring holds what it should, else 1. */
#define ATTN_IMPLEMENTATION
#include "attn.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    HEADS = 4,
    KV_HEADS = 2,
    HEAD_DIM = 32,
    Q_WIDTH = HEADS * HEAD_DIM,
    KV_WIDTH = KV_HEADS * HEAD_DIM,
    RADIUS = 63,               /* the model's sliding_window_size: 63 keys before the query, and the query */
    REQUESTS = 2,
    CHUNK = 32,                /* rows of a prompt in one step: the most that a step appends to a request */
    DRAFTS = 4,                /* guesses behind the latest token in a step that speculates */
    GOAL = 1000,               /* tokens of the longest request in the end */
    MAX_KEYS = GOAL + DRAFTS,  /* the last step appends drafts past the goal and takes them back */
    WINDOW = RADIUS + 1,       /* what attn_window_from_radius must say */
    RING = WINDOW - 1 + CHUNK, /* the smallest ring: the keys before a chunk's first row, and the chunk */
    COLUMNS = 12               /* slots in a line of the picture */
};

static const int32_t prompt_len[REQUESTS] = { 200, 77 };
static const int32_t goal[REQUESTS] = { GOAL, 640 };

/* One way to run the two requests. */
typedef struct run {
    attn_layer layer;
    int32_t slots;    /* of one request's cache */
    int speculates;
    int32_t len[REQUESTS];
    int steps, taken_back;
    uint16_t *k, *v;  /* f16, [request][slot][kv_head][dim] */
    void *plan_mem;
    size_t plan_bytes;
    attn_exec exec;
    float q[REQUESTS * CHUNK * Q_WIDTH], o[REQUESTS * CHUNK * Q_WIDTH];
    float new_k[REQUESTS * CHUNK * KV_WIDTH], new_v[REQUESTS * CHUNK * KV_WIDTH];
    float trace[REQUESTS][GOAL][Q_WIDTH]; /* the output of every token that stayed */
} run;

static run whole, whole_drafts, ring_drafts;

/* -1 .. 1 */
static float hashed(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t h = a * 0x9E3779B1u ^ b * 0x85EBCA77u ^ c * 0xC2B2AE3Du;
    h = (h ^ (h >> 15)) * 0x2C1B3C6Du;
    h = (h ^ (h >> 12)) * 0x297A2D39u;
    return (float)((h ^ (h >> 15)) >> 8) / 8388608.0f - 1.0f;
}

/* A row's q, k or v follows from its request, its position and whether it is a wrong guess. */
static void fill(float *x, int width, int what, int request, int32_t position, int wrong) {
    for (int c = 0; c < width; c++) {
        x[c] = 3.0f * hashed((uint32_t)(4 * what + 2 * request + wrong + 1), (uint32_t)position, (uint32_t)c);
    }
}

/* ---- one step --------------------------------------------------------------------------------------------------- */

/* What a request does now: a chunk of its prompt, or its latest token, with guesses behind it now and then. `keep`:
   how many of the rows turn out to be right. */
typedef struct move {
    int32_t rows, keep, phase;
} move;

static void next_move(const run *r, int request, move *m) {
    int32_t len = r->len[request], left = prompt_len[request] - len;
    int last = len == goal[request] - 1;
    m->phase = left > 0 ? ATTN_PREFILL : ATTN_DECODE;
    if (left > 0) {
        m->rows = left < CHUNK ? left : CHUNK;
        m->keep = m->rows;
    } else if (len == goal[request]) {
        m->rows = 0; /* done, and idle until all are */
        m->keep = 0;
    } else if (r->speculates && (len % 7 == request || last)) {
        int32_t most = last ? 0 : goal[request] - 2 - len; /* so that the last step has drafts to take back, too */
        int32_t right = len / 7 % (DRAFTS + 1);
        m->rows = 1 + DRAFTS;
        m->keep = 1 + (right < most ? right : most);
    } else {
        m->rows = 1;
        m->keep = 1;
    }
}

/* Appends the rows of both requests to the cache and attends. */
static int attend(run *r, const move *moves) {
    int32_t q_len[REQUESTS], kv_len[REQUESTS], phase[REQUESTS];
    int row = 0;
    for (int i = 0; i < REQUESTS; i++) {
        q_len[i] = moves[i].rows;
        kv_len[i] = r->len[i] + moves[i].rows;
        phase[i] = moves[i].phase;
        for (int32_t j = 0; j < moves[i].rows; j++, row++) {
            int wrong = j >= moves[i].keep;
            fill(r->q + row * Q_WIDTH, Q_WIDTH, 0, i, r->len[i] + j, wrong);
            fill(r->new_k + row * KV_WIDTH, KV_WIDTH, 1, i, r->len[i] + j, wrong);
            fill(r->new_v + row * KV_WIDTH, KV_WIDTH, 2, i, r->len[i] + j, wrong);
        }
    }
    attn_batch batch = { .n = REQUESTS, .q_len = q_len, .kv_len = kv_len, .phase = phase };
    batch.max_q_len = CHUNK;
    batch.max_kv_len = MAX_KEYS;
    batch.max_rows = REQUESTS * CHUNK;
    attn_io io = { .q = r->q, .k = r->k, .v = r->v, .o = r->o };
    io.k_page = (int64_t)r->slots * KV_WIDTH; /* where the next request's slots begin */
    io.v_page = io.k_page;
    attn_plan plan;
    attn_error err;
    if (!r->plan_mem) {
        r->plan_bytes = attn_plan_bytes(&batch, &r->layer);
        r->plan_mem = malloc(r->plan_bytes);
    }
    int failed = attn_plan_make(&plan, &batch, &r->layer, r->plan_mem, r->plan_bytes, &err);
    if (!failed && !r->exec.mem) {
        r->exec.bytes = attn_exec_bytes(&plan, 1);
        r->exec.mem = malloc(r->exec.bytes);
    }
    failed = failed || attn_append(&plan, &r->layer, &io, r->new_k, r->new_v, &err) ||
             attn_forward(&plan, &r->layer, &io, &r->exec, &err);
    if (failed) printf("%s\n", err.text);
    return failed;
}

/* Keeps the rows that were right. Taking the others back is no more than not counting them: their slots are written
   again by the tokens that follow, and the ring is large enough for the keys that they pushed out not to be missed. */
static void settle(run *r, const move *moves) {
    int row = 0;
    for (int i = 0; i < REQUESTS; i++) {
        size_t kept = (size_t)moves[i].keep * Q_WIDTH * sizeof *r->o;
        if (kept) memcpy(r->trace[i][r->len[i]], r->o + row * Q_WIDTH, kept);
        r->len[i] += moves[i].keep;
        r->taken_back += moves[i].rows - moves[i].keep;
        row += moves[i].rows;
    }
    r->steps++;
}

/* ---- whole runs ------------------------------------------------------------------------------------------------- */

static size_t cache_bytes(const run *r) {
    return 2 * sizeof *r->k * REQUESTS * (size_t)r->slots * KV_WIDTH;
}

static int run_all(run *r, const char *name, int32_t ring, int speculates) {
    r->layer.heads = HEADS;
    r->layer.kv_heads = KV_HEADS;
    r->layer.head_dim = HEAD_DIM;
    r->layer.kv_type = ATTN_F16;
    r->layer.window_left = attn_window_from_radius(RADIUS, 1, 0);
    r->layer.ring = ring;
    r->layer.isa = (int32_t)attn_isa_detect();
    r->slots = ring ? ring : MAX_KEYS;
    r->speculates = speculates;
    r->k = malloc(cache_bytes(r) / 2);
    r->v = malloc(cache_bytes(r) / 2);
    memset(r->k, 0xFF, cache_bytes(r) / 2); /* NaN: a slot that is read too early spoils the output */
    memset(r->v, 0xFF, cache_bytes(r) / 2);
    while (r->len[0] < goal[0] || r->len[1] < goal[1]) {
        move moves[REQUESTS];
        for (int i = 0; i < REQUESTS; i++) {
            next_move(r, i, &moves[i]);
        }
        if (attend(r, moves)) return 1;
        settle(r, moves);
    }
    printf("  %-24s %5d slots a request  %7zu bytes of cache  %4d steps  %3d drafts taken back\n", name, (int)r->slots,
           cache_bytes(r), r->steps, r->taken_back);
    return 0;
}

static void close_run(run *r) {
    free(r->k);
    free(r->v);
    free(r->plan_mem);
    free(r->exec.mem);
}

static int same_trace(const run *a, const run *b) {
    return memcmp(a->trace, b->trace, sizeof a->trace) == 0;
}

static int all_finite(const run *r) {
    int ok = 1;
    for (int i = 0; i < REQUESTS; i++) {
        for (int c = 0; c < goal[i] * Q_WIDTH; c++) {
            float o = r->trace[i][c / Q_WIDTH][c % Q_WIDTH];
            ok &= o - o == 0; /* false for NaN and infinities */
        }
    }
    return ok;
}

/* ---- what the ring holds ---------------------------------------------------------------------------------------- */

/* Is the slot of `key` in the ring a copy of that key in the cache that keeps everything? */
static int holds(int request, int32_t key) {
    size_t in_ring = ((size_t)request * RING + (size_t)(key % RING)) * KV_WIDTH;
    size_t in_whole = ((size_t)request * MAX_KEYS + (size_t)key) * KV_WIDTH;
    size_t bytes = KV_WIDTH * sizeof *ring_drafts.k;
    return memcmp(ring_drafts.k + in_ring, whole_drafts.k + in_whole, bytes) == 0 &&
           memcmp(ring_drafts.v + in_ring, whole_drafts.v + in_whole, bytes) == 0;
}

/* The latest key, drafts included, that went into a slot. */
static int32_t key_in(int32_t slot, int32_t appended) {
    return slot + (appended - 1 - slot) / RING * RING;
}

static int wrong_slots(int request) {
    int wrong = 0;
    for (int32_t slot = 0; slot < RING; slot++) {
        wrong += !holds(request, key_in(slot, goal[request] + DRAFTS));
    }
    return wrong;
}

static void picture(int request) {
    int32_t len = ring_drafts.len[request];
    printf("\nThe ring of request %d after %d tokens, 0 to %d: key p lies in slot p mod %d.\n", request, (int)len,
           (int)len - 1, RING);
    printf("[key] the next token will see it   key  no longer in the window   (key) a draft, taken back\n");
    for (int32_t slot = 0; slot < RING; slot++) {
        int32_t key = key_in(slot, len + DRAFTS);
        const char *form = key >= len ? "(%d)" : key > len - WINDOW ? "[%d]" : " %d ";
        char cell[16];
        snprintf(cell, sizeof cell, form, (int)key);
        if (slot % COLUMNS == 0) printf("  slot %3d:", (int)slot);
        printf(" %6s%s", cell, slot % COLUMNS == COLUMNS - 1 || slot == RING - 1 ? "\n" : "");
    }
}

/* A ring with a slot less would lose a key that the first row of a full chunk still sees. */
static int refuses_smaller_ring(void) {
    attn_layer layer = ring_drafts.layer;
    int32_t q_len = CHUNK, kv_len = MAX_KEYS;
    attn_batch batch = { .n = 1, .q_len = &q_len, .kv_len = &kv_len };
    attn_plan plan;
    attn_error err;
    layer.ring = RING - 1;
    int status = attn_plan_make(&plan, &batch, &layer, NULL, 0, &err);
    printf("\nA ring of %d slots: %s\n", RING - 1, status ? err.text : "accepted");
    return status == ATTN_E_LAYER;
}

static const char *yes(int condition) {
    return condition ? "yes" : "NO";
}

int main(void) {
    int32_t window = attn_window_from_radius(RADIUS, 1, 0);
    printf("sliding_window_size %d is a radius: window_left = %d keys, the query's own included\n", RADIUS,
           (int)window);
    printf("a step appends up to %d rows: the ring needs %d - 1 + %d = %d slots\n\n", CHUNK, (int)window, CHUNK, RING);
    if (window != WINDOW) return 1;
    if (run_all(&whole, "every key, no drafts", 0, 0) || run_all(&whole_drafts, "every key, drafts", 0, 1) ||
        run_all(&ring_drafts, "ring, drafts", RING, 1)) {
        return 1;
    }
    int ok = all_finite(&whole);
    int drafts = same_trace(&whole, &whole_drafts);
    int ring = same_trace(&whole, &ring_drafts);
    int wrong = wrong_slots(0) + wrong_slots(1);
    picture(0);
    int refused = refuses_smaller_ring();
    int turned = ring_drafts.len[0] > 3 * RING && ring_drafts.taken_back > 0; /* there was something to get wrong */
    printf("\noutputs of %d tokens, %d floats each, all finite: %s\n", (int)(goal[0] + goal[1]), Q_WIDTH, yes(ok));
    printf("with drafts taken back or without, same bits:      %s\n", yes(drafts));
    printf("ring or whole cache, same bits:                    %s\n", yes(ring));
    printf("the ring holds the keys of the picture:            %s\n", yes(!wrong));
    printf("a smaller ring is refused:                         %s\n", yes(refused));
    close_run(&whole);
    close_run(&whole_drafts);
    close_run(&ring_drafts);
    return !(ok && drafts && ring && !wrong && refused && turned);
}
