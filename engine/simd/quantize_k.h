/* Super-blocks of 256 weights, and tables: Q2_K to Q6_K, IQ4_XS, IQ4_NL, MXFP4; see quantize.h.
 *
 * With an importance for each weight (of its column: how large its activations were), errors are
 * multiplied by it, and ggml takes other starting points than without.
 */
#ifndef LARIAT_QUANTIZE_K_H
#define LARIAT_QUANTIZE_K_H

#include "quantize_search.h"
#include "types.h"

enum { SUPER = 256, HALF_PART = 16, PART = 32 };
/* Faults of weights; flags of one result */
enum { NOT_FINITE = 1, TOO_LARGE = 2 };

/* f16 in two bytes; TOO_LARGE if it cannot hold the number, else 0 */
ALWAYS_INLINE int store_scale(float d, uint8_t *out) {
    const f16_t h = f32_to_f16(d);
    memcpy(out, &h, 2);
    return (h & 0x7c00u) == 0x7c00u ? TOO_LARGE : 0;
}

ALWAYS_INLINE float stored_scale(const uint8_t *p) {
    f16_t h;
    memcpy(&h, p, 2);
    return f16_to_f32(h);
}

ALWAYS_INLINE float sum_of_squares(const float *x, int64_t n) {
    float sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i] * x[i];
    return sum;
}

/* What errors are multiplied by: the importance, and more for large weights */
ALWAYS_INLINE void worth_of(const float *x, const float *importance, float mean_square,
                            const int n, float *worth) {
    for (int i = 0; i < n; i++) worth[i] = importance[i] * sqrtf(mean_square + x[i] * x[i]);
}

/* Bits 2p of 32 bytes of each half: part p of four */
ALWAYS_INLINE void store_2_bits(const uint8_t q[SUPER], uint8_t *out) {
    for (int half = 0; half < 2; half++)
        for (int l = 0; l < 32; l++) {
            const uint8_t *p = q + 128 * half + l;
            out[32 * half + l] = (uint8_t)((p[0] & 3) | (p[32] & 3) << 2 | (p[64] & 3) << 4 |
                                           (p[96] & 3) << 6);
        }
}

/* Of each 64 weights, low nibbles are the first 32 */
ALWAYS_INLINE void store_nibble_pairs(const uint8_t q[SUPER], uint8_t *out) {
    for (int pair = 0; pair < 4; pair++)
        for (int l = 0; l < 32; l++)
            out[32 * pair + l] =
                (uint8_t)((q[64 * pair + l] & 15) | (q[64 * pair + 32 + l] & 15) << 4);
}

/* Scales and minimums of n_groups groups, as the search finds them */
typedef struct {
    float scale[MAX_GROUPS], minimum[MAX_GROUPS];
    float worth[MAX_GROUPS];   /* of each group: the sum of its weights' */
    uint8_t q[SUPER];          /* steps */
} affine_t;

ALWAYS_INLINE void search_super(const float *x, const float *worth, const int n_groups,
                                const int n_max, const attempts_t attempts, affine_t *out) {
    const int n = SUPER / n_groups;
    lanes_t x_t, worth_t;
    steps_t q;
    to_lanes(x, n, n_groups, x_t);
    to_lanes(worth, n, n_groups, worth_t);
    search_affine(x_t, worth_t, n, n_groups, n_max, attempts, q, out->scale, out->minimum);
    FOR_EACH_GROUP out->worth[g] = 0;
    for (int i = 0; i < n; i++)
        FOR_EACH_GROUP {
            out->worth[g] += worth_t[i][g];
            out->q[n * g + i] = (uint8_t)q[i][g];
        }
}

/* 0 if none is larger: a minimum of -0 is none. */
ALWAYS_INLINE float largest_of_groups(const float *x, const int n_groups) {
    float max = 0;
    FOR_EACH_GROUP max = x[g] > max ? x[g] : max;
    return max;
}

/* The steps of a group for the scale d and minimum m that are stored; a scale of 0 keeps those of
 * the search. */
