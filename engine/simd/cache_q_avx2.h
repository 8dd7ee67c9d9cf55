/* Quantized keys and values for AVX2. cache_q_scalar.h says what the layouts and operations are,
 * cache_q_avx512.h where the scales go. A pass takes half a group, 16 channels, two vectors. A byte
 * becomes a float by two instructions, of which one starts in a cycle: that bounds these tiles. */
#ifndef LARIAT_CACHE_Q_AVX2_H
#define LARIAT_CACHE_Q_AVX2_H

#include <immintrin.h>

#include "attention_avx2.h"
#include "cache_q_scalar.h"
#include "fetch.h"

/* Bytes 0..7 (v = 0) or 8..15 of 16 that stand in both halves of a vector. Each becomes the top
 * byte of 32 bits, or with `below_top` the byte below it. */
ALWAYS_INLINE __m256i spread_avx2(__m256i bytes, const int v, const int below_top) {
    const int none = below_top ? (int)0x80008080 : 0x00808080, by = below_top ? 1 << 16 : 1 << 24;
    const int i = 8 * v;
    return _mm256_shuffle_epi8(
        bytes, _mm256_setr_epi32(none + i * by, none + (i + 1) * by, none + (i + 2) * by,
                                 none + (i + 3) * by, none + (i + 4) * by, none + (i + 5) * by,
                                 none + (i + 6) * by, none + (i + 7) * by));
}

/* Asks for the line at p, a block or a few further on: see ahead_avx2. */
ALWAYS_INLINE void fetch_line_avx2(const void *p, int64_t head_dim, const int type) {
    fetch_to_l2(p, 64, ahead_avx2(cache_block_bytes(type, head_dim)));
}

/* The same for step i of those that read `bytes` of the rows each, in the order of memory */
ALWAYS_INLINE void fetch_step_avx2(const void *block, int64_t i, const int bytes, int64_t head_dim,
                                   const int type) {
    if (bytes >= 64 || i % (64 / bytes) == 0)
        fetch_line_avx2((const char *)block + i * bytes, head_dim, type);
}

/* Nibbles are used where they stand in 32 bits, so a number is loaded times a power of two. This is
 * the inverse of that power. `part` is 0 for the first 16 numbers of a group of 32, 1 for the last.
 */
ALWAYS_INLINE float loaded_scale_avx2(const int part, const int type) {
    return type == C_Q4_0 ? 0x1p-28f : type != C_Q4_CH ? 1.0f : part ? 0x1p-20f : 0x1p-16f;
}

ALWAYS_INLINE void load_half_group_avx2(const uint8_t *group, const int part, __m256 x[2],
                                        const int type) {
    if (type == C_Q8_0 || type == C_Q8_CH) {
        for (int v = 0; v < 2; v++)
            x[v] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(
                _mm_loadl_epi64((const __m128i *)(group + 16 * part + 8 * v))));
        return;
    }
    __m256i bytes = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)group));
    /* q - 8 in four bits with a sign is q with its highest bit inverted */
    if (type == C_Q4_0) bytes = _mm256_xor_si256(bytes, _mm256_set1_epi8((char)0x88));
    for (int v = 0; v < 2; v++) {
        __m256i q_i32x8 = spread_avx2(bytes, v, type == C_Q4_CH);
        if (type == C_Q4_0)
            q_i32x8 = part ? _mm256_and_si256(q_i32x8, _mm256_set1_epi32((int)0xf0000000))
                           : _mm256_slli_epi32(q_i32x8, 4);
        if (type == C_Q4_CH)
            q_i32x8 = _mm256_and_si256(q_i32x8, _mm256_set1_epi32(part ? 0xf00000 : 0xf0000));
        x[v] = _mm256_cvtepi32_ps(q_i32x8);
    }
}

ALWAYS_INLINE __m256 load_f16_avx2(const f16_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}

/* Zero points of 8 channels, times what numbers are multiplied by when they are loaded */
ALWAYS_INLINE __m256 load_zeros_avx2(const f16_t *zeros, const int part) {
    return _mm256_mul_ps(load_f16_avx2(zeros),
                         _mm256_set1_ps(1 / loaded_scale_avx2(part, C_Q4_CH)));
}

