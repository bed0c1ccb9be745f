/* cuda_test.h - what the tests of attn_cuda.h share: a device, its memory, graphs. The driver is the one that the
   loader finds, so the same programs run on a GPU and, with LD_LIBRARY_PATH=build/sim, on the simulated one, which also
   reports races and uninitialised reads. Include it behind attn_cuda.h. */
#ifndef CUDA_TEST_H
#define CUDA_TEST_H

#include "sim/ptxsim.h"
#include "test.h"

#include <dlfcn.h>

#define CUDA_TEST_DRIVER(X)                                                                                           \
    X(cuInit, (unsigned flags))                                                                                       \
    X(cuDeviceGet, (int *device, int ordinal))                                                                        \
    X(cuDeviceGetName, (char *name, int bytes, int device))                                                           \
    X(cuDevicePrimaryCtxRetain, (void **context, int device))                                                         \
    X(cuDevicePrimaryCtxRelease_v2, (int device))                                                                     \
    X(cuCtxPushCurrent_v2, (void *context))                                                                           \
    X(cuCtxPopCurrent_v2, (void **context))                                                                           \
    X(cuCtxSynchronize, (void))                                                                                       \
    X(cuMemAlloc_v2, (uint64_t *address, size_t bytes))                                                               \
    X(cuMemFree_v2, (uint64_t address))                                                                               \
    X(cuMemcpyHtoD_v2, (uint64_t to, const void *from, size_t bytes))                                                 \
    X(cuMemcpyDtoH_v2, (void *to, uint64_t from, size_t bytes))                                                       \
    X(cuMemsetD8Async, (uint64_t to, unsigned char value, size_t count, void *stream))                                \
    X(cuStreamCreate, (void **stream, unsigned flags))                                                                \
    X(cuStreamDestroy_v2, (void *stream))                                                                             \
    X(cuStreamSynchronize, (void *stream))                                                                            \
    X(cuStreamBeginCapture_v2, (void *stream, int mode))                                                              \
    X(cuStreamEndCapture, (void *stream, void **graph))                                                               \
    X(cuGraphInstantiateWithFlags, (void **exec, void *graph, unsigned long long flags))                              \
    X(cuGraphLaunch, (void *exec, void *stream))                                                                      \
    X(cuGraphDestroy, (void *graph))                                                                                  \
    X(cuGraphExecDestroy, (void *exec))

/* Only the simulator has these. */
#define CUDA_TEST_SIMULATOR(X)                                                                                        \
    X(int, ptxsim_set, (const char *name, const char *value))                                                         \
    X(int, ptxsim_reports, (int kind))                                                                                \
    X(const char *, ptxsim_last_report, (void))                                                                       \
    X(int, ptxsim_leaks, (void))                                                                                      \
    X(void, ptxsim_get_counters, (ptxsim_counters *c))                                                                \
    X(void, ptxsim_reset_counters, (void))                                                                            \
    X(uint64_t, ptxsim_launches, (const char *kernel))

typedef struct cuda_gpu {
    attn_cuda *cuda;
    void *library, *context, *stream;
    int is_simulated;
    const char *missing;            /* why nothing can run here */
    char text[300];
#define CUDA_TEST_FIELD(name, parameters) int(*name) parameters;
    CUDA_TEST_DRIVER(CUDA_TEST_FIELD)
#undef CUDA_TEST_FIELD
#define CUDA_TEST_FIELD(type, name, parameters) type(*name) parameters;
    CUDA_TEST_SIMULATOR(CUDA_TEST_FIELD)
#undef CUDA_TEST_FIELD
} cuda_gpu;

static cuda_gpu gpu;

static inline int gpu_symbol(const char *name, void *function) {
    void *p = dlsym(gpu.library, name);
    memcpy(function, &p, sizeof p);
    return p != NULL;
}

/* Only the first ones: each layer of a step may say the same. */
static inline void gpu_message(void *user, const char *text) {
    static int count;
    (void)user;
    if (count++ < 10) printf("  %s\n", text);
}

