/* curve.c - what skip-softmax costs a model and what it saves, over its settings and over the length of the context.

   Build   cc -O3 -I. bench/curve.c -o build/curve -lm -lpthread, or make curve
   Use     build/curve [--long | --live], where bench/ and models/ are

   Two models run through the engine of examples/llm.c. models/recall.lm is asked for facts in its context; its score is
   the share of the answers' letters that are the likeliest next byte. models/text.lm reads models/heldout.txt, and its
   score is the loss in bits per byte. Each setting runs in each phase: with rows of a prompt (prefill), and with the
   same bytes fed one by one (decode). FACTOR is set for that phase alone, the other one stays dense; EPS for both.
   Differences are taken from a dense run over the same bytes that takes its turn among them.
     warm  the text before the scored bytes has been computed dense and lies in shared pages
     cold  the prefix cache is empty and the whole prompt is computed with the setting
   Certificates are checked against the truth: calls of attention are repeated, dense and skipping, with their own q, k
   and v. No row of no head may lose more of its softmax than its certificate says, nor may its output move by more than
   certificate * (largest - smallest value of its keys), nor may EPS lose more than it promises, roundings apart. Both
   repetitions are timed, taking turns: the column attention, processor time as a part of dense.

   Writes  bench/curve.csv, bench/curve.svg; to standard output which settings are safe
   Result  exit status 0; 1 if an error exceeds its certificate, or a sentence on what is wrong.
   Takes   about 5 minutes on 2 cores; --long adds recall at 131072 tokens, 200 s of processor time. --live leaves a
           request that never ends in the engine: the prefix cache cannot be reset then, and after 3 tries the exit
           status is 1. */
#define LLM_NO_MAIN
#include "../examples/llm.c"

#include <unistd.h>

enum {
    TAIL = 1024,    /* scored bytes of held-out text that come as a prompt, */
    DECODED = 256,  /* and the first of them, one by one */
    SPACING = 10000 /* between the ends of two held-out texts */
};

static const double factors[] = { 10, 30, 100, 300, 1000, 3000, 10000 };
static const double budgets[] = { 0.01, 0.02, 0.05, 0.1, 0.2, 0.5 };
enum { FACTORS = sizeof factors / sizeof *factors, BUDGETS = sizeof budgets / sizeof *budgets };

enum { RECALL, TEXT };
enum { DENSE, FACTOR, EPS };
static const char *const model_names[] = { "recall", "text" }, *const mode_names[] = { "dense", "factor", "eps" };
static const char *const phase_names[] = { "prefill", "decode" }, *const cache_names[] = { "warm", "cold" };

/* What is asked of a model at a length: samples, how many of them cold, too, and then every how many settings. */
typedef struct effort {
    int32_t model, length, warm, cold, cold_step, is_long;
} effort;

static const effort efforts[] = {
    { RECALL, 512, 6, 3, 1, 0 },   { RECALL, 2048, 6, 3, 1, 0 },   { RECALL, 8192, 4, 1, 2, 0 },
    { RECALL, 32768, 3, 1, 4, 0 }, { RECALL, 131072, 1, 0, 1, 1 }, { TEXT, 2048, 2, 1, 2, 0 },
    { TEXT, 8192, 1, 1, 4, 0 },    { TEXT, 32768, 1, 0, 1, 0 },
};
enum { EFFORTS = sizeof efforts / sizeof *efforts, SETTINGS = 1 + FACTORS + BUDGETS };
enum { WARM_PREFILL, WARM_DECODE, COLD_PREFILL, KINDS, LINES = EFFORTS * KINDS * SETTINGS }; /* of runs */

/* A line of the CSV: sums over the samples, and the largest of what must not be large. */
typedef struct line {
    int32_t model, length, mode, phase, cold;
    double value, score, difference, squares; /* differences from dense, and their squares */
    int64_t trials, groups;                   /* scores; questions */
    int64_t tiles, skipped, ran_dense;
    double certificate, of_bound, of_certificate;
    double time, dense_time, attention, dense_attention; /* seconds of processor time */
} line;

/* What a model reads: a prefix, and what follows it. scored[p]: the byte after byte p counts. */
typedef struct sample {
    int32_t *token, prefix, len, decoded, groups;
    char *scored;
    arena *mem;
} sample;

/* The values that the rows of a layer have seen so far in this run. */
typedef struct range {
    int32_t keys;
    float *low, *high; /* [kv_head][head_dim] */
} range;

typedef struct bench {
    engine *e;
    const sample *s;
    line *line;                 /* of this run */
    float *score, *dense_score; /* [position] */
    range *of_layer;            /* and one more: of a window */
    void *scratch;              /* of calls of attention */
    size_t scratch_bytes;
    double checking;            /* seconds spent on checks in this step */
    int64_t calls, checked, wrong;
    line lines[LINES];          /* [effort][kind][setting]; without trials: not run */
    int32_t is_long, is_live;   /* the options */
    arena *mem;
    char error[ERROR_BYTES];
} bench;

