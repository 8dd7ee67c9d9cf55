"""Labels of processors, from folders as Linux has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from lariat.runtime import threads, topology
from lariat.runtime.topology import Processor, describe, read

Devices = Callable[[list[int], dict[str, str]], str]


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Devices:
    """Writes a folder as /sys/devices: devices(allowed, {path: text})."""

    def write(allowed: list[int], files: dict[str, str]) -> str:
        monkeypatch.setattr(threads, "_affinity", lambda: allowed)
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        return str(tmp_path)

    return write


def siblings(lists: list[str]) -> dict[str, str]:
    return {
        f"system/cpu/cpu{cpu}/topology/thread_siblings_list": text for cpu, text in enumerate(lists)
    }


def test_threads_of_a_core_and_nodes(devices):
    """Two nodes of two cores with two threads each, numbered as servers do."""
    files = siblings(["0,4", "1,5", "2,6", "3,7"] * 2)
    files |= {"system/node/node0/cpulist": "0-1,4-5", "system/node/node1/cpulist": "2-3,6-7"}
    found = read(devices(list(range(8)), files))
    assert [one.number for one in found] == list(range(8)), "a processor of each core first"
    assert [one.rank for one in found] == [0] * 4 + [1] * 4
    assert [one.core for one in found] == [0, 1, 2, 3] * 2
    assert [one.node for one in found] == [0, 0, 1, 1] * 2
    assert found[2].label == "node 1, core"
    assert found[6].label == "node 1, SMT sibling of 2"
    assert describe(found) == "4 cores + 4 SMT, 2 nodes"
    assert describe(found[:1]) == "1 core"


def test_intels_hybrid_processors(devices):
    """Two performance cores with two threads each, and four efficiency cores."""
    files = siblings(["0-1", "0-1", "2-3", "2-3", "4", "5", "6", "7"])
    files |= {"cpu_core/cpus": "0-3", "cpu_atom/cpus": "4-7"}
    found = read(devices(list(range(8)), files))
    assert [one.number for one in found] == [0, 2, 4, 5, 6, 7, 1, 3]
    kinds = ["performance"] * 2 + ["efficiency"] * 4 + ["performance"] * 2
    assert [one.kind for one in found] == kinds
    assert found[0].label == "node 0, performance core"
    assert describe(found) == "2 performance + 4 efficiency + 2 SMT"


def test_capacities_of_arms_processors(devices):
    files = {f"system/cpu/cpu{cpu}/cpu_capacity": str(446 if cpu < 4 else 1024) for cpu in range(6)}
    found = read(devices(list(range(6)), files))
    assert [one.kind for one in found] == ["efficiency"] * 4 + ["performance"] * 2


@pytest.mark.parametrize(
    "files",
    [
        {f"system/cpu/cpu{cpu}/cpu_capacity": "1024" for cpu in range(4)},
        {"cpu_core/cpus": "0-3"},
        {"cpu_core/cpus": "0-1", "cpu_atom/cpus": "4-7"},  # those are not allowed
        {},
        {"cpu_core/cpus": "rubbish", "system/node/node0/cpulist": "3-x"},
        {"system/cpu/cpu0/cpu_capacity": "", "system/node/node0/cpulist": ""},
    ],
)
def test_processors_that_are_alike_have_no_kind(devices, files):
    found = read(devices([0, 1], files))
    assert [(one.number, one.core, one.rank, one.node) for one in found] == [
        (0, 0, 0, 0),
        (1, 1, 0, 0),
    ]
    assert describe([Processor(0, 0), Processor(1, 1)]) == describe(found) == "2 cores"


def test_only_those_that_may_be_used_count(devices):
    found = read(devices([2, 3], siblings(["0,2", "1,3"] * 2)))
    assert [(one.number, one.core, one.rank) for one in found] == [(2, 2, 0), (3, 3, 0)]


def test_this_machine():
    found = topology.read()
    assert sorted(one.number for one in found) == threads.processors()
    assert sum(one.rank == 0 for one in found) == len(threads.cores())
