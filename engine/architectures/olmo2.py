"""OLMo 2 (arXiv 2501.00656) and 3 (https://huggingface.co/allenai/Olmo-3-7B-Instruct).

Differs from `llama` in norms behind attention and feed-forward instead of before, in an RMSNorm of
q and k over all heads, and in the pairs of RoPE: dims of a head that are rope_dim / 2 apart. In
OLMo 3 three of four layers have an attention window; these rotate without scaling.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from lariat.architectures import llama
from lariat.architectures.architecture import Architecture
from lariat.architectures.metadata import Metadata
from lariat.architectures.recorder import Recorder
from lariat.architectures.weights import Linear, TensorReader, Weights, read_around, split_halves
from lariat.config import LayerConfig, ModelConfig


def read_config(m: Metadata) -> ModelConfig:
    """Every fourth layer has no window."""
    c = llama.read_config(m)
    local = replace(c.rope, scaling="none", scale=1.0)
    windows = m.windows(c, pattern=4)
    layers = tuple(LayerConfig(local if window else c.rope, window) for window in windows)
    return replace(c, layers=layers)


@dataclass(frozen=True)
class Layer:
    """The weights of one layer. Norms are float32; each matrix may have a bias."""

    q: Linear  # [n_heads * head_dim_k, dim], halves of each head split
    k: Linear  # [n_kv_heads * head_dim_k, dim], halves of each head split
    v: Linear  # [n_kv_heads * head_dim_v, dim]
    q_norm: np.ndarray  # [n_heads * head_dim_k], halves of each head split
    k_norm: np.ndarray  # [n_kv_heads * head_dim_k], halves of each head split
    attn_output: Linear  # [dim, n_heads * head_dim_v]
    attn_post_norm: np.ndarray  # [dim]
    ffn_gate: Linear  # [n_ff, dim]
    ffn_up: Linear  # [n_ff, dim]
    ffn_down: Linear  # [dim, n_ff]
    ffn_post_norm: np.ndarray  # [dim]


def read_layer(t: TensorReader, c: ModelConfig, i: int) -> Layer:
    """Layer `i`."""
    n_q, n_k, n_v = (
        c.n_heads * c.head_dim_k, c.n_kv_heads * c.head_dim_k, c.n_kv_heads * c.head_dim_v
    )  # fmt: skip
    q_order = partial(split_halves, c.n_heads, c.head_dim_k, c.rope_dim, neox=True)
    k_order = partial(split_halves, c.n_kv_heads, c.head_dim_k, c.rope_dim, neox=True)
    block = f"blk.{i}."
    return Layer(
        q=t.linear(block + "attn_q", (n_q, c.dim), q_order),
        k=t.linear(block + "attn_k", (n_k, c.dim), k_order),
        v=t.linear(block + "attn_v", (n_v, c.dim)),
        q_norm=t.vector(block + "attn_q_norm.weight", n_q, q_order),
        k_norm=t.vector(block + "attn_k_norm.weight", n_k, k_order),
        attn_output=t.linear(block + "attn_output", (c.dim, c.n_heads * c.head_dim_v)),
        ffn_gate=t.linear(block + "ffn_gate", (c.n_ff, c.dim)),
        ffn_up=t.linear(block + "ffn_up", (c.n_ff, c.dim)),
        ffn_down=t.linear(block + "ffn_down", (c.dim, c.n_ff)),
        attn_post_norm=t.vector(block + "post_attention_norm.weight", c.dim),
        ffn_post_norm=t.vector(block + "post_ffw_norm.weight", c.dim),
    )


def read_weights(t: TensorReader, c: ModelConfig) -> Weights[Layer]:
    """All layers, then the tensors around them."""
    return read_around(t, c, tuple(read_layer(t, c, i) for i in range(c.n_layers)))


def forward(record: Recorder, weights: Weights[Layer]) -> None:
    """The forward pass of n tokens. Arrays are float32 [n, ...]."""
    x = record.x  # [dim], the embedding of each token
    for i, layer in record.layers(weights.layers):
        # q, k, v = x times their matrices; x += norm(output(attention(norm(q), norm(k), v)))
        h = record.quantize(x, readers=(layer.q, layer.k, layer.v))
        q, k, v = record.linear(h, q=layer.q, k=layer.k, v=layer.v)
        record.norm_heads((q, layer.q_norm), (k, layer.k_norm))
        record.rotate_and_store(i, q, k, v)
        x, attention = record.attend(i, q, x, readers=(layer.attn_output,))
        record.add_normed(x, layer.attn_output, attention, layer.attn_post_norm)
        # x += norm(down(silu(gate(x)) * up(x)))
        h = record.quantize(x, readers=(layer.ffn_gate, layer.ffn_up))
        gate, up = record.linear(h, gate=layer.ffn_gate, up=layer.ffn_up)
        gate = record.silu_mul(gate, up, readers=(layer.ffn_down,))
        record.add_normed(x, layer.ffn_down, gate, layer.ffn_post_norm)
    h = record.norm(x, weights.output_norm, readers=(weights.output,))
    record.logits(weights.output, h)


ARCHITECTURE = Architecture(read_config, read_weights, forward)