static void stop(const char *sentence) {
    fprintf(stderr, "curve: %s\n", sentence);
    exit(1);
}

static double seconds(clock_t since) {
    return (double)(clock() - since) / CLOCKS_PER_SEC;
}

/* ---- questions: as tools/make_recall.py makes them --------------------------------------------------------------- */

enum { FACTS = 16, ANSWER = 4, QUESTION = 11 }; /* " [kvz=QRTX]" */

/* splitmix64. Source: Steele, Lea, Flood, Fast Splittable Pseudorandom Number Generators. */
static uint32_t below(uint64_t *state, uint32_t n) {
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (uint32_t)(((z ^ (z >> 31)) >> 32) * n >> 32);
}

/* Pairs of three small letters, no two alike, and four capitals, no two neighbours alike: " [kvz=QRTX]". */
static void make_facts(uint64_t *state, char facts[FACTS][QUESTION + 1]) {
    for (int32_t n = 0; n < FACTS;) {
        char *f = facts[n];
        uint32_t last = 0;
        int taken = 0;
        memcpy(f, " [...=....]", QUESTION + 1);
        for (int i = 2; i < 5; i++) f[i] = (char)('a' + below(state, 26));
        for (int i = 6; i < 10; i++) {
            last = i == 6 ? below(state, 26) : (last + 1 + below(state, 25)) % 26;
            f[i] = (char)('A' + last);
        }
        for (int32_t i = 0; i < n; i++) taken |= !memcmp(facts[i] + 2, f + 2, 3);
        n += !taken;
    }
}

/* One to three syllables of a consonant and a vowel, perhaps a consonant, and a mark; returns the end. */
static char *make_word(uint64_t *state, char *at) {
    static const char consonants[] = "ttttnnnssshhrrrddllcmwfgpbvk", vowels[] = "eeeeaaaooiiu";
    for (uint32_t n = 1 + below(state, 3); n > 0; n--) {
        *at++ = consonants[below(state, sizeof consonants - 1)];
        *at++ = vowels[below(state, sizeof vowels - 1)];
    }
    if (below(state, 2)) *at++ = consonants[below(state, sizeof consonants - 1)];
    uint32_t mark = below(state, 100);
    if (mark >= 1 && mark < 16) *at++ = mark < 6 ? '.' : ',';
    *at++ = mark < 1 ? '\n' : ' ';
    return at;
}

/* Facts between words, then all questions with their answers. The first question ends at `length`. */
static void make_questions(sample *s, int32_t length, uint64_t state) {
    char facts[FACTS][QUESTION + 1];
    int32_t order[FACTS], due[FACTS], end = length - 6, share = (end - 32) / FACTS, placed = 0;
    char *text = (char *)need(&s->mem, length + 64, 1), *at = text + 1; /* byte 0 begins a text */
    make_facts(&state, facts);
    for (int32_t i = 0; i < FACTS; i++) order[i] = i;
    for (int32_t i = FACTS - 1; i > 0; i--) {
        int32_t j = (int32_t)below(&state, (uint32_t)i + 1), swap = order[i];
        order[i] = order[j];
        order[j] = swap;
    }
    for (int32_t i = 0; i < FACTS; i++) due[i] = 1 + i * share + (int32_t)below(&state, (uint32_t)share - 16);
    while (at - text < end) {
        if (placed == FACTS || at - text < due[placed]) {
            at = make_word(&state, at);
            continue;
        }
        memcpy(at, facts[placed++] + 1, QUESTION - 1);
        at += QUESTION - 1;
        *at++ = ' ';
    }
    s->prefix = end;
    s->decoded = FACTS * QUESTION;
    s->len = end + s->decoded;
    s->groups = FACTS;
    s->token = (int32_t *)need(&s->mem, s->len, sizeof *s->token);
    s->scored = (char *)need(&s->mem, s->len, 1);
    for (int32_t i = 0; i < s->len; i++) {
        int32_t asked = (i - end) / QUESTION, place = (i - end) % QUESTION;
        s->token[i] = i < end ? text[i] : facts[order[asked]][place];
        s->scored[i] = i >= end && place >= 5 && place < 5 + ANSWER; /* from = on */
    }
}

/* Byte 0 and what ends at `end`; the last bytes are scored. One less than `length`: a request has to get a byte. */
static void make_text(sample *s, int32_t length, const unsigned char *end) {
    s->prefix = length - TAIL;
    s->decoded = DECODED;
    s->len = length - 1;
    s->token = (int32_t *)need(&s->mem, s->len, sizeof *s->token);
    s->scored = (char *)need(&s->mem, s->len, 1);
    for (int32_t i = 1; i < s->len; i++) s->token[i] = end[i - s->len];
    memset(s->scored + s->prefix, 1, (size_t)(s->len - s->prefix - 1));
}

