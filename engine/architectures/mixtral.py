"""Mixtral (arXiv 2401.04088): files of `llama` that have experts. Those without are `llama.py`'s.

Differs from `llama` in the feed-forward: each token goes to some of many, chosen by a router.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lariat.architectures import llama
from lariat.architectures.architecture import Architecture
from lariat.architectures.metadata import Metadata
from lariat.architectures.recorder import Recorder
from lariat.architectures.weights import ExpertLinear, Linear, TensorReader, Weights, read_around
from lariat.config import ModelConfig


def read_config(m: Metadata) -> ModelConfig:
    """As `llama.read_config`, with experts where the file has them."""
    if not m.has_experts():
        return llama.read_config(m)
    return llama.read_config(m, m.experts())


@dataclass(frozen=True)
class Experts:
    """The feed-forwards of one layer, and what chooses among them."""

    router: Linear  # [n_experts, dim]
    ffn_gate: ExpertLinear  # [n_experts, n_ff, dim]
    ffn_up: ExpertLinear  # [n_experts, n_ff, dim]
    ffn_down: ExpertLinear  # [n_experts, dim, n_ff]


@dataclass(frozen=True)
class Layer(llama.Attention, Experts):
    """The weights of one layer."""


def read_experts(t: TensorReader, c: ModelConfig, i: int) -> Experts:
    """Those of layer `i`."""
    assert c.experts is not None
    block, n_experts, n_ff = f"blk.{i}.", c.experts.n_experts, c.experts.n_ff
    return Experts(
        router=t.linear(block + "ffn_gate_inp", (n_experts, c.dim)),
        ffn_gate=t.experts(block + "ffn_gate", (n_experts, n_ff, c.dim)),
        ffn_up=t.experts(block + "ffn_up", (n_experts, n_ff, c.dim)),
        ffn_down=t.experts(block + "ffn_down", (n_experts, c.dim, n_ff)),
    )


def read_layer(t: TensorReader, c: ModelConfig, i: int, neox: bool = False) -> Layer:
    """Layer `i`, with the pairs of RoPE that `llama.read_attention` explains."""
    attention = llama.read_attention(t, c, i, neox)
    return Layer(**vars(attention), **vars(read_experts(t, c, i)))


def read_weights(t: TensorReader, c: ModelConfig) -> Weights[Any]:
    """All layers, then the tensors around them."""
    if c.experts is None:
        return llama.read_weights(t, c)
    return read_around(t, c, tuple(read_layer(t, c, i) for i in range(c.n_layers)))


def forward(record: Recorder, weights: Weights[Any]) -> None:
    """The forward pass of n tokens. Arrays are float32 [n, ...]."""
    if not isinstance(weights.layers[0], Experts):
        return llama.forward(record, weights)
    x = record.x  # [dim], the embedding of each token
    for i, layer in record.layers(weights.layers):
        # q, k, v = norm(x) times their matrices; x += output(attention(q, k, v))
        h = record.norm(x, layer.attn_norm, readers=(layer.q, layer.k, layer.v))
        q, k, v = record.linear(h, q=layer.q, k=layer.k, v=layer.v)
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
