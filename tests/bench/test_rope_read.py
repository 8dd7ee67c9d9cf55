"""The measurement of rope_read: passages that share what begins alike are whole prompts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from lariat import RopeConfig
from lariat.tools.perplexity import log_softmax

pytest.importorskip("bench.experiments", reason="runs from the source tree only")
from bench.experiments import rope_read
from tests.support.contexts import load
from tests.support.model_files import write_llama

LENGTHS = (1000, 1400)
NAMES = ("plain", "extend:4:512", "yarn:2", "auto")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    texts = [f"{word} " * n for word, n in (("the hat", 5), ("a man", 9), ("the end", 3), ("b", 7))]
    monkeypatch.setattr(rope_read, "prose", lambda: texts)
    return write_llama(tmp_path / "m.gguf", n_layers=2, n_ctx=256, head_dim=32)


def test_each_passage_is_that_of_the_whole_prompt(path: Path) -> None:
    results: dict[str, dict] = {}
    with load(path, n_ctx=2000) as llm:
        rope_read.measure(llm, LENGTHS, 3, 0, NAMES, results, lambda: None)
        assert len(results) == 8
        one = rope_read.task(llm, max(LENGTHS), 3, 0)
        answer = llm.tokenize(one.answer, add_bos=False)
        for key, found in results.items():
            _, _, length, depth = key.split("/")
            place = one.n_paragraphs(int(float(depth) * int(length)))
            parts = one.paragraphs[: one.n_paragraphs(int(length) - one.n_around)]
            parts.insert(place, one.fact)
            prompt = [*one.begin, *np.concatenate(parts).tolist(), *one.question]
            assert int(length) - 100 < len(prompt) <= int(length)
            assert found["n_tokens"] == len(prompt)
            ids = prompt + answer
            nll = -log_softmax(llm.logits(ids)[:-1])[np.arange(len(ids) - 1), ids[1:]]
            begun = one.answer.removesuffix(f" {one.value}.")
            n = len(prompt) + len(llm.tokenize(begun, add_bos=False)) - 1
            assert found["plain"]["nll"] == pytest.approx(nll[n:-1].mean(), abs=2e-3)
            question = nll[len(prompt) - len(one.question) : len(prompt) - 1]
            assert found["plain"]["question"] == pytest.approx(question.mean(), abs=2e-3)
            assert set(found) == {"n_tokens", *NAMES}
        assert len({f["yarn:2"]["nll"] for f in results.values()}) == 8
        assert llm.runner.cache.pool.n_free == llm.runner.cache.pool.n_blocks
        llm.set_rope(RopeConfig())


def test_a_run_goes_on_where_it_was_stopped(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.json"
    flags = ["-m", str(path), "-o", str(file), "--lengths", "800", "--settings", "plain", "auto"]
    rope_read.main([*flags, "--facts", "1"])
    first = json.loads(file.read_text())
    rope_read.main([*flags, "--facts", "2"])
    both = json.loads(file.read_text())
    assert len(first) == 4
    assert len(both) == 8
    assert {key: both[key] for key in first} == first
    capsys.readouterr()
    rope_read.main(["-o", str(file), "--report"])
    shown = capsys.readouterr().out
    assert "800: exact of 8" in shown
    assert shown.count("| auto |") == 2
