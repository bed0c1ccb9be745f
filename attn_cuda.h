/* attn_cuda.h - v0.1.0-dev - attn.h on NVIDIA GPUs - licence at the end of attn.h

   DO THIS
      #define ATTN_IMPLEMENTATION     in exactly one .c or .cpp file, before
      #include "attn_cuda.h"          elsewhere include it plainly. It brings attn.h and its implementation along.
      No flags, no libraries (but -ldl for a glibc before 2.34), no CUDA toolkit to compile. The driver, and NVRTC,
      which compiles the kernels, are opened at run time; where they are missing the program goes on with attn.h, and
      the error says what is missing.

   CONTENTS (search for the anchor)
      >>example  >>install  >>concepts  >>memory  >>streams  >>errors  >>shipping  >>threads  >>bits  >>does_not
      >>types  >>api; implementation: >>fragments  >>driver  >>platform  >>failures  >>loader  >>jit  >>cache  >>modules
      >>open  >>params  >>check  >>launch  >>steps  >>tools  >>faults

   >>example  The program of attn.h on a GPU: three new query rows over five keys, causal, two heads.

      #define ATTN_IMPLEMENTATION
      #include "attn_cuda.h"
      #include <stdio.h>
      enum { ROWS = 3, KEYS = 5, HEADS = 2, D = 4 };              // two keys were there before, three are new
      static void *on_gpu(attn_cuda *gpu, const void *data, size_t bytes) {
          void *p = attn_cuda_alloc(gpu, bytes, NULL);
          if (data) attn_cuda_write(gpu, p, data, bytes, NULL);
          return p;                                               // errors are left to attn_cuda_read at the end
      }
      int main(void) {
          static float q[ROWS * HEADS * D], k[KEYS * HEADS * D], v[KEYS * HEADS * D], o[ROWS * HEADS * D];
          for (int i = 0; i < KEYS * HEADS * D; i++) v[i] = (float)(i / (HEADS * D)); // q = k = 0: o is the mean of v
          int32_t q_len = ROWS, kv_len = KEYS;
          attn_cuda *gpu;
          attn_error err;
          if (attn_cuda_open(&gpu, NULL, &err)) { puts(err.text); return 0; }
          attn_batch batch = { .n = 1, .max_q_len = ROWS, .max_kv_len = KEYS, .max_rows = ROWS };
          batch.q_len = on_gpu(gpu, &q_len, sizeof q_len);
          batch.kv_len = on_gpu(gpu, &kv_len, sizeof kv_len);
          attn_layer layer = { .heads = HEADS, .head_dim = D };
          attn_cuda_geometry(gpu, &layer, &err);
          attn_io io = { .q = on_gpu(gpu, q, sizeof q), .k = on_gpu(gpu, k, sizeof k), .v = on_gpu(gpu, v, sizeof v) };
          io.o = on_gpu(gpu, NULL, sizeof o);
          attn_plan plan;
          size_t bytes = attn_plan_bytes(&batch, &layer);
          void *mem = on_gpu(gpu, NULL, bytes);
          if (attn_cuda_plan_make(gpu, &plan, &batch, &layer, mem, bytes, NULL, &err)) { puts(err.text); return 0; }
          attn_exec exec = { .bytes = attn_cuda_exec_bytes(gpu, &plan) };
          exec.mem = on_gpu(gpu, NULL, exec.bytes);
          if (attn_cuda_forward(gpu, &plan, &layer, &io, &exec, &err)) { puts(err.text); return 1; }
          if (attn_cuda_error(gpu, &plan, &exec, &err)) { puts(err.text); return 1; }
          if (attn_cuda_read(gpu, o, io.o, sizeof o, &err)) { puts(err.text); return 1; }
          for (int r = 0; r < ROWS; r++) printf("row %d sees keys 0..%d: %g\n", r, KEYS - ROWS + r, o[r * HEADS * D]);
          attn_cuda_close(gpu);                                   // the end of the program frees the memory
          return 0;                                               // prints: row 0 sees keys 0..2: 1
      }                                                           // prints: row 1 sees keys 0..3: 1.5
                                                                  // prints: row 2 sees keys 0..4: 2

   >>install  To run: an NVIDIA driver of CUDA 12 or later and a GPU of compute capability 7.5 or above (Turing, 2018).
      To compile kernels: NVRTC 12.0 or later, one library of the CUDA toolkit, with its second half (nvrtc-builtins)
      beside it; a program that brings its kernels along needs none, see >>shipping. Linux: libcuda.so.1, then
      libnvrtc.so.13 or .12; Windows: nvcuda.dll, then nvrtc64_130_0.dll or nvrtc64_120_0.dll. NVRTC is looked for at
      desc.nvrtc; else at the path in the environment variable ATTN_CUDA_NVRTC; else where the loader looks (what the
      process has loaded already is found there), among the wheels of an active Python environment (VIRTUAL_ENV; the
      wheel is nvidia-cuda-nvrtc, for version 12 nvidia-cuda-nvrtc-cu12), in CONDA_PREFIX, CUDA_HOME, CUDA_PATH and
      /usr/local/cuda; the major version of the driver first.

   >>concepts  batch, layer, plan, io and exec are those of attn.h, and what its manual says of masks, layouts, scores
      and modes holds here. What differs:
      - Every array is in device memory: lengths, phases, page tables, caches, lists, the memory of plan and exec. The
        host reads none of it. So all three capacities of the batch must be set.
      - attn_cuda_geometry fills in row_tile, key_tile and workers first; attn_plan_bytes and attn_meta_bytes serve
        here, too. With equal geometry a plan and metadata have the same words that attn.h makes.
      - Going back to the CPU takes the same batch, layer and io with host arrays, and a plan of its own.
      Per step: lengths to the device, a plan for each class of layers; per layer: attn_cuda_append, attn_cuda_forward.

   >>memory  Device memory is the caller's: plan (attn_plan_bytes), exec (attn_cuda_exec_bytes), metadata. Their sizes
      follow from capacities, so they are allocated once. Two calls that may overlap in time need two execs. Host memory
      is allocated by attn_cuda_open, prepare, image and the first use of a kernel, through desc.alloc.

   >>streams  All work goes to the stream of the call and nothing waits: no allocation, no copy, no synchronisation.
      So a step can be captured into a graph once and replayed for other lengths, tables, lists and lambdas: what is on
      the device is read anew; capacities, strides and addresses are captured. Pads (q_len = kv_len = 0) let one graph
      serve smaller batches. A kernel that is not loaded yet is compiled at its first use, which takes a second: call
      attn_cuda_prepare before. While a stream captures, that is an error, ATTN_E_NOT_PREPARED, and the capture goes on.
      The context that is current on the calling thread stays so.

   >>errors  What the host can see is refused at once, with nothing launched: status and sentence as in attn.h. What
      only the device can see, lengths in attn_cuda_plan_make, page ids, trees, lists, lambdas before append, forward
      and index_score, and with exec.mem the columns of topk and the frequencies of rope, makes the kernels of the call
      write nothing; attn_cuda_error waits and gives the sentence, with request and slot. A call forgets what the call
      before it on the same exec found. ATTN_TRUSTED leaves out the check of page ids and lists.
      A missing driver, device or compiler, and what the driver refuses, have statuses of their own, attn_cuda_status;
      long texts (all names tried, logs of the compilers) go to desc.message.

   >>shipping  Compiling takes about a second for each module. desc.cache_dir names a folder: a module is then compiled
      once per kind of device, version of NVRTC and of this header; damaged files are ignored. Or modules travel with
      the program: attn_cuda_image makes them on the developer's machine, without a GPU, for each desc.arch wanted (code
      for that device, or with ATTN_CUDA_PTX something that the driver compiles for every later one), and desc.get hands
      them out by name; NVRTC is then never opened. examples/bake_kernels.c does it.

   >>threads  A handle may be used by any number of threads at a time, each with streams, plans and execs of its own;
      attn_cuda_open and attn_cuda_close stand alone. Several handles, also on one device, know nothing of each other.
      The library keeps no state outside the handle; what cannot be avoided is the process's own: the libraries that
      were opened, which stay open, and the device's primary context.

   >>bits  The promise of attn.h holds on a device: a row's bits do not depend on its neighbours, on chunks, E, pages,
      capacities, workers or replay. Between devices of different architecture, and between GPU and CPU, results agree
      within rounding.

   >>does_not  allocate device memory or read files unless told to, wait, print, start threads, choose a stream.
*/
#ifndef ATTN_CUDA_H
#define ATTN_CUDA_H

#include "attn.h"

/* ---- >>types ---------------------------------------------------------------------------------------------------- */

/* What the functions of this header return beside the numbers of attn_status. */
typedef enum attn_cuda_status {
    ATTN_E_NO_DRIVER = 32, /* no NVIDIA driver of CUDA 12.0 or above on this machine */
    ATTN_E_NO_DEVICE,      /* a driver, but no device of compute capability 7.5 or above with this number */
    ATTN_E_NO_NVRTC,       /* a kernel must be compiled, and there is no NVRTC 12.0 or above */
    ATTN_E_NOT_PREPARED,   /* a kernel is not loaded, and must not be now: capture, ATTN_CUDA_NO_JIT */
    ATTN_E_COMPILE,        /* NVRTC refused a kernel; desc.message got its log */
    ATTN_E_DRIVER          /* the driver refused a call: out of memory, a launch that failed before, ... */
} attn_cuda_status;

/* attn_cuda_desc.flags */
typedef enum attn_cuda_flag {
    ATTN_CUDA_CURRENT = 1,   /* use the context that is current on the thread that opens */
    ATTN_CUDA_NO_JIT = 2,    /* never open NVRTC: kernels come from desc.get alone */
    ATTN_CUDA_PTX = 4,       /* PTX, which the driver compiles, instead of code for the exact device */
    ATTN_CUDA_LINE_INFO = 8  /* kernels know their source lines, for profilers and compute-sanitizer */
} attn_cuda_flag;

/* How to open. All zero is valid, and so is NULL. Strings and `user` must live as long as the handle. */
typedef struct attn_cuda_desc {
    int32_t device;                 /* number of the device, whose primary context is used */
    int32_t flags;                  /* attn_cuda_flag bits */
    int32_t arch;                   /* compute capability, e.g. 90: open no driver, only compile; 0: run on `device` */
    const char *nvrtc;              /* path of the NVRTC library; NULL: it is searched for, see >>install */
    const char *cache_dir;          /* an existing folder for compiled kernels; NULL: no file is touched */
    void *user;                     /* first argument of the functions below; each may be NULL */
    void *(*alloc)(void *user, size_t bytes);           /* host memory, aligned as malloc does; NULL: malloc */
    void (*release)(void *user, void *p);               /* NULL: free */
    void (*message)(void *user, const char *text);      /* long texts: every name tried, logs of the compilers */
    void *(*open_library)(void *user, const char *name);                /* NULL: dlopen, LoadLibrary */
    void *(*find_symbol)(void *user, void *library, const char *name);  /* NULL: dlsym, GetProcAddress */
    /* Compiled kernels that the program keeps. get copies the image of this name, if `bytes` suffice, and returns its
       size, 0 if there is none. put is told of every image that was compiled. Like all of these functions they run on
       the thread that uses the handle; on several at a time, if several use it. */
    size_t (*get)(void *user, const char *name, void *image, size_t bytes);
    void (*put)(void *user, const char *name, const void *image, size_t bytes);
} attn_cuda_desc;

/* A device, its context and the kernels loaded so far. */
typedef struct attn_cuda attn_cuda;

/* One compiled kernel module, to be kept and given back by desc.get. */
typedef struct attn_cuda_image_data {
    char name[64];
    const void *data;               /* valid until attn_cuda_close */
    size_t bytes;
} attn_cuda_image_data;

/* ---- >>api ------------------------------------------------------------------------------------------------------ */

/* Thread safety, unless a comment says more: any thread, any number at a time, on one handle. Addresses in batches, io
   and exec and of memory are device addresses; `stream` is a CUstream (or cudaStream_t), NULL the default stream. Only
   attn_cuda_read, write, check and error wait for the device; the last two are an error while exec.stream captures.
   Shapes, units and errors are those of the function of attn.h with the same name; each may also fail with an
   attn_cuda_status. */

/* Opens a device: loads the driver, nothing else. desc may be NULL. On an error *cuda is NULL, and the sentence names
   what was tried: ATTN_E_NO_DRIVER, ATTN_E_NO_DEVICE. */
ATTN_API int attn_cuda_open(attn_cuda **cuda, const attn_cuda_desc *desc, attn_error *error);

/* Unloads the kernels. Everything launched must have ended, and no other call may run. NULL is allowed. */
ATTN_API void attn_cuda_close(attn_cuda *cuda);

/* Device, driver, compiler and the kernels loaded so far, one fact a line; returns the length of all of it. */
ATTN_API size_t attn_cuda_explain(const attn_cuda *cuda, char *text, size_t bytes);

/* Device memory for programs that have no CUDA of their own; no bytes are no error. Copies wait for what was launched
   before on the default stream (stream NULL). alloc returns NULL on an error. */
ATTN_API void *attn_cuda_alloc(attn_cuda *cuda, size_t bytes, attn_error *error);
ATTN_API void attn_cuda_free(attn_cuda *cuda, void *p);
ATTN_API int attn_cuda_write(attn_cuda *cuda, void *to, const void *from, size_t bytes, attn_error *error);
ATTN_API int attn_cuda_read(attn_cuda *cuda, void *to, const void *from, size_t bytes, attn_error *error);

/* Sets row_tile, key_tile and workers to what this device wants: before attn_plan_bytes and attn_cuda_plan_make. */
ATTN_API int attn_cuda_geometry(const attn_cuda *cuda, attn_layer *layer, attn_error *error);

/* How many kernel modules `count` layers need (0: a layer is invalid), and the loading of the one with this index,
   compiled where no cache has it: call it for all indices, on several threads at once if you like; index -1: all of
   them, one after the other. Types and skip.mode of a layer decide. */
ATTN_API int32_t attn_cuda_prepare_count(const attn_layer *layers, int32_t count);
ATTN_API int attn_cuda_prepare(attn_cuda *cuda, const attn_layer *layers, int32_t count, int32_t index,
                               attn_error *error);

/* Compiles the same module as an image to ship, for desc.arch or the device. */
ATTN_API int attn_cuda_image(attn_cuda *cuda, const attn_layer *layers, int32_t count, int32_t index,
                             attn_cuda_image_data *image, attn_error *error);

/* attn_plan_make on the device. All three capacities and row_tile, key_tile and workers must be set; no array is read
   on the host. mem: attn_plan_bytes() bytes of device memory, aligned to 16. In the plan rows, strips, tasks, merges
   and slots are upper bounds. Lengths that break a rule give an empty plan, and attn_cuda_error says which. */
ATTN_API int attn_cuda_plan_make(attn_cuda *cuda, attn_plan *plan, const attn_batch *batch, const attn_layer *layer,
                                 void *mem, size_t bytes, void *stream, attn_error *error);

/* Bytes of device memory for attn_exec.mem; the same for every plan of the same layer and capacities. 0: an error. */
ATTN_API size_t attn_cuda_exec_bytes(const attn_cuda *cuda, const attn_plan *plan);

/* attn_meta_make on the device; mem: attn_meta_bytes() bytes, aligned to 16. All capacities must be set. meta.rows and
   keys are upper bounds; row_batch is ready for attn_cuda_plan_make, also in the same capture. Lengths that break a
   rule: nothing is written. A request whose req_index or kv_len leaves the table of tokens gets a page table row of
   -1. */
