"""Context: tokens whose keys and values are in the cache, as something to edit and continue."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from lariat.cache.blocks import BlockTable
from lariat.cache.kv_storage import Stored
from lariat.errors import ContextError
from lariat.formats import context_file
from lariat.formats.chunk_file import StoredChunk
from lariat.runtime.batch import split
from lariat.runtime.sampler import check_finite

if TYPE_CHECKING:
    from lariat.llm import LLM
    from lariat.runtime.request import Request

_Result = TypeVar("_Result")
_NO_ROOM = (
    "the KV cache has too few free blocks: close or compact contexts, or load with more n_ctx"
)


class Context:
    """Tokens in the cache of an LLM; `LLM.context` makes an empty one.

    Positions are always 0 to n - 1 in the order of the tokens, whatever was edited. With the `raw`
    cache an edit changes a list of numbers; with `roped` the keys of every token whose position
    changes are rotated again. Neither computes anything anew: keys and values above the first layer
    still carry what their tokens saw when they were computed.

    Every method leaves the context as it was when it raises: `ContextError` for what does not fit,
    IndexError for places outside of it, ValueError for what is no token and after `close`. While a
    stream writes the context, nothing else may change it. Close it, or use it in a `with`
    statement, to give its blocks back.
    """

    def __init__(self, llm: LLM) -> None:
        """Use `LLM.context`."""
        self._llm = llm
        self._segments = llm.new_table()
        # All tokens. The last ones may not be computed yet: what a stream sampled last, say.
        self._ids: list[int] = []
        self._writer: Request | None = None
        self._closed = False

    @property
    def tokens(self) -> list[int]:
        """Token ids, a copy."""
        return list(self._writer.ids if self._writer else self._ids)

    @property
    def positions(self) -> np.ndarray:
        """The position of each token, int32 [n]."""
        return np.arange(len(self), dtype=np.int32)

    @property
    def nbytes(self) -> int:
        """Bytes of the cache blocks it refers to, each counted once, shared with others or not."""
        return len(np.unique(self._segments.segments[:, 0])) * self._llm._cache.block_bytes

    def __len__(self) -> int:
        return len(self._writer.ids if self._writer else self._ids)

    def __repr__(self) -> str:
        return f"<Context of {len(self)} tokens in {len(self._segments.segments)} segments>"

    def append(
        self, what: str | list[int] | Context | StoredChunk, *, recompute: int | None = 0
    ) -> int:
        """Add text, token ids, another context's tokens or a chunk of a library at the end; see
        `insert`."""
        return self.insert(len(self), what, recompute=recompute)

    def insert(
        self, at: int, what: str | list[int] | Context | StoredChunk, *, recompute: int | None = 0
    ) -> int:
        """Put text, token ids, another context's tokens or a chunk before token `at`.

        Text and ids are computed with the tokens before `at` as their context: they do not see
        those behind, and those behind, computed earlier, did not see them. Text gets the model's
        first token (BOS) only in an empty context.

        Another context's tokens bring their keys and values along: by reference to its blocks with
        `raw`, as rotated copies with `roped`. The other context stays as it is.

        A chunk (`raw` only) comes along by reference to its file, in an empty context with the BOS
        that it was computed behind. Elsewhere its tokens have not seen what stands before them;
        `recompute` first ones of them (None: all) are computed anew, which then have (EPIC, arXiv
        2410.15332).

        Returns how many tokens were computed.
        """
        if isinstance(what, Context):
            self._insert_context(at, what)
            return 0
        if isinstance(what, StoredChunk):
            return self._insert_chunk(at, what, recompute)
        ids = self._llm.tokenize(what, add_bos=not len(self)) if isinstance(what, str) else what
        ids = self._llm._checked_ids(ids) if len(ids) else []
        with self._editing():
            self._settle()
            n = len(self._ids)
            self._check_place(at, n)
            self._check_length(n + len(ids))
            head = self._segments.fork()
            try:
                head.truncate(at)
                self._compute(head, ids)
                rows = np.concatenate([head.segments, self._segments.cut(at, n)])
                self._assign(rows, [*self._ids[:at], *ids, *self._ids[at:]])
            finally:
                head.clear()
        return len(ids)

    def truncate(self, n: int) -> None:
        """Keep only the first `n` tokens."""
        self.delete(n, len(self))

    def delete(self, start: int, stop: int) -> None:
        """Take out the tokens from `start` to before `stop`; those behind move up."""
        with self._editing():
            n = len(self._ids)
            self._check_range(start, stop, n)
            if stop < n:
                self._settle()
            n_cached = self._segments.n_tokens  # an uncomputed end may be what is deleted
            keep = [(0, min(start, n_cached)), (stop, n_cached)]
            rows = np.concatenate([self._segments.cut(*piece) for piece in keep])
            self._assign(rows, self._ids[:start] + self._ids[stop:])

    def move(self, start: int, stop: int, to: int) -> None:
        """Move the tokens from `start` to before `stop`, so that the first of them is token `to`.

        `to` is from 0 to n - (stop - start).
        """
        with self._editing():
            n = len(self._ids)
            self._check_range(start, stop, n)
            self._check_place(to, n - (stop - start))
            self._settle()
            if to <= start:
                order = [(0, to), (start, stop), (to, start), (stop, n)]
            else:
                behind = to + stop - start
                order = [(0, start), (stop, behind), (start, stop), (behind, n)]
            rows = np.concatenate([self._segments.cut(*piece) for piece in order])
            self._assign(rows, [i for a, b in order for i in self._ids[a:b]])

    def fork(self) -> Context:
        """Make a context of the same tokens that shares the blocks.

        What is written later in the one is not seen in the other: a block that both hold is copied
        before either writes to it. Possible while a stream writes, between two of its pieces.
        """
        other = Context(self._llm)
        with self._reading():
            other._segments.assign(self._segments.segments)
            other._ids = self.tokens
        return other

    def compact(self) -> int:
        """Copy what stands in half-empty blocks together; returns how many blocks became free.

        Edits leave unused slots in blocks. Keys and values are copied as they are, so nothing else
        changes. Blocks that another context holds too stay where they are, and so do all with a
        cache type by channel.
        """
        with self._editing():
            self._settle()
            return self._within_pool(lambda: self._llm._cache.compact(self._segments))

    def logits(self, what: str | list[int]) -> np.ndarray:
        """Logits after each of these tokens, were they appended: float32 [n, n_vocab].

        The context does not change. LariatError if they are not finite.
        """
        ids = self._llm.tokenize(what, add_bos=not len(self)) if isinstance(what, str) else what
        ids = self._llm._checked_ids(ids)
        with self._editing():
            self._settle()
            self._check_length(len(self._ids) + len(ids))
            scratch = self._segments.fork()
            try:
                return self._compute(scratch, ids, "all")
            finally:
                scratch.clear()

    def save(self, path: str | os.PathLike[str], *, note: str = "") -> None:
        """Write tokens, keys and values to a safetensors file; see `lariat.formats.context_file`.

        `note` goes along as it is, for `context_file.note`. The file appears whole or not at all.
        `ContextError` if it cannot be written.
        """
        with self._editing():
            self._settle()
            stored = self._llm._cache.read(self._segments)
            tokens = np.array(self._ids, np.int32)
            segments = self._segments.segments[:, :3].copy()
            segments[:, 0] = np.unique(segments[:, 0], return_inverse=True)[1]
            saved = context_file.Saved(tokens, segments, *stored)
            kind = self._llm.cache_kind()
        context_file.save(path, kind, saved, note)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Replace everything by what `save` wrote.

        `ContextError` for a damaged file, for one of another model, cache strategy, type, RoPE or
        version, and where it does not fit; OSError if there is no such file.
        """
        saved = context_file.load(path, self._llm.cache_kind())
        ids = self._ids_of(path, saved.tokens.tolist())
        cache = self._llm._cache
        with self._editing():
            self._check_length(len(ids))
            held = self._segments.segments[:, 0]
            counts = np.bincount(held, minlength=cache.pool.n_blocks)
            freed = sum(cache.pool.n_holders(b) == counts[b] for b in np.unique(held).tolist())
            n_blocks = int(saved.segments[:, 0].max(initial=-1)) + 1
            if n_blocks > cache.pool.n_free + freed:
                raise ContextError(_NO_ROOM)
            stored = Stored(*saved[2:])
            if not cache.fits(len(ids), n_blocks, stored):
                raise ContextError(f"{path}: is damaged: its keys and values have another shape")
            self._segments.clear()
            self._ids = []
            slots = self._segments.place(saved.segments)
            cache.write(slots, stored)
            self._ids = ids

    def close(self) -> None:
        """Give the blocks back. Closing twice does nothing; a stream that writes it is ended."""
        if self._closed:
            return
        self._closed = True
        if self._writer:
            self._llm._stop(self._writer)
        self._llm._discard(self._segments)

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_closed"):
            self.close()

    # ---- lending it to a stream; the LLM's lock is held ----

    def lend(self, sequence: Request) -> None:
        """Let `sequence`, whose ids are the new ones, go on where this context ends.

        With nothing new to compute, the last token is computed again for its logits.
        """
        self._check_idle()
        ids = [*self._ids, *sequence.ids]
        if not ids:
            raise ValueError("the prompt is empty")
        if not sequence.params.context_shift:
            self._check_length(len(ids))
        if self._segments.n_tokens == len(ids):
            self._segments.truncate(len(ids) - 1)
        sequence.lend(self._segments, ids, self.take_back)
        self._writer = sequence

    def take_back(self, sequence: Request) -> None:
        """The sequence is over: what it has written stays."""
        if self._writer is sequence:
            self._ids, self._writer = sequence.ids, None

    # ---- below: what the methods share; the LLM's lock is held ----

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._llm._exclusively():
            self._llm._check_open()
            self._llm._sweep()  # of what others gave up, so that its blocks are free
            self._check_usable()
            yield

    @contextmanager
    def _editing(self) -> Iterator[None]:
        with self._reading():
            self._check_idle()
            yield

    def _check_usable(self) -> None:
        if self._closed:
            raise ValueError("the context is closed")

    def _check_idle(self) -> None:
        self._check_usable()
        if self._writer is not None:
            raise ContextError("a stream is writing this context: finish or close it first")

    def _insert_context(self, at: int, other: Context) -> None:
        if other._llm is not self._llm:
            raise ContextError("the other context belongs to another LLM")
        with self._editing():
            other._check_idle()
            self._settle()
            other._settle()
            n = len(self._ids)
            self._check_place(at, n)
            self._check_length(n + len(other._ids))
            head, tail = self._segments.cut(0, at), self._segments.cut(at, n)
            rows = np.concatenate([head, other._segments.segments, tail])
            self._assign(rows, self._ids[:at] + other._ids + self._ids[at:])

    def _insert_chunk(self, at: int, chunk: StoredChunk, recompute: int | None) -> int:
        if recompute is not None and recompute < 0:
            raise ValueError(f"recompute is {recompute}, expected a number of tokens, or None")
        llm = self._llm
        chunk.check_signature(llm.cache_kind(len(chunk.sink) + len(chunk)))
        whole = self._ids_of(chunk.path, [*chunk.sink, *chunk.tokens])
        with self._editing():
            self._settle()
            n = len(self._ids)
            self._check_place(at, n)
            ids = whole[len(chunk.sink) :] if n else whole
            self._check_length(n + len(ids))
            is_there = self._ids[:at] in ([], chunk.sink)  # where it was computed
            n_first = len(ids) if recompute is None else 0 if is_there else min(recompute, len(ids))
            head, placed = self._segments.fork(), self._llm.new_table()
            try:
                head.truncate(at)
                self._compute(head, ids[:n_first])
                if n_first < len(ids):
                    placed = self._within_pool(lambda: llm._cache.place(chunk, llm.n_threads))
                rest = placed.cut(placed.n_tokens - len(ids) + n_first, placed.n_tokens)
                rows = np.concatenate([head.segments, rest, self._segments.cut(at, n)])
                self._assign(rows, [*self._ids[:at], *ids, *self._ids[at:]])
            finally:
                head.clear()
                placed.clear()
        return n_first

    def _settle(self) -> None:
        """Compute the tokens that are known but not computed."""
        n = self._segments.n_tokens
        if n < len(self._ids):
            try:
                self._compute(self._segments, self._ids[n:])
            except BaseException:
                self._segments.truncate(n)
                raise

    def _compute(self, segments: BlockTable, ids: list[int], wish: str = "none") -> np.ndarray:
        """Compute tokens behind `segments`, and return the logits wished for."""
        llm = self._llm
        if segments.n_new_blocks(len(ids)) > llm._cache.pool.n_free:
            raise ContextError(_NO_ROOM)
        groups = split([llm.chunk(segments, ids, wish)], llm.n_ubatch) if ids else []
        rows = [llm.forward(group).copy() for group in groups]
        for some in rows:
            check_finite(some)
        return np.concatenate(rows) if rows else np.zeros((0, llm.n_vocab), np.float32)

    def _assign(self, rows: np.ndarray, ids: list[int]) -> None:
        llm = self._llm
        self._within_pool(lambda: llm._cache.edit(self._segments, rows, llm.n_threads))
        self._ids = ids

    def _within_pool(self, edit: Callable[[], _Result]) -> _Result:
        try:
            return edit()
        except IndexError:
            raise ContextError(_NO_ROOM) from None

    def _ids_of(self, path: str | os.PathLike[str], ids: list[int]) -> list[int]:
        """Token ids that a file holds, checked."""
        try:
            return self._llm._checked_ids(ids) if ids else []
        except ContextError:
            raise
        except ValueError as error:
            raise ContextError(f"{path}: is damaged: {error}") from None

    def _check_length(self, n: int) -> None:
        if n > self._llm.n_ctx:
            raise ContextError(f"that makes {n} tokens, more than the context of {self._llm.n_ctx}")

    def _check_range(self, start: int, stop: int, n: int) -> None:
        if not 0 <= start <= stop <= n:
            raise IndexError(f"tokens {start} to {stop} of a context of {n}")

    def _check_place(self, at: int, n: int) -> None:
        if not 0 <= at <= n:
            raise IndexError(f"place {at} is not within 0 to {n}")
