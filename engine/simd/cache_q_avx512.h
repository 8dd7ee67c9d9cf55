/* Quantized keys and values for AVX-512. cache_q_scalar.h says what the layouts and operations are,
 * scores_avx512.h how raw keys are rotated.
 *
 * Numbers become float with their scales on the way into the sum. The scales of 32 channels of a
 * position are made float for the whole block first, so that each is an operand that is broadcast
 * from memory.
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

/* Scales of n slots, [head_dim / 32][SLOTS], zeros behind them */
ALWAYS_INLINE void slot_scales_avx512(const void *block, int first, int n, int64_t head_dim,
                                      float *out, const int type) {
    for (int64_t g = 0; g < head_dim / 32; g++) {
        const f16_t *scales = scales_of(block, head_dim, type) + g * SLOTS;
        prefetch_next(scales, cache_block_bytes(type, head_dim));
        for (int j = 0; j < SLOTS; j += 16, out += 16) {
            const __mmask16 lanes = j < n ? first_lanes_avx512(n - j) : 0;
            _mm512_storeu_ps(out, load_lanes_avx512(scales, first + j, lanes, 0));
        }
    }
}

/* What becomes of a number of a block as it is loaded: number * scale, and for q4_ch + offset. The
 * result is exact, so a product with it has the bits of one with the number as float. */
typedef struct {
    float slot_scales[SLOTS * MAX_HEAD_DIM / 32];      /* types by row */
    float scales[MAX_HEAD_DIM], offsets[MAX_HEAD_DIM]; /* types by channel */
} scales_avx512_t;

ALWAYS_INLINE void load_channels_avx512(const void *block, int first, int n, int64_t head_dim,
                                        scales_avx512_t *of, const int type) {
    if (type < C_Q8_CH) {
        slot_scales_avx512(block, first, n, head_dim, of->slot_scales, type);
        return;
    }
    for (int64_t i = 0; i < head_dim; i += 16) {
        prefetch_channels_avx512(block, i, head_dim, type);
        const __m512 scale = channel_scales_avx512(block, i, head_dim, type);
        _mm512_storeu_ps(of->scales + i, scale);
        if (type == C_Q4_CH)
            _mm512_storeu_ps(of->offsets + i,
                             _mm512_mul_ps(channel_zeros_avx512(block, i, head_dim), scale));
    }
}

/* Channels 32 g.. of a row as float; j counts from the first slot that is read. */
ALWAYS_INLINE void scaled_group_avx512(const uint8_t *row, int64_t j, int64_t g,
                                       const scales_avx512_t *of, __m512 x[2], const int type) {
    const int64_t group_bytes = type == C_Q8_0 || type == C_Q8_CH ? 32 : 16;
    load_group_avx512(row + g * group_bytes, x, type);
    _Pragma("GCC unroll 2") for (int v = 0; v < 2; v++) {
        const int64_t i = 32 * g + 16 * v;
        const __m512 scale = type >= C_Q8_CH ? _mm512_loadu_ps(of->scales + i)
                                             : _mm512_set1_ps(of->slot_scales[g * SLOTS + j]);
        x[v] = type == C_Q4_CH ? _mm512_fmadd_ps(x[v], scale, _mm512_loadu_ps(of->offsets + i))
                               : _mm512_mul_ps(x[v], scale);
    }
}

