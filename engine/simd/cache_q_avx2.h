/* Quantized keys and values for AVX2. Layouts and operations are said in cache_q_scalar.h, where
 * scales go in cache_q_avx512.h. Work goes by half groups of 16 channels, two vectors each. */
#ifndef LARIAT_CACHE_Q_AVX2_H
#define LARIAT_CACHE_Q_AVX2_H

#include <immintrin.h>

#include "attention_avx2.h"
#include "cache_q_scalar.h"

/* 16 of a group's 32 numbers: those of the low or (part 1) the high nibbles */
ALWAYS_INLINE void load_half_group_avx2(const uint8_t *group, const int part, __m256 x[2],
                                        const int type) {
    const int is_byte = type == C_Q8_0 || type == C_Q8_CH;
    for (int v = 0; v < 2; v++) {
        const __m128i bytes =
            _mm_loadl_epi64((const __m128i *)(group + 8 * v + (is_byte ? 16 * part : 0)));
        __m256i q_i32x8 = is_byte ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepu8_epi32(bytes);
        if (!is_byte)
            q_i32x8 = part ? _mm256_srli_epi32(q_i32x8, 4)
                           : _mm256_and_si256(q_i32x8, _mm256_set1_epi32(15));
        if (type == C_Q4_0) q_i32x8 = _mm256_sub_epi32(q_i32x8, _mm256_set1_epi32(8));
        x[v] = _mm256_cvtepi32_ps(q_i32x8);
    }
}

ALWAYS_INLINE __m256 load_f16_avx2(const f16_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}

/* Scales of n slots, [head_dim / 32][SLOTS], times the slot's weight if there are weights */
ALWAYS_INLINE void slot_scales_avx2(const void *unit, int first, int n, int64_t head_dim,
                                    const float *weights, float *out, const int type) {
    for (int64_t g = 0; g < head_dim / 32; g++, out += SLOTS) {
        const f16_t *scales = scales_of(unit, head_dim, type) + g * SLOTS;
        prefetch_next(scales, cache_unit_bytes(type, head_dim));
        to_f32_avx2(scales + first, n, out);
        for (int j = 0; weights && j < n; j++) out[j] *= weights[j];
    }
}

ALWAYS_INLINE void dequantize_avx2(const void *unit, int first, int n, int64_t head_dim, float *out,
                                   const int type) {
    const f16_t *scales = scales_of(unit, head_dim, type);
    for (int64_t j = first; j < first + n; j++)
        for (int64_t i = 0; i < head_dim; i += 16, out += 16) {
            const uint8_t *group = group_of(unit, j, i / 32, head_dim, type);
            __m256 x[2];
            if (i % 32) load_half_group_avx2(group, 1, x, type);
            else load_half_group_avx2(group, 0, x, type);
            for (int v = 0; v < 2; v++) {
                const f16_t *of = scales + i + 8 * v;
                if (type == C_Q4_CH) x[v] = _mm256_add_ps(x[v], load_f16_avx2(of + head_dim));
                const __m256 scale =
                    type >= C_Q8_CH ? load_f16_avx2(of)
                                    : _mm256_set1_ps(_cvtsh_ss(scales[i / 32 * SLOTS + j]));
                _mm256_storeu_ps(out + 8 * v, _mm256_mul_ps(x[v], scale));
            }
        }
}

/* A query (or, of raw keys, its pairs) against half a group of channels and the one half a head
 * further on. Adds to `partial`. */
