"""Tokens and templates, as llama.cpp's server and vLLM's have them: `/tokenize`, `/detokenize`,
`/apply-template`, `/tokenizer_info`. lm-evaluation-harness asks for tokens in vLLM's words.

https://github.com/ggml-org/llama.cpp/tree/master/tools/server
https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html
"""

from __future__ import annotations

from typing import Any

import msgspec
from lariat.protocol import errors
from lariat.protocol.conversation import Message, Tool, for_template, tools_for_template
from lariat.protocol.served import Served


class TokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A text, called `content` by llama.cpp and `prompt` by vLLM. `add_special`, or
    `add_special_tokens`, adds the begin token, where the model has one."""

    content: str | None = None
    prompt: str | None = None
    add_special: bool = False
    add_special_tokens: bool = False
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
    count: int
    max_model_len: int


class DetokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Token ids."""

    tokens: list[int]
    model: str | None = None


class DetokenizeAnswer(msgspec.Struct, kw_only=True):
    """The text of token ids under both names; control tokens are invisible."""

    content: str
    prompt: str


class TokenizerInfo(msgspec.Struct, kw_only=True):
    """The vocabulary, in short: the tokens that begin and end texts, and the chat template."""

    n_vocab: int
    bos_token: str | None = None
    eos_token: str | None = None
    chat_template: str | None = None


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
    """The tokens of a text. ApiError without a text, and for one that is not valid Unicode."""
    served.check_name(request.model)
    given = [text for text in (request.content, request.prompt) if text is not None]
    if len(given) != 1:
        raise errors.bad("either content or prompt has to be there", "content")
    tokenizer = served.llm.tokenizer
    adds = request.add_special or request.add_special_tokens
    ids = tokenizer.encode(given[0], adds, request.parse_special)
    pieces: list[int | TokenPiece] = [*ids]
    if request.with_pieces:
        pieces = [_piece(served, i) for i in ids]
    return TokenizeAnswer(tokens=pieces, count=len(ids), max_model_len=served.llm.n_ctx)


def _piece(served: Served, i: int) -> TokenPiece:
    data = served.llm.tokenizer.decode_token(i)
    try:
        piece: str | list[int] = data.decode()
    except UnicodeDecodeError:
        piece = list(data)
    return TokenPiece(id=i, piece=piece or served.llm.tokenizer.piece(i))


def detokenize(request: DetokenizeRequest, served: Served) -> DetokenizeAnswer:
    """The text of token ids. ApiError for ids that are not in the vocabulary."""
    served.check_name(request.model)
    text = served.llm.detokenize(request.tokens)
    return DetokenizeAnswer(content=text, prompt=text)


def tokenizer_info(served: Served) -> TokenizerInfo:
    """The vocabulary, in short."""
    tokenizer = served.llm.tokenizer
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    return TokenizerInfo(
        n_vocab=tokenizer.n_vocab,
        bos_token=None if bos is None else tokenizer.piece(bos),
        eos_token=None if eos is None else tokenizer.piece(eos),
        chat_template=served.template_source or None,
    )


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
