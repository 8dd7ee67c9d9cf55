"""llguidance, and the limits within which it reads grammars of strangers.

Source: https://github.com/guidance-ai/llguidance (MIT).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

from lariat.errors import LariatError, quote

_Result = TypeVar("_Result")

MAX_TEXT = 1 << 15
"""Characters of a grammar as JSON, which has schemas. The worst take three seconds to read."""

MAX_RULES = 1 << 13
"""Characters of rules and expressions. Repetitions within each other take time that grows with the
cube of their number: two seconds to read, and one for a token."""

# The library reads rules that refer to each other by recursion, and ends the process where the
# stack is full. The worst grammars found need 1.5 KiB of stack for each character.
_STACK = 256 << 20
_stack_lock = threading.Lock()

_MAX_MESSAGE = 300  # characters of an error


def load() -> ModuleType:
    """The library. LariatError, with a sentence, if it is not installed."""
    try:
        import llguidance
    except ImportError:
        raise LariatError(
            "grammars and JSON schemas need llguidance, which is not installed: "
            "pip install 'lariat[schema]'"
        ) from None
    return llguidance


def check_length(text: str) -> None:
    """Raise ValueError for a grammar that is too long."""
    n_rules = len(text)
    if text.lstrip().startswith("{"):
        if len(text) > MAX_TEXT:
            raise ValueError(f"the grammar has {len(text)} characters, more than {MAX_TEXT}")
        n_rules = len("".join(_rules(text)))
    if n_rules > MAX_RULES:
        raise ValueError(f"the grammar has {n_rules} characters of rules, more than {MAX_RULES}")


def _rules(text: str) -> list[str]:
    """The rules in the library's own form. What is not of this form is an error there."""
    try:
        grammars = json.loads(text)["grammars"]
        return [one["lark_grammar"] for one in grammars if one.get("lark_grammar")]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return []


def limits() -> Any:
    """Limits of the library's own work. Errors do not repeat the grammar and the text."""
    return load().LLParserLimits(verbose_errors=False)


def deeply(read: Callable[[], _Result]) -> _Result:
    """Call a function with a stack that no grammar of `MAX_TEXT` characters fills.

    The memory of the stack is taken as far as it is used.
    """
    results: list[_Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(read())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="lariat-grammar", daemon=True)
    with _stack_lock:
        before = threading.stack_size(_STACK)
        try:
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def sentence(message: str) -> str:
    """The lines of an error of the library that give the reason, safe to print."""
    first, *others = message.strip().splitlines() or ["the library gives no reason"]
    reasons = [line.strip() for line in others if line.startswith("error:")]
    return quote(" ".join([first.strip(), *reasons]), _MAX_MESSAGE)[1:-1]
