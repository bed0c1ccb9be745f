/* modes.c - forward modes of engines: what seq_lens counts in each, phases, pads, errors, and that two descriptions of
   one request end in the same bytes. Trap numbers are those of the list of known faults in engines. */
#include "../attn.h"
#include "isas.h"
#include "test.h"

enum { MAX_N = 32, MODES = ATTN_MODE_DRAFT_DECODE + 1, GUARD = 16 };

typedef struct call {
    attn_mode mode;
    attn_mode_input in;
    int32_t seq[MAX_N], extend[MAX_N], prefix[MAX_N], phase[MAX_N];
    int32_t mem[3 * MAX_N + 2 * GUARD];
    size_t count;
    attn_batch batch;
    attn_error error;
} call;

static void clear(call *c, attn_mode mode, int n) {
    memset(c, 0, sizeof *c);
    memset(c->mem, 0x5a, sizeof c->mem);
    memset(&c->batch, 0x5a, sizeof c->batch);
    c->mode = mode;
    c->in.n = n;
    c->in.seq_lens = c->seq;
    c->count = (size_t)(3 * n);
}

static int convert(call *c) {
    return attn_batch_from_mode(&c->batch, c->mode, &c->in, c->mem + GUARD, c->count, &c->error);
}

/* Everything about the result: lengths, phase, pointers, capacities, guards. */
static void expect(call *c, const int32_t *q_len, const int32_t *kv_len, const int32_t *phase) {
    int32_t before[3 * MAX_N + 2 * GUARD];
    attn_batch wanted;
    int i, n = c->in.n, status;
    memset(before, 0x5a, sizeof before);
    memcpy(before + GUARD, q_len, (size_t)n * 4);
    memcpy(before + GUARD + n, kv_len, (size_t)n * 4);
    memcpy(before + GUARD + 2 * n, phase, (size_t)n * 4);
    status = convert(c);
    CHECK(!status, "mode %d: %s", (int)c->mode, c->error.text);
    if (status) return;
    CHECK(!c->error.text[0] && c->error.request == -1 && c->error.slot == -1, "the error is not cleared");
    CHECK(c->batch.n == n, "mode %d: n = %d", (int)c->mode, c->batch.n);
    for (i = 0; i < n; i++) {
        CHECK(c->batch.q_len[i] == q_len[i] && c->batch.kv_len[i] == kv_len[i] && c->batch.phase[i] == phase[i],
              "mode %d request %d: E = %d, KV = %d, phase %d", (int)c->mode, i, c->batch.q_len[i], c->batch.kv_len[i],
              c->batch.phase[i]);
    }
    memset(&wanted, 0, sizeof wanted);
    wanted.n = n;
    wanted.q_len = c->mem + GUARD;
    wanted.kv_len = c->mem + GUARD + n;
    wanted.phase = c->mem + GUARD + 2 * n;
    wanted.max_q_len = c->in.max_q_len;
    wanted.max_kv_len = c->in.max_kv_len;
    wanted.max_rows = c->in.max_rows;
    CHECK(!memcmp(&wanted, &c->batch, sizeof wanted), "mode %d: the batch", (int)c->mode);
    CHECK(!memcmp(before, c->mem, sizeof before), "mode %d: bytes outside the arrays", (int)c->mode);
}

/* ---- the table --------------------------------------------------------------------------------------------------- */

static void test_given(void) {
    static const attn_mode modes[] = { ATTN_MODE_EXTEND, ATTN_MODE_MIXED, ATTN_MODE_DRAFT_EXTEND,
                                       ATTN_MODE_SPLIT_PREFILL, ATTN_MODE_DLLM_EXTEND };
    static const int32_t seq[] = { 10, 4, 7, 5, 9 }, extend[] = { 3, 4, 1, 0, 9 };
    int m, i;
    for (m = 0; m < 5; m++) {
        int32_t phase[5];
        call c;
        clear(&c, modes[m], 5);
        c.in.extend_lens = c.extend;
        memcpy(c.seq, seq, sizeof seq);
        memcpy(c.extend, extend, sizeof extend);
        for (i = 0; i < 5; i++) phase[i] = modes[m] == ATTN_MODE_DRAFT_EXTEND ? ATTN_DECODE : ATTN_PREFILL;
        expect(&c, extend, seq, phase);
    }
}

