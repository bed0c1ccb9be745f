/* cuda_paged_decode.c - a decoding server whose step is one CUDA graph, captured once.

   Shows   a step of several layers (plan, append, forward) recorded into a graph and replayed while requests join, grow
           page by page, leave and turn into pads: lengths and the page table are read from the device at each replay,
           so nothing is captured again; kernels prepared before; the driver used without its header. The same steps run
           on the CPU, and every output is compared.
   Build   cc -I. examples/cuda_paged_decode.c -o cuda_paged_decode -ldl
   Result  exit status 0 if GPU and CPU agree; 0 with a line that says why where there is no GPU or no NVRTC. */
#define ATTN_IMPLEMENTATION
#include "attn_cuda.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    LAYERS = 2, HEADS = 4, KV_HEADS = 2, DIM = 32,
    SLOTS = 4, MAX_KEYS = 320, PAGE = 16, COLUMNS = MAX_KEYS / PAGE, PAGES = 48, STEPS = 24,
    Q = SLOTS * HEADS * DIM, KV = SLOTS * KV_HEADS * DIM, CACHE = PAGES * PAGE * KV_HEADS * DIM
};

/* A request decodes from `keys` keys on, which stand for its prompt, from step `first` to step `last`. */
typedef struct request {
    int first, last, slot, keys;
} request;

static const request requests[] = {
    { 0, 23, 0, 250 }, { 0, 7, 1, 5 }, { 2, 19, 2, 100 }, { 9, 15, 1, 31 }, { 12, 23, 3, 1 },
};

/* What changes from step to step. The host's copy; the device has another. */
typedef struct state {
    int32_t q_len[SLOTS], kv_len[SLOTS], table[SLOTS * COLUMNS];
    float q[LAYERS][Q], new_k[LAYERS][KV], new_v[LAYERS][KV];
} state;

/* What both sides keep, host or device memory. */
typedef struct side {
    attn_batch batch;
    attn_plan plan;
    attn_exec exec;
    void *plan_mem, *k[LAYERS], *v[LAYERS], *o[LAYERS];
} side;

static state now;
static float cpu_o[LAYERS][Q], gpu_o[LAYERS][Q];
static int32_t free_page[PAGES], free_pages;
static attn_layer layer = { .heads = HEADS, .kv_heads = KV_HEADS, .head_dim = DIM, .kv_type = ATTN_F16,
                            .page_size = PAGE };

/* ---- the driver, for streams and graphs ------------------------------------------------------------------------- */

static struct {
    int (*cuStreamCreate)(void **stream, unsigned flags);
    int (*cuStreamSynchronize)(void *stream);
    int (*cuStreamDestroy_v2)(void *stream);
    int (*cuStreamBeginCapture_v2)(void *stream, int mode);
    int (*cuStreamEndCapture)(void *stream, void **graph);
    int (*cuGraphInstantiateWithFlags)(void **exec, void *graph, unsigned long long flags);
    int (*cuGraphLaunch)(void *exec, void *stream);
    int (*cuGraphDestroy)(void *graph);
    int (*cuGraphExecDestroy)(void *exec);
    int (*cuDevicePrimaryCtxRetain)(void **context, int device);
    int (*cuDevicePrimaryCtxRelease_v2)(int device);
    int (*cuCtxSetCurrent)(void *context);
} driver;

static int find(void *library, const char *name, void *function) {
    void *p = dlsym(library, name);
    memcpy(function, &p, sizeof p);
    return p != NULL;
}

