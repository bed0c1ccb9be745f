/* cuda_hello.c - three query rows over five keys on an NVIDIA GPU, or on the CPU where there is none.

   Shows   batch, layer and io are the same for both; on a GPU their arrays lie in its memory.
   Build   cc -I. examples/cuda_hello.c -o cuda_hello -ldl
   Result  exit status 0 if the rows are right. No CUDA toolkit is needed to build. */
#define ATTN_IMPLEMENTATION
#include "attn_cuda.h"

#include <stdio.h>
#include <stdlib.h>

enum { ROWS = 3, KEYS = 5, HEADS = 2, D = 4 }; /* two keys were there before, three are new */

static float q[ROWS * HEADS * D], k[KEYS * HEADS * D], v[KEYS * HEADS * D], o[ROWS * HEADS * D];
static const int32_t q_len = ROWS, kv_len = KEYS;
static attn_layer layer = { .heads = HEADS, .head_dim = D };

/* 0, or a status with its sentence. */
static int on_cpu(attn_error *err) {
    attn_batch batch = { .n = 1, .q_len = &q_len, .kv_len = &kv_len };
    attn_io io = { .q = q, .k = k, .v = v, .o = o };
    attn_plan plan;
    attn_exec exec = { 0 };
    size_t bytes = attn_plan_bytes(&batch, &layer);
    void *mem = malloc(bytes);
    int status = attn_plan_make(&plan, &batch, &layer, mem, bytes, err);
    if (!status) {
        exec.bytes = attn_exec_bytes(&plan, 1);
        exec.mem = malloc(exec.bytes);
        status = attn_forward(&plan, &layer, &io, &exec, err);
    }
    free(exec.mem);
    free(mem);
    return status;
}

/* A copy in the memory of the device; NULL data: only room. */
static void *upload(attn_cuda *gpu, const void *data, size_t bytes) {
    void *p = attn_cuda_alloc(gpu, bytes, NULL);
    if (p && data) attn_cuda_write(gpu, p, data, bytes, NULL);
    return p;
}

static int on_gpu(attn_cuda *gpu, attn_error *err) {
    attn_batch batch = { .n = 1, .max_q_len = ROWS, .max_kv_len = KEYS, .max_rows = ROWS };
    attn_io io = { 0 };
    attn_plan plan;
    attn_exec exec = { 0 };
    size_t bytes;
    void *mem;
    int status = attn_cuda_geometry(gpu, &layer, err);
    batch.q_len = upload(gpu, &q_len, sizeof q_len);
    batch.kv_len = upload(gpu, &kv_len, sizeof kv_len);
    io.q = upload(gpu, q, sizeof q);
    io.k = upload(gpu, k, sizeof k);
    io.v = upload(gpu, v, sizeof v);
    io.o = upload(gpu, NULL, sizeof o);
    bytes = attn_plan_bytes(&batch, &layer);
    mem = upload(gpu, NULL, bytes);
    if (!status) status = attn_cuda_plan_make(gpu, &plan, &batch, &layer, mem, bytes, NULL, err);
    if (!status) {
        exec.bytes = attn_cuda_exec_bytes(gpu, &plan);
        exec.mem = upload(gpu, NULL, exec.bytes);
        status = attn_cuda_forward(gpu, &plan, &layer, &io, &exec, err);
    }
    if (!status) status = attn_cuda_error(gpu, &plan, &exec, err); /* waits, and tells what the device found wrong */
    if (!status) status = attn_cuda_read(gpu, o, io.o, sizeof o, err);
    void *const blocks[] = { (void *)batch.q_len, (void *)batch.kv_len, (void *)io.q, io.k, io.v, io.o, mem, exec.mem };
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) {
        attn_cuda_free(gpu, blocks[i]);
    }
    return status;
}

int main(void) {
    attn_cuda *gpu;
    attn_error err;
    char text[400];
    int wrong = 0;
    for (int i = 0; i < KEYS * HEADS * D; i++) {
        v[i] = (float)(i / (HEADS * D)); /* q = k = 0: a row of o is the mean of the numbers of its keys */
    }
    int status = attn_cuda_open(&gpu, NULL, &err);
    if (!status) {
        status = on_gpu(gpu, &err);
        attn_cuda_explain(gpu, text, sizeof text);
        if (!status) printf("%s", text);
        attn_cuda_close(gpu);
    }
    if (status) {
        printf("on the CPU, because: %s\n", err.text);
        if (on_cpu(&err)) {
            printf("%s\n", err.text);
            return 1;
        }
    }
    for (int r = 0; r < ROWS; r++) {
        float mean = (float)(KEYS - ROWS + r) / 2, got = o[r * HEADS * D];
        printf("row %d sees keys 0..%d: %g\n", r, KEYS - ROWS + r, got);
        wrong += !(got > mean - 1e-5f && got < mean + 1e-5f);
    }
    return wrong != 0;
}
