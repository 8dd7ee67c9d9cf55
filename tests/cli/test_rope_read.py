"""--rope-read: its settings as text, and what the commands say about the choice."""

from __future__ import annotations

import argparse
import io
import json
import sys

import pytest
from lariat import LLM, RopeConfig, SamplingParams
from lariat.cli import rope_read
from lariat.cli.main import main
from lariat.cli.usage import UsageError
from lariat.runtime.rope_choice import candidates

from tests.support.command_line import Run, check_refused, runner
from tests.support.model_files import chat_metadata, write_llama

N_VOCAB = 320
TEXT = "the hat and the man " * 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "chat.gguf"
    return str(write_llama(path, n_vocab=N_VOCAB, n_ctx=256, metadata=chat_metadata(N_VOCAB)))


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd)


def asked(text: str | None, cache: str = "raw") -> object:
    return rope_read.asked(argparse.Namespace(rope_read=text, cache=cache))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("auto", "auto"),
        ("plain", [RopeConfig()]),
        ("yarn:2", [RopeConfig("yarn", 2.0)]),
        ("linear:1.5,plain", [RopeConfig("linear", 1.5), RopeConfig()]),
        ("extend:4:1024", [RopeConfig(grp_attn_n=4, grp_attn_w=1024)]),
        ("base:2e5+extend:2:512", [RopeConfig(freq_base=2e5, grp_attn_n=2, grp_attn_w=512)]),
    ],
)
def test_settings_as_text(text: str | None, expected: object) -> None:
    assert asked(text) == expected


@pytest.mark.parametrize("text", ["plain", "yarn:2", "linear:1.5", "base:200000+extend:4:1024"])
def test_the_text_of_a_setting_reads_as_that_setting(text: str) -> None:
    of_file = RopeConfig("linear", 1.0, 1e4, 8192)
    [rope] = asked(text)  # type: ignore[misc]
    assert rope_read.words(rope.over(of_file), of_file) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "'' is no setting"),
        ("yarn", "'yarn' is no setting"),
        ("yarn:2:3", "'yarn:2:3' is no setting"),
        ("yarn:two", "no setting, expected plain, yarn:SCALE"),
        ("plain,,plain", "'' is no setting"),
        ("extend:4", "no setting"),
        ("auto,plain", "'auto' is no setting"),
        ("extend:3:512", "a multiple of grp_attn_n"),
        ("linear:0", "scale is 0"),
    ],
)
def test_other_text_is_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match="argument --rope-read: ") as refused:
        asked(text)
    assert words in str(refused.value)


def test_rotated_keys_are_refused(run: Run, model: str) -> None:
    flags = ("-m", model, "-p", "a", "--rope-read", "auto")
    for command in ("generate", "chat"):
        check_refused(run(command, *flags), 2, "argument --rope-read: needs --cache raw")


def test_generate_writes_what_the_setting_writes_and_names_it(run: Run, model: str) -> None:
    flags = ("-m", model, "-p", TEXT, "--cache", "raw", "--temp", "0", "-n", "8", "--ignore-eos")
    params = SamplingParams(8, 0.0, ignore_eos=True)
    with LLM(model, cache="raw") as llm:
        yarn = llm.generate(TEXT, params, rope_read=RopeConfig("yarn", 2.0))
        best = llm.generate(TEXT, params, rope_read="auto")
        n = len(candidates(llm.config, len(yarn.prompt_ids)))
        name = rope_read.words(best.rope, llm.config.rope)
    code, out, err = run("generate", *flags, "--rope-read", "yarn:2")
    assert (code, out) == (0, TEXT + yarn.text + "\n" * (yarn.text[-1:] != "\n"))
    assert "lariat: rope        yarn:2\n" in err
    code, out, err = run("generate", *flags, "--rope-read", "auto")
    assert (code, out) == (0, TEXT + best.text + "\n" * (best.text[-1:] != "\n"))
    assert f"lariat: rope        {name}, {64 * n} tokens computed to choose it\n" in err
    code, _, err = run("generate", *flags)
    assert code == 0
    assert "rope" not in err
    code, out, _ = run("generate", *flags, "--rope-read", "auto", "-o", "json")
    done = json.loads(out)
    assert (code, done["rope"], done["timings"]["n_tried"]) == (0, name, 64 * n)
    assert "rope" not in json.loads(run("generate", *flags, "-o", "json")[1])


def test_no_warning_of_a_long_context_that_is_read_otherwise(run: Run, model: str) -> None:
    flags = ("-m", model, "-p", "a", "--cache", "raw", "-c", "1024", "-n", "1")
    assert "longer than the 256 tokens" in run("generate", *flags)[2]
    assert "warning" not in run("generate", *flags, "--rope-read", "auto")[2]


def test_chat_reads_each_answer_and_names_the_last_setting(
    model: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stats(*flags: str) -> str:
        said = f"{TEXT}\nthe man\n/stats\n"
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(said.encode())))
        always = ("--cache", "raw", "--temp", "0", "-n", "4", "--chat-template", "chatml")
        assert main(["chat", "-m", model, "--commands", *always, *flags]) == 0
        return capfd.readouterr().err

    assert "\nrope        yarn:2\n" in stats("--rope-read", "yarn:2")
    assert "computed to choose it\n" in stats("--rope-read", "auto")
    assert "rope" not in stats()
