/* cuda_plan.c - plans and metadata made on the device: byte for byte those of attn.h, the same sentences where lengths
   are wrong, and all of it again when a captured graph is replayed with other lengths.
   Arguments: part of a test's name, number of random batches, seed. */
#include "../attn_cuda.h"
#include "cuda_test.h"

enum { MAX_N = 5000, POISON = 0xFF };

static int random_cases = 300;
static uint64_t random_seed = 1;

/* ---- a step and its copy on the device --------------------------------------------------------------------------- */

typedef struct step {
    attn_batch batch;
    attn_layer layer;
    int32_t q_len[MAX_N], kv_len[MAX_N], phase[MAX_N], prefix[MAX_N];
} step;

/* Addresses that stay, as a captured graph needs them. */
typedef struct device_memory {
    int32_t *arrays[4];
    void *words;
    size_t bytes;
} device_memory;

static device_memory device;

/* Two buffers of the host that grow and are used again: fresh pages would cost more than the tests. */
static void *host_words(int which, size_t bytes) {
    static void *buffers[2];
    static size_t sizes[2];
    if (bytes + 1 > sizes[which]) {
        free(buffers[which]);
        buffers[which] = malloc(bytes + 1);
        sizes[which] = bytes + 1;
    }
    memset(buffers[which], POISON, bytes + 1);
    return buffers[which];
}

static void *device_words(size_t bytes) {
    if (bytes > device.bytes) {
        gpu_free(device.words);
        device.words = gpu_alloc(bytes);
        device.bytes = bytes;
    }
    gpu_fill(device.words, POISON, bytes);
    return device.words;
}

static int32_t *on_device(int which, const int32_t *from, int32_t n) {
    if (!from) return NULL;
    if (!device.arrays[which]) device.arrays[which] = (int32_t *)gpu_alloc(MAX_N * sizeof(int32_t));
    gpu_write(device.arrays[which], from, (size_t)n * sizeof *from);
    return device.arrays[which];
}

static attn_batch device_batch(const step *s) {
    attn_batch b = s->batch;
    b.q_len = on_device(0, b.q_len, b.n);
    b.kv_len = on_device(1, b.kv_len, b.n);
    b.phase = on_device(2, b.phase, b.n);
    b.prefix = on_device(3, b.prefix, b.n);
    return b;
}

static void release_device(void) {
    int i;
    for (i = 0; i < 4; i++) gpu_free(device.arrays[i]);
    gpu_free(device.words);
    memset(&device, 0, sizeof device);
}

static void open_step(step *s, int n) {
    memset(s, 0, sizeof *s);
    s->batch.n = n;
    s->batch.q_len = s->q_len;
    s->batch.kv_len = s->kv_len;
    s->batch.phase = s->phase;
    s->layer.heads = s->layer.kv_heads = 1;
    s->layer.head_dim = 8;
    s->layer.row_tile = 16;
    s->layer.key_tile = 64;
    s->layer.workers = 16;
}

/* The smallest capacities that hold the lengths, plus so much. */
static void fit_capacities(step *s, int more) {
    int64_t rows = 0;
    int i, most = 1, longest = 1;
    for (i = 0; i < s->batch.n; i++) {
        int q = s->batch.q_len ? s->q_len[i] : 1;
        if (q > most) most = q;
        if (s->kv_len[i] > longest) longest = s->kv_len[i];
        rows += q;
    }
    s->batch.max_q_len = most + more;
    s->batch.max_kv_len = longest + more;
    s->batch.max_rows = rows + more + !rows;
}

/* ---- the comparison of plans ------------------------------------------------------------------------------------- */

/* Which array of a plan a word belongs to. */
static const char *region_of(const int32_t *words, int32_t n, size_t word) {
    if (word < 32) return "header";
    if (word < 32 + (size_t)n + 1) return "q_start";
    if (word < 32 + 2 * (size_t)n + 2) return "kv_start";
    if (word < 32 + 3 * (size_t)n + 2) return "phase";
    if (word < (size_t)words[13]) return "prefix";
    if (word < (size_t)words[14]) return "strips";
    return word < (size_t)words[15] ? "tasks" : "merges";
}

/* Both buffers were full of 0xFF, so this also compares what lies past the counts. */
static int same_words(const int32_t *host, const void *words, size_t bytes, int32_t n) {
    int32_t *got = (int32_t *)host_words(1, bytes);
    size_t i = 0;
    gpu_read(got, words, bytes);
    if (!memcmp(got, host, bytes)) return 1;
    while (got[i] == host[i]) i++;
    CHECK(0, "word %lu (%s) is %d, not %d", (unsigned long)i, region_of(host, n, i), got[i], host[i]);
    return 0;
}

/* What the device found wrong with the lengths of a plan. */
static int plan_error(const attn_plan *plan, attn_error *error) {
    attn_exec exec;
    memset(&exec, 0, sizeof exec);
    exec.stream = gpu.stream;
    return attn_cuda_error(gpu.cuda, plan, &exec, error);
}

/* Plans on both sides. The plan of the host is *plan, valid until the next one. */
static int same_plan(const step *s, attn_plan *plan) {
    attn_plan made;
    attn_error error;
    attn_batch batch = device_batch(s);
    size_t bytes = attn_plan_bytes(&s->batch, &s->layer);
    void *mem = host_words(0, bytes), *words = device_words(bytes);
    int good = !attn_plan_make(plan, &s->batch, &s->layer, mem, bytes, &error);
    CHECK(good, "%s", error.text);
    if (good && attn_cuda_plan_make(gpu.cuda, &made, &batch, &s->layer, words, bytes, gpu.stream, &error)) {
        CHECK(0, "%s", error.text);
        good = 0;
    }
    good = good && gpu_wait() && same_words((const int32_t *)mem, words, bytes, s->batch.n);
    if (good) CHECK(!plan_error(&made, &error), "%s", error.text);
    return good;
}

/* ---- random batches ---------------------------------------------------------------------------------------------- */

static int one_of(test_rng *r, const int *values, int count) { return values[test_range(r, 0, count - 1)]; }
#define COUNT_OF(...) ((int)(sizeof((const int[]){ __VA_ARGS__ }) / sizeof(int)))
#define ONE_OF(r, ...) one_of(r, (const int[]){ __VA_ARGS__ }, COUNT_OF(__VA_ARGS__))

static void draw_layer(attn_layer *l, test_rng *r, int longest) {
    l->kv_heads = test_range(r, 1, 9);
    l->heads = l->kv_heads * test_range(r, 1, 9);
    l->head_dim = 8;
    l->row_tile = ONE_OF(r, 16, 16, 16, 32, 48, 128, 256);
    l->key_tile = ONE_OF(r, 32, 64, 64, 96, 128);
    l->workers = test_range(r, 0, 3) ? test_range(r, 1, 300) : test_range(r, 1, 4);
    l->mask = (attn_mask)test_range(r, ATTN_CAUSAL, ATTN_TOPK);
    if (test_range(r, 0, 1)) l->window_left = test_range(r, 1, longest);
    if (test_range(r, 0, 2) == 0) l->window_right = test_range(r, 1, longest);
    if (test_range(r, 0, 2) == 0) l->sink_keys = test_range(r, 0, ONE_OF(r, 5, 600, 9000));
    if (l->mask == ATTN_TOPK) l->topk = test_range(r, 1, ONE_OF(r, 20, 2048));
    if (l->mask == ATTN_BLOCK) l->chunk = test_range(r, 1, 40);
    if (l->mask == ATTN_CAUSAL && !l->sink_keys && test_range(r, 0, 1)) l->chunk = test_range(r, 1, longest);
    if (l->window_left && !l->sink_keys && test_range(r, 0, 3) == 0) l->ring = l->window_left + 300;
    if (l->mask != ATTN_TOPK && test_range(r, 0, 2) == 0) {
        l->skip.mode = test_range(r, ATTN_SKIP_FACTOR, ATTN_SKIP_EPS);
        if (l->skip.mode != ATTN_SKIP_LAMBDA) l->skip.decode = 0.5f;
    }
    if (test_range(r, 0, 1)) l->split_keys = l->skip.mode ? ONE_OF(r, 2048, 4096) : ONE_OF(r, 256, 512, 1024);
    if (l->key_tile == 96 && (l->skip.mode || l->split_keys)) l->key_tile = 64;
}