static void test_decode(void) {
    static const int32_t seq[] = { 1, 256, 257, INT32_MAX }, ones[] = { 1, 1, 1, 1 };
    static const int32_t decode[] = { ATTN_DECODE, ATTN_DECODE, ATTN_DECODE, ATTN_DECODE };
    call c;
    clear(&c, ATTN_MODE_DECODE, 4);
    memcpy(c.seq, seq, sizeof seq);
    c.in.draft_tokens = 5;          /* DECODE has none to count */
    c.in.draft_step = 3;
    c.in.max_q_len = 2;
    c.in.max_kv_len = INT32_MAX;
    c.in.max_rows = 9;
    expect(&c, ones, seq, decode);
}

/* Step s of the draft model's loop sees the base, the tokens of the steps before and its own. */
static void test_draft_decode(void) {
    static const int32_t seq[] = { 0, 12, 500 }, ones[] = { 1, 1, 1 };
    static const int32_t decode[] = { ATTN_DECODE, ATTN_DECODE, ATTN_DECODE };
    int s, i;
    for (s = 0; s < 6; s++) {
        int32_t kv[3];
        call c;
        clear(&c, ATTN_MODE_DRAFT_DECODE, 3);
        memcpy(c.seq, seq, sizeof seq);
        c.in.draft_step = s;
        for (i = 0; i < 3; i++) kv[i] = seq[i] + s + 1;
        expect(&c, ones, kv, decode);
    }
}

static void test_verify(void) {
    static const int32_t prefix[] = { 0, 40, 256 }, drafts[] = { 4, 4, 4 }, kv[] = { 4, 44, 260 };
    static const int32_t decode[] = { ATTN_DECODE, ATTN_DECODE, ATTN_DECODE };
    call c;
    clear(&c, ATTN_MODE_TARGET_VERIFY, 3);
    memcpy(c.seq, prefix, sizeof prefix);
    c.in.draft_tokens = 4;
    expect(&c, drafts, kv, decode);
    clear(&c, ATTN_MODE_DRAFT_EXTEND_V2, 3);
    memcpy(c.seq, kv, sizeof kv);
    c.in.draft_tokens = 4;
    expect(&c, drafts, kv, decode);
}

static void test_idle(void) {
    static const int32_t zeros[4] = { 0, 0, 0, 0 };
    int mode;
    call c;
    clear(&c, ATTN_MODE_IDLE, 4);
    c.in.seq_lens = NULL;
    expect(&c, zeros, zeros, zeros);
    for (mode = 0; mode < MODES; mode++) {
        clear(&c, (attn_mode)mode, 0);
        c.in.seq_lens = NULL;
        c.in.draft_tokens = 3;
        expect(&c, zeros, zeros, zeros);
        CHECK(!attn_batch_from_mode(&c.batch, c.mode, &c.in, NULL, 0, NULL) && c.batch.n == 0, "no memory needed");
    }
}

/* A pad may stand anywhere, in every mode; nothing else of it is read. */
static void test_pads(void) {
    int mode, i;
    for (mode = 0; mode < MODES; mode++) {
        int32_t q[6], kv[6], phase[6];
        call c;
        int idle = mode == ATTN_MODE_IDLE;
        clear(&c, (attn_mode)mode, 6);
        c.in.extend_lens = c.extend;
        c.in.prefix_lens = c.prefix;
        c.in.phase = c.phase;
        c.in.draft_tokens = 1;
        for (i = 0; i < 6; i++) {
            int pad = idle || i % 2 == 0, keys = 20 + i;
            if (mode == ATTN_MODE_TARGET_VERIFY || mode == ATTN_MODE_DRAFT_DECODE) keys++;
            c.seq[i] = i % 2 == 0 ? -1 : 20 + i;
            c.extend[i] = pad ? -77 : 1;
            c.phase[i] = phase[i] = i / 2 % 2;
            q[i] = pad ? 0 : 1;
            kv[i] = pad ? 0 : keys;
            c.prefix[i] = pad ? -77 : keys - 1;
        }
        expect(&c, q, kv, phase);
    }
}

/* The caller's array decides, so that a MIXED batch holds both families. */
static void test_phase(void) {
    int mode, i;
    for (mode = 0; mode < MODES; mode++) {
        static const int32_t wanted[] = { ATTN_DECODE, ATTN_PREFILL, ATTN_PREFILL, ATTN_DECODE };
        call c;
        clear(&c, (attn_mode)mode, 4);
        c.in.extend_lens = c.extend;
        c.in.phase = c.phase;
        c.in.draft_tokens = 2;
        for (i = 0; i < 4; i++) {
            c.seq[i] = 30;
            c.extend[i] = 2;
            c.phase[i] = wanted[i];
        }
        CHECK(!convert(&c), "mode %d: %s", mode, c.error.text);
        CHECK(!memcmp(c.batch.phase, wanted, sizeof wanted), "mode %d: the caller's phase did not win", mode);
        CHECK(c.batch.phase != c.phase, "the array was not copied");
    }
}

