/* What products of 2 x 8 and 8 x 2 bytes (ARMv8.6's SMMLA) make faster. */
#ifndef LARIAT_I8MM_H
#define LARIAT_I8MM_H

#include "matmul_i8mm.h"

static void use_i8mm(kernels_t *k) { use_matmul_i8mm(k); }

#endif