ALWAYS_INLINE void round_affine(const float *x, float d, float m, const int n, const int n_max,
                                uint8_t *q) {
    if (d == 0) return;
    for (int i = 0; i < n; i++) q[i] = (uint8_t)clamped(nearest((x[i] + m) / d), 0, n_max);
}

/* ---- Q2_K ---- */

ALWAYS_INLINE int block_q2_K(const float *x, const float *importance, uint8_t *out) {
    float worth[SUPER], d = 0, m = 0;
    affine_t found;
    uint8_t scales[16], minimums[16];
    attempts_t attempts = {-0.9f, 0.05f, 36, 0};
    if (importance) {
        worth_of(x, importance, sum_of_squares(x, SUPER) / SUPER, SUPER, worth);
    } else {
        attempts = (attempts_t){-0.5f, 0.1f, 15, 1};
        for (int i = 0; i < SUPER; i++) worth[i] = fabsf(x[i]);
    }
    search_super(x, worth, 16, 3, attempts, &found);
    if (importance) {
        d = search_factors(found.scale, found.worth, 16, 15, scales);
        m = search_factors(found.minimum, found.worth, 16, 15, minimums);
    } else {
        d = largest_of_groups(found.scale, 16), m = largest_of_groups(found.minimum, 16);
        for (int g = 0; g < 16; g++) {
            scales[g] = (uint8_t)(d > 0 ? nearest(15.0f / d * found.scale[g]) : 0);
            minimums[g] = (uint8_t)(m > 0 ? nearest(15.0f / m * found.minimum[g]) : 0);
        }
        d /= 15.0f, m /= 15.0f;
    }
    const int status = store_scale(d, out + 80) | store_scale(m, out + 82);
    d = stored_scale(out + 80), m = stored_scale(out + 82);
    for (int g = 0; g < 16; g++) {
        out[g] = (uint8_t)(scales[g] | minimums[g] << 4);
        round_affine(x + 16 * g, d * (float)scales[g], m * (float)minimums[g], 16, 3,
                     found.q + 16 * g);
    }
    store_2_bits(found.q, out + 16);
    return status;
}

/* ---- Q3_K ---- */

ALWAYS_INLINE int block_q3_K(const float *x, const float *importance, uint8_t *out) {
    lanes_t x_t;
    steps_t q_t;
    float scale[MAX_GROUPS], d = 0;
    int32_t factors[16];
    uint8_t q[SUPER];
    to_lanes(x, 16, 16, x_t);
    memset(out, 0, 110);
    if (importance) {
        float worth[SUPER], sums[16];
        lanes_t worth_t, scale_t, sums_t;
        steps_t factors_t;
        worth_of(x, importance, 2 * sum_of_squares(x, SUPER) / SUPER, SUPER, worth);
        to_lanes(worth, 16, 16, worth_t);
        search_scale(x_t, worth_t, 16, 16, 4, q_t, scale);
        for (int g = 0; g < 16; g++) {
            sums[g] = 0;
            for (int i = 0; i < 16; i++) sums[g] += worth[16 * g + i];
        }
        to_lanes(scale, 16, 1, scale_t);
        to_lanes(sums, 16, 1, sums_t);
        search_scale(scale_t, sums_t, 16, 1, 32, factors_t, &d);
        for (int g = 0; g < 16; g++) factors[g] = factors_t[g][0];
    } else {
        float widest = 0;
        search_steps(x_t, 16, 16, 4, q_t, scale);
        for (int g = 0; g < 16; g++)
            if (fabsf(scale[g]) > fabsf(widest)) widest = scale[g];
        const float inverse = -32.0f / widest;
        for (int g = 0; g < 16; g++)
            factors[g] = widest != 0 ? clamped(nearest(inverse * scale[g]), -32, 31) + 32 : 0;
        d = widest != 0 ? 1 / inverse : 0.0f;
    }
    const int status = store_scale(d, out + 108);
    d = stored_scale(out + 108);
    for (int g = 0; g < 16; g++) {
        out[96 + g % 8] |= (uint8_t)((factors[g] & 15) << g / 8 * 4);
        out[96 + 8 + g % 4] |= (uint8_t)(factors[g] >> 4 << g / 4 * 2);
        const float step = d * (float)(factors[g] - 32);
        for (int i = 0; i < 16; i++)
            q[16 * g + i] = (uint8_t)(step != 0 ? clamped(nearest(x[16 * g + i] / step), -4, 3) + 4
                                                : q_t[i][g]);
    }
    for (int i = 0; i < SUPER; i++) out[i % 32] |= (uint8_t)(q[i] >> 2 << i / 32);
    store_2_bits(q, out + 32);
    return status;
}

