/* Quantized keys and values in plain C.
 *
 * A unit is a block's SLOTS positions of one KV head: rows of whole numbers q first, their scales
 * behind them. head_dim divides by 32.
 *   q8_0   int8 [slot][head_dim], then f16 d [head_dim / 32][slot]          value = d q
 *   q4_0   nibbles [slot][head_dim / 2], then d as for q8_0                 value = d (q - 8)
 *   q8_ch  int8 [slot][head_dim], then f16 d [head_dim]                     value = d q
 *   q4_ch  nibbles [slot][head_dim / 2], then f16 d, f16 z [head_dim]       value = d (q + z)
 * Of each 32 channels, byte l = 0..15 has channel l in its low nibble and 16 + l in its high one.
 * q8_0 and q4_0 are ggml's: 32 channels of a position share a scale. In q8_ch and q4_ch a channel's
 * 32 positions do (KVQuant, arXiv 2401.18079: keys that are not rotated have their outliers in the
 * same channels everywhere), so a unit is quantized when all of it is there.
 *
 * The operations:
 *   quantize_*     row types: one position into its slot; channel types: x [SLOTS][head_dim], all
 *   dequantize_*   n positions from slot `first` on to float [n][head_dim]
 *   unit_scores_*  as scores_* in attention_scalar.h, one query, from slot `first` on
 *   unit_weigh_*   as weigh_*, one query; head_dim divides by 64 in the last two
 */
#ifndef LARIAT_CACHE_Q_SCALAR_H
#define LARIAT_CACHE_Q_SCALAR_H

#include "attention_scalar.h"
#include "layout.h"
#include "table.h"
#include "vector_scalar.h"

/* The numbers of channels 32 g.. of slot j: 32 bytes, or 16 of nibbles */
ALWAYS_INLINE const uint8_t *group_of(const void *unit, int64_t j, int64_t g, int64_t head_dim,
                                      const int type) {
    const int is_byte = type == C_Q8_0 || type == C_Q8_CH;
    return (const uint8_t *)unit + (is_byte ? j * head_dim + 32 * g : (j * head_dim + 32 * g) / 2);
}

ALWAYS_INLINE f16_t *scales_of(const void *unit, int64_t head_dim, const int type) {
    return (f16_t *)((uint8_t *)unit + SLOTS * cache_row_bytes(type, head_dim));
}

/* Channel i of slot j */
ALWAYS_INLINE float cell_in_c(const void *unit, int64_t j, int64_t i, int64_t head_dim,
                              const int type) {
    const uint8_t *group = group_of(unit, j, i / 32, head_dim, type);
    const f16_t *scales = scales_of(unit, head_dim, type);
    const int nibble = i % 32 < 16 ? group[i % 16] & 15 : group[i % 16] >> 4;
    switch (type) {
    case C_Q8_0: return f16_to_f32(scales[i / 32 * SLOTS + j]) * (int8_t)group[i % 32];
    case C_Q4_0: return f16_to_f32(scales[i / 32 * SLOTS + j]) * (float)(nibble - 8);
    case C_Q8_CH: return f16_to_f32(scales[i]) * (int8_t)group[i % 32];
    default: return f16_to_f32(scales[i]) * ((float)nibble + f16_to_f32(scales[head_dim + i]));
    }
}

ALWAYS_INLINE void dequantize_scalar(const void *unit, int first, int n, int64_t head_dim, float *out,
                                   const int type) {
    for (int j = 0; j < n; j++)
        for (int64_t i = 0; i < head_dim; i++)
            out[j * head_dim + i] = cell_in_c(unit, first + j, i, head_dim, type);
}

ALWAYS_INLINE void unit_scores_scalar(const float *q, const void *unit, int first, int n,
                                    int64_t head_dim, const rope_t *rope, float *s, const int raw,
                                    const int type) {
    for (int j = 0; j < n; j++) {
        float row[MAX_HEAD_DIM];
        dequantize_scalar(unit, first + j, 1, head_dim, row, type);
        if (raw) rope_head_scalar(row, rope->rows + j * head_dim, head_dim / 2, 1);
        s[j] = 0;
        for (int64_t i = 0; i < head_dim; i++) s[j] += q[i] * row[i];
    }
}

