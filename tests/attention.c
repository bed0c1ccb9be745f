/* attention.c - attn_forward against the oracle: random cases, and one named test per trap that bit others.
   Usage: attention [name part] [seed] [case]: the last two pick the random cases, so that one can be run again. */
#include "../attn.h"
#include "cases.h"
#include "isas.h"
#include "ref.h"
#include "test.h"

#include <math.h>

#define COUNT(list) ((int)(sizeof(list) / sizeof *(list)))

static attn_isa isas[4];
static int isa_count;

/* ---- helpers ---------------------------------------------------------------------------------------------------- */

/* Every instruction set against the oracle, on the same buffers. */
static void run_open_case(test_case *c) {
    char text[1000];
    int i;
    case_describe(&c->spec, text, sizeof text);
    for (i = 0; i < isa_count; i++) {
        const char *problem;
        c->layer.isa = (int32_t)isas[i];
        problem = case_run(c);
        CHECK(problem == NULL, "%s\n    %s, %s", problem, case_isa_name(isas[i]), text);
    }
}

static void run_spec(const case_spec *s) {
    test_case c;
    case_open(&c, s);
    run_open_case(&c);
    case_close(&c);
}

/* The outputs of b equal those of a, bit for bit, for every instruction set; both agree with the oracle. */
static void run_same(const case_spec *a, const case_spec *b, const char *what) {
    char text[1000];
    test_case x;
    test_case y;
    int i;
    case_describe(b, text, sizeof text);
    case_open(&x, a);
    case_open(&y, b);
    for (i = 0; i < isa_count; i++) {
        const char *problem;
        x.layer.isa = (int32_t)isas[i];
        y.layer.isa = (int32_t)isas[i];
        problem = case_run(&x);
        CHECK(problem == NULL, "%s: %s", what, problem);
        problem = case_run(&y);
        CHECK(problem == NULL, "%s: %s\n    %s", what, problem, text);
        CHECK(case_same(&x, &y), "%s: bits differ, %s\n    %s", what, case_isa_name(isas[i]), text);
    }
    case_close(&x);
    case_close(&y);
}

static void one_request(case_spec *s, int q_len, int kv_len, int phase) {
    s->n = 1;
    s->request[0].q_len = q_len;
    s->request[0].kv_len = kv_len;
    s->request[0].phase = phase;
    s->request[0].content = 0;
}

static void add_request(case_spec *s, int q_len, int kv_len, int phase) {
    case_request *r = &s->request[s->n];
    memset(r, 0, sizeof *r);
    r->q_len = q_len;
    r->kv_len = kv_len;
    r->phase = phase;
    r->content = (uint32_t)s->n;
    s->n++;
}

static void set_shape(case_spec *s, int heads, int kv_heads, int head_dim, int v_dim) {
    s->layer.heads = heads;
    s->layer.kv_heads = kv_heads;
    s->layer.head_dim = head_dim;
    s->layer.v_dim = v_dim;
}

/* With the scales that int8 must have */
static void set_types(case_spec *s, attn_type q, attn_type kv, attn_type o) {
    s->layer.q_type = q;
    s->layer.kv_type = kv;
    s->layer.o_type = o;
    s->k_scale = s->v_scale = kv == ATTN_INT8;
}

/* Strides wider than packed everywhere, and arrays off malloc's alignment. */
static void set_gaps(case_spec *s) {
    s->q_head_gap = 3;
    s->q_row_gap = 8;
    s->o_head_gap = 1;
    s->o_row_gap = 5;
    s->k_head_gap = 2;
    s->k_row_gap = 7;
    s->k_page_gap = 33;
    s->v_head_gap = 5;
    s->v_row_gap = 1;
    s->v_page_gap = 4;
    s->shift = 3;
}

/* ---- random cases ----------------------------------------------------------------------------------------------- */

enum { RANDOM_CASES = 400 };          /* more: see test_draws */

static uint64_t random_seed = 1;
static int random_only = -1;
static int random_done;
static char random_problem[ATTN_ISA_NEON + 1][5][1600];
static int random_bad[ATTN_ISA_NEON + 1];
static int seen_merges, seen_strips, seen_units, seen_paged, seen_hidden, seen_split, seen_mixed;
static int seen_trees, seen_lists, seen_bytes, seen_key_scales, seen_latent, seen_fast;

static void note_coverage(const test_case *c) {
    int phases = 0;
    int i;
    for (i = 0; i < c->spec.n; i++) {
        if (!c->q_len[i]) continue;
        phases |= 1 << c->phase[i];
        seen_units += c->phase[i] == ATTN_DECODE && c->kv_len[i] > 512;
    }
    seen_mixed += phases == 3;
    seen_merges += c->plan.merges > 0;
    seen_strips += c->plan.strips > 1;
    seen_paged += c->layer.page_size > 0;
    seen_hidden += c->spec.hide && c->layer.window_left > 0 && c->layer.page_size > 0;
    seen_split += c->layer.split_keys > 0;
    seen_trees += c->layer.mask == ATTN_TREE && c->rows > c->spec.n;
    seen_lists += c->layer.mask == ATTN_TOPK && c->rows > 0;
    seen_bytes += c->layer.kv_type >= ATTN_E4M3;
    seen_key_scales += c->layer.scale_kind == ATTN_SCALE_PER_KEY;
    seen_latent += (c->layer.flags & ATTN_V_IN_K) && c->rows > 0;
    seen_fast += (c->layer.flags & ATTN_FAST_INT8) && phases & 1 << ATTN_PREFILL;
}

static void random_case(int index) {
    static const double works[] = { 3e5, 3e5, 2e6, 2e6, 2e7 };
    test_rng r;
    case_spec s;
    test_case c;
    int i;
    r.state = random_seed * 1000003u + (uint64_t)index;
    case_random(&s, &r, works[test_range(&r, 0, 4)]);
    case_open(&c, &s);
    for (i = 0; i < isa_count; i++) {
        const char *problem;
        c.layer.isa = (int32_t)isas[i];
        problem = case_run(&c);
        if (problem && random_bad[isas[i]]++ < 5) {
            char *text = random_problem[isas[i]][random_bad[isas[i]] - 1];
            snprintf(text, 1600, "case %d of seed %llu: %s\n    ", index, (unsigned long long)random_seed, problem);
            case_describe(&s, text + strlen(text), 1600 - strlen(text));
        }
    }
    note_coverage(&c);
    case_close(&c);
}

static void random_all(void) {
    int i;
    if (random_done) return;
    random_done = 1;
    printf("random cases: seed %llu\n", (unsigned long long)random_seed);
    for (i = 0; i < test_draws(RANDOM_CASES); i++) {
        if (random_only < 0 || i == random_only) random_case(i);
    }
}

static void random_isa(attn_isa isa) {
    int i;
    if (!has_isa((int)isa)) {
        test_skip("this CPU or build has no such instruction set");
        return;
    }
    random_all();
    for (i = 0; i < random_bad[isa]; i++) CHECK(0, "%s", i < 5 ? random_problem[isa][i] : "more");
}

static void random_scalar(void) {
    random_isa(ATTN_ISA_SCALAR);
}

static void random_avx2(void) {
    random_isa(ATTN_ISA_AVX2);
}

static void random_avx512(void) {
    random_isa(has_isa(ATTN_ISA_AVX512_VNNI) ? ATTN_ISA_AVX512_VNNI : ATTN_ISA_AVX512);
}

static void random_neon(void) {
    random_isa(ATTN_ISA_NEON);
}

static void random_amx(void) {
    random_isa(ATTN_ISA_AMX);
}

/* The generator must reach the paths that can go wrong. */
static void random_coverage(void) {
    random_all();
    if (random_only >= 0) return;
    CHECK(seen_merges > 20, "%d cases with merges", seen_merges);
    CHECK(seen_strips > 100, "%d cases with several row blocks", seen_strips);
    CHECK(seen_units > 20, "%d decode requests of 3 units or more", seen_units);
    CHECK(seen_paged > 100, "%d paged cases", seen_paged);
    CHECK(seen_hidden > 20, "%d cases with pages before the window", seen_hidden);
    CHECK(seen_split > 50, "%d cases with split_keys", seen_split);
    CHECK(seen_mixed > 30, "%d batches of both phases", seen_mixed);
    CHECK(seen_trees > 10, "%d trees", seen_trees);
    CHECK(seen_lists > 20, "%d cases with lists", seen_lists);
    CHECK(seen_bytes > 100, "%d cases with an 8-bit cache", seen_bytes);
    CHECK(seen_key_scales > 10, "%d cases with a scale per key", seen_key_scales);
    CHECK(seen_latent > 10, "%d cases with V in K", seen_latent);
    CHECK(seen_fast > 10, "%d prompts with int8 queries", seen_fast);
}

/* ---- trap 1: huge and very small logits ------------------------------------------------------------------------- */

/* Logits are k itself (head_dim 1, q = 1, scale 1): `high` for keys that `favour` picks, `low` for the others. Then
   the weights are exactly 1 / count over the picked keys. */
typedef struct two_levels {
    float high, low;
    int modulus, below;             /* picked: key % modulus < below */
} two_levels;

static int picked(const two_levels *t, int key) {
    return key % t->modulus < t->below;
}

static void edit_levels(void *user, case_array array, int request, int token, int head, int dim, float *value) {
    const two_levels *t = (const two_levels *)user;
    (void)request;
    (void)head;
    if (array == CASE_Q) *value = 1;
    if (array == CASE_K) *value = picked(t, token) ? t->high : t->low;
    if (array == CASE_V) *value = (float)(token % 7 + dim);
}

/* Rows see keys first .. position; expected: the mean of v over the picked ones. */
static void check_levels(const test_case *c, const two_levels *t, int window) {
    int row;
    for (row = 0; row < c->q_len[0]; row++) {
        int position = c->kv_len[0] - c->q_len[0] + row;
        int first = window && position + 1 > window ? position + 1 - window : 0;
        double sum = 0;
        double lse;
        int count = 0;
        int key;
        for (key = first; key <= position; key++) {
            if (!picked(t, key)) continue;
            sum += key % 7;
            count++;
        }
        if (!count) continue;
        lse = (double)t->high + log((double)count);
        CHECK(fabs(case_o(c, 0, row, 0, 0) - sum / count) <= 2e-4, "%s row %d: o %g, want %g",
              case_isa_name((attn_isa)c->layer.isa), row, case_o(c, 0, row, 0, 0), sum / count);
        CHECK(fabs(case_lse(c, 0, row, 0) - lse) <= 2e-5 + 3e-7 * fabs(lse), "%s row %d: lse %g, want %g",
              case_isa_name((attn_isa)c->layer.isa), row, case_lse(c, 0, row, 0), lse);
    }
}

