from __future__ import annotations

import numpy as np
from lariat._cache import Pool
from lariat._kernels import Rope
from lariat._program import Operation
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]

class AttentionPlan:
    def __init__(self, pool: Pool, n_heads: int, rope: Rope | None = None) -> None: ...
    def fill(
        self, token_starts: Int32, n_past: Int32, segment_starts: Int32, segments: Int32
    ) -> None: ...

def attend(pool: Pool, layer: int, q: Float32, plan: AttentionPlan, out: Float32) -> Operation: ...
def merge(pool: Pool, layer: int, q: Float32, plan: AttentionPlan, out: Float32) -> Operation: ...
