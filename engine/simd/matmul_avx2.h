/* Matmul tiles for AVX2 with FMA and F16C: one group of 16 rows times a tile of 1, 2 or 4
 * columns, and what wider tiles (matmul_wide_avx2.h) share with them.
 *
 * The 16 rows of a 64-byte vector are two halves of 8. vpmaddubsw multiplies unsigned weight bytes
 * with signed activation bytes and adds pairs in int16. A nibble times an activation is at most
 * 15 * 127, so all eight pair sums of a block (30480) fit into int16 and are widened once; six-bit
 * weights are widened after two (2 * 2 * 63 * 127 = 32004). Eight-bit weights would overflow, so
 * they go in as |w| * (sign(w) q), at most 2 * 128 * 127 = 32512, and are widened each time.
 */
#ifndef LARIAT_MATMUL_AVX2_H
#define LARIAT_MATMUL_AVX2_H

#include <immintrin.h>

#include "cores.h"
#include "layout.h"
#include "unpack.h"

enum { COLUMNS_AVX2 = 4 }; /* multiplied at a time: 8 vectors of sums, half the registers */
enum { FETCH_AHEAD_AVX2 = 1152 }; /* bytes */

#define FOR_EACH_COLUMN _Pragma("GCC unroll 4") for (int c = 0; c < nc; c++)
#define FOR_BOTH_HALVES _Pragma("GCC unroll 2") for (int h = 0; h < 2; h++)

typedef struct {
    __m256 half[2]; /* rows 0..7, rows 8..15 */
} rows_f32x16_avx2;

ALWAYS_INLINE __m256i broadcast_4_bytes_avx2(const int8_t *q) {
    int32_t four;
    memcpy(&four, q, 4);
    return _mm256_set1_epi32(four);
}

ALWAYS_INLINE __m256 load_8_f16_avx2(const f16_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}

ALWAYS_INLINE rows_f32x16_avx2 load_16_f16_avx2(const f16_t *p) {
    return (rows_f32x16_avx2){{load_8_f16_avx2(p), load_8_f16_avx2(p + 8)}};
}

ALWAYS_INLINE __m256i load_half_avx2(const uint8_t vector[64], int h) {
    return _mm256_loadu_si256((const __m256i *)(vector + 32 * h));
}

/* Weights are asked for some blocks ahead: the hardware's prefetch follows a tile's loads at three
 * quarters of the rate at which it follows a loop that only reads (kernels.md). Intel's cores want it as at
 * the level above; here a branch that always goes one way costs nothing that can be seen. */
ALWAYS_INLINE void fetch_ahead_avx2(const void *p, const int n_bytes) {
    if (CORE == CORE_INTEL) {
        fetch_ahead(p, n_bytes, FETCH_TWICE);
        return;
    }
    fetch_to_l1(p, n_bytes, FETCH_AHEAD_AVX2);
}

