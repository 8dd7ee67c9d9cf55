"""Models of random weights whose contexts tests edit, and the ids that they put in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from lariat import LLM, SamplingParams
from lariat.runtime.request import Request
from lariat.runtime.scheduler import Scheduler

from tests.support.model_files import write_llama

CACHES = ("roped", "raw")
GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
# Blocks of whole pages are mapped from a chunk's file (8192 bytes of keys with f32, 4096 with f16).
MAPPED = {"dim": 128, "n_heads": 4, "n_kv_heads": 2}


def ids_of(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, 288, n).tolist()


def write_shallow(folder: Path) -> Path:
    """One layer: there a key depends on its own token alone, so any edit has an exact answer."""
    return write_llama(folder / "m.gguf", n_layers=1, n_ctx=512, head_dim=32)


def write_deep(folder: Path) -> Path:
    return write_llama(folder / "m.gguf", n_layers=3, n_ctx=512, head_dim=32)


def write_mapped(folder: Path) -> Path:
    """Three layers, whose chunks are mapped."""
    return write_llama(folder / "m.gguf", n_layers=3, n_ctx=512, **MAPPED)


def load(path: Path, cache: str = "raw", **options) -> LLM:
    return LLM(
        path, **{"cache": cache, "type_k": "f32", "type_v": "f32", "n_threads": 2, **options}
    )


def n_free(llm: LLM) -> int:
    return llm.runner.cache.pool.n_free


def n_held(llm: LLM) -> int:
    return llm.runner.cache.pool.n_blocks - llm.runner.cache.pool.n_free


def next_step(scheduler: Scheduler) -> list[tuple[Request, int]]:
    """What a scheduler wants computed, after the evictions that it wants first, in numbers only."""
    while (step := scheduler.schedule()).evict:
        assert not step.compute
        for request, (start, stop) in step.evict:
            request.table.delete(start, stop)
            request.evicted(start, stop)
    return step.compute


def byte_ids(text: str) -> list[int]:
    """One token for each byte: the tokens <0x00> to <0xFF> begin at 3."""
    return [3 + byte for byte in text.encode()]
