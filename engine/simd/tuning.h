/* Constants of matmul tiles that depend on the kind of core, not on the instruction set.
 *
 * Which values are best depends on the maker, so each kind of core is a target of its own
 * (targets.def), and its tiles are compiled with its constants. Figures: docs/kernels.md.
 *
 * Memory: a Zen 4 core that reads weights for one column has its hardware's prefetch keep up, and
 * loses 3 to 13 % by each form of asking. With many columns there is so much to compute for a block
 * that it does not look far enough ahead either (8 columns from memory: 164 GMAC/s instead of 116,
 * 16 columns: 174 instead of 147). Cores of Intel's servers read weights at 55 to 85 % of the rate
 * of a plain loop, and at 92 to 100 % when asked for them twice, near and far. With AVX2, on Zen 3,
 * the hardware's prefetch follows a tile's loads at three quarters of the rate of a plain loop.
 *
 * Order: Intel's cores start two 512-bit products a cycle, Zen 4 one. Eight of a column after one
 * another then fill the places for instructions that wait before enough columns are under way;
 * eight columns side by side do not.
 */
#ifndef LARIAT_TUNING_H
#define LARIAT_TUNING_H

#include "fetch.h"

typedef struct {
    int l1, l2; /* how many bytes ahead to ask for weights, into either cache; 0: do not ask */
} fetch_t;

typedef struct {
    fetch_t few, many;   /* in tiles of up to 4 columns, and of 8 and 16 */
    int fetches_factors; /* asks for the factors of super-blocks too */
    int columns_at_once; /* their products are added side by side */
    int float_factors;   /* multiplies factor and sum as floats: a product of 32-bit integers takes
                            Intel's cores two operations */
} tuning_t;

static const tuning_t TUNING_avx2 UNUSED = {.few = {.l1 = 1152}, .many = {.l1 = 1152}};
static const tuning_t TUNING_avx2_intel UNUSED = {.few = {2304, 9216}, .many = {2304, 9216}};
static const tuning_t TUNING_avx512 UNUSED = {.many = {.l1 = 2304}, .columns_at_once = 1};
static const tuning_t TUNING_avx512_intel UNUSED = {
    .few = {2304, 9216}, .many = {2304, 9216},
    .fetches_factors = 1, .columns_at_once = 8, .float_factors = 1};

/* Asks for the n_bytes at p before they are read. */
ALWAYS_INLINE void fetch_ahead(const void *p, const int n_bytes, const fetch_t fetch) {
    if (fetch.l1) fetch_to_l1(p, n_bytes, fetch.l1);
    if (fetch.l2) fetch_to_l2(p, n_bytes, fetch.l2);
}

ALWAYS_INLINE fetch_t fetch_of(const tuning_t *tuning, const int n_columns) {
    return n_columns >= 8 ? tuning->many : tuning->few;
}

#endif
