"""The dict of architectures, whose files are imported when their model is loaded."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lariat.architectures.architecture import Architecture


class Registry(MutableMapping[str, "Architecture"]):
    """Architectures by `general.architecture`.

    A model needs one file; to import all of them takes 15 ms.
    """

    def __init__(self, modules: dict[str, str]) -> None:
        """`modules` of this folder, each with an `ARCHITECTURE`."""
        self._modules = dict(modules)
        self._loaded: dict[str, Architecture] = {}

    def __getitem__(self, name: str) -> Architecture:
        if name not in self._loaded:
            module = import_module(f"lariat.architectures.{self._modules[name]}")
            self._loaded[name] = module.ARCHITECTURE
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in self._modules or name in self._loaded

    def __setitem__(self, name: str, architecture: Architecture) -> None:
        self._loaded[name] = architecture

    def __delitem__(self, name: str) -> None:
        del self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._modules, *self._loaded]))

    def __len__(self) -> int:
        return len(self._modules.keys() | self._loaded.keys())