static void run_levels(float high, float low, int modulus, int below, attn_type type) {
    two_levels t;
    case_spec s;
    test_case c;
    int phase;
    int window;
    int i;
    t.high = high;
    t.low = low;
    t.modulus = modulus;
    t.below = below;
    for (phase = 0; phase < 2; phase++) {
        for (window = 0; window <= 300; window += 150) {
            case_defaults(&s);
            set_shape(&s, 1, 1, 1, 2);
            set_types(&s, type, type, ATTN_F32);
            one_request(&s, 40, 700, phase);
            s.layer.scale = 1;
            s.layer.row_tile = 16;
            s.layer.window_left = window;
            s.edit = edit_levels;
            s.edit_user = &t;
            case_open(&c, &s);
            for (i = 0; i < isa_count; i++) {
                c.layer.isa = (int32_t)isas[i];
                CHECK(case_plan(&c) == 0 && case_forward(&c) == 0, "%s %s", c.message, c.error.text);
                check_levels(&c, &t, window);
            }
            case_close(&c);
        }
    }
}

static void trap1_low_logits(void) {
    run_levels(-6e4f, -6e4f, 1, 1, ATTN_F32);
    run_levels(-6e4f, -6e4f, 1, 1, ATTN_F16);
    run_levels(-6e4f, -65504.0f, 3, 1, ATTN_F16);
    run_levels(-1e30f, -1e30f, 1, 1, ATTN_F32);
    run_levels(-1e30f, -2e30f, 300, 1, ATTN_F32);
}

static void trap1_huge_logits(void) {
    float brain = 2.9774707105582116e38f;  /* 1.75 * 2^127, a bf16 value */
    run_levels(3e38f, -3e38f, 5, 1, ATTN_F32);
    run_levels(3e38f, 0, 128, 1, ATTN_F32);
    run_levels(3e38f, 3e38f, 1, 1, ATTN_F32);
    run_levels(-3e38f, -3e38f, 1, 1, ATTN_F32);
    run_levels(0, -3e38f, 64, 7, ATTN_F32);
    run_levels(3.4028234e38f, -3.4028234e38f, 2, 1, ATTN_F32);
    run_levels(brain, -brain, 9, 2, ATTN_BF16);
}

/* Infinities below are ordinary masks: whole tiles of them, first, in the middle and last. */
static void trap1_minus_infinity(void) {
    run_levels(0.5f, -INFINITY, 400, 10, ATTN_F32);
    run_levels(-7, -INFINITY, 690, 1, ATTN_F16);
    run_levels(-1e4f, -INFINITY, 256, 100, ATTN_F32);
    run_levels(3e38f, -INFINITY, 2, 1, ATTN_F32);
}

static void edit_all_masked(void *user, case_array array, int request, int token, int head, int dim, float *value) {
    (void)user;
    (void)request;
    (void)token;
    (void)head;
    (void)dim;
    if (array == CASE_Q) *value = 1;
    if (array == CASE_K) *value = -INFINITY;
}

static void trap1_all_minus_infinity(void) {
    case_spec s;
    int phase;
    for (phase = 0; phase < 2; phase++) {
        case_defaults(&s);
        set_shape(&s, 1, 1, 1, 3);
        one_request(&s, 3, 600, phase);
        s.layer.scale = 1;
        s.edit = edit_all_masked;
        run_spec(&s);
        s.sinks = 1;
        run_spec(&s);
    }
}

static void trap1_masked_row(void) {
    case_spec s;
    int phase;
    int sinks;
    for (phase = 0; phase < 2; phase++) {
        for (sinks = 0; sinks < 2; sinks++) {
            case_defaults(&s);
            set_shape(&s, 2, 1, 8, 8);
            one_request(&s, 40, 20, phase);
            s.layer.mask = ATTN_FULL;
            s.layer.window_left = 3;
            s.layer.window_right = 2;
            s.sinks = sinks;
            run_spec(&s);
        }
    }
}

/* ---- trap 2: blank tiles ---------------------------------------------------------------------------------------- */

typedef struct blank_case {
    const char *where;
    attn_mask mask;
    int q_len, kv_len, left, right, sink_keys;
} blank_case;

static const blank_case blanks[] = {
    { "first", ATTN_CAUSAL, 40, 700, 20, 0, 0 },
    { "first, one key", ATTN_CAUSAL, 3, 700, 1, 0, 0 },
    { "middle", ATTN_CAUSAL, 40, 700, 20, 0, 5 },
    { "middle of a unit", ATTN_CAUSAL, 9, 1000, 100, 0, 300 },
    { "last", ATTN_FULL, 300, 300, 0, 20, 0 },
    { "first and last", ATTN_FULL, 300, 300, 20, 20, 0 },
    { "first and last, sink keys", ATTN_FULL, 300, 300, 20, 20, 70 },
    { "all of some rows", ATTN_FULL, 300, 200, 4, 5, 0 },
    { "all of every row", ATTN_FULL, 500, 100, 0, 3, 0 },
    { "all but sink keys", ATTN_FULL, 500, 100, 2, 3, 1 },
};

static void trap2_blank_tiles(void) {
    case_spec s;
    int b;
    int i;
    for (b = 0; b < COUNT(blanks); b++) {
        for (i = 0; i < 16; i++) {
            case_defaults(&s);
            set_shape(&s, 4, 2, 24, 16);
            if (i & 8) set_types(&s, ATTN_F16, ATTN_F16, ATTN_F16);
            one_request(&s, blanks[b].q_len, blanks[b].kv_len, i & 1);
            s.layer.mask = blanks[b].mask;
            s.layer.window_left = blanks[b].left;
            s.layer.window_right = blanks[b].right;
            s.layer.sink_keys = blanks[b].sink_keys;
            s.layer.row_tile = 32;
            s.layer.split_keys = i & 2 ? 256 : 0;
            s.sinks = (i >> 2) & 1;
            s.hide = 1;
            run_spec(&s);
        }
    }
}

/* ---- trap 3: bytes that nobody owns ----------------------------------------------------------------------------- */

static void trap3_poison(void) {
    case_spec s;
    case_spec other;
    int layout;
    int phase;
    int poison;
    for (layout = 0; layout < 4; layout++) {
        for (phase = 0; phase < 2; phase++) {
            case_defaults(&s);
            set_shape(&s, 4, 2, 40, 24);
            set_types(&s, ATTN_F32, layout & 1 ? ATTN_BF16 : ATTN_F32, ATTN_F32);
            set_gaps(&s);
            s.n = 0;
            add_request(&s, 20, 611, phase);
            add_request(&s, 1, 37, phase);
            add_request(&s, 5, 300, phase);
            s.padded = layout == 1;
            s.layer.page_size = layout == 2 ? 16 : layout == 3 ? 48 : 0;
            s.head_major = layout == 3;
            s.layer.window_left = layout == 2 ? 50 : 0;
            s.order = CASE_SHUFFLED;
            s.spare_pages = 2;
            s.hide = 1;
            s.poison = CASE_HUGE;
            for (poison = 0; poison < CASE_POISONS; poison++) {
                other = s;
                other.poison = (case_poison)poison;
                run_same(&s, &other, "poison");
            }
        }
    }
}

/* ---- trap 4: zero lengths --------------------------------------------------------------------------------------- */

typedef struct length_list {
    int n;
    int q_len[6], kv_len[6];
} length_list;

static void run_lengths(const length_list *l, attn_mask mask, int variant) {
    case_spec s;
    int i;
    case_defaults(&s);
    set_shape(&s, 4, 2, 16, 8);
    s.layer.mask = mask;
    s.layer.page_size = variant & 1 ? 16 : 0;
    s.sinks = (variant >> 1) & 1;
    s.null_arrays = variant & 1;
    s.layer.row_tile = 16;
    s.n = 0;
    for (i = 0; i < l->n; i++) add_request(&s, l->q_len[i], l->kv_len[i], (variant >> 2) & 1);
    run_spec(&s);
}

static void trap4_zero_lengths(void) {
    static const length_list lists[] = {
        { 0, { 0 }, { 0 } },
        { 1, { 0 }, { 0 } },
        { 1, { 0 }, { 5 } },
        { 1, { 0 }, { 700 } },
        { 2, { 0, 3 }, { 0, 300 } },
        { 2, { 3, 0 }, { 300, 0 } },
        { 3, { 0, 0, 0 }, { 0, 4, 0 } },
        { 5, { 0, 1, 0, 2, 0 }, { 0, 1, 7, 600, 0 } },
        { 6, { 1, 0, 0, 17, 0, 0 }, { 1, 900, 0, 17, 1, 0 } },
    };
    static const length_list full[] = {
        { 1, { 4 }, { 0 } },
        { 2, { 4, 2 }, { 0, 9 } },
        { 3, { 1, 2, 40 }, { 600, 0, 0 } },
        { 4, { 0, 3, 0, 1 }, { 0, 0, 8, 0 } },
    };
    int i;
    int variant;
    for (variant = 0; variant < 8; variant++) {
        for (i = 0; i < COUNT(lists); i++) run_lengths(&lists[i], variant & 1 ? ATTN_FULL : ATTN_CAUSAL, variant);
        for (i = 0; i < COUNT(full); i++) run_lengths(&full[i], ATTN_FULL, variant);
    }
}

/* ---- trap 5: fewer keys than queries ---------------------------------------------------------------------------- */

static int all_bytes(const void *p, int byte, size_t n) {
    const unsigned char *at = (const unsigned char *)p;
    size_t i;
    for (i = 0; i < n; i++) {
        if (at[i] != byte) return 0;
    }
    return 1;
}

static void refuse_causal(int missing, int phase) {
    int32_t q_len[3] = { 2, 9, 1 };
    int32_t kv_len[3] = { 2, 9, 5 };
    int32_t phases[3];
    attn_batch batch;
    attn_layer layer;
    attn_plan plan;
    attn_error error;
    int64_t mem[512];
    int status;
    memset(&batch, 0, sizeof batch);
    memset(&layer, 0, sizeof layer);
    memset(&plan, 0x5A, sizeof plan);
    memset(mem, 0x5A, sizeof mem);
    memset(&error, 0, sizeof error);
    kv_len[1] -= missing;
    phases[0] = phases[1] = phases[2] = phase;
    batch.n = 3;
    batch.q_len = q_len;
    batch.kv_len = kv_len;
    batch.phase = phases;
    layer.heads = 2;
    layer.head_dim = 8;
    CHECK(attn_plan_bytes(&batch, &layer) == 0, "kv_len is %d short", missing);
    status = attn_plan_make(&plan, &batch, &layer, mem, sizeof mem, &error);
    CHECK(status == ATTN_E_BATCH, "status %d for kv_len %d short", status, missing);
    CHECK(error.request == 1, "request %d", error.request);
    CHECK(strstr(error.text, "kv_len[1]") != NULL && strstr(error.text, "q_len[1]") != NULL, "text: %s", error.text);
    CHECK(all_bytes(&plan, 0x5A, sizeof plan), "the plan was written");
    CHECK(all_bytes(mem, 0x5A, sizeof mem), "the plan's memory was written");
    CHECK(attn_plan_make(&plan, &batch, &layer, mem, sizeof mem, NULL) == ATTN_E_BATCH, "without attn_error");
}

