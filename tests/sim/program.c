/* program.c - modules, functions, launches. */
#include "driver.h"

#include <stdio.h>
#include <stdlib.h>

static sim_program *find_program(CUmodule module) {
    sim_program *p;
    for (p = sim_driver.programs; p && p != module; p = p->next) {}
    return p;
}

static sim_function *find_function(CUfunction function) {
    sim_program *p;
    sim_function *f;
    for (p = sim_driver.programs; p; p = p->next) {
        for (f = p->functions; f; f = f->next) {
            if (f == function) return f;
        }
    }
    return NULL;
}

/* ---- modules --------------------------------------------------------------------------------------------------- */

/* The value of an option of the JIT compiler, or NULL. Sizes are passed in the pointer itself. */
static void *option_value(unsigned count, const int *options, void **values, int option) {
    unsigned i;
    for (i = 0; i < count; i++) {
        if (options[i] == option) return values[i];
    }
    return NULL;
}

static void write_log(unsigned count, const int *options, void **values, int buffer, int size, const char *text) {
    char *to = (char *)option_value(count, options, values, buffer);
    size_t bytes = (size_t)option_value(count, options, values, size);
    if (to && bytes) snprintf(to, bytes, "%s", text);
}

static CUresult load_program(CUmodule *module, const char *image, unsigned count, const int *options, void **values) {
    char log[400] = "";
    sim_context *c = sim_current();
    sim_program *p;
    sim_module *m;
    CUresult r;
    if (!image) return CU_INVALID_VALUE;
    if (!strncmp(image, "\177ELF", 4)) return CU_NO_BINARY;
    r = sim_module_load(&m, &c->memory, image, sim_driver.settings.capability, sim_driver.settings.driver, log,
                        sizeof log);
    write_log(count, options, values, CU_JIT_INFO_LOG_BUFFER, CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES, "");
    write_log(count, options, values, CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES, log);
    if (r) {
        if (!sim_driver.settings.quiet) fprintf(stderr, "ptxsim: %s\n", log);
        return r;
    }
    p = (sim_program *)sim_allocate(sizeof *p);
    p->module = m;
    p->context = c;
    p->next = sim_driver.programs;
    sim_driver.programs = p;
    *module = p;
    return CU_OK;
}

CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned count, int *options, void **values) {
    CUresult r = sim_enter("cuModuleLoadDataEx", NEEDS_CONTEXT);
    if (!r) r = sim_not_while_capturing();
    if (!r) r = load_program(module, (const char *)image, count, options, values);
    return sim_leave(r);
}

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    CUresult r = sim_enter("cuModuleLoadData", NEEDS_CONTEXT);
    if (!r) r = sim_not_while_capturing();
    if (!r) r = load_program(module, (const char *)image, 0, NULL, NULL);
    return sim_leave(r);
}

static void free_program(sim_program *p) {
    while (p->functions) {
        sim_function *f = p->functions;
        p->functions = f->next;
        free(f);
    }
    sim_module_free(p->module);
    free(p);
}

static void unload(sim_program *p) {
    sim_program **at = &sim_driver.programs;
    while (*at != p) at = &(*at)->next;
    *at = p->next;
    free_program(p);
}

/* Kernels that were launched still run with their code. */
CUresult cuModuleUnload(CUmodule module) {
    CUresult r = sim_enter("cuModuleUnload", NEEDS_CONTEXT);
    if (!r) r = sim_not_while_capturing();
    if (!r && !find_program(module)) r = CU_INVALID_HANDLE;
    if (!r) {
        sim_run_all(module->context);
        unload(module);
    }
    return sim_leave(r);
}

void sim_close_programs(sim_context *c) {
    sim_program *p, *next;
    for (p = sim_driver.programs; p; p = next) {
        next = p->next;
        if (p->context == c) unload(p);
    }
}

/* ---- functions ------------------------------------------------------------------------------------------------- */

static CUresult get_function(CUfunction *function, CUmodule module, const char *name) {
    sim_program *p = find_program(module);
    sim_kernel *k = p ? sim_module_kernel(p->module, name) : NULL;
    sim_function *f;
    if (!p) return CU_INVALID_HANDLE;
    if (!k) return CU_NOT_FOUND;
    for (f = p->functions; f && f->kernel != k; f = f->next) {}
    if (!f) {
        f = (sim_function *)sim_allocate(sizeof *f);
        f->kernel = k;
        f->program = p;
        f->dynamic_limit = STATIC_LIMIT - (int)k->static_shared;
        f->next = p->functions;
        p->functions = f;
    }
    *function = f;
    return CU_OK;
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    CUresult r = sim_enter("cuModuleGetFunction", NEEDS_CONTEXT);
    if (!r) r = get_function(function, module, name);
    return sim_leave(r);
}

