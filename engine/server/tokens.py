"""`POST /tokenize`, `/detokenize`, `/apply-template`, and `GET /tokenizer_info`. Bodies are
`lariat.protocol.tokens`'s."""

from __future__ import annotations

from lariat.protocol import tokens
from lariat.protocol.tokens import (
    DetokenizeAnswer,
    DetokenizeRequest,
    TemplateAnswer,
    TemplateRequest,
    TokenizeAnswer,
    TokenizeRequest,
    TokenizerInfo,
)
from lariat.server.endpoint import Call, Endpoint


async def _tokenize(call: Call) -> TokenizeAnswer:
    return await call.service.in_thread(tokens.tokenize, call.body, call.served)


async def _detokenize(call: Call) -> DetokenizeAnswer:
    return await call.service.in_thread(tokens.detokenize, call.body, call.served)


async def _apply_template(call: Call) -> TemplateAnswer:
    return await call.service.in_thread(tokens.apply_template, call.body, call.served)


async def _tokenizer_info(call: Call) -> TokenizerInfo:
    return tokens.tokenizer_info(call.served)


ENDPOINTS = (
    Endpoint(
        "GET", "/tokenizer_info", _tokenizer_info, "The vocabulary, in short.",
        answer=TokenizerInfo,
    ),
    Endpoint(
        "POST", "/tokenize", _tokenize, "The tokens of a text.",
        request=TokenizeRequest, answer=TokenizeAnswer,
    ),
    Endpoint(
        "POST", "/detokenize", _detokenize, "The text of tokens.",
        request=DetokenizeRequest, answer=DetokenizeAnswer,
    ),
    Endpoint(
        "POST", "/apply-template", _apply_template, "A conversation as the model reads it.",
        request=TemplateRequest, answer=TemplateAnswer,
    ),
)  # fmt: skip
