"""Chat: a conversation with a model, whose keys and values stay in the cache from turn to turn."""

from __future__ import annotations

import copy
import json
import os
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lariat.chat import chat_template, message_checks
from lariat.chat.conversation import N_RESERVED, Conversation
from lariat.chat.rendering import Message, Prompt
from lariat.checks import check_type
from lariat.config import RopeConfig, SamplingParams
from lariat.errors import ChatError, ContextError
from lariat.formats import context_file
from lariat.formats.atomic import written_beside
from lariat.runtime.request import Completion
from lariat.runtime.rope_choice import Asked
from lariat.runtime.timings import Timings

if TYPE_CHECKING:
    from lariat.llm import LLM
    from lariat.runtime.context import Context
    from lariat.runtime.stream import Stream

_MAX_BYTES = 64 << 20  # of a JSON file

Progress = Callable[[int, int], None]


class Chat:
    """A conversation. `say` a message, iterate over the answer, then say the next.

    llm       the model that answers
    template  how the conversation is written: a name in `chat_template.FORMATS`, the source of a
              Jinja template, or None for the template in the model's file
    system    the system prompt, "" for none
    tools     JSON schemas of functions, each a dictionary, for templates that describe them to the
              model; the answer holds a call as the model writes it
    chat_template_kwargs
              more variables of the template, such as {"enable_thinking": False}
    params    `SamplingParams` of the answers, each with the next seed; None: as the file asks for
    rope_read with which RoPE the last message and the answer are read, see `LLM.stream`

    Only new tokens are computed: the tokens of the conversation are compared with those in the
    cache. When the context is full, it loses the oldest turns; the system prompt stays. The turns
    behind them move up and still carry what they saw; with the `raw` cache this computes nothing.
    `messages` keeps all.

    Special tokens count only in the template. In a message they are ordinary text.

    A template that takes no system prompt gets it at the beginning of the user's next message.

    Raises `ChatError` for a template that is missing or fails, and `ContextError` for a message
    that does not fit; the conversation is then as it was before. Close it, or use it in a `with`
    statement.
    """

    def __init__(
        self,
        llm: LLM,
        *,
        template: str | None = None,
        system: str = "",
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        params: SamplingParams | None = None,
        rope_read: Asked = None,
    ) -> None:
        llm.check_rope_read(rope_read)
        if template is not None:
            check_type("template", template, str)
        if params is not None:
            check_type("params", params, SamplingParams)
        self._llm = llm
        form = chat_template.choose(
            template,
            llm.gguf,
            llm.tokenizer,
            tools=() if tools is None else tools,
            variables=chat_template_kwargs,
        )
        self._conversation = Conversation(llm, form, system)
        self._streams = _Streams(llm, self._conversation, rope_read)
        # A reply that nobody holds any more closes itself, so that the chat goes on.
        self._reply: Callable[[], Reply | None] = lambda: None
        self.params = params or llm.sampling.params

    @property
    def context(self) -> Context:
        """The tokens of the conversation in the cache."""
        return self._conversation.context

    @property
    def messages(self) -> list[Message]:
        """All messages, the system prompt first: "role", "content" and more of each. A copy."""
        return copy.deepcopy(self._conversation.with_system())

    @property
    def n_forgotten(self) -> int:
        """The number of oldest messages that the context has lost, without the system prompt."""
        return self._conversation.n_forgotten

    @property
    def system(self) -> str:
        """The system prompt. After a change, the next turn recomputes the conversation."""
        return self._conversation.system

    @system.setter
    def system(self, text: str) -> None:
        """Change it. Raises `ChatError` if the template refuses it."""
        self._check_idle()
        self._conversation.system = text

    def say(
        self,
        message: str | Mapping[str, Any] | Sequence[Mapping[str, Any]],
        params: SamplingParams | None = None,
        *,
        prompt_progress: Progress | None = None,
    ) -> Reply:
        """Say something. Iterate over the result for the answer, piece by piece.

        message: a text that the user says, or a message, or several. A message has a "role" (user,
        tool, developer) and "content", and what else the template asks for, such as "name".

        `params` are for this answer; `prompt_progress` as for `LLM.stream`. If the answer is closed
        early, the text that was read stays in the conversation. If nothing was read, what was said
        is taken back. Errors of the model are raised while the answer is read. A loop that is left
        closes the answer, too.
        """
        if params is not None:
            check_type("params", params, SamplingParams)
        self._check_idle()
        said = message_checks.checked(message)
        if not said or said[-1]["role"] == "assistant":
            raise ChatError("the last message is the assistant's: there is nothing to answer")
        conversation = self._conversation
        conversation.messages += said
        try:
            prompt = conversation.prompt()
        except BaseException:
            del conversation.messages[-len(said) :]
            raise
        params = params or self.params
        params = replace(params, stop=(*params.stop, *conversation.stop))
        on_end = _Ending(conversation, len(said))
        reply = Reply(self._streams, prompt, params, prompt_progress, on_end)
        self._reply = weakref.ref(reply)
        return reply

    def add(self, message: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Add one or several messages without an answer: an earlier conversation, for example.

        A message of the assistant may have "tool_calls", as a list of {"type": "function",
        "function": {"name": ..., "arguments": {...}}}. Raises `ChatError` for what is no message.
        """
        self._check_idle()
        self._conversation.messages += message_checks.checked(message)

    def stop(self) -> None:
        """Close the answer that is being written, if there is one. The text that was read stays."""
        reply = self._reply()
        if reply is not None:
            reply.close()

    def undo(self) -> str | None:
        """Take the last turn back: the user's message and all behind it. Returns the message, or
        None without one."""
        self._check_idle()
        conversation = self._conversation
        if not conversation.starts:
            return None
        start = conversation.starts[-1]
        text = str(conversation.messages[start]["content"])
        del conversation.messages[start:]
        conversation.n_forgotten = min(conversation.n_forgotten, len(conversation.messages))
        return text

    def reset(self) -> None:
        """Forget all messages but the system prompt."""
        self._check_idle()
        self._conversation.messages, self._conversation.n_forgotten = [], 0
        self._conversation.known.clear()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the conversation to a file, which appears whole or not at all.

        The file has keys and values, as that of `Context.save`. If its name ends in .json, it has
        the messages alone. Raises `ContextError` if it cannot be written.
        """
        self._check_idle()
        if Path(path).suffix == ".json":
            text = json.dumps({"messages": self.messages}, ensure_ascii=False, indent=2)
            with written_beside(Path(path), ContextError) as beside:
                beside.write_text(text + "\n", encoding="utf-8")
            return
        state = {
            "messages": self.messages,
            "n_forgotten": self.n_forgotten,
            "known": self._conversation.known,
        }
        self.context.save(path, note=json.dumps(state))

    def load(self, path: str | os.PathLike[str]) -> bool:
        """Replace the conversation by one that `save` wrote; the template stays.

        Returns whether keys and values were loaded too. JSON has none, and those of another model
        or cache do not fit; the next turn then computes the conversation. Raises `ChatError` or
        `ContextError` for a file without a conversation, OSError if there is no such file.
        """
        self._check_idle()
        is_json = Path(path).suffix == ".json"
        state = _parsed(path, _read(path) if is_json else context_file.note(path))
        loaded = state["messages"]
        has_system = bool(loaded) and loaded[0]["role"] == "system"
        self.system = loaded.pop(0)["content"] if has_system else ""
        conversation = self._conversation
        conversation.messages, conversation.n_forgotten, conversation.known = loaded, 0, {}
        if is_json:
            return False
        try:
            self.context.load(path)
        except ContextError:
            return False
        if state.get("n_forgotten") in conversation.starts:
            conversation.n_forgotten = state["n_forgotten"]
        # Without the ids, the answers are tokenized again.
        with suppress(AttributeError, KeyError, TypeError, ValueError):
            check_id = self._llm.tokenizer.check_id
            known = {text: [check_id(i) for i in ids] for text, ids in state["known"].items()}
            conversation.known = {text: ids for text, ids in known.items() if ids}
        return True

    def close(self) -> None:
        """Give the blocks of the cache back. Closing twice does nothing."""
        self.stop()
        self.context.close()

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_idle(self) -> None:
        reply = self._reply()
        if reply is not None and reply.is_open:
            raise ChatError(
                "an answer is being written: read it to its end, or close it (stop() does)"
            )


class _Ending:
    """Takes an answer into the conversation, however it ended."""

    def __init__(self, conversation: Conversation, n_said: int) -> None:
        """`n_said`: how many messages the answer is to."""
        self._conversation = conversation
        self._n_said = n_said

    def __call__(self, writing: _Writing) -> None:
        if writing.text or writing.finish_reason is not None:
            self._conversation.answered(writing.prompt, writing.text, writing.token_ids)
        else:
            del self._conversation.messages[-self._n_said :]


class _Streams:
    """Streams of answers, each with the next seed."""

    def __init__(self, llm: LLM, conversation: Conversation, rope_read: Asked) -> None:
        self.llm, self.conversation, self._rope_read = llm, conversation, rope_read
        self._n = 0

    def start(
        self,
        ids: list[int],
        params: SamplingParams,
        n_written: int,
        on_prompt: Progress | None,
        rope: RopeConfig | None,
    ) -> Stream:
        """Compute the tokens of `ids` that are not in the context, and write on; `n_written` tokens
        of the answer are there already, and `rope` has read its beginning."""
        seed = None if params.seed is None else (params.seed + self._n) % (1 << 64)
        self._n += 1
        context = self.conversation.context
        return self.llm.stream(
            ids[len(context) :],
            replace(
                params,
                max_tokens=params.max_tokens - n_written if params.max_tokens >= 0 else -1,
                min_tokens=max(0, params.min_tokens - n_written),
                seed=seed,
            ),
            context=context,
            prompt_progress=on_prompt,
            rope_read=rope or self._rope_read,
        )


class _Writing:
    """An answer while it is written. It does not refer to its `Reply`, so a reply that nobody holds
    is gone at once."""

    def __init__(self, streams: _Streams, prompt: Prompt) -> None:
        self.text = ""
        self.token_ids: list[int] = []
        self.finish_reason: str | None = None
        self.rope: RopeConfig | None = None
        n_cached = len(streams.conversation.context)
        n_reused = min(n_cached, len(prompt.ids) - 1)
        n_moved = max(0, n_reused - streams.conversation.n_exact)
        self.timings = Timings(n_reused=n_reused, n_moved=n_moved)
        self.prompt = prompt
        self._streams = streams

    def pieces(
        self, params: SamplingParams, on_prompt: Progress | None
    ) -> Generator[str, None, None]:
        """The pieces, of one stream, or of several if turns are forgotten in between."""
        conversation = self._streams.conversation
        n_full = self._streams.llm.n_ctx - N_RESERVED
        while True:
            ids = self.prompt.ids + self.token_ids
            stream = self._streams.start(ids, params, len(self.token_ids), on_prompt, self.rope)
            done = stream.completion
            try:
                for piece in stream:
                    self.text += piece
                    yield piece
                    # Stop near the end of the context, where no text is held back.
                    is_near = conversation.can_forget and len(conversation.context) > n_full
                    if is_near and conversation.decoded(done.token_ids) == done.text:
                        break
            finally:
                stream.close()
                self._add(done)
            if done.finish_reason in ("stop", "length") or not conversation.can_forget:
                self.finish_reason = done.finish_reason
                return
            self.prompt = conversation.forget(self.token_ids)

    def _add(self, done: Completion) -> None:
        self.token_ids += done.token_ids
        self.rope = done.rope
        for name in (
            *("n_prompt", "prompt_s", "n_decode", "decode_s", "n_passes", "n_tried"),
            *("n_drafted", "n_accepted"),
        ):
            setattr(self.timings, name, getattr(self.timings, name) + getattr(done.timings, name))


class Reply:
    """Iterator over the text of one answer, see `Chat.say`.

    text           the text that has been read so far
    token_ids      its tokens, when the answer has ended
    finish_reason  as for `Completion`; None while it is not finished, or if it was closed early
    timings        of its prompt and its tokens; `n_reused` prompt tokens were in the cache
    rope           the settings with which it was read, see `Completion`
    prompt         the tokens that it answers, and whether they begin a thought
    is_open        whether it is still being written
    """

    def __init__(
        self,
        streams: _Streams,
        prompt: Prompt,
        params: SamplingParams,
        on_prompt: Progress | None,
        on_end: Callable[[_Writing], None],
    ) -> None:
        """Use `Chat.say`."""
        self.is_open = True
        self._on_end = on_end
        self._writing = _Writing(streams, prompt)
        self._pieces = self._writing.pieces(params, on_prompt)

    @property
    def text(self) -> str:
        """See the class."""
        return self._writing.text

    @property
    def token_ids(self) -> list[int]:
        """See the class."""
        return self._writing.token_ids

    @property
    def finish_reason(self) -> str | None:
        """See the class."""
        return self._writing.finish_reason

    @property
    def timings(self) -> Timings:
        """See the class."""
        return self._writing.timings

    @property
    def rope(self) -> RopeConfig | None:
        """See the class."""
        return self._writing.rope

    @property
    def prompt(self) -> Prompt:
        """See the class."""
        return self._writing.prompt

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            return next(self._pieces)
        except BaseException:  # the end, too
            self.close()
            raise

    def close(self) -> None:
        """Stop writing. The text that was read stays. Closing twice does nothing."""
        if self.is_open:
            self.is_open = False
            self._pieces.close()
            self._on_end(self._writing)

    def __del__(self) -> None:
        if getattr(self, "is_open", False) and hasattr(self, "_pieces"):
            self.close()


def _read(path: str | os.PathLike[str]) -> bytes:
    with open(path, "rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ChatError(f"{path}: is larger than {_MAX_BYTES} bytes")
    return data


def _parsed(path: str | os.PathLike[str], text: str | bytes) -> dict[str, Any]:
    """A conversation in a file: turns that end with an answer, maybe a system prompt in front.

    Raises `ChatError` for anything else.
    """
    try:
        state = dict(json.loads(text))
        state["messages"] = message_checks.conversation(state["messages"])
        return state
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ChatError(
            f"{path}: holds no conversation: questions and answers in turn as JSON"
        ) from None