/* ---- the truth beside the certificates --------------------------------------------------------------------------- */

typedef struct output {
    float *o, *lse, *certificate; /* as in attn_io */
} output;

/* The call again on this thread; adds its seconds. */
static output repeat(bench *b, const net *t, const attn_plan *p, const attn_layer *layer, double *time, arena **mem) {
    int64_t heads = (int64_t)t->rows.count * t->m->heads;
    output out = { (float *)need(mem, heads * t->m->head_dim, sizeof *out.o),
                   (float *)need(mem, heads, sizeof *out.lse), (float *)need(mem, heads, sizeof *out.certificate) };
    attn_exec exec = { .bytes = attn_exec_bytes(p, 1) };
    attn_io io = t->io[t->layer];
    attn_error err;
    if (exec.bytes > b->scratch_bytes) b->scratch = need(&b->mem, 1, b->scratch_bytes = exec.bytes);
    exec.mem = b->scratch;
    io.o = out.o;
    io.lse = out.lse;
    io.certificate = layer->skip.mode ? out.certificate : NULL;
    io.counters = NULL;
    clock_t start = clock();
    if (attn_forward(p, layer, &io, &exec, &err)) stop(err.text);
    *time += seconds(start);
    return out;
}

/* Adds the values of keys up to `last` to the range. The engine runs one request, in slot 0, with f16 values. */
static void see_values(const net *t, const attn_layer *layer, range *seen, int32_t last) {
    int32_t width = t->m->kv_heads * t->m->head_dim, size = layer->page_size;
    const attn_io *io = &t->io[t->layer];
    for (; seen->keys <= last; seen->keys++) {
        int32_t slot = layer->ring ? seen->keys % layer->ring : seen->keys;
        int64_t row = (int64_t)io->page_table[slot / size] * size + slot % size;
        const uint16_t *v = (const uint16_t *)io->v + row * width;
        for (int32_t i = 0; i < width; i++) {
            float value = widen_f16(v[i]);
            if (value < seen->low[i]) seen->low[i] = value;
            if (value > seen->high[i]) seen->high[i] = value;
        }
    }
}

static void forget_values(const net *t, range *seen, int32_t first) {
    seen->keys = first;
    for (int32_t i = 0; i < t->m->kv_heads * t->m->head_dim; i++) {
        seen->low[i] = INFINITY;
        seen->high[i] = -INFINITY;
    }
}

/* The values left out have some mean between low and high, and so has o: with the share lost, delta,
   o - dense = delta * (o - mean). And lse is the log of what was kept. */
static void check_head(bench *b, const net *t, int64_t i, const range *seen, const output *less, const output *full) {
    int32_t d = t->m->head_dim, kv = (int32_t)(i % t->m->heads) / (t->m->heads / t->m->kv_heads);
    double certificate = (double)less->certificate[i], promise = 1, of_bound = 0;
    double lost = 1 - exp((double)less->lse[i] - (double)full->lse[i]);
    for (int32_t x = 0; x < d; x++) {
        double low = (double)seen->low[kv * d + x], high = (double)seen->high[kv * d + x];
        double error = fabs((double)less->o[i * d + x] - (double)full->o[i * d + x]);
        double rounding = 1e-5 * fmax(fabs(low), fabs(high)) + 1e-30;
        of_bound = fmax(of_bound, error / (certificate * (high - low) + rounding));
    }
    if (b->line->mode == EPS) { /* what goes and what stays are sums in f32, with a roundoff for each tile */
        promise = b->line->value / (1 + b->line->value) * (1 + t->rows.kv_len[0] / 64 * 5.96e-8) + 1e-6;
    }
    double of_certificate = lost / (certificate + 1e-5);
    b->line->of_bound = fmax(b->line->of_bound, of_bound);
    b->line->of_certificate = fmax(b->line->of_certificate, of_certificate);
    b->wrong += !(of_bound <= 1 && of_certificate <= 1 && certificate <= promise);
    b->checked++;
}

