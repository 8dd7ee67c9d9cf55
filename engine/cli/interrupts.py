"""Ctrl-C while modules are imported, where libraries make other errors of KeyboardInterrupt.

It imports nothing else of the package, because it must be ready before the rest is imported.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

CODE = 130
"""The exit code of an interrupted program, as shells report it."""

_was_importing = False


def watch() -> None:
    """Note interrupts from now on. Does nothing where they are ignored, or somebody else's."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def end_quietly() -> None:
    """Let Ctrl-C end the process at once: the work is done, and Python is about to leave."""
    if signal.getsignal(signal.SIGINT) is _interrupt:
        signal.signal(signal.SIGINT, _leave)


def explain(error: BaseException) -> bool:
    """Whether `error` may stem from Ctrl-C within an import."""
    return _was_importing and isinstance(error, Exception)


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _was_importing
    inner = frame
    while inner is not None and not _was_importing:
        _was_importing = inner.f_code.co_filename.startswith("<frozen importlib")
        inner = inner.f_back
    signal.default_int_handler(number, frame)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(CODE)