static CUresult get_global(CUdeviceptr *address, size_t *bytes, CUmodule module, const char *name) {
    sim_program *p = find_program(module);
    int i;
    if (!p) return CU_INVALID_HANDLE;
    for (i = 0; i < p->module->variables; i++) {
        const struct sim_variable *v = &p->module->variable[i];
        if (strcmp(v->name, name) != 0) continue;
        if (address) *address = v->buffer->base;
        if (bytes) *bytes = v->buffer->bytes;
        return CU_OK;
    }
    return CU_NOT_FOUND;
}

CUresult cuModuleGetGlobal_v2(CUdeviceptr *address, size_t *bytes, CUmodule module, const char *name) {
    CUresult r = sim_enter("cuModuleGetGlobal_v2", NEEDS_CONTEXT);
    if (!r) r = get_global(address, bytes, module, name);
    return sim_leave(r);
}

CUresult cuFuncSetAttribute(CUfunction function, int attribute, int value) {
    CUresult r = sim_enter("cuFuncSetAttribute", NEEDS_CONTEXT);
    sim_function *f = r ? NULL : find_function(function);
    if (!r && !f) r = CU_INVALID_HANDLE;
    if (!r && attribute == CU_FUNC_MAX_DYNAMIC_SHARED_SIZE_BYTES) {
        if (value < 0 || value + (int)f->kernel->static_shared > SHARED_LIMIT) r = CU_INVALID_VALUE;
        else f->dynamic_limit = value;
    } else if (!r && attribute != CU_FUNC_PREFERRED_SHARED_MEMORY_CARVEOUT) {
        r = CU_INVALID_VALUE;
    }
    return sim_leave(r);
}

static CUresult function_attribute(const sim_function *f, int attribute, int *value) {
    switch (attribute) {
        case CU_FUNC_MAX_THREADS_PER_BLOCK: *value = f->kernel->max_threads; break;
        case CU_FUNC_SHARED_SIZE_BYTES: *value = (int)f->kernel->static_shared; break;
        case CU_FUNC_LOCAL_SIZE_BYTES: *value = (int)f->kernel->local_bytes; break;
        case CU_FUNC_NUM_REGS: *value = f->kernel->registers < 255 ? f->kernel->registers : 255; break;
        case CU_FUNC_PTX_VERSION:
        case CU_FUNC_BINARY_VERSION: *value = sim_driver.settings.capability; break;
        case CU_FUNC_MAX_DYNAMIC_SHARED_SIZE_BYTES: *value = f->dynamic_limit; break;
        default: return CU_INVALID_VALUE;
    }
    return CU_OK;
}

CUresult cuFuncGetAttribute(int *value, int attribute, CUfunction function) {
    CUresult r = sim_enter("cuFuncGetAttribute", NEEDS_CONTEXT);
    if (!r) r = find_function(function) ? function_attribute(function, attribute, value) : CU_INVALID_HANDLE;
    return sim_leave(r);
}

/* By threads and shared memory; registers are ptxas' affair. */
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction function, int threads, size_t dynamic) {
    CUresult r = sim_enter("cuOccupancyMaxActiveBlocksPerMultiprocessor", NEEDS_CONTEXT);
    if (!r && !find_function(function)) r = CU_INVALID_HANDLE;
    if (!r && threads < 1) r = CU_INVALID_VALUE;
    if (!r) {
        size_t shared = function->kernel->static_shared + dynamic + 1024;
        int by_threads = 2048 / ((threads + LANES - 1) / LANES * LANES), by_shared = (int)(SHARED_PER_SM / shared);
        *blocks = by_threads < by_shared ? by_threads : by_shared;
        if (*blocks > 32) *blocks = 32;
        if (threads > function->kernel->max_threads) *blocks = 0;
    }
    return sim_leave(r);
}

/* ---- launches -------------------------------------------------------------------------------------------------- */

static CUresult check_sizes(const sim_function *f, const CUlaunchConfig *c) {
    uint64_t threads = (uint64_t)c->blockDimX * c->blockDimY * c->blockDimZ;
    uint64_t blocks = (uint64_t)c->gridDimX * c->gridDimY * c->gridDimZ;
    if (!threads || !blocks || threads > 1024 || c->blockDimZ > 64) return CU_INVALID_VALUE;
    if (c->gridDimX > 2147483647u || c->gridDimY > 65535 || c->gridDimZ > 65535) return CU_INVALID_VALUE;
    if (blocks > 2147483647u) return CU_INVALID_VALUE;
    if (threads > (uint64_t)f->kernel->max_threads) return CU_INVALID_VALUE;
    if (f->kernel->static_shared > STATIC_LIMIT) return CU_INVALID_VALUE;
    return c->sharedMemBytes > (unsigned)f->dynamic_limit ? CU_INVALID_VALUE : CU_OK;
}

