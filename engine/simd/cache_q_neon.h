/* Quantized keys and values for NEON. cache_q_scalar.h says what the layouts and operations are,
 * cache_q_avx512.h where the scales go. A step takes half a group, 16 channels, four vectors.
 *
 * Conversion of integers to floats is slow on many cores: Neoverse N1 starts four numbers in two
 * cycles, V2 in one. So a nibble is put into the mantissa of a float, 128 + q, and its offset taken
 * off by a subtraction, which is exact: one and a half instructions to place it, and where there is
 * a zero point the subtraction had to be anyway. A byte would need more, and is converted.
 */
#ifndef LARIAT_CACHE_Q_NEON_H
#define LARIAT_CACHE_Q_NEON_H

#include <arm_neon.h>

#include "attention_neon.h"
#include "cache_q_scalar.h"
#include "fetch.h"

/* Asks for the line at p, a block or a few further on: see ahead_neon. */
ALWAYS_INLINE void fetch_line_neon(const void *p, int64_t head_dim, const int type) {
    fetch_to_l2(p, 64, ahead_neon(cache_block_bytes(type, head_dim)));
}

/* The same for step i of those that read `bytes` of the rows each, in the order of memory */
ALWAYS_INLINE void fetch_step_neon(const void *block, int64_t i, const int bytes, int64_t head_dim,
                                   const int type) {
    if (bytes >= 64 || i % (64 / bytes) == 0)
        fetch_line_neon((const char *)block + i * bytes, head_dim, type);
}

/* What a loaded number of a type without zero points is too large by */
ALWAYS_INLINE float loaded_offset_neon(const int type) { return type == C_Q4_0 ? 136.0f : 0.0f; }

/* Bytes as floats: each goes to the top of 32 bits, and 24 bits of those are a fraction. */
ALWAYS_INLINE void load_16_bytes_neon(const uint8_t *bytes, float32x4_t x[4]) {
    static const uint8_t TO_TOP[4][16] = {
        {255, 255, 255, 0, 255, 255, 255, 1, 255, 255, 255, 2, 255, 255, 255, 3},
        {255, 255, 255, 4, 255, 255, 255, 5, 255, 255, 255, 6, 255, 255, 255, 7},
        {255, 255, 255, 8, 255, 255, 255, 9, 255, 255, 255, 10, 255, 255, 255, 11},
        {255, 255, 255, 12, 255, 255, 255, 13, 255, 255, 255, 14, 255, 255, 255, 15}};
    const uint8x16_t q = vld1q_u8(bytes);
    _Pragma("GCC unroll 4") for (int v = 0; v < 4; v++)
        x[v] = vcvtq_n_f32_s32(vreinterpretq_s32_u8(vqtbl1q_u8(q, vld1q_u8(TO_TOP[v]))), 24);
}

/* Half a group: numbers plus their offset. `part` is 0 for the first 16 of 32, 1 for the last. */
ALWAYS_INLINE void load_half_group_neon(const uint8_t *group, const int part, float32x4_t x[4],
                                        const int type) {
    if (type == C_Q8_0 || type == C_Q8_CH) {
        load_16_bytes_neon(group + 16 * part, x);
        return;
    }
    const uint8x16_t bytes = vld1q_u8(group);
    const uint8x16_t q = part ? vshrq_n_u8(bytes, 4) : vandq_u8(bytes, vdupq_n_u8(15));
    /* 0x43qq0000 is 128 + q */
    const uint8x16_t exponent = vdupq_n_u8(0x43);
    const uint16x8_t zero = vdupq_n_u16(0);
    const uint16x8_t low = vreinterpretq_u16_u8(vzip1q_u8(q, exponent));
    const uint16x8_t high = vreinterpretq_u16_u8(vzip2q_u8(q, exponent));
    x[0] = vreinterpretq_f32_u16(vzip1q_u16(zero, low));
    x[1] = vreinterpretq_f32_u16(vzip2q_u16(zero, low));
    x[2] = vreinterpretq_f32_u16(vzip1q_u16(zero, high));
    x[3] = vreinterpretq_f32_u16(vzip2q_u16(zero, high));
}

