/* Matmul tiles of Q4_K, Q5_K and Q6_K for AVX-512: a super-block at a time.
 *
 * The sums q x of a part are integers, and so are the factors f and g of its scale and minimum:
 *     sum (d f q - dmin g) s x = d sum_p s_p (f_p sum q x) - dmin sum_p g_p (s_p sum x)
 * over the parts p, s_p being the scale of a part's activations x. So only the product f_p sum q x
 * becomes a float, and d and dmin are used once for eight parts.
 */
#ifndef LARIAT_MATMUL_SUPER_AVX512_H
#define LARIAT_MATMUL_SUPER_AVX512_H

#include "matmul_avx512.h"

#define FOR_EACH_OF(n) _Pragma("GCC unroll 16") for (int c = 0; c < n; c++)
#define FOR_EACH_COLUMN FOR_EACH_OF(nc)
/* Columns from `first` on, `n` at a time */
#define FOR_COLUMNS_BY(n) _Pragma("GCC unroll 16") for (int first = 0; first < nc; first += n)

/* ---- Q6_K ---- */

/* A part: total += scale (f0 dot0 + f1 dot1) for its two halves */
ALWAYS_INLINE void add_sixes_avx512(block_x16 block, const int type, const int8_t *x,
                                    const int32_t *start, const float *scale, const int nc,
                                    const tuning_t *tuning, __m512 *total) {
    const int most = nc == 6 ? 3 : nc == 8 || nc == 16 ? 4 : nc; /* for so many sums there is room */
    const int n = columns_at_once(tuning, most);
    __m512i w_u8x64[8], f[2];
    integers_avx512(block, type, w_u8x64);
    for (int h = 0; h < 2; h++) f[h] = load_factors_avx512(d_factors(block, NULL, h, type));
    FOR_COLUMNS_BY(n) {
        __m512i dot[2][TILE_COLUMNS];
        _Pragma("GCC unroll 2")
        for (int h = 0; h < 2; h++) {
            FOR_EACH_OF(n) dot[h][c] = _mm512_set1_epi32(start[2 * (first + c) + h]);
            add_dots_avx512(dot[h], w_u8x64, x + first * BLOCK, n, 4 * h, 4 * h + 4);
        }
        FOR_EACH_OF(n) {
            __m512 sum;
            if (tuning->float_factors)
                sum = _mm512_fmadd_ps(
                    _mm512_cvtepi32_ps(dot[0][c]), _mm512_cvtepi32_ps(f[0]),
                    _mm512_mul_ps(_mm512_cvtepi32_ps(dot[1][c]), _mm512_cvtepi32_ps(f[1])));
            else
                sum = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_mullo_epi32(dot[0][c], f[0]),
                                                          _mm512_mullo_epi32(dot[1][c], f[1])));
            total[first + c] =
                _mm512_fmadd_ps(sum, _mm512_set1_ps(scale[first + c]), total[first + c]);
        }
    }
}

ALWAYS_INLINE void sixes_columns_avx512(const void *weights, const activations_t *a, int64_t col,
                                        const int nc, float *out, int64_t out_stride, int n_rows,
                                        int add, const int type, const tuning_t *tuning) {
    const int64_t n_blocks = a->n_k / BLOCK;
    int64_t at = col * n_blocks;
    __m512 acc_f32x16[TILE_COLUMNS];
    FOR_EACH_COLUMN acc_f32x16[c] = _mm512_setzero_ps();
    for (int64_t b = 0; b < n_blocks; b += 8, at += 8 * nc) {
        int32_t start[16 * TILE_COLUMNS]; /* [part][nc][half] */
        for (int i = 0; i < 16 * nc; i += 16) {
            const __m256i sums =
                _mm256_loadu_si256((const __m256i *)(a->half_sum + 2 * at + i));
            _mm512_storeu_si512(start + i, _mm512_mullo_epi32(_mm512_cvtepi16_epi32(sums),
                                                              _mm512_set1_epi32(-offset_of(type))));
        }
        __asm__("" : "+m"(start)); /* from memory a broadcast is a load and nothing else */
        __m512 total[TILE_COLUMNS];
        FOR_EACH_COLUMN total[c] = _mm512_setzero_ps();
        /* As many parts unrolled as memory is read fastest with: the hardware's prefetch goes by
         * the steps of single instructions. */
        const int run = nc == 2 ? 8 : 1;
        _Pragma("GCC unroll 1")
        for (int first = 0; first < 8; first += run) {
            _Pragma("GCC unroll 8")
            for (int p = first; p < first + run; p++) {
                const block_x16 block = part_of(weights, b / 8, p, type);
                fetch_ahead(block.scales, block_bytes(type), fetch_of(tuning, nc));
                add_sixes_avx512(block, type, a->q + (at + p * nc) * BLOCK, start + 2 * p * nc,
                                 a->scale + at + p * nc, nc, tuning, total);
            }
        }
        const __m512 d = load_scales_avx512(part_of(weights, b / 8, 0, type).d, type);
        FOR_EACH_COLUMN acc_f32x16[c] = _mm512_fmadd_ps(d, total[c], acc_f32x16[c]);
    }
    store_columns_avx512(acc_f32x16, nc, out, out_stride, n_rows, add);
}

