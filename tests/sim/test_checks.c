/* test_checks.c - every kind of report, with kernels that deserve it and close neighbours that do not. */
#include "sim_test.h"

enum { WORDS = 1024 };

/* good: reports nothing. kind: what the kernel deserves; -1: nothing. */
typedef struct example {
    const char *name;
    int kind;
    unsigned blocks, threads;
    const char *variables, *code;
} example;

#define NOTHING (-1)
#define SHARED_WORDS ".shared .align 16 .b8 s[4096];\n"
#define SHARED_OWN "mov.u32 r8, s;\nshl.b32 r9, r0, 2;\nadd.u32 r9, r8, r9;\n"     /* r9 = s + 4 * thread */
#define NEIGHBOUR "xor.b32 r10, r0, 32;\nshl.b32 r10, r10, 2;\nadd.u32 r10, r8, r10;\n" /* r10: of the other warp */
#define NEXT_LANE "xor.b32 r10, r0, 1;\nshl.b32 r10, r10, 2;\nadd.u32 r10, r8, r10;\n"
#define FIRST_THREAD "setp.eq.u32 p0, r0, 0;\n"
#define FIRST_BLOCK "setp.eq.u32 p1, r1, 0;\n"
#define COUNTER "add.u64 d8, d0, 512;\n"                /* the word that blocks synchronise by */

/* Runs one example, tolerant, so that reports of other kinds would show. */
static void run_example(const example *e) {
    static uint32_t words[WORDS];
    uint32_t n = WORDS;
    CUfunction f = kernel_around(e->variables, e->code);
    CUdeviceptr a, b;
    void *params[3];
    int kind;
    ptxsim_recover();
    a = upload(words, sizeof words);
    b = upload(NULL, sizeof words);
    params[0] = &a;
    params[1] = &b;
    params[2] = &n;
    if (f) launch(f, e->blocks, e->threads, params);
    for (kind = 0; kind < PTXSIM_KINDS; kind++) {
        int count = ptxsim_reports(kind);
        if (kind == e->kind) CHECK(count > 0, "%s: %s is not reported", e->name, ptxsim_kind_name(kind));
        else CHECK(count == 0, "%s: %s", e->name, ptxsim_last_report());
    }
    ptxsim_recover();
    cuMemFree_v2(a);
    cuMemFree_v2(b);
}

static void run_examples(const example *e, size_t count) {
    size_t i;
    open_device();
    ptxsim_set("PTXSIM_STRICT", "0");
    ptxsim_set("PTXSIM_STEPS", "100000");
    for (i = 0; i < count; i++) run_example(&e[i]);
}

#define RUN(examples) run_examples(examples, sizeof examples / sizeof *examples)

