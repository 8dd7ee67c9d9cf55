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

/* All operations of a level, by names that end in its own */
#define KERNELS_OF(l, number)                                                                    \
    {                                                                                            \
        .level = number,                                                                         \
        .matmul = {matmul_f32_##l, matmul_f16_##l, matmul_bf16_##l, matmul_q4_0_##l,             \
                   matmul_q4_1_##l, matmul_q8_0_##l, matmul_q6_K_##l, matmul_q5_0_##l,           \
                   matmul_q5_1_##l, matmul_iq4_NL_##l, matmul_q2_K_##l, matmul_q3_K_##l,         \
                   matmul_q4_K_##l, matmul_q5_K_##l},                                            \
        .rms_norm = rms_norm_##l,                                                                \
        .quantize_column = quantize_column_##l,                                                  \
        .rope_head = rope_head_##l,                                                              \
        .silu_mul = silu_mul_##l,                                                                \
        .to_f16 = to_f16_##l,                                                                    \
    }

static void select_level(int level) {
    const kernels_t scalar = KERNELS_OF(scalar, LEVEL_SCALAR);
    KERNELS = scalar;
    use_attention_scalar(&KERNELS);
    use_cache_scalar(&KERNELS);
    if (level == LEVEL_SCALAR) return;
#ifdef LARIAT_X86
    const kernels_t avx2 = KERNELS_OF(avx2, LEVEL_AVX2);
    KERNELS = avx2;
    use_attention_avx2(&KERNELS);
    use_cache_avx2(&KERNELS);
    if (level == LEVEL_AVX2) return;
    const kernels_t avx512 = KERNELS_OF(avx512, LEVEL_AVX512);
    KERNELS = avx512;
    use_attention_avx512(&KERNELS);
    use_cache_avx512(&KERNELS);
    if (CORE != CORE_INTEL) return;
    use_attention_avx512_intel(&KERNELS);
    use_cache_avx512_intel(&KERNELS);
#endif
}

static void select_core(int core) {
    CORE = core;
    select_level(KERNELS.level);
}

#endif
