"""Messages as tokens: renders conversations with a template, and tokenizes the text.

Nothing has to be known about a template; it may even write earlier turns anew. Special tokens in
messages are ordinary text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from lariat.chat import message_forms, thoughts
from lariat.chat.chat_template import ChatTemplate, marked
from lariat.errors import ChatError

if TYPE_CHECKING:
    from lariat.tokenizers.tokenizer import Tokenizer

_MIN_KNOWN = 16  # characters of a text between two special tokens whose tokens are kept

Message = dict[str, Any]
"""As transformers has it: "role", "content", and for tools "tool_calls" and the like."""


class Prompt(NamedTuple):
    """A conversation that waits for an answer."""

    ids: list[int]
    end: str  # its text behind the last special token; the answer continues it
    begun: thoughts.Marks | None  # marks of a thought that the text begins for the answer


class Rendering:
    """A template with a tokenizer: turns whole conversations into prompts.

    forms   the form in which the template takes messages
    stop    texts that end an answer where the model has no token for it
    known   answers as they were sampled, by their text together with the text before it, back to
            the last special token: the same text might be tokenized in another way
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        """Raises `ChatError` if the template cannot be used."""
        self._tokenizer, self._template = tokenizer, template
        self.forms = message_forms.find(template)
        self.known: dict[str, list[int]] = {}
        encode, forms = tokenizer.encode_marked, self.forms
        end = encode(template.end)
        is_token = not end or end[0] in tokenizer.eog_ids
        self.stop: tuple[str, ...] = () if is_token else (template.end,)
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

    def check(self, messages: list[Message]) -> None:
        """Raise `ChatError` if the template refuses a conversation."""
        self._render(messages)

    def text(self, messages: list[Message]) -> str:
        """A whole conversation as text, ready for the assistant's answer. Raises `ChatError`."""
        return self._tokenizer.unmark(self._render(messages))

    def prompt(self, messages: list[Message]) -> Prompt:
        """A whole conversation, ready for the assistant's answer. Raises `ChatError`."""
        return self.prompts([messages])[0]

    def prompts(self, conversations: Sequence[list[Message]]) -> list[Prompt]:
        """`prompt` of each; a template renders many as quickly as one."""
        return list(map(self._tokenized, self._rendered(conversations)))

    def learn(self, prompt: Prompt, text: str, ids: list[int]) -> None:
        """Keep the tokens that were sampled as the answer to `prompt`, if `text` is all of it."""
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

    def _rendered(self, conversations: Sequence[list[Message]]) -> list[str]:
        """The texts of conversations, see `_render`."""
        formed = [self.forms.apply(messages) for messages in conversations]
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
        formed = self.forms.apply(messages)
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

    def _tokenized(self, text: str) -> Prompt:
        ids = self._tokenizer.encode_marked(text, self.known)
        if not ids:
            raise ChatError("the chat template writes nothing")
        bos = self._tokenizer.bos_id
        if self._tokenizer.add_bos and bos is not None and ids[:1] != [bos]:
            ids.insert(0, bos)
        return Prompt(ids, self._tokenizer.ordinary_end(text), thoughts.opened(text))


def _with_marks(message: Message, mark: Callable[[str], str]) -> Message:
    """A message with marks in all that is said in it: not in its role, nor in types of parts."""
    result = {key: marked(value, mark) for key, value in message.items() if key != "role"}
    if isinstance(message["content"], list):
        result["content"] = [part | {"text": mark(part["text"])} for part in message["content"]]
    return {"role": message["role"]} | result
