"""Quantized keys and values in NumPy: the meaning of the bytes of a block of one KV head.

Layouts: engine/simd/cache_q_scalar.h. Nothing here is used by the engine.
"""

from __future__ import annotations

import numpy as np
from lariat.cache.kv_storage import CacheMemory
from lariat.config import ModelConfig, RopeConfig

ROW_TYPES = ("q8_0", "q4_0")
CHANNEL_TYPES = ("q8_ch", "q4_ch")
QUANTIZED = ROW_TYPES + CHANNEL_TYPES


def config_of(n_layers: int, n_kv_heads: int, head_dim_k: int, head_dim_v: int) -> ModelConfig:
    """A model of which only the cache matters."""
    return ModelConfig(
        n_vocab=1, n_ctx_train=1, dim=1, n_layers=n_layers, n_heads=n_kv_heads,
        n_kv_heads=n_kv_heads, head_dim_k=head_dim_k, head_dim_v=head_dim_v, n_ff=1, norm_eps=1e-5,
        rope_dim=head_dim_k, rope=RopeConfig(),
    )  # fmt: skip


def decode(block: np.ndarray, type: str, head_dim: int) -> np.ndarray:
    """uint8 [bytes] of a block of one KV head -> float64 [32, head_dim]."""
    if type in ("f16", "f32"):
        dtype = np.float16 if type == "f16" else np.float32
        return block.view(dtype).reshape(32, head_dim).astype(np.float64)
    n = 32 * head_dim // (1 if type.startswith("q8") else 2)
    numbers, behind = block[:n], block[n:]
    if type.startswith("q8"):
        q = numbers.view(np.int8).reshape(32, head_dim).astype(np.float64)
    else:
        groups = numbers.reshape(32, head_dim // 32, 16)
        q = np.concatenate([groups & 15, groups >> 4], -1).reshape(32, head_dim).astype(np.float64)
    if type == "q4_ch":
        return (q + zeros_of(behind[head_dim:])) * scales_of(behind[:head_dim])
    scales = behind.view(np.float16).astype(np.float64)
    if type in ROW_TYPES:
        return (q - (8 if type == "q4_0" else 0)) * scales.reshape(-1, 32).T.repeat(32, 1)
    return q * scales


def scales_of(bytes: np.ndarray) -> np.ndarray:
    """Of q4_ch: 5 bits of exponent and 3 of mantissa, as the bits above 7 zeros of an f16."""
    exponent, mantissa = bytes.astype(np.int64) >> 3, bytes.astype(np.int64) & 7
    small = mantissa * 2.0**-17
    large = (8 + mantissa) * 2.0 ** (exponent - 18)
    return np.where(exponent == 31, np.nan, np.where(exponent == 0, small, large)) / 4


def zeros_of(bytes: np.ndarray) -> np.ndarray:
    """Of q4_ch: steps of a quarter that grow to five."""
    c = bytes.view(np.int8).astype(np.float64)
    return c / 4 + c * np.abs(c) / 256 - 7.5


def hadamard(x: np.ndarray) -> np.ndarray:
    """x [..., head_dim] in blocks of the largest power of two, each times the orthonormal matrix
    that has the sign of (-1) to the number of bits that row and column have both."""
    size = x.shape[-1] & -x.shape[-1]
    both = np.arange(size)[:, None] & np.arange(size)
    n_bits = sum((both >> bit) & 1 for bit in range(16))
    matrix = np.where(n_bits % 2, -1.0, 1.0) / np.sqrt(size)
    blocks = x.reshape(*x.shape[:-1], -1, size).astype(np.float64)
    return (blocks @ matrix).reshape(x.shape)


def values(memory: CacheMemory, which: str, type: str, layer: int) -> np.ndarray:
    """All keys ("k") or values ("v") of a layer, float64 [n_blocks, n_kv_heads, 32, head_dim], as
    they are without the Hadamard transform."""
    array = {"k": memory.keys, "v": memory.values}[which]
    head_dim = {"k": memory.kernel.head_dim_k, "v": memory.kernel.head_dim_v}[which]
    _, n_blocks, n_heads, _ = array.blocks.shape
    out = np.zeros((n_blocks, n_heads, 32, head_dim))
    for block in range(n_blocks):
        place = memory.open_at[block]
        for head in range(n_heads):
            if array.by_channel and place >= 0:
                out[block, head] = array.open_blocks[place, layer, head]
            else:
                out[block, head] = decode(array.blocks[layer, block, head], type, head_dim)
    return hadamard(out) if memory.hadamard[which == "v"] else out
