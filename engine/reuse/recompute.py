"""Which tokens of placed chunks are computed anew.

A chunk that was computed alone has not seen what stands before it, and its first tokens are sinks
of attention (arXiv 2309.17453) in the midst of the context. Two remedies cost little: the passage
that the question is about is computed in its place, and then so are the chunk's first tokens (EPIC,
arXiv 2410.15332). In this order the passage still has the sinks that the rest of the chunk had, and
the question meets none. The passage is found by the words of the question, which costs no forward
pass, or by how likely the question is behind each chunk alone. docs/cache-measurements.md has what
each is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from lariat.cache.blocks import BlockTable
from lariat.checks import as_index
from lariat.errors import ContextError
from lariat.runtime.batch import split
from lariat.runtime.placed import Choice, Chooser, Placed
from lariat.runtime.runner import NO_ROOM, Runner
from lariat.runtime.sampler import log_softmax

_LENGTH = 64  # tokens of the passage by which a document is judged
_MAX_WORDS = 64  # of a question: its rarest ones, and of equals the last
_MAX_QUESTION = 64  # tokens of a question whose likelihood is asked for: its last ones
_ROWS = 64  # logits of a pass: they are float32 [n_rows, n_vocab]
_COVERED = 0.25  # what a term that a passage has counts for the next passage


@dataclass(frozen=True)
class Recompute:
    """The tokens of chunks to compute anew once the question, the text behind them, is known.

    first       first tokens of each chunk, computed when the passages are
    passages    chunks in which a passage is computed anew: those that the question is about
    length      tokens of a passage, around the words that it has of the question; None: the chunk
    by          "words": chunks are found by the words that they share with the question, the rare
                ones first; "likelihood": by how likely the question (its last 64 tokens) is behind
                each chunk alone
    candidates  with "likelihood", how many chunks are tried, the best ones by words; None: all

    A chunk that stands where it was computed is exact, and nothing in it is computed.
    """

    first: int = 0
    passages: int = 0
    length: int | None = 64
    by: str = "words"
    candidates: int | None = None

    def __post_init__(self) -> None:
        for name in ("first", "passages", "length", "candidates"):
            value = getattr(self, name)
            may_be_none = name in ("length", "candidates")
            n = None if isinstance(value, bool) else as_index(value)
            if not (value is None and may_be_none) and (n is None or n < 0):
                raise ValueError(f"{name} is {value!r}, expected a number of 0 or more")
        if self.by not in ("words", "likelihood"):
            raise ValueError(f"by is {self.by!r}, expected 'words' or 'likelihood'")

    def choose(
        self,
        runner: Runner,
        table: BlockTable,
        ids: Sequence[int],
        documents: Sequence[Placed],
        question: Sequence[int],
    ) -> Choice:
        """See `lariat.runtime.placed.Chooser`."""
        spans = [(one.start, one.stop) for one in documents]
        order, begins, n_tried = list(range(len(spans))), [0] * len(spans), 0
        if self.passages:
            n_best = max(self.passages, self.candidates or 0)
            order, begins = ranked(ids, spans, question, self.length, n_best)
        if self.by == "likelihood" and self.passages and len(question) > 1:
            tried, last = order[: self.candidates], question[-_MAX_QUESTION:]
            surprise = question_nll(runner, table, [spans[i] for i in tried], last)
            best = [i for _, i in sorted(zip(surprise, tried, strict=True))]
            order, n_tried = best + order[len(tried) :], len(tried) * len(last)
        ranges, firsts = [], []
        for rank, i in enumerate(order):
            start, stop = spans[i]
            sink = documents[i].sink
            if sink is not None and start == len(sink) and tuple(ids[:start]) == sink:
                continue
            if rank < self.passages and self.length is None:
                ranges.append((start, stop))
                continue
            firsts.append((start, min(stop, start + self.first)))
            if rank < self.passages and self.length:
                ranges.append((begins[i], min(stop, begins[i] + self.length)))
        # Passages first: they have their sinks as long as they are computed.
        return Choice(ranges, n_tried, firsts)


AUTO = Recompute(first=4, passages=3, length=64)
_WORDS: dict[str, Recompute | int | None] = {"auto": AUTO, "none": 0, "all": None}


def recompute_of(value: object) -> tuple[int | None, Chooser | None]:
    """First tokens that are computed at once (None: all), and who chooses later.

    `value` is "auto", "none", "all", a number of first tokens, or a `Chooser`. ValueError for
    others.
    """
    if isinstance(value, str) and value in _WORDS:
        value = _WORDS[value]
        if value is None:
            return None, None
    n = None if isinstance(value, bool) else as_index(value)
    if n is not None and n >= 0:
        return n, None
    if n is None and callable(getattr(value, "choose", None)):
        return 0, cast(Chooser, value)
    raise ValueError(
        f"recompute is {value!r}, expected 'auto', 'none', 'all', a number of first tokens or a "
        "Recompute"
    )


def ranked(
    ids: Sequence[int],
    spans: Sequence[tuple[int, int]],
    question: Sequence[int],
    length: int | None = None,
    n_best: int | None = None,
) -> tuple[list[int], list[int]]:
    """Order documents by the words that they share with a question.

    Words are token ids and pairs of neighbours. Each counts by how few documents have it (the IDF
    of BM25); a document counts as its best `length` tokens do (None: 64). The next best is the one
    that adds most: words that are covered count less.

    spans: (start, stop) of each document in `ids`. Returns the numbers of documents, the `n_best`
    ones first (None: all in this order), and where in `ids` the best `length` tokens of each begin,
    its words in their middle.
    """
    width = max(1, length or _LENGTH)
    tokens = np.asarray(ids, np.int64)
    texts = [_with_pairs(tokens[start:stop]) for start, stop in spans]
    asked = _with_pairs(np.asarray(question, np.int64)).T.ravel()[::-1]
    words, firsts = np.unique(asked, return_index=True)
    words = words[np.argsort(firsts)]  # the last ones of the question first
    words = words[words >= 0]
    n_having = np.sum([np.isin(words, text) for text in texts], axis=0)  # [n_words]
    weights = np.log1p((len(spans) - n_having + 0.5) / (n_having + 0.5)) * (n_having > 0)
    rarest = np.argsort(-weights, kind="stable")[:_MAX_WORDS]
    words, weights = words[rarest], weights[rarest]
    # Where each document has each word, bool [n_words, n_tokens]; a pair is where it begins.
    having = [(words[:, None, None] == text).any(axis=1) for text in texts]
    within = [_within(rows, width) for rows in having]
    begins = [
        start + _begin(rows, weights, int(np.argmax(weights @ places)), width)
        for (start, _), rows, places in zip(spans, having, within, strict=True)
    ]
    order: list[int] = []
    left = list(range(len(spans)))
    while left and (n_best is None or len(order) < n_best):
        best = left.pop(int(np.argmax([(weights @ within[i]).max() for i in left])))
        order.append(best)
        covered = within[best][:, np.argmax(weights @ within[best])]
        weights = np.where(covered, weights * _COVERED, weights)
    return order + left, begins


def _with_pairs(ids: np.ndarray) -> np.ndarray:
    """Token ids, and below them a number for each token and the next one: int64 [2, n].

    The last token has no next one; its number is -1.
    """
    return np.stack([ids, np.append(ids[:-1] << 32 | ids[1:], np.full(min(1, len(ids)), -1))])


def _within(having: np.ndarray, width: int) -> np.ndarray:
    """Whether `width` tokens from each place on have a word, bool [n_words, n_places]."""
    n = having.shape[1]
    sums = np.concatenate([np.zeros((len(having), 1), int), having.cumsum(axis=1)], axis=1)
    firsts = np.arange(max(1, n - width + 1))
    return sums[:, np.minimum(firsts + width, n)] > sums[:, firsts]


def _begin(having: np.ndarray, weights: np.ndarray, place: int, width: int) -> int:
    """Where `width` tokens begin that have the words of those from `place` on in their middle."""
    weight = weights @ having[:, place : place + width]
    if not weight.sum():
        return 0
    middle = place + int(weight @ np.arange(len(weight)) / weight.sum())
    return int(np.clip(middle - width // 2, 0, max(0, having.shape[1] - width)))


def question_nll(
    runner: Runner,
    table: BlockTable,
    spans: Sequence[tuple[int, int]],
    question: Sequence[int],
) -> list[float]:
    """How unlikely a question is behind each document alone, nats, all in one batch.

    A document alone is a block table of its segments: with raw keys nothing is copied.
    """
    tables: list[BlockTable] = []
    try:
        for start, stop in spans:
            tables.append(runner.new_table())
            tables[-1].assign(table.cut(start, stop))
        if sum(one.n_new_blocks(len(question)) for one in tables) > runner.cache.pool.n_free:
            raise ContextError(NO_ROOM)
        parts = [runner.part(one, question, "all") for one in tables]
        # The prediction behind a question's last token says nothing, and goes in the end.
        following = np.tile(np.roll(question, -1), len(spans))
        found: list[float] = []
        for group in split(parts, min(_ROWS, runner.n_ubatch)):
            rows = log_softmax(runner.forward(group))
            ids = following[len(found) : len(found) + len(rows)]
            found += (-rows[np.arange(len(rows)), ids]).tolist()
        return np.reshape(found, (len(spans), -1))[:, :-1].sum(axis=1).tolist()
    finally:
        for one in tables:
            one.clear()
