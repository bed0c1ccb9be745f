/* test_driver.c - the driver API on the simulated device: contexts, limits, lazy streams, events, capture, graphs,
   faults, several devices, leaks, and errors that stay. */
#define _POSIX_C_SOURCE 200809L
#include "sim_test.h"

#include <dlfcn.h>
#include <pthread.h>

/* b[i] = a[i] + n */
#define ADD "ld.global.u32 r8, [d3];\nadd.u32 r8, r8, r2;\nst.global.u32 [d4], r8;"

typedef struct rig {
    CUfunction f;
    CUdeviceptr a, b;
    uint32_t n;
    void *params[3];
    uint32_t host[64];
} rig;

static void open_rig(rig *r) {
    int i;
    open_device();
    memset(r, 0, sizeof *r);
    r->f = kernel_around("", ADD);
    for (i = 0; i < 64; i++) r->host[i] = (uint32_t)i;
    r->a = upload(r->host, sizeof r->host);
    r->b = upload(NULL, sizeof r->host);
    r->params[0] = &r->a;
    r->params[1] = &r->b;
    r->params[2] = &r->n;
}

static CUresult add(rig *r, uint32_t n, CUdeviceptr from, CUdeviceptr to, CUstream stream) {
    void *params[3];
    params[0] = &from;
    params[1] = &to;
    params[2] = &n;
    return cuLaunchKernel(r->f, 1, 1, 1, 64, 1, 1, 0, stream, params, NULL);
}

static void start(void) {
    int n = -1, version = 0;
    CUdevice d;
    CUcontext c, previous;
    CUdeviceptr p;
    char name[40];
    open_device();
    ptxsim_reset();
    ptxsim_set("PTXSIM_QUIET", "1");
    CHECK(cuDeviceGetCount(&n) == 3 && cuMemAlloc_v2(&p, 16) == 3, "before cuInit: CUDA_ERROR_NOT_INITIALIZED");
    CHECK(cuDriverGetVersion(&version) == 0 && version == 13000, "%d", version);
    ptxsim_set("PTXSIM_DEVICES", "0");
    CHECK(cuInit(0) == 100, "no device");
    CHECK(cuDeviceGetCount(&n) == 3, "still not initialised");
    ptxsim_set("PTXSIM_DEVICES", "1");
    CHECK(cuInit(1) == 1 && cuInit(0) == 0 && cuInit(0) == 0, "flags must be 0");
    CHECK(cuDeviceGetCount(&n) == 0 && n == 1, "%d devices", n);
    CHECK(cuDeviceGet(&d, 1) == 101 && cuDeviceGet(&d, -1) == 101 && cuDeviceGet(&d, 0) == 0, "ordinals");
    CHECK(cuDeviceGetName(name, sizeof name, 0) == 0 && strstr(name, "ptxsim"), "%s", name);
    CHECK(cuMemAlloc_v2(&p, 16) == 201, "no context: CUDA_ERROR_INVALID_CONTEXT");
    CHECK(cuCtxGetCurrent(&c) == 0 && c == NULL, "none is current");
    CHECK(cuDevicePrimaryCtxRelease_v2(0) == 201, "none to release");
    CHECK(cuDevicePrimaryCtxRetain(&c, 0) == 0 && cuCtxSetCurrent(c) == 0, "retain");
    CHECK(cuMemAlloc_v2(&p, 16) == 0, "with a context");
    previous = c;
    c = NULL;
    CHECK(cuCtxPopCurrent_v2(&c) == 0 && c == previous && cuMemAlloc_v2(&p, 16) == 201, "popped");
    CHECK(cuCtxPopCurrent_v2(&c) == 201, "nothing to pop");
    CHECK(cuCtxPushCurrent_v2(c) == 0 && cuCtxGetDevice(&d) == 0 && d == 0, "pushed");
    CHECK(cuDevicePrimaryCtxRelease_v2(0) == 0 && cuMemAlloc_v2(&p, 16) == 201, "released");
}

static void attributes(void) {
    int v, blocks;
    rig r;
    CUcontext c;
    char uuid[16];
    size_t total, available;
    open_rig(&r);
    ptxsim_set("PTXSIM_CC", "86");
    ptxsim_set("PTXSIM_SMS", "20");
    CHECK(cuDeviceGetAttribute(&v, 75, 0) == 0 && v == 8, "major %d", v);
    CHECK(cuDeviceGetAttribute(&v, 76, 0) == 0 && v == 6, "minor %d", v);
    CHECK(cuDeviceGetAttribute(&v, 16, 0) == 0 && v == 20, "%d multiprocessors", v);
    CHECK(cuDeviceGetAttribute(&v, 97, 0) == 0 && v == 232448, "%d bytes shared", v);
    CHECK(cuDeviceGetAttribute(&v, 1, 0) == 0 && v == 1024, "%d threads in a block", v);
    CHECK(cuDeviceTotalMem_v2(&total, 0) == 0 && total == 1073741824 && cuDeviceTotalMem_v2(&total, 1) == 101,
          "memory");
    CHECK(cuDeviceGetUuid_v2(uuid, 0) == 0 && uuid[15] == 0 && cuDeviceGetUuid_v2(uuid, 1) == 101, "name");
    CHECK(cuStreamGetCtx(NULL, &c) == 0 && c == test_context, "context of a stream");
    for (v = 0; v < 15; v++) CHECK(!cuCtxPushCurrent_v2(test_context), "push %d", v);
    CHECK(cuCtxPushCurrent_v2(test_context) == 201 && cuCtxPushCurrent_v2(NULL) == 201, "the stack is full");
    CHECK(cuDeviceGetAttribute(&v, 0, 0) == 1 && cuDeviceGetAttribute(&v, 16, 1) == 101, "bad arguments");
    CHECK(cuFuncGetAttribute(&v, CU_FUNC_MAX_THREADS_PER_BLOCK, r.f) == 0 && v == 1024, "%d threads", v);
    CHECK(cuOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, r.f, 256, 0) == 0 && blocks == 8, "%d blocks", blocks);
    CHECK(cuOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, r.f, 64, 100000) == 0 && blocks == 2, "%d blocks",
          blocks);
    CHECK(cuOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, NULL, 64, 0) == 400, "no function");
    CHECK(cuMemGetInfo_v2(&available, &total) == 0 && total == 1073741824 && available == total - 512, "%lu",
          (unsigned long)available);
}

