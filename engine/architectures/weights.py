"""Tensors of a file as the forward pass wants them: checked, matrices interleaved.

An architecture reads its tensors with the methods of `TensorReader`, twice: a `TensorChecker` looks
at all shapes and types, then a `TensorLoader` takes the values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from lariat import _experts, _kernels
from lariat.architectures.packed import ArenaPlaces, Packed, Places
from lariat.config import ModelConfig
from lariat.errors import GGUFError, ModelError, quote
from lariat.formats import block_formats
from lariat.formats.gguf import GGUFFile, TensorInfo


@dataclass(frozen=True)
class Linear:
    """y = W x + b"""

    weight: _kernels.Matrix  # [n_out, n_in]
    bias: np.ndarray | None  # float32 [n_out]
    name: str = ""  # of the tensor W in the file


@dataclass(frozen=True)
class ExpertLinear:
    """y = W_e x + b_e, for each expert e"""

    weight: _experts.ExpertMatrix  # [n_experts, n_out, n_in]
    bias: np.ndarray | None  # float32 [n_experts, n_out]
    name: str = ""  # of the tensor W in the file


class Embedding:
    """Rows of the token embedding, read from the mapped file when they are asked for."""

    def __init__(self, gguf: GGUFFile, name: str) -> None:
        self._rows = gguf.data(name)
        self._type = gguf.tensors[name].type

    def __getitem__(self, token_ids: np.ndarray) -> np.ndarray:
        """float32 [n_tokens, dim]"""
        return block_formats.dequantize(self._rows[token_ids], self._type)


_Layer = TypeVar("_Layer")
_MAX_PARTS = 3  # of a fused matrix: queries, keys and values


@dataclass(frozen=True)
class Weights(Generic[_Layer]):
    """All weights of a model. Each architecture has a dataclass for its layers."""

    embedding: Embedding
    layers: tuple[_Layer, ...]
    output_norm: np.ndarray  # float32 [dim]
    output: Linear  # [n_vocab, dim]
    rope_factors: np.ndarray | None  # float64 [rope_dim / 2]
    long_rope_factors: np.ndarray | None = None  # those of contexts beyond the trained length

    def matrices(self) -> Iterator[_kernels.Matrix]:
        """The matrices of all layers that every token is multiplied with."""
        for layer in self.layers:
            for value in vars(layer).values():
                if isinstance(value, Linear):
                    yield value.weight

    def expert_matrices(self) -> Iterator[_experts.ExpertMatrix]:
        """The experts' matrices of all layers."""
        for layer in self.layers:
            for value in vars(layer).values():
                if isinstance(value, ExpertLinear):
                    yield value.weight


# Makes the order of a tensor's rows, int64 [n_rows]; None: as in the file. It is called once the
# shape is checked: a shape that only the metadata claims may need more memory than there is.
Order = Callable[[], np.ndarray] | None


