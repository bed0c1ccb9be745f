/* errors.c - every public input broken once.

   A case changes one or two members of a valid world and makes a call. Expected: the status, the words and numbers in
   the text, request and slot, not one changed byte anywhere (inputs, outputs, cache, plan and scratch memory), and the
   same status without an attn_error. The unbroken world passes every call, so each case fails for its own reason. */
#include "../attn.h"
#include "test.h"

#include <math.h>

enum {
    N = 20,
    HEADS = 4,
    KV_HEADS = 2,
    DIM = 8,
    PAGE = 4,
    PAGES = 96,
    COLUMNS = 16,
    MAX_Q = 8,
    MAX_KV = COLUMNS * PAGE,
    MAX_ROWS = 64,
    CACHE = PAGES * PAGE * KV_HEADS * DIM,
    PLAN_WORDS = 8192,
    EXEC_WORDS = 1 << 16,
    BITS = 64,
    TOPK = 6
};

/* Everything that a call can read or write, so that one memcmp sees any change. */
typedef struct world {
    int32_t q_len[N], kv_len[N], phase[N], prefix[N];
    int32_t table[N * COLUMNS];
    attn_batch batch, *batch_arg;
    attn_layer layer, *layer_arg;
    attn_io io, *io_arg;
    attn_exec exec, *exec_arg;
    attn_plan plan, *plan_arg;
    void *mem;                      /* of attn_plan_make and attn_dense */
    size_t mem_bytes;
    void *new_k, *new_v;
    int32_t dense_q, dense_kv;
    int64_t merge_rows;
    void *a_o, *b_o, *merged_o;
    float *a_lse, *b_lse, *merged_lse;
    int32_t request;
    uint32_t *bits;
    size_t bit_words;
    float q[MAX_ROWS * HEADS * DIM], o[MAX_ROWS * HEADS * DIM], lse[MAX_ROWS * HEADS];
    float k[CACHE], v[CACHE], rows[MAX_ROWS * KV_HEADS * DIM];
    float sinks[HEADS];
    float k_scale[PAGES * PAGE * KV_HEADS], v_scale[PAGES * PAGE * KV_HEADS];
    int32_t tree[MAX_ROWS];         /* MAX_Q bits fit one word */
    int32_t topk[MAX_ROWS * TOPK];
    float lambda[N], certificate[MAX_ROWS * HEADS];
    attn_counters counters;
    uint32_t bit_memory[BITS];
    double plan_memory[PLAN_WORDS], call_memory[PLAN_WORDS + EXEC_WORDS], exec_memory[EXEC_WORDS];
} world;

static world now, before;

/* ---- the valid world -------------------------------------------------------------------------------------------- */

static void fill(float *x, int count, test_rng *rng) {
    int i;
    for (i = 0; i < count; i++) x[i] = test_uniform(rng);
}

static void set_lengths(world *w) {
    int i;
    for (i = 0; i < N; i++) {
        w->q_len[i] = 1 + i % 3;
        w->kv_len[i] = 5 + i % 7;
        w->phase[i] = i % 2 ? ATTN_DECODE : ATTN_PREFILL;
    }
    w->kv_len[3] = 50;              /* thirteen pages */
    w->q_len[17] = 8;
    w->kv_len[17] = 16;
}

static void set_table(world *w) {
    int i, c, next = 0;
    for (i = 0; i < N; i++) {
        for (c = 0; c < COLUMNS; c++) {
            w->table[i * COLUMNS + c] = c < (w->kv_len[i] + PAGE - 1) / PAGE ? next++ : -7;
        }
    }
}

/* Chains of drafts, and lists that hold a row's last keys in descending order and a gap. */
static void set_choices(world *w) {
    int i, j, s, row = 0;
    for (i = 0; i < N; i++) {
        for (j = 0; j < w->q_len[i]; j++, row++) {
            int position = w->kv_len[i] - w->q_len[i] + j;
            w->tree[row] = (2 << j) - 1;
            for (s = 0; s < TOPK; s++) w->topk[row * TOPK + s] = s == 1 || position < s ? -1 : position - s;
        }
    }
}

static void set_io(world *w, int paged) {
    w->io.q = w->q;
    w->io.k = w->k;
    w->io.v = w->v;
    w->io.o = w->o;
    w->io.lse = w->lse;
    w->io.sinks = w->sinks;
    w->io.alibi = w->sinks;
    w->io.tree = (const uint32_t *)(const void *)w->tree;
    w->io.topk = w->topk;
    if (!paged) return;
    w->io.page_table = w->table;
    w->io.page_table_row = COLUMNS;
    w->io.pages = PAGES;
}

static void set_calls(world *w) {
    w->batch_arg = &w->batch;
    w->layer_arg = &w->layer;
    w->io_arg = &w->io;
    w->exec_arg = &w->exec;
    w->plan_arg = &w->plan;
    w->mem = w->call_memory;
    w->mem_bytes = sizeof w->call_memory;
    w->new_k = w->rows;
    w->new_v = w->rows;
    w->dense_q = 3;
    w->dense_kv = 20;
    w->merge_rows = 7;
    w->a_o = w->q;
    w->b_o = w->k;
    w->merged_o = w->o;
    w->a_lse = w->rows;
    w->b_lse = w->rows + 64;
    w->merged_lse = w->lse;
    w->request = 17;
    w->bits = w->bit_memory;
    w->bit_words = BITS;
}

static void make_world(world *w, int paged) {
    test_rng rng = { 7 };
    memset(w, 0, sizeof *w);
    fill(w->q, MAX_ROWS * HEADS * DIM, &rng);
    fill(w->o, MAX_ROWS * HEADS * DIM, &rng);
    fill(w->lse, MAX_ROWS * HEADS, &rng);
    fill(w->k, CACHE, &rng);
    fill(w->v, CACHE, &rng);
    fill(w->rows, MAX_ROWS * KV_HEADS * DIM, &rng);
    fill(w->sinks, HEADS, &rng);
    fill(w->k_scale, PAGES * PAGE * KV_HEADS, &rng);
    fill(w->v_scale, PAGES * PAGE * KV_HEADS, &rng);
    memset(w->bit_memory, 0x5a, sizeof w->bit_memory);
    memset(w->call_memory, 0x5a, sizeof w->call_memory);
    memset(w->exec_memory, 0x5a, sizeof w->exec_memory);
    set_lengths(w);
    set_table(w);
    set_choices(w);
    w->batch.n = N;
    w->batch.q_len = w->q_len;
    w->batch.kv_len = w->kv_len;
    w->batch.phase = w->phase;
    w->batch.prefix = w->prefix;
    w->batch.max_q_len = MAX_Q;
    w->batch.max_kv_len = MAX_KV;
    w->batch.max_rows = MAX_ROWS;
    w->layer.heads = HEADS;
    w->layer.kv_heads = KV_HEADS;
    w->layer.head_dim = DIM;
    w->layer.window_left = 1024;
    w->layer.row_tile = 16;
    w->layer.key_tile = 32;
    w->layer.workers = 2;
    w->layer.isa = ATTN_ISA_SCALAR;
    w->layer.page_size = paged ? PAGE : 0;
    set_io(w, paged);
    set_calls(w);
}

/* What a case asks for beside the plain world: bits of `calls`. */
enum {
    CONTIGUOUS = 1024,              /* the world without pages */
    FULL = 2048,                    /* the plan is made for ATTN_FULL */
    SHORT = 4096,                   /* ... and has a request with q_len > kv_len */
    TREES = 8192,                   /* mask TREE */
    LISTS = 16384,                  /* mask TOPK */
    INT8 = 32768,                   /* an int8 cache with a scale per tensor */
    PER_KEY = 65536,                /* ... or per key */
    LATENT = 131072,                /* V in K, int8 with a scale per key */
    FACTORS = 262144,               /* skip-softmax: mode FACTOR, certificate and counters wanted */
    LAMBDAS = 524288,               /* ... mode LAMBDA */
    BUDGETS = 1048576               /* ... mode EPS */
};

static void set_skipping(world *w, int mode) {
    int i;
    w->layer.skip.mode = mode;
    w->io.certificate = w->certificate;
    w->io.counters = &w->counters;
    if (mode == ATTN_SKIP_LAMBDA) {
        w->io.lambda = w->lambda;
        for (i = 0; i < N; i++) w->lambda[i] = 0.001f * (float)i;
    } else {
        w->layer.skip.prefill = 0.25f;
        w->layer.skip.decode = 0.125f;
    }
}

static void make_variant(world *w, unsigned calls) {
    make_world(w, !(calls & CONTIGUOUS));
    if (calls & FACTORS) set_skipping(w, ATTN_SKIP_FACTOR);
    if (calls & LAMBDAS) set_skipping(w, ATTN_SKIP_LAMBDA);
    if (calls & BUDGETS) set_skipping(w, ATTN_SKIP_EPS);
    if (calls & FULL) w->layer.mask = ATTN_FULL;
    if (calls & SHORT) w->kv_len[2] = 1;
    if (calls & TREES) w->layer.mask = ATTN_TREE;
    if (calls & LISTS) w->layer.mask = ATTN_TOPK;
    if (calls & LISTS) w->layer.topk = TOPK;
    if (!(calls & (INT8 | PER_KEY | LATENT))) return;
    w->layer.kv_type = ATTN_INT8;
    w->layer.scale_kind = calls & INT8 ? ATTN_SCALE_PER_TENSOR : ATTN_SCALE_PER_KEY;
    w->io.k_scale = w->k_scale;
    w->io.v_scale = w->v_scale;
    if (!(calls & LATENT)) return;
    w->layer.kv_heads = 1;
    w->layer.scale = 0.5f;
    w->layer.flags = ATTN_V_IN_K;
    w->io.v = NULL;
    w->io.v_scale = NULL;
    w->new_v = NULL;
}

/* The plan and its scratch memory; `batch` and `layer` may have been changed by a case's preparation. */
static int make_plan(world *w) {
    attn_error error;
    int status = attn_plan_make(&w->plan, &w->batch, &w->layer, w->plan_memory, sizeof w->plan_memory, &error);
    CHECK(status == ATTN_OK, "the valid plan: %s", status ? error.text : "");
    w->exec.mem = w->exec_memory;
    w->exec.bytes = attn_exec_bytes(&w->plan, 1);
    w->exec.lanes = 1;
    CHECK(w->exec.bytes <= sizeof w->exec_memory, "scratch memory of %lu bytes", (unsigned long)w->exec.bytes);
    return status;
}

/* ---- calls ------------------------------------------------------------------------------------------------------ */

enum {
    PLAN = 1,
    FORWARD = 2,
    CHECKER = 4,
    APPEND = 8,
    DENSE = 16,
    MERGE = 32,
    MASK_BITS = 64,
    CALLS = 7
};

static const char *const call_names[CALLS] = { "attn_plan_make", "attn_forward", "attn_check", "attn_append",
                                               "attn_dense", "attn_merge", "attn_mask_bits" };

