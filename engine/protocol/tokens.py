"""Tokens and templates, as llama.cpp's server has them: `/tokenize`, `/detokenize`,
`/apply-template`.

https://github.com/ggml-org/llama.cpp/tree/master/tools/server
"""

from __future__ import annotations

from typing import Any

import msgspec
from lariat.protocol import errors
from lariat.protocol.conversation import Message, Tool, for_template, tools_for_template
from lariat.protocol.served import Served


class TokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A text. `add_special` adds the begin token, where the model has one."""

    content: str
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False
    model: str | None = None


class TokenPiece(msgspec.Struct, kw_only=True):
    """A token and its text; bytes, if it is a part of a character."""

    id: int
    piece: str | list[int]


class TokenizeAnswer(msgspec.Struct, kw_only=True):
    """The tokens of a text: ids, or with_pieces ids and their texts."""

    tokens: list[int | TokenPiece]


class DetokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Token ids."""

    tokens: list[int]
    model: str | None = None


class DetokenizeAnswer(msgspec.Struct, kw_only=True):
    """The text of token ids; control tokens are invisible."""

    content: str


class TemplateRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A conversation."""

    messages: list[Message]
    tools: list[Tool] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    model: str | None = None


class TemplateAnswer(msgspec.Struct, kw_only=True):
    """The conversation as text with its special tokens, and its tokens."""

    prompt: str
    tokens: list[int]


def tokenize(request: TokenizeRequest, served: Served) -> TokenizeAnswer:
    """The tokens of a text. ApiError for text that is not valid Unicode."""
    served.check_name(request.model)
    tokenizer = served.llm.tokenizer
    ids = tokenizer.encode(request.content, request.add_special, request.parse_special)
    if not request.with_pieces:
        return TokenizeAnswer(tokens=[*ids])
    pieces: list[int | TokenPiece] = []
    for i in ids:
        data = tokenizer.decode_token(i)
        try:
            piece: str | list[int] = data.decode()
        except UnicodeDecodeError:
            piece = list(data)
        pieces.append(TokenPiece(id=i, piece=piece or tokenizer.piece(i)))
    return TokenizeAnswer(tokens=pieces)


def detokenize(request: DetokenizeRequest, served: Served) -> DetokenizeAnswer:
    """The text of token ids. ApiError for ids that are not in the vocabulary."""
    served.check_name(request.model)
    return DetokenizeAnswer(content=served.llm.detokenize(request.tokens))


def apply_template(request: TemplateRequest, served: Served) -> TemplateAnswer:
    """A conversation as the model reads it. It starts a process, so call it in a thread."""
    served.check_name(request.model)
    if not request.messages:
        raise errors.bad("messages is empty", "messages")
    rendering = served.rendering(tools_for_template(request.tools), request.chat_template_kwargs)
    messages = for_template(request.messages, rendering.forms.thought_field)
    return TemplateAnswer(
        prompt=rendering.text(messages), tokens=served.prompt(rendering, messages).ids
    )