static int open_driver(void) {
    void *library = dlopen("libcuda.so.1", RTLD_NOW), *context;
    return library && find(library, "cuStreamCreate", &driver.cuStreamCreate) &&
           find(library, "cuStreamSynchronize", &driver.cuStreamSynchronize) &&
           find(library, "cuStreamDestroy_v2", &driver.cuStreamDestroy_v2) &&
           find(library, "cuStreamBeginCapture_v2", &driver.cuStreamBeginCapture_v2) &&
           find(library, "cuStreamEndCapture", &driver.cuStreamEndCapture) &&
           find(library, "cuGraphInstantiateWithFlags", &driver.cuGraphInstantiateWithFlags) &&
           find(library, "cuGraphLaunch", &driver.cuGraphLaunch) &&
           find(library, "cuGraphDestroy", &driver.cuGraphDestroy) &&
           find(library, "cuGraphExecDestroy", &driver.cuGraphExecDestroy) &&
           find(library, "cuDevicePrimaryCtxRetain", &driver.cuDevicePrimaryCtxRetain) &&
           find(library, "cuDevicePrimaryCtxRelease_v2", &driver.cuDevicePrimaryCtxRelease_v2) &&
           find(library, "cuCtxSetCurrent", &driver.cuCtxSetCurrent) &&
           !driver.cuDevicePrimaryCtxRetain(&context, 0) && !driver.cuCtxSetCurrent(context);
}

/* ---- requests ---------------------------------------------------------------------------------------------------- */

/* -1 .. 1, the same for every run. */
static float hashed(uint32_t a, uint32_t b) {
    uint32_t h = a * 0x9E3779B1u ^ b * 0x85EBCA77u;
    h = (h ^ (h >> 15)) * 0x2C1B3C6Du;
    h = (h ^ (h >> 12)) * 0x297A2D39u;
    return (float)((h ^ (h >> 15)) >> 8) / 8388608.0f - 1.0f;
}

static void take_pages(int slot, int keys) {
    for (int column = 0; column * PAGE < keys; column++) {
        int32_t *page = &now.table[slot * COLUMNS + column];
        if (*page < 0) *page = free_page[--free_pages];
    }
}

static void give_pages(int slot) {
    for (int column = 0; column < COLUMNS; column++) {
        int32_t *page = &now.table[slot * COLUMNS + column];
        if (*page >= 0) free_page[free_pages++] = *page;
        *page = -1;
    }
}

/* Who runs in this step, and the rows they bring: packed, in the order of the slots. */
static int fill_step(int step) {
    int rows = 0;
    memset(now.q_len, 0, sizeof now.q_len);
    memset(now.kv_len, 0, sizeof now.kv_len);
    for (size_t i = 0; i < sizeof requests / sizeof *requests; i++) {
        const request *r = &requests[i];
        if (step == r->last + 1) give_pages(r->slot);
    }
    for (size_t i = 0; i < sizeof requests / sizeof *requests; i++) {
        const request *r = &requests[i];
        if (step < r->first || step > r->last) continue;
        now.q_len[r->slot] = 1;
        now.kv_len[r->slot] = r->keys + step - r->first + 1;
        take_pages(r->slot, now.kv_len[r->slot]);
        rows++;
    }
    for (int l = 0; l < LAYERS; l++) {
        for (int i = 0; i < Q; i++) now.q[l][i] = hashed((uint32_t)(step * LAYERS + l), (uint32_t)i);
        for (int i = 0; i < KV; i++) now.new_k[l][i] = hashed((uint32_t)(step * LAYERS + l) + 1000, (uint32_t)i);
        for (int i = 0; i < KV; i++) now.new_v[l][i] = hashed((uint32_t)(step * LAYERS + l) + 2000, (uint32_t)i);
    }
    return rows;
}

/* ---- one step on either side ------------------------------------------------------------------------------------- */

static attn_io io_of(const side *s, const state *st, int l) {
    attn_io io = { .q = st->q[l], .k = s->k[l], .v = s->v[l], .o = s->o[l] };
    io.page_table = st->table;
    io.page_table_row = COLUMNS;
    io.pages = PAGES;
    return io;
}

static int cpu_step(side *s, attn_error *err) {
    int status = attn_plan_make(&s->plan, &s->batch, &layer, s->plan_mem, attn_plan_bytes(&s->batch, &layer), err);
    for (int l = 0; l < LAYERS && !status; l++) {
        attn_io io = io_of(s, &now, l);
        status = attn_append(&s->plan, &layer, &io, now.new_k[l], now.new_v[l], err);
        if (!status) status = attn_forward(&s->plan, &layer, &io, &s->exec, err);
    }
    return status;
}