/* Scales of channels i..i + 7 */
ALWAYS_INLINE float32x4x2_t channel_scales_neon(const void *block, int64_t i, int64_t head_dim,
                                                const int type) {
    if (type == C_Q8_CH) return load_8_neon(scales_of(block, head_dim, type), i, 0);
    const uint8x8_t bytes = vld1_u8(channel_bytes_of(block, head_dim) + i);
    const float16x8_t scale_f16x8 = vreinterpretq_f16_u16(vshll_n_u8(bytes, 7));
    return (float32x4x2_t){{vmulq_n_f32(vcvt_f32_f16(vget_low_f16(scale_f16x8)), 0.25f),
                            vmulq_n_f32(vcvt_high_f32_f16(scale_f16x8), 0.25f)}};
}

/* Zero points of bytes c, as floats: see zero_of_byte. */
ALWAYS_INLINE float32x4_t zeros_of_bytes_neon(float32x4_t c) {
    const float32x4_t product = vmulq_f32(c, vaddq_f32(vabsq_f32(c), vdupq_n_f32(64.0f)));
    return vfmaq_f32(vdupq_n_f32(-7.5f), product, vdupq_n_f32(0x1p-8f));
}

/* Offsets of channels i..i + 7 of q4_ch: a number minus its offset is the number plus its zero
 * point. Zero points are multiples of 2^-8, so this is exact. */
ALWAYS_INLINE float32x4x2_t channel_offsets_neon(const void *block, int64_t i, int64_t head_dim) {
    const uint8_t *bytes = channel_bytes_of(block, head_dim) + head_dim + i;
    const int16x8_t c = vmovl_s8(vreinterpret_s8_u8(vld1_u8(bytes)));
    const float32x4_t low = vcvtq_f32_s32(vmovl_s16(vget_low_s16(c)));
    const float32x4_t high = vcvtq_f32_s32(vmovl_high_s16(c));
    return (float32x4x2_t){{vsubq_f32(vdupq_n_f32(128.0f), zeros_of_bytes_neon(low)),
                            vsubq_f32(vdupq_n_f32(128.0f), zeros_of_bytes_neon(high))}};
}

/* Asks for what stands behind the rows about channels i..: 32 in a line, 64 of q4_ch */
ALWAYS_INLINE void fetch_channels_neon(const void *block, int64_t i, int64_t head_dim,
                                       const int type) {
    if (type == C_Q8_CH) fetch_line_neon(scales_of(block, head_dim, type) + i, head_dim, type);
    if (type != C_Q4_CH) return;
    fetch_line_neon(channel_bytes_of(block, head_dim) + i, head_dim, type);
    fetch_line_neon(channel_bytes_of(block, head_dim) + head_dim + i, head_dim, type);
}

/* What becomes of the numbers of a block as they are loaded: (number - offset) * scale. Every
 * difference and product is exact. */
typedef struct {
    float slot_scales[SLOTS * MAX_HEAD_DIM / 32];      /* types by row, [head_dim / 32][SLOTS] */
    float scales[MAX_HEAD_DIM], offsets[MAX_HEAD_DIM]; /* types by channel; offsets of q4_ch */
} scales_neon_t;

