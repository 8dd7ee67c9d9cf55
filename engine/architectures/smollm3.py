"""SmolLM3 (https://huggingface.co/blog/smollm3).

Differs from `llama` in every fourth layer, which does not rotate queries and keys (NoPE, arXiv
2501.18795).
"""

from __future__ import annotations

from dataclasses import replace

from lariat.architectures import llama
from lariat.architectures.architecture import Architecture
from lariat.architectures.metadata import Metadata
from lariat.config import LayerConfig, ModelConfig

_STEP = 4  # no file says another


def read_config(m: Metadata) -> ModelConfig:
    """Layers 3, 7, 11, ... have no RoPE."""
    c = llama.read_config(m)
    ropes = [None if i % _STEP == _STEP - 1 else c.rope for i in range(c.n_layers)]
    return replace(c, layers=tuple(LayerConfig(rope) for rope in ropes))


ARCHITECTURE = Architecture(read_config, llama.read_weights, llama.forward)
