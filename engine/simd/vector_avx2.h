/* Row-wise operations for AVX2 with FMA and F16C: norm, activation quantization, RoPE, SiLU,
 * GELU, soft cap.
 *
 * The last lanes of a row that does not divide by 8 are done by the portable version. */
#ifndef LARIAT_VECTOR_AVX2_H
#define LARIAT_VECTOR_AVX2_H

#include <immintrin.h>

#include "layout.h"
#include "table.h"
#include "vector_scalar.h"

ALWAYS_INLINE float sum_lanes_avx2(__m256 x) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

ALWAYS_INLINE float max_lanes_avx2(__m256 x) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

/* exp with a relative error below 2e-7, clamped at -87: see exp_avx512 */
ALWAYS_INLINE __m256 exp_avx2(__m256 x) {
    x = _mm256_min_ps(_mm256_set1_ps(88.0f), _mm256_max_ps(_mm256_set1_ps(-87.0f), x));
    const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), 8);
    __m256 f = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
    f = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), f);
    __m256 p = _mm256_set1_ps(1.0f / 5040);
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.0f / 720));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.0f / 120));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.0f / 24));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.0f / 6));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(0.5f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.0f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.0f));
    const __m256i exponent =
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(p, _mm256_castsi256_ps(exponent));
}

static void rms_norm_avx2(const float *x, const float *weight, float eps, int64_t n, float *out) {
    __m256 sums[4]; /* a sum waits four cycles for its last addition */
    int64_t i = 0;
    for (int v = 0; v < 4; v++) sums[v] = _mm256_setzero_ps();
    for (; i + 32 <= n; i += 32)
        for (int v = 0; v < 4; v++) {
            const __m256 a = _mm256_loadu_ps(x + i + 8 * v);
            sums[v] = _mm256_fmadd_ps(a, a, sums[v]);
        }
    for (; i + 8 <= n; i += 8) {
        const __m256 a = _mm256_loadu_ps(x + i);
        sums[0] = _mm256_fmadd_ps(a, a, sums[0]);
    }
    double sum = (double)sum_lanes_avx2(_mm256_add_ps(_mm256_add_ps(sums[0], sums[1]),
                                                      _mm256_add_ps(sums[2], sums[3])));
    for (; i < n; i++) sum += (double)x[i] * x[i];
    const float r = norm_factor(sum, n, eps);
    for (i = 0; i + 8 <= n; i += 8)
        _mm256_storeu_ps(out + i, _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(x + i),
                                                              _mm256_set1_ps(r)),
                                                _mm256_loadu_ps(weight + i)));
    for (; i < n; i++) out[i] = x[i] * r * weight[i];
}

/* Four vectors of 8 int32 to 32 bytes in order */
ALWAYS_INLINE __m256i narrow_avx2(const __m256i v_i32x8[4]) {
    const __m256i low = _mm256_packs_epi32(v_i32x8[0], v_i32x8[1]);
    const __m256i high = _mm256_packs_epi32(v_i32x8[2], v_i32x8[3]);
    /* packs works within each 128-bit half, so groups of 4 come out of order */
    return _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high),
                                       _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

static void quantize_column_avx2(const float *x, int64_t n_k, int64_t width, int8_t *q,
                                 float *scale, int32_t *neg8_sum, int16_t *half_sum) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    const __m256i ones = _mm256_set1_epi8(1);
    for (int64_t b = 0; b < n_k / BLOCK; b++, x += BLOCK) {
        __m256i max_i32x8 = _mm256_setzero_si256();
        for (int i = 0; i < 4; i++)
            max_i32x8 = _mm256_max_epi32(
                max_i32x8,
                _mm256_and_si256(_mm256_loadu_si256((const __m256i *)(x + 8 * i)), magnitude));
        __m128i half = _mm_max_epi32(_mm256_castsi256_si128(max_i32x8),
                                     _mm256_extracti128_si256(max_i32x8, 1));
        half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4e));
        half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0xb1));
        const float max = float_of_bits(_mm_cvtsi128_si32(half));
        const __m256 inverse = _mm256_set1_ps(max > 0 ? 127.0f / max : 0.0f);
        __m256i v_i32x8[4];
        for (int i = 0; i < 4; i++)
            v_i32x8[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), inverse));
        const __m256i bytes = narrow_avx2(v_i32x8);
        _mm256_storeu_si256((__m256i *)(q + b * width * BLOCK), bytes);
        const __m256i sums_i32x8 =
            _mm256_madd_epi16(_mm256_maddubs_epi16(ones, bytes), _mm256_set1_epi16(1));
        int32_t part[8];
        _mm256_storeu_si256((__m256i *)part, sums_i32x8);
        const int sum0 = part[0] + part[1] + part[2] + part[3];
        const int sum1 = part[4] + part[5] + part[6] + part[7];
        scale[b * width] = activation_scale(max);
        neg8_sum[b * width] = -8 * (sum0 + sum1);
        half_sum[2 * b * width] = (int16_t)sum0;
        half_sum[2 * b * width + 1] = (int16_t)sum1;
    }
}

static void rope_head_avx2(float *x, const float *row, int64_t half, float scale) {
    const __m256 factor = _mm256_set1_ps(scale);
    int64_t i = 0;
    for (; i + 8 <= half; i += 8) {
        const __m256 a = _mm256_mul_ps(_mm256_loadu_ps(x + i), factor);
        const __m256 b = _mm256_mul_ps(_mm256_loadu_ps(x + half + i), factor);
        const __m256 cosine = _mm256_loadu_ps(row + i), sine = _mm256_loadu_ps(row + half + i);
        _mm256_storeu_ps(x + i, _mm256_fmsub_ps(a, cosine, _mm256_mul_ps(b, sine)));
        _mm256_storeu_ps(x + half + i, _mm256_fmadd_ps(a, sine, _mm256_mul_ps(b, cosine)));
    }
    for (; i < half; i++) {
        const float a = x[i] * scale, b = x[half + i] * scale;
        x[i] = a * row[i] - b * row[half + i];
        x[half + i] = a * row[half + i] + b * row[i];
    }
}

