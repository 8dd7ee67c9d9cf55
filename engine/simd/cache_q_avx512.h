/* Quantized keys and values for AVX-512. cache_q_scalar.h says what the layouts and operations are,
 * scores_avx512.h how the query of raw keys is stepped.
 *
 * Numbers become float as they are; scales go elsewhere. A channel's scale goes into the query
 * before keys are read (stepping is linear, so it stays there), and into the sum of values at its
 * end. The scales of 32 channels of a position are made float for the whole block first, so that
 * each is an operand that is broadcast from memory.
 */
#ifndef LARIAT_CACHE_Q_AVX512_H
#define LARIAT_CACHE_Q_AVX512_H

#include <immintrin.h>

#include "attention_avx512.h"
#include "cache_q_scalar.h"

/* How a tile asks for the next head's block (prefetch_next) while it reads this one */
enum {
    NEXT_AS_READ, /* for the bytes that stand where each step reads, some lines twice */
    NEXT_BY_LINE  /* for each line once, values in the order of memory: better on Intel's cores */
};

/* The 32 numbers of a group */
ALWAYS_INLINE void load_group_avx512(const uint8_t *group, __m512 x[2], const int type) {
    if (type == C_Q8_0 || type == C_Q8_CH) {
        for (int v = 0; v < 2; v++) {
            const __m128i q_i8x16 = _mm_loadu_si128((const __m128i *)(group + 16 * v));
            x[v] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q_i8x16));
        }
        return;
    }
    const __m512 count = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512 numbers =
        type == C_Q4_0 ? _mm512_sub_ps(count, _mm512_set1_ps(8.0f)) : count;
    const __m512i q_u8x16 = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)group));
    x[0] = _mm512_permutexvar_ps(q_u8x16, numbers); /* looks at the low 4 bits only */
    x[1] = _mm512_permutexvar_ps(_mm512_srli_epi32(q_u8x16, 4), numbers);
}

ALWAYS_INLINE __m512 load_f16_avx512(const f16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}

/* Scales of channels i..i + 15 */
ALWAYS_INLINE __m512 channel_scales_avx512(const void *block, int64_t i, int64_t head_dim,
                                           const int type) {
    if (type == C_Q8_CH) return load_f16_avx512(scales_of(block, head_dim, type) + i);
    const __m128i bytes = _mm_loadu_si128((const __m128i *)(channel_bytes_of(block, head_dim) + i));
    const __m256i scale_f16x16 = _mm256_slli_epi16(_mm256_cvtepu8_epi16(bytes), 7);
    return _mm512_mul_ps(_mm512_cvtph_ps(scale_f16x16), _mm512_set1_ps(0.25f));
}

/* Zero points of q4_ch: see zero_of_byte. */
ALWAYS_INLINE __m512 channel_zeros_avx512(const void *block, int64_t i, int64_t head_dim) {
    const uint8_t *bytes = channel_bytes_of(block, head_dim) + head_dim + i;
    const __m512 c =
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)bytes)));
    return _mm512_fmsub_ps(
        _mm512_mul_ps(c, _mm512_add_ps(_mm512_abs_ps(c), _mm512_set1_ps(64.0f))),
        _mm512_set1_ps(0x1p-8f), _mm512_set1_ps(7.5f));
}

/* Asks for what stands behind the next head's rows about channels i.. */
ALWAYS_INLINE void prefetch_channels_avx512(const void *block, int64_t i, int64_t head_dim,
                                            const int type) {
    const int64_t block_bytes = cache_block_bytes(type, head_dim);
    if (type == C_Q8_CH) prefetch_next(scales_of(block, head_dim, type) + i, block_bytes);
    if (type != C_Q4_CH) return;
    prefetch_next(channel_bytes_of(block, head_dim) + i, block_bytes);
    prefetch_next(channel_bytes_of(block, head_dim) + head_dim + i, block_bytes);
}

/* Scales of n slots, [head_dim / 32][SLOTS], zeros behind them. If there are weights, times the
 * slot's weight. */
