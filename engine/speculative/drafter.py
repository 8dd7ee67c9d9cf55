"""The drafters, and the methods that each has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from lariat.speculative.auto import AutoDrafter
from lariat.speculative.ngram import NgramDrafter


class Drafter(Protocol):
    """Guesses the next tokens of one text. An error of it ends guessing, not the text."""

    def propose(self, ids: Sequence[int], k: int) -> list[int]:
        """At most `k` tokens that may come behind all `ids`; often none."""

    def accepted(self, n: int) -> None:
        """Learn that the first `n` tokens of the last proposal came."""


DRAFTERS: Mapping[str, Callable[[], Drafter]] = {"ngram": NgramDrafter, "auto": AutoDrafter}