ATTN_API int attn_cuda_meta_make(attn_cuda *cuda, attn_meta *meta, const attn_batch *batch,
                                 const attn_meta_input *input, int32_t want, void *mem, size_t bytes, void *stream,
                                 attn_error *error);

/* attn_append and attn_forward on exec.stream. exec.mem: attn_cuda_exec_bytes() bytes, aligned to 256. io.counters is
   one entry on the device. Without ATTN_TRUSTED a checker runs first: if it finds something, nothing is written. */
ATTN_API int attn_cuda_append(attn_cuda *cuda, const attn_plan *plan, const attn_layer *layer, const attn_io *io,
                              const void *new_k, const void *new_v, const attn_exec *exec, attn_error *error);
ATTN_API int attn_cuda_forward(attn_cuda *cuda, const attn_plan *plan, const attn_layer *layer, const attn_io *io,
                               const attn_exec *exec, attn_error *error);

/* attn_merge, attn_rope, attn_index_score. exec.mem of rope: 64 bytes, aligned to 64; inv_freq is checked then, and if
   it is wrong nothing is written. NULL: unchecked. */
ATTN_API int attn_cuda_merge(attn_cuda *cuda, const attn_layer *layer, int64_t rows, const void *a_o,
                             const float *a_lse, const void *b_o, const float *b_lse, void *o, float *lse,
                             void *stream, attn_error *error);
ATTN_API int attn_cuda_rope(attn_cuda *cuda, const attn_rope_input *input, const attn_exec *exec,
                            attn_error *error);
ATTN_API int attn_cuda_index_score(attn_cuda *cuda, const attn_plan *plan, const attn_layer *layer, const attn_io *io,
                                   const float *weights, const int32_t *ks, float *scores, int64_t score_row,
                                   const attn_exec *exec, attn_error *error);

/* attn_topk on exec.stream. exec.mem: 64 bytes, aligned to 64; ks and ke are checked then, and if one is wrong nothing
   is written. NULL: unchecked, and a row whose ks and ke leave 0 .. score_row gets a list of -1. */
ATTN_API int attn_cuda_topk(attn_cuda *cuda, const float *scores, int64_t score_row, int64_t rows, const int32_t *ks,
                            const int32_t *ke, int32_t topk, int32_t *indices, const attn_exec *exec,
                            attn_error *error);

/* All checks of attn_cuda_forward, the ones on the device too: waits for exec.stream. */
ATTN_API int attn_cuda_check(attn_cuda *cuda, const attn_plan *plan, const attn_layer *layer, const attn_io *io,
                             const attn_exec *exec, attn_error *error);

/* What the device found wrong, in the words of attn.h: the lengths of the plan, then the arrays of the last append,
   forward, index_score, rope or topk on exec. Waits for exec.stream. plan or exec.mem may be NULL: then the other
   alone; exec.mem must be NULL while no call has used it. */
ATTN_API int attn_cuda_error(attn_cuda *cuda, const attn_plan *plan, const attn_exec *exec, attn_error *error);

#endif /* ATTN_CUDA_H ---- end of header -------------------------------------------------------------------------- */

#if defined(ATTN_IMPLEMENTATION) && !defined(ATTN_CUDA_IMPLEMENTED)
#define ATTN_CUDA_IMPLEMENTED

#include <stdio.h>
#include <stdlib.h>
#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#endif
#if defined(_MSC_VER)
#include <intrin.h>
#endif

/* ---- >>fragments: the text of the kernels ------------------------------------------------------------------------ */

#include "kernels/attn_params.h"

#include "kernels/attn_params.h.inc"
#include "kernels/base.cu.inc"
#include "kernels/cache.cu.inc"
#include "kernels/check.cu.inc"
#include "kernels/grid.cu.inc"
#include "kernels/meta.cu.inc"
#include "kernels/plain.cu.inc"
#include "kernels/plan.cu.inc"
#include "kernels/skip.cu.inc"
#include "kernels/spans.cu.inc"
#include "kernels/sparse.cu.inc"
#include "kernels/tile.cu.inc"
#include "kernels/tools.cu.inc"

typedef struct attn__cu_fragment {
    const char *name;
    const char *const *pieces;
} attn__cu_fragment;

static const attn__cu_fragment attn__cu_fragments[] = {
    { "attn_params.h", attn__cu_attn_params }, { "base.cu", attn__cu_base },   { "cache.cu", attn__cu_cache },
    { "check.cu", attn__cu_check },            { "grid.cu", attn__cu_grid },   { "meta.cu", attn__cu_meta },
    { "plain.cu", attn__cu_plain },            { "plan.cu", attn__cu_plan },   { "skip.cu", attn__cu_skip },
    { "spans.cu", attn__cu_spans },            { "sparse.cu", attn__cu_sparse }, { "tile.cu", attn__cu_tile },
    { "tools.cu", attn__cu_tools }
};
enum { ATTN__CU_FRAGMENTS = sizeof attn__cu_fragments / sizeof attn__cu_fragments[0] };

/* ---- >>driver: the part of the driver and of NVRTC that is used -------------------------------------------------- */

#if defined(_WIN32) && !defined(_WIN64)
#define ATTN__CUDA_CALL __stdcall
#else
#define ATTN__CUDA_CALL
#endif

/* Every name as the library exports it: cuda.h spells several of them without the suffix, which is an old interface. */
#define ATTN__CUDA_DRIVER(X)                                                                                          \
    X(cuInit, (unsigned flags))                                                                                       \
    X(cuDriverGetVersion, (int *version))                                                                             \
    X(cuGetErrorName, (int code, const char **name))                                                                  \
    X(cuGetErrorString, (int code, const char **text))                                                                \
    X(cuDeviceGetCount, (int *count))                                                                                 \
    X(cuDeviceGet, (int *device, int ordinal))                                                                        \
    X(cuDeviceGetName, (char *name, int bytes, int device))                                                           \
    X(cuDeviceGetAttribute, (int *value, int attribute, int device))                                                  \
    X(cuDevicePrimaryCtxRetain, (void **context, int device))                                                         \
    X(cuDevicePrimaryCtxRelease_v2, (int device))                                                                     \
    X(cuCtxGetCurrent, (void **context))                                                                              \
    X(cuCtxGetDevice, (int *device))                                                                                  \
    X(cuCtxPushCurrent_v2, (void *context))                                                                           \
    X(cuCtxPopCurrent_v2, (void **context))                                                                           \
    X(cuModuleLoadDataEx, (void **module, const void *image, unsigned count, int *options, void **values))            \
    X(cuModuleUnload, (void *module))                                                                                 \
    X(cuModuleGetFunction, (void **function, void *module, const char *name))                                         \
    X(cuLaunchKernel, (void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,           \
                       unsigned block_y, unsigned block_z, unsigned shared, void *stream, void **params,              \
                       void **extra))                                                                                 \
    X(cuMemsetD32Async, (unsigned long long to, unsigned value, size_t count, void *stream))                          \
    X(cuMemcpyDtoHAsync_v2, (void *to, unsigned long long from, size_t bytes, void *stream))                          \
    X(cuMemAlloc_v2, (unsigned long long *address, size_t bytes))                                                     \
    X(cuMemFree_v2, (unsigned long long address))                                                                     \
    X(cuMemcpyHtoD_v2, (unsigned long long to, const void *from, size_t bytes))                                       \
    X(cuMemcpyDtoH_v2, (void *to, unsigned long long from, size_t bytes))                                             \
    X(cuStreamSynchronize, (void *stream))                                                                            \
    X(cuStreamIsCapturing, (void *stream, int *status))                                                               \
    X(cuThreadExchangeStreamCaptureMode, (int *mode))

#define ATTN__CUDA_NVRTC(X)                                                                                           \
    X(nvrtcVersion, (int *major, int *minor))                                                                         \
    X(nvrtcGetNumSupportedArchs, (int *count))                                                                        \
    X(nvrtcGetSupportedArchs, (int *archs))                                                                           \
    X(nvrtcCreateProgram, (void **program, const char *text, const char *name, int count, const char *const *headers, \
                           const char *const *names))                                                                 \
    X(nvrtcCompileProgram, (void *program, int count, const char *const *options))                                    \
    X(nvrtcDestroyProgram, (void **program))                                                                          \
    X(nvrtcGetProgramLogSize, (void *program, size_t *bytes))                                                         \
    X(nvrtcGetProgramLog, (void *program, char *text))                                                                \
    X(nvrtcGetPTXSize, (void *program, size_t *bytes))                                                                \
    X(nvrtcGetPTX, (void *program, char *text))                                                                       \
    X(nvrtcGetCUBINSize, (void *program, size_t *bytes))                                                              \
    X(nvrtcGetCUBIN, (void *program, char *code))

/* Members of a struct, so that no name can clash with a program that links the libraries itself. */
#define ATTN__CUDA_MEMBER(name, arguments) int(ATTN__CUDA_CALL *name) arguments;
typedef struct attn__cuda_driver {
    ATTN__CUDA_DRIVER(ATTN__CUDA_MEMBER)
} attn__cuda_driver;

typedef struct attn__cuda_nvrtc {
    ATTN__CUDA_NVRTC(ATTN__CUDA_MEMBER)
    int32_t major, minor;
} attn__cuda_nvrtc;
#undef ATTN__CUDA_MEMBER

enum { ATTN__CUDA_NAME = 64, ATTN__CUDA_PATH = 1024, ATTN__CUDA_TEXT = 4096 };
enum { ATTN__CUDA_PLAN, ATTN__CUDA_TOOLS, ATTN__CUDA_PLAIN, ATTN__CUDA_MODULES = ATTN__CUDA_PLAIN + 3 * 6 * 3 * 2 };
enum { ATTN__CUDA_CUBIN = 1, ATTN__CUDA_AS_PTX = 2 };

/* A loaded module; its functions in the order of attn__cuda_families. */
typedef struct attn__cuda_module {
    void *module, *functions[7];
    int32_t kind;
    const char *origin;
} attn__cuda_module;

#define ATTN__CUDA_MAGIC "attncu\0\1"

/* What desc.get, the cache folder and attn_cuda_image hold: this, then the code. */
typedef struct attn__cuda_image {
    char magic[8];
    uint64_t key[2], sum, bytes;
    int32_t kind, arch, nvrtc, unused[3];
} attn__cuda_image;

struct attn_cuda {
    attn_cuda_desc desc;
    attn__cuda_driver driver;
    void *context;
    int32_t device, owned;          /* owned: the primary context was retained */
    int32_t arch, multiprocessors, driver_version;
    char name[ATTN__CUDA_NAME];
    /* What threads publish, never taken back before the end; see attn__cuda_publish. */
    void *nvrtc;                    /* attn__cuda_nvrtc */
    void *ptx_only;                 /* not NULL: the driver has refused code for the device */
    void *modules[ATTN__CUDA_MODULES];
    void *images[ATTN__CUDA_MODULES];
};

/* ---- >>platform: libraries, environment, publishing between threads ---------------------------------------------- */

