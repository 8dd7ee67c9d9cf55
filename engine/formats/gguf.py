"""Reader of GGUF files, versions 2 and 3: header, metadata, tensor table, zero-copy views.

The file is not trusted. Every count, length and offset is read as a Python int, which cannot
overflow, and is compared with the bytes that remain before anything is allocated or a loop starts.
So the limits below bound the time and memory that a file can cost before it is refused.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

A mapped file that is cut short in place can end the process with SIGBUS, as with any mapped file:
replace model files by renaming a new one over them, or read them with `use_mmap=False`.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt
from lariat import _strings
from lariat.errors import GGUFError, quote
from lariat.formats.block_formats import BLOCK, REMOVED_TYPES, GGMLType, row_bytes
from lariat.formats.file_bytes import MappedFile, ReadFile, open_file
from lariat.formats.string_array import StringArray

# Real files stay far below these limits: a vocabulary of 256k tokens with its merges takes 12 MiB.
# They are low enough that a hostile file is refused within 2 seconds and 300 MB.
MAX_HEADER_BYTES = 64 << 20  # everything before the tensor data
_MAX_TEXT_BYTES = 24 << 20  # keys, names and single strings together; decoded they take up to 4x
_MAX_STRINGS = 1 << 21  # elements of all string arrays together
_MAX_ENTRIES = 1 << 16  # metadata entries; also tensors
_MAX_INNER_ARRAYS = 1 << 16  # arrays inside arrays, all together
_MAX_DEPTH = 4  # of arrays inside arrays
_MAX_KEY_BYTES = (1 << 16) - 1  # from the format
_MAX_NAME_BYTES = 64  # of a tensor, from the format
_MAX_DIMS = 4
_MAX_ALIGNMENT = 1 << 21
_MAX_ELEMENTS = (1 << 63) - 1  # of one tensor: what ggml's signed counts can hold

_DEFAULT_ALIGNMENT = 32
_VERSIONS = (2, 3)

# Names of the metadata value types, by number.
_VALUE_TYPES = (
    *("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "bool", "string"),
    *("array", "uint64", "int64", "float64"),
)
_UINT32, _BOOL, _STRING, _ARRAY = 4, 7, 8, 9
_FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f"}
_FORMATS |= {10: "<Q", 11: "<q", 12: "<d"}
_SCALARS = {number: struct.Struct(text) for number, text in _FORMATS.items()}
_DTYPES = {number: np.dtype(_VALUE_TYPES[number]).newbyteorder("<") for number in _FORMATS}
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_TYPES = frozenset(GGMLType)

# Other files that people open by mistake, by their first bytes.
_OTHER_FORMATS = (
    (b"FUGG", "a byte-swapped (big-endian) GGUF file"),
    (b"lmgg", "a GGML file, the format before GGUF"),
    (b"fmgg", "a GGMF file, a format before GGUF"),
    (b"tjgg", "a GGJT file, a format before GGUF"),
    (b"PK\x03\x04", "a zip archive or PyTorch checkpoint"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
    (b"<!DOCTYPE", "a web page"),
    (b"<html", "a web page"),
)


@dataclass(frozen=True)
class TensorInfo:
    """Name, type, shape and place of a tensor in its file."""

    name: str
    shape: tuple[int, ...]  # row-major: the last is the length of a row (GGUF's ne, reversed)
    type: GGMLType
    offset: int  # of the first byte, from the start of the file
    n_bytes: int

    @property
    def n_rows(self) -> int:
        """The product of all dims but the last; 1 for a 1-D tensor."""
        return math.prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        """Bytes of a row as the file has it."""
        return self.n_bytes // self.n_rows


@dataclass(frozen=True)
class UnknownTensor:
    """A tensor whose type ggml did not have when this was written, see `GGUFFile.unknown`."""

    name: str
    shape: tuple[int, ...]  # as in `TensorInfo`
    type: int  # the number in the file
    offset: int  # of the first byte, from the start of the file
    n_bytes: int  # to the next tensor or to the end of the file: at most so many are its own

    @property
    def type_name(self) -> str:
        """The name of a type that was given up, or the number."""
        return REMOVED_TYPES.get(self.type, f"type {self.type}")


class Stamp(NamedTuple):
    """A file of a model, as it was when it was opened."""

    status: os.stat_result
    header: npt.NDArray[np.uint8]  # uint8 [n_header_bytes], metadata and tensor table


class GGUFFile:
    """An open GGUF file.

    `metadata` holds str, int, float and bool, arrays of numbers as read-only NumPy arrays, arrays
    of strings as `StringArray`, and arrays of arrays as lists. It stays valid after `close`.

    `overrides` replace or add metadata (str, int, float or bool) after the file is read. They are
    checked when they are used, like the file's own values. Without `use_mmap` the file is not
    mapped; `data` reads it. A tensor of an unknown type is an error; with `allow_unknown` it stands
    in `unknown`, so that the file can be described.

    Raises `FileNotFoundError`, `PermissionError`, and `GGUFError` for every other reason why the
    file cannot be read.
    """

    path: Path
    version: int
    alignment: int  # bytes; tensors start at multiples of it
    n_bytes: int  # size of the file
    n_header_bytes: int  # of it, before the tensor data
    use_mmap: bool
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    unknown: Mapping[str, UnknownTensor]  # empty unless `allow_unknown`

    def __init__(
        self,
        path: str | os.PathLike[str],
        overrides: Mapping[str, str | int | float | bool] | None = None,
        use_mmap: bool = True,
        allow_unknown: bool = False,
    ) -> None:
        self.path = Path(path)
        self.use_mmap = use_mmap
        self._file: MappedFile | ReadFile | None = open_file(self.path, use_mmap)
        try:
            self.n_bytes = self._file.n_bytes
            cursor = _Cursor(self.path, self._file.head(MAX_HEADER_BYTES), self.n_bytes)
            self.version, n_tensors, n_entries = _read_start(cursor)
            metadata, self._entries = _read_metadata(cursor, n_entries)
            self.alignment = _alignment(cursor, metadata)
            tensors, unknown = _read_tensors(cursor, n_tensors, self.alignment, allow_unknown)
            self.n_header_bytes = self._n_own_header = cursor.position
        except BaseException:
            self.close()
            raise
        self.metadata = MappingProxyType(metadata | dict(overrides or {}))
        self.tensors = MappingProxyType(tensors)
        self.unknown = MappingProxyType(unknown)

    def data(self, name: str, start: int = 0, stop: int | None = None) -> npt.NDArray[np.uint8]:
        """The bytes of a tensor: uint8 [n_rows, row_bytes], read-only, in place if mapped.

        These are all rows of the tensor, or those from `start` to `stop` as in a slice. Without a
        mapping only they are read. The view stays valid after `close`. Raises GGUFError if there
        is no such tensor, ValueError after `close`.
        """
        info, file = self._find(name)
        rows = range(info.n_rows)[start:stop]
        first = info.offset + rows.start * info.row_bytes
        return file.view(first, len(rows) * info.row_bytes).reshape(len(rows), info.row_bytes)

    def entries(self) -> Iterator[tuple[str, bytes]]:
        """Keys of the metadata, each with the bytes of key, type and value in the open file."""
        assert self._file is not None
        for key, (start, end) in self._entries.items():
            yield key, self._file.view(start, end - start).tobytes()

    def stamps(self) -> list[Stamp]:
        """Each file of the model. ValueError after `close`."""
        if self._file is None:
            raise ValueError(f"{self.path}: the file is closed")
        return [Stamp(self._file.status, self._file.view(0, self._n_own_header))]

    def release(self, name: str) -> None:
        """Let the system take back the pages that lie wholly inside a tensor.

        The data stays readable: the pages come back from the file when they are touched.
        """
        info, file = self._find(name)
        file.release(info.offset, info.n_bytes)

    def close(self) -> None:
        """Give up the file. It is unmapped when the last view of it is gone. May be repeated."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _find(self, name: str) -> tuple[TensorInfo, MappedFile | ReadFile]:
        if self._file is None:
            raise ValueError(f"{self.path}: the file is closed")
        info = self.tensors.get(name)
        if info is None:
            raise GGUFError(f"{self.path}: tensor {quote(name)} is missing")
        return info, self._file

    def get_int(
        self,
        key: str,
        default: int | None = None,
        minimum: int | None = None,
        maximum: int | None = None,
    ) -> int:
        """A whole number of the metadata.

        Without the key it is `default`, or a GGUFError if that is None. A value of another type, or
        outside `minimum` to `maximum` (both included), is a GGUFError too.
        """
        value = self._get(key, int, "a whole number", default)
        self._check_range(key, value, minimum, maximum)
        return int(value)

    def get_float(
        self,
        key: str,
        default: float | None = None,
        minimum: float | None = None,
        maximum: float | None = None,
    ) -> float:
        """A finite number of the metadata; whole numbers count. Errors as in `get_int`."""
        value = self._get(key, (int, float), "a number", default)
        if not math.isfinite(value):
            raise GGUFError(f"{self.path}: {key} is {value}, expected a finite number")
        self._check_range(key, value, minimum, maximum)
        return float(value)

    def get_str(self, key: str, default: str | None = None) -> str:
        """A string of the metadata. Errors as in `get_int`."""
        return str(self._get(key, str, "a string", default))

    def get_bool(self, key: str, default: bool | None = None) -> bool:
        """A boolean of the metadata. Errors as in `get_int`."""
        return bool(self._get(key, bool, "true or false", default))

    def _get(self, key: str, types: type | tuple[type, ...], expected: str, default: Any) -> Any:
        if key not in self.metadata:
            if default is None:
                raise GGUFError(f"{self.path}: metadata key {key} is missing, expected {expected}")
            return default
        value = self.metadata[key]
        # True is an int to Python, but not to GGUF.
        if not isinstance(value, types) or (isinstance(value, bool) and types is not bool):
            raise GGUFError(f"{self.path}: {key} is {_describe(value)}, expected {expected}")
        return value

    def _check_range(
        self, key: str, value: float, minimum: float | None, maximum: float | None
    ) -> None:
        low = minimum is None or value >= minimum
        high = maximum is None or value <= maximum
        if low and high:
            return
        if minimum is None:
            expected = f"at most {maximum}"
        elif maximum is None:
            expected = f"at least {minimum}"
        else:
            expected = f"{minimum} to {maximum}"
        raise GGUFError(f"{self.path}: {key} is {value}, expected {expected}")


