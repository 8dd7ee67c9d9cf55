/* Matmul tiles of Q5_0, Q5_1, IQ4_NL and Q2_K to Q5_K for AVX-512 (F, BW, VL, VNNI).
 *
 * As in matmul_avx512.h: 16 rows a vector, up to 16 columns share one unpacking, each column is
 * summed in the same order whatever the tile's width. A minimum costs one more FMA a column:
 *     sum (d q + m) x = d sum q x + m sum x
 */
#ifndef LARIAT_MATMUL_K_AVX512_H
#define LARIAT_MATMUL_K_AVX512_H

#include <immintrin.h>

#include "matmul_avx512.h"
#include "unpack.h"

/* Bytes of t moved by n bits, up if n > 0; what crosses a byte's border is for the caller to mask */
ALWAYS_INLINE __m512i shift_avx512(__m512i t, const int n) {
    return n > 0 ? _mm512_slli_epi16(t, n) : n < 0 ? _mm512_srli_epi16(t, -n) : t;
}

ALWAYS_INLINE void unpack_integers_avx512(block_x16 block, const int type, __m512i w_u8x64[8]) {
    const int n = low_bits(type);
    const __m512i mask = _mm512_set1_epi8((1 << n) - 1), bit = _mm512_set1_epi8(1 << n);
    _Pragma("GCC unroll 8")
    for (int v = 0; v < 8; v++)
        w_u8x64[v] = _mm512_and_si512(
            shift_avx512(_mm512_loadu_si512(block.low[v % n]), -n * (v / n)), mask);
    if (has_high_bit(type)) {
        const __m512i high = _mm512_loadu_si512(block.high);
        _Pragma("GCC unroll 8")
        for (int v = 0; v < 8; v++) /* w | (shifted & bit) in one operation */
            w_u8x64[v] =
                _mm512_ternarylogic_epi32(w_u8x64[v], shift_avx512(high, n - v), bit, 0xf8);
    }
    if (type == W_IQ4_NL) { /* unsigned, as the dot product wants it */
        const __m128i steps = _mm_xor_si128(_mm_loadu_si128((const __m128i *)IQ4_NL_STEPS),
                                            _mm_set1_epi8((char)0x80));
        const __m512i table = _mm512_broadcast_i32x4(steps);
        for (int v = 0; v < 8; v++) w_u8x64[v] = _mm512_shuffle_epi8(table, w_u8x64[v]);
    }
}

/* f16 of 16 rows, times their factors in the K types */
ALWAYS_INLINE __m512 scaled_f16_avx512(const f16_t *f16, const int8_t *factor, const int type) {
    const __m512 rows = load_16_f16_avx512(f16);
    if (!is_super(type)) return rows;
    return _mm512_mul_ps(rows, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)factor))));
}

