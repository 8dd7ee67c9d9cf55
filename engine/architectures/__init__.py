"""The model families that run: one file each, registered below, and their shared mechanics.

llama, qwen2, qwen3  tensor names, config keys, RoPE, windows, the forward pass as one page
architecture         the three functions that such a file consists of
metadata             checked reading of a file's keys
weights              checked reading of tensors; interleaving of matrices
recorder             the verbs of a forward pass; its buffers
loading              config and weights of a file, read by the architecture that it names
model                runs the recorded forward pass for each batch
"""

from __future__ import annotations

from lariat.architectures import llama, qwen2, qwen3
from lariat.architectures.architecture import Architecture

ARCHITECTURES: dict[str, Architecture] = {  # by `general.architecture`
    "llama": llama.ARCHITECTURE,
    "qwen2": qwen2.ARCHITECTURE,
    "qwen3": qwen3.ARCHITECTURE,
}
