/* Row-wise operations for NEON: norm, RoPE, Hadamard transform, SiLU, GELU, soft cap, conversion.
 *
 * The last lanes of a row that does not divide by 4 are done by the portable version. */
#ifndef LARIAT_VECTOR_NEON_H
#define LARIAT_VECTOR_NEON_H

#include <arm_neon.h>

#include "layout.h"
#include "table.h"
#include "vector_scalar.h"

/* exp with a relative error below 2e-7, clamped at -87: see exp_avx512. NaN stays NaN. */
ALWAYS_INLINE float32x4_t exp_neon(float32x4_t x) {
    x = vminq_f32(vdupq_n_f32(88.0f), vmaxq_f32(vdupq_n_f32(-87.0f), x));
    const float32x4_t n = vrndnq_f32(vmulq_f32(x, vdupq_n_f32(1.44269504f)));
    float32x4_t f = vfmsq_f32(x, n, vdupq_n_f32(0.693359375f));
    f = vfmsq_f32(f, n, vdupq_n_f32(-2.12194440e-4f));
    float32x4_t p = vdupq_n_f32(1.0f / 5040);
    p = vfmaq_f32(vdupq_n_f32(1.0f / 720), p, f);
    p = vfmaq_f32(vdupq_n_f32(1.0f / 120), p, f);
    p = vfmaq_f32(vdupq_n_f32(1.0f / 24), p, f);
    p = vfmaq_f32(vdupq_n_f32(1.0f / 6), p, f);
    p = vfmaq_f32(vdupq_n_f32(0.5f), p, f);
    p = vfmaq_f32(vdupq_n_f32(1.0f), p, f);
    p = vfmaq_f32(vdupq_n_f32(1.0f), p, f);
    const int32x4_t exponent = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
    return vmulq_f32(p, vreinterpretq_f32_s32(exponent));
}

static void rms_norm_neon(const float *x, const float *weight, float eps, int64_t n, float *out) {
    float32x4_t sums[8]; /* a sum waits four cycles for its last addition */
    int64_t i = 0;
    for (int v = 0; v < 8; v++) sums[v] = vdupq_n_f32(0);
    for (; i + 32 <= n; i += 32)
        for (int v = 0; v < 8; v++) {
            const float32x4_t a = vld1q_f32(x + i + 4 * v);
            sums[v] = vfmaq_f32(sums[v], a, a);
        }
    for (; i + 4 <= n; i += 4) {
        const float32x4_t a = vld1q_f32(x + i);
        sums[0] = vfmaq_f32(sums[0], a, a);
    }
    for (int apart = 4; apart; apart /= 2)
        for (int v = 0; v < apart; v++) sums[v] = vaddq_f32(sums[v], sums[apart + v]);
    double sum = (double)vaddvq_f32(sums[0]);
    for (; i < n; i++) sum += (double)x[i] * x[i];
    const float r = norm_factor(sum, n, eps);
    for (i = 0; i + 4 <= n; i += 4)
        vst1q_f32(out + i, vmulq_f32(vmulq_n_f32(vld1q_f32(x + i), r), vld1q_f32(weight + i)));
    for (; i < n; i++) out[i] = x[i] * r * weight[i];
}

static void rope_head_neon(float *x, const float *row, int64_t half, float scale) {
    int64_t i = 0;
    for (; i + 4 <= half; i += 4) {
        const float32x4_t a = vmulq_n_f32(vld1q_f32(x + i), scale);
        const float32x4_t b = vmulq_n_f32(vld1q_f32(x + half + i), scale);
        const float32x4_t cosine = vld1q_f32(row + i), sine = vld1q_f32(row + half + i);
        vst1q_f32(x + i, vfmsq_f32(vmulq_f32(a, cosine), b, sine));
        vst1q_f32(x + half + i, vfmaq_f32(vmulq_f32(a, sine), b, cosine));
    }
    for (; i < half; i++) {
        const float a = x[i] * scale, b = x[half + i] * scale;
        x[i] = a * row[i] - b * row[half + i];
        x[half + i] = a * row[half + i] + b * row[i];
    }
}

/* Two passes within a vector, where a lane becomes its partner plus or minus itself, and the rest
 * over vectors. */
