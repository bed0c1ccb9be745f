/* cuda_llm.c - examples/llm.c with its attention on a device: the logits and the greedy text of the CPU; one plan a
   pass for each class of layers; the same bits whatever happens around a request; skipping with its counters and
   certificates; the program itself, and the line that it prints where there is no device.
   Arguments: part of a test's name; or --llm and the arguments of the program, which this is then. */
#define _POSIX_C_SOURCE 200809L
#include "test.h"

#define ATTN_IMPLEMENTED /* in attn_cuda.o */
#define ATTN_CUDA_IMPLEMENTED
#define main llm_main
#include "../examples/llm.c"
#undef main

#include "cuda_test.h"
#include "llm_ref.h"

#include <unistd.h>

static const char *self;

/* A layer with a window, in a ring of few slots, and one that sees all: few tokens, so that guesses are easy; logits
   far apart, which leave much to skip; keys and values that take more memory than any device has. */
static const llm_shape small = { LLM_LM, LLM_F32, 0, 32, 24, 2, 4, 2, 8, 7, 400, { 7, 0 }, { 8, 4 }, 1e4, 1e-5, 3 };
static const llm_shape sharp = { LLM_LM, LLM_F32, 1, 32, 0, 2, 4, 1, 16, 33, 400, { 0, 100 }, { 16, 8 }, 1e4, 0, 12 };
static const llm_shape large = { LLM_LM, LLM_F32, 1, 32, 0, 1, 16, 16, 64, 33, 400, { 0 }, { 64 }, 1e4, 1e-5, 0 };

static model *open_model(const llm_shape *shape, uint64_t seed) {
    char path[400], error[ERROR_BYTES];
    const char *place = getenv("TMPDIR");
    model *m = NULL;
    snprintf(path, sizeof path, "%s/attn-cuda-llm.%ld", place && strlen(place) < 300 ? place : "/tmp", (long)getpid());
    if (llm_ref_write(shape, seed, path)) m = model_load(path, error);
    remove(path);
    if (!m) abort();
    return m;
}

/* ---- requests through an engine ---------------------------------------------------------------------------------- */

enum { REQUESTS = 3, MOST_TOKENS = 260 };

typedef struct text {
    int32_t token[MOST_TOKENS], len, rows;
    float *logits; /* [len][vocab] */
    unsigned char has[MOST_TOKENS];
} text;

typedef struct outcome {
    text of[REQUESTS];
    stats stats;
    int32_t vocab, classes, starved;
    engine *e;
} outcome;

/* What is asked: prompts of these lengths, and as many more tokens. */
typedef struct question {
    const model *m, *drafter;
    options o;
    int32_t requests, len[REQUESTS], more, all_logits;
} question;

static void keep_logits(void *user, const request *r, int32_t position, const float *logits) {
    outcome *all = user;
    text *t = &all->of[r->key];
    if (!t->has[position]++) t->rows++;
    memcpy(t->logits + (size_t)position * (size_t)all->vocab, logits, (size_t)all->vocab * sizeof *logits);
}

/* The last two prompts begin alike. */
static void ask(const question *q, attn_cuda *device, outcome *all) {
    char error[ERROR_BYTES] = "";
    options o = q->o;
    o.gpu = device;
    engine *e = engine_open(&o, q->m, q->drafter, error);
    CHECK(e, "%s", error);
    if (!e) abort();
    memset(all, 0, sizeof *all);
    all->vocab = q->m->vocab;
    e->user = all;
    e->on_logits = keep_logits;
    for (int32_t i = 0; i < q->requests; i++) {
        test_rng rng = { 5 + (uint64_t)(i > 0) };
        int32_t prompt[MOST_TOKENS];
        for (int32_t n = 0; n < q->len[i]; n++) prompt[n] = test_range(&rng, 0, q->m->vocab - 1);
        request *r = server_submit(&e->s, prompt, q->len[i], q->more);
        CHECK(r, "%s", e->error);
        if (!r) abort();
        r->all_logits = q->all_logits;
        all->of[i].logits = need(&e->mem, r->max_len, (size_t)all->vocab * sizeof(float));
    }
    while (engine_step(e, 0) > 0) {
        int32_t waiting = 0, running = 0;
        for (int32_t i = 0; i < q->requests; i++) {
            waiting += e->s.request[i]->state == WAITING;
            running += e->s.request[i]->state == RUNNING;
        }
        all->starved += waiting && running && running < e->s.o.batch;
    }
    CHECK(!*e->error, "%s", e->error);
    for (int32_t i = 0; i < q->requests; i++) {
        CHECK(e->s.request[i]->state == DONE, "request %d is not done", (int)i);
        all->of[i].len = e->s.request[i]->len;
        memcpy(all->of[i].token, e->s.request[i]->token, (size_t)e->s.request[i]->len * sizeof(int32_t));
    }
    all->stats = e->stats;
    all->classes = e->net[0].class_count;
    all->e = e;
}