/* ---- Q4_K and Q5_K ----
 *
 * Integers in the upper bits of a byte are not moved down: 16 or 8 times the integers give 16 or 8
 * times the sum, and s_p is divided by that. */

/* total += scale * (factor * dot) */
ALWAYS_INLINE __m512 add_part_avx512(__m512 total, __m512i dot, __m512i factor, float scale,
                                     const tuning_t *tuning) {
    const __m512 s = _mm512_set1_ps(scale);
    if (tuning->float_factors)
        return _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot),
                               _mm512_mul_ps(_mm512_cvtepi32_ps(factor), s), total);
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_mullo_epi32(dot, factor)), s, total);
}

/* Both parts of a pair; x and scale of nc columns for each part. With few columns a vector is used
 * for both parts as soon as it is there; with many a part's vectors stay in registers. */
ALWAYS_INLINE void add_pair_avx512(block_x16 pair, const int8_t (*factor)[16], const int8_t *x,
                                   const float *scale, const int nc, const tuning_t *tuning,
                                   const int type, __m512 *total) {
    const int n = columns_at_once(tuning, nc);
    __m512i factors[2], dot[2][TILE_COLUMNS];
    for (int odd = 0; odd < 2; odd++)
        factors[odd] = load_factors_avx512(factor[odd]);
    if (nc > 2) {
        _Pragma("GCC unroll 2")
        for (int odd = 0; odd < 2; odd++, x += nc * BLOCK, scale += nc) {
            __m512i w_u8x64[8];
            for (int v = 0; v < 8; v++) w_u8x64[v] = pairs_avx512(pair, type, odd, v);
            FOR_COLUMNS_BY(n) {
                FOR_EACH_OF(n) dot[0][c] = _mm512_setzero_si512();
                add_dots_avx512(dot[0], w_u8x64, x + first * BLOCK, n, 0, 8);
                FOR_EACH_OF(n) total[first + c] = add_part_avx512(
                    total[first + c], dot[0][c], factors[odd], scale[first + c], tuning);
            }
        }
        return;
    }
    FOR_EACH_COLUMN dot[0][c] = dot[1][c] = _mm512_setzero_si512();
    _Pragma("GCC unroll 8")
    for (int v = 0; v < 8; v++) {
        const __m512i even = pairs_avx512(pair, type, 0, v);
        const __m512i odd = pairs_avx512(pair, type, 1, v);
        FOR_EACH_COLUMN {
            dot[0][c] = add_products_avx512(dot[0][c], even, x + c * BLOCK + 4 * v);
            dot[1][c] = add_products_avx512(dot[1][c], odd, x + (nc + c) * BLOCK + 4 * v);
        }
    }
    FOR_EACH_COLUMN {
        total[c] = add_part_avx512(total[c], dot[0][c], factors[0], scale[c], tuning);
        total[c] = add_part_avx512(total[c], dot[1][c], factors[1], scale[nc + c], tuning);
    }
}

/* Of 8 parts of nc columns: scales, those of odd parts times `odd`, and scaled sums */
ALWAYS_INLINE void part_scales_avx512(const activations_t *a, int64_t at, const int nc, float odd,
                                      float *scale, float *sum) {
    _Pragma("GCC unroll 16")
    for (int i = 0; i < 8 * nc; i += 8) {
        __mmask8 odd_parts = 0;
        _Pragma("GCC unroll 8")
        for (int lane = 0; lane < 8; lane++) odd_parts |= (i + lane) / nc % 2 << lane;
        const __m256 s = _mm256_loadu_ps(a->scale + at + i);
        const __m256i sums = _mm256_loadu_si256((const __m256i *)(a->neg8_sum + at + i));
        _mm256_storeu_ps(scale + i, _mm256_mask_mul_ps(s, odd_parts, s, _mm256_set1_ps(odd)));
        _mm256_storeu_ps(sum + i, _mm256_mul_ps(_mm256_mul_ps(s, _mm256_set1_ps(-0.125f)),
                                                _mm256_cvtepi32_ps(sums)));
    }
}

ALWAYS_INLINE void fetch_pair_avx512(const void *weights, int64_t b, block_x16 pair, const int nc,
                                     const int type, const tuning_t *tuning) {
    if (tuning->fetches_factors)
        fetch_ahead((const char *)weights + b * block_bytes(type), 2 * block_bytes(type),
                    fetch_of(tuning, nc));
    else if (high_bits(type)) fetch_ahead(pair.high, 10 * 64, fetch_of(tuning, nc));
    else fetch_ahead(pair.low, 8 * 64, fetch_of(tuning, nc));
}

