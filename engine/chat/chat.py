"""Chat: a conversation with a model, whose keys and values stay in the cache from turn to turn."""

from __future__ import annotations

import json
import os
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lariat.chat import chat_template
from lariat.config import SamplingParams
from lariat.errors import ChatError, ContextError
from lariat.formats import context_file
from lariat.reuse.prompt_reuse import common_prefix, shift
from lariat.runtime.request import Completion, Timings

if TYPE_CHECKING:
    from lariat.llm import LLM

_ROOM = 32  # tokens at the end of the context: where an answer comes so far, old turns go
_FILL = 0.75  # how full the context is at most when they have gone
_MAX_BYTES = 64 << 20  # of a JSON file

Message = dict[str, str]  # "role": system, user or assistant; "content": the text
Progress = Callable[[int, int], None]


class _Prompt(NamedTuple):
    """A conversation that waits for an answer."""

    ids: list[int]
    end: str  # what is written behind the last special token: the answer goes on from there


class Chat:
    """A conversation. `say` a message, iterate over the answer, then say the next.

    llm       what answers
    template  how the conversation is written down: a name of `chat_template.FORMATS`, the source of
              a Jinja template, or None for the one in the model's file
    system    the system prompt, "" for none
    params    `SamplingParams` of the answers, each with the next seed; None: what the file asks for

    Only what is new is computed: the conversation's tokens are compared with those in the cache, so
    a template that writes earlier turns anew is right too. Where the context is full, the oldest
    turns leave it and the system prompt stays. Those behind move up and still carry what they saw;
    with the `raw` cache that computes nothing. `messages` keeps all.

    Special tokens count in the template alone: in a message they are ordinary text.

    Raises `ChatError` for a template that is missing or fails, and `ContextError` for a message
    that does not fit; the conversation is then as it was. Close it, or use it in a `with`
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
        self._llm, self._tokenizer = llm, llm.tokenizer
        self._template = chat_template.choose(template, llm.gguf, llm.tokenizer)
        self._messages: list[Message] = []  # without the system prompt
        self._n_forgotten = 0
        self._system = ""
        self._structure: frozenset[int] = frozenset()  # tokens that the template writes
        # Answers as they were sampled, by their text and what stands before it behind a special
        # token: the same text might be tokenized in another way.
        self._known: dict[str, list[int]] = {}
        self._n_streams = 0
        self._reply: Reply | None = None
        self.system = system
        self.params = params or llm.sampling.params
        end = llm.tokenizer.encode_marked(self._template.end)
        # Without a token of that text, generation ends at the text.
        self._stop = () if not end or end[0] in llm.tokenizer.eog_ids else (self._template.end,)
        self.context = llm.context()

    @property
    def messages(self) -> list[Message]:
        """All messages, the system prompt first: "role" and "content" of each. A copy."""
        return [dict(m) for m in self._with_system(self._messages)]

    @property
    def n_forgotten(self) -> int:
        """How many of the oldest messages, the system prompt aside, the context has lost."""
        return self._n_forgotten

    @property
    def system(self) -> str:
        """The system prompt. After a change the next turn computes the conversation anew."""
        return self._system

    @system.setter
    def system(self, text: str) -> None:
        """Change it; `ChatError` if the template does not take it."""
        self._check_idle()
        before, self._system = self._system, text
        try:
            # Of a conversation about nothing: whether the template takes the prompt.
            probe = [{"role": role, "content": "-"} for role in ("user", "assistant", "user")]
            self._structure = frozenset(self._tokenizer.encode_marked(self._render(probe)))
        except BaseException:
            self._system = before
            raise

    def say(
        self,
        text: str,
        params: SamplingParams | None = None,
        *,
        prompt_progress: Progress | None = None,
    ) -> Reply:
        """Say something, and iterate over what is returned for the answer, piece by piece.

        `params` are for this answer. `prompt_progress` as for `LLM.stream`. An answer that is
        closed early stays in the conversation as far as it was read; if nothing was read, the
        message is taken back. What goes wrong with the model is raised while reading.
        """
        self._check_idle()
        self._messages.append({"role": "user", "content": text})
        try:
            prompt = self._write()
        except BaseException:
            self._messages.pop()
            raise
        params = params or self.params
        params = replace(params, stop=(*params.stop, *self._stop))
        self._reply = Reply(self, prompt, params, prompt_progress)
        return self._reply

    def undo(self) -> str | None:
        """Take the last message and its answer back; returns the message, None if there is none."""
        self._check_idle()
        if not self._messages:
            return None
        text = self._messages[-2]["content"]
        del self._messages[-2:]
        self._n_forgotten = min(self._n_forgotten, len(self._messages))
        return text

    def reset(self) -> None:
        """Forget all messages but the system prompt."""
        self._check_idle()
        self._messages, self._n_forgotten = [], 0
        self._known.clear()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the conversation to a file, which appears whole or not at all.

        With keys and values, as `Context.save` does, or the messages alone as JSON where the name
        ends in .json. `ContextError` if it cannot be written.
        """
        self._check_idle()
        if Path(path).suffix == ".json":
            text = json.dumps({"messages": self.messages}, ensure_ascii=False, indent=2)
            with context_file.written_beside(Path(path)) as beside:
                beside.write_text(text + "\n", encoding="utf-8")
            return
        state = {
            "messages": self.messages, "n_forgotten": self._n_forgotten, "known": self._known
        }  # fmt: skip
        self.context.save(path, note=json.dumps(state))

    def load(self, path: str | os.PathLike[str]) -> bool:
        """Replace the conversation by what `save` wrote; the template stays.

        Returns whether keys and values came along. There are none in JSON, and those of another
        model or cache do not fit: the next turn then computes the conversation. `ChatError` or
        `ContextError` for a file that holds no conversation, OSError if there is no such file.
        """
        self._check_idle()
        is_json = Path(path).suffix == ".json"
        state = _parsed(path, _read(path) if is_json else context_file.note(path))
        messages = state["messages"]
        has_system = bool(messages) and messages[0]["role"] == "system"
        self.system = messages.pop(0)["content"] if has_system else ""
        self._messages, self._n_forgotten, self._known = messages, 0, {}
        if is_json:
            return False
        try:
            self.context.load(path)
        except ContextError:
            return False
        if state.get("n_forgotten") in range(0, len(messages), 2):
            self._n_forgotten = state["n_forgotten"]
        # Without them the answers are tokenized again.
        with suppress(AttributeError, KeyError, TypeError, ValueError):
            self._known = {k: self._llm.check_ids(ids) for k, ids in state["known"].items()}
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

    # ---- below: messages to text to tokens, and what the cache has of them ----

    def _check_idle(self) -> None:
        if self._reply is not None:
            raise ChatError("an answer is being written: read it to its end or close it first")

    def _with_system(self, messages: list[Message]) -> list[Message]:
        return [{"role": "system", "content": self._system}] * bool(self._system) + messages

    def _render(self, messages: list[Message]) -> str:
        mark = self._tokenizer.mark
        return self._template.render(
            [
                {"role": m["role"], "content": mark(m["content"], self._structure)}
                for m in self._with_system(messages)
            ]
        )

    def _prompt(self, first: int, stop: int | None = None) -> _Prompt:
        """The conversation from a message on, to before another."""
        text = self._render(self._messages[first:stop])
        ids = self._tokenizer.encode_marked(text, self._known)
        if not ids:
            raise ChatError("the chat template writes nothing")
        bos = self._tokenizer.bos_id
        if self._tokenizer.add_bos and bos is not None and ids[:1] != [bos]:
            ids.insert(0, bos)
        return _Prompt(ids, self._tokenizer.ordinary_end(text))

    def _write(self) -> _Prompt:
        """The conversation, as far as there is room for it; its beginning is in the cache."""
        prompt, cached = self._prompt(self._n_forgotten), self.context.tokens
        last = self._messages[-2] if len(self._messages) > 1 else {"content": ""}
        content, stripped = last["content"], last["content"].strip()
        if content != stripped:
            # A template may put the blank before an answer that the model has written by itself.
            last["content"] = stripped
            other = self._prompt(self._n_forgotten)
            if common_prefix(cached, other.ids) > common_prefix(cached, prompt.ids):
                prompt = other
            else:
                last["content"] = content
        if len(prompt.ids) + _ROOM > self._llm.n_ctx and self._can_forget:
            return self._forget([])
        self._check_length(prompt.ids)
        self.context.truncate(common_prefix(cached, prompt.ids))
        return prompt

    @property
    def _can_forget(self) -> bool:
        return len(self._messages) - self._n_forgotten > 1

    def _forget(self, answer: list[int]) -> _Prompt:
        """The conversation without its oldest turns, so that it has room with the tokens of an
        answer that is under way. The turns that stay move up in the cache."""
        most = int(_FILL * self._llm.n_ctx) - len(answer)
        last = len(self._messages) - 1  # the message that is to be answered, or is being answered
        starts = range(self._n_forgotten + 2, last + 1, 2)  # of the turns behind
        n = bisect_left(
            starts, True, hi=len(starts) - 1, key=lambda i: len(self._prompt(i).ids) <= most
        )
        first, cached = starts[n], self.context.tokens
        prompt = self._prompt(first)
        ids = prompt.ids + answer
        self._check_length(ids)
        n_moving = len(ids)
        if not answer:  # what was said last is new, even where it was said before
            stays = self._prompt(first, last).ids if first < last else []
            n_moving = max(common_prefix(stays, ids), common_prefix(cached, ids))
        n_forgotten = common_prefix(cached, self._prompt(self._n_forgotten, first).ids)
        try:
            shift(self.context, ids[:n_moving], n_forgotten)
            self.context.compact()
        except ContextError:  # keys that cannot move: what stays is computed anew
            self.context.truncate(common_prefix(self.context.tokens, ids))
        self._n_forgotten = first
        return prompt

    def _check_length(self, ids: list[int]) -> None:
        if len(ids) >= self._llm.n_ctx:
            raise ContextError(
                f"that makes {len(ids)} tokens with what has to stay, "
                f"and the context has room for {self._llm.n_ctx}"
            )

    def _keep(self, reply: Reply) -> None:
        """Take an answer into the conversation, however it ended."""
        self._reply = None
        if not reply.text and reply.finish_reason is None:
            self._messages.pop()
            return
        self._messages.append({"role": "assistant", "content": reply.text})
        if _decoded(self._llm, reply.token_ids) == reply.text:  # no stop text, no half a character
            mark, start = self._tokenizer.mark, reply.prompt.end
            ids = self._tokenizer.encode_marked(start) + reply.token_ids
            self._known[start + mark(reply.text, self._structure)] = ids


