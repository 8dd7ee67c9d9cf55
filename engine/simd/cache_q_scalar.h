/* Quantized keys and values in plain C.
 *
 * `block` is here what a block's SLOTS positions have for one KV head: rows of whole numbers q
 * first, their scales behind them. head_dim divides by 32.
 *   q8_0   int8 [slot][head_dim], then f16 d [head_dim / 32][slot]          value = d q
 *   q4_0   nibbles [slot][head_dim / 2], then d as for q8_0                 value = d (q - 8)
 *   q8_ch  int8 [slot][head_dim], then f16 d [head_dim]                     value = d q
 *   q4_ch  nibbles [slot][head_dim / 2], then f16 d, f16 z [head_dim]       value = d (q + z)
 * Of each 32 channels, byte l = 0..15 has channel l in its low nibble and 16 + l in its high one.
 * q8_0 and q4_0 are ggml's: 32 channels of a position share a scale. In q8_ch and q4_ch the 32
 * positions of a channel share one, so a block is quantized when all of its positions are there
 * (KVQuant, arXiv 2401.18079: the outliers of keys that are not rotated are in the same channels
 * everywhere).
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

/* Channel i of slot j */
ALWAYS_INLINE float element_in_c(const void *block, int64_t j, int64_t i, int64_t head_dim,
                                 const int type) {
    const uint8_t *group = group_of(block, j, i / 32, head_dim, type);
    const f16_t *scales = scales_of(block, head_dim, type);
    const int nibble = i % 32 < 16 ? group[i % 16] & 15 : group[i % 16] >> 4;
    switch (type) {
    case C_Q8_0: return f16_to_f32(scales[i / 32 * SLOTS + j]) * (int8_t)group[i % 32];
    case C_Q4_0: return f16_to_f32(scales[i / 32 * SLOTS + j]) * (float)(nibble - 8);
    case C_Q8_CH: return f16_to_f32(scales[i]) * (int8_t)group[i % 32];
    default: return f16_to_f32(scales[i]) * ((float)nibble + f16_to_f32(scales[head_dim + i]));
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
        dequantize_scalar(block, first + j, 1, head_dim, row, type);
        if (raw) rope_head_scalar(row, rope->rows + j * head_dim, head_dim / 2, 1);
        s[j] = 0;
        for (int64_t i = 0; i < head_dim; i++) s[j] += q[i] * row[i];
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

/* 16 levels from a channel's smallest number to its largest. Where f16 cannot tell the levels
 * apart, all numbers are stored as their middle. */
ALWAYS_INLINE void quantize_q4_ch_in_c(const float *x, int64_t head_dim, void *block) {
    f16_t *scale = scales_of(block, head_dim, C_Q4_CH), *zero = scale + head_dim;
    for (int64_t g = 0; g < head_dim / 32; g++) {
        float min[32], max[32], inverse[32], nan[32] = {0}; /* NaN if a number is not finite */
        for (int l = 0; l < 32; l++) min[l] = max[l] = x[32 * g + l];
        for (int j = 0; j < SLOTS; j++)
            for (int l = 0; l < 32; l++) {
                const float a = x[j * head_dim + 32 * g + l];
                min[l] = a < min[l] ? a : min[l];
                max[l] = a > max[l] ? a : max[l];
                nan[l] += 0.0f * a;
            }
        for (int l = 0; l < 32; l++) {
            const float range = max[l] - min[l], middle = 0.5f * (max[l] + min[l]);
            const int flat = range <= fabsf(middle) * 0x1p-11f;
            inverse[l] = flat ? 0.0f : 15.0f / range;
            scale[32 * g + l] = f32_to_f16((flat ? middle : range / 15.0f) + nan[l]);
            zero[32 * g + l] = f32_to_f16(flat ? 1.0f : min[l] * inverse[l]);
        }
        for (int j = 0; j < SLOTS; j++) {
            uint8_t *q = (uint8_t *)group_of(block, j, g, head_dim, C_Q4_CH);
            const float *row = x + j * head_dim + 32 * g;
            for (int l = 0; l < 16; l++) {
                const float low = rintf((row[l] - min[l]) * inverse[l]);
                const float high = rintf((row[16 + l] - min[16 + l]) * inverse[16 + l]);
                q[l] = (uint8_t)(nibble_below(low) | nibble_below(high) << 4);
            }
        }
    }
}

ALWAYS_INLINE void quantize_in_c(const float *x, int slot, int64_t head_dim, void *block,
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
        quantize_in_c(x, slot, head_dim, block, type);                                            \
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
