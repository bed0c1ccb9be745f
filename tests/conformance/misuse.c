/* misuse.c - what the driver returns for calls that are wrong: launches, images, handles, memory, kernels that fault,
   captures. Every case is a sequence of codes. No handle is used after its end; what may crash a driver, such as a NULL
   where it wants memory, stands alone. */
#include "conformance.h"
#include "driver.h"

#include <stdio.h>
#include <string.h>

#define HEAD ".version 6.3\n.target sm_75\n.address_size 64\n"
#define CODE(call) code(user, d->call)

typedef void take_code(void *user, int result);

/* ---- a device with a kernel ------------------------------------------------------------------------------------ */

typedef struct rig {
    CUcontext context;
    CUmodule module;
    CUfunction f;
    CUdeviceptr p;
    void *params[1];
} rig;

static int open_rig(const conf_driver *d, rig *r, const char *text) {
    CUdevice device;
    int bad = d->cuInit(0) || d->cuDeviceGet(&device, 0) || d->cuDevicePrimaryCtxRetain(&r->context, device);
    bad = bad || d->cuCtxPushCurrent_v2(r->context) || d->cuModuleLoadData(&r->module, text);
    bad = bad || d->cuModuleGetFunction(&r->f, r->module, "k") || d->cuMemAlloc_v2(&r->p, 4096);
    bad = bad || d->cuMemsetD8_v2(r->p, 0, 4096);
    r->params[0] = &r->p;
    return bad;
}

#define KERNEL(body)                                                                                                  \
    HEAD ".visible .entry k(.param .u64 a)\n{\n.reg .b32 r<4>;\n.reg .b64 d<4>;\n.shared .align 8 .b8 s[64];\n"        \
         "ld.param.u64 d0, [a];\nmov.u32 r0, %tid.x;\n" body "\nret;\n}\n"

static const char *const plain = KERNEL("st.global.u32 [d0], 7;");

#define OPEN(text)                                                                                                    \
    rig r;                                                                                                            \
    memset(&r, 0, sizeof r);                                                                                          \
    code(user, open_rig(d, &r, text));

static int launch(const conf_driver *d, const rig *r, CUstream s) {
    return d->cuLaunchKernel(r->f, 1, 1, 1, 1, 1, 1, 0, s, (void **)(uintptr_t)r->params, NULL);
}

/* ---- before there is a context --------------------------------------------------------------------------------- */

static void without_init(const conf_driver *d, take_code *code, void *user) {
    CUdeviceptr p;
    CUdevice device;
    int n;
    CODE(cuDeviceGetCount(&n));
    CODE(cuDeviceGet(&device, 0));
    CODE(cuMemAlloc_v2(&p, 16));
    CODE(cuInit(1));
}

static void without_context(const conf_driver *d, take_code *code, void *user) {
    CUdeviceptr p;
    CUmodule m;
    CUstream s;
    CUdevice device;
    int value;
    CODE(cuInit(0));
    CODE(cuMemAlloc_v2(&p, 16));
    CODE(cuModuleLoadData(&m, plain));
    CODE(cuStreamCreate(&s, 0));
    CODE(cuCtxSynchronize());
    CODE(cuCtxPopCurrent_v2(NULL));
    CODE(cuDeviceGet(&device, 99));
    CODE(cuDeviceGet(&device, -1));
    CODE(cuDeviceGetAttribute(&value, 75, 99));
    CODE(cuDeviceGetAttribute(&value, 0, 0));
}

/* ---- launches -------------------------------------------------------------------------------------------------- */

