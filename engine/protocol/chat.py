"""OpenAI's chat completions: `POST /v1/chat/completions`.

https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from lariat.chat.rendering import Prompt, Rendering
from lariat.chat.segments import with_documents
from lariat.chat.tool_calls import Delta as Piece
from lariat.chat.tool_calls import grammar_for
from lariat.chat.tool_formats import Format
from lariat.config import SamplingParams, TokenGrammar
from lariat.protocol import errors, logprobs, sampling, structured, usage
from lariat.protocol.contexts import DocumentReference, PromptPlan
from lariat.protocol.conversation import (
    Message,
    NamedTool,
    Tool,
    ToolChoice,
    for_template,
    tools_for_template,
)
from lariat.protocol.logprobs import ChatLogprob, ChatLogprobs
from lariat.protocol.reading import Reader, ThoughtTokens, format_of
from lariat.protocol.sampling import SamplingFields
from lariat.protocol.served import Served
from lariat.protocol.structured import ResponseFormat
from lariat.protocol.usage import FinishReason, StreamOptions, Usage
from lariat.runtime.request import Completion
from lariat.runtime.request import Delta as Step


class ChatRequest(SamplingFields, kw_only=True, forbid_unknown_fields=True):
    """A conversation that asks for an answer."""

    messages: list[Message]
    model: str | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    modalities: list[Literal["text"]] | None = None
    prediction: dict[str, Any] | None = None  # without effect: it is about speed
    # Lariat's own; `lariat.protocol.arranged` reads them.
    documents: list[DocumentReference] | None = None
    reuse: Literal["exact", "repaired", "placed"] | None = None
    return_segments: bool | None = None
    keep_context: bool | None = None


class FunctionCall(msgspec.Struct, kw_only=True):
    """A function and its arguments, an object as JSON."""

    name: str
    arguments: str


class AnswerCall(msgspec.Struct, kw_only=True):
    """A call in an answer."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class AnswerMessage(msgspec.Struct, kw_only=True):
    """An answer."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: str | None = None
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[AnswerCall] | msgspec.UnsetType = msgspec.UNSET


class AnswerChoice(msgspec.Struct, kw_only=True):
    """One of the answers."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason


class ChatCompletion(msgspec.Struct, kw_only=True):
    """All answers."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[AnswerChoice]
    usage: Usage
    system_fingerprint: str | None = None
    lariat: PromptPlan | msgspec.UnsetType = msgspec.UNSET


class CallDelta(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A part of a call."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: dict[str, str]


class Delta(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A part of an answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[CallDelta] | None = None


class ChunkChoice(msgspec.Struct, kw_only=True):
    """A part of one of the answers."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(msgspec.Struct, kw_only=True):
    """An event of a stream. The last one may have the usage, and then no choices."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    lariat: PromptPlan | msgspec.UnsetType = msgspec.UNSET


@dataclass
class ChatJob:
    """A request that can be computed.

    messages   the conversation as the template takes it
    prompt     its tokens
    params     of each answer
    rendering  how the conversation became tokens
    format     how the model writes calls of tools; None: there are none
    is_parallel  whether an answer may have several
    """

    served: Served
    messages: list[dict[str, Any]]
    prompt: Prompt
    params: list[SamplingParams]
    rendering: Rendering
    format: Format | None
    is_parallel: bool = True
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def prompts(self) -> list[list[int]]:
        """The tokens to continue, one list for each stream."""
        return [self.prompt.ids] * len(self.params)


def prepare(
    request: ChatRequest,
    served: Served,
    documents: Sequence[str] = (),
    prompt: Prompt | None = None,
) -> ChatJob:
    """Check a request, and render its conversation, with documents in front of what the user says
    first. It may take a while, unless its `prompt` is known, see `conversation`.

    Raises `ApiError`, `ChatError` and other errors of `errors.of`.
    """
    limit = max_tokens(request)
    params = sampling.params(
        request, served.defaults, served.llm.n_vocab, limit, logprobs=_n_logprobs(request)
    )
    grammar = structured.grammar(request, request.response_format, served)
    messages, rendering = conversation(request, served, documents)
    if prompt is None:
        prompt = served.prompt(rendering, messages)
    if grammar is not None and prompt.begun:
        raise errors.bad(
            "the chat template begins a thought, which cannot follow a grammar: switch thoughts off"
            ' (chat_template_kwargs, such as {"enable_thinking": false})',
            "response_format",
        )
    served.check_length(prompt.ids, limit)
    tools = [] if request.tool_choice == "none" else tools_for_template(request.tools)
    format = format_of(served.template_source, bool(tools))
    if tools and request.tool_choice not in (None, "auto"):
        if grammar is not None:
            raise errors.bad("tool_choice asks for a call, which has no other form", "tool_choice")
        assert format is not None
        grammar = _call_grammar(request, tools, format, prompt, served)
    params = dataclasses.replace(
        params, stop=(*params.stop, *rendering.stop), grammar=grammar or params.grammar
    )
    return ChatJob(
        served, messages, prompt, params.each(served.llm.settings.seed), rendering,
        format=format, is_parallel=request.parallel_tool_calls is not False,
    )  # fmt: skip


def rendered(
    request: ChatRequest, served: Served, documents: Sequence[str] = ()
) -> tuple[list[dict[str, Any]], Prompt, Rendering]:
    """A conversation as the template takes it, and as tokens. Raises as `prepare`."""
    messages, rendering = conversation(request, served, documents)
    return messages, served.prompt(rendering, messages), rendering


def conversation(
    request: ChatRequest, served: Served, documents: Sequence[str] = ()
) -> tuple[list[dict[str, Any]], Rendering]:
    """A conversation as the template takes it, and how it becomes tokens: `Rendering.prompts` does
    many at a time. Raises as `prepare`."""
    served.check_name(request.model)
    variables = _variables(request, served)
    tools = tools_for_template(request.tools)
    if request.tool_choice == "none":
        tools = []
    elif request.tool_choice is not None and not tools:
        raise errors.bad("tool_choice is given without tools", "tool_choice")
    rendering = served.rendering(tools, variables)
    messages = for_template(request.messages, rendering.forms.thought_field)
    return with_documents(messages, documents), rendering


def max_tokens(request: ChatRequest) -> int:
    """The limit of an answer, -1 for none."""
    given = [request.max_completion_tokens, request.max_tokens]
    limits = [limit for limit in given if limit is not None]
    for limit in limits:
        if limit < -1:
            raise errors.bad(f"max_tokens is {limit}, expected -1 or more", "max_tokens")
    return limits[0] if limits else -1


def _call_grammar(
    request: ChatRequest,
    tools: list[dict[str, Any]],
    format: Format,
    prompt: Prompt,
    served: Served,
) -> TokenGrammar:
    """The grammar of a call that has to come. ApiError for one that cannot be held to."""
    choice = request.tool_choice
    name = choice.function.name if isinstance(choice, NamedTool) else None
    return structured.made(
        "tool_choice",
        lambda: grammar_for(
            tools,
            format,
            served.llm.tokenizer,
            name=name,
            parallel=request.parallel_tool_calls is not False,
            begun=prompt.begun,
        ),
        served,
    )


def _n_logprobs(request: ChatRequest) -> int | None:
    """How many tokens come beside each; None: no log-probabilities."""
    if request.top_logprobs is not None and not request.logprobs:
        raise errors.bad("top_logprobs needs logprobs: true", "top_logprobs")
    if not request.logprobs:
        return None
    return logprobs.check_top(request.top_logprobs or 0, "top_logprobs")


def _variables(request: ChatRequest, served: Served) -> dict[str, Any]:
    """Variables of the template. ApiError for an effort of thinking that it does not know."""
    variables = dict(request.chat_template_kwargs or {})
    effort = request.reasoning_effort
    if effort is None:
        return variables
    if served.takes("reasoning_effort"):
        variables.setdefault("reasoning_effort", effort)
    elif served.takes("enable_thinking"):
        variables.setdefault("enable_thinking", effort != "none")
    elif effort != "none":
        raise errors.bad("the model's chat template knows no reasoning_effort", "reasoning_effort")
    return variables


class Answer:
    """One answer while it is written: text comes in, parts of the answer go out."""

    def __init__(self, job: ChatJob, index: int) -> None:
        self.index = index
        self._job = job
        params = job.params[index]
        begun, tokenizer = job.prompt.begun, job.served.llm.tokenizer
        self._reader = Reader(job.format, begun, tokenizer, params.stop)
        self._thought_tokens = ThoughtTokens(job.format, begun, tokenizer)
        self._content: list[str] = []
        self._thought: list[str] = []
        self._calls: list[AnswerCall] = []
        self._logprobs: list[ChatLogprob] = []
        self._reason: FinishReason = "stop"

    @property
    def n_reasoning(self) -> int:
        """Tokens of thoughts so far."""
        return self._thought_tokens.n

    def begin(self) -> ChunkChoice:
        """The first chunk: who speaks."""
        return ChunkChoice(index=self.index, delta=Delta(role="assistant", content=""))

    def feed(self, new: Step) -> list[ChunkChoice]:
        """Take in the next step; returns the parts of the answer that are known with it."""
        self._thought_tokens.feed(new.token_ids)
        chunks = self._chunks(self._reader.feed(new))
        if new.logprobs is not None:
            tokens = logprobs.chat(self._job.served.llm.tokenizer, new.logprobs)
            self._logprobs += tokens.content
            if not chunks:
                chunks = [ChunkChoice(index=self.index, delta=Delta(content=""))]
            chunks[0].logprobs = tokens
        return chunks

    def finish(self, done: Completion) -> list[ChunkChoice]:
        """The rest of the answer, and how it ended."""
        chunks = self._chunks(self._reader.finish())
        self._reason = usage.finish_reason(done.finish_reason)
        if self._calls and self._reason == "stop":
            self._reason = "tool_calls"
        last = ChunkChoice(index=self.index, delta=Delta(), finish_reason=self._reason)
        return [*chunks, last]

    def whole(self) -> AnswerChoice:
        """The answer, once it is finished."""
        thought, content = "".join(self._thought).strip(), "".join(self._content)
        message = AnswerMessage(
            content=content or (None if self._calls else ""),
            reasoning_content=thought or msgspec.UNSET,
            tool_calls=self._calls or msgspec.UNSET,
        )
        is_asked = self._job.params[0].logprobs is not None
        return AnswerChoice(
            index=self.index,
            message=message,
            finish_reason=self._reason,
            logprobs=ChatLogprobs(content=self._logprobs) if is_asked else None,
        )

    def _chunks(self, pieces: list[Piece]) -> list[ChunkChoice]:
        chunks = []
        for piece in pieces:
            if piece.call is not None:
                call = piece.call
                if call.index and not self._job.is_parallel:
                    continue
                function = FunctionCall(name=call.name, arguments=call.arguments)
                self._calls.append(AnswerCall(id=call.id, function=function))
                named = {"name": call.name, "arguments": call.arguments}
                part = CallDelta(index=call.index, id=call.id, type="function", function=named)
                delta = Delta(tool_calls=[part])
            elif piece.reasoning_content:
                self._thought.append(piece.reasoning_content)
                delta = Delta(reasoning_content=piece.reasoning_content)
            else:
                self._content.append(piece.content)
                delta = Delta(content=piece.content)
            chunks.append(ChunkChoice(index=self.index, delta=delta))
        return chunks


def chunk(
    job: ChatJob,
    choices: list[ChunkChoice],
    used: Usage | None = None,
    plan: PromptPlan | None = None,
) -> ChatChunk:
    """An event of the stream."""
    return ChatChunk(
        id=job.id,
        created=job.created,
        model=job.served.name,
        choices=choices,
        usage=used,
        lariat=plan or msgspec.UNSET,
    )


def completion(
    job: ChatJob, answers: list[Answer], done: list[Completion], plan: PromptPlan | None = None
) -> ChatCompletion:
    """The body of all answers."""
    return ChatCompletion(
        id=job.id,
        created=job.created,
        model=job.served.name,
        choices=[answer.whole() for answer in answers],
        usage=used(answers, done),
        lariat=plan or msgspec.UNSET,
    )


def used(answers: list[Answer], done: list[Completion]) -> Usage:
    """The usage of all answers."""
    return usage.of([done], sum(answer.n_reasoning for answer in answers))