/* ---- Q4_K, Q5_K ---- */

/* Scales and minimums of 6 bits in 12 bytes: unpack.h, factors_q4_K */
ALWAYS_INLINE void store_6_bit_pairs(const uint8_t d[8], const uint8_t m[8], uint8_t out[12]) {
    for (int i = 0; i < 4; i++) {
        out[i] = (uint8_t)(d[i] | d[i + 4] >> 4 << 6);
        out[4 + i] = (uint8_t)(m[i] | m[i + 4] >> 4 << 6);
        out[8 + i] = (uint8_t)((d[i + 4] & 15) | (m[i + 4] & 15) << 4);
    }
}

/* Both begin with f16 d, f16 dmin and the factors; Q5_K has 32 bytes of bit 4 before the nibbles. */
ALWAYS_INLINE int block_pairs(const float *x, const float *importance, const int has_bit_4,
                              uint8_t *out) {
    const int n_max = has_bit_4 ? 31 : 15;
    float worth[SUPER], d, m;
    affine_t found;
    uint8_t scales[8], minimums[8];
    attempts_t attempts = {-0.9f, 0.05f, 36, 0};
    if (importance) {
        worth_of(x, importance, 2 * sum_of_squares(x, SUPER) / SUPER, SUPER, worth);
    } else {
        attempts = has_bit_4 ? (attempts_t){-0.5f, 0.1f, 15, 0} : (attempts_t){-1.0f, 0.1f, 20, 0};
        for (int g = 0; g < 8; g++) {
            const float mean = sqrtf(sum_of_squares(x + 32 * g, 32) / 32);
            for (int i = 32 * g; i < 32 * g + 32; i++) worth[i] = mean + fabsf(x[i]);
        }
    }
    search_super(x, worth, 8, n_max, attempts, &found);
    if (importance) {
        d = search_factors(found.scale, found.worth, 8, 63, scales);
        m = search_factors(found.minimum, found.worth, 8, 63, minimums);
    } else {
        d = largest_of_groups(found.scale, 8), m = largest_of_groups(found.minimum, 8);
        const float of_d = d > 0 ? 63.0f / d : 0.0f, of_m = m > 0 ? 63.0f / m : 0.0f;
        for (int g = 0; g < 8; g++) {
            scales[g] = (uint8_t)clamped(nearest(of_d * found.scale[g]), 0, 63);
            minimums[g] = (uint8_t)clamped(nearest(of_m * found.minimum[g]), 0, 63);
        }
        d /= 63.0f, m /= 63.0f;
    }
    const int status = store_scale(d, out) | store_scale(m, out + 2);
    store_6_bit_pairs(scales, minimums, out + 4);
    d = stored_scale(out), m = stored_scale(out + 2);
    for (int g = 0; g < 8; g++)
        round_affine(x + 32 * g, d * (float)scales[g], m * (float)minimums[g], 32, n_max,
                     found.q + 32 * g);
    if (has_bit_4) {
        memset(out + 16, 0, 32);
        for (int i = 0; i < SUPER; i++) out[16 + i % 32] |= (uint8_t)(found.q[i] >> 4 << i / 32);
    }
    store_nibble_pairs(found.q, out + (has_bit_4 ? 48 : 16));
    return status;
}

/* ---- Q6_K ---- */

