"""Qwen 2 and 2.5 (arXiv 2407.10671), and models distilled into them.

Differs from `llama` in the pairs of RoPE: dims of a head that are rope_dim / 2 apart. The biases of
q, k and v need nothing here, for any matrix may have one.
"""

from __future__ import annotations

from lariat.architectures import llama
from lariat.architectures.architecture import Architecture
from lariat.architectures.weights import TensorReader, Weights, read_around
from lariat.config import ModelConfig


def read_weights(t: TensorReader, c: ModelConfig) -> Weights[llama.Layer]:
    """As `llama.read_weights`."""
    layers = tuple(llama.read_layer(t, c, i, neox=True) for i in range(c.n_layers))
    return read_around(t, c, layers)


ARCHITECTURE = Architecture(llama.read_config, read_weights, llama.forward)
