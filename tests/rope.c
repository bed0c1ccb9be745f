/* rope.c - attn_rope against a reference in double with libm: types, pairings, partial rotation, strides, positions up
   to 2^20 and below zero, and every argument broken once. Inputs are drawn as bit patterns, so nothing here encodes. */
#include "../attn.h"
#include "test.h"

#include <math.h>

enum { MARK = 0xA5, MOST_ROWS = 12 };

/* One call: the input, a copy of its bytes from before, and the shape in words for messages. */
typedef struct rotation {
    attn_rope_input in;
    unsigned char *bytes, *before;  /* MARK everywhere but in the elements of x */
    size_t size;
    int64_t row, head;              /* strides, resolved */
    int32_t positions[MOST_ROWS];
    float inv_freq[128];
} rotation;

/* ---- numbers ---------------------------------------------------------------------------------------------------- */

static size_t width_of(int type) {
    return type == ATTN_F32 ? 4 : 2;
}

static int mantissa_of(int type) {
    return type == ATTN_F32 ? 23 : type == ATTN_F16 ? 10 : 7;
}

/* Exponent of the smallest normal number. */
static int lowest_of(int type) {
    return type == ATTN_F16 ? -14 : -126;
}

static double decode(int type, const unsigned char *at) {
    uint16_t half;
    uint32_t word;
    float x;
    memcpy(&half, at, sizeof half);
    if (type == ATTN_F16) {
        int exponent = half >> 10 & 31, mantissa = half & 1023;
        double a = exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
        if (exponent == 31) a = mantissa ? (double)NAN : HUGE_VAL;
        return half & 0x8000 ? -a : a;
    }
    word = (uint32_t)half << 16;
    if (type == ATTN_F32) memcpy(&word, at, sizeof word);
    memcpy(&x, &word, sizeof x);
    return (double)x;
}

/* A finite number with magnitude 2^-4 .. 4 and every mantissa bit random. */
static void draw(int type, test_rng *r, unsigned char *at) {
    uint64_t bits = test_next(r);
    uint32_t exponent = (uint32_t)(bits >> 40) % 6;
    uint32_t sign = (uint32_t)(bits >> 60) & 1;
    if (type == ATTN_F32) {
        uint32_t word = sign << 31 | (123 + exponent) << 23 | (uint32_t)(bits & 0x7FFFFF);
        memcpy(at, &word, sizeof word);
    } else {
        int m = mantissa_of(type);
        uint32_t low = type == ATTN_F16 ? 11 : 123;
        uint16_t half = (uint16_t)(sign << 15 | (low + exponent) << m | (uint32_t)(bits & ((1u << m) - 1)));
        memcpy(at, &half, sizeof half);
    }
}

/* Half the distance of neighbours at |x|: how far one rounding may move a result. */
static double half_ulp(int type, double x) {
    int exponent;
    frexp(x, &exponent);
    if (exponent - 1 < lowest_of(type)) exponent = lowest_of(type) + 1;
    return ldexp(1.0, exponent - 2 - mantissa_of(type));
}

/* ---- a call ----------------------------------------------------------------------------------------------------- */

static unsigned char *element(const rotation *t, unsigned char *bytes, int64_t row, int head, int d) {
    int64_t at = row * t->row + head * t->head + d;
    return bytes + 64 + (size_t)at * width_of((int)t->in.type);
}

