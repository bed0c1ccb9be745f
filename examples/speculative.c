/* speculative.c - speculative decoding: a small model drafts, the large one verifies a tree of drafts in one step.

   Shows   the four steps of the loop and the forward mode of each: draft (DRAFT_DECODE), verify all drafts of all
           requests at once (TARGET_VERIFY with mask ATTN_TREE, positions by depth in the tree), accept the longest
           path that the target model agrees with and move its keys together, take the rest back by not counting it,
           and let the draft model take in what was accepted (DRAFT_EXTEND, ragged). Three requests share a batch and
           accept different numbers of drafts. The text is that of plain decoding, which runs first.
   Build   cc -I. examples/speculative.c -o speculative
   Result  exit status 0 if the texts agree, a chain of drafts gives the bits of plain decoding and a tree its scores
           within rounding, else 1. */
#define ATTN_IMPLEMENTATION
#include "attn.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    /* the target model; the draft model is its first layer */
    LAYERS = 4,
    HEADS = 4,
    KV_HEADS = 2,
    HEAD_DIM = 32,
    HIDDEN = HEADS * HEAD_DIM,
    KV_WIDTH = KV_HEADS * HEAD_DIM,
    VOCAB = 60, /* syllables */
    /* the server */
    REQUESTS = 3,
    MAX_PROMPT = 32, /* the most rows of a request in a step: one word of tree bits is enough */
    GENERATE = 61, /* the first one comes from the prompt, the others from steps */
    MAX_DEPTH = 6,
    MAX_NODES = 7, /* rows of a request in a verify step: its latest token and six guesses */
    MAX_ROWS = REQUESTS * MAX_PROMPT,
    MAX_KEYS = MAX_PROMPT + GENERATE + MAX_NODES,
    PAGE = 16,
    COLUMNS = (MAX_KEYS + PAGE - 1) / PAGE,
    PAGES = REQUESTS * COLUMNS,
    CACHE = PAGES * PAGE * KV_WIDTH
};

static const int32_t prompt_len[REQUESTS] = { 12, 32, 5 };

/* The shape of the drafts. Node 0 is the latest token. The draft model guesses `depth` tokens, each after the one
   before; at every depth its second, third, ... best choices are verified, too, up to `width`, but not followed. */
typedef struct shape {
    const char *name;
    int32_t depth, width;
} shape;

/* The same six guesses in two shapes. */
static const shape chain = { "chain, 6 deep", 6, 1 }, tree = { "tree, 3 deep, 2 wide", 3, 2 };

/* Memory of a plan and its calls. It is sized by the capacities, so one of each serves every step. */
typedef struct memory {
    void *plan;
    size_t plan_bytes;
    attn_exec exec;
} memory;

typedef struct model {
    int layers;
    float k[LAYERS][CACHE], v[LAYERS][CACHE]; /* [page][slot][kv_head][dim] */
    memory mem[2];                            /* causal steps, steps with a tree */
    float hidden[MAX_ROWS * HIDDEN];          /* the residual stream, and after a step its result */
    float q[MAX_ROWS * HIDDEN], new_k[MAX_ROWS * KV_WIDTH], new_v[MAX_ROWS * KV_WIDTH], o[MAX_ROWS * HIDDEN];
} model;

/* The rows of one step, request after request. */
typedef struct step {
    int32_t seq_lens[REQUESTS]; /* in the convention of the mode; -1: this request takes no part */
    int32_t extend_lens[REQUESTS];
    int32_t rows;
    int32_t token[MAX_ROWS], position[MAX_ROWS];
    uint32_t bits[MAX_ROWS];
} step;

