"""Checked reading of a model's metadata, for the `read_config` of architectures.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (section "LLM"). Each begins with
the name of the architecture, which callers leave out. All methods raise `GGUFError` for values that
are missing or out of bounds, and `ModelError` for models of another kind, with the file's path.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import NamedTuple

import numpy as np
from lariat.config import EXPERT_GATINGS, MAX_CTX, ExpertConfig, ModelConfig, RopeConfig
from lariat.errors import GGUFError, ModelError, quote
from lariat.formats.gguf import GGUFFile

# Bounds of a sane file. They keep later arithmetic and allocations small.
MAX_LAYERS = 512
MAX_DIM = 1 << 17  # of the model and of all heads; buffers for 512 tokens take 268 MB each
MAX_EXPERTS = 4096
_MAX_HEADS = 4096
_MAX_HEAD_DIM = 4096


class Heads(NamedTuple):
    """Attention heads: how many, and their lengths."""

    n_heads: int  # of queries
    n_kv_heads: int
    head_dim_k: int  # of queries and keys
    head_dim_v: int


class Metadata:
    """The keys of a file that begin with the name of its architecture."""

    def __init__(self, gguf: GGUFFile) -> None:
        self.architecture = gguf.get_str("general.architecture")
        self._gguf = gguf

    def whole(self, key: str, maximum: int, default: int | None = None, minimum: int = 1) -> int:
        """A whole number; without `default` it must be there."""
        return self._gguf.get_int(self._full(key), default, minimum=minimum, maximum=maximum)

    def real(self, key: str, minimum: float, maximum: float, default: float | None = None) -> float:
        """A finite number; without `default` it must be there."""
        return self._gguf.get_float(self._full(key), default, minimum=minimum, maximum=maximum)

    def has_experts(self) -> bool:
        """Whether the model is a mixture of experts."""
        return self.whole("expert_count", MAX_EXPERTS, 0, 0) > 0

    def switch(self, key: str, default: bool) -> bool:
        """Yes or no."""
        return self._gguf.get_bool(self._full(key), default=default)

    def refuse_experts(self) -> None:
        """ModelError for a mixture of experts, for a family that has none."""
        if self.has_experts():
            raise ModelError(
                f"{self._gguf.path}: mixtures of experts are not supported in "
                f"{quote(self.architecture)} models"
            )

    def experts(
        self,
        *,
        divided: bool = False,
        gating: str = "softmax",
        normalized: bool = True,
        n_ff_shared: int = 0,
    ) -> ExpertConfig:
        """The mixture of experts. The arguments are for what the file does not say; an expert is
        then as wide as `feed_forward_length`, or that `divided` by the experts of a token."""
        n_experts = self.whole("expert_count", MAX_EXPERTS)
        n_used = self.whole("expert_used_count", n_experts)
        number = self.whole("expert_gating_func", 1 << 16, 0, 0)  # 0: not said
        if number > len(EXPERT_GATINGS):
            raise ModelError(
                f"{self._gguf.path}: expert gating function {number} is not supported, only "
                f"1 ({EXPERT_GATINGS[0]}), 2 ({EXPERT_GATINGS[1]}) and 3 ({EXPERT_GATINGS[2]}) are"
            )
        if self.whole("expert_group_count", MAX_EXPERTS, 1, 0) > 1:
            raise ModelError(f"{self._gguf.path}: groups of experts are not supported")
        n_ff = self.whole("feed_forward_length", MAX_DIM, 0, 0) // (n_used if divided else 1)
        return ExpertConfig(
            n_experts=n_experts,
            n_used=n_used,
            n_ff=self.whole("expert_feed_forward_length", MAX_DIM, n_ff or None),
            gating=EXPERT_GATINGS[number - 1] if number else gating,
            normalized=self.switch("expert_weights_norm", normalized),
            scale=self.real("expert_weights_scale", 0.0, 1e6, 1.0) or 1.0,  # 0: none
            n_ff_shared=n_ff_shared,
        )

    def refuse_not_causal(self) -> None:
        """ModelError for a model whose tokens see those behind them."""
        if not self._gguf.get_bool(self._full("attention.causal"), default=True):
            raise ModelError(
                f"{self._gguf.path}: models whose attention is not causal are not supported"
            )

    def refuse_unless(self, key: str, expected: int) -> None:
        """ModelError if the file has `key` with another value."""
        found = self.whole(key, 1 << 31, expected, 0)
        if found != expected:
            raise ModelError(
                f"{self._gguf.path}: {self._full(key)} is {found}, and only {expected} is supported"
            )

    def windows(self, c: ModelConfig, pattern: int, default: int = 0) -> list[int | None]:
        """The attention window of each layer; None: it sees all tokens before it.

        The file has the length of all windows, and says which layers have one: with true and false
        for each, or with a number n, where every n-th layer has none (0: all have one). It is
        `pattern` without a key. `default` is the length without a key, 0 for no windows.
        """
        length = self.whole("attention.sliding_window", MAX_CTX, default, 0)
        if length == 0:
            return [None] * c.n_layers
        self.refuse_unless("attention.key_length_swa", c.head_dim_k)
        self.refuse_unless("attention.value_length_swa", c.head_dim_v)
        self.refuse_unless("rope.dimension_count_swa", c.rope_dim)
        key = "attention.sliding_window_pattern"
        found = self._gguf.metadata.get(self._full(key))
        if isinstance(found, np.ndarray):
            if found.dtype != np.bool_ or len(found) < c.n_layers:
                raise GGUFError(
                    f"{self._gguf.path}: {self._full(key)} has {len(found)} values of type "
                    f"{found.dtype}, expected {c.n_layers} times true or false"
                )
            return [length if has_window else None for has_window in found[: c.n_layers].tolist()]
        n = self.whole(key, MAX_LAYERS, pattern, 0)
        return [length if n == 0 or i % n < n - 1 else None for i in range(c.n_layers)]

    def heads(self, dim: int) -> Heads:
        """The heads of a model of width `dim`; their lengths are even."""
        path = self._gguf.path
        n_heads = self.whole("attention.head_count", _MAX_HEADS)
        n_kv_heads = self.whole("attention.head_count_kv", _MAX_HEADS, n_heads)
        if n_heads % n_kv_heads:
            raise GGUFError(
                f"{path}: {n_heads} query heads do not divide among {n_kv_heads} KV heads"
            )
        if dim % n_heads and self._full("attention.key_length") not in self._gguf.metadata:
            raise GGUFError(f"{path}: embedding length {dim} does not divide by {n_heads} heads")
        head_dim_k = self.whole("attention.key_length", _MAX_HEAD_DIM, max(dim // n_heads, 1))
        head_dim_v = self.whole("attention.value_length", _MAX_HEAD_DIM, max(dim // n_heads, 1))
        longest = max(head_dim_k, head_dim_v)
        if n_heads * longest > MAX_DIM:
            raise GGUFError(
                f"{path}: {n_heads} heads of {longest} make {n_heads * longest} dims, "
                f"expected at most {MAX_DIM}"
            )
        for name, value in (("key", head_dim_k), ("value", head_dim_v)):
            if value % 2:
                raise GGUFError(f"{path}: {name} length {value} of a head is odd")
        return Heads(n_heads, n_kv_heads, head_dim_k, head_dim_v)

    def rope_dim(self, head_dim: int) -> int:
        """How many leading dims of a head are rotated, an even number."""
        rope_dim = self.whole("rope.dimension_count", 4096, head_dim)
        if rope_dim % 2 or rope_dim > head_dim:
            raise GGUFError(
                f"{self._gguf.path}: {self._full('rope.dimension_count')} is {rope_dim}, "
                f"expected an even number of at most {head_dim}"
            )
        return rope_dim

    def n_vocab(self) -> int:
        """Rows of the embedding, which is the width of the logits; the token list must agree."""
        path, info = self._gguf.path, self._gguf.tensors.get("token_embd.weight")
        if info is None:
            raise GGUFError(f"{path}: tensor 'token_embd.weight' is missing")
        if len(info.shape) != 2:
            raise GGUFError(f"{path}: tensor 'token_embd.weight' has shape {info.shape}, not 2-D")
        tokens = self._gguf.metadata.get("tokenizer.ggml.tokens")
        # The tokenizer refuses a value that is no list.
        if isinstance(tokens, Sized) and len(tokens) != info.shape[0]:
            raise GGUFError(
                f"{path}: the vocabulary has {len(tokens)} tokens, "
                f"but tensor 'token_embd.weight' has {info.shape[0]} rows"
            )
        return info.shape[0]

    def rope(self, n_ctx_train: int) -> RopeConfig:
        """The RoPE settings, complete, as llama.cpp reads them: a factor without a type is linear,
        and so is "longrope", whose factors are tensors.

        Scaling methods that are not known are refused by name, not ignored.
        """
        scaling = self._gguf.get_str(self._full("rope.scaling.type"), default="linear") or "linear"
        if scaling == "longrope":
            scaling = "linear"
        if scaling not in ("none", "linear", "yarn"):
            raise ModelError(
                f"{self._gguf.path}: RoPE scaling {quote(scaling)} is not supported, "
                f"only none, linear and yarn are"
            )
        key = "rope.scaling.factor"
        if self._full(key) not in self._gguf.metadata:
            key = "rope.scale_linear"  # its old name
        # Some files say 0 for no scaling.
        is_zero = self._gguf.get_float(self._full(key), default=1.0) == 0
        trained = "rope.scaling.original_context_length"
        return RopeConfig(
            scaling=scaling,
            scale=1.0 if is_zero else self.real(key, 1e-3, 1e6, 1.0),
            freq_base=self.real("rope.freq_base", 1e-3, 1e15, 1e4),
            yarn_orig_ctx=self.whole(trained, MAX_CTX, n_ctx_train),
        )

    def _full(self, key: str) -> str:
        return f"{self.architecture}.{key}"
