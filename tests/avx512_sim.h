/* avx512_sim.h - AVX-512 in AVX2 and C, in place of the intrinsics that attn.h uses, as the manual describes them: see
   simulate.sh. Lanes are added and multiplied by the processor, so the bits are those of AVX-512. */
#ifndef AVX512_SIM_H
#define AVX512_SIM_H
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define SIM static inline __attribute__((target("avx2,fma,f16c"), unused))
#define EACH(n) for (int i = 0; i < (n); i++)

typedef union sim_512 {
    __m512 floats;
    __m512i ints;
    __m256 half[2];
    __m256i ints_half[2];
    __m128i quarter[4];
    float f[16];
    uint32_t u[16];
    uint16_t h[32];
} sim_512;

SIM sim_512 sim_of(__m512 a) {
    return (sim_512){ .floats = a };
}

SIM sim_512 sim_ints(__m512i a) {
    return (sim_512){ .ints = a };
}

/* moves and constants */

SIM __m512 sim_loadu_ps(const void *at) {
    sim_512 r;
    EACH(2) r.half[i] = _mm256_loadu_ps((const float *)at + 8 * i);
    return r.floats;
}

SIM void sim_storeu_ps(void *at, __m512 a) {
    EACH(2) _mm256_storeu_ps((float *)at + 8 * i, sim_of(a).half[i]);
}

SIM __m512 sim_maskz_loadu_ps(__mmask16 mask, const void *at) {
    sim_512 r = { .f = { 0 } };
    EACH(16) if (mask >> i & 1) r.f[i] = ((const float *)at)[i];
    return r.floats;
}

SIM void sim_mask_storeu_ps(void *at, __mmask16 mask, __m512 a) {
    EACH(16) if (mask >> i & 1) ((float *)at)[i] = sim_of(a).f[i];
}

SIM __m512i sim_loadu_si512(const void *at) {
    return sim_of(sim_loadu_ps(at)).ints;
}

SIM void sim_storeu_si512(void *at, __m512i a) {
    sim_storeu_ps(at, sim_ints(a).floats);
}

SIM __m512 sim_set1_ps(float x) {
    __m256 half = _mm256_set1_ps(x);
    return (sim_512){ .half = { half, half } }.floats;
}

SIM __m512i sim_set1_epi32(int32_t x) {
    __m256i half = _mm256_set1_epi32(x);
    return (sim_512){ .ints_half = { half, half } }.ints;
}

SIM __m512i sim_set1_epi16(int16_t x) {
    __m256i half = _mm256_set1_epi16(x);
    return (sim_512){ .ints_half = { half, half } }.ints;
}

SIM __m512 sim_mask_mov_ps(__m512 a, __mmask16 mask, __m512 b) {
    sim_512 r = sim_of(a);
    EACH(16) if (mask >> i & 1) r.f[i] = sim_of(b).f[i];
    return r.floats;
}

SIM __m512i sim_mask_mov_epi16(__m512i a, __mmask32 mask, __m512i b) {
    sim_512 r = sim_ints(a);
    EACH(32) if (mask >> i & 1) r.h[i] = sim_ints(b).h[i];
    return r.ints;
}

SIM __m512 sim_shuffle_ps(__m512 a, __m512 b, int order) {
    sim_512 r;
    EACH(16) r.f[i] = (i & 2 ? sim_of(b) : sim_of(a)).f[(i & ~3) + (order >> 2 * (i & 3) & 3)];
    return r.floats;
}

SIM __m512 sim_shuffle_f32x4(__m512 a, __m512 b, int order) {
    sim_512 r;
    EACH(4) r.quarter[i] = (i & 2 ? sim_of(b) : sim_of(a)).quarter[order >> 2 * i & 3];
    return r.floats;
}

/* arithmetic */

#define SIM_HALVES(name, type, part, call)                        \
    SIM type name(type a, type b) {                               \
        sim_512 x, y;                                             \
        memcpy(&x, &a, sizeof x);                                 \
        memcpy(&y, &b, sizeof y);                                 \
        EACH(2) x.part[i] = call(x.part[i], y.part[i]);           \
        memcpy(&a, &x, sizeof a);                                 \
        return a;                                                 \
    }
SIM_HALVES(sim_add_ps, __m512, half, _mm256_add_ps)
SIM_HALVES(sim_sub_ps, __m512, half, _mm256_sub_ps)
SIM_HALVES(sim_mul_ps, __m512, half, _mm256_mul_ps)
SIM_HALVES(sim_max_ps, __m512, half, _mm256_max_ps)
SIM_HALVES(sim_add_epi32, __m512i, ints_half, _mm256_add_epi32)
SIM_HALVES(sim_add_epi16, __m512i, ints_half, _mm256_add_epi16)
SIM_HALVES(sim_and_si512, __m512i, ints_half, _mm256_and_si256)
SIM_HALVES(sim_or_si512, __m512i, ints_half, _mm256_or_si256)

