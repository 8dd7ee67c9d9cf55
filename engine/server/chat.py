"""`POST /v1/chat/completions`. Bodies are `lariat.protocol.chat`'s."""

from __future__ import annotations

from collections.abc import AsyncIterator

from lariat.protocol import arranged, chat
from lariat.protocol.chat import Answer, ChatChunk, ChatCompletion, ChatJob, ChatRequest
from lariat.protocol.contexts import PromptPlan
from lariat.runtime.request import Completion
from lariat.server import sse
from lariat.server.arranged import ArrangedPrompt
from lariat.server.endpoint import Call, Endpoint, Events
from lariat.server.generation import Generation
from lariat.server.service import Service


async def _chat(call: Call) -> ChatCompletion | Events:
    request: ChatRequest = call.body
    service = call.service
    prompt = None
    if arranged.is_arranged(request):
        arranging = await service.in_thread(
            arranged.arrange, request, call.served, service.open_document
        )
        job, prompt = arranging.job, ArrangedPrompt(service, arranging)
    else:
        job = await service.in_thread(chat.prepare, request, call.served)
    answers = [Answer(job, i) for i in range(len(job.params))]
    generation = Generation(service, job.prompts, job.params, prompt.begin if prompt else None)
    if request.stream:
        return Events(_events(service, request, job, answers, generation, prompt))
    try:
        async with generation:
            async for step in generation:
                if step.delta is not None:
                    answers[step.number].feed(step.delta)
                else:
                    answers[step.number].finish(step.completion)
        plan = await _end(service, request, job, generation.completions, prompt)
    finally:
        if prompt is not None:
            prompt.close()
    return chat.completion(job, answers, generation.completions, plan)


async def _events(
    service: Service,
    request: ChatRequest,
    job: ChatJob,
    answers: list[Answer],
    generation: Generation,
    prompt: ArrangedPrompt | None,
) -> AsyncIterator[bytes]:
    try:
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
        plan = await _end(service, request, job, generation.completions, prompt)
    finally:
        if prompt is not None:
            prompt.close()
    if request.stream_options and request.stream_options.include_usage:
        used = chat.used(answers, generation.completions)
        yield sse.event(chat.chunk(job, [], used, plan))
    yield sse.DONE


async def _end(
    service: Service,
    request: ChatRequest,
    job: ChatJob,
    completions: list[Completion],
    prompt: ArrangedPrompt | None,
) -> PromptPlan | None:
    """Keep what later prompts can begin from; returns how this one was put together."""
    learn(job, completions)
    if prompt is None:
        return None
    await service.in_thread(prompt.finish, completions[0], request.keep_context is not False)
    return await service.in_thread(prompt.told, bool(request.return_segments))


def learn(job: ChatJob, completions: list[Completion]) -> None:
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