/* The same for block b, counted as if a super-block were eight blocks in a row */
ALWAYS_INLINE void fetch_block_avx2(const void *weights, int64_t b, const int type) {
    fetch_ahead_avx2((const char *)weights + b * block_bytes(type), block_bytes(type));
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

/* int16 sums of one block of nibbles for nc columns that are 32 bytes apart */
ALWAYS_INLINE void nibble_dots_avx2(const uint8_t w[4][64], const int8_t *q, const int nc,
                                    __m256i sum_i16x16[][2]) {
    const __m256i low = _mm256_set1_epi8(15);
    FOR_EACH_COLUMN FOR_BOTH_HALVES sum_i16x16[c][h] = _mm256_setzero_si256();
    _Pragma("GCC unroll 4")
    for (int v = 0; v < 4; v++) {
        __m256i first[2], second[2];
        FOR_BOTH_HALVES {
            const __m256i t = load_half_avx2(w[v], h);
            first[h] = _mm256_and_si256(t, low);
            second[h] = _mm256_and_si256(_mm256_srli_epi16(t, 4), low);
        }
        FOR_EACH_COLUMN {
            const __m256i q0 = broadcast_4_bytes_avx2(q + c * BLOCK + 4 * v);
            const __m256i q1 = broadcast_4_bytes_avx2(q + c * BLOCK + 16 + 4 * v);
            FOR_BOTH_HALVES sum_i16x16[c][h] = add_pairs_avx2(sum_i16x16[c][h], first[h], q0);
            FOR_BOTH_HALVES sum_i16x16[c][h] = add_pairs_avx2(sum_i16x16[c][h], second[h], q1);
        }
    }
}

/* Each *_columns function does a tile of nc columns, 1, 2 or 4. */
ALWAYS_INLINE void q4_columns_avx2(const void *weights, const activations_t *a, int64_t col,
                                   const int nc, float *out, int64_t out_stride, int n_rows,
                                   int add, const int type) {
    const int64_t n_blocks = a->n_k / BLOCK;
    int64_t at = col * n_blocks;
    rows_f32x16_avx2 acc[COLUMNS_AVX2];
    FOR_EACH_COLUMN FOR_BOTH_HALVES acc[c].half[h] = _mm256_setzero_ps();
    for (int64_t b = 0; b < n_blocks; b++, at += nc) {
        const q4_0_x16 *q4_0 = (const q4_0_x16 *)weights + b;
        const q4_1_x16 *q4_1 = (const q4_1_x16 *)weights + b;
        fetch_block_avx2(weights, b, type);
        __m256i sum_i16x16[COLUMNS_AVX2][2];
        nibble_dots_avx2(type == W_Q4_0 ? q4_0->q : q4_1->q, a->q + at * BLOCK, nc, sum_i16x16);
        const rows_f32x16_avx2 d = load_16_f16_avx2(type == W_Q4_0 ? q4_0->d : q4_1->d);
        FOR_EACH_COLUMN {
            __m256i dot[2];
            FOR_BOTH_HALVES {
                dot[h] = widen_avx2(sum_i16x16[c][h]);
                if (type == W_Q4_0)
                    dot[h] = _mm256_add_epi32(dot[h], _mm256_set1_epi32(a->neg8_sum[at + c]));
            }
            add_scaled_avx2(&acc[c], dot, d.half, a->scale[at + c]);
            if (type == W_Q4_0) continue;
            const __m256 sum =
                _mm256_set1_ps(a->scale[at + c] * -0.125f * (float)a->neg8_sum[at + c]);
            FOR_BOTH_HALVES acc[c].half[h] =
                _mm256_fmadd_ps(load_8_f16_avx2(q4_1->m + 8 * h), sum, acc[c].half[h]);
        }
    }
    store_columns_avx2(acc, nc, out, out_stride, n_rows, add);
}

/* Vector v of a block's signed weights, half h of the rows */
ALWAYS_INLINE __m256i q8_0_integers_avx2(const q8_0_x16 *w, int v, int h) {
    return _mm256_xor_si256(load_half_avx2(w->q[v], h), _mm256_set1_epi8((char)0x80));
}

ALWAYS_INLINE void q8_0_columns_avx2(const void *weights, const activations_t *a, int64_t col,
                                     const int nc, float *out, int64_t out_stride, int n_rows,
                                     int add, const int type) {
    const int64_t n_blocks = a->n_k / BLOCK;
    int64_t at = col * n_blocks;
    const q8_0_x16 *w = weights;
    rows_f32x16_avx2 acc[COLUMNS_AVX2];
    FOR_EACH_COLUMN FOR_BOTH_HALVES acc[c].half[h] = _mm256_setzero_ps();
    for (int64_t b = 0; b < n_blocks; b++, w++, at += nc) {
        fetch_block_avx2(weights, b, type);
        __m256i dot[COLUMNS_AVX2][2];
        FOR_EACH_COLUMN FOR_BOTH_HALVES dot[c][h] = _mm256_setzero_si256();
        for (int v = 0; v < 8; v++) {
            __m256i weight[2], magnitude[2];
            FOR_BOTH_HALVES {
                weight[h] = q8_0_integers_avx2(w, v, h);
                magnitude[h] = _mm256_abs_epi8(weight[h]);
            }
            FOR_EACH_COLUMN {
                const __m256i q = broadcast_4_bytes_avx2(a->q + (at + c) * BLOCK + 4 * v);
                FOR_BOTH_HALVES dot[c][h] = _mm256_add_epi32(
                    dot[c][h], widen_avx2(_mm256_maddubs_epi16(
                                   magnitude[h], _mm256_sign_epi8(q, weight[h]))));
            }
        }
        const rows_f32x16_avx2 d = load_16_f16_avx2(w->d);
        FOR_EACH_COLUMN add_scaled_avx2(&acc[c], dot[c], d.half, a->scale[at + c]);
    }
    store_columns_avx2(acc, nc, out, out_stride, n_rows, add);
}

/* Vector k = 0..3 of a half's 6-bit integers, half h of the rows */
ALWAYS_INLINE __m256i q6_integers_avx2(const uint8_t (*q)[64], const int k, int h) {
    const __m256i low = _mm256_set1_epi8(3);
    if (k < 3) return _mm256_and_si256(load_half_avx2(q[k], h), _mm256_set1_epi8(63));
    const __m256i top = _mm256_srli_epi16(load_half_avx2(q[0], h), 2);
    const __m256i middle = _mm256_srli_epi16(load_half_avx2(q[1], h), 4);
    const __m256i bottom = _mm256_srli_epi16(load_half_avx2(q[2], h), 6);
    return _mm256_or_si256(_mm256_and_si256(top, _mm256_slli_epi16(low, 4)),
                           _mm256_or_si256(_mm256_and_si256(middle, _mm256_slli_epi16(low, 2)),
                                           _mm256_and_si256(bottom, low)));
}

/* d of half s of part p of a super-block, times the half's scales */
ALWAYS_INLINE rows_f32x16_avx2 q6_scales_avx2(const q6_K_x16 *super, int p, int s) {
    rows_f32x16_avx2 d = load_16_f16_avx2(super->d);
    FOR_BOTH_HALVES {
        const __m128i bytes = _mm_loadl_epi64((const __m128i *)(super->part[p].scale[s] + 8 * h));
        d.half[h] = _mm256_mul_ps(d.half[h], _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)));
    }
    return d;
}

