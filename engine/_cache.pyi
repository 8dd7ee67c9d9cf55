from __future__ import annotations

import numpy as np
from lariat._kernels import Rope
from lariat._program import Operation
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
Bytes = NDArray[np.uint8]

def layout(type: str, head_dim: int) -> tuple[int, int, bool]: ...

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
        type_k: str,
        type_v: str,
        open_k: Bytes | None = None,
        open_v: Bytes | None = None,
        open_at: Int32 | None = None,
        hadamard_k: bool = False,
        hadamard_v: bool = False,
        is_full: Bytes | None = None,
    ) -> None: ...
    def fill(self, blocks: Int32) -> None: ...

def store(
    pool: Pool,
    layer: int,
    k: Float32,
    v: Float32,
    slots: Int32,
    rope: Rope | None = None,
    positions: Int32 | None = None,
) -> Operation: ...
def shift(pool: Pool, rope: Rope, moved: Int32, layers: Int32 | None = None) -> Operation: ...
def seal(pool: Pool, blocks: Int32) -> Operation: ...
def seal_filled(pool: Pool, layer: int) -> Operation: ...
