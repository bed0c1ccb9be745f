/* cuda_pairs.h - which kernels `make test` compiles: of the types of q, KV and o, skipping or not, and three devices
   each pair of values occurs. What falls to compute_80 is compiled and run by cuda_attention.c, on a simulated device
   of that kind; cuda_compile.c has the rest. */
#ifndef CUDA_PAIRS_H
#define CUDA_PAIRS_H

enum { PAIRS = 18 };

typedef struct kernel_pair {
    int q_type, kv_type, o_type, skips, device;
} kernel_pair;

/* q and KV count; two Latin squares of them are o and the device: 0 for compute_80, 1 for 90a, 2 for 120. */
static inline kernel_pair pair_at(int i) {
    int q = i / 6, kv = i % 6;
    kernel_pair p = { q, kv, (q + kv) % 3, (q + kv / 3) % 2, (2 * q + kv) % 3 };
    return p;
}

#endif