/* One way to generate the texts. */
typedef struct run {
    model target, draft;
    int32_t token[REQUESTS][MAX_KEYS], len[REQUESTS];
    int32_t drafted[REQUESTS];                        /* tokens that the draft model has taken in */
    int32_t guess[REQUESTS][MAX_DEPTH][MAX_NODES];    /* [depth][best, second, ...] */
    int32_t steps[REQUESTS];                          /* of the target model, after the prompt */
    int32_t moved[REQUESTS];                          /* keys that moved to the slot of their position */
    float trace[REQUESTS][GENERATE][HIDDEN];          /* what the target model chose each token from */
} run;

static run plain, with_chain, with_tree;
static int32_t page_table[REQUESTS * COLUMNS];

/* ---- a toy model: hashed weights -------------------------------------------------------------------------------- */

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

static float score(const float *x, int32_t token) {
    float sum = 0;
    for (int c = 0; c < HIDDEN; c++) {
        sum += x[c] * hashed(3, (uint32_t)token, (uint32_t)c);
    }
    return sum;
}

/* The `count` tokens of the highest scores, best first. */
static void best_tokens(const float *x, int32_t *best, int32_t count) {
    float best_score[MAX_NODES];
    int32_t found = 0;
    for (int32_t token = 0; token < VOCAB; token++) {
        float s = score(x, token);
        int32_t at = found;
        for (; at > 0 && s > best_score[at - 1]; at--) {
            if (at == count) continue;
            best[at] = best[at - 1];
            best_score[at] = best_score[at - 1];
        }
        if (at == count) continue;
        best[at] = token;
        best_score[at] = s;
        if (found < count) found++;
    }
}

/* Turns the engine's lengths into a batch and plans the step; `lengths` has what the mode wants to know. */
static int plan_step(memory *mem, attn_plan *plan, const attn_layer *layer, attn_mode mode, attn_mode_input lengths) {
    int32_t normal[3 * REQUESTS]; /* q_len, kv_len and phase; the plan has copies */
    attn_batch batch;
    attn_error err;
    lengths.n = REQUESTS;
    lengths.max_q_len = MAX_PROMPT;
    lengths.max_kv_len = MAX_KEYS;
    lengths.max_rows = MAX_ROWS;
    int failed = attn_batch_from_mode(&batch, mode, &lengths, normal, 3 * REQUESTS, &err);
    if (!failed && !mem->plan) {
        mem->plan_bytes = attn_plan_bytes(&batch, layer);
        mem->plan = malloc(mem->plan_bytes);
    }
    failed = failed || attn_plan_make(plan, &batch, layer, mem->plan, mem->plan_bytes, &err);
    if (!failed && !mem->exec.mem) {
        mem->exec.bytes = attn_exec_bytes(plan, 1);
        mem->exec.mem = malloc(mem->exec.bytes);
    }
    if (failed) printf("%s\n", err.text);
    return failed;
}

/* q, k and v of all rows. A row's place in its text turns q and k. For a draft that is its depth in the tree, not its
   slot in the cache: so its key stays right when it moves to the slot of its position. */
static int before_attention(model *m, const step *s, int layer, attn_error *err) {
    attn_rope_input turn_q = { .x = m->q, .rows = s->rows, .heads = HEADS, .head_dim = HEAD_DIM };
    attn_rope_input turn_k = { .x = m->new_k, .rows = s->rows, .heads = KV_HEADS, .head_dim = HEAD_DIM };
    turn_q.positions = s->position;
    turn_k.positions = s->position;
    for (int r = 0; r < s->rows; r++) {
        const float *x = m->hidden + r * HIDDEN;
        project(layer, 0, x, m->q + r * HIDDEN, HIDDEN);
        project(layer, 1, x, m->new_k + r * KV_WIDTH, KV_WIDTH);
        project(layer, 2, x, m->new_v + r * KV_WIDTH, KV_WIDTH);
    }
    return attn_rope(&turn_q, err) || attn_rope(&turn_k, err);
}

/* Runs the rows of a step through all layers of a model. `lengths` has what the mode wants to know beyond the lengths
   of the step. */