ALWAYS_INLINE void unit_half_group_avx2(const float *q, const void *unit, int first, int n,
                                        int64_t head_dim, const float *step, int64_t g,
                                        const int part, const float *slot_scales,
                                        __m256 partial[SLOTS], const int type) {
    const int64_t half = head_dim / 2;
    const int64_t unit_bytes = cache_unit_bytes(type, head_dim);
    const f16_t *scales = scales_of(unit, head_dim, type);
    __m256 x[2], y[2], dx[2], dy[2], bend[2], zx[2], zy[2];
    for (int v = 0; v < 2; v++) {
        const int64_t i = 32 * g + 16 * part + 8 * v;
        x[v] = _mm256_loadu_ps(q + i);
        y[v] = _mm256_loadu_ps(q + half + i);
        bend[v] = dx[v] = dy[v] = zx[v] = zy[v] = _mm256_setzero_ps();
        if (step) {
            bend[v] = _mm256_loadu_ps(step + i);
            const __m256 sine = _mm256_loadu_ps(step + half + i);
            const __m256 half_bend = _mm256_mul_ps(bend[v], _mm256_set1_ps(0.5f));
            dx[v] = _mm256_fmadd_ps(half_bend, x[v], _mm256_mul_ps(sine, y[v]));
            dy[v] = _mm256_fmsub_ps(half_bend, y[v], _mm256_mul_ps(sine, x[v]));
        }
        if (type >= C_Q8_CH) {
            prefetch_next(scales + i, unit_bytes);
            prefetch_next(scales + half + i, unit_bytes);
            const __m256 scale_x = load_f16_avx2(scales + i);
            const __m256 scale_y = load_f16_avx2(scales + half + i);
            x[v] = _mm256_mul_ps(x[v], scale_x);
            y[v] = _mm256_mul_ps(y[v], scale_y);
            dx[v] = _mm256_mul_ps(dx[v], scale_x);
            dy[v] = _mm256_mul_ps(dy[v], scale_y);
        }
        if (type == C_Q4_CH) {
            zx[v] = load_f16_avx2(scales + head_dim + i);
            zy[v] = load_f16_avx2(scales + head_dim + half + i);
        }
    }
    for (int j = 0; j < n; j++) {
        __m256 a[2], b[2];
        if (part == 0) { /* a row that is read in halves is asked for once */
            prefetch_next(group_of(unit, first + j, g, head_dim, type), unit_bytes);
            prefetch_next(group_of(unit, first + j, g + half / 32, head_dim, type), unit_bytes);
        }
        load_half_group_avx2(group_of(unit, first + j, g, head_dim, type), part, a, type);
        load_half_group_avx2(group_of(unit, first + j, g + half / 32, head_dim, type), part, b,
                             type);
        if (type == C_Q4_CH)
            for (int v = 0; v < 2; v++) {
                a[v] = _mm256_add_ps(a[v], zx[v]);
                b[v] = _mm256_add_ps(b[v], zy[v]);
            }
        const __m256 of_x = _mm256_fmadd_ps(a[1], x[1], _mm256_mul_ps(a[0], x[0]));
        const __m256 of_y = _mm256_fmadd_ps(b[1], y[1], _mm256_mul_ps(b[0], y[0]));
        if (type >= C_Q8_CH) {
            partial[j] = _mm256_add_ps(partial[j], _mm256_add_ps(of_x, of_y));
        } else {
            const float *scale = slot_scales + g * SLOTS + j;
            partial[j] = _mm256_fmadd_ps(of_x, _mm256_set1_ps(scale[0]), partial[j]);
            partial[j] = _mm256_fmadd_ps(of_y, _mm256_set1_ps(scale[half]), partial[j]);
        }
        if (step)
            for (int v = 0; v < 2; v++) {
                dx[v] = _mm256_fnmadd_ps(bend[v], x[v], dx[v]);
                dy[v] = _mm256_fnmadd_ps(bend[v], y[v], dy[v]);
                x[v] = _mm256_add_ps(x[v], dx[v]);
                y[v] = _mm256_add_ps(y[v], dy[v]);
            }
    }
}

