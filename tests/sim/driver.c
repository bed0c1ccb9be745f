/* driver.c - initialisation, settings, faults, devices, contexts, error names. */
#define _POSIX_C_SOURCE 200809L
#include "driver.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

driver_state sim_driver;

enum { STACK = 16 };

/* What a thread of the caller has: its stack of contexts, and how captures of others may disturb it. */
typedef struct thread_state {
    sim_context *stack[STACK];
    int depth, capture_mode;
    unsigned long id;
} thread_state;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t thread_key;

/* ---- settings -------------------------------------------------------------------------------------------------- */

static void set_fault(sim_settings *s, const char *value) {
    const char *colon = strchr(value, ':');
    size_t n = colon ? (size_t)(colon - value) : strlen(value);
    if (n >= sizeof s->fail_entry) n = sizeof s->fail_entry - 1;
    memcpy(s->fail_entry, value, n);
    s->fail_entry[n] = 0;
    s->fail_call = colon ? strtoull(colon + 1, NULL, 0) : 1;
    colon = colon ? strchr(colon + 1, ':') : NULL;
    s->fail_code = colon ? atoi(colon + 1) : CU_OUT_OF_MEMORY;
    sim_driver.matching_calls = 0;
}

static int set_one(sim_settings *s, const char *name, const char *value) {
    long long number = strtoll(value, NULL, 0);
    if (!strcmp(name, "PTXSIM_DEVICES")) s->devices = number < MAX_DEVICES ? (int)number : MAX_DEVICES;
    else if (!strcmp(name, "PTXSIM_CC")) s->capability = (int)number;
    else if (!strcmp(name, "PTXSIM_SMS")) s->sms = s->config.sms = (int)number;
    else if (!strcmp(name, "PTXSIM_MEM")) s->memory = (size_t)number;
    else if (!strcmp(name, "PTXSIM_DRIVER")) s->driver = (int)number;
    else if (!strcmp(name, "PTXSIM_SEED")) s->config.seed = (uint32_t)number;
    else if (!strcmp(name, "PTXSIM_CHECK")) s->config.check = (int)number;
    else if (!strcmp(name, "PTXSIM_STRICT")) s->strict = (int)number;
    else if (!strcmp(name, "PTXSIM_PERTURB")) s->config.perturb = (int)number;
    else if (!strcmp(name, "PTXSIM_STEPS")) s->config.steps = (uint64_t)number;
    else if (!strcmp(name, "PTXSIM_QUIET")) s->quiet = (int)number;
    else if (!strcmp(name, "PTXSIM_FAIL")) set_fault(s, value);
    else return -1;
    sim_report_quiet(s->quiet);
    return 0;
}

static void set_defaults(sim_settings *s) {
    static const char *const names[] = {
        "PTXSIM_DEVICES", "PTXSIM_CC",     "PTXSIM_SMS",     "PTXSIM_MEM",   "PTXSIM_DRIVER", "PTXSIM_SEED",
        "PTXSIM_CHECK",   "PTXSIM_STRICT", "PTXSIM_PERTURB", "PTXSIM_STEPS", "PTXSIM_QUIET",  "PTXSIM_FAIL",
    };
    size_t i;
    s->devices = 1;
    s->capability = 90;
    s->sms = s->config.sms = 8;
    s->memory = (size_t)4 << 30;
    s->driver = 13090;
    s->strict = 1;
    s->config.check = 1;
    s->config.steps = (uint64_t)1 << 31;
    for (i = 0; i < sizeof names / sizeof *names; i++) {
        const char *value = getenv(names[i]);
        if (value && *value) set_one(s, names[i], value);
    }
}

static void leave_process(void) {
    pthread_mutex_lock(&lock);
    if (sim_driver.ready && !sim_driver.settings.quiet) {
        int reports = ptxsim_reports(-1);
        int leaks = ptxsim_leaks();
        if (reports || leaks) fprintf(stderr, "ptxsim: %d reports, %d leaks\n", reports, leaks);
    }
    pthread_mutex_unlock(&lock);
}

static void first_use(void) {
    pthread_key_create(&thread_key, free);
    set_defaults(&sim_driver.settings);
    atexit(leave_process);
}

static thread_state *this_thread(void) {
    static unsigned long threads;
    thread_state *t;
    pthread_once(&once, first_use);
    t = (thread_state *)pthread_getspecific(thread_key);
    if (!t) {
        t = (thread_state *)sim_allocate(sizeof *t);
        t->id = ++threads;
        pthread_setspecific(thread_key, t);
    }
    return t;
}

