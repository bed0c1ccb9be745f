/* test_lanes.c - what the arithmetic forms of test_forms.c leave out: lanes that talk to each other, control flow,
   loads and stores of every type, atomics, address spaces, special registers, and modules that must not load. */
#include "sim_test.h"

enum { WORDS = 1024 };

/* Runs code on `in` and gives b, which starts as zeros. */
static void run_code(const char *variables, const char *code, unsigned blocks, unsigned threads, const uint32_t *in,
                     uint32_t *out) {
    CUfunction f = kernel_around(variables, code);
    CUdeviceptr a = upload(in, WORDS * 4), b = upload(NULL, WORDS * 4);
    uint32_t n = threads;
    void *params[3];
    params[0] = &a;
    params[1] = &b;
    params[2] = &n;
    cuMemsetD32Async(b, 0, WORDS, NULL);
    memset(out, 0xEE, WORDS * 4);
    if (f) CHECK(!launch(f, blocks, threads, params), "%s", ptxsim_last_report());
    cuMemcpyDtoH_v2(out, b, WORDS * 4);
    ptxsim_recover();
    cuMemFree_v2(a);
    cuMemFree_v2(b);
}

static void count_up(uint32_t *in) {
    uint32_t i;
    for (i = 0; i < WORDS; i++) in[i] = i * 2654435761u ^ i;
}

/* One instruction that gives r8 (and p0 as r9) from r10 = in[thread]. */
static void run_one(const char *instruction, const uint32_t *in, uint32_t *out) {
    char code[800];
    snprintf(code, sizeof code,
             "ld.global.u32 r10, [d3];\nsetp.eq.u32 p0, r0, r0;\n%s;\nselp.u32 r9, 1, 0, p0;\nst.global.u32 [d4], r8;\n"
             "st.global.u32 [d4+128], r9;", instruction);
    run_code("", code, 1, 32, in, out);
}

/* ---- shuffles: the manual's rules, written out again ----------------------------------------------------------- */

static int source_of(char mode, int lane, int b, int width, int *inside) {
    int base = lane / width * width, j;
    if (mode == 'u') j = lane - b;
    else if (mode == 'd') j = lane + b;
    else if (mode == 'b') j = lane ^ b;
    else j = base + b % width;
    *inside = mode == 'b' ? j < base + width : j >= base && j < base + width;
    return *inside ? j : lane;
}

static void shuffles(void) {
    static const char *const names[] = { "up", "down", "bfly", "idx" };
    static uint32_t in[WORDS], out[WORDS];
    char code[200];
    int mode, width, b, lane, inside;
    open_device();
    count_up(in);
    for (mode = 0; mode < 4; mode++) {
        for (width = 2; width <= 32; width *= 2) {
            for (b = 0; b < 32; b += b < 3 ? 1 : 7) {
                int c = (32 - width) << 8 | (mode == 0 ? 0 : 31);
                snprintf(code, sizeof code, "shfl.sync.%s.b32 r8|p0, r10, %d, %d, -1", names[mode], b, c);
                run_one(code, in, out);
                for (lane = 0; lane < 32; lane++) {
                    int j = source_of(names[mode][0], lane, b, width, &inside);
                    CHECK(out[lane] == in[j] && out[32 + lane] == (uint32_t)inside,
                          "%s, lane %d: %x, inside %u, not %x, %d",
                          code, lane, (unsigned)out[lane], (unsigned)out[32 + lane], (unsigned)in[j], inside);
                }
            }
        }
    }
    run_one("shfl.sync.idx.b32 r8|_, r10, 3, 31, -1", in, out);
    for (lane = 0; lane < 32; lane++) CHECK(out[lane] == in[3] && out[32 + lane] == 1, "no predicate wanted");
    run_one("shfl.sync.idx.b32 r8, r10, r0, 31, -1", in, out);
    for (lane = 0; lane < 32; lane++) CHECK(out[lane] == in[lane], "lane %d reads itself", lane);
}

