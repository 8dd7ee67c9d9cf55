from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine._cache import Pool
from engine._kernels import Rope
from engine._program import Step

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]

class AttentionPlan:
    def __init__(self, pool: Pool, n_heads: int, rope: Rope | None = None) -> None: ...
    def fill(
        self, token_starts: Int32, n_past: Int32, segment_starts: Int32, segments: Int32
    ) -> None: ...

def attend(pool: Pool, layer: int, q: Float32, plan: AttentionPlan, out: Float32) -> Step: ...
def merge(pool: Pool, layer: int, q: Float32, plan: AttentionPlan, out: Float32) -> Step: ...
