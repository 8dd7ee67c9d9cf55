/* Matmul tiles of Q5_0, Q5_1, IQ4_NL and Q2_K to Q5_K in plain C. See unpack.h. */
#ifndef LARIAT_MATMUL_K_SCALAR_H
#define LARIAT_MATMUL_K_SCALAR_H

#include "matmul_scalar.h"
#include "unpack.h"

/* Integers to whole bytes: byte 4r + j of vector v is row r, column 4v + j. */
ALWAYS_INLINE void k_integers_scalar(block_x16 block, const int type, uint8_t q[8][64]) {
    const int n = low_bits(type), mask = (1 << n) - 1, odd = block.part % 2;
    for (int v = 0; v < 8; v++)
        for (int i = 0; i < 64; i++) {
            if (is_paired(type)) {
                const int byte = block.low[v][i];
                q[v][i] = (uint8_t)(type == W_Q4_K ? (odd ? byte >> 4 : byte & 15)
                                    : odd ? byte >> 5 << 2 | (block.high[v / 4][i] >> v % 4 * 2 & 3)
                                          : byte & 31);
                continue;
            }
            const int high = has_high_bit(type) ? block.high[0][i] >> v & 1 : 0;
            q[v][i] = (uint8_t)((block.low[v % n][i] >> (n * (v / n)) & mask) | high << n);
        }
}

ALWAYS_INLINE void k_tile_scalar(const void *weights, const activations_t *a, int64_t col,
                                 int n_cols, float *out, int64_t out_stride, int n_rows, int add,
                                 const int type) {
    const int64_t n_blocks = a->n_k / BLOCK;
    float acc[TILE_COLUMNS][16] = {{0}};
    factors_t factors;
    for (int64_t b = 0; b < n_blocks; b++) {
        const block_x16 block = block_of(weights, b, type);
        uint8_t q[8][64];
        float d[2][16], m[2][16] = {{0}};
        k_integers_scalar(block, type, q);
        if (is_super(type) && b % 8 == 0) unpack_factors(block, type, &factors);
        for (int h = 0; h < 2; h++)
            for (int r = 0; r < 16; r++) {
                const int i = is_halved(type) ? 2 * block.part + h : block.part;
                d[h][r] = f16_to_f32(block.d[r]) * (is_super(type) ? factors.d[i][r] : 1);
                if (has_minimum(type))
                    m[h][r] = f16_to_f32(block.m[r]) * (is_super(type) ? factors.m[i][r] : 1);
            }
        for (int c = 0; c < n_cols; c++) {
            const int64_t at = col * n_blocks + b * n_cols + c;
            for (int h = 0; h < 2; h++) {
                const int32_t sum = a->half_sum[2 * at + h];
                for (int r = 0; r < 16; r++) {
                    int32_t dot = type == W_IQ4_NL ? 0 : -offset_of(type) * sum;
                    for (int k = 16 * h; k < 16 * h + 16; k++) {
                        const uint8_t n = q[k / 4][4 * r + k % 4];
                        dot += (type == W_IQ4_NL ? IQ4_NL_STEPS[n] : n) * a->q[at * BLOCK + k];
                    }
                    acc[c][r] += a->scale[at] * ((float)dot * d[h][r] + (float)sum * m[h][r]);
                }
            }
        }
    }
    for (int c = 0; c < n_cols; c++)
        store_column_scalar(acc[c], out + c * out_stride, n_rows, add);
}

#define K_MATMUL_SCALAR(name, type)                                                        \
    static void name(const void *weights, const activations_t *a, int64_t col, int n_cols, \
                     float *out, int64_t out_stride, int n_rows, int add) {                \
        k_tile_scalar(weights, a, col, n_cols, out, out_stride, n_rows, add, type);        \
    }
K_MATMUL_SCALAR(matmul_q5_0_scalar, W_Q5_0)
K_MATMUL_SCALAR(matmul_q5_1_scalar, W_Q5_1)
K_MATMUL_SCALAR(matmul_iq4_NL_scalar, W_IQ4_NL)
K_MATMUL_SCALAR(matmul_q2_K_scalar, W_Q2_K)
K_MATMUL_SCALAR(matmul_q3_K_scalar, W_Q3_K)
K_MATMUL_SCALAR(matmul_q4_K_scalar, W_Q4_K)
K_MATMUL_SCALAR(matmul_q5_K_scalar, W_Q5_K)
#undef K_MATMUL_SCALAR

static void use_matmul_scalar(kernels_t *k) {
    k->matmul[W_F32] = matmul_f32_scalar;
    k->matmul[W_F16] = matmul_f16_scalar;
    k->matmul[W_BF16] = matmul_bf16_scalar;
    k->matmul[W_Q4_0] = matmul_q4_0_scalar;
    k->matmul[W_Q4_1] = matmul_q4_1_scalar;
    k->matmul[W_Q8_0] = matmul_q8_0_scalar;
    k->matmul[W_Q6_K] = matmul_q6_K_scalar;
    k->matmul[W_Q5_0] = matmul_q5_0_scalar;
    k->matmul[W_Q5_1] = matmul_q5_1_scalar;
    k->matmul[W_IQ4_NL] = matmul_iq4_NL_scalar;
    k->matmul[W_Q2_K] = matmul_q2_K_scalar;
    k->matmul[W_Q3_K] = matmul_q3_K_scalar;
    k->matmul[W_Q4_K] = matmul_q4_K_scalar;
    k->matmul[W_Q5_K] = matmul_q5_K_scalar;
}

#endif
