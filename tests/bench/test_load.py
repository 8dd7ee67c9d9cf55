"""The load of bench/experiments/load.py, for a moment: nothing fails, and what fails is told."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from lariat import DEMO_MODEL, LLM

pytest.importorskip("bench.experiments", reason="runs from the source tree only")
from bench.experiments import load
from tests.support.servers import Running, running

SMALL = ["--clients", "5", "--seconds", "0.5", "--prompts", "4,30", "--answers", "2,9"]
SMALL += ["--long", "200", "--long-every", "0.2", "--leave", "0.4"]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with LLM(DEMO_MODEL, n_ctx=1024, n_threads=1) as llm, running(llm) as server:
        yield server


@pytest.mark.parametrize("more", [[], ["--theirs"]], ids=["ours", "theirs"])
def test_a_load_that_is_borne(
    server: Running, more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "load.json"
    given = ["--url", server.url, "--rates", "1000,100", "--json", str(file), *SMALL, *more]
    assert load.main(given) == 0
    found = json.loads(file.read_text())
    assert found["errors"] == 0
    assert found["requests"] >= 5
    assert found["cache in use at the end"] == 0
    assert found["tokens written"] > 0
    assert found["time at the rates of bench"] == pytest.approx(
        (found["tokens read"] / 1000 + found["tokens written"] / 100) / found["seconds"]
    )
    shown = capsys.readouterr().out
    assert all(name in shown for name in found if name != "load")


def test_requests_that_fail_are_told(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    assert load.main(["--url", server.url, "-m", "another", *SMALL]) == 1
    assert "model_not_found" in capsys.readouterr().err


def test_texts_begin_differently_and_have_as_many_words_as_tokens_are_wanted() -> None:
    rng = random.Random(1)
    texts = [load.words(20, rng) for _ in range(50)]
    assert len({text.split()[0] for text in texts}) == 50
    assert all(len(text.split()) == 21 for text in texts)


def test_quantiles() -> None:
    values = [float(i) for i in range(101)]
    assert load.quantile(values, 0.5) == pytest.approx(50)
    assert load.quantile(values, 0.99) == pytest.approx(99)
    assert load.quantile([3.0], 0.99) == 3.0
