"""Contexts in files: tokens, positions, keys and values as a safetensors file.

Format: https://huggingface.co/docs/safetensors, tensors
    tokens        int32 [n_tokens]
    segments      int32 [n_segments, 3]: block (counted from 0), first slot, length; attention sums
                  segment by segment, so the same ones give the same bits again
    keys, values  [n_layers, n_tokens, n_kv_heads, head_dim], f16 or f32 as in the cache; the pairs
                  that are rotated are dims i and i + head_dim / 2. Quantized ones as bytes, by
                  channel of whole blocks, in which tokens that were deleted may still stand: see
                  `lariat.cache.kv_storage.Stored`
    open          uint8 [n_blocks], by channel only: 1 for blocks that are f16 still
and, as metadata, what a cache must have in common with the one that wrote them.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from lariat.cache.blocks import within_blocks
from lariat.errors import ContextError, quote
from lariat.formats import atomic
from lariat.formats.gguf import GGUFFile, StringArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

VERSION = "2"  # 1 had no RoPE settings, and another checksum
_FORMAT = "lariat-context"
_SAMPLE = 4096  # bytes of each tensor that go into a model's fingerprint
AT_ONCE = 64 << 20  # bytes that are read between two looks for Ctrl-C
_TENSORS = ("tokens", "segments", "keys", "values", "open")
_DTYPES = {"I32", "F16", "F32", "U8"}


class Saved(NamedTuple):
    """What a file holds; see the module's docstring for the shapes."""

    tokens: np.ndarray
    segments: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    open: np.ndarray


def fingerprint(gguf: GGUFFile) -> str:
    """A hash of the metadata, and of every tensor's shape, type and first 4 KiB.

    It tells models apart that were trained, or quantized, differently, without reading them whole.
    """
    h = hashlib.blake2b(digest_size=16)
    for key, value in sorted(gguf.metadata.items()):
        h.update(key.encode() + b"\0")
        for piece in _bytes_of(value):
            h.update(piece)
    for name, info in sorted(gguf.tensors.items()):
        h.update(f"{name} {info.shape} {info.type}".encode())
        some = gguf.data(name, 0, -(-_SAMPLE // info.row_bytes))
        h.update(some.reshape(-1)[:_SAMPLE].tobytes())
    return h.hexdigest()


def save(
    path: str | os.PathLike[str], kind: Mapping[str, str], what: Saved, note: str = ""
) -> None:
    """Write a context; the file appears whole or not at all.

    `kind` is what a reader must have in common: model, cache and types. Raises `ContextError`.
    """
    path = Path(path)
    metadata = {"format": _FORMAT, "version": VERSION, **kind, "checksum": checksum(what._asdict())}
    if note:
        metadata["note"] = note
    with written_beside(path) as beside:
        save_file({k: np.ascontiguousarray(v) for k, v in what._asdict().items()}, beside, metadata)


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """As `atomic.written_beside`, but raises `ContextError` if the file cannot be written."""
    try:
        with atomic.written_beside(path) as beside:
            yield beside
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ContextError(f"{path}: cannot be written: {reason}") from error


def load(path: str | os.PathLike[str], kind: Mapping[str, str]) -> Saved:
    """Read and check a context. Raises `ContextError`, and OSError if there is no such file."""
    _check_regular(path)
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            check_kind(path, metadata, kind, _FORMAT)
            if sorted(file.keys()) != sorted(_TENSORS):
                raise ContextError(f"{path}: is damaged: it holds other tensors than a context has")
            # Of types that NumPy has not, the library cannot even make an error.
            if not {file.get_slice(name).get_dtype() for name in _TENSORS} <= _DTYPES:
                raise ContextError(f"{path}: is damaged: its tensors are of other types")
            what = Saved(*(file.get_tensor(name) for name in _TENSORS))
    except (SafetensorError, KeyError, ValueError) as error:
        if isinstance(error, ContextError):
            raise
        reason = quote(str(error), 200)
        raise ContextError(f"{path}: is damaged, or no saved context: {reason}") from error
    if metadata.get("checksum") != checksum(what._asdict()):
        raise ContextError(f"{path}: is damaged: its contents do not give its checksum")
    _check_shapes(path, what)
    return what


def note(path: str | os.PathLike[str]) -> str:
    """What whoever saved a context wrote along with it, "" if nothing. Errors as for `load`."""
    _check_regular(path)
    try:
        with safe_open(path, framework="np") as file:
            return str((file.metadata() or {}).get("note", ""))
    except (SafetensorError, ValueError) as error:
        raise ContextError(f"{path}: is damaged, or no saved context: {error}") from error


def _check_regular(path: str | os.PathLike[str]) -> None:
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ContextError(f"{path}: is not a regular file, expected a saved context")


def _check_shapes(path: str | os.PathLike[str], what: Saved) -> None:
    """A checksum says that nothing changed, not that it was ever right."""
    tokens, segments = what.tokens, what.segments
    fits = (
        tokens.dtype == segments.dtype == np.int32
        and tokens.ndim == 1
        and segments.ndim == 2
        and segments.shape[1] == 3
        and int(segments[:, 2].sum()) == len(tokens)
        and within_blocks(segments, len(segments))
        and len(np.unique(segments[:, 0])) == int(segments[:, 0].max(initial=-1)) + 1
    )
    if not fits:
        raise ContextError(f"{path}: is damaged: its parts do not fit each other")


def check_kind(
    path: str | os.PathLike[str], metadata: Mapping[str, str], kind: Mapping[str, str], format: str
) -> None:
    """`ContextError` if a file is of another format, version or `kind`, which says which."""
    if metadata.get("format") != format:
        raise ContextError(f"{path}: is a safetensors file, but no {format}")
    wanted = {"version": VERSION, **kind}
    names = {
        "version": "format version",
        "model": "model (fingerprint)",
        "cache": "cache strategy",
        "type_k": "type of keys",
        "type_v": "type of values",
        "rope": "RoPE",
    }
    for key, value in wanted.items():
        found = metadata.get(key, "")
        if found != value:
            raise ContextError(
                f"{path}: was saved with another {names.get(key, key)}: {quote(found)}, "
                f"expected {value!r}"
            )


def _pieces_of(name: str, array: np.ndarray) -> Iterator[memoryview]:
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    for at in range(0, len(data), AT_ONCE):
        yield data[at : at + AT_ONCE].data


def checksum(
    arrays: Mapping[str, np.ndarray],
    pieces_of: Callable[[str, np.ndarray], Iterable[memoryview]] = _pieces_of,
) -> str:
    """XXH3 of names, shapes and contents, which reads memory at its full rate: a file is checked
    whenever it is opened. It tells what was damaged by accident, not what was forged.

    `pieces_of` gives the bytes of an array of that name, each piece valid until the next.
    """
    h = xxhash.xxh3_128()
    for name, array in arrays.items():
        h.update(f"{name} {array.shape} {array.dtype}".encode())
        for piece in pieces_of(name, array):
            h.update(piece)
    return h.hexdigest()


def _bytes_of(value: Any) -> Iterator[bytes]:
    """A metadata value as bytes."""
    if isinstance(value, StringArray):
        yield value.stored
    elif isinstance(value, np.ndarray):
        yield np.ascontiguousarray(value).tobytes()
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _bytes_of(item)
    else:
        yield repr(value).encode()
