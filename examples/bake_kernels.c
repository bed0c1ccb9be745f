/* bake_kernels.c - kernels that travel with a program, so that its users need a driver and nothing else.

   Shows   attn_cuda_image on the developer's machine, which needs NVRTC, but no GPU; one file of images; desc.get,
           which answers from that file in the program that ships.
   Build   cc -I. examples/bake_kernels.c -o bake_kernels -ldl
   Run     ./bake_kernels kernels.bin 86 89 90 120    code for these, and PTX for every device from 7.5 on
           ./bake_kernels                             PTX alone, into a temporary file, as a test of this program
   Result  exit status 0 if every image was made and found again; 0 with a line where there is no NVRTC. */
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