/* The engine has computed attention of a layer: sometimes it is computed twice again. */
static void check_attention(void *user, engine *e, const net *t) {
    bench *b = (bench *)user;
    const layer_class *c = t->class_of[t->layer];
    int32_t keys = t->rows.kv_len[0], window = c->layer.window_left, often = t->rows.decodes[0] ? 8 : 4096;
    if (!e->layer.skip.mode || t->rows.decodes[0] != b->line->phase || (keys % often && keys != b->s->len)) return;
    clock_t start = clock();
    arena *mem = NULL;
    attn_batch batch = { .n = 1, .q_len = t->rows.q_len, .kv_len = t->rows.kv_len, .phase = t->rows.decodes };
    attn_layer plain = c->layer;
    attn_plan plan;
    attn_error err;
    output less, full;
    double unused = 0, *less_time = window ? &unused : &b->line->attention;
    double *full_time = window ? &unused : &b->line->dense_attention;
    plain.skip = (attn_skip){ 0, 0, 0 };
    size_t bytes = attn_plan_bytes(&batch, &plain);
    if (attn_plan_make(&plan, &batch, &plain, need(&mem, 1, bytes), bytes, &err)) stop(err.text);
    int first = !window && b->calls++ % 2; /* the second call finds more of the keys in the processor's caches */
    if (first) less = repeat(b, t, &c->plan, &c->layer, less_time, &mem);
    full = repeat(b, t, &plan, &plain, full_time, &mem);
    if (!first) less = repeat(b, t, &c->plan, &c->layer, less_time, &mem);
    size_t heads = (size_t)t->rows.count * (size_t)t->m->heads;
    if (memcmp(less.o, t->buffer[ATTENDED], heads * (size_t)t->m->head_dim * sizeof *less.o) ||
        memcmp(less.certificate, t->buffer[CERTIFICATE], heads * sizeof *less.certificate)) {
        stop("attention, repeated, differs from what the engine had");
    }
    for (int32_t row = 0; row < t->rows.count; row++) {
        int32_t last = keys - t->rows.count + row;
        range *seen = &b->of_layer[window ? t->m->layers : t->layer];
        if (window) forget_values(t, seen, last < window ? 0 : last - window + 1);
        see_values(t, &c->layer, seen, last);
        for (int32_t h = 0; h < t->m->heads; h++) check_head(b, t, (int64_t)row * t->m->heads + h, seen, &less, &full);
    }
    release(mem);
    b->checking += seconds(start);
}

/* ---- runs -------------------------------------------------------------------------------------------------------- */

/* Row `position` of the request has its logits: they are about the byte after it. */
static void take_score(void *user, const request *r, int32_t position, const float *logits) {
    bench *b = (bench *)user;
    const sample *s = b->s;
    if (position + 1 >= s->len || !s->scored[position]) return;
    int32_t next = s->token[position + 1], best = 0, vocab = b->e->s.vocab;
    double sum = 0;
    for (int32_t i = 1; i < vocab; i++) best = logits[i] > logits[best] ? i : best;
    for (int32_t i = 0; i < vocab; i++) sum += exp((double)logits[i] - (double)logits[best]);
    b->score[position] = (float)(((double)logits[best] - (double)logits[next] + log(sum)) / log(2));
    if (b->line->model == RECALL) b->score[position] = best == next;
    (void)r;
}

/* Works until nothing is left; returns the processor time of the steps of the phase. */
static double finish(bench *b, int32_t phase) {
    double time = 0;
    int did = STEP_COMPLETE;
    while (did == STEP_COMPLETE) {
        int64_t before = b->e->stats.steps[phase];
        clock_t start = clock();
        b->checking = 0;
        did = engine_step(b->e, 0);
        if (b->e->stats.steps[phase] > before) time += seconds(start) - b->checking;
    }
    if (did < 0) stop(b->e->error);
    return time;
}

/* Between two requests. */
static void set_skip(engine *e, attn_skip skip) {
    e->layer.skip = skip;
    for (int32_t i = 0; i < e->net[0].class_count; i++) e->net[0].classes[i].layer.skip = skip;
}

/* Refused while a request is live: this program has no other, unless --live, but does not take that for granted. */
static void reset_prefixes(engine *e) {
    for (int tries = 1; server_reset_prefixes(&e->s); tries++) {
        fprintf(stderr, "the prefix cache is not reset, try %d of 3\n", tries);
        if (tries == 3) stop(e->error);
        sleep(2);
    }
}

/* Pages of text behind the prefix were computed with a setting: the next one must not find them. */
static void forget_behind(engine *e, const char *prefix) {
    for (int32_t p = 0; p < e->s.o.pages; p++) {
        if (!prefix[p]) e->s.page[p].used = e->s.page[p].kept = 0;
    }
}

/* Adds the scores of a run to its line. Dense runs are what the others are compared with. */
static void add_scores(line *l, const sample *s, const float *score, const float *dense) {
    for (int32_t p = 0; p < s->len; p++) {
        if (!s->scored[p] || (l->phase == ATTN_DECODE && p >= s->prefix + s->decoded - 1)) continue;
        double difference = (double)score[p] - (double)dense[p];
        l->score += (double)score[p];
        l->difference += difference;
        l->squares += difference * difference;
        l->trials++;
    }
    l->groups += s->groups;
}

