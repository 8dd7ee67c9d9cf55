"""A model in one GGUF file, or split into several as `gguf-split` of llama.cpp does it.

The splits are GGUF files named PREFIX-00001-of-00003.gguf and so on. The first has the metadata of
the model. Each says its number (split.no, from 0) and how many there are (split.count). The first
also says how many tensors all splits have together (split.tensors.count).

Source: https://github.com/ggml-org/llama.cpp (tools/gguf-split, src/llama-model-loader.cpp).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from lariat.errors import GGUFError, quote
from lariat.formats.gguf import MAX_HEADER_BYTES, GGUFFile, Stamp

_MAX_SPLITS = 1024
_MAX_TENSORS = 1 << 16  # of all splits together, as of one file


class GGUFModel(GGUFFile):
    """All files of a model as one: the metadata of the first, the tensors of all.

    `path` is that of the first. The other splits are opened by their names in the same folder.
    Raises what `GGUFFile` raises, and `GGUFError` for splits that are missing or do not belong
    together.
    """

    n_bytes: int  # of all files
    splits: tuple[Path, ...]  # the files, in order; one if the model is not split

    def __init__(
        self,
        path: str | os.PathLike[str],
        overrides: Mapping[str, str | int | float | bool] | None = None,
        use_mmap: bool = True,
        allow_unknown: bool = False,
    ) -> None:
        self._others: list[GGUFFile] = []
        self._home: dict[str, GGUFFile] = {}  # of each tensor that is not in the first split
        self._allow_unknown = allow_unknown
        super().__init__(path, overrides, use_mmap, allow_unknown)
        self.splits = (self.path,)
        try:
            n_splits = self.get_int("split.count", default=1, minimum=0, maximum=_MAX_SPLITS)
            if n_splits > 1:  # 0 stands for a model that was merged again
                self._open_others(n_splits)
        except BaseException:
            self.close()
            raise

    def data(self, name: str, start: int = 0, stop: int | None = None) -> npt.NDArray[np.uint8]:
        """The bytes of a tensor, as `GGUFFile.data` gives them."""
        home = self._home.get(name)
        return super().data(name, start, stop) if home is None else home.data(name, start, stop)

    def stamps(self) -> list[Stamp]:
        """Each file of the model, in order, see `GGUFFile.stamps`."""
        return [*super().stamps(), *(s for other in self._others for s in other.stamps())]

    def release(self, name: str) -> None:
        """Let the system take back the pages of a tensor, see `GGUFFile.release`."""
        home = self._home.get(name)
        if home is None:
            super().release(name)
        else:
            home.release(name)

    def close(self) -> None:
        """Give up all files. Each is unmapped when the last view of it is gone."""
        for other in self._others:
            other.close()
        super().close()

    def __enter__(self) -> GGUFModel:
        return self

    def _open_others(self, n_splits: int) -> None:
        self.splits = self._paths(n_splits)
        tensors, unknown = dict(self.tensors), dict(self.unknown)
        for i, path in enumerate(self.splits[1:], start=1):
            try:
                split = GGUFFile(path, use_mmap=self.use_mmap, allow_unknown=self._allow_unknown)
            except FileNotFoundError:
                raise GGUFError(
                    f"{self.path}: split {i + 1} of {n_splits}, {quote(path.name, 128)}, is missing"
                ) from None
            self._others.append(split)
            for key, found, expected in (
                ("split.no", split.get_int("split.no"), i),
                ("split.count", split.get_int("split.count"), n_splits),
            ):
                if found != expected:
                    raise GGUFError(f"{path}: {key} is {found}, expected {expected}")
            for name, info in split.tensors.items():
                if name in tensors:
                    where = self._home.get(name, self).path
                    raise GGUFError(f"{path}: tensor {quote(name)} is in {where} too")
                tensors[name], self._home[name] = info, split
            unknown |= split.unknown
            if len(tensors) > _MAX_TENSORS:
                raise GGUFError(f"{self.path}: more than {_MAX_TENSORS} tensors in all splits")
            self.n_bytes += split.n_bytes
            self.n_header_bytes += split.n_header_bytes
            if self.n_header_bytes > MAX_HEADER_BYTES:  # a thousand headers could take minutes
                raise GGUFError(
                    f"{self.path}: the splits up to {quote(path.name, 128)} have "
                    f"{self.n_header_bytes} bytes before their tensor data, "
                    f"expected at most {MAX_HEADER_BYTES}"
                )
            split.metadata = MappingProxyType({})  # not the model's, and maybe large
        n_tensors = self.get_int("split.tensors.count")
        n_found = len(tensors) + len(unknown)
        if n_tensors != n_found:
            raise GGUFError(
                f"{self.path}: split.tensors.count is {n_tensors}, "
                f"but the {n_splits} splits hold {n_found} tensors"
            )
        self.tensors = MappingProxyType(tensors)
        self.unknown = MappingProxyType(unknown)

    def _paths(self, n_splits: int) -> tuple[Path, ...]:
        """The paths of all splits. Raises GGUFError unless this is the first, and named so."""
        number = self.get_int("split.no", minimum=0, maximum=n_splits - 1) + 1
        ending, first = (f"-{n:05d}-of-{n_splits:05d}.gguf" for n in (number, 1))
        name = self.path.name
        if number > 1:
            known = name.endswith(ending)
            hint = f", {quote(name.removesuffix(ending) + first, 128)}" if known else ""
            raise GGUFError(
                f"{self.path}: is split {number} of {n_splits} of a model; "
                f"open the first split{hint}"
            )
        if not name.endswith(first):
            raise GGUFError(
                f"{self.path}: is the first of {n_splits} splits of a model, whose names must end "
                f"as gguf-split made them, this one with {first}"
            )
        prefix = name.removesuffix(first)
        return tuple(
            self.path.with_name(f"{prefix}-{n + 1:05d}-of-{n_splits:05d}.gguf")
            for n in range(n_splits)
        )
