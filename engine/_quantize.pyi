import numpy as np

def quantize_into(
    weights: np.ndarray,
    source: str,
    out: np.ndarray,
    target: str,
    isa: str,
    n_threads: int = ...,
) -> str | None: ...