static void open_rotation(rotation *t, int type, int rows, int heads, int head_dim, int64_t head_gap, int64_t row_gap,
                          uint64_t seed) {
    test_rng r;
    int i, h, d;
    r.state = seed;
    memset(t, 0, sizeof *t);
    t->in.type = (attn_type)type;
    t->in.rows = rows;
    t->in.heads = heads;
    t->in.head_dim = head_dim;
    if (head_gap) t->in.x_head = head_dim + head_gap;
    t->head = head_dim + head_gap;
    t->row = heads * t->head + row_gap;
    if (head_gap || row_gap) t->in.x_row = t->row;
    t->size = 128 + (size_t)(t->row * rows) * width_of(type);
    t->bytes = (unsigned char *)malloc(t->size);
    t->before = (unsigned char *)malloc(t->size);
    memset(t->bytes, MARK, t->size);
    for (i = 0; i < rows; i++) {
        t->positions[i] = i;
        for (h = 0; h < heads; h++) {
            for (d = 0; d < head_dim; d++) draw(type, &r, element(t, t->bytes, i, h, d));
        }
    }
    memcpy(t->before, t->bytes, t->size);
    t->in.x = t->bytes + 64;
    t->in.positions = t->positions;
}

static void close_rotation(rotation *t) {
    free(t->bytes);
    free(t->before);
}

static void turn(rotation *t) {
    attn_error error;
    int status = attn_rope(&t->in, &error);
    CHECK(status == ATTN_OK, "status %d: %s", status, status ? error.text : "");
}

/* ---- the reference ---------------------------------------------------------------------------------------------- */

/* Angle of pair i at a position, from a frequency in f32 as model code has them, and by how much rounding in double may
   turn it: a few ulps of the product and of the angle's reduction. */
static double angle(const rotation *t, int32_t position, int i, double *slack) {
    int rotary = t->in.rotary_dim ? t->in.rotary_dim : t->in.head_dim;
    double base = t->in.base != 0 ? (double)t->in.base : 10000.0;
    double frequency = t->in.inv_freq ? (double)t->in.inv_freq[i] : (double)(float)pow(base, -2.0 * i / rotary);
    double x = (double)position * frequency;
    *slack = 1e-15 + fabs(x) * 1e-15;
    return x;
}

static void check_element(rotation *t, int64_t row, int head, int d, double want, double slack) {
    int type = (int)t->in.type;
    double got = decode(type, element(t, t->bytes, row, head, d));
    double room = half_ulp(type, want) * (1 + 1e-6) + slack;
    if (type != ATTN_F32) room += half_ulp(ATTN_F32, want); /* rounded to f32 first */
    CHECK(fabs(got - want) <= room, "type %d, row %d at %d, head %d, element %d: %.9g, not %.9g (%.3g > %.3g)", type,
          (int)row, t->positions[row], head, d, got, want, fabs(got - want), room);
}

static void check_head(rotation *t, int64_t row, int head) {
    int rotary = t->in.rotary_dim ? t->in.rotary_dim : t->in.head_dim;
    double scale = t->in.magnitude != 0 ? (double)t->in.magnitude : 1.0;
    int i;
    for (i = 0; i < rotary / 2; i++) {
        int first = t->in.interleaved ? 2 * i : i;
        int second = t->in.interleaved ? 2 * i + 1 : i + rotary / 2;
        double slack, x = angle(t, t->positions[row], i, &slack);
        double a = decode((int)t->in.type, element(t, t->before, row, head, first));
        double b = decode((int)t->in.type, element(t, t->before, row, head, second));
        slack *= (fabs(a) + fabs(b)) * fabs(scale);
        check_element(t, row, head, first, (a * cos(x) - b * sin(x)) * scale, slack);
        check_element(t, row, head, second, (a * sin(x) + b * cos(x)) * scale, slack);
    }
}

/* Everything that is not a rotated element still holds its bytes. */
static void check_rest(rotation *t) {
    int rotary = t->in.rotary_dim ? t->in.rotary_dim : t->in.head_dim;
    unsigned char *after = (unsigned char *)malloc(t->size);
    int64_t row;
    int h;
    memcpy(after, t->bytes, t->size);
    for (row = 0; row < t->in.rows; row++) {
        for (h = 0; h < t->in.heads; h++) {
            memcpy(element(t, after, row, h, 0), element(t, t->before, row, h, 0),
                   (size_t)rotary * width_of((int)t->in.type));
        }
    }
    CHECK(!memcmp(after, t->before, t->size), "an element that does not turn has changed");
    free(after);
}