static void votes(void) {
    static uint32_t in[WORDS], out[WORDS];
    uint32_t odd = 0, least = ~0u, most = 0, sum = 0, all = ~0u, any = 0, parity = 0;
    int32_t least_s = INT32_MAX, most_s = INT32_MIN;
    int i;
    open_device();
    count_up(in);
    for (i = 0; i < 32; i++) {
        odd |= (in[i] & 1) << i;
        least = in[i] < least ? in[i] : least;
        most = in[i] > most ? in[i] : most;
        least_s = (int32_t)in[i] < least_s ? (int32_t)in[i] : least_s;
        most_s = (int32_t)in[i] > most_s ? (int32_t)in[i] : most_s;
        sum += in[i];
        all &= in[i];
        any |= in[i];
        parity ^= in[i];
    }
    run_one("and.b32 r11, r10, 1;\nsetp.eq.u32 p1, r11, 1;\nvote.sync.ballot.b32 r8, p1, -1", in, out);
    CHECK(out[0] == odd && out[31] == odd, "ballot %x, not %x", (unsigned)out[0], (unsigned)odd);
    run_one("and.b32 r11, r10, 1;\nsetp.eq.u32 p1, r11, 1;\nvote.sync.ballot.b32 r8, !p1, -1", in, out);
    CHECK(out[7] == ~odd, "ballot %x, not %x", (unsigned)out[7], (unsigned)~odd);
    run_one("mov.u32 r8, 0;\nsetp.eq.u32 p1, r0, 5;\nvote.sync.any.pred p0, p1, -1", in, out);
    CHECK(out[32] == 1, "any of one");
    run_one("mov.u32 r8, 0;\nsetp.eq.u32 p1, r0, 32;\nvote.sync.any.pred p0, p1, -1", in, out);
    CHECK(out[32] == 0, "any of none");
    run_one("mov.u32 r8, 0;\nsetp.lt.u32 p1, r0, 32;\nvote.sync.all.pred p0, p1, -1", in, out);
    CHECK(out[32] == 1, "all of all");
    run_one("mov.u32 r8, 0;\nsetp.lt.u32 p1, r0, 31;\nvote.sync.all.pred p0, p1, -1", in, out);
    CHECK(out[32] == 0, "all of all but one");
    run_one("mov.u32 r8, 0;\nsetp.lt.u32 p1, r0, 31;\nvote.sync.uni.pred p0, p1, -1", in, out);
    CHECK(out[32] == 0, "uniform, but for one");
    run_one("mov.u32 r8, 0;\nsetp.eq.u32 p1, r0, 99;\nvote.sync.uni.pred p0, p1, -1", in, out);
    CHECK(out[32] == 1, "uniform");
    run_one("and.b32 r11, r0, 3;\nmatch.any.sync.b32 r8, r11, -1", in, out);
    CHECK(out[5] == 0x22222222u, "match %x", (unsigned)out[5]);
    run_one("and.b32 r11, r0, 32;\nmatch.all.sync.b32 r8|p0, r11, -1", in, out);
    CHECK(out[5] == ~0u && out[37] == 1, "match all %x", (unsigned)out[5]);
    run_one("and.b32 r11, r0, 1;\nmatch.all.sync.b32 r8|p0, r11, -1", in, out);
    CHECK(out[5] == 0 && out[37] == 0, "match all %x", (unsigned)out[5]);
    run_one("redux.sync.add.u32 r8, r10, -1", in, out);
    CHECK(out[9] == sum, "sum %u", (unsigned)out[9]);
    run_one("redux.sync.add.s32 r8, r10, -1", in, out);
    CHECK(out[9] == sum, "sum %u", (unsigned)out[9]);
    run_one("redux.sync.min.u32 r8, r10, -1", in, out);
    CHECK(out[9] == least, "least %u", (unsigned)out[9]);
    run_one("redux.sync.max.u32 r8, r10, -1", in, out);
    CHECK(out[9] == most, "most %u", (unsigned)out[9]);
    run_one("redux.sync.min.s32 r8, r10, -1", in, out);
    CHECK(out[9] == (uint32_t)least_s, "least %d", (int)out[9]);
    run_one("redux.sync.max.s32 r8, r10, -1", in, out);
    CHECK(out[9] == (uint32_t)most_s, "most %d", (int)out[9]);
    run_one("redux.sync.and.b32 r8, r10, -1", in, out);
    CHECK(out[9] == all, "and %x", (unsigned)out[9]);
    run_one("redux.sync.or.b32 r8, r10, -1", in, out);
    CHECK(out[9] == any, "or %x", (unsigned)out[9]);
    run_one("redux.sync.xor.b32 r8, r10, -1", in, out);
    CHECK(out[9] == parity, "xor %x", (unsigned)out[9]);
    run_one("mov.u32 r8, 0;\nsetp.lt.u32 p1, r0, 5;\n@p1 activemask.b32 r8", in, out);
    CHECK(out[4] == 31 && out[5] == 0, "active %x", (unsigned)out[4]);
}

/* Every form of warp.c stands in one of the tests above. */
static void lane_forms(void) {
    static const char *const known[] = { "shfl.sync.", "vote.sync.", "match.", "redux.sync.", "activemask.",
                                         "bar.warp.sync" };
    const char *name, *operands;
    int i, listed = 0;
    size_t k;
    for (i = 0; (name = ptxsim_form(i, &operands)) != NULL; i++) {
        int found = 0;
        if (!strpbrk(operands, "nP") && strlen(operands) > 1 && !strstr(name, ".sync")) continue;
        for (k = 0; k < sizeof known / sizeof *known; k++) found |= !strncmp(name, known[k], strlen(known[k]));
        CHECK(found, "%s has no test", name);
        listed++;
    }
    CHECK(listed == 21, "%d forms", listed);
}

/* ---- control flow ---------------------------------------------------------------------------------------------- */

