"""What `lariat bench --scaling` writes beside speeds: cores, laws, where threads stop paying."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lariat.cli import bench_output, console
from lariat.cli.bench_output import Column, Setting

if TYPE_CHECKING:
    from lariat.measure.cases import Result
    from lariat.measure.scaling import Scaling as Fit
    from lariat.runtime.topology import Processor


class Scaling(bench_output.Scaling):
    """The table of speed-ups, then one of fits, then a recommendation for each model."""

    def __init__(self, setting: Setting, write: Callable[[str], None]) -> None:
        super().__init__(setting, write)
        self._fitted: list[tuple[Result, Fit]] = []
        self._processors = _processors()
        if setting.pinned:  # else the system moves threads
            on = Column("on", -16, self._on)
            self.columns = [*self.columns[:-1], on, self.columns[-1]]

    def model(self, results: Sequence[Result]) -> None:
        """Write the rows, and fit the curves."""
        super().model(results)
        for points in curves(results):
            self._fitted.append((points[0], fit(points, self.setting)))

    def end(self) -> None:
        """Write the fits, the recommendations, and what it ran on."""
        table = _Fits(self.setting, self.write)
        self.write("\n")
        table.start()
        table.rows(self._fitted)
        for line in self._recommended():
            self.write(f"\n{line}")
        self.write(f"\nprocessors: {_describe(self._processors)}\n")
        super().end()

    def _on(self, result: Result) -> str:
        """The processors that the threads of a result were pinned to."""
        return _describe(self._processors[: result.case.n_threads])

    def _recommended(self) -> list[str]:
        """A line for each model, from its first test of writing and its first prompt."""
        lines = []
        for path in dict.fromkeys(result.model.path for result, _ in self._fitted):
            chosen: dict[str, tuple[str, int]] = {}
            for result, found in self._fitted:
                if result.model.path == path:
                    chosen.setdefault(result.case.phase, (result.case.name, found.enough))
            flags = [
                f"{flag} {chosen[phase][1]} ({chosen[phase][0]})"
                for phase, flag in (("decode", "-t"), ("prompt", "-tb"))
                if phase in chosen
            ]
            if flags:
                name = console.printable(next(r.model.type for r, _ in self._fitted
                                              if r.model.path == path))  # fmt: skip
                lines.append(f"recommended for {name}: {' '.join(flags)}; --tune looks closer\n")
        return lines


class Json(bench_output.Json):
    """The array of results, each with the fit of its curve and the processors it ran on."""

    def __init__(self, setting: Setting, write: Callable[[str], None]) -> None:
        super().__init__(setting, write)
        self._processors = [vars(one) | {"label": one.label} for one in _processors()]

    def objects(self, results: Sequence[Result]) -> list[dict[str, Any]]:
        """Add to each result what its curve says, and what its threads ran on."""
        from lariat.runtime import threads

        fits = {
            bench_output.curve(points[0]): fit(points, self.setting).as_dict()
            for points in curves(results)
        }
        return [
            {
                **as_object,
                "scaling": fits[bench_output.curve(result)],
                "processors": self._processors,
                "quota": threads.quota(),
            }
            for result, as_object in zip(results, super().objects(results), strict=True)
        ]


class _Fits(bench_output.Table):
    """A row for each curve; items are (its first result, its fit)."""

    columns = (
        Column("model", -20, lambda item: console.printable(item[0].model.type)),
        Column("cache", -5, lambda item: item[0].case.cache),
        Column("test", 15, lambda item: item[0].case.name),
        Column("serial", 6, lambda item: _law(item[1], "{:.1%}")),
        Column("fit within", 10, lambda item: _law(item[1], "{1:.0%}")),
        Column("roof flat from", 14, lambda item: _roof(item[1])),
        Column("best of roof", 12, lambda item: _share(item[1])),
        Column("stops paying at", 15, lambda item: str(item[1].enough)),
    )


def _law(found: Fit, form: str) -> str:
    law = found.amdahl
    return "" if law is None else form.format(law.serial_share, law.deviation)


def _roof(found: Fit) -> str:
    if found.roof is None:
        return ""
    return f"{found.saturates_at or 'not yet'} ({found.roof})"


def _share(found: Fit) -> str:
    return "" if found.best_share is None else f"{found.best_share:.0%}"


def _processors() -> list[Processor]:
    """Those of this process. A thread that is pinned would be told its own alone, so ask before."""
    from lariat.runtime import topology

    return topology.read()


def _describe(processors: Sequence[Processor]) -> str:
    from lariat.runtime import topology

    return topology.describe(processors)


def curves(results: Sequence[Result]) -> list[list[Result]]:
    """Group results that differ in threads alone, by threads ascending."""
    found: dict[object, list[Result]] = {}
    for result in results:
        found.setdefault(bench_output.curve(result), []).append(result)
    return [sorted(points, key=lambda r: r.case.n_threads) for points in found.values()]


def fit(points: Sequence[Result], setting: Setting) -> Fit:
    """The laws of one curve."""
    from lariat.measure import scaling

    return scaling.of_curve(points, setting.n_processors)
