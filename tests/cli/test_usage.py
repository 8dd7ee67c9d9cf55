"""The parser: flags of llama.cpp, flags and values that are written together, texts with a dash."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from lariat.cli import llama_cpp_flags, usage
from lariat.cli.main import main

from tests.support.command_line import LARIAT, ROOT, Run, check_refused, runner
from tests.support.model_files import write_llama

COMMANDS = {
    "generate": ("generate", "-p", "x"),
    "chat": ("chat",),
    "tokenize": ("tokenize", "-p", "x"),
    "perplexity": ("perplexity", "-f", "a"),
    "bench": ("bench", "-p", "4"),
    "info": ("info",),
    "list": ("list",),
    "quantize": ("quantize", "in.gguf", "out.gguf", "Q4_0"),
    "chunk add": ("chunk", "add", "name", "--library", "shelf", "-p", "x"),
    "chunk list": ("chunk", "list", "--library", "shelf"),
    "chunk remove": ("chunk", "remove", "name", "--library", "shelf"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_llama(tmp_path_factory.mktemp("model") / "m.gguf", n_layers=1, n_ctx=96))


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd)


# ---- flags that are missing ----


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "flags",
    [
        ("-fa",),
        ("-fit", "on"),
        ("-ngl", "99"),
        ("-mu", "http://someone/something"),
        ("-mmp", "0"),
        ("-no-cnv",),
        ("-pxyz",),  # not -p xyz
        ("-tq", "3"),
        ("-qe",),
        ("-m5",),
        ("--flash-attn=on",),
        ("--verbose",),
        ("--n-gpu-layers", "-1"),
        ("--mod", "x"),  # no abbreviations
    ],
    ids=" ".join,
)
def test_an_unknown_flag_is_named_in_every_command(
    run: Run,
    command: str,
    flags: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "a", "it", "xyz", "f":
        (tmp_path / name).write_text("a file that nobody wants to be read")
    name = flags[0].partition("=")[0]
    for argv in ((*COMMANDS[command], *flags), (COMMANDS[command][0], *flags)):
        check_refused(run(*argv), 2, f"unrecognized argument {name}")
    assert not (tmp_path / "shelf").exists()


def test_the_first_unknown_flag_is_named_even_before_the_command(run: Run) -> None:
    check_refused(run("-ngl", "99", "generate"), 2, "unrecognized argument -ngl: ", "GPU")


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("-ngl", "GPU"),
        ("--split-mode", "GPU"),
        ("-fa", "attention is always"),
        ("--mlock", "memory"),
        ("-cnv", "lariat chat"),
        ("-mu", "the Hugging Face Hub (-hf)"),
        ("-cl", "lariat list"),
        ("-mmp", "--no-mmap"),
        ("--draft-p-min", "--draft-max"),
        ("--temperature", "--temp"),
        ("--mirostat", "sampling"),
    ],
)
def test_a_flag_of_llama_cpp_says_why_it_is_missing(run: Run, flag: str, words: str) -> None:
    result = run("generate", "-p", "x", flag)
    check_refused(result, 2, f"unrecognized argument {flag}: ", words)


def test_reasons_are_half_sentences_about_flags_that_are_missing(run: Run) -> None:
    ours = {
        flag
        for command in COMMANDS.values()
        for flag in re.findall(r"(?<!\S)--?[a-z][a-z-]*", run(*command[:2], "--help")[1])
    }
    reasons = llama_cpp_flags._REASONS
    flags = [flag for flags in reasons.values() for flag in flags.split()]
    assert len(flags) == len(set(flags))
    assert all(re.fullmatch(r"--?[A-Za-z][A-Za-z-]*", flag) for flag in flags)
    assert set(flags) & ours <= {"--sequences", "-ns"}  # of bench alone
    for reason in reasons:
        assert not reason.endswith(".")
        assert reason[0].islower() or reason.startswith("Lariat")
        assert len(reason) < 80


def test_a_flag_that_is_nobodys_gets_no_reason(run: Run) -> None:
    check_refused(run("generate", "-p", "x", "--wings"), 2, "unrecognized argument --wings (see")


# ---- values ----


@pytest.mark.parametrize(
    "text",
    [
        *("-", "--", "-x", "-p", "-q", "--prompt", "-n", "-1", "-1e-3", "--help", "-=x", "- item"),
        *(":-)", ":", "=", "a=b", "-e=\\n", "-ngl", "ü", "-\udcc3\udcbc"),
    ],
)
def test_a_prompt_may_be_any_text(run: Run, model: str, text: str) -> None:
    expected = text.encode("utf-8", "surrogateescape").decode() + "\n"
    for flags in (("-p", text), (f"-p={text}",), ("--prompt", text), (f"--prompt={text}",)):
        assert run("generate", "-m", model, *flags, "-n", "0", "-q") == (0, expected, "")
        code, out, _ = run("tokenize", "-m", model, "--ids", *flags)
        assert code == 0
        assert out.startswith("[")


@pytest.mark.parametrize("text", ["-", "--", "-q", "--ignore-eos", "-r", "\n- ", "-1"])
def test_a_reverse_prompt_may_be_any_text(
    run: Run, model: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, ...]] = []
    checked = usage.checked
    monkeypatch.setattr(
        "lariat.cli.sampling_flags.checked",
        lambda *a, **more: seen.append(more["stop"]) or checked(*a, **more),
    )
    flags = ("-r", text, f"-r={text}", "--reverse-prompt", text, f"--reverse-prompt={text}")
    code, out, _ = run("generate", "-m", model, "-p", "the", "-n", "0", "-q", *flags)
    assert (code, out) == (0, "the\n")
    assert seen == [(text,) * 4]


def test_a_system_prompt_may_begin_with_a_dash(run: Run, model: str) -> None:
    flags = ("--chat-template", "vicuna", "-sys", "-be kind", "-p", "-hello", "-st", "-n", "2")
    code, _, err = run("chat", "-m", model, *flags)
    assert (code, err) == (0, "")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("-p",), "argument -p/--prompt: expected one argument"),
        (("-p", "x", "-r"), "argument -r/--reverse-prompt: expected one argument"),
        (("-p", "x", "-m", "-q"), "argument -m/--model: expected one argument"),
        (("-p", "x", "-n", "-q"), "argument -n/--predict/--n-predict: expected one argument"),
        (("-p", "x", "--temp", "-inf"), "argument --temp: temperature is -inf"),
        (("-p", "x", "--frequency-penalty", "-1e999"), "argument --frequency-penalty: "),
        (("-p", "x", "-s=-2"), "seed is -2"),
        (("-p", "x", "-q=1"), "argument -q/--quiet: ignored explicit argument '1'"),
        (("-p", "x", "more"), "unrecognized arguments: more"),
        (("-p", "x", "--", "-fa"), "unrecognized arguments: "),
    ],
)
def test_a_value_that_is_missing_or_wrong(run: Run, flags: tuple, expected: str) -> None:
    check_refused(run("generate", "-m", "missing.gguf", *flags), 2, expected)


def test_numbers_may_be_negative_in_any_notation(run: Run, model: str) -> None:
    flags = ("--presence-penalty", "-1e-3", "--frequency-penalty", "-.5", "--repeat-last-n", "-1")
    assert run("generate", "-m", model, "-p", "the", "-n", "0", "-q", *flags)[0] == 0


# ---- -f - ----


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"the hat", "the hat\n"), (b"the hat\n", "the hat\n"), (b"a\r\n\n", "a\r\n")],
)
def test_a_prompt_from_standard_input(model: str, data: bytes, expected: str) -> None:
    argv = [*LARIAT, "generate", "-m", model, "-f", "-", "-n", "0", "-q"]
    done = subprocess.run(argv, cwd=ROOT, input=data, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, expected.encode(), b"")


def test_other_commands_read_standard_input_too(model: str, tmp_path: Path) -> None:
    for argv in (
        ("tokenize", "-m", model, "-f", "-", "--ids"),
        ("chunk", "add", "a", "-m", model, "--library", str(tmp_path / "shelf"), "-q", "-f", "-"),
        ("perplexity", "-m", model, "-c", "8", "-q", "-f", "-"),
        ("chat", "-m", model, "--chat-template", "vicuna", "-n", "2", "-f", "-", "-st"),
    ):
        done = subprocess.run(
            [*LARIAT, *argv], cwd=ROOT, input=b"the man " * 9, capture_output=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout


@pytest.mark.parametrize(
    ("redirect", "expected"),
    [
        ("</dev/null", "standard input is empty"),
        ("<&-", "standard input is closed"),
    ],
)
def test_standard_input_without_a_prompt(model: str, redirect: str, expected: str) -> None:
    command = " ".join([*LARIAT, "generate", "-m", model, "-f", "-", "-n", "0", redirect])
    done = subprocess.run(
        ["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    check_refused((done.returncode, done.stdout, done.stderr), 1, expected)


def test_main_takes_the_arguments_of_the_process(
    model: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["lariat", "generate", "-m", model, "-p", "-x", "-n0", "-q"])
    assert main() == 2
    assert "unrecognized argument -n0" in capfd.readouterr().err
