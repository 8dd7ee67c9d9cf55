"""GCC's OpenMP library, libgomp, of Debian's source, for an old glibc.

The system's own needs the system's glibc. Nothing of it is changed but what it is linked with. Its
licence and notice are in licenses/libgomp/, and in every wheel.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from release.debian import Suite
from release.toolchain import BUILD, Target, write_compiler

_SUITE, _PACKAGE, _VERSION = "bookworm", "gcc-12", "12.2.0"
# What `configure` of libgomp reads of GCC's sources
_PARTS = (
    *("libgomp/*", "include/*", "config/*", "config.*", "config-ml.in", "gcc/BASE-VER"),
    *("ltmain.sh", "libtool*", "lt*.m4", "install-sh", "missing", "mkinstalldirs", "mkdep"),
    *("move-if-change", "depcomp", "compile"),
)


def build(target: Target) -> Path:
    """The folder with libgomp.so.1 for `target`; it is built the first time."""
    folder = target.folder / "libgomp"
    library = folder / ".libs" / "libgomp.so.1"
    if not library.exists():
        sources = _sources()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        compiler = write_compiler(target, folder / "cc", [])
        # The map of versions names functions of Fortran, which is not built.
        options = {"CC": compiler, "CFLAGS": "-O2", "LDFLAGS": "-Wl,--undefined-version,-s"}
        subprocess.run(
            [sources / "libgomp" / "configure", "-q", f"--host={target.name}-linux-gnu"]
            + ["--disable-multilib", "--disable-static", "--disable-werror"]
            + [f"{name}={value}" for name, value in options.items()],
            cwd=folder,
            check=True,
        )
        subprocess.run(["make", "-s", "libgomp.la", "MAKEINFO=true"], cwd=folder, check=True)
    return library.parent


def _sources() -> Path:
    """GCC's sources, as much as libgomp needs of them."""
    folder = BUILD / "gcc"
    found = folder / f"gcc-{_VERSION}"
    if not found.exists():
        Suite(_SUITE, "amd64", BUILD).source(_PACKAGE, folder)
        (archive,) = folder.glob(f"{_PACKAGE}_*.orig.tar.gz")
        inner = f"{_PACKAGE}-{_VERSION}/gcc-{_VERSION}-dfsg.tar.xz"
        subprocess.run(["tar", "-xf", archive, "-C", folder, inner], check=True)
        unpacked = folder / "unpacked"
        unpacked.mkdir(exist_ok=True)
        options = ["-C", unpacked, "--no-wildcards-match-slash", "--wildcards"]
        parts = [f"gcc-{_VERSION}/{part}" for part in _PARTS]
        subprocess.run(
            ["tar", "-xf", folder / inner, *options, *parts],
            check=True,
        )
        shutil.rmtree((folder / inner).parent)
        (unpacked / found.name).rename(found)
    return found
