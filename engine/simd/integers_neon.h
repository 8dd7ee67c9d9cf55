/* Weights of every type to bytes and floats, for NEON.
 *
 * The 16 rows of a 64-byte vector are four groups of 4. A shift moves single bytes, and SRI puts
 * one number's bits behind another's, so integers take fewer masks than with AVX2.
 */
#ifndef LARIAT_INTEGERS_NEON_H
#define LARIAT_INTEGERS_NEON_H

#include <arm_neon.h>

#include "unpack.h"

#define FOR_EACH_GROUP _Pragma("GCC unroll 4") for (int g = 0; g < 4; g++)

typedef struct {
    float32x4_t group[4]; /* rows 4g to 4g + 3 */
} rows_f32x16_neon;

/* ---- scales ---- */

ALWAYS_INLINE rows_f32x16_neon floats_of_16_f16_neon(float16x8_t first, float16x8_t second) {
    return (rows_f32x16_neon){{vcvt_f32_f16(vget_low_f16(first)), vcvt_high_f32_f16(first),
                               vcvt_f32_f16(vget_low_f16(second)), vcvt_high_f32_f16(second)}};
}

ALWAYS_INLINE rows_f32x16_neon load_16_f32_neon(const float *p) {
    return (rows_f32x16_neon){
        {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}};
}

/* Half of 2^(e - 127). e = 0 means 2^-127, which as a float is subnormal. */
ALWAYS_INLINE float32x4_t half_of_4_e8m0_neon(uint16x4_t e) {
    const uint32x4_t bits = vmaxq_u32(vshll_n_u16(e, 16) << 7, vdupq_n_u32(0x00400000));
    return vmulq_n_f32(vreinterpretq_f32_u32(bits), 0.5f);
}

ALWAYS_INLINE rows_f32x16_neon load_scales_neon(const void *scales, const int type) {
    switch (WEIGHT_TYPES[type].scale) {
    case SCALE_E8M0: {
        const uint8x16_t e = vld1q_u8(scales);
        const uint16x8_t first = vmovl_u8(vget_low_u8(e)), second = vmovl_high_u8(e);
        return (rows_f32x16_neon){{half_of_4_e8m0_neon(vget_low_u16(first)),
                                   half_of_4_e8m0_neon(vget_high_u16(first)),
                                   half_of_4_e8m0_neon(vget_low_u16(second)),
                                   half_of_4_e8m0_neon(vget_high_u16(second))}};
    }
    case SCALE_F32: return load_16_f32_neon(scales);
    default: {
        const uint16_t *p = scales;
        return floats_of_16_f16_neon(vreinterpretq_f16_u16(vld1q_u16(p)),
                                     vreinterpretq_f16_u16(vld1q_u16(p + 8)));
    }
    }
}

/* 16 factors as floats */
ALWAYS_INLINE rows_f32x16_neon float_factors_neon(const int8_t *factor) {
    const int8x16_t bytes = vld1q_s8(factor);
    const int16x8_t first = vmovl_s8(vget_low_s8(bytes)), second = vmovl_high_s8(bytes);
    return (rows_f32x16_neon){{vcvtq_f32_s32(vmovl_s16(vget_low_s16(first))),
                               vcvtq_f32_s32(vmovl_high_s16(first)),
                               vcvtq_f32_s32(vmovl_s16(vget_low_s16(second))),
                               vcvtq_f32_s32(vmovl_high_s16(second))}};
}

/* 16 unsigned factors as floats, 2^-24 of each: a byte is a subnormal f16, and subnormal numbers
 * become floats in half as many operations as integers. */
ALWAYS_INLINE rows_f32x16_neon small_factors_neon(uint8x16_t factor) {
    const uint8x16_t zero = vdupq_n_u8(0);
    return floats_of_16_f16_neon(vreinterpretq_f16_u8(vzip1q_u8(factor, zero)),
                                 vreinterpretq_f16_u8(vzip2q_u8(factor, zero)));
}

