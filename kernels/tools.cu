/* tools.cu - what happens to rows before and after attention: append, join, rope; >>tools and >>rope of attn.h. */
#ifndef ATTN_TOOLS_CU
#define ATTN_TOOLS_CU

#include "cache.cu"
#include "grid.cu"

enum { WARPS = 4 };                 /* of a block of this file; 8 blocks fit, which keeps ptxas from spilling */

DEVICE int warp() { return (int)(threadIdx.x / 32u); }

/* ---- append ------------------------------------------------------------------------------------------------------ */

DEVICE float quiet(float x) { return __uint_as_float(__float_as_uint(x) | 0x400000u); }

/* An element of q_type. cvt gives one NaN for all those of f16; the CPU keeps their bits. */
DEVICE float load_new(int type, const void *from, i64 i) {
    float x = load_as(type, from, i);
    if (type != F16 || !is_nan(x)) return x;
    u32 h = ((const u16 *)from)[i];
    return __uint_as_float((h & 0x8000u) << 16 | 0x7fc00000u | (h & 0x3ffu) << 13);
}

/* x / scale as the CPU has it, which keeps the bits of a NaN. */
DEVICE float divide(float x, float scale) { return is_nan(x) ? quiet(x) : __fdiv_rn(x, scale); }

/* Largest |x| of a vector / 127. The bits of |x| grow with it, and NaN and inf top them all: the key stays spoilt. */
DEVICE float int8_scale(int type, const void *from, i64 first, int dim) {
    u32 top = 0;
    for (int x = lane(); x < dim; x += 32) {
        u32 u = __float_as_uint(load_new(type, from, first + x)) & 0x7fffffffu;
        top = max_(top, u);
    }
#pragma unroll
    for (int step = 16; step; step /= 2) {
        top = max_(top, __shfl_xor_sync(WARP_ALL, top, step));
    }
    return divide(__uint_as_float(top), 127.0f);
}

/* Elements as they are: a NaN keeps its bits, too. */
DEVICE void copy_vector(int type, void *to, const void *from, i64 first, int dim) {
    for (int x = lane(); x < dim; x += 32) {
        if (type == F32) {
            ((u32 *)to)[x] = ((const u32 *)from)[first + x];
        } else {
            ((u16 *)to)[x] = ((const u16 *)from)[first + x];
        }
    }
}

/* One new vector into a cache, by a warp. index: of the vector in `from`; scale: of the cache, unless each key has
   one. */
DEVICE void append_vector(const attn_cu_call &p, const view &v, const attn_cu_cache &c, i64 scale, i64 from, i64 index,
                          int request, int head, int key) {
    const attn_cu_layer &l = p.layer;
    const void *source = pointer<void>(from);
    place at = place_of(p, v, c.ragged, request, key);
    void *to = pointer<void>(value_address(c, at, head));
    i64 first = index * c.dim;
    float factor = head_scale(l, scale, request, head);
    if (c.scale) {
        factor = int8_scale(l.q_type, source, first, c.dim);
        if (lane() == 0) *scale_address(c, at, head) = factor;
    }
    if (l.q_type == l.kv_type && factor == 1.0f) {
        copy_vector(l.q_type, to, source, first, c.dim);
        return;
    }
    for (int x = lane(); x < c.dim; x += 32) {
        float value = load_new(l.q_type, source, first + x);
        if (factor != 1.0f) value = divide(value, factor);
        store_as(l.kv_type, to, x, value);
    }
}

/* The new rows of all requests; a warp stores one vector at a time. */
extern "C" __global__ void __launch_bounds__(32 * WARPS, 8) attn_cu_append(const __grid_constant__ attn_cu_call p) {
    view v = view_of(p.plan);
    int heads = p.layer.kv_heads;
    int vectors = p.new_v ? 2 * heads : heads;
    int first, last;
    if (!call_fits(p)) return;
    walk w = walk_open(v.q_start, p.plan.n, WARPS);
    while (walk_next(&w, &first, &last)) {
        lengths n = lengths_of(v, w.request);
        for (int i = warp(); i < (last - first) * vectors; i += WARPS) {
            int row = first + i / vectors;
            int head = i % heads;
            int key = n.kv_len - n.q_len + row;
            i64 index = ((i64)v.q_start[w.request] + row) * heads + head;
            if (key < 0) continue; /* more rows than keys: only unchecked */
            if (i % vectors < heads) {
                append_vector(p, v, p.k, p.k_scale, p.new_k, index, w.request, head, key);
            } else {
                append_vector(p, v, p.v, p.v_scale, p.new_v, index, w.request, head, key);
            }
        }
    }
}