SIM __m512 sim_fmadd_ps(__m512 a, __m512 b, __m512 c) {
    sim_512 r;
    EACH(2) r.half[i] = _mm256_fmadd_ps(sim_of(a).half[i], sim_of(b).half[i], sim_of(c).half[i]);
    return r.floats;
}

SIM float sim_reduce_max_ps(__m512 a) {
    float most = sim_of(a).f[0];
    EACH(16) most = sim_of(a).f[i] > most ? sim_of(a).f[i] : most;
    return most;
}

/* x - its nearest integer; of infinities 0 */
SIM __m512 sim_reduce_ps(__m512 a, int control) {
    sim_512 r;
    (void)control;
    EACH(2) r.half[i] = _mm256_sub_ps(sim_of(a).half[i], _mm256_round_ps(sim_of(a).half[i], _MM_FROUND_TO_NEAREST_INT));
    EACH(16) if (isinf(sim_of(a).f[i])) r.f[i] = 0;
    return r.floats;
}

/* a * 2^floor(b) */
SIM __m512 sim_scalef_ps(__m512 a, __m512 b) {
    sim_512 r = sim_of(a);
    EACH(16) {
        float power = floorf(sim_of(b).f[i]);
        int n = power > 1000 ? 1000 : power < -1000 ? -1000 : (int)power;
        r.f[i] = isnan(power) ? power : scalbnf(r.f[i], n);
    }
    return r.floats;
}

#define SIM_SHIFT(name, call)                                     \
    SIM __m512i name(__m512i a, int n) {                          \
        sim_512 r = sim_ints(a);                                  \
        EACH(2) r.ints_half[i] = call(r.ints_half[i], n);         \
        return r.ints;                                            \
    }
SIM_SHIFT(sim_slli_epi32, _mm256_slli_epi32)
SIM_SHIFT(sim_srli_epi32, _mm256_srli_epi32)
SIM_SHIFT(sim_slli_epi16, _mm256_slli_epi16)

SIM __m512i sim_ternarylogic_epi32(__m512i a, __m512i b, __m512i c, int table) {
    __m512i r = { 0 };
    EACH(8) if (table >> i & 1) r |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
    return r;
}

/* VPDPBUSD: four products of a byte without and one with a sign are added to a lane. */
SIM __m512 sim_dot4(__m512 sum, __m512 a, __m512 b) {
    sim_512 r = sim_of(sum);
    EACH(64) {
        int32_t left = (uint8_t)(sim_of(a).u[i / 4] >> i % 4 * 8), right = (int8_t)(sim_of(b).u[i / 4] >> i % 4 * 8);
        r.u[i / 4] += (uint32_t)(left * right);
    }
    return r.floats;
}

/* comparisons */

SIM __mmask16 sim_cmpneq_ps_mask(__m512 a, __m512 b) {
    unsigned r = 0;
    EACH(16) r |= (unsigned)!(sim_of(a).f[i] == sim_of(b).f[i]) << i;
    return (__mmask16)r;
}

SIM __mmask32 sim_cmpeq_epi16_mask(__m512i a, __m512i b) {
    uint32_t r = 0;
    EACH(32) r |= (uint32_t)(sim_ints(a).h[i] == sim_ints(b).h[i]) << i;
    return r;
}

/* classes 0x81: NaN */
SIM __mmask16 sim_fpclass_ps_mask(__m512 a, int classes) {
    unsigned r = 0;
    (void)classes;
    EACH(16) r |= (unsigned)((sim_of(a).u[i] & 0x7fffffffu) > 0x7f800000u) << i;
    return (__mmask16)r;
}

/* conversions */

SIM __m512 sim_cvtepi32_ps(__m512i a) {
    sim_512 r;
    EACH(2) r.half[i] = _mm256_cvtepi32_ps(sim_ints(a).ints_half[i]);
    return r.floats;
}

SIM __m512 sim_cvtph_ps(__m256i a) {
    return (sim_512){ .half = { _mm256_cvtph_ps(_mm256_castsi256_si128(a)),
                                _mm256_cvtph_ps(_mm256_extracti128_si256(a, 1)) } }.floats;
}

SIM __m256i sim_cvtps_ph(__m512 a) {
    __m128i low = _mm256_cvtps_ph(sim_of(a).half[0], _MM_FROUND_TO_NEAREST_INT);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low),
                                   _mm256_cvtps_ph(sim_of(a).half[1], _MM_FROUND_TO_NEAREST_INT), 1);
}

SIM __m512i sim_cvtepu16_epi32(__m256i a) {
    return (sim_512){ .ints_half = { _mm256_cvtepu16_epi32(_mm256_castsi256_si128(a)),
                                     _mm256_cvtepu16_epi32(_mm256_extracti128_si256(a, 1)) } }.ints;
}

