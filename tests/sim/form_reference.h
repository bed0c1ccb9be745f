/* form_reference.h - what an instruction should give, worked out from its name in another way than the simulator does:
   integers in 128 bits, bit by bit where bits are meant, floats in double with one rounding, small formats by search
   among all their numbers. */
#ifndef FORM_REFERENCE_H
#define FORM_REFERENCE_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

__extension__ typedef __int128 wide;
__extension__ typedef unsigned __int128 unsigned_wide;

/* Products of 64-bit numbers fill all of it. */
static inline wide product(wide a, wide b) {
    return (wide)((unsigned_wide)a * (unsigned_wide)b);
}

typedef struct form_name {
    char part[8][16];
    int count;
} form_name;

static inline void split_form(const char *name, form_name *f) {
    f->count = 0;
    while (*name && f->count < 8) {
        size_t n = strcspn(name, ".");
        memcpy(f->part[f->count], name, n);
        f->part[f->count++][n] = 0;
        name += n + (name[n] == '.');
    }
}

static inline int form_has(const form_name *f, const char *part) {
    int i;
    for (i = 1; i < f->count; i++) {
        if (!strcmp(f->part[i], part)) return 1;
    }
    return 0;
}

static inline const char *form_type(const form_name *f, int from_end) {
    return f->part[f->count - 1 - from_end];
}

static inline int type_bits(const char *type) {
    return !strcmp(type, "pred") ? 32 : atoi(type + 1);
}

static inline uint64_t low_bits(wide v, int bits) {
    return bits == 64 ? (uint64_t)v : (uint64_t)v & (((uint64_t)1 << bits) - 1);
}

static inline wide as_integer(uint64_t v, const char *type) {
    int bits = type_bits(type);
    v = low_bits((wide)v, bits);
    if (type[0] == 's' && v >> (bits - 1)) return (wide)v - ((wide)1 << bits);
    return (wide)v;
}

