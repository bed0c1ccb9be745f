/* plan.c - the arrays of a plan, read through the layout that attn.h documents under >>plan: every unit computed once,
   slots used once, the cut balanced, workspace bounded, the merge tree equal to its recursive definition. */
#define ATTN_IMPLEMENTATION
#include "../attn.h"
#include "test.h"

enum { MAX_N = 300 };

typedef struct planned {
    attn_batch batch;
    attn_layer layer;
    attn_plan plan;
    attn_error error;
    int32_t q_len[MAX_N], kv_len[MAX_N], phase[MAX_N];
} planned;

static int make(planned *p) {
    size_t bytes = attn_plan_bytes(&p->batch, &p->layer);
    void *mem = malloc(bytes ? bytes : 1);
    int status;
    memset(mem, 0xff, bytes);
    status = attn_plan_make(&p->plan, &p->batch, &p->layer, mem, bytes, &p->error);
    CHECK(!status, "%s", p->error.text);
    if (status) free(mem);
    return !status;
}

static const int32_t *strip_of(const planned *p, int i) {
    return p->plan.words + p->plan.words[13] + 8 * i;
}

static const int32_t *task_of(const planned *p, int i) {
    return p->plan.words + p->plan.words[14] + 5 * i;
}

static const int32_t *merge_of(const planned *p, int i) {
    return p->plan.words + p->plan.words[15] + 2 * i;
}

static void clear(planned *p) {
    memset(p, 0, sizeof *p);
    p->batch.q_len = p->q_len;
    p->batch.kv_len = p->kv_len;
    p->batch.phase = p->phase;
    p->layer.isa = ATTN_ISA_SCALAR;
}

static void draw(planned *p, test_rng *r) {
    static const int32_t splits[] = { 0, 0, 256, 512, 1024 };
    int i, group = test_range(r, 1, 8), longest = test_range(r, 1, 5) * test_range(r, 1, 5) * 300;
    clear(p);
    p->batch.n = test_range(r, 0, 20);
    p->layer.kv_heads = test_range(r, 1, 9);
    p->layer.heads = p->layer.kv_heads * group;
    p->layer.head_dim = 8;
    p->layer.row_tile = 16 * test_range(r, 1, 9);
    p->layer.workers = test_range(r, 1, 100);
    p->layer.split_keys = splits[test_range(r, 0, 4)];
    p->layer.mask = test_range(r, 0, 3) ? ATTN_CAUSAL : ATTN_FULL;
    if (test_range(r, 0, 1)) p->layer.window_left = test_range(r, 1, longest);
    if (test_range(r, 0, 1)) p->layer.sink_keys = test_range(r, 0, 600);
    for (i = 0; i < p->batch.n; i++) {
        p->phase[i] = test_range(r, 0, 1);
        p->kv_len[i] = test_range(r, 0, longest);
        p->q_len[i] = test_range(r, 0, 1) ? test_range(r, 0, 3) : test_range(r, 0, 200);
        if (p->layer.mask == ATTN_CAUSAL && p->q_len[i] > p->kv_len[i]) p->q_len[i] = p->kv_len[i];
    }
}

/* Tasks walk through the strips and their units in order, leaving nothing out; slots likewise. */
static void check_cover(const planned *p) {
    int i, strip = 0, unit = 0, slot = 0, merge = 0;
    for (i = 0; i < p->plan.tasks; i++) {
        const int32_t *t = task_of(p, i);
        int32_t units = strip_of(p, strip)[7];
        CHECK(t[0] == strip && t[1] == unit, "task %d is %d:%d, not %d:%d", i, t[0], t[1], strip, unit);
        CHECK(t[2] > t[1] || !units, "task %d is empty", i);
        if (t[2] - t[1] < units) {
            CHECK(t[3] == slot && t[4] > 0, "task %d has slots %d + %d, not %d", i, t[3], t[4], slot);
            if (t[1] == 0) {
                CHECK(merge_of(p, merge)[0] == strip && merge_of(p, merge)[1] == i, "merge %d", merge);
                merge++;
            }
            slot += t[4];
        } else {
            CHECK(t[3] == -1, "a whole strip needs no slot");
        }
        unit = t[2];
        if (unit == units) {
            strip++;
            unit = 0;
        }
    }
    CHECK(strip == p->plan.strips && slot == p->plan.slots && merge == p->plan.merges, "%d strips, %d slots", strip,
          slot);
}

/* Every row of every head stands in exactly one strip. */
static void check_rows(const planned *p) {
    int64_t rows = 0, wanted = 0;
    int i;
    for (i = 0; i < p->plan.strips; i++) rows += (int64_t)strip_of(p, i)[2] * strip_of(p, i)[4];
    for (i = 0; i < p->batch.n; i++) wanted += (int64_t)p->q_len[i] * p->layer.heads;
    CHECK(rows == wanted, "%lld rows of %lld", (long long)rows, (long long)wanted);
}

