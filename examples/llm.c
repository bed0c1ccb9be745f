/* llm.c - a complete small inference program: text from a language model, all of its attention through attn.h, or on an
   NVIDIA GPU through attn_cuda.h. The engine is llm.h: include it to start a program of your own.

   Build   cc -O2 -I. examples/llm.c -o llm -lm -lpthread          (and -ldl for a glibc before 2.34)
   Use     llm                    continues a few texts with models/text.lm;  llm --help: the options
           llm --cuda             the same with attention on a GPU; where there is none a line says so
           llm --model stories15M.bin --tokenizer tokenizer.bin --prompt "Once upon a time"
   Result  text and a report; exit status 0, or 1 and a sentence on what is wrong. */
#define ATTN_IMPLEMENTATION
#include "llm.h"

/* ---- options ----------------------------------------------------------------------------------------------------- */

enum { MAX_PROMPTS = 64 };

typedef struct program {
    options o;
    const char *model_file, *draft_file, *tokenizer_file, *prompt[MAX_PROMPTS];
    int32_t new_tokens, prompts, printed[MAX_PROMPTS]; /* printed: tokens of each text */
    int32_t wants_gpu;
    float frame_ms;
    model *m, *drafter;
    tokenizer t;
    arena *mem;
    double frames, longest, progress_ms;
    char error[ERROR_BYTES];
} program;

enum { FLAG, INT, REAL, TEXT, PROMPT, PROMPT_FILE, TYPE, SKIP };
#define FIELD(name) offsetof(program, name) /* where an option goes */
static const struct {
    const char *name;
    int32_t kind;
    size_t at;
    const char *help;
} table[] = {
    { "--model", TEXT, FIELD(model_file), "FILE: a checkpoint, llama2.c .bin or .lm (models/text.lm)" },
    { "--tokenizer", TEXT, FIELD(tokenizer_file), "FILE: of a llama2.c model" },
    { "--prompt", PROMPT, 0, "TEXT: can be given several times" },
    { "--file", PROMPT_FILE, 0, "FILE: what it holds is a prompt; can be given several times" },
    { "--tokens", INT, FIELD(new_tokens), "N: generate so many for each prompt (300)" },
    { "--temperature", REAL, FIELD(o.temperature), "T: 0: always the best token (0.7)" },
    { "--top-p", REAL, FIELD(o.top_p), "P: choose among the likeliest tokens that have P together (0.9)" },
    { "--seed", INT, FIELD(o.seed), "N: of the random numbers (1)" },
    { "--batch", INT, FIELD(o.batch), "N: prompts that run at the same time (4)" },
    { "--chunk", INT, FIELD(o.chunk), "N: rows of prompts in a step (256)" },
    { "--page", INT, FIELD(o.page), "N: keys of a page (16), 0: a contiguous cache" },
    { "--pages", INT, FIELD(o.pages), "N: of the cache (0: enough for all)" },
    { "--kv", TYPE, FIELD(o.kv), "TYPE: of the cache: f32, f16 (the default), bf16, e4m3, e5m2 or int8" },
    { "--threads", INT, FIELD(o.threads), "N: (1)" },
    { "--cuda", FLAG, FIELD(wants_gpu), "attention on a GPU, a layer at a time; on the CPU if there is none" },
    { "--frame-budget-ms", REAL, FIELD(frame_ms), "T: return to the frame when its time is up" },
    { "--spec", INT, FIELD(o.spec), "N: verify N drafts a step, looked up in the text" },
    { "--tree", FLAG, FIELD(o.tree), "drafts are several continuations" },
    { "--draft", TEXT, FIELD(draft_file), "FILE: a small model drafts instead, of the same tokens" },
    { "--skip", SKIP, FIELD(o.skip), "eps:E, factor:PREFILL,DECODE or env: leave out keys that weigh little" }
};
enum { OPTIONS = sizeof table / sizeof *table };

