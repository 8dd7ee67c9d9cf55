"""Files of prepared weights: written whole, and refused wherever they are not as they were written.

Every part of a file that is changed or missing is refused before anything is mapped for use.
"""

from __future__ import annotations

import json
import os
import stat
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lariat.errors import PreparedError
from lariat.formats import prepared_file
from lariat.formats.gguf import GGUFFile
from lariat.formats.prepared_file import PreparedFile, mark, writing

from tests.support.model_files import write_llama

HEAD = struct.Struct("<8sIIQQ16s16x")
MODEL = {"bytes": "7", "changed": "1 2", "contents": "ab"}
SIZES = {"first": 100, "second": 64, "third": 5 << 20}
HUGE = 2 << 20


def contents(key: str) -> np.ndarray:
    return np.random.default_rng(len(key)).integers(0, 256, SIZES[key], np.uint8)


def status_with(mode: int = 0o644) -> os.stat_result:
    return os.stat_result((stat.S_IFREG | mode, 0, 0, 1, os.getuid(), os.getgid(), 0, 0, 0, 0))


def write(path: Path, mode: int = 0o644) -> Path:
    with writing(path, MODEL, SIZES, status_with(mode)) as writer:
        for key in SIZES:
            writer.put(key, contents(key))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "m.prepared")


def seal(path: Path, table: Any, n_bytes: int, version: int = 1) -> Path:
    """Write a file with this table (or its text), whose head and checksum are right."""
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    parts = (b"LARIAT-W", version, 0, len(text), n_bytes)
    digest = xxhash.xxh3_128(HEAD.pack(*parts, bytes(16)) + text).digest()
    path.write_bytes(HEAD.pack(*parts, digest) + text)
    os.truncate(path, n_bytes)
    return path


@contextmanager
def flipped(path: Path, at: int) -> Iterator[None]:
    """A bit of a byte of a file, changed for a while."""
    with open(path, "r+b", buffering=0) as file:
        byte = os.pread(file.fileno(), 1, at)
        os.pwrite(file.fileno(), bytes([byte[0] ^ 4]), at)
        yield
        os.pwrite(file.fileno(), byte, at)


# ---- as written ----


def test_pieces_come_back_in_place_and_aligned(path):
    file = PreparedFile(path)
    assert file.model == MODEL
    assert list(file.pieces) == list(SIZES)
    for key, n_bytes in SIZES.items():
        piece = file.find(key, n_bytes)
        assert np.array_equal(piece, contents(key))
        assert piece.ctypes.data % 64 == 0
        assert not piece.flags.writeable
        file.check_piece(key)
    assert file.pieces["first"].offset == HUGE, "so that huge pages can hold the data"
    assert file.n_bytes == path.stat().st_size


def test_a_piece_of_another_size_is_not_found(path):
    file = PreparedFile(path)
    assert file.find("first", 101) is None
    assert file.find("fourth", 100) is None


def test_a_file_without_pieces(tmp_path):
    with writing(tmp_path / "m", MODEL, {}, status_with()):
        pass
    assert not PreparedFile(tmp_path / "m").pieces


def test_views_stay_valid_when_the_file_is_replaced_or_removed(path):
    piece = PreparedFile(path).find("third", SIZES["third"])
    write(path)
    path.unlink()
    assert np.array_equal(piece, contents("third"))


# ---- who may read and write ----


@pytest.mark.parametrize(
    ("model", "expected"),
    [(0o644, 0o644), (0o600, 0o600), (0o640, 0o640), (0o666, 0o644), (0o444, 0o644)],
)
def test_those_who_read_the_model_read_the_file_and_only_its_owner_writes(
    tmp_path, model, expected
):
    old = os.umask(0o077)
    try:
        path = write(tmp_path / "m", model)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == expected


