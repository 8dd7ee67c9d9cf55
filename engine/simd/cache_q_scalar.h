/* Quantized keys and values in plain C.
 *
 * `block` is here what a block's SLOTS positions have for one KV head: rows of whole numbers q
 * first, their scales behind them. head_dim divides by 32.
 *   q8_0   int8 [slot][head_dim], then f16 d [head_dim / 32][slot]          value = d q
 *   q4_0   nibbles [slot][head_dim / 2], then d as for q8_0                 value = d (q - 8)
 *   q8_ch  int8 [slot][head_dim], then f16 d [head_dim]                     value = d q
 *   q4_ch  nibbles [slot][head_dim / 2], then bytes d, bytes z [head_dim]   value = d (q + z)
 * Of each 32 channels, byte l = 0..15 has channel l in its low nibble and 16 + l in its high one.
 * q8_0 and q4_0 are ggml's: 32 channels of a position share a scale. In q8_ch and q4_ch the 32
 * positions of a channel share one, so a block is quantized when all of its positions are there
 * (KVQuant, arXiv 2401.18079: the outliers of keys that are not rotated are in the same channels
 * everywhere).
 *
 * The bytes of q4_ch make 4.5 bits a number:
 *   d   a quarter of an f16, its 5 bits of exponent and 3 of mantissa
 *   z   c (64 + |c|) / 256 - 7.5 for a byte c of -127 to 127. So the middle of a channel may be up
 *       to 95 d from 0, in steps of d / 4 near 0 that grow to 5 d / 4.
 *
 * The operations:
 *   quantize_*            types by row: a position into its slot; types by channel: all of a block,
 *                         x [SLOTS][head_dim]
 *   dequantize_*          n positions from slot `first` on to float [n][head_dim]
 *   block_scores_*        as scores_* in attention_scalar.h, one query, from slot `first` on
 *   block_weighted_sum_*  as weighted_sum_*, one row of weights, from slot `first` on
 * In the AVX2 and AVX-512 versions of block_scores_*, head_dim divides by 64.
 */
#ifndef LARIAT_CACHE_Q_SCALAR_H
#define LARIAT_CACHE_Q_SCALAR_H

#include "attention_scalar.h"
#include "layout.h"
#include "table.h"
#include "vector_scalar.h"

/* The numbers of channels 32 g.. of slot j: 32 bytes, or 16 of nibbles */
ALWAYS_INLINE const uint8_t *group_of(const void *block, int64_t j, int64_t g, int64_t head_dim,
                                      const int type) {
    const int is_byte = type == C_Q8_0 || type == C_Q8_CH;
    return (const uint8_t *)block + (is_byte ? j * head_dim + 32 * g : (j * head_dim + 32 * g) / 2);
}

ALWAYS_INLINE f16_t *scales_of(const void *block, int64_t head_dim, const int type) {
    return (f16_t *)((uint8_t *)block + SLOTS * cache_row_bytes(type, head_dim));
}

/* The scale and the zero point that bytes of q4_ch stand for. Both are exact. */
ALWAYS_INLINE float scale_of_byte(uint8_t byte) {
    return 0.25f * f16_to_f32((f16_t)(byte << 7));
}

ALWAYS_INLINE float zero_of_byte(int8_t byte) {
    const float c = byte;
    return c * (64.0f + fabsf(c)) * 0x1p-8f - 7.5f;
}

/* Of a block of q4_ch: the bytes of scales, then those of zero points */
ALWAYS_INLINE uint8_t *channel_bytes_of(const void *block, int64_t head_dim) {
    return (uint8_t *)scales_of(block, head_dim, C_Q4_CH);
}

