"""Guesses that stop where they do not come true.

A wrong guess costs its share of a pass, so their number follows what came of the last ones: it
grows while all come true, and shrinks while none do. Counts alone decide, so a text is guessed in
the same way on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence

from lariat.speculative.ngram import NgramDrafter

_FIRST = 2  # guesses at first, and after a pause
_MAX_MISSES = 2  # passes in a row whose first guess was wrong, until guessing pauses
_PAUSE, _MAX_PAUSE = 16, 256  # passes; each pause is twice as long as the one before


class AutoDrafter:
    """An `NgramDrafter` whose guesses become fewer, or pause, while they are wrong."""

    def __init__(self) -> None:
        self._ngram = NgramDrafter()
        self._n = _FIRST
        self._misses = 0
        self._wait, self._pause = 0, _PAUSE
        self._proposed = 0

    def propose(self, ids: Sequence[int], k: int) -> list[int]:
        """At most `k` tokens that may come behind all `ids`; often none."""
        if self._wait:
            self._wait -= 1
            return []
        draft = self._ngram.propose(ids, min(k, self._n))
        self._proposed = len(draft)
        return draft

    def accepted(self, n: int) -> None:
        """Learn that the first `n` tokens of the last proposal came."""
        if n == self._proposed:
            self._n = 2 * max(self._n, 1)
        else:
            self._n = max(1, n)
        if n:
            self._misses, self._pause = 0, _PAUSE
            return
        self._misses += 1
        if self._misses >= _MAX_MISSES:
            self._wait, self._pause = self._pause, min(2 * self._pause, _MAX_PAUSE)
            self._misses, self._n = _MAX_MISSES - 1, _FIRST

    def close(self) -> None:
        """It holds nothing."""