static void test_cover(void) {
    test_rng r = { 1 };
    int i, cut = 0;
    for (i = 0; i < test_draws(3000); i++) {
        planned p;
        attn__capacity c;
        draw(&p, &r);
        if (!make(&p)) continue;
        check_cover(&p);
        check_rows(&p);
        attn__capacity_of_plan(&c, &p.plan);
        CHECK(p.plan.strips <= c.strips && p.plan.tasks <= c.tasks && p.plan.merges <= c.merges &&
              p.plan.slots <= c.slots, "case %d is above its bounds: %d slots", i, p.plan.slots);
        cut += p.plan.merges > 0;
        free(p.plan.words);
    }
    CHECK(cut > 500, "only %d plans had a cut strip", cut);
}

/* The tree by its recursive definition: the interval of units [first, first + 2^level), as text of merges. */
static int tree_text(char *text, const int32_t *units, int count, int64_t first, int level) {
    int used = 0, left = 0;
    int64_t half;
    if (count == 0) return 0;
    if (count == 1) return sprintf(text, "%d", units[0]);
    half = first + ((int64_t)1 << (level - 1));
    while (left < count && units[left] < half) left++;
    if (left == 0) return tree_text(text, units, count, half, level - 1);
    if (left == count) return tree_text(text, units, count, first, level - 1);
    used += sprintf(text, "(");
    used += tree_text(text + used, units, left, first, level - 1);
    used += sprintf(text + used, "+");
    used += tree_text(text + used, units + left, count - left, half, level - 1);
    return used + sprintf(text + used, ")");
}

/* The same through attn__fold: runs first, then their leftovers. */
static void fold_text(char *text, const attn__strip *s, const int32_t *cuts, int runs) {
    static char states[80][4096], stack[80][4096];
    attn__fold all = { -1, 0, { 0 } }, run;
    int i, j, k;
    for (i = 0; i < runs; i++) {
        run.before = cuts[i] > 0 ? attn__unit_at(s, cuts[i] - 1) : -1;
        run.depth = 0;
        for (j = cuts[i]; j < cuts[i + 1]; j++) {
            sprintf(states[run.depth], "%d", attn__unit_at(s, j));
            run.unit[run.depth++] = attn__unit_at(s, j);
            while (attn__fold_step(&run, j + 1 < s->units ? attn__unit_at(s, j + 1) : -1)) {
                char joined[8300];
                sprintf(joined, "(%s+%s)", states[run.depth - 1], states[run.depth]);
                strcpy(states[run.depth - 1], joined);
            }
        }
        for (k = 0; k < run.depth; k++) {
            while (attn__fold_step(&all, run.unit[k])) {
                char joined[8300];
                sprintf(joined, "(%s+%s)", stack[all.depth - 1], stack[all.depth]);
                strcpy(stack[all.depth - 1], joined);
            }
            strcpy(stack[all.depth], states[k]);
            all.unit[all.depth++] = run.unit[k];
        }
    }
    while (attn__fold_step(&all, -1)) {
        char joined[8300];
        sprintf(joined, "(%s+%s)", stack[all.depth - 1], stack[all.depth]);
        strcpy(stack[all.depth - 1], joined);
    }
    strcpy(text, all.depth == 1 ? stack[0] : "more than one state is left");
}

static void test_tree(void) {
    test_rng r = { 2 };
    int i;
    for (i = 0; i < test_draws(4000); i++) {
        attn__strip s = { 0, 0, 1, 0, 1, 0, 0, 0 };
        int32_t units[200], cuts[202], u, runs = 0;
        char wanted[4096], got[4096];
        s.lead = test_range(&r, 0, 9) ? 0 : test_range(&r, 1, 5);
        s.unit = s.lead + (test_range(&r, 0, 1) ? test_range(&r, 0, 70) : 0);
        s.units = s.lead + test_range(&r, 1, 60);
        for (u = 0; u < s.units; u++) units[u] = attn__unit_at(&s, u);
        cuts[0] = 0;
        for (u = 1; u < s.units; u++) {
            if (!test_range(&r, 0, 6)) cuts[++runs] = u;
        }
        cuts[++runs] = s.units;
        tree_text(wanted, units, s.units, 0, 8);
        fold_text(got, &s, cuts, runs);
        CHECK(!strcmp(wanted, got), "case %d: %s instead of %s", i, got, wanted);
    }
}

/* ideal / makespan of the cut in units of 128 keys, one more for each piece, as in attention on 132 processors. All
   strips are 16 rows of one kv head here, so a unit costs 4 + 16 in the plan's own measure. */
static double efficiency(const planned *p) {
    enum { WORKERS = 132, COST = 20 };
    double load[WORKERS] = { 0 }, longest = 0;
    int64_t total = 0, at = 0, quota;
    int i;
    for (i = 0; i < p->plan.tasks; i++) total += task_of(p, i)[2] - task_of(p, i)[1];
    quota = (total * COST + WORKERS - 1) / WORKERS;
    for (i = 0; i < p->plan.tasks; i++) {
        const int32_t *t = task_of(p, i);
        double *worker = &load[at * COST / quota];
        CHECK((at + (t[2] - t[1]) - 1) * COST / quota == at * COST / quota, "task %d spans two runs", i);
        *worker += 2.0 * (t[2] - t[1]) + 1;
        if (*worker > longest) longest = *worker;
        at += t[2] - t[1];
    }
    return 2.0 * (double)total / WORKERS / longest;
}

