/* Quantized keys and values for AVX2. cache_q_scalar.h says what the layouts and operations are,
 * cache_q_avx512.h where the scales go. A step takes half a group, 16 channels, two vectors. A byte
 * becomes a float by two instructions, of which one starts in a cycle: that bounds these tiles. */
#ifndef LARIAT_CACHE_Q_AVX2_H
#define LARIAT_CACHE_Q_AVX2_H

#include <immintrin.h>

#include "attention_avx2.h"
#include "cache_q_scalar.h"
#include "fetch.h"

/* Bytes 0..7 (v = 0) or 8..15 of 16 that stand in both halves of a vector. Each becomes byte `to`
 * of 32 bits. */
ALWAYS_INLINE __m256i spread_avx2(__m256i bytes, const int v, const int to) {
    const int by = 1 << 8 * to, none = (int)(0x80808080u & ~(0xffu << 8 * to)), i = 8 * v;
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

/* Nibbles with a sign are used at the top of 32 bits, so a number of q4_0 is loaded times a power
 * of two. This is the inverse of that power. */
ALWAYS_INLINE float loaded_scale_avx2(const int type) {
    return type == C_Q4_0 ? 0x1p-28f : 1.0f;
}

/* A nibble of q4_ch is put into the mantissa of 1 or 16, so nothing converts it: the float is
 * (BASE + number) / NIBBLE_UNIT. Scale and zero point take that back in one multiply-add. */
enum { NIBBLE_UNIT = 128, LOW_BASE = 128, HIGH_BASE = 16 * 128 };

/* `part` is 0 for the first 16 numbers of a group of 32, 1 for the last. Those of q4_0 are times a
 * power of two, those of q4_ch as said above. */
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
    else bytes = _mm256_and_si256(bytes, _mm256_set1_epi8((char)(part ? 0xf0 : 15)));
    for (int v = 0; v < 2; v++) {
        __m256i q_i32x8 = spread_avx2(bytes, v, type == C_Q4_0 ? 3 : part ? 1 : 2);
        if (type == C_Q4_CH) {
            x[v] = _mm256_or_ps(_mm256_castsi256_ps(q_i32x8), _mm256_set1_ps(part ? 16 : 1));
            continue;
        }
        q_i32x8 = part ? _mm256_and_si256(q_i32x8, _mm256_set1_epi32((int)0xf0000000))
                       : _mm256_slli_epi32(q_i32x8, 4);
        x[v] = _mm256_cvtepi32_ps(q_i32x8);
    }
}

ALWAYS_INLINE __m256 load_f16_avx2(const f16_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}

/* Scales of channels i..i + 7 */
ALWAYS_INLINE __m256 channel_scales_avx2(const void *block, int64_t i, int64_t head_dim,
                                         const int type) {
    if (type == C_Q8_CH) return load_f16_avx2(scales_of(block, head_dim, type) + i);
    const __m128i bytes = _mm_loadl_epi64((const __m128i *)(channel_bytes_of(block, head_dim) + i));
    const __m128i scale_f16x8 = _mm_slli_epi16(_mm_cvtepu8_epi16(bytes), 7);
    return _mm256_mul_ps(_mm256_cvtph_ps(scale_f16x8), _mm256_set1_ps(0.25f));
}

/* Zero points of q4_ch: see zero_of_byte. */
ALWAYS_INLINE __m256 channel_zeros_avx2(const void *block, int64_t i, int64_t head_dim) {
    const uint8_t *bytes = channel_bytes_of(block, head_dim) + head_dim + i;
    const __m256 c =
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)bytes)));
    const __m256 size = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), c);
    return _mm256_fmsub_ps(_mm256_mul_ps(c, _mm256_add_ps(size, _mm256_set1_ps(64.0f))),
                           _mm256_set1_ps(0x1p-8f), _mm256_set1_ps(7.5f));
}

