from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

def forbid(logits: NDArray[np.float32], mask: NDArray[np.uint32]) -> None: ...
