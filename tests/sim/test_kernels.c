/* test_kernels.c - whole kernels from CUDA C++: right results and no reports for every back end of the compiler, and
   the bugs that are planted in them are seen. Skipped by name without NVRTC. */
#include "nvrtc.h"
#include "sim_test.h"

#include <math.h>

static nvrtc_library nvrtc;
static float worst;             /* error of the last run */

static char *read_file(const char *path) {
    FILE *f = fopen(path, "rb");
    char *text = (char *)calloc(1, 20000);
    size_t n = f ? fread(text, 1, 19999, f) : 0;
    CHECK(n > 0 && n < 19999, "%s", path);
    if (f) fclose(f);
    return text;
}

/* The source with one place changed. */
static char *changed(const char *text, const char *from, const char *to, int occurrence) {
    const char *at = text;
    char *result = (char *)calloc(1, strlen(text) + strlen(to) + 1);
    int i;
    for (i = 0; i <= occurrence && at; i++) at = strstr(i ? at + 1 : at, from);
    CHECK(at, "the kernel has no `%s'", from);
    if (!at) at = text;
    memcpy(result, text, (size_t)(at - text));
    strcat(result, to);
    strcat(result, at + strlen(from));
    return result;
}

static CUfunction compile(const char *source, const char *name, const char *arch) {
    char *ptx = nvrtc_ptx(&nvrtc, source, name, arch);
    CUmodule module = NULL;
    CUfunction f = NULL;
    CHECK(ptx, "%s for %s does not compile", name, arch);
    if (ptx) CHECK(!load_text(&module, ptx), "%s: %s", arch, test_log);
    if (module) CHECK(!cuModuleGetFunction(&f, module, name), "%s", name);
    free(ptx);
    return f;
}

static void compare(float got, double wanted) {
    float error = (float)fabs((double)got - wanted);
    if (error != error) error = INFINITY;
    if (error > worst) worst = error;
}

/* ---- expand ---------------------------------------------------------------------------------------------------- */

static CUresult run_expand(CUfunction f) {
    enum { N = 300 };
    static int q[N], kv[N], lengths[20000], requests[20000];
    CUdeviceptr d_q, d_kv, d_lengths, d_requests, d_error;
    int i, t, row = 0, total = 0, zero = 0;
    void *params[6];
    CUresult r;
    for (i = 0; i < N; i++) {
        q[i] = i * 7919 % 5 == 0 ? 200 + i % 77 : i % 4;
        kv[i] = q[i] + i * 3 % 1000;
        total += q[i];
    }
    d_q = upload(q, sizeof q);
    d_kv = upload(kv, sizeof kv);
    d_lengths = upload(NULL, (size_t)total * 4);
    d_requests = upload(NULL, (size_t)total * 4);
    d_error = upload(&zero, 4);
    params[0] = &d_q;
    params[1] = &d_kv;
    params[2] = &d_lengths;
    params[3] = &d_requests;
    params[4] = &d_error;
    params[5] = &total;
    worst = 0;
    r = launch(f, N, 128, params);
    if (!r) r = cuMemcpyDtoH_v2(lengths, d_lengths, (size_t)total * 4);
    if (!r) r = cuMemcpyDtoH_v2(requests, d_requests, (size_t)total * 4);
    for (i = 0; i < N && !r; i++) {
        for (t = 0; t < q[i]; t++, row++) {
            compare((float)lengths[row], kv[i] - q[i] + t + 1);
            compare((float)requests[row], i);
        }
    }
    return r;
}

/* ---- decode ---------------------------------------------------------------------------------------------------- */

enum { F32, F16, BF16, E4M3, E5M2, INT8, TYPES };
enum { DIM = 64, REQUESTS = 3, HEADS = 4, KV_HEADS = 2, PAGE = 16, COLUMNS = 6, PAGES = REQUESTS * COLUMNS,
       SPLITS = 3 };
enum { CACHE = PAGES * PAGE * KV_HEADS * DIM };

typedef struct decode_params {
    CUdeviceptr q, k, v, k_scale, pages, lengths, part_o, part_ml, counter, o, lse;
    int heads, kv_heads, page, columns, splits, type;
    float scale, softcap;
} decode_params;