/* One setting in one phase. A prompt that is scored shares no pages: so it joins, with its pages, before. */
static void run(bench *b, line *l, double *dense_time) {
    engine *e = b->e;
    const sample *s = b->s;
    float value = (float)l->value;
    int decodes_it = l->phase == ATTN_DECODE;
    b->line = l;
    if (l->cold) reset_prefixes(e);
    set_skip(e, (attn_skip){ l->mode == DENSE ? ATTN_SKIP_OFF : l->mode == EPS ? ATTN_SKIP_EPS : ATTN_SKIP_FACTOR,
                             l->mode == EPS || !decodes_it ? value : 0, l->mode == EPS || decodes_it ? value : 0 });
    memset(&e->stats, 0, sizeof e->stats);
    for (int32_t i = 0; i < e->net[0].m->layers; i++) forget_values(&e->net[0], &b->of_layer[i], 0);
    for (int32_t p = s->prefix; p < s->len; p++) b->score[p] = l->model == RECALL ? 0 : INFINITY; /* if it has none */
    request *r = server_submit(&e->s, s->token, decodes_it ? s->prefix : s->len, decodes_it ? s->decoded : 1);
    if (!r) stop(e->error);
    if (!l->cold) join(&e->s);
    r->all_logits = !decodes_it;
    r->forced = s->token + s->prefix;
    r->forced_len = decodes_it ? s->decoded : 0;
    double time = finish(b, l->phase);
    const attn_counters *c = &e->stats.counters[l->phase];
    if (l->mode == DENSE) memcpy(b->dense_score, b->score, (size_t)s->len * sizeof *b->score);
    if (l->mode == DENSE) *dense_time = time;
    add_scores(l, s, b->score, b->dense_score);
    l->time += time;
    l->dense_time += *dense_time;
    l->certificate = fmax(l->certificate, (double)e->stats.certificate[l->phase]);
    l->tiles += c->tiles;
    l->skipped += c->v_skipped;
    l->ran_dense += c->dense_tiles;
}

/* Dense and every step-th setting. prefix: the pages to keep; NULL: the runs are cold. */
static void run_list(bench *b, const effort *f, int32_t kind, int32_t step, const char *prefix) {
    double dense_time = 0;
    for (int32_t i = 0; i < SETTINGS; i++) {
        line *l = &b->lines[((f - efforts) * KINDS + kind) * SETTINGS + i];
        int32_t n = i > FACTORS ? i - FACTORS - 1 : i - 1;
        if (i && n % step) continue;
        l->model = f->model;
        l->length = f->length;
        l->phase = kind == WARM_DECODE ? ATTN_DECODE : ATTN_PREFILL;
        l->cold = kind == COLD_PREFILL;
        l->mode = !i ? DENSE : i <= FACTORS ? FACTOR : EPS;
        l->value = !i ? 0 : i <= FACTORS ? factors[n] : budgets[n];
        run(b, l, &dense_time);
        if (prefix) forget_behind(b->e, prefix);
    }
}

static void run_sample(bench *b, const effort *f, int32_t number, const sample *s) {
    engine *e = b->e;
    b->s = s;
    if (number < f->cold) run_list(b, f, COLD_PREFILL, f->cold_step, NULL);
    reset_prefixes(e);
    set_skip(e, (attn_skip){ ATTN_SKIP_OFF, 0, 0 });
    if (!server_submit(&e->s, s->token, s->prefix, 1)) stop(e->error);
    finish(b, ATTN_PREFILL);
    arena *mem = NULL;
    char *prefix = (char *)need(&mem, e->s.o.pages, 1);
    for (int32_t i = 0; i < e->s.o.pages; i++) prefix[i] = e->s.page[i].kept != 0;
    run_list(b, f, WARM_PREFILL, 1, prefix);
    run_list(b, f, WARM_DECODE, 1, prefix);
    release(mem);
}

/* All samples of a model at a length. */
static void run_effort(bench *b, const effort *f, const model *m, const reader *heldout) {
    options o = default_options();
    arena *mem = NULL;
    int32_t width = m->kv_heads * m->head_dim;
    o.serve.batch = 1;
    o.serve.context = f->length + 512;
    o.threads = f->length > 8192 ? 2 : 1; /* small steps gain nothing, and waking costs processor time */
    b->e = engine_open(&o, m, NULL, b->error);
    if (!b->e || (b->is_live && !server_submit(&b->e->s, (const int32_t[]){ 0 }, 1, 1))) stop(b->error);
    b->e->user = b;
    b->e->on_logits = take_score;
    b->e->on_attention = check_attention;
    b->score = (float *)need(&mem, o.serve.context, sizeof *b->score);
    b->dense_score = (float *)need(&mem, o.serve.context, sizeof *b->score);
    b->of_layer = (range *)need(&mem, m->layers + 1, sizeof *b->of_layer);
    for (int32_t i = 0; i <= m->layers; i++) {
        b->of_layer[i].low = (float *)need(&mem, 2 * width, sizeof(float));
        b->of_layer[i].high = b->of_layer[i].low + width;
    }
    for (int32_t i = 0; i < f->warm; i++) {
        sample s = { 0 };
        fprintf(stderr, "%s, %d bytes, sample %d; %.0f s of processor time so far\n", model_names[f->model],
                (int)f->length, (int)i + 1, seconds(0));
        if (f->model == RECALL) make_questions(&s, f->length, 1000 + (uint64_t)i);
        else make_text(&s, f->length, heldout->data + heldout->size - (int64_t)i * SPACING);
        run_sample(b, f, i, &s);
        release(s.mem);
    }
    engine_close(b->e);
    release(mem);
}

