"""LLM: load a model, then stream or generate text, or compute logits."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, overload

import numpy as np
from lariat.architectures.loading import check_weights, load_weights, read_config
from lariat.architectures.prepared import Found, find
from lariat.cache.kv_cache import check_types
from lariat.checks import (
    check_callable,
    check_choice,
    check_overrides,
    check_path,
    check_switch,
    check_type,
    check_whole,
)
from lariat.config import EngineConfig, RopeConfig, SamplingParams
from lariat.errors import ContextError, LariatError
from lariat.formats import context_file
from lariat.formats.finite import check_tensors as check
from lariat.formats.gguf_sampling import FileSampling
from lariat.formats.gguf_split import GGUFModel
from lariat.runtime import rope_choice, scoring, threads, tuned
from lariat.runtime.context import Context
from lariat.runtime.draft_model import find_draft_model, load_draft_model
from lariat.runtime.engine_thread import EngineThread
from lariat.runtime.logprobs import PromptLogprobs, check_n_top
from lariat.runtime.request import Completion, Request
from lariat.runtime.runner import Health, build_runner, is_list
from lariat.runtime.scoring import Score, Text
from lariat.runtime.stream import Stream
from lariat.runtime.timings import Timings
from lariat.structured.grammar import Grammar
from lariat.structured.matcher import Grammars, VocabularyGrammar
from lariat.tokenizers.tokenizer import Tokenizer

_EMBED_TOKENS = 128  # computed in one go, between steps of others


class LLM:
    """A model ready to run.

    model_path       a GGUF file of an architecture in `lariat.architectures`, or the first of
                     the parts that it was split into
    n_ctx            positions of the KV cache, shared by all requests; 0: as many as the model was
                     trained on
    n_threads        threads for decoding; None: the physical cores this process may use, or what
                     `lariat bench --tune` has found
    n_threads_batch  threads for prompts; None: as `n_threads`
    n_batch          max tokens of one scheduler step
    n_ubatch         max tokens of one forward pass
    cache            "roped" (keys stored rotated) or "raw" (rotated when they are read)
    type_k, type_v   of keys and values in the cache: "f16", "f32", "q8_0", "q4_0", "q8_ch", "q4_ch"
    prefix_sharing   whether prompts that begin alike share blocks of the cache
    rope             `RopeConfig`: other angles than those of the model's file, see `set_rope`
    seed             of sampling where `SamplingParams` has none; None: from the system
    check_tensors    look at all weights first: NaN or Inf is a `GGUFError`
    swa_window_only  layers with an attention window keep only the keys in it; see docs/cache.md for
                     what this forbids
    progress         is called with the share that is checked and loaded, 0 to 1
    overrides        metadata to replace or add: keys to str, int, float or bool
    use_mmap         map the file, or read it: then storage that fails or changes gives an error
    prepared         use the weights that `lariat prepare` has written, where they are there and
                     belong to the file; only with `use_mmap`
    speculative      "ngram" or "auto": guess tokens that repeat earlier text, and check up to
                     `n_draft` of them in one pass; "draft": a small model guesses; the text stays
                     the same
    draft_model      the GGUF file of that small model, which has the same vocabulary

    The attribute `runner` is what runs the model, for those who work below requests, and `engine`
    steps it. `prepared` is the file of prepared weights in use, or None; `prepared_refused` has a
    sentence for each file that was found and cannot be used.

    Raises `GGUFError` or `ModelError` for files that it cannot run, ValueError for bad parameters,
    OSError for a missing file. Close it, or use it in a `with` statement.
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
        swa_window_only: bool = False,
        progress: Callable[[float], None] | None = None,
        overrides: Mapping[str, str | int | float | bool] | None = None,
        use_mmap: bool = True,
        prepared: bool = True,
        speculative: str | None = None,
        n_draft: int = 8,
        draft_model: str | os.PathLike[str] | None = None,
    ) -> None:
        start = time.perf_counter()
        path = check_path("model_path", model_path)
        check_switch("use_mmap", use_mmap)
        check_switch("prepared", prepared)
        check_callable("progress", progress)
        draft_path = find_draft_model(path, draft_model, speculative)
        speculative = "draft" if draft_path else speculative
        settings = EngineConfig(
            n_ctx, n_threads, n_threads_batch, n_batch, n_ubatch, cache, type_k, type_v, seed,
            RopeConfig() if rope is None else rope, prefix_sharing, check_tensors,
            swa_window_only, speculative, n_draft,
        )  # fmt: skip
        for name, n_given in (("n_threads", n_threads), ("n_threads_batch", n_threads_batch)):
            threads.resolve(n_given, name)  # a bad number is told before the file is touched
        self.gguf = GGUFModel(path, check_overrides(overrides), use_mmap)
        try:
            n, n_batch = tuned.threads_for(self.gguf, n_threads, n_threads_batch)
            threads.check_startable(max(n, n_batch))
            self.settings = replace(settings, n_threads=n, n_threads_batch=n_batch)
            self.config = read_config(self.gguf)
            check_types(self.config, type_k, type_v)
            check_weights(self.gguf, self.config)  # before the vocabulary, which takes longer
            self.tokenizer = Tokenizer.from_gguf(self.gguf)
            self._grammars = Grammars(self.tokenizer)
            self.sampling = FileSampling.from_gguf(self.gguf)  # where a prompt has no params
            if check_tensors:
                check(self.gguf, n_batch, progress)
            found = find(self.gguf, self.config) if prepared and use_mmap else Found(None, ())
            self.prepared, self.prepared_refused = found.path, found.refused
            with threads.forward_pass():
                weights = load_weights(self.gguf, self.config, n_batch, progress, found.places)
            guesser = None
            if draft_path:
                guesser = load_draft_model(
                    draft_path, self.tokenizer, self.config, self.settings,
                    use_mmap=use_mmap, prepared=prepared,
                )  # fmt: skip
            self.runner = build_runner(
                self.config,
                weights,
                self.settings,
                fingerprint=partial(context_file.fingerprint, self.gguf),
                guesser=guesser,
            )
            self.engine = EngineThread(self.runner)
        except BaseException:
            self.gguf.close()
            raise
        self.load_time = time.perf_counter() - start

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        filename: str | None = None,
        *,
        token: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        download_progress: Callable[[float, str], None] | None = None,
        **options: Any,
    ) -> LLM:
        """Load a model from the Hugging Face Hub; its files stay in the cache of `huggingface_hub`.

        repo_id            "OWNER/REPO", or "OWNER/REPO:TYPE" with a type of weights; without one it
                           is Q4_K_M, then Q8_0, then any
        filename           a file of the repository, or a pattern that fits one model, such as
                           "*q8_0.gguf", instead of a type; all splits come with the first
        token              for repositories that are private or gated; None: HF_TOKEN, or the one
                           that `hf auth login` has kept
        cache_dir          None: HF_HUB_CACHE, or the usual folder
        local_files_only   take the model from the cache, and ask nobody, as with HF_HUB_OFFLINE=1
        download_progress  is called with the share that is fetched, 0 to 1, and the file's name
        options            of `LLM`

        Where the Hub cannot be reached the files in the cache are taken, with a warning. Raises
        `HubError` for a model that cannot be had, ValueError for a wrong name, and what `LLM`
        raises.
        """
        from lariat.hub.models import find_model
        from lariat.hub.names import parse

        check_type("repo_id", repo_id, str)
        check_switch("local_files_only", local_files_only)
        check_callable("download_progress", download_progress)
        for name, value in (("filename", filename), ("token", token)):
            if value is not None:
                check_type(name, value, str)
        path = find_model(
            parse(repo_id),
            filename,
            token=token,
            cache_dir=None if cache_dir is None else check_path("cache_dir", cache_dir),
            offline=local_files_only,
            progress=download_progress,
        )
        return cls(path, **options)

    @property
    def n_ctx(self) -> int:
        """Positions of the KV cache."""
        return self.runner.n_ctx

    @property
    def n_threads(self) -> int:
        """Threads for decoding."""
        return self.runner.n_threads

    @property
    def n_threads_batch(self) -> int:
        """Threads for prompts."""
        return self.runner.n_threads_batch

    @property
    def n_vocab(self) -> int:
        """Tokens of the vocabulary, the width of the logits."""
        return self.config.n_vocab

    def health(self) -> Health:
        """How the engine is, at once, whatever runs."""
        return self.runner.health()

    def close(self) -> None:
        """Give back memory and the file. Closing twice does nothing."""
        if not self.runner.closed:
            self.engine.stop()
            self.runner.close()
            if not threads.is_forked():  # the file is the parent's
                self.gguf.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def tokenize(self, text: str, add_bos: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of a whole text; see `Tokenizer.encode`, and `Tokenizer.encode_behind` for text
        that continues other text."""
        return self.tokenizer.encode(text, add_bos=add_bos, parse_special=parse_special)

    def detokenize(self, ids: list[int]) -> str:
        """Text of token ids; control tokens are invisible."""
        return self.tokenizer.decode(ids)

    def logits(self, ids: list[int]) -> np.ndarray:
        """Logits after each token, from an empty context: float32 [len(ids), n_vocab].

        LariatError if they are not finite.
        """
        ids = self.check_ids(ids)
        with self.runner.exclusive:
            self.runner.sweep()
            table = self.runner.new_table()
            if table.n_new_blocks(len(ids)) > self.runner.cache.pool.n_free:
                raise ContextError("other requests hold too much of the KV cache")
            try:
                return self.runner.compute(table, ids, "all")
            finally:
                table.clear()

    def embed(
        self, prompt: str | list[int], pooling: str = "mean", *, normalize: bool = True
    ) -> np.ndarray:
        """A vector for a text or token ids: float32 [dim].

        It is made of the rows behind the model's last norm: "mean" of all tokens, or of the "last"
        one. With `normalize` its length is 1. Only models that were trained for it give vectors
        whose angles compare texts well. Others compute meanwhile. Errors as for `stream`.
        """
        check_choice("pooling", pooling, ("mean", "last"))
        ids = self.tokenize(prompt) if isinstance(prompt, str) else prompt
        ids = self.check_ids(ids)
        total = np.zeros(self.config.dim)
        table = self.runner.new_table()
        try:
            for start in range(0, len(ids), _EMBED_TOKENS):
                with self.runner.exclusive:
                    self.runner.sweep()
                    some = ids[start : start + _EMBED_TOKENS]
                    rows = self.runner.compute(table, some, "hidden")
                total = total + rows.sum(0, np.float64) if pooling == "mean" else rows[-1]
        finally:
            self.runner.discard(table)
        if pooling == "mean":
            total = total / len(ids)
        length = float(np.linalg.norm(total)) if normalize else 1.0
        return (total / (length or 1.0)).astype(np.float32)

    def stream(
        self,
        prompt: str | list[int],
        params: SamplingParams | None = None,
        *,
        context: Context | None = None,
        prompt_progress: Callable[[int, int], None] | None = None,
        parse_special: bool = False,
        rope_read: rope_choice.Asked = None,
    ) -> Stream:
        """Generate text piece by piece, from an empty context or behind the tokens of `context`.

        `prompt` is text, or token ids as they are. Text gets the begin token where nothing stands
        before it, and never an end token. With `parse_special` control tokens that are written in
        it, such as `<|im_start|>`, become those tokens; do not set it for text of strangers. The
        iterator's `completion` tells the state at any time. Several streams may be open at once;
        each step computes all of them together.
        Without `params`, sampling follows the model's file, see `sampling`. `prompt_progress` is
        called with prompt tokens done and their total. A `context` gets the prompt and the
        generated tokens, and takes no other edit until the stream is over.

        `rope_read` (raw cache only) is the RoPE with which the question and the text are read. The
        question is the last paragraph of the prompt, of at most 64 tokens; those before it are
        computed with the RoPE of the engine. It is a `RopeConfig`, "plain" (as the model's file
        says), a list of settings, or "auto" (a list made for this model). Of a list, the setting is
        taken under which the question is likeliest: it is computed once with each. "auto" takes
        plain for prompts below a quarter of the trained length. `completion.rope` tells.
        """
        request = self.request(
            prompt,
            params,
            context=context,
            prompt_progress=prompt_progress,
            parse_special=parse_special,
            rope_read=rope_read,
        )
        return Stream(self.engine, request, context)

    @overload
    def generate(
        self,
        prompt: str | list[int],
        params: SamplingParams | None = None,
        *,
        context: Context | None = None,
        parse_special: bool = False,
        rope_read: rope_choice.Asked = None,
    ) -> Completion: ...
    @overload
    def generate(
        self,
        prompt: list[str] | list[list[int]],
        params: SamplingParams | None = None,
        *,
        parse_special: bool = False,
        rope_read: rope_choice.Asked = None,
    ) -> list[Completion]: ...
    def generate(
        self,
        prompt: str | list[int] | list[str] | list[list[int]],
        params: SamplingParams | None = None,
        *,
        context: Context | None = None,
        parse_special: bool = False,
        rope_read: rope_choice.Asked = None,
    ) -> Completion | list[Completion]:
        """Complete a prompt (text or token ids), or a list of prompts in one batch.

        Returns one `Completion` for a prompt, or a list for several prompts, in their order. With
        `SamplingParams.n` above 1 it is a list of n completions for each prompt, see
        `SamplingParams.each`. In a list of prompts a bad one fails alone: its completions have
        `error`, and the finish reason "error"; for a single prompt errors are raised.

        `context` is for a single completion; this, `parse_special` and `rope_read` as for `stream`.
        """
        params = self.checked_params(params)
        self.check_rope_read(rope_read)
        is_one = not is_list_of_prompts(prompt) or (context is not None and len(prompt) == 0)
        if context is not None and (params.n > 1 or not is_one):
            raise ValueError("a context goes on with one completion, not with several")
        completions: list[Completion] = []
        streams: list[Stream] = []
        try:
            for one in [prompt] if is_one else prompt:
                for own in params.each(self.settings.seed):
                    try:
                        stream = self.stream(
                            one,  # type: ignore[arg-type]
                            own,
                            context=context,
                            parse_special=parse_special,
                            rope_read=rope_read,
                        )
                    except (LariatError, ValueError) as error:
                        if is_one:
                            raise
                        completions.append(Completion([], finish_reason="error", error=error))
                    else:
                        streams.append(stream)
                        completions.append(stream.completion)
            for stream in streams:
                try:
                    for _ in stream:
                        pass
                except Exception as error:
                    if is_one or stream.completion.error is not error:
                        raise
        finally:
            for stream in streams:
                stream.close()
        for i, completion in enumerate(completions):
            completion.prompt_logprobs = completions[i - i % params.n].prompt_logprobs
        return completions[0] if is_one and params.n == 1 else completions

    @overload
    def score(
        self,
        prompt: str | list[int],
        continuation: str | list[int],
        *,
        parse_special: bool = False,
    ) -> Score: ...
    @overload
    def score(
        self, prompt: Iterable[tuple[Text, Text]], *, parse_special: bool = False
    ) -> list[Score]: ...
    def score(
        self,
        prompt: str | list[int] | Iterable[tuple[Text, Text]],
        continuation: str | list[int] | None = None,
        *,
        parse_special: bool = False,
    ) -> Score | list[Score]:
        """How likely a continuation of a prompt is: two texts, or token ids of both.

        Without `continuation`, `prompt` is a list of such pairs, which are computed together; those
        that begin alike share what they have in common. Texts become tokens as they do in
        lm-evaluation-harness, see `lariat.runtime.scoring`; `parse_special` as for `stream`. Raises
        ValueError for a continuation without tokens, before anything is computed.
        """
        scored = scoring.encoded(
            self.tokenizer,
            self.runner,
            prompt if continuation is None else [(prompt, continuation)],  # type: ignore[arg-type, list-item]
            parse_special=parse_special,
        )
        scores = list(scoring.scores(self._scoring, scored))
        return scores if continuation is None else scores[0]

    def score_text(
        self, text: str | list[int], *, window: int | None = None, parse_special: bool = False
    ) -> Score:
        """How likely a whole text is, of any length: each token is scored once.

        Each sees the tokens before it in its window of `window` tokens, None: as many as the cache
        has room for. The windows are those of lm-evaluation-harness, see `scoring.rolling`.
        """
        most = self.n_ctx - 1  # the last token of a window is scored, and not computed
        window = most if window is None else check_whole("window", window, 1, most)
        if isinstance(text, str):
            ids = self.tokenizer.encode_part(text, add_bos=False, parse_special=parse_special)
        else:
            ids = self.runner.token_ids(text)
        begin = scoring.begin_of(self.tokenizer)
        return scoring.joined([*scoring.scores(self._scoring, scoring.rolling(ids, begin, window))])

    def _scoring(self, ids: list[int], first: int) -> Stream:
        """Begin to compute a prompt whose tokens are scored from `first` on."""
        request = self.request(ids, SamplingParams(max_tokens=0, prompt_logprobs=0))
        request.score_from(first)
        return Stream(self.engine, request)

    def context(self) -> Context:
        """Make an empty context: tokens in the cache that can be edited and continued."""
        return Context(self.runner, self.tokenizer)

    def signature(self, n_tokens: int | None = None) -> dict[str, str]:
        """Describe what two caches must share to understand each other; see `Runner.signature`."""
        return self.runner.signature(n_tokens)

    def set_rope(self, rope: RopeConfig) -> None:
        """Read all keys with other angles from now on: those in the cache stay as they are.

        Values that `rope` leaves open are those of the model's file. Contexts and streams go on;
        values, and keys above the first layer, still carry what their tokens saw. `ContextError`
        unless the cache is raw: rotated keys keep their angles.
        """
        self.runner.set_rope(rope)

    def check_rope_read(self, given: rope_choice.Asked) -> None:
        """Raise ValueError unless `rope_read` of `stream` can have this value."""
        if given is None:
            return
        rope_choice.checked(given, self.config, 0)
        if self.settings.cache != "raw":
            raise ValueError("rope_read needs the raw cache: rotated keys keep their angles")

    def token_grammar(self, grammar: Grammar) -> VocabularyGrammar:
        """A grammar in this model's tokens, for `SamplingParams`, which takes either. The first one
        takes up to a second. ValueError if it names a token that is not there."""
        return self._grammars.of(grammar)

    def check_ids(self, ids: list[int]) -> list[int]:
        """Token ids as plain ints. ValueError for other things, for none, and for ids that are not
        in the vocabulary; ContextError for more than `n_ctx`."""
        return self.runner.check_ids(ids)

    def request(
        self,
        prompt: str | list[int],
        params: SamplingParams | None = None,
        *,
        context: Context | None = None,
        prompt_progress: Callable[[int, int], None] | None = None,
        parse_special: bool = False,
        rope_read: rope_choice.Asked = None,
    ) -> Request:
        """Make the request of a stream, see `stream`. It is computed once `engine` has it."""
        params = self.checked_params(params)
        if params.n > 1:
            raise ValueError(
                f"a stream has one completion, not {params.n}: see SamplingParams.each"
            )
        check_callable("prompt_progress", prompt_progress)
        before: list[int] = []
        if context is not None:
            check_type("context", context, Context)
            context.check_runner(self.runner)
            before = context.tokens
        if isinstance(prompt, str):
            n_kept, ids = self.tokenizer.encode_behind(before, prompt, parse_special=parse_special)
        else:
            n_kept, ids = len(before), self.runner.token_ids(prompt)
        if ids or not before:
            ids = self.check_ids(ids)
        scores = None
        if params.prompt_logprobs is not None:
            if rope_read is not None:
                raise ValueError("prompt_logprobs and rope_read do not go together")
            scores = PromptLogprobs(ids, params.prompt_logprobs)
        seed = params.seed if params.seed is not None else self.settings.seed
        return Request(
            ids,
            params,
            self.runner.new_table(),
            np.random.default_rng(seed),
            Completion(ids, timings=Timings(load_s=self.load_time)),
            decoder=self.tokenizer.decoder(),
            eog_ids=self.tokenizer.eog_ids,
            n_ctx=self.n_ctx,
            replaced=before[n_kept:],
            read=self._read(rope_read, ids, n_kept + len(ids)),
            on_prompt=prompt_progress,
            scores=scores,
        )

    def checked_params(self, params: SamplingParams | None) -> SamplingParams:
        """Params, or those of the model's file for None. ValueError where the model has no such
        token, or the cache cannot do it. A grammar is one of this model's tokens afterwards."""
        self.runner.check_open()
        params = self.sampling.params if params is None else params
        check_type("params", params, SamplingParams)
        if params.context_shift:
            self.runner.check_can_shift()
        for name, ids in (("logit bias for", params.logit_bias), ("stop", params.stop_token_ids)):
            for token in ids:
                if token >= self.n_vocab:
                    raise ValueError(
                        f"{name} token {token} is not in the vocabulary of {self.n_vocab} tokens"
                    )
        check_n_top("logprobs", params.logprobs, self.n_vocab)
        check_n_top("prompt_logprobs", params.prompt_logprobs, self.n_vocab)
        if isinstance(params.grammar, Grammar):
            params = replace(params, grammar=self._grammars.of(params.grammar))
        return params

    def _read(
        self, given: rope_choice.Asked, ids: list[int], n_known: int
    ) -> rope_choice.RopeRead | None:
        """How a request is read whose new tokens are `ids`, of `n_known` in all."""
        self.check_rope_read(given)
        if given is None:
            return None
        asked = rope_choice.checked(given, self.config, n_known)
        last = [self.detokenize([i]) for i in ids[-rope_choice.MAX_QUESTION :]]
        n_before = len(ids) - rope_choice.question_length(last)
        return self.runner.rope_read(asked, n_before)


def is_list_of_prompts(prompt: object) -> bool:
    """Whether `generate` got several prompts, or none, and not a text or ids."""
    if isinstance(prompt, (str, bytes, bytearray, memoryview)) or not is_list(prompt):
        return False
    first = next(iter(prompt), "")  # type: ignore[call-overload]
    return isinstance(first, (str, bytes, bytearray)) or is_list(first)
