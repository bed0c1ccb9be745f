/* engine.c - what inference engines ran into and other programs do not test: verification against bidirectional blocks,
   evicted pages, two steps in flight, latent attention over every page layout. */
#include "cases.h"
#include "test.h"

static attn_isa isas[4];
static int isa_count;

static void add(case_spec *s, int q_len, int kv_len, int phase, uint32_t content) {
    case_request *r = &s->request[s->n++];
    memset(r, 0, sizeof *r);
    r->q_len = q_len;
    r->kv_len = kv_len;
    r->phase = phase;
    r->content = content;
}

static void open_run(test_case *c, const case_spec *s, attn_isa isa) {
    const char *wrong;
    case_open(c, s);
    c->layer.isa = (int32_t)isa;
    wrong = case_run(c);
    CHECK(!wrong, "%s: %s", case_isa_name(isa), wrong);
}

/* ---- sglang trap 27: a verified block is causal; a bidirectional one is rows with all keys ----------------------- */

enum { BLOCK_ROWS = 7, PREFIX_KEYS = 40, BLOCK_KEYS = PREFIX_KEYS + BLOCK_ROWS };

static void block_layer(case_spec *s, attn_mask mask) {
    case_defaults(s);
    s->n = 0;
    s->layer.heads = 8;
    s->layer.kv_heads = 2;
    s->layer.head_dim = 64;
    s->layer.page_size = 32;
    s->layer.mask = mask;
    s->order = CASE_SHUFFLED;
    s->share = 1;
}

/* Two requests of seven drafts each, as one batch. */
static void open_block(test_case *c, attn_mask mask, attn_isa isa) {
    case_spec s;
    block_layer(&s, mask);
    add(&s, BLOCK_ROWS, BLOCK_KEYS, ATTN_DECODE, 1);
    add(&s, BLOCK_ROWS, BLOCK_KEYS, ATTN_DECODE, 2);
    open_run(c, &s, isa);
}

static void trap27_causal_or_bidirectional(void) {
    int k;
    for (k = 0; k < isa_count; k++) {
        case_spec s;
        test_case causal;
        test_case full;
        test_case rows;
        int i;
        int j;
        int differ = 0;
        open_block(&causal, ATTN_CAUSAL, isas[k]);
        open_block(&full, ATTN_FULL, isas[k]);
        block_layer(&s, ATTN_FULL);
        for (i = 0; i < 2; i++) {
            for (j = 0; j < BLOCK_ROWS; j++) {
                add(&s, 1, BLOCK_KEYS, ATTN_DECODE, (uint32_t)i + 1);
                s.request[s.n - 1].q_shift = j - (BLOCK_ROWS - 1);
            }
        }
        open_run(&rows, &s, isas[k]);
        for (i = 0; i < 2; i++) {
            for (j = 0; j < BLOCK_ROWS; j++) {
                CHECK(case_same_row(&full, i, j, &rows, i * BLOCK_ROWS + j, 0), "request %d, row %d", i, j);
                differ += !case_same_row(&causal, i, j, &full, i, j);
            }
            CHECK(case_same_row(&causal, i, BLOCK_ROWS - 1, &full, i, BLOCK_ROWS - 1), "last row of request %d", i);
        }
        CHECK(differ == 2 * (BLOCK_ROWS - 1), "%d rows differ: all but the last of each request should", differ);
        case_close(&causal);
        case_close(&full);
        case_close(&rows);
    }
}

/* ---- sglang trap 28: a sliding-window pool whose evicted pages stand as -1 in the table -------------------------- */

enum { SWA_PAGE = 16, SWA_WINDOW = 100, SWA_REQUESTS = 3, SWA_MOST = 1000, SWA_PAGES = SWA_REQUESTS * SWA_MOST };

/* Slots of the tokens; those of pages that lie before every row's window are given back to the pool (-1). */
static int evict(int32_t *req_to_token, const int32_t *q_len, const int32_t *kv_len) {
    int evicted = 0;
    int i;
    int t;
    for (i = 0; i < SWA_REQUESTS; i++) {
        int first = kv_len[i] - q_len[i] - SWA_WINDOW + 1;
        for (t = 0; t < SWA_MOST; t++) {
            int gone = (t / SWA_PAGE + 1) * SWA_PAGE <= first;
            req_to_token[i * SWA_MOST + t] = gone ? -1 : (t / SWA_PAGE * SWA_REQUESTS + i) * SWA_PAGE + t % SWA_PAGE;
            evicted += gone;
        }
    }
    return evicted;
}