static void divergence(void) {
    static uint32_t in[WORDS], out[WORDS];
    uint32_t t, i, x;
    ptxsim_counters c;
    open_device();
    count_up(in);
    ptxsim_reset_counters();
    /* a loop whose count differs between the lanes, with a branch inside, joined again by a vote behind it */
    run_code("",
             "mov.u32 r8, 0;\nmov.u32 r9, 0;\nLOOP:\nxor.b32 r10, r9, r0;\nand.b32 r10, r10, 1;\n"
             "setp.eq.u32 p0, r10, 0;\n@p0 bra EVEN;\n"
             "mad.lo.u32 r8, r8, 3, r9;\nbra NEXT;\nEVEN:\nadd.u32 r8, r8, r0;\nNEXT:\nadd.u32 r9, r9, 1;\n"
             "setp.lt.u32 p0, r9, r0;\n@p0 bra LOOP;\nsetp.ne.u32 p1, r8, 0;\nvote.sync.ballot.b32 r11, p1, -1;\n"
             "add.u32 r8, r8, r11;\nst.global.u32 [d4], r8;", 1, 32, in, out);
    for (t = 0; t < 32; t++) {
        x = 0;
        i = 0;
        do {
            x = (i ^ t) & 1 ? x * 3 + i : x + t;
            i++;
        } while (i < t);
        CHECK(out[t] == x + 0xFFFFFFFCu, "lane %u: %u", (unsigned)t, (unsigned)out[t]);
    }
    ptxsim_get_counters(&c);
    /* 16 instructions outside of the loop, 10 inside, 31 times: fragments met again after each branch */
    CHECK(c.divergent_branches >= 30 && c.instructions < 16 + 31 * 10 + 20,
          "%llu instructions, %llu divergent branches",
          (unsigned long long)c.instructions, (unsigned long long)c.divergent_branches);
    /* labels in braces, as inline assembly repeats them */
    run_code("",
             "mov.u32 r8, 0;\n{\n.reg .b32 r9;\nmov.u32 r9, 5;\nbra L;\nmov.u32 r8, 1;\nL:\nadd.u32 r8, r8, r9;\n}\n"
             "{\n.reg .pred q;\nsetp.eq.u32 q, r0, 3;\n@q bra L;\nadd.u32 r8, r8, 100;\nL:\n}\nst.global.u32 [d4], r8;",
             1, 32, in, out);
    CHECK(out[0] == 105 && out[3] == 5, "%u %u", (unsigned)out[0], (unsigned)out[3]);
    /* lanes leave one after the other */
    run_code("",
             "mov.u32 r8, 0;\nLOOP:\nst.global.u32 [d4], r8;\nsetp.eq.u32 p0, r8, r0;\n@p0 exit;\nadd.u32 r8, r8, 1;\n"
             ".pragma \"nounroll\";\nbra.uni LOOP;", 1, 40, in, out);
    for (t = 0; t < 40; t++) CHECK(out[t] == t, "thread %u: %u", (unsigned)t, (unsigned)out[t]);
}

static void barriers(void) {
    static uint32_t in[WORDS], out[WORDS];
    open_device();
    count_up(in);
    run_code("", "setp.lt.u32 p0, r0, 37;\nbar.red.popc.u32 r8, 0, p0;\nst.global.u32 [d4], r8;", 1, 96, in, out);
    CHECK(out[0] == 37 && out[95] == 37, "%u", (unsigned)out[95]);
    run_code("", "setp.lt.u32 p0, r0, 37;\nbar.red.popc.u32 r8, 0, !p0;\nst.global.u32 [d4], r8;", 1, 96, in, out);
    CHECK(out[0] == 59, "%u", (unsigned)out[0]);
    run_code("", "setp.eq.u32 p0, r0, 70;\nbar.red.or.pred p1, 0, p0;\nselp.u32 r8, 1, 0, p1;\nst.global.u32 [d4], r8;",
             1, 96, in, out);
    CHECK(out[0] == 1 && out[95] == 1, "or");
    run_code("", "setp.ne.u32 p0, r0, 70;\nbar.red.and.pred p1, 0, p0;\nselp.u32 r8, 1, 0, p1;\n"
             "st.global.u32 [d4], r8;",
             1, 96, in, out);
    CHECK(out[0] == 0 && out[95] == 0, "and");
    run_code("", "setp.lt.u32 p0, r0, 96;\nbarrier.cta.red.popc.aligned.u32 r8, 1, 96, p0;\nst.global.u32 [d4], r8;\n"
             "barrier.sync 0;\nbarrier.cta.sync.aligned 2, 96;", 1, 96, in, out);
    CHECK(out[0] == 96, "%u", (unsigned)out[0]);
}

/* ---- memory ---------------------------------------------------------------------------------------------------- */

static void loads(void) {
    static uint32_t in[WORDS], out[WORDS];
    uint32_t t;
    open_device();
    count_up(in);
    in[0] = 0x80FF7F81u;
    run_code("", "ld.global.s8 r8, [d0];\nld.global.u8 r9, [d0];\nld.global.s8 h0, [d0+1];\n"
             "ld.global.u16 r10, [d0+2];\n"
             "ld.global.s16 r11, [d0+2];\ncvt.s32.s16 r12, h0;\nst.global.v4.u32 [d1], {r8, r9, r10, r11};\n"
             "ld.global.s32 d8, [d0];\nst.global.b64 [d1+16], d8;\nst.global.u8 [d1+24], r8;\n"
             "st.global.u16 [d1+28], h0;\n"
             "st.global.u32 [d1+32], r12;", 1, 1, in, out);
    CHECK(out[0] == 0xFFFFFF81u && out[1] == 0x81, "bytes %x %x", (unsigned)out[0], (unsigned)out[1]);
    CHECK(out[2] == 0x80FF && out[3] == 0xFFFF80FFu, "halves %x %x", (unsigned)out[2], (unsigned)out[3]);
    CHECK(out[4] == in[0] && out[5] == ~0u, "a word as 64 bits: %x", (unsigned)out[5]);
    CHECK(out[6] == 0x81 && out[7] == 0x7F && out[8] == 0x7F, "stores %x %x", (unsigned)out[6], (unsigned)out[7]);
    run_code("", "mul.wide.u32 d8, r0, 16;\nadd.u64 d9, d0, d8;\nadd.u64 d10, d1, d8;\n"
             "ld.global.nc.L1::no_allocate.v4.u32 {r8, _, r10, r11}, [d9];\nmov.u32 r9, 7;\n"
             "st.global.cs.v4.u32 [d10], {r8, r9, r10, 5};", 1, 32, in, out);
    for (t = 0; t < 32; t++) {
        CHECK(out[4 * t] == in[4 * t] && out[4 * t + 1] == 7 && out[4 * t + 2] == in[4 * t + 2] && out[4 * t + 3] == 5,
              "vector of thread %u", (unsigned)t);
    }
    run_code("", "ld.global.v4.u8 {h0, h1, h2, h3}, [d0];\nst.global.v4.u8 [d1], {h3, h2, h1, h0};\n"
             "ld.global.v2.f32 {f0, f1}, [d0+8];\nst.global.v2.f32 [d1+8], {f1, 0f3F800000};", 1, 1, in, out);
    CHECK(out[0] == 0x817FFF80u && out[2] == in[3] && out[3] == 0x3F800000u, "%x %x", (unsigned)out[0],
          (unsigned)out[3]);
    run_code("", "nanosleep.u32 20;\nprefetch.global.L2 [d0];\nsetp.lt.u32 p0, r0, 3;\nmov.u32 r8, 9;\n"
             "@p0 ld.global.u32 r8, [d3];\nst.global.u32 [d4], r8;", 1, 32, in, out);
    CHECK(out[2] == in[2] && out[3] == 9, "a guarded load changes its lanes only");
}