static void forget(outcome *all) {
    engine_close(all->e);
}

static double largest_logit(const outcome *all) {
    double largest = 0;
    for (int32_t i = 0; i < REQUESTS; i++) {
        for (int32_t n = 0; n < all->of[i].len * all->vocab; n++) {
            largest = fmax(largest, fabs((double)all->of[i].logits[n]));
        }
    }
    return largest;
}

/* The largest difference of the logits that both have; the texts must be equal. */
static double compare(const outcome *a, const outcome *b, int32_t requests, const char *what) {
    double largest = 0;
    for (int32_t i = 0; i < requests; i++) {
        const text *x = &a->of[i], *y = &b->of[i];
        int32_t both = 0;
        CHECK(x->len == y->len && !memcmp(x->token, y->token, (size_t)x->len * sizeof *x->token),
              "%s: request %d has another text", what, (int)i);
        for (int32_t n = 0; n < x->len; n++) {
            if (!x->has[n] || !y->has[n]) continue;
            both++;
            for (int32_t v = n * a->vocab; v < (n + 1) * a->vocab; v++) {
                double off = fabs((double)x->logits[v] - (double)y->logits[v]);
                if (!(off <= largest)) largest = off;
            }
        }
        CHECK(both > 7, "%s: request %d: %d rows of logits", what, (int)i, (int)both);
    }
    return largest;
}

/* ---- the CPU's logits and text ----------------------------------------------------------------------------------- */

/* In f32 the two differ by the order of sums. In a narrow cache such a difference can move an element of K or V across
   a boundary of rounding, by a whole unit, of which it has the more the fewer bits it has. */
static void test_as_cpu(void) {
    static const struct {
        attn_type kv;
        int32_t page;
        double tolerance; /* of the largest logit */
    } cases[] = { { ATTN_F32, 8, 1e-5 }, { ATTN_INT8, 0, 2e-3 } };
    if (!gpu_ready()) return;
    model *m = open_model(&small, 1);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        question q = { .m = m, .o = default_options(), .requests = 1, .len = { 40 }, .more = 10, .all_logits = 1 };
        outcome cpu, device;
        q.o.layer.kv_type = cases[i].kv;
        q.o.serve.page = cases[i].page;
        q.o.serve.chunk = 23;
        ask(&q, NULL, &cpu);
        uint64_t plans = gpu.is_simulated ? gpu.ptxsim_launches("attn_cu_plan_make") : 0;
        ask(&q, gpu.cuda, &device);
        double off = compare(&device, &cpu, 1, "device"), most = cases[i].tolerance * largest_logit(&cpu);
        CHECK(off <= most && off > 0, "kv %d: logits are off by %g, may be %g", (int)cases[i].kv, off, most);
        CHECK(device.of[0].rows == 40 + 10 - 1, "%d rows", (int)device.of[0].rows);
        CHECK(device.stats.plans == device.stats.passes * 2 && device.classes == 2, "%d plans, %d passes, %d classes",
              (int)device.stats.plans, (int)device.stats.passes, (int)device.classes);
        if (gpu.is_simulated) { /* and one when the engine opens, which shows that the layers can work */
            plans = gpu.ptxsim_launches("attn_cu_plan_make") - plans;
            CHECK(plans == (uint64_t)device.stats.plans + 2, "%d plans were made", (int)plans);
        }
        gpu_wait();
        forget(&cpu);
        forget(&device);
    }
    model_close(m);
}

