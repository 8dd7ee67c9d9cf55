"""The flags that hold a text to a grammar or a JSON schema."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.support.command_line import Run, check_refused, runner

SCHEMA = (
    '{"properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": false}'
)


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd, "generate", "-p", "Once", "-q", "-n", "200", "--no-display-prompt")


def test_a_schema_and_its_file(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    file.write_text(SCHEMA)
    object_only = '{"type": "object", ' + SCHEMA[1:]
    for flags in (["-j", object_only], ["--json-schema", object_only]):
        code, out, err = run(*flags)
        assert (code, err) == (0, "")
        assert isinstance(json.loads(out)["a"], bool)
    file.write_text(object_only)
    code, out, _ = run("-jf", str(file), "-o", "json")
    assert code == 0
    done = json.loads(out)
    assert done["finish_reason"] == "stop"
    assert isinstance(json.loads(done["text"])["a"], bool)


@pytest.mark.parametrize(
    "text", ['start: "one" | "two"', 'root ::= "one" | other\nother ::= "two"', "start: /one|two/"]
)
def test_grammars(run: Run, tmp_path: Path, text: str) -> None:
    file = tmp_path / "g.txt"
    file.write_text(text)
    for flags in (["--grammar", text], ["--grammar-file", str(file)], ["--regex", "one|two"]):
        code, out, _ = run(*flags)
        assert code == 0
        assert out.strip() in ("one", "two")


def test_what_is_refused(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "s.json"
    file.write_text("{")
    check_refused(run("-j", "{"), 2, "argument -j/--json-schema: ", "no JSON")
    check_refused(run("-j", '{"not": {}}'), 2, "argument -j/--json-schema: ", "Unimplemented keys")
    check_refused(run("--grammar", "start: x"), 2, "argument --grammar: ", "unknown name")
    check_refused(run("--regex", "[a"), 2, "argument --regex: ", "unclosed")
    check_refused(run("--regex", "a", "-j", "{}"), 2, "not allowed with argument")
    check_refused(run("-jf", str(file)), 1, str(file), "no JSON")
    check_refused(run("--grammar-file", str(tmp_path / "none")), 1, "none")
    file.write_bytes(b"start: \xff")
    check_refused(run("--grammar-file", str(file)), 1, str(file), "utf-8")
    check_refused(run("--grammar", "start: <|none|>"), 2, "unknown special token")
    monkeypatch.setitem(sys.modules, "llguidance", None)
    check_refused(run("--regex", "a"), 1, "pip install 'lariat[schema]'")
