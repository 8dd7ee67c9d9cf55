/* Matmul tiles for AArch64: one group of 16 rows times one tile of columns.
 *
 * The sets differ in how bytes are multiplied: NEON alone multiplies 8 pairs into int16 (SMLAL), a
 * dot product four pairs for each of 4 rows (SDOT), a matrix product 2 x 8 times 8 x 2 (SMMLA).
 * Tiles of one and two columns unpack into registers, each vector just before it is used; those of
 * more unpack a block once for all columns, into the L1 cache. Whole numbers are exact in any
 * order, and floats are summed in the same order everywhere, so a column has the same bits in any
 * tile and at each of these levels.
 */
#ifndef LARIAT_MATMUL_NEON_H
#define LARIAT_MATMUL_NEON_H

#include "integers_neon.h"
#include "matmul_float_neon.h"

enum { COLUMNS_NEON = 4 }; /* of a wide tile that are multiplied at a time */

#define FOR_EACH_COLUMN _Pragma("GCC unroll 4") for (int c = 0; c < nc; c++)
#define FOR_EACH_GROUP _Pragma("GCC unroll 4") for (int g = 0; g < 4; g++)

/* Integer sums of up to 4 columns: those of a tile of two, or four of a wide one */
typedef int32x4_t dots_neon_t[COLUMNS_NEON][4];

/* ---- loads and sums that all sets share ---- */

ALWAYS_INLINE void store_columns_neon(const rows_f32x16_neon *acc, const int nc, float *out,
                                      int64_t out_stride, int n_rows, int add) {
    for (int c = 0; c < nc; c++) {
        float rows[16], *o = out + c * out_stride;
        FOR_EACH_GROUP vst1q_f32(rows + 4 * g, acc[c].group[g]);
        for (int r = 0; r < n_rows; r++) o[r] = add ? o[r] + rows[r] : rows[r];
    }
}

/* What sums start with: the offset of unsigned integers, all taken off at once */
ALWAYS_INLINE int starts_at_zero_neon(const int type) {
    return is_signed_neon(type) || has_minimum(type);
}

/* Of column c of a tile */
ALWAYS_INLINE int32x4_t start_neon(const sums_t *sums, const activations_t *a, int64_t at, int part,
                                   int c, const int type) {
    return vdupq_n_s32(starts_at_zero_neon(type) ? 0 : start_of(sums, a, at, part, c, type));
}

/* Of four columns from c on: where all stand (start_of) */
ALWAYS_INLINE const int32_t *starts_neon(const sums_t *sums, const activations_t *a, int64_t at,
                                         int part, int c, const int type) {
    return offset_of(type) == 8 && !has_halves(type) ? a->neg8_sum + at + c : sums->start[part] + c;
}

/* acc += dot * (d * scale) */
ALWAYS_INLINE void add_scaled_neon(rows_f32x16_neon *acc, const int32x4_t dot[4],
                                   const rows_f32x16_neon *d, float scale) {
    FOR_EACH_GROUP acc->group[g] = vfmaq_f32(acc->group[g], vcvtq_f32_s32(dot[g]),
                                             vmulq_n_f32(d->group[g], scale));
}

/* acc += m * sum */
ALWAYS_INLINE void add_minimum_neon(rows_f32x16_neon *acc, const rows_f32x16_neon *m, float sum) {
    FOR_EACH_GROUP acc->group[g] = vfmaq_n_f32(acc->group[g], m->group[g], sum);
}

/* Compilers take loads of later products before earlier products, for which there are too few
 * registers. So the address of the next ones depends on eight sums of the last ones. */
ALWAYS_INLINE void keep_order_neon(int32x4_t sum[8], const int8_t **next) {
    __asm__("" : "+w"(sum[0]), "+w"(sum[1]), "+w"(sum[2]), "+w"(sum[3]), "+w"(sum[4]),
                 "+w"(sum[5]), "+w"(sum[6]), "+w"(sum[7]), "+r"(*next));
}