/* ---- results ----------------------------------------------------------------------------------------------------- */

/* Of the accuracy, a question counted once; or of the mean difference of the loss from dense. */
static double standard_error(const line *l) {
    double n = (double)l->trials, mean = part(l->score, n), shift = part(l->difference, n);
    if (l->model == RECALL) return sqrt(part(mean * (1 - mean), (double)l->groups));
    return n > 1 ? sqrt(fmax(0, part(l->squares, n) - shift * shift) / (n - 1)) : 0;
}

enum { SCORE, CHANGE, SKIPPED, BOUND, ATTENTION, TIME };

static double measure(const line *l, int32_t what) {
    switch (what) {
    case SCORE: return part(l->score, (double)l->trials);
    case CHANGE: return part(l->difference, (double)l->trials);
    case SKIPPED: return part((double)l->skipped, (double)l->tiles);
    case BOUND: return l->certificate;
    case ATTENTION: return l->mode == DENSE ? 1 : part(l->attention, l->dense_attention);
    default: return part(l->time, l->dense_time);
    }
}

static void write_csv(const bench *b) {
    FILE *file = fopen("bench/curve.csv", "w");
    if (!file) stop("bench/curve.csv cannot be written");
    fputs("model,length,mode,phase,value,cache,score,standard_error,dense,trials,skipped,ran_dense,certificate,"
          "error_of_bound,lost_of_certificate,attention,time\n", file);
    for (const line *l = b->lines; l < b->lines + LINES; l++) {
        if (!l->trials) continue;
        fprintf(file, "%s,%d,%s,%s,%g,%s,%.4f,%.4f,%.4f,%lld,%.4f,%.4f,%.4g,%.3f,%.3f,%.3f,%.3f\n",
                model_names[l->model], (int)l->length, mode_names[l->mode], phase_names[l->phase], l->value,
                cache_names[l->cold], measure(l, SCORE), standard_error(l), measure(l, SCORE) - measure(l, CHANGE),
                (long long)l->trials, measure(l, SKIPPED), part((double)l->ran_dense, (double)l->tiles), l->certificate,
                l->of_bound, l->of_certificate, measure(l, ATTENTION), measure(l, TIME));
    }
    if (fclose(file)) stop("bench/curve.csv cannot be written");
}

/* The largest value below the first one that loses more than 1 % of the letters, or .01 bits per byte; 0: none. */
static double safe_value(const bench *b, const effort *f, int32_t mode, int32_t phase) {
    const double *value = mode == FACTOR ? factors : budgets;
    double unsafe = 1e30;
    int32_t i = (mode == FACTOR ? FACTORS : BUDGETS) - 1;
    for (const line *l = b->lines; l < b->lines + LINES; l++) {
        double lost = l->model == RECALL ? -measure(l, CHANGE) : measure(l, CHANGE);
        if (l->model != f->model || l->length != f->length || l->mode != mode || l->phase != phase) continue;
        if (lost > 0.01) unsafe = fmin(unsafe, l->value);
    }
    while (i >= 0 && value[i] >= unsafe) i--;
    return i < 0 ? 0 : value[i];
}

/* Prints what is safe, and returns 1 if all certificates were right. */
static int report(const bench *b) {
    double of_bound = 0, of_certificate = 0;
    printf("Largest settings below the first that loses 1 %% of the letters, or .01 bits per byte; 0: none\n"
           "model   length  factor prefill   factor decode     eps prefill      eps decode\n");
    for (const effort *f = efforts; f < efforts + EFFORTS; f++) {
        if (f->is_long && !b->is_long) continue;
        printf("%-6s  %6d", model_names[f->model], (int)f->length);
        for (int32_t i = 0; i < 4; i++) printf("  %14g", safe_value(b, f, i < 2 ? FACTOR : EPS, i % 2));
        printf("\n");
    }
    for (const line *l = b->lines; l < b->lines + LINES; l++) {
        of_bound = fmax(of_bound, l->of_bound);
        of_certificate = fmax(of_certificate, l->of_certificate);
    }
    printf("%lld rows of heads computed dense and skipping: %lld above their certificate; largest error %.3f of its "
           "bound, largest share lost %.3f of its certificate\n", (long long)b->checked, (long long)b->wrong, of_bound,
           of_certificate);
    return b->checked > 0 && !b->wrong;
}

/* ---- the picture ------------------------------------------------------------------------------------------------- */

