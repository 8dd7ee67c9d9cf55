/* Matmul tiles with matrix products (SMMLA), for prompts: 8 bytes of each of 2 rows times 8
 * activations of each of 2 columns, four sums in a register.
 *
 * Of 4, 8 or 16 columns. Eight activations of a column and those of the next one stand together in
 * a register, and so do those of two rows: a register of four rows' four columns and the next one,
 * zipped, are two of two rows' eight columns. Scales and sums of floats stand as the products do,
 * row i and column j of a pair of each in lane 2i + j, and are parted when they are stored.
 *
 * Eight blocks at a time, which is a super-block: activations and scales are put into this order
 * once for all rows, then the sums of four rows and all columns stay in registers.
 */
#ifndef LARIAT_MATMUL_I8MM_H
#define LARIAT_MATMUL_I8MM_H

#include "matmul_dotprod.h"

enum { CHUNK_I8MM = 8, COLUMN_PAIRS = TILE_COLUMNS / 2 };

#define FOR_EACH_PAIR _Pragma("GCC unroll 8") for (int p = 0; p < n_pairs; p++)
#define FOR_EACH_GROUP _Pragma("GCC unroll 4") for (int g = 0; g < 4; g++)

/* Of a block: [pair of columns][lanes]; sums of both halves, or [0] those of all (sums_t) */
typedef struct {
    _Alignas(64) int8_t x[COLUMN_PAIRS][4][16]; /* step j: activations 8j to 8j + 7 of each */
    float scale[COLUMN_PAIRS][4], scaled[2][COLUMN_PAIRS][4];
    int32_t start[2][COLUMN_PAIRS][4];
} columns_i8mm_t;

/* Of a block: d and m of rows 2i and 2i + 1 of each group, twice each */
typedef struct {
    float32x4_t d[2][4][2], m[2][4][2];
} rows_i8mm_t;

/* 2 n_pairs numbers of 4 bytes, those of each pair for both rows */
ALWAYS_INLINE void for_both_rows_i8mm(const void *from, const int n_pairs, void *to) {
    _Pragma("GCC unroll 4")
    for (int p = 0; p < n_pairs; p += 2) {
        const int64x2_t pairs = vreinterpretq_s64_s32(vld1q_s32((const int32_t *)from + 2 * p));
        int32_t *out = (int32_t *)to + 4 * p;
        vst1q_s32(out, vreinterpretq_s32_s64(vzip1q_s64(pairs, pairs)));
        vst1q_s32(out + 4, vreinterpretq_s32_s64(vzip2q_s64(pairs, pairs)));
    }
}

ALWAYS_INLINE void prepare_columns_i8mm(const activations_t *a, int64_t at, const int n_pairs,
                                        const int type, columns_i8mm_t *out) {
    const int8_t *x = a->q + at * BLOCK;
    for (int p = 0; p < n_pairs; p++, x += 2 * BLOCK) {
        int64x2_t of[4]; /* two halves of a column, two of the next one */
        _Pragma("GCC unroll 4")
        for (int i = 0; i < 4; i++) of[i] = vreinterpretq_s64_s8(vld1q_s8(x + 16 * i));
        _Pragma("GCC unroll 2")
        for (int half = 0; half < 2; half++) {
            vst1q_s8(out->x[p][2 * half], vreinterpretq_s8_s64(vzip1q_s64(of[half], of[half + 2])));
            vst1q_s8(out->x[p][2 * half + 1],
                     vreinterpretq_s8_s64(vzip2q_s64(of[half], of[half + 2])));
        }
    }
    sums_t sums;
    block_sums(a, at, 2 * n_pairs, type, &sums);
    for_both_rows_i8mm(a->scale + at, n_pairs, out->scale);
    for (int part = 0; part < 1 + has_halves(type); part++) {
        if (has_minimum(type))
            for_both_rows_i8mm(sums.scaled[part], n_pairs, out->scaled[part]);
        else if (!starts_at_zero_neon(type))
            for_both_rows_i8mm(starts_neon(&sums, a, at, part, 0, type), n_pairs,
                               out->start[part]);
    }
}

