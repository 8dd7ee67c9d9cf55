"""The model families that run: one file each, registered below, and their shared mechanics.

gemma2, gemma3, gpt_oss, granite, llama, mistral3, mixtral, olmo2, phi3, qwen2, qwen2moe, qwen3,
qwen3moe, smollm3
                     tensor names, config keys, RoPE, windows, the forward pass as one page
registry             imports such a file when its model is loaded
architecture         the three functions that such a file consists of
metadata             checked reading of a file's keys
weights              checked reading of tensors; interleaving of matrices
packed               interleaved matrices, and memory for them
prepared             interleaved matrices in a file that processes share
measured             small files with what was measured on this machine
tiles                the fastest matmul tiles here, by measuring
recorder             the verbs of a forward pass; its buffers
loading              config and weights of a file, read by the architecture that it names
model                runs the recorded forward pass for each batch
"""

from __future__ import annotations

from lariat.architectures.registry import Registry

ARCHITECTURES = Registry(  # by `general.architecture`, the file that has it
    {
        "gemma2": "gemma2",
        "gemma3": "gemma3",
        "gpt-oss": "gpt_oss",
        "granite": "granite",
        "llama": "mixtral",
        "mistral3": "mistral3",
        "olmo2": "olmo2",
        "phi3": "phi3",
        "qwen2": "qwen2",
        "qwen2moe": "qwen2moe",
        "qwen3": "qwen3",
        "qwen3moe": "qwen3moe",
        "smollm3": "smollm3",
    }
)
