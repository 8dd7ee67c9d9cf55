"""gpt-oss (arXiv 2508.10925): 20b and 120b.

Differs from `mixtral` in attention windows, in every other layer; in a sink for each head, a logit
that takes its share of the softmax and has no value; in the pairs of RoPE; in biases of all
matrices; and in the weights of experts, a softmax over the logits of the chosen ones. SwiGLU is
clamped: with gate at most 7 and up within 7, it is gate / (1 + exp(-1.702 gate)) * (up + 1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from lariat.architectures import llama, mixtral
from lariat.architectures.architecture import Architecture
from lariat.architectures.metadata import Metadata
from lariat.architectures.recorder import Recorder
from lariat.architectures.weights import TensorReader, Weights, read_around
from lariat.config import LayerConfig, ModelConfig

_ALPHA, _LIMIT = 1.702, 7.0


def read_config(m: Metadata) -> ModelConfig:
    """The first layer has a window, the second none, and so on."""
    experts = m.experts(gating="softmax of the chosen", normalized=False)
    c = llama.read_config(m, experts)
    assert c.rope.freq_base is not None
    base = m.real("rope.freq_base_swa", 1e-3, 1e15, c.rope.freq_base)
    local = c.rope if base == c.rope.freq_base else replace(c.rope, freq_base=base)
    windows = m.windows(c, pattern=2)
    layers = tuple(LayerConfig(local if window else c.rope, window) for window in windows)
    return replace(c, layers=layers)


@dataclass(frozen=True)
class Layer(mixtral.Layer):
    """The weights of one layer."""

    sinks: np.ndarray  # float32 [n_heads]


def read_layer(t: TensorReader, c: ModelConfig, i: int) -> Layer:
    """Layer `i`."""
    block = f"blk.{i}."
    attention = llama.read_attention(t, c, i, neox=True, ffn_norm="post_attention_norm")
    return Layer(
        **vars(attention),
        **vars(mixtral.read_experts(t, c, i)),
        sinks=t.vector(block + "attn_sinks.weight", c.n_heads),
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
        x, attention = record.attend(i, q, x, readers=(layer.attn_output,), sinks=layer.sinks)
        record.add_linear(x, layer.attn_output, attention)
        # x += the sum of w_e down_e(act(gate_e(norm(x)), up_e(norm(x)))) over the experts e that
        # the router chooses
        h = record.norm(x, layer.ffn_norm, readers=(layer.router, layer.ffn_gate, layer.ffn_up))
        routing = record.route(h, layer.router)
        experts = {"gate": layer.ffn_gate, "up": layer.ffn_up, "down": layer.ffn_down}
        record.add_experts(x, h, routing, **experts, alpha=_ALPHA, limit=_LIMIT)
    h = record.norm(x, weights.output_norm, readers=(weights.output,))
    record.logits(weights.output, h)


ARCHITECTURE = Architecture(read_config, read_weights, forward)