static void trap5_more_queries_than_keys(void) {
    case_spec s;
    int missing;
    int i;
    for (missing = 1; missing <= 8; missing++) {
        refuse_causal(missing, ATTN_PREFILL);
        refuse_causal(missing, ATTN_DECODE);
    }
    for (missing = 0; missing <= 8; missing++) {
        for (i = 0; i < 8; i++) {
            case_defaults(&s);
            set_shape(&s, 4, 2, 16, 8);
            s.layer.mask = ATTN_FULL;
            s.layer.window_left = i & 2 ? 3 : 0;
            s.layer.window_right = i & 4 ? 2 : 0;
            s.n = 0;
            add_request(&s, 9, 9 - missing, i & 1);
            add_request(&s, 300, 300 - missing, i & 1);
            run_spec(&s);
        }
    }
}

/* ---- trap 6: windows, and sglang traps 21 and 22 ---------------------------------------------------------------- */

static void edit_zero_q(void *user, case_array array, int request, int token, int head, int dim, float *value) {
    (void)user;
    (void)request;
    (void)token;
    (void)head;
    (void)dim;
    if (array == CASE_Q) *value = 0;
}

/* With q = 0 every visible key weighs the same, so exp(lse) counts them. */
static void count_window(int window, int q_len, int kv_len, int phase) {
    case_spec s;
    test_case c;
    int i;
    int row;
    case_defaults(&s);
    set_shape(&s, 2, 1, 4, 4);
    one_request(&s, q_len, kv_len, phase);
    s.layer.window_left = window;
    s.edit = edit_zero_q;
    case_open(&c, &s);
    for (i = 0; i < isa_count; i++) {
        c.layer.isa = (int32_t)isas[i];
        CHECK(case_plan(&c) == 0 && case_forward(&c) == 0, "%s %s", c.message, c.error.text);
        for (row = 0; row < q_len; row++) {
            int position = kv_len - q_len + row;
            int want = window && window < position + 1 ? window : position + 1;
            double got = exp(case_lse(&c, 0, row, 1));
            CHECK(fabs(got - want) <= 0.05, "%s window %d position %d: %g keys, want %d", case_isa_name(isas[i]),
                  window, position, got, want);
        }
    }
    case_close(&c);
}

static void run_window(int window, int q_len, int kv_len, int phase, int key_tile) {
    case_spec s;
    case_defaults(&s);
    set_shape(&s, 4, 2, 16, 16);
    one_request(&s, q_len, kv_len, phase);
    s.layer.window_left = window;
    s.layer.key_tile = key_tile;
    s.layer.row_tile = 16;
    s.layer.page_size = window % 2 ? 16 : 0;
    s.hide = 1;
    run_spec(&s);
}

static void trap6_windows(void) {
    static const int windows[] = { 0, 1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 598, 599, 600, 601,
                                   100000, INT32_MAX };
    static const int rows[] = { 1, 2, 4, 5, 70 };
    int w;
    int r;
    int phase;
    for (w = 0; w < COUNT(windows); w++) {
        for (r = 0; r < COUNT(rows); r++) {
            for (phase = 0; phase < 2; phase++) {
                run_window(windows[w], rows[r], 600, phase, 32 << (w % 3));
                count_window(windows[w], rows[r], 600, phase);
            }
        }
        count_window(windows[w], 130, 130, ATTN_PREFILL);
    }
}

static void trap22_window_moves_with_the_row(void) {
    int window;
    int q_len;
    int phase;
    for (phase = 0; phase < 2; phase++) {
        for (q_len = 2; q_len <= 17; q_len++) {
            for (window = 1; window <= q_len + 1; window++) count_window(window, q_len, 300, phase);
        }
    }
}

/* ---- trap 8: page ids ------------------------------------------------------------------------------------------- */

static void open_paged(test_case *c, int phase, int flags, int sink_keys) {
    case_spec s;
    int i;
    case_defaults(&s);
    set_shape(&s, 2, 1, 8, 8);
    s.layer.page_size = 16;
    s.layer.flags = flags;
    s.layer.window_left = 100;
    s.layer.sink_keys = sink_keys;
    s.order = CASE_SHUFFLED;
    s.table_gap = 3;
    s.n = 0;
    for (i = 0; i < 5; i++) add_request(&s, 3, 200 + i, phase);
    case_open(c, &s);
}

static int32_t *table_entry(test_case *c, int request, int column) {
    return (int32_t *)(void *)c->table.data + request * c->io.page_table_row + column;
}

static void refuse_page(int sink_keys, int column, int32_t page, int phase) {
    test_case c;
    char name[40];
    int status;
    snprintf(name, sizeof name, "page_table[3][%d]", column);
    open_paged(&c, phase, 0, sink_keys);
    *table_entry(&c, 3, column) = page;
    case_rehash(&c);
    CHECK(case_plan(&c) == 0, "%s", c.error.text);
    status = case_forward(&c);
    CHECK(status == ATTN_E_PAGE, "page %d: status %d %s", page, status, c.message);
    CHECK(c.error.request == 3 && c.error.slot == column, "request %d slot %d", c.error.request, c.error.slot);
    CHECK(strstr(c.error.text, name) != NULL, "text: %s", c.error.text);
    status = attn_check(&c.plan, &c.layer, &c.io, &c.exec, &c.error);
    CHECK(status == ATTN_E_PAGE, "attn_check: status %d", status);
    case_close(&c);
}

/* Entries that are not read may hold anything: past the length, and pages between sink keys and window. */
static void accept_page(int sink_keys, int request, int column, int32_t page, int phase) {
    test_case c;
    const char *problem;
    open_paged(&c, phase, 0, sink_keys);
    *table_entry(&c, request, column) = page;
    case_rehash(&c);
    problem = case_run(&c);
    CHECK(problem == NULL, "page_table[%d][%d] = %d: %s", request, column, page, problem);
    case_close(&c);
}

static void trap8_page_ids(void) {
    static const int32_t bad[] = { -1, INT32_MAX, INT32_MIN, -100, 0x40000000 };
    test_case c;
    int phase;
    int i;
    for (phase = 0; phase < 2; phase++) {
        open_paged(&c, phase, ATTN_TRUSTED, 0);
        run_open_case(&c);
        i = c.io.pages;
        case_close(&c);
        refuse_page(0, 12, i, phase);
        for (i = 0; i < COUNT(bad); i++) {
            refuse_page(0, 12, bad[i], phase);   /* the last page, partial */
            refuse_page(0, 6, bad[i], phase);    /* the first one: the window starts at key 101 */
            refuse_page(20, 0, bad[i], phase);   /* sink keys fill page 0 and a part of page 1 */
            refuse_page(20, 1, bad[i], phase);
            accept_page(0, 3, 13, bad[i], phase);
            accept_page(0, 0, 0, bad[i], phase);
            accept_page(0, 4, 5, bad[i], phase);
            accept_page(0, 4, 15, bad[i], phase);
            accept_page(20, 3, 2, bad[i], phase);
            accept_page(20, 3, 5, bad[i], phase);
        }
    }
}

/* ---- traps 9 and 10: pages -------------------------------------------------------------------------------------- */

static void paged_base(case_spec *s, int phase, int period) {
    case_defaults(s);
    set_shape(s, 4, 2, 24, 16);
    set_types(s, ATTN_F16, ATTN_F16, ATTN_F32);
    s->layer.row_tile = 16;
    s->n = 0;
    s->period = period;
    add_request(s, 20, 700, phase);
    add_request(s, 3, 333, phase);
    add_request(s, 1, 700, phase);
    s->request[1].content = 0;
    s->request[2].content = 0;
}

static void trap9_page_order(void) {
    case_spec a;
    case_spec b;
    int phase;
    int order;
    int share;
    for (phase = 0; phase < 2; phase++) {
        for (order = 0; order < 4; order++) {
            for (share = 0; share < 3; share++) {
                paged_base(&a, phase, share == 2 ? 64 : 0);
                b = a;
                b.layer.page_size = 16;
                b.order = (case_order)order;
                b.share = share > 0;
                b.spare_pages = order;
                b.table_gap = 5;
                run_same(&a, &b, "paged against contiguous");
            }
        }
    }
}

static void trap9_table_tail(void) {
    static const int32_t tails[] = { -1, INT32_MAX, INT32_MIN, 0 };
    case_spec s;
    test_case clean;
    test_case c;
    int i;
    int t;
    paged_base(&s, ATTN_DECODE, 0);
    s.layer.page_size = 48;
    s.table_gap = 4;
    case_open(&clean, &s);
    case_open(&c, &s);
    for (i = 0; i < isa_count; i++) {
        clean.layer.isa = c.layer.isa = (int32_t)isas[i];
        CHECK(case_run(&clean) == NULL, "%s", clean.message);
        for (t = 0; t < COUNT(tails); t++) {
            int request;
            int column;
            for (request = 0; request < 3; request++) {
                for (column = (c.kv_len[request] + 47) / 48; column < c.io.page_table_row; column++) {
                    *table_entry(&c, request, column) = tails[t];
                }
            }
            case_rehash(&c);
            CHECK(case_run(&c) == NULL, "%s", c.message);
            CHECK(case_same(&clean, &c), "table tail %d changes bits", tails[t]);
        }
    }
    case_close(&clean);
    case_close(&c);
}

static void trap10_partial_pages(void) {
    static const int pages[] = { 1, 2, 3, 16, 48, 64, 256 };
    static const int dims[] = { 64, 72, 96, 128, 256 };
    case_spec s;
    int p;
    int d;
    int rest;
    for (p = 0; p < COUNT(pages); p++) {
        for (d = 0; d < COUNT(dims); d++) {
            for (rest = 0; rest < 3; rest++) {
                int whole = (300 + pages[p] - 1) / pages[p] * pages[p];
                int kv_len = whole + (rest == 0 ? 0 : rest == 1 ? 1 : pages[p] - 1);
                case_defaults(&s);
                set_shape(&s, 2, 1, dims[d], 0);
                set_types(&s, ATTN_F32, d % 2 ? ATTN_F16 : ATTN_F32, ATTN_F32);
                s.layer.page_size = pages[p];
                s.head_major = d % 2;
                s.order = CASE_SHUFFLED;
                s.n = 0;
                add_request(&s, 3, kv_len, ATTN_PREFILL);
                add_request(&s, 2, kv_len, ATTN_DECODE);
                run_spec(&s);
            }
        }
    }
}