static void check_rotation(rotation *t) {
    int64_t row;
    int h;
    turn(t);
    for (row = 0; row < t->in.rows; row++) {
        for (h = 0; h < t->in.heads; h++) check_head(t, row, h);
    }
    check_rest(t);
    if (t->in.rows > 1) CHECK(memcmp(t->bytes, t->before, t->size), "nothing turned");
}

/* ---- tests: the numbers ----------------------------------------------------------------------------------------- */

static const int32_t far_positions[MOST_ROWS] = { 0, 1, 2, 1000, 4095, 131071, 1048576, -1, -7, -1000, -131071, 77 };

static void run_shape(int type, int interleaved, int head_dim, int rotary_dim, uint64_t seed) {
    rotation t;
    open_rotation(&t, type, MOST_ROWS, 3, head_dim, 0, 0, seed);
    memcpy(t.positions, far_positions, sizeof far_positions);
    t.in.interleaved = interleaved;
    t.in.rotary_dim = rotary_dim;
    check_rotation(&t);
    close_rotation(&t);
}

static void test_types(void) {
    int type, interleaved, round;
    for (type = ATTN_F32; type <= ATTN_BF16; type++) {
        for (interleaved = 0; interleaved < 2; interleaved++) {
            for (round = 0; round < 20; round++) {
                run_shape(type, interleaved, 128, 0, 11 + (uint64_t)round);
                run_shape(type, interleaved, 64, 64, 100 + (uint64_t)round);
            }
        }
    }
}

static void test_partial(void) {
    static const int rotary[] = { 2, 4, 16, 30, 94, 96 };
    int type, interleaved;
    size_t i;
    for (type = ATTN_F32; type <= ATTN_BF16; type++) {
        for (interleaved = 0; interleaved < 2; interleaved++) {
            for (i = 0; i < sizeof rotary / sizeof rotary[0]; i++) run_shape(type, interleaved, 96, rotary[i], 5 + i);
            run_shape(type, interleaved, 7, 6, 21);
            run_shape(type, interleaved, 2, 0, 22);
            run_shape(type, interleaved, 576, 64, 23);
        }
    }
}

/* Strides with gaps: the gaps keep their marks, the bits are those of the packed call. */
static void run_strides(int type, int interleaved) {
    rotation packed, gaps;
    int64_t row;
    int h;
    open_rotation(&packed, type, 9, 4, 24, 0, 0, 31);
    open_rotation(&gaps, type, 9, 4, 24, 5, 13, 31);
    packed.in.interleaved = interleaved;
    gaps.in.interleaved = interleaved;
    memcpy(packed.positions, far_positions, sizeof far_positions);
    memcpy(gaps.positions, far_positions, sizeof far_positions);
    check_rotation(&packed);
    check_rotation(&gaps);
    for (row = 0; row < 9; row++) {
        for (h = 0; h < 4; h++) {
            CHECK(!memcmp(element(&packed, packed.bytes, row, h, 0), element(&gaps, gaps.bytes, row, h, 0),
                          24 * width_of(type)),
                  "type %d, row %d, head %d: strides change bits", type, (int)row, h);
        }
    }
    close_rotation(&packed);
    close_rotation(&gaps);
}

/* Heads outside rows: [head][row][head_dim], as head-major buffers have it. */
static void test_head_major(void) {
    rotation t;
    open_rotation(&t, ATTN_F32, 6, 6, 16, 0, 0, 41);
    t.head = t.row;
    t.row = 16;
    t.in.x_row = t.row;
    t.in.x_head = t.head;
    t.positions[5] = 900;
    check_rotation(&t);
    close_rotation(&t);
}

static void test_strides(void) {
    int type;
    for (type = ATTN_F32; type <= ATTN_BF16; type++) {
        run_strides(type, 0);
        run_strides(type, 1);
    }
    test_head_major();
}