/* ---- traps ------------------------------------------------------------------------------------------------------- */

/* The prefix with verify, the total with draft-extend-v2, the total with EXTEND-shaped draft extend: one request. */
static void test_trap_1(void) {
    test_rng r = { 1 };
    int round, i, m;
    for (round = 0; round < 300; round++) {
        static const attn_mode modes[] = { ATTN_MODE_TARGET_VERIFY, ATTN_MODE_DRAFT_EXTEND_V2,
                                           ATTN_MODE_DRAFT_EXTEND };
        int n = test_range(&r, 1, MAX_N), d = test_range(&r, 1, 16);
        attn_layer layer;
        call c[3];
        attn_plan plan[3];
        void *mem[3];
        size_t bytes[3];
        memset(&layer, 0, sizeof layer);
        layer.heads = 4;
        layer.head_dim = 8;
        layer.isa = ATTN_ISA_SCALAR;
        for (m = 0; m < 3; m++) {
            clear(&c[m], modes[m], n);
            c[m].in.draft_tokens = d;
            c[m].in.extend_lens = c[m].extend;
            c[m].in.prefix_lens = c[m].prefix;
            c[m].in.max_q_len = d;
            c[m].in.max_kv_len = 700 + d;
            c[m].in.max_rows = n * d;
        }
        for (i = 0; i < n; i++) {
            int prefix = test_range(&r, 0, 700);
            for (m = 0; m < 3; m++) {
                c[m].seq[i] = m ? prefix + d : prefix;
                c[m].extend[i] = d;
                c[m].prefix[i] = prefix;
            }
        }
        for (m = 0; m < 3; m++) {
            CHECK(!convert(&c[m]), "mode %d: %s", (int)modes[m], c[m].error.text);
            bytes[m] = attn_plan_bytes(&c[m].batch, &layer);
            mem[m] = malloc(bytes[m]);
            memset(mem[m], 0xff, bytes[m]);
            CHECK(!attn_plan_make(&plan[m], &c[m].batch, &layer, mem[m], bytes[m], &c[m].error), "%s",
                  c[m].error.text);
        }
        for (m = 1; m < 3; m++) {
            CHECK(!memcmp(c[0].mem, c[m].mem, sizeof c[0].mem), "round %d: lengths or phase differ", round);
            CHECK(bytes[0] == bytes[m] && !memcmp(mem[0], mem[m], bytes[0]), "round %d: plans differ", round);
        }
        for (m = 0; m < 3; m++) free(mem[m]);
    }
}

/* One convention taken for the other is caught by prefix_lens, or by E <= KV. */
static void test_trap_1_mistaken(void) {
    call c;
    clear(&c, ATTN_MODE_DRAFT_EXTEND_V2, 2);
    c.in.draft_tokens = 4;
    c.in.prefix_lens = c.prefix;
    c.seq[0] = c.prefix[0] = 40;
    c.seq[1] = c.prefix[1] = 50;
    CHECK(convert(&c) == ATTN_E_BATCH && c.error.request == 0, "a prefix was taken for a total");
    CHECK(!strcmp(c.error.text, "prefix_lens[0] = 40, but with seq_lens[0] = 40 this mode has a prefix of 36"), "%s",
          c.error.text);
    clear(&c, ATTN_MODE_DRAFT_EXTEND_V2, 2);
    c.in.draft_tokens = 4;
    c.seq[0] = 40;
    c.seq[1] = 3;
    CHECK(convert(&c) == ATTN_E_BATCH && c.error.request == 1, "a total below D");
}

/* At the end of the context the drafts need D keys more: with them in the capacity it works, without them the request
   is named. */
