/* Matmul tiles for AVX2 with FMA and F16C: one group of 16 rows times one tile of columns.
 *
 * vpmaddubsw multiplies unsigned weight bytes with signed activation bytes and adds pairs in int16.
 * How many of those sums fit into int16 together before they are widened depends on the largest
 * weight: 8 of nibbles (8 * 2 * 15 * 127 = 30480), 4 of five bits (31496), 2 of six (32004), 1 of
 * seven, and of signed bytes (2 * 128 * 127 = 32512).
 *
 * Tiles of a few columns unpack into registers, each vector just before it is used; those of more
 * unpack a block once for all columns, into the L1 cache (matmul_wide_avx2.h); types in PAIRS have
 * a loop of their own (below). All three sum a column in the same order.
 */
#ifndef LARIAT_MATMUL_AVX2_H
#define LARIAT_MATMUL_AVX2_H

#include "integers_avx2.h"
#include "tuning.h"

enum { COLUMNS_AVX2 = 4 }; /* multiplied at a time: 8 vectors of sums, half the registers */

#define FOR_EACH_COLUMN _Pragma("GCC unroll 4") for (int c = 0; c < nc; c++)
#define FOR_BOTH_HALVES _Pragma("GCC unroll 2") for (int h = 0; h < 2; h++)
#define FOR_BOTH_PARTS _Pragma("GCC unroll 2") for (int odd = 0; odd < 2; odd++)

ALWAYS_INLINE __m256i broadcast_4_bytes_avx2(const int8_t *q) {
    int32_t four;
    memcpy(&four, q, 4);
    return _mm256_set1_epi32(four);
}

/* Block b, counted as if a super-block were eight blocks in a row */
ALWAYS_INLINE void fetch_block_avx2(const void *weights, int64_t b, const int type,
                                    const fetch_t fetch) {
    fetch_ahead((const char *)weights + b * block_bytes(type), block_bytes(type), fetch);
}

/* int16 pairs to int32 */
ALWAYS_INLINE __m256i widen_avx2(__m256i pairs_i16x16) {
    return _mm256_madd_epi16(pairs_i16x16, _mm256_set1_epi16(1));
}

ALWAYS_INLINE void store_columns_avx2(const rows_f32x16_avx2 *acc, const int nc, float *out,
                                      int64_t out_stride, int n_rows, int add) {
    for (int c = 0; c < nc; c++) {
        float rows[16], *o = out + c * out_stride;
        _mm256_storeu_ps(rows, acc[c].half[0]);
        _mm256_storeu_ps(rows + 8, acc[c].half[1]);
        for (int r = 0; r < n_rows; r++) o[r] = add ? o[r] + rows[r] : rows[r];
    }
}

/* acc += dot * (d * scale), both halves of the rows */
ALWAYS_INLINE void add_scaled_avx2(rows_f32x16_avx2 *acc, const __m256i dot[2], const __m256 d[2],
                                   float scale) {
    FOR_BOTH_HALVES acc->half[h] =
        _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[h]), _mm256_mul_ps(d[h], _mm256_set1_ps(scale)),
                        acc->half[h]);
}

/* sum + the pair sums of unsigned w times q. Without the barrier gcc takes all products of a block
 * before it adds them up, for which there are four times too few registers. */
ALWAYS_INLINE __m256i add_pairs_avx2(__m256i sum_i16x16, __m256i w, __m256i q) {
    sum_i16x16 = _mm256_add_epi16(sum_i16x16, _mm256_maddubs_epi16(w, q));
    __asm__("" : "+x"(sum_i16x16));
    return sum_i16x16;
}

/* Vectors whose pair sums fit into int16 together, and have one scale */
ALWAYS_INLINE int run_of_avx2(const int type) {
    const int largest = largest_of(type), most = has_halves(type) ? 4 : 8;
    if (is_signed_avx2(type) || largest > 64) return 1;
    return largest > 32 ? 2 : largest > 16 || most == 4 ? 4 : 8;
}

/* Vector i in the order of a tile's products: those that are unpacked from the same bytes follow
 * each other, so that these are loaded once. */
ALWAYS_INLINE int vector_order_avx2(const int i, const int type) {
    return layout_of(type) == PLANES && low_bits(type) == 4 ? i / 2 + i % 2 * 4 : i;
}

