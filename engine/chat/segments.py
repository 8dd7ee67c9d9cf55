"""The parts of a prompt that a conversation and its documents become: which tokens are whose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lariat.chat.rendering import Message, Rendering
from lariat.errors import ChatError
from lariat.reuse.prompt_reuse import common_prefix

_BETWEEN = "\n\n"  # documents, and a document and the message


@dataclass(frozen=True)
class Segment:
    """Tokens `start` to before `stop` of a prompt: a message's, with its part of the template, or a
    document's.

    index     of the message; a document belongs to the message that it stands in
    document  its number; None: the tokens are the message's own
    """

    start: int
    stop: int
    index: int
    document: int | None = None


def with_documents(messages: Sequence[Message], texts: Sequence[str]) -> list[Message]:
    """A conversation with documents in front of what the user says first.

    They stand there for the whole conversation, so that its beginning stays the same. ChatError if
    the user says nothing.
    """
    if not texts:
        return list(messages)
    first = next((i for i, m in enumerate(messages) if m["role"] == "user"), None)
    if first is None:
        raise ChatError("documents stand in front of a message of the user, and there is none")
    found = list(messages)
    content = _BETWEEN.join([*texts, found[first]["content"]])
    found[first] = found[first] | {"content": content}
    return found


def segments(
    rendering: Rendering,
    messages: Sequence[Message],
    ids: Sequence[int],
    documents: Sequence[tuple[int, int]] = (),
) -> list[Segment]:
    """The parts of a prompt, in order; together they are all of it.

    ids        tokens of the prompt that `rendering` makes of the messages
    documents  (start, stop) of each in `ids`

    A message ends where the prompt of the messages up to it ends. Where a template refuses such a
    beginning of a conversation, its messages are one part, which counts as the first of them.
    """
    ends: list[int] = []
    for n in range(1, len(messages)):
        try:
            ends.append(common_prefix(rendering.prompt(list(messages[:n])).ids, ids))
        except ChatError:
            ends.append(-1)
    ends.append(len(ids))
    found: list[Segment] = []
    start, first = 0, 0
    for index, end in enumerate(ends):
        if end <= start:
            continue
        at = start
        for number, (begin, stop) in sorted(enumerate(documents), key=lambda one: one[1]):
            if start <= begin < end:
                found.append(Segment(at, begin, first))
                found.append(Segment(begin, stop, first, number))
                at = stop
        found.append(Segment(at, max(at, end), first))
        start, first = max(at, end), index + 1
    return [segment for segment in found if segment.start < segment.stop]