static void hadamard_neon(float *x, int64_t n) {
    static const float SIGNS[2][4] = {{1, -1, 1, -1}, {1, 1, -1, -1}};
    const int64_t size = hadamard_size(n);
    if (size < 4) {
        hadamard_scalar(x, n);
        return;
    }
    const float scale = 1.0f / sqrtf((float)size);
    const float32x4_t sign_1 = vld1q_f32(SIGNS[0]), sign_2 = vld1q_f32(SIGNS[1]);
    for (int64_t i = 0; i < n; i += 4) {
        float32x4_t a = vmulq_n_f32(vld1q_f32(x + i), scale);
        a = vfmaq_f32(vrev64q_f32(a), a, sign_1);
        a = vfmaq_f32(vextq_f32(a, a, 2), a, sign_2);
        vst1q_f32(x + i, a);
    }
    for (int64_t apart = 4; apart < size; apart *= 2)
        for (int64_t from = 0; from < n; from += 2 * apart)
            for (int64_t i = from; i < from + apart; i += 4) {
                const float32x4_t a = vld1q_f32(x + i), b = vld1q_f32(x + apart + i);
                vst1q_f32(x + i, vaddq_f32(a, b));
                vst1q_f32(x + apart + i, vsubq_f32(a, b));
            }
}

static void silu_mul_neon(float *gate, const float *up, int64_t n) {
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
        const float32x4_t g = vld1q_f32(gate + i);
        const float32x4_t below = vaddq_f32(vdupq_n_f32(1.0f), exp_neon(vnegq_f32(g)));
        vst1q_f32(gate + i, vmulq_f32(vdivq_f32(g, below), vld1q_f32(up + i)));
    }
    silu_mul_scalar(gate + i, up + i, n - i);
}

static void gelu_mul_neon(float *gate, const float *up, int64_t n) {
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
        const float32x4_t x = vld1q_f32(gate + i);
        const float32x4_t u =
            vfmaq_f32(vdupq_n_f32(GELU_FIRST), vmulq_f32(x, x), vdupq_n_f32(GELU_THIRD));
        const float32x4_t below = vaddq_f32(vdupq_n_f32(1.0f), exp_neon(vmulq_f32(u, x)));
        vst1q_f32(gate + i, vmulq_f32(vdivq_f32(x, below), vld1q_f32(up + i)));
    }
    gelu_mul_scalar(gate + i, up + i, n - i);
}

/* See soft_cap_scalar and TANH_SMALL. */
ALWAYS_INLINE float32x4_t tanh_neon(float32x4_t x) {
    const float32x4_t magnitude = vabsq_f32(x), z = vmulq_f32(x, x), one = vdupq_n_f32(1.0f);
    float32x4_t p = vdupq_n_f32(TANH_5);
    p = vfmaq_f32(vdupq_n_f32(TANH_4), p, z);
    p = vfmaq_f32(vdupq_n_f32(TANH_3), p, z);
    p = vfmaq_f32(vdupq_n_f32(TANH_2), p, z);
    p = vfmaq_f32(vdupq_n_f32(TANH_1), p, z);
    const float32x4_t small = vfmaq_f32(x, vmulq_f32(p, z), x);
    const float32x4_t e = exp_neon(vaddq_f32(magnitude, magnitude));
    const float32x4_t large = vsubq_f32(one, vdivq_f32(vdupq_n_f32(2.0f), vaddq_f32(e, one)));
    const float32x4_t with_sign = vbslq_f32(vdupq_n_u32(0x80000000u), x, large);
    return vbslq_f32(vcgtq_f32(magnitude, vdupq_n_f32(TANH_SMALL)), with_sign, small);
}

static void soft_cap_neon(float *x, int64_t n, float cap) {
    int64_t i = 0;
    for (; i + 4 <= n; i += 4)
        vst1q_f32(x + i, vmulq_n_f32(tanh_neon(vdivq_f32(vld1q_f32(x + i), vdupq_n_f32(cap))), cap));
    soft_cap_scalar(x + i, n - i, cap);
}

static void to_f16_neon(const float *x, int64_t n, f16_t *out) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        vst1q_u16(out + i, vreinterpretq_u16_f16(vcombine_f16(vcvt_f16_f32(vld1q_f32(x + i)),
                                                              vcvt_f16_f32(vld1q_f32(x + i + 4)))));
    to_f16_scalar(x + i, n - i, out + i);
}

static void use_vector_neon(kernels_t *k) {
    k->rms_norm = rms_norm_neon;
    k->rope_head = rope_head_neon;
    k->hadamard = hadamard_neon;
    k->silu_mul = silu_mul_neon;
    k->gelu_mul = gelu_mul_neon;
    k->soft_cap = soft_cap_neon;
    k->to_f16 = to_f16_neon;
}

#endif
