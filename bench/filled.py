"""Models whose caches are full of random keys and values, so that depth costs no time: how long
attention takes depends on how many there are, not on what they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import numpy as np
from lariat._program import run
from lariat.architectures.loading import load_weights, read_config
from lariat.architectures.model import Model
from lariat.architectures.weights import Weights
from lariat.cache.blocks import SLOTS, BlockTable
from lariat.cache.kv_cache import STRATEGIES, KVCache
from lariat.cache.rope import RopeTables
from lariat.config import ModelConfig
from lariat.formats.gguf import GGUFFile
from lariat.runtime import threads
from lariat.runtime.batch import Part, make_batch, split

_Any = TypeVar("_Any")


class FilledModel:
    """A model with a cache of its own; the weights may be those of others too."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        kind: tuple[str, str],
        n_ctx: int,
        n_ubatch: int,
    ) -> None:
        """kind: cache strategy, and type of keys and values."""
        self.strategy, self.type = kind
        rope = RopeTables(config, n_ctx + SLOTS, weights.rope_factors)
        self._cache = STRATEGIES[self.strategy](config, n_ctx, self.type, self.type, rope)
        self._model, self._n_ubatch = Model(config, weights, self._cache, n_ubatch), n_ubatch
        _fill(self._cache, config)

    def context(self, depth: int) -> BlockTable:
        """A context of so many positions, none of them computed."""
        context = self._cache.new_table()
        context.append(depth)
        return context

    def forward(self, context: BlockTable, ids: list[int], n_threads: int) -> None:
        """Compute tokens behind a context together, with the logits of the last."""
        with threads.forward_pass():
            for group in split([Part(context, ids, "last")], self._n_ubatch):
                self._model.forward(make_batch(group), n_threads)


class Loaded(NamedTuple):
    """A model file and what was made of it."""

    config: ModelConfig
    weights: Weights
    models: list[FilledModel]


@contextmanager
def load(
    path: str, kinds: Iterable[tuple[str, str]], n_ctx: int, n_ubatch: int, n_threads: int
) -> Iterator[Loaded]:
    """A model of each kind (cache strategy, type of keys and values), all with the same weights."""
    with GGUFFile(path) as gguf:
        config = read_config(gguf)
        weights = load_weights(gguf, config, n_threads, None)
        models = [FilledModel(config, weights, kind, n_ctx, n_ubatch) for kind in kinds]
        yield Loaded(config, weights, models)


def in_turns(what: Sequence[_Any], repetitions: int) -> Iterator[tuple[int, Sequence[_Any]]]:
    """The number of each repetition and the order in which `what` has its turns: the reverse every
    second time, so that a machine that drifts slows all alike."""
    for i in range(repetitions):
        yield i, what if i % 2 else what[::-1]


def _fill(cache: KVCache, config: ModelConfig) -> None:
    """Random keys and values in all blocks: copies of one, which cost as much to read."""
    context, rng = cache.new_table(), np.random.default_rng(0)
    batch = make_batch([Part(context, [0] * SLOTS)])
    cache.prepare(batch)
    for layer in range(config.n_layers):
        keys, values = (
            rng.standard_normal((SLOTS, config.n_kv_heads, d), np.float32)
            for d in (config.head_dim_k, config.head_dim_v)
        )
        run(cache.store(layer, keys, values, batch.positions, batch.slots))
    cache.complete(batch, 1)
    block = cache.read(context)
    context.clear()
    slots, _ = context.append(SLOTS * cache.pool.n_blocks)
    for of_block in slots.reshape(-1, SLOTS):
        cache.write(of_block, block)
    context.clear()