static inline float float_of(uint64_t v) {
    uint32_t u = (uint32_t)v;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static inline uint64_t bits_of(float f) {
    uint32_t u;
    if (f != f) return 0x7FFFFFFFu;
    memcpy(&u, &f, 4);
    return u;
}

static inline double double_of(uint64_t v) {
    double d;
    memcpy(&d, &v, 8);
    return d;
}

static inline uint64_t bits_of_double(double d) {
    uint64_t v;
    memcpy(&v, &d, 8);
    return v;
}

/* ---- integers -------------------------------------------------------------------------------------------------- */

static inline uint64_t bit(uint64_t v, unsigned i) {
    return v >> i & 1;
}

static inline uint64_t expect_shift(const form_name *f, const uint64_t *a) {
    const char *type = form_type(f, 0);
    int bits = type_bits(type);
    uint32_t n = (uint32_t)a[1];
    wide v = as_integer(a[0], type), unit = 1;
    if (f->part[0][2] == 'l') return n >= (uint32_t)bits ? 0 : low_bits(v * (unit << n), bits);
    if (n >= (uint32_t)bits) return v < 0 ? low_bits(-1, bits) : 0;
    if (v >= 0) return low_bits(v / (unit << n), bits);
    return low_bits(-((-v + (unit << n) - 1) / (unit << n)), bits);
}

static inline uint64_t expect_funnel(const form_name *f, const uint64_t *a) {
    uint64_t both = (a[1] & 0xFFFFFFFFu) << 32 | (a[0] & 0xFFFFFFFFu), r = 0;
    uint32_t n = (uint32_t)a[2], i;
    n = form_has(f, "wrap") ? n % 32 : n > 32 ? 32 : n;
    for (i = 0; i < 32; i++) r |= bit(both, form_has(f, "l") ? 32 + i - n : i + n) << i;
    return r;
}

static inline uint64_t expect_extract(const form_name *f, const uint64_t *a) {
    unsigned p = a[1] & 255, n = a[2] & 255, i;
    unsigned top = p + n - 1 < 31 ? p + n - 1 : 31;
    uint64_t v = a[0] & 0xFFFFFFFFu, sign = form_type(f, 0)[0] == 's' && n ? bit(v, top) : 0, r = 0;
    for (i = 0; i < 32; i++) r |= (i < n && p + i <= 31 ? bit(v, p + i) : sign) << i;
    return r;
}

static inline uint64_t expect_insert(const uint64_t *a, unsigned bits) {
    unsigned p = a[2] & 255, n = a[3] & 255, i;
    uint64_t r = 0;
    for (i = 0; i < bits; i++) r |= (i >= p && i < p + n ? bit(a[0], i - p) : bit(a[1], i)) << i;
    return r;
}

static inline uint64_t expect_find(const form_name *f, const uint64_t *a) {
    uint64_t v = a[0] & 0xFFFFFFFFu;
    int i = 31;
    if (form_type(f, 0)[0] == 's' && bit(v, 31)) v = ~v & 0xFFFFFFFFu;
    while (i >= 0 && !bit(v, (unsigned)i)) i--;
    if (i < 0) return 0xFFFFFFFFu;
    return (uint64_t)(form_has(f, "shiftamt") ? 31 - i : i);
}

static inline uint64_t expect_permute(const uint64_t *a) {
    uint8_t byte[8];
    uint64_t r = 0;
    unsigned i, s;
    for (i = 0; i < 8; i++) byte[i] = (uint8_t)(a[i / 4] >> (8 * (i % 4)));
    for (i = 0; i < 4; i++) {
        s = a[2] >> (4 * i) & 15;
        r |= (uint64_t)(s < 8 ? byte[s] : byte[s - 8] > 127 ? 255 : 0) << (8 * i);
    }
    return r;
}

static inline uint64_t expect_dot(const form_name *f, const uint64_t *a) {
    wide sum = (wide)(a[2] & 0xFFFFFFFFu);
    int i;
    for (i = 0; i < 4; i++) {
        sum += as_integer(a[0] >> (8 * i), form_type(f, 1)[0] == 's' ? "s8" : "u8") *
               as_integer(a[1] >> (8 * i), form_type(f, 0)[0] == 's' ? "s8" : "u8");
    }
    return low_bits(sum, 32);
}

static inline uint64_t expect_count(const char *op, const char *type, uint64_t v) {
    int bits = type_bits(type), i, ones = 0, zeros = 0;
    uint64_t r = 0;
    v = low_bits((wide)v, bits);
    for (i = 0; i < bits; i++) {
        ones += (int)bit(v, (unsigned)i);
        r |= bit(v, (unsigned)i) << (bits - 1 - i);
    }
    while (zeros < bits && !bit(v, (unsigned)(bits - 1 - zeros))) zeros++;
    return !strcmp(op, "popc") ? (uint64_t)ones : !strcmp(op, "clz") ? (uint64_t)zeros : r;
}

static inline uint64_t expect_lookup(const uint64_t *a, uint32_t table) {
    uint64_t r = 0;
    unsigned i;
    for (i = 0; i < 32; i++) r |= bit(table, (unsigned)(bit(a[0], i) * 4 + bit(a[1], i) * 2 + bit(a[2], i))) << i;
    return r;
}

static inline int compare(const char *op, int less, int equal, int unordered) {
    if (!strcmp(op, "num")) return !unordered;
    if (!strcmp(op, "nan")) return unordered;
    if (unordered) return strlen(op) == 3 && op[2] == 'u';
    if (!strncmp(op, "eq", 2)) return equal;
    if (!strncmp(op, "ne", 2)) return !equal;
    if (!strncmp(op, "lt", 2) || !strcmp(op, "lo")) return less;
    if (!strncmp(op, "le", 2) || !strcmp(op, "ls")) return less || equal;
    if (!strncmp(op, "gt", 2) || !strcmp(op, "hi")) return !less && !equal;
    return !less;
}

/* 1: *r is the result */
static inline int expect_integer(const form_name *f, const uint64_t *a, uint32_t immediate, uint64_t *r) {
    const char *op = f->part[0], *type = form_type(f, 0);
    int bits = type_bits(type), is_wide = form_has(f, "wide"), high = form_has(f, "hi");
    wide x = as_integer(a[0], type), y = as_integer(a[1], type), z = as_integer(a[2], type), v;
    if (!strcmp(op, "setp")) {
        *r = (uint64_t)compare(f->part[1], x < y, x == y, 0);
        return 1;
    }
    if (!strcmp(op, "add")) v = x + y;
    else if (!strcmp(op, "sub")) v = x - y;
    else if (!strcmp(op, "mul")) v = high ? product(x, y) >> bits : product(x, y);
    else if (!strcmp(op, "mad") && is_wide) v = product(x, y) + (wide)a[2];
    else if (!strcmp(op, "mad")) v = low_bits(high ? product(x, y) >> bits : product(x, y), bits) + z;
    else if (!strcmp(op, "div")) v = y ? x / y : -1;
    else if (!strcmp(op, "rem")) v = y ? x % y : x;
    else if (!strcmp(op, "min")) v = x < y ? x : y;
    else if (!strcmp(op, "max")) v = x > y ? x : y;
    else if (!strcmp(op, "neg")) v = -x;
    else if (!strcmp(op, "abs")) v = x < 0 ? -x : x;
    else if (!strcmp(op, "and")) v = x & y;
    else if (!strcmp(op, "or")) v = x | y;
    else if (!strcmp(op, "xor")) v = x ^ y;
    else if (!strcmp(op, "not")) v = -1 - x;
    else if (!strcmp(op, "mov")) v = x;
    else if (!strcmp(op, "selp")) v = a[2] ? x : y;
    else if (!strcmp(op, "shl") || !strcmp(op, "shr")) v = (wide)expect_shift(f, a);
    else if (!strcmp(op, "shf")) v = (wide)expect_funnel(f, a);
    else if (!strcmp(op, "bfe")) v = (wide)expect_extract(f, a);
    else if (!strcmp(op, "bfi")) v = (wide)expect_insert(a, (unsigned)bits);
    else if (!strcmp(op, "bfind")) v = (wide)expect_find(f, a);
    else if (!strcmp(op, "prmt")) v = (wide)expect_permute(a);
    else if (!strcmp(op, "dp4a")) v = (wide)expect_dot(f, a);
    else if (!strcmp(op, "lop3")) v = (wide)expect_lookup(a, immediate);
    else if (!strcmp(op, "popc") || !strcmp(op, "clz") || !strcmp(op, "brev")) v = (wide)expect_count(op, type, a[0]);
    else return 0;
    *r = low_bits(v, is_wide ? 2 * bits : bits);
    if (!strcmp(type, "pred")) *r = *r & 1;
    return 1;
}

/* ---- f32 ------------------------------------------------------------------------------------------------------- */

static inline float flushed(float f) {
    return fabsf(f) < 1.17549435e-38f ? copysignf(0, f) : f;
}

/* a * b + c with one rounding: the sum to odd in double, then to float. */
static inline float fused(float a, float b, float c) {
    double p = (double)a * b, s = p + c, t = s - p, error = (p - (s - t)) + (c - t);
    uint64_t u = bits_of_double(s);
    if (isfinite(s) && error != 0 && !(u & 1)) s = double_of((error > 0) == (s > 0) ? u + 1 : u - 1);
    return (float)s;
}

static inline float order_pair(float a, float b, int want_larger) {
    if (a != a || b != b) return a != a ? b : a;
    if (a == b) return (signbit(a) != 0) == want_larger ? b : a;
    return (a > b) == want_larger ? a : b;
}

static inline double limited(double v) {
    return v >= 1 ? 1 : v > 0 ? v : 0;
}

/* Gives the exact function for approximations: the caller allows a few units. */
static inline int expect_float(const form_name *f, const uint64_t *bits, int count, uint64_t *r) {
    const char *op = f->part[0];
    int ftz = form_has(f, "ftz"), i, larger = !strcmp(op, "max");
    float a[3] = { 0, 0, 0 }, v;
    for (i = 0; i < 3; i++) {
        a[i] = float_of(bits[i]);
        if (ftz) a[i] = flushed(a[i]);
    }
    if (!strcmp(op, "setp")) {
        *r = (uint64_t)compare(f->part[1], a[0] < a[1], a[0] == a[1], a[0] != a[0] || a[1] != a[1]);
        return 1;
    }
    if (!strcmp(op, "add")) v = (float)((double)a[0] + a[1]);
    else if (!strcmp(op, "sub")) v = (float)((double)a[0] - a[1]);
    else if (!strcmp(op, "mul")) v = (float)((double)a[0] * a[1]);
    else if (!strcmp(op, "fma")) v = fused(a[0], a[1], a[2]);
    else if (!strcmp(op, "div")) v = (float)((double)a[0] / a[1]);
    else if (!strcmp(op, "rcp")) v = (float)(1 / (double)a[0]);
    else if (!strcmp(op, "sqrt")) v = (float)sqrt((double)a[0]);
    else if (!strcmp(op, "rsqrt")) v = (float)(1 / sqrt((double)a[0]));
    else if (!strcmp(op, "ex2")) v = (float)exp2((double)a[0]);
    else if (!strcmp(op, "lg2")) v = (float)log2((double)a[0]);
    else if (!strcmp(op, "sin")) v = (float)sin((double)a[0]);
    else if (!strcmp(op, "cos")) v = (float)cos((double)a[0]);
    else if (!strcmp(op, "tanh")) v = (float)tanh((double)a[0]);
    else if (!strcmp(op, "neg")) v = -a[0];
    else if (!strcmp(op, "abs")) v = fabsf(a[0]);
    else if (!strcmp(op, "copysign")) v = copysignf(a[1], a[0]);
    else if (!strcmp(op, "max") || !strcmp(op, "min")) {
        v = order_pair(a[0], a[1], larger);
        if (count == 3) v = order_pair(v, a[2], larger);
        if (form_has(f, "NaN") && (a[0] != a[0] || a[1] != a[1])) v = NAN;
    } else return 0;
    if (form_has(f, "sat")) v = (float)limited((double)v);
    *r = bits_of(ftz ? flushed(v) : v);
    return 1;
}

static inline int expect_double(const form_name *f, const uint64_t *a, uint64_t *r) {
    const char *op = f->part[0];
    double x = double_of(a[0]), y = double_of(a[1]);
    if (!strcmp(op, "setp")) {
        *r = (uint64_t)compare(f->part[1], x < y, x == y, x != x || y != y);
        return 1;
    }
    if (!strcmp(op, "add")) x = x + y;
    else if (!strcmp(op, "sub")) x = x - y;
    else if (!strcmp(op, "mul")) x = x * y;
    else if (!strcmp(op, "div")) x = x / y;
    else if (!strcmp(op, "fma")) x = fma(x, y, double_of(a[2]));
    else if (!strcmp(op, "neg")) x = x == 0 && !signbit(x) ? -0.0 : 0 - x;
    else if (!strcmp(op, "abs")) x = signbit(x) ? 0 - x : x;
    else return 0;
    *r = bits_of_double(x);
    return 1;
}

/* ---- conversions ----------------------------------------------------------------------------------------------- */

/* A format of small numbers: what each non-negative code stands for, in ascending order. */
typedef struct small_numbers {
    int mantissa, bias, codes, sign;    /* codes: the finite ones */
    uint32_t nan, infinity;
} small_numbers;

static inline const small_numbers *numbers_of(const char *type) {
    static const small_numbers half = { 10, 15, 0x7C00, 0x8000, 0x7FFF, 0x7C00 };
    static const small_numbers bfloat = { 7, 127, 0x7F80, 0x8000, 0x7FFF, 0x7F80 };
    static const small_numbers e4m3 = { 3, 7, 0x7F, 0x80, 0x7F, 0 }, e5m2 = { 2, 15, 0x7C, 0x80, 0x7F, 0x7C };
    if (!strncmp(type, "f16", 3)) return &half;
    if (!strncmp(type, "bf16", 4)) return &bfloat;
    if (!strncmp(type, "e4m3", 4)) return &e4m3;
    return !strncmp(type, "e5m2", 4) ? &e5m2 : NULL;
}

static inline double number_at(const small_numbers *s, int code) {
    int field = code >> s->mantissa, fraction = code & ((1 << s->mantissa) - 1);
    if (!field) return ldexp(fraction, 1 - s->bias - s->mantissa);
    return ldexp(fraction + (1 << s->mantissa), field - s->bias - s->mantissa);
}

static inline float decode(const small_numbers *s, uint32_t code) {
    int magnitude = (int)(code & (uint32_t)(s->sign - 1));
    float v = magnitude < s->codes ? (float)number_at(s, magnitude) : NAN;
    if (s->infinity && magnitude == (int)s->infinity) v = INFINITY;
    return code & (uint32_t)s->sign ? -v : v;
}

/* The nearest of all numbers, ties to the even code. finite: the largest number instead of infinity. cut: not above. */
static inline uint32_t encode(const small_numbers *s, float f, int finite, int cut) {
    uint32_t sign = signbit(f) ? (uint32_t)s->sign : 0;
    double v = fabs((double)f);
    int low = 0, high = s->codes;       /* number_at(low) <= v < number_at(high), the last one beyond all */
    if (f != f) return s->nan;
    if (cut && !finite && v == INFINITY) return sign | s->infinity;
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (number_at(s, middle) <= v) low = middle;
        else high = middle;
    }
    if (!cut) {
        double below = v - number_at(s, low), above = number_at(s, high) - v;
        if (above < below || (above == below && (high & 1) == 0)) low = high;
    }
    if (low >= s->codes && finite) low = s->codes - 1;
    return sign | (uint32_t)low;
}

