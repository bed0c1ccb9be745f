/* cuda_host.c - the host side of attn_cuda.h: what it says where a driver, device or compiler is missing, modules and
   their caches, capture, several devices, threads, faults of the driver. Most of it needs the simulated driver, which
   can be old, refuse calls and have any device. */
#define _POSIX_C_SOURCE 200809L
#include "attn_cuda.h"

#include "cuda_test.h"
#include "threads.h"

#include <dirent.h>
#include <unistd.h>

/* ---- a loader that sees everything ------------------------------------------------------------------------------- */

enum { KEPT = 16, IMAGE_HEAD = 64 };

/* An image as desc.put brought it. */
typedef struct kept_image {
    char name[80];
    unsigned char *data;
    size_t bytes;
} kept_image;

static struct {
    const char *absent;             /* libraries with this in their name are not there */
    const char *hidden;             /* a function that no library has */
    int nvrtc_version;              /* what NVRTC says of itself, 0: the truth */
    int break_compile;              /* NVRTC gets an option that breaks the source */
    int only_pretend;               /* NVRTC does not compile again: the PTX is that of the first image kept */
    const char *broken;             /* a function of NVRTC that fails */
    int meet;                       /* so many calls of desc.get wait for each other */
    int allocations, fail_at;       /* blocks that are out; the n-th allocation from now on fails */
    int compiles, loads, elf_loads;
    char opened[6000], said[20000];
    kept_image kept[KEPT];
    int kept_count;
    int (*compile)(void *program, int count, const char *const *options);
    int (*load)(void **module, const void *image, unsigned count, int *options, void **values);
    int (*ptx_size)(void *program, size_t *bytes);
    int (*ptx)(void *program, char *text);
    void (*reset)(void);
    int (*exchange)(int *mode);
    pthread_mutex_t lock;
    pthread_cond_t all_here;
} spy;

static int spy_version(int *major, int *minor) {
    *major = spy.nvrtc_version / 10;
    *minor = spy.nvrtc_version % 10;
    return 0;
}

static int spy_compile(void *program, int count, const char *const *options) {
    const char *broken[16];
    int i;
    pthread_mutex_lock(&spy.lock);
    spy.compiles++;
    pthread_mutex_unlock(&spy.lock);
    if (spy.only_pretend && !spy.break_compile) return 0;
    for (i = 0; i < count && i < 15; i++) broken[i] = options[i];
    broken[i] = "-DATTN_PARAMS_H"; /* as if attn_params.h had been included before */
    return spy.compile(program, count + spy.break_compile, broken);
}

static int spy_ptx_size(void *program, size_t *bytes) {
    if (spy.broken && !strcmp(spy.broken, "nvrtcGetPTXSize")) return 3;
    *bytes = spy.kept[0].bytes - IMAGE_HEAD;
    return spy.only_pretend ? 0 : spy.ptx_size(program, bytes);
}

static int spy_ptx(void *program, char *text) {
    if (spy.broken && !strcmp(spy.broken, "nvrtcGetPTX")) return 3;
    if (!spy.only_pretend) return spy.ptx(program, text);
    memcpy(text, spy.kept[0].data + IMAGE_HEAD, spy.kept[0].bytes - IMAGE_HEAD);
    return 0;
}

static int spy_load(void **module, const void *image, unsigned count, int *options, void **values) {
    pthread_mutex_lock(&spy.lock);
    spy.loads++;
    spy.elf_loads += !memcmp(image, "\x7f" "ELF", 4);
    pthread_mutex_unlock(&spy.lock);
    return spy.load(module, image, count, options, values);
}

static void *spy_open(void *user, const char *name) {
    (void)user;
    pthread_mutex_lock(&spy.lock);
    if (strlen(spy.opened) + strlen(name) + 2 < sizeof spy.opened) strcat(strcat(spy.opened, name), "\n");
    pthread_mutex_unlock(&spy.lock);
    return spy.absent && strstr(name, spy.absent) ? NULL : dlopen(name, RTLD_NOW);
}

static void *spy_symbol(void *user, void *library, const char *name) {
    void *p = dlsym(library, name);
    (void)user;
    if (spy.hidden && !strcmp(name, spy.hidden)) return NULL;
    if (p && !strcmp(name, "nvrtcVersion") && spy.nvrtc_version) {
        int (*function)(int *, int *) = spy_version;
        memcpy(&p, &function, sizeof p);
    }
    if (p && !strcmp(name, "nvrtcCompileProgram")) {
        int (*function)(void *, int, const char *const *) = spy_compile;
        memcpy(&spy.compile, &p, sizeof p);
        memcpy(&p, &function, sizeof p);
    }
    if (p && !strcmp(name, "nvrtcGetPTXSize")) {
        int (*function)(void *, size_t *) = spy_ptx_size;
        memcpy(&spy.ptx_size, &p, sizeof p);
        memcpy(&p, &function, sizeof p);
    }
    if (p && !strcmp(name, "nvrtcGetPTX")) {
        int (*function)(void *, char *) = spy_ptx;
        memcpy(&spy.ptx, &p, sizeof p);
        memcpy(&p, &function, sizeof p);
    }
    if (p && !strcmp(name, "cuModuleLoadDataEx")) {
        int (*function)(void **, const void *, unsigned, int *, void **) = spy_load;
        memcpy(&spy.load, &p, sizeof p);
        memcpy(&p, &function, sizeof p);
    }
    return p;
}

static void *spy_alloc(void *user, size_t bytes) {
    void *p = NULL;
    (void)user;
    pthread_mutex_lock(&spy.lock);
    if (!spy.fail_at || --spy.fail_at) p = malloc(bytes);
    spy.allocations += p != NULL;
    pthread_mutex_unlock(&spy.lock);
    return p;
}

static void spy_release(void *user, void *p) {
    (void)user;
    pthread_mutex_lock(&spy.lock);
    spy.allocations--;
    pthread_mutex_unlock(&spy.lock);
    free(p);
}

static void spy_message(void *user, const char *text) {
    (void)user;
    pthread_mutex_lock(&spy.lock);
    if (strlen(spy.said) + strlen(text) + 2 < sizeof spy.said) strcat(strcat(spy.said, text), "\n");
    pthread_mutex_unlock(&spy.lock);
}

static void spy_put(void *user, const char *name, const void *image, size_t bytes) {
    (void)user;
    pthread_mutex_lock(&spy.lock);
    if (spy.kept_count < KEPT) {
        kept_image *k = &spy.kept[spy.kept_count++];
        snprintf(k->name, sizeof k->name, "%s", name);
        k->data = (unsigned char *)malloc(bytes);
        k->bytes = bytes;
        memcpy(k->data, image, bytes);
    }
    pthread_mutex_unlock(&spy.lock);
}

static size_t spy_get(void *user, const char *name, void *image, size_t bytes) {
    size_t found = 0;
    int i;
    (void)user;
    pthread_mutex_lock(&spy.lock);
    if (spy.meet > 0 && !--spy.meet) pthread_cond_broadcast(&spy.all_here);
    while (spy.meet > 0) pthread_cond_wait(&spy.all_here, &spy.lock);
    for (i = 0; i < spy.kept_count && !found; i++) {
        if (strcmp(spy.kept[i].name, name)) continue;
        found = spy.kept[i].bytes;
        if (bytes >= found) memcpy(image, spy.kept[i].data, found);
    }
    pthread_mutex_unlock(&spy.lock);
    return found;
}

static void forget_images(void) {
    while (spy.kept_count) free(spy.kept[--spy.kept_count].data);
}

static char compiler[500];          /* what ATTN_CUDA_NVRTC said at the start */

static attn_cuda_desc spy_desc(void) {
    attn_cuda_desc d;
    memset(&d, 0, sizeof d);
    if (compiler[0]) d.nvrtc = compiler;
    d.open_library = spy_open;
    d.find_symbol = spy_symbol;
    d.alloc = spy_alloc;
    d.release = spy_release;
    d.message = spy_message;
    d.flags = ATTN_CUDA_PTX;
    return d;
}

/* With the images of the whole program, so that NVRTC compiles each kernel once. */
static attn_cuda_desc quick_desc(void) {
    attn_cuda_desc d = spy_desc();
    d.get = spy_get;
    d.put = spy_put;
    return d;
}

/* A new process: one device of compute capability 9.0, no fault planned, nothing known to the spy but images. */
static int fresh(void) {
    static const char *const settings[][2] = { { "PTXSIM_DEVICES", "1" }, { "PTXSIM_CC", "90" },
                                               { "PTXSIM_DRIVER", "13090" }, { "PTXSIM_FAIL", ":0" } };
    size_t i;
    if (!gpu.is_simulated) test_skip("needs the simulated driver");
    if (!gpu.is_simulated) return 0;
    spy.reset();
    for (i = 0; i < sizeof settings / sizeof *settings; i++) gpu.ptxsim_set(settings[i][0], settings[i][1]);
    spy.absent = spy.hidden = spy.broken = NULL;
    spy.nvrtc_version = spy.break_compile = spy.only_pretend = spy.fail_at = 0;
    spy.compiles = spy.loads = spy.elf_loads = 0;
    spy.opened[0] = spy.said[0] = 0;
    return 1;
}

