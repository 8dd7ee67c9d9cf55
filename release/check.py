"""Installs each wheel of dist/ where there is no compiler, and runs it: `make test-wheels`.

For each Python that this machine or Debian has, and each processor that qemu knows: logits of the
demo model beside those of the float64 reference, `lariat generate`, `lariat bench`, and whether the
best kernels of the processor were chosen. AVX-512 is seen only on a processor that has it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from release import pythons
from release.pythons import Environment
from release.toolchain import BUILD, TARGETS
from release.wheels import DIST, check_size

STABLE_ABI = ("3.11", "3.12", "3.13", "3.14")  # Pythons that have it
# Processors of qemu, and the instruction set that must be in use there. Nehalem has no AVX, and
# NumPy needs all that it has.
PROCESSORS = {
    "x86_64": {"Nehalem": "scalar", "Haswell": "avx2"},
    "aarch64": {"cortex-a72": "neon", "neoverse-n1": "dotprod", "max": "i8mm"},
}
_PROMPT = "Once upon a time, there was a little girl named Lily."
_MOST_ERROR = 0.02  # of logits: a sum's last bit may round an 8-bit activation the other way


def write_judge(path: Path) -> None:
    """Write the token ids of a prompt and their float64 logits."""
    from lariat import DEMO_MODEL, LLM

    from tests.reference import Reference

    with LLM(DEMO_MODEL) as llm:
        ids = llm.tokenize(_PROMPT)
    logits = Reference(DEMO_MODEL, activations="q8").logits(ids)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, ids=np.array(ids), logits=logits)


def check(environment: Environment, judge: Path, isa: str | None) -> str:
    """One line about what ran; exit with a sentence where something is wrong."""
    found = json.loads(environment.run(Path(__file__).with_name("probe.py"), judge))
    if not found["error"] <= _MOST_ERROR:
        sys.exit(f"error: {environment}: logits are off by {found['error']}")
    isa = isa or found["isas"][-1]
    if found["isa"] != isa:
        sys.exit(f"error: {environment}: {found['isa']} of {found['isas']}, expected {isa}")
    generate = ["-m", "lariat", "generate", "--temp", "0", "-n", "24", "-o", "json", "-p"]
    text = json.loads(environment.run(*generate, _PROMPT))["text"]
    if len(text.split()) < 12:
        sys.exit(f"error: {environment}: generate wrote {text!r}")
    bench = ["-m", "lariat", "bench", "-p", "32", "-n", "8", "-r", "1", "-o", "json"]
    rows = json.loads(environment.run(*bench))
    if {row["isa"] for row in rows} != {found["isa"]} or any(row["avg_ts"] <= 0 for row in rows):
        sys.exit(f"error: {environment}: bench printed {rows}")
    return f"{environment}: {found['isa']}, error {found['error']:.6f}, {text!r}"


def environments(wheel: Path) -> list[tuple[Environment, str | None]]:
    """Where a wheel is tried, and the instruction set expected there (None: the best there is).

    Every Python runs on the machine's own processor, or qemu's best; the first one on all others.
    """
    _, _, python, abi, platform = wheel.stem.split("-")
    target = next(t for t in TARGETS.values() if t.name in platform)
    found: list[tuple[Environment, str | None]] = []
    for version in STABLE_ABI if abi == "abi3" else [f"3.{python.removeprefix('cp3')}"]:
        environment = pythons.environment(version, target, wheel)
        if environment is None:
            print(f"{target.name} {version}: not run, there is no such Python here", flush=True)
            continue
        first = not found
        found.append((environment, None))
        if first:
            found += [
                (dataclasses.replace(environment, processor=processor), isa)
                for processor, isa in PROCESSORS[target.name].items()
            ]
    return found


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", nargs="*", type=Path, help="default: all of dist/")
    args = parser.parse_args(arguments)
    wheels = args.wheel or sorted(DIST.glob("*manylinux*.whl"))
    if not wheels:
        parser.error("there is no wheel in dist/: run make wheels first")
    judge = BUILD / "judge.npz"
    write_judge(judge)
    n_passed = 0
    for wheel in wheels:
        check_size(wheel)
        subprocess.run([sys.executable, "-m", "auditwheel", "show", wheel], check=True)
        for environment, isa in environments(wheel):
            print(check(environment, judge, isa), flush=True)
            n_passed += 1
    print(f"{n_passed} passed, 0 failed")


if __name__ == "__main__":
    main()