static void bounds(void) {
    static const example examples[] = {
        { "last word", NOTHING, 1, 1, "", "ld.global.u32 r8, [d0+4092];" },
        { "word behind", PTXSIM_BOUNDS, 1, 1, "", "ld.global.u32 r8, [d0+4096];" },
        { "vector across the end", PTXSIM_BOUNDS, 1, 1, "", "ld.global.v4.u32 {r8,r9,r10,r11}, [d0+4096];" },
        { "word in front", PTXSIM_BOUNDS, 1, 1, "", "ld.global.u32 r8, [d0+-4];" },
        { "store behind", PTXSIM_BOUNDS, 1, 1, "", "st.global.u32 [d0+4096], r0;" },
        { "atomic behind", PTXSIM_BOUNDS, 1, 1, "", "red.global.add.u32 [d0+4096], 1;" },
        { "one thread too many", PTXSIM_BOUNDS, 9, 128, "",
          "mov.u32 r8, %ntid.x;\nmad.lo.u32 r8, r1, r8, r0;\nmul.wide.u32 d8, r8, 4;\nadd.u64 d8, d1, d8;\n"
          "st.global.u32 [d8], r8;" },
        { "a guard for it", NOTHING, 9, 128, "",
          "mov.u32 r8, %ntid.x;\nmad.lo.u32 r8, r1, r8, r0;\nmul.wide.u32 d8, r8, 4;\nadd.u64 d8, d1, d8;\n"
          "setp.lt.u32 p0, r8, r2;\n@p0 st.global.u32 [d8], r8;" },
        { "a host address", PTXSIM_BOUNDS, 1, 1, "", "mov.u64 d8, 4096;\nld.global.u32 r8, [d8];" },
        { "null", PTXSIM_BOUNDS, 1, 1, "", "mov.u64 d8, 0;\nld.u32 r8, [d8];" },
        { "last shared word", NOTHING, 1, 1, ".shared .align 4 .b8 s[128];", "st.shared.u32 [s+124], r0;" },
        { "behind shared memory", PTXSIM_BOUNDS, 1, 1, ".shared .align 4 .b8 s[128];", "st.shared.u32 [s+128], r0;" },
        { "in front of shared memory", PTXSIM_BOUNDS, 1, 1, ".shared .align 4 .b8 s[128];",
          "mov.u32 r8, s;\nst.shared.u32 [r8+-4], r0;" },
        { "between two variables", PTXSIM_BOUNDS, 1, 1, ".shared .align 4 .b8 s[128];\n.shared .align 4 .b8 t[128];",
          "st.shared.u32 [t], r0;\nst.shared.u32 [s+128], r0;" },
        { "all lanes in shared memory", NOTHING, 1, 32, ".shared .align 4 .b8 s[128];",
          SHARED_OWN "st.shared.u32 [r9], r0;\nld.shared.u32 r10, [r9];" },
        { "a lane behind it", PTXSIM_BOUNDS, 1, 32, ".shared .align 4 .b8 s[128];",
          SHARED_OWN "st.shared.u32 [r9], r0;\nld.shared.u32 r10, [r9+4];" },
        { "a lane behind it that does not run", NOTHING, 1, 32, ".shared .align 4 .b8 s[128];",
          SHARED_OWN "st.shared.u32 [r9], r0;\nsetp.lt.u32 p0, r0, 31;\nbar.warp.sync -1;\n"
          "@p0 ld.shared.u32 r10, [r9+4];" },
        { "a lane in front of it", PTXSIM_BOUNDS, 1, 32, ".shared .align 4 .b8 s[128];",
          SHARED_OWN "st.shared.u32 [r9], r0;\nld.shared.u32 r10, [r9+-4];" },
        { "a lane between two variables", PTXSIM_BOUNDS, 1, 32,
          ".shared .align 4 .b8 s[128];\n.shared .align 4 .b8 t[128];",
          SHARED_OWN "st.shared.u32 [r9], r0;\nst.shared.u32 [t], 1;\nld.shared.u32 r10, [r9+4];" },
        { "lanes in two variables", NOTHING, 1, 32, ".shared .align 4 .b8 s[128];\n.shared .align 4 .b8 t[128];",
          "st.shared.u32 [s+8], 1;\nst.shared.u32 [t], 1;\nbar.warp.sync -1;\nmov.u32 r8, s+8;\nmov.u32 r9, t;\n"
          "setp.lt.u32 p0, r0, 7;\nselp.u32 r8, r8, r9, p0;\nld.shared.u32 r10, [r8];" },
        { "a generic shared address", PTXSIM_BOUNDS, 1, 1, ".shared .align 4 .b8 s[128];",
          "mov.u64 d8, s;\ncvta.shared.u64 d8, d8;\nst.u32 [d8], r0;\nst.u32 [d8+128], r0;" },
        { "local memory", NOTHING, 1, 64, "", ".local .align 4 .b8 l[64];\nst.local.u32 [l+60], r0;" },
        { "behind local memory", PTXSIM_BOUNDS, 1, 64, "", ".local .align 4 .b8 l[64];\nst.local.u32 [l+64], r0;" },
        { "parameters", NOTHING, 1, 1, "", "mov.b64 d8, a;\nld.param.u32 r8, [d8+16];" },
        { "behind the parameters", PTXSIM_BOUNDS, 1, 1, "", "mov.b64 d8, a;\nld.param.u32 r8, [d8+20];" },
        { "cp.async from behind", PTXSIM_BOUNDS, 1, 1, SHARED_WORDS,
          "mov.u32 r8, s;\ncp.async.ca.shared.global [r8], [d0+4096], 4;\ncp.async.wait_all;" },
        { "cp.async of nothing from behind", NOTHING, 1, 1, SHARED_WORDS,
          "mov.u32 r8, s;\ncp.async.cg.shared.global [r8], [d0+4096], 16, 0;\ncp.async.wait_all;" },
    };
    RUN(examples);
}

static void alignment(void) {
    static const example examples[] = {
        { "word", PTXSIM_MISALIGNED, 1, 1, "", "ld.global.u32 r8, [d0+2];" },
        { "half word", NOTHING, 1, 1, "", "ld.global.u16 h0, [d0+2];" },
        { "vector", PTXSIM_MISALIGNED, 1, 1, "", "ld.global.v4.u32 {r8,r9,r10,r11}, [d0+8];" },
        { "pair", NOTHING, 1, 1, "", "ld.global.v2.u32 {r8,r9}, [d0+8];" },
        { "store", PTXSIM_MISALIGNED, 1, 1, "", "st.global.u64 [d0+4], d0;" },
        { "atomic", PTXSIM_MISALIGNED, 1, 1, "", "red.global.add.u64 [d0+4], d0;" },
        { "shared", PTXSIM_MISALIGNED, 1, 1, SHARED_WORDS, "st.shared.u64 [s+4], d0;" },
        { "shared, one lane", PTXSIM_MISALIGNED, 1, 32, SHARED_WORDS,
          SHARED_OWN "st.shared.v2.u32 [s], {1, 1};\nsetp.eq.u32 p0, r0, 7;\nselp.u32 r10, 1, 0, p0;\n"
          "add.u32 r10, r8, r10;\nld.shared.u32 r11, [r10];" },
        { "local", PTXSIM_MISALIGNED, 1, 1, "", ".local .align 8 .b8 l[64];\nst.local.u32 [l+2], r0;" },
        { "cp.async", PTXSIM_MISALIGNED, 1, 1, SHARED_WORDS,
          "mov.u32 r8, s;\ncp.async.cg.shared.global [r8], [d0+8], 16;\ncp.async.wait_all;" },
    };
    RUN(examples);
}

