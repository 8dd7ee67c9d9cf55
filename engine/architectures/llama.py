"""LLaMA (arXiv 2302.13971): Llama 1 to 3, Mistral, TinyLlama, SmolLM and other models that were
converted as `llama`.

Tensor names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md ("Standardized tensor
names"). Grouped-query attention: arXiv 2305.13245.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from lariat.architectures.architecture import Architecture
from lariat.architectures.metadata import MAX_DIM, MAX_LAYERS, Metadata
from lariat.architectures.recorder import Recorder
from lariat.architectures.weights import Linear, TensorReader, Weights, read_around, split_halves
from lariat.config import MAX_CTX, ExpertConfig, LayerConfig, ModelConfig


def read_config(m: Metadata, experts: ExpertConfig | None = None) -> ModelConfig:
    """Every layer has the same RoPE table and no window. A family may add `experts`."""
    if experts is None:
        m.refuse_experts()
    m.refuse_not_causal()
    dim = m.whole("embedding_length", MAX_DIM)
    heads = m.heads(dim)
    n_ctx_train = m.whole("context_length", MAX_CTX)
    n_layers = m.whole("block_count", MAX_LAYERS)
    rope = m.rope(n_ctx_train)
    return ModelConfig(
        n_vocab=m.n_vocab(),
        n_ctx_train=n_ctx_train,
        dim=dim,
        n_layers=n_layers,
        **heads._asdict(),
        n_ff=m.whole("feed_forward_length", MAX_DIM, experts.n_ff if experts else None),
        norm_eps=m.real("attention.layer_norm_rms_epsilon", 0.0, 1.0),
        rope_dim=m.rope_dim(heads.head_dim_k),
        rope=rope,
        rope_attn_factor=m.real("rope.scaling.attn_factor", 1e-3, 1e3, 1.0),
        architecture=m.architecture,
        layers=(LayerConfig(rope),) * n_layers,
        experts=experts,
    )


@dataclass(frozen=True)
class Attention:
    """The weights of a layer up to its feed-forward. Norms are float32; each matrix may have a
    bias."""

    attn_norm: np.ndarray  # [dim]
    q: Linear  # [n_heads * head_dim_k, dim], halves of each head split
    k: Linear  # [n_kv_heads * head_dim_k, dim], halves of each head split
    v: Linear  # [n_kv_heads * head_dim_v, dim]
    attn_output: Linear  # [dim, n_heads * head_dim_v]
    ffn_norm: np.ndarray  # [dim]


@dataclass(frozen=True)
class Layer(Attention):
    """The weights of one layer."""

    ffn_gate: Linear  # [n_ff, dim]
    ffn_up: Linear  # [n_ff, dim]
    ffn_down: Linear  # [dim, n_ff]


def read_attention(
    t: TensorReader, c: ModelConfig, i: int, neox: bool = False, ffn_norm: str = "ffn_norm"
) -> Attention:
    """Of layer `i`. RoPE rotates dims 2j and 2j + 1 of a head as a pair, with `neox` j and
    j + rope_dim / 2. `ffn_norm` is the name of the tensor."""
    n_q, n_k, n_v = (
        c.n_heads * c.head_dim_k, c.n_kv_heads * c.head_dim_k, c.n_kv_heads * c.head_dim_v
    )  # fmt: skip
    q_order = partial(split_halves, c.n_heads, c.head_dim_k, c.rope_dim, neox)
    k_order = partial(split_halves, c.n_kv_heads, c.head_dim_k, c.rope_dim, neox)
    block = f"blk.{i}."
    return Attention(
        attn_norm=t.vector(block + "attn_norm.weight", c.dim),
        q=t.linear(block + "attn_q", (n_q, c.dim), q_order),
        k=t.linear(block + "attn_k", (n_k, c.dim), k_order),
        v=t.linear(block + "attn_v", (n_v, c.dim)),
        attn_output=t.linear(block + "attn_output", (c.dim, c.n_heads * c.head_dim_v)),
        ffn_norm=t.vector(f"{block}{ffn_norm}.weight", c.dim),
    )


def read_layer(t: TensorReader, c: ModelConfig, i: int, neox: bool = False) -> Layer:
    """Layer `i`, with the pairs of RoPE that `read_attention` explains."""
    block = f"blk.{i}."
    return Layer(
        **vars(read_attention(t, c, i, neox)),
        ffn_gate=t.linear(block + "ffn_gate", (c.n_ff, c.dim)),
        ffn_up=t.linear(block + "ffn_up", (c.n_ff, c.dim)),
        ffn_down=t.linear(block + "ffn_down", (c.dim, c.n_ff)),
    )


def read_weights(t: TensorReader, c: ModelConfig) -> Weights[Layer]:
    """All layers, then the tensors around them."""
    return read_around(t, c, tuple(read_layer(t, c, i) for i in range(c.n_layers)))


def forward(record: Recorder, weights: Weights[Layer]) -> None:
    """The forward pass of n tokens. Arrays are float32 [n, ...]."""
    x = record.x  # [dim], the embedding of each token
    for i, layer in record.layers(weights.layers):
        # q, k, v = norm(x) times their matrices; x += output(attention(q, k, v))
        h = record.norm(x, layer.attn_norm, readers=(layer.q, layer.k, layer.v))
        q, k, v = record.linear(h, q=layer.q, k=layer.k, v=layer.v)
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


ARCHITECTURE = Architecture(read_config, read_weights, forward)
