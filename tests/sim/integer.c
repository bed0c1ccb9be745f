/* integer.c - integer arithmetic, logic, shifts, comparison, selection and moves.
   What the PTX manual leaves open (division by zero) follows what GPUs give. */
#include "sim.h"

#define BOTH(name, suffix, T, e) BINARY(name##_##suffix, T, T, T, e)

BINARY(add_16, uint16_t, uint16_t, uint16_t, a + b)
BINARY(add_32, uint32_t, uint32_t, uint32_t, a + b)
BINARY(add_64, uint64_t, uint64_t, uint64_t, a + b)
BINARY(sub_16, uint16_t, uint16_t, uint16_t, a - b)
BINARY(sub_32, uint32_t, uint32_t, uint32_t, a - b)
BINARY(sub_64, uint64_t, uint64_t, uint64_t, a - b)

BINARY(mul_lo_16, uint16_t, uint16_t, uint16_t, (uint32_t)a * b)
BINARY(mul_lo_32, uint32_t, uint32_t, uint32_t, a * b)
BINARY(mul_lo_64, uint64_t, uint64_t, uint64_t, a * b)
BINARY(mul_wide_s16, int32_t, int16_t, int16_t, (int32_t)a * b)
BINARY(mul_wide_u16, uint32_t, uint16_t, uint16_t, (uint32_t)a * b)
BINARY(mul_wide_s32, int64_t, int32_t, int32_t, (int64_t)a * b)
BINARY(mul_wide_u32, uint64_t, uint32_t, uint32_t, (uint64_t)a * b)
BINARY(mul_hi_s16, int16_t, int16_t, int16_t, ((int32_t)a * b) >> 16)
BINARY(mul_hi_u16, uint16_t, uint16_t, uint16_t, ((uint32_t)a * b) >> 16)
BINARY(mul_hi_s32, int32_t, int32_t, int32_t, ((int64_t)a * b) >> 32)
BINARY(mul_hi_u32, uint32_t, uint32_t, uint32_t, ((uint64_t)a * b) >> 32)
TERNARY(mad_lo_16, uint16_t, uint16_t, uint16_t, uint16_t, (uint32_t)a * b + c)
TERNARY(mad_lo_32, uint32_t, uint32_t, uint32_t, uint32_t, a * b + c)
TERNARY(mad_lo_64, uint64_t, uint64_t, uint64_t, uint64_t, a * b + c)
TERNARY(mad_wide_s16, uint32_t, int16_t, int16_t, uint32_t, (uint32_t)((int32_t)a * b) + c)
TERNARY(mad_wide_u16, uint32_t, uint16_t, uint16_t, uint32_t, (uint32_t)a * b + c)
TERNARY(mad_wide_s32, uint64_t, int32_t, int32_t, uint64_t, (uint64_t)((int64_t)a * b) + c)
TERNARY(mad_wide_u32, uint64_t, uint32_t, uint32_t, uint64_t, (uint64_t)a * b + c)
TERNARY(mad_hi_s32, uint32_t, int32_t, int32_t, uint32_t, (uint32_t)(((int64_t)a * b) >> 32) + c)
TERNARY(mad_hi_u32, uint32_t, uint32_t, uint32_t, uint32_t, (uint32_t)(((uint64_t)a * b) >> 32) + c)

static uint64_t high_product(uint64_t a, uint64_t b) {
    uint64_t al = a & 0xFFFFFFFFu, ah = a >> 32, bl = b & 0xFFFFFFFFu, bh = b >> 32;
    uint64_t middle = ah * bl + ((al * bl) >> 32);
    uint64_t other = al * bh + (middle & 0xFFFFFFFFu);
    return ah * bh + (middle >> 32) + (other >> 32);
}

BINARY(mul_hi_u64, uint64_t, uint64_t, uint64_t, high_product(a, b))
BINARY(mul_hi_s64, uint64_t, uint64_t, uint64_t,
       high_product(a, b) - (a >> 63 ? b : 0) - (b >> 63 ? a : 0))

