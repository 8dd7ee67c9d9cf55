"""Builds wheels for Linux: `make wheels`, or `python -m release.wheels x86_64 aarch64`.

One for each architecture and each Python of this machine, or with --stable-abi one of Python 3.11
for all that are newer. GCC
compiles and Zig links (toolchain.py); auditwheel proves that glibc 2.17 is enough and puts libgomp
into the wheel.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from release import openmp, pythons
from release.toolchain import BUILD, TARGETS, Target, write_compiler

VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
DIST = Path("dist")
MOST_BYTES = 12_000_000  # without the demo model


def requirements() -> list[str]:
    """What pyproject.toml says that a build needs."""
    if sys.version_info < (3, 11):
        sys.exit("error: wheels are built by Python 3.11 or newer: name one with make PYTHON=...")
    import tomllib

    project = tomllib.loads(Path("pyproject.toml").read_text())
    found: list[str] = project["build-system"]["requires"]
    return found


def build(target: Target, version: str, stable: bool = False) -> Path | None:
    """The wheel for `target` of Python `version`; None if this machine has no such Python.

    With `stable` it is one for all newer Pythons. Exit with a sentence if a tool is missing.
    """
    python = pythons.builder(version, requirements())
    if python is None:
        return None
    openmp_folder = openmp.build(target)
    compiler = write_compiler(target, target.folder / "cc", [f"-L{openmp_folder}", "-lgomp", "-s"])
    folder = target.folder / f"build-{version}{'-stable' if stable else ''}"
    raw = folder / "raw"
    shutil.rmtree(raw, ignore_errors=True)
    tag = f"cpython-{version.replace('.', '')}-{target.name}-linux-gnu"
    # The headers are those of this machine's Python. Sizes and structures are the same on both
    # architectures, and modules call functions only.
    settings = {
        "CC": str(compiler),
        "LDSHARED": f"{compiler} -shared",
        "LARIAT_LIMITED_API": str(int(stable)),
        "_PYTHON_HOST_PLATFORM": f"linux-{target.name}",
        "SETUPTOOLS_EXT_SUFFIX": ".abi3.so" if stable else f".{tag}.so",
        "PYTHONPATH": "",
    }
    steps = [
        "build",
        "--build-base",
        folder,
        "bdist_wheel",
        "-d",
        raw,
        "--bdist-dir",
        folder / "wheel",
    ]
    subprocess.run(
        [python, "setup.py", "-q", *steps],
        check=True,
        env=os.environ | settings,
    )
    (wheel,) = raw.glob("*.whl")
    found = _repair(wheel, target, openmp_folder)
    check_size(found)
    return found


def check_size(wheel: Path) -> None:
    """Exit with a sentence if a wheel is larger than it may be."""
    with zipfile.ZipFile(wheel) as archive:
        models = [i.compress_size for i in archive.infolist() if i.filename.endswith(".gguf")]
    size = wheel.stat().st_size - sum(models)
    if size > MOST_BYTES:
        sys.exit(f"error: {wheel.name} has {size} bytes without the model, {MOST_BYTES} at most")


def _repair(wheel: Path, target: Target, openmp_folder: Path) -> Path:
    """Put libgomp into the wheel, and name it by the oldest glibc that has all of its symbols.

    Exit with a sentence if that is younger than it should be.
    """
    repaired = wheel.parent / "repaired"
    options = [
        "--plat",
        "auto",
        "-w",
        repaired,
    ]  # it takes the names of other architectures so only
    subprocess.run(
        [sys.executable, "-m", "auditwheel", "repair", *options, wheel],
        check=True,
        env=os.environ
        | {
            "LD_LIBRARY_PATH": str(openmp_folder),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
    )
    (found,) = repaired.glob("*.whl")
    if target.platform not in found.name:
        sys.exit(f"error: {found.name} needs a younger glibc than {target.platform}")
    DIST.mkdir(exist_ok=True)
    return Path(shutil.move(found, DIST / found.name))


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", nargs="*", help=f"{' or '.join(TARGETS)} (default: both)")
    parser.add_argument(
        "--python", metavar="3.N", choices=VERSIONS, action="append", help="default: all"
    )
    parser.add_argument("--stable-abi", action="store_true", help="one for Python 3.11 and newer")
    args = parser.parse_args(arguments)
    for name in args.target or TARGETS:
        if name not in TARGETS:
            parser.error(f"target {name!r} is unknown, expected {' or '.join(TARGETS)}")
        for version in ["3.11"] if args.stable_abi else args.python or VERSIONS:
            wheel = build(TARGETS[name], version, args.stable_abi)
            if wheel is None:
                print(f"{name} {version}: not built, there is no such Python here", flush=True)
                continue
            print(f"{wheel}: {wheel.stat().st_size / 1e6:.1f} MB", flush=True)
            subprocess.run([sys.executable, "-m", "auditwheel", "show", wheel], check=True)


if __name__ == "__main__":
    BUILD.mkdir(parents=True, exist_ok=True)
    main()
