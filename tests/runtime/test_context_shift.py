"""Endless generation: what is evicted, what stays exact, and that it costs no more after hours."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
from lariat import LLM, SamplingParams
from lariat.cache.blocks import SLOTS, BlockPool, BlockTable
from lariat.config import RopeConfig
from lariat.errors import ContextError
from lariat.runtime.request import Completion, Request
from lariat.runtime.scheduler import Scheduler

from tests.reference import Reference, relative_error
from tests.support.cache_blocks import CHANNEL_TYPES, QUANTIZED
from tests.support.contexts import CACHES, ids_of, next_step
from tests.support.model_files import write_llama

N_CTX = 96
SPARE = 2
EOS = 2


def shifting(max_tokens: int = 200, **more) -> SamplingParams:
    options = {"temperature": 0, "ignore_eos": True, "context_shift": True, **more}
    return SamplingParams(max_tokens=max_tokens, **options)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer: there a key depends on its own token alone, so a moved one has an exact answer."""
    return write_llama(tmp_path_factory.mktemp("model") / "m.gguf", n_layers=1, n_ctx=N_CTX)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads of 32 dims, which quantized types need, and two layers."""
    folder = tmp_path_factory.mktemp("model")
    return write_llama(folder / "m.gguf", n_layers=2, n_ctx=N_CTX, head_dim=32)


def load(path: Path, cache: str, **options) -> LLM:
    types = {"type_k": "f32", "type_v": "f32"}
    return LLM(path, **{"cache": cache, "n_threads": 1, **types, **options})


@functools.cache
def greedy(path: Path, n_prompt: int, n: int, n_keep: int) -> list[int]:
    """What the reference writes when its tokens are evicted as they should be."""
    reference, ids, written = Reference(path), ids_of(n_prompt), []
    for _ in range(n):
        logits = reference.logits(ids)[-1]
        logits[EOS] = -np.inf
        written.append(int(logits.argmax()))
        ids.append(written[-1])
        if len(ids) > N_CTX:
            del ids[n_keep : n_keep + 32]
    return written


@pytest.mark.parametrize("n_keep", [0, 37, -1])
@pytest.mark.parametrize("cache", CACHES)
def test_positions_are_counted_within_the_cache(path, cache, n_keep):
    prompt = ids_of(60)
    with load(path, cache) as llm, llm.context() as context:
        done = llm.generate(prompt, shifting(75, n_keep=n_keep), context=context)
        n_kept = 60 if n_keep < 0 else n_keep
        assert done.finish_reason == "length"
        assert done.token_ids == greedy(path, 60, 75, n_kept)
        assert context.tokens[:n_kept] == prompt[:n_kept]
        assert context.tokens[n_kept:] == (prompt + done.token_ids)[-len(context) + n_kept :]
        assert context.positions.tolist() == list(range(len(context)))
        expected = Reference(path).logits([*context.tokens, 7, 8])[-2:]
        if len(context) + 2 <= N_CTX:
            assert relative_error(context.logits([7, 8]), expected) < 1e-5
        assert context.nbytes <= (N_CTX // SLOTS + SPARE) * llm.runner.cache.block_bytes


@pytest.mark.parametrize("types", ["f16", *QUANTIZED])
@pytest.mark.parametrize("cache", CACHES)
def test_each_type_is_evicted_from_as_an_edit_does_it(wide, cache, types):
    """`Context.delete`, which is held against float64 elsewhere, makes room: the same bits."""
    prompt, n, n_keep = ids_of(60), 150, 5
    with load(wide, cache, type_k=types, type_v=types) as llm, llm.context() as context:
        if cache == "roped" and types in CHANNEL_TYPES:
            with pytest.raises(ContextError, match="cannot in the roped cache: use the raw"):
                llm.generate(prompt, shifting(n, n_keep=n_keep))
            assert llm.runner.cache.pool.n_free == llm.runner.cache.pool.n_blocks
            return
        last = prompt[-1]
        context.append(prompt[:-1])
        with context.fork() as lent:
            params = shifting(n, n_keep=n_keep)
            written = llm.generate([last], params, context=lent).token_ids
        for expected in written:
            if len(context) == N_CTX:
                context.delete(n_keep, n_keep + SLOTS)
            logits = context.logits([last])[-1]
            context.append([last])
            logits[EOS] = -np.inf
            assert int(logits.argmax()) == expected
            last = expected
        assert len(written) == n


@pytest.mark.parametrize("cache", CACHES)
def test_without_it_the_context_ends(path, cache):
    with load(path, cache) as llm:
        done = llm.generate(ids_of(40), SamplingParams(temperature=0, ignore_eos=True))
        assert done.finish_reason == "context"
        assert len(done.token_ids) == N_CTX - 40
        shifted = llm.generate(ids_of(40), shifting(N_CTX - 40))
        assert shifted.token_ids == done.token_ids, "up to there it is the same"


@pytest.mark.parametrize("n_prompt", [N_CTX - 1, N_CTX])
def test_a_prompt_that_fills_the_context(path, n_prompt):
    for n_batch in (2048, 40):
        with load(path, "raw", n_batch=n_batch) as llm:
            got = llm.generate(ids_of(n_prompt), shifting(20)).token_ids
            assert got == greedy(path, n_prompt, 20, 4)


@pytest.mark.parametrize("cache", CACHES)
def test_a_context_goes_on_from_stream_to_stream(path, cache):
    """As a chat does; each prompt makes room for itself."""
    with load(path, cache) as llm, llm.context() as context:
        history: list[int] = []
        for i in range(12):
            prompt = ids_of(17, seed=i)
            done = llm.generate(prompt, shifting(9), context=context)
            history += prompt + done.token_ids
            assert len(context) <= N_CTX
            assert context.tokens[:4] == history[:4]
            assert context.tokens[4:] == history[4:][-len(context) + 4 :]
        expected = Reference(path).logits([*context.tokens[:60], 7])[-1:]
        context.truncate(60)
        assert relative_error(context.logits([7]), expected) < 1e-5


def test_with_group_attention_and_with_dynamic_scaling(path):
    for rope in (RopeConfig(grp_attn_n=2, grp_attn_w=16), RopeConfig("dynamic", yarn_orig_ctx=48)):
        with load(path, "raw", rope=rope) as llm:
            assert llm.generate(ids_of(40), shifting(150)).finish_reason == "length"


def test_nothing_grows(path):
    """Not the ids, not the text, not the blocks; and penalties see the window alone."""
    with load(path, "raw") as llm:
        params = shifting(-1, repeat_penalty=1.1, repeat_last_n=-1, temperature=0.8, seed=1)
        n_pieces, sizes = 0, []
        with llm.stream(ids_of(20), params) as stream:
            text = ""
            for piece in stream:
                text += piece
                n_pieces += 1
                if n_pieces % 300 == 0:
                    done, request = stream.completion, stream._request
                    assert text.endswith(done.text)
                    sizes.append(
                        (len(done.token_ids), len(request.ids), llm.runner.cache.pool.n_free)
                    )
                    assert len(done.text) < 20 * N_CTX
                if n_pieces == 1200:
                    break
        assert all(n_tokens == N_CTX and n_ids <= N_CTX + 1 for n_tokens, n_ids, _ in sizes)
        assert min(n_free for *_, n_free in sizes) >= 0
        assert llm.runner.cache.pool.n_free == llm.runner.cache.pool.n_blocks
        whole = llm.generate(ids_of(20), shifting(300))
        assert len(whole.token_ids) == 300, "what has an end is there from its beginning"


@pytest.mark.parametrize("cache", CACHES)
def test_several_at_once_share_what_there_is(path, cache):
    """Endless ones never wait for each other, and make room for others."""
    with load(path, cache, n_ctx=192) as llm:
        endless = [llm.stream(ids_of(10, seed=i), shifting(-1)) for i in range(3)]
        for _ in range(150):
            for stream in endless:
                next(stream)
        done = llm.generate(ids_of(50, seed=9), SamplingParams(temperature=0, max_tokens=20))
        assert done.finish_reason in ("length", "stop")
        for _ in range(60):
            for stream in endless:
                next(stream)
        for stream in endless:
            stream.close()
        assert llm.runner.cache.pool.n_free == llm.runner.cache.pool.n_blocks


def test_where_nothing_can_be_evicted_an_endless_one_waits(path):
    """Two of them at their shortest fill this cache; a third one would wait for ever."""
    with load(path, "raw", n_ctx=128) as llm:
        endless = [llm.stream(ids_of(10, seed=i), shifting(-1)) for i in range(3)]
        for _ in range(120):
            next(endless[0])
        with pytest.raises(ContextError, match="cache is full"):
            for _ in endless[2]:
                pass
        done = llm.generate(ids_of(60, seed=9), SamplingParams(temperature=0, max_tokens=20))
        assert done.finish_reason in ("length", "stop")
        for stream in endless[:2]:
            for _ in range(50):
                next(stream)


def test_shared_blocks(path):
    """What another context holds too is evicted from one of them alone."""
    for cache in CACHES:
        with load(path, cache) as llm, llm.context() as context:
            context.append(ids_of(90))
            with context.fork() as fork:
                before = fork.logits([5])
                done = llm.generate([7], shifting(60), context=context)
                assert done.finish_reason == "length"
                context.close()  # for room
                assert np.array_equal(fork.logits([5]), before)
                assert fork.tokens == ids_of(90)


@pytest.mark.parametrize(
    ("n_prompt", "n_keep", "words"),
    [
        (10, N_CTX - 32, "64 tokens of a context of 96 leaves no room"),
        (64, -1, "64 tokens of a context of 96 leaves no room"),
        (N_CTX + 1, 4, "97 tokens, more than the context of 96"),
    ],
)
def test_what_leaves_no_room(path, n_prompt, n_keep, words):
    with load(path, "raw") as llm:
        with pytest.raises(ContextError, match=words):
            llm.stream(ids_of(n_prompt), shifting(n_keep=n_keep))
        with llm.context() as context:
            context.append(ids_of(60))
            with pytest.raises(ContextError, match="that makes 116 tokens"):
                llm.stream(ids_of(80), shifting(), context=context)
            assert context.tokens == ids_of(60)
            assert context.logits([3]).shape == (1, 288)
        assert llm.runner.cache.pool.n_free == llm.runner.cache.pool.n_blocks
    with pytest.raises(ValueError, match="n_keep is -2"):
        shifting(n_keep=-2)


# ---- the scheduler alone, for thousands of evictions ----


class SilentDecoder:
    def feed(self, token: int) -> str:
        return ""

    def flush(self) -> str:
        return ""


def request_in(pool: BlockPool, n_prompt: int, n_ctx: int, **params) -> Request:
    prompt = list(range(n_prompt))
    return Request(
        prompt,
        SamplingParams(context_shift=True, **params),
        BlockTable(pool),
        np.random.default_rng(0),
        Completion(prompt),
        decoder=SilentDecoder(),
        eog_ids=frozenset(),
        n_ctx=n_ctx,
    )


@pytest.mark.parametrize("n_ctx", [96, 100, 256])
@pytest.mark.parametrize("n_keep", [0, 1, 4, 31, 32, 33, 37, 63])
def test_the_spare_blocks_are_enough(n_ctx, n_keep):
    """Alone, a request keeps its whole window for ever."""
    pool = BlockPool(-(-n_ctx // SLOTS) + SPARE)
    scheduler, request = Scheduler(pool, 64), request_in(pool, 50, n_ctx, n_keep=n_keep)
    scheduler.add(request)
    n_windows, longest = 0, 0
    for i in range(3000):
        step = next_step(scheduler)
        assert [s for s, _ in step] == [request]
        before = request.table.n_tokens
        request.table.append(step[0][1])
        if request.n_pending == 0:
            request.append(i)
        longest = max(longest, request.table.n_tokens)
        n_windows += request.table.n_tokens == n_ctx
        assert request.table.n_tokens >= min(before, n_ctx - SLOTS)
    assert longest == n_ctx
    assert n_windows > 70, "it is evicted from only where it is full"
    assert request.ids[:n_keep] == list(range(50))[:n_keep] or n_keep > 50
    rows = request.table.segments
    assert rows[:, 2].sum() == request.table.n_tokens
    scheduler.remove(request)
    assert pool.n_free == pool.n_blocks


@pytest.mark.parametrize("keeps", [(4, 4), (0, 37, 64), (4, 4, 4, 4, 4)])
def test_thousands_of_evictions_of_several_at_once(keeps):
    pool = BlockPool(16)
    scheduler = Scheduler(pool, 64)
    requests = [request_in(pool, 20 + i, 448, n_keep=k) for i, k in enumerate(keeps)]
    for request in requests:
        scheduler.add(request)
    n_steps = dict.fromkeys(requests, 0)
    for i in range(4000):
        for request, n in next_step(scheduler):
            request.table.append(n)
            if request.n_pending == 0:
                request.append(i)
            n_steps[request] += 1
        assert not any(s.closed for s in requests)
    assert min(n_steps.values()) > 3900, "none waits for another"
    shares = [len(request.ids) for request in requests]
    assert min(shares) > 448 / len(keeps) / 3, shares
    for request in requests:
        scheduler.remove(request)
    assert pool.n_free == pool.n_blocks


def test_an_eviction_is_a_decision_that_touches_nothing():
    """The scheduler says which tokens are to go; who acts on it moves the others up."""
    pool = BlockPool(4 + SPARE)
    scheduler, request = Scheduler(pool, 64), request_in(pool, 50, 96, n_keep=4)
    scheduler.add(request)
    while len(request.ids) <= 96:
        step = scheduler.schedule()
        assert not step.evict
        request.table.append(step.compute[0][1])
        request.ids.append(7)
    ids, segments = list(request.ids), request.table.segments.copy()
    for _ in range(2):  # asked again before anybody acted, it decides the same
        step = scheduler.schedule()
        assert step.compute == []
        assert step.evict == [(request, (4, 4 + SLOTS))]
        assert request.ids == ids
        assert np.array_equal(request.table.segments, segments)


def test_a_request_that_cannot_evict_fails_alone(path, monkeypatch):
    """Shared roped keys need blocks to be copied to; a request without them ends, others go on."""
    with load(path, "roped") as llm:
        with llm.stream(ids_of(20), shifting(-1)) as endless, monkeypatch.context() as patch:
            next(endless)

            def edit(*_):
                raise IndexError("the pool has too few free blocks")

            patch.setattr(llm.runner.cache, "edit", edit)
            with pytest.raises(ContextError, match="no free blocks to move tokens up in"):
                for _ in endless:
                    pass
            other = llm.generate(ids_of(10), SamplingParams(max_tokens=5, ignore_eos=True))
            assert len(other.token_ids) == 5
        assert llm.runner.cache.pool.n_free == llm.runner.cache.pool.n_blocks
