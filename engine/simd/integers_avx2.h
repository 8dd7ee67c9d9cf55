/* Weights of every type to bytes and floats, for AVX2 with F16C.
 *
 * The 16 rows of a 64-byte vector are two halves of 8.
 */
#ifndef LARIAT_INTEGERS_AVX2_H
#define LARIAT_INTEGERS_AVX2_H

#include <immintrin.h>

#include "unpack.h"

#define FOR_BOTH_HALVES _Pragma("GCC unroll 2") for (int h = 0; h < 2; h++)

typedef struct {
    __m256 half[2]; /* rows 0..7, rows 8..15 */
} rows_f32x16_avx2;

ALWAYS_INLINE __m256 load_8_f16_avx2(const f16_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}

ALWAYS_INLINE __m256i load_half_avx2(const uint8_t *vector, int h) {
    return _mm256_loadu_si256((const __m256i *)(vector + 32 * h));
}

/* ---- scales ---- */

/* Half of 2^(e - 127). e = 0 means 2^-127, which as a float is subnormal. */
ALWAYS_INLINE __m256 load_8_e8m0_avx2(const uint8_t *p) {
    const __m256i e = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
    const __m256i bits =
        _mm256_max_epu32(_mm256_slli_epi32(e, 23), _mm256_set1_epi32(0x00400000));
    return _mm256_mul_ps(_mm256_castsi256_ps(bits), _mm256_set1_ps(0.5f));
}

ALWAYS_INLINE rows_f32x16_avx2 load_scales_avx2(const void *scales, const int type) {
    switch (WEIGHT_TYPES[type].scale) {
    case SCALE_E8M0: {
        const uint8_t *p = scales;
        return (rows_f32x16_avx2){{load_8_e8m0_avx2(p), load_8_e8m0_avx2(p + 8)}};
    }
    case SCALE_F32: {
        const float *p = scales;
        return (rows_f32x16_avx2){{_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}};
    }
    default: {
        const f16_t *p = scales;
        return (rows_f32x16_avx2){{load_8_f16_avx2(p), load_8_f16_avx2(p + 8)}};
    }
    }
}

/* d or m of 16 rows, times their factors in a super-block */
ALWAYS_INLINE rows_f32x16_avx2 scaled_avx2(const void *scales, const int8_t *factor,
                                           const int type) {
    rows_f32x16_avx2 rows = load_scales_avx2(scales, type);
    if (!has_factors(type)) return rows;
    FOR_BOTH_HALVES {
        const __m128i bytes = _mm_loadl_epi64((const __m128i *)(factor + 8 * h));
        rows.half[h] =
            _mm256_mul_ps(rows.half[h], _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)));
    }
    return rows;
}

/* ---- integers ---- */

/* Bytes of t moved by n bits, up if n > 0; the caller masks what crosses a byte's border. */
ALWAYS_INLINE __m256i shift_avx2(__m256i t, const int n) {
    return n > 0 ? _mm256_slli_epi16(t, n) : n < 0 ? _mm256_srli_epi16(t, -n) : t;
}

ALWAYS_INLINE __m256i planes_avx2(block_x16 block, const int type, const int v, int h) {
    const int n = low_bits(type);
    const __m256i low = shift_avx2(load_half_avx2(vector_of(block.low, v % n), h), -n * (v / n));
    const __m256i q = _mm256_and_si256(low, _mm256_set1_epi8((1 << n) - 1));
    if (!high_bits(type)) return q;
    const __m256i high = shift_avx2(load_half_avx2(block.high, h), n - v);
    return _mm256_or_si256(q, _mm256_and_si256(high, _mm256_set1_epi8(1 << n)));
}

ALWAYS_INLINE __m256i sixes_avx2(block_x16 block, const int v, int h) {
    const uint8_t *three = vector_of(block.low, v / 4 * 3);
    const __m256i low = _mm256_set1_epi8(3);
    if (v % 4 < 3)
        return _mm256_and_si256(load_half_avx2(three + 64 * (v % 4), h), _mm256_set1_epi8(63));
    const __m256i top = _mm256_srli_epi16(load_half_avx2(three, h), 2);
    const __m256i middle = _mm256_srli_epi16(load_half_avx2(three + 64, h), 4);
    const __m256i bottom = _mm256_srli_epi16(load_half_avx2(three + 128, h), 6);
    return _mm256_or_si256(_mm256_and_si256(top, _mm256_slli_epi16(low, 4)),
                           _mm256_or_si256(_mm256_and_si256(middle, _mm256_slli_epi16(low, 2)),
                                           _mm256_and_si256(bottom, low)));
}

/* Of part 2i (odd: 0) or 2i + 1 of a pair */
ALWAYS_INLINE __m256i pairs_avx2(block_x16 block, const int type, const int odd, const int v,
                                 int h) {
    const __m256i t = load_half_avx2(vector_of(block.low, v), h);
    if (!high_bits(type))
        return _mm256_and_si256(shift_avx2(t, odd ? -4 : 0), _mm256_set1_epi8(15));
    if (!odd) return _mm256_and_si256(t, _mm256_set1_epi8(31));
    const __m256i low =
        shift_avx2(load_half_avx2(vector_of(block.high, v / 4), h), -2 * (v % 4));
    return _mm256_or_si256(_mm256_and_si256(shift_avx2(t, -3), _mm256_set1_epi8(28)),
                           _mm256_and_si256(low, _mm256_set1_epi8(3)));
}

/* Whether the integers are signed here: eight bits would overflow the sums of pairs, so they are
 * multiplied as |w| * (sign(w) q). */
ALWAYS_INLINE int is_signed_avx2(const int type) {
    return layout_of(type) == BYTES || largest_of(type) > 127;
}

/* The numbers that integers count, raised by the offset unless they are signed here */
ALWAYS_INLINE __m256i steps_avx2(__m256i q, const int type) {
    const __m128i steps = _mm_loadu_si128((const __m128i *)WEIGHT_TYPES[type].steps);
    const int raised_by = is_signed_avx2(type) ? 0 : offset_of(type);
    const __m128i raised = _mm_add_epi8(steps, _mm_set1_epi8((char)raised_by));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(raised), q);
}

/* Vector v of a block's integers, half h of the rows: byte 4r + j is row r, column 4v + j. */
ALWAYS_INLINE __m256i integers_avx2(block_x16 block, const int type, const int v, int h) {
    __m256i q;
    switch (layout_of(type)) {
    case SIXES: return sixes_avx2(block, v, h);
    case PAIRS:
        return block.part % 2 ? pairs_avx2(block, type, 1, v, h) : pairs_avx2(block, type, 0, v, h);
    case BYTES:
        q = load_half_avx2(vector_of(block.low, v), h);
        return _mm256_xor_si256(q, _mm256_set1_epi8((char)0x80));
    default:
        q = planes_avx2(block, type, v, h);
        return has_steps(type) ? steps_avx2(q, type) : q;
    }
}

#undef FOR_BOTH_HALVES
#endif
