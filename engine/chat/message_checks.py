"""Messages that a program or a file hands over: whether each is one, and all are a conversation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from lariat.chat.chat_template import copied
from lariat.errors import ChatError, quote

ROLES = ("user", "assistant", "tool", "developer")

# Which roles may follow a role in a whole conversation; "" is its beginning.
_NEXT = {
    "": ("user", "developer"),
    "developer": ("user", "developer", "assistant"),
    "user": ("assistant", "developer"),
    "assistant": ("user", "developer", "tool"),
    "tool": ("tool", "assistant", "developer"),
}


def checked(
    given: str | Mapping[str, Any] | Sequence[Mapping[str, Any]], roles: Sequence[str] = ROLES
) -> list[dict[str, Any]]:
    """The messages as dictionaries of JSON, copies; a text is one of the user.

    The content of a message is a text. A list of parts {"type": "text", "text": ...} becomes one;
    with "tool_calls" there may be none. Their arguments are dictionaries; JSON becomes one. Raises
    `ChatError` for anything else.
    """
    if isinstance(given, str):
        given = {"role": "user", "content": given}
    if isinstance(given, Mapping):
        given = [given]
    if not isinstance(given, Sequence) or not all(isinstance(m, Mapping) for m in given):
        raise ChatError("a message is a text, or a dictionary with role and content")
    return [
        _with_arguments(_checked(cast(dict[str, Any], copied(message, "a message")), roles), number)
        for number, message in enumerate(given, 1)
    ]


def conversation(given: Any) -> list[dict[str, Any]]:
    """The messages of a whole conversation, in which each turn ends with an answer.

    There may be a system prompt in front. Raises `ChatError` for anything else.
    """
    if not isinstance(given, list):
        raise ChatError("a conversation is a list of messages")
    n_system = int(bool(given) and isinstance(given[0], dict) and given[0].get("role") == "system")
    messages = checked(given[n_system:])
    before = ""
    for message in messages:
        if message["role"] not in _NEXT[before]:
            raise ChatError(f"{message['role']} cannot follow {before or 'the beginning'}")
        before = message["role"]
    if before not in ("", "assistant"):
        raise ChatError("the last message has no answer")
    return checked(given[:n_system], ("system",)) + messages


def _checked(message: dict[str, Any], roles: Sequence[str]) -> dict[str, Any]:
    role, content = message.get("role"), message.get("content")
    if role not in roles:
        raise ChatError(f"{quote(str(role))} is no role of a message, only {', '.join(roles)} are")
    if isinstance(content, list):
        if not all(
            isinstance(part, dict)
            and part.get("type") == "text"
            and isinstance(part.get("text"), str)
            for part in content
        ):
            raise ChatError("a part of a message is no text; this engine reads nothing else")
        content = "".join(part["text"] for part in content)
    calls = message.get("tool_calls")
    if not isinstance(content, str) and not (content is None and role == "assistant" and calls):
        raise ChatError(f"a message of the role {role} has no text as its content")
    if calls is not None and not (
        isinstance(calls, list) and all(isinstance(call, dict) for call in calls)
    ):
        raise ChatError("tool_calls are a list of dictionaries")
    for text in (content, str(role)):
        _check_unicode(text or "")
    return {**message, "role": role, "content": content}


def _with_arguments(message: dict[str, Any], number: int) -> dict[str, Any]:
    """The message with arguments of calls as dictionaries: clients keep them as JSON.

    Raises `ChatError`, which names the message, for arguments that are none.
    """
    for call in message.get("tool_calls") or ():
        function = call.get("function", call)
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            try:
                given = json.loads(function["arguments"])
            except (ValueError, RecursionError):
                given = None
            if not isinstance(given, dict):
                raise ChatError(
                    f"message {number}: the arguments of a call are no JSON object: "
                    f"{quote(function['arguments'])}"
                )
            function["arguments"] = given
    return message


def _check_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ChatError("a message is not valid Unicode: it has a lone surrogate") from None