ALWAYS_INLINE void k_columns_avx512(const void *weights, const activations_t *a, int64_t col,
                                    const int nc, float *out, int64_t out_stride, int n_rows,
                                    int add, const int type, const int core) {
    const int n = columns_at_once(core, nc);
    const int64_t n_blocks = a->n_k / BLOCK;
    int64_t at = col * n_blocks;
    __m512 acc_f32x16[TILE_COLUMNS];
    FOR_EACH_COLUMN acc_f32x16[c] = _mm512_setzero_ps();
    factors_t factors;
    for (int64_t b = 0; b < n_blocks; b++, at += nc) {
        const block_x16 block = block_of(weights, b, type);
        const int8_t *q = a->q + at * BLOCK;
        const float *scale = a->scale + at;
        if (core == CORE_INTEL) /* scales too */
            fetch_ahead((const char *)weights + b * block_bytes(type), block_bytes(type),
                        fetch_of(core, nc));
        else
            fetch_ahead(block.low, 64 * (low_bits(type) + has_high_bit(type)), fetch_of(core, nc));
        __m512i w_u8x64[8];
        unpack_integers_avx512(block, type, w_u8x64);
        if (is_super(type) && b % 8 == 0) unpack_factors(block, type, &factors);
        __m512 d[2], m[2];
        _Pragma("GCC unroll 2")
        for (int h = 0; h < 1 + is_halved(type); h++) {
            const int i = is_halved(type) ? 2 * block.part + h : block.part;
            d[h] = scaled_f16_avx512(block.d, factors.d[i], type);
            if (has_minimum(type))
                m[h] = scaled_f16_avx512(block.m, factors.m[i], type);
        }
        sums_t sums;
        block_sums(a, at, nc, type, &sums);
        FOR_COLUMNS_BY(n) {
            __m512i dot[2][TILE_COLUMNS];
            _Pragma("GCC unroll 2")
            for (int h = 0; h < 1 + is_halved(type); h++) {
                FOR_EACH_OF(n) dot[h][c] = has_minimum(type)
                                               ? _mm512_setzero_si512()
                                               : _mm512_set1_epi32(sums.start[h][first + c]);
                add_dots_avx512(dot[h], w_u8x64, q + first * BLOCK, n, 4 * h,
                                is_halved(type) ? 4 * h + 4 : 8);
            }
            FOR_EACH_OF(n) {
                __m512 *acc = acc_f32x16 + first + c;
                if (is_halved(type)) {
                    const __m512 second = _mm512_mul_ps(_mm512_cvtepi32_ps(dot[1][c]), d[1]);
                    const __m512 both = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[0][c]), d[0], second);
                    *acc = _mm512_fmadd_ps(both, _mm512_set1_ps(scale[first + c]), *acc);
                } else {
                    add_scaled_avx512(acc, dot[0][c], d[0], scale[first + c]);
                }
                if (has_minimum(type))
                    for (int h = 0; h < 1 + is_halved(type); h++)
                        *acc = _mm512_fmadd_ps(m[h], _mm512_set1_ps(sums.scaled[h][first + c]), *acc);
            }
        }
    }
    store_columns_avx512(acc_f32x16, nc, out, out_stride, n_rows, add);
}

/* ---- Q4_K and Q5_K: a super-block at a time --------------------------------------------------
 *
 * The sums q x of a part are integers, and so are the factors f and g of its scale and minimum:
 *     sum (d f q - dmin g) s x = d sum_p s_p (f_p sum q x) - dmin sum_p g_p (s_p sum x)
 * over the parts p, s_p being the scale of a part's activations x. So only the product f_p sum q x
 * becomes a float, and d and dmin are used once for eight parts. What stands high in a byte is not
 * moved down: 16 or 8 times the number gives as many times the sum, and s_p is divided by that. */

/* Vector v of part 2i of a pair (odd: 0), or 16 (Q4_K) or 8 (Q5_K) times that of part 2i + 1 */
ALWAYS_INLINE __m512i paired_integers_avx512(block_x16 pair, const int type, const int odd,
                                             const int v) {
    const __m512i t = _mm512_loadu_si512(pair.low[v]);
    if (!odd) return _mm512_and_si512(t, _mm512_set1_epi8(type == W_Q4_K ? 15 : 31));
    if (type == W_Q4_K) return _mm512_and_si512(t, _mm512_set1_epi8((char)0xf0));
    const __m512i low = shift_avx512(_mm512_loadu_si512(pair.high[v / 4]), 3 - 2 * (v % 4));
    const int choose = 0xca; /* as in q6_integers_avx512 */
    const __m512i both =
        _mm512_ternarylogic_epi32(_mm512_set1_epi8((char)0xe0), t, low, choose);
    return _mm512_and_si512(both, _mm512_set1_epi8((char)0xf8));
}

/* total += scale * (factor * dot). Intel's cores need two operations for a product of 32-bit integers. */
ALWAYS_INLINE __m512 add_part_avx512(__m512 total, __m512i dot, __m512i factor, float scale,
                                     const int core) {
    const __m512 s = _mm512_set1_ps(scale);
    if (core == CORE_INTEL)
        return _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot),
                               _mm512_mul_ps(_mm512_cvtepi32_ps(factor), s), total);
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_mullo_epi32(dot, factor)), s, total);
}

