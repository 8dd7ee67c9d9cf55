"""What the benchmarks share: a synthetic model, and what is recorded beside each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine import LLM, GGUFFile, _kernels
from tests.model_files import write_llama


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, 22M of them in Q4_0: times do not depend on what they say."""
    return write_llama(
        tmp_path_factory.mktemp("bench") / "synthetic-22m-q4_0.gguf",
        dim=512,
        n_layers=6,
        n_heads=8,
        n_kv_heads=4,
        n_ff=1408,
        n_vocab=4096,
        n_ctx=2048,
        weight_type="Q4_0",
    )


@pytest.fixture
def record(model: Path, benchmark: Any) -> Any:
    """Call it with the model that ran, the tokens a round has, and whether the result is right."""

    def record(llm: LLM, n_tokens: int, correct: bool) -> None:
        with GGUFFile(model) as gguf:
            weights = sum(
                info.n_bytes for name, info in gguf.tensors.items() if name != "token_embd.weight"
            )
        seconds = benchmark.stats.stats.median
        benchmark.extra_info.update(
            correct=correct,
            isa=_kernels.isa(),
            n_threads=llm.n_threads,
            weight_bytes=weights,  # read once for each decoded token, or for each prompt chunk
            tokens_per_s=round(n_tokens / seconds, 1),
        )
        assert correct

    return record