/* Slots are counted from the first one that is read. */
ALWAYS_INLINE void load_cached_scales_neon(const void *block, int first, int n, int64_t head_dim,
                                    scales_neon_t *of, const int type) {
    if (type < C_Q8_CH) {
        for (int64_t g = 0; g < head_dim / 32; g++) {
            const f16_t *scales = scales_of(block, head_dim, type) + g * SLOTS;
            fetch_line_neon(scales, head_dim, type);
            for (int j = 0; j < n; j += 4)
                vst1q_f32(of->slot_scales + g * SLOTS + j,
                          load_up_to_neon(scales, first + j, SLOTS, 0, 0));
        }
        return;
    }
    for (int64_t i = 0; i < head_dim; i += 8) {
        if (type == C_Q8_CH ? i % 32 == 0 : i % 64 == 0)
            fetch_channels_neon(block, i, head_dim, type);
        const float32x4x2_t scale = channel_scales_neon(block, i, head_dim, type);
        vst1q_f32(of->scales + i, scale.val[0]);
        vst1q_f32(of->scales + i + 4, scale.val[1]);
        if (type != C_Q4_CH) continue;
        const float32x4x2_t offset = channel_offsets_neon(block, i, head_dim);
        vst1q_f32(of->offsets + i, offset.val[0]);
        vst1q_f32(of->offsets + i + 4, offset.val[1]);
    }
}

/* Channels i..i + 15 of slot j (counted from the first one that is read) as float */
ALWAYS_INLINE void values_16_neon(const uint8_t *row, int64_t j, int64_t i, const scales_neon_t *of,
                                  float32x4_t x[4], const int type) {
    const int is_byte = type == C_Q8_0 || type == C_Q8_CH;
    load_half_group_neon(row + i / 32 * (is_byte ? 32 : 16), (int)(i % 32 / 16), x, type);
    _Pragma("GCC unroll 4") for (int v = 0; v < 4; v++) {
        if (type == C_Q4_CH) x[v] = vsubq_f32(x[v], vld1q_f32(of->offsets + i + 4 * v));
        if (type == C_Q4_0) x[v] = vsubq_f32(x[v], vdupq_n_f32(loaded_offset_neon(type)));
        if (type >= C_Q8_CH) x[v] = vmulq_f32(x[v], vld1q_f32(of->scales + i + 4 * v));
        else x[v] = vmulq_n_f32(x[v], of->slot_scales[i / 32 * SLOTS + j]);
    }
}

ALWAYS_INLINE void dequantize_neon(const void *block, int first, int n, int64_t head_dim,
                                   float *out, const int type) {
    const int64_t row_bytes = cache_row_bytes(type, head_dim);
    scales_neon_t of;
    load_cached_scales_neon(block, first, n, head_dim, &of, type);
    for (int64_t j = 0; j < n; j++) {
        const uint8_t *row = (const uint8_t *)block + (first + j) * row_bytes;
        for (int64_t i = 0; i < head_dim; i += 32, out += 32)
            _Pragma("GCC unroll 2") for (int h = 0; h < 2; h++) {
                float32x4_t x[4];
                values_16_neon(row, j, i + 16 * h, &of, x, type);
                for (int v = 0; v < 4; v++) vst1q_f32(out + 16 * h + 4 * v, x[v]);
            }
    }
}

/* One query against keys that are made float on their way. The sums are those of scores_rows_neon
 * over float keys. Raw keys are rotated by `rows`; then head_dim divides by 64. */
ALWAYS_INLINE void block_scores_rows_neon(const float *q, const void *block, int first, int n,
                                          int64_t head_dim, const float *rows, float *s,
                                          const int raw, const int type) {
    const int64_t half = head_dim / 2, end = raw ? half : head_dim;
    const int64_t row_bytes = cache_row_bytes(type, head_dim);
    const int n_k = raw ? 4 : 8;
    scales_neon_t of;
    load_cached_scales_neon(block, first, n, head_dim, &of, type);
    const uint8_t *rows_of_block = (const uint8_t *)block + first * row_bytes;
    for (int j0 = 0; j0 < n; j0 += n_k) {
        float32x4_t sum[8];
        int64_t slot[8];
        FOR_EACH_KEY_NEON(o) {
            sum[o] = vdupq_n_f32(0);
            slot[o] = j0 + o < n ? j0 + o : n - 1;
        }
        for (int64_t i = 0; i < end; i += 16)
            FOR_EACH_KEY_NEON(o) {
                const int64_t j = slot[o];
                float32x4_t x[4], y[4];
                fetch_step_neon(block, j0 * (end / 16) + i / 16 * n_k + o,
                                (int)(16 * row_bytes / end), head_dim, type);
                values_16_neon(rows_of_block + j * row_bytes, j, i, &of, x, type);
                if (raw) values_16_neon(rows_of_block + j * row_bytes, j, half + i, &of, y, type);
                _Pragma("GCC unroll 4") for (int v = 0; v < 4; v++) {
                    const int64_t at = i + 4 * v;
                    if (raw)
                        rotate_neon(&x[v], &y[v], vld1q_f32(rows + j * head_dim + at),
                                    vld1q_f32(rows + j * head_dim + half + at));
                    sum[o] = vfmaq_f32(sum[o], x[v], vld1q_f32(q + at));
                    if (raw) sum[o] = vfmaq_f32(sum[o], y[v], vld1q_f32(q + half + at));
                }
            }
        store_scores_neon(sum, 1, n_k, s + j0);
    }
}