/* Everything goes to the stream and nothing is waited for: this is what the graph records. `there` is an address of the
   device, so no member of it is read here. */
static int gpu_step(attn_cuda *gpu, side *s, const state *there, attn_error *err) {
    int status = attn_cuda_plan_make(gpu, &s->plan, &s->batch, &layer, s->plan_mem,
                                     attn_plan_bytes(&s->batch, &layer), s->exec.stream, err);
    for (int l = 0; l < LAYERS && !status; l++) {
        attn_io io = io_of(s, there, l);
        status = attn_cuda_append(gpu, &s->plan, &layer, &io, there->new_k[l], there->new_v[l], &s->exec, err);
        if (!status) status = attn_cuda_forward(gpu, &s->plan, &layer, &io, &s->exec, err);
    }
    return status;
}

static attn_batch batch_of(const state *st) {
    attn_batch batch = { .n = SLOTS, .q_len = st->q_len, .kv_len = st->kv_len };
    batch.max_q_len = 1;
    batch.max_kv_len = MAX_KEYS;
    batch.max_rows = SLOTS;
    return batch;
}

static float largest_difference(int rows) {
    float largest = 0;
    for (int l = 0; l < LAYERS; l++) {
        for (int i = 0; i < rows * HEADS * DIM; i++) {
            float d = cpu_o[l][i] - gpu_o[l][i];
            if (!(d <= largest && -d <= largest)) largest = d < 0 ? -d : d;
        }
    }
    return largest;
}

/* The caches start full of what stands for the prompts. */
static int open_caches(attn_cuda *gpu, side *cpu, side *dev, attn_error *err) {
    int status = 0;
    for (int l = 0; l < LAYERS && !status; l++) {
        uint16_t *k = malloc(CACHE * sizeof *k), *v = malloc(CACHE * sizeof *v);
        for (int i = 0; i < CACHE; i++) {
            k[i] = (uint16_t)(0x3000 | (i * 37 & 0x83ff)); /* f16 between -0.25 and 0.25 */
            v[i] = (uint16_t)(0x3000 | (i * 59 & 0x83ff));
        }
        cpu->k[l] = k;
        cpu->v[l] = v;
        cpu->o[l] = cpu_o[l];
        dev->k[l] = attn_cuda_alloc(gpu, CACHE * sizeof *k, err);
        dev->v[l] = attn_cuda_alloc(gpu, CACHE * sizeof *v, err);
        dev->o[l] = attn_cuda_alloc(gpu, sizeof gpu_o[l], err);
        if (!dev->k[l] || !dev->v[l] || !dev->o[l]) return ATTN_E_DRIVER;
        status = attn_cuda_write(gpu, dev->k[l], k, CACHE * sizeof *k, err);
        if (!status) status = attn_cuda_write(gpu, dev->v[l], v, CACHE * sizeof *v, err);
    }
    return status;
}

/* Records one step. exec.mem is sized by a plan that is made before. */
static int capture(attn_cuda *gpu, side *s, const state *there, void **graph_exec, attn_error *err) {
    size_t bytes = attn_plan_bytes(&s->batch, &layer);
    void *graph = NULL;
    s->plan_mem = attn_cuda_alloc(gpu, bytes, err);
    int status = s->plan_mem ? attn_cuda_plan_make(gpu, &s->plan, &s->batch, &layer, s->plan_mem, bytes,
                                                   s->exec.stream, err)
                             : ATTN_E_DRIVER;
    if (status) return status;
    s->exec.bytes = attn_cuda_exec_bytes(gpu, &s->plan);
    s->exec.mem = attn_cuda_alloc(gpu, s->exec.bytes, err);
    if (!s->exec.mem || driver.cuStreamBeginCapture_v2(s->exec.stream, 0)) return ATTN_E_DRIVER;
    status = gpu_step(gpu, s, there, err);
    if (driver.cuStreamEndCapture(s->exec.stream, &graph) || status) return status ? status : ATTN_E_DRIVER;
    status = driver.cuGraphInstantiateWithFlags(graph_exec, graph, 0) ? ATTN_E_DRIVER : 0;
    driver.cuGraphDestroy(graph);
    return status;
}