/* ---- trap 11: offsets above 2^31 and 2^32 elements -------------------------------------------------------------- */

/* Strides of 2^31 + 64 elements, so that index 1 is above 2^31 and index 2 above 2^32. All arrays interleave in one
   allocation of which only a few pages are ever touched. */
#define FAR ((((int64_t)1) << 31) + 64)
#define FAR_BYTES ((size_t)(2 * FAR + 16384) * 2)

typedef struct far_layout {
    const char *name;
    int n, q_len, kv_len, heads, page_size;
    int64_t q_row, q_head, o_row, o_head, kv_page, kv_row, kv_head;
} far_layout;

static const far_layout far_layouts[] = {
    { "rows", 1, 3, 3, 1, 0, FAR, 8, FAR, 8, 0, FAR, 8 },
    { "heads", 1, 2, 5, 3, 0, 64, FAR, 64, FAR, 0, 64, FAR },
    { "pages", 1, 2, 6, 2, 2, 64, 8, 64, 8, FAR, 64, 8 },
    { "rows of a page", 1, 2, 3, 1, 3, 64, 8, 64, 8, 512, FAR, 8 },
    { "heads of pages", 1, 2, 6, 3, 2, 64, 8, 64, 8, 512, 64, FAR },
    { "padded requests", 3, 2, 4, 2, 0, 64, 8, 64, 8, FAR, 64, 8 },
    { "rows of padded requests", 2, 2, 3, 1, 0, 64, 8, 64, 8, 512, FAR, 8 },
    { "heads of padded requests", 3, 2, 4, 3, 0, 64, 8, 64, 8, 512, 64, FAR },
};

static void copy_far(const far_layout *f, const test_case *c, uint16_t *far, int kv_heads) {
    const uint16_t *q = (const uint16_t *)(const void *)c->q.data;
    const uint16_t *k = (const uint16_t *)(const void *)c->k.data;
    const uint16_t *v = (const uint16_t *)(const void *)c->v.data;
    int row;
    int h;
    for (row = 0; row < f->n * f->q_len; row++) {
        for (h = 0; h < f->heads; h++) {
            memcpy(far + row * f->q_row + h * f->q_head, q + ((size_t)row * (size_t)f->heads + (size_t)h) * 8, 16);
        }
    }
    for (row = 0; row < f->n * f->kv_len; row++) {
        int block = f->page_size ? f->page_size : f->kv_len;
        for (h = 0; h < kv_heads; h++) {
            int64_t at = row / block * f->kv_page + (f->kv_page ? row % block : row) * f->kv_row + h * f->kv_head;
            size_t from = ((size_t)row * (size_t)kv_heads + (size_t)h) * 8;
            memcpy(far + 2048 + at, k + from, 16);
            memcpy(far + 4096 + at, v + from, 16);
        }
    }
}

static void point_far(const far_layout *f, test_case *c, uint16_t *far, int32_t *table) {
    c->io.q = far;
    c->io.k = far + 2048;
    c->io.v = far + 4096;
    c->io.o = far + 6144;
    c->io.q_row = f->q_row;
    c->io.q_head = f->q_head;
    c->io.o_row = f->o_row;
    c->io.o_head = f->o_head;
    c->io.k_page = c->io.v_page = f->kv_page;
    c->io.k_row = c->io.v_row = f->kv_row;
    c->io.k_head = c->io.v_head = f->kv_head;
    c->io.page_table = f->page_size ? table : NULL;
    c->io.page_table_row = 3;
    c->io.pages = f->page_size ? 3 : 0;
    c->layer.page_size = f->page_size;
}

static int far_equal(const far_layout *f, const test_case *c, const uint16_t *far) {
    int row;
    int h;
    for (row = 0; row < f->n * f->q_len; row++) {
        for (h = 0; h < f->heads; h++) {
            const uint16_t *at = far + 6144 + row * f->o_row + h * f->o_head;
            if (memcmp(at, c->out + ((size_t)row * (size_t)f->heads + (size_t)h) * 16, 16) != 0) return 0;
        }
    }
    return 1;
}

static void run_far(const far_layout *f, uint16_t *far, int phase) {
    int32_t table[3] = { 0, 1, 2 };
    case_spec s;
    test_case c;
    attn_io packed;
    int i;
    int status;
    case_defaults(&s);
    set_shape(&s, f->heads, 0, 8, 8);
    set_types(&s, ATTN_F16, ATTN_F16, ATTN_F16);
    s.lse = 0;
    s.n = 0;
    for (i = 0; i < f->n; i++) add_request(&s, f->q_len, f->kv_len, phase);
    case_open(&c, &s);
    packed = c.io;
    copy_far(f, &c, far, f->heads);
    for (i = 0; i < isa_count; i++) {
        c.layer.isa = (int32_t)isas[i];
        c.layer.page_size = 0;
        c.io = packed;
        CHECK(case_run(&c) == NULL, "%s", c.message);
        point_far(f, &c, far, table);
        CHECK(case_plan(&c) == 0, "%s", c.error.text);
        status = attn_forward(&c.plan, &c.layer, &c.io, &c.exec, &c.error);
        CHECK(status == 0, "%s: %s", f->name, c.error.text);
        CHECK(far_equal(f, &c, far), "%s: bits differ, %s", f->name, case_isa_name(isas[i]));
    }
    case_close(&c);
}

static void trap11_far_offsets(void) {
    uint16_t *far = (size_t)-1 > 0xFFFFFFFFu ? (uint16_t *)malloc(FAR_BYTES) : NULL;
    int i;
    if (!far) {
        test_skip("no 8.6 GB of address space");
        return;
    }
    for (i = 0; i < COUNT(far_layouts); i++) {
        run_far(&far_layouts[i], far, ATTN_PREFILL);
        run_far(&far_layouts[i], far, ATTN_DECODE);
    }
    free(far);
}

/* ---- trap 13: memory that was used before ----------------------------------------------------------------------- */

static void trap13_used_memory(void) {
    static const int fills[] = { 0xFF, 0x7F, 0x5A, 0x80 };
    case_spec s;
    case_spec other;
    int phase;
    int i;
    for (phase = 0; phase < 2; phase++) {
        case_defaults(&s);
        set_shape(&s, 4, 2, 16, 16);
        s.layer.row_tile = 16;
        s.layer.split_keys = 256;
        s.sinks = 1;
        s.fill = 0;
        s.n = 0;
        add_request(&s, 20, 800, phase);
        add_request(&s, 0, 0, phase);
        add_request(&s, 1, 600, phase);
        s.more_q = 100;
        s.more_kv = 5000;
        s.more_rows = 1000;
        for (i = 0; i < COUNT(fills); i++) {
            other = s;
            other.fill = fills[i];
            run_same(&s, &other, "memory fill");
        }
    }
}

/* ---- trap 15 and sglang trap 10: several query rows in the decode family ---------------------------------------- */

static void decode_rows(int heads, int kv_heads, int head_dim, int v_dim, int kv_len) {
    case_spec s;
    int q_len;
    case_defaults(&s);
    set_shape(&s, heads, kv_heads, head_dim, v_dim);
    set_gaps(&s);
    s.n = 0;
    for (q_len = 1; q_len <= 17; q_len++) add_request(&s, q_len, kv_len + 7 * q_len, ATTN_DECODE);
    run_spec(&s);
    for (q_len = 1; q_len <= 17; q_len++) {
        s.n = 0;
        add_request(&s, q_len, kv_len, ATTN_DECODE);
        add_request(&s, q_len, kv_len + 1, ATTN_DECODE);
        run_spec(&s);
    }
}

static void trap15_decode_rows(void) {
    decode_rows(4, 4, 16, 16, 270);
    decode_rows(4, 1, 16, 16, 270);
    decode_rows(8, 1, 16, 8, 530);
    decode_rows(1, 1, 512, 512, 60);
    decode_rows(8, 1, 576, 512, 40);
}

/* ---- trap 17: lse ----------------------------------------------------------------------------------------------- */

static void trap17_lse(void) {
    static const float amps[] = { 0.01f, 1, 10, 40 };
    case_spec s;
    int i;
    int phase;
    for (i = 0; i < COUNT(amps); i++) {
        for (phase = 0; phase < 2; phase++) {
            case_defaults(&s);
            set_shape(&s, 4, 2, 64, 8);
            s.q_amp = amps[i];
            s.n = 0;
            add_request(&s, 33, 800, phase);
            add_request(&s, 1, 1, phase);
            add_request(&s, 2, 257, phase);
            run_spec(&s);
            s.sinks = 1;
            run_spec(&s);
        }
    }
}

/* ---- traps 18 and 19: shapes ------------------------------------------------------------------------------------ */

static void trap18_gqa_ratios(void) {
    case_spec s;
    int ratio;
    int kv_heads;
    for (ratio = 1; ratio <= 64; ratio += ratio < 16 ? 1 : ratio < 32 ? 16 : 32) {
        for (kv_heads = 1; kv_heads <= 2; kv_heads++) {
            case_defaults(&s);
            set_shape(&s, ratio * kv_heads, kv_heads, 16, 24);
            s.n = 0;
            add_request(&s, 5, 90, ATTN_PREFILL);
            add_request(&s, 1, 300, ATTN_DECODE);
            add_request(&s, 3, 65, ATTN_DECODE);
            add_request(&s, 1, 33, ATTN_PREFILL);
            run_spec(&s);
            s.layer.row_tile = 16;
            s.layer.page_size = 16;
            run_spec(&s);
        }
    }
}

static void trap19_head_dims(void) {
    static const int dims[][2] = {
        { 1, 1 }, { 3, 3 }, { 8, 8 }, { 16, 16 }, { 40, 40 }, { 64, 64 }, { 72, 72 }, { 80, 80 }, { 88, 88 },
        { 96, 96 }, { 112, 112 }, { 128, 128 }, { 192, 192 }, { 256, 256 }, { 512, 512 }, { 576, 512 }, { 192, 128 },
        { 128, 256 }, { 64, 100 }, { 100, 64 }, { 17, 1 }, { 1, 33 }, { 7, 15 },
    };
    case_spec s;
    int i;
    int type;
    for (i = 0; i < COUNT(dims); i++) {
        for (type = 0; type < 3; type++) {
            case_defaults(&s);
            set_shape(&s, 4, 2, dims[i][0], dims[i][1]);
            set_types(&s, (attn_type)type, (attn_type)type, (attn_type)type);
            s.n = 0;
            add_request(&s, 6, 130, ATTN_PREFILL);
            add_request(&s, 2, 140, ATTN_DECODE);
            run_spec(&s);
            set_gaps(&s);
            run_spec(&s);
        }
    }
}

