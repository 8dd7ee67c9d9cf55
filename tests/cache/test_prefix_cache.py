"""Prefix sharing: what is shared, that nothing else changes, and that the pool gets it all back."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import numpy as np
import pytest
from lariat import LLM, ContextError, SamplingParams
from lariat.cache.blocks import SLOTS, BlockPool, BlockTable
from lariat.runtime.pace import Pace
from lariat.runtime.request import Request

from tests.support.contexts import CACHES, GREEDY, ids_of, n_held
from tests.support.model_files import write_llama

ONE = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("model") / "m.gguf", n_layers=3, n_ctx=512)


def load(path: Path, cache: str = "raw", **options) -> LLM:
    return LLM(path, **{"cache": cache, "n_threads": 2, **options})


def first_logits(llm: LLM, prompts: list[list[int]], monkeypatch) -> list[np.ndarray]:
    """The logits that the first token of each prompt was drawn from."""
    found: dict[int, np.ndarray] = {}
    take = Request.take

    def kept(request, logits):
        found.setdefault(id(request.completion), logits[-1].copy())
        take(request, logits)

    monkeypatch.setattr(Request, "take", kept)
    done = llm.generate(prompts, ONE)
    monkeypatch.undo()
    return [found[id(completion)] for completion in done]


# ---- blocks ------------------------------------------------------------------------------


def test_a_block_with_a_key_is_free_but_found_until_it_is_needed():
    pool = BlockPool(3)
    a, b = pool.allocate(), pool.allocate()
    pool.keep(a, b"a")
    pool.keep(b, b"b")
    pool.release(a)
    pool.release(b)
    assert pool.n_free == 3
    assert pool.find(b"a") == a
    assert (pool.n_free, pool.n_holders(a)) == (2, 1)
    pool.release(a)  # now b is the one that was released first
    assert [pool.allocate() for _ in range(3)][1:] == [b, a]
    assert pool.find(b"a") is pool.find(b"b") is None
    with pytest.raises(IndexError):
        pool.allocate()


def test_a_second_block_with_the_same_contents_gets_no_key():
    pool = BlockPool(2)
    a, b = pool.allocate(), pool.allocate()
    pool.keep(a, b"x")
    pool.keep(b, b"x")
    assert pool.find(b"x") == a
    pool.forget(b)
    pool.forget(a)
    assert pool.find(b"x") is None


def test_writing_into_a_block_takes_its_key_away():
    pool = BlockPool(4)
    segments = BlockTable(pool)
    segments.append(SLOTS)
    block = int(segments.segments[0, 0])
    pool.keep(block, b"x")
    segments.append(1)  # another block
    segments.truncate(20)
    with_key = pool.find(b"x")
    assert with_key == block
    segments.append(1)  # copied: somebody else reads it
    assert int(segments.segments[0, 0]) != block
    segments.clear()
    pool.release(block)
    again = BlockTable(pool)
    again.assign(np.array([[pool.find(b"x"), 0, 20, 0]], np.int32))
    pool.release(block)
    again.append(1)
    assert int(again.segments[0, 0]) == block
    assert pool.find(b"x") is None


# ---- what is shared ----------------------------------------------------------------------


@pytest.mark.parametrize("cache", CACHES)
def test_sequences_that_run_together_hold_the_same_blocks(path, cache, monkeypatch):
    monkeypatch.setattr(Pace, "budget", None)  # on a slow machine the first would end too early
    common = ids_of(100)
    with load(path, cache) as llm:
        streams = [llm.stream(common + ids_of(20, i), GREEDY) for i in range(1, 4)]
        for stream in streams:
            next(stream)
        firsts = [s._request.table.segments[:3, 0].tolist() for s in streams]
        assert firsts[0] == firsts[1] == firsts[2]
        assert n_held(llm) == 3 + 3
        assert [s.completion.timings.n_reused for s in streams] == [0, 96, 96]
        assert [s.completion.timings.n_prompt for s in streams] == [120, 24, 24]
        for stream in streams:
            stream.close()
        assert n_held(llm) == 0


@pytest.mark.parametrize("cache", CACHES)
def test_blocks_are_found_after_their_sequence_has_ended(path, cache):
    first = ids_of(70)
    with load(path, cache) as llm:
        done = llm.generate(first, SamplingParams(temperature=0, max_tokens=40, ignore_eos=True))
        assert n_held(llm) == 0
        # What it wrote is there too, as a chat wants it.
        whole = [*first, *done.token_ids, *ids_of(9, 1)]
        assert llm.generate(whole, GREEDY).timings.n_reused == 96
        assert llm.generate(ids_of(70, 2), GREEDY).timings.n_reused == 0
        changed = [*whole[:40], 7 if whole[40] != 7 else 8, *whole[41:]]
        assert llm.generate(changed, GREEDY).timings.n_reused == 32


def test_tokens_at_other_positions_are_not_taken_for_the_same(path):
    a, b = ids_of(32), ids_of(32, 1)
    with load(path) as llm:
        llm.generate([*a, *b, 5, 6, 7, 8, 9], ONE)
        for prompt, expected in (([*b, *a], 0), ([*b, *b], 32), ([*a, *a], 32), ([*b, *a], 64)):
            assert llm.generate([*prompt, 5, 6, 7, 8, 9], ONE).timings.n_reused == expected


def test_it_can_be_switched_off(path):
    with load(path, prefix_sharing=False) as llm:
        for _ in range(2):
            assert llm.generate(ids_of(70), GREEDY).timings.n_reused == 0
        assert not llm.runner.cache.pool._kept


# ---- that nothing else changes -----------------------------------------------------------


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("type_k", ["f16", "f32"])
def test_no_bit_of_the_logits_changes(path, cache, type_k, monkeypatch):
    """Prompts of every length beside a block's end; those that share with those that compute."""
    common = ids_of(128)
    prompts = [common[: 64 + n] for n in range(-3, 40, 2)]
    with load(path, cache, type_k=type_k, prefix_sharing=False) as llm:
        expected = [first_logits(llm, [prompt], monkeypatch)[0] for prompt in prompts]
    with load(path, cache, type_k=type_k) as llm:
        for order in (prompts, prompts[::-1]):
            for prompt in order:
                (got,) = first_logits(llm, [prompt], monkeypatch)
                assert np.array_equal(got, expected[prompts.index(prompt)])
        assert llm.generate(prompts[-1], ONE).timings.n_reused == 96
        together = first_logits(llm, prompts, monkeypatch)
        assert all(np.array_equal(a, b) for a, b in zip(together, expected, strict=True))


