"""A conversation as tokens: how messages become a prompt, and which part of it the cache has.

For each message the whole conversation is rendered and tokenized, and compared with the tokens in
the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from lariat.chat.chat_template import ChatTemplate
from lariat.chat.rendering import Message, Prompt, Rendering
from lariat.errors import ChatError, ContextError
from lariat.reuse.prompt_reuse import common_prefix, shift

if TYPE_CHECKING:
    from lariat.llm import LLM

N_RESERVED = 32
"""Tokens at the end of the context. When an answer reaches them, the oldest turns are forgotten."""

_MAX_FILL = 0.75  # how full the context may be after turns were forgotten
_N_TRIED = 8  # numbers of turns to forget that are tried at a time


class Conversation:
    """Messages, and a context that holds their beginning.

    messages     all but the system prompt
    n_forgotten  how many of the oldest messages the context has lost; it keeps a developer's
    known        the tokens of answers as they were sampled
    context      their tokens in the cache
    """

    def __init__(self, llm: LLM, template: ChatTemplate, system: str) -> None:
        """Begin with a system prompt, "" for none.

        Raises `ChatError` if the template cannot be used, or refuses the prompt.
        """
        self._llm = llm
        self._rendering = Rendering(llm.tokenizer, template)
        self.messages: list[Message] = []
        self.n_forgotten = 0
        self._system = ""
        if system:
            self.system = system
        self.context = llm.context()
        self._moved_from: int | None = None  # the first token that moved up, with those behind it

    @property
    def n_exact(self) -> int:
        """First tokens of the context that stand behind the text that they were computed behind."""
        return len(self.context) if self._moved_from is None else self._moved_from

    @property
    def system(self) -> str:
        """The system prompt."""
        return self._system

    @system.setter
    def system(self, text: str) -> None:
        """Change it. Raises `ChatError` if the template refuses it."""
        before, self._system = self._system, text
        try:
            self._rendering.check(self._with_system([{"role": "user", "content": "-"}]))
        except BaseException:
            self._system = before
            raise

    def with_system(self) -> list[Message]:
        """All messages, the system prompt first."""
        return self._with_system(self.messages)

    @property
    def starts(self) -> list[int]:
        """Where turns begin: at a message of the user behind one of another role."""
        roles = ["", *(message["role"] for message in self.messages)]
        return [
            i
            for i, (before, role) in enumerate(pairwise(roles))
            if role == "user" and before != "user"
        ]

    @property
    def can_forget(self) -> bool:
        """Whether there is an older turn than the last that the context has not lost."""
        return bool(self._later_starts())

    def prompt(self) -> Prompt:
        """The conversation, without its oldest turns if it is too long.

        Afterwards the context holds the beginning of it. Raises `ContextError` if the last turn
        alone is too long.
        """
        prompt, cached = self._prompt(self.n_forgotten), self.context.tokens
        last = next((m for m in reversed(self.messages) if m["role"] == "assistant"), {})
        content = last.get("content")
        if isinstance(content, str) and content != content.strip():
            # A template may write the blank before an answer that the model has written itself.
            last["content"] = content.strip()
            try:
                other = self._prompt(self.n_forgotten)
            except ChatError:
                other = prompt
            if common_prefix(cached, other.ids) > common_prefix(cached, prompt.ids):
                prompt = other
            else:
                last["content"] = content
        if len(prompt.ids) + N_RESERVED > self._llm.n_ctx and self.can_forget:
            return self.forget([])
        self._check_length(prompt.ids)
        self._truncate(common_prefix(cached, prompt.ids))
        return prompt

    def forget(self, answer: list[int]) -> Prompt:
        """Forget the oldest turns, so that there is room behind the tokens of an unfinished answer.

        Returns the prompt of the turns that stay. They move up in the cache. Templates may ask for
        a message of the user at both ends, so only whole conversations are rendered.
        """
        n_max = int(_MAX_FILL * self._llm.n_ctx) - len(answer)
        starts = self._later_starts()
        low, high = 0, len(starts) - 1  # the last turn has to do
        while low < high:  # several at a time, because a template renders many as quickly as one
            tried = sorted({low + (high - low) * k // _N_TRIED for k in range(_N_TRIED)})
            fits = [len(p.ids) <= n_max for p in self._prompts([starts[n] for n in tried])]
            n = fits.index(True) if True in fits else len(fits)
            low, high = tried[n - 1] + 1 if n else low, tried[n] if n < len(fits) else high
        first, cached = starts[low], self.context.tokens
        prompt, stays, whole = self._prompts([first, first, self.n_forgotten], another_end=1)
        before = whole.ids
        ids = prompt.ids + answer
        self._check_length(ids)
        n_moving = len(ids)
        if not answer:  # the last message is new, even if the same was said before
            n_moving = max(common_prefix(stays.ids, ids), common_prefix(cached, ids))
        # The turns that stay are the common end of both prompts.
        n_lost = len(before) - common_prefix(before[::-1], prompt.ids[::-1])
        n_lost = min(n_lost, common_prefix(cached, before))
        try:
            n_exact = min(self.n_exact, common_prefix(cached, ids))
            shift(self.context, ids[:n_moving], n_lost)
            self._moved_from = n_exact
            self.context.compact()
        except ContextError:  # these keys cannot move, so the turns that stay are recomputed
            self._truncate(common_prefix(self.context.tokens, ids))
        self.n_forgotten = first
        return prompt

    def _truncate(self, n_tokens: int) -> None:
        self.context.truncate(n_tokens)
        if n_tokens <= self.n_exact:
            self._moved_from = None

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts that end an answer, see `Rendering`."""
        return self._rendering.stop

    @property
    def known(self) -> dict[str, list[int]]:
        """The tokens of answers, see `Rendering`."""
        return self._rendering.known

    @known.setter
    def known(self, known: dict[str, list[int]]) -> None:
        """Replace them."""
        self._rendering.known = known

    def answered(self, prompt: Prompt, text: str, ids: list[int]) -> None:
        """Take in the answer to `prompt`: its text, and the tokens that were sampled."""
        self.messages.append({"role": "assistant", "content": text})
        self._rendering.learn(prompt, text, ids)

    def decoded(self, ids: list[int]) -> str:
        """The text of generated tokens, whole characters."""
        return self._rendering.decoded(ids)

    def _later_starts(self) -> list[int]:
        """Where the turns behind the first one begin, of those that the context has not lost."""
        roles = [message["role"] for message in self.messages]
        return [
            i
            for i in self.starts
            if any(role != "developer" for role in roles[self.n_forgotten : i])
        ]

    def _with_system(self, messages: list[Message]) -> list[Message]:
        return [{"role": "system", "content": self._system}] * bool(self._system) + messages

    def _prompt(self, first: int) -> Prompt:
        """The messages from `first` on, behind the system prompt and those of developers."""
        return self._prompts([first])[0]

    def _prompts(self, firsts: Sequence[int], another_end: int | None = None) -> list[Prompt]:
        """`_prompt` for each of `firsts`. In that with the number `another_end`, something else is
        said after the last answer."""
        conversations = [
            [m for m in self.messages[:first] if m["role"] == "developer"] + self.messages[first:]
            for first in firsts
        ]
        if another_end is not None:
            messages = conversations[another_end]
            roles = ["assistant", *(message["role"] for message in messages)]
            at = len(roles) - 1 - roles[::-1].index("assistant")
            other = "+" if messages[at]["content"].startswith("-") else "-"
            messages[at] = messages[at] | {"content": other}
        return self._rendering.prompts([self._with_system(some) for some in conversations])

    def _check_length(self, ids: list[int]) -> None:
        if len(ids) >= self._llm.n_ctx:
            raise ContextError(
                f"that makes {len(ids)} tokens with what has to stay, "
                f"and the context has room for {self._llm.n_ctx}"
            )