static void initialisation(void) {
    static const example examples[] = {
        { "global", PTXSIM_UNINITIALISED, 1, 1, "", "ld.global.u32 r8, [d1];" },
        { "global, written before", NOTHING, 1, 1, "", "st.global.u32 [d1], r0;\nld.global.u32 r8, [d1];" },
        { "half of it", PTXSIM_UNINITIALISED, 1, 1, "", "st.global.u16 [d1], h0;\nld.global.u32 r8, [d1];" },
        { "one byte", PTXSIM_UNINITIALISED, 1, 1, "",
          "st.global.v4.u32 [d1], {r0,r0,r0,r0};\nld.global.u8 h0, [d1+16];" },
        { "atomic", PTXSIM_UNINITIALISED, 1, 1, "", "red.global.add.u32 [d1], 1;" },
        { "shared", PTXSIM_UNINITIALISED, 1, 1, SHARED_WORDS, "ld.shared.u32 r8, [s];" },
        { "shared, by another block only", PTXSIM_UNINITIALISED, 2, 1, SHARED_WORDS,
          FIRST_BLOCK "@p1 st.shared.u32 [s], r0;\nld.shared.u32 r8, [s];" },
        { "shared, the word of one lane", PTXSIM_UNINITIALISED, 1, 32, SHARED_WORDS,
          SHARED_OWN "setp.ne.u32 p0, r0, 9;\n@p0 st.shared.u32 [r9], r0;\nld.shared.u32 r10, [r9];" },
        { "shared atomic", PTXSIM_UNINITIALISED, 1, 1, SHARED_WORDS, "red.shared.add.u32 [s], 1;" },
        { "local", PTXSIM_UNINITIALISED, 1, 1, "", ".local .align 4 .b8 l[64];\nld.local.u32 r8, [l];" },
        { "local of another lane", PTXSIM_UNINITIALISED, 1, 2, "",
          ".local .align 4 .b8 l[64];\n" FIRST_THREAD "@p0 st.local.u32 [l], r0;\nld.local.u32 r8, [l];" },
        { "local of another block", PTXSIM_UNINITIALISED, 2, 1, "",
          ".local .align 4 .b8 l[64];\n" FIRST_BLOCK "@p1 st.local.u32 [l], r0;\nld.local.u32 r8, [l];" },
        { "cp.async", PTXSIM_UNINITIALISED, 1, 1, SHARED_WORDS,
          "mov.u32 r8, s;\ncp.async.ca.shared.global [r8], [d1], 4;\ncp.async.wait_all;" },
        { "the zeros of a short cp.async", NOTHING, 1, 1, SHARED_WORDS,
          "mov.u32 r8, s;\ncp.async.ca.shared.global [r8], [d0], 8, 4;\ncp.async.wait_all;\nld.shared.u64 d8, [s];" },
        { "a global variable", NOTHING, 1, 1, ".global .align 4 .b8 g[8];", "ld.global.u32 r8, [g+4];" },
    };
    RUN(examples);
}

