/* sliding_window.c - the sliding-window matrix of SGLang's attention tests (pull request 26517) as a table, and the
   keys that a window of radius W shows, counted with one-hot values.
   Usage: sliding_window [name part] */
#include "../attn.h"
#include "cases.h"
#include "test.h"

#include <math.h>

#define COUNT(list) ((int)(sizeof(list) / sizeof *(list)))

enum { CONTEXT = 64, NO_WINDOW = -1 };

static attn_isa isas[4];
static int isa_count;

/* ---- the matrix ------------------------------------------------------------------------------------------------- */

typedef struct window_case {
    const char *name;
    int page_size, phase, radius, n;
    int prefix[3], extend[3];
    int heads, kv_heads;
} window_case;

enum { P = ATTN_PREFILL, D = ATTN_DECODE };

static const window_case cases[] = {
    { "extend, page 1, prefix (2,4) + (3,1)", 1, P, NO_WINDOW, 2, { 2, 4 }, { 3, 1 }, 4, 4 },
    { "extend, page 16, 16 new", 16, P, NO_WINDOW, 1, { 0 }, { 16 }, 4, 4 },
    { "extend, page 16, new (15,16,17)", 16, P, NO_WINDOW, 3, { 0, 0, 0 }, { 15, 16, 17 }, 4, 4 },
    { "extend, page 16, prefix 16 + 2", 16, P, NO_WINDOW, 1, { 16 }, { 2 }, 4, 4 },
    { "extend, page 16, prefix 8 + 8", 16, P, NO_WINDOW, 1, { 8 }, { 8 }, 4, 4 },
    { "extend, page 16, prefix 15 + 2", 16, P, NO_WINDOW, 1, { 15 }, { 2 }, 4, 4 },
    { "extend, page 16, ragged prefix (0,8,16) + (15,8,1)", 16, P, NO_WINDOW, 3, { 0, 8, 16 }, { 15, 8, 1 }, 4, 4 },
    { "extend, page 32, prefix 31 + 2", 32, P, NO_WINDOW, 1, { 31 }, { 2 }, 4, 4 },
    { "decode, page 16, prefix (14,15,16)", 16, D, NO_WINDOW, 3, { 14, 15, 16 }, { 1, 1, 1 }, 4, 4 },
    { "decode, page 1, one request, prefix 7", 1, D, NO_WINDOW, 1, { 7 }, { 1 }, 4, 4 },
    { "GQA extend, ragged", 16, P, NO_WINDOW, 3, { 0, 8, 16 }, { 15, 8, 1 }, 4, 2 },
    { "GQA decode", 16, D, NO_WINDOW, 3, { 14, 15, 16 }, { 1, 1, 1 }, 4, 2 },
    { "MQA extend, ragged", 16, P, NO_WINDOW, 3, { 0, 8, 16 }, { 15, 8, 1 }, 4, 1 },
    { "MQA decode", 16, D, NO_WINDOW, 3, { 14, 15, 16 }, { 1, 1, 1 }, 4, 1 },
    { "window 4, no prefix, new (3,4,5)", 1, P, 4, 3, { 0, 0, 0 }, { 3, 4, 5 }, 4, 2 },
    { "window 4, prefix (3,4,5) + 2", 1, P, 4, 3, { 3, 4, 5 }, { 2, 2, 2 }, 4, 2 },
    { "window 4, page 16, no prefix, new (3,4,5)", 16, P, 4, 3, { 0, 0, 0 }, { 3, 4, 5 }, 4, 2 },
    { "window 4, page 16, prefix (3,4,5) + 2", 16, P, 4, 3, { 3, 4, 5 }, { 2, 2, 2 }, 4, 2 },
    { "window 4, decode, prefix (3,4,5)", 1, D, 4, 3, { 3, 4, 5 }, { 1, 1, 1 }, 4, 2 },
    { "window 4, decode, prefix (14,15,16)", 16, D, 4, 3, { 14, 15, 16 }, { 1, 1, 1 }, 4, 1 },
    { "window 4, verify of 4, prefix (3,4,5)", 16, D, 4, 3, { 3, 4, 5 }, { 4, 4, 4 }, 4, 2 },
    { "window 4, draft extend (1,3,2), prefix (14,15,16)", 16, D, 4, 3, { 14, 15, 16 }, { 1, 3, 2 }, 4, 2 },
    { "window 0, extend", 1, P, 0, 3, { 0, 3, 15 }, { 5, 2, 17 }, 4, 2 },
    { "window 0, decode", 1, D, 0, 3, { 0, 3, 15 }, { 1, 1, 1 }, 4, 2 },
    { "window 63 covers the context", 16, P, 63, 2, { 31, 0 }, { 33, 64 }, 4, 4 },
};