/* d or m of 16 rows, times their factors in a super-block */
ALWAYS_INLINE rows_f32x16_neon scaled_neon(const void *scales, const int8_t *factor,
                                           const int type) {
    rows_f32x16_neon rows = load_scales_neon(scales, type);
    if (!has_factors(type)) return rows;
    const rows_f32x16_neon factors = float_factors_neon(factor);
    FOR_EACH_GROUP rows.group[g] = vmulq_f32(rows.group[g], factors.group[g]);
    return rows;
}

/* ---- integers ---- */

ALWAYS_INLINE uint8x16_t load_group_neon(const uint8_t *vector, int g) {
    return vld1q_u8(vector + 16 * g);
}

/* Bits of `low`, whose upper n they are, behind those of q: n is 2 or 4 */
ALWAYS_INLINE uint8x16_t put_behind_neon(uint8x16_t q, uint8x16_t low, const int n) {
    return n == 4 ? vsriq_n_u8(q, low, 4) : vsriq_n_u8(q, low, 6);
}

ALWAYS_INLINE uint8x16_t planes_neon(block_x16 block, const int type, const int v, int g) {
    const int n = low_bits(type), at = n * (v / n);
    const uint8x16_t low = load_group_neon(vector_of(block.low, v % n), g);
    if (high_bits(type)) { /* bit v of `high` becomes bit n */
        const uint8x16_t high = load_group_neon(block.high, g) << (7 - v) >> (7 - n);
        return put_behind_neon(high, low << (8 - n - at), n);
    }
    return at + n < 8 ? low >> at & (uint8_t)((1 << n) - 1) : low >> at;
}

ALWAYS_INLINE uint8x16_t sixes_neon(block_x16 block, const int v, int g) {
    const uint8_t *three = vector_of(block.low, v / 4 * 3);
    if (v % 4 < 3) return load_group_neon(three + 64 * (v % 4), g) & 63;
    const uint8x16_t top = load_group_neon(three, g) >> 2;
    return vsriq_n_u8(vsriq_n_u8(top, load_group_neon(three + 64, g), 4),
                      load_group_neon(three + 128, g), 6);
}

/* Of part 2i (odd: 0) or 2i + 1 of a pair */
ALWAYS_INLINE uint8x16_t pairs_neon(block_x16 block, const int type, const int odd, const int v,
                                    int g) {
    const uint8x16_t t = load_group_neon(vector_of(block.low, v), g);
    if (!high_bits(type)) return odd ? t >> 4 : t & 15;
    if (!odd) return t & 31;
    const uint8x16_t low = load_group_neon(vector_of(block.high, v / 4), g);
    return vsriq_n_u8(t >> 3, low << (6 - 2 * (v % 4)), 6);
}

/* Whether integers become signed here, without their offset; the others fit into 7 bits. */
ALWAYS_INLINE int is_signed_neon(const int type) {
    return layout_of(type) == BYTES || has_steps(type);
}

ALWAYS_INLINE uint8x16_t steps_neon(uint8x16_t q, const int type) {
    return vqtbl1q_u8(vreinterpretq_u8_s8(vld1q_s8(WEIGHT_TYPES[type].steps)), q);
}

/* Vector v of a block's integers, group g of the rows: byte 4r + j is row r, column 4v + j. */
ALWAYS_INLINE int8x16_t integers_neon(block_x16 block, const int type, const int v, int g) {
    uint8x16_t q;
    switch (layout_of(type)) {
    case SIXES: q = sixes_neon(block, v, g); break;
    case PAIRS:
        q = block.part % 2 ? pairs_neon(block, type, 1, v, g) : pairs_neon(block, type, 0, v, g);
        break;
    case BYTES: q = load_group_neon(vector_of(block.low, v), g) ^ 0x80; break;
    default:
        q = planes_neon(block, type, v, g);
        if (has_steps(type)) q = steps_neon(q, type);
    }
    return vreinterpretq_s8_u8(q);
}

#undef FOR_EACH_GROUP
#endif
