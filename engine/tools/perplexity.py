"""Perplexity of a text, and how much the predictions of two runs differ.

The text is cut and scored as llama.cpp's llama-perplexity does it, so that figures can be compared.
A text is cut into windows of n_ctx tokens (llama-perplexity calls them chunks). Each is computed
from an empty context, with BOS in place of its first token if the vocabulary begins texts with BOS.
In each window the tokens after the middle are scored; those before have too little context.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from lariat.errors import LariatError, quote
from lariat.formats import safetensors_io
from lariat.formats.atomic import written_beside
from lariat.llm import LLM
from lariat.runtime.batch import Part, split
from lariat.runtime.sampler import check_finite, log_softmax

Ids = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]

_LOGITS = 64 << 20  # bytes of logits at once: 128 rows of a vocabulary of 128k
_FORMAT = "lariat-kl-base"
_WHAT = "a file of predictions"
_TENSORS: Mapping[str, tuple[str, ...]] = {
    "tokens": ("I32",),
    "ranges": ("F32",),
    "log_probs": ("U16",),
}
_FLOOR = 64.0  # nats below the likeliest token, where stored log-probabilities end


def cut(
    llm: LLM, text: str, n_ctx: int, n_windows: int = -1, *, parse_special: bool = False
) -> Ids:
    """Token ids of `text` in whole windows: int32 [n_windows, n_ctx].

    `n_windows` -1 takes as many as the text has. The rest at its end is not used, and there is no
    end token. `parse_special` as for `Tokenizer.encode`. Raises LariatError for a text of fewer
    than 2 n_ctx tokens, as llama-perplexity does.
    """
    ids = llm.tokenizer.encode_part(text, parse_special=parse_special)
    if len(ids) < 2 * n_ctx:
        raise LariatError(
            f"the text has {len(ids)} tokens, and perplexity with a context of {n_ctx} needs at"
            f" least {2 * n_ctx}: take a longer text or a smaller context"
        )
    n_max = len(ids) // n_ctx
    n = n_max if n_windows < 0 else min(n_windows, n_max)
    windows = np.array(ids[: n * n_ctx], np.int32).reshape(n, n_ctx)
    if llm.tokenizer.add_bos and llm.tokenizer.bos_id is not None:
        windows[:, 0] = llm.tokenizer.bos_id
    return windows


def n_scored(n_ctx: int) -> int:
    """Tokens of a window that are scored: those after the first of its second half."""
    return n_ctx - 1 - n_ctx // 2


class Rows(NamedTuple):
    """Predictions of consecutive tokens of one window."""

    window: int
    first: int  # of the window's scored tokens
    targets: Ids  # [n], the tokens that came
    log_probs: Floats  # [n, n_vocab], the predictions


def predictions(llm: LLM, windows: Ids) -> Iterator[Rows]:
    """Run the windows, each from an empty context; yields some rows at a time.

    Raises LariatError if logits are not finite.
    """
    n_ctx = windows.shape[1]
    half = n_ctx // 2
    n_rows = max(1, min(llm.runner.n_ubatch, _LOGITS // (4 * llm.n_vocab)))
    for i, ids in enumerate(windows.tolist()):
        context = llm.runner.new_table()
        try:
            for group in split([Part(context, ids[:half])], llm.runner.n_ubatch):
                llm.runner.forward(group)
            for at in range(half, n_ctx - 1, n_rows):
                end = min(at + n_rows, n_ctx - 1)
                logits = llm.runner.forward([Part(context, ids[at:end], "all")])
                check_finite(logits)
                targets = np.array(ids[at + 1 : end + 1], np.int32)
                yield Rows(i, at - half, targets, log_softmax(logits))
        finally:
            context.clear()


def exp(x: float) -> float:
    """e^x, or infinity if that is too large: a model may be certain of a token that never comes."""
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


class Mean:
    """A running mean with the standard error of the mean."""

    def __init__(self) -> None:
        self.n, self._sum, self._squares = 0, 0.0, 0.0

    def add(self, values: npt.NDArray[Any]) -> None:
        """Take more values."""
        wide = values.astype(np.float64)
        self.n += wide.size
        self._sum += float(wide.sum())
        self._squares += float((wide * wide).sum())

    @property
    def value(self) -> float:
        """The mean so far."""
        return self._sum / self.n if self.n else math.nan

    @property
    def error(self) -> float:
        """Its standard error, if the values are independent."""
        if self.n < 2:
            return math.nan
        return math.sqrt(max(self._squares / self.n - self.value**2, 0.0) / (self.n - 1))


class Perplexity:
    """exp of the mean negative log-likelihood of the tokens that came."""

    def __init__(self) -> None:
        self.nll = Mean()

    def add(self, rows: Rows) -> None:
        """Take some rows."""
        self.nll.add(-_of(rows.log_probs, rows.targets))

    @property
    def value(self) -> float:
        """The perplexity so far."""
        return exp(self.nll.value)

    @property
    def error(self) -> float:
        """Its standard error, as llama-perplexity gives it: that of the mean, times the value."""
        return self.value * self.nll.error


def measure(
    llm: LLM,
    windows: Ids,
    *,
    base: BaseWriter | None = None,
    on_window: Callable[[int, float], None] | None = None,
) -> Perplexity:
    """Perplexity of windows as `cut` makes them.

    `base` gets all predictions. `on_window` is called with the number of windows that are done and
    the perplexity so far.
    """
    perplexity = Perplexity()
    for rows in predictions(llm, windows):
        perplexity.add(rows)
        if base:
            base.add(rows)
        if on_window and rows.first + len(rows.targets) == n_scored(windows.shape[1]):
            on_window(rows.window + 1, perplexity.value)
    return perplexity


class BaseWriter:
    """Writes the predictions of a run to a safetensors file, to compare other runs with.

    tokens     int32 [n_windows, n_ctx]
    ranges     float32 [n_windows, n_scored, 2], the lowest log-probability kept, and a level's step
    log_probs  uint16 [n_windows, n_scored, n_vocab], levels above the lowest

    16 bits cover at most 64 nats, so a step is at most 0.001. Memory does not grow with the text.
    Use it in a `with` statement: `path` is replaced at its end, and stays as it was after an error.
    Raises OSError.
    """

    def __init__(self, path: str | os.PathLike[str], windows: Ids, n_vocab: int) -> None:
        n, n_ctx = windows.shape
        ranges, levels = (n, n_scored(n_ctx), 2), (n, n_scored(n_ctx), n_vocab)
        layout = safetensors_io.layout(
            _FORMAT,
            {},
            {
                "tokens": (np.int32, windows.shape),
                "ranges": (np.float32, ranges),
                "log_probs": (np.uint16, levels),
            },
        )
        with ExitStack() as stack:
            beside = stack.enter_context(written_beside(Path(path)))
            with open(beside, "wb") as file:
                file.write(layout.head)
                file.write(windows.astype("<i4").tobytes())
                file.flush()
                _reserve(file.fileno(), layout.n_bytes)
            at = layout.offsets
            self._ranges = np.memmap(beside, "<f4", "r+", at["ranges"], ranges)
            self._levels = np.memmap(beside, "<u2", "r+", at["log_probs"], levels)
            stack.push(self._flush)  # before the file is renamed
            self._file = stack.pop_all()

    def add(self, rows: Rows) -> None:
        """Store some rows."""
        top = rows.log_probs.max(axis=1)
        lowest = np.maximum(rows.log_probs.min(axis=1), top - _FLOOR)
        step = np.maximum((top - lowest) / 65535, 1e-9).astype(np.float32)
        levels = (rows.log_probs - lowest[:, None]) / step[:, None]
        where = slice(rows.first, rows.first + len(rows.targets))
        self._ranges[rows.window, where] = np.stack([lowest, step], axis=1)
        self._levels[rows.window, where] = np.clip(np.rint(levels), 0, 65535).astype(np.uint16)

    def __enter__(self) -> BaseWriter:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.__exit__(error_type, error, trace)

    def _flush(self, error_type: type[BaseException] | None, *_: object) -> None:
        if error_type is None:
            self._ranges.flush()
            self._levels.flush()
        del self._ranges, self._levels


class Base:
    """The predictions of an earlier run, memory-mapped; see `BaseWriter`.

    Raises LariatError for a file that is damaged or of another format, OSError for one that cannot
    be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._name = os.fspath(path)
        with safetensors_io.opened(path, _WHAT, LariatError) as (file, header):
            safetensors_io.check_signature(path, header, _FORMAT, {}, LariatError)
            safetensors_io.check_tensors(path, header, _WHAT, _TENSORS, LariatError)
            try:
                self.windows: Ids = safetensors_io.read(file, header.tensors["tokens"])
                self._ranges: Floats = safetensors_io.read(file, header.tensors["ranges"])
            except ValueError as error:
                reason = quote(str(error), 200)
                raise LariatError(f"{path}: is damaged, or not {_WHAT}: {reason}") from error
            levels = header.tensors["log_probs"]
            shape = levels.shape
            n, n_ctx = self.windows.shape if self.windows.ndim == 2 else (0, 0)
            if (
                not n
                or len(shape) != 3
                or shape[:2] != (n, n_scored(n_ctx))
                or self._ranges.shape != (*shape[:2], 2)
                or not np.isfinite(self._ranges).all()
                or not 0 <= self.windows.min() <= self.windows.max() < shape[2]
            ):
                raise LariatError(f"{path}: is damaged: its parts do not fit each other")
            self.n_vocab = shape[2]
            self._levels = np.memmap(file, "<u2", "r", levels.offset, shape)

    def check(self, llm: LLM, windows: Ids | None) -> None:
        """Raise LariatError unless the file has this vocabulary, and these windows if given."""
        if self.n_vocab != llm.n_vocab:
            raise LariatError(
                f"{self._name}: is of a vocabulary of {self.n_vocab} tokens, the model has"
                f" {llm.n_vocab}"
            )
        if windows is not None and not np.array_equal(windows, self.windows):
            raise LariatError(
                f"{self._name}: is of another text, another context or another number of windows"
                f" ({len(self.windows)} of {self.windows.shape[1]} tokens)"
            )

    def log_probs(self, rows: Rows) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """The base's log-probabilities [n, n_vocab] of the same rows, and which are above its
        floor."""
        where = (rows.window, slice(rows.first, rows.first + len(rows.targets)))
        lowest, step = self._ranges[where][:, :1], self._ranges[where][:, 1:]
        levels = self._levels[where]
        return lowest + step * levels, levels > 0