static void draw_lengths(step *s, test_rng *r, int longest) {
    int i, few = test_range(r, 0, 2), alike = test_range(r, 0, 3) == 0;
    for (i = 0; i < s->batch.n; i++) {
        int q = test_range(r, 0, few) == 0 ? test_range(r, 0, 3) : test_range(r, 0, 250);
        if (s->batch.n > 100) q = test_range(r, 0, 3);
        s->kv_len[i] = alike ? longest : test_range(r, 0, 7) ? test_range(r, 0, longest) : test_range(r, 0, 5);
        if (test_range(r, 0, 9) == 0) q = s->kv_len[i] = 0;
        if (s->layer.mask != ATTN_FULL && q > s->kv_len[i]) q = s->kv_len[i];
        if (!s->batch.q_len && s->kv_len[i] == 0 && s->layer.mask != ATTN_FULL) s->kv_len[i] = 1;
        s->q_len[i] = q;
        s->phase[i] = test_range(r, 0, 1);
        s->prefix[i] = s->layer.mask == ATTN_PREFIX ? test_range(r, 0, s->kv_len[i]) : 0;
    }
}

/* Few, small numbers around the edges of units and groups, every unit a task: each edge of a span shows. */
static void draw_edges(step *s, test_rng *r) {
    attn_layer *l = &s->layer;
    int i;
    open_step(s, test_range(r, 2, 6));
    s->batch.prefix = s->prefix;
    l->mask = (attn_mask)test_range(r, ATTN_CAUSAL, ATTN_TOPK);
    l->kv_heads = 2;
    l->heads = 2 * test_range(r, 1, 3);
    l->workers = 300;
    l->split_keys = 256;
    l->window_left = ONE_OF(r, 0, 0, 0, 1, 100, 256, 257, 700);
    l->window_right = ONE_OF(r, 0, 0, 1, 100, 300, 900);
    l->sink_keys = ONE_OF(r, 0, 0, 1, 256, 700, 2300);
    if (l->mask == ATTN_BLOCK) l->chunk = ONE_OF(r, 1, 7, 100, 300);
    if (l->mask == ATTN_CAUSAL && test_range(r, 0, 1)) {
        l->chunk = ONE_OF(r, 90, 256, 1000, 1500);
        l->sink_keys = 0;
    }
    if (l->mask == ATTN_TOPK) l->topk = ONE_OF(r, 1, 256, 300, 2000);
    if (l->mask != ATTN_TOPK && test_range(r, 0, 2) == 0) {
        l->skip.mode = ATTN_SKIP_LAMBDA;
        l->split_keys = 2048;
    }
    for (i = 0; i < s->batch.n; i++) {
        s->kv_len[i] = ONE_OF(r, 0, 1, 255, 256, 257, 600, 1025, 2600);
        s->q_len[i] = ONE_OF(r, 1, 2, 100, 257, 300);
        if (l->mask != ATTN_FULL && s->q_len[i] > s->kv_len[i]) s->q_len[i] = s->kv_len[i];
        s->phase[i] = i & 1;
        s->prefix[i] = s->kv_len[i] * (i % 3) / 2;
    }
    i = s->kv_len[0] - s->q_len[0] - l->window_left + 1;
    if (i > 0 && !l->chunk && test_range(r, 0, 1)) l->sink_keys = i;   /* up to where the window starts */
    fit_capacities(s, 0);
}

static void draw(step *s, test_rng *r) {
    int longest = test_range(r, 1, 4) * test_range(r, 1, 5) * ONE_OF(r, 30, 300, 300, 3000);
    int arrays = test_range(r, 0, 5);
    open_step(s, test_range(r, 0, 24));
    if (test_range(r, 0, 39) == 0) s->batch.n = test_range(r, 1000, 2100);
    if (arrays == 1) s->batch.phase = NULL;
    if (arrays == 2) s->batch.q_len = NULL;
    if (arrays == 3) s->batch.q_len = s->batch.phase = NULL;
    draw_layer(&s->layer, r, longest);
    if (s->layer.mask == ATTN_PREFIX) s->batch.prefix = s->prefix;
    draw_lengths(s, r, longest);
    fit_capacities(s, test_range(r, 0, 1) * test_range(r, 0, 30));
}

/* What the batches must have held for the comparison to mean something. */
typedef struct tally {
    int mixed, merged, sinks, skipping, dear, rounds, empty, cut[6];
} tally;

static void count_case(tally *t, const step *s, const attn_plan *p) {
    const int32_t *words = p->words, *strips = words + words[13], *tasks = words + words[14];
    int i, phases = 0, per_unit = p->tasks > 20 && p->merges > 0;
    for (i = 0; i < p->strips; i++) {
        phases |= 1 << words[32 + 2 * p->n + 2 + strips[8 * i]];
        if (strips[8 * i + 5] > 0 && strips[8 * i + 6] > strips[8 * i + 5]) t->sinks++;
    }
    for (i = 0; i < p->tasks; i++) per_unit = per_unit && tasks[5 * i + 2] - tasks[5 * i + 1] <= 1;
    t->mixed += phases == 3;
    t->merged += p->merges > 0;
    t->skipping += s->layer.skip.mode && p->merges > 0;
    t->dear += per_unit;
    t->rounds += p->tasks > 1024 || p->strips > 1024 || p->n > 1024;
    t->empty += p->tasks == 0;
    t->cut[s->layer.mask] += p->merges > 0;
}

/* Sometimes with the blocks' warps in another order. */
static void set_order(int i) {
    char text[20];
    if (!gpu.is_simulated) return;
    snprintf(text, sizeof text, "%d", i % 5 ? 0 : i);
    gpu.ptxsim_set("PTXSIM_SEED", text);
}

static void test_random(void) {
    static step s;
    test_rng r = { random_seed };
    tally t;
    int i, mask, share = random_cases;
    if (!gpu_ready()) return;
    memset(&t, 0, sizeof t);
    for (i = 0; i < random_cases && test.bad < 5; i++) {
        attn_plan p;
        if (i % 2) draw(&s, &r);
        else draw_edges(&s, &r);
        set_order(i);
        if (!same_plan(&s, &p)) {
            printf("  case %d: mask %d, n %d\n", i, (int)s.layer.mask, s.batch.n);
            continue;
        }
        count_case(&t, &s, &p);
    }
    set_order(0);
    CHECK(t.mixed >= share / 8 && t.merged >= share / 3 && t.skipping >= share / 20 && t.sinks >= share / 10,
          "%d mixed, %d merged, %d skipping, %d sinks", t.mixed, t.merged, t.skipping, t.sinks);
    CHECK(t.dear >= share / 100 && t.rounds >= share / 30 && t.empty >= share / 100, "%d, %d, %d", t.dear, t.rounds,
          t.empty);
    for (mask = 0; mask < 6; mask++) CHECK(t.cut[mask] >= share / 60, "mask %d: %d cut", mask, t.cut[mask]);
}

/* ---- sizes ------------------------------------------------------------------------------------------------------- */