/* Returns 0 if it is right. What the engine checks is not checked here. */
static int parse_value(program *p, int32_t i, const char *value) {
    static const char *const types[] = { "f32", "f16", "bf16", "e4m3", "e5m2", "int8" };
    int32_t kind = table[i].kind, type = 0;
    void *to = (char *)p + table[i].at;
    attn_skip *s = &p->o.skip;
    attn_error err;
    reader r = { value, NULL, 0, 0, p->error };
    char *end, more;
    double number = strtod(value, &end);
    if ((kind == INT || kind == REAL) && (end == value || *end || !(number >= 0 && number <= INT32_MAX))) return -1;
    if (kind == FLAG) *(int32_t *)to = 1;
    if (kind == INT) *(int32_t *)to = (int32_t)number;
    if (kind == REAL) *(float *)to = (float)number;
    if (kind == TEXT) *(const char **)to = value;
    if (kind == PROMPT || kind == PROMPT_FILE) {
        if (p->prompts == MAX_PROMPTS || (kind == PROMPT_FILE && read_file(&r, &p->mem))) return -1;
        p->prompt[p->prompts++] = kind == PROMPT ? value : (const char *)r.data;
    }
    if (kind == TYPE) {
        while (type < 6 && strcmp(value, types[type])) type++;
        p->o.kv = (attn_type)type;
        return type == 6;
    }
    if (kind == SKIP && !strcmp(value, "env")) {
        if (attn_skip_from_env(s, getenv, &err)) return fail(p->error, "%s", err.text);
    } else if (kind == SKIP) {
        if (sscanf(value, "factor:%f,%f%c", &s->prefill, &s->decode, &more) == 2) s->mode = ATTN_SKIP_FACTOR;
        if (sscanf(value, "eps:%f%c", &s->prefill, &more) == 1) s->mode = ATTN_SKIP_EPS;
        if (s->mode == ATTN_SKIP_EPS) s->decode = s->prefill;
        return !s->mode;
    }
    return 0;
}

static int parse(program *p, int argc, char **argv) {
    for (int a = 1; a < argc; a++) {
        const char *name = argv[a], *value = a + 1 < argc ? argv[a + 1] : "";
        int32_t i = 0;
        while (i < OPTIONS && strcmp(name, table[i].name)) i++;
        if (i < OPTIONS && table[i].kind != FLAG) a++;
        if (i == OPTIONS || a == argc || parse_value(p, i, value)) {
            return fail(p->error, "%s %s is no option; llm --help", name, value);
        }
    }
    return 0;
}

/* ---- texts and the report ---------------------------------------------------------------------------------------- */

/* What is new of a text, if it is the only one, else all of it when it is complete; how far a long prompt is. */
static void print_text(program *p, const engine *e, int32_t i) {
    const request *r = e->request[i];
    if (r->state == RUNNING && r->cached < r->prompt_len && now_ms() > p->progress_ms + 1000) {
        fprintf(stderr, "prompt %d: %d of %d tokens\n", i + 1, r->cached, r->prompt_len);
        p->progress_ms = now_ms();
    }
    if ((p->prompts > 1 && r->state != DONE) || p->printed[i] == r->len) return;
    if (p->prompts > 1) printf("---- %d\n", i + 1);
    for (int32_t n = p->printed[i] ? p->printed[i] : 1; n < r->len; n++) { /* token 0 is no text */
        int ends = n >= r->prompt_len && (r->token[n] == e->o.stop[0] || r->token[n] == e->o.stop[1]);
        if (!ends) tokenizer_print(&p->t, r->token[n], n == 1, stdout);
    }
    p->printed[i] = r->len;
    if (r->state == DONE) printf("\n");
    fflush(stdout);
}