static void evicted_pages(int phase, attn_isa isa) {
    static const int lengths[][2] = { { 4, 1000 }, { 1, 517 }, { 9, 90 } };
    static int32_t slots[SWA_REQUESTS * SWA_MOST];
    case_spec s;
    test_case whole;
    attn_meta_input in = { NULL, SWA_MOST, SWA_REQUESTS, NULL, SWA_PAGE, 0 };
    attn_meta meta;
    size_t bytes;
    void *mem;
    int i;
    case_defaults(&s);
    s.n = 0;
    s.layer.page_size = SWA_PAGE;
    s.layer.window_left = SWA_WINDOW;
    s.more_q = s.more_kv = 0;
    s.more_rows = 0;
    s.order = CASE_INTERLEAVED;
    for (i = 0; i < SWA_REQUESTS; i++) add(&s, lengths[i][0], lengths[i][1], phase, (uint32_t)i);
    open_run(&whole, &s, isa);
    CHECK(evict(slots, whole.q_len, whole.kv_len) > 1200, "enough pages are evicted");
    in.req_to_token = slots;
    bytes = attn_meta_bytes(&whole.batch, &in, ATTN_META_PAGE_TABLE);
    mem = malloc(bytes);
    CHECK(attn_meta_make(&meta, &whole.batch, &in, ATTN_META_PAGE_TABLE, mem, bytes, &whole.error) == ATTN_OK, "%s",
          whole.error.text);
    CHECK(meta.page_table[0] == -1 && meta.page_table[meta.table_row - 1] >= 0, "the table's first page is gone");
    for (i = 0; i < SWA_REQUESTS; i++) { /* our slots, the case's pages */
        int column;
        for (column = 0; column * SWA_PAGE < whole.kv_len[i]; column++) {
            int32_t *entry = &meta.page_table[i * meta.table_row + column];
            if (*entry >= 0) *entry = whole.map[i * whole.columns + column];
        }
    }
    whole.io.page_table = meta.page_table;
    whole.io.page_table_row = meta.table_row;
    case_reset_outputs(&whole);
    CHECK(attn_forward(&whole.plan, &whole.layer, &whole.io, &whole.exec, &whole.error) == ATTN_OK, "%s",
          whole.error.text);
    CHECK(!memcmp(whole.out, whole.o.data, whole.o.bytes), "evicted pages changed the result");
    meta.page_table[(whole.kv_len[0] - 1) / SWA_PAGE] = -1;
    CHECK(attn_forward(&whole.plan, &whole.layer, &whole.io, &whole.exec, &whole.error) == ATTN_E_PAGE,
          "a page inside the window is missing");
    free(mem);
    case_close(&whole);
}

static void trap28_evicted_pages(void) {
    int k;
    for (k = 0; k < isa_count; k++) {
        evicted_pages(ATTN_PREFILL, isas[k]);
        evicted_pages(ATTN_DECODE, isas[k]);
    }
}

/* ---- features trap 26: two steps in flight ----------------------------------------------------------------------- */

/* Runs the tasks of two plans in turns: nothing of one may live in the other, or in the library. */
static void interleave(test_case *a, test_case *b) {
    int stage;
    CHECK(attn_check(&a->plan, &a->layer, &a->io, &a->exec, &a->error) == ATTN_OK, "%s", a->error.text);
    CHECK(attn_check(&b->plan, &b->layer, &b->io, &b->exec, &b->error) == ATTN_OK, "%s", b->error.text);
    for (stage = ATTN_COMPUTE; stage <= ATTN_MERGE; stage++) {
        int32_t of_a = attn_task_count(&a->plan, (attn_stage)stage);
        int32_t of_b = attn_task_count(&b->plan, (attn_stage)stage);
        int32_t i;
        for (i = 0; i < of_a || i < of_b; i++) {
            if (i < of_a) attn_task(&a->plan, &a->io, &a->exec, (attn_stage)stage, i, 0);
            if (i < of_b) attn_task(&b->plan, &b->io, &b->exec, (attn_stage)stage, i, 0);
        }
    }
}

