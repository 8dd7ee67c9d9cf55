"""bench/peers.py: the protocol, our own worker, the table, and the message for a missing peer.

No test looks at how fast anything is.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from lariat import LLM
from lariat.runtime.batch import Part

from tests.support.model_files import write_llama

pytest.importorskip("bench.peers", reason="runs from the source tree only")
from bench import peers
from bench.peers import Engine, Options, PeerError, Row, Worker
from bench.workers import protocol

ROOT = Path(__file__).parents[2]
OPTIONS = {"n_ctx": 192, "n_seqs": 4, "n_batch": 32, "n_ubatch": 16}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_llama(tmp_path_factory.mktemp("model") / "m.gguf", n_vocab=400))


def ours(cache: str) -> Engine:
    return Engine(f"lariat {cache}", sys.executable, "lariat_worker.py", {"cache": cache})


@pytest.mark.parametrize("cache", ["roped", "raw"])
def test_our_worker_computes_what_it_says(model: str, cache: str) -> None:
    with Worker(ours(cache), model=model, **OPTIONS) as worker:
        assert worker.about["n_vocab"] == 400
        worker.call("threads", n=1)
        found = worker.call("greedy", n_prompt=8, n=5)
        for depth in (20, 33, 7):
            worker.call("fill", depth=depth)
            assert worker.call("prompt", n=20) > 0
            assert worker.call("decode", n=3) > 0
        assert worker.call("decode_together", n_seqs=4, n=5) > 0
        assert worker.call("greedy", n_prompt=8, n=5) == found
        memory = worker.call("memory")
        assert 10e6 < memory["now"] <= memory["peak"] < 10e9
    ids = protocol.tokens(8, 400, 5)
    with LLM(model, cache=cache) as llm:
        context = llm.runner.new_table()
        for token in found:
            assert int(llm.runner.forward([Part(context, ids, "last")])[0].argmax()) == token
            ids = [token]


def test_tokens_are_the_same_everywhere_and_in_range() -> None:
    ids = protocol.tokens(1000, 400, 1)
    assert ids == protocol.tokens(1000, 400, 1) != protocol.tokens(1000, 400, 2)
    assert min(ids) >= 290
    assert max(ids) < 400
    assert len(set(ids)) > 90


def test_an_error_in_a_worker_is_a_sentence_with_its_name(model: str) -> None:
    with Worker(ours("raw"), model=model, **OPTIONS) as worker:
        with pytest.raises(PeerError, match=r"^lariat raw: .*no_such"):
            worker.call("no_such")
        assert worker.call("decode", n=1) > 0  # it lives on
    with pytest.raises(PeerError, match=r"^lariat raw: FileNotFoundError"):
        Worker(ours("raw"), model="none.gguf", **OPTIONS)


def test_two_engines_measured_and_compared(model: str) -> None:
    options = Options(8, 4, [0, 16], [1, 2], 3, 2, 32, 16)
    assert options.n_ctx >= 3 * 4 + 8
    with (
        Worker(ours("roped"), model=model, **OPTIONS) as one,
        Worker(ours("raw"), model=model, **OPTIONS) as two,
    ):
        common = peers.same_start([one, two])
        rows = list(peers.measure([one, two], options))
    # Keys are rounded to f16 before or after their rotation, and a random model is never sure.
    assert common["lariat roped"] == 16
    assert common["lariat raw"] >= 1
    names = ["pp8", "tg4", "pp8 @ d16", "tg4 @ d16", "tg4 x 3 sequences"]
    assert [(row.test, row.n_threads) for row in rows] == [
        (name, n) for n in (1, 2) for name in names
    ]
    for row in rows:
        assert {name: len(samples) for name, samples in row.samples.items()} == {
            "lariat roped": 2,
            "lariat raw": 2,
        }


def test_the_table_and_its_ratios() -> None:
    samples = {"lariat roped": [1.0, 3, 2], "lariat raw": [4.0], "llama.cpp": [2.0], "b": []}
    speed, time = Row("pp8", 2, "t/s", samples), Row("start", 1, "s", samples)
    assert peers.ratio(speed) == 2
    assert peers.ratio(time) == 1
    lines = peers.table([speed], list(samples)).splitlines()
    assert (
        lines[0] == "| test | threads | unit | lariat roped | lariat raw | llama.cpp | b | ratio |"
    )
    assert lines[2] == "| pp8 | 2 | t/s | 2.000 | 4.000 | 2.000 |  | 2.00 |"


def test_a_missing_peer_is_one_sentence(model: str, tmp_path: Path) -> None:
    (tmp_path / "llama_cpp.py").write_text("raise ModuleNotFoundError('No llama_cpp here')\n")
    command = [sys.executable, "-m", "bench.peers", "-m", model, "-n", "2", "-p", "2"]
    done = subprocess.run(
        [*command, "--python", "/no/such/python"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("bench.peers: error: ")
    assert done.stderr.count("\n") == 1
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    done = subprocess.run(
        [*command, "--python", str(wrapper)], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "bench.peers: error: llama.cpp ended: ModuleNotFoundError: No llama_cpp here\n"
    )


def test_json(model: str, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(peers, "engines", lambda *_: [ours("roped"), ours("raw")])
    monkeypatch.setattr(peers, "ratio", lambda row: 1.0)
    monkeypatch.setattr(peers, "machine_line", lambda _: "a machine")
    argv = ["-m", model, "-p", "4", "-n", "2", "-t", "1", "-r", "1", "--starts", "1", "-o", "json"]
    assert peers.main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["test"] for row in found["rows"]] == [
        *("pp4", "tg2", "tg2 x 8 sequences"),
        *("start to ready", "start to first token", "peak memory"),
    ]
    assert found["greedy_tokens_in_common"]["lariat roped"] == 16