/* 128 bytes of low nibbles, 64 bytes of high bits, 16 int8 scales, f16 d; weight = d scale (q -
 * 32). Of 128 weights, bytes l and 32 + l have the low bits of weights l, 64 + l and 32 + l, 96 +
 * l; byte l of the high bits has those of all four. */
ALWAYS_INLINE int block_q6_K(const float *x, const float *importance, uint8_t *out) {
    lanes_t x_t, worth;
    steps_t q;
    float scale[MAX_GROUPS], d_group[16];
    to_lanes(x, 16, 16, x_t);
    if (importance) to_lanes(importance, 16, 16, worth);
    else
        for (int i = 0; i < 16; i++)
            for (int g = 0; g < 16; g++) worth[i][g] = x_t[i][g] * x_t[i][g];
    search_scale(x_t, worth, 16, 16, 32, q, scale);
    float widest = 0;
    for (int g = 0; g < 16; g++)
        if (fabsf(scale[g]) > fabsf(widest)) widest = scale[g];
    if (fabsf(widest) < TINY) {
        memset(out, 0, 210);
        return 0;
    }
    const float inverse = -128.0f / widest;
    const int status = store_scale(1 / inverse, out + 208);
    for (int g = 0; g < 16; g++) {
        const int32_t step = nearest(inverse * scale[g]);
        const int8_t narrow = (int8_t)(step < 127 ? step : 127);
        out[192 + g] = (uint8_t)narrow;
        d_group[g] = stored_scale(out + 208) * (float)narrow;
    }
    uint8_t steps[SUPER];
    for (int i = 0; i < 16; i++) {
        for (int g = 0; g < 16; g++) {
            const int32_t step = clamped(nearest(x_t[i][g] / d_group[g]), -32, 31);
            /* A group whose scale was rounded to zero keeps the steps of the search. */
            steps[16 * g + i] = (uint8_t)(d_group[g] != 0 ? step + 32 : q[i][g]);
        }
    }
    for (int half = 0; half < 2; half++) {
        const uint8_t *p = steps + 128 * half;
        for (int l = 0; l < 32; l++) {
            out[64 * half + l] = (uint8_t)((p[l] & 15) | (p[64 + l] & 15) << 4);
            out[64 * half + 32 + l] = (uint8_t)((p[32 + l] & 15) | (p[96 + l] & 15) << 4);
            out[128 + 32 * half + l] = (uint8_t)(p[l] >> 4 | p[32 + l] >> 4 << 2 |
                                                 p[64 + l] >> 4 << 4 | p[96 + l] >> 4 << 6);
        }
    }
    return status;
}

/* ---- IQ4_NL, IQ4_XS ---- */

/* The last step but the top one that is not above a number, by its whole part plus 128 */
static uint8_t STEP_BELOW[256];

__attribute__((constructor)) static void fill_step_below(void) {
    for (int i = 0; i < 256; i++)
        for (int k = 0; k < 15; k++)
            if (IQ4_NL_STEPS[k] <= i - 128) STEP_BELOW[i] = (uint8_t)k;
}

/* Which of the 16 steps is nearest; of two at the same distance the upper one */
ALWAYS_INLINE int nearest_step(float x) {
    const int8_t *steps = IQ4_NL_STEPS;
    if (x <= (float)steps[0]) return 0;
    if (!(x < (float)steps[15])) return 15;
    const int below = STEP_BELOW[(int)(x + 128.0f)];
    return x - (float)steps[below] < (float)steps[below + 1] - x ? below : below + 1;
}

