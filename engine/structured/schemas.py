"""JSON schemas, as the library takes them.

Annotations are left out, because long descriptions would count as a long grammar.

`oneOf`: exactly one of several schemas holds. A grammar can say that one of several forms holds,
but not that the others do not. Where no value fits two of the forms, that is the same, and the
schema can say `anyOf`. So it is in what tools for data classes write: each form has a property with
a constant of its own. llguidance sees that by itself, but not through `$ref`.

Sources: JSON Schema 2020-12, core, sections 8.2.3.1 ($ref) and 10.2.1.3 (oneOf); validation, 9
(annotations).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any
from urllib.parse import unquote

# Keywords by the place of the schemas in their values; whatever stands elsewhere is data.
_ONE = (
    *("items", "additionalProperties", "additionalItems", "not", "if", "then", "else", "contains"),
    *("propertyNames", "unevaluatedItems", "unevaluatedProperties"),
)
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")

_ANNOTATIONS = (
    *("title", "description", "default", "examples", "$comment"),
    *("deprecated", "readOnly", "writeOnly"),
)

_MAX_HOSTNAME = 253  # characters, RFC 1123; the library bounds the parts of a name alone

_MAX_REFS = 32  # that refer to each other
_MAX_FORMS = 128  # of a `oneOf` that are compared, each with each


def prepared(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a schema without annotations, and with `anyOf` for `oneOf` if no value fits two of
    the forms. Another `oneOf` stays, for the library to decide."""

    def visit(part: Any) -> Any:
        if not isinstance(part, dict):
            return part
        part = {
            key: _with_parts(key, value, visit)
            for key, value in part.items()
            if key not in _ANNOTATIONS and (key, value) != ("uniqueItems", False)
        }
        if part.get("format") == "hostname":
            given = part.get("maxLength")
            is_shorter = isinstance(given, int) and given < _MAX_HOSTNAME
            part["maxLength"] = given if is_shorter else _MAX_HOSTNAME
        forms = part.get("oneOf")
        if isinstance(forms, list) and "anyOf" not in part and len(forms) <= _MAX_FORMS:
            facts = [_Facts(form, schema) for form in forms]
            if all(one.excludes(other) for one, other in combinations(facts, 2)):
                part["anyOf"] = part.pop("oneOf")
        return part

    result: dict[str, Any] = visit(dict(schema))
    return result


def _with_parts(key: str, value: Any, visit: Callable[[Any], Any]) -> Any:
    """The value of a keyword in which the schemas are visited."""
    if key in _MAPS and isinstance(value, dict):
        return {name: visit(part) for name, part in value.items()}
    if key in _LISTS and isinstance(value, list):
        return [visit(part) for part in value]
    return visit(value) if key in _ONE else value


class _Facts:
    """Facts about the values that fit a schema.

    types      names of JSON types, None if any may be
    constants  for properties that must be there: the values that they may have, as JSON
    """

    def __init__(self, form: Any, root: Mapping[str, Any]) -> None:
        form = _followed(form, root)
        values = _values(form)
        self.types: set[str] | None = None
        if values is not None:
            self.types = {_type_of(json.loads(value)) for value in values}
        elif isinstance(form.get("type"), str):
            self.types = {form["type"]}
        elif isinstance(form.get("type"), list):
            self.types = {str(name) for name in form["type"]}
        self.values = values
        self.constants: dict[str, set[str]] = {}
        properties, required = form.get("properties"), form.get("required")
        if isinstance(properties, dict) and isinstance(required, list):
            for name in properties:
                known = _values(_followed(properties[name], root))
                if name in required and known is not None:
                    self.constants[name] = known

    def excludes(self, other: _Facts) -> bool:
        """Whether no value fits both."""
        if self.types is not None and other.types is not None:
            shared = self.types & other.types
            # An integer is a number too.
            if "number" in self.types | other.types:
                shared |= {"integer"} & (self.types | other.types)
            if not shared:
                return True
            if shared == {"object"}:
                return any(
                    self.constants[name].isdisjoint(other.constants[name])
                    for name in self.constants.keys() & other.constants.keys()
                )
        if self.values is not None and other.values is not None:
            return self.values.isdisjoint(other.values)
        return False


def _values(schema: Mapping[str, Any]) -> set[str] | None:
    """The values of `const` or `enum`, as JSON; None without them.

    Numbers are None: 1 and 1.0 are the same value.
    """
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if not isinstance(values, list) or not all(
        isinstance(value, (str, bool)) or value is None for value in values
    ):
        return None
    return {json.dumps(value) for value in values}


def _type_of(value: Any) -> str:
    return "null" if value is None else "boolean" if isinstance(value, bool) else "string"


def _followed(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema that a local `$ref` means; {} if it is not known."""
    for _ in range(_MAX_REFS):
        if not isinstance(schema, Mapping):
            return {}
        target = schema.get("$ref")
        if not isinstance(target, str):
            return schema
        if not target.startswith("#/"):
            return {}
        schema = root
        for name in target[2:].split("/"):
            name = unquote(name).replace("~1", "/").replace("~0", "~")
            if not isinstance(schema, Mapping) or name not in schema:
                return {}
            schema = schema[name]
    return {}
