/* Matmul tiles of 8 or 16 columns, and of some types 4, for AVX2: a block is unpacked once for all.
 *
 * A block of any type becomes bytes in the order of Q8_0, and float scales of its rows. So one loop
 * multiplies them all, four columns at a time; their eight sums, two vectors of weights and a
 * broadcast are what the 16 registers hold. The columns' floats stay in the L1 cache.
 */
#ifndef LARIAT_MATMUL_WIDE_AVX2_H
#define LARIAT_MATMUL_WIDE_AVX2_H

#include "matmul_avx2.h"
#include "matmul_float_avx2.h"

#define FOR_EACH_COLUMN _Pragma("GCC unroll 4") for (int c = 0; c < COLUMNS_AVX2; c++)
#define FOR_BOTH_HALVES _Pragma("GCC unroll 2") for (int h = 0; h < 2; h++)

/* A block of 16 rows and 32 columns. d and m are those of 16 columns each if the type has halves,
 * and else [0] those of all. */
typedef struct {
    _Alignas(32) uint8_t q[8][64]; /* byte 4r + j of vector v is row r, column 4v + j */
    int8_t sign[8][64];            /* signed types: the weights, of which q are the magnitudes */
    rows_f32x16_avx2 d[2], m[2];
} unpacked_t;

/* Block b of a group of rows. Factors are unpacked with the first part of a super-block. */
ALWAYS_INLINE void unpack_avx2(const void *weights, int64_t b, const int type, factors_t *factors,
                               unpacked_t *out) {
    const block_x16 block = block_of(weights, b, type);
    unpack_factors(block, type, factors);
    _Pragma("GCC unroll 8")
    for (int v = 0; v < 8; v++)
        FOR_BOTH_HALVES {
            __m256i q = integers_avx2(block, type, v, h);
            if (is_signed_avx2(type)) {
                _mm256_store_si256((__m256i *)(out->sign[v] + 32 * h), q);
                q = _mm256_abs_epi8(q);
            }
            _mm256_store_si256((__m256i *)(out->q[v] + 32 * h), q);
        }
    for (int part = 0; part < 1 + has_halves(type); part++) {
        out->d[part] = scaled_avx2(block.d, d_factors(block, factors, part, type), type);
        if (has_minimum(type))
            out->m[part] = scaled_avx2(block.m, m_factors(block, factors, part, type), type);
    }
}

/* dot += a run of vectors, from the one at `from` on, times four columns that are 32 bytes apart */
ALWAYS_INLINE void add_unpacked_run_avx2(const unpacked_t *w, const int8_t *x, const int from,
                                         const int type, __m256i dot[COLUMNS_AVX2][2]) {
    const int run = run_of_avx2(type);
    if (run < 4) { /* two vectors of pair sums at a time, beside the eight of dot */
        FOR_EACH_COLUMN {
            __m256i four[2];
            _Pragma("GCC unroll 2")
            for (int v = 0; v < run; v++)
                four[v] = broadcast_4_bytes_avx2(x + c * BLOCK + 4 * (from + v));
            FOR_BOTH_HALVES {
                const __m256i sign = load_half_avx2((const uint8_t *)w->sign[from], h);
                const __m256i q = is_signed_avx2(type) ? _mm256_sign_epi8(four[0], sign) : four[0];
                __m256i sum_i16x16 = _mm256_maddubs_epi16(load_half_avx2(w->q[from], h), q);
                if (run == 2)
                    sum_i16x16 = add_pairs_avx2(sum_i16x16, load_half_avx2(w->q[from + 1], h),
                                                four[1]);
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
    __asm__("" : "+m"(*w)); /* or gcc holds some of the block in registers that the sums need */
    _Pragma("GCC unroll 2")
    for (int part = 0; part < 1 + has_halves(type); part++) {
        __m256i dot[COLUMNS_AVX2][2];
        FOR_EACH_COLUMN FOR_BOTH_HALVES dot[c][h] = start_avx2(sums, a, at, part, first + c, type);
        const int run = run_of_avx2(type), n_runs = (has_halves(type) ? 4 : 8) / run;
        _Pragma("GCC unroll 8")
        for (int i = 0; i < n_runs; i++) add_unpacked_run_avx2(w, x, 4 * part + i * run, type, dot);
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
                                  const int type, const fetch_t fetch) {
    const int64_t n_blocks = a->n_k / BLOCK;
    rows_f32x16_avx2 acc[TILE_COLUMNS];
    factors_t factors;
    unpacked_t unpacked;
    memset(acc, 0, sizeof(acc[0]) * (size_t)n_cols);
    for (int64_t b = 0, at = col * n_blocks; b < n_blocks; b++, at += n_cols) {
        fetch_block_avx2(weights, b, type, fetch);
        unpack_avx2(weights, b, type, &factors, &unpacked);
        sums_t sums;
        block_sums(a, at, n_cols, type, &sums);
        for (int c = 0; c < n_cols; c += COLUMNS_AVX2)
            multiply_block_avx2(&unpacked, a, at, c, &sums, type, acc + c);
    }
    store_columns_avx2(acc, n_cols, out, out_stride, n_rows, add);
}

/* ---- all types ---- */

/* Columns of the widest tile that unpacks into registers. Four are faster there for types whose
 * vectors take few operations, and for Q6_K. */
ALWAYS_INLINE int narrow_columns_avx2(const int type) {
    return layout_of(type) == BYTES || layout_of(type) == SIXES ||
                   (layout_of(type) == PLANES && low_bits(type) == 4 && !high_bits(type) &&
                    !has_steps(type))
               ? 4
               : 2;
}

/* A tile that unpacks into registers; nc is known when compiling. */
#define NARROW_TILE(nc)                                                                           \
    (layout_of(type) == PAIRS ? paired_columns_avx2(weights, a, col, nc, out, out_stride, n_rows, \
                                                    add, type, fetch)                             \
                              : columns_avx2(weights, a, col, nc, out, out_stride, n_rows, add,   \
                                             type, fetch))

ALWAYS_INLINE void tile_avx2(const void *weights, const activations_t *a, int64_t col, int n_cols,
                             float *out, int64_t out_stride, int n_rows, int add, const int type,
                             const tuning_t *tuning) {
    const fetch_t fetch = tuning->few; /* of wide tiles too */
    const int widest = narrow_columns_avx2(type);
    if (layout_of(type) == FLOATS)
        float_tile_avx2(weights, a, col, n_cols, out, out_stride, n_rows, add, type, fetch);
    else if (n_cols == 1) NARROW_TILE(1);
    else if (n_cols == 2) NARROW_TILE(2);
    else if (n_cols <= widest) NARROW_TILE(widest);
    else wide_tile_avx2(weights, a, col, n_cols, out, out_stride, n_rows, add, type, fetch);
}
#undef NARROW_TILE

#define TYPE(NAME, name) MATMUL(matmul_##name##_avx2, tile_avx2, W_##NAME, &TUNING_avx2)
#include "types.def"
#define TYPE(NAME, name) MATMUL(matmul_##name##_avx2_intel, tile_avx2, W_##NAME, &TUNING_avx2_intel)
#include "types.def"

static void use_matmul_avx2(kernels_t *k) {
#define TYPE(NAME, name) k->matmul[W_##NAME] = matmul_##name##_avx2;
#include "types.def"
}

static void use_matmul_avx2_intel(kernels_t *k) {
#define TYPE(NAME, name) k->matmul[W_##NAME] = matmul_##name##_avx2_intel;
#include "types.def"
}

#undef FOR_BOTH_HALVES
#undef FOR_EACH_COLUMN
#endif
