"""What a person gets who installs or builds the project."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(
    not (ROOT / "setup.py").exists(), reason="runs from the source tree only"
)


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11 and newer
    data: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return data


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The sources of the build, without what building left there."""
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip("this setuptools is older than the build asks for")
    target = tmp_path / "copy"
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "engine", target / "engine", ignore=ignore)
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, target)
    return target


def test_console_command_exists(project: dict[str, Any]) -> None:
    module, name = project["project"]["scripts"]["lariat"].split(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_makefile_installs_what_the_build_requires(project: dict[str, Any]) -> None:
    line = re.search(r"^BUILD_REQUIRES := (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert line
    assert re.findall(r'"([^"]+)"', line[1]) == project["build-system"]["requires"]


def test_every_package_is_listed(project: dict[str, Any]) -> None:
    found = {str(p.parent.relative_to(ROOT)) for p in ROOT.glob("engine/**/__init__.py")}
    names = [name.split(".") for name in project["tool"]["setuptools"]["packages"]]
    listed = {os.sep.join(["engine", *parts]) for _, *parts in names}
    assert listed == found


def test_every_dependency_has_a_range(project: dict[str, Any]) -> None:
    extras = project["project"]["optional-dependencies"].values()
    for requirement in [*project["project"]["dependencies"], *(r for e in extras for r in e)]:
        assert re.fullmatch(r"[\w.-]+(\[[\w-]+\])?>=[\d.]+,<[\d.]+", requirement)


def test_build_is_portable() -> None:
    text = (ROOT / "setup.py").read_text()
    flags = re.search(r"_CFLAGS = \[(.*?)\]", text, re.S)
    assert flags
    assert "-march" not in flags[1]
    assert "-ffast-math" not in flags[1]
    assert "-Ofast" not in flags[1]


def test_source_distribution_is_complete(copy: Path, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "setup.py", "-q", "sdist", "-d", str(tmp_path)],
        cwd=copy,
        check=True,
        capture_output=True,
        timeout=120,
    )
    (archive,) = tmp_path.glob("lariat-*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    sources = {
        str(path.relative_to(ROOT))
        for pattern in ("**/*.py", "**/*.pyi", "**/*.pyx", "**/*.h", "py.typed", "data/*.gguf")
        for path in (ROOT / "engine").glob(pattern)
    }
    assert {"engine/data/demo-q4_0.gguf", "engine/data/demo-draft.gguf"} <= set(sources)
    assert sources <= names
    assert {"setup.py", "pyproject.toml", "LICENSE", "Makefile"} <= names
    assert not any(name.endswith((".so", ".c")) for name in names)


def test_editable_install_is_a_line_with_a_path(copy: Path, tmp_path: Path) -> None:
    """A finder of setuptools would be imported at every start of Python."""
    subprocess.run(
        [sys.executable, "setup.py", "-q", "editable_wheel", "--dist-dir", str(tmp_path)],
        cwd=copy,
        env=os.environ | {"LARIAT_SKIP_KERNELS": "1"},
        check=True,
        capture_output=True,
        timeout=120,
    )
    (wheel,) = tmp_path.glob("lariat-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if ".dist-info/" not in name)
        line = archive.read(name).decode()
    assert name.endswith(".pth")
    folder = Path(line.rstrip("\n"))
    assert (folder / "lariat" / "__init__.py").samefile(copy / "engine" / "__init__.py")


@pytest.mark.skipif(os.name != "posix", reason="the fake compiler is a shell script")
def test_compiler_without_openmp_gets_a_sentence(copy: Path, tmp_path: Path) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'omp.h: No such file' >&2\nexit 1\n")
    compiler.chmod(0o755)
    result = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext"],
        cwd=copy,
        env=os.environ | {"CC": str(compiler)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: lariat needs a C compiler with OpenMP")
    assert "apt install gcc" in last
    assert "Traceback" not in result.stderr
    assert not list((copy / "build").glob("engine*"))  # it was found before any work was done


@pytest.mark.parametrize("platform", ["linux", "macos"])
def test_cibuildwheel_reads_its_settings(platform: str, tmp_path: Path) -> None:
    pytest.importorskip("cibuildwheel")
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    (tmp_path / "setup.py").touch()
    options = ["--print-build-identifiers", "--platform", platform, "--archs", "x86_64"]
    result = subprocess.run(
        [sys.executable, "-m", "cibuildwheel", *options, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    found = result.stdout.split()
    system = {"linux": "manylinux", "macos": "macosx"}[platform]
    assert {f"cp3{n}-{system}_x86_64" for n in range(10, 15)} <= set(found)
    assert not any(
        re.match(r"pp|cp3\d+t", name) for name in found
    )  # PyPy, free threads: not tested


@pytest.mark.parametrize("value", ["0", "1"])
def test_limited_api_makes_a_wheel_for_newer_pythons(
    copy: Path, tmp_path: Path, value: str
) -> None:
    """The compiler stands in for a real one: names and tags are what counts here."""
    compiler = tmp_path / "cc"
    compiler.write_text(
        '#!/bin/sh\nfor last do :; done\nwhile [ "$1" != -o ]; do shift; done\n: >"$2"\n'
    )
    compiler.chmod(0o755)
    for path in (copy / "engine").glob("*.pyx"):
        if path.stem != "_masks":
            path.unlink()
    subprocess.run(
        [sys.executable, "setup.py", "-q", "bdist_wheel", "-d", str(tmp_path)],
        cwd=copy,
        env=os.environ
        | {"CC": str(compiler), "LDSHARED": str(compiler), "LARIAT_LIMITED_API": value},
        check=True,
        capture_output=True,
        timeout=120,
    )
    (wheel,) = tmp_path.glob("lariat-*.whl")
    has_stable_abi = value == "1" and sys.version_info >= (3, 11)
    assert ("-cp311-abi3-" in wheel.name) == has_stable_abi
    with zipfile.ZipFile(wheel) as archive:
        (module,) = (name for name in archive.namelist() if name.endswith(".so"))
    assert (module == "lariat/_masks.abi3.so") == has_stable_abi