static void bad_launches(const conf_driver *d, take_code *code, void *user) {
    static const unsigned shapes[][7] = {
        { 0, 1, 1, 32, 1, 1, 0 },     { 1, 0, 1, 32, 1, 1, 0 },    { 1, 1, 0, 32, 1, 1, 0 },
        { 1, 1, 1, 0, 1, 1, 0 },      { 1, 1, 1, 1025, 1, 1, 0 },  { 1, 1, 1, 32, 33, 1, 0 },
        { 1, 1, 1, 1, 1, 65, 0 },     { 1, 65536, 1, 1, 1, 1, 0 }, { 1, 1, 65536, 1, 1, 1, 0 },
        { 2147483648u, 1, 1, 1, 1, 1, 0 }, { 1, 1, 1, 32, 1, 1, 49152 }, { 1, 1, 1, 32, 1, 1, 1 << 20 },
    };
    size_t i;
    OPEN(plain)
    for (i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const unsigned *s = shapes[i];
        CODE(cuLaunchKernel(r.f, s[0], s[1], s[2], s[3], s[4], s[5], s[6], NULL, r.params, NULL));
    }
    CODE(cuLaunchKernel(NULL, 1, 1, 1, 1, 1, 1, 0, NULL, r.params, NULL));
    CODE(cuCtxSynchronize());
}

static void limited_launches(const conf_driver *d, take_code *code, void *user) {
    OPEN(HEAD ".visible .entry k(.param .u64 a)\n.maxntid 96, 1, 1\n{\nret;\n}\n")
    CODE(cuLaunchKernel(r.f, 1, 1, 1, 96, 1, 1, 0, NULL, r.params, NULL));
    CODE(cuLaunchKernel(r.f, 1, 1, 1, 97, 1, 1, 0, NULL, r.params, NULL));
    CODE(cuLaunchKernel(r.f, 1, 1, 1, 32, 2, 1, 0, NULL, r.params, NULL));
    CODE(cuCtxSynchronize());
}

static void shared_memory(const conf_driver *d, take_code *code, void *user) {
    int limit = 0;
    OPEN(HEAD ".visible .entry k(.param .u64 a)\n{\nret;\n}\n")
    CODE(cuDeviceGetAttribute(&limit, 97, 0));
    CODE(cuLaunchKernel(r.f, 1, 1, 1, 32, 1, 1, 49152, NULL, r.params, NULL));
    CODE(cuLaunchKernel(r.f, 1, 1, 1, 32, 1, 1, 49153, NULL, r.params, NULL));
    CODE(cuFuncSetAttribute(r.f, 8, limit + 1));
    CODE(cuFuncSetAttribute(r.f, 8, -1));
    CODE(cuFuncSetAttribute(r.f, 8, 50000));
    CODE(cuLaunchKernel(r.f, 1, 1, 1, 32, 1, 1, 50000, NULL, r.params, NULL));
    CODE(cuLaunchKernel(r.f, 1, 1, 1, 32, 1, 1, 50001, NULL, r.params, NULL));
    CODE(cuFuncSetAttribute(r.f, 9, 50));
    CODE(cuFuncSetAttribute(r.f, 1, 5));
    CODE(cuCtxSynchronize());
}

/* ---- images and names ------------------------------------------------------------------------------------------ */

static void bad_images(const conf_driver *d, take_code *code, void *user) {
    static const char *const images[] = {
        "hello",
        "",
        HEAD ".visible .entry k() { ret;",
        HEAD ".visible .entry k() { add.v7.u32 r0, r1, r2; ret; }",
        HEAD ".visible .entry k() { bra NOWHERE; }",
        ".version 99.0\n.target sm_75\n.address_size 64\n",
        ".version 6.3\n.target sm_999\n.address_size 64\n",
        ".version 6.3\n.target sm_80\n.address_size 64\n",
    };
    CUmodule m;
    size_t i;
    OPEN(plain)
    for (i = 0; i < sizeof images / sizeof *images; i++) CODE(cuModuleLoadData(&m, images[i]));
    CODE(cuModuleLoadData(&m, HEAD));
    CODE(cuCtxSynchronize());
}

/* A target of a device that is still to come, with PTX that knows it: depends on the device, so only the refusal. */
static void later_target(const conf_driver *d, take_code *code, void *user) {
    int major = 0;
    CUmodule m;
    OPEN(plain)
    CODE(cuDeviceGetAttribute(&major, 75, 0));
    if (major < 9) CODE(cuModuleLoadData(&m, ".version 8.0\n.target sm_90\n.address_size 64\n"));
    else if (major == 9) CODE(cuModuleLoadData(&m, ".version 8.6\n.target sm_100\n.address_size 64\n"));
    else CODE(cuModuleLoadData(&m, ".version 8.0\n.target sm_90a\n.address_size 64\n"));
}