static void spaces(void) {
    static uint32_t in[WORDS], out[WORDS];
    uint32_t t;
    open_device();
    count_up(in);
    run_code(".global .align 4 .u32 g = 77;\n.const .align 4 .b8 c[8] = {1, 2, 3, 4, 5};\n"
             ".global .align 8 .u64 z[2];\n",
             "ld.global.u32 r8, [g];\nld.const.u32 r9, [c+4];\nld.global.u32 r10, [z+8];\nadd.u32 r8, r8, r9;\n"
             "add.u32 r8, r8, r10;\nst.global.u32 [d4], r8;", 1, 32, in, out);
    CHECK(out[0] == 82, "variables %u", (unsigned)out[0]);
    run_code("", ".local .align 8 .b8 l[32];\n.reg .b64 sp, spl;\nmov.u64 spl, l;\ncvta.local.u64 sp, spl;\n"
             "mul.lo.u32 r8, r0, 7;\nst.u32 [sp+4], r8;\nld.local.u32 r9, [spl+4];\nst.global.u32 [d4], r9;", 1, 64,
             in, out);
    for (t = 0; t < 64; t++) CHECK(out[t] == 7 * t, "local of thread %u: %u", (unsigned)t, (unsigned)out[t]);
    run_code(".extern .shared .align 16 .b8 dyn[];\n.shared .align 4 .u32 m;\n",
             ".shared .align 8 .b8 own[8];\nmov.u64 d8, own;\ncvta.shared.u64 d8, d8;\nst.u32 [d8], 5;\n"
             "cvta.to.shared.u64 d9, d8;\nld.shared.u32 r8, [d9];\nst.shared.u32 [m], r8;\nld.shared.u32 r9, [m];\n"
             "mov.u32 r10, own;\nmov.u32 r11, dyn;\nsetp.lt.u32 p0, r10, r11;\nselp.u32 r10, 100, 0, p0;\n"
             "add.u32 r9, r9, r10;\nst.global.u32 [d4], r9;", 1, 1, in, out);
    CHECK(out[0] == 105, "shared %u", (unsigned)out[0]);
    run_code("", "cvta.to.global.u64 d8, d1;\nld.param.u32 r8, [n];\nst.global.u32 [d8], r8;\nmov.b64 d9, {r8, r0};\n"
             "mov.b64 {r9, r10}, d9;\nst.global.u32 [d8+4], r9;\nmov.b64 {_, r11}, d9;\nst.global.u32 [d8+8], r11;\n"
             "mov.b32 {h0, h1}, 0x12345678;\nmov.b32 r12, {h1, h0};\nst.global.u32 [d8+12], r12;", 1, 1, in, out);
    CHECK(out[0] == 1 && out[1] == 1 && out[2] == 0 && out[3] == 0x56781234u, "pack %x", (unsigned)out[3]);
    run_code("", "mov.b64 d8, a;\ncvta.param.u64 d8, d8;\nld.u64 d9, [d8+8];\ncvta.to.param.u64 d8, d8;\n"
             "ld.param.u32 r8, [d8+16];\nst.global.u32 [d9], r8;", 1, 1, in, out);
    CHECK(out[0] == 1, "a generic address of a parameter");
}

/* Lanes of one load in different windows. */
static void mixed_spaces(void) {
    static uint32_t in[WORDS], out[WORDS];
    uint32_t t;
    open_device();
    count_up(in);
    run_code(".shared .align 8 .b8 s[128];",
             "mov.u64 d8, s;\nadd.u64 d8, d8, d2;\ncvta.shared.u64 d9, d8;\nld.global.u32 r8, [d3];\nnot.b32 r8, r8;\n"
             "st.shared.u32 [d8], r8;\nand.b32 r9, r0, 3;\nsetp.eq.u32 p0, r9, 1;\nselp.b64 d10, d9, d3, p0;\n"
             "ld.u32 r10, [d10];\nst.global.u32 [d4], r10;\nadd.u64 d11, d4, 128;\nselp.b64 d10, d9, d11, p0;\n"
             "st.u32 [d10], r0;\nbar.warp.sync -1;\nld.u32 r11, [d10];\nst.global.u32 [d4+256], r11;", 1, 32, in, out);
    for (t = 0; t < 32; t++) {
        CHECK(out[t] == (t % 4 == 1 ? ~in[t] : in[t]), "lane %u: %x", (unsigned)t, (unsigned)out[t]);
        CHECK(out[32 + t] == (t % 4 == 1 ? 0 : t), "lane %u: %u", (unsigned)t, (unsigned)out[32 + t]);
        CHECK(out[64 + t] == t, "lane %u: %u", (unsigned)t, (unsigned)out[64 + t]);
    }
}

