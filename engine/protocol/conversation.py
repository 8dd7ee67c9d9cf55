"""Messages and tools of a chat, as OpenAI's clients send them, and as templates take them."""

from __future__ import annotations

import json
from typing import Any, Literal

import msgspec
from lariat.chat.message_checks import ROLES, checked
from lariat.errors import ChatError
from lariat.protocol import errors

MAX_TOOLS = 256


class CacheControl(msgspec.Struct, kw_only=True):
    """Without effect: prompts are cached anyway."""

    type: str = "ephemeral"
    ttl: str | None = None


class TextPart(
    msgspec.Struct, kw_only=True, tag_field="type", tag="text", forbid_unknown_fields=True
):
    """A text of a message."""

    text: str
    cache_control: CacheControl | None = None


class RefusalPart(
    msgspec.Struct, kw_only=True, tag_field="type", tag="refusal", forbid_unknown_fields=True
):
    """A refusal of another model, which counts as what it said."""

    refusal: str


class CalledFunction(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A function with arguments, an object as JSON."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A call of a function in an answer."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None  # without effect: clients keep it from a stream


class Message(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A message of a conversation. Fields behind `reasoning` are without effect."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart | RefusalPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None
    cache_control: CacheControl | None = None


class Function(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A function that the model may call. `parameters` is a JSON schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A tool: a function."""

    type: Literal["function"] = "function"
    function: Function
    cache_control: CacheControl | None = None


class NamedFunction(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The name of a function."""

    name: str


class NamedTool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The one tool that has to be called."""

    type: Literal["function"] = "function"
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedTool


def for_template(messages: list[Message], thought_field: str | None) -> list[dict[str, Any]]:
    """The messages as `lariat.chat` takes them.

    thought_field: where the template looks for thoughts of earlier answers, if it does. ApiError
    with the status 400 that names the message at fault.
    """
    if not messages:
        raise errors.bad("messages is empty", "messages")
    return [_message(m, f"messages[{i}]", thought_field) for i, m in enumerate(messages)]


def tools_for_template(tools: list[Tool] | None) -> list[dict[str, Any]]:
    """The tools as templates take them: without fields that are not given."""
    given = tools or []
    if len(given) > MAX_TOOLS:
        raise errors.bad(f"there are {len(given)} tools, at most {MAX_TOOLS} are taken", "tools")
    names = [tool.function.name for tool in given]
    for i, name in enumerate(names):
        if not name or name in names[:i]:
            what = "is given twice" if name else "has no name"
            raise errors.bad(f"the tool {name!r} {what}", f"tools[{i}].function.name")
    dictionaries = []
    for tool in given:
        function = {
            "name": tool.function.name,
            "description": tool.function.description,
            "parameters": tool.function.parameters,
        }
        filled = {key: value for key, value in function.items() if value is not None}
        dictionaries.append({"type": "function", "function": filled})
    return dictionaries


def _message(message: Message, place: str, thought_field: str | None) -> dict[str, Any]:
    given: dict[str, Any] = {"role": message.role, "content": _text(message)}
    for name in ("name", "tool_call_id"):
        if getattr(message, name) is not None:
            given[name] = getattr(message, name)
    thought = message.reasoning_content or message.reasoning
    if thought and thought_field and message.role == "assistant":
        given[thought_field] = thought
    if message.tool_calls:
        if message.role != "assistant":
            raise errors.bad(
                f"{place} has tool_calls, but the role {message.role}", f"{place}.tool_calls"
            )
        given["tool_calls"] = [
            _call(call, f"{place}.tool_calls[{i}].function.arguments")
            for i, call in enumerate(message.tool_calls)
        ]
    try:
        (result,) = checked(given, ("system", *ROLES))
    except ChatError as error:
        raise errors.bad(f"{place}: {error}", place) from None
    return result


def _text(message: Message) -> str | None:
    if isinstance(message.content, list):
        return "".join(
            part.text if isinstance(part, TextPart) else part.refusal for part in message.content
        )
    if message.content is None and message.role == "assistant":
        return message.refusal or (None if message.tool_calls else "")
    return message.content


def _call(call: ToolCall, place: str) -> dict[str, Any]:
    """A call with its arguments as an object: templates write them as JSON themselves."""
    text = call.function.arguments
    try:
        arguments = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise errors.bad(f"{place} is {text[:100]!r}, expected an object as JSON", place)
    function = {"name": call.function.name, "arguments": arguments}
    id = {"id": call.id} if call.id is not None else {}
    return {**id, "type": "function", "function": function}