static void unknown_names(const conf_driver *d, take_code *code, void *user) {
    CUfunction f;
    CUdeviceptr p;
    size_t bytes;
    OPEN(plain)
    CODE(cuModuleGetFunction(&f, r.module, "none"));
    CODE(cuModuleGetFunction(&f, r.module, ""));
    CODE(cuModuleGetGlobal_v2(&p, &bytes, r.module, "none"));
    CODE(cuModuleGetGlobal_v2(&p, &bytes, r.module, "k"));
    CODE(cuModuleGetFunction(&f, NULL, "k"));
    CODE(cuModuleUnload(NULL));
}

/* ---- memory ---------------------------------------------------------------------------------------------------- */

static void bad_memory(const conf_driver *d, take_code *code, void *user) {
    uint32_t host[4] = { 0, 0, 0, 0 };
    CUdeviceptr p;
    void *h;
    unsigned kind = 0;
    OPEN(plain)
    CODE(cuMemAlloc_v2(&p, 0));
    CODE(cuMemAlloc_v2(&p, (size_t)1 << 46));
    CODE(cuMemFree_v2(0));
    CODE(cuMemFree_v2(r.p + 256));
    CODE(cuMemFree_v2(12345));
    CODE(cuMemAllocHost_v2(&h, 0));
    CODE(cuMemcpyHtoD_v2(0, host, 16));
    CODE(cuMemcpyDtoH_v2(host, 0, 16));
    CODE(cuMemcpyDtoD_v2(r.p, 0, 16));
    CODE(cuMemcpyHtoD_v2(r.p, host, 0));
    CODE(cuMemsetD32_v2(r.p + 2, 0, 1));
    CODE(cuMemsetD32_v2(0, 0, 1));
    CODE(cuMemsetD8_v2(r.p + 1, 0, 3));
    CODE(cuMemsetD32_v2(r.p, 0, 0));
    CODE(cuPointerGetAttribute(&kind, 2, r.p));
    CODE(cuPointerGetAttribute(&kind, 2, 12345));
    CODE(cuCtxSynchronize());
    CODE(cuMemFree_v2(r.p));
    CODE(cuMemFree_v2(r.p));
}

/* One call that a driver may not survive. */
#define ALONE(name, call)                                                                                             \
    static void name(const conf_driver *d, take_code *code, void *user) {                                             \
        static const char elf[4096] = "\177ELF";                                                                      \
        CUmodule m = NULL;                                                                                            \
        OPEN(plain)                                                                                                   \
        code(user, call);                                                                                             \
        (void)elf;                                                                                                    \
        (void)m;                                                                                                      \
    }

ALONE(null_alloc, d->cuMemAlloc_v2(NULL, 16))
ALONE(null_source, d->cuMemcpyHtoD_v2(r.p, NULL, 16))
ALONE(null_target, d->cuMemcpyDtoH_v2(NULL, r.p, 16))
ALONE(null_image, d->cuModuleLoadData(&m, NULL))
ALONE(empty_elf, d->cuModuleLoadData(&m, elf))
ALONE(null_params, d->cuLaunchKernel(r.f, 1, 1, 1, 1, 1, 1, 0, NULL, NULL, NULL))

/* ---- kernels that fault ---------------------------------------------------------------------------------------- */

/* Launch, wait, wait again, and what then still works. */
static void fault(const conf_driver *d, take_code *code, void *user, const char *text) {
    CUdeviceptr p;
    CUstream s;
    uint32_t host;
    OPEN(text)
    code(user, launch(d, &r, NULL));
    CODE(cuCtxSynchronize());
    CODE(cuCtxSynchronize());
    CODE(cuMemAlloc_v2(&p, 16));
    CODE(cuMemcpyDtoH_v2(&host, r.p, 4));
    CODE(cuStreamCreate(&s, 0));
    code(user, launch(d, &r, NULL));
}