/* Asks for what stands behind the rows about channels i..: 32 in a line, 64 of q4_ch */
ALWAYS_INLINE void fetch_channels_avx2(const void *block, int64_t i, int64_t head_dim,
                                       const int type) {
    if (type == C_Q8_CH) fetch_line_avx2(scales_of(block, head_dim, type) + i, head_dim, type);
    if (type != C_Q4_CH) return;
    fetch_line_avx2(channel_bytes_of(block, head_dim) + i, head_dim, type);
    fetch_line_avx2(channel_bytes_of(block, head_dim) + head_dim + i, head_dim, type);
}

/* Scales of n slots, [head_dim / 32][SLOTS], for numbers as they are loaded */
ALWAYS_INLINE void slot_scales_avx2(const void *block, int first, int n, int64_t head_dim,
                                    float *out, const int type) {
    const __m256 by = _mm256_set1_ps(loaded_scale_avx2(type));
    for (int64_t g = 0; g < head_dim / 32; g++, out += SLOTS) {
        const f16_t *scales = scales_of(block, head_dim, type) + g * SLOTS;
        fetch_line_avx2(scales, head_dim, type);
        for (int j = 0; j < n; j += 8) {
            const __m256 scale = load_up_to_avx2(scales, first + j, SLOTS, 0, 0);
            _mm256_storeu_ps(out + j, _mm256_mul_ps(scale, by));
        }
    }
}

/* What becomes of a number of a block as it is loaded: number * scale, and for q4_ch + offset. The
 * result is exact, so a product with it has the bits of one with the number as float. */
typedef struct {
    float slot_scales[SLOTS * MAX_HEAD_DIM / 32];      /* types by row */
    float scales[MAX_HEAD_DIM], offsets[MAX_HEAD_DIM]; /* types by channel */
} scales_avx2_t;

ALWAYS_INLINE void load_channels_avx2(const void *block, int first, int n, int64_t head_dim,
                                      scales_avx2_t *of, const int type) {
    if (type < C_Q8_CH) {
        slot_scales_avx2(block, first, n, head_dim, of->slot_scales, type);
        return;
    }
    for (int64_t i = 0; i < head_dim; i += 8) {
        if (type == C_Q8_CH ? i % 32 == 0 : i % 64 == 0)
            fetch_channels_avx2(block, i, head_dim, type);
        __m256 scale = channel_scales_avx2(block, i, head_dim, type);
        if (type == C_Q4_CH) {
            const __m256 base = _mm256_set1_ps(i % 32 < 16 ? LOW_BASE : HIGH_BASE);
            const __m256 zero = channel_zeros_avx2(block, i, head_dim);
            _mm256_storeu_ps(of->offsets + i, _mm256_mul_ps(_mm256_sub_ps(zero, base), scale));
            scale = _mm256_mul_ps(scale, _mm256_set1_ps(NIBBLE_UNIT));
        }
        _mm256_storeu_ps(of->scales + i, scale);
    }
}

/* Channels i..i + 15 of slot j (counted from the first one that is read) as float */
ALWAYS_INLINE void values_16_avx2(const uint8_t *row, int64_t j, int64_t i, const scales_avx2_t *of,
                                  __m256 x[2], const int type) {
    const int is_byte = type == C_Q8_0 || type == C_Q8_CH;
    load_half_group_avx2(row + i / 32 * (is_byte ? 32 : 16), (int)(i % 32 / 16), x, type);
    _Pragma("GCC unroll 2") for (int v = 0; v < 2; v++) {
        const __m256 scale = type >= C_Q8_CH
                                 ? _mm256_loadu_ps(of->scales + i + 8 * v)
                                 : _mm256_set1_ps(of->slot_scales[i / 32 * SLOTS + j]);
        x[v] = type == C_Q4_CH
                   ? _mm256_fmadd_ps(x[v], scale, _mm256_loadu_ps(of->offsets + i + 8 * v))
                   : _mm256_mul_ps(x[v], scale);
    }
}

