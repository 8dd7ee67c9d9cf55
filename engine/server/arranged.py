"""Answers to conversations whose prompts are put together from documents and earlier contexts."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from lariat.protocol import arranged
from lariat.protocol.arranged import ArrangedJob
from lariat.protocol.chat import ChatRequest
from lariat.protocol.contexts import PromptPlan
from lariat.reuse.kept_contexts import Prepared
from lariat.server.endpoint import Call, Endpoint

if TYPE_CHECKING:
    from lariat.runtime.context import Context
    from lariat.runtime.request import Completion
    from lariat.server.service import Service


class ArrangedPrompt:
    """The prompt of a conversation, put together once the stream may run.

    Close it when the stream is over, or let `keep` take its context over for later prompts.
    """

    def __init__(self, service: Service, job: ArrangedJob) -> None:
        self._service, self._job = service, job
        self._prepared: Prepared | None = None
        self._seconds = 0.0

    def begin(self) -> tuple[Context, list[int]]:
        """Put it together; returns the context and the tokens to compute behind it."""
        start = time.perf_counter()
        kept = self._service.kept
        assert kept is not None
        job = self._job
        self._prepared = kept.prepare(job.job.prompt.ids, job.found, job.way)
        kept.make_room(len(self._prepared.rest))
        self._seconds = time.perf_counter() - start
        return self._prepared.context, self._prepared.rest

    def finish(self, done: Completion, keep: bool) -> None:
        """Count what was computed and reused before the stream, and keep the context or not."""
        prepared = self._prepared
        if prepared is None:
            return
        plan, timings = prepared.plan, done.timings
        done.prompt_ids = list(plan.ids)
        timings.n_prompt = plan.n_computed + timings.n_recomputed + prepared.n_recomputed
        timings.n_recomputed += prepared.n_recomputed
        timings.n_reused = len(plan.ids) - plan.n_computed
        timings.n_moved = plan.n_moved
        timings.prompt_s += self._seconds
        self._plan, self._done = plan, done
        if keep and self._service.kept is not None:
            self._service.kept.keep(prepared)
            self._prepared = None
        else:
            self.close()

    def close(self) -> None:
        """Give up a context that nobody has kept."""
        if self._prepared is not None:
            self._prepared.context.close()
            self._prepared = None

    def told(self, with_segments: bool) -> PromptPlan:
        """The body that tells how the prompt was put together, once it is finished."""
        timings = self._done.timings
        return arranged.described(
            self._job,
            self._plan,
            n_recomputed=timings.n_recomputed,
            prompt_s=timings.prompt_s,
            tokens_per_s=self._service.prompt_speed.tokens_per_s,
            with_segments=with_segments,
        )


async def _plan(call: Call) -> PromptPlan:
    request: ChatRequest = call.body
    service = call.service

    def plan() -> PromptPlan:
        job = arranged.arrange(request, call.served, service.open_document)
        assert service.kept is not None
        found = service.kept.plan(job.job.prompt.ids, job.found, job.way)
        return arranged.described(
            job, found, tokens_per_s=service.prompt_speed.tokens_per_s, with_segments=True
        )

    return await service.in_thread(plan)


ENDPOINTS = (
    Endpoint(
        "POST", "/v1/chat/plan", _plan, "Says what an answer would compute, and computes nothing.",
        request=ChatRequest, answer=PromptPlan,
    ),
)  # fmt: skip