/* Stores value where nothing stands yet; returns what stands there then. */
static void *attn__cuda_publish(void **slot, void *value) {
#if (defined(__GNUC__) || defined(__clang__)) && !defined(__TINYC__)
    void *found = NULL;
    if (__atomic_compare_exchange_n(slot, &found, value, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) return value;
    return found;
#elif defined(_MSC_VER)
    void *found = _InterlockedCompareExchangePointer((void *volatile *)slot, value, NULL);
    return found ? found : value;
#else
    if (!*slot) *slot = value; /* without atomics one thread at a time may prepare */
    return *slot;
#endif
}

static void *attn__cuda_peek(void *const *slot) { return attn__cuda_publish((void **)slot, NULL); }

static void *attn__cuda_alloc(const attn_cuda *c, size_t bytes) {
    return c->desc.alloc ? c->desc.alloc(c->desc.user, bytes) : malloc(bytes);
}

static void attn__cuda_release(const attn_cuda *c, void *p) {
    if (!p) return;
    if (c->desc.release) {
        c->desc.release(c->desc.user, p);
    } else {
        free(p);
    }
}

static void attn__cuda_tell(const attn_cuda *c, const char *text) {
    if (c->desc.message) c->desc.message(c->desc.user, text);
}

#if defined(_WIN32)
/* As windows.h declares them, which would bring ten thousand names with it. */
#if defined(__cplusplus)
extern "C" {
#endif
#if defined(_WIN64)
typedef long long(__stdcall *attn__cuda_function)(void);
#else
typedef int(__stdcall *attn__cuda_function)(void);
#endif
struct HINSTANCE__;
__declspec(dllimport) struct HINSTANCE__ *__stdcall LoadLibraryA(const char *name);
__declspec(dllimport) attn__cuda_function __stdcall GetProcAddress(struct HINSTANCE__ *library, const char *name);
__declspec(dllimport) unsigned long __stdcall GetEnvironmentVariableA(const char *name, char *text,
                                                                      unsigned long bytes);
#if defined(__cplusplus)
}
#endif
#endif

static void *attn__cuda_open_library(const attn_cuda *c, const char *name) {
    if (c->desc.open_library) return c->desc.open_library(c->desc.user, name);
#if defined(_WIN32)
    return (void *)LoadLibraryA(name);
#elif defined(__unix__) || defined(__APPLE__)
    return dlopen(name, RTLD_NOW | RTLD_LOCAL);
#else
    return NULL;
#endif
}

static const char *attn__cuda_library_error(const attn_cuda *c) {
#if defined(__unix__) || defined(__APPLE__)
    const char *text = c->desc.open_library ? NULL : dlerror();
    return text ? text : "";
#else
    (void)c;
    return "";
#endif
}

/* Puts the address of a function into *function; a copy of bytes, since C has no conversion from void *. */
static int attn__cuda_symbol(const attn_cuda *c, void *library, const char *name, void *function) {
    void *p = NULL;
    if (c->desc.find_symbol) {
        p = c->desc.find_symbol(c->desc.user, library, name);
    } else {
#if defined(_WIN32)
        attn__cuda_function address = GetProcAddress((struct HINSTANCE__ *)library, name);
        memcpy(&p, &address, sizeof p);
#elif defined(__unix__) || defined(__APPLE__)
        p = dlsym(library, name);
#endif
    }
    memcpy(function, &p, sizeof p);
    return p != NULL;
}

/* An environment variable, "" if it is not set. */
static void attn__cuda_env(const char *name, char *text, size_t bytes) {
#if defined(_WIN32)
    unsigned long length = GetEnvironmentVariableA(name, text, (unsigned long)bytes);
    if (length >= bytes) length = 0;
    text[length] = 0;
#else
    const char *value = getenv(name);
    size_t length = value ? strlen(value) : 0;
    if (length >= bytes) length = 0;
    if (length) memcpy(text, value, length);
    text[length] = 0;
#endif
}

/* ---- >>failures: sentences in pieces ----------------------------------------------------------------------------- */

/* Four pieces make the sentence; desc.message gets all of it, the error as much as it can hold. */
ATTN__COLD int attn__cuda_fail(const attn_cuda *c, attn_error *error, int status, const char *a, const char *b,
                               const char *d, const char *e) {
    char text[ATTN__CUDA_TEXT];
    attn__text t = { text, sizeof text, 0 };
    attn__put(&t, a);
    attn__put(&t, b);
    attn__put(&t, d);
    attn__put(&t, e);
    attn__cuda_tell(c, text);
    return attn__fail_name(error, status, text, "", 0, 0, 0, 0);
}

ATTN__COLD int attn__cuda_refused(const attn_cuda *c, attn_error *error, int code, const char *call) {
    const char *name = NULL, *reason = NULL;
    char number[32];
    attn__text t = { number, sizeof number, 0 };
    attn__put_format(&t, ": error %a, ", code, 0, 0, 0);
    if (c->driver.cuGetErrorName(code, &name) || !name) name = "unknown";
    if (c->driver.cuGetErrorString(code, &reason) || !reason) reason = name;
    return attn__cuda_fail(c, error, ATTN_E_DRIVER, call, number, reason, "");
}

/* ---- >>loader: where the libraries are --------------------------------------------------------------------------- */

/* Names that could not be opened. */
typedef struct attn__cuda_search {
    attn__text tried;
    char text[ATTN__CUDA_TEXT];
} attn__cuda_search;

static void *attn__cuda_try(const attn_cuda *c, attn__cuda_search *s, const char *path) {
    void *library = attn__cuda_open_library(c, path);
    if (library) return library;
    attn__put(&s->tried, s->tried.length ? ", " : "");
    attn__put(&s->tried, path);
    attn__cuda_tell(c, attn__cuda_library_error(c));
    return NULL;
}

/* Fills in a table of functions; the name of the first one that is missing, or NULL. */
#define ATTN__CUDA_FIND(name, arguments) \
    if (!missing && !attn__cuda_symbol(c, library, #name, &table->name)) missing = #name;

static const char *attn__cuda_driver_symbols(const attn_cuda *c, void *library, attn__cuda_driver *table) {
    const char *missing = NULL;
    ATTN__CUDA_DRIVER(ATTN__CUDA_FIND)
    return missing;
}

static const char *attn__cuda_nvrtc_symbols(const attn_cuda *c, void *library, attn__cuda_nvrtc *table) {
    const char *missing = NULL;
    ATTN__CUDA_NVRTC(ATTN__CUDA_FIND)
    return missing;
}
#undef ATTN__CUDA_FIND

static int attn__cuda_open_driver(attn_cuda *c, attn_error *error) {
#if defined(_WIN32)
    const char *name = "nvcuda.dll", *missing;
#else
    const char *name = "libcuda.so.1", *missing; /* without the number it is a stub for linkers */
#endif
    attn__cuda_search s = { { NULL, 0, 0 }, "" };
    void *library;
    int code;
    s.tried.text = s.text;
    s.tried.capacity = sizeof s.text;
    library = attn__cuda_try(c, &s, name);
    if (!library) return attn__cuda_fail(c, error, ATTN_E_NO_DRIVER, "no NVIDIA driver: tried ", s.text, "", "");
    missing = attn__cuda_driver_symbols(c, library, &c->driver);
    if (missing) return attn__cuda_fail(c, error, ATTN_E_NO_DRIVER, name, " has no ", missing, ": it is too old");
    code = c->driver.cuInit(0);
    if (code == 100) return attn__cuda_fail(c, error, ATTN_E_NO_DEVICE, "the driver finds no device", "", "", "");
    if (code) return attn__cuda_refused(c, error, code, "cuInit");
    code = c->driver.cuDriverGetVersion(&c->driver_version);
    if (code) return attn__cuda_refused(c, error, code, "cuDriverGetVersion");
    if (c->driver_version >= 12000) return ATTN_OK;
    return attn__fail(error, ATTN_E_NO_DRIVER, "the NVIDIA driver is of CUDA %a.%b, but 12.0 is needed",
                      c->driver_version / 1000, c->driver_version % 1000 / 10);
}

/* Folders where NVRTC may lie; without a variable, the folder alone. %a: its major version, of which `first` .. `last`
   may lie here; %b: a minor version of Python, each of those below is tried. */
typedef struct attn__cuda_place {
    const char *variable, *folder;
    int32_t first, last;
} attn__cuda_place;

enum { ATTN__CUDA_ANY = 1000, ATTN__CUDA_PYTHON = 9, ATTN__CUDA_PYTHON_END = 15 };

#if defined(_WIN32)
#define ATTN__CUDA_LIBRARY "nvrtc64_%a0_0.dll"
#define ATTN__CUDA_BUILTINS "nvrtc-builtins64_%a%b.dll"
static const attn__cuda_place attn__cuda_places[] = {
    { NULL, "", 0, ATTN__CUDA_ANY },
    { "VIRTUAL_ENV", "\\Lib\\site-packages\\nvidia\\cuda_nvrtc\\bin\\", 12, 12 },
    { "VIRTUAL_ENV", "\\Lib\\site-packages\\nvidia\\cu%a\\bin\\x86_64\\", 13, ATTN__CUDA_ANY },
    { "CONDA_PREFIX", "\\Library\\bin\\", 0, ATTN__CUDA_ANY },
    { "CUDA_PATH", "\\bin\\x64\\", 0, ATTN__CUDA_ANY },
    { "CUDA_PATH", "\\bin\\", 0, ATTN__CUDA_ANY }
};
#else
#if defined(__x86_64__)
#define ATTN__CUDA_TARGET "/targets/x86_64-linux/lib/"
#else
#define ATTN__CUDA_TARGET "/targets/sbsa-linux/lib/"
#endif
#define ATTN__CUDA_LIBRARY "libnvrtc.so.%a"
#define ATTN__CUDA_BUILTINS "libnvrtc-builtins.so.%a.%b"
static const attn__cuda_place attn__cuda_places[] = {
    { NULL, "", 0, ATTN__CUDA_ANY },
    { "VIRTUAL_ENV", "/lib/python3.%b/site-packages/nvidia/cuda_nvrtc/lib/", 12, 12 },
    { "VIRTUAL_ENV", "/lib/python3.%b/site-packages/nvidia/cu%a/lib/", 13, ATTN__CUDA_ANY },
    { "CONDA_PREFIX", "/lib/", 0, ATTN__CUDA_ANY },
    { "CUDA_HOME", "/lib64/", 0, ATTN__CUDA_ANY },
    { "CUDA_HOME", ATTN__CUDA_TARGET, 0, ATTN__CUDA_ANY },
    { "CUDA_PATH", "/lib64/", 0, ATTN__CUDA_ANY },
    { "CUDA_PATH", ATTN__CUDA_TARGET, 0, ATTN__CUDA_ANY },
    { NULL, "/usr/local/cuda/lib64/", 0, ATTN__CUDA_ANY }
};
#endif

/* NVRTC opens its second half by a bare name, at the first compilation, and does not look beside itself: so that half
   is loaded before, by its path. */
static void attn__cuda_open_builtins(const attn_cuda *c, const char *path, const attn__cuda_nvrtc *n) {
    char text[ATTN__CUDA_PATH];
    attn__text t = { text, sizeof text, 0 };
    size_t folder = strlen(path);
    while (folder > 0 && path[folder - 1] != '/' && path[folder - 1] != '\\') folder--;
    if (!folder || folder >= sizeof text) return;
    memcpy(text, path, folder);
    t.length = folder;
    attn__put_format(&t, ATTN__CUDA_BUILTINS, n->major, n->minor, 0, 0);
    if (t.length < sizeof text) attn__cuda_open_library(c, text);
}

static int attn__cuda_try_nvrtc(const attn_cuda *c, attn__cuda_search *s, const char *path, attn__cuda_nvrtc *n) {
    void *library = attn__cuda_try(c, s, path);
    int major = 0, minor = 0;
    const char *missing;
    if (!library) return 0;
    missing = attn__cuda_symbol(c, library, "nvrtcVersion", &n->nvrtcVersion) ? NULL : "nvrtcVersion";
    if (!missing && !n->nvrtcVersion(&major, &minor) && major >= 12) {
        missing = attn__cuda_nvrtc_symbols(c, library, n);
    }
    if (!missing && major >= 12) {
        n->major = major;
        n->minor = minor;
        attn__cuda_open_builtins(c, path, n);
        return 1;
    }
    attn__put(&s->tried, s->tried.length ? ", " : "");
    attn__put(&s->tried, path);
    attn__put_format(&s->tried, missing ? " (no " : " (version %a.%b, but 12.0 is needed)", major, minor, 0, 0);
    if (missing) attn__put(&s->tried, missing);
    if (missing) attn__put(&s->tried, ")");
    return 0;
}

static int attn__cuda_try_place(const attn_cuda *c, attn__cuda_search *s, const attn__cuda_place *p, int32_t major,
                                attn__cuda_nvrtc *n) {
    int32_t end = strstr(p->folder, "%b") ? ATTN__CUDA_PYTHON_END : ATTN__CUDA_PYTHON + 1, minor;
    char path[ATTN__CUDA_PATH] = "";
    size_t root;
    if (p->variable) attn__cuda_env(p->variable, path, sizeof path);
    if (major < p->first || major > p->last || (p->variable && !path[0])) return 0;
    root = strlen(path);
    for (minor = ATTN__CUDA_PYTHON; minor < end; minor++) {
        attn__text t = { path, sizeof path, 0 };
        t.length = root;
        attn__put_format(&t, p->folder, major, minor, 0, 0);
        attn__put_format(&t, ATTN__CUDA_LIBRARY, major, 0, 0, 0);
        if (t.length < sizeof path && attn__cuda_try_nvrtc(c, s, path, n)) return 1;
    }
    return 0;
}

/* The version of the driver first, so that it can load what is compiled. */
static int attn__cuda_search_nvrtc(const attn_cuda *c, attn__cuda_search *s, attn__cuda_nvrtc *n) {
    int32_t best = c->driver_version ? c->driver_version / 1000 : 13, last = attn__max(13, best), i;
    for (i = 0; i <= last - 12; i++) {
        const attn__cuda_place *p = attn__cuda_places;
        int32_t major = best >= 12 + i ? best - i : 12 + i;
        for (; p < attn__cuda_places + ATTN__COUNT(attn__cuda_places); p++) {
            if (attn__cuda_try_place(c, s, p, major, n)) return 1;
        }
    }
    return 0;
}

/* Opens NVRTC when it is needed for the first time. */
static int attn__cuda_open_nvrtc(attn_cuda *c, attn__cuda_nvrtc **nvrtc, attn_error *error) {
    attn__cuda_search s = { { NULL, 0, 0 }, "" };
    char path[ATTN__CUDA_PATH];
    attn__cuda_nvrtc *n = (attn__cuda_nvrtc *)attn__cuda_peek(&c->nvrtc);
    int found;
    if (!n) {
        n = (attn__cuda_nvrtc *)attn__cuda_alloc(c, sizeof *n);
        if (!n) return attn__cuda_fail(c, error, ATTN_E_MEMORY, "desc.alloc gave no memory", "", "", "");
        s.tried.text = s.text;
        s.tried.capacity = sizeof s.text;
        attn__cuda_env("ATTN_CUDA_NVRTC", path, sizeof path);
        if (c->desc.nvrtc || path[0]) {
            found = attn__cuda_try_nvrtc(c, &s, c->desc.nvrtc ? c->desc.nvrtc : path, n);
        } else {
            found = attn__cuda_search_nvrtc(c, &s, n);
        }
        if (!found) {
            attn__cuda_release(c, n);
            return attn__cuda_fail(c, error, ATTN_E_NO_NVRTC, "no NVRTC (set ATTN_CUDA_NVRTC to its path): tried ",
                                   s.text, "", "");
        }
    }
    *nvrtc = (attn__cuda_nvrtc *)attn__cuda_publish(&c->nvrtc, n);
    if (*nvrtc != n) attn__cuda_release(c, n);
    return ATTN_OK;
}

/* ---- >>jit: from fragments to an image --------------------------------------------------------------------------- */

/* A family of modules: what is compiled, and which functions it has. */
typedef struct attn__cuda_family {
    const char *name, *text;
    const char *functions[8];
} attn__cuda_family;

static const attn__cuda_family attn__cuda_families[] = {
    { "plan", "#include \"plan.cu\"\n#include \"meta.cu\"\n#include \"check.cu\"\n",
      { "attn_cu_plan_make", "attn_cu_meta_make", "attn_cu_check", NULL, NULL, NULL, NULL, NULL } },
    { "tools", "#include \"tools.cu\"\n#include \"sparse.cu\"\n",
      { "attn_cu_append", "attn_cu_join_rows", "attn_cu_rope_check", "attn_cu_rope", "attn_cu_index_score",
        "attn_cu_topk_check", "attn_cu_topk", NULL } },
    { "plain", "#include \"plain.cu\"\n",
      { "attn_cu_forward", "attn_cu_merge_runs", NULL, NULL, NULL, NULL, NULL, NULL } }
};

/* Positions in these lists. */
enum { ATTN__CUDA_MAKE_PLAN, ATTN__CUDA_MAKE_META, ATTN__CUDA_CHECK };
enum {
    ATTN__CUDA_APPEND, ATTN__CUDA_JOIN, ATTN__CUDA_ROPE_CHECK, ATTN__CUDA_ROPE, ATTN__CUDA_SCORE,
    ATTN__CUDA_TOPK_CHECK, ATTN__CUDA_TOPK
};
enum { ATTN__CUDA_FORWARD, ATTN__CUDA_MERGE };

static const attn__cuda_family *attn__cuda_family_of(int32_t module) {
    return &attn__cuda_families[module < ATTN__CUDA_PLAIN ? module : ATTN__CUDA_PLAIN];
}

/* The module that runs attention of a layer. */
static int32_t attn__cuda_module_of(const attn_layer *l) {
    int32_t variant = ((int32_t)l->q_type * 6 + (int32_t)l->kv_type) * 3 + (int32_t)l->o_type;
    return ATTN__CUDA_PLAIN + variant * 2 + (l->skip.mode != ATTN_SKIP_OFF);
}

/* Architectures that a PTX may have been made for; a device runs that of any smaller one. */
static const int32_t attn__cuda_archs[] = { 121, 120, 110, 103, 100, 90, 89, 88, 87, 86, 80, 75 };

/* Which code is looked for, best first: for the device, then PTX from near to far. 0 behind the last one. */
static int32_t attn__cuda_candidate(const attn_cuda *c, int32_t index, int32_t *kind) {
    int32_t skipped = c->desc.flags & ATTN_CUDA_PTX || attn__cuda_peek(&c->ptx_only) ? 1 : 0, i;
    *kind = index + skipped ? ATTN__CUDA_AS_PTX : ATTN__CUDA_CUBIN;
    index += skipped;
    if (index < 2) return c->arch;
    for (i = 0; i < ATTN__COUNT(attn__cuda_archs); i++) {
        if (attn__cuda_archs[i] < c->arch && --index < 2) return attn__cuda_archs[i];
    }
    return 0;
}

/* The options of a module, each a string, and the text that is compiled. */
typedef struct attn__cuda_job {
    const char *options[8];
    char lines[8][48];
    int32_t count;
    char text[800];
} attn__cuda_job;

static void attn__cuda_option(attn__cuda_job *job, const char *format, int64_t a) {
    attn__text t = { job->lines[job->count], sizeof job->lines[0], 0 };
    attn__put_format(&t, format, a, 0, 0, 0);
    job->options[job->count] = job->lines[job->count];
    job->count++;
}

/* The sizes of the structs are held against those of the host by the compiler of the device. */
#define ATTN__CUDA_SAME(type) \
    attn__put_format(&t, "static_assert(sizeof(" #type ") == %a, \"" #type "\");\n", (int64_t)sizeof(type), 0, 0, 0)

static void attn__cuda_describe(const attn_cuda *c, attn__cuda_job *job, int32_t module, int32_t arch, int32_t kind) {
    attn__text t = { job->text, sizeof job->text, 0 };
    int32_t variant = module - ATTN__CUDA_PLAIN;
    job->count = 0;
    attn__cuda_option(job, kind == ATTN__CUDA_CUBIN ? "--gpu-architecture=sm_%a" : "--gpu-architecture=compute_%a",
                      arch);
    attn__cuda_option(job, "--fmad=false", 0); /* a fused operation is written as one, so that all variants agree */
    if (c->desc.flags & ATTN_CUDA_LINE_INFO) attn__cuda_option(job, "--generate-line-info", 0);
    if (variant >= 0) {
        attn__cuda_option(job, "-DATTN_Q_TYPE=%a", variant / 2 / 3 / 6);
        attn__cuda_option(job, "-DATTN_KV_TYPE=%a", variant / 2 / 3 % 6);
        attn__cuda_option(job, "-DATTN_O_TYPE=%a", variant / 2 % 3);
        attn__cuda_option(job, "-DATTN_SKIP=%a", variant % 2);
    }
    attn__put(&t, "#include \"attn_params.h\"\n");
    ATTN__CUDA_SAME(attn_cu_batch);
    ATTN__CUDA_SAME(attn_cu_call);
    ATTN__CUDA_SAME(attn_cu_meta);
    ATTN__CUDA_SAME(attn_cu_join);
    ATTN__CUDA_SAME(attn_cu_turn);
    ATTN__CUDA_SAME(attn_cu_select);
    attn__put(&t, attn__cuda_family_of(module)->text);
}
#undef ATTN__CUDA_SAME

/* FNV-1a, 64 bits. */
static uint64_t attn__cuda_hash(uint64_t hash, const void *data, size_t bytes) {
    const unsigned char *p = (const unsigned char *)data;
    size_t i;
    for (i = 0; i < bytes; i++) hash = (hash ^ p[i]) * 0x100000001b3u;
    return hash;
}

static void attn__cuda_hash_text(uint64_t key[2], const char *text) {
    size_t bytes = strlen(text) + 1;
    key[0] = attn__cuda_hash(key[0], text, bytes);
    key[1] = attn__cuda_hash(key[1], text, bytes);
}

/* What a compilation depends on: all of the source, the options, the text. */
static void attn__cuda_key(uint64_t key[2], const attn__cuda_job *job) {
    int32_t i;
    key[0] = 0xcbf29ce484222325u;
    key[1] = 0x84222325cbf29ce4u;
    for (i = 0; i < ATTN__CU_FRAGMENTS; i++) {
        const char *const *piece = attn__cu_fragments[i].pieces;
        for (; *piece; piece++) attn__cuda_hash_text(key, *piece);
    }
    for (i = 0; i < job->count; i++) attn__cuda_hash_text(key, job->options[i]);
    attn__cuda_hash_text(key, job->text);
}

/* attn-plain-sm_90-0123456789abcdef0123456789abcdef */
static void attn__cuda_image_name(char name[ATTN__CUDA_NAME], int32_t module, int32_t arch, int32_t kind,
                                  const uint64_t key[2]) {
    attn__text t = { name, ATTN__CUDA_NAME, 0 };
    int32_t i;
    attn__put(&t, "attn-");
    attn__put(&t, attn__cuda_family_of(module)->name);
    attn__put_format(&t, kind == ATTN__CUDA_CUBIN ? "-sm_%a-" : "-compute_%a-", arch, 0, 0, 0);
    for (i = 0; i < 32; i++) attn__put_char(&t, "0123456789abcdef"[key[i / 16] >> (60 - i % 16 * 4) & 15]);
}

/* The fragments, joined, for NVRTC. */
typedef struct attn__cuda_source {
    const char *names[ATTN__CU_FRAGMENTS], *texts[ATTN__CU_FRAGMENTS];
    char *memory;
} attn__cuda_source;

static int attn__cuda_join(const attn_cuda *c, attn__cuda_source *s) {
    size_t bytes = 0;
    char *at;
    int32_t i;
    const char *const *piece;
    for (i = 0; i < ATTN__CU_FRAGMENTS; i++) {
        for (piece = attn__cu_fragments[i].pieces; *piece; piece++) bytes += strlen(*piece);
    }
    s->memory = at = (char *)attn__cuda_alloc(c, bytes + ATTN__CU_FRAGMENTS);
    if (!at) return 0;
    for (i = 0; i < ATTN__CU_FRAGMENTS; i++) {
        s->names[i] = attn__cu_fragments[i].name;
        s->texts[i] = at;
        for (piece = attn__cu_fragments[i].pieces; *piece; piece++) {
            memcpy(at, *piece, strlen(*piece));
            at += strlen(*piece);
        }
        *at++ = 0;
    }
    return 1;
}

/* The log goes to desc.message; its first line that tells of an error becomes the sentence. */
ATTN__COLD int attn__cuda_compile_failed(const attn_cuda *c, const attn__cuda_nvrtc *n, void *program,
                                         const char *name, attn_error *error) {
    size_t bytes = 0;
    char *log = NULL, *line;
    int status;
    if (!n->nvrtcGetProgramLogSize(program, &bytes) && bytes) log = (char *)attn__cuda_alloc(c, bytes + 1);
    if (!log) return attn__cuda_fail(c, error, ATTN_E_COMPILE, "NVRTC failed: ", name, " (without a log)", "");
    log[0] = log[bytes] = 0;
    n->nvrtcGetProgramLog(program, log);
    attn__cuda_tell(c, log);
    line = strstr(log, "error");
    while (line && line > log && line[-1] != '\n') line--;
    if (line && strchr(line, '\n')) *strchr(line, '\n') = 0;
    status = attn__cuda_fail(c, error, ATTN_E_COMPILE, "NVRTC refused ", name, ": ", line ? line : log);
    attn__cuda_release(c, log);
    return status;
}

/* The largest architecture that NVRTC knows up to `arch`; 0: none. */
static int32_t attn__cuda_known(const attn__cuda_nvrtc *n, int32_t arch) {
    int archs[64], count = 0, i;
    int32_t best = 0;
    if (n->nvrtcGetNumSupportedArchs(&count) || count > ATTN__COUNT(archs) || n->nvrtcGetSupportedArchs(archs)) {
        return arch;
    }
    for (i = 0; i < count; i++) {
        if (archs[i] <= arch && archs[i] > best) best = archs[i];
    }
    return best;
}

static int attn__cuda_compile(attn_cuda *c, const attn__cuda_nvrtc *n, const attn__cuda_job *job, const char *name,
                              void **program, attn_error *error) {
    attn__cuda_source s;
    int status = ATTN_OK;
    if (!attn__cuda_join(c, &s)) {
        return attn__cuda_fail(c, error, ATTN_E_MEMORY, "desc.alloc gave no memory", "", "", "");
    }
    *program = NULL;
    if (n->nvrtcCreateProgram(program, job->text, "attn.cu", ATTN__CU_FRAGMENTS, s.texts, s.names)) {
        status = attn__cuda_fail(c, error, ATTN_E_COMPILE, "NVRTC failed: nvrtcCreateProgram", "", "", "");
    } else if (n->nvrtcCompileProgram(*program, job->count, job->options)) {
        status = attn__cuda_compile_failed(c, n, *program, name, error);
        n->nvrtcDestroyProgram(program);
    }
    attn__cuda_release(c, s.memory);
    return status;
}

/* Over the code and what the head says of it. */
static uint64_t attn__cuda_sum(const attn__cuda_image *image) {
    uint64_t head = attn__cuda_hash(image->key[0], &image->kind, 6 * sizeof image->kind);
    return attn__cuda_hash(head, image + 1, (size_t)image->bytes);
}

/* Code out of a compiled program as an image. */
static int attn__cuda_extract(const attn_cuda *c, const attn__cuda_nvrtc *n, void *program, int32_t arch, int32_t kind,
                              const uint64_t key[2], const char *name, attn__cuda_image **made, attn_error *error) {
    attn__cuda_image *image;
    size_t bytes = 0;
    int failed = kind == ATTN__CUDA_CUBIN ? n->nvrtcGetCUBINSize(program, &bytes) : n->nvrtcGetPTXSize(program, &bytes);
    if (failed || !bytes) return attn__cuda_fail(c, error, ATTN_E_COMPILE, "NVRTC gave no ", name, "", "");
    image = (attn__cuda_image *)attn__cuda_alloc(c, sizeof *image + bytes);
    if (!image) return attn__cuda_fail(c, error, ATTN_E_MEMORY, "desc.alloc gave no memory for ", name, "", "");
    memset(image, 0, sizeof *image);
    memcpy(image->magic, ATTN__CUDA_MAGIC, sizeof image->magic);
    memcpy(image->key, key, sizeof image->key);
    image->bytes = bytes;
    image->kind = kind;
    image->arch = arch;
    image->nvrtc = n->major * 1000 + n->minor * 10;
    failed = kind == ATTN__CUDA_CUBIN ? n->nvrtcGetCUBIN(program, (char *)(image + 1))
                                      : n->nvrtcGetPTX(program, (char *)(image + 1));
    if (failed) {
        attn__cuda_release(c, image);
        return attn__cuda_fail(c, error, ATTN_E_COMPILE, "NVRTC gave no ", name, "", "");
    }
    image->sum = attn__cuda_sum(image);
    *made = image;
    return ATTN_OK;
}

/* Is this what was asked for, and whole? PTX ends with a 0. */
static int attn__cuda_is_whole(const attn__cuda_image *image, size_t bytes, int32_t kind, const uint64_t key[2]) {
    const char *code = (const char *)(image + 1);
    if (bytes <= sizeof *image || memcmp(image->magic, ATTN__CUDA_MAGIC, 8) || memcmp(image->key, key, 16)) return 0;
    if (image->bytes != bytes - sizeof *image || image->kind != kind) return 0;
    if (kind == ATTN__CUDA_AS_PTX && code[image->bytes - 1]) return 0;
    return image->sum == attn__cuda_sum(image);
}

/* ---- >>cache: images that were compiled before ------------------------------------------------------------------- */

/* From the program that uses us. */
static attn__cuda_image *attn__cuda_get(const attn_cuda *c, const char *name, int32_t kind, const uint64_t key[2]) {
    size_t bytes = c->desc.get ? c->desc.get(c->desc.user, name, NULL, 0) : 0;
    attn__cuda_image *image = bytes > sizeof *image ? (attn__cuda_image *)attn__cuda_alloc(c, bytes) : NULL;
    if (!image) return NULL;
    if (c->desc.get(c->desc.user, name, image, bytes) == bytes && attn__cuda_is_whole(image, bytes, kind, key)) {
        return image;
    }
    attn__cuda_release(c, image);
    return NULL;
}

static FILE *attn__cuda_open_file(const char *path, const char *mode) {
#if defined(_MSC_VER)
    FILE *file = NULL;
    return fopen_s(&file, path, mode) ? NULL : file;
#else
    return fopen(path, mode);
#endif
}

/* The file of an image, with a number behind it unless that is 0. Empty: too long. */
static void attn__cuda_path(const attn_cuda *c, const attn__cuda_nvrtc *n, const char *name, uint64_t number,
                            char path[ATTN__CUDA_PATH]) {
    attn__text t = { path, ATTN__CUDA_PATH, 0 };
    attn__put(&t, c->desc.cache_dir);
    attn__put(&t, "/");
    attn__put(&t, name);
    attn__put_format(&t, "-nvrtc%a.%b", n->major, n->minor, 0, 0);
    if (number) attn__put_format(&t, ".%a", (int64_t)(number >> 1), 0, 0, 0);
    if (t.length >= ATTN__CUDA_PATH) path[0] = 0;
}

static attn__cuda_image *attn__cuda_read(const attn_cuda *c, const attn__cuda_nvrtc *n, const char *name, int32_t kind,
                                         const uint64_t key[2]) {
    char path[ATTN__CUDA_PATH];
    attn__cuda_image head, *image = NULL;
    FILE *file;
    attn__cuda_path(c, n, name, 0, path);
    file = path[0] ? attn__cuda_open_file(path, "rb") : NULL;
    if (!file) return NULL;
    if (fread(&head, sizeof head, 1, file) == 1 && head.bytes > 0 && head.bytes < (uint64_t)1 << 30) {
        image = (attn__cuda_image *)attn__cuda_alloc(c, sizeof head + (size_t)head.bytes);
    }
    if (image) {
        size_t bytes;
        memcpy(image, &head, sizeof head);
        bytes = sizeof head + fread(image + 1, 1, (size_t)head.bytes, file);
        if (!attn__cuda_is_whole(image, bytes, kind, key)) {
            attn__cuda_release(c, image);
            image = NULL;
        }
    }
    fclose(file);
    return image;
}

/* Under another name first: whoever reads sees all of it or nothing. A cache that cannot be written is no error. */
static void attn__cuda_write(const attn_cuda *c, const attn__cuda_nvrtc *n, const char *name,
                             const attn__cuda_image *image) {
    char path[ATTN__CUDA_PATH], part[ATTN__CUDA_PATH];
    size_t bytes = sizeof *image + (size_t)image->bytes;
    uint64_t number = attn__cuda_hash((uint64_t)(uintptr_t)&path, &image, sizeof image) | 2;
    int written;
    FILE *file;
    attn__cuda_path(c, n, name, 0, path);
    attn__cuda_path(c, n, name, number, part);
    file = path[0] && part[0] ? attn__cuda_open_file(part, "wb") : NULL;
    if (!file) return;
    written = fwrite(image, 1, bytes, file) == bytes;
    written = !fclose(file) && written;
    if (!written || rename(part, path)) remove(part);
}

/* From the program, else from the folder; `origin` says where it was. */
static attn__cuda_image *attn__cuda_find(attn_cuda *c, const char *name, int32_t kind, const uint64_t key[2],
                                         const char **origin) {
    attn__cuda_image *image = attn__cuda_get(c, name, kind, key);
    attn__cuda_nvrtc *n;
    *origin = "desc.get";
    if (image || !c->desc.cache_dir || c->desc.flags & ATTN_CUDA_NO_JIT) return image;
    *origin = "desc.cache_dir";
    return attn__cuda_open_nvrtc(c, &n, NULL) ? NULL : attn__cuda_read(c, n, name, kind, key);
}

static void attn__cuda_keep(const attn_cuda *c, const attn__cuda_nvrtc *n, const char *name,
                            const attn__cuda_image *image) {
    if (c->desc.put) c->desc.put(c->desc.user, name, image, sizeof *image + (size_t)image->bytes);
    if (c->desc.cache_dir) attn__cuda_write(c, n, name, image);
}

/* ---- >>modules: loading and preparing ---------------------------------------------------------------------------- */

/* Makes our context current until attn__cuda_leave. */
static int attn__cuda_enter(const attn_cuda *c, attn_error *error) {
    int code;
    if (!c) return attn__fail(error, ATTN_E_ARGUMENT, "cuda is NULL", 0, 0);
    if (!c->context) {
        return attn__fail(error, ATTN_E_ARGUMENT, "cuda was opened with desc.arch = %a: it compiles, it does not run",
                          c->desc.arch, 0);
    }
    code = c->driver.cuCtxPushCurrent_v2(c->context);
    return code ? attn__cuda_refused(c, error, code, "cuCtxPushCurrent") : ATTN_OK;
}

static int attn__cuda_leave(const attn_cuda *c, int status) {
    void *context;
    c->driver.cuCtxPopCurrent_v2(&context);
    return status;
}

/* Loads an image. *refused: the driver cannot use such code, another kind may do. */
static int attn__cuda_load(const attn_cuda *c, const attn__cuda_image *image, int32_t module, attn__cuda_module *m,
                           int *refused, attn_error *error) {
    enum { ERROR_LOG = 5, ERROR_LOG_BYTES = 6, RELAXED = 2 };
    const attn__cuda_family *family = attn__cuda_family_of(module);
    char log[ATTN__CUDA_TEXT] = "";
    int options[2] = { ERROR_LOG, ERROR_LOG_BYTES }, mode = RELAXED, code, back, i;
    void *values[2];
    values[0] = log;
    values[1] = (void *)(uintptr_t)sizeof log;
    *refused = 0;
    /* another stream may be capturing, which would forbid us to load */
    code = c->driver.cuThreadExchangeStreamCaptureMode(&mode);
    if (code) return attn__cuda_refused(c, error, code, "cuThreadExchangeStreamCaptureMode");
    code = c->driver.cuModuleLoadDataEx(&m->module, image + 1, 2, options, values);
    *refused = code == 200 || code == 209 || (code >= 218 && code <= 223);
    for (i = 0; !code && family->functions[i]; i++) {
        code = c->driver.cuModuleGetFunction(&m->functions[i], m->module, family->functions[i]);
    }
    back = c->driver.cuThreadExchangeStreamCaptureMode(&mode);
    code = code ? code : back;
    if (code && m->module) c->driver.cuModuleUnload(m->module);
    if (code) m->module = NULL;
    m->kind = image->kind;
    if (!code) return ATTN_OK;
    log[sizeof log - 1] = 0;
    attn__cuda_tell(c, log);
    if (!log[0]) return attn__cuda_refused(c, error, code, "cuModuleLoadDataEx");
    return attn__cuda_fail(c, error, ATTN_E_DRIVER, "cuModuleLoadDataEx: ", log, "", "");
}

/* What was compiled before and the driver does not refuse; m->module stays NULL if there is nothing. */
static int attn__cuda_load_kept(attn_cuda *c, int32_t module, attn__cuda_module *m, attn_error *error) {
    int32_t i, arch, kind;
    int status = ATTN_OK, refused = 0;
    for (i = 0; !m->module && (arch = attn__cuda_candidate(c, i, &kind)) != 0; i++) {
        attn__cuda_job job;
        attn__cuda_image *image;
        uint64_t key[2];
        char name[ATTN__CUDA_NAME];
        attn__cuda_describe(c, &job, module, arch, kind);
        attn__cuda_key(key, &job);
        attn__cuda_image_name(name, module, arch, kind, key);
        image = attn__cuda_find(c, name, kind, key, &m->origin);
        if (image) status = attn__cuda_load(c, image, module, m, &refused, error);
        attn__cuda_release(c, image);
        if (status && !refused) return status;
    }
    return ATTN_OK;
}

/* Compiles one module. Code for a device comes with PTX, so a program has both kinds. */
static int attn__cuda_build(attn_cuda *c, int32_t module, int32_t *arch, int32_t *kind, attn__cuda_nvrtc **n,
                            void **program, attn_error *error) {
    attn__cuda_job job;
    int32_t known;
    int status = attn__cuda_open_nvrtc(c, n, error);
    if (status) return status;
    *arch = attn__cuda_candidate(c, 0, kind);
    known = attn__cuda_known(*n, *arch);
    if (!known) return attn__cuda_fail(c, error, ATTN_E_COMPILE, "NVRTC knows no such device: ", c->name, "", "");
    if (known != *arch) *kind = ATTN__CUDA_AS_PTX;
    *arch = known;
    attn__cuda_describe(c, &job, module, *arch, *kind);
    return attn__cuda_compile(c, *n, &job, attn__cuda_family_of(module)->name, program, error);
}

/* An image out of a compiled program. */
static int attn__cuda_image_of(const attn_cuda *c, const attn__cuda_nvrtc *n, void *program, int32_t module,
                               int32_t arch, int32_t kind, char name[ATTN__CUDA_NAME], attn__cuda_image **made,
                               attn_error *error) {
    attn__cuda_job job;
    uint64_t key[2];
    attn__cuda_describe(c, &job, module, arch, kind);
    attn__cuda_key(key, &job);
    attn__cuda_image_name(name, module, arch, kind, key);
    return attn__cuda_extract(c, n, program, arch, kind, key, name, made, error);
}

/* Code for the device; where the driver refuses it, PTX, and from then on only PTX. */
static int attn__cuda_load_built(attn_cuda *c, int32_t module, attn__cuda_module *m, attn_error *error) {
    attn__cuda_nvrtc *n;
    void *program;
    int32_t arch, kind;
    int refused = 1; /* nothing has been accepted yet */
    int status = attn__cuda_build(c, module, &arch, &kind, &n, &program, error);
    if (status) return status;
    m->origin = "NVRTC";
    for (; refused && kind <= ATTN__CUDA_AS_PTX; kind++) {
        char name[ATTN__CUDA_NAME];
        attn__cuda_image *image = NULL;
        refused = 0;
        status = attn__cuda_image_of(c, n, program, module, arch, kind, name, &image, error);
        if (!status) status = attn__cuda_load(c, image, module, m, &refused, error);
        if (!status) attn__cuda_keep(c, n, name, image);
        if (refused && kind == ATTN__CUDA_CUBIN) attn__cuda_publish(&c->ptx_only, c);
        attn__cuda_release(c, image);
    }
    n->nvrtcDestroyProgram(&program);
    if (!refused || n->major * 1000 + n->minor * 10 <= c->driver_version) return status;
    return attn__fail_name(error, status, "", "the driver, of CUDA %a.%b, is too old for the code of NVRTC %c.%d",
                           c->driver_version / 1000, c->driver_version % 1000 / 10, n->major, n->minor);
}

/* Loads a module. Two threads may do so at once: the first one to finish is the one that counts. */
static int attn__cuda_prepare_module(attn_cuda *c, int32_t module, attn_error *error) {
    attn__cuda_module *m;
    int status = ATTN_OK;
    if (attn__cuda_peek(&c->modules[module])) return ATTN_OK;
    m = (attn__cuda_module *)attn__cuda_alloc(c, sizeof *m);
    if (!m) return attn__cuda_fail(c, error, ATTN_E_MEMORY, "desc.alloc gave no memory", "", "", "");
    memset(m, 0, sizeof *m);
    status = attn__cuda_load_kept(c, module, m, error);
    if (!status && !m->module && c->desc.flags & ATTN_CUDA_NO_JIT) {
        status = attn__cuda_fail(c, error, ATTN_E_NOT_PREPARED, "ATTN_CUDA_NO_JIT is set, and desc.get has no working ",
                                 attn__cuda_family_of(module)->name, " for ", c->name);
    }
    if (!status && !m->module) status = attn__cuda_load_built(c, module, m, error);
    if (status || attn__cuda_publish(&c->modules[module], m) != m) {
        if (!status) c->driver.cuModuleUnload(m->module);
        attn__cuda_release(c, m);
    }
    return status;
}

static int attn__cuda_is_capturing(const attn_cuda *c, void *stream, int *capturing, attn_error *error) {
    int code = c->driver.cuStreamIsCapturing(stream, capturing);
    return code ? attn__cuda_refused(c, error, code, "cuStreamIsCapturing") : ATTN_OK;
}

/* The functions of a module for use on a stream now. */
static int attn__cuda_use(attn_cuda *c, int32_t module, void *stream, void *const **functions, attn_error *error) {
    attn__cuda_module *m = (attn__cuda_module *)attn__cuda_peek(&c->modules[module]);
    int capturing = 0, status;
    *functions = NULL;
    if (!m) {
        status = attn__cuda_is_capturing(c, stream, &capturing, error);
        if (status) return status;
        if (capturing) {
            return attn__cuda_fail(c, error, ATTN_E_NOT_PREPARED, "the stream is capturing, and the kernels of ",
                                   attn__cuda_family_of(module)->name, " are not loaded: attn_cuda_prepare", "");
        }
        status = attn__cuda_prepare_module(c, module, error);
        if (status) return status;
        m = (attn__cuda_module *)attn__cuda_peek(&c->modules[module]);
    }
    *functions = m->functions;
    return ATTN_OK;
}

/* The modules that layers need, in order of first need; returns how many there are, and the one at `index`. */
static int32_t attn__cuda_needed(const attn_layer *layers, int32_t count, int32_t index, int32_t *module) {
    char seen[ATTN__CUDA_MODULES] = { 0 };
    int32_t found = 2, i;
    if (index < 2) *module = index == 1 ? ATTN__CUDA_TOOLS : ATTN__CUDA_PLAN;
    for (i = 0; i < count; i++) {
        int32_t m = attn__cuda_module_of(&layers[i]);
        if (seen[m]) continue;
        seen[m] = 1;
        if (found++ == index) *module = m;
    }
    return found;
}

static int attn__cuda_check_layers(const attn_cuda *c, const attn_layer *layers, int32_t count, int32_t index,
                                   attn_error *error) {
    attn_layer unused;
    int32_t module, i;
    if (!c) return attn__fail(error, ATTN_E_ARGUMENT, "cuda is NULL", 0, 0);
    if (count < 0) return attn__fail(error, ATTN_E_ARGUMENT, "count = %a is negative", count, 0);
    if (count > 0 && !layers) return attn__fail(error, ATTN_E_ARGUMENT, "layers is NULL", 0, 0);
    for (i = 0; i < count; i++) {
        int status = attn__resolve(&layers[i], &unused, error);
        if (status) return status;
    }
    if (index >= -1 && index < attn__cuda_needed(layers, count, -1, &module)) return ATTN_OK;
    return attn__fail(error, ATTN_E_ARGUMENT, "index = %a, but there are %b modules", index,
                      attn__cuda_needed(layers, count, -1, &module));
}

ATTN_API int32_t attn_cuda_prepare_count(const attn_layer *layers, int32_t count) {
    int32_t module;
    attn_layer unused;
    int32_t i;
    for (i = 0; layers && i < count; i++) {
        if (attn__resolve(&layers[i], &unused, NULL)) return 0;
    }
    return attn__cuda_needed(layers, layers ? count : 0, -1, &module);
}

ATTN_API int attn_cuda_prepare(attn_cuda *cuda, const attn_layer *layers, int32_t count, int32_t index,
                               attn_error *error) {
    int status = attn__cuda_check_layers(cuda, layers, count, index, error);
    int32_t module = 0, last, i;
    if (!status) status = attn__cuda_enter(cuda, error);
    if (status) return status;
    last = index >= 0 ? index : attn__cuda_needed(layers, count, -1, &module) - 1;
    for (i = attn__max(0, index); i <= last && !status; i++) {
        attn__cuda_needed(layers, count, i, &module);
        status = attn__cuda_prepare_module(cuda, module, error);
    }
    if (!status) attn__succeed(error);
    return attn__cuda_leave(cuda, status);
}

ATTN_API int attn_cuda_image(attn_cuda *cuda, const attn_layer *layers, int32_t count, int32_t index,
                             attn_cuda_image_data *image, attn_error *error) {
    int status = attn__cuda_check_layers(cuda, layers, count, index, error);
    int32_t module = 0, arch, kind;
    attn__cuda_image *made;
    if (!status && (index < 0 || !image)) {
        status = attn__fail(error, ATTN_E_ARGUMENT, index < 0 ? "index = %a is negative" : "image is NULL", index, 0);
    }
    if (status) return status;
    attn__cuda_needed(layers, count, index, &module);
    made = (attn__cuda_image *)attn__cuda_peek(&cuda->images[module]);
    if (!made) {
        attn__cuda_nvrtc *n;
        void *program;
        status = attn__cuda_build(cuda, module, &arch, &kind, &n, &program, error);
        if (status) return status;
        status = attn__cuda_image_of(cuda, n, program, module, arch, kind, image->name, &made, error);
        n->nvrtcDestroyProgram(&program);
        if (status) return status;
        if (attn__cuda_publish(&cuda->images[module], made) != made) {
            attn__cuda_release(cuda, made);
            made = (attn__cuda_image *)attn__cuda_peek(&cuda->images[module]);
        }
    }
    attn__cuda_image_name(image->name, module, made->arch, made->kind, made->key);
    image->data = made;
    image->bytes = sizeof *made + (size_t)made->bytes;
    return attn__succeed(error);
}

/* ---- >>open: devices and contexts -------------------------------------------------------------------------------- */

static int attn__cuda_attributes(attn_cuda *c, attn_error *error) {
    enum { MULTIPROCESSORS = 16, MAJOR = 75, MINOR = 76 };
    int major = 0, minor = 0, count = 0;
    int code = c->driver.cuDeviceGetAttribute(&major, MAJOR, c->device);
    if (!code) code = c->driver.cuDeviceGetAttribute(&minor, MINOR, c->device);
    if (!code) code = c->driver.cuDeviceGetAttribute(&count, MULTIPROCESSORS, c->device);
    if (!code) code = c->driver.cuDeviceGetName(c->name, sizeof c->name, c->device);
    if (code) return attn__cuda_refused(c, error, code, "cuDeviceGetAttribute");
    c->arch = major * 10 + minor;
    c->multiprocessors = count;
    if (c->arch >= 75) return ATTN_OK;
    return attn__cuda_fail(c, error, ATTN_E_NO_DEVICE, c->name, " has a compute capability below 7.5", "", "");
}

/* The device by its number, and its primary context. */
static int attn__cuda_open_device(attn_cuda *c, attn_error *error) {
    int count = 0, code = c->driver.cuDeviceGetCount(&count), status;
    if (code) return attn__cuda_refused(c, error, code, "cuDeviceGetCount");
    if (c->desc.device < 0 || c->desc.device >= count) {
        return attn__fail(error, ATTN_E_NO_DEVICE, "desc.device = %a, but the driver has %b devices", c->desc.device,
                          count);
    }
    code = c->driver.cuDeviceGet(&c->device, c->desc.device);
    if (code) return attn__cuda_refused(c, error, code, "cuDeviceGet");
    status = attn__cuda_attributes(c, error);
    if (status) return status;
    code = c->driver.cuDevicePrimaryCtxRetain(&c->context, c->device);
    if (code) return attn__cuda_refused(c, error, code, "cuDevicePrimaryCtxRetain");
    c->owned = 1;
    return ATTN_OK;
}

static int attn__cuda_open_current(attn_cuda *c, attn_error *error) {
    int code = c->driver.cuCtxGetCurrent(&c->context);
    if (code) return attn__cuda_refused(c, error, code, "cuCtxGetCurrent");
    if (!c->context) return attn__fail(error, ATTN_E_ARGUMENT, "no context is current on this thread", 0, 0);
    code = c->driver.cuCtxGetDevice(&c->device);
    return code ? attn__cuda_refused(c, error, code, "cuCtxGetDevice") : attn__cuda_attributes(c, error);
}

ATTN_API int attn_cuda_open(attn_cuda **cuda, const attn_cuda_desc *desc, attn_error *error) {
    attn_cuda empty, *c;
    int status = ATTN_OK;
    if (!cuda) return attn__fail(error, ATTN_E_ARGUMENT, "cuda is NULL", 0, 0);
    *cuda = NULL;
    memset(&empty, 0, sizeof empty);
    if (desc) empty.desc = *desc;
    if (empty.desc.flags & ~15) {
        return attn__fail(error, ATTN_E_ARGUMENT, "desc.flags = %a has unknown bits", empty.desc.flags, 0);
    }
    if (empty.desc.arch && empty.desc.arch < 75) {
        return attn__fail(error, ATTN_E_ARGUMENT, "desc.arch = %a, but it must be 0 or at least 75", empty.desc.arch,
                          0);
    }
    c = (attn_cuda *)attn__cuda_alloc(&empty, sizeof *c);
    if (!c) return attn__fail(error, ATTN_E_MEMORY, "desc.alloc gave no memory", 0, 0);
    *c = empty;
    c->arch = empty.desc.arch;
    if (!c->arch) status = attn__cuda_open_driver(c, error);
    if (!c->arch && !status) {
        status = c->desc.flags & ATTN_CUDA_CURRENT ? attn__cuda_open_current(c, error)
                                                   : attn__cuda_open_device(c, error);
    }
    if (status) {
        attn_cuda_close(c);
        return status;
    }
    *cuda = c;
    return attn__succeed(error);
}

ATTN_API void attn_cuda_close(attn_cuda *cuda) {
    int32_t i;
    if (!cuda) return;
    if (cuda->context && !attn__cuda_enter(cuda, NULL)) {
        for (i = 0; i < ATTN__CUDA_MODULES; i++) {
            attn__cuda_module *m = (attn__cuda_module *)cuda->modules[i];
            if (m) cuda->driver.cuModuleUnload(m->module);
        }
        attn__cuda_leave(cuda, 0);
    }
    if (cuda->owned) cuda->driver.cuDevicePrimaryCtxRelease_v2(cuda->device);
    for (i = 0; i < ATTN__CUDA_MODULES; i++) {
        attn__cuda_release(cuda, cuda->modules[i]);
        attn__cuda_release(cuda, cuda->images[i]);
    }
    attn__cuda_release(cuda, cuda->nvrtc);
    attn__cuda_release(cuda, cuda);
}

static void attn__cuda_explain_module(attn__text *t, int32_t module, const attn__cuda_module *m) {
    static const char *const types[] = { "f32", "f16", "bf16", "e4m3", "e5m2", "int8" };
    int32_t variant = module - ATTN__CUDA_PLAIN;
    attn__put(t, attn__cuda_family_of(module)->name);
    if (variant >= 0) {
        attn__put(t, " q ");
        attn__put(t, types[variant / 36]);
        attn__put(t, ", kv ");
        attn__put(t, types[variant / 6 % 6]);
        attn__put(t, ", o ");
        attn__put(t, types[variant / 2 % 3]);
        attn__put(t, variant % 2 ? ", skip" : "");
    }
    attn__put(t, m->kind == ATTN__CUDA_CUBIN ? ": code from " : ": PTX from ");
    attn__put(t, m->origin);
    attn__put(t, "\n");
}

ATTN_API size_t attn_cuda_explain(const attn_cuda *cuda, char *text, size_t bytes) {
    attn__text t = { text, text ? bytes : 0, 0 };
    const attn__cuda_nvrtc *n;
    int32_t i;
    if (t.capacity) text[0] = 0;
    if (!cuda) {
        attn__put(&t, "not open\n");
        return t.length;
    }
    n = (const attn__cuda_nvrtc *)attn__cuda_peek(&cuda->nvrtc);
    attn__put(&t, cuda->context ? cuda->name : "no device");
    attn__put_format(&t, ", sm_%a", cuda->arch, 0, 0, 0);
    if (cuda->context) {
        attn__put_format(&t, ", %a multiprocessors, driver %b.%c", cuda->multiprocessors, cuda->driver_version / 1000,
                         cuda->driver_version % 1000 / 10, 0);
    }
    if (n) attn__put_format(&t, ", NVRTC %a.%b", n->major, n->minor, 0, 0);
    attn__put(&t, "\n");
    for (i = 0; i < ATTN__CUDA_MODULES; i++) {
        const attn__cuda_module *m = (const attn__cuda_module *)attn__cuda_peek(&cuda->modules[i]);
        if (m) attn__cuda_explain_module(&t, i, m);
    }
    return t.length;
}

ATTN_API void *attn_cuda_alloc(attn_cuda *cuda, size_t bytes, attn_error *error) {
    unsigned long long address = 0;
    int code;
    if (attn__cuda_enter(cuda, error)) return NULL;
    code = cuda->driver.cuMemAlloc_v2(&address, bytes ? bytes : 1);
    if (code) attn__cuda_refused(cuda, error, code, "cuMemAlloc");
    attn__cuda_leave(cuda, 0);
    return (void *)(uintptr_t)address;
}

ATTN_API void attn_cuda_free(attn_cuda *cuda, void *p) {
    if (!p || attn__cuda_enter(cuda, NULL)) return;
    cuda->driver.cuMemFree_v2((unsigned long long)(uintptr_t)p);
    attn__cuda_leave(cuda, 0);
}

ATTN_API int attn_cuda_write(attn_cuda *cuda, void *to, const void *from, size_t bytes, attn_error *error) {
    int status = attn__cuda_enter(cuda, error), code;
    if (status) return status;
    code = bytes ? cuda->driver.cuMemcpyHtoD_v2((unsigned long long)(uintptr_t)to, from, bytes) : 0;
    status = code ? attn__cuda_refused(cuda, error, code, "cuMemcpyHtoD") : attn__succeed(error);
    return attn__cuda_leave(cuda, status);
}

ATTN_API int attn_cuda_read(attn_cuda *cuda, void *to, const void *from, size_t bytes, attn_error *error) {
    int status = attn__cuda_enter(cuda, error), code;
    if (status) return status;
    code = bytes ? cuda->driver.cuMemcpyDtoH_v2(to, (unsigned long long)(uintptr_t)from, bytes) : 0;
    status = code ? attn__cuda_refused(cuda, error, code, "cuMemcpyDtoH") : attn__succeed(error);
    return attn__cuda_leave(cuda, status);
}

/* ---- >>params: what the kernels are told ------------------------------------------------------------------------- */

/* Per multiprocessor: blocks of attention, as many as it holds at once; equal runs of decode work; blocks of kernels
   that go through rows. Bytes of exec.mem before the slots. */
enum { ATTN__CUDA_BLOCKS = 3, ATTN__CUDA_SKIP_BLOCKS = 2, ATTN__CUDA_WORKERS = 2, ATTN__CUDA_ROW_BLOCKS = 8 };
enum { ATTN__CUDA_HEAD = 256 };
enum { ATTN__CUDA_ROW_TILE = 16, ATTN__CUDA_KEY_TILE = 64 };

static long long attn__cuda_address(const void *p) { return (long long)(uintptr_t)p; }

static attn_cu_layer attn__cuda_layer(const attn_layer *l) {
    attn_cu_layer out;
    memset(&out, 0, sizeof out);
    out.heads = l->heads;
    out.kv_heads = l->kv_heads;
    out.head_dim = l->head_dim;
    out.v_dim = l->v_dim;
    out.q_type = (int)l->q_type;
    out.kv_type = (int)l->kv_type;
    out.o_type = (int)l->o_type;
    out.mask = (int)l->mask;
    out.window_left = l->window_left;
    out.window_right = l->window_right;
    out.sink_keys = l->sink_keys;
    out.chunk = l->chunk;
    out.page_size = l->page_size;
    out.ring = l->ring;
    out.topk = l->topk;
    out.scale_kind = l->scale_kind;
    out.split_keys = l->split_keys;
    out.row_tile = l->row_tile;
    out.key_tile = l->key_tile;
    out.workers = l->workers;
    out.scale = (int)attn__bits_of(l->scale);
    out.softcap = (int)attn__bits_of(l->softcap);
    out.skip_mode = l->skip.mode;
    out.skip_prefill = (int)attn__bits_of(l->skip.prefill);
    out.skip_decode = (int)attn__bits_of(l->skip.decode);
    out.flags = l->flags;
    return out;
}

static attn_cu_plan attn__cuda_plan(const attn_plan *plan, const attn__capacity *c) {
    attn__view v = attn__view_of((int32_t *)plan->device, plan->n, c);
    const int32_t *words = (const int32_t *)plan->device;
    attn_cu_plan out;
    memset(&out, 0, sizeof out);
    out.words = attn__cuda_address(words);
    out.max_rows = plan->max_rows;
    out.version = ATTN_VERSION;
    out.class_id = attn__class_of(&plan->resolved);
    out.n = plan->n;
    out.max_q_len = plan->max_q_len;
    out.max_kv_len = plan->max_kv_len;
    out.families = plan->families;
    out.strips = (int)c->strips;
    out.tasks = (int)c->tasks;
    out.merges = (int)c->merges;
    out.slots = (int)c->slots;
    out.strips_at = (int)((const int32_t *)v.strips - words);
    out.tasks_at = (int)((const int32_t *)v.tasks - words);
    out.merges_at = (int)(v.merges - words);
    out.count = (int)c->words;
    return out;
}

/* How exec.mem is laid out: head, slots, blocks. */
typedef struct attn__cuda_layout {
    attn__capacity capacity;
    int64_t slot_floats, slots, block, blocks, bytes;
    int32_t block_count;
} attn__cuda_layout;

/* A block's scratch: the states of a run, then TOPK's bits, one per key, and the keys that a row sees. */
static void attn__cuda_measure(attn__cuda_layout *s, const attn_cuda *cuda, const attn_plan *plan) {
    const attn_layer *l = &plan->resolved;
    int64_t bits, picked, depth, count;
    attn__capacity_of_plan(&s->capacity, plan);
    if (!(plan->families >> ATTN_DECODE & 1)) s->capacity.depth = 1;
    depth = s->capacity.depth;
    bits = l->mask == ATTN_TOPK ? ((int64_t)plan->max_kv_len / 64 + 1) * 8 : 0;
    picked = l->mask == ATTN_TOPK ? (attn__min64(l->topk, plan->max_kv_len) + 1) * 4 : 0;
    s->slot_floats = s->capacity.rows * attn__state_stride(l);
    s->slots = ATTN__CUDA_HEAD;
    s->block = attn__round_up(depth * s->slot_floats * 4 + bits + picked, 256);
    s->blocks = s->slots + attn__round_up(s->capacity.slots * s->slot_floats * 4, 256);
    count = (int64_t)cuda->multiprocessors * (l->skip.mode ? ATTN__CUDA_SKIP_BLOCKS : ATTN__CUDA_BLOCKS);
    s->block_count = (int32_t)attn__min64(attn__max64(1, s->capacity.tasks), count);
    s->bytes = s->blocks + s->block * s->block_count;
}

static attn_cu_cache attn__cuda_cache(const attn__cache *c) {
    attn_cu_cache out;
    memset(&out, 0, sizeof out);
    out.base = attn__cuda_address(c->base);
    out.page = c->page;
    out.row = c->row;
    out.head = c->head;
    out.dim = c->dim;
    out.ragged = c->ragged;
    if (c->scale) {
        out.scale = attn__cuda_address(c->scale->base);
        out.scale_page = c->scale->page;
        out.scale_row = c->scale->row;
    }
    return out;
}

/* Everything but what append and index_score add. */
static void attn__cuda_call(attn_cu_call *p, const attn_cuda *cuda, const attn_plan *plan, const attn_io *io,
                            const attn_exec *exec, int use) {
    const attn_layer *l = &plan->resolved;
    long long mem = attn__cuda_address(exec->mem);
    attn__cuda_layout s;
    attn__run r;
    memset(p, 0, sizeof *p);
    memset(&r, 0, sizeof r);
    attn__cuda_measure(&s, cuda, plan);
    attn__open_caches(&r, plan, io);
    p->layer = attn__cuda_layer(l);
    p->plan = attn__cuda_plan(plan, &s.capacity);
    p->k = attn__cuda_cache(&r.k);
    p->v = attn__cuda_cache(&r.v);
    p->q = attn__cuda_address(io->q);
    p->q_row = r.strides.q_row;
    p->q_head = r.strides.q_head;
    p->o = attn__cuda_address(io->o);
    p->o_row = r.strides.o_row;
    p->o_head = r.strides.o_head;
    p->lse = attn__cuda_address(io->lse);
    p->sinks = attn__cuda_address(io->sinks);
    p->alibi = attn__cuda_address(io->alibi);
    p->tree = attn__cuda_address(io->tree);
    p->topk = attn__cuda_address(io->topk);
    p->lambda = attn__cuda_address(io->lambda);
    p->certificate = attn__cuda_address(io->certificate);
    p->counters = attn__cuda_address(io->counters);
    if (l->scale_kind != ATTN_SCALE_PER_KEY) {
        p->k_scale = attn__cuda_address(io->k_scale);
        p->v_scale = attn__cuda_address(r.v_scale);
    }
    p->page_table = attn__cuda_address(io->page_table);
    p->table_row = r.strides.page_table_row;
    p->exec = mem;
    p->slots = mem + s.slots;
    p->slot_floats = s.slot_floats;
    p->blocks = mem + s.blocks;
    p->block_bytes = s.block;
    p->state_stride = attn__state_stride(l);
    p->strip_rows = (int)s.capacity.rows;
    p->depth = s.capacity.depth;
    p->pages = io->pages;
    p->use = use;
    p->block_count = s.block_count;
}

/* ---- >>check: what the host can check, with the words of attn.h -------------------------------------------------- */

/* Memory of the device is checked as that of the host: an address, a size, an alignment. */
static int attn__cuda_check_plan(const attn_plan *plan, attn_error *error) {
    if (!plan) return attn__fail(error, ATTN_E_ARGUMENT, "plan is NULL", 0, 0);
    if (plan->device) return ATTN_OK;
    return attn__fail(error, ATTN_E_PLAN, "plan was not made by attn_cuda_plan_make", 0, 0);
}

/* A plan without requests, but with rows and keys if there may be any: the checks of attn.h then look at pointers,
   strides and fields, and at no array. */
typedef struct attn__cuda_shadow {
    attn_plan plan;
    int32_t words[ATTN__HEADER + 2 + ATTN__TASK];
} attn__cuda_shadow;

static const attn_plan *attn__cuda_shadow_of(attn__cuda_shadow *s, const attn_plan *plan) {
    int some = plan->n > 0 && plan->max_rows > 0;
    const int32_t rows = some ? (int32_t)plan->max_rows : 0;
    const int32_t header[] = { ATTN_VERSION, 0, rows, plan->strips, plan->tasks };
    memset(s->words, 0, sizeof s->words);
    memcpy(s->words, header, sizeof header);
    s->plan = *plan;
    s->plan.words = s->words;
    s->plan.rows = rows;
    s->plan.n = 0;
    s->plan.max_rows = 0;
    s->plan.resolved.workers = 1;
    s->plan.resolved.split_keys = 0;
    s->words[ATTN__HEADER + 1] = some && plan->max_kv_len > 0;
    return &s->plan;
}

static int attn__cuda_check_exec(const attn_cuda *cuda, const attn_plan *plan, const attn_exec *exec,
                                 attn_error *error) {
    attn__cuda_layout s;
    if (!exec) return attn__fail(error, ATTN_E_ARGUMENT, "exec is NULL", 0, 0);
    attn__cuda_measure(&s, cuda, plan);
    return attn__check_memory("exec.mem", exec->mem, exec->bytes, attn__to_size(s.bytes), ATTN__CUDA_HEAD, error);
}

/* The plan, the layer, io's strides and, last, exec; `use` says what else of io. */
static int attn__cuda_check_call(const attn_cuda *cuda, const attn_plan *plan, const attn_layer *layer,
                                 const attn_io *io, const attn_exec *exec, int use, attn_error *error) {
    attn__cuda_shadow shadow;
    attn__run r;
    int status = cuda ? attn__cuda_check_plan(plan, error) : attn__fail(error, ATTN_E_ARGUMENT, "cuda is NULL", 0, 0);
    if (!status) status = attn__check_call(&r, attn__cuda_shadow_of(&shadow, plan), layer, io, error);
    if (!status && use == ATTN__READ) status = attn__check_rows(&r, error);
    if (!status && use == ATTN__SCORE) {
        status = attn__check_pointer("io.q", io->q, r.plan->rows > 0, attn__type_bytes(layer->q_type), error);
    }
    if (!status) status = attn__check_cache(&r, use, error);
    if (!status) status = attn__cuda_check_exec(cuda, plan, exec, error);
    if (status || use == ATTN__WRITE) return status;
    if (plan->resolved.row_tile == ATTN__CUDA_ROW_TILE && plan->resolved.key_tile == ATTN__CUDA_KEY_TILE) return status;
    return attn__fail(error, ATTN_E_PLAN, "layer.row_tile = %a and layer.key_tile = %b, but attn_cuda_geometry says 16 "
                                          "and 64",
                      plan->resolved.row_tile, plan->resolved.key_tile);
}

/* ATTN_TRUSTED speaks of page ids and lists; trees and lambda are checked all the same. */
static int attn__cuda_is_checked(const attn_layer *l) {
    return !(l->flags & ATTN_TRUSTED) || l->mask == ATTN_TREE || l->skip.mode == ATTN_SKIP_LAMBDA;
}

/* No array is read here, so nothing may follow from one. */
static int attn__cuda_check_capacities(const attn_batch *batch, attn_error *error) {
    int status = attn__check_capacity(batch, error);
    if (status || !batch->n || (batch->max_q_len && batch->max_kv_len && batch->max_rows)) return status;
    return attn__fail(error, ATTN_E_BATCH, "batch.max_q_len, max_kv_len and max_rows must be set: lengths on a device "
                                           "are not read by the host", 0, 0);
}

/* ---- >>launch: kernels onto streams ------------------------------------------------------------------------------ */

/* Blocks for so many independent pieces of work, none for none. */
static int64_t attn__cuda_grid(const attn_cuda *c, int64_t pieces, int32_t per_multiprocessor) {
    return attn__min64(pieces, (int64_t)c->multiprocessors * per_multiprocessor);
}

static int attn__cuda_launch(const attn_cuda *c, void *function, int64_t blocks, unsigned threads, void *stream,
                             void *params, attn_error *error) {
    void *arguments[1];
    int code;
    arguments[0] = params;
    if (blocks <= 0) return ATTN_OK;
    code = c->driver.cuLaunchKernel(function, (unsigned)blocks, 1, 1, threads, 1, 1, 0, stream, arguments, NULL);
    return code ? attn__cuda_refused(c, error, code, "cuLaunchKernel") : ATTN_OK;
}

static int attn__cuda_clear_verdict(const attn_cuda *c, const attn_exec *exec, attn_error *error) {
    size_t words = sizeof(attn_cu_verdict) / 4;
    int code = c->driver.cuMemsetD32Async((unsigned long long)(uintptr_t)exec->mem, 0, words, exec->stream);
    return code ? attn__cuda_refused(c, error, code, "cuMemsetD32Async") : ATTN_OK;
}

/* The checker before a call; the call's kernels leave if it finds something. */
static int attn__cuda_launch_check(attn_cuda *c, attn_cu_call *p, const attn_plan *plan, const attn_exec *exec,
                                   attn_error *error) {
    void *const *functions;
    int status = attn__cuda_use(c, ATTN__CUDA_PLAN, exec->stream, &functions, error);
    p->is_checked = 1;
    if (!status) status = attn__cuda_clear_verdict(c, exec, error);
    if (status || !plan->n) return status;
    return attn__cuda_launch(c, functions[ATTN__CUDA_CHECK], p->block_count, 256, exec->stream, p, error);
}

/* The functions of a module, and the checker where it is wanted. */
static int attn__cuda_begin(attn_cuda *c, int32_t module, attn_cu_call *p, const attn_plan *plan,
                            const attn_exec *exec, void *const **functions, attn_error *error) {
    int status = attn__cuda_enter(c, error);
    if (status) return status;
    status = attn__cuda_use(c, module, exec->stream, functions, error);
    if (!status && attn__cuda_is_checked(&plan->resolved)) status = attn__cuda_launch_check(c, p, plan, exec, error);
    return status ? attn__cuda_leave(c, status) : ATTN_OK;
}

static int attn__cuda_end(const attn_cuda *c, int status, attn_error *error) {
    if (!status) attn__succeed(error);
    return attn__cuda_leave(c, status);
}

/* For what needs no plan: one kernel of the tools, `checker` before it where exec has memory for the verdict. */
static int attn__cuda_run_tool(attn_cuda *c, int checker, int tool, int64_t blocks, unsigned threads,
                               const attn_exec *exec, void *params, attn_error *error) {
    void *const *functions;
    int status = attn__cuda_enter(c, error);
    if (status) return status;
    status = attn__cuda_use(c, ATTN__CUDA_TOOLS, exec->stream, &functions, error);
    if (!status && exec->mem) {
        status = attn__cuda_clear_verdict(c, exec, error);
        if (!status) {
            status = attn__cuda_launch(c, functions[checker], attn__max64(1, blocks), 256, exec->stream, params, error);
        }
    }
    if (!status) status = attn__cuda_launch(c, functions[tool], blocks, threads, exec->stream, params, error);
    return attn__cuda_end(c, status, error);
}

/* For their exec. */
static int attn__cuda_check_verdict(const attn_cuda *c, const attn_exec *exec, attn_error *error) {
    if (!c || !exec) return attn__fail(error, ATTN_E_ARGUMENT, c ? "exec is NULL" : "cuda is NULL", 0, 0);
    return exec->mem ? attn__check_memory("exec.mem", exec->mem, exec->bytes, 64, 64, error) : ATTN_OK;
}

/* ---- >>steps: plan, metadata, append, forward -------------------------------------------------------------------- */

ATTN_API int attn_cuda_geometry(const attn_cuda *cuda, attn_layer *layer, attn_error *error) {
    if (!cuda || !layer) return attn__fail(error, ATTN_E_ARGUMENT, "cuda or layer is NULL", 0, 0);
    if (!cuda->context) return attn__fail(error, ATTN_E_ARGUMENT, "cuda was opened without a device", 0, 0);
    layer->row_tile = ATTN__CUDA_ROW_TILE;
    layer->key_tile = ATTN__CUDA_KEY_TILE;
    layer->workers = cuda->multiprocessors * ATTN__CUDA_WORKERS;
    return attn__succeed(error);
}

static int attn__cuda_check_batch(attn_plan *made, const attn_batch *batch, const attn_layer *layer,
                                  attn_error *error) {
    int status = attn__cuda_check_capacities(batch, error);
    if (status) return status;
    if (!layer) return attn__fail(error, ATTN_E_ARGUMENT, "layer is NULL", 0, 0);
    if (!layer->row_tile || !layer->key_tile || !layer->workers) {
        return attn__fail(error, ATTN_E_LAYER, "layer.row_tile, key_tile and workers must be set: attn_cuda_geometry",
                          0, 0);
    }
    status = attn__plan_check(made, batch, layer, error);
    if (!status && batch->n > 0 && !batch->kv_len) {
        status = attn__fail(error, ATTN_E_BATCH, "batch.kv_len is NULL", 0, 0);
    }
    if (!status && batch->n > 0 && layer->mask == ATTN_PREFIX && !batch->prefix) {
        status = attn__fail(error, ATTN_E_BATCH, "batch.prefix is NULL, but the mask is PREFIX", 0, 0);
    }
    if (!status) status = attn__check_pointer("batch.q_len", batch->q_len, 0, 4, error);
    if (!status) status = attn__check_pointer("batch.kv_len", batch->kv_len, 0, 4, error);
    if (!status) status = attn__check_pointer("batch.phase", batch->phase, 0, 4, error);
    if (!status) status = attn__check_pointer("batch.prefix", batch->prefix, 0, 4, error);
    return status;
}

ATTN_API int attn_cuda_plan_make(attn_cuda *cuda, attn_plan *plan, const attn_batch *batch, const attn_layer *layer,
                                 void *mem, size_t bytes, void *stream, attn_error *error) {
    void *const *functions;
    attn__capacity c;
    attn_cu_batch p;
    attn_plan made;
    int status = plan ? ATTN_OK : attn__fail(error, ATTN_E_ARGUMENT, "plan is NULL", 0, 0);
    if (!status) status = attn__cuda_check_batch(&made, batch, layer, error);
    if (!status) status = attn__check_memory("mem", mem, bytes, made.bytes, 16, error);
    if (!status) status = attn__cuda_enter(cuda, error);
    if (status) return status;
    attn__capacity_of_plan(&c, &made);
    made.rows = (int32_t)made.max_rows;
    made.strips = (int32_t)c.strips;
    made.tasks = (int32_t)c.tasks;
    made.merges = (int32_t)c.merges;
    made.slots = (int32_t)c.slots;
    made.device = mem;
    memset(&p, 0, sizeof p);
    p.layer = attn__cuda_layer(&made.resolved);
    p.plan = attn__cuda_plan(&made, &c);
    p.q_len = attn__cuda_address(batch->q_len);
    p.kv_len = attn__cuda_address(batch->kv_len);
    p.phase = attn__cuda_address(batch->phase);
    p.prefix = layer->mask == ATTN_PREFIX ? attn__cuda_address(batch->prefix) : 0;
    status = attn__cuda_use(cuda, ATTN__CUDA_PLAN, stream, &functions, error);
    if (!status) status = attn__cuda_launch(cuda, functions[ATTN__CUDA_MAKE_PLAN], 1, 1024, stream, &p, error);
    if (!status) *plan = made;
    return attn__cuda_end(cuda, status, error);
}

ATTN_API size_t attn_cuda_exec_bytes(const attn_cuda *cuda, const attn_plan *plan) {
    attn__cuda_layout s;
    if (!cuda || !cuda->context || attn__cuda_check_plan(plan, NULL)) return 0;
    attn__cuda_measure(&s, cuda, plan);
    return attn__to_size(s.bytes);
}

static void attn__cuda_meta_params(attn_cu_meta *p, const attn_meta *m, const attn_batch *batch,
                                   const attn_meta_input *input) {
    memset(p, 0, sizeof *p);
    p->n = m->n;
    p->max_q_len = m->max_q_len;
    p->max_kv_len = m->max_kv_len;
    p->max_rows = m->max_rows;
    p->table_row = m->table_row;
    p->q_len = attn__cuda_address(batch->q_len);
    p->kv_len = attn__cuda_address(batch->kv_len);
    if (input) {
        p->page_size = input->page_size;
        p->sparse_topk = input->topk;
        p->requests = input->requests;
        p->req_to_token_row = input->req_to_token_row;
        p->req_to_token = attn__cuda_address(input->req_to_token);
        p->req_index = attn__cuda_address(input->req_index);
    }
    p->cu_seqlens_q = attn__cuda_address(m->cu_seqlens_q);
    p->cu_seqlens_k = attn__cuda_address(m->cu_seqlens_k);
    p->seqlens_expand = attn__cuda_address(m->seqlens_expand);
    p->positions = attn__cuda_address(m->positions);
    p->row_request = attn__cuda_address(m->row_request);
    p->sparse_len = attn__cuda_address(m->sparse_len);
    p->cu_sparse = attn__cuda_address(m->cu_sparse);
    p->indexer_ks = attn__cuda_address(m->indexer_ks);
    p->indexer_ke = attn__cuda_address(m->indexer_ke);
    p->topk_offset = attn__cuda_address(m->topk_offset);
    p->page_table = attn__cuda_address(m->page_table);
    p->row_table = attn__cuda_address(m->row_table);
    p->pad_row = attn__cuda_address(m->pad_row);
    p->unpad_row = attn__cuda_address(m->unpad_row);
    p->pad_len = attn__cuda_address(m->pad_len);
    p->row_q_len = attn__cuda_address(m->row_q_len);
    p->row_kv_len = attn__cuda_address(m->row_kv_len);
}

ATTN_API int attn_cuda_meta_make(attn_cuda *cuda, attn_meta *meta, const attn_batch *batch,
                                 const attn_meta_input *input, int32_t want, void *mem, size_t bytes, void *stream,
                                 attn_error *error) {
    void *const *functions;
    attn_meta m;
    attn_cu_meta p;
    int tables = (want & (ATTN_META_PAGE_TABLE | ATTN_META_ROW_TABLE)) != 0;
    int status = meta ? ATTN_OK : attn__fail(error, ATTN_E_ARGUMENT, "meta is NULL", 0, 0);
    if (!status) status = attn__cuda_check_capacities(batch, error);
    if (!status) status = attn__meta_check(&m, batch, input, want, error);
    if (!status && batch->n > 0) status = attn__check_pointer("batch.kv_len", batch->kv_len, 1, 4, error);
    if (!status) status = attn__check_pointer("batch.q_len", batch->q_len, 0, 4, error);
    if (!status && tables) {
        status = attn__check_pointer("input.req_to_token", input->req_to_token, batch->n > 0, 4, error);
        if (!status) status = attn__check_pointer("input.req_index", input->req_index, 0, 4, error);
    }
    if (!status) status = attn__check_memory("mem", mem, bytes, m.bytes, 16, error);
    if (!status) status = attn__cuda_enter(cuda, error);
    if (status) return status;
    attn__meta_place(&m, want, (int32_t *)mem);
    m.rows = (int32_t)m.max_rows;
    m.keys = (int32_t)attn__min64((int64_t)m.n * m.max_kv_len, INT32_MAX);
    attn__cuda_meta_params(&p, &m, batch, input);
    status = attn__cuda_use(cuda, ATTN__CUDA_PLAN, stream, &functions, error);
    if (!status) {
        int64_t pieces = attn__max64(1, (int64_t)(m.bytes / 4 / 8192)); /* the sums before are repeated by each block */
        status = attn__cuda_launch(cuda, functions[ATTN__CUDA_MAKE_META], attn__cuda_grid(cuda, pieces, 2), 1024,
                                   stream, &p, error);
    }
    if (!status) *meta = m;
    return attn__cuda_end(cuda, status, error);
}

ATTN_API int attn_cuda_append(attn_cuda *cuda, const attn_plan *plan, const attn_layer *layer, const attn_io *io,
                              const void *new_k, const void *new_v, const attn_exec *exec, attn_error *error) {
    void *const *functions;
    attn__cuda_shadow shadow;
    attn_cu_call p;
    int status = attn__cuda_check_call(cuda, plan, layer, io, exec, ATTN__WRITE, error);
    if (!status) status = attn__check_append(attn__cuda_shadow_of(&shadow, plan), new_k, new_v, error);
    if (status) return status;
    attn__cuda_call(&p, cuda, plan, io, exec, ATTN__WRITE);
    p.new_k = attn__cuda_address(new_k);
    p.new_v = attn__cuda_address(new_v);
    status = attn__cuda_begin(cuda, ATTN__CUDA_TOOLS, &p, plan, exec, &functions, error);
    if (status) return status;
    if (plan->n > 0) {
        status = attn__cuda_launch(cuda, functions[ATTN__CUDA_APPEND],
                                   attn__cuda_grid(cuda, plan->max_rows, ATTN__CUDA_ROW_BLOCKS), 128, exec->stream, &p,
                                   error);
    }
    return attn__cuda_end(cuda, status, error);
}

ATTN_API int attn_cuda_forward(attn_cuda *cuda, const attn_plan *plan, const attn_layer *layer, const attn_io *io,
                               const attn_exec *exec, attn_error *error) {
    void *const *functions;
    attn_cu_call p;
    int64_t merges;
    int status = attn__cuda_check_call(cuda, plan, layer, io, exec, ATTN__READ, error);
    if (status) return status;
    attn__cuda_call(&p, cuda, plan, io, exec, ATTN__READ);
    status = attn__cuda_begin(cuda, attn__cuda_module_of(layer), &p, plan, exec, &functions, error);
    if (status) return status;
    if (plan->strips) {
        status = attn__cuda_launch(cuda, functions[ATTN__CUDA_FORWARD], p.block_count, 128, exec->stream, &p, error);
    }
    merges = plan->slots ? attn__min64(plan->merges, p.block_count) : 0;
    if (!status) status = attn__cuda_launch(cuda, functions[ATTN__CUDA_MERGE], merges, 128, exec->stream, &p, error);
    return attn__cuda_end(cuda, status, error);
}

/* ---- >>tools: merge, rope, sparse -------------------------------------------------------------------------------- */

ATTN_API int attn_cuda_merge(attn_cuda *cuda, const attn_layer *layer, int64_t rows, const void *a_o,
                             const float *a_lse, const void *b_o, const float *b_lse, void *o, float *lse,
                             void *stream, attn_error *error) {
    const void *const arrays[] = { a_o, a_lse, b_o, b_lse, o, lse };
    attn_layer l;
    attn_cu_join p;
    attn_exec exec;
    int status = attn__check_merge(&l, layer, rows, arrays, error);
    if (status) return status;
    memset(&p, 0, sizeof p);
    p.rows = rows;
    p.a_o = attn__cuda_address(a_o);
    p.a_lse = attn__cuda_address(a_lse);
    p.b_o = attn__cuda_address(b_o);
    p.b_lse = attn__cuda_address(b_lse);
    p.o = attn__cuda_address(o);
    p.lse = attn__cuda_address(lse);
    p.heads = l.heads;
    p.v_dim = l.v_dim;
    p.o_type = (int)l.o_type;
    memset(&exec, 0, sizeof exec);
    exec.stream = stream;
    if (!cuda) return attn__fail(error, ATTN_E_ARGUMENT, "cuda is NULL", 0, 0);
    return attn__cuda_run_tool(cuda, 0, ATTN__CUDA_JOIN, attn__cuda_grid(cuda, rows, ATTN__CUDA_ROW_BLOCKS), 128, &exec,
                               &p, error);
}

ATTN_API int attn_cuda_rope(attn_cuda *cuda, const attn_rope_input *input, const attn_exec *exec, attn_error *error) {
    attn_rope_input checked;
    attn_cu_turn p;
    int status = attn__cuda_check_verdict(cuda, exec, error);
    if (!status && !input) status = attn__fail(error, ATTN_E_ARGUMENT, "input is NULL", 0, 0);
    if (status) return status;
    checked = *input;
    checked.inv_freq = NULL; /* its values are on the device */
    status = attn__rope_check(&checked, error);
    if (!status) status = attn__check_pointer("input.inv_freq", input->inv_freq, 0, 4, error);
    if (status) return status;
    memset(&p, 0, sizeof p);
    p.x = attn__cuda_address(input->x);
    p.rows = input->rows;
    p.x_row = attn__or(input->x_row, (int64_t)input->heads * input->head_dim);
    p.x_head = attn__or(input->x_head, input->head_dim);
    p.positions = attn__cuda_address(input->positions);
    p.inv_freq = attn__cuda_address(input->inv_freq);
    p.type = (int)input->type;
    p.heads = input->heads;
    p.head_dim = input->head_dim;
    p.rotary_dim = input->rotary_dim ? input->rotary_dim : input->head_dim;
    p.interleaved = input->interleaved != 0;
    p.base = (int)attn__bits_of(input->base != 0 ? input->base : 10000.0f);
    p.magnitude = (int)attn__bits_of(input->magnitude != 0 ? input->magnitude : 1.0f);
    p.verdict = attn__cuda_address(exec->mem);
    return attn__cuda_run_tool(cuda, ATTN__CUDA_ROPE_CHECK, ATTN__CUDA_ROPE,
                               attn__cuda_grid(cuda, input->rows, ATTN__CUDA_ROW_BLOCKS), 128, exec, &p, error);
}

ATTN_API int attn_cuda_index_score(attn_cuda *cuda, const attn_plan *plan, const attn_layer *layer, const attn_io *io,
                                   const float *weights, const int32_t *ks, float *scores, int64_t score_row,
                                   const attn_exec *exec, attn_error *error) {
    void *const *functions;
    attn__cuda_shadow shadow;
    attn__job rules;
    attn_cu_call p;
    int status = attn__cuda_check_call(cuda, plan, layer, io, exec, ATTN__SCORE, error);
    if (status) return status;
    memset(&rules, 0, sizeof rules);
    rules.plan = attn__cuda_shadow_of(&shadow, plan);
    status = attn__check_pointer("weights", weights, shadow.plan.rows > 0, 4, error);
    if (!status) status = attn__check_pointer("ks", ks, 0, 4, error);
    if (!status) status = attn__check_pointer("scores", scores, shadow.plan.rows > 0, 4, error);
    if (!status) status = attn__index_check(&rules, error);
    if (status) return status;
    attn__cuda_call(&p, cuda, plan, io, exec, ATTN__SCORE);
    p.weights = attn__cuda_address(weights);
    p.ks = attn__cuda_address(ks);
    p.scores = attn__cuda_address(scores);
    p.score_row = score_row;
    status = attn__cuda_begin(cuda, ATTN__CUDA_TOOLS, &p, plan, exec, &functions, error);
    if (status) return status;
    if (plan->n > 0) {
        status = attn__cuda_launch(cuda, functions[ATTN__CUDA_SCORE], p.block_count, 128, exec->stream, &p, error);
    }
    return attn__cuda_end(cuda, status, error);
}

ATTN_API int attn_cuda_topk(attn_cuda *cuda, const float *scores, int64_t score_row, int64_t rows, const int32_t *ks,
                            const int32_t *ke, int32_t topk, int32_t *indices, const attn_exec *exec,
                            attn_error *error) {
    attn_cu_select p;
    int status = attn__cuda_check_verdict(cuda, exec, error);
    if (!status && rows < 0) status = attn__fail(error, ATTN_E_ARGUMENT, "rows = %a is negative", rows, 0);
    if (!status && topk < 1) {
        status = attn__fail(error, ATTN_E_ARGUMENT, "topk = %a, but it must be at least 1", topk, 0);
    }
    if (!status) status = attn__check_pointer("scores", scores, rows > 0, 4, error);
    if (!status) status = attn__check_pointer("ks", ks, 0, 4, error);
    if (!status) status = attn__check_pointer("ke", ke, rows > 0, 4, error);
    if (!status) status = attn__check_pointer("indices", indices, rows > 0, 4, error);
    if (status) return status;
    memset(&p, 0, sizeof p);
    p.scores = attn__cuda_address(scores);
    p.score_row = score_row;
    p.rows = rows;
    p.ks = attn__cuda_address(ks);
    p.ke = attn__cuda_address(ke);
    p.indices = attn__cuda_address(indices);
    p.topk = topk;
    p.verdict = attn__cuda_address(exec->mem);
    return attn__cuda_run_tool(cuda, ATTN__CUDA_TOPK_CHECK, ATTN__CUDA_TOPK,
                               attn__cuda_grid(cuda, rows, ATTN__CUDA_ROW_BLOCKS), 1024, exec, &p, error);
}

/* ---- >>faults: what the device found, in words ------------------------------------------------------------------- */

/* Status and sentence of each rule, in the order of attn_params.h; %a .. %c are the fault's numbers, %d its request. */
static const struct {
    int status;
    const char *text;
} attn__cuda_rules[] = {
    { ATTN_OK, "" },
    { ATTN_E_BATCH, "q_len[%d] = %a is negative" },
    { ATTN_E_BATCH, "kv_len[%d] = %a is negative" },
    { ATTN_E_BATCH, "phase[%d] = %a is no attn_phase" },
    { ATTN_E_BATCH, "prefix[%d] = %a, but it must be 0 .. kv_len" },
    { ATTN_E_BATCH, "kv_len[%d] = %a is less than q_len[%d] = %b" },
    { ATTN_E_BATCH, "q_len[%d] = %a is more than batch.max_q_len = %b" },
    { ATTN_E_BATCH, "kv_len[%d] = %a is more than batch.max_kv_len = %b" },
    { ATTN_E_BATCH, "q_len[%d] = %a: the sum is above 2^31-1" },
    { ATTN_E_BATCH, "kv_len[%d] = %a: the sum is above 2^31-1" },
    { ATTN_E_BATCH, "sum of q_len = %a is more than batch.max_rows = %b" },
    { ATTN_E_PLAN, "plan was not made by attn_cuda_plan_make, or its memory was reused" },
    { ATTN_E_ARGUMENT, "tree[%a] lacks bit %b, the row's own" },
    { ATTN_E_ARGUMENT, "lambda[%d] = %A, but it must be 0 or more, and finite" },
    { ATTN_E_ARGUMENT, "io.page_table_row = %a is less than the %b pages of kv_len[%d] = %c" },
    { ATTN_E_PAGE, "page_table[%d][%c] = %a, but there are %b pages" },
    { ATTN_E_ARGUMENT, "topk[%a][%b] = %c is negative, but not -1" },
    { ATTN_E_ARGUMENT, "topk[%a][%b] = %c stands in the list twice" },
    { ATTN_E_PLAN, "phase[%d] = %a, but indexer scores need DECODE" },
    { ATTN_E_ARGUMENT, "ks[%a] = %b: the row's keys do not fit score_row = %c" },
    { ATTN_E_ARGUMENT, "ke[%a] = %b must be ks[%a] = %c .. score_row = %d" },
    { ATTN_E_ARGUMENT, "input.inv_freq[%a] = %B, but it must be -65536 .. 65536" }
};

static int attn__cuda_fault_error(const attn_cu_fault *f, attn_error *error) {
    int64_t wide = (int64_t)((uint64_t)(uint32_t)f->d | (uint64_t)(uint32_t)f->e << 32);
    int64_t c = f->rule == ATTN_CU_RULE_SCORE_COLUMN ? wide : f->c;
    int64_t d = f->rule == ATTN_CU_RULE_SELECT ? wide : f->request;
    if (!f->rule) return ATTN_OK;
    if (f->rule < 0 || f->rule >= ATTN__COUNT(attn__cuda_rules)) {
        return attn__fail(error, ATTN_E_PLAN, "the device's report is damaged: rule = %a", f->rule, 0);
    }
    attn__fail_name(error, attn__cuda_rules[f->rule].status, "", attn__cuda_rules[f->rule].text, f->a, f->b, c, d);
    if (error) error->request = f->request;
    if (error) error->slot = f->slot;
    return attn__cuda_rules[f->rule].status;
}

/* Waits for the stream and copies words from the device. */
static int attn__cuda_read_words(const attn_cuda *c, void *to, const void *from, size_t bytes, void *stream,
                                 attn_error *error) {
    int code = c->driver.cuMemcpyDtoHAsync_v2(to, (unsigned long long)(uintptr_t)from, bytes, stream);
    if (!code) code = c->driver.cuStreamSynchronize(stream);
    if (code) c->driver.cuStreamSynchronize(stream); /* the copy must not arrive when `to` is gone */
    return code ? attn__cuda_refused(c, error, code, "cuStreamSynchronize") : ATTN_OK;
}

/* Where the device is waited for: while the stream captures, the copies would become part of the graph. */
static int attn__cuda_enter_to_wait(const attn_cuda *c, void *stream, attn_error *error) {
    int status = attn__cuda_enter(c, error), capturing = 0;
    if (status) return status;
    status = attn__cuda_is_capturing(c, stream, &capturing, error);
    if (!status && capturing) {
        status = attn__fail(error, ATTN_E_ARGUMENT, "exec.stream is capturing, so it cannot be waited for", 0, 0);
    }
    return status ? attn__cuda_leave(c, status) : ATTN_OK;
}

static int attn__cuda_read_plan(const attn_cuda *c, const attn_plan *plan, void *stream, attn_error *error) {
    int32_t header[ATTN__HEADER];
    attn_cu_fault fault;
    int status = attn__cuda_read_words(c, header, plan->device, sizeof header, stream, error);
    if (status) return status;
    memcpy(&fault, header + ATTN_CU_FAULT_AT, sizeof fault);
    if (header[0] != ATTN_VERSION || header[1] != plan->n || header[16] != attn__class_of(&plan->resolved)) {
        memset(&fault, 0, sizeof fault);
        fault.rule = ATTN_CU_RULE_PLAN;
        fault.request = fault.slot = -1;
    }
    return attn__cuda_fault_error(&fault, error);
}

static int attn__cuda_read_exec(const attn_cuda *c, const attn_exec *exec, attn_error *error) {
    attn_cu_fault fault;
    int status = attn__cuda_read_words(c, &fault, exec->mem, sizeof fault, exec->stream, error);
    return status ? status : attn__cuda_fault_error(&fault, error);
}

ATTN_API int attn_cuda_check(attn_cuda *cuda, const attn_plan *plan, const attn_layer *layer, const attn_io *io,
                             const attn_exec *exec, attn_error *error) {
    attn_cu_call p;
    int status = attn__cuda_check_call(cuda, plan, layer, io, exec, ATTN__READ, error);
    if (!status) status = attn__cuda_enter_to_wait(cuda, exec->stream, error);
    if (status) return status;
    attn__cuda_call(&p, cuda, plan, io, exec, ATTN__READ);
    status = attn__cuda_launch_check(cuda, &p, plan, exec, error);
    if (!status) status = attn__cuda_read_plan(cuda, plan, exec->stream, error);
    if (!status) status = attn__cuda_read_exec(cuda, exec, error);
    return attn__cuda_end(cuda, status, error);
}

ATTN_API int attn_cuda_error(attn_cuda *cuda, const attn_plan *plan, const attn_exec *exec, attn_error *error) {
    int status = plan ? attn__cuda_check_plan(plan, error) : ATTN_OK;
    if (!status && !exec) status = attn__fail(error, ATTN_E_ARGUMENT, "exec is NULL", 0, 0);
    if (!status) status = attn__cuda_enter_to_wait(cuda, exec->stream, error);
    if (status) return status;
    if (plan) status = attn__cuda_read_plan(cuda, plan, exec->stream, error);
    if (!status && exec->mem && (!plan || attn__cuda_is_checked(&plan->resolved))) {
        status = attn__cuda_read_exec(cuda, exec, error);
    }
    return attn__cuda_end(cuda, status, error);
}

#endif /* ATTN_CUDA_IMPLEMENTED */
