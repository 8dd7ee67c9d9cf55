"""Edits in the middle of a context, and the tokens behind them that recall what was edited.

Tokens behind an edit keep the keys and values that they were computed with, so they still carry the
old text. In most prose that hardly shows. It shows where the text behind speaks of what was edited:
it repeats it, sums it up or draws conclusions. Such places share rare words with the edited
sentence, and the words are known without a forward pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import numpy as np
from lariat.runtime.order import Order, runs

_MAX_EDITS = 32  # older ones are forgotten
_SENTENCE = 24  # tokens on each side of an edit that are looked at for the rest of its sentence
_ENDS = ".!?\n"
_MAX_SENTENCE = 48  # tokens
_BEHIND = 8  # tokens right behind a sentence know much of it
_MAX_COUNT, _MAX_SHARE = 6, 0.01  # a rare word occurs at most so often, or in this share of tokens


@dataclass(frozen=True)
class Edit:
    """An edit, and the tokens behind it that have not seen it: those from `start` to before `stop`.

    ids: tokens that were put in or taken out, with the rest of their sentence on both sides; the
    sentence goes on for `n_rest` tokens behind them.
    """

    start: int
    stop: int
    ids: tuple[int, ...]
    n_rest: int


class Edits:
    """The edits of a context since it was computed or repaired; places follow later edits.

    text_of gives the text of a token. `ids` are the context's tokens before the edit in question.
    """

    def __init__(self, text_of: Callable[[int], str]) -> None:
        self._text_of = text_of
        self._edits: list[Edit] = []

    def copy(self) -> Edits:
        """Make one of the same edits, for a fork of the context."""
        other = Edits(self._text_of)
        other._edits = list(self._edits)
        return other

    def clear(self) -> None:
        """Forget all edits."""
        self._edits.clear()

    def keep(self, n: int) -> None:
        """Forget the edits that do not lie within the first `n` tokens."""
        self._edits = [edit for edit in self._edits if edit.start <= n]

    def insert(self, at: int, new: Sequence[int], ids: Sequence[int]) -> None:
        """Tokens `new` were put before token `at`."""
        n = len(new)
        self._follow([(0, at), n, (at, len(ids))])
        self._add(at + n, len(ids) + n, new, ids[:at], ids[at:])

    def delete(self, start: int, stop: int, ids: Sequence[int]) -> None:
        """Tokens from `start` to before `stop` were taken out."""
        self._follow([(0, start), (stop, len(ids))])
        self._add(start, len(ids) - (stop - start), ids[start:stop], ids[:start], ids[stop:])

    def move(self, start: int, stop: int, to: int, ids: Sequence[int]) -> None:
        """Tokens from `start` to before `stop` were moved, so that the first is token `to`."""
        new = ids[start:stop]
        self.delete(start, stop, ids)
        self.insert(to, new, [*ids[:start], *ids[stop:]])

    def _follow(self, order: Order) -> None:
        """Move places with their tokens. Tokens put between those behind an edit come to them."""
        moved = []
        for edit in self._edits:
            if found := runs(order, edit.start, edit.stop):
                last = found[-1]
                moved.append(replace(edit, start=found[0].at, stop=last.at + last.n))
        self._edits = moved

    def _add(
        self, start: int, stop: int, ids: Sequence[int], left: Sequence[int], right: Sequence[int]
    ) -> None:
        if start >= stop or not ids:
            return
        before, rest = self._until_end(left[-_SENTENCE:][::-1]), self._until_end(right[:_SENTENCE])
        if self._ends(ids[-1]):
            rest = []
        edit = Edit(start, stop, (*before, *ids, *rest), len(rest))
        self._edits = [*self._edits, edit][-_MAX_EDITS:]

    def _until_end(self, ids: Sequence[int]) -> list[int]:
        return list(takewhile(lambda id: not self._ends(id), ids))

    def _ends(self, id: int) -> bool:
        """Whether a sentence ends with this token."""
        return any(end in self._text_of(id) for end in _ENDS)

    def recalled(self, ids: Sequence[int], share: float) -> list[tuple[int, int]]:
        """Ranges (start, stop), in order, of those of the context's tokens `ids` that recall edits.

        They hold at most `share` of the tokens behind the first edit: sentences with rare words of
        the edited ones, those with the most and rarest words first, then tokens right behind edits.
        """
        edits = [
            replace(edit, stop=min(edit.stop, len(ids)))  # the end may have gone since
            for edit in self._edits
            if edit.start < len(ids)
        ]
        if not edits:
            return []
        words = [self._word(id) for id in ids]
        counts = Counter(words)
        max_count = max(_MAX_COUNT, _MAX_SHARE * len(ids))
        first = min(edit.start for edit in edits)
        found: dict[tuple[int, int], set[str]] = {}  # words that a sentence has in common
        for edit in edits:
            own = {word for word in map(self._word, edit.ids) if word and counts[word] <= max_count}
            for start, stop in self._sentences(ids, edit.start + edit.n_rest, edit.stop):
                found.setdefault((start, stop), set()).update(own.intersection(words[start:stop]))
        scores = {place: sum(1 / counts[w] for w in own) for place, own in found.items() if own}
        sentences = sorted(scores, key=lambda place: -scores[place])
        wanted = [(start, stop + _BEHIND) for start, stop in sentences]
        budget, chosen = int(share * (len(ids) - first)), np.zeros(len(ids), bool)
        # Text right behind an edit often goes on about it, with pronouns.
        wanted += [(edit.start, edit.stop) for edit in edits[::-1]]
        for start, stop in wanted:
            new = start + np.flatnonzero(~chosen[start:stop])
            chosen[new[: budget - int(chosen.sum())]] = True
        bounds = np.flatnonzero(np.diff(np.concatenate([[False], chosen, [False]]).astype(np.int8)))
        return [(int(start), int(stop)) for start, stop in bounds.reshape(-1, 2)]

    def _sentences(self, ids: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Cut tokens from `start` to before `stop` into sentences of at most `_MAX_SENTENCE`."""
        for i in range(start, stop):
            if i + 1 == stop or i + 1 - start == _MAX_SENTENCE or self._ends(ids[i]):
                yield start, i + 1
                start = i + 1

    def _word(self, id: int) -> str:
        """The text of a token as far as it tells something: "" for marks and single letters."""
        word = self._text_of(id).strip().casefold()
        return word if len(word) > 1 and any(c.isalnum() for c in word) else ""