/* Numbers of rows, each twice */
ALWAYS_INLINE void twice_i8mm(rows_f32x16_neon rows, float32x4_t out[4][2]) {
    FOR_EACH_GROUP {
        out[g][0] = vzip1q_f32(rows.group[g], rows.group[g]);
        out[g][1] = vzip2q_f32(rows.group[g], rows.group[g]);
    }
}

ALWAYS_INLINE void prepare_rows_i8mm(block_x16 block, factors_t *factors, const int type,
                                     rows_i8mm_t *out) {
    unpack_factors(block, type, factors);
    for (int part = 0; part < 1 + has_halves(type); part++) {
        const int8_t *of_d = d_factors(block, factors, part, type);
        twice_i8mm(scaled_neon(block.d, of_d, type), out->d[part]);
        if (!has_minimum(type)) continue;
        const int8_t *of_m = m_factors(block, factors, part, type);
        twice_i8mm(scaled_neon(block.m, of_m, type), out->m[part]);
    }
}

/* Group g of the rows: step j has columns 8j to 8j + 7 of rows 2i and 2i + 1 in w[j][i]. */
ALWAYS_INLINE void integers_i8mm(block_x16 block, const int type, int g, int8x16_t w[4][2]) {
    _Pragma("GCC unroll 4")
    for (int j = 0; j < 4; j++) {
        const int32x4_t first = vreinterpretq_s32_s8(integers_neon(block, type, 2 * j, g));
        const int32x4_t second = vreinterpretq_s32_s8(integers_neon(block, type, 2 * j + 1, g));
        w[j][0] = vreinterpretq_s8_s32(vzip1q_s32(first, second));
        w[j][1] = vreinterpretq_s8_s32(vzip2q_s32(first, second));
    }
}

/* acc += group g of a block's rows times all columns */
ALWAYS_INLINE void multiply_group_i8mm(block_x16 block, int g, const columns_i8mm_t *columns,
                                       const rows_i8mm_t *rows, const int n_pairs, const int type,
                                       float32x4_t acc[COLUMN_PAIRS][2]) {
    int8x16_t w[4][2];
    if (layout_of(type) == PAIRS && block.part % 2) {
        block.part = 1; /* the compiler then knows it of every register */
        integers_i8mm(block, type, g, w);
    } else {
        if (layout_of(type) == PAIRS) block.part = 0;
        integers_i8mm(block, type, g, w);
    }
    _Pragma("GCC unroll 2")
    for (int part = 0; part < 1 + has_halves(type); part++) {
        const float32x4_t d0 = rows->d[part][g][0], d1 = rows->d[part][g][1];
        FOR_EACH_PAIR {
            int32x4_t dot0 = vdupq_n_s32(0);
            if (!starts_at_zero_neon(type)) dot0 = vld1q_s32(columns->start[part][p]);
            int32x4_t dot1 = dot0;
            const int from = 2 * part, to = has_halves(type) ? from + 2 : 4;
            _Pragma("GCC unroll 4")
            for (int j = from; j < to; j++) {
                const int8x16_t x = vld1q_s8(columns->x[p][j]);
                dot0 = vmmlaq_s32(dot0, w[j][0], x);
                dot1 = vmmlaq_s32(dot1, w[j][1], x);
            }
            const float32x4_t scale = vld1q_f32(columns->scale[p]);
            acc[p][0] = vfmaq_f32(acc[p][0], vcvtq_f32_s32(dot0), vmulq_f32(d0, scale));
            acc[p][1] = vfmaq_f32(acc[p][1], vcvtq_f32_s32(dot1), vmulq_f32(d1, scale));
            /* or compilers load what later pairs need, for which there are too few registers */
            __asm__("" : "+w"(acc[p][0]), "+w"(acc[p][1]), "+r"(columns));
            if (!has_minimum(type)) continue;
            const float32x4_t sum = vld1q_f32(columns->scaled[part][p]);
            acc[p][0] = vfmaq_f32(acc[p][0], rows->m[part][g][0], sum);
            acc[p][1] = vfmaq_f32(acc[p][1], rows->m[part][g][1], sum);
        }
    }
}

