"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from lariat.errors import LariatError

SUFFIX = ".tmp"
"""The end of the names of unfinished files, which begin with a dot."""

_MAX_NAME_BYTES = 100  # of the file's name in that of the unfinished one, which may have 255
# Renaming onto a file that is mounted alone fails with one of these.
_MOUNTED = (errno.EBUSY, errno.EXDEV)


@contextmanager
def written_beside(
    path: Path, error: type[LariatError] | None = None, *, is_made: bool = True
) -> Iterator[Path]:
    """A path to write to, which is renamed to `path` at the end, or removed after an error.

    Links are followed. A file that is replaced gives its mode, and where the system allows it its
    owner, to the new one. A file that cannot be renamed onto, because it is mounted alone or its
    folder is not writable, is overwritten at the end; that can be interrupted.

    The path to write to has a file if an old one is replaced, so that nobody else can read what is
    written. Without `is_made` the caller makes it, see `anonymous_file`.

    Raises OSError that names `path`; if `error` is given, one of that class instead.
    """
    with _named(path, error):
        target, old = _target(path)
        beside = _beside(target, old)
        try:
            if old is not None and is_made:
                os.close(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            yield beside
            with open(beside, "rb") as file:
                if old is not None:
                    _copy_owner_and_mode(file.fileno(), old)
                os.fsync(file.fileno())
            _replace(beside, target)
        finally:
            with contextlib.suppress(OSError):
                beside.unlink()


def check_writable(path: Path, error: type[LariatError]) -> None:
    """Raise the `error` that `written_beside` would raise, before there is anything to write."""
    with _named(path, error):
        target, old = _target(path)
        folder = _beside(target, old).parent
        if not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise PermissionError(errno.EACCES, f"{folder} is not a folder that can be written")


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


@contextmanager
def _named(path: Path, error: type[LariatError] | None) -> Iterator[None]:
    """Errors of the system name `path`, and are of the class `error` if it is given."""
    try:
        yield
    except OSError as problem:
        reason = problem.strerror or str(problem)
        if error is not None:
            raise error(f"{path}: cannot be written: {reason}") from problem
        raise OSError(problem.errno, reason, str(path)) from problem


def _target(path: Path) -> tuple[Path, os.stat_result | None]:
    """The file behind all links, and its properties if it is there. Raises OSError if unfit."""
    target = Path(os.path.realpath(path))
    try:
        old = os.stat(target)
    except FileNotFoundError:
        return target, None
    if stat.S_ISDIR(old.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a directory")
    if not stat.S_ISREG(old.st_mode):  # renaming would remove a device
        raise OSError(errno.EINVAL, "it is not a regular file")
    return target, old


def _beside(target: Path, old: os.stat_result | None) -> Path:
    """A new name in the folder of `target`, so that renaming stays within one file system."""
    folder = target.parent
    if old is not None and not os.access(folder, os.W_OK) and os.access(target, os.W_OK):
        import tempfile  # which few processes need

        folder = Path(tempfile.gettempdir())
    start = os.fsencode(target.name)[:_MAX_NAME_BYTES].decode("utf-8", "ignore")
    return folder / f".{start}.{os.getpid()}-{os.urandom(4).hex()}{SUFFIX}"


def _copy_owner_and_mode(fd: int, old: os.stat_result) -> None:
    with contextlib.suppress(OSError):  # only the administrator can give files away
        os.fchown(fd, old.st_uid, old.st_gid)
    with contextlib.suppress(OSError):  # a file system without modes
        os.fchmod(fd, stat.S_IMODE(old.st_mode))


def _replace(beside: Path, target: Path) -> None:
    if beside.parent == target.parent:
        try:
            os.replace(beside, target)
            return
        except OSError as problem:
            if problem.errno not in _MOUNTED:
                raise
    with open(beside, "rb") as source, open(target, "r+b") as file:
        shutil.copyfileobj(source, file)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
