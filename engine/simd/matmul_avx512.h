/* Matmul tiles for AVX-512 (F, BW, VL, VNNI): one group of 16 rows times one tile of columns.
 *
 * A row of lanes is a row of the group: vpdpbusd adds, for each of 16 rows, 4 products of an
 * unsigned weight byte and a signed activation byte. Weights keep their offset (8, 128, 32); since
 *     sum (n - 8) q = sum n q - 8 sum q
 * the correction is the start value of the integer sum and costs nothing. Up to 16 columns share
 * one unpacking of the weights. Each column is summed in the same order whatever the tile's width,
 * so that a token's result does not depend on its neighbours in the batch.
 */
#ifndef LARIAT_MATMUL_AVX512_H
#define LARIAT_MATMUL_AVX512_H

#include <immintrin.h>

#include "cores.h"
#include "layout.h"

#define FOR_EACH_OF(n) _Pragma("GCC unroll 16") for (int c = 0; c < n; c++)
#define FOR_EACH_COLUMN FOR_EACH_OF(nc)
/* Columns from `first` on, `n` at a time */
#define FOR_COLUMNS_BY(n) _Pragma("GCC unroll 16") for (int first = 0; first < nc; first += n)

/* Each lane of `sum` plus 4 weights of a row times the 4 bytes at q. Compilers load the broadcast
 * apart; as an operand it costs no instruction (16 columns: 8 to 10 % faster). */
ALWAYS_INLINE __m512i add_products_avx512(__m512i sum, __m512i w_u8x64, const int8_t *q) {
    __asm__("vpdpbusd %2%{1to16%}, %1, %0"
            : "+v"(sum)
            : "v"(w_u8x64), "m"(*(const int8_t(*)[4])q));
    return sum;
}