/* Fills a cache and says what its numbers are; codes that are no numbers are left out. */
static void draw_cache(test_rng *rng, int type, void *raw, float *value, const float *scale) {
    int i;
    for (i = 0; i < CACHE; i++) {
        float x = test_uniform(rng);
        uint32_t u;
        int code = test_range(rng, 0, 0x77) | (test_range(rng, 0, 1) << 7);
        memcpy(&u, &x, 4);
        if (type == F32) {
            ((float *)raw)[i] = value[i] = x;
        } else if (type == BF16) {
            ((uint16_t *)raw)[i] = (uint16_t)(u >> 16);
            u &= 0xFFFF0000u;
            memcpy(&value[i], &u, 4);
        } else if (type == F16) {
            int h = test_range(rng, -1024, 1024);
            value[i] = (float)h / 1024;
            u = 0;
            if (h) {
                int e;
                double m = frexp(fabs((double)value[i]), &e);
                u = (uint32_t)((e + 14) << 10) + (uint32_t)(m * 2048) - 1024;
            }
            ((uint16_t *)raw)[i] = (uint16_t)(u | (h < 0 ? 0x8000u : 0));
        } else if (type == INT8) {
            ((int8_t *)raw)[i] = (int8_t)((code & 127) - 64);
            value[i] = (float)((code & 127) - 64) * scale[i / DIM];
        } else {
            int mantissa = type == E4M3 ? 3 : 2, bias = type == E4M3 ? 7 : 15, field, fraction;
            code &= 0xBF;
            field = (code & 127) >> mantissa;
            fraction = code & ((1 << mantissa) - 1);
            ((uint8_t *)raw)[i] = (uint8_t)code;
            value[i] = (float)ldexp(field ? fraction + (1 << mantissa) : fraction,
                                    (field ? field : 1) - bias - mantissa);
            if (code & 128) value[i] = -value[i];
        }
    }
}

static void reference_row(const float *q, const float *k, const float *v, const int *table, int keys, int kv_head,
                          double scale, double softcap, double *o, double *lse) {
    double x[COLUMNS * PAGE], best = -INFINITY, sum = 0;
    int j, d;
    for (d = 0; d < DIM; d++) o[d] = 0;
    for (j = 0; j < keys; j++) {
        size_t at = ((size_t)(table[j / PAGE] * PAGE + j % PAGE) * KV_HEADS + (size_t)kv_head) * DIM;
        x[j] = 0;
        for (d = 0; d < DIM; d++) x[j] += (double)q[d] * k[at + (size_t)d];
        x[j] *= scale;
        if (softcap > 0) x[j] = softcap * tanh(x[j] / softcap);
        best = x[j] > best ? x[j] : best;
    }
    for (j = 0; j < keys; j++) {
        size_t at = ((size_t)(table[j / PAGE] * PAGE + j % PAGE) * KV_HEADS + (size_t)kv_head) * DIM;
        double w = exp(x[j] - best);
        sum += w;
        for (d = 0; d < DIM; d++) o[d] += w * v[at + (size_t)d];
    }
    for (d = 0; d < DIM && sum > 0; d++) o[d] /= sum;
    *lse = sum > 0 ? best + log(sum) : -INFINITY;
}

