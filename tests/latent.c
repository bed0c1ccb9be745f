/* latent.c - ATTN_V_IN_K, as absorbed MLA uses it: the values are the first elements of the keys' rows. The result has
   the bits of a call whose V is a copy of them; scale and combinations that cannot work are refused. */
#include "../attn.h"
#include "isas.h"
#include "test.h"

enum { HEADS = 16, DIM = 576, VALUES = 512, KEYS = 700, PAGE = 64, PAGES = 2 * ((KEYS + PAGE - 1) / PAGE), MOST = 40 };

/* Both ways of one batch of two requests. */
typedef struct latent {
    attn_batch batch;
    attn_layer layer;
    attn_io io;
    int32_t q_len[2], kv_len[2], phase[2], table[2 * PAGES];
    float *q, *rows, *o, *lse;
    char *k;                        /* pages of the cache */
    attn_plan plan;
    attn_exec exec;
    void *plan_mem;
    attn_error error;
} latent;

static void open_latent(latent *t, attn_type type, int32_t rows, int phase, int isa) {
    test_rng r = { 21 };
    int i;
    memset(t, 0, sizeof *t);
    t->q = (float *)malloc(sizeof(float) * 2 * MOST * HEADS * DIM);
    t->rows = (float *)malloc(sizeof(float) * 2 * MOST * DIM);
    t->o = (float *)calloc(2 * MOST * HEADS * VALUES, sizeof(float));
    t->lse = (float *)calloc(2 * MOST * HEADS, sizeof(float));
    t->k = (char *)calloc((size_t)PAGES * PAGE * DIM, sizeof(float));
    for (i = 0; i < 2 * MOST * HEADS * DIM; i++) t->q[i] = test_uniform(&r);
    for (i = 0; i < 2 * MOST * DIM; i++) t->rows[i] = test_uniform(&r);
    for (i = 0; i < PAGES; i++) t->table[i % 2 * PAGES + i / 2] = (i * 5 + 2) % PAGES; /* 5 and 22 share no factor */
    for (i = 0; i < 2; i++) {
        t->q_len[i] = rows;
        t->kv_len[i] = KEYS - 300 * i;
        t->phase[i] = phase;
    }
    t->batch.n = 2;
    t->batch.q_len = t->q_len;
    t->batch.kv_len = t->kv_len;
    t->batch.phase = t->phase;
    t->layer.heads = HEADS;
    t->layer.kv_heads = 1;
    t->layer.head_dim = DIM;
    t->layer.v_dim = VALUES;
    t->layer.kv_type = type;
    t->layer.page_size = PAGE;
    t->layer.scale = 0.07216878f; /* 1 / sqrt(192) */
    t->layer.flags = ATTN_V_IN_K;
    t->layer.workers = 3;
    t->layer.isa = isa;
    t->io.q = t->q;
    t->io.k = t->k;
    t->io.o = t->o;
    t->io.lse = t->lse;
    t->io.page_table = t->table;
    t->io.page_table_row = PAGES;
    t->io.pages = PAGES;
}

static void close_latent(latent *t) {
    free(t->q);
    free(t->rows);
    free(t->o);
    free(t->lse);
    free(t->k);
    free(t->plan_mem);
    free(t->exec.mem);
}

static int plan_latent(latent *t) {
    size_t bytes = attn_plan_bytes(&t->batch, &t->layer);
    free(t->plan_mem);
    free(t->exec.mem);
    t->plan_mem = malloc(bytes ? bytes : 1);
    t->exec.mem = NULL;
    CHECK(!attn_plan_make(&t->plan, &t->batch, &t->layer, t->plan_mem, bytes, &t->error), "%s", t->error.text);
    t->exec.bytes = attn_exec_bytes(&t->plan, 1);
    t->exec.mem = malloc(t->exec.bytes);
    return 1;
}

/* Fills the cache through attn_append, MOST rows at a time. */
static void fill_cache(latent *t, int with_v, const float *new_v, float *v) {
    latent f = *t;
    int32_t done;
    f.plan_mem = NULL;
    f.exec.mem = NULL;
    f.batch.q_len = f.q_len;
    f.batch.kv_len = f.kv_len;
    f.batch.phase = f.phase;
    f.io.v = with_v ? v : NULL;
    for (done = 0; done < KEYS; done += 20) {
        int i;
        for (i = 0; i < 2; i++) {
            f.kv_len[i] = done + 20 < t->kv_len[i] ? done + 20 : t->kv_len[i];
            f.q_len[i] = f.kv_len[i] > done ? f.kv_len[i] - done : 0;
        }
        plan_latent(&f);
        CHECK(!attn_append(&f.plan, &f.layer, &f.io, f.rows + done % MOST * DIM, with_v ? new_v : NULL, &f.error), "%s",
              f.error.text);
    }
    free(f.plan_mem);
    free(f.exec.mem);
}

