"""Weights to blocks of fewer bits, by several threads; see simd/quantize.h and quantize.py."""

from cython.parallel cimport prange
from libc.stdint cimport int64_t, uint8_t

cdef extern from "simd/quantize.h" nogil:
    enum: FROM_F32, FROM_F16, FROM_BF16, TO_F16, TO_Q4_0, TO_Q8_0, TO_Q6_K
    enum: NOT_FINITE, TOO_LARGE
    ctypedef int (*quantize_weights_fn)(const uint8_t *, int, int64_t, int,
                                        uint8_t *) noexcept nogil
    quantize_weights_fn quantizer_of(const char *) noexcept

cdef enum:
    TASK = 16384  # weights that a thread takes at a time: whole blocks of every type

# name: number, bytes of a weight
_SOURCES = {"F32": (FROM_F32, 4), "F16": (FROM_F16, 2), "BF16": (FROM_BF16, 2)}
# name: number, weights of a block, bytes of a block
_TARGETS = {
    "F16": (TO_F16, 1, 2), "Q4_0": (TO_Q4_0, 32, 18), "Q8_0": (TO_Q8_0, 32, 34),
    "Q6_K": (TO_Q6_K, 256, 210),
}  # fmt: skip


def quantize_into(const uint8_t[::1] weights, str source, uint8_t[::1] out, str target, str isa,
                  int n_threads=1):
    """Round weights of type `source` (F32, F16, BF16) to `target` (F16, Q4_0, Q8_0, Q6_K).

    weights   uint8 [n_weights * bytes of a weight]   # IN  rows of whole blocks, one after another
    out       uint8 [n_weights / block * block bytes] # OUT

    Returns None, or the fault of the weights as the end of a sentence. With None, `out` has the
    bits of ggml's reference quantizers. Raises ValueError for sizes that do not belong together.
    """
    from_c, n_bytes = _SOURCES[source]
    to_c, n_block, block_bytes = _TARGETS[target]
    cdef int64_t n = weights.shape[0] // n_bytes
    if n_threads < 1:
        raise ValueError(f"{n_threads} threads, expected at least 1")
    if weights.shape[0] % n_bytes or n % n_block or out.shape[0] != n // n_block * block_bytes:
        raise ValueError(
            f"{weights.shape[0]} bytes of {source} into {out.shape[0]} bytes of {target}, expected "
            f"{n // n_block * block_bytes} bytes for whole blocks of {n_block} weights"
        )
    if n == 0:
        return None
    cdef const uint8_t *p = &weights[0]
    cdef uint8_t *q = &out[0]
    cdef bytes name = isa.encode()
    cdef quantize_weights_fn quantize = quantizer_of(name)
    if quantize == NULL:
        raise ValueError(f"instruction set {isa!r} is unknown")
    cdef int type_from = from_c, type_to = to_c, status = 0
    cdef int64_t step_from = n_bytes * TASK, step_to = TASK // n_block * block_bytes
    cdef Py_ssize_t i, n_tasks = (n + TASK - 1) // TASK
    for i in prange(n_tasks, nogil=True, schedule="dynamic", num_threads=n_threads):
        status |= quantize(p + i * step_from, type_from, min(<int64_t>TASK, n - i * TASK), type_to,
                           q + i * step_to)
    if status & NOT_FINITE:
        return "NaN or infinite weights"
    if status & TOO_LARGE:
        return f"weights too large for the 16-bit floats of {target}"
    return None
