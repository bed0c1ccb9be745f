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

/* A fresh process, quiet, with one device to come and with every setting at its default. */
static inline void fresh_process(void) {
    static const char *const defaults[][2] = {
        { "PTXSIM_QUIET", "1" },  { "PTXSIM_DEVICES", "1" }, { "PTXSIM_CC", "90" },      { "PTXSIM_SMS", "8" },
        { "PTXSIM_SEED", "0" },   { "PTXSIM_CHECK", "1" },   { "PTXSIM_STRICT", "1" },   { "PTXSIM_PERTURB", "0" },
        { "PTXSIM_FAIL", ":0" },  { "PTXSIM_MEM", "1073741824" }, { "PTXSIM_DRIVER", "13000" },
        { "PTXSIM_STEPS", "100000000" },
    };
    size_t i;
    ptxsim_reset();
    for (i = 0; i < sizeof defaults / sizeof *defaults; i++) ptxsim_set(defaults[i][0], defaults[i][1]);
}

/* capability: NULL for the default. */
static inline void open_device_of(const char *capability) {
    fresh_process();
    if (capability) ptxsim_set("PTXSIM_CC", capability);
    CHECK(!cuInit(0), "no device");
    CHECK(!cuDevicePrimaryCtxRetain(&test_context, 0), "no context");
    CHECK(!cuCtxPushCurrent_v2(test_context), "no current context");
}

static inline void open_device(void) {
    open_device_of(NULL);
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

/* A kernel k(a, b, n) around some instructions. They find: d0 = a, d1 = b, r0 = thread, r1 = block, r2 = n,
   d3 = a + 4 * thread, d4 = b + 4 * thread; free are p, h, r8.., f, d8... */
static inline CUfunction kernel_around(const char *variables, const char *code) {
    static char text[8000];
    snprintf(text, sizeof text,
             ".version 8.0\n.target sm_80\n.address_size 64\n%s\n"
             ".visible .entry k(.param .u64 a, .param .u64 b, .param .u32 n)\n{\n"
             ".reg .pred p<8>;\n.reg .b16 h<8>;\n.reg .b32 r<32>;\n.reg .f32 f<8>;\n.reg .b64 d<32>;\n"
             "ld.param.u64 d0, [a];\nld.param.u64 d1, [b];\nld.param.u32 r2, [n];\n"
             "mov.u32 r0, %%tid.x;\nmov.u32 r1, %%ctaid.x;\nmul.wide.u32 d2, r0, 4;\n"
             "add.u64 d3, d0, d2;\nadd.u64 d4, d1, d2;\n%s\nret;\n}\n",
             variables, code);
    return load_kernel(text);
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
