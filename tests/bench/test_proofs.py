"""bench/proofs.py: what counts as a proof, and which one a cell shows."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("bench.proofs", reason="runs from the source tree only")
from bench import proofs

PROOFS = {
    "files": {
        "some.gguf": {"architecture": "llama", "types": ["Q4_K", "Q6_K"], "llama.cpp": 0.01},
        "far.gguf": {"architecture": "qwen2", "types": ["Q4_K", "Q6_K"], "llama.cpp": 0.5},
    },
    "random": {
        "llama": {
            "F32": {"reference": 1e-6, "llama.cpp": 1e-6},
            "F16": {"reference": 1e-6},
            "Q4_0": {"reference": 0.5, "llama.cpp": 0.5},
            "Q4_1": {"reference": 1e-6, "llama.cpp": 0.5},
        }
    },
}


@pytest.mark.parametrize(
    ("architecture", "type_name", "expected"),
    [
        ("llama", "Q6_K", "F"),
        ("llama", "F32", "L"),
        ("llama", "F16", "R"),
        ("llama", "Q4_1", "R"),
        ("llama", "Q4_0", ""),
        ("llama", "Q8_0", ""),
        ("qwen2", "Q6_K", ""),
    ],
)
def test_the_letter_is_that_of_the_strongest_proof(
    architecture: str, type_name: str, expected: str
) -> None:
    assert proofs.letter(PROOFS, architecture, type_name) == expected


def test_what_is_missing_is_told_with_what_to_do() -> None:
    lacking = proofs.missing(PROOFS, ["llama", "mamba9"])
    assert lacking[0].startswith("architecture mamba9: add its row to MODELS in bench/proofs.py, ")
    assert "python -m bench.proofs --python PYTHON_WITH_LLAMA_CPP mamba9`" in lacking[0]
    assert any(line.startswith("type Q8_0: run `python -m bench.proofs") for line in lacking)
    assert not any(line.startswith("type F16") for line in lacking)


def test_every_cell_that_was_computed_is_a_proof() -> None:
    found = proofs.read()
    for architecture, row in found["random"].items():
        for type_name in row:
            assert proofs.letter(found, architecture, type_name), (architecture, type_name)


def test_the_command_fills_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(proofs, "PATH", tmp_path / "models.json")
    assert proofs.main(["llama", "--types", "F32", "Q8_0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == ["llama F32", "llama Q8_0"]
    assert all(line.endswith(" R") for line in lines)
    assert list(proofs.read()["random"]["llama"]) == ["F32", "Q8_0"]
    assert proofs.main(["llama", "--types", "Q8_0", "Q4_K"]) == 0
    assert [line.split(": ")[0] for line in capsys.readouterr().out.splitlines()] == ["llama Q4_K"]
    monkeypatch.setattr(proofs, "bound", lambda *_: 0.0)
    assert proofs.main(["llama", "--types", "F32", "--again"]) == 1
    assert capsys.readouterr().out.endswith("NOT PROVED\n")
    assert proofs.main(["llama", "--python", "/no/such/python", "--types", "F16"]) == 1
    assert capsys.readouterr().err.startswith("bench.proofs: error: ")