static inline uint64_t integer_of(double v, const char *type) {
    int bits = type_bits(type);
    wide least = type[0] == 's' ? -((wide)1 << (bits - 1)) : 0;
    wide most = ((wide)1 << (type[0] == 's' ? bits - 1 : bits)) - 1;
    if (v != v) return bits == 64 ? (uint64_t)1 << 63 : 0;
    if (v <= (double)least) return low_bits(least, bits);
    return v >= (double)most ? low_bits(most, bits) : low_bits((wide)v, bits);
}

static inline double rounded(const form_name *f, double v) {
    if (form_has(f, "rmi")) return floor(v);
    if (form_has(f, "rpi")) return ceil(v);
    if (form_has(f, "rzi")) return v < 0 ? ceil(v) : floor(v);
    if (!form_has(f, "rni") || fabs(v) > 4503599627370496.0 || v == 0) return v;
    return copysign(fabs(v) + 4503599627370496.0 - 4503599627370496.0, v);
}

static inline int is_integer(const char *type) {
    return type[0] == 's' || type[0] == 'u';
}

static inline uint64_t expect_pair(const form_name *f, const uint64_t *a) {
    const char *to = form_type(f, 1), *from = form_type(f, 0);
    const small_numbers *t = numbers_of(to), *s = numbers_of(from);
    int finite = form_has(f, "satfinite"), shift = type_bits("u16"), half = to[0] == 'e' ? 8 : 16;
    if (!s) return (uint64_t)encode(t, float_of(a[0]), finite, 0) << half | encode(t, float_of(a[1]), finite, 0);
    if (from[0] == 'e') shift = 8;
    return (uint64_t)encode(t, decode(s, (uint32_t)(a[0] >> shift)), finite, 0) << half |
           encode(t, decode(s, (uint32_t)a[0]), finite, 0);
}

