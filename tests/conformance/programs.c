/* programs.c - the forms that the simulator's list leaves out, as small programs: loads and stores of every type in
   every space, atomics, cp.async, lanes, barriers, control flow, packing, special registers. Registers and names of
   variables as in program_text of cases.c. Where hardware is free to choose (%smid, %warpid, addresses of variables)
   nothing is recorded. */
#include "conformance.h"

#include "../sim/form_kernel.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- text that grows ------------------------------------------------------------------------------------------- */

typedef struct code {
    char *text;
    size_t length, capacity;
} code;

static void put(code *c, const char *format, ...) {
    va_list list;
    int n;
    va_start(list, format);
    n = vsnprintf(NULL, 0, format, list);
    va_end(list);
    if (c->length + (size_t)n + 1 > c->capacity) {
        c->capacity = 2 * (c->length + (size_t)n + 1);
        c->text = (char *)realloc(c->text, c->capacity);
        if (!c->text) abort();
    }
    va_start(list, format);
    vsnprintf(c->text + c->length, c->capacity - c->length, format, list);
    va_end(list);
    c->length += (size_t)n;
}

/* Takes the texts over. */
static conf_case *add(conf_list *list, const char *name, int level, unsigned threads, size_t out_bytes,
                      const char *variables, code *body) {
    conf_case *c = conf_add(list, name);
    code v = { NULL, 0, 0 };
    put(&v, "%s", variables);
    c->level = level;
    c->block[0] = threads;
    c->out_bytes = out_bytes;
    c->variables = v.text;
    c->code = body->text;
    memset(body, 0, sizeof *body);
    return c;
}

static conf_case *add_text(conf_list *list, const char *name, int level, unsigned threads, size_t out_bytes,
                           const char *variables, const char *text) {
    code body = { NULL, 0, 0 };
    put(&body, "%s", text);
    return add(list, name, level, threads, out_bytes, variables, &body);
}

/* ---- loads and stores of every type ---------------------------------------------------------------------------- */

static const struct memory_type {
    const char *name;
    int bytes;
} types[] = {
    { "b8", 1 },  { "u8", 1 },  { "s8", 1 },  { "b16", 2 }, { "u16", 2 }, { "s16", 2 }, { "b32", 4 },
    { "u32", 4 }, { "s32", 4 }, { "f32", 4 }, { "b64", 8 }, { "u64", 8 }, { "s64", 8 }, { "f64", 8 },
};

enum { TYPES = sizeof types / sizeof *types };

static char register_of(int bytes) {
    return bytes < 4 ? 'h' : bytes == 4 ? 'r' : 'd';
}

static char wider_register(const struct memory_type *t) {
    if (t->name[0] == 'f' || t->bytes == 8) return 0;
    return t->bytes < 4 ? 'r' : 'd';
}

static int register_bits(char c) {
    return c == 'h' ? 16 : c == 'r' ? 32 : 64;
}

/* {r10, r11}: `count` registers from `first` on; one stands alone. */
static const char *registers(char c, int first, int count) {
    static char text[40];
    size_t n = 0;
    int i;
    for (i = 0; i < count; i++) {
        n += (size_t)snprintf(text + n, sizeof text - n, "%s%c%d", i ? ", " : count > 1 ? "{" : "", c, first + i);
    }
    if (count > 1) snprintf(text + n, sizeof text - n, "}");
    return text;
}

enum { SLOT = 64, SLOTS = 4 };

/* d8 becomes the thread's slot of 64 bytes in a space, d9 its slot in the results; those of the inputs are at d7. */
static void put_slots(code *c, const char *space) {
    put(c, "mul.wide.u32 d6, r0, %d;\nadd.u64 d7, d0, d6;\nadd.u64 d9, d1, d6;\n", SLOT);
    if (!strcmp(space, "shared")) put(c, "mov.u64 d8, $s;\nadd.u64 d8, d8, d6;\n");
    else if (!strcmp(space, "local")) put(c, ".local .align 16 .b8 l[%d];\nmov.u64 d8, l;\n", SLOT);
    else if (!strcmp(space, "const")) put(c, "mov.u64 d8, $c;\nadd.u64 d8, d8, d6;\n");
}

static const char *variables_of(const char *space) {
    if (!strcmp(space, "shared")) return ".shared .align 16 .b8 $s[256];";
    if (strcmp(space, "const") != 0) return "";
    return ".const .align 16 .b8 $c[256] = {0, 127, 128, 255, 1, 2, 131, 4, 250, 6, 7, 136, 9, 10, 245, 12, 13, 142,\n"
           "15, 16, 17, 238, 19, 20, 149, 22, 23, 24, 231, 26, 27, 156, 29, 30, 225, 32, 255, 255, 255, 255, 0, 0, 0,\n"
           "128, 41, 42, 171, 44, 45, 46, 175, 48, 0, 0, 192, 127, 0, 0, 128, 255, 254, 1, 64, 65, 202, 67, 68, 69};";
}

/* Copies slots: what the stores of one space left becomes input of the loads of another. */
static void put_copy(code *c, const char *from_space, const char *from, const char *to_space, const char *to) {
    int i;
    for (i = 0; i < SLOT; i += 16) {
        put(c, "ld.%s.v4.u32 {r20, r21, r22, r23}, [%s+%d];\n", from_space, from, i);
        put(c, "st.%s.v4.u32 [%s+%d], {r20, r21, r22, r23};\n", to_space, to, i);
    }
}