static void types_mixed(void) {
    case_spec s;
    int types;
    for (types = 0; types < 54; types++) {
        case_defaults(&s);
        set_shape(&s, 4, 2, 40, 24);
        set_types(&s, (attn_type)(types % 3), (attn_type)(types / 9), (attn_type)(types / 3 % 3));
        s.n = 0;
        add_request(&s, 20, 300, ATTN_PREFILL);
        add_request(&s, 2, 600, ATTN_DECODE);
        run_spec(&s);
    }
}

/* ---- trap 20: scale --------------------------------------------------------------------------------------------- */

static void trap20_scale(void) {
    static const float scales[] = { 0, 0.5f, 1, 0.01f };
    case_spec s;
    test_case c[4];
    int phase;
    int i;
    for (phase = 0; phase < 2; phase++) {
        for (i = 0; i < 4; i++) {
            case_defaults(&s);
            set_shape(&s, 2, 1, 16, 16);
            one_request(&s, 3, 300, phase);
            s.layer.scale = scales[i];
            case_open(&c[i], &s);
            run_open_case(&c[i]);
            CHECK(i == 0 || !case_same(&c[0], &c[i]), "scale %g changes nothing", (double)scales[i]);
        }
        c[0].layer.scale = 2;
        CHECK(case_forward(&c[0]) == ATTN_E_PLAN, "a plan with another scale was used: %s", c[0].message);
        CHECK(strstr(c[0].error.text, "scale") != NULL, "text: %s", c[0].error.text);
        for (i = 0; i < 4; i++) case_close(&c[i]);
    }
}

/* ---- traps 21 and 22: sinks, softcap ---------------------------------------------------------------------------- */

static void trap21_sinks(void) {
    static const int rows[] = { 1, 2, 5, 17, 40 };
    static const int workers[] = { 1, 3, 64 };
    case_spec s;
    int units;
    int r;
    int phase;
    for (units = 1; units <= 32; units = units * 2 + units % 2) {
        for (r = 0; r < COUNT(rows); r++) {
            for (phase = 0; phase < 2; phase++) {
                case_defaults(&s);
                set_shape(&s, 2, 1, 8, 8);
                s.layer.split_keys = 256;
                s.layer.workers = workers[r % 3];
                s.layer.row_tile = 16;
                s.sinks = 1;
                s.n = 0;
                add_request(&s, rows[r], 256 * units - (r & 1), phase);
                add_request(&s, 1, 40, phase);
                run_spec(&s);
            }
        }
    }
}

static void edit_product(void *user, case_array array, int request, int token, int head, int dim, float *value) {
    float huge = *(const float *)user;
    (void)request;
    (void)head;
    (void)dim;
    if (array == CASE_Q) *value = 1;
    if (array == CASE_K) *value = token % 3 == 0 ? huge : token % 3 == 1 ? -huge : 0;
}

static void trap22_softcap(void) {
    static const float caps[] = { 0.001f, 1, 30, 1e4f };
    static const float products[] = { 1e-3f, 1, 30, 1e4f, 1e10f, 3e38f };
    case_spec s;
    int i;
    int j;
    int phase;
    for (i = 0; i < COUNT(caps); i++) {
        for (j = 0; j < COUNT(products); j++) {
            for (phase = 0; phase < 2; phase++) {
                float product = products[j];
                case_defaults(&s);
                set_shape(&s, 2, 1, 1, 8);
                one_request(&s, 20, 700, phase);
                s.layer.scale = 1;
                s.layer.softcap = caps[i];
                s.edit = edit_product;
                s.edit_user = &product;
                run_spec(&s);
                s.layer.scale = 16;  /* 16 * 3e38 is infinite in f32: tanh of it is 1 */
                run_spec(&s);
            }
        }
    }
}

static void trap22_softcap_moderate(void) {
    case_spec s;
    int phase;
    for (phase = 0; phase < 2; phase++) {
        case_defaults(&s);
        set_shape(&s, 4, 2, 64, 64);
        one_request(&s, 33, 600, phase);
        s.q_amp = 20;
        s.layer.softcap = 30;
        s.sinks = 1;
        run_spec(&s);
        s.layer.window_left = 70;
        run_spec(&s);
    }
}

/* ---- sglang traps 9, 20, 23 ------------------------------------------------------------------------------------- */

static void sglang9_strides(void) {
    case_spec a;
    case_spec b;
    int i;
    for (i = 0; i < 16; i++) {
        paged_base(&a, i & 1, 0);
        a.layer.page_size = i & 2 ? 16 : 0;
        a.padded = i & 4 && !(i & 2);
        b = a;
        set_gaps(&b);
        if (i & 8) b.k_row_gap = b.v_row_gap = 15 * 2 * 24;
        b.head_major = (i >> 3) & 1;
        run_same(&a, &b, "wide strides");
    }
}

static void sglang20_no_keys(void) {
    case_spec s;
    test_case c;
    int phase;
    int i;
    int d;
    for (phase = 0; phase < 2; phase++) {
        case_defaults(&s);
        one_request(&s, 3, 0, phase);
        s.layer.mask = ATTN_FULL;
        case_open(&c, &s);
        for (i = 0; i < isa_count; i++) {
            c.layer.isa = (int32_t)isas[i];
            CHECK(case_run(&c) == NULL, "%s", c.message);
            for (d = 0; d < 16; d++) CHECK(case_o(&c, 0, 2, 1, d) == 0, "o is %g", case_o(&c, 0, 2, 1, d));
            CHECK(isinf(case_lse(&c, 0, 2, 1)) && case_lse(&c, 0, 2, 1) < 0, "lse is %g", case_lse(&c, 0, 2, 1));
        }
        case_close(&c);
    }
}

static void sglang23_capacities(void) {
    static const int more[] = { 0, 1, 63, 64, 1000, 100000 };
    case_spec a;
    case_spec b;
    int phase;
    int page;
    int i;
    for (phase = 0; phase < 2; phase++) {
        for (page = 0; page <= 16; page += 16) {
            for (i = 0; i < COUNT(more); i++) {
                paged_base(&a, phase, 0);
                a.layer.page_size = page;
                b = a;
                b.more_kv = more[i];
                b.more_q = more[COUNT(more) - 1 - i] % 2000;
                b.more_rows = more[i] % 2000;
                run_same(&a, &b, "capacities");
            }
        }
    }
}

/* ---- 8-bit caches ----------------------------------------------------------------------------------------------- */

typedef struct code_value {
    int type, code;
    float value;
} code_value;

static const code_value known_codes[] = {
    { REF_E4M3, 0x00, 0 }, { REF_E4M3, 0x01, 0.001953125f }, { REF_E4M3, 0x07, 0.013671875f },
    { REF_E4M3, 0x08, 0.015625f }, { REF_E4M3, 0x38, 1 }, { REF_E4M3, 0xB9, -1.125f }, { REF_E4M3, 0x7E, 448 },
    { REF_E4M3, 0xFE, -448 }, { REF_E5M2, 0x01, 1.52587890625e-5f }, { REF_E5M2, 0x04, 6.103515625e-5f },
    { REF_E5M2, 0x3C, 1 }, { REF_E5M2, 0xBD, -1.25f }, { REF_E5M2, 0x7B, 57344 }, { REF_INT8, 0x7F, 127 },
    { REF_INT8, 0x81, -127 }, { REF_INT8, 0xFF, -1 },
};

static int encoded(int type, float value) {
    unsigned char code;
    ref_encode(type, value, &code);
    return code;
}

static float decoded(int type, int code) {
    unsigned char byte = (unsigned char)code;
    return (float)ref_decode(type, &byte);
}

/* Positive codes up to `most`: they ascend, keep their value, and halfway to the next one the even code wins. */
static void check_codes(int type, int most) {
    int code;
    for (code = 0; code <= most; code++) {
        float value = decoded(type, code);
        float next = decoded(type, code + 1);
        float middle = (value + next) / 2;  /* exact */
        CHECK(encoded(type, value) == code, "type %d code %02x", type, (unsigned)code);
        CHECK(code == 0 || encoded(type, -value) == (type == REF_INT8 ? 256 - code : code + 128), "type %d code -%02x",
              type, (unsigned)code);
        if (code == most) continue;
        CHECK(value < next, "type %d code %02x", type, (unsigned)code);
        CHECK(encoded(type, middle) == code + (code & 1), "type %d above %02x", type, (unsigned)code);
        CHECK(encoded(type, nextafterf(middle, 0)) == code, "type %d above %02x", type, (unsigned)code);
        CHECK(encoded(type, nextafterf(middle, next)) == code + 1, "type %d above %02x", type, (unsigned)code);
    }
    CHECK(encoded(type, INFINITY) == most && encoded(type, 1e30f) == most, "type %d saturates", type);
    CHECK(encoded(type, NAN) == (type == REF_INT8 ? 0 : 0x7F), "type %d, NaN", type);
}

static void oracle_codes(void) {
    int i;
    for (i = 0; i < COUNT(known_codes); i++) {
        const code_value *c = &known_codes[i];
        CHECK(decoded(c->type, c->code) == c->value, "type %d code %02x is %g", c->type, (unsigned)c->code,
              (double)decoded(c->type, c->code));
        CHECK(encoded(c->type, c->value) == c->code, "type %d value %g", c->type, (double)c->value);
    }
    check_codes(REF_E4M3, 0x7E);
    check_codes(REF_E5M2, 0x7B);
    check_codes(REF_INT8, 0x7F);
    CHECK(isnan(decoded(REF_E4M3, 0x7F)) && isnan(decoded(REF_E4M3, 0xFF)), "e4m3 has two NaN");
    CHECK(isinf(decoded(REF_E5M2, 0x7C)) && isnan(decoded(REF_E5M2, 0x7D)), "e5m2 has infinities and NaN");
    CHECK(encoded(REF_E4M3, -0.0f) == 0x80 && encoded(REF_E5M2, -1e-20f) == 0x80, "-0");
}

/* Layouts of a cache: ragged, padded with gaps, paged, paged with the heads outside. */
static void set_layout(case_spec *s, int layout) {
    if (layout == 1 || layout == 3) set_gaps(s);
    s->padded = layout == 1;
    s->layer.page_size = layout == 2 ? 16 : layout == 3 ? 48 : 0;
    s->head_major = layout == 3;
    s->order = CASE_SHUFFLED;
    s->spare_pages = 2;
    s->hide = 1;
}

