"""`POST /v1/responses`. Bodies are `lariat.protocol.responses`'s."""

from __future__ import annotations

from collections.abc import AsyncIterator

from lariat.protocol import responses
from lariat.protocol.chat import Answer, ChatJob
from lariat.protocol.errors import ApiError
from lariat.protocol.responses import Event, Response, ResponseRequest, Writing
from lariat.server import sse
from lariat.server.chat import learn
from lariat.server.endpoint import Call, Endpoint, Events
from lariat.server.generation import Generation
from lariat.server.service import Service


async def _respond(call: Call) -> Response | Events:
    request: ResponseRequest = call.body
    service = call.service
    job = await service.in_thread(responses.prepare, request, call.served)
    generation = Generation(service, job.prompts, job.params)
    if request.stream:
        return Events(_events(service, request, job, generation), failure=_failure)
    answer = Answer(job, 0)
    async with generation:
        async for step in generation:
            if step.delta is not None:
                answer.feed(step.delta)
            else:
                answer.finish(step.completion)
    learn(job, generation.completions)
    return responses.answer(request, job, answer, generation.completions[0])


async def _events(
    service: Service, request: ResponseRequest, job: ChatJob, generation: Generation
) -> AsyncIterator[bytes]:
    writing, answer = Writing(request, job), Answer(job, 0)
    yield _frames(writing.begin())
    async with generation:
        async for step in generation:
            if step.delta is not None:
                new = writing.feed(answer.feed(step.delta))
            else:
                *rest, last = answer.finish(step.completion)
                new = writing.feed(rest)
                reason = last.finish_reason or "stop"
                new += writing.finish(reason, step.completion, answer.n_reasoning)
            if new:
                yield _frames(new)
    learn(job, generation.completions)


def _frames(events: list[Event]) -> bytes:
    return b"".join(sse.event(body, name) for name, body in events)


def _failure(error: ApiError) -> bytes:
    body = {"type": "error", "code": error.code, "message": error.message, "param": error.param}
    return sse.event({**body, "sequence_number": 0}, "error")


ENDPOINTS = (
    Endpoint(
        "POST", "/v1/responses", _respond, "Answers a conversation, in OpenAI's newer form.",
        request=ResponseRequest, answer=Response, event=Response,
    ),
)  # fmt: skip