/* Registers share places, see registers.c: a value must outlive whatever comes between its writing and its last use,
   in another iteration, under a guard, in lanes that went elsewhere. */
static void shared_registers(void) {
    static uint32_t in[WORDS], out[WORDS];
    uint32_t t, i, before, sum;
    open_device();
    count_up(in);
    /* r8 from before the loop, r9 from iteration to iteration, r13 written at its end and read at its start */
    run_code("", "ld.global.u32 r8, [d3];\nmov.u32 r9, 0;\nmov.u32 r10, 0;\nmov.u32 r13, 5;\nLOOP:\n"
             "mad.lo.u32 r11, r10, 3, r8;\nxor.b32 r12, r11, r13;\nadd.u32 r9, r9, r12;\nmul.lo.u32 r14, r10, 7;\n"
             "add.u32 r13, r14, 1;\nadd.u32 r10, r10, 1;\nsetp.lt.u32 p0, r10, 9;\n@p0 bra LOOP;\n"
             "st.global.u32 [d4], r9;", 1, 32, in, out);
    for (t = 0; t < 32; t++) {
        for (sum = i = 0, before = 5; i < 9; before = 7 * i++ + 1) sum += (3 * i + in[t]) ^ before;
        CHECK(out[t] == sum, "lane %u: %x, not %x", (unsigned)t, (unsigned)out[t], (unsigned)sum);
    }
    /* r8 is written under a guard and keeps its other lanes; r9 is needed by the lanes that come second alone */
    run_code("", "ld.global.u32 r8, [d3];\nadd.u32 r9, r8, 1;\nsetp.lt.u32 p0, r0, 11;\n@p0 mov.u32 r8, 77;\n"
             "@p0 bra LOW;\nadd.u32 r10, r9, 2;\nadd.u32 r11, r10, r10;\nst.global.u32 [d4], r11;\nbra OUT;\nLOW:\n"
             "add.u32 r12, r0, 3;\nadd.u32 r13, r12, r12;\nadd.u32 r13, r13, r9;\nst.global.u32 [d4], r13;\nOUT:\n"
             "st.global.u32 [d4+128], r8;", 1, 32, in, out);
    for (t = 0; t < 32; t++) {
        CHECK(out[t] == (t < 11 ? 2 * (t + 3) + in[t] + 1 : 2 * (in[t] + 3)), "lane %u: %x", (unsigned)t,
              (unsigned)out[t]);
        CHECK(out[32 + t] == (t < 11 ? 77 : in[t]), "the guard in lane %u: %x", (unsigned)t, (unsigned)out[32 + t]);
    }
    /* r8 is written under a guard, in one iteration of every lane, and read in all */
    run_code("", "mov.u32 r8, 5;\nmov.u32 r9, 0;\nmov.u32 r10, 0;\nLOOP:\nsetp.eq.u32 p0, r10, r0;\n"
             "@p0 mov.u32 r8, 77;\nadd.u32 r9, r9, r8;\nmul.lo.u32 r14, r10, 7;\nadd.u32 r13, r14, 1;\n"
             "add.u32 r9, r9, r13;\nadd.u32 r10, r10, 1;\nsetp.lt.u32 p0, r10, 9;\n@p0 bra LOOP;\n"
             "st.global.u32 [d4], r9;", 1, 32, in, out);
    for (t = 0; t < 32; t++) {
        for (sum = i = 0; i < 9; i++) sum += (i < t ? 5 : 77) + 7 * i + 1;
        CHECK(out[t] == sum, "lane %u: %u, not %u", (unsigned)t, (unsigned)out[t], (unsigned)sum);
    }
    /* values of all widths, special registers that are read late, results of several words */
    run_code("", "ld.global.v4.u32 {r8, r9, r10, r11}, [d0];\nmov.b64 d8, {r8, r9};\nmov.b32 {h0, h1}, r10;\n"
             "add.u64 d9, d8, 1;\nadd.u16 h2, h0, h1;\nmov.b64 {r12, r13}, d9;\ncvt.u32.u16 r14, h2;\n"
             "shfl.sync.bfly.b32 r15|p0, r14, 1, 31, -1;\nselp.u32 r16, r15, 0, p0;\nmov.u32 r17, %laneid;\n"
             "mov.u32 r18, %ntid.x;\nadd.u32 r17, r17, r18;\nmul.wide.u32 d10, r0, 16;\nadd.u64 d10, d1, d10;\n"
             "st.global.v4.u32 [d10], {r12, r13, r16, r17};", 1, 32, in, out);
    for (t = 0; t < 32; t++) {
        const uint32_t *o = out + 4 * t;
        CHECK(o[0] == in[0] + 1 && o[1] == in[1] + !(in[0] + 1) && o[3] == t + 32, "%x %x %u", (unsigned)o[0],
              (unsigned)o[1], (unsigned)o[3]);
        CHECK(o[2] == (uint16_t)(in[2] + (in[2] >> 16)), "halves %x", (unsigned)o[2]);
    }
}

