"""Changes JSON along its structure: values become others, fields come, go and change places."""

from __future__ import annotations

import json
import random
from typing import Any

_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 1 << 31, 1 << 63, 1 << 64, -(1 << 63), 0.5, -0.0, 1e308),
    *("", "a", "the", "\0", "\ud800", "é", "<s>", "<|im_start|>", "a " * 200, "d", "m", "auto"),
    *([], {}, [[]], [3, 4], [-1], [1 << 40], ["a", 3], {"a": {}}, [None], {"type": "text"}),
    *(
        {"type": "object", "properties": {"a": {"$ref": "#"}}},
        {"type": "string", "pattern": "(a*)*"},
    ),
)
_FIELDS = (
    *("messages", "prompt", "input", "n", "stop", "seed", "max_tokens", "temperature", "top_p"),
    *("logprobs", "top_logprobs", "echo", "stream", "stream_options", "logit_bias", "tools"),
    *("tool_choice", "response_format", "grammar", "regex", "choices", "json_schema", "model"),
    *("documents", "reuse", "return_segments", "keep_context", "segments", "saved", "at", "text"),
    *(
        "min_tokens",
        "stop_token_ids",
        "ignore_eos",
        "suffix",
        "best_of",
        "top_k",
        "min_p",
        "system",
    ),
    *("thinking", "instructions", "encoding_format", "dimensions", "chat_template_kwargs", "role"),
    *("content", "tool_calls", "tool_call_id", "name", "type", "id", "reasoning_effort", "user"),
)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Change one thing in a body; what is no JSON becomes an empty object first."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        body = {}
    places: list[tuple[Any, Any]] = []  # containers, and keys in them
    _walk(body, places, 0)
    kind = rng.random()
    if not places or kind < 0.25:
        if isinstance(body, dict):
            body[rng.choice(_FIELDS)] = _value(places, rng)
    else:
        container, key = rng.choice(places)
        if kind < 0.75:
            container[key] = _value(places, rng)
        elif kind < 0.85:
            del container[key]
        elif isinstance(container, list):
            container.insert(key, container[key])
        else:
            container[rng.choice(_FIELDS)] = container[key]
    try:
        return json.dumps(body, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):  # a container that now holds itself
        return data


def _value(places: list[tuple[Any, Any]], rng: random.Random) -> Any:
    if places and rng.random() < 0.2:
        container, key = rng.choice(places)
        return container[key]
    return rng.choice(_VALUES)


def _walk(value: Any, places: list[tuple[Any, Any]], depth: int) -> None:
    if depth > 20 or not isinstance(value, (dict, list)):
        return
    for key in value if isinstance(value, dict) else range(len(value)):
        places.append((value, key))
        _walk(value[key], places, depth + 1)
