"""Interleaved matrices: what decides their bytes, and the memory that they are interleaved into.

Bytes of an interleaved matrix depend on its rows, on their order, and on the layout of the type
(simd/layout.h). No instruction set or kind of core has a layout of its own today. Should one get
it, nothing has to be changed here: the layout is named by what interleaving makes of a fixed
pattern in this process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache

import numpy as np
import xxhash
from lariat import _experts, _kernels
from lariat.os_memory import Arena

_PATTERN_ROWS = 17  # two groups, of which one is not full
_PATTERN_BLOCKS = 2  # in a row


@dataclass(frozen=True)
class Packed:
    """A matrix to interleave, or the matrices of all experts of a layer."""

    name: str  # of the tensor
    type: str
    n_rows: int  # of an expert's matrix, where there are experts
    n_cols: int
    n_experts: int = 0  # 0: no experts
    first: int = 0  # row of the tensor with which the matrix begins
    order: np.ndarray | None = None  # int64 [n_rows] of the rows, None: as in the file

    @property
    def n_bytes(self) -> int:
        """Bytes of the interleaved rows."""
        if self.n_experts:
            return self.n_experts * _experts.expert_bytes(self.type, self.n_rows, self.n_cols)
        return _kernels.packed_bytes(self.type, self.n_rows, self.n_cols)

    @property
    def key(self) -> str:
        """All that decides the bytes, but the tensor's own."""
        shape = f"{self.n_experts}x{self.n_rows}x{self.n_cols}"
        order = "-" if self.order is None else xxhash.xxh3_64(self.order.data).hexdigest()
        # The name comes last, because it may hold anything.
        return f"{self.type} {layout(self.type)} {shape} {self.first} {order} {self.name}"

    def matrix(self, memory: np.ndarray) -> _kernels.Matrix:
        """The matrix whose interleaved rows are in `memory`, uint8 [n_bytes]."""
        return _kernels.Matrix.of_packed(memory, self.type, self.n_rows, self.n_cols)

    def expert_matrix(self, memory: np.ndarray) -> _experts.ExpertMatrix:
        """The experts' matrices whose interleaved rows are in `memory`, uint8 [n_bytes]."""
        return _experts.ExpertMatrix.of_packed(
            memory, self.type, self.n_experts, self.n_rows, self.n_cols
        )


@cache
def layout(type: str) -> str:
    """Name the layout of a weight type: a hash of a fixed pattern of rows, interleaved."""
    _, n_columns, n_bytes = _kernels.weight_types()[type]
    n_blocks = _PATTERN_BLOCKS * max(1, 32 // n_columns)
    numbers = np.arange(_PATTERN_ROWS * n_blocks * n_bytes, dtype=np.uint32)
    rows = (numbers * np.uint32(2654435761) >> np.uint32(24)).astype(np.uint8)
    n_cols = n_blocks * n_columns
    out = np.zeros(_kernels.packed_bytes(type, _PATTERN_ROWS, n_cols), np.uint8)
    _kernels.Matrix(rows.reshape(_PATTERN_ROWS, -1), type, n_cols, out)
    return xxhash.xxh3_64(out.data).hexdigest()


class Places(ABC):
    """Memory for interleaved matrices.

    is_filled  whether the memory holds the interleaved rows already
    """

    is_filled = False

    @abstractmethod
    def take(self, packed: Packed) -> np.ndarray:
        """Memory for a matrix, uint8 [n_bytes], 64-byte aligned."""

    @abstractmethod
    def keep(self, packed: Packed, memory: np.ndarray) -> None:
        """Called with the memory of `take` once the rows are interleaved into it."""


class ArenaPlaces(Places):
    """Memory of this process."""

    def __init__(self, n_bytes: int, n_pieces: int) -> None:
        """As for `Arena`."""
        self._arena = Arena(n_bytes, n_pieces)

    def take(self, packed: Packed) -> np.ndarray:
        """The next piece of the arena."""
        return self._arena.take(packed.n_bytes)

    def keep(self, packed: Packed, memory: np.ndarray) -> None:
        """Do nothing: the memory is the matrix's."""
