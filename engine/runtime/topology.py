"""What the processors are that this process may use: threads of a core, nodes, kinds of cores.

Sources: the kernel's cputopology.rst; `nodeN/cpulist` (numaperf.rst); `cpu_core` and `cpu_atom`,
which are there on Intel's hybrid processors; `cpu_capacity` of ARM's (cpu-capacity.txt). Where the
system says nothing, all are cores of one node and one kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lariat.runtime import threads

_DEVICES = "/sys/devices"
_HYBRID = {"cpu_core": "performance", "cpu_atom": "efficiency"}
_MAX_PROCESSORS = 1 << 16


@dataclass(frozen=True)
class Processor:
    """One processor, as the system numbers them.

    core  the first processor of its core that may be used
    rank  its place within the core: 0, and 1 and more for further threads (SMT)
    node  of the memory next to it
    kind  "performance" or "efficiency"; "" where all cores are alike
    """

    number: int
    core: int
    rank: int = 0
    node: int = 0
    kind: str = ""

    @property
    def label(self) -> str:
        """Such as "node 1, efficiency core", "performance core" or "SMT sibling of 0"."""
        what = f"SMT sibling of {self.core}" if self.rank else f"{self.kind} core".strip()
        return f"node {self.node}, {what}"


def read(devices: str = _DEVICES) -> list[Processor]:
    """The processors that this process may use, in the order in which threads are pinned: one of
    each core first, then the others. `devices` is the folder that Linux calls /sys/devices."""
    system = Path(devices, "system")
    nodes = {
        cpu: int(folder.name[4:])
        for folder in sorted(system.glob("node/node[0-9]*"))
        for cpu in _list(folder / "cpulist")
    }
    kinds = _kinds(Path(devices), threads.processors())
    found = [
        Processor(cpu, core[0], rank, nodes.get(cpu, 0), kinds.get(cpu, ""))
        for core in threads.cores(str(system / "cpu"))
        for rank, cpu in enumerate(core)
    ]
    return sorted(found, key=lambda one: (one.rank, one.number))


def describe(some: Sequence[Processor]) -> str:
    """What these are, such as "6 performance + 2 efficiency + 4 SMT, 2 nodes"."""
    counts: dict[str, int] = {}
    for one in some:
        what = "SMT" if one.rank else one.kind or "core"
        counts[what] = counts.get(what, 0) + 1
    parts = [f"{n} {'cores' if what == 'core' and n > 1 else what}" for what, n in counts.items()]
    n_nodes = len({one.node for one in some})
    return " + ".join(parts) + (f", {n_nodes} nodes" if n_nodes > 1 else "")


def _kinds(devices: Path, numbers: Sequence[int]) -> dict[int, str]:
    """The kind of each processor; empty where all are alike."""
    found = {cpu: kind for name, kind in _HYBRID.items() for cpu in _list(devices / name / "cpus")}
    if not found:
        capacities = {}
        for cpu in numbers:
            value = _number(devices / "system" / "cpu" / f"cpu{cpu}" / "cpu_capacity")
            if value is not None:
                capacities[cpu] = value
        most = max(capacities.values(), default=0)
        found = {
            cpu: "performance" if value == most else "efficiency"
            for cpu, value in capacities.items()
        }
    here = {found[cpu] for cpu in numbers if cpu in found}
    return found if len(here) > 1 else {}


def _list(path: Path) -> list[int]:
    """Read a list of processors such as "0-3,8"; empty if there is none."""
    numbers: list[int] = []
    try:
        for part in path.read_text().strip().split(","):
            first, _, last = part.partition("-")
            if part:
                numbers.extend(range(int(first), min(int(last or first), _MAX_PROCESSORS) + 1))
    except (OSError, ValueError):
        return []
    return numbers


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
