/* cases.h - builds attention calls for tests: a specification becomes buffers with guards and poison, a plan, a run and
   a comparison with the oracle. The data depend on (seed, content, position, head, dim) only, never on the layout, so
   one token of one sequence has the same bytes in every call that holds it and outputs can be compared by memcmp. */
#ifndef CASES_H
#define CASES_H

#include "../attn.h"
#include "test.h"

enum { CASE_REQUESTS = 96 };

typedef enum case_order { CASE_CONTIGUOUS, CASE_SHUFFLED, CASE_INTERLEAVED, CASE_DESCENDING } case_order;

/* What fills the bytes that no result may depend on. */
typedef enum case_poison { CASE_ONES, CASE_INF, CASE_MINUS_INF, CASE_HUGE, CASE_MIXED, CASE_POISONS } case_poison;

typedef enum case_array { CASE_Q, CASE_K, CASE_V } case_array;

/* Whom a draft follows. ANY: each request draws one of the others; FOREST: several roots, random parents; WILD: bits
   that make no tree, forward ones too, which the definition covers all the same. */
typedef enum case_tree {
    CASE_TREE_ANY, CASE_TREE_CHAIN, CASE_TREE_BINARY, CASE_TREE_SIBLINGS, CASE_TREE_FOREST, CASE_TREE_WILD
} case_tree;

typedef struct case_request {
    int q_len, kv_len, phase, prefix;
    uint32_t content;               /* requests of one content hold the same sequence */
    int key_start;                  /* key 0 of the request is token key_start of the sequence */
    int q_shift;                    /* added to the token index of the queries */
} case_request;

/* Called for every element of the data before it is rounded to its type. token: index in the sequence. */
typedef void case_edit(void *user, case_array array, int request, int token, int head, int dim, float *value);

typedef struct case_spec {
    attn_layer layer;               /* types, mask, page_size and so on; isa and tile sizes too */
    int n;
    case_request request[CASE_REQUESTS];
    uint64_t seed;                  /* of the data */
    float q_amp, k_amp, v_amp;      /* the data are uniform in -amp .. amp; 0: 1 */
    int period;                     /* tokens repeat with this period; 0: never */
    case_tree tree;                 /* mask TREE */
    int list_keys, list_ragged;     /* TOPK: so many of a row's causal keys are listed, or 0 .. so many; 0: all */
    int k_scale, v_scale;           /* 1: scales are given, and what is stored is x / scale */
    case_edit *edit;
    void *edit_user;
    /* layout */
    int padded;                     /* page_size 0: request i at i * k_page */
    int head_major;                 /* k and v: heads outside keys */
    int q_head_gap, q_row_gap, o_head_gap, o_row_gap;      /* unused elements after each head, row, page; -1 in */
    int k_head_gap, k_row_gap, k_page_gap;                 /* *_head_gap leaves all strides of that array 0 (packed) */
    int v_head_gap, v_row_gap, v_page_gap;
    int shift;                      /* elements by which arrays are off malloc's alignment */
    case_order order;               /* of pages */
    int share;                      /* requests of one content share pages; with period, pages repeat too */
    int spare_pages, table_gap;
    case_poison poison;
    int hide;                       /* poison keys that no row sees, and page ids before the window */
    int list_order;                 /* TOPK: lists are shuffled, holes and keys past the row between; 0: ascending */
    int sinks, lse, alibi;
    /* the call */
    int null_arrays;                /* give NULL for q_len and phase where that means the same */
    int more_q, more_kv;            /* capacities above what the arrays say; -1: leave the capacity 0 */
    int64_t more_rows;
    int lanes;                      /* above 0: case_lanes runs them one after another in a shuffled order */
    int fill;                       /* byte that plan and exec memory hold before use */
} case_spec;

typedef struct case_buffer {
    unsigned char *base, *data;     /* data lies between two guards */
    size_t bytes, guard;
} case_buffer;

struct case_backend;

