"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lariat.errors import ContextError
from lariat.formats.atomic import SUFFIX, anonymous_file, written_beside


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


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