static CUresult launch(const CUlaunchConfig *c, CUfunction function, void **params, void **extra) {
    sim_function *f = find_function(function);
    operation *o;
    CUresult r;
    int i;
    if (!f || f->program->context != sim_current()) return CU_INVALID_HANDLE;
    r = check_sizes(f, c);
    if (r) return r;
    if (extra || (f->kernel->params && !params)) return CU_INVALID_VALUE;
    o = sim_operation(LAUNCH);
    o->function = f;
    o->grid[0] = c->gridDimX;
    o->grid[1] = c->gridDimY;
    o->grid[2] = c->gridDimZ;
    o->block[0] = c->blockDimX;
    o->block[1] = c->blockDimY;
    o->block[2] = c->blockDimZ;
    o->dynamic_shared = c->sharedMemBytes;
    o->param_bytes = f->kernel->param_bytes;
    o->params = (uint8_t *)sim_allocate(o->param_bytes);
    for (i = 0; i < f->kernel->params; i++) {
        memcpy(o->params + f->kernel->param_offset[i], params[i], f->kernel->param_size[i]);
    }
    return sim_submit(c->hStream, o);
}

CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                        unsigned block_y, unsigned block_z, unsigned dynamic_shared, CUstream stream, void **params,
                        void **extra) {
    CUlaunchConfig c;
    CUresult r = sim_enter("cuLaunchKernel", NEEDS_CONTEXT);
    memset(&c, 0, sizeof c);
    c.gridDimX = grid_x;
    c.gridDimY = grid_y;
    c.gridDimZ = grid_z;
    c.blockDimX = block_x;
    c.blockDimY = block_y;
    c.blockDimZ = block_z;
    c.sharedMemBytes = dynamic_shared;
    c.hStream = stream;
    if (!r) r = launch(&c, function, params, extra);
    return sim_leave(r);
}

/* Hints change nothing here. A launch that may begin before the one in front has ended begins behind it, which is one
   of the orders that it allows. Clusters of more than one block and cooperative launches cannot run: blocks run one
   after another. */
static CUresult check_attribute(const CUlaunchAttribute *a) {
    switch (a->id) {
        case CU_LAUNCH_IGNORE:
        case CU_LAUNCH_ACCESS_POLICY_WINDOW:
        case CU_LAUNCH_SYNCHRONIZATION_POLICY:
        case CU_LAUNCH_CLUSTER_SCHEDULING:
        case CU_LAUNCH_PRIORITY: return CU_OK;
        case CU_LAUNCH_PROGRAMMATIC_SERIALIZATION:
            return sim_driver.settings.capability >= 90 ? CU_OK : CU_NOT_SUPPORTED;
        case CU_LAUNCH_COOPERATIVE: return a->value.number ? CU_NOT_SUPPORTED : CU_OK;
        case CU_LAUNCH_CLUSTER_DIMENSION:
            if (!a->value.cluster.x || !a->value.cluster.y || !a->value.cluster.z) return CU_INVALID_VALUE;
            return a->value.cluster.x * a->value.cluster.y * a->value.cluster.z == 1 ? CU_OK : CU_NOT_SUPPORTED;
        default: return CU_NOT_SUPPORTED;
    }
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **params, void **extra) {
    CUresult r = sim_enter("cuLaunchKernelEx", NEEDS_CONTEXT);
    unsigned i;
    if (!r && (!config || (config->numAttrs && !config->attrs))) r = CU_INVALID_VALUE;
    for (i = 0; !r && i < config->numAttrs; i++) r = check_attribute(&config->attrs[i]);
    if (!r) r = launch(config, function, params, extra);
    return sim_leave(r);
}

static void count_launch(const char *kernel) {
    driver_state *d = &sim_driver;
    int i;
    for (i = 0; i < d->launch_names && strcmp(d->launches[i].kernel, kernel) != 0; i++) {}
    if (i == d->launch_names) {
        d->launches = (struct launch_count *)sim_grow(d->launches, &d->launch_capacity, i + 1, sizeof *d->launches);
        d->launches[i].kernel = sim_copy_text(kernel, strlen(kernel));
        d->launches[i].count = 0;
        d->launch_names++;
    }
    d->launches[i].count++;
}

void sim_run_launch(sim_context *c, const operation *o) {
    int reports = ptxsim_reports(-1), error;
    const sim_kernel *k;
    if (!find_function(o->function)) {
        sim_report_host(PTXSIM_HOST, "a graph launches a kernel whose module was unloaded");
        c->sticky = CU_ILLEGAL_ADDRESS;
        return;
    }
    k = o->function->kernel;
    count_launch(k->name);
    error = sim_launch(&c->memory, &sim_driver.settings.config, k, o->grid, o->block, o->dynamic_shared, o->params,
                       &sim_driver.counters);
    if (!error && sim_driver.settings.strict && ptxsim_reports(-1) != reports) error = CU_LAUNCH_FAILED;
    c->sticky = error;
}
