/* float.c - f32 arithmetic, the approximations, and the few f64 operations that compilers make of integers.
   Results that are NaN have the bits of the hardware's one NaN. The .ftz forms take subnormal operands as zeros of the
   same sign and flush subnormal results. The approximations are exact to rounding, or off by up to two units with
   PTXSIM_PERTURB, as those of a GPU are: a test that asks for their bits is wrong. */
#include "sim.h"

#include <math.h>

static inline float flush(float f) {
    uint32_t u = sim_as_bits(f);
    return (u & 0x7F800000u) ? f : sim_as_float(u & 0x80000000u);
}

static inline float canonical(float f) {
    return f == f ? f : sim_as_float(0x7FFFFFFFu);
}

/* Each operation, and its .ftz form. */
#define FLOAT1(name, e)                                                                                               \
    static inline float name##_of(float a) { return e; }                                                              \
    UNARY(name, float, float, canonical(name##_of(a)))                                                                \
    UNARY(name##_ftz, float, float, flush(canonical(name##_of(flush(a)))))
#define FLOAT2(name, e)                                                                                               \
    static inline float name##_of(float a, float b) { return e; }                                                     \
    BINARY(name, float, float, float, canonical(name##_of(a, b)))                                                     \
    BINARY(name##_ftz, float, float, float, flush(canonical(name##_of(flush(a), flush(b)))))
#define FLOAT3(name, e)                                                                                               \
    static inline float name##_of(float a, float b, float c) { return e; }                                            \
    TERNARY(name, float, float, float, float, canonical(name##_of(a, b, c)))                                          \
    TERNARY(name##_ftz, float, float, float, float, flush(canonical(name##_of(flush(a), flush(b), flush(c)))))

/* A NaN gives way to a number; -0 is less than +0. */
static inline float larger(float a, float b) {
    if (a != a) return b;
    if (b != b) return a;
    if (a == b) return sim_as_float(sim_as_bits(a) & sim_as_bits(b));
    return a > b ? a : b;
}

static inline float smaller(float a, float b) {
    if (a != a) return b;
    if (b != b) return a;
    if (a == b) return sim_as_float(sim_as_bits(a) | sim_as_bits(b));
    return a < b ? a : b;
}

FLOAT2(add, a + b)
FLOAT2(sub, a - b)
FLOAT2(mul, a * b)
FLOAT3(fused, fmaf(a, b, c))
FLOAT2(div, a / b)
FLOAT1(rcp, 1.0f / a)
FLOAT1(root, sqrtf(a))
FLOAT2(max, larger(a, b))
FLOAT2(min, smaller(a, b))
FLOAT2(max_nan, a != a || b != b ? a + b : larger(a, b))
FLOAT2(min_nan, a != a || b != b ? a + b : smaller(a, b))
FLOAT3(max3, larger(larger(a, b), c))
FLOAT3(min3, smaller(smaller(a, b), c))

/* Signs change without a look at the number. */
UNARY(negated, uint32_t, uint32_t, a ^ 0x80000000u)
UNARY(negated_ftz, float, float, flush(-a))
UNARY(magnitude, uint32_t, uint32_t, a & 0x7FFFFFFFu)
UNARY(magnitude_ftz, float, float, flush(fabsf(a)))
BINARY(with_sign, uint32_t, uint32_t, uint32_t, (a & 0x80000000u) | (b & 0x7FFFFFFFu))

/* 0 .. 1, a NaN gives 0 */
static inline float saturated(float a) {
    return a > 0 ? (a < 1 ? a : 1.0f) : 0.0f;
}

BINARY(add_sat, float, float, float, saturated(a + b))
BINARY(mul_sat, float, float, float, saturated(a * b))
TERNARY(fma_sat, float, float, float, float, saturated(fmaf(a, b, c)))

/* Moves a finite result by -2 .. 2 units, the same way for the same bits. */
static float perturbed(float f) {
    uint32_t u = sim_as_bits(f), step = (u * 2654435761u >> 16) % 5;
    uint32_t magnitude = u & 0x7FFFFFFFu;
    if (magnitude >= 0x7F7FFFF0u || magnitude < 0x00800010u || magnitude == 0x3F800000u) return f;
    return sim_as_float(u + step - 2);
}

#define APPROXIMATE(name, e)                                                                                          \
    static void name##_lanes(sim_machine *m, const sim_instruction *in, int ftz) {                                    \
        const float *x = (const float *)sim_operand(m, in, 1);                                                        \
        float result[LANES];                                                                                          \
        int i;                                                                                                        \
        for (i = 0; i < LANES; i++) {                                                                                 \
            float a = ftz ? flush(x[i]) : x[i];                                                                       \
            result[i] = sim_active(m, i) ? canonical(e) : 0;                                                          \
            if (ftz) result[i] = flush(result[i]);                                                                    \
            if (m->config->perturb) result[i] = perturbed(result[i]);                                                 \
        }                                                                                                             \
        sim_keep(m, sim_operand(m, in, 0), result, 4);                                                                \
    }                                                                                                                 \
    static void name(sim_machine *m, const sim_instruction *in) { name##_lanes(m, in, 0); }

#define APPROXIMATE_FTZ(name, e)                                                                                      \
    APPROXIMATE(name, e)                                                                                              \
    static void name##_ftz(sim_machine *m, const sim_instruction *in) { name##_lanes(m, in, 1); }

APPROXIMATE_FTZ(ex2, exp2f(a))
APPROXIMATE_FTZ(lg2, log2f(a))
APPROXIMATE_FTZ(rsqrt, 1.0f / sqrtf(a))
APPROXIMATE_FTZ(rcp_approx, 1.0f / a)
APPROXIMATE_FTZ(sqrt_approx, sqrtf(a))
APPROXIMATE_FTZ(sine, sinf(a))
APPROXIMATE_FTZ(cosine, cosf(a))
APPROXIMATE(tanh_approx, tanhf(a))

/* Division by reciprocal: right to 2 units for |b| in 2^-126 .. 2^126, 0 above. */
static inline float divide_fast(float a, float b) {
    float magnitude = fabsf(b);
    if (magnitude > 0x1p126f && magnitude <= 0x1.fffffep127f) {
        return fabsf(a) > 0x1.fffffep127f ? sim_as_float(0x7FFFFFFFu) : copysignf(0.0f, a) * copysignf(1.0f, b);
    }
    return a / b;
}

FLOAT2(div_approx, divide_fast(a, b))

/* Comparisons that are true for unordered operands end in u. */
#define COMPARE_FLOAT(name, e)                                                                                        \
    static inline uint32_t name##_of(float a, float b) { return (e) ? ~0u : 0; }                                      \
    BINARY(name, uint32_t, float, float, name##_of(a, b))                                                             \
    BINARY(name##_ftz, uint32_t, float, float, name##_of(flush(a), flush(b)))                                         \
    BINARY(name##_f64, uint32_t, double, double, (e) ? ~0u : 0)

COMPARE_FLOAT(eq, a == b)
COMPARE_FLOAT(ne, a < b || a > b)
COMPARE_FLOAT(lt, a < b)
COMPARE_FLOAT(le, a <= b)
COMPARE_FLOAT(gt, a > b)
COMPARE_FLOAT(ge, a >= b)
COMPARE_FLOAT(equ, !(a < b || a > b))
COMPARE_FLOAT(neu, a != b)
COMPARE_FLOAT(ltu, !(a >= b))
COMPARE_FLOAT(leu, !(a > b))
COMPARE_FLOAT(gtu, !(a <= b))
COMPARE_FLOAT(geu, !(a < b))
COMPARE_FLOAT(ordered, a == a && b == b)
COMPARE_FLOAT(unordered, a != a || b != b)

BINARY(add_f64, double, double, double, a + b)
BINARY(sub_f64, double, double, double, a - b)
BINARY(mul_f64, double, double, double, a * b)
BINARY(div_f64, double, double, double, a / b)
TERNARY(fma_f64, double, double, double, double, fma(a, b, c))
UNARY(neg_f64, double, double, -a)
UNARY(abs_f64, double, double, fabs(a))

#define PLAIN_AND_FTZ(name, signature, run, class_)                                                                   \
    { name ".f32", signature, run, class_, 0 }, { name ".ftz.f32", signature, run##_ftz, class_, 0 }
#define ROUNDED(name, signature, run)                                                                                 \
    PLAIN_AND_FTZ(name, signature, run, FLOATING), PLAIN_AND_FTZ(name ".rn", signature, run, FLOATING)
#define SETP(name)                                                                                                    \
    PLAIN_AND_FTZ("setp." #name, "pww", name, FLOATING), { "setp." #name ".f64", "pdd", name##_f64, FLOATING, 0 }

const sim_form sim_float_forms[] = {
    ROUNDED("add", "www", add), ROUNDED("sub", "www", sub), ROUNDED("mul", "www", mul),
    PLAIN_AND_FTZ("fma.rn", "wwww", fused, FLOATING),
    { "add.sat.f32", "www", add_sat, FLOATING, 0 },
    { "mul.sat.f32", "www", mul_sat, FLOATING, 0 },
    { "fma.rn.sat.f32", "wwww", fma_sat, FLOATING, 0 },
    PLAIN_AND_FTZ("div.rn", "www", div, FLOATING),
    PLAIN_AND_FTZ("div.full", "www", div_approx, SPECIAL),
    PLAIN_AND_FTZ("div.approx", "www", div_approx, SPECIAL),
    PLAIN_AND_FTZ("rcp.rn", "ww", rcp, FLOATING),
    PLAIN_AND_FTZ("rcp.approx", "ww", rcp_approx, SPECIAL),
    PLAIN_AND_FTZ("sqrt.rn", "ww", root, FLOATING),
    PLAIN_AND_FTZ("sqrt.approx", "ww", sqrt_approx, SPECIAL),
    PLAIN_AND_FTZ("rsqrt.approx", "ww", rsqrt, SPECIAL),
    PLAIN_AND_FTZ("ex2.approx", "ww", ex2, SPECIAL),
    PLAIN_AND_FTZ("lg2.approx", "ww", lg2, SPECIAL),
    PLAIN_AND_FTZ("sin.approx", "ww", sine, SPECIAL),
    PLAIN_AND_FTZ("cos.approx", "ww", cosine, SPECIAL),
    { "tanh.approx.f32", "ww", tanh_approx, SPECIAL, 0 },
    PLAIN_AND_FTZ("max", "www", max, FLOATING),
    PLAIN_AND_FTZ("min", "www", min, FLOATING),
    PLAIN_AND_FTZ("max", "wwww", max3, FLOATING),
    PLAIN_AND_FTZ("min", "wwww", min3, FLOATING),
    { "max.NaN.f32", "www", max_nan, FLOATING, 0 },
    { "min.NaN.f32", "www", min_nan, FLOATING, 0 },
    { "max.ftz.NaN.f32", "www", max_nan_ftz, FLOATING, 0 },
    { "min.ftz.NaN.f32", "www", min_nan_ftz, FLOATING, 0 },
    PLAIN_AND_FTZ("neg", "ww", negated, FLOATING),
    PLAIN_AND_FTZ("abs", "ww", magnitude, FLOATING),
    { "copysign.f32", "www", with_sign, FLOATING, 0 },
    SETP(eq), SETP(ne), SETP(lt), SETP(le), SETP(gt), SETP(ge), SETP(equ), SETP(neu), SETP(ltu), SETP(leu),
    SETP(gtu), SETP(geu),
    PLAIN_AND_FTZ("setp.num", "pww", ordered, FLOATING),
    PLAIN_AND_FTZ("setp.nan", "pww", unordered, FLOATING),
    { "setp.num.f64", "pdd", ordered_f64, FLOATING, 0 },
    { "setp.nan.f64", "pdd", unordered_f64, FLOATING, 0 },
    { "add.f64", "ddd", add_f64, FLOATING, 0 },
    { "add.rn.f64", "ddd", add_f64, FLOATING, 0 },
    { "sub.f64", "ddd", sub_f64, FLOATING, 0 },
    { "sub.rn.f64", "ddd", sub_f64, FLOATING, 0 },
    { "mul.f64", "ddd", mul_f64, FLOATING, 0 },
    { "mul.rn.f64", "ddd", mul_f64, FLOATING, 0 },
    { "div.rn.f64", "ddd", div_f64, FLOATING, 0 },
    { "fma.rn.f64", "dddd", fma_f64, FLOATING, 0 },
    { "neg.f64", "dd", neg_f64, FLOATING, 0 },
    { "abs.f64", "dd", abs_f64, FLOATING, 0 },
    { NULL, NULL, NULL, FLOATING, 0 }
};
