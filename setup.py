"""Builds the Cython modules of `lariat`; everything else is in pyproject.toml.

Extra compiler and linker flags come from the environment variable LARIAT_CFLAGS. With
LARIAT_SKIP_KERNELS=1 nothing is compiled: the Makefile installs first and builds after. With
LARIAT_LIMITED_API=1 modules use the stable ABI of Python 3.11, so that one wheel serves all newer
ones; Pythons without it ignore that. There is no `-march=native`: the module holds every
instruction set and picks one when it loads. There is no `-ffast-math`: results must not depend on
what a compiler likes to reorder.
"""

from __future__ import annotations

import os
import shlex
import sys
import sysconfig
import tempfile
import threading
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

_SKIP = os.environ.get("LARIAT_SKIP_KERNELS") == "1"
_EXTRA = shlex.split(os.environ.get("LARIAT_CFLAGS", ""))
# Cython's memory views need the buffer protocol, which the stable ABI has from 3.11 on.
_LIMITED_API = (
    os.environ.get("LARIAT_LIMITED_API") == "1"
    and sys.version_info >= (3, 11)
    and not sysconfig.get_config_var("Py_GIL_DISABLED")
)
# Flags of the compiler and of the linker. Apple's clang has OpenMP without a driver's flag and
# without the library, which Homebrew keeps in a folder of its own.
_OPENMP = [(["-fopenmp"], ["-fopenmp"])]
if sysconfig.get_platform().startswith("macosx"):
    _OPENMP += [
        (["-Xpreprocessor", "-fopenmp", *include], ["-lomp", *library])
        for include, library in [([], [])]
        + [
            ([f"-I{prefix}/include"], [f"-L{prefix}/lib"])
            for prefix in ("/opt/homebrew/opt/libomp", "/usr/local/opt/libomp")
        ]
    ]
_CFLAGS = [
    "-O3",
    "-std=gnu11",
    "-Wall",
    "-Wextra",
    # The rest is about code that Cython writes: helpers it does not call, slots it does not fill.
    "-Wno-unused-function",
    "-Wno-unused-parameter",
    "-Wno-missing-field-initializers",
]
_MORE_CFLAGS = {
    # Where a tile begins within a cache line is a percent of its speed, and would change with all
    # that stands before it.
    "_kernels": ["-falign-functions=64"],
    # Blocks are to have the bits of ggml's reference, which rounds every product and every sum. -O3
    # unrolls whole searches, which takes the compiler minutes and makes nothing faster.
    "_quantize": ["-ffp-contract=off", "-O2", "-ftree-vectorize"],
}
# Where every processor can fuse a multiplication with an addition, compilers do so by themselves,
# and the bits of the portable kernels would be theirs to choose.
if not any(name in sysconfig.get_platform() for name in ("x86_64", "amd64")):
    _CFLAGS.append("-ffp-contract=off")
_DIRECTIVES = {
    "language_level": "3",
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
}
_PROBE = """
#include <omp.h>
int main(void) {
    int sum = 0;
#pragma omp parallel for reduction(+ : sum)
    for (int i = 0; i < omp_get_max_threads(); i++) sum += 1;
    return sum == 0;
}
"""
_NO_OPENMP = (
    "lariat needs a C compiler with OpenMP, and '{command}' could not build a small OpenMP "
    "program; install one (Debian and Ubuntu: apt install gcc libgomp1 libc6-dev; "
    "Fedora: dnf install gcc libgomp; Alpine: apk add gcc musl-dev libgomp; macOS: brew install "
    "libomp) and name it with CC if it is not the default, for example CC=gcc-14"
)


class BuildExt(build_ext):
    """Checks for OpenMP first, then runs Cython and the compiler."""

    _cython = threading.Lock()  # nothing says that Cython may run in several threads

    def finalize_options(self) -> None:
        """As many modules at once as there are processors, unless --parallel says otherwise."""
        super().finalize_options()
        if self.parallel is None:
            self.parallel = os.cpu_count()

    def build_extensions(self) -> None:
        """Build all of them, or exit with a sentence."""
        # The module that takes longer than all the others together begins first.
        self.extensions.sort(key=lambda ext: not ext.name.endswith("._kernels"))
        compile_flags, link_flags = self._find_openmp()
        for ext in self.extensions:
            ext.extra_compile_args += compile_flags
            ext.extra_link_args += link_flags
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        """Build one: Cython writes its C below build/, then the compiler runs."""
        # Imported here, so that a source distribution can be made without Cython.
        from Cython.Build import cythonize

        # Cython compares only the .pyx with the .c, but a directive may have changed here.
        with self._cython:
            ext.sources = cythonize(
                [ext],
                compiler_directives=_DIRECTIVES,
                include_path=[_folder_with_package()],
                build_dir="build",
                force=bool(self.force)
                or _is_newer(__file__, Path("build", ext.sources[0]).with_suffix(".c")),
            )[0].sources
        super().build_extension(ext)

    def _find_openmp(self) -> tuple[list[str], list[str]]:
        """Flags with which a small OpenMP program compiles and links; without any, exit."""
        for flags in _OPENMP:
            if self._has_openmp(*flags):
                return flags
        command = shlex.join([*getattr(self.compiler, "compiler", ["cc"])[:1], *_EXTRA])
        sys.exit("error: " + _NO_OPENMP.format(command=command))

    def _has_openmp(self, compile_flags: list[str], link_flags: list[str]) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(_PROBE)
            try:
                objects = self.compiler.compile(
                    [str(source)], output_dir=folder, extra_postargs=compile_flags + _EXTRA
                )
                self.compiler.link_executable(
                    objects, str(Path(folder, "probe")), extra_postargs=link_flags + _EXTRA
                )
            except Exception:  # setuptools and distutils raise several unrelated classes
                return False
        return True


def _folder_with_package() -> str:
    """A folder in which `lariat` is the package, for `cimport lariat...`: here it is `engine`."""
    folder = Path("build", "package")
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "lariat"
    if not link.is_symlink():
        link.symlink_to(Path("..", "..", "engine"), target_is_directory=True)
    return str(folder)


def _is_newer(path: str, than: Path) -> bool:
    return than.exists() and os.path.getmtime(path) > than.stat().st_mtime


def _package_dir() -> dict[str, str]:
    """Where `lariat` is.
    with a path finds it: for a renamed folder setuptools would install a finder, with which every
    start of Python takes 15 ms longer."""
    if "editable_wheel" in sys.argv:
        return {"": _folder_with_package()}
    return {"lariat": "engine"}


setup(
    package_dir=_package_dir(),
    ext_modules=[
        Extension(
            f"lariat.{Path(pyx).stem}",
            sources=[pyx],
            depends=[*sorted(glob("engine/simd/*")), "setup.py"],
            include_dirs=["engine"],
            extra_compile_args=[
                *_CFLAGS,
                *_MORE_CFLAGS.get(Path(pyx).stem, ()),
                *_EXTRA,
            ],
            extra_link_args=[*_EXTRA],
            define_macros=[("Py_LIMITED_API", "0x030B0000"), ("CYTHON_LIMITED_API", "1")]
            if _LIMITED_API
            else [],
            py_limited_api=_LIMITED_API,
        )
        for pyx in sorted(glob("engine/*.pyx"))
        if not _SKIP
    ],
    cmdclass={"build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if _LIMITED_API else {},
)