/* Both parts of a pair; x and scale of nc columns for each part. With few columns a vector is used
 * for both parts as soon as it is there; with many a part's vectors stay in registers. */
ALWAYS_INLINE void add_pair_avx512(block_x16 pair, const int8_t (*factor)[16], const int8_t *x,
                                   const float *scale, const int nc, const int core, const int type,
                                   __m512 *total) {
    const int n = columns_at_once(core, nc);
    __m512i factors[2], dot[2][TILE_COLUMNS];
    for (int odd = 0; odd < 2; odd++)
        factors[odd] = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)factor[odd]));
    if (nc > 2) {
        _Pragma("GCC unroll 2")
        for (int odd = 0; odd < 2; odd++, x += nc * BLOCK, scale += nc) {
            __m512i w_u8x64[8];
            for (int v = 0; v < 8; v++) w_u8x64[v] = paired_integers_avx512(pair, type, odd, v);
            FOR_COLUMNS_BY(n) {
                FOR_EACH_OF(n) dot[0][c] = _mm512_setzero_si512();
                add_dots_avx512(dot[0], w_u8x64, x + first * BLOCK, n, 0, 8);
                FOR_EACH_OF(n) total[first + c] = add_part_avx512(total[first + c], dot[0][c],
                                                                  factors[odd], scale[first + c], core);
            }
        }
        return;
    }
    FOR_EACH_COLUMN dot[0][c] = dot[1][c] = _mm512_setzero_si512();
    _Pragma("GCC unroll 8")
    for (int v = 0; v < 8; v++) {
        const __m512i even = paired_integers_avx512(pair, type, 0, v);
        const __m512i odd = paired_integers_avx512(pair, type, 1, v);
        FOR_EACH_COLUMN {
            dot[0][c] = add_products_avx512(dot[0][c], even, x + c * BLOCK + 4 * v);
            dot[1][c] = add_products_avx512(dot[1][c], odd, x + (nc + c) * BLOCK + 4 * v);
        }
    }
    FOR_EACH_COLUMN {
        total[c] = add_part_avx512(total[c], dot[0][c], factors[0], scale[c], core);
        total[c] = add_part_avx512(total[c], dot[1][c], factors[1], scale[nc + c], core);
    }
}

/* Of 8 parts of nc columns: scales, those of odd parts times `odd`, and scaled sums */
ALWAYS_INLINE void part_scales_avx512(const activations_t *a, int64_t at, const int nc, float odd,
                                      float *scale, float *sum) {
    for (int i = 0; i < 8 * nc; i += 8) {
        const __mmask8 odd_parts =
            (__mmask8)(nc == 1 ? 0xaa : nc == 2 ? 0xcc : nc == 4 ? 0xf0 : -(i / nc % 2));
        const __m256 s = _mm256_loadu_ps(a->scale + at + i);
        const __m256i sums = _mm256_loadu_si256((const __m256i *)(a->neg8_sum + at + i));
        _mm256_storeu_ps(scale + i, _mm256_mask_mul_ps(s, odd_parts, s, _mm256_set1_ps(odd)));
        _mm256_storeu_ps(sum + i, _mm256_mul_ps(_mm256_mul_ps(s, _mm256_set1_ps(-0.125f)),
                                                _mm256_cvtepi32_ps(sums)));
    }
}