/* A prompt of 128k tokens; chunks of it; a million keys; thousands of requests. */
static void test_long(void) {
    static step s;
    attn_plan p;
    test_rng r = { 2 };
    int i;
    if (!gpu_ready()) return;
    open_step(&s, 1);
    s.layer.kv_heads = 8;
    s.layer.heads = 32;
    s.q_len[0] = s.kv_len[0] = 131072;
    s.layer.row_tile = 64;
    fit_capacities(&s, 0);
    if (same_plan(&s, &p)) CHECK(p.strips == 8 * 131072 * 4 / 64, "%d strips", p.strips);
    s.layer.row_tile = 16;
    s.layer.kv_heads = s.layer.heads = 2;
    s.layer.split_keys = 8192;
    s.layer.window_left = 4096;
    if (same_plan(&s, &p)) CHECK(p.tasks > 16384 && p.merges > 1000, "%d tasks, %d merges", p.tasks, p.merges);
    open_step(&s, 130);
    s.layer.kv_heads = 4;
    s.layer.heads = 32;
    s.layer.workers = 264;
    for (i = 0; i < 130; i++) {
        s.phase[i] = ATTN_DECODE;
        s.q_len[i] = i % 5;
        s.kv_len[i] = i % 3 ? 1000000 + i * 17 : 5 + i;
    }
    fit_capacities(&s, 3);
    if (same_plan(&s, &p)) CHECK(p.tasks >= 264 && p.slots > 1000, "%d tasks, %d slots", p.tasks, p.slots);
    open_step(&s, MAX_N);
    s.layer.kv_heads = 2;
    s.layer.heads = 8;
    for (i = 0; i < MAX_N; i++) {
        s.phase[i] = test_range(&r, 0, 3) > 0;
        s.q_len[i] = test_range(&r, 0, 3);
        s.kv_len[i] = s.q_len[i] + test_range(&r, 0, 4000);
    }
    fit_capacities(&s, 0);
    if (same_plan(&s, &p)) CHECK(p.strips > 5000 && p.merges > 5, "%d strips, %d merges", p.strips, p.merges);
}

/* Sums just below 2^31. */
static void test_extremes(void) {
    static step s;
    attn_plan p;
    int i;
    if (!gpu_ready()) return;
    open_step(&s, 1);
    s.layer.kv_heads = 3;
    s.layer.heads = 3;
    s.phase[0] = ATTN_DECODE;
    s.q_len[0] = 1;
    s.kv_len[0] = INT32_MAX;
    fit_capacities(&s, 0);
    same_plan(&s, &p);
    s.layer.skip.mode = ATTN_SKIP_LAMBDA;
    s.layer.window_left = 2000000000;
    s.layer.sink_keys = 100000;
    same_plan(&s, &p);
    open_step(&s, 4);
    s.layer.window_left = 5000;
    for (i = 0; i < 4; i++) {
        s.phase[i] = i & 1;
        s.q_len[i] = i;
        s.kv_len[i] = i < 3 ? 536870912 : 536870911;
    }
    fit_capacities(&s, 0);
    same_plan(&s, &p);
    open_step(&s, 1);               /* sink keys beyond where the right window ends */
    s.layer.mask = ATTN_FULL;
    s.layer.window_right = 1;
    s.layer.sink_keys = 900;
    s.layer.split_keys = 256;
    s.q_len[0] = s.kv_len[0] = 1100;
    fit_capacities(&s, 0);
    same_plan(&s, &p);
    open_step(&s, 0);
    fit_capacities(&s, 0);
    same_plan(&s, &p);
    open_step(&s, 1500);
    s.layer.skip.mode = ATTN_SKIP_LAMBDA;
    fit_capacities(&s, 1);
    same_plan(&s, &p);
}

/* ---- lengths that are wrong -------------------------------------------------------------------------------------- */

/* A rule of lengths, broken at one request. */
static void spoil(step *s, int rule, int i) {
    if (rule == 0) s->q_len[i] = -3;
    if (rule == 1) s->kv_len[i] = -7;
    if (rule == 2) s->phase[i] = 2;
    if (rule == 3) s->prefix[i] = s->kv_len[i] + 1;
    if (rule == 4) s->prefix[i] = -1;
    if (rule == 5) s->q_len[i] = s->kv_len[i] + 1;
    if (rule == 6) s->q_len[i] = s->batch.max_q_len + 1;
    if (rule == 7) s->kv_len[i] = s->batch.max_kv_len + 1;
    if (rule == 8) s->batch.max_rows = 1;
    if (rule == 9) s->q_len[i] = INT32_MIN;
    if (rule == 10) s->phase[i] = -1;
}

/* What a good plan of these capacities has in its header. */
static int32_t class_of(const step *s) {
    attn_batch batch = s->batch;
    int32_t zeros[MAX_N] = { 0 };
    attn_plan plan;
    size_t bytes = attn_plan_bytes(&batch, &s->layer);
    batch.q_len = batch.kv_len = batch.phase = batch.prefix = zeros;
    CHECK(!attn_plan_make(&plan, &batch, &s->layer, host_words(0, bytes), bytes, NULL), "no plan of zeros");
    return plan.words[16];
}

/* The plan is refused by both with the same words; on the device all but the header stays as it was. */
static void same_refusal(const step *s, const char *part) {
    attn_plan host, made;
    attn_error wanted, got;
    attn_batch batch = device_batch(s);
    size_t bytes = attn_plan_bytes(&s->batch, &s->layer), i;
    void *words = device_words(bytes);
    int32_t *after = (int32_t *)host_words(0, bytes);
    int32_t class_id = class_of(s);
    int status = attn_plan_make(&host, &s->batch, &s->layer, after, bytes, &wanted), found;
    CHECK(status == ATTN_E_BATCH && strstr(wanted.text, part), "status %d: %s", status, wanted.text);
    if (attn_cuda_plan_make(gpu.cuda, &made, &batch, &s->layer, words, bytes, gpu.stream, &got)) {
        CHECK(0, "%s", got.text);
        return;
    }
    found = plan_error(&made, &got);
    CHECK(found == status && !strcmp(wanted.text, got.text), "status %d: \"%s\" instead of \"%s\"", found, got.text,
          wanted.text);
    CHECK(wanted.request == got.request && wanted.slot == got.slot, "request %d, slot %d", got.request, got.slot);
    gpu_wait();
    gpu_read(after, words, bytes);
    for (i = 0; i < 24; i++) {
        int32_t word = i == 0 ? ATTN_VERSION : i == 1 ? s->batch.n : i == 16 ? class_id : 0;
        CHECK(after[i] == word, "header[%d] = %d", (int)i, after[i]);
    }
    for (i = 32; i < bytes / 4 && after[i] == -1; i++) continue;
    CHECK(i == bytes / 4, "word %lu was written", (unsigned long)i);
}

static void draw_valid(step *s, test_rng *r, int n) {
    int i;
    open_step(s, n);
    s->layer.mask = ATTN_PREFIX;
    s->batch.prefix = s->prefix;
    for (i = 0; i < n; i++) {
        s->kv_len[i] = test_range(r, 4, 500);
        s->q_len[i] = test_range(r, 0, 4);
        s->phase[i] = test_range(r, 0, 1);
        s->prefix[i] = test_range(r, 0, s->kv_len[i]);
    }
    fit_capacities(s, 5);
    s->batch.max_kv_len = 510;
}

