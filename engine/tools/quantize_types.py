"""Which tensor of a model gets which type: llama-quantize's mixes.

A file type such as Q4_K_M names a mix: most matrices get one type, those that lose most by rounding
get another with more bits. The rules are those of llama.cpp (src/llama-quant.cpp), because files of
one name are to have one size and quality wherever they were made.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from lariat import _quantize
from lariat.formats.block_formats import BLOCK, GGMLType
from lariat.formats.gguf import TensorInfo

T = GGMLType


class FileType(NamedTuple):
    """A mix: its number in `general.file_type` (`enum llama_ftype`), and the type of most."""

    number: int
    type: GGMLType


FILE_TYPES = {
    "F16": FileType(1, T.F16),
    "Q4_0": FileType(2, T.Q4_0),
    "Q4_1": FileType(3, T.Q4_1),
    "Q8_0": FileType(7, T.Q8_0),
    "Q5_0": FileType(8, T.Q5_0),
    "Q5_1": FileType(9, T.Q5_1),
    "Q2_K": FileType(10, T.Q2_K),
    "Q3_K_S": FileType(11, T.Q3_K),
    "Q3_K_M": FileType(12, T.Q3_K),
    "Q3_K_L": FileType(13, T.Q3_K),
    "Q4_K_S": FileType(14, T.Q4_K),
    "Q4_K_M": FileType(15, T.Q4_K),
    "Q5_K_S": FileType(16, T.Q5_K),
    "Q5_K_M": FileType(17, T.Q5_K),
    "Q6_K": FileType(18, T.Q6_K),
    "IQ4_NL": FileType(25, T.IQ4_NL),
    "IQ4_XS": FileType(30, T.IQ4_XS),
    "MXFP4_MOE": FileType(38, T.MXFP4),
}
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "MXFP4": "MXFP4_MOE"}
"""Other names of mixes, as llama-quantize has them."""

TENSOR_TYPES = _quantize.targets()
"""Names of the types that a tensor can get."""

OUTPUT, EMBEDDING = "output.weight", "token_embd.weight"
# If the rows of a tensor do not divide into the blocks of a type, it gets this one; F16 if that
# does not fit either.
_FALLBACKS = {
    T.Q2_K: T.Q4_0,
    T.Q3_K: T.Q4_0,
    T.IQ4_XS: T.IQ4_NL,
    T.Q4_K: T.Q5_0,
    T.Q5_K: T.Q5_1,
    T.Q6_K: T.Q8_0,
}
# Parts of names of matrices that are too small to gain anything, or too important.
_KEPT = ("_norm.weight", "ffn_gate_inp.weight")


@dataclass(frozen=True)
class Shape:
    """The facts of a model and of its file that the rules look at."""

    architecture: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    n_experts: int  # 0: none
    has_output: bool  # a matrix of its own; else the embedding is the output too
    has_importance: bool  # an importance matrix is given

    @property
    def shares_heads(self) -> bool:
        """Four query heads or more to a KV head: its matrices are small, and many depend on it."""
        return self.n_heads // self.n_kv_heads >= 4

    @property
    def is_70b(self) -> bool:
        """Whether llama.cpp takes it for a model of 70 billion weights, by its number of layers."""
        grouped = self.architecture == "qwen2" or self.n_heads != self.n_kv_heads
        return self.architecture in ("llama", "qwen2") and self.n_layers == 80 and grouped


def is_quantized(info: TensorInfo) -> bool:
    """Whether a tensor is a matrix that llama-quantize gives another type."""
    is_matrix = any(n > 1 for n in info.shape[:-1])
    return (
        is_matrix and info.name.endswith("weight") and not any(part in info.name for part in _KEPT)
    )


class Mix:
    """The types of a file's matrices. They are asked for in the order of the new file, because some
    rules count the matrices of a role rather than the layers."""

    def __init__(self, name: str, shape: Shape, n_attn_v: int) -> None:
        """`name` of FILE_TYPES; `n_attn_v`: matrices that are a layer's V, or have it in them."""
        self._name, self._shape, self._n_attn_v = name, shape, n_attn_v
        self._type = FILE_TYPES[name].type
        self._at_attn_v = self._at_ffn_down = 0

    def type_of(self, info: TensorInfo) -> GGMLType:
        """The type of a matrix, before it is known whether its rows divide into blocks."""
        if info.name == OUTPUT or (info.name == EMBEDDING and not self._shape.has_output):
            return self._of_output(info)
        if self._name == "MXFP4_MOE":
            is_experts = len(info.shape) == 3 and info.shape[0] > 1
            return T.MXFP4 if is_experts else T.Q8_0
        if info.name == EMBEDDING:
            return self._type
        for part, rule in (
            ("attn_v.weight", self._of_attn_v),
            ("attn_k.weight", self._of_attn_k),
            ("ffn_down", self._of_ffn_down),
            ("attn_output.weight", self._of_attn_output),
            ("attn_qkv.weight", self._of_attn_qkv),
        ):
            if part in info.name:
                return rule(info)
        return self._type

    def _of_output(self, info: TensorInfo) -> GGMLType:
        if self._name == "MXFP4_MOE" or info.shape[-1] % BLOCK[self._type][0]:
            return T.Q8_0
        return self._type if self._type in (T.Q8_0, T.F16) else T.Q6_K

    def _of_attn_v(self, info: TensorInfo) -> GGMLType:
        s, at = self._shape, self._at_attn_v
        self._at_attn_v += 1
        new = self._type
        match self._name:
            case "Q2_K":
                new = T.Q4_K if s.shares_heads else T.Q3_K
            case "Q3_K_M":
                new = T.Q5_K if at < 2 else T.Q4_K
            case "Q3_K_L":
                new = T.Q5_K
            case "IQ4_NL" | "IQ4_XS" if s.shares_heads:
                new = T.Q5_K
            case "Q4_K_M" | "Q5_K_M" if _has_more_bits(at, self._n_attn_v):
                new = T.Q6_K
            case "Q4_K_S" if at < 4:
                new = T.Q5_K
        if s.is_70b and new in (T.Q3_K, T.Q4_K):
            new = T.Q5_K
        return T.Q8_0 if s.n_experts == 8 else new

    def _of_attn_k(self, info: TensorInfo) -> GGMLType:
        return T.Q8_0 if self._shape.n_experts == 8 else self._type

    def _of_ffn_down(self, info: TensorInfo) -> GGMLType:
        s, layer = self._shape, self._at_ffn_down
        self._at_ffn_down += 1
        if s.n_experts > 1 and (found := re.match(r"blk\.(\d+)\.", info.name)):
            layer = int(found[1])
        match self._name:
            case "Q2_K":
                return T.Q3_K
            case "Q3_K_M":
                return T.Q5_K if layer < s.n_layers // 16 else T.Q4_K
            case "Q3_K_L":
                return T.Q5_K
            case "Q4_K_M" | "Q5_K_M" if _has_more_bits(layer, s.n_layers):
                return T.Q6_K
            case "IQ4_NL" | "IQ4_XS" if layer < s.n_layers // 8 and not s.has_importance:
                return T.Q5_K
            case "Q4_K_S" if layer < s.n_layers // 8:
                return T.Q5_K
            case "Q4_0" if layer < s.n_layers // 8 and s.has_importance:
                return T.Q4_1
            case "Q5_0" if layer < s.n_layers // 8 and s.has_importance:
                return T.Q5_1
        return self._type

    def _of_attn_output(self, info: TensorInfo) -> GGMLType:
        if self._shape.n_experts == 8:
            more = {"Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ4_NL", "IQ4_XS"}
            return T.Q5_K if self._name in more else self._type
        return {"Q2_K": T.Q3_K, "Q3_K_M": T.Q4_K, "Q3_K_L": T.Q5_K}.get(self._name, self._type)

    def _of_attn_qkv(self, info: TensorInfo) -> GGMLType:
        more = {"Q3_K_M": T.Q4_K, "Q3_K_L": T.Q4_K, "Q4_K_M": T.Q5_K, "Q5_K_M": T.Q6_K}
        return more.get(self._name, self._type)


def fitting(wanted: GGMLType, n_cols: int) -> GGMLType:
    """The type, or the one that takes its place because rows do not divide into its blocks.

    A type without such a substitute is returned even if they do not.
    """
    if n_cols % BLOCK[wanted][0] == 0 or wanted not in _FALLBACKS:
        return wanted
    fallback = _FALLBACKS[wanted]
    return fallback if n_cols % BLOCK[fallback][0] == 0 else T.F16


def _has_more_bits(layer: int, n_layers: int) -> bool:
    """The first eighth of the layers, the last, and every third between them"""
    first, last = n_layers // 8, 7 * n_layers // 8
    return layer < first or layer >= last or (layer - first) % 3 == 2