static void shared_races(void) {
    static const example examples[] = {
        { "write, read", PTXSIM_SHARED_RACE, 1, 64, SHARED_WORDS,
          SHARED_OWN NEIGHBOUR "st.shared.u32 [r9], 1;\nbar.sync 0;\nst.shared.u32 [r9], r0;\n"
          "ld.shared.u32 r11, [r10];" },
        { "write, barrier, read", NOTHING, 1, 64, SHARED_WORDS,
          SHARED_OWN NEIGHBOUR "st.shared.u32 [r9], r0;\nbar.sync 0;\nld.shared.u32 r11, [r10];" },
        { "read, write", PTXSIM_SHARED_RACE, 1, 64, SHARED_WORDS,
          SHARED_OWN NEIGHBOUR "st.shared.u32 [r9], r0;\nbar.sync 0;\nld.shared.u32 r11, [r10];\n"
          "st.shared.u32 [r9], 1;" },
        { "read, barrier, write", NOTHING, 1, 64, SHARED_WORDS,
          SHARED_OWN NEIGHBOUR "st.shared.u32 [r9], r0;\nbar.sync 0;\nld.shared.u32 r11, [r10];\nbar.sync 0;\n"
          "st.shared.u32 [r9], 1;" },
        { "write, write", PTXSIM_SHARED_RACE, 1, 64, SHARED_WORDS,
          SHARED_OWN NEIGHBOUR "st.shared.u32 [r9], r0;\nst.shared.u32 [r10], r0;" },
        { "halves of a word by two warps", NOTHING, 1, 64, SHARED_WORDS,
          "mov.u32 r8, s;\nand.b32 r9, r0, 31;\nshl.b32 r9, r9, 2;\nadd.u32 r9, r9, r8;\nshr.u32 r10, r0, 5;\n"
          "shl.b32 r10, r10, 1;\nadd.u32 r9, r9, r10;\nmov.u16 h0, 7;\nst.shared.u16 [r9], h0;\n"
          "ld.shared.u16 h1, [r9];\nst.shared.u16 [r9], h1;" },
        { "halves of a word, one read by another warp", PTXSIM_SHARED_RACE, 1, 64, SHARED_WORDS,
          "mov.u16 h0, 7;\nsetp.eq.u32 p0, r0, 0;\nsetp.eq.u32 p1, r0, 32;\n@p0 st.shared.u32 [s], 0;\nbar.sync 0;\n"
          "@p0 st.shared.u16 [s], h0;\n@p0 st.shared.u16 [s+2], h0;\n@p1 ld.shared.u16 h1, [s];" },
        { "halves of a word, one read, then both written by another warp", PTXSIM_SHARED_RACE, 1, 64, SHARED_WORDS,
          "mov.u16 h0, 7;\nsetp.eq.u32 p0, r0, 0;\nsetp.eq.u32 p1, r0, 32;\n@p0 st.shared.u32 [s], 0;\nbar.sync 0;\n"
          "@p1 ld.shared.u16 h1, [s+2];\n@p0 st.shared.u16 [s], h0;\n@p0 st.shared.u16 [s+2], h0;" },
        { "lanes", PTXSIM_SHARED_RACE, 1, 32, SHARED_WORDS,
          SHARED_OWN NEXT_LANE "st.shared.u32 [r9], r0;\nld.shared.u32 r11, [r10];" },
        { "lanes with syncwarp", NOTHING, 1, 32, SHARED_WORDS,
          SHARED_OWN NEXT_LANE "st.shared.u32 [r9], r0;\nbar.warp.sync -1;\nld.shared.u32 r11, [r10];" },
        { "a shuffle is no syncwarp", PTXSIM_SHARED_RACE, 1, 32, SHARED_WORDS,
          SHARED_OWN NEXT_LANE "st.shared.u32 [r9], r0;\nshfl.sync.idx.b32 r12, r0, 0, 31, -1;\n"
          "ld.shared.u32 r11, [r10];" },
        { "lanes, read before write", PTXSIM_SHARED_RACE, 1, 32, SHARED_WORDS,
          SHARED_OWN NEXT_LANE "st.shared.u32 [r9], r0;\nbar.warp.sync -1;\nld.shared.u32 r11, [r10];\n"
          "st.shared.u32 [r9], r11;" },
        { "all read, the last lane writes", PTXSIM_SHARED_RACE, 1, 32, SHARED_WORDS,
          FIRST_THREAD "@p0 st.shared.u32 [s], 1;\nbar.warp.sync -1;\nld.shared.u32 r8, [s];\n"
          "setp.eq.u32 p1, r0, 31;\n@p1 st.shared.u32 [s], 2;" },
        { "all read, synchronise, the last lane writes", NOTHING, 1, 32, SHARED_WORDS,
          FIRST_THREAD "@p0 st.shared.u32 [s], 1;\nbar.warp.sync -1;\nld.shared.u32 r8, [s];\nbar.warp.sync -1;\n"
          "setp.eq.u32 p1, r0, 31;\n@p1 st.shared.u32 [s], 2;" },
        { "one lane writes, all read", PTXSIM_SHARED_RACE, 1, 32, SHARED_WORDS,
          "setp.eq.u32 p0, r0, 5;\n@p0 st.shared.u32 [s], 1;\nld.shared.u32 r8, [s];" },
        { "one lane writes, it alone reads", NOTHING, 1, 32, SHARED_WORDS,
          "setp.eq.u32 p0, r0, 5;\n@p0 st.shared.u32 [s], 1;\n@p0 ld.shared.u32 r8, [s];" },
        { "all read, another warp writes", PTXSIM_SHARED_RACE, 1, 64, SHARED_WORDS,
          FIRST_THREAD "@p0 st.shared.u32 [s], 1;\nbar.sync 0;\nsetp.lt.u32 p1, r0, 32;\n"
          "@p1 ld.shared.u32 r8, [s];\nsetp.eq.u32 p0, r0, 40;\n@p0 st.shared.u32 [s], 2;" },
        { "lanes write different values", PTXSIM_SHARED_RACE, 1, 32, SHARED_WORDS, "st.shared.u32 [s+64], r0;" },
        { "lanes write one value", NOTHING, 1, 32, SHARED_WORDS, "st.shared.u32 [s+64], 5;" },
        { "atomics", NOTHING, 1, 64, SHARED_WORDS,
          FIRST_THREAD "@p0 st.shared.u32 [s], 0;\nbar.sync 0;\nred.shared.add.u32 [s], 1;" },
        { "atomic, read", PTXSIM_SHARED_RACE, 1, 64, SHARED_WORDS,
          FIRST_THREAD "@p0 st.shared.u32 [s], 0;\nbar.sync 0;\nred.shared.add.u32 [s], 1;\nld.shared.u32 r8, [s];" },
        { "atomic, barrier, read", NOTHING, 1, 64, SHARED_WORDS,
          FIRST_THREAD "@p0 st.shared.u32 [s], 0;\nbar.sync 0;\nred.shared.add.u32 [s], 1;\nbar.sync 0;\n"
          "ld.shared.u32 r8, [s];" },
        { "the barrier of another group", PTXSIM_SHARED_RACE, 1, 128, SHARED_WORDS,
          SHARED_OWN "xor.b32 r10, r0, 64;\nshl.b32 r10, r10, 2;\nadd.u32 r10, r8, r10;\nshr.u32 r12, r0, 6;\n"
          "add.u32 r12, r12, 1;\nst.shared.u32 [r9], 1;\nbar.sync 0;\nst.shared.u32 [r9], r0;\nbar.sync r12, 64;\n"
          "ld.shared.u32 r11, [r10];" },
        { "the barrier of the group", NOTHING, 1, 128, SHARED_WORDS,
          SHARED_OWN NEIGHBOUR "shr.u32 r12, r0, 6;\nadd.u32 r12, r12, 1;\nst.shared.u32 [r9], r0;\n"
          "bar.sync r12, 64;\nld.shared.u32 r11, [r10];" },
        { "arrive is enough for the writer", NOTHING, 1, 64, SHARED_WORDS,
          SHARED_OWN NEIGHBOUR "setp.lt.u32 p0, r0, 32;\n@p0 bra READ;\nst.shared.u32 [r9], r0;\nbar.arrive 1, 64;\n"
          "ret;\nREAD:\nbar.sync 1, 64;\nld.shared.u32 r11, [r10];" },
        { "read of a cp.async in flight", PTXSIM_SHARED_RACE, 1, 1, SHARED_WORDS,
          "mov.u32 r8, s;\nst.shared.u32 [s], 0;\ncp.async.ca.shared.global [r8], [d0], 4;\ncp.async.commit_group;\n"
          "ld.shared.u32 r9, [s];\ncp.async.wait_group 0;" },
        { "wait_group leaves the last one", PTXSIM_SHARED_RACE, 1, 1, SHARED_WORDS,
          "mov.u32 r8, s;\nst.shared.u32 [s+4], 0;\ncp.async.ca.shared.global [r8], [d0], 4;\ncp.async.commit_group;\n"
          "cp.async.ca.shared.global [r8+4], [d0], 4;\ncp.async.commit_group;\ncp.async.wait_group 1;\n"
          "ld.shared.u32 r9, [s+4];\ncp.async.wait_all;" },
        { "wait_group completes the first", NOTHING, 1, 1, SHARED_WORDS,
          "mov.u32 r8, s;\ncp.async.ca.shared.global [r8], [d0], 4;\ncp.async.commit_group;\n"
          "cp.async.ca.shared.global [r8+4], [d0], 4;\ncp.async.commit_group;\ncp.async.wait_group 1;\n"
          "ld.shared.u32 r9, [s];\ncp.async.wait_all;" },
        { "cp.async of another warp without a barrier", PTXSIM_SHARED_RACE, 1, 64, SHARED_WORDS,
          SHARED_OWN NEIGHBOUR "st.shared.u32 [r9], 1;\nbar.sync 0;\ncp.async.ca.shared.global [r9], [d3], 4;\n"
          "cp.async.wait_all;\nld.shared.u32 r11, [r10];" },
        { "cp.async of another warp with one", NOTHING, 1, 64, SHARED_WORDS,
          SHARED_OWN NEIGHBOUR "cp.async.ca.shared.global [r9], [d3], 4;\ncp.async.wait_all;\nbar.sync 0;\n"
          "ld.shared.u32 r11, [r10];" },
    };
    RUN(examples);
}