#define FAULT(name, body)                                                                                             \
    static void name(const conf_driver *d, take_code *code, void *user) {                                             \
        fault(d, code, user, KERNEL(body));                                                                           \
    }

FAULT(null_read, "mov.u64 d1, 0;\nld.global.u32 r1, [d1];\nst.global.u32 [d0], r1;")
FAULT(null_write, "mov.u64 d1, 0;\nst.global.u32 [d1], 1;")
FAULT(far_read, "mov.u64 d1, 0x123456789ABC0;\nld.global.u32 r1, [d1];\nst.global.u32 [d0], r1;")
FAULT(far_write, "mov.u64 d1, 0x123456789ABC0;\nst.global.u32 [d1], 1;")
FAULT(far_atomic, "mov.u64 d1, 0x123456789ABC0;\nred.global.add.u32 [d1], 1;")
FAULT(misaligned_read, "ld.global.u32 r1, [d0+2];\nst.global.u32 [d0], r1;")
FAULT(misaligned_write, "st.global.u64 [d0+4], 1;")
FAULT(misaligned_vector, "ld.global.v4.u32 {r0, r1, r2, r3}, [d0+8];\nst.global.u32 [d0], r3;")
FAULT(misaligned_atomic, "red.global.add.u32 [d0+2], 1;")
FAULT(misaligned_shared, "mov.u32 r1, s;\nst.shared.u32 [r1], 1;\nst.shared.u32 [r1+4], 1;\nld.shared.u32 r2, [r1+2];\n"
      "st.global.u32 [d0], r2;")
FAULT(far_shared, "mov.u32 r1, 0x00FF0000;\nadd.u32 r1, r1, r0;\nld.shared.u32 r2, [r1];\nst.global.u32 [d0], r2;")
FAULT(trapped, "trap;")

/* ---- streams and events ---------------------------------------------------------------------------------------- */

static void bad_streams(const conf_driver *d, take_code *code, void *user) {
    CUstream s;
    CUevent e, untimed;
    float ms;
    OPEN(plain)
    CODE(cuStreamCreate(&s, 9));
    CODE(cuEventCreate(&e, 64));
    CODE(cuEventCreate(&e, 0));
    CODE(cuEventCreate(&untimed, CU_EVENT_DISABLE_TIMING));
    CODE(cuEventElapsedTime(&ms, e, e));
    CODE(cuEventQuery(e));
    CODE(cuEventSynchronize(e));
    CODE(cuStreamWaitEvent(NULL, e, 0));
    CODE(cuEventRecord(e, NULL));
    CODE(cuEventRecord(untimed, NULL));
    CODE(cuCtxSynchronize());
    CODE(cuEventElapsedTime(&ms, e, untimed));
    CODE(cuEventElapsedTime(&ms, e, e));
    CODE(cuEventQuery(e));
    CODE(cuStreamQuery(NULL));
}

/* ---- captures -------------------------------------------------------------------------------------------------- */

typedef struct capture_rig {
    rig r;
    CUstream s, other, blocking;
    CUevent e, outside;
    CUgraph g;
} capture_rig;

static int open_capture(const conf_driver *d, capture_rig *c) {
    memset(c, 0, sizeof *c);
    return open_rig(d, &c->r, plain) || d->cuStreamCreate(&c->s, CU_STREAM_NON_BLOCKING) ||
           d->cuStreamCreate(&c->other, CU_STREAM_NON_BLOCKING) || d->cuStreamCreate(&c->blocking, 0) ||
           d->cuEventCreate(&c->e, 0) || d->cuEventCreate(&c->outside, 0);
}

static void capture_edges(const conf_driver *d, take_code *code, void *user) {
    capture_rig c;
    int status = 0;
    code(user, open_capture(d, &c));
    CODE(cuStreamBeginCapture_v2(NULL, 0));
    CODE(cuStreamBeginCapture_v2(c.s, 3));
    CODE(cuStreamEndCapture(c.s, &c.g));
    CODE(cuStreamBeginCapture_v2(c.s, 0));
    CODE(cuStreamBeginCapture_v2(c.s, 0));
    CODE(cuStreamIsCapturing(c.s, &status));
    code(user, status);
    code(user, launch(d, &c.r, c.s));
    CODE(cuStreamEndCapture(c.s, &c.g));
}