ALWAYS_INLINE void unit_weigh_scalar(const float *s, const void *unit, int first, int n,
                                   int64_t head_dim, float *acc, const int type) {
    for (int j = 0; j < n; j++)
        for (int64_t i = 0; i < head_dim; i++)
            acc[i] += s[j] * cell_in_c(unit, first + j, i, head_dim, type);
}

/* Largest magnitude of 32 numbers; NaN if one is NaN */
ALWAYS_INLINE float most_of_32(const float *x) {
    int32_t most[8] = {0};
    for (int i = 0; i < 32; i += 8)
        for (int l = 0; l < 8; l++) {
            const int32_t a = magnitude_bits(x[i + l]);
            most[l] = a > most[l] ? a : most[l];
        }
    for (int l = 1; l < 8; l++) most[0] = most[l] > most[0] ? most[l] : most[0];
    return float_of_bits(most[0]);
}

/* The nearest whole number that fits into 8 bits; some number where x is NaN, which the scale
 * remembers */
ALWAYS_INLINE int nearest_byte(float x) {
    x = x > -128.0f ? x : -128.0f; /* false for NaN */
    return (int)rintf(x < 127.0f ? x : 127.0f);
}

/* As ggml's quantize_row_q8_0: scale = largest magnitude / 127 */
ALWAYS_INLINE void quantize_q8_0_in_c(const float *x, int slot, int64_t head_dim, void *unit) {
    f16_t *scale = scales_of(unit, head_dim, C_Q8_0) + slot;
    for (int64_t g = 0; g < head_dim / 32; g++, x += 32) {
        int8_t *q = (int8_t *)group_of(unit, slot, g, head_dim, C_Q8_0);
        const float d = most_of_32(x) / 127.0f, inverse = d > 0 ? 1.0f / d : 0.0f;
        for (int i = 0; i < 32; i++) q[i] = (int8_t)nearest_byte(x[i] * inverse);
        scale[g * SLOTS] = f32_to_f16(d);
    }
}

/* x rounded down, within 0 to 15; 0 where it is NaN */
ALWAYS_INLINE int nibble_below(float x) {
    x = x > 0.0f ? x : 0.0f;
    return (int)(x < 15.0f ? x : 15.0f);
}

/* As ggml's quantize_row_q4_0: the number of largest magnitude, with its sign, is -8 scale */
ALWAYS_INLINE void quantize_q4_0_in_c(const float *x, int slot, int64_t head_dim, void *unit) {
    f16_t *scale = scales_of(unit, head_dim, C_Q4_0) + slot;
    for (int64_t g = 0; g < head_dim / 32; g++, x += 32) {
        uint8_t *q = (uint8_t *)group_of(unit, slot, g, head_dim, C_Q4_0);
        const float most = most_of_32(x);
        float largest = most; /* NaN equals none of them */
        for (int i = 31; i >= 0; i--) largest = fabsf(x[i]) == most ? x[i] : largest;
        const float d = largest / -8.0f, inverse = d != 0 ? 1.0f / d : 0.0f;
        for (int i = 0; i < 16; i++) {
            const float low = x[i] * inverse + 8.5f, high = x[16 + i] * inverse + 8.5f;
            q[i] = (uint8_t)(nibble_below(low) | nibble_below(high) << 4);
        }
        scale[g * SLOTS] = f32_to_f16(d);
    }
}

ALWAYS_INLINE void quantize_q8_ch_in_c(const float *x, int64_t head_dim, void *unit) {
    f16_t *scale = scales_of(unit, head_dim, C_Q8_CH);
    for (int64_t g = 0; g < head_dim / 32; g++) {
        int32_t most[32] = {0};
        float inverse[32];
        for (int j = 0; j < SLOTS; j++)
            for (int l = 0; l < 32; l++) {
                const int32_t a = magnitude_bits(x[j * head_dim + 32 * g + l]);
                most[l] = a > most[l] ? a : most[l];
            }
        for (int l = 0; l < 32; l++) {
            const float m = float_of_bits(most[l]);
            inverse[l] = m > 0 ? 127.0f / m : 0.0f;
            scale[32 * g + l] = f32_to_f16(m / 127.0f);
        }
        for (int j = 0; j < SLOTS; j++) {
            int8_t *q = (int8_t *)group_of(unit, j, g, head_dim, C_Q8_CH);
            const float *row = x + j * head_dim + 32 * g;
            for (int l = 0; l < 32; l++) q[l] = (int8_t)nearest_byte(row[l] * inverse[l]);
        }
    }
}

