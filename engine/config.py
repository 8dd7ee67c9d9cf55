"""Frozen configuration: of the model (from its file), of the engine, and of sampling.

Each class checks its values when it is made and never changes afterwards.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Protocol

from lariat.checks import check_choice, check_real, check_switch, check_type, check_whole

if TYPE_CHECKING:
    import numpy as np

SPECULATIVE = ("ngram", "draft", "auto")
CACHE_STRATEGIES = ("roped", "raw")
CACHE_TYPES = ("f16", "f32", "q8_0", "q4_0", "q8_ch", "q4_ch")
ROPE_SCALINGS = ("none", "linear", "yarn", "dynamic")
EXPERT_GATINGS = ("softmax", "sigmoid", "softmax of the chosen")
MAX_CTX = 1 << 27  # positions of a context
MAX_DRAFT = 31  # guesses at a time: with the token before them, a block
_MAX_SEED = (1 << 64) - 1
_MAX_LOGPROBS = 1000  # for each token of a long prompt too
_MAX_BIAS = 1e38  # far from the largest float32, so that a logit can be added


def _set(config: Any, name: str, value: Any) -> None:
    """Give a frozen configuration the value of a field that was checked."""
    object.__setattr__(config, name, value)


@dataclass(frozen=True)
class RopeConfig:
    """How positions become angles. Names and meanings are llama.cpp's.

    A field that is None has the value of the model's file, or else the default in brackets. All
    fields but those of group attention go into the table of `lariat.cache.rope`, whose docstring
    has the formulas.

    scaling           "none", "linear" (positions are divided by `scale`, arXiv 2306.15595), "yarn"
                      (2309.00071) or "dynamic" (the base grows with the context once it is longer
                      than `yarn_orig_ctx`; raw cache only)
    scale             how many times as long the context becomes (1)
    freq_base         the base b of RoFormer's frequencies (10000)
    yarn_orig_ctx     tokens of the context that the model was trained on
    yarn_ext_factor   share of extrapolation where frequencies are high (1 with "yarn", else 0)
    yarn_attn_factor  factor of queries and of keys (1); YaRN's own factor replaces it where
                      yarn_ext_factor is above 0
    yarn_beta_fast    rotations within the trained length above which a pair of dims is
                      extrapolated (32)
    yarn_beta_slow    rotations within the trained length below which it is interpolated (1)
    grp_attn_n        above 1: Self-Extend (arXiv 2401.01325): keys `grp_attn_w` positions away and
                      more get position / grp_attn_n, rounded down; raw cache only
    grp_attn_w        positions that stay exact, a multiple of `grp_attn_n` (512 or just below)
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
        if self.scaling is not None:
            check_choice("RoPE scaling", self.scaling, ROPE_SCALINGS)
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
                _set(self, name, check_real(name, getattr(self, name), minimum, maximum))
        for name in ("yarn_orig_ctx", "grp_attn_n", "grp_attn_w"):
            if getattr(self, name) is not None:
                _set(self, name, check_whole(name, getattr(self, name), 1, MAX_CTX))
        if self.group_window % self.group_n:
            raise ValueError(
                f"grp_attn_w is {self.grp_attn_w}, expected a multiple of grp_attn_n,"
                f" which is {self.grp_attn_n}"
            )

    @property
    def group_n(self) -> int:
        """How many distant positions become one; 1: no group attention."""
        return self.grp_attn_n or 1

    @property
    def group_window(self) -> int:
        """How many positions stay exact: the query's own and those just before it."""
        return self.grp_attn_w or max(1, 512 // self.group_n) * self.group_n

    @property
    def needs_raw(self) -> bool:
        """Whether a key's angle depends on more than its own position."""
        return self.scaling == "dynamic" or self.group_n > 1

    def over(self, other: RopeConfig) -> RopeConfig:
        """Return `other` with all fields replaced that are not None here."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(other, **{name: v for name, v in own.items() if v is not None})


@dataclass(frozen=True)
class LayerConfig:
    """How the attention of one layer treats positions.

    rope    settings of its RoPE table, complete, as the model's file asks for them; None: queries
            and keys of this layer are not rotated
    window  the query at position i sees keys at positions above i - window, up to its own (sliding
            window, arXiv 2004.05150); None: its own and all before it
    """

    rope: RopeConfig | None
    window: int | None = None

    def __post_init__(self) -> None:
        if self.window is not None:
            _set(self, "window", check_whole("window", self.window, 1, MAX_CTX))


@dataclass(frozen=True)
class ExpertConfig:
    """The mixture of experts of each layer, and how a token's experts are chosen and weighted.

    gating      what the router's logits become: "softmax" over all experts, "sigmoid" of each, or
                "softmax of the chosen" ones
    normalized  whether the weights of a token's experts are divided by their sum
    scale       factor of the weights
    n_ff_shared  width of the feed-forward that all tokens share; 0: there is none
    """

    n_experts: int
    n_used: int  # by a token
    n_ff: int  # width of an expert's feed-forward
    gating: str = "softmax"
    normalized: bool = True
    scale: float = 1.0
    n_ff_shared: int = 0

    def __post_init__(self) -> None:
        check_choice("expert gating", self.gating, EXPERT_GATINGS)


@dataclass(frozen=True)
class ModelConfig:
    """Shape and constants of a model. Its architecture reads them from the metadata of its file."""

    n_vocab: int
    n_ctx_train: int
    dim: int  # of the residual stream
    n_layers: int
    n_heads: int  # of queries
    n_kv_heads: int
    head_dim_k: int  # of queries and keys
    head_dim_v: int
    n_ff: int  # width of the feed-forward
    norm_eps: float
    rope_dim: int  # leading dims of a head that are rotated
    rope: RopeConfig  # complete, as the file asks for it; a user's settings go over this one
    rope_attn_factor: float = 1.0  # queries and keys are multiplied by it
    yarn_log_mul: float = 0.0  # m: YaRN's factor is divided by 1 + 0.1 m ln(scale); 0: it is not
    architecture: str = "llama"  # its name in `lariat.architectures`
    layers: tuple[LayerConfig, ...] = ()  # one a layer; empty: all have `rope` and no window
    attention_scale: float | None = None  # scores are multiplied by it; None: 1 / sqrt(head_dim_k)
    attention_soft_cap: float = 0.0  # scores s become cap * tanh(s / cap); 0: no cap
    experts: ExpertConfig | None = None  # None: each layer has one feed-forward for all tokens
    query_growth: float = 0.0  # of positions beyond the trained length: `Recorder.grow_queries`
    embedding_scale: float = 1.0  # embeddings are multiplied by it
    residual_scale: float = 1.0  # and what a layer adds to the residual stream by this
    logit_scale: float = 1.0  # and logits by this
    logit_soft_cap: float = 0.0  # of logits, after they are scaled; 0: no cap

    def __post_init__(self) -> None:
        if not self.layers:
            object.__setattr__(self, "layers", (LayerConfig(self.rope),) * self.n_layers)
        if len(self.layers) != self.n_layers:
            raise ValueError(f"{len(self.layers)} layers are described, expected {self.n_layers}")

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.n_heads // self.n_kv_heads


_SIZES = {"n_ctx": (0, MAX_CTX), "n_batch": (1, 1 << 20), "n_ubatch": (1, 1 << 16)}


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
    swa_window_only: bool = False
    speculative: str | None = None
    n_draft: int = 8

    def __post_init__(self) -> None:
        for name, (minimum, maximum) in _SIZES.items():
            _set(self, name, check_whole(name, getattr(self, name), minimum, maximum))
        if self.seed is not None:
            _set(self, "seed", check_whole("seed", self.seed, 0, _MAX_SEED))
        for name in ("prefix_sharing", "check_tensors", "swa_window_only"):
            _set(self, name, check_switch(name, getattr(self, name)))
        check_type("rope", self.rope, RopeConfig)
        check_choice("cache", self.cache, CACHE_STRATEGIES)
        if self.cache != "raw" and self.rope.needs_raw:
            setting = "dynamic RoPE scaling" if self.rope.group_n == 1 else "group attention"
            raise ValueError(f"{setting} rotates keys anew, which needs the raw cache")
        for name in ("type_k", "type_v"):
            check_choice(name, getattr(self, name), CACHE_TYPES)
        if self.speculative is not None:
            check_choice("speculative", self.speculative, SPECULATIVE)
        _set(self, "n_draft", check_whole("n_draft", self.n_draft, 1, MAX_DRAFT))

    @property
    def can_shift(self) -> bool:
        """Whether cached tokens can move: rotated keys that share scales with others cannot."""
        return self.cache == "raw" or not self.type_k.endswith("_ch")


class Matcher(Protocol):
    """A grammar and the text of one request so far. Its errors end the request."""

    def mask(self, logits: np.ndarray) -> None:
        """Set the logits (float [n_vocab], in place) of all tokens that may not come to -inf. Ends
        of generation may come where the text may end."""

    def accept(self, token_id: int) -> None:
        """Take the token that came; not one that ends the text."""

    def forced(self) -> list[int]:
        """Tokens that come next whatever the logits are, as far as that is known."""

    @property
    def is_done(self) -> bool:
        """Whether nothing may come any more."""


class TokenGrammar(Protocol):
    """A grammar in the tokens of one vocabulary. Requests may share one."""

    def start(self) -> Matcher:
        """Begin a text."""


class TextGrammar(Protocol):
    """A grammar for any model: `lariat.Grammar`. `LLM` makes a `TokenGrammar` of it for each
    request."""

    @property
    def text(self) -> str:
        """The grammar itself."""


LogitsProcessor = Callable[[list[int], "np.ndarray"], "np.ndarray"]


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen. Names and defaults are llama.cpp's.

    `max_tokens` -1 means until the model ends or the context is full. `temperature` 0 is greedy.
    `top_k` 0, `top_p` 1, `min_p` 0, `typical_p` 1 and `repeat_penalty` 1 switch their stages off, 0
    the other penalties. Penalties look at the last `repeat_last_n` tokens: 0 is none, -1 the whole
    context. `logit_bias` is added to the logits of the tokens that it names, -inf forbids them.
    `stop` are texts and `stop_token_ids` tokens that end generation; they are not part of it. None
    for these three is none. Nothing ends the text before it has `min_tokens`: end tokens and stop
    tokens are forbidden until then, and stop texts are looked for behind them.

    `logits_processors` are functions that get all token ids so far, the prompt's too, and logits
    (float32 [n_vocab], with biases and penalties), and return logits; they must not use the model.
    A `grammar` (`lariat.Grammar`) is what the text must follow, whatever the processors do. Tokens
    that it leaves no choice about are computed together.

    `logprobs` is how many of the likeliest tokens come with each token of the text beside its own
    log-probability, `prompt_logprobs` the same for the prompt's tokens; None: no log-probabilities.
    They are those of the model itself, before bias, penalties, temperature and all the rest. Beyond
    its first token such a prompt shares no prefix, whose logits are gone.

    `n` completions come of one prompt; `each` says with which seeds.

    With `context_shift` a full context loses its oldest 32 tokens behind the first `n_keep`, and
    the tokens behind them move up (StreamingLLM, arXiv 2309.17453). `n_keep` -1 keeps the prompt
    and what the context held before it.
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
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    logits_processors: tuple[LogitsProcessor, ...] = ()
    grammar: TextGrammar | TokenGrammar | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    n: int = 1

    def __post_init__(self) -> None:
        for name, (whole_min, whole_max) in _WHOLE.items():
            _set(self, name, check_whole(name, getattr(self, name), whole_min, whole_max))
        for name, (minimum, maximum) in _REAL.items():
            _set(self, name, check_real(name, getattr(self, name), minimum, maximum))
        for name in ("ignore_eos", "context_shift"):
            _set(self, name, check_switch(name, getattr(self, name)))
        if self.seed is not None:
            _set(self, "seed", check_whole("seed", self.seed, 0, _MAX_SEED))
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _set(self, name, check_whole(name, getattr(self, name), 0, _MAX_LOGPROBS))
        _set(self, "logit_bias", _checked_bias(self.logit_bias))
        _set(self, "stop", _checked_stop(self.stop))
        _set(self, "stop_token_ids", _checked_stop_ids(self.stop_token_ids))
        _set(self, "logits_processors", _checked_processors(self.logits_processors))
        if 0 <= self.max_tokens < self.min_tokens:
            raise ValueError(
                f"min_tokens is {self.min_tokens}, more than max_tokens, which is {self.max_tokens}"
            )
        starts = callable(getattr(self.grammar, "start", None))
        if not (
            self.grammar is None or starts or isinstance(getattr(self.grammar, "text", 0), str)
        ):
            raise ValueError(f"grammar is {self.grammar!r}, expected a grammar (lariat.Grammar)")
        if self.context_shift and self.prompt_logprobs is not None:
            raise ValueError("prompt_logprobs need the whole prompt, and context_shift evicts some")

    def each(self, seed: int | None = None) -> list[SamplingParams]:
        """Params for each of the `n` completions, whose own `n` is 1.

        Completion 0 has the seed of these params, or else `seed`; the seeds of the others are drawn
        from the sequence (seed, i) of `numpy.random.SeedSequence`. Without any seed all are the
        system's. The prompt is the same for all, so the first alone has `prompt_logprobs`.
        """
        import numpy as np

        seed = self.seed if self.seed is not None else seed
        params = [replace(self, n=1)]
        for i in range(1, self.n):
            own = None
            if seed is not None:
                own = int(np.random.SeedSequence((seed, i)).generate_state(1, np.uint64)[0])
            params.append(replace(self, n=1, seed=own, prompt_logprobs=None))
        return params


_WHOLE = {
    "max_tokens": (-1, 1 << 31),
    "top_k": (0, 1 << 31),
    "repeat_last_n": (-1, 1 << 31),
    "n_keep": (-1, 1 << 31),
    "min_tokens": (0, 1 << 31),
    "n": (1, 1024),
}
_REAL = {
    "temperature": (0.0, 1e6),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "typical_p": (0.0, 1.0),
    "repeat_penalty": (1e-6, 1e6),
    "frequency_penalty": (-1e6, 1e6),
    "presence_penalty": (-1e6, 1e6),
}


def _checked_bias(given: Any) -> Mapping[int, float]:
    """The biases by token, {} for None."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ValueError(f"logit_bias is {given!r}, expected a dict of token ids to numbers")
    bias = {}
    for token, value in given.items():
        token = check_whole("a token of logit_bias", token, 0, 1 << 31)
        name = f"the logit bias of token {token}"
        if isinstance(value, numbers.Real) and value == -math.inf:
            bias[token] = -math.inf
        else:
            bias[token] = check_real(name, value, -_MAX_BIAS, _MAX_BIAS)
    return bias


def _checked_stop(given: Any) -> tuple[str, ...]:
    """The stop texts, () for None."""
    if given is None:
        return ()
    try:
        texts = (given,) if isinstance(given, (str, bytes)) else tuple(given)
    except TypeError:
        texts = (given,)
    for text in texts:
        if not isinstance(text, str) or not text:
            raise ValueError(f"a stop text is {text!r}, which is empty or not a string")
    return texts


def _checked_stop_ids(given: Any) -> tuple[int, ...]:
    """The stop tokens, () for None."""
    ids = _checked_list("stop_token_ids", given, "token ids")
    return tuple(check_whole("a token of stop_token_ids", token, 0, 1 << 31) for token in ids)


def _checked_processors(given: Any) -> tuple[LogitsProcessor, ...]:
    """The logits processors, () for None."""
    processors = _checked_list("logits_processors", given, "functions")
    for processor in processors:
        if not callable(processor):
            raise ValueError(f"a logits processor is {processor!r}, expected a function")
    return processors


def _checked_list(name: str, given: Any, things: str) -> tuple[Any, ...]:
    """The values of a list, () for None."""
    if given is None:
        return ()
    try:
        if not isinstance(given, (str, bytes)):
            return tuple(given)
    except TypeError:
        pass
    raise ValueError(f"{name} is {given!r}, expected a list of {things}")