class TensorReader(ABC):
    """Finds tensors by name. All methods raise `GGUFError` and `ModelError` with the file's path.

    The values that they return are None where tensors are only checked.
    """

    def __init__(self, gguf: GGUFFile) -> None:
        self.gguf = gguf
        self._unread = dict(gguf.tensors)

    @abstractmethod
    def matrix(self, name: str, shape: tuple[int, int], order: Order = None) -> Any:
        """Tensor `name` [n_rows, n_cols], interleaved with its rows in `order`."""

    @abstractmethod
    def expert_matrix(self, names: list[str], shape: tuple[int, int, int]) -> Any:
        """Tensors `names`, together [n_experts, n_rows, n_cols], interleaved: one for all experts,
        or one for each."""

    @abstractmethod
    def array(self, name: str, shape: tuple[int, ...]) -> Any:
        """Tensor `name`, float32 [shape]."""

    def vector(self, name: str, length: int, order: Order = None) -> Any:
        """Tensor `name`, float32 [length] in `order`."""
        values = self.array(name, (length,))
        return values if order is None or values is None else values[order()]

    @abstractmethod
    def embedding(self, name: str, shape: tuple[int, int]) -> Any:
        """Tensor `name` [n_rows, n_cols] as an `Embedding`, which stays in the file."""

    def has(self, name: str) -> bool:
        """Whether the file has tensor `name`."""
        return name in self.gguf.tensors

    def linear(self, name: str, shape: tuple[int, int], order: Order = None) -> Linear:
        """`name`.weight [n_out, n_in] and, where the file has it, `name`.bias [n_out]."""
        bias = None
        if self.has(f"{name}.bias"):
            bias = self.vector(f"{name}.bias", shape[0], order)
        tensor = f"{name}.weight"
        return Linear(self.matrix(tensor, shape, order), bias, tensor)

    def experts(self, name: str, shape: tuple[int, int, int]) -> ExpertLinear:
        """`name`_exps.weight [n_experts, n_out, n_in] and, where the file has it, `name`_exps.bias
        [n_experts, n_out]. Files of 2023 have `name`.0.weight and so on instead."""
        n_experts = shape[0]
        names, bias = [f"{name}_exps.weight"], None
        if not self.has(names[0]) and self.has(f"{name}.0.weight"):
            names = [f"{name}.{i}.weight" for i in range(n_experts)]
        if self.has(f"{name}_exps.bias"):
            bias = self.array(f"{name}_exps.bias", shape[:2])
        return ExpertLinear(self.expert_matrix(names, shape), bias, f"{name}_exps.weight")

    @abstractmethod
    def fused(self, name: str, n_cols: int, *parts: tuple[int, Order]) -> list[Linear]:
        """Matrices [n_rows, n_cols] that follow each other in tensor `name`.weight (and biases, in
        `name`.bias), each with its rows in an order; `parts` has (n_rows, order) of each."""

    def factors(self, name: str, length: int) -> np.ndarray | None:
        """Tensor `name`, float64 [length], whose values must be above 0."""
        values = self.vector(name, length)
        if values is None:
            return None
        if not np.all(np.isfinite(values) & (values > 0)):
            raise GGUFError(
                f"{self.gguf.path}: tensor {quote(name)} holds a factor that is not > 0"
            )
        return values.astype(np.float64)

    def check_all_read(self) -> None:
        """Raise ModelError for a tensor that was not read: the model computes something else."""
        for name in self._unread:
            arch = self.gguf.get_str("general.architecture")
            raise ModelError(
                f"{self.gguf.path}: tensor {quote(name)} has no place in a {quote(arch)} model"
            )

    def _part(self, name: str, shape: tuple[int, int], order: Order) -> Packed:
        """Tensor `name`, whole, as it is to be interleaved."""
        info = self._checked(name, shape)
        return Packed(name, info.type.name, *shape, order=order() if order else None)

    def _parts(self, name: str, n_cols: int, parts: Sequence[tuple[int, Order]]) -> list[Packed]:
        """The parts of tensor `name` as they are to be interleaved."""
        assert len(parts) <= _MAX_PARTS
        info = self._checked(name, (sum(n for n, _ in parts), n_cols))
        pieces, first = [], 0
        for n, order in parts:
            chosen = order() if order else None
            pieces.append(Packed(name, info.type.name, n, n_cols, first=first, order=chosen))
            first += n
        return pieces

    def _experts(self, names: list[str], shape: tuple[int, int, int]) -> Packed:
        """Tensors `names` as they are to be interleaved."""
        n_experts, n_rows, n_cols = shape
        of_one = shape if len(names) == 1 else shape[1:]
        types = {self._checked(name, of_one).type.name for name in names}
        if len(types) > 1:
            raise ModelError(
                f"{self.gguf.path}: tensor {quote(names[0])} and those of the other experts are of "
                f"different types: {', '.join(sorted(types))}"
            )
        return Packed(names[0], types.pop(), n_rows, n_cols, n_experts)

    def _checked(self, name: str, shape: tuple[int, ...]) -> TensorInfo:
        info = self.gguf.tensors.get(name)
        self._unread.pop(name, None)
        if info is None:
            raise GGUFError(f"{self.gguf.path}: tensor {quote(name)} is missing")
        # Dims of 1 before the others mean nothing: of a vector, or of the only expert.
        if _without_ones(info.shape) != _without_ones(shape):
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