static const char *const order_names[] = { "contiguous", "shuffled", "interleaved", "non-monotonic" };

/* Keys that a radius shows, counted without the library: W before the query and the query itself. */
static int window_keys(int radius) {
    return radius < 0 ? 0 : radius + 1;
}

static void make_spec(case_spec *s, const window_case *w, case_order order) {
    int longest = 0;
    int i;
    case_defaults(s);
    s->layer.heads = w->heads;
    s->layer.kv_heads = w->kv_heads;
    s->layer.head_dim = 16;
    s->layer.q_type = s->layer.kv_type = s->layer.o_type = ATTN_F16;
    s->layer.window_left = attn_window_from_radius(w->radius, 1, 0);
    s->layer.page_size = w->page_size;
    s->order = order;
    s->spare_pages = 2;
    s->hide = 1;
    s->n = w->n;
    for (i = 0; i < w->n; i++) {
        s->request[i].q_len = w->extend[i];
        s->request[i].kv_len = w->prefix[i] + w->extend[i];
        s->request[i].phase = w->phase;
        s->request[i].content = (uint32_t)i;
        longest = s->request[i].kv_len > longest ? s->request[i].kv_len : longest;
    }
    s->more_kv = CONTEXT - longest;
}

static void run_case(const window_case *w) {
    case_spec s;
    test_case c;
    int order;
    int i;
    for (order = CASE_CONTIGUOUS; order <= CASE_DESCENDING; order++) {
        make_spec(&s, w, (case_order)order);
        CHECK(s.layer.window_left == window_keys(w->radius), "radius %d became %d keys", w->radius,
              s.layer.window_left);
        case_open(&c, &s);
        CHECK(c.columns == CONTEXT / w->page_size, "%d columns", c.columns);
        for (i = 0; i < isa_count; i++) {
            const char *problem;
            c.layer.isa = (int32_t)isas[i];
            problem = case_run(&c);
            CHECK(problem == NULL, "%s, %s: %s", order_names[order], case_isa_name(isas[i]), problem);
        }
        case_close(&c);
    }
}

static const window_case *current;

static void run_current(void) {
    run_case(current);
}

/* ---- keys counted with one-hot values --------------------------------------------------------------------------- */

enum { HOT = 64 };

/* q = 0: every visible key has the weight 1 / count. v of key t is 1 in dim t % 64: o tells which keys were seen. */
static void edit_one_hot(void *user, case_array array, int request, int token, int head, int dim, float *value) {
    (void)user;
    (void)request;
    (void)head;
    if (array == CASE_Q) *value = 0;
    if (array == CASE_V) *value = token % HOT == dim ? 1.0f : 0.0f;
}

/* How many of the keys first .. last have residue dim */
static int residues(int first, int last, int dim) {
    int count = 0;
    int key;
    for (key = first; key <= last; key++) count += key % HOT == dim;
    return count;
}

static void check_hot_row(const test_case *c, int row, int radius) {
    int last = c->kv_len[0] - c->q_len[0] + row;
    int first = radius >= 0 && last > radius ? last - radius : 0;
    int seen = last - first + 1;
    int dim;
    CHECK(fabs(exp(case_lse(c, 0, row, 0)) - seen) <= 1e-4 * seen, "%s W %d KV %d row %d: %g keys, want %d",
          case_isa_name((attn_isa)c->layer.isa), radius, c->kv_len[0], row, exp(case_lse(c, 0, row, 0)), seen);
    for (dim = 0; dim < HOT; dim++) {
        double keys = case_o(c, 0, row, 0, dim) * seen;
        int want = residues(first, last, dim);
        CHECK(fabs(keys - want) <= 1e-3 * (want + 1), "%s W %d KV %d row %d: %g keys of residue %d, want %d",
              case_isa_name((attn_isa)c->layer.isa), radius, c->kv_len[0], row, keys, dim, want);
    }
}