/* width: of the destination in bytes; narrow integers are extended to it. */
static inline int expect_conversion(const form_name *f, const uint64_t *a, int width, uint64_t *r) {
    const char *to = form_type(f, 1), *from = form_type(f, 0);
    const small_numbers *t = numbers_of(to), *s = numbers_of(from);
    size_t n = strlen(to);
    if (n > 2 && !strcmp(to + n - 2, "x2")) {
        *r = expect_pair(f, a);
    } else if (t) {
        *r = encode(t, float_of(a[0]), 0, form_has(f, "rz"));
    } else if (s) {
        *r = bits_of(decode(s, (uint32_t)a[0]));
    } else if (is_integer(to) && is_integer(from)) {
        wide v = as_integer(a[0], from);
        if (form_has(f, "sat")) v = as_integer(integer_of((double)v, to), to);
        *r = low_bits(as_integer((uint64_t)v, to), 8 * width);
    } else if (is_integer(to) && !strcmp(from, "f64")) {
        double v = double_of(a[0]);
        *r = v == v ? integer_of(rounded(f, v), to) : (uint64_t)1 << (type_bits(to) - 1);
    } else if (is_integer(to)) {
        *r = low_bits(as_integer(integer_of(rounded(f, (double)float_of(a[0])), to), to), 8 * width);
    } else if (is_integer(from)) {
        wide v = as_integer(a[0], from);
        *r = !strcmp(to, "f64") ? bits_of_double((double)v) : bits_of((float)v);
    } else if (!strcmp(to, "f64")) {
        *r = bits_of_double((double)float_of(a[0]));
    } else if (!strcmp(from, "f64")) {
        *r = bits_of((float)double_of(a[0]));
    } else if (form_has(f, "sat")) {
        *r = bits_of((float)limited((double)float_of(a[0])));
    } else {
        *r = bits_of((float)rounded(f, (double)float_of(a[0])));
    }
    return 1;
}