typedef struct test_case {
    case_spec spec;
    int32_t q_len[CASE_REQUESTS], kv_len[CASE_REQUESTS], phase[CASE_REQUESTS], prefix[CASE_REQUESTS];
    int first_row[CASE_REQUESTS + 1];
    int64_t first_key[CASE_REQUESTS + 1];
    int rows, heads, kv_heads, head_dim, v_dim, columns, tree_words;
    int32_t *map;                   /* [n][columns] page of each column, also where the table hides it */
    uint64_t lane_seed;
    attn_batch batch;
    attn_layer layer;
    attn_io io;
    attn_exec exec;
    attn_plan plan;
    attn_error error;
    case_buffer q, k, v, o, lse, table, sinks, alibi, k_scale, v_scale, tree, topk, plan_mem, exec_mem;
    uint64_t input_hash;
    unsigned char *out;             /* after a run: [row][head][v_dim] of o_type without gaps */
    float *out_lse;                 /* [row][head] */
    double *ref_o, *ref_lse, *o_slack, *lse_slack, *v_max;
    char message[400];
    const struct case_backend *backend;
    void *device;                   /* the backend's */
} test_case;

/* Runs cases somewhere else than attn_plan_make and attn_forward do. Both return as case_plan and case_forward do.
   forward writes into the data of c->o and c->lse; inputs that it changes are noticed where they lie in the case. */
typedef struct case_backend {
    int (*plan)(test_case *c);
    int (*forward)(test_case *c);
    void (*close)(test_case *c);
} case_backend;

/* Cases that are opened from now on run on the backend; NULL: on this CPU. */
void case_use(const case_backend *backend);

/* Cases that are opened from now on have q, cache and o in bf16, head dims that are multiples of 32, and no scale per
   key: what AMX serves. */
void case_tiles(int on);

/* Zero but one ready request: heads 2, head_dim 16, f32, causal, packed strides, poison, lse, fill 0xFF. */
void case_defaults(case_spec *s);

/* A random specification, biased to the edges of tiles, units and pages. work bounds the query-key-dim triples. */
void case_random(case_spec *s, test_rng *r, double work);

/* Draws again what must not change a bit: layout, poison, capacities, lanes, row_tile, workers. */
void case_vary(case_spec *s, test_rng *r);

/* One line that identifies the specification. */
void case_describe(const case_spec *s, char *text, size_t bytes);

/* Allocates and fills everything a call needs. Aborts when memory runs out. c->layer, c->batch, c->io and c->exec may
   be changed between open and plan or forward. */
void case_open(test_case *c, const case_spec *s);
void case_close(test_case *c);

/* For tests that change inputs by hand: forward complains about inputs that differ from the last rehash. */
void case_rehash(test_case *c);

/* attn_plan_make into fresh memory; attn_forward into fresh outputs, then c->out and c->out_lse. Both return the
   status; both return -1 and set c->message when bytes outside the given memory changed. */
int case_plan(test_case *c);
int case_forward(test_case *c);

/* By how much o may differ from the oracle, its own rounding aside; at: row of the batch * heads + head. */
double case_slack(const test_case *c, size_t at);

/* NULL if the outputs of the last forward agree with the oracle, else what differs. */
const char *case_compare(test_case *c);

/* plan, forward, compare: NULL or what went wrong. */
const char *case_run(test_case *c);

/* 1 if the row has the same bits in both (all heads; lse too when both have it). */
int case_same_row(const test_case *a, int request_a, int row_a, const test_case *b, int request_b, int row_b);

/* 1 if every row of both, which hold the same requests, has the same bits. */
int case_same(const test_case *a, const test_case *b);

/* sees[key] = 1 if the row sees the key, by the oracle's definition, for all keys of the request */
void case_sees(const test_case *c, int request, int row, unsigned char *sees);

/* Sets o and lse to canaries, as forward does; case_untouched is 1 if they still are. */
void case_reset_outputs(test_case *c);
int case_untouched(const test_case *c);

/* Element i of the output as a double. */
double case_o(const test_case *c, int request, int row, int head, int dim);
double case_lse(const test_case *c, int request, int row, int head);

/* A parallel_for that runs the lanes one after another in an order drawn from *(uint64_t *)user. */
void case_lanes(void *user, int lanes, void (*fn)(void *ctx, int lane), void *ctx);

/* Instruction sets of this build and machine: fills set[], returns how many. */
int case_isas(attn_isa set[4]);
const char *case_isa_name(attn_isa isa);

#endif
