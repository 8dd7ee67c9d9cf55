"""Files that are replaced: what stays of the old one, links, mounted files, names, errors."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from lariat.errors import ContextError
from lariat.formats import atomic
from lariat.formats.atomic import SUFFIX, anonymous_file, check_writable, written_beside


def replace(path: Path, text: str = "new") -> None:
    with written_beside(path) as beside:
        assert beside.name.startswith(".")
        beside.write_text(text)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def umask() -> int:
    old = os.umask(0o022)
    yield 0o022
    os.umask(old)


def test_a_file_is_replaced_when_it_is_whole(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with written_beside(path) as beside:
        beside.write_text("after")
        assert path.read_text() == "before"
        assert beside.name.startswith(".")
        assert beside.name.endswith(SUFFIX)
        assert beside.parent == path.parent
    assert path.read_text() == "after"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError])
def test_after_an_error_all_is_as_it_was(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("before")

    def interrupted() -> None:
        with written_beside(path) as beside:
            beside.write_text("af")
            raise error

    with pytest.raises(error):
        interrupted()
    assert path.read_text() == "before"
    assert names(tmp_path) == ["file"]


def test_an_error_names_the_file_and_not_the_one_beside(tmp_path):
    path = tmp_path / "none" / "file"
    with pytest.raises(FileNotFoundError) as found, written_beside(path) as beside:
        beside.write_text("x")
    assert found.value.filename == str(path)
    with (
        pytest.raises(ContextError) as refused,
        written_beside(path, ContextError) as beside,
    ):
        beside.write_text("x")
    assert str(refused.value) == f"{path}: cannot be written: No such file or directory"


def test_a_folder_is_not_replaced(tmp_path):
    with pytest.raises(IsADirectoryError), written_beside(tmp_path):
        pytest.fail("there was something to write to")


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="such files have names here")
def test_an_anonymous_file_has_no_name_until_it_is_whole(tmp_path):
    with anonymous_file(tmp_path / "file") as file:
        file.write(b"all")
        if not names(tmp_path):  # the file system has such files
            file.flush()
    assert (tmp_path / "file").read_bytes() == b"all"


def test_without_anonymous_files_it_has_its_name_at_once(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    with anonymous_file(tmp_path / "file") as file:
        assert names(tmp_path) == ["file"]
        file.write(b"all")
    assert (tmp_path / "file").read_bytes() == b"all"


def test_a_new_file_has_the_usual_mode(tmp_path, umask):
    replace(tmp_path / "a")
    assert mode(tmp_path / "a") == 0o666 & ~umask
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("old", [0o600, 0o640, 0o666, 0o444, 0o755])
def test_the_mode_of_the_old_file_stays(tmp_path, umask, old):
    path = tmp_path / "a"
    path.write_text("old")
    path.chmod(old)
    replace(path)
    assert (path.read_text(), mode(path)) == ("new", old)


def test_nobody_else_can_read_what_replaces_a_private_file(tmp_path, umask):
    path = tmp_path / "a"
    path.touch(mode=0o600)
    with written_beside(path) as beside:
        beside.write_text("secret")
        assert mode(beside) == 0o600


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_the_owner_of_the_old_file_stays(tmp_path):
    path = tmp_path / "a"
    path.touch()
    os.chown(path, 1234, 4321)
    replace(path)
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 4321)


def test_links_are_followed(tmp_path):
    (tmp_path / "far").mkdir()
    real, link, second = tmp_path / "far" / "real", tmp_path / "link", tmp_path / "second"
    link.symlink_to(Path("far", "real"))
    second.symlink_to(link)
    for text in ("new", "newer"):  # the first makes the file: the link led nowhere
        replace(second, text)
        assert link.is_symlink()
        assert second.is_symlink()
        assert (real.read_text(), real.is_symlink()) == (text, False)
    assert names(tmp_path / "far") == ["real"]
    assert names(tmp_path) == ["far", "link", "second"]


def test_links_in_a_circle_are_an_error(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(OSError, match="symbolic links"):
        replace(tmp_path / "a")
    assert names(tmp_path) == ["a", "b"]


@pytest.mark.parametrize(
    "name", ["p" * 255, "p" * 240 + ".json", "ü" * 127, "日" * 85, "\udcff" * 250, "x"]
)
def test_names_of_any_legal_length(tmp_path, name):
    path = tmp_path / name
    replace(path)
    replace(path, "newer")
    assert path.read_text() == "newer"
    assert names(tmp_path) == [name]


def test_a_name_that_is_too_long_is_an_error(tmp_path):
    with pytest.raises(OSError, match="File name too long"):
        replace(tmp_path / ("p" * 256))
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EXDEV])
@pytest.mark.parametrize("length", [0, 3, 100_000])
def test_a_file_that_cannot_be_renamed_onto_is_overwritten(tmp_path, monkeypatch, number, length):
    """As one that is mounted alone (docker -v file:file)."""

    def refuse(source: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number))

    path = tmp_path / "a"
    path.write_text("old and longer")
    before = path.stat().st_ino
    monkeypatch.setattr(atomic.os, "replace", refuse)
    replace(path, "n" * length)
    assert (path.read_text(), path.stat().st_ino) == ("n" * length, before)
    assert names(tmp_path) == ["a"]


def test_a_file_in_a_folder_that_cannot_be_written_is_overwritten(tmp_path, monkeypatch):
    folder, other = tmp_path / "folder", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    path = folder / "a"
    path.write_text("old")
    access = os.access
    monkeypatch.setattr(atomic.os, "access", lambda p, mode: p != folder and access(p, mode))
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(other))
    check_writable(path, ContextError)
    with written_beside(path) as beside:
        assert beside.parent == other
        beside.write_text("new")
    assert path.read_text() == "new"
    assert (names(folder), names(other)) == (["a"], [])
    with pytest.raises(ContextError, match="folder is not a folder that can be written"):
        check_writable(folder / "b", ContextError)


def make_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (make_folder, "it is a directory"),
        (os.mkfifo, "it is not a regular file"),
        (lambda path: path.symlink_to(os.devnull), "it is not a regular file"),
    ],
    ids=["folder", "pipe", "device"],
)
def test_what_is_no_file_is_not_replaced(tmp_path, make: Callable[[Path], None], reason: str):
    path = tmp_path / "a"
    make(path)
    with pytest.raises(OSError, match=reason) as raised:
        replace(path)
    assert raised.value.filename == str(path)
    with pytest.raises(ContextError, match=f"^{path}: cannot be written: {reason}$"):
        check_writable(path, ContextError)
    assert names(tmp_path) == ["a"]
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


@pytest.mark.parametrize("has_old", [False, True])
def test_after_an_error_the_old_file_is_as_it_was(tmp_path, has_old):
    path = tmp_path / "a"
    if has_old:
        path.write_text("old")

    def write_half(error: type[BaseException]) -> None:
        with written_beside(path) as beside:
            beside.write_text("half")
            raise error

    for error in (KeyboardInterrupt, ValueError, MemoryError):
        with pytest.raises(error):
            write_half(error)
    assert names(tmp_path) == ["a"] * has_old
    assert not has_old or path.read_text() == "old"
    with pytest.raises(ContextError, match=f"^{path}: cannot be written: No space left"):  # noqa: SIM117
        with written_beside(path, ContextError):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_missing_folder_is_an_error(tmp_path):
    path = tmp_path / "no" / "a"
    with pytest.raises(FileNotFoundError, match=str(path)):
        replace(path)
    with pytest.raises(ContextError, match="no is not a folder that can be written"):
        check_writable(path, ContextError)


@pytest.mark.parametrize("has_old", [False, True])
def test_an_anonymous_file_replaces_too(tmp_path, has_old):
    path = tmp_path / ("m" * 250)
    if has_old:
        path.touch(mode=0o600)
        path.chmod(0o600)
    with written_beside(path, is_made=False) as beside, anonymous_file(beside) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["m" * 250]
    assert not has_old or mode(path) == 0o600


def can_mount() -> bool:
    """Whether this process may mount files in a namespace of its own."""
    try:
        return not subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not can_mount(), reason="needs the right to mount")
@pytest.mark.parametrize("is_read_only", [False, True], ids=["alone", "in a read-only folder"])
def test_a_file_that_is_mounted_alone_is_overwritten(tmp_path, is_read_only):
    folder, path, source = tmp_path / "folder", tmp_path / "folder" / "a", tmp_path / "source"
    folder.mkdir()
    path.touch()
    source.write_text("an old text that is longer")
    protect = f"mount --bind {folder} {folder} && mount -o remount,bind,ro {folder} && "
    script = (
        "from pathlib import Path; from lariat.formats.atomic import written_beside\n"
        f"with written_beside(Path({str(path)!r})) as beside: beside.write_text('new')"
    )
    command = f"{protect * is_read_only}mount --bind {source} {path} && exec {sys.executable} -c"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f'{command} "$0"', script], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert source.read_text() == "new"
    assert names(folder) == ["a"]
