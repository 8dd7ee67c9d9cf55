"""Chat: a conversation with a model, whose keys and values stay in the cache from turn to turn."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lariat.chat import chat_template
from lariat.chat.conversation import N_RESERVED, Conversation, Message, Prompt
from lariat.checks import check_type
from lariat.config import SamplingParams
from lariat.errors import ChatError, ContextError
from lariat.formats import context_file
from lariat.formats.atomic import written_beside
from lariat.runtime.request import Completion, Timings

if TYPE_CHECKING:
    from lariat.llm import LLM, Stream
    from lariat.runtime.context import Context

_MAX_BYTES = 64 << 20  # of a JSON file

Progress = Callable[[int, int], None]


class Chat:
    """A conversation. `say` a message, iterate over the answer, then say the next.

    llm       the model that answers
    template  how the conversation is written: a name in `chat_template.FORMATS`, the source of a
              Jinja template, or None for the template in the model's file
    system    the system prompt, "" for none
    params    `SamplingParams` of the answers, each with the next seed; None: as the file asks for

    Only new tokens are computed: the tokens of the conversation are compared with those in the
    cache. When the context is full, it loses the oldest turns; the system prompt stays. The turns
    behind them move up and still carry what they saw; with the `raw` cache this computes nothing.
    `messages` keeps all.

    Special tokens count only in the template. In a message they are ordinary text.

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
        params: SamplingParams | None = None,
    ) -> None:
        if template is not None:
            check_type("template", template, str)
        if params is not None:
            check_type("params", params, SamplingParams)
        self._llm = llm
        form = chat_template.choose(template, llm.gguf, llm.tokenizer)
        self._conversation = Conversation(llm, form, system)
        self._streams = _Streams(llm, self._conversation)
        self._reply: Reply | None = None
        self.params = params or llm.sampling.params
        end = llm.tokenizer.encode_marked(form.end)
        # If the model has no token of that text, generation ends at the text.
        self._stop = () if not end or end[0] in llm.tokenizer.eog_ids else (form.end,)

    @property
    def context(self) -> Context:
        """The tokens of the conversation in the cache."""
        return self._conversation.context

    @property
    def messages(self) -> list[Message]:
        """All messages, the system prompt first: "role" and "content" of each. A copy."""
        return [dict(m) for m in self._conversation.with_system()]

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
        text: str,
        params: SamplingParams | None = None,
        *,
        prompt_progress: Progress | None = None,
    ) -> Reply:
        """Say something. Iterate over the result for the answer, piece by piece.

        `params` are for this answer; `prompt_progress` as for `LLM.stream`. If the answer is closed
        early, the text that was read stays in the conversation. If nothing was read, the message is
        taken back. Errors of the model are raised while the answer is read.
        """
        self._check_idle()
        conversation = self._conversation
        conversation.messages.append({"role": "user", "content": text})
        try:
            prompt = conversation.prompt()
        except BaseException:
            conversation.messages.pop()
            raise
        params = params or self.params
        params = replace(params, stop=(*params.stop, *self._stop))
        self._reply = Reply(self._streams, prompt, params, prompt_progress, self._take)
        return self._reply

    def _take(self, reply: Reply) -> None:
        """Take an answer into the conversation, however it ended."""
        self._reply = None
        if reply.text or reply.finish_reason is not None:
            self._conversation.answered(reply.prompt, reply.text, reply.token_ids)
        else:
            self._conversation.messages.pop()

    def undo(self) -> str | None:
        """Take the last message and its answer back. Returns the message, or None without one."""
        self._check_idle()
        conversation = self._conversation
        if not conversation.messages:
            return None
        text = conversation.messages[-2]["content"]
        del conversation.messages[-2:]
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
        messages = state["messages"]
        has_system = bool(messages) and messages[0]["role"] == "system"
        self.system = messages.pop(0)["content"] if has_system else ""
        conversation = self._conversation
        conversation.messages, conversation.n_forgotten, conversation.known = messages, 0, {}
        if is_json:
            return False
        try:
            self.context.load(path)
        except ContextError:
            return False
        if state.get("n_forgotten") in range(0, len(messages), 2):
            conversation.n_forgotten = state["n_forgotten"]
        # Without the ids, the answers are tokenized again.
        with suppress(AttributeError, KeyError, TypeError, ValueError):
            check_id = self._llm.tokenizer.check_id
            known = {text: [check_id(i) for i in ids] for text, ids in state["known"].items()}
            conversation.known = {text: ids for text, ids in known.items() if ids}
        return True

    def close(self) -> None:
        """Give the blocks of the cache back. Closing twice does nothing."""
        if self._reply is not None:
            self._reply.close()
        self.context.close()

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_idle(self) -> None:
        if self._reply is not None:
            raise ChatError("an answer is being written: read it to its end or close it first")


