"""Log-probabilities of a text and of its prompt, and what a stream hands out with each step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lariat import LLM, Completion, LariatError, SamplingParams
from lariat.runtime import runner
from lariat.runtime.logprobs import FLOOR, Prediction, PromptLogprobs, rank

from tests.reference import Reference
from tests.support.contexts import ids_of, load, n_held, write_deep

PROMPT = ids_of(70)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_deep(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def llm(path: Path) -> Iterator[LLM]:
    with load(path) as llm:
        yield llm
        assert not n_held(llm)


def params(**values: object) -> SamplingParams:
    return SamplingParams(
        **{"max_tokens": 6, "ignore_eos": True, "seed": 3, "logprobs": 4, "prompt_logprobs": 4}
        | values
    )


def exact(logits: np.ndarray) -> np.ndarray:
    """log_softmax of [n, n_vocab] in float64."""
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def check(llm: LLM, done: Completion, n_top: int = 4, first: int = 1, near: float = 1e-5) -> None:
    """The log-probabilities of a completion against those of `LLM.logits`."""
    ids = [*done.prompt_ids, *done.token_ids]
    rows = llm.logits(ids)
    expected = exact(rows)
    given = [*(done.prompt_logprobs or []), *(done.logprobs or [])]
    assert given[:first] == [None] * first
    assert len(given) == len(ids)
    for i in range(first, len(ids)):
        one, row = given[i], expected[i - 1]
        assert one is not None
        assert one.token_id == ids[i]
        assert abs(one.logprob - row[ids[i]]) < near
        assert row[[t for t, _ in one.top]] == pytest.approx([p for _, p in one.top], abs=near)
        assert len({t for t, _ in one.top}) == n_top
        best = np.sort(row)[::-1]
        assert best[:n_top] == pytest.approx([p for _, p in one.top], abs=near)
        assert abs(best[one.rank - 1] - row[ids[i]]) < near


# ---- log-probabilities ----


@pytest.mark.parametrize("n_top", [0, 1, 7])
def test_they_are_log_softmax_of_the_logits_of_the_model(llm, n_top):
    done = llm.generate(PROMPT, params(logprobs=n_top, prompt_logprobs=n_top))
    assert len(done.logprobs) == len(done.token_ids) == 6
    assert len(done.prompt_logprobs) == len(PROMPT)
    check(llm, done, n_top)


def test_they_are_those_of_the_reference(path, llm):
    done = llm.generate(PROMPT, params(max_tokens=1))
    rows = Reference(path, activations="q8").logits([*PROMPT, *done.token_ids])
    expected = exact(rows)[np.arange(len(PROMPT)), [*PROMPT[1:], *done.token_ids]]
    given = [one.logprob for one in [*done.prompt_logprobs[1:], *done.logprobs]]
    np.testing.assert_allclose(given, expected, atol=2e-3)


def test_they_know_nothing_of_sampling(llm):
    def double(ids: list[int], logits: np.ndarray) -> np.ndarray:
        return 2 * logits

    changed = {
        "temperature": 3.0, "logit_bias": {9: 5.0}, "repeat_penalty": 1.5, "top_k": 3,
        "logits_processors": [double],
    }  # fmt: skip
    done = llm.generate(PROMPT, params(**changed, max_tokens=20))
    check(llm, done)
    assert any(one.rank > 1 for one in done.logprobs)


def test_they_change_nothing(llm):
    plain = llm.generate(PROMPT, params(logprobs=None, prompt_logprobs=None, max_tokens=40))
    assert (plain.logprobs, plain.prompt_logprobs) == (None, None)
    done = llm.generate(PROMPT, params(max_tokens=40))
    assert (done.token_ids, done.text) == (plain.token_ids, plain.text)


@pytest.mark.parametrize("options", [{"n_ubatch": 16}, {"n_batch": 24}, {"n_ubatch": 1}])
def test_a_prompt_in_pieces(path, options):
    with load(path, **options) as llm:
        check(llm, llm.generate(PROMPT, params()))


def test_only_a_few_rows_are_in_memory_at_once(path, monkeypatch):
    with load(path) as llm:
        whole = llm.generate(PROMPT, params())
    monkeypatch.setattr(runner, "_LOGITS", 4 * 288 * 7)
    with load(path) as llm:
        rows: list[int] = []
        forward = llm.runner.forward
        monkeypatch.setattr(
            llm.runner, "forward", lambda group: rows.append(len(r := forward(group))) or r
        )
        with llm.stream(ids_of(20, 1), params(prompt_logprobs=None)) as other:
            done = llm.generate(PROMPT, params())
            assert len("".join(other)) == len(other.completion.text)
        assert max(rows) <= 8  # seven, and the last of another request
        check(llm, done)
    assert [one.logprob for one in done.prompt_logprobs[1:]] == pytest.approx(
        [one.logprob for one in whole.prompt_logprobs[1:]], abs=1e-5
    )


@pytest.mark.parametrize("cache", ["roped", "raw"])
def test_prefixes_are_not_taken_from_others_but_given(path, cache):
    with load(path, cache) as llm:
        first = llm.generate(PROMPT, params())
        again = llm.generate(PROMPT, params())
        assert again.timings.n_reused == 0
        check(llm, again)
        assert list(again.prompt_logprobs) == list(first.prompt_logprobs)
        assert llm.generate(PROMPT, params(prompt_logprobs=None)).timings.n_reused == 64


def test_preempted_requests_keep_theirs(path):
    """A prompt is scored once, also where its blocks were given to an older request."""
    with load(path, n_ctx=160) as llm:
        wanted = [params(seed=i, max_tokens=60) for i in range(3)]
        prompts = [ids_of(60, i) for i in range(3)]
        streams = [llm.stream(p, w) for p, w in zip(prompts, wanted, strict=True)]
        for stream in streams:
            "".join(stream)
            check(llm, stream.completion)
        assert any(s.completion.timings.n_prompt > 60 for s in streams)


def test_behind_a_context(llm):
    with llm.context() as context:
        context.append(PROMPT[:40])
        done = llm.generate(PROMPT[40:], params(), context=context)
    given = done.prompt_logprobs
    whole = exact(llm.logits([*PROMPT, *done.token_ids]))
    assert given[0] is None
    expected = whole[np.arange(40, 69), PROMPT[41:]]
    assert [one.logprob for one in given[1:]] == pytest.approx(expected, abs=1e-4)


def test_without_a_text(llm):
    done = llm.generate(PROMPT, params(max_tokens=0))
    assert (done.text, done.token_ids, done.finish_reason, done.logprobs) == ("", [], "length", [])
    check(llm, done)
    done = llm.generate([5], params(max_tokens=0))
    assert list(done.prompt_logprobs) == [None]
    assert llm.generate([5], params(max_tokens=1)).prompt_logprobs[0] is None


def test_endless_text_forgets_the_oldest(path):
    with load(path, n_ctx=64) as llm:
        endless = params(max_tokens=-1, context_shift=True, prompt_logprobs=None)
        with llm.stream(PROMPT[:20], endless) as stream:
            hundred = itertools.islice(stream.deltas(), 100)
            seen = [one for delta in hundred for one in delta.logprobs]
            done = stream.completion
            assert len(done.logprobs) == len(done.token_ids) == 64
            assert [one.token_id for one in done.logprobs] == done.token_ids
            assert done.logprobs[-10:] == seen[-10:]


def test_values_too_small_for_json():
    logits = np.array([[0.0, -1e30, 3e4, -3e4]], np.float32)
    one = Prediction(logits[0], 4).of(1)
    assert (one.logprob, one.rank) == (FLOOR, 4)
    assert [p for _, p in one.top] == [0.0, FLOOR, FLOOR, FLOOR]
    prompt = PromptLogprobs([0, 3], 4)
    prompt.take(logits)
    assert prompt[1].logprob == FLOOR
    assert all(math.isfinite(p) for _, p in prompt[1].top)


def test_ranks_are_the_order_of_greedy_decoding():
    logits = np.array([1.0, 2.0, 2.0, 0.5], np.float32)
    assert [rank(logits, i) for i in range(4)] == [3, 1, 2, 4]


def test_a_sequence_of_a_prompt():
    prompt = PromptLogprobs([5, 1, 0, 2], 1)
    prompt.take(np.eye(4, dtype=np.float32)[:3])
    assert prompt.n_missing == 0
    assert [one and one.token_id for one in prompt] == [None, 1, 0, 2]
    assert prompt[-1] == prompt[3]
    assert prompt[:2] == [None, prompt[1]]
    assert [one.top[0][0] for one in prompt[1:]] == [0, 1, 2]
    with pytest.raises(IndexError):
        prompt[4]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_of_a_damaged_model_end_the_request_alone(llm, monkeypatch, bad):
    plain = llm.generate(PROMPT, params(prompt_logprobs=None, logprobs=None))
    forward = llm.runner.forward

    def damaged(group: Any) -> np.ndarray:
        logits = forward(group)
        if len(logits) > 3:
            logits[2, 7] = bad
        return logits

    with llm.stream(PROMPT, params(prompt_logprobs=None, logprobs=None)) as stream:
        text = next(stream)
        monkeypatch.setattr(llm.runner, "forward", damaged)
        with pytest.raises(LariatError, match="the model or its file is damaged"):
            llm.generate(PROMPT, params())
        assert text + "".join(stream) == plain.text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"logprobs": 289}, "logprobs is 289, and the vocabulary has 288 tokens"),
        ({"prompt_logprobs": 289}, "prompt_logprobs is 289, and the vocabulary has 288 tokens"),
        ({"logprobs": -1}, "logprobs is -1, expected 0"),
        ({"prompt_logprobs": 1001}, "prompt_logprobs is 1001, expected 0 to 1000"),
        ({"prompt_logprobs": True}, "prompt_logprobs is True, expected a whole number"),
        ({"context_shift": True}, "prompt_logprobs need the whole prompt"),
        ({"n": 0}, "n is 0, expected 1 to"),
        ({"n": 2}, "a stream has one completion, not 2"),
    ],
)
def test_bad_values(llm, values, message):
    with pytest.raises(ValueError, match=message):
        llm.stream(PROMPT, params(**values))


def test_a_question_read_with_several_rope_settings_has_no_prompt_logprobs(llm):
    with pytest.raises(ValueError, match="prompt_logprobs and rope_read do not go together"):
        llm.stream(PROMPT, params(), rope_read="plain")


# ---- deltas ----


def test_deltas_are_the_stream_token_by_token(llm):
    plain = llm.generate(PROMPT, params(max_tokens=50))
    with llm.stream(PROMPT, params(max_tokens=50)) as stream:
        deltas = list(stream.deltas())
    assert [delta.token_ids for delta in deltas] == [(token,) for token in plain.token_ids]
    assert "".join(delta.text for delta in deltas) == plain.text
    assert [one for delta in deltas for one in delta.logprobs] == plain.logprobs
    with llm.stream(PROMPT, params(max_tokens=50)) as stream:
        pieces = list(stream)
    assert pieces == [delta.text for delta in deltas if delta.text]


def test_deltas_without_logprobs_have_none(llm):
    with llm.stream(PROMPT, params(logprobs=None)) as stream:
        assert all(delta.logprobs is None for delta in stream.deltas())


def test_text_that_is_held_back_comes_with_the_delta_that_completes_it(llm, monkeypatch):
    ids = [3 + byte for byte in "a😀bEN.".encode()]
    force = {"logits_processors": [lambda so_far, logits: _only(ids[len(so_far) - 70], logits)]}
    with llm.stream(PROMPT, params(**force, max_tokens=len(ids), stop=["END"])) as stream:
        deltas = list(stream.deltas())
    assert [delta.text for delta in deltas] == ["a", "", "", "", "😀", "b", "", "", "EN."]
    assert [delta.token_ids for delta in deltas] == [(i,) for i in ids]
    with llm.stream(PROMPT, params(**force, max_tokens=8, stop=["END"])) as stream:
        assert [delta.text for delta in stream.deltas()][-1] == "EN"


def test_text_held_back_at_an_end_token_comes_alone(llm):
    ids = [*(3 + byte for byte in b"xEN"), min(llm.tokenizer.eog_ids)]
    force = {"logits_processors": [lambda so_far, logits: _only(ids[len(so_far) - 70], logits)]}
    wanted = params(**force, ignore_eos=False, stop=["END"], logprobs=None)
    with llm.stream(PROMPT, wanted) as stream:
        deltas = list(stream.deltas())
    assert [delta.text for delta in deltas] == ["x", "", "", "EN"]
    assert deltas[-1].token_ids == ()
    assert stream.completion.stop_reason == ids[-1]


def test_a_stop_text_is_named_and_not_shown(llm):
    ids = [3 + byte for byte in b"x END y"]
    force = {"logits_processors": [lambda so_far, logits: _only(ids[len(so_far) - 70], logits)]}
    with llm.stream(PROMPT, params(**force, stop=["y", " END"])) as stream:
        deltas = list(stream.deltas())
    assert [delta.text for delta in deltas] == ["x", "", "", "", ""]
    assert (stream.completion.finish_reason, stream.completion.stop_reason) == ("stop", " END")


def _only(token: int, logits: np.ndarray) -> np.ndarray:
    logits[np.arange(logits.size) != token] = -np.inf
    return logits
