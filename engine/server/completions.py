"""`POST /v1/completions`. Bodies are `lariat.protocol.completions`'s."""

from __future__ import annotations

from collections.abc import AsyncIterator

from lariat.protocol import completions
from lariat.protocol.completions import (
    CompletionJob,
    CompletionRequest,
    Continuation,
    TextCompletion,
)
from lariat.server import sse
from lariat.server.endpoint import Call, Endpoint, Events
from lariat.server.generation import Generation


async def _complete(call: Call) -> TextCompletion | Events:
    request: CompletionRequest = call.body
    job = await call.service.in_thread(completions.prepare, request, call.served)
    return await answered(request, job, Generation(call.service, job.prompts, job.params))


async def answered(
    request: CompletionRequest,
    job: CompletionJob,
    generation: Generation,
) -> TextCompletion | Events:
    """The answer to a request, as a whole or as events."""
    texts = [Continuation(job, i) for i in range(len(job.prompts))]
    if request.stream:
        with_usage = bool(request.stream_options and request.stream_options.include_usage)
        return Events(_events(job, texts, generation, with_usage))
    async with generation:
        async for step in generation:
            if step.delta is not None:
                texts[step.number].feed(step.delta, step.completion)
            else:
                texts[step.number].finish(step.completion)
    used = completions.used(job, generation.completions)
    return completions.completion(job, [text.whole() for text in texts], used)


async def _events(
    job: CompletionJob, texts: list[Continuation], generation: Generation, with_usage: bool
) -> AsyncIterator[bytes]:
    for text in texts:
        for part in text.begin():
            yield sse.event(completions.completion(job, [part]))
    async with generation:
        async for step in generation:
            text = texts[step.number]
            if step.delta is not None:
                new = text.feed(step.delta, step.completion)
            else:
                new = text.finish(step.completion)
            for part in new:
                yield sse.event(completions.completion(job, [part]))
    if with_usage:
        used = completions.used(job, generation.completions)
        yield sse.event(completions.completion(job, [], used))
    yield sse.DONE


ENDPOINTS = (
    Endpoint(
        "POST", "/v1/completions", _complete, "Continues texts.",
        request=CompletionRequest, answer=TextCompletion, event=TextCompletion,
    ),
)  # fmt: skip
