"""Probes of the machine, run by several threads at once; see simd/machine.h and machine.py."""

from cython.parallel cimport parallel, prange, threadid
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

cdef extern from "simd/machine.h" nogil:
    enum: READ_STEP, MULTIPLY_STEP, WEIGHT
    ctypedef struct probes_t:
        uint64_t (*read)(const uint8_t *, int64_t) noexcept nogil
        uint32_t (*multiply)(int64_t, int) noexcept nogil
        float (*multiply_floats)(int64_t, float) noexcept nogil
    const probes_t *probes_of(const char *) noexcept
    int64_t thread_number() noexcept

STEP_PRODUCTS = MULTIPLY_STEP
STEP_WEIGHT = WEIGHT
STEP_BYTES = READ_STEP


cdef int check_team(int n_threads) except -1:
    if n_threads < 1:
        raise ValueError(f"{n_threads} threads, expected at least 1")


cdef const probes_t *named_probes(str isa) except NULL:
    cdef bytes name = isa.encode()
    cdef const probes_t *probes = probes_of(name)
    if probes == NULL:
        raise ValueError(f"instruction set {isa!r} is unknown")
    return probes


def fill(uint8_t[::1] memory, int n_threads):
    """Write memory (uint8 [n]  # OUT), each part by one thread, so that the system provides it."""
    check_team(n_threads)
    cdef int64_t n = memory.shape[0], part = (n + n_threads - 1) // n_threads
    cdef uint8_t *p = &memory[0]
    cdef Py_ssize_t i
    for i in prange(n_threads, nogil=True, schedule="static", chunksize=1, num_threads=n_threads):
        memset(p + min(n, i * part), 1, min(n, (i + 1) * part) - min(n, i * part))


def read(const uint8_t[::1] memory, str isa, int n_threads):
    """Read memory once, one run a thread, with the instructions of `isa`.

    memory uint8 [n]  # IN, n a multiple of 256. Returns the sum of its 64-bit words, modulo 2^64.
    The processor must have the set: ask `_kernels.supported_isas()`.
    """
    check_team(n_threads)
    cdef const probes_t *probes = named_probes(isa)
    cdef int64_t n = memory.shape[0], part
    if n == 0 or n % READ_STEP:
        raise ValueError(f"{n} bytes of memory, expected a multiple of {READ_STEP} above 0")
    part = (n // READ_STEP + n_threads - 1) // n_threads * READ_STEP
    cdef const uint8_t *p = &memory[0]
    cdef uint64_t total = 0
    cdef Py_ssize_t i
    for i in prange(n_threads, nogil=True, schedule="static", chunksize=1, num_threads=n_threads):
        total += probes.read(p + min(n, i * part), min(n, (i + 1) * part) - min(n, i * part))
    return total


def multiply(int64_t n_steps, int activation, str isa, int n_threads):
    """Do n_steps * STEP_PRODUCTS products of bytes in each thread, with the instructions of `isa`.

    Returns their sum, STEP_WEIGHT * activation each, modulo 2^32. `activation` is 1 to 100.
    """
    check_team(n_threads)
    cdef const probes_t *probes = named_probes(isa)
    if not 1 <= activation <= 100:
        raise ValueError(f"activation is {activation}, expected 1 to 100")
    cdef uint32_t total = 0
    cdef Py_ssize_t _i
    for _i in prange(n_threads, nogil=True, schedule="static", chunksize=1, num_threads=n_threads):
        total += probes.multiply(n_steps, activation)
    return total


def multiply_floats(int64_t n_steps, float x, str isa, int n_threads):
    """Do n_steps * STEP_PRODUCTS products 1 * x in each thread, with the instructions of `isa`.

    Returns their sum as float32 gives it: exact while it stays a whole number below 2^24.
    """
    check_team(n_threads)
    cdef const probes_t *probes = named_probes(isa)
    cdef double total = 0
    cdef Py_ssize_t _i
    for _i in prange(n_threads, nogil=True, schedule="static", chunksize=1, num_threads=n_threads):
        total += probes.multiply_floats(n_steps, x)
    return total


def thread_ids(int n_threads):
    """The system's numbers of the `n_threads` threads that run kernels, the caller's first.

    Empty where the system does not tell.
    """
    check_team(n_threads)
    ids = memoryview(bytearray(8 * n_threads)).cast("q")
    cdef int64_t[::1] view = ids
    cdef int64_t *p = &view[0]
    with nogil, parallel(num_threads=n_threads):
        p[threadid()] = thread_number()
    return ids.tolist() if all(ids) else []
