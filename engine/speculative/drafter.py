"""The drafters, and the methods that each has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from lariat.speculative.auto import AutoDrafter
from lariat.speculative.ngram import NgramDrafter


class Follower(Protocol):
    """The part of a drafter that belongs to one text."""

    def accepted(self, n: int) -> None:
        """Learn that the first `n` tokens of the last proposal came."""

    def close(self) -> None:
        """Give back what it holds: the text is over."""


class Drafter(Follower, Protocol):
    """Guesses the next tokens of one text. An error of it ends guessing, not the text."""

    def propose(self, ids: Sequence[int], k: int) -> list[int]:
        """At most `k` tokens that may come behind all `ids`; often none."""


DRAFTERS: Mapping[str, Callable[[], Drafter]] = {"ngram": NgramDrafter, "auto": AutoDrafter}
