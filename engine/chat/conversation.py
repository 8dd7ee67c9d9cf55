"""A conversation as tokens: how messages become a prompt, and which part of it the cache has.

For each message the whole conversation is rendered and tokenized, and compared with the tokens in
the cache. So nothing has to be known about a template; it may even write earlier turns anew.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

from lariat.chat.chat_template import ChatTemplate
from lariat.errors import ChatError, ContextError
from lariat.reuse.prompt_reuse import common_prefix, shift

if TYPE_CHECKING:
    from lariat.llm import LLM

N_RESERVED = 32
"""Tokens at the end of the context. When an answer reaches them, the oldest turns are forgotten."""

_MAX_FILL = 0.75  # how full the context may be after turns were forgotten

Message = dict[str, str]  # "role": system, user or assistant; "content": the text


class Prompt(NamedTuple):
    """A conversation that waits for an answer."""

    ids: list[int]
    end: str  # its text behind the last special token; the answer continues it


class Conversation:
    """Messages, and a context that holds their beginning.

    messages     all but the system prompt
    n_forgotten  how many of the oldest messages the context has lost
    known        answers as they were sampled, by their text together with the text before it, back
                 to the last special token: the same text might be tokenized in another way
    context      their tokens in the cache
    """

    def __init__(self, llm: LLM, template: ChatTemplate, system: str) -> None:
        """Begin with a system prompt, "" for none.

        Raises `ChatError` if the template refuses it.
        """
        self._llm, self._tokenizer, self._template = llm, llm.tokenizer, template
        self.messages: list[Message] = []
        self.n_forgotten = 0
        self.known: dict[str, list[int]] = {}
        self._system = ""
        self._structure: frozenset[int] = frozenset()  # tokens that the template writes
        self.system = system
        self.context = llm.context()

    @property
    def system(self) -> str:
        """The system prompt."""
        return self._system

    @system.setter
    def system(self, text: str) -> None:
        """Change it. Raises `ChatError` if the template refuses it."""
        before, self._system = self._system, text
        try:
            # A conversation about nothing shows whether the template takes the prompt.
            probe = [{"role": role, "content": "-"} for role in ("user", "assistant", "user")]
            self._structure = frozenset(self._tokenizer.encode_marked(self._render(probe)))
        except BaseException:
            self._system = before
            raise

    def with_system(self) -> list[Message]:
        """All messages, the system prompt first."""
        return self._with_system(self.messages)

    @property
    def can_forget(self) -> bool:
        """Whether the context still has a turn before the last one."""
        return len(self.messages) - self.n_forgotten > 1

    def prompt(self) -> Prompt:
        """The conversation, without its oldest turns if it is too long.

        Afterwards the context holds the beginning of it. Raises `ContextError` if the last turn
        alone is too long.
        """
        prompt, cached = self._prompt(self.n_forgotten), self.context.tokens
        last = self.messages[-2] if len(self.messages) > 1 else {"content": ""}
        content, stripped = last["content"], last["content"].strip()
        if content != stripped:
            # A template may write the blank before an answer that the model has written itself.
            last["content"] = stripped
            other = self._prompt(self.n_forgotten)
            if common_prefix(cached, other.ids) > common_prefix(cached, prompt.ids):
                prompt = other
            else:
                last["content"] = content
        if len(prompt.ids) + N_RESERVED > self._llm.n_ctx and self.can_forget:
            return self.forget([])
        self._check_length(prompt.ids)
        self.context.truncate(common_prefix(cached, prompt.ids))
        return prompt

    def forget(self, answer: list[int]) -> Prompt:
        """Forget the oldest turns, so that there is room behind the tokens of an unfinished answer.

        Returns the prompt of the turns that stay. They move up in the cache.
        """
        n_max = int(_MAX_FILL * self._llm.n_ctx) - len(answer)
        last = len(self.messages) - 1  # the message that waits for an answer
        starts = range(self.n_forgotten + 2, last + 1, 2)  # of later turns
        n = bisect_left(
            starts, True, hi=len(starts) - 1, key=lambda i: len(self._prompt(i).ids) <= n_max
        )
        first, cached = starts[n], self.context.tokens
        prompt = self._prompt(first)
        ids = prompt.ids + answer
        self._check_length(ids)
        n_moving = len(ids)
        if not answer:  # the last message is new, even if the same was said before
            stays = self._prompt(first, last).ids if first < last else []
            n_moving = max(common_prefix(stays, ids), common_prefix(cached, ids))
        n_lost = common_prefix(cached, self._prompt(self.n_forgotten, first).ids)
        try:
            shift(self.context, ids[:n_moving], n_lost)
            self.context.compact()
        except ContextError:  # these keys cannot move, so the turns that stay are recomputed
            self.context.truncate(common_prefix(self.context.tokens, ids))
        self.n_forgotten = first
        return prompt

    def answered(self, prompt: Prompt, text: str, ids: list[int]) -> None:
        """Take in the answer to `prompt`: its text, and the tokens that were sampled."""
        self.messages.append({"role": "assistant", "content": text})
        if self.decoded(ids) == text:  # not cut at a stop text or within a character
            key = prompt.end + self._tokenizer.mark(text, self._structure)
            self.known[key] = self._tokenizer.encode_marked(prompt.end) + ids

    def decoded(self, ids: list[int]) -> str:
        """The text of generated tokens, whole characters."""
        return "".join(map(self._tokenizer.decoder().feed, ids))

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

    def _prompt(self, first: int, stop: int | None = None) -> Prompt:
        """The messages from `first` to before `stop`, behind the system prompt."""
        text = self._render(self.messages[first:stop])
        ids = self._tokenizer.encode_marked(text, self.known)
        if not ids:
            raise ChatError("the chat template writes nothing")
        bos = self._tokenizer.bos_id
        if self._tokenizer.add_bos and bos is not None and ids[:1] != [bos]:
            ids.insert(0, bos)
        return Prompt(ids, self._tokenizer.ordinary_end(text))

    def _check_length(self, ids: list[int]) -> None:
        if len(ids) >= self._llm.n_ctx:
            raise ContextError(
                f"that makes {len(ids)} tokens with what has to stay, "
                f"and the context has room for {self._llm.n_ctx}"
            )
