"""Phi 3, 3.5 and 4 (arXiv 2404.14219), without experts.

Differs from `llama` in matrices that are fused (q, k and v; gate and up), in the pairs of RoPE,
dims of a head that are rope_dim / 2 apart, in RoPE's factors for short and long contexts (LongRoPE,
arXiv 2402.13753), and in an attention window of all layers. llama.cpp ignores the window; here it
is that of the file.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from lariat.architectures import llama
from lariat.architectures.architecture import Architecture
from lariat.architectures.metadata import Metadata
from lariat.architectures.weights import TensorReader, Weights, read_around, split_halves
from lariat.config import LayerConfig, ModelConfig


def read_config(m: Metadata) -> ModelConfig:
    """Every layer has the same window, if there is one."""
    c = llama.read_config(m)
    windows = m.windows(c, pattern=0)
    return replace(c, layers=tuple(LayerConfig(c.rope, window) for window in windows))


def read_layer(t: TensorReader, c: ModelConfig, i: int) -> llama.Layer:
    """Layer `i`. In the file gate stands before up."""
    n_q, n_k, n_v = (
        c.n_heads * c.head_dim_k, c.n_kv_heads * c.head_dim_k, c.n_kv_heads * c.head_dim_v
    )  # fmt: skip
    q_order = partial(split_halves, c.n_heads, c.head_dim_k, c.rope_dim, neox=True)
    k_order = partial(split_halves, c.n_kv_heads, c.head_dim_k, c.rope_dim, neox=True)
    block = f"blk.{i}."
    if t.has(block + "attn_q.weight"):
        q = t.linear(block + "attn_q", (n_q, c.dim), q_order)
        k = t.linear(block + "attn_k", (n_k, c.dim), k_order)
        v = t.linear(block + "attn_v", (n_v, c.dim))
    else:
        parts = (n_q, q_order), (n_k, k_order), (n_v, None)
        q, k, v = t.fused(block + "attn_qkv", c.dim, *parts)
    gate, up = t.fused(block + "ffn_up", c.dim, (c.n_ff, None), (c.n_ff, None))
    return llama.Layer(
        attn_norm=t.vector(block + "attn_norm.weight", c.dim),
        q=q,
        k=k,
        v=v,
        attn_output=t.linear(block + "attn_output", (c.dim, c.n_heads * c.head_dim_v)),
        ffn_norm=t.vector(block + "ffn_norm.weight", c.dim),
        ffn_gate=gate,
        ffn_up=up,
        ffn_down=t.linear(block + "ffn_down", (c.dim, c.n_ff)),
    )


def read_weights(t: TensorReader, c: ModelConfig) -> Weights[llama.Layer]:
    """All layers, then the tensors around them."""
    return read_around(t, c, tuple(read_layer(t, c, i) for i in range(c.n_layers)))


ARCHITECTURE = Architecture(read_config, read_weights, llama.forward)
