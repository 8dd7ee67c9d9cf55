"""Context: tokens whose keys and values are in the cache, to be edited and continued."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
from lariat.cache.blocks import BlockTable
from lariat.cache.kv_storage import Stored
from lariat.checks import as_index, check_path, check_type
from lariat.errors import ContextError
from lariat.formats import context_file
from lariat.runtime.edits import Edits
from lariat.runtime.order import Order
from lariat.runtime.placed import Chooser, Placeable, Placed, choose, rearranged
from lariat.runtime.renewal import Renewal
from lariat.runtime.request import Request
from lariat.runtime.runner import NO_ROOM, Runner
from lariat.tokenizers.tokenizer import Tokenizer

_Result = TypeVar("_Result")


class Context:
    """Tokens in the KV cache; `LLM.context` makes an empty one.

    Positions are always 0 to n - 1 in the order of the tokens, after any edit. With the `raw` cache
    an edit changes a list of numbers; with `roped` the keys of every token whose position changes
    are rotated again. Neither recomputes anything: keys and values above the first layer still
    carry what their tokens saw when they were computed.

    Text that is put behind other text continues it, and has the tokens that both have as one text:
    SentencePiece's blank in front of a text comes only where nothing stands before it, or a special
    token; with byte-level BPE the tokens of the last word before may be replaced. No end token
    (EOS) is added. With `parse_special` control tokens that are written in the text become those
    tokens.

    A method that raises leaves the context as it was: `ContextError` for things that do not fit,
    IndexError for places outside of it, ValueError for bad token ids and after `close`. While a
    stream writes the context, nothing else may change it. Close it, or use it in a `with`
    statement, to give its blocks back.
    """

    def __init__(self, runner: Runner, tokenizer: Tokenizer) -> None:
        """Use `LLM.context`."""
        self._runner, self._tokenizer = runner, tokenizer
        self._table = runner.new_table()
        # All tokens. The last ones may not be computed yet, such as the last one of a stream.
        self._ids: list[int] = []
        self._edits = Edits(partial(_text_of, tokenizer))
        self._placed: list[Placed] = []  # documents in which the text behind them is to choose
        self._half_edited = False  # tokens, table and keys may not agree
        self._writer: Request | None = None
        self._closed = False

    @property
    def tokens(self) -> list[int]:
        """Token ids, a copy."""
        return list(writer.ids if (writer := self._writer) else self._ids)

    @property
    def positions(self) -> np.ndarray:
        """The position of each token, int32 [n]."""
        return np.arange(len(self), dtype=np.int32)

    @property
    def nbytes(self) -> int:
        """Bytes of the cache blocks it refers to, each counted once, shared with others or not."""
        return len(np.unique(self._table.segments[:, 0])) * self._runner.cache.block_bytes

    def __len__(self) -> int:
        return len(writer.ids if (writer := self._writer) else self._ids)

    def __repr__(self) -> str:
        return f"<Context of {len(self)} tokens in {len(self._table.segments)} segments>"

    def append(
        self,
        what: str | list[int] | Context | Placeable,
        *,
        recompute: str | int | Chooser = "auto",
        parse_special: bool = False,
    ) -> int:
        """Add text, token ids, another context's tokens or a chunk of a library at the end; see
        `insert`."""
        return self.insert(len(self), what, recompute=recompute, parse_special=parse_special)

    def insert(
        self,
        at: int,
        what: str | list[int] | Context | Placeable,
        *,
        recompute: str | int | Chooser = "auto",
        parse_special: bool = False,
    ) -> int:
        """Put text, token ids, another context's tokens or a chunk before token `at`.

        Text and ids are computed with the tokens before `at` as their context: they do not see
        those behind, and those behind, computed earlier, did not see them. Text gets the model's
        first token (BOS) only in an empty context, and continues what stands before it: the last
        word before `at` is tokenized anew where the text changes it, so the context may grow by
        fewer tokens than are computed.

        Another context's tokens bring their keys and values along: by reference to its blocks with
        `raw`, as rotated copies with `roped`. The other context stays as it is.

        A chunk (`raw` only) comes along by reference to its file, in an empty context with the BOS
        that it was computed behind. Elsewhere its tokens have not seen the tokens before them, so
        some are computed anew, as `recompute` says: "none", "all", a number of first tokens (EPIC,
        arXiv 2410.15332), or a `Recompute`. With "auto" the text behind the chunks decides, when it
        is computed. Tokens that another text before it changes are computed in any case.

        Returns how many tokens were computed.
        """
        if isinstance(what, Context):
            self._insert_context(at, what)
            return 0
        if hasattr(what, "plan"):
            return self._place(at, what, recompute)
        if not isinstance(what, str):
            what = self._runner.token_ids(what)
        with self._runner.exclusive:
            self._begin_edit()
            n = len(self._ids)
            self._check_place(at, n)
            n_kept, ids = self._ids_at(at, what, parse_special)
            self._check_length(n_kept + len(ids) + n - at)
            if at == n and any(one.chooser for one in self._placed):
                self._wait(n_kept, ids)
                return len(ids)
            self._settle()
            head = self._table.fork()
            try:
                head.truncate(n_kept)
                self._runner.compute(head, ids)
                rows = np.concatenate([head.segments, self._table.cut(at, n)])
                order: Order = [(0, n_kept), len(ids), (at, n)]
                before = self._ids
                self._assign(rows, [*before[:n_kept], *ids, *before[at:]], order)
            finally:
                head.clear()
            self._runner.cache.give_back(self._table)
            self._edits.delete(n_kept, at, before)
            self._edits.insert(n_kept, ids, [*before[:n_kept], *before[at:]])
        return len(ids)

    def truncate(self, n: int) -> None:
        """Keep only the first `n` tokens."""
        self.delete(n, len(self))

    def delete(self, start: int, stop: int) -> None:
        """Take out the tokens from `start` to before `stop`; those behind move up."""
        with self._runner.exclusive:
            self._begin_edit()
            n = len(self._ids)
            self._check_range(start, stop, n)
            if stop < n:
                self._settle()
            n_cached = self._table.n_tokens  # an uncomputed end may be what is deleted
            n_head = min(start, n_cached)
            if stop == n:  # where no token can follow, all are computed anew when one is added
                n_head = self._runner.cache.n_continued(self._table, n_head)
            keep = [(0, n_head), (stop, n_cached)]
            rows = np.concatenate([self._table.cut(*piece) for piece in keep])
            before = self._ids
            self._assign(rows, before[:start] + before[stop:], [(0, start), (stop, n)])
            self._edits.delete(start, stop, before)

    def move(self, start: int, stop: int, to: int) -> None:
        """Move the tokens from `start` to before `stop`, so that the first of them is token `to`.

        `to` is from 0 to n - (stop - start).
        """
        with self._runner.exclusive:
            self._begin_edit()
            n = len(self._ids)
            self._check_range(start, stop, n)
            self._check_place(to, n - (stop - start))
            self._settle()
            if to <= start:
                order = [(0, to), (start, stop), (to, start), (stop, n)]
            else:
                behind = to + stop - start
                order = [(0, start), (stop, behind), (start, stop), (behind, n)]
            rows = np.concatenate([self._table.cut(*piece) for piece in order])
            before = self._ids
            self._assign(rows, [i for a, b in order for i in before[a:b]], order)
            self._edits.move(start, stop, to, before)

    def recompute(self, ranges: Sequence[tuple[int, int]]) -> int:
        """Compute tokens anew, so that they have seen all that stands before them now.

        ranges: (start, stop) in ascending order, without overlap. Other tokens keep what they saw.
        Positions, and blocks that are shared with others, stay as they are. Returns how many tokens
        were computed. IndexError for ranges of another form.
        """
        with self._runner.exclusive:
            self._begin_edit()
            ends = [0]
            for start, stop in ranges:
                self._check_range(start, stop, len(self._ids))
                if start < ends[-1]:
                    raise IndexError(f"the range {start} to {stop} is not behind the one before it")
                ends.append(stop)
            self._settle()
            self._runner.recompute(self._table, self._ids, ranges)
        return sum(stop - start for start, stop in ranges)

    def repair(self, *, share: float = 0.1) -> int:
        """Compute anew the tokens that recall what was edited before them.

        Those are later sentences that share rare words with an edited one, then tokens right behind
        the edits; see `lariat.runtime.edits`. They make up at most `share` (0 to 1) of the tokens
        behind the first edit. All edits count that were made since
        the context was made, loaded or repaired. Returns how many tokens were computed, 0 if
        nothing recalls an edit. ValueError for another share.
        """
        if not isinstance(share, int | float) or not 0 <= share <= 1:
            raise ValueError(f"share is {share!r}, expected a number from 0 to 1")
        with self._runner.exclusive:
            self._begin_edit()
            self._settle()
            ranges = self._edits.recalled(self._ids, share)
            self._runner.recompute(self._table, self._ids, ranges)
            self._edits.clear()
        return sum(stop - start for start, stop in ranges)

    def fork(self) -> Context:
        """Make a context of the same tokens that shares the blocks.

        Later tokens of the one do not appear in the other: a block that both hold is copied before
        either writes to it. Possible while a stream writes, between two of its pieces.
        """
        other = Context(self._runner, self._tokenizer)
        with self._runner.exclusive:
            self._begin()
            other._table.assign(self._table.segments)
            other._ids, other._placed = self.tokens, list(self._placed)
            other._edits = self._edits.copy()
        return other

    def compact(self) -> int:
        """Copy half-empty blocks together; returns how many blocks became free.

        Edits leave unused slots in blocks. Keys and values are copied as they are, so nothing else
        changes. Blocks that another context holds too stay where they are, and so do all with a
        cache type by channel.
        """
        with self._runner.exclusive:
            self._begin_edit()
            self._settle()
            return self._within_pool(lambda: self._runner.cache.compact(self._table))

    def logits(self, what: str | list[int], *, parse_special: bool = False) -> np.ndarray:
        """Logits after each of these tokens, were they appended: float32 [n, n_vocab].

        Tokens of the last word that a text changes come with it, as in `insert`. The context does
        not change. LariatError if they are not finite.
        """
        if not isinstance(what, str):
            what = self._runner.check_ids(what)
        with self._runner.exclusive:
            self._begin_edit()
            n_kept, ids = self._ids_at(len(self._ids), what, parse_special)
            ids = self._runner.check_ids(ids)
            self._check_length(n_kept + len(ids))
            self._settle()
            scratch = self._table.fork()
            try:
                scratch.truncate(n_kept)
                self._renew(scratch, [*self._ids[:n_kept], *ids])
                return self._runner.compute(scratch, ids, "all")
            finally:
                scratch.clear()

    def save(self, path: str | os.PathLike[str], *, note: str = "") -> None:
        """Write tokens, keys and values to a safetensors file; see `lariat.formats.context_file`.

        `note` goes along as it is, for `context_file.note`. The file appears whole or not at all.
        `ContextError` if it cannot be written.
        """
        path = check_path("path", path)
        check_type("note", note, str)
        with self._runner.exclusive:
            self._begin_edit()
            self._settle()
            stored = self._runner.cache.read(self._table)
            tokens = np.array(self._ids, np.int32)
            segments = self._table.segments[:, :3].copy()
            segments[:, 0] = np.unique(segments[:, 0], return_inverse=True)[1]
            saved = context_file.Saved(tokens, segments, *stored)
            signature = self._runner.signature()
        context_file.save(path, signature, saved, note)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Replace everything by the contents of a file that `save` wrote.

        `ContextError` for a damaged file, for one of another model, cache strategy, type, RoPE or
        version, and where it does not fit; OSError if there is no such file.
        """
        path = check_path("path", path)
        saved = context_file.load(path, self._runner.signature())
        ids = self._ids_of(path, saved.tokens.tolist())
        cache = self._runner.cache
        with self._runner.exclusive:
            self._begin_edit()
            self._check_length(len(ids))
            held = self._table.segments[:, 0]
            counts = np.bincount(held, minlength=cache.pool.n_blocks)
            freed = sum(cache.pool.n_holders(b) == counts[b] for b in np.unique(held).tolist())
            n_blocks = int(saved.segments[:, 0].max(initial=-1)) + 1
            if n_blocks > cache.pool.n_free + freed:
                raise ContextError(NO_ROOM)
            stored = Stored(*saved[2:])
            if not cache.fits(len(ids), n_blocks, stored):
                raise ContextError(f"{path}: is damaged: its keys and values have another shape")
            self._table.clear()
            self._ids, self._placed = [], []
            self._edits.clear()
            slots = self._table.place(saved.segments)
            cache.write(slots, stored)
            self._ids = ids

    def close(self) -> None:
        """Give the blocks back. Closing twice does nothing; a stream that writes it is ended."""
        if self._closed:
            return
        self._closed = True
        if self._writer:
            self._runner.cancel(self._writer)
        self._runner.discard(self._table)

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_closed"):
            self.close()

    # ---- lending it to a stream; the runner's lock is held ----

    def lend(self, request: Request) -> None:
        """Let `request`, whose ids are the new ones, continue this context.

        Its tokens that the request replaces go. With nothing new to compute, the last token is
        computed again for its logits.
        """
        self._check_idle()
        n_kept = self._kept_by(request)
        ids = [*self._ids[:n_kept], *request.ids]
        if not ids:
            raise ValueError("the prompt is empty")
        if not request.params.context_shift:
            self._check_length(len(ids))
        # Tokens that are known but no longer in the table are computed when they are needed, so
        # the context stays whole if the request is refused here.
        self._shorten(self._table, min(n_kept, len(ids) - 1))
        renewal: Renewal | None = None
        if self._placed:
            start = time.perf_counter()
            chosen = choose(self._runner, self._table, ids, self._placed)
            request.count(chosen.n_tried, time.perf_counter() - start, in_prompt=True)
            if chosen.rounds:
                renewal = self._within_pool(
                    lambda: Renewal(self._table, chosen.rounds, self._forget_placed)
                )
            else:
                self._forget_placed()
        try:
            request.lend(self._table, ids, self.take_back, renewal)
        except BaseException:
            if renewal is not None:
                renewal.clear()
            raise
        self._writer = request

    def read(self, request: Request) -> None:
        """Append a request's prompt, of which nothing will be continued."""
        with self._runner.exclusive:
            self._begin_edit()
            n_kept = self._kept_by(request)
            self._check_length(n_kept + len(request.ids))
            head = self._table.fork()
            try:
                self._shorten(head, n_kept)
                ids = [*self._ids[:n_kept], *request.ids]
                self._renew(head, ids)
                self._runner.compute(head, ids[head.n_tokens :])
                self._assign(head.segments, ids)
            finally:
                head.clear()
            self._runner.cache.give_back(self._table)

    def _forget_placed(self) -> None:
        """The text behind the documents has chosen."""
        self._placed = []

    def _renew(self, table: BlockTable, ids: list[int]) -> None:
        """Compute anew in `table`, of the tokens `ids`, what the text behind the documents
        chooses."""
        rounds = choose(self._runner, table, ids, self._placed).rounds
        self._runner.recompute(table, ids, *rounds)

    def _kept_by(self, request: Request) -> int:
        """How many tokens stay in front of a request."""
        n_kept = len(self._ids) - len(request.replaced)
        if self._ids[n_kept:] != request.replaced:
            raise ContextError("the context was changed while its prompt was tokenized")
        return n_kept

    def check_runner(self, runner: Runner) -> None:
        """Raise `ContextError` if it belongs to another model than `runner` runs."""
        if runner is not self._runner:
            raise ContextError("the context belongs to another LLM")

    def take_back(self, request: Request) -> None:
        """The request is over: its tokens stay."""
        if self._writer is request:
            # Evictions, and text that the prompt replaced, move places from here on.
            both = enumerate(zip(self._ids, request.ids, strict=False))
            self._edits.keep(next((i for i, (old, new) in both if old != new), len(request.ids)))
            self._ids, self._writer = request.ids, None

    # ---- below: shared by the methods; the runner's lock is held ----

    def _begin(self) -> None:
        """Have blocks that others gave up, and this context as its last edit left it."""
        self._runner.sweep()
        self._check_usable()

    def _begin_edit(self) -> None:
        self._begin()
        self._check_idle()

    def _check_usable(self) -> None:
        if self._closed:
            raise ValueError("the context is closed")
        if self._half_edited:
            raise ContextError(
                "an exception struck in the midst of an edit of this context: close it"
            )

    def _check_idle(self) -> None:
        self._check_usable()
        if self._writer is not None:
            raise ContextError("a stream is writing this context: finish or close it first")

    def _ids_at(self, at: int, what: str | list[int], parse_special: bool) -> tuple[int, list[int]]:
        """How many tokens before token `at` stay, and the ids that text (or ids) becomes there."""
        if not isinstance(what, str):
            return at, what
        return self._tokenizer.encode_behind(
            self._ids[:at], what, add_bos=not self._ids, parse_special=parse_special
        )

    def _insert_context(self, at: int, other: Context) -> None:
        other.check_runner(self._runner)
        with self._runner.exclusive:
            self._begin_edit()
            other._check_idle()
            self._settle()
            other._settle()
            n = len(self._ids)
            self._check_place(at, n)
            self._check_length(n + len(other._ids))
            head, tail = self._table.cut(0, at), self._table.cut(at, n)
            rows = np.concatenate([head, other._table.segments, tail])
            joined = rearranged(self._placed, [(0, at), len(other), (at, n)])
            joined += rearranged(other._placed, [at, (0, len(other))])
            before = self._ids
            self._assign(rows, before[:at] + other._ids + before[at:])
            self._placed = sorted(joined, key=lambda one: one.start)
            self._edits.insert(at, other._ids, before)

    def _place(self, at: int, document: Placeable, recompute: str | int | Chooser) -> int:
        """Carry out a plan of placement; returns how many tokens were computed."""
        runner = self._runner
        with self._runner.exclusive:
            self._begin_edit()
            self._settle()
            n = len(self._ids)
            self._check_place(at, n)
            before = self._ids[:at]
            plan = document.plan(
                runner,
                before,
                is_empty=not n,
                continues=self._tokenizer.is_continued(before),
                recompute=recompute,
            )
            ids, n_first = plan.ids, plan.n_recompute
            self._check_length(n + len(ids))
            head, placed = self._table.fork(), runner.new_table()
            try:
                head.truncate(at)
                runner.compute(head, ids[:n_first])
                if n_first < len(ids):
                    placed = self._within_pool(
                        lambda: runner.cache.place(plan.blocks, runner.n_threads)
                    )
                rest = placed.cut(placed.n_tokens - len(ids) + n_first, placed.n_tokens)
                rows = np.concatenate([head.segments, rest, self._table.cut(at, n)])
                before = self._ids
                self._assign(rows, [*before[:at], *ids, *before[at:]], [(0, at), len(ids), (at, n)])
                self._placed = sorted([*self._placed, plan.placed(at)], key=lambda one: one.start)
                self._edits.insert(at, ids, before)
            finally:
                head.clear()
                placed.clear()
        return n_first

    def _wait(self, n_kept: int, ids: list[int]) -> None:
        """Put `ids` behind the first `n_kept` tokens, to be computed with the next ones: text that
        stands between documents is not yet the one that chooses in them."""
        self._shorten(self._table, n_kept)
        order: Order = [(0, n_kept), len(ids)]
        self._ids, self._placed = [*self._ids[:n_kept], *ids], rearranged(self._placed, order)

    def _shorten(self, table: BlockTable, n: int) -> None:
        """Keep at most n tokens of a table, or none if nothing could be computed behind them."""
        table.truncate(self._runner.cache.n_continued(table, min(table.n_tokens, n)))

    def _settle(self) -> None:
        """Compute the tokens that are known but not computed."""
        n = self._table.n_tokens
        if n < len(self._ids):
            try:
                self._runner.compute(self._table, self._ids[n:])
            except BaseException:
                self._table.truncate(n)
                raise

    def _assign(self, rows: np.ndarray, ids: list[int], order: Order = ()) -> None:
        """Make `rows` the segments, and `ids` the tokens; `order` as for `rearranged`.

        An exception may strike at any line. Raw keys stay untouched, so the old segments then hold
        again. Roped keys may be rotated or not: the context cannot be used any more.
        """
        runner, before = self._runner, self._table.segments.copy()
        self._half_edited = True
        try:
            self._within_pool(lambda: runner.cache.edit(self._table, rows, runner.n_threads))
            self._ids, self._placed = ids, rearranged(self._placed, order)
        except (ContextError, MemoryError):  # raised before anything changes
            self._half_edited = False
            raise
        except BaseException:
            if runner.settings.cache == "raw":
                self._table.restore(before)
                self._half_edited = False
            raise
        self._half_edited = False

    def _within_pool(self, edit: Callable[[], _Result]) -> _Result:
        try:
            return edit()
        except IndexError:
            raise ContextError(NO_ROOM) from None

    def _ids_of(self, path: str | os.PathLike[str], ids: list[int]) -> list[int]:
        """Token ids that a file holds, checked."""
        try:
            return self._runner.check_ids(ids) if ids else []
        except ContextError:
            raise
        except ValueError as error:
            raise ContextError(f"{path}: is damaged: {error}") from None

    def _check_length(self, n: int) -> None:
        n_ctx = self._runner.n_ctx
        if n > n_ctx:
            raise ContextError(f"that makes {n} tokens, more than the context of {n_ctx}")

    def _check_range(self, start: int, stop: int, n: int) -> None:
        _check_index(start)
        _check_index(stop)
        if not 0 <= start <= stop <= n:
            raise IndexError(f"tokens {start} to {stop} of a context of {n}")

    def _check_place(self, at: int, n: int) -> None:
        _check_index(at)
        if not 0 <= at <= n:
            raise IndexError(f"place {at} is not within 0 to {n}")


def _text_of(tokenizer: Tokenizer, token_id: int) -> str:
    return tokenizer.decode_token(token_id).decode("utf-8", "replace")


def _check_index(i: object) -> None:
    if isinstance(i, bool) or as_index(i) is None:
        raise ValueError(f"{i!r} is not the number of a token in a context")
