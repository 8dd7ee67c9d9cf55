"""The forward pass of LLaMA (arXiv 2302.13971), in the order of the paper.

It is written down once as a program and then run for every batch of the same size: kernels return
steps, `then` puts them one after the other, and all threads walk the whole list together.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from lariat._kernels import Activations, add_bias, matmul, quantize, rms_norm, select_rows, silu_mul
from lariat._program import Operation, Program
from lariat.architectures.weights import Layer, Linear, Weights
from lariat.cache.kv_cache import KVCache
from lariat.config import ModelConfig
from lariat.runtime.batch import Batch

_AT_ONCE = 16  # tokens; larger batches are run layer by layer, so that Ctrl-C is heard
_KEPT = 32  # programs; batches of a scheduler have few different sizes


class _Buffers:
    """What a forward pass writes, sized once: one row a token of the batch, float32 unless said."""

    def __init__(self, c: ModelConfig, n: int) -> None:
        def rows(width: int) -> np.ndarray:
            return np.zeros((n, width), np.float32)

        self.x = rows(c.dim)  # the residual stream
        self.h = rows(c.dim)  # its norm
        self.q = rows(c.n_heads * c.head_dim_k)
        self.k = rows(c.n_kv_heads * c.head_dim_k)
        self.v = rows(c.n_kv_heads * c.head_dim_v)
        self.attention = rows(c.n_heads * c.head_dim_v)
        self.gate = rows(c.n_ff)
        self.up = rows(c.n_ff)
        self.q8 = Activations(n, max(c.dim, c.n_heads * c.head_dim_v, c.n_ff))
        self.positions, self.slots, self.logit_rows = np.zeros((3, n), np.int32)


class _Recorded(NamedTuple):
    """The forward pass for one size of batch."""

    program: Program
    layer_ends: list[int]  # phases up to the end of each layer
    logits: np.ndarray  # float32 [n_rows, n_vocab]


class Model:
    """Weights and a cache; runs batches of up to `n_ubatch` tokens."""

    def __init__(
        self, config: ModelConfig, weights: Weights, cache: KVCache, n_ubatch: int
    ) -> None:
        self._config = config
        self._weights = weights
        self._cache = cache
        self._buffers = _Buffers(config, n_ubatch)
        self._logits = np.zeros((1, config.n_vocab), np.float32)
        self._recorded: dict[tuple[int, int], _Recorded] = {}

    def forward(self, batch: Batch, n_threads: int) -> np.ndarray:
        """Compute the batch, store its keys and values, and return the logits asked for.

        float32 [len(batch.logit_rows), n_vocab], overwritten by the next call.
        """
        b, n, n_rows = self._buffers, batch.n_tokens, len(batch.logit_rows)
        recorded = self._recorded.get((n, n_rows)) or self._record(n, n_rows)
        self._cache.prepare(batch)
        b.x[:n] = self._weights.embedding[batch.token_ids]
        b.positions[:n], b.slots[:n] = batch.positions, batch.slots
        b.logit_rows[:n_rows] = batch.logit_rows
        done = 0
        for end in recorded.layer_ends if n > _AT_ONCE else ():
            recorded.program.run(n_threads, done, end)
            done = end
        recorded.program.run(n_threads, done)
        self._cache.complete(batch, n_threads)
        return recorded.logits

    def _record(self, n: int, n_rows: int) -> _Recorded:
        """Write the program for `n` tokens, of which `n_rows` want logits."""
        w, b = self._weights, self._buffers
        if len(self._logits) < n_rows:
            self._logits = np.zeros((n_rows, self._config.n_vocab), np.float32)
        recorded = _Recorded(Program(), [], self._logits[:n_rows])
        program, last = recorded.program, w.layers[-1]
        for i, layer in enumerate(w.layers):
            self._project(program, i, layer, n)
            # Nothing after the last attention mixes tokens: go on with the wanted ones.
            if layer is not last or n_rows:
                self._attend(program, i, n)
                n_on = n
                if layer is last and n_rows < n:
                    wanted, n_on = b.logit_rows[:n_rows], n_rows
                    program.then(select_rows(b.x[:n], wanted), select_rows(b.attention[:n], wanted))
                self._finish_attention(program, layer, n_on)
                self._feed_forward(program, layer, n_on)
            recorded.layer_ends.append(program.n_phases)
        if n_rows:
            self._output(program, recorded.logits)
        while len(self._recorded) >= _KEPT:
            del self._recorded[next(iter(self._recorded))]
        self._recorded[n, n_rows] = recorded
        return recorded

    def _project(self, program: Program, i: int, layer: Layer, n: int) -> None:
        """q, k, v = norm(x) times their matrices; q and k rotated; k and v go into the cache"""
        c, b = self._config, self._buffers
        h, q, k, v = b.h[:n], b.q[:n], b.k[:n], b.v[:n]
        self._norm(program, b.x[:n], layer.attn_norm, h, layer.q, layer.k, layer.v)
        self._linear(program, (layer.q, h, q), (layer.k, h, k), (layer.v, h, v))
        if layer.q_norm is not None and layer.k_norm is not None:
            self._norm_heads(program, (layer.q_norm, q), (layer.k_norm, k))
        positions, slots = b.positions[:n], b.slots[:n]
        q_heads = q.reshape(n, c.n_heads, c.head_dim_k)
        k_heads = k.reshape(n, c.n_kv_heads, c.head_dim_k)
        v_heads = v.reshape(n, c.n_kv_heads, c.head_dim_v)
        program.then(
            self._cache.rotate_queries(q_heads, positions),
            self._cache.store(i, k_heads, v_heads, positions, slots),
        )

    def _attend(self, program: Program, i: int, n: int) -> None:
        """attention = softmax(q k / sqrt(head_dim)) v, causal, over the cache"""
        c, b = self._config, self._buffers
        out = b.attention[:n].reshape(n, c.n_heads, c.head_dim_v)
        for step in self._cache.attend(i, b.q[:n].reshape(n, c.n_heads, c.head_dim_k), out):
            program.then(step)

    def _finish_attention(self, program: Program, layer: Layer, n: int) -> None:
        """x += output(attention)"""
        b = self._buffers
        if layer.attn_output.weight.quantized:
            program.then(quantize(b.attention[:n], b.q8))
        self._linear(program, (layer.attn_output, b.attention[:n], b.x[:n]), add=True)

    def _feed_forward(self, program: Program, layer: Layer, n: int) -> None:
        """x += down(silu(gate(norm(x))) * up(norm(x)))"""
        b = self._buffers
        x, h, gate, up = b.x[:n], b.h[:n], b.gate[:n], b.up[:n]
        self._norm(program, x, layer.ffn_norm, h, layer.ffn_gate, layer.ffn_up)
        self._linear(program, (layer.ffn_gate, h, gate), (layer.ffn_up, h, up))
        program.then(silu_mul(gate, up, self._q8_for(layer.ffn_down)))
        self._linear(program, (layer.ffn_down, gate, x), add=True)

    def _output(self, program: Program, logits: np.ndarray) -> None:
        """logits = output(norm(x))"""
        w, b, n = self._weights, self._buffers, len(logits)
        self._norm(program, b.x[:n], w.output_norm, b.h[:n], w.output)
        self._linear(program, (w.output, b.h[:n], logits))

    def _norm(
        self, program: Program, x: np.ndarray, weight: np.ndarray, h: np.ndarray, *users: Linear
    ) -> None:
        """h = norm(x), for these matrices to read"""
        program.then(rms_norm(x, weight, self._config.norm_eps, h, self._q8_for(*users)))

    def _norm_heads(self, program: Program, *heads: tuple[np.ndarray, np.ndarray]) -> None:
        """x = norm(x), head by head, for each (weight, x)"""
        eps, each = self._config.norm_eps, [(w, x.reshape(-1, len(w))) for w, x in heads]
        program.then(*[rms_norm(x, weight, eps, x) for weight, x in each])

    def _q8_for(self, *users: Linear) -> Activations | None:
        """Where to quantize what these matrices read, if any of them wants it."""
        return self._buffers.q8 if any(user.weight.quantized for user in users) else None

    def _linear(
        self, program: Program, *products: tuple[Linear, np.ndarray, np.ndarray], add: bool = False
    ) -> None:
        """out = w(x), or out += w(x), for each (w, x, out), with x quantized if w needs it"""
        q8 = self._buffers.q8
        program.then(*[matmul(w.weight, x, q8, out, add) for w, x, out in products])
        biases: list[Operation] = [
            add_bias(w.bias, out) for w, _, out in products if w.bias is not None
        ]
        if biases:
            program.then(*biases)