/* 16 steps from a channel's smallest number to its largest. Where they are so close that the steps
 * are lost in f16, all are stored as their middle. */
ALWAYS_INLINE void quantize_q4_ch_in_c(const float *x, int64_t head_dim, void *unit) {
    f16_t *scale = scales_of(unit, head_dim, C_Q4_CH), *zero = scale + head_dim;
    for (int64_t g = 0; g < head_dim / 32; g++) {
        float least[32], most[32], inverse[32], nan[32] = {0}; /* NaN if a number is not finite */
        for (int l = 0; l < 32; l++) least[l] = most[l] = x[32 * g + l];
        for (int j = 0; j < SLOTS; j++)
            for (int l = 0; l < 32; l++) {
                const float a = x[j * head_dim + 32 * g + l];
                least[l] = a < least[l] ? a : least[l];
                most[l] = a > most[l] ? a : most[l];
                nan[l] += 0.0f * a;
            }
        for (int l = 0; l < 32; l++) {
            const float range = most[l] - least[l], middle = 0.5f * (most[l] + least[l]);
            const int flat = range <= fabsf(middle) * 0x1p-11f;
            inverse[l] = flat ? 0.0f : 15.0f / range;
            scale[32 * g + l] = f32_to_f16((flat ? middle : range / 15.0f) + nan[l]);
            zero[32 * g + l] = f32_to_f16(flat ? 1.0f : least[l] * inverse[l]);
        }
        for (int j = 0; j < SLOTS; j++) {
            uint8_t *q = (uint8_t *)group_of(unit, j, g, head_dim, C_Q4_CH);
            const float *row = x + j * head_dim + 32 * g;
            for (int l = 0; l < 16; l++) {
                const float low = rintf((row[l] - least[l]) * inverse[l]);
                const float high = rintf((row[16 + l] - least[16 + l]) * inverse[16 + l]);
                q[l] = (uint8_t)(nibble_below(low) | nibble_below(high) << 4);
            }
        }
    }
}

ALWAYS_INLINE void quantize_in_c(const float *x, int slot, int64_t head_dim, void *unit, const int type) {
    if (type == C_Q8_0) quantize_q8_0_in_c(x, slot, head_dim, unit);
    if (type == C_Q4_0) quantize_q4_0_in_c(x, slot, head_dim, unit);
    if (type == C_Q8_CH) quantize_q8_ch_in_c(x, head_dim, unit);
    if (type == C_Q4_CH) quantize_q4_ch_in_c(x, head_dim, unit);
}

/* The operations of one type at one level, which has unit_scores, unit_weigh and dequantize for any. */
#define CACHE_TYPE(name, type, level)                                                              \
    static void unit_scores_roped_##name##_##level(const float *q, const void *unit, int first,    \
                                                   int n, int64_t head_dim, const rope_t *rope,    \
                                                   float *s) {                                     \
        unit_scores_##level(q, unit, first, n, head_dim, rope, s, 0, type);                        \
    }                                                                                              \
    static void unit_scores_raw_##name##_##level(const float *q, const void *unit, int first,      \
                                                 int n, int64_t head_dim, const rope_t *rope,      \
                                                 float *s) {                                       \
        unit_scores_##level(q, unit, first, n, head_dim, rope, s, 1, type);                        \
    }                                                                                              \
    static void unit_weigh_##name##_##level(const float *s, const void *unit, int first, int n,    \
                                            int64_t head_dim, float *acc) {                        \
        unit_weigh_##level(s, unit, first, n, head_dim, acc, type);                                \
    }                                                                                              \
    static void dequantize_##name##_##level(const void *unit, int first, int n, int64_t head_dim,  \
                                            float *out) {                                          \
        dequantize_##level(unit, first, n, head_dim, out, type);                                   \
    }                                                                                              \
    static void quantize_##name##_##level(const float *x, int slot, int64_t head_dim, void *unit) { \
        quantize_in_c(x, slot, head_dim, unit, type);                                              \
    }
#define CACHE_TYPES(level)             \
    CACHE_TYPE(q8_0, C_Q8_0, level)    \
    CACHE_TYPE(q4_0, C_Q4_0, level)    \
    CACHE_TYPE(q8_ch, C_Q8_CH, level)  \
    CACHE_TYPE(q4_ch, C_Q4_CH, level)

CACHE_TYPES(scalar)

#endif
