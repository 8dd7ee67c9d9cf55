"""The form in which a chat template takes messages.

Templates differ: some take the content of a message as text, others as a list of parts; some refuse
the role system, or leave it out without a word. A template is a program, so trying tells more than
reading: it renders small conversations, and what is said in them has to come out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NoReturn

from lariat.chat.chat_template import ChatTemplate, Message
from lariat.chat.thoughts import MARKS, Marks, opened, split
from lariat.errors import ChatError

_TEXT, _PARTS = False, True  # the forms of content

# Texts of the roles in the conversations that are tried.
_SAID = {
    "system": "probe-system",
    "developer": "probe-developer",
    "user": "probe-user",
    "assistant": "probe-answer",
    "tool": "probe-result",
}
_THOUGHT = "probe-thought"
_CALL = {"name": "probe", "arguments": {"name": "value"}}
_CALLS = [{"id": "123456789", "type": "function", "function": _CALL}]

# Fields of messages in which templates look for thoughts, the usual one first.
_THOUGHT_FIELDS = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True)
class Forms:
    """The form in which a template takes messages.

    parts          roles whose content is a list of parts instead of a text
    missing        roles whose messages the template refuses, or leaves out
    thought_field  field of a message for its thought, None if there is none
    drops_thoughts whether answers come without their thoughts; else they stay in the content where
                   there is no field
    begun          marks of the thought that each prompt begins, None if it begins none
    turns          the texts of the conversations that were tried, without tools and thoughts
    others         the texts of the other ones
    """

    parts: frozenset[str]
    missing: frozenset[str]
    thought_field: str | None
    drops_thoughts: bool
    begun: Marks | None
    turns: str
    others: str

    def apply(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """The messages in this form; other messages, in fields that are not named here, are kept.

        A developer's message becomes one of the system if the template does not know developers. A
        system prompt that the template does not take becomes the beginning of the next message of
        the user. Raises `ChatError` for results of tools if the template leaves them out.
        """
        return [self._formed(message) for message in self._of_known_roles(messages)]

    def _of_known_roles(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        formed: list[dict[str, Any]] = []
        waiting: list[str] = []  # instructions for the next message of the user
        for given in messages:
            message = dict(given)
            if message["role"] == "developer" and "developer" in self.missing:
                message["role"] = "system"
            role, content = message["role"], message["content"]
            if role == "tool" and role in self.missing:
                raise ChatError("the chat template leaves out messages of the role tool")
            if role == "system":
                is_first = all(m["role"] == "system" for m in formed)
                if role in self.missing or not is_first:
                    waiting.append(content)
                    continue
                if formed:  # templates take one system prompt
                    formed[0]["content"] += "\n\n" + content
                    continue
            elif role == "user" and waiting:
                message["content"] = "\n\n".join((*waiting, content))
                waiting = []
            formed.append(message)
        if waiting:
            formed.append({"role": "user", "content": "\n\n".join(waiting)})
        return formed

    def _formed(self, message: dict[str, Any]) -> dict[str, Any]:
        role, content = message["role"], message["content"]
        if not isinstance(content, str):
            return message
        if role == "assistant" and self.thought_field and self.thought_field not in message:
            thought, answer = split(content, self.begun)
            if thought is not None:
                message |= {"content": answer, self.thought_field: thought}
        elif role == "assistant" and self.drops_thoughts:
            message["content"] = split(content, self.begun)[1]
        if role in self.parts:
            message["content"] = _as_parts(message["content"])
        return message


def find(template: ChatTemplate) -> Forms:
    """The form that a template takes. Raises `ChatError` if it writes no message in any form."""
    marks = _marks(template.source)
    field = _thought_field(template.source)
    tried = dict(_conversations(marks, field))
    answers = dict(zip(tried, template.render_all(list(tried.values())), strict=True))

    def comes_out(role: str, *form: bool) -> bool:
        text = answers[(role, *form)]
        return isinstance(text, str) and _SAID[role] in text

    def fails(role: str, *form: bool) -> bool:
        return not isinstance(answers[(role, *form)], str)

    # Some templates have no conversation without a system prompt.
    user = next((form for form in (_TEXT, _PARTS) if comes_out("user", form)), None)
    if user is None:
        user = next(
            (
                form
                for form, system in product((_TEXT, _PARTS), repeat=2)
                if _has(answers[("system", form, system)], "user")
            ),
            None,
        )
    if user is None:
        _refuse(answers[("user", _TEXT)])
    parts, missing = {"user"} if user else set(), set()
    for role in ("assistant", "system", "developer", "tool"):
        form = next((form for form in (_TEXT, _PARTS) if comes_out(role, user, form)), None)
        if form is None and (role == "assistant" or (role == "tool" and fails(role, user, _TEXT))):
            form = _TEXT  # it may want another conversation
        if form is None:
            missing.add(role)
        elif form:
            parts.add(role)
    in_content = answers[("thought", user)]
    cuts_thoughts = isinstance(in_content, str) and _THOUGHT not in in_content
    texts = {key: text for key, text in answers.items() if isinstance(text, str)}
    is_turn = {key: key[0] not in ("tool", "thought") for key in texts}
    return Forms(
        parts=frozenset(parts),
        missing=frozenset(missing),
        thought_field=None if cuts_thoughts else field,
        drops_thoughts=template.drops_thoughts,
        begun=opened(next(iter(texts.values()), "")),
        turns="".join(text for key, text in texts.items() if is_turn[key]),
        others="".join(text for key, text in texts.items() if not is_turn[key]),
    )


def _conversations(
    marks: Marks, field: str | None
) -> Iterator[tuple[tuple[Any, ...], list[dict[str, Any]]]]:
    """Conversations to try, by the role that they are about and the forms of content."""
    for form in (_TEXT, _PARTS):
        user = _message("user", form)
        yield ("user", form), [user]
        thought = {"role": "assistant", "content": f"{marks.open}{_THOUGHT}{marks.close}answer"}
        yield ("thought", form), [user, thought, user]
        for other in (_TEXT, _PARTS):
            for role in ("system", "developer"):
                yield (role, form, other), [_message(role, other), user]
            yield ("assistant", form, other), [user, _message("assistant", other), user]
            result = _message("tool", other) | {"name": "probe", "tool_call_id": "123456789"}
            call = {"role": "assistant", "content": "", "tool_calls": _CALLS}
            yield ("tool", form, other), [user, call, result]


def _message(role: str, form: bool) -> dict[str, Any]:
    said = _SAID[role]
    return {"role": role, "content": _as_parts(said) if form else said}


def _as_parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _has(text: str | ChatError, role: str) -> bool:
    return isinstance(text, str) and _SAID[role] in text


def _refuse(answer: str | ChatError) -> NoReturn:
    """Raise the error of a template that writes no message."""
    if isinstance(answer, ChatError):
        raise answer
    if not answer:
        raise ChatError("the chat template writes nothing")
    raise ChatError(
        "the chat template leaves out what is said, given as text and as a list of parts"
    )


def _marks(source: str) -> Marks:
    """The marks of thoughts that a template mentions."""
    return next((marks for marks in MARKS if marks.close in source), MARKS[0])


def _thought_field(source: str) -> str | None:
    """The field in which a template looks for the thought of a message."""
    for field in _THOUGHT_FIELDS:
        if re.search(rf"""(?:\.|\[['"]|get\(['"]){field}\b(?!\()""", source):
            return field
    return None