static void test_bad_lengths(void) {
    static const char *const parts[] = { "is negative", "is negative", "is no attn_phase", "prefix[", "prefix[",
                                         "is less than q_len", "more than batch.max_q_len",
                                         "more than batch.max_kv_len", "more than batch.max_rows", "is negative",
                                         "is no attn_phase" };
    static step s;
    attn_plan p;
    test_rng r = { 3 };
    int rule, i;
    if (!gpu_ready()) return;
    for (rule = 0; rule < 11; rule++) {
        static const int places[] = { 0, 17, 1023, 1024, 2400 };
        for (i = 0; i < 5; i++) {
            int n = i < 2 ? 18 : 2500;
            draw_valid(&s, &r, n);
            if (rule == 6) {
                s.kv_len[places[i]] = s.batch.max_q_len + 1;
                s.prefix[places[i]] = 0;
            }
            spoil(&s, rule, places[i]);
            same_refusal(&s, parts[rule]);
            if (rule == 8) break;
        }
    }
    for (i = 0; i < 30; i++) {      /* several at once: the first request is named, and its first rule */
        int breaks = test_range(&r, 2, 4);
        draw_valid(&s, &r, test_range(&r, 1, 6));
        while (breaks--) spoil(&s, test_range(&r, 0, 10), test_range(&r, 0, s.batch.n - 1));
        if (s.batch.max_rows == 1) s.q_len[0] += 2;
        same_refusal(&s, "");
    }
    for (rule = 0; rule < 11; rule++) {     /* two that one thread looks at */
        draw_valid(&s, &r, 3000);
        spoil(&s, rule == 8 ? 0 : rule, 1500);
        spoil(&s, 1, 1500 + 1024);
        same_refusal(&s, "[1500]");
    }
    draw_valid(&s, &r, 40);
    same_plan(&s, &p);            /* into the memory that held a refused plan */
}

/* Sums above 2^31 - 1 are refused where they get there. */
static void test_bad_sums(void) {
    static step s;
    int i;
    if (!gpu_ready()) return;
    open_step(&s, 8);
    for (i = 0; i < 8; i++) s.kv_len[i] = s.q_len[i] = 536870912;
    for (i = 0; i < 8; i++) s.q_len[i] = 1;
    s.batch.max_q_len = 1;
    s.batch.max_kv_len = INT32_MAX;
    s.batch.max_rows = 8;
    same_refusal(&s, "kv_len[3] = 536870912: the sum");
    s.layer.mask = ATTN_FULL;
    for (i = 0; i < 8; i++) {
        s.q_len[i] = 1000000000;
        s.kv_len[i] = 3;
    }
    s.batch.max_q_len = 1000000000;
    s.batch.max_kv_len = 3;
    same_refusal(&s, "q_len[2] = 1000000000: the sum");
    s.q_len[2] = 5;
    s.q_len[3] = 3;
    for (i = 4; i < 8; i++) s.q_len[i] = 0;
    same_refusal(&s, "sum of q_len = 2000000008 is more than batch.max_rows = 8");
    for (i = 0; i < 2; i++) {       /* late, so that the sums of many requests add up */
        int j;
        open_step(&s, 3000);
        s.layer.mask = ATTN_FULL;
        for (j = 0; j < 3000; j++) {
            s.q_len[j] = i ? 0 : 1000000;
            s.kv_len[j] = i ? 1000000 : 0;
        }
        s.batch.max_q_len = s.batch.max_kv_len = 1000000;
        s.batch.max_rows = 8;
        same_refusal(&s, i ? "kv_len[2147] = 1000000: the sum" : "q_len[2147] = 1000000: the sum");
    }
}

/* ---- graphs ------------------------------------------------------------------------------------------------------ */

/* Captured once for 40 requests, then replayed for fewer, which are followed by pads, and with other lengths. */
static void test_graph(void) {
    static step s;
    attn_plan p;
    test_rng r = { 5 };
    attn_plan made;
    attn_error error;
    attn_batch batch;
    size_t bytes;
    void *words, *graph, *mem;
    int i, j;
    if (!gpu_ready()) return;
    open_step(&s, 40);
    s.layer.kv_heads = 2;
    s.layer.heads = 10;
    s.layer.window_left = 3000;
    s.layer.sink_keys = 300;
    s.batch.max_q_len = 60;
    s.batch.max_kv_len = 9000;
    s.batch.max_rows = 300;
    same_plan(&s, &p);            /* compiles, which a capture cannot */
    batch = device_batch(&s);
    bytes = attn_plan_bytes(&s.batch, &s.layer);
    words = device_words(bytes);
    gpu_record();
    CHECK(!attn_cuda_plan_make(gpu.cuda, &made, &batch, &s.layer, words, bytes, gpu.stream, &error), "%s", error.text);
    graph = gpu_recorded();
    for (i = 0; i < 12 && graph; i++) {
        attn_plan host;
        int used = i == 5 ? 0 : test_range(&r, 1, 40);
        memset(s.q_len, 0, sizeof s.q_len);
        memset(s.kv_len, 0, sizeof s.kv_len);
        for (j = 0; j < used; j++) {
            s.phase[j] = test_range(&r, 0, 1);
            s.q_len[j] = j ? test_range(&r, 0, 6) : test_range(&r, 1, 60);
            s.kv_len[j] = s.q_len[j] + test_range(&r, 0, 8000);
        }
        device_batch(&s);
        gpu_fill(words, POISON, bytes);
        mem = host_words(0, bytes);
        CHECK(!attn_plan_make(&host, &s.batch, &s.layer, mem, bytes, &error), "%s", error.text);
        gpu_replay(graph);
        gpu_wait();
        same_words((const int32_t *)mem, words, bytes, 40);
        CHECK(!plan_error(&made, &error), "%s", error.text);
    }
    s.kv_len[3] = -1;
    device_batch(&s);
    gpu_replay(graph);
    CHECK(plan_error(&made, &error) == ATTN_E_BATCH && error.request == 3, "%s", error.text);
    gpu_forget(graph);
}

/* One step of 64 layers, every other one windowed, captured and replayed: one plan kernel per class of layers serves
   all of them, and nothing is copied or waited for. What the layers compute is seen by other tests. */
