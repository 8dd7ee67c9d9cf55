"""Models of others that `make real-models` gets. Tests that need one are marked `real`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SMOLLM2 = Path(__file__).parents[2] / ".real-models" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def needs_smollm2(test: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a test that runs SmolLM2, and skip it where the file is not there."""
    missing = not SMOLLM2.is_file()
    return pytest.mark.real(
        pytest.mark.skipif(missing, reason="make real-models gets SmolLM2")(test)
    )