/* Channel i of slot j */
ALWAYS_INLINE float element_in_c(const void *block, int64_t j, int64_t i, int64_t head_dim,
                                 const int type) {
    const uint8_t *group = group_of(block, j, i / 32, head_dim, type);
    const f16_t *scales = scales_of(block, head_dim, type);
    const uint8_t *bytes = channel_bytes_of(block, head_dim);
    const int nibble = i % 32 < 16 ? group[i % 16] & 15 : group[i % 16] >> 4;
    switch (type) {
    case C_Q8_0: return f16_to_f32(scales[i / 32 * SLOTS + j]) * (int8_t)group[i % 32];
    case C_Q4_0: return f16_to_f32(scales[i / 32 * SLOTS + j]) * (float)(nibble - 8);
    case C_Q8_CH: return f16_to_f32(scales[i]) * (int8_t)group[i % 32];
    default:
        return scale_of_byte(bytes[i]) *
               ((float)nibble + zero_of_byte((int8_t)bytes[head_dim + i]));
    }
}

ALWAYS_INLINE void dequantize_scalar(const void *block, int first, int n, int64_t head_dim,
                                     float *out, const int type) {
    for (int j = 0; j < n; j++)
        for (int64_t i = 0; i < head_dim; i++)
            out[j * head_dim + i] = element_in_c(block, first + j, i, head_dim, type);
}

ALWAYS_INLINE void block_scores_scalar(const float *q, const void *block, int first, int n,
                                       int64_t head_dim, const rope_t *rope, float *s,
                                       const int raw, const int type) {
    for (int j = 0; j < n; j++) {
        float row[MAX_HEAD_DIM];
        rope_t of_key = {0};
        if (raw) of_key.rows = rope->rows + j * head_dim;
        dequantize_scalar(block, first + j, 1, head_dim, row, type);
        scores_in_c(q, 1, row, 1, head_dim, &of_key, s + j, raw, 1);
    }
}

ALWAYS_INLINE void block_weighted_sum_scalar(const float *s, const void *block, int first, int n,
                                             int64_t head_dim, float *acc, const int type) {
    for (int j = 0; j < n; j++)
        for (int64_t i = 0; i < head_dim; i++)
            acc[i] += s[j] * element_in_c(block, first + j, i, head_dim, type);
}

/* Largest magnitude of 32 numbers; NaN if one is NaN */
ALWAYS_INLINE float max_of_32(const float *x) {
    int32_t max[8] = {0};
    for (int i = 0; i < 32; i += 8)
        for (int l = 0; l < 8; l++) {
            const int32_t a = magnitude_bits(x[i + l]);
            max[l] = a > max[l] ? a : max[l];
        }
    for (int l = 1; l < 8; l++) max[0] = max[l] > max[0] ? max[l] : max[0];
    return float_of_bits(max[0]);
}

/* The nearest whole number that fits into 8 bits. NaN becomes any of them; its scale is NaN. */
ALWAYS_INLINE int nearest_byte(float x) {
    x = x > -128.0f ? x : -128.0f; /* false for NaN */
    return (int)rintf(x < 127.0f ? x : 127.0f);
}

/* As ggml's quantize_row_q8_0: scale = largest magnitude / 127 */
ALWAYS_INLINE void quantize_q8_0_in_c(const float *x, int slot, int64_t head_dim, void *block) {
    f16_t *scale = scales_of(block, head_dim, C_Q8_0) + slot;
    for (int64_t g = 0; g < head_dim / 32; g++, x += 32) {
        int8_t *q = (int8_t *)group_of(block, slot, g, head_dim, C_Q8_0);
        const float d = max_of_32(x) / 127.0f, inverse = d > 0 ? 1.0f / d : 0.0f;
        for (int i = 0; i < 32; i++) q[i] = (int8_t)nearest_byte(x[i] * inverse);
        scale[g * SLOTS] = f32_to_f16(d);
    }
}

/* x rounded down, within 0 to 15; 0 where it is NaN */
ALWAYS_INLINE int nibble_below(float x) {
    x = x > 0.0f ? x : 0.0f;
    return (int)(x < 15.0f ? x : 15.0f);
}