enum { LEFT = 70, PANEL_TOP = 108, PANEL_WIDTH = 290, PANEL_HEIGHT = 150, GAP_X = 62, GAP_Y = 68 };
enum { COLUMNS = 3, ROWS = 5, WIDTH = LEFT + COLUMNS * (PANEL_WIDTH + GAP_X) - GAP_X + 24 };
enum { HEIGHT = PANEL_TOP + ROWS * (PANEL_HEIGHT + GAP_Y) };

/* From short to long, told apart by the colour-blind, too. */
static const struct {
    int32_t length;
    const char *colour, *name;
} inks[] = { { 512, "#8a8f98", "512" }, { 2048, "#e69f00", "2,048" },   { 8192, "#009e73", "8,192" },
             { 32768, "#0072b2", "32,768" },  { 131072, "#7b3294", "131,072" } };
enum { INKS = sizeof inks / sizeof *inks };

static const struct {
    const char *title;
    int32_t model, what;
    double scale, top; /* what is above top is drawn there */
} panels[ROWS] = {
    { "Recall: letters right, %", RECALL, SCORE, 100, 100 },
    { "Held-out text: loss above dense, bits per byte", TEXT, CHANGE, 1, 0.02 },
    { "Recall: key tiles left out, %", RECALL, SKIPPED, 100, 100 },
    { "Recall: largest certificate of a row", RECALL, BOUND, 1, 1 },
    { "Recall: processor time of attention, dense = 1", RECALL, ATTENTION, 1, 1.2 },
};
static const char *const column_names[COLUMNS] = { "FACTOR for prompts", "FACTOR for decoding", "EPS" };

/* A panel on the page, and what its axes show. */
typedef struct frame {
    double x, y, low, high, top; /* low, high: values of the setting, logarithmic; 0 is at the bottom */
} frame;

static double page_x(const frame *f, double value) {
    return f->x + PANEL_WIDTH * log(value / f->low) / log(f->high / f->low);
}

static double page_y(const frame *f, double y) {
    return f->y + PANEL_HEIGHT * (1 - fmin(fmax(y / f->top, 0), 1));
}

static void words(FILE *svg, double x, double y, const char *how, const char *text) {
    fprintf(svg, "<text x=\"%.1f\" y=\"%.1f\" %s>%s</text>\n", x, y, how, text);
}

static void stroke(FILE *svg, double x1, double y1, double x2, double y2, const char *how) {
    fprintf(svg, "<path d=\"M%.1f %.1fL%.1f %.1f\" %s/>\n", x1, y1, x2, y2, how);
}

static void draw_axes(FILE *svg, const frame *f, int32_t column, int32_t row) {
    const double *value = column < 2 ? factors : budgets;
    double step = f->top / (row == ROWS - 1 ? 6 : 5);
    char text[32];
    for (double y = 0; y < f->top + step / 2; y += step) {
        snprintf(text, sizeof text, "%g", y);
        stroke(svg, f->x, page_y(f, y), f->x + PANEL_WIDTH, page_y(f, y), "stroke=\"#e3e7ec\"");
        words(svg, f->x - 6, page_y(f, y) + 4, "text-anchor=\"end\" class=\"s\"", text);
    }
    for (int32_t i = 0; i < (column < 2 ? FACTORS : BUDGETS); i++) {
        snprintf(text, sizeof text, "%g", value[i]);
        double x = page_x(f, value[i]);
        stroke(svg, x, f->y, x, f->y + PANEL_HEIGHT, "stroke=\"#eef1f4\"");
        words(svg, x, f->y + PANEL_HEIGHT + 15, "text-anchor=\"middle\" class=\"s\"", text);
    }
    words(svg, f->x, f->y - 8, "class=\"b\"", panels[row].title);
    words(svg, f->x + PANEL_WIDTH / 2.0, f->y + PANEL_HEIGHT + 31, "text-anchor=\"middle\"", column_names[column]);
    fprintf(svg, "<path d=\"M%.1f %.1fh%dv%dh-%dz\" fill=\"none\" stroke=\"#9aa4b0\"/>\n", f->x, f->y, (int)PANEL_WIDTH,
            (int)PANEL_HEIGHT, (int)PANEL_WIDTH);
}

/* One length: a line through what was measured warm, and hollow points where the requests ran dense; crosses: cold. */
static void draw_length(FILE *svg, const bench *b, const frame *f, int32_t panel, int32_t mode, int32_t phase,
                        int32_t ink) {
    const char *colour = inks[ink].colour, *how = mode == EPS && phase == ATTN_DECODE ? "d" : "l";
    double last_x = 0, last_y = 0;
    for (const line *l = b->lines; l < b->lines + LINES; l++) {
        if (!l->trials || l->model != panels[panel].model || l->mode != mode || l->phase != phase ||
            l->length != inks[ink].length || (l->cold && panels[panel].what > CHANGE)) continue;
        double x = page_x(f, l->value), y = page_y(f, panels[panel].scale * measure(l, panels[panel].what));
        if (l->cold) {
            fprintf(svg, "<path d=\"M%.1f %.1fl8 8m-8 0l8 -8\" stroke=\"%s\"/>\n", x - 4, y - 4, colour);
            continue;
        }
        int is_dense = 2 * l->ran_dense > l->tiles;
        if (last_x > 0 && !is_dense) {
            fprintf(svg, "<path d=\"M%.1f %.1fL%.1f %.1f\" stroke=\"%s\" stroke-width=\"1.8\" class=\"%s\"/>\n", last_x,
                    last_y, x, y, colour, how);
        }
        fprintf(svg, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" stroke=\"%s\" stroke-width=\"1.5\" fill=\"%s\"/>\n", x, y,
                colour, is_dense ? "#ffffff" : colour);
        last_x = x;
        last_y = y;
    }
}

