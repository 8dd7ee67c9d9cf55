"""Messages that are typed or piped: lines of a pipe, or of a terminal with editing and history."""

from __future__ import annotations

import contextlib
import locale
import os
import select
import sys
from pathlib import Path

from lariat.cli import console

_QUOTES = '"""'
_N_HISTORY = 1000  # lines in the file


class Lines:
    """Messages from standard input that is not a terminal. Use it in a `with` statement."""

    is_terminal = False

    def __init__(self) -> None:
        self._held = b""  # read, but not yet a line

    def read(self) -> str | None:
        """The next message, or None at the end.

        A message is a line. A line that ends in a backslash goes on in the next line, and the lines
        between two triple quotes are one message.
        """
        line = self._line(first=True)
        if line is None:
            return None
        if line.startswith(_QUOTES):
            return self._quoted(line.removeprefix(_QUOTES))
        while line.endswith("\\"):
            more = self._line(first=False)
            line = line[:-1] + ("" if more is None else "\n" + more)
        return line

    def show(self, message: str) -> None:
        """Show a message that was not typed."""

    def _line(self, first: bool) -> str | None:
        while b"\n" not in self._held:
            data = _read_some()
            if not data:
                break
            self._held += data
        line, newline, self._held = self._held.partition(b"\n")
        if not line and not newline:
            return None
        return line.decode("utf-8", "replace").rstrip("\r\n")

    def _quoted(self, text: str) -> str:
        while not text.rstrip().endswith(_QUOTES):
            more = self._line(first=False)
            if more is None:
                return text
            text += "\n" + more
        return text.rstrip().removesuffix(_QUOTES).strip("\n")

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Terminal(Lines):
    """Messages that a person types. `read` raises KeyboardInterrupt for Ctrl-C twice in a row.

    history: whether lines are kept in a file for the next run.
    """

    is_terminal = True

    def __init__(self, history: bool) -> None:
        super().__init__()
        self._was_blocking: bool | None = None
        self._history = _history_path() if history else None
        self._n_before = 0

    def read(self) -> str | None:
        """The next message, or None for Ctrl-D."""
        is_again = False
        while True:
            try:
                return super().read()
            except KeyboardInterrupt:
                console.note("")
                if is_again:
                    raise
                is_again = True
                console.note("lariat: Ctrl-C again leaves, and so does Ctrl-D")
            except UnicodeDecodeError:
                console.note("lariat: error: that was not valid UTF-8")

    def show(self, message: str) -> None:
        """Show a message that was not typed."""
        console.write("> " + console.safe(message) + "\n")

    def _line(self, first: bool) -> str | None:
        prompt = "> " if first else ". "
        try:
            if console.stdout_is_terminal():
                return _without_surrogates(input(prompt))
        except EOFError:
            console.write("\n")
            return None
        if sys.stderr is not None:  # stdout goes elsewhere, but the prompt must be seen
            print(prompt, end="", file=sys.stderr, flush=True)
        line = super()._line(first)
        if line is None:
            console.note("")
        return line

    def __enter__(self) -> Terminal:
        _set_utf8()
        with contextlib.suppress(OSError, ValueError):
            fd = sys.stdin.fileno()
            self._was_blocking = os.get_blocking(fd)
            os.set_blocking(fd, True)  # another program may have left it otherwise
        with contextlib.suppress(ImportError):
            import readline

            # Letters are typed as they are, also where the locale knows ASCII alone.
            for setting in ("input-meta on", "output-meta on", "convert-meta off"):
                readline.parse_and_bind(f"set {setting}")
            # Makes a paste of several lines one message. (Python's own shell turns it off.)
            paste = "on" if console.has_escapes() else "off"
            readline.parse_and_bind(f"set enable-bracketed-paste {paste}")
            readline.set_auto_history(True)
            if self._history is not None:
                with contextlib.suppress(OSError):
                    readline.read_history_file(self._history)
            self._n_before = readline.get_current_history_length()
        return self

    def __exit__(self, *_: object) -> None:
        """Append the typed lines to the history file, if there is one."""
        if self._was_blocking is False:
            with contextlib.suppress(OSError, ValueError):
                os.set_blocking(sys.stdin.fileno(), False)
        if self._history is None:
            return
        with contextlib.suppress(ImportError, OSError):
            import readline

            self._history.parent.mkdir(parents=True, exist_ok=True)
            os.close(
                os.open(self._history, os.O_CREAT | os.O_WRONLY, 0o600)
            )  # not readable for others
            readline.set_history_length(_N_HISTORY)
            n_new = readline.get_current_history_length() - self._n_before
            readline.append_history_file(n_new, self._history)


def _read_some() -> bytes:
    """The next bytes of standard input, b"" at its end. Waits if none are there yet."""
    if sys.stdin is None:
        return b""
    try:
        fd = sys.stdin.fileno()
    except (OSError, ValueError):  # not a file
        return sys.stdin.buffer.readline()
    while True:
        try:
            return os.read(fd, 1 << 16)
        except BlockingIOError:
            select.select([fd], [], [])


def _without_surrogates(line: str) -> str:
    """The line; bytes that Python could not read, as it took the terminal for one of ASCII, are
    UTF-8."""
    try:
        line.encode("utf-8")
        return line
    except UnicodeEncodeError:
        return os.fsencode(line).decode("utf-8", "replace")


def _set_utf8() -> None:
    """Make a locale of ASCII (LC_ALL=C) one of UTF-8, or readline loses letters."""
    with contextlib.suppress(ImportError, AttributeError, locale.Error):
        if locale.nl_langinfo(locale.CODESET) in ("ANSI_X3.4-1968", "US-ASCII", "646"):
            locale.setlocale(locale.LC_CTYPE, "C.UTF-8")


def _history_path() -> Path | None:
    """The place of XDG for such files: https://specifications.freedesktop.org/basedir-spec/latest/"""
    state = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):
        with contextlib.suppress(RuntimeError):  # the user has no home
            state = str(Path.home() / ".local" / "state")
    return Path(state) / "lariat" / "chat_history" if state else None