/* A tile of 2 n_pairs columns */
ALWAYS_INLINE void paired_columns_i8mm(const void *weights, const activations_t *a, int64_t col,
                                       const int n_pairs, float *out, int64_t out_stride,
                                       int n_rows, int add, const int type) {
    const int64_t n_blocks = a->n_k / BLOCK;
    float32x4_t acc[4][COLUMN_PAIRS][2];
    columns_i8mm_t columns[CHUNK_I8MM];
    rows_i8mm_t rows[CHUNK_I8MM];
    factors_t factors;
    memset(acc, 0, sizeof acc);
    for (int64_t b0 = 0; b0 < n_blocks; b0 += CHUNK_I8MM) {
        const int n = n_blocks - b0 < CHUNK_I8MM ? (int)(n_blocks - b0) : CHUNK_I8MM;
        for (int b = 0; b < n; b++) {
            const int64_t at = col * n_blocks + (b0 + b) * 2 * n_pairs;
            prepare_columns_i8mm(a, at, n_pairs, type, &columns[b]);
            prepare_rows_i8mm(block_of(weights, b0 + b, type), &factors, type, &rows[b]);
        }
        for (int g = 0; g < 4; g++) {
            float32x4_t sum[COLUMN_PAIRS][2];
            FOR_EACH_PAIR sum[p][0] = acc[g][p][0], sum[p][1] = acc[g][p][1];
            for (int b = 0; b < n; b++)
                multiply_group_i8mm(block_of(weights, b0 + b, type), g, &columns[b], &rows[b],
                                    n_pairs, type, sum);
            FOR_EACH_PAIR acc[g][p][0] = sum[p][0], acc[g][p][1] = sum[p][1];
        }
    }
    for (int p = 0; p < n_pairs; p++) {
        rows_f32x16_neon both[2];
        FOR_EACH_GROUP {
            both[0].group[g] = vuzp1q_f32(acc[g][p][0], acc[g][p][1]);
            both[1].group[g] = vuzp2q_f32(acc[g][p][0], acc[g][p][1]);
        }
        store_columns_neon(both, 2, out + 2 * p * out_stride, out_stride, n_rows, add);
    }
}

ALWAYS_INLINE void tile_i8mm(const void *weights, const activations_t *a, int64_t col, int n_cols,
                             float *out, int64_t out_stride, int n_rows, int add, const int type,
                             const void *tuning) {
    (void)tuning;
    if (n_cols <= 2)
        narrow_tile_dotprod(weights, a, col, n_cols, out, out_stride, n_rows, add, type);
    else if (n_cols == 4)
        paired_columns_i8mm(weights, a, col, 2, out, out_stride, n_rows, add, type);
    else if (n_cols == 8)
        paired_columns_i8mm(weights, a, col, 4, out, out_stride, n_rows, add, type);
    else paired_columns_i8mm(weights, a, col, 8, out, out_stride, n_rows, add, type);
}

#define FLOAT_TYPE(...)
#define BLOCK_TYPE(NAME, name, ...) MATMUL(matmul_##name##_i8mm, tile_i8mm, W_##NAME, NULL)
#include "types.def"

static void use_matmul_i8mm(kernels_t *k) {
#define FLOAT_TYPE(...)
#define BLOCK_TYPE(NAME, name, ...) k->matmul[W_##NAME] = matmul_##name##_i8mm;
#include "types.def"
}

#undef FOR_EACH_GROUP
#undef FOR_EACH_PAIR
#endif
