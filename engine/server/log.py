"""Lines on standard error. They never hold what requests or answers say."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable


def _write(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):  # nobody reads it any more
        return


note: Callable[[str], None] = _write


def failure(path: str, error: BaseException) -> None:
    """A defect: where it happened. Its message is left out, because it may quote a prompt."""
    lines = "".join(traceback.format_tb(error.__traceback__))
    note(f"lariat: error: {type(error).__name__} at {path}\n{lines.rstrip()}")
