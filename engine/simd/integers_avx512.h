/* Weights of every type to bytes and floats, for AVX-512 (F, BW). A vector has one column's 16 rows
 * of floats, or four columns' bytes. */
#ifndef LARIAT_INTEGERS_AVX512_H
#define LARIAT_INTEGERS_AVX512_H

#include <immintrin.h>

#include "unpack.h"

/* ---- scales ---- */

ALWAYS_INLINE __m512 load_16_f16_avx512(const f16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}

/* Half of 2^(e - 127). e = 0 means 2^-127, which as a float is subnormal. */
ALWAYS_INLINE __m512 load_16_e8m0_avx512(const uint8_t *p) {
    const __m512i e = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
    const __m512i bits =
        _mm512_max_epu32(_mm512_slli_epi32(e, 23), _mm512_set1_epi32(0x00400000));
    return _mm512_mul_ps(_mm512_castsi512_ps(bits), _mm512_set1_ps(0.5f));
}

ALWAYS_INLINE __m512 load_scales_avx512(const void *scales, const int type) {
    switch (WEIGHT_TYPES[type].scale) {
    case SCALE_E8M0: return load_16_e8m0_avx512(scales);
    case SCALE_F32: return _mm512_loadu_ps(scales);
    default: return load_16_f16_avx512(scales);
    }
}

ALWAYS_INLINE __m512i load_factors_avx512(const int8_t *factor) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)factor));
}

/* d or m of 16 rows, times their factors in a super-block */
ALWAYS_INLINE __m512 scaled_avx512(const void *scales, const int8_t *factor, const int type) {
    const __m512 rows = load_scales_avx512(scales, type);
    if (!has_factors(type)) return rows;
    return _mm512_mul_ps(rows, _mm512_cvtepi32_ps(load_factors_avx512(factor)));
}

/* ---- integers ---- */

/* In vpternlogd, bit by bit: where the first operand is 1 the second, else the third */
enum { CHOOSE = 0xca };

/* Bytes of t moved by n bits, up if n > 0; the caller masks what crosses a byte's border. */
ALWAYS_INLINE __m512i shift_avx512(__m512i t, const int n) {
    return n > 0 ? _mm512_slli_epi16(t, n) : n < 0 ? _mm512_srli_epi16(t, -n) : t;
}

ALWAYS_INLINE __m512i load_vector_avx512(const void *vectors, int v) {
    return _mm512_loadu_si512(vector_of(vectors, v));
}

ALWAYS_INLINE void planes_avx512(block_x16 block, const int type, __m512i w_u8x64[8]) {
    const int n = low_bits(type);
    const __m512i mask = _mm512_set1_epi8((1 << n) - 1), bit = _mm512_set1_epi8(1 << n);
    _Pragma("GCC unroll 8")
    for (int v = 0; v < 8; v++)
        w_u8x64[v] = _mm512_and_si512(
            shift_avx512(load_vector_avx512(block.low, v % n), -n * (v / n)), mask);
    if (!high_bits(type)) return;
    const __m512i high = load_vector_avx512(block.high, 0);
    _Pragma("GCC unroll 8")
    for (int v = 0; v < 8; v++) /* w | (shifted & bit) in one operation */
        w_u8x64[v] = _mm512_ternarylogic_epi32(w_u8x64[v], shift_avx512(high, n - v), bit, 0xf8);
}

/* Integers to what they count, raised by the offset: the dot product wants them unsigned. */
ALWAYS_INLINE void steps_avx512(const int type, __m512i w_u8x64[8]) {
    const __m128i steps = _mm_loadu_si128((const __m128i *)WEIGHT_TYPES[type].steps);
    const __m128i raised = _mm_add_epi8(steps, _mm_set1_epi8((char)offset_of(type)));
    const __m512i table = _mm512_broadcast_i32x4(raised);
    for (int v = 0; v < 8; v++) w_u8x64[v] = _mm512_shuffle_epi8(table, w_u8x64[v]);
}

/* Vector v */
ALWAYS_INLINE __m512i sixes_avx512(block_x16 block, const int v) {
    const uint8_t *three = vector_of(block.low, v / 4 * 3);
    const __m512i mask = _mm512_set1_epi8(63);
    if (v % 4 < 3) return _mm512_and_si512(load_vector_avx512(three, v % 4), mask);
    const __m512i top = _mm512_srli_epi16(load_vector_avx512(three, 0), 2);
    const __m512i middle = _mm512_srli_epi16(load_vector_avx512(three, 1), 4);
    const __m512i bottom = _mm512_srli_epi16(load_vector_avx512(three, 2), 6);
    const __m512i upper = _mm512_ternarylogic_epi32(_mm512_set1_epi8(48), top, middle, CHOOSE);
    const __m512i all = _mm512_ternarylogic_epi32(_mm512_set1_epi8(60), upper, bottom, CHOOSE);
    return _mm512_and_si512(all, mask);
}

/* Vector v of part 2i of a pair (odd: 0), or that of part 2i + 1 as it stands in the upper bits: 16
 * times the integers, 8 times if they have 5 bits */
ALWAYS_INLINE __m512i pairs_avx512(block_x16 pair, const int type, const int odd, const int v) {
    const __m512i t = load_vector_avx512(pair.low, v);
    if (!odd) return _mm512_and_si512(t, _mm512_set1_epi8(high_bits(type) ? 31 : 15));
    if (!high_bits(type)) return _mm512_and_si512(t, _mm512_set1_epi8((char)0xf0));
    const __m512i low = shift_avx512(load_vector_avx512(pair.high, v / 4), 3 - 2 * (v % 4));
    const __m512i both = _mm512_ternarylogic_epi32(_mm512_set1_epi8((char)0xe0), t, low, CHOOSE);
    return _mm512_and_si512(both, _mm512_set1_epi8((char)0xf8));
}

/* All vectors of a block's unsigned integers: byte 4r + j of vector v is row r, column 4v + j.
 * Types in PAIRS have a loop of their own and do not come here. */
ALWAYS_INLINE void integers_avx512(block_x16 block, const int type, __m512i w_u8x64[8]) {
    switch (layout_of(type)) {
    case BYTES:
        for (int v = 0; v < 8; v++) w_u8x64[v] = load_vector_avx512(block.low, v);
        break;
    case SIXES:
        for (int v = 0; v < 8; v++) w_u8x64[v] = sixes_avx512(block, v);
        break;
    default:
        planes_avx512(block, type, w_u8x64);
        if (has_steps(type)) steps_avx512(type, w_u8x64);
    }
}

#endif
