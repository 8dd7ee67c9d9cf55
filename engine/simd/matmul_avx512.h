/* Matmul tiles for AVX-512 (F, BW, VL, VNNI): one group of 16 rows times one tile of columns.
 *
 * A row of lanes is a row of the group: vpdpbusd adds, for each of 16 rows, 4 products of an
 * unsigned weight byte and a signed activation byte. Weights keep their offset (8, 128, ...); since
 *     sum (n - 8) q = sum n q - 8 sum q
 * the correction is the start value of the integer sum and costs nothing. A minimum costs one more
 * FMA a column: sum (d q + m) x = d sum q x + m sum x. Tiles of 1 to 8 columns and of 16 share one
 * unpacking of the weights. Each column is summed in the same order whatever the tile's width, so that a token's
 * result does not depend on its neighbours in the batch.
 *
 * Q4_0 has a loop of its own for one column, which needs fewer instructions; Q4_K, Q5_K and Q6_K
 * have loops that make one float of eight parts (matmul_super_avx512.h). columns_avx512 does the
 * rest.
 */
#ifndef LARIAT_MATMUL_AVX512_H
#define LARIAT_MATMUL_AVX512_H

#include "integers_avx512.h"
#include "tuning.h"

#define FOR_EACH_OF(n) _Pragma("GCC unroll 16") for (int c = 0; c < n; c++)
#define FOR_EACH_COLUMN FOR_EACH_OF(nc)
/* Columns from `first` on, `n` at a time */
#define FOR_COLUMNS_BY(n) _Pragma("GCC unroll 16") for (int first = 0; first < nc; first += n)

/* Columns that are multiplied side by side */
ALWAYS_INLINE int columns_at_once(const tuning_t *tuning, const int nc) {
    return nc < tuning->columns_at_once ? nc : tuning->columns_at_once;
}

/* Each lane of `sum` plus 4 weights of a row times the 4 bytes at q. Compilers load the broadcast
 * apart; as an operand it costs no instruction (16 columns: 8 to 10 % faster). */
ALWAYS_INLINE __m512i add_products_avx512(__m512i sum, __m512i w_u8x64, const int8_t *q) {
    __asm__("vpdpbusd %2%{1to16%}, %1, %0"
            : "+v"(sum)
            : "v"(w_u8x64), "m"(*(const int8_t(*)[4])q));
    return sum;
}

ALWAYS_INLINE void store_columns_avx512(const __m512 *acc_f32x16, const int nc, float *out,
                                        int64_t out_stride, int n_rows, int add) {
    const __mmask16 rows = (__mmask16)((1u << n_rows) - 1);
    FOR_EACH_COLUMN {
        float *o = out + c * out_stride;
        const __m512 old = add ? _mm512_maskz_loadu_ps(rows, o) : _mm512_setzero_ps();
        _mm512_mask_storeu_ps(o, rows, _mm512_add_ps(old, acc_f32x16[c]));
    }
}

/* sum[c] += the dot product of weight vectors [from, to) with the block of n columns at q */
ALWAYS_INLINE void add_dots_avx512(__m512i *sum, const __m512i *w_u8x64, const int8_t *q,
                                   const int n, const int from, const int to) {
    _Pragma("GCC unroll 8")
    for (int v = from; v < to; v++)
        FOR_EACH_OF(n) sum[c] = add_products_avx512(sum[c], w_u8x64[v], q + c * BLOCK + 4 * v);
}

/* acc += d * scale * dot */
ALWAYS_INLINE void add_scaled_avx512(__m512 *acc_f32x16, __m512i dot, __m512 d, float scale) {
    *acc_f32x16 = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_mul_ps(d, _mm512_set1_ps(scale)),
                                  *acc_f32x16);
}

/* One column: high nibbles stay where they are, and 16 times their sum is moved down once. Four
 * blocks a round of the loop: a fifth faster from the L2 cache, the same from memory. */