ALWAYS_INLINE void slot_scales_avx512(const void *block, int first, int n, int64_t head_dim,
                                      const float *weights, float *out, const int type) {
    for (int64_t g = 0; g < head_dim / 32; g++) {
        const f16_t *scales = scales_of(block, head_dim, type) + g * SLOTS;
        prefetch_next(scales, cache_block_bytes(type, head_dim));
        for (int j = 0; j < SLOTS; j += 16, out += 16) {
            const __mmask16 lanes = j < n ? first_lanes_avx512(n - j) : 0;
            __m512 scale = load_lanes_avx512(scales, first + j, lanes, 0);
            if (weights) scale = _mm512_mul_ps(scale, _mm512_maskz_loadu_ps(lanes, weights + j));
            _mm512_storeu_ps(out, scale);
        }
    }
}

/* Channels 32 g.. of slot j, dequantized */
ALWAYS_INLINE void values_avx512(const void *block, int64_t j, int64_t g, int64_t head_dim,
                                 __m512 x[2], const int type) {
    const f16_t *scales = scales_of(block, head_dim, type);
    load_group_avx512(group_of(block, j, g, head_dim, type), x, type);
    for (int v = 0; v < 2; v++) {
        const int64_t i = 32 * g + 16 * v;
        if (type == C_Q4_CH)
            x[v] = _mm512_add_ps(x[v], channel_zeros_avx512(block, i, head_dim));
        const __m512 scale = type >= C_Q8_CH
                                 ? channel_scales_avx512(block, i, head_dim, type)
                                 : _mm512_set1_ps(_cvtsh_ss(scales[i / 32 * SLOTS + j]));
        x[v] = _mm512_mul_ps(x[v], scale);
    }
}

ALWAYS_INLINE void dequantize_avx512(const void *block, int first, int n, int64_t head_dim,
                                     float *out, const int type) {
    for (int j = 0; j < n; j++)
        for (int64_t g = 0; g < head_dim / 32; g++, out += 32) {
            __m512 x[2];
            values_avx512(block, first + j, g, head_dim, x, type);
            _mm512_storeu_ps(out, x[0]);
            _mm512_storeu_ps(out + 16, x[1]);
        }
}

/* Adds up lanes of four vectors in part: lane r of each quarter of the result belongs to p[r]. */
ALWAYS_INLINE __m512 sum_4_avx512(const __m512 p_f32x16[4]) {
    const __m512 *p = p_f32x16;
    const __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(p[0], p[1]), _mm512_unpackhi_ps(p[0], p[1]));
    const __m512 b = _mm512_add_ps(_mm512_unpacklo_ps(p[2], p[3]), _mm512_unpackhi_ps(p[2], p[3]));
    const __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
    return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
                         _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
}

/* The rest of that, for 16 vectors: lane i of the result is the sum of the lanes of vector i. */
ALWAYS_INLINE __m512 sum_quarters_avx512(const __m512 fours_f32x16[4]) {
    const __m512 *f = fours_f32x16;
    const __m512 left = _mm512_add_ps(_mm512_shuffle_f32x4(f[0], f[1], 0x88),
                                      _mm512_shuffle_f32x4(f[0], f[1], 0xdd));
    const __m512 right = _mm512_add_ps(_mm512_shuffle_f32x4(f[2], f[3], 0x88),
                                       _mm512_shuffle_f32x4(f[2], f[3], 0xdd));
    return _mm512_add_ps(_mm512_shuffle_f32x4(left, right, 0x88),
                         _mm512_shuffle_f32x4(left, right, 0xdd));
}

/* A query (or, if keys are raw, its pairs) against n_g groups of 32 channels from g0 on, and as
 * many half a head further on. Adds to `fours`, a vector for four keys (see sum_4_avx512): storing
 * a vector for each key costs as much as two of its multiplications. */