static void memory(void) {
    CUdeviceptr p, q, base;
    size_t bytes;
    int kind;
    void *host;
    uint32_t words[4] = { 1, 2, 3, 4 }, back[4];
    open_device();
    ptxsim_set("PTXSIM_MEM", "1000000");
    cuDevicePrimaryCtxRelease_v2(0);
    cuDevicePrimaryCtxRetain(&test_context, 0);
    CHECK(cuMemAlloc_v2(&p, 0) == 1 && cuMemAlloc_v2(&p, 1000001) == 2, "sizes");
    CHECK(cuMemAlloc_v2(&p, 999999) == 0 && cuMemAlloc_v2(&q, 2) == 2, "full");
    CHECK(cuMemFree_v2(p + 4) == 1 && cuMemFree_v2(p) == 0 && cuMemFree_v2(p) == 1 && cuMemFree_v2(0) == 0, "free");
    CHECK(cuMemAlloc_v2(&p, 1) == 0 && cuMemFree_v2(p) == 0, "one byte");
    CHECK(cuMemAlloc_v2(&p, 16) == 0 && cuMemAlloc_v2(&q, 16) == 0, "again");
    CHECK(cuMemcpyHtoD_v2(p, words, 16) == 0 && cuMemcpyDtoD_v2(q, p, 16) == 0, "copies");
    CHECK(cuMemcpyDtoH_v2(back, q, 16) == 0 && !memcmp(back, words, 16), "back");
    CHECK(cuMemcpyHtoD_v2(p, words, 17) == 1 && cuMemcpyDtoH_v2(back, p + 8, 9) == 1, "copies past the end");
    CHECK(cuMemcpyHtoD_v2((CUdeviceptr)(uintptr_t)back, words, 16) == 1, "to a host address");
    CHECK(cuMemcpyHtoD_v2(p, words, 0) == 0 && cuMemcpyHtoD_v2(p, NULL, 4) == 1, "nothing, from nowhere");
    CHECK(cuMemsetD32Async(p + 2, 0, 1, NULL) == 1 && cuMemsetD32Async(p, 0, 5, NULL) == 1, "fills");
    CHECK(cuMemsetD32Async(p, 9, 4, NULL) == 0 && cuMemsetD8Async(p + 1, 1, 1, NULL) == 0, "fills");
    CHECK(cuMemcpyDtoH_v2(back, p, 16) == 0 && back[0] == 0x109 && back[3] == 9, "%x", (unsigned)back[0]);
    CHECK(cuPointerGetAttribute(&kind, 2, p + 15) == 0 && kind == 2, "device memory");
    CHECK(cuPointerGetAttribute(&kind, 9, p) == 0 && kind == 0, "ordinal");
    CHECK(cuPointerGetAttribute(&kind, 2, p + 16) == 1, "behind it");
    CHECK(cuPointerGetAttribute(&kind, 2, (CUdeviceptr)(uintptr_t)words) == 1, "ordinary host memory");
    CHECK(cuMemAllocHost_v2(&host, 64) == 0, "pinned");
    CHECK(cuPointerGetAttribute(&kind, 2, (CUdeviceptr)(uintptr_t)host + 63) == 0 && kind == 1, "pinned memory");
    CHECK(cuPointerGetAttribute(&kind, 2, (CUdeviceptr)(uintptr_t)words) == 1, "ordinary memory beside it");
    CHECK(cuPointerGetAttribute(&kind, 2, (CUdeviceptr)(uintptr_t)host + 64) == 1, "behind pinned memory");
    CHECK(cuMemGetAddressRange_v2(&base, &bytes, p + 5) == 0 && base == p && bytes == 16, "range");
    CHECK(cuMemFreeHost(host) == 0 && cuMemFreeHost(host) == 1, "free pinned");
}

static void launch_limits(void) {
    rig r;
    CUfunction limited;
    CUmodule m;
    CUlaunchConfig c;
    open_rig(&r);
    CHECK(cuLaunchKernel(r.f, 0, 1, 1, 64, 1, 1, 0, NULL, r.params, NULL) == 1, "no blocks");
    CHECK(cuLaunchKernel(r.f, 1, 1, 1, 0, 1, 1, 0, NULL, r.params, NULL) == 1, "no threads");
    CHECK(cuLaunchKernel(r.f, 1, 1, 1, 1025, 1, 1, 0, NULL, r.params, NULL) == 1, "1025 threads");
    CHECK(cuLaunchKernel(r.f, 1, 65536, 1, 64, 1, 1, 0, NULL, r.params, NULL) == 1, "65536 blocks in y");
    CHECK(cuLaunchKernel(r.f, 1, 1, 65536, 64, 1, 1, 0, NULL, r.params, NULL) == 1, "and in z");
    CHECK(cuLaunchKernel(r.f, 1, 1, 1, 1, 1, 65, 0, NULL, r.params, NULL) == 1, "65 threads in z");
    CHECK(cuLaunchKernel(r.f, 1, 1, 1, 64, 1, 1, 49153, NULL, r.params, NULL) == 1, "shared memory without the opt-in");
    CHECK(cuFuncSetAttribute(r.f, CU_FUNC_MAX_DYNAMIC_SHARED_SIZE_BYTES, 232449) == 1, "more than there is");
    CHECK(cuFuncSetAttribute(r.f, CU_FUNC_MAX_DYNAMIC_SHARED_SIZE_BYTES, 100000) == 0, "opt in");
    CHECK(cuLaunchKernel(r.f, 1, 1, 1, 64, 1, 1, 100000, NULL, r.params, NULL) == 0, "with it");
    CHECK(cuLaunchKernel(r.f, 1, 1, 1, 64, 1, 1, 100001, NULL, r.params, NULL) == 1, "and one more");
    CHECK(cuLaunchKernel(r.f, 1, 1, 1, 64, 1, 1, 0, NULL, NULL, NULL) == 1, "no parameters");
    CHECK(cuLaunchKernel(NULL, 1, 1, 1, 64, 1, 1, 0, NULL, r.params, NULL) == 400, "no function");
    CHECK(cuCtxSynchronize() == 0, "%s", ptxsim_last_report());
    CHECK(!load_text(&m, PTX_HEAD ".visible .entry k() .maxntid 96, 1, 1\n{ ret; }"), "%s", test_log);
    CHECK(cuModuleGetFunction(&limited, m, "none") == 500 && cuModuleGetFunction(&limited, m, "k") == 0, "names");
    CHECK(cuLaunchKernel(limited, 1, 1, 1, 97, 1, 1, 0, NULL, NULL, NULL) == 1, ".maxntid");
    CHECK(cuLaunchKernel(limited, 1, 1, 1, 96, 1, 1, 0, NULL, NULL, NULL) == 0, ".maxntid");
    memset(&c, 0, sizeof c);
    c.gridDimX = c.gridDimY = c.gridDimZ = c.blockDimX = c.blockDimY = c.blockDimZ = 1;
    CHECK(cuLaunchKernelEx(&c, limited, NULL, NULL) == 0, "launch by structure");
    CHECK(cuLaunchKernelEx(NULL, limited, NULL, NULL) == 1, "no structure");
    CHECK(cuModuleUnload(m) == 0 && cuModuleUnload(m) == 400, "unload");
    CHECK(cuLaunchKernel(limited, 1, 1, 1, 96, 1, 1, 0, NULL, NULL, NULL) == 400, "a function of an unloaded module");
}