ALWAYS_INLINE void paired_columns_avx512(const void *weights, const activations_t *a, int64_t col,
                                         const int nc, float *out, int64_t out_stride, int n_rows,
                                         int add, const int type, const tuning_t *tuning) {
    const int64_t n_blocks = a->n_k / BLOCK;
    int64_t at = col * n_blocks;
    __m512 acc_f32x16[TILE_COLUMNS];
    FOR_EACH_COLUMN acc_f32x16[c] = _mm512_setzero_ps();
    for (int64_t b = 0; b < n_blocks; b += 8, at += 8 * nc) {
        const block_x16 super = part_of(weights, b / 8, 0, type);
        float scale[8 * TILE_COLUMNS], sum[8 * TILE_COLUMNS]; /* [part][nc] */
        part_scales_avx512(a, at, nc, high_bits(type) ? 0x1p-3f : 0x1p-4f, scale, sum);
        factors_t factors;
        unpack_factors(super, type, &factors);
        /* Through memory: taking a number out of a register costs an instruction more. */
        __asm__("" : "+m"(factors), "+m"(scale), "+m"(sum));
        __m512 total[TILE_COLUMNS];
        FOR_EACH_COLUMN total[c] = _mm512_setzero_ps();
        _Pragma("GCC unroll 1") /* as in sixes_columns_avx512 */
        for (int p = 0; p < 8; p += 2) {
            const block_x16 pair = part_of(weights, b / 8, p, type);
            fetch_pair_avx512(weights, b + p, pair, nc, type, tuning);
            add_pair_avx512(pair, factors.d + p, a->q + (at + p * nc) * BLOCK, scale + p * nc, nc,
                            tuning, type, total);
        }
        const __m512 d = load_scales_avx512(super.d, type);
        const __m512 dmin = load_scales_avx512(super.m, type);
        __m512 m[8];
        for (int p = 0; p < 8; p++)
            m[p] = _mm512_cvtepi32_ps(load_factors_avx512(factors.m[p]));
        FOR_EACH_COLUMN {
            __m512 least = _mm512_setzero_ps();
            _Pragma("GCC unroll 8")
            for (int p = 0; p < 8; p++)
                least = _mm512_fmadd_ps(m[p], _mm512_set1_ps(sum[p * nc + c]), least);
            acc_f32x16[c] = _mm512_fmadd_ps(d, total[c], acc_f32x16[c]);
            acc_f32x16[c] = _mm512_fmadd_ps(dmin, least, acc_f32x16[c]);
        }
    }
    store_columns_avx512(acc_f32x16, nc, out, out_stride, n_rows, add);
}

/* ---- all types ---- */

/* nc is known when compiling, so that the sums stay in registers. */
ALWAYS_INLINE void tile_of_avx512(const void *w, const activations_t *a, int64_t col, const int nc,
                                  float *out, int64_t out_stride, int n_rows, int add,
                                  const int type, const tuning_t *tuning) {
    if (layout_of(type) == PAIRS)
        paired_columns_avx512(w, a, col, nc, out, out_stride, n_rows, add, type, tuning);
    else if (layout_of(type) == SIXES)
        sixes_columns_avx512(w, a, col, nc, out, out_stride, n_rows, add, type, tuning);
    else if (type == W_Q4_0 && nc == 1)
        q4_0_column_avx512(w, a, col, out, out_stride, n_rows, add, tuning->few);
    else columns_avx512(w, a, col, nc, out, out_stride, n_rows, add, type, tuning);
}

ALWAYS_INLINE void tile_avx512(const void *w, const activations_t *a, int64_t col, int n_cols,
                               float *out, int64_t out_stride, int n_rows, int add, const int type,
                               const tuning_t *tuning) {
    if (layout_of(type) == FLOATS) {
        float_tile_avx512(w, a, col, n_cols, out, out_stride, n_rows, add, type, tuning->few);
        return;
    }
#define WIDTH(n) \
    case n: tile_of_avx512(w, a, col, n, out, out_stride, n_rows, add, type, tuning); break;
    switch (n_cols) {
        WIDTH(1) WIDTH(2) WIDTH(3) WIDTH(4) WIDTH(5) WIDTH(6) WIDTH(7) WIDTH(8) WIDTH(16)
    }
#undef WIDTH
}

#define TYPE(NAME, name) MATMUL(matmul_##name##_avx512, tile_avx512, W_##NAME, &TUNING_avx512)
#include "types.def"
#define TYPE(NAME, name) \
    MATMUL(matmul_##name##_avx512_intel, tile_avx512, W_##NAME, &TUNING_avx512_intel)
#include "types.def"

static void use_matmul_avx512(kernels_t *k) {
    for (int n = 1; n <= TILE_COLUMNS; n++) k->widths[n] = (int8_t)(n >= 16 ? 16 : n >= 8 ? 8 : n);
#define TYPE(NAME, name) k->matmul[W_##NAME] = matmul_##name##_avx512;
#include "types.def"
}

static void use_matmul_avx512_intel(kernels_t *k) {
#define TYPE(NAME, name) k->matmul[W_##NAME] = matmul_##name##_avx512_intel;
#include "types.def"
}

#undef FOR_COLUMNS_BY
#undef FOR_EACH_COLUMN
#undef FOR_EACH_OF
#endif
