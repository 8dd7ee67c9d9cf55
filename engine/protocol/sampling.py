"""The fields of requests that say how text is chosen and where it ends.

Names are OpenAI's; those that it lacks are llama.cpp's or vLLM's.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
from lariat.config import SamplingParams
from lariat.protocol import errors

MAX_CHOICES = 128
MAX_STOPS = 64  # texts, and tokens


class SamplingFields(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How text is chosen. What is not given is as the model's file asks for it."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repeat_penalty: float | None = None
    repetition_penalty: float | None = None
    repeat_last_n: int | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | None = None
    regex: str | None = None
    choices: list[str] | None = None
    n: int | None = None
    best_of: int | None = None
    # Taken without effect: they do not change an answer.
    user: str | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    cache_prompt: bool | None = None


_SAME = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "typical_p",
    "frequency_penalty",
    "presence_penalty",
    "repeat_penalty",
    "repeat_last_n",
    "ignore_eos",
    "min_tokens",
)


def n_choices(fields: SamplingFields) -> int:
    """How many answers are asked for."""
    n = 1 if fields.n is None else fields.n
    if not 1 <= n <= MAX_CHOICES:
        raise errors.bad(f"n is {n}, expected 1 to {MAX_CHOICES}", "n")
    if fields.best_of is not None and fields.best_of != n:
        raise errors.bad("best_of is not supported: ask for n answers and choose", "best_of")
    return n


def params(
    fields: SamplingFields, defaults: SamplingParams, n_vocab: int, max_tokens: int, **more: Any
) -> SamplingParams:
    """The parameters of all `n_choices`; `more` are fields of `SamplingParams`.

    defaults    where nothing is given
    max_tokens  of the answer; -1: until the model ends or the context is full

    ApiError that names the field at fault.
    """
    given: dict[str, Any] = {"max_tokens": max_tokens, "n": n_choices(fields), **more}
    for name in _SAME:
        if getattr(fields, name) is not None:
            given[name] = getattr(fields, name)
    if fields.repetition_penalty is not None:
        if fields.repeat_penalty not in (None, fields.repetition_penalty):
            raise errors.bad(
                "repeat_penalty and repetition_penalty mean the same: give one", "repeat_penalty"
            )
        given["repeat_penalty"] = fields.repetition_penalty
    if fields.seed is not None:
        given["seed"] = None if fields.seed == -1 else fields.seed % (1 << 64)
    if fields.logit_bias is not None:
        given["logit_bias"] = _bias(fields.logit_bias, n_vocab)
    if fields.stop is not None:
        texts = [fields.stop] if isinstance(fields.stop, str) else fields.stop
        _check_number("stop", texts)
        given["stop"] = tuple(texts)
    if fields.stop_token_ids is not None:
        _check_number("stop_token_ids", fields.stop_token_ids)
        for token in fields.stop_token_ids:
            _check_token("stop_token_ids", token, n_vocab)
        given["stop_token_ids"] = tuple(fields.stop_token_ids)
    for name, value in given.items():
        # One at a time, so that the message and `param` name the field at fault.
        if name != "min_tokens":
            _replaced(SamplingParams(), {name: value}, name)
    return _replaced(defaults, given)


def _replaced(
    defaults: SamplingParams, given: dict[str, Any], name: str | None = None
) -> SamplingParams:
    try:
        return dataclasses.replace(defaults, **given)
    except ValueError as error:
        raise errors.bad(str(error), name) from None


def _bias(given: dict[str, float], n_vocab: int) -> dict[int, float]:
    bias = {}
    for text, value in given.items():
        if not (text.isascii() and text.isdigit() and len(text) <= 10):
            raise errors.bad(f"logit_bias has the key {text!r}, expected a token id", "logit_bias")
        token = int(text)
        _check_token("logit_bias", token, n_vocab)
        bias[token] = value
    return bias


def _check_token(name: str, token: int, n_vocab: int) -> None:
    if not 0 <= token < n_vocab:
        raise errors.bad(
            f"{name} has the token {token}, which is not in the vocabulary of {n_vocab} tokens",
            name,
        )


def _check_number(name: str, given: list[Any]) -> None:
    if len(given) > MAX_STOPS:
        raise errors.bad(f"{name} has {len(given)} entries, at most {MAX_STOPS} are taken", name)
