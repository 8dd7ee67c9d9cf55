"""Bit masks of tokens: which ones may come next, as libraries of grammars hand them out.

The loop is compiled because every token of a constrained text waits for it. NumPy would unpack the
bits into arrays of 8 times the size first.
"""

from libc.math cimport INFINITY
from libc.stdint cimport uint32_t

cdef uint32_t[32] BITS
cdef int _bit
for _bit in range(32):
    BITS[_bit] = <uint32_t>1 << _bit


cdef void forbid_word(float *logits, uint32_t bits) noexcept nogil:
    """32 tokens, without a branch for each."""
    cdef int i
    for i in range(32):
        logits[i] = logits[i] if bits & BITS[i] else -INFINITY


def forbid(float[::1] logits, const uint32_t[::1] mask):
    """Set the logits of all tokens whose bit is 0 to -inf.

    logits float32 [n_vocab]                # IN OUT
    mask   uint32 [n_vocab / 32, rounded up]  # IN token i is bit i % 32 of word i / 32
    """
    cdef Py_ssize_t n = logits.shape[0], n_whole = n // 32, word, i
    if mask.shape[0] != (n + 31) // 32:
        raise ValueError(f"a mask of {mask.shape[0]} words for {n} tokens")
    with nogil:
        for word in range(n_whole):
            if mask[word] == 0:
                for i in range(32 * word, 32 * word + 32):
                    logits[i] = -INFINITY
            elif mask[word] != 0xFFFFFFFFu:
                forbid_word(&logits[32 * word], mask[word])
        for i in range(32 * n_whole, n):
            if not mask[n_whole] & BITS[i % 32]:
                logits[i] = -INFINITY