def _describe(value: Any) -> str:
    """A metadata value in a few words, for errors."""
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(value)
    of = "string" if isinstance(value, StringArray) else getattr(value, "dtype", "array")
    return f"an array of {len(value)} {of}"


class _Cursor:
    """Walks through the header. Every step is checked against the bytes that remain."""

    def __init__(self, path: Path, head: mmap.mmap | bytes, n_bytes: int) -> None:
        self.path = path
        self.head = head  # at least everything that may stand before the tensor data
        self.n_bytes = n_bytes
        self.position = 0
        self.end = min(self.n_bytes, MAX_HEADER_BYTES)
        self.n_text = 0
        self.n_strings = 0
        self.n_inner_arrays = 0

    def fail(self, problem: str) -> NoReturn:
        raise GGUFError(f"{self.path}: {problem}") from None

    def need(self, n: int, what: str) -> int:
        """Step over `n` bytes, and return where they start."""
        start = self.position
        if n > self.end - start:
            if n <= self.n_bytes - start:
                self.fail(
                    f"{what} reaches to byte {start + n}, "
                    f"expected at most {MAX_HEADER_BYTES} bytes before the tensor data"
                )
            self.fail(
                f"{what} needs {n} bytes at byte {start}, found {self.n_bytes - start} before "
                f"the end; the file is truncated or damaged"
            )
        self.position = start + n
        return start

    def u32(self, what: str) -> int:
        return int(_U32.unpack_from(self.head, self.need(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack_from(self.head, self.need(8, what))[0])

    def take(self, n: int, what: str) -> bytes:
        start = self.need(n, what)
        return self.head[start : start + n]

    def text(self, what: str) -> bytes:
        """A string: its uint64 length, then its bytes."""
        n = self.u64(f"the length of {what}")
        self.n_text += n
        if self.n_text > _MAX_TEXT_BYTES and n <= self.end - self.position:
            self.fail(
                f"{what} brings single strings to {self.n_text} bytes, "
                f"expected at most {_MAX_TEXT_BYTES}"
            )
        return self.take(n, what)

    def identifier(self, what: str, maximum: int) -> str:
        """A key or a name: not empty, at most `maximum` bytes, UTF-8."""
        raw = self.text(what)
        if not raw:
            self.fail(f"{what} is empty, expected at least 1 byte")
        if len(raw) > maximum:
            start = quote(raw[:64].decode("utf-8", "replace"))
            self.fail(f"{what}, {start}..., has {len(raw)} bytes, expected at most {maximum}")
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what}, {quote(raw.decode('utf-8', 'replace'))}, is not UTF-8, as expected")

    def value(self, value_type: int, what: str, depth: int = 0) -> Any:
        """One metadata value of the type with this number."""
        scalar = _SCALARS.get(value_type)
        if scalar is not None:
            return scalar.unpack_from(self.head, self.need(scalar.size, what))[0]
        if value_type == _STRING:
            return self.text(what).decode("utf-8", "replace")
        if value_type == _BOOL:
            return bool(self.bools(1, what)[0])
        if value_type == _ARRAY:
            return self.array(what, depth)
        last = len(_VALUE_TYPES) - 1
        self.fail(f"{what} has value type {value_type}, expected 0 to {last}; the file is damaged")

    def array(self, what: str, depth: int) -> Any:
        value_type = self.u32(what)
        n = self.u64(what)
        dtype = _DTYPES.get(value_type)
        if dtype is not None:
            return np.frombuffer(self.take(n * dtype.itemsize, what), dtype)
        if value_type == _BOOL:
            return self.bools(n, what)
        if value_type == _STRING:
            return self.strings(n, what)
        if value_type == _ARRAY:
            if depth + 1 >= _MAX_DEPTH:
                self.fail(f"{what} nests arrays deeper than the {_MAX_DEPTH} levels expected")
            self.n_inner_arrays += n
            if self.n_inner_arrays > _MAX_INNER_ARRAYS:
                self.fail(
                    f"{what} holds {n} arrays, expected at most {_MAX_INNER_ARRAYS} in the file"
                )
            return [self.array(what, depth + 1) for _ in range(n)]
        return self.value(value_type, what)  # raises the error for an unknown type

    def bools(self, n: int, what: str) -> npt.NDArray[np.bool_]:
        values = np.frombuffer(self.take(n, what), np.uint8)
        if n and values.max() > 1:
            self.fail(f"{what} holds {values.max()} as a boolean, expected 0 or 1")
        return values.view(np.bool_)

    def strings(self, n: int, what: str) -> StringArray:
        self.n_strings += n
        if self.n_strings > _MAX_STRINGS:
            self.fail(f"{what} holds {n} strings, expected at most {_MAX_STRINGS} in the file")
        start = self.need(8 * n, what)  # the lengths alone
        bounds, end = _strings.find_bounds(self.head, start, n)
        self.position = start
        return StringArray(self.take(end - start, what), bounds)


def _read_start(cursor: _Cursor) -> tuple[int, int, int]:
    """Magic and version. Returns the version, the number of tensors and of metadata entries."""
    magic = cursor.head[:32]
    for prefix, found in _OTHER_FORMATS:
        if magic.startswith(prefix):
            cursor.fail(f"is {found}, expected a little-endian GGUF file")
    if not magic.startswith(b"GGUF"):
        if len(magic) < 4:
            cursor.fail(f"has only {len(magic)} bytes, expected a GGUF file")
        if magic[8:10] == b'{"':
            cursor.fail("is a safetensors file, expected a GGUF file")
        cursor.fail(f"starts with {magic[:4]!r}, expected b'GGUF'; it is not a GGUF file")
    cursor.need(4, "the magic")
    version = cursor.u32("the version")
    if version not in _VERSIONS:
        # A version is a small number. With its bytes swapped, its low 16 bits are 0.
        if version and version & 0xFFFF == 0:
            cursor.fail("is a byte-swapped (big-endian) GGUF file, expected a little-endian one")
        cursor.fail(f"is GGUF version {version}, expected version 2 or 3")
    n_tensors = cursor.u64("the number of tensors")
    n_entries = cursor.u64("the number of metadata entries")
    # The smallest entry has a key of 1 byte with its length, a type and a value of 1 byte. The
    # smallest tensor has a name of 1 byte with its length, n_dims, one dim, type and offset.
    for n, min_bytes, what in ((n_entries, 14, "metadata entries"), (n_tensors, 33, "tensors")):
        if n > _MAX_ENTRIES:
            cursor.fail(f"announces {n} {what}, expected at most {_MAX_ENTRIES}")
        if n * min_bytes > cursor.n_bytes - cursor.position:
            cursor.fail(
                f"announces {n} {what}, which take at least {n * min_bytes} bytes, "
                f"found {cursor.n_bytes - cursor.position}; the file is truncated or damaged"
            )
    return version, n_tensors, n_entries


def _read_metadata(
    cursor: _Cursor, n_entries: int
) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
    """Values by key, and where each entry begins and ends in the file."""
    metadata: dict[str, Any] = {}
    entries: dict[str, tuple[int, int]] = {}
    for i in range(n_entries):
        start = cursor.position
        key = cursor.identifier(f"the key of metadata entry {i}", _MAX_KEY_BYTES)
        if key in metadata:
            cursor.fail(f"metadata key {quote(key)} is there twice, expected once")
        what = f"metadata entry {quote(key)}"
        value_type = cursor.u32(what)
        metadata[key] = cursor.value(value_type, what)
        entries[key] = (start, cursor.position)
        # Checked here, while the type is known: a wrong alignment would shift all tensors.
        if key == "general.alignment" and value_type != _UINT32:
            found = _VALUE_TYPES[value_type]
            cursor.fail(f"general.alignment is of type {found}, expected uint32")
    return metadata, entries


def _alignment(cursor: _Cursor, metadata: dict[str, Any]) -> int:
    """Bytes that tensors are aligned to. The format asks for a multiple of 8."""
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not 8 <= alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
        cursor.fail(
            f"general.alignment is {alignment}, expected a power of two from 8 to {_MAX_ALIGNMENT}"
        )
    return int(alignment)


def _read_tensors(
    cursor: _Cursor, n_tensors: int, alignment: int, allow_unknown: bool
) -> tuple[dict[str, TensorInfo], dict[str, UnknownTensor]]:
    """The tensor table, in file order, with offsets made absolute and checked.

    Unknown types are refused unless `allow_unknown`.
    """
    relative: dict[str, TensorInfo | UnknownTensor] = {}
    for i in range(n_tensors):
        name = cursor.identifier(f"the name of tensor {i}", _MAX_NAME_BYTES)
        if name in relative:
            cursor.fail(f"tensor {quote(name)} is there twice, expected once")
        relative[name] = _read_tensor(cursor, name, alignment, allow_unknown)
    data_start = -(-cursor.position // alignment) * alignment
    everything: dict[str, TensorInfo | UnknownTensor] = {}
    for name, info in relative.items():
        offset = data_start + info.offset
        if isinstance(info, TensorInfo):  # `replace` would take three times as long
            everything[name] = TensorInfo(name, info.shape, info.type, offset, info.n_bytes)
        else:
            everything[name] = UnknownTensor(name, info.shape, info.type, offset, info.n_bytes)
    in_order = sorted(everything.values(), key=lambda info: info.offset)
    previous: TensorInfo | UnknownTensor | None = None
    for info in in_order:
        if info.offset + info.n_bytes > cursor.n_bytes:
            cursor.fail(
                f"tensor {quote(info.name)} reaches to byte {info.offset + info.n_bytes}, but the "
                f"file has {cursor.n_bytes} bytes; it is truncated or damaged"
            )
        if previous is not None and previous.offset + previous.n_bytes > info.offset:
            cursor.fail(f"tensors {quote(previous.name)} and {quote(info.name)} overlap")
        previous = info
    ends = [*(info.offset for info in in_order[1:]), cursor.n_bytes]
    n_bytes = {info.name: end - info.offset for info, end in zip(in_order, ends, strict=False)}
    tensors = {name: info for name, info in everything.items() if isinstance(info, TensorInfo)}
    unknown = {
        name: replace(info, n_bytes=n_bytes[name])
        for name, info in everything.items()
        if isinstance(info, UnknownTensor)
    }
    return tensors, unknown


def _read_tensor(
    cursor: _Cursor, name: str, alignment: int, allow_unknown: bool
) -> TensorInfo | UnknownTensor:
    """One line of the tensor table behind its name. The offset is still that of the file, and an
    unknown tensor has no bytes."""
    what = f"tensor {quote(name)}"
    n_dims = cursor.u32(what)
    if not 1 <= n_dims <= _MAX_DIMS:
        cursor.fail(f"{what} has {n_dims} dimensions, expected 1 to {_MAX_DIMS}")
    dims = [cursor.u64(what) for _ in range(n_dims)]
    while len(dims) > 2 and dims[-1] == 1:  # it means nothing
        dims.pop()
    shape = tuple(reversed(dims))
    number = cursor.u32(what)
    offset = cursor.u64(what)
    if 0 in shape:
        cursor.fail(f"{what} has shape {shape}, expected no dimension of 0")
    if math.prod(shape) > _MAX_ELEMENTS:
        cursor.fail(f"{what} has shape {shape}, expected at most 2^63 - 1 elements")
    if offset % alignment:
        cursor.fail(f"{what} has offset {offset}, expected a multiple of {alignment}")
    if number not in _TYPES:
        if allow_unknown:
            return UnknownTensor(name, shape, number, offset, 0)
        known = f" ({REMOVED_TYPES[number]}, no longer in use)" if number in REMOVED_TYPES else ""
        cursor.fail(
            f"{what} has type {number}{known}, expected a type of ggml from 0 to "
            f"{max(GGMLType).value}"
        )
    tensor_type = GGMLType(number)
    if shape[-1] % BLOCK[tensor_type][0]:
        cursor.fail(
            f"{what} has rows of {shape[-1]} weights, expected a multiple of "
            f"{BLOCK[tensor_type][0]} for type {tensor_type.name}"
        )
    n_bytes = math.prod(shape[:-1]) * row_bytes(tensor_type, shape[-1])
    return TensorInfo(name, shape, tensor_type, offset, n_bytes)
