"""Texts of requests that follow a grammar: where they end, who else runs, and what goes wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lariat import LLM, Chat, Grammar, LariatError, SamplingParams
from lariat.structured.matcher import Matcher

from tests.support.contexts import ids_of, n_held
from tests.support.model_files import chat_metadata, write_llama
from tests.support.real_models import GEMMA3, SMOLLM2, needs_gemma3, needs_smollm2

PROMPT = ids_of(40)
RECORD = Grammar.json_schema(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "state": {"enum": ["not yet known", "known"]},
            "count": {"type": "integer", "minimum": 0, "maximum": 99},
        },
        "required": ["name", "state", "count"],
        "additionalProperties": False,
    }
)
FIXED = Grammar.regex("the one text that it may be")
DIGITS = Grammar.regex("[0-9]+")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    metadata = chat_metadata(512)
    return write_llama(folder / "m.gguf", n_vocab=512, n_ctx=1024, metadata=metadata)


@pytest.fixture(scope="module")
def llm(path: Path) -> Iterator[LLM]:
    with LLM(path, n_threads=2) as llm:
        yield llm


def params(**more: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.9, "max_tokens": 200, "grammar": RECORD} | more)


def record(text: str) -> dict[str, Any]:
    value = json.loads(text)
    assert list(value) == ["name", "state", "count"]
    assert len(value["name"]) <= 12
    assert value["state"] in ("not yet known", "known")
    assert 0 <= value["count"] <= 99
    return value


def test_a_text_ends_where_its_grammar_does(llm):
    for seed in range(5):
        done = llm.generate(PROMPT, params(seed=seed))
        assert done.finish_reason == "stop"
        record(done.text)
        assert llm.detokenize(done.token_ids).strip() == done.text.strip()
    assert n_held(llm) == 0


def test_what_must_come_is_computed_as_one_chunk(llm, monkeypatch):
    n_passes = 0
    forward = llm.runner.forward

    def counting(parts: Any, *more: Any) -> Any:
        nonlocal n_passes
        n_passes += 1
        return forward(parts, *more)

    monkeypatch.setattr(llm.runner, "forward", counting)
    done = llm.generate(PROMPT, params(grammar=FIXED))
    assert done.text == "the one text that it may be"
    assert n_passes < len(done.token_ids) / 2
    # They are the tokens of the text.
    behind = llm.tokenize("a", add_bos=False)[-1:]
    ids = llm.tokenizer.encode_behind(behind, done.text, add_bos=False)[1]
    n_same = len(done.token_ids) - 1
    assert ids[: n_same - 1] == done.token_ids[: n_same - 1]


@needs_smollm2
def test_tokens_that_must_come_change_nothing_but_the_passes(monkeypatch):
    """Each comes anyway, where it has a pass of its own."""
    with LLM(SMOLLM2, n_ctx=512, n_threads=2) as llm:
        n_passes, forward = [0], llm.runner.forward

        def counting(parts: Any, *more: Any) -> Any:
            n_passes[-1] += 1
            return forward(parts, *more)

        monkeypatch.setattr(llm.runner, "forward", counting)
        chosen = llm.generate("A book in JSON: ", params(temperature=0))
        n_passes.append(0)
        slow = llm.generate("A book in JSON: ", params(temperature=0, logprobs=0))
        assert chosen.token_ids == slow.token_ids
        assert n_passes[0] < n_passes[1]


def test_a_seed_writes_the_same_alone_in_a_batch_and_preempted(path):
    prompts = [ids_of(n, seed=n) for n in (30, 50, 2, 33, 20)]
    given = params(seed=3, max_tokens=60)
    with LLM(path, n_threads=2) as llm:
        alone = [llm.generate(prompt, given) for prompt in prompts]
        together = llm.generate(prompts, given)
        assert [one.text for one in together] == [one.text for one in alone]
    with LLM(path, n_threads=2, n_ctx=160) as llm:
        preempted = []
        preempt = llm.runner.scheduler._preempt
        llm.runner.scheduler._preempt = lambda victim: (preempted.append(victim), preempt(victim))
        for one, expected in zip(llm.generate(prompts, given), alone, strict=True):
            assert one.text == expected.text
        assert preempted
        assert n_held(llm) == 0


def test_several_completions_of_one_prompt(llm):
    done = llm.generate(PROMPT, params(n=4, seed=1))
    assert len({record(one.text)["name"] for one in done}) > 1


def test_neighbours_without_a_grammar_write_what_they_always_do(llm):
    plain = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    expected = llm.generate(PROMPT, plain).text
    with llm.stream(PROMPT, plain) as free, llm.stream(PROMPT, params(seed=1)) as held:
        pieces = [next(free)]
        record("".join(held))
        assert "".join([*pieces, *free]) == expected


def test_the_length_cuts_a_text(llm):
    done = llm.generate(PROMPT, params(max_tokens=5))
    assert (done.finish_reason, len(done.token_ids)) == ("length", 5)
    done = llm.generate(PROMPT, params(grammar=FIXED, max_tokens=3))
    assert (done.finish_reason, len(done.token_ids)) == ("length", 3)
    assert "the one text that it may be".startswith(done.text)


def test_a_full_context_cuts_a_text(llm):
    done = llm.generate(ids_of(llm.n_ctx - 4), params())
    assert done.finish_reason == "context"


def test_a_stop_text_within_forced_tokens(llm):
    done = llm.generate(PROMPT, params(grammar=FIXED, stop=["text"]))
    assert (done.text, done.finish_reason) == ("the one ", "stop")


def test_the_end_comes_where_the_grammar_allows_it(llm):
    eog = min(llm.tokenizer.eog_ids)
    wants_end = params(grammar=DIGITS, temperature=0, logit_bias={eog: 100.0})
    assert re.fullmatch("[0-9]{1,3}", llm.generate(PROMPT, wants_end).text)
    longer = params(grammar=DIGITS, temperature=0, logit_bias={eog: 100.0}, min_tokens=9)
    done = llm.generate(PROMPT, longer)
    assert done.finish_reason == "stop"
    assert len(done.token_ids) == 9
    assert re.fullmatch("[0-9]+", done.text)
    endless = params(grammar=DIGITS, logit_bias={eog: 100.0}, ignore_eos=True, max_tokens=12)
    assert llm.generate(PROMPT, endless).finish_reason == "length"
    over = llm.generate(PROMPT, params(ignore_eos=True, min_tokens=190))
    assert over.finish_reason == "stop"  # nothing else may come
    record(over.text)


def test_penalties_and_biases_do_not_overrule_it(llm):
    shut = {i: -1e9 for i in range(3, 400)}
    record(llm.generate(PROMPT, params(repeat_penalty=3.0, repeat_last_n=-1)).text)
    record(llm.generate(PROMPT, params(logit_bias=shut)).text)


def test_a_token_that_is_forbidden_and_must_come_is_an_error(llm):
    every = {i: -np.inf for i in range(llm.n_vocab)}
    with pytest.raises(LariatError, match="forbidden"):
        llm.generate(PROMPT, params(grammar=DIGITS, logit_bias=every))
    assert n_held(llm) == 0


@pytest.mark.parametrize("method", ["mask", "accept", "forced"])
def test_nothing_is_written_after_an_error(llm, monkeypatch, method):
    """Fail closed: the request ends with the error, and others go on."""
    plain = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
    expected = llm.generate(PROMPT, plain).text
    calls = 0
    real = getattr(Matcher, method)

    def failing(self: Matcher, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 6:  # as the library does it: the matcher is broken from now on
            self._matcher.consume_token(llm.n_vocab)
        return real(self, *args)

    monkeypatch.setattr(Matcher, method, failing)
    with llm.stream(PROMPT, plain) as other, llm.stream(PROMPT, params()) as stream:
        first = next(other)
        with pytest.raises(LariatError, match="the grammar failed"):
            list(stream)
        text = stream.completion.text
        with pytest.raises(LariatError, match="the grammar failed"):
            next(stream)
        assert stream.completion.text == text
        assert stream.completion.finish_reason not in ("stop", "length")
        assert first + "".join(other) == expected
    assert n_held(llm) == 0


def test_a_grammar_whose_token_is_not_there_is_refused_before_anything_is_computed(llm):
    grammar = Grammar.lark('start: <|nothing|> "a"')
    with pytest.raises(ValueError, match="unknown special token"):
        llm.stream(PROMPT, params(grammar=grammar))
    assert llm.runner.scheduler.n_unfinished == 0
    bad, good = llm.generate([PROMPT, PROMPT], params(grammar=FIXED)), params()
    assert [one.text for one in bad] == ["the one text that it may be"] * 2
    record(llm.generate(PROMPT, good).text)


def test_params_take_no_other_grammar():
    for odd in ("start: x", 3, len, {"type": "object"}, Grammar):
        with pytest.raises(ValueError, match=r"expected a grammar \(lariat.Grammar\)"):
            SamplingParams(grammar=odd)  # type: ignore[arg-type]


def test_in_a_context_and_in_a_chat(llm):
    with llm.context() as context:
        context.append("some text before")
        first = llm.generate(" and", params(seed=1), context=context)
        record(first.text)
        again = llm.generate(" and", params(seed=2, grammar=FIXED), context=context)
        assert llm.detokenize(context.tokens).endswith(again.text)
    with Chat(llm) as chat:
        record("".join(chat.say("hello", params(seed=4))))
        assert "".join(chat.say("again", params(grammar=FIXED))) == "the one text that it may be"
        assert [m["role"] for m in chat.messages] == ["user", "assistant"] * 2
    assert n_held(llm) == 0


@needs_gemma3
def test_a_newline_of_gemma_that_is_two_tokens():
    """Its vocabulary has a newline, and a byte token with the same text that nobody writes."""
    with LLM(GEMMA3, n_ctx=256, n_threads=2) as llm:
        ordinary, byte = (i for i in range(512) if llm.tokenizer.decode_token(i) == b"\n")
        assert (llm.tokenizer.piece(ordinary), llm.tokenizer.piece(byte)) == ("\n", "<0x0A>")
        likely = {ordinary: 90.0, byte: 100.0}
        wanted = params(grammar=Grammar.regex("a?\nb"), temperature=0, logit_bias=likely)
        done = llm.generate("x", wanted)
        assert done.text == "\nb"
        assert done.token_ids[0] == ordinary
