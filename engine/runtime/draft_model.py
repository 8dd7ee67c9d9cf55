"""Speculation with a second, smaller model: it guesses the next tokens of requests.

The small model has a runner and a cache of its own. Each request that guesses has a block table
there, `DraftText`. What the small model has not seen of the text is computed first; then it writes
the guesses one by one, for all requests together. Guesses that did not come are cut off the next
time.

A guess is chosen as the request chooses its tokens: with its parameters, and, where it samples,
with the same random numbers (coupled sampling). Where both models find the same tokens likely, the
same number then picks the same token, so that sampled text is guessed nearly as well as greedy
text. What comes is the large model's choice alone, so the guesses change neither the text nor its
distribution: for a guess that is known before the token is drawn, rejection sampling (arXiv
2211.17192) is just this comparison.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from lariat.architectures.loading import check_weights, load_weights, read_config
from lariat.architectures.prepared import Found, find
from lariat.checks import check_path
from lariat.config import EngineConfig, ModelConfig
from lariat.demo import DEMO_DRAFT_MODEL, DEMO_MODEL
from lariat.errors import ModelError
from lariat.formats.gguf_split import GGUFModel
from lariat.runtime import sampler, threads
from lariat.runtime.batch import Part, split
from lariat.runtime.pace import Pace
from lariat.runtime.request import Request
from lariat.runtime.runner import Runner, build_runner
from lariat.tokenizers.tokenizer import Tokenizer

# A guess costs a pass of the small model and its share of a pass of the large one, together about
# a third of a token. So guessing ends where all guesses of a text together are less likely.
_MIN_PROBABILITY = 0.35
_MAX_DECODED = 32  # tokens of a request that are still computed with the threads of decoding


class DraftText:
    """The tokens of one request in the small model's cache. `PrefixCache` has the other fields."""

    def __init__(self, runner: Runner) -> None:
        self.table = runner.new_table()
        self.ids: list[int] = []  # the request's
        self.block_keys: list[bytes] = []
        self.n_keyed = 0
        self.is_lent = False
        self._guessed: list[int] = []  # computed behind the first `_n_known` tokens
        self._n_known = 0

    @property
    def n_shareable(self) -> int:
        """See `PrefixCache`."""
        return len(self.ids)

    @property
    def n_reusable(self) -> int:
        """See `PrefixCache`."""
        return len(self.ids)

    @property
    def n_pending(self) -> int:
        """Tokens of the request to compute before the next one can be guessed."""
        return len(self.ids) - self._n_known

    def catch_up(self, ids: list[int]) -> None:
        """Take the request's tokens so far, which only grow, and cut off guesses that did not come.

        At least one token stays to be computed.
        """
        self.ids, n = ids, self._n_known
        for guess in self._guessed:
            if n == len(ids) or ids[n] != guess:
                break
            n += 1
        n = min(n, len(ids) - 1)
        self.know(n)

    def know(self, n: int) -> None:
        """The first `n` tokens of the request are in the table, and nothing else."""
        self._guessed = []
        self._n_known = min(n, self.table.n_tokens)
        self.table.truncate(self._n_known)

    def computed(self, n: int) -> None:
        """So many pending tokens were computed."""
        self._n_known += n

    def guessed(self, token: int) -> None:
        """A guess was computed behind all others."""
        self._guessed.append(token)

    def reset(self) -> None:
        """Cut off what an exception has left."""
        self.know(self._n_known)

    def accepted(self, n: int) -> None:
        """The tokens themselves tell, see `catch_up`."""

    def close(self) -> None:
        """Give the blocks back."""
        self._guessed, self._n_known = [], 0
        self.table.clear()


