"""Attention over the cache, with keys rotated when they were written (roped) or now (raw)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from lariat._program import Program, run
from lariat.cache.kv_cache import STRATEGIES, cache_bytes
from lariat.cache.rope import RopeTables, frequencies
from lariat.config import ModelConfig, RopeConfig
from lariat.measure.machine import Probe
from lariat.runtime.batch import Batch, Part, make_batch

from bench.micro.conftest import ISAS, N_THREADS, Record
from tests.reference import relative_error, softmax

CACHES = ("roped", "raw")


@dataclass(frozen=True)
class Heads:
    n_heads: int
    n_kv_heads: int
    head_dim: int


LAYOUTS = {"7b": Heads(32, 32, 128), "8b": Heads(32, 8, 128), "1b": Heads(32, 4, 64)}
DEPTHS = (128, 1024, 8192)
# Layers are read one after the other, so that none is still in the processor's cache
N_LAYERS = {128: 16, 1024: 4, 8192: 2}


class Attention:
    """A cache filled with random keys and values, and `n_new` tokens that attend to it."""

    def __init__(
        self, cache: str, heads: Heads, depth: int, n_new: int, rng: np.random.Generator
    ) -> None:
        n, self.n_layers = depth + n_new, N_LAYERS.get(depth, 1)
        d = heads.head_dim
        self.config = ModelConfig(
            n_vocab=1,
            n_ctx_train=n,
            dim=heads.n_heads * d,
            n_layers=self.n_layers,
            n_heads=heads.n_heads,
            n_kv_heads=heads.n_kv_heads,
            head_dim_k=d,
            head_dim_v=d,
            n_ff=1,
            norm_eps=1e-5,
            rope_dim=d,
            rope=RopeConfig("none", scale=1.0, freq_base=10000.0, yarn_orig_ctx=n),
        )
        self.theta = frequencies(self.config)
        self.cache = STRATEGIES[cache](
            self.config, n + 32, "f16", "f16", RopeTables(self.config, n + 32)
        )
        self.keys, self.values = rng.standard_normal((2, n, heads.n_kv_heads, d), np.float32)
        context = self.cache.new_table()
        if depth:
            self._store(make_batch([Part(context, [0] * depth)]), slice(depth))
        batch = make_batch([Part(context, [0] * n_new)])
        self.queries = rng.standard_normal((n_new, heads.n_heads, d), np.float32)
        self.out = np.zeros((n_new, heads.n_heads, d), np.float32)
        rotated = self.queries.copy()
        self.cache.prepare(batch)
        run(self.cache.rotate_queries(0, rotated, batch.positions))
        self._store(batch, slice(depth, None))
        self.programs = []
        for layer in range(self.n_layers):
            attend, merge = self.cache.attend(layer, rotated, self.out)
            self.programs.append(Program().then(attend).then(merge))
        self.layer = 0
        self.n_bytes = cache_bytes(self.config, n, "f16", "f16") / self.n_layers
        n_seen = n_new * depth + n_new * (n_new + 1) / 2
        self.n_macs = 2 * heads.n_heads * d * n_seen

    def _store(self, batch: Batch, which: slice) -> None:
        self.cache.prepare(batch)
        for layer in range(self.n_layers):
            keys, values = self.keys[which].copy(), self.values[which].copy()
            store = self.cache.store(layer, keys, values, batch.positions, batch.slots)
            run(store, n_threads=N_THREADS)

    def run(self, n_threads: int) -> None:
        self.layer = (self.layer + 1) % self.n_layers
        self.programs[self.layer].run(n_threads)

    def is_right(self) -> bool:
        """The last token, against float64; keys and values are rounded to f16 on the way."""
        c, n = self.config, len(self.keys)
        keys = self._rotate(self.keys, np.arange(n))
        query = self._rotate(self.queries[-1:], np.arange(n - 1, n))[0] / np.sqrt(c.head_dim_k)
        of = np.arange(c.n_heads) // c.group
        scores = np.einsum("hd,nhd->hn", query, keys[:, of])
        values = self.values.astype(np.float64)[:, of]
        expected = np.einsum("hn,nhd->hd", softmax(scores), values)
        return relative_error(self.out[-1], expected) < 2e-3

    def _rotate(self, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """By halves, as the engine keeps heads: float64 [n, n_heads, head_dim]"""
        half = x.shape[2] // 2
        lo, hi = x[..., :half].astype(np.float64), x[..., half:].astype(np.float64)
        angle = (positions[:, None] * self.theta)[:, None]
        c, s = np.cos(angle), np.sin(angle)
        return np.concatenate([lo * c - hi * s, lo * s + hi * c], 2)


def measure(
    benchmark: Any, record: Record, attention: Attention, n_threads: int, rounds: int
) -> None:
    """The share of the float peak counts the two products of each query and key."""
    benchmark.pedantic(attention.run, args=(n_threads,), rounds=rounds, warmup_rounds=2)
    peak = Probe(n_threads, 1 << 20).float_peak(n_threads)
    record(
        correct=attention.is_right(),
        n_threads=n_threads,
        n_bytes=attention.n_bytes,
        n_macs=attention.n_macs,
        peak=peak,
    )


@pytest.mark.benchmark(group="decode: does rotating on read cost anything, by heads and depth?")
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("layout", LAYOUTS)
def bench_decode(
    benchmark: Any, record: Record, rng: np.random.Generator, layout: str, depth: int, cache: str
) -> None:
    attention = Attention(cache, LAYOUTS[layout], depth, 1, rng)
    measure(benchmark, record, attention, N_THREADS, 40 if depth < 8192 else 12)


@pytest.mark.benchmark(group="decode: the same on one thread, 32 heads of 128")
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("depth", DEPTHS)
def bench_decode_one_thread(
    benchmark: Any, record: Record, rng: np.random.Generator, depth: int, cache: str
) -> None:
    attention = Attention(cache, LAYOUTS["7b"], depth, 1, rng)
    measure(benchmark, record, attention, 1, 40 if depth < 8192 else 12)


@pytest.mark.benchmark(group="prompt of 128: does rotating on read cost anything, by heads, depth?")
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("depth", [0, 1024, 8192])
@pytest.mark.parametrize("layout", LAYOUTS)
def bench_prompt(
    benchmark: Any, record: Record, rng: np.random.Generator, layout: str, depth: int, cache: str
) -> None:
    attention = Attention(cache, LAYOUTS[layout], depth, 128, rng)
    measure(benchmark, record, attention, N_THREADS, 7)


@pytest.mark.benchmark(group="decode at 1024, one thread: what does each level make of it?")
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("isa", ISAS, indirect=True)
def bench_decode_isa(
    benchmark: Any, record: Record, rng: np.random.Generator, isa: str, cache: str
) -> None:
    measure(benchmark, record, Attention(cache, LAYOUTS["8b"], 1024, 1, rng), 1, 9)
