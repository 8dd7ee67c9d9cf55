"""OpenAI's completions: `POST /v1/completions`.

https://platform.openai.com/docs/api-reference/completions
"""

from __future__ import annotations

import dataclasses
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from lariat.config import SamplingParams
from lariat.protocol import errors, logprobs, sampling, structured, usage
from lariat.protocol.logprobs import TextLogprobs, TextWriter
from lariat.protocol.sampling import SamplingFields
from lariat.protocol.served import Served
from lariat.protocol.structured import ResponseFormat
from lariat.protocol.usage import FinishReason, StreamOptions, Usage
from lariat.runtime.request import Completion, Delta

DEFAULT_MAX_TOKENS = 16  # OpenAI's
MAX_PROMPTS = 2048


class CompletionRequest(SamplingFields, kw_only=True, forbid_unknown_fields=True):
    """Texts that are to be continued. Special tokens in them count, unless parse_special is
    false."""

    prompt: str | list[str | int | list[int]]
    model: str | None = None
    max_tokens: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    response_format: ResponseFormat | None = None
    parse_special: bool | None = None


class TextChoice(msgspec.Struct, kw_only=True):
    """A continuation, or a part of one."""

    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: FinishReason | None = None


class TextCompletion(msgspec.Struct, kw_only=True):
    """All continuations; in a stream, a part of one. The last event may have the usage alone."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | None = None
    system_fingerprint: str | None = None


@dataclass
class CompletionJob:
    """A request that can be computed: `n` continuations of each prompt, one after the other.

    prompts  their tokens, one list for each stream
    texts    the same as text, where the answer repeats it, else ""
    """

    served: Served
    n: int
    prompts: list[list[int]]
    texts: list[str]
    params: list[SamplingParams]
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))


def prepare(
    request: CompletionRequest, served: Served, n_before: int | None = None
) -> CompletionJob:
    """Check a request, and tokenize its prompts, which may take a while. Raises `ApiError`.

    n_before: tokens of the context that one continuation goes on with; None: there is no context.
    """
    served.check_name(request.model)
    if n_before is not None:
        _check_one(request)
    if request.suffix:
        raise errors.bad("suffix is not supported", "suffix")
    limit = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    n_top = request.logprobs
    if n_top is not None:
        logprobs.check_top(n_top, "logprobs")
    n_top_prompt = n_top if request.echo else None
    grammar = structured.grammar(request, request.response_format, served)
    first = sampling.params(
        request, served.defaults, served.llm.n_vocab, limit, logprobs=n_top,
        prompt_logprobs=n_top_prompt,
    )  # fmt: skip
    each = [
        dataclasses.replace(params, prompt_logprobs=n_top_prompt, grammar=grammar)
        for params in first.each(served.llm.settings.seed)
    ]
    texts = given_prompts(request.prompt)
    job = CompletionJob(served, first.n, [], [], [])
    for number, text in enumerate(texts):
        ids = prompt_ids(served, text, request.parse_special is not False, f"prompt[{number}]")
        if n_before is None:
            served.check_length(ids, limit)
        elif n_before + len(ids) >= served.llm.n_ctx:
            raise errors.too_long(n_before + len(ids), served.llm.n_ctx)
        shown = ""
        if request.echo:
            shown = text if isinstance(text, str) else served.llm.detokenize(ids)
        for params in each:
            job.prompts.append(ids)
            job.texts.append(shown)
            job.params.append(params)
    if len(job.prompts) > MAX_PROMPTS:
        raise errors.bad(
            f"that makes {len(job.prompts)} continuations, at most {MAX_PROMPTS} are written"
            " at once", "prompt",
        )  # fmt: skip
    return job


def _check_one(request: CompletionRequest) -> None:
    """ApiError for what cannot be asked of a context: it goes on in one way."""
    if not (isinstance(request.prompt, str) or all(isinstance(i, int) for i in request.prompt)):
        raise errors.bad("a context goes on with one prompt, a text or token ids", "prompt")
    if request.echo or (request.n or 1) != 1:
        raise errors.bad(
            "a context keeps what is written, so it goes on once and without echo: fork it for"
            " other continuations",
            "echo" if request.echo else "n",
        )


def given_prompts(given: str | list[Any], name: str = "prompt") -> list[str | list[int]]:
    """The prompts of a text, of token ids, or of a list of either. ApiError for a mixture, which
    names the field."""
    if isinstance(given, str):
        return [given]
    if given and all(isinstance(item, int) for item in given):
        return [given]
    if not given or any(isinstance(item, int) for item in given):
        what = "empty" if not given else "a mixture of token ids and prompts"
        raise errors.bad(f"{name} is {what}", name)
    if len(given) > MAX_PROMPTS:
        raise errors.bad(f"{name} has {len(given)} entries, at most {MAX_PROMPTS} are taken", name)
    return given


def prompt_ids(
    served: Served, prompt: str | list[int], parse_special: bool, name: str
) -> list[int]:
    """The tokens of a prompt; a text gets the begin token. ApiError that names it."""
    try:
        if isinstance(prompt, str):
            return served.llm.tokenize(prompt, parse_special=parse_special)
        return served.llm.runner.token_ids(prompt)
    except ValueError as error:
        raise errors.bad(f"{name}: {error}", name) from None


class Continuation:
    """One continuation while it is written."""

    def __init__(self, job: CompletionJob, index: int) -> None:
        self.index = index
        self._shown = job.texts[index]  # the prompt, until it is given out
        self._params = job.params[index]
        self._writer = TextWriter(job.served.llm.tokenizer)
        self._parts: list[str] = []
        self._logprobs: list[TextLogprobs] = []
        self._reason: FinishReason | None = None

    def begin(self) -> list[TextChoice]:
        """The prompt, where the answer repeats it. With log-probabilities it comes later."""
        if self._params.prompt_logprobs is not None or not self._shown:
            return []
        return [self._choice(self._take_shown())]

    def feed(self, new: Delta, done: Completion) -> list[TextChoice]:
        """The next step of the text; `done` is what there is of it."""
        choices = self._prompt(done)
        if new.logprobs is not None:
            added = self._writer.add(new.token_ids, new.logprobs)
            choices.append(self._choice(new.text, added))
        elif new.text:
            choices.append(self._choice(new.text))
        return choices

    def finish(self, done: Completion) -> list[TextChoice]:
        """The end of the text."""
        self._reason = usage.finish_reason(done.finish_reason)
        last = TextChoice(index=self.index, text="", finish_reason=self._reason)
        return [*self._prompt(done), last]

    def whole(self) -> TextChoice:
        """The continuation, once it is finished."""
        is_asked = self._params.logprobs is not None
        return TextChoice(
            index=self.index,
            text="".join(self._parts),
            finish_reason=self._reason,
            logprobs=logprobs.joined(self._logprobs) if is_asked else None,
        )

    def _prompt(self, done: Completion) -> list[TextChoice]:
        """The prompt with its log-probabilities, once."""
        if self._params.prompt_logprobs is None or self._logprobs:
            return self.begin()
        given = done.prompt_logprobs or [None] * len(done.prompt_ids)
        return [self._choice(self._take_shown(), self._writer.add(done.prompt_ids, given))]

    def _take_shown(self) -> str:
        shown, self._shown = self._shown, ""
        return shown

    def _choice(self, text: str, added: TextLogprobs | None = None) -> TextChoice:
        self._parts.append(text)
        if added is not None:
            self._logprobs.append(added)
        return TextChoice(index=self.index, text=text, logprobs=added)


def completion(
    job: CompletionJob, choices: list[TextChoice], used: Usage | None = None
) -> TextCompletion:
    """The body of all continuations, or an event of a stream."""
    return TextCompletion(
        id=job.id, created=job.created, model=job.served.name, choices=choices, usage=used
    )


def used(job: CompletionJob, done: list[Completion]) -> Usage:
    """The usage of all continuations."""
    return usage.of([done[i : i + job.n] for i in range(0, len(done), job.n)])
