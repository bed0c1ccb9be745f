/* driver.h - the entry points of the CUDA driver that the recorder needs, of whatever libcuda.so.1 the loader finds. */
#ifndef CONFORMANCE_DRIVER_H
#define CONFORMANCE_DRIVER_H

#include "../sim/cuda_api.h"

#define CONF_ENTRIES(X)                                                                                               \
    X(cuInit, (unsigned))                                                                                             \
    X(cuDriverGetVersion, (int *))                                                                                    \
    X(cuDeviceGetCount, (int *))                                                                                      \
    X(cuDeviceGet, (CUdevice *, int))                                                                                 \
    X(cuDeviceGetName, (char *, int, CUdevice))                                                                       \
    X(cuDeviceGetAttribute, (int *, int, CUdevice))                                                                   \
    X(cuDevicePrimaryCtxRetain, (CUcontext *, CUdevice))                                                              \
    X(cuCtxPushCurrent_v2, (CUcontext))                                                                               \
    X(cuCtxPopCurrent_v2, (CUcontext *))                                                                              \
    X(cuCtxSynchronize, (void))                                                                                       \
    X(cuModuleLoadData, (CUmodule *, const void *))                                                                   \
    X(cuModuleLoadDataEx, (CUmodule *, const void *, unsigned, int *, void **))                                       \
    X(cuModuleUnload, (CUmodule))                                                                                     \
    X(cuModuleGetFunction, (CUfunction *, CUmodule, const char *))                                                    \
    X(cuModuleGetGlobal_v2, (CUdeviceptr *, size_t *, CUmodule, const char *))                                        \
    X(cuFuncSetAttribute, (CUfunction, int, int))                                                                     \
    X(cuLaunchKernel, (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream,    \
                       void **, void **))                                                                             \
    X(cuMemAlloc_v2, (CUdeviceptr *, size_t))                                                                         \
    X(cuMemFree_v2, (CUdeviceptr))                                                                                    \
    X(cuMemAllocHost_v2, (void **, size_t))                                                                           \
    X(cuPointerGetAttribute, (void *, int, CUdeviceptr))                                                              \
    X(cuMemcpyHtoD_v2, (CUdeviceptr, const void *, size_t))                                                           \
    X(cuMemcpyDtoH_v2, (void *, CUdeviceptr, size_t))                                                                 \
    X(cuMemcpyDtoD_v2, (CUdeviceptr, CUdeviceptr, size_t))                                                            \
    X(cuMemsetD8_v2, (CUdeviceptr, unsigned char, size_t))                                                            \
    X(cuMemsetD32_v2, (CUdeviceptr, unsigned, size_t))                                                                \
    X(cuStreamCreate, (CUstream *, unsigned))                                                                         \
    X(cuStreamDestroy_v2, (CUstream))                                                                                 \
    X(cuStreamSynchronize, (CUstream))                                                                                \
    X(cuStreamQuery, (CUstream))                                                                                      \
    X(cuStreamWaitEvent, (CUstream, CUevent, unsigned))                                                               \
    X(cuStreamBeginCapture_v2, (CUstream, int))                                                                       \
    X(cuStreamEndCapture, (CUstream, CUgraph *))                                                                      \
    X(cuStreamIsCapturing, (CUstream, int *))                                                                         \
    X(cuEventCreate, (CUevent *, unsigned))                                                                           \
    X(cuEventRecord, (CUevent, CUstream))                                                                             \
    X(cuEventQuery, (CUevent))                                                                                        \
    X(cuEventSynchronize, (CUevent))                                                                                  \
    X(cuEventElapsedTime, (float *, CUevent, CUevent))                                                                \
    X(cuGetErrorName, (CUresult, const char **))

struct conf_driver {
#define FIELD(name, parameters) CUresult(*name) parameters;
    CONF_ENTRIES(FIELD)
#undef FIELD
    int simulated;
};

#endif