static inline int expect_select(const form_name *f, const uint64_t *a, uint64_t *r) {
    int first = form_type(f, 0)[0] == 'f' ? float_of(a[2]) >= 0 : (int32_t)a[2] >= 0;
    *r = low_bits((wide)(first ? a[0] : a[1]), type_bits(form_type(f, 1)));
    return 1;
}

/* 1: *r is what the form gives for the operands a; 0: this file does not know the form. */
static inline int expect_form(const char *name, const char *operands, const uint64_t *a, uint32_t immediate,
                              uint64_t *r) {
    form_name f;
    const char *op, *type;
    split_form(name, &f);
    op = f.part[0];
    type = form_type(&f, 0);
    if (!strcmp(op, "cvt")) return expect_conversion(&f, a, operands[0] == 'd' ? 8 : operands[0] == 'h' ? 2 : 4, r);
    if (!strcmp(op, "slct")) return expect_select(&f, a, r);
    if (!strcmp(type, "f32") && strcmp(op, "mov") != 0 && strcmp(op, "selp") != 0) {
        return expect_float(&f, a, (int)strlen(operands) - 1, r);
    }
    if (!strcmp(type, "f64") && strcmp(op, "mov") != 0 && strcmp(op, "selp") != 0) return expect_double(&f, a, r);
    return expect_integer(&f, a, immediate, r);
}

#endif