/* One value, one in a wider register, then vectors of 2 and 4, from the start of the slot. Results 8 bytes apart. */
static void add_load(conf_list *list, const char *spelling, const char *space, const struct memory_type *t) {
    code c = { NULL, 0, 0 };
    char own = register_of(t->bytes), wider = wider_register(t), name[80];
    const char *at = strcmp(space, "global") && strcmp(space, "generic") ? "d8" : "d7";
    int vector, i;
    put_slots(&c, space);
    if (!strcmp(space, "shared") || !strcmp(space, "local")) put_copy(&c, "global", "d7", space, "d8");
    if (!strcmp(space, "generic")) put(&c, "cvta.global.u64 d7, d7;\n");
    put(&c, "%s.%s %c1, [%s];\nst.global.b%d [d9], %c1;\n", spelling, t->name, own, at, register_bits(own), own);
    if (wider) {
        put(&c, "%s.%s %c10, [%s];\n", spelling, t->name, wider, at);
        put(&c, "st.global.b%d [d9+8], %c10;\n", register_bits(wider), wider);
    }
    for (vector = 2; vector <= 4 && vector * t->bytes <= 16; vector *= 2) {
        int first = own == 'h' ? 1 : 12;
        put(&c, "%s.v%d.%s %s, [%s];\n", spelling, vector, t->name, registers(own, first, vector), at);
        for (i = 0; i < vector; i++) {
            put(&c, "st.global.b%d [d9+%d], %c%d;\n", register_bits(own), (vector == 2 ? 16 : 32) + 8 * i, own,
                first + i);
        }
    }
    snprintf(name, sizeof name, "%s.%s", spelling, t->name);
    add(list, name, LEVEL_FIRST, SLOTS, SLOTS * SLOT, variables_of(space), &c);
}

/* The same for stores, with the vectors' elements in reverse order. */
static void add_store(conf_list *list, const char *spelling, const char *space, const struct memory_type *t) {
    code c = { NULL, 0, 0 };
    char own = register_of(t->bytes), wider = wider_register(t), name[80];
    const char *at = strcmp(space, "global") && strcmp(space, "generic") ? "d8" : "d9";
    int vector, i;
    put_slots(&c, space);
    if (at[1] == '8') {
        for (i = 0; i < SLOT; i += 8) put(&c, "st.%s.u64 [d8+%d], 0;\n", space, i);
    }
    if (!strcmp(space, "generic")) put(&c, "cvta.global.u64 d9, d9;\n");
    for (i = 0; i < 4; i++) {
        put(&c, "ld.global.b%d %c%d, [d7+%d];\n", register_bits(own), own, own == 'h' ? 1 + i : 12 + i, 8 * i);
    }
    put(&c, "%s.%s [%s], %c%d;\n", spelling, t->name, at, own, own == 'h' ? 1 : 12);
    if (wider) {
        put(&c, "ld.global.b%d %c10, [d7+40];\n", register_bits(wider), wider);
        put(&c, "%s.%s [%s+8], %c10;\n", spelling, t->name, at, wider);
    }
    for (vector = 2; vector <= 4 && vector * t->bytes <= 16; vector *= 2) {
        put(&c, "%s.v%d.%s [%s+%d], %s;\n", spelling, vector, t->name, at, 16 * vector - 16,
            registers(own, own == 'h' ? 1 : 12, vector));
    }
    if (at[1] == '8') put_copy(&c, space, "d8", "global", "d9");
    snprintf(name, sizeof name, "%s.%s", spelling, t->name);
    add(list, name, LEVEL_FIRST, SLOTS, SLOTS * SLOT, variables_of(space), &c);
}

static void add_typed_memory(conf_list *list) {
    static const char *const loads[][2] = {
        { "ld.global", "global" }, { "ld.global.nc", "global" }, { "ld.shared", "shared" }, { "ld.local", "local" },
        { "ld.const", "const" }, { "ld", "generic" },
    };
    static const char *const stores[][2] = {
        { "st.global", "global" }, { "st.shared", "shared" }, { "st.local", "local" }, { "st", "generic" },
    };
    size_t i;
    int t;
    for (i = 0; i < sizeof loads / sizeof *loads; i++) {
        for (t = 0; t < TYPES; t++) add_load(list, loads[i][0], loads[i][1], &types[t]);
    }
    for (i = 0; i < sizeof stores / sizeof *stores; i++) {
        for (t = 0; t < TYPES; t++) add_store(list, stores[i][0], stores[i][1], &types[t]);
    }
}

/* ---- spellings of loads, stores and fences --------------------------------------------------------------------- */