/* Blocks run one after the other, so the first one is always the writer. */
#define WRITE_AND(x) FIRST_BLOCK COUNTER "@!p1 bra READ;\nst.global.u32 [d3], r0;\n" x "ret;\nREAD:\n"

static void global_races(void) {
    static const example examples[] = {
        { "warps", PTXSIM_GLOBAL_RACE, 1, 64, "",
          "xor.b32 r8, r0, 32;\nmul.wide.u32 d8, r8, 4;\nadd.u64 d8, d0, d8;\nst.global.u32 [d3], r0;\n"
          "ld.global.u32 r9, [d8];" },
        { "warps with a barrier", NOTHING, 1, 64, "",
          "xor.b32 r8, r0, 32;\nmul.wide.u32 d8, r8, 4;\nadd.u64 d8, d0, d8;\nst.global.u32 [d3], r0;\nbar.sync 0;\n"
          "ld.global.u32 r9, [d8];" },
        { "blocks", PTXSIM_GLOBAL_RACE, 2, 32, "", WRITE_AND("") "ld.global.u32 r9, [d3];" },
        { "blocks, by cp.async", PTXSIM_GLOBAL_RACE, 2, 32, SHARED_WORDS,
          WRITE_AND("") SHARED_OWN "cp.async.ca.shared.global [r9], [d3], 4;\ncp.async.wait_all;" },
        { "blocks write", PTXSIM_GLOBAL_RACE, 2, 32, "", WRITE_AND("") "st.global.u32 [d3], r0;" },
        { "blocks read, then write", PTXSIM_GLOBAL_RACE, 2, 32, "",
          FIRST_BLOCK "@!p1 bra WRITE;\nld.global.u32 r9, [d3];\nret;\nWRITE:\nst.global.u32 [d3], r0;" },
        { "blocks read and write their own", NOTHING, 2, 32, "",
          "mul.wide.u32 d8, r1, 128;\nadd.u64 d8, d3, d8;\nld.global.u32 r9, [d8];\nst.global.u32 [d8], r9;" },
        { "fence, atomic, fence", NOTHING, 2, 32, "",
          WRITE_AND("membar.gl;\natom.global.add.u32 r9, [d8], 1;\n")
          "atom.global.add.u32 r9, [d8], 1;\nmembar.gl;\nld.global.u32 r9, [d3];" },
        { "no fence in front of the atomic", PTXSIM_GLOBAL_RACE, 2, 32, "",
          WRITE_AND("atom.global.add.u32 r9, [d8], 1;\n")
          "atom.global.add.u32 r9, [d8], 1;\nmembar.gl;\nld.global.u32 r9, [d3];" },
        { "no fence behind the atomic", PTXSIM_GLOBAL_RACE, 2, 32, "",
          WRITE_AND("membar.gl;\natom.global.add.u32 r9, [d8], 1;\n")
          "atom.global.add.u32 r9, [d8], 1;\nld.global.u32 r9, [d3];" },
        { "fences for the block only", PTXSIM_GLOBAL_RACE, 2, 32, "",
          WRITE_AND("membar.cta;\natom.global.add.u32 r9, [d8], 1;\n")
          "atom.global.add.u32 r9, [d8], 1;\nmembar.cta;\nld.global.u32 r9, [d3];" },
        { "another counter", PTXSIM_GLOBAL_RACE, 2, 32, "",
          WRITE_AND("membar.gl;\natom.global.add.u32 r9, [d8], 1;\n")
          "atom.global.add.u32 r9, [d8+4], 1;\nmembar.gl;\nld.global.u32 r9, [d3];" },
        { "a write behind the fence", PTXSIM_GLOBAL_RACE, 2, 32, "",
          WRITE_AND("membar.gl;\nst.global.u32 [d3], 7;\natom.global.add.u32 r9, [d8], 1;\n")
          "atom.global.add.u32 r9, [d8], 1;\nmembar.gl;\nld.global.u32 r9, [d3];" },
        { "a reduction observes nothing", PTXSIM_GLOBAL_RACE, 2, 32, "",
          WRITE_AND("membar.gl;\nred.global.add.u32 [d8], 1;\n")
          "red.global.add.u32 [d8], 1;\nmembar.gl;\nld.global.u32 r9, [d3];" },
        { "release and acquire", NOTHING, 2, 32, "",
          WRITE_AND("st.release.gpu.global.u32 [d8], 1;\n") "ld.acquire.gpu.global.u32 r9, [d8];\n"
          "ld.global.u32 r9, [d3];" },
        { "relaxed and acquire", PTXSIM_GLOBAL_RACE, 2, 32, "",
          WRITE_AND("st.relaxed.gpu.global.u32 [d8], 1;\n") "ld.acquire.gpu.global.u32 r9, [d8];\n"
          "ld.global.u32 r9, [d3];" },
        { "an atomic that does both", NOTHING, 2, 32, "",
          WRITE_AND("atom.acq_rel.gpu.global.add.u32 r9, [d8], 1;\n")
          "atom.acq_rel.gpu.global.add.u32 r9, [d8], 1;\nld.global.u32 r9, [d3];" },
        { "a flag that is volatile", NOTHING, 2, 32, "",
          WRITE_AND("membar.gl;\nst.volatile.global.u32 [d8], 1;\n")
          "ld.volatile.global.u32 r9, [d8];\nmembar.gl;\nld.global.u32 r9, [d3];" },
        { "atomics alone", NOTHING, 4, 64, "", COUNTER "red.global.add.u32 [d8], 1;" },
        { "a plain read of what atomics write", PTXSIM_GLOBAL_RACE, 2, 32, "",
          FIRST_BLOCK COUNTER "@p1 red.global.add.u32 [d8], 1;\n@!p1 ld.global.u32 r9, [d8];" },
        { "a warp tells its block", NOTHING, 2, 64, "",
          FIRST_BLOCK COUNTER FIRST_THREAD "@!p1 bra READ;\nst.global.u32 [d3], r0;\nmembar.gl;\nbar.sync 0;\n"
          "@p0 atom.global.add.u32 r9, [d8], 1;\nret;\nREAD:\n@p0 atom.global.add.u32 r9, [d8], 1;\n@p0 membar.gl;\n"
          "bar.sync 0;\nld.global.u32 r9, [d3];" },
        { "a warp tells its block, without a barrier", PTXSIM_GLOBAL_RACE, 2, 64, "",
          FIRST_BLOCK COUNTER FIRST_THREAD "@!p1 bra READ;\nst.global.u32 [d3], r0;\nmembar.gl;\n"
          "@p0 atom.global.add.u32 r9, [d8], 1;\nret;\nREAD:\n@p0 atom.global.add.u32 r9, [d8], 1;\n@p0 membar.gl;\n"
          "bar.sync 0;\nld.global.u32 r9, [d3];" },
        { "from block to block to block", NOTHING, 3, 32, "",
          FIRST_BLOCK COUNTER "setp.eq.u32 p2, r1, 1;\n@p1 st.global.u32 [d3], r0;\nmembar.gl;\n"
          "@p1 atom.global.add.u32 r9, [d8], 1;\n@p1 ret;\n"
          "@p2 atom.global.add.u32 r9, [d8], 1;\nmembar.gl;\n@p2 atom.global.add.u32 r9, [d8+4], 1;\n@p2 ret;\n"
          "atom.global.add.u32 r9, [d8+4], 1;\nmembar.gl;\nld.global.u32 r9, [d3];" },
        { "the second block forgets its fence", PTXSIM_GLOBAL_RACE, 3, 32, "",
          FIRST_BLOCK COUNTER "setp.eq.u32 p2, r1, 1;\n@p1 st.global.u32 [d3], r0;\n@p1 membar.gl;\n"
          "@p1 atom.global.add.u32 r9, [d8], 1;\n@p1 ret;\n"
          "@p2 atom.global.add.u32 r9, [d8], 1;\n@p2 atom.global.add.u32 r9, [d8+4], 1;\n@p2 ret;\n"
          "atom.global.add.u32 r9, [d8+4], 1;\nmembar.gl;\nld.global.u32 r9, [d3];" },
    };
    RUN(examples);
}

