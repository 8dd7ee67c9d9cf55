from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

STEP_BYTES: int
STEP_PRODUCTS: int
STEP_WEIGHT: int

def fill(memory: Bytes, n_threads: int) -> None: ...
def read(memory: Bytes, isa: str, n_threads: int) -> int: ...
def multiply(n_steps: int, activation: int, isa: str, n_threads: int) -> int: ...
def thread_ids(n_threads: int) -> list[int]: ...
