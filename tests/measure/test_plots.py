"""The pictures of `lariat bench`: their curves and labels, and that none is left half done."""

from __future__ import annotations

from typing import Any

import pytest
from lariat.measure import plots

from tests.support.bench_runs import (
    SMALL,
    quick_runner,
    scaling_results,
    table_results,
    write_small,
)
from tests.support.command_line import Run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_small(tmp_path_factory.mktemp("model"))


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return quick_runner(capfd, monkeypatch)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are saved."""
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    saved: list[Any] = []
    original = Figure.savefig

    def savefig(self: Any, *args: Any, **kwargs: Any) -> None:
        saved.append(self)
        original(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved


def legend(panel: Any) -> list[str]:
    return [text.get_text() for text in panel.get_legend().get_texts()]


def test_plot_of_scaling_has_axes_units_legend_and_the_ideal_line(figures, tmp_path):
    results = scaling_results("-t", "1-4", "-p", "512", "-n", "128", "-d", "0,4096")
    with plots.Picture(tmp_path / "x.pdf") as picture:
        picture.draw_curves(results, 2)
    assert (tmp_path / "x.pdf").read_bytes().startswith(b"%PDF")
    panels = figures[0].axes
    assert [p.get_title() for p in panels] == [
        "Reading a prompt (pp512)",
        "Writing (tg128)",
        "Reading a prompt (pp512), 2 threads",
        "Writing (tg128), 2 threads",
    ]
    assert [p.get_xlabel() for p in panels[1:3]] == [
        "threads",
        "depth: tokens in the cache before",
    ]
    assert {p.get_ylabel() for p in panels} == {"tokens per second"}
    assert set(legend(panels[0])) == {
        "roped, depth 0",
        "raw, depth 0",
        "roped, depth 4096",
        "raw, depth 4096",
        "ideal",
        "more than the 2 processors",
    }
    assert legend(panels[2]) == ["roped", "raw"]
    ideal = next(line for line in panels[0].get_lines() if line.get_label() == "ideal")
    x, y = ideal.get_data()
    assert list(x) == [1, 2]
    assert y[1] == 2 * y[0]
    assert y[0] == max(r.avg_ts for r in results if r.case.n_threads == 1 and r.case.n_prompt)
    assert list(panels[0].get_xticks()) == [1, 2, 3, 4]
    assert panels[0].get_ylim()[0] == 0


def test_plot_of_the_table(figures, tmp_path):
    with plots.Picture(tmp_path / "x.svg") as picture:
        picture.draw_table(table_results())
    left, right = figures[0].axes
    assert legend(left) == ["Lariat", "llama.cpp, pull request 3234"]
    assert legend(right) == ["roped", "raw"]
    assert [t.get_text() for t in left.get_xticklabels()][:2] == ["pp512", "tg128"]
    lines = {line.get_label(): line.get_ydata() for line in left.get_lines()}
    assert list(lines["llama.cpp, pull request 3234"]) == [0.97, 0.95, 0.89, 0.76, 0.58, 0.42, 0.31]
    assert lines["Lariat"] == pytest.approx([0.98] * 7, abs=0.01)


def test_plot_through_the_command(run, model, tmp_path, figures):
    path = tmp_path / "x.png"
    assert run("-m", model, *SMALL[:-2], "--scaling", "-t", "1,2", "--plot", str(path))[0] == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    flags = ("--table", "rope-on-read", "-p", "8", "-n", "4,8", "-t", "1", "-r", "1")
    assert run("-m", model, *flags, "--plot", str(path))[0] == 0
    assert len(figures) == 2


def test_picture_that_was_not_drawn_is_not_left(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "x.png"
    with plots.Picture(path):
        assert path.exists()
    assert not path.exists()
    path.write_bytes(b"mine")
    with plots.Picture(path):
        pass
    assert path.read_bytes() == b"mine"
