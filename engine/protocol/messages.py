"""Anthropic's messages: `POST /v1/messages` and `/v1/messages/count_tokens`, by way of `chat`.

https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import msgspec
from lariat.protocol import chat, conversation, errors
from lariat.protocol.chat import Answer, ChatJob, ChatRequest, ChunkChoice
from lariat.protocol.conversation import CacheControl, CalledFunction, Message, TextPart
from lariat.protocol.served import Served
from lariat.runtime.request import Completion

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class TextBlock(
    msgspec.Struct, kw_only=True, tag_field="type", tag="text", forbid_unknown_fields=True
):
    """A text."""

    text: str
    cache_control: CacheControl | None = None
    citations: list[Any] | None = None


class ThinkingBlock(
    msgspec.Struct, kw_only=True, tag_field="type", tag="thinking", forbid_unknown_fields=True
):
    """A thought in front of an earlier answer."""

    thinking: str
    signature: str | None = None


class ToolUseBlock(
    msgspec.Struct, kw_only=True, tag_field="type", tag="tool_use", forbid_unknown_fields=True
):
    """A call in an earlier answer."""

    id: str
    name: str
    input: dict[str, Any]
    cache_control: CacheControl | None = None
    caller: dict[str, Any] | None = None


class ToolResultBlock(
    msgspec.Struct, kw_only=True, tag_field="type", tag="tool_result", forbid_unknown_fields=True
):
    """The result of a call."""

    tool_use_id: str
    content: str | list[TextBlock] | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None


Block = TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock


class Turn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A message."""

    role: Literal["user", "assistant"]
    content: str | list[Block]