static CUresult run_decode(CUfunction f, int type) {
    static float q[REQUESTS * HEADS * DIM], k[CACHE], v[CACHE], scale[CACHE / DIM], o[REQUESTS * HEADS * DIM];
    static uint8_t raw_k[CACHE * 4], raw_v[CACHE * 4];
    static const int bytes[TYPES] = { 4, 2, 2, 1, 1, 1 }, lengths[REQUESTS] = { 83, 0, 17 };
    float lse[REQUESTS * HEADS];
    int table[REQUESTS * COLUMNS], i, d, r;
    test_rng rng = { 5 };
    decode_params p;
    void *params[1];
    memset(&p, 0, sizeof p);
    for (i = 0; i < REQUESTS * COLUMNS; i++) table[i] = (i * 5 + 2) % PAGES;
    for (i = 0; i < CACHE / DIM; i++) scale[i] = type == INT8 ? 0.01f + 0.001f * (float)(i % 7) : 1;
    for (i = 0; i < REQUESTS * HEADS * DIM; i++) q[i] = test_uniform(&rng);
    draw_cache(&rng, type, raw_k, k, scale);
    draw_cache(&rng, type, raw_v, v, scale);
    p.q = upload(q, sizeof q);
    p.k = upload(raw_k, (size_t)(CACHE * bytes[type]));
    p.v = upload(raw_v, (size_t)(CACHE * bytes[type]));
    p.k_scale = type == INT8 ? upload(scale, sizeof scale) : 0;
    p.pages = upload(table, sizeof table);
    p.lengths = upload(lengths, sizeof lengths);
    p.part_o = upload(NULL, sizeof o * SPLITS);
    p.part_ml = upload(NULL, sizeof lse * SPLITS * 2);
    p.counter = upload(NULL, sizeof lse);
    p.o = upload(NULL, sizeof o);
    p.lse = upload(NULL, sizeof lse);
    p.heads = HEADS;
    p.kv_heads = KV_HEADS;
    p.page = PAGE;
    p.columns = COLUMNS;
    p.splits = SPLITS;
    p.type = type;
    p.scale = 0.125f;
    p.softcap = type == F16 ? 0.5f : 0;
    params[0] = &p;
    worst = 0;
    cuMemsetD32Async(p.counter, 0, REQUESTS * HEADS, NULL);
    for (i = 0; i < 2; i++) {       /* twice: the counters must be zero again */
        cuMemsetD32Async(p.o, 0x7FC00000, REQUESTS * HEADS * DIM, NULL);
        if (cuLaunchKernel(f, SPLITS, HEADS, REQUESTS, 128, 1, 1, 0, NULL, params, NULL)) return 1;
        r = cuCtxSynchronize();
        if (r) return r;
    }
    r = cuMemcpyDtoH_v2(o, p.o, sizeof o);
    if (!r) r = cuMemcpyDtoH_v2(lse, p.lse, sizeof lse);
    for (i = 0; i < REQUESTS * HEADS && !r; i++) {
        double wanted[DIM], wanted_lse;
        reference_row(q + i * DIM, k, v, table + i / HEADS * COLUMNS, lengths[i / HEADS],
                      i % HEADS / (HEADS / KV_HEADS),
                      0.125, type == F16 ? 0.5 : 0, wanted, &wanted_lse);
        for (d = 0; d < DIM; d++) compare(o[i * DIM + d], wanted[d]);
        if (lengths[i / HEADS]) compare(lse[i], wanted_lse);
        else CHECK(lse[i] < -1e38f, "an empty request: %g", (double)lse[i]);
    }
    return r;
}

static CUresult run_decode_all(CUfunction f) {
    float most = 0;
    int type;
    for (type = 0; type < TYPES; type++) {
        CUresult r = run_decode(f, type);
        if (r) return r;
        if (worst > most) most = worst;
    }
    worst = most;
    return 0;
}

/* ---- tiles ----------------------------------------------------------------------------------------------------- */

static CUresult run_tiles(CUfunction f) {
    enum { ROWS = 70, KEYS = 101, SHARED = 4 * 32 * (DIM + 4) * 4 };
    static float q[ROWS * DIM], k[KEYS * DIM], v[KEYS * DIM], o[ROWS * DIM];
    test_rng rng = { 9 };
    CUdeviceptr d_q, d_k, d_v, d_o;
    int i, j, d, rows = ROWS, keys = KEYS;
    float scale = 0.125f;
    void *params[7];
    CUresult r;
    for (i = 0; i < ROWS * DIM; i++) q[i] = test_uniform(&rng) * 2;
    for (i = 0; i < KEYS * DIM; i++) k[i] = test_uniform(&rng) * 2;
    for (i = 0; i < KEYS * DIM; i++) v[i] = test_uniform(&rng);
    d_q = upload(q, sizeof q);
    d_k = upload(k, sizeof k);
    d_v = upload(v, sizeof v);
    d_o = upload(NULL, sizeof o);
    params[0] = &d_q;
    params[1] = &d_k;
    params[2] = &d_v;
    params[3] = &d_o;
    params[4] = &rows;
    params[5] = &keys;
    params[6] = &scale;
    worst = 0;
    if (cuLaunchKernel(f, (ROWS + 31) / 32, 1, 1, 128, 1, 1, SHARED, NULL, params, NULL)) return 1;
    r = cuMemcpyDtoH_v2(o, d_o, sizeof o);
    for (i = 0; i < ROWS && !r; i++) {
        double x[KEYS], sum = 0, out[DIM] = { 0 };
        for (j = 0; j <= i + KEYS - ROWS; j++) {
            x[j] = 0;
            for (d = 0; d < DIM; d++) x[j] += (double)q[i * DIM + d] * k[j * DIM + d];
            x[j] = exp(x[j] * (double)scale);
            sum += x[j];
            for (d = 0; d < DIM; d++) out[d] += x[j] * v[j * DIM + d];
        }
        for (d = 0; d < DIM; d++) compare(o[i * DIM + d], out[d] / sum);
    }
    return r;
}

