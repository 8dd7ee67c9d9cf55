/* Matmul tiles of Q5_0, Q5_1, IQ4_NL and Q2_K to Q5_K for AVX2 with FMA and F16C: one or two columns.
 *
 * As in matmul_avx2.h, pairs of products are summed in int16. Eight pair sums of a nibble (30480)
 * and four of five bits (4 * 2 * 31 * 127 = 31496) fit and are then widened; those of IQ4_NL, which
 * is signed and goes in as |w| * (sign(w) q), are widened each time (2 * 127 * 127).
 */
#ifndef LARIAT_MATMUL_K_AVX2_H
#define LARIAT_MATMUL_K_AVX2_H

#include <immintrin.h>

#include "matmul_avx2.h"
#include "unpack.h"

#define FOR_EACH_COLUMN _Pragma("GCC unroll 2") for (int c = 0; c < nc; c++)
#define FOR_BOTH_HALVES _Pragma("GCC unroll 2") for (int h = 0; h < 2; h++)
#define FOR_BOTH_PARTS _Pragma("GCC unroll 2") for (int odd = 0; odd < 2; odd++)

/* f16 of 16 rows, times their factors in the K types */
ALWAYS_INLINE rows_f32x16_avx2 scaled_f16_avx2(const f16_t *f16, const int8_t *factor, const int type) {
    rows_f32x16_avx2 rows = load_16_f16_avx2(f16);
    if (!is_super(type)) return rows;
    FOR_BOTH_HALVES {
        const __m128i bytes = _mm_loadl_epi64((const __m128i *)(factor + 8 * h));
        rows.half[h] =
            _mm256_mul_ps(rows.half[h], _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)));
    }
    return rows;
}

/* Bytes of t moved by n bits, up if n > 0; what crosses a byte's border is for the caller to mask */
ALWAYS_INLINE __m256i shift_avx2(__m256i t, const int n) {
    return n > 0 ? _mm256_slli_epi16(t, n) : n < 0 ? _mm256_srli_epi16(t, -n) : t;
}

/* Vector v of part 2i (odd: 0) or 2i + 1 of a pair, half h of the rows */
ALWAYS_INLINE __m256i paired_integers_avx2(block_x16 block, const int type, const int odd,
                                           const int v, int h) {
    const __m256i t = load_half_avx2(block.low[v], h);
    if (type == W_Q4_K)
        return _mm256_and_si256(shift_avx2(t, odd ? -4 : 0), _mm256_set1_epi8(15));
    if (!odd) return _mm256_and_si256(t, _mm256_set1_epi8(31));
    const __m256i low = shift_avx2(load_half_avx2(block.high[v / 4], h), -2 * (v % 4));
    return _mm256_or_si256(_mm256_and_si256(shift_avx2(t, -3), _mm256_set1_epi8(28)),
                           _mm256_and_si256(low, _mm256_set1_epi8(3)));
}

/* Vector v of the integers, half h of the rows */
ALWAYS_INLINE __m256i k_integers_avx2(block_x16 block, const int type, const int v, int h) {
    const int n = low_bits(type);
    const __m256i low = shift_avx2(load_half_avx2(block.low[v % n], h), -n * (v / n));
    const __m256i q = _mm256_and_si256(low, _mm256_set1_epi8((1 << n) - 1));
    if (type == W_IQ4_NL)
        return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(
                                       (const __m128i *)IQ4_NL_STEPS)), q);
    if (!has_high_bit(type)) return q;
    const __m256i high = shift_avx2(load_half_avx2(block.high[0], h), n - v);
    return _mm256_or_si256(q, _mm256_and_si256(high, _mm256_set1_epi8(1 << n)));
}

/* dot += the products of vectors [from, to) of a block with nc columns that are 32 bytes apart */
ALWAYS_INLINE void k_dots_avx2(block_x16 block, const int8_t *x, const int nc,
                               const int from, const int to, const int type,
                               __m256i dot[][2]) {
    __m256i sum_i16x16[2][2];
    FOR_EACH_COLUMN FOR_BOTH_HALVES sum_i16x16[c][h] = _mm256_setzero_si256();
    _Pragma("GCC unroll 8")
    for (int v = from; v < to; v++) {
        __m256i w[2], magnitude[2];
        FOR_BOTH_HALVES {
            w[h] = k_integers_avx2(block, type, v, h);
            if (type == W_IQ4_NL) magnitude[h] = _mm256_abs_epi8(w[h]);
        }
        FOR_EACH_COLUMN {
            const __m256i four = broadcast_4_bytes_avx2(x + c * BLOCK + 4 * v);
            FOR_BOTH_HALVES {
                if (type == W_IQ4_NL)
                    dot[c][h] = _mm256_add_epi32(
                        dot[c][h], widen_avx2(_mm256_maddubs_epi16(
                                       magnitude[h], _mm256_sign_epi8(four, w[h]))));
                else
                    sum_i16x16[c][h] = add_pairs_avx2(sum_i16x16[c][h], w[h], four);
            }
        }
    }
    if (type != W_IQ4_NL)
        FOR_EACH_COLUMN FOR_BOTH_HALVES dot[c][h] =
            _mm256_add_epi32(dot[c][h], widen_avx2(sum_i16x16[c][h]));
}