/* Scales of n slots, [head_dim / 32][SLOTS], for numbers as they are loaded. If there are weights,
 * times the slot's weight. */
ALWAYS_INLINE void slot_scales_avx2(const void *block, int first, int n, int64_t head_dim,
                                    const float *weights, float *out, const int type) {
    const __m256 by = _mm256_set1_ps(loaded_scale_avx2(0, type));
    for (int64_t g = 0; g < head_dim / 32; g++, out += SLOTS) {
        const f16_t *scales = scales_of(block, head_dim, type) + g * SLOTS;
        fetch_line_avx2(scales, head_dim, type);
        for (int j = 0; j < n; j += 8) {
            const __m256 scale = load_up_to_avx2(scales, first + j, SLOTS, 0, 0);
            _mm256_storeu_ps(out + j, _mm256_mul_ps(_mm256_mul_ps(scale, by),
                                                    weights ? _mm256_loadu_ps(weights + j)
                                                            : _mm256_set1_ps(1)));
        }
    }
}

ALWAYS_INLINE void dequantize_avx2(const void *block, int first, int n, int64_t head_dim,
                                   float *out, const int type) {
    const f16_t *scales = scales_of(block, head_dim, type);
    for (int64_t j = first; j < first + n; j++)
        for (int64_t i = 0; i < head_dim; i += 32) {
            const uint8_t *group = group_of(block, j, i / 32, head_dim, type);
            __m256 x[4];
            load_half_group_avx2(group, 0, x, type);
            load_half_group_avx2(group, 1, x + 2, type);
            for (int v = 0; v < 4; v++, out += 8) {
                const f16_t *of = scales + i + 8 * v;
                if (type == C_Q4_CH)
                    x[v] = _mm256_add_ps(x[v], load_zeros_avx2(of + head_dim, v / 2));
                const __m256 scale =
                    type >= C_Q8_CH ? load_f16_avx2(of)
                                    : _mm256_set1_ps(_cvtsh_ss(scales[i / 32 * SLOTS + j]));
                const __m256 by = _mm256_set1_ps(loaded_scale_avx2(v / 2, type));
                _mm256_storeu_ps(out, _mm256_mul_ps(x[v], _mm256_mul_ps(scale, by)));
            }
        }
}

/* The pairs of a query, stepped from key to key: half a group of channels of the head's first half,
 * and the same of its second. The first half group sets `partial`, the others add to it. */
