/* Matmul tiles of float weights for AVX2 with FMA and F16C. */
#ifndef LARIAT_MATMUL_FLOAT_AVX2_H
#define LARIAT_MATMUL_FLOAT_AVX2_H

#include "matmul_avx2.h"

#define FOR_EACH_COLUMN _Pragma("GCC unroll 4") for (int c = 0; c < nc; c++)
#define FOR_BOTH_HALVES _Pragma("GCC unroll 2") for (int h = 0; h < 2; h++)

ALWAYS_INLINE __m256 load_weights_avx2(const void *w, int64_t i, const int type) {
    if (type == W_F32) return _mm256_loadu_ps((const float *)w + i);
    const uint16_t *p = (const uint16_t *)w + i;
    if (type == W_F16) return load_8_f16_avx2(p);
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

/* sums += nc columns, 1 or 2, at k = from .. to - 1, both even. Even and odd k have sums of their
 * own, to hide the latency of adding. */
ALWAYS_INLINE void float_columns_avx2(const void *w, const float *x, int64_t n_k, int64_t from,
                                      int64_t to, const int nc, const fetch_t fetch,
                                      rows_f32x16_avx2 sums[][2], const int type) {
    const int n_bytes = 2 * GROUP_ROWS * WEIGHT_TYPES[type].bytes;
    rows_f32x16_avx2 even[2], odd[2];
    FOR_EACH_COLUMN even[c] = sums[c][0], odd[c] = sums[c][1];
    for (int64_t k = from; k < to; k += 2) {
        fetch_ahead((const char *)w + k / 2 * n_bytes, n_bytes, fetch);
        __m256 w0[2], w1[2];
        FOR_BOTH_HALVES {
            w0[h] = load_weights_avx2(w, 16 * k + 8 * h, type);
            w1[h] = load_weights_avx2(w, 16 * k + 16 + 8 * h, type);
        }
        FOR_EACH_COLUMN {
            const __m256 x0 = _mm256_set1_ps(x[c * n_k + k]);
            const __m256 x1 = _mm256_set1_ps(x[c * n_k + k + 1]);
            FOR_BOTH_HALVES {
                even[c].half[h] = _mm256_fmadd_ps(w0[h], x0, even[c].half[h]);
                odd[c].half[h] = _mm256_fmadd_ps(w1[h], x1, odd[c].half[h]);
            }
        }
    }
    FOR_EACH_COLUMN sums[c][0] = even[c], sums[c][1] = odd[c];
}

/* More columns take the weights in pieces, which stay in the L1 cache for all of them; each pair of
 * columns asks for its part of the next piece. */
ALWAYS_INLINE void float_tile_avx2(const void *w, const activations_t *a, int64_t col, int n_cols,
                                   float *out, int64_t out_stride, int n_rows, int add,
                                   const int type, const fetch_t fetch) {
    enum { PIECE = 256 };
    const int64_t n_k = a->n_k, even_k = n_k / 2 * 2;
    const int64_t piece_bytes = PIECE * GROUP_ROWS * WEIGHT_TYPES[type].bytes;
    const float *x = a->x + col * n_k;
    rows_f32x16_avx2 sums[TILE_COLUMNS][2];
    memset(sums, 0, sizeof(sums[0]) * (size_t)n_cols);
    if (n_cols == 1) float_columns_avx2(w, x, n_k, 0, even_k, 1, fetch, sums, type);
    else if (n_cols == 2) float_columns_avx2(w, x, n_k, 0, even_k, 2, fetch, sums, type);
    else
        for (int64_t from = 0; from < even_k; from += PIECE) {
            const int64_t to = from + PIECE < even_k ? from + PIECE : even_k;
            const char *next = (const char *)w + (from / PIECE + 1) * piece_bytes;
            for (int c = 0; c < n_cols; c += 2) {
                for (int64_t i = 0; i < 2 * piece_bytes / n_cols; i += 64)
                    _mm_prefetch(next + c * piece_bytes / n_cols + i, _MM_HINT_T0);
                float_columns_avx2(w, x + c * n_k, n_k, from, to, 2, (fetch_t){0}, sums + c, type);
            }
        }
    for (int c = 0; c < n_cols; c++) {
        rows_f32x16_avx2 sum = sums[c][0];
        FOR_BOTH_HALVES {
            if (n_k > even_k)
                sum.half[h] = _mm256_fmadd_ps(load_weights_avx2(w, 16 * even_k + 8 * h, type),
                                              _mm256_set1_ps(x[c * n_k + even_k]), sum.half[h]);
            sum.half[h] = _mm256_add_ps(sum.half[h], sums[c][1].half[h]);
        }
        store_columns_avx2(&sum, 1, out + c * out_stride, out_stride, n_rows, add);
    }
}

#undef FOR_BOTH_HALVES
#undef FOR_EACH_COLUMN
#endif
