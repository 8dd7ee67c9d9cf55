/* Row-wise operations for AVX-512: norm, activation quantization, RoPE, SiLU, GELU, soft
 * cap, conversion. */
#ifndef LARIAT_VECTOR_AVX512_H
#define LARIAT_VECTOR_AVX512_H

#include <immintrin.h>

#include "layout.h"
#include "table.h"
#include "vector_scalar.h"

/* Lanes 0..n_left-1, all of them from 16 on */
ALWAYS_INLINE __mmask16 first_lanes_avx512(int64_t n_left) {
    return n_left >= 16 ? (__mmask16)0xffff : (__mmask16)((1u << n_left) - 1);
}

/* exp with a relative error below 2e-7: x = n ln 2 + f, |f| <= ln 2 / 2, and a polynomial in f.
 * Below -87 the result is that of -87, which no sum of a softmax or sigmoid can see. NaN stays NaN:
 * min and max return their second operand then. */
ALWAYS_INLINE __m512 exp_avx512(__m512 x) {
    x = _mm512_min_ps(_mm512_set1_ps(88.0f), _mm512_max_ps(_mm512_set1_ps(-87.0f), x));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    __m512 f = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x); /* ln 2 in two parts */
    f = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), f);
    __m512 p = _mm512_set1_ps(1.0f / 5040);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f / 720));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f / 120));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f / 24));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f / 6));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

static void rms_norm_avx512(const float *x, const float *weight, float eps, int64_t n, float *out) {
    __m512 sum0 = _mm512_setzero_ps(), sum1 = _mm512_setzero_ps();
    for (int64_t i = 0; i < n; i += 32) {
        const __m512 a = _mm512_maskz_loadu_ps(first_lanes_avx512(n - i), x + i);
        sum0 = _mm512_fmadd_ps(a, a, sum0);
        if (i + 16 < n) {
            const __m512 b = _mm512_maskz_loadu_ps(first_lanes_avx512(n - i - 16), x + i + 16);
            sum1 = _mm512_fmadd_ps(b, b, sum1);
        }
    }
    const float sum = _mm512_reduce_add_ps(_mm512_add_ps(sum0, sum1));
    const __m512 r = _mm512_set1_ps(norm_factor(sum, n, eps));
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 lanes = first_lanes_avx512(n - i);
        const __m512 a = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, x + i), r);
        _mm512_mask_storeu_ps(out + i, lanes,
                              _mm512_mul_ps(a, _mm512_maskz_loadu_ps(lanes, weight + i)));
    }
}

static void quantize_column_avx512(const float *x, int64_t n_k, int64_t width, int8_t *q,
                                   float *scale, int32_t *neg8_sum, int16_t *half_sum) {
    for (int64_t b = 0; b < n_k / BLOCK; b++, x += BLOCK) {
        const __m512 first = _mm512_loadu_ps(x), second = _mm512_loadu_ps(x + 16);
        const float max = float_of_bits(_mm512_reduce_max_epi32(
            _mm512_max_epi32(_mm512_castps_si512(_mm512_abs_ps(first)),
                             _mm512_castps_si512(_mm512_abs_ps(second)))));
        const __m512 inverse = _mm512_set1_ps(max > 0 ? 127.0f / max : 0.0f);
        const __m512i q0 = _mm512_cvtps_epi32(_mm512_mul_ps(first, inverse));
        const __m512i q1 = _mm512_cvtps_epi32(_mm512_mul_ps(second, inverse));
        int8_t *block = q + b * width * BLOCK;
        const __m128i bytes0 = _mm512_cvtsepi32_epi8(q0), bytes1 = _mm512_cvtsepi32_epi8(q1);
        _mm_storeu_si128((__m128i *)block, bytes0);
        _mm_storeu_si128((__m128i *)(block + 16), bytes1);
        const int sum0 = _mm512_reduce_add_epi32(_mm512_cvtepi8_epi32(bytes0));
        const int sum1 = _mm512_reduce_add_epi32(_mm512_cvtepi8_epi32(bytes1));
        scale[b * width] = activation_scale(max);
        neg8_sum[b * width] = -8 * (sum0 + sum1);
        half_sum[2 * b * width] = (int16_t)sum0;
        half_sum[2 * b * width + 1] = (int16_t)sum1;
    }
}