class Reply:
    """Iterator over the text of one answer, see `Chat.say`.

    text           what has been read so far
    token_ids      of it, once the answer has ended
    finish_reason  as for `Completion`; None while it is not finished, or if it was closed early
    timings        of its prompt and its tokens; `n_reused` is what the cache had of the prompt
    """

    def __init__(
        self, chat: Chat, prompt: _Prompt, params: SamplingParams, on_prompt: Progress | None
    ) -> None:
        """Use `Chat.say`."""
        self.text = ""
        self.token_ids: list[int] = []
        self.finish_reason: str | None = None
        self.timings = Timings(n_reused=min(len(chat.context), len(prompt.ids) - 1))
        self.prompt = prompt
        self._chat = chat
        self._params = params
        self._on_prompt = on_prompt
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
        """Stop writing. What was read stays in the conversation. Closing twice does nothing."""
        if not self._closed:
            self._closed = True
            self._pieces.close()
            self._chat._keep(self)

    def _write(self) -> Generator[str, None, None]:
        """The pieces, from one stream, or from several where turns are forgotten in between."""
        chat, llm, params = self._chat, self._chat._llm, self._params
        while True:
            n_left = params.max_tokens - len(self.token_ids) if params.max_tokens >= 0 else -1
            seed = None if params.seed is None else (params.seed + chat._n_streams) % (1 << 64)
            chat._n_streams += 1
            prompt = (self.prompt.ids + self.token_ids)[len(chat.context) :]
            stream = llm.stream(
                prompt, replace(params, max_tokens=n_left, seed=seed),
                context=chat.context, prompt_progress=self._on_prompt,
            )  # fmt: skip
            done = stream.completion
            try:
                for piece in stream:
                    self.text += piece
                    yield piece
                    # The first place near the end of the context where nothing is held back.
                    is_near = chat._can_forget and len(chat.context) > llm.n_ctx - _ROOM
                    if is_near and _decoded(llm, done.token_ids) == done.text:
                        break
            finally:
                stream.close()
                self._book(done)
            if done.finish_reason in ("stop", "length") or not chat._can_forget:
                self.finish_reason = done.finish_reason
                return
            self.prompt = chat._forget(self.token_ids)

    def _book(self, done: Completion) -> None:
        self.token_ids += done.token_ids
        for name in ("n_prompt", "prompt_s", "n_decode", "decode_s"):
            setattr(self.timings, name, getattr(self.timings, name) + getattr(done.timings, name))


def _decoded(llm: LLM, ids: list[int]) -> str:
    """The text of generated tokens, whole characters."""
    return "".join(map(llm.tokenizer.decoder().feed, ids))


def _read(path: str | os.PathLike[str]) -> bytes:
    with open(path, "rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ChatError(f"{path}: is larger than {_MAX_BYTES} bytes")
    return data


def _parsed(path: str | os.PathLike[str], text: str | bytes) -> dict[str, Any]:
    """What a file says of a conversation; its messages are checked: questions and answers in turn,
    a system prompt in front at most."""
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