static void read_only(void) {
    static const example examples[] = {
        { "nc of a constant", NOTHING, 1, 32, "", "ld.global.nc.u32 r8, [d3];\nst.global.u32 [d4], r8;" },
        { "nc after a write", PTXSIM_READ_ONLY, 1, 32, "", "st.global.u32 [d3], r0;\nld.global.nc.u32 r8, [d3];" },
        { "nc before a write", PTXSIM_READ_ONLY, 1, 32, "", "ld.global.nc.u32 r8, [d3];\nst.global.u32 [d3], r8;" },
        { "constant memory", NOTHING, 1, 32, ".const .align 4 .b8 c[4] = {1, 0, 0, 0};", "ld.const.u32 r8, [c];" },
        { "a store there", PTXSIM_READ_ONLY, 1, 1, ".const .align 4 .b8 c[4] = {1, 0, 0, 0};",
          "mov.u64 d8, c;\nst.global.u32 [d8], r0;" },
    };
    RUN(examples);
}

static void convergence(void) {
    static const example examples[] = {
        { "a mask without the lane", PTXSIM_CONVERGENCE, 1, 32, "", "shfl.sync.down.b32 r8, r0, 1, 31, 0xffff;" },
        { "a mask of those who are here", NOTHING, 1, 32, "",
          "setp.lt.u32 p0, r0, 16;\n@!p0 bra OUT;\nshfl.sync.bfly.b32 r8, r0, 1, 31, 0xffff;\nOUT:" },
        { "a shuffle from a lane elsewhere", PTXSIM_CONVERGENCE, 1, 32, "",
          "setp.lt.u32 p0, r0, 16;\n@!p0 bra OUT;\nshfl.sync.bfly.b32 r8, r0, 16, 31, 0xffff;\nOUT:" },
        { "a mask of lanes that never come", PTXSIM_CONVERGENCE, 1, 32, "",
          "setp.lt.u32 p0, r0, 16;\n@!p0 bra OUT;\nvote.sync.any.pred p1, p0, -1;\nOUT:\nbar.warp.sync -1;" },
        { "a mask of lanes that have left", NOTHING, 1, 32, "",
          "setp.lt.u32 p0, r0, 16;\n@!p0 ret;\nvote.sync.any.pred p1, p0, -1;" },
        { "lanes come later", NOTHING, 1, 32, "",
          "setp.lt.u32 p0, r0, 16;\n@p0 bra LOW;\nadd.u32 r8, r0, 1;\nLOW:\nvote.sync.any.pred p1, p0, -1;" },
        { "barrier in divergent code", PTXSIM_CONVERGENCE, 1, 32, "",
          "setp.lt.u32 p0, r0, 16;\n@p0 bra LOW;\nbar.sync 0;\nbra OUT;\nLOW:\nadd.u32 r8, r0, 1;\nOUT:\n"
          "bar.warp.sync -1;" },
        { "barrier under a predicate of a warp", PTXSIM_CONVERGENCE, 1, 32, "",
          "setp.lt.u32 p0, r0, 16;\n@p0 bar.sync 0;" },
        { "barrier after half of the warp left", NOTHING, 1, 64, "", "setp.lt.u32 p0, r0, 16;\n@p0 ret;\nbar.sync 0;" },
        { "barrier number 16", PTXSIM_CONVERGENCE, 1, 32, "", "mov.u32 r8, 16;\nbar.sync r8;" },
        { "barrier for 48 threads", PTXSIM_CONVERGENCE, 1, 64, "", "bar.sync 1, 48;" },
        { "barrier with two sizes", PTXSIM_CONVERGENCE, 1, 64, "",
          "setp.lt.u32 p0, r0, 32;\nselp.u32 r8, 64, 96, p0;\nbar.sync 1, r8;" },
    };
    RUN(examples);
}

