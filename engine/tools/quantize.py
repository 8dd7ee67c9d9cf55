"""Writes a model's file again with weights of fewer bits.

The file is byte for byte the one that llama.cpp's llama-quantize writes: the same types for the
same tensors (`quantize_types`), the same rounding (`_quantize`), the same order of tensors and
metadata, with an importance matrix (`lariat.formats.imatrix`) and without.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import os
import re
import shutil
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from lariat import _kernels
from lariat._quantize import quantize_into
from lariat.architectures.loading import read_config
from lariat.config import ModelConfig
from lariat.errors import LariatError, ModelError, quote
from lariat.formats import block_formats
from lariat.formats.atomic import anonymous_file, written_beside
from lariat.formats.block_formats import BLOCK, GGMLType, row_bytes
from lariat.formats.gguf import GGUFFile, TensorInfo
from lariat.formats.gguf_split import GGUFModel
from lariat.formats.imatrix import Imatrix, read_imatrix
from lariat.runtime import threads
from lariat.tools.quantize_types import (
    ALIASES,
    EMBEDDING,
    FILE_TYPES,
    OUTPUT,
    TENSOR_TYPES,
    Mix,
    Shape,
    fitting,
    is_quantized,
)

TYPES = tuple(FILE_TYPES)
"""Names of the mixes of types that a file can get."""

_FLOATS = (GGMLType.F32, GGMLType.F16, GGMLType.BF16)
_QUANTIZATION_VERSION = 2  # of ggml's block formats
_VERSION = 3  # of GGUF
_UINT32, _STRING = 4, 8  # among the types of metadata
# Keys that are written anew, or left out: a split file becomes a single one.
_REPLACED = {"general.file_type", "general.quantization_version"}
_REPLACED |= {"split.no", "split.count", "split.tensors.count"}
_REPLACED |= {f"quantize.imatrix.{key}" for key in ("file", "dataset")}
_REPLACED |= {f"quantize.imatrix.{key}_count" for key in ("entries", "chunks")}
_AT_ONCE = 16 << 20  # bytes of weights between two looks for Ctrl-C; memory stays this small


@dataclass(frozen=True)
class QuantizeConfig:
    """The types that the tensors of a model get. ValueError for unknown names.

    `type` is one of `TYPES` or an alias (`quantize_types`), whose rules say which matrix gets which
    type. Vectors and norms stay as they are. The types of single tensors are of `TENSOR_TYPES`.
    """

    type: str
    pure: bool = False  # all matrices get the type that most have
    output_tensor_type: str | None = None  # of the output matrix
    token_embedding_type: str | None = None  # of the embedding
    leave_output_tensor: bool = False  # the output matrix stays as it is
    allow_requantize: bool = False  # quantized weights may be rounded again, and lose precision

    def __post_init__(self) -> None:
        if self.type not in FILE_TYPES and self.type not in ALIASES:
            raise ValueError(f"type {self.type!r} is unknown, expected one of {', '.join(TYPES)}")
        for name in (self.output_tensor_type, self.token_embedding_type):
            if name is not None and name not in TENSOR_TYPES:
                known = ", ".join(TENSOR_TYPES)
                raise ValueError(f"type {name!r} of a tensor is unknown, expected one of {known}")

    @property
    def mix(self) -> str:
        """The name of `type` in FILE_TYPES."""
        return ALIASES.get(self.type, self.type)


class Report(NamedTuple):
    """The result of `quantize_file`."""

    n_bytes_before: int  # of all tensors
    n_bytes: int
    n_weights: int
    n_tensors: Mapping[str, int]  # type: how many tensors have it now


def quantize_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    config: QuantizeConfig,
    n_threads: int | None = None,
    force: bool = False,
    progress: Callable[[float], None] | None = None,
    use_mmap: bool = True,
    imatrix: str | os.PathLike[str] | None = None,
) -> Report:
    """Write the model of `source` to `target`, which appears whole or not at all.

    `imatrix` is the file of an importance matrix: errors of columns whose activations were large
    count more.

    An existing target is replaced only with `force`. Tensors are read, rounded and written piece by
    piece, so the memory needed does not depend on the model. `progress` is called with the share
    that is done, 0 to 1; `use_mmap` as for `LLM`. Raises `GGUFError`, `ModelError`, `LariatError`
    for a target that is refused, and OSError.
    """
    n_threads = threads.resolve(n_threads)
    path = Path(os.path.realpath(target))  # replaces the target of a link, not the link
    with GGUFModel(source, use_mmap=use_mmap) as gguf:
        model = read_config(gguf)  # refuses architectures whose rules are not known here
        importance = read_imatrix(imatrix) if imatrix is not None else None
        plan = _plan(gguf, config, model, importance)
        header = _header(gguf, plan, FILE_TYPES[config.mix].number, importance)
        n_bytes = len(header) + sum(_padded(_new_bytes(i, t), gguf.alignment) for i, t in plan)
        _check_target(gguf.splits, path, n_bytes, force)
        threads.claim()
        with (
            written_beside(path, is_made=False) as beside,
            anonymous_file(beside) as file,
        ):
            file.write(header)
            _write_tensors(gguf, plan, importance, file, n_threads, progress)
    return Report(
        n_bytes_before=sum(info.n_bytes for info, _ in plan),
        n_bytes=sum(_new_bytes(info, new_type) for info, new_type in plan),
        n_weights=sum(math.prod(info.shape) for info, _ in plan),
        n_tensors=Counter(new_type.name for _, new_type in plan),
    )


_Plan = list[tuple[TensorInfo, GGMLType]]


def _plan(
    gguf: GGUFFile, config: QuantizeConfig, model: ModelConfig, importance: Imatrix | None
) -> _Plan:
    """All tensors, in the order of the new file, with their new types."""

    def place(info: TensorInfo) -> tuple[int, str]:
        layer = re.match(r"blk\.(\d+)\.", info.name)
        return (int(layer[1]) if layer else -1, info.name)

    shape = Shape(
        model.architecture,
        model.n_layers,
        model.n_heads,
        model.n_kv_heads,
        gguf.get_int(f"{model.architecture}.expert_count", 0),
        OUTPUT in gguf.tensors,
        importance is not None,
    )
    mix = Mix(config.mix, shape, sum(_has_v(name) for name in gguf.tensors))
    plan = []
    for info in sorted(gguf.tensors.values(), key=place):
        new_type = _new_type(info, config, mix, not shape.has_output)
        if new_type != info.type:
            _check_convertible(gguf, info, new_type, config)
            if importance is not None:
                importance.check(info.name, info.shape)
        plan.append((info, new_type))
    return plan


def _has_v(name: str) -> bool:
    return "attn_v.weight" in name or "attn_qkv.weight" in name


def _new_type(info: TensorInfo, config: QuantizeConfig, mix: Mix, tied: bool) -> GGMLType:
    if not is_quantized(info) or (info.name == OUTPUT and config.leave_output_tensor):
        return info.type
    most = FILE_TYPES[config.mix].type
    wanted = most if config.pure or most == GGMLType.F16 else mix.type_of(info)
    if info.name == EMBEDDING and config.token_embedding_type:
        return GGMLType[config.token_embedding_type]
    if info.name == OUTPUT and config.output_tensor_type:
        return GGMLType[config.output_tensor_type]
    if tied and info.name == EMBEDDING and config.output_tensor_type and not config.pure:
        wanted = GGMLType[config.output_tensor_type]
    return fitting(wanted, info.shape[-1])


def _check_convertible(
    gguf: GGUFFile, info: TensorInfo, new_type: GGMLType, config: QuantizeConfig
) -> None:
    what = f"{gguf.path}: tensor {quote(info.name)}"
    if info.type not in block_formats.SUPPORTED:
        raise ModelError(f"{what} is of type {info.type.name}, which cannot be read here")
    if info.type not in _FLOATS and not config.allow_requantize:
        raise ModelError(
            f"{what} is {info.type.name}, which was rounded once already: start from the F16 or "
            "F32 file, or accept the loss with --allow-requantize"
        )
    n_block = BLOCK[new_type][0]
    if info.shape[-1] % n_block:
        raise ModelError(
            f"{what} has rows of {info.shape[-1]} weights, which do not divide into the blocks of "
            f"{n_block} of {new_type.name}"
        )


def _check_target(sources: Sequence[Path], target: Path, n_bytes: int, force: bool) -> None:
    """Find every error that can be found before the work."""
    if target.exists():
        if any(map(target.samefile, sources)):
            raise LariatError(f"{target}: is the input itself, and would be lost")
        if not target.is_file():
            raise LariatError(f"{target}: is not a regular file, and is not replaced by one")
        if not force:
            raise LariatError(f"{target}: exists already; --force replaces it")
    free = shutil.disk_usage(target.parent).free
    if free < n_bytes:
        raise LariatError(
            f"{target}: the file needs {n_bytes:,} bytes, and there are {free:,} free on the disk"
        )


def _new_bytes(info: TensorInfo, new_type: GGMLType) -> int:
    return info.n_rows * row_bytes(new_type, info.shape[-1])


def _padded(n_bytes: int, alignment: int) -> int:
    return -(-n_bytes // alignment) * alignment


def _header(gguf: GGUFFile, plan: _Plan, file_type: int, importance: Imatrix | None) -> bytes:
    """Everything before the data of the tensors. Metadata keeps its bytes, except `_REPLACED`."""
    entries = [entry for key, entry in gguf.entries() if key not in _REPLACED]
    for key, value in (
        ("general.quantization_version", _QUANTIZATION_VERSION),
        ("general.file_type", file_type),
    ):
        entries.append(_text(key) + struct.pack("<II", _UINT32, value))
    if importance is not None:
        entries += _about_imatrix(importance)
    infos, offset = [], 0
    for info, new_type in plan:
        dims = list(reversed(info.shape))
        while len(dims) > 1 and dims[-1] == 1:
            dims.pop()
        infos.append(
            _text(info.name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, new_type, offset)
        )
        offset += _padded(_new_bytes(info, new_type), gguf.alignment)
    start = b"GGUF" + struct.pack("<IQQ", _VERSION, len(plan), len(entries))
    header = b"".join([start, *entries, *infos])
    return header.ljust(_padded(len(header), gguf.alignment), b"\0")


def _about_imatrix(importance: Imatrix) -> Iterator[bytes]:
    """The metadata that llama-quantize writes about the matrix that it used."""
    for key, value in (("file", importance.path), ("dataset", importance.dataset)):
        if value:
            yield _text(f"quantize.imatrix.{key}") + struct.pack("<I", _STRING) + _text(value)
    for key, n in (("entries", len(importance.values)), ("chunks", importance.n_windows)):
        if n:
            yield _text(f"quantize.imatrix.{key}_count") + struct.pack("<II", _UINT32, n)


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _write_tensors(
    gguf: GGUFFile,
    plan: _Plan,
    importance: Imatrix | None,
    file: BinaryIO,
    n_threads: int,
    progress: Callable[[float], None] | None,
) -> None:
    n_done, n_bytes = 0, max(1, sum(info.n_bytes for info, _ in plan))
    for info, new_type in plan:
        n_written = 0
        worth = importance.values.get(info.name) if importance is not None else None
        for matrix, rows in _pieces(gguf, info):
            if new_type == info.type:
                data = rows
            else:
                of_matrix = worth[matrix] if worth is not None else None
                data = _converted(gguf, info, rows, new_type, n_threads, of_matrix)
            n_written += file.write(data.data)
            n_done += rows.nbytes
            if progress:
                progress(n_done / n_bytes)
        file.write(bytes(_padded(n_written, gguf.alignment) - n_written))


def _pieces(gguf: GGUFFile, info: TensorInfo) -> Iterator[tuple[int, np.ndarray]]:
    """Some rows of a tensor at a time, uint8 [n_rows, row_bytes], and which matrix of it has them:
    of experts it has several. Gives pages back after use."""
    step = max(1, _AT_ONCE // info.row_bytes)
    n_here = info.shape[-2] if len(info.shape) > 2 else info.n_rows
    for first in range(0, info.n_rows, max(1, n_here)):
        for start in range(first, first + n_here, step):
            end = min(start + step, first + n_here)
            yield first // n_here, gguf.data(info.name, start, end)
            gguf.release(info.name)


def _converted(
    gguf: GGUFFile,
    info: TensorInfo,
    rows: np.ndarray,
    new_type: GGMLType,
    n_threads: int,
    importance: np.ndarray | None,
) -> np.ndarray:
    """uint8 [n_rows * row_bytes] of the new type; importance float32 [row length]."""
    n_bytes = len(rows) * row_bytes(new_type, info.shape[-1])
    source = info.type
    if source not in _FLOATS:
        rows, source = block_formats.dequantize(rows, source).view(np.uint8), GGMLType.F32
    out = np.empty(n_bytes, np.uint8)
    weights, isa = rows.reshape(-1), _kernels.isa()
    problem = quantize_into(weights, source.name, out, new_type.name, isa, n_threads, importance)
    if problem:
        raise ModelError(f"{gguf.path}: tensor {quote(info.name)} has {problem}")
    return out
