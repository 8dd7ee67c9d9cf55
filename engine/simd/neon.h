/* All kernels for the NEON instructions that every AArch64 processor has. */
#ifndef LARIAT_NEON_H
#define LARIAT_NEON_H

#include "activations_neon.h"

static void use_neon(kernels_t *k) { use_activations_neon(k); }

#endif
