"""A model's file with weights in fewer bits: which tensor gets which type, and the new file.

The file is the one that llama.cpp's llama-quantize writes without an importance matrix, byte for
byte: its choice of types (src/llama-quant.cpp), its rounding (`_quantize`), its order of tensors
and of metadata. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
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
from lariat.errors import LariatError, ModelError
from lariat.formats import block_formats
from lariat.formats.atomic import nameless, written_beside
from lariat.formats.block_formats import BLOCK, GGMLType, row_bytes
from lariat.formats.gguf import GGUFFile, TensorInfo, quote
from lariat.formats.gguf_split import GGUFModel
from lariat.runtime import threads

# Type -> number of the mixture in general.file_type (`enum llama_ftype` in llama.h)
_FILE_TYPES = {GGMLType.F16: 1, GGMLType.Q4_0: 2, GGMLType.Q8_0: 7, GGMLType.Q6_K: 18}
TYPES = tuple(sorted(t.name for t in _FILE_TYPES))
"""Names of the types that weights can be given."""

# Where a row does not divide into the blocks of a type, the first of these is taken that fits.
_FALLBACKS = {GGMLType.Q6_K: (GGMLType.Q8_0, GGMLType.F16)}
_FLOATS = (GGMLType.F32, GGMLType.F16, GGMLType.BF16)
_OUTPUT, _EMBEDDING = "output.weight", "token_embd.weight"
_QUANTIZATION_VERSION = 2  # of ggml's block formats
_VERSION = 3  # of GGUF
_UINT32 = 4  # among the types of metadata
# What is said anew of the file; the parts of a split file become one.
_REPLACED = {"general.file_type", "general.quantization_version"}
_REPLACED |= {"split.no", "split.count", "split.tensors.count"}
_AT_ONCE = 16 << 20  # bytes of weights between two looks for Ctrl-C; memory stays this small


@dataclass(frozen=True)
class QuantizeConfig:
    """What is to become of a model. Types are names in `TYPES`; ValueError names them.

    As of llama-quantize: matrices get `type`, but the output matrix Q6_K unless that is Q8_0 or
    F16; the embedding, where it is the output matrix too, likewise. Vectors and norms stay.
    """

    type: str
    pure: bool = False  # the output matrix gets `type` too
    output_tensor_type: str | None = None  # of the output matrix
    token_embedding_type: str | None = None  # of the embedding
    leave_output_tensor: bool = False  # as it is
    allow_requantize: bool = False  # also what was quantized before, and lost precision then

    def __post_init__(self) -> None:
        for name in (self.type, self.output_tensor_type, self.token_embedding_type):
            if name is not None and name not in TYPES:
                raise ValueError(f"type {name!r} is unknown, expected one of {', '.join(TYPES)}")


class Report(NamedTuple):
    """What was written."""

    n_bytes_before: int  # of all tensors
    n_bytes: int
    n_weights: int
    n_tensors: Mapping[str, int]  # type -> tensors that have it now


def quantize_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    config: QuantizeConfig,
    n_threads: int | None = None,
    force: bool = False,
    progress: Callable[[float], None] | None = None,
    use_mmap: bool = True,
) -> Report:
    """Write the model of `source` to `target`, which appears whole or not at all.

    An existing target is replaced with `force` only. Tensors are read, rounded and written piece by
    piece, so memory does not depend on the model; `progress` gets the share done, 0 to 1;
    `use_mmap` as for `LLM`. Raises `GGUFError`, `ModelError`, `LariatError` for a target that
    cannot be, and OSError.
    """
    n_threads = threads.resolve(n_threads)
    path = Path(os.path.realpath(target))  # what a link points to, not the link, is replaced
    with GGUFModel(source, use_mmap=use_mmap) as gguf:
        read_config(gguf)  # whose rules are known here is what can be run
        plan = _plan(gguf, config)
        header = _header(gguf, plan, _FILE_TYPES[GGMLType[config.type]])
        n_bytes = len(header) + sum(_padded(_new_bytes(i, t), gguf.alignment) for i, t in plan)
        _check_target(gguf.parts, path, n_bytes, force)
        try:
            with written_beside(path) as beside, nameless(beside) as file:
                file.write(header)
                _write_tensors(gguf, plan, file, n_threads, progress)
        except OSError as error:  # knows the other name, or none
            raise OSError(error.errno, error.strerror or str(error), str(target)) from error
    return Report(
        n_bytes_before=sum(info.n_bytes for info, _ in plan),
        n_bytes=sum(_new_bytes(info, kind) for info, kind in plan),
        n_weights=sum(math.prod(info.shape) for info, _ in plan),
        n_tensors=Counter(kind.name for _, kind in plan),
    )


_Plan = list[tuple[TensorInfo, GGMLType]]


def _plan(gguf: GGUFFile, config: QuantizeConfig) -> _Plan:
    """All tensors, in the order of the new file, with their new types."""

    def place(info: TensorInfo) -> tuple[int, str]:
        layer = re.match(r"blk\.(\d+)\.", info.name)
        return (int(layer[1]) if layer else -1, info.name)

    tied = _OUTPUT not in gguf.tensors
    plan = []
    for info in sorted(gguf.tensors.values(), key=place):
        kind = _new_type(info, config, tied)
        if kind != info.type:
            _check_convertible(gguf, info, kind, config)
        plan.append((info, kind))
    return plan


def _new_type(info: TensorInfo, config: QuantizeConfig, tied: bool) -> GGMLType:
    is_matrix = any(n > 1 for n in info.shape[:-1])
    if not is_matrix or not info.name.endswith("weight") or "_norm.weight" in info.name:
        return info.type
    if info.name == _OUTPUT and config.leave_output_tensor:
        return info.type
    if info.name == _EMBEDDING and config.token_embedding_type:
        return GGMLType[config.token_embedding_type]
    if info.name == _OUTPUT and config.output_tensor_type:
        return GGMLType[config.output_tensor_type]
    kind = GGMLType[config.type]
    if kind == GGMLType.F16:
        return kind
    if not config.pure and (info.name == _OUTPUT or (tied and info.name == _EMBEDDING)):
        if config.output_tensor_type:
            kind = GGMLType[config.output_tensor_type]
        elif kind != GGMLType.Q8_0:
            kind = GGMLType.Q6_K
    fitting = (k for k in (kind, *_FALLBACKS.get(kind, ())) if not info.shape[-1] % BLOCK[k][0])
    return next(fitting, kind)


def _check_convertible(
    gguf: GGUFFile, info: TensorInfo, kind: GGMLType, config: QuantizeConfig
) -> None:
    what = f"{gguf.path}: tensor {quote(info.name)}"
    if info.type not in block_formats.SUPPORTED:
        raise ModelError(f"{what} is of type {info.type.name}, which cannot be read here")
    if info.type not in _FLOATS and not config.allow_requantize:
        raise ModelError(
            f"{what} is {info.type.name}, which was rounded once already: start from the F16 or "
            "F32 file, or accept the loss with --allow-requantize"
        )
    if info.shape[-1] % BLOCK[kind][0]:
        raise ModelError(
            f"{what} has rows of {info.shape[-1]} weights, which do not divide into the blocks of "
            f"{BLOCK[kind][0]} of {kind.name}"
        )


def _check_target(sources: Sequence[Path], target: Path, n_bytes: int, force: bool) -> None:
    """Whatever can be known to go wrong before the work."""
    if target.exists():
        if any(map(target.samefile, sources)):
            raise LariatError(f"{target}: is the input itself, and would be gone")
        if not target.is_file():
            raise LariatError(f"{target}: is not a regular file, and is not replaced by one")
        if not force:
            raise LariatError(f"{target}: exists already; --force replaces it")
    free = shutil.disk_usage(target.parent).free
    if free < n_bytes:
        raise LariatError(
            f"{target}: needs {n_bytes / 1e9:.2f} GB, and there are {free / 1e9:.2f} GB free"
        )


def _new_bytes(info: TensorInfo, kind: GGMLType) -> int:
    return info.n_rows * row_bytes(kind, info.shape[-1])


def _padded(n_bytes: int, alignment: int) -> int:
    return -(-n_bytes // alignment) * alignment


def _header(gguf: GGUFFile, plan: _Plan, file_type: int) -> bytes:
    """Everything before the tensors' data. Metadata keeps its bytes, but for `_REPLACED`."""
    entries = [entry for key, entry in gguf.entries() if key not in _REPLACED]
    for key, value in (
        ("general.quantization_version", _QUANTIZATION_VERSION),
        ("general.file_type", file_type),
    ):
        entries.append(_text(key) + struct.pack("<II", _UINT32, value))
    infos, offset = [], 0
    for info, kind in plan:
        dims = list(reversed(info.shape))
        while len(dims) > 1 and dims[-1] == 1:
            dims.pop()
        infos.append(
            _text(info.name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
        )
        offset += _padded(_new_bytes(info, kind), gguf.alignment)
    start = b"GGUF" + struct.pack("<IQQ", _VERSION, len(plan), len(entries))
    header = b"".join([start, *entries, *infos])
    return header.ljust(_padded(len(header), gguf.alignment), b"\0")


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _write_tensors(
    gguf: GGUFFile,
    plan: _Plan,
    file: BinaryIO,
    n_threads: int,
    progress: Callable[[float], None] | None,
) -> None:
    n_done, n_bytes = 0, max(1, sum(info.n_bytes for info, _ in plan))
    for info, kind in plan:
        n_written = 0
        for rows in _pieces(gguf, info):
            data = rows if kind == info.type else _converted(gguf, info, rows, kind, n_threads)
            n_written += file.write(data.data)
            n_done += rows.nbytes
            if progress:
                progress(n_done / n_bytes)
        file.write(bytes(_padded(n_written, gguf.alignment) - n_written))


def _pieces(gguf: GGUFFile, info: TensorInfo) -> Iterator[np.ndarray]:
    """Some rows of a tensor at a time, uint8 [n_rows, row_bytes]; read pages are given back."""
    step = max(1, _AT_ONCE // info.row_bytes)
    for start in range(0, info.n_rows, step):
        yield gguf.data(info.name, start, start + step)
        gguf.release(info.name)


def _converted(
    gguf: GGUFFile, info: TensorInfo, rows: np.ndarray, kind: GGMLType, n_threads: int
) -> np.ndarray:
    """uint8 [n_rows * row_bytes], of type `kind`"""
    n_bytes = len(rows) * row_bytes(kind, info.shape[-1])
    source = info.type
    if source not in _FLOATS:
        rows, source = block_formats.dequantize(rows, source).view(np.uint8), GGMLType.F32
    out = np.empty(n_bytes, np.uint8)
    problem = quantize_into(
        rows.reshape(-1), source.name, out, kind.name, _kernels.isa(), n_threads
    )
    if problem:
        raise ModelError(f"{gguf.path}: tensor {quote(info.name)} has {problem}")
    return out
