/* The table of operations and its dispatch, a ladder: the portable version of everything first,
 * then each level that the processor and the operating system have overwrites it, up to the one
 * asked for. `select_level` is called once when the module loads (and by tests).
 */
#ifndef LARIAT_KERNELS_H
#define LARIAT_KERNELS_H

#include "attention_scalar.h"
#include "cache_q_scalar.h"
#include "cores.h"
#include "layout.h"
#include "matmul_k_scalar.h"
#include "matmul_scalar.h"
#include "pack.h"
#include "table.h"
#include "vector_scalar.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define LARIAT_X86 1
#endif

#ifdef LARIAT_X86
#include <immintrin.h>
/* Everything in a region may use its instruction set; nothing outside may, so the module loads and
 * runs on any x86-64 processor. */
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#include "matmul_avx2.h"
#include "matmul_k_avx2.h"
#include "matmul_wide_avx2.h"
#include "vector_avx2.h"
#include "attention_avx2.h"
#include "cache_q_avx2.h"
#pragma clang attribute pop
#pragma clang attribute push(                                                              \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi,fma,f16c"))), \
    apply_to = function)
#include "matmul_avx512.h"
#include "matmul_k_avx512.h"
#include "vector_avx512.h"
#include "attention_avx512.h"
#include "cache_q_avx512.h"
#pragma clang attribute pop
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#include "matmul_avx2.h"
#include "matmul_k_avx2.h"
#include "matmul_wide_avx2.h"
#include "vector_avx2.h"
#include "attention_avx2.h"
#include "cache_q_avx2.h"
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi,fma,f16c")
#include "matmul_avx512.h"
#include "matmul_k_avx512.h"
#include "vector_avx512.h"
#include "attention_avx512.h"
#include "cache_q_avx512.h"
#pragma GCC pop_options
#endif
#endif

static kernels_t KERNELS;

static int supported_level(void) {
#ifdef LARIAT_X86
    __builtin_cpu_init(); /* reads CPUID, and XCR0 for what the operating system saves */
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
        !__builtin_cpu_supports("f16c"))
        return LEVEL_SCALAR;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq") ||
        !__builtin_cpu_supports("avx512vnni") || !__builtin_cpu_supports("avx512vbmi"))
        return LEVEL_AVX2;
    return LEVEL_AVX512;
#else
    return LEVEL_SCALAR;
#endif
}

/* The kind of core at hand: see cores.h */
static int kind_of_core(void) {
#ifdef LARIAT_X86
    __builtin_cpu_init();
    return __builtin_cpu_is("intel") ? CORE_INTEL : CORE_OTHER;
#else
    return CORE_OTHER;
#endif
}

static void select_core(int core) { CORE = core; }

