/* All kernels for the NEON instructions that every AArch64 processor has. */
#ifndef LARIAT_NEON_H
#define LARIAT_NEON_H

#include "activations_neon.h"
#include "attention_neon.h"
#include "cache_q_neon.h"
#include "matmul_neon.h"
#include "vector_neon.h"

static void use_neon(kernels_t *k) {
    use_activations_neon(k);
    use_matmul_neon(k);
    use_vector_neon(k);
    use_attention_neon(k);
    use_cache_neon(k);
}

#endif
