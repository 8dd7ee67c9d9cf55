"""`/v1/contexts`: contexts that clients make, edit in the middle, continue and keep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lariat.protocol import completions
from lariat.protocol.completions import CompletionRequest, TextCompletion
from lariat.protocol.contexts import (
    AppendSegments,
    ContextAnswer,
    ContextList,
    ContextUsage,
    CreateContext,
    Deleted,
    EditSegment,
    MoveSegment,
    Nothing,
    Repair,
    SaveContext,
)
from lariat.protocol.errors import ApiError
from lariat.server.completions import answered
from lariat.server.endpoint import Call, Endpoint, Events
from lariat.server.generation import Generation
from lariat.server.held_contexts import HeldContext

if TYPE_CHECKING:
    from lariat.runtime.context import Context

_Edit = Callable[[HeldContext, ContextUsage], None]


def _folder(call: Call) -> Path:
    """The folder of saved contexts. ApiError with the status 404 if the server has none."""
    folder = call.service.options.context_dir
    if folder is None:
        raise ApiError(404, "the server keeps no contexts: start it with --context-dir DIR")
    return Path(folder)


async def _edited(call: Call, edit: _Edit, held: HeldContext | None = None) -> ContextAnswer:
    """Edit a context in a thread, and describe it."""
    one = held or call.service.contexts[call.path["id"]]

    def run() -> ContextAnswer:
        with one.editing() as usage:  # it sets the seconds at the end
            edit(one, usage)
            answer = one.described(usage)
        return answer

    return await call.service.in_thread(run)


async def _create(call: Call) -> ContextAnswer:
    given: CreateContext = call.body
    contexts = call.service.contexts
    path = None
    if given.saved is not None:
        path = _folder(call) / given.saved
        if not path.is_file():
            raise ApiError(404, f"there is no saved context {given.saved!r}", param="saved")
    held = contexts.new()

    def fill(one: HeldContext, usage: ContextUsage) -> None:
        if path is not None:
            one.context.load(path)
            one.restored()
            usage.reused_tokens += len(one.context)
        one.put_in(given.segments, None, usage)

    try:
        return await _edited(call, fill, held)
    except BaseException:
        contexts.give_up(held.id)
        raise


async def _all(call: Call) -> ContextList:
    return ContextList(data=[held.look() for held in call.service.contexts.all()])


async def _one(call: Call) -> ContextAnswer:
    return call.service.contexts[call.path["id"]].look()


async def _delete(call: Call) -> Deleted:
    call.service.contexts.close(call.path["id"])
    return Deleted(id=call.path["id"])


async def _append(call: Call) -> ContextAnswer:
    given: AppendSegments = call.body
    return await _edited(call, lambda one, usage: one.put_in(given.segments, given.at, usage))


async def _edit(call: Call) -> ContextAnswer:
    given: EditSegment = call.body
    return await _edited(
        call,
        lambda one, usage: one.edit(
            given.segment, given.start, given.stop, given.text, given.parse_special, usage
        ),
    )


async def _move(call: Call) -> ContextAnswer:
    given: MoveSegment = call.body
    return await _edited(call, lambda one, usage: one.move(given.segment, given.to, usage))


async def _fork(call: Call) -> ContextAnswer:
    held = call.service.contexts[call.path["id"]]
    return (await call.service.in_thread(call.service.contexts.fork, held)).look()


async def _repair(call: Call) -> ContextAnswer:
    given: Repair = call.body
    return await _edited(call, lambda one, usage: one.repair(given.share, usage))


async def _recompute(call: Call) -> ContextAnswer:
    return await _edited(call, lambda one, usage: one.recompute(usage))


async def _save(call: Call) -> ContextAnswer:
    path = _folder(call) / call.body.name
    return await _edited(call, lambda one, _: one.context.save(path))


async def _continue(call: Call) -> TextCompletion | Events:
    request: CompletionRequest = call.body
    held = call.service.contexts[call.path["id"]]
    n_before = len(held.context)
    job = await call.service.in_thread(completions.prepare, request, call.served, n_before)

    def begin() -> tuple[Context, str | list[int]]:
        context = held.begin_stream()
        return context, request.prompt if isinstance(request.prompt, str) else job.prompts[0]

    generation = Generation(call.service, job.prompts, job.params, begin, held.end_stream)
    return await answered(request, job, generation)


_PATH = "/v1/contexts/{id}"
ENDPOINTS = (
    Endpoint("GET", "/v1/contexts", _all, "Lists the contexts.", answer=ContextList),
    Endpoint(
        "POST", "/v1/contexts", _create, "Makes a context of texts, tokens and documents.",
        request=CreateContext, answer=ContextAnswer,
    ),
    Endpoint("GET", _PATH, _one, "A context and its segments.", answer=ContextAnswer),
    Endpoint("DELETE", _PATH, _delete, "Closes a context.", answer=Deleted),
    Endpoint(
        "POST", f"{_PATH}/append", _append, "Puts segments at the end, or in the middle.",
        request=AppendSegments, answer=ContextAnswer,
    ),
    Endpoint(
        "POST", f"{_PATH}/completions", _continue, "Continues a context, which keeps the text.",
        request=CompletionRequest, answer=TextCompletion, event=TextCompletion,
    ),
    Endpoint(
        "POST", f"{_PATH}/edit", _edit, "Replaces tokens in the middle; those behind stay.",
        request=EditSegment, answer=ContextAnswer,
    ),
    Endpoint(
        "POST", f"{_PATH}/move", _move, "Moves a segment; nothing is computed.",
        request=MoveSegment, answer=ContextAnswer,
    ),
    Endpoint(
        "POST", f"{_PATH}/fork", _fork, "Makes another context of the same tokens.",
        request=Nothing, answer=ContextAnswer,
    ),
    Endpoint(
        "POST", f"{_PATH}/repair", _repair, "Computes anew what recalls edits.",
        request=Repair, answer=ContextAnswer,
    ),
    Endpoint(
        "POST", f"{_PATH}/recompute", _recompute, "Computes anew all that is not exact.",
        request=Nothing, answer=ContextAnswer,
    ),
    Endpoint(
        "POST", f"{_PATH}/save", _save, "Writes a context to the server's folder.",
        request=SaveContext, answer=ContextAnswer,
    ),
)  # fmt: skip
