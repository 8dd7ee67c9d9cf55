"""bench/experiments/agreement.py, with the float64 reference in llama.cpp's place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from lariat.architectures import ARCHITECTURES

from tests.reference import Reference

pytest.importorskip("bench.experiments.agreement", reason="runs from the source tree only")

from bench.experiments import agreement
from bench.workers import protocol

EXPERTS = "llama with experts"


class Judge:
    """`Worker`, as far as it is used."""

    def __init__(self, engine: Any, model: str, **options: Any) -> None:
        self._reference = Reference(model)
        self._n_vocab = len(self._reference.weights["token_embd.weight"])

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def call(self, name: str, **arguments: Any) -> list[int] | None:
        if name == "logits":
            ids = protocol.tokens(arguments["n"], self._n_vocab, 6)
            self._reference.logits(ids).astype(np.float32).tofile(arguments["path"])
            return None
        assert name == "greedy"
        ids = protocol.tokens(arguments["n_prompt"], self._n_vocab, 5)
        for _ in range(arguments["n"]):
            ids.append(int(self._reference.logits(ids)[-1].argmax()))
        return ids[arguments["n_prompt"] :]


def test_a_line_for_each_architecture_and_type(monkeypatch, capsys):
    monkeypatch.setattr(agreement, "Worker", Judge)
    monkeypatch.setattr(agreement, "_TYPES", ("F16",))
    monkeypatch.setattr(agreement, "_SHAPE", {"n_vocab": 400})
    monkeypatch.setattr(agreement, "_GREEDY", 3)
    assert agreement.main(["-n", "10"]) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == [f"{name} F16" for name in (*ARCHITECTURES, EXPERTS)]
    for _, error, same, common in rows:
        assert float(error) < 1e-5
        assert (same, common) == ("100%", "3 of 3")


def test_a_missing_peer_is_one_sentence(capsys):
    assert agreement.main(["--python", "/no/such/python"]) == 1
    assert capsys.readouterr().err.startswith("bench.experiments.agreement: error: ")
