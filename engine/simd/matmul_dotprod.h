/* Matmul tiles with dot products (SDOT): four bytes of each of 4 rows times four activations, which
 * are one of the four lanes of a register. */
#ifndef LARIAT_MATMUL_DOTPROD_H
#define LARIAT_MATMUL_DOTPROD_H

#include "matmul_neon.h"

#define FOR_EACH_COLUMN _Pragma("GCC unroll 4") for (int c = 0; c < nc; c++)
#define FOR_EACH_GROUP _Pragma("GCC unroll 4") for (int g = 0; g < 4; g++)
#define FOR_BOTH_PARTS _Pragma("GCC unroll 2") for (int odd = 0; odd < 2; odd++)

/* The intrinsic wants a number, not an expression that becomes one. */
ALWAYS_INLINE int32x4_t add_dots_dotprod(int32x4_t sum, int8x16_t w, int8x16_t x, const int lane) {
    switch (lane) {
    case 0: return vdotq_laneq_s32(sum, w, x, 0);
    case 1: return vdotq_laneq_s32(sum, w, x, 1);
    case 2: return vdotq_laneq_s32(sum, w, x, 2);
    default: return vdotq_laneq_s32(sum, w, x, 3);
    }
}

/* nc columns of activations, 16 in each register */
ALWAYS_INLINE void load_columns_dotprod(const int8_t *x, const int nc, int8x16_t out[][2]) {
    FOR_EACH_COLUMN {
        out[c][0] = vld1q_s8(x + c * BLOCK);
        out[c][1] = vld1q_s8(x + c * BLOCK + 16);
    }
}

ALWAYS_INLINE void narrow_dots_dotprod(block_x16 block, const int8_t *x, const int nc,
                                       const int part, const int type, dots_neon_t dot) {
    const int from = 4 * part, to = has_halves(type) ? from + 4 : 8;
    int8x16_t columns[2][2];
    load_columns_dotprod(x, nc, columns);
    _Pragma("GCC unroll 8")
    for (int i = from; i < to; i++) {
        const int v = vector_order_neon(i, type);
        FOR_EACH_GROUP {
            const int8x16_t w = integers_neon(block, type, v, g);
            FOR_EACH_COLUMN dot[c][g] = add_dots_dotprod(dot[c][g], w, columns[c][v / 4], v % 4);
        }
    }
}

ALWAYS_INLINE void wide_dots_dotprod(const unpacked_neon_t *w, const int8_t *x, const int part,
                                     const int type, dots_neon_t dot) {
    enum { nc = COLUMNS_NEON };
    const int from = 4 * part, to = has_halves(type) ? from + 4 : 8;
    int8x16_t columns[nc][2];
    const int8_t *q = w->q[0];
    load_columns_dotprod(x, nc, columns);
    _Pragma("GCC unroll 8")
    for (int v = from; v < to; v++) {
        int8x16_t rows[4];
        FOR_EACH_GROUP rows[g] = vld1q_s8(q + 64 * v + 16 * g);
        FOR_EACH_GROUP FOR_EACH_COLUMN dot[c][g] =
            add_dots_dotprod(dot[c][g], rows[g], columns[c][v / 4], v % 4);
        keep_order_of_16_neon(dot[0], &q);
    }
}

/* ---- types in PAIRS, of which d and m have unsigned factors: both parts of a pair at a time, so
 * that each vector is loaded once ---- */

/* dot[c][odd] += that part of the pair times column c; columns of the two are nc blocks apart */
ALWAYS_INLINE void pair_dots_dotprod(block_x16 pair, const int8_t *x, const int nc, const int type,
                                     int32x4_t dot[2][2][4]) {
    const int8_t *q = (const int8_t *)pair.low;
    _Pragma("GCC unroll 2")
    for (int half = 0; half < 2; half++) {
        int8x16_t columns[2][2];
        FOR_BOTH_PARTS FOR_EACH_COLUMN columns[odd][c] =
            vld1q_s8(x + (odd * nc + c) * BLOCK + 16 * half);
        _Pragma("GCC unroll 4")
        for (int v = 4 * half; v < 4 * half + 4; v++) {
            pair.low = q;
            FOR_EACH_GROUP FOR_BOTH_PARTS {
                const int8x16_t w = vreinterpretq_s8_u8(pairs_neon(pair, type, odd, v, g));
                FOR_EACH_COLUMN dot[c][odd][g] =
                    add_dots_dotprod(dot[c][odd][g], w, columns[odd][c], v % 4);
            }
            FOR_EACH_COLUMN keep_order_neon(dot[c][0], &q);
        }
    }
}

