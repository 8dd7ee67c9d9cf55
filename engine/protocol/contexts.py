"""Bodies for contexts that clients edit, and for documents that they keep.

Both are Lariat's own: OpenAI's interface has nothing of the kind.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
FileName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")]
"""The name of a file in a folder: it cannot lead out of it."""


class TextSegment(
    msgspec.Struct, kw_only=True, tag_field="type", tag="text", forbid_unknown_fields=True
):
    """A text to put into a context. `label` is the client's own name for it."""

    text: Annotated[str, msgspec.Meta(min_length=1)]
    label: str | None = None
    parse_special: bool = False


class TokenSegment(
    msgspec.Struct, kw_only=True, tag_field="type", tag="tokens", forbid_unknown_fields=True
):
    """Token ids to put into a context."""

    token_ids: Annotated[list[int], msgspec.Meta(min_length=1)]
    label: str | None = None


class DocumentSegment(
    msgspec.Struct, kw_only=True, tag_field="type", tag="document", forbid_unknown_fields=True
):
    """A document to put into a context, by reference.

    recompute: as for `Context.insert`; "auto" computes what the text behind it asks about.
    """

    id: Name
    recompute: Literal["auto", "none", "all"] | Annotated[int, msgspec.Meta(ge=0)] = "auto"
    label: str | None = None


SegmentInput = TextSegment | TokenSegment | DocumentSegment


class CreateContext(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A new context, of these segments or of a file that was saved."""

    segments: list[SegmentInput] = []
    saved: FileName | None = None


class AppendSegments(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Segments to put behind all others, or before that with the number `at`."""

    segments: Annotated[list[SegmentInput], msgspec.Meta(min_length=1)]
    at: Annotated[int, msgspec.Meta(ge=0)] | None = None


class EditSegment(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Another text for a segment, or for its tokens from `start` to before `stop`; "" for none."""

    segment: Name
    text: str
    start: Annotated[int, msgspec.Meta(ge=0)] | None = None
    stop: Annotated[int, msgspec.Meta(ge=0)] | None = None
    parse_special: bool = False


class MoveSegment(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Another place for a segment: its number from then on."""

    segment: Name
    to: Annotated[int, msgspec.Meta(ge=0)]


class Repair(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Compute anew what recalls edits; at most this share of the tokens behind them."""

    share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.1


class SaveContext(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The name of a file in the server's folder for contexts."""

    name: FileName


class Nothing(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """An empty object."""


class SegmentAnswer(msgspec.Struct, kw_only=True):
    """A part of a context: tokens `start` to before `stop`."""

    id: str
    type: str
    label: str | None
    start: int
    stop: int


class ContextUsage(msgspec.Struct, kw_only=True):
    """Tokens of an edit: computed, taken as they were, moved to other places, computed anew."""

    computed_tokens: int = 0
    reused_tokens: int = 0
    moved_tokens: int = 0
    recomputed_tokens: int = 0
    seconds: float = 0.0


class ContextAnswer(msgspec.Struct, kw_only=True):
    """A context.

    exact_tokens: first tokens that are what computing the whole context anew would give; `exact`:
    whether that is all of them.
    """

    id: str
    object: Literal["context"] = "context"
    n_tokens: int
    exact: bool
    exact_tokens: int
    segments: list[SegmentAnswer]
    usage: ContextUsage = msgspec.field(default_factory=ContextUsage)


class ContextList(msgspec.Struct, kw_only=True):
    """All contexts that the server holds."""

    object: Literal["list"] = "list"
    data: list[ContextAnswer]


class Deleted(msgspec.Struct, kw_only=True):
    """It is gone."""

    id: str
    deleted: bool = True


class KeepDocument(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A document to compute once and keep. One of the same id is replaced."""

    id: Name
    text: Annotated[str, msgspec.Meta(min_length=1)]


class DocumentAnswer(msgspec.Struct, kw_only=True):
    """A document that is kept. `text` comes with a single one."""

    id: str
    object: Literal["document"] = "document"
    n_tokens: int
    n_bytes: int
    text: str | None = None


class DocumentList(msgspec.Struct, kw_only=True):
    """All documents."""

    object: Literal["list"] = "list"
    data: list[DocumentAnswer]


class DocumentReference(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A document that a conversation is about."""

    id: Name


class PromptSegment(msgspec.Struct, kw_only=True):
    """A part of a conversation's prompt: a message with its part of the template, or a document.

    index: of the message. Of the tokens, `n_computed` are computed, and `n_moved` reused behind
    other text than they were computed behind.
    """

    kind: Literal["message", "document"]
    index: int
    role: str | None = None
    id: str | None = None
    n_tokens: int
    n_computed: int
    n_moved: int


class PromptPlan(msgspec.Struct, kw_only=True):
    """How a conversation's prompt is put together, and what it costs.

    exact      whether the answer is what it would be if all tokens were computed
    prompt_s   seconds that reading the prompt took, once it was read
    cold_s     seconds that computing all of it would take, by the speed of earlier prompts
    """

    n_tokens: int
    n_computed: int
    n_moved: int
    n_recomputed: int = 0
    reuse: str
    exact: bool
    prompt_s: float | None = None
    cold_s: float | None = None
    segments: list[PromptSegment] = []
