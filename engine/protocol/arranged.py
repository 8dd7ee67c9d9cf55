"""Conversations about documents, and what of their prompts is computed, moved or taken as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lariat.chat.segments import Segment, segments
from lariat.protocol.chat import ChatJob, ChatRequest, prepare
from lariat.protocol.contexts import PromptPlan, PromptSegment
from lariat.protocol.errors import bad
from lariat.protocol.served import Served
from lariat.reuse.rearrange import Document, Plan, find_document

if TYPE_CHECKING:
    from lariat.reuse.library import Chunk

DEFAULT_WAY = "repaired"
"""The way to treat documents where the request names none. The answer names it."""


@dataclass
class ArrangedJob:
    """A request whose prompt is put together from what is there.

    way        one of `lariat.reuse.kept_contexts.WAYS`
    ids        of the documents, in their order
    documents  where each stands in the prompt; None: the tokens there are others
    """

    job: ChatJob
    way: str
    ids: list[str]
    documents: list[Document | None]

    @property
    def found(self) -> list[Document]:
        """The documents that can be taken from the library."""
        return [document for document in self.documents if document is not None]


def is_arranged(request: ChatRequest) -> bool:
    """Whether a request asks for more than prefixes that are shared."""
    return bool(request.documents) or request.reuse is not None


def arrange(
    request: ChatRequest, served: Served, open_document: Callable[[str], Chunk]
) -> ArrangedJob:
    """Check a request and render its conversation, with the texts of its documents in front.

    Raises what `prepare` raises, and what `open_document` does.
    """
    if (request.n or 1) != 1:
        raise bad(
            "n is 1 for a conversation with documents or reuse, whose context is put together for"
            " one answer and kept with it: ask once for each answer",
            "n",
        )
    ids = [one.id for one in request.documents or ()]
    chunks = [open_document(id) for id in ids]
    texts = [served.llm.detokenize([int(i) for i in chunk.tokens]) for chunk in chunks]
    job = prepare(request, served, texts)
    documents = [find_document(chunk, job.prompt.ids) for chunk in chunks]
    is_raw = served.llm.settings.cache == "raw"
    way = request.reuse or (DEFAULT_WAY if ids and is_raw else "exact")
    if way != "exact" and not is_raw:
        raise bad("text that moved is reused with the raw cache only: --cache raw", "reuse")
    return ArrangedJob(job, way, ids, documents)


def described(
    arranged: ArrangedJob,
    plan: Plan,
    *,
    n_recomputed: int = 0,
    prompt_s: float | None = None,
    tokens_per_s: float = 0.0,
    with_segments: bool = False,
) -> PromptPlan:
    """The body that tells how a prompt is put together."""
    n = len(plan.ids)
    return PromptPlan(
        n_tokens=n,
        n_computed=plan.n_computed,
        n_moved=plan.n_moved,
        n_recomputed=n_recomputed,
        reuse=arranged.way,
        exact=not plan.n_moved,
        prompt_s=prompt_s,
        cold_s=n / tokens_per_s if tokens_per_s else None,
        segments=_segments(arranged, plan) if with_segments else [],
    )


def _segments(arranged: ArrangedJob, plan: Plan) -> list[PromptSegment]:
    job = arranged.job
    places = [(one.start, one.stop) if one else (0, 0) for one in arranged.documents]
    computed = [(p.start, p.stop) for p in plan.pieces if p.is_computed]
    moved = [
        (max(p.start, plan.n_exact), p.stop)
        for p in plan.pieces
        if not p.is_computed and p.stop > plan.n_exact
    ]

    def told(one: Segment) -> PromptSegment:
        is_document = one.document is not None
        return PromptSegment(
            kind="document" if is_document else "message",
            index=one.index,
            role=None if is_document else job.messages[one.index]["role"],
            id=arranged.ids[one.document] if one.document is not None else None,
            n_tokens=one.stop - one.start,
            n_computed=_common(one, computed),
            n_moved=_common(one, moved),
        )

    return [told(one) for one in segments(job.rendering, job.messages, plan.ids, places)]


def _common(one: Segment, spans: Sequence[tuple[int, int]]) -> int:
    """How many tokens of a segment lie in spans."""
    return sum(max(0, min(one.stop, stop) - max(one.start, start)) for start, stop in spans)
