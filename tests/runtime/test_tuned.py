"""Numbers of threads that were found best: kept, believed where they fit, and overruled."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from lariat import LLM, GGUFFile, processor
from lariat.runtime import threads, tuned

from tests.support.model_files import write_llama


@pytest.fixture
def gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GGUFFile]:
    """A model; the cache folder is this test's own."""
    monkeypatch.setenv("LARIAT_CACHE", str(tmp_path / "cache"))
    with GGUFFile(write_llama(tmp_path / "model.gguf")) as file:
        yield file


def test_nothing_known_is_the_physical_cores(gguf: GGUFFile) -> None:
    n = threads.available()
    assert tuned.threads_for(gguf, None, None) == (n, n)
    assert tuned.threads_for(gguf, 3, None) == (3, 3)
    assert tuned.threads_for(gguf, None, 3) == (n, 3)


def test_what_was_found_is_taken_where_nothing_is_named(gguf: GGUFFile) -> None:
    tuned.keep(gguf, 5, 7)
    assert tuned.threads_for(gguf, None, None) == (5, 7)
    assert tuned.threads_for(gguf, 2, None) == (2, 2)
    assert tuned.threads_for(gguf, None, 2) == (threads.available(), 2)
    tuned.keep(gguf, 1, 2)
    assert tuned.threads_for(gguf, None, None) == (1, 2)


def test_llm_takes_it(gguf: GGUFFile) -> None:
    tuned.keep(gguf, 1, 3)
    with LLM(gguf.path) as llm:
        assert (llm.n_threads, llm.n_threads_batch) == (1, 3)
    with LLM(gguf.path, n_threads=2) as llm:
        assert (llm.n_threads, llm.n_threads_batch) == (2, 2)


def test_another_machine_or_model_has_numbers_of_its_own(
    gguf: GGUFFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned.keep(gguf, 5, 7)
    with GGUFFile(write_llama(tmp_path / "other.gguf", n_layers=3)) as other:
        assert tuned.threads_for(other, None, None) == (threads.available(),) * 2
    with monkeypatch.context() as patch:
        patch.setattr(processor, "name", lambda: "another one")
        assert tuned.threads_for(gguf, None, None) == (threads.available(),) * 2
    for name, value in (("cores", [[0], [1], [9]]), ("quota", 1.5)):
        with monkeypatch.context() as patch:
            patch.setattr(threads, name, lambda value=value: value)
            assert tuned.threads_for(gguf, None, None) == (threads.available(),) * 2
    assert tuned.threads_for(gguf, None, None) == (5, 7)


@pytest.mark.parametrize("noted", ["3", 0, -1, 513, True, None, 2.0, [2]])
def test_a_number_that_makes_no_sense_is_not_taken(
    gguf: GGUFFile, tmp_path: Path, noted: object
) -> None:
    tuned.keep(gguf, 5, 7)
    path = tmp_path / "cache" / tuned.FILE
    known = json.loads(path.read_text())
    known[tuned.place(gguf)] = {"n_threads": noted, "n_threads_batch": 2}
    path.write_text(json.dumps(known))
    assert tuned.threads_for(gguf, None, None) == (threads.available(), 2)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1}', "[" * 100_000])
def test_a_broken_file_is_as_none(gguf: GGUFFile, tmp_path: Path, content: str) -> None:
    path = tmp_path / "cache" / tuned.FILE
    path.parent.mkdir()
    path.write_text(content)
    assert tuned.threads_for(gguf, None, None) == (threads.available(),) * 2
    tuned.keep(gguf, 5, 7)
    assert tuned.threads_for(gguf, None, None) == (5, 7)


@pytest.mark.parametrize("named", [{"n_threads": 0}, {"n_threads_batch": 513}])
def test_bad_numbers_are_refused(gguf: GGUFFile, named: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(named))):
        LLM(gguf.path, **named)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("n_processors", "quota", "most"),
    [(8, None, 8), (8, 1.5, 2), (8, 3.0, 3), (2, 7.5, 2), (600, None, 512), (4, 0.2, 1)],
)
def test_the_search_goes_up_to_hyper_threads_and_the_last_part_of_a_quota(
    monkeypatch: pytest.MonkeyPatch, n_processors: int, quota: float | None, most: int
) -> None:
    monkeypatch.setattr(threads, "processors", lambda: list(range(n_processors)))
    monkeypatch.setattr(threads, "quota", lambda: quota)
    assert tuned.most() == most


def test_a_folder_that_cannot_be_written_is_told(gguf: GGUFFile, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert not tuned.keep(gguf, 5, 7)
