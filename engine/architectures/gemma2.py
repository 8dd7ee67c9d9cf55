"""Gemma 2 (arXiv 2408.00118).

Differs from `llama` in embeddings that are scaled, GELU instead of SiLU, norms behind attention and
feed-forward too, soft caps of scores and logits, an attention window in every other layer, and in
the pairs of RoPE: dims of a head that are rope_dim / 2 apart. Norm weights of a file include the 1
that the paper adds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from lariat.architectures import llama
from lariat.architectures.architecture import Architecture
from lariat.architectures.metadata import Metadata
from lariat.architectures.recorder import Recorder
from lariat.architectures.weights import TensorReader, Weights, read_around
from lariat.config import LayerConfig, ModelConfig

_OF_27B = 46  # layers
_WINDOW = 4096  # of files that do not say it


def read_shape(m: Metadata, n_layers_of_27b: int) -> ModelConfig:
    """All but the layers. Files do not say how scores are scaled: the model of 27B, which only its
    number of layers tells, divides by sqrt(dim / n_heads) instead of sqrt(head_dim_k)."""
    c = llama.read_config(m)
    divisor = c.dim // c.n_heads if c.n_layers == n_layers_of_27b else c.head_dim_k
    return replace(
        c,
        attention_scale=m.real("attention.scale", 1e-6, 1e6, 1 / math.sqrt(divisor)),
        embedding_scale=math.sqrt(c.dim),
        logit_soft_cap=m.real("final_logit_softcapping", 0.0, 1e6, 0.0),
    )


def read_config(m: Metadata) -> ModelConfig:
    """Every second layer has no window."""
    c = read_shape(m, n_layers_of_27b=_OF_27B)
    windows = m.windows(c, pattern=2, default=_WINDOW)
    return replace(
        c,
        layers=tuple(LayerConfig(c.rope, window) for window in windows),
        attention_soft_cap=m.real("attn_logit_softcapping", 1e-3, 1e6, 50.0),
        logit_soft_cap=m.real("final_logit_softcapping", 1e-3, 1e6, 30.0),
    )


@dataclass(frozen=True)
class Layer(llama.Layer):
    """The weights of one layer."""

    attn_post_norm: np.ndarray  # float32 [dim]
    ffn_post_norm: np.ndarray  # float32 [dim]


def read_post_norms(t: TensorReader, c: ModelConfig, i: int) -> dict[str, Any]:
    """The norms behind attention and feed-forward of layer `i`."""
    return {
        "attn_post_norm": t.vector(f"blk.{i}.post_attention_norm.weight", c.dim),
        "ffn_post_norm": t.vector(f"blk.{i}.post_ffw_norm.weight", c.dim),
    }


def read_layer(t: TensorReader, c: ModelConfig, i: int) -> Layer:
    """Layer `i`."""
    return Layer(**vars(llama.read_layer(t, c, i, neox=True)), **read_post_norms(t, c, i))


def read_weights(t: TensorReader, c: ModelConfig) -> Weights[Layer]:
    """All layers, then the tensors around them."""
    return read_around(t, c, tuple(read_layer(t, c, i) for i in range(c.n_layers)))


def forward(record: Recorder, weights: Weights[Layer]) -> None:
    """The forward pass of n tokens. Arrays are float32 [n, ...]."""
    x = record.x  # [dim], the embedding of each token
    record.scale(x, record.config.embedding_scale)
    for i, layer in record.layers(weights.layers):
        # q, k, v = norm(x) times their matrices; x += norm(output(attention(q, k, v)))
        h = record.norm(x, layer.attn_norm, readers=(layer.q, layer.k, layer.v))
        q, k, v = record.linear(h, q=layer.q, k=layer.k, v=layer.v)
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
