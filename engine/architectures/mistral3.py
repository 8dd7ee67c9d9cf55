"""Mistral Small 3 and Ministral 3 (https://huggingface.co/mistralai/Ministral-3-8B-Base-2512).

Differs from `llama` in YaRN with bounds and a factor of its own, and in queries that grow with
their position (arXiv 2501.19399), so that attention to long contexts stays sharp.
"""

from __future__ import annotations

from dataclasses import replace

from lariat.architectures import llama
from lariat.architectures.architecture import Architecture
from lariat.architectures.metadata import Metadata
from lariat.architectures.recorder import Recorder
from lariat.architectures.weights import Weights
from lariat.config import LayerConfig, ModelConfig


def read_config(m: Metadata) -> ModelConfig:
    """Every layer has the same RoPE table and no window."""
    c = llama.read_config(m)
    rope = replace(
        c.rope,
        yarn_beta_fast=m.real("rope.scaling.yarn_beta_fast", 1e-3, 1e6, 32.0),
        yarn_beta_slow=m.real("rope.scaling.yarn_beta_slow", 1e-3, 1e6, 1.0),
    )
    return replace(
        c,
        rope=rope,
        layers=(LayerConfig(rope),) * c.n_layers,
        yarn_log_mul=m.real("rope.scaling.yarn_log_multiplier", 0.0, 1e3, 0.0),
        query_growth=m.real("attention.temperature_scale", 0.0, 1e3, 0.0),
    )


def forward(record: Recorder, weights: Weights[llama.Layer]) -> None:
    """The forward pass of n tokens. Arrays are float32 [n, ...]."""
    x = record.x  # [dim], the embedding of each token
    for i, layer in record.layers(weights.layers):
        # q, k, v = norm(x) times their matrices; x += output(attention(growing(q), k, v))
        h = record.norm(x, layer.attn_norm, readers=(layer.q, layer.k, layer.v))
        q, k, v = record.linear(h, q=layer.q, k=layer.k, v=layer.v)
        record.grow_queries(q)
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


ARCHITECTURE = Architecture(read_config, llama.read_weights, forward)