@dataclass
class Divergence:
    """How the predictions of a run differ from those of a base, over all scored tokens."""

    base: Perplexity
    run: Perplexity
    log_ratio: Mean  # ln(PPL(run) / PPL(base)); the tokens are the same, so errors cancel
    kl: Mean  # nats: sum of p_base ln(p_base / p_run)
    kl_values: Floats  # [n_tokens], sorted
    same_top: Mean  # share of tokens whose likeliest is the same
    delta_p: Mean  # p_run - p_base of the token that came
    delta_p_squared: Mean

    def kl_percentile(self, percent: float) -> float:
        """The KL divergence that this share of the tokens does not exceed, in nats."""
        return float(np.percentile(self.kl_values, percent))


def compare(
    llm: LLM, base: Base, *, on_window: Callable[[int, float], None] | None = None
) -> Divergence:
    """Run the base's windows and compare; `on_window` as for `measure`."""
    found = Divergence(
        Perplexity(), Perplexity(), Mean(), Mean(), np.empty(0, np.float32), Mean(), Mean(), Mean()
    )
    values = []
    for rows in predictions(llm, base.windows):
        expected, kept = base.log_probs(rows)
        p = np.exp(expected)
        kl = np.where(kept, p * (expected - rows.log_probs), 0.0).sum(axis=1, dtype=np.float64)
        of_base = Rows(rows.window, rows.first, rows.targets, expected)
        ours, theirs = (_of(r.log_probs, r.targets) for r in (rows, of_base))
        found.run.add(rows)
        found.base.add(of_base)
        found.log_ratio.add(theirs - ours)
        found.kl.add(kl)
        found.same_top.add(rows.log_probs.argmax(axis=1) == expected.argmax(axis=1))
        delta = np.exp(ours) - np.exp(theirs)
        found.delta_p.add(delta)
        found.delta_p_squared.add(delta * delta)
        values.append(kl.astype(np.float32))
        if on_window and rows.first + len(rows.targets) == n_scored(base.windows.shape[1]):
            on_window(rows.window + 1, found.run.value)
    found.kl_values = np.sort(np.concatenate(values))
    return found


def _reserve(descriptor: int, n_bytes: int) -> None:
    """Give a file its size, so that a full disk is an OSError and not a signal at a mapped page."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, n_bytes)
    else:
        os.ftruncate(descriptor, n_bytes)


def _of(log_probs: Floats, targets: Ids) -> Floats:
    """The log-probability of each row's target, [n]."""
    return log_probs[np.arange(len(targets)), targets]