static void test_trap_6(void) {
    enum { CONTEXT = 202752 };
    int d, wide;
    for (d = 2; d <= 4; d++) {
        for (wide = 0; wide < 2; wide++) {
            attn_layer layer;
            attn_plan plan;
            size_t bytes;
            void *mem;
            int status;
            call c;
            clear(&c, ATTN_MODE_TARGET_VERIFY, 3);
            c.seq[0] = 7;
            c.seq[1] = CONTEXT;
            c.seq[2] = 9;
            c.in.draft_tokens = d;
            c.in.max_q_len = d;
            c.in.max_kv_len = CONTEXT + (wide ? d : 0);
            c.in.max_rows = 3 * d;
            CHECK(!convert(&c), "%s", c.error.text);
            memset(&layer, 0, sizeof layer);
            layer.heads = 1;
            layer.head_dim = 8;
            layer.isa = ATTN_ISA_SCALAR;
            bytes = attn_plan_bytes(&c.batch, &layer);
            mem = malloc(bytes);
            status = attn_plan_make(&plan, &c.batch, &layer, mem, bytes, &c.error);
            if (wide) {
                CHECK(!status && plan.max_kv_len == CONTEXT + d, "D = %d: %s", d, c.error.text);
            } else {
                CHECK(status == ATTN_E_BATCH && c.error.request == 1, "D = %d: status %d", d, status);
            }
            free(mem);
        }
    }
}

/* Lengths are int32; a sum that is not is refused, never wrapped. */
static void test_trap_18(void) {
    static const struct {
        attn_mode mode;
        int32_t seq, d, s;
        int status;
    } cases[] = { { ATTN_MODE_TARGET_VERIFY, INT32_MAX - 4, 4, 0, ATTN_OK },
                  { ATTN_MODE_TARGET_VERIFY, INT32_MAX - 3, 4, 0, ATTN_E_BATCH },
                  { ATTN_MODE_TARGET_VERIFY, INT32_MAX, INT32_MAX, 0, ATTN_E_BATCH },
                  { ATTN_MODE_DRAFT_DECODE, INT32_MAX - 4, 0, 3, ATTN_OK },
                  { ATTN_MODE_DRAFT_DECODE, INT32_MAX - 4, 0, 4, ATTN_E_BATCH },
                  { ATTN_MODE_DRAFT_DECODE, INT32_MAX, 0, INT32_MAX, ATTN_E_BATCH },
                  { ATTN_MODE_DRAFT_EXTEND_V2, INT32_MAX, INT32_MAX, 0, ATTN_OK } };
    size_t i;
    for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        call c;
        clear(&c, cases[i].mode, 1);
        c.seq[0] = cases[i].seq;
        c.in.draft_tokens = cases[i].d;
        c.in.draft_step = cases[i].s;
        CHECK(convert(&c) == cases[i].status, "case %d: %s", (int)i, c.error.text);
        if (!cases[i].status) CHECK(c.batch.kv_len[0] == INT32_MAX, "case %d: %d", (int)i, c.batch.kv_len[0]);
    }
    CHECK(sizeof *((attn_mode_input *)NULL)->seq_lens == 4 && sizeof *((attn_batch *)NULL)->kv_len == 4, "int32");
}

/* ---- errors ------------------------------------------------------------------------------------------------------ */

static void base(call *c, attn_mode mode) {
    int i;
    clear(c, mode, 5);
    c->in.extend_lens = c->extend;
    c->in.phase = c->phase;
    c->in.draft_tokens = 3;
    for (i = 0; i < 5; i++) {
        c->seq[i] = 20 + i;
        c->extend[i] = 3;
        c->phase[i] = i % 2;
    }
}

/* The status, request and words; neither the batch nor mem nor an input changed, with and without attn_error. */
static void refuse(call *c, int status, int request, const char *words) {
    call before = *c;
    int got = convert(c);
    CHECK(got == status, "%s: status %d", words, got);
    CHECK(strstr(c->error.text, words) != NULL, "\"%s\" is not in \"%s\"", words, c->error.text);
    CHECK(c->error.request == request && c->error.slot == -1, "%s: request %d", words, c->error.request);
    before.error = c->error;
    CHECK(!memcmp(&before, c, sizeof before), "%s: something was written", words);
    CHECK(attn_batch_from_mode(&c->batch, c->mode, &c->in, c->mem + GUARD, c->count, NULL) == status,
          "%s: without an error", words);
}

