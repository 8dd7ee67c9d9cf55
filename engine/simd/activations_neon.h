/* Activations to 8 bits, for NEON. */
#ifndef LARIAT_ACTIVATIONS_NEON_H
#define LARIAT_ACTIVATIONS_NEON_H

#include <arm_neon.h>

#include "table.h"

/* The largest magnitude of a block, as an integer, so that NaN is the largest (magnitude_bits) */
ALWAYS_INLINE float max_magnitude_neon(const float32x4_t x[8]) {
    uint32x4_t max = vdupq_n_u32(0);
    _Pragma("GCC unroll 8")
    for (int i = 0; i < 8; i++)
        max = vmaxq_u32(max, vandq_u32(vreinterpretq_u32_f32(x[i]), vdupq_n_u32(0x7fffffff)));
    return float_of_bits((int32_t)vmaxvq_u32(max));
}

/* Sixteen numbers to bytes, halves to even, from -127 to 127; NaN becomes 0. */
ALWAYS_INLINE int8x16_t round_16_neon(const float32x4_t x[4], float32x4_t inverse) {
    int16x4_t half[4];
    _Pragma("GCC unroll 4")
    for (int i = 0; i < 4; i++) half[i] = vqmovn_s32(vcvtnq_s32_f32(vmulq_f32(x[i], inverse)));
    const int8x16_t bytes = vcombine_s8(vqmovn_s16(vcombine_s16(half[0], half[1])),
                                        vqmovn_s16(vcombine_s16(half[2], half[3])));
    return vmaxq_s8(bytes, vdupq_n_s8(-127));
}

static void quantize_column_neon(const float *x, int64_t n_k, int64_t width, int8_t *q,
                                 float *scale, int32_t *neg8_sum, int16_t *half_sum) {
    for (int64_t b = 0; b < n_k / BLOCK; b++, x += BLOCK) {
        float32x4_t x_f32x4[8];
        _Pragma("GCC unroll 8")
        for (int i = 0; i < 8; i++) x_f32x4[i] = vld1q_f32(x + 4 * i);
        const float max = max_magnitude_neon(x_f32x4);
        const float32x4_t inverse = vdupq_n_f32(max > 0 ? 127.0f / max : 0.0f);
        const int8x16_t first = round_16_neon(x_f32x4, inverse);
        const int8x16_t second = round_16_neon(x_f32x4 + 4, inverse);
        vst1q_s8(q + b * width * BLOCK, first);
        vst1q_s8(q + b * width * BLOCK + 16, second);
        const int sum0 = vaddlvq_s8(first), sum1 = vaddlvq_s8(second);
        scale[b * width] = activation_scale(max);
        neg8_sum[b * width] = -8 * (sum0 + sum1);
        half_sum[2 * b * width] = (int16_t)sum0;
        half_sum[2 * b * width + 1] = (int16_t)sum1;
    }
}

static void use_activations_neon(kernels_t *k) { k->quantize_column = quantize_column_neon; }

#endif
