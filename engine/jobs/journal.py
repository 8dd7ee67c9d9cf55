"""The journal of a batch: rows that are done, on disk, so that a process may end at any moment.

The first line says what the rows belong to. Each other line is a row: its number, custom_id and
digest, and its line of the output. Lines are only appended. One that was cut off is dropped when
the journal is opened again, and its row is computed again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from lariat.errors import LariatError
from lariat.formats.atomic import written_beside

VERSION = 1
_SYNC_SECONDS = 1.0  # what a machine loses whose power fails; a process that is killed loses none


class _Header(msgspec.Struct):
    version: int
    settings: dict[str, Any]


class _Record(msgspec.Struct):
    row: int
    custom_id: str | None
    digest: str
    output: msgspec.Raw


_encode = msgspec.json.Encoder().encode


class Journal:
    """Rows that are done. Close it, or use it in a `with` statement.

    path      its file
    settings  what rows belong to: the model, and all that changes results
    n_rows    of the input
    is_old    whether it may be there: then its rows need not be computed again

    It takes 16 bytes of memory a row. Raises LariatError for a journal that is there and must not
    be, that is missing, that belongs to other settings, or that another process writes; OSError
    with its path from the file.
    """

    def __init__(
        self, path: Path, settings: Mapping[str, Any], n_rows: int, *, is_old: bool = False
    ) -> None:
        self._path = path
        self._offsets = np.full(n_rows + 1, -1, np.int64)  # of each row's record
        self._digests = np.zeros(n_rows + 1, np.uint64)  # the first 8 bytes of each
        self._synced = time.monotonic()
        with self._named():
            self._fd = self._open(is_old)
            try:
                self._size = self._read(settings) if is_old else 0
                os.ftruncate(self._fd, self._size)
                if not self._size:
                    self._append(_encode(_Header(VERSION, dict(settings))) + b"\n")
            except BaseException:
                os.close(self._fd)
                raise
        self.n_done = int(np.count_nonzero(self._offsets >= 0))

    def has(self, number: int, digest: bytes) -> bool:
        """Whether a row is done. LariatError if another row was done under this number."""
        if self._offsets[number] < 0:
            return False
        if int(self._digests[number]) != _number(digest):
            raise LariatError(
                f"{self._path}: its row {number} is another one than that of the input: it belongs"
                " to another input"
            )
        return True

    def add(self, number: int, custom_id: str | None, digest: bytes, output: bytes) -> None:
        """Append a row. OSError if that fails; the journal is as it was before then."""
        record = _Record(number, custom_id, digest.hex(), msgspec.Raw(output))
        with self._named():
            at = self._size
            self._append(_encode(record) + b"\n")
            self._offsets[number], self._digests[number] = at, _number(digest)
            self.n_done += 1
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._fd)
                self._synced = time.monotonic()

    def write(
        self,
        path: Path,
        *,
        ordered: bool = True,
        form: Callable[[Path, Iterator[bytes]], None] | None = None,
    ) -> int:
        """Write the lines of all rows to a file, which appears whole or not at all, and remove the
        journal. They come in the order of their numbers, or as they were done. Returns how many
        there are. `form` writes lines to a path; None: one after the other."""
        offsets = self._offsets[self._offsets >= 0]
        if not ordered:
            offsets.sort()
        with written_beside(path) as beside:
            (form or _write_lines)(beside, self._outputs(offsets))
        with contextlib.suppress(OSError):
            os.unlink(self._path)
        return len(offsets)

    def close(self) -> None:
        """Keep the file as it is."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, is_old: bool) -> int:
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_CREAT | (0 if is_old else os.O_EXCL)
        try:
            fd = os.open(self._path, flags, 0o666)
        except FileExistsError:
            raise LariatError(
                f"{self._path} has rows of a run that was interrupted: --resume goes on with them;"
                " remove the file to begin anew"
            ) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise LariatError(f"{self._path} is being written by another process") from None
        return fd

    def _read(self, settings: Mapping[str, Any]) -> int:
        """Look at all whole records; returns where they end."""
        end = 0
        with open(self._fd, "rb", closefd=False) as file:
            header = file.readline()
            if not header.endswith(b"\n"):
                return 0  # it was killed before its first row
            self._check(header, settings)
            end = len(header)
            for line in file:
                try:
                    record = msgspec.json.decode(line, type=_Record)
                    digest = bytes.fromhex(record.digest)
                except (msgspec.MsgspecError, ValueError):
                    break
                if not line.endswith(b"\n") or len(digest) < 8:
                    break
                if not 0 < record.row < len(self._offsets):
                    raise LariatError(
                        f"{self._path}: has row {record.row}, and the input has"
                        f" {len(self._offsets) - 1}: it belongs to another input"
                    )
                self._offsets[record.row] = end
                self._digests[record.row] = _number(digest)
                end += len(line)
        return end

    def _check(self, line: bytes, settings: Mapping[str, Any]) -> None:
        try:
            header = msgspec.json.decode(line, type=_Header)
        except (msgspec.MsgspecError, ValueError):
            raise LariatError(f"{self._path} is no journal of `lariat batch`") from None
        if header.version != VERSION:
            raise LariatError(f"{self._path} was written by another version of Lariat")
        given = msgspec.json.decode(_encode(dict(settings)))
        if header.settings.get("model") != given.get("model"):
            raise LariatError(f"{self._path} belongs to another model")
        for name in given:
            if header.settings.get(name) != given[name]:
                raise LariatError(
                    f"{self._path} belongs to other parameters: {name} was"
                    f" {header.settings.get(name)!r} and is {given[name]!r}"
                )

    def _append(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                n = os.pwrite(self._fd, rest, self._size + len(data) - len(rest))
                rest = rest[n:]
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
            raise
        self._size += len(data)

    def _outputs(self, offsets: np.ndarray) -> Iterator[bytes]:
        with open(self._fd, "rb", closefd=False) as file:
            for at in offsets:
                file.seek(int(at))
                yield bytes(msgspec.json.decode(file.readline(), type=_Record).output)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Errors of the system name the journal."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise OSError(error.errno, reason, str(self._path)) from error


def _write_lines(path: Path, lines: Iterator[bytes]) -> None:
    with open(path, "wb") as file:
        for line in lines:
            file.write(line + b"\n")


def _number(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "little")