/* The scale of 32 weights that fits the steps best, of 16; `worth` multiplies squared errors */
ALWAYS_INLINE float search_iq4(const float *x, const float *worth) {
    float max = 0, scale = 0, best = 0;
    for (int i = 0; i < 32; i++) max = fabsf(x[i]) > fabsf(max) ? x[i] : max;
    if (fabsf(max) < TINY) return 0;
    for (int attempt = -1; attempt < 15; attempt++) {
        const float first = -max / (float)IQ4_NL_STEPS[0];
        const float factor = attempt < 0 ? 1 / first : (float)(attempt - 7 + IQ4_NL_STEPS[0]) / max;
        float sum_xq = 0, sum_qq = 0;
        for (int i = 0; i < 32; i++) {
            const float step = (float)IQ4_NL_STEPS[nearest_step(factor * x[i])];
            sum_xq += worth[i] * step * x[i];
            sum_qq += worth[i] * step * step;
        }
        if (attempt < 0 || (sum_qq > 0 && sum_xq * sum_xq > best * sum_qq)) {
            scale = sum_xq / sum_qq;
            best = scale * sum_xq;
        }
    }
    return scale;
}

ALWAYS_INLINE void worth_iq4(const float *x, const float *importance, const int n, float *worth) {
    if (importance) worth_of(x, importance, sum_of_squares(x, n) * (2.0f / (float)n), n, worth);
    else
        for (int i = 0; i < n; i++) worth[i] = x[i] * x[i];
}

ALWAYS_INLINE void store_iq4(const float *x, float inverse, uint8_t out[16]) {
    for (int i = 0; i < 16; i++)
        out[i] = (uint8_t)(nearest_step(inverse * x[i]) | nearest_step(inverse * x[16 + i]) << 4);
}

ALWAYS_INLINE int block_iq4_nl(const float *x, const float *importance, uint8_t *out) {
    float worth[32];
    worth_iq4(x, importance, 32, worth);
    const float scale = search_iq4(x, worth);
    store_iq4(x, scale != 0 ? 1 / scale : 0.0f, out + 2);
    return store_scale(scale, out);
}

ALWAYS_INLINE int block_iq4_xs(const float *x, const float *importance, uint8_t *out) {
    float worth[SUPER], scale[8], widest = 0;
    worth_iq4(x, importance, SUPER, worth);
    for (int g = 0; g < 8; g++) {
        scale[g] = search_iq4(x + 32 * g, worth + 32 * g);
        if (fabsf(scale[g]) > fabsf(widest)) widest = scale[g];
    }
    memset(out, 0, 8);
    const float d = -widest / 32, inverse = d != 0 ? 1 / d : 0.0f;
    for (int g = 0; g < 8; g++) {
        const int32_t factor = clamped(nearest(inverse * scale[g]), -32, 31);
        const float step = d * (float)factor;
        store_iq4(x + 32 * g, step != 0 ? 1 / step : 0.0f, out + 8 + 16 * g);
        out[4 + g / 2] |= (uint8_t)(((factor + 32) & 15) << g % 2 * 4);
        out[2 + g / 4] |= (uint8_t)((factor + 32) >> 4 << g % 4 * 2);
    }
    return store_scale(d, out);
}

/* ---- MXFP4 ---- */

/* The largest weight is between 4 and 8 times the scale. */
ALWAYS_INLINE int block_mxfp4(const float *x, uint8_t *out) {
    float max = 0, best[32];
    uint8_t q[32] = {0};
    for (int i = 0; i < 32; i++) max = fabsf(x[i]) > max ? fabsf(x[i]) : max;
    out[0] = (uint8_t)(max > 0 ? clamped((int32_t)floorf(log2f(max)) - 2 + 127, 0, 255) : 0);
    const float d = half_of_e8m0(out[0]);
    for (int i = 0; i < 32; i++) best[i] = fabsf(x[i]);
    for (int k = 1; k < 16; k++) {
        const float step = (float)MXFP4_STEPS[k] * d;
        for (int i = 0; i < 32; i++) {
            const float off = fabsf(step - x[i]);
            q[i] = off < best[i] ? (uint8_t)k : q[i];
            best[i] = off < best[i] ? off : best[i];
        }
    }
    for (int i = 0; i < 16; i++) out[1 + i] = (uint8_t)(q[i] | q[16 + i] << 4);
    return 0;
}

#undef FOR_EACH_GROUP
#undef TINY
#endif
