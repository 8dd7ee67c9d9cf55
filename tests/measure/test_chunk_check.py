"""`lariat chunk verify`: what reuse loses, kept in the index, and warnings without it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from lariat import DEMO_MODEL, LLM, ChunkLibrary, ContextError
from lariat.measure.chunk_check import Check, check_library, together, wilson
from lariat.measure.reuse_quality import Score
from lariat.reuse.library import ReuseWarning, Verified

from tests.support.command_line import Run, check_refused, runner
from tests.support.contexts import ids_of, load, write_deep

NAMES = ("a", "b", "c")
GOOD = Verified("none", 20, 20, 19, 0.01, 0.95)
BAD = Verified("none", 20, 20, 5, 0.9, 0.5)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_deep(tmp_path_factory.mktemp("model"))


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd)


def fill(library: ChunkLibrary, llm: LLM, n: int = 60) -> None:
    for i, name in enumerate(NAMES):
        library.add(llm, name, ids_of(n, i))


@pytest.mark.filterwarnings("error::UserWarning")
def test_all_computed_anew_is_full_prefill_and_nothing_computed_is_not(
    path: Path, shelf: ChunkLibrary
) -> None:
    with load(path) as llm:
        fill(shelf, llm)
        seen: list[float] = []
        exact = check_library(llm, shelf, recompute="all", n_questions=6, progress=seen.append)
        reused = check_library(llm, shelf, recompute="none", n_questions=6)
        assert llm.runner.cache.pool.n_free == check_free(llm, shelf)
    assert seen == sorted(seen)
    assert seen[-1] == 1
    assert [one.name for one in exact] == list(NAMES)
    for one in exact:
        assert one.n == 6
        assert abs(one.kl[0]) < 1e-5
        assert one.top1 == (1.0, 0.0)
        assert one.n_kept == one.n_answered
    for one in reused:
        assert one.kl[0] > 1e-3
        assert one.kl[1] > 0
    whole = together(reused)
    assert whole.n == 18
    assert whole.kl[0] == pytest.approx(np.mean([one.kl[0] for one in reused]))


def check_free(llm: LLM, shelf: ChunkLibrary) -> int:
    """Blocks that are free when nothing is held."""
    with llm.context():
        return llm.runner.cache.pool.n_free


def test_a_model_that_reads_on(shelf: ChunkLibrary) -> None:
    """Words of the demo model's language: what is recomputed wholly is good."""
    text = "Once upon a time there was a {} fox. The fox liked the {} river. One day it rained. "
    with LLM(DEMO_MODEL, cache="raw", n_ctx=1024, n_threads=1) as llm:
        for name, words in {"old": "old wide", "young": "young deep"}.items():
            shelf.add(llm, name, text.format(*words.split()) * 2)
        checks = check_library(llm, shelf, recompute="all", n_questions=8)
        assert all(one.n_kept == one.n_answered for one in checks)
        verified = checks[0].verified("all")
        assert verified.is_good
        assert verified.n_questions == 8
    shelf.keep_verified({"old": verified})
    assert ChunkLibrary(shelf.folder).entry("old").verified == (verified,)


def test_the_numbers_of_a_check() -> None:
    right, wrong = Score(True, 0.1, 0.02, 1.0), Score(False, 0.5, 0.04, 0.5)
    check = Check("x", (right, wrong, wrong, right), (True, True, False, False))
    assert (check.n, check.n_answered, check.n_kept) == (4, 2, 1)
    assert check.kl == pytest.approx((0.03, 1.96 * np.std([0.02, 0.04] * 2, ddof=1) / 2))
    assert check.top1[0] == 0.75
    assert check.kept == wilson(1, 2)
    assert Check("y", (right,), (False,)).kept == (0, 1)


def test_wilson_is_the_interval_of_the_paper() -> None:
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-3)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-3)
    assert wilson(10, 10)[1] == 1


def test_few_documents_are_an_error(path: Path, shelf: ChunkLibrary) -> None:
    with load(path) as llm:
        shelf.add(llm, "a", ids_of(60))
        shelf.add(llm, "short", ids_of(5, 1))
        with pytest.raises(ContextError, match="1 of its documents are for this model"):
            check_library(llm, shelf)
        shelf.add(llm, "b", ids_of(60, 2))
    with load(path, n_ctx=160) as small, pytest.raises(ContextError, match="do not fit a context"):
        check_library(small, shelf)
    with load(path, type_v="f16") as other, pytest.raises(ContextError, match="0 of its documents"):
        check_library(other, shelf)