static void test_entry_errors(void) {
    int mode;
    for (mode = 0; mode < MODES; mode++) {
        int given = mode == ATTN_MODE_EXTEND || mode == ATTN_MODE_MIXED || mode == ATTN_MODE_DRAFT_EXTEND ||
                    mode == ATTN_MODE_SPLIT_PREFILL || mode == ATTN_MODE_DLLM_EXTEND;
        call c;
        base(&c, (attn_mode)mode);
        CHECK(!convert(&c), "mode %d: the unbroken call: %s", mode, c.error.text);
        base(&c, (attn_mode)mode);
        c.phase[4] = 2;
        refuse(&c, ATTN_E_BATCH, 4, "phase[4] = 2 is no attn_phase");
        base(&c, (attn_mode)mode);
        c.phase[4] = -1;
        refuse(&c, ATTN_E_BATCH, 4, "phase[4] = -1 is no attn_phase");
        if (mode == ATTN_MODE_IDLE) continue;
        base(&c, (attn_mode)mode);
        c.seq[2] = -2;
        refuse(&c, ATTN_E_BATCH, 2, "seq_lens[2] = -2 is negative");
        base(&c, (attn_mode)mode);
        c.in.seq_lens = NULL;
        refuse(&c, ATTN_E_ARGUMENT, -1, "input.seq_lens is NULL");
        base(&c, (attn_mode)mode);
        c.in.prefix_lens = c.prefix;
        c.prefix[0] = 1000;
        refuse(&c, ATTN_E_BATCH, 0, "prefix_lens[0] = 1000");
        if (!given) continue;
        base(&c, (attn_mode)mode);
        c.extend[3] = -1;
        refuse(&c, ATTN_E_BATCH, 3, "extend_lens[3] = -1 is negative");
        base(&c, (attn_mode)mode);
        c.extend[1] = 22;
        refuse(&c, ATTN_E_BATCH, 1, "seq_lens[1] = 21, but in this mode it counts the 22 new rows too");
        base(&c, (attn_mode)mode);
        c.in.extend_lens = NULL;
        refuse(&c, ATTN_E_ARGUMENT, -1, "input.extend_lens is NULL");
    }
}

static void test_other_errors(void) {
    call c;
    base(&c, ATTN_MODE_DECODE);
    c.seq[3] = 0;
    refuse(&c, ATTN_E_BATCH, 3, "seq_lens[3] = 0");
    base(&c, ATTN_MODE_DRAFT_EXTEND_V2);
    c.seq[4] = 2;
    refuse(&c, ATTN_E_BATCH, 4, "seq_lens[4] = 2, but in this mode it counts the 3 new rows too");
    base(&c, ATTN_MODE_TARGET_VERIFY);
    c.in.draft_tokens = 0;
    refuse(&c, ATTN_E_ARGUMENT, -1, "input.draft_tokens = 0");
    base(&c, ATTN_MODE_EXTEND);
    c.in.draft_tokens = -1;
    refuse(&c, ATTN_E_ARGUMENT, -1, "input.draft_tokens = -1 is negative");
    base(&c, ATTN_MODE_DRAFT_DECODE);
    c.in.draft_step = -1;
    refuse(&c, ATTN_E_ARGUMENT, -1, "input.draft_step = -1 is negative");
    base(&c, ATTN_MODE_EXTEND);
    c.in.n = -1;
    refuse(&c, ATTN_E_ARGUMENT, -1, "input.n = -1 is negative");
    base(&c, ATTN_MODE_EXTEND);
    c.in.max_q_len = -1;
    refuse(&c, ATTN_E_ARGUMENT, -1, "input.max_q_len = -1 is negative");
    base(&c, ATTN_MODE_EXTEND);
    c.in.max_kv_len = -1;
    refuse(&c, ATTN_E_ARGUMENT, -1, "input.max_kv_len = -1 is negative");
    base(&c, ATTN_MODE_EXTEND);
    c.in.max_rows = -1;
    refuse(&c, ATTN_E_ARGUMENT, -1, "input.max_rows = -1 is negative");
    base(&c, ATTN_MODE_EXTEND);
    c.count = 14;
    refuse(&c, ATTN_E_MEMORY, -1, "count = 14 is less than 3 * n = 15");
    base(&c, (attn_mode)MODES);
    refuse(&c, ATTN_E_ARGUMENT, -1, "mode = 10 is no attn_mode");
    base(&c, ATTN_MODE_EXTEND);
    CHECK(attn_batch_from_mode(NULL, c.mode, &c.in, c.mem, c.count, &c.error) == ATTN_E_ARGUMENT &&
          strstr(c.error.text, "batch is NULL"), "%s", c.error.text);
    CHECK(attn_batch_from_mode(&c.batch, c.mode, NULL, c.mem, c.count, &c.error) == ATTN_E_ARGUMENT &&
          strstr(c.error.text, "input is NULL"), "%s", c.error.text);
    CHECK(attn_batch_from_mode(&c.batch, c.mode, &c.in, NULL, c.count, &c.error) == ATTN_E_MEMORY &&
          strstr(c.error.text, "mem is NULL"), "%s", c.error.text);
}

