"""Log-probabilities in OpenAI's two shapes: a list for chat, and parallel lists for completions."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from lariat.protocol import errors
from lariat.runtime.logprobs import TokenLogprob
from lariat.tokenizers.tokenizer import Tokenizer

MAX_TOP = 20  # tokens beside each


class TopLogprob(msgspec.Struct, kw_only=True):
    """A likely token."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatLogprob(msgspec.Struct, kw_only=True):
    """A token of an answer."""

    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, kw_only=True):
    """The tokens of an answer, or of a part of one."""

    content: list[ChatLogprob]
    refusal: None = None


class TextLogprobs(msgspec.Struct, kw_only=True):
    """The tokens of a continuation, with the prompt's in front where it is repeated. The first
    token of a prompt has no log-probability. `text_offset` counts characters."""

    tokens: list[str] = msgspec.field(default_factory=list)
    token_logprobs: list[float | None] = msgspec.field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = msgspec.field(default_factory=list)
    text_offset: list[int] = msgspec.field(default_factory=list)


def check_top(n: int, name: str) -> int:
    """How many tokens come beside each. ApiError for too many."""
    if not 0 <= n <= MAX_TOP:
        raise errors.bad(f"{name} is {n}, expected 0 to {MAX_TOP}", name)
    return n


def text_of(tokenizer: Tokenizer, token: int) -> str:
    """A token as text; one that is a part of a character as "bytes:\\xf0"."""
    data = tokenizer.decode_token(token)
    if not data:
        return tokenizer.piece(token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def chat(tokenizer: Tokenizer, given: Iterable[TokenLogprob]) -> ChatLogprobs:
    """For an answer of a chat."""

    def top(token: int, logprob: float) -> TopLogprob:
        data = list(tokenizer.decode_token(token))
        return TopLogprob(
            token=text_of(tokenizer, token), logprob=logprob, bytes=data if data else None
        )

    content = []
    for one in given:
        own = top(one.token_id, one.logprob)
        content.append(
            ChatLogprob(
                token=own.token,
                logprob=own.logprob,
                bytes=own.bytes,
                top_logprobs=[top(*pair) for pair in one.top],
            )
        )
    return ChatLogprobs(content=content)


class TextWriter:
    """Writes `TextLogprobs` piece by piece: offsets go on."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = tokenizer.decoder()
        self._offset = 0

    def add(self, ids: Iterable[int], given: Iterable[TokenLogprob | None]) -> TextLogprobs:
        """The next tokens; None for one without a log-probability."""
        added = TextLogprobs()
        for token, one in zip(ids, given, strict=True):
            added.tokens.append(text_of(self._tokenizer, token))
            added.text_offset.append(self._offset)
            added.token_logprobs.append(None if one is None else one.logprob)
            top = None
            if one is not None and one.top:
                top = {text_of(self._tokenizer, i): logprob for i, logprob in one.top}
                top.setdefault(added.tokens[-1], one.logprob)
            added.top_logprobs.append(top)
            self._offset += len(self._decoder.feed(token))
        return added


def joined(parts: Iterable[TextLogprobs]) -> TextLogprobs:
    """Parts of one continuation as a whole."""
    whole = TextLogprobs()
    for part in parts:
        whole.tokens += part.tokens
        whole.token_logprobs += part.token_logprobs
        whole.top_logprobs += part.top_logprobs
        whole.text_offset += part.text_offset
    return whole