static void deadlocks(void) {
    static const example examples[] = {
        { "a warp that does not come", PTXSIM_DEADLOCK, 1, 64, "", "setp.lt.u32 p0, r0, 32;\n@p0 bar.sync 1, 64;" },
        { "a warp that has left", NOTHING, 1, 64, "", "setp.lt.u32 p0, r0, 32;\n@p0 ret;\nbar.sync 0;" },
        { "two barriers in two orders", PTXSIM_DEADLOCK, 1, 64, "",
          "setp.lt.u32 p0, r0, 32;\n@p0 bra LOW;\nbar.sync 1, 64;\nbar.sync 2, 64;\nret;\nLOW:\nbar.sync 2, 64;\n"
          "bar.sync 1, 64;" },
        { "an endless loop", PTXSIM_DEADLOCK, 1, 32, "", "AGAIN:\nadd.u32 r8, r8, 1;\nbra AGAIN;" },
        { "a wait for a later block", PTXSIM_DEADLOCK, 2, 32, "",
          COUNTER FIRST_BLOCK "@!p1 st.volatile.global.u32 [d8], 1;\nAGAIN:\nld.volatile.global.u32 r8, [d8];\n"
          "setp.eq.u32 p0, r8, 0;\n@p0 bra AGAIN;" },
        { "a lock among the lanes of a warp", NOTHING, 1, 32, "",
          COUNTER "AGAIN:\natom.global.cas.b32 r8, [d8], 0, 1;\nsetp.ne.u32 p0, r8, 0;\n@p0 bra AGAIN;\nmembar.gl;\n"
          "ld.global.u32 r9, [d8+4];\nadd.u32 r9, r9, 1;\nst.global.u32 [d8+4], r9;\nmembar.gl;\n"
          "atom.global.exch.b32 r8, [d8], 0;" },
        { "a wait for a warp of the block", NOTHING, 1, 64, "",
          COUNTER "setp.lt.u32 p0, r0, 32;\n@!p0 st.volatile.global.u32 [d8], 1;\nAGAIN:\n"
          "ld.volatile.global.u32 r8, [d8];\nsetp.eq.u32 p0, r8, 0;\n@p0 bra AGAIN;" },
    };
    RUN(examples);
}