static void add_spellings(conf_list *list) {
    static const struct {
        const char *name;
        int level;
    } loads[] = {
        { "ld.global.ca", 0 }, { "ld.global.cg", 0 }, { "ld.global.cs", 0 }, { "ld.global.lu", 0 },
        { "ld.global.cv", 0 }, { "ldu.global", 0 }, { "ld.weak.global", 0 }, { "ld.volatile.global", 0 },
        { "ld.relaxed.cta.global", 0 }, { "ld.relaxed.gpu.global", 0 }, { "ld.relaxed.sys.global", 0 },
        { "ld.acquire.cta.global", 0 }, { "ld.acquire.gpu.global", 0 }, { "ld.acquire.sys.global", 0 },
        { "ld.global.L1::evict_normal", LEVEL_74 }, { "ld.global.L1::evict_first", LEVEL_74 },
        { "ld.global.L1::evict_last", LEVEL_74 }, { "ld.global.L1::evict_unchanged", LEVEL_74 },
        { "ld.global.L1::no_allocate", LEVEL_74 }, { "ld.global.L2::64B", LEVEL_74 },
        { "ld.global.L2::128B", LEVEL_74 }, { "ld.global.L2::256B", LEVEL_AMPERE_74 },
        { "ld.global.nc.L1::no_allocate", LEVEL_74 }, { "ld.global.nc.L2::128B", LEVEL_74 },
        { "ld.global.ca.nc", 0 }, { "ld.volatile", 0 },
    }, stores[] = {
        { "st.global.wb", 0 }, { "st.global.cg", 0 }, { "st.global.cs", 0 }, { "st.global.wt", 0 },
        { "st.weak.global", 0 }, { "st.volatile.global", 0 }, { "st.relaxed.cta.global", 0 },
        { "st.relaxed.gpu.global", 0 }, { "st.relaxed.sys.global", 0 }, { "st.release.cta.global", 0 },
        { "st.release.gpu.global", 0 }, { "st.release.sys.global", 0 }, { "st.global.L1::evict_first", LEVEL_74 },
        { "st.global.L1::evict_last", LEVEL_74 }, { "st.global.L1::no_allocate", LEVEL_74 },
    };
    static const char *const nothing[] = {
        "membar.cta", "membar.gl", "membar.sys", "fence.acq_rel.cta", "fence.acq_rel.gpu", "fence.acq_rel.sys",
        "fence.sc.cta", "fence.sc.gpu", "fence.sc.sys", "nanosleep.u32 20", "prefetch.global.L1 [d3]",
        "prefetch.global.L2 [d3]",
    };
    code c = { NULL, 0, 0 };
    char name[80];
    size_t i;
    for (i = 0; i < sizeof loads / sizeof *loads; i++) {
        put(&c, "%s.u32 r8, [d3];\nst.global.u32 [d4], r8;", loads[i].name);
        snprintf(name, sizeof name, "%s.u32", loads[i].name);
        add(list, name, loads[i].level, 32, 128, "", &c);
    }
    for (i = 0; i < sizeof stores / sizeof *stores; i++) {
        put(&c, "ld.global.u32 r8, [d3];\n%s.u32 [d4], r8;", stores[i].name);
        snprintf(name, sizeof name, "%s.u32", stores[i].name);
        add(list, name, stores[i].level, 32, 128, "", &c);
    }
    for (i = 0; i < sizeof nothing / sizeof *nothing; i++) {
        put(&c, "ld.global.u32 r8, [d3];\nst.global.u32 [d4], r8;\n%s;", nothing[i]);
        add(list, nothing[i], LEVEL_FIRST, 32, 128, "", &c);
    }
    add_text(list, "ld.shared::cta.u32, st.shared::cta.u32", LEVEL_78, 32, 128, ".shared .align 4 .b8 $s[128];",
             "mov.u32 r8, $s;\nmad.lo.u32 r8, r0, 4, r8;\nld.global.u32 r9, [d3];\nst.shared::cta.u32 [r8], r9;\n"
             "ld.shared::cta.u32 r10, [r8];\nst.global.u32 [d4], r10;");
}

/* ---- address spaces -------------------------------------------------------------------------------------------- */

static void add_spaces(conf_list *list) {
    static const char *const parts[] = { "b8", "u8", "s8", "b16", "u16", "s16", "b32", "u32", "s32", "f32" };
    code c = { NULL, 0, 0 };
    char name[80];
    size_t i;
    for (i = 0; i < sizeof parts / sizeof *parts; i++) {
        put(&c, "ld.param.%s r8, [n];\nst.global.u32 [d1], r8;", parts[i]);
        snprintf(name, sizeof name, "ld.param.%s", parts[i]);
        add(list, name, LEVEL_FIRST, 1, 4, "", &c);
    }
    add_text(list, "ld.param.v2", LEVEL_FIRST, 1, 32, "",
             "ld.param.v2.u32 {r8, r9}, [out];\nmov.b64 d8, {r8, r9};\nld.param.v2.u64 {d9, d10}, [in];\n"
             "ld.param.v2.u16 {h0, h1}, [n];\nmov.b32 r10, {h0, h1};\nld.param.v4.u8 {h2, h3, h4, h5}, [n];\n"
             "sub.u64 d9, d9, d0;\nsub.u64 d10, d10, d1;\nst.global.v2.u64 [d8], {d9, d10};\n"
             "st.global.u32 [d8+16], r10;\nst.global.v4.u8 [d8+20], {h5, h4, h3, h2};");
    add_text(list, "variables with values", LEVEL_FIRST, 1, 32,
             ".global .align 4 .u32 $g = 77;\n.const .align 4 .b8 $c[8] = {1, 2, 3, 4, 5};\n"
             ".global .align 8 .u64 $z[2];\n.global .align 4 .f32 $f[2] = {0f3F800000, 0fC0000000};",
             "ld.global.u32 r8, [$g];\nld.const.u32 r9, [$c+4];\nld.global.u32 r10, [$z+8];\n"
             "ld.global.f32 r11, [$f+4];\nst.global.v4.u32 [d1], {r8, r9, r10, r11};");
    add_text(list, "cvta.shared.u64", LEVEL_FIRST, 1, 4, ".shared .align 8 .b8 $s[16];",
             "mov.u64 d8, $s;\ncvta.shared.u64 d8, d8;\nst.u32 [d8+4], 5;\nld.shared.u32 r8, [$s+4];\n"
             "st.global.u32 [d1], r8;");
    add_text(list, "cvta.to.shared.u64", LEVEL_FIRST, 1, 8, ".shared .align 8 .b8 $s[16];",
             "mov.u64 d9, $s;\ncvta.shared.u64 d8, d9;\ncvta.to.shared.u64 d8, d8;\nsub.u64 d8, d8, d9;\n"
             "st.global.u64 [d1], d8;");
    add_text(list, "cvta.local.u64", LEVEL_FIRST, 64, 256, "",
             ".local .align 8 .b8 l[32];\nmov.u64 d9, l;\ncvta.local.u64 d8, d9;\nmul.lo.u32 r8, r0, 7;\n"
             "st.u32 [d8+4], r8;\nld.local.u32 r9, [d9+4];\nst.global.u32 [d4], r9;");
    add_text(list, "cvta.to.local.u64", LEVEL_FIRST, 1, 8, "",
             ".local .align 8 .b8 l[32];\nmov.u64 d9, l;\ncvta.local.u64 d8, d9;\ncvta.to.local.u64 d8, d8;\n"
             "sub.u64 d8, d8, d9;\nst.global.u64 [d1], d8;");
    add_text(list, "cvta.global.u64, cvta.to.global.u64", LEVEL_FIRST, 1, 8, "",
             "cvta.global.u64 d8, d1;\nst.u32 [d8], 3;\ncvta.to.global.u64 d8, d8;\nst.global.u32 [d8+4], 4;");
    add_text(list, "cvta.to.const.u64", LEVEL_FIRST, 1, 4, ".const .align 4 .b8 $c[8] = {1, 2, 3, 4, 5};",
             "mov.u64 d8, $c;\ncvta.const.u64 d8, d8;\nld.u32 r8, [d8];\ncvta.to.const.u64 d8, d8;\n"
             "ld.const.u32 r9, [d8+4];\nadd.u32 r8, r8, r9;\nst.global.u32 [d1], r8;");
    add_text(list, "cvta.param.u64, cvta.to.param.u64", LEVEL_77, 1, 4, "",
             "mov.b64 d8, in;\ncvta.param.u64 d8, d8;\nld.u64 d9, [d8+8];\ncvta.to.param.u64 d8, d8;\n"
             "ld.param.u32 r8, [d8+16];\nst.global.u32 [d9], r8;");
}