class DraftModel:
    """A model that guesses for the requests of another one. Its engine's lock guards it."""

    def __init__(self, runner: Runner, gguf: GGUFModel, n_vocab: int) -> None:
        """Use `load_draft_model`."""
        self._runner, self._gguf = runner, gguf
        self._n_vocab = n_vocab  # of the other model
        self._pace = Pace()  # of passes that read texts

    def close(self) -> None:
        """Give back memory and the file."""
        self._runner.close()
        if not threads.is_forked():
            self._gguf.close()

    def guess(self, wanted: Sequence[tuple[Request, int]]) -> list[list[int]]:
        """Guess at most so many next tokens of each request, often fewer.

        There are none for a request whose text the cache has no room for, nor yet for one whose
        prompt is too long for one step: others would wait.
        """
        pool = self._runner.cache.pool
        pool.recount()
        texts = [
            _Guessing(request, self._text_of(request), k, self._n_vocab) for request, k in wanted
        ]
        try:
            self._go_on(self._begin(texts))
        except BaseException:
            pool.doubt()
            for text in texts:
                text.cached.reset()
            raise
        finally:
            for text in texts:
                text.close()
        return [text.guesses for text in texts]

    def _text_of(self, request: Request) -> DraftText:
        if not isinstance(request.drafter, DraftText):
            request.drafter = DraftText(self._runner)
        return request.drafter

    def _begin(self, texts: Sequence[_Guessing]) -> list[_Guessing]:
        """Compute what is new of each text, those with few new tokens first, and guess one token.
        Returns the texts that go on."""
        n_left, n_free = self._budget(len(texts)), self._runner.cache.pool.n_free
        prefixes = self._runner.scheduler.prefixes
        parts: list[Part] = []
        counts: list[tuple[DraftText, int]] = []
        begun: list[_Guessing] = []
        n_prompt = 0
        for text in texts:
            cached = text.cached
            cached.catch_up(text.request.ids)
            if prefixes and not cached.table.n_tokens:
                prefixes.reuse(cached)
                cached.know(cached.table.n_tokens)
        for text in sorted(texts, key=lambda text: text.cached.n_pending):
            cached = text.cached
            n = cached.n_pending
            is_long = n > _MAX_DECODED
            n = min(n, n_left) if is_long else n
            is_whole = n == cached.n_pending
            n_new = cached.table.n_new_blocks(n + (text.k - 1 if is_whole else 0))
            if not n or n_new > n_free:
                continue
            at = cached.table.n_tokens
            ids = cached.ids[at : at + n]
            if max(ids) >= self._runner.config.n_vocab:  # a token that this model does not have
                text.request.guesses = False
                continue
            n_free -= n_new
            n_left -= n if is_long else 0
            n_prompt += n if is_long else 0
            parts.append(self._runner.part(cached.table, ids, "last" if is_whole else "none"))
            if is_whole:
                begun.append(text)
            counts.append((cached, n))
        start = time.perf_counter()
        rows = self._forward(parts)
        n_decode = sum(n for _, n in counts) - n_prompt
        self._pace.add(n_prompt, n_decode, time.perf_counter() - start)
        for cached, n in counts:
            cached.computed(n)
            if prefixes:
                prefixes.key_blocks(cached)
        return [text for text, row in zip(begun, rows, strict=True) if text.take(row)]

    def _budget(self, n_texts: int) -> int:
        """Tokens of prompts that may be computed: as many as `Pace` allows if others wait."""
        budget = self._pace.budget if n_texts > 1 else self._runner.settings.n_batch
        return self._runner.n_ubatch if budget is None else budget

    def _go_on(self, texts: list[_Guessing]) -> None:
        """Guess further tokens, one of each text at a time."""
        while texts:
            parts = [
                self._runner.part(text.cached.table, text.guesses[-1:], "last") for text in texts
            ]
            rows = self._forward(parts)
            for text in texts:
                text.cached.guessed(text.guesses[-1])
            texts = [text for text, row in zip(texts, rows, strict=True) if text.take(row)]

    def _forward(self, parts: list[Part]) -> np.ndarray:
        """The rows of logits that parts ask for, float32 [n_rows, n_vocab]: a copy."""
        is_short = all(len(part.token_ids) <= _MAX_DECODED for part in parts)
        n_threads = self._runner.n_threads if is_short else None
        rows = [
            self._runner.forward(group, n_threads).copy()
            for group in split(parts, self._runner.n_ubatch)
        ]
        return np.concatenate(rows) if rows else np.zeros((0, 1), np.float32)


