"""A chunk in a file: a document's keys and values, computed once, for any place in any context.

Format: https://huggingface.co/docs/safetensors, tensors
    keys, values  uint8 [n_layers, n_blocks, bytes]: the blocks of 32 positions as they lie in the
                  cache's memory, [kv_head][32 slots][head_dim] in the type of the cache, not
                  rotated. They begin at whole pages of the file, so that they can be mapped there
    tokens        int32 [n_tokens]
    sink          int32 [0 or 1]: BOS, if the tokens were computed behind it
    segments      int32 [n_segments, 3]: block (counted from 0), first slot, length, of sink and
                  tokens
and, as metadata, what a cache must have in common with the one that wrote them, and a checksum.
"""

from __future__ import annotations

import json
import mmap
import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
from lariat.cache.blocks import within_blocks
from lariat.errors import ContextError, quote
from lariat.formats.context_file import VERSION, check_kind, checksum, written_beside
from lariat.os_memory import allocate
from safetensors import SafetensorError, safe_open

_FORMAT = "lariat-chunk"
_TENSORS = ("keys", "values", "tokens", "sink", "segments")
_DTYPES = {"U8": np.uint8, "I32": np.int32}
_PIECE = 2 << 20  # bytes; the few pieces there are stay in the processor's last cache
_READERS = 2  # threads, which copy out of the system's cache as fast as one hashes
ONLY_RAW = "chunks need the raw cache (--cache raw): a key of the roped cache has its position"


class StoredChunk:
    """A chunk of a library, its file mapped.

    tokens    its token ids
    sink      what stood before them when they were computed: BOS, or nothing
    segments  int32 [n_segments, 3]: block, first slot, length, of sink and tokens
    keys, values  uint8 [n_layers, n_blocks, bytes], views of the file
    metadata  what a cache must have in common with the one that wrote it, and more
    checksum  of all of it
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open and check it: `ContextError` for a file that was cut or altered, or is of another
        version; OSError if there is none."""
        self.path = Path(path)
        with open(path, "rb") as file:
            self.metadata, header, start = _read_header(self.path, file)
            check_kind(path, self.metadata, {}, _FORMAT)
            self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE)
            self.file = os.fdopen(os.dup(file.fileno()), "rb")
        self.offsets = {}  # of the tensors in the file
        arrays = {}
        for name in _TENSORS:
            begin, end = header[name]["data_offsets"]
            self.offsets[name] = start + begin
            data = np.frombuffer(self._map, np.uint8, end - begin, start + begin)
            arrays[name] = data.view(_DTYPES[header[name]["dtype"]]).reshape(header[name]["shape"])
        self.keys, self.values = arrays["keys"], arrays["values"]
        self.segments = arrays["segments"]
        with _ReadAhead(self.file.fileno()) as reader:
            self.checksum = checksum(
                arrays, lambda name, array: reader.read(self.offsets[name], array.nbytes)
            )
        if self.metadata.get("checksum") != self.checksum:
            raise ContextError(f"{path}: is damaged: its contents do not give its checksum")
        self.tokens: list[int] = arrays["tokens"].tolist()
        self.sink: list[int] = arrays["sink"].tolist()

    def check_kind(self, kind: Mapping[str, str]) -> None:
        """`ContextError` if it was made for a cache of another `kind`, see `LLM.cache_kind`."""
        if kind["cache"] != "raw":
            raise ContextError(ONLY_RAW)
        check_kind(self.path, self.metadata, kind, _FORMAT)

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
    """Reads a file by threads, ahead of who uses it.

    Not through a mapping: to map all pages and to take them off again takes longer than copying.
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
        """So many bytes from `begin` on, in pieces, each valid until the next; fewer at the end of
        the file."""
        starts = range(begin, begin + n_bytes, _PIECE)

        def read(i: int) -> memoryview:
            piece = self._pieces[i % len(self._pieces), : begin + n_bytes - starts[i]].data
            return piece[: os.preadv(self._file, [piece], starts[i])]

        coming = deque(self._threads.submit(read, i) for i in range(len(starts))[:_READERS])
        for i in range(len(starts)):
            if i + _READERS < len(starts):
                coming.append(self._threads.submit(read, i + _READERS))
            yield coming.popleft().result()


def save(path: Path, kind: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a chunk; see the module's docstring for the arrays. The file appears whole or not at
    all. Raises `ContextError`."""
    arrays = {name: arrays[name] for name in _TENSORS}
    metadata = {"format": _FORMAT, "version": VERSION, **kind, "checksum": checksum(arrays)}
    header: dict[str, object] = {"__metadata__": metadata}
    names = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
    at = 0
    for name, array in arrays.items():
        where = [at, at + array.nbytes]
        header[name] = {
            "dtype": names[array.dtype], "shape": list(array.shape), "data_offsets": where
        }  # fmt: skip
        at += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % mmap.ALLOCATIONGRANULARITY)  # keys begin at a page
    with written_beside(path) as beside, open(beside, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).data)


def _read_header(path: Path, file: BinaryIO) -> tuple[dict[str, str], dict[str, dict], int]:
    """Metadata, tensors, and where data begins; the library checks all bounds."""
    try:
        with safe_open(path, framework="np") as checked:
            metadata = checked.metadata() or {}
            found = sorted(checked.keys())
    except (SafetensorError, ValueError) as error:
        raise ContextError(f"{path}: is damaged, or no chunk: {quote(str(error), 200)}") from error
    n = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(n))
    fits = found == sorted(_TENSORS) and all(header[k]["dtype"] in _DTYPES for k in found)
    if fits:
        keys, values, tokens, sink, segments = (header[name]["shape"] for name in _TENSORS)
        fits = (
            len(keys) == len(values) == 3
            and keys[:2] == values[:2]
            and len(tokens) == len(sink) == 1
            and segments[1:] == [3]
            and len(segments) == 2
        )
    if metadata.get("format") == _FORMAT and not fits:
        raise ContextError(f"{path}: is damaged: it holds other tensors than a chunk has")
    return metadata, header, 8 + n


def check_fits(chunk: StoredChunk, n_layers: int, bytes_k: int, bytes_v: int) -> None:
    """`ContextError` if the parts do not fit each other or the cache: a checksum says that nothing
    changed, not that it was ever right."""
    segments = chunk.segments
    fits = (
        chunk.keys.shape == (n_layers, chunk.n_blocks, bytes_k)
        and chunk.values.shape == (n_layers, chunk.n_blocks, bytes_v)
        and int(segments[:, 2].sum()) == len(chunk.sink) + len(chunk)
        and within_blocks(segments, chunk.n_blocks)
    )
    if not fits:
        raise ContextError(f"{chunk.path}: is damaged: its parts do not fit each other")
