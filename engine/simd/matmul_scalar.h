/* Matmul tiles in plain C: one group of 16 rows times one tile of columns. See types.h. */
#ifndef LARIAT_MATMUL_SCALAR_H
#define LARIAT_MATMUL_SCALAR_H

#include "unpack.h"

ALWAYS_INLINE void store_column_scalar(const float acc[16], float *out, int n_rows, int add) {
    for (int r = 0; r < n_rows; r++) out[r] = add ? out[r] + acc[r] : acc[r];
}

ALWAYS_INLINE float float_weight_scalar(const void *w, int64_t i, const int type) {
    if (type == W_F32) return ((const float *)w)[i];
    const uint16_t bits = ((const uint16_t *)w)[i];
    return type == W_F16 ? f16_to_f32(bits) : bf16_to_f32(bits);
}

/* Two sums, of the even and of the odd columns, as at the other levels */
ALWAYS_INLINE void float_tile_scalar(const void *w, const activations_t *a, int64_t col, int n_cols,
                                     float *out, int64_t out_stride, int n_rows, int add,
                                     const int type) {
    for (int c = 0; c < n_cols; c++) {
        const float *x = a->x + (col + c) * a->n_k;
        float even[16] = {0}, odd[16] = {0};
        int64_t k = 0;
        for (; k + 2 <= a->n_k; k += 2)
            for (int r = 0; r < 16; r++) {
                even[r] += float_weight_scalar(w, 16 * k + r, type) * x[k];
                odd[r] += float_weight_scalar(w, 16 * k + 16 + r, type) * x[k + 1];
            }
        for (int r = 0; r < 16; r++) {
            const int left = k < a->n_k;
            even[r] += (left ? float_weight_scalar(w, 16 * k + r, type) * x[k] : 0.0f) + odd[r];
        }
        store_column_scalar(even, out + c * out_stride, n_rows, add);
    }
}

/* Integer i of vector v as it is stored: byte 4r + j is row r, column 4v + j. */
ALWAYS_INLINE int integer_scalar(block_x16 block, int v, int i, const int type) {
    const int n = low_bits(type), odd = block.part % 2;
    switch (layout_of(type)) {
    case SIXES: {
        const uint8_t *three = vector_of(block.low, v / 4 * 3);
        if (v % 4 < 3) return three[64 * (v % 4) + i] & 63;
        return three[i] >> 6 << 4 | three[64 + i] >> 6 << 2 | three[128 + i] >> 6;
    }
    case PAIRS: {
        const int byte = vector_of(block.low, v)[i];
        if (!high_bits(type)) return odd ? byte >> 4 : byte & 15;
        if (!odd) return byte & 31;
        return byte >> 5 << 2 | (vector_of(block.high, v / 4)[i] >> v % 4 * 2 & 3);
    }
    case BYTES: return vector_of(block.low, v)[i];
    default: {
        const int low = vector_of(block.low, v % n)[i] >> n * (v / n) & ((1 << n) - 1);
        return high_bits(type) ? low | (vector_of(block.high, 0)[i] >> v & 1) << n : low;
    }
    }
}

/* The unsigned integers of a block in the order of BYTES; steps come raised by the offset. */
ALWAYS_INLINE void integers_scalar(block_x16 block, const int type, uint8_t q[8][64]) {
    for (int v = 0; v < 8; v++)
        for (int i = 0; i < 64; i++) {
            const int n = integer_scalar(block, v, i, type);
            q[v][i] = (uint8_t)(has_steps(type) ? WEIGHT_TYPES[type].steps[n] + offset_of(type)
                                                : n);
        }
}

ALWAYS_INLINE float load_scale_scalar(const void *scales, int r, const int type) {
    switch (WEIGHT_TYPES[type].scale) {
    case SCALE_E8M0: return half_of_e8m0(((const uint8_t *)scales)[r]);
    case SCALE_F32: return ((const float *)scales)[r];
    default: return f16_to_f32(((const f16_t *)scales)[r]);
    }
}