ALWAYS_INLINE void q6_K_columns_avx2(const void *weights, const activations_t *a, int64_t col,
                                     const int nc, float *out, int64_t out_stride, int n_rows,
                                     int add, const int type) {
    const int64_t n_blocks = a->n_k / BLOCK;
    int64_t at = col * n_blocks;
    rows_f32x16_avx2 acc[COLUMNS_AVX2];
    FOR_EACH_COLUMN FOR_BOTH_HALVES acc[c].half[h] = _mm256_setzero_ps();
    for (int64_t b = 0; b < n_blocks; b++, at += nc) {
        const q6_K_x16 *super = (const q6_K_x16 *)weights + b / 8;
        const int part = (int)(b % 8);
        fetch_block_avx2(weights, b, type);
        _Pragma("GCC unroll 2")
        for (int s = 0; s < 2; s++) { /* 16 columns with one scale a row */
            __m256i dot[COLUMNS_AVX2][2];
            FOR_EACH_COLUMN FOR_BOTH_HALVES dot[c][h] =
                _mm256_set1_epi32(-32 * a->half_sum[2 * (at + c) + s]);
            _Pragma("GCC unroll 2")
            for (int pair = 0; pair < 2; pair++) {
                __m256i weight[2][2];
                _Pragma("GCC unroll 2")
                for (int i = 0; i < 2; i++)
                    FOR_BOTH_HALVES weight[i][h] =
                        q6_integers_avx2(super->part[part].q[s], 2 * pair + i, h);
                FOR_EACH_COLUMN {
                    const int8_t *q = a->q + (at + c) * BLOCK + 4 * (4 * s + 2 * pair);
                    const __m256i q0 = broadcast_4_bytes_avx2(q);
                    const __m256i q1 = broadcast_4_bytes_avx2(q + 4);
                    FOR_BOTH_HALVES dot[c][h] = _mm256_add_epi32(
                        dot[c][h],
                        widen_avx2(_mm256_add_epi16(_mm256_maddubs_epi16(weight[0][h], q0),
                                                    _mm256_maddubs_epi16(weight[1][h], q1))));
                }
            }
            const rows_f32x16_avx2 d = q6_scales_avx2(super, part, s);
            FOR_EACH_COLUMN add_scaled_avx2(&acc[c], dot[c], d.half, a->scale[at + c]);
        }
    }
    store_columns_avx2(acc, nc, out, out_stride, n_rows, add);
}