static int call(world *w, int which, attn_error *error) {
    switch (which) {
    case PLAN:
        return attn_plan_make(w->plan_arg, w->batch_arg, w->layer_arg, w->mem, w->mem_bytes, error);
    case FORWARD:
        return attn_forward(w->plan_arg, w->layer_arg, w->io_arg, w->exec_arg, error);
    case CHECKER:
        return attn_check(w->plan_arg, w->layer_arg, w->io_arg, w->exec_arg, error);
    case APPEND:
        return attn_append(w->plan_arg, w->layer_arg, w->io_arg, w->new_k, w->new_v, error);
    case DENSE:
        return attn_dense(w->layer_arg, w->dense_q, w->dense_kv, w->io_arg, w->mem, w->mem_bytes, error);
    case MERGE:
        return attn_merge(w->layer_arg, w->merge_rows, w->a_o, w->a_lse, w->b_o, w->b_lse, w->merged_o, w->merged_lse,
                          error);
    default:
        return attn_mask_bits(w->batch_arg, w->layer_arg, w->io_arg, w->request, w->bits, w->bit_words, error);
    }
}

/* ---- cases ------------------------------------------------------------------------------------------------------ */

typedef enum kind { NONE = 0, I32, I64, F32, SIZE, NIL, SHIFT, POINT } kind;

typedef struct patch {
    kind kind;
    size_t at;
    int64_t value;                  /* SHIFT: bytes added to a pointer; POINT: the member it is set to;
                                       SIZE: added when negative */
    float real;
} patch;

#define I32(member, value) { I32, offsetof(world, member), (value), 0 }
#define I64(member, value) { I64, offsetof(world, member), (value), 0 }
#define F32(member, value) { F32, offsetof(world, member), 0, (value) }
#define SIZE(member, value) { SIZE, offsetof(world, member), (value), 0 }
#define NIL(member) { NIL, offsetof(world, member), 0, 0 }
#define SHIFT(member, value) { SHIFT, offsetof(world, member), (value), 0 }
#define POINT(member, target) { POINT, offsetof(world, member), (int64_t)offsetof(world, target), 0 }

typedef struct error_case {
    unsigned calls;
    patch patch[4];
    attn_status status;
    int32_t request, slot;
    const char *text[4];            /* all of these are in the message */
} error_case;

#define ANY (-1)                    /* request and slot are both -1 */
#define PLANS (PLAN | DENSE | CONTIGUOUS)
#define RUNS (FORWARD | CHECKER)

