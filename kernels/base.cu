/* base.cu - what every fragment uses: numbers, the stored types, exp, log and tanh, sums over a block. */
#ifndef ATTN_BASE_CU
#define ATTN_BASE_CU

#include "attn_params.h"

#define DEVICE __device__ __forceinline__

typedef signed char i8;
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

/* attn_type, attn_mask, attn_phase and attn_flag of attn.h */
enum { F32, F16, BF16, E4M3, E5M2, INT8 };
enum { CAUSAL, FULL, PREFIX, BLOCK, TREE, TOPK };
enum { PREFILL, DECODE };
enum { V_IN_K = 2, FAST_INT8 = 4 };

enum { UNIT = 256, GROUP_KEYS = 2048, LARGEST_INT = 0x7fffffff };
#define WARP_ALL 0xffffffffu
#define MINUS_INFINITY __uint_as_float(0xff800000u)

template <typename T> DEVICE T *pointer(i64 address) { return (T *)address; }
template <typename T> DEVICE T min_(T a, T b) { return a < b ? a : b; }
template <typename T> DEVICE T max_(T a, T b) { return a > b ? a : b; }
DEVICE i64 ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }
DEVICE int ceil_div32(int a, int b) { return a > 0 ? (a - 1) / b + 1 : 0; } /* any a: 64-bit division is slow */
DEVICE int bit_length(u32 x) { return 32 - __clz((int)x); }
DEVICE bool is_nan(float x) { return (__float_as_uint(x) & 0x7fffffffu) > 0x7f800000u; }
DEVICE float float_of(int bits) { return __int_as_float(bits); }

/* ---- stored types: stores give the bits of attn.h, NaNs included ------------------------------------------------- */

__device__ constexpr int type_bytes(int type) { return type == F32 ? 4 : type <= BF16 ? 2 : 1; }

DEVICE float from_f16(u16 h) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h));
    return x;
}

DEVICE u16 to_f16(float x) {
    u32 u = __float_as_uint(x);
    u16 h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x));
    return is_nan(x) ? (u16)((u >> 16 & 0x8000u) | 0x7e00u | (u >> 13 & 0x1ffu)) : h;
}

DEVICE float from_bf16(u16 b) { return __uint_as_float((u32)b << 16); }

