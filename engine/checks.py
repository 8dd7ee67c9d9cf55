"""Checks of numbers that a caller or a configuration gives."""

from __future__ import annotations

import numbers
from typing import Any


def check_whole(name: str, value: Any, minimum: int, maximum: int) -> int:
    """Return `value` as an int.

    Anything with `__index__` counts, NumPy's integers too, but no bool. ValueError, which names
    `name`, for another value and outside `minimum` to `maximum`.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ValueError(f"{name} is {value!r}, expected a whole number")
    number = int(value.__index__())
    if not minimum <= number <= maximum:
        raise ValueError(f"{name} is {value}, expected {minimum} to {maximum}")
    return number


def check_real(name: str, value: Any, minimum: float, maximum: float) -> float:
    """Return `value` as a float. Errors as in `check_whole`; NaN is outside of any bounds."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"{name} is {value!r}, expected a number")
    if not minimum <= float(value) <= maximum:  # also false for NaN
        raise ValueError(f"{name} is {value}, expected {minimum:g} to {maximum:g}")
    return float(value)