static int forward(model *m, const step *s, attn_mode mode, attn_mode_input lengths) {
    int verify = mode == ATTN_MODE_TARGET_VERIFY;
    memory *mem = &m->mem[verify];
    attn_layer layer = { .heads = HEADS, .kv_heads = KV_HEADS, .head_dim = HEAD_DIM, .page_size = PAGE };
    layer.mask = verify ? ATTN_TREE : ATTN_CAUSAL;
    attn_plan plan;
    attn_error err;
    lengths.seq_lens = s->seq_lens;
    lengths.extend_lens = s->extend_lens;
    if (plan_step(mem, &plan, &layer, mode, lengths)) return 1;
    attn_io io = { .q = m->q, .o = m->o, .page_table = page_table, .page_table_row = COLUMNS, .pages = PAGES };
    io.tree = s->bits; /* not looked at without ATTN_TREE */
    for (int i = 0; i < s->rows * HIDDEN; i++) {
        m->hidden[i] = hashed(1, (uint32_t)s->token[i / HIDDEN], (uint32_t)(i % HIDDEN));
    }
    for (int l = 0; l < m->layers; l++) {
        io.k = m->k[l];
        io.v = m->v[l];
        if (before_attention(m, s, l, &err) || attn_append(&plan, &layer, &io, m->new_k, m->new_v, &err) ||
            attn_forward(&plan, &layer, &io, &mem->exec, &err)) {
            printf("layer %d: %s\n", l, err.text);
            return 1;
        }
        float gain = l ? 0.25f : 0.7f; /* the first layer says the most, so that it can draft for all */
        for (int i = 0; i < s->rows * HIDDEN; i++) {
            m->hidden[i] += gain * m->o[i];
        }
    }
    return 0;
}

/* ---- steps ------------------------------------------------------------------------------------------------------ */

static void clear(step *s) {
    memset(s, 0, sizeof *s);
    for (int i = 0; i < REQUESTS; i++) {
        s->seq_lens[i] = -1;
    }
}

static void add_row(step *s, int32_t token, int32_t position, uint32_t bits) {
    s->token[s->rows] = token;
    s->position[s->rows] = position;
    s->bits[s->rows++] = bits;
}

static int is_done(const run *r, int request) {
    return r->len[request] == prompt_len[request] + GENERATE;
}

static int all_done(const run *r) {
    int done = 1;
    for (int i = 0; i < REQUESTS; i++) {
        done &= is_done(r, i);
    }
    return done;
}

/* The target model has chosen the next token of a request. */
static int32_t take_token(run *r, int request, const float *hidden) {
    int32_t token;
    best_tokens(hidden, &token, 1);
    memcpy(r->trace[request][r->len[request] - prompt_len[request]], hidden, HIDDEN * sizeof *hidden);
    r->token[request][r->len[request]++] = token;
    return token;
}

/* The prompts go through a model, whole. */
static int read_prompts(run *r, model *m) {
    step s;
    clear(&s);
    for (int i = 0; i < REQUESTS; i++) {
        s.seq_lens[i] = prompt_len[i];
        s.extend_lens[i] = prompt_len[i];
        for (int32_t p = 0; p < prompt_len[i]; p++) {
            add_row(&s, r->token[i][p], p, 0);
        }
    }
    return forward(m, &s, ATTN_MODE_EXTEND, (attn_mode_input){ 0 });
}

/* The last row of each prompt chooses a first token. */
static void take_first_tokens(run *r) {
    for (int i = 0, row = 0; i < REQUESTS; i++) {
        row += prompt_len[i];
        take_token(r, i, r->target.hidden + (row - 1) * HIDDEN);
    }
}

