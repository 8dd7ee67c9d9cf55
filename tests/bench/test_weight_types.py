"""bench/experiments/weight_types.py: its rows, with two of our own workers in place of a peer.

No test looks at how fast anything is.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest
from lariat.formats import block_formats
from lariat.measure.machine import Probe

from tests.support.model_files import write_llama

pytest.importorskip("bench.experiments.weight_types", reason="runs from the source tree only")
from bench.experiments import weight_types
from bench.peers import Engine


def test_all_types_that_run_but_q4_1_are_compared() -> None:
    named = {t.name for t in block_formats.SUPPORTED} - {"F32", "Q4_1"}
    assert set(weight_types.TYPES) == named
    assert [weight_types.file_type(name).name for name in ("Q4_K", "Q6_K", "BF16")] == [
        "MOSTLY_Q4_K_S", "MOSTLY_Q6_K", "MOSTLY_BF16"
    ]  # fmt: skip


def test_a_row_of_speeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_llama(tmp_path / "m.gguf", n_vocab=400)
    monkeypatch.setattr(weight_types, "model_path", lambda shape, name: path)
    engines = [
        Engine(c, sys.executable, "lariat_worker.py", {"cache": c}) for c in ("roped", "raw")
    ]
    args = argparse.Namespace(shape="", n_prompt=16, n_gen=4, threads=1, repetitions=2)
    cells = weight_types.race("F32", engines, args, Probe(1)).split(" | ")
    assert len(cells) == 8
    assert cells[0] == "0 MB"
    assert all(float(cells[i]) > 0 for i in (1, 2, 3, 5, 6, 7))
    assert "GB/s" in cells[4]


def test_unknown_types_and_missing_peers_are_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        weight_types.main(["Q9_K"])
    assert "Q9_K: expected F16, BF16" in capsys.readouterr().err
    # An interpreter that ends at once, as one without the package does
    assert weight_types.main(["--python", "/bin/false", "--only", "text", "F16"]) == 1
    assert capsys.readouterr().err.startswith(
        "bench.experiments.weight_types: error: llama.cpp ended"
    )
