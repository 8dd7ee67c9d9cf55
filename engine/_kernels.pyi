from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
Bytes = NDArray[np.uint8]

def supported_isas() -> tuple[str, ...]: ...
def isa() -> str: ...
def use_isa(name: str) -> None: ...
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

class Activations:
    def __init__(self, n_tokens: int, n_cols: int) -> None: ...

def quantize(x: Float32, out: Activations, n_threads: int) -> None: ...
def matmul(
    w: Matrix, x: Float32, q8: Activations, out: Float32, add: bool, n_threads: int
) -> None: ...
def rms_norm(x: Float32, weight: Float32, eps: float, out: Float32, n_threads: int) -> None: ...
def rope(x: Float32, rows: Float32, positions: Int32, scale: float, n_threads: int) -> None: ...
def silu_mul(gate: Float32, up: Float32, n_threads: int) -> None: ...
