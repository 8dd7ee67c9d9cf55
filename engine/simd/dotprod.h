/* What dot products of four bytes (ARMv8.2's SDOT) make faster. */
#ifndef LARIAT_DOTPROD_H
#define LARIAT_DOTPROD_H

#include "matmul_dotprod.h"

static void use_dotprod(kernels_t *k) { use_matmul_dotprod(k); }

#endif