static void test_base(void) {
    static const float bases[] = { 0, 10000.0f, 500000.0f, 1000000.0f, 2.5f, 1.0f, 3e38f };
    rotation t[2];
    size_t i;
    for (i = 0; i < sizeof bases / sizeof bases[0]; i++) {
        open_rotation(&t[0], ATTN_F32, MOST_ROWS, 2, 64, 0, 0, 51);
        memcpy(t[0].positions, far_positions, sizeof far_positions);
        t[0].in.base = bases[i];
        check_rotation(&t[0]);
        close_rotation(&t[0]);
    }
    for (i = 0; i < 2; i++) {
        open_rotation(&t[i], ATTN_BF16, MOST_ROWS, 2, 64, 0, 0, 52);
        t[i].in.base = i ? 10000.0f : 0;
        t[i].in.magnitude = i ? 1.0f : 0;
        t[i].in.rotary_dim = i ? 64 : 0;
        turn(&t[i]);
    }
    CHECK(!memcmp(t[0].bytes, t[1].bytes, t[0].size), "the defaults are base 10000, magnitude 1, all of head_dim");
    close_rotation(&t[0]);
    close_rotation(&t[1]);
}

/* Frequencies of a scaled model; base is then not looked at. */
static void test_inv_freq(void) {
    int interleaved, i, type;
    for (type = ATTN_F32; type <= ATTN_BF16; type++) {
        for (interleaved = 0; interleaved < 2; interleaved++) {
            rotation t;
            open_rotation(&t, type, MOST_ROWS, 2, 40, 3, 0, 61);
            memcpy(t.positions, far_positions, sizeof far_positions);
            for (i = 0; i < 16; i++) t.inv_freq[i] = (float)(1.0 / (1 + i * i * 0.37)) * (i == 5 ? -1.0f : 1.0f);
            t.inv_freq[7] = 0;
            t.in.inv_freq = t.inv_freq;
            t.in.rotary_dim = 32;
            t.in.base = 3.0f;
            t.in.interleaved = interleaved;
            check_rotation(&t);
            close_rotation(&t);
        }
    }
}

static void test_magnitude(void) {
    static const float magnitudes[] = { 1.2079441f, 0.5f, -1.0f, 3.0f };
    int type;
    size_t i;
    for (type = ATTN_F32; type <= ATTN_BF16; type++) {
        for (i = 0; i < sizeof magnitudes / sizeof magnitudes[0]; i++) {
            rotation t;
            open_rotation(&t, type, MOST_ROWS, 2, 48, 0, 0, 71 + i);
            memcpy(t.positions, far_positions, sizeof far_positions);
            t.in.magnitude = magnitudes[i];
            t.in.rotary_dim = 32;
            check_rotation(&t);
            close_rotation(&t);
        }
    }
}

/* ---- tests: properties ------------------------------------------------------------------------------------------ */

/* Position 0 changes no bit. */
static void test_zero(void) {
    int type, interleaved;
    for (type = ATTN_F32; type <= ATTN_BF16; type++) {
        for (interleaved = 0; interleaved < 2; interleaved++) {
            rotation t;
            open_rotation(&t, type, 4, 3, 32, 0, 0, 81);
            memset(t.positions, 0, sizeof t.positions);
            t.in.interleaved = interleaved;
            turn(&t);
            CHECK(!memcmp(t.bytes, t.before, t.size), "type %d: position 0 changes bits", type);
            close_rotation(&t);
        }
    }
}

