"""Weights to blocks of fewer bits, by several threads; see simd/quantize.h and quantize.py."""

import numpy as np

from cython.parallel cimport prange
from libc.stdint cimport int64_t, uint8_t

cdef extern from "simd/grids.h":
    const uint8_t[256][8] GRID_IQ2_XXS
    const uint8_t[512][8] GRID_IQ2_XS
    const uint8_t[1024][8] GRID_IQ2_S
    const uint8_t[2048][8] GRID_IQ1_S
    const uint8_t[256][4] GRID_IQ3_XXS
    const uint8_t[512][4] GRID_IQ3_S

cdef extern from "simd/quantize.h" nogil:
    enum: FROM_F32, FROM_F16, FROM_BF16
    enum:
        TO_F16, TO_Q4_0, TO_Q4_1, TO_Q5_0, TO_Q5_1, TO_Q8_0, TO_Q2_K, TO_Q3_K, TO_Q4_K, TO_Q5_K
        TO_Q6_K, TO_IQ4_NL, TO_IQ4_XS, TO_MXFP4
    enum: NOT_FINITE, TOO_LARGE
    ctypedef int (*quantize_weights_fn)(const uint8_t *, int, int64_t, int, uint8_t *,
                                        const float *, int64_t) noexcept nogil
    quantize_weights_fn quantizer_of(const char *) noexcept

cdef enum:
    TASK = 16384  # weights that a thread takes at a time: whole blocks of every type

# name: number, bytes of a weight
_SOURCES = {"F32": (FROM_F32, 4), "F16": (FROM_F16, 2), "BF16": (FROM_BF16, 2)}
# name: number, weights of a block, bytes of a block
_TARGETS = {
    "F16": (TO_F16, 1, 2),
    "Q4_0": (TO_Q4_0, 32, 18),
    "Q4_1": (TO_Q4_1, 32, 20),
    "Q5_0": (TO_Q5_0, 32, 22),
    "Q5_1": (TO_Q5_1, 32, 24),
    "Q8_0": (TO_Q8_0, 32, 34),
    "Q2_K": (TO_Q2_K, 256, 84),
    "Q3_K": (TO_Q3_K, 256, 110),
    "Q4_K": (TO_Q4_K, 256, 144),
    "Q5_K": (TO_Q5_K, 256, 176),
    "Q6_K": (TO_Q6_K, 256, 210),
    "IQ4_NL": (TO_IQ4_NL, 32, 18),
    "IQ4_XS": (TO_IQ4_XS, 256, 136),
    "MXFP4": (TO_MXFP4, 32, 17),
}


def targets():
    """Names of the types that `quantize_into` can make."""
    return tuple(_TARGETS)


cdef bytes _points(const uint8_t *points, int64_t n):
    return points[:n]


# name: digits of each point, bytes of all
_GRIDS = {
    "IQ2_XXS": (8, _points(&GRID_IQ2_XXS[0][0], sizeof(GRID_IQ2_XXS))),
    "IQ2_XS": (8, _points(&GRID_IQ2_XS[0][0], sizeof(GRID_IQ2_XS))),
    "IQ2_S": (8, _points(&GRID_IQ2_S[0][0], sizeof(GRID_IQ2_S))),
    "IQ1_S": (8, _points(&GRID_IQ1_S[0][0], sizeof(GRID_IQ1_S))),
    "IQ3_XXS": (4, _points(&GRID_IQ3_XXS[0][0], sizeof(GRID_IQ3_XXS))),
    "IQ3_S": (4, _points(&GRID_IQ3_S[0][0], sizeof(GRID_IQ3_S))),
}


def grid(str name):
    """The points of a type's grid, uint8 [n_points, 8 or 4]: digits that stand for magnitudes.

    IQ1_M has the points of IQ1_S. Raises KeyError for a type without a grid.
    """
    n_digits, points = _GRIDS[name]
    return np.frombuffer(points, np.uint8).reshape(-1, n_digits)


def quantize_into(const uint8_t[::1] weights, str source, uint8_t[::1] out, str target, str isa,
                  int n_threads=1, const float[::1] importance=None):
    """Round weights of type `source` (F32, F16, BF16) to `target`, one of `targets()`.

    weights     uint8 [n_weights * bytes of a weight]   # IN  rows of whole blocks in turn
    out         uint8 [n_weights / block * block bytes] # OUT
    importance  float32 [n_cols] or None                # IN  what errors of a column are
                multiplied by; the weights are whole rows then. F16, Q8_0 and MXFP4 do not ask.

    Returns None, or the fault of the weights as the end of a sentence. With None, `out` has the
    bits of ggml's reference quantizers. Raises ValueError for sizes that do not belong together.
    """
    from_c, n_bytes = _SOURCES[source]
    to_c, n_block, block_bytes = _TARGETS[target]
    cdef int64_t n = weights.shape[0] // n_bytes, n_cols = 1, step = TASK
    if n_threads < 1:
        raise ValueError(f"{n_threads} threads, expected at least 1")
    if weights.shape[0] % n_bytes or n % n_block or out.shape[0] != n // n_block * block_bytes:
        raise ValueError(
            f"{weights.shape[0]} bytes of {source} into {out.shape[0]} bytes of {target}, expected "
            f"{n // n_block * block_bytes} bytes for whole blocks of {n_block} weights"
        )
    cdef const float *worth = NULL
    if importance is not None and target not in ("F16", "Q8_0", "MXFP4"):
        n_cols = importance.shape[0]
        if n_cols < 1 or n_cols % n_block or n % n_cols:
            raise ValueError(
                f"an importance of {n_cols} columns, expected the length of rows of {target}, of "
                f"which there are whole ones in {n} weights"
            )
        worth, step = &importance[0], max(1, TASK // n_cols) * n_cols
    if n == 0:
        return None
    cdef const uint8_t *p = &weights[0]
    cdef uint8_t *q = &out[0]
    cdef bytes name = isa.encode()
    cdef quantize_weights_fn quantize = quantizer_of(name)
    if quantize == NULL:
        raise ValueError(f"instruction set {isa!r} is unknown")
    cdef int type_from = from_c, type_to = to_c, status = 0
    cdef int64_t step_from = n_bytes * step, step_to = step // n_block * block_bytes
    cdef Py_ssize_t i, n_tasks = (n + step - 1) // step
    for i in prange(n_tasks, nogil=True, schedule="dynamic", num_threads=n_threads):
        status |= quantize(p + i * step_from, type_from, min(step, n - i * step), type_to,
                           q + i * step_to, worth, n_cols)
    if status & NOT_FINITE:
        return "NaN or infinite weights"
    if status & TOO_LARGE:
        return f"weights too large for the 16-bit floats of {target}"
    return None