/* ---- join -------------------------------------------------------------------------------------------------------- */

DEVICE bool is_empty(float lse) { return __float_as_uint(lse) == 0xff800000u; }

/* For a sum of 1 .. 2, within a unit in the last place. */
DEVICE float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* One vector of two results, by a warp. The outputs may be the inputs: lane 0 alone touches the lse, and an element of
   o is read and written by the same lane. */
DEVICE void join_vector(const attn_cu_join &p, i64 index) {
    float a = 0.0f;
    float b = 0.0f;
    if (lane() == 0) {
        a = pointer<float>(p.a_lse)[index];
        b = pointer<float>(p.b_lse)[index];
    }
    a = __shfl_sync(WARP_ALL, a, 0);
    b = __shfl_sync(WARP_ALL, b, 0);
    float top = a > b ? a : b;
    float wa = exp_(__fsub_rn(a, top));
    float wb = exp_(__fsub_rn(b, top));
    float sum = __fadd_rn(wa, wb);
    float lse = __fadd_rn(top, log_(sum));
    i64 first = index * p.v_dim;
    const void *a_o = pointer<void>(p.a_o);
    const void *b_o = pointer<void>(p.b_o);
    void *o = pointer<void>(p.o + first * type_bytes(p.o_type));
    if (is_empty(a) || is_empty(b)) {
        lse = is_empty(a) ? b : a;
        copy_vector(p.o_type, o, is_empty(a) ? b_o : a_o, first, p.v_dim);
    } else {
        float share_a = __fmul_rn(wa, reciprocal(sum));
        float share_b = __fmul_rn(wb, reciprocal(sum));
        for (int x = lane(); x < p.v_dim; x += 32) {
            float part = __fmul_rn(load_as(p.o_type, a_o, first + x), share_a);
            float value = __fmaf_rn(load_as(p.o_type, b_o, first + x), share_b, part);
            store_as(p.o_type, o, x, __fadd_rn(value, 0.0f)); /* -0 becomes 0 */
        }
    }
    if (p.lse && lane() == 0) pointer<float>(p.lse)[index] = lse;
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, 8) attn_cu_join_rows(const __grid_constant__ attn_cu_join p) {
    i64 vectors = p.rows * p.heads;
    for (i64 i = (i64)blockIdx.x * WARPS + warp(); i < vectors; i += (i64)gridDim.x * WARPS) {
        join_vector(p, i);
    }
}

/* ---- rope: the operations of attn.h, in double, in their order: the same bits ------------------------------------ */

/* x / d of a small whole number: a product with its reciprocal, corrected by what is left over (Markstein), has the
   bits of the division. Where a step underflows, the quotient is too small to be seen in the sums below. */
DEVICE double divide_by(double x, int d) {
    double r = 1.0 / d;
    double q = x * r;
    return __fma_rn(__fma_rn(-d, q, x), r, q);
}

/* e^x for -64 <= x <= 0: 2^n by squaring, the rest by its series. */
DEVICE double exp_double(double x) {
    int n = (int)(0.5 - x * 1.44269504088896341);
    double f = x + n * 0.693147180559945309;
    double y = 1.0;
#pragma unroll
    for (int i = 13; i > 0; i--) {
        y = 1.0 + divide_by(y * f, i);
    }
    while (n--) y *= 0.5;
    return y;
}

/* For finite x > 0: x = m * 2^e with m in 0.7 .. 1.4, ln m = 2 atanh((m - 1) / (m + 1)). */
DEVICE double log_double(float x) {
    u32 u = __float_as_uint(x);
    int e = (int)(u >> 23) - 127; /* a base is at least 1: no subnormal */
    double m = __uint_as_float((u & 0x7fffffu) | 0x3f800000u);
    if (m > 1.41421356) {
        m *= 0.5;
        e++;
    }
    double s = (m - 1.0) / (m + 1.0);
    double z = s * s;
    s = 2.0 * s * (1.0 + z * (1.0 / 3 + z * (1.0 / 5 + z * (1.0 / 7 + z * (1.0 / 9 + z * (1.0 / 11))))));
    return s + e * 0.693147180559945309;
}

