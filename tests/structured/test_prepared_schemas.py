"""JSON schemas as the library takes them: annotations left out, `oneOf` where it is `anyOf`."""

from __future__ import annotations

from itertools import product
from typing import Any

import jsonschema
import pytest
from lariat import Grammar
from lariat.structured.schemas import prepared


def form(kind: Any, **more: Any) -> dict[str, Any]:
    properties = {"kind": {"const": kind}, **more}
    return {"type": "object", "properties": properties, "required": list(properties)}


DEFS = {
    "a": form("a", size={"type": "integer"}),
    "b": form("b"),
    "a/b": form("c"),
    "loop": {"$ref": "#/$defs/loop"},
    "text": {"type": "string"},
}
A, B, C = {"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}, {"$ref": "#/$defs/a~1b"}
LOOP, NONE = {"$ref": "#/$defs/loop"}, {"$ref": "#/$defs/none"}


@pytest.mark.parametrize(
    ("forms", "is_same"),
    [
        ([A, B], True),
        ([A, B, C], True),
        ([A, A], False),
        ([A, form("a")], False),
        ([A, {"type": "object"}], False),
        ([A, {"type": "string"}, {"type": "null"}], True),
        ([A, {"type": ["object", "null"]}], False),
        ([A, {"type": ["string", "null"]}], True),
        ([{"type": "integer"}, {"type": "number"}], False),
        ([{"type": "integer"}, {"type": "string"}], True),
        ([{"const": "x"}, {"enum": ["y", None, True]}], True),
        ([{"const": "x"}, {"enum": ["y", "x"]}], False),
        ([{"const": 1}, {"const": 1.0}], False),
        ([{"const": True}, {"type": "string"}], True),
        ([{"const": "a"}, {"type": "string"}], False),
        ([A, {"properties": {"kind": {"const": "b"}}, "required": ["kind"]}], False),
        ([A, {"type": "object", "properties": {"kind": {"const": "b"}}}], False),
        ([A, LOOP], False),
        ([A, NONE], False),
        ([A, True], False),
        ([A, {"$ref": "#/$defs/text"}], True),
        ([form(1), form(2)], False),
        ([{"enum": ["a"]}, {"enum": ["b"]}, {"enum": ["c"]}], True),
    ],
)
def test_one_of_is_any_of_where_no_value_fits_two_forms(forms, is_same):
    schema = {"oneOf": forms, "$defs": DEFS}
    result = prepared(schema)
    assert ("anyOf" in result) == is_same
    assert schema["oneOf"] == forms  # the one given is not changed
    if is_same:
        judge = jsonschema.Draft202012Validator(schema)
        after = jsonschema.Draft202012Validator(result)
        for value in VALUES:
            assert judge.is_valid(value) == after.is_valid(value), value


VALUES: list[Any] = ["a", "b", "x", "y", 1, 1.0, 2.5, True, None, [], {}]
VALUES += [
    {"kind": kind} | size for kind, size in product("abcx", ({}, {"size": 1}, {"size": "s"}))
]


def test_places_of_schemas_and_of_data():
    inner = {"oneOf": [A, B], "description": "text", "default": 1}
    done = {"anyOf": [A, B]}
    schema = {
        "properties": {"description": inner, "oneOf": inner},
        "patternProperties": {"^x": inner},
        "items": inner,
        "allOf": [inner, {"items": [inner]}],
        "additionalProperties": inner,
        "const": inner,
        "enum": [inner],
        "uniqueItems": False,
        "required": ["description"],
        "title": "T",
        "$defs": DEFS | {"deep": inner},
    }
    assert prepared(schema) == {
        "properties": {"description": done, "oneOf": done},
        "patternProperties": {"^x": done},
        "items": done,
        "allOf": [done, {"items": [done]}],
        "additionalProperties": done,
        "const": inner,
        "enum": [inner],
        "required": ["description"],
        "$defs": DEFS | {"deep": done},
    }


def test_what_models_of_data_classes_write_is_a_grammar():
    """pydantic's form of a union of classes that forbid other fields."""
    closed = {"additionalProperties": False}
    union = {"discriminator": {"propertyName": "kind"}, "oneOf": [A, B]}
    Grammar.json_schema(
        {
            "$defs": {"a": DEFS["a"] | closed, "b": DEFS["b"] | closed},
            "properties": {"pet": union},
            "required": ["pet"],
            "type": "object",
            **closed,
        }
    )
    with pytest.raises(ValueError, match="oneOf"):
        Grammar.json_schema({"oneOf": [A, A], "$defs": DEFS})


def test_the_length_of_host_names():
    assert prepared({"format": "hostname"})["maxLength"] == 253
    assert prepared({"format": "hostname", "maxLength": 9})["maxLength"] == 9
    assert prepared({"format": "hostname", "maxLength": 300})["maxLength"] == 253


def test_many_forms_are_left_alone():
    forms = [form(f"k{i}") for i in range(500)]
    assert "oneOf" in prepared({"oneOf": forms})
    assert "anyOf" in prepared({"oneOf": forms[:100]})


@pytest.mark.parametrize(
    "schema",
    [
        {"oneOf": 3, "properties": 4, "$defs": [], "items": "x", "allOf": {"a": 1}},
        {"oneOf": [{"properties": [], "required": {}, "type": 3, "enum": 7}, 5, None]},
        {"oneOf": [{"$ref": 3}, {"$ref": "#/oneOf/0"}, {"$ref": ""}, {"type": [1]}]},
    ],
)
def test_what_is_no_schema_is_left_to_the_library(schema):
    assert "oneOf" in prepared(schema)
