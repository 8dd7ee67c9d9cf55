"""One request on its way: its tokens, its place in the cache, its text so far."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from lariat.cache.blocks import SLOTS, BlockTable
from lariat.config import SamplingParams
from lariat.errors import ContextError

_NEVER = 1 << 31  # blocks that have their names: no more get one


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

    What is written without end (`context_shift` with `max_tokens` -1) would fill the memory:
    `token_ids` and `text` then hold the last `n_ctx` tokens, and the stream has given out the rest.
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
    """Text of token ids, whole characters only; see `lariat.tokenizers.tokenizer.StreamDecoder`."""

    def feed(self, token: int) -> str:
        """Text that is complete with this token."""

    def flush(self) -> str:
        """Text of what is left."""


class Request:
    """The state of one request: what is computed, and the text that comes of it.

    `decoder` turns token ids into text, `eog_ids` end it, `n_ctx` is the most tokens it may have.
    `delete` takes tokens from the first number to before the second out of a place in the cache,
    for `context_shift`; IndexError where that needs more blocks than are free.
    """

    def __init__(
        self,
        prompt_ids: list[int],
        params: SamplingParams,
        context: BlockTable,
        rng: np.random.Generator,
        completion: Completion,
        *,
        decoder: Decoder,
        eog_ids: frozenset[int],
        n_ctx: int,
        delete: Callable[[BlockTable, int, int], None] = BlockTable.delete,
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
        self.n_named = 0  # theirs; see `lariat.cache.prefix_cache`
        self._take_back: Callable[[Request], None] | None = None
        self._n_before = 0  # tokens of the context that it goes on from
        self._decoder = decoder
        self._eog_ids = eog_ids
        self._n_ctx = n_ctx
        self._delete = delete
        self._stop = StopText(params.stop)
        self._n_shown: deque[int] = deque()  # characters of each of the last tokens
        self._keep_first()

    def lend(
        self, segments: BlockTable, ids: list[int], take_back: Callable[[Request], None]
    ) -> None:
        """Go on where a context ends, whose `segments` hold the first of all `ids`.

        `take_back` is called once, when the sequence is over; the segments stay the context's.
        """
        self._n_before = len(ids) - len(self.ids)
        self.context, self.ids, self._take_back = segments, ids, take_back
        self._keep_first()

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
            self.context = BlockTable(self.context.pool)

    @property
    def is_endless(self) -> bool:
        """Whether it goes on until somebody stops it; others must not wait for that."""
        return self.params.context_shift and self.params.max_tokens < 0

    @property
    def holds_oldest_alone(self) -> bool:
        """Whether eviction can free blocks: nothing else holds that of the last token to go."""
        last = self._n_keep + SLOTS - 1
        if last >= self.context.n_tokens:
            return False
        return self.context.pool.n_holders(int(self.context.cut(last, last + 1)[0, 0])) == 1

    def shift(self) -> bool:
        """Evict the oldest block's worth of tokens behind those that are kept, if there are so many
        in the cache. StreamingLLM, arXiv 2309.17453: those behind them move up, and the first ones,
        which attention gives what it has no other use for, stay."""
        start, stop = self._n_keep, self._n_keep + SLOTS
        # One that has given its blocks back is computed again, without what it would evict.
        waits = not self.context.n_tokens and self.completion.token_ids
        n = len(self.ids) if waits else self.context.n_tokens
        if not self.params.context_shift or stop >= n or self.closed:
            return False
        try:
            if not waits:
                self._delete(self.context, start, stop)
        except IndexError:  # rotated keys that another context holds too would have to be copied
            self.fail(ContextError("the KV cache has no free blocks to move tokens up in"))
            return False
        del self.ids[start:stop]
        self.hide_blocks()
        return True

    def hide_blocks(self) -> None:
        """Name no block of it until all is computed again: they do not hold what its ids give."""
        self.block_keys, self.n_named = [], _NEVER

    def fit(self) -> None:
        """Evict until all tokens have room."""
        while len(self.ids) > self._n_ctx and self.shift():
            pass

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
        n_before = len(done.text)
        text, stopped = self._stop.feed(self._decoder.feed(token))
        self._show(text)
        if self.is_endless:
            self._forget(len(done.text) - n_before)
        if stopped:
            done.finish_reason = "stop"
        elif len(done.token_ids) == self.params.max_tokens:
            self._finish("length")
        elif len(self.ids) >= self._n_ctx and not self.params.context_shift:
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

    def _keep_first(self) -> None:
        p = self.params
        self._n_keep = len(self.ids) if p.n_keep < 0 else p.n_keep
        n_pending = len(self.ids) - self.context.n_tokens
        if not p.context_shift:
            return
        if self._n_keep + SLOTS >= self._n_ctx:
            raise ContextError(
                f"keeping the first {self._n_keep} tokens of a context of {self._n_ctx} leaves no"
                f" room to evict {SLOTS} of them"
            )
        n_least = min(self.context.n_tokens, self._n_keep + SLOTS) + n_pending
        if n_least > self._n_ctx:
            raise ContextError(
                f"that makes {n_least} tokens, more than the context of {self._n_ctx}"
            )

    def _forget(self, n_shown: int) -> None:
        """Drop what is older than a context of text."""
        done = self.completion
        self._n_shown.append(n_shown)
        if len(self._n_shown) > self._n_ctx:
            del done.token_ids[0]
            done.text = done.text[self._n_shown.popleft() :]

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
