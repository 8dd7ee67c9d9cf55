/* Matmul tiles of 8 or 16 columns, and of some types 4, for AVX2: a block is unpacked once for all.
 *
 * What a block of any type becomes is alike: bytes in the order of Q8_0, and float factors of its
 * rows. So one loop multiplies them all, four columns at a time; their eight sums, two vectors of
 * weights and a broadcast are what the 16 registers hold. The columns' floats stay in the L1 cache.
 *
 * How many pair sums fit into int16 before they are widened depends on the type: 8 of nibbles
 * (8 * 2 * 15 * 127 = 30480), 4 of five bits (31496), 2 of six (32004), 1 of signed bytes (32512).
 */
#ifndef LARIAT_MATMUL_WIDE_AVX2_H
#define LARIAT_MATMUL_WIDE_AVX2_H

#include <immintrin.h>

#include "matmul_avx2.h"
#include "matmul_k_avx2.h"
#include "unpack.h"

#define FOR_EACH_COLUMN _Pragma("GCC unroll 4") for (int c = 0; c < COLUMNS_AVX2; c++)
#define FOR_BOTH_HALVES _Pragma("GCC unroll 2") for (int h = 0; h < 2; h++)

/* A block of 16 rows and 32 columns. d and m are those of 16 columns each if the type `is_halved`, and
 * else [0] those of all. */
typedef struct {
    _Alignas(32) uint8_t q[8][64]; /* byte 4r + j of vector v is row r, column 4v + j */
    int8_t sign[8][64];            /* signed types: the weights, of which q are the magnitudes */
    rows_f32x16_avx2 d[2], m[2];
} unpacked_t;

ALWAYS_INLINE int is_signed(const int type) { return type == W_Q8_0 || type == W_IQ4_NL; }

/* Vectors whose pair sums fit into int16 together */
ALWAYS_INLINE int run_of(const int type) {
    switch (type) {
    case W_Q8_0: case W_IQ4_NL: return 1;
    case W_Q6_K: return 2;
    case W_Q5_0: case W_Q5_1: case W_Q5_K: case W_Q2_K: case W_Q3_K: return 4;
    default: return 8;
    }
}

/* Block b of a group of rows. A K type's factors are unpacked with the first block of a super-block. */
ALWAYS_INLINE void unpack_avx2(const void *weights, int64_t b, const int type, factors_t *factors,
                               unpacked_t *out) {
    if (type == W_Q6_K) {
        const q6_K_x16 *super = (const q6_K_x16 *)weights + b / 8;
        for (int s = 0; s < 2; s++) {
            out->d[s] = q6_scales_avx2(super, (int)(b % 8), s);
            _Pragma("GCC unroll 4")
            for (int k = 0; k < 4; k++)
                FOR_BOTH_HALVES _mm256_store_si256(
                    (__m256i *)(out->q[4 * s + k] + 32 * h),
                    q6_integers_avx2(super->part[b % 8].q[s], k, h));
        }
        return;
    }
    if (type == W_Q8_0) {
        const q8_0_x16 *w = (const q8_0_x16 *)weights + b;
        out->d[0] = load_16_f16_avx2(w->d);
        for (int v = 0; v < 8; v++)
            FOR_BOTH_HALVES {
                const __m256i q = q8_0_integers_avx2(w, v, h);
                _mm256_store_si256((__m256i *)(out->sign[v] + 32 * h), q);
                _mm256_store_si256((__m256i *)(out->q[v] + 32 * h), _mm256_abs_epi8(q));
            }
        return;
    }
    const block_x16 block = block_of(weights, b, type);
    if (is_super(type) && block.part == 0) unpack_factors(block, type, factors);
    _Pragma("GCC unroll 8")
    for (int v = 0; v < 8; v++)
        FOR_BOTH_HALVES {
            __m256i q;
            if (!is_paired(type)) q = k_integers_avx2(block, type, v, h);
            else if (block.part % 2) q = paired_integers_avx2(block, type, 1, v, h);
            else q = paired_integers_avx2(block, type, 0, v, h);
            if (is_signed(type)) {
                _mm256_store_si256((__m256i *)(out->sign[v] + 32 * h), q);
                q = _mm256_abs_epi8(q);
            }
            _mm256_store_si256((__m256i *)(out->q[v] + 32 * h), q);
        }
    for (int part = 0; part < 1 + is_halved(type); part++) {
        const int i = is_halved(type) ? 2 * block.part + part : block.part;
        out->d[part] = scaled_f16_avx2(block.d, factors->d[i], type);
        if (has_minimum(type)) out->m[part] = scaled_f16_avx2(block.m, factors->m[i], type);
    }
}

