"""The flags of the model file: --override-kv."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from lariat.cli import model_file
from lariat.cli.main import main
from lariat.cli.usage import UsageError

from tests.support.model_files import write_llama


def overrides(*texts: str) -> dict[str, str | int | float | bool]:
    parser = argparse.ArgumentParser()
    model_file.add_arguments(parser)
    flags = [part for text in texts for part in ("--override-kv", text)]
    return model_file.overrides(parser.parse_args(["-m", "x", *flags]))


def test_each_type() -> None:
    values = overrides("a=int:-7", "b=float:1e-5", "c=bool:true", "d=bool:false", "e=str:x=y:z,")
    assert values == {"a": -7, "b": 1e-5, "c": True, "d": False, "e": "x=y:z,"}
    assert values["c"] is True
    assert type(values["a"]) is int
    assert overrides("e=str:") == {"e": ""}
    assert overrides() == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a", "'a' is not of the form KEY=TYPE:VALUE"),
        ("a=int", "not of the form"),
        ("=int:1", "not of the form"),
        ("a=int:1.5", "'1.5' is not a whole number"),
        ("a=float:nan", "'nan' is not a finite number"),
        ("a=float:x", "'x' is not a finite number"),
        ("a=bool:1", "'1' is not true or false"),
        ("a=text:1", "type 'text' is not one of int, float, bool, str"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        overrides(text)


def test_a_key_given_twice() -> None:
    with pytest.raises(UsageError, match="'a' is given twice"):
        overrides("a=int:1", "a=int:2")


def test_commands_use_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write_llama(tmp_path / "m.gguf"))
    no_bos = ["--override-kv", "tokenizer.ggml.add_bos_token=bool:false"]
    for flags, expected in ((no_bos, ""), ([], "1, ")):
        assert main(["tokenize", "-m", path, "-p", "a", "--ids", *flags]) == 0
        assert capsys.readouterr().out.startswith(f"[{expected}2")
    assert main(["info", "-m", path, "--override-kv", "general.name=str:other"]) == 0
    assert "general.name" in (out := capsys.readouterr().out)
    assert "other" in out
    bad = ["--override-kv", "llama.attention.head_count=int:0"]
    assert main(["generate", "-m", path, "-p", "a", "-n", "1", *bad]) == 1
    assert "llama.attention.head_count is 0, expected 1 to" in capsys.readouterr().err
    wrong = ["--override-kv", "llama.block_count=str:2"]
    assert main(["generate", "-m", path, "-p", "a", "-n", "1", *wrong]) == 1
    assert "llama.block_count is '2', expected a whole number" in capsys.readouterr().err
    assert main(["generate", "-m", path, "-p", "a", "--override-kv", "nonsense"]) == 2
