"""Fields that say what an answer must follow: a JSON schema, an expression, choices, a grammar.

Each becomes a `lariat.Grammar` before anything is computed, so a bad one is status 400 and an
answer never comes without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec
from lariat.config import TokenGrammar
from lariat.errors import LariatError
from lariat.protocol import errors
from lariat.protocol.errors import ApiError
from lariat.protocol.sampling import SamplingFields
from lariat.protocol.served import Served
from lariat.structured.grammar import Grammar


class JsonSchema(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A schema that the answer must follow. It always does, whatever `strict` says."""

    name: str = ""
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


def grammar(
    fields: SamplingFields, form: ResponseFormat | None, served: Served
) -> TokenGrammar | None:
    """The grammar of a request, None without one. ApiError for a bad one, and for several."""
    asked: list[tuple[str, Callable[[], Grammar]]] = []
    if form is not None and form.type == "json_object":
        asked.append(("response_format", Grammar.json_object))
    if form is not None and form.type == "json_schema":
        if form.json_schema is None:
            raise errors.bad("response_format has no json_schema", "response_format.json_schema")
        schema = form.json_schema.schema
        asked.append(("response_format", lambda: Grammar.json_schema(schema or {})))
    if fields.json_schema is not None:
        own = fields.json_schema
        asked.append(("json_schema", lambda: Grammar.json_schema(own)))
    if fields.grammar:
        text = fields.grammar
        asked.append(("grammar", lambda: Grammar.parse(text)))
    if fields.regex is not None:
        expression = fields.regex
        asked.append(("regex", lambda: Grammar.regex(expression)))
    if fields.choices is not None:
        texts = fields.choices
        asked.append(("choices", lambda: Grammar.choices(texts)))
    if not asked:
        return None
    if len(asked) > 1:
        names = " and ".join(name for name, _ in asked)
        raise errors.bad(f"{names} are given: an answer follows one of them", asked[1][0])
    return made(*asked[0], served)


def made(name: str, make: Callable[[], Grammar], served: Served) -> TokenGrammar:
    """A grammar in the model's tokens. ApiError that names the field `name` for a bad one."""
    try:
        return served.llm.token_grammar(make())
    except ValueError as error:
        raise errors.bad(f"{name}: {error}", name) from None
    except LariatError as error:  # the extra is missing
        raise ApiError(501, str(error), param=name) from None
