/* run.c - runs the cases on the driver that the loader finds, in child processes: this one never calls the driver. A
   child runs cases until one spoils its context or it comes to a misuse, which gets a child to itself; the next child
   goes on behind it. So no case sees what another one did, and none can end the run. */
#define _DEFAULT_SOURCE
#include "conformance.h"
#include "driver.h"

#include "../sim/form_kernel.h"

#include <dlfcn.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* ---- the driver ------------------------------------------------------------------------------------------------ */

/* The simulator exports what no driver has. 0, or -1 and why. */
static int open_driver(conf_driver *d, char *why, size_t bytes) {
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        snprintf(why, bytes, "there is no NVIDIA driver here: %s", dlerror());
        return -1;
    }
#define LOOK_UP(name, parameters)                                                                                     \
    *(void **)&d->name = dlsym(library, #name);                                                                       \
    if (!d->name) {                                                                                                   \
        snprintf(why, bytes, "this libcuda.so.1 has no %s", #name);                                                   \
        return -1;                                                                                                    \
    }
    CONF_ENTRIES(LOOK_UP)
#undef LOOK_UP
    d->simulated = dlsym(library, "ptxsim_form") != NULL;
    return 0;
}

static int open_context(const conf_driver *d) {
    CUcontext context;
    CUdevice device;
    int r = d->cuInit(0);
    if (!r) r = d->cuDeviceGet(&device, 0);
    if (!r) r = d->cuDevicePrimaryCtxRetain(&context, device);
    return r ? r : d->cuCtxPushCurrent_v2(context);
}

/* ---- one case, in the child ------------------------------------------------------------------------------------ */

/* What a child sends for each case, before the message and the results. */
typedef struct packet {
    int32_t index, code, spoiled;
    uint32_t message_bytes, out_bytes;
} packet;

enum { LOG_BYTES = 4000, MAX_CODES = 64 };

typedef struct outcome {
    int code, spoiled;
    char message[LOG_BYTES];
    uint8_t *out;
    size_t bytes;
} outcome;

static void fail(const conf_driver *d, outcome *o, int code, const char *what) {
    char log[LOG_BYTES];
    const char *name = NULL;
    memcpy(log, o->message, sizeof log);
    d->cuGetErrorName(code, &name);
    o->code = code;
    snprintf(o->message, sizeof o->message, "%s: %s %.3000s", what, name ? name : "?", log);
}

static int load(const conf_driver *d, const char *text, CUmodule *module, outcome *o) {
    int options[2] = { CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES };
    void *values[2];
    values[0] = o->message;
    values[1] = (void *)(uintptr_t)sizeof o->message;
    return d->cuModuleLoadDataEx(module, text, 2, options, values);
}

static int launch(const conf_driver *d, const conf_case *c, CUfunction f, CUdeviceptr in, CUdeviceptr out) {
    unsigned n = c->operands ? CONF_THREADS : (unsigned)CONF_MAGIC;
    void *params[3];
    int r;
    params[0] = &in;
    params[1] = &out;
    params[2] = &n;
    r = d->cuLaunchKernel(f, c->grid[0], c->grid[1], c->grid[2], c->block[0], c->block[1], c->block[2], c->shared, NULL,
                          params, NULL);
    return r ? r : d->cuCtxSynchronize();
}

static void launch_with_buffers(const conf_driver *d, const conf_case *c, CUfunction f, outcome *o) {
    size_t in_bytes, written = conf_device_bytes(c);
    uint64_t *in = conf_inputs(c, &in_bytes);
    uint8_t *raw = (uint8_t *)calloc(written, 1);
    CUdeviceptr d_in = 0, d_out = 0;
    int r = d->cuMemAlloc_v2(&d_in, in_bytes);
    o->out = (uint8_t *)calloc(c->out_bytes, 1);
    o->bytes = c->out_bytes;
    if (!raw || !o->out) abort();
    if (!r) r = d->cuMemAlloc_v2(&d_out, written);
    if (!r) r = d->cuMemcpyHtoD_v2(d_in, in, in_bytes);
    if (!r) r = d->cuMemsetD8_v2(d_out, 0, written);
    if (r) fail(d, o, r, "buffers");
    if (!r && (r = launch(d, c, f, d_in, d_out)) != 0) {
        fail(d, o, r, "launch");
        o->spoiled = 1;
    }
    if (!r && (r = d->cuMemcpyDtoH_v2(raw, d_out, written)) != 0) fail(d, o, r, "copy");
    if (!r) conf_pack(c, raw, o->out);
    d->cuMemFree_v2(d_in);
    d->cuMemFree_v2(d_out);
    free(raw);
    free(in);
}

static void run_kernel(const conf_driver *d, const conf_case *c, outcome *o) {
    char *text = conf_text(c, "k");
    CUmodule module = NULL;
    CUfunction f = NULL;
    int r = load(d, text, &module, o);
    if (r) {
        fail(d, o, r, "load");
    } else {
        r = d->cuModuleGetFunction(&f, module, "k");
        if (r) fail(d, o, r, "function");
        else launch_with_buffers(d, c, f, o);
        d->cuModuleUnload(module);
    }
    free(text);
}

static void take_code(void *user, int result) {
    outcome *o = (outcome *)user;
    int32_t code = result;
    if (o->bytes == MAX_CODES * sizeof code) return;
    memcpy(o->out + o->bytes, &code, sizeof code);
    o->bytes += sizeof code;
}

static void run_misuse(const conf_driver *d, const conf_case *c, outcome *o) {
    o->out = (uint8_t *)calloc(MAX_CODES, sizeof(int32_t));
    if (!o->out) abort();
    c->misuse(d, take_code, o);
    o->spoiled = 1;
}

static void send_bytes(int to, const void *data, size_t bytes) {
    const char *p = (const char *)data;
    while (bytes) {
        ssize_t n = write(to, p, bytes);
        if (n <= 0) _exit(3);
        p += n;
        bytes -= (size_t)n;
    }
}

static void send_outcome(int to, int index, outcome *o) {
    packet p;
    p.index = index;
    p.code = o->code;
    p.spoiled = o->spoiled;
    p.message_bytes = o->code ? (uint32_t)strlen(o->message) : 0;
    p.out_bytes = o->code ? 0 : (uint32_t)o->bytes;
    send_bytes(to, &p, sizeof p);
    send_bytes(to, o->message, p.message_bytes);
    send_bytes(to, o->out, p.out_bytes);
    free(o->out);
}

/* The first case decides: a misuse starts without a context of ours, kernels end in front of the next misuse. Kernels
   are loaded at once, so that what cannot be loaded says so there, and never come from a cache. */
static void run_child(const conf_list *list, int first, int to) {
    conf_driver d;
    outcome o;
    int i;
    memset(&o, 0, sizeof o);
    setenv("CUDA_CACHE_DISABLE", "1", 1);
    if (!list->item[first].misuse) setenv("CUDA_MODULE_LOADING", "EAGER", 1);
    if (open_driver(&d, o.message, sizeof o.message)) _exit(2);
    if (!list->item[first].misuse && (o.code = open_context(&d)) != 0) {
        fail(&d, &o, o.code, "context");
        o.spoiled = 1;
        send_outcome(to, first, &o);
        _exit(0);
    }
    for (i = first; i < list->count; i++) {
        const conf_case *c = &list->item[i];
        if (c->misuse && i > first) break;
        memset(&o, 0, sizeof o);
        if (c->misuse) run_misuse(&d, c, &o);
        else run_kernel(&d, c, &o);
        send_outcome(to, i, &o);
        if (o.spoiled) break;
    }
    _exit(0);
}

/* ---- the parent ------------------------------------------------------------------------------------------------ */

/* 1: all bytes came, 0: the pipe ended, -1: nothing came for so long. */
static int receive(int from, void *data, size_t bytes, int milliseconds) {
    char *p = (char *)data;
    while (bytes) {
        struct pollfd waits = { 0, POLLIN, 0 };
        ssize_t n;
        waits.fd = from;
        if (poll(&waits, 1, milliseconds) == 0) return -1;
        n = read(from, p, bytes);
        if (n <= 0) return 0;
        p += n;
        bytes -= (size_t)n;
    }
    return 1;
}

static char *copy_message(const char *text) {
    size_t n = strlen(text), i;
    char *copy = (char *)malloc(n + 1);
    if (!copy) abort();
    for (i = 0; i <= n; i++) copy[i] = (char)((unsigned char)text[i] < ' ' && text[i] ? ' ' : text[i]);
    return copy;
}

static conf_entry *new_entry(conf_recording *r, const conf_case *c, int code) {
    conf_entry *e = conf_new_entry(r);
    memcpy(e->name, c->name, sizeof e->name);
    e->hash = conf_hash(c);
    e->code = code;
    return e;
}

static int receive_entry(conf_recording *r, const conf_list *list, int from, int milliseconds) {
    packet p;
    conf_entry *e;
    char *message;
    int got = receive(from, &p, sizeof p, milliseconds);
    if (got < 1) return got;
    e = new_entry(r, &list->item[p.index], p.code);
    message = (char *)calloc(p.message_bytes + 1, 1);
    e->out = (uint8_t *)calloc(p.out_bytes + 1, 1);
    e->bytes = p.out_bytes;
    if (!message || !e->out) abort();
    got = receive(from, message, p.message_bytes, milliseconds);
    if (got > 0) got = receive(from, e->out, p.out_bytes, milliseconds);
    if (p.message_bytes) e->message = copy_message(message);
    free(message);
    if (got < 1) conf_drop_entry(r);
    return got;
}

/* The child ended without a word on the case that it was at. */
static void record_end(conf_recording *r, const conf_case *c, int hung, int status) {
    char text[80];
    conf_entry *e = new_entry(r, c, hung ? CONF_HUNG : CONF_DIED);
    if (hung) snprintf(text, sizeof text, "it did not end");
    else if (WIFSIGNALED(status)) snprintf(text, sizeof text, "the process died of signal %d", WTERMSIG(status));
    else snprintf(text, sizeof text, "the process left with status %d", WEXITSTATUS(status));
    e->message = copy_message(text);
}

/* Cases from `r->count` on; 1: at least one more has its entry. */
static int run_some(conf_recording *r, const conf_list *list, int milliseconds) {
    int ends[2], before = r->count, got = 1, status = 0;
    pid_t child;
    if (pipe(ends)) return 0;
    fflush(NULL);
    child = fork();
    if (child < 0) {
        close(ends[0]);
        close(ends[1]);
        return 0;
    }
    if (child == 0) {
        close(ends[0]);
        run_child(list, r->count, ends[1]);
    }
    close(ends[1]);
    while (got > 0 && r->count < list->count) got = receive_entry(r, list, ends[0], milliseconds);
    if (got < 0) kill(child, SIGKILL);
    close(ends[0]);
    waitpid(child, &status, 0);
    if (r->count == list->count) return 1;
    if (got < 0 || r->count == before || status) record_end(r, &list->item[r->count], got < 0, status);
    return 1;
}

/* ---- the device ------------------------------------------------------------------------------------------------ */

typedef struct probe {
    char name[120], why[200];
    int failed, capability, driver, simulated;
} probe;

static void probe_device(probe *p) {
    conf_driver d;
    CUdevice device;
    int r, major = 0, minor = 0;
    p->failed = 1;
    if (open_driver(&d, p->why, sizeof p->why)) return;
    r = d.cuInit(0);
    if (!r) r = d.cuDriverGetVersion(&p->driver);
    if (!r) r = d.cuDeviceGet(&device, 0);
    if (!r) r = d.cuDeviceGetName(p->name, sizeof p->name, device);
    if (!r) r = d.cuDeviceGetAttribute(&major, 75, device);
    if (!r) r = d.cuDeviceGetAttribute(&minor, 76, device);
    p->capability = 10 * major + minor;
    p->simulated = d.simulated;
    p->failed = r != 0;
    if (r) snprintf(p->why, sizeof p->why, "the driver has no device for us: error %d", r);
}

static int probe_in_child(probe *p) {
    enum { PATIENCE = 120000 };
    int ends[2], got;
    pid_t child;
    memset(p, 0, sizeof *p);
    if (pipe(ends)) return -1;
    fflush(NULL);
    child = fork();
    if (child == 0) {
        close(ends[0]);
        probe_device(p);
        send_bytes(ends[1], p, sizeof *p);
        _exit(0);
    }
    close(ends[1]);
    got = child > 0 ? receive(ends[0], p, sizeof *p, PATIENCE) : 0;
    close(ends[0]);
    if (child > 0 && got < 0) kill(child, SIGKILL);
    if (child > 0) waitpid(child, NULL, 0);
    if (got < 1) snprintf(p->why, sizeof p->why, "the driver did not come up");
    return got < 1 || p->failed ? -1 : 0;
}

int conf_record(conf_recording *r, const conf_list *list, int milliseconds, char *why, size_t why_bytes) {
    time_t now = time(NULL);
    probe p;
    memset(r, 0, sizeof *r);
    if (probe_in_child(&p)) {
        snprintf(why, why_bytes, "%s", p.why);
        return -1;
    }
    snprintf(r->device, sizeof r->device, "%s", p.name);
    strftime(r->date, sizeof r->date, "%Y-%m-%d", gmtime(&now));
    r->capability = p.capability;
    r->driver = p.driver;
    r->simulated = p.simulated;
    while (r->count < list->count) {
        if (run_some(r, list, milliseconds)) continue;
        snprintf(why, why_bytes, "no process for the next case");
        conf_recording_close(r);
        return -1;
    }
    return 0;
}