/* One call while a stream is captured, whether the capture survives it, a launch behind it, and the end. */
#define WHILE_CAPTURING(name, call)                                                                                   \
    static void name(const conf_driver *d, take_code *code, void *user) {                                             \
        capture_rig c;                                                                                                \
        CUdeviceptr p = 0;                                                                                            \
        CUmodule m = NULL;                                                                                            \
        void *h = NULL;                                                                                               \
        uint32_t host = 0;                                                                                            \
        int status = 0;                                                                                               \
        code(user, open_capture(d, &c));                                                                              \
        CODE(cuStreamBeginCapture_v2(c.s, CU_CAPTURE_GLOBAL));                                                        \
        code(user, call);                                                                                             \
        CODE(cuStreamIsCapturing(c.s, &status));                                                                      \
        code(user, status);                                                                                           \
        code(user, launch(d, &c.r, c.s));                                                                             \
        CODE(cuStreamEndCapture(c.s, &c.g));                                                                          \
        (void)p;                                                                                                      \
        (void)m;                                                                                                      \
        (void)h;                                                                                                      \
        (void)host;                                                                                                   \
    }

WHILE_CAPTURING(capture_alloc, d->cuMemAlloc_v2(&p, 16))
WHILE_CAPTURING(capture_free, d->cuMemFree_v2(c.r.p))
WHILE_CAPTURING(capture_alloc_host, d->cuMemAllocHost_v2(&h, 16))
WHILE_CAPTURING(capture_load, d->cuModuleLoadData(&m, plain))
WHILE_CAPTURING(capture_copy_in, d->cuMemcpyHtoD_v2(c.r.p, &host, 4))
WHILE_CAPTURING(capture_copy_out, d->cuMemcpyDtoH_v2(&host, c.r.p, 4))
WHILE_CAPTURING(capture_copy, d->cuMemcpyDtoD_v2(c.r.p, c.r.p + 64, 4))
WHILE_CAPTURING(capture_fill, d->cuMemsetD32_v2(c.r.p, 0, 1))
WHILE_CAPTURING(capture_wait_context, d->cuCtxSynchronize())
WHILE_CAPTURING(capture_wait_stream, d->cuStreamSynchronize(c.s))
WHILE_CAPTURING(capture_wait_other, d->cuStreamSynchronize(c.other))
WHILE_CAPTURING(capture_query_stream, d->cuStreamQuery(c.s))
WHILE_CAPTURING(capture_query_event, d->cuEventRecord(c.e, c.s) ? -1 : d->cuEventQuery(c.e))
WHILE_CAPTURING(capture_wait_event, d->cuEventRecord(c.e, c.s) ? -1 : d->cuEventSynchronize(c.e))
WHILE_CAPTURING(capture_isolation, d->cuEventRecord(c.outside, c.other) ? -1 : d->cuStreamWaitEvent(c.s, c.outside, 0))
WHILE_CAPTURING(capture_default_stream, launch(d, &c.r, NULL))

static void capture_implicit(const conf_driver *d, take_code *code, void *user) {
    capture_rig c;
    code(user, open_capture(d, &c));
    CODE(cuStreamBeginCapture_v2(c.blocking, CU_CAPTURE_THREAD_LOCAL));
    code(user, launch(d, &c.r, NULL));
    CODE(cuStreamEndCapture(c.blocking, &c.g));
}

/* A second stream joins by an event. */
static void fork_capture(const conf_driver *d, take_code *code, void *user, capture_rig *c) {
    code(user, open_capture(d, c));
    CODE(cuStreamBeginCapture_v2(c->s, CU_CAPTURE_GLOBAL));
    CODE(cuEventRecord(c->e, c->s));
    CODE(cuStreamWaitEvent(c->other, c->e, 0));
    code(user, launch(d, &c->r, c->other));
}