static uint32_t dot4(uint32_t a, uint32_t b, int a_signed, int b_signed) {
    uint32_t sum = 0;
    int i;
    for (i = 0; i < 32; i += 8) {
        int32_t x = a_signed ? (int8_t)(a >> i) : (uint8_t)(a >> i);
        int32_t y = b_signed ? (int8_t)(b >> i) : (uint8_t)(b >> i);
        sum += (uint32_t)(x * y);
    }
    return sum;
}

TERNARY(dp4a_ss, uint32_t, uint32_t, uint32_t, uint32_t, dot4(a, b, 1, 1) + c)
TERNARY(dp4a_su, uint32_t, uint32_t, uint32_t, uint32_t, dot4(a, b, 1, 0) + c)
TERNARY(dp4a_us, uint32_t, uint32_t, uint32_t, uint32_t, dot4(a, b, 0, 1) + c)
TERNARY(dp4a_uu, uint32_t, uint32_t, uint32_t, uint32_t, dot4(a, b, 0, 0) + c)

BINARY(div_s16, int16_t, int16_t, int16_t, b ? a / b : -1)
BINARY(div_u16, uint16_t, uint16_t, uint16_t, b ? a / b : 0xFFFF)
BINARY(div_s32, uint32_t, int32_t, int32_t, b == 0 ? ~0u : b == -1 ? 0u - (uint32_t)a : (uint32_t)(a / b))
BINARY(div_u32, uint32_t, uint32_t, uint32_t, b ? a / b : ~0u)
BINARY(div_s64, uint64_t, int64_t, int64_t,
       b == 0 ? ~(uint64_t)0 : b == -1 ? 0u - (uint64_t)a : (uint64_t)(a / b))
BINARY(div_u64, uint64_t, uint64_t, uint64_t, b ? a / b : ~(uint64_t)0)
BINARY(rem_s16, int16_t, int16_t, int16_t, b ? a % b : a)
BINARY(rem_u16, uint16_t, uint16_t, uint16_t, b ? a % b : a)
BINARY(rem_s32, int32_t, int32_t, int32_t, b == 0 ? a : b == -1 ? 0 : a % b)
BINARY(rem_u32, uint32_t, uint32_t, uint32_t, b ? a % b : a)
BINARY(rem_s64, int64_t, int64_t, int64_t, b == 0 ? a : b == -1 ? 0 : a % b)
BINARY(rem_u64, uint64_t, uint64_t, uint64_t, b ? a % b : a)

BOTH(min, s16, int16_t, a < b ? a : b)
BOTH(min, u16, uint16_t, a < b ? a : b)
BOTH(min, s32, int32_t, a < b ? a : b)
BOTH(min, u32, uint32_t, a < b ? a : b)
BOTH(min, s64, int64_t, a < b ? a : b)
BOTH(min, u64, uint64_t, a < b ? a : b)
BOTH(max, s16, int16_t, a > b ? a : b)
BOTH(max, u16, uint16_t, a > b ? a : b)
BOTH(max, s32, int32_t, a > b ? a : b)
BOTH(max, u32, uint32_t, a > b ? a : b)
BOTH(max, s64, int64_t, a > b ? a : b)
BOTH(max, u64, uint64_t, a > b ? a : b)

UNARY(neg_16, uint16_t, uint16_t, 0 - a)
UNARY(neg_32, uint32_t, uint32_t, 0 - a)
UNARY(neg_64, uint64_t, uint64_t, 0 - a)
UNARY(abs_16, uint16_t, uint16_t, a >> 15 ? 0 - a : a)
UNARY(abs_32, uint32_t, uint32_t, a >> 31 ? 0 - a : a)
UNARY(abs_64, uint64_t, uint64_t, a >> 63 ? 0 - a : a)