/* dot += vectors [from, from + run_of(type)) times four columns that are 32 bytes apart */
ALWAYS_INLINE void add_run_avx2(const unpacked_t *w, const int8_t *x, const int from,
                                const int type, __m256i dot[COLUMNS_AVX2][2]) {
    const int run = run_of(type);
    if (run < 4) { /* two vectors of pair sums at a time, beside the eight of dot */
        FOR_EACH_COLUMN {
            __m256i four[2];
            _Pragma("GCC unroll 2")
            for (int v = 0; v < run; v++)
                four[v] = broadcast_4_bytes_avx2(x + c * BLOCK + 4 * (from + v));
            FOR_BOTH_HALVES {
                const __m256i sign = load_half_avx2((const uint8_t *)w->sign[from], h);
                __m256i sum_i16x16 =
                    _mm256_maddubs_epi16(load_half_avx2(w->q[from], h),
                                         is_signed(type) ? _mm256_sign_epi8(four[0], sign) : four[0]);
                if (run == 2)
                    sum_i16x16 = add_pairs_avx2(sum_i16x16, load_half_avx2(w->q[from + 1], h), four[1]);
                dot[c][h] = _mm256_add_epi32(dot[c][h], widen_avx2(sum_i16x16));
                __asm__("" : "+x"(dot[c][h]));
            }
        }
        return;
    }
    __m256i sum_i16x16[COLUMNS_AVX2][2];
    FOR_EACH_COLUMN FOR_BOTH_HALVES sum_i16x16[c][h] = _mm256_setzero_si256();
    _Pragma("GCC unroll 8")
    for (int v = from; v < from + run; v++) {
        __m256i q[2];
        FOR_BOTH_HALVES q[h] = load_half_avx2(w->q[v], h);
        FOR_EACH_COLUMN {
            const __m256i four = broadcast_4_bytes_avx2(x + c * BLOCK + 4 * v);
            FOR_BOTH_HALVES sum_i16x16[c][h] = add_pairs_avx2(sum_i16x16[c][h], q[h], four);
        }
    }
    FOR_EACH_COLUMN FOR_BOTH_HALVES dot[c][h] =
        _mm256_add_epi32(dot[c][h], widen_avx2(sum_i16x16[c][h]));
}

/* acc += the block times four columns, from column `first` of those at `at` on */
ALWAYS_INLINE void multiply_block_avx2(unpacked_t *w, const activations_t *a, int64_t at, int first,
                                       const sums_t *sums, const int type, rows_f32x16_avx2 *acc) {
    const int8_t *x = a->q + (at + first) * BLOCK;
    const float *scale = a->scale + at + first;
    __asm__("" : "+m"(*w)); /* or gcc holds what it can of the block in registers that the sums need */
    _Pragma("GCC unroll 2")
    for (int part = 0; part < 1 + is_halved(type); part++) {
        __m256i dot[COLUMNS_AVX2][2];
        FOR_EACH_COLUMN FOR_BOTH_HALVES dot[c][h] =
            is_signed(type) || has_minimum(type) ? _mm256_setzero_si256()
                                                 : _mm256_set1_epi32(sums->start[part][first + c]);
        const int n_runs = (is_halved(type) ? 4 : 8) / run_of(type);
        _Pragma("GCC unroll 8")
        for (int run = 0; run < n_runs; run++)
            add_run_avx2(w, x, 4 * part + run * run_of(type), type, dot);
        FOR_EACH_COLUMN add_scaled_avx2(&acc[c], dot[c], w->d[part].half, scale[c]);
        if (has_minimum(type))
            FOR_EACH_COLUMN FOR_BOTH_HALVES acc[c].half[h] =
                _mm256_fmadd_ps(w->m[part].half[h],
                                _mm256_set1_ps(sums->scaled[part][first + c]), acc[c].half[h]);
    }
}

