"""Ctrl-C while modules are imported, where libraries make other errors of KeyboardInterrupt.

It imports nothing else of the package, because it must be ready before the rest is imported.
"""

from __future__ import annotations

# Nobody cares for interrupts until this module is imported, so it imports little: of `signal` the
# half in C, because the other half makes enums, and no `typing`.
import _signal as signal  # type: ignore[import-not-found]
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

CODE = 130
"""The exit code of an interrupted program, as shells report it."""

_has_begun = False
_was_importing = False


def watch() -> None:
    """Care for interrupts from now on. Does nothing where they are ignored, or somebody else's."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def begin_work() -> None:
    """From now on there may be something to clean up or to print, so every interrupt is raised.

    Until then, one that comes while a module is imported ends the process at once.
    """
    global _has_begun
    _has_begun = True


def end_work() -> None:
    """From now on every interrupt ends the process at once: Python is about to leave."""
    if signal.getsignal(signal.SIGINT) is _interrupt:
        signal.signal(signal.SIGINT, _leave)


def explain(error: BaseException) -> bool:
    """Whether `error` may stem from an interrupt that was raised while a module was imported."""
    return _was_importing and isinstance(error, Exception)


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _was_importing
    if _is_importing(frame):
        if not _has_begun:
            _leave(number, frame)
        _was_importing = True
    signal.default_int_handler(number, frame)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(CODE)
