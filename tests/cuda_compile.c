/* cuda_compile.c - every kernel compiles to code for real devices and keeps its values in registers. Needs NVRTC, no
   driver. ATTN_CUDA_ARCHS: the compute capabilities, "90" by default; ATTN_CUDA_VARIANTS: "all" for every set of
   types. */
#include "attn_cuda.h"

#include "test.h"

#include <dlfcn.h>

static struct {
    int (*compile)(void *program, int count, const char *const *options);
    int (*log_size)(void *program, size_t *bytes);
    int (*log)(void *program, char *text);
    char text[40000];
} nvrtc;

/* As the header asks, and ptxas tells what it used. */
static int talkative(void *program, int count, const char *const *options) {
    const char *more[20];
    size_t bytes = 0;
    int status, i;
    for (i = 0; i < count && i < 19; i++) more[i] = options[i];
    more[i] = "--ptxas-options=-v";
    status = nvrtc.compile(program, i + 1, more);
    nvrtc.text[0] = 0;
    if (!nvrtc.log_size(program, &bytes) && bytes < sizeof nvrtc.text) nvrtc.log(program, nvrtc.text);
    return status;
}

static void *find_symbol(void *user, void *library, const char *name) {
    void *p = dlsym(library, name);
    int (*function)(void *, int, const char *const *) = talkative;
    (void)user;
    if (!strcmp(name, "nvrtcGetProgramLogSize")) memcpy(&nvrtc.log_size, &p, sizeof p);
    if (!strcmp(name, "nvrtcGetProgramLog")) memcpy(&nvrtc.log, &p, sizeof p);
    if (strcmp(name, "nvrtcCompileProgram") || !p) return p;
    memcpy(&nvrtc.compile, &p, sizeof p);
    memcpy(&p, &function, sizeof p);
    return p;
}

/* The number in front of `word`, from `at` on; -1: none. */
static long number_before(const char *at, const char *word) {
    const char *p = strstr(at, word);
    if (!p) return -1;
    while (p > at && p[-1] >= '0' && p[-1] <= '9') p--;
    return strtol(p, NULL, 10);
}

/* The kernels that the log tells of. */
static int check_log(const char *module, int arch) {
    const char *at = nvrtc.text;
    int kernels = 0;
    while ((at = strstr(at, "Compiling entry function '")) != NULL) {
        char name[64];
        at += strlen("Compiling entry function '");
        snprintf(name, sizeof name, "%.*s", (int)strcspn(at, "'"), at);
        CHECK(number_before(at, " bytes spill stores") == 0 && number_before(at, " bytes spill loads") == 0,
              "%s of %s for sm_%d spills %ld bytes", name, module, arch, number_before(at, " bytes spill stores"));
        CHECK(number_before(at, " registers") > 0, "%s: no registers?", name);
        printf("  sm_%-3d %-20s %3ld registers, %4ld bytes of stack\n", arch, name, number_before(at, " registers"),
               number_before(at, " bytes stack frame"));
        kernels++;
    }
    return kernels;
}

static int compile_for(int arch, const attn_layer *layers, int count) {
    static const int kernels[] = { 3, 7, 2 };
    attn_cuda_desc desc;
    attn_cuda_image_data image;
    attn_cuda *cuda = NULL;
    attn_error e;
    char text[200];
    int status, modules, i;
    memset(&desc, 0, sizeof desc);
    desc.arch = arch;
    desc.find_symbol = find_symbol;
    status = attn_cuda_open(&cuda, &desc, &e);
    CHECK(!status, "%s", e.text);
    if (status) return status;
    modules = attn_cuda_prepare_count(layers, count);
    for (i = 0; i < modules && !status; i++) {
        int found;
        status = attn_cuda_image(cuda, layers, count, i, &image, &e);
        if (status == ATTN_E_NO_NVRTC) break;
        CHECK(!status, "sm_%d: %s", arch, e.text);
        if (status) break;
        CHECK(!memcmp((const char *)image.data + 64, "\x7f" "ELF", 4), "%s is no code", image.name);
        found = check_log(image.name, arch);
        CHECK(found == kernels[i < 2 ? i : 2], "%s: %d kernels", image.name, found);
    }
    attn_cuda_explain(cuda, text, sizeof text);
    if (!status) printf("  %s", text);
    attn_cuda_close(cuda);
    return status;
}

static int32_t pick_layers(attn_layer *layers) {
    static const attn_type few[][4] = { { ATTN_F32, ATTN_F32, ATTN_F32, (attn_type)0 },
                                        { ATTN_BF16, ATTN_E4M3, ATTN_BF16, (attn_type)1 } };
    const char *which = getenv("ATTN_CUDA_VARIANTS");
    int32_t all = which && !strcmp(which, "all"), count = 0, i;
    for (i = 0; i < (all ? 108 : 2); i++) {
        attn_layer *l = &layers[count++];
        memset(l, 0, sizeof *l);
        l->heads = 1;
        l->head_dim = 64;
        l->q_type = all ? (attn_type)(i / 36) : few[i][0];
        l->kv_type = all ? (attn_type)(i / 6 % 6) : few[i][1];
        l->o_type = all ? (attn_type)(i / 2 % 3) : few[i][2];
        l->skip.mode = (all ? i % 2 : (int32_t)few[i][3]) ? ATTN_SKIP_LAMBDA : ATTN_SKIP_OFF;
    }
    return count;
}

static void compiles(void) {
    static attn_layer layers[108];
    const char *archs = getenv("ATTN_CUDA_ARCHS");
    int32_t count = pick_layers(layers);
    char *end;
    for (archs = archs ? archs : "90"; *archs; archs = end) {
        int arch = (int)strtol(archs, &end, 10);
        if (end == archs || compile_for(arch, layers, count) == ATTN_E_NO_NVRTC) break;
    }
    if (*archs && !test.bad) test_skip("no NVRTC");
}

int main(int argc, char **argv) {
    if (argc > 1) test.only = argv[1];
    test_run("cuda_compile: code for devices, without spills", compiles);
    return test_close("cuda_compile");
}
