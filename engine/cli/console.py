"""Output of the commands: text to stdout, everything else to stderr, bars on terminals only.

Either stream may be closed, full, or a pipe whose reader has gone away.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import sys
from typing import Any, TextIO

_MAX_WORD = 240  # characters of a path or a name that are shown
_MAX_MESSAGE = 1200
_LONG_WORD = re.compile(rf"\S{{{_MAX_WORD + 1},}}")

DIM, NORMAL = "\x1b[2m", "\x1b[0m"


class OutputError(Exception):
    """Standard output cannot be written; the message is a sentence with the reason."""


class ClosedPipeError(OutputError):
    """The reader of standard output has gone away."""


def write(text: str) -> None:
    """Write all of it to stdout as UTF-8. Raises OutputError."""
    if sys.stdout is None:  # the shell's >&-
        raise OutputError("standard output is closed")
    try:
        _write_all(sys.stdout, text, "utf-8", "replace")
    except OSError as error:
        _discard_stdout()
        if isinstance(error, BrokenPipeError):
            raise ClosedPipeError("the reader of standard output is gone") from error
        raise OutputError(f"cannot write to standard output: {error.strerror}") from error


def show(text: str) -> None:
    """Write a model's text; on a terminal without characters that control the terminal."""
    write(safe(text) if stdout_is_terminal() else text)


def note(text: str) -> None:
    """Write a line to stderr, if that is possible."""
    write_err(f"{text}\n")


def write_err(text: str) -> None:
    """Write to stderr, if that is possible."""
    if sys.stderr is None:
        return
    with contextlib.suppress(OSError):  # no stream is left for an error
        _write_all(sys.stderr, text, sys.stderr.encoding or "utf-8", "backslashreplace")


def _write_all(stream: TextIO, text: str, encoding: str, errors: str) -> None:
    """Write to the file below `stream`, which may take a part at a time. Raises OSError.

    It may be a pipe that does not wait by itself: any process that shares it can set that for all.
    """
    stream.flush()
    if not hasattr(stream, "buffer"):  # a notebook's
        stream.write(text)
        return
    file = getattr(stream.buffer, "raw", stream.buffer)  # with PYTHONUNBUFFERED they are the same
    rest = memoryview(text.encode(encoding, errors))
    while rest:
        n_written = file.write(rest)
        if n_written is None:  # the pipe is full
            select.select([], [file], [])
            continue
        rest = rest[n_written:]


def printable(text: str) -> str:
    """The text on one line; characters that cannot be printed become escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def brief(text: str) -> str:
    """As `printable`; names and paths of several lines, and longer texts, lose their middle."""
    words = _LONG_WORD.sub(lambda found: _middle_cut(found[0], _MAX_WORD), printable(text))
    return _middle_cut(words, _MAX_MESSAGE)


def _middle_cut(text: str, n_chars: int) -> str:
    half = (n_chars - 3) // 2
    return text if len(text) <= n_chars else f"{text[:half]}...{text[-half:]}"


def safe(text: str) -> str:
    """The text without characters that control a terminal; newlines and tabs stay."""
    return "".join(c if c in "\n\t" or not _is_control(c) else "\ufffd" for c in text)


def _is_control(c: str) -> bool:
    return c < " " or "\x7f" <= c < "\xa0"


def stdin_is_terminal() -> bool:
    """Whether a person is likely to type."""
    return sys.stdin is not None and sys.stdin.isatty()


def stdout_is_terminal() -> bool:
    """Whether a person is likely to read stdout."""
    return sys.stdout is not None and sys.stdout.isatty()


def stderr_is_terminal() -> bool:
    """Whether a person is likely to read stderr."""
    return sys.stderr is not None and sys.stderr.isatty()


def has_escapes() -> bool:
    """Whether the terminal obeys escape sequences (TERM=dumb says that it does not)."""
    return os.environ.get("TERM", "") not in ("", "dumb")


def has_styles() -> bool:
    """Whether stdout is a terminal that shows dim text, and NO_COLOR is not set (no-color.org)."""
    return stdout_is_terminal() and has_escapes() and not os.environ.get("NO_COLOR")


class Bar:
    """A progress bar on stderr. It appears with the first report and leaves no trace.

    Call it with the share that is done. It does nothing unless it is `enabled` and stderr is a
    terminal.
    """

    def __init__(self, label: str, enabled: bool = True) -> None:
        self._label = label
        self._enabled = enabled and stderr_is_terminal()
        self._tqdm: Any = None

    def __call__(self, fraction: float, label: str | None = None) -> None:
        """Show that this share (0 to 1) is done, from now on with `label` if it is given."""
        if not self._enabled:
            return
        self._label = label or self._label
        if self._tqdm is None:
            from tqdm import tqdm

            tqdm.monitor_interval = 0  # no thread of its own
            self._tqdm = tqdm(
                total=1.0,
                desc=self._label,
                leave=False,
                # Without these, tqdm shows nothing on a terminal that does not know its size.
                ncols=min(shutil.get_terminal_size().columns, 80),
                nrows=24,
                file=sys.stderr,
                bar_format="{desc} {percentage:3.0f}%|{bar:30}| {elapsed}",
            )
        self._tqdm.set_description_str(self._label, refresh=False)
        self._tqdm.update(fraction - self._tqdm.n)

    def close(self) -> None:
        """Remove the bar for good."""
        self._enabled = False
        if self._tqdm is not None:
            self._tqdm.close()
            self._tqdm = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _discard_stdout() -> None:
    """Redirect stdout to /dev/null. Otherwise Python reports the error again when it exits."""
    with contextlib.suppress(OSError):  # stdout may not be a file
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