@pytest.mark.parametrize("cache", CACHES)
def test_a_preempted_sequence_finds_what_it_had(path, cache):
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    prompts = [ids_of(40, i) for i in range(3)]
    with load(path, cache, n_ctx=512) as llm:
        alone = [llm.generate(prompt, params).token_ids for prompt in prompts]
    with load(path, cache, n_ctx=160) as llm:
        preempted = []
        preempt = llm.runner.scheduler._preempt
        llm.runner.scheduler._preempt = lambda victim: (preempted.append(victim), preempt(victim))
        assert [done.token_ids for done in llm.generate(prompts, params)] == alone
        assert preempted
        assert n_held(llm) == 0


@pytest.mark.parametrize("cache", CACHES)
def test_a_context_that_is_edited_does_not_change_what_is_shared(path, cache, monkeypatch):
    prompt = ids_of(90)
    with load(path, cache) as llm:
        expected = first_logits(llm, [prompt], monkeypatch)[0]
        with llm.context() as context:
            llm.generate(prompt, GREEDY, context=context)
            context.delete(3, 40)
            llm.generate(ids_of(30, 1), GREEDY, context=context)
            assert np.array_equal(first_logits(llm, [prompt], monkeypatch)[0], expected)
        assert llm.generate(prompt, ONE).timings.n_reused == 64


def test_an_interrupted_step_leaves_no_half_written_block(path, monkeypatch):
    prompt = ids_of(90)
    with load(path) as llm:
        expected = first_logits(llm, [prompt], monkeypatch)[0]
        other = [*prompt[:64], *ids_of(64, 1)]

        def interrupted(*args):
            raise KeyboardInterrupt

        monkeypatch.setattr(llm.runner.model, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(other, GREEDY)
        monkeypatch.undo()
        assert llm.generate(other, GREEDY).timings.n_reused == 64
        assert np.array_equal(first_logits(llm, [prompt], monkeypatch)[0], expected)


@pytest.mark.parametrize("cache", CACHES)
def test_random_loads_in_a_small_pool_write_what_each_writes_alone(path, cache):
    """Streams that come and go, share and are preempted, beside contexts that are edited."""
    rng = random.Random(1)
    base = ids_of(200)
    prompts = [base[: rng.randint(1, 120)] + ids_of(rng.randint(1, 20), i) for i in range(12)]
    params = [SamplingParams(temperature=0, max_tokens=1 + i, ignore_eos=True) for i in range(12)]
    with load(path, cache, prefix_sharing=False) as llm:
        alone = [llm.generate(*one).token_ids for one in zip(prompts, params, strict=True)]
    n_reused = 0
    with load(path, cache, n_ctx=256, n_batch=64) as llm:
        context = llm.context()
        for _ in range(40):
            some = rng.sample(range(12), rng.randint(1, 4))
            streams = [llm.stream(prompts[i], params[i]) for i in some]
            dropped = rng.choice([None, *streams])
            if dropped:
                next(dropped, None)
                dropped.close()
            if rng.random() < 0.5:
                with contextlib.suppress(ContextError):  # the streams may hold all
                    context.append(base[:20])
                    context.delete(rng.randrange(len(context)), len(context))
            for i, stream in zip(some, streams, strict=True):
                list(stream)
                got = stream.completion.token_ids
                assert stream is dropped or got == alone[i]
                n_reused += stream.completion.timings.n_reused
        context.close()
        assert n_held(llm) == 0
    assert n_reused > 1000
