"""Qwen 3 (arXiv 2505.09388).

Differs from `llama` in the pairs of RoPE, dims of a head that are rope_dim / 2 apart, and in an
RMSNorm of each head of q and k before RoPE.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from lariat.architectures import llama
from lariat.architectures.architecture import Architecture
from lariat.architectures.recorder import Recorder
from lariat.architectures.weights import TensorReader, Weights, read_around, split_halves
from lariat.config import ModelConfig


@dataclass(frozen=True)
class Layer(llama.Layer):
    """The weights of one layer."""

    q_norm: np.ndarray  # float32 [head_dim_k], halves split
    k_norm: np.ndarray  # float32 [head_dim_k], halves split


def read_head_norms(t: TensorReader, c: ModelConfig, i: int) -> dict[str, Any]:
    """`q_norm` and `k_norm` of layer `i`."""
    order = partial(split_halves, 1, c.head_dim_k, c.rope_dim, neox=True)
    return {
        name: t.vector(f"blk.{i}.attn_{name}.weight", c.head_dim_k, order)
        for name in ("q_norm", "k_norm")
    }


def read_layer(t: TensorReader, c: ModelConfig, i: int) -> Layer:
    """Layer `i`."""
    return Layer(**vars(llama.read_layer(t, c, i, neox=True)), **read_head_norms(t, c, i))


def read_weights(t: TensorReader, c: ModelConfig) -> Weights[Layer]:
    """All layers, then the tensors around them."""
    return read_around(t, c, tuple(read_layer(t, c, i) for i in range(c.n_layers)))


def forward(record: Recorder, weights: Weights[Layer]) -> None:
    """The forward pass of n tokens. Arrays are float32 [n, ...]."""
    x = record.x  # [dim], the embedding of each token
    for i, layer in record.layers(weights.layers):
        # q, k, v = norm(x) times their matrices; x += output(attention(norm(q), norm(k), v))
        h = record.norm(x, layer.attn_norm, readers=(layer.q, layer.k, layer.v))
        q, k, v = record.linear(h, q=layer.q, k=layer.k, v=layer.v)
        record.norm_heads((q, layer.q_norm), (k, layer.k_norm))
        record.rotate_and_store(i, q, k, v)
        x, attention = record.attend(i, q, x, readers=(layer.attn_output,))
        record.add_linear(x, layer.attn_output, attention)
        # x += down(silu(gate(norm(x))) * up(norm(x)))
        h = record.norm(x, layer.ffn_norm, readers=(layer.ffn_gate, layer.ffn_up))
        gate, up = record.linear(h, gate=layer.ffn_gate, up=layer.ffn_up)
        gate = record.silu_mul(gate, up, readers=(layer.ffn_down,))
        record.add_linear(x, layer.ffn_down, gate)
    h = record.norm(x, weights.output_norm, readers=(weights.output,))
    record.logits(weights.output, h)


ARCHITECTURE = Architecture(llama.read_config, read_weights, forward)
