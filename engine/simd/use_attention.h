/* The kernels of attention and of the cache, of one instruction set, into the table. */
#ifndef LARIAT_USE_ATTENTION_H
#define LARIAT_USE_ATTENTION_H

#include "cores.h"
#include "table.h"

#define USE_CACHE_TYPE(number, type, l)                          \
    k->unit_scores[0][number] = unit_scores_roped_##type##_##l;  \
    k->unit_scores[1][number] = unit_scores_raw_##type##_##l;    \
    k->unit_weigh[number] = unit_weigh_##type##_##l;             \
    k->dequantize[number] = dequantize_##type##_##l;             \
    k->quantize[number] = quantize_##type##_##l;

#define USE_ATTENTION(l)                                                \
    static void use_attention_##l(kernels_t *k) {                       \
        CORE = CORE_OTHER;                                              \
        k->to_f32 = to_f32_##l;                                         \
        k->rotate_back = rotate_back_##l;                               \
        k->scores[0][C_F16] = scores_roped_f16_##l;                     \
        k->scores[0][C_F32] = scores_roped_f32_##l;                     \
        k->scores[1][C_F16] = scores_raw_f16_##l;                       \
        k->scores[1][C_F32] = scores_raw_f32_##l;                       \
        k->keys[C_F16] = keys_f16_##l;                                  \
        k->keys[C_F32] = keys_f32_##l;                                  \
        k->tile_scores = tile_scores_##l;                               \
        k->softmax_block = softmax_block_##l;                           \
        k->weigh[C_F16] = weigh_f16_##l;                                \
        k->weigh[C_F32] = weigh_f32_##l;                                \
    }                                                                   \
    static void use_cache_##l(kernels_t *k) {                           \
        USE_CACHE_TYPE(C_Q8_0, q8_0, l)                                 \
        USE_CACHE_TYPE(C_Q4_0, q4_0, l)                                 \
        USE_CACHE_TYPE(C_Q8_CH, q8_ch, l)                               \
        USE_CACHE_TYPE(C_Q4_CH, q4_ch, l)                               \
    }
#define USE_ATTENTION_INTEL(l)                           \
    static void use_attention_##l##_intel(kernels_t *k) { \
        CORE = CORE_INTEL;                               \
        (void)k;                                         \
    }                                                    \
    static void use_cache_##l##_intel(kernels_t *k) { (void)k; }

#endif
