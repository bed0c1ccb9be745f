/* test_forms.c - every arithmetic form that the simulator knows, with edge values: one tiny kernel each. The forms come
   from the simulator's own tables, so a form without an expectation here fails. */
#include "form_kernel.h"
#include "form_reference.h"
#include "form_values.h"
#include "sim_test.h"

enum { BLOCK = 128, THREADS = 2048 };

/* Thread t gets every pair of edge values while they last, then random numbers, some of them small. */
static uint64_t draw_operand(test_rng *rng, char letter, int operand, int t) {
    int edges = letter == 'd' ? EDGES_64 : letter == 'h' ? EDGES_16 : EDGES_32;
    int i = operand == 1 ? t % edges : operand == 2 ? t / edges % edges : test_range(rng, 0, edges - 1);
    uint64_t random = test_next(rng);
    if (letter == 'p') return random >> 40 & 1;
    if (t >= edges * edges || t >= THREADS * 15 / 16) {
        if (test_range(rng, 0, 3) == 0) return random % 70;
        return letter == 'w' && test_range(rng, 0, 1) ? 0x3F000000u + random % 0x2000000u : random;
    }
    return letter == 'd' ? edges64[i] : letter == 'h' ? edges16[i] : edges32[i];
}

static int is_approximate(const char *name) {
    return strstr(name, "approx") || strstr(name, "div.full");
}

/* Float results that should be near: as ordered integers. */
static int64_t ordered(uint64_t bits) {
    int64_t v = (int64_t)(bits & 0x7FFFFFFF);
    return bits & 0x80000000u ? -v : v;
}

static int agrees(const char *name, char letter, uint64_t got, uint64_t wanted) {
    int bits = letter == 'p' ? 32 : 8 * form_width(letter);
    form_name f;
    split_form(name, &f);
    got = low_bits((wide)got, bits);
    if (got == wanted) return 1;
    if (!strcmp(form_type(&f, 0), "f64")) {
        return double_of(got) != double_of(got) && double_of(wanted) != double_of(wanted);
    }
    if (letter != 'w') return 0;
    if (!strcmp(f.part[0], "neg") || !strcmp(f.part[0], "abs") || !strcmp(f.part[0], "copysign")) {
        return float_of(got) != float_of(got) && float_of(wanted) != float_of(wanted);
    }
    return is_approximate(name) && llabs(ordered(got) - ordered(wanted)) <= 2 && float_of(got) == float_of(got);
}

/* Where hardware gives less than the function: division above 2^126. */
static int is_outside(const char *name, const uint64_t *a) {
    return (strstr(name, "div.approx") || strstr(name, "div.full")) &&
           (fabsf(float_of(a[1])) > 0x1p126f || fabsf(float_of(a[1])) < 0x1p-126f);
}

/* The simulator does not look which target a form needs: all of them run as sm_90. */
static int run_form(const char *name, const char *operands, uint32_t immediate) {
    static const form_level late = { "8.0", "sm_90" };
    static uint64_t in[4 * THREADS], out[THREADS];
    char text[3000];
    size_t head;
    test_rng rng = { 0 };
    CUmodule module = NULL;
    CUfunction f;
    CUdeviceptr d_in, d_out;
    int threads = THREADS, sources = (int)strlen(operands) - 1, t, k, bad = 0;
    void *params[3];
    rng.state = (uint64_t)name[0] * 131 + (uint64_t)name[4];
    if (strchr(operands, 'i')) sources--;
    for (k = 0; k < sources; k++) {
        for (t = 0; t < THREADS; t++) in[k * THREADS + t] = draw_operand(&rng, operands[k + 1], k + 1, t);
    }
    head = form_head(text, sizeof text, &late);
    form_kernel(text + head, sizeof text - head, "k", name, operands, immediate);
    if (load_text(&module, text)) {
        CHECK(0, "%s: %s", name, test_log);
        return 0;
    }
    cuModuleGetFunction(&f, module, "k");
    d_in = upload(in, sizeof in);
    d_out = upload(NULL, sizeof out);
    cuMemsetD32Async(d_out, 0, 2 * THREADS, NULL);
    params[0] = &d_in;
    params[1] = &d_out;
    params[2] = &threads;
    CHECK(!launch(f, THREADS / BLOCK, BLOCK, params), "%s: %s", name, ptxsim_last_report());
    cuMemcpyDtoH_v2(out, d_out, sizeof out);
    for (t = 0; t < THREADS; t++) {
        uint64_t a[4] = { 0, 0, 0, 0 }, wanted = 0;
        for (k = 0; k < sources; k++) a[k] = in[k * THREADS + t];
        if (!expect_form(name, operands, a, immediate, &wanted)) {
            CHECK(0, "there is no expectation for %s", name);
            break;
        }
        if (is_outside(name, a) || agrees(name, operands[0], out[t], wanted)) continue;
        if (!bad++) {
            CHECK(0, "%s(%llx, %llx, %llx, %llx) = %llx, not %llx", name, (unsigned long long)a[0],
                  (unsigned long long)a[1], (unsigned long long)a[2], (unsigned long long)a[3],
                  (unsigned long long)out[t], (unsigned long long)wanted);
        }
    }
    cuMemFree_v2(d_in);
    cuMemFree_v2(d_out);
    cuModuleUnload(module);
    return 1;
}