static void special_registers(void) {
    static uint32_t in[WORDS], out[WORDS];
    CUfunction f;
    CUdeviceptr a, b;
    uint32_t n = 0;
    void *params[3];
    open_device();
    count_up(in);
    f = kernel_around("", "mov.u32 r8, %tid.x;\nmov.u32 r9, %tid.y;\nmov.u32 r10, %tid.z;\nmov.u32 r11, %ntid.x;\n"
                      "mov.u32 r12, %ntid.y;\nmov.u32 r13, %ctaid.y;\nmov.u32 r14, %nctaid.y;\nmov.u32 r15, %ctaid.z;\n"
                      "mad.lo.u32 r16, r10, r12, r9;\nmad.lo.u32 r16, r16, r11, r8;\nsetp.eq.u32 p0, r15, 1;\n"
                      "setp.eq.u32 p1, r13, r14;\n@!p0 ret;\n@p1 trap;\nmul.wide.u32 d8, r16, 32;\n"
                      "add.u64 d8, d1, d8;\n"
                      "mov.u32 r17, %laneid;\nmov.u32 r18, %warpid;\nmov.u32 r19, %lanemask_lt;\n"
                      "mov.u32 r20, %lanemask_ge;\n"
                      "mov.u32 r21, %nwarpid;\nmov.u32 r22, %dynamic_smem_size;\nmov.u32 r23, %nctaid.z;\n"
                      "setp.eq.u32 p2, r13, 1;\n@p2 st.global.v4.u32 [d8], {r16, r17, r18, r19};\n"
                      "@p2 st.global.v4.u32 [d8+16], {r20, r21, r22, r23};");
    a = upload(in, sizeof in);
    b = upload(NULL, sizeof in);
    params[0] = &a;
    params[1] = &b;
    params[2] = &n;
    CHECK(!cuLaunchKernel(f, 1, 2, 3, 5, 4, 2, 48, NULL, params, NULL), "launch");
    CHECK(!cuMemcpyDtoH_v2(out, b, 40 * 32), "%s", ptxsim_last_report());
    for (n = 0; n < 40; n++) {
        const uint32_t *o = out + 8 * n;
        uint32_t lane = n % 32;
        CHECK(o[0] == n && o[1] == lane && o[2] == n / 32, "thread %u: %u %u %u", (unsigned)n, (unsigned)o[0],
              (unsigned)o[1],
              (unsigned)o[2]);
        CHECK(o[3] == (1u << lane) - 1 && o[4] == ~((1u << lane) - 1), "masks of lane %u", (unsigned)lane);
        CHECK(o[5] == 2 && o[6] == 48 && o[7] == 3, "%u %u %u", (unsigned)o[5], (unsigned)o[6], (unsigned)o[7]);
    }
    cuMemFree_v2(a);
    cuMemFree_v2(b);
}

/* Each operation on a word that starts as in[0]; 32 threads add up to one result whatever their order. */
static void atomics(void) {
    static uint32_t in[WORDS], out[WORDS];
    char code[400];
    size_t i;
    static const struct {
        const char *operation, *operands;
        uint32_t start, result;
    } cases[] = {
        { "add.u32", "r0", 5, 5 + 496 },          { "add.s32", "-1", 5, 5 - 32u },
        { "min.s32", "r9", 3, (uint32_t)-16 },    { "max.s32", "r9", (uint32_t)-99, 15 },
        { "min.u32", "r9", 3, 0 },                { "max.u32", "r9", 3, 0xFFFFFFFFu },
        { "and.b32", "r10", 0xFFu, 0 },           { "or.b32", "r10", 0, 0xFFFFFFFFu },
        { "xor.b32", "r10", 1, 0xFFFFFFFEu },     { "exch.b32", "7", 1, 7 },
        { "cas.b32", "3, 9", 3, 9 },              { "cas.b32", "4, 9", 3, 3 },
        { "inc.u32", "9", 0, 2 },                 { "dec.u32", "9", 0, 8 },
        { "add.f32", "0f3F000000", 0x3F800000u, 0x41880000u },
    };
    open_device();
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        memset(in, 0, sizeof in);
        in[0] = cases[i].start;
        snprintf(code, sizeof code, "add.s32 r9, r0, -16;\nmov.u32 r10, %%lanemask_eq;\nred.global.%s [d0], %s;\n"
                 "bar.warp.sync -1;\nld.volatile.global.u32 r8, [d0];\nst.global.u32 [d4], r8;", cases[i].operation,
                 cases[i].operands);
        if (!strncmp(cases[i].operation, "cas", 3) || !strncmp(cases[i].operation, "exch", 4)) {
            snprintf(code, sizeof code, "atom.global.%s r11, [d0], %s;\nld.volatile.global.u32 r8, [d0];\n"
                     "st.global.u32 [d4], r8;", cases[i].operation, cases[i].operands);
        }
        run_code("", code, 1, 32, in, out);
        CHECK(out[0] == cases[i].result, "%s %s: %x, not %x", cases[i].operation, cases[i].operands, (unsigned)out[0],
                 (unsigned)cases[i].result);
    }
    in[0] = 10;
    in[1] = 0xFFFFFFFFu;
    run_code("", "cvt.u64.u32 d8, r0;\natom.relaxed.gpu.global.add.u64 d9, [d0], d8;\ncvt.u32.u64 r8, d9;\n"
             "atom.global.max.u64 d9, [d0], 5;\nst.global.u32 [d4], r8;\nsetp.eq.u32 p0, r0, 31;\n"
             "ld.volatile.global.u64 d10, [d0];\n@p0 st.global.u64 [d1+128], d10;", 1, 32, in, out);
    CHECK(out[0] == 10 && out[3] == 10 + 0 + 1 + 2, "old values %u", (unsigned)out[3]);
    CHECK(out[32] == 10 + 496 && out[33] == 0xFFFFFFFFu, "64 bits");
    run_code(".shared .align 4 .u32 s;\n", "setp.eq.u32 p0, r0, 0;\n@p0 st.shared.u32 [s], 4;\nbar.sync 0;\n"
             "atom.shared.add.u32 r8, [s], 2;\nbar.sync 0;\nld.shared.u32 r9, [s];\nst.global.u32 [d4], r9;", 1, 96,
             in, out);
    CHECK(out[95] == 4 + 192, "shared %u", (unsigned)out[95]);
}