/* Plain decoding: one token of each request. Its latest token is not in the cache yet; seq_lens counts it. */
static int decode(run *r) {
    step s;
    clear(&s);
    for (int i = 0; i < REQUESTS; i++) {
        if (is_done(r, i)) continue;
        s.seq_lens[i] = r->len[i];
        add_row(&s, r->token[i][r->len[i] - 1], r->len[i] - 1, 0);
    }
    if (forward(&r->target, &s, ATTN_MODE_DECODE, (attn_mode_input){ 0 })) return 1;
    for (int i = 0, row = 0; i < REQUESTS; i++) {
        if (is_done(r, i)) continue;
        r->steps[i]++;
        take_token(r, i, r->target.hidden + row++ * HIDDEN);
    }
    return 0;
}

/* The draft model takes in the tokens that are new since its last time, ragged, and guesses the next one. Its keys of
   wrong guesses are still in its cache, behind the keys that count: this step writes over them. */
static int draft_extend(run *r, const shape *form) {
    step s;
    clear(&s);
    for (int i = 0; i < REQUESTS; i++) {
        if (is_done(r, i)) continue;
        s.seq_lens[i] = r->len[i];
        s.extend_lens[i] = r->len[i] - r->drafted[i];
        for (int32_t p = r->drafted[i]; p < r->len[i]; p++) {
            add_row(&s, r->token[i][p], p, 0);
        }
    }
    if (forward(&r->draft, &s, ATTN_MODE_DRAFT_EXTEND, (attn_mode_input){ 0 })) return 1;
    for (int i = 0, row = 0; i < REQUESTS; i++) {
        if (is_done(r, i)) continue;
        row += s.extend_lens[i];
        r->drafted[i] = r->len[i];
        best_tokens(r->draft.hidden + (row - 1) * HIDDEN, r->guess[i][0], form->width);
    }
    return 0;
}

/* Step `n` of the draft loop: what follows the best guess of depth n. */
static int draft_decode(run *r, const shape *form, int32_t n) {
    step s;
    clear(&s);
    for (int i = 0; i < REQUESTS; i++) {
        if (is_done(r, i)) continue;
        s.seq_lens[i] = r->len[i];
        add_row(&s, r->guess[i][n][0], r->len[i] + n, 0);
    }
    if (forward(&r->draft, &s, ATTN_MODE_DRAFT_DECODE, (attn_mode_input){ .draft_step = n })) return 1;
    for (int i = 0, row = 0; i < REQUESTS; i++) {
        if (is_done(r, i)) continue;
        best_tokens(r->draft.hidden + row++ * HIDDEN, r->guess[i][n + 1], form->width);
    }
    return 0;
}

/* Node 0 is the latest token; then come the guesses of depth 1, those of depth 2, ... */
static int32_t node_of(const shape *form, int32_t depth, int32_t choice) {
    return depth == 0 ? 0 : 1 + (depth - 1) * form->width + choice;
}

/* A request's rows: each sees the cached keys, its ancestors and itself. */
static void add_tree(step *s, const run *r, const shape *form, int request) {
    int32_t last = r->len[request] - 1;
    uint32_t ancestors = 1;
    add_row(s, r->token[request][last], last, 1);
    for (int32_t depth = 1; depth <= form->depth; depth++) {
        for (int32_t choice = 0; choice < form->width; choice++) {
            uint32_t self = 1u << node_of(form, depth, choice);
            add_row(s, r->guess[request][depth - 1][choice], last + depth, ancestors | self);
        }
        ancestors |= 1u << node_of(form, depth, 0); /* only the best guess is followed */
    }
}

/* Walks down the tree while a guess is what the target model chooses; returns how many were right. path: their nodes.
   `hidden` are the request's rows. Each row on the path gives a token, the last one a token that nobody guessed. */
static int32_t accept(run *r, const shape *form, int request, const float *hidden, int32_t *path) {
    int32_t right = 0, choice = 0;
    path[0] = 0;
    for (;;) {
        int32_t token = take_token(r, request, hidden + path[right] * HIDDEN);
        if (is_done(r, request) || choice > 0 || right == form->depth) return right; /* no guesses below */
        const int32_t *guess = r->guess[request][right];
        while (choice < form->width && guess[choice] != token) choice++;
        if (choice == form->width) return right;
        right++;
        path[right] = node_of(form, right, choice);
    }
}

