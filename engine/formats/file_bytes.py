"""The bytes of a file: mapped into memory, or read from the file when they are asked for.

A mapped file costs nothing until it is touched. But if it was cut short in place, or its disk
fails, the next touch ends the process with SIGBUS. A file that is read gives an error instead.
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

_READ_AT_ONCE = 1 << 30  # bytes; systems give at most 2 GiB in one call

_FILE_TYPES = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFSOCK: "a socket",
}


class MappedFile:
    """A file in memory, page by page as it is touched."""

    def __init__(self, file: int) -> None:
        """Take over the descriptor `file`."""
        try:
            self.status = os.fstat(file)
            self._mapping = mmap.mmap(file, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(file)
        self.n_bytes = len(self._mapping)

    def head(self, n: int) -> mmap.mmap | bytes:
        """The first `n` bytes, or more; all bytes if there are fewer."""
        return self._mapping

    def view(self, start: int, n: int) -> npt.NDArray[np.uint8]:
        """uint8 [n] in place, read-only. It stays valid after `close`."""
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
        """Give up the file. It is unmapped when the last view of it is gone."""
        # Python refuses while views are in use, and unmaps the file with the last of them.
        with contextlib.suppress(BufferError):
            self._mapping.close()


class ReadFile:
    """A file that stays on its disk. It has the methods of `MappedFile`; each view is a copy."""

    def __init__(self, path: Path, file: int) -> None:
        """Take over the descriptor `file`."""
        self._path = path
        self._file = file
        self.status = os.fstat(file)
        self.n_bytes = self.status.st_size

    def head(self, n: int) -> bytes:
        """The first `n` bytes; all bytes if there are fewer."""
        return self.view(0, min(n, self.n_bytes)).tobytes()

    def view(self, start: int, n: int) -> npt.NDArray[np.uint8]:
        """uint8 [n], read-only. Raises GGUFError if the file has become shorter."""
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
        """Do nothing: the memory goes with the view."""

    def close(self) -> None:
        """Give up the file."""
        os.close(self._file)


def open_file(path: Path, use_mmap: bool) -> MappedFile | ReadFile:
    """Open a regular file that is not empty.

    Raises `FileNotFoundError`, `PermissionError`, and `GGUFError` for everything else. It reads
    nothing from other types of files, so it never waits for a pipe or a device.
    """

    def check(status: os.stat_result) -> None:
        file_type = stat.S_IFMT(status.st_mode)
        if file_type != stat.S_IFREG:
            found = _FILE_TYPES.get(file_type, "not a regular file")
            raise GGUFError(f"{path}: is {found}, expected a GGUF file")
        if status.st_size == 0:
            raise GGUFError(f"{path}: is empty, expected a GGUF file")

    try:
        check(os.stat(path))
        # The name may belong to another file by now, so the open file is checked again. With
        # O_NONBLOCK even a pipe opens at once.
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
