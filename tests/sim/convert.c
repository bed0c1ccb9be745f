/* convert.c - conversions among integers, f32, f16, bf16, e4m3 and e5m2. Roundings are to nearest even unless the name
   says otherwise; a NaN becomes the one NaN of the target. */
#include "sim.h"

#include <math.h>

static inline float half_to_float(uint16_t h) {
    uint32_t magnitude = (uint32_t)(h & 0x7FFF) << 13, sign = (uint32_t)(h & 0x8000) << 16;
    if (magnitude >= 0x7C00u << 13) {
        return magnitude > 0x7C00u << 13 ? sim_as_float(0x7FFFFFFFu) : sim_as_float(sign | 0x7F800000u);
    }
    return sim_as_float(sign | sim_as_bits(sim_as_float(magnitude) * 0x1p112f));
}

static inline uint16_t float_to_half(float f) {
    uint32_t u = sim_as_bits(f), sign = u >> 16 & 0x8000u, magnitude = u & 0x7FFFFFFFu, h;
    if (magnitude > 0x7F800000u) return 0x7FFF;
    if (magnitude >= 0x47800000u) h = 0x7C00;
    else if (magnitude < 0x38800000u) h = sim_as_bits(sim_as_float(magnitude) + 0.5f) - 0x3F000000u;
    else h = (magnitude - 0x38000000u + 0xFFF + (magnitude >> 13 & 1)) >> 13;
    return (uint16_t)(sign | h);
}