static void rope_head_avx512(float *x, const float *row, int64_t half, float scale) {
    const __m512 factor = _mm512_set1_ps(scale);
    for (int64_t i = 0; i < half; i += 16) {
        const __mmask16 lanes = first_lanes_avx512(half - i);
        const __m512 a = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, x + i), factor);
        const __m512 b = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, x + half + i), factor);
        const __m512 cosine = _mm512_maskz_loadu_ps(lanes, row + i);
        const __m512 sine = _mm512_maskz_loadu_ps(lanes, row + half + i);
        _mm512_mask_storeu_ps(x + i, lanes,
                              _mm512_fmsub_ps(a, cosine, _mm512_mul_ps(b, sine)));
        _mm512_mask_storeu_ps(x + half + i, lanes,
                              _mm512_fmadd_ps(a, sine, _mm512_mul_ps(b, cosine)));
    }
}

static void silu_mul_avx512(float *gate, const float *up, int64_t n) {
    const __m512 one = _mm512_set1_ps(1.0f);
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 lanes = first_lanes_avx512(n - i);
        const __m512 g = _mm512_maskz_loadu_ps(lanes, gate + i);
        const __m512 u = _mm512_maskz_loadu_ps(lanes, up + i);
        const __m512 e = exp_avx512(_mm512_sub_ps(_mm512_setzero_ps(), g));
        const __m512 s = _mm512_div_ps(g, _mm512_add_ps(one, e));
        _mm512_mask_storeu_ps(gate + i, lanes, _mm512_mul_ps(s, u));
    }
}

static void gelu_mul_avx512(float *gate, const float *up, int64_t n) {
    const __m512 one = _mm512_set1_ps(1.0f);
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 lanes = first_lanes_avx512(n - i);
        const __m512 x = _mm512_maskz_loadu_ps(lanes, gate + i);
        const __m512 u = _mm512_fmadd_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(GELU_THIRD),
                                         _mm512_set1_ps(GELU_FIRST));
        const __m512 e = exp_avx512(_mm512_mul_ps(u, x));
        const __m512 y = _mm512_div_ps(x, _mm512_add_ps(one, e));
        _mm512_mask_storeu_ps(gate + i, lanes,
                              _mm512_mul_ps(y, _mm512_maskz_loadu_ps(lanes, up + i)));
    }
}

/* See soft_cap_scalar and TANH_SMALL. */
ALWAYS_INLINE __m512 tanh_avx512(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f), sign = _mm512_set1_ps(-0.0f);
    const __m512 magnitude = _mm512_abs_ps(x), z = _mm512_mul_ps(x, x);
    __m512 p = _mm512_set1_ps(TANH_5);
    p = _mm512_fmadd_ps(p, z, _mm512_set1_ps(TANH_4));
    p = _mm512_fmadd_ps(p, z, _mm512_set1_ps(TANH_3));
    p = _mm512_fmadd_ps(p, z, _mm512_set1_ps(TANH_2));
    p = _mm512_fmadd_ps(p, z, _mm512_set1_ps(TANH_1));
    const __m512 small = _mm512_fmadd_ps(_mm512_mul_ps(p, z), x, x);
    const __m512 e = exp_avx512(_mm512_add_ps(magnitude, magnitude));
    const __m512 large = _mm512_sub_ps(
        one, _mm512_div_ps(_mm512_set1_ps(2.0f), _mm512_add_ps(e, one)));
    const __mmask16 is_large =
        _mm512_cmp_ps_mask(magnitude, _mm512_set1_ps(TANH_SMALL), _CMP_GT_OQ);
    return _mm512_mask_blend_ps(is_large, small, _mm512_or_ps(large, _mm512_and_ps(x, sign)));
}

static void soft_cap_avx512(float *x, int64_t n, float cap) {
    const __m512 factor = _mm512_set1_ps(cap);
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 lanes = first_lanes_avx512(n - i);
        const __m512 s = _mm512_div_ps(_mm512_maskz_loadu_ps(lanes, x + i), factor);
        _mm512_mask_storeu_ps(x + i, lanes, _mm512_mul_ps(factor, tanh_avx512(s)));
    }
}

static void to_f16_avx512(const float *x, int64_t n, f16_t *out) {
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 lanes = first_lanes_avx512(n - i);
        const __m256i half = _mm512_cvtps_ph(_mm512_maskz_loadu_ps(lanes, x + i), 0);
        _mm256_mask_storeu_epi16(out + i, lanes, half);
    }
}

static void use_vector_avx512(kernels_t *k) {
    k->rms_norm = rms_norm_avx512;
    k->quantize_column = quantize_column_avx512;
    k->rope_head = rope_head_avx512;
    k->silu_mul = silu_mul_avx512;
    k->gelu_mul = gelu_mul_avx512;
    k->soft_cap = soft_cap_avx512;
    k->to_f16 = to_f16_avx512;
}

#endif
