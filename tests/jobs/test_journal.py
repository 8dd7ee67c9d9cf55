"""The journal: what is in it stays, whatever happens to the process that writes it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from lariat import LariatError
from lariat.jobs.journal import Journal

SETTINGS = {"model": "m", "cache": "raw", "seed": 0}
DIGESTS = [bytes([i]) * 16 for i in range(10)]


def filled(path: Path, numbers: tuple[int, ...] = (3, 1, 2)) -> None:
    with Journal(path, SETTINGS, 5) as journal:
        for i in numbers:
            journal.add(i, f"id-{i}", DIGESTS[i], b'{"n":%d, "x": 1.50}' % i)


def test_the_output_has_the_order_of_the_input_or_that_of_the_journal(tmp_path: Path) -> None:
    for ordered, expected in ((True, [1, 2, 3]), (False, [3, 1, 2])):
        path, out = tmp_path / "j", tmp_path / "out"
        filled(path)
        with Journal(path, SETTINGS, 5, is_old=True) as journal:
            assert journal.n_done == 3
            assert [journal.has(i, DIGESTS[i]) for i in range(1, 6)] == [1, 1, 1, 0, 0]
            assert journal.write(out, ordered=ordered) == 3
        assert out.read_bytes() == b"".join(b'{"n":%d, "x": 1.50}\n' % i for i in expected)
        assert not path.exists()


def test_a_journal_that_is_cut_anywhere_keeps_what_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "j"
    filled(path)
    whole = path.read_bytes()
    ends = [i + 1 for i, c in enumerate(whole) if c == 10]
    for n in range(len(whole) + 1):
        path.write_bytes(whole[:n])
        with Journal(path, SETTINGS, 5, is_old=True) as journal:
            n_kept = max(0, sum(end <= n for end in ends) - 1)
            assert journal.n_done == n_kept
            for i in (3, 1, 2)[n_kept:]:
                journal.add(i, f"id-{i}", DIGESTS[i], b'{"n":%d, "x": 1.50}' % i)
        assert path.read_bytes() == whole


def test_one_sentence_for_a_journal_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "j"
    filled(path)
    before = path.read_bytes()
    for settings, said in (
        ({**SETTINGS, "model": "other"}, "belongs to another model"),
        ({**SETTINGS, "cache": "roped"}, "other parameters: cache was 'raw' and is 'roped'"),
    ):
        with pytest.raises(LariatError, match=said):
            Journal(path, settings, 5, is_old=True)
    with pytest.raises(LariatError, match="--resume goes on with them"):
        Journal(path, SETTINGS, 5)
    with pytest.raises(LariatError, match="has row 3, and the input has 2"):
        Journal(path, SETTINGS, 2, is_old=True)
    with Journal(path, SETTINGS, 5, is_old=True) as journal:
        with pytest.raises(LariatError, match="its row 2 is another one"):
            journal.has(2, DIGESTS[7])
        with pytest.raises(LariatError, match="is being written by another process"):
            Journal(path, SETTINGS, 5, is_old=True)
    assert path.read_bytes() == before
    other = tmp_path / "no"
    other.write_text("a story\n")
    with pytest.raises(LariatError, match="is no journal"):
        Journal(other, SETTINGS, 5, is_old=True)
    assert other.read_text() == "a story\n"


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "j"
    filled(path)
    before = path.read_bytes()
    real, n_left = os.pwrite, 20

    def pwrite(fd: int, data: memoryview, at: int) -> int:
        nonlocal n_left
        if not n_left:
            raise OSError(errno.ENOSPC, "No space left on device")
        n = real(fd, data[:n_left], at)
        n_left -= n
        return n

    with Journal(path, SETTINGS, 5, is_old=True) as journal:
        monkeypatch.setattr(os, "pwrite", pwrite)
        with pytest.raises(OSError, match="No space left on device") as caught:
            journal.add(4, "id-4", DIGESTS[4], b"{}")
        assert caught.value.filename == str(path)
        assert path.read_bytes() == before
        monkeypatch.undo()
        journal.add(4, "id-4", DIGESTS[4], b"{}")
        assert journal.n_done == 4


def test_an_output_for_which_the_disk_has_no_room_leaves_the_journal(tmp_path: Path) -> None:
    path, out = tmp_path / "j", tmp_path / "out"
    filled(path)

    def full(beside: Path, lines: Iterator[bytes]) -> None:
        beside.write_bytes(next(lines))
        raise OSError(errno.ENOSPC, "No space left on device")

    with Journal(path, SETTINGS, 5, is_old=True) as journal:
        with pytest.raises(OSError, match="No space left on device"):
            journal.write(out, form=full)
        assert [one.name for one in tmp_path.iterdir()] == ["j"]
        assert journal.write(out) == 3
    assert out.read_bytes().count(b"\n") == 3
