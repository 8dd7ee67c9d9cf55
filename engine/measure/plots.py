"""Pictures of the results of `lariat bench`. Needs matplotlib, the extra `plot`.

They can be read in print and by the colour-blind: each curve has a marker of its own, each cache a
line style, and the colours are those of Okabe and Ito.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lariat import processor
from lariat.errors import LariatError
from lariat.measure.cases import PUBLISHED_RATIOS, Case, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FORMATS = (".png", ".pdf", ".svg")
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # one more than colours: the seventh differs
_LINES = {"roped": "-", "raw": "--"}
_PANEL = (4.8, 3.8)  # inches
_PHASES = {"prompt": "Reading a prompt", "decode": "Writing", "both": "A prompt, then writing"}
# Fields in which curves may differ, and the text of each in a label
_TRAITS = {
    "cache": "{}",
    "n_prompt": "pp{}",
    "n_gen": "tg{}",
    "n_depth": "depth {}",
    "n_sequences": "{} sequences",
    "n_threads": "{} threads",
    "type_k": "keys {}",
    "type_v": "values {}",
    "n_batch": "batch {}",
    "n_ubatch": "ubatch {}",
}


def has_axis(cases: Sequence[Case]) -> bool:
    """Return whether numbers of threads or depths vary, so that a curve can be drawn over them."""
    return any(_vary(cases, name) for name in ("n_threads", "n_depth"))


class Picture:
    """A file that will hold a picture. It is opened at once, so that a bad path ends no long run.

    Use it in a `with` statement, which removes the new file again if nothing was drawn. Raises
    LariatError without matplotlib or for an unknown format, OSError if the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        if self._path.suffix.lower() not in _FORMATS:
            raise LariatError(
                f"{path}: the name of a picture says its format: {', '.join(_FORMATS)}"
            )
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise LariatError(
                "a plot needs matplotlib, which is not installed: pip install 'lariat[plot]'"
            ) from None
        self._figure_class = Figure
        self._is_ours = not self._path.exists()
        with open(self._path, "ab"):
            pass

    def __enter__(self) -> Picture:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_ours and self._path.stat().st_size == 0:
            self._path.unlink()

    def draw_curves(self, results: Sequence[Result], n_processors: int) -> None:
        """Draw tokens per second against threads, with the ideal line, and against depth.

        A row of panels each, where several were measured; a column for prompts and for writing.
        """
        cases = [result.case for result in results]
        phases = [phase for phase in _PHASES if any(case.phase == phase for case in cases)]
        axes = [name for name in ("n_threads", "n_depth") if _vary(cases, name)]
        figure = self._figure(len(axes), len(phases), results)
        panels = figure.subplots(len(axes), len(phases), squeeze=False)
        for axis, row in zip(axes, panels, strict=True):
            for phase, panel in zip(phases, row, strict=True):
                chosen = [result for result in results if result.case.phase == phase]
                if axis == "n_depth":  # at one number of threads: the row above has the others
                    n_max = _max_threads(chosen, n_processors)
                    chosen = [result for result in chosen if result.case.n_threads == n_max]
                curves = _curves(chosen, axis)
                for i, (label, points) in enumerate(curves):
                    _draw_speed(panel, points, axis, i, label)
                title = _PHASES[phase] + _test([result.case for result in chosen])
                if axis == "n_threads":
                    _mark_threads(panel, curves, n_processors)
                    panel.set_xlabel("threads")
                else:
                    panel.set_xlabel("depth: tokens in the cache before")
                    title += f", {n_max} thread{'s' * (n_max > 1)}"
                panel.set_title(title)
                panel.set_ylabel("tokens per second")
                panel.set_ylim(bottom=0)
                _finish(panel, legend_below=True)
        figure.savefig(self._path)

    def draw_table(self, results: Sequence[Result]) -> None:
        """Draw the ratio of the raw to the roped cache, beside that of llama.cpp's draft, and the
        speed of both."""
        figure = self._figure(1, 2, results)
        ratio_panel, speed_panel = figure.subplots(1, 2)
        names = list(dict.fromkeys(result.case.name for result in results))
        tables: dict[tuple[object, ...], dict[str, dict[str, Result]]] = {}
        for r in results:
            setting = (r.model.path, r.case.n_threads, r.case.type_k, r.case.type_v)
            tables.setdefault(setting, {}).setdefault(r.case.name, {})[r.case.cache] = r
        heads = [next(iter(next(iter(rows.values())).values())) for rows in tables.values()]
        labels = _labels(heads, leave_out=("cache", "n_prompt", "n_gen"))
        for i, (rows, label) in enumerate(zip(tables.values(), labels, strict=True)):
            pairs = {name: pair for name, pair in rows.items() if len(pair) == 2}
            ratios = {n: pair["raw"].avg_ts / pair["roped"].avg_ts for n, pair in pairs.items()}
            text = ", ".join(filter(None, ["Lariat", label]))
            _draw_tests(ratio_panel, names, ratios, _style("roped", i), text)
            for cache in _LINES:
                speeds = {name: pair[cache].avg_ts for name, pair in pairs.items()}
                text = ", ".join(filter(None, [cache, label]))
                colour = i if len(tables) > 1 else list(_LINES).index(cache)
                _draw_tests(speed_panel, names, speeds, _style(cache, colour), text)
        published = {name: PUBLISHED_RATIOS[name] for name in names if name in PUBLISHED_RATIOS}
        style = {"color": "0.4", "marker": "^", "linestyle": ":"}
        _draw_tests(ratio_panel, names, published, style, "llama.cpp, pull request 3234")
        ratio_panel.axhline(1, color="0.6", linewidth=0.8, zorder=0)
        ratio_panel.set_ylim(0, max(1.2, ratio_panel.get_ylim()[1]))
        ratio_panel.set_ylabel("speed of the raw cache / roped")
        ratio_panel.set_title("Cost of rotating on read")
        speed_panel.set_yscale("log")
        speed_panel.set_ylabel("tokens per second")
        speed_panel.set_title("Speed of both caches")
        for panel in (ratio_panel, speed_panel):
            panel.set_xticks(range(len(names)), names, rotation=45, ha="right")
            panel.set_xlabel("test (pp: tokens of a prompt, tg: tokens written)")
            _finish(panel)
        figure.savefig(self._path)

    def _figure(self, n_rows: int, n_columns: int, results: Sequence[Result]) -> Figure:
        size = (_PANEL[0] * n_columns, _PANEL[1] * n_rows + 0.4)
        figure = self._figure_class(figsize=size, layout="constrained", dpi=150)
        models = ", ".join(dict.fromkeys(result.model.type for result in results))
        figure.suptitle(f"{models} on {processor.name()} ({results[0].isa})", fontsize=10)
        return figure