/* What the simulator has of launch attributes, in any place of the list. */
static void launch_attributes(void) {
    static const struct {
        CUlaunchAttribute a;
        int capability;
        CUresult result;
    } cases[] = {
        { { CU_LAUNCH_PROGRAMMATIC_SERIALIZATION, 0, { { 1 } } }, 90, 0 },
        { { CU_LAUNCH_PROGRAMMATIC_SERIALIZATION, 0, { { 1 } } }, 89, 801 },
        { { CU_LAUNCH_CLUSTER_DIMENSION, 0, { { 1, 0, 0, 0, 1, 0, 0, 0, 1 } } }, 90, 0 },
        { { CU_LAUNCH_CLUSTER_DIMENSION, 0, { { 2, 0, 0, 0, 1, 0, 0, 0, 1 } } }, 90, 801 },
        { { CU_LAUNCH_CLUSTER_DIMENSION, 0, { { 1, 0, 0, 0, 1 } } }, 90, 1 },
        { { CU_LAUNCH_COOPERATIVE, 0, { { 0 } } }, 90, 0 },
        { { CU_LAUNCH_COOPERATIVE, 0, { { 1 } } }, 90, 801 },
        { { CU_LAUNCH_PRIORITY, 0, { { 3 } } }, 90, 0 },
        { { CU_LAUNCH_PROGRAMMATIC_EVENT, 0, { { 0 } } }, 90, 801 },
        { { 99, 0, { { 0 } } }, 90, 801 }
    };
    rig r;
    CUlaunchAttribute list[2];
    CUlaunchConfig c;
    uint32_t out[64];
    size_t i;
    open_rig(&r);
    CHECK(sizeof list[0] == 72, "%lu bytes", (unsigned long)sizeof list[0]);
    memset(&c, 0, sizeof c);
    memset(list, 0, sizeof list);
    c.gridDimX = c.gridDimY = c.gridDimZ = c.blockDimY = c.blockDimZ = 1;
    c.blockDimX = 64;
    c.numAttrs = 2;
    CHECK(cuLaunchKernelEx(&c, r.f, r.params, NULL) == 1, "a count without a list");
    c.attrs = list;
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        ptxsim_set("PTXSIM_CC", cases[i].capability == 90 ? "90" : "89");
        list[1] = cases[i].a;
        r.n = (uint32_t)i + 100;
        CHECK(cuLaunchKernelEx(&c, r.f, r.params, NULL) == cases[i].result, "attribute %d", list[1].id);
        if (cases[i].result) continue;
        CHECK(!cuMemcpyDtoH_v2(out, r.b, sizeof out) && out[5] == i + 105, "attribute %d: %u", list[1].id, out[5]);
    }
}

/* Work runs when somebody waits for it, and pageable sources are snapshots. */
static void lazy_streams(void) {
    rig r;
    CUstream s = NULL, t = NULL;
    CUevent e;
    uint32_t out[64], *pinned;
    void *p;
    open_rig(&r);
    CHECK(!cuStreamCreate(&s, CU_STREAM_NON_BLOCKING) && !cuStreamCreate(&t, CU_STREAM_NON_BLOCKING), "streams");
    CHECK(!cuEventCreate(&e, 0), "event");
    memset(out, 0, sizeof out);
    CHECK(!cuMemcpyHtoDAsync_v2(r.a, r.host, sizeof r.host, s), "copy");
    memset(r.host, 0xFF, sizeof r.host);
    CHECK(!add(&r, 100, r.a, r.b, s) && !cuMemcpyDtoHAsync_v2(out, r.b, sizeof out, s), "submit");
    CHECK(out[5] == 0, "nothing ran yet");
    CHECK(!cuStreamSynchronize(t) && out[5] == 0, "another stream does not help");
    CHECK(cuStreamQuery(s) == 600, "not ready");
    CHECK(!cuStreamSynchronize(s) && out[5] == 105, "%u", (unsigned)out[5]);
    CHECK(cuStreamQuery(s) == 0, "ready");
    /* pinned memory is read when the copy runs */
    CHECK(!cuMemAllocHost_v2(&p, sizeof out), "pinned");
    pinned = (uint32_t *)p;
    memset(pinned, 0, sizeof out);
    CHECK(!cuMemcpyHtoDAsync_v2(r.a, pinned, sizeof out, s), "copy");
    pinned[5] = 7;
    CHECK(!cuMemcpyDtoHAsync_v2(out, r.a, sizeof out, s) && !cuStreamSynchronize(s) && out[5] == 7, "late: %u",
          (unsigned)out[5]);
    /* the other stream reads old data without the event, new data with it */
    CHECK(!add(&r, 1, r.a, r.b, s) && !add(&r, 2, r.b, r.a, t) && !cuStreamSynchronize(t), "two streams");
    CHECK(!cuMemcpyDtoHAsync_v2(out, r.a, sizeof out, t) && !cuStreamSynchronize(t) && out[5] == 107, "too early: %u",
          (unsigned)out[5]);
    CHECK(!cuStreamSynchronize(s), "end");
    CHECK(!add(&r, 1, r.a, r.b, s) && !cuEventRecord(e, s) && !cuStreamWaitEvent(t, e, 0), "event");
    CHECK(cuEventQuery(e) == 600, "not yet");
    CHECK(!add(&r, 2, r.b, r.a, t) && !cuMemcpyDtoHAsync_v2(out, r.a, sizeof out, t), "dependent");
    CHECK(!cuStreamSynchronize(t) && out[5] == 110, "in order: %u", (unsigned)out[5]);
    CHECK(cuEventQuery(e) == 0, "the event has come");
    CHECK(!cuStreamDestroy_v2(s), "the older stream");
    CHECK(cuStreamSynchronize(s) == 400 && cuStreamDestroy_v2(NULL) == 400, "gone");
    CHECK(!cuStreamDestroy_v2(t) && !cuEventDestroy_v2(e), "the other one");
    CHECK(cuEventSynchronize(e) == 400, "gone");
    cuMemFreeHost(p);
}