class TensorChecker(TensorReader):
    """Looks at shapes and types, and takes no values."""

    def matrix(self, name: str, shape: tuple[int, int], order: Order = None) -> None:
        """Check tensor `name`."""
        self._checked(name, shape)

    def expert_matrix(self, names: list[str], shape: tuple[int, int, int]) -> None:
        """Check tensors `names`."""
        self._experts(names, shape)

    def array(self, name: str, shape: tuple[int, ...]) -> None:
        """Check tensor `name`."""
        self._checked(name, shape)

    def embedding(self, name: str, shape: tuple[int, int]) -> None:
        """Check tensor `name`."""
        self._checked(name, shape)

    def fused(self, name: str, n_cols: int, *parts: tuple[int, Order]) -> list[Linear]:
        """Check tensor `name`."""
        n_rows = sum(n for n, _ in parts)
        self.linear(name, (n_rows, n_cols))
        return [Linear(None, None)] * len(parts)  # type: ignore[arg-type]


class TensorPlanner(TensorChecker):
    """Checks, and lists in `packed` all matrices that are to be interleaved, in their order."""

    def __init__(self, gguf: GGUFFile) -> None:
        super().__init__(gguf)
        self.packed: list[Packed] = []

    def matrix(self, name: str, shape: tuple[int, int], order: Order = None) -> None:
        """List tensor `name`."""
        self.packed.append(self._part(name, shape, order))

    def expert_matrix(self, names: list[str], shape: tuple[int, int, int]) -> None:
        """List tensors `names`."""
        self.packed.append(self._experts(names, shape))

    def fused(self, name: str, n_cols: int, *parts: tuple[int, Order]) -> list[Linear]:
        """List the parts of tensor `name`."""
        self.packed += self._parts(f"{name}.weight", n_cols, parts)
        if self.has(f"{name}.bias"):
            self.vector(f"{name}.bias", sum(n for n, _ in parts))
        return [Linear(None, None)] * len(parts)  # type: ignore[arg-type]