def test_the_mode_of_an_old_file_does_not_stay(path):
    path.chmod(0o666)
    write(path, 0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_a_file_that_others_can_write_is_refused(path, mode):
    path.chmod(mode)
    with pytest.raises(PreparedError, match="can be written by others"):
        PreparedFile(path)


def test_a_file_of_another_user_is_refused(path, monkeypatch):
    """Unless it is root's, or that of the owner of the model."""
    real, owner = os.fstat, 4321

    def strange(fd: int) -> os.stat_result:
        found = list(real(fd))
        found[stat.ST_UID] = owner
        return os.stat_result(found)

    monkeypatch.setattr(os, "fstat", strange)
    with pytest.raises(PreparedError, match="belongs to user 4321"):
        PreparedFile(path)
    assert PreparedFile(path, [4321]).pieces
    owner = 0
    assert PreparedFile(path).pieces


def test_other_types_of_files_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(PreparedError, match=r"not a regular file|cannot be opened"):
            PreparedFile(path)
    with pytest.raises(FileNotFoundError):
        PreparedFile(tmp_path / "none")


# ---- cut short, changed ----


def test_a_file_that_is_cut_anywhere_is_refused(path):
    data = path.read_bytes()
    n_table = HEAD.unpack(data[: HEAD.size])[3]
    start = HEAD.size + n_table
    cuts = [0, 1, 8, HEAD.size - 1, HEAD.size, HEAD.size + 9, start - 1, start, HUGE - 1, HUGE]
    for n in [*cuts, HUGE + 99, HUGE + 128, len(data) // 2, len(data) - 1]:
        path.write_bytes(data[:n])
        with pytest.raises(PreparedError, match=r"cut short|is damaged"):
            PreparedFile(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(PreparedError, match="is damaged"):
        PreparedFile(path)


def test_a_flipped_bit_in_head_or_table_is_refused(path):
    """Every byte but the zeros at the end of the head; the file keeps its length."""
    n_table = HEAD.unpack(path.read_bytes()[: HEAD.size])[3]
    for at in [*range(48), *range(HEAD.size, HEAD.size + n_table)]:
        with flipped(path, at), pytest.raises(PreparedError):
            PreparedFile(path)
    assert PreparedFile(path).pieces


@pytest.mark.parametrize("key", list(SIZES))
def test_a_flipped_bit_in_a_piece_is_found_by_the_check(path, key):
    offset = PreparedFile(path).pieces[key].offset
    with flipped(path, offset + 33):
        file = PreparedFile(path)
        with pytest.raises(PreparedError, match=f"'{key}' do not give their checksum"):
            file.check_piece(key)
    file.check_piece(key)


def test_another_version_is_refused(path):
    table = {"model": MODEL, "pieces": []}
    seal(path, table, HUGE)
    assert not PreparedFile(path).pieces
    seal(path, table, HUGE, version=2)
    with pytest.raises(PreparedError, match="has version 2, expected 1"):
        PreparedFile(path)


# ---- forged tables, whose checksum is right ----

SUM = "0" * 32


@pytest.mark.parametrize(
    ("pieces", "problem"),
    [
        ([["a", HUGE, 64, SUM], ["a", HUGE + 64, 64, SUM]], "there twice"),
        ([["a", HUGE + 1, 63, SUM]], "no place"),
        ([["a", HUGE - 64, 64, SUM]], "no place"),
        ([["a", 64, 64, SUM]], "no place"),
        ([["a", HUGE, 4097, SUM]], "no place"),
        ([["a", HUGE + 4096, 1, SUM]], "no place"),
        ([["a", 1 << 63, 1, SUM]], "no place"),
        ([["a", HUGE, 1 << 64, SUM]], "no place"),
        ([["a", HUGE, 128, SUM], ["b", HUGE + 64, 64, SUM]], "no place"),
        ([["b", HUGE + 64, 64, SUM], ["a", HUGE, 64, SUM]], "no place"),
        ([["a", HUGE, 0, SUM]], "an entry"),
        ([["a", HUGE, -64, SUM]], "an entry"),
        ([["a", -64, 64, SUM]], "an entry"),
        ([["a", True, 64, SUM]], "an entry"),
        ([["a", HUGE, 64.0, SUM]], "an entry"),
        ([["a", str(HUGE), 64, SUM]], "an entry"),
        ([["", HUGE, 64, SUM]], "an entry"),
        ([["a" * 513, HUGE, 64, SUM]], "an entry"),
        ([[7, HUGE, 64, SUM]], "an entry"),
        ([["a", HUGE, 64, "0"]], "an entry"),
        ([["a", HUGE, 64]], "an entry"),
        ([["a", HUGE, 64, SUM, 1]], "an entry"),
        ([{}], "an entry"),
        ({"a": 1}, "no list"),
        (None, "no list"),
    ],
)
def test_forged_pieces_are_refused(path, pieces, problem):
    seal(path, {"model": MODEL, "pieces": pieces}, HUGE + 4096)
    with pytest.raises(PreparedError, match=problem):
        PreparedFile(path)


@pytest.mark.parametrize(
    "table",
    [
        {},
        [],
        7,
        {"model": MODEL},
        {"model": MODEL, "pieces": [], "more": 1},
        {"model": None, "pieces": []},
        {"model": {"bytes": "7"}, "pieces": []},
        {"model": MODEL | {"bytes": 7}, "pieces": []},
        {"model": MODEL | {"more": "7"}, "pieces": []},
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 200_000,
        b"9" * 100_000,
    ],
)
def test_forged_tables_are_refused(path, table):
    seal(path, table, HUGE)
    with pytest.raises(PreparedError, match="is damaged"):
        PreparedFile(path)


@pytest.mark.parametrize("n_table", [1 << 20, 1 << 40, (1 << 64) - 1])
def test_a_table_that_is_longer_than_the_file_is_refused(path, n_table):
    parts = (b"LARIAT-W", 1, 0, n_table, 4096)
    path.write_bytes(HEAD.pack(*parts, bytes(16)).ljust(4096, b"\0"))
    with pytest.raises(PreparedError, match="its table has"):
        PreparedFile(path)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.sampled_from([HUGE, HUGE + 64, 64, 1, -1, "model", "pieces", SUM]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=20,
)
ENTRY = st.tuples(
    st.sampled_from(["a", "b", "c"]),
    st.integers(0, 80).map(lambda n: HUGE + 64 * n) | st.integers(-100, 1 << 65),
    st.integers(-10, 5000) | st.integers(),
    st.just(SUM),
).map(list)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(pieces=st.lists(ENTRY, max_size=4) | JSON, n_more=st.integers(0, 4096))
def test_any_table_gives_pieces_within_the_file_or_one_error(path, pieces, n_more):
    n_bytes = HUGE + n_more
    seal(path, {"model": MODEL, "pieces": pieces}, n_bytes)
    try:
        file = PreparedFile(path)
    except PreparedError:
        return
    end = HUGE
    for key, piece in file.pieces.items():
        assert end <= piece.offset <= piece.offset + piece.n_bytes <= n_bytes
        assert len(file.find(key, piece.n_bytes)) == piece.n_bytes
        end = piece.offset + piece.n_bytes


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(max_size=300), is_sealed=st.booleans())
def test_any_bytes_give_one_error(path, data, is_sealed):
    if is_sealed:
        seal(path, data, HUGE)
    else:
        path.write_bytes(b"LARIAT-W" + data)
    with pytest.raises(PreparedError):
        PreparedFile(path)


# ---- writing ----


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(path, monkeypatch):
    before = path.read_bytes()

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(PreparedError, match="cannot be written: No space left on device"):
        write(path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_disk_without_room_is_noticed_first(tmp_path, monkeypatch):
    real = os.statvfs

    def little(folder: Any) -> os.statvfs_result:
        found = list(real(folder))
        found[4] = 10  # f_bavail
        return os.statvfs_result(found)

    monkeypatch.setattr(os, "statvfs", little)
    with pytest.raises(PreparedError, match=r"0\.01 GB are needed, 0\.00 GB are free"):
        write(tmp_path / "m")
    assert not os.listdir(tmp_path)


def test_an_interrupt_leaves_nothing(tmp_path):
    def interrupted() -> None:
        with writing(tmp_path / "m", MODEL, SIZES, status_with()) as writer:
            writer.put("first", contents("first"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not os.listdir(tmp_path)


def test_two_writers_at_once_leave_one_whole_file(tmp_path):
    path = tmp_path / "m"
    threads = [threading.Thread(target=write, args=(path,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    file = PreparedFile(path)
    for key in SIZES:
        file.check_piece(key)
    assert os.listdir(tmp_path) == ["m"]


# ---- the model ----


def test_the_mark_of_a_model_notices_changes(tmp_path):
    path = write_llama(tmp_path / "m.gguf")

    def marked() -> dict[str, str]:
        with GGUFFile(path) as gguf:
            return mark(gguf)

    before = marked()
    assert marked() == before
    os.utime(path, ns=(1, 1))
    assert {key for key in before if marked()[key] != before[key]} == {"changed"}
    with GGUFFile(path) as gguf:
        offset = gguf.tensors["output_norm.weight"].offset
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(1, 1))
    assert {key for key in before if marked()[key] != before[key]} == {"changed", "contents"}
    write_llama(path, seed=1)
    assert marked()["contents"] != before["contents"]


def test_the_mark_covers_every_split(tmp_path):
    from lariat.formats.gguf_split import GGUFModel

    path = write_llama(tmp_path / "m.gguf", split=6)
    with GGUFModel(path) as gguf:
        before, last = mark(gguf), gguf.splits[-1]
    assert len(before["changed"].split()) == len(gguf.splits) > 1
    os.utime(last, ns=(1, 1))
    with GGUFModel(path) as gguf:
        assert mark(gguf)["changed"] != before["changed"]


def test_files_of_another_model_say_so(path):
    file = PreparedFile(path)
    file.check_model(MODEL)
    with pytest.raises(PreparedError, match="before the model's file was changed"):
        file.check_model(MODEL | {"changed": "3"})
    with pytest.raises(PreparedError, match="of another model"):
        file.check_model(MODEL | {"contents": "cd"})


def test_the_version_is_the_one_of_these_tests():
    assert prepared_file.VERSION == 1