static void capture_unjoined(const conf_driver *d, take_code *code, void *user) {
    capture_rig c;
    fork_capture(d, code, user, &c);
    CODE(cuStreamEndCapture(c.s, &c.g));
}

static void capture_unmatched(const conf_driver *d, take_code *code, void *user) {
    capture_rig c;
    fork_capture(d, code, user, &c);
    CODE(cuStreamEndCapture(c.other, &c.g));
    CODE(cuStreamEndCapture(c.s, &c.g));
}

static void capture_joined(const conf_driver *d, take_code *code, void *user) {
    capture_rig c;
    fork_capture(d, code, user, &c);
    CODE(cuEventRecord(c.e, c.other));
    CODE(cuStreamWaitEvent(c.s, c.e, 0));
    CODE(cuStreamEndCapture(c.s, &c.g));
}

static void capture_destroy(const conf_driver *d, take_code *code, void *user) {
    capture_rig c;
    code(user, open_capture(d, &c));
    CODE(cuStreamBeginCapture_v2(c.s, CU_CAPTURE_RELAXED));
    CODE(cuStreamDestroy_v2(c.s));
}

/* ---- the list -------------------------------------------------------------------------------------------------- */

void conf_add_misuses(conf_list *list) {
    static const struct {
        const char *name;
        conf_misuse *run;
    } misuses[] = {
        { "no cuInit", without_init }, { "no context", without_context }, { "sizes of launches", bad_launches },
        { "launches beyond .maxntid", limited_launches }, { "dynamic shared memory", shared_memory },
        { "images", bad_images }, { "a target of a later device", later_target }, { "names", unknown_names },
        { "memory", bad_memory }, { "cuMemAlloc without a place", null_alloc },
        { "cuMemcpyHtoD from nowhere", null_source }, { "cuMemcpyDtoH to nowhere", null_target },
        { "no image", null_image }, { "an ELF file of nothing", empty_elf }, { "no parameters", null_params },
        { "streams and events", bad_streams },
        { "a read of address 0", null_read }, { "a write to address 0", null_write },
        { "a read far from everything", far_read }, { "a write far from everything", far_write },
        { "an atomic far from everything", far_atomic }, { "a misaligned read", misaligned_read },
        { "a misaligned write", misaligned_write }, { "a misaligned vector", misaligned_vector },
        { "a misaligned atomic", misaligned_atomic }, { "a misaligned shared read", misaligned_shared },
        { "a shared read out of bounds", far_shared }, { "trap", trapped },
        { "edges of captures", capture_edges }, { "cuMemAlloc in a capture", capture_alloc },
        { "cuMemFree in a capture", capture_free }, { "cuMemAllocHost in a capture", capture_alloc_host },
        { "cuModuleLoadData in a capture", capture_load },
        { "cuMemcpyHtoD in a capture", capture_copy_in }, { "cuMemcpyDtoH in a capture", capture_copy_out },
        { "cuMemcpyDtoD in a capture", capture_copy }, { "cuMemsetD32 in a capture", capture_fill },
        { "cuCtxSynchronize in a capture", capture_wait_context },
        { "cuStreamSynchronize in a capture", capture_wait_stream },
        { "cuStreamSynchronize of another stream in a capture", capture_wait_other },
        { "cuStreamQuery in a capture", capture_query_stream }, { "cuEventQuery in a capture", capture_query_event },
        { "cuEventSynchronize in a capture", capture_wait_event },
        { "an event from outside in a capture", capture_isolation },
        { "the default stream beside a capture", capture_default_stream },
        { "the default stream beside a capture that blocks", capture_implicit },
        { "a capture that is not joined", capture_unjoined }, { "a capture that ends elsewhere", capture_unmatched },
        { "a capture of two streams", capture_joined }, { "a stream that goes while captured", capture_destroy },
    };
    char name[80];
    size_t i;
    for (i = 0; i < sizeof misuses / sizeof *misuses; i++) {
        snprintf(name, sizeof name, "misuse: %s", misuses[i].name);
        conf_add(list, name)->misuse = misuses[i].run;
    }
}