static void closed(attn_cuda *cuda) {
    attn_cuda_close(cuda);
    CHECK(spy.allocations == 0, "%d blocks were never given back", spy.allocations);
    CHECK(gpu.ptxsim_leaks() == 0, "%s", gpu.ptxsim_last_report());
}

/* ---- a step: one request of two rows over five keys -------------------------------------------------------------- */

typedef struct step {
    attn_batch batch;
    attn_layer layer;
    attn_plan plan;
    attn_io io;
    attn_exec exec;
    void *mem, *stream;
    size_t bytes;
} step;

enum { ROWS = 2, KEYS = 5, HEADS = 2, DIM = 4 };

static void *device_copy(const void *data, size_t bytes) {
    uint64_t p = 0;
    CHECK(!gpu.cuMemAlloc_v2(&p, bytes), "no memory");
    if (data && p) CHECK(!gpu.cuMemcpyHtoD_v2(p, data, bytes), "no copy");
    return (void *)(uintptr_t)p;
}

static void open_step(step *s, attn_cuda *cuda, void *stream) {
    static const int32_t q_len = ROWS, kv_len = KEYS;
    static const float zeros[KEYS * HEADS * DIM] = { 0 };
    float v[KEYS * HEADS * DIM];
    attn_error e;
    int i;
    memset(s, 0, sizeof *s);
    for (i = 0; i < KEYS * HEADS * DIM; i++) v[i] = (float)(i / (HEADS * DIM));
    s->layer.heads = HEADS;
    s->layer.head_dim = DIM;
    CHECK(!attn_cuda_geometry(cuda, &s->layer, &e), "%s", e.text);
    s->batch.n = 1;
    s->batch.q_len = (const int32_t *)device_copy(&q_len, 4);
    s->batch.kv_len = (const int32_t *)device_copy(&kv_len, 4);
    s->batch.max_q_len = ROWS;
    s->batch.max_kv_len = KEYS;
    s->batch.max_rows = ROWS;
    s->bytes = attn_plan_bytes(&s->batch, &s->layer);
    s->mem = device_copy(NULL, s->bytes);
    s->stream = stream;
    s->io.q = device_copy(zeros, sizeof(float) * ROWS * HEADS * DIM);
    s->io.k = device_copy(zeros, sizeof zeros);
    s->io.v = device_copy(v, sizeof v);
    s->io.o = device_copy(zeros, sizeof(float) * ROWS * HEADS * DIM);
}

static int plan_step(step *s, attn_cuda *cuda, attn_error *e) {
    int status = attn_cuda_plan_make(cuda, &s->plan, &s->batch, &s->layer, s->mem, s->bytes, s->stream, e);
    if (status || s->exec.mem) return status;
    s->exec.bytes = attn_cuda_exec_bytes(cuda, &s->plan);
    s->exec.mem = device_copy(NULL, s->exec.bytes);
    s->exec.stream = s->stream;
    return ATTN_OK;
}

static void close_step(step *s) {
    const void *blocks[8];
    size_t i;
    blocks[0] = s->batch.q_len;
    blocks[1] = s->batch.kv_len;
    blocks[2] = s->mem;
    blocks[3] = s->io.q;
    blocks[4] = s->io.k;
    blocks[5] = s->io.v;
    blocks[6] = s->io.o;
    blocks[7] = s->exec.mem;
    for (i = 0; i < 8; i++) {
        if (blocks[i]) gpu.cuMemFree_v2((uint64_t)(uintptr_t)blocks[i]);
    }
}

/* What the device says of the plan alone. */
static int plan_error(step *s, attn_cuda *cuda, attn_error *e) {
    attn_exec stream_only;
    memset(&stream_only, 0, sizeof stream_only);
    stream_only.stream = s->stream;
    return attn_cuda_error(cuda, &s->plan, &stream_only, e);
}

/* q = k = 0: a row is the mean of the numbers of its keys. */
static int step_is_right(step *s) {
    float o[ROWS * HEADS * DIM];
    int i;
    if (gpu.cuStreamSynchronize(s->stream)) return 0;
    if (gpu.cuMemcpyDtoH_v2(o, (uint64_t)(uintptr_t)s->io.o, sizeof o)) return 0;
    for (i = 0; i < ROWS * HEADS * DIM; i++) {
        float want = i < HEADS * DIM ? 1.5f : 2.0f;
        if (!(o[i] > want - 1e-5f && o[i] < want + 1e-5f)) return 0;
    }
    return 1;
}

static void *primary(int device) {
    void *context = NULL;
    CHECK(!gpu.cuInit(0) && !gpu.cuDevicePrimaryCtxRetain(&context, device) && !gpu.cuCtxPushCurrent_v2(context),
          "no context");
    return context;
}

