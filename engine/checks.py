"""Checks of values that a caller or a configuration gives."""

from __future__ import annotations

import math
import numbers
import operator
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def check_whole(name: str, value: Any, minimum: int, maximum: int) -> int:
    """Return `value` as an int.

    Anything with `__index__` counts, NumPy's integers too, but no bool. ValueError, which names
    `name`, for another value and outside `minimum` to `maximum`.
    """
    number = None if isinstance(value, bool) else as_index(value)
    if number is None:
        raise ValueError(f"{name} is {value!r}, expected a whole number")
    if not minimum <= number <= maximum:
        raise ValueError(f"{name} is {value}, expected {minimum} to {maximum}")
    return number


def check_real(name: str, value: Any, minimum: float, maximum: float) -> float:
    """Return `value` as a float. Errors as in `check_whole`; NaN is outside of any bounds."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"{name} is {value!r}, expected a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf  # outside of any bounds too
    if not minimum <= number <= maximum:  # also false for NaN
        raise ValueError(f"{name} is {value}, expected {minimum:g} to {maximum:g}")
    return number


def check_switch(name: str, value: Any) -> bool:
    """Return `value` as a bool: True, False, or 0 and 1. ValueError, which names `name`, for
    another value."""
    if as_index(value) not in (0, 1):
        raise ValueError(f"{name} is {value!r}, expected True or False")
    return bool(value)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise ValueError, which names `name`, unless `value` is one of some strings."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(choices)}")


def check_path(name: str, value: Any) -> Path:
    """Return a path that is given as str, bytes or `os.PathLike`. ValueError, which names `name`,
    for another value."""
    try:
        return Path(os.fsdecode(value))
    except TypeError:
        raise ValueError(f"{name} is {value!r}, expected a path") from None


def check_type(name: str, value: Any, expected: type) -> None:
    """Raise ValueError, which names `name`, unless `value` is an `expected`."""
    if not isinstance(value, expected):
        raise ValueError(f"{name} is of type {type(value).__name__}, expected {expected.__name__}")


def check_callable(name: str, value: Any) -> None:
    """Raise ValueError, which names `name`, unless `value` can be called or is None."""
    if value is not None and not callable(value):
        raise ValueError(f"{name} is {value!r}, expected a function or None")


def check_overrides(given: Any) -> dict[str, str | int | float | bool]:
    """Return overrides of metadata as a dict, {} for None. ValueError for other types of keys or
    values than metadata of one value has."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ValueError(f"overrides is {given!r}, expected a dict of metadata keys to values")
    for key, value in given.items():
        if not isinstance(key, str):
            raise ValueError(f"a key of overrides is {key!r}, expected a string")
        if not isinstance(value, (str, int, float, bool)):
            raise ValueError(
                f"the override of {key} is {value!r}, expected a str, int, float or bool"
            )
    return dict(given)


def as_index(value: Any) -> int | None:
    """`value` as an int if it is a whole number, as for indexes; else None."""
    try:
        return operator.index(value)
    except TypeError:
        return None