BOTH(and, 16, uint16_t, a & b)
BOTH(and, 32, uint32_t, a & b)
BOTH(and, 64, uint64_t, a & b)
BOTH(or, 16, uint16_t, a | b)
BOTH(or, 32, uint32_t, a | b)
BOTH(or, 64, uint64_t, a | b)
BOTH(xor, 16, uint16_t, a ^ b)
BOTH(xor, 32, uint32_t, a ^ b)
BOTH(xor, 64, uint64_t, a ^ b)
UNARY(not_16, uint16_t, uint16_t, ~a)
UNARY(not_32, uint32_t, uint32_t, ~a)
UNARY(not_64, uint64_t, uint64_t, ~a)

/* Shift counts are not taken modulo the width, as in C, but stop at it. */
BINARY(shl_16, uint16_t, uint16_t, uint32_t, b > 15 ? 0 : a << b)
BINARY(shl_32, uint32_t, uint32_t, uint32_t, b > 31 ? 0 : a << b)
BINARY(shl_64, uint64_t, uint64_t, uint32_t, b > 63 ? 0 : a << b)
BINARY(shr_u16, uint16_t, uint16_t, uint32_t, b > 15 ? 0 : a >> b)
BINARY(shr_u32, uint32_t, uint32_t, uint32_t, b > 31 ? 0 : a >> b)
BINARY(shr_u64, uint64_t, uint64_t, uint32_t, b > 63 ? 0 : a >> b)
BINARY(shr_s16, int16_t, int16_t, uint32_t, a >> (b > 15 ? 15 : b))
BINARY(shr_s32, int32_t, int32_t, uint32_t, a >> (b > 31 ? 31 : b))
BINARY(shr_s64, int64_t, int64_t, uint32_t, a >> (b > 63 ? 63 : b))

/* The funnel: b:a shifted as 64 bits, b the upper half. */
TERNARY(shf_l_wrap, uint32_t, uint32_t, uint32_t, uint32_t, ((((uint64_t)b << 32) | a) << (c & 31)) >> 32)
TERNARY(shf_r_wrap, uint32_t, uint32_t, uint32_t, uint32_t, (((uint64_t)b << 32) | a) >> (c & 31))
TERNARY(shf_l_clamp, uint32_t, uint32_t, uint32_t, uint32_t,
        c > 31 ? a : ((((uint64_t)b << 32) | a) << c) >> 32)
TERNARY(shf_r_clamp, uint32_t, uint32_t, uint32_t, uint32_t,
        c > 31 ? b : (((uint64_t)b << 32) | a) >> c)

static uint32_t leading_zeros(uint64_t a, uint32_t bits) {
    uint32_t n = 0;
    while (n < bits && !(a >> (bits - 1 - n) & 1)) n++;
    return n;
}

static uint32_t reversed(uint32_t a) {
    uint32_t r = 0;
    int i;
    for (i = 0; i < 32; i++) r |= (a >> i & 1) << (31 - i);
    return r;
}

UNARY(popc_32, uint32_t, uint32_t, sim_popcount(a))
UNARY(popc_64, uint32_t, uint64_t, sim_popcount((uint32_t)a) + sim_popcount((uint32_t)(a >> 32)))
UNARY(clz_32, uint32_t, uint32_t, leading_zeros(a, 32))
UNARY(clz_64, uint32_t, uint64_t, leading_zeros(a, 64))
UNARY(brev_32, uint32_t, uint32_t, reversed(a))
UNARY(brev_64, uint64_t, uint64_t, ((uint64_t)reversed((uint32_t)a) << 32) | reversed((uint32_t)(a >> 32)))
UNARY(bfind_u32, uint32_t, uint32_t, 31 - leading_zeros(a, 32))
UNARY(bfind_s32, uint32_t, uint32_t, 31 - leading_zeros(a >> 31 ? ~a : a, 32))
UNARY(bfind_shift, uint32_t, uint32_t, a ? leading_zeros(a, 32) : ~0u)

/* Bits position .. position + length - 1; what lies above bit 31 is zero, or the sign. */
static uint32_t extract(uint32_t a, uint32_t position, uint32_t length, int is_signed) {
    uint32_t p = position & 255, n = length & 255, sign = 0, r;
    if (is_signed && n) sign = a >> (p + n - 1 > 31 ? 31 : p + n - 1) & 1;
    r = p > 31 ? 0 : a >> p;
    if (p > 0 && p <= 31 && sign) r |= ~0u << (32 - p);
    if (p > 31 && sign) r = ~0u;
    if (n > 31) return r;
    r &= (1u << n) - 1;
    return sign ? r | ~0u << n : r;
}

