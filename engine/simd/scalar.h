/* The portable kernels, which every other target starts with. */
#ifndef LARIAT_SCALAR_H
#define LARIAT_SCALAR_H

#include "attention_scalar.h"
#include "cache_q_scalar.h"
#include "matmul_scalar.h"
#include "vector_scalar.h"

static void use_scalar(kernels_t *k) {
    use_matmul_scalar(k);
    use_vector_scalar(k);
    use_attention_scalar(k);
    use_cache_scalar(k);
}

#endif
