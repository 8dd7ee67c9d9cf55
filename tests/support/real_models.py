"""Models of others that `make real-models` gets. Tests that need one are marked `real`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_FOLDER = Path(__file__).parents[2] / ".real-models"
SMOLLM2 = _FOLDER / "SmolLM2-135M-Instruct.Q4_1.gguf"
GEMMA3 = _FOLDER / "gemma-3-270m-q4_k_m.gguf"


def needs_smollm2(test: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a test that runs SmolLM2, and skip it where the file is not there."""
    return _needs(SMOLLM2, "SmolLM2")(test)


def needs_gemma3(test: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a test that reads Gemma 3, and skip it where the file is not there."""
    return _needs(GEMMA3, "Gemma 3")(test)


def _needs(path: Path, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    skip = pytest.mark.skipif(not path.is_file(), reason=f"make real-models gets {name}")
    return lambda test: pytest.mark.real(skip(test))