TERNARY(bfe_u32, uint32_t, uint32_t, uint32_t, uint32_t, extract(a, b, c, 0))
TERNARY(bfe_s32, uint32_t, uint32_t, uint32_t, uint32_t, extract(a, b, c, 1))

static uint32_t insert(uint32_t a, uint32_t b, uint32_t position, uint32_t length) {
    uint32_t p = position & 255, n = length & 255, mask;
    if (p > 31) return b;
    mask = (n > 31 ? ~0u : (1u << n) - 1) << p;
    return (b & ~mask) | (a << p & mask);
}

static uint64_t insert_64(uint64_t a, uint64_t b, uint32_t position, uint32_t length) {
    uint32_t p = position & 255, n = length & 255;
    uint64_t mask;
    if (p > 63) return b;
    mask = (n > 63 ? ~(uint64_t)0 : ((uint64_t)1 << n) - 1) << p;
    return (b & ~mask) | (a << p & mask);
}

static void bfi_32(sim_machine *m, const sim_instruction *in) {
    const uint32_t *a = (const uint32_t *)sim_operand(m, in, 1), *b = (const uint32_t *)sim_operand(m, in, 2);
    const uint32_t *p = (const uint32_t *)sim_operand(m, in, 3), *n = (const uint32_t *)sim_operand(m, in, 4);
    uint32_t result[LANES];
    int i;
    for (i = 0; i < LANES; i++) result[i] = insert(a[i], b[i], p[i], n[i]);
    sim_keep(m, sim_operand(m, in, 0), result, 4);
}

static void bfi_64(sim_machine *m, const sim_instruction *in) {
    const uint64_t *a = (const uint64_t *)sim_operand(m, in, 1), *b = (const uint64_t *)sim_operand(m, in, 2);
    const uint32_t *p = (const uint32_t *)sim_operand(m, in, 3), *n = (const uint32_t *)sim_operand(m, in, 4);
    uint64_t result[LANES];
    int i;
    for (i = 0; i < LANES; i++) result[i] = insert_64(a[i], b[i], p[i], n[i]);
    sim_keep(m, sim_operand(m, in, 0), result, 8);
}

/* Any function of three bits: bit 4a + 2b + c of the table. */
static void lop3_32(sim_machine *m, const sim_instruction *in) {
    const uint32_t *a = (const uint32_t *)sim_operand(m, in, 1), *b = (const uint32_t *)sim_operand(m, in, 2);
    const uint32_t *c = (const uint32_t *)sim_operand(m, in, 3);
    uint32_t result[LANES];
    int i, k;
    memset(result, 0, sizeof result);
    for (k = 0; k < 8; k++) {
        uint32_t x = k & 4 ? 0 : ~0u, y = k & 2 ? 0 : ~0u, z = k & 1 ? 0 : ~0u;
        if (!(in->immediate >> k & 1)) continue;
        for (i = 0; i < LANES; i++) result[i] |= (a[i] ^ x) & (b[i] ^ y) & (c[i] ^ z);
    }
    sim_keep(m, sim_operand(m, in, 0), result, 4);
}

static uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) {
    uint64_t bytes = ((uint64_t)b << 32) | a;
    uint32_t r = 0;
    int i;
    for (i = 0; i < 4; i++) {
        uint32_t s = selector >> (4 * i) & 15, byte = (uint32_t)(bytes >> (8 * (s & 7))) & 255;
        if (s & 8) byte = byte & 128 ? 255 : 0;
        r |= byte << (8 * i);
    }
    return r;
}

TERNARY(prmt_32, uint32_t, uint32_t, uint32_t, uint32_t, permute(a, b, c))

