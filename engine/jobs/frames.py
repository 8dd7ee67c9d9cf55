"""Frames: rows as columns, in dicts of arrays, in pandas and in pyarrow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lariat.protocol.sampling import SamplingFields

FIELDS = frozenset(
    ("custom_id", "prompt", "messages", "max_tokens", *SamplingFields.__struct_fields__)
) - {"user", "store", "metadata"}
"""Columns that belong to rows. All others go along."""
ANSWERS = ("text", "finish_reason", "prompt_tokens", "completion_tokens", "error")
"""Columns of answers."""


def columns(frame: Any) -> dict[str, Sequence[Any]]:
    """The columns of a frame that belong to rows. TypeError for other things."""
    if isinstance(frame, Mapping):
        found = dict(frame)
    elif hasattr(frame, "column_names"):  # pyarrow's
        found = {name: frame[name].to_pylist() for name in frame.column_names if name in FIELDS}
    elif hasattr(frame, "columns"):
        found = {str(name): frame[name].tolist() for name in frame.columns if name in FIELDS}
    else:
        raise TypeError(
            f"expected a list of rows, a dict of arrays, a DataFrame or a table, and not"
            f" {type(frame).__name__}"
        )
    return {name: values for name, values in found.items() if name in FIELDS}


def rows_of(given: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Plain rows; values that are missing (None, NaN) are left out."""
    n = max(map(len, given.values()), default=0)
    found: list[dict[str, Any]] = [{} for _ in range(n)]
    for name, values in given.items():
        for row, value in zip(found, values, strict=True):
            plain = _plain(value)
            if plain is not None:
                row[name] = plain
    return found


def answer_columns(answers: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The columns of answers to plain rows. A message is its content; an error is its sentence."""
    found: dict[str, list[Any]] = {name: [] for name in ANSWERS}
    for one in answers:
        usage = one.get("usage") or {}
        text = one.get("text") if "text" in one else (one.get("message") or {}).get("content")
        error = one.get("error")
        found["text"].append(text)
        found["finish_reason"].append(one.get("finish_reason"))
        found["prompt_tokens"].append(usage.get("prompt_tokens", 0))
        found["completion_tokens"].append(usage.get("completion_tokens", 0))
        found["error"].append(error["message"] if error else None)
    return found


def with_answers(frame: Any, answers: Sequence[Mapping[str, Any]]) -> Any:
    """The frame with the columns of answers."""
    found = answer_columns(answers)
    if isinstance(frame, Mapping):
        return {**frame, **{name: _array(values) for name, values in found.items()}}
    if hasattr(frame, "column_names"):
        import pyarrow

        types = {name: pyarrow.string() for name in ANSWERS}
        types |= dict.fromkeys(("prompt_tokens", "completion_tokens"), pyarrow.int64())
        for name, values in found.items():
            if name in frame.column_names:
                frame = frame.drop_columns([name])
            frame = frame.append_column(name, pyarrow.array(values, types[name]))
        return frame
    return frame.assign(**{name: _array(values) for name, values in found.items()})


def _array(values: list[Any]) -> np.ndarray:
    """int64 [n], or objects [n]."""
    if values and all(isinstance(value, int) for value in values):
        return np.array(values, np.int64)
    found = np.empty(len(values), object)
    found[:] = values
    return found


def _plain(value: Any) -> Any:
    """A value as JSON has it; None if it is missing."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    elif isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        if value != value:
            return None
        return int(value) if value.is_integer() else value
    if isinstance(value, dict):
        return {str(name): one for name, v in value.items() if (one := _plain(v)) is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if value is not None and type(value).__name__ in ("NAType", "NaTType"):
        return None
    return value