enum { F32_WEIGHTS_AVX2, F16_WEIGHTS_AVX2, BF16_WEIGHTS_AVX2 };

ALWAYS_INLINE __m256 load_weights_avx2(const void *w, int64_t i, const int type) {
    if (type == F32_WEIGHTS_AVX2) return _mm256_loadu_ps((const float *)w + i);
    const uint16_t *p = (const uint16_t *)w + i;
    if (type == F16_WEIGHTS_AVX2) return load_8_f16_avx2(p);
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

/* sums += nc columns, 1 or 2, at k = from .. to - 1, both even. Even and odd k have sums of their own,
 * to hide the latency of adding. */
ALWAYS_INLINE void float_columns_avx2(const void *w, const float *x, int64_t n_k, int64_t from,
                                      int64_t to, const int nc, const int fetch,
                                      rows_f32x16_avx2 sums[][2], const int type) {
    const int n_bytes = type == F32_WEIGHTS_AVX2 ? 128 : 64;
    rows_f32x16_avx2 even[2], odd[2];
    FOR_EACH_COLUMN even[c] = sums[c][0], odd[c] = sums[c][1];
    for (int64_t k = from; k < to; k += 2) {
        if (fetch) fetch_ahead_avx2((const char *)w + k / 2 * n_bytes, n_bytes);
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

/* More columns take the weights in chunks, which stay in the L1 cache for all of them; each pair of
 * columns asks for its part of the next chunk. */
ALWAYS_INLINE void float_tile_avx2(const void *w, const activations_t *a, int64_t col, int n_cols,
                                   float *out, int64_t out_stride, int n_rows, int add,
                                   const int type) {
    enum { CHUNK = 256 };
    const int64_t n_k = a->n_k, even_k = n_k / 2 * 2;
    const int64_t chunk_bytes = CHUNK * (type == F32_WEIGHTS_AVX2 ? 64 : 32);
    const float *x = a->x + col * n_k;
    rows_f32x16_avx2 sums[TILE_COLUMNS][2];
    memset(sums, 0, sizeof(sums[0]) * (size_t)n_cols);
    if (n_cols == 1) float_columns_avx2(w, x, n_k, 0, even_k, 1, 1, sums, type);
    else if (n_cols == 2) float_columns_avx2(w, x, n_k, 0, even_k, 2, 1, sums, type);
    else
        for (int64_t from = 0; from < even_k; from += CHUNK) {
            const int64_t to = from + CHUNK < even_k ? from + CHUNK : even_k;
            const char *next = (const char *)w + (from / CHUNK + 1) * chunk_bytes;
            for (int c = 0; c < n_cols; c += 2) {
                for (int64_t i = 0; i < 2 * chunk_bytes / n_cols; i += 64)
                    _mm_prefetch(next + c * chunk_bytes / n_cols + i, _MM_HINT_T0);
                float_columns_avx2(w, x + c * n_k, n_k, from, to, 2, 0, sums + c, type);
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

static void matmul_f32_avx2(const void *weights, const activations_t *a, int64_t col, int n_cols,
                            float *out, int64_t out_stride, int n_rows, int add) {
    float_tile_avx2(weights, a, col, n_cols, out, out_stride, n_rows, add, F32_WEIGHTS_AVX2);
}

static void matmul_f16_avx2(const void *weights, const activations_t *a, int64_t col, int n_cols,
                            float *out, int64_t out_stride, int n_rows, int add) {
    float_tile_avx2(weights, a, col, n_cols, out, out_stride, n_rows, add, F16_WEIGHTS_AVX2);
}

static void matmul_bf16_avx2(const void *weights, const activations_t *a, int64_t col, int n_cols,
                             float *out, int64_t out_stride, int n_rows, int add) {
    float_tile_avx2(weights, a, col, n_cols, out, out_stride, n_rows, add, BF16_WEIGHTS_AVX2);
}

#undef FOR_BOTH_HALVES
#undef FOR_EACH_COLUMN
#endif