/* As ggml's quantize_row_q4_0: scale = the number of largest magnitude, with its sign, / -8 */
ALWAYS_INLINE void quantize_q4_0_in_c(const float *x, int slot, int64_t head_dim, void *block) {
    f16_t *scale = scales_of(block, head_dim, C_Q4_0) + slot;
    for (int64_t g = 0; g < head_dim / 32; g++, x += 32) {
        uint8_t *q = (uint8_t *)group_of(block, slot, g, head_dim, C_Q4_0);
        const float max = max_of_32(x);
        float largest = max; /* NaN equals none of them */
        for (int i = 31; i >= 0; i--) largest = fabsf(x[i]) == max ? x[i] : largest;
        const float d = largest / -8.0f, inverse = d != 0 ? 1.0f / d : 0.0f;
        for (int i = 0; i < 16; i++) {
            const float low = x[i] * inverse + 8.5f, high = x[16 + i] * inverse + 8.5f;
            q[i] = (uint8_t)(nibble_below(low) | nibble_below(high) << 4);
        }
        scale[g * SLOTS] = f32_to_f16(d);
    }
}

ALWAYS_INLINE void quantize_q8_ch_in_c(const float *x, int64_t head_dim, void *block) {
    f16_t *scale = scales_of(block, head_dim, C_Q8_CH);
    for (int64_t g = 0; g < head_dim / 32; g++) {
        int32_t max[32] = {0};
        float inverse[32];
        for (int j = 0; j < SLOTS; j++)
            for (int l = 0; l < 32; l++) {
                const int32_t a = magnitude_bits(x[j * head_dim + 32 * g + l]);
                max[l] = a > max[l] ? a : max[l];
            }
        for (int l = 0; l < 32; l++) {
            const float m = float_of_bits(max[l]);
            inverse[l] = m > 0 ? 127.0f / m : 0.0f;
            scale[32 * g + l] = f32_to_f16(m / 127.0f);
        }
        for (int j = 0; j < SLOTS; j++) {
            int8_t *q = (int8_t *)group_of(block, j, g, head_dim, C_Q8_CH);
            const float *row = x + j * head_dim + 32 * g;
            for (int l = 0; l < 32; l++) q[l] = (int8_t)nearest_byte(row[l] * inverse[l]);
        }
    }
}

/* The byte of a scale next to d. NaN for what is not finite. */
ALWAYS_INLINE uint8_t byte_of_scale(float d) {
    const int is_finite = d <= 0x1p13f;
    const float sane = is_finite ? d : 1.0f;
    const int normal = ((magnitude_bits(sane) + (1 << 19)) >> 20) - (110 << 3);
    const int subnormal = (int)(sane * 0x1p19f + 0.5f);
    const int byte = sane >= 0x1p-16f ? normal : subnormal;
    return (uint8_t)(is_finite ? (byte > 1 ? byte : 1) : 0xff);
}

/* The byte of the zero point that puts `middle`, in units of the scale, between levels 7 and 8,
 * `steps` further */
ALWAYS_INLINE int8_t byte_of_zero(float middle, int steps) {
    const float size = sqrtf(1024.0f + 256.0f * fabsf(middle)) - 32.0f;
    float c = rintf(middle < 0 ? -size : size) + (float)steps;
    c = c > -127.0f ? c : -127.0f; /* false for NaN */
    return (int8_t)(c < 127.0f ? c : 127.0f);
}

/* x to the nearest level 0 to 15, as float; some level for NaN */
ALWAYS_INLINE float nearest_level(float x) {
    x = x > 0.0f ? x : 0.0f;
    x = x < 15.0f ? x : 15.0f;
    return (x + 0x1.8p23f) - 0x1.8p23f; /* rintf, which is a call without SSE4.1 */
}