int ptxsim_set(const char *name, const char *value) {
    int result;
    pthread_mutex_lock(&lock);
    this_thread();
    result = set_one(&sim_driver.settings, name, value);
    pthread_mutex_unlock(&lock);
    return result;
}

/* ---- the frame of every entry point ---------------------------------------------------------------------------- */

unsigned long sim_thread(void) {
    return this_thread()->id;
}

int *sim_thread_capture_mode(void) {
    return &this_thread()->capture_mode;
}

sim_context *sim_current(void) {
    thread_state *t = this_thread();
    sim_context *c = t->depth ? t->stack[t->depth - 1] : NULL;
    return c && c->references ? c : NULL;
}

/* The k-th call of the chosen entry point fails before it does anything. */
static CUresult fault(const char *name) {
    sim_settings *s = &sim_driver.settings;
    if (!s->fail_call || (strcmp(s->fail_entry, "*") != 0 && strcmp(s->fail_entry, name) != 0)) return CU_OK;
    return ++sim_driver.matching_calls == s->fail_call ? s->fail_code : CU_OK;
}

CUresult sim_enter(const char *name, needs what) {
    sim_context *c;
    CUresult r;
    pthread_mutex_lock(&lock);
    c = sim_current();
    sim_driver.counters.api_calls++;
    r = fault(name);
    if (r) return r;
    if (what >= NEEDS_INIT && !sim_driver.ready) return CU_NOT_INITIALIZED;
    if (what == NEEDS_CONTEXT && !c) return CU_INVALID_CONTEXT;
    return what == NEEDS_CONTEXT ? c->sticky : CU_OK;
}

CUresult sim_leave(CUresult result) {
    pthread_mutex_unlock(&lock);
    return result;
}

/* ---- contexts -------------------------------------------------------------------------------------------------- */

static void open_context(sim_context *c, int device) {
    memset(c, 0, sizeof *c);
    c->device = device;
    sim_memory_open(&c->memory, device, sim_driver.settings.memory);
    c->null_stream.context = c;
    c->null_stream.end = &c->null_stream.first;
}

/* Work that was submitted still runs. */
static void close_context(sim_context *c) {
    sim_run_all(c);
    sim_close_streams(c);
    sim_close_graphs(c);
    sim_close_programs(c);
    sim_memory_close(&c->memory);
}

static int is_device(CUdevice device) {
    return device >= 0 && device < sim_driver.settings.devices;
}

static int is_context(const sim_context *c) {
    int i;
    for (i = 0; i < sim_driver.settings.devices; i++) {
        if (c == &sim_driver.context[i]) return c->references > 0;
    }
    return 0;
}

static CUresult initialise(void) {
    int i;
    if (sim_driver.settings.devices < 1) return CU_NO_DEVICE;
    if (sim_driver.ready) return CU_OK;
    for (i = 0; i < sim_driver.settings.devices; i++) open_context(&sim_driver.context[i], i);
    sim_driver.ready = 1;
    if (!sim_driver.settings.quiet) {
        fprintf(stderr, "ptxsim: a simulated CUDA device, not a GPU: results are real, times are not\n");
    }
    return CU_OK;
}

CUresult cuInit(unsigned flags) {
    CUresult r = sim_enter("cuInit", NEEDS_NOTHING);
    if (!r) r = flags ? CU_INVALID_VALUE : initialise();
    return sim_leave(r);
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    CUresult r = sim_enter("cuDevicePrimaryCtxRetain", NEEDS_INIT);
    if (!r && !is_device(device)) r = CU_INVALID_DEVICE;
    if (!r) {
        sim_driver.context[device].references++;
        *context = &sim_driver.context[device];
    }
    return sim_leave(r);
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    CUresult r = sim_enter("cuDevicePrimaryCtxRelease_v2", NEEDS_INIT);
    sim_context *c = !r && is_device(device) ? &sim_driver.context[device] : NULL;
    if (!r && !c) r = CU_INVALID_DEVICE;
    if (!r && !c->references) r = CU_INVALID_CONTEXT;
    if (!r && --c->references == 0) {
        close_context(c);
        open_context(c, device);
    }
    return sim_leave(r);
}