SIM __m512i sim_cvtepi8_epi32(__m128i a) {
    return (sim_512){ .ints_half = { _mm256_cvtepi8_epi32(a), _mm256_cvtepi8_epi32(_mm_srli_si128(a, 8)) } }.ints;
}

SIM __m512i sim_cvtepi8_epi16(__m256i a) {
    return (sim_512){ .ints_half = { _mm256_cvtepi8_epi16(_mm256_castsi256_si128(a)),
                                     _mm256_cvtepi8_epi16(_mm256_extracti128_si256(a, 1)) } }.ints;
}

SIM __m256i sim_cvtepi32_epi16(__m512i a) {
    sim_512 r;
    EACH(16) r.h[i] = (uint16_t)sim_ints(a).u[i];
    return r.ints_half[0];
}

#define _mm512_loadu_ps sim_loadu_ps
#define _mm512_storeu_ps sim_storeu_ps
#define _mm512_maskz_loadu_ps sim_maskz_loadu_ps
#define _mm512_mask_storeu_ps sim_mask_storeu_ps
#define _mm512_loadu_si512 sim_loadu_si512
#define _mm512_storeu_si512 sim_storeu_si512
#define _mm512_set1_ps sim_set1_ps
#define _mm512_set1_epi32 sim_set1_epi32
#define _mm512_set1_epi16 sim_set1_epi16
#define _mm512_setzero_ps() sim_set1_ps(0)
#define _mm512_undefined_ps() sim_set1_ps(0)
#define _mm512_setzero_si512() sim_set1_epi32(0)
#define _mm512_castps_si512(a) sim_of(a).ints
#define _mm512_castsi512_ps(a) sim_ints(a).floats
#define _mm512_castsi512_si256(a) sim_ints(a).ints_half[0]
#define _mm512_extracti64x4_epi64(a, i) sim_ints(a).ints_half[i]
#define _mm512_cvtss_f32(a) sim_of(a).f[0]
#define _mm512_mask_mov_ps sim_mask_mov_ps
#define _mm512_maskz_mov_ps(mask, a) sim_mask_mov_ps(sim_set1_ps(0), mask, a)
#define _mm512_mask_mov_epi16 sim_mask_mov_epi16
#define _mm512_maskz_mov_epi16(mask, a) sim_mask_mov_epi16(sim_set1_epi32(0), mask, a)
#define _mm512_shuffle_ps sim_shuffle_ps
#define _mm512_shuffle_f32x4 sim_shuffle_f32x4
#define _mm512_add_ps sim_add_ps
#define _mm512_sub_ps sim_sub_ps
#define _mm512_mul_ps sim_mul_ps
#define _mm512_max_ps sim_max_ps
#define _mm512_mask_max_ps(old, mask, a, b) sim_mask_mov_ps(old, mask, sim_max_ps(a, b))
#define _mm512_fmadd_ps sim_fmadd_ps
#define _mm512_mask3_fmadd_ps(a, b, c, mask) sim_mask_mov_ps(c, mask, sim_fmadd_ps(a, b, c))
#define _mm512_reduce_max_ps sim_reduce_max_ps
#define _mm512_reduce_ps sim_reduce_ps
#define _mm512_scalef_ps sim_scalef_ps
#define _mm512_add_epi32 sim_add_epi32
#define _mm512_add_epi16 sim_add_epi16
#define _mm512_and_si512 sim_and_si512
#define _mm512_mask_or_epi32(old, mask, a, b) \
    _mm512_castps_si512(sim_mask_mov_ps(sim_ints(old).floats, mask, sim_ints(sim_or_si512(a, b)).floats))
#define _mm512_slli_epi32 sim_slli_epi32
#define _mm512_srli_epi32 sim_srli_epi32
#define _mm512_slli_epi16 sim_slli_epi16
#define _mm512_ternarylogic_epi32 sim_ternarylogic_epi32
#define _mm512_cmpneq_ps_mask sim_cmpneq_ps_mask
#define _mm512_cmpeq_epi16_mask sim_cmpeq_epi16_mask
#define _mm512_fpclass_ps_mask sim_fpclass_ps_mask
#define _mm512_cvtepi32_ps sim_cvtepi32_ps
#define _mm512_cvtph_ps sim_cvtph_ps
#define _mm512_maskz_cvtps_ph(mask, a, rounding) sim_cvtps_ph(a)
#define _mm512_cvtepu16_epi32 sim_cvtepu16_epi32
#define _mm512_cvtepi8_epi32 sim_cvtepi8_epi32
#define _mm512_cvtepi8_epi16 sim_cvtepi8_epi16
#define _mm512_cvtepi32_epi16 sim_cvtepi32_epi16
#endif
