"""Models whose caches are full of random keys and values, so that depth costs no time to reach.

The time that attention takes depends on the number of keys and values, not on their contents.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import numpy as np
from lariat._program import run
from lariat.architectures.loading import load_weights, read_config
from lariat.architectures.weights import Weights
from lariat.cache.blocks import SLOTS, BlockTable
from lariat.cache.kv_cache import KVCache
from lariat.config import EngineConfig, ModelConfig
from lariat.formats.gguf import GGUFFile
from lariat.runtime.batch import Part, make_batch, split
from lariat.runtime.runner import build_runner

_Any = TypeVar("_Any")


class FilledModel:
    """A model with a full cache of its own. Several may share the same weights.

    strategy  "roped" or "raw"
    type      of keys and values
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        cache: tuple[str, str],
        n_ctx: int,
        n_ubatch: int,
    ) -> None:
        """cache: strategy, and type of keys and values"""
        self.strategy, self.type = cache
        self._runner = build_runner(
            config,
            weights,
            EngineConfig(
                n_ctx=n_ctx, n_ubatch=n_ubatch, cache=self.strategy, type_k=self.type,
                type_v=self.type,
            ),
        )  # fmt: skip
        _fill(self._runner.cache, config)

    def table(self, depth: int) -> BlockTable:
        """Make a block table of `depth` positions, none of them computed."""
        table = self._runner.new_table()
        table.append(depth)
        return table

    def forward(self, table: BlockTable, ids: list[int], n_threads: int) -> None:
        """Compute tokens behind those of a table, with the logits of the last."""
        for group in split([self._runner.part(table, ids, "last")], self._runner.n_ubatch):
            self._runner.forward(group, n_threads)


class Loaded(NamedTuple):
    """A model file: its config, its weights, and a model for each cache."""

    config: ModelConfig
    weights: Weights
    models: list[FilledModel]


@contextmanager
def load(
    path: str, caches: Iterable[tuple[str, str]], n_ctx: int, n_ubatch: int, n_threads: int
) -> Iterator[Loaded]:
    """Load a file, and make a model for each cache (strategy, type) with the same weights."""
    with GGUFFile(path) as gguf:
        config = read_config(gguf)
        weights = load_weights(gguf, config, n_threads, None)
        models = [FilledModel(config, weights, cache, n_ctx, n_ubatch) for cache in caches]
        yield Loaded(config, weights, models)


def in_turns(items: Sequence[_Any], n_repetitions: int) -> Iterator[tuple[int, Sequence[_Any]]]:
    """Yield the number of each repetition, and the order of the items in it.

    The order is reversed every second time, so that a machine that drifts slows all alike.
    """
    for i in range(n_repetitions):
        yield i, items if i % 2 else items[::-1]


def _fill(cache: KVCache, config: ModelConfig) -> None:
    """Put random keys and values in all blocks: copies of one, which cost as much to read."""
    table, rng = cache.new_table(), np.random.default_rng(0)
    batch = make_batch([Part(table, [0] * SLOTS)])
    cache.prepare(batch)
    for layer in range(config.n_layers):
        keys, values = (
            rng.standard_normal((SLOTS, config.n_kv_heads, d), np.float32)
            for d in (config.head_dim_k, config.head_dim_v)
        )
        run(cache.store(layer, keys, values, batch.positions, batch.slots))
        run(*cache.seal(layer))
    cache.complete(batch)
    block = cache.read(table)
    table.clear()
    slots, _ = table.append(SLOTS * cache.pool.n_blocks)
    for slots_of_block in slots.reshape(-1, SLOTS):
        cache.write(slots_of_block, block)
    table.clear()
