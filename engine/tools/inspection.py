"""Describes any GGUF file: what it is, the types of its tensors, and why it does not run here."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from lariat.architectures.loading import check_weights, read_config
from lariat.config import ModelConfig
from lariat.errors import GGUFError, LariatError, quote
from lariat.formats.block_formats import REMOVED_TYPES
from lariat.formats.gguf import GGUFFile
from lariat.formats.gguf_split import GGUFModel
from lariat.tokenizers.tokenizer import Tokenizer


class TypeTotal(NamedTuple):
    """The tensors of one type in a file."""

    type: str
    n_tensors: int
    n_bytes: int


@dataclass(frozen=True)
class Inspection:
    """An open file and what was found out about it. Close it, or use it in a `with` statement."""

    gguf: GGUFFile
    what: str  # "model", "LoRA adapter", ...
    reason: str  # why it does not run here: one sentence without a full stop; "" if it runs
    config: ModelConfig | None  # where the architecture reads the metadata

    def types(self) -> list[TypeTotal]:
        """Types of tensors with their numbers and bytes, the most bytes first."""
        n_tensors: Counter[str] = Counter()
        n_bytes: Counter[str] = Counter()
        for info in self.gguf.tensors.values():
            n_tensors[info.type.name] += 1
            n_bytes[info.type.name] += info.n_bytes
        for tensor in self.gguf.unknown.values():
            n_tensors[tensor.type_name] += 1
            n_bytes[tensor.type_name] += tensor.n_bytes
        return [TypeTotal(name, n_tensors[name], n) for name, n in n_bytes.most_common()]

    def close(self) -> None:
        """Close the file."""
        self.gguf.close()

    def __enter__(self) -> Inspection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def inspect_file(
    path: str | os.PathLike[str],
    overrides: Mapping[str, str | int | float | bool] | None = None,
    use_mmap: bool = True,
) -> Inspection:
    """Look at a file, or at all splits of a model. No weight is read.

    Raises GGUFError for a file that is no GGUF file or is damaged, and OSError.
    """
    try:
        gguf: GGUFFile = GGUFModel(path, overrides, use_mmap, allow_unknown=True)
    except GGUFError as error:
        # Another split than the first, or splits that do not belong together, are files too.
        gguf = GGUFFile(path, overrides, use_mmap, allow_unknown=True)
        if "split.count" not in gguf.metadata:
            gguf.close()
            raise
        return Inspection(gguf, _split_name(gguf), _without_path(error, gguf), None)
    try:
        return _inspect(gguf)
    except BaseException:
        gguf.close()
        raise


def _inspect(gguf: GGUFFile) -> Inspection:
    other = _other_file(gguf)
    if other is not None:
        return Inspection(gguf, *other, None)
    config = None
    try:
        config = read_config(gguf)
        for tensor in gguf.unknown.values():
            return Inspection(
                gguf, "model", f"tensor {quote(tensor.name)} is of {_known(tensor.type)}", config
            )
        check_weights(gguf, config)
        Tokenizer.from_gguf(gguf)
    except LariatError as error:
        return Inspection(gguf, "model", _without_path(error, gguf), config)
    return Inspection(gguf, "model", "", config)


def _known(number: int) -> str:
    if number in REMOVED_TYPES:
        return f"type {REMOVED_TYPES[number]}, which is no longer in use"
    return f"type {number}, which is not known"


def _split_name(gguf: GGUFFile) -> str:
    """The part that a file says it is of a model; the numbers are the file's own."""
    number, count = gguf.metadata.get("split.no"), gguf.metadata.get("split.count")
    if isinstance(number, int) and isinstance(count, int):
        return f"split {number + 1} of {count} of a model"
    return "split of a model"


def _without_path(error: LariatError, gguf: GGUFFile) -> str:
    return str(error).removeprefix(f"{gguf.path}: ")


def _other_file(gguf: GGUFFile) -> tuple[str, str] | None:
    """Name a file that is no model, and why it does not run; None for models.

    Sources: llama.cpp's gguf-py (constants.py), tools/imatrix and tools/cvector-generator.
    """
    general = {key: gguf.metadata.get(f"general.{key}") for key in ("type", "architecture")}
    says = {key: value for key, value in general.items() if isinstance(value, str)}
    architecture, kind = says.get("architecture"), says.get("type")
    if kind == "adapter":
        return "adapter", "it changes another model (LoRA), and adapters are not supported"
    if kind == "mmproj" or architecture == "clip":
        return (
            "projector (mmproj)",
            "it turns images or sound into embeddings for a model, and Lariat reads text alone",
        )
    if architecture == "controlvector":
        return "control vector", "it steers another model, and control vectors are not supported"
    if kind == "imatrix" or (architecture is None and "imatrix.chunk_count" in gguf.metadata):
        return "importance matrix", "it tells a quantizer which weights matter, and is no model"
    if not gguf.tensors and not gguf.unknown and "tokenizer.ggml.model" in gguf.metadata:
        return "vocabulary", "it has a vocabulary and no weights"
    return None
