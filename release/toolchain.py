"""Compilers for Linux on x86-64 and AArch64, and for the glibc of 2012.

GCC compiles, because its code is what docs/kernels.md measures. Its libraries are those of the
system, which is too young: a wheel would run only where glibc is as young. So Zig's linker joins
the objects, and takes a glibc of a given version, against whose list of symbols it checks them. The
compiler command is a script that calls either.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

BUILD = Path("build", "release").resolve()
GLIBC = "2.17"  # manylinux2014's, the oldest for which NumPy and others have wheels


@dataclass(frozen=True)
class Target:
    """An architecture of Linux, by the names that tools have for it."""

    name: str  # of wheels
    debian: str
    gcc: str
    package: str  # with the compiler

    @property
    def folder(self) -> Path:
        """For what is made for it."""
        return BUILD / self.name

    @property
    def triple(self) -> str:
        """Zig's name for it, with the version of glibc."""
        return f"{self.name}-linux-gnu.{GLIBC}"

    @property
    def platform(self) -> str:
        """The tag of its wheels."""
        return f"manylinux2014_{self.name}"


TARGETS = {
    target.name: target
    for target in (
        Target("x86_64", "amd64", "gcc", "gcc libc6-dev"),
        Target("aarch64", "arm64", "aarch64-linux-gnu-gcc",
               "gcc-aarch64-linux-gnu libc6-dev-arm64-cross"),
    )
}  # fmt: skip

# `$@` without -fopenmp: Zig would look for LLVM's library. libgcc knows the processor's features
# (`__builtin_cpu_supports`), and Zig's replacement of it does not.
_SCRIPT = """\
#!/bin/sh
for arg do
    case $arg in -c | -E | -S | -print* | -v | --version) exec {gcc} "$@" ;; esac
done
for arg do
    shift
    [ "$arg" = -fopenmp ] || set -- "$@" "$arg"
done
exec {zig} cc -target {triple} "$@" {libraries}
"""


def zig() -> Path:
    """Zig's command, of the package `ziglang`; exit with a sentence without it."""
    try:
        import ziglang
    except ImportError:
        sys.exit("error: Zig is missing: pip install 'lariat[release]'")
    return Path(next(iter(ziglang.__path__)), "zig")


def write_compiler(target: Target, script: Path, libraries: list[str]) -> Path:
    """Write the compiler command for `target`, which links `libraries` too; return its path."""
    if not shutil.which(target.gcc):
        sys.exit(f"error: {target.gcc} is missing (Debian: apt install {target.package})")
    gcc = ["ccache", target.gcc] if shutil.which("ccache") else [target.gcc]
    libgcc = subprocess.run(
        [target.gcc, "-print-libgcc-file-name"], check=True, capture_output=True, text=True
    ).stdout.strip()
    text = _SCRIPT.format(
        gcc=shlex.join(gcc),
        zig=shlex.quote(str(zig())),
        triple=target.triple,
        libraries=shlex.join([*libraries, libgcc]),
    )
    script.parent.mkdir(parents=True, exist_ok=True)
    if not script.exists() or script.read_text() != text:
        script.write_text(text)
        script.chmod(0o755)
    return script
