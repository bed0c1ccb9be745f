/* bake_kernels.c - kernels that travel with a program, so that its users need a driver and nothing else.

   Shows   attn_cuda_image on the developer's machine, which needs NVRTC, but no GPU; one file of images; desc.get,
           which answers from that file in the program that ships, where NVRTC is never opened.
   Build   cc -I. examples/bake_kernels.c -o bake_kernels -ldl
   Run     ./bake_kernels kernels.bin 86 89 90 120    code for these, and PTX for every device from 7.5 on
           ./bake_kernels                             PTX alone, into a temporary file, as a test of this program
   Result  exit status 0 if every image was made, found again and right; 0 with a line where there is no NVRTC. */
#define ATTN_IMPLEMENTATION
#include "attn_cuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The layers of the program: each pair of types needs a module of its own. */
static const attn_layer layers[] = {
    { .heads = 8, .kv_heads = 2, .head_dim = 64, .q_type = ATTN_F16, .kv_type = ATTN_F16, .o_type = ATTN_F16 },
};
enum { LAYERS = sizeof layers / sizeof layers[0] };

/* ---- the developer's machine ------------------------------------------------------------------------------------ */

/* In the file an image follows its head. */
typedef struct entry {
    char name[64];
    uint64_t bytes;
} entry;

static int bake(FILE *file, int32_t arch, int32_t flags, int *images) {
    attn_cuda_desc desc = { .arch = arch, .flags = flags };
    attn_cuda *maker;
    attn_error err;
    int status = attn_cuda_open(&maker, &desc, &err);
    if (status) {
        printf("%s\n", err.text);
        return status;
    }
    for (int32_t i = 0; i < attn_cuda_prepare_count(layers, LAYERS) && !status; i++) {
        attn_cuda_image_data image;
        entry head = { "", 0 };
        status = attn_cuda_image(maker, layers, LAYERS, i, &image, &err);
        if (status) {
            printf("%s\n", err.text);
            break;
        }
        memcpy(head.name, image.name, sizeof head.name);
        head.bytes = image.bytes;
        if (fwrite(&head, sizeof head, 1, file) != 1 || fwrite(image.data, image.bytes, 1, file) != 1) status = -1;
        printf("%s: %lu bytes\n", image.name, (unsigned long)image.bytes);
        ++*images;
    }
    attn_cuda_close(maker);
    return status;
}

/* ---- the program that ships ------------------------------------------------------------------------------------- */

/* desc.get: user is the file's path. */
static size_t get(void *user, const char *name, void *image, size_t bytes) {
    FILE *file = fopen((const char *)user, "rb");
    entry head;
    size_t found = 0;
    while (file && !found && fread(&head, sizeof head, 1, file) == 1) {
        if (strncmp(head.name, name, sizeof head.name)) {
            fseek(file, (long)head.bytes, SEEK_CUR);
            continue;
        }
        found = (size_t)head.bytes;
        if (bytes >= found && fread(image, 1, found, file) != found) found = 0;
        break;
    }
    if (file) fclose(file);
    return found;
}

enum { KEYS = 3, HEADS = 8, KV_HEADS = 2, DIM = 64 };

static void *on_gpu(attn_cuda *gpu, const void *data, size_t bytes) {
    void *p = attn_cuda_alloc(gpu, bytes, NULL);
    if (p && data) attn_cuda_write(gpu, p, data, bytes, NULL);
    return p;       /* errors are left to attn_cuda_read at the end */
}

/* One row over three keys that weigh the same, with the values 1, 2 and 3: 2 comes out. The program's end frees the
   memory. */
static int use(attn_cuda *gpu, attn_error *err) {
    static const uint16_t numbers[KEYS] = { 0x3c00, 0x4000, 0x4200 };   /* f16 */
    static uint16_t zeros[KEYS * HEADS * DIM], v[KEYS * KV_HEADS * DIM], o[HEADS * DIM];
    int32_t kv_len = KEYS;
    attn_batch batch = { .n = 1, .max_q_len = 1, .max_kv_len = KEYS, .max_rows = 1 };
    attn_layer layer = layers[0];
    attn_exec exec = { .mem = NULL };
    attn_plan plan;
    for (int i = 0; i < KEYS * KV_HEADS * DIM; i++) v[i] = numbers[i / (KV_HEADS * DIM)];
    batch.kv_len = on_gpu(gpu, &kv_len, sizeof kv_len);
    attn_io io = { .q = on_gpu(gpu, zeros, sizeof o), .k = on_gpu(gpu, zeros, sizeof v) };
    io.v = on_gpu(gpu, v, sizeof v);
    io.o = on_gpu(gpu, NULL, sizeof o);
    int status = attn_cuda_geometry(gpu, &layer, err);
    size_t bytes = attn_plan_bytes(&batch, &layer);
    void *mem = on_gpu(gpu, NULL, bytes);
    if (!status) status = attn_cuda_plan_make(gpu, &plan, &batch, &layer, mem, bytes, NULL, err);
    if (status) return status;
    exec.bytes = attn_cuda_exec_bytes(gpu, &plan);
    exec.mem = on_gpu(gpu, NULL, exec.bytes);
    status = attn_cuda_forward(gpu, &plan, &layer, &io, &exec, err);
    if (!status) status = attn_cuda_error(gpu, &plan, &exec, err);
    if (!status) status = attn_cuda_read(gpu, o, io.o, sizeof o, err);
    for (int i = 0; i < HEADS * DIM && !status; i++) {
        if (o[i] != numbers[1]) status = -1;
    }
    if (status != -1) return status;
    snprintf(err->text, sizeof err->text, "the result is wrong");
    return status;
}

static int play(char *path) {
    attn_cuda_desc desc = { .flags = ATTN_CUDA_NO_JIT, .user = path, .get = get };
    attn_cuda *gpu;
    attn_error err;
    char text[800];
    int status = attn_cuda_open(&gpu, &desc, &err);
    if (status == ATTN_E_NO_DRIVER || status == ATTN_E_NO_DEVICE) {
        printf("not tried here: %s\n", err.text);
        return 0;
    }
    if (!status) status = attn_cuda_prepare(gpu, layers, LAYERS, -1, &err);
    if (!status) status = use(gpu, &err);
    if (status) printf("%s\n", err.text);
    if (!status && attn_cuda_explain(gpu, text, sizeof text)) printf("%s", text);
    attn_cuda_close(gpu);
    return status;
}

int main(int argc, char **argv) {
    static char own[] = "baked_kernels.tmp";
    char *path = argc > 1 ? argv[1] : own;
    int images = 0;
    FILE *file = fopen(path, "wb");
    if (!file) {
        printf("cannot write %s\n", path);
        return 1;
    }
    int status = bake(file, 75, ATTN_CUDA_PTX, &images);
    for (int i = 2; i < argc && !status; i++) {
        status = bake(file, atoi(argv[i]), 0, &images);
    }
    if (fclose(file)) status = -1;
    if (!status) printf("%d images in %s\n", images, path);
    if (!status) status = play(path);
    if (argc < 2) remove(path);
    return status != 0 && status != ATTN_E_NO_NVRTC;
}
