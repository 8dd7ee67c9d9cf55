/* Row-wise operations in plain C: norm, activation quantization, RoPE, Hadamard transform, SiLU,
 * GELU, soft cap, conversion. */
#ifndef LARIAT_VECTOR_SCALAR_H
#define LARIAT_VECTOR_SCALAR_H

#include "layout.h"
#include "table.h"

/* out = x / sqrt(mean(x^2) + eps) * weight */
static void rms_norm_scalar(const float *x, const float *weight, float eps, int64_t n, float *out) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    const float r = norm_factor(sum, n, eps);
    for (int64_t i = 0; i < n; i++) out[i] = x[i] * r * weight[i];
}

/* One column of n_k floats to blocks that stand `width` blocks apart, see activations_t.
 * q = 127 x / max |x| to the nearest, ties to even. */
static void quantize_column_scalar(const float *x, int64_t n_k, int64_t width, int8_t *q,
                                   float *scale, int32_t *neg8_sum, int16_t *half_sum) {
    for (int64_t b = 0; b < n_k / BLOCK; b++, x += BLOCK) {
        int32_t max_bits = 0;
        for (int i = 0; i < BLOCK; i++)
            max_bits = magnitude_bits(x[i]) > max_bits ? magnitude_bits(x[i]) : max_bits;
        const float max = float_of_bits(max_bits);
        const float inverse = max > 0 ? 127.0f / max : 0.0f;
        int8_t *block = q + b * width * BLOCK;
        int sums[2] = {0, 0};
        for (int i = 0; i < BLOCK; i++) {
            float rounded = nearbyintf(x[i] * inverse);
            rounded = rounded > 127.0f ? 127.0f : rounded < -127.0f ? -127.0f : rounded;
            const int value = rounded == rounded ? (int)rounded : 0; /* NaN has no integer */
            block[i] = (int8_t)value;
            sums[i / 16] += value;
        }
        scale[b * width] = activation_scale(max);
        neg8_sum[b * width] = -8 * (sums[0] + sums[1]);
        half_sum[2 * b * width] = (int16_t)sums[0];
        half_sum[2 * b * width + 1] = (int16_t)sums[1];
    }
}

/* Rotates pairs (x[i], x[i + half]) by the angles of one table row [cos | sin], then scales. */
static void rope_head_scalar(float *x, const float *row, int64_t half, float scale) {
    for (int64_t i = 0; i < half; i++) {
        const float a = x[i] * scale, b = x[half + i] * scale;
        x[i] = a * row[i] - b * row[half + i];
        x[half + i] = a * row[half + i] + b * row[i];
    }
}

/* Numbers that are transformed together: the largest power of two that divides n */
ALWAYS_INLINE int64_t hadamard_size(int64_t n) { return n & -n; }

/* x times the Hadamard matrix of Sylvester, orthonormal and so its own inverse, in blocks of the
 * size above. With log2(size) passes over pairs instead of a matrix. */
static void hadamard_scalar(float *x, int64_t n) {
    const int64_t size = hadamard_size(n);
    const float scale = 1.0f / sqrtf((float)size);
    for (int64_t apart = 1; apart < size; apart *= 2)
        for (int64_t from = 0; from < n; from += 2 * apart)
            for (int64_t i = from; i < from + apart; i++) {
                const float a = x[i], b = x[apart + i];
                x[i] = a + b;
                x[apart + i] = a - b;
            }
    for (int64_t i = 0; i < n; i++) x[i] *= scale;
}

/* gate = gate * sigmoid(gate) * up */
static void silu_mul_scalar(float *gate, const float *up, int64_t n) {
    for (int64_t i = 0; i < n; i++) gate[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

/* gate = GELU(gate) * up, with the tanh of arXiv 1606.08415:
 *     GELU(x) = x (1 + tanh(u)) / 2 = x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3) */
#define GELU_FIRST -1.595769122f   /* of -2 u, times x */
#define GELU_THIRD -0.0713548163f  /* times x^3 */

static void gelu_mul_scalar(float *gate, const float *up, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        const float x = gate[i];
        gate[i] = x / (1.0f + expf(x * (GELU_FIRST + GELU_THIRD * x * x))) * up[i];
    }
}

/* tanh of a small x as x + x z (((T5 z + T4) z + T3) z + T2) z + T1), z = x^2, to 1 ulp: Cephes,
 * tanhf.c. Beyond it 1 - 2 / (exp(2 x) + 1) loses nothing. */
#define TANH_SMALL 0.625f
#define TANH_1 -3.33332819422e-1f
#define TANH_2 1.33314422036e-1f
#define TANH_3 -5.37397155531e-2f
#define TANH_4 2.06390887954e-2f
#define TANH_5 -5.70498872745e-3f

/* x = cap tanh(x / cap) */
static void soft_cap_scalar(float *x, int64_t n, float cap) {
    for (int64_t i = 0; i < n; i++) x[i] = cap * tanhf(x[i] / cap);
}

static void to_f16_scalar(const float *x, int64_t n, f16_t *out) {
    for (int64_t i = 0; i < n; i++) out[i] = f32_to_f16(x[i]);
}

static void use_vector_scalar(kernels_t *k) {
    k->rms_norm = rms_norm_scalar;
    k->quantize_column = quantize_column_scalar;
    k->rope_head = rope_head_scalar;
    k->hadamard = hadamard_scalar;
    k->silu_mul = silu_mul_scalar;
    k->gelu_mul = gelu_mul_scalar;
    k->soft_cap = soft_cap_scalar;
    k->to_f16 = to_f16_scalar;
}

#endif