/* How far each slot's numbers are from the block's mean: squared, and summed over channels */
ALWAYS_INLINE void slot_weights(const float *x, int64_t head_dim, float weights[SLOTS]) {
    float mean[MAX_HEAD_DIM] = {0};
    for (int j = 0; j < SLOTS; j++)
        for (int64_t i = 0; i < head_dim; i++) mean[i] += x[j * head_dim + i] * (1.0f / SLOTS);
    for (int j = 0; j < SLOTS; j++) {
        float sum[16] = {0};
        for (int64_t i = 0; i < head_dim; i += 16)
            for (int l = 0; l < 16; l++) {
                const float away = x[j * head_dim + i + l] - mean[i + l];
                sum[l] += away * away;
            }
        weights[j] = 0;
        for (int l = 0; l < 16; l++) weights[j] += sum[l];
    }
}

/* Scales of q4_ch that are tried, over a channel's range */
static const float Q4_CH_SIZES[4] = {1.1f / 15, 1.0f / 15, 0.9f / 15, 0.8f / 15};

/* Of each channel, four scales and three zero points each are tried, and those with the least
 * squared error stay. Slots count by how far they are from the others: the first token of a text,
 * to which all others attend, has keys far from theirs, and must keep them. SmolLM2's keys alone:
 * KL 0.0095 so, 0.0128 if all slots count alike. */
ALWAYS_INLINE void quantize_q4_ch_in_c(const float *x, int64_t head_dim, void *block) {
    uint8_t *scale_bytes = channel_bytes_of(block, head_dim), *zero_bytes = scale_bytes + head_dim;
    float weights[SLOTS];
    slot_weights(x, head_dim, weights);
    for (int64_t g = 0; g < head_dim / 32; g++, scale_bytes += 32, zero_bytes += 32) {
        float min[32], max[32], nan[32] = {0}; /* NaN if a number is not finite */
        float inverse[32], scale[32], zero[32], least[32];
        for (int l = 0; l < 32; l++) min[l] = max[l] = x[32 * g + l];
        for (int j = 0; j < SLOTS; j++)
            for (int l = 0; l < 32; l++) {
                const float a = x[j * head_dim + 32 * g + l];
                min[l] = a < min[l] ? a : min[l];
                max[l] = a > max[l] ? a : max[l];
                nan[l] += 0.0f * a;
            }
        for (int try = 0; try < 12; try++) {
            uint8_t scale_byte[32];
            int8_t zero_byte[32];
            float error[32] = {0};
            for (int l = 0; l < 32; l++) {
                const float d = (max[l] - min[l]) * Q4_CH_SIZES[try / 3];
                const float middle = 0.5f * (max[l] + min[l]);
                const float least_d = fabsf(middle) * (1.0f / 94);
                scale_byte[l] = byte_of_scale((d > least_d ? d : least_d) + nan[l]);
                scale[l] = scale_of_byte(scale_byte[l]);
                inverse[l] = 1.0f / scale[l];
                zero_byte[l] = byte_of_zero(middle * inverse[l], try % 3 - 1);
                zero[l] = zero_of_byte(zero_byte[l]);
            }
            for (int j = 0; j < SLOTS; j++)
                for (int l = 0; l < 32; l++) {
                    const float a = x[j * head_dim + 32 * g + l];
                    const float level = nearest_level(a * inverse[l] - zero[l]);
                    const float off = a - scale[l] * (level + zero[l]);
                    error[l] += weights[j] * off * off;
                }
            for (int l = 0; l < 32; l++)
                if (try == 0 || error[l] < least[l]) {
                    least[l] = error[l];
                    scale_bytes[l] = scale_byte[l];
                    zero_bytes[l] = (uint8_t)zero_byte[l];
                }
        }
        for (int l = 0; l < 32; l++) {
            if (min[l] == 0 && max[l] == 0) scale_bytes[l] = 0; /* all zeros stay zeros */
            scale[l] = scale_of_byte(scale_bytes[l]);
            inverse[l] = scale[l] > 0 ? 1.0f / scale[l] : 0.0f;
            zero[l] = zero_of_byte((int8_t)zero_bytes[l]);
        }
        for (int j = 0; j < SLOTS; j++) {
            uint8_t *q = (uint8_t *)group_of(block, j, g, head_dim, C_Q4_CH);
            const float *row = x + j * head_dim + 32 * g;
            for (int l = 0; l < 16; l++) {
                const int h = 16 + l;
                const float low = nearest_level(row[l] * inverse[l] - zero[l]);
                const float high = nearest_level(row[h] * inverse[h] - zero[h]);
                q[l] = (uint8_t)((int)low | (int)high << 4);
            }
        }
    }
}

