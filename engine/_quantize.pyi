import numpy as np

def targets() -> tuple[str, ...]: ...
def quantize_into(
    weights: np.ndarray,
    source: str,
    out: np.ndarray,
    target: str,
    isa: str,
    n_threads: int = ...,
    importance: np.ndarray | None = ...,
) -> str | None: ...
def grid(name: str) -> np.ndarray: ...