UNARY(mov_16, uint16_t, uint16_t, a)
UNARY(mov_32, uint32_t, uint32_t, a)
UNARY(mov_64, uint64_t, uint64_t, a)
UNARY(mov_pred, uint32_t, uint32_t, a ? ~0u : 0)
TERNARY(selp_16, uint16_t, uint16_t, uint16_t, uint32_t, c ? a : b)
TERNARY(selp_32, uint32_t, uint32_t, uint32_t, uint32_t, c ? a : b)
TERNARY(selp_64, uint64_t, uint64_t, uint64_t, uint32_t, c ? a : b)
TERNARY(slct_32_s32, uint32_t, uint32_t, uint32_t, int32_t, c >= 0 ? a : b)
TERNARY(slct_64_s32, uint64_t, uint64_t, uint64_t, int32_t, c >= 0 ? a : b)
TERNARY(slct_32_f32, uint32_t, uint32_t, uint32_t, float, c >= 0 ? a : b)

/* Predicates are masks: 0 or all bits. */
#define COMPARE(suffix, T)                                                                                            \
    BINARY(eq_##suffix, uint32_t, T, T, a == b ? ~0u : 0)                                                             \
    BINARY(ne_##suffix, uint32_t, T, T, a != b ? ~0u : 0)                                                             \
    BINARY(lt_##suffix, uint32_t, T, T, a < b ? ~0u : 0)                                                              \
    BINARY(le_##suffix, uint32_t, T, T, a <= b ? ~0u : 0)                                                             \
    BINARY(gt_##suffix, uint32_t, T, T, a > b ? ~0u : 0)                                                              \
    BINARY(ge_##suffix, uint32_t, T, T, a >= b ? ~0u : 0)

COMPARE(s16, int16_t)
COMPARE(u16, uint16_t)
COMPARE(s32, int32_t)
COMPARE(u32, uint32_t)
COMPARE(s64, int64_t)
COMPARE(u64, uint64_t)

/* Lines of the table. The type of an operation without a sign is written both ways. */
#define EQUALITY(bits, w)                                                                                             \
    { "setp.eq.b" #bits, "p" w w, eq_u##bits, INTEGER, 0 }, { "setp.ne.b" #bits, "p" w w, ne_u##bits, INTEGER, 0 }
#define ORDER(t, w)                                                                                                   \
    { "setp.eq." #t, "p" w w, eq_##t, INTEGER, 0 }, { "setp.ne." #t, "p" w w, ne_##t, INTEGER, 0 },                   \
    { "setp.lt." #t, "p" w w, lt_##t, INTEGER, 0 }, { "setp.le." #t, "p" w w, le_##t, INTEGER, 0 },                   \
    { "setp.gt." #t, "p" w w, gt_##t, INTEGER, 0 }, { "setp.ge." #t, "p" w w, ge_##t, INTEGER, 0 }
#define UNSIGNED_ORDER(t, w)                                                                                          \
    { "setp.lo." #t, "p" w w, lt_##t, INTEGER, 0 }, { "setp.ls." #t, "p" w w, le_##t, INTEGER, 0 },                   \
    { "setp.hi." #t, "p" w w, gt_##t, INTEGER, 0 }, { "setp.hs." #t, "p" w w, ge_##t, INTEGER, 0 }
#define SIGNLESS(op, bits, w)                                                                                         \
    { #op ".s" #bits, w w w, op##_##bits, INTEGER, 0 }, { #op ".u" #bits, w w w, op##_##bits, INTEGER, 0 }
#define SIGNED(op, bits, w)                                                                                           \
    { #op ".s" #bits, w w w, op##_s##bits, INTEGER, 0 }, { #op ".u" #bits, w w w, op##_u##bits, INTEGER, 0 }
#define MUL_LO(bits, w)                                                                                               \
    { "mul.lo.s" #bits, w w w, mul_lo_##bits, INTEGER, 0 }, { "mul.lo.u" #bits, w w w, mul_lo_##bits, INTEGER, 0 },   \
    { "mad.lo.s" #bits, w w w w, mad_lo_##bits, INTEGER, 0 }, { "mad.lo.u" #bits, w w w w, mad_lo_##bits, INTEGER, 0 }
#define MUL_HI(t, w) { "mul.hi." #t, w w w, mul_hi_##t, INTEGER, 0 }
#define MUL_WIDE(t, w, W)                                                                                             \
    { "mul.wide." #t, W w w, mul_wide_##t, INTEGER, 0 }, { "mad.wide." #t, W w w W, mad_wide_##t, INTEGER, 0 }
#define LOGIC(op)                                                                                                     \
    { #op ".b16", "hhh", op##_16, INTEGER, 0 }, { #op ".b32", "www", op##_32, INTEGER, 0 },                           \
    { #op ".b64", "ddd", op##_64, INTEGER, 0 }, { #op ".pred", "ppp", op##_32, INTEGER, 0 }
#define MOVES(op, bits, signature)                                                                                 \
    { #op ".b" #bits, signature, op##_##bits, MOVE, 0 }, { #op ".u" #bits, signature, op##_##bits, MOVE, 0 },         \
    { #op ".s" #bits, signature, op##_##bits, MOVE, 0 }

const sim_form sim_integer_forms[] = {
    SIGNLESS(add, 16, "h"), SIGNLESS(add, 32, "w"), SIGNLESS(add, 64, "d"),
    SIGNLESS(sub, 16, "h"), SIGNLESS(sub, 32, "w"), SIGNLESS(sub, 64, "d"),
    MUL_LO(16, "h"), MUL_LO(32, "w"), MUL_LO(64, "d"),
    MUL_HI(s16, "h"), MUL_HI(u16, "h"), MUL_HI(s32, "w"), MUL_HI(u32, "w"), MUL_HI(s64, "d"), MUL_HI(u64, "d"),
    MUL_WIDE(s16, "h", "w"), MUL_WIDE(u16, "h", "w"), MUL_WIDE(s32, "w", "d"), MUL_WIDE(u32, "w", "d"),
    { "mad.hi.s32", "wwww", mad_hi_s32, INTEGER, 0 },
    { "mad.hi.u32", "wwww", mad_hi_u32, INTEGER, 0 },
    { "dp4a.s32.s32", "wwww", dp4a_ss, INTEGER, 0 },
    { "dp4a.s32.u32", "wwww", dp4a_su, INTEGER, 0 },
    { "dp4a.u32.s32", "wwww", dp4a_us, INTEGER, 0 },
    { "dp4a.u32.u32", "wwww", dp4a_uu, INTEGER, 0 },
    SIGNED(div, 16, "h"), SIGNED(div, 32, "w"), SIGNED(div, 64, "d"),
    SIGNED(rem, 16, "h"), SIGNED(rem, 32, "w"), SIGNED(rem, 64, "d"),
    SIGNED(min, 16, "h"), SIGNED(min, 32, "w"), SIGNED(min, 64, "d"),
    SIGNED(max, 16, "h"), SIGNED(max, 32, "w"), SIGNED(max, 64, "d"),
    { "neg.s16", "hh", neg_16, INTEGER, 0 },
    { "neg.s32", "ww", neg_32, INTEGER, 0 },
    { "neg.s64", "dd", neg_64, INTEGER, 0 },
    { "abs.s16", "hh", abs_16, INTEGER, 0 },
    { "abs.s32", "ww", abs_32, INTEGER, 0 },
    { "abs.s64", "dd", abs_64, INTEGER, 0 },
    LOGIC(and), LOGIC(or), LOGIC(xor),
    { "not.b16", "hh", not_16, INTEGER, 0 },
    { "not.b32", "ww", not_32, INTEGER, 0 },
    { "not.b64", "dd", not_64, INTEGER, 0 },
    { "not.pred", "pp", not_32, INTEGER, 0 },
    { "shl.b16", "hhw", shl_16, INTEGER, 0 },
    { "shl.b32", "www", shl_32, INTEGER, 0 },
    { "shl.b64", "ddw", shl_64, INTEGER, 0 },
    { "shr.b16", "hhw", shr_u16, INTEGER, 0 },
    { "shr.b32", "www", shr_u32, INTEGER, 0 },
    { "shr.b64", "ddw", shr_u64, INTEGER, 0 },
    { "shr.u16", "hhw", shr_u16, INTEGER, 0 },
    { "shr.u32", "www", shr_u32, INTEGER, 0 },
    { "shr.u64", "ddw", shr_u64, INTEGER, 0 },
    { "shr.s16", "hhw", shr_s16, INTEGER, 0 },
    { "shr.s32", "www", shr_s32, INTEGER, 0 },
    { "shr.s64", "ddw", shr_s64, INTEGER, 0 },
    { "shf.l.wrap.b32", "wwww", shf_l_wrap, INTEGER, 0 },
    { "shf.r.wrap.b32", "wwww", shf_r_wrap, INTEGER, 0 },
    { "shf.l.clamp.b32", "wwww", shf_l_clamp, INTEGER, 0 },
    { "shf.r.clamp.b32", "wwww", shf_r_clamp, INTEGER, 0 },
    { "popc.b32", "ww", popc_32, INTEGER, 0 },
    { "popc.b64", "wd", popc_64, INTEGER, 0 },
    { "clz.b32", "ww", clz_32, INTEGER, 0 },
    { "clz.b64", "wd", clz_64, INTEGER, 0 },
    { "brev.b32", "ww", brev_32, INTEGER, 0 },
    { "brev.b64", "dd", brev_64, INTEGER, 0 },
    { "bfind.u32", "ww", bfind_u32, INTEGER, 0 },
    { "bfind.s32", "ww", bfind_s32, INTEGER, 0 },
    { "bfind.shiftamt.u32", "ww", bfind_shift, INTEGER, 0 },
    { "bfe.u32", "wwww", bfe_u32, INTEGER, 0 },
    { "bfe.s32", "wwww", bfe_s32, INTEGER, 0 },
    { "bfi.b32", "wwwww", bfi_32, INTEGER, 0 },
    { "bfi.b64", "dddww", bfi_64, INTEGER, 0 },
    { "lop3.b32", "wwwwi", lop3_32, INTEGER, 0 },
    { "prmt.b32", "wwww", prmt_32, INTEGER, 0 },
    EQUALITY(16, "h"), EQUALITY(32, "w"), EQUALITY(64, "d"),
    ORDER(s16, "h"), ORDER(u16, "h"), ORDER(s32, "w"), ORDER(u32, "w"), ORDER(s64, "d"), ORDER(u64, "d"),
    UNSIGNED_ORDER(u16, "h"), UNSIGNED_ORDER(u32, "w"), UNSIGNED_ORDER(u64, "d"),
    MOVES(mov, 16, "hh"), MOVES(mov, 32, "ww"), MOVES(mov, 64, "dd"),
    { "mov.f32", "ww", mov_32, MOVE, 0 },
    { "mov.f64", "dd", mov_64, MOVE, 0 },
    { "mov.pred", "pp", mov_pred, MOVE, 0 },
    MOVES(selp, 16, "hhhp"), MOVES(selp, 32, "wwwp"), MOVES(selp, 64, "dddp"),
    { "selp.f32", "wwwp", selp_32, MOVE, 0 },
    { "selp.f64", "dddp", selp_64, MOVE, 0 },
    { "slct.b32.s32", "wwww", slct_32_s32, MOVE, 0 },
    { "slct.u32.s32", "wwww", slct_32_s32, MOVE, 0 },
    { "slct.s32.s32", "wwww", slct_32_s32, MOVE, 0 },
    { "slct.f32.s32", "wwww", slct_32_s32, MOVE, 0 },
    { "slct.b64.s32", "dddw", slct_64_s32, MOVE, 0 },
    { "slct.f32.f32", "wwww", slct_32_f32, MOVE, 0 },
    { "slct.b32.f32", "wwww", slct_32_f32, MOVE, 0 },
    { NULL, NULL, NULL, INTEGER, 0 }
};