/* ---- atomics --------------------------------------------------------------------------------------------------- */

enum { ATOMIC_THREADS = 64 };

/* Every thread has a word of its own: d8 in memory, d9 its two words of results, the new value and the one before. The
   comparison of every other cas holds. */
static void add_atomic(conf_list *list, const char *operation, const char *type, const char *space, int returns) {
    code c = { NULL, 0, 0 };
    char name[80], w = type[1] == '6' ? 'd' : 'r';
    int bits = w == 'd' ? 64 : 32, swaps = !strcmp(operation, "cas");
    const char *shared = !strcmp(space, ".shared") ? "shared" : "global";
    put(&c, "mul.wide.u32 d6, r0, 8;\nadd.u64 d7, d0, d6;\nmul.wide.u32 d10, r0, %d;\nadd.u64 d9, d1, d10;\n"
        "mov.u64 d8, d9;\n", bits / 4);
    if (shared[0] == 's') put(&c, "mov.u64 d8, $s;\nadd.u64 d8, d8, d6;\n");
    put(&c, "ld.global.b%d %c20, [d7];\nld.global.b%d %c21, [d7+1024];\nld.global.b%d %c22, [d7+2048];\n", bits, w,
        bits, w, bits, w);
    put(&c, "st.%s.b%d [d8], %c20;\nand.b32 r9, r0, 1;\nsetp.eq.u32 p1, r9, 1;\n", shared, bits, w);
    if (swaps) put(&c, "@p1 mov.b%d %c21, %c20;\n", bits, w, w);
    put(&c, "mov.b%d %c23, %c20;\n", bits, w, w);
    if (returns) put(&c, "atom%s.%s.%s %c23, [d8], %c21", space, operation, type, w, w);
    else put(&c, "red%s.%s.%s [d8], %c21", space, operation, type, w);
    if (swaps) put(&c, ", %c22", w);
    put(&c, ";\nld.volatile.%s.b%d %c24, [d8];\nst.global.b%d [d9], %c24;\nst.global.b%d [d9+%d], %c23;", shared, bits,
        w, bits, w, bits, bits / 8, w);
    snprintf(name, sizeof name, "%s%s.%s.%s", returns ? "atom" : "red", space, operation, type);
    add(list, name, LEVEL_FIRST, ATOMIC_THREADS, (size_t)(bits / 4 * ATOMIC_THREADS),
        ".shared .align 8 .b8 $s[512];", &c);
}

static void add_atomics(conf_list *list) {
    static const char *const operations[][2] = {
        { "add", "u32" }, { "add", "s32" }, { "add", "u64" }, { "add", "f32" }, { "min", "u32" }, { "min", "s32" },
        { "min", "u64" }, { "min", "s64" }, { "max", "u32" }, { "max", "s32" }, { "max", "u64" }, { "max", "s64" },
        { "and", "b32" }, { "and", "b64" }, { "or", "b32" },  { "or", "b64" },  { "xor", "b32" }, { "xor", "b64" },
        { "inc", "u32" }, { "dec", "u32" }, { "exch", "b32" }, { "exch", "b64" }, { "cas", "b32" }, { "cas", "b64" },
    };
    static const char *const spaces[] = { ".global", ".shared", "" };
    static const char *const scopes[] = {
        ".relaxed.cta.global", ".relaxed.gpu.global", ".relaxed.sys.global", ".acquire.gpu.global",
        ".release.gpu.global", ".acq_rel.gpu.global", ".acq_rel.sys.global", ".acq_rel.cta.global",
    };
    size_t i, k;
    for (k = 0; k < sizeof spaces / sizeof *spaces; k++) {
        for (i = 0; i < sizeof operations / sizeof *operations; i++) {
            int swaps = operations[i][0][0] == 'e' || operations[i][0][0] == 'c';
            add_atomic(list, operations[i][0], operations[i][1], spaces[k], 1);
            if (!swaps) add_atomic(list, operations[i][0], operations[i][1], spaces[k], 0);
        }
    }
    for (k = 0; k < sizeof scopes / sizeof *scopes; k++) add_atomic(list, "add", "u32", scopes[k], 1);
    add_text(list, "atom.global.add.u32 of 256 threads", LEVEL_FIRST, 256, 4, "", "red.global.add.u32 [d1], r0;");
    add_text(list, "atom.shared.add.u32 of 256 threads", LEVEL_FIRST, 256, 4, ".shared .align 4 .u32 $s;",
             "setp.eq.u32 p0, r0, 0;\n@p0 st.shared.u32 [$s], 0;\nbar.sync 0;\natom.shared.add.u32 r8, [$s], r0;\n"
             "bar.sync 0;\nld.shared.u32 r9, [$s];\n@p0 st.global.u32 [d1], r9;");
}