ALWAYS_INLINE void block_scores_groups_avx512(const float *q, const void *block, int first, int n,
                                              int64_t head_dim, const float *step, int64_t g0,
                                              const int n_g, const float *slot_scales,
                                              __m512 fours[SLOTS / 4], const int type,
                                              const int raw, const int next) {
    const int64_t half = head_dim / 2;
    const int n_v = 2 * n_g, by_channel = type >= C_Q8_CH;
    const int64_t block_bytes = cache_block_bytes(type, head_dim);
    __m512 x[4], y[4], dx[4], dy[4], zx[4], zy[4], factor[4]; /* factor: 2 (1 - cos theta) */
    FOR_EACH_VECTOR(v) {
        const int64_t i = 32 * g0 + 16 * v;
        x[v] = _mm512_loadu_ps(q + i);
        y[v] = _mm512_loadu_ps(q + half + i);
        factor[v] = dx[v] = dy[v] = zx[v] = zy[v] = _mm512_setzero_ps();
        if (raw) {
            factor[v] = _mm512_loadu_ps(step + i);
            const __m512 sine = _mm512_loadu_ps(step + half + i);
            const __m512 half_factor = _mm512_mul_ps(factor[v], _mm512_set1_ps(0.5f));
            dx[v] = _mm512_fmadd_ps(half_factor, x[v], _mm512_mul_ps(sine, y[v]));
            dy[v] = _mm512_fmsub_ps(half_factor, y[v], _mm512_mul_ps(sine, x[v]));
        }
        if (by_channel) {
            prefetch_channels_avx512(block, i, head_dim, type);
            prefetch_channels_avx512(block, half + i, head_dim, type);
            const __m512 scale_x = channel_scales_avx512(block, i, head_dim, type);
            const __m512 scale_y = channel_scales_avx512(block, half + i, head_dim, type);
            x[v] = _mm512_mul_ps(x[v], scale_x);
            y[v] = _mm512_mul_ps(y[v], scale_y);
            dx[v] = _mm512_mul_ps(dx[v], scale_x);
            dy[v] = _mm512_mul_ps(dy[v], scale_y);
        }
        if (type == C_Q4_CH) {
            zx[v] = channel_zeros_avx512(block, i, head_dim);
            zy[v] = channel_zeros_avx512(block, half + i, head_dim);
        }
    }
    const int64_t row_bytes = cache_row_bytes(type, head_dim);
    const int64_t apart = group_of(block, 0, half / 32, head_dim, type) - (const uint8_t *)block;
    const uint8_t *row = group_of(block, first, g0, head_dim, type);
    const float *scale = slot_scales + g0 * SLOTS;
    for (int j = 0; j < n; j += 4) {
        __m512 p[4];
        _Pragma("GCC unroll 4") for (int r = 0; r < 4; r++) {
            __m512 sum_x = _mm512_setzero_ps(), sum_y = _mm512_setzero_ps();
            prefetch_next(row, block_bytes);
            if (next != NEXT_BY_LINE || apart >= 64) prefetch_next(row + apart, block_bytes);
            _Pragma("GCC unroll 2") for (int g = 0; g < n_g; g++) {
                const int64_t group_bytes = type == C_Q8_0 || type == C_Q8_CH ? 32 : 16;
                __m512 a[2], b[2];
                load_group_avx512(row + g * group_bytes, a, type);
                load_group_avx512(row + apart + g * group_bytes, b, type);
                if (type == C_Q4_CH)
                    for (int v = 0; v < 2; v++) {
                        a[v] = _mm512_add_ps(a[v], zx[2 * g + v]);
                        b[v] = _mm512_add_ps(b[v], zy[2 * g + v]);
                    }
                if (by_channel) {
                    sum_x = _mm512_fmadd_ps(a[0], x[2 * g], sum_x);
                    sum_y = _mm512_fmadd_ps(b[0], y[2 * g], sum_y);
                    sum_x = _mm512_fmadd_ps(a[1], x[2 * g + 1], sum_x);
                    sum_y = _mm512_fmadd_ps(b[1], y[2 * g + 1], sum_y);
                } else {
                    const __m512 of_x =
                        _mm512_fmadd_ps(a[1], x[2 * g + 1], _mm512_mul_ps(a[0], x[2 * g]));
                    const __m512 of_y =
                        _mm512_fmadd_ps(b[1], y[2 * g + 1], _mm512_mul_ps(b[0], y[2 * g]));
                    sum_x = _mm512_fmadd_ps(of_x, _mm512_set1_ps(scale[g * SLOTS]), sum_x);
                    sum_y =
                        _mm512_fmadd_ps(of_y, _mm512_set1_ps(scale[g * SLOTS + half]), sum_y);
                }
            }
            if (raw)
                FOR_EACH_VECTOR(v) {
                    dx[v] = _mm512_fnmadd_ps(factor[v], x[v], dx[v]);
                    dy[v] = _mm512_fnmadd_ps(factor[v], y[v], dy[v]);
                    x[v] = _mm512_add_ps(x[v], dx[v]);
                    y[v] = _mm512_add_ps(y[v], dy[v]);
                }
            p[r] = _mm512_add_ps(sum_x, sum_y);
            scale++;
            /* The row behind the last key is read if it is in the block, and not used. */
            if (first + j + r + 1 < SLOTS) row += row_bytes;
        }
        fours[j / 4] = _mm512_add_ps(fours[j / 4], sum_4_avx512(p));
    }
}