/* Three passes within a vector, where a lane becomes its partner plus or minus itself, and the rest
 * over vectors. */
static void hadamard_avx2(float *x, int64_t n) {
    const int64_t size = hadamard_size(n);
    if (size < 8) {
        hadamard_scalar(x, n);
        return;
    }
    const __m256 scale = _mm256_set1_ps(1.0f / sqrtf((float)size));
    const __m256 sign_1 = _mm256_setr_ps(1, -1, 1, -1, 1, -1, 1, -1);
    const __m256 sign_2 = _mm256_setr_ps(1, 1, -1, -1, 1, 1, -1, -1);
    const __m256 sign_4 = _mm256_setr_ps(1, 1, 1, 1, -1, -1, -1, -1);
    for (int64_t i = 0; i < n; i += 8) {
        __m256 a = _mm256_mul_ps(_mm256_loadu_ps(x + i), scale);
        a = _mm256_fmadd_ps(a, sign_1, _mm256_permute_ps(a, 0xb1));
        a = _mm256_fmadd_ps(a, sign_2, _mm256_permute_ps(a, 0x4e));
        a = _mm256_fmadd_ps(a, sign_4, _mm256_permute2f128_ps(a, a, 1));
        _mm256_storeu_ps(x + i, a);
    }
    for (int64_t apart = 8; apart < size; apart *= 2)
        for (int64_t from = 0; from < n; from += 2 * apart)
            for (int64_t i = from; i < from + apart; i += 8) {
                const __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + apart + i);
                _mm256_storeu_ps(x + i, _mm256_add_ps(a, b));
                _mm256_storeu_ps(x + apart + i, _mm256_sub_ps(a, b));
            }
}

static void silu_mul_avx2(float *gate, const float *up, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256 g = _mm256_loadu_ps(gate + i);
        const __m256 e = exp_avx2(_mm256_sub_ps(_mm256_setzero_ps(), g));
        const __m256 s = _mm256_div_ps(g, _mm256_add_ps(_mm256_set1_ps(1.0f), e));
        _mm256_storeu_ps(gate + i, _mm256_mul_ps(s, _mm256_loadu_ps(up + i)));
    }
    silu_mul_scalar(gate + i, up + i, n - i);
}

static void gelu_mul_avx2(float *gate, const float *up, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256 x = _mm256_loadu_ps(gate + i);
        const __m256 u = _mm256_fmadd_ps(_mm256_mul_ps(x, x), _mm256_set1_ps(GELU_THIRD),
                                         _mm256_set1_ps(GELU_FIRST));
        const __m256 e = exp_avx2(_mm256_mul_ps(u, x));
        const __m256 y = _mm256_div_ps(x, _mm256_add_ps(_mm256_set1_ps(1.0f), e));
        _mm256_storeu_ps(gate + i, _mm256_mul_ps(y, _mm256_loadu_ps(up + i)));
    }
    gelu_mul_scalar(gate + i, up + i, n - i);
}

/* See soft_cap_scalar and TANH_SMALL. */
ALWAYS_INLINE __m256 tanh_avx2(__m256 x) {
    const __m256 sign = _mm256_set1_ps(-0.0f), one = _mm256_set1_ps(1.0f);
    const __m256 magnitude = _mm256_andnot_ps(sign, x), z = _mm256_mul_ps(x, x);
    __m256 p = _mm256_set1_ps(TANH_5);
    p = _mm256_fmadd_ps(p, z, _mm256_set1_ps(TANH_4));
    p = _mm256_fmadd_ps(p, z, _mm256_set1_ps(TANH_3));
    p = _mm256_fmadd_ps(p, z, _mm256_set1_ps(TANH_2));
    p = _mm256_fmadd_ps(p, z, _mm256_set1_ps(TANH_1));
    const __m256 small = _mm256_fmadd_ps(_mm256_mul_ps(p, z), x, x);
    const __m256 e = exp_avx2(_mm256_add_ps(magnitude, magnitude));
    const __m256 large = _mm256_sub_ps(
        one, _mm256_div_ps(_mm256_set1_ps(2.0f), _mm256_add_ps(e, one)));
    const __m256 is_large = _mm256_cmp_ps(magnitude, _mm256_set1_ps(TANH_SMALL), _CMP_GT_OQ);
    return _mm256_blendv_ps(small, _mm256_or_ps(large, _mm256_and_ps(x, sign)), is_large);
}

static void soft_cap_avx2(float *x, int64_t n, float cap) {
    const __m256 factor = _mm256_set1_ps(cap);
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(x + i, _mm256_mul_ps(factor, tanh_avx2(_mm256_div_ps(
                                                          _mm256_loadu_ps(x + i), factor))));
    soft_cap_scalar(x + i, n - i, cap);
}

static void to_f16_avx2(const float *x, int64_t n, f16_t *out) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i *)(out + i), _mm256_cvtps_ph(_mm256_loadu_ps(x + i), 0));
    to_f16_scalar(x + i, n - i, out + i);
}

static void use_vector_avx2(kernels_t *k) {
    k->rms_norm = rms_norm_avx2;
    k->quantize_column = quantize_column_avx2;
    k->rope_head = rope_head_avx2;
    k->hadamard = hadamard_avx2;
    k->silu_mul = silu_mul_avx2;
    k->gelu_mul = gelu_mul_avx2;
    k->soft_cap = soft_cap_avx2;
    k->to_f16 = to_f16_avx2;
}

#endif
