/* A target for tests: one kernel on top of the portable ones, so that a set that has only some
 * kernels is run by every check. It is supported where LARIAT_TEST_TARGETS is set in the
 * environment. */
#ifndef LARIAT_TEST_TARGET_H
#define LARIAT_TEST_TARGET_H

#include <stdlib.h>

#include "table.h"

static int for_tests(void) { return getenv("LARIAT_TEST_TARGETS") != NULL; }

/* In double precision, so that results differ from the portable kernel's in their last bits */
static void silu_mul_test(float *gate, const float *up, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        gate[i] = (float)(gate[i] / (1.0 + exp(-(double)gate[i])) * up[i]);
}

static void use_test(kernels_t *k) { k->silu_mul = silu_mul_test; }

#endif
