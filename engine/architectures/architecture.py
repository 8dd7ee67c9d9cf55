"""The architectures that share the forward pass of `model.py`, and how they differ from `llama`.

Sources: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, the models of
https://github.com/huggingface/transformers, Qwen2 (arXiv 2407.10671), Qwen3 (arXiv 2505.09388).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """What cannot be seen from the tensors of a file. Biases can: a matrix may have one or not."""

    name: str  # general.architecture, and what the keys of its metadata begin with
    rope_neox: bool = False  # RoPE turns dims i and i + rope_dim / 2 as a pair, not 2i and 2i + 1
    qk_norm: bool = False  # each head of q and k goes through RMSNorm before RoPE


LLAMA = Architecture("llama")
ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        LLAMA,
        Architecture("qwen2", rope_neox=True),
        Architecture("qwen3", rope_neox=True, qk_norm=True),
    )
}
