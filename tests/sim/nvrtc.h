/* nvrtc.h - compiles CUDA C++ at run time, for the tests that have a compiler. */
#ifndef SIM_NVRTC_H
#define SIM_NVRTC_H

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct nvrtc_library {
    void *handle;
    int (*create)(void **program, const char *source, const char *name, int headers, const char *const *texts,
                  const char *const *names);
    int (*compile)(void *program, int count, const char *const *options);
    int (*log_size)(void *program, size_t *bytes);
    int (*log)(void *program, char *text);
    int (*ptx_size)(void *program, size_t *bytes);
    int (*ptx)(void *program, char *text);
    int (*destroy)(void **program);
} nvrtc_library;

/* By name, then where CUDA is installed; its second half is looked for by name only, so it is loaded before. */
static inline void *nvrtc_find(void) {
    static const char *const names[] = { "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so" };
    const char *home = getenv("CUDA_HOME");
    char path[600];
    void *handle = NULL;
    size_t i;
    for (i = 0; i < sizeof names / sizeof *names && !handle; i++) handle = dlopen(names[i], RTLD_NOW);
    if (handle) return handle;
    if (!home) home = "/usr/local/cuda";
    snprintf(path, sizeof path, "%s/lib64/libnvrtc-builtins.so", home);
    dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    snprintf(path, sizeof path, "%s/lib64/libnvrtc.so", home);
    return dlopen(path, RTLD_NOW);
}

static inline int nvrtc_symbol(const nvrtc_library *n, const char *name, void *function) {
    void *p = dlsym(n->handle, name);
    memcpy(function, &p, sizeof p);
    return p != NULL;
}

/* 1: there is one */
static inline int nvrtc_open(nvrtc_library *n) {
    memset(n, 0, sizeof *n);
    n->handle = nvrtc_find();
    return n->handle && nvrtc_symbol(n, "nvrtcCreateProgram", &n->create) &&
           nvrtc_symbol(n, "nvrtcCompileProgram", &n->compile) &&
           nvrtc_symbol(n, "nvrtcGetProgramLogSize", &n->log_size) && nvrtc_symbol(n, "nvrtcGetProgramLog", &n->log) &&
           nvrtc_symbol(n, "nvrtcGetPTXSize", &n->ptx_size) && nvrtc_symbol(n, "nvrtcGetPTX", &n->ptx) &&
           nvrtc_symbol(n, "nvrtcDestroyProgram", &n->destroy);
}

/* The PTX, or NULL with the log on stdout. The caller frees it. */
static inline char *nvrtc_ptx(const nvrtc_library *n, const char *source, const char *name, const char *arch) {
    char option[64], *text = NULL;
    const char *options[2];
    void *program = NULL;
    size_t bytes = 0;
    snprintf(option, sizeof option, "--gpu-architecture=%s", arch);
    options[0] = option;
    options[1] = "-lineinfo";
    if (n->create(&program, source, name, 0, NULL, NULL)) return NULL;
    if (n->compile(program, 2, options)) {
        n->log_size(program, &bytes);
        text = (char *)calloc(bytes + 1, 1);
        n->log(program, text);
        printf("%s\n", text);
        free(text);
        text = NULL;
    } else if (!n->ptx_size(program, &bytes)) {
        text = (char *)calloc(bytes + 1, 1);
        n->ptx(program, text);
    }
    n->destroy(&program);
    return text;
}

#endif
