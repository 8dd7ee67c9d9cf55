"""The choice of tiles for a model's weights: what is measured, kept and left alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from lariat import _kernels, _tiles, processor
from lariat.architectures import tiles
from lariat.architectures.packed import Packed

from tests.support.kernel_cases import pack, raw_weights

pytestmark = pytest.mark.skipif(len(_tiles.cores()) < 2, reason="there is one kind of core only")

N_ROWS, N_COLS = 1024, 512
Seconds = Callable[[str, bool], float]
"""How long the tiles for a kind of core take, for few columns or many."""


@pytest.fixture(autouse=True)
def unforced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody has named a kind of core, small weights count, and the file is this test's own."""
    monkeypatch.setattr(_kernels, "core_is_forced", lambda: False)
    monkeypatch.setenv("LARIAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tiles, "_MIN_BYTES", 1)
    monkeypatch.setattr(tiles, "_PART_BYTES", 1 << 16)
    yield
    _kernels.use_isa(_kernels.isa())


def weights(*types: str) -> list[tuple[Packed, np.ndarray]]:
    """A matrix of each type, and its memory."""
    rng = np.random.default_rng(1)
    loaded = []
    for name in types:
        memory = np.zeros(_kernels.packed_bytes(name, N_ROWS, N_COLS), np.uint8)
        _kernels.Matrix(raw_weights(name, N_ROWS, N_COLS, rng), name, N_COLS, memory)
        loaded.append((Packed(f"{name}.weight", name, N_ROWS, N_COLS), memory))
    return loaded


def set_clock(monkeypatch: pytest.MonkeyPatch, seconds: Seconds) -> list[str]:
    """Let a product take the time that `seconds` says. Returns what is timed, as it happens."""
    clock = SimpleNamespace(now=0.0, used=("", False))
    timed: list[str] = []
    use = _tiles.use

    def noted_use(matrix: _kernels.Matrix, few: bool, core: str) -> None:
        clock.used = (core, few)
        use(matrix, few, core)

    def run(n_threads: int) -> None:
        timed.append(clock.used[0])
        clock.now += seconds(*clock.used)

    monkeypatch.setattr(tiles, "_program", lambda matrix, n: SimpleNamespace(run=run))
    monkeypatch.setattr(tiles, "_tiles", SimpleNamespace(**{**vars(_tiles), "use": noted_use}))
    monkeypatch.setattr(tiles, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return timed


def cores() -> tuple[str, str]:
    """The kind of core that the maker's name tells, and another one."""
    usual = _tiles.core_of(pack_any(), True)
    return usual, next(core for core in _tiles.cores() if core != usual)


def pack_any() -> _kernels.Matrix:
    return pack(raw_weights("Q4_K", 16, 256, np.random.default_rng(0)), "Q4_K", 256)


def in_use(loaded: list[tuple[Packed, np.ndarray]]) -> list[tuple[str, str]]:
    """By type, the kinds of cores for few columns and for many."""
    matrices = [packed.matrix(memory) for packed, memory in loaded]
    return [(_tiles.core_of(m, True), _tiles.core_of(m, False)) for m in matrices]


def test_the_faster_tiles_are_used_by_type_and_number_of_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usual, other = cores()
    timed = set_clock(monkeypatch, lambda core, few: 1.0 if core == usual or not few else 0.66)
    loaded = weights("Q4_K")
    tiles.choose(loaded)
    assert in_use(loaded) == [(other, usual)]
    assert timed[: len(_tiles.cores())] == list(_tiles.cores()), "they take turns"


def test_a_small_gain_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    usual, _ = cores()
    set_clock(monkeypatch, lambda core, few: 1.0 if core == usual else 0.98)
    loaded = weights("Q4_K", "Q6_K")
    tiles.choose(loaded)
    assert in_use(loaded) == [(usual, usual)] * 2


def test_one_slow_moment_does_not_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    usual, _ = cores()
    n_runs = iter(range(10**6))

    def seconds(core: str, few: bool) -> float:
        return 50.0 if core == usual and next(n_runs) % 4 == 0 else 1.0

    set_clock(monkeypatch, seconds)
    loaded = weights("Q4_K")
    tiles.choose(loaded)
    assert in_use(loaded) == [(usual, usual)]


def test_later_starts_read_the_choice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usual, other = cores()
    timed = set_clock(monkeypatch, lambda core, few: 1.0 if core == usual else 0.5)
    loaded = weights("Q4_K", "Q6_K")
    tiles.choose(loaded)
    _kernels.use_isa(_kernels.isa())
    assert in_use(loaded) == [(usual, usual)] * 2
    timed.clear()
    tiles.choose(loaded)
    assert in_use(loaded) == [(other, other)] * 2
    assert not timed
    ((place, here),) = json.loads((tmp_path / "cache" / tiles.FILE).read_text()).items()
    assert place.startswith(f"{processor.name()}, {_kernels.isa()}, ")
    assert here == {f"{name} {n}": other for name in ("Q4_K", "Q6_K") for n in ("few", "many")}


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', '{"x": {"Q4_K few": 3}}', "\xff"])
def test_a_broken_file_is_written_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str
) -> None:
    usual, other = cores()
    set_clock(monkeypatch, lambda core, few: 1.0 if core == usual else 0.5)
    path = tmp_path / "cache" / tiles.FILE
    path.parent.mkdir()
    path.write_bytes(content.encode("latin-1"))
    loaded = weights("Q4_K")
    tiles.choose(loaded)
    assert in_use(loaded) == [(other, other)]
    assert {"Q4_K few": other, "Q4_K many": other} in json.loads(path.read_text()).values()


def test_a_kind_that_is_gone_is_measured_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    timed = set_clock(monkeypatch, lambda core, few: 1.0)
    loaded = weights("Q4_K")
    tiles.choose(loaded)
    path = tmp_path / "cache" / tiles.FILE
    path.write_text(path.read_text().replace(f'"{cores()[0]}"', '"z80"'))
    timed.clear()
    tiles.choose(loaded)
    assert timed
    assert "z80" not in path.read_text()


def test_a_file_that_cannot_be_written_is_not_missed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usual, other = cores()
    set_clock(monkeypatch, lambda core, few: 1.0 if core == usual else 0.5)
    (tmp_path / "cache").write_text("a file where the folder should be")
    loaded = weights("Q4_K")
    tiles.choose(loaded)
    assert in_use(loaded) == [(other, other)]


def test_a_kind_that_somebody_named_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_kernels, "core_is_forced", lambda: True)
    timed = set_clock(monkeypatch, lambda core, few: 1.0)
    tiles.choose(weights("Q4_K"))
    assert not timed
    assert not (tmp_path / "cache").exists()


def test_types_with_few_weights_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "_MIN_BYTES", 1 << 30)
    timed = set_clock(monkeypatch, lambda core, few: 1.0)
    tiles.choose(weights("Q4_K"))
    assert not timed


@pytest.mark.parametrize("n_columns", [1, 16])
@pytest.mark.parametrize("type_name", ["Q4_0", "Q6_K", "F16"])
def test_real_times(type_name: str, n_columns: int) -> None:
    """Nobody can say who wins, but one of them does, and is in use."""
    parts = [tiles.Part(packed.matrix(memory), memory) for packed, memory in weights(type_name)]
    best = tiles.fastest(parts, n_columns)
    assert best in _tiles.cores()
    assert _tiles.core_of(parts[0].matrix, _tiles.is_few(n_columns)) == best