/* Forms that work on several lanes, and predicates that cvt has not: test_warp.c. */
static int is_lane_wise(const char *operands) {
    return !strpbrk(operands, "nP") && strlen(operands) > 1;
}

static int is_of(const char *name, const char *family) {
    return strncmp(name, family, strlen(family)) == 0;
}

/* All forms whose name begins with one of the families, or with none of them when `others` is set. */
static int run_family(const char *const *families, int others) {
    const char *name, *operands;
    int i, k, ran = 0;
    open_device();
    for (i = 0; (name = ptxsim_form(i, &operands)) != NULL; i++) {
        int member = 0;
        if (!is_lane_wise(operands) || strstr(name, ".sync")) continue;
        for (k = 0; families[k]; k++) member |= is_of(name, families[k]);
        if (member == others) continue;
        if (strcmp(name, "lop3.b32") != 0) {
            ran += run_form(name, operands, 0);
            continue;
        }
        for (k = 0; k < 256; k += 15) ran += run_form(name, operands, (uint32_t)k);
    }
    return ran;
}

static const char *const conversions[] = { "cvt", NULL };
static const char *const comparisons[] = { "setp", "selp", "slct", NULL };
static const char *const approximations[] = { "ex2", "lg2", "sin", "cos", "tanh", "rsqrt", "rcp.approx", "sqrt.approx",
                                              "div.approx", "div.full", NULL };
static const char *const all_named[] = { "cvt", "setp", "selp", "slct", "ex2", "lg2", "sin", "cos", "tanh", "rsqrt",
                                         "rcp.approx", "sqrt.approx", "div.approx", "div.full", NULL };

static void arithmetic(void) {
    int ran = run_family(all_named, 1);
    CHECK(ran > 150, "%d forms ran", ran);
}

static void converting(void) {
    int ran = run_family(conversions, 0);
    CHECK(ran > 90, "%d forms ran", ran);
}

static void comparing(void) {
    int ran = run_family(comparisons, 0);
    CHECK(ran > 80, "%d forms ran", ran);
}

static void approximating(void) {
    int ran = run_family(approximations, 0);
    CHECK(ran == 19, "%d forms ran", ran);
}

/* The perturbed approximations differ from the exact ones, but not by much, and not at exact powers of two. */
static void perturbing(void) {
    static const char *text = PTX_HEAD
        ".visible .entry k(.param .u64 p) {\n.reg .f32 %f<3>;\n.reg .u64 %d<2>;\n.reg .u32 %r<2>;\n"
        "ld.param.u64 %d0, [p];\nmov.u32 %r0, %tid.x;\nmul.wide.u32 %d1, %r0, 4;\nadd.u64 %d0, %d0, %d1;\n"
        "ld.global.f32 %f0, [%d0];\nex2.approx.ftz.f32 %f1, %f0;\nst.global.f32 [%d0], %f1;\nret;\n}\n";
    float x[64], y[64];
    CUfunction f;
    CUdeviceptr p;
    void *params[1];
    int i, moved = 0;
    open_device();
    ptxsim_set("PTXSIM_PERTURB", "1");
    for (i = 0; i < 64; i++) x[i] = (float)(i - 32) / 8;
    f = load_kernel(text);
    p = upload(x, sizeof x);
    params[0] = &p;
    CHECK(!launch(f, 1, 64, params), "%s", ptxsim_last_report());
    cuMemcpyDtoH_v2(y, p, sizeof y);
    for (i = 0; i < 64; i++) {
        int64_t off = ordered(bits_of(y[i])) - ordered(bits_of((float)exp2((double)x[i])));
        moved += off != 0;
        CHECK(llabs(off) <= 3, "2^%g is off by %ld", (double)x[i], (long)off);
    }
    CHECK(moved > 20, "%d of 64 moved", moved);
    CHECK(y[32] == 1.0f, "2^0 = %g", (double)y[32]);
    cuMemFree_v2(p);
}

int main(int argc, char **argv) {
    if (argc > 1) test.only = argv[1];
    test_run("forms: arithmetic, logic and moves", arithmetic);
    test_run("forms: conversions", converting);
    test_run("forms: comparisons and selections", comparing);
    test_run("forms: approximations", approximating);
    test_run("forms: perturbed approximations", perturbing);
    return test_close("sim_forms");
}
