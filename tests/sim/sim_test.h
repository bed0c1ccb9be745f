/* sim_test.h - what the tests of the simulator share: a device, PTX from text, buffers. */
#ifndef SIM_TEST_H
#define SIM_TEST_H

#include "../test.h"
#include "cuda_api.h"
#include "ptxsim.h"

#include <stdarg.h>

#define PTX_HEAD ".version 7.5\n.target sm_75\n.address_size 64\n"

static CUcontext test_context;
static char test_log[1000];

/* A fresh process with one device, quiet, and with every setting at its default. */
static inline void open_device(void) {
    static const char *const defaults[][2] = {
        { "PTXSIM_QUIET", "1" },  { "PTXSIM_DEVICES", "1" }, { "PTXSIM_CC", "90" },      { "PTXSIM_SMS", "8" },
        { "PTXSIM_SEED", "0" },   { "PTXSIM_CHECK", "1" },   { "PTXSIM_STRICT", "1" },   { "PTXSIM_PERTURB", "0" },
        { "PTXSIM_FAIL", ":0" },  { "PTXSIM_MEM", "1073741824" }, { "PTXSIM_DRIVER", "13000" },
        { "PTXSIM_STEPS", "100000000" },
    };
    size_t i;
    ptxsim_reset();
    for (i = 0; i < sizeof defaults / sizeof *defaults; i++) ptxsim_set(defaults[i][0], defaults[i][1]);
    CHECK(!cuInit(0), "no device");
    CHECK(!cuDevicePrimaryCtxRetain(&test_context, 0), "no context");
    CHECK(!cuCtxPushCurrent_v2(test_context), "no current context");
}

static inline CUresult load_text(CUmodule *module, const char *text) {
    int options[2] = { CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES };
    void *values[2];
    values[0] = test_log;
    values[1] = (void *)(uintptr_t)sizeof test_log;
    test_log[0] = 0;
    return cuModuleLoadDataEx(module, text, 2, options, values);
}

/* The kernel k of a module. */
static inline CUfunction load_kernel(const char *text) {
    CUmodule module = NULL;
    CUfunction f = NULL;
    CHECK(!load_text(&module, text), "%s", test_log);
    if (module) CHECK(!cuModuleGetFunction(&f, module, "k"), "no kernel k");
    return f;
}

static inline CUdeviceptr upload(const void *data, size_t bytes) {
    CUdeviceptr p = 0;
    CHECK(!cuMemAlloc_v2(&p, bytes), "%lu bytes", (unsigned long)bytes);
    if (data) CHECK(!cuMemcpyHtoD_v2(p, data, bytes), "copy");
    return p;
}

static inline CUresult launch(CUfunction f, unsigned blocks, unsigned threads, void **params) {
    CUresult r = cuLaunchKernel(f, blocks, 1, 1, threads, 1, 1, 0, NULL, params, NULL);
    return r ? r : cuCtxSynchronize();
}

#endif