static float *cache_row(float *cache, int request, int32_t key) {
    return cache + (page_table[request * COLUMNS + key / PAGE] * PAGE + key % PAGE) * KV_WIDTH;
}

/* The keys and values of the accepted path move to consecutive slots; `first` is the key of node 0. A node never has a
   lower number than its depth, so nothing is overwritten before it has moved. Returns how many moved. */
static int32_t move_path(model *m, int request, int32_t first, const int32_t *path, int32_t right) {
    size_t bytes = KV_WIDTH * sizeof(float);
    int32_t moved = 0;
    for (int32_t d = 1; d <= right; d++) {
        if (path[d] == d) continue;
        for (int l = 0; l < m->layers; l++) {
            memcpy(cache_row(m->k[l], request, first + d), cache_row(m->k[l], request, first + path[d]), bytes);
            memcpy(cache_row(m->v[l], request, first + d), cache_row(m->v[l], request, first + path[d]), bytes);
        }
        moved++;
    }
    return moved;
}

/* One step of the target model over the latest token and all guesses of every request. seq_lens counts the keys that
   the cache holds before. Afterwards the length grows by what was accepted; that alone takes the other keys back. */
static int verify(run *r, const shape *form) {
    step s;
    int32_t nodes = 1 + form->depth * form->width;
    clear(&s);
    for (int i = 0; i < REQUESTS; i++) {
        if (is_done(r, i)) continue;
        s.seq_lens[i] = r->len[i] - 1;
        add_tree(&s, r, form, i);
    }
    if (forward(&r->target, &s, ATTN_MODE_TARGET_VERIFY, (attn_mode_input){ .draft_tokens = nodes })) return 1;
    for (int i = 0, row = 0; i < REQUESTS; i++) {
        int32_t path[MAX_DEPTH + 1], first = r->len[i] - 1;
        if (is_done(r, i)) continue;
        int32_t right = accept(r, form, i, r->target.hidden + row * HIDDEN, path);
        r->moved[i] += move_path(&r->target, i, first, path, right);
        r->steps[i]++;
        row += nodes;
    }
    return 0;
}

/* ---- whole runs ------------------------------------------------------------------------------------------------- */

/* form: how to speculate; NULL: plain decoding. */
static int generate(run *r, const shape *form) {
    r->target.layers = LAYERS;
    r->draft.layers = 1;
    memset(r->target.k, 0xFF, sizeof r->target.k); /* NaN: what is not written yet must not matter */
    memset(r->target.v, 0xFF, sizeof r->target.v);
    memset(r->draft.k, 0xFF, sizeof r->draft.k);
    memset(r->draft.v, 0xFF, sizeof r->draft.v);
    for (int i = 0; i < REQUESTS; i++) {
        r->len[i] = prompt_len[i];
        r->drafted[i] = prompt_len[i];
        for (int32_t p = 0; p < prompt_len[i]; p++) {
            r->token[i][p] = (int32_t)(hash(4, (uint32_t)i, (uint32_t)p) % VOCAB);
        }
    }
    if (read_prompts(r, &r->target) || (form && read_prompts(r, &r->draft))) return 1;
    take_first_tokens(r);
    while (!all_done(r)) {
        if (!form) {
            if (decode(r)) return 1;
            continue;
        }
        if (draft_extend(r, form)) return 1;
        for (int32_t n = 0; n < form->depth - 1; n++) {
            if (draft_decode(r, form, n)) return 1;
        }
        if (verify(r, form)) return 1;
    }
    return 0;
}

static void close_run(run *r) {
    for (int i = 0; i < 2; i++) {
        free(r->target.mem[i].plan);
        free(r->target.mem[i].exec.mem);
        free(r->draft.mem[i].plan);
        free(r->draft.mem[i].exec.mem);
    }
}