/* The default stream waits for blocking streams and they for it. */
static void default_stream(void) {
    rig r;
    CUstream s = NULL, t = NULL;
    uint32_t out[64];
    open_rig(&r);
    CHECK(!cuStreamCreate(&s, CU_STREAM_DEFAULT) && !cuStreamCreate(&t, CU_STREAM_NON_BLOCKING), "streams");
    CHECK(cuStreamCreate(&s, 9) == 1, "flags");
    memset(out, 0, sizeof out);
    CHECK(!add(&r, 10, r.a, r.b, s) && !add(&r, 20, r.b, r.a, NULL), "submit");
    CHECK(!cuMemcpyDtoHAsync_v2(out, r.a, sizeof out, s) && !cuStreamSynchronize(s), "in the order of submission");
    CHECK(out[5] == 35, "%u", (unsigned)out[5]);
    CHECK(!add(&r, 1, r.a, r.b, t) && !cuMemcpyDtoHAsync_v2(out, r.b, sizeof out, NULL), "not of this stream");
    CHECK(!cuStreamSynchronize(NULL) && out[5] == 15, "%u", (unsigned)out[5]);
    CHECK(!cuMemcpyDtoH_v2(out, r.b, sizeof out) && out[5] == 15, "nor does a synchronous copy wait for it: %u",
          (unsigned)out[5]);
    CHECK(!cuCtxSynchronize() && !cuMemcpyDtoH_v2(out, r.b, sizeof out) && out[5] == 36, "%u", (unsigned)out[5]);
}

static void events(void) {
    rig r;
    CUevent e, f, untimed;
    float ms = -1;
    open_rig(&r);
    cuEventCreate(&e, 0);
    cuEventCreate(&f, 0);
    cuEventCreate(&untimed, CU_EVENT_DISABLE_TIMING);
    CHECK(cuEventElapsedTime(&ms, e, f) == 400, "never recorded");
    CHECK(!cuEventRecord(e, NULL) && !add(&r, 1, r.a, r.b, NULL) && !cuEventRecord(f, NULL), "record");
    CHECK(cuEventElapsedTime(&ms, e, f) == 600, "not reached");
    CHECK(!cuEventSynchronize(f) && !cuEventElapsedTime(&ms, e, f) && ms >= 0, "%g ms", (double)ms);
    CHECK(!cuEventRecord(untimed, NULL) && !cuCtxSynchronize() && cuEventElapsedTime(&ms, e, untimed) == 400,
          "no timing");
    CHECK(cuEventCreate(&e, 64) == 1 && !cuStreamWaitEvent(NULL, f, 0), "flags");
}

static void graphs(void) {
    rig r;
    CUstream s;
    CUgraph g;
    CUgraphExec x;
    CUmodule m;
    CUfunction e;
    ptxsim_counters c;
    uint32_t out[64];
    int status, i;
    open_rig(&r);
    cuStreamCreate(&s, CU_STREAM_NON_BLOCKING);
    CHECK(!add(&r, 0, r.a, r.b, s) && !cuStreamSynchronize(s), "warm up");
    CHECK(!cuStreamBeginCapture_v2(s, CU_CAPTURE_GLOBAL), "begin");
    CHECK(!cuStreamIsCapturing(s, &status) && status == 1, "capturing");
    CHECK(cuStreamBeginCapture_v2(s, CU_CAPTURE_GLOBAL) == 1, "twice");
    CHECK(!cuMemcpyHtoDAsync_v2(r.a, r.host, sizeof r.host, s) && !add(&r, 1, r.a, r.b, s), "nodes");
    CHECK(!add(&r, 1, r.b, r.b, s), "nodes");
    CHECK(!cuStreamEndCapture(s, &g) && g, "end");
    CHECK(!cuStreamIsCapturing(s, &status) && status == 0, "no longer");
    CHECK(!cuGraphInstantiateWithFlags(&x, g, 0) && !cuGraphDestroy(g), "instantiate");
    ptxsim_reset_counters();
    for (i = 0; i < 3; i++) {
        r.host[5] = 1000 * (uint32_t)i;
        CHECK(!cuGraphLaunch(x, s) && !cuMemcpyDtoHAsync_v2(out, r.b, sizeof out, s) && !cuStreamSynchronize(s),
              "launch");
        CHECK(out[5] == 1000 * (uint32_t)i + 2, "a copy in a graph reads its source at each replay: %u",
              (unsigned)out[5]);
    }
    ptxsim_get_counters(&c);
    CHECK(ptxsim_launches("k") == 6 && c.launches == 6 && c.copies_to_device == 3, "%llu launches, %llu copies",
          (unsigned long long)c.launches, (unsigned long long)c.copies_to_device);
    CHECK(c.synchronisations == 3 && c.allocations == 0, "%llu waits", (unsigned long long)c.synchronisations);
    /* destroyed while a launch is pending: it still runs */
    r.host[5] = 50;
    CHECK(!cuGraphLaunch(x, s) && !cuGraphExecDestroy(x) && cuGraphLaunch(x, s) == 400, "destroy");
    CHECK(!cuMemcpyDtoHAsync_v2(out, r.b, sizeof out, s) && !cuStreamSynchronize(s) && out[5] == 52, "%u",
          (unsigned)out[5]);
    CHECK(cuGraphExecDestroy(x) == 400 && cuGraphDestroy(g) == 400, "gone");
    /* replayed with a kernel that is gone */
    CHECK(!load_text(&m, PTX_HEAD ".visible .entry e() { ret; }") && !cuModuleGetFunction(&e, m, "e"), "module");
    CHECK(!cuStreamBeginCapture_v2(s, CU_CAPTURE_RELAXED) &&
          !cuLaunchKernel(e, 1, 1, 1, 1, 1, 1, 0, s, NULL, NULL) && !cuStreamEndCapture(s, &g), "capture");
    CHECK(!cuModuleUnload(m) && !cuGraphInstantiateWithFlags(&x, g, 0) && !cuGraphLaunch(x, s), "unload");
    CHECK(cuStreamSynchronize(s) == 700 && ptxsim_reports(PTXSIM_HOST) == 1, "%s", ptxsim_last_report());
    ptxsim_recover();
    /* replayed into memory that is gone */
    CHECK(!cuStreamBeginCapture_v2(s, CU_CAPTURE_RELAXED) && !cuMemsetD32Async(r.b, 1, 4, s), "capture");
    CHECK(!cuStreamEndCapture(s, &g) && !cuGraphInstantiateWithFlags(&x, g, 0) && !cuMemFree_v2(r.b), "free");
    CHECK(!cuGraphLaunch(x, s) && cuStreamSynchronize(s) == 700 && ptxsim_reports(PTXSIM_HOST) == 1, "%s",
          ptxsim_last_report());
    ptxsim_recover();
    CHECK(!cuStreamBeginCapture_v2(s, CU_CAPTURE_RELAXED) && !cuMemcpyDtoHAsync_v2(out, r.a, 4, s), "capture");
    CHECK(!cuStreamEndCapture(s, &g) && !cuGraphInstantiateWithFlags(&x, g, 0) && !cuGraphLaunch(x, s), "a copy");
    CHECK(!cuStreamSynchronize(s) && ptxsim_reports(-1) == 0, "as long as the memory is there");
    CHECK(!cuMemFree_v2(r.a) && !cuGraphLaunch(x, s) && cuStreamSynchronize(s) == 700 &&
          ptxsim_reports(PTXSIM_HOST) == 1, "%s", ptxsim_last_report());
}

