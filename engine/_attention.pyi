from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
Bytes = NDArray[np.uint8]

class Pool:
    n_layers: int
    n_blocks: int
    n_kv_heads: int
    head_dim_k: int
    head_dim_v: int
    def __init__(
        self,
        k: Bytes,
        v: Bytes,
        n_layers: int,
        n_blocks: int,
        n_kv_heads: int,
        head_dim_k: int,
        head_dim_v: int,
        k_f32: bool,
        v_f32: bool,
    ) -> None: ...

def store(pool: Pool, layer: int, k: Float32, v: Float32, slots: Int32, n_threads: int) -> None: ...

class AttentionPlan:
    def __init__(
        self,
        token_starts: Int32,
        n_past: Int32,
        segment_starts: Int32,
        segments: Int32,
        n_heads: int,
        n_kv_heads: int,
    ) -> None: ...

class Scratch: ...

def attend(
    pool: Pool,
    layer: int,
    q: Float32,
    plan: AttentionPlan,
    rope_rows: Float32,
    rope_step: Float32,
    raw: bool,
    scratch: Scratch,
    out: Float32,
    n_threads: int,
) -> None: ...
