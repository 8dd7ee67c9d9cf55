"""Scripts in bench/experiments: each explains itself, is named in the map, and finds its files."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

pytest.importorskip("bench.experiments", reason="runs from the source tree only")
import bench
from bench import experiments

FOLDER = Path(experiments.__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("name", NAMES)
def test_it_explains_its_flags(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"bench.experiments.{name}").main(["--help"])
    assert end.value.code == 0
    assert "usage:" in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_files_that_it_names_exist(name: str) -> None:
    module = importlib.import_module(f"bench.experiments.{name}")
    for constant, value in vars(module).items():
        if isinstance(value, Path) and not constant.startswith("__"):
            assert value.exists(), f"{constant} = {value}"


def test_maps_name_every_module() -> None:
    for package in (bench, experiments):
        assert package.__doc__
        folder = Path(package.__path__[0])
        modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
        assert modules <= set(package.__doc__.split()), modules - set(package.__doc__.split())