/* Position p, then -p: back where it was, but for two roundings. */
static void test_backwards(void) {
    rotation t;
    int64_t row;
    int i, d;
    open_rotation(&t, ATTN_F32, MOST_ROWS, 1, 64, 0, 0, 91);
    memcpy(t.positions, far_positions, sizeof far_positions);
    turn(&t);
    for (i = 0; i < MOST_ROWS; i++) t.positions[i] = -t.positions[i];
    turn(&t);
    for (row = 0; row < MOST_ROWS; row++) {
        for (d = 0; d < 64; d++) {
            double was = decode(ATTN_F32, element(&t, t.before, row, 0, d));
            double got = decode(ATTN_F32, element(&t, t.bytes, row, 0, d));
            CHECK(fabs(was - got) <= 4 * half_ulp(ATTN_F32, 6), "row %d, element %d: %g, not %g", (int)row, d, got,
                  was);
        }
    }
    close_rotation(&t);
}

/* A row alone has the bits it has among others. */
static void test_rows_alone(void) {
    int type;
    for (type = ATTN_F32; type <= ATTN_BF16; type++) {
        rotation all, one;
        int i;
        open_rotation(&all, type, MOST_ROWS, 3, 32, 0, 0, 95);
        open_rotation(&one, type, MOST_ROWS, 3, 32, 0, 0, 95);
        memcpy(all.positions, far_positions, sizeof far_positions);
        turn(&all);
        one.in.rows = 1;
        for (i = MOST_ROWS - 1; i >= 0; i--) {
            one.in.x = element(&one, one.bytes, i, 0, 0);
            one.in.positions = &far_positions[i];
            turn(&one);
        }
        CHECK(!memcmp(all.bytes, one.bytes, all.size), "type %d: a row depends on its neighbours", type);
        close_rotation(&all);
        close_rotation(&one);
    }
}

static double dot_of(const rotation *q, const rotation *k, int row) {
    double sum = 0;
    int d;
    for (d = 0; d < q->in.head_dim; d++) {
        sum += decode(ATTN_F32, element(q, q->bytes, row, 0, d)) * decode(ATTN_F32, element(k, k->bytes, row, 0, d));
    }
    return sum;
}

/* The point of it all: q.k depends on the distance only. Row i has q at 37 + shift and k at shift. */
static void test_relative(void) {
    static const int32_t shifts[] = { 0, 1, -37, 500, 99999, 1000000 };
    int interleaved, i, j;
    for (interleaved = 0; interleaved < 2; interleaved++) {
        double dots[6], moved = 0, reach = 0;
        for (i = 0; i < 6; i++) {
            rotation q, k;
            open_rotation(&q, ATTN_F32, 1, 1, 128, 0, 0, 101);
            open_rotation(&k, ATTN_F32, 1, 1, 128, 0, 0, 102);
            q.positions[0] = shifts[i] + 37;
            k.positions[0] = shifts[i];
            q.in.interleaved = interleaved;
            k.in.interleaved = interleaved;
            moved = dot_of(&q, &k, 0);
            turn(&q);
            turn(&k);
            dots[i] = dot_of(&q, &k, 0);
            /* each element is off by half an ulp of at most sqrt(2) * 4: 2^-22 * |the other factor| */
            for (reach = 0, j = 0; j < 128; j++) {
                reach += fabs(decode(ATTN_F32, element(&q, q.bytes, 0, 0, j))) * ldexp(1, -22);
                reach += fabs(decode(ATTN_F32, element(&k, k.bytes, 0, 0, j))) * ldexp(1, -22);
            }
            close_rotation(&q);
            close_rotation(&k);
            CHECK(fabs(dots[i] - dots[0]) <= 2 * reach, "shift %d: %.9g, not %.9g", shifts[i], dots[i], dots[0]);
        }
        CHECK(fabs(moved - dots[0]) > 100 * reach, "the distance does not show: %g", moved);
    }
}