/* Of 32 channels at a time: more sums would leave too few registers for scales and positions. */
ALWAYS_INLINE void block_weighted_sum_rows_neon(const float *s, const void *block, int first, int n,
                                                int64_t head_dim, float *acc, const int type) {
    const int is_byte = type == C_Q8_0 || type == C_Q8_CH;
    const int64_t row_bytes = cache_row_bytes(type, head_dim);
    scales_neon_t of;
    load_cached_scales_neon(block, first, n, head_dim, &of, type);
    for (int64_t g = 0; g < head_dim / 32; g++) {
        float32x4_t sum[8];
        for (int v = 0; v < 8; v++) sum[v] = vld1q_f32(acc + 32 * g + 4 * v);
        for (int j = 0; j < n; j++) {
            const uint8_t *row = (const uint8_t *)block + (first + j) * row_bytes;
            fetch_step_neon(block, g * SLOTS + j, is_byte ? 32 : 16, head_dim, type);
            _Pragma("GCC unroll 2") for (int h = 0; h < 2; h++) {
                float32x4_t x[4];
                values_16_neon(row, j, 32 * g + 16 * h, &of, x, type);
                _Pragma("GCC unroll 4") for (int v = 0; v < 4; v++)
                    sum[4 * h + v] = vfmaq_n_f32(sum[4 * h + v], x[v], s[j]);
            }
        }
        for (int v = 0; v < 8; v++) vst1q_f32(acc + 32 * g + 4 * v, sum[v]);
    }
}

/* See BY_HEAD_DIM_NEON. */
#define RAW_NEON(d) block_scores_rows_neon(q, block, first, n, d, rope->rows, s, 1, type)
#define ROPED_NEON(d) block_scores_rows_neon(q, block, first, n, d, NULL, s, 0, type)
#define WEIGHTED_SUM_NEON(d) block_weighted_sum_rows_neon(s, block, first, n, d, acc, type)
ALWAYS_INLINE void block_scores_neon(const float *q, const void *block, int first, int n,
                                     int64_t head_dim, const rope_t *rope, float *s, const int raw,
                                     const int type) {
    if (raw) {
        BY_HEAD_DIM_NEON(RAW_NEON)
    } else {
        BY_HEAD_DIM_NEON(ROPED_NEON)
    }
}

ALWAYS_INLINE void block_weighted_sum_neon(const float *s, const void *block, int first, int n,
                                           int64_t head_dim, float *acc, const int type) {
    BY_HEAD_DIM_NEON(WEIGHTED_SUM_NEON)
}
#undef RAW_NEON
#undef ROPED_NEON
#undef WEIGHTED_SUM_NEON

/* The scales that bytes stand for: see scale_of_byte. */
ALWAYS_INLINE float32x4_t scales_of_bytes_neon(int32x4_t bytes_i32x4) {
    const int32x4_t normal = vshlq_n_s32(vaddq_s32(bytes_i32x4, vdupq_n_s32(110 << 3)), 20);
    const float32x4_t small = vmulq_n_f32(vcvtq_f32_s32(bytes_i32x4), 0x1p-19f);
    return vbslq_f32(vcltq_s32(bytes_i32x4, vdupq_n_s32(8)), small, vreinterpretq_f32_s32(normal));
}

