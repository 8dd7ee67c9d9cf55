"""Importance matrices: how large the activations were that each column of a matrix multiplied.

Of each matrix a file has the mean square of its inputs, column by column, over some text. Two
formats are read, both of llama.cpp (tools/imatrix): GGUF, which is written too, and the older
binary one:

    int32 number of matrices; for each: int32 length and bytes of its name, int32 n_calls,
    int32 n_values, float32 sums [n_values], which are divided by n_calls;
    then int32 number of windows, int32 length and bytes of the name of the text
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from lariat.errors import GGUFError, LariatError, quote
from lariat.formats.atomic import written_beside
from lariat.formats.block_formats import GGMLType
from lariat.formats.gguf import GGUFFile
from lariat.formats.string_array import StringArray

F32 = npt.NDArray[np.float32]

_SUMS, _COUNTS = ".in_sum2", ".counts"
_ALIGNMENT = 32
_UINT32, _STRING, _ARRAY = 4, 8, 9  # types of metadata


@dataclass(frozen=True)
class Imatrix:
    """The contents of a file, by the names of tensors.

    values  float32 [n_matrices, n_cols], finite and not negative; n_matrices is 1, or the number of
            experts
    """

    path: str
    dataset: str  # the name of the text
    n_windows: int  # of the text; 0: not known
    values: Mapping[str, F32]

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """LariatError if the values of tensor `name` do not belong to its shape."""
        if name not in self.values:
            return
        expected = (math.prod(shape[:-2]), shape[-1])
        if self.values[name].shape != expected:
            n, n_cols = self.values[name].shape
            raise LariatError(
                f"{self.path}: has {n} x {n_cols} values for tensor {quote(name)}, expected "
                f"{expected[0]} x {expected[1]}: it is the importance matrix of another model"
            )


def read_imatrix(path: str | os.PathLike[str]) -> Imatrix:
    """Read a file of either format. Raises LariatError (GGUFError) if it is none, and OSError."""
    with Path(path).open("rb") as file:
        is_gguf = file.read(4) == b"GGUF"
    return _read_gguf(os.fspath(path)) if is_gguf else _read_dat(os.fspath(path))


def _read_gguf(path: str) -> Imatrix:
    values = {}
    with GGUFFile(path) as gguf:
        names = [n.removesuffix(_SUMS) for n in gguf.tensors if n.endswith(_SUMS)]
        for name in names:
            sums = _floats(gguf, name + _SUMS)
            counts = _floats(gguf, name + _COUNTS).reshape(-1, 1)
            if len(counts) != len(sums):
                raise GGUFError(
                    f"{path}: has {len(sums)} sums and {len(counts)} counts for {quote(name)}"
                )
            # Experts that nothing was routed to know nothing: all their columns count alike.
            with np.errstate(divide="ignore", invalid="ignore"):
                values[name] = np.where(counts > 0, sums / counts, np.float32(1))
        n_windows = gguf.get_int("imatrix.chunk_count", 0, 0, 2**32 - 1)
        datasets = gguf.metadata.get("imatrix.datasets")
        dataset = datasets[0] if isinstance(datasets, StringArray) and len(datasets) else ""
    return _checked(path, dataset, n_windows, values)


def _floats(gguf: GGUFFile, name: str) -> F32:
    """float32 [n_rows, n_cols]"""
    info = gguf.tensors.get(name)
    if info is None or info.type != GGMLType.F32:
        raise GGUFError(f"{gguf.path}: tensor {quote(name)} is missing or not F32")
    return gguf.data(name).view("<f4").astype(np.float32)


def _read_dat(path: str) -> Imatrix:
    raw = Path(path).read_bytes()
    at = 0

    def take(n: int) -> bytes:
        nonlocal at
        if n < 0 or n > len(raw) - at:
            raise LariatError(f"{path}: is no importance matrix, or is cut short")
        at += n
        return raw[at - n : at]

    def whole() -> int:
        return int(struct.unpack("<i", take(4))[0])

    values = {}
    for _ in range(whole()):
        name = take(whole()).decode(errors="replace")
        n_calls, n = whole(), whole()
        sums = np.frombuffer(take(4 * n), "<f4").astype(np.float32)
        values[name] = (sums / np.float32(n_calls) if n_calls > 0 else sums).reshape(1, -1)
    n_windows, dataset = 0, ""
    if at < len(raw):
        n_windows = whole()
        dataset = take(whole()).decode(errors="replace") if at < len(raw) else ""
    return _checked(path, dataset, max(0, n_windows), values)


def _checked(path: str, dataset: str, n_windows: int, values: dict[str, F32]) -> Imatrix:
    if not values:
        raise LariatError(f"{path}: holds no importance of any tensor")
    for name, numbers in values.items():
        if not numbers.size or not np.isfinite(numbers).all() or (numbers < 0).any():
            raise LariatError(
                f"{path}: the importance of tensor {quote(name)} has numbers that are not finite "
                "or below 0"
            )
    return Imatrix(path, dataset, n_windows, values)


def write_imatrix(
    path: str | os.PathLike[str],
    sums: Mapping[str, F32],
    counts: Mapping[str, F32],
    dataset: str,
    n_windows: int,
    n_ctx: int,
) -> None:
    """Write a GGUF file of sums of squares, as llama.cpp does; it appears whole or not at all.

    sums    float32 [n_matrices, n_cols] of each tensor
    counts  float32 [n_matrices]: the tokens that were summed up
    """
    entries = [
        _text("general.type") + struct.pack("<I", _STRING) + _text("imatrix"),
        _text("imatrix.datasets") + struct.pack("<IIQ", _ARRAY, _STRING, 1) + _text(dataset),
        _text("imatrix.chunk_count") + struct.pack("<II", _UINT32, n_windows),
        _text("imatrix.chunk_size") + struct.pack("<II", _UINT32, n_ctx),
    ]
    infos, data, offset = [], [], 0
    for name in sorted(sums):
        for end, array in ((_SUMS, sums[name]), (_COUNTS, counts[name].reshape(-1, 1))):
            dims = array.shape[::-1]
            infos.append(_text(name + end) + struct.pack("<I2QIQ", 2, *dims, GGMLType.F32, offset))
            data.append(_padded(array.astype("<f4").tobytes()))
            offset += len(data[-1])
    start = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(entries))
    with written_beside(Path(path)) as beside:
        beside.write_bytes(_padded(b"".join([start, *entries, *infos])) + b"".join(data))


def _padded(raw: bytes) -> bytes:
    return raw.ljust(-(-len(raw) // _ALIGNMENT) * _ALIGNMENT, b"\0")


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw
