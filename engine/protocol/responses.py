"""OpenAI's responses: `POST /v1/responses`, by way of `chat`. Nothing is kept between requests.

https://platform.openai.com/docs/api-reference/responses
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from lariat.protocol import chat, conversation, errors
from lariat.protocol.chat import Answer, ChatJob, ChatRequest, ChunkChoice
from lariat.protocol.conversation import CalledFunction, Message, ToolCall
from lariat.protocol.served import Served
from lariat.protocol.structured import JsonSchema, ResponseFormat
from lariat.runtime.request import Completion


class ItemPart(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A text of an item; images and files are refused."""

    type: Literal["input_text", "output_text", "text", "summary_text", "reasoning_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class Item(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A message, a call, what a call has given, or a thought, of this conversation."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[ItemPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[ItemPart] | None = None
    summary: list[ItemPart] | None = None
    id: str | None = None  # without effect, as the next
    status: str | None = None
    encrypted_content: str | None = None
    phase: str | None = None


class ResponseTool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A function that the model may call."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedResponseTool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The one function that has to be called."""

    type: Literal["function"]
    name: str


class TextFormat(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    name: str = ""
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class TextOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """About the text of the answer."""

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """About thoughts."""

    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class ResponseRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A conversation that asks for an answer."""

    input: str | list[Item]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedResponseTool | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    # Taken without effect: they do not change an answer.
    include: list[str] | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None


class ResponseUsage(msgspec.Struct, kw_only=True):
    """Tokens of a request."""

    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class Response(msgspec.Struct, kw_only=True):
    """An answer: `output` has thoughts, messages and calls."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["in_progress", "completed", "incomplete"]
    error: None = None
    incomplete_details: dict[str, str] | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    model: str
    output: list[dict[str, Any]]
    parallel_tool_calls: bool = True
    previous_response_id: None = None
    temperature: float
    tool_choice: Any = "auto"
    tools: list[ResponseTool] = []
    top_p: float
    truncation: str = "disabled"
    metadata: dict[str, Any] = {}
    store: bool = False
    usage: ResponseUsage | None = None


Event = tuple[str, dict[str, Any]]
"""Its name, and its body."""


def prepare(request: ResponseRequest, served: Served) -> ChatJob:
    """Check a request, and render its conversation. Raises as `chat.prepare`."""
    messages = []
    if request.instructions:
        messages.append(Message(role="system", content=request.instructions))
    if isinstance(request.input, str):
        messages.append(Message(role="user", content=request.input))
    else:
        messages += _messages(request.input)
    asked = ChatRequest(
        messages=messages,
        model=request.model,
        max_tokens=request.max_output_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        parallel_tool_calls=request.parallel_tool_calls,
        reasoning_effort=request.reasoning.effort if request.reasoning else None,
    )
    form = request.text.format if request.text else None
    if form is not None:
        schema = JsonSchema(name=form.name, schema=form.schema, strict=form.strict)
        is_schema = form.type == "json_schema"
        asked.response_format = ResponseFormat(
            type=form.type, json_schema=schema if is_schema else None
        )
    if request.tools:
        asked.tools = [
            conversation.Tool(
                function=conversation.Function(
                    name=tool.name, description=tool.description, parameters=tool.parameters
                )
            )
            for tool in request.tools
        ]
    choice = request.tool_choice
    if isinstance(choice, NamedResponseTool):
        function = conversation.NamedFunction(name=choice.name)
        asked.tool_choice = conversation.NamedTool(function=function)
    else:
        asked.tool_choice = choice
    return chat.prepare(asked, served)


def _messages(items: list[Item]) -> list[Message]:
    """The items as messages of a chat: calls and thoughts belong to the answer around them."""
    messages: list[Message] = []
    thought: str | None = None
    for i, item in enumerate(items):
        place = f"input[{i}]"
        if item.type == "reasoning":
            thought = _text(item.content) or _text(item.summary)
        elif item.type == "message":
            if item.role is None:
                raise errors.bad(f"{place} has no role", f"{place}.role")
            parts = _text(item.content)
            messages.append(Message(role=item.role, content=parts))
            if item.role == "assistant":
                messages[-1].reasoning_content, thought = thought, None
        elif item.type == "function_call":
            if item.name is None or item.arguments is None:
                raise errors.bad(f"{place} has no name and arguments", place)
            function = CalledFunction(name=item.name, arguments=item.arguments)
            call = ToolCall(id=item.call_id, function=function)
            if not messages or messages[-1].role != "assistant":
                messages.append(Message(role="assistant", reasoning_content=thought))
                thought = None
            messages[-1].tool_calls = [*(messages[-1].tool_calls or ()), call]
        else:
            text = _text(item.output)
            messages.append(Message(role="tool", content=text, tool_call_id=item.call_id))
    return messages


def _text(content: str | list[ItemPart] | None) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.text for part in content or ())


class Writing:
    """An answer while it is written: its items, and the events that tell of them."""

    def __init__(self, request: ResponseRequest, job: ChatJob) -> None:
        self._request, self._job = request, job
        self._number = 0  # of the next event
        self._id = job.id.rpartition("-")[2]
        self._items: list[dict[str, Any]] = []
        self._open = ""  # type of the item that is being written
        self._call: int | None = None  # number of its call

    def begin(self) -> list[Event]:
        """The first events."""
        body = {"response": self.response()}
        return [self._event(f"response.{name}", **body) for name in ("created", "in_progress")]

    def feed(self, chunks: list[ChunkChoice]) -> list[Event]:
        """Some parts of the answer."""
        events: list[Event] = []
        for chunk in chunks:
            delta = chunk.delta
            if delta.reasoning_content:
                events += self._part("reasoning", "reasoning_text", delta.reasoning_content)
            if delta.content:
                events += self._part("message", "output_text", delta.content)
            for call in delta.tool_calls or ():
                if call.index != self._call:
                    events += self.close()
                    name, id = call.function.get("name", ""), call.id or ""
                    begun = {"call_id": id, "name": name, "arguments": ""}
                    events += self._begin_item("function_call", **begun)
                    self._call = call.index
                arguments = call.function.get("arguments", "")
                if arguments:
                    self._items[-1]["arguments"] += arguments
                    name = "response.function_call_arguments.delta"
                    events.append(self._item_event(name, delta=arguments))
        return events

    def finish(self, reason: str, done: Completion, n_reasoning: int) -> list[Event]:
        """The last events."""
        events = self.close()
        response = self.response(reason, done, n_reasoning)
        return [*events, self._event(f"response.{response.status}", response=response)]

    def response(
        self, reason: str | None = None, done: Completion | None = None, n_reasoning: int = 0
    ) -> Response:
        """The body of the answer so far; with a reason and a completion, the whole of it, of which
        so many tokens are thoughts."""
        request, params = self._request, self._job.params[0]
        is_cut = reason == "length"
        used = None
        if done is not None:
            timings = done.timings
            used = ResponseUsage(
                input_tokens=len(done.prompt_ids),
                input_tokens_details={
                    "cached_tokens": timings.n_reused,
                    "computed_tokens": timings.n_prompt,
                    "moved_tokens": timings.n_moved,
                    "recomputed_tokens": timings.n_recomputed,
                },
                output_tokens=len(done.token_ids),
                output_tokens_details={"reasoning_tokens": n_reasoning},
                total_tokens=len(done.prompt_ids) + len(done.token_ids),
            )
        ended: Literal["completed", "incomplete"] = "incomplete" if is_cut else "completed"
        return Response(
            id=f"resp_{self._id}",
            created_at=self._job.created,
            status="in_progress" if reason is None else ended,
            incomplete_details={"reason": "max_output_tokens"} if is_cut else None,
            instructions=request.instructions,
            max_output_tokens=request.max_output_tokens,
            model=self._job.served.name,
            output=self._items,
            parallel_tool_calls=request.parallel_tool_calls is not False,
            temperature=params.temperature,
            tool_choice=request.tool_choice or "auto",
            tools=request.tools or [],
            top_p=params.top_p,
            metadata=request.metadata or {},
            usage=used,
        )

    def close(self) -> list[Event]:
        """End the item that is being written."""
        if not self._open:
            return []
        item, events = self._items[-1], []
        item["status"] = "completed"
        if self._open == "function_call":
            name = "response.function_call_arguments.done"
            done = {"name": item["name"], "arguments": item["arguments"]}
            events.append(self._item_event(name, **done))
        else:
            (part,) = item["content"]
            name = "response." + part["type"]
            events.append(self._item_event(f"{name}.done", content_index=0, text=part["text"],
                                           **_no_logprobs(part)))  # fmt: skip
            ended = self._item_event("response.content_part.done", content_index=0, part=part)
            events.append(ended)
        events.append(
            self._event("response.output_item.done", output_index=len(self._items) - 1, item=item)
        )
        self._open, self._call = "", None
        return events

    def _part(self, type: str, part_type: str, text: str) -> list[Event]:
        """A text of a message or of a thought."""
        events: list[Event] = []
        if self._open != type:
            events += self.close()
            is_message = type == "message"
            part: dict[str, Any] = {"type": part_type, "text": ""}
            if is_message:
                part |= {"annotations": [], "logprobs": []}
            fields: dict[str, Any] = {"role": "assistant"} if is_message else {"summary": []}
            events += self._begin_item(type, **fields, content=[])
            events.append(
                self._item_event("response.content_part.added", content_index=0, part=dict(part))
            )
            self._items[-1]["content"].append(part)
        (part,) = self._items[-1]["content"]
        part["text"] += text
        name = f"response.{part_type}.delta"
        new = self._item_event(name, content_index=0, delta=text, **_no_logprobs(part))
        return [*events, new]

    def _begin_item(self, type: str, /, **fields: Any) -> list[Event]:
        self._open = type
        short = {"message": "msg", "reasoning": "rs", "function_call": "fc"}[type]
        n = len(self._items)
        item = {"id": f"{short}_{self._id}_{n}", "type": type, "status": "in_progress", **fields}
        self._items.append(item)
        copy: dict[str, Any] = {
            key: [] if key == "content" else value for key, value in item.items()
        }
        return [self._event("response.output_item.added", output_index=n, item=copy)]

    def _item_event(self, name: str, /, **fields: Any) -> Event:
        n = len(self._items) - 1
        return self._event(name, item_id=self._items[n]["id"], output_index=n, **fields)

    def _event(self, name: str, /, **fields: Any) -> Event:
        self._number += 1
        return name, {"type": name, "sequence_number": self._number - 1, **fields}


def _no_logprobs(part: dict[str, Any]) -> dict[str, list[Any]]:
    """A field that clients look for in events of answers."""
    return {"logprobs": []} if part["type"] == "output_text" else {}


def answer(request: ResponseRequest, job: ChatJob, written: Answer, done: Completion) -> Response:
    """The body of an answer that is finished."""
    writing, choice = Writing(request, job), written.whole()
    message = choice.message
    thought = message.reasoning_content
    delta = chat.Delta(content=message.content or None)
    if thought is not msgspec.UNSET:
        delta.reasoning_content = thought
    calls = [
        chat.CallDelta(
            index=i, id=call.id,
            function={"name": call.function.name, "arguments": call.function.arguments},
        )
        for i, call in enumerate(message.tool_calls or ())
    ]  # fmt: skip
    delta.tool_calls = calls or None
    writing.feed([ChunkChoice(index=0, delta=delta)])
    writing.close()
    return writing.response(choice.finish_reason, done, written.n_reasoning)
