"""Strings of a vocabulary: as GGUF files hold them, and as sentencepiece takes them.

In a GGUF file each string stands after its length (uint64, little-endian).

These loops are compiled because opening a model waits for them: a Llama 3 vocabulary has 128k
tokens and 280k merges. `blob` is such a run. `bounds` int64 [n + 1] says where in it each string's
length begins, and where the last string ends.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_Append
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memchr, memcpy

import numpy as np


cdef inline uint64_t length_at(const uint8_t *p) noexcept nogil:
    """A length, read byte by byte: any alignment, any byte order of the machine."""
    cdef uint64_t n = 0
    cdef int i
    for i in range(8):
        n |= <uint64_t>p[i] << (8 * i)
    return n


def find_bounds(const uint8_t[::1] head, Py_ssize_t start, Py_ssize_t n):
    """Walk over n strings of `head` from `start` on.

    head uint8 [n_bytes]  # IN. Returns the bounds, counted from `start`, and where in `head` the
    last string ends. If a length leads out of `head`, the walk ends there: the returned end lies
    behind `head`, and the bounds that were not reached are 0.
    """
    cdef Py_ssize_t n_bytes = head.shape[0], position = start
    cdef uint64_t length
    found = np.zeros(n + 1, np.int64)
    cdef int64_t[::1] bounds = found
    cdef Py_ssize_t i
    for i in range(n):
        if n_bytes - position < 8:
            return found, position + 8
        length = length_at(&head[position])
        position += 8
        if length > <uint64_t>(n_bytes - position):
            return found, position + int(length) + (0 if i + 1 == n else 8)
        position += <Py_ssize_t>length
        bounds[i + 1] = position - start
    return found, position


cdef int check(const uint8_t[::1] blob, const int64_t[::1] bounds) except -1:
    cdef Py_ssize_t i
    if bounds.shape[0] == 0 or bounds[0] < 0 or bounds[bounds.shape[0] - 1] > blob.shape[0]:
        raise ValueError(f"bounds do not lie within {blob.shape[0]} bytes of strings")
    for i in range(bounds.shape[0] - 1):
        if bounds[i + 1] - bounds[i] < 8:
            raise ValueError(f"string {i} has {bounds[i + 1] - bounds[i]} bytes, but its length "
                             f"alone takes 8")
    return 0


def split(const uint8_t[::1] blob, const int64_t[::1] bounds):
    """The strings, list[bytes]. blob, bounds  # IN. ValueError for bounds that are not `blob`'s."""
    check(blob, bounds)
    cdef const char *p = <const char *>&blob[0] if blob.shape[0] else NULL
    cdef Py_ssize_t i
    strings = []
    for i in range(bounds.shape[0] - 1):
        PyList_Append(strings, PyBytes_FromStringAndSize(p + bounds[i] + 8,
                                                         bounds[i + 1] - bounds[i] - 8))
    return strings


def split_pairs(const uint8_t[::1] blob, const int64_t[::1] bounds):
    """The two texts around the first space of each string, list[tuple[str, str]].

    A space at the very beginning is part of the first text. Strings that are not two texts, or not
    UTF-8, are left out. blob, bounds  # IN. ValueError for bounds that are not of `blob`.
    """
    check(blob, bounds)
    cdef const char *p
    cdef const char *space
    cdef Py_ssize_t i, n, at
    pairs = []
    for i in range(bounds.shape[0] - 1):
        n = bounds[i + 1] - bounds[i] - 8
        if n < 3:
            continue
        p = <const char *>&blob[bounds[i] + 8]
        space = <const char *>memchr(p + 1, c" ", n - 1)
        if space == NULL:
            continue
        at = space - p
        if at == n - 1:
            continue
        try:
            pair = (PyUnicode_DecodeUTF8(p, at, NULL),
                    PyUnicode_DecodeUTF8(space + 1, n - at - 1, NULL))
        except UnicodeDecodeError:
            continue
        PyList_Append(pairs, pair)
    return pairs


def hashes(const uint8_t[::1] blob, const int64_t[::1] bounds):
    """A number of 64 bits for each string, the same for the same string (FNV-1a): uint64 [n].

    blob, bounds  # IN. ValueError for bounds that are not of `blob`. Source: G. Fowler, L. C. Noll,
    K.-P. Vo, D. Eastlake, "The FNV Non-Cryptographic Hash Algorithm", IETF draft.
    """
    check(blob, bounds)
    cdef Py_ssize_t i, j
    cdef uint64_t h
    numbers = np.empty(bounds.shape[0] - 1, np.uint64)
    cdef uint64_t[::1] out = numbers
    for i in range(bounds.shape[0] - 1):
        h = 0xcbf29ce484222325ULL
        for j in range(bounds[i] + 8, bounds[i + 1]):
            h = (h ^ blob[j]) * 0x100000001b3ULL
        out[i] = h
    return numbers


cdef inline Py_ssize_t varint_size(uint64_t n) noexcept nogil:
    cdef Py_ssize_t size = 1
    while n >= 0x80:
        n >>= 7
        size += 1
    return size


cdef inline char *put_varint(char *p, uint64_t n) noexcept nogil:
    """Write 7 bits a byte, the lowest first; all but the last byte have their highest bit set."""
    while n >= 0x80:
        p[0] = <char>(n & 0x7F | 0x80)
        p += 1
        n >>= 7
    p[0] = <char>n
    return p + 1


def sentencepiece_pieces(list names, const float[::1] scores, const uint8_t[::1] types):
    """The pieces of a sentencepiece model, serialized: `ModelProto` with its field `pieces` alone.

    names: list[bytes], each UTF-8; scores float32 [n], types uint8 [n], less than 128  # IN. Making
    them one by one with protobuf takes 1.8 us a piece. Sources: sentencepiece_model.proto of
    https://github.com/google/sentencepiece (a piece has the fields 1 text, 2 score, 3 type), and
    https://protobuf.dev/programming-guides/encoding.
    """
    cdef Py_ssize_t n = len(names), i, length, n_bytes = 0
    if scores.shape[0] != n or types.shape[0] != n:
        raise ValueError(f"{n} names, {scores.shape[0]} scores and {types.shape[0]} types")
    cdef bytes name
    for i in range(n):
        name = names[i]
        length = PyBytes_GET_SIZE(name)
        length += 1 + varint_size(length) + 5 + 2
        n_bytes += 1 + varint_size(length) + length
    cdef bytes out = PyBytes_FromStringAndSize(NULL, n_bytes)
    cdef char *p = PyBytes_AS_STRING(out)
    cdef uint32_t bits
    cdef int k
    for i in range(n):
        name = names[i]
        length = PyBytes_GET_SIZE(name)
        p[0] = 0x0A  # field 1 of the model, of known length
        p = put_varint(p + 1, 1 + varint_size(length) + length + 5 + 2)
        p[0] = 0x0A  # field 1 of the piece, of known length
        p = put_varint(p + 1, length)
        memcpy(p, PyBytes_AS_STRING(name), length)
        p += length
        p[0] = 0x15  # field 2, of 32 bits, little-endian
        memcpy(&bits, &scores[i], 4)
        for k in range(4):
            p[1 + k] = <char>(bits >> (8 * k) & 0xFF)
        p[5] = 0x18  # field 3, a varint
        p[6] = <char>(types[i] & 0x7F)
        p += 7
    return out
