/* cuda_impl.c - both implementations and nothing else. */
#define ATTN_IMPLEMENTATION
#include "../../attn_cuda.h"
