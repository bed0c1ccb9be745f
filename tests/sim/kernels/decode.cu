/* One query row per request over a paged cache of any type, split over blocks; the block that finishes last merges the
   parts. Grid: split, head, request; 128 threads, a warp for every fourth key. */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;
#define DEVICE static __device__ __forceinline__
#define LOG2E 1.4426950408889634f
enum { F32, F16, BF16, E4M3, E5M2, INT8 };
#define DIM 64
#define WARPS 4
#define INFINITE __int_as_float(0x7f800000)

struct Params {
    const float *q;                 /* [request][head][DIM] */
    const void *k, *v;              /* [page][slot][kv_head][DIM] */
    const float *k_scale;           /* int8: [page][slot][kv_head], both for keys and values; else NULL */
    const int *pages, *lengths;     /* [request][columns], [request] */
    float *part_o, *part_ml;        /* [request][head][split][DIM], [..][split][2] */
    u32 *counter;                   /* [request][head], zero before and after */
    float *o, *lse;                 /* [request][head][DIM], [request][head] */
    int heads, kv_heads, page, columns, splits, type;
    float scale, softcap;
};

DEVICE float exp2_fast(float x)
{
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

DEVICE float tanh_fast(float x)
{
    float r;
    asm("tanh.approx.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

DEVICE float half_to_float(u16 h)
{
    float r;
    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(h));
    return r;
}

DEVICE float e4m3_to_float(u32 b)
{
    const u32 field = b >> 3 & 15, fraction = b & 7;
    float f = field ? __uint_as_float((field + 120) << 23 | fraction << 20) : (float)(int)fraction * 0.001953125f;
    if ((b & 127) == 127) f = __uint_as_float(0x7fffffffu);
    return b & 128 ? -f : f;
}

DEVICE float load(const void *p, i64 i, int type)
{
    switch (type) {
    case F32: return ((const float *)p)[i];
    case F16: return half_to_float(((const u16 *)p)[i]);
    case BF16: return __uint_as_float((u32)((const u16 *)p)[i] << 16);
    case E4M3: return e4m3_to_float(((const u8 *)p)[i]);
    case E5M2: return half_to_float((u16)(((const u8 *)p)[i] << 8));
    default: return (float)((const signed char *)p)[i];
    }
}

extern "C" __global__ void __launch_bounds__(128) decode(const __grid_constant__ Params p)
{
    __shared__ float sm_o[WARPS][DIM];
    __shared__ float sm_m[WARPS], sm_l[WARPS];
    __shared__ int is_last;
    const int split = blockIdx.x, head = blockIdx.y, request = blockIdx.z;
    const int t = threadIdx.x, lane = t & 31, warp = t >> 5, kv_head = head / (p.heads / p.kv_heads);
    const i64 row = (i64)request * p.heads + head;
    const int keys = p.lengths[request], chunk = (keys + p.splits - 1) / p.splits;
    const int low = split * chunk, high = min(keys, low + chunk);
    const float q0 = p.q[row * DIM + lane], q1 = p.q[row * DIM + lane + 32];
    float m = -INFINITE, l = 0.f, o0 = 0.f, o1 = 0.f;
    for (int key = low + warp; key < high; key += WARPS) {
        const i64 slot = (i64)p.pages[request * p.columns + key / p.page] * p.page + key % p.page;
        const i64 at = (slot * p.kv_heads + kv_head) * DIM + lane;
        const float s = p.k_scale ? p.k_scale[slot * p.kv_heads + kv_head] : 1.f;
        float x = q0 * load(p.k, at, p.type) + q1 * load(p.k, at + 32, p.type);
        for (int step = 16; step; step >>= 1) x += __shfl_xor_sync(0xffffffffu, x, step);
        x *= s * p.scale;
        if (p.softcap > 0.f) x = p.softcap * tanh_fast(x / p.softcap);
        const float mn = fmaxf(m, x), c = exp2_fast((m - mn) * LOG2E), w = exp2_fast((x - mn) * LOG2E);
        m = mn;
        l = l * c + w;
        o0 = o0 * c + w * s * load(p.v, at, p.type);
        o1 = o1 * c + w * s * load(p.v, at + 32, p.type);
    }
    sm_o[warp][lane] = o0;
    sm_o[warp][lane + 32] = o1;
    if (lane == 0) {
        sm_m[warp] = m;
        sm_l[warp] = l;
    }
    __syncthreads();
    if (t < DIM) {
        float mx = sm_m[0], sum = 0.f, o = 0.f;
        for (int i = 1; i < WARPS; i++) mx = fmaxf(mx, sm_m[i]);
        if (mx > -INFINITE) {
            for (int i = 0; i < WARPS; i++) {
                const float c = exp2_fast((sm_m[i] - mx) * LOG2E);
                sum += sm_l[i] * c;
                o += sm_o[i][t] * c;
            }
        }
        p.part_o[(row * p.splits + split) * DIM + t] = o;
        if (t == 0) {
            p.part_ml[(row * p.splits + split) * 2] = mx;
            p.part_ml[(row * p.splits + split) * 2 + 1] = sum;
        }
    }
    __threadfence();
    __syncthreads();
    if (t == 0) {
        is_last = atomicAdd(p.counter + row, 1u) == (u32)p.splits - 1;
        __threadfence();
    }
    __syncthreads();
    if (!is_last) return;
    if (t < DIM) {
        float mx = -INFINITE, sum = 0.f, o = 0.f;
        for (int i = 0; i < p.splits; i++) mx = fmaxf(mx, p.part_ml[(row * p.splits + i) * 2]);
        for (int i = 0; i < p.splits && mx > -INFINITE; i++) {
            const float c = exp2_fast((p.part_ml[(row * p.splits + i) * 2] - mx) * LOG2E);
            sum += p.part_ml[(row * p.splits + i) * 2 + 1] * c;
            o += p.part_o[(row * p.splits + i) * DIM + t] * c;
        }
        p.o[row * DIM + t] = sum > 0.f ? o / sum : 0.f;
        if (t == 0) p.lse[row] = sum > 0.f ? mx + __log2f(sum) / LOG2E : -INFINITE;
    }
    if (t == 0) p.counter[row] = 0;
}