/* What was chosen for the classes of layers, from the first two lines of the explanation of their plans. */
static void print_classes(const net *t) {
    for (int32_t c = 0; c < t->class_count; c++) {
        char text[2000];
        attn_plan_explain(&t->classes[c].plan, text, sizeof text);
        const char *layer = strchr(text, '\n') + 1;
        printf("  %.*s; layers", (int)strcspn(text, ",\n"), text);
        for (int32_t l = 0; l < t->m->layers; l++) {
            if (t->class_of[l] == c) printf(" %d", l);
        }
        printf("; %.*s\n", (int)strcspn(layer, "\n"), layer);
    }
}

static double part(double a, double of) {
    return of > 0 ? a / of : 0;
}

static void report(const program *p, const engine *e) {
    const stats *s = &e->stats;
    double ms = s->ms[0] + s->ms[1], steps = 0;
    char device[2000] = "";
    for (int32_t i = 0; i < e->requests; i++) steps += e->request[i]->steps;
    if (e->o.gpu) attn_cuda_explain(e->o.gpu, device, sizeof device);
    printf("\n%s%s: %.1f MB, %d layers, attention by\n", device, p->model_file, 1e-6 * (double)p->m->bytes,
           p->m->layers);
    for (int32_t n = 0; n < e->nets; n++) print_classes(&e->net[n]);
    printf("%d prompts of %lld tokens, %lld more found in shared pages; %lld tokens generated, %.0f in a second\n",
           e->requests, s->prompt_tokens, s->shared_tokens, s->tokens, part(1e3 * (double)s->tokens, ms));
    printf("%lld steps with prompts, %.0f rows in a second; %lld without, %.0f rows in a second\n", s->steps[0],
           part(1e3 * (double)s->rows[0], s->ms[0]), s->steps[1], part(1e3 * (double)s->rows[1], s->ms[1]));
    printf("%.2f s, %.1f %% of it in attention, %.2f %% in planning, %.1f plans a pass\n", 1e-3 * ms,
           100 * part(s->attention_ms, ms), 100 * part(s->plan_ms, ms), part((double)s->plans, (double)s->passes));
    if (e->o.spec) { /* the first token of a request comes from its prompt */
        printf("speculation: %.2f tokens in a step of a request, %lld drafts verified\n",
               part((double)(s->tokens - e->requests), steps), s->drafts);
    }
    for (int i = 0; i < 2; i++) {
        double tiles = (double)s->counters[i].tiles;
        if (tiles <= 0) continue;
        printf("%s: %.1f %% of %.0f tiles skipped, largest certificate %.2g; %.1f %% had to run dense\n",
               i ? "decode" : "prefill", 100 * (double)s->counters[i].v_skipped / tiles, tiles, s->certificate[i],
               100 * (double)s->counters[i].dense_tiles / tiles);
    }
    if (p->frame_ms > 0) printf("%.0f frames of %g ms, the longest took %.1f ms\n", p->frames, p->frame_ms, p->longest);
}

/* ---- main -------------------------------------------------------------------------------------------------------- */

static int prepare(program *p) {
    char because[ERROR_BYTES];
    p->m = model_load(p->model_file, p->error);
    if (p->m && p->draft_file) p->drafter = model_load(p->draft_file, p->error);
    if (*p->error || tokenizer_load(&p->t, p->tokenizer_file, p->m->vocab, p->error)) return -1;
    if (!p->prompts) return fail(p->error, "a --prompt is missing; llm --help");
    for (int32_t i = 0; i < p->prompts; i++) { /* a text has at most as many tokens as bytes, and two more */
        int64_t context = (int64_t)strlen(p->prompt[i]) + 2 + p->new_tokens;
        if (context > p->o.context) p->o.context = context < p->m->max_len ? (int32_t)context : p->m->max_len;
    }
    memcpy(p->o.stop, p->t.stop, sizeof p->o.stop);
    if (p->drafter && !p->o.spec) p->o.spec = 5;
    if (p->frame_ms > 0) p->o.row_tile = 32;
    if (p->wants_gpu && !(p->o.gpu = engine_device(&p->o, because))) {
        fprintf(stderr, "llm: attention on the CPU, because: %s\n", because);
    }
    return 0;
}

