"""One request: its tokens, its place in the cache, its text so far."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from lariat.cache.blocks import SLOTS, BlockTable
from lariat.config import RopeConfig, SamplingParams
from lariat.errors import ContextError
from lariat.runtime import sampler
from lariat.runtime.logprobs import Prediction, PromptLogprobs, TokenLogprob
from lariat.runtime.renewal import Renewal
from lariat.runtime.rope_choice import RopeRead
from lariat.runtime.stages import Stages
from lariat.runtime.timings import Timings
from lariat.speculative.drafter import Follower

_NO_MORE_KEYS = 1 << 31  # as `n_keyed`: above every number of blocks


@dataclass
class Completion:
    """The text that a model generated for one prompt.

    `prompt_ids` are those that the prompt brought: behind a context, with the tokens of the last
    word there that it changes. `token_ids` are the generated ones, without the token that ends the
    text. `finish_reason` is "stop" (the model ended, or a stop text or token came: `stop_reason`
    has which), "length" (`max_tokens`), "context" (no room left), "error" (`error` has it) or None
    while it is not finished.

    `logprobs` has log-probabilities for each of `token_ids`, and `prompt_logprobs` for each of
    `prompt_ids`, None for the first. Both are None unless `SamplingParams` ask for them.
    `rope` has the complete settings with which the question and the text were read, if the request
    asked for them or for a choice.

    Endless text (`context_shift` with `max_tokens` -1) would fill the memory: `token_ids`,
    `logprobs` and `text` then hold the last `n_ctx` tokens only. The stream has given out the rest.
    """

    prompt_ids: list[int]
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    rope: RopeConfig | None = None
    timings: Timings = field(default_factory=Timings)
    stop_reason: str | int | None = None
    error: Exception | None = None
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: Sequence[TokenLogprob | None] | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """The part that one step added to a completion.

    `text` may be empty: text that a stop text may begin, and bytes of a character that is not
    complete, are held back, and come with the delta that completes them. `logprobs` has one value
    for each of `token_ids`, or is None.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None


class StopText:
    """Passes text on, but holds back an end that may begin a stop text."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""

    def feed(self, text: str) -> tuple[str, str]:
        """Return the text to show now, and the stop text that was met, "" for none."""
        if not self._stops:
            return text, ""
        self._held += text
        found = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            at, stop = min(found, key=lambda one: one[0])
            shown, self._held = self._held[:at], ""
            return shown, stop
        keep = max(self._overlap(stop) for stop in self._stops)
        shown = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return shown, ""

    def flush(self) -> str:
        """Return the text that is held back: no stop text came."""
        held, self._held = self._held, ""
        return held

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that begins `stop`."""
        for n in range(min(len(stop) - 1, len(self._held)), 0, -1):
            if stop.startswith(self._held[-n:]):
                return n
        return 0


class Decoder(Protocol):
    """Text of token ids, whole characters only; see `lariat.tokenizers.tokenizer.StreamDecoder`."""

    def feed(self, token: int) -> str:
        """Text that is complete with this token."""

    def flush(self) -> str:
        """Text of the bytes that are left."""