/* ---- cp.async -------------------------------------------------------------------------------------------------- */

/* Thread t copies t modulo bytes + 1 bytes, the rest becomes zero; whole: all of them. */
static void add_copy(conf_list *list, const char *spelling, int level, int bytes, int whole) {
    code c = { NULL, 0, 0 };
    char name[80];
    int i;
    put(&c, "mov.u32 r8, $s;\nmad.lo.u32 r8, r0, 16, r8;\nmul.wide.u32 d6, r0, 16;\nadd.u64 d7, d0, d6;\n"
        "add.u64 d9, d1, d6;\nrem.u32 r9, r0, %d;\n%s [r8], [d7], %d%s;\n", bytes + 1, spelling, bytes,
        whole ? "" : ", r9");
    put(&c, "cp.async.commit_group;\ncp.async.wait_group 0;\n");
    for (i = 0; i < bytes; i += 4) {
        put(&c, "ld.shared.u32 r10, [r8+%d];\nst.global.u32 [d9+%d], r10;\n", i, i);
    }
    snprintf(name, sizeof name, "%s, %d%s", spelling, bytes, whole ? "" : ", part of them");
    add(list, name, level, 34, 34 * 16, ".shared .align 16 .b8 $s[544];", &c);
}

static void add_copies(conf_list *list) {
    static const char *const ca = "cp.async.ca.shared.global", *const cg = "cp.async.cg.shared.global";
    int bytes;
    for (bytes = 4; bytes <= 16; bytes *= 2) {
        add_copy(list, ca, LEVEL_AMPERE, bytes, 1);
        add_copy(list, ca, LEVEL_AMPERE, bytes, 0);
    }
    add_copy(list, cg, LEVEL_AMPERE, 16, 1);
    add_copy(list, cg, LEVEL_AMPERE, 16, 0);
    add_copy(list, "cp.async.ca.shared.global.L2::128B", LEVEL_AMPERE_74, 16, 0);
    add_copy(list, "cp.async.cg.shared.global.L2::128B", LEVEL_AMPERE_74, 16, 0);
    add_text(list, "cp.async.wait_group 1, cp.async.wait_all", LEVEL_AMPERE, 32, 256, ".shared .align 16 .b8 $s[1024];",
             "mov.u32 r8, $s;\nmad.lo.u32 r8, r0, 32, r8;\nmul.wide.u32 d6, r0, 16;\nadd.u64 d7, d0, d6;\n"
             "cp.async.cg.shared.global [r8], [d7], 16;\ncp.async.commit_group;\n"
             "cp.async.cg.shared.global [r8+16], [d7+512], 16;\ncp.async.commit_group;\ncp.async.wait_group 1;\n"
             "ld.shared.u32 r10, [r8+4];\nst.global.u32 [d4], r10;\ncp.async.wait_all;\nld.shared.u32 r11, [r8+20];\n"
             "st.global.u32 [d4+128], r11;");
}

/* ---- lanes ----------------------------------------------------------------------------------------------------- */

/* A byte for each lane: where its value came from, and 128 when that was inside. 12 warps have 12 offsets; c goes
   through six widths and two clamps. */
static void add_shuffle(conf_list *list, const char *mode) {
    static const int segments[] = { 0, 16, 24, 28, 30, 31 };
    code c = { NULL, 0, 0 };
    char name[80];
    int i;
    put(&c, "shr.u32 r7, r0, 5;\nmul.wide.u32 d6, r7, 4;\nmov.u64 d7, $b;\nadd.u64 d7, d7, d6;\n"
        "ld.const.u32 r10, [d7];\ncvt.u64.u32 d8, r0;\nadd.u64 d8, d1, d8;\nand.b32 r11, r0, 31;\n");
    for (i = 0; i < 12; i++) {
        put(&c, "shfl.sync.%s.b32 r8|p0, r11, r10, %d, -1;\nselp.u32 r9, 128, 0, p0;\nor.b32 r8, r8, r9;\n"
            "st.global.u8 [d8+%d], r8;\n", mode, segments[i / 2] << 8 | (i & 1 ? 31 : 0), 384 * i);
    }
    snprintf(name, sizeof name, "shfl.sync.%s.b32", mode);
    add(list, name, LEVEL_FIRST, 384, 12 * 384,
        ".const .align 4 .u32 $b[12] = {0, 1, 2, 3, 4, 8, 15, 16, 17, 31, 32, 45};", &c);
    put(&c, "ld.global.u32 r10, [d3];\nld.global.u32 r12, [d3+2048];\nand.b32 r11, r0, 31;\n"
        "shfl.sync.%s.b32 r8|p0, r11, r10, r12, -1;\nselp.u32 r9, 128, 0, p0;\nor.b32 r8, r8, r9;\n"
        "cvt.u64.u32 d8, r0;\nadd.u64 d8, d1, d8;\nst.global.u8 [d8], r8;", mode);
    snprintf(name, sizeof name, "shfl.sync.%s.b32, every lane its own operands", mode);
    add(list, name, LEVEL_FIRST, 512, 512, "", &c);
    put(&c, "setp.lt.u32 p1, r0, 16;\nmov.u32 r8, 99;\n@!p1 bra END;\nshfl.sync.%s.b32 r8, r0, 3, %d, 0xFFFF;\nEND:\n"
        "st.global.u32 [d4], r8;", mode, 16 << 8 | (mode[0] == 'u' ? 0 : 31));
    snprintf(name, sizeof name, "shfl.sync.%s.b32 of half a warp", mode);
    add(list, name, LEVEL_FIRST, 32, 128, "", &c);
}