static void asynchronous_copies(void) {
    static uint32_t in[WORDS], out[WORDS];
    uint32_t t;
    open_device();
    count_up(in);
    run_code(".shared .align 16 .b8 s[2048];\n",
             "mov.u32 r8, s;\nshl.b32 r9, r0, 4;\nadd.u32 r8, r8, r9;\nmul.wide.u32 d8, r0, 16;\nadd.u64 d8, d0, d8;\n"
             "add.u64 d9, d1, d2;\nsetp.lt.u32 p0, r0, 60;\nselp.u32 r10, 16, 8, p0;\n"
             "cp.async.cg.shared.global.L2::128B [r8], [d8], 16, r10;\ncp.async.commit_group;\ncp.async.wait_group 0;\n"
             "bar.sync 0;\nld.shared.u32 r11, [r8+4];\nld.shared.u32 r12, [r8+12];\nst.global.u32 [d9], r11;\n"
             "st.global.u32 [d9+1024], r12;", 1, 64, in, out);
    for (t = 0; t < 64; t++) {
        CHECK(out[t] == in[4 * t + 1] && out[256 + t] == (t < 60 ? in[4 * t + 3] : 0), "thread %u", (unsigned)t);
    }
}

/* ---- modules --------------------------------------------------------------------------------------------------- */

static void refused(const char *code, const char *why) {
    static char text[3000];
    CUmodule module = NULL;
    snprintf(text, sizeof text, PTX_HEAD ".visible .entry k(.param .u64 a)\n{\n.reg .b32 r<4>;\n.reg .b64 d<4>;\n"
             ".reg .pred p;\n"
             "%s\nret;\n}\n", code);
    CHECK(load_text(&module, text) == 218, "%s loads", code);
    CHECK(strstr(test_log, why), "%s: %s", code, test_log);
    if (module) cuModuleUnload(module);
}

static void bad_modules(void) {
    CUmodule module;
    CUfunction f;
    open_device();
    CHECK(load_text(&module, PTX_HEAD ".file 1 \"a.cu\"\n.visible .entry k() { ret; }\n.section .debug_str\n{\nA:\n"
                    ".b8 1,2\n.b8 0\n}\n.visible .entry l() { ret; }") == 0, "%s", test_log);
    CHECK(cuModuleGetFunction(&f, module, "l") == 0, "a kernel behind a section");
    refused("// add\n/* two\nlines */ // {\nadd.v7.u32 r0, r1, r2;", "line 12: `add.v7.u32");
    refused(".reg .b32 q<;", "a number is expected");
    refused("add.v7.u32 r0, r1, r2;",
            "line 9: `add.v7.u32 r0, r1, r2' is not a form that the simulator knows, in the kernel k");
    refused("add.u32 r0, r1;", "other operands");
    refused("add.u32 r0, r1, d1;", "other operands");
    refused("add.u32 r0, !p, r1;", "other operands");
    refused("add.u32 r0, r1, r9;", "r9 is not declared");
    refused("add.u32 r0, r1, %clock;", "%clock is not known");
    refused("bra NOWHERE;", "there is no label NOWHERE");
    refused("{\nL:\n}\nbra L;", "there is no label L");
    refused("ld.global.v2.u32 r0, [d0];", "1 values, the name says 2");
    refused("ld.global.u64 r0, [d0];", "a register of 32 bits");
    refused("ld.global.f32 d0, [d0];", "a register of 64 bits");
    refused("ld.global.u32 r0, [r1];", "an address of 32 bits");
    refused("ld.global.f16 r0, [d0];", "is not a form");
    refused("ld.shared.nc.u32 r0, [r1];", ".nc is for global memory");
    refused("st.const.u32 [d0], r0;", "is not a form");
    refused("atom.global.add.f64 d0, [d1], d2;", "is not a form");
    refused("atom.global.add.u32 r0, [d0];", "is not a form");
    refused("red.global.add.u32 r0, [d0], r1;", "is not a form");
    refused("nanosleep.u32;", "is not a form");
    refused("ld.global.u8 %f, [d0];", "%f is not known");
    refused("atom.global.exch.b16 r0, [d1], r2;", "is not a form");
    refused("cp.async.cg.shared.global [r0], [d0], 8;", "is not a form");
    refused("mov.b64 {r0, r1, r2}, d0;", "");
    refused("bar.arrive 0;", "is not a form");
    refused("fence.proxy.async;", "is not a form");
    refused("wgmma.fence.sync.aligned;", "is not a form");
    refused(".branchtargets A, B;", ".branchtargets is not supported");
    refused(".reg .b128 q;", "this type of registers is not supported");
    CHECK(load_text(&module, "hello") == 218 && strstr(test_log, "this is not PTX"), "%s", test_log);
    CHECK(load_text(&module, PTX_HEAD ".func f() { ret; }") == 218, ".func loads");
    CHECK(load_text(&module, PTX_HEAD ".visible .entry k() { ret;") == 218 && strstr(test_log, "} is missing"), "%s",
          test_log);
    CHECK(load_text(&module, "\177ELF") == 209, "a cubin is CUDA_ERROR_NO_BINARY_FOR_GPU");
    CHECK(load_text(&module, ".version 9.1\n.target sm_75\n.address_size 64\n") == 222, "newer PTX than the driver");
    ptxsim_set("PTXSIM_DRIVER", "12040");
    CHECK(load_text(&module, ".version 8.4\n.target sm_75\n.address_size 64\n") == 0, "%s", test_log);
    CHECK(load_text(&module, ".version 8.5\n.target sm_75\n.address_size 64\n") == 222, "newer than an older driver");
    ptxsim_set("PTXSIM_DRIVER", "12080");
    CHECK(load_text(&module, ".version 8.7\n.target sm_75\n.address_size 64\n") == 0, "%s", test_log);
    CHECK(load_text(&module, ".version 8.8\n.target sm_75\n.address_size 64\n") == 222, "12.8 reads 8.7");
    ptxsim_set("PTXSIM_CC", "86");
    CHECK(load_text(&module, ".version 8.0\n.target sm_80\n.address_size 64\n") == 0, "%s", test_log);
    CHECK(load_text(&module, ".version 8.0\n.target sm_90\n.address_size 64\n") == 218, "sm_90 on 8.6");
    ptxsim_set("PTXSIM_CC", "100");
    CHECK(load_text(&module, ".version 8.0\n.target sm_90a\n.address_size 64\n") == 218, "sm_90a on 10.0");
}

