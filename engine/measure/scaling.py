"""What more threads give: laws that are fitted to the speeds of a curve, and where it ends.

- Amdahl's law: a token takes `serial + parallel / n` seconds with n threads. Least squares of the
  relative errors, over the counts that have a processor for each thread.
- The roofline: a token cannot take less than its bytes at the read bandwidth of as many threads,
  nor a prompt less than its products at the int8 peak, both measured in the same run. A roof
  saturates where more threads raise it by less than 5 %.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lariat.measure.cases import Result

_PAYS = 1.03  # more threads pay if they are faster by more
_SATURATED = 0.95


@dataclass(frozen=True)
class Amdahl:
    """Amdahl's law, fitted.

    serial_share  of one thread's time that more threads do not shorten, 0 to 1
    deviation     the largest relative difference between a measured and a fitted time
    """

    serial_share: float
    deviation: float

    @property
    def limit(self) -> float:
        """The speed-up that no number of threads exceeds; infinite without a serial share."""
        return 1 / self.serial_share if self.serial_share else float("inf")


@dataclass(frozen=True)
class Scaling:
    """What a curve over threads says. None where too few counts were measured.

    amdahl       the law
    roof         "read" or "int8", where that was measured
    saturates_at the fewest threads whose roof is within 5 % of the highest; None too where that is
                 the largest number, because more may raise it
    best_share   the largest share of its roof that any number of threads reaches
    enough       the fewest threads that more ones do not beat by more than 3 %
    """

    amdahl: Amdahl | None
    roof: str | None
    saturates_at: int | None
    best_share: float | None
    enough: int

    def as_dict(self) -> dict[str, Any]:
        """Its fields, for JSON."""
        return asdict(self)


def of_curve(points: Sequence[Result], n_processors: int) -> Scaling:
    """Fit the results of a test that differ in their numbers of threads alone."""
    seconds = {r.case.n_threads: statistics.median(r.samples_ns) for r in points}
    law = amdahl({n: t for n, t in seconds.items() if n <= n_processors})
    name, roofs, shares = _roofs(points)
    return Scaling(
        law,
        name if roofs else None,
        saturation({n: roof for n, roof in roofs.items() if n <= n_processors}),
        max(shares, default=None),
        enough(points),
    )


def amdahl(seconds: Mapping[int, float]) -> Amdahl | None:
    """Fit the law to times by number of threads; None of fewer than three numbers.

    Both terms are at least 0: a curve that is better than linear has no serial share, one that
    does not become faster at all has nothing else.
    """
    if len(seconds) < 3:
        return None
    # Each equation is divided by its time, so that errors are relative: s a + p b = 1.
    rows = [(1 / t, 1 / (n * t)) for n, t in seconds.items()]
    aa, ab, bb = (sum(x[i] * x[j] for x in rows) for i, j in ((0, 0), (0, 1), (1, 1)))
    a, b = (sum(x[i] for x in rows) for i in (0, 1))
    determinant = aa * bb - ab * ab
    serial, parallel = (a * bb - b * ab) / determinant, (b * aa - a * ab) / determinant
    if serial < 0:
        serial, parallel = 0.0, b / bb
    elif parallel < 0:
        serial, parallel = a / aa, 0.0
    deviation = max(abs(serial * x[0] + parallel * x[1] - 1) for x in rows)
    return Amdahl(serial / (serial + parallel), deviation)


def saturation(roofs: Mapping[int, float]) -> int | None:
    """The fewest threads whose roof is within 5 % of the highest; None if these are the most."""
    highest = max(roofs.values(), default=0.0)
    flat = [n for n, roof in roofs.items() if roof >= _SATURATED * highest]
    return min(flat) if len(flat) > 1 else None


def enough(points: Sequence[Result]) -> int:
    """The fewest threads that no larger number beats by more than 3 %, by the median of pairs of
    the same repetition."""
    ascending = sorted(points, key=lambda r: r.case.n_threads)
    for i, some in enumerate(ascending):
        if all(_gain(some, more) <= _PAYS for more in ascending[i + 1 :]):
            return some.case.n_threads
    raise AssertionError("nothing beats the last")


def _gain(some: Result, more: Result) -> float:
    pairs = zip(some.samples_ns, more.samples_ns, strict=False)
    return statistics.median(a / b for a, b in pairs)


def _roofs(points: Sequence[Result]) -> tuple[str, dict[int, float], list[float]]:
    """The roof that bounds the test: its name, its height by threads, and the shares reached."""
    is_prompt = points[0].case.phase == "prompt"
    heights = {r.case.n_threads: r.int8_peak if is_prompt else r.read_bandwidth for r in points}
    shares = [r.share_of_int8_peak if is_prompt else r.share_of_bandwidth for r in points]
    return (
        "int8" if is_prompt else "read",
        {n: roof for n, roof in heights.items() if roof is not None},
        [share for share in shares if share is not None],
    )
