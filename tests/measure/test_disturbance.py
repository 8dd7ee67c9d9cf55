"""CPU time of others: sums of counters that a test writes, and of those of this system."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lariat.measure import disturbance
from lariat.measure.disturbance import Meter, Usage, add_up, load_average

TICKS = os.sysconf("SC_CLK_TCK")
Write = Callable[..., str]


@pytest.fixture
def stat(tmp_path: Path) -> Write:
    """Writes a /proc/stat of two processors, in CPU seconds. Returns its path."""
    path = tmp_path / "stat"

    def write(**seconds: float) -> str:
        names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest")
        fields = " ".join(str(round(seconds.get(name, 0) * TICKS)) for name in names)
        path.write_text(f"cpu  {fields}\ncpu0 {fields}\ncpu1 {fields}\nintr 5 0 0\nctxt 7\n")
        return str(path)

    return write


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Wall time and CPU time of this process, to be set by the test."""
    now = {"wall": 100.0, "own": 3.0}
    monkeypatch.setattr(disturbance.time, "perf_counter", lambda: now["wall"])
    monkeypatch.setattr(disturbance.time, "process_time", lambda: now["own"])
    return now


def test_busy_time_less_our_own_is_foreign(stat, clocks):
    meter = Meter(stat(user=10, system=5, idle=50, steal=1, guest=4))
    clocks["wall"] += 10
    clocks["own"] += 9
    stat(user=20, nice=1, system=6, irq=0.5, softirq=0.5, idle=57, iowait=3, steal=3, guest=9)
    usage = meter.usage()
    # 13 s of user, nice, system and interrupts, of which 9 were ours; idle and iowait are no use
    # of a processor, and guest is part of user.
    assert usage == Usage(total=20.0, steal=2.0, foreign=4.0)
    assert usage.share_of_steal == 0.1
    assert usage.share_of_foreign == 0.2
    assert usage.is_disturbed


@pytest.mark.parametrize(
    ("steal", "foreign", "disturbed"),
    [
        (0.0, 0.0, False),
        (0.0, 0.9, False),  # 4.5 % of two processors
        (0.0, 1.1, True),
        (1.1, 0.0, True),
        (0.6, 0.6, True),  # together
        (1.1, -1.0, True),  # ticks that were counted late are no time that others gave back
    ],
)
def test_five_percent_of_all_processors_disturb(steal, foreign, disturbed):
    assert Usage(20.0, steal, foreign).is_disturbed is disturbed


def test_a_few_ticks_do_not_disturb():
    assert not Usage(0.1, 0.0, 0.04).is_disturbed  # 40 %, but four ticks
    assert add_up([Usage(0.1, 0.0, 0.04)] * 10).is_disturbed
    tiny = Usage(0.01, 0.0, 0.02)  # a tick of the time before
    assert tiny.share_of_foreign == tiny.share_of_others == 1


def test_ticks_that_are_counted_late_cancel_out():
    late, early = Usage(1.0, 0.0, -0.02), Usage(1.0, 0.0, 0.02)
    assert late.share_of_foreign == 0
    assert add_up([late, early, late, early]) == Usage(4.0, 0.0, pytest.approx(0.0))
    assert add_up([]) is None


@pytest.mark.parametrize(
    "text", [None, "", "intr 1 2 3\n", "cpu 1 2 3\n", "cpu a b c d e f g h\n", "cpu"]
)
def test_unknown_where_the_file_is_missing_or_another(tmp_path, text):
    path = tmp_path / "stat"
    if text is not None:
        path.write_text(text)
    assert Meter(str(path)).usage() is None


def test_unknown_where_counters_stand_still_while_we_compute(stat, clocks):
    meter = Meter(stat(user=5))
    assert meter.usage() is not None  # no time has passed
    clocks["wall"] += 1
    clocks["own"] += 0.5
    assert meter.usage() is None


def test_load_average_may_be_missing(monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (1.5, 2.0, 3.0), raising=False)
    assert load_average() == 1.5
    monkeypatch.delattr(os, "getloadavg")
    assert load_average() is None


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="the system has no /proc/stat")
def test_another_process_shows_and_our_own_time_does_not():
    """Compares two periods: one in which a child computes, and one in which this process does."""

    def measure(work: Callable[[], None]) -> tuple[Usage, float]:
        meter, start = Meter(), time.process_time()
        work()
        usage = meter.usage()
        if usage is None:
            pytest.skip("the system does not count the use of its processors")
        return usage, time.process_time() - start

    def compute() -> None:
        end = time.process_time() + 0.5
        while time.process_time() < end:
            pass

    loop = "import time\nwhile time.process_time() < 0.5: pass"
    theirs, own = measure(lambda: subprocess.run([sys.executable, "-c", loop], check=True))
    assert own < 0.3
    assert theirs.foreign > 0.4
    ours, own = measure(compute)
    assert own >= 0.5
    assert ours.total > own - 0.1  # wall time of at least one processor
    # Others may run meanwhile too; our own time is at least not among theirs.
    assert ours.foreign + ours.steal <= ours.total - own + 0.2