static void draw_panel(FILE *svg, const bench *b, int32_t row, int32_t column) {
    frame f = { .x = LEFT + column * (PANEL_WIDTH + GAP_X), .y = PANEL_TOP + row * (PANEL_HEIGHT + GAP_Y) };
    double dense = panels[row].what == SCORE ? 100 : panels[row].what == ATTENTION ? 1 : 0;
    f.top = panels[row].top;
    f.low = (column < 2 ? factors[0] : budgets[0]) / 1.3;
    f.high = (column < 2 ? factors[FACTORS - 1] : budgets[BUDGETS - 1]) * 1.3;
    draw_axes(svg, &f, column, row);
    stroke(svg, f.x, page_y(&f, dense), f.x + PANEL_WIDTH, page_y(&f, dense),
           "stroke=\"#1f2933\" stroke-width=\"1.4\" stroke-dasharray=\"2 3\"");
    for (int32_t ink = 0; ink < INKS; ink++) {
        if (column != 1) draw_length(svg, b, &f, row, column < 2 ? FACTOR : EPS, ATTN_PREFILL, ink);
        if (column > 0) draw_length(svg, b, &f, row, column < 2 ? FACTOR : EPS, ATTN_DECODE, ink);
    }
}

static void draw(const bench *b) {
    FILE *svg = fopen("bench/curve.svg", "w");
    if (!svg) stop("bench/curve.svg cannot be written");
    fprintf(svg, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\">\n", (int)WIDTH, (int)HEIGHT);
    fputs("<style>text{font:12px Helvetica,Arial,'DejaVu Sans',sans-serif;fill:#1f2933}"
          ".s{font-size:10.5px;fill:#52606d}.d{stroke-dasharray:5 3}.b{font-weight:bold}"
          ".t{font-size:17px;font-weight:bold}</style>\n", svg);
    fprintf(svg, "<rect width=\"%d\" height=\"%d\" fill=\"#ffffff\"/>\n", (int)WIDTH, (int)HEIGHT);
    words(svg, LEFT, 28, "class=\"t\"", "Skip-softmax: what each setting costs and saves");
    words(svg, LEFT, 48, "", "Dotted: dense attention. Hollow points: ran dense, lambda &#8805; 1. Crosses: cold "
          "prefix cache. EPS: solid for prompts, dashed for decoding. Colours: bytes of context.");
    for (int32_t i = 0; i < INKS - !b->is_long; i++) {
        fprintf(svg, "<path d=\"M%d 66h22\" stroke=\"%s\" stroke-width=\"2.5\"/>\n", LEFT + 105 * (int)i,
                inks[i].colour);
        words(svg, LEFT + 105 * i + 28, 70, "", inks[i].name);
    }
    for (int32_t i = 0; i < ROWS * COLUMNS; i++) draw_panel(svg, b, i / COLUMNS, i % COLUMNS);
    fputs("</svg>\n", svg);
    if (fclose(svg)) stop("bench/curve.svg cannot be written");
}

int main(int argc, char **argv) {
    static const char *const model_paths[] = { "models/recall.lm", "models/text.lm" };
    static bench b;
    model *m[2];
    reader heldout = { "models/heldout.txt", NULL, 0, 0, b.error };
    b.is_long = argc == 2 && !strcmp(argv[1], "--long");
    b.is_live = argc == 2 && !strcmp(argv[1], "--live");
    if (argc > 1 + b.is_long + b.is_live) stop("the options are --long and --live");
    for (int i = 0; i < 2; i++) m[i] = model_load(model_paths[i], b.error);
    if (!*b.error) read_file(&heldout, &b.mem);
    if (*b.error) stop(b.error);
    for (int32_t i = 0; i < EFFORTS; i++) {
        const effort *f = &efforts[i];
        if (f->is_long && !b.is_long) continue;
        if (f->model == TEXT && heldout.size < f->length + (f->warm - 1) * SPACING) stop("heldout.txt is too short");
        run_effort(&b, f, m[f->model], &heldout);
        write_csv(&b);
        draw(&b);
    }
    int good = report(&b);
    for (int i = 0; i < 2; i++) model_close(m[i]);
    release(b.mem);
    return !good;
}