/* An inf or NaN spoils its own pair only. */
static void test_pairs_apart(void) {
    int interleaved, d;
    for (interleaved = 0; interleaved < 2; interleaved++) {
        rotation t, clean;
        uint32_t inf = 0x7F800000, nan = 0x7FC00000;
        open_rotation(&t, ATTN_F32, 1, 2, 16, 0, 0, 111);
        open_rotation(&clean, ATTN_F32, 1, 2, 16, 0, 0, 111);
        t.in.interleaved = interleaved;
        clean.in.interleaved = interleaved;
        t.positions[0] = 5;
        clean.positions[0] = 5;
        memcpy(element(&t, t.bytes, 0, 0, 4), &inf, sizeof inf);
        memcpy(element(&t, t.bytes, 0, 1, 1), &nan, sizeof nan);
        turn(&t);
        turn(&clean);
        for (d = 0; d < 16; d++) {
            int of_inf = interleaved ? d / 2 == 2 : d % 8 == 4, of_nan = interleaved ? d / 2 == 0 : d % 8 == 1;
            double x = decode(ATTN_F32, element(&t, t.bytes, 0, 0, d));
            double y = decode(ATTN_F32, element(&t, t.bytes, 0, 1, d));
            CHECK(of_inf == (x - x != 0), "element %d of head 0: %g", d, x);
            CHECK(of_nan == (y != y), "element %d of head 1: %g", d, y);
            CHECK(of_inf || x == decode(ATTN_F32, element(&clean, clean.bytes, 0, 0, d)), "element %d of head 0", d);
            CHECK(of_nan || y == decode(ATTN_F32, element(&clean, clean.bytes, 0, 1, d)), "element %d of head 1", d);
        }
        close_rotation(&t);
        close_rotation(&clean);
    }
}

static void test_no_rows(void) {
    rotation t;
    attn_error error;
    open_rotation(&t, ATTN_F32, 3, 2, 16, 0, 0, 121);
    t.in.rows = 0;
    CHECK(attn_rope(&t.in, &error) == ATTN_OK, "rows = 0");
    CHECK(attn_rope(&t.in, NULL) == ATTN_OK, "rows = 0 without an attn_error");
    CHECK(!memcmp(t.bytes, t.before, t.size), "rows = 0 changes bits");
    close_rotation(&t);
}

/* ---- errors ----------------------------------------------------------------------------------------------------- */

static void refuse(rotation *t, const attn_rope_input *in, const char *text, const char *more) {
    attn_error error;
    int status;
    memset(&error, 0x7f, sizeof error);
    status = attn_rope(in, &error);
    CHECK(status == ATTN_E_ARGUMENT, "\"%s\": status %d", text, status);
    if (status != ATTN_OK) {
        CHECK(memchr(error.text, 0, sizeof error.text), "\"%s\": the text is not terminated", text);
        CHECK(strstr(error.text, text), "\"%s\" lacks \"%s\"", error.text, text);
        CHECK(strstr(error.text, more), "\"%s\" lacks \"%s\"", error.text, more);
        CHECK(error.request == -1 && error.slot == -1, "\"%s\": request %d, slot %d", text, error.request, error.slot);
    }
    CHECK(attn_rope(in, NULL) == status, "\"%s\" without an attn_error", text);
    CHECK(!memcmp(t->bytes, t->before, t->size), "\"%s\": x changed", text);
}

/* `in` is a copy of the valid input with `change` made. */
#define REFUSE(change, text, more)                                                                                    \
    do {                                                                                                              \
        in = t.in;                                                                                                    \
        change;                                                                                                       \
        refuse(&t, &in, text, more);                                                                                  \
    } while (0)