ALWAYS_INLINE void dequantize_avx512(const void *block, int first, int n, int64_t head_dim,
                                     float *out, const int type) {
    const int64_t row_bytes = cache_row_bytes(type, head_dim);
    scales_avx512_t of;
    load_channels_avx512(block, first, n, head_dim, &of, type);
    for (int64_t j = 0; j < n; j++)
        for (int64_t g = 0; g < head_dim / 32; g++, out += 32) {
            __m512 x[2];
            scaled_group_avx512((const uint8_t *)block + (first + j) * row_bytes, j, g, &of, x,
                                type);
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

/* One query against keys that are made float on their way. The sums are those of
 * scores_roped_avx512 and scores_rotated_avx512 over float keys. Raw keys are rotated by `rows`;
 * then head_dim divides by 64. */
ALWAYS_INLINE void block_scores_rows_avx512(const float *q, const void *block, int first, int n,
                                            int64_t head_dim, const float *rows, float *s,
                                            const int type, const int raw, const int next) {
    const int64_t half = head_dim / 2, end = raw ? half : head_dim;
    const int64_t row_bytes = cache_row_bytes(type, head_dim);
    const int64_t block_bytes = cache_block_bytes(type, head_dim);
    const int64_t group_bytes = row_bytes / (head_dim / 32), apart = row_bytes / 2;
    scales_avx512_t of;
    __m512 fours[SLOTS / 4];
    load_channels_avx512(block, first, n, head_dim, &of, type);
    for (int j = 0; j < SLOTS / 4; j++) fours[j] = _mm512_setzero_ps();
    for (int j0 = 0; j0 < n; j0 += 4) {
        __m512 p[4];
        _Pragma("GCC unroll 4") for (int r = 0; r < 4; r++) {
            const int64_t j = j0 + r < n ? j0 + r : n - 1;
            const uint8_t *row = (const uint8_t *)block + (first + j) * row_bytes;
            __m512 sum = _mm512_setzero_ps();
            for (int64_t g = 0; g < end / 32; g++) {
                __m512 x[2], y[2];
                if (next != NEXT_BY_LINE || g * group_bytes % 64 == 0)
                    prefetch_next(row + g * group_bytes, block_bytes);
                scaled_group_avx512(row, j, g, &of, x, type);
                if (raw) {
                    if (next != NEXT_BY_LINE || (apart + g * group_bytes) % 64 == 0)
                        prefetch_next(row + apart + g * group_bytes, block_bytes);
                    scaled_group_avx512(row, j, half / 32 + g, &of, y, type);
                }
                _Pragma("GCC unroll 2") for (int v = 0; v < 2; v++) {
                    const int64_t i = 32 * g + 16 * v;
                    if (raw) {
                        const float *angles = rows + j * head_dim + i;
                        const __m512 cosine = _mm512_loadu_ps(angles);
                        const __m512 sine = _mm512_loadu_ps(angles + half);
                        const __m512 a = x[v], b = y[v];
                        x[v] = _mm512_fmsub_ps(a, cosine, _mm512_mul_ps(b, sine));
                        y[v] = _mm512_fmadd_ps(a, sine, _mm512_mul_ps(b, cosine));
                    }
                    sum = _mm512_fmadd_ps(x[v], _mm512_loadu_ps(q + i), sum);
                    if (raw) sum = _mm512_fmadd_ps(y[v], _mm512_loadu_ps(q + half + i), sum);
                }
            }
            p[r] = sum;
        }
        fours[j0 / 4] = sum_4_avx512(p);
    }
    _mm512_storeu_ps(s, sum_quarters_avx512(fours));
    if (n > 16) _mm512_storeu_ps(s + 16, sum_quarters_avx512(fours + 4));
}

/* n_g groups of 32 channels from g0 on */
ALWAYS_INLINE void block_weighted_sum_groups_avx512(const float *s, const void *block, int first,
                                                    int n, int64_t head_dim, int64_t g0,
                                                    const int n_g, const scales_avx512_t *of,
                                                    float *acc, const int type, const int next) {
    const int n_v = 2 * n_g;
    const int64_t row_bytes = cache_row_bytes(type, head_dim);
    const int64_t block_bytes = cache_block_bytes(type, head_dim);
    __m512 sum[8];
    FOR_EACH_VECTOR(v) sum[v] = _mm512_loadu_ps(acc + 32 * g0 + 16 * v);
    for (int j = 0; j < n; j++) {
        const uint8_t *row = (const uint8_t *)block + (first + j) * row_bytes;
        const __m512 weight = _mm512_set1_ps(s[j]);
        _Pragma("GCC unroll 4") for (int g = 0; g < n_g; g++) {
            __m512 x[2];
            /* A line holds 2 groups of bytes or 4 of nibbles. */
            if (g % (next == NEXT_BY_LINE ? 4 : 2) == 0)
                prefetch_next(group_of(block, first + j, g0 + g, head_dim, type), block_bytes);
            scaled_group_avx512(row, j, g0 + g, of, x, type);
            sum[2 * g] = _mm512_fmadd_ps(x[0], weight, sum[2 * g]);
            sum[2 * g + 1] = _mm512_fmadd_ps(x[1], weight, sum[2 * g + 1]);
        }
    }
    FOR_EACH_VECTOR(v) _mm512_storeu_ps(acc + 32 * g0 + 16 * v, sum[v]);
}

ALWAYS_INLINE void block_weighted_sum_rows_avx512(const float *s, const void *block, int first,
                                                  int n, int64_t head_dim, float *acc,
                                                  const int type, const int next) {
    scales_avx512_t of;
    load_channels_avx512(block, first, n, head_dim, &of, type);
    int64_t g = 0;
    for (; g + 4 <= head_dim / 32; g += 4)
        block_weighted_sum_groups_avx512(s, block, first, n, head_dim, g, 4, &of, acc, type, next);
    for (; g < head_dim / 32; g++)
        block_weighted_sum_groups_avx512(s, block, first, n, head_dim, g, 1, &of, acc, type, next);
}

ALWAYS_INLINE void block_scores_avx512(const float *q, const void *block, int first, int n,
                                       int64_t head_dim, const rope_t *rope, float *s,
                                       const int raw, const int type) {
    const float *rows = raw ? rope->rows : NULL;
    block_scores_rows_avx512(q, block, first, n, head_dim, rows, s, type, raw, NEXT_AS_READ);
}

ALWAYS_INLINE void block_weighted_sum_avx512(const float *s, const void *block, int first, int n,
                                             int64_t head_dim, float *acc, const int type) {
    block_weighted_sum_rows_avx512(s, block, first, n, head_dim, acc, type, NEXT_AS_READ);
}

ALWAYS_INLINE void block_scores_avx512_intel(const float *q, const void *block, int first, int n,
                                             int64_t head_dim, const rope_t *rope, float *s,
                                             const int raw, const int type) {
    const float *rows = raw ? rope->rows : NULL;
#define SCORES(d) block_scores_rows_avx512(q, block, first, n, d, rows, s, type, raw, NEXT_BY_LINE)
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
