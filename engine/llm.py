"""LLM: load a model, then stream or generate text, or compute logits."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import overload

import numpy as np
from lariat.architectures.model import Model
from lariat.architectures.weights import check_weights, load_weights
from lariat.cache.blocks import BlockTable
from lariat.cache.kv_cache import SPARE_BLOCKS, STRATEGIES, check_types
from lariat.cache.prefix_cache import PrefixCache
from lariat.cache.rope import RopeTable
from lariat.config import EngineConfig, ModelConfig, RopeConfig, SamplingParams
from lariat.errors import ContextError, LariatError
from lariat.formats import context_file
from lariat.formats.finite import check_tensors as check
from lariat.formats.gguf_sampling import FileSampling
from lariat.formats.gguf_split import GGUFModel
from lariat.runtime import sampler, threads
from lariat.runtime.batch import Part, make_batch, split
from lariat.runtime.context import Context
from lariat.runtime.request import Completion, Request, Timings
from lariat.runtime.scheduler import Scheduler
from lariat.tokenizers.tokenizer import Tokenizer


class LLM:
    """A model ready to run.

    model_path       a GGUF file of an architecture in `lariat.architectures`, or the first of
                     the parts that it was split into
    n_ctx            positions of the KV cache, shared by all sequences; 0: as many as the model
                     was trained on
    n_threads        threads for decoding; None: the physical cores this process may use
    n_threads_batch  threads for prompts; None: as `n_threads`
    n_batch          most tokens of one scheduler step
    n_ubatch         most tokens of one forward pass
    cache            "roped" (keys stored rotated) or "raw" (rotated when they are read)
    type_k, type_v   of keys and values in the cache: "f16", "f32", "q8_0", "q4_0", "q8_ch", "q4_ch"
    prefix_sharing   whether prompts that begin alike share the cache of what they have in common
    rope             `RopeConfig`: other angles than the model's file asks for, see `set_rope`
    seed             of sampling where `SamplingParams` has none; None: from the system
    check_tensors    whether all weights are looked at first: NaN or Inf is a `GGUFError`
    progress         is called with the share checked and loaded, 0 to 1
    overrides        metadata to replace or add: keys to str, int, float or bool
    use_mmap         map the file, or read it: then storage that fails or changes gives an error

    Raises `GGUFError` or `ModelError` for files it cannot run, ValueError for bad parameters,
    OSError for a file that is not there. Close it, or use it in a `with` statement.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        n_ctx: int = 0,
        n_threads: int | None = None,
        n_threads_batch: int | None = None,
        n_batch: int = 2048,
        n_ubatch: int = 512,
        cache: str = "roped",
        type_k: str = "f16",
        type_v: str = "f16",
        seed: int | None = None,
        prefix_sharing: bool = True,
        rope: RopeConfig | None = None,
        check_tensors: bool = False,
        progress: Callable[[float], None] | None = None,
        overrides: Mapping[str, str | int | float | bool] | None = None,
        use_mmap: bool = True,
    ) -> None:
        start = time.perf_counter()
        e = EngineConfig(
            n_ctx, n_threads, n_threads_batch, n_batch, n_ubatch, cache, type_k, type_v, seed,
            rope or RopeConfig(),
        )  # fmt: skip
        self.n_threads = threads.resolve(n_threads)
        self.n_threads_batch = threads.resolve(
            self.n_threads if n_threads_batch is None else n_threads_batch, "n_threads_batch"
        )
        threads.check_startable(max(self.n_threads, self.n_threads_batch))
        self._gguf = GGUFModel(model_path, overrides, use_mmap)
        try:
            self.config = ModelConfig.from_gguf(self._gguf)
            check_types(self.config, type_k, type_v)
            check_weights(self._gguf, self.config)  # before the vocabulary, which takes longer
            self.tokenizer = Tokenizer.from_gguf(self._gguf)
            self.sampling = FileSampling.from_gguf(self._gguf)  # where a prompt has no params
            self.n_ctx = n_ctx or self.config.n_ctx_train
            if check_tensors:
                check(self._gguf, self.n_threads_batch, progress)
            with threads.forward_pass():
                weights = load_weights(self._gguf, self.config, self.n_threads_batch, progress)
            self._rope = RopeTable(self.config, self.n_ctx + 32, weights.rope_factors, e.rope)
            self._cache = STRATEGIES[cache](
                self.config, self.n_ctx, type_k, type_v, self._rope, SPARE_BLOCKS
            )
        except BaseException:
            self._gguf.close()
            raise
        self._engine = e
        self.n_ubatch = min(n_ubatch, n_batch, self.n_ctx)  # most tokens of one `forward`
        self._model = Model(self.config, weights, self._cache, self.n_ubatch)
        self._scheduler = Scheduler(self._cache.pool, n_batch)
        self._prefix_sharing = prefix_sharing
        self._share_prefixes()
        self._lock = threading.Lock()
        self._owner = 0  # the Python thread that holds the lock
        self._closed = False
        self._fingerprint = ""  # see `cache_kind`; takes a moment, so made when asked for
        self._discarded: list[BlockTable] = []  # of contexts that were closed
        self.load_time = time.perf_counter() - start

    @property
    def n_vocab(self) -> int:
        """Tokens of the vocabulary, the width of the logits."""
        return self.config.n_vocab

    @property
    def gguf(self) -> GGUFModel:
        """The model's open file."""
        return self._gguf

    def close(self) -> None:
        """Give back memory and the file. Closing twice does nothing."""
        if self._closed:
            return
        if threads.is_forked():  # nobody else is left here, and the lock may be held by who is not
            self._closed = True
            return
        with self._exclusively():
            self._closed = True
            del self._model, self._cache, self._scheduler
            self._gguf.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def tokenize(self, text: str, add_bos: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of `text`; see `Tokenizer.encode`."""
        return self.tokenizer.encode(text, add_bos=add_bos, parse_special=parse_special)

    def detokenize(self, ids: list[int]) -> str:
        """Text of token ids; control tokens are invisible."""
        return self.tokenizer.decode(ids)

    def logits(self, ids: list[int]) -> np.ndarray:
        """Logits after each token, from an empty context: float32 [len(ids), n_vocab].

        LariatError if they are not finite.
        """
        ids = self._checked_ids(ids)
        with self._exclusively():
            self._check_open()  # another thread may have closed it meanwhile
            context = self.new_table()
            if context.n_new_blocks(len(ids)) > self._cache.pool.n_free:
                raise ContextError("other sequences hold too much of the KV cache")
            out = np.empty((len(ids), self.n_vocab), np.float32)
            done = 0
            try:
                for group in split([self.chunk(context, ids, "all")], self.n_ubatch):
                    rows = self.forward(group)
                    sampler.check_finite(rows)
                    out[done : done + len(rows)] = rows
                    done += len(rows)
            finally:
                context.clear()
        return out

    def stream(
        self,
        prompt: str | list[int],
        params: SamplingParams | None = None,
        *,
        context: Context | None = None,
        prompt_progress: Callable[[int, int], None] | None = None,
    ) -> Stream:
        """Generate text piece by piece, from an empty context or behind what `context` holds.

        `prompt` is text, or token ids as they are. The iterator's `completion` tells the state at
        any time. Several streams may be open at once; each step computes all of them together.
        Without `params` it is sampled as the model's file asks for, see `sampling`.
        `prompt_progress` is called with prompt tokens done and their total. A `context` gets the
        prompt and what is written, and takes no other edit until the stream is over.
        """
        params = params or self.sampling.params
        return Stream(self, self._sequence(prompt, params, prompt_progress, context), context)

    @overload
    def generate(
        self,
        prompt: str | list[int],
        params: SamplingParams | None = None,
        *,
        context: Context | None = None,
    ) -> Completion: ...
    @overload
    def generate(
        self, prompt: list[str] | list[list[int]], params: SamplingParams | None = None
    ) -> list[Completion]: ...
    def generate(
        self,
        prompt: str | list[int] | list[str] | list[list[int]],
        params: SamplingParams | None = None,
        *,
        context: Context | None = None,
    ) -> Completion | list[Completion]:
        """Complete a prompt (text or token ids), or a list of prompts in one batch.

        `context` is for a single prompt, see `stream`.
        """
        params = params or self.sampling.params
        is_one = isinstance(prompt, str) or (
            len(prompt) > 0 and not isinstance(prompt[0], (str, list, tuple, np.ndarray))
        )
        if is_one or (context is not None and len(prompt) == 0):
            with self.stream(prompt, params, context=context) as stream:  # type: ignore[arg-type]
                for _ in stream:
                    pass
            return stream.completion
        if context is not None:
            raise ValueError("a context goes on with one prompt, not with a list of them")
        streams: list[Stream] = []
        try:
            streams.extend(self.stream(one, params) for one in prompt)  # type: ignore[arg-type]
            for stream in streams:
                for _ in stream:
                    pass
        finally:
            for stream in streams:
                stream.close()
        return [stream.completion for stream in streams]

    def context(self) -> Context:
        """Make an empty context: tokens in the cache that can be edited and gone on from."""
        self._check_open()
        return Context(self)

    def cache_kind(self, n_tokens: int | None = None) -> dict[str, str]:
        """What two caches must have in common to understand each other's keys and values.

        `n_tokens`: those of a context that never had more; None: any. Raw keys have no angle, but
        what their tokens saw had: RoPE is part of the kind with both caches.
        """
        if not self._fingerprint:
            self._fingerprint = context_file.fingerprint(self._gguf)
        e = self._engine
        return {
            "model": self._fingerprint, "cache": e.cache, "type_k": e.type_k, "type_v": e.type_v,
            "rope": self._rope.settings(n_tokens),
        }  # fmt: skip

    def new_table(self) -> BlockTable:
        """Make an empty place in the KV cache, for `forward`. Clear it when done with it."""
        self._check_open()
        return self._cache.new_table()

    def set_rope(self, rope: RopeConfig) -> None:
        """Read all keys with other angles from now on: those in the cache stay as they are.

        What `rope` leaves open is as the model's file says. Contexts and streams go on; values, and
        keys above the first layer, still carry what their tokens saw. `ContextError` unless the
        cache is raw: rotated keys keep their angles.
        """
        if self._engine.cache != "raw":
            raise ContextError("RoPE can change while keys stay only in the raw cache")
        with self._exclusively():
            self._check_open()
            self._rope.set(rope)
            self._share_prefixes()

    def _share_prefixes(self) -> None:
        """What was computed with other angles is not shared, nor what depends on its length."""
        pool, dynamic = self._cache.pool, self._rope.rope.scaling == "dynamic"
        pool.forget_all()
        for sequence in self._scheduler.sequences:
            sequence.hide_blocks()
        share = self._prefix_sharing and not dynamic
        self._scheduler.prefixes = PrefixCache(pool) if share else None

    def chunk(self, context: BlockTable, ids: list[int], logits: str = "none") -> Part:
        """Tokens to compute behind `context`, for `forward`; `logits` as for `Part`."""
        stage = self._rope.stage(context.n_tokens + len(ids))
        return Part(context, ids, logits, stage)

    def forward(self, chunks: list[Part]) -> np.ndarray:
        """Run one forward pass over at most `n_ubatch` tokens, below scheduler and sampler.

        Returns the logits that the chunks ask for, float32 [n_rows, n_vocab], in their order;
        they are overwritten by the next pass. Each context may stand in one chunk only.
        """
        batch = make_batch(chunks)
        decoding = batch.n_tokens == len(chunks)
        with threads.forward_pass():
            return self._model.forward(batch, self.n_threads if decoding else self.n_threads_batch)

    # ---- below: the engine's loop --------------------------------------------------------

    def _sequence(
        self,
        prompt: str | list[int],
        params: SamplingParams,
        on_prompt: Callable[[int, int], None] | None,
        context: Context | None,
    ) -> Request:
        self._check_open()
        begins = context is None or not len(context)
        ids = self.tokenize(prompt, add_bos=begins) if isinstance(prompt, str) else prompt
        ids = self._checked_ids(ids) if begins or len(ids) else []
        for token in params.logit_bias:
            if token >= self.n_vocab:
                raise ValueError(f"logit bias for token {token}, of {self.n_vocab} in all")
        seed = params.seed if params.seed is not None else self._engine.seed
        return Request(
            ids,
            params,
            self.new_table(),
            np.random.default_rng(seed),
            Completion(ids, timings=Timings(load_s=self.load_time)),
            decoder=self.tokenizer.decoder(),
            eog_ids=self.tokenizer.eog_ids,
            n_ctx=self.n_ctx,
            delete=self._delete,
            on_prompt=on_prompt,
        )

    def _delete(self, segments: BlockTable, start: int, stop: int) -> None:
        """Take tokens out of a place in the cache; those behind move up."""
        kept = [segments.cut(0, start), segments.cut(stop, segments.n_tokens)]
        self._cache.edit(segments, np.concatenate(kept), self.n_threads)

    def _checked_ids(self, ids: list[int]) -> list[int]:
        self._check_open()
        checked = []
        for i in ids:
            if isinstance(i, bool) or not hasattr(i, "__index__"):
                raise ValueError(f"{i!r} is not a token id")
            if not 0 <= i.__index__() < self.n_vocab:
                raise ValueError(f"token id {i} is out of range, expected 0 to {self.n_vocab - 1}")
            checked.append(i.__index__())
        if not checked:
            raise ValueError("the prompt is empty")
        if len(checked) > self.n_ctx:
            raise ContextError(
                f"the prompt has {len(checked)} tokens, more than the context of {self.n_ctx}"
            )
        return checked

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the model is closed")

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        """Let one Python thread at a time touch scheduler, model and cache.

        RuntimeError from within its own callbacks and in a forked process.
        """
        threads.check_not_forked()
        if self._owner == threading.get_ident():
            raise RuntimeError("an LLM cannot be used from within its own callbacks")
        with self._lock:
            try:
                self._owner = threading.get_ident()
                yield
            finally:
                self._owner = 0

    def _is_idle(self) -> bool:
        """Whether there is something to tidy up, and nobody who does it later."""
        return not (self._closed or self._lock.locked() or threads.is_forked())

    def _stop(self, sequence: Request) -> None:
        """Give a sequence up and free its blocks, or leave that to the step that is running."""
        sequence.closed = True
        if self._is_idle():
            with self._exclusively():
                if not self._closed:
                    self._sweep()

    def _discard(self, segments: BlockTable) -> None:
        """Free a closed context's blocks, or leave that to whoever uses the LLM just now."""
        if not self._closed:
            self._discarded.append(segments)
            if self._is_idle():
                with self._exclusively():
                    if not self._closed:
                        self._sweep()

    def _sweep(self) -> None:
        """Take out what is finished or given up."""
        while self._discarded:
            self._discarded.pop().clear()
        for sequence in self._scheduler.sequences:
            if sequence.finished or sequence.closed:
                sequence.closed = True
                self._scheduler.remove(sequence)

    def _advance(self, sequence: Request) -> bool:
        """Take a step if `sequence` has no text yet; False when none will come any more."""
        with self._exclusively():  # another thread's step may have brought some meanwhile
            if not sequence.pieces and not sequence.closed:
                self._step()
            if sequence.pieces:
                return True
            if isinstance(sequence.error, Exception):
                raise sequence.error
            return not sequence.closed

    def _step(self) -> None:
        """Schedule, run, sample: one step for all sequences."""
        self._check_open()
        start = time.perf_counter()
        self._sweep()
        step = self._scheduler.schedule()
        if not step:
            self._sweep()
            return
        in_prompt = [s.in_prompt for s, _ in step]
        computed = [s.context.n_tokens for s, _ in step]
        try:
            self._run(step)
        except BaseException as error:
            # What the step wrote may be half-written: forget it and give up these sequences.
            for (s, _), n in zip(step, computed, strict=True):
                s.context.truncate(n)
                s.fail(error)
            raise
        finally:
            self._sweep()
        seconds = time.perf_counter() - start
        for (s, n), prompt in zip(step, in_prompt, strict=True):
            s.book(n, seconds, prompt)

    def _run(self, step: list[tuple[Request, int]]) -> None:
        """Compute a step's tokens, and sample wherever a sequence has no more pending."""
        chunks = [
            Part(
                s.context,
                s.ids[s.context.n_tokens : s.context.n_tokens + n],
                "last" if n == s.n_pending else "none",
                self._rope.stage(len(s.ids)),
            )
            for s, n in step
        ]
        sequence_of = {s.context: s for s, _ in step}
        for group in split(chunks, self.n_ubatch):
            logits = iter(self.forward(group))
            for chunk in group:
                s = sequence_of[chunk.context]
                if s.on_prompt and not s.completion.token_ids:
                    s.on_prompt(s.n_prompt_done, len(s.completion.prompt_ids))
                if chunk.logits == "last":
                    row = next(logits)
                    try:
                        s.append(self._sample(s, row))
                    except LariatError as error:  # this request's own, the others go on
                        s.fail(error)

    def _sample(self, sequence: Request, logits: np.ndarray) -> int:
        sampler.check_finite(logits)
        if sequence.params.ignore_eos:
            logits[list(self.tokenizer.eog_ids)] = -np.inf
        return sampler.sample(logits, sequence.params, sequence.ids, sequence.rng)


class Stream:
    """Iterator over the text of one completion, see `LLM.stream`."""

    def __init__(self, llm: LLM, sequence: Request, context: Context | None = None) -> None:
        self._llm = llm
        self._sequence = sequence
        if sequence.params.max_tokens == 0:
            if context is not None:
                context.append(sequence.ids)
            sequence.completion.finish_reason = "length"
            sequence.closed = True
        else:
            with llm._exclusively():
                llm._check_open()
                if context is not None:
                    llm._sweep()  # a stream on it that is over gives it back
                    context.lend(sequence)
                llm._scheduler.add(sequence)

    @property
    def completion(self) -> Completion:
        """What has been generated so far."""
        return self._sequence.completion

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while True:
            with contextlib.suppress(IndexError):  # another thread may take the last one
                return self._sequence.pieces.popleft()
            if not self._llm._advance(self._sequence):
                raise StopIteration

    def close(self) -> None:
        """Stop generating and free the blocks of the cache. Closing twice does nothing."""
        self._llm._stop(self._sequence)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_sequence"):
            self.close()