class Request:
    """The state of one request: its tokens, how many are computed, and the text that they give.

    ids        all tokens: the prompt's and the generated ones
    table      where the computed ones are in the cache: the first of `ids`
    decoder    turns token ids into text
    eog_ids    tokens with which the model ends its text
    n_ctx      max tokens that it may have
    replaced   the last tokens of the context that it continues, if its own come instead
    read       with which RoPE its question and its text are read; None: as all is computed
    on_prompt  is called with prompt tokens done and their total
    scores     is filled with log-probabilities of the prompt's tokens
    """

    def __init__(
        self,
        prompt_ids: list[int],
        params: SamplingParams,
        table: BlockTable,
        rng: np.random.Generator,
        completion: Completion,
        *,
        decoder: Decoder,
        eog_ids: frozenset[int],
        n_ctx: int,
        replaced: Sequence[int] = (),
        read: RopeRead | None = None,
        on_prompt: Callable[[int, int], None] | None = None,
        scores: PromptLogprobs | None = None,
    ) -> None:
        self.ids = list(prompt_ids)
        self.replaced = list(replaced)
        self.params = params
        self.table = table
        self.rng = rng
        self.completion = completion
        self.stages = Stages(params, eog_ids)
        self.deltas: deque[Delta] = deque()  # those that nobody has taken yet
        self.closed = False  # given up: nothing more will be computed
        self.error: BaseException | None = None  # why, unless the user gave it up
        self.reader: int | None = None  # the thread that takes its text, if it waits for it
        self.block_keys: list[bytes] = []  # of its full blocks, see `lariat.cache.prefix_cache`
        self.n_keyed = 0  # blocks in the cache that have got their key
        self.read = read
        self._on_prompt = on_prompt
        self._take_back: Callable[[Request], None] | None = None
        self._renewal: Renewal | None = None
        self._n_before = 0  # tokens of the context that it continues
        self._decoder = decoder
        self._n_ctx = n_ctx
        self._stop = StopText(params.stop)
        self._n_shown: deque[int] = deque()  # characters of each of the last tokens
        completion.rope = read.rope if read else None
        if params.logprobs is not None:
            completion.logprobs = []
        self._scores = scores
        self.drafter: Follower | None = None
        self.guesses = True  # whether it may compute guesses
        self.drafts: list[int] = []  # guesses that this step computes
        completion.prompt_logprobs = scores
        self._fresh = ""  # text of the next delta
        self._fresh_ids: list[int] = []
        self._fresh_logprobs: list[TokenLogprob] = []
        self._keep_first()

    def lend(
        self,
        table: BlockTable,
        ids: list[int],
        take_back: Callable[[Request], None],
        renewal: Renewal | None = None,
    ) -> None:
        """Continue a context, whose `table` holds the first of all `ids`.

        `take_back` is called once, when the request is over; the table stays the context's. A
        `renewal` of that table comes before the request's own tokens.
        """
        self._n_before = len(ids) - len(self.ids)
        if self.read:
            self.read.n_before = min(self.read.n_before + self._n_before, len(ids) - 1)
        self.table, self.ids, self._take_back = table, ids, take_back
        self._renewal = renewal
        self._keep_first()

    @property
    def is_lent(self) -> bool:
        """Whether its table is a context's, whose tokens cannot be recomputed."""
        return self._take_back is not None

    def release(self) -> None:
        """Give its tables back: their blocks to the pool, or a lent table to its context."""
        if self._renewal is not None:
            self._renewal.clear()
            self._renewal = None
        if self.drafter:
            self.drafter.close()
        if self._take_back is None:
            self.table.clear()
        else:
            take_back, self._take_back = self._take_back, None
            take_back(self)
            self.table = BlockTable(self.table.pool)

    # ---- context shift ----

    @property
    def is_endless(self) -> bool:
        """Whether it goes on until somebody stops it; others must not wait for that."""
        return self.params.context_shift and self.params.max_tokens < 0

    @property
    def holds_oldest_alone(self) -> bool:
        """Whether eviction can free blocks: nobody else holds the block of the last token to go."""
        last = self._n_keep + SLOTS - 1
        if last >= self.table.n_tokens:
            return False
        return self.table.pool.n_holders(int(self.table.cut(last, last + 1)[0, 0])) == 1

    @property
    def is_too_long(self) -> bool:
        """Whether it has more tokens than n_ctx."""
        return len(self.ids) > self._n_ctx

    @property
    def waits_for_recompute(self) -> bool:
        """Whether it was preempted: it has written text, and none of its tokens is in the cache."""
        return not self.table.n_tokens and bool(self.completion.token_ids)

    def oldest(self) -> tuple[int, int] | None:
        """Say which tokens a context shift would evict, as (start, stop); None: it cannot shift.

        They are the oldest block's worth behind those that are kept. Those behind them move up, and
        the first ones, the attention sinks, stay (StreamingLLM, arXiv 2309.17453).
        """
        start, stop = self._n_keep, self._n_keep + SLOTS
        n = len(self.ids) if self.waits_for_recompute else self.table.n_tokens
        if not self.params.context_shift or stop >= n or self.closed or self.n_renewing:
            return None
        return start, stop

    def evicted(self, start: int, stop: int) -> None:
        """Forget the tokens from `start` to before `stop`, which are no longer in the table."""
        del self.ids[start:stop]
        if self.read:
            self.read.evicted(start, stop)
        self.hide_blocks()

    def hide_blocks(self) -> None:
        """Give no block a key any more: blocks do not hold what `ids` alone would give."""
        self.block_keys, self.n_keyed = [], _NO_MORE_KEYS

    # ---- RoPE of its own ----

    @property
    def rope(self) -> RopeConfig | None:
        """Settings with which the next tokens are computed, see `Reading`."""
        if self.n_renewing:
            return None
        is_before = self.read is None or self.table.n_tokens < self.read.n_before
        return None if is_before or self.read is None else self.read.rope

    @property
    def is_choosing(self) -> bool:
        """Whether its question comes next, and is to be read with several settings."""
        read = self.read
        if self.n_renewing:
            return False
        return read is not None and read.rope is None and self.table.n_tokens >= read.n_before

    @property
    def n_ready(self) -> int:
        """Pending tokens that one pass may compute: those of a context come first, and all have the
        same RoPE and want the same rows of logits."""
        if self._renewal and self.n_renewing:
            return self._renewal.n_ready
        n_done, n = self.table.n_tokens, self.n_pending
        if self.n_to_score:
            if n_done < self._first_row:
                return self._first_row - n_done  # their logits are not wanted, those behind are
            if self.params.max_tokens == 0:
                return n - 1  # nothing behind the last token is wanted
        if self.read is None or n_done >= self.read.n_before:
            return n
        return self.read.n_before - n_done

    @property
    def n_shareable(self) -> int:
        """First tokens that others may share: those that are computed with the engine's RoPE."""
        return len(self.ids) if self.read is None else self.read.n_before

    @property
    def n_reusable(self) -> int:
        """First tokens that others may have computed: those whose logits are not wanted."""
        return self._first_row if self.n_to_score else len(self.ids)

    def n_new_blocks(self, n: int) -> int:
        """How many blocks `n` more tokens will take from the pool."""
        if self._renewal and (n_renewing := self.n_renewing):  # those have their blocks already
            return self._renewal.n_new_blocks(max(0, n - n_renewing))
        # A question is read in a fork, which copies the block that it writes to.
        return self.table.n_new_blocks(n) + self.is_choosing

    def chosen(self, rope: RopeConfig, n_tried: int) -> None:
        """Read with these settings from now on; `n_tried` tokens were computed to find them."""
        assert self.read is not None
        self.read.rope = self.completion.rope = rope
        self.completion.timings.n_tried += n_tried

    # ---- progress ----

    @property
    def n_pending(self) -> int:
        """Tokens to compute before the next one can be chosen."""
        return self.n_renewing + len(self.ids) - self.table.n_tokens

    @property
    def n_computed(self) -> int:
        """Tokens in the cache, and once more those that came anew."""
        return self.table.n_tokens + self.completion.timings.n_recomputed

    @property
    def n_renewing(self) -> int:
        """Of the pending tokens, those of a context that are in the cache and come anew."""
        return self._renewal.n_left if self._renewal else 0

    def renewing(self, n: int) -> tuple[BlockTable, list[tuple[int, int]]]:
        """The first `n` tokens that come anew, as ranges (start, stop), and their table."""
        assert self._renewal is not None
        return self._renewal.table, self._renewal.next(n)

    def renewed(self, n: int) -> None:
        """The first `n` tokens that come anew are computed."""
        assert self._renewal is not None
        self._renewal.computed(n)
        self.completion.timings.n_recomputed += n

    @property
    def n_prompt_done(self) -> int:
        """Tokens of the prompt that are in the cache."""
        return min(self.table.n_tokens - self._n_before, len(self.completion.prompt_ids))

    @property
    def is_prompt_done(self) -> bool:
        """Whether all tokens of the prompt are in the cache."""
        return self.n_prompt_done == len(self.completion.prompt_ids)

    @property
    def in_prompt(self) -> bool:
        """Whether more than the last token is pending."""
        return self.n_pending > 1 or not self.completion.token_ids

    @property
    def finished(self) -> bool:
        """Whether the completion has its finish reason."""
        return self.completion.finish_reason is not None

    def report_prompt(self) -> None:
        """Tell `on_prompt` how far the prompt is, until the first token is generated."""
        if self._on_prompt and not self.completion.token_ids:
            self._on_prompt(self.n_prompt_done, len(self.completion.prompt_ids))

    # ---- logits ----

    @property
    def n_to_score(self) -> int:
        """Tokens of the prompt whose log-probabilities are wanted, and not known yet."""
        return self._scores.n_missing if self._scores else 0

    @property
    def _first_row(self) -> int:
        """Which of `ids` is the first whose logits are wanted; there is a prompt to score."""
        assert self._scores
        return self._n_before + self._scores.n_done - 1

    def score_from(self, first: int) -> None:
        """Give the prompt's tokens before `first` no log-probability; they may share a prefix."""
        assert self._scores
        self._scores.n_done = first

    def logits_of(self, n: int) -> str:
        """Which logits the next `n` tokens shall give, see `Part.logits`."""
        if self.drafts or (self.n_to_score and self.table.n_tokens >= self._first_row):
            return "all"
        return "last" if n == self.n_pending else "none"

    def take(self, logits: np.ndarray) -> None:
        """Take the logits that were asked for, float32 [n_rows, n_vocab], in the order of tokens.

        Those behind the last token give the next one, and it may end the request. LariatError if
        none can be chosen, or if logits are not finite: this request's own error.
        """
        if self.drafts:
            self._check_drafts(logits)
            return
        n = min(self.n_to_score, len(logits))
        if n:
            assert self._scores
            self._scores.take(logits[:n])
        if self.params.max_tokens == 0:
            if not self.n_to_score:
                self._finish("length")
        elif n < len(logits):
            try:
                self._choose(logits[-1])
            finally:
                self._emit()

    def reject_drafts(self) -> None:
        """Take tokens that were guessed, and computed, out of the cache."""
        self.table.truncate(min(self.table.n_tokens, len(self.ids)))
        self.drafts = []

    def _check_drafts(self, logits: np.ndarray) -> None:
        """Choose tokens by logits [1 + n_drafts, n_vocab] as long as the guesses were right."""
        drafts, row = self.drafts, 0
        n_before = self.table.n_tokens - len(drafts)
        try:
            while row <= len(drafts):
                n_ids = len(self.ids)
                self._choose(logits[row])
                new = self.ids[n_ids:]
                if self.finished or new != drafts[row : row + len(new)]:
                    break
                row += len(new)
        finally:
            self.drafts = []
            self.table.truncate(n_before + row)
            self.completion.timings.n_drafted += len(drafts)
            self.completion.timings.n_accepted += row
            self._emit()
        if self.drafter:
            self.drafter.accepted(row)

    def _choose(self, logits: np.ndarray) -> None:
        """Choose the next token by its logits [n_vocab], and take those that must follow."""
        sampler.check_finite(logits)
        n_top = self.params.logprobs
        prediction = None if n_top is None else Prediction(logits, n_top)
        # Tokens without a forward pass have no log-probability.
        takes_forced = prediction is None
        # At the beginning of the text, some may have to come before any choice.
        tokens = self.stages.forced() if takes_forced and not self.completion.token_ids else []
        if not tokens:
            change = self.stages.change if self.stages.are_needed else None
            token = sampler.sample(logits, self.params, self.ids, self.rng, change)
            self.append(token, prediction)
            tokens = self.stages.forced() if takes_forced and not self.finished else []
        for token in tokens:
            if not self.finished:
                self.append(token)

    def append(self, token: int, prediction: Prediction | None = None) -> None:
        """Take a token that was chosen: its text, and whether it ends the request."""
        done = self.completion
        if token in self.stages.end_ids:
            done.stop_reason = token
            self._finish("stop")
            return
        self.stages.accept(token)
        self.ids.append(token)
        done.token_ids.append(token)
        self._fresh_ids.append(token)
        if prediction and done.logprobs is not None:
            self._fresh_logprobs.append(prediction.of(token))
            done.logprobs.append(self._fresh_logprobs[-1])
        n_before = len(done.text)
        text, stop = self._decoder.feed(token), ""
        if not self.stages.holds_ends:
            text, stop = self._stop.feed(text)
        self._show(text)
        if self.is_endless:
            self._forget(len(done.text) - n_before)
        if stop:
            done.stop_reason, done.finish_reason = stop, "stop"
        elif self.stages.is_done:
            self._finish("stop")
        elif len(done.token_ids) == self.params.max_tokens:
            self._finish("length")
        elif len(self.ids) >= self._n_ctx and not self.params.context_shift:
            self._finish("context")

    def _emit(self) -> None:
        """Hand out what came since the last time."""
        if not self._fresh_ids and not self._fresh:
            return
        logprobs = None if self.params.logprobs is None else tuple(self._fresh_logprobs)
        self.deltas.append(Delta(self._fresh, tuple(self._fresh_ids), logprobs))
        self._fresh, self._fresh_ids, self._fresh_logprobs = "", [], []

    def fail(self, error: Exception) -> None:
        """End because of an error of its own."""
        self.give_up(error)
        self.completion.error, self.completion.finish_reason = error, "error"

    def give_up(self, error: BaseException) -> None:
        """End because of an error that is not its own: it struck a whole step."""
        self.error = error
        self.closed = True

    def count(self, n_tokens: int, seconds: float, in_prompt: bool) -> None:
        """Add a step's tokens and time to the timings."""
        t = self.completion.timings
        if in_prompt:
            t.n_prompt += n_tokens
            t.prompt_s += seconds
        else:
            t.n_decode += n_tokens
            t.decode_s += seconds
            t.n_passes += 1

    def count_reused(self) -> None:
        """Count the prompt's tokens that are in the cache, before any of them is computed."""
        if not self.is_lent and not self.completion.timings.n_prompt:
            self.completion.timings.n_reused = self.table.n_tokens

    def _keep_first(self) -> None:
        p = self.params
        self._n_keep = len(self.ids) if p.n_keep < 0 else p.n_keep
        n_pending = len(self.ids) - self.table.n_tokens
        if not p.context_shift:
            return
        if self._n_keep + SLOTS >= self._n_ctx:
            raise ContextError(
                f"keeping the first {self._n_keep} tokens of a context of {self._n_ctx} leaves no"
                f" room to evict {SLOTS} of them"
            )
        n_min = min(self.table.n_tokens, self._n_keep + SLOTS) + n_pending
        if n_min > self._n_ctx:
            raise ContextError(f"that makes {n_min} tokens, more than the context of {self._n_ctx}")

    def _forget(self, n_shown: int) -> None:
        """Drop tokens and text that are older than n_ctx tokens."""
        done = self.completion
        self._n_shown.append(n_shown)
        if len(self._n_shown) > self._n_ctx:
            del done.token_ids[0]
            if done.logprobs:
                del done.logprobs[0]
            done.text = done.text[self._n_shown.popleft() :]

    def _finish(self, reason: str) -> None:
        """End, and show the text that the decoder and the stop texts still hold back."""
        text, stop = self._stop.feed(self._decoder.flush())
        self._show(text)
        if stop:
            reason, self.completion.stop_reason = "stop", stop
        else:
            self._show(self._stop.flush())
        self.completion.finish_reason = reason

    def _show(self, text: str) -> None:
        self._fresh += text
        self.completion.text += text
