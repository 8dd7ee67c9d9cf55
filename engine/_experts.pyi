from __future__ import annotations

import numpy as np
from lariat._kernels import Activations
from lariat._program import Operation
from lariat._routing import Routing
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Bytes = NDArray[np.uint8]

def expert_bytes(type_name: str, n_rows: int, n_cols: int) -> int: ...

class ExpertMatrix:
    type_name: str
    n_experts: int
    n_rows: int
    n_cols: int
    quantized: bool
    def __init__(
        self, rows: list[Bytes], type_name: str, n_cols: int, out: Bytes, n_threads: int = 1
    ) -> None: ...
    @staticmethod
    def of_packed(
        packed: Bytes, type_name: str, n_experts: int, n_rows: int, n_cols: int
    ) -> ExpertMatrix: ...

def gate_up(
    routing: Routing,
    gate: ExpertMatrix,
    up: ExpertMatrix,
    x: Float32,
    x_q8: Activations,
    out: Float32,
    q8: Activations | None = None,
    gate_bias: Float32 | None = None,
    up_bias: Float32 | None = None,
    alpha: float = 0,
    limit: float = 0,
) -> Operation: ...
def down(
    routing: Routing,
    w: ExpertMatrix,
    x: Float32,
    q8: Activations,
    out: Float32,
    bias: Float32 | None = None,
) -> Operation: ...