/* What spoils a capture, and which code each thing gives. */
static void capture_violations(void) {
    rig r;
    CUstream s, blocking, other;
    CUgraph g;
    CUevent e, outside;
    CUdeviceptr p;
    CUmodule m;
    void *pinned;
    int mode, status;
    uint32_t out[64];
    open_rig(&r);
    cuStreamCreate(&s, CU_STREAM_NON_BLOCKING);
    cuStreamCreate(&blocking, CU_STREAM_DEFAULT);
    cuStreamCreate(&other, CU_STREAM_NON_BLOCKING);
    cuEventCreate(&e, 0);
    cuEventCreate(&outside, 0);
    CHECK(cuStreamBeginCapture_v2(NULL, 0) == 900, "the default stream cannot be captured");
    CHECK(cuStreamEndCapture(s, &g) == 1, "not capturing");
#define SPOILED_BY(call, code)                                                                                        \
    do {                                                                                                              \
        CHECK(!cuStreamBeginCapture_v2(s, CU_CAPTURE_GLOBAL), "begin");                                               \
        CHECK((call) == (code), #call);                                                                               \
        CHECK(!cuStreamIsCapturing(s, &status) && status == 2, "%d after " #call, status);                           \
        CHECK(add(&r, 1, r.a, r.b, s) == 901, "spoiled");                                                             \
        CHECK(cuStreamEndCapture(s, &g) == 901 && !g, "after " #call);                                                \
    } while (0)
    SPOILED_BY(cuMemAlloc_v2(&p, 16), 900);
    SPOILED_BY(cuMemFree_v2(r.b), 900);
    SPOILED_BY(cuMemAllocHost_v2(&pinned, 16), 900);
    SPOILED_BY(cuMemFreeHost(NULL), 900);
    SPOILED_BY(cuModuleUnload(NULL), 900);
    SPOILED_BY(cuMemcpyHtoD_v2(r.a, out, 4), 900);
    SPOILED_BY(cuMemsetD32_v2(r.a, 0, 1), 900);
    SPOILED_BY(cuMemsetD8_v2(r.a, 0, 1), 900);
    SPOILED_BY(cuMemcpyDtoD_v2(r.a, r.b, 4), 900);
    SPOILED_BY(cuModuleLoadData(&m, PTX_HEAD), 900);
    SPOILED_BY(cuCtxSynchronize(), 900);
    SPOILED_BY(cuStreamSynchronize(s), 900);
    SPOILED_BY(cuStreamQuery(s), 900);
    SPOILED_BY(cuMemcpyDtoH_v2(out, r.a, 4), 900);
    SPOILED_BY(cuStreamDestroy_v2(s), 900);
    SPOILED_BY(cuEventRecord(e, s) ? 0 : cuEventSynchronize(e), 907);
    SPOILED_BY(cuEventRecord(e, s) ? 0 : cuEventQuery(e), 907);
    SPOILED_BY(cuEventRecord(outside, other) ? 0 : cuStreamWaitEvent(s, outside, 0), 905);
#undef SPOILED_BY
    CHECK(!cuStreamBeginCapture_v2(blocking, CU_CAPTURE_THREAD_LOCAL), "begin");
    CHECK(add(&r, 1, r.a, r.b, NULL) == 906, "the default stream while a blocking one is captured");
    CHECK(cuStreamEndCapture(blocking, &g) == 901, "spoiled");
    /* another stream joins by an event, and must come back */
    CHECK(!cuStreamBeginCapture_v2(s, CU_CAPTURE_GLOBAL) && !cuEventRecord(e, s), "begin");
    CHECK(!cuStreamWaitEvent(other, e, 0) && !add(&r, 1, r.a, r.b, other), "fork");
    CHECK(cuStreamEndCapture(other, &g) == 903, "not where it began");
    CHECK(cuStreamEndCapture(s, &g) == 901, "spoiled by that");
    CHECK(!cuStreamBeginCapture_v2(s, CU_CAPTURE_GLOBAL) && !cuEventRecord(e, s), "begin");
    CHECK(!cuStreamWaitEvent(other, e, 0) && !add(&r, 1, r.a, r.b, other), "fork");
    CHECK(cuStreamEndCapture(s, &g) == 904 && !g, "not joined");
    CHECK(!cuStreamBeginCapture_v2(s, CU_CAPTURE_GLOBAL) && !cuEventRecord(e, s), "begin");
    CHECK(!cuStreamWaitEvent(other, e, 0) && !add(&r, 1, r.a, r.b, other), "fork");
    CHECK(!cuEventRecord(e, other) && !cuStreamWaitEvent(s, e, 0), "join");
    CHECK(!cuStreamEndCapture(s, &g) && g, "joined");
    CHECK(!cuGraphDestroy(g), "destroy");
    /* a relaxed capture, or a relaxed thread, may allocate */
    CHECK(!cuStreamBeginCapture_v2(s, CU_CAPTURE_RELAXED) && !cuMemAlloc_v2(&p, 16) && !cuMemFree_v2(p), "relaxed");
    CHECK(!cuStreamEndCapture(s, &g) && !cuGraphDestroy(g), "end");
    mode = CU_CAPTURE_RELAXED;
    CHECK(!cuThreadExchangeStreamCaptureMode(&mode) && mode == CU_CAPTURE_GLOBAL, "exchange");
    CHECK(!cuStreamBeginCapture_v2(s, CU_CAPTURE_GLOBAL) && !cuMemAlloc_v2(&p, 16), "relaxed thread");
    CHECK(!cuStreamEndCapture(s, &g) && !cuGraphDestroy(g), "end");
    /* a context that goes while two streams are captured together */
    CHECK(!cuStreamBeginCapture_v2(s, CU_CAPTURE_RELAXED) && !cuEventRecord(e, s), "begin");
    CHECK(!cuStreamWaitEvent(other, e, 0) && !add(&r, 1, r.a, r.b, other), "fork");
    CHECK(!cuDevicePrimaryCtxRelease_v2(0) && ptxsim_leaks() == 0, "release");
    ptxsim_recover();
}

static void sticky_errors(void) {
    rig r;
    CUdeviceptr p;
    uint32_t out;
    const char *name;
    open_rig(&r);
    CHECK(!add(&r, 1, r.a + 4, r.b, NULL), "submitting cannot know");
    CHECK(cuCtxSynchronize() == 700 && cuCtxSynchronize() == 700, "one word too far");
    CHECK(cuMemAlloc_v2(&p, 4) == 700 && cuMemcpyDtoH_v2(&out, r.a, 4) == 700, "nothing works any more");
    CHECK(cuGetErrorName(700, &name) == 0 && !strcmp(name, "CUDA_ERROR_ILLEGAL_ADDRESS"), "%s", name);
    CHECK(cuGetErrorString(719, &name) == 0 && !strcmp(name, "unspecified launch failure"), "%s", name);
    CHECK(cuGetErrorName(12345, &name) == 1 && !name, "no such code");
    cuDevicePrimaryCtxRelease_v2(0);
    cuDevicePrimaryCtxRetain(&test_context, 0);
    CHECK(cuMemAlloc_v2(&p, 4) == 0, "a new context does");
}

/* The k-th call of an entry point, and the k-th call of all. */
static void faults(void) {
    rig r;
    CUdeviceptr p[3];
    const char *name;
    int k;
    open_rig(&r);
    ptxsim_set("PTXSIM_FAIL", "cuMemAlloc_v2:2");
    CHECK(cuMemAlloc_v2(&p[0], 16) == 0 && cuMemAlloc_v2(&p[1], 16) == 2 && cuMemAlloc_v2(&p[2], 16) == 0,
          "the second");
    ptxsim_set("PTXSIM_FAIL", "cuLaunchKernel:1:701");
    CHECK(add(&r, 1, r.a, r.b, NULL) == 701 && add(&r, 1, r.a, r.b, NULL) == 0, "with a code");
    for (k = 1; k <= 4; k++) {
        char fault[20];
        int failed = 0;
        snprintf(fault, sizeof fault, "*:%d:46", k);
        ptxsim_set("PTXSIM_FAIL", fault);
        failed += add(&r, 1, r.a, r.b, NULL) == 46;
        failed += 2 * (cuMemcpyDtoH_v2(r.host, r.b, 4) == 46);
        failed += 4 * (cuCtxSynchronize() == 46);
        CHECK(failed == (k == 4 ? 0 : 1 << (k - 1)), "call %d of all: %d", k, failed);
    }
    ptxsim_set("PTXSIM_FAIL", "cuGetErrorName:1:46");
    CHECK(cuGetErrorName(0, &name) == 46 && !name && !cuGetErrorName(0, &name) && name, "even a name");
    ptxsim_set("PTXSIM_FAIL", "cuGetErrorString:1:46");
    CHECK(cuGetErrorString(0, &name) == 46 && !name && !cuGetErrorString(0, &name) && name, "and a sentence");
    CHECK(ptxsim_set("PTXSIM_NONSENSE", "1") == -1, "no such setting");
}

/* Every call of a small program fails once: the program sees each failure, and goes on as soon as none is planned. */
static int small_program(void) {
    rig r;
    CUmodule m;
    uint32_t out[64];
    int ok;
    memset(&r, 0, sizeof r);
    ok = !cuInit(0) && !cuDevicePrimaryCtxRetain(&test_context, 0) && !cuCtxPushCurrent_v2(test_context) &&
         !load_text(&m, PTX_HEAD ".visible .entry k(.param .u64 p) {\n.reg .u64 d;\nld.param.u64 d, [p];\n"
                                 "st.global.u32 [d], 41;\n}\n") &&
         !cuModuleGetFunction(&r.f, m, "k") && !cuMemAlloc_v2(&r.a, 256);
    r.params[0] = &r.a;
    ok = ok && !cuLaunchKernel(r.f, 1, 1, 1, 1, 1, 1, 0, NULL, r.params, NULL) && !cuMemcpyDtoH_v2(out, r.a, 4) &&
         out[0] == 41 && !cuMemFree_v2(r.a) && !cuModuleUnload(m) && !cuCtxPopCurrent_v2(NULL);
    return ok && !cuDevicePrimaryCtxRelease_v2(0);
}

static void fault_sweep(void) {
    char fault[20];
    int k;
    open_device();
    for (k = 1; k <= 20; k++) {
        ptxsim_reset();
        snprintf(fault, sizeof fault, "*:%d", k);
        ptxsim_set("PTXSIM_FAIL", fault);
        CHECK(small_program() == (k > 12), "call %d", k);
    }
    ptxsim_set("PTXSIM_FAIL", ":0");
}

/* Threads with contexts, streams and buffers of their own. */
static void *one_thread(void *user) {
    rig *r = (rig *)user;
    uint32_t out[64], i;
    CUdeviceptr a, b;
    CUstream s;
    intptr_t bad = cuCtxSetCurrent(test_context) || cuStreamCreate(&s, CU_STREAM_NON_BLOCKING) ||
                   cuMemAlloc_v2(&a, 256) || cuMemAlloc_v2(&b, 256);
    for (i = 0; i < 20 && !bad; i++) {
        memset(out, (int)i, sizeof out);
        bad |= cuMemcpyHtoDAsync_v2(a, out, 256, s) || add(r, i, a, b, s) || cuMemcpyDtoHAsync_v2(out, b, 256, s) ||
               cuStreamSynchronize(s) || out[7] != i * 0x01010101u + i;
    }
    bad |= cuStreamDestroy_v2(s) || cuMemFree_v2(a) || cuMemFree_v2(b);
    return (void *)bad;
}

static void threads(void) {
    pthread_t t[4];
    rig r;
    CUcontext c;
    int i;
    open_rig(&r);
    for (i = 0; i < 4; i++) CHECK(!pthread_create(&t[i], NULL, one_thread, &r), "thread");
    for (i = 0; i < 4; i++) {
        void *bad;
        CHECK(!pthread_join(t[i], &bad) && !bad, "thread %d", i);
    }
    CHECK(!cuCtxGetCurrent(&c) && c == test_context, "a thread changes its own context only");
    CHECK(ptxsim_launches("k") == 80 && ptxsim_reports(-1) == 0, "%s", ptxsim_last_report());
}

/* What a user sees on stderr: that this is no GPU, and at the end what was forgotten. */
static const char *program;

static int hello(void) {
    return cuInit(0) || cuDevicePrimaryCtxRetain(&test_context, 0);
}

static void lines_on_stderr(void) {
    char command[600], text[2000];
    FILE *f;
    size_t n;
    snprintf(command, sizeof command, "PTXSIM_QUIET=0 %s --hello 2>&1", program);
    f = popen(command, "r");
    n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    text[n] = 0;
    CHECK(f && pclose(f) == 0, "%s", command);
    CHECK(strstr(text, "a simulated CUDA device, not a GPU"), "%s", text);
    CHECK(strstr(text, "LEAK: a primary context") && strstr(text, "0 reports, 1 leaks"), "%s", text);
}

static void several_devices(void) {
    CUcontext c[2];
    CUdeviceptr p[2];
    CUfunction f;
    rig r;
    int ordinal;
    open_rig(&r);
    ptxsim_reset();
    ptxsim_set("PTXSIM_DEVICES", "2");
    CHECK(!cuInit(0) && !cuDevicePrimaryCtxRetain(&c[0], 0) && !cuDevicePrimaryCtxRetain(&c[1], 1), "two devices");
    CHECK(!cuCtxSetCurrent(c[0]) && !cuMemAlloc_v2(&p[0], 256), "on 0");
    CHECK(!cuCtxPushCurrent_v2(c[1]) && !cuMemAlloc_v2(&p[1], 256), "on 1");
    CHECK(!cuPointerGetAttribute(&ordinal, 9, p[0]) && ordinal == 0, "%d", ordinal);
    CHECK(!cuPointerGetAttribute(&ordinal, 9, p[1]) && ordinal == 1, "%d", ordinal);
    CHECK(cuMemsetD32Async(p[0], 0, 64, NULL) == 1, "memory of the other device");
    CHECK(!cuMemsetD32Async(p[1], 0, 64, NULL), "of this one");
    r.f = f = kernel_around("", ADD);
    CHECK(!add(&r, 1, p[1], p[0], NULL) && cuCtxSynchronize() == 700, "a kernel, too");
    CHECK(!cuCtxPopCurrent_v2(NULL) && cuCtxSynchronize() == 0, "the other device is well");
    CHECK(cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 0, NULL, r.params, NULL) == 400, "a function of the other context");
}

static void leaks(void) {
    rig r;
    CUstream s;
    CUevent e;
    CUgraph g;
    CUgraphExec x;
    void *p;
    int before;
    open_rig(&r);
    before = ptxsim_leaks();
    CHECK(before == 4 && ptxsim_reports(PTXSIM_LEAK) == 4, "two buffers, a module, a context: %d", before);
    cuStreamCreate(&s, 0);
    cuEventCreate(&e, 0);
    cuMemAllocHost_v2(&p, 4);
    cuStreamBeginCapture_v2(s, CU_CAPTURE_RELAXED);
    cuStreamEndCapture(s, &g);
    cuGraphInstantiateWithFlags(&x, g, 0);
    CHECK(ptxsim_leaks() == 9, "and five more: %d", ptxsim_leaks());
    cuGraphExecDestroy(x);
    cuGraphDestroy(g);
    cuMemFreeHost(p);
    cuEventDestroy_v2(e);
    cuStreamDestroy_v2(s);
    CHECK(ptxsim_leaks() == before, "%d", ptxsim_leaks());
    cuDevicePrimaryCtxRelease_v2(0);
    CHECK(ptxsim_leaks() == 0, "the context takes all with it: %s", ptxsim_last_report());
    ptxsim_recover();
}

/* Two modules after another: the second one's report is told, too, wherever its code lies. */
static void reports_of_later_modules(void) {
    CUmodule m;
    CUfunction f;
    int i;
    open_device();
    ptxsim_set("PTXSIM_STRICT", "0");
    for (i = 0; i < 2; i++) {
        const char *text = i ? PTX_HEAD ".visible .entry second() {\n.reg .b32 r;\nld.global.u32 r, [0];\n}\n"
                             : PTX_HEAD ".visible .entry first() {\n.reg .b32 r;\nld.global.u32 r, [0];\n}\n";
        CHECK(!load_text(&m, text) && !cuModuleGetFunction(&f, m, i ? "second" : "first"), "%s", test_log);
        CHECK(launch(f, 1, 1, NULL) == 700 && strstr(ptxsim_last_report(), i ? "second" : "first"), "%s",
              ptxsim_last_report());
        cuDevicePrimaryCtxRelease_v2(0);
        cuDevicePrimaryCtxRetain(&test_context, 0);
    }
    CHECK(ptxsim_reports(PTXSIM_BOUNDS) == 2, "%d reports", ptxsim_reports(PTXSIM_BOUNDS));
    ptxsim_recover();
}

/* Seeds change the order of blocks and warps: a ticket shows it. The same seed gives the same order. */
static void seeds(void) {
    static const char *const ticket =
        "setp.ne.u32 p0, r0, 0;\n@p0 ret;\natom.global.add.u32 r8, [d0], 1;\nmul.wide.u32 d8, r1, 4;\n"
        "add.u64 d8, d1, d8;\n"
        "st.global.u32 [d8], r8;";
    uint32_t out[4][64], zero = 0, n = 0;
    static const char *const values[4] = { "0", "1", "1", "2" };
    CUdeviceptr a, b;
    void *params[3];
    CUfunction f;
    int run, i;
    open_device();
    f = kernel_around("", ticket);
    for (run = 0; run < 4; run++) {
        ptxsim_set("PTXSIM_SEED", values[run]);
        a = upload(&zero, 4);
        b = upload(NULL, 256);
        params[0] = &a;
        params[1] = &b;
        params[2] = &n;
        CHECK(!launch(f, 64, 32, params), "%s", ptxsim_last_report());
        cuMemcpyDtoH_v2(out[run], b, 256);
    }
    for (i = 0; i < 64; i++) CHECK(out[0][i] == (uint32_t)i, "without a seed in order: %u", (unsigned)out[0][i]);
    CHECK(memcmp(out[0], out[1], 256) != 0, "a seed changes it");
    CHECK(memcmp(out[1], out[2], 256) == 0, "the same way each time");
    CHECK(memcmp(out[1], out[3], 256) != 0, "another seed another way");
}

static void counting(void) {
    ptxsim_counters c;
    rig r;
    CUfunction f;
    open_rig(&r);
    ptxsim_reset_counters();
    CHECK(!add(&r, 1, r.a, r.b, NULL) && !cuCtxSynchronize(), "launch");
    ptxsim_get_counters(&c);
    CHECK(c.global_loads == 2 && c.global_load_bytes == 256 && c.global_load_sectors == 8, "%llu bytes in %llu sectors",
          (unsigned long long)c.global_load_bytes, (unsigned long long)c.global_load_sectors);
    CHECK(c.global_stores == 2 && c.global_store_bytes == 256 && c.global_store_sectors == 8, "stores");
    CHECK(c.instructions == 24 && c.lanes == 24 * 32 && c.memory == 10 && c.api_calls == 2,
          "%llu instructions, %llu memory",
          (unsigned long long)c.instructions, (unsigned long long)c.memory);
    CHECK(c.integer + c.move + c.control + c.memory == c.instructions, "classes");
    f = kernel_around(".shared .align 16 .b8 s[4096];\n",
                      "shl.b32 r8, r0, 3;\nmov.u32 r9, s;\nadd.u32 r9, r9, r8;\nst.shared.u32 [r9], r0;\nbar.sync 0;");
    ptxsim_reset_counters();
    CHECK(!launch(f, 1, 32, r.params), "%s", ptxsim_last_report());
    ptxsim_get_counters(&c);
    CHECK(c.shared_requests == 1 && c.shared_waves == 2 && c.barriers == 1, "a stride of two words: %llu waves",
          (unsigned long long)c.shared_waves);
}

/* Functions by name and version, as programs ask that are linked with no driver. */
static void functions_by_name(void) {
    void *p = NULL;
    int status = -1;
    CUdeviceptr address;
    CUresult (*allocate)(CUdeviceptr *, size_t);
    open_device();
    CHECK(!cuGetProcAddress_v2("cuMemAlloc", &p, 12000, 0, &status) && p && status == 0, "%d", status);
    memcpy(&allocate, &p, sizeof p);
    CHECK(p && !allocate(&address, 16) && !cuMemFree_v2(address), "cuMemAlloc is cuMemAlloc_v2");
    CHECK(!cuGetProcAddress_v2("cuInit", &p, 13000, 1, NULL) && p, "cuInit");
    CHECK(cuGetProcAddress_v2("cuMemAllocate", &p, 12000, 0, &status) == 500 && !p && status == 1, "%d", status);
    CHECK(cuGetProcAddress_v2("ptxsim_reset", &p, 12000, 0, &status) == 500 && !p && status == 1, "%d", status);
    CHECK(cuGetProcAddress_v2("cuInit", &p, 11080, 0, &status) == 500 && !p && status == 2, "%d", status);
    CHECK(cuGetProcAddress_v2("cuInit", NULL, 12000, 0, &status) == 1, "nowhere");
    CHECK(cuGetProcAddress_v2("", &p, 12000, 0, &status) == 1 && cuGetProcAddress_v2(NULL, &p, 12000, 0, NULL) == 1,
          "no name");
    CHECK(cuGetProcAddress_v2("cuInit", &p, 12000, 2, &status) == 1, "streams of a thread");
}

/* The library as programs find it: the right names, and no old ones. */
static void exported_names(void) {
    static const char *const there[] = { "cuInit", "cuMemAlloc_v2", "cuStreamBeginCapture_v2", "cuGetExportTable",
                                         "cuGraphInstantiateWithFlags", "ptxsim_reports", "ptxsim_form" };
    static const char *const absent[] = { "cuMemAlloc", "cuMemFree", "cuMemcpyHtoD", "cuCtxPushCurrent",
                                          "cuStreamBeginCapture",
                                          "cuDevicePrimaryCtxRelease", "cuGraphInstantiate", "sim_launch",
                                              "parse_operand" };
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    size_t i;
    CHECK(library, "%s", dlerror());
    for (i = 0; library && i < sizeof there / sizeof *there; i++) CHECK(dlsym(library, there[i]), "%s", there[i]);
    for (i = 0; library && i < sizeof absent / sizeof *absent; i++) CHECK(!dlsym(library, absent[i]), "%s", absent[i]);
    if (library) dlclose(library);
}

/* Variables of a module are memory of the device that goes with the module. */
static void variables(void) {
    CUmodule module = NULL;
    CUdeviceptr p = 0;
    size_t bytes = 0;
    uint32_t words[2] = { 0, 0 };
    open_device();
    CHECK(!load_text(&module, PTX_HEAD ".global .align 4 .u32 first = 5;\n.global .align 8 .u32 g[2] = {77, 78};\n"),
          "%s", test_log);
    CHECK(!cuModuleGetGlobal_v2(&p, &bytes, module, "g") && p && bytes == 8, "%lu bytes", (unsigned long)bytes);
    CHECK(!cuMemcpyDtoH_v2(words, p, 8) && words[0] == 77 && words[1] == 78, "%u %u", (unsigned)words[0],
          (unsigned)words[1]);
    CHECK(!cuModuleGetGlobal_v2(NULL, &bytes, module, "first") && bytes == 4, "the address is not asked for");
    CHECK(!cuModuleGetGlobal_v2(&p, NULL, module, "first") && !cuMemcpyDtoH_v2(words, p, 4) && words[0] == 5, "first");
    CHECK(cuModuleGetGlobal_v2(&p, &bytes, module, "h") == 500, "no such variable");
    CHECK(cuMemFree_v2(p) == 1, "not the caller's to free");
    CHECK(!cuModuleUnload(module) && cuMemcpyDtoH_v2(words, p, 4) == 1, "gone");
}

int main(int argc, char **argv) {
    program = argv[0];
    if (argc > 1 && !strcmp(argv[1], "--hello")) return hello();
    if (argc > 1) test.only = argv[1];
    test_run("driver: start, contexts", start);
    test_run("driver: attributes", attributes);
    test_run("driver: memory", memory);
    test_run("driver: variables of a module", variables);
    test_run("driver: limits of a launch", launch_limits);
    test_run("driver: attributes of a launch", launch_attributes);
    test_run("driver: lazy streams", lazy_streams);
    test_run("driver: the default stream", default_stream);
    test_run("driver: events", events);
    test_run("driver: graphs", graphs);
    test_run("driver: violations of a capture", capture_violations);
    test_run("driver: errors that stay", sticky_errors);
    test_run("driver: faults", faults);
    test_run("driver: every call fails once", fault_sweep);
    test_run("driver: several devices", several_devices);
    test_run("driver: threads", threads);
    test_run("driver: lines on stderr", lines_on_stderr);
    test_run("driver: leaks", leaks);
    test_run("driver: reports of later modules", reports_of_later_modules);
    test_run("driver: seeds", seeds);
    test_run("driver: counters", counting);
    test_run("driver: functions by name", functions_by_name);
    test_run("driver: exported names", exported_names);
    return test_close("sim_driver");
}