DEVICE u16 to_bf16(float x) {
    u32 u = __float_as_uint(x);
    return is_nan(x) ? (u16)(u >> 16 | 0x40u) : (u16)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

/* e5m2 is the upper half of an f16; the bits of e4m3 are those of an f16 that is 2^8 times smaller. */
DEVICE float from_e4m3(u8 b) {
    u32 a = b & 0x7fu;
    float x = from_f16((u16)((b & 0x80u) << 8 | a << 7)) * 256.0f;
    return a == 0x7fu ? __uint_as_float(0x7fc00000u) : x;
}

DEVICE float from_e5m2(u8 b) { return from_f16((u16)(b << 8)); }

/* Rounds the bits of an f32 |x| to so many mantissa bits; what is too large gets a code above the format's largest. */
DEVICE u32 round_bits(u32 x, int mantissa, int bias) {
    int exponent = (int)(x >> 23) - 127 + bias;
    int shift = 23 - mantissa + (exponent < 1 ? 1 - exponent : 0);
    u32 all = (x & 0x7fffffu) | 0x800000u;
    if (shift > 24) return 0;
    u32 half = 1u << (shift - 1);
    u32 rest = all & (2 * half - 1);
    u32 code = all >> shift;
    if (rest > half || (rest == half && (code & 1u))) code++;
    return code + (exponent > 1 ? (u32)(exponent - 1) << mantissa : 0);
}

DEVICE u8 to_f8(float x, int type) {
    u32 u = __float_as_uint(x);
    u32 largest = type == E4M3 ? 0x7eu : 0x7bu;
    u32 code = round_bits(u & 0x7fffffffu, type == E4M3 ? 3 : 2, type == E4M3 ? 7 : 15);
    return is_nan(x) ? (u8)0x7f : (u8)((u >> 24 & 0x80u) | min_(code, largest));
}

DEVICE i8 to_int8(float x) {
    int n;
    asm("cvt.rni.s32.f32 %0, %1;" : "=r"(n) : "f"(x));
    return is_nan(x) ? (i8)0 : (i8)max_(-127, min_(127, n));
}

/* Element i of an array of a type that is known to the compiler or, inlined with a variable, at run time. */
DEVICE float load_as(int type, const void *from, i64 i) {
    if (type == F32) return ((const float *)from)[i];
    if (type == F16) return from_f16(((const u16 *)from)[i]);
    if (type == BF16) return from_bf16(((const u16 *)from)[i]);
    if (type == E4M3) return from_e4m3(((const u8 *)from)[i]);
    if (type == E5M2) return from_e5m2(((const u8 *)from)[i]);
    return (float)((const i8 *)from)[i];
}

DEVICE void store_as(int type, void *to, i64 i, float x) {
    if (type == F32) {
        ((float *)to)[i] = x;
    } else if (type == F16) {
        ((u16 *)to)[i] = to_f16(x);
    } else if (type == BF16) {
        ((u16 *)to)[i] = to_bf16(x);
    } else if (type == INT8) {
        ((i8 *)to)[i] = to_int8(x);
    } else {
        ((u8 *)to)[i] = to_f8(x, type);
    }
}

template <int TYPE> DEVICE float load(const void *from, i64 i) { return load_as(TYPE, from, i); }
template <int TYPE> DEVICE void store(void *to, i64 i, float x) { store_as(TYPE, to, i, x); }

/* ---- maths without a library ------------------------------------------------------------------------------------- */

DEVICE float exp2_(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

DEVICE float log2_(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* For x <= 0, -inf included; NaN stays NaN. */
DEVICE float exp_(float x) { return exp2_(__fmul_rn(x, 1.44269504f)); }

/* For finite x > 0; subnormals are scaled up, since lg2 takes them for 0. */
DEVICE float log_(float x) {
    bool small = x < 1.17549435e-38f;
    float y = log2_(small ? __fmul_rn(x, 16777216.0f) : x);
    return __fmul_rn(small ? y - 24.0f : y, 0.693147182f);
}

/* As attn.h: x + x^3 P(x^2) for |x| < 0.6, else (1 - e) / (1 + e), e = exp(-2|x|). */
DEVICE float tanh_(float x) {
    float a = fabsf(x);
    float y = __fmul_rn(x, x);
    float p = 0.0156404656f;
    p = __fmaf_rn(p, y, -0.0522310982f);
    p = __fmaf_rn(p, y, 0.133135206f);
    p = __fmaf_rn(p, y, -0.333326216f);
    if (a < 0.6f) return __fmaf_rn(__fmul_rn(x, y), p, x);
    float e = exp_(-2.0f * a);
    float t = __fmul_rn(__fsub_rn(1.0f, e), __frcp_rn(__fadd_rn(1.0f, e)));
    return x < 0.0f ? -t : t;
}

/* ---- sums over a warp and over a block --------------------------------------------------------------------------- */

DEVICE int lane() { return (int)(threadIdx.x & 31u); }

DEVICE float warp_max(float x) {
#pragma unroll
    for (int step = 16; step; step /= 2) {
        x = fmaxf(x, __shfl_xor_sync(WARP_ALL, x, step));
    }
    return x;
}

/* The same tree in every lane, so the same bits. */
DEVICE float warp_sum(float x) {
#pragma unroll
    for (int step = 16; step; step /= 2) {
        x = __fadd_rn(x, __shfl_xor_sync(WARP_ALL, x, step));
    }
    return x;
}

/* FAST_INT8: what a query is divided by before it is rounded to int8, its largest |x| / 127, found by a warp. The bits
   of |x| grow with it, and NaN and inf top them all: the row stays spoilt. At least 2^-126, so that no quotient rounds
   beyond 127 and zeros stay zeros. */
DEVICE float int8_step(int type, const void *from, i64 first, int dim) {
    u32 top = 0x03fe0000u; /* 127 * 2^-126 */
    for (int x = lane(); x < dim; x += 32) {
        top = max_(top, __float_as_uint(load_as(type, from, first + x)) & 0x7fffffffu);
    }
#pragma unroll
    for (int step = 16; step; step /= 2) {
        top = max_(top, __shfl_xor_sync(WARP_ALL, top, step));
    }
    return __fdiv_rn(__uint_as_float(top), 127.0f);
}

DEVICE float to_steps(float x, float step) { return (float)to_int8(__fdiv_rn(x, step)); }

/* Sum of x over the lanes up to and with this one. */
template <typename T> DEVICE T warp_scan(T x) {
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        T left = __shfl_up_sync(WARP_ALL, x, step);
        if (lane() >= step) x += left;
    }
    return x;
}

/* Sum of x over the threads before this one; *total: over all of them. All threads of the block call it; blockDim.x is
   a multiple of 32. room: shared, 33 T; it may be used again at once. Integers only: the order of the sums is free. */
template <typename T> DEVICE T block_scan(T x, T *room, T *total) {
    int warp = (int)threadIdx.x / 32;
    int warps = (int)blockDim.x / 32;
    T sum = warp_scan(x);
    if (lane() == 31) room[warp] = sum;
    __syncthreads();
    if (warp == 0) {
        T part = lane() < warps ? room[lane()] : 0;
        T parts = warp_scan(part);
        room[lane()] = parts - part;
        if (lane() == 31) room[32] = parts;
    }
    __syncthreads();
    T before = room[warp] + sum - x;
    *total = room[32];
    __syncthreads();
    return before;
}

template <typename T> DEVICE T block_min(T x, T *room) {
    int warp = (int)threadIdx.x / 32;
    int warps = (int)blockDim.x / 32;
    T least;
#pragma unroll
    for (int step = 16; step; step /= 2) {
        x = min_(x, __shfl_xor_sync(WARP_ALL, x, step));
    }
    if (lane() == 0) room[warp] = x;
    __syncthreads();
    least = room[0];
    for (int i = 1; i < warps; i++) least = min_(least, room[i]);
    __syncthreads();
    return least;
}

#endif