static void count_keys(int radius, int q_len, int kv_len, int phase, int page_size) {
    case_spec s;
    test_case c;
    int i;
    int row;
    case_defaults(&s);
    s.layer.heads = 1;
    s.layer.head_dim = 4;
    s.layer.v_dim = HOT;
    s.layer.window_left = attn_window_from_radius(radius, 1, 0);
    s.layer.page_size = page_size;
    s.order = CASE_SHUFFLED;
    s.hide = 1;
    s.request[0].q_len = q_len;
    s.request[0].kv_len = kv_len;
    s.request[0].phase = phase;
    s.edit = edit_one_hot;
    case_open(&c, &s);
    for (i = 0; i < isa_count; i++) {
        int status;
        c.layer.isa = (int32_t)isas[i];
        status = case_plan(&c);
        if (status == 0) status = case_forward(&c);
        CHECK(status == 0, "status %d: %s %s", status, c.message, c.error.text);
        for (row = 0; row < q_len; row++) check_hot_row(&c, row, radius);
    }
    case_close(&c);
}

static void one_hot_lengths(int kv_len, int q_len) {
    int radii[8] = { -1, 0, 1, 4, 0, 0, 0, 4095 };
    int i;
    int phase;
    radii[4] = kv_len - 2;
    radii[5] = kv_len - 1;
    radii[6] = kv_len;
    for (i = 0; i < COUNT(radii); i++) {
        for (phase = 0; phase < 2; phase++) {
            count_keys(radii[i], q_len, kv_len, phase, 0);
            count_keys(radii[i], q_len, kv_len, phase, 16);
        }
    }
}

static void one_hot_small(void) {
    one_hot_lengths(1, 1);
    one_hot_lengths(2, 2);
    one_hot_lengths(33, 4);
    one_hot_lengths(64, 64);
}

static void one_hot_units(void) {
    one_hot_lengths(600, 5);
    one_hot_lengths(769, 1);
}

/* The lengths of SGLang's decode test of radius 4095, where one backend kept a key too few: at 5,000 keys the oldest
   visible one is 904. */
static void one_hot_4095(void) {
    static const int lengths[] = { 1, 100, 4095, 4096, 4097, 5000 };
    int i;
    int phase;
    for (i = 0; i < COUNT(lengths); i++) {
        for (phase = 0; phase < 2; phase++) {
            count_keys(4095, 1, lengths[i], phase, 0);
            count_keys(4095, lengths[i] < 3 ? 1 : 3, lengths[i], phase, 64);
        }
    }
}

/* Prefixes around the radius */
static void one_hot_prefix(void) {
    static const int radii[] = { 1, 4, 63, 64, 255, 256 };
    int i;
    int prefix;
    int phase;
    for (i = 0; i < COUNT(radii); i++) {
        for (prefix = radii[i] - 1; prefix <= radii[i] + 1; prefix++) {
            for (phase = 0; phase < 2; phase++) {
                count_keys(radii[i], 2, prefix + 2, phase, 0);
                count_keys(radii[i], 4, prefix + 4, phase, 16);
            }
        }
    }
}

static void radius_converter(void) {
    static const int radii[] = { -1, -5, 0, 1, 4, 4095, 1 << 20 };
    int i;
    for (i = 0; i < COUNT(radii); i++) {
        int32_t got = attn_window_from_radius(radii[i], 1, 0);
        CHECK(got == window_keys(radii[i]), "radius %d: %d keys", radii[i], got);
        CHECK(attn_window_from_radius(radii[i], 0, 0) == 0, "radius %d of a layer that is not causal", radii[i]);
        CHECK(attn_window_from_radius(radii[i], 1, 1) == 0, "radius %d of a cross layer", radii[i]);
        CHECK(attn_window_from_radius(radii[i], 0, 1) == 0, "radius %d of a cross layer", radii[i]);
    }
    CHECK(attn_window_from_radius(INT32_MAX, 1, 0) >= 0, "the largest radius overflows: %d",
          attn_window_from_radius(INT32_MAX, 1, 0));
}

/* ---- main ------------------------------------------------------------------------------------------------------- */

int main(int argc, char **argv) {
    int i;
    test.only = argc > 1 ? argv[1] : NULL;
    isa_count = case_isas(isas);
    test_run("radius to window", radius_converter);
    for (i = 0; i < COUNT(cases); i++) {
        current = &cases[i];
        test_run(current->name, run_current);
    }
    test_run("sglang trap 21: one-hot values, short caches", one_hot_small);
    test_run("sglang trap 21: one-hot values, several units", one_hot_units);
    test_run("sglang trap 21: one-hot values, radius 4095", one_hot_4095);
    test_run("sglang trap 21: one-hot values, prefix W-1, W, W+1", one_hot_prefix);
    return test_close("sliding_window");
}