/* ---- the same bits on the device --------------------------------------------------------------------------------- */

static void test_bits(void) {
    static const struct {
        const char *name;
        int32_t batch, chunk, page, few, spec, tree, drafter;
    } cases[] = { { "pages, a tree", 3, 17, 8, 0, 6, 1, 0 }, { "few pages, a chain", 2, 30, 4, 7, 4, 0, 0 },
                  { "contiguous, a draft model", 2, 64, 0, 0, 3, 0, 1 } };
    if (!gpu_ready()) return;
    model *m = open_model(&small, 2);
    question plain = { .m = m, .o = default_options(), .requests = REQUESTS, .len = { 40, 25, 12 }, .more = 8 };
    outcome one, all;
    plain.o.layer.kv_type = ATTN_F32;
    plain.o.serve.page = 0;
    plain.o.serve.batch = 1;
    plain.o.serve.chunk = 40;
    ask(&plain, gpu.cuda, &one);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        question q = plain;
        q.o.serve.batch = cases[i].batch;
        q.o.serve.chunk = cases[i].chunk;
        q.o.serve.page = cases[i].page;
        if (cases[i].few) q.o.serve.pages = (40 + 8 + cases[i].spec + cases[i].page - 1) / cases[i].page + cases[i].few;
        q.o.serve.spec = cases[i].spec;
        q.o.serve.tree = cases[i].tree;
        q.drafter = cases[i].drafter ? m : NULL;
        ask(&q, gpu.cuda, &all);
        CHECK(compare(&all, &one, REQUESTS, cases[i].name) == 0, "%s: other logits", cases[i].name);
        CHECK(all.stats.drafts > 0 && all.stats.passes != one.stats.passes, "%s: %d drafts", cases[i].name,
              (int)all.stats.drafts);
        CHECK(!cases[i].few || all.starved > 0, "%s: nobody waits for pages", cases[i].name);
        CHECK(!cases[i].drafter || all.stats.steps[1] < one.stats.steps[1] / 3, "%d steps", (int)all.stats.steps[1]);
        gpu_wait();
        forget(&all);
    }
    forget(&one);
    model_close(m);
}

/* ---- skip-softmax ------------------------------------------------------------------------------------------------ */

static void test_skip_softmax(void) {
    static const attn_skip modes[] = { { ATTN_SKIP_EPS, 0.05f, 0.05f }, { ATTN_SKIP_FACTOR, 20, 20 } };
    if (!gpu_ready()) return;
    model *m = open_model(&sharp, 3);
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        question q = { .m = m, .o = default_options(), .requests = 1, .len = { 200 }, .more = 4 };
        outcome cpu, device;
        q.o.layer.kv_type = ATTN_F32;
        q.o.layer.skip = modes[i];
        ask(&q, NULL, &cpu);
        ask(&q, gpu.cuda, &device);
        for (int phase = 0; phase < 2; phase++) {
            const attn_counters *c = &device.stats.counters[phase], *other = &cpu.stats.counters[phase];
            double certificate = (double)device.stats.certificate[phase], of_cpu = (double)cpu.stats.certificate[phase];
            double most = modes[i].mode == ATTN_SKIP_EPS ? 0.05 / 1.05 * 1.00001 : 1;
            CHECK(c->tiles > 0 && c->v_skipped > 0, "%d tiles, %d skipped", (int)c->tiles, (int)c->v_skipped);
            CHECK(certificate > 0 && certificate <= most, "largest certificate %g, may be %g", certificate, most);
            if (phase == ATTN_PREFILL) continue; /* there the rows that decide together are those of a tile */
            CHECK(!memcmp(c, other, sizeof *c), "%d tiles, %d skipped, on the CPU %d and %d", (int)c->tiles,
                  (int)c->v_skipped, (int)other->tiles, (int)other->v_skipped);
            CHECK(fabs(certificate - of_cpu) <= 0.02 * of_cpu, "largest certificate %g, on the CPU %g", certificate,
                  of_cpu);
        }
        gpu_wait();
        forget(&cpu);
        forget(&device);
    }
    model_close(m);
}