static const error_case arguments[] = {
    { PLAN, { NIL(plan_arg) }, ATTN_E_ARGUMENT, ANY, ANY, { "plan" } },
    { PLAN | MASK_BITS, { NIL(batch_arg) }, ATTN_E_ARGUMENT, ANY, ANY, { "batch" } },
    { PLAN | MERGE | MASK_BITS, { NIL(layer_arg) }, ATTN_E_ARGUMENT, ANY, ANY, { "layer" } },
    { DENSE | CONTIGUOUS, { NIL(layer_arg) }, ATTN_E_ARGUMENT, ANY, ANY, { "layer" } },
    { RUNS | APPEND, { NIL(plan_arg) }, ATTN_E_ARGUMENT, ANY, ANY, { "plan" } },
    { RUNS | APPEND, { NIL(layer_arg) }, ATTN_E_ARGUMENT, ANY, ANY, { "layer" } },
    { RUNS | APPEND, { NIL(io_arg) }, ATTN_E_ARGUMENT, ANY, ANY, { "io" } },
    { DENSE | CONTIGUOUS, { NIL(io_arg) }, ATTN_E_ARGUMENT, ANY, ANY, { "io" } },
    { RUNS, { NIL(exec_arg) }, ATTN_E_ARGUMENT, ANY, ANY, { "exec" } },
    { RUNS, { NIL(io.q) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.q " } },
    { RUNS | APPEND, { NIL(io.k) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.k " } },
    { RUNS | APPEND, { NIL(io.v) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.v " } },
    { RUNS, { NIL(io.o) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.o " } },
    { DENSE | CONTIGUOUS, { NIL(io.q) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.q " } },
    { DENSE | CONTIGUOUS, { NIL(io.k) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.k " } },
    { DENSE | CONTIGUOUS, { NIL(io.v) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.v " } },
    { DENSE | CONTIGUOUS, { NIL(io.o) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.o " } },
    { APPEND, { NIL(new_k) }, ATTN_E_ARGUMENT, ANY, ANY, { "new_k" } },
    { APPEND, { NIL(new_v) }, ATTN_E_ARGUMENT, ANY, ANY, { "new_v" } },
    { RUNS, { SHIFT(io.q, 1) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.q ", "aligned" } },
    { RUNS, { SHIFT(io.o, 2) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.o ", "aligned" } },
    { RUNS | APPEND, { SHIFT(io.k, 1) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.k ", "aligned" } },
    { RUNS | APPEND, { SHIFT(io.v, 2) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.v ", "aligned" } },
    { RUNS, { SHIFT(io.lse, 1) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.lse ", "aligned" } },
    { RUNS, { SHIFT(io.sinks, 2) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.sinks ", "aligned" } },
    { RUNS, { SHIFT(io.alibi, 2) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.alibi ", "aligned" } },
    { RUNS | APPEND, { SHIFT(io.page_table, 2) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.page_table ", "aligned" } },
    { APPEND, { SHIFT(new_k, 2) }, ATTN_E_ARGUMENT, ANY, ANY, { "new_k ", "aligned" } },
    { RUNS, { I64(io.o_row, (int64_t)1 << 40) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.o_row = 1099511627776" } },
    { RUNS | DENSE | CONTIGUOUS, { I64(io.q_row, -1) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.q_row = -1" } },
    { RUNS | DENSE | CONTIGUOUS, { I64(io.q_head, -2) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.q_head = -2" } },
    { RUNS | DENSE | CONTIGUOUS, { I64(io.o_row, -3) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.o_row = -3" } },
    { RUNS | DENSE | CONTIGUOUS, { I64(io.o_head, -4) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.o_head = -4" } },
    { RUNS | APPEND, { I64(io.k_page, -5) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.k_page = -5" } },
    { RUNS | APPEND, { I64(io.k_row, -6) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.k_row = -6" } },
    { RUNS | APPEND, { I64(io.k_head, -7) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.k_head = -7" } },
    { RUNS | APPEND, { I64(io.v_page, -8) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.v_page = -8" } },
    { RUNS | APPEND, { I64(io.v_row, -9) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.v_row = -9" } },
    { RUNS | APPEND, { I64(io.v_head, -10) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.v_head = -10" } },
    { RUNS | APPEND | CONTIGUOUS, { I64(io.k_page, -5) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.k_page = -5" } },
    { RUNS | APPEND | CONTIGUOUS, { I64(io.v_page, -8) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.v_page = -8" } },
    { RUNS | APPEND, { NIL(io.page_table) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.page_table " } },
    { RUNS | APPEND, { I64(io.page_table_row, -1) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.page_table_row = -1" } },
    { RUNS | APPEND, { I64(io.page_table_row, 12) }, ATTN_E_ARGUMENT, 3, ANY, { "io.page_table_row = 12", "13" } },
    { RUNS | APPEND, { I32(io.pages, -1) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.pages = -1" } },
    { RUNS, { I32(exec.lanes, -1) }, ATTN_E_ARGUMENT, ANY, ANY, { "exec.lanes = -1" } },
    { DENSE | CONTIGUOUS, { I32(dense_q, -1) }, ATTN_E_BATCH, 0, ANY, { "q_len", "-1" } },
    { DENSE | CONTIGUOUS, { I32(dense_kv, -1) }, ATTN_E_BATCH, 0, ANY, { "kv_len", "-1" } },
    { DENSE | CONTIGUOUS, { I32(dense_q, 21) }, ATTN_E_BATCH, 0, ANY, { "kv_len", "= 20", "q_len", "= 21" } },
    { MERGE, { I64(merge_rows, -1) }, ATTN_E_ARGUMENT, ANY, ANY, { "rows = -1" } },
    { MERGE, { NIL(a_o) }, ATTN_E_ARGUMENT, ANY, ANY, { "a_o" } },
    { MERGE, { NIL(a_lse) }, ATTN_E_ARGUMENT, ANY, ANY, { "a_lse" } },
    { MERGE, { NIL(b_o) }, ATTN_E_ARGUMENT, ANY, ANY, { "b_o" } },
    { MERGE, { NIL(b_lse) }, ATTN_E_ARGUMENT, ANY, ANY, { "b_lse" } },
    { MERGE, { NIL(merged_o) }, ATTN_E_ARGUMENT, ANY, ANY, { "o " } },
    { MASK_BITS, { I32(request, -1) }, ATTN_E_ARGUMENT, ANY, ANY, { "request = -1", "20" } },
    { MASK_BITS, { I32(request, 20) }, ATTN_E_ARGUMENT, ANY, ANY, { "request = 20", "20 requests" } },
    { MASK_BITS, { NIL(bits) }, ATTN_E_ARGUMENT, ANY, ANY, { "bits" } },
};

static const error_case memory[] = {
    { PLAN, { NIL(mem) }, ATTN_E_MEMORY, ANY, ANY, { "mem " } },
    { PLAN, { SHIFT(mem, 2) }, ATTN_E_MEMORY, ANY, ANY, { "mem", "aligned" } },
    { PLAN, { SIZE(mem_bytes, 8) }, ATTN_E_MEMORY, ANY, ANY, { "bytes = 8" } },
    { PLAN, { SIZE(mem_bytes, 0) }, ATTN_E_MEMORY, ANY, ANY, { "bytes = 0" } },
    { DENSE | CONTIGUOUS, { NIL(mem) }, ATTN_E_MEMORY, ANY, ANY, { "mem " } },
    { DENSE | CONTIGUOUS, { SHIFT(mem, 2) }, ATTN_E_MEMORY, ANY, ANY, { "mem", "aligned" } },
    { DENSE | CONTIGUOUS, { SIZE(mem_bytes, 8) }, ATTN_E_MEMORY, ANY, ANY, { "bytes = 8" } },
    { RUNS, { NIL(exec.mem) }, ATTN_E_MEMORY, ANY, ANY, { "exec.mem " } },
    { RUNS, { SHIFT(exec.mem, 4) }, ATTN_E_MEMORY, ANY, ANY, { "exec.mem", "aligned" } },
    { RUNS, { SIZE(exec.bytes, -1) }, ATTN_E_MEMORY, ANY, ANY, { "exec.mem", "bytes = " } },
    { RUNS, { SIZE(exec.bytes, 0) }, ATTN_E_MEMORY, ANY, ANY, { "exec.mem", "bytes = 0" } },
    { RUNS, { I32(exec.lanes, 1000) }, ATTN_E_MEMORY, ANY, ANY, { "exec.mem", "bytes = " } },
    { MASK_BITS, { SIZE(bit_words, 7) }, ATTN_E_ARGUMENT, ANY, ANY, { "count = 7", "8" } },
};

static const error_case batches[] = {
    { PLAN | MASK_BITS, { I32(batch.n, -1) }, ATTN_E_BATCH, ANY, ANY, { "n = -1" } },
    { PLAN | MASK_BITS, { NIL(batch.kv_len) }, ATTN_E_BATCH, ANY, ANY, { "kv_len " } },
    { PLAN | MASK_BITS, { I32(q_len[17], -3) }, ATTN_E_BATCH, 17, ANY, { "q_len[17] = -3" } },
    { PLAN | MASK_BITS, { I32(kv_len[17], -2) }, ATTN_E_BATCH, 17, ANY, { "kv_len[17] = -2" } },
    { PLAN | MASK_BITS, { I32(layer.mask, ATTN_PREFIX), NIL(batch.prefix) }, ATTN_E_BATCH, ANY, ANY, { "prefix" } },
    { PLAN | MASK_BITS, { I32(layer.mask, ATTN_PREFIX), I32(prefix[17], -1) }, ATTN_E_BATCH, 17, ANY,
      { "prefix[17] = -1" } },
    { PLAN | MASK_BITS, { I32(layer.mask, ATTN_PREFIX), I32(prefix[3], 99999) }, ATTN_E_BATCH, 3, ANY,
      { "prefix[3] = 99999" } },
    { PLAN, { I32(phase[6], 7) }, ATTN_E_BATCH, 6, ANY, { "phase[6] = 7" } },
    { PLAN, { I32(phase[6], -1) }, ATTN_E_BATCH, 6, ANY, { "phase[6] = -1" } },
    { PLAN | MASK_BITS, { I32(kv_len[17], 5) }, ATTN_E_BATCH, 17, ANY,
      { "kv_len[17] = 5 is less than q_len[17] = 8" } },
    { PLAN | MASK_BITS | TREES, { I32(kv_len[17], 5) }, ATTN_E_BATCH, 17, ANY,
      { "kv_len[17] = 5 is less than q_len[17] = 8" } },
    { PLAN | MASK_BITS | LISTS, { I32(kv_len[17], 7) }, ATTN_E_BATCH, 17, ANY,
      { "kv_len[17] = 7 is less than q_len[17] = 8" } },
    { PLAN, { NIL(batch.q_len), I32(kv_len[4], 0), I32(phase[4], ATTN_PREFILL) }, ATTN_E_BATCH, 4, ANY,
      { "kv_len[4] = 0", "q_len[4] = 1" } },
    { PLAN, { I32(kv_len[2], 65) }, ATTN_E_BATCH, 2, ANY, { "kv_len[2] = 65", "max_kv_len", "64" } },
    { PLAN, { I32(q_len[2], 9), I32(kv_len[2], 9) }, ATTN_E_BATCH, 2, ANY, { "q_len[2] = 9", "max_q_len", "8" } },
    { PLAN, { I64(batch.max_rows, 10) }, ATTN_E_BATCH, ANY, ANY, { "rows", "max_rows", "10" } },
    { PLAN, { I32(batch.max_q_len, -1) }, ATTN_E_BATCH, ANY, ANY, { "max_q_len = -1" } },
    { PLAN, { I32(batch.max_kv_len, -1) }, ATTN_E_BATCH, ANY, ANY, { "max_kv_len = -1" } },
    { PLAN, { I64(batch.max_rows, -1) }, ATTN_E_BATCH, ANY, ANY, { "max_rows = -1" } },
    { PLAN, { I64(batch.max_rows, (int64_t)1 << 31) }, ATTN_E_BATCH, ANY, ANY, { "max_rows = 2147483648" } },
    { PLAN, { I64(batch.max_rows, INT64_MAX) }, ATTN_E_BATCH, ANY, ANY, { "max_rows = 9223372036854775807" } },
};

/* q_len or kv_len add up to more than 2^31 - 1; the capacities come from the arrays. */
static const error_case sums[] = {
    { PLAN, { I32(q_len[1], 1 << 30), I32(kv_len[1], 1 << 30), I32(q_len[9], 1 << 30), I32(kv_len[9], 1 << 30) },
      ATTN_E_BATCH, ANY, ANY, { "q_len[9] = 1073741824", "2^31-1" } },
    { PLAN | CONTIGUOUS, { I32(kv_len[1], INT32_MAX), I32(kv_len[9], INT32_MAX) },
      ATTN_E_BATCH, ANY, ANY, { "kv_len[1] = 2147483647", "2^31-1" } },
};

static const error_case layers[] = {
    { PLANS, { I32(layer.heads, 0) }, ATTN_E_LAYER, ANY, ANY, { "layer.heads = 0" } },
    { PLANS, { I32(layer.heads, -4) }, ATTN_E_LAYER, ANY, ANY, { "layer.heads = -4" } },
    { PLANS, { I32(layer.kv_heads, -2) }, ATTN_E_LAYER, ANY, ANY, { "layer.kv_heads = -2" } },
    { PLANS, { I32(layer.kv_heads, 3) }, ATTN_E_LAYER, ANY, ANY, { "layer.heads = 4", "kv_heads = 3" } },
    { PLANS, { I32(layer.kv_heads, 8) }, ATTN_E_LAYER, ANY, ANY, { "layer.heads = 4", "kv_heads = 8" } },
    { PLANS, { I32(layer.head_dim, 0) }, ATTN_E_LAYER, ANY, ANY, { "layer.head_dim = 0" } },
    { PLANS, { I32(layer.head_dim, -8) }, ATTN_E_LAYER, ANY, ANY, { "layer.head_dim = -8" } },
    { PLANS, { I32(layer.v_dim, -1) }, ATTN_E_LAYER, ANY, ANY, { "layer.v_dim = -1" } },
    { PLANS, { I32(layer.q_type, ATTN_E4M3) }, ATTN_E_LAYER, ANY, ANY, { "layer.q_type = 3" } },
    { PLANS, { I32(layer.q_type, ATTN_E5M2) }, ATTN_E_LAYER, ANY, ANY, { "layer.q_type = 4" } },
    { PLANS, { I32(layer.q_type, ATTN_INT8) }, ATTN_E_LAYER, ANY, ANY, { "layer.q_type = 5" } },
    { PLANS, { I32(layer.q_type, -1) }, ATTN_E_LAYER, ANY, ANY, { "layer.q_type = " } },
    { PLANS, { I32(layer.kv_type, -1) }, ATTN_E_LAYER, ANY, ANY, { "layer.kv_type = " } },
    { PLANS, { I32(layer.kv_type, 6) }, ATTN_E_LAYER, ANY, ANY, { "layer.kv_type = 6" } },
    { PLANS, { I32(layer.o_type, ATTN_E4M3) }, ATTN_E_LAYER, ANY, ANY, { "layer.o_type = 3" } },
    { PLANS, { I32(layer.o_type, ATTN_E5M2) }, ATTN_E_LAYER, ANY, ANY, { "layer.o_type = 4" } },
    { PLANS, { I32(layer.o_type, ATTN_INT8) }, ATTN_E_LAYER, ANY, ANY, { "layer.o_type = 5" } },
    { PLANS, { I32(layer.o_type, 99) }, ATTN_E_LAYER, ANY, ANY, { "layer.o_type = 99" } },
    { PLANS, { I32(layer.mask, 6) }, ATTN_E_LAYER, ANY, ANY, { "layer.mask = 6" } },
    { PLANS, { I32(layer.mask, -1) }, ATTN_E_LAYER, ANY, ANY, { "layer.mask = " } },
    { PLANS, { I32(layer.topk, -1) }, ATTN_E_LAYER, ANY, ANY, { "layer.topk = -1" } },
    { PLANS, { I32(layer.topk, 4) }, ATTN_E_LAYER, ANY, ANY, { "layer.topk = 4", "TOPK" } },
    { PLANS, { I32(layer.topk, 4), I32(layer.mask, ATTN_FULL) }, ATTN_E_LAYER, ANY, ANY, { "layer.topk = 4" } },
    { PLANS, { I32(layer.topk, 4), I32(layer.mask, ATTN_TREE) }, ATTN_E_LAYER, ANY, ANY, { "layer.topk = 4" } },
    { PLANS, { I32(layer.mask, ATTN_TOPK) }, ATTN_E_LAYER, ANY, ANY, { "layer.topk = 0", "TOPK" } },
    { PLANS, { I32(layer.mask, ATTN_TREE), I32(layer.chunk, 8) }, ATTN_E_LAYER, ANY, ANY, { "layer.chunk = 8" } },
    { PLANS | LISTS, { I32(layer.chunk, 8) }, ATTN_E_LAYER, ANY, ANY, { "layer.chunk = 8" } },
    { PLANS, { I32(layer.scale_kind, 4) }, ATTN_E_LAYER, ANY, ANY, { "layer.scale_kind = 4" } },
    { PLANS, { I32(layer.scale_kind, -1) }, ATTN_E_LAYER, ANY, ANY, { "layer.scale_kind = -1" } },
    { PLANS, { I32(layer.scale_kind, ATTN_SCALE_PER_KEY) }, ATTN_E_LAYER, ANY, ANY,
      { "layer.scale_kind = 3", "int8" } },
    { PLANS, { I32(layer.scale_kind, ATTN_SCALE_PER_KEY), I32(layer.kv_type, ATTN_E4M3) }, ATTN_E_LAYER, ANY, ANY,
      { "layer.scale_kind = 3", "int8" } },
    { PLANS, { I32(layer.scale_kind, ATTN_SCALE_PER_KEY), I32(layer.kv_type, ATTN_E5M2) }, ATTN_E_LAYER, ANY, ANY,
      { "layer.scale_kind = 3", "int8" } },
    { PLANS, { I32(layer.scale_kind, ATTN_SCALE_PER_KEY), I32(layer.kv_type, ATTN_F16) }, ATTN_E_LAYER, ANY, ANY,
      { "layer.scale_kind = 3", "int8" } },
    { PLANS, { I32(layer.window_left, -1) }, ATTN_E_LAYER, ANY, ANY, { "layer.window_left = -1" } },
    { PLANS, { I32(layer.window_right, -1) }, ATTN_E_LAYER, ANY, ANY, { "layer.window_right = -1" } },
    { PLANS, { I32(layer.sink_keys, -1) }, ATTN_E_LAYER, ANY, ANY, { "layer.sink_keys = -1" } },
    { PLANS, { I32(layer.chunk, -1) }, ATTN_E_LAYER, ANY, ANY, { "layer.chunk = -1" } },
    { PLANS, { I32(layer.mask, ATTN_BLOCK) }, ATTN_E_LAYER, ANY, ANY, { "layer.chunk = 0", "BLOCK" } },
    { PLANS, { I32(layer.mask, ATTN_FULL), I32(layer.chunk, 8) }, ATTN_E_LAYER, ANY, ANY, { "layer.chunk = 8" } },
    { PLANS, { I32(layer.mask, ATTN_PREFIX), I32(layer.chunk, 8) }, ATTN_E_LAYER, ANY, ANY, { "layer.chunk = 8" } },
    { PLANS, { I32(layer.chunk, 8), I32(layer.sink_keys, 2) }, ATTN_E_LAYER, ANY, ANY,
      { "layer.chunk = 8", "layer.sink_keys = 2" } },
    { PLAN, { I32(layer.page_size, -1) }, ATTN_E_LAYER, ANY, ANY, { "layer.page_size = -1" } },
    { DENSE | CONTIGUOUS, { I32(layer.page_size, 4) }, ATTN_E_LAYER, ANY, ANY, { "layer.page_size = 4" } },
    { PLANS, { I32(layer.ring, -1) }, ATTN_E_LAYER, ANY, ANY, { "layer.ring = -1" } },
    { PLANS, { I32(layer.ring, 2048), I32(layer.window_left, 0) }, ATTN_E_LAYER, ANY, ANY,
      { "layer.ring = 2048", "window_left = 0" } },
    { PLANS, { I32(layer.ring, 2048), I32(layer.sink_keys, 1) }, ATTN_E_LAYER, ANY, ANY,
      { "layer.ring = 2048", "layer.sink_keys = 1" } },
    { PLAN, { I32(layer.ring, 2046) }, ATTN_E_LAYER, ANY, ANY, { "layer.ring = 2046", "layer.page_size = 4" } },
    { PLANS, { I32(layer.ring, 1024) }, ATTN_E_LAYER, ANY, ANY,
      { "layer.ring = 1024", "window_left - 1 + max_q_len" } },
    { PLANS, { F32(layer.softcap, 1e-40f) }, ATTN_E_LAYER, ANY, ANY, { "layer.softcap" } },
    { PLANS, { I32(layer.split_keys, -256) }, ATTN_E_LAYER, ANY, ANY, { "layer.split_keys = -256" } },
    { PLANS, { I32(layer.split_keys, 100) }, ATTN_E_LAYER, ANY, ANY, { "layer.split_keys = 100", "256" } },
    { PLANS, { I32(layer.split_keys, 384) }, ATTN_E_LAYER, ANY, ANY, { "layer.split_keys = 384", "256" } },
    { PLANS, { I32(layer.row_tile, -16) }, ATTN_E_LAYER, ANY, ANY, { "layer.row_tile = -16" } },
    { PLANS, { I32(layer.row_tile, 5) }, ATTN_E_LAYER, ANY, ANY, { "layer.row_tile = 5", "16" } },
    { PLANS, { I32(layer.row_tile, 24) }, ATTN_E_LAYER, ANY, ANY, { "layer.row_tile = 24" } },
    { PLANS, { I32(layer.row_tile, 272) }, ATTN_E_LAYER, ANY, ANY, { "layer.row_tile = 272", "256" } },
    { PLANS, { I32(layer.key_tile, -32) }, ATTN_E_LAYER, ANY, ANY, { "layer.key_tile = -32" } },
    { PLANS, { I32(layer.key_tile, 16) }, ATTN_E_LAYER, ANY, ANY, { "layer.key_tile = 16" } },
    { PLANS, { I32(layer.key_tile, 48) }, ATTN_E_LAYER, ANY, ANY, { "layer.key_tile = 48" } },
    { PLANS, { I32(layer.key_tile, 160) }, ATTN_E_LAYER, ANY, ANY, { "layer.key_tile = 160" } },
    { PLANS, { I32(layer.key_tile, 96), I32(layer.split_keys, 256) }, ATTN_E_LAYER, ANY, ANY,
      { "layer.key_tile = 96", "split_keys" } },
    { PLANS, { I32(layer.workers, -1) }, ATTN_E_LAYER, ANY, ANY, { "layer.workers = -1" } },
    { PLANS, { F32(layer.scale, (float)NAN) }, ATTN_E_LAYER, ANY, ANY, { "layer.scale" } },
    { PLANS, { F32(layer.scale, (float)INFINITY) }, ATTN_E_LAYER, ANY, ANY, { "layer.scale" } },
    { PLANS, { F32(layer.scale, -(float)INFINITY) }, ATTN_E_LAYER, ANY, ANY, { "layer.scale" } },
    { PLANS, { F32(layer.softcap, (float)NAN) }, ATTN_E_LAYER, ANY, ANY, { "layer.softcap" } },
    { PLANS, { F32(layer.softcap, (float)INFINITY) }, ATTN_E_LAYER, ANY, ANY, { "layer.softcap" } },
    { PLANS, { F32(layer.softcap, -1.0f) }, ATTN_E_LAYER, ANY, ANY, { "layer.softcap" } },
    { PLANS, { I32(layer.isa, 6) }, ATTN_E_LAYER, ANY, ANY, { "layer.isa = 6" } },
    { PLANS, { I32(layer.isa, -1) }, ATTN_E_LAYER, ANY, ANY, { "layer.isa = -1" } },
    { PLANS, { I32(layer.flags, 8) }, ATTN_E_LAYER, ANY, ANY, { "layer.flags = 8" } },
    { PLANS, { I32(layer.flags, ATTN_FAST_INT8) }, ATTN_E_LAYER, ANY, ANY, { "ATTN_FAST_INT8", "kv_type int8" } },
    { PLANS, { I32(layer.flags, INT32_MIN) }, ATTN_E_LAYER, ANY, ANY, { "layer.flags = -2147483648" } },
    { PLANS, { I32(layer.heads, INT32_MAX), I32(layer.kv_heads, 0), I32(layer.head_dim, INT32_MAX) },
      ATTN_E_LAYER, ANY, ANY, { "layer." } },
    { PLANS, { I32(layer.skip.mode, 4) }, ATTN_E_LAYER, ANY, ANY, { "layer.skip.mode = 4" } },
    { PLANS, { I32(layer.skip.mode, -1) }, ATTN_E_LAYER, ANY, ANY, { "layer.skip.mode = -1" } },
    { PLANS | FACTORS, { F32(layer.skip.prefill, -0.5f) }, ATTN_E_LAYER, ANY, ANY,
      { "layer.skip.prefill = -0.5", "decode = 0.125" } },
    { PLANS | FACTORS, { F32(layer.skip.decode, -0.5f) }, ATTN_E_LAYER, ANY, ANY,
      { "layer.skip.prefill = 0.25", "decode = -0.5" } },
    { PLANS | FACTORS, { F32(layer.skip.prefill, (float)NAN) }, ATTN_E_LAYER, ANY, ANY, { "layer.skip.prefill" } },
    { PLANS | FACTORS, { F32(layer.skip.decode, (float)NAN) }, ATTN_E_LAYER, ANY, ANY, { "decode" } },
    { PLANS | FACTORS, { F32(layer.skip.prefill, (float)INFINITY) }, ATTN_E_LAYER, ANY, ANY, { "layer.skip.prefill" } },
    { PLANS | FACTORS, { F32(layer.skip.decode, (float)INFINITY) }, ATTN_E_LAYER, ANY, ANY, { "decode" } },
    { PLANS | BUDGETS, { F32(layer.skip.prefill, 1.0f) }, ATTN_E_LAYER, ANY, ANY,
      { "layer.skip.prefill = 1", "below 1" } },
    { PLANS | BUDGETS, { F32(layer.skip.decode, 1.0f) }, ATTN_E_LAYER, ANY, ANY, { "decode = 1 ", "below 1" } },
    { PLANS | BUDGETS, { F32(layer.skip.decode, 1.5f) }, ATTN_E_LAYER, ANY, ANY, { "decode = 1.5", "below 1" } },
    { PLANS | BUDGETS, { F32(layer.skip.prefill, -0.25f) }, ATTN_E_LAYER, ANY, ANY, { "layer.skip.prefill = -0.25" } },
    { PLANS | BUDGETS, { F32(layer.skip.prefill, (float)NAN) }, ATTN_E_LAYER, ANY, ANY, { "layer.skip.prefill" } },
    { PLANS, { F32(layer.skip.prefill, 0.5f) }, ATTN_E_LAYER, ANY, ANY,
      { "layer.skip.mode = 0", "layer.skip.prefill", "layer.skip.decode" } },
    { PLANS, { F32(layer.skip.decode, 0.5f) }, ATTN_E_LAYER, ANY, ANY, { "layer.skip.mode = 0", "layer.skip.decode" } },
    { PLANS, { F32(layer.skip.decode, (float)NAN) }, ATTN_E_LAYER, ANY, ANY, { "decode" } },
    { PLANS | LAMBDAS, { F32(layer.skip.prefill, 0.5f) }, ATTN_E_LAYER, ANY, ANY,
      { "layer.skip.mode = 2", "layer.skip.prefill" } },
    { PLANS | LAMBDAS, { F32(layer.skip.decode, 1e-30f) }, ATTN_E_LAYER, ANY, ANY,
      { "layer.skip.mode = 2", "layer.skip.decode" } },
    { PLANS | FACTORS, { I32(layer.key_tile, 96) }, ATTN_E_LAYER, ANY, ANY,
      { "layer.key_tile = 96", "layer.skip.mode = 1" } },
    { PLANS | LAMBDAS, { I32(layer.key_tile, 96) }, ATTN_E_LAYER, ANY, ANY,
      { "layer.key_tile = 96", "layer.skip.mode = 2" } },
    { PLANS | BUDGETS, { I32(layer.key_tile, 96) }, ATTN_E_LAYER, ANY, ANY,
      { "layer.key_tile = 96", "layer.skip.mode = 3" } },
    { PLANS | FACTORS, { I32(layer.split_keys, 256) }, ATTN_E_LAYER, ANY, ANY,
      { "layer.split_keys = 256", "2048", "layer.skip.mode = 1" } },
    { PLANS | BUDGETS, { I32(layer.split_keys, 2304) }, ATTN_E_LAYER, ANY, ANY,
      { "layer.split_keys = 2304", "2048", "layer.skip.mode = 3" } },
    { PLANS | LISTS | FACTORS, { { NONE, 0, 0, 0 } }, ATTN_E_LAYER, ANY, ANY, { "layer.skip.mode = 1", "TOPK" } },
    { PLANS | LISTS | LAMBDAS, { { NONE, 0, 0, 0 } }, ATTN_E_LAYER, ANY, ANY, { "layer.skip.mode = 2", "TOPK" } },
    { PLANS | LISTS | BUDGETS, { { NONE, 0, 0, 0 } }, ATTN_E_LAYER, ANY, ANY, { "layer.skip.mode = 3", "TOPK" } },
    { MASK_BITS, { I32(layer.mask, 6) }, ATTN_E_LAYER, ANY, ANY, { "layer.mask = 6" } },
    { MASK_BITS, { I32(layer.topk, 4) }, ATTN_E_LAYER, ANY, ANY, { "layer.topk = 4" } },
    { MASK_BITS, { I32(layer.mask, ATTN_TOPK) }, ATTN_E_LAYER, ANY, ANY, { "layer.topk = 0" } },
    { MASK_BITS, { I32(layer.window_left, -1) }, ATTN_E_LAYER, ANY, ANY, { "layer.window_left = -1" } },
    { MASK_BITS, { I32(layer.window_right, -1) }, ATTN_E_LAYER, ANY, ANY, { "layer.window_right = -1" } },
    { MASK_BITS, { I32(layer.sink_keys, -1) }, ATTN_E_LAYER, ANY, ANY, { "layer.sink_keys = -1" } },
    { MERGE, { I32(layer.heads, 0) }, ATTN_E_LAYER, ANY, ANY, { "layer.heads = 0" } },
    { MERGE, { I32(layer.v_dim, -1) }, ATTN_E_LAYER, ANY, ANY, { "layer.v_dim = -1" } },
    { MERGE, { I32(layer.o_type, 3) }, ATTN_E_LAYER, ANY, ANY, { "layer.o_type = 3" } },
};

/* The layer of the call differs from the plan's copy. */
#define OTHER(field, value, was)                                                                                      \
    { RUNS | APPEND, { I32(layer.field, value) }, ATTN_E_PLAN, ANY, ANY,                                              \
      { "layer." #field " = " #value ",", "plan has " was } }

static const error_case differences[] = {
    OTHER(heads, 8, "4"),
    OTHER(kv_heads, 4, "2"),
    OTHER(head_dim, 16, "8"),
    OTHER(v_dim, 4, "0"),
    OTHER(q_type, 1, "0"),
    OTHER(kv_type, 2, "0"),
    OTHER(o_type, 2, "0"),
    OTHER(mask, 1, "0"),
    OTHER(window_left, 0, "1024"),
    OTHER(window_right, 5, "0"),
    OTHER(sink_keys, 2, "0"),
    OTHER(chunk, 64, "0"),
    OTHER(page_size, 8, "4"),
    OTHER(ring, 2048, "0"),
    OTHER(topk, 8, "0"),
    OTHER(scale_kind, 1, "0"),
    OTHER(split_keys, 256, "0"),
    OTHER(row_tile, 32, "16"),
    OTHER(key_tile, 64, "32"),
    OTHER(workers, 3, "2"),
    OTHER(isa, 0, "1"),
    OTHER(flags, 1, "0"),
    OTHER(skip.mode, 1, "0"),
    { RUNS | APPEND | FACTORS, { I32(layer.skip.mode, ATTN_SKIP_EPS) }, ATTN_E_PLAN, ANY, ANY,
      { "layer.skip.mode = 3,", "plan has 1" } },
    { RUNS | APPEND | FACTORS, { I32(layer.skip.mode, ATTN_SKIP_OFF) }, ATTN_E_PLAN, ANY, ANY,
      { "layer.skip.mode = 0,", "plan has 1" } },
    { RUNS | APPEND, { F32(layer.skip.prefill, 0.5f) }, ATTN_E_PLAN, ANY, ANY,
      { "layer.skip.prefill = 0.5,", "plan has 0" } },
    { RUNS | APPEND, { F32(layer.skip.decode, 0.5f) }, ATTN_E_PLAN, ANY, ANY,
      { "layer.skip.decode = 0.5,", "plan has 0" } },
    { RUNS | APPEND | FACTORS, { F32(layer.skip.prefill, 0.125f) }, ATTN_E_PLAN, ANY, ANY,
      { "layer.skip.prefill = 0.125,", "plan has 0.25" } },
    { RUNS | APPEND | BUDGETS, { F32(layer.skip.decode, 0.25f) }, ATTN_E_PLAN, ANY, ANY,
      { "layer.skip.decode = 0.25,", "plan has 0.125" } },
    { RUNS | APPEND | BUDGETS, { F32(layer.skip.decode, (float)NAN) }, ATTN_E_PLAN, ANY, ANY,
      { "layer.skip.decode", "plan has 0.125" } },
    { RUNS | APPEND, { F32(layer.scale, 0.5f) }, ATTN_E_PLAN, ANY, ANY, { "layer.scale = 0.5", "plan has 0" } },
    { RUNS | APPEND, { F32(layer.softcap, 30.0f) }, ATTN_E_PLAN, ANY, ANY, { "layer.softcap = 30", "plan has 0" } },
    { RUNS | APPEND, { F32(layer.scale, (float)NAN) }, ATTN_E_PLAN, ANY, ANY, { "layer.scale", "plan has 0" } },
};

static const error_case pages[] = {
    { RUNS | APPEND, { I32(table[3 * COLUMNS + 12], 4096) }, ATTN_E_PAGE, 3, 12,
      { "page_table[3][12] = 4096", "96 pages" } },
    { RUNS | APPEND, { I32(table[3 * COLUMNS + 12], PAGES) }, ATTN_E_PAGE, 3, 12,
      { "page_table[3][12] = 96", "96 pages" } },
    { RUNS | APPEND, { I32(table[3 * COLUMNS + 12], -1) }, ATTN_E_PAGE, 3, 12,
      { "page_table[3][12] = -1", "96 pages" } },
    { RUNS | APPEND, { I32(table[3 * COLUMNS + 12], INT32_MIN) }, ATTN_E_PAGE, 3, 12,
      { "page_table[3][12] = -2147483648", "96 pages" } },
    { RUNS | APPEND, { I32(table[3 * COLUMNS + 12], INT32_MAX) }, ATTN_E_PAGE, 3, 12,
      { "page_table[3][12] = 2147483647", "96 pages" } },
    { RUNS, { I32(table[3 * COLUMNS], 96) }, ATTN_E_PAGE, 3, 0, { "page_table[3][0] = 96", "96 pages" } },
    { RUNS, { I32(table[3 * COLUMNS + 7], -1) }, ATTN_E_PAGE, 3, 7, { "page_table[3][7] = -1", "96 pages" } },
    { RUNS | APPEND, { I32(table[19 * COLUMNS + 2], 777) }, ATTN_E_PAGE, 19, 2, { "page_table[19][2] = 777" } },
    { RUNS, { I32(table[0], -1) }, ATTN_E_PAGE, 0, 0, { "page_table[0][0] = -1" } },
    { RUNS, { I32(io.pages, 13) }, ATTN_E_PAGE, ANY - 1, ANY - 1, { "page_table[", "13 pages" } },
};

/* Rows 33 .. 40 belong to request 17: P = 8, kv_len = 16. Row 6 is the only one of request 3. */
#define LISTED(row, slot) topk[(row) * TOPK + (slot)]

static const error_case trees[] = {
    { RUNS | TREES, { NIL(io.tree) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.tree ", "NULL" } },
    { RUNS | TREES, { SHIFT(io.tree, 2) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.tree ", "aligned" } },
    { RUNS | TREES, { I32(tree[38], 0x1F) }, ATTN_E_ARGUMENT, 17, 5, { "tree[38]", "bit 5" } },
    { RUNS | TREES, { I32(tree[38], 0xDF) }, ATTN_E_ARGUMENT, 17, 5, { "tree[38]", "bit 5" } },
    { RUNS | TREES, { I32(tree[40], 0x7FFFFF7F) }, ATTN_E_ARGUMENT, 17, 7, { "tree[40]", "bit 7" } },
    { RUNS | TREES, { I32(tree[0], 0) }, ATTN_E_ARGUMENT, 0, 0, { "tree[0]", "bit 0" } },
    { RUNS | TREES, { I32(tree[43], 0x11) }, ATTN_E_ARGUMENT, 19, 1, { "tree[43]", "bit 1" } },
    { RUNS | TREES | CONTIGUOUS, { I32(tree[6], 2) }, ATTN_E_ARGUMENT, 3, 0, { "tree[6]", "bit 0" } },
    { RUNS | TREES, { I32(table[3 * COLUMNS + 7], 4096) }, ATTN_E_PAGE, 3, 7, { "page_table[3][7] = 4096" } },
    { MASK_BITS | TREES, { NIL(io_arg) }, ATTN_E_ARGUMENT, ANY, ANY, { "io", "NULL" } },
    { MASK_BITS | TREES, { NIL(io.tree) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.tree ", "NULL" } },
};

static const error_case lists[] = {
    { RUNS | LISTS, { NIL(io.topk) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.topk ", "NULL" } },
    { RUNS | LISTS, { SHIFT(io.topk, 1) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.topk ", "aligned" } },
    { RUNS | LISTS, { I32(LISTED(35, 3), -2) }, ATTN_E_ARGUMENT, 17, 3, { "topk[35][3] = -2" } },
    { RUNS | LISTS, { I32(LISTED(35, 3), INT32_MIN) }, ATTN_E_ARGUMENT, 17, 3, { "topk[35][3] = -2147483648" } },
    { RUNS | LISTS, { I32(LISTED(0, 5), -7) }, ATTN_E_ARGUMENT, 0, 5, { "topk[0][5] = -7" } },
    { RUNS | LISTS | CONTIGUOUS, { I32(LISTED(43, 0), -2) }, ATTN_E_ARGUMENT, 19, 0, { "topk[43][0] = -2" } },
    { RUNS | LISTS, { I32(LISTED(35, 0), 3), I32(LISTED(35, 5), 3) }, ATTN_E_ARGUMENT, 17, 5,
      { "topk[35][5] = 3", "twice" } },
    { RUNS | LISTS, { I32(LISTED(35, 3), 0), I32(LISTED(35, 1), 0) }, ATTN_E_ARGUMENT, 17, 3, { "topk[35][3] = 0" } },
    { RUNS | LISTS, { I32(LISTED(35, 0), 15), I32(LISTED(35, 1), 15) }, ATTN_E_ARGUMENT, 17, 1,
      { "topk[35][1] = 15" } },     /* past the row's horizon */
    { RUNS | LISTS, { I32(LISTED(6, 1), 3), I32(LISTED(6, 5), 3) }, ATTN_E_ARGUMENT, 3, 5, { "topk[6][5] = 3" } },
    { RUNS | LISTS, { I32(LISTED(6, 0), 49), I32(table[3 * COLUMNS + 12], 4096) }, ATTN_E_PAGE, 3, 12,
      { "page_table[3][12] = 4096", "96 pages" } },
    { RUNS | LISTS, { I32(LISTED(6, 1), 3), I32(table[3 * COLUMNS], -1) }, ATTN_E_PAGE, 3, 0,
      { "page_table[3][0] = -1", "96 pages" } },
    { APPEND | LISTS, { I32(table[3 * COLUMNS + 12], 4096) }, ATTN_E_PAGE, 3, 12, { "page_table[3][12] = 4096" } },
    { RUNS | LISTS, { I64(io.page_table_row, 12) }, ATTN_E_ARGUMENT, 3, ANY, { "io.page_table_row = 12", "13" } },
    { MASK_BITS | LISTS, { NIL(io_arg) }, ATTN_E_ARGUMENT, ANY, ANY, { "io", "NULL" } },
    { MASK_BITS | LISTS, { NIL(io.topk) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.topk ", "NULL" } },
};

static const error_case scales[] = {
    { RUNS | APPEND | INT8, { NIL(io.k_scale) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.k_scale ", "NULL" } },
    { RUNS | APPEND | INT8, { NIL(io.v_scale) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.v_scale ", "NULL" } },
    { RUNS | APPEND | PER_KEY, { NIL(io.k_scale) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.k_scale ", "NULL" } },
    { RUNS | APPEND | PER_KEY, { NIL(io.v_scale) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.v_scale ", "NULL" } },
    { RUNS | APPEND | PER_KEY | CONTIGUOUS, { NIL(io.v_scale) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.v_scale " } },
    { RUNS | APPEND | INT8, { SHIFT(io.k_scale, 1) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.k_scale ", "aligned" } },
    { RUNS | APPEND | INT8, { SHIFT(io.v_scale, 2) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.v_scale ", "aligned" } },
    { RUNS | APPEND | PER_KEY, { SHIFT(io.k_scale, 2) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.k_scale ", "aligned" } },
    { RUNS | APPEND | PER_KEY, { SHIFT(io.v_scale, 1) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.v_scale ", "aligned" } },
    { RUNS | APPEND | LATENT, { NIL(io.k_scale) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.k_scale ", "NULL" } },
    { RUNS | APPEND | LATENT, { SHIFT(io.k_scale, 2) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.k_scale ", "aligned" } },
    { RUNS | APPEND | LATENT, { POINT(io.v_scale, v_scale) }, ATTN_E_ARGUMENT, ANY, ANY,
      { "io.v_scale ", "ATTN_V_IN_K" } },
    { RUNS | APPEND | LATENT, { POINT(io.v, v) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.v ", "ATTN_V_IN_K" } },
    { APPEND | LATENT, { POINT(new_v, rows) }, ATTN_E_ARGUMENT, ANY, ANY, { "new_v ", "ATTN_V_IN_K" } },
    /* a scale that is not needed may be missing, not misplaced */
    { RUNS | APPEND, { POINT(io.k_scale, k_scale), SHIFT(io.k_scale, 2) }, ATTN_E_ARGUMENT, ANY, ANY,
      { "io.k_scale ", "aligned" } },
    { RUNS | APPEND, { POINT(io.v_scale, v_scale), SHIFT(io.v_scale, 2) }, ATTN_E_ARGUMENT, ANY, ANY,
      { "io.v_scale ", "aligned" } },
};

#define DENSE_RUN (DENSE | CONTIGUOUS)

static const error_case skips[] = {
    { RUNS | LAMBDAS, { NIL(io.lambda) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.lambda ", "NULL" } },
    { DENSE_RUN | LAMBDAS, { NIL(io.lambda) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.lambda ", "NULL" } },
    { RUNS | LAMBDAS, { SHIFT(io.lambda, 2) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.lambda ", "aligned" } },
    { RUNS | LAMBDAS, { F32(lambda[17], -0.5f) }, ATTN_E_ARGUMENT, 17, ANY, { "lambda[17] = -0.5" } },
    { RUNS | LAMBDAS, { F32(lambda[19], (float)NAN) }, ATTN_E_ARGUMENT, 19, ANY, { "lambda[19]" } },
    { RUNS | LAMBDAS, { F32(lambda[0], (float)INFINITY) }, ATTN_E_ARGUMENT, 0, ANY, { "lambda[0]" } },
    { DENSE_RUN | LAMBDAS, { F32(lambda[0], -1e-30f) }, ATTN_E_ARGUMENT, 0, ANY, { "lambda[0] = -1e-30" } },
    { RUNS, { POINT(io.lambda, lambda) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.lambda ", "layer.skip.mode = 0" } },
    { RUNS | FACTORS, { POINT(io.lambda, lambda) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.lambda ", "skip.mode = 1" } },
    { RUNS | BUDGETS, { POINT(io.lambda, lambda) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.lambda ", "skip.mode = 3" } },
    { RUNS | DENSE_RUN, { POINT(io.counters, counters), SHIFT(io.counters, 2) }, ATTN_E_ARGUMENT, ANY, ANY,
      { "io.counters ", "aligned" } },
    { RUNS | FACTORS, { SHIFT(io.counters, 4) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.counters ", "aligned" } },
    { DENSE_RUN | BUDGETS, { SHIFT(io.counters, 1) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.counters ", "aligned" } },
    { RUNS | FACTORS, { SHIFT(io.certificate, 2) }, ATTN_E_ARGUMENT, ANY, ANY, { "io.certificate ", "aligned" } },
    { RUNS, { POINT(io.certificate, certificate), SHIFT(io.certificate, 1) }, ATTN_E_ARGUMENT, ANY, ANY,
      { "io.certificate ", "aligned" } },
};

static const error_case appends[] = {
    { APPEND | FULL | SHORT, { { NONE, 0, 0, 0 } }, ATTN_E_BATCH, 2, ANY,
      { "kv_len[2] = 1 is less than q_len[2] = 3" } },
};

/* ---- the check of one case -------------------------------------------------------------------------------------- */

static void apply(world *w, const patch *p) {
    unsigned char *at = (unsigned char *)w + p->at;
    int32_t word = (int32_t)p->value;
    size_t size = (size_t)p->value;
    unsigned char *pointer;
    switch (p->kind) {
    case I32:
        memcpy(at, &word, sizeof word);
        break;
    case I64:
        memcpy(at, &p->value, sizeof p->value);
        break;
    case F32:
        memcpy(at, &p->real, sizeof p->real);
        break;
    case SIZE:
        if (p->value < 0) {
            memcpy(&size, at, sizeof size);
            size--;
        }
        memcpy(at, &size, sizeof size);
        break;
    case NIL:
        pointer = NULL;
        memcpy(at, &pointer, sizeof pointer);
        break;
    case SHIFT:
        memcpy(&pointer, at, sizeof pointer);
        pointer += p->value;
        memcpy(at, &pointer, sizeof pointer);
        break;
    case POINT:
        pointer = (unsigned char *)w + p->value;
        memcpy(at, &pointer, sizeof pointer);
        break;
    default:
        break;
    }
}

static void make_case(const error_case *c, int which) {
    int i;
    make_variant(&now, c->calls);
    if (which != PLAN && which != DENSE && which != MASK_BITS) make_plan(&now);
    for (i = 0; i < 4; i++) apply(&now, &c->patch[i]);
}

static void check_index(const error_case *c, const attn_error *error) {
    if (c->request < ANY) {
        CHECK(error->request >= 0 && error->slot >= 0, "request %d, slot %d", error->request, error->slot);
        return;
    }
    CHECK(error->request == c->request, "%s: request %d, not %d", error->text, error->request, c->request);
    CHECK(error->slot == c->slot, "%s: slot %d, not %d", error->text, error->slot, c->slot);
}

static void check_text(const error_case *c, const char *name, const attn_error *error) {
    int i;
    CHECK(memchr(error->text, 0, sizeof error->text), "%s: the text is not terminated", name);
    for (i = 0; i < 4 && c->text[i]; i++) {
        CHECK(strstr(error->text, c->text[i]), "%s: \"%s\" lacks \"%s\"", name, error->text, c->text[i]);
    }
}

/* Where the world changed, for the message. The memory of attn_dense is scratch: the plan is made there before io is
   looked at, so it does not count. Nor does scratch memory with mask TOPK: duplicates are found there. */
static long changed(int which) {
    const unsigned char *a = (const unsigned char *)&now, *b = (const unsigned char *)&before;
    size_t i;
    if (which == DENSE) memcpy(before.call_memory, now.call_memory, sizeof now.call_memory);
    if (now.layer.mask == ATTN_TOPK) memcpy(before.exec_memory, now.exec_memory, sizeof now.exec_memory);
    for (i = 0; i < sizeof now; i++) {
        if (a[i] != b[i]) return (long)i;
    }
    return -1;
}

/* Is the fault one that only the arrays show? */
static int needs_arrays(const error_case *c) {
    int i;
    for (i = 0; i < 4; i++) {
        size_t at = c->patch[i].at;
        if (at == offsetof(world, batch.kv_len) || at == offsetof(world, batch.max_rows)) return 1;
        if (at == offsetof(world, batch.prefix)) return 1;
    }
    return 0;
}

static void check_call(const error_case *c, int which, const char *name) {
    attn_error error;
    int status, silent;
    memset(&error, 0x7f, sizeof error);
    make_case(c, which);
    memcpy(&before, &now, sizeof now);
    status = call(&now, which, &error);
    CHECK(status == (int)c->status, "%s, case \"%s\": status %d, not %d, text \"%.239s\"", name, c->text[0], status,
          (int)c->status, status ? error.text : "");
    CHECK(changed(which) < 0, "%s, case \"%s\": byte %ld of the world changed", name, c->text[0], changed(which));
    if (status != ATTN_OK) {
        check_text(c, name, &error);
        check_index(c, &error);
    }
    silent = call(&now, which, NULL);
    CHECK(silent == status, "%s, case \"%s\": status %d without an attn_error", name, c->text[0], silent);
    CHECK(changed(which) < 0, "%s, case \"%s\": byte %ld changed without an attn_error", name, c->text[0],
          changed(which));
    /* with every capacity set attn_plan_bytes reads no array, so it cannot see a bad entry: test_bad_entries does */
    if (which == PLAN && c->status != ATTN_E_MEMORY && now.plan_arg && c->request < 0 && !needs_arrays(c)) {
        CHECK(attn_plan_bytes(now.batch_arg, now.layer_arg) == 0, "case \"%s\": attn_plan_bytes is not 0", c->text[0]);
    }
    if (which == DENSE && (c->status == ATTN_E_LAYER || c->status == ATTN_E_BATCH)) {
        CHECK(attn_dense_bytes(now.layer_arg, now.dense_q, now.dense_kv) == 0, "case \"%s\": attn_dense_bytes",
              c->text[0]);
    }
}

static void check_cases(const error_case *c, int count) {
    int i, j;
    for (i = 0; i < count; i++) {
        for (j = 0; j < CALLS; j++) {
            if (c[i].calls & (1u << j)) check_call(&c[i], 1 << j, call_names[j]);
        }
    }
}

#define CASES(table) check_cases(table, (int)(sizeof table / sizeof table[0]))

/* ---- tests ------------------------------------------------------------------------------------------------------ */

/* Without this the other tests could pass because the world is broken from the start. */
static void test_valid(void) {
    static const unsigned variants[] = {
        CONTIGUOUS, 0, FULL, TREES, TREES | CONTIGUOUS, LISTS, LISTS | CONTIGUOUS, INT8, PER_KEY, PER_KEY | CONTIGUOUS,
        LATENT, LATENT | CONTIGUOUS, FACTORS, FACTORS | CONTIGUOUS, LAMBDAS, LAMBDAS | CONTIGUOUS, BUDGETS,
        BUDGETS | TREES, BUDGETS | LATENT
    };
    size_t v;
    int j;
    for (v = 0; v < sizeof variants / sizeof variants[0]; v++) {
        for (j = 0; j < CALLS; j++) {
            attn_error error;
            int status, which = 1 << j;
            if (which == DENSE && variants[v] != CONTIGUOUS) continue;
            make_variant(&now, variants[v]);
            make_plan(&now);
            CHECK(attn_plan_bytes(&now.batch, &now.layer) <= sizeof now.plan_memory, "plan memory of %lu bytes",
                  (unsigned long)attn_plan_bytes(&now.batch, &now.layer));
            CHECK(which != DENSE || attn_dense_bytes(&now.layer, 3, 20) <= sizeof now.call_memory, "dense memory");
            memcpy(&before, &now, sizeof now);
            status = call(&now, which, &error);
            CHECK(status == ATTN_OK, "variant %d, %s: %s", (int)v, call_names[j], status ? error.text : "");
            CHECK(which == CHECKER || changed(which) >= 0, "variant %d, %s wrote nothing", (int)v, call_names[j]);
            CHECK(call(&now, which, NULL) == ATTN_OK, "variant %d, %s without an attn_error", (int)v, call_names[j]);
        }
    }
}

static void test_arguments(void) {
    CASES(arguments);
}

static void test_memory(void) {
    CASES(memory);
}

static void test_batches(void) {
    CASES(batches);
}

static void test_layers(void) {
    CASES(layers);
}

static void test_differences(void) {
    CASES(differences);
}

static void test_pages(void) {
    CASES(pages);
}

static void test_trees(void) {
    CASES(trees);
}

static void test_lists(void) {
    CASES(lists);
}

static void test_scales(void) {
    CASES(scales);
}

static void test_appends(void) {
    CASES(appends);
}

static void test_skips(void) {
    CASES(skips);
}

/* An environment of two variables; any other name is an error of the caller. */
static const char *env_prefill, *env_decode;
static int env_strange;

static char *env_get(const char *name) {
    static char copy[64];
    const char *value = NULL;
    if (!strcmp(name, "ATTN_SKIP_SOFTMAX_PREFILL_THRESHOLD_SCALE_FACTOR")) {
        value = env_prefill;
    } else if (!strcmp(name, "ATTN_SKIP_SOFTMAX_DECODE_THRESHOLD_SCALE_FACTOR")) {
        value = env_decode;
    } else {
        env_strange++;
    }
    if (!value) return NULL;
    memset(copy, 0, sizeof copy);   /* as getenv may: the next call overwrites what this one gave */
    memcpy(copy, value, strlen(value));
    return copy;
}

static int from_env(attn_skip *skip, const char *prefill, const char *decode, attn_error *error) {
    env_prefill = prefill;
    env_decode = decode;
    return attn_skip_from_env(skip, env_get, error);
}

static void test_env(void) {
    static const struct {
        const char *text;
        float value;
    } good[] = {
        { "0", 0.0f }, { "0.0", 0.0f }, { ".5", 0.5f }, { "7.", 7.0f }, { "10000", 10000.0f }, { "500.25", 500.25f },
        { "1e3", 1000.0f }, { "1E3", 1000.0f }, { "2.5e+2", 250.0f }, { "125e-3", 0.125f }, { "1e-30", 1e-30f },
        { "0.000000000000000000000000000001", 1e-30f }, { "1e30", 1e30f }, { "2.5e38", 2.5e38f }, { "007", 7.0f },
        { "16777216", 16777216.0f }, { "1000000000000000000000000000000", 1e30f }, { "0e99999", 0.0f }
    };
    attn_skip skip = { ATTN_SKIP_EPS, 0.25f, 0.5f };
    attn_error error;
    size_t i;
    env_strange = 0;
    CHECK(!from_env(&skip, NULL, NULL, &error), "nothing set");
    CHECK(skip.mode == ATTN_SKIP_OFF && skip.prefill == 0 && skip.decode == 0, "nothing set: mode %d", skip.mode);
    CHECK(!from_env(&skip, "10000", NULL, &error), "prefill only");
    CHECK(skip.mode == ATTN_SKIP_FACTOR && skip.prefill == 10000.0f && skip.decode == 0, "prefill only");
    CHECK(!from_env(&skip, NULL, "500", &error), "decode only");
    CHECK(skip.mode == ATTN_SKIP_FACTOR && skip.prefill == 0 && skip.decode == 500.0f, "decode only");
    CHECK(!from_env(&skip, "0", "0", &error), "both 0");
    CHECK(skip.mode == ATTN_SKIP_OFF && skip.prefill == 0 && skip.decode == 0, "both 0: mode %d", skip.mode);
    CHECK(!from_env(&skip, NULL, "0.0", &error) && skip.mode == ATTN_SKIP_OFF, "0 and unset: mode %d", skip.mode);
    CHECK(!from_env(&skip, "18", "0.5", NULL), "both, without an attn_error");
    CHECK(skip.mode == ATTN_SKIP_FACTOR && skip.prefill == 18.0f && skip.decode == 0.5f, "both");
    for (i = 0; i < sizeof good / sizeof good[0]; i++) {
        float value = good[i].value;
        int status = from_env(&skip, good[i].text, "3", &error);
        CHECK(!status, "%s: %s", good[i].text, status ? error.text : "");
        CHECK(fabs((double)skip.prefill - (double)value) <= (double)value * 6e-8, "%s became %.9g", good[i].text,
              (double)skip.prefill);
        CHECK(skip.mode == ATTN_SKIP_FACTOR && skip.decode == 3.0f, "%s: the other one", good[i].text);
        CHECK(!from_env(&skip, NULL, good[i].text, &error) && skip.prefill == 0, "%s as decode", good[i].text);
        CHECK(fabs((double)skip.decode - (double)value) <= (double)value * 6e-8, "%s became %.9g as decode",
              good[i].text, (double)skip.decode);
    }
    CHECK(!env_strange, "asked for %d other names", env_strange);
}

/* An error names the variable and leaves the caller's settings alone. */
static void test_env_errors(void) {
    static const char *const bad[] = {
        "", " ", "-1", "-0.5", "-0", "+5", "abc", "5x", "5 ", " 5", "1e", "1e+", "1e-", "e5", ".", ".e3", "1.2.3",
        "1e5.0", "1e5e", "0x10", "nan", "inf", "infinity", "1,5", "1e39", "3.5e38", "1e99999", "5e4000000000", "1_000",
        "10000000000000000000000000000000000000000"
    };
    const attn_skip was = { ATTN_SKIP_EPS, 0.25f, 0.5f };
    attn_skip skip;
    attn_error error;
    size_t i;
    int which;
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        for (which = 0; which < 2; which++) {
            const char *name = which ? "ATTN_SKIP_SOFTMAX_DECODE_THRESHOLD_SCALE_FACTOR"
                                     : "ATTN_SKIP_SOFTMAX_PREFILL_THRESHOLD_SCALE_FACTOR";
            int status;
            memset(&error, 0x7f, sizeof error);
            skip = was;
            status = from_env(&skip, which ? "3" : bad[i], which ? bad[i] : "3", &error);
            CHECK(status == ATTN_E_ARGUMENT, "\"%s\": status %d", bad[i], status);
            CHECK(!memcmp(&skip, &was, sizeof skip), "\"%s\" changed the settings", bad[i]);
            if (status) {
                CHECK(memchr(error.text, 0, sizeof error.text), "\"%s\": the text is not terminated", bad[i]);
                CHECK(strstr(error.text, name), "\"%s\": %s", bad[i], error.text);
                CHECK(error.request == ANY && error.slot == ANY, "\"%s\": request %d", bad[i], error.request);
            }
            CHECK(from_env(&skip, which ? "3" : bad[i], which ? bad[i] : "3", NULL) == status, "no attn_error");
        }
    }
    CHECK(attn_skip_from_env(NULL, env_get, &error) == ATTN_E_ARGUMENT && strstr(error.text, "skip"), "skip NULL");
    CHECK(attn_skip_from_env(&skip, NULL, &error) == ATTN_E_ARGUMENT && strstr(error.text, "get"), "get NULL");
}

static void clear_capacities(void) {
    now.batch.max_q_len = 0;
    now.batch.max_kv_len = 0;
    now.batch.max_rows = 0;
}

/* The case table holds four patches, so the capacities are cleared here. */
static void test_sums(void) {
    size_t i;
    for (i = 0; i < sizeof sums / sizeof sums[0]; i++) {
        attn_error error;
        int status;
        make_case(&sums[i], PLAN);
        clear_capacities();
        memcpy(&before, &now, sizeof now);
        status = call(&now, PLAN, &error);
        CHECK(status == ATTN_E_BATCH, "status %d", status);
        CHECK(changed(PLAN) < 0, "byte %ld changed", changed(PLAN));
        if (status != ATTN_OK) check_text(&sums[i], "attn_plan_make", &error);
        CHECK(call(&now, PLAN, NULL) == status, "without an attn_error");
        CHECK(attn_plan_bytes(&now.batch, &now.layer) == 0, "attn_plan_bytes");
    }
}

/* Without capacities attn_plan_bytes reads the arrays, and gives 0 for every batch that attn_plan_make refuses. */
static void test_bad_entries(void) {
    size_t i;
    make_world(&now, 1);
    clear_capacities();
    CHECK(attn_plan_bytes(&now.batch, &now.layer) > 0, "the valid batch");
    for (i = 0; i < sizeof batches / sizeof batches[0]; i++) {
        if (!(batches[i].calls & PLAN)) continue;
        make_case(&batches[i], PLAN);
        clear_capacities();
        apply(&now, &batches[i].patch[0]);
        if (call(&now, PLAN, NULL) == ATTN_OK) continue;
        CHECK(attn_plan_bytes(&now.batch, &now.layer) == 0, "case \"%s\"", batches[i].text[0]);
    }
}

/* Numbers in messages: six digits, plain or with an exponent. */
static void test_numbers(void) {
    static const struct {
        float value;
        const char *text;
    } numbers[] = {
        { 0.5f, " = 0.5," }, { 100.0f, " = 100," }, { 12.5f, " = 12.5," }, { 0.0883883461f, " = 0.0883883461," },
        { -3.25f, " = -3.25," }, { 1e-5f, " = 1e-5," }, { 1e6f, " = 1e6," },
        { 999999.938f, " = 999999.938," }, { 3.4028235e38f, " = 3.40282347e38," },
        { 0.001f, " = 0.001," }, { 999999.9375f, " = 999999.938," }, { 123456.0f, " = 123456," }, { 1.0f, " = 1," },
        { 1e-45f, "e-45," }
    };
    size_t i;
    for (i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        attn_error error;
        make_world(&now, 1);
        make_plan(&now);
        now.layer.scale = numbers[i].value;
        error.text[0] = 0;
        CHECK(call(&now, FORWARD, &error) == ATTN_E_PLAN, "scale %g", (double)numbers[i].value);
        CHECK(strstr(error.text, numbers[i].text), "%s: no \"%s\"", error.text, numbers[i].text);
    }
}

/* Every field of attn_layer stands in `differences`: a new field must be added there and to attn_forward. */
static void test_every_field(void) {
    static unsigned char seen[sizeof(attn_layer)];
    size_t i, base = offsetof(world, layer);
    memset(seen, 0, sizeof seen);
    for (i = 0; i < sizeof differences / sizeof differences[0]; i++) {
        memset(seen + (differences[i].patch[0].at - base), 1, 4);
    }
    for (i = 0; i < sizeof seen; i++) CHECK(seen[i], "byte %lu of attn_layer belongs to no case", (unsigned long)i);
}

/* A plan of zero bytes, and one whose memory holds something else by now. */
static void test_foreign_plan(void) {
    static const int calls[] = { FORWARD, CHECKER, APPEND };
    size_t i;
    for (i = 0; i < sizeof calls / sizeof calls[0]; i++) {
        make_world(&now, 1);
        make_plan(&now);
        memset(&now.plan, 0, sizeof now.plan);
        memcpy(&before, &now, sizeof now);
        CHECK(call(&now, calls[i], NULL) == ATTN_E_PLAN, "a plan of zero bytes");
        CHECK(changed(calls[i]) < 0, "byte %ld changed", changed(calls[i]));
    }
}

/* n = 0, an idle batch, and requests of zero length in between are no errors. */
static void test_empty(void) {
    int variant;
    for (variant = 0; variant < 4; variant++) {
        attn_error error;
        int i, j, status;
        make_world(&now, 1);
        for (i = 0; i < N; i++) {
            if (variant == 3 && i % 2) continue;
            now.q_len[i] = 0;
            if (variant != 2) now.kv_len[i] = 0;
        }
        if (variant == 0) {
            now.batch.n = 0;
            now.batch.q_len = NULL;
            now.batch.kv_len = NULL;
            now.batch.phase = NULL;
        }
        set_table(&now);
        make_plan(&now);
        memcpy(&before, &now, sizeof now);
        for (j = FORWARD; j <= APPEND; j <<= 1) {
            status = call(&now, j, &error);
            CHECK(status == ATTN_OK, "variant %d, call %d: %s", variant, j, status ? error.text : "");
        }
        if (variant < 3) {
            CHECK(!memcmp(now.o, before.o, sizeof now.o), "variant %d: o changed", variant);
            CHECK(!memcmp(now.lse, before.lse, sizeof now.lse), "variant %d: lse changed", variant);
            CHECK(!memcmp(now.k, before.k, sizeof now.k), "variant %d: k changed", variant);
        } else {
            CHECK(memcmp(now.o, before.o, sizeof now.o), "variant %d: o did not change", variant);
        }
    }
}

/* Optional inputs: none of these is an error. */
static void test_optional(void) {
    attn_error error;
    int status, i;
    make_world(&now, 1);
    make_plan(&now);
    now.io.lse = NULL;
    now.io.sinks = NULL;
    now.exec.lanes = 0;
    status = call(&now, FORWARD, &error);
    CHECK(status == ATTN_OK, "no lse, no sinks, lanes 0: %s", status ? error.text : "");
    make_world(&now, 1);
    now.merged_lse = NULL;
    status = call(&now, MERGE, &error);
    CHECK(status == ATTN_OK, "no merged lse: %s", status ? error.text : "");
    make_world(&now, 1);
    now.io_arg = NULL;
    status = call(&now, MASK_BITS, &error);
    CHECK(status == ATTN_OK, "attn_mask_bits without io: %s", status ? error.text : "");
    make_world(&now, 1);
    make_plan(&now);
    now.io.tree = NULL;
    now.io.topk = NULL;
    status = call(&now, FORWARD, &error);
    CHECK(status == ATTN_OK, "no tree and no lists with mask CAUSAL: %s", status ? error.text : "");
    make_variant(&now, LAMBDAS);
    make_plan(&now);
    now.io.certificate = NULL;
    now.io.counters = NULL;
    status = call(&now, FORWARD, &error);
    CHECK(status == ATTN_OK, "no certificate and no counters: %s", status ? error.text : "");
    make_world(&now, 1);
    make_plan(&now);
    now.io.certificate = now.certificate;
    now.io.counters = &now.counters;
    now.certificate[0] = 7;
    memset(&now.counters, 0x5a, sizeof now.counters);
    memcpy(&before, &now, sizeof now);
    status = call(&now, FORWARD, &error);
    CHECK(status == ATTN_OK, "certificate and counters with skipping off: %s", status ? error.text : "");
    CHECK(now.certificate[0] == 0, "the certificate says %g", (double)now.certificate[0]);
    CHECK(!memcmp(&now.counters, &before.counters, sizeof now.counters), "with skipping off something was counted");
    make_variant(&now, LAMBDAS);
    for (i = 0; i < N; i++) now.q_len[i] = 0;
    make_plan(&now);
    now.io.lambda = NULL;
    status = call(&now, FORWARD, &error);
    CHECK(status == ATTN_OK, "no thresholds for no rows: %s", status ? error.text : "");
}

/* attn_append stores rows, whatever sees them: it needs no tree, no lists and no thresholds. */
static void test_append_alone(void) {
    static const unsigned variants[] = { TREES, LISTS, LAMBDAS };
    int i;
    for (i = 0; i < 3; i++) {
        attn_error error;
        int status;
        make_variant(&now, variants[i]);
        make_plan(&now);
        now.io.tree = NULL;
        now.io.topk = NULL;
        now.io.lambda = NULL;
        status = call(&now, APPEND, &error);
        CHECK(status == ATTN_OK, "attn_append: %s", status ? error.text : "");
    }
}

/* Bits of drafts that do not exist are ignored: the output is that of a tree without them. */
static void test_tree_bits_above(void) {
    static float o[MAX_ROWS * HEADS * DIM];
    attn_error error;
    int i, j, row = 0, status;
    make_variant(&now, TREES);
    make_plan(&now);
    CHECK(call(&now, FORWARD, NULL) == ATTN_OK, "the reference");
    memcpy(o, now.o, sizeof o);
    for (i = 0; i < N; i++) {
        for (j = 0; j < now.q_len[i]; j++, row++) now.tree[row] |= (int32_t)(0x7FFFFFFFu << now.q_len[i]);
    }
    status = call(&now, FORWARD, &error);
    CHECK(status == ATTN_OK, "bits above E: %s", status ? error.text : "");
    CHECK(!memcmp(o, now.o, sizeof o), "bits above E changed the output");
}

/* Entries past a row's horizon and -1 are no errors, nor is an entry past all keys that stands there twice; pages of
   keys that no list holds are not looked at. */
static void test_lists_allowed(void) {
    static float o[MAX_ROWS * HEADS * DIM];
    attn_error error;
    int status, row;
    make_variant(&now, LISTS);
    make_plan(&now);
    CHECK(call(&now, FORWARD, NULL) == ATTN_OK, "the reference");
    memcpy(o, now.o, sizeof o);
    for (row = 0; row < 44; row++) now.topk[row * TOPK + 1] = row % 2 ? INT32_MAX : 1000 + row;
    now.topk[35 * TOPK + 1] = 11;   /* position 10 */
    now.topk[5] = now.topk[1];      /* row 0 has five keys: 1000 stands twice in its list */
    now.table[3 * COLUMNS] = -1;    /* keys 0 .. 3 of request 3, whose list holds 44 and above */
    status = call(&now, FORWARD, &error);
    CHECK(status == ATTN_OK, "entries past the horizon: %s", status ? error.text : "");
    CHECK(!memcmp(o, now.o, sizeof o), "entries past the horizon changed the output");
}

/* ATTN_TRUSTED: lists are not checked. */
static void test_lists_trusted(void) {
    attn_error error;
    int status;
    make_variant(&now, LISTS);
    now.layer.flags = ATTN_TRUSTED;
    make_plan(&now);
    now.topk[35 * TOPK + 1] = now.topk[35 * TOPK];
    now.io.pages = 13;
    status = call(&now, FORWARD, &error);
    CHECK(status == ATTN_OK, "a trusted call: %s", status ? error.text : "");
}

/* ATTN_TRUSTED: pages says 13 although there are 96 of them, so the checked call fails and the trusted one is right. */
static void test_trusted(void) {
    static float o[MAX_ROWS * HEADS * DIM], k[CACHE];
    int round;
    for (round = 0; round < 2; round++) {
        make_world(&now, 1);
        now.layer.flags = round ? ATTN_TRUSTED : 0;
        make_plan(&now);
        if (!round) {
            CHECK(call(&now, FORWARD, NULL) == ATTN_OK, "the reference");
            CHECK(call(&now, APPEND, NULL) == ATTN_OK, "the reference cache");
            memcpy(o, now.o, sizeof o);
            memcpy(k, now.k, sizeof k);
            now.io.pages = 13;
            CHECK(call(&now, FORWARD, NULL) == ATTN_E_PAGE, "a checked call");
            CHECK(call(&now, APPEND, NULL) == ATTN_E_PAGE, "a checked append");
        } else {
            now.io.pages = 13;
            CHECK(call(&now, FORWARD, NULL) == ATTN_OK, "a trusted call");
            CHECK(call(&now, APPEND, NULL) == ATTN_OK, "a trusted append");
            CHECK(!memcmp(o, now.o, sizeof o), "the output of a trusted call");
            CHECK(!memcmp(k, now.k, sizeof k), "the cache after a trusted append");
        }
    }
}

/* Table entries that no row needs may hold anything: past the length, before the window, before the new rows. */
static void test_unread_pages(void) {
    static float o[MAX_ROWS * HEADS * DIM];
    attn_error error;
    int c, status;
    make_world(&now, 1);
    now.layer.window_left = 9;
    make_plan(&now);
    CHECK(call(&now, FORWARD, NULL) == ATTN_OK, "the reference");
    memcpy(o, now.o, sizeof o);
    /* request 3: kv_len 50, one row at position 49, so keys 41 .. 49 are in the window: pages 10, 11 and 12 */
    for (c = 0; c < 10; c++) now.table[3 * COLUMNS + c] = c % 2 ? INT32_MAX : -1;
    status = call(&now, FORWARD, &error);
    CHECK(status == ATTN_OK, "pages before the window: %s", status ? error.text : "");
    CHECK(!memcmp(o, now.o, sizeof o), "pages before the window changed the output");
    now.table[3 * COLUMNS + 10] = -1;
    CHECK(call(&now, FORWARD, NULL) == ATTN_E_PAGE, "the first page of the window is checked");
    status = call(&now, APPEND, &error);
    CHECK(status == ATTN_OK, "pages before the new rows: %s", status ? error.text : "");
}

int main(int argc, char **argv) {
    if (argc > 1) test.only = argv[1];
    test_run("errors: the unbroken world passes every call", test_valid);
    test_run("errors: arguments", test_arguments);
    test_run("errors: memory that is missing, misaligned or too small", test_memory);
    test_run("errors: batches", test_batches);
    test_run("errors: sums above 2^31 - 1", test_sums);
    test_run("errors: attn_plan_bytes of a bad batch", test_bad_entries);
    test_run("errors: layers", test_layers);
    test_run("errors: a layer that differs from the plan's (sglang trap 15)", test_differences);
    test_run("errors: every field of attn_layer is compared", test_every_field);
    test_run("errors: numbers in messages", test_numbers);
    test_run("errors: page ids (features trap 8)", test_pages);
    test_run("errors: trees", test_trees);
    test_run("errors: top-k lists", test_lists);
    test_run("errors: scales", test_scales);
    test_run("errors: appending more rows than keys", test_appends);
    test_run("errors: skip-softmax", test_skips);
    test_run("attn_skip_from_env: unset, set, numbers", test_env);
    test_run("errors: attn_skip_from_env", test_env_errors);
    test_run("errors: a plan that was never made", test_foreign_plan);
    test_run("no error: n = 0 and zero lengths", test_empty);
    test_run("no error: what is optional", test_optional);
    test_run("no error: ATTN_TRUSTED does not check pages", test_trusted);
    test_run("no error: table entries that are never read", test_unread_pages);
    test_run("no error: appending without tree and lists", test_append_alone);
    test_run("no error: tree bits above the rows", test_tree_bits_above);
    test_run("no error: list entries past the horizon", test_lists_allowed);
    test_run("no error: ATTN_TRUSTED does not check lists", test_lists_trusted);
    return test_close("errors");
}