ALWAYS_INLINE void dequantize_avx2(const void *block, int first, int n, int64_t head_dim,
                                   float *out, const int type) {
    const int64_t row_bytes = cache_row_bytes(type, head_dim);
    scales_avx2_t of;
    load_channels_avx2(block, first, n, head_dim, &of, type);
    for (int64_t j = 0; j < n; j++)
        for (int64_t i = 0; i < head_dim; i += 16, out += 16) {
            __m256 x[2];
            values_16_avx2((const uint8_t *)block + (first + j) * row_bytes, j, i, &of, x, type);
            _mm256_storeu_ps(out, x[0]);
            _mm256_storeu_ps(out + 8, x[1]);
        }
}

/* One query against keys that are made float on their way. The sums are those of scores_rows_avx2
 * over float keys. Raw keys are rotated by `rows`; then head_dim divides by 64. */
ALWAYS_INLINE void block_scores_rows_avx2(const float *q, const void *block, int first, int n,
                                          int64_t head_dim, const float *rows, float *s,
                                          const int raw, const int type) {
    const int64_t half = head_dim / 2, end = raw ? half : head_dim;
    const int64_t row_bytes = cache_row_bytes(type, head_dim);
    scales_avx2_t of;
    load_channels_avx2(block, first, n, head_dim, &of, type);
    const uint8_t *rows_of_block = (const uint8_t *)block + first * row_bytes;
    for (int j0 = 0; j0 < n; j0 += 8) {
        __m256 sum[8];
        int64_t slot[8];
        for (int o = 0; o < 8; o++) {
            sum[o] = _mm256_setzero_ps();
            slot[o] = j0 + o < n ? j0 + o : n - 1;
        }
        for (int64_t i = 0; i < end; i += 16)
            _Pragma("GCC unroll 8") for (int o = 0; o < 8; o++) {
                const int64_t j = slot[o];
                __m256 x[2], y[2];
                fetch_step_avx2(block, j0 * (end / 16) + i / 2 + o, (int)(16 * row_bytes / end),
                                head_dim, type);
                values_16_avx2(rows_of_block + j * row_bytes, j, i, &of, x, type);
                if (raw) values_16_avx2(rows_of_block + j * row_bytes, j, half + i, &of, y, type);
                _Pragma("GCC unroll 2") for (int v = 0; v < 2; v++) {
                    const int64_t at = i + 8 * v;
                    if (raw) {
                        const __m256 cosine = _mm256_loadu_ps(rows + j * head_dim + at);
                        const __m256 sine = _mm256_loadu_ps(rows + j * head_dim + half + at);
                        const __m256 a = x[v], b = y[v];
                        x[v] = _mm256_fmsub_ps(a, cosine, _mm256_mul_ps(b, sine));
                        y[v] = _mm256_fmadd_ps(a, sine, _mm256_mul_ps(b, cosine));
                    }
                    sum[o] = _mm256_fmadd_ps(x[v], _mm256_loadu_ps(q + at), sum[o]);
                    if (raw) sum[o] = _mm256_fmadd_ps(y[v], _mm256_loadu_ps(q + half + at), sum[o]);
                }
            }
        _mm256_storeu_ps(s + j0, sum_8_avx2(sum));
    }
}

