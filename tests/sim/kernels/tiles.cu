/* Causal attention of one head in f32, a block for 32 rows: keys and values come in tiles of 32, the next one copied by
   cp.async while this one is used. 128 threads; thread t has row t / 4 and a quarter of the dimension. */
#define DIM 64
#define ROWS 32
#define KEYS 32
#define PAD 4
#define LOG2E 1.4426950408889634f
#define STRIDE (DIM + PAD)

static __device__ __forceinline__ void copy16(float *to, const float *from, bool valid)
{
    const unsigned at = (unsigned)__cvta_generic_to_shared(to);
    const int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(at), "l"(from), "r"(bytes) : "memory");
}

static __device__ __forceinline__ void commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int N> static __device__ __forceinline__ void wait()
{
    asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory");
}

static __device__ __forceinline__ void fetch(float *sk, float *sv, const float *k, const float *v, int tile, int keys)
{
    for (int i = threadIdx.x; i < KEYS * DIM / 4; i += 128) {
        const int key = tile * KEYS + i / (DIM / 4), d = i % (DIM / 4) * 4;
        const bool valid = key < keys;
        const long long at = (long long)(valid ? key : 0) * DIM + d;
        copy16(sk + i / (DIM / 4) * STRIDE + d, k + at, valid);
        copy16(sv + i / (DIM / 4) * STRIDE + d, v + at, valid);
    }
    commit();
}

extern "C" __global__ void __launch_bounds__(128)
tiles(const float *q, const float *k, const float *v, float *o, int rows, int keys, float scale)
{
    extern __shared__ __align__(16) float shared[];
    __shared__ float weight[ROWS][KEYS + 1];
    float *sk = shared, *sv = shared + 2 * KEYS * STRIDE;
    const int t = threadIdx.x, row = blockIdx.x * ROWS + t / 4, quarter = t % 4;
    const int last = min(rows, (int)(blockIdx.x + 1) * ROWS) - 1 + keys - rows, count = last / KEYS + 1;
    float query[DIM / 4], sum[DIM / 4], m = __int_as_float(0xff800000), l = 0.f;
#pragma unroll
    for (int d = 0; d < DIM / 4; d++) {
        query[d] = row < rows ? q[(long long)row * DIM + quarter * (DIM / 4) + d] : 0.f;
        sum[d] = 0.f;
    }
    fetch(sk, sv, k, v, 0, keys);
    for (int tile = 0; tile < count; tile++) {
        const int now = (tile & 1) * KEYS * STRIDE;
        if (tile + 1 < count) fetch(sk + (KEYS * STRIDE - now), sv + (KEYS * STRIDE - now), k, v, tile + 1, keys);
        if (tile + 1 < count) wait<1>();
        else wait<0>();
        __syncthreads();
        float best = m;
        for (int j = 0; j < KEYS; j++) {
            const int key = tile * KEYS + j;
            float x = 0.f;
#pragma unroll
            for (int d = 0; d < DIM / 4; d++) x += query[d] * sk[now + j * STRIDE + quarter * (DIM / 4) + d];
            x += __shfl_xor_sync(0xffffffffu, x, 1);
            x += __shfl_xor_sync(0xffffffffu, x, 2);
            x = key < keys && key <= row + keys - rows ? x * scale * LOG2E : __int_as_float(0xff800000);
            if (quarter == 0) weight[t / 4][j] = x;
            best = fmaxf(best, x);
        }
        __syncwarp();
        const float c = best == __int_as_float(0xff800000) ? 1.f : exp2f(m - best);
        m = best;
        l *= c;
#pragma unroll
        for (int d = 0; d < DIM / 4; d++) sum[d] *= c;
        for (int j = 0; j < KEYS; j++) {
            const float x = weight[t / 4][j], w = x == __int_as_float(0xff800000) ? 0.f : exp2f(x - m);
            l += w;
#pragma unroll
            for (int d = 0; d < DIM / 4; d++) sum[d] += w * sv[now + j * STRIDE + quarter * (DIM / 4) + d];
        }
        __syncthreads();
    }
    if (row >= rows) return;
#pragma unroll
    for (int d = 0; d < DIM / 4; d++) o[(long long)row * DIM + quarter * (DIM / 4) + d] = l > 0.f ? sum[d] / l : 0.f;
}