static void run_scaled(attn_type type, int kind, int given, int layout) {
    case_spec s;
    case_defaults(&s);
    set_shape(&s, 4, 2, 40, 24);
    set_types(&s, ATTN_F32, type, ATTN_F32);
    set_layout(&s, layout);
    s.layer.scale_kind = kind;
    s.k_scale = given & 1;
    s.v_scale = given >> 1;
    s.layer.softcap = layout == 2 ? 5.0f : 0.0f;
    s.layer.window_left = layout == 2 ? 50 : 0;
    s.n = 0;
    add_request(&s, 20, 270, ATTN_PREFILL);
    add_request(&s, 0, 9, ATTN_PREFILL);
    add_request(&s, 3, 290, ATTN_DECODE);
    add_request(&s, 1, 37, ATTN_DECODE);
    run_spec(&s);
}

/* The page of the sink keys is the last one of the pool: what follows it, in the gap of the same tile, are guards. */
static void run_last_sink(attn_type type, int kind, int phase) {
    case_spec s;
    case_defaults(&s);
    set_shape(&s, 2, 1, 16, 16);
    set_types(&s, ATTN_F32, type, ATTN_F32);
    s.layer.scale_kind = kind;
    s.k_scale = s.v_scale = type == ATTN_INT8;
    s.layer.page_size = 8;
    s.layer.window_left = 20;
    s.layer.sink_keys = 8;
    s.order = CASE_DESCENDING;
    s.hide = 1;
    s.n = 0;
    add_request(&s, 2, 60, phase);
    run_spec(&s);
}

static void last_sink(void) {
    int phase;
    for (phase = 0; phase < 2; phase++) {
        run_last_sink(ATTN_F32, ATTN_SCALE_PER_TENSOR, phase);
        run_last_sink(ATTN_INT8, ATTN_SCALE_PER_TENSOR, phase);
        run_last_sink(ATTN_INT8, ATTN_SCALE_PER_KEY, phase);
    }
}

static void types_and_scales(void) {
    int type;
    int kind;
    int given;
    int layout;
    for (type = ATTN_F32; type <= ATTN_INT8; type++) {
        for (kind = ATTN_SCALE_PER_TENSOR; kind <= ATTN_SCALE_PER_KEY; kind++) {
            if (kind == ATTN_SCALE_PER_KEY && type != ATTN_INT8) continue;
            for (given = type == ATTN_INT8 ? 3 : 0; given <= 3; given++) {
                for (layout = 0; layout < 4; layout++) run_scaled((attn_type)type, kind, given, layout);
            }
        }
    }
}

/* q.k and every v are 1. */
static void edit_ones(void *user, case_array array, int request, int token, int head, int dim, float *value) {
    (void)user;
    (void)request;
    (void)token;
    (void)head;
    (void)dim;
    *value = array == CASE_Q ? 0.125f : 1;
}

/* Every logit is the scale or, capped, its tanh. */
static void scales_by_hand(void) {
    case_spec s;
    test_case c;
    int k;
    int i;
    for (k = 0; k < 4; k++) {
        float k_scale = 3;
        float v_scale = 0.25f;
        double logit = k & 2 ? 2 * tanh(1.5) : 3;
        case_defaults(&s);
        set_shape(&s, 2, 1, 8, 8);
        one_request(&s, 2, 40, k & 1);
        s.layer.kv_type = ATTN_E4M3;
        s.layer.scale = 1;
        s.layer.softcap = k & 2 ? 2.0f : 0.0f;
        s.edit = edit_ones;
        case_open(&c, &s);
        c.io.k_scale = &k_scale;
        c.io.v_scale = &v_scale;
        for (i = 0; i < isa_count; i++) {
            c.layer.isa = (int32_t)isas[i];
            CHECK(case_plan(&c) == 0 && case_forward(&c) == 0, "%s %s", c.message, c.error.text);
            CHECK(fabs(case_o(&c, 0, 1, 1, 5) - 0.25) <= 1e-6, "o is %g", case_o(&c, 0, 1, 1, 5));
            CHECK(fabs(case_lse(&c, 0, 1, 1) - logit - log(40)) <= 1e-5, "lse is %g", case_lse(&c, 0, 1, 1));
        }
        case_close(&c);
    }
}

enum { CODES = 256, CODE_DIM = 40 };

/* Key j alone is seen by row j. K: code j in one element, so that its value is the logit; V: codes from j on. */
static void fill_codes(test_case *c) {
    int key;
    int d;
    for (key = 0; key < CODES; key++) {
        for (d = 0; d < CODE_DIM; d++) {
            c->k.data[key * CODE_DIM + d] = (unsigned char)(d == key % CODE_DIM ? key : 0);
            c->v.data[key * CODE_DIM + d] = (unsigned char)(key + d);
        }
    }
    case_rehash(c);
}

static void check_code(double got, float want, const char *what, const test_case *c, int code) {
    CHECK(isfinite(want) ? got == (double)want : !isfinite(got), "%s, KV type %d, phase %d: %s of code %02x is %g",
          case_isa_name((attn_isa)c->layer.isa), (int)c->layer.kv_type, c->phase[0], what, (unsigned)code, got);
}

static void check_all_codes(const test_case *c, int type) {
    int row;
    int d;
    for (row = 0; row < CODES; row++) {
        float logit = decoded(type, row);
        check_code(case_lse(c, 0, row, 0), logit, "lse", c, row);
        for (d = 0; d < CODE_DIM && isfinite(logit); d++) {
            int code = (row + d) % CODES;
            check_code(case_o(c, 0, row, 0, d), decoded(type, code), "o", c, code);
        }
    }
}

static void every_code(void) {
    case_spec s;
    test_case c;
    int k;
    int i;
    for (k = 0; k < 6; k++) {
        float one = 1;
        case_defaults(&s);
        set_shape(&s, 1, 1, CODE_DIM, CODE_DIM);
        one_request(&s, CODES, CODES, k & 1);
        s.layer.kv_type = (attn_type)(ATTN_E4M3 + k / 2);
        s.layer.window_left = 1;
        s.layer.scale = 8;
        s.edit = edit_ones;
        case_open(&c, &s);
        fill_codes(&c);
        c.io.k_scale = &one;
        c.io.v_scale = &one;
        for (i = 0; i < isa_count; i++) {
            c.layer.isa = (int32_t)isas[i];
            CHECK(case_plan(&c) == 0 && case_forward(&c) == 0, "%s %s", c.message, c.error.text);
            check_all_codes(&c, REF_E4M3 + k / 2);
        }
        case_close(&c);
    }
}

/* ---- int8 queries ----------------------------------------------------------------------------------------------- */

enum { EXACT_ROWS = 131, EXACT_DIM = 576 };

/* Row j sees key j only, so its lse is its logit, here an integer: q has a 127, so integers stay what they are. Two
   rows differ: one is all zeros, one has a NaN and may not reach the others. */
static void exact_dots(attn_isa isa, int dim, int per_key) {
    static float q[EXACT_ROWS * EXACT_DIM], o[EXACT_ROWS], lse[EXACT_ROWS], scale[EXACT_ROWS];
    static signed char k[EXACT_ROWS * EXACT_DIM], v[EXACT_ROWS];
    test_rng r;
    attn_layer layer;
    attn_io io;
    attn_error error;
    size_t bytes;
    void *mem;
    int i, x;
    r.state = (uint64_t)dim;
    for (i = 0; i < EXACT_ROWS; i++) {
        for (x = 0; x < dim; x++) {
            q[i * dim + x] = i == 40 ? 0 : (float)test_range(&r, -127, 127);
            k[i * dim + x] = (signed char)(i % 3 ? test_range(&r, -127, 127) : i % 2 ? 127 : -127);
        }
        q[i * dim + i % dim] = i == 40 ? 0 : i % 2 ? 127.0f : -127.0f;
        scale[i] = per_key && i % 5 == 0 ? 0.5f : 1.0f;
    }
    q[77 * dim + dim / 2] = (float)NAN;
    memset(&layer, 0, sizeof layer);
    memset(&io, 0, sizeof io);
    layer.heads = layer.v_dim = layer.window_left = 1;
    layer.head_dim = dim;
    layer.kv_type = ATTN_INT8;
    layer.scale_kind = per_key ? ATTN_SCALE_PER_KEY : ATTN_SCALE_PER_TENSOR;
    layer.scale = 1;
    layer.isa = (int32_t)isa;
    layer.flags = ATTN_FAST_INT8;
    io.q = q;
    io.k = k;
    io.v = v;
    io.o = o;
    io.lse = lse;
    io.k_scale = io.v_scale = scale;
    if (!per_key) scale[0] = 1;
    bytes = attn_dense_bytes(&layer, EXACT_ROWS, EXACT_ROWS);
    mem = malloc(bytes);
    CHECK(!attn_dense(&layer, EXACT_ROWS, EXACT_ROWS, &io, mem, bytes, &error), "%s", error.text);
    for (i = 0; i < EXACT_ROWS; i++) {
        double sum = 0;
        if (i == 77) continue;
        for (x = 0; x < dim; x++) sum += (double)q[i * dim + x] * k[i * dim + x];
        CHECK((double)lse[i] == sum * (double)scale[i], "%s, head_dim %d: row %d has %.9g, not %.9g",
              isa_name((int)isa), dim, i, (double)lse[i], sum * (double)scale[i]);
    }
    CHECK(isnan(lse[77]), "%s, head_dim %d: a NaN became %g", case_isa_name(isa), dim, (double)lse[77]);
    free(mem);
}

static void int8_queries(void) {
    static const int dims[] = { 1, 4, 5, 8, 24, 64, 100, 136, 576 };
    int i;
    int d;
    for (i = 0; i < isa_count; i++) {
        for (d = 0; d < COUNT(dims); d++) {
            exact_dots(isas[i], dims[d], 0);
            exact_dots(isas[i], dims[d], 1);
        }
    }
    for (d = 0; d < COUNT(dims) && has_isa(ATTN_ISA_AVX512_VNNI); d++) exact_dots(ATTN_ISA_AVX512, dims[d], 1);
}

/* ---- V in K ----------------------------------------------------------------------------------------------------- */

static void latent_spec(case_spec *s, attn_type type, int heads, int kind) {
    case_defaults(s);
    set_shape(s, heads, 1, 576, 512);
    set_types(s, type == ATTN_BF16 ? ATTN_BF16 : ATTN_F32, type, ATTN_F32);
    s->layer.flags = ATTN_V_IN_K;
    s->layer.scale = 0.1f;
    s->layer.scale_kind = kind;
    s->k_scale = type >= ATTN_E4M3;
    s->v_scale = 0;
    s->hide = 1;
    s->n = 0;
}

