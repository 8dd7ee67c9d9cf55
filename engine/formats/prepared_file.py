"""Prepared weights: a model's interleaved matrices in a file, which processes map and share.

The file begins with a head of 64 bytes, little-endian:
    0   magic "LARIAT-W"
    8   uint32 version, uint32 0
    16  uint64 bytes of the table
    24  uint64 bytes of the file
    32  16 bytes: XXH3-128 of the head, with zeros here, and of the table
    48  zeros
The table is JSON: {"model": {...}, "pieces": [[key, offset, n_bytes, checksum], ...]}. `model` is
what `mark` says of the model's file. A key says which rows are in a piece, and how they are
interleaved; offsets count from the start of the file, ascend, and are multiples of 64. A checksum
is the XXH3-128 of a piece. Pieces begin at the first multiple of 2 MiB behind the table, and the
file is written in whole multiples of that, so that Linux keeps it in huge pages where the file
system can (ext4, XFS and others of Linux 6.16 and later).

`PreparedFile` believes nothing before it is checked: owner and mode, head, sizes, the table's
checksum, and each piece's place. The bytes of the pieces are read only by `check_piece`.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash
from lariat.errors import PreparedError, quote
from lariat.formats.atomic import SUFFIX
from lariat.formats.gguf import GGUFFile

VERSION = 1
_MAGIC = b"LARIAT-W"
_HEAD = struct.Struct("<8sIIQQ16s16x")
_ALIGNMENT = 64  # bytes: a vector must not lie in two cache lines
_HUGE_PAGE = 2 << 20
_WRITTEN_AT_ONCE = 4 * _HUGE_PAGE
_MAX_TABLE_BYTES = 64 << 20
_MAX_PIECES = 1 << 18
_MAX_KEY = 512  # characters
_MAX_NUMBER = 1 << 62
_N_SAMPLES = 32  # tensors of a model that are looked at
_SAMPLE = 4096  # bytes of each
_MARK = ("bytes", "changed", "contents")
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class Piece(NamedTuple):
    """Place and checksum of an interleaved matrix in the file."""

    offset: int
    n_bytes: int
    checksum: str  # 32 hexadecimal digits


def mark(gguf: GGUFFile) -> dict[str, str]:
    """Describe a model's files, so that another model, or a changed one, is noticed.

    bytes     of all files
    changed   the time of the last change of each, in nanoseconds
    contents  a hash of their headers (metadata and tensor table), and of the first 4 KiB of 32
              tensors that are spread over the model

    So a start reads the headers and 128 KiB. A weight that is changed without a trace in size and
    time is not noticed; `lariat prepare --check` reads everything.
    """
    stamps = gguf.stamps()
    h = xxhash.xxh3_128()
    for stamp in stamps:
        h.update(stamp.header.data)
    names = list(gguf.tensors)
    for name in names[:: -(-len(names) // _N_SAMPLES) or 1]:
        info = gguf.tensors[name]
        rows = gguf.data(name, 0, -(-_SAMPLE // info.row_bytes))
        h.update(rows.reshape(-1)[:_SAMPLE].data)
    return {
        "bytes": str(gguf.n_bytes),
        "changed": " ".join(str(stamp.status.st_mtime_ns) for stamp in stamps),
        "contents": h.hexdigest(),
    }


def checksum(data: npt.NDArray[np.uint8]) -> str:
    """XXH3-128 of the bytes of a piece. It finds accidents, not forgery."""
    return xxhash.xxh3_128(data.data).hexdigest()


class PreparedFile:
    """A file of prepared weights, checked and mapped.

    model   what `mark` said when the file was written
    pieces  by key

    `owners` are the users, besides this one and root, whose file is trusted: that of the model's
    file, who could change the model as well. Raises PreparedError, which says what is wrong, and
    FileNotFoundError.
    """

    def __init__(self, path: Path, owners: Iterable[int] = ()) -> None:
        self.path = path
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise PreparedError(f"{path}: cannot be opened: {error.strerror}") from error
        try:
            self._check_owner(os.fstat(fd), owners)
            self.n_bytes = os.fstat(fd).st_size
            n_table, digest, head = self._read_head(fd)
            table = self._read_table(fd, n_table, digest, head)
            self.model, self.pieces = self._checked(table, n_table)
            try:
                self._mapping = mmap.mmap(fd, self.n_bytes, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise PreparedError(f"{path}: cannot be mapped: {error}") from error
        finally:
            os.close(fd)
        # Where the file is not in memory yet, Linux then reads it in huge pages.
        with contextlib.suppress(OSError, AttributeError):
            self._mapping.madvise(mmap.MADV_HUGEPAGE)
        self._data = np.frombuffer(self._mapping, np.uint8)

    def find(self, key: str, n_bytes: int) -> npt.NDArray[np.uint8] | None:
        """A piece, uint8 [n_bytes], read-only, in place; None if there is none of that size."""
        piece = self.pieces.get(key)
        if piece is None or piece.n_bytes != n_bytes:
            return None
        return self._data[piece.offset : piece.offset + piece.n_bytes]

    def check_piece(self, key: str) -> None:
        """Read a piece. PreparedError if it is not as it was written."""
        piece = self.pieces[key]
        if checksum(self._data[piece.offset : piece.offset + piece.n_bytes]) != piece.checksum:
            raise self._damaged(f"the bytes of {quote(key)} do not give their checksum")

    def check_model(self, model: Mapping[str, str]) -> None:
        """PreparedError unless the file was made of the model with this `mark`."""
        if self.model == model:
            return
        is_changed = self.model["contents"] == model["contents"]
        raise PreparedError(
            f"{self.path}: was made "
            + ("before the model's file was changed" if is_changed else "of another model")
        )

    def _damaged(self, problem: str) -> PreparedError:
        return PreparedError(f"{self.path}: is damaged: {problem}")

    def _check_owner(self, status: os.stat_result, owners: Iterable[int]) -> None:
        """Whoever can write the file decides what the model says."""
        if not stat.S_ISREG(status.st_mode):
            raise PreparedError(f"{self.path}: is not a regular file")
        if status.st_uid not in {0, os.geteuid(), *owners}:
            raise PreparedError(
                f"{self.path}: belongs to user {status.st_uid}, who is neither you nor root nor "
                f"the owner of the model"
            )
        if status.st_mode & _WRITABLE_BY_OTHERS:
            raise PreparedError(f"{self.path}: can be written by others than its owner")

    def _read_head(self, fd: int) -> tuple[int, bytes, bytes]:
        """Bytes of the table, digest, and the head with zeros in its place."""
        head = os.pread(fd, _HEAD.size, 0)
        if len(head) < _HEAD.size or not head.startswith(_MAGIC):
            raise PreparedError(f"{self.path}: is no file of prepared weights, or is cut short")
        magic, version, zero, n_table, n_bytes, digest = _HEAD.unpack(head)
        if version != VERSION:
            raise PreparedError(f"{self.path}: has version {version}, expected {VERSION}")
        if n_bytes != self.n_bytes:
            raise self._damaged(f"it has {self.n_bytes} bytes, expected {n_bytes}")
        if n_table > min(_MAX_TABLE_BYTES, n_bytes - _HEAD.size):
            raise self._damaged(f"its table has {n_table} bytes")
        return n_table, digest, _HEAD.pack(magic, version, zero, n_table, n_bytes, bytes(16))

    def _read_table(self, fd: int, n_table: int, digest: bytes, head: bytes) -> Any:
        text = os.pread(fd, n_table, _HEAD.size)
        if xxhash.xxh3_128(head + text).digest() != digest:
            raise self._damaged("its table does not give its checksum")
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self._damaged("its table is no JSON") from error

    def _checked(self, table: Any, n_table: int) -> tuple[dict[str, str], Mapping[str, Piece]]:
        """Refuse forged tables: a checksum says that nothing changed, not that it was right."""
        if not isinstance(table, dict) or table.keys() != {"model", "pieces"}:
            raise self._damaged("its table has other entries than model and pieces")
        model, listed = table["model"], table["pieces"]
        if not (
            isinstance(model, dict)
            and tuple(model) == _MARK
            and all(isinstance(value, str) for value in model.values())
        ):
            raise self._damaged("its table does not describe a model")
        if not isinstance(listed, list) or len(listed) > _MAX_PIECES:
            raise self._damaged(f"its table is no list of at most {_MAX_PIECES} pieces")
        pieces: dict[str, Piece] = {}
        end = _data_start(n_table)
        for entry in listed:
            if not _is_entry(entry):
                raise self._damaged("an entry of its table is not a key, two numbers, a checksum")
            key, offset, n_bytes, digest = entry
            if key in pieces:
                raise self._damaged(f"{quote(key)} is there twice")
            if offset < end or offset % _ALIGNMENT or n_bytes > self.n_bytes - offset:
                raise self._damaged(f"{quote(key)} has no place in the file")
            pieces[key] = Piece(offset, n_bytes, digest)
            end = offset + n_bytes
        return model, MappingProxyType(pieces)


def _is_entry(entry: Any) -> bool:
    """Whether it is [key, offset, n_bytes, checksum], with sound types and signs."""
    if not isinstance(entry, list) or len(entry) != 4:
        return False
    key, offset, n_bytes, digest = entry
    return (
        type(key) is str
        and 0 < len(key) <= _MAX_KEY
        and type(offset) is int
        and type(n_bytes) is int
        and offset > 0
        and n_bytes > 0
        and type(digest) is str
        and len(digest) == 32
    )


def _data_start(n_table: int) -> int:
    return -(-(_HEAD.size + n_table) // _HUGE_PAGE) * _HUGE_PAGE


class Writer:
    """Writes pieces one after the other. Made by `writing`."""

    def __init__(self, fd: int, model: Mapping[str, str], sizes: Mapping[str, int]) -> None:
        """`sizes` are the bytes of all pieces by key, in their order."""
        self._fd, self._model = fd, dict(model)
        self._pieces: dict[str, Piece] = {}
        # Offsets and checksums are known at the end. Their places are as long as they may become.
        longest = [[key, _MAX_NUMBER, _MAX_NUMBER, "0" * 32] for key in sizes]
        self._n_table = len(self._table(longest))
        if self._n_table > _MAX_TABLE_BYTES - _HUGE_PAGE or len(sizes) > _MAX_PIECES:
            raise PreparedError("the model has too many tensors for a file of prepared weights")
        self._position = self._written = _data_start(self._n_table)
        self._buffer = bytearray()

    @staticmethod
    def n_bytes(sizes: Mapping[str, int]) -> int:
        """Bytes of a file with pieces of these sizes, or a little more."""
        return sum(sizes.values()) + len(sizes) * (_ALIGNMENT + _MAX_KEY) + 2 * _HUGE_PAGE

    def put(self, key: str, data: npt.NDArray[np.uint8]) -> None:
        """Write the next piece, uint8 [n_bytes]. Raises OSError."""
        gap = -self._position % _ALIGNMENT
        self._buffer += bytes(gap)
        self._position += gap
        self._pieces[key] = Piece(self._position, len(data), checksum(data))
        self._position += len(data)
        rest = data.data
        while rest:
            n = min(len(rest), _WRITTEN_AT_ONCE - len(self._buffer))
            self._buffer += rest[:n]
            rest = rest[n:]
            if len(self._buffer) == _WRITTEN_AT_ONCE:
                self._flush()

    def finish(self) -> None:
        """Write the rest, and the table last. Raises OSError."""
        self._flush()
        listed = [[key, *piece] for key, piece in self._pieces.items()]
        text = self._table(listed).ljust(self._n_table)
        os.ftruncate(self._fd, self._position)
        parts = (_MAGIC, VERSION, 0, self._n_table, self._position)
        digest = xxhash.xxh3_128(_HEAD.pack(*parts, bytes(16)) + text).digest()
        _write_all(self._fd, _HEAD.pack(*parts, digest) + text, 0)

    def _table(self, listed: list[list[Any]]) -> bytes:
        table = {"model": {key: self._model[key] for key in _MARK}, "pieces": listed}
        return json.dumps(table, separators=(",", ":")).encode()

    def _flush(self) -> None:
        _write_all(self._fd, self._buffer, self._written)
        self._written += len(self._buffer)
        self._buffer.clear()


def _write_all(fd: int, data: bytes | bytearray, at: int) -> None:
    with memoryview(data) as view:
        done = 0
        while done < len(view):
            done += os.pwrite(fd, view[done:], at + done)


@contextmanager
def writing(
    path: Path, model: Mapping[str, str], sizes: Mapping[str, int], status: os.stat_result
) -> Iterator[Writer]:
    """Write a file, which appears whole under its name or not at all; an old one is replaced.

    It is never written in place, because processes may have mapped it. It can be read by those who
    can read the model, whose `status` is given, and written by its owner alone. Raises
    PreparedError for whatever the system refuses.
    """
    beside = path.with_name(f".{path.name[:100]}.{os.getpid()}-{os.urandom(4).hex()}{SUFFIX}")
    try:
        _check_room(path.parent, Writer.n_bytes(sizes))
        fd = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            writer = Writer(fd, model, sizes)
            yield writer
            writer.finish()
            _copy_readers(fd, status)
            os.fsync(fd)
            os.replace(beside, path)
        finally:
            os.close(fd)
            with contextlib.suppress(OSError):
                beside.unlink()
    except OSError as error:
        raise PreparedError(f"{path}: cannot be written: {error.strerror or error}") from error


def _check_room(folder: Path, n_bytes: int) -> None:
    """Notice a full disk before minutes of work."""
    found = os.statvfs(folder)
    n_free = found.f_bavail * found.f_frsize
    if found.f_blocks and n_free < n_bytes:
        raise OSError(0, f"{n_bytes / 1e9:.2f} GB are needed, {n_free / 1e9:.2f} GB are free")


def _copy_readers(fd: int, status: os.stat_result) -> None:
    """Let those read the file who can read the model."""
    with contextlib.suppress(OSError):  # only the administrator can give files away
        os.fchown(fd, status.st_uid, -1)
    with contextlib.suppress(OSError):  # a group that this user is not in
        os.fchown(fd, -1, status.st_gid)
    mode = status.st_mode & (stat.S_IRGRP | stat.S_IROTH)
    if os.fstat(fd).st_gid != status.st_gid:
        mode &= ~stat.S_IRGRP
    with contextlib.suppress(OSError):  # a file system without modes
        os.fchmod(fd, stat.S_IRUSR | stat.S_IWUSR | mode)