/* Eight ballots, of the whole warp or of lanes 8 .. 23, also with the predicate negated. */
static void add_vote(conf_list *list, const char *mode, int part, const char *sign) {
    static const uint32_t patterns[] = { 0, ~0u, 1, 0x80000000u, 0x00FFFF00u, 0x12345678u, 0xFF0000FFu, 0x7FFFFFFFu };
    code c = { NULL, 0, 0 };
    char name[80];
    int i;
    put(&c, "mov.u32 r12, %u;\nshr.u32 r12, r12, r0;\nand.b32 r12, r12, 1;\nsetp.eq.u32 p2, r12, 0;\n@p2 bra END;\n",
        part ? 0x00FFFF00u : ~0u);
    for (i = 0; i < 8; i++) {
        put(&c, "mov.u32 r10, %u;\nshr.u32 r10, r10, r0;\nand.b32 r10, r10, 1;\nsetp.eq.u32 p1, r10, 1;\n",
            (unsigned)patterns[i]);
        if (mode[0] == 'b') put(&c, "vote.sync.ballot.b32 r8, %sp1, %u;\n", sign, part ? 0x00FFFF00u : ~0u);
        else put(&c, "vote.sync.%s.pred p0, %sp1, %u;\nselp.u32 r8, 1, 0, p0;\n", mode, sign, part ? 0x00FFFF00u : ~0u);
        put(&c, "st.global.u32 [d4+%d], r8;\n", 128 * i);
    }
    put(&c, "END:\n");
    snprintf(name, sizeof name, "vote.sync.%s%s%s", mode, *sign ? ", negated" : "", part ? ", part of a warp" : "");
    add(list, name, LEVEL_FIRST, 32, 1024, "", &c);
}

/* Of all lanes, of every other group of 4, of one. */
static void add_reduction(conf_list *list, const char *type) {
    static const uint32_t masks[] = { ~0u, 0x0F0F0F0Fu, 0x00000400u };
    code c = { NULL, 0, 0 };
    char name[80];
    int i;
    for (i = 0; i < 3; i++) {
        put(&c, "mov.u32 r12, %u;\nshr.u32 r12, r12, r0;\nand.b32 r12, r12, 1;\nsetp.eq.u32 p2, r12, 0;\n@p2 bra L%d;\n"
            "ld.global.u32 r10, [d3+%d];\nredux.sync.%s r8, r10, %u;\nst.global.u32 [d4+%d], r8;\nL%d:\n",
            (unsigned)masks[i], i, 128 * i, type, (unsigned)masks[i], 128 * i, i);
    }
    snprintf(name, sizeof name, "redux.sync.%s", type);
    add(list, name, LEVEL_AMPERE, 32, 384, "", &c);
}

static void add_matches(conf_list *list) {
    static const char *const values[] = { "and.b32 r10, r0, 3", "mov.u32 r10, 7", "shr.u32 r10, r0, 4",
                                          "mov.u32 r10, r0" };
    code any = { NULL, 0, 0 }, all = { NULL, 0, 0 };
    int i;
    for (i = 0; i < 4; i++) {
        put(&any, "%s;\nmatch.any.sync.b32 r8, r10, -1;\nst.global.u32 [d4+%d], r8;\n", values[i], 128 * i);
        put(&all, "%s;\nmatch.all.sync.b32 r8|p0, r10, -1;\nselp.u32 r9, 1, 0, p0;\nst.global.u32 [d4+%d], r8;\n"
            "st.global.u32 [d4+%d], r9;\n", values[i], 256 * i, 256 * i + 128);
    }
    add(list, "match.any.sync.b32", LEVEL_FIRST, 32, 512, "", &any);
    add(list, "match.all.sync.b32", LEVEL_FIRST, 32, 1024, "", &all);
}

