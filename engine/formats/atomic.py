"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """A path to write to, renamed to `path` when it is written; removed if that fails.

    Raises OSError.
    """
    # A name of its own, beside the file so that the last step is a rename within one file system.
    beside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        if path.is_dir():
            raise IsADirectoryError("it is a directory")
        yield beside
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


@contextmanager
def nameless(path: Path) -> Iterator[BinaryIO]:
    """A new file to write to that gets its name `path` when it is written.

    So even a process that is killed leaves nothing. Where the system has no such files, it has its
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
        # Only with a folder for it does Python follow the link that stands for the file; the folder
        # of a whole path is not looked at.
        os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd)
