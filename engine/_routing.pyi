from __future__ import annotations

import numpy as np
from lariat._kernels import Activations
from lariat._program import Operation
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]

class Routing:
    n_tokens: int
    n_experts: int
    n_used: int
    def __init__(self, n_tokens: int, n_experts: int, n_used: int) -> None: ...
    def chosen(self, n: int) -> tuple[Int32, Float32]: ...

def route(
    logits: Float32, routing: Routing, gating: str, normalized: bool, scale: float
) -> list[Operation]: ...
def gather(
    routing: Routing, x: Float32, out: Float32 | None = None, q8: Activations | None = None
) -> Operation: ...
def combine(routing: Routing, rows: Float32, out: Float32) -> Operation: ...
def add_gated(x: Float32, gate: Float32, y: Float32, out: Float32) -> Operation: ...