/* dot += a run of vectors, from the one at `from` on, times nc columns that are 32 bytes apart */
ALWAYS_INLINE void add_run_avx2(block_x16 block, const int8_t *x, const int nc, const int from,
                                const int type, __m256i dot[][2]) {
    const int run = run_of_avx2(type);
    if (run <= 2) { /* a column at a time: sums of 16 bits beside those of 32 would be too many */
        __m256i w[2][2];
        const int v[2] = {vector_order_avx2(from, type), vector_order_avx2(from + 1, type)};
        _Pragma("GCC unroll 2")
        for (int i = 0; i < run; i++) FOR_BOTH_HALVES w[i][h] = integers_avx2(block, type, v[i], h);
        FOR_EACH_COLUMN {
            const __m256i four = broadcast_4_bytes_avx2(x + c * BLOCK + 4 * v[0]);
            FOR_BOTH_HALVES {
                __m256i sum_i16x16 =
                    is_signed_avx2(type)
                        ? _mm256_maddubs_epi16(_mm256_abs_epi8(w[0][h]),
                                               _mm256_sign_epi8(four, w[0][h]))
                        : _mm256_maddubs_epi16(w[0][h], four);
                if (run == 2)
                    sum_i16x16 = _mm256_add_epi16(
                        sum_i16x16,
                        _mm256_maddubs_epi16(w[1][h],
                                             broadcast_4_bytes_avx2(x + c * BLOCK + 4 * v[1])));
                dot[c][h] = _mm256_add_epi32(dot[c][h], widen_avx2(sum_i16x16));
            }
        }
        return;
    }
    __m256i sum_i16x16[COLUMNS_AVX2][2];
    FOR_EACH_COLUMN FOR_BOTH_HALVES sum_i16x16[c][h] = _mm256_setzero_si256();
    _Pragma("GCC unroll 8")
    for (int i = from; i < from + run; i++) {
        const int v = vector_order_avx2(i, type);
        __m256i w[2];
        FOR_BOTH_HALVES w[h] = integers_avx2(block, type, v, h);
        FOR_EACH_COLUMN {
            const __m256i four = broadcast_4_bytes_avx2(x + c * BLOCK + 4 * v);
            FOR_BOTH_HALVES sum_i16x16[c][h] = add_pairs_avx2(sum_i16x16[c][h], w[h], four);
        }
    }
    FOR_EACH_COLUMN FOR_BOTH_HALVES dot[c][h] =
        _mm256_add_epi32(dot[c][h], widen_avx2(sum_i16x16[c][h]));
}

/* The beginning of the integer sum of half `part`, column c of the block at `at` */
ALWAYS_INLINE __m256i start_avx2(const sums_t *sums, const activations_t *a, int64_t at, int part,
                                 int c, const int type) {
    return is_signed_avx2(type) || has_minimum(type)
               ? _mm256_setzero_si256()
               : _mm256_set1_epi32(start_of(sums, a, at, part, c, type));
}

/* acc += d f dot s + m g sum: half `part` of the block at `at`, nc columns */
ALWAYS_INLINE void add_part_avx2(rows_f32x16_avx2 *acc, __m256i dot[][2], block_x16 block,
                                 const factors_t *factors, int part, const float *scale,
                                 const sums_t *sums, const int nc, const int type) {
    const rows_f32x16_avx2 d = scaled_avx2(block.d, d_factors(block, factors, part, type), type);
    FOR_EACH_COLUMN add_scaled_avx2(&acc[c], dot[c], d.half, scale[c]);
    if (!has_minimum(type)) return;
    const rows_f32x16_avx2 m = scaled_avx2(block.m, m_factors(block, factors, part, type), type);
    FOR_EACH_COLUMN FOR_BOTH_HALVES acc[c].half[h] = _mm256_fmadd_ps(
        m.half[h], _mm256_set1_ps(sums->scaled[part][c]), acc[c].half[h]);
}