def _vary(cases: Sequence[Case], name: str) -> bool:
    return len({getattr(case, name) for case in cases}) > 1


def _max_threads(results: Sequence[Result], n_processors: int) -> int:
    """Return the largest number that has a processor for each thread, or else the smallest."""
    counts = {result.case.n_threads for result in results}
    return max((n for n in counts if n <= n_processors), default=min(counts))


def _test(cases: Sequence[Case]) -> str:
    """Name of the test in brackets, where it is the same for all cases."""
    names = {replace(case, n_depth=0).name for case in cases}
    return f" ({names.pop()})" if len(names) == 1 else ""


def _curves(results: Sequence[Result], axis: str) -> list[tuple[str, list[Result]]]:
    """Group results that differ in `axis` alone into curves. Returns a label and points of each."""
    curves: dict[tuple[object, ...], list[Result]] = {}
    for result in results:
        traits = (getattr(result.case, name) for name in _TRAITS if name != axis)
        curves.setdefault((result.model.path, *traits), []).append(result)
    for points in curves.values():
        points.sort(key=lambda result: getattr(result.case, axis))
    labels = _labels([points[0] for points in curves.values()], leave_out=(axis,))
    return list(zip(labels, curves.values(), strict=True))


def _labels(results: Sequence[Result], leave_out: Sequence[str]) -> list[str]:
    """Make labels of the fields in which the results differ, and of the cache in any case."""
    names = [
        name
        for name in _TRAITS
        if name not in leave_out and (name == "cache" or _vary([r.case for r in results], name))
    ]
    several_models = len({result.model.path for result in results}) > 1
    return [
        ", ".join(
            ([Path(result.model.path).stem] if several_models else [])
            + [_TRAITS[name].format(getattr(result.case, name)) for name in names]
        )
        for result in results
    ]


def _style(cache: str, i: int) -> dict[str, Any]:
    """Colour, marker and line style of the i-th curve of a panel."""
    marker, colour = _MARKERS[i % len(_MARKERS)], _COLOURS[i % len(_COLOURS)]
    return {"color": colour, "marker": marker, "linestyle": _LINES[cache]}


def _draw_speed(panel: Axes, points: list[Result], axis: str, i: int, label: str) -> None:
    panel.errorbar(
        [getattr(result.case, axis) for result in points],
        [result.avg_ts for result in points],
        [result.stddev_ts for result in points],
        capsize=2,
        markersize=4,
        label=label,
        **_style(points[0].case.cache, i),
    )


def _mark_threads(panel: Axes, curves: list[tuple[str, list[Result]]], n_processors: int) -> None:
    """Draw the ideal line from the best start, and shade where threads must share processors."""
    counts = sorted({result.case.n_threads for _, points in curves for result in points})
    if not counts:
        return
    start = max((points[0] for _, points in curves), key=lambda r: r.avg_ts / r.case.n_threads)
    per_thread = start.avg_ts / start.case.n_threads
    within = [n for n in counts if n <= n_processors]
    if len(within) > 1:
        panel.plot(
            within, [n * per_thread for n in within], color="0.5", linestyle=":", label="ideal"
        )
    if counts[-1] > n_processors:
        panel.axvspan(
            n_processors + 0.5,
            counts[-1] + 0.5,
            color="0.9",
            zorder=0,
            label=f"more than the {n_processors} processors",
        )
    panel.set_xticks(counts if len(counts) <= 16 else counts[:: len(counts) // 8])


def _draw_tests(
    panel: Axes, names: list[str], values: dict[str, float], style: dict[str, Any], label: str
) -> None:
    """Draw a line through the tests of decoding, and markers without a line for prompts."""
    for phase in ("tg", "pp"):
        chosen = [name for name in values if name.startswith(phase)]
        panel.plot(
            [names.index(name) for name in chosen],
            [values[name] for name in chosen],
            markersize=5,
            label=label,
            **(style if phase == "tg" else style | {"linestyle": "none"}),
        )
        label = "_"  # a second entry in the legend would say the same


def _finish(panel: Axes, legend_below: bool = False) -> None:
    panel.grid(alpha=0.3)
    if legend_below:  # curves may go anywhere within the panel
        place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17), "ncols": 2}
    else:
        place = {"framealpha": 0.9}
    panel.legend(fontsize=8, **place)
