"""Prepared weights of a model: where they lie, and how they are made, found, checked and removed.

They lie beside the model, or in a cache folder: LARIAT_CACHE, or lariat in XDG_CACHE_HOME, or
~/.cache/lariat. `docs/prepared.md` says what is checked and when.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash
from lariat.architectures import ARCHITECTURES
from lariat.architectures.packed import Packed, Places
from lariat.architectures.weights import TensorLoader, TensorPlanner
from lariat.config import ModelConfig
from lariat.errors import PreparedError, quote
from lariat.formats import prepared_file
from lariat.formats.gguf import GGUFFile
from lariat.formats.prepared_file import PreparedFile, Writer
from lariat.os_memory import allocate

SUFFIX = ".prepared"
"""The end of the names of prepared weights, behind the name of the model."""

_MAX_NAME = 100  # characters of the model's name in that of a file of the cache folder

Progress = Callable[[float], None] | None


class Found(NamedTuple):
    """Prepared weights of a model, if there are any that fit."""

    places: FilePlaces | None
    refused: tuple[str, ...]  # files that were found and may not be used, a sentence each

    @property
    def path(self) -> Path | None:
        """The file that fits."""
        return None if self.places is None else self.places.file.path


class FilePlaces(Places):
    """Matrices that were interleaved before, mapped from a file."""

    is_filled = True

    def __init__(self, file: PreparedFile) -> None:
        self.file = file

    def take(self, packed: Packed) -> np.ndarray:
        """The interleaved rows, read-only, where they lie in the file. KeyError if it lacks them,
        which `find` has looked for."""
        memory = self.file.find(packed.key, packed.n_bytes)
        if memory is None:
            raise KeyError(packed.key)
        return memory

    def keep(self, packed: Packed, memory: np.ndarray) -> None:
        """Do nothing."""


class _Scratch(Places):
    """Memory of one matrix after the other, each of which is handed on once it is interleaved."""

    def __init__(self, packed: list[Packed], hand_on: Callable[[Packed, np.ndarray], None]) -> None:
        self._memory = allocate(max((one.n_bytes for one in packed), default=1))
        self._hand_on = hand_on

    def take(self, packed: Packed) -> np.ndarray:
        memory = self._memory[: packed.n_bytes]
        if packed.n_experts:  # the last line of each expert may not be written whole
            memory[:] = 0
        return memory

    def keep(self, packed: Packed, memory: np.ndarray) -> None:
        self._hand_on(packed, memory)


def cache_folder() -> Path:
    """The folder for prepared weights that cannot lie beside their model."""
    given = os.environ.get("LARIAT_CACHE")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(base) / "lariat" if base else Path.home() / ".cache" / "lariat"


def beside(model: Path) -> Path:
    """The file beside a model."""
    return model.with_name(model.name + SUFFIX)


def in_folder(model: Path, folder: Path) -> Path:
    """The file of a model in a cache folder. Models are told apart by their real paths."""
    real = os.path.realpath(model)
    digest = xxhash.xxh3_64(os.fsencode(real)).hexdigest()
    return folder / f"{model.name[:_MAX_NAME]}-{digest}{SUFFIX}"


def candidates(model: Path, folder: Path | None = None) -> list[Path]:
    """Where the prepared weights of a model may lie: beside it, and in the cache folder.

    `folder` is one more folder to look in, first.
    """
    folders = [cache_folder()] if folder is None else [folder, cache_folder()]
    in_folders = [in_folder(model, each) for each in folders]
    return list(dict.fromkeys([*in_folders[:-1], beside(model), in_folders[-1]]))


def find(gguf: GGUFFile, config: ModelConfig, folder: Path | None = None) -> Found:
    """Prepared weights that belong to an open model and fit this version of the engine.

    Their table is checked, and that they hold all matrices; their bytes are not read.
    """
    refused: list[str] = []
    for path in candidates(gguf.path, folder):
        try:
            file = _fitting(gguf, config, path)
        except FileNotFoundError:
            continue
        except PreparedError as error:
            refused.append(str(error))
            continue
        return Found(FilePlaces(file), tuple(refused))
    return Found(None, tuple(refused))


def fits(gguf: GGUFFile, config: ModelConfig, path: Path) -> bool:
    """Whether a file is there that `find` would take."""
    try:
        _fitting(gguf, config, path)
    except (FileNotFoundError, PreparedError):
        return False
    return True


def prepare(
    gguf: GGUFFile,
    config: ModelConfig,
    path: Path,
    n_threads: int,
    progress: Progress = None,
) -> None:
    """Interleave all matrices of a model, and write them to `path`.

    It needs the memory of the largest matrix. `progress` gets the share done, 0 to 1. Raises
    PreparedError if the file cannot be written, and what loading a model raises.
    """
    packed = _plan(gguf, config)
    sizes = {one.key: one.n_bytes for one in packed}
    mark, status = prepared_file.mark(gguf), gguf.stamps()[0].status

    with prepared_file.writing(path, mark, sizes, status) as writer:
        _interleave(gguf, config, n_threads, progress, packed, _hand_to(writer))


def check(
    gguf: GGUFFile,
    config: ModelConfig,
    path: Path,
    n_threads: int,
    progress: Progress = None,
) -> None:
    """Read a file of prepared weights and its model whole, and compare them.

    PreparedError if the file does not belong to the model, a piece does not give its checksum, or
    differs from what the model's tensor gives when it is interleaved now.
    """
    file, packed = _fitting(gguf, config, path), _plan(gguf, config)
    places = FilePlaces(file)

    def compare(one: Packed, memory: np.ndarray) -> None:
        file.check_piece(one.key)
        if not np.array_equal(places.take(one), memory):
            raise PreparedError(f"{path}: {quote(one.name)} differs from the tensor of the model")

    _interleave(gguf, config, n_threads, progress, packed, compare)


def remove(model: Path, folder: Path | None = None) -> list[Path]:
    """Remove the prepared weights of a model; processes that use them keep them. Returns the files
    that are gone. Raises OSError."""
    gone = []
    for path in candidates(model, folder):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            gone.append(path)
    return gone


def _fitting(gguf: GGUFFile, config: ModelConfig, path: Path) -> PreparedFile:
    """Open a file. PreparedError unless it belongs to the model and has all of its matrices."""
    file = PreparedFile(path, [stamp.status.st_uid for stamp in gguf.stamps()])
    file.check_model(prepared_file.mark(gguf))
    _check_complete(file, _plan(gguf, config))
    return file


def _plan(gguf: GGUFFile, config: ModelConfig) -> list[Packed]:
    """All matrices of a model that are interleaved, in the order in which they are read."""
    planner = TensorPlanner(gguf)
    ARCHITECTURES[config.architecture].read_weights(planner, config)
    return planner.packed


def _check_complete(file: PreparedFile, packed: list[Packed]) -> None:
    for one in packed:
        if file.find(one.key, one.n_bytes) is None:
            raise PreparedError(
                f"{file.path}: was written by another version, or for other metadata: it lacks "
                f"{quote(one.name)}, {one.n_rows} x {one.n_cols}, in the layout that is due"
            )


def _hand_to(writer: Writer) -> Callable[[Packed, np.ndarray], None]:
    return lambda one, memory: writer.put(one.key, memory)


def _interleave(
    gguf: GGUFFile,
    config: ModelConfig,
    n_threads: int,
    progress: Progress,
    packed: list[Packed],
    hand_on: Callable[[Packed, np.ndarray], None],
) -> None:
    loader = TensorLoader(gguf, n_threads, progress, _Scratch(packed, hand_on))
    ARCHITECTURES[config.architecture].read_weights(loader, config)