static void add_lanes(conf_list *list) {
    static const char *const shuffles[] = { "up", "down", "bfly", "idx" };
    static const char *const votes[] = { "ballot", "any", "all", "uni" };
    static const char *const reductions[] = { "add.s32", "add.u32", "min.s32", "max.s32", "min.u32", "max.u32",
                                              "and.b32", "or.b32", "xor.b32" };
    size_t i;
    for (i = 0; i < 4; i++) add_shuffle(list, shuffles[i]);
    for (i = 0; i < 4; i++) {
        add_vote(list, votes[i], 0, "");
        add_vote(list, votes[i], 1, "");
        add_vote(list, votes[i], 0, "!");
    }
    for (i = 0; i < sizeof reductions / sizeof *reductions; i++) add_reduction(list, reductions[i]);
    add_matches(list);
    add_text(list, "activemask.b32", LEVEL_FIRST, 32, 128, "",
             "mov.u32 r8, 0;\nsetp.lt.u32 p1, r0, 5;\n@!p1 bra END;\nactivemask.b32 r8;\nEND:\n"
             "st.global.u32 [d4], r8;");
    add_text(list, "bar.warp.sync", LEVEL_FIRST, 32, 128, ".shared .align 4 .b8 $s[128];",
             "mov.u32 r8, $s;\nmad.lo.u32 r9, r0, 4, r8;\nst.shared.u32 [r9], r0;\nbar.warp.sync -1;\n"
             "xor.b32 r10, r0, 5;\nmad.lo.u32 r9, r10, 4, r8;\nld.shared.u32 r11, [r9];\nst.global.u32 [d4], r11;");
}

/* ---- barriers -------------------------------------------------------------------------------------------------- */

static void add_barriers(conf_list *list) {
    static const struct {
        const char *name;
        int level;
    } pairs[] = {
        { "bar.sync 0", 0 }, { "bar.sync 3", 0 }, { "bar.sync 1, 96", 0 }, { "barrier.sync 0", 0 },
        { "barrier.sync.aligned 2", 0 }, { "barrier.sync 4, 96", 0 }, { "barrier.cta.sync 0", LEVEL_78 },
        { "barrier.cta.sync.aligned 2, 96", LEVEL_78 }, { "bar.cta.sync 0", LEVEL_78 },
    };
    static const struct {
        const char *name, *predicate;
        int level;
    } reductions[] = {
        { "bar.red.popc.u32", "p0", 0 }, { "bar.red.popc.u32", "!p0", 0 }, { "bar.red.and.pred", "p0", 0 },
        { "bar.red.and.pred", "p2", 0 }, { "bar.red.or.pred", "p0", 0 }, { "bar.red.or.pred", "!p2", 0 },
        { "barrier.red.popc.u32", "p0", 0 }, { "barrier.red.and.pred", "p2", 0 }, { "barrier.red.or.pred", "p0", 0 },
        { "barrier.cta.red.popc.aligned.u32", "p0", LEVEL_78 }, { "barrier.cta.red.or.pred", "p0", LEVEL_78 },
    };
    code c = { NULL, 0, 0 };
    char name[80];
    size_t i;
    for (i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        put(&c, "mov.u32 r8, $s;\nmad.lo.u32 r9, r0, 4, r8;\nst.shared.u32 [r9], r0;\n%s;\nsub.u32 r10, 95, r0;\n"
            "mad.lo.u32 r9, r10, 4, r8;\nld.shared.u32 r11, [r9];\nst.global.u32 [d4], r11;", pairs[i].name);
        add(list, pairs[i].name, pairs[i].level, 96, 384, ".shared .align 4 .b8 $s[384];", &c);
    }
    for (i = 0; i < sizeof reductions / sizeof *reductions; i++) {
        int counts = strstr(reductions[i].name, "popc") != NULL;
        put(&c, "setp.lt.u32 p0, r0, 37;\nsetp.lt.u32 p2, r0, 96;\n%s %s, 1, 96, %s;\n", reductions[i].name,
            counts ? "r8" : "p1", reductions[i].predicate);
        if (!counts) put(&c, "selp.u32 r8, 1, 0, p1;\n");
        put(&c, "st.global.u32 [d4], r8;");
        snprintf(name, sizeof name, "%s of %s", reductions[i].name, reductions[i].predicate);
        add(list, name, reductions[i].level, 96, 384, "", &c);
    }
    add_text(list, "bar.arrive", LEVEL_FIRST, 64, 128, ".shared .align 4 .b8 $s[128];",
             "mov.u32 r8, $s;\nand.b32 r7, r0, 31;\nmad.lo.u32 r9, r7, 4, r8;\nsetp.lt.u32 p0, r0, 32;\n@p0 bra TAKE;\n"
             "mul.lo.u32 r10, r7, 3;\nst.shared.u32 [r9], r10;\nbar.arrive 1, 64;\nbra END;\nTAKE:\nbar.sync 1, 64;\n"
             "ld.shared.u32 r11, [r9];\nst.global.u32 [d4], r11;\nEND:");
}

/* ---- moves and tables ------------------------------------------------------------------------------------------ */

static void add_moves(conf_list *list) {
    code c = { NULL, 0, 0 };
    int i;
    add_text(list, "mov.b32 pack and unpack", LEVEL_FIRST, 32, 256, "",
             "ld.global.u32 r8, [d3];\nmov.b32 {h0, h1}, r8;\nmov.b32 r9, {h1, h0};\nst.global.u32 [d4], r9;\n"
             "mov.b32 {_, h2}, r8;\nst.global.u16 [d4+128], h2;\nmov.b32 {h3, _}, r8;\nst.global.u16 [d4+130], h3;");
    add_text(list, "mov.b64 pack and unpack", LEVEL_FIRST, 32, 768, "",
             "ld.global.u32 r8, [d3];\nld.global.u32 r9, [d3+128];\nmov.b64 d8, {r8, r9};\nadd.u64 d5, d4, d2;\n"
             "st.global.u64 [d5], d8;\nmov.b64 {r10, r11}, d8;\nst.global.u32 [d4+256], r11;\n"
             "st.global.u32 [d4+384], r10;\nmov.b64 {h0, h1, h2, h3}, d8;\nmov.b64 d9, {h3, h2, h1, h0};\n"
             "st.global.u64 [d5+512], d9;");
    put(&c, "ld.global.u32 r10, [$g];\nld.global.u32 r11, [$g+4];\nld.global.u32 r12, [$g+8];\n");
    for (i = 0; i < 256; i++) put(&c, "lop3.b32 r8, r10, r11, r12, %d;\nst.global.u8 [d1+%d], r8;\n", i, i);
    add(list, "lop3.b32, all tables", LEVEL_FIRST, 1, 256,
        ".global .align 4 .u32 $g[3] = {0xF0F0F0F0, 0xCCCCCCCC, 0xAAAAAAAA};", &c);
}