/* Why there is no device to test on; NULL: there is one. */
static inline const char *gpu_connect(void) {
    int device = 0, good = 1;
    char name[100] = "";
    attn_cuda_desc desc;
    attn_error error;
    gpu.library = dlopen("libcuda.so.1", RTLD_NOW);
    if (!gpu.library) return "no NVIDIA driver";
#define CUDA_TEST_LOAD(name, parameters) good = gpu_symbol(#name, &gpu.name) && good;
    CUDA_TEST_DRIVER(CUDA_TEST_LOAD)
#undef CUDA_TEST_LOAD
#define CUDA_TEST_LOAD(type, name, parameters) gpu.is_simulated = gpu_symbol(#name, &gpu.name);
    CUDA_TEST_SIMULATOR(CUDA_TEST_LOAD)
#undef CUDA_TEST_LOAD
    if (gpu.is_simulated && !getenv("PTXSIM_CC")) gpu.ptxsim_set("PTXSIM_CC", "80");    /* see cuda_pairs.h */
    if (!good || gpu.cuInit(0) || gpu.cuDeviceGet(&device, 0)) return "no CUDA device";
    if (gpu.cuDeviceGetName(name, (int)sizeof name, device)) return "no CUDA device";
    if (gpu.cuDevicePrimaryCtxRetain(&gpu.context, device) || gpu.cuCtxPushCurrent_v2(gpu.context)) return "no context";
    if (gpu.cuStreamCreate(&gpu.stream, 1)) return "no stream";
    memset(&desc, 0, sizeof desc);
    desc.flags = ATTN_CUDA_LINE_INFO | (gpu.is_simulated ? ATTN_CUDA_PTX : 0);
    desc.message = gpu_message;
    desc.cache_dir = getenv("ATTN_TEST_CACHE"); /* so that the programs of a run compile each module once */
    printf("device: %s\n", name);
    if (!attn_cuda_open(&gpu.cuda, &desc, &error)) return NULL;
    snprintf(gpu.text, sizeof gpu.text, "%s", error.text);
    return gpu.text;
}

/* At the start of main. */
static inline void gpu_open(void) {
    memset(&gpu, 0, sizeof gpu);
    gpu.missing = gpu_connect();
}

/* At the start of a test: 0 if it cannot run and is skipped. A missing compiler shows at the first kernel. */
static inline int gpu_ready(void) {
    if (gpu.missing) test_skip(gpu.missing);
    return !gpu.missing;
}

static inline void gpu_close(void) {
    void *old;
    if (gpu.cuda) attn_cuda_close(gpu.cuda);
    if (gpu.stream) gpu.cuStreamDestroy_v2(gpu.stream);
    if (!gpu.context) return;
    gpu.cuCtxPopCurrent_v2(&old);
    gpu.cuDevicePrimaryCtxRelease_v2(0);
}

/* Waits for everything. A kernel that failed, or that the simulator complains of, is a failed check. */
static inline int gpu_wait(void) {
    int code = gpu.cuStreamSynchronize(gpu.stream);
    if (!code) code = gpu.cuCtxSynchronize();
    CHECK(!code, "error %d of the device", code);
    if (gpu.is_simulated) {
        CHECK(!gpu.ptxsim_reports(-1), "%d reports: %s", gpu.ptxsim_reports(-1), gpu.ptxsim_last_report());
    }
    return !code;
}

static inline uint64_t gpu_address(const void *p) { return (uint64_t)(uintptr_t)p; }

static inline void *gpu_alloc(size_t bytes) {
    uint64_t address = 0;
    int code = gpu.cuMemAlloc_v2(&address, bytes ? bytes : 1);
    CHECK(!code, "no %lu bytes: error %d", (unsigned long)bytes, code);
    return (void *)(uintptr_t)address;
}

static inline void gpu_free(void *p) {
    if (p) gpu.cuMemFree_v2(gpu_address(p));
}

/* Copies wait for what runs. */
static inline void gpu_write(void *to, const void *from, size_t bytes) {
    int code = gpu.cuStreamSynchronize(gpu.stream);
    if (!code && bytes) code = gpu.cuMemcpyHtoD_v2(gpu_address(to), from, bytes);
    CHECK(!code, "error %d of the device", code);
}

static inline void gpu_read(void *to, const void *from, size_t bytes) {
    int code = gpu.cuStreamSynchronize(gpu.stream);
    if (!code && bytes) code = gpu.cuMemcpyDtoH_v2(to, gpu_address(from), bytes);
    CHECK(!code, "error %d of the device", code);
}

static inline void gpu_fill(void *to, int byte, size_t bytes) {
    int code = bytes ? gpu.cuMemsetD8Async(gpu_address(to), (unsigned char)byte, bytes, gpu.stream) : 0;
    CHECK(!code, "error %d of the device", code);
}

/* A copy of host data, NULL of NULL. */
static inline void *gpu_upload(const void *data, size_t bytes) {
    void *p = data ? gpu_alloc(bytes) : NULL;
    if (p) gpu_write(p, data, bytes);
    return p;
}

/* What is called between the two is recorded; the result goes to gpu_replay. */
static inline void gpu_record(void) {
    CHECK(!gpu.cuStreamBeginCapture_v2(gpu.stream, 0), "no capture");
}

static inline void *gpu_recorded(void) {
    void *graph = NULL, *exec = NULL;
    int code = gpu.cuStreamEndCapture(gpu.stream, &graph);
    CHECK(!code, "capture: error %d", code);
    if (!code) code = gpu.cuGraphInstantiateWithFlags(&exec, graph, 0);
    CHECK(!code, "graph: error %d", code);
    if (graph) gpu.cuGraphDestroy(graph);
    return exec;
}

static inline void gpu_replay(void *exec) {
    int code = exec ? gpu.cuGraphLaunch(exec, gpu.stream) : -1;
    CHECK(!code, "replay: error %d", code);
}

static inline void gpu_forget(void *exec) {
    if (exec) gpu.cuGraphExecDestroy(exec);
}

#endif