CUresult cuCtxGetCurrent(CUcontext *context) {
    CUresult r = sim_enter("cuCtxGetCurrent", NEEDS_INIT);
    if (!r) *context = sim_current();
    return sim_leave(r);
}

CUresult cuCtxSetCurrent(CUcontext context) {
    CUresult r = sim_enter("cuCtxSetCurrent", NEEDS_INIT);
    thread_state *t = this_thread();
    if (!r && context && !is_context(context)) r = CU_INVALID_CONTEXT;
    if (!r) {
        if (t->depth) t->depth--;
        if (context) t->stack[t->depth++] = context;
    }
    return sim_leave(r);
}

CUresult cuCtxPushCurrent_v2(CUcontext context) {
    CUresult r = sim_enter("cuCtxPushCurrent_v2", NEEDS_INIT);
    thread_state *t = this_thread();
    if (!r && (!is_context(context) || t->depth == STACK)) r = CU_INVALID_CONTEXT;
    if (!r) t->stack[t->depth++] = context;
    return sim_leave(r);
}

CUresult cuCtxPopCurrent_v2(CUcontext *context) {
    CUresult r = sim_enter("cuCtxPopCurrent_v2", NEEDS_INIT);
    thread_state *t = this_thread();
    if (!r && !t->depth) r = CU_INVALID_CONTEXT;
    if (!r) {
        t->depth--;
        if (context) *context = t->stack[t->depth];
    }
    return sim_leave(r);
}

CUresult cuCtxGetDevice(CUdevice *device) {
    CUresult r = sim_enter("cuCtxGetDevice", NEEDS_CONTEXT);
    if (!r) *device = sim_current()->device;
    return sim_leave(r);
}

CUresult cuCtxSynchronize(void) {
    CUresult r = sim_enter("cuCtxSynchronize", NEEDS_CONTEXT);
    if (!r) r = sim_not_while_capturing();
    if (!r) {
        sim_driver.counters.synchronisations++;
        sim_run_all(sim_current());
        r = sim_current()->sticky;
    }
    return sim_leave(r);
}

/* ---- devices --------------------------------------------------------------------------------------------------- */

CUresult cuDriverGetVersion(int *version) {
    CUresult r = sim_enter("cuDriverGetVersion", NEEDS_NOTHING);
    if (!r) *version = sim_driver.settings.driver;
    return sim_leave(r);
}

CUresult cuDeviceGetCount(int *count) {
    CUresult r = sim_enter("cuDeviceGetCount", NEEDS_INIT);
    if (!r) *count = sim_driver.settings.devices;
    return sim_leave(r);
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    CUresult r = sim_enter("cuDeviceGet", NEEDS_INIT);
    if (!r && !is_device(ordinal)) r = CU_INVALID_DEVICE;
    if (!r) *device = ordinal;
    return sim_leave(r);
}

CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
    CUresult r = sim_enter("cuDeviceGetName", NEEDS_INIT);
    if (!r && !is_device(device)) r = CU_INVALID_DEVICE;
    if (!r) snprintf(name, (size_t)length, "ptxsim (simulated)");
    return sim_leave(r);
}

CUresult cuDeviceGetUuid_v2(void *uuid, CUdevice device) {
    CUresult r = sim_enter("cuDeviceGetUuid_v2", NEEDS_INIT);
    if (!r && !is_device(device)) r = CU_INVALID_DEVICE;
    if (!r) {
        memset(uuid, 0, 16);
        memcpy(uuid, "ptxsim", 6);
        ((char *)uuid)[15] = (char)device;
    }
    return sim_leave(r);
}

CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
    CUresult r = sim_enter("cuDeviceTotalMem_v2", NEEDS_INIT);
    if (!r && !is_device(device)) r = CU_INVALID_DEVICE;
    if (!r) *bytes = sim_driver.settings.memory;
    return sim_leave(r);
}

/* Attributes by number, as in CUdevice_attribute. What is not here is not supported: 0. */
static int attribute_value(int attribute) {
    static const int table[][2] = {
        { 1, 1024 },      { 2, 1024 },  { 3, 1024 },   { 4, 64 },           { 5, 2147483647 }, { 6, 65535 },
        { 7, 65535 },     { 8, STATIC_LIMIT },         { 9, 65536 },        { 10, 32 },        { 12, 65536 },
        { 13, 1500000 },  { 14, 512 },  { 15, 1 },     { 31, 1 },           { 36, 2000000 },   { 37, 4096 },
        { 38, 32 << 20 }, { 39, 2048 }, { 41, 1 },     { 81, SHARED_PER_SM }, { 82, 65536 },
        { 97, SHARED_LIMIT },           { 106, 32 },   { 111, 1024 },
    };
    size_t i;
    for (i = 0; i < sizeof table / sizeof *table; i++) {
        if (table[i][0] == attribute) return table[i][1];
    }
    if (attribute == 16) return sim_driver.settings.sms;
    if (attribute == 75) return sim_driver.settings.capability / 10;
    return attribute == 76 ? sim_driver.settings.capability % 10 : 0;
}

CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device) {
    CUresult r = sim_enter("cuDeviceGetAttribute", NEEDS_INIT);
    if (!r && !is_device(device)) r = CU_INVALID_DEVICE;
    if (!r && (attribute < 1 || attribute > 200)) r = CU_INVALID_VALUE;
    if (!r) *value = attribute_value(attribute);
    return sim_leave(r);
}

/* ---- errors ---------------------------------------------------------------------------------------------------- */

static const struct {
    int code;
    const char *name, *text;
} errors[] = {
    { CU_OK, "CUDA_SUCCESS", "no error" },
    { CU_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument" },
    { CU_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory" },
    { CU_NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error" },
    { CU_NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected" },
    { CU_INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal" },
    { CU_INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid" },
    { CU_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context" },
    { CU_NO_BINARY, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device" },
    { CU_INVALID_PTX, "CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed" },
    { CU_UNSUPPORTED_PTX, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
      "the provided PTX was compiled with an unsupported toolchain." },
    { CU_INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle" },
    { CU_NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found" },
    { CU_NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready" },
    { CU_ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered" },
    { CU_LAUNCH_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch" },
    { CU_LAUNCH_TIMEOUT, "CUDA_ERROR_LAUNCH_TIMEOUT", "the launch timed out and was terminated" },
    { CU_ILLEGAL_INSTRUCTION, "CUDA_ERROR_ILLEGAL_INSTRUCTION", "an illegal instruction was encountered" },
    { CU_MISALIGNED, "CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address" },
    { CU_LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure" },
    { CU_NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported" },
    { CU_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
      "operation not permitted when stream is capturing" },
    { CU_CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
      "operation failed due to a previous error during capture" },
    { CU_CAPTURE_UNMATCHED, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED",
      "capture was not ended in the same stream as it began" },
    { CU_CAPTURE_UNJOINED, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED",
      "capturing stream has unjoined work" },
    { CU_CAPTURE_ISOLATION, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION",
      "dependency created on uncaptured work in another stream" },
    { CU_CAPTURE_IMPLICIT, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT",
      "operation would make the legacy stream depend on a capturing blocking stream" },
    { CU_CAPTURED_EVENT, "CUDA_ERROR_CAPTURED_EVENT",
      "operation not permitted on an event last recorded in a capturing stream" },
    { CU_CAPTURE_WRONG_THREAD, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD",
      "attempt to terminate a thread-local capture sequence from another thread" },
};

static int find_error(CUresult error) {
    int i, n = (int)(sizeof errors / sizeof *errors);
    for (i = 0; i < n && errors[i].code != error; i++) {}
    return i < n ? i : -1;
}

CUresult cuGetErrorName(CUresult error, const char **name) {
    CUresult r = sim_enter("cuGetErrorName", NEEDS_NOTHING);
    int i = find_error(error);
    *name = r || i < 0 ? NULL : errors[i].name;
    return sim_leave(r ? r : i < 0 ? CU_INVALID_VALUE : CU_OK);
}

CUresult cuGetErrorString(CUresult error, const char **text) {
    CUresult r = sim_enter("cuGetErrorString", NEEDS_NOTHING);
    int i = find_error(error);
    *text = r || i < 0 ? NULL : errors[i].text;
    return sim_leave(r ? r : i < 0 ? CU_INVALID_VALUE : CU_OK);
}

/* NVRTC 13 calls this without a look whether it exists. With an error it goes on without its cache. */
CUresult cuGetExportTable(const void **table, const void *id) {
    CUresult r = sim_enter("cuGetExportTable", NEEDS_NOTHING);
    (void)id;
    *table = NULL;
    return sim_leave(r ? r : CU_NOT_FOUND);
}

/* The symbol of this library for a name without a suffix, of the latest version. */
static void *find_symbol(const char *name) {
    void *self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD), *p;
    char latest[100];
    if (!self) return NULL;
    snprintf(latest, sizeof latest, "%s_v2", name);
    p = dlsym(self, latest);
    if (!p) p = dlsym(self, name);
    dlclose(self);
    return p;
}

/* All functions here are those of CUDA 12, so an older version has none of them. status: 0 found, 1 no such name, 2 not
   in so old a version. */
CUresult cuGetProcAddress_v2(const char *symbol, void **function, int version, uint64_t flags, int *status) {
    CUresult r = sim_enter("cuGetProcAddress_v2", NEEDS_NOTHING);
    int found = 1;
    if (!r && (!symbol || !*symbol || !function || flags > 1)) r = CU_INVALID_VALUE;
    if (!r) {
        *function = strncmp(symbol, "cu", 2) ? NULL : find_symbol(symbol);
        found = !*function ? 1 : version < 12000 ? 2 : 0;
        if (found) *function = NULL;
        if (status) *status = found;
        if (found) r = CU_NOT_FOUND;
    }
    return sim_leave(r);
}

/* ---- what tests ask -------------------------------------------------------------------------------------------- */

void ptxsim_get_counters(ptxsim_counters *c) {
    *c = sim_driver.counters;
}

void ptxsim_reset_counters(void) {
    int i;
    for (i = 0; i < sim_driver.launch_names; i++) free(sim_driver.launches[i].kernel);
    sim_driver.launch_names = 0;
    memset(&sim_driver.counters, 0, sizeof sim_driver.counters);
}

uint64_t ptxsim_launches(const char *kernel) {
    int i;
    for (i = 0; i < sim_driver.launch_names; i++) {
        if (!strcmp(sim_driver.launches[i].kernel, kernel)) return sim_driver.launches[i].count;
    }
    return 0;
}

void ptxsim_recover(void) {
    int i;
    for (i = 0; i < MAX_DEVICES; i++) sim_driver.context[i].sticky = CU_OK;
    sim_report_clear();
}

void ptxsim_reset(void) {
    int i;
    pthread_mutex_lock(&lock);
    this_thread()->depth = 0;
    this_thread()->capture_mode = CU_CAPTURE_GLOBAL;
    for (i = 0; i < MAX_DEVICES && sim_driver.ready; i++) {
        if (sim_driver.context[i].null_stream.end) close_context(&sim_driver.context[i]);
        memset(&sim_driver.context[i], 0, sizeof sim_driver.context[i]);
    }
    sim_close_host_blocks();
    sim_driver.ready = 0;
    sim_driver.matching_calls = 0;
    ptxsim_reset_counters();
    sim_report_clear();
    pthread_mutex_unlock(&lock);
}

static int leaked(int *count, const char *what) {
    sim_report_host(PTXSIM_LEAK, "%s was never given back", what);
    return ++*count;
}

static void leaks_of(const sim_context *c, int *count) {
    const sim_program *p;
    const sim_stream *s;
    const sim_event *e;
    char what[80];
    int i;
    for (i = 0; i < c->memory.count; i++) {
        const sim_buffer *b = c->memory.buffer[i];
        if (b->freed || b->of_module) continue;
        snprintf(what, sizeof what, "a buffer of %lu bytes on device %d", (unsigned long)b->bytes, c->device);
        leaked(count, what);
    }
    for (p = sim_driver.programs; p; p = p->next) {
        if (p->context == c) leaked(count, "a module");
    }
    for (s = sim_driver.streams; s; s = s->next) {
        if (s->context == c) leaked(count, "a stream");
    }
    for (e = sim_driver.events; e; e = e->next) {
        if (e->context == c) leaked(count, "an event");
    }
    if (c->references) leaked(count, "a primary context");
}

/* What the end of the process would take back from a careless caller. */
int ptxsim_leaks(void) {
    int count = 0, i;
    const sim_graph *g;
    const sim_graph_exec *x;
    const host_block *h;
    for (i = 0; i < MAX_DEVICES; i++) leaks_of(&sim_driver.context[i], &count);
    for (g = sim_driver.graphs; g; g = g->next) leaked(&count, "a graph");
    for (x = sim_driver.execs; x; x = x->next) {
        if (!x->destroyed) leaked(&count, "an executable graph");
    }
    for (h = sim_driver.host_blocks; h; h = h->next) leaked(&count, "host memory");
    return count;
}