/* ---- the report ------------------------------------------------------------------------------------------------- */

static void print_run(const run *r, const char *name) {
    printf("%s\n", name);
    for (int i = 0; i < REQUESTS; i++) {
        printf("  request %d: %d tokens in %2d steps of the target model, %.2f a step, %2d keys moved\n", i,
               GENERATE - 1, (int)r->steps[i], (double)(GENERATE - 1) / (double)r->steps[i], (int)r->moved[i]);
    }
}

/* A token is a consonant and a vowel; every fourth ends a word. */
static void print_text(const run *r, int request) {
    printf("  ");
    for (int32_t p = prompt_len[request]; p < r->len[request]; p++) {
        int32_t token = r->token[request][p];
        printf("%c%c%s", "bdfgklmnprst"[token / 5], "aeiou"[token % 5], token % 4 == 3 ? " " : "");
    }
    printf("\n");
}

static float distance(float a, float b) {
    return a < b ? b - a : a - b;
}

/* The largest distance between the scores of two runs, and the smallest lead of the best token in the first. */
static void compare_scores(const run *a, const run *b, float *largest, float *lead) {
    *largest = 0;
    *lead = 1e30f;
    for (int row = 0; row < REQUESTS * GENERATE; row++) {
        const float *x = a->trace[row / GENERATE][row % GENERATE], *y = b->trace[row / GENERATE][row % GENERATE];
        int32_t best[2];
        best_tokens(x, best, 2);
        float ahead = score(x, best[0]) - score(x, best[1]);
        if (!(ahead > *lead)) *lead = ahead;
        for (int32_t token = 0; token < VOCAB; token++) {
            float d = distance(score(x, token), score(y, token));
            if (!(d <= *largest)) *largest = d;
        }
    }
}

static const char *yes(int condition) {
    return condition ? "yes" : "NO";
}

int main(void) {
    for (int i = 0; i < PAGES; i++) {
        page_table[i] = (i * 5 + 2) % PAGES; /* any order will do; 5 and PAGES share no factor */
    }
    if (generate(&plain, NULL) || generate(&with_chain, &chain) || generate(&with_tree, &tree)) return 1;
    print_run(&plain, "plain decoding");
    print_run(&with_chain, chain.name);
    print_run(&with_tree, tree.name);
    printf("the text of each request\n");
    for (int i = 0; i < REQUESTS; i++) {
        print_text(&with_tree, i);
    }
    int same_text = memcmp(plain.token, with_chain.token, sizeof plain.token) == 0 &&
                    memcmp(plain.token, with_tree.token, sizeof plain.token) == 0;
    int same_bits = memcmp(plain.trace, with_chain.trace, sizeof plain.trace) == 0;
    int fewer = 1; /* drafts were accepted, but not all of them, or there was nothing to take back */
    for (int i = 0; i < REQUESTS; i++) {
        fewer &= with_tree.steps[i] < GENERATE - 1 && with_tree.steps[i] > (GENERATE - 1) / (tree.depth + 1);
        fewer &= with_tree.moved[i] > 0 && with_chain.moved[i] == 0;
    }
    /* A draft beside the best one sits in another slot than it would in plain decoding, so its sums may run in
       another order. The scores differ by that rounding, far less than the best leads by. */
    float largest, lead;
    compare_scores(&plain, &with_tree, &largest, &lead);
    int robust = 2 * largest < lead;
    printf("drafts are accepted and rejected in each request: %s\n", yes(fewer));
    printf("same text with and without speculation:           %s\n", yes(same_text));
    printf("chain and plain decoding, same bits:              %s\n", yes(same_bits));
    printf("tree and plain decoding, scores differ by at most %.1e; the best leads by at least %.1e: %s\n",
           (double)largest, (double)lead, robust ? "fine" : "NOT ENOUGH");
    close_run(&plain);
    close_run(&with_chain);
    close_run(&with_tree);
    return !(same_text && same_bits && fewer && robust);
}