static void other_reports(void) {
    static const example examples[] = {
        { "a copy never waited for", PTXSIM_ASYNC, 1, 1, SHARED_WORDS,
          "mov.u32 r8, s;\ncp.async.ca.shared.global [r8], [d0], 4;\ncp.async.commit_group;" },
        { "a source larger than the copy", PTXSIM_ASYNC, 1, 1, SHARED_WORDS,
          "mov.u32 r8, s;\nmov.u32 r9, 8;\ncp.async.ca.shared.global [r8], [d0], 4, r9;\ncp.async.wait_all;" },
        { "trap", PTXSIM_TRAP, 1, 1, "", "trap;" },
        { "no trap", NOTHING, 1, 1, "", "setp.eq.u32 p0, r0, 1;\n@p0 trap;" },
    };
    RUN(examples);
}

/* What a report says, and what a strict launch returns. */
static void report_text(void) {
    CUfunction f;
    CUdeviceptr a;
    uint32_t n = 0;
    void *params[3];
    open_device();
    f = kernel_around("", ".loc 1 42 5\nsetp.eq.u32 p0, r0, 37;\n@p0 ld.global.u32 r8, [d0+4096];");
    a = upload(NULL, 4096);
    params[0] = &a;
    params[1] = &a;
    params[2] = &n;
    CHECK(launch(f, 3, 64, params) == 700, "an access out of bounds is CUDA_ERROR_ILLEGAL_ADDRESS");
    CHECK(strstr(ptxsim_last_report(), "OUT OF BOUNDS: k: global read of 4 bytes at offset 4096 of a buffer of 4096"),
          "%s", ptxsim_last_report());
    CHECK(strstr(ptxsim_last_report(),
                 "PTX line 22, source line 42 `@p0 ld.global.u32 r8, [d0+4096]`, block (0,0,0), thread (37,"),
          "%s", ptxsim_last_report());
    CHECK(cuCtxSynchronize() == 700, "the error stays");
    CHECK(cuMemFree_v2(a) == 700, "for every call");
    ptxsim_recover();
    f = kernel_around("", "ld.global.u32 r8, [d0];");
    CHECK(launch(f, 1, 1, params) == 719, "a report alone is CUDA_ERROR_LAUNCH_FAILED when strict");
    ptxsim_recover();
    ptxsim_set("PTXSIM_STRICT", "0");
    CHECK(launch(f, 1, 1, params) == 0 && ptxsim_reports(-1) == 1, "and only counts when not");
    ptxsim_recover();
    ptxsim_set("PTXSIM_CHECK", "0");
    CHECK(launch(f, 1, 1, params) == 0 && ptxsim_reports(-1) == 0, "and is not looked for without checks");
    cuMemFree_v2(a);
}

/* All reports are counted; a text is given once for each instruction and kind. */
static void told_once(void) {
    static const char *race = "setp.ne.u32 p0, r2, 0;\nsetp.eq.u32 p1, r1, 0;\nand.pred p0, p0, p1;\n"
                              "@p0 st.global.u32 [d1], 1;\n@!p1 ld.global.u32 r8, [d1];";
    CUfunction f, g;
    CUdeviceptr b;
    uint32_t n = 0;
    void *params[3];
    open_device();
    ptxsim_set("PTXSIM_STRICT", "0");
    f = kernel_around("", race);
    g = kernel_around("", "ld.global.u32 r8, [d1+8];");
    b = upload(NULL, 64);
    params[0] = &b;
    params[1] = &b;
    params[2] = &n;
    CHECK(!launch(f, 2, 3, params) && ptxsim_reports(PTXSIM_UNINITIALISED) == 3, "three lanes");
    CHECK(strstr(ptxsim_last_report(), "UNINITIALISED"), "%s", ptxsim_last_report());
    n = 1;
    CHECK(!launch(f, 2, 3, params) && ptxsim_reports(PTXSIM_GLOBAL_RACE) == 3, "the same instruction, another kind");
    CHECK(strstr(ptxsim_last_report(), "GLOBAL RACE"), "%s", ptxsim_last_report());
    CHECK(!launch(g, 1, 1, params) && strstr(ptxsim_last_report(), "UNINITIALISED"), "%s", ptxsim_last_report());
    CHECK(!launch(f, 2, 3, params) && ptxsim_reports(PTXSIM_GLOBAL_RACE) == 6, "and again");
    CHECK(strstr(ptxsim_last_report(), "UNINITIALISED"), "twice: %s", ptxsim_last_report());
    cuMemFree_v2(b);
}

int main(int argc, char **argv) {
    if (argc > 1) test.only = argv[1];
    test_run("checks: bounds", bounds);
    test_run("checks: alignment", alignment);
    test_run("checks: initialisation", initialisation);
    test_run("checks: races in shared memory", shared_races);
    test_run("checks: races in global memory", global_races);
    test_run("checks: read-only data", read_only);
    test_run("checks: convergence", convergence);
    test_run("checks: deadlocks", deadlocks);
    test_run("checks: asynchronous copies, traps", other_reports);
    test_run("checks: text and code of a report", report_text);
    test_run("checks: a place is told once", told_once);
    return test_close("sim_checks");
}