class AnthropicTool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A function that the model may call. `input_schema` is a JSON schema."""

    name: str
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None
    strict: bool | None = None
    cache_control: CacheControl | None = None


class AnthropicToolChoice(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Which tool is called: any or none, as the model likes, or the one with a name."""

    type: Literal["auto", "any", "none", "tool"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Whether the model thinks first."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None
    display: str | None = None


class CountRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A conversation whose tokens are counted."""

    messages: list[Turn]
    model: str | None = None
    system: str | list[TextBlock] | None = None
    tools: list[AnthropicTool] | None = None
    tool_choice: AnthropicToolChoice | None = None
    thinking: Thinking | None = None


class MessagesRequest(CountRequest, kw_only=True, forbid_unknown_fields=True):
    """A conversation that asks for an answer."""

    max_tokens: int
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: dict[str, Any] | None = None  # without effect, as the next
    service_tier: str | None = None


class CountAnswer(msgspec.Struct, kw_only=True):
    """The tokens of a conversation."""

    input_tokens: int


class MessagesUsage(msgspec.Struct, kw_only=True):
    """Tokens. `input_tokens` are those that were not in the cache, as Anthropic counts."""

    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0


class AnswerBlock(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A part of an answer: a text, a thought or a call."""

    type: str
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None


class MessagesAnswer(msgspec.Struct, kw_only=True):
    """An answer."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[AnswerBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None = None
    usage: MessagesUsage


Event = tuple[str, dict[str, Any]]
"""Its name, and its body."""


def prepare(request: MessagesRequest, served: Served) -> ChatJob:
    """Check a request, and render its conversation. Raises as `chat.prepare`."""
    if request.max_tokens < 1:
        raise errors.bad(f"max_tokens is {request.max_tokens}, expected 1 or more", "max_tokens")
    return chat.prepare(_chat_request(request, served), served)


def count(request: CountRequest, served: Served) -> CountAnswer:
    """The tokens of a conversation, which may be longer than the context. Raises as `prepare`."""
    asked = _chat_request(request, served)
    return CountAnswer(input_tokens=len(chat.rendered(asked, served)[1].ids))


def _chat_request(request: CountRequest, served: Served) -> ChatRequest:
    messages = []
    if request.system:
        messages.append(Message(role="system", content=_text(request.system)))
    for i, turn in enumerate(request.messages):
        messages += _messages(turn, f"messages[{i}]")
    if request.messages and request.messages[-1].role == "assistant":
        raise errors.bad("the last message is the assistant's: an answer cannot be continued")
    asked = ChatRequest(messages=messages, model=request.model)
    if request.tools:
        asked.tools = [
            conversation.Tool(
                function=conversation.Function(
                    name=tool.name, description=tool.description, parameters=tool.input_schema
                )
            )
            for tool in request.tools
        ]
    if request.tool_choice is not None:
        asked.tool_choice = _choice(request.tool_choice)
        if request.tool_choice.disable_parallel_tool_use:
            asked.parallel_tool_calls = False
    if request.thinking is not None and served.takes("enable_thinking"):
        asked.chat_template_kwargs = {"enable_thinking": request.thinking.type != "disabled"}
    if isinstance(request, MessagesRequest):
        asked.max_tokens = request.max_tokens
        asked.stop = request.stop_sequences
        for name in ("temperature", "top_p", "top_k", "stream"):
            setattr(asked, name, getattr(request, name))
    return asked


def _choice(given: AnthropicToolChoice) -> conversation.ToolChoice:
    if given.type == "tool":
        if not given.name:
            raise errors.bad("tool_choice names no tool", "tool_choice.name")
        function = conversation.NamedFunction(name=given.name)
        return conversation.NamedTool(function=function)
    return "required" if given.type == "any" else given.type


def _messages(turn: Turn, place: str) -> Iterator[Message]:
    """The messages of a turn: results of calls first, each by itself."""
    blocks = turn.content
    if isinstance(blocks, str):
        yield Message(role=turn.role, content=blocks)
        return
    is_answer = turn.role == "assistant"
    for block in blocks:
        if is_answer == isinstance(block, ToolResultBlock) and not isinstance(block, TextBlock):
            raise errors.bad(f"{place} of the role {turn.role} has a block that it cannot have",
                             f"{place}.content")  # fmt: skip
    for block in blocks:
        if isinstance(block, ToolResultBlock):
            yield Message(role="tool", content=_text(block.content), tool_call_id=block.tool_use_id)
    texts = [TextPart(text=block.text) for block in blocks if isinstance(block, TextBlock)]
    calls = [
        conversation.ToolCall(
            id=block.id,
            function=CalledFunction(name=block.name, arguments=json.dumps(block.input)),
        )
        for block in blocks
        if isinstance(block, ToolUseBlock)
    ]
    thoughts = [block.thinking for block in blocks if isinstance(block, ThinkingBlock)]
    if texts or calls or is_answer:
        yield Message(
            role=turn.role,
            content=[*texts] if texts else None,
            tool_calls=calls or None,
            reasoning_content="\n".join(thoughts) or None,
        )


def _text(content: str | list[TextBlock] | None) -> str:
    if isinstance(content, str):
        return content
    return "".join(block.text for block in content or ())


def answer(job: ChatJob, written: Answer, done: Completion) -> MessagesAnswer:
    """The body of an answer."""
    choice = written.whole()
    message, blocks = choice.message, []
    if message.reasoning_content is not msgspec.UNSET and message.reasoning_content:
        thought = message.reasoning_content
        blocks.append(AnswerBlock(type="thinking", thinking=thought, signature=""))
    if message.content:
        blocks.append(AnswerBlock(type="text", text=message.content))
    for call in message.tool_calls or ():
        arguments = json.loads(call.function.arguments or "{}")
        blocks.append(
            AnswerBlock(type="tool_use", id=call.id, name=call.function.name, input=arguments)
        )
    reason, sequence = _stop(choice.finish_reason, job, done)
    return MessagesAnswer(
        id=_id(job),
        model=job.served.name,
        content=blocks,
        stop_reason=reason,
        stop_sequence=sequence,
        usage=_usage(done),
    )


def _id(job: ChatJob) -> str:
    return "msg_" + job.id.rpartition("-")[2]


def _stop(reason: str, job: ChatJob, done: Completion) -> tuple[StopReason, str | None]:
    if reason == "tool_calls":
        return "tool_use", None
    if reason == "length":
        return "max_tokens", None
    text = done.stop_reason
    if isinstance(text, str) and text not in job.rendering.stop:
        return "stop_sequence", text
    return "end_turn", None


def _usage(done: Completion) -> MessagesUsage:
    n_cached = done.timings.n_reused
    return MessagesUsage(
        input_tokens=len(done.prompt_ids) - n_cached,
        output_tokens=len(done.token_ids),
        cache_read_input_tokens=n_cached,
    )


class Events:
    """The events of a stream, made of the parts of an answer."""

    def __init__(self, job: ChatJob) -> None:
        self._job = job
        self._n = 0  # blocks that have begun
        self._open = ""  # type of the one that is open
        self._call: int | None = None  # number of its call

    def begin(self) -> list[Event]:
        """The first event."""
        used = MessagesUsage(input_tokens=len(self._job.prompt.ids), output_tokens=0)
        message = MessagesAnswer(
            id=_id(self._job), model=self._job.served.name, content=[], stop_reason=None, usage=used
        )
        return [("message_start", {"message": message})]

    def feed(self, chunks: list[ChunkChoice]) -> list[Event]:
        """Some parts of the answer."""
        events: list[Event] = []
        for chunk in chunks:
            delta = chunk.delta
            if delta.reasoning_content:
                events += self._block("thinking", thinking="", signature="")
                events += self._delta("thinking_delta", thinking=delta.reasoning_content)
            if delta.content:
                events += self._block("text", text="")
                events += self._delta("text_delta", text=delta.content)
            for call in delta.tool_calls or ():
                name = call.function.get("name", "")
                begins = call.index != self._call
                if begins:
                    events += self._close()
                events += self._block("tool_use", id=call.id or "", name=name, input={})
                self._call = call.index
                arguments = call.function.get("arguments")
                if arguments:
                    events += self._delta("input_json_delta", partial_json=arguments)
        return events

    def finish(self, reason: str, done: Completion) -> list[Event]:
        """The last events."""
        stop_reason, sequence = _stop(reason, self._job, done)
        last = {
            "delta": {"stop_reason": stop_reason, "stop_sequence": sequence},
            "usage": _usage(done),
        }
        return [*self._close(), ("message_delta", last), ("message_stop", {})]

    def _block(self, type: str, **fields: Any) -> list[Event]:
        """Begin a block, unless one of the type is open."""
        if self._open == type:
            return []
        events = self._close()
        self._open = type
        self._n += 1
        begun = {"index": self._n - 1, "content_block": {"type": type, **fields}}
        return [*events, ("content_block_start", begun)]

    def _delta(self, type: str, **fields: Any) -> list[Event]:
        delta = {"index": self._n - 1, "delta": {"type": type, **fields}}
        return [("content_block_delta", delta)]

    def _close(self) -> list[Event]:
        if not self._open:
            return []
        self._open, self._call = "", None
        return [("content_block_stop", {"index": self._n - 1})]
