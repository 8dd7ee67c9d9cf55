"""Texts of models follow JSON schemas, judged by `jsonschema`.

`schemas.jsonl` has 200 schemas in the manner of public ones: forms of tools, data classes,
manifests and records of many domains. Ten are tried here, all of them by `make test-long`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from lariat import DEMO_MODEL, LLM, Completion, Grammar, SamplingParams

from tests.support.real_models import SMOLLM2, needs_smollm2

with open(Path(__file__).parent / "schemas.jsonl", encoding="utf-8") as _file:
    SCHEMAS = [json.loads(line) for line in _file]
N_TRIED = int(os.environ.get("LARIAT_SCHEMAS", "10"))  # `make test-long` has all
STEP = max(1, len(SCHEMAS) // N_TRIED)
TRIED = SCHEMAS[::STEP][:N_TRIED]
TOGETHER = 25  # texts in a batch
QUESTION = "<|im_start|>user\nWrite an example of: {}. Answer in JSON.<|im_end|>\n"
ANSWER = "<|im_start|>assistant\n"


def test_there_are_two_hundred():
    assert len(SCHEMAS) == len({one["name"] for one in SCHEMAS}) == 200
    text = json.dumps(SCHEMAS)
    for keyword in (
        *("enum", "const", "anyOf", "oneOf", "allOf", "$ref", "$defs", "definitions", "pattern"),
        *("minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
        *("multipleOf", "minItems", "maxItems", "prefixItems", "additionalItems", "required"),
        *("additionalProperties", "patternProperties", "minProperties", "maxProperties", "format"),
    ):
        assert text.count(f'"{keyword}"') >= 1, keyword
    for name in ("date", "date-time", "time", "duration", "email", "hostname", "ipv4", "ipv6"):
        assert text.count(f'"format": "{name}"') >= 3, name


def validator(schema: dict[str, Any]) -> Any:
    kind = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    return kind(schema, format_checker=kind.FORMAT_CHECKER)


def completions(llm: LLM, temperature: float, n_max: int) -> Iterator[tuple[Any, Completion]]:
    for start in range(0, len(TRIED), TOGETHER):
        batch = TRIED[start : start + TOGETHER]
        streams = [
            llm.stream(
                QUESTION.format(one["name"]) + ANSWER,
                SamplingParams(
                    temperature=temperature,
                    max_tokens=n_max,
                    seed=i,
                    grammar=Grammar.json_schema(one["schema"]),
                ),
                parse_special=True,
            )
            for i, one in enumerate(batch)
        ]
        for one, stream in zip(batch, streams, strict=True):
            for _ in stream:
                pass
            yield one, stream.completion


def check(llm: LLM, temperature: float, n_max: int, share: float) -> None:
    """Every text is valid, or was cut at `n_max` tokens; at least a `share` of them is not cut."""
    n_whole = 0
    for one, done in completions(llm, temperature, n_max):
        assert done.error is None, one["name"]
        if done.finish_reason == "length":
            assert len(done.token_ids) == n_max
            continue
        assert done.finish_reason == "stop", one["name"]
        n_whole += 1
        try:
            value = json.loads(done.text)
        except ValueError:
            pytest.fail(f"{one['name']}: no JSON: {done.text!r}")
        errors = [error.message for error in validator(one["schema"]).iter_errors(value)]
        assert not errors, f"{one['name']}: {done.text}: {errors}"
    assert n_whole >= share * len(TRIED), f"{n_whole} of {len(TRIED)} texts were whole"


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_the_demo_model_follows_schemas(temperature):
    with LLM(DEMO_MODEL, n_ctx=16384, n_threads=2) as llm:
        check(llm, temperature, 600, 0.8)


@needs_smollm2
@pytest.mark.parametrize("temperature", [0, 0.8])
def test_smollm2_follows_schemas(temperature):
    with LLM(SMOLLM2, n_ctx=16384, n_threads=2) as llm:
        check(llm, temperature, 400, 0.8)


def test_this_test_sees_what_is_not_valid():
    judge = validator({"type": "string", "format": "date-time"})
    assert judge.is_valid("2026-01-02T03:04:05Z")
    assert not judge.is_valid("2026-13-02T03:04:05Z")
    for name, bad in (
        *(("ipv4", "1.2.3.400"), ("ipv6", "::g"), ("hostname", "a..b"), ("uri", "a b")),
        *(("uuid", "12"), ("duration", "1h"), ("time", "25:00:00Z"), ("email", "nobody")),
    ):
        assert not validator({"format": name}).is_valid(bad), name