ALWAYS_INLINE void step_half_group_avx2(const float *q, const void *block, int first, int n,
                                        int64_t head_dim, const float *step, int64_t g,
                                        const int part, const float *slot_scales,
                                        __m256 partial[SLOTS], const int type) {
    const int64_t half = head_dim / 2;
    const f16_t *scales = scales_of(block, head_dim, type);
    __m256 x[2], y[2], dx[2], dy[2], zx[2], zy[2], factor[2]; /* factor: 2 (1 - cos theta) */
    for (int v = 0; v < 2; v++) {
        const int64_t i = 32 * g + 16 * part + 8 * v;
        x[v] = _mm256_loadu_ps(q + i);
        y[v] = _mm256_loadu_ps(q + half + i);
        factor[v] = _mm256_loadu_ps(step + i);
        const __m256 sine = _mm256_loadu_ps(step + half + i);
        const __m256 half_factor = _mm256_mul_ps(factor[v], _mm256_set1_ps(0.5f));
        dx[v] = _mm256_fmadd_ps(half_factor, x[v], _mm256_mul_ps(sine, y[v]));
        dy[v] = _mm256_fmsub_ps(half_factor, y[v], _mm256_mul_ps(sine, x[v]));
        zx[v] = zy[v] = _mm256_setzero_ps();
        if (type >= C_Q8_CH) {
            fetch_line_avx2(scales + i, head_dim, type);
            fetch_line_avx2(scales + half + i, head_dim, type);
            const __m256 by = _mm256_set1_ps(loaded_scale_avx2(part, type));
            const __m256 scale_x = _mm256_mul_ps(load_f16_avx2(scales + i), by);
            const __m256 scale_y = _mm256_mul_ps(load_f16_avx2(scales + half + i), by);
            x[v] = _mm256_mul_ps(x[v], scale_x);
            y[v] = _mm256_mul_ps(y[v], scale_y);
            dx[v] = _mm256_mul_ps(dx[v], scale_x);
            dy[v] = _mm256_mul_ps(dy[v], scale_y);
        }
        if (type == C_Q4_CH) {
            fetch_line_avx2(scales + head_dim + i, head_dim, type);
            fetch_line_avx2(scales + head_dim + half + i, head_dim, type);
            zx[v] = load_zeros_avx2(scales + head_dim + i, part);
            zy[v] = load_zeros_avx2(scales + head_dim + half + i, part);
        }
    }
    const int64_t row_bytes = cache_row_bytes(type, head_dim);
    const int64_t apart = group_of(block, 0, half / 32, head_dim, type) - (const uint8_t *)block;
    const uint8_t *row = group_of(block, first, g, head_dim, type);
    const float *scale = slot_scales + g * SLOTS;
    for (int j = 0; j < n; j++, row += row_bytes) {
        __m256 a[2], b[2];
        const __m256 before = g || part ? partial[j] : _mm256_setzero_ps();
        fetch_step_avx2(block, (2 * g + part) * SLOTS + j,
                        type == C_Q8_0 || type == C_Q8_CH ? 32 : 16, head_dim, type);
        load_half_group_avx2(row, part, a, type);
        load_half_group_avx2(row + apart, part, b, type);
        if (type == C_Q4_CH)
            for (int v = 0; v < 2; v++) {
                a[v] = _mm256_add_ps(a[v], zx[v]);
                b[v] = _mm256_add_ps(b[v], zy[v]);
            }
        if (type >= C_Q8_CH) {
            const __m256 of_x = _mm256_fmadd_ps(a[1], x[1], _mm256_fmadd_ps(a[0], x[0], before));
            const __m256 of_y = _mm256_fmadd_ps(b[1], y[1], _mm256_mul_ps(b[0], y[0]));
            partial[j] = _mm256_add_ps(of_x, of_y);
        } else {
            const __m256 of_x = _mm256_fmadd_ps(a[1], x[1], _mm256_mul_ps(a[0], x[0]));
            const __m256 of_y = _mm256_fmadd_ps(b[1], y[1], _mm256_mul_ps(b[0], y[0]));
            partial[j] = _mm256_fmadd_ps(
                of_y, _mm256_set1_ps(scale[half + j]),
                _mm256_fmadd_ps(of_x, _mm256_set1_ps(scale[j]), before));
        }
        for (int v = 0; v < 2; v++) {
            dx[v] = _mm256_fnmadd_ps(factor[v], x[v], dx[v]);
            dy[v] = _mm256_fnmadd_ps(factor[v], y[v], dy[v]);
            x[v] = _mm256_add_ps(x[v], dx[v]);
            y[v] = _mm256_add_ps(y[v], dy[v]);
        }
    }
}

ALWAYS_INLINE void block_scores_raw_avx2(const float *q, const void *block, int first, int n,
                                        int64_t head_dim, const float *step, float *s,
                                        const int type) {
    float slot_scales[SLOTS * MAX_HEAD_DIM / 32];
    __m256 partial[SLOTS];
    if (type < C_Q8_CH) slot_scales_avx2(block, first, n, head_dim, NULL, slot_scales, type);
    for (int j = n; j < SLOTS; j++) partial[j] = _mm256_setzero_ps();
    for (int64_t g = 0; g < head_dim / 64; g++) {
        step_half_group_avx2(q, block, first, n, head_dim, step, g, 0, slot_scales, partial, type);
        step_half_group_avx2(q, block, first, n, head_dim, step, g, 1, slot_scales, partial, type);
    }
    for (int j = 0; j < n; j += 8) _mm256_storeu_ps(s + j, sum_8_avx2(partial + j));
}