/* `step` is that of the RoPE table; not used for keys that are rotated already. */
ALWAYS_INLINE void block_scores_rows_avx512(const float *q, const void *block, int first, int n,
                                            int64_t head_dim, const float *step, float *s,
                                            const int type, const int raw, const int next) {
    float slot_scales[SLOTS * MAX_HEAD_DIM / 32];
    __m512 fours[SLOTS / 4];
    if (type < C_Q8_CH) slot_scales_avx512(block, first, n, head_dim, NULL, slot_scales, type);
    for (int j = 0; j < SLOTS / 4; j++) fours[j] = _mm512_setzero_ps();
    int64_t g = 0;
    for (; g + 2 <= head_dim / 64; g += 2)
        block_scores_groups_avx512(q, block, first, n, head_dim, step, g, 2, slot_scales, fours,
                                   type, raw, next);
    for (; g < head_dim / 64; g++)
        block_scores_groups_avx512(q, block, first, n, head_dim, step, g, 1, slot_scales, fours,
                                   type, raw, next);
    _mm512_storeu_ps(s, sum_quarters_avx512(fours));
    if (n > 16) _mm512_storeu_ps(s + 16, sum_quarters_avx512(fours + 4));
}

/* n_g groups of 32 channels from g0 on */
ALWAYS_INLINE void block_weighted_sum_groups_avx512(const float *s, const void *block, int first,
                                                    int n, int64_t head_dim, int64_t g0,
                                                    const int n_g, const float *weights,
                                                    float total, float *acc, const int type,
                                                    const int next) {
    const int n_v = 2 * n_g, by_channel = type >= C_Q8_CH;
    __m512 sum[8];
    FOR_EACH_VECTOR(v)
        sum[v] = by_channel ? _mm512_setzero_ps() : _mm512_loadu_ps(acc + 32 * g0 + 16 * v);
    const int64_t block_bytes = cache_block_bytes(type, head_dim);
    for (int j = 0; j < n; j++)
        _Pragma("GCC unroll 4") for (int g = 0; g < n_g; g++) {
            __m512 x[2];
            /* A line holds 2 groups of bytes or 4 of nibbles; Intel's tile has nibbles here. */
            if (g % (next == NEXT_BY_LINE ? 4 : 2) == 0)
                prefetch_next(group_of(block, first + j, g0 + g, head_dim, type), block_bytes);
            load_group_avx512(group_of(block, first + j, g0 + g, head_dim, type), x, type);
            const __m512 weight =
                _mm512_set1_ps(by_channel ? s[j] : weights[(g0 + g) * SLOTS + j]);
            sum[2 * g] = _mm512_fmadd_ps(x[0], weight, sum[2 * g]);
            sum[2 * g + 1] = _mm512_fmadd_ps(x[1], weight, sum[2 * g + 1]);
        }
    FOR_EACH_VECTOR(v) {
        const int64_t i = 32 * g0 + 16 * v;
        if (by_channel) {
            prefetch_channels_avx512(block, i, head_dim, type);
            if (type == C_Q4_CH)
                sum[v] = _mm512_fmadd_ps(_mm512_set1_ps(total),
                                         channel_zeros_avx512(block, i, head_dim), sum[v]);
            sum[v] = _mm512_fmadd_ps(sum[v], channel_scales_avx512(block, i, head_dim, type),
                                     _mm512_loadu_ps(acc + i));
        }
        _mm512_storeu_ps(acc + i, sum[v]);
    }
}

