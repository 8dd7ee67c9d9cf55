/* Matmul tiles in plain C: one group of 16 rows times one tile of columns. See layout.h. */
#ifndef LARIAT_MATMUL_SCALAR_H
#define LARIAT_MATMUL_SCALAR_H

#include "layout.h"

static inline void store_column_scalar(const float acc[16], float *out, int n_rows, int add) {
    for (int r = 0; r < n_rows; r++) out[r] = add ? out[r] + acc[r] : acc[r];
}

static void matmul_q4_0_scalar(const void *weights, const activations_t *a, int64_t col, int n_cols,
                               float *out, int64_t out_stride, int n_rows, int add) {
    const int64_t n_blocks = a->n_k / BLOCK;
    for (int c = 0; c < n_cols; c++) {
        float acc[16] = {0};
        const q4_0_x16 *w = weights;
        for (int64_t b = 0; b < n_blocks; b++, w++) {
            const int64_t at = col * n_blocks + b * n_cols + c;
            const int8_t *q = a->q + at * BLOCK;
            for (int r = 0; r < 16; r++) {
                int32_t dot = a->neg8_sum[at];
                for (int v = 0; v < 4; v++)
                    for (int j = 0; j < 4; j++) {
                        const uint8_t byte = w->q[v][4 * r + j];
                        dot += (byte & 15) * q[4 * v + j] + (byte >> 4) * q[16 + 4 * v + j];
                    }
                acc[r] += (float)dot * (f16_to_f32(w->d[r]) * a->scale[at]);
            }
        }
        store_column_scalar(acc, out + c * out_stride, n_rows, add);
    }
}

static void matmul_q4_1_scalar(const void *weights, const activations_t *a, int64_t col, int n_cols,
                               float *out, int64_t out_stride, int n_rows, int add) {
    const int64_t n_blocks = a->n_k / BLOCK;
    for (int c = 0; c < n_cols; c++) {
        float acc[16] = {0};
        const q4_1_x16 *w = weights;
        for (int64_t b = 0; b < n_blocks; b++, w++) {
            const int64_t at = col * n_blocks + b * n_cols + c;
            const int8_t *q = a->q + at * BLOCK;
            const float sum = a->scale[at] * -0.125f * (float)a->neg8_sum[at];
            for (int r = 0; r < 16; r++) {
                int32_t dot = 0;
                for (int v = 0; v < 4; v++)
                    for (int j = 0; j < 4; j++) {
                        const uint8_t byte = w->q[v][4 * r + j];
                        dot += (byte & 15) * q[4 * v + j] + (byte >> 4) * q[16 + 4 * v + j];
                    }
                acc[r] += (float)dot * (f16_to_f32(w->d[r]) * a->scale[at]);
                acc[r] += f16_to_f32(w->m[r]) * sum;
            }
        }
        store_column_scalar(acc, out + c * out_stride, n_rows, add);
    }
}

static void matmul_q8_0_scalar(const void *weights, const activations_t *a, int64_t col, int n_cols,
                               float *out, int64_t out_stride, int n_rows, int add) {
    const int64_t n_blocks = a->n_k / BLOCK;
    for (int c = 0; c < n_cols; c++) {
        float acc[16] = {0};
        const q8_0_x16 *w = weights;
        for (int64_t b = 0; b < n_blocks; b++, w++) {
            const int64_t at = col * n_blocks + b * n_cols + c;
            const int8_t *q = a->q + at * BLOCK;
            for (int r = 0; r < 16; r++) {
                int32_t dot = 16 * a->neg8_sum[at];
                for (int v = 0; v < 8; v++)
                    for (int j = 0; j < 4; j++) dot += w->q[v][4 * r + j] * q[4 * v + j];
                acc[r] += (float)dot * (f16_to_f32(w->d[r]) * a->scale[at]);
            }
        }
        store_column_scalar(acc, out + c * out_stride, n_rows, add);
    }
}

static void matmul_q6_K_scalar(const void *weights, const activations_t *a, int64_t col, int n_cols,
                               float *out, int64_t out_stride, int n_rows, int add) {
    const int64_t n_blocks = a->n_k / BLOCK;
    for (int c = 0; c < n_cols; c++) {
        float acc[16] = {0};
        for (int64_t b = 0; b < n_blocks; b++) {
            const q6_K_x16 *w = (const q6_K_x16 *)weights + b / 8;
            const int64_t at = col * n_blocks + b * n_cols + c;
            const int8_t *q = a->q + at * BLOCK;
            for (int r = 0; r < 16; r++) {
                float sum = 0;
                for (int h = 0; h < 2; h++) {
                    int32_t dot = -32 * a->half_sum[2 * at + h];
                    for (int j = 0; j < 4; j++) {
                        int last = 0;
                        for (int k = 0; k < 3; k++) {
                            const int byte = w->part[b % 8].q[h][k][4 * r + j];
                            dot += (byte & 63) * q[16 * h + 4 * k + j];
                            last = last << 2 | byte >> 6;
                        }
                        dot += last * q[16 * h + 12 + j];
                    }
                    sum += (float)dot * (f16_to_f32(w->d[r]) * (float)w->part[b % 8].scale[h][r]);
                }
                acc[r] += sum * a->scale[at];
            }
        }
        store_column_scalar(acc, out + c * out_stride, n_rows, add);
    }
}

/* Two sums, of the even and the odd columns, as at the other levels. */
#define FLOAT_TILE_SCALAR(load)                                                            \
    for (int c = 0; c < n_cols; c++) {                                                     \
        const float *x = a->x + (col + c) * a->n_k;                                        \
        float even[16] = {0}, odd[16] = {0};                                               \
        int64_t k = 0;                                                                     \
        for (; k + 2 <= a->n_k; k += 2)                                                    \
            for (int r = 0; r < 16; r++) {                                                 \
                even[r] += load(w[16 * k + r]) * x[k];                                     \
                odd[r] += load(w[16 * k + 16 + r]) * x[k + 1];                             \
            }                                                                              \
        for (int r = 0; r < 16; r++)                                                       \
            even[r] += (k < a->n_k ? load(w[16 * k + r]) * x[k] : 0.0f) + odd[r];          \
        store_column_scalar(even, out + c * out_stride, n_rows, add);                      \
    }

static void matmul_f32_scalar(const void *weights, const activations_t *a, int64_t col, int n_cols,
                              float *out, int64_t out_stride, int n_rows, int add) {
    const float *w = weights;
    FLOAT_TILE_SCALAR()
}

static void matmul_f16_scalar(const void *weights, const activations_t *a, int64_t col, int n_cols,
                              float *out, int64_t out_stride, int n_rows, int add) {
    const f16_t *w = weights;
    FLOAT_TILE_SCALAR(f16_to_f32)
}

static void matmul_bf16_scalar(const void *weights, const activations_t *a, int64_t col, int n_cols,
                               float *out, int64_t out_stride, int n_rows, int add) {
    const uint16_t *w = weights;
    FLOAT_TILE_SCALAR(bf16_to_f32)
}
#undef FLOAT_TILE_SCALAR

#endif
