"""The bytes of a file: mapped into memory, or read from it when they are asked for.

A mapped file costs nothing until it is touched, but one that is cut short in place, or whose disk
fails, ends the process with SIGBUS when it is touched then. Reading gives an error instead.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from pathlib import Path

import numpy as np
import numpy.typing as npt
from lariat.errors import GGUFError

_READ_AT_ONCE = 1 << 30  # bytes; systems give no more than 2 GiB in one go

_FILE_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFSOCK: "a socket",
}


class MappedFile:
    """A file in memory, page by page as it is touched."""

    def __init__(self, file: int) -> None:
        """Takes over the descriptor `file`."""
        try:
            self._mapping = mmap.mmap(file, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(file)
        self.n_bytes = len(self._mapping)

    def head(self, n: int) -> mmap.mmap | bytes:
        """The first `n` bytes, or more; all if there are fewer."""
        return self._mapping

    def view(self, start: int, n: int) -> npt.NDArray[np.uint8]:
        """uint8 [n] in place, read-only; valid after `close`."""
        return np.frombuffer(self._mapping, np.uint8, n, start)

    def release(self, start: int, n: int) -> None:
        """Let the system take back the pages that lie wholly within `n` bytes from `start` on.

        They come back from the file when they are touched.
        """
        page = mmap.PAGESIZE
        first, last = -(-start // page) * page, (start + n) // page * page
        if first < last and hasattr(self._mapping, "madvise"):
            self._mapping.madvise(mmap.MADV_DONTNEED, first, last - first)

    def close(self) -> None:
        """Give up the file; it is unmapped once the last view of it is gone."""
        # Refused while views are in use; Python then unmaps the file with the last of them.
        with contextlib.suppress(BufferError):
            self._mapping.close()


class ReadFile:
    """A file that stays on its disk; the same methods as `MappedFile`, each view a copy."""

    def __init__(self, path: Path, file: int) -> None:
        """Takes over the descriptor `file`."""
        self._path = path
        self._file = file
        self.n_bytes = os.fstat(file).st_size

    def head(self, n: int) -> bytes:
        """The first `n` bytes; all if there are fewer."""
        return self.view(0, min(n, self.n_bytes)).tobytes()

    def view(self, start: int, n: int) -> npt.NDArray[np.uint8]:
        """uint8 [n], read-only. GGUFError where the file does not have them any more."""
        out = np.empty(n, np.uint8)
        done = 0
        while done < n:
            piece = out[done : done + _READ_AT_ONCE]
            try:
                n_read = os.preadv(self._file, [piece.data], start + done)
            except OSError as error:
                raise GGUFError(f"{self._path}: cannot be read: {error.strerror}") from error
            if n_read == 0:
                raise GGUFError(
                    f"{self._path}: ends at byte {start + done}, but had {self.n_bytes} bytes when "
                    f"it was opened; it was cut short meanwhile"
                )
            done += n_read
        out.flags.writeable = False
        return out

    def release(self, start: int, n: int) -> None:
        """Nothing to do: the pages go with the view."""

    def close(self) -> None:
        """Give up the file."""
        os.close(self._file)


def open_file(path: Path, use_mmap: bool) -> MappedFile | ReadFile:
    """Open a regular file that is not empty.

    Raises `FileNotFoundError` and `PermissionError`, and `GGUFError` for everything else. It does
    so before it reads anything from what is not a regular file, so it never waits on a pipe or a
    device.
    """

    def check(status: os.stat_result) -> None:
        kind = stat.S_IFMT(status.st_mode)
        if kind != stat.S_IFREG:
            found = _FILE_KINDS.get(kind, "not a regular file")
            raise GGUFError(f"{path}: is {found}, expected a GGUF file")
        if status.st_size == 0:
            raise GGUFError(f"{path}: is empty, expected a GGUF file")

    try:
        check(os.stat(path))
        # The name may stand for something else by now, so what was opened is looked at again;
        # with O_NONBLOCK even a pipe opens at once.
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        try:
            check(os.fstat(file))
        except BaseException:
            os.close(file)
            raise
        return MappedFile(file) if use_mmap else ReadFile(path, file)
    except (FileNotFoundError, PermissionError, GGUFError):
        raise
    except (OSError, ValueError) as error:  # a loop of links, a NUL in the path, no memory, ...
        reason = getattr(error, "strerror", None) or error
        raise GGUFError(f"{str(path)!r} cannot be opened: {reason}") from error
