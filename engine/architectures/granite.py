"""Granite 3 and 4, dense (https://huggingface.co/ibm-granite/granite-3.0-8b-base).

Differs from `llama` in four factors of the file: of embeddings, of scores, of what a layer adds to
the residual stream, and a divisor of logits. A file may leave RoPE out of all layers.
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
    """Factors that are missing, or 0, are 1."""
    c = llama.read_config(m)
    rope = c.rope if m.switch("rope.scaling.finetuned", True) else None
    return replace(
        c,
        layers=(LayerConfig(rope),) * c.n_layers,
        attention_scale=m.real("attention.scale", 0.0, 1e6, 0.0) or None,
        embedding_scale=m.real("embedding_scale", 0.0, 1e6, 0.0) or 1.0,
        residual_scale=m.real("residual_scale", 0.0, 1e6, 0.0) or 1.0,
        logit_scale=1 / m.real("logit_scale", 1e-6, 1e6),
    )


def forward(record: Recorder, weights: Weights[llama.Layer]) -> None:
    """The forward pass of n tokens. Arrays are float32 [n, ...]."""
    x, factor = record.x, record.config.residual_scale
    record.scale(x, record.config.embedding_scale)
    for i, layer in record.layers(weights.layers):
        # q, k, v = norm(x) times their matrices; x += factor * output(attention(q, k, v))
        h = record.norm(x, layer.attn_norm, readers=(layer.q, layer.k, layer.v))
        q, k, v = record.linear(h, q=layer.q, k=layer.k, v=layer.v)
        record.rotate_and_store(i, q, k, v)
        x, attention = record.attend(i, q, x, readers=(layer.attn_output,))
        record.add_scaled(x, layer.attn_output, attention, factor)
        # x += factor * down(silu(gate(norm(x))) * up(norm(x)))
        h = record.norm(x, layer.ffn_norm, readers=(layer.ffn_gate, layer.ffn_up))
        gate, up = record.linear(h, gate=layer.ffn_gate, up=layer.ffn_up)
        gate = record.silu_mul(gate, up, readers=(layer.ffn_down,))
        record.add_scaled(x, layer.ffn_down, gate, factor)
    h = record.norm(x, weights.output_norm, readers=(weights.output,))
    record.logits(weights.output, h)


ARCHITECTURE = Architecture(read_config, llama.read_weights, forward)
