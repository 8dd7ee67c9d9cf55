/* Asking for memory before it is read. */
#ifndef LARIAT_FETCH_H
#define LARIAT_FETCH_H

#include "layout.h"

/* Each asks for n_bytes that stand `ahead` bytes behind p, into one of the caches. */
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

#endif
