"""Prompt lookup: a text often repeats what it, or its prompt, has said before.

The last tokens of the text are looked up in the text itself, and the guess is what came behind them
the last time (prompt lookup decoding, https://github.com/apoorvumang/prompt-lookup-decoding).
"""

from __future__ import annotations

from collections.abc import Sequence

_LENGTHS = (4, 3, 2)  # of the n-grams that are looked up, the most telling first


class NgramDrafter:
    """Guesses by the last place where the text's last 4, 3 or 2 tokens stood.

    Each token enters the index once. `ids` may only grow; where they are shorter than before, the
    index is built anew.
    """

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}  # behind the newest place of each n-gram
        self._n_indexed = 0  # n-grams that end before here are in the index

    def propose(self, ids: Sequence[int], k: int) -> list[int]:
        """At most `k` tokens that may come behind all `ids`; often none."""
        self._index(ids)
        for n in _LENGTHS:
            at = self._ends.get(tuple(ids[-n:])) if len(ids) > n else None
            if at is not None:
                draft: list[int] = []
                for i in range(at, at + k):  # a text that goes round in circles goes on so
                    draft.append(ids[i] if i < len(ids) else draft[i - len(ids)])
                return draft
        return []

    def accepted(self, n: int) -> None:
        """Learn that the first `n` tokens of the last proposal came: it changes nothing."""

    def close(self) -> None:
        """It holds nothing."""

    def _index(self, ids: Sequence[int]) -> None:
        """Take in all n-grams but those that end the text: nothing has come behind them yet."""
        if len(ids) < self._n_indexed:
            self._ends.clear()
            self._n_indexed = 0
        for stop in range(self._n_indexed + 1, len(ids)):
            for n in _LENGTHS:
                if n <= stop:
                    self._ends[tuple(ids[stop - n : stop])] = stop
        self._n_indexed = max(0, len(ids) - 1)
