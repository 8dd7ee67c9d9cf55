"""The forward pass of LLaMA (arXiv 2302.13971), in the order of the paper."""

from __future__ import annotations

import numpy as np

from engine import _attention, _kernels
from engine.batch import Batch
from engine.config import ModelConfig
from engine.kv_cache import KVCache
from engine.weights import Layer, Linear, Weights


class _Buffers:
    """What a forward pass writes, sized once. All float32, one row a token of the batch."""

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
        self.q8 = _kernels.Activations(n, max(c.dim, c.n_heads * c.head_dim_v, c.n_ff))


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

    def forward(self, batch: Batch, n_threads: int) -> np.ndarray:
        """Compute the batch, store its keys and values, and return the logits asked for.

        float32 [len(batch.logit_rows), n_vocab], overwritten by the next call.
        """
        c, w, b, n = self._config, self._weights, self._buffers, batch.n_tokens
        x = b.x[:n]
        x[:] = w.embedding[batch.token_ids]
        plan = self._cache.plan(batch)
        for i, layer in enumerate(w.layers):
            attention = self._attend(i, layer, x, batch, plan, n_threads)
            if i == c.n_layers - 1 and len(batch.logit_rows) < n:
                # Nothing after the last attention mixes tokens: go on with the wanted ones.
                x, attention = x[batch.logit_rows], attention[batch.logit_rows]
            self._linear(layer.attn_output, attention, x, n_threads, add=True)
            self._feed_forward(layer, x, n_threads)
        return self._output(x, n_threads)

    def _attend(
        self,
        i: int,
        layer: Layer,
        x: np.ndarray,
        batch: Batch,
        plan: _attention.AttentionPlan,
        n_threads: int,
    ) -> np.ndarray:
        """Causal self-attention of layer i: float32 [n, n_heads * head_dim_v]"""
        c, b, n = self._config, self._buffers, batch.n_tokens
        h, q, k, v = b.h[:n], b.q[:n], b.k[:n], b.v[:n]
        _kernels.rms_norm(x, layer.attn_norm, c.norm_eps, h, n_threads)
        self._quantize(h, n_threads, layer.q, layer.k, layer.v)
        self._project(layer.q, h, q, n_threads)
        self._project(layer.k, h, k, n_threads)
        self._project(layer.v, h, v, n_threads)
        q_heads = q.reshape(n, c.n_heads, c.head_dim_k)
        self._cache.rotate_queries(q_heads, batch, n_threads)
        self._cache.store(
            i,
            k.reshape(n, c.n_kv_heads, c.head_dim_k),
            v.reshape(n, c.n_kv_heads, c.head_dim_v),
            batch,
            n_threads,
        )
        out = b.attention[:n]
        self._cache.attend(i, q_heads, plan, out.reshape(n, c.n_heads, c.head_dim_v), n_threads)
        return out

    def _feed_forward(self, layer: Layer, x: np.ndarray, n_threads: int) -> None:
        """x += down(silu(gate(norm(x))) * up(norm(x)))"""
        b, n = self._buffers, len(x)
        h, gate, up = b.h[:n], b.gate[:n], b.up[:n]
        _kernels.rms_norm(x, layer.ffn_norm, self._config.norm_eps, h, n_threads)
        self._quantize(h, n_threads, layer.ffn_gate, layer.ffn_up)
        self._project(layer.ffn_gate, h, gate, n_threads)
        self._project(layer.ffn_up, h, up, n_threads)
        _kernels.silu_mul(gate, up, n_threads)
        self._linear(layer.ffn_down, gate, x, n_threads, add=True)

    def _output(self, x: np.ndarray, n_threads: int) -> np.ndarray:
        """Final norm and output matrix: float32 [len(x), n_vocab]"""
        w, n = self._weights, len(x)
        if len(self._logits) < n:
            self._logits = np.zeros((n, self._config.n_vocab), np.float32)
        h, logits = self._buffers.h[:n], self._logits[:n]
        _kernels.rms_norm(x, w.output_norm, self._config.norm_eps, h, n_threads)
        self._linear(w.output, h, logits, n_threads)
        return logits

    def _linear(
        self, w: Linear, x: np.ndarray, out: np.ndarray, n_threads: int, add: bool = False
    ) -> None:
        """out = w(x), or out += w(x); quantizes x by itself"""
        self._quantize(x, n_threads, w)
        self._project(w, x, out, n_threads, add)

    def _quantize(self, x: np.ndarray, n_threads: int, *users: Linear) -> None:
        """Quantize activations once for all the matrices that read them, if any wants it."""
        if any(user.weight.quantized for user in users):
            _kernels.quantize(x, self._buffers.q8, n_threads)

    def _project(
        self, w: Linear, x: np.ndarray, out: np.ndarray, n_threads: int, add: bool = False
    ) -> None:
        """out = w(x), or out += w(x), with x quantized before where w needs it"""
        _kernels.matmul(w.weight, x, self._buffers.q8, out, add, n_threads)
        if w.bias is not None:
            out += w.bias