static void latent_types(void) {
    static const attn_type types[] = { ATTN_F32, ATTN_BF16, ATTN_E4M3, ATTN_INT8 };
    case_spec s;
    int i;
    int q_len;
    for (i = 0; i < COUNT(types); i++) {
        for (q_len = 1; q_len <= 4; q_len += 3) {
            latent_spec(&s, types[i], 8, types[i] == ATTN_INT8 ? ATTN_SCALE_PER_KEY : ATTN_SCALE_PER_REQUEST);
            add_request(&s, q_len, 530, ATTN_DECODE);
            add_request(&s, q_len, 70, ATTN_PREFILL);
            run_spec(&s);
            s.layer.page_size = 64;
            s.order = CASE_SHUFFLED;
            s.k_row_gap = 8;
            s.k_head_gap = 0;
            s.layer.window_left = 200;
            run_spec(&s);
        }
    }
}

/* ---- trees of drafts -------------------------------------------------------------------------------------------- */

static void run_tree(case_tree tree, int q_len, int phase, int variant) {
    static const int windows[] = { 0, 1, 3, 40 };
    case_spec s;
    case_defaults(&s);
    set_shape(&s, 2, 1, 8, 8);
    one_request(&s, q_len, q_len + (variant == 1 ? 0 : 270), phase);
    s.layer.mask = ATTN_TREE;
    s.tree = tree;
    s.layer.window_left = windows[variant];
    s.layer.window_right = variant == 3 ? 2 : 0;
    s.layer.sink_keys = variant == 2 ? 280 : 0;
    s.layer.row_tile = 16;
    s.layer.page_size = variant == 3 ? 16 : 0;
    s.layer.split_keys = variant == 2 ? 256 : 0;
    s.alibi = variant & 1;
    s.hide = 1;
    run_spec(&s);
}

static void tree_shapes(void) {
    static const int rows[] = { 1, 31, 32, 33, 64, 65, 100 };
    int tree;
    int i;
    int phase;
    int variant;
    for (tree = CASE_TREE_CHAIN; tree <= CASE_TREE_WILD; tree++) {
        for (i = 0; i < COUNT(rows); i++) {
            for (phase = 0; phase < 2; phase++) {
                for (variant = 0; variant < 4; variant++) run_tree((case_tree)tree, rows[i], phase, variant);
            }
        }
    }
}

/* Rows of many words, of which a request uses some: the words follow from the capacity. */
static void tree_capacities(void) {
    static const int more[] = { 0, 1, 25, 26, 200 };
    case_spec a;
    case_spec b;
    int variant;
    int i;
    for (variant = 0; variant < 4; variant++) {
        case_defaults(&a);
        set_shape(&a, 4, 2, 16, 8);
        a.layer.mask = ATTN_TREE;
        a.layer.window_left = variant & 2 ? 5 : 0;
        a.layer.page_size = variant & 1 ? 16 : 0;
        a.alibi = variant >> 1;
        a.n = 0;
        add_request(&a, 5, 300, ATTN_DECODE);
        add_request(&a, 33, 40, ATTN_PREFILL);
        add_request(&a, 0, 7, ATTN_PREFILL);
        add_request(&a, 70, 600, ATTN_DECODE);
        add_request(&a, 64, 64, ATTN_PREFILL);
        add_request(&a, 1, 1, ATTN_DECODE);
        for (i = 0; i < COUNT(more); i++) {
            b = a;
            b.more_q = more[i];
            b.poison = (case_poison)(i % CASE_POISONS);
            b.hide = i & 1;
            run_same(&a, &b, "tree words");
        }
    }
}

typedef struct hand_tree {
    int window_left, sink_keys;
    int seen[4];                    /* keys that each row sees */
} hand_tree;

/* Ten cached keys, four drafts: 0, then 1 and 2 after it, then 3 after 2: at positions 10, 11, 11 and 12. */
static void tree_by_hand(void) {
    static const uint32_t bits[4] = { 0x1, 0x3, 0x5, 0xD };
    static const hand_tree cases[] = {
        { 0, 0, { 11, 12, 12, 13 } }, { 1, 0, { 1, 1, 1, 1 } }, { 2, 0, { 2, 2, 2, 2 } }, { 3, 0, { 3, 3, 3, 3 } },
        { 4, 0, { 4, 4, 4, 4 } }, { 12, 0, { 11, 12, 12, 12 } }, { 1, 10, { 11, 11, 11, 11 } },
        { 1, 11, { 11, 12, 12, 12 } }, { 2, 13, { 11, 12, 12, 13 } }, { 2, 3, { 5, 5, 5, 5 } },
    };
    case_spec s;
    test_case c;
    int k;
    int row;
    for (k = 0; k < 2 * COUNT(cases); k++) {
        const hand_tree *h = &cases[k / 2];
        int i;
        case_defaults(&s);
        one_request(&s, 4, 14, k & 1);
        s.layer.mask = ATTN_TREE;
        s.layer.window_left = h->window_left;
        s.layer.sink_keys = h->sink_keys;
        s.edit = edit_zero_q;
        case_open(&c, &s);
        memcpy(c.tree.data, bits, sizeof bits);
        case_rehash(&c);
        for (i = 0; i < isa_count; i++) {
            c.layer.isa = (int32_t)isas[i];
            CHECK(case_run(&c) == NULL, "%s", c.message);
            for (row = 0; row < 4; row++) {
                double got = exp(case_lse(&c, 0, row, 1));
                CHECK(fabs(got - h->seen[row]) <= 1e-3, "%s window %d sink_keys %d row %d: %g keys, want %d",
                      case_isa_name(isas[i]), h->window_left, h->sink_keys, row, got, h->seen[row]);
            }
        }
        case_close(&c);
    }
}

/* ---- lists of keys ---------------------------------------------------------------------------------------------- */

static void list_spec(case_spec *s, int topk, int heads, int kv_heads) {
    case_defaults(s);
    set_shape(s, heads, kv_heads, 16, 16);
    s->layer.mask = ATTN_TOPK;
    s->layer.topk = topk;
    s->list_keys = topk;
    s->list_order = 5;
    s->hide = 1;
    s->n = 0;
}

static void list_lengths(void) {
    static const int lengths[][2] = { { 1, 2048 }, { 2047, 2047 }, { 2047, 2049 }, { 2048, 2047 }, { 2048, 2048 },
                                      { 2048, 2049 }, { 2048, 2300 }, { 2049, 2048 }, { 2049, 2049 }, { 2049, 2050 } };
    case_spec s;
    int i;
    int phase;
    for (i = 0; i < COUNT(lengths); i++) {
        for (phase = 0; phase < 2; phase++) {
            list_spec(&s, lengths[i][0], 8, 2);
            add_request(&s, 3, lengths[i][1], phase);
            s.layer.page_size = i & 1 ? 1 : 16;
            run_spec(&s);
            list_spec(&s, lengths[i][0], 128, 1);
            add_request(&s, 2, lengths[i][1], phase);
            s.layer.split_keys = i & 1 ? 256 : 0;
            run_spec(&s);
        }
    }
}

static void list_windows(void) {
    static const int windows[] = { 0, 1, 50, 300 };
    static const int topks[] = { 1, 7, 64, 260, 700 };
    case_spec s;
    int w;
    int t;
    int variant;
    for (w = 0; w < COUNT(windows); w++) {
        for (t = 0; t < COUNT(topks); t++) {
            for (variant = 0; variant < 4; variant++) {
                list_spec(&s, topks[t], 4, 2);
                add_request(&s, 20, 690, variant & 1);
                add_request(&s, 0, 5, variant & 1);
                add_request(&s, 9, 9, ATTN_PREFILL);
                add_request(&s, 1, 600, ATTN_DECODE);
                s.layer.window_left = windows[w];
                s.layer.sink_keys = variant & 2 ? 33 : 0;
                s.layer.page_size = variant & 1 ? 3 : 64;
                s.list_ragged = variant >> 1;
                s.sinks = variant & 1;
                s.alibi = variant >> 1;
                run_spec(&s);
            }
        }
    }
}

static void list_latent(void) {
    static const attn_type types[] = { ATTN_BF16, ATTN_E4M3, ATTN_INT8 };
    case_spec s;
    int i;
    int phase;
    for (i = 0; i < COUNT(types); i++) {
        for (phase = 0; phase < 2; phase++) {
            latent_spec(&s, types[i], 4, types[i] == ATTN_INT8 ? ATTN_SCALE_PER_KEY : ATTN_SCALE_PER_TENSOR);
            s.layer.mask = ATTN_TOPK;
            s.layer.topk = 600;
            s.list_keys = 600;
            s.list_order = 9;
            s.layer.page_size = 64;
            add_request(&s, 2, 1500, phase);
            add_request(&s, 1, 530, phase);
            run_spec(&s);
        }
    }
}

/* Lists without a key: nothing but holes, keys past the row, keys before the window. */
static void list_empty(void) {
    static const int32_t lists[4][3] = { { -1, -1, -1 }, { 300, 301, -1 }, { INT32_MAX, -1, 299 }, { 5, 6, 7 } };
    case_spec s;
    test_case c;
    int k;
    int i;
    int d;
    for (k = 0; k < 16; k++) {
        list_spec(&s, 3, 2, 1);
        add_request(&s, 2, 300, k & 1);
        s.layer.window_left = k / 4 == 3 ? 50 : 0;
        s.sinks = k >> 1 & 1;
        case_open(&c, &s);
        memcpy(c.topk.data, lists[k / 4], sizeof lists[0]);
        case_rehash(&c);
        for (i = 0; i < isa_count; i++) {
            c.layer.isa = (int32_t)isas[i];
            CHECK(case_run(&c) == NULL, "%s", c.message);
            for (d = 0; d < 16; d++) CHECK(case_o(&c, 0, 0, 1, d) == 0, "o is %g", case_o(&c, 0, 0, 1, d));
            CHECK(s.sinks || case_lse(&c, 0, 0, 1) < -1e38, "lse is %g", case_lse(&c, 0, 0, 1));
        }
        case_close(&c);
    }
}

static void no_amx(void) {
    test_skip("this CPU or build has no AMX");
}

/* ---- row tiles, and of AMX what the oracle's room for weights in bf16 would hide -------------------------------- */

enum { AMX_ROWS = 600, AMX_HEADS = 4, AMX_DIM = 128, AMX_SIZE = AMX_ROWS * AMX_HEADS * AMX_DIM };

/* One prompt under a window, so that panels of rows start at keys of all kinds. Returns the row tile it had; max_rows:
   the batch's capacity. */