static void test_step(void) {
    enum { LAYERS = 64, N = 3, HEADS = 1, DIM = 4, KEYS = 300, CACHE = N * KEYS * HEADS * DIM };
    static step s;
    static float zeros[CACHE];
    attn_layer layers[2];
    attn_plan plans[2];
    attn_exec execs[2];
    attn_error error;
    attn_batch batch;
    attn_io io;
    ptxsim_counters c;
    size_t bytes[2];
    void *words[2], *k, *v, *q, *o, *graph;
    int i, j;
    if (!gpu_ready()) return;
    if (!gpu.is_simulated) {
        test_skip("only the simulator counts what the driver does");
        return;
    }
    open_step(&s, N);
    s.layer.heads = s.layer.kv_heads = HEADS;
    s.layer.head_dim = DIM;
    CHECK(!attn_cuda_geometry(gpu.cuda, &s.layer, &error), "%s", error.text);
    for (i = 0; i < N; i++) {
        s.q_len[i] = 1;
        s.kv_len[i] = 20 + 120 * i;
        s.phase[i] = ATTN_DECODE;
    }
    s.batch.max_q_len = 1;
    s.batch.max_kv_len = KEYS;
    s.batch.max_rows = N;
    layers[0] = layers[1] = s.layer;
    layers[1].window_left = 100;
    batch = device_batch(&s);
    memset(&io, 0, sizeof io);
    memset(execs, 0, sizeof execs);
    k = io.k = gpu_upload(zeros, sizeof zeros);
    v = io.v = gpu_upload(zeros, sizeof zeros);
    q = gpu_upload(zeros, N * HEADS * DIM * sizeof(float));
    o = io.o = gpu_alloc(N * HEADS * DIM * sizeof(float));
    io.q = q;
    io.k_page = io.v_page = (int64_t)KEYS * HEADS * DIM;
    CHECK(!attn_cuda_prepare(gpu.cuda, layers, 2, -1, &error), "%s", error.text);
    for (i = 0; i < 2; i++) {
        bytes[i] = attn_plan_bytes(&s.batch, &layers[i]);
        words[i] = gpu_alloc(bytes[i]);
        CHECK(!attn_cuda_plan_make(gpu.cuda, &plans[i], &batch, &layers[i], words[i], bytes[i], gpu.stream, &error),
              "%s", error.text);
        execs[i].bytes = attn_cuda_exec_bytes(gpu.cuda, &plans[i]);
        execs[i].mem = gpu_alloc(execs[i].bytes);
        execs[i].stream = gpu.stream;
    }
    gpu_record();
    for (i = 0; i < 2; i++) {
        CHECK(!attn_cuda_plan_make(gpu.cuda, &plans[i], &batch, &layers[i], words[i], bytes[i], gpu.stream, &error),
              "%s", error.text);
    }
    for (i = 0; i < LAYERS; i++) {
        j = i % 2;
        CHECK(!attn_cuda_append(gpu.cuda, &plans[j], &layers[j], &io, q, q, &execs[j], &error), "%s", error.text);
        CHECK(!attn_cuda_forward(gpu.cuda, &plans[j], &layers[j], &io, &execs[j], &error), "%s", error.text);
    }
    graph = gpu_recorded();
    s.kv_len[0] = 17;
    device_batch(&s);
    gpu_wait();
    gpu.ptxsim_reset_counters();
    gpu_replay(graph);
    gpu.ptxsim_get_counters(&c);
    CHECK(c.copies_to_device == 0 && c.copies_to_host == 0 && c.synchronisations == 0 && c.allocations == 0,
          "%d and %d copies, %d waits, %d allocations", (int)c.copies_to_device, (int)c.copies_to_host,
          (int)c.synchronisations, (int)c.allocations);
    gpu_wait();
    gpu.ptxsim_get_counters(&c);
    CHECK(c.copies_to_device == 0 && c.bytes_to_host == 0, "copies while it ran");
    CHECK(gpu.ptxsim_launches("attn_cu_plan_make") == 2, "plans");
    CHECK(gpu.ptxsim_launches("attn_cu_forward") == LAYERS, "layers");
    gpu_forget(graph);
    for (i = 0; i < 2; i++) {
        CHECK(!attn_cuda_error(gpu.cuda, &plans[i], &execs[i], &error), "%s", error.text);
        gpu_free(words[i]);
        gpu_free(execs[i].mem);
    }
    gpu_free(k);
    gpu_free(v);
    gpu_free(q);
    gpu_free(o);
}

/* ---- metadata ---------------------------------------------------------------------------------------------------- */

enum { TOKENS = 40000 };

typedef struct tables {
    attn_meta_input in;
    int32_t *tokens;                /* [requests][req_to_token_row] */
    int32_t index[MAX_N];
} tables;

static void draw_tables(tables *t, const step *s, test_rng *r) {
    int i, row = s->batch.max_kv_len + test_range(r, 0, 3), requests = s->batch.n + test_range(r, 1, 3);
    memset(&t->in, 0, sizeof t->in);
    t->in.page_size = ONE_OF(r, 1, 1, 4, 16, 17, 64);
    t->in.topk = test_range(r, 1, ONE_OF(r, 30, 3000));
    t->in.requests = requests;
    t->in.req_to_token_row = row;
    t->tokens = (int32_t *)malloc((size_t)requests * (size_t)row * sizeof(int32_t));
    for (i = 0; i < requests * row; i++) t->tokens[i] = test_range(r, 0, 20) ? test_range(r, 0, TOKENS) : -1;
    for (i = 0; i < s->batch.n; i++) t->index[i] = test_range(r, 0, requests - 1);
    t->in.req_to_token = t->tokens;
    t->in.req_index = test_range(r, 0, 3) ? t->index : NULL;
}

/* The same on the device, until release_tables. */
static attn_meta_input device_tables(const tables *t, int n) {
    attn_meta_input in = t->in;
    size_t entries = (size_t)in.requests * (size_t)in.req_to_token_row;
    in.req_to_token = (const int32_t *)gpu_upload(t->tokens, entries * sizeof(int32_t));
    if (in.req_index) in.req_index = (const int32_t *)gpu_upload(t->index, (size_t)n * sizeof(int32_t));
    return in;
}

static void release_tables(const attn_meta_input *in) {
    gpu_free((void *)(uintptr_t)in->req_to_token);
    gpu_free((void *)(uintptr_t)in->req_index);
}

static int same_bytes(const void *wanted, const void *words, size_t bytes) {
    const int32_t *got = (const int32_t *)host_words(1, bytes), *as = (const int32_t *)wanted;
    size_t i = 0;
    gpu_read(host_words(1, bytes), words, bytes);
    if (!memcmp(got, wanted, bytes)) return 1;
    while (got[i] == as[i]) i++;
    CHECK(0, "word %lu of %lu is %d, not %d", (unsigned long)i, (unsigned long)(bytes / 4), got[i], as[i]);
    return 0;
}

/* The arrays stand at the same places of both buffers. */
static void same_places(const attn_meta *a, const void *mem, const attn_meta *b, const void *words) {
    const int32_t *here[] = { a->cu_seqlens_q, a->cu_seqlens_k, a->seqlens_expand, a->positions, a->row_request,
                              a->sparse_len, a->cu_sparse, a->indexer_ks, a->indexer_ke, a->topk_offset,
                              a->page_table, a->row_table, a->pad_row, a->unpad_row, a->pad_len,
                              a->row_q_len, a->row_kv_len };
    const int32_t *there[] = { b->cu_seqlens_q, b->cu_seqlens_k, b->seqlens_expand, b->positions, b->row_request,
                               b->sparse_len, b->cu_sparse, b->indexer_ks, b->indexer_ke, b->topk_offset,
                               b->page_table, b->row_table, b->pad_row, b->unpad_row, b->pad_len,
                               b->row_q_len, b->row_kv_len };
    size_t i;
    for (i = 0; i < sizeof here / sizeof here[0]; i++) {
        int same = !here[i] == !there[i];
        if (same && here[i]) same = here[i] - (const int32_t *)mem == there[i] - (const int32_t *)words;
        CHECK(same, "array %d", (int)i);
    }
    CHECK(a->table_row == b->table_row && a->bytes == b->bytes && a->n == b->n, "sizes");
}

/* host: what attn_meta_make is given instead of t, or NULL. wanted 0: the device must not write at all. */
static int same_meta(const step *s, const tables *t, const attn_meta_input *host, int want, int wanted) {
    attn_batch batch = device_batch(s);
    attn_meta_input in = device_tables(t, s->batch.n);
    size_t bytes = attn_meta_bytes(&s->batch, &t->in, want);
    void *mem = host_words(0, bytes), *words = device_words(bytes);
    attn_meta a, b;
    attn_error error;
    int status, good;
    status = attn_meta_make(&a, &s->batch, host ? host : &t->in, want, mem, bytes, &error);
    CHECK((status == 0) == wanted, "want %d: \"%s\"", want, error.text);
    status = attn_cuda_meta_make(gpu.cuda, &b, &batch, &in, want, words, bytes, gpu.stream, &error);
    CHECK(!status, "%s", error.text);
    good = !status && gpu_wait() && same_bytes(mem, words, bytes);
    if (good && wanted) same_places(&a, mem, &b, words);
    release_tables(&in);
    return good;
}