/* Keys that are rotated already: all of a key at a time, so that its sum stays in a register. */
ALWAYS_INLINE void block_scores_roped_avx2(const float *q, const void *block, int first, int n,
                                          int64_t head_dim, float *s, const int type) {
    float slot_scales[SLOTS * MAX_HEAD_DIM / 32], scaled[MAX_HEAD_DIM], zeros[MAX_HEAD_DIM];
    const f16_t *scales = scales_of(block, head_dim, type);
    if (type < C_Q8_CH) slot_scales_avx2(block, first, n, head_dim, NULL, slot_scales, type);
    for (int64_t i = 0; i < head_dim && type >= C_Q8_CH; i += 8) {
        const int part = i / 16 % 2;
        const float by = part ? loaded_scale_avx2(1, type) : loaded_scale_avx2(0, type);
        const __m256 scale = _mm256_mul_ps(load_f16_avx2(scales + i), _mm256_set1_ps(by));
        fetch_line_avx2(scales + i, head_dim, type);
        _mm256_storeu_ps(scaled + i, _mm256_mul_ps(_mm256_loadu_ps(q + i), scale));
        if (type != C_Q4_CH) continue;
        fetch_line_avx2(scales + head_dim + i, head_dim, type);
        _mm256_storeu_ps(zeros + i, part ? load_zeros_avx2(scales + head_dim + i, 1)
                                         : load_zeros_avx2(scales + head_dim + i, 0));
    }
    const float *x = type >= C_Q8_CH ? scaled : q;
    const int is_byte = type == C_Q8_0 || type == C_Q8_CH;
    for (int j0 = 0; j0 < n; j0 += 8) {
        __m256 sum[8];
        _Pragma("GCC unroll 8") for (int o = 0; o < 8; o++) {
            const int j = j0 + o < n ? j0 + o : n - 1;
            sum[o] = _mm256_setzero_ps();
            for (int64_t g = 0; g < head_dim / 32; g++) {
                __m256 a[4], of = _mm256_setzero_ps();
                fetch_step_avx2(block, j * (head_dim / 32) + g, is_byte ? 32 : 16, head_dim, type);
                load_half_group_avx2(group_of(block, first + j, g, head_dim, type), 0, a, type);
                load_half_group_avx2(group_of(block, first + j, g, head_dim, type), 1, a + 2, type);
                for (int v = 0; v < 4; v++) {
                    if (type == C_Q4_CH)
                        a[v] = _mm256_add_ps(a[v], _mm256_loadu_ps(zeros + 32 * g + 8 * v));
                    of = _mm256_fmadd_ps(a[v], _mm256_loadu_ps(x + 32 * g + 8 * v), of);
                }
                sum[o] = type >= C_Q8_CH
                             ? _mm256_add_ps(sum[o], of)
                             : _mm256_fmadd_ps(of, _mm256_set1_ps(slot_scales[g * SLOTS + j]),
                                               sum[o]);
            }
        }
        _mm256_storeu_ps(s + j0, sum_8_avx2(sum));
    }
}