/* Weights as numbers of 16 bits, in two vectors of bytes. There are 64 channels; the second half of
 * them has other weights than the first. w[0] and w[1] are those of slots 0..15 and 16..31 for the
 * first half, w[2] and w[3] for the second; bytes 0..31 of *high and *low are the first half's.
 * Returns what 1 of the sums stands for; 0 if there is no weight, NaN if one is NaN. */
ALWAYS_INLINE float split_weights_avx512(const __m512 w_f32x16[4], __m512i *high, __m512i *low) {
    static const uint8_t PICK[64] = {
        0,  4,  8,  12, 16, 20, 24, 28, 32, 36, 40, 44,  48,  52,  56,  60,
        2,  6,  10, 14, 18, 22, 26, 30, 34, 38, 42, 46,  50,  54,  58,  62,
        64, 68, 72, 76, 80, 84, 88, 92, 96, 100, 104, 108, 112, 116, 120, 124,
        66, 70, 74, 78, 82, 86, 90, 94, 98, 102, 106, 110, 114, 118, 122, 126,
    };
    const __m512 *w = w_f32x16;
    __m512i max_i32x16 = _mm512_setzero_si512(); /* see magnitude_bits */
    for (int h = 0; h < 4; h++)
        max_i32x16 = _mm512_max_epi32(max_i32x16, _mm512_castps_si512(_mm512_abs_ps(w[h])));
    const float max = float_of_bits(_mm512_reduce_max_epi32(max_i32x16));
    if (max == 0) return 0;
    const __m512 by = _mm512_set1_ps(65535.0f / max);
    __m512i u[4]; /* 32 bits each, of which 16 are used */
    for (int h = 0; h < 4; h++) u[h] = _mm512_cvtps_epi32(_mm512_mul_ps(w[h], by));
    const __m512i first = _mm512_or_si512(u[0], _mm512_slli_epi32(u[1], 16));
    const __m512i second = _mm512_or_si512(u[2], _mm512_slli_epi32(u[3], 16));
    const __m512i pick = _mm512_loadu_si512(PICK);
    *low = _mm512_permutex2var_epi8(first, pick, second);
    *high = _mm512_permutex2var_epi8(first, _mm512_or_si512(pick, _mm512_set1_epi8(1)), second);
    return max / 65535.0f;
}

/* Values of 8 bits are summed as whole numbers: weights (32 channels of q8_0 have their own) become
 * numbers of 16 bits in two bytes, and a 32-bit sum takes four positions of a channel at once. That
 * is a third of the operations of float sums. A weight loses what is below 2^-17 of the largest.
 * head_dim divides by 64. */
