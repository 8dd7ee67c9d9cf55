/* What a tile does otherwise on one kind of core than on another, with the same instructions.
 *
 * Which is better is a matter of the maker, so tiles of AVX-512 where it counts are compiled for both
 * kinds; which is used, CORE, is set when the module loads (and by tests). Figures: docs/kernels.md.
 *
 * Memory: a Zen 4 core that reads weights for one column has its hardware's prefetch keep up, and
 * loses 3 to 13 % by each form of asking. Cores of Intel's servers read the same weights at 55 to 85 %
 * of what a plain loop gets, and at 92 to 100 % when asked for them twice, near and far.
 *
 * Order: Intel's cores start two 512-bit products a cycle, Zen 4 one. Eight of a column after one
 * another then fill the places for what waits before enough columns are under way; eight columns side
 * by side do not.
 */
#ifndef LARIAT_CORES_H
#define LARIAT_CORES_H

#include "layout.h"

enum { CORE_OTHER, CORE_INTEL };
static int CORE UNUSED;

/* call(..., core), compiled for each kind */
#define BY_CORE(call, ...)                                          \
    do {                                                            \
        if (CORE == CORE_INTEL) call(__VA_ARGS__, CORE_INTEL);      \
        else call(__VA_ARGS__, CORE_OTHER);                         \
    } while (0)

/* Ask for n_bytes that stand `ahead` bytes behind p, into the L1 or the L2 cache. */
ALWAYS_INLINE void fetch_to_l1(const void *p, const int n_bytes, int64_t ahead) {
    const char *from = (const char *)p + ahead;
    _Pragma("GCC unroll 16")
    for (int o = 0; o < n_bytes; o += 64) __builtin_prefetch(from + o, 0, 3);
}

ALWAYS_INLINE void fetch_to_l2(const void *p, const int n_bytes, int64_t ahead) {
    const char *from = (const char *)p + ahead;
    _Pragma("GCC unroll 16")
    for (int o = 0; o < n_bytes; o += 64) __builtin_prefetch(from + o, 0, 2);
}

/* How a matmul tile asks for weights: not at all, for what is read soon into the L1 cache, or for that
 * and, four times as far on, into the L2 cache. */
enum { FETCH_NONE, FETCH_NEAR, FETCH_TWICE };
enum { FETCH_NEAR_BYTES = 2304, FETCH_FAR_BYTES = 9216 };

/* With many columns there is so much to compute for a block that Zen 4 does not look far enough ahead
 * either (8 columns from memory: 164 GMAC/s instead of 116, 16 columns: 174 instead of 147). */
ALWAYS_INLINE int fetch_of(const int core, const int n_columns) {
    return core == CORE_INTEL ? FETCH_TWICE : n_columns >= 8 ? FETCH_NEAR : FETCH_NONE;
}

/* Ask for the n_bytes at p, as `how`, known when compiling, says, before they are read. */
ALWAYS_INLINE void fetch_ahead(const void *p, const int n_bytes, const int how) {
    if (how != FETCH_NONE) fetch_to_l1(p, n_bytes, FETCH_NEAR_BYTES);
    if (how == FETCH_TWICE) fetch_to_l2(p, n_bytes, FETCH_FAR_BYTES);
}

/* Columns whose products are added side by side */
ALWAYS_INLINE int columns_at_once(const int core, const int n_columns) {
    const int most = core == CORE_INTEL ? 8 : 1;
    return n_columns < most ? n_columns : most;
}

#endif
