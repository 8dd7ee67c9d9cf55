"""`POST /v1/messages` and `/v1/messages/count_tokens`. Bodies are `lariat.protocol.messages`'s."""

from __future__ import annotations

from collections.abc import AsyncIterator

from lariat.protocol import errors, messages
from lariat.protocol.chat import Answer, ChatJob
from lariat.protocol.errors import ApiError
from lariat.protocol.messages import (
    CountAnswer,
    CountRequest,
    Event,
    MessagesAnswer,
    MessagesRequest,
)
from lariat.server import sse
from lariat.server.chat import learn
from lariat.server.endpoint import Call, Endpoint, Events
from lariat.server.generation import Generation
from lariat.server.service import Service

_PING = sse.event({"type": "ping"}, "ping")


async def _messages(call: Call) -> MessagesAnswer | Events:
    request: MessagesRequest = call.body
    service = call.service
    job = await service.in_thread(messages.prepare, request, call.served)
    generation = Generation(service, job.prompts, job.params)
    if request.stream:
        return Events(_events(service, job, generation), _PING, _failure)
    answer = Answer(job, 0)
    async with generation:
        async for step in generation:
            if step.delta is not None:
                answer.feed(step.delta)
            else:
                answer.finish(step.completion)
    learn(job, generation.completions)
    return messages.answer(job, answer, generation.completions[0])


async def _events(service: Service, job: ChatJob, generation: Generation) -> AsyncIterator[bytes]:
    events, answer = messages.Events(job), Answer(job, 0)
    yield _frames(events.begin())
    async with generation:
        async for step in generation:
            if step.delta is not None:
                new = events.feed(answer.feed(step.delta))
            else:
                *rest, last = answer.finish(step.completion)
                new = events.feed(rest)
                new += events.finish(last.finish_reason or "stop", step.completion)
            if new:
                yield _frames(new)
    learn(job, generation.completions)


def _frames(events: list[Event]) -> bytes:
    return b"".join(sse.event({"type": name, **body}, name) for name, body in events)


def _failure(error: ApiError) -> bytes:
    return sse.event(errors.anthropic_body(error), "error")


async def _count(call: Call) -> CountAnswer:
    return await call.service.in_thread(messages.count, call.body, call.served)


ENDPOINTS = (
    Endpoint(
        "POST", "/v1/messages", _messages, "Answers a conversation, as Anthropic does.",
        request=MessagesRequest, answer=MessagesAnswer, event=MessagesAnswer,
        error=errors.anthropic_body, error_type=errors.AnthropicErrorBody,
    ),
    Endpoint(
        "POST", "/v1/messages/count_tokens", _count, "Counts the tokens of a conversation.",
        request=CountRequest, answer=CountAnswer,
        error=errors.anthropic_body, error_type=errors.AnthropicErrorBody,
    ),
)  # fmt: skip