ALWAYS_INLINE __m512 q4_0_sum_avx512(const q4_0_x16 *w, const int8_t *q, const float *scale,
                                     const int32_t *neg8_sum, int64_t n_blocks,
                                     const fetch_t fetch) {
    __m512 acc_f32x16 = _mm512_setzero_ps();
    _Pragma("GCC unroll 4")
    for (int64_t b = 0; b < n_blocks; b++, w++, q += BLOCK) {
        fetch_ahead(w, sizeof *w, fetch);
        __m512i low = _mm512_set1_epi32(neg8_sum[b]), high = _mm512_setzero_si512();
        _Pragma("GCC unroll 4")
        for (int v = 0; v < 4; v++) {
            const __m512i t = _mm512_loadu_si512(w->q[v]);
            const __m512i above = _mm512_and_si512(t, _mm512_set1_epi8((char)0xf0));
            low = add_products_avx512(low, _mm512_and_si512(t, _mm512_set1_epi8(15)), q + 4 * v);
            high = add_products_avx512(high, above, q + 16 + 4 * v);
        }
        const __m512i dot = _mm512_add_epi32(low, _mm512_srai_epi32(high, 4));
        const __m512 d = _mm512_mul_ps(load_16_f16_avx512(w->d), _mm512_set1_ps(scale[b]));
        acc_f32x16 = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), d, acc_f32x16);
    }
    return acc_f32x16;
}

ALWAYS_INLINE void q4_0_column_avx512(const void *weights, const activations_t *a, int64_t col,
                                      float *out, int64_t out_stride, int n_rows, int add,
                                      const fetch_t fetch) {
    const int64_t n_blocks = a->n_k / BLOCK, at = col * n_blocks;
    const __m512 sum = q4_0_sum_avx512(weights, a->q + at * BLOCK, a->scale + at, a->neg8_sum + at,
                                       n_blocks, fetch);
    store_columns_avx512(&sum, 1, out, out_stride, n_rows, add);
}

/* Asks for what is read of a block: all of it, or only its integers where factors of a super-block
 * stand apart and are not asked for. */
ALWAYS_INLINE void fetch_block_avx512(const void *weights, int64_t b, block_x16 block, const int nc,
                                      const int type, const tuning_t *tuning) {
    const int bits = low_bits(type) + high_bits(type);
    if (is_super(type) && !tuning->fetches_factors)
        fetch_ahead(block.low, 8 * bits * 8, fetch_of(tuning, nc));
    else
        fetch_ahead((const char *)weights + b * block_bytes(type), block_bytes(type),
                    fetch_of(tuning, nc));
}

/* acc += a block times n columns, from column `first` of those at `at` on: d dot s + m sum */
ALWAYS_INLINE void add_block_avx512(__m512 *acc_f32x16, const __m512i *w_u8x64, const __m512 d[2],
                                    const __m512 m[2], const activations_t *a, int64_t at,
                                    const sums_t *sums, const int first, const int n,
                                    const int type) {
    const int8_t *q = a->q + (at + first) * BLOCK;
    const float *scale = a->scale + at + first;
    __m512i dot[2][TILE_COLUMNS];
    _Pragma("GCC unroll 2")
    for (int h = 0; h < 1 + has_halves(type); h++) {
        FOR_EACH_OF(n) dot[h][c] = has_minimum(type) ? _mm512_setzero_si512()
                                                     : _mm512_set1_epi32(start_of(
                                                           sums, a, at, h, first + c, type));
        add_dots_avx512(dot[h], w_u8x64, q, n, 4 * h, has_halves(type) ? 4 * h + 4 : 8);
    }
    FOR_EACH_OF(n) {
        __m512 *acc = acc_f32x16 + first + c;
        if (has_halves(type)) {
            const __m512 second = _mm512_mul_ps(_mm512_cvtepi32_ps(dot[1][c]), d[1]);
            const __m512 both = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[0][c]), d[0], second);
            *acc = _mm512_fmadd_ps(both, _mm512_set1_ps(scale[c]), *acc);
        } else {
            add_scaled_avx512(acc, dot[0][c], d[0], scale[c]);
        }
        if (has_minimum(type))
            for (int h = 0; h < 1 + has_halves(type); h++)
                *acc = _mm512_fmadd_ps(m[h], _mm512_set1_ps(sums->scaled[h][first + c]), *acc);
    }
}