/* Text that is cut off or damaged anywhere: refused or loaded, but read to no harm. */
static void damaged_modules(void) {
    static const char *const text = PTX_HEAD
        ".global .align 4 .b8 g[8] = {1, 2, 0x3};\n.extern .shared .align 16 .b8 dyn[];\n"
        ".visible .entry k(.param .u64 .ptr .global .align 16 a, .param .align 8 .b8 b[24])\n.maxntid 128, 1, 1\n{\n"
        ".reg .pred %p<3>;\n.reg .b16 h<4>;\n.reg .b32 %r<9>;\n.reg .f32 %f<4>;\n.reg .b64 %rd<5>;\n"
        ".shared .align 4 .b8 s[64];\n.loc 1 3 5\nld.param.u64 %rd1, [a];\nmov.u32 %r1, %tid.x;\nL1:\n"
        "{ .reg .pred q; setp.lt.s32 q, %r1, -5; @!q bra L2; }\nld.global.v2.f32 {%f1, _}, [%rd1+-8];\n"
        "shfl.sync.bfly.b32 %r2|%p1, %r1, 1, 31, -1;\nmov.b32 {h1, h2}, %r2;\nfma.rn.f32 %f2, %f1, 0f3F800000, 1.5;\n"
        "@%p1 bra L1;\nL2:\nbar.sync 0;\natom.global.add.u32 %r3, [%rd1], 1;\nst.shared.u32 [s+4], %r3;\nret;\n}\n";
    char copy[2000];
    test_rng rng = { 77 };
    size_t n = strlen(text), i;
    int loaded = 0;
    open_device();
    for (i = 0; i < n + 3000; i++) {
        CUmodule module = NULL;
        CUresult r;
        memcpy(copy, text, n + 1);
        if (i < n) copy[i] = 0;
        else copy[test_range(&rng, 0, (int)n - 1)] = "{}[];,.:%@!<>()-0 1afrx_\"/*"[test_range(&rng, 0, 27)];
        r = load_text(&module, copy);
        CHECK(r == 0 || r == 218 || r == 222, "code %d", r);
        CHECK(r == 0 || test_log[0], "no text");
        loaded += r == 0;
        if (module) cuModuleUnload(module);
    }
    CHECK(loaded > 100 && loaded < 2000, "%d loaded", loaded);
}

int main(int argc, char **argv) {
    if (argc > 1) test.only = argv[1];
    test_run("lanes: shuffles", shuffles);
    test_run("lanes: votes, matches, reductions", votes);
    test_run("lanes: every form is tested", lane_forms);
    test_run("lanes: divergence", divergence);
    test_run("lanes: barriers that reduce", barriers);
    test_run("lanes: loads and stores", loads);
    test_run("lanes: address spaces", spaces);
    test_run("lanes: different windows", mixed_spaces);
    test_run("lanes: registers that share places", shared_registers);
    test_run("lanes: special registers", special_registers);
    test_run("lanes: atomics", atomics);
    test_run("lanes: asynchronous copies", asynchronous_copies);
    test_run("lanes: modules that must not load", bad_modules);
    test_run("lanes: damaged modules", damaged_modules);
    return test_close("sim_lanes");
}