/* Quarter turns are taken off in two steps, the first of them exact; then the series of both. */
DEVICE void turn(double angle, double *cosine, double *sine) {
    double turns = angle * 0.636619772367581343;
    i64 n = (i64)(turns + (turns < 0 ? -0.5 : 0.5));
    double x = angle - (double)n * 1.57079632673412561417 - (double)n * 6.07710050650619224932e-11;
    double c = 1.0;
    double s = 1.0;
#pragma unroll
    for (int i = 14; i > 0; i -= 2) {
        c = 1.0 - divide_by(c * x * x, i * (i - 1));
        s = 1.0 - divide_by(s * x * x, i * (i + 1));
    }
    s *= x;
    double t = n & 1 ? -s : c;
    s = n & 1 ? c : s;
    *cosine = n & 2 ? -t : t;
    *sine = n & 2 ? -s : s;
}

DEVICE void turn_pair(const attn_cu_turn &p, i64 first, i64 second, double c, double s, double magnitude) {
    void *x = pointer<void>(p.x);
    double a = load_as(p.type, x, first);
    double b = load_as(p.type, x, second);
    store_as(p.type, x, first, (float)((a * c - b * s) * magnitude));
    store_as(p.type, x, second, (float)((a * s + b * c) * magnitude));
}

/* The first frequency that is no number or too large. */
extern "C" __global__ void __launch_bounds__(256) attn_cu_rope_check(const __grid_constant__ attn_cu_turn p) {
    __shared__ u64 room[32];
    attn_cu_verdict *verdict = pointer<attn_cu_verdict>(p.verdict);
    const float *frequencies = pointer<float>(p.inv_freq);
    int half = frequencies ? p.rotary_dim / 2 : 0;
    u64 least = NO_FAULT;
    for (int i = (int)(blockIdx.x * blockDim.x + threadIdx.x); i < half; i += (int)(gridDim.x * blockDim.x)) {
        if (!(fabsf(frequencies[i]) <= 65536.0f)) least = min_(least, (u64)i);
    }
    least = block_min(least, room);
    if (threadIdx.x || !agree(verdict, &least) || least == NO_FAULT) return;
    attn_cu_fault fault = { ATTN_CU_RULE_FREQUENCY, -1, -1, (int)least, __float_as_int(frequencies[least]) };
    verdict->fault = fault;
}

/* A thread keeps its pair, so its frequency, and walks down the rows. x_row, x_head: in elements. */
extern "C" __global__ void __launch_bounds__(32 * WARPS, 8) attn_cu_rope(const __grid_constant__ attn_cu_turn p) {
    u32 half = (u32)p.rotary_dim / 2;
    u32 threads = gridDim.x * blockDim.x;
    u32 columns = min_(half, threads);
    u32 rows = threads / columns;
    u32 thread = blockIdx.x * blockDim.x + threadIdx.x;
    double slope = -log_double(float_of(p.base)) / (int)half;
    double magnitude = float_of(p.magnitude);
    if (thread >= rows * columns || (p.verdict && pointer<attn_cu_verdict>(p.verdict)->fault.rule)) return;
    for (u32 i = thread % columns; i < half; i += columns) {
        u32 first = p.interleaved ? 2 * i : i;
        u32 second = p.interleaved ? 2 * i + 1 : i + half;
        float frequency = p.inv_freq ? pointer<float>(p.inv_freq)[i] : (float)exp_double(slope * (int)i);
        for (i64 row = thread / columns; row < p.rows; row += rows) {
            double c, s;
            turn((double)pointer<int>(p.positions)[row] * frequency, &c, &s);
            for (int h = 0; h < p.heads; h++) {
                i64 at = row * p.x_row + h * p.x_head;
                turn_pair(p, at + first, at + second, c, s, magnitude);
            }
        }
    }
}

#endif