ALWAYS_INLINE __m512 load_16_f16_avx512(const f16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
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

ALWAYS_INLINE void unpack_nibbles_avx512(const uint8_t q[4][64], __m512i w_u8x64[8]) {
    const __m512i low = _mm512_set1_epi8(15);
    for (int v = 0; v < 4; v++) {
        const __m512i t = _mm512_loadu_si512(q[v]);
        w_u8x64[v] = _mm512_and_si512(t, low);
        w_u8x64[4 + v] = _mm512_and_si512(_mm512_srli_epi16(t, 4), low);
    }
}

/* sum[c] += the dot product of weight vectors [from, to) with the block of n columns at q */
ALWAYS_INLINE void add_dots_avx512(__m512i *sum, const __m512i *w_u8x64, const int8_t *q, const int n,
                                   const int from, const int to) {
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
 * blocks a turn of the loop: a fifth faster from the L2 cache, the same from memory. */
ALWAYS_INLINE __m512 q4_0_column_avx512(const q4_0_x16 *w, const int8_t *q, const float *scale,
                                        const int32_t *neg8_sum, int64_t n_blocks,
                                        const int core) {
    __m512 acc_f32x16 = _mm512_setzero_ps();
    _Pragma("GCC unroll 4")
    for (int64_t b = 0; b < n_blocks; b++, w++, q += BLOCK) {
        fetch_ahead(w, sizeof *w, fetch_of(core, 1));
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

ALWAYS_INLINE void q4_0_columns_avx512(const void *weights, const activations_t *a, int64_t col,
                                       const int nc, float *out, int64_t out_stride, int n_rows,
                                       int add, const int core) {
    const q4_0_x16 *w = weights;
    const int n = columns_at_once(core, nc);
    const int64_t n_blocks = a->n_k / BLOCK;
    const int8_t *q = a->q + col * a->n_k;
    const float *scale = a->scale + col * n_blocks;
    const int32_t *neg8_sum = a->neg8_sum + col * n_blocks;
    __m512 acc_f32x16[TILE_COLUMNS];
    FOR_EACH_COLUMN acc_f32x16[c] = _mm512_setzero_ps();
    if (nc == 1) {
        acc_f32x16[0] = q4_0_column_avx512(w, q, scale, neg8_sum, n_blocks, core);
        store_columns_avx512(acc_f32x16, nc, out, out_stride, n_rows, add);
        return;
    }
    for (int64_t b = 0; b < n_blocks; b++, w++, q += nc * BLOCK, scale += nc, neg8_sum += nc) {
        fetch_ahead(w, sizeof *w, fetch_of(core, nc));
        __m512i w_u8x64[8];
        unpack_nibbles_avx512(w->q, w_u8x64);
        const __m512 d = load_16_f16_avx512(w->d);
        FOR_COLUMNS_BY(n) {
            __m512i dot[TILE_COLUMNS];
            FOR_EACH_OF(n) dot[c] = _mm512_set1_epi32(neg8_sum[first + c]);
            add_dots_avx512(dot, w_u8x64, q + first * BLOCK, n, 0, 8);
            FOR_EACH_OF(n) add_scaled_avx512(acc_f32x16 + first + c, dot[c], d, scale[first + c]);
        }
    }
    store_columns_avx512(acc_f32x16, nc, out, out_stride, n_rows, add);
}

ALWAYS_INLINE void q4_1_columns_avx512(const void *weights, const activations_t *a, int64_t col,
                                       const int nc, float *out, int64_t out_stride, int n_rows,
                                       int add, const int core) {
    const q4_1_x16 *w = weights;
    const int n = columns_at_once(core, nc);
    const int64_t n_blocks = a->n_k / BLOCK;
    const int8_t *q = a->q + col * a->n_k;
    const float *scale = a->scale + col * n_blocks;
    const int32_t *neg8_sum = a->neg8_sum + col * n_blocks;
    __m512 acc_f32x16[TILE_COLUMNS];
    FOR_EACH_COLUMN acc_f32x16[c] = _mm512_setzero_ps();
    for (int64_t b = 0; b < n_blocks; b++, w++, q += nc * BLOCK, scale += nc, neg8_sum += nc) {
        fetch_ahead(w, sizeof *w, fetch_of(core, nc));
        __m512i w_u8x64[8];
        unpack_nibbles_avx512(w->q, w_u8x64);
        const __m512 d = load_16_f16_avx512(w->d), m = load_16_f16_avx512(w->m);
        FOR_COLUMNS_BY(n) {
            __m512i dot[TILE_COLUMNS];
            FOR_EACH_OF(n) dot[c] = _mm512_setzero_si512();
            add_dots_avx512(dot, w_u8x64, q + first * BLOCK, n, 0, 8);
            FOR_EACH_OF(n) {
                __m512 *acc = acc_f32x16 + first + c;
                const float s = scale[first + c], sum = s * -0.125f * (float)neg8_sum[first + c];
                add_scaled_avx512(acc, dot[c], d, s);
                *acc = _mm512_fmadd_ps(m, _mm512_set1_ps(sum), *acc);
            }
        }
    }
    store_columns_avx512(acc_f32x16, nc, out, out_stride, n_rows, add);
}

ALWAYS_INLINE void q8_0_columns_avx512(const void *weights, const activations_t *a, int64_t col,
                                       const int nc, float *out, int64_t out_stride, int n_rows,
                                       int add, const int core) {
    const q8_0_x16 *w = weights;
    const int n = columns_at_once(core, nc);
    const int64_t n_blocks = a->n_k / BLOCK;
    const int8_t *q = a->q + col * a->n_k;
    const float *scale = a->scale + col * n_blocks;
    const int32_t *neg8_sum = a->neg8_sum + col * n_blocks;
    __m512 acc_f32x16[TILE_COLUMNS];
    FOR_EACH_COLUMN acc_f32x16[c] = _mm512_setzero_ps();
    for (int64_t b = 0; b < n_blocks; b++, w++, q += nc * BLOCK, scale += nc, neg8_sum += nc) {
        fetch_ahead(w, sizeof *w, fetch_of(core, nc));
        __m512i w_u8x64[8];
        for (int v = 0; v < 8; v++) w_u8x64[v] = _mm512_loadu_si512(w->q[v]);
        const __m512 d = load_16_f16_avx512(w->d);
        FOR_COLUMNS_BY(n) {
            __m512i dot[TILE_COLUMNS];
            FOR_EACH_OF(n) dot[c] = _mm512_set1_epi32(16 * neg8_sum[first + c]);
            add_dots_avx512(dot, w_u8x64, q + first * BLOCK, n, 0, 8);
            FOR_EACH_OF(n) add_scaled_avx512(acc_f32x16 + first + c, dot[c], d, scale[first + c]);
        }
    }
    store_columns_avx512(acc_f32x16, nc, out, out_stride, n_rows, add);
}

/* Vector k = 0..3 of a half's integers */
ALWAYS_INLINE __m512i q6_integers_avx512(const uint8_t (*q)[64], const int k) {
    const __m512i mask = _mm512_set1_epi8(63);
    if (k < 3) return _mm512_and_si512(_mm512_loadu_si512(q[k]), mask);
    const int choose = 0xca; /* bit by bit: where the first operand is 1 the second, else the third */
    const __m512i top = _mm512_srli_epi16(_mm512_loadu_si512(q[0]), 2);
    const __m512i middle = _mm512_srli_epi16(_mm512_loadu_si512(q[1]), 4);
    const __m512i bottom = _mm512_srli_epi16(_mm512_loadu_si512(q[2]), 6);
    const __m512i upper = _mm512_ternarylogic_epi32(_mm512_set1_epi8(48), top, middle, choose);
    const __m512i all = _mm512_ternarylogic_epi32(_mm512_set1_epi8(60), upper, bottom, choose);
    return _mm512_and_si512(all, mask);
}

/* A part: total += scale (f0 dot0 + f1 dot1) for its two halves; as in matmul_k_avx512.h */
ALWAYS_INLINE void add_q6_part_avx512(const uint8_t (*q)[3][64], const int8_t (*factor)[16],
                                      const int8_t *x, const int32_t *start, const float *scale,
                                      const int nc, const int core, __m512 *total) {
    const int n = nc > 4 ? columns_at_once(core, 4) : columns_at_once(core, nc);
    __m512i w_u8x64[8], f[2];
    for (int v = 0; v < 8; v++) w_u8x64[v] = q6_integers_avx512(q[v / 4], v % 4);
    for (int h = 0; h < 2; h++)
        f[h] = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)factor[h]));
    FOR_COLUMNS_BY(n) {
        __m512i dot[2][TILE_COLUMNS];
        _Pragma("GCC unroll 2")
        for (int h = 0; h < 2; h++) {
            FOR_EACH_OF(n) dot[h][c] = _mm512_set1_epi32(start[2 * (first + c) + h]);
            add_dots_avx512(dot[h], w_u8x64, x + first * BLOCK, n, 4 * h, 4 * h + 4);
        }
        FOR_EACH_OF(n) {
            __m512 sum;
            if (core == CORE_INTEL) /* for which a product of 32-bit integers is two operations */
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

ALWAYS_INLINE void q6_K_columns_avx512(const void *weights, const activations_t *a, int64_t col,
                                       const int nc, float *out, int64_t out_stride, int n_rows,
                                       int add, const int core) {
    const q6_K_x16 *w = weights;
    const int64_t n_blocks = a->n_k / BLOCK;
    int64_t at = col * n_blocks;
    __m512 acc_f32x16[TILE_COLUMNS];
    FOR_EACH_COLUMN acc_f32x16[c] = _mm512_setzero_ps();
    for (int64_t b = 0; b < n_blocks; b += 8, at += 8 * nc, w++) {
        int32_t start[16 * TILE_COLUMNS]; /* [part][nc][half] */
        for (int i = 0; i < 16 * nc; i += 16) {
            const __m256i sums =
                _mm256_loadu_si256((const __m256i *)(a->half_sum + 2 * at + i));
            _mm512_storeu_si512(start + i, _mm512_mullo_epi32(_mm512_cvtepi16_epi32(sums),
                                                              _mm512_set1_epi32(-32)));
        }
        __asm__("" : "+m"(start)); /* from memory a broadcast is a load and nothing else */
        __m512 total[TILE_COLUMNS];
        FOR_EACH_COLUMN total[c] = _mm512_setzero_ps();
        /* As many parts unrolled as memory is read fastest with: the hardware's prefetch goes by the
         * steps of single instructions. */
        const int run = nc == 2 ? 8 : 1;
        _Pragma("GCC unroll 1")
        for (int first = 0; first < 8; first += run) {
            _Pragma("GCC unroll 8")
            for (int p = first; p < first + run; p++) {
                fetch_ahead(&w->part[p], sizeof w->part[p], fetch_of(core, nc));
                add_q6_part_avx512(w->part[p].q, w->part[p].scale, a->q + (at + p * nc) * BLOCK,
                                   start + 2 * p * nc, a->scale + at + p * nc, nc, core, total);
            }
        }
        const __m512 d = load_16_f16_avx512(w->d);
        FOR_EACH_COLUMN acc_f32x16[c] = _mm512_fmadd_ps(d, total[c], acc_f32x16[c]);
    }
    store_columns_avx512(acc_f32x16, nc, out, out_stride, n_rows, add);
}

/* A tile's width is one of five, each compiled on its own so that its sums stay in registers. What
 * follows `columns` is passed on. */
#define COLUMNS_AVX512(columns, nc, ...) \
    BY_CORE(columns, w, a, col, nc, out, out_stride, n_rows, add, ##__VA_ARGS__)
#define MATMUL_AVX512(name, columns, ...)                                            \
    static void name(const void *w, const activations_t *a, int64_t col, int n_cols, \
                     float *out, int64_t out_stride, int n_rows, int add) {          \
        switch (n_cols) {                                                            \
        case 16: COLUMNS_AVX512(columns, 16, ##__VA_ARGS__); break;                  \
        case 8: COLUMNS_AVX512(columns, 8, ##__VA_ARGS__); break;                    \
        case 4: COLUMNS_AVX512(columns, 4, ##__VA_ARGS__); break;                    \
        case 2: COLUMNS_AVX512(columns, 2, ##__VA_ARGS__); break;                    \
        default: COLUMNS_AVX512(columns, 1, ##__VA_ARGS__);                          \
        }                                                                            \
    }
MATMUL_AVX512(matmul_q4_0_avx512, q4_0_columns_avx512)
MATMUL_AVX512(matmul_q4_1_avx512, q4_1_columns_avx512)
MATMUL_AVX512(matmul_q8_0_avx512, q8_0_columns_avx512)
MATMUL_AVX512(matmul_q6_K_avx512, q6_K_columns_avx512)

enum { F32_WEIGHTS_AVX512, F16_WEIGHTS_AVX512, BF16_WEIGHTS_AVX512 };

ALWAYS_INLINE __m512 load_weights_avx512(const void *w, int64_t k, const int type) {
    if (type == F32_WEIGHTS_AVX512) return _mm512_loadu_ps((const float *)w + 16 * k);
    const uint16_t *p = (const uint16_t *)w + 16 * k;
    if (type == F16_WEIGHTS_AVX512) return load_16_f16_avx512(p);
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

/* Float weights, nc columns: even and odd k in two chains to hide the latency of the sums. */
ALWAYS_INLINE void float_columns_avx512(const void *w, const float *x, int64_t n_k, const int nc,
                                        float *out, int64_t out_stride, int n_rows, int add,
                                        const int type, const int fetch) {
    const int pair_bytes = type == F32_WEIGHTS_AVX512 ? 128 : 64;
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
                                     const int type, const int core) {
    const int fetch = core == CORE_INTEL ? FETCH_TWICE : FETCH_NONE;
    const float *x = a->x + col * a->n_k;
    const int64_t n_k = a->n_k;
    int c = 0;
    for (; c + 8 <= n_cols; c += 8)
        float_columns_avx512(w, x + c * n_k, n_k, 8, out + c * out_stride, out_stride, n_rows, add,
                             type, fetch);
    for (; c + 4 <= n_cols; c += 4)
        float_columns_avx512(w, x + c * n_k, n_k, 4, out + c * out_stride, out_stride, n_rows, add,
                             type, fetch);
    for (; c < n_cols; c++)
        float_columns_avx512(w, x + c * n_k, n_k, 1, out + c * out_stride, out_stride, n_rows, add,
                             type, fetch);
}

#define FLOAT_MATMUL_AVX512(name, type)                                                 \
    static void name(const void *w, const activations_t *a, int64_t col, int n_cols,    \
                     float *out, int64_t out_stride, int n_rows, int add) {             \
        BY_CORE(float_tile_avx512, w, a, col, n_cols, out, out_stride, n_rows, add, type); \
    }
FLOAT_MATMUL_AVX512(matmul_f32_avx512, F32_WEIGHTS_AVX512)
FLOAT_MATMUL_AVX512(matmul_f16_avx512, F16_WEIGHTS_AVX512)
FLOAT_MATMUL_AVX512(matmul_bf16_avx512, BF16_WEIGHTS_AVX512)
#undef FLOAT_MATMUL_AVX512

#endif
