"""Safetensors files of Lariat: contexts, chunks of a library, predictions.

They share a header, a version, a checksum of their contents and the signature of the cache that
wrote them. `layout` says how a file begins, `save` writes one, `opened` reads the header of one.
Readers then call `check_signature`, `check_tensors` and `read`.

A signature is what two caches must have in common to understand each other's keys and values:
model, cache strategy, types and RoPE. See `lariat.LLM.signature`.

Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash
from lariat.errors import ContextError, LariatError, quote
from lariat.formats.atomic import written_beside
from safetensors import SafetensorError, safe_open

VERSION = "3"
"""Of all formats here; 1 had no RoPE settings and another checksum."""

_DTYPES: dict[str, np.dtype[Any]] = {
    "U8": np.dtype(np.uint8),
    "U16": np.dtype(np.uint16),
    "I32": np.dtype(np.int32),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_CHECKED_AT_ONCE = 64 << 20  # bytes between two looks for Ctrl-C
_SIGNATURE_NAMES = {
    "version": "format version",
    "model": "model (fingerprint)",
    "cache": "cache strategy",
    "type_k": "type of keys",
    "type_v": "type of values",
    "rope": "RoPE",
}


class StoredTensor(NamedTuple):
    """Place, type and shape of a tensor in a file."""

    dtype: str  # the format's name of it, such as F16
    shape: tuple[int, ...]
    offset: int  # of the first byte, from the start of the file
    n_bytes: int


class Header(NamedTuple):
    """Metadata and tensors of a file."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, StoredTensor]


class Layout(NamedTuple):
    """The beginning of a file to write, and the places of its tensors."""

    head: bytes  # everything before the data
    offsets: Mapping[str, int]  # where each tensor begins, from the start of the file
    n_bytes: int  # of the whole file


def layout(
    format: str,
    metadata: Mapping[str, str],
    tensors: Mapping[str, tuple[npt.DTypeLike, tuple[int, ...]]],
    alignment: int = 8,
) -> Layout:
    """Place tensors of these types and shapes one after the other.

    The first begins at a multiple of `alignment` bytes.
    """
    header: dict[str, object] = {"__metadata__": {"format": format, "version": VERSION, **metadata}}
    begins: dict[str, int] = {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        begins[name] = end
        end += np.dtype(dtype).itemsize * math.prod(shape)
        header[name] = {
            "dtype": _NAMES[np.dtype(dtype)],
            "shape": list(shape),
            "data_offsets": [begins[name], end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % alignment)
    head = len(text).to_bytes(8, "little") + text
    offsets = {name: len(head) + begin for name, begin in begins.items()}
    return Layout(head, offsets, len(head) + end)


def save(
    path: Path,
    format: str,
    metadata: Mapping[str, str],
    arrays: Mapping[str, np.ndarray],
    alignment: int = 8,
) -> None:
    """Write arrays with their checksum; the file appears whole or not at all.

    `alignment` as for `layout`. Raises `ContextError`.
    """
    metadata = {**metadata, "checksum": checksum(arrays)}
    shapes = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    head = layout(format, metadata, shapes, alignment).head
    with written_beside(path, ContextError) as beside, open(beside, "wb") as file:
        file.write(head)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).data)


@contextmanager
def opened(
    path: str | os.PathLike[str], what: str, error: type[LariatError] = ContextError
) -> Iterator[tuple[BinaryIO, Header]]:
    """Open a file that should be `what` ("a chunk"), and read its header.

    The safetensors library checks the header. Raises `error` for a damaged file, and OSError if
    there is none.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise error(f"{path}: is not a regular file, expected {what}")
    with open(path, "rb") as file:
        try:
            with safe_open(path, framework="np") as checked:
                metadata = checked.metadata() or {}
            header = _read_header(file, metadata)
        except (SafetensorError, ValueError, KeyError, TypeError) as problem:
            reason = quote(str(problem), 200)
            raise error(f"{path}: is damaged, or not {what}: {reason}") from problem
        yield file, header


def _read_header(file: BinaryIO, metadata: Mapping[str, str]) -> Header:
    start = 8 + int.from_bytes(file.read(8), "little")
    tensors = {}
    for name, entry in json.loads(file.read(start - 8)).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            dtype, shape = entry["dtype"], tuple(entry["shape"])
            # The library has checked this. It may have understood a key that is there twice in
            # another way.
            if dtype in _DTYPES and end - begin != _DTYPES[dtype].itemsize * math.prod(shape):
                raise ValueError(f"tensor {name!r} has another size than its shape")
            tensors[name] = StoredTensor(dtype, shape, start + begin, end - begin)
    return Header(metadata, tensors)


def check_signature(
    path: str | os.PathLike[str],
    header: Header,
    format: str,
    signature: Mapping[str, str],
    error: type[LariatError] = ContextError,
) -> None:
    """Raise `error` if a file is of another format, version or `signature`; it says which."""
    metadata = header.metadata
    if metadata.get("format") != format:
        raise error(f"{path}: is a safetensors file, but not a {format}")
    for key, expected in {"version": VERSION, **signature}.items():
        found = metadata.get(key, "")
        if found != expected:
            raise error(
                f"{path}: was saved with another {_SIGNATURE_NAMES.get(key, key)}: "
                f"{quote(found)}, expected {expected!r}"
            )


def check_tensors(
    path: str | os.PathLike[str],
    header: Header,
    what: str,
    expected: Mapping[str, tuple[str, ...]],
    error: type[LariatError] = ContextError,
) -> None:
    """Raise `error` unless a file has exactly the tensors `expected`, each of one of its types."""
    if header.tensors.keys() != expected.keys():
        raise error(f"{path}: is damaged: it has other tensors than {what}")
    if any(header.tensors[name].dtype not in dtypes for name, dtypes in expected.items()):
        raise error(f"{path}: is damaged: its tensors are of other types")


def view(tensor: StoredTensor, data: npt.NDArray[np.uint8]) -> np.ndarray:
    """The bytes of a tensor, uint8 [n_bytes], as an array of its type and shape."""
    return data.view(_DTYPES[tensor.dtype]).reshape(tensor.shape)


def read(file: BinaryIO, tensor: StoredTensor) -> np.ndarray:
    """A tensor of a file. Raises ValueError if the file has become shorter."""
    data = np.empty(tensor.n_bytes, np.uint8)
    file.seek(tensor.offset)
    if file.readinto(data) != tensor.n_bytes:  # type: ignore[attr-defined]
        raise ValueError("it was cut short while it was read")
    return view(tensor, data)


def _pieces_of(name: str, array: np.ndarray) -> Iterator[memoryview]:
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    for at in range(0, len(data), _CHECKED_AT_ONCE):
        yield data[at : at + _CHECKED_AT_ONCE].data


def checksum(
    arrays: Mapping[str, np.ndarray],
    pieces_of: Callable[[str, np.ndarray], Iterable[memoryview]] = _pieces_of,
) -> str:
    """XXH3 of names, shapes, types and contents. It finds accidents, not forgery.

    A file is checked whenever it is opened, so the hash has to keep up with memory.
    `pieces_of` gives the bytes of an array of that name; each piece is valid until the next.
    """
    h = xxhash.xxh3_128()
    for name, array in arrays.items():
        h.update(f"{name} {array.shape} {array.dtype}".encode())
        for piece in pieces_of(name, array):
            h.update(piece)
    return h.hexdigest()