static void check_balance(int n, const int32_t *kv_len, double wanted) {
    planned p;
    double reached;
    int i;
    clear(&p);
    p.batch.n = n;
    p.layer.heads = 128;
    p.layer.kv_heads = 8;
    p.layer.head_dim = 8;
    p.layer.row_tile = 16;
    p.layer.workers = 132;
    for (i = 0; i < n; i++) {
        p.q_len[i] = 1;
        p.kv_len[i] = kv_len[i];
        p.phase[i] = ATTN_DECODE;
    }
    if (!make(&p)) return;
    reached = efficiency(&p);
    CHECK(reached >= wanted, "%d requests, the first of %d keys: %.2f", n, kv_len[0], reached);
    free(p.plan.words);
}

static void test_balance(void) {
    int32_t kv[64];
    test_rng r = { 3 };
    int i;
    for (i = 0; i < 64; i++) kv[i] = 8192;
    check_balance(16, kv, 0.8);
    check_balance(17, kv, 0.8);
    check_balance(20, kv, 0.8);
    for (i = 0; i < 32; i++) kv[i] = test_range(&r, 1, 16384);
    check_balance(32, kv, 0.8);
    kv[0] = 65536;
    for (i = 1; i < 64; i++) kv[i] = 1024;
    check_balance(64, kv, 0.8);
    kv[0] = 32768;
    check_balance(1, kv, 0.8);
    kv[0] = 4096;
    check_balance(1, kv, 0.6);
}

/* Scratch grows with lanes and workers, not with the number of requests. */
static void test_workspace(void) {
    size_t bytes[3];
    int i;
    static const int32_t counts[] = { 20, 100, 300 };
    for (i = 0; i < 3; i++) {
        planned p;
        int j;
        clear(&p);
        p.batch.n = counts[i];
        p.batch.max_q_len = 4;
        p.batch.max_kv_len = 16384;
        p.layer.heads = 32;
        p.layer.kv_heads = 8;
        p.layer.head_dim = 128;
        for (j = 0; j < counts[i]; j++) {
            p.q_len[j] = 1;
            p.kv_len[j] = 5000 + 37 * j;
            p.phase[j] = ATTN_DECODE;
        }
        if (!make(&p)) return;
        bytes[i] = attn_exec_bytes(&p.plan, 2);
        free(p.plan.words);
    }
    CHECK(bytes[0] == bytes[1] && bytes[1] == bytes[2], "%zu, %zu, %zu bytes", bytes[0], bytes[1], bytes[2]);
}

/* A plan belongs to the smallest buffer that attn_plan_bytes promises, for any batch within the capacities. */
static void test_capacities(void) {
    test_rng r = { 4 };
    int i, j;
    for (i = 0; i < 300; i++) {
        planned p;
        size_t bytes, exec;
        void *mem;
        draw(&p, &r);
        p.batch.max_q_len = 200;
        p.batch.max_kv_len = 8000;
        p.batch.max_rows = 200 * 20;
        bytes = attn_plan_bytes(&p.batch, &p.layer);
        mem = malloc(bytes);
        exec = 0;
        for (j = 0; j < 5; j++) {
            int k;
            for (k = 0; k < p.batch.n; k++) {
                p.kv_len[k] = test_range(&r, 0, 8000);
                p.q_len[k] = test_range(&r, 0, p.kv_len[k] < 200 ? p.kv_len[k] : 200);
            }
            CHECK(!attn_plan_make(&p.plan, &p.batch, &p.layer, mem, bytes, &p.error), "%s", p.error.text);
            if (j) CHECK(attn_exec_bytes(&p.plan, 3) == exec, "scratch of another step");
            exec = attn_exec_bytes(&p.plan, 3);
            check_cover(&p);
        }
        free(mem);
    }
}

/* The most rows that int32 holds, in both phases: row counters must not wrap. */
static void test_many_rows(void) {
    int phase;
    for (phase = ATTN_PREFILL; phase <= ATTN_DECODE; phase++) {
        planned p;
        clear(&p);
        p.batch.n = 1;
        p.q_len[0] = INT32_MAX - 10;
        p.kv_len[0] = 1;
        p.phase[0] = phase;
        p.layer.heads = 1;
        p.layer.head_dim = 1;
        p.layer.row_tile = 256;
        p.layer.mask = ATTN_FULL;
        if (!make(&p)) return;
        CHECK(p.plan.strips == 8388608, "%d strips", p.plan.strips);
        check_rows(&p);
        free(p.plan.words);
    }
}

int main(int argc, char **argv) {
    test.only = argc > 1 ? argv[1] : NULL;
    test_run("every row and unit is planned once, within the bounds", test_cover);
    test_run("the merge tree, cut anywhere, is the recursive one", test_tree);
    test_run("the cut of decode work is balanced", test_balance);
    test_run("scratch does not grow with the number of requests", test_workspace);
    test_run("one buffer serves every batch within the capacities", test_capacities);
    test_run("2^31 rows", test_many_rows);
    return test_close("plan");
}