/* ---- control flow ---------------------------------------------------------------------------------------------- */

static void add_control(conf_list *list) {
    add_text(list, "a loop that diverges", LEVEL_FIRST, 32, 128, "",
             "mov.u32 r8, 0;\nmov.u32 r9, 0;\nLOOP:\nxor.b32 r10, r9, r0;\nand.b32 r10, r10, 1;\n"
             "setp.eq.u32 p0, r10, 0;\n@p0 bra EVEN;\nmad.lo.u32 r8, r8, 3, r9;\nbra NEXT;\nEVEN:\n"
             "add.u32 r8, r8, r0;\nNEXT:\nadd.u32 r9, r9, 1;\nsetp.lt.u32 p0, r9, r0;\n@p0 bra LOOP;\n"
             "setp.ne.u32 p1, r8, 0;\nvote.sync.ballot.b32 r11, p1, -1;\nadd.u32 r8, r8, r11;\n"
             "st.global.u32 [d4], r8;");
    add_text(list, "labels in braces", LEVEL_FIRST, 32, 128, "",
             "mov.u32 r8, 0;\n{\n.reg .b32 r9;\nmov.u32 r9, 5;\nbra L;\nmov.u32 r8, 1;\nL:\nadd.u32 r8, r8, r9;\n}\n"
             "{\n.reg .pred q;\nsetp.eq.u32 q, r0, 3;\n@q bra L;\nadd.u32 r8, r8, 100;\nL:\n}\n"
             "st.global.u32 [d4], r8;");
    add_text(list, "lanes that leave one by one", LEVEL_FIRST, 40, 160, "",
             "mov.u32 r8, 0;\nLOOP:\nst.global.u32 [d4], r8;\nsetp.eq.u32 p0, r8, r0;\n@p0 exit;\nadd.u32 r8, r8, 1;\n"
             "bra.uni LOOP;");
    add_text(list, "a barrier after some lanes have left", LEVEL_FIRST, 96, 384, "",
             "setp.ge.u32 p0, r0, 64;\n@p0 ret;\nbar.sync 0;\nst.global.u32 [d4], 1;");
    add_text(list, "guards", LEVEL_FIRST, 32, 256, "",
             "setp.lt.u32 p0, r0, 9;\nmov.u32 r8, 7;\n@p0 ld.global.u32 r8, [d3];\n@!p0 add.u32 r8, r8, 1;\n"
             "st.global.u32 [d4], r8;\n@!p0 st.global.u32 [d4+128], r0;");
}

/* ---- special registers ----------------------------------------------------------------------------------------- */

/* A grid of 2 x 2 x 2 blocks of 4 x 3 x 3 threads: two warps, the second with 4 lanes. */
static void add_special(conf_list *list, const char *name, int bytes) {
    code c = { NULL, 0, 0 };
    conf_case *k;
    int i;
    put(&c, "mov.u32 r3, %%tid.y;\nmov.u32 r4, %%tid.z;\nmad.lo.u32 r3, r4, 3, r3;\nmad.lo.u32 r3, r3, 4, r0;\n"
        "mov.u32 r5, %%ctaid.x;\nmov.u32 r6, %%ctaid.y;\nmov.u32 r7, %%ctaid.z;\nmad.lo.u32 r6, r7, 2, r6;\n"
        "mad.lo.u32 r5, r6, 2, r5;\nmad.lo.u32 r3, r5, 36, r3;\nmul.wide.u32 d6, r3, %d;\nadd.u64 d7, d1, d6;\n"
        "mov.u32 r8, %s;\nst.global.u%d [d7], r8;", bytes, name, 8 * bytes);
    k = add(list, name, LEVEL_FIRST, 4, (size_t)(288 * bytes), ".extern .shared .align 16 .b8 $dynamic[];", &c);
    k->block[1] = k->block[2] = 3;
    for (i = 0; i < 3; i++) k->grid[i] = 2;
    k->shared = 48;
}

static void add_specials(conf_list *list) {
    static const char *const small[] = {
        "%tid.x", "%tid.y", "%tid.z", "%ntid.x", "%ntid.y", "%ntid.z", "%ctaid.x", "%ctaid.y", "%ctaid.z", "%nctaid.x",
        "%nctaid.y", "%nctaid.z", "%laneid", "%nwarpid",
    };
    static const char *const large[] = { "%lanemask_eq", "%lanemask_le", "%lanemask_lt", "%lanemask_ge", "%lanemask_gt",
                                         "%dynamic_smem_size", "%total_smem_size" };
    size_t i;
    for (i = 0; i < sizeof small / sizeof *small; i++) add_special(list, small[i], 1);
    for (i = 0; i < sizeof large / sizeof *large; i++) add_special(list, large[i], 4);
}

void conf_add_programs(conf_list *list) {
    add_typed_memory(list);
    add_spellings(list);
    add_spaces(list);
    add_atomics(list);
    add_copies(list);
    add_lanes(list);
    add_barriers(list);
    add_moves(list);
    add_control(list);
    add_specials(list);
}