static inline uint16_t float_to_bfloat(float f) {
    uint32_t u = sim_as_bits(f);
    if ((u & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FFF;
    return (uint16_t)((u + 0x7FFF + (u >> 16 & 1)) >> 16);
}

static inline float bfloat_to_float(uint16_t h) {
    float f = sim_as_float((uint32_t)h << 16);
    return f == f ? f : sim_as_float(0x7FFFFFFFu);
}

/* towards zero */
static inline uint16_t float_to_bfloat_cut(float f) {
    return f == f ? (uint16_t)(sim_as_bits(f) >> 16) : 0x7FFF;
}

static inline uint16_t float_to_half_cut(float f) {
    uint16_t h = float_to_half(f);
    float back = half_to_float(h);
    if (f != f || (h & 0x7FFF) == 0) return h;
    if ((h & 0x7FFF) == 0x7C00) return fabsf(f) > 0x1.fffffep127f ? h : (uint16_t)(h - 1);
    return fabsf(back) > fabsf(f) ? (uint16_t)(h - 1) : h;
}

/* The two 8-bit formats: e4m3 has no infinity and one NaN, e5m2 is the upper half of f16. */
typedef struct small_format {
    int mantissa, bias;
    uint32_t largest, nan;
} small_format;

static const small_format e4m3 = { 3, 7, 0x7E, 0x7F }, e5m2 = { 2, 15, 0x7B, 0x7F };

/* .satfinite: what is too large becomes the largest number, infinities, too. */
static uint32_t float_to_small(float f, const small_format *s) {
    uint32_t sign = sim_as_bits(f) >> 24 & 0x80, code;
    double magnitude = fabs((double)f), unit = ldexp(1.0, 1 - s->bias - s->mantissa);
    int exponent;
    if (f != f) return s->nan;
    if (magnitude > 65536.0) return sign | s->largest;
    frexp(magnitude, &exponent);
    if (magnitude >= unit * (1 << s->mantissa)) {
        int field = exponent - 1 + s->bias;
        double steps = nearbyint(ldexp(magnitude, s->mantissa - (exponent - 1)));
        code = (uint32_t)((field - 1) * (1 << s->mantissa)) + (uint32_t)steps;
    } else {
        code = (uint32_t)nearbyint(magnitude / unit);
    }
    return sign | (code > s->largest ? s->largest : code);
}

static float small_to_float(uint32_t code, const small_format *s) {
    int field = (int)(code & 0x7F) >> s->mantissa, fraction = (int)code & ((1 << s->mantissa) - 1);
    float magnitude;
    if (s == &e4m3 ? (code & 0x7F) == 0x7F : (code & 0x7F) > 0x7C) return sim_as_float(0x7FFFFFFFu);
    if (s == &e5m2 && (code & 0x7F) == 0x7C) magnitude = sim_as_float(0x7F800000u);
    else if (field) magnitude = ldexpf((float)(fraction + (1 << s->mantissa)), field - s->bias - s->mantissa);
    else magnitude = ldexpf((float)fraction, 1 - s->bias - s->mantissa);
    return code & 0x80 ? -magnitude : magnitude;
}

static uint32_t small_pair_to_halves(uint32_t pair, const small_format *s) {
    return float_to_half(small_to_float(pair & 0xFF, s)) |
           ((uint32_t)float_to_half(small_to_float(pair >> 8 & 0xFF, s)) << 16);
}

static uint32_t halves_to_small_pair(uint32_t pair, const small_format *s) {
    return float_to_small(half_to_float((uint16_t)pair), s) |
           (float_to_small(half_to_float((uint16_t)(pair >> 16)), s) << 8);
}

/* Numbers outside of the range become its ends. A NaN becomes 0, but for 64 bits the lowest number. */
static inline int32_t to_s32(double v) {
    if (v != v) return 0;
    return v <= -2147483648.0 ? INT32_MIN : v >= 2147483647.0 ? INT32_MAX : (int32_t)v;
}

static inline uint32_t to_u32(double v) {
    if (v != v || v <= 0) return 0;
    return v >= 4294967295.0 ? UINT32_MAX : (uint32_t)v;
}

static inline int64_t to_s64(double v) {
    if (v != v || v <= -9223372036854775808.0) return INT64_MIN;
    return v >= 9223372036854775808.0 ? INT64_MAX : (int64_t)v;
}

static inline uint64_t to_u64(double v) {
    if (v != v) return (uint64_t)1 << 63;
    if (v <= 0) return 0;
    return v >= 18446744073709551616.0 ? UINT64_MAX : (uint64_t)v;
}

static inline int32_t clamp_s32(int32_t v, int32_t low, int32_t high) {
    return v < low ? low : v > high ? high : v;
}

UNARY(s64_s32, int64_t, int32_t, a)
UNARY(u64_u32, uint64_t, uint32_t, a)
UNARY(s64_s32_d, int64_t, uint64_t, (int32_t)a)
UNARY(u64_u32_d, uint64_t, uint64_t, (uint32_t)a)
UNARY(b32_b64, uint32_t, uint64_t, a)
UNARY(b64_b64, uint64_t, uint64_t, a)
UNARY(b32_b32, uint32_t, uint32_t, a)
UNARY(b16_b32, uint16_t, uint32_t, a)
UNARY(b16_b64, uint16_t, uint64_t, a)
UNARY(u32_u16, uint32_t, uint16_t, a)
UNARY(s32_s16, int32_t, int16_t, a)
UNARY(u64_u16, uint64_t, uint16_t, a)
UNARY(s64_s16, int64_t, int16_t, a)
UNARY(s32_s8_w, int32_t, uint32_t, (int8_t)a)
UNARY(u32_u8_w, uint32_t, uint32_t, (uint8_t)a)
UNARY(s32_s8_h, int32_t, uint16_t, (int8_t)a)
UNARY(u32_u8_h, uint32_t, uint16_t, (uint8_t)a)
UNARY(s16_s8_h, int16_t, uint16_t, (int8_t)a)
UNARY(u16_u8_h, uint16_t, uint16_t, (uint8_t)a)
UNARY(s16_s8_w, int16_t, uint32_t, (int8_t)a)
UNARY(u16_u8_w, uint16_t, uint32_t, (uint8_t)a)
UNARY(s32_s16_w, int32_t, uint32_t, (int16_t)a)
UNARY(u32_u16_w, uint32_t, uint32_t, (uint16_t)a)
UNARY(sat_s8_s32, int32_t, int32_t, clamp_s32(a, -128, 127))
UNARY(sat_u8_s32, int32_t, int32_t, clamp_s32(a, 0, 255))
UNARY(sat_s16_s32, int16_t, int32_t, clamp_s32(a, -32768, 32767))

UNARY(f32_s16, float, int16_t, a)
UNARY(f32_u16, float, uint16_t, a)
UNARY(f32_s8_h, float, uint16_t, (int8_t)a)
UNARY(f32_u8_h, float, uint16_t, (uint8_t)a)
UNARY(f32_s8_w, float, uint32_t, (int8_t)a)
UNARY(f32_u8_w, float, uint32_t, (uint8_t)a)
UNARY(f32_s32, float, int32_t, a)
UNARY(f32_u32, float, uint32_t, a)
UNARY(f32_s64, float, int64_t, a)
UNARY(f32_u64, float, uint64_t, a)
UNARY(f64_s16, double, int16_t, a)
UNARY(f64_u16, double, uint16_t, a)
UNARY(f64_s32, double, int32_t, a)
UNARY(f64_u32, double, uint32_t, a)
UNARY(f64_s64, double, int64_t, a)
UNARY(f64_u64, double, uint64_t, a)
UNARY(f64_f32, double, float, a)
UNARY(f32_f64, float, double, a == a ? (float)a : sim_as_float(0x7FFFFFFFu))

/* rni: nearest even, rzi: towards zero, rmi: down, rpi: up */
#define ROUND_TO(suffix, round)                                                                                       \
    UNARY(s32_##suffix, int32_t, float, to_s32(round((double)a)))                                                     \
    UNARY(u32_##suffix, uint32_t, float, to_u32(round((double)a)))                                                    \
    UNARY(s64_##suffix, int64_t, float, to_s64(round((double)a)))                                                     \
    UNARY(u64_##suffix, uint64_t, float, to_u64(round((double)a)))                                                    \
    UNARY(s8_##suffix, int32_t, float, clamp_s32(to_s32(round((double)a)), -128, 127))                                \
    UNARY(u8_##suffix, int32_t, float, clamp_s32(to_s32(round((double)a)), 0, 255))                                   \
    UNARY(s16_##suffix, int16_t, float, clamp_s32(to_s32(round((double)a)), -32768, 32767))                           \
    UNARY(u16_##suffix, uint16_t, float, clamp_s32(to_s32(round((double)a)), 0, 65535))                               \
    UNARY(f32_##suffix, float, float, a == a ? (float)round((double)a) : sim_as_float(0x7FFFFFFFu))                   \
    UNARY(s32_f64_##suffix, int32_t, double, a == a ? to_s32(round(a)) : INT32_MIN)                                   \
    UNARY(u32_f64_##suffix, uint32_t, double, a == a ? to_u32(round(a)) : 0x80000000u)                                \
    UNARY(s64_f64_##suffix, int64_t, double, to_s64(round(a)))                                                        \
    UNARY(u64_f64_##suffix, uint64_t, double, to_u64(round(a)))

ROUND_TO(rni, nearbyint)
ROUND_TO(rzi, trunc)
ROUND_TO(rmi, floor)
ROUND_TO(rpi, ceil)

UNARY(sat_f32, float, float, a > 0 ? (a < 1 ? a : 1.0f) : 0.0f)
UNARY(f32_f16, float, uint16_t, half_to_float(a))
UNARY(f32_bf16, float, uint16_t, bfloat_to_float(a))
UNARY(f16_f32, uint16_t, float, float_to_half(a))
UNARY(f16_f32_rz, uint16_t, float, float_to_half_cut(a))
UNARY(bf16_f32, uint16_t, float, float_to_bfloat(a))
UNARY(bf16_f32_rz, uint16_t, float, float_to_bfloat_cut(a))
BINARY(f16x2_f32, uint32_t, float, float, ((uint32_t)float_to_half(a) << 16) | float_to_half(b))
BINARY(bf16x2_f32, uint32_t, float, float, ((uint32_t)float_to_bfloat(a) << 16) | float_to_bfloat(b))
BINARY(e4m3x2_f32, uint16_t, float, float, (float_to_small(a, &e4m3) << 8) | float_to_small(b, &e4m3))
BINARY(e5m2x2_f32, uint16_t, float, float, (float_to_small(a, &e5m2) << 8) | float_to_small(b, &e5m2))
UNARY(e4m3x2_f16x2, uint16_t, uint32_t, halves_to_small_pair(a, &e4m3))
UNARY(e5m2x2_f16x2, uint16_t, uint32_t, halves_to_small_pair(a, &e5m2))
UNARY(f16x2_e4m3x2, uint32_t, uint16_t, small_pair_to_halves(a, &e4m3))
UNARY(f16x2_e5m2x2, uint32_t, uint16_t, small_pair_to_halves(a, &e5m2))

#define CVT(name, operands, run) { "cvt." name, operands, run, CONVERSION, 0 }
#define ROUNDED(mode)                                                                                                 \
    CVT(#mode ".s32.f32", "ww", s32_##mode), CVT(#mode ".u32.f32", "ww", u32_##mode),                                 \
    CVT(#mode ".s64.f32", "dw", s64_##mode), CVT(#mode ".u64.f32", "dw", u64_##mode),                                 \
    CVT(#mode ".s16.f32", "hw", s16_##mode), CVT(#mode ".u16.f32", "hw", u16_##mode),                                 \
    CVT(#mode ".sat.s8.f32", "ww", s8_##mode), CVT(#mode ".sat.u8.f32", "ww", u8_##mode),                             \
    CVT(#mode ".s8.f32", "ww", s8_##mode), CVT(#mode ".u8.f32", "ww", u8_##mode),                                     \
    CVT(#mode ".f32.f32", "ww", f32_##mode),                                                                          \
    CVT(#mode ".s32.f64", "wd", s32_f64_##mode), CVT(#mode ".u32.f64", "wd", u32_f64_##mode),                         \
    CVT(#mode ".s64.f64", "dd", s64_f64_##mode), CVT(#mode ".u64.f64", "dd", u64_f64_##mode)
/* A source register may be wider than its type. */
#define FROM_8(to, operand, run) CVT(to "8", operand "w", run##_w), CVT(to "8", operand "h", run##_h)

const sim_form sim_convert_forms[] = {
    CVT("s64.s32", "dw", s64_s32), CVT("u64.u32", "dw", u64_u32), CVT("s64.u32", "dw", u64_u32),
    CVT("u64.s32", "dw", s64_s32), CVT("s64.s32", "dd", s64_s32_d), CVT("u64.u32", "dd", u64_u32_d),
    CVT("u32.u64", "wd", b32_b64), CVT("s32.s64", "wd", b32_b64), CVT("u32.s64", "wd", b32_b64),
    CVT("s32.u64", "wd", b32_b64),
    CVT("u64.s64", "dd", b64_b64), CVT("s64.u64", "dd", b64_b64),
    CVT("u32.s32", "ww", b32_b32), CVT("s32.u32", "ww", b32_b32),
    CVT("u16.u32", "hw", b16_b32), CVT("s16.s32", "hw", b16_b32), CVT("u16.s32", "hw", b16_b32),
    CVT("s16.u32", "hw", b16_b32), CVT("u16.u64", "hd", b16_b64),
    CVT("u32.u16", "wh", u32_u16), CVT("s32.u16", "wh", u32_u16), CVT("s32.s16", "wh", s32_s16),
    CVT("u32.s16", "wh", s32_s16), CVT("u64.u16", "dh", u64_u16), CVT("s64.s16", "dh", s64_s16),
    CVT("s32.s16", "ww", s32_s16_w), CVT("u32.u16", "ww", u32_u16_w),
    FROM_8("s32.s", "w", s32_s8), FROM_8("u32.u", "w", u32_u8), FROM_8("s16.s", "h", s16_s8),
    FROM_8("u16.u", "h", u16_u8), FROM_8("rn.f32.s", "w", f32_s8), FROM_8("rn.f32.u", "w", f32_u8),
    CVT("sat.s8.s32", "ww", sat_s8_s32), CVT("sat.u8.s32", "ww", sat_u8_s32), CVT("sat.s16.s32", "hw", sat_s16_s32),
    CVT("rn.f32.s16", "wh", f32_s16), CVT("rn.f32.u16", "wh", f32_u16),
    CVT("rn.f32.s32", "ww", f32_s32), CVT("rn.f32.u32", "ww", f32_u32),
    CVT("rn.f32.s64", "wd", f32_s64), CVT("rn.f32.u64", "wd", f32_u64),
    CVT("rn.f64.s16", "dh", f64_s16), CVT("rn.f64.u16", "dh", f64_u16),
    CVT("rn.f64.s32", "dw", f64_s32), CVT("rn.f64.u32", "dw", f64_u32),
    CVT("rn.f64.s64", "dd", f64_s64), CVT("rn.f64.u64", "dd", f64_u64),
    CVT("f64.f32", "dw", f64_f32), CVT("rn.f32.f64", "wd", f32_f64),
    ROUNDED(rni), ROUNDED(rzi), ROUNDED(rmi), ROUNDED(rpi),
    CVT("sat.f32.f32", "ww", sat_f32),
    CVT("f32.f16", "wh", f32_f16), CVT("f32.bf16", "wh", f32_bf16),
    CVT("rn.f16.f32", "hw", f16_f32), CVT("rz.f16.f32", "hw", f16_f32_rz),
    CVT("rn.bf16.f32", "hw", bf16_f32), CVT("rz.bf16.f32", "hw", bf16_f32_rz),
    CVT("rn.f16x2.f32", "www", f16x2_f32), CVT("rn.bf16x2.f32", "www", bf16x2_f32),
    CVT("rn.satfinite.e4m3x2.f32", "hww", e4m3x2_f32), CVT("rn.satfinite.e5m2x2.f32", "hww", e5m2x2_f32),
    CVT("rn.satfinite.e4m3x2.f16x2", "hw", e4m3x2_f16x2), CVT("rn.satfinite.e5m2x2.f16x2", "hw", e5m2x2_f16x2),
    CVT("rn.f16x2.e4m3x2", "wh", f16x2_e4m3x2), CVT("rn.f16x2.e5m2x2", "wh", f16x2_e5m2x2),
    { NULL, NULL, NULL, CONVERSION, 0 }
};
