"""Strings of a GGUF file's metadata, which are decoded when they are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
import numpy.typing as npt
from lariat import _strings


class StringArray(Sequence[str]):
    """Strings of a metadata array, kept as bytes and decoded when they are read.

    Bytes that are not UTF-8 decode to U+FFFD; `raw` gives them unchanged.
    """

    __slots__ = ("_blob", "_bounds")

    def __init__(self, blob: bytes, bounds: npt.NDArray[np.int64]) -> None:
        """blob: the strings as in the file, each after its uint64 length.

        bounds: [n + 1], the place in `blob` of each string's length, and the end of the last.
        """
        self._blob = blob
        self._bounds = bounds

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def raw(self, index: int) -> bytes:
        """The bytes of one string. IndexError outside the array."""
        n = len(self)
        if not -n <= index < n:
            raise IndexError(f"index {index} of {n} strings")
        index %= n
        return self._blob[int(self._bounds[index]) + 8 : int(self._bounds[index + 1])]

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.raw(index).decode("utf-8", "replace")

    def __iter__(self) -> Iterator[str]:
        for text in self.iter_raw():
            yield text.decode("utf-8", "replace")

    def iter_raw(self) -> Iterator[bytes]:
        """The bytes of each string; much faster than to call `raw` for each index."""
        return iter(_strings.split(self._blob, self._bounds))

    def ids(self) -> tuple[dict[str, int], set[str]]:
        """The place of each string, by its text; and those texts that are not UTF-8.

        A text that is there twice has its last place. Bytes that are not UTF-8 become lone
        surrogates, as `bytes.decode` makes them with "surrogateescape".
        """
        return _strings.ids_of(self._blob, self._bounds)

    def pairs(self) -> Sequence[tuple[str, str]]:
        """The two texts around the first space of each string, in order, each pair once.

        A space at the very beginning belongs to the first text. Strings that are not two texts, or
        not UTF-8, are left out.
        """
        pairs = _strings.Pairs(self._blob, self._bounds)
        if _strings.may_repeat(self._blob, self._bounds):  # faster than hashing all pairs
            return list(dict.fromkeys(pairs))
        return pairs

    @property
    def longest(self) -> int:
        """Bytes of the longest string, 0 if there is none."""
        return int(np.diff(self._bounds).max(initial=8)) - 8

    @property
    def stored(self) -> bytes:
        """The strings as in the file, each after its length (uint64, little-endian)."""
        return self._blob

    def __repr__(self) -> str:
        return f"<StringArray of {len(self)}>"


class RawStrings(Sequence[bytes]):
    """The bytes of the strings of an array, made when they are asked for.

    To go through them is much faster than to ask for each index.
    """

    __slots__ = ("_strings",)

    def __init__(self, strings: StringArray) -> None:
        """Shares the memory of `strings`."""
        self._strings = strings

    def __len__(self) -> int:
        return len(self._strings)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [self._strings.raw(i) for i in range(*index.indices(len(self)))]
        return self._strings.raw(index)

    def __iter__(self) -> Iterator[bytes]:
        return self._strings.iter_raw()