/* d and m of both halves of a block, [half][row], with their factors */
ALWAYS_INLINE void block_scales_scalar(block_x16 block, const factors_t *factors, const int type,
                                       float d[2][16], float m[2][16]) {
    for (int h = 0; h < 2; h++) {
        const int8_t *of_d = d_factors(block, factors, h, type);
        const int8_t *of_m = m_factors(block, factors, h, type);
        for (int r = 0; r < 16; r++) {
            d[h][r] = load_scale_scalar(block.d, r, type) * (has_factors(type) ? of_d[r] : 1);
            m[h][r] = !has_minimum(type)
                          ? 0
                          : load_scale_scalar(block.m, r, type) * (has_factors(type) ? of_m[r] : 1);
        }
    }
}

/* Types of 32 columns that do without a plane of high bits and steps make one float of a whole
 * block, Q6_K one of a part; the others make one of each half. */
ALWAYS_INLINE int sums_blocks_scalar(const int type) {
    return !is_super(type) && !high_bits(type) && !has_steps(type);
}

/* acc += the block times one column, with d and m of its halves */
ALWAYS_INLINE void add_block_scalar(float acc[16], const uint8_t q[8][64], const float d[2][16],
                                    const float m[2][16], const activations_t *a, int64_t at,
                                    const int type) {
    const int8_t *x = a->q + at * BLOCK;
    const int16_t *sum = a->half_sum + 2 * at;
    const float scale = a->scale[at], scaled = scale * -0.125f * (float)a->neg8_sum[at];
    for (int r = 0; r < 16; r++) {
        int32_t dot[2];
        for (int h = 0; h < 2; h++) {
            dot[h] = has_minimum(type) ? 0 : -offset_of(type) * sum[h];
            for (int k = 16 * h; k < 16 * h + 16; k++) dot[h] += q[k / 4][4 * r + k % 4] * x[k];
        }
        if (sums_blocks_scalar(type)) {
            acc[r] += (float)(dot[0] + dot[1]) * (d[0][r] * scale);
            if (has_minimum(type)) acc[r] += m[0][r] * scaled;
        } else if (layout_of(type) == SIXES) {
            acc[r] += ((float)dot[0] * d[0][r] + (float)dot[1] * d[1][r]) * scale;
        } else {
            for (int h = 0; h < 2; h++)
                acc[r] += scale * ((float)dot[h] * d[h][r] + (float)sum[h] * m[h][r]);
        }
    }
}

ALWAYS_INLINE void block_tile_scalar(const void *weights, const activations_t *a, int64_t col,
                                     int n_cols, float *out, int64_t out_stride, int n_rows,
                                     int add, const int type) {
    const int64_t n_blocks = a->n_k / BLOCK;
    float acc[TILE_COLUMNS][16] = {{0}};
    factors_t factors;
    for (int64_t b = 0; b < n_blocks; b++) {
        const block_x16 block = block_of(weights, b, type);
        uint8_t q[8][64];
        float d[2][16], m[2][16];
        unpack_factors(block, type, &factors);
        integers_scalar(block, type, q);
        block_scales_scalar(block, &factors, type, d, m);
        for (int c = 0; c < n_cols; c++)
            add_block_scalar(acc[c], q, d, m, a, col * n_blocks + b * n_cols + c, type);
    }
    for (int c = 0; c < n_cols; c++)
        store_column_scalar(acc[c], out + c * out_stride, n_rows, add);
}

ALWAYS_INLINE void tile_scalar(const void *weights, const activations_t *a, int64_t col, int n_cols,
                               float *out, int64_t out_stride, int n_rows, int add, const int type,
                               const void *tuning) {
    (void)tuning;
    if (layout_of(type) == FLOATS)
        float_tile_scalar(weights, a, col, n_cols, out, out_stride, n_rows, add, type);
    else
        block_tile_scalar(weights, a, col, n_cols, out, out_stride, n_rows, add, type);
}

#define TYPE(NAME, name) MATMUL(matmul_##name##_scalar, tile_scalar, W_##NAME, NULL)
#include "types.def"

static void use_matmul_scalar(kernels_t *k) {
    for (int n = 1; n <= TILE_COLUMNS; n++)
        k->widths[n] = (int8_t)(n >= 16 ? 16 : n >= 8 ? 8 : n >= 4 ? 4 : n >= 2 ? 2 : 1);
#define TYPE(NAME, name) \
    k->matmul[W_##NAME] = matmul_##name##_scalar, k->matmul_many[W_##NAME] = NULL;
#include "types.def"
}

#endif