ALWAYS_INLINE void block_weighted_sum_bytes_avx512(const float *s, const void *block, int first,
                                                   int n, int64_t head_dim, float *acc,
                                                   const int type, const int next) {
    const int64_t block_bytes = cache_block_bytes(type, head_dim);
    const f16_t *scales = scales_of(block, head_dim, type);
    const __mmask16 lanes[2] = {first_lanes_avx512(n), n > 16 ? first_lanes_avx512(n - 16) : 0};
    const __m512i halves = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 8, 8, 8, 8, 8, 8, 8, 8);
    __m512 weight_of[2], w[4];
    __m512i high, low;
    float back = 0;
    for (int h = 0; h < 2; h++) weight_of[h] = _mm512_maskz_loadu_ps(lanes[h], s + 16 * h);
    if (type == C_Q8_CH) {
        for (int h = 0; h < 4; h++) w[h] = weight_of[h % 2];
        back = split_weights_avx512(w, &high, &low);
        if (back == 0) return;
    }
    for (int64_t i = 0; i < head_dim; i += 64) {
        if (type == C_Q8_0) {
            for (int h = 0; h < 4; h++) {
                const f16_t *of = scales + (i / 32 + h / 2) * SLOTS;
                if (h % 2 == 0) prefetch_next(of, block_bytes);
                const __m512 scale =
                    load_lanes_avx512(of, first + h % 2 * 16, lanes[h % 2], 0);
                w[h] = _mm512_mul_ps(scale, weight_of[h % 2]);
            }
            back = split_weights_avx512(w, &high, &low);
            if (back == 0) continue;
        }
        /* sum[x], 128 bits each: channels 4x.. of 16 l.., l = 0..3 */
        __m512i sum_high[4], sum_low[4];
        for (int x = 0; x < 4; x++) sum_high[x] = sum_low[x] = _mm512_setzero_si512();
        __m512i which = halves;
        for (int j = 0; j < n; j += 4) {
            __m512i row[4], pair[4], four[4];
            for (int r = 0; r < 4; r++) { /* rows behind the last one have weight 0 */
                const int slot = first + j + r < SLOTS ? first + j + r : SLOTS - 1;
                const uint8_t *p = (const uint8_t *)block + slot * head_dim + i;
                /* q8_0 on Intel's cores: 25 ns a key and value in this order, 28 in the walk's */
                const uint8_t *in_order = (const uint8_t *)block + SLOTS * i + 64 * (j + r);
                prefetch_next(next == NEXT_BY_LINE ? in_order : p, block_bytes);
                row[r] = _mm512_loadu_si512(p);
            }
            for (int r = 0; r < 4; r += 2) {
                pair[r] = _mm512_unpacklo_epi8(row[r], row[r + 1]);
                pair[r + 1] = _mm512_unpackhi_epi8(row[r], row[r + 1]);
            }
            for (int x = 0; x < 2; x++) {
                four[2 * x] = _mm512_unpacklo_epi16(pair[x], pair[2 + x]);
                four[2 * x + 1] = _mm512_unpackhi_epi16(pair[x], pair[2 + x]);
            }
            const __m512i w_high = _mm512_permutexvar_epi32(which, high);
            const __m512i w_low = _mm512_permutexvar_epi32(which, low);
            which = _mm512_add_epi32(which, _mm512_set1_epi32(1));
            for (int x = 0; x < 4; x++) {
                sum_high[x] = _mm512_dpbusd_epi32(sum_high[x], w_high, four[x]);
                sum_low[x] = _mm512_dpbusd_epi32(sum_low[x], w_low, four[x]);
            }
        }
        __m512 sum[4], mixed[4];
        for (int x = 0; x < 4; x++)
            sum[x] = _mm512_cvtepi32_ps(
                _mm512_add_epi32(_mm512_slli_epi32(sum_high[x], 8), sum_low[x]));
        for (int x = 0; x < 4; x += 2) {
            mixed[x] = _mm512_shuffle_f32x4(sum[x], sum[x + 1], 0x44);
            mixed[x + 1] = _mm512_shuffle_f32x4(sum[x], sum[x + 1], 0xee);
        }
        for (int l = 0; l < 4; l++) { /* channels 16 l.. */
            const __m512 of = l % 2 ? _mm512_shuffle_f32x4(mixed[l / 2], mixed[2 + l / 2], 0xdd)
                                    : _mm512_shuffle_f32x4(mixed[l / 2], mixed[2 + l / 2], 0x88);
            float *to = acc + i + 16 * l;
            __m512 scale = _mm512_set1_ps(back);
            if (type == C_Q8_CH) {
                prefetch_next(scales + i + 16 * l, block_bytes);
                scale = _mm512_mul_ps(scale, load_f16_avx512(scales + i + 16 * l));
            }
            _mm512_storeu_ps(to, _mm512_fmadd_ps(of, scale, _mm512_loadu_ps(to)));
        }
    }
}

