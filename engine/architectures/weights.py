"""From tensor names to layers: checks shapes and types, interleaves matrices, frees the source.

Names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md ("Standardized tensor names").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from lariat import _kernels
from lariat.config import ModelConfig
from lariat.errors import GGUFError, ModelError, quote
from lariat.formats import block_formats
from lariat.formats.gguf import GGUFFile, TensorInfo
from lariat.os_memory import Arena


@dataclass(frozen=True)
class Linear:
    """y = W x + b"""

    weight: _kernels.Matrix  # [n_out, n_in]
    bias: np.ndarray | None  # float32 [n_out]


@dataclass(frozen=True)
class Layer:
    """One transformer layer."""

    attn_norm: np.ndarray  # float32 [dim]
    q: Linear  # [n_heads * head_dim_k, dim], halves of each head split
    k: Linear  # [n_kv_heads * head_dim_k, dim], halves of each head split
    v: Linear  # [n_kv_heads * head_dim_v, dim]
    q_norm: np.ndarray | None  # float32 [head_dim_k], halves split; of each head, before RoPE
    k_norm: np.ndarray | None  # the same
    attn_output: Linear  # [dim, n_heads * head_dim_v]
    ffn_norm: np.ndarray  # float32 [dim]
    ffn_gate: Linear  # [n_ff, dim]
    ffn_up: Linear  # [n_ff, dim]
    ffn_down: Linear  # [dim, n_ff]


@dataclass(frozen=True)
class Weights:
    """All weights of a model."""

    embedding: Embedding
    layers: tuple[Layer, ...]
    output_norm: np.ndarray  # float32 [dim]
    output: Linear  # [n_vocab, dim]
    rope_factors: np.ndarray | None  # float64 [rope_dim / 2]


# Makes the order of a tensor's rows, int64 [n_rows]; None: as in the file. Made when its shape is
# known to be right: what the metadata says alone may be too much for the memory.
_Order = Callable[[], np.ndarray] | None


class Embedding:
    """Rows of the token embedding, read from the mapped file as they are asked for."""

    def __init__(self, gguf: GGUFFile, name: str) -> None:
        self._rows = gguf.data(name)
        self._type = gguf.tensors[name].type

    def __getitem__(self, token_ids: np.ndarray) -> np.ndarray:
        """float32 [n_tokens, dim]"""
        return block_formats.dequantize(self._rows[token_ids], self._type)


class _Checker:
    """Looks at shapes and types; takes nothing."""

    def __init__(self, gguf: GGUFFile) -> None:
        self.gguf = gguf
        self._unread = dict(gguf.tensors)

    def matrix(self, name: str, shape: tuple[int, int], order: _Order = None) -> Any:
        self.checked(name, shape)

    def vector(self, name: str, length: int, order: _Order = None) -> Any:
        self.checked(name, (length,))

    def linear(self, name: str, shape: tuple[int, int], order: _Order = None) -> Linear:
        """`name`.weight [n_out, n_in] and, where the file has it, `name`.bias [n_out]."""
        bias = None
        if f"{name}.bias" in self.gguf.tensors:
            bias = self.vector(f"{name}.bias", shape[0], order)
        return Linear(self.matrix(f"{name}.weight", shape, order), bias)

    def checked(self, name: str, shape: tuple[int, ...]) -> TensorInfo:
        info = self.gguf.tensors.get(name)
        self._unread.pop(name, None)
        if info is None:
            raise GGUFError(f"{self.gguf.path}: tensor {quote(name)} is missing")
        if info.shape != shape:
            raise GGUFError(
                f"{self.gguf.path}: tensor {quote(name)} has shape {list(info.shape)}, "
                f"expected {list(shape)}"
            )
        if info.type not in block_formats.SUPPORTED:
            known = ", ".join(sorted(t.name for t in block_formats.SUPPORTED))
            raise ModelError(
                f"{self.gguf.path}: tensor {quote(name)} is of type {info.type.name}, "
                f"which is not supported (supported: {known})"
            )
        return info

    def check_all_read(self) -> None:
        """A tensor that nobody asked for means that the model computes something else."""
        for name in self._unread:
            arch = self.gguf.get_str("general.architecture")
            raise ModelError(
                f"{self.gguf.path}: tensor {quote(name)} has no place in a {quote(arch)} model"
            )


class _Loader(_Checker):
    """Takes tensors out of one file and says how far it is."""

    def __init__(
        self, gguf: GGUFFile, n_threads: int, progress: Callable[[float], None] | None
    ) -> None:
        super().__init__(gguf)
        self._n_threads = n_threads
        self._progress = progress
        self._total = max(1, sum(info.n_bytes for info in gguf.tensors.values()))  # bytes
        self._done = 0
        matrices = [t for t in gguf.tensors.values() if _is_matrix(t)]
        n_bytes = sum(_kernels.packed_bytes(t.type.name, *t.shape) for t in matrices)
        self._arena = Arena(n_bytes, len(matrices))

    def matrix(self, name: str, shape: tuple[int, int], order: _Order = None) -> _kernels.Matrix:
        """Interleave tensor `name` [n_rows, n_cols] with its rows in `order`."""
        info = self.checked(name, shape)
        packed = self._arena.take(_kernels.packed_bytes(info.type.name, *shape))
        rows = order() if order else None
        matrix = _kernels.Matrix(
            self.gguf.data(name), info.type.name, shape[1], packed, rows, self._n_threads
        )
        self._finished(name)
        return matrix

    def vector(self, name: str, length: int, order: _Order = None) -> np.ndarray:
        """Tensor `name` [length] as float32, in `order`."""
        info = self.checked(name, (length,))
        values = block_formats.dequantize(self.gguf.data(name), info.type).reshape(length)
        self._finished(name)
        return np.ascontiguousarray(values if order is None else values[order()], np.float32)

    def _finished(self, name: str) -> None:
        self.gguf.release(name)
        self._done += self.gguf.tensors[name].n_bytes
        if self._progress:
            self._progress(min(1.0, self._done / self._total))


def _is_matrix(info: TensorInfo) -> bool:
    return len(info.shape) == 2 and info.type in block_formats.SUPPORTED


def split_halves(
    n_heads: int, head_dim: int, rope_dim: int | None = None, neox: bool = False
) -> np.ndarray:
    """Order of rows that brings the dims of pair i of each head to i and i + head_dim / 2.

    int64 [n_heads * head_dim]. GGUF's `llama` keeps pairs side by side, (2i, 2i + 1); with `neox`
    they are half of the `rope_dim` leading dims apart. Half a head apart, they load as two whole
    vectors. Queries and keys are permuted alike, so their products stay the same.
    """
    n_rot = head_dim if rope_dim is None else rope_dim

    def pairs(first: int, end: int) -> np.ndarray:
        dims = np.arange(first, end)
        return dims.reshape(2, -1) if neox else dims.reshape(-1, 2).T

    within = np.hstack([pairs(0, n_rot), pairs(n_rot, head_dim)]).reshape(-1)
    return (np.arange(n_heads)[:, None] * head_dim + within).reshape(-1).astype(np.int64)


def check_weights(gguf: GGUFFile, config: ModelConfig) -> None:
    """Find all tensors of a model, of the right shapes and types, without reading them.

    Raises `GGUFError` and `ModelError`.
    """
    _weights(_Checker(gguf), config)


def load_weights(
    gguf: GGUFFile,
    config: ModelConfig,
    n_threads: int,
    progress: Callable[[float], None] | None = None,
) -> Weights:
    """Read all tensors of a model.

    Each matrix's pages of the file are released once it is interleaved, so that loading needs no
    more memory than the model. `progress` gets the share done, 0 to 1. Raises `GGUFError` and
    `ModelError`, for wrong shapes before anything is read.
    """
    check_weights(gguf, config)
    layers, output_norm, output, factors = _weights(_Loader(gguf, n_threads, progress), config)
    if factors is not None:
        factors = factors.astype(np.float64)
        if not np.all(np.isfinite(factors) & (factors > 0)):
            raise GGUFError(
                f"{gguf.path}: tensor 'rope_freqs.weight' holds a factor that is not > 0"
            )
    if progress:
        progress(1.0)  # an embedding that is no output matrix has not been read
    return Weights(Embedding(gguf, "token_embd.weight"), layers, output_norm, output, factors)


def _weights(
    load: _Checker, c: ModelConfig
) -> tuple[tuple[Layer, ...], np.ndarray, Linear, np.ndarray | None]:
    """Layers, output norm, output and RoPE factors, by their names in the file."""
    tensors = load.gguf.tensors
    n_q, n_k, n_v = (
        c.n_heads * c.head_dim_k,
        c.n_kv_heads * c.head_dim_k,
        c.n_kv_heads * c.head_dim_v,
    )
    q_order, k_order, head_order = (
        partial(split_halves, n_heads, c.head_dim_k, c.rope_dim, c.architecture.rope_neox)
        for n_heads in (c.n_heads, c.n_kv_heads, 1)
    )

    def head_norm(name: str) -> np.ndarray | None:
        return load.vector(name, c.head_dim_k, head_order) if c.architecture.qk_norm else None

    def layer(i: int) -> Layer:
        return Layer(
            attn_norm=load.vector(f"blk.{i}.attn_norm.weight", c.dim),
            q=load.linear(f"blk.{i}.attn_q", (n_q, c.dim), q_order),
            k=load.linear(f"blk.{i}.attn_k", (n_k, c.dim), k_order),
            v=load.linear(f"blk.{i}.attn_v", (n_v, c.dim)),
            q_norm=head_norm(f"blk.{i}.attn_q_norm.weight"),
            k_norm=head_norm(f"blk.{i}.attn_k_norm.weight"),
            attn_output=load.linear(f"blk.{i}.attn_output", (c.dim, c.n_heads * c.head_dim_v)),
            ffn_norm=load.vector(f"blk.{i}.ffn_norm.weight", c.dim),
            ffn_gate=load.linear(f"blk.{i}.ffn_gate", (c.n_ff, c.dim)),
            ffn_up=load.linear(f"blk.{i}.ffn_up", (c.n_ff, c.dim)),
            ffn_down=load.linear(f"blk.{i}.ffn_down", (c.dim, c.n_ff)),
        )

    layers = tuple(layer(i) for i in range(c.n_layers))
    output_norm = load.vector("output_norm.weight", c.dim)
    tied = "output.weight" not in tensors
    output = load.linear("token_embd" if tied else "output", (c.n_vocab, c.dim))
    load.checked("token_embd.weight", (c.n_vocab, c.dim))
    factors = None
    if "rope_freqs.weight" in tensors:
        factors = load.vector("rope_freqs.weight", c.rope_dim // 2)
    load.check_all_read()
    return layers, output_norm, output, factors
