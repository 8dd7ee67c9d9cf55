"""RoPE that is chosen when keys are read: exact, the likeliest, and nobody else notices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lariat import LLM, RopeConfig, SamplingParams
from lariat.errors import ContextError, LariatError
from lariat.runtime.rope_choice import (
    MAX_QUESTION,
    RopeRead,
    candidates,
    question_length,
    read_question,
    surprise,
)
from lariat.runtime.sampler import log_softmax

from tests.support.contexts import GREEDY, ids_of, load, n_free, n_held, write_deep

YARN, LINEAR = RopeConfig("yarn", 2.0), RopeConfig("linear", 3.0)
EXTEND, DYNAMIC = RopeConfig(grp_attn_n=4, grp_attn_w=32), RopeConfig("dynamic", yarn_orig_ctx=64)
ROPES = {"plain": RopeConfig(), "yarn": YARN, "extend": EXTEND, "dynamic": DYNAMIC}
LONGER = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_deep(tmp_path_factory.mktemp("model"))


@pytest.fixture
def llm(deep: Path):
    with load(deep) as llm:
        yield llm


def by_hand(llm: LLM, ids: list[int], rope: RopeConfig, params=GREEDY) -> list[int]:
    """The answer of a context that is computed as the file says, and then read with `rope`."""
    with llm.context() as context:
        llm.set_rope(RopeConfig())
        context.append(ids[:-MAX_QUESTION])
        llm.set_rope(rope)
        done = llm.generate(ids[-MAX_QUESTION:], params, context=context)
        llm.set_rope(RopeConfig())
    return done.token_ids


def nll(llm: LLM, ids: list[int], rope: RopeConfig) -> float:
    """Of the last tokens, nats a token."""
    question = ids[-MAX_QUESTION:]
    with llm.context() as context:
        context.append(ids[:-MAX_QUESTION])
        llm.set_rope(rope)
        scores = log_softmax(context.logits(question))
        llm.set_rope(RopeConfig())
    return -float(np.mean(scores[np.arange(MAX_QUESTION - 1), question[1:]]))


# ---- one setting -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROPES)
def test_a_request_reads_with_its_own_setting(llm: LLM, name: str) -> None:
    ids = ids_of(200)
    done = llm.generate(ids, GREEDY, rope_read=ROPES[name])
    assert done.token_ids == by_hand(llm, ids, ROPES[name])
    assert done.rope == ROPES[name].over(llm.config.rope)
    assert done.timings.n_tried == 0
    assert done.timings.n_prompt == 200
    assert llm.generate(ids, GREEDY).rope is None


def test_plain_is_as_the_file_says(deep: Path) -> None:
    ids = ids_of(150)
    with load(deep, rope=YARN) as llm, load(deep) as plain:
        with plain.context() as context:
            plain.set_rope(YARN)
            context.append(ids[:-MAX_QUESTION])
            plain.set_rope(RopeConfig())
            expected = plain.generate(ids[-MAX_QUESTION:], GREEDY, context=context)
        got = llm.generate(ids, GREEDY, rope_read="plain")
        assert got.token_ids == expected.token_ids
        assert got.token_ids != llm.generate(ids, GREEDY).token_ids


@pytest.mark.parametrize("n_ubatch", [512, 40])
def test_requests_with_other_settings_do_not_notice_each_other(deep: Path, n_ubatch: int) -> None:
    prompts = [ids_of(n, seed=n) for n in (90, 200, 64, 70, 130)]
    asked = [None, YARN, EXTEND, DYNAMIC, [RopeConfig(), LINEAR, EXTEND]]
    with load(deep, n_ubatch=n_ubatch, n_ctx=1024) as llm:
        alone = [
            llm.generate(ids, LONGER, rope_read=one).token_ids
            for ids, one in zip(prompts, asked, strict=True)
        ]
        free = n_free(llm)
        streams = [
            llm.stream(ids, LONGER, rope_read=one) for ids, one in zip(prompts, asked, strict=True)
        ]
        for stream in streams:
            for _ in stream:
                pass
        assert [stream.completion.token_ids for stream in streams] == alone
        assert n_free(llm) == free


def test_a_preempted_request_is_recomputed_as_it_was(deep: Path) -> None:
    prompts = [ids_of(n, seed=n) for n in (100, 110, 120)]
    asked = [YARN, [EXTEND, LINEAR], EXTEND]
    with load(deep, n_ctx=2048) as llm:
        alone = [
            llm.generate(ids, LONGER, rope_read=one).token_ids
            for ids, one in zip(prompts, asked, strict=True)
        ]
    with load(deep, n_ctx=384, prefix_sharing=False) as llm:
        computed = [0]
        forward = llm.runner.forward

        def counting(parts, n_threads=None):
            computed[0] += sum(len(part.token_ids) for part in parts)
            return forward(parts, n_threads)

        llm.runner.forward = counting
        streams = [
            llm.stream(ids, LONGER, rope_read=one) for ids, one in zip(prompts, asked, strict=True)
        ]
        for stream in streams:
            for _ in stream:
                pass
        assert [stream.completion.token_ids for stream in streams] == alone
        once = sum(len(ids) + 39 for ids in prompts) + MAX_QUESTION
        assert computed[0] > once, "somebody was preempted"


def test_a_prefix_is_shared_up_to_the_question(llm: LLM) -> None:
    ids = ids_of(200)
    expected = {name: by_hand(llm, ids, rope) for name, rope in ROPES.items()}
    fresh = llm.generate(ids, GREEDY).token_ids
    for name in ("yarn", "extend", "plain", "yarn"):
        done = llm.generate(ids, GREEDY, rope_read=ROPES[name])
        assert done.token_ids == expected[name]
        assert done.timings.n_reused == (200 - MAX_QUESTION) // 32 * 32
    assert llm.generate(ids, GREEDY).token_ids == fresh
    other = ids_of(200, seed=1)  # here the question comes first with another setting
    llm.generate(other, GREEDY, rope_read=LINEAR)
    done = llm.generate(other, GREEDY)
    assert done.timings.n_reused == (200 - MAX_QUESTION) // 32 * 32
    with llm.context() as context:
        context.append(other[:-1])
        assert done.token_ids == llm.generate(other[-1:], GREEDY, context=context).token_ids


def test_a_context_goes_on_behind_a_request_with_a_setting(llm: LLM) -> None:
    ids, more = ids_of(150), ids_of(20, seed=1)
    with llm.context() as context, llm.context() as other:
        done = llm.generate(ids, GREEDY, context=context, rope_read=YARN)
        again = llm.generate(more, GREEDY, context=context, rope_read=EXTEND)
        other.append(ids[:-MAX_QUESTION])
        llm.set_rope(YARN)
        assert llm.generate(ids[-MAX_QUESTION:], GREEDY, context=other).token_ids == done.token_ids
        llm.set_rope(RopeConfig())
        other.logits([3])  # computes the last token, which was sampled, as the context's owner does
        llm.set_rope(EXTEND)
        assert llm.generate(more, GREEDY, context=other).token_ids == again.token_ids
        assert context.tokens == other.tokens
        llm.generate([], GREEDY, context=context, rope_read=YARN)  # its last token is the question


def test_an_endless_request_keeps_its_setting(deep: Path) -> None:
    """Evicted tokens stood before the question, so the place where it begins moves too."""
    params = SamplingParams(temperature=0, max_tokens=300, ignore_eos=True, context_shift=True)
    with load(deep, n_ctx=192) as llm:
        done = llm.generate(ids_of(180), params, rope_read=YARN)
        with llm.context() as context:
            context.append(ids_of(180)[:-MAX_QUESTION])
            llm.set_rope(YARN)
            expected = llm.generate(ids_of(180)[-MAX_QUESTION:], params, context=context)
        assert done.token_ids == expected.token_ids


# ---- a choice ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_the_setting_under_which_the_question_is_likeliest_is_taken(llm: LLM, seed: int) -> None:
    ids, asked = ids_of(200, seed), [RopeConfig(), YARN, LINEAR, EXTEND]
    best = min(asked, key=lambda rope: nll(llm, ids, rope))
    done = llm.generate(ids, GREEDY, rope_read=asked)
    assert done.rope == best.over(llm.config.rope)
    assert done.token_ids == by_hand(llm, ids, best)


def test_a_choice_costs_the_question_once_a_setting(llm: LLM) -> None:
    computed = []
    forward = llm.runner.forward
    llm.runner.forward = lambda parts, n_threads=None: (
        computed.append(sum(len(part.token_ids) for part in parts)) or forward(parts, n_threads)
    )
    before = n_held(llm)
    done = llm.generate(ids_of(200), GREEDY, rope_read=[RopeConfig(), YARN, EXTEND])
    n_decoded = len(done.token_ids) - 1
    assert sum(computed) == 200 - MAX_QUESTION + 3 * MAX_QUESTION + n_decoded
    assert done.timings.n_tried == 3 * MAX_QUESTION
    assert done.timings.n_prompt == 200
    assert done.timings.n_decode == n_decoded
    assert n_held(llm) == before


def test_without_room_for_two_readings_the_last_is_computed_again(deep: Path) -> None:
    ids, asked = ids_of(250), [RopeConfig(), YARN, LINEAR, EXTEND]
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    with load(deep, n_ctx=1024) as llm:
        expected = llm.generate(ids, params, rope_read=asked)
        assert expected.timings.n_tried == 4 * MAX_QUESTION
    with load(deep, n_ctx=256) as llm:
        done = llm.generate(ids, params, rope_read=asked)
        assert done.timings.n_tried == 5 * MAX_QUESTION
        assert done.token_ids == expected.token_ids
        assert done.rope == expected.rope
        assert n_held(llm) == 0


def test_auto_reads_a_short_prompt_plainly(llm: LLM) -> None:
    done = llm.generate(ids_of(100), GREEDY, rope_read="auto")  # trained on 512
    assert done.rope == llm.config.rope
    assert done.timings.n_tried == 0
    asked = candidates(llm.config, 200)
    done = llm.generate(ids_of(200), GREEDY, rope_read="auto")
    assert len(asked) > 1
    assert done.timings.n_tried == len(asked) * MAX_QUESTION
    assert done.rope in [rope.over(llm.config.rope) for rope in asked]


def test_a_step_with_fewer_tokens_than_the_question_reads_it_whole(deep: Path) -> None:
    asked = [RopeConfig(), YARN]
    with load(deep) as llm:
        expected = llm.generate(ids_of(200), GREEDY, rope_read=asked).token_ids
    with load(deep, n_batch=16) as llm:
        assert llm.generate(ids_of(200), GREEDY, rope_read=asked).token_ids == expected


# ---- what can go wrong -------------------------------------------------------------------


def test_an_error_in_a_reading_leaves_the_table_and_loses_no_block(llm: LLM) -> None:
    table = llm.runner.new_table()
    llm.runner.compute(table, ids_of(50))
    before, free = table.segments.copy(), n_free(llm)
    n_calls = [0]

    def failing(*args, **more):
        n_calls[0] += 1
        if n_calls[0] == 3:
            raise LariatError("struck")
        return llm.runner.compute(*args, **more)

    with pytest.raises(LariatError, match="struck"):
        read_question(table, ids_of(40), [RopeConfig(), YARN, EXTEND], failing)
    assert np.array_equal(table.segments, before)
    assert n_free(llm) == free
    table.clear()


def test_a_full_cache_says_so(deep: Path) -> None:
    with load(deep, n_ctx=192) as llm, llm.context() as other:
        other.append(ids_of(190))
        with pytest.raises(ContextError, match="full"):
            llm.generate(ids_of(70), GREEDY, rope_read=[RopeConfig(), YARN])


@pytest.mark.parametrize("odd", ["extend", "", 3, [], [None], [YARN, "auto"], {"scale": 2.0}])
def test_other_values_are_refused(llm: LLM, odd: object) -> None:
    with pytest.raises(ValueError, match="rope_read"):
        llm.stream(ids_of(5), rope_read=odd)


@pytest.mark.parametrize("asked", ["auto", "plain", YARN, [YARN, LINEAR]])
def test_rotated_keys_cannot_be_read_otherwise(deep: Path, asked: object) -> None:
    with load(deep, "roped") as llm, pytest.raises(ValueError, match="raw cache"):
        llm.stream(ids_of(5), rope_read=asked)


# ---- the parts ---------------------------------------------------------------------------


def test_the_question_is_the_last_paragraph_that_is_long_enough() -> None:
    words = [" word"] * 20
    assert question_length([*words, ".\n\n", *words]) == 20
    assert question_length([*words, "\n", "\n", *words]) == 20
    assert question_length([*words, ".\n\n", *words, "\n\n", "Answer", ":"]) == 23
    assert question_length(words) == 20
    assert question_length(words * 10) == MAX_QUESTION
    assert question_length([".\n\n", *words * 10]) == MAX_QUESTION
    assert question_length([]) == 0


def test_surprise_is_the_mean_of_log_p() -> None:
    logits = np.random.default_rng(0).standard_normal((5, 30)).astype(np.float32) * 5
    ids = [4, 7, 0, 29, 3]
    expected = -log_softmax(logits)[np.arange(4), ids[1:]].mean()
    assert surprise(logits, ids) == pytest.approx(expected, rel=1e-6)
    assert surprise(logits[:1], ids[:1]) == 0


def test_evictions_move_the_beginning_of_the_question() -> None:
    for n, evicted, left in [
        (100, (4, 36), 68),
        (20, (4, 36), 4),
        (3, (4, 36), 3),
        (0, (0, 32), 0),
    ]:
        read = RopeRead((YARN,), n)
        read.evicted(*evicted)
        assert read.n_before == left