/* As columns_neon */
ALWAYS_INLINE void paired_columns_dotprod(const void *weights, const activations_t *a, int64_t col,
                                          const int nc, float *out, int64_t out_stride, int n_rows,
                                          int add, const int type) {
    const int n_parts = WEIGHT_TYPES[type].columns / BLOCK;
    const int64_t n_supers = a->n_k / WEIGHT_TYPES[type].columns;
    int64_t at = col * n_supers * n_parts;
    rows_f32x16_neon acc[2];
    FOR_EACH_COLUMN FOR_EACH_GROUP acc[c].group[g] = vdupq_n_f32(0);
    factors_t factors;
    for (int64_t s = 0; s < n_supers; s++) {
        block_x16 block = part_of(weights, s, 0, type);
        unpack_factors(block, type, &factors);
        sums_t sums; /* of all parts, as if they were columns */
        block_sums(a, at, n_parts * nc, type, &sums);
        rows_f32x16_neon d = load_scales_neon(block.d, type), m = load_scales_neon(block.m, type);
        FOR_EACH_GROUP { /* factors of m have a minus sign */
            d.group[g] = vmulq_n_f32(d.group[g], 0x1p24f);
            m.group[g] = vmulq_n_f32(m.group[g], -0x1p24f);
        }
        for (int part = 0; part < n_parts; part += 2, at += 2 * nc) {
            int32x4_t dot[2][2][4];
            FOR_BOTH_PARTS FOR_EACH_COLUMN FOR_EACH_GROUP dot[c][odd][g] = vdupq_n_s32(0);
            pair_dots_dotprod(part_of(weights, s, part, type), a->q + at * BLOCK, nc, type, dot);
            FOR_BOTH_PARTS {
                rows_f32x16_neon of_d = small_factors_neon(
                    vreinterpretq_u8_s8(vld1q_s8(factors.d[part + odd])));
                rows_f32x16_neon of_m = small_factors_neon(
                    vreinterpretq_u8_s8(vnegq_s8(vld1q_s8(factors.m[part + odd]))));
                FOR_EACH_GROUP {
                    of_d.group[g] = vmulq_f32(d.group[g], of_d.group[g]);
                    of_m.group[g] = vmulq_f32(m.group[g], of_m.group[g]);
                }
                FOR_EACH_COLUMN {
                    add_scaled_neon(&acc[c], dot[c][odd], &of_d, a->scale[at + odd * nc + c]);
                    add_minimum_neon(&acc[c], &of_m, sums.scaled[0][(part + odd) * nc + c]);
                }
            }
        }
    }
    store_columns_neon(acc, nc, out, out_stride, n_rows, add);
}

/* Tiles of one and two columns */
#define NARROW_TILE(nc)                                                                         \
    (layout_of(type) == PAIRS                                                                   \
         ? paired_columns_dotprod(weights, a, col, nc, out, out_stride, n_rows, add, type)      \
         : columns_neon(weights, a, col, nc, out, out_stride, n_rows, add, type,                \
                        narrow_dots_dotprod))

ALWAYS_INLINE void narrow_tile_dotprod(const void *weights, const activations_t *a, int64_t col,
                                       int n_cols, float *out, int64_t out_stride, int n_rows,
                                       int add, const int type) {
    if (n_cols == 1) NARROW_TILE(1);
    else NARROW_TILE(2);
}
#undef NARROW_TILE

ALWAYS_INLINE void tile_dotprod(const void *weights, const activations_t *a, int64_t col,
                                int n_cols, float *out, int64_t out_stride, int n_rows, int add,
                                const int type, const void *tuning) {
    (void)tuning;
    if (n_cols <= 2)
        narrow_tile_dotprod(weights, a, col, n_cols, out, out_stride, n_rows, add, type);
    else
        wide_tile_neon(weights, a, col, n_cols, out, out_stride, n_rows, add, type,
                       wide_dots_dotprod);
}

#define FLOAT_TYPE(...)
#define BLOCK_TYPE(NAME, name, ...) MATMUL(matmul_##name##_dotprod, tile_dotprod, W_##NAME, NULL)
#include "types.def"

static void use_matmul_dotprod(kernels_t *k) {
#define FLOAT_TYPE(...)
#define BLOCK_TYPE(NAME, name, ...) k->matmul[W_##NAME] = matmul_##name##_dotprod;
#include "types.def"
}

#undef FOR_BOTH_PARTS
#undef FOR_EACH_GROUP
#undef FOR_EACH_COLUMN
#endif
