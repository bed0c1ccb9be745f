/* cuda_with_cuda_h.c - beside the header of the driver, whose names are macros, also with a stream for each thread. */
#define CUDA_API_PER_THREAD_DEFAULT_STREAM 1
#include <cuda.h>
#define ATTN_IMPLEMENTATION
#include "../../attn_cuda.h"