/* ---- the tests ------------------------------------------------------------------------------------------------- */

typedef struct subject {
    const char *name, *file;
    CUresult (*run)(CUfunction f);
    float tolerance;
} subject;

static const subject subjects[] = {
    { "expand", "tests/sim/kernels/expand.cu", run_expand, 0 },
    { "decode", "tests/sim/kernels/decode.cu", run_decode_all, 2e-5f },
    { "tiles", "tests/sim/kernels/tiles.cu", run_tiles, 2e-5f },
};

static int no_compiler(void) {
    if (!nvrtc.handle && !nvrtc_open(&nvrtc)) test_skip("no libnvrtc");
    return test.skip != NULL;
}

/* Every back end, in order and with two seeds; the mode in which approximations are off needs more room. */
static void run_subject(const subject *s) {
    static const char *const archs[] = { "compute_75", "compute_80", "compute_90a", "compute_120" };
    static const char *const capability[] = { "75", "80", "90", "120" }, *const seeds[] = { "0", "3", "4711" };
    char *source;
    size_t a, i;
    if (no_compiler()) return;
    source = read_file(s->file);
    for (a = !strcmp(s->name, "tiles"); a < 4; a++) {
        CUfunction f;
        open_device();
        ptxsim_set("PTXSIM_CC", capability[a]);
        ptxsim_set("PTXSIM_DRIVER", "13090");
        f = compile(source, s->name, archs[a]);
        for (i = 0; f && i < 4; i++) {
            CUresult r;
            ptxsim_set("PTXSIM_SEED", i < 3 ? seeds[i] : "0");
            ptxsim_set("PTXSIM_PERTURB", i < 3 ? "0" : "1");
            r = s->run(f);
            CHECK(!r && ptxsim_reports(-1) == 0, "%s for %s: %d, %s", s->name, archs[a], r, ptxsim_last_report());
            CHECK(worst <= s->tolerance, "%s for %s, seed %s: error %g", s->name, archs[a], i < 3 ? seeds[i] : "0",
                  (double)worst);
        }
    }
    free(source);
}

static void expand(void) {
    run_subject(&subjects[0]);
}

static void decode(void) {
    run_subject(&subjects[1]);
}

static void tiles(void) {
    run_subject(&subjects[2]);
}

/* A planted bug, and who must see it: a kind of report, or the result alone. */
enum { RESULT = -1 };

typedef struct bug {
    int subject;
    const char *what, *from, *to;
    int occurrence, kind;
} bug;