/* The same of 16 sums; of 14, because a statement has at most 30 operands. */
ALWAYS_INLINE void keep_order_of_16_neon(int32x4_t sum[16], const int8_t **next) {
    __asm__("" : "+w"(sum[0]), "+w"(sum[1]), "+w"(sum[2]), "+w"(sum[3]), "+w"(sum[4]),
                 "+w"(sum[5]), "+w"(sum[6]), "+w"(sum[7]), "+w"(sum[8]), "+w"(sum[9]),
                 "+w"(sum[10]), "+w"(sum[11]), "+w"(sum[12]), "+w"(sum[13]), "+r"(*next));
}

/* Vector i in the order of a tile's products: those that are unpacked from the same bytes follow
 * each other, so that these are loaded once. */
ALWAYS_INLINE int vector_order_neon(const int i, const int type) {
    return layout_of(type) == PLANES && low_bits(type) == 4 && !has_halves(type)
               ? i / 2 + i % 2 * 4
               : i;
}

/* ---- tiles of one and two columns ---- */

/* dot += half `part` of the block, or all of it, times nc columns that are 32 bytes apart */
typedef void (*narrow_dots_fn)(block_x16 block, const int8_t *x, const int nc, const int part,
                               const int type, dots_neon_t dot);

/* Of a type that is not float; `dots` is one of the functions of the caller's level. */
ALWAYS_INLINE void columns_neon(const void *weights, const activations_t *a, int64_t col,
                                const int nc, float *out, int64_t out_stride, int n_rows, int add,
                                const int type, const narrow_dots_fn dots) {
    const int64_t n_blocks = a->n_k / BLOCK;
    int64_t at = col * n_blocks;
    rows_f32x16_neon acc[2];
    FOR_EACH_COLUMN FOR_EACH_GROUP acc[c].group[g] = vdupq_n_f32(0);
    factors_t factors;
    for (int64_t b = 0; b < n_blocks; b++, at += nc) {
        const block_x16 block = block_of(weights, b, type);
        unpack_factors(block, type, &factors);
        sums_t sums;
        block_sums(a, at, nc, type, &sums);
        _Pragma("GCC unroll 2")
        for (int part = 0; part < 1 + has_halves(type); part++) {
            dots_neon_t dot;
            FOR_EACH_COLUMN FOR_EACH_GROUP dot[c][g] = start_neon(&sums, a, at, part, c, type);
            dots(block, a->q + at * BLOCK, nc, part, type, dot);
            const int8_t *of_d = d_factors(block, &factors, part, type);
            const rows_f32x16_neon d = scaled_neon(block.d, of_d, type);
            FOR_EACH_COLUMN add_scaled_neon(&acc[c], dot[c], &d, a->scale[at + c]);
            if (!has_minimum(type)) continue;
            const int8_t *of_m = m_factors(block, &factors, part, type);
            const rows_f32x16_neon m = scaled_neon(block.m, of_m, type);
            FOR_EACH_COLUMN add_minimum_neon(&acc[c], &m, sums.scaled[part][c]);
        }
    }
    store_columns_neon(acc, nc, out, out_stride, n_rows, add);
}

/* ---- tiles of 4, 8 and 16 columns ---- */

/* A block of 16 rows and 32 columns. d and m are those of 16 columns each if the type has halves,
 * and else [0] those of all. */
typedef struct {
    _Alignas(64) int8_t q[8][64]; /* byte 4r + j of vector v is row r, column 4v + j */
    rows_f32x16_neon d[2], m[2];
} unpacked_neon_t;

ALWAYS_INLINE void unpack_scales_neon(block_x16 block, const factors_t *factors, const int type,
                                      unpacked_neon_t *out) {
    for (int part = 0; part < 1 + has_halves(type); part++) {
        out->d[part] = scaled_neon(block.d, d_factors(block, factors, part, type), type);
        if (has_minimum(type))
            out->m[part] = scaled_neon(block.m, m_factors(block, factors, part, type), type);
    }
}