/* n_g groups of 32 channels from g0 on */
ALWAYS_INLINE void block_weighted_sum_groups_avx2(const float *s, const void *block, int first,
                                                  int n, int64_t head_dim, int64_t g0,
                                                  const int n_g, const float *weights,
                                                  float total, float *acc, const int type) {
    const int by_channel = type >= C_Q8_CH, is_byte = type == C_Q8_0 || type == C_Q8_CH;
    __m256 sum[8];
    for (int v = 0; v < 8; v++) sum[v] = _mm256_setzero_ps();
    for (int j = 0; j < n; j++) {
        fetch_step_avx2(block, (g0 * SLOTS) / n_g + j, n_g * (is_byte ? 32 : 16), head_dim, type);
        _Pragma("GCC unroll 2") for (int g = 0; g < n_g; g++) {
            const uint8_t *group = group_of(block, first + j, g0 + g, head_dim, type);
            const __m256 weight =
                _mm256_set1_ps(by_channel ? s[j] : weights[(g0 + g) * SLOTS + j]);
            __m256 x[4];
            load_half_group_avx2(group, 0, x, type);
            load_half_group_avx2(group, 1, x + 2, type);
            for (int v = 0; v < 4; v++)
                sum[4 * g + v] = _mm256_fmadd_ps(x[v], weight, sum[4 * g + v]);
        }
    }
    const f16_t *scales = scales_of(block, head_dim, type) + 32 * g0;
    acc += 32 * g0;
    _Pragma("GCC unroll 8") for (int v = 0; v < 4 * n_g; v++) {
        const int part = v / 2 % 2;
        const __m256 before = _mm256_loadu_ps(acc + 8 * v);
        if (by_channel) {
            fetch_line_avx2(scales + 8 * v, head_dim, type);
            const __m256 by = _mm256_set1_ps(loaded_scale_avx2(part, type));
            const __m256 scale = _mm256_mul_ps(load_f16_avx2(scales + 8 * v), by);
            if (type == C_Q4_CH) {
                fetch_line_avx2(scales + head_dim + 8 * v, head_dim, type);
                sum[v] = _mm256_fmadd_ps(_mm256_set1_ps(total),
                                         load_zeros_avx2(scales + head_dim + 8 * v, part), sum[v]);
            }
            sum[v] = _mm256_fmadd_ps(sum[v], scale, before);
        } else {
            sum[v] = _mm256_add_ps(sum[v], before);
        }
        _mm256_storeu_ps(acc + 8 * v, sum[v]);
    }
}

ALWAYS_INLINE void block_weighted_sum_rows_avx2(const float *s, const void *block, int first, int n,
                                                int64_t head_dim, float *acc, const int type) {
    float weights[SLOTS * MAX_HEAD_DIM / 32], total = 0;
    if (type < C_Q8_CH) slot_scales_avx2(block, first, n, head_dim, s, weights, type);
    for (int j = 0; j < n && type == C_Q4_CH; j++) total += s[j];
    int64_t g = 0;
    for (; g + 2 <= head_dim / 32; g += 2)
        block_weighted_sum_groups_avx2(s, block, first, n, head_dim, g, 2, weights, total, acc,
                                       type);
    if (g < head_dim / 32)
        block_weighted_sum_groups_avx2(s, block, first, n, head_dim, g, 1, weights, total, acc,
                                       type);
}

/* See BY_HEAD_DIM_AVX2. */
#define RAW_AVX2(d) block_scores_raw_avx2(q, block, first, n, d, rope->step, s, type)
#define ROPED_AVX2(d) block_scores_roped_avx2(q, block, first, n, d, s, type)
#define WEIGHTED_SUM_AVX2(d) block_weighted_sum_rows_avx2(s, block, first, n, d, acc, type)
ALWAYS_INLINE void block_scores_avx2(const float *q, const void *block, int first, int n,
                                     int64_t head_dim, const rope_t *rope, float *s, const int raw,
                                     const int type) {
    if (raw) {
        BY_HEAD_DIM_AVX2(RAW_AVX2)
    } else {
        BY_HEAD_DIM_AVX2(ROPED_AVX2)
    }
}

ALWAYS_INLINE void block_weighted_sum_avx2(const float *s, const void *block, int first, int n,
                                           int64_t head_dim, float *acc, const int type) {
    BY_HEAD_DIM_AVX2(WEIGHTED_SUM_AVX2)
}
#undef RAW_AVX2
#undef ROPED_AVX2
#undef WEIGHTED_SUM_AVX2

FOR_CACHE_TYPES(CACHE_PRODUCTS, avx2)
FOR_CACHE_TYPES(CACHE_CONVERSIONS, avx2)

static void use_cache_avx2(kernels_t *k) {
    FOR_CACHE_TYPES(USE_CACHE_PRODUCTS, avx2)
    FOR_CACHE_TYPES(USE_CACHE_CONVERSIONS, avx2)
}

#endif