/* ---- what cannot work -------------------------------------------------------------------------------------------- */

static void test_no_memory(void) {
    char error[ERROR_BYTES] = "";
    if (!gpu_ready()) return;
    model *m = open_model(&large, 4);
    options o = default_options();
    o.gpu = gpu.cuda;
    o.serve.page = 1 << 16;
    o.serve.pages = 1 << 10;
    o.layer.kv_type = ATTN_F32;
    engine *e = engine_open(&o, m, NULL, error);
    CHECK(!e && strstr(error, " bytes: ") && strstr(error, "cuMemAlloc"), "\"%s\"", error);
    engine_close(e);
    model_close(m);
}

/* ---- the program ------------------------------------------------------------------------------------------------- */

static char output[1 << 14];

/* What this program prints with these arguments, run again as llm with these settings. */
static int run_program(const char *settings, const char *arguments) {
    char command[1000];
    snprintf(command, sizeof command, "%s %s --llm --prompt 'The mill ' --tokens 3 --temperature 0 %s 2>&1", settings,
             self, arguments);
    FILE *pipe = popen(command, "r");
    if (!pipe) abort();
    output[fread(output, 1, sizeof output - 1, pipe)] = 0;
    return pclose(pipe);
}

static void test_program(void) {
    static const char *const says[] = { "plan: ", "tools: ", "plain q f32, kv f16, o f32",
                                        "on a device; layers 0 2 4; layer: 4 heads", "layers 1 3 5",
                                        "2.0 plans a pass" };
    char want[100];
    if (!gpu_ready()) return;
    CHECK(!run_program("", "") && !strncmp(output, "The mill ", 9), "%s", output);
    snprintf(want, sizeof want, "%.*s", (int)strcspn(output, "\n"), output);
    CHECK(!run_program("PTXSIM_QUIET=1", "--cuda --spec 3 --tree"), "%s", output);
    CHECK(!strncmp(output, want, strlen(want)), "\"%s\" instead of \"%s\"", output, want);
    for (size_t i = 0; i < sizeof says / sizeof *says; i++) {
        CHECK(strstr(output, says[i]), "no %s: %s", says[i], output);
    }
    CHECK(!strstr(output, "on the CPU"), "%s", output);
}

static void test_fallback(void) {
    static const struct {
        const char *settings, *because;
    } cases[] = { { "PTXSIM_DEVICES=0 CUDA_VISIBLE_DEVICES=", "device" }, { "ATTN_CUDA_NVRTC=/nothing", "no NVRTC" },
                  { "LD_LIBRARY_PATH=", NULL } };
    char want[100];
    if (!gpu_ready()) return;
    CHECK(!run_program("", ""), "%s", output);
    snprintf(want, sizeof want, "%.*s", (int)strcspn(output, "\n"), output);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char settings[200];
        snprintf(settings, sizeof settings, "PTXSIM_QUIET=1 %s", cases[i].settings);
        if (!cases[i].because && !gpu.is_simulated) continue; /* there the driver is where all libraries are */
        CHECK(!run_program(settings, "--cuda"), "%s", output);
        const char *line = strstr(output, "llm: attention on the CPU, because: ");
        CHECK(line && strstr(line, cases[i].because ? cases[i].because : "no NVIDIA driver"), "%s", output);
        CHECK(strstr(output, want) && strstr(output, "isa: "), "%s", output);
    }
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "--llm")) return llm_main(argc - 1, argv + 1);
    self = argv[0];
    test.only = argc > 1 ? argv[1] : NULL;
    setenv("PTXSIM_SMS", "2", 0); /* blocks are simulated one after the other */
    gpu_open();
    test_run("cuda_llm: logits and greedy text of the CPU, one plan a pass for each class", test_as_cpu);
    test_run("cuda_llm: batches, chunks, pages, drafts and trees give the same bits", test_bits);
    test_run("cuda_llm: skipping has counters and certificates", test_skip_softmax);
    test_run("cuda_llm: a device without the memory", test_no_memory);
    test_run("cuda_llm: the program, with --cuda", test_program);
    test_run("cuda_llm: a line says why attention stays on the CPU", test_fallback);
    gpu_close();
    return test_close("cuda_llm");
}