static void select_level(int level) {
    kernels_t k = {
        .level = LEVEL_SCALAR,
        .matmul = {matmul_f32_scalar, matmul_f16_scalar, matmul_bf16_scalar, matmul_q4_0_scalar,
                   matmul_q4_1_scalar, matmul_q8_0_scalar, matmul_q6_K_scalar,
                   matmul_q5_0_scalar, matmul_q5_1_scalar, matmul_iq4_NL_scalar, matmul_q2_K_scalar,
                   matmul_q3_K_scalar, matmul_q4_K_scalar, matmul_q5_K_scalar},
        .rms_norm = rms_norm_scalar,
        .quantize_column = quantize_column_scalar,
        .rope_head = rope_head_scalar,
        .silu_mul = silu_mul_scalar,
        .to_f16 = to_f16_scalar,
        .to_f32 = to_f32_scalar,
        .rotate_back = rotate_back_scalar,
        .scores = {{scores_roped_f16_scalar, scores_roped_f32_scalar},
                   {scores_raw_f16_scalar, scores_raw_f32_scalar}},
        .keys = {keys_f16_scalar, keys_f32_scalar},
        .tile_scores = tile_scores_scalar,
        .softmax_block = softmax_block_scalar,
        .weigh = {weigh_f16_scalar, weigh_f32_scalar},
        .unit_scores = {
            {[C_Q8_0] = unit_scores_roped_q8_0_scalar, unit_scores_roped_q4_0_scalar,
             unit_scores_roped_q8_ch_scalar, unit_scores_roped_q4_ch_scalar},
            {[C_Q8_0] = unit_scores_raw_q8_0_scalar, unit_scores_raw_q4_0_scalar,
             unit_scores_raw_q8_ch_scalar, unit_scores_raw_q4_ch_scalar},
        },
        .unit_weigh = {[C_Q8_0] = unit_weigh_q8_0_scalar, unit_weigh_q4_0_scalar,
                       unit_weigh_q8_ch_scalar, unit_weigh_q4_ch_scalar},
        .dequantize = {[C_Q8_0] = dequantize_q8_0_scalar, dequantize_q4_0_scalar,
                       dequantize_q8_ch_scalar, dequantize_q4_ch_scalar},
        .quantize = {[C_Q8_0] = quantize_q8_0_scalar, quantize_q4_0_scalar,
                     quantize_q8_ch_scalar, quantize_q4_ch_scalar},
    };
    KERNELS = k;
    if (level == LEVEL_SCALAR) return;
#ifdef LARIAT_X86
    kernels_t avx2 = {
        .level = LEVEL_AVX2,
        .matmul = {matmul_f32_avx2, matmul_f16_avx2, matmul_bf16_avx2, matmul_q4_0_avx2,
                   matmul_q4_1_avx2, matmul_q8_0_avx2, matmul_q6_K_avx2,
                   matmul_q5_0_avx2, matmul_q5_1_avx2, matmul_iq4_NL_avx2, matmul_q2_K_avx2,
                   matmul_q3_K_avx2, matmul_q4_K_avx2, matmul_q5_K_avx2},
        .rms_norm = rms_norm_avx2,
        .quantize_column = quantize_column_avx2,
        .rope_head = rope_head_avx2,
        .silu_mul = silu_mul_avx2,
        .to_f16 = to_f16_avx2,
        .to_f32 = to_f32_avx2,
        .rotate_back = rotate_back_avx2,
        .scores = {{scores_roped_f16_avx2, scores_roped_f32_avx2},
                   {scores_raw_f16_avx2, scores_raw_f32_avx2}},
        .keys = {keys_f16_avx2, keys_f32_avx2},
        .tile_scores = tile_scores_avx2,
        .softmax_block = softmax_block_avx2,
        .weigh = {weigh_f16_avx2, weigh_f32_avx2},
        .unit_scores = {
            {[C_Q8_0] = unit_scores_roped_q8_0_avx2, unit_scores_roped_q4_0_avx2,
             unit_scores_roped_q8_ch_avx2, unit_scores_roped_q4_ch_avx2},
            {[C_Q8_0] = unit_scores_raw_q8_0_avx2, unit_scores_raw_q4_0_avx2,
             unit_scores_raw_q8_ch_avx2, unit_scores_raw_q4_ch_avx2},
        },
        .unit_weigh = {[C_Q8_0] = unit_weigh_q8_0_avx2, unit_weigh_q4_0_avx2,
                       unit_weigh_q8_ch_avx2, unit_weigh_q4_ch_avx2},
        .dequantize = {[C_Q8_0] = dequantize_q8_0_avx2, dequantize_q4_0_avx2,
                       dequantize_q8_ch_avx2, dequantize_q4_ch_avx2},
        .quantize = {[C_Q8_0] = quantize_q8_0_avx2, quantize_q4_0_avx2,
                     quantize_q8_ch_avx2, quantize_q4_ch_avx2},
    };
    KERNELS = avx2;
    if (level == LEVEL_AVX2) return;
    kernels_t avx512 = {
        .level = LEVEL_AVX512,
        .matmul = {matmul_f32_avx512, matmul_f16_avx512, matmul_bf16_avx512, matmul_q4_0_avx512,
                   matmul_q4_1_avx512, matmul_q8_0_avx512, matmul_q6_K_avx512,
                   matmul_q5_0_avx512, matmul_q5_1_avx512, matmul_iq4_NL_avx512, matmul_q2_K_avx512,
                   matmul_q3_K_avx512, matmul_q4_K_avx512, matmul_q5_K_avx512},
        .rms_norm = rms_norm_avx512,
        .quantize_column = quantize_column_avx512,
        .rope_head = rope_head_avx512,
        .silu_mul = silu_mul_avx512,
        .to_f16 = to_f16_avx512,
        .to_f32 = to_f32_avx512,
        .rotate_back = rotate_back_avx512,
        .scores = {{scores_roped_f16_avx512, scores_roped_f32_avx512},
                   {scores_raw_f16_avx512, scores_raw_f32_avx512}},
        .keys = {keys_f16_avx512, keys_f32_avx512},
        .tile_scores = tile_scores_avx512,
        .softmax_block = softmax_block_avx512,
        .weigh = {weigh_f16_avx512, weigh_f32_avx512},
        .unit_scores = {
            {[C_Q8_0] = unit_scores_roped_q8_0_avx512, unit_scores_roped_q4_0_avx512,
             unit_scores_roped_q8_ch_avx512, unit_scores_roped_q4_ch_avx512},
            {[C_Q8_0] = unit_scores_raw_q8_0_avx512, unit_scores_raw_q4_0_avx512,
             unit_scores_raw_q8_ch_avx512, unit_scores_raw_q4_ch_avx512},
        },
        .unit_weigh = {[C_Q8_0] = unit_weigh_q8_0_avx512, unit_weigh_q4_0_avx512,
                       unit_weigh_q8_ch_avx512, unit_weigh_q4_ch_avx512},
        .dequantize = {[C_Q8_0] = dequantize_q8_0_avx512, dequantize_q4_0_avx512,
                       dequantize_q8_ch_avx512, dequantize_q4_ch_avx512},
        .quantize = {[C_Q8_0] = quantize_q8_0_avx512, quantize_q4_0_avx512,
                     quantize_q8_ch_avx512, quantize_q4_ch_avx512},
    };
    KERNELS = avx512;
#endif
}

#endif
