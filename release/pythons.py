"""Pythons to build and to test with: those of this machine, and Debian's of other architectures.

An environment is a folder with nothing but a wheel and what it needs, and the command that runs
Python there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from release.debian import Suite
from release.toolchain import BUILD, Target

# Suites of Debian with each version of Python
_SUITES = {"3.11": "bookworm", "3.13": "trixie", "3.14": "forky"}
_LOADERS = {
    "x86_64": "lib64/ld-linux-x86-64.so.2",
    "aarch64": "lib/ld-linux-aarch64.so.1",
}


@dataclass(frozen=True)
class Environment:
    """`command` runs Python in it; of the variables of this process it sees only `variables`."""

    version: str
    target: Target
    command: tuple[str, ...]
    variables: dict[str, str]
    processor: str = ""  # qemu's name of one; without it this machine's, or qemu's default

    def __str__(self) -> str:
        return f"{self.target.name} {self.version} {self.processor or 'native'}"

    def run(self, *arguments: str | Path) -> str:
        """Standard output of Python with these arguments; CalledProcessError if it fails."""
        command = [*self._emulator(), *self.command, *arguments]
        result = subprocess.run(
            command, env=self.variables, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if result.returncode:
            sys.stderr.write(result.stderr)
            result.check_returncode()
        return result.stdout

    def _emulator(self) -> list[str]:
        if not self.processor and self.target.name == os.uname().machine:
            return []
        qemu = shutil.which(f"qemu-{self.target.name}")
        if not qemu:
            sys.exit(f"error: qemu-{self.target.name} is missing (Debian: apt install qemu-user)")
        return [qemu, *(("-cpu", self.processor) if self.processor else ())]


def find(version: str) -> Path | None:
    """A Python of this machine: of the PATH, or of pyenv."""
    candidates = [shutil.which(f"python{version}")]
    candidates += map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python3"))
    for python in filter(None, candidates):
        text = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
        result = subprocess.run([python, "-c", text], capture_output=True, text=True)
        if result.stdout.strip() == version:
            return Path(python)
    return None


def builder(version: str, requirements: list[str]) -> Path | None:
    """A Python of this machine with `requirements` installed, for building."""
    folder = BUILD / f"venv-{version}"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        base = find(version)
        if base is None:
            return None
        subprocess.run([base, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *requirements], check=True)
        (folder / "ready").touch()
    return python


def environment(version: str, target: Target, wheel: Path) -> Environment | None:
    """An empty environment with `wheel`, for a Python of `version`; None where none can be had."""
    site = target.folder / f"site-{version}"
    shutil.rmtree(site, ignore_errors=True)
    python = find(version) if target.name == os.uname().machine else None
    if python:
        subprocess.run([python, "-m", "venv", site], check=True)
        local = site / "bin" / "python"
        variables = _variables(site)
        subprocess.run(
            [local, "-m", "pip", "install", "-q", "--only-binary=:all:", wheel],
            check=True,
            env=variables | _pip_variables(),
        )
        return Environment(version, target, (str(local),), variables)
    if version not in _SUITES:
        return None
    root = _debian(version, target)
    # pip takes only wheels that fit the tags of that Python and a system of that age.
    platforms = [f"manylinux{n}_{target.name}" for n in ("2014", "_2_27", "_2_28")]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--target", site, "--only-binary=:all:"]
        + [f"--python-version={version}", "--implementation=cp"]
        + [f"--platform={platform}" for platform in platforms]
        + [wheel],
        check=True,
    )
    libraries = [root / "usr" / "lib" / f"{target.name}-linux-gnu", root / "lib"]
    libraries += [root / "lib" / f"{target.name}-linux-gnu"]
    path = ":".join(map(str, libraries))
    loader = (str(root / _LOADERS[target.name]), "--library-path", path)
    command = (*loader, str(root / "usr" / "bin" / f"python{version}"))
    variables = _variables(site) | {"PYTHONPATH": str(site), "PYTHONHOME": str(root / "usr")}
    return Environment(version, target, command, variables)


def _variables(site: Path) -> dict[str, str]:
    """An environment without a compiler: no folder of commands but its own."""
    return {"PATH": str(site / "bin"), "HOME": str(site), "OMP_NUM_THREADS": "2"}


def _pip_variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("PIP_")}


def _debian(version: str, target: Target) -> Path:
    """The root folder with Debian's Python of that version."""
    root = target.folder / f"debian-{version}"
    if not (root / "ready").exists():
        shutil.rmtree(root, ignore_errors=True)
        Suite(_SUITES[version], target.debian, BUILD).unpack(
            [f"python{version}-minimal", f"libpython{version}-stdlib", "libstdc++6"], root
        )
        (root / "ready").touch()
    return root
