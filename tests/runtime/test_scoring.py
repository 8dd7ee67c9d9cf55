"""`LLM.score`: how pairs of texts become tokens, and that the sums are those of the logits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from lariat import LLM, LariatError, SamplingParams
from lariat.runtime import scoring

from tests.support.contexts import CACHES, ids_of, load, n_held, write_deep
from tests.support.real_models import SMOLLM2, needs_smollm2
from tests.support.together import run_together

CONTEXT = ids_of(90)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_deep(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def llm(path: Path) -> Iterator[LLM]:
    with load(path) as llm:
        yield llm
        assert not n_held(llm)


def expected(llm: LLM, ids: list[int], first: int) -> np.ndarray:
    """Log-probabilities of the tokens from `first` on, in float64, of the logits of the model."""
    x = llm.logits(ids).astype(np.float64)
    x -= np.log(np.exp(x).sum(axis=1, keepdims=True))
    return x[np.arange(first - 1, len(ids) - 1), ids[first:]]


# ---- tokens ----


def test_the_tokens_of_a_prompt_are_cut_off_those_of_the_whole(llm):
    t = llm.tokenizer
    before, behind = scoring.encode_pair(t, "the hen", " sat")
    assert before == llm.tokenize("the hen")
    assert [*before, *behind] == llm.tokenize("the hen sat")


@pytest.mark.parametrize("blanks", [" ", "  ", "\n", " \n\t"])
def test_blanks_at_the_end_of_a_prompt_go_to_the_continuation(llm, blanks):
    t = llm.tokenizer
    moved = scoring.encode_pair(t, f"the hen{blanks}", "sat")
    assert moved == scoring.encode_pair(t, "the hen", f"{blanks}sat")
    assert moved[0] == llm.tokenize("the hen")


@pytest.mark.parametrize("prompt", ["", " ", "\n\n"])
def test_an_empty_prompt_is_the_begin_token(llm, prompt):
    before, behind = scoring.encode_pair(llm.tokenizer, prompt, "the hen")
    assert before == [llm.tokenizer.bos_id]
    assert behind == llm.tokenize(f"{prompt}the hen", add_bos=False)


# ---- scores ----


@pytest.mark.parametrize("cache", CACHES)
def test_a_score_is_the_sum_of_log_probabilities(path, cache):
    with load(path, cache) as llm:
        for n in (1, 2, 40):
            ids = [*CONTEXT, *ids_of(n, 1)]
            score = llm.score(CONTEXT, ids[90:])
            logprobs = expected(llm, ids, 90)
            assert score.token_ids == ids[90:]
            assert score.n_tokens == n
            assert score.token_logprobs == pytest.approx(logprobs, abs=1e-5)
            assert score.logprob == pytest.approx(logprobs.sum(), abs=1e-5 * n)
        assert not n_held(llm)


def test_texts_are_scored_as_their_tokens(llm):
    before, behind = scoring.encode_pair(llm.tokenizer, "the hen ", "sat")
    assert llm.score("the hen ", "sat") == llm.score(before, behind)
    assert llm.score("", "sat").token_ids == llm.tokenize("sat", add_bos=False)


def test_an_evaluation_by_prompt_logprobs_gets_the_same_score(llm):
    """As lm-evaluation-harness asks a server: the whole is the prompt, one token is written, and
    the log-probabilities of the continuation are cut out."""
    assert_evaluated(llm, CONTEXT, ids_of(20, 1))


def assert_evaluated(llm: LLM, before: list[int], behind: list[int]) -> None:
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=1, prompt_logprobs=1)
    done = llm.generate([*before, *behind], params)
    given = [*done.prompt_logprobs, *done.logprobs][len(before) : -1]
    score = llm.score(before, behind)
    assert score.logprob == pytest.approx(sum(one.logprob for one in given), abs=1e-4)
    assert score.is_greedy == all(one.top[0][0] == one.token_id for one in given)


def test_greedy_text_is_known(llm):
    greedy = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    written = llm.generate(CONTEXT, greedy).token_ids
    assert llm.score(CONTEXT, written).is_greedy
    for i in range(6):
        other = [*written[:i], (written[i] + 1) % llm.n_vocab, *written[i + 1 :]]
        assert not llm.score(CONTEXT, other).is_greedy


def test_pairs_share_their_context(llm):
    """The context of a question with several answers is computed once."""
    prompt = ids_of(96, 7)
    pairs = [(prompt, ids_of(n, n)) for n in (3, 9, 1, 40)]
    computed = 0
    forward = llm.runner.forward

    def counting(group):
        nonlocal computed
        computed += sum(len(part.token_ids) for part in group)
        return forward(group)

    llm.runner.forward = counting
    try:
        together = llm.score(pairs)
    finally:
        del llm.runner.forward
    # A context ends in the middle of a block, or at the end of one that gives the first logits.
    assert computed <= 96 + 3 * 32 + 53
    for pair, score in zip(pairs, together, strict=True):
        alone = llm.score(*pair)
        assert score.token_ids == alone.token_ids == pair[1]
        assert score.token_logprobs == pytest.approx(alone.token_logprobs, abs=1e-5)


def test_more_pairs_than_are_computed_at_a_time(path):
    pairs = [(ids_of(5, i), ids_of(3, i + 500)) for i in range(150)]
    with load(path, n_ctx=128) as llm:
        scores = llm.score(iter(pairs))
        assert [score.token_ids for score in scores] == [b for _, b in pairs]
        for i in (0, 63, 64, 149):
            assert scores[i].token_logprobs == pytest.approx(
                expected(llm, [*pairs[i][0], *pairs[i][1]], 5), abs=1e-5
            )
        assert llm.score([]) == []
        assert not n_held(llm)


def test_a_score_beside_other_requests(llm):
    params = SamplingParams(seed=1, max_tokens=30, ignore_eos=True)
    plain = llm.generate(CONTEXT, params)
    alone = llm.score(CONTEXT, ids_of(20, 1))
    with llm.stream(CONTEXT, params) as stream:
        text = next(stream)
        assert llm.score(CONTEXT, ids_of(20, 1)).logprob == pytest.approx(alone.logprob, abs=1e-4)
        assert text + "".join(stream) == plain.text


def test_scores_of_several_threads(llm):
    pairs = [(ids_of(50, i), ids_of(6, i + 50)) for i in range(4)]
    alone = [llm.score(*pair) for pair in pairs]

    def work(i: int) -> None:
        for _ in range(3):
            score = llm.score(*pairs[i])
            assert score.token_logprobs == pytest.approx(alone[i].token_logprobs, abs=1e-5)

    run_together(work)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("the hen", "")], "the continuation has no tokens of its own"),
        ([([5], [])], "the continuation has no tokens of its own"),
        ([("the hen", [5])], "two texts, or token ids of both"),
        ([("the hen",)], "is no pair of a prompt and its continuation"),
        ([5], "is no pair of a prompt and its continuation"),
        ([([5], [288])], "token id 288 is out of range"),
        ([([5], [6.5])], "6.5 is not a token id"),
        ([(5, 6)], "a prompt is text or a list of token ids"),
        ([(ids_of(510), ids_of(3))], "the prompt has 513 tokens, more than the context of 512"),
    ],
)
def test_bad_pairs_are_refused_before_anything_is_computed(llm, monkeypatch, pairs, message):
    monkeypatch.setattr(llm.runner.model, "forward", None)
    with pytest.raises(ValueError, match=message):
        llm.score([([5], [6]), *pairs])


def test_a_damaged_model_has_no_score(llm, monkeypatch):
    def damaged(batch, n_threads):
        return np.full((len(batch.logit_rows), llm.n_vocab), np.nan, np.float32)

    monkeypatch.setattr(llm.runner.model, "forward", damaged)
    with pytest.raises(LariatError, match="the model or its file is damaged"):
        llm.score([([5], [6, 7]), ([6], [7, 8])])
    assert not n_held(llm)


# ---- whole texts ----


def test_windows_score_each_token_once():
    ids = list(range(10))
    assert list(scoring.rolling(ids, [99], 4)) == [
        ([99, 0, 1, 2, 3], 1),
        ([3, 4, 5, 6, 7], 1),
        ([5, 6, 7, 8, 9], 3),
    ]
    assert list(scoring.rolling(ids[:3], [99], 4)) == [([99, 0, 1, 2], 1)]
    assert list(scoring.rolling(ids[:4], [99], 4)) == [([99, 0, 1, 2, 3], 1)]
    assert list(scoring.rolling([], [99], 4)) == []


def test_a_text_longer_than_the_context(path):
    ids = ids_of(100, 3)
    with load(path, n_ctx=64) as llm:
        score = llm.score_text(ids, window=40)
        assert score.token_ids == ids
        bos = llm.tokenizer.bos_id
        parts = [([bos, *ids[:40]], 1), (ids[39:80], 1), (ids[59:100], 21)]
        rows = np.concatenate([expected(llm, *part) for part in parts])
        assert score.token_logprobs == pytest.approx(rows, abs=1e-5)
        assert score.logprob == pytest.approx(rows.sum(), abs=1e-3)
        assert llm.score_text(ids).n_tokens == 100
        for bad in (0, 64):
            with pytest.raises(ValueError, match="expected 1 to 63"):
                llm.score_text(ids, window=bad)
        short = llm.score_text("the hen")
        assert short == llm.score("", "the hen")


# ---- a real model ----


@needs_smollm2
def test_scores_of_a_real_model():
    """Texts, a shared context, and what greedy decoding writes."""
    with LLM(SMOLLM2, n_ctx=512) as llm:
        question = "France lies in the west of Europe, and the capital of France is"
        pairs = [(question, f" {place}") for place in ("Paris", "Rome", "Moscow", "a grey cat")]
        scores = llm.score(pairs)
        assert max(range(4), key=lambda i: scores[i].logprob) == 0
        for (prompt, continuation), score in zip(pairs, scores, strict=True):
            ids = llm.tokenize(prompt + continuation)
            n = len(llm.tokenize(prompt))
            assert score.token_ids == ids[n:]
            assert score.token_logprobs == pytest.approx(expected(llm, ids, n), abs=1e-5)


@needs_smollm2
def test_greedy_text_of_a_real_model_is_known():
    question = "France lies in the west of Europe, and the capital of France is"
    with LLM(SMOLLM2, n_ctx=512) as llm:
        written = llm.generate(question, SamplingParams(temperature=0, max_tokens=8))
        greedy = llm.score(llm.tokenize(question), written.token_ids)
        assert greedy.is_greedy
        done = llm.generate(question, SamplingParams(temperature=0, max_tokens=8, logprobs=0))
        assert greedy.token_logprobs == pytest.approx(
            [one.logprob for one in done.logprobs], abs=1e-5
        )


@needs_smollm2
def test_an_evaluation_of_a_real_model_gets_the_same_score():
    with LLM(SMOLLM2, n_ctx=512) as llm:
        before, behind = scoring.encode_pair(llm.tokenizer, 9 * "The sky is blue. ", "The sea is")
        assert_evaluated(llm, before, behind)
        assert_evaluated(llm, before, behind[:1])