/* n_cols: 4, 8 or 16 */
ALWAYS_INLINE void wide_tile_avx2(const void *weights, const activations_t *a, int64_t col,
                                  int n_cols, float *out, int64_t out_stride, int n_rows, int add,
                                  const int type) {
    const int64_t n_blocks = a->n_k / BLOCK;
    rows_f32x16_avx2 acc[TILE_COLUMNS];
    factors_t factors;
    unpacked_t unpacked;
    memset(acc, 0, sizeof(acc[0]) * (size_t)n_cols);
    for (int64_t b = 0, at = col * n_blocks; b < n_blocks; b++, at += n_cols) {
        fetch_block_avx2(weights, b, type);
        unpack_avx2(weights, b, type, &factors, &unpacked);
        sums_t sums;
        block_sums(a, at, n_cols, type, &sums);
        for (int c = 0; c < n_cols; c += COLUMNS_AVX2)
            multiply_block_avx2(&unpacked, a, at, c, &sums, type, acc + c);
    }
    store_columns_avx2(acc, n_cols, out, out_stride, n_rows, add);
}

/* Tiles of up to `most` columns are those that unpack into registers. Of the types in planes and
 * super-blocks, four columns are faster here. */
#define MATMUL_AVX2(name, columns, most, type)                                             \
    static void name(const void *weights, const activations_t *a, int64_t col, int n_cols, \
                     float *out, int64_t out_stride, int n_rows, int add) {                \
        if (n_cols == 1)                                                                   \
            columns(weights, a, col, 1, out, out_stride, n_rows, add, type);               \
        else if (n_cols == 2)                                                              \
            columns(weights, a, col, 2, out, out_stride, n_rows, add, type);               \
        else if (n_cols <= most)                                                           \
            columns(weights, a, col, most, out, out_stride, n_rows, add, type);            \
        else                                                                               \
            wide_tile_avx2(weights, a, col, n_cols, out, out_stride, n_rows, add, type);   \
    }
MATMUL_AVX2(matmul_q4_0_avx2, q4_columns_avx2, 4, W_Q4_0)
MATMUL_AVX2(matmul_q4_1_avx2, q4_columns_avx2, 4, W_Q4_1)
MATMUL_AVX2(matmul_q8_0_avx2, q8_0_columns_avx2, 4, W_Q8_0)
MATMUL_AVX2(matmul_q6_K_avx2, q6_K_columns_avx2, 4, W_Q6_K)
MATMUL_AVX2(matmul_q5_0_avx2, k_columns_avx2, 2, W_Q5_0)
MATMUL_AVX2(matmul_q5_1_avx2, k_columns_avx2, 2, W_Q5_1)
MATMUL_AVX2(matmul_iq4_NL_avx2, k_columns_avx2, 2, W_IQ4_NL)
MATMUL_AVX2(matmul_q2_K_avx2, k_columns_avx2, 2, W_Q2_K)
MATMUL_AVX2(matmul_q3_K_avx2, k_columns_avx2, 2, W_Q3_K)
MATMUL_AVX2(matmul_q4_K_avx2, paired_columns_avx2, 2, W_Q4_K)
MATMUL_AVX2(matmul_q5_K_avx2, paired_columns_avx2, 2, W_Q5_K)

static void use_matmul_avx2(kernels_t *k) {
    k->matmul[W_F32] = matmul_f32_avx2;
    k->matmul[W_F16] = matmul_f16_avx2;
    k->matmul[W_BF16] = matmul_bf16_avx2;
    k->matmul[W_Q4_0] = matmul_q4_0_avx2;
    k->matmul[W_Q4_1] = matmul_q4_1_avx2;
    k->matmul[W_Q8_0] = matmul_q8_0_avx2;
    k->matmul[W_Q6_K] = matmul_q6_K_avx2;
    k->matmul[W_Q5_0] = matmul_q5_0_avx2;
    k->matmul[W_Q5_1] = matmul_q5_1_avx2;
    k->matmul[W_IQ4_NL] = matmul_iq4_NL_avx2;
    k->matmul[W_Q2_K] = matmul_q2_K_avx2;
    k->matmul[W_Q3_K] = matmul_q3_K_avx2;
    k->matmul[W_Q4_K] = matmul_q4_K_avx2;
    k->matmul[W_Q5_K] = matmul_q5_K_avx2;
}

static void use_matmul_avx2_intel(kernels_t *k) { CORE = CORE_INTEL, (void)k; }

#undef MATMUL_AVX2
#undef FOR_BOTH_HALVES
#undef FOR_EACH_COLUMN
#endif
