"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from lariat.errors import LariatError

SUFFIX = ".tmp"
"""The end of the names of unfinished files, which begin with a dot."""


@contextmanager
def written_beside(path: Path, error: type[LariatError] | None = None) -> Iterator[Path]:
    """A path to write to, which is renamed to `path` at the end, or removed after an error.

    Raises OSError that names `path`; if `error` is given, one of that class instead.
    """
    # It is in the folder of `path`, so that renaming stays within one file system.
    beside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a directory")
        yield beside
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as problem:
        reason = problem.strerror or str(problem)
        if error is not None:
            raise error(f"{path}: cannot be written: {reason}") from problem
        raise OSError(problem.errno, reason, str(path)) from problem
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


@contextmanager
def anonymous_file(path: Path) -> Iterator[BinaryIO]:
    """A new file to write to, which gets its name `path` only at the end.

    So a process that is killed leaves nothing behind. Systems without O_TMPFILE give the file its
    name from the start. Raises OSError.
    """
    try:
        fd = os.open(path.parent, os.O_WRONLY | os.O_TMPFILE, 0o666)
    except (AttributeError, OSError):
        with open(path, "wb") as file:
            yield file
        return
    with open(fd, "wb") as file:
        yield file
        file.flush()
        os.fsync(fd)
        # Python follows the link in /proc only if a folder is given. Any descriptor will do,
        # because the path is absolute.
        os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd)
