"""Compiles the modules for macOS and musl with Zig's clang: `make compile-others`.

By the same setup.py as everywhere. Nothing is run, and neither Python nor OpenMP is linked, because
both come with those systems. The headers of Python are this machine's.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

from release.toolchain import BUILD, zig

SYSTEMS = {  # Zig's name: Python's
    "aarch64-macos": "macosx-11.0-arm64",
    "x86_64-macos": "macosx-11.0-x86_64",
    "x86_64-linux-musl": "linux-x86_64",
    "aarch64-linux-musl": "linux-aarch64",
}
# Zig's clang finds no omp.h, and GCC's names no more than OpenMP does.
_SCRIPT = """\
#!/bin/sh
exec {zig} cc -target {system} -I {include} "$@" {more}
"""
_MORE = {
    "macos": "-Wl,-undefined,dynamic_lookup",
    "musl": "-Wl,--unresolved-symbols=ignore-all",
}


def compile_for(system: str, flags: str) -> None:
    """Compile all modules for `system`; CalledProcessError if one fails."""
    folder = BUILD / system
    include = folder / "include"
    include.mkdir(parents=True, exist_ok=True)
    gcc = subprocess.run(
        ["gcc", "-print-file-name=include/omp.h"], check=True, capture_output=True, text=True
    )
    (include / "omp.h").write_text(Path(gcc.stdout.strip()).read_text())
    compiler = folder / "cc"
    text = _SCRIPT.format(
        zig=shlex.quote(str(zig())),
        system=system,
        include=shlex.quote(str(include)),
        more=_MORE[system.rpartition("-")[2]],
    )
    if not compiler.exists() or compiler.read_text() != text:
        compiler.write_text(text)
        compiler.chmod(0o755)
    settings = {
        "CC": str(compiler),
        "LDSHARED": f"{compiler} -shared",
        "LARIAT_CFLAGS": flags,
        "_PYTHON_HOST_PLATFORM": SYSTEMS[system],
        "PYTHONPATH": "",
    }
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build", "--build-base", folder / "build", "build_ext"],
        check=True,
        env=os.environ | settings,
    )


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("system", nargs="*", help=f"of {', '.join(SYSTEMS)} (default: all)")
    parser.add_argument("--flags", default="-O1", help="of the compiler; -O3 takes longer")
    args = parser.parse_args(arguments)
    for system in args.system or SYSTEMS:
        if system not in SYSTEMS:
            parser.error(f"system {system!r} is unknown, expected one of {', '.join(SYSTEMS)}")
        compile_for(system, args.flags)
        modules = list((BUILD / system / "build").glob("lib*/lariat/*.so"))
        print(f"{system}: {len(modules)} modules", flush=True)


if __name__ == "__main__":
    main()