static const bug bugs[] = {
    { 0, "no barrier", "__syncthreads();", "", 0, PTXSIM_UNINITIALISED },
    { 0, "one request too many in the sum", "i < b;", "i <= b;", 0, PTXSIM_GLOBAL_RACE },
    { 0, "a row too many", "row < rows;", "row <= rows;", 0, PTXSIM_GLOBAL_RACE },
    { 0, "a partial sum is not written", "(t & 31) == 0", "(t & 31) == 0 && t < 96", 0, PTXSIM_UNINITIALISED },
    { 0, "half of the warp named", "0xffffffffu", "0x0000ffffu", 0, PTXSIM_CONVERGENCE },
    { 0, "off by one", "+ row + 1", "+ row", 0, RESULT },
    { 1, "no barrier behind the parts of the warps", "__syncthreads();", "", 0, PTXSIM_UNINITIALISED },
    { 1, "no barrier in front of the counter", "__syncthreads();", "", 1, PTXSIM_GLOBAL_RACE },
    { 1, "no barrier behind is_last", "__syncthreads();", "", 2, PTXSIM_UNINITIALISED },
    { 1, "no fence in front of the counter", "__threadfence();", "", 0, PTXSIM_GLOBAL_RACE },
    { 1, "no fence behind the counter", "__threadfence();", "", 1, PTXSIM_GLOBAL_RACE },
    { 1, "the counter is not reset", "p.counter[row] = 0", "(void)0", 0, RESULT },
    { 1, "the part of lane 0 is lost", "sm_l[warp] = l;", "", 0, RESULT },
    { 1, "a chunk that is not clamped", "min(keys, low + chunk)", "(low + chunk)", 0, RESULT },
    { 1, "the page of another key", "key / p.page]", "key % p.page]", 0, PTXSIM_BOUNDS },
    { 1, "a barrier in divergent code", "if (t == 0) {\n        is_last",
      "if (lane < 16) __syncthreads();\n    if (t == 0) {\n        is_last", 0, PTXSIM_CONVERGENCE },
    { 1, "a warp leaves in front of a barrier", "if (!is_last) return;",
      "if (!is_last) return; if (warp != 3) asm volatile(\"bar.sync 1, 128;\");",
      0, PTXSIM_DEADLOCK },
    { 1, "the last split is left out", "i < p.splits && mx", "i < p.splits - 1 && mx", 0, RESULT },
    { 2, "the wait is one group short", "wait<1>", "wait<2>", 0, PTXSIM_SHARED_RACE },
    { 2, "no wait for the last tile", "else wait<0>();", "", 0, PTXSIM_SHARED_RACE },
    { 2, "no barrier behind the wait", "__syncthreads();", "", 0, PTXSIM_SHARED_RACE },
    { 2, "no barrier behind the use", "__syncthreads();", "", 1, PTXSIM_SHARED_RACE },
    { 2, "no syncwarp", "__syncwarp();", "", 0, PTXSIM_SHARED_RACE },
    { 2, "a buffer that is too short", "2 * KEYS * STRIDE;", "2 * KEYS * STRIDE + 8;", 0, PTXSIM_BOUNDS },
    { 2, "keys behind the end are read", "key < keys;", "true;", 0, PTXSIM_BOUNDS },
    { 2, "rows behind the end are written", "if (row >= rows) return;", "", 0, PTXSIM_BOUNDS },
    { 2, "a misaligned copy", "sk + i / (DIM / 4) * STRIDE + d", "sk + i / (DIM / 4) * (STRIDE + 1) + d", 0,
      PTXSIM_MISALIGNED },
    { 2, "the mask is off by one", "key <= row", "key < row", 0, RESULT },
};

static void planted_bugs(void) {
    size_t i;
    if (no_compiler()) return;
    for (i = 0; i < sizeof bugs / sizeof *bugs; i++) {
        const bug *b = &bugs[i];
        const subject *s = &subjects[b->subject];
        char *source = read_file(s->file), *bad = changed(source, b->from, b->to, b->occurrence);
        CUfunction f;
        CUresult r;
        open_device();
        ptxsim_set("PTXSIM_STRICT", "0");
        ptxsim_set("PTXSIM_STEPS", "5000000");
        ptxsim_set("PTXSIM_DRIVER", "13090");
        f = compile(bad, s->name, "compute_80");
        r = f ? s->run(f) : 0;
        if (b->kind == RESULT) CHECK(!r && worst > s->tolerance, "%s: %d, error %g", b->what, r, (double)worst);
        else CHECK(ptxsim_reports(b->kind) > 0, "%s, %s: %d, last: %s", s->name, b->what, r, ptxsim_last_report());
        free(source);
        free(bad);
    }
}

int main(int argc, char **argv) {
    if (argc > 1) test.only = argv[1];
    test_run("kernels: expand", expand);
    test_run("kernels: decode", decode);
    test_run("kernels: tiles", tiles);
    test_run("kernels: planted bugs", planted_bugs);
    return test_close("sim_kernels");
}
