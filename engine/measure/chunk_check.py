"""Measures what a library's documents lose when they are put together: `lariat chunk verify`.

A question is a passage of one of the documents, and its answer is how that document goes on, so the
model has to find the place and to read on. It is asked behind several documents of the library,
placed as a prompt would place them, and behind the same tokens computed as a whole (full prefill).
Questions that full prefill answers to the letter are those that reuse should answer too.

Random documents stand around the one that is asked about, never the same ones behind each other by
design: a document that begins a context is exact, so the one that is asked about stands behind
another. All is drawn with a fixed seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from lariat.errors import ContextError
from lariat.llm import LLM
from lariat.measure.reuse_quality import Score, predict, score
from lariat.reuse.library import Chunk, ChunkLibrary, Verified

_QUESTION, _ANSWER = 16, 6  # tokens
_N_TOGETHER = 4  # documents, where they fit the context
_N_ASKED = 4  # questions behind the same documents


@dataclass(frozen=True)
class Check:
    """The result for one document, or for all together."""

    name: str  # "" for all
    scores: tuple[Score, ...]
    answered: tuple[bool, ...]  # by full prefill, of each score

    @property
    def n(self) -> int:
        """Questions."""
        return len(self.scores)

    @property
    def kl(self) -> tuple[float, float]:
        """Mean divergence from full prefill, nats a token, and half of its 95 % interval."""
        return _mean([one.kl for one in self.scores])

    @property
    def top1(self) -> tuple[float, float]:
        """Share of tokens with full prefill's likeliest token, and half of its 95 % interval."""
        return _mean([one.top1 for one in self.scores])

    @property
    def n_answered(self) -> int:
        """Questions that full prefill answers."""
        return sum(self.answered)

    @property
    def n_kept(self) -> int:
        """Of these, questions that are answered with reuse too."""
        pairs = zip(self.scores, self.answered, strict=True)
        return sum(one.exact for one, answered in pairs if answered)

    @property
    def kept(self) -> tuple[float, float]:
        """Share of answers that are kept: its 95 % interval (Wilson); 0 to 1 without answers."""
        return wilson(self.n_kept, self.n_answered)

    def verified(self, recompute: str) -> Verified:
        """As the library's index keeps it."""
        return Verified(recompute, self.n, self.n_answered, self.n_kept, self.kl[0], self.top1[0])


def check_library(
    llm: LLM,
    library: ChunkLibrary,
    *,
    recompute: Any = "auto",
    n_questions: int = 32,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> list[Check]:
    """Ask at least `n_questions` about each document that was made for the cache of `llm`.

    recompute: as for `Context.append`. Returns a `Check` of each, by name. Raises ContextError
    where fewer than two documents fit, and what `Context.append` raises.
    """
    chunks = _usable(llm, library)
    rng = np.random.default_rng(seed)
    checks = []
    n_rounds = math.ceil(n_questions / _N_ASKED)
    for i, name in enumerate(chunks):
        scores: list[Score] = []
        answered: list[bool] = []
        for k in range(n_rounds):
            asked = _ask(
                llm, chunks, name, recompute, min(_N_ASKED, n_questions - len(scores)), rng
            )
            for one, is_answered in asked:
                scores.append(one)
                answered.append(is_answered)
            if progress is not None:
                progress((i + (k + 1) / n_rounds) / len(chunks))
        checks.append(Check(name, tuple(scores), tuple(answered)))
    return checks


def together(checks: Sequence[Check]) -> Check:
    """All questions as those of one document."""
    scores = tuple(one for check in checks for one in check.scores)
    return Check("", scores, tuple(one for check in checks for one in check.answered))


def _usable(llm: LLM, library: ChunkLibrary) -> dict[str, Chunk]:
    """The documents that can be asked about, by name."""
    signature = llm.signature(1)
    wanted = tuple(signature[key] for key in ("model", "type_k", "type_v"))
    fits = {}
    for entry in library.entries():
        is_ours = (entry.model, entry.type_k, entry.type_v) == wanted
        if is_ours and entry.n_tokens > _QUESTION + _ANSWER:
            fits[entry.name] = library[entry.name]
            fits[entry.name].on_reuse = None  # it is being verified
    if len(fits) < 2:
        raise ContextError(
            f"{library.folder}: {len(fits)} of its documents are for this model and these cache "
            f"types and have more than {_QUESTION + _ANSWER} tokens; two are needed, because one "
            "that stands alone is exact"
        )
    return fits


def _ask(
    llm: LLM,
    chunks: dict[str, Chunk],
    name: str,
    recompute: Any,
    n: int,
    rng: np.random.Generator,
) -> list[tuple[Score, bool]]:
    """Ask `n` questions about document `name`, behind others in random order."""
    names = _arranged(llm, chunks, name, rng)
    with llm.context() as reused, llm.context() as full:
        spans = {}
        for one in names:
            start = len(reused)
            reused.append(chunks[one], recompute=recompute)
            spans[one] = (start, len(reused))
        full.append(reused.tokens)
        ids, (start, stop) = reused.tokens, spans[name]
        found = []
        for place in rng.integers(start, stop - _QUESTION - _ANSWER + 1, n).tolist():
            question = ids[place : place + _QUESTION]
            answer = ids[place + _QUESTION : place + _QUESTION + _ANSWER]
            expected = predict(full, question, answer)
            found.append(
                (
                    score(predict(reused, question, answer), expected, answer),
                    bool((expected.argmax(axis=1) == answer).all()),
                )
            )
    return found


def _arranged(llm: LLM, chunks: dict[str, Chunk], name: str, rng: np.random.Generator) -> list[str]:
    """Names of documents with `name` among them, but not first, that fit the context twice."""
    room = llm.n_ctx - 2 * (_QUESTION + _ANSWER + 2 * 32)
    names, n_tokens = [name], len(chunks[name]) + 1
    for other in rng.permutation([one for one in chunks if one != name]).tolist():
        if len(names) < _N_TOGETHER and 2 * (n_tokens + len(chunks[other])) <= room:
            names.append(other)
            n_tokens += len(chunks[other])
    if len(names) == 1:
        raise ContextError(
            f"document {name!r} and another one do not fit a context of {llm.n_ctx} twice"
        )
    names = rng.permutation(names).tolist()
    if names[0] == name:
        names[0], names[1] = names[1], names[0]
    return names


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half of its 95 % interval."""
    n = len(values)
    spread = float(np.std(values, ddof=1)) if n > 1 else 0.0
    return float(np.mean(values)), 1.96 * spread / math.sqrt(n)


def wilson(n_good: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    z, share = 1.96, n_good / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