/* n_g groups of 32 channels from g0 on */
ALWAYS_INLINE void block_weighted_sum_groups_avx2(const float *s, const void *block, int first,
                                                  int n, int64_t head_dim, int64_t g0,
                                                  const int n_g, const scales_avx2_t *of,
                                                  float *acc, const int type) {
    const int is_byte = type == C_Q8_0 || type == C_Q8_CH;
    const int64_t row_bytes = cache_row_bytes(type, head_dim);
    __m256 sum[8];
    for (int v = 0; v < 4 * n_g; v++) sum[v] = _mm256_loadu_ps(acc + 32 * g0 + 8 * v);
    for (int j = 0; j < n; j++) {
        const uint8_t *row = (const uint8_t *)block + (first + j) * row_bytes;
        const __m256 weight = _mm256_set1_ps(s[j]);
        fetch_step_avx2(block, (g0 * SLOTS) / n_g + j, n_g * (is_byte ? 32 : 16), head_dim, type);
        _Pragma("GCC unroll 4") for (int h = 0; h < 2 * n_g; h++) {
            __m256 x[2];
            values_16_avx2(row, j, 32 * g0 + 16 * h, of, x, type);
            sum[2 * h] = _mm256_fmadd_ps(x[0], weight, sum[2 * h]);
            sum[2 * h + 1] = _mm256_fmadd_ps(x[1], weight, sum[2 * h + 1]);
        }
    }
    for (int v = 0; v < 4 * n_g; v++) _mm256_storeu_ps(acc + 32 * g0 + 8 * v, sum[v]);
}

ALWAYS_INLINE void block_weighted_sum_rows_avx2(const float *s, const void *block, int first, int n,
                                                int64_t head_dim, float *acc, const int type) {
    scales_avx2_t of;
    load_channels_avx2(block, first, n, head_dim, &of, type);
    int64_t g = 0;
    /* Scales and offsets of 64 channels beside their sums would be too many registers. */
    for (; g + 2 <= head_dim / 32 && type != C_Q4_CH; g += 2)
        block_weighted_sum_groups_avx2(s, block, first, n, head_dim, g, 2, &of, acc, type);
    for (; g < head_dim / 32; g++)
        block_weighted_sum_groups_avx2(s, block, first, n, head_dim, g, 1, &of, acc, type);
}

/* See BY_HEAD_DIM_AVX2. */
#define RAW_AVX2(d) block_scores_rows_avx2(q, block, first, n, d, rope->rows, s, 1, type)
#define ROPED_AVX2(d) block_scores_rows_avx2(q, block, first, n, d, NULL, s, 0, type)
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

/* The scales that bytes stand for: see scale_of_byte. */
ALWAYS_INLINE __m256 scales_of_bytes_avx2(__m256i bytes_i32x8) {
    const __m256i is_small = _mm256_cmpgt_epi32(_mm256_set1_epi32(8), bytes_i32x8);
    const __m256i normal =
        _mm256_slli_epi32(_mm256_add_epi32(bytes_i32x8, _mm256_set1_epi32(110 << 3)), 20);
    const __m256 small = _mm256_mul_ps(_mm256_cvtepi32_ps(bytes_i32x8), _mm256_set1_ps(0x1p-19f));
    return _mm256_blendv_ps(_mm256_castsi256_ps(normal), small, _mm256_castsi256_ps(is_small));
}

/* As byte_of_scale, for finite d */
ALWAYS_INLINE __m256i bytes_of_scales_avx2(__m256 d) {
    const __m256i bits = _mm256_add_epi32(_mm256_castps_si256(d), _mm256_set1_epi32(1 << 19));
    const __m256i normal =
        _mm256_sub_epi32(_mm256_srli_epi32(bits, 20), _mm256_set1_epi32(110 << 3));
    const __m256i small = _mm256_cvttps_epi32(
        _mm256_fmadd_ps(d, _mm256_set1_ps(0x1p19f), _mm256_set1_ps(0.5f)));
    const __m256 is_small = _mm256_cmp_ps(d, _mm256_set1_ps(0x1p-16f), _CMP_LT_OQ);
    const __m256i bytes = _mm256_castps_si256(
        _mm256_blendv_ps(_mm256_castsi256_ps(normal), _mm256_castsi256_ps(small), is_small));
    return _mm256_max_epi32(bytes, _mm256_set1_epi32(1));
}