class TensorLoader(TensorReader):
    """Takes the values, and releases each tensor's pages of the file as soon as it has them."""

    def __init__(
        self,
        gguf: GGUFFile,
        n_threads: int,
        progress: Callable[[float], None] | None,
        places: Places | None = None,
    ) -> None:
        """`progress` is called with the share of the file's bytes that is done, 0 to 1. Matrices
        are interleaved into `places`; None: into an arena."""
        super().__init__(gguf)
        self._n_threads = n_threads
        self._progress = progress
        self._n_bytes = max(1, sum(info.n_bytes for info in gguf.tensors.values()))
        self._n_done = 0
        self._places = _arena(gguf) if places is None else places
        self.loaded: list[tuple[Packed, np.ndarray]] = []  # matrices, and their memory

    def matrix(self, name: str, shape: tuple[int, int], order: Order = None) -> _kernels.Matrix:
        """Interleave tensor `name`."""
        packed = self._part(name, shape, order)
        matrix = self._interleaved(packed)
        self._finished(name)
        return matrix

    def expert_matrix(self, names: list[str], shape: tuple[int, int, int]) -> _experts.ExpertMatrix:
        """Interleave tensors `names`."""
        packed = self._experts(names, shape)
        memory = self._taken(packed)
        if self._places.is_filled:
            matrix = packed.expert_matrix(memory)
        else:
            n_rows = packed.n_rows
            if len(names) == 1:
                data = self.gguf.data(names[0])
                rows = [data[i * n_rows : (i + 1) * n_rows] for i in range(packed.n_experts)]
            else:
                rows = [self.gguf.data(name) for name in names]
            matrix = _experts.ExpertMatrix(
                rows, packed.type, packed.n_cols, memory, self._n_threads
            )
            self._places.keep(packed, memory)
        for name in names:
            self._finished(name)
        return matrix

    def _taken(self, packed: Packed) -> np.ndarray:
        memory = self._places.take(packed)
        self.loaded.append((packed, memory))
        return memory

    def _interleaved(self, packed: Packed) -> _kernels.Matrix:
        memory = self._taken(packed)
        if self._places.is_filled:
            return packed.matrix(memory)
        rows = self.gguf.data(packed.name, packed.first, packed.first + packed.n_rows)
        matrix = _kernels.Matrix(
            rows, packed.type, packed.n_cols, memory, packed.order, self._n_threads
        )
        self._places.keep(packed, memory)
        return matrix

    def fused(self, name: str, n_cols: int, *parts: tuple[int, Order]) -> list[Linear]:
        """Interleave each part of tensor `name`."""
        n_rows = sum(n for n, _ in parts)
        pieces = self._parts(f"{name}.weight", n_cols, parts)
        bias = self.vector(f"{name}.bias", n_rows) if self.has(f"{name}.bias") else None
        linears = []
        for packed in pieces:
            own_bias = None
            if bias is not None:
                own_bias = bias[packed.first : packed.first + packed.n_rows]
                own_bias = np.ascontiguousarray(
                    own_bias if packed.order is None else own_bias[packed.order]
                )
            linears.append(Linear(self._interleaved(packed), own_bias))
        self._finished(f"{name}.weight")
        return linears

    def array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Read tensor `name`."""
        info = self._checked(name, shape)
        values = block_formats.dequantize(self.gguf.data(name), info.type).reshape(shape)
        self._finished(name)
        return np.ascontiguousarray(values, np.float32)

    def embedding(self, name: str, shape: tuple[int, int]) -> Embedding:
        """Leave tensor `name` in the file."""
        self._checked(name, shape)
        return Embedding(self.gguf, name)

    def _finished(self, name: str) -> None:
        self.gguf.release(name)
        self._n_done += self.gguf.tensors[name].n_bytes
        if self._progress:
            self._progress(min(1.0, self._n_done / self._n_bytes))


def _arena(gguf: GGUFFile) -> ArenaPlaces:
    """Memory for all matrices of a file. What is not written costs nothing."""
    matrices = [t for t in gguf.tensors.values() if _is_matrix(t)]
    # Each part of a matrix has whole groups of rows.
    n_bytes = sum(
        _packed_bytes(t) + _MAX_PARTS * _kernels.packed_bytes(t.type.name, 1, t.shape[-1])
        for t in matrices
    )
    return ArenaPlaces(n_bytes, _MAX_PARTS * len(matrices))


def _is_matrix(info: TensorInfo) -> bool:
    return len(info.shape) in (2, 3) and info.type in block_formats.SUPPORTED


def _packed_bytes(info: TensorInfo) -> int:
    """Bytes of a matrix, interleaved, or of the matrices of all experts."""
    if len(info.shape) == 2:
        return _kernels.packed_bytes(info.type.name, *info.shape)
    return info.shape[0] * _experts.expert_bytes(info.type.name, *info.shape[1:])


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


def read_around(t: TensorReader, c: ModelConfig, layers: tuple[_Layer, ...]) -> Weights[_Layer]:
    """Read the tensors around the layers, whose names most architectures share.

    The output matrix may be missing: then it is the embedding. RoPE may have factors, or two kinds
    of them for short and long contexts (LongRoPE, arXiv 2402.13753).
    """
    output = "output" if t.has("output.weight") else "token_embd"

    def factors(name: str) -> np.ndarray | None:
        return t.factors(name, c.rope_dim // 2) if t.has(name) else None

    short, long = (factors(f"rope_factors_{kind}.weight") for kind in ("short", "long"))
    usual = factors("rope_freqs.weight")
    return Weights(
        layers=layers,
        output_norm=t.vector("output_norm.weight", c.dim),
        output=t.linear(output, (c.n_vocab, c.dim)),
        embedding=t.embedding("token_embd.weight", (c.n_vocab, c.dim)),
        rope_factors=short if usual is None else usual,
        long_rope_factors=long if usual is None else None,
    )


def split_halves(
    n_heads: int, head_dim: int, rope_dim: int | None = None, neox: bool = False
) -> np.ndarray:
    """Order of rows that brings the dims of pair i of each head to i and i + head_dim / 2.

    int64 [n_heads * head_dim]. In the file the pairs of GGUF's `llama` are neighbours, dims 2i and
    2i + 1. With `neox`, as in GPT-NeoX, they are i and i + rope_dim / 2 of the `rope_dim` leading
    dims. Half a head apart, all first dims and all second dims are whole vectors for the kernels.
    Queries and keys are permuted alike, so their products stay the same.
    """
    n_rot = head_dim if rope_dim is None else rope_dim

    def pairs(first: int, end: int) -> np.ndarray:
        dims = np.arange(first, end)
        return dims.reshape(2, -1) if neox else dims.reshape(-1, 2).T

    within = np.hstack([pairs(0, n_rot), pairs(n_rot, head_dim)]).reshape(-1)
    return (np.arange(n_heads)[:, None] * head_dim + within).reshape(-1).astype(np.int64)