ALWAYS_INLINE void quantize_scalar(const float *x, int slot, int64_t head_dim, void *block,
                                   const int type) {
    if (type == C_Q8_0) quantize_q8_0_in_c(x, slot, head_dim, block);
    if (type == C_Q4_0) quantize_q4_0_in_c(x, slot, head_dim, block);
    if (type == C_Q8_CH) quantize_q8_ch_in_c(x, head_dim, block);
    if (type == C_Q4_CH) quantize_q4_ch_in_c(x, head_dim, block);
}

/* The operations of a type in a set, made of the set's functions for any type: scores and weighted
 * sums, then conversions. */
#define CACHE_PRODUCTS(name, type, set)                                                           \
    static void block_scores_roped_##name##_##set(const float *q, const void *block, int first,   \
                                                  int n, int64_t head_dim, const rope_t *rope,    \
                                                  float *s) {                                     \
        block_scores_##set(q, block, first, n, head_dim, rope, s, 0, type);                       \
    }                                                                                             \
    static void block_scores_raw_##name##_##set(const float *q, const void *block, int first,     \
                                                int n, int64_t head_dim, const rope_t *rope,      \
                                                float *s) {                                       \
        block_scores_##set(q, block, first, n, head_dim, rope, s, 1, type);                       \
    }                                                                                             \
    static void block_weighted_sum_##name##_##set(const float *s, const void *block, int first,   \
                                                  int n, int64_t head_dim, float *acc) {          \
        block_weighted_sum_##set(s, block, first, n, head_dim, acc, type);                        \
    }
#define CACHE_CONVERSIONS(name, type, set)                                                        \
    static void dequantize_##name##_##set(const void *block, int first, int n, int64_t head_dim,  \
                                          float *out) {                                           \
        dequantize_##set(block, first, n, head_dim, out, type);                                   \
    }                                                                                             \
    static void quantize_##name##_##set(const float *x, int slot, int64_t head_dim,               \
                                        void *block) {                                            \
        quantize_##set(x, slot, head_dim, block, type);                                           \
    }
/* Their entries in the table k */
#define USE_CACHE_PRODUCTS(name, type, set)                        \
    k->block_scores[0][type] = block_scores_roped_##name##_##set;  \
    k->block_scores[1][type] = block_scores_raw_##name##_##set;    \
    k->block_weighted_sum[type] = block_weighted_sum_##name##_##set;
#define USE_CACHE_CONVERSIONS(name, type, set)         \
    k->dequantize[type] = dequantize_##name##_##set;   \
    k->quantize[type] = quantize_##name##_##set;
#define FOR_CACHE_TYPES(what, set) \
    what(q8_0, C_Q8_0, set)        \
    what(q4_0, C_Q4_0, set)        \
    what(q8_ch, C_Q8_CH, set)      \
    what(q4_ch, C_Q4_CH, set)

FOR_CACHE_TYPES(CACHE_PRODUCTS, scalar)
FOR_CACHE_TYPES(CACHE_CONVERSIONS, scalar)

static void use_cache_scalar(kernels_t *k) {
    FOR_CACHE_TYPES(USE_CACHE_PRODUCTS, scalar)
    FOR_CACHE_TYPES(USE_CACHE_CONVERSIONS, scalar)
}

#endif
