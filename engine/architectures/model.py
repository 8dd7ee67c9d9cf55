"""Runs what architectures record.

A forward pass is recorded once for each size of batch, as a program, and then run for every batch
of the size: one parallel region, with no Python in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from lariat._program import Program, Stop
from lariat.architectures import ARCHITECTURES
from lariat.architectures.recorder import Buffers, Product, Recorder
from lariat.architectures.weights import Weights
from lariat.cache.batch import Batch
from lariat.cache.kv_cache import KVCache
from lariat.config import ModelConfig

_MAX_AT_ONCE = 16  # tokens; larger batches are run layer by layer, so that Ctrl-C is heard
_MAX_PROGRAMS = 32  # batches of a scheduler have few different sizes


class Stopped(Exception):
    """The pass was stopped: keys and values of its tokens are not all there, and no logits."""


class _Recorded(NamedTuple):
    """The forward pass for one size of batch."""

    program: Program
    layer_ends: list[int]  # phases up to the end of each layer
    products: list[Product]  # in the order of the program
    rows: np.ndarray  # float32 [n_rows, n_vocab], or [n_rows, dim] if they are hidden rows


class Model:
    """Weights and a cache; runs batches of up to `n_ubatch` tokens.

    observer  if it is set, it is called before each product, whose arrays it must not keep: tools
              look at activations so. It takes speed.
    stop      ends a pass early, see `Stop`; `forward` then raises `Stopped`
    """

    def __init__(
        self, config: ModelConfig, weights: Weights[Any], cache: KVCache, n_ubatch: int
    ) -> None:
        self._config = config
        self._weights = weights
        self._cache = cache
        matrices = (*weights.matrices(), weights.output.weight)
        self._buffers = Buffers(n_ubatch, max(w.n_cols for w in matrices))
        self._x = self._buffers.rows("x", n_ubatch, config.dim)
        self._logits = np.zeros((1, config.n_vocab), np.float32)
        self.stop = Stop()
        self.observer: Callable[[Product], None] | None = None
        self._recorded: dict[tuple[int, int, bool], _Recorded] = {}
        self._record(1, 1, False)  # makes all buffers, so that a lack of memory shows here

    def forward(self, batch: Batch, n_threads: int) -> np.ndarray:
        """Compute the batch, store its keys and values, and return the logits asked for.

        float32 [len(batch.logit_rows), n_vocab], overwritten by the next call; [.., dim] if the
        batch wants hidden rows instead: behind the last norm, from which logits are made. `Stopped`
        if `stop` ended it.
        """
        b, n, n_rows = self._buffers, batch.n_tokens, len(batch.logit_rows)
        key = (n, n_rows, batch.wants_hidden)
        recorded = self._recorded.get(key) or self._record(*key)
        self._cache.prepare(batch)
        self._x[:n] = self._weights.embedding[batch.token_ids]
        b.positions[:n], b.slots[:n] = batch.positions, batch.slots
        b.logit_rows[:n_rows] = batch.logit_rows
        done = 0
        for product in recorded.products if self.observer else ():
            recorded.program.run(n_threads, done, product.phase, self.stop)
            done = product.phase
            assert self.observer
            self.observer(product)
        for end in recorded.layer_ends if n > _MAX_AT_ONCE and not self.observer else ():
            recorded.program.run(n_threads, done, end, self.stop)
            done = end
        recorded.program.run(n_threads, done, -1, self.stop)
        if self.stop.is_set:
            raise Stopped
        self._cache.complete(batch)
        return recorded.rows

    def _record(self, n: int, n_rows: int, hidden: bool) -> _Recorded:
        """Write the program for `n` tokens, of which `n_rows` want logits, or hidden rows."""
        if not hidden and len(self._logits) < n_rows:
            self._recorded.clear()  # they hold the smaller array
            n_rows_more = max(n_rows, 2 * len(self._logits))
            self._logits = np.zeros((n_rows_more, self._config.n_vocab), np.float32)
        program, logits = Program(), None if hidden else self._logits[:n_rows]
        recorder = Recorder(self._config, self._cache, self._buffers, program, n, n_rows, logits)
        ARCHITECTURES[self._config.architecture].forward(recorder, self._weights)
        while len(self._recorded) >= _MAX_PROGRAMS:
            del self._recorded[next(iter(self._recorded))]
        recorded = _Recorded(program, recorder.layer_ends, recorder.products, recorder.rows)
        self._recorded[n, n_rows, hidden] = recorded
        return recorded