/* As byte_of_scale, for finite d */
ALWAYS_INLINE int32x4_t bytes_of_scales_neon(float32x4_t d) {
    const int32x4_t bits = vaddq_s32(vreinterpretq_s32_f32(d), vdupq_n_s32(1 << 19));
    const int32x4_t normal = vsubq_s32(vshrq_n_s32(bits, 20), vdupq_n_s32(110 << 3));
    const int32x4_t small = vcvtq_s32_f32(vfmaq_n_f32(vdupq_n_f32(0.5f), d, 0x1p19f));
    const uint32x4_t is_small = vcltq_f32(d, vdupq_n_f32(0x1p-16f));
    return vmaxq_s32(vbslq_s32(is_small, small, normal), vdupq_n_s32(1));
}

/* The level 0 to 15 next to a number, as float; some level for NaN */
ALWAYS_INLINE float32x4_t levels_neon(float32x4_t x, float32x4_t inverse, float32x4_t zero) {
    const float32x4_t level = vfmaq_f32(vnegq_f32(zero), x, inverse);
    return vrndnq_f32(vminnmq_f32(vmaxnmq_f32(level, vdupq_n_f32(0)), vdupq_n_f32(15.0f)));
}

/* Scales and zero points of channels i..i + 3, as bytes: see quantize_q4_ch_in_c. */
ALWAYS_INLINE void choose_scales_neon(const float *x, int64_t head_dim, const float *weights,
                                      int32x4_t *scale_bytes, float32x4_t *zero_bytes) {
    float32x4_t min = vld1q_f32(x), max = min, nan = vdupq_n_f32(0);
    for (int j = 0; j < SLOTS; j++) {
        const float32x4_t a = vld1q_f32(x + j * head_dim);
        min = vminq_f32(min, a);
        max = vmaxq_f32(max, a);
        nan = vfmaq_f32(nan, a, vdupq_n_f32(0));
    }
    const float32x4_t middle = vmulq_n_f32(vaddq_f32(max, min), 0.5f);
    const float32x4_t least_d = vmulq_n_f32(vabsq_f32(middle), 1.0f / 94);
    float32x4_t least = vdupq_n_f32(0);
    for (int size = 0; size < 4; size++) {
        const float32x4_t d = vmulq_n_f32(vsubq_f32(max, min), Q4_CH_SIZES[size]);
        const int32x4_t bytes = bytes_of_scales_neon(vmaxq_f32(d, least_d));
        const float32x4_t scale = scales_of_bytes_neon(bytes);
        const float32x4_t inverse = vdivq_f32(vdupq_n_f32(1.0f), scale);
        const float32x4_t m = vmulq_f32(middle, inverse);
        const float32x4_t root =
            vsubq_f32(vsqrtq_f32(vfmaq_n_f32(vdupq_n_f32(1024.0f), vabsq_f32(m), 256.0f)),
                      vdupq_n_f32(32.0f));
        const float32x4_t c0 = vrndnq_f32(vbslq_f32(vdupq_n_u32(0x80000000u), m, root));
        for (int step = -1; step <= 1; step++) {
            float32x4_t c = vaddq_f32(c0, vdupq_n_f32((float)step));
            c = vmaxnmq_f32(vminnmq_f32(c, vdupq_n_f32(127.0f)), vdupq_n_f32(-127.0f));
            const float32x4_t zero = zeros_of_bytes_neon(c);
            float32x4_t error[2] = {vdupq_n_f32(0), vdupq_n_f32(0)};
            for (int j = 0; j < SLOTS; j += 2)
                _Pragma("GCC unroll 2") for (int o = 0; o < 2; o++) {
                    const float32x4_t a = vld1q_f32(x + (j + o) * head_dim);
                    const float32x4_t level = levels_neon(a, inverse, zero);
                    const float32x4_t off = vfmsq_f32(a, scale, vaddq_f32(level, zero));
                    error[o] = vfmaq_n_f32(error[o], vmulq_f32(off, off), weights[j + o]);
                }
            error[0] = vaddq_f32(error[0], error[1]);
            uint32x4_t is_best = vcltq_f32(error[0], least);
            if (size == 0 && step == -1) is_best = vdupq_n_u32(~0u);
            least = vbslq_f32(is_best, error[0], least);
            *zero_bytes = vbslq_f32(is_best, c, *zero_bytes);
            *scale_bytes = vbslq_s32(is_best, bytes, *scale_bytes);
        }
    }
    const uint32x4_t is_zero = vandq_u32(vceqzq_f32(min), vceqzq_f32(max));
    const uint32x4_t is_number = vceqq_f32(nan, nan);
    *scale_bytes = vbicq_s32(*scale_bytes, vreinterpretq_s32_u32(is_zero));
    *scale_bytes = vbslq_s32(is_number, *scale_bytes, vdupq_n_s32(0xff));
}

