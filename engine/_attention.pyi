from __future__ import annotations

import numpy as np
from lariat._attention_plan import AttentionPlan
from lariat._cache import Pool
from lariat._kernels import Rope
from lariat._program import Operation
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

def attend(
    pool: Pool,
    layer: int,
    q: Float32,
    plan: AttentionPlan,
    out: Float32,
    rope: Rope | None = None,
    soft_cap: float = 0,
    sinks: Float32 | None = None,
) -> Operation: ...
def merge(
    pool: Pool,
    layer: int,
    q: Float32,
    plan: AttentionPlan,
    out: Float32,
    sinks: Float32 | None = None,
) -> Operation: ...