static void trap26_two_plans_in_flight(void) {
    int k;
    for (k = 0; k < isa_count; k++) {
        case_spec s;
        test_case steps[2];
        int i;
        for (i = 0; i < 2; i++) {
            case_defaults(&s);
            s.n = 0;
            s.layer.workers = 5;
            s.layer.row_tile = 16;
            add(&s, 3 + i, 900 + 100 * i, ATTN_DECODE, 1);
            add(&s, 40, 300, ATTN_PREFILL, 2);
            open_run(&steps[i], &s, isas[k]);
            CHECK(steps[i].plan.merges > 0 && steps[i].plan.tasks > 5, "%d tasks", steps[i].plan.tasks);
            case_reset_outputs(&steps[i]);
        }
        interleave(&steps[0], &steps[1]);
        for (i = 0; i < 2; i++) {
            CHECK(!memcmp(steps[i].out, steps[i].o.data, steps[i].o.bytes), "step %d", i);
            case_close(&steps[i]);
        }
    }
}

/* ---- latent attention over every page layout (the MLA matrix) ---------------------------------------------------- */

static void latent_pages(void) {
    static const int lengths[] = { 31, 32, 33, 128, 1, 64, 65, 300 };
    static const int batches[] = { 1, 3, 8, 32 };
    int b;
    int page;
    int k;
    for (k = 0; k < isa_count; k++) {
        for (page = 32; page <= 64; page *= 2) {
            for (b = 0; b < 4; b++) {
                case_spec s;
                test_case c;
                int i;
                case_defaults(&s);
                s.n = 0;
                s.layer.heads = 4;
                s.layer.kv_heads = 1;
                s.layer.head_dim = 576;
                s.layer.v_dim = 512;
                s.layer.scale = 0.07216878f; /* 1 / sqrt(192) */
                s.layer.flags = ATTN_V_IN_K;
                s.layer.kv_type = page == 32 ? ATTN_BF16 : ATTN_F32;
                s.layer.page_size = page;
                s.order = (case_order)(b % 4);
                s.spare_pages = b;
                s.table_gap = b; /* the tail of the table is no page */
                s.hide = 1;
                for (i = 0; i < batches[b]; i++) {
                    int kv_len = lengths[(i + b) % 8];
                    add(&s, i % 3 == 2 && kv_len > 3 ? 4 : 1, kv_len, ATTN_DECODE, (uint32_t)i);
                }
                open_run(&c, &s, isas[k]);
                case_close(&c);
            }
        }
    }
}

/* Scratch memory of a list: a row sees no more keys than there are, however long its list may be. */
static void list_memory(void) {
    size_t bytes[2];
    int i;
    for (i = 0; i < 2; i++) {
        case_spec s;
        test_case c;
        case_defaults(&s);
        s.request[0].kv_len = 16;
        s.layer.mask = ATTN_TOPK;
        s.layer.topk = 16;
        case_open(&c, &s);
        c.layer.topk = i ? INT32_MAX : 16;
        CHECK(case_plan(&c) == ATTN_OK, "%s", c.error.text);
        bytes[i] = attn_exec_bytes(&c.plan, 1);
        case_close(&c);
    }
    CHECK(bytes[0] == bytes[1] && bytes[0] > 0, "%zu and %zu bytes", bytes[0], bytes[1]);
}

int main(int argc, char **argv) {
    if (argc > 1) test.only = argv[1];
    isa_count = case_isas(isas);
    test_run("sglang trap 27: drafts are verified causally, expanded rows see the whole block",
             trap27_causal_or_bidirectional);
    test_run("sglang trap 28: evicted pages before the window are never read", trap28_evicted_pages);
    test_run("features trap 26: two plans in flight", trap26_two_plans_in_flight);
    test_run("latent attention: pages of 32 and 64, batches of 1 to 32", latent_pages);
    test_run("top-k: scratch memory follows the keys, not the list", list_memory);
    return test_close("engine");
}