/* `step` is that of the RoPE table, NULL for keys that are rotated already. */
ALWAYS_INLINE void unit_scores_avx2(const float *q, const void *unit, int first, int n,
                                    int64_t head_dim, const float *step, float *s, const int type) {
    float slot_scales[SLOTS * MAX_HEAD_DIM / 32];
    __m256 partial[SLOTS];
    if (type < C_Q8_CH) slot_scales_avx2(unit, first, n, head_dim, NULL, slot_scales, type);
    for (int j = 0; j < SLOTS; j++) partial[j] = _mm256_setzero_ps();
    for (int64_t g = 0; g < head_dim / 64; g++) {
        unit_half_group_avx2(q, unit, first, n, head_dim, step, g, 0, slot_scales, partial, type);
        unit_half_group_avx2(q, unit, first, n, head_dim, step, g, 1, slot_scales, partial, type);
    }
    for (int j = 0; j < n; j += 8) _mm256_storeu_ps(s + j, sum_8_avx2(partial + j));
}

ALWAYS_INLINE void unit_weigh_group_avx2(const float *s, const void *unit, int first, int n,
                                         int64_t head_dim, int64_t g, const float *weights,
                                         float total, float *acc, const int type) {
    const f16_t *scales = scales_of(unit, head_dim, type) + 32 * g;
    __m256 sum[4];
    for (int v = 0; v < 4; v++) sum[v] = _mm256_setzero_ps();
    for (int j = 0; j < n; j++) {
        const uint8_t *group = group_of(unit, first + j, g, head_dim, type);
        prefetch_next(group, cache_unit_bytes(type, head_dim));
        const __m256 weight =
            _mm256_set1_ps(type >= C_Q8_CH ? s[j] : weights[g * SLOTS + j]);
        __m256 x[4];
        load_half_group_avx2(group, 0, x, type);
        load_half_group_avx2(group, 1, x + 2, type);
        for (int v = 0; v < 4; v++) sum[v] = _mm256_fmadd_ps(x[v], weight, sum[v]);
    }
    acc += 32 * g;
    for (int v = 0; v < 4; v++) {
        const __m256 before = _mm256_loadu_ps(acc + 8 * v);
        if (type == C_Q4_CH)
            sum[v] = _mm256_fmadd_ps(_mm256_set1_ps(total),
                                     load_f16_avx2(scales + head_dim + 8 * v), sum[v]);
        sum[v] = type >= C_Q8_CH
                     ? _mm256_fmadd_ps(sum[v], load_f16_avx2(scales + 8 * v), before)
                     : _mm256_add_ps(sum[v], before);
        _mm256_storeu_ps(acc + 8 * v, sum[v]);
    }
}

ALWAYS_INLINE void unit_weigh_avx2(const float *s, const void *unit, int first, int n,
                                   int64_t head_dim, float *acc, const int type) {
    float weights[SLOTS * MAX_HEAD_DIM / 32], total = 0;
    if (type < C_Q8_CH) slot_scales_avx2(unit, first, n, head_dim, s, weights, type);
    for (int j = 0; j < n; j++) total += s[j];
    for (int64_t g = 0; g < head_dim / 32; g++)
        unit_weigh_group_avx2(s, unit, first, n, head_dim, g, weights, total, acc, type);
}

static void unit_scores_roped_q8_0_avx2(const float *q, const void *unit, int first, int n,
                                        int64_t head_dim, const rope_t *rope UNUSED, float *s) {
    unit_scores_avx2(q, unit, first, n, head_dim, NULL, s, C_Q8_0);
}

static void unit_scores_raw_q8_0_avx2(const float *q, const void *unit, int first, int n,
                                      int64_t head_dim, const rope_t *rope, float *s) {
    unit_scores_avx2(q, unit, first, n, head_dim, rope->step, s, C_Q8_0);
}

static void unit_weigh_q8_0_avx2(const float *s, const void *unit, int first, int n,
                                 int64_t head_dim, float *acc) {
    unit_weigh_avx2(s, unit, first, n, head_dim, acc, C_Q8_0);
}

