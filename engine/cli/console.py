"""Where the commands write: text to stdout, everything else to stderr, bars on terminals only.

Either stream may be closed, full, or a pipe that nobody reads any more.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from types import TracebackType
from typing import Any


class OutputError(Exception):
    """Standard output cannot take the text; carries the reason as a sentence."""


class ClosedPipeError(OutputError):
    """Whoever read standard output has gone away."""


def write(text: str) -> None:
    """Write to stdout as UTF-8 and flush, so that the text is seen at once. Raises OutputError."""
    if sys.stdout is None:  # the shell's >&-
        raise OutputError("standard output is closed")
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode("utf-8", "replace"))
        sys.stdout.buffer.flush()
    except OSError as error:
        _discard_stdout()
        if isinstance(error, BrokenPipeError):
            raise ClosedPipeError("the reader of standard output is gone") from error
        raise OutputError(f"cannot write to standard output: {error.strerror}") from error


def show(text: str) -> None:
    """Write what a model says: as it is, but on a terminal only what cannot command it."""
    write(safe(text) if stdout_is_terminal() else text)


def note(text: str) -> None:
    """Write a line to stderr, as far as that is possible."""
    if sys.stderr is None:  # print() would take that for stdout
        return
    with contextlib.suppress(OSError):  # there is nowhere left to complain
        print(text, file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """The text on one line and without control characters: what is odd becomes an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def safe(text: str) -> str:
    """The text without characters that command a terminal, such as escapes; lines stay lines."""
    return "".join(c if c in "\n\t" or not _is_control(c) else "\ufffd" for c in text)


def _is_control(c: str) -> bool:
    return c < " " or "\x7f" <= c < "\xa0"


def stdin_is_terminal() -> bool:
    """Whether a person is likely to type."""
    return sys.stdin is not None and sys.stdin.isatty()


def stdout_is_terminal() -> bool:
    """Whether a person is likely to watch stdout."""
    return sys.stdout is not None and sys.stdout.isatty()


def stderr_is_terminal() -> bool:
    """Whether a person is likely to watch stderr."""
    return sys.stderr is not None and sys.stderr.isatty()


class Bar:
    """A progress bar on stderr that appears with the first report and leaves no trace.

    Called with the fraction that is done. Does nothing unless `enabled` and on a terminal.
    """

    def __init__(self, label: str, enabled: bool = True) -> None:
        self._label = label
        self._enabled = enabled and stderr_is_terminal()
        self._tqdm: Any = None

    def __call__(self, fraction: float, label: str | None = None) -> None:
        """Show that this fraction (0 to 1) is done, and what is under way if that changed."""
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
                # Asked for here, because tqdm shows nothing where a terminal claims no size.
                ncols=min(shutil.get_terminal_size().columns, 80),
                nrows=24,
                file=sys.stderr,
                bar_format="{desc} {percentage:3.0f}%|{bar:30}| {elapsed}",
            )
        self._tqdm.set_description_str(self._label, refresh=False)
        self._tqdm.update(fraction - self._tqdm.n)

    def close(self) -> None:
        """Remove it; it does not come back."""
        self._enabled = False
        if self._tqdm is not None:
            self._tqdm.close()
            self._tqdm = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _discard_stdout() -> None:
    """Point stdout at nothing, or Python complains again when it flushes at exit."""
    with contextlib.suppress(OSError):  # stdout may have no file behind it
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