ALWAYS_INLINE void block_weighted_sum_rows_avx512(const float *s, const void *block, int first,
                                                  int n, int64_t head_dim, float *acc,
                                                  const int type, const int next) {
    float weights[SLOTS * MAX_HEAD_DIM / 32], total = 0;
    if ((type == C_Q8_0 || type == C_Q8_CH) && head_dim % 64 == 0) {
        block_weighted_sum_bytes_avx512(s, block, first, n, head_dim, acc, type, next);
        return;
    }
    if (type < C_Q8_CH) slot_scales_avx512(block, first, n, head_dim, s, weights, type);
    for (int j = 0; j < n; j++) total += s[j];
    int64_t g = 0;
    for (; g + 4 <= head_dim / 32; g += 4)
        block_weighted_sum_groups_avx512(s, block, first, n, head_dim, g, 4, weights, total, acc,
                                         type, next);
    for (; g < head_dim / 32; g++)
        block_weighted_sum_groups_avx512(s, block, first, n, head_dim, g, 1, weights, total, acc,
                                         type, next);
}

ALWAYS_INLINE void block_scores_avx512(const float *q, const void *block, int first, int n,
                                       int64_t head_dim, const rope_t *rope, float *s,
                                       const int raw, const int type) {
    const float *step = raw ? rope->step : NULL;
    block_scores_rows_avx512(q, block, first, n, head_dim, step, s, type, raw, NEXT_AS_READ);
}

ALWAYS_INLINE void block_weighted_sum_avx512(const float *s, const void *block, int first, int n,
                                             int64_t head_dim, float *acc, const int type) {
    block_weighted_sum_rows_avx512(s, block, first, n, head_dim, acc, type, NEXT_AS_READ);
}

ALWAYS_INLINE void block_scores_avx512_intel(const float *q, const void *block, int first, int n,
                                             int64_t head_dim, const rope_t *rope, float *s,
                                             const int raw, const int type) {
    const float *step = raw ? rope->step : NULL;
#define SCORES(d) block_scores_rows_avx512(q, block, first, n, d, step, s, type, raw, NEXT_BY_LINE)
    BY_HEAD_DIM_AVX512(SCORES,
                       block_scores_avx512(q, block, first, n, head_dim, rope, s, raw, type))
#undef SCORES
}

ALWAYS_INLINE void block_weighted_sum_avx512_intel(const float *s, const void *block, int first,
                                                   int n, int64_t head_dim, float *acc,
                                                   const int type) {
#define WEIGHTED_SUM(d) \
    block_weighted_sum_rows_avx512(s, block, first, n, d, acc, type, NEXT_BY_LINE)
    BY_HEAD_DIM_AVX512(WEIGHTED_SUM,
                       block_weighted_sum_avx512(s, block, first, n, head_dim, acc, type))
#undef WEIGHTED_SUM
}

ALWAYS_INLINE void quantize_avx512(const float *x, int slot, int64_t head_dim, void *block,
                                   const int type) {
    if (type == C_Q4_CH)
        quantize_channels_avx2(x, head_dim, block);
    else
        quantize_scalar(x, slot, head_dim, block, type);
}

FOR_CACHE_TYPES(CACHE_PRODUCTS, avx512)
FOR_CACHE_TYPES(CACHE_CONVERSIONS, avx512)
FOR_CACHE_TYPES(CACHE_PRODUCTS, avx512_intel)

static void use_cache_avx512(kernels_t *k) {
    FOR_CACHE_TYPES(USE_CACHE_PRODUCTS, avx512)
    FOR_CACHE_TYPES(USE_CACHE_CONVERSIONS, avx512)
}

/* On top of use_cache_avx512 */
static void use_cache_avx512_intel(kernels_t *k) {
    FOR_CACHE_TYPES(USE_CACHE_PRODUCTS, avx512_intel)
}

#endif
