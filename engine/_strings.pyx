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

import collections.abc

import numpy as np

cdef enum:
    MAX_TRIES = 1000  # the longest run of taken slots that is walked; of half a million hashes: 40


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


def ids_of(const uint8_t[::1] blob, const int64_t[::1] bounds):
    """The place of each string by its text, dict[str, int], and the texts that are not UTF-8.

    A text that is there twice has its last place. Bytes that are not UTF-8 become lone surrogates
    ("surrogateescape"). blob, bounds  # IN. ValueError for bounds that are not of `blob`.
    """
    check(blob, bounds)
    cdef const char *p = <const char *>&blob[0] if blob.shape[0] else NULL
    cdef Py_ssize_t i, n
    cdef dict ids = {}
    broken = set()
    for i in range(bounds.shape[0] - 1):
        n = bounds[i + 1] - bounds[i] - 8
        try:
            text = PyUnicode_DecodeUTF8(p + bounds[i] + 8, n, NULL)
        except UnicodeDecodeError:
            text = PyUnicode_DecodeUTF8(p + bounds[i] + 8, n, "surrogateescape")
            broken.add(text)
        ids[text] = i
    return ids, broken


cdef class Pairs:
    """The two texts around the first space of each string: a sequence of tuple[str, str].

    A space at the very beginning is part of the first text. Strings that are not two texts, or not
    UTF-8, are left out. A pair is made when it is asked for: a million small strings that live at
    once would take longer to make and to free than all else here.

    blob, bounds  # IN. ValueError for bounds that are not of `blob`.
    """

    cdef const uint8_t[::1] _blob
    cdef const int64_t[::1] _bounds
    cdef int64_t[::1] _spaces  # [n]: where in `blob` the space of each pair is
    cdef int64_t[::1] _strings  # [n]: which string each pair is made of

    def __init__(self, const uint8_t[::1] blob, const int64_t[::1] bounds):
        check(blob, bounds)
        cdef Py_ssize_t i, j, n, n_pairs = 0
        cdef const char *p
        cdef const char *space
        cdef uint8_t all_bytes
        spaces, strings = np.empty((2, bounds.shape[0] - 1), np.int64)
        self._blob, self._bounds, self._spaces, self._strings = blob, bounds, spaces, strings
        for i in range(bounds.shape[0] - 1):
            n = bounds[i + 1] - bounds[i] - 8
            if n < 3:
                continue
            p = <const char *>&blob[bounds[i] + 8]
            space = <const char *>memchr(p + 1, c" ", n - 1)
            if space == NULL or space - p == n - 1:
                continue
            all_bytes = 0
            for j in range(n):
                all_bytes |= <uint8_t>p[j]
            if all_bytes >= 0x80:
                try:
                    PyUnicode_DecodeUTF8(p, n, NULL)
                except UnicodeDecodeError:
                    continue
            self._spaces[n_pairs] = bounds[i] + 8 + (space - p)
            self._strings[n_pairs] = i
            n_pairs += 1
        self._spaces, self._strings = spaces[:n_pairs], strings[:n_pairs]

    def __len__(self):
        return self._spaces.shape[0]

    def __getitem__(self, Py_ssize_t index):
        """One pair. IndexError outside the sequence."""
        cdef Py_ssize_t n = self._spaces.shape[0]
        if not -n <= index < n:
            raise IndexError(f"index {index} of {n} pairs")
        return self.pair(index + n if index < 0 else index)

    def __iter__(self):
        return _PairIterator(self)

    cdef pair(self, Py_ssize_t i):
        cdef Py_ssize_t start = self._bounds[self._strings[i]] + 8
        cdef Py_ssize_t end = self._bounds[self._strings[i] + 1], space = self._spaces[i]
        cdef const char *p = <const char *>&self._blob[0]
        return (PyUnicode_DecodeUTF8(p + start, space - start, NULL),
                PyUnicode_DecodeUTF8(p + space + 1, end - space - 1, NULL))


cdef class _PairIterator:
    cdef Pairs _pairs
    cdef Py_ssize_t _next

    def __init__(self, Pairs pairs):
        self._pairs = pairs

    def __iter__(self):
        return self

    def __next__(self):
        if self._next == self._pairs._spaces.shape[0]:
            raise StopIteration
        self._next += 1
        return self._pairs.pair(self._next - 1)


collections.abc.Sequence.register(Pairs)


def may_repeat(const uint8_t[::1] blob, const int64_t[::1] bounds):
    """False if no two strings are the same.

    True says that two are, or have the same hash of 64 bits (FNV-1a), or that the hashes are not
    spread evenly, as those of a forged file. blob, bounds  # IN. ValueError for bounds that are not
    of `blob`. Source: G. Fowler, L. C. Noll, K.-P. Vo, D. Eastlake, "The FNV Non-Cryptographic Hash
    Algorithm", IETF draft.
    """
    check(blob, bounds)
    cdef Py_ssize_t i, j, n = bounds.shape[0] - 1, n_slots = 16, slot, n_tries
    cdef uint64_t h
    while n_slots < 2 * n:
        n_slots *= 2
    cdef uint64_t[::1] slots = np.zeros(n_slots, np.uint64)  # a hash each, 0: free
    for i in range(n):
        h = 0xcbf29ce484222325ULL
        for j in range(bounds[i] + 8, bounds[i + 1]):
            h = (h ^ blob[j]) * 0x100000001b3ULL
        h += h == 0
        slot = (h ^ (h >> 32)) & (n_slots - 1)
        n_tries = 0
        while slots[slot]:
            n_tries += 1
            if slots[slot] == h or n_tries == MAX_TRIES:
                return True
            slot = (slot + 1) & (n_slots - 1)
        slots[slot] = h
    return False


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