static void quantize_channels_neon(const float *x, int64_t head_dim, void *block) {
    uint8_t *scale_bytes = channel_bytes_of(block, head_dim), *zero_bytes = scale_bytes + head_dim;
    float weights[SLOTS];
    slot_weights(x, head_dim, weights);
    for (int64_t g = 0; g < head_dim / 32; g++) {
        int32_t levels[SLOTS][32];
        for (int v = 0; v < 8; v++) {
            const float *channels = x + 32 * g + 4 * v;
            int32x4_t of_scale = vdupq_n_s32(0);
            float32x4_t of_zero = vdupq_n_f32(0);
            int32_t scales[4], zeros[4];
            choose_scales_neon(channels, head_dim, weights, &of_scale, &of_zero);
            vst1q_s32(scales, of_scale);
            vst1q_s32(zeros, vcvtq_s32_f32(of_zero));
            for (int l = 0; l < 4; l++) {
                scale_bytes[32 * g + 4 * v + l] = (uint8_t)scales[l];
                zero_bytes[32 * g + 4 * v + l] = (uint8_t)zeros[l];
            }
            const float32x4_t scale = scales_of_bytes_neon(of_scale);
            const float32x4_t inverse = vreinterpretq_f32_u32(
                vandq_u32(vreinterpretq_u32_f32(vdivq_f32(vdupq_n_f32(1.0f), scale)),
                          vcgtzq_f32(scale)));
            const float32x4_t zero = zeros_of_bytes_neon(of_zero);
            for (int j = 0; j < SLOTS; j++)
                vst1q_s32(levels[j] + 4 * v,
                          vcvtq_s32_f32(levels_neon(vld1q_f32(channels + j * head_dim), inverse,
                                                    zero)));
        }
        for (int j = 0; j < SLOTS; j++) {
            uint8_t *q = (uint8_t *)group_of(block, j, g, head_dim, C_Q4_CH);
            for (int l = 0; l < 16; l++) q[l] = (uint8_t)(levels[j][l] | levels[j][16 + l] << 4);
        }
    }
}

/* The other types have loops that compilers translate well. */
ALWAYS_INLINE void quantize_neon(const float *x, int slot, int64_t head_dim, void *block,
                                 const int type) {
    if (type == C_Q4_CH)
        quantize_channels_neon(x, head_dim, block);
    else
        quantize_scalar(x, slot, head_dim, block, type);
}

FOR_CACHE_TYPES(CACHE_PRODUCTS, neon)
FOR_CACHE_TYPES(CACHE_CONVERSIONS, neon)

static void use_cache_neon(kernels_t *k) {
    FOR_CACHE_TYPES(USE_CACHE_PRODUCTS, neon)
    FOR_CACHE_TYPES(USE_CACHE_CONVERSIONS, neon)
}

#endif