ALWAYS_INLINE void paired_columns_avx512(const void *weights, const activations_t *a, int64_t col,
                                         const int nc, float *out, int64_t out_stride, int n_rows,
                                         int add, const int type, const int core) {
    const int64_t n_blocks = a->n_k / BLOCK;
    int64_t at = col * n_blocks;
    __m512 acc_f32x16[TILE_COLUMNS];
    FOR_EACH_COLUMN acc_f32x16[c] = _mm512_setzero_ps();
    for (int64_t b = 0; b < n_blocks; b += 8, at += 8 * nc) {
        const block_x16 super = block_of(weights, b, type);
        float scale[8 * TILE_COLUMNS], sum[8 * TILE_COLUMNS]; /* [part][nc] */
        part_scales_avx512(a, at, nc, type == W_Q4_K ? 0x1p-4f : 0x1p-3f, scale, sum);
        factors_t factors;
        unpack_factors(super, type, &factors);
        /* Back through memory: what is taken out of registers costs an instruction more. */
        __asm__("" : "+m"(factors), "+m"(scale), "+m"(sum));
        __m512 total[TILE_COLUMNS];
        FOR_EACH_COLUMN total[c] = _mm512_setzero_ps();
        _Pragma("GCC unroll 1") /* as in q6_K_columns_avx512 */
        for (int p = 0; p < 8; p += 2) {
            const block_x16 pair = block_of(weights, b + p, type);
            if (core == CORE_INTEL) /* scales too */
                fetch_ahead((const char *)weights + (b + p) * block_bytes(type), 2 * block_bytes(type),
                            fetch_of(core, nc));
            else
                fetch_ahead(type == W_Q5_K ? pair.high : pair.low, 64 * (type == W_Q5_K ? 10 : 8),
                            fetch_of(core, nc));
            add_pair_avx512(pair, factors.d + p, a->q + (at + p * nc) * BLOCK, scale + p * nc, nc,
                            core, type, total);
        }
        const __m512 d = load_16_f16_avx512(super.d), dmin = load_16_f16_avx512(super.m);
        __m512 m[8];
        for (int p = 0; p < 8; p++)
            m[p] = _mm512_cvtepi32_ps(
                _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)factors.m[p])));
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

MATMUL_AVX512(matmul_q5_0_avx512, k_columns_avx512, W_Q5_0)
MATMUL_AVX512(matmul_q5_1_avx512, k_columns_avx512, W_Q5_1)
MATMUL_AVX512(matmul_iq4_NL_avx512, k_columns_avx512, W_IQ4_NL)
MATMUL_AVX512(matmul_q2_K_avx512, k_columns_avx512, W_Q2_K)
MATMUL_AVX512(matmul_q3_K_avx512, k_columns_avx512, W_Q3_K)
MATMUL_AVX512(matmul_q4_K_avx512, paired_columns_avx512, W_Q4_K)
MATMUL_AVX512(matmul_q5_K_avx512, paired_columns_avx512, W_Q5_K)

static void use_matmul_avx512(kernels_t *k) {
    k->matmul[W_F32] = matmul_f32_avx512;
    k->matmul[W_F16] = matmul_f16_avx512;
    k->matmul[W_BF16] = matmul_bf16_avx512;
    k->matmul[W_Q4_0] = matmul_q4_0_avx512;
    k->matmul[W_Q4_1] = matmul_q4_1_avx512;
    k->matmul[W_Q8_0] = matmul_q8_0_avx512;
    k->matmul[W_Q6_K] = matmul_q6_K_avx512;
    k->matmul[W_Q5_0] = matmul_q5_0_avx512;
    k->matmul[W_Q5_1] = matmul_q5_1_avx512;
    k->matmul[W_IQ4_NL] = matmul_iq4_NL_avx512;
    k->matmul[W_Q2_K] = matmul_q2_K_avx512;
    k->matmul[W_Q3_K] = matmul_q3_K_avx512;
    k->matmul[W_Q4_K] = matmul_q4_K_avx512;
    k->matmul[W_Q5_K] = matmul_q5_K_avx512;
}

static void use_matmul_avx512_intel(kernels_t *k) { (void)k; }

#undef MATMUL_AVX512
#undef COLUMNS_AVX512
#undef FOR_COLUMNS_BY
#undef FOR_EACH_OF
#undef FOR_EACH_COLUMN
#endif
