"""Chats of a random model: token ids put together by hand, and a count of the computed ones."""

from __future__ import annotations

import pytest
from lariat import LLM, Chat, SamplingParams

N_VOCAB = 320
START, END = N_VOCAB - 2, N_VOCAB - 1
# Answers of whole characters, which can be tokenized again, without the marks of turns.
NO_BYTES = {i: -1e9 for i in (1, START, *range(3, 259))}
GREEDY = SamplingParams(temperature=0, max_tokens=8, logit_bias=NO_BYTES)
ENDLESS = SamplingParams(temperature=0, ignore_eos=True, logit_bias=NO_BYTES)


def turn(llm: LLM, role: str, text: str) -> list[int]:
    """A message in the template of the test model, put together token by token."""
    newline = llm.tokenize("\n", add_bos=False)
    ids = llm.tokenize(f"{role}\n{text}", add_bos=False)
    return [START, *ids, END, *newline]


def asked(llm: LLM, *messages: tuple[str, str]) -> list[int]:
    """Ids of a conversation that waits for an answer of the assistant."""
    ids = [1]
    for role, text in messages:
        ids += turn(llm, role, text)
    return [*ids, START, *llm.tokenize("assistant\n", add_bos=False)]


def chat_with(llm: LLM, system: str = "", params: SamplingParams = GREEDY) -> Chat:
    """A chat with a named format, which writes the same as the file's template, but faster."""
    return Chat(llm, template="chatml", system=system, params=params)


class Counter:
    """Counts the tokens that an LLM computes."""

    def __init__(self, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
        self.n = 0
        forward = llm.runner.forward

        def counting(chunks: list) -> object:
            self.n += sum(len(chunk.token_ids) for chunk in chunks)
            return forward(chunks)

        monkeypatch.setattr(llm.runner, "forward", counting)
