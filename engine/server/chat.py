"""`POST /v1/chat/completions`. Bodies are `lariat.protocol.chat`'s."""

from __future__ import annotations

from collections.abc import AsyncIterator

from lariat.protocol import chat, usage
from lariat.protocol.chat import Answer, ChatChunk, ChatCompletion, ChatJob, ChatRequest
from lariat.runtime.request import Completion
from lariat.server import sse
from lariat.server.endpoint import Call, Endpoint, Events
from lariat.server.generation import Generation
from lariat.server.service import Service


async def _chat(call: Call) -> ChatCompletion | Events:
    request: ChatRequest = call.body
    job = await call.service.in_thread(chat.prepare, request, call.served)
    answers = [Answer(job, i) for i in range(len(job.params))]
    generation = Generation(call.service, job.prompts, job.params)
    if request.stream:
        with_usage = bool(request.stream_options and request.stream_options.include_usage)
        return Events(_events(call.service, job, answers, generation, with_usage))
    async with generation:
        async for step in generation:
            if step.delta is not None:
                answers[step.number].feed(step.delta)
            else:
                answers[step.number].finish(step.completion)
    _learn(call.service, job, generation.completions)
    return chat.completion(job, answers, generation.completions)


async def _events(
    service: Service, job: ChatJob, answers: list[Answer], generation: Generation, with_usage: bool
) -> AsyncIterator[bytes]:
    for answer in answers:
        yield sse.event(chat.chunk(job, [answer.begin()]))
    async with generation:
        async for step in generation:
            answer = answers[step.number]
            if step.delta is not None:
                new = answer.feed(step.delta)
            else:
                new = answer.finish(step.completion)
            frames = [sse.event(chat.chunk(job, [part])) for part in new]
            if frames:
                yield b"".join(frames)
    _learn(service, job, generation.completions)
    if with_usage:
        yield sse.event(chat.chunk(job, [], usage.of([generation.completions])))
    yield sse.DONE


def _learn(service: Service, job: ChatJob, completions: list[Completion]) -> None:
    """Keep the tokens of answers: with them the next turn finds the answer in the cache."""
    for done in completions:
        if done.finish_reason == "stop":
            job.served.learn(job.rendering, job.prompt, done.text, done.token_ids)


ENDPOINTS = (
    Endpoint(
        "POST", "/v1/chat/completions", _chat, "Answers a conversation.",
        request=ChatRequest, answer=ChatCompletion, event=ChatChunk,
    ),
)  # fmt: skip