ALWAYS_INLINE void columns_avx512(const void *weights, const activations_t *a, int64_t col,
                                  const int nc, float *out, int64_t out_stride, int n_rows, int add,
                                  const int type, const tuning_t *tuning) {
    const int n = columns_at_once(tuning, nc);
    const int64_t n_blocks = a->n_k / BLOCK;
    int64_t at = col * n_blocks;
    __m512 acc_f32x16[TILE_COLUMNS];
    FOR_EACH_COLUMN acc_f32x16[c] = _mm512_setzero_ps();
    factors_t factors;
    for (int64_t b = 0; b < n_blocks; b++, at += nc) {
        const block_x16 block = block_of(weights, b, type);
        fetch_block_avx512(weights, b, block, nc, type, tuning);
        __m512i w_u8x64[8];
        integers_avx512(block, type, w_u8x64);
        unpack_factors(block, type, &factors);
        __m512 d[2], m[2];
        _Pragma("GCC unroll 2")
        for (int h = 0; h < 1 + has_halves(type); h++) {
            d[h] = scaled_avx512(block.d, d_factors(block, &factors, h, type), type);
            if (has_minimum(type))
                m[h] = scaled_avx512(block.m, m_factors(block, &factors, h, type), type);
        }
        sums_t sums;
        block_sums(a, at, nc, type, &sums);
        FOR_COLUMNS_BY(n)
            add_block_avx512(acc_f32x16, w_u8x64, d, m, a, at, &sums, first, n, type);
    }
    store_columns_avx512(acc_f32x16, nc, out, out_stride, n_rows, add);
}

/* ---- floats ---- */

ALWAYS_INLINE __m512 load_weights_avx512(const void *w, int64_t k, const int type) {
    if (type == W_F32) return _mm512_loadu_ps((const float *)w + 16 * k);
    const uint16_t *p = (const uint16_t *)w + 16 * k;
    if (type == W_F16) return load_16_f16_avx512(p);
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

/* Float weights, nc columns: even and odd k in two chains to hide the latency of the sums. */
ALWAYS_INLINE void float_columns_avx512(const void *w, const float *x, int64_t n_k, const int nc,
                                        float *out, int64_t out_stride, int n_rows, int add,
                                        const int type, const fetch_t fetch) {
    const int pair_bytes = 2 * GROUP_ROWS * WEIGHT_TYPES[type].bytes;
    __m512 even[8], odd[8];
    FOR_EACH_COLUMN even[c] = odd[c] = _mm512_setzero_ps();
    int64_t k = 0;
    for (; k + 2 <= n_k; k += 2) {
        fetch_ahead((const char *)w + k / 2 * pair_bytes, pair_bytes, fetch);
        const __m512 w0 = load_weights_avx512(w, k, type);
        const __m512 w1 = load_weights_avx512(w, k + 1, type);
        FOR_EACH_COLUMN {
            even[c] = _mm512_fmadd_ps(w0, _mm512_set1_ps(x[c * n_k + k]), even[c]);
            odd[c] = _mm512_fmadd_ps(w1, _mm512_set1_ps(x[c * n_k + k + 1]), odd[c]);
        }
    }
    if (k < n_k) {
        const __m512 w0 = load_weights_avx512(w, k, type);
        FOR_EACH_COLUMN even[c] = _mm512_fmadd_ps(w0, _mm512_set1_ps(x[c * n_k + k]), even[c]);
    }
    FOR_EACH_COLUMN even[c] = _mm512_add_ps(even[c], odd[c]);
    store_columns_avx512(even, nc, out, out_stride, n_rows, add);
}

ALWAYS_INLINE void float_tile_avx512(const void *w, const activations_t *a, int64_t col, int n_cols,
                                     float *out, int64_t out_stride, int n_rows, int add,
                                     const int type, const fetch_t fetch) {
    const float *x = a->x + col * a->n_k;
    const int64_t n_k = a->n_k;
#define COLUMNS(n)                                                                                \
    float_columns_avx512(w, x + c * n_k, n_k, n, out + c * out_stride, out_stride, n_rows, add, type, \
                         fetch)
    int c = 0;
    for (; c + 8 <= n_cols; c += 8) COLUMNS(8);
    switch (n_cols - c) {
    case 7: COLUMNS(7); break;
    case 6: COLUMNS(6); break;
    case 5: COLUMNS(5); break;
    case 4: COLUMNS(4); break;
    case 3: COLUMNS(3); break;
    case 2: COLUMNS(2); break;
    case 1: COLUMNS(1);
    }
#undef COLUMNS
}

#undef FOR_COLUMNS_BY
#undef FOR_EACH_COLUMN
#undef FOR_EACH_OF
#endif
