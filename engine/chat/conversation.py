"""A conversation as tokens: how messages become a prompt, and which part of it the cache has.

For each message the whole conversation is rendered and tokenized, and compared with the tokens in
the cache. So nothing has to be known about a template; it may even write earlier turns anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from lariat.chat import message_forms, thoughts
from lariat.chat.chat_template import ChatTemplate, marked
from lariat.errors import ChatError, ContextError
from lariat.reuse.prompt_reuse import common_prefix, shift

if TYPE_CHECKING:
    from lariat.llm import LLM

N_RESERVED = 32
"""Tokens at the end of the context. When an answer reaches them, the oldest turns are forgotten."""

_MAX_FILL = 0.75  # how full the context may be after turns were forgotten
_N_TRIED = 8  # numbers of turns to forget that are tried at a time
_MIN_KNOWN = 16  # characters of a text between two special tokens whose tokens are kept

Message = dict[str, Any]
"""As transformers has it: "role", "content", and for tools "tool_calls" and the like."""


class Prompt(NamedTuple):
    """A conversation that waits for an answer."""

    ids: list[int]
    end: str  # its text behind the last special token; the answer continues it
    begun: thoughts.Marks | None  # marks of a thought that the text begins for the answer


class Conversation:
    """Messages, and a context that holds their beginning.

    messages     all but the system prompt
    n_forgotten  how many of the oldest messages the context has lost; it keeps a developer's
    known        answers as they were sampled, by their text together with the text before it, back
                 to the last special token: the same text might be tokenized in another way
    context      their tokens in the cache
    """

    def __init__(self, llm: LLM, template: ChatTemplate, system: str) -> None:
        """Begin with a system prompt, "" for none.

        Raises `ChatError` if the template cannot be used, or refuses the prompt.
        """
        self._llm, self._tokenizer, self._template = llm, llm.tokenizer, template
        self._forms = message_forms.find(template)
        self.messages: list[Message] = []
        self.n_forgotten = 0
        self.known: dict[str, list[int]] = {}
        self._system = ""
        encode, forms = self._tokenizer.encode_marked, self._forms
        # User-defined tokens that are text in an answer: the template writes them around turns.
        self._around = frozenset(encode(forms.turns))
        # Those that are text in other messages: the template writes them, or looks for them.
        self._structure = self._around.union(encode(forms.others + template.source))
        # Special tokens that templates look for in answers. More are found as they occur.
        self._wanted = {
            text for marks in thoughts.MARKS if marks not in thoughts.HARMONY for text in marks
        }
        # An answer in harmony is several messages, of which the template writes the last one anew.
        is_harmony = thoughts.HARMONY[0].open in template.source or template.drops_thoughts
        self._between = thoughts.HARMONY_TOKENS if is_harmony else ()
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
            self._render([{"role": "user", "content": "-"}])  # whether the template takes it
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

    def answered(self, prompt: Prompt, text: str, ids: list[int]) -> None:
        """Take in the answer to `prompt`: its text, and the tokens that were sampled."""
        self.messages.append({"role": "assistant", "content": text})
        if self.decoded(ids) != text:  # cut at a stop text or within a character
            return
        before = prompt.end
        for part in self._parts(ids):
            key = before + self._mark_own(self.decoded(part))
            # A newline between two tokens is the template's, too.
            if part and (len(part) == len(ids) or before or len(key) >= _MIN_KNOWN):
                self.known[key] = self._tokenizer.encode_marked(before) + part
            before = ""

    def decoded(self, ids: list[int]) -> str:
        """The text of generated tokens, whole characters."""
        return "".join(map(self._tokenizer.decoder().feed, ids))

    def _parts(self, ids: list[int]) -> list[list[int]]:
        """The tokens of an answer between those that stay tokens when it is rendered."""
        parts: list[list[int]] = [[]]
        for i in ids:
            if self._stays(i):
                parts.append([])
            else:
                parts[-1].append(i)
        return parts

    def _stays(self, token_id: int) -> bool:
        """Whether a token of an answer is one again when the answer is rendered."""
        piece = self._tokenizer.piece(token_id)
        if piece in self._wanted or piece in self._between:
            return True
        return not self._tokenizer.ordinary_end(self._mark_own(piece))

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

    def _rendered(self, conversations: Sequence[list[Message]]) -> list[str]:
        """The texts of conversations, see `_render`."""
        formed = [self._forms.apply(self._with_system(messages)) for messages in conversations]
        special = set().union(*map(self._special_in, formed))
        if not special <= self._wanted:
            return [self._render(messages) for messages in conversations]
        texts = self._template.render_all([self._marked(f, special) for f in formed])
        for text in texts:
            if isinstance(text, ChatError):
                raise text
        return cast(list[str], texts)

    def _render(self, messages: list[Message]) -> str:
        """The text of a conversation in which special tokens of the messages are marked.

        Answers are the model's own text, and a template may look for marks of thoughts and calls in
        them. So tokens in answers are marked only if that changes nothing else in the text.
        """
        formed = self._forms.apply(self._with_system(messages))
        special = self._special_in(formed)
        if special <= self._wanted:
            return self._template.render(self._marked(formed, special))
        plain, (best,) = self._compared(formed, special, [special & self._wanted])
        if best is not None:
            return best
        ordered = sorted(special)
        _, others = self._compared(formed, special, [special - {text} for text in ordered])
        self._wanted |= {text for text, other in zip(ordered, others, strict=True) if other is None}
        plain, (best,) = self._compared(formed, special, [special & self._wanted])
        return plain if best is None else best

    def _compared(
        self, formed: list[Message], special: set[str], kept: Sequence[set[str]]
    ) -> tuple[str, list[str | None]]:
        """The text in which answers have no marks, and for each of `kept` the text in which they
        have marks but for these tokens; None where that differs in more than marks."""
        conversations = [self._marked(formed, keep) for keep in (special, *kept)]
        plain, *others = self._template.render_all(conversations)
        if isinstance(plain, ChatError):
            raise plain
        unmark = self._tokenizer.unmark
        return plain, [
            other if isinstance(other, str) and unmark(other) == unmark(plain) else None
            for other in others
        ]

    def _special_in(self, messages: Iterable[Message]) -> set[str]:
        """The special tokens that are written in answers."""
        special: set[str] = set()

        def look(text: str) -> str:
            if self._mark_own(text) != text:
                pieces = map(self._tokenizer.piece, set(self._tokenizer.encode_marked(text)))
                special.update(piece for piece in pieces if self._mark_own(piece) != piece)
            return text

        for message in messages:
            if message["role"] == "assistant":
                _with_marks(message, look)
        return special

    def _marked(self, messages: Iterable[Message], keep: set[str]) -> list[Message]:
        """The messages with marks, but for the tokens `keep` in answers."""
        kept = re.compile("(" + "|".join(map(re.escape, sorted(keep, key=len)[::-1])) + ")")

        def mark_answer(text: str) -> str:
            parts = kept.split(text) if keep else [text]
            return "".join(part if i % 2 else self._mark_own(part) for i, part in enumerate(parts))

        return [
            _with_marks(message, mark_answer if message["role"] == "assistant" else self._mark)
            for message in messages
        ]

    def _mark_own(self, text: str) -> str:
        return self._tokenizer.mark(text, self._around)

    def _mark(self, text: str) -> str:
        return self._tokenizer.mark(text, self._structure)

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
        return list(map(self._tokenized, self._rendered(conversations)))

    def _tokenized(self, text: str) -> Prompt:
        ids = self._tokenizer.encode_marked(text, self.known)
        if not ids:
            raise ChatError("the chat template writes nothing")
        bos = self._tokenizer.bos_id
        if self._tokenizer.add_bos and bos is not None and ids[:1] != [bos]:
            ids.insert(0, bos)
        return Prompt(ids, self._tokenizer.ordinary_end(text), thoughts.opened(text))

    def _check_length(self, ids: list[int]) -> None:
        if len(ids) >= self._llm.n_ctx:
            raise ContextError(
                f"that makes {len(ids)} tokens with what has to stay, "
                f"and the context has room for {self._llm.n_ctx}"
            )


def _with_marks(message: Message, mark: Callable[[str], str]) -> Message:
    """A message with marks in all that is said in it: not in its role, nor in types of parts."""
    result = {key: marked(value, mark) for key, value in message.items() if key != "role"}
    if isinstance(message["content"], list):
        result["content"] = [part | {"text": mark(part["text"])} for part in message["content"]]
    return {"role": message["role"]} | result