/* Any lengths: more rows than keys, pads, evicted tokens. */
static void draw_meta(step *s, test_rng *r) {
    int i, n = test_range(r, 0, 9) ? test_range(r, 0, 20) : test_range(r, 1000, 1100), longest = n > 20 ? 20 : 400;
    open_step(s, n);
    if (test_range(r, 0, 3) == 0) s->batch.q_len = NULL;
    s->batch.phase = NULL;
    for (i = 0; i < n; i++) {
        s->kv_len[i] = test_range(r, 0, longest);
        s->q_len[i] = test_range(r, 0, 1) ? test_range(r, 0, 4) : test_range(r, 0, n > 20 ? 4 : 60);
        if (test_range(r, 0, 7) == 0) s->q_len[i] = s->kv_len[i] = 0;
    }
    fit_capacities(s, test_range(r, 0, 1) * test_range(r, 1, 5));
}

static void test_meta_random(void) {
    static step s;
    static tables t;
    test_rng r = { random_seed };
    int i, beyond = 0, cases = random_cases / 3;
    if (!gpu_ready()) return;
    for (i = 0; i < cases && test.bad < 5; i++) {
        int want = i % 3 ? test_range(&r, 1, ATTN_META_ALL) : ATTN_META_ALL, j;
        draw_meta(&s, &r);
        draw_tables(&t, &s, &r);
        set_order(i);
        if (!same_meta(&s, &t, NULL, want, 1)) printf("  case %d: n %d, want %d\n", i, s.batch.n, want);
        for (j = 0; j < s.batch.n && s.batch.q_len; j++) beyond += s.q_len[j] > s.kv_len[j];
        free(t.tokens);
    }
    set_order(0);
    CHECK(beyond >= cases / 2, "%d requests with more rows than keys", beyond);
}

/* The vectors and traps that engines fell into: every array as attn.h has it, which tests/meta.c compares with the
   definitions. Lengths clamped at 0; top-k at 2047, 2048 and 2049; 0 rows; the last column of the longest context. */
static void test_meta_traps(void) {
    static const struct {
        int n, q[8], kv[8], max_q, max_kv, rows, topk, page;
    } cases[] = {
        { 2, { 3, 2 }, { 10, 4 }, 3, 10, 5, 9, 64 },
        { 4, { 0, 2, 0, 1 }, { 5, 2, 9, 1 }, 5, 12, 17, 2048, 64 },
        { 3, { 6, 4, 2 }, { 1, 1, 5 }, 6, 5, 12, 4, 1 },
        { 1, { 6 }, { 1 }, 6, 1, 6, 2048, 64 },
        { 4, { 0, 3, 1, 5 }, { 9, 8, 7, 6 }, 5, 9, 9, 3, 2 },
        { 3, { 1, 1, 1 }, { 2047, 2048, 2049 }, 1, 2049, 3, 2048, 64 },
        { 3, { 4, 2, 3 }, { 2050, 2048, 2048 }, 4, 2050, 9, 2048, 32 },
        { 1, { 4 }, { 4100 }, 4, 4100, 4, 2048, 64 },
        { 2, { 2, 2 }, { 4095, 4097 }, 4, 4097, 8, 2048, 32 },
        { 3, { 0, 0, 0 }, { 0, 0, 0 }, 4, 50, 9, 5, 16 },
        { 0, { 0 }, { 0 }, 4, 50, 9, 5, 16 },
        { 8, { 1, 0, 1, 0, 1, 1, 0, 1 }, { 1, 0, 64, 0, 65, 63, 0, 128 }, 1, 128, 8, 64, 64 },
    };
    static step s;
    static tables t;
    test_rng r = { 8 };
    size_t c;
    int i, bit;
    if (!gpu_ready()) return;
    for (c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        open_step(&s, cases[c].n);
        s.batch.phase = NULL;
        for (i = 0; i < cases[c].n; i++) {
            s.q_len[i] = cases[c].q[i];
            s.kv_len[i] = cases[c].kv[i];
        }
        s.batch.max_q_len = cases[c].max_q;
        s.batch.max_kv_len = cases[c].max_kv;
        s.batch.max_rows = cases[c].rows;
        draw_tables(&t, &s, &r);
        t.in.topk = cases[c].topk;
        t.in.page_size = cases[c].page;
        same_meta(&s, &t, NULL, ATTN_META_ALL, 1);
        for (bit = 1; bit < ATTN_META_ALL; bit *= 2) same_meta(&s, &t, NULL, bit, 1);
        free(t.tokens);
    }
}

/* A request outside of the table of tokens, or longer than its rows, has no pages; the others keep theirs. */
static void test_meta_outside(void) {
    static step s;
    static tables t;
    test_rng r = { 9 };
    int i;
    if (!gpu_ready()) return;
    for (i = 0; i < 20; i++) {
        int32_t bad = test_range(&r, 0, 5), past = test_range(&r, 0, 1), *tokens;
        attn_meta_input host;
        int64_t row, j;
        open_step(&s, 6);
        for (j = 0; j < 6; j++) {
            s.kv_len[j] = test_range(&r, 1, 90);
            s.q_len[j] = test_range(&r, 0, 3);
        }
        s.batch.phase = NULL;
        fit_capacities(&s, 20);
        draw_tables(&t, &s, &r);
        row = t.in.req_to_token_row;
        t.in.req_index = t.index;
        /* the host sees one more row of tokens, all evicted, and the bad request points to it */
        tokens = (int32_t *)malloc((size_t)((t.in.requests + 1) * row) * sizeof *tokens);
        memcpy(tokens, t.tokens, (size_t)(t.in.requests * row) * sizeof *tokens);
        for (j = 0; j < row; j++) tokens[t.in.requests * row + j] = -1;
        host = t.in;
        host.req_to_token = tokens;
        host.requests++;
        t.index[bad] = past ? t.in.requests : -1 - i;
        {
            int32_t index[6];
            memcpy(index, t.index, sizeof index);
            index[bad] = t.in.requests;
            host.req_index = index;
            same_meta(&s, &t, &host, ATTN_META_ALL, 1);
        }
        free(tokens);
        free(t.tokens);
    }
    open_step(&s, 2);               /* a context as long as the table's rows, and one key more */
    s.batch.phase = NULL;
    for (i = 0; i < 2; i++) {
        attn_meta_input host;
        int32_t tokens[40], j;
        s.q_len[0] = s.q_len[1] = 1;
        s.kv_len[0] = 5;
        s.kv_len[1] = 8 + i;
        fit_capacities(&s, 0);
        draw_tables(&t, &s, &r);
        free(t.tokens);
        t.tokens = tokens;
        t.in.req_to_token = tokens;
        t.in.req_to_token_row = 8;
        t.in.requests = 2;
        t.in.req_index = NULL;
        t.in.page_size = 2;
        for (j = 0; j < 40; j++) tokens[j] = j;
        host = t.in;
        if (i) {
            static int32_t wide[18];
            for (j = 0; j < 18; j++) wide[j] = j < 8 ? j : -1;
            host.req_to_token = wide;
            host.req_to_token_row = 9;
        }
        same_meta(&s, &t, &host, ATTN_META_ALL, 1);
    }
}