static int serve(attn_cuda *gpu, side *cpu, side *dev, state *there, void *graph, attn_error *err) {
    float worst = 0;
    for (int step = 0; step < STEPS; step++) {
        int rows = fill_step(step);
        int status = attn_cuda_write(gpu, there, &now, sizeof now, err);
        if (!status && driver.cuGraphLaunch(graph, dev->exec.stream)) status = ATTN_E_DRIVER;
        if (!status) status = attn_cuda_error(gpu, &dev->plan, &dev->exec, err); /* waits for the stream */
        for (int l = 0; l < LAYERS && !status; l++) {
            status = attn_cuda_read(gpu, gpu_o[l], dev->o[l], sizeof gpu_o[l], err);
        }
        if (!status) status = cpu_step(cpu, err);
        if (status) return status;
        float difference = largest_difference(rows);
        if (!(difference <= worst)) worst = difference;
        printf("step %2d: %d rows, keys %3d %3d %3d %3d, %2d pages, GPU and CPU differ by at most %.1e\n", step, rows,
               (int)now.kv_len[0], (int)now.kv_len[1], (int)now.kv_len[2], (int)now.kv_len[3],
               PAGES - (int)free_pages, difference);
    }
    printf("one graph, %d steps: %s\n", STEPS, worst < 1e-4f ? "GPU and CPU agree" : "GPU AND CPU DIFFER");
    return worst < 1e-4f ? 0 : -1;
}

int main(void) {
    attn_cuda *gpu;
    attn_error err;
    static side cpu, dev;
    void *graph = NULL;
    int status = attn_cuda_open(&gpu, NULL, &err);
    if (!status) status = attn_cuda_prepare(gpu, &layer, 1, -1, &err); /* before any capture */
    if (status) {
        printf("no GPU to run on: %s\n", err.text);
        attn_cuda_close(gpu);
        return 0;
    }
    if (!open_driver() || driver.cuStreamCreate(&dev.exec.stream, 1)) {
        printf("the driver has no streams or graphs\n");
        return 1;
    }
    attn_cuda_geometry(gpu, &layer, &err);
    memset(now.table, 0xFF, sizeof now.table);
    for (int p = PAGES - 1; p >= 0; p--) free_page[free_pages++] = p;
    state *there = attn_cuda_alloc(gpu, sizeof *there, &err);
    fill_step(0);
    dev.batch = batch_of(there);
    cpu.batch = batch_of(&now);
    cpu.plan_mem = malloc(attn_plan_bytes(&cpu.batch, &layer));
    status = attn_plan_make(&cpu.plan, &cpu.batch, &layer, cpu.plan_mem, attn_plan_bytes(&cpu.batch, &layer), &err);
    cpu.exec.bytes = attn_exec_bytes(&cpu.plan, 1);
    cpu.exec.mem = malloc(cpu.exec.bytes);
    if (!status) status = open_caches(gpu, &cpu, &dev, &err);
    if (!status) status = attn_cuda_write(gpu, there, &now, sizeof now, &err);
    if (!status) status = capture(gpu, &dev, there, &graph, &err);
    if (!status) status = serve(gpu, &cpu, &dev, there, graph, &err);
    if (status > 0) printf("status %d: %s\n", status, err.text);
    if (graph) driver.cuGraphExecDestroy(graph);
    for (int l = 0; l < LAYERS; l++) {
        free(cpu.k[l]);
        free(cpu.v[l]);
        attn_cuda_free(gpu, dev.k[l]);
        attn_cuda_free(gpu, dev.v[l]);
        attn_cuda_free(gpu, dev.o[l]);
    }
    free(cpu.exec.mem);
    free(cpu.plan_mem);
    attn_cuda_free(gpu, dev.exec.mem);
    attn_cuda_free(gpu, dev.plan_mem);
    attn_cuda_free(gpu, there);
    driver.cuStreamDestroy_v2(dev.exec.stream);
    attn_cuda_close(gpu);
    driver.cuDevicePrimaryCtxRelease_v2(0);
    return status != 0;
}
