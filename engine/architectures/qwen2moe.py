"""Qwen 1.5 and 2 with experts (arXiv 2407.10671, section 2.2.2).

Differs from `qwen2` in the feed-forward. The weights of a token's experts are not divided by their
sum, and one more feed-forward is for all tokens: its result is multiplied by the logistic function
of a product with a vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from lariat.architectures import llama, mixtral
from lariat.architectures.architecture import Architecture
from lariat.architectures.metadata import MAX_DIM, Metadata
from lariat.architectures.recorder import Recorder
from lariat.architectures.weights import Linear, TensorReader, Weights, read_around
from lariat.config import ModelConfig


def read_config(m: Metadata) -> ModelConfig:
    """As `llama.read_config`, with experts. The shared one is as wide as `feed_forward_length`,
    unless the file says otherwise."""
    n_ff = m.whole("feed_forward_length", MAX_DIM, 0, 0)
    n_shared = m.whole("expert_shared_feed_forward_length", MAX_DIM, n_ff or None)
    return llama.read_config(m, m.experts(divided=True, normalized=False, n_ff_shared=n_shared))


@dataclass(frozen=True)
class Layer(mixtral.Layer):
    """The weights of one layer."""

    shared_weight: np.ndarray  # float32 [dim]
    shared_gate: Linear  # [n_ff_shared, dim]
    shared_up: Linear  # [n_ff_shared, dim]
    shared_down: Linear  # [dim, n_ff_shared]


def read_layer(t: TensorReader, c: ModelConfig, i: int) -> Layer:
    """Layer `i`."""
    assert c.experts is not None
    block, n_ff = f"blk.{i}.", c.experts.n_ff_shared
    return Layer(
        **vars(mixtral.read_layer(t, c, i, neox=True)),
        shared_weight=t.vector(block + "ffn_gate_inp_shexp.weight", c.dim),
        shared_gate=t.linear(block + "ffn_gate_shexp", (n_ff, c.dim)),
        shared_up=t.linear(block + "ffn_up_shexp", (n_ff, c.dim)),
        shared_down=t.linear(block + "ffn_down_shexp", (c.dim, n_ff)),
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
        # h = norm(x); x += the sum of w_e down_e(silu(gate_e(h)) * up_e(h)) over the experts e that
        # the router chooses, + sigmoid(shared_weight h) down(silu(gate(h)) * up(h))
        of_experts = (layer.router, layer.ffn_gate, layer.ffn_up)
        h = record.norm(
            x, layer.ffn_norm, readers=(*of_experts, layer.shared_gate, layer.shared_up)
        )
        routing = record.route(h, layer.router)
        record.add_experts(x, h, routing, gate=layer.ffn_gate, up=layer.ffn_up, down=layer.ffn_down)
        gate, up = record.linear(h, gate=layer.shared_gate, up=layer.shared_up)
        gate = record.silu_mul(gate, up, readers=(layer.shared_down,))
        (shared,) = record.linear(gate, shared=layer.shared_down)
        record.add_gated(x, h, layer.shared_weight, shared)
    h = record.norm(x, weights.output_norm, readers=(weights.output,))
    record.logits(weights.output, h)


ARCHITECTURE = Architecture(read_config, read_weights, forward)