/* Lengths that cannot be: nothing is written. */
static void test_meta_refused(void) {
    static step s;
    static tables t;
    test_rng r = { 10 };
    int i;
    if (!gpu_ready()) return;
    for (i = 0; i < 7; i++) {
        int n = i % 2 ? 3 : 1500, at = i % 2 ? 2 : i % 4 ? 1400 : 100, j;
        open_step(&s, n);
        s.batch.phase = NULL;
        for (j = 0; j < n; j++) s.q_len[j] = s.kv_len[j] = 2;
        fit_capacities(&s, 0);
        draw_tables(&t, &s, &r);
        t.in.topk = 5;
        if (i == 0) s.q_len[at] = -1;
        if (i == 1) s.kv_len[at] = -1;
        if (i == 2) s.q_len[at] = 3;
        if (i == 3) s.kv_len[at] = 3;
        if (i == 4) s.batch.max_rows = 2 * n - 1;
        if (i == 5) s.q_len[0] = INT32_MIN;
        if (i == 6) s.kv_len[at] = INT32_MAX;
        same_meta(&s, &t, NULL, ATTN_META_ALL, 0);
        free(t.tokens);
    }
    open_step(&s, 3);               /* sums and padded lengths above 2^31 - 1; one less is fine */
    s.batch.phase = NULL;
    memset(&t, 0, sizeof t);
    t.in.topk = INT32_MAX;
    s.batch.max_q_len = 2;
    s.batch.max_kv_len = INT32_MAX;
    s.batch.max_rows = 4;
    for (i = 0; i < 6; i++) {
        static const int wants[] = { ATTN_META_CU_SEQLENS, ATTN_META_SPARSE, ATTN_META_PAD };
        s.q_len[0] = s.q_len[1] = s.q_len[2] = 1;
        s.kv_len[0] = s.kv_len[1] = 1000000000;
        s.kv_len[2] = 147483647 + i % 2;
        if (i / 2 == 1) {           /* two rows of 2^30 and 2^30 - 1 keys fit, more do not */
            s.q_len[0] = 2;
            s.kv_len[0] = 1073741824;
            s.kv_len[1] = s.kv_len[2] = i % 2;
        }
        if (i / 2 == 2) {
            s.q_len[0] = 0;
            s.kv_len[0] = INT32_MAX - 2 + i % 2;
            s.kv_len[1] = s.kv_len[2] = 0;
        }
        same_meta(&s, &t, NULL, wants[i / 2], i % 2 == 0);
    }
}

/* Metadata recorded in a graph, and what attn_meta_make has written so far. */
typedef struct captured {
    attn_meta made;
    attn_meta_input in;
    void *words, *mem, *graph;
    size_t bytes;
} captured;

static void capture(captured *c, const step *s, const tables *t) {
    attn_error error;
    attn_batch batch;
    same_meta(s, t, NULL, ATTN_META_ALL, 1);    /* compiles, which a capture cannot */
    batch = device_batch(s);
    c->in = device_tables(t, s->batch.n);
    c->bytes = attn_meta_bytes(&s->batch, &t->in, ATTN_META_ALL);
    c->words = device_words(c->bytes);
    c->mem = host_words(0, c->bytes);
    gpu_record();
    CHECK(!attn_cuda_meta_make(gpu.cuda, &c->made, &batch, &c->in, ATTN_META_ALL, c->words, c->bytes, gpu.stream,
                               &error), "%s", error.text);
    c->graph = gpu_recorded();
}

/* With other lengths and table rows; both buffers still carry what the steps before left. */
static void replay(const captured *c, const step *s, const tables *t) {
    attn_meta host;
    attn_error error;
    device_batch(s);
    gpu_write((void *)(uintptr_t)c->in.req_index, t->index, (size_t)s->batch.n * sizeof(int32_t));
    CHECK(!attn_meta_make(&host, &s->batch, &t->in, ATTN_META_ALL, c->mem, c->bytes, &error), "%s", error.text);
    gpu_replay(c->graph);
    gpu_wait();
    same_bytes(c->mem, c->words, c->bytes);
}

/* Captured for 12 requests, replayed for fewer: stale tails stay, strides are the captured ones. */
static void test_meta_graph(void) {
    static step s;
    static tables t;
    test_rng r = { 11 };
    captured c;
    int i, j;
    if (!gpu_ready()) return;
    open_step(&s, 12);
    s.batch.phase = NULL;
    s.batch.max_q_len = 7;
    s.batch.max_kv_len = 200;
    s.batch.max_rows = 60;
    draw_tables(&t, &s, &r);
    t.in.req_index = t.index;
    capture(&c, &s, &t);
    for (i = 0; i < 10; i++) {
        int used = test_range(&r, 0, 12);
        memset(s.q_len, 0, sizeof s.q_len);
        memset(s.kv_len, 0, sizeof s.kv_len);
        for (j = 0; j < used; j++) {
            s.q_len[j] = test_range(&r, 0, 5);
            s.kv_len[j] = test_range(&r, 0, 200);
        }
        for (j = 0; j < 12; j++) t.index[j] = test_range(&r, 0, t.in.requests - 1);
        replay(&c, &s, &t);
    }
    release_tables(&c.in);
    free(t.tokens);
    gpu_forget(c.graph);
}

/* Drafts over long contexts, round after round in the same buffers: page tables as wide as the longest context. */
static void test_meta_rounds(void) {
    static const int32_t rounds[][4] = {
        { 64, 128, 2048, 65530 }, { 63, 129, 65539, 100001 }, { 128, 61, 2051, 1023 }, { 131072, 6, 0, 2047 }
    };
    static step s;
    static tables t;
    test_rng r = { 12 };
    captured c;
    int i, j;
    if (!gpu_ready()) return;
    open_step(&s, 4);
    s.batch.phase = NULL;
    s.batch.max_q_len = 6;
    s.batch.max_kv_len = 131072;
    s.batch.max_rows = 24;
    draw_tables(&t, &s, &r);
    t.in.req_index = t.index;
    t.in.page_size = 64;
    t.in.topk = 2048;
    capture(&c, &s, &t);
    for (i = 0; i < 4; i++) {
        for (j = 0; j < 4; j++) {
            s.kv_len[j] = rounds[i][j];
            s.q_len[j] = s.kv_len[j] ? 6 : 0;
            t.index[j] = (i + j) % 4;
        }
        replay(&c, &s, &t);
    }
    release_tables(&c.in);
    free(t.tokens);
    gpu_forget(c.graph);
}

/* ---- rows as requests -------------------------------------------------------------------------------------------- */

enum { R_N = 4, R_ROWS = 14, R_KEYS = 600, R_PAGE = 16, R_COLUMNS = (R_KEYS + R_PAGE - 1) / R_PAGE };
enum { R_HEADS = 4, R_KV_HEADS = 2, R_DIM = 8, R_OUT = R_ROWS * R_HEADS * R_DIM };
enum { R_WANT = ATTN_META_PAGE_TABLE | ATTN_META_ROW_TABLE, R_CACHE = R_N * R_COLUMNS * R_PAGE * R_KV_HEADS * R_DIM };

/* A step of drafts on the device: metadata, then a plan of the batch (0) and one of its rows (1), each with its own
   attention. */
typedef struct row_step {
    attn_batch batch[2];
    attn_meta meta;
    attn_meta_input in;
    attn_plan plan[2];
    attn_io io[2];
    attn_exec exec[2];
    void *arrays, *words[2], *cache, *q, *o[2];
    size_t array_bytes, bytes[2];
} row_step;

static void launch_rows(row_step *x, const attn_layer *layer) {
    attn_error error;
    int i, status = attn_cuda_meta_make(gpu.cuda, &x->meta, &x->batch[0], &x->in, R_WANT, x->arrays, x->array_bytes,
                                        gpu.stream, &error);
    x->batch[1] = x->meta.row_batch;
    x->io[0].page_table = x->meta.page_table;
    x->io[1].page_table = x->meta.row_table;
    for (i = 0; i < 2 && !status; i++) {
        if (!x->words[i]) {
            x->bytes[i] = attn_plan_bytes(&x->batch[i], layer);
            x->words[i] = gpu_alloc(x->bytes[i]);
        }
        status = attn_cuda_plan_make(gpu.cuda, &x->plan[i], &x->batch[i], layer, x->words[i], x->bytes[i], gpu.stream,
                                     &error);
        if (!status && !x->exec[i].mem) {
            x->exec[i].bytes = attn_cuda_exec_bytes(gpu.cuda, &x->plan[i]);
            x->exec[i].mem = gpu_alloc(x->exec[i].bytes);
            x->exec[i].stream = gpu.stream;
        }
        if (!status) status = attn_cuda_forward(gpu.cuda, &x->plan[i], layer, &x->io[i], &x->exec[i], &error);
    }
    CHECK(!status, "%s", error.text);
}