class _Streams:
    """Streams of answers, each with the next seed."""

    def __init__(self, llm: LLM, conversation: Conversation) -> None:
        self.llm, self.conversation = llm, conversation
        self._n = 0

    def start(
        self, ids: list[int], params: SamplingParams, n_left: int, on_prompt: Progress | None
    ) -> Stream:
        """Compute the tokens of `ids` that are not in the context, and write at most `n_left`."""
        seed = None if params.seed is None else (params.seed + self._n) % (1 << 64)
        self._n += 1
        context = self.conversation.context
        return self.llm.stream(
            ids[len(context) :],
            replace(params, max_tokens=n_left, seed=seed),
            context=context,
            prompt_progress=on_prompt,
        )


class Reply:
    """Iterator over the text of one answer, see `Chat.say`.

    text           the text that has been read so far
    token_ids      its tokens, when the answer has ended
    finish_reason  as for `Completion`; None while it is not finished, or if it was closed early
    timings        of its prompt and its tokens; `n_reused` prompt tokens were in the cache
    """

    def __init__(
        self,
        streams: _Streams,
        prompt: Prompt,
        params: SamplingParams,
        on_prompt: Progress | None,
        on_end: Callable[[Reply], None],
    ) -> None:
        """Use `Chat.say`."""
        self.text = ""
        self.token_ids: list[int] = []
        self.finish_reason: str | None = None
        n_cached = len(streams.conversation.context)
        self.timings = Timings(n_reused=min(n_cached, len(prompt.ids) - 1))
        self.prompt = prompt
        self._streams = streams
        self._params = params
        self._on_prompt = on_prompt
        self._on_end = on_end
        self._pieces = self._write()
        self._closed = False

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
        if not self._closed:
            self._closed = True
            self._pieces.close()
            self._on_end(self)

    def _write(self) -> Generator[str, None, None]:
        """The pieces, of one stream, or of several if turns are forgotten in between."""
        conversation, params = self._streams.conversation, self._params
        n_full = self._streams.llm.n_ctx - N_RESERVED
        while True:
            n_left = params.max_tokens - len(self.token_ids) if params.max_tokens >= 0 else -1
            ids = self.prompt.ids + self.token_ids
            stream = self._streams.start(ids, params, n_left, self._on_prompt)
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
        for name in ("n_prompt", "prompt_s", "n_decode", "decode_s"):
            setattr(self.timings, name, getattr(self.timings, name) + getattr(done.timings, name))


def _read(path: str | os.PathLike[str]) -> bytes:
    with open(path, "rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ChatError(f"{path}: is larger than {_MAX_BYTES} bytes")
    return data


def _parsed(path: str | os.PathLike[str], text: str | bytes) -> dict[str, Any]:
    """A conversation in a file: questions and answers in turn, maybe a system prompt in front.

    Raises `ChatError` for anything else.
    """
    try:
        state = json.loads(text)
        messages = state["messages"]
        n_system = int(messages[:1] != [] and messages[0]["role"] == "system")
        roles = ["system"] * n_system + ["user", "assistant"] * (len(messages) // 2)
        state["messages"] = [
            {"role": role, "content": message["content"]}
            for role, message in zip(roles, messages, strict=True)
            if message["role"] == role and message["content"].encode("utf-8") is not None
        ]
        if len(state["messages"]) == len(messages):
            return dict(state)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise ChatError(f"{path}: holds no conversation: questions and answers in turn as JSON")