class _Guessing:
    """One request while its next tokens are guessed."""

    def __init__(self, request: Request, cached: DraftText, k: int, n_vocab: int) -> None:
        self.request, self.cached, self.k = request, cached, k
        self.guesses: list[int] = []
        self._previous = list(request.ids)
        self._rng = request.rng.bit_generator.state  # the numbers that are drawn come again
        self._n_vocab = n_vocab
        self._probability = 1.0

    def close(self) -> None:
        """Leave the request's random numbers as they were."""
        self.request.rng.bit_generator.state = self._rng

    def take(self, row: np.ndarray) -> bool:
        """Guess a token by its logits, float32 [n_vocab of the small model]. Returns whether more
        guesses are wanted behind it."""
        stages = self.request.stages
        logits = np.full(self._n_vocab, -np.inf, np.float32)
        n = min(len(row), self._n_vocab)
        logits[:n] = row[:n]
        sampler.check_finite(row)
        best = float(logits.max())
        log_sum = float(np.log(np.exp(logits - best, dtype=np.float32).sum()))
        held = stages.held(len(self.guesses))
        logits[held] = -np.inf
        token = sampler.sample(logits, self.request.params, self._previous, self.request.rng)
        self._probability *= float(np.exp(float(logits[token]) - best - log_sum))
        if token in stages.end_ids or self._probability < _MIN_PROBABILITY:
            return False
        self.guesses.append(token)
        self._previous.append(token)
        return len(self.guesses) < self.k


def find_draft_model(
    model_path: Path, draft_model: str | os.PathLike[str] | None, speculative: str | None
) -> Path | None:
    """The file of the draft model that the parameters of `LLM` ask for, if any.

    The demo model has one of its own. ValueError if they contradict each other.
    """
    asks = isinstance(speculative, str) and speculative == "draft"  # it may be anything yet
    if draft_model is not None:
        if not asks and speculative is not None:
            raise ValueError(f"a draft_model guesses with speculative 'draft', not {speculative!r}")
        return check_path("draft_model", draft_model)
    if not asks:
        return None
    if model_path == Path(DEMO_MODEL):
        return Path(DEMO_DRAFT_MODEL)
    raise ValueError("speculative 'draft' needs a draft_model")


def load_draft_model(
    path: Path,
    tokenizer: Tokenizer,
    target: ModelConfig,
    settings: EngineConfig,
    *,
    use_mmap: bool = True,
    prepared: bool = True,
) -> DraftModel:
    """Load a model that guesses for the model `target`, which has this tokenizer.

    `settings` are those of the large model; of them it has the context's length, the threads and
    the prefix sharing. Its own cache has rotated f16 keys. ModelError unless the same id is the
    same token in both vocabularies; otherwise raises what `LLM` raises.
    """
    gguf = GGUFModel(path, use_mmap=use_mmap)
    try:
        config = read_config(gguf)
        check_weights(gguf, config)
        difference = tokenizer.difference(Tokenizer.from_gguf(gguf))
        if difference:
            raise ModelError(f"{path}: cannot guess for this model: {difference}")
        found = find(gguf, config) if prepared and use_mmap else Found(None, ())
        own = EngineConfig(
            n_ctx=settings.n_ctx or target.n_ctx_train,
            n_threads=settings.n_threads,
            n_threads_batch=settings.n_threads_batch,
            n_batch=settings.n_batch,
            n_ubatch=settings.n_ubatch,
            prefix_sharing=settings.prefix_sharing,
        )
        with threads.forward_pass():
            n_threads = threads.resolve(settings.n_threads_batch)
            weights = load_weights(gguf, config, n_threads, None, found.places)
        return DraftModel(build_runner(config, weights, own), gguf, target.n_vocab)
    except BaseException:
        gguf.close()
        raise