/* Block b of a group of rows. Factors are unpacked with the first part of a super-block. */
ALWAYS_INLINE void unpack_neon(const void *weights, int64_t b, const int type, factors_t *factors,
                               unpacked_neon_t *out) {
    const block_x16 block = block_of(weights, b, type);
    unpack_factors(block, type, factors);
    _Pragma("GCC unroll 8")
    for (int i = 0; i < 8; i++) {
        const int v = vector_order_neon(i, type);
        FOR_EACH_GROUP vst1q_s8(out->q[v] + 16 * g, integers_neon(block, type, v, g));
    }
    unpack_scales_neon(block, factors, type, out);
}

/* dot += half `part` of an unpacked block, or all of it, times 4 columns that are 32 bytes apart */
typedef void (*wide_dots_fn)(const unpacked_neon_t *w, const int8_t *x, const int part,
                             const int type, dots_neon_t dot);

/* acc += the block times four columns, from column `first` of those at `at` on */
ALWAYS_INLINE void multiply_block_neon(unpacked_neon_t *w, const activations_t *a, int64_t at,
                                       int first, const sums_t *sums, const int type,
                                       rows_f32x16_neon *acc, const wide_dots_fn dots) {
    enum { nc = COLUMNS_NEON };
    __asm__("" : "+m"(*w)); /* or compilers hold some of the block in registers that sums need */
    _Pragma("GCC unroll 2")
    for (int part = 0; part < 1 + has_halves(type); part++) {
        dots_neon_t dot;
        int32x4_t start = vdupq_n_s32(0);
        if (!starts_at_zero_neon(type))
            start = vld1q_s32(starts_neon(sums, a, at, part, first, type));
        FOR_EACH_COLUMN FOR_EACH_GROUP dot[c][g] = vdupq_n_s32(start[c]);
        dots(w, a->q + (at + first) * BLOCK, part, type, dot);
        const float32x4_t scale = vld1q_f32(a->scale + at + first);
        FOR_EACH_COLUMN add_scaled_neon(&acc[c], dot[c], &w->d[part], scale[c]);
        if (!has_minimum(type)) continue;
        const float32x4_t sum = vld1q_f32(sums->scaled[part] + first);
        FOR_EACH_COLUMN add_minimum_neon(&acc[c], &w->m[part], sum[c]);
    }
}

ALWAYS_INLINE void wide_tile_neon(const void *weights, const activations_t *a, int64_t col,
                                  int n_cols, float *out, int64_t out_stride, int n_rows, int add,
                                  const int type, const wide_dots_fn dots) {
    const int64_t n_blocks = a->n_k / BLOCK;
    rows_f32x16_neon acc[TILE_COLUMNS];
    factors_t factors;
    unpacked_neon_t unpacked;
    memset(acc, 0, sizeof(acc[0]) * (size_t)n_cols);
    for (int64_t b = 0, at = col * n_blocks; b < n_blocks; b++, at += n_cols) {
        unpack_neon(weights, b, type, &factors, &unpacked);
        sums_t sums;
        block_sums(a, at, n_cols, type, &sums);
        for (int c = 0; c < n_cols; c += COLUMNS_NEON)
            multiply_block_neon(&unpacked, a, at, c, &sums, type, acc + c, dots);
    }
    store_columns_neon(acc, n_cols, out, out_stride, n_rows, add);
}

/* ---- NEON alone: products of bytes, summed in int16 ---- */

/* Vectors whose products fit into int16 together: one of each in a sum, times at most 127 */
ALWAYS_INLINE int run_of_neon(const int type) {
    const int offset = offset_of(type), above = largest_of(type) - offset;
    const int largest = !is_signed_neon(type) ? largest_of(type) : offset > above ? offset : above;
    return largest > 64 ? 2 : largest > 32 || has_halves(type) ? 4 : 8;
}

/* sum += rows of 4 bytes times four activations: 2 rows in each sum, as 4 products a row */
ALWAYS_INLINE void add_products_neon(int16x8_t sum[2], int8x16_t w, int8x16_t four) {
    sum[0] = vmlal_s8(sum[0], vget_low_s8(w), vget_low_s8(four));
    sum[1] = vmlal_high_s8(sum[1], w, four);
}

/* dot += the sums of 4 rows */
ALWAYS_INLINE int32x4_t add_rows_neon(int32x4_t dot, const int16x8_t sum[2]) {
    return vaddq_s32(dot, vpaddq_s32(vpaddlq_s16(sum[0]), vpaddlq_s16(sum[1])));
}