/* ---- numbers ----------------------------------------------------------------------------------------------------- */

enum { HEADS = 16, KV_HEADS = 2, DIM = 16, KEYS = 900, D = 5 };

static float q[D * HEADS * DIM], k[KEYS * KV_HEADS * DIM], v[KEYS * KV_HEADS * DIM];
static float verified[D * HEADS * DIM], stepped[D * HEADS * DIM];

static void forward(const attn_batch *batch, const attn_layer *layer, const float *rows, float *o) {
    attn_error error;
    attn_plan plan;
    attn_io io;
    attn_exec exec;
    size_t bytes = attn_plan_bytes(batch, layer);
    void *mem = malloc(bytes);
    memset(&io, 0, sizeof io);
    memset(&exec, 0, sizeof exec);
    io.q = rows;
    io.k = k;
    io.v = v;
    io.o = o;
    CHECK(!attn_plan_make(&plan, batch, layer, mem, bytes, &error), "%s", error.text);
    if (batch->q_len[0] == D) {
        const int32_t *strip = plan.words + plan.words[13];
        CHECK(strip[7] >= 3 && plan.merges > 0 && plan.tasks > 1, "the run is too small to prove anything");
        CHECK(plan.strips > KV_HEADS, "one row tile");
    }
    exec.bytes = attn_exec_bytes(&plan, 1);
    exec.mem = malloc(exec.bytes);
    CHECK(!attn_forward(&plan, layer, &io, &exec, &error), "%s", error.text);
    free(exec.mem);
    free(mem);
}

/* What the draft model computed step by step, the target model verifies in one call: the same bits. */
static void test_steps(void) {
    test_rng r = { 5 };
    int i, s, isa, window;
    for (i = 0; i < D * HEADS * DIM; i++) q[i] = test_uniform(&r);
    for (i = 0; i < KEYS * KV_HEADS * DIM; i++) k[i] = test_uniform(&r);
    for (i = 0; i < KEYS * KV_HEADS * DIM; i++) v[i] = test_uniform(&r);
    for (isa = ATTN_ISA_SCALAR; isa; isa = next_isa(isa)) {
        for (window = 0; window <= 700; window += 700) {
            attn_layer layer;
            call c;
            memset(&layer, 0, sizeof layer);
            layer.heads = HEADS;
            layer.kv_heads = KV_HEADS;
            layer.head_dim = DIM;
            layer.row_tile = 16;
            layer.workers = 5;
            layer.window_left = window;
            layer.isa = isa;
            clear(&c, ATTN_MODE_TARGET_VERIFY, 1);
            c.seq[0] = KEYS - D;
            c.in.draft_tokens = D;
            CHECK(!convert(&c), "%s", c.error.text);
            forward(&c.batch, &layer, q, verified);
            for (s = 0; s < D; s++) {
                clear(&c, ATTN_MODE_DRAFT_DECODE, 1);
                c.seq[0] = KEYS - D;
                c.in.draft_step = s;
                CHECK(!convert(&c), "%s", c.error.text);
                forward(&c.batch, &layer, q + s * HEADS * DIM, stepped + s * HEADS * DIM);
            }
            CHECK(!memcmp(verified, stepped, sizeof verified), "isa %d, window %d", isa, window);
        }
    }
}

int main(int argc, char **argv) {
    test.only = argc > 1 ? argv[1] : NULL;
    test_run("modes whose rows are extend_lens", test_given);
    test_run("decode counts the new token", test_decode);
    test_run("draft decode steps", test_draft_decode);
    test_run("verify gives the prefix, draft-extend-v2 the total", test_verify);
    test_run("idle, and no request at all", test_idle);
    test_run("pads in every mode", test_pads);
    test_run("the caller's phase wins", test_phase);
    test_run("trap 1: one request in three modes, the same bytes", test_trap_1);
    test_run("trap 1: one convention taken for another", test_trap_1_mistaken);
    test_run("trap 6: drafts at the end of the context", test_trap_6);
    test_run("trap 18: lengths above int32", test_trap_18);
    test_run("errors name the request", test_entry_errors);
    test_run("errors name the argument", test_other_errors);
    test_run("draft steps and verify give the same bits", test_steps);
    return test_close("modes");
}
