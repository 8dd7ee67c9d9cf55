/* All kernels for AVX2 with FMA and F16C, and those for Intel's cores. */
#ifndef LARIAT_AVX2_H
#define LARIAT_AVX2_H

#include "attention_avx2.h"
#include "cache_q_avx2.h"
#include "matmul_wide_avx2.h"
#include "vector_avx2.h"

static void use_avx2(kernels_t *k) {
    use_matmul_avx2(k);
    use_vector_avx2(k);
    use_attention_avx2(k);
    use_cache_avx2(k);
}

static void use_avx2_intel(kernels_t *k) { use_matmul_avx2_intel(k); }

#endif
