"""Rows become requests for the engine, and when these are done lines of the output.

Nothing in a line depends on the clock, on chance, or on other rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
from lariat.jobs import rows
from lariat.jobs.rows import Row
from lariat.protocol import bodies, chat, completions, embeddings, errors
from lariat.protocol.chat import Answer, ChatJob, ChatRequest
from lariat.protocol.completions import CompletionJob, CompletionRequest, Continuation
from lariat.protocol.embeddings import EmbeddingJob, EmbeddingRequest
from lariat.protocol.errors import ApiError

if TYPE_CHECKING:
    from lariat.chat.rendering import Prompt, Rendering
    from lariat.config import SamplingParams
    from lariat.protocol.served import Served
    from lariat.runtime.request import Completion, Delta

_AT_ONCE = 32  # conversations that one process of the template renders

Job = ChatJob | CompletionJob | EmbeddingJob


@dataclass
class Written:
    """One text of a row: what came in each step, and all of it."""

    completion: Completion
    deltas: list[Delta] = field(default_factory=list)


@dataclass
class Work:
    """A row that can be computed."""

    row: Row
    job: Job

    @property
    def prompts(self) -> list[list[int]]:
        """Token ids, one list for each text or vector."""
        return self.job.prompts

    @property
    def params(self) -> list[SamplingParams]:
        """Of each text; none for vectors."""
        return [] if isinstance(self.job, EmbeddingJob) else self.job.params


class Answers:
    """Makes work of rows, and lines of what is done.

    served      the model
    seed        seeds of rows follow from it and their ids
    max_tokens  of plain rows that say nothing
    settings    all that changes results, as JSON; ids of answers follow from it too
    """

    def __init__(self, served: Served, seed: int, max_tokens: int, settings: bytes) -> None:
        self.served, self._seed, self._max_tokens = served, seed, max_tokens
        self._settings = hashlib.blake2b(settings, digest_size=16).digest()

    def id_of(self, row: Row) -> str:
        """32 hexadecimal digits: a hash of the settings, its custom_id, and all that it asks."""
        data = self._settings + row.digest + row.key.encode("utf-8", "replace")
        return hashlib.blake2b(data, digest_size=16).hexdigest()

    def works(self, window: Sequence[Row]) -> list[Work | tuple[Row, ApiError]]:
        """The work of each row, or its error. Prompts of conversations are rendered together."""
        asked = [self._request(row) for row in window]
        prompts = self._prompts([one if isinstance(one, ChatRequest) else None for one in asked])
        works: list[Work | tuple[Row, ApiError]] = []
        for row, request, prompt in zip(window, asked, prompts, strict=True):
            if isinstance(request, ApiError):
                works.append((row, request))
                continue
            try:
                works.append(Work(row, self._job(row, request, prompt)))
            except Exception as error:
                works.append((row, self._known(error)))
        return works

    def line(self, work: Work, written: Sequence[Written]) -> bytes:
        """The line of a row whose texts are done."""
        job, row = work.job, work.row
        done = [one.completion for one in written]
        if isinstance(job, ChatJob):
            answers = [Answer(job, i) for i in range(len(written))]
            for answer, one in zip(answers, written, strict=True):
                for delta in one.deltas:
                    answer.feed(delta)
                answer.finish(one.completion)
            body = msgspec.to_builtins(chat.completion(job, answers, done))
        else:
            assert isinstance(job, CompletionJob)
            texts = [Continuation(job, i) for i in range(len(written))]
            for text, one in zip(texts, written, strict=True):
                text.begin()
                for delta in one.deltas:
                    text.feed(delta, one.completion)
                text.finish(one.completion)
            used = completions.used(job, done)
            whole = completions.completion(job, [text.whole() for text in texts], used)
            body = msgspec.to_builtins(whole)
        # A row has no part in what the cache held, what other rows computed, and who guessed right.
        del body["usage"]["prompt_tokens_details"]
        for name in ("accepted_prediction_tokens", "rejected_prediction_tokens"):
            del body["usage"]["completion_tokens_details"][name]
        return self._plain(row, body) if row.is_plain else self._response(row, 200, body)

    def vectors(self, work: Work) -> bytes:
        """The line of a row that asks for vectors, which are computed here."""
        job = work.job
        assert isinstance(job, EmbeddingJob)
        found = [
            self.served.llm.embed(ids, job.pooling, normalize=job.normalize) for ids in job.prompts
        ]
        return self._response(work.row, 200, msgspec.to_builtins(embeddings.answer(job, found)))

    def refusal(self, row: Row, error: ApiError) -> bytes:
        """The line of a row that failed."""
        told = msgspec.to_builtins(errors.body(error))
        if row.is_plain:
            return bodies.encode({"custom_id": row.custom_id, **told})
        if row.url:
            return self._response(row, error.status, told)
        line = {"id": f"batch_req_{self.id_of(row)}", "custom_id": row.custom_id}
        detail = {"code": error.code or "invalid_request", "message": error.message}
        return bodies.encode({**line, "response": None, "error": detail})

    # ---- from rows to jobs ----

    def _request(self, row: Row) -> ChatRequest | CompletionRequest | EmbeddingRequest | ApiError:
        try:
            if row.error is not None:
                raise row.error
            body = dict(row.body)
            if row.url == rows.EMBEDDINGS:
                return _converted(body, EmbeddingRequest)
            if body.get("seed") in (None, -1):
                body["seed"] = rows.seed(row.key, self._seed)
            if row.url == rows.TEXT:
                if row.is_plain:
                    body.setdefault("max_tokens", self._max_tokens)
                return _converted(body, CompletionRequest)
            if row.is_plain and "max_completion_tokens" not in body:
                body.setdefault("max_tokens", self._max_tokens)
            return _converted(body, ChatRequest)
        except ApiError as error:
            return error

    def _job(
        self,
        row: Row,
        request: ChatRequest | CompletionRequest | EmbeddingRequest,
        prompt: Prompt | None,
    ) -> Job:
        if isinstance(request, EmbeddingRequest):
            return embeddings.prepare(request, self.served)
        if isinstance(request, CompletionRequest):
            text = completions.prepare(request, self.served)
            text.id, text.created = f"cmpl-{self.id_of(row)}", 0
            return text
        if request.documents or request.reuse is not None:
            raise errors.bad("a batch takes no documents and no reuse")
        job = chat.prepare(request, self.served, prompt=prompt)
        job.id, job.created = f"chatcmpl-{self.id_of(row)}", 0
        return job

    def _prompts(self, requests: Sequence[ChatRequest | None]) -> list[Prompt | None]:
        """The prompts of conversations; None for what has an error or is none."""
        prompts: list[Prompt | None] = [None] * len(requests)
        groups: dict[int, tuple[Rendering, list[tuple[int, list[dict[str, Any]]]]]] = {}
        for i, request in enumerate(requests):
            if request is None:
                continue
            try:
                messages, rendering = chat.conversation(request, self.served)
            except Exception:
                continue  # `prepare` finds it again, and says it
            groups.setdefault(id(rendering), (rendering, []))[1].append((i, messages))
        for rendering, members in groups.values():
            for start in range(0, len(members), _AT_ONCE):
                some = members[start : start + _AT_ONCE]
                try:
                    found = rendering.prompts([messages for _, messages in some])
                except Exception:
                    continue  # one of them; `prepare` renders each alone
                for (i, _), prompt in zip(some, found, strict=True):
                    prompts[i] = prompt
        return prompts

    def _known(self, error: Exception) -> ApiError:
        """The error as the row tells it. One that is nobody's intention is raised."""
        told = errors.of(error)
        if told.status == 500:
            raise error
        return told

    # ---- lines ----

    def _response(self, row: Row, status: int, body: dict[str, Any]) -> bytes:
        id = self.id_of(row)
        response = {"status_code": status, "request_id": f"req_{id}", "body": body}
        line = {"id": f"batch_req_{id}", "custom_id": row.custom_id}
        return bodies.encode({**line, "response": response, "error": None})

    def _plain(self, row: Row, body: dict[str, Any]) -> bytes:
        (choice,) = body["choices"]
        name = "text" if row.url == rows.TEXT else "message"
        line = {
            "custom_id": row.custom_id, name: choice[name],
            "finish_reason": choice["finish_reason"], "usage": body["usage"],
        }  # fmt: skip
        if choice.get("logprobs") is not None:
            line["logprobs"] = choice["logprobs"]
        return bodies.encode({**line, "error": None})


def _converted(body: dict[str, Any], type: type[Any]) -> Any:
    try:
        return msgspec.convert(body, type)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise errors.of_decoding(error) from None


def n_expected(work: Work, n_ctx: int, unlimited: int) -> int:
    """Positions of the cache that a row may need; `unlimited` tokens where it sets no limit."""
    limits: Iterable[int] = [one.max_tokens for one in work.params] or [0] * len(work.prompts)
    total = 0
    for ids, limit in zip(work.prompts, limits, strict=True):
        total += min(n_ctx, len(ids) + (limit if limit >= 0 else unlimited))
    return total