/* acc += d f dot s + m g sum: part i of a super-block, with scales and scaled sums of nc columns */
ALWAYS_INLINE void add_part_avx2(rows_f32x16_avx2 *acc, __m256i dot[][2], block_x16 block,
                                 const factors_t *factors, int i, const float *scale,
                                 const float *scaled_sum, const int nc, const int type) {
    const rows_f32x16_avx2 d = scaled_f16_avx2(block.d, factors->d[i], type);
    FOR_EACH_COLUMN add_scaled_avx2(&acc[c], dot[c], d.half, scale[c]);
    if (!has_minimum(type)) return;
    const rows_f32x16_avx2 m = scaled_f16_avx2(block.m, factors->m[i], type);
    FOR_EACH_COLUMN FOR_BOTH_HALVES acc[c].half[h] =
        _mm256_fmadd_ps(m.half[h], _mm256_set1_ps(scaled_sum[c]), acc[c].half[h]);
}

/* A tile of nc columns, 1 or 2, a block of 32 weights a row at a time */
ALWAYS_INLINE void k_columns_avx2(const void *weights, const activations_t *a, int64_t col,
                                  const int nc, float *out, int64_t out_stride, int n_rows, int add,
                                  const int type) {
    const int64_t n_blocks = a->n_k / BLOCK;
    int64_t at = col * n_blocks;
    rows_f32x16_avx2 acc[2];
    FOR_EACH_COLUMN FOR_BOTH_HALVES acc[c].half[h] = _mm256_setzero_ps();
    factors_t factors;
    for (int64_t b = 0; b < n_blocks; b++, at += nc) {
        const block_x16 block = block_of(weights, b, type);
        fetch_block_avx2(weights, b, type);
        if (is_super(type) && b % 8 == 0) unpack_factors(block, type, &factors);
        sums_t sums;
        block_sums(a, at, nc, type, &sums);
        _Pragma("GCC unroll 2")
        for (int part = 0; part < 1 + is_halved(type); part++) { /* columns with one scale */
            const int i = is_halved(type) ? 2 * block.part + part : block.part;
            __m256i dot[2][2];
            FOR_EACH_COLUMN FOR_BOTH_HALVES dot[c][h] =
                has_minimum(type) || type == W_IQ4_NL ? _mm256_setzero_si256()
                                                      : _mm256_set1_epi32(sums.start[part][c]);
            const int n = is_halved(type) || has_high_bit(type) ? 4 : 8;
            for (int v = 4 * part; v < (is_halved(type) ? 4 * part + 4 : 8); v += n)
                k_dots_avx2(block, a->q + at * BLOCK, nc, v, v + n, type, dot);
            add_part_avx2(acc, dot, block, &factors, i, a->scale + at, sums.scaled[part], nc, type);
        }
    }
    store_columns_avx2(acc, nc, out, out_stride, n_rows, add);
}

/* Both parts of a pair, whose activations are nc blocks from each other: each vector is loaded
 * once, and memory is read in one run. */
ALWAYS_INLINE void pair_dots_avx2(block_x16 pair, const int8_t *x, const int nc, const int type,
                                  __m256i dot[2][2][2]) {
    const int run = type == W_Q5_K ? 4 : 8; /* vectors whose sums fit 16 bits */
    _Pragma("GCC unroll 2")
    for (int v0 = 0; v0 < 8; v0 += run) {
        __m256i sum_i16x16[2][2][2];
        FOR_BOTH_PARTS FOR_EACH_COLUMN FOR_BOTH_HALVES sum_i16x16[odd][c][h] = _mm256_setzero_si256();
        _Pragma("GCC unroll 8")
        for (int v = v0; v < v0 + run; v++)
            FOR_BOTH_PARTS {
                __m256i w[2];
                FOR_BOTH_HALVES w[h] = paired_integers_avx2(pair, type, odd, v, h);
                FOR_EACH_COLUMN {
                    const __m256i four =
                        broadcast_4_bytes_avx2(x + (odd * nc + c) * BLOCK + 4 * v);
                    FOR_BOTH_HALVES sum_i16x16[odd][c][h] =
                        add_pairs_avx2(sum_i16x16[odd][c][h], w[h], four);
                }
            }
        FOR_BOTH_PARTS FOR_EACH_COLUMN FOR_BOTH_HALVES dot[odd][c][h] =
            _mm256_add_epi32(dot[odd][c][h], widen_avx2(sum_i16x16[odd][c][h]));
    }
}

/* As k_columns_avx2, a pair of parts at a time */
ALWAYS_INLINE void paired_columns_avx2(const void *weights, const activations_t *a, int64_t col,
                                       const int nc, float *out, int64_t out_stride, int n_rows,
                                       int add, const int type) {
    const int64_t n_blocks = a->n_k / BLOCK;
    int64_t at = col * n_blocks;
    rows_f32x16_avx2 acc[2];
    FOR_EACH_COLUMN FOR_BOTH_HALVES acc[c].half[h] = _mm256_setzero_ps();
    factors_t factors;
    for (int64_t b = 0; b < n_blocks; b += 2, at += 2 * nc) {
        const block_x16 pair = block_of(weights, b, type);
        fetch_block_avx2(weights, b, type);
        fetch_block_avx2(weights, b + 1, type);
        if (b % 8 == 0) unpack_factors(pair, type, &factors);
        __m256i dot[2][2][2];
        FOR_BOTH_PARTS FOR_EACH_COLUMN FOR_BOTH_HALVES dot[odd][c][h] = _mm256_setzero_si256();
        pair_dots_avx2(pair, a->q + at * BLOCK, nc, type, dot);
        FOR_BOTH_PARTS {
            const int64_t of_part = at + odd * nc;
            sums_t sums;
            block_sums(a, of_part, nc, type, &sums);
            add_part_avx2(acc, dot[odd], pair, &factors, pair.part + odd, a->scale + of_part,
                          sums.scaled[0], nc, type);
        }
    }
    store_columns_avx2(acc, nc, out, out_stride, n_rows, add);
}

#undef FOR_BOTH_PARTS
#undef FOR_BOTH_HALVES
#undef FOR_EACH_COLUMN
#endif
