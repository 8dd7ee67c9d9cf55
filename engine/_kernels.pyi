from __future__ import annotations

import numpy as np
from lariat._program import Operation
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
Bytes = NDArray[np.uint8]

def supported_isas() -> tuple[str, ...]: ...
def isa() -> str: ...
def use_isa(name: str) -> None: ...
def core() -> str: ...
def use_core(name: str) -> None: ...
def core_is_forced() -> bool: ...
def variants() -> tuple[tuple[str, str], ...]: ...
def weight_types() -> dict[str, tuple[int, int, int]]: ...
def packed_bytes(type_name: str, n_rows: int, n_cols: int) -> int: ...

class Matrix:
    type_name: str
    n_rows: int
    n_cols: int
    quantized: bool
    def __init__(
        self,
        rows: Bytes,
        type_name: str,
        n_cols: int,
        out: Bytes,
        order: NDArray[np.int64] | None = None,
        n_threads: int = 1,
    ) -> None: ...
    @staticmethod
    def of_packed(packed: Bytes, type_name: str, n_rows: int, n_cols: int) -> Matrix: ...

class Activations:
    def __init__(self, n_tokens: int, n_cols: int) -> None: ...

def quantize(x: Float32, out: Activations) -> Operation: ...
def matmul(
    w: Matrix, x: Float32, q8: Activations, out: Float32, add: bool = False
) -> Operation: ...
def rms_norm(
    x: Float32, weight: Float32, eps: float, out: Float32, q8: Activations | None = None
) -> Operation: ...
def add_bias(bias: Float32, out: Float32) -> Operation: ...
def select_rows(x: Float32, rows: Int32) -> Operation: ...

class Rope:
    head_dim: int
    n_positions: int
    def __init__(
        self,
        rows: Float32,
        step: Float32,
        gain: float = 1,
        group_n: int = 1,
        group_window: int = 1,
    ) -> None: ...
    def set(
        self,
        rows: Float32,
        step: Float32,
        gain: float = 1,
        group_n: int = 1,
        group_window: int = 1,
    ) -> None: ...

def rope(
    x: Float32, table: Rope, positions: Int32, scale: float, hadamard: bool = False
) -> Operation: ...
def silu_mul(gate: Float32, up: Float32, q8: Activations | None = None) -> Operation: ...