/* A tile of nc columns, 1, 2 or 4, of any type that is not in PAIRS */
ALWAYS_INLINE void columns_avx2(const void *weights, const activations_t *a, int64_t col,
                                const int nc, float *out, int64_t out_stride, int n_rows, int add,
                                const int type, const fetch_t fetch) {
    const int64_t n_blocks = a->n_k / BLOCK;
    int64_t at = col * n_blocks;
    rows_f32x16_avx2 acc[COLUMNS_AVX2];
    FOR_EACH_COLUMN FOR_BOTH_HALVES acc[c].half[h] = _mm256_setzero_ps();
    factors_t factors;
    for (int64_t b = 0; b < n_blocks; b++, at += nc) {
        const block_x16 block = block_of(weights, b, type);
        fetch_block_avx2(weights, b, type, fetch);
        unpack_factors(block, type, &factors);
        sums_t sums;
        block_sums(a, at, nc, type, &sums);
        if (has_minimum(type) && nc == 4) /* or gcc holds the sums in registers and converts late */
            __asm__("" : "+m"(sums.scaled));
        _Pragma("GCC unroll 2")
        for (int part = 0; part < 1 + has_halves(type); part++) {
            __m256i dot[COLUMNS_AVX2][2];
            FOR_EACH_COLUMN FOR_BOTH_HALVES dot[c][h] = start_avx2(&sums, a, at, part, c, type);
            const int run = run_of_avx2(type), n_runs = (has_halves(type) ? 4 : 8) / run;
            _Pragma("GCC unroll 8")
            for (int i = 0; i < n_runs; i++)
                add_run_avx2(block, a->q + at * BLOCK, nc, 4 * part + i * run, type, dot);
            add_part_avx2(acc, dot, block, &factors, part, a->scale + at, &sums, nc, type);
        }
    }
    store_columns_avx2(acc, nc, out, out_stride, n_rows, add);
}

/* ---- types in PAIRS: both parts of a pair at a time, so that each vector is loaded once and
 * memory is read in one run ---- */

/* The activations of the two parts are nc blocks apart. */
ALWAYS_INLINE void pair_dots_avx2(block_x16 pair, const int8_t *x, const int nc, const int type,
                                  __m256i dot[2][2][2]) {
    const int run = run_of_avx2(type);
    _Pragma("GCC unroll 2")
    for (int v0 = 0; v0 < 8; v0 += run) {
        __m256i sum_i16x16[2][2][2];
        FOR_BOTH_PARTS FOR_EACH_COLUMN FOR_BOTH_HALVES sum_i16x16[odd][c][h] =
            _mm256_setzero_si256();
        _Pragma("GCC unroll 8")
        for (int v = v0; v < v0 + run; v++)
            FOR_BOTH_PARTS {
                __m256i w[2];
                FOR_BOTH_HALVES w[h] = pairs_avx2(pair, type, odd, v, h);
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

/* As columns_avx2, for 1 or 2 columns */
ALWAYS_INLINE void paired_columns_avx2(const void *weights, const activations_t *a, int64_t col,
                                       const int nc, float *out, int64_t out_stride, int n_rows,
                                       int add, const int type, const fetch_t fetch) {
    const int64_t n_blocks = a->n_k / BLOCK;
    int64_t at = col * n_blocks;
    rows_f32x16_avx2 acc[2];
    FOR_EACH_COLUMN FOR_BOTH_HALVES acc[c].half[h] = _mm256_setzero_ps();
    factors_t factors;
    for (int64_t b = 0; b < n_blocks; b += 2, at += 2 * nc) {
        block_x16 block = block_of(weights, b, type);
        fetch_block_avx2(weights, b, type, fetch);
        fetch_block_avx2(weights, b + 1, type, fetch);
        unpack_factors(block, type, &factors);
        __m256i dot[2][2][2];
        FOR_BOTH_PARTS FOR_EACH_COLUMN FOR_BOTH_HALVES dot[odd][c][h] = _mm256_setzero_si256();
        pair_dots_avx2(block, a->q + at * BLOCK, nc, type, dot);
        FOR_BOTH_PARTS {
            const int64_t of_part = at + odd * nc;
            sums_t sums;
            block_sums(a, of_part, nc, type, &sums);
            __asm__("" : "+m"(sums.scaled)); /* as in columns_avx2 */
            add_part_avx2(acc, dot[odd], block, &factors, 0, a->scale + of_part, &sums, nc, type);
            block.part++;
        }
    }
    store_columns_avx2(acc, nc, out, out_stride, n_rows, add);
}

#undef FOR_BOTH_PARTS
#undef FOR_BOTH_HALVES
#undef FOR_EACH_COLUMN
#endif
