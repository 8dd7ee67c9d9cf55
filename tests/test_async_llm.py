"""Streams and completions for asyncio: the same text as `LLM`, and nothing that blocks the loop."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from lariat import LLM, AsyncLLM, ContextError, SamplingParams

from tests.support.contexts import ids_of
from tests.support.model_files import write_llama

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
LONG = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("model") / "m.gguf", n_layers=2, n_ctx=1024)


@pytest.fixture
def llm(path: Path) -> Iterator[LLM]:
    with LLM(path, n_threads=1) as llm:
        yield llm


def run(llm: LLM, work: Callable[[AsyncLLM], Awaitable[object]]) -> None:
    """Run `work`; all blocks must be free afterwards."""

    async def main() -> None:
        engine = AsyncLLM(llm)
        await work(engine)
        gc.collect()
        await until(lambda: is_idle(engine))
        await engine.close()

    asyncio.run(main())


def is_idle(engine: AsyncLLM) -> bool:
    health = engine.health()
    return health.n_free == health.n_blocks and not health.n_running + health.n_waiting


async def until(is_true: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end
        await asyncio.sleep(0.001)


def test_the_same_text_as_without_asyncio(llm):
    expected = llm.generate("the hen", GREEDY)

    async def work(engine: AsyncLLM) -> None:
        async with engine.stream("the hen", GREEDY) as stream:
            pieces = [piece async for piece in stream]
            assert [piece async for piece in stream] == []
        assert "".join(pieces) == expected.text == stream.completion.text
        assert stream.completion.finish_reason == "length"
        done = await engine.generate("the hen", GREEDY)
        assert done.token_ids == expected.token_ids
        both = await engine.generate(["the hen", [1, 5]], GREEDY)
        assert both[0].token_ids == expected.token_ids
        assert await engine.generate([], GREEDY) == []
        nothing = await engine.generate("the hen", SamplingParams(max_tokens=0))
        assert (nothing.text, nothing.finish_reason) == ("", "length")

    run(llm, work)


@pytest.mark.parametrize("n", [2, 20])
def test_tasks_and_threads_together_say_what_each_says_alone(llm, n):
    params = [SamplingParams(temperature=1.0, max_tokens=9, seed=i) for i in range(n)]
    prompts = [ids_of(3 + 4 * i, seed=i) for i in range(n)]
    alone = [llm.generate(*one).text for one in zip(prompts, params, strict=True)]

    async def work(engine: AsyncLLM) -> None:
        async def one(i: int) -> str:
            return "".join([piece async for piece in engine.stream(prompts[i], params[i])])

        def other(i: int) -> str:
            return llm.generate(prompts[i], params[i]).text

        texts = await asyncio.gather(
            *(one(i) for i in range(n)),
            *(asyncio.to_thread(other, i) for i in range(n)),
        )
        assert texts == [*alone, *alone]

    run(llm, work)


def test_what_is_wrong_is_raised_where_it_is_awaited(llm):
    async def work(engine: AsyncLLM) -> None:
        with pytest.raises(ContextError, match="the prompt has 2000 tokens"):
            async with engine.stream(ids_of(2000)):
                pass
        with pytest.raises(ValueError, match="out of range"):
            await anext(engine.stream([10**7]))
        with pytest.raises(ValueError, match="one completion"):
            await engine.generate([[5], [6]], context=llm.context())
        engine.stream([10**7])  # nobody asks
        await asyncio.sleep(0.01)

    run(llm, work)


def test_outside_of_a_loop_there_are_no_streams(llm):
    with pytest.raises(RuntimeError, match="no running event loop"):
        AsyncLLM(llm).stream([1, 5])


# ---- giving up ----


def test_closing_halfway_frees_the_blocks(llm):
    async def work(engine: AsyncLLM) -> None:
        async with engine.stream(ids_of(9), LONG) as stream:
            async for _ in stream:
                break
        await until(lambda: is_idle(engine))
        assert stream.completion.finish_reason is None
        await stream.aclose()
        assert len([piece async for piece in stream]) <= LONG.max_tokens

    run(llm, work)


def test_a_task_that_is_cancelled_gives_its_request_up(llm):
    async def work(engine: AsyncLLM) -> None:
        for seconds in (0.0, 0.001, 0.02):
            task = asyncio.create_task(engine.generate(ids_of(300), LONG))
            await asyncio.sleep(seconds)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: is_idle(engine))

    run(llm, work)


def test_a_stream_that_is_dropped_gives_its_request_up(llm):
    async def work(engine: AsyncLLM) -> None:
        engine.stream(ids_of(300), LONG)
        stream = engine.stream(ids_of(300), LONG)
        await anext(stream)
        del stream
        gc.collect()
        await until(lambda: is_idle(engine))

    run(llm, work)


def test_closing_a_stream_ends_the_task_that_waits_for_it(llm):
    async def work(engine: AsyncLLM) -> None:
        stream = engine.stream(ids_of(9), LONG)
        await anext(stream)

        async def read() -> int:
            return len([piece async for piece in stream])

        task = asyncio.create_task(read())
        await asyncio.sleep(0)
        await stream.aclose()
        assert await asyncio.wait_for(task, 30) < LONG.max_tokens

    run(llm, work)


def test_one_stream_aborted_while_another_reads_its_prompt(path, monkeypatch):
    with LLM(path, n_threads=1, n_batch=64, n_ubatch=64) as llm:
        expected = llm.generate(ids_of(900), GREEDY).text

        async def work(engine: AsyncLLM) -> None:
            short = engine.stream(ids_of(9), LONG)
            await anext(short)
            long = asyncio.create_task(engine.generate(ids_of(900), GREEDY))
            await until(lambda: engine.health().n_running == 2 or long.done())
            await short.aclose()
            assert (await asyncio.wait_for(long, 30)).text == expected

        run(llm, work)


# ---- the loop ----


def test_the_loop_is_not_held_up_by_a_prompt(llm, monkeypatch):
    tokenize, may_go = llm.tokenizer.encode_behind, threading.Event()

    def slow(*args, **options):
        assert may_go.wait(30)
        return tokenize(*args, **options)

    monkeypatch.setattr(llm.tokenizer, "encode_behind", slow)

    async def work(engine: AsyncLLM) -> None:
        stream = engine.stream("the hen", GREEDY)
        piece = asyncio.create_task(anext(stream))
        await asyncio.sleep(0.01)
        assert not piece.done()
        assert stream.completion.token_ids == []
        may_go.set()
        assert await asyncio.wait_for(piece, 30)

    run(llm, work)


def test_closing_ends_open_streams(llm):
    async def main() -> None:
        engine = AsyncLLM(llm)
        stream = engine.stream(ids_of(9), SamplingParams(max_tokens=900, ignore_eos=True))
        await anext(stream)

        async def read() -> None:
            async for _ in stream:
                pass

        task = asyncio.create_task(read())
        await asyncio.sleep(0)
        await engine.close()
        await engine.close()
        with pytest.raises(ValueError, match="the model is closed"):
            await asyncio.wait_for(task, 30)
        with pytest.raises(ValueError, match="the model is closed"):
            engine.stream([1, 5])

    asyncio.run(main())


def test_a_stream_that_outlives_its_loop_is_given_up_when_it_is_dropped(llm):
    streams = []

    async def main() -> None:
        stream = AsyncLLM(llm).stream(ids_of(9), LONG)
        await anext(stream)
        streams.append(stream)

    asyncio.run(main())
    streams.clear()
    end = time.monotonic() + 30
    while llm.health().n_running and time.monotonic() < end:
        time.sleep(0.001)
    assert llm.health().n_running == 0


def test_a_context_goes_on(llm):
    async def work(engine: AsyncLLM) -> None:
        with llm.context() as context:
            context.append(ids_of(9))
            done = await engine.generate([5, 6], GREEDY, context=context)
            assert context.tokens == [*ids_of(9), 5, 6, *done.token_ids]

    run(llm, work)


def test_deltas_have_what_those_of_a_stream_have(llm):
    params = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True, logprobs=2)
    expected = list(llm.stream([1, 5], params).deltas())

    async def work(engine: AsyncLLM) -> None:
        async with engine.stream([1, 5], params) as stream:
            assert [delta async for delta in stream.deltas()] == expected
        assert sum(len(delta.token_ids) for delta in expected) == 9

    run(llm, work)


def test_a_bad_prompt_of_a_list_fails_alone(llm):
    expected = llm.generate([1, 5], GREEDY).token_ids

    async def work(engine: AsyncLLM) -> None:
        bad, good = await engine.generate([[10**7], [1, 5]], GREEDY)
        assert isinstance(bad.error, ValueError)
        assert bad.finish_reason == "error"
        assert good.token_ids == expected
        two = await engine.generate([1, 5], SamplingParams(n=2, max_tokens=3, seed=1))
        assert [len(one.token_ids) for one in two] == [3, 3]

    run(llm, work)
