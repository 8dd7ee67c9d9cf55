/* Asking for memory before it is read, where a processor does not do so well enough by itself.
 *
 * Which it does is a matter of the maker, not of the instruction set. A Zen 4 core that reads weights
 * for one column has its hardware's prefetch keep up, and loses 3 to 13 % by each form of asking. Cores
 * of Intel's servers read the same weights at 60 to 75 % of what a plain loop gets, and at 90 to 97 %
 * when asked for them into the L2 cache, two pages ahead (docs/kernels.md).
 */
#ifndef LARIAT_FETCH_H
#define LARIAT_FETCH_H

#include "layout.h"

/* Whether tiles of few columns ask for weights; set when a level is selected. */
static int FETCH_NARROW;

/* How a tile asks: not at all, for what is read soon into the L1 cache, for what is read later into the
 * L2 cache. With many columns there is so much to compute for a block that no processor looks far enough
 * ahead (Zen 4, 8 columns from memory: 164 GMAC/s instead of 116, 16 columns: 174 instead of 147). */
enum { FETCH_NONE, FETCH_NEAR, FETCH_FAR };
enum { FETCH_NEAR_BYTES = 2304, FETCH_FAR_BYTES = 6912 };

/* Ask for the n_bytes that are read as far behind p as `how`, known when compiling, says. */
ALWAYS_INLINE void fetch_ahead(const void *p, const int n_bytes, const int how) {
    if (how == FETCH_NONE) return;
    _Pragma("GCC unroll 16")
    for (int o = 0; o < n_bytes; o += 64) {
        if (how == FETCH_NEAR)
            __builtin_prefetch((const char *)p + FETCH_NEAR_BYTES + o, 0, 3);
        else
            __builtin_prefetch((const char *)p + FETCH_FAR_BYTES + o, 0, 2);
    }
}

#endif