static int32_t bf16_prompt(attn_isa isa, const uint16_t *x, const uint16_t *v, int32_t row_tile, int64_t max_rows,
                           uint16_t *o) {
    int32_t rows = AMX_ROWS, words[4096];
    attn_batch batch;
    attn_layer layer;
    attn_plan plan;
    attn_io io;
    attn_exec exec;
    attn_error error;
    memset(&batch, 0, sizeof batch);
    memset(&layer, 0, sizeof layer);
    memset(&io, 0, sizeof io);
    memset(&exec, 0, sizeof exec);
    batch.n = 1;
    batch.q_len = batch.kv_len = &rows;
    batch.max_rows = max_rows;
    layer.heads = AMX_HEADS;
    layer.head_dim = AMX_DIM;
    layer.q_type = layer.kv_type = layer.o_type = ATTN_BF16;
    layer.window_left = 77;
    layer.row_tile = row_tile;
    layer.isa = (int32_t)isa;
    io.q = x;
    io.k = (void *)(uintptr_t)x;
    io.v = (void *)(uintptr_t)v;
    io.o = o;
    CHECK(!attn_plan_make(&plan, &batch, &layer, words, sizeof words, &error), "%s", error.text);
    exec.bytes = attn_exec_bytes(&plan, 1);
    exec.mem = malloc(exec.bytes);
    CHECK(!attn_forward(&plan, &layer, &io, &exec, &error), "%s", error.text);
    free(exec.mem);
    return plan.resolved.row_tile;
}

static void fill_bf16(uint16_t *x) {
    test_rng r = { 5 };
    for (int i = 0; i < AMX_SIZE; i++) {
        float y = test_uniform(&r);
        uint32_t bits;
        memcpy(&bits, &y, sizeof bits);
        x[i] = (uint16_t)(bits >> 16);
    }
}

static void row_tiles(attn_isa isa) {
    static uint16_t x[AMX_SIZE], o[AMX_SIZE], other[AMX_SIZE];
    fill_bf16(x);
    CHECK(bf16_prompt(isa, x, x, 0, 0, o) == 256, "few rows");
    CHECK(bf16_prompt(isa, x, x, 16, 0, other) == 16, "16 rows");
    CHECK(!memcmp(o, other, sizeof o), "bits depend on the row tile");
    CHECK(bf16_prompt(isa, x, x, 0, 4095, other) == 256, "hardly room for 32 tiles of 512");
    memset(other, 0, sizeof other);
    CHECK(bf16_prompt(isa, x, x, 0, 4096, other) == 512, "room for many rows");
    CHECK(!memcmp(o, other, sizeof o), "bits depend on the row tile of many rows");
    CHECK(bf16_prompt(isa, x, x, 256, 4096, other) == 256, "a row tile that the caller chose");
}

static void amx_row_tiles(void) { row_tiles(ATTN_ISA_AMX); }
static void avx2_row_tiles(void) { row_tiles(ATTN_ISA_AVX2); }

static void amx_details(void) {
    static uint16_t x[AMX_SIZE], v[AMX_SIZE], o[AMX_SIZE];
    const int per_row = AMX_HEADS * AMX_DIM;
    int i, row;
    fill_bf16(x);
    for (i = 0; i < AMX_SIZE; i++) v[i] = 0x3f80;
    bf16_prompt(ATTN_ISA_AMX, x, v, 0, 0, o);
    for (i = 0; i < AMX_SIZE; i++) CHECK(o[i] == 0x3f80, "row %d: the mean of ones is %04x", i / per_row, o[i]);
    v[100 * per_row] = 0x7fc0;
    bf16_prompt(ATTN_ISA_AMX, x, v, 0, 0, o);
    for (row = 0; row < AMX_ROWS; row++) {
        int sees = row >= 100 && row < 177, spoilt = (o[row * per_row] & 0x7f80) == 0x7f80;
        CHECK(sees == spoilt && o[row * per_row + 1] == 0x3f80, "row %d: %04x of a NaN in key 100", row,
              o[row * per_row]);
    }
}

/* attn_dense where rows are so many that a row tile has 512: its memory must have room for them. */
static void many_rows_dense(attn_isa isa) {
    enum { HEADS = 32, DIM = 32, KEYS = 40, ROWS = 520 };
    static uint16_t q[ROWS * HEADS * DIM], o[ROWS * HEADS * DIM], kv[KEYS * HEADS * DIM];
    attn_layer layer;
    attn_io io;
    attn_error error;
    memset(&layer, 0, sizeof layer);
    memset(&io, 0, sizeof io);
    layer.heads = HEADS;
    layer.head_dim = DIM;
    layer.mask = ATTN_FULL;
    layer.q_type = layer.kv_type = layer.o_type = ATTN_BF16;
    layer.isa = (int32_t)isa;
    for (int i = 0; i < KEYS * HEADS * DIM; i++) kv[i] = 0x3f80;
    io.q = q;
    io.k = io.v = kv;
    io.o = o;
    size_t bytes = attn_dense_bytes(&layer, ROWS, KEYS);
    void *mem = malloc(bytes);
    CHECK(!attn_dense(&layer, ROWS, KEYS, &io, mem, bytes, &error), "%s", error.text);
    for (int i = 0; i < ROWS * HEADS * DIM; i++) CHECK(o[i] == 0x3f80, "element %d: the mean of ones is %04x", i, o[i]);
    free(mem);
}

static void amx_dense(void) { many_rows_dense(ATTN_ISA_AMX); }
static void avx2_dense(void) { many_rows_dense(ATTN_ISA_AVX2); }

/* ---- main ------------------------------------------------------------------------------------------------------- */

/* Of the types and numbers that these name. */
static void run_types(void) {
    test_run("random cases against the oracle, scalar", random_scalar);
    test_run("random cases against the oracle, avx2", random_avx2);
    test_run("random cases against the oracle, avx512", random_avx512);
    if (has_isa(ATTN_ISA_NEON)) test_run("random cases against the oracle, neon", random_neon);
    test_run("random cases reach every path", random_coverage);
    test_run("every mixture of q, kv and o types", types_mixed);
    test_run("features trap 1: logits of -6e4 and -1e30 are no masks", trap1_low_logits);
    test_run("features trap 1: logits of +-3e38", trap1_huge_logits);
    test_run("features trap 1: some logits are -inf", trap1_minus_infinity);
    test_run("features trap 11: offsets above 2^31 and 2^32", trap11_far_offsets);
    test_run("the oracle's own 8-bit types", oracle_codes);
    test_run("every KV type, scale kind and layout", types_and_scales);
    test_run("nothing is read behind the page of the sink keys", last_sink);
    test_run("8-bit caches: every code means what it should", every_code);
    test_run("k_scale belongs to the logit, v_scale to o", scales_by_hand);
    test_run("int8 queries: products of integers are exact, zeros and a NaN too", int8_queries);
    test_run("V in K: 576 and 512 in f32, bf16, e4m3 and int8", latent_types);
}

static void run_traps(void) {
    test_run("features trap 1: all logits are -inf", trap1_all_minus_infinity);
    test_run("features trap 1: a masked row is 0 with lse -inf", trap1_masked_row);
    test_run("features trap 2: first, middle, last or all tiles blank, with and without sinks", trap2_blank_tiles);
    test_run("features trap 3: NaN and Inf in bytes nobody owns change no bit", trap3_poison);
    test_run("features trap 4: zero lengths in every place", trap4_zero_lengths);
    test_run("features trap 5: fewer keys than queries", trap5_more_queries_than_keys);
    test_run("features trap 6: windows at every edge, keys counted", trap6_windows);
    test_run("features trap 8: a page id out of range is named", trap8_page_ids);
    test_run("features trap 9, sglang trap 8: shuffled, shared and repeated pages", trap9_page_order);
    test_run("features trap 9, sglang trap 7: the tail of the page table is never read", trap9_table_tail);
    test_run("features trap 10: partial last pages", trap10_partial_pages);
    test_run("features trap 13: plan and scratch memory full of old bytes", trap13_used_memory);
    test_run("features trap 15, sglang trap 10: 1 to 17 rows in the decode family", trap15_decode_rows);
    test_run("features trap 17: lse is the natural logarithm", trap17_lse);
    test_run("features trap 18: every GQA ratio", trap18_gqa_ratios);
    test_run("features trap 19: every head dim", trap19_head_dims);
    test_run("features trap 20: the scale counts and belongs to the plan", trap20_scale);
    test_run("features trap 21: sinks count once under every split", trap21_sinks);
    test_run("features trap 22: softcap of huge products", trap22_softcap);
    test_run("features trap 22: softcap with sinks and a window", trap22_softcap_moderate);
    test_run("sglang trap 9: strides wider than packed keep the bits", sglang9_strides);
    test_run("sglang trap 20: no keys give 0 and lse -inf", sglang20_no_keys);
    test_run("sglang trap 22: the window moves with the row", trap22_window_moves_with_the_row);
    test_run("sglang trap 23: capacities keep the bits", sglang23_capacities);
    test_run("features trap 16, trees: every shape at the edges of words, windows, sink keys, ALiBi", tree_shapes);
    test_run("trees: ragged batches in rows of any capacity", tree_capacities);
    test_run("trees: windows compare positions, keys counted", tree_by_hand);
    test_run("top-k: lists around 2048, 8 heads on 2 and 128 on 1", list_lengths);
    test_run("top-k: with windows, sink keys and pages that nobody lists", list_windows);
    test_run("top-k: V in K", list_latent);
    test_run("top-k: a list without a visible key gives 0", list_empty);
}

int main(int argc, char **argv) {
    test.only = argc > 1 ? argv[1] : NULL;
    if (argc > 2) random_seed = strtoull(argv[2], NULL, 10);
    if (argc > 3) random_only = atoi(argv[3]);
    isa_count = case_isas(isas);
    run_types();
    run_traps();
    if (has_isa(ATTN_ISA_AVX2)) {
        test_run("row tiles under a window, avx2", avx2_row_tiles);
        test_run("attn_dense of many rows, avx2", avx2_dense);
    }
    if (has_isa(ATTN_ISA_AMX)) {
        case_tiles(1);
        isas[0] = ATTN_ISA_AMX;
        isa_count = 1;
        test.suffix = ", amx";
        random_done = 0;
        test_run("random cases against the oracle", random_amx);
        run_traps();
        test_run("ones, a NaN in V", amx_details);
        test_run("row tiles under a window", amx_row_tiles);
        test_run("attn_dense of many rows", amx_dense);
    } else {
        test_run("all of this in bf16, amx", no_amx);
    }
    return test_close("attention");
}
