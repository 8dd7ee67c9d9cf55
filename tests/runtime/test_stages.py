"""The stages of a request: processors, grammars, and ends that are held back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from lariat import LLM, LariatError, SamplingParams

from tests.support.contexts import ids_of, load, write_deep

PROMPT = ids_of(40)
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with load(write_deep(tmp_path_factory.mktemp("model"))) as llm:
        yield llm


def greedy(**values: object) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.0, "max_tokens": 8, "ignore_eos": True} | values)


def only(token: int, logits: np.ndarray) -> np.ndarray:
    logits[np.arange(logits.size) != token] = -np.inf
    return logits


class Written:
    """A grammar of one text: the tokens given, then the end."""

    def __init__(self, tokens: Sequence[int], n_forced: int = 0, fails_at: int = -1) -> None:
        self.tokens, self.n_forced, self.fails_at = list(tokens), n_forced, fails_at

    def start(self) -> WrittenMatcher:
        return WrittenMatcher(self)


class WrittenMatcher:
    def __init__(self, grammar: Written) -> None:
        self.grammar, self.at = grammar, 0

    def mask(self, logits: np.ndarray) -> None:
        if self.at == self.grammar.fails_at:
            raise RuntimeError("no more memory")
        only(self.grammar.tokens[self.at], logits)

    def accept(self, token_id: int) -> None:
        assert token_id == self.grammar.tokens[self.at]
        self.at += 1

    def forced(self) -> list[int]:
        return self.grammar.tokens[self.at : self.at + self.grammar.n_forced]

    @property
    def is_done(self) -> bool:
        return self.at == len(self.grammar.tokens)


# ---- processors ----


def test_processors_see_all_ids_and_change_logits_one_behind_the_other(llm):
    seen: list[list[int]] = []

    def forbid(ids: list[int], logits: np.ndarray) -> np.ndarray:
        seen.append(ids)
        assert logits.dtype == np.float32
        assert logits.shape == (llm.n_vocab,)
        return only(100 + len(seen), logits)

    def shift(ids: list[int], logits: np.ndarray) -> np.ndarray:
        return np.roll(logits, 1)

    done = llm.generate(PROMPT, greedy(max_tokens=3, logits_processors=[forbid, shift]))
    assert done.token_ids == [102, 103, 104]
    assert seen == [PROMPT, [*PROMPT, 102], [*PROMPT, 102, 103]]


def test_a_processor_that_changes_nothing_changes_nothing(llm):
    plain = llm.generate(PROMPT, GREEDY)
    kept: list[np.ndarray] = []

    def keep(ids: list[int], logits: np.ndarray) -> np.ndarray:
        kept.append(logits)
        return logits

    assert llm.generate(PROMPT, greedy(logits_processors=(keep,))).token_ids == plain.token_ids
    rows = llm.logits([*PROMPT, *plain.token_ids[:-1]])[len(PROMPT) - 1 :]
    assert len(kept) == len(rows)
    for ours, row in zip(kept, rows, strict=True):  # they may be kept: nothing overwrites them
        np.testing.assert_allclose(ours[3:], row[3:], atol=1e-4)


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (lambda ids, logits: 1 / 0, "<lambda> raised ZeroDivisionError"),
        (lambda ids, logits: None, r"<lambda> returned shape \(\)"),
        (lambda ids, logits: logits[1:], r"returned shape \(287,\), expected \(288,\)"),
        (lambda ids, logits: "text", "<lambda> raised ValueError"),
        (lambda ids, logits: logits * np.nan, "a logit nan"),
        (lambda ids, logits: logits - np.inf, "every token is forbidden"),
    ],
)
def test_an_error_of_a_processor_ends_its_request_alone(llm, processor, message):
    plain = llm.generate(PROMPT, GREEDY)
    with llm.stream(PROMPT, GREEDY) as other:
        first = next(other)
        with pytest.raises(LariatError, match=message):
            llm.generate(PROMPT, greedy(logits_processors=(processor,)))
        assert first + "".join(other) == plain.text
    pool = llm.runner.cache.pool
    assert pool.n_free == pool.n_blocks


# ---- grammars ----


def test_a_grammar_says_what_comes_and_when_it_ends(llm):
    done = llm.generate(PROMPT, greedy(grammar=Written([50, 60, 70])))
    assert (done.token_ids, done.finish_reason) == ([50, 60, 70], "stop")


def test_no_processor_allows_what_a_grammar_forbids(llm):
    params = greedy(grammar=Written([50, 60]), logits_processors=[lambda ids, x: only(80, x)])
    with pytest.raises(LariatError, match="every token is forbidden"):
        llm.generate(PROMPT, params)


def test_a_grammar_that_fails_ends_the_request(llm):
    with llm.stream(PROMPT, greedy(grammar=Written([50, 60, 70], fails_at=2))) as stream:
        with pytest.raises(LariatError, match="the grammar failed: no more memory"):
            "".join(stream)
        assert stream.completion.token_ids == [50, 60]


@pytest.mark.parametrize("max_tokens", [4, 9])
def test_forced_tokens_are_computed_at_once(llm, max_tokens, monkeypatch):
    tokens, n_of_passes = [50, 60, 70, 80, 90], []
    before = llm.generate(PROMPT, greedy(grammar=Written(tokens), max_tokens=max_tokens))
    forward = llm.runner.forward

    def counted(parts, *more):
        n_of_passes.append(sum(len(part.token_ids) for part in parts))
        return forward(parts, *more)

    monkeypatch.setattr(llm.runner, "forward", counted)
    done = llm.generate(PROMPT, greedy(grammar=Written(tokens, 3), max_tokens=max_tokens))
    assert done.token_ids == before.token_ids == tokens[:max_tokens]
    assert done.text == before.text
    assert done.finish_reason == before.finish_reason == ("stop" if max_tokens == 9 else "length")
    assert before.timings.n_decode == len(before.token_ids) - 1
    assert n_of_passes[1:] in ([3], [2])  # those behind the first, which the prompt's pass chose
    assert done.timings.n_prompt <= len(PROMPT)
    assert done.timings.n_decode == sum(n_of_passes[1:])


# ---- ends that are held back ----


def test_min_tokens_holds_back_the_ends_of_a_model(llm):
    eog = min(llm.tokenizer.eog_ids)
    wants_end = {"ignore_eos": False, "logit_bias": {eog: 1e6}}
    assert llm.generate(PROMPT, greedy(**wants_end)).token_ids == []
    done = llm.generate(PROMPT, greedy(min_tokens=5, **wants_end))
    assert (len(done.token_ids), done.finish_reason) == (5, "stop")
    assert eog not in done.token_ids


def test_min_tokens_holds_back_stop_tokens(llm):
    wants_end = {"stop_token_ids": [77], "logit_bias": {77: 1e6}}
    done = llm.generate(PROMPT, greedy(**wants_end))
    assert (done.token_ids, done.finish_reason) == ([], "stop")
    done = llm.generate(PROMPT, greedy(min_tokens=3, **wants_end))
    assert (len(done.token_ids), done.finish_reason) == (3, "stop")
    assert 77 not in done.token_ids


def test_min_tokens_looks_for_stop_texts_behind(llm):
    a = llm.tokenize("a", add_bos=False)[-1]
    params = {"logit_bias": {a: 1e6}, "stop": "a"}
    assert llm.generate(PROMPT, greedy(**params)).text == ""
    done = llm.generate(PROMPT, greedy(min_tokens=4, **params))
    assert (len(done.token_ids), done.finish_reason) == (4, "stop")
    assert done.text.count("a") == 3


def test_ends_come_where_a_grammar_allows_nothing_else(llm):
    eog = min(llm.tokenizer.eog_ids)
    for held in ({"min_tokens": 6}, {"ignore_eos": True}):
        done = llm.generate(PROMPT, greedy(grammar=Written([50, 60, eog]), **held))
        assert (done.token_ids, done.finish_reason) == ([50, 60], "stop")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens is 5, more than max_tokens, which is 4"),
        ({"min_tokens": -1}, "min_tokens is -1, expected 0 to"),
        ({"stop_token_ids": 5}, "stop_token_ids is 5, expected a list of token ids"),
        ({"stop_token_ids": ["a"]}, "a token of stop_token_ids is 'a', expected a whole number"),
        ({"logits_processors": len}, "expected a list of functions"),
        ({"logits_processors": [3]}, "a logits processor is 3, expected a function"),
        ({"grammar": "root ::= x"}, "expected a grammar"),
    ],
)
def test_bad_values(values, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**values)


def test_a_stop_token_outside_of_the_vocabulary(llm):
    with pytest.raises(ValueError, match="stop token 288 is not in the vocabulary of 288 tokens"):
        llm.generate(PROMPT, SamplingParams(stop_token_ids=[288]))
