"""RoPE that is chosen when keys are read: which settings to try, and which of them fits.

The raw cache holds keys before RoPE, so one cache can be read with any angles. The last tokens of a
prompt, its question, are computed once with each of a few settings. The setting under which they
are likeliest reads the answer too. The tokens before the question are computed once, as always.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from lariat.cache.blocks import BlockTable
from lariat.checks import check_type
from lariat.config import ModelConfig, RopeConfig
from lariat.runtime.sampler import log_softmax

MAX_QUESTION = 64
"""Tokens of a question, at most."""

_MIN_QUESTION = 12  # so many tokens say enough about a setting
Asked = RopeConfig | Sequence[RopeConfig] | str | None
"""`rope_read` of `LLM.stream`."""

_SHARE = 4  # a context shorter than the trained length over this has nothing to gain


@dataclass
class RopeRead:
    """How a request is read from some token on.

    candidates  complete settings; if there are several, one is chosen when the tokens before are
                computed
    n_before    tokens before the question, which are computed with the engine's own settings
    rope        the setting that is taken; None until it is chosen
    """

    candidates: tuple[RopeConfig, ...]
    n_before: int
    rope: RopeConfig | None = field(init=False)

    def __post_init__(self) -> None:
        self.rope = self.candidates[0] if len(self.candidates) == 1 else None

    def evicted(self, start: int, stop: int) -> None:
        """Forget tokens that are no longer in the table."""
        self.n_before -= max(0, min(stop, self.n_before) - min(start, self.n_before))


def candidates(config: ModelConfig, n_tokens: int) -> tuple[RopeConfig, ...]:
    """Settings that "auto" tries for a prompt of `n_tokens`; plain RoPE, as the file says, first.

    With T the trained length: plain alone for up to T / 4 tokens; then also Self-Extend by 4 with
    T / 8 and T / 4 near positions, and by 8 with T / 8. `bench/experiments/rope_read.py` compares
    them with others; YaRN is sometimes the likeliest where its answer is wrong.
    """
    trained = config.rope.yarn_orig_ctx or config.n_ctx_train
    plain = RopeConfig()
    if n_tokens * _SHARE <= trained:
        return (plain,)
    window = max(1, trained // 64) * 8
    near = ((4, window), (4, 2 * window), (8, window))
    return (plain, *(RopeConfig(grp_attn_n=n, grp_attn_w=w) for n, w in near))


def checked(given: object, config: ModelConfig, n_tokens: int) -> tuple[RopeConfig, ...]:
    """The settings that a user asks for, see `LLM.stream`. ValueError for anything else."""
    if given == "auto":
        return candidates(config, n_tokens)
    if given == "plain":
        return (RopeConfig(),)
    if isinstance(given, str):
        raise ValueError(f"rope_read is {given!r}, expected 'auto', 'plain' or a RopeConfig")
    several = tuple(given) if isinstance(given, (list, tuple)) else (given,)
    if not several:
        raise ValueError("rope_read is an empty list, expected settings to choose from")
    for one in several:
        check_type("rope_read", one, RopeConfig)
    return several


def question_length(pieces: Sequence[str]) -> int:
    """How many of a prompt's last tokens are its question, given the texts of the last ones.

    It begins behind the last blank line, unless that leaves too few tokens; then behind the one
    before. Without a blank line among the last tokens, all of them count.
    """
    last = pieces[-MAX_QUESTION:]
    for n in range(_MIN_QUESTION, len(last)):
        before = "".join(last[-n - 2 : -n])
        if before.endswith("\n\n"):
            return n
    return len(last)


class Compute(Protocol):
    """See `Runner.compute`."""

    def __call__(
        self, table: BlockTable, ids: list[int], logits: str, rope: RopeConfig | None
    ) -> np.ndarray:
        """Compute `ids` behind the tokens of `table`."""


class Choice(NamedTuple):
    """The setting under which a question is likeliest."""

    rope: RopeConfig
    logits: np.ndarray  # float32 [n_vocab], after the question
    n_tried: int  # tokens that were computed


def read_question(
    table: BlockTable, ids: list[int], candidates: Sequence[RopeConfig], compute: Compute
) -> Choice:
    """Compute a question behind the tokens of `table` with each setting; the table keeps the one
    under which it is likeliest, the first of equals.

    Each reading goes into a fork, so the question is computed once a setting. It is computed once
    more in the end if the pool has no blocks for two forks. An exception leaves the table as it
    was.
    """
    best, least, choice, n_tried = BlockTable(table.pool), math.inf, None, 0
    try:
        for rope in candidates:
            fork = table.fork()
            try:
                if fork.n_new_blocks(len(ids)) > table.pool.n_free:
                    best.clear()
                logits = compute(fork, ids, "all", rope)
                n_tried += len(ids)
                found = surprise(logits, ids)
                if choice is None or found < least:
                    best.assign(fork.segments)
                    least, choice = found, Choice(rope, logits[-1], 0)
            finally:
                fork.clear()
        assert choice is not None
        if best.n_tokens:
            table.assign(best.segments)
        else:
            compute(table, ids, "none", choice.rope)
            n_tried += len(ids)
    finally:
        best.clear()
    return choice._replace(n_tried=n_tried)


def surprise(logits: np.ndarray, ids: Sequence[int]) -> float:
    """Mean of -log p of all `ids` but the first, nats a token; logits float32 [n, n_vocab]."""
    if len(ids) < 2:
        return 0.0
    return -float(log_softmax(logits[:-1])[np.arange(len(ids) - 1), ids[1:]].mean())
