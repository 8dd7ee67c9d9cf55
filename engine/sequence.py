"""One request on its way: its tokens, its place in the cache, its text so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from engine.config import SamplingParams
from engine.context import Context


@dataclass
class Timings:
    """Seconds and counts of one completion. Only the engine's own work is counted."""

    load_s: float = 0.0
    n_prompt: int = 0  # prompt tokens computed
    prompt_s: float = 0.0
    n_decode: int = 0  # tokens computed one at a time after the prompt
    decode_s: float = 0.0

    @property
    def prompt_per_s(self) -> float:
        """Prompt tokens per second."""
        return self.n_prompt / self.prompt_s if self.prompt_s else 0.0

    @property
    def decode_per_s(self) -> float:
        """Decoded tokens per second."""
        return self.n_decode / self.decode_s if self.decode_s else 0.0


@dataclass
class Completion:
    """What a model wrote.

    `token_ids` are the generated ones, without the end-of-generation token. `finish_reason` is
    "stop" (the model ended, or a stop text came), "length" (`max_tokens`), "context" (no room
    left) or None while it is not finished.
    """

    prompt_ids: list[int]
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    timings: Timings = field(default_factory=Timings)


class Sequence:
    """The state of one request."""

    def __init__(
        self,
        prompt_ids: list[int],
        params: SamplingParams,
        context: Context,
        rng: np.random.Generator,
        completion: Completion,
        on_prompt: Callable[[int, int], None] | None = None,
    ) -> None:
        self.ids = list(prompt_ids)
        self.params = params
        self.context = context
        self.rng = rng
        self.completion = completion
        self.on_prompt = on_prompt

    @property
    def n_pending(self) -> int:
        """Tokens that are known but not yet in the cache."""
        return len(self.ids) - self.context.n_tokens

    @property
    def in_prompt(self) -> bool:
        """Whether more than the last token is pending."""
        return self.n_pending > 1 or not self.completion.token_ids

    @property
    def finished(self) -> bool:
        """Whether nothing more will be computed."""
        return self.completion.finish_reason is not None


class StopText:
    """Passes text on, but holds back what may be the start of a stop text."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """Return what may be shown now, and whether a stop text was met."""
        if not self._stops:
            return text, False
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        if found:
            shown, self._held = self._held[: min(found)], ""
            return shown, True
        keep = max(self._overlap(stop) for stop in self._stops)
        shown = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return shown, False

    def flush(self) -> str:
        """Give up what is held back: no stop text came."""
        held, self._held = self._held, ""
        return held

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of what is held that begins `stop`."""
        for n in range(min(len(stop) - 1, len(self._held)), 0, -1):
            if stop.startswith(self._held[-n:]):
                return n
        return 0