ALWAYS_INLINE int8x16_t broadcast_4_bytes_neon(const int8_t *q) {
    int32_t four;
    memcpy(&four, q, 4);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
}

ALWAYS_INLINE void narrow_dots_neon(block_x16 block, const int8_t *x, const int nc, const int part,
                                    const int type, dots_neon_t dot) {
    const int run = run_of_neon(type), from = 4 * part, to = has_halves(type) ? from + 4 : 8;
    _Pragma("GCC unroll 4")
    for (int i0 = from; i0 < to; i0 += run) {
        int16x8_t sum[2][4][2];
        FOR_EACH_COLUMN FOR_EACH_GROUP sum[c][g][0] = sum[c][g][1] = vdupq_n_s16(0);
        _Pragma("GCC unroll 8")
        for (int i = i0; i < i0 + run; i++) {
            const int v = vector_order_neon(i, type);
            int8x16_t four[2];
            FOR_EACH_COLUMN four[c] = broadcast_4_bytes_neon(x + c * BLOCK + 4 * v);
            FOR_EACH_GROUP {
                const int8x16_t w = integers_neon(block, type, v, g);
                FOR_EACH_COLUMN add_products_neon(sum[c][g], w, four[c]);
            }
        }
        FOR_EACH_COLUMN FOR_EACH_GROUP dot[c][g] = add_rows_neon(dot[c][g], sum[c][g]);
    }
}

/* Two columns at a time: a row takes twice as many sums of int16 as of int32. */
ALWAYS_INLINE void wide_dots_neon(const unpacked_neon_t *w, const int8_t *x, const int part,
                                  const int type, dots_neon_t dot) {
    enum { nc = 2 };
    const int run = run_of_neon(type), from = 4 * part, to = has_halves(type) ? from + 4 : 8;
    for (int first = 0; first < COLUMNS_NEON; first += nc)
        for (int v0 = from; v0 < to; v0 += run) {
            int16x8_t sum[nc][4][2];
            FOR_EACH_COLUMN FOR_EACH_GROUP sum[c][g][0] = sum[c][g][1] = vdupq_n_s16(0);
            _Pragma("GCC unroll 8")
            for (int v = v0; v < v0 + run; v++) {
                int8x16_t four[nc];
                FOR_EACH_COLUMN four[c] =
                    broadcast_4_bytes_neon(x + (first + c) * BLOCK + 4 * v);
                FOR_EACH_GROUP {
                    const int8x16_t rows = vld1q_s8(w->q[v] + 16 * g);
                    FOR_EACH_COLUMN add_products_neon(sum[c][g], rows, four[c]);
                }
            }
            FOR_EACH_COLUMN FOR_EACH_GROUP dot[first + c][g] =
                add_rows_neon(dot[first + c][g], sum[c][g]);
        }
}

ALWAYS_INLINE void tile_neon(const void *weights, const activations_t *a, int64_t col, int n_cols,
                             float *out, int64_t out_stride, int n_rows, int add, const int type,
                             const void *tuning) {
    (void)tuning;
    if (layout_of(type) == FLOATS)
        float_tile_neon(weights, a, col, n_cols, out, out_stride, n_rows, add, type);
    else if (n_cols == 1)
        columns_neon(weights, a, col, 1, out, out_stride, n_rows, add, type, narrow_dots_neon);
    else if (n_cols == 2)
        columns_neon(weights, a, col, 2, out, out_stride, n_rows, add, type, narrow_dots_neon);
    else
        wide_tile_neon(weights, a, col, n_cols, out, out_stride, n_rows, add, type,
                       wide_dots_neon);
}

#define TYPE(NAME, name) MATMUL(matmul_##name##_neon, tile_neon, W_##NAME, NULL)
#include "types.def"

static void use_matmul_neon(kernels_t *k) {
#define TYPE(NAME, name) k->matmul[W_##NAME] = matmul_##name##_neon;
#include "types.def"
}

#undef FOR_EACH_GROUP
#undef FOR_EACH_COLUMN
#endif