static void open_rows(row_step *x, step *s, tables *t, int windowed) {
    static float data[R_CACHE];
    test_rng r = { 13 };
    attn_error error;
    int i;
    memset(x, 0, sizeof *x);
    open_step(s, R_N);
    s->layer.heads = R_HEADS;
    s->layer.kv_heads = R_KV_HEADS;
    s->layer.page_size = R_PAGE;
    s->layer.window_left = windowed ? 270 : 0;
    s->layer.sink_keys = windowed ? 20 : 0;
    s->batch.max_q_len = 5;
    s->batch.max_kv_len = R_KEYS;
    s->batch.max_rows = R_ROWS;
    for (i = 0; i < R_N; i++) s->phase[i] = ATTN_DECODE;
    CHECK(!attn_cuda_geometry(gpu.cuda, &s->layer, &error), "%s", error.text);
    CHECK(!attn_cuda_prepare(gpu.cuda, &s->layer, 1, -1, &error), "%s", error.text);
    draw_tables(t, s, &r);
    t->in.page_size = R_PAGE;
    t->in.requests = R_N;
    t->in.req_to_token_row = R_COLUMNS * R_PAGE;
    t->in.req_index = NULL;
    free(t->tokens);
    t->in.req_to_token = t->tokens = (int32_t *)malloc(R_N * R_COLUMNS * R_PAGE * sizeof(int32_t));
    for (i = 0; i < R_N * R_COLUMNS * R_PAGE; i++) {
        t->tokens[i] = i / R_PAGE * 37 % (R_N * R_COLUMNS) * R_PAGE + i % R_PAGE;   /* 37 and 4 * 38 have no divisor */
    }
    for (i = 0; i < R_CACHE; i++) data[i] = test_uniform(&r);
    x->batch[0] = device_batch(s);
    x->in = device_tables(t, R_N);
    x->array_bytes = attn_meta_bytes(&s->batch, &t->in, R_WANT);
    x->arrays = gpu_alloc(x->array_bytes);
    x->cache = gpu_upload(data, sizeof data);
    x->q = gpu_upload(data, R_OUT * sizeof(float));
    for (i = 0; i < 2; i++) {
        x->o[i] = gpu_alloc(R_OUT * sizeof(float));
        x->io[i].q = x->q;
        x->io[i].k = x->io[i].v = x->cache;
        x->io[i].o = x->o[i];
        x->io[i].pages = R_N * R_COLUMNS;
    }
}

/* The words of the rows' plan are those of attn.h, and the rows have the bits of the batch's own plan; pads write
   nothing. */
static void same_rows(const row_step *x, const step *s, const tables *t, int number) {
    static float o[2][R_OUT];
    attn_error error;
    attn_meta here;
    attn_plan host;
    void *arrays = malloc(x->array_bytes), *mem = host_words(0, x->bytes[1]);
    int i, rows;
    CHECK(!attn_meta_make(&here, &s->batch, &t->in, R_WANT, arrays, x->array_bytes, &error), "%s", error.text);
    CHECK(!attn_plan_make(&host, &here.row_batch, &s->layer, mem, x->bytes[1], &error), "%s", error.text);
    rows = here.rows * R_HEADS;
    for (i = 0; i < 2; i++) {
        CHECK(!attn_cuda_error(gpu.cuda, &x->plan[i], &x->exec[i], &error), "%s", error.text);
        gpu_read(o[i], x->o[i], sizeof o[i]);
    }
    gpu_wait();
    same_words((const int32_t *)mem, x->words[1], x->bytes[1], R_ROWS);
    CHECK(!memcmp(o[0], o[1], (size_t)rows * R_DIM * sizeof(float)), "replay %d: other bits", number);
    for (i = 0; i < rows; i++) CHECK(o[1][i * R_DIM] == o[1][i * R_DIM], "replay %d: head %d is missing", number, i);
    for (i = rows * R_DIM; i < R_OUT; i++) CHECK(o[1][i] != o[1][i], "replay %d: element %d of a pad", number, i);
    free(arrays);
}

/* Captured once, then replayed with other lengths, row counts and pads. */
static void test_row_batch(void) {
    static const int32_t steps[][2][R_N] = { { { 4, 3, 1, 2 }, { 600, 257, 33, 512 } },
                                             { { 1, 0, 5, 1 }, { 255, 0, 300, 1 } },
                                             { { 0, 0, 0, 0 }, { 0, 0, 0, 0 } },
                                             { { 5, 4, 3, 2 }, { 5, 513, 64, 600 } } };
    static step s;
    static tables t;
    row_step x;
    void *graph;
    int windowed, i, j;
    if (!gpu_ready()) return;
    for (windowed = 0; windowed < 2; windowed++) {
        open_rows(&x, &s, &t, windowed);
        launch_rows(&x, &s.layer);      /* allocates, which a capture cannot */
        gpu_wait();
        gpu_record();
        launch_rows(&x, &s.layer);
        graph = gpu_recorded();
        for (i = 0; i < 4; i++) {
            memcpy(s.q_len, steps[i][0], sizeof steps[i][0]);
            memcpy(s.kv_len, steps[i][1], sizeof steps[i][1]);
            device_batch(&s);
            for (j = 0; j < 2; j++) gpu_fill(x.o[j], POISON, R_OUT * sizeof(float));
            gpu_fill(x.words[1], POISON, x.bytes[1]);
            if (i == 0) gpu_fill(x.arrays, POISON, x.array_bytes);
            gpu_replay(graph);
            same_rows(&x, &s, &t, i);
        }
        gpu_forget(graph);
        for (i = 0; i < 2; i++) {
            gpu_free(x.words[i]);
            gpu_free(x.exec[i].mem);
            gpu_free(x.o[i]);
        }
        gpu_free(x.arrays);
        gpu_free(x.cache);
        gpu_free(x.q);
        release_tables(&x.in);
        free(t.tokens);
    }
}

int main(int argc, char **argv) {
    test.only = argc > 1 ? argv[1] : NULL;
    random_cases = argc > 2 ? atoi(argv[2]) : test_draws(random_cases);
    if (argc > 3) random_seed = strtoull(argv[3], NULL, 10);
    gpu_open();
    test_run("plans of random batches", test_random);
    test_run("plans of long and of many requests", test_long);
    test_run("plans at the ends of the ranges", test_extremes);
    test_run("wrong lengths are named as on the CPU", test_bad_lengths);
    test_run("sums above 2^31-1 are named as on the CPU", test_bad_sums);
    test_run("a captured plan follows the lengths", test_graph);
    test_run("a step of 64 layers plans twice, copies nothing, waits for nothing", test_step);
    test_run("metadata of random batches", test_meta_random);
    test_run("metadata: traps of engines", test_meta_traps);
    test_run("metadata: requests outside of the table of tokens", test_meta_outside);
    test_run("metadata: wrong lengths write nothing", test_meta_refused);
    test_run("captured metadata follow the lengths", test_meta_graph);
    test_run("captured metadata of long contexts", test_meta_rounds);
    test_run("rows as requests of a captured step", test_row_batch);
    release_device();
    gpu_close();
    return test_close("cuda_plan");
}
