"""A model in one GGUF file, or in several as `gguf-split` of llama.cpp makes them.

The parts are GGUF files named PREFIX-00001-of-00003.gguf and so on. The first has the metadata of
the model. Each says which part it is (split.no, from 0) and of how many (split.count); the first
one also how many tensors all parts have together (split.tensors.count).

Source: https://github.com/ggml-org/llama.cpp (tools/gguf-split, src/llama-model-loader.cpp).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lariat.errors import GGUFError
from lariat.formats.gguf import MAX_HEADER_BYTES, GGUFFile, TensorInfo, quote

_MAX_PARTS = 1024
_MAX_TENSORS = 1 << 16  # of all parts, as of one file


class GGUFModel(GGUFFile):
    """All files of a model as one: the first one's metadata, the tensors of all.

    `path` is that of the first; other parts are opened by their names beside it. Raises what
    `GGUFFile` raises, and `GGUFError` for parts that are missing or do not belong together.
    """

    n_bytes: int  # of all files
    parts: tuple[Path, ...]  # the files, in order

    def __init__(
        self,
        path: str | os.PathLike[str],
        overrides: Mapping[str, str | int | float | bool] | None = None,
        use_mmap: bool = True,
    ) -> None:
        self._others: list[GGUFFile] = []
        self._home: dict[str, GGUFFile] = {}  # of each tensor that is not in the first part
        super().__init__(path, overrides, use_mmap)
        self.parts = (self.path,)
        try:
            n_parts = self.get_int("split.count", default=1, minimum=0, maximum=_MAX_PARTS)
            if n_parts > 1:  # 0: it has been put together again
                self._open_others(n_parts)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give up all files; each is unmapped once the last view of it is gone."""
        for part in self._others:
            part.close()
        super().close()

    def __enter__(self) -> GGUFModel:
        return self

    def _find(self, name: str) -> tuple[TensorInfo, Any]:
        return self._home[name]._find(name) if name in self._home else super()._find(name)

    def _open_others(self, n_parts: int) -> None:
        self.parts = self._paths(n_parts)
        tensors = dict(self.tensors)
        for i, path in enumerate(self.parts[1:], start=1):
            try:
                part = GGUFFile(path, use_mmap=self.use_mmap)
            except FileNotFoundError:
                raise GGUFError(
                    f"{self.path}: part {i + 1} of {n_parts}, {quote(path.name, 128)}, is missing"
                ) from None
            self._others.append(part)
            for key, found, expected in (
                ("split.no", part.get_int("split.no"), i),
                ("split.count", part.get_int("split.count"), n_parts),
            ):
                if found != expected:
                    raise GGUFError(f"{path}: {key} is {found}, expected {expected}")
            for name, info in part.tensors.items():
                if name in tensors:
                    where = self._home.get(name, self).path
                    raise GGUFError(f"{path}: tensor {quote(name)} is in {where} too")
                tensors[name], self._home[name] = info, part
            if len(tensors) > _MAX_TENSORS:
                raise GGUFError(f"{self.path}: more than {_MAX_TENSORS} tensors in all parts")
            self.n_bytes += part.n_bytes
            self.n_header_bytes += part.n_header_bytes
            if self.n_header_bytes > MAX_HEADER_BYTES:  # a thousand parts could take minutes
                raise GGUFError(
                    f"{self.path}: the parts up to {quote(path.name, 128)} have "
                    f"{self.n_header_bytes} bytes before their tensor data, "
                    f"expected at most {MAX_HEADER_BYTES}"
                )
            part.metadata = MappingProxyType({})  # what it may hold beside is not the model's
        n_tensors = self.get_int("split.tensors.count")
        if n_tensors != len(tensors):
            raise GGUFError(
                f"{self.path}: split.tensors.count is {n_tensors}, "
                f"but the {n_parts} parts hold {len(tensors)} tensors"
            )
        self.tensors = MappingProxyType(tensors)

    def _paths(self, n_parts: int) -> tuple[Path, ...]:
        """The names of all parts; GGUFError if this is not the first, or not named as one."""
        number = self.get_int("split.no", minimum=0, maximum=n_parts - 1) + 1
        ending, first = (f"-{n:05d}-of-{n_parts:05d}.gguf" for n in (number, 1))
        name = self.path.name
        if number > 1:
            known = name.endswith(ending)
            hint = f", {quote(name.removesuffix(ending) + first, 128)}" if known else ""
            raise GGUFError(
                f"{self.path}: is part {number} of {n_parts} of a model; open the first part{hint}"
            )
        if not name.endswith(first):
            raise GGUFError(
                f"{self.path}: is the first of {n_parts} parts of a model, whose names must end as "
                f"gguf-split made them, this one with {first}"
            )
        prefix = name.removesuffix(first)
        return tuple(
            self.path.with_name(f"{prefix}-{n + 1:05d}-of-{n_parts:05d}.gguf")
            for n in range(n_parts)
        )