static void test_errors(void) {
    static const float bad[] = { (float)NAN, (float)INFINITY, -(float)INFINITY, 65537.0f, -1e30f };
    rotation t;
    attn_rope_input in;
    int i;
    open_rotation(&t, ATTN_F32, 4, 2, 16, 0, 0, 131);
    refuse(&t, NULL, "input", "NULL");
    REFUSE(in.x = NULL, "input.x ", "NULL");
    REFUSE(in.positions = NULL, "input.positions ", "NULL");
    REFUSE(in.type = ATTN_E4M3, "input.type = 3", "");
    REFUSE(in.type = ATTN_INT8, "input.type = 5", "");
    REFUSE(in.type = (attn_type)-1, "input.type = ", "");
    REFUSE(in.type = (attn_type)99, "input.type = 99", "");
    REFUSE(in.rows = -1, "input.rows", "negative");
    REFUSE(in.heads = 0, "input.heads = 0", "");
    REFUSE(in.heads = -3, "input.heads = -3", "");
    REFUSE(in.head_dim = 0, "input.head_dim = 0", "");
    REFUSE(in.head_dim = -16, "input.head_dim = -16", "");
    REFUSE(in.rotary_dim = 7, "input.rotary_dim = 7", "even");
    REFUSE(in.rotary_dim = -2, "input.rotary_dim = -2", "");
    REFUSE(in.rotary_dim = 18, "input.rotary_dim = 18", "head_dim");
    REFUSE(in.head_dim = 15, "input.", "= 15"); /* rotary_dim = 0 means all of it, which is odd */
    REFUSE(in.x_row = -1, "x_row = -1", "2^40");
    REFUSE(in.x_head = -2, "x_head = -2", "2^40");
    REFUSE(in.x_row = INT64_MAX / 4, "x_row = ", "2^40");
    REFUSE(in.heads = 65537, "heads = 65537", "65536");
    REFUSE(in.x_row = 1, "x_row = 1", "overlap");
    REFUSE(in.base = -1.0f, "input.base", "");
    REFUSE(in.base = (float)NAN, "input.base", "");
    REFUSE(in.base = (float)INFINITY, "input.base", "");
    REFUSE(in.base = 0.5f, "input.base", "");
    REFUSE(in.magnitude = (float)NAN, "magnitude", "finite");
    REFUSE(in.magnitude = (float)INFINITY, "magnitude", "finite");
    REFUSE(in.x = t.bytes + 65, "input.x ", "aligned");
    REFUSE(in.x = t.bytes + 66, "input.x ", "aligned");
    REFUSE(in.positions = (const int32_t *)(const void *)(t.bytes + 1), "input.positions ", "aligned");
    REFUSE(in.inv_freq = (const float *)(const void *)(t.bytes + 2), "input.inv_freq ", "aligned");
    for (i = 0; i < 8; i++) t.inv_freq[i] = i % 2 ? 65536.0f : -65536.0f;
    t.in.inv_freq = t.inv_freq;
    for (i = 0; i < 5; i++) {
        t.inv_freq[5] = bad[i];
        REFUSE((void)0, "inv_freq[5]", "65536");
    }
    t.inv_freq[5] = 0;
    turn(&t);
    CHECK(memcmp(t.bytes, t.before, t.size), "the largest frequencies");
    close_rotation(&t);
    open_rotation(&t, ATTN_F16, 4, 2, 16, 0, 0, 132);
    REFUSE(in.x = t.bytes + 65, "input.x ", "aligned");
    in = t.in;
    CHECK(attn_rope(&in, NULL) == ATTN_OK, "the unbroken input");
    close_rotation(&t);
}

int main(int argc, char **argv) {
    if (argc > 1) test.only = argv[1];
    test_run("rope: types and pairings, positions to 2^20 and below zero", test_types);
    test_run("rope: rotary_dim below head_dim leaves the rest", test_partial);
    test_run("rope: strides, gaps keep their bytes", test_strides);
    test_run("rope: bases and defaults", test_base);
    test_run("rope: given frequencies", test_inv_freq);
    test_run("rope: magnitude", test_magnitude);
    test_run("rope: position 0 is exact", test_zero);
    test_run("rope: negative positions turn back", test_backwards);
    test_run("rope: a row's bits are its own", test_rows_alone);
    test_run("rope: q.k depends on the distance only", test_relative);
    test_run("rope: NaN and inf stay in their pair", test_pairs_apart);
    test_run("rope: no rows", test_no_rows);
    test_run("rope: errors", test_errors);
    return test_close("rope");
}
