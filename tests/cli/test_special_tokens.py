"""Special tokens in the texts of the command line, and the end token of files that ask for one."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from lariat import DEMO_MODEL, LLM
from lariat.formats import context_file

from tests.support.command_line import Run, check_refused, runner

ADD_EOS = ("--override-kv", "tokenizer.ggml.add_eos_token=bool:true")
PROMPT = "Tom had a key.</s>One day"


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd)


def tokens(path: Path) -> list[int]:
    """Those of a saved context."""
    with LLM(DEMO_MODEL, cache="raw", n_ctx=256) as llm:
        return context_file.load(path, llm.signature()).tokens.tolist()


@pytest.fixture(scope="module")
def ids() -> dict[bool, list[int]]:
    """Of the prompt, with and without its special token."""
    with LLM(DEMO_MODEL, n_ctx=64) as llm:
        return {on: llm.tokenize(PROMPT, parse_special=on) for on in (False, True)}


FLAGS = pytest.mark.parametrize(
    ("flags", "special"),
    [((), True), (("--parse-special",), True), (("--no-parse-special",), False)],
)


@FLAGS
def test_tokenize(run: Run, ids: dict, flags: tuple, special: bool) -> None:
    code, out, _ = run("tokenize", "-p", PROMPT, "--ids", *flags)
    assert (code, ast.literal_eval(out)) == (0, ids[special])


@FLAGS
def test_generate(run: Run, ids: dict, flags: tuple, special: bool, tmp_path: Path) -> None:
    """The prompt is shown as it was given. Its tokens are those in the prompt cache."""
    cache = str(tmp_path / "cache")
    common = ("generate", "-p", PROMPT, "-n", "2", "--temp", "0", "-c", "256", *flags)
    code, plain, _ = run(*common, "-q")
    assert (code, plain.startswith(PROMPT)) == (0, True)
    for _ in range(2):  # computed, and taken from the file
        code, out, _ = run(*common, "-q", "--cache", "raw", "--prompt-cache", cache)
        assert (code, out) == (0, plain)
    assert tokens(Path(cache)) == ids[special]


@FLAGS
def test_chunks(run: Run, ids: dict, flags: tuple, special: bool, tmp_path: Path) -> None:
    add = ("chunk", "add", "x", "-p", PROMPT, "--library", str(tmp_path), "-c", "256")
    code, out, _ = run(*add, *flags)
    assert (code, out.split()[1]) == (0, str(len(ids[special]) - 1))


def test_a_prompt_behind_chunks_continues_them(run: Run, tmp_path: Path) -> None:
    shelf = ("--library", str(tmp_path))
    assert run("chunk", "add", "a", "-e", "-p", r"Tom was sad.\n\n", *shelf, "-c", "256")[0] == 0
    end = ("-n", "6", "--temp", "0", "-q", "-c", "256", "--cache", "raw")
    _, whole, _ = run("generate", "-e", "-p", r"Tom was sad.\n\nOne day", *end)
    _, behind, _ = run("generate", "--chunk", "a", *shelf, "-p", "One day", *end)
    assert "Tom was sad.\n\n" + behind == whole


def test_perplexity_takes_text_for_text_as_llama_perplexity_does(run: Run) -> None:
    text = PROMPT * 3
    measure = ("perplexity", "-p", text, "-c", "8", "-o", "json", "-q")
    found = {flags: run(*measure, *flags) for flags in ((), ("--no-parse-special",))}
    assert found[()] == found[("--no-parse-special",)]
    assert found[()] != run(*measure, "--parse-special")


@pytest.mark.parametrize("flags", [(), ("--cache", "raw", "--prompt-cache", "FILE")])
def test_a_prompt_of_a_file_that_adds_eos_is_continued(
    run: Run, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    flags = tuple(str(tmp_path / "cache") if flag == "FILE" else flag for flag in flags)
    common = ("generate", "-p", "One day Tom", "-n", "8", "--temp", "0", "-q", "-c", "256", *flags)
    expected = run(*common[:8], "-c", "256")
    assert run(*common, *ADD_EOS) == expected
    assert run(*common, *ADD_EOS) == expected


# ---- what is refused before the model is loaded ----


@pytest.mark.parametrize("types", ["q8_ch", "q4_ch"])
def test_a_shift_that_cannot_be_is_refused_at_once(run: Run, types: str) -> None:
    flags = ("generate", "-m", "/no/such/file", "-p", "x", "--context-shift", "-ctk", types)
    check_refused(run(*flags), 2, "--context-shift", types, "--cache raw")
    check_refused(run(*flags, "--cache", "raw"), 1, "/no/such/file")


def test_files_that_are_missing_are_found_before_the_model(run: Run, tmp_path: Path) -> None:
    generate = ("generate", "-m", "/no/such/model", "-p", "x")
    no_folder = str(tmp_path / "no" / "cache")
    shelf = ("--cache", "raw", "--library", str(tmp_path), "--chunk", "cat")
    for flags, words in (
        (("--prompt-cache", no_folder), "is not a folder that can be written"),
        (("--prompt-cache", no_folder, "--prompt-cache-ro"), "No such file"),
        (shelf, "has no chunk named 'cat'"),
    ):
        result = run(*generate, *flags)
        check_refused(result, 1, words)
        assert "model" not in result[2]