static void run(attn_type type, int32_t rows, int phase, int isa) {
    latent t;
    size_t o_bytes, size = type == ATTN_F32 ? 4 : 2;
    float *o;
    open_latent(&t, type, rows, phase, isa);
    o_bytes = sizeof(float) * 2 * (size_t)rows * HEADS * VALUES;
    o = (float *)malloc(o_bytes);
    fill_cache(&t, 0, NULL, NULL);
    plan_latent(&t);
    CHECK(!attn_forward(&t.plan, &t.layer, &t.io, &t.exec, &t.error), "%s", t.error.text);
    memcpy(o, t.o, o_bytes);
    memset(t.o, 0, o_bytes);
    /* the same with V as an array of its own: a copy of the first elements of each row */
    {
        char *v = (char *)malloc((size_t)PAGES * PAGE * VALUES * size);
        size_t i;
        for (i = 0; i < (size_t)PAGES * PAGE; i++) memcpy(v + i * VALUES * size, t.k + i * DIM * size, VALUES * size);
        t.layer.flags = 0;
        t.io.v = v;
        plan_latent(&t);
        CHECK(!attn_forward(&t.plan, &t.layer, &t.io, &t.exec, &t.error), "%s", t.error.text);
        CHECK(!memcmp(o, t.o, o_bytes), "isa %d, type %d, %d rows, phase %d", isa, (int)type, rows, phase);
        CHECK(o[0] != 0 && o[0] == o[0], "no result");
        free(v);
    }
    free(o);
    close_latent(&t);
}

static void test_same(void) {
    int isa;
    for (isa = ATTN_ISA_SCALAR; isa; isa = next_isa(isa)) {
        run(ATTN_F32, 1, ATTN_DECODE, isa);
        run(ATTN_BF16, 3, ATTN_DECODE, isa);
        run(ATTN_F16, 9, ATTN_PREFILL, isa);
    }
}

static void test_errors(void) {
    latent t;
    open_latent(&t, ATTN_F32, 1, ATTN_DECODE, ATTN_ISA_SCALAR);
    plan_latent(&t);
    t.io.v = t.k;
    CHECK(attn_forward(&t.plan, &t.layer, &t.io, &t.exec, &t.error) == ATTN_E_ARGUMENT, "io.v");
    CHECK(strstr(t.error.text, "io.v") != NULL, "%s", t.error.text);
    t.io.v = NULL;
    CHECK(attn_append(&t.plan, &t.layer, &t.io, t.rows, t.rows, &t.error) == ATTN_E_ARGUMENT, "new_v");
    CHECK(strstr(t.error.text, "new_v") != NULL, "%s", t.error.text);
    t.layer.scale = 0;
    CHECK(attn_plan_make(&t.plan, &t.batch, &t.layer, t.plan_mem, 1, &t.error) == ATTN_E_LAYER, "scale");
    CHECK(strstr(t.error.text, "layer.scale") != NULL, "%s", t.error.text);
    t.layer.scale = 1;
    t.layer.kv_heads = 2;
    CHECK(attn_plan_make(&t.plan, &t.batch, &t.layer, t.plan_mem, 1, &t.error) == ATTN_E_LAYER, "kv_heads");
    CHECK(strstr(t.error.text, "layer.kv_heads = 2") != NULL, "%s", t.error.text);
    t.layer.kv_heads = 1;
    t.layer.v_dim = 577;
    CHECK(attn_plan_make(&t.plan, &t.batch, &t.layer, t.plan_mem, 1, &t.error) == ATTN_E_LAYER, "v_dim");
    CHECK(strstr(t.error.text, "layer.v_dim = 577") != NULL, "%s", t.error.text);
    close_latent(&t);
}

int main(int argc, char **argv) {
    test.only = argc > 1 ? argv[1] : NULL;
    test_run("MLA 576/512: V in K has the bits of a V of its own", test_same);
    test_run("V in K: what cannot work is refused", test_errors);
    return test_close("latent");
}
