from __future__ import annotations

import numpy as np
from lariat._cache import Pool
from numpy.typing import NDArray

Int32 = NDArray[np.int32]

class AttentionPlan:
    window: int
    def __init__(self, pool: Pool, n_heads: int, window: int = 0) -> None: ...
    def fill(
        self, token_starts: Int32, n_past: Int32, segment_starts: Int32, segments: Int32
    ) -> None: ...
