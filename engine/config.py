"""Frozen configuration: of the model (from its file), of the engine, and of sampling.

Each class checks its values when it is made and never changes afterwards.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sized
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from lariat.architectures.architecture import ARCHITECTURES, LLAMA, Architecture
from lariat.errors import GGUFError, ModelError, quote

if TYPE_CHECKING:
    from lariat.formats.gguf import GGUFFile

CACHE_STRATEGIES = ("roped", "raw")
CACHE_TYPES = ("f16", "f32", "q8_0", "q4_0", "q8_ch", "q4_ch")
ROPE_SCALINGS = ("none", "linear", "yarn", "dynamic")

# Bounds of what a sane file holds. They keep later arithmetic and allocations small.
_MAX_LAYERS = 512
_MAX_HEADS = 4096
_MAX_DIM = 1 << 17  # of the model and of all heads; buffers for 512 tokens take 268 MB each
_MAX_CTX = 1 << 27


@dataclass(frozen=True)
class ModelConfig:
    """Shape and constants of a model, from the metadata of its GGUF file.

    Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (section "LLM").
    """

    n_vocab: int
    n_ctx_train: int
    dim: int  # embedding_length
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim_k: int  # attention.key_length
    head_dim_v: int  # attention.value_length
    n_ff: int
    norm_eps: float
    rope_dim: int  # how many leading dims of a head are rotated
    rope: RopeConfig  # what the file says, complete
    rope_attn_factor: float = 1.0  # queries and keys are multiplied by it
    architecture: Architecture = LLAMA

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.n_heads // self.n_kv_heads

    @classmethod
    def from_gguf(cls, gguf: GGUFFile) -> ModelConfig:
        """Read and check the metadata. Raises `GGUFError` or `ModelError`."""
        arch = gguf.get_str("general.architecture")
        if arch not in ARCHITECTURES:
            raise ModelError(
                f"{gguf.path}: architecture {quote(arch)} is not supported, "
                f"only {', '.join(ARCHITECTURES)} are"
            )

        def whole(key: str, maximum: int, default: int | None = None, minimum: int = 1) -> int:
            return gguf.get_int(f"{arch}.{key}", default=default, minimum=minimum, maximum=maximum)

        if whole("expert_count", 1 << 16, 0, 0) > 0:
            raise ModelError(f"{gguf.path}: mixture-of-experts models are not supported")
        if not gguf.get_bool(f"{arch}.attention.causal", default=True):
            raise ModelError(f"{gguf.path}: models whose attention is not causal are not supported")
        dim = whole("embedding_length", _MAX_DIM)
        n_heads = whole("attention.head_count", _MAX_HEADS)
        n_kv_heads = whole("attention.head_count_kv", _MAX_HEADS, n_heads)
        if n_heads % n_kv_heads:
            raise GGUFError(
                f"{gguf.path}: {n_heads} query heads do not divide among {n_kv_heads} KV heads"
            )
        if dim % n_heads and f"{arch}.attention.key_length" not in gguf.metadata:
            raise GGUFError(
                f"{gguf.path}: embedding length {dim} does not divide by {n_heads} heads"
            )
        head_dim_k = whole("attention.key_length", 4096, max(dim // n_heads, 1))
        head_dim_v = whole("attention.value_length", 4096, max(dim // n_heads, 1))
        if n_heads * max(head_dim_k, head_dim_v) > _MAX_DIM:
            raise GGUFError(
                f"{gguf.path}: {n_heads} heads of {max(head_dim_k, head_dim_v)} make "
                f"{n_heads * max(head_dim_k, head_dim_v)} dims, expected at most {_MAX_DIM}"
            )
        for name, value in (("key", head_dim_k), ("value", head_dim_v)):
            if value % 2:
                raise GGUFError(f"{gguf.path}: {name} length {value} of a head is odd")
        rope_dim = whole("rope.dimension_count", 4096, head_dim_k)
        if rope_dim % 2 or rope_dim > head_dim_k:
            raise GGUFError(
                f"{gguf.path}: {arch}.rope.dimension_count is {rope_dim}, "
                f"expected an even number of at most {head_dim_k}"
            )
        n_ctx_train = whole("context_length", _MAX_CTX)
        return cls(
            n_vocab=_vocab_size(gguf),
            n_ctx_train=n_ctx_train,
            dim=dim,
            n_layers=whole("block_count", _MAX_LAYERS),
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim_k=head_dim_k,
            head_dim_v=head_dim_v,
            n_ff=whole("feed_forward_length", _MAX_DIM),
            norm_eps=gguf.get_float(
                f"{arch}.attention.layer_norm_rms_epsilon", minimum=0.0, maximum=1.0
            ),
            rope_dim=rope_dim,
            rope=_rope(gguf, f"{arch}.rope.", n_ctx_train),
            rope_attn_factor=gguf.get_float(
                f"{arch}.rope.scaling.attn_factor", default=1.0, minimum=1e-3, maximum=1e3
            ),
            architecture=ARCHITECTURES[arch],
        )


def _vocab_size(gguf: GGUFFile) -> int:
    """Rows of the embedding, which is what the logits have; the token list must agree."""
    info = gguf.tensors.get("token_embd.weight")
    if info is None:
        raise GGUFError(f"{gguf.path}: tensor 'token_embd.weight' is missing")
    if len(info.shape) != 2:
        raise GGUFError(f"{gguf.path}: tensor 'token_embd.weight' has shape {info.shape}, not 2-D")
    tokens = gguf.metadata.get("tokenizer.ggml.tokens")
    # What is no list at all is refused by the tokenizer, which says so.
    if isinstance(tokens, Sized) and len(tokens) != info.shape[0]:
        raise GGUFError(
            f"{gguf.path}: the vocabulary has {len(tokens)} tokens, "
            f"but tensor 'token_embd.weight' has {info.shape[0]} rows"
        )
    return info.shape[0]


def _rope(gguf: GGUFFile, prefix: str, n_ctx_train: int) -> RopeConfig:
    """What the file says of RoPE, as llama.cpp reads it: a factor without a type is linear.

    Scaling methods that are not known are refused by name, not ignored.
    """
    kind = gguf.get_str(prefix + "scaling.type", default="linear") or "linear"
    if kind not in ("none", "linear", "yarn"):
        raise ModelError(
            f"{gguf.path}: RoPE scaling {quote(kind)} is not supported, "
            f"only none, linear and yarn are"
        )
    key = prefix + "scaling.factor"
    if key not in gguf.metadata:
        key = prefix + "scale_linear"  # its old name
    is_zero = gguf.get_float(key, default=1.0) == 0  # how some files say that there is none
    return RopeConfig(
        scaling=kind,
        scale=1.0 if is_zero else gguf.get_float(key, default=1.0, minimum=1e-3, maximum=1e6),
        freq_base=gguf.get_float(prefix + "freq_base", default=1e4, minimum=1e-3, maximum=1e15),
        yarn_orig_ctx=gguf.get_int(
            prefix + "scaling.original_context_length",
            default=n_ctx_train, minimum=1, maximum=_MAX_CTX,
        ),
    )  # fmt: skip


@dataclass(frozen=True)
class RopeConfig:
    """How positions become angles; names and meaning are llama.cpp's.

    None is what the model's file says, or else the default in brackets. All but group attention
    goes into the table of `lariat.cache.rope`, whose docstring has the formulas.

    scaling           "none", "linear" (positions are divided by `scale`, arXiv 2306.15595), "yarn"
                      (2309.00071) or "dynamic" (the base grows with the context once it is longer
                      than `yarn_orig_ctx`; raw cache only)
    scale             how many times as long the context becomes (1)
    freq_base         theta of the first paper (10000)
    yarn_orig_ctx     the length that the model was trained on
    yarn_ext_factor   share of extrapolation where frequencies are high (1 with "yarn", else 0)
    yarn_attn_factor  queries and keys are multiplied by it (1); not used where yarn_ext_factor is
                      above 0, which brings a factor of its own
    yarn_beta_fast, yarn_beta_slow  turns within the trained length above which a pair is
                      extrapolated (32), and below which it is interpolated (1)
    grp_attn_n        above 1: Self-Extend (arXiv 2401.01325): keys that are further away than
                      `grp_attn_w` stand at position / grp_attn_n, rounded down; raw cache only
    grp_attn_w        its window of exact positions, a multiple of `grp_attn_n` (512 or just below)
    """

    scaling: str | None = None
    scale: float | None = None
    freq_base: float | None = None
    yarn_orig_ctx: int | None = None
    yarn_ext_factor: float | None = None
    yarn_attn_factor: float | None = None
    yarn_beta_fast: float | None = None
    yarn_beta_slow: float | None = None
    grp_attn_n: int | None = None
    grp_attn_w: int | None = None

    def __post_init__(self) -> None:
        if self.scaling is not None and self.scaling not in ROPE_SCALINGS:
            raise ValueError(
                f"RoPE scaling is {self.scaling!r}, expected one of {', '.join(ROPE_SCALINGS)}"
            )
        bounds = {
            "scale": (1e-3, 1e6),
            "freq_base": (1e-3, 1e15),
            "yarn_ext_factor": (0.0, 1e3),
            "yarn_attn_factor": (1e-3, 1e3),
            "yarn_beta_fast": (1e-3, 1e6),
            "yarn_beta_slow": (1e-3, 1e6),
        }
        for name, (minimum, maximum) in bounds.items():
            if getattr(self, name) is not None:
                _check_real(name, getattr(self, name), minimum, maximum)
        for name in ("yarn_orig_ctx", "grp_attn_n", "grp_attn_w"):
            if getattr(self, name) is not None:
                _check_whole(name, getattr(self, name), 1, _MAX_CTX)
        if self.group_window % self.group_n:
            raise ValueError(
                f"grp_attn_w is {self.grp_attn_w}, expected a multiple of grp_attn_n,"
                f" which is {self.grp_attn_n}"
            )

    @property
    def group_n(self) -> int:
        """Far positions that become one; 1: no group attention."""
        return self.grp_attn_n or 1

    @property
    def group_window(self) -> int:
        """Positions that are near: the query's own and those before it."""
        return self.grp_attn_w or max(1, 512 // self.group_n) * self.group_n

    @property
    def needs_raw(self) -> bool:
        """Whether a key's angle depends on more than its own position."""
        return self.scaling == "dynamic" or self.group_n > 1

    def over(self, other: RopeConfig) -> RopeConfig:
        """What this says, and where it says nothing what `other` does."""
        mine = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(other, **{name: v for name, v in mine.items() if v is not None})


@dataclass(frozen=True)
class EngineConfig:
    """How a model is run; see `LLM` for the meaning of each value."""

    n_ctx: int = 0
    n_threads: int | None = None
    n_threads_batch: int | None = None
    n_batch: int = 2048
    n_ubatch: int = 512
    cache: str = "roped"
    type_k: str = "f16"
    type_v: str = "f16"
    seed: int | None = None
    rope: RopeConfig = RopeConfig()
    prefix_sharing: bool = True
    check_tensors: bool = False

    def __post_init__(self) -> None:
        _check_whole("n_ctx", self.n_ctx, 0, _MAX_CTX)
        _check_whole("n_batch", self.n_batch, 1, 1 << 20)
        _check_whole("n_ubatch", self.n_ubatch, 1, 1 << 16)
        if self.seed is not None:
            _check_whole("seed", self.seed, 0, (1 << 64) - 1)
        if self.cache not in CACHE_STRATEGIES:
            raise ValueError(
                f"cache is {self.cache!r}, expected one of {', '.join(CACHE_STRATEGIES)}"
            )
        if self.cache != "raw" and self.rope.needs_raw:
            what = "dynamic RoPE scaling" if self.rope.group_n == 1 else "group attention"
            raise ValueError(f"{what} turns keys again, which needs the raw cache")
        for name in ("type_k", "type_v"):
            if getattr(self, name) not in CACHE_TYPES:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, expected one of {', '.join(CACHE_TYPES)}"
                )


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen; names and defaults are llama.cpp's.

    `max_tokens` -1 means until the model ends or the context is full. `temperature` 0 is greedy.
    `top_k` 0, `top_p` 1, `min_p` 0, `typical_p` 1, `repeat_penalty` 1 and the other penalties at
    0 switch that stage off. `repeat_last_n` counts the last tokens that penalties look at, 0 is
    none and -1 the whole context. `stop` are texts that end generation and are not part of it.

    `context_shift`: where the context is full, the oldest 32 tokens behind the first `n_keep` go,
    and those behind them move up (StreamingLLM, arXiv 2309.17453). `n_keep` -1 keeps the prompt,
    and what a context held before it.
    """

    max_tokens: int = -1
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    context_shift: bool = False
    n_keep: int = 4

    def __post_init__(self) -> None:
        _check_whole("max_tokens", self.max_tokens, -1, 1 << 31)
        _check_whole("top_k", self.top_k, 0, 1 << 31)
        _check_whole("repeat_last_n", self.repeat_last_n, -1, 1 << 31)
        _check_whole("n_keep", self.n_keep, -1, 1 << 31)
        if self.seed is not None:
            _check_whole("seed", self.seed, 0, (1 << 64) - 1)
        _check_real("temperature", self.temperature, 0.0, 1e6)
        _check_real("top_p", self.top_p, 0.0, 1.0)
        _check_real("min_p", self.min_p, 0.0, 1.0)
        _check_real("typical_p", self.typical_p, 0.0, 1.0)
        _check_real("repeat_penalty", self.repeat_penalty, 1e-6, 1e6)
        _check_real("frequency_penalty", self.frequency_penalty, -1e6, 1e6)
        _check_real("presence_penalty", self.presence_penalty, -1e6, 1e6)
        for token, bias in self.logit_bias.items():
            _check_whole("a token of logit_bias", token, 0, 1 << 31)
            if math.isnan(bias) or bias == math.inf:
                raise ValueError(f"the logit bias of token {token} is {bias}, expected a number")
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        else:
            object.__setattr__(self, "stop", tuple(self.stop))
        if any(not isinstance(text, str) or not text for text in self.stop):
            raise ValueError("a stop text is empty or not a string")


def _check_whole(name: str, value: Any, minimum: int, maximum: int) -> None:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ValueError(f"{name} is {value!r}, expected a whole number")
    if not minimum <= value.__index__() <= maximum:
        raise ValueError(f"{name} is {value}, expected {minimum} to {maximum}")


def _check_real(name: str, value: Any, minimum: float, maximum: float) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"{name} is {value!r}, expected a number")
    if not minimum <= float(value) <= maximum:  # also false for NaN
        raise ValueError(f"{name} is {value}, expected {minimum:g} to {maximum:g}")
