"""`lariat bench`: meaning of the flags, bad input of every type, signals and terminals.

Its output is tested in test_bench_output.py, its pictures in tests/measure/test_plots.py.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import select
import signal
import sys
import time
from typing import Any

import pytest
from lariat import DEMO_MODEL
from lariat.cli import bench
from lariat.cli.main import main
from lariat.cli.usage import UsageError
from lariat.measure.benchmark import Benchmark
from lariat.measure.cases import Case

from tests.support.bench_runs import SMALL, quick_runner, write_small
from tests.support.command_line import Run, check_refused, start
from tests.support.model_files import write_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_small(tmp_path_factory.mktemp("model"))


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return quick_runner(capfd, monkeypatch)


def test_positions(run, model):
    """Dynamic scaling, groups, and more positions than the model has, on depth and prompt."""
    deep = (*SMALL, "-m", model, "--cache", "raw", "-d", "100", "-o", "json")
    for flags, given in (
        (("--rope-scaling", "dynamic"), "scaling=dynamic"),
        (("-gan", "4", "-gaw", "32"), "grp_attn_n=4 grp_attn_w=32"),
        (("--rope-freq-scale", "0.5"), "scale=2.0"),
    ):
        code, out, _ = run(*deep, *flags)
        assert code == 0
        assert {row["rope"] for row in json.loads(out)} == {given}
    check_refused(run(*deep), 1, "needs 106 positions at depth 100")
    both = (*SMALL, "-m", model, "--cache", "raw,roped")
    check_refused(run(*both, "-gan", "4"), 2, "--cache: group attention rotates keys anew")
    check_refused(run(*both, "--rope-scale", "0"), 2, "--rope-scale")


def test_default_is_512_and_128(run, model, monkeypatch):
    seen: list[Case] = []
    monkeypatch.setattr(bench, "_check_models", lambda paths, cases, _: seen.extend(cases) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["bench", "-m", model])
    assert [(c.name, c.cache, c.n_batch, c.n_ubatch, c.type_k) for c in seen] == [
        ("pp512", "roped", 2048, 512, "f16"),
        ("tg128", "roped", 2048, 512, "f16"),
    ]


def test_repetitions_warm_up_and_delay_are_passed_on(run, model, monkeypatch):
    seen: list[Any] = []
    original = Benchmark.run

    def spy(self: Benchmark, repetitions: int, **options: Any) -> None:
        seen.append((repetitions, options["warm_up"], options["delay"]))
        original(self, 1)

    monkeypatch.setattr(Benchmark, "run", spy)
    run("-m", model, "-p", "1", "-n", "0")
    run("-m", model, "-p", "1", "-n", "0", "-r", "7", "--no-warmup", "--delay", "0.5")
    assert seen == [(5, True, 0.0), (7, False, 0.5)]


def test_every_flag_is_explained(run):
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 100
    flags = "-m -p -n -pg -d -t -tb -b -ub -ctk -ctv --cache --sequences -r --delay --no-warmup -o "
    flags += "-oe --table --scaling --pin --plot"
    for flag in flags.split():
        assert re.search(rf"(^  |, ){flag}\b", out, re.M), flag


# ---- lists and ranges --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["5"], [5]),
        (["0"], [0]),
        (["1,2"], [1, 2]),
        (["4,1,4"], [4, 1]),
        (["1", "2,3"], [1, 2, 3]),
        (["1-4"], [1, 2, 3, 4]),
        (["3-3"], [3]),
        (["1-8+3"], [1, 4, 7]),
        (["1-7+3"], [1, 4, 7]),
        (["1-16*2"], [1, 2, 4, 8, 16]),
        (["3-20*3"], [3, 9]),
        (["1-2, 8-10+2,512"], [1, 2, 8, 10, 512]),
        (None, [77]),
    ],
)
def test_lists_and_ranges(texts, expected):
    assert bench._numbers("-p", texts, [77]) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "''"),
        ("1,", "''"),
        ("x", "'x'"),
        ("-1", "'-1'"),
        ("1.5", "'1.5'"),
        ("1-", "'1-'"),
        ("1-2-3", "'1-2-3'"),
        ("1-8+", "'1-8+'"),
        ("1+2", "'1+2'"),
        ("8-1", "ends before"),
        ("1-8+0", "never reaches"),
        ("1-8*1", "never reaches"),
        ("1-8*0", "never reaches"),
        ("0-8*2", "never reaches"),
        ("0-5000", "more than 1000"),
        ("9" * 40, "not within"),
        ("9" * 4000, "not a number"),
    ],
)
def test_bad_lists_are_refused(text, expected):
    with pytest.raises(UsageError, match=r"^argument -p: ") as error:
        bench._numbers("-p", [text], [])
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("-p", "1-"), "-p/--n-prompt"),
        (("-n", "a"), "-n/--n-gen"),
        (("-pg", "512"), "-pg"),
        (("-pg", "0,0"), "-pg"),
        (("-d", "1;2"), "-d/--n-depth"),
        (("-t", "0"), "-t/--threads"),
        (("--spec", "4"), "--spec"),
        (("--spec", "4:1.1"), "'4:1.1' is not off"),
        (("--spec", "32:0.5"), "1 to 31"),
        (("--spec", "off,"), "--spec"),
        (("--table", "rope-on-read", "--spec", "4:0.7"), "--spec cannot be given"),
        (("-t", "513"), "1 to 512"),
        (("-tb", "0"), "-tb/--threads-batch"),
        (("-b", "0"), "-b/--batch-size"),
        (("-ub", "70000"), "-ub/--ubatch-size"),
        (("-ctk", "q8"), "-ctk/--cache-type-k"),
        (("-ctv", "f16,F32"), "'F32'"),
        (("--cache", "roped,rope"), "'rope' is not one of roped, raw"),
        (("--sequences", "0"), "--sequences"),
        (("-r", "0"), "-r/--repetitions"),
        (("-r", "1,2"), "-r/--repetitions"),
        (("--delay", "-1"), "--delay"),
        (("--delay", "nan"), "--delay"),
        (("-o", "xml"), "-o/--output"),
        (("-oe", "xml"), "-oe/--output-err"),
        (("-p", "0", "-n", "0"), "nothing to measure"),
        (("--table", "rope"), "--table"),
        (("--table", "rope-on-read", "--scaling"), "--scaling"),
        (("--table", "rope-on-read", "--cache", "raw"), "--cache"),
        (("--table", "rope-on-read", "-d", "0"), "-d"),
        (("--table", "rope-on-read", "-pg", "1,1"), "-pg"),
        (("--table", "rope-on-read", "--sequences", "2"), "--sequences"),
        (("--scaling", "-tb", "0"), "-tb/--threads-batch"),
        (("--plot", "x.png", "-t", "1"), "nothing to draw"),
    ],
)
def test_bad_flags_are_refused(run, flags, expected):
    # The model is missing too, but the flags are looked at first.
    check_refused(run("-m", "missing.gguf", *flags), 2, expected)


# ---- bad input ---------------------------------------------------------------------------


def test_without_a_model_it_is_the_demo_model(run):
    code, out, _ = run("-p", "4", "-n", "0", "-r", "1", "-t", "1", "-o", "json")
    assert code == 0
    assert json.loads(out)[0]["model_filename"] == DEMO_MODEL


def test_missing_and_bad_models_are_found_before_any_is_measured(run, model, tmp_path):
    missing = str(tmp_path / "missing.gguf")
    check_refused(run("-m", model, "-m", missing, *SMALL), 1, missing, "No such file")
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GIF89a" * 100)
    check_refused(run("-m", model, "-m", str(bad), *SMALL), 1, str(bad), "GGUF")


def test_model_that_cannot_be_loaded_leaves_whole_json(run, model, tmp_path):
    path = write_llama(tmp_path / "model.gguf", drop_tensors=["output_norm.weight"])
    check_refused(run("-m", str(path), *SMALL, "-o", "json"), 1, "output_norm.weight")
    code, out, err = run("-m", model, "-m", str(path), *SMALL, "-o", "json")
    assert code == 1
    assert "output_norm.weight" in err
    assert [entry["test"] for entry in json.loads(out)] == ["pp6", "tg3"]


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("-d", "0,91"), ("pp6 @ d91", "depth 91", "96")),
        (("-p", "97"), ("pp97", "97 positions", "96")),
        (("-pg", "90,10"), ("pp90+tg10", "100 positions", "96")),
        (("--table", "rope-on-read", "-p", "6", "-n", "3,128"), ("tg128", "128", "96")),
    ],
)
def test_what_is_beyond_the_context_names_both(run, model, flags, parts):
    check_refused(run("-m", model, *SMALL, *flags), 1, model, *parts)


def test_plot_without_matplotlib_names_the_extra(run, model, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run("-m", model, *SMALL, "-d", "0,8", "--plot", str(tmp_path / "x.png"))
    check_refused(result, 1, "matplotlib", "lariat[plot]")
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("name", "part"),
    [("missing/x.png", "No such file"), ("x.bmp", ".png, .pdf, .svg"), ("d.png", "Is a directory")],
)
def test_plot_that_cannot_be_written_is_refused_before_the_run(run, model, tmp_path, name, part):
    pytest.importorskip("matplotlib")
    (tmp_path / "d.png").mkdir()
    path = str(tmp_path / name)
    check_refused(run("-m", model, *SMALL, "-d", "0,8", "--plot", path), 1, path, part)


def test_pins_that_the_system_cannot_set(run, model, monkeypatch):
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    check_refused(run("-m", model, *SMALL, "--pin"), 1, "processors")


# ---- signals, terminals ------------------------------------------------------------------


def interrupt_after(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Benchmark._time
    calls = itertools.count(1)

    def time_or_stop(self: Benchmark, case: Case) -> int:
        if next(calls) > n:
            raise KeyboardInterrupt
        return original(self, case)

    monkeypatch.setattr(Benchmark, "_time", time_or_stop)


def test_interrupt_prints_what_there_is(run, model, monkeypatch):
    interrupt_after(3, monkeypatch)
    flags = ("-m", model, "-m", model, *SMALL, "--no-warmup", "-o", "json")
    code, out, err = run(*flags)
    assert code == 130
    assert [len(entry["samples_ns"]) for entry in json.loads(out)] == [2, 1]
    assert "interrupted" in err
    assert "Traceback" not in err


def test_interrupt_before_the_first_result(run, model, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    interrupt_after(0, monkeypatch)
    path = tmp_path / "x.png"
    code, out, _ = run("-m", model, *SMALL, "-d", "0,8", "-o", "json", "--plot", str(path))
    assert code == 130
    assert json.loads(out) == []
    assert not path.exists()


def test_control_c(model):
    process = start("bench", "-m", model, *SMALL[:-4], "-r", "1000000", "-t", "1")
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b"| model")  # it is measuring
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out.count(b"| llama ") <= 2  # on a busy machine none may have been measured
    assert b"build: " in out
    assert err.count(b"\n") == 1
    assert b"interrupted" in err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_full_disk_is_found_before_the_run(model):
    with open("/dev/full", "wb") as full:
        process = start("bench", "-m", model, *SMALL[:-4], "-r", "1000000", stdout=full)
        _, err = process.communicate(timeout=60)
    check_refused((process.returncode, "", err.decode()), 1, "No space left on device")


def test_bar_shows_on_a_terminal_only(model):
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    process = start("bench", "-m", model, *SMALL, "-r", "20", stderr=theirs)
    os.close(theirs)
    seen = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and select.select([ours], [], [], 60)[0]:
        try:
            data = os.read(ours, 4096)
        except OSError:  # how Linux says that the other end is closed
            break
        if not data:
            break
        seen += data
    process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0
    assert b"\rmeasuring" in seen
