"""Qwen 3 with experts (arXiv 2505.09388).

Differs from `qwen3` in the feed-forward, which is Mixtral's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from lariat.architectures import llama, mixtral, qwen3
from lariat.architectures.architecture import Architecture
from lariat.architectures.metadata import Metadata
from lariat.architectures.recorder import Recorder
from lariat.architectures.weights import TensorReader, Weights, read_around
from lariat.config import ModelConfig


def read_config(m: Metadata) -> ModelConfig:
    """As `llama.read_config`, with experts."""
    return llama.read_config(m, m.experts(divided=True))


@dataclass(frozen=True)
class Layer(mixtral.Layer):
    """The weights of one layer."""

    q_norm: np.ndarray  # float32 [head_dim_k], halves split
    k_norm: np.ndarray  # float32 [head_dim_k], halves split


def read_layer(t: TensorReader, c: ModelConfig, i: int) -> Layer:
    """Layer `i`."""
    layer = mixtral.read_layer(t, c, i, neox=True)
    return Layer(**vars(layer), **qwen3.read_head_norms(t, c, i))


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
        # x += the sum of w_e down_e(silu(gate_e(norm(x))) * up_e(norm(x))) over the experts e that
        # the router chooses
        h = record.norm(x, layer.ffn_norm, readers=(layer.router, layer.ffn_gate, layer.ffn_up))
        routing = record.route(h, layer.router)
        record.add_experts(x, h, routing, gate=layer.ffn_gate, up=layer.ffn_up, down=layer.ffn_down)
    h = record.norm(x, weights.output_norm, readers=(weights.output,))
    record.logits(weights.output, h)


ARCHITECTURE = Architecture(read_config, read_weights, forward)