static void leave_primary(int device) {
    void *context;
    gpu.cuCtxPopCurrent_v2(&context);
    gpu.cuDevicePrimaryCtxRelease_v2(device);
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

static void names_the_device(void) {
    attn_cuda *cuda = NULL;
    attn_error e;
    char text[300];
    int status;
    if (gpu.is_simulated && !fresh()) return;
    status = attn_cuda_open(&cuda, NULL, &e);
    if (status == ATTN_E_NO_DRIVER || status == ATTN_E_NO_DEVICE) {
        test_skip("no NVIDIA device");
        return;
    }
    CHECK(!status, "%d: %s", status, e.text);
    CHECK(attn_cuda_explain(cuda, text, sizeof text) == strlen(text) && strstr(text, ", sm_"), "%s", text);
    printf("  %s", text);
    CHECK(attn_cuda_explain(cuda, text, 5) > 5 && strlen(text) == 4, "cut to the buffer: %s", text);
    CHECK(attn_cuda_explain(NULL, text, sizeof text) && strstr(text, "not open"), "%s", text);
    attn_cuda_close(cuda);
    attn_cuda_close(NULL);
}

static int opens(const attn_cuda_desc *d, attn_error *e) {
    attn_cuda *cuda = (attn_cuda *)e;
    int status = attn_cuda_open(&cuda, d, e);
    CHECK(!status == (cuda != NULL), "a handle or an error");
    if (cuda != (attn_cuda *)e) closed(cuda);
    return status;
}

static void no_driver(void) {
    attn_cuda_desc d = spy_desc();
    attn_error e;
    if (!fresh()) return;
    spy.absent = "libcuda";
    CHECK(opens(&d, &e) == ATTN_E_NO_DRIVER && strstr(e.text, "libcuda.so.1"), "%s", e.text);
    CHECK(strstr(spy.said, "libcuda.so.1") != NULL, "the message says it, too: %s", spy.said);
    spy.absent = NULL;
    spy.hidden = "cuStreamIsCapturing";
    CHECK(opens(&d, &e) == ATTN_E_NO_DRIVER && strstr(e.text, "cuStreamIsCapturing"), "%s", e.text);
    spy.hidden = "cuInit";
    CHECK(opens(&d, &e) == ATTN_E_NO_DRIVER && strstr(e.text, "cuInit"), "%s", e.text);
    spy.hidden = NULL;
    gpu.ptxsim_set("PTXSIM_FAIL", "cuInit:1:804");
    CHECK(opens(&d, &e) == ATTN_E_DRIVER && strstr(e.text, "cuInit: error 804"), "%s", e.text);
    fresh();
    gpu.ptxsim_set("PTXSIM_DRIVER", "11080");
    CHECK(opens(&d, &e) == ATTN_E_NO_DRIVER && strstr(e.text, "CUDA 11.8, but 12.0"), "%s", e.text);
    fresh();
    gpu.ptxsim_set("PTXSIM_DRIVER", "12000");
    CHECK(opens(&d, &e) == ATTN_OK, "%s", e.text);
}

/* Nothing to allocate or to copy is no error; what cannot be is one, with the driver's words. */
static void memory(void) {
    attn_cuda_desc d = quick_desc();
    attn_cuda *cuda = NULL;
    attn_error e;
    char bytes[4] = "abc";
    void *p;
    if (!fresh()) return;
    CHECK(!attn_cuda_open(&cuda, &d, &e), "%s", e.text);
    p = attn_cuda_alloc(cuda, 0, &e);
    CHECK(p != NULL, "%s", e.text);
    CHECK(!attn_cuda_write(cuda, p, NULL, 0, &e) && !attn_cuda_read(cuda, NULL, NULL, 0, &e), "%s", e.text);
    attn_cuda_free(cuda, p);
    CHECK(!attn_cuda_alloc(cuda, (size_t)1 << 62, &e) && strstr(e.text, "cuMemAlloc: error 2"), "%s", e.text);
    CHECK(attn_cuda_write(cuda, NULL, bytes, 4, &e) == ATTN_E_DRIVER && strstr(e.text, "cuMemcpyHtoD"), "%s", e.text);
    CHECK(attn_cuda_read(cuda, bytes, NULL, 4, &e) == ATTN_E_DRIVER && strstr(e.text, "cuMemcpyDtoH"), "%s", e.text);
    closed(cuda);
}

static void no_device(void) {
    attn_cuda_desc d = spy_desc();
    attn_error e;
    if (!fresh()) return;
    gpu.ptxsim_set("PTXSIM_DEVICES", "0");
    CHECK(opens(&d, &e) == ATTN_E_NO_DEVICE, "%s", e.text);
    fresh();
    d.device = 1;
    CHECK(opens(&d, &e) == ATTN_E_NO_DEVICE && strstr(e.text, "desc.device = 1") && strstr(e.text, "has 1"), "%s",
          e.text);
    d.device = -1;
    CHECK(opens(&d, &e) == ATTN_E_NO_DEVICE, "%s", e.text);
    fresh();
    d.device = 0;
    gpu.ptxsim_set("PTXSIM_CC", "61");
    CHECK(opens(&d, &e) == ATTN_E_NO_DEVICE && strstr(e.text, "7.5"), "%s", e.text);
    fresh();
    gpu.ptxsim_set("PTXSIM_CC", "75");
    CHECK(opens(&d, &e) == ATTN_OK, "%s", e.text);
}

static void bad_description(void) {
    attn_cuda_desc d = spy_desc();
    attn_error e;
    if (!fresh()) return;
    CHECK(attn_cuda_open(NULL, &d, &e) == ATTN_E_ARGUMENT, "no place for the handle");
    d.flags = 1 << 20;
    CHECK(opens(&d, &e) == ATTN_E_ARGUMENT && strstr(e.text, "flags"), "%s", e.text);
    d.flags = 0;
    d.arch = 70;
    CHECK(opens(&d, &e) == ATTN_E_ARGUMENT && strstr(e.text, "desc.arch = 70, but"), "%s", e.text);
    d.arch = -90;
    CHECK(opens(&d, &e) == ATTN_E_ARGUMENT && strstr(e.text, "desc.arch = -90, but"), "%s", e.text);
    d.arch = 0;
    spy.fail_at = 1;
    CHECK(opens(&d, &e) == ATTN_E_MEMORY, "%s", e.text);
}

static void contexts(void) {
    attn_cuda_desc d = quick_desc();
    attn_cuda *cuda = NULL;
    attn_error e;
    void *mine, *now = NULL;
    step s;
    if (!fresh()) return;
    d.flags |= ATTN_CUDA_CURRENT;
    CHECK(opens(&d, &e) == ATTN_E_ARGUMENT && strstr(e.text, "no context is current"), "%s", e.text);
    gpu.ptxsim_set("PTXSIM_DEVICES", "2");
    spy.reset();
    mine = primary(1);
    CHECK(!attn_cuda_open(&cuda, &d, &e), "%s", e.text);
    open_step(&s, cuda, NULL);
    CHECK(!plan_step(&s, cuda, &e), "%s", e.text);
    CHECK(!plan_error(&s, cuda, &e), "%s", e.text);
    gpu.cuCtxPopCurrent_v2(&now);
    CHECK(now == mine, "calls leave the current context as it was");
    CHECK(!attn_cuda_plan_make(cuda, &s.plan, &s.batch, &s.layer, s.mem, s.bytes, NULL, &e), "%s", e.text);
    CHECK(gpu.cuCtxPopCurrent_v2(&now) == 201, "also if that is none");
    gpu.cuCtxPushCurrent_v2(mine);
    close_step(&s);
    attn_cuda_close(cuda);
    CHECK(spy.allocations == 0, "%d blocks", spy.allocations);
    leave_primary(1);
    CHECK(gpu.ptxsim_leaks() == 0, "%s", gpu.ptxsim_last_report());
}

static void two_devices(void) {
    attn_cuda_desc d = quick_desc();
    attn_cuda *cuda[2] = { NULL, NULL };
    step s[2];
    attn_error e;
    int i;
    if (!fresh()) return;
    gpu.ptxsim_set("PTXSIM_DEVICES", "2");
    spy.reset();
    for (i = 0; i < 2; i++) {
        d.device = i;
        CHECK(!attn_cuda_open(&cuda[i], &d, &e), "%s", e.text);
        primary(i);
        open_step(&s[i], cuda[i], NULL);
        CHECK(!plan_step(&s[i], cuda[i], &e), "%s", e.text);
    }
    for (i = 0; i < 2; i++) {
        CHECK(!attn_cuda_forward(cuda[i], &s[i].plan, &s[i].layer, &s[i].io, &s[i].exec, &e), "%s", e.text);
        CHECK(!attn_cuda_error(cuda[i], &s[i].plan, &s[i].exec, &e), "%s", e.text);
    }
    for (i = 1; i >= 0; i--) {
        CHECK(step_is_right(&s[i]), "device %d", i);
        close_step(&s[i]);
        leave_primary(i);
        attn_cuda_close(cuda[i]);
    }
    CHECK(spy.allocations == 0 && gpu.ptxsim_leaks() == 0, "%s", gpu.ptxsim_last_report());
}

/* ---- the compiler ------------------------------------------------------------------------------------------------ */

/* What plan_make says on a new handle. */
static int first_plan(const attn_cuda_desc *d, attn_error *e, char *explained, size_t bytes) {
    attn_cuda *cuda = NULL;
    step s;
    int status = attn_cuda_open(&cuda, d, e);
    CHECK(!status, "%s", e->text);
    primary(0);
    open_step(&s, cuda, NULL);
    status = plan_step(&s, cuda, e);
    if (explained) attn_cuda_explain(cuda, explained, bytes);
    close_step(&s);
    leave_primary(0);
    closed(cuda);
    return status;
}

static void no_compiler(void) {
    attn_cuda_desc d = spy_desc();
    attn_error e;
    if (!fresh()) return;
    d.nvrtc = "/nowhere/libnvrtc.so.13";
    CHECK(first_plan(&d, &e, NULL, 0) == ATTN_E_NO_NVRTC && strstr(e.text, d.nvrtc), "%s", e.text);
    CHECK(!strstr(spy.opened, "libnvrtc.so.12"), "a path that was given is the only one: %s", spy.opened);
    fresh();
    d.nvrtc = NULL;
    spy.absent = "nvrtc";
    setenv("CUDA_HOME", "/somewhere", 1);
    setenv("CONDA_PREFIX", "/elsewhere", 1);
    CHECK(first_plan(&d, &e, NULL, 0) == ATTN_E_NO_NVRTC && strstr(e.text, "ATTN_CUDA_NVRTC"), "%s", e.text);
    CHECK(strstr(spy.said, "libnvrtc.so.13, ") && strstr(spy.said, ", libnvrtc.so.12"), "%s", spy.said);
    CHECK(strstr(spy.said, "/somewhere/lib64/libnvrtc.so.13") && strstr(spy.said, "/elsewhere/lib/libnvrtc.so.12") &&
          strstr(spy.said, "/usr/local/cuda/lib64/libnvrtc.so.12"), "every name tried: %s", spy.said);
    CHECK(strstr(spy.said, "/somewhere/targets/"), "the folder of a cross toolkit: %s", spy.said);
    unsetenv("CUDA_HOME");
    unsetenv("CONDA_PREFIX");
    setenv("VIRTUAL_ENV", "/venv", 1);
    CHECK(first_plan(&d, &e, NULL, 0) == ATTN_E_NO_NVRTC, "%s", e.text);
    CHECK(strstr(spy.said, ", /venv/lib/python3.9/site-packages/nvidia/cu13/lib/libnvrtc.so.13, ") &&
          strstr(spy.said, ", /venv/lib/python3.14/site-packages/nvidia/cu13/lib/libnvrtc.so.13, ") &&
          strstr(spy.said, ", /venv/lib/python3.11/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12, ") &&
          strstr(spy.said, ", /usr/local/cuda/lib64/libnvrtc.so.12"), "%s", spy.said);
    CHECK(!strstr(spy.said, "cu12") && !strstr(spy.said, "cuda_nvrtc/lib/libnvrtc.so.13"), "%s", spy.said);
    unsetenv("VIRTUAL_ENV");
    setenv("ATTN_CUDA_NVRTC", "/given/libnvrtc.so", 1);
    CHECK(first_plan(&d, &e, NULL, 0) == ATTN_E_NO_NVRTC && strstr(e.text, "/given/libnvrtc.so"), "%s", e.text);
    unsetenv("ATTN_CUDA_NVRTC");
}

/* The names that were asked for, from the first to the second, in this order? */
static int in_order(const char *first, const char *second) {
    const char *a = strstr(spy.opened, first);
    return a && strstr(a, second);
}

static int has_compiler(void) {
    attn_cuda_desc d = spy_desc();
    attn_error e;
    if (!fresh()) return 0;
    if (spy.kept_count) return 1;
    d = quick_desc();
    if (first_plan(&d, &e, NULL, 0) == ATTN_E_NO_NVRTC) {
        test_skip("no NVRTC");
        return 0;
    }
    CHECK(spy.kept_count == 1, "%s", e.text);
    return fresh();
}

static void order_of_compilers(void) {
    attn_cuda_desc d = spy_desc();
    attn_error e;
    if (!fresh()) return;
    d.nvrtc = NULL;
    spy.absent = "nvrtc";
    first_plan(&d, &e, NULL, 0);
    CHECK(in_order("libnvrtc.so.13", "libnvrtc.so.12"), "%s", spy.opened);
    fresh();
    gpu.ptxsim_set("PTXSIM_DRIVER", "12040");
    spy.absent = "nvrtc";
    first_plan(&d, &e, NULL, 0);
    CHECK(in_order("libnvrtc.so.12", "libnvrtc.so.13"), "a driver 12 wants NVRTC 12 first: %s", spy.opened);
    fresh();
    gpu.ptxsim_set("PTXSIM_DRIVER", "14000");
    spy.absent = "nvrtc";
    first_plan(&d, &e, NULL, 0);
    CHECK(in_order("libnvrtc.so.14", "libnvrtc.so.13") && in_order("libnvrtc.so.13", "libnvrtc.so.12"), "%s",
          spy.opened);
}

static void old_compiler(void) {
    attn_cuda_desc d = spy_desc();
    attn_error e;
    if (!has_compiler()) return;
    spy.nvrtc_version = 118;
    CHECK(first_plan(&d, &e, NULL, 0) == ATTN_E_NO_NVRTC && strstr(e.text, "version 11.8, but 12.0"), "%s", e.text);
    CHECK(spy.compiles == 0, "it was not used");
    fresh();
    spy.hidden = "nvrtcGetCUBIN";
    CHECK(first_plan(&d, &e, NULL, 0) == ATTN_E_NO_NVRTC && strstr(e.text, "no nvrtcGetCUBIN"), "%s", e.text);
}

/* A library that was found by its path needs its second half loaded before it compiles. */
static void builtins(void) {
    attn_cuda_desc d = spy_desc();
    attn_error e;
    char *folder;
    if (!has_compiler()) return;
    spy.absent = "libnvrtc.so.1";
    d.nvrtc = "/usr/local/cuda/lib64/libnvrtc.so";
    if (access(d.nvrtc, R_OK)) {
        test_skip("no NVRTC under /usr/local/cuda");
        return;
    }
    CHECK(!first_plan(&d, &e, NULL, 0), "%s", e.text);
    folder = strstr(spy.opened, "/usr/local/cuda/lib64/libnvrtc-builtins.so.");
    CHECK(folder && strchr(strrchr(spy.opened, '-'), '.'), "%s", spy.opened);
}

/* A driver of CUDA 12.0 that is given the code of a newer NVRTC. */
static void refuse_code(void) {
    gpu.ptxsim_set("PTXSIM_DRIVER", "12000");
    gpu.ptxsim_set("PTXSIM_FAIL", "cuModuleLoadDataEx:1:222");
    spy.nvrtc_version = 130;
}

static void refused_code(void) {
    attn_cuda_desc d = spy_desc();
    attn_cuda *cuda = NULL;
    attn_error e;
    char text[400];
    if (!has_compiler()) return;
    refuse_code();
    CHECK(first_plan(&d, &e, NULL, 0) == ATTN_E_DRIVER &&
          strstr(e.text, "CUDA 12.0, is too old for the code of NVRTC 13.0"), "%s", e.text);
    fresh();
    gpu.ptxsim_set("PTXSIM_FAIL", "cuModuleLoadDataEx:1:218");
    CHECK(first_plan(&d, &e, NULL, 0) == ATTN_E_DRIVER && strstr(e.text, "cuModuleLoadDataEx: error 218, a PTX JIT"),
          "%s", e.text);
    fresh();
    d.flags = 0;
    CHECK(!attn_cuda_open(&cuda, &d, &e), "%s", e.text);
    CHECK(!attn_cuda_prepare(cuda, NULL, 0, 0, &e), "%s", e.text);
    attn_cuda_explain(cuda, text, sizeof text);
    CHECK(spy.elf_loads == 1 && spy.loads == 2 && spy.compiles == 1, "%d compiles, %d loads, %d of code",
          spy.compiles, spy.loads, spy.elf_loads);
    CHECK(strstr(text, "plan: PTX from NVRTC") && strstr(text, ", NVRTC 1"), "%s", text);
    CHECK(!attn_cuda_prepare(cuda, NULL, 0, -1, &e), "%s", e.text);
    CHECK(spy.elf_loads == 1 && spy.loads == 3, "from then on only PTX: %d of code", spy.elf_loads);
    closed(cuda);
}

static void unknown_device(void) {
    attn_cuda_desc d = spy_desc();
    attn_error e;
    char text[400];
    if (!has_compiler()) return;
    d.flags = 0;
    gpu.ptxsim_set("PTXSIM_CC", "130");
    CHECK(!first_plan(&d, &e, text, sizeof text), "%s", e.text);
    CHECK(spy.elf_loads == 0 && spy.loads == 1 && strstr(text, "sm_130"), "only PTX: %s", text);
}

static void broken_source(void) {
    attn_cuda_desc d = spy_desc();
    attn_error e;
    if (!has_compiler()) return;
    spy.break_compile = 1;
    CHECK(first_plan(&d, &e, NULL, 0) == ATTN_E_COMPILE && strstr(e.text, "NVRTC refused plan: ") &&
          strstr(e.text, "error"), "%s", e.text);
    CHECK(strlen(spy.said) > strlen(e.text) && strstr(spy.said, "attn_cu_"), "the message has the log");
}

/* What compiles, but cannot be fetched. */
static void no_code(void) {
    static const char *const broken[] = { "nvrtcGetPTXSize", "nvrtcGetPTX" };
    attn_cuda_desc d = spy_desc();
    attn_error e;
    size_t i;
    if (!has_compiler()) return;
    spy.only_pretend = 1;
    for (i = 0; i < 2; i++) {
        spy.broken = broken[i];
        CHECK(first_plan(&d, &e, NULL, 0) == ATTN_E_COMPILE && strstr(e.text, "NVRTC gave no attn-plan-compute_90-"),
              "%s: %s", broken[i], e.text);
    }
}

/* ---- kept images ------------------------------------------------------------------------------------------------- */

static char folder[200];

/* The one file of the folder, or what is wrong with it. */
static const char *only_file(char path[500]) {
    DIR *d = opendir(folder);
    struct dirent *entry;
    int count = 0;
    while (d && (entry = readdir(d)) != NULL) {
        if (entry->d_name[0] == '.') continue;
        snprintf(path, 500, "%s/%.200s", folder, entry->d_name);
        count++;
    }
    if (d) closedir(d);
    return count == 1 ? NULL : count ? "several files" : "no file";
}

/* The file's bytes, changed: `at` of them are kept; flip: one bit of the last one turns. */
static void damage(const char *path, long at, int flip) {
    static unsigned char bytes[1 << 20];
    FILE *f = fopen(path, "rb");
    long n = f ? (long)fread(bytes, 1, sizeof bytes, f) : 0;
    if (f) fclose(f);
    if (at < 0) at += n;
    if (flip && at < n) bytes[at] ^= 16;
    f = fopen(path, "wb");
    if (f) fwrite(bytes, 1, (size_t)(flip ? n : at), f);
    if (f) fclose(f);
}

static void disk_cache(void) {
    static const struct {
        long at;
        int flip;
    } damages[] = { { 0, 0 }, { 30, 0 }, { 64, 0 }, { -1, 0 }, { 0, 1 }, { 10, 1 }, { 26, 1 }, { 34, 1 }, { 40, 1 },
                    { 44, 1 }, { 60, 1 }, { 64, 1 }, { 5000, 1 }, { -1, 1 } };
    attn_cuda_desc d = spy_desc();
    attn_error e;
    char path[500], text[400];
    size_t i;
    if (!has_compiler()) return;
    snprintf(folder, sizeof folder, "%s/attn-cuda-XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
    if (!mkdtemp(folder)) return;
    d.cache_dir = folder;
    spy.only_pretend = 1;
    CHECK(!first_plan(&d, &e, text, sizeof text) && strstr(text, "from NVRTC"), "%s%s", e.text, text);
    CHECK(!only_file(path), "%s", only_file(path));
    CHECK(strstr(path, "/attn-plan-compute_90-") && strstr(path, "-nvrtc1"), "%s", path);
    CHECK(!first_plan(&d, &e, text, sizeof text) && strstr(text, "plan: PTX from desc.cache_dir"), "%s%s", e.text,
          text);
    CHECK(spy.compiles == 1, "%d compiles", spy.compiles);
    spy.nvrtc_version = 127;
    spy.break_compile = 1;
    CHECK(first_plan(&d, &e, NULL, 0) == ATTN_E_COMPILE, "another NVRTC has files of its own");
    spy.nvrtc_version = 0;
    for (i = 0; i < sizeof damages / sizeof *damages; i++) {
        damage(path, damages[i].at, damages[i].flip);
        CHECK(first_plan(&d, &e, NULL, 0) == ATTN_E_COMPILE, "damage %d was not noticed", (int)i);
        damage(path, damages[i].at, damages[i].flip);
        if (damages[i].flip) continue;
        remove(path);
        spy.break_compile = 0;
        CHECK(!first_plan(&d, &e, NULL, 0), "%s", e.text);
        spy.break_compile = 1;
    }
    CHECK(!first_plan(&d, &e, NULL, 0), "the flipped bits are back: %s", e.text);
    CHECK(!only_file(path), "%s", only_file(path));
    d.flags |= ATTN_CUDA_LINE_INFO;
    CHECK(first_plan(&d, &e, NULL, 0) == ATTN_E_COMPILE, "other options are another image");
    remove(path);
    rmdir(folder);
}

static void unwritable_cache(void) {
    attn_cuda_desc d = spy_desc();
    attn_error e;
    char long_name[2000];
    if (!has_compiler()) return;
    d.cache_dir = "/dev/null";
    spy.only_pretend = 1;
    CHECK(!first_plan(&d, &e, NULL, 0), "%s", e.text);
    memset(long_name, 'x', sizeof long_name - 1);
    long_name[sizeof long_name - 1] = 0;
    d.cache_dir = long_name;
    CHECK(!first_plan(&d, &e, NULL, 0), "%s", e.text);
}

static void hooks(void) {
    attn_cuda_desc d = quick_desc();
    attn_error e;
    char text[400];
    kept_image *k = &spy.kept[0];
    size_t bytes;
    if (!has_compiler()) return;
    bytes = k->bytes;
    CHECK(!strncmp(k->name, "attn-plan-compute_90-", 21), "%s", k->name);
    CHECK(!first_plan(&d, &e, text, sizeof text) && strstr(text, "plan: PTX from desc.get"), "%s%s", e.text, text);
    CHECK(spy.compiles == 0 && !strstr(spy.opened, "nvrtc"), "NVRTC is not even opened: %s", spy.opened);
    d.put = NULL;
    spy.break_compile = 1;
    k->bytes--;
    CHECK(first_plan(&d, &e, NULL, 0) == ATTN_E_COMPILE, "too short");
    k->bytes = 20;
    CHECK(first_plan(&d, &e, NULL, 0) == ATTN_E_COMPILE, "no head");
    k->bytes = bytes;
    k->data[bytes / 2] ^= 1;
    CHECK(first_plan(&d, &e, NULL, 0) == ATTN_E_COMPILE, "a wrong bit");
    k->data[bytes / 2] ^= 1;
    CHECK(!first_plan(&d, &e, NULL, 0), "%s", e.text);
}

/* A shipped program: images made without a driver, NVRTC not there. */
static void shipped(void) {
    attn_cuda_desc d = spy_desc();
    attn_cuda_image_data image;
    attn_cuda *maker = NULL;
    attn_error e;
    char text[400];
    kept_image saved = spy.kept[0];
    if (!has_compiler()) return;
    saved = spy.kept[0];
    d.arch = 80;
    spy.absent = "libcuda";
    CHECK(!attn_cuda_open(&maker, &d, &e), "%s", e.text);
    CHECK(!strstr(spy.opened, "libcuda"), "no driver is looked for: %s", spy.opened);
    CHECK(!attn_cuda_image(maker, NULL, 0, 0, &image, &e), "%s", e.text);
    CHECK(!strncmp(image.name, "attn-plan-compute_80-", 21), "%s", image.name);
    CHECK(!attn_cuda_image(maker, NULL, 0, 0, &image, &e) && spy.compiles == 1, "made once: %s", e.text);
    CHECK(attn_cuda_prepare(maker, NULL, 0, 0, &e) == ATTN_E_ARGUMENT && strstr(e.text, "arch = 80"), "%s", e.text);
    CHECK(attn_cuda_image(maker, NULL, 0, 2, &image, &e) == ATTN_E_ARGUMENT && strstr(e.text, "2 modules"), "%s",
          e.text);
    CHECK(attn_cuda_image(maker, NULL, 0, -1, &image, &e) == ATTN_E_ARGUMENT, "%s", e.text);
    spy.kept_count = 0;
    attn_cuda_image(maker, NULL, 0, 0, &image, &e);
    spy_put(NULL, image.name, image.data, image.bytes);
    attn_cuda_close(maker);
    fresh();
    spy.absent = "nvrtc";
    d = spy_desc();
    d.flags = ATTN_CUDA_NO_JIT;
    d.cache_dir = "."; /* its files are told apart by the version of NVRTC, which must not be opened */
    CHECK(first_plan(&d, &e, NULL, 0) == ATTN_E_NOT_PREPARED && strstr(e.text, "NO_JIT"), "%s", e.text);
    d.get = spy_get;
    CHECK(!first_plan(&d, &e, text, sizeof text) && strstr(text, "plan: PTX from desc.get"),
          "PTX of an older device serves: %s%s", e.text, text);
    CHECK(!strstr(spy.opened, "nvrtc"), "%s", spy.opened);
    gpu.ptxsim_set("PTXSIM_CC", "75");
    spy.reset();
    CHECK(first_plan(&d, &e, NULL, 0) == ATTN_E_NOT_PREPARED, "PTX of a newer device does not: %s", e.text);
    forget_images();
    spy.kept[0] = saved;
    spy.kept_count = 1;
}

/* ---- capture and threads ----------------------------------------------------------------------------------------- */

static void capture(void) {
    attn_cuda_desc d = quick_desc();
    attn_cuda *cuda = NULL;
    attn_error e;
    void *stream = NULL, *other = NULL, *graph = NULL, *exec = NULL;
    ptxsim_counters counters;
    step s;
    if (!has_compiler()) return;
    CHECK(!attn_cuda_open(&cuda, &d, &e), "%s", e.text);
    primary(0);
    CHECK(!gpu.cuStreamCreate(&stream, 1) && !gpu.cuStreamCreate(&other, 1), "no stream");
    open_step(&s, cuda, stream);
    CHECK(!gpu.cuStreamBeginCapture_v2(stream, 0), "capture");
    CHECK(plan_step(&s, cuda, &e) == ATTN_E_NOT_PREPARED && strstr(e.text, "capturing"), "%d: %s", s.plan.n, e.text);
    /* meanwhile another stream loads kernels, which the capture of this one must not forbid */
    CHECK(!attn_cuda_prepare(cuda, &s.layer, 1, -1, &e), "%s", e.text);
    CHECK(!gpu.cuStreamEndCapture(stream, &graph), "the capture goes on all the same");
    gpu.cuGraphDestroy(graph);
    CHECK(!plan_step(&s, cuda, &e), "%s", e.text); /* also finds out how large exec is */
    CHECK(!gpu.cuStreamSynchronize(stream), "plan");
    CHECK(!gpu.cuStreamBeginCapture_v2(stream, 0), "capture");
    CHECK(!plan_step(&s, cuda, &e), "%s", e.text);
    CHECK(!attn_cuda_forward(cuda, &s.plan, &s.layer, &s.io, &s.exec, &e), "%s", e.text);
    CHECK(attn_cuda_error(cuda, &s.plan, &s.exec, &e) == ATTN_E_ARGUMENT && strstr(e.text, "waited for"),
          "waiting is not for captures: %s", e.text);
    CHECK(attn_cuda_check(cuda, &s.plan, &s.layer, &s.io, &s.exec, &e) == ATTN_E_ARGUMENT, "%s", e.text);
    CHECK(!gpu.cuStreamEndCapture(stream, &graph) && !gpu.cuGraphInstantiateWithFlags(&exec, graph, 0), "graph");
    CHECK(!gpu.cuCtxSynchronize() && gpu.ptxsim_launches("attn_cu_forward") == 0, "what is captured does not run");
    gpu.ptxsim_reset_counters();
    CHECK(!gpu.cuGraphLaunch(exec, stream), "replay");
    gpu.ptxsim_get_counters(&counters);
    CHECK(counters.copies_to_device == 0 && counters.copies_to_host == 0 && counters.synchronisations == 0,
          "a replay copies and waits for nothing");
    CHECK(step_is_right(&s), "right after a replay");
    CHECK(gpu.ptxsim_launches("attn_cu_plan_make") == 1 && gpu.ptxsim_launches("attn_cu_check") == 1 &&
          gpu.ptxsim_launches("attn_cu_forward") == 1, "one kernel of each in a replay");
    gpu.cuGraphExecDestroy(exec);
    gpu.cuGraphDestroy(graph);
    close_step(&s);
    gpu.cuStreamDestroy_v2(stream);
    gpu.cuStreamDestroy_v2(other);
    leave_primary(0);
    closed(cuda);
}

typedef struct race {
    attn_cuda *cuda;
    attn_layer layers[2];
    int failed[8];
} race;

static void prepare_lane(void *context, int lane) {
    race *r = (race *)context;
    attn_error e;
    int count = attn_cuda_prepare_count(r->layers, 2), i;
    for (i = 0; i < count; i++) {
        r->failed[lane] += attn_cuda_prepare(r->cuda, r->layers, 2, (lane + i) % count, &e) != 0;
    }
}

static void threads(void) {
    attn_cuda_desc d = quick_desc();
    attn_error e;
    char text[400];
    race r;
    int i;
    if (!has_compiler()) return;
    memset(&r, 0, sizeof r);
    for (i = 0; i < 2; i++) {
        r.layers[i].heads = HEADS;
        r.layers[i].head_dim = DIM * (i + 1);
    }
    CHECK(attn_cuda_prepare_count(r.layers, 2) == 3, "layers of equal types share a module");
    r.layers[1].kv_type = ATTN_F16;
    CHECK(attn_cuda_prepare_count(r.layers, 2) == 4 && attn_cuda_prepare_count(NULL, 0) == 2, "others do not");
    r.layers[1].heads = -1;
    CHECK(attn_cuda_prepare_count(r.layers, 2) == 0, "an invalid layer");
    r.layers[1] = r.layers[0];
    CHECK(!attn_cuda_open(&r.cuda, &d, &e), "%s", e.text);
    r.layers[1].heads = -1;
    CHECK(attn_cuda_prepare(r.cuda, r.layers, 2, -1, &e) == ATTN_E_LAYER, "%s", e.text);
    r.layers[1] = r.layers[0];
    thread_lanes(NULL, 2, prepare_lane, &r);
    closed(r.cuda);
    CHECK(spy.compiles >= 2 || test.only, "%d compiles", spy.compiles);
    spy.compiles = 0;
    CHECK(!attn_cuda_open(&r.cuda, &d, &e), "%s", e.text);
    thread_lanes(NULL, 8, prepare_lane, &r);
    for (i = 0; i < 8; i++) CHECK(!r.failed[i], "thread %d", i);
    CHECK(spy.compiles == 0, "from the images of the first two");
    attn_cuda_explain(r.cuda, text, sizeof text);
    CHECK(strstr(text, "plan: ") && strstr(text, "tools: ") && strstr(text, "plain q f32, kv f32, o f32: "), "%s",
          text);
    closed(r.cuda);
}

static void same_module_lane(void *context, int lane) {
    race *r = (race *)context;
    attn_error e;
    r->failed[lane] = attn_cuda_prepare(r->cuda, NULL, 0, 0, &e);
}

/* Four threads all see that a module is missing, and load it: one copy stays. */
static void same_module_at_once(void) {
    attn_cuda_desc d = quick_desc();
    attn_error e;
    race r;
    int i;
    if (!has_compiler()) return;
    memset(&r, 0, sizeof r);
    primary(0);
    CHECK(!attn_cuda_open(&r.cuda, &d, &e), "%s", e.text);
    spy.meet = 4;
    thread_lanes(NULL, 4, same_module_lane, &r);
    for (i = 0; i < 4; i++) CHECK(!r.failed[i], "thread %d", i);
    CHECK(spy.loads == 4 && spy.compiles == 0, "%d loads", spy.loads);
    attn_cuda_close(r.cuda);
    CHECK(gpu.ptxsim_leaks() == 1, "only the context is left: %s", gpu.ptxsim_last_report());
    leave_primary(0);
    CHECK(spy.allocations == 0, "%d blocks", spy.allocations);
}

/* ---- arguments --------------------------------------------------------------------------------------------------- */

static void null_arguments(void) {
    attn_cuda_desc d = quick_desc();
    attn_cuda *cuda = NULL;
    attn_error e;
    attn_meta meta;
    attn_rope_input rope;
    float x[4] = { 0 };
    step s;
    if (!has_compiler()) return;
    memset(&rope, 0, sizeof rope);
    CHECK(!attn_cuda_open(&cuda, &d, &e), "%s", e.text);
    primary(0);
    open_step(&s, cuda, NULL);
    CHECK(!plan_step(&s, cuda, &e), "%s", e.text);
#define REFUSED(call, word) CHECK(call == ATTN_E_ARGUMENT && strstr(e.text, word), "%s", e.text)
    REFUSED(attn_cuda_geometry(NULL, &s.layer, &e), "cuda");
    REFUSED(attn_cuda_geometry(cuda, NULL, &e), "layer");
    REFUSED(attn_cuda_prepare(NULL, &s.layer, 1, 0, &e), "cuda");
    REFUSED(attn_cuda_prepare(cuda, NULL, 1, 0, &e), "layers");
    REFUSED(attn_cuda_prepare(cuda, &s.layer, -1, 0, &e), "-1");
    REFUSED(attn_cuda_image(cuda, &s.layer, 1, 0, NULL, &e), "image");
    REFUSED(attn_cuda_plan_make(NULL, &s.plan, &s.batch, &s.layer, s.mem, s.bytes, NULL, &e), "cuda");
    REFUSED(attn_cuda_plan_make(cuda, NULL, &s.batch, &s.layer, s.mem, s.bytes, NULL, &e), "plan");
    REFUSED(attn_cuda_plan_make(cuda, &s.plan, NULL, &s.layer, s.mem, s.bytes, NULL, &e), "batch");
    REFUSED(attn_cuda_plan_make(cuda, &s.plan, &s.batch, NULL, s.mem, s.bytes, NULL, &e), "layer");
    REFUSED(attn_cuda_meta_make(cuda, NULL, &s.batch, NULL, 1, s.mem, s.bytes, NULL, &e), "meta");
    REFUSED(attn_cuda_meta_make(NULL, &meta, &s.batch, NULL, 1, s.mem, s.bytes, NULL, &e), "cuda");
    REFUSED(attn_cuda_forward(NULL, &s.plan, &s.layer, &s.io, &s.exec, &e), "cuda");
    REFUSED(attn_cuda_forward(cuda, NULL, &s.layer, &s.io, &s.exec, &e), "plan");
    REFUSED(attn_cuda_forward(cuda, &s.plan, NULL, &s.io, &s.exec, &e), "layer");
    REFUSED(attn_cuda_forward(cuda, &s.plan, &s.layer, NULL, &s.exec, &e), "io");
    REFUSED(attn_cuda_forward(cuda, &s.plan, &s.layer, &s.io, NULL, &e), "exec");
    REFUSED(attn_cuda_append(NULL, &s.plan, &s.layer, &s.io, x, x, &s.exec, &e), "cuda");
    REFUSED(attn_cuda_append(cuda, &s.plan, &s.layer, &s.io, NULL, x, &s.exec, &e), "new_k");
    REFUSED(attn_cuda_append(cuda, &s.plan, &s.layer, &s.io, x, NULL, &s.exec, &e), "new_v");
    REFUSED(attn_cuda_merge(NULL, &s.layer, 1, x, x, x, x, x, x, NULL, &e), "cuda");
    REFUSED(attn_cuda_merge(cuda, &s.layer, -1, x, x, x, x, x, x, NULL, &e), "rows");
    REFUSED(attn_cuda_merge(cuda, &s.layer, 1, NULL, x, x, x, x, x, NULL, &e), "a_o");
    REFUSED(attn_cuda_merge(cuda, &s.layer, 1, x, x, x, x, NULL, x, NULL, &e), "o is NULL");
    REFUSED(attn_cuda_rope(NULL, &rope, &s.exec, &e), "cuda");
    REFUSED(attn_cuda_rope(cuda, NULL, &s.exec, &e), "input");
    REFUSED(attn_cuda_rope(cuda, &rope, NULL, &e), "exec");
    REFUSED(attn_cuda_rope(cuda, &rope, &s.exec, &e), "heads");
    REFUSED(attn_cuda_index_score(cuda, &s.plan, &s.layer, &s.io, NULL, NULL, x, 9, &s.exec, &e), "weights");
    REFUSED(attn_cuda_topk(NULL, x, 4, 1, NULL, &s.plan.n, 1, &s.plan.n, &s.exec, &e), "cuda");
    REFUSED(attn_cuda_topk(cuda, x, 4, 1, NULL, NULL, 1, &s.plan.n, &s.exec, &e), "ke");
    REFUSED(attn_cuda_topk(cuda, x, 4, 1, NULL, &s.plan.n, 0, &s.plan.n, &s.exec, &e), "topk");
    REFUSED(attn_cuda_topk(cuda, x, 4, 1, NULL, &s.plan.n, 1, &s.plan.n, NULL, &e), "exec");
    REFUSED(attn_cuda_check(NULL, &s.plan, &s.layer, &s.io, &s.exec, &e), "cuda");
    REFUSED(attn_cuda_error(NULL, &s.plan, &s.exec, &e), "cuda");
    REFUSED(attn_cuda_error(cuda, &s.plan, NULL, &e), "exec");
#undef REFUSED
    CHECK(!attn_cuda_exec_bytes(NULL, &s.plan) && !attn_cuda_exec_bytes(cuda, NULL), "no bytes");
    CHECK(gpu.ptxsim_launches("attn_cu_forward") == 0 && gpu.ptxsim_launches("attn_cu_append") == 0, "nothing ran");
    close_step(&s);
    leave_primary(0);
    closed(cuda);
}

static int plan_says(step *s, attn_cuda *cuda, int status, const char *word) {
    attn_error e;
    int found = attn_cuda_plan_make(cuda, &s->plan, &s->batch, &s->layer, s->mem, s->bytes, NULL, &e);
    CHECK(found == status && strstr(e.text, word), "%d: %s, not %s", found, e.text, word);
    return found;
}

static void plan_arguments(void) {
    attn_cuda_desc d = quick_desc();
    attn_cuda *cuda = NULL;
    attn_error e;
    attn_plan before;
    step s, good;
    if (!has_compiler()) return;
    CHECK(!attn_cuda_open(&cuda, &d, &e), "%s", e.text);
    primary(0);
    open_step(&good, cuda, NULL);
    memset(&good.plan, 7, sizeof good.plan);
    before = good.plan;
#define WITH(change, status, word)                                                                                    \
    do {                                                                                                              \
        s = good;                                                                                                     \
        change;                                                                                                       \
        plan_says(&s, cuda, status, word);                                                                            \
        CHECK(!memcmp(&s.plan, &before, sizeof before), "the plan stays as it was");                                  \
    } while (0)
    WITH(s.batch.max_q_len = 0, ATTN_E_BATCH, "must be set");
    WITH(s.batch.max_kv_len = 0, ATTN_E_BATCH, "must be set");
    WITH(s.batch.max_rows = 0, ATTN_E_BATCH, "must be set");
    WITH(s.batch.max_rows = -1, ATTN_E_BATCH, "max_rows = -1");
    WITH(s.batch.n = -1, ATTN_E_BATCH, "n = -1");
    WITH(s.batch.kv_len = NULL, ATTN_E_BATCH, "kv_len is NULL");
    WITH(s.batch.q_len = (const int32_t *)((uintptr_t)s.batch.q_len + 1), ATTN_E_ARGUMENT, "q_len is not aligned");
    WITH(s.layer.row_tile = 0, ATTN_E_LAYER, "attn_cuda_geometry");
    WITH(s.layer.key_tile = 0, ATTN_E_LAYER, "attn_cuda_geometry");
    WITH(s.layer.workers = 0, ATTN_E_LAYER, "attn_cuda_geometry");
    WITH(s.layer.row_tile = 8, ATTN_E_LAYER, "row_tile = 8");
    WITH(s.layer.mask = ATTN_PREFIX, ATTN_E_BATCH, "prefix is NULL");
    WITH(s.bytes--, ATTN_E_MEMORY, "bytes");
    WITH(s.mem = NULL, ATTN_E_MEMORY, "mem is NULL");
    WITH(s.mem = (char *)s.mem + 4, ATTN_E_MEMORY, "aligned to 16");
#undef WITH
    CHECK(gpu.ptxsim_launches("attn_cu_plan_make") == 0, "nothing ran");
    close_step(&good);
    leave_primary(0);
    closed(cuda);
}

static void forward_arguments(void) {
    attn_cuda_desc d = quick_desc();
    attn_cuda *cuda = NULL;
    attn_error e;
    attn_plan cpu;
    step s, good;
    int32_t q_len = ROWS, kv_len = KEYS, words[4000];
    int status;
    if (!has_compiler()) return;
    CHECK(!attn_cuda_open(&cuda, &d, &e), "%s", e.text);
    primary(0);
    open_step(&good, cuda, NULL);
    CHECK(!plan_step(&good, cuda, &e), "%s", e.text);
#define WITH(change, wanted, word)                                                                                    \
    do {                                                                                                              \
        s = good;                                                                                                     \
        change;                                                                                                       \
        status = attn_cuda_forward(cuda, &s.plan, &s.layer, &s.io, &s.exec, &e);                                      \
        CHECK(status == wanted && strstr(e.text, word), "%d: %s, not %s", status, e.text, word);                      \
    } while (0)
    WITH(s.io.q = NULL, ATTN_E_ARGUMENT, "io.q is NULL");
    WITH(s.io.k = NULL, ATTN_E_ARGUMENT, "io.k is NULL");
    WITH(s.io.v = NULL, ATTN_E_ARGUMENT, "io.v is NULL");
    WITH(s.io.o = NULL, ATTN_E_ARGUMENT, "io.o is NULL");
    WITH(s.io.o = (char *)s.io.o + 2, ATTN_E_ARGUMENT, "io.o is not aligned");
    WITH(s.io.lse = (float *)(void *)((char *)s.io.o + 2), ATTN_E_ARGUMENT, "io.lse");
    WITH(s.io.q_row = -1, ATTN_E_ARGUMENT, "io.q_row = -1");
    WITH(s.io.o_row = 1, ATTN_E_ARGUMENT, "overlap");
    WITH(s.io.lambda = (const float *)s.io.q, ATTN_E_ARGUMENT, "io.lambda");
    WITH(s.layer.window_left = 3, ATTN_E_PLAN, "layer.window_left = 3, the plan has 0");
    WITH(s.exec.mem = NULL, ATTN_E_MEMORY, "exec.mem is NULL");
    WITH(s.exec.bytes--, ATTN_E_MEMORY, "exec.mem: bytes");
    WITH(s.exec.mem = (char *)s.exec.mem + 64, ATTN_E_MEMORY, "aligned to 256");
#undef WITH
    s = good;
    s.layer.row_tile = 32;
    CHECK(!attn_cuda_plan_make(cuda, &s.plan, &s.batch, &s.layer, s.mem, s.bytes, NULL, &e), "%s", e.text);
    s.exec.bytes = (size_t)1 << 40;
    CHECK(attn_cuda_forward(cuda, &s.plan, &s.layer, &s.io, &s.exec, &e) == ATTN_E_PLAN &&
          strstr(e.text, "row_tile = 32"), "%s", e.text);
    CHECK(!plan_step(&good, cuda, &e), "%s", e.text);
    s = good;
    s.batch.q_len = &q_len;
    s.batch.kv_len = &kv_len;
    CHECK(!attn_plan_make(&cpu, &s.batch, &s.layer, words, sizeof words, &e), "%s", e.text);
    CHECK(attn_cuda_forward(cuda, &cpu, &s.layer, &s.io, &s.exec, &e) == ATTN_E_PLAN &&
          strstr(e.text, "attn_cuda_plan_make"), "a plan of the host: %s", e.text);
    CHECK(attn_forward(&good.plan, &s.layer, &s.io, &s.exec, &e) == ATTN_E_PLAN && strstr(e.text, "attn_plan_make"),
          "a plan of the device: %s", e.text);
    CHECK(gpu.ptxsim_launches("attn_cu_forward") == 0, "nothing ran");
    CHECK(!attn_cuda_forward(cuda, &good.plan, &good.layer, &good.io, &good.exec, &e), "%s", e.text);
    CHECK(step_is_right(&good), "and then it runs");
    close_step(&good);
    leave_primary(0);
    closed(cuda);
}

/* Empty batches and rows write nothing and are no errors. */
static void empty_batch(void) {
    attn_cuda_desc d = quick_desc();
    attn_cuda *cuda = NULL;
    attn_error e;
    step s;
    if (!has_compiler()) return;
    CHECK(!attn_cuda_open(&cuda, &d, &e), "%s", e.text);
    primary(0);
    open_step(&s, cuda, NULL);
    s.batch.n = 0;
    s.batch.max_q_len = s.batch.max_kv_len = 0;
    s.batch.max_rows = 0;
    CHECK(!plan_step(&s, cuda, &e), "%s", e.text);
    s.io.q = s.io.k = s.io.v = NULL;
    CHECK(!attn_cuda_append(cuda, &s.plan, &s.layer, &s.io, NULL, NULL, &s.exec, &e), "%s", e.text);
    CHECK(!attn_cuda_forward(cuda, &s.plan, &s.layer, &s.io, &s.exec, &e), "%s", e.text);
    CHECK(!attn_cuda_error(cuda, &s.plan, &s.exec, &e), "%s", e.text);
    CHECK(!attn_cuda_merge(cuda, &s.layer, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, &e), "%s", e.text);
    close_step(&s);
    leave_primary(0);
    closed(cuda);
}

/* ---- what devices and drivers find wrong ------------------------------------------------------------------------- */

/* Bad lengths on the device: the sentence of attn_plan_make, and a forward that writes nothing. */
static void length_faults(void) {
    static const int32_t bad[][2] = { { -1, 5 }, { 2, -7 }, { 3, 5 }, { 2, 6 }, { 2, 1 } };
    attn_cuda_desc d = quick_desc();
    attn_cuda *cuda = NULL;
    attn_plan plan;
    attn_error e, wanted;
    step s;
    int32_t words[4000];
    size_t i;
    if (!has_compiler()) return;
    CHECK(!attn_cuda_open(&cuda, &d, &e), "%s", e.text);
    primary(0);
    open_step(&s, cuda, NULL);
    CHECK(!plan_step(&s, cuda, &e) && !plan_error(&s, cuda, &e) && !e.text[0], "%s", e.text);
    for (i = 0; i < sizeof bad / sizeof *bad; i++) {
        attn_batch host = s.batch;
        int status;
        host.q_len = &bad[i][0];
        host.kv_len = &bad[i][1];
        status = attn_plan_make(&plan, &host, &s.layer, words, sizeof words, &wanted);
        gpu.cuMemcpyHtoD_v2((uint64_t)(uintptr_t)s.batch.q_len, &bad[i][0], 4);
        gpu.cuMemcpyHtoD_v2((uint64_t)(uintptr_t)s.batch.kv_len, &bad[i][1], 4);
        CHECK(status && !plan_step(&s, cuda, &e), "%s", e.text);
        CHECK(!attn_cuda_forward(cuda, &s.plan, &s.layer, &s.io, &s.exec, &e), "%s", e.text);
        CHECK(attn_cuda_error(cuda, &s.plan, &s.exec, &e) == status && !memcmp(&e, &wanted, 2 * sizeof(int32_t)) &&
              !strcmp(e.text, wanted.text), "'%s', not '%s'", e.text, wanted.text);
    }
    CHECK(!step_is_right(&s), "nothing was computed");
    memset(words, 0xFF, sizeof words);
    gpu.cuMemcpyHtoD_v2((uint64_t)(uintptr_t)s.mem, words, s.bytes);
    CHECK(attn_cuda_error(cuda, &s.plan, &s.exec, &e) == ATTN_E_PLAN && strstr(e.text, "reused"), "%s", e.text);
    close_step(&s);
    leave_primary(0);
    closed(cuda);
}

/* Opens, plans, runs and closes; the first status that is not 0. */
static int whole_life(const attn_cuda_desc *d, attn_error *e) {
    attn_cuda *cuda = NULL;
    step s;
    int status = attn_cuda_open(&cuda, d, e), bad = test.bad;
    if (status) return status;
    memset(&s, 0, sizeof s);
    gpu.ptxsim_set("PTXSIM_FAIL", ":0"); /* what the test itself asks of the driver must not fail */
    primary(0);
    open_step(&s, cuda, NULL);
    gpu.ptxsim_set("PTXSIM_FAIL", spy.said);
    status = plan_step(&s, cuda, e);
    if (!status) status = attn_cuda_forward(cuda, &s.plan, &s.layer, &s.io, &s.exec, e);
    if (!status) status = attn_cuda_error(cuda, &s.plan, &s.exec, e);
    gpu.ptxsim_set("PTXSIM_FAIL", ":0");
    CHECK(status || step_is_right(&s), "no error, but a wrong result");
    test.bad = bad + (test.bad > bad);
    close_step(&s);
    attn_cuda_close(cuda);
    CHECK(gpu.ptxsim_leaks() == 1, "only the context is left: %s", gpu.ptxsim_last_report());
    leave_primary(0);
    return status;
}

/* Memory, contexts and modules: what plans and forward do not call. */
static int other_life(const attn_cuda_desc *d, attn_error *e) {
    attn_cuda *cuda = NULL;
    char text[4] = "abc";
    void *p = NULL;
    int status, mode = 2, old;
    attn_cuda_desc current = *d;
    current.flags |= ATTN_CUDA_CURRENT;
    gpu.ptxsim_set("PTXSIM_FAIL", ":0");
    primary(0);
    gpu.ptxsim_set("PTXSIM_FAIL", spy.said);
    status = attn_cuda_open(&cuda, &current, e);
    if (!status) status = attn_cuda_prepare(cuda, NULL, 0, 0, e);
    if (!status) {
        p = attn_cuda_alloc(cuda, 4, e);
        status = p ? attn_cuda_write(cuda, p, text, 4, e) : ATTN_E_DRIVER;
    }
    if (!status) status = attn_cuda_read(cuda, text, p, 4, e);
    CHECK(status || !strcmp(text, "abc"), "no error, but '%s'", text);
    if (p) attn_cuda_free(cuda, p);
    if (cuda) attn_cuda_close(cuda);
    gpu.ptxsim_set("PTXSIM_FAIL", ":0");
    spy.exchange(&mode);
    old = mode;
    spy.exchange(&mode);
    CHECK(old == 0 || status, "the capture mode of the thread is %d", old);
    leave_primary(0);
    return status;
}

/* The calls of a life fail once each: an error each time, and nothing is lost. Returns how many did. */
static int fail_each(const char *call, int (*life)(const attn_cuda_desc *, attn_error *)) {
    attn_cuda_desc d = quick_desc();
    attn_error e;
    int k;
    d.message = NULL;
    for (k = 1; k <= 40 && fresh(); k++) {
        int status;
        snprintf(spy.said, 100, "%s:%d:2", call, k);
        gpu.ptxsim_set("PTXSIM_FAIL", spy.said);
        status = life(&d, &e);
        CHECK(spy.allocations == 0, "%s, call %d: %d blocks", call, k, spy.allocations);
        CHECK(gpu.ptxsim_leaks() == 0, "%s, call %d: %s", call, k, gpu.ptxsim_last_report());
        if (!status) break;
        CHECK(e.text[0], "a sentence");
    }
    CHECK(k <= 40, "%s fails for ever", call);
    return k - 1;
}

static void driver_faults(void) {
    static const char *const calls[] = {
        "cuInit", "cuDriverGetVersion", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute",
        "cuDevicePrimaryCtxRetain", "cuCtxPushCurrent_v2", "cuModuleLoadDataEx", "cuModuleGetFunction",
        "cuLaunchKernel", "cuMemsetD32Async", "cuMemcpyDtoHAsync_v2", "cuStreamSynchronize", "cuStreamIsCapturing"
    };
    static const char *const others[] = { "cuCtxGetCurrent", "cuCtxGetDevice", "cuThreadExchangeStreamCaptureMode",
                                          "cuMemAlloc_v2", "cuMemcpyHtoD_v2", "cuMemcpyDtoH_v2" };
    static const char *const backs[] = { "cuMemFree_v2", "cuModuleUnload", "cuCtxPopCurrent_v2" };
    size_t i;
    if (!has_compiler()) return;
    for (i = 0; i < sizeof calls / sizeof *calls; i++) CHECK(fail_each(calls[i], whole_life), "%s", calls[i]);
    for (i = 0; i < sizeof others / sizeof *others; i++) CHECK(fail_each(others[i], other_life), "%s", others[i]);
    for (i = 0; i < sizeof backs / sizeof *backs; i++) CHECK(!fail_each(backs[i], other_life), "no error");
}

/* A sentence all the same where the driver has no words. */
static void wordless_driver(void) {
    static const char *const calls[] = { "cuGetErrorName", "cuGetErrorString", "cuCtxPushCurrent_v2" };
    static const char *const words[] = { "error 2, out of memory", "error 2, CUDA_ERROR_OUT_OF_MEMORY",
                                         "cuCtxPushCurrent: error 46, unknown" };
    attn_cuda_desc d = quick_desc();
    attn_cuda *cuda = NULL;
    attn_error e;
    char fault[60];
    size_t i;
    if (!fresh()) return;
    CHECK(!attn_cuda_open(&cuda, &d, &e), "%s", e.text);
    for (i = 0; i < 3; i++) {
        snprintf(fault, sizeof fault, "%s:1:46", calls[i]);
        gpu.ptxsim_set("PTXSIM_FAIL", fault);
        CHECK(!attn_cuda_alloc(cuda, (size_t)1 << 62, &e) && strstr(e.text, words[i]), "%s: %s", calls[i], e.text);
    }
    gpu.ptxsim_set("PTXSIM_FAIL", ":0");
    closed(cuda);
}

/* wanted: what comes of it when no allocation fails any more. Returns how many did. */
static int allocations_that_fail(int is_refused, int wanted) {
    attn_cuda_desc d = quick_desc();
    attn_error e;
    int k;
    d.message = NULL;
    d.get = NULL;
    for (k = 1; k < 40; k++) {
        attn_cuda *cuda = NULL;
        int status;
        fresh();
        if (is_refused) refuse_code();
        spy.only_pretend = 1;
        spy.fail_at = k;
        status = attn_cuda_open(&cuda, &d, &e);
        if (!status) status = attn_cuda_prepare(cuda, NULL, 0, 0, &e);
        closed(cuda);
        if (status == wanted) return k - 1;
        CHECK((status == ATTN_E_MEMORY && strstr(e.text, "desc.alloc gave no memory")) || status == ATTN_E_COMPILE,
              "%d: %s", status, e.text);
    }
    return k;
}

static void memory_faults(void) {
    int failed;
    if (!has_compiler()) return;
    failed = allocations_that_fail(0, ATTN_OK);
    CHECK(failed >= 4 && failed < 39, "%d allocations failed", failed);
    failed = allocations_that_fail(1, ATTN_E_DRIVER);
    CHECK(failed >= 4 && failed < 39, "%d allocations failed", failed);
}

int main(int argc, char **argv) {
    if (argc > 1) test.only = argv[1];
    pthread_mutex_init(&spy.lock, NULL);
    pthread_cond_init(&spy.all_here, NULL);
    gpu_open();
    if (gpu.cuda) attn_cuda_close(gpu.cuda);
    gpu.cuda = NULL;
    if (gpu.is_simulated) gpu_symbol("ptxsim_reset", &spy.reset);
    if (gpu.is_simulated) gpu_symbol("cuThreadExchangeStreamCaptureMode", &spy.exchange);
    if (getenv("ATTN_CUDA_NVRTC")) snprintf(compiler, sizeof compiler, "%s", getenv("ATTN_CUDA_NVRTC"));
    unsetenv("ATTN_CUDA_NVRTC");
    test_run("cuda_host: names the device", names_the_device);
    test_run("cuda_host: no driver", no_driver);
    test_run("cuda_host: no device", no_device);
    test_run("cuda_host: memory", memory);
    test_run("cuda_host: bad descriptions", bad_description);
    test_run("cuda_host: the search for a compiler", order_of_compilers);
    test_run("cuda_host: no compiler", no_compiler);
    test_run("cuda_host: an old compiler", old_compiler);
    test_run("cuda_host: the compiler's second half", builtins);
    test_run("cuda_host: the driver refuses code for the device", refused_code);
    test_run("cuda_host: a device that the compiler does not know", unknown_device);
    test_run("cuda_host: a kernel that does not compile", broken_source);
    test_run("cuda_host: a compiler that gives no code", no_code);
    test_run("cuda_host: hooks for images", hooks);
    test_run("cuda_host: a shipped program", shipped);
    test_run("cuda_host: a folder for images", disk_cache);
    test_run("cuda_host: a folder that cannot be written", unwritable_cache);
    test_run("cuda_host: threads", threads); /* the first one that needs every module */
    test_run("cuda_host: several threads load one module", same_module_at_once);
    test_run("cuda_host: contexts", contexts);
    test_run("cuda_host: two devices", two_devices);
    test_run("cuda_host: capture", capture);
    test_run("cuda_host: NULL arguments", null_arguments);
    test_run("cuda_host: arguments of plans", plan_arguments);
    test_run("cuda_host: arguments of forward", forward_arguments);
    test_run("cuda_host: an empty batch", empty_batch);
    test_run("cuda_host: bad lengths", length_faults);
    test_run("cuda_host: every call of the driver fails once", driver_faults);
    test_run("cuda_host: a driver without words", wordless_driver);
    test_run("cuda_host: every allocation fails once", memory_faults);
    forget_images();
    return test_close("cuda_host");
}