/* Works for a step, or as long as a frame allows, until all texts are complete. Returns a number that tells texts
   apart, 0: an error. */
static uint64_t run(program *p, int is_quiet) {
    engine *e = engine_open(&p->o, p->m, p->drafter, p->error);
    uint64_t hash = 1;
    int did = STEP_COMPLETE;
    if (!e) return 0;
    for (int32_t i = 0; i < p->prompts && did > 0; i++) {
        int32_t *token = need(&p->mem, (int64_t)strlen(p->prompt[i]) + 2, sizeof *token);
        int32_t len = tokenizer_encode(&p->t, p->prompt[i], token);
        if (!engine_submit(e, token, len, p->new_tokens)) did = -1;
    }
    p->progress_ms = now_ms();
    while (did > 0) {
        double start = now_ms();
        did = engine_step(e, p->frame_ms > 0 ? start + p->frame_ms : 0);
        p->longest = fmax(p->longest, now_ms() - start); /* here a game draws its frame */
        p->frames++;
        for (int32_t i = 0; i < e->requests && !is_quiet; i++) print_text(p, e, i);
    }
    if (did < 0) fail(p->error, "%s", e->error);
    else report(p, e);
    for (int32_t i = 0; i < e->requests; i++) {
        const request *r = e->request[i];
        for (int32_t n = 0; n < r->len; n++) hash = (hash ^ (uint64_t)r->token[n]) * 0x100000001B3u;
    }
    engine_close(e);
    return did < 0 ? 0 : hash;
}

/* Three that begin alike, so that they share pages, and others. */
#define VILLAGE "Not far from the sea lay a village by the name of Otterford. It had thirty houses, a mill and " \
                "an inn, the Silver Goose. The innkeeper was Mara Fenwick, who was patient and often cheerful. " \
                "Everybody in Otterford knew Tobias Reed, the smith, who carried a copper whistle wherever he went.\n\n"
static const char *const demo_prompts[] = {
    VILLAGE "PLAYER: Good evening, Mara. Who lives in this village?\n", VILLAGE "One evening in autumn Tobias ",
    "It was a cold night, and the old king ", "PLAYER: I am looking for work.\n", VILLAGE "Dear Mara,\n"
};

/* The texts once more, with drafts: the same, in fewer steps. That is sooner where a step costs the same for one row as
   for many, since its time goes into reading weights from memory. */
static int run_again(program *p, uint64_t hash) {
    p->o.spec = 8;
    p->o.tree = 1;
    printf("\nthe same texts, with speculation: fewer steps, with more rows each\n");
    int is_same = run(p, 1) == hash;
    printf("same texts: %s\n", is_same ? "yes" : "NO");
    return is_same ? 0 : fail(p->error, "speculation has changed a text");
}

int main(int argc, char **argv) {
    static program p = { .model_file = "models/text.lm", .new_tokens = 300 };
    p.o = default_options();
    p.o.temperature = 0.7f;
    if (argc == 2 && !strcmp(argv[1], "--help")) {
        printf("llm [options]; without any, or with --cuda alone: a demonstration, run it where models/ is\n");
        for (int32_t i = 0; i < OPTIONS; i++) printf("  %-18s %s\n", table[i].name, table[i].help);
        return 0;
    }
    int is_demo = argc == 1 || (argc == 2 && !strcmp(argv[1], "--cuda"));
    if (is_demo) p.prompts = sizeof demo_prompts / sizeof *demo_prompts;
    if (is_demo) memcpy(p.prompt, demo_prompts, sizeof demo_prompts);
    uint64_t hash = parse(&p, argc, argv) || prepare(&p) ? 0 : run(&p, 0);
    int failed = !hash || (is_demo && run_again(&p, hash));
    if (failed) fprintf(stderr, "%s\n", p.error);
    attn_cuda_close(p.o.gpu);
    tokenizer_close(&p.t);
    model_close(p.m);
    model_close(p.drafter);
    release(p.mem);
    return failed;
}