def said(llm: LLM, library: ChunkLibrary, names: str, recompute: object = "none") -> list[str]:
    with warnings.catch_warnings(record=True) as caught, llm.context() as context:
        warnings.simplefilter("always")
        for name in names:
            context.append(library[name], recompute=recompute)  # type: ignore[arg-type]
    ours = [one for one in caught if one.category is ReuseWarning]
    assert all(one.filename == __file__ for one in ours)
    return [str(one.message) for one in ours]


def test_a_library_that_was_not_verified_says_so_once(path: Path, shelf: ChunkLibrary) -> None:
    def anew() -> ChunkLibrary:
        return ChunkLibrary(shelf.folder)

    with load(path) as llm:
        fill(shelf, llm)
        assert said(llm, shelf, "a") == []  # exact
        assert said(llm, shelf, "ab", "all") == []  # exact too
        (text,) = said(llm, shelf, "abc")
        assert text.startswith(f"{shelf.folder}: chunk 'b' was not verified: `lariat chunk verify`")
        assert said(llm, shelf, "abc") == []
        shelf.keep_verified(dict.fromkeys(NAMES, GOOD) | {"gone": GOOD})
        assert said(llm, anew(), "abc") == []
        (text,) = said(llm, anew(), "abc", 3)
        assert "chunk 'b' was not verified with recompute=3: " in text
        shelf.keep_verified({"c": BAD})
        (text,) = said(llm, anew(), "abc")
        assert "chunk 'c' loses answers where it is reused: when it was verified, 5 of 20" in text
        shelf.keep_verified({"c": Verified("3", 20, 20, 20, 0.0, 1.0)})
        assert [one.recompute for one in anew().entry("c").verified] == ["none", "3"]
        fill(shelf, llm)  # the same documents
        assert len(anew().entry("c").verified) == 2
        shelf.add(llm, "c", ids_of(50, 9))
        assert anew().entry("c").verified == ()


@pytest.mark.parametrize(
    ("verified", "good"),
    [
        (GOOD, True),
        (BAD, False),
        (Verified("none", 8, 2, 0, 0.1, 0.95), True),  # too few answers: top-1 decides
        (Verified("none", 8, 2, 2, 0.1, 0.5), False),
    ],
)
def test_what_counts_as_good(verified: Verified, good: bool) -> None:
    assert verified.is_good == good


@pytest.mark.parametrize(
    "bad",
    ["x", {"verified": 3}, {"verified": [{"recompute": "none"}]}, {"verified": ["x"]}, [3]],
)
def test_an_index_with_another_form_is_damaged(
    path: Path, shelf: ChunkLibrary, bad: object
) -> None:
    with load(path) as llm:
        shelf.add(llm, "a", ids_of(60))
    index = shelf.folder / "index.json"
    (entry,) = json.loads(index.read_text())
    index.write_text(json.dumps([entry | bad if isinstance(bad, dict) else bad]))
    with pytest.raises(ContextError, match="is damaged, expected a list of chunks"):
        shelf.entries()


def test_the_command(run: Run, path: Path, shelf: ChunkLibrary) -> None:
    with load(path, type_k="f16", type_v="f16") as llm:
        fill(shelf, llm)
    model = ("-m", str(path))
    folder = ("--library", str(shelf.folder))
    place = ("--chunk", "a", "--chunk", "b", "-p", "the", "-n", "1")
    code, _, err = run("generate", *model, *folder, *place)
    assert code == 0
    warning = f"lariat: warning: {shelf.folder}: chunk 'b' was not verified: "
    assert err.startswith(warning)
    assert "warning" not in run("generate", *model, *folder, *place, "-q")[2]
    verify = ("chunk", "verify", *model, *folder, "--questions", "3")
    code, out, err = run(*verify)
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert [line[0] for line in lines] == ["document", "a", "b", "c", "all"]
    assert [line[1] for line in lines[1:]] == ["3", "3", "3", "9"]
    found = json.loads(run(*verify, "--recompute", "all", "-o", "json")[1])
    assert [one["name"] for one in found] == [*NAMES, None]
    assert abs(found[-1]["kl"]) < 1e-4
    kept = ChunkLibrary(shelf.folder).entry("a").verified
    assert [one.recompute for one in kept] == ["auto", "all"]
    check_refused(run(*verify, "--cache", "roped"), 2, "chunks need the raw cache")
    check_refused(run(*verify, "--questions", "0"), 2, "--questions: 0")
    check_refused(run(*verify, "--recompute", "x"), 2, "--recompute")