ALWAYS_INLINE __m256 zeros_of_bytes_avx2(__m256 c) {
    const __m256 size = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), c);
    return _mm256_fmsub_ps(_mm256_mul_ps(c, _mm256_add_ps(size, _mm256_set1_ps(64.0f))),
                           _mm256_set1_ps(0x1p-8f), _mm256_set1_ps(7.5f));
}

/* The level 0 to 15 next to a number, as float */
ALWAYS_INLINE __m256 levels_avx2(__m256 x, __m256 inverse, __m256 zero) {
    const __m256 level = _mm256_max_ps(_mm256_fmsub_ps(x, inverse, zero), _mm256_setzero_ps());
    return _mm256_round_ps(_mm256_min_ps(level, _mm256_set1_ps(15.0f)),
                           _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* Scales and zero points of channels i..i + 7, as bytes: see quantize_q4_ch_in_c. */
ALWAYS_INLINE void choose_scales_avx2(const float *x, int64_t head_dim, const float *weights,
                                      __m256i *scale_bytes, __m256 *zero_bytes) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 min = _mm256_loadu_ps(x), max = min, nan = _mm256_setzero_ps();
    for (int j = 0; j < SLOTS; j++) {
        const __m256 a = _mm256_loadu_ps(x + j * head_dim);
        min = _mm256_min_ps(min, a);
        max = _mm256_max_ps(max, a);
        nan = _mm256_fmadd_ps(a, _mm256_setzero_ps(), nan);
    }
    const __m256 middle = _mm256_mul_ps(_mm256_add_ps(max, min), _mm256_set1_ps(0.5f));
    const __m256 least_d =
        _mm256_mul_ps(_mm256_andnot_ps(sign, middle), _mm256_set1_ps(1.0f / 94));
    __m256 least = _mm256_setzero_ps();
    for (int size = 0; size < 4; size++) {
        const __m256 d =
            _mm256_mul_ps(_mm256_sub_ps(max, min), _mm256_set1_ps(Q4_CH_SIZES[size]));
        const __m256i bytes = bytes_of_scales_avx2(_mm256_max_ps(d, least_d));
        const __m256 scale = scales_of_bytes_avx2(bytes);
        const __m256 inverse = _mm256_div_ps(_mm256_set1_ps(1.0f), scale);
        const __m256 m = _mm256_mul_ps(middle, inverse);
        const __m256 root = _mm256_sub_ps(
            _mm256_sqrt_ps(_mm256_fmadd_ps(_mm256_andnot_ps(sign, m), _mm256_set1_ps(256.0f),
                                           _mm256_set1_ps(1024.0f))),
            _mm256_set1_ps(32.0f));
        const __m256 c0 = _mm256_round_ps(_mm256_or_ps(root, _mm256_and_ps(sign, m)),
                                          _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        for (int step = -1; step <= 1; step++) {
            __m256 c = _mm256_add_ps(c0, _mm256_set1_ps((float)step));
            c = _mm256_max_ps(_mm256_min_ps(c, _mm256_set1_ps(127.0f)), _mm256_set1_ps(-127.0f));
            const __m256 zero = zeros_of_bytes_avx2(c);
            __m256 error[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
            for (int j = 0; j < SLOTS; j += 2)
                for (int o = 0; o < 2; o++) {
                    const __m256 a = _mm256_loadu_ps(x + (j + o) * head_dim);
                    const __m256 level = levels_avx2(a, inverse, zero);
                    const __m256 off = _mm256_fnmadd_ps(scale, _mm256_add_ps(level, zero), a);
                    error[o] = _mm256_fmadd_ps(_mm256_mul_ps(off, off),
                                               _mm256_set1_ps(weights[j + o]), error[o]);
                }
            error[0] = _mm256_add_ps(error[0], error[1]);
            __m256 is_best = _mm256_cmp_ps(error[0], least, _CMP_LT_OQ);
            if (size == 0 && step == -1) is_best = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
            least = _mm256_blendv_ps(least, error[0], is_best);
            *zero_bytes = _mm256_blendv_ps(*zero_bytes, c, is_best);
            *scale_bytes = _mm256_blendv_epi8(*scale_bytes, bytes, _mm256_castps_si256(is_best));
        }
    }
    const __m256 is_zero = _mm256_and_ps(_mm256_cmp_ps(min, _mm256_setzero_ps(), _CMP_EQ_OQ),
                                         _mm256_cmp_ps(max, _mm256_setzero_ps(), _CMP_EQ_OQ));
    const __m256 is_nan = _mm256_cmp_ps(nan, nan, _CMP_UNORD_Q);
    *scale_bytes = _mm256_andnot_si256(_mm256_castps_si256(is_zero), *scale_bytes);
    *scale_bytes = _mm256_blendv_epi8(*scale_bytes, _mm256_set1_epi32(0xff),
                                      _mm256_castps_si256(is_nan));
}

/* 11 us a block of 128 channels, where the compiler's version of the plain C takes 500 */
static void quantize_channels_avx2(const float *x, int64_t head_dim, void *block) {
    uint8_t *scale_bytes = channel_bytes_of(block, head_dim), *zero_bytes = scale_bytes + head_dim;
    float weights[SLOTS];
    slot_weights(x, head_dim, weights);
    for (int64_t g = 0; g < head_dim / 32; g++) {
        int32_t levels[SLOTS][32];
        for (int v = 0; v < 4; v++) {
            const float *channels = x + 32 * g + 8 * v;
            __m256i of_scale = _mm256_setzero_si256();
            __m256 of_zero = _mm256_setzero_ps();
            int32_t scales[8], zeros[8];
            choose_scales_avx2(channels, head_dim, weights, &of_scale, &of_zero);
            _mm256_storeu_si256((__m256i *)scales, of_scale);
            _mm256_storeu_si256((__m256i *)zeros, _mm256_cvtps_epi32(of_zero));
            for (int l = 0; l < 8; l++) {
                scale_bytes[32 * g + 8 * v + l] = (uint8_t)scales[l];
                zero_bytes[32 * g + 8 * v + l] = (uint8_t)zeros[l];
            }
            const __m256 scale = scales_of_bytes_avx2(of_scale);
            const __m256 is_some = _mm256_cmp_ps(scale, _mm256_setzero_ps(), _CMP_GT_OQ);
            const __m256 inverse =
                _mm256_and_ps(_mm256_div_ps(_mm256_set1_ps(1.0f), scale), is_some);
            for (int j = 0; j < SLOTS; j++) {
                const __m256 a = _mm256_loadu_ps(channels + j * head_dim);
                const __m256 level = levels_avx2(a, inverse, zeros_of_bytes_avx2(of_zero));
                _mm256_storeu_si256((__m256i *)(levels[j] + 8 * v), _mm256_cvtps_epi32(level));
            }
        }
        for (int j = 0; j < SLOTS; j++) {
            uint8_t *q = (uint8_t *)group_of(block, j, g, head_dim, C_Q4_CH);
            for (int l = 0; l < 16; l++) q[l] = (uint8_t)(levels[j][l] | levels[j][16 + l] << 4);
        }
    }
}

ALWAYS_INLINE void quantize_avx2(const float *x, int slot, int64_t head_dim, void *block,
                                 const int type) {
    if (type == C_Q4_CH)
        quantize_channels_avx2(x, head_dim, block);
    else
        quantize_scalar(x, slot, head_dim, block, type);
}

FOR_CACHE_TYPES(CACHE_PRODUCTS, avx2)
FOR_CACHE_TYPES(CACHE_CONVERSIONS, avx2)

static void use_cache_avx2(kernels_t *k) {
    FOR_CACHE_TYPES(USE_CACHE_PRODUCTS, avx2)
    FOR_CACHE_TYPES(USE_CACHE_CONVERSIONS, avx2)
}

#endif
