"""Gemma 3 (arXiv 2503.19786), its text models.

Differs from `gemma2` in an RMSNorm of each head of q and k, in RoPE with another base where a layer
has an attention window, and in scores without a cap. Five of six layers have a window.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from lariat.architectures import gemma2, qwen3
from lariat.architectures.architecture import Architecture
from lariat.architectures.metadata import Metadata
from lariat.architectures.recorder import Recorder
from lariat.architectures.weights import TensorReader, Weights, read_around
from lariat.config import LayerConfig, ModelConfig

_OF_27B = 62  # layers


def read_config(m: Metadata) -> ModelConfig:
    """Layers with a window rotate by the local base, without scaling."""
    c = gemma2.read_shape(m, n_layers_of_27b=_OF_27B)
    base = m.real("rope.freq_base_swa", 1e-3, 1e15, 1e4)
    local = replace(c.rope, scaling="none", scale=1.0, freq_base=base)
    windows = m.windows(c, pattern=6)
    layers = tuple(LayerConfig(local if window else c.rope, window) for window in windows)
    return replace(c, layers=layers)


@dataclass(frozen=True)
class Layer(qwen3.Layer):
    """The weights of one layer."""

    attn_post_norm: np.ndarray  # float32 [dim]
    ffn_post_norm: np.ndarray  # float32 [dim]


def read_layer(t: TensorReader, c: ModelConfig, i: int) -> Layer:
    """Layer `i`."""
    return Layer(**vars(qwen3.read_layer(t, c, i)), **gemma2.read_post_norms(t, c, i))


def read_weights(t: TensorReader, c: ModelConfig) -> Weights[Layer]:
    """All layers, then the tensors around them."""
    return read_around(t, c, tuple(read_layer(t, c, i) for i in range(c.n_layers)))


def forward(record: Recorder, weights: Weights[Layer]) -> None:
    """The forward pass of n tokens. Arrays are float32 [n, ...]."""
    x = record.x  # [dim], the embedding of each token
    record.scale(x, record.config.embedding_scale)
    for i, layer in record.layers(weights.layers):
        # q, k, v = norm(x) times their matrices
        # x += norm(output(attention(norm(q), norm(k), v)))
        h = record.norm(x, layer.attn_norm, readers=(layer.q, layer.k, layer.v))
        q, k, v = record.linear(h, q=layer.q, k=layer.k, v=layer.v)
        record.norm_heads((q, layer.q_norm), (k, layer.k_norm))
        record.rotate_and_store(i, q, k, v)
        x, attention = record.attend(i, q, x, readers=(layer.attn_output,))
        record.add_normed(x, layer.attn_output, attention, layer.attn_post_norm)
        # x += norm(down(gelu(gate(norm(x))) * up(norm(x))))
        h = record.norm(x, layer.ffn_norm, readers=(layer.ffn_gate, layer.ffn_up))
        gate, up = record.linear(h, gate=layer.ffn_gate, up=layer.ffn_up)
        gate = record.gelu_mul(gate, up, readers=(layer.ffn_down,))
        record.add_normed(x, layer.ffn_down, gate, layer.ffn_post_norm)
    h = record.norm(x, weights.output_norm, readers=(weights.output,))
    record.logits(weights.output, h)


ARCHITECTURE = Architecture(read_config, read_weights, forward)
