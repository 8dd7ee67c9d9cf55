"""Chunks in files: a document's keys and values, computed once, for any place in any context.

A safetensors file with the tensors
    keys, values  uint8 [n_layers, n_blocks, bytes]: blocks of 32 positions as they lie in the
                  cache's memory, [kv_head][32 slots][head_dim] in the type of the cache, not
                  rotated. They begin at whole pages of the file, so that they can be mapped
    tokens        int32 [n_tokens]
    sink          int32 [0 or 1]: BOS, if the tokens were computed behind it
    segments      int32 [n_segments, 3], of sink and tokens; see `lariat.formats.segments`
and, as metadata, the signature of the cache that wrote them, a checksum, and what else the library
keeps there.
"""

from __future__ import annotations

import mmap
import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from lariat.errors import ContextError
from lariat.formats import safetensors_io
from lariat.formats.segments import within_blocks
from lariat.os_memory import allocate

_FORMAT = "lariat-chunk"
_WHAT = "a chunk"
TENSORS: Mapping[str, tuple[str, ...]] = {
    "keys": ("U8",),
    "values": ("U8",),
    "tokens": ("I32",),
    "sink": ("I32",),
    "segments": ("I32",),
}
"""The tensors of a file, in order, each with its type."""

_PIECE = 2 << 20  # bytes; all pieces together stay in the processor's last cache
_READERS = 2  # threads, which copy out of the system's cache as fast as one thread hashes
ONLY_RAW = "chunks need the raw cache (--cache raw): a key of the roped cache has its position"


class StoredChunk:
    """A chunk of a library. Its file is mapped.

    tokens    its token ids
    sink      the token before them when they were computed: BOS, or nothing
    segments  int32 [n_segments, 3]: block, first slot, length, of sink and tokens
    keys, values  uint8 [n_layers, n_blocks, bytes], views of the file
    file      the open file, and `offsets`: where in it each tensor begins
    checksum  of all of it
    metadata  of the file, see above; the checksum does not cover it
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open and check it.

        Raises `ContextError` for a file that was cut or altered or is of another version, and
        OSError if there is none.
        """
        self.path = Path(path)
        with safetensors_io.opened(path, _WHAT) as (file, header):
            safetensors_io.check_signature(path, header, _FORMAT, {})
            safetensors_io.check_tensors(path, header, _WHAT, TENSORS)
            _check_shapes(self.path, header)
            mapping = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE)
            self.file = os.fdopen(os.dup(file.fileno()), "rb")
        self._header = header
        self.metadata = header.metadata
        arrays = {}
        for name in TENSORS:
            tensor = header.tensors[name]
            data = np.frombuffer(mapping, np.uint8, tensor.n_bytes, tensor.offset)
            arrays[name] = safetensors_io.view(tensor, data)
        self.offsets = {name: header.tensors[name].offset for name in TENSORS}
        self.keys, self.values = arrays["keys"], arrays["values"]
        self.segments = arrays["segments"]
        with _ReadAhead(self.file.fileno()) as reader:
            self.checksum = safetensors_io.checksum(
                arrays, lambda name, array: reader.read(self.offsets[name], array.nbytes)
            )
        if header.metadata.get("checksum") != self.checksum:
            raise ContextError(f"{path}: is damaged: its contents do not give its checksum")
        self.tokens: list[int] = arrays["tokens"].tolist()
        self.sink: list[int] = arrays["sink"].tolist()

    def check_signature(self, signature: Mapping[str, str]) -> None:
        """Raise `ContextError` if it was made for a cache of another signature."""
        if signature["cache"] != "raw":
            raise ContextError(ONLY_RAW)
        safetensors_io.check_signature(self.path, self._header, _FORMAT, signature)

    @property
    def n_blocks(self) -> int:
        """Blocks of the cache that it takes."""
        return self.keys.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of its keys and values."""
        return self.keys.nbytes + self.values.nbytes

    def __len__(self) -> int:
        return len(self.tokens)


class _ReadAhead:
    """Reads a file with threads, ahead of its user.

    It does not use the mapping: to map all pages and to unmap them again takes longer than a copy.
    """

    def __init__(self, file: int) -> None:
        self._file = file
        self._threads = ThreadPoolExecutor(_READERS)
        self._pieces = allocate((_READERS + 1) * _PIECE).reshape(-1, _PIECE)

    def __enter__(self) -> _ReadAhead:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown()

    def read(self, begin: int, n_bytes: int) -> Iterator[memoryview]:
        """`n_bytes` bytes from `begin` on, in pieces, each valid until the next.

        At the end of the file there are fewer.
        """
        starts = range(begin, begin + n_bytes, _PIECE)

        def read(i: int) -> memoryview:
            piece = self._pieces[i % len(self._pieces), : begin + n_bytes - starts[i]].data
            return piece[: os.preadv(self._file, [piece], starts[i])]

        coming = deque(self._threads.submit(read, i) for i in range(len(starts))[:_READERS])
        for i in range(len(starts)):
            if i + _READERS < len(starts):
                coming.append(self._threads.submit(read, i + _READERS))
            yield coming.popleft().result()


def save(path: Path, signature: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a chunk; the file appears whole or not at all. Raises `ContextError`.

    `arrays` are those of the module's docstring, by name.
    """
    arrays = {name: arrays[name] for name in TENSORS}
    # Keys come first, and begin at a page.
    safetensors_io.save(path, _FORMAT, signature, arrays, mmap.ALLOCATIONGRANULARITY)


def _check_shapes(path: Path, header: safetensors_io.Header) -> None:
    keys, values, tokens, sink, segments = (header.tensors[name].shape for name in TENSORS)
    fits = (
        len(keys) == len(values) == 3
        and keys[:2] == values[:2]
        and len(tokens) == len(sink) == 1
        and len(segments) == 2
        and segments[1] == 3
    )
    if not fits:
        raise ContextError(f"{path}: is damaged: its tensors have other shapes than a chunk's")


def check_fits(chunk: StoredChunk, n_layers: int, bytes_k: int, bytes_v: int) -> None:
    """Raise `ContextError` if the tensors do not fit each other, or a cache of `n_layers` layers.

    bytes_k, bytes_v: of a block's keys and values in one layer. A checksum says that nothing
    changed, not that it was ever right.
    """
    segments = chunk.segments
    fits = (
        chunk.keys.shape == (n_layers, chunk.n_blocks, bytes_k)
        and chunk.values.shape == (n_layers, chunk.n_blocks, bytes_v)
        and int(segments[:, 2].sum()) == len(chunk.sink) + len(chunk)
        and within_blocks(segments, chunk.n_blocks)
    )
    if not fits:
        raise ContextError(f"{chunk.path}: is damaged: its parts do not fit each other")