static void dequantize_q8_0_avx2(const void *unit, int first, int n, int64_t head_dim,
                                 float *out) {
    dequantize_avx2(unit, first, n, head_dim, out, C_Q8_0);
}

static void quantize_q8_0_avx2(const float *x, int slot, int64_t head_dim, void *unit) {
    quantize_q8_0_in_c(x, slot, head_dim, unit);
}

static void unit_scores_roped_q4_0_avx2(const float *q, const void *unit, int first, int n,
                                        int64_t head_dim, const rope_t *rope UNUSED, float *s) {
    unit_scores_avx2(q, unit, first, n, head_dim, NULL, s, C_Q4_0);
}

static void unit_scores_raw_q4_0_avx2(const float *q, const void *unit, int first, int n,
                                      int64_t head_dim, const rope_t *rope, float *s) {
    unit_scores_avx2(q, unit, first, n, head_dim, rope->step, s, C_Q4_0);
}

static void unit_weigh_q4_0_avx2(const float *s, const void *unit, int first, int n,
                                 int64_t head_dim, float *acc) {
    unit_weigh_avx2(s, unit, first, n, head_dim, acc, C_Q4_0);
}

static void dequantize_q4_0_avx2(const void *unit, int first, int n, int64_t head_dim,
                                 float *out) {
    dequantize_avx2(unit, first, n, head_dim, out, C_Q4_0);
}

static void quantize_q4_0_avx2(const float *x, int slot, int64_t head_dim, void *unit) {
    quantize_q4_0_in_c(x, slot, head_dim, unit);
}

static void unit_scores_roped_q8_ch_avx2(const float *q, const void *unit, int first, int n,
                                         int64_t head_dim, const rope_t *rope UNUSED, float *s) {
    unit_scores_avx2(q, unit, first, n, head_dim, NULL, s, C_Q8_CH);
}

static void unit_scores_raw_q8_ch_avx2(const float *q, const void *unit, int first, int n,
                                       int64_t head_dim, const rope_t *rope, float *s) {
    unit_scores_avx2(q, unit, first, n, head_dim, rope->step, s, C_Q8_CH);
}

static void unit_weigh_q8_ch_avx2(const float *s, const void *unit, int first, int n,
                                  int64_t head_dim, float *acc) {
    unit_weigh_avx2(s, unit, first, n, head_dim, acc, C_Q8_CH);
}

static void dequantize_q8_ch_avx2(const void *unit, int first, int n, int64_t head_dim,
                                  float *out) {
    dequantize_avx2(unit, first, n, head_dim, out, C_Q8_CH);
}

static void quantize_q8_ch_avx2(const float *x, int slot UNUSED, int64_t head_dim, void *unit) {
    quantize_q8_ch_in_c(x, head_dim, unit);
}

static void unit_scores_roped_q4_ch_avx2(const float *q, const void *unit, int first, int n,
                                         int64_t head_dim, const rope_t *rope UNUSED, float *s) {
    unit_scores_avx2(q, unit, first, n, head_dim, NULL, s, C_Q4_CH);
}

static void unit_scores_raw_q4_ch_avx2(const float *q, const void *unit, int first, int n,
                                       int64_t head_dim, const rope_t *rope, float *s) {
    unit_scores_avx2(q, unit, first, n, head_dim, rope->step, s, C_Q4_CH);
}

static void unit_weigh_q4_ch_avx2(const float *s, const void *unit, int first, int n,
                                  int64_t head_dim, float *acc) {
    unit_weigh_avx2(s, unit, first, n, head_dim, acc, C_Q4_CH);
}

static void dequantize_q4_ch_avx2(const void *unit, int first, int n, int64_t head_dim,
                                  float *out) {
    dequantize_avx2(unit, first, n, head_dim, out, C_Q4_CH);
}

static void quantize_q4_ch_avx2(const float *x, int slot UNUSED, int64_t head_dim, void *unit) {
    quantize_q4_ch_in_c(x, head_dim, unit);
}

#endif
