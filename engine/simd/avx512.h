/* All kernels for AVX-512 (F, BW, VL, DQ, VNNI, VBMI), and those for Intel's cores. */
#ifndef LARIAT_AVX512_H
#define LARIAT_AVX512_H

#include "attention_avx512.h"
#include "cache_q_avx512.h"
#include "matmul_super_avx512.h"
#include "vector_avx512.h"

static void use_avx512(kernels_t *k) {
    use_matmul_avx512(k);
    use_vector_avx512(k);
    use_attention_avx512(k);
    use_cache_avx512(k);
}

static void use_avx512_intel(kernels_t *k) {
    use_matmul_avx512_intel(k);
    use_attention_avx512_intel(k);
    use_cache_avx512_intel(k);
}

#endif
