"""One request on its way: its tokens, its place in the cache, its text so far."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from engine.config import SamplingParams
from engine.segments import SegmentList


@dataclass
class Timings:
    """Seconds and counts of one completion. Only the engine's own work is counted."""

    load_s: float = 0.0
    n_prompt: int = 0  # prompt tokens computed
    prompt_s: float = 0.0
    n_decode: int = 0  # tokens computed one at a time after the prompt
    decode_s: float = 0.0
    n_reused: int = 0  # prompt tokens whose keys and values were there already

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


class Decoder(Protocol):
    """Text of token ids, whole characters only; see `engine.tokenizer.StreamDecoder`."""

    def feed(self, token: int) -> str:
        """Text that is complete with this token."""

    def flush(self) -> str:
        """Text of what is left."""


class Sequence:
    """The state of one request: what is computed, and the text that comes of it.

    `decoder` turns token ids into text, `eog_ids` end it, `n_ctx` is the most tokens it may have.
    """

    def __init__(
        self,
        prompt_ids: list[int],
        params: SamplingParams,
        context: SegmentList,
        rng: np.random.Generator,
        completion: Completion,
        *,
        decoder: Decoder,
        eog_ids: frozenset[int],
        n_ctx: int,
        on_prompt: Callable[[int, int], None] | None = None,
    ) -> None:
        self.ids = list(prompt_ids)
        self.params = params
        self.context = context
        self.rng = rng
        self.completion = completion
        self.on_prompt = on_prompt
        self.pieces: deque[str] = deque()  # text that nobody has taken yet
        self.closed = False  # given up: nothing more will be computed
        self.error: BaseException | None = None  # why, where it was no wish
        self.block_keys: list[bytes] = []  # names of its full blocks, and how many blocks have
        self.n_named = 0  # theirs; see `engine.prefixes`
        self._take_back: Callable[[Sequence], None] | None = None
        self._n_before = 0  # tokens of the context that it goes on from
        self._decoder = decoder
        self._eog_ids = eog_ids
        self._n_ctx = n_ctx
        self._stop = StopText(params.stop)

    def lend(
        self, segments: SegmentList, ids: list[int], take_back: Callable[[Sequence], None]
    ) -> None:
        """Go on where a context ends, whose `segments` hold the first of all `ids`.

        `take_back` is called once, when the sequence is over; the segments stay the context's.
        """
        self._n_before = len(ids) - len(self.ids)
        self.context, self.ids, self._take_back = segments, ids, take_back

    @property
    def is_lent(self) -> bool:
        """Whether its place in the cache is a context's, whose tokens cannot be computed anew."""
        return self._take_back is not None

    def release(self) -> None:
        """Give its place in the cache back: to the pool, or to the context it came from."""
        if self._take_back is None:
            self.context.clear()
        else:
            take_back, self._take_back = self._take_back, None
            take_back(self)
            self.context = SegmentList(self.context.pool)

    @property
    def n_pending(self) -> int:
        """Tokens that are known but not yet in the cache."""
        return len(self.ids) - self.context.n_tokens

    @property
    def n_prompt_done(self) -> int:
        """Tokens of the prompt that are in the cache."""
        return min(self.context.n_tokens - self._n_before, len(self.completion.prompt_ids))

    @property
    def in_prompt(self) -> bool:
        """Whether more than the last token is pending."""
        return self.n_pending > 1 or not self.completion.token_ids

    @property
    def finished(self) -> bool:
        """Whether the completion has its finish reason."""
        return self.completion.finish_reason is not None

    def append(self, token: int) -> None:
        """Take a sampled token: its text, and whether it ends the sequence."""
        done = self.completion
        if token in self._eog_ids and not self.params.ignore_eos:
            self._finish("stop")
            return
        self.ids.append(token)
        done.token_ids.append(token)
        text, stopped = self._stop.feed(self._decoder.feed(token))
        self._show(text)
        if stopped:
            done.finish_reason = "stop"
        elif len(done.token_ids) == self.params.max_tokens:
            self._finish("length")
        elif len(self.ids) >= self._n_ctx:
            self._finish("context")

    def fail(self, error: BaseException) -> None:
        """Give up because of `error`."""
        self.error = error
        self.closed = True

    def book(self, n_tokens: int, seconds: float, in_prompt: bool) -> None:
        """Count a step's tokens and time."""
        t = self.completion.timings
        if in_prompt:
            t.n_prompt += n_tokens
            t.prompt_s += seconds
        else:
            t.n_decode += n_tokens
            t.decode_s += seconds

    def book_reused(self) -> None:
        """Count what the prompt found in the cache, before anything of it was computed."""
        if not self.is_lent and not self.completion.timings.n_prompt:
            self.completion.timings.n_reused = self.context.n_tokens

    def _finish(self, reason: str) -> None:
        """End, and show what the decoder and the stop texts still hold back."""
        text, stopped = self._stop.feed(self._decoder.flush())
        self._show(text)
        if stopped:
            reason = "stop"
        else:
            self._show(self._stop.flush())
        self.completion.finish_reason = reason

    def _show(self, text: str) -> None:
        if text:
            self.pieces.append(text)
            self.completion.text += text
