"""The public API: what it promises, what it refuses, and that nothing leaks whatever happens."""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lariat import LLM, Completion, ContextError, GGUFError, LariatError, SamplingParams

from tests.support.contexts import byte_ids
from tests.support.model_files import write_llama
from tests.support.together import run_together

N_VOCAB = 288
N_CTX = 256
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
DRAWN = SamplingParams(temperature=1.0, max_tokens=40, ignore_eos=True, seed=3)
EOS = 2


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return write_llama(tmp_path_factory.mktemp("model") / "m.gguf", n_ctx=N_CTX, n_vocab=N_VOCAB)


def load(path: Path, **options) -> LLM:
    return LLM(path, **{"n_threads": 1, "type_k": "f32", "type_v": "f32", **options})


@pytest.fixture
def llm(path) -> Iterator[LLM]:
    """A model that must be as good as new when the test is over."""
    with load(path) as llm:
        yield llm
        assert_idle(llm)


def assert_idle(llm: LLM) -> None:
    pool = llm.runner.cache.pool
    assert pool.n_free == pool.n_blocks, "blocks leaked"
    assert llm.runner.scheduler.n_unfinished == 0


def ids_of(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, N_VOCAB, n).tolist()


# ---- signatures ----


def test_the_signatures_are_those_agreed():
    def parameters(function) -> list[tuple]:
        found = list(inspect.signature(function).parameters.values())
        return [(p.name, p.kind.name[:1], p.default) for p in found if p.name != "self"]

    # Kinds: P positional or keyword, K keyword only.
    required = inspect.Parameter.empty
    *arguments, progress, overrides, use_mmap, prepared, speculative, n_draft, draft = parameters(
        LLM
    )
    assert arguments == [
        ("model_path", "P", required),
        ("n_ctx", "K", 0),
        ("n_threads", "K", None),
        ("n_threads_batch", "K", None),
        ("n_batch", "K", 2048),
        ("n_ubatch", "K", 512),
        ("cache", "K", "roped"),
        ("type_k", "K", "f16"),
        ("type_v", "K", "f16"),
        ("seed", "K", None),
        ("prefix_sharing", "K", True),
        ("rope", "K", None),
        ("check_tensors", "K", False),
        ("swa_window_only", "K", False),
    ]
    assert (progress, overrides) == (("progress", "K", None), ("overrides", "K", None))
    assert use_mmap == ("use_mmap", "K", True)
    assert prepared == ("prepared", "K", True)
    assert (speculative, n_draft) == (("speculative", "K", None), ("n_draft", "K", 8))
    assert draft == ("draft_model", "K", None)
    tokenize = [("text", "P", required), ("add_bos", "P", True), ("parse_special", "P", False)]
    assert parameters(LLM.tokenize) == tokenize
    assert parameters(LLM.detokenize) == [("ids", "P", required)]
    assert parameters(LLM.logits) == [("ids", "P", required)]
    for function in (LLM.stream, LLM.generate):
        found = parameters(function)
        assert [(name, kind) for name, kind, _ in found[:2]] == [("prompt", "P"), ("params", "P")]
        assert ("parse_special", "K", False) in found


def test_what_a_loaded_model_tells(llm):
    assert (llm.n_vocab, llm.n_ctx, llm.n_threads, llm.n_threads_batch) == (N_VOCAB, N_CTX, 1, 1)
    assert llm.load_time > 0
    assert llm.tokenizer.n_vocab == llm.config.n_vocab == N_VOCAB
    ids = llm.tokenize("the hen\nsat")
    assert ids[0] == 1
    assert llm.tokenize("the hen\nsat", add_bos=False) == ids[1:]
    assert llm.detokenize(ids) == "the hen\nsat"
    assert llm.tokenize("</s>") != [1, EOS]
    assert llm.tokenize("</s>", parse_special=True)[-1] == EOS


def test_threads_for_prompts_are_those_for_decoding_unless_given(path):
    with load(path, n_threads=2) as a, load(path, n_threads=1, n_threads_batch=2) as b:
        assert (a.n_threads, a.n_threads_batch) == (2, 2)
        assert (b.n_threads, b.n_threads_batch) == (1, 2)


def test_params_are_frozen_and_bad_ones_refused():
    with pytest.raises(AttributeError):
        SamplingParams().temperature = 0.5  # type: ignore[misc]
    for bad in (
        {"temperature": float("nan")},
        {"temperature": -0.1},
        {"max_tokens": -5},
        {"max_tokens": 1.5},
        {"top_k": -1},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"typical_p": float("inf")},
        {"repeat_penalty": 0.0},
        {"seed": -1},
        {"stop": ("",)},
        {"logit_bias": {-1: 0.0}},
        {"logit_bias": {1: float("nan")}},
    ):
        with pytest.raises(ValueError, match=next(iter(bad)).replace("_bias", ".bias") + "|stop"):
            SamplingParams(**bad)


# ---- bad input ----


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_threads": 0}, r"^n_threads is 0, expected 1 to"),
        ({"n_threads": 1_000_000}, r"^n_threads is 1000000"),
        ({"n_threads": 1.5}, r"^n_threads is 1\.5"),
        ({"n_threads_batch": 0}, r"^n_threads_batch is 0"),
        ({"n_ctx": -1}, r"^n_ctx is -1"),
        ({"n_ctx": 1 << 40}, r"^n_ctx is 1099511627776"),
        ({"n_ctx": "8"}, r"^n_ctx is '8'"),
        ({"n_batch": 0}, r"^n_batch is 0"),
        ({"n_ubatch": 0}, r"^n_ubatch is 0"),
        ({"cache": "rope"}, r"^cache is 'rope', expected one of roped, raw"),
        ({"cache": None}, r"^cache is None"),
        ({"type_k": "q3"}, r"^type_k is 'q3', expected one of f16, f32, q8_0, q4_0, q8_ch, q4_ch"),
        ({"type_v": "F16"}, r"^type_v is 'F16'"),
        ({"seed": -1}, r"^seed is -1"),
        ({"seed": True}, r"^seed is True"),
    ],
)
def test_bad_options_are_refused_before_the_file_is_touched(options, words):
    with pytest.raises(ValueError, match=words):
        LLM("/no/such/file", **options)


def test_files_that_are_no_models(tmp_path):
    with pytest.raises(FileNotFoundError):
        LLM(tmp_path / "missing.gguf")
    with pytest.raises(GGUFError, match="directory"):
        LLM(tmp_path)
    (tmp_path / "text").write_text("no model at all, but a long enough text to hold a header")
    with pytest.raises(GGUFError, match="text"):
        LLM(str(tmp_path / "text"))


@pytest.mark.parametrize("call", ["logits", "stream", "generate"])
@pytest.mark.parametrize(
    ("ids", "error", "words"),
    [
        ([1, N_VOCAB], ValueError, rf"token id {N_VOCAB} is out of range, expected 0 to 287"),
        ([-1], ValueError, "token id -1 is out of range"),
        ([1 << 40], ValueError, "out of range"),
        ([1.0], ValueError, "not a token id"),
        ([True], ValueError, "not a token id"),
        ([1, "a"], ValueError, "not a token id"),
        ([], ValueError, "empty"),
        ([5] * (N_CTX + 1), ContextError, rf"{N_CTX + 1}\b.*\b{N_CTX}\b"),
    ],
)
def test_bad_token_ids(llm, call, ids, error, words):
    if call == "generate" and not ids:
        ids = ""  # an empty list would be no prompts at all
        llm.tokenizer.add_bos = False
    with pytest.raises(error, match=words):
        getattr(llm, call)(ids)
    assert_idle(llm)
    if ids:
        fine, bad, also_fine = llm.generate([[5, 6], ids, [7]], GREEDY)
        assert fine.token_ids == llm.generate([5, 6], GREEDY).token_ids
        assert also_fine.token_ids == llm.generate([7], GREEDY).token_ids
        assert (fine.error, also_fine.error) == (None, None)
        assert (bad.text, bad.finish_reason) == ("", "error")
        with pytest.raises(error, match=words):
            raise bad.error


def test_a_request_of_a_list_that_fails_later_fails_alone(llm):
    prompts = [ids_of(20, i) for i in range(3)]

    def fail(ids, logits):
        if ids[:20] == prompts[1] and len(ids) == 25:
            raise OSError("no such thing")
        return logits

    params = replace(GREEDY, logits_processors=[fail])
    together = llm.generate(prompts, params)
    assert [done.finish_reason for done in together] == ["length", "error", "length"]
    assert len(together[1].token_ids) == 5
    assert "fail raised OSError: no such thing" in str(together[1].error)
    for i in (0, 2):
        assert together[i].token_ids == llm.generate(prompts[i], GREEDY).token_ids
    with pytest.raises(LariatError, match="no such thing"):
        llm.generate(prompts[1], params)


def test_what_is_wrong_with_all_of_a_list_is_raised(llm):
    for params, words in (
        (SamplingParams(logit_bias={N_VOCAB: 1.0}), "logit bias for token 288"),
        (SamplingParams(logprobs=N_VOCAB + 1), "logprobs is 289"),
        ("greedy", "params is of type str"),
    ):
        with pytest.raises(ValueError, match=words):
            llm.generate([[5], [6]], params)
    with pytest.raises(ValueError, match="rope_read needs the raw cache"):
        llm.generate([[5], [6]], GREEDY, rope_read="plain")


# ---- several completions of a prompt ----


def test_n_completions_are_those_of_their_own_seeds(llm):
    params = replace(DRAWN, n=3, logprobs=1, prompt_logprobs=1)
    together = llm.generate(ids_of(70), params)
    assert len({tuple(done.token_ids) for done in together}) == 3
    own = params.each()
    assert own[0] == replace(params, n=1)
    assert [one.seed for one in own[1:]] == [
        np.random.SeedSequence((3, i)).generate_state(1, np.uint64)[0] for i in (1, 2)
    ]
    for done, one in zip(together, own, strict=True):
        alone = llm.generate(ids_of(70), one)
        assert (alone.token_ids, alone.logprobs) == (done.token_ids, done.logprobs)
        assert len(done.prompt_logprobs) == 70
    assert [done.timings.n_prompt for done in together] == [70, 6, 6], "the prompt is computed once"


def test_n_completions_of_each_prompt_of_a_list(llm):
    params = replace(DRAWN, n=2)
    prompts = [ids_of(9), [N_VOCAB], ids_of(9, 1)]
    together = llm.generate(prompts, params)
    assert [done.finish_reason for done in together] == [*["length"] * 2, *["error"] * 2] + [
        "length"
    ] * 2
    for i in (0, 2):
        alone = [done.token_ids for done in llm.generate(prompts[i], params)]
        assert [done.token_ids for done in together[2 * i : 2 * i + 2]] == alone


def test_n_completions_without_a_seed_differ(path):
    params = replace(DRAWN, n=3, seed=None)
    with load(path) as llm:
        assert len({tuple(done.token_ids) for done in llm.generate([5, 6], params)}) == 3
    with load(path, seed=3) as llm:  # the model's own seed
        done = llm.generate([5, 6], params)
        assert [d.token_ids for d in done] == [
            d.token_ids for d in llm.generate([5, 6], replace(params, seed=3))
        ]


def test_a_context_has_one_completion(llm):
    with llm.context() as context, pytest.raises(ValueError, match="one completion, not with"):
        llm.generate([5, 6], replace(GREEDY, n=2), context=context)


def test_a_text_longer_than_the_context_says_both_numbers(llm):
    text = "z" * 300
    n = len(llm.tokenize(text))
    assert n > N_CTX
    with pytest.raises(ContextError, match=rf"{n}\b.*\b{N_CTX}\b"):
        llm.generate(text)


def test_a_bias_for_a_token_that_is_not_there(llm):
    with pytest.raises(ValueError, match=f"{N_VOCAB}"):
        llm.stream([1], SamplingParams(logit_bias={N_VOCAB: 1.0}))


def test_a_closed_model(path):
    llm = load(path)
    stream = llm.stream([5, 6], GREEDY)
    next(stream)
    llm.close()
    llm.close()
    for call in (llm.logits, llm.stream, llm.generate):
        with pytest.raises(ValueError, match="closed"):
            call([1, 2])
    with pytest.raises(ValueError, match="closed"):
        llm.generate("a")
    stream.close()
    assert stream.completion.finish_reason is None
    assert stream.completion.token_ids
    # A model is used in a `with` statement, and closed at its end even after an error.
    with pytest.raises(KeyError), load(path) as again:
        raise KeyError
    with pytest.raises(ValueError, match="closed"):
        again.logits([1])


# ---- completions ----


@pytest.mark.parametrize("cache", ["roped", "raw"])
@pytest.mark.parametrize("params", [GREEDY, DRAWN])
def test_stream_and_generate_say_the_same(path, cache, params):
    with load(path, cache=cache) as llm:
        done = llm.generate("the hen", params)
        stream = llm.stream("the hen", params)
        pieces = list(stream)
        assert list(stream) == []
        assert_idle(llm)
    assert all(pieces)
    assert "".join(pieces) == done.text == stream.completion.text
    assert stream.completion.token_ids == done.token_ids
    assert done.finish_reason == stream.completion.finish_reason == "length"


def test_the_fields_of_a_completion(llm):
    prompt = ids_of(50)
    done = llm.generate(prompt, GREEDY)
    assert isinstance(done, Completion)
    assert done.prompt_ids == prompt
    assert len(done.token_ids) == GREEDY.max_tokens
    assert all(type(token) is int and 0 <= token < N_VOCAB for token in done.token_ids)
    raw = b"".join(llm.tokenizer.decode_token(token) for token in done.token_ids)
    assert done.text == raw.decode(errors="replace")
    t = done.timings
    assert t.load_s == llm.load_time
    assert (t.n_prompt, t.n_decode) == (50, GREEDY.max_tokens - 1)
    assert t.prompt_s > 0
    assert t.decode_s > 0
    assert t.prompt_per_s == pytest.approx(50 / t.prompt_s)
    assert t.decode_per_s == pytest.approx(t.n_decode / t.decode_s)


@pytest.mark.parametrize(("n_prompt", "n_batch"), [(1, 512), (33, 32), (64, 3)])
def test_the_last_token_of_a_prompt_counts_as_prompt(path, n_prompt, n_batch):
    with load(path, n_batch=n_batch) as llm:
        t = llm.generate(ids_of(n_prompt), GREEDY).timings
    assert (t.n_prompt, t.n_decode) == (n_prompt, GREEDY.max_tokens - 1)


def test_greedy_takes_the_largest_logit_of_each_step(llm):
    prompt = ids_of(30)
    done = llm.generate(prompt, GREEDY)
    logits = llm.logits(prompt + done.token_ids)
    assert logits[len(prompt) - 1 : -1].argmax(axis=1).tolist() == done.token_ids


def test_an_end_token_stops_and_is_not_part_of_it(llm, script):
    script([5, 6], [*byte_ids("hey"), EOS, 50])
    done = llm.generate([5, 6], SamplingParams(max_tokens=9))
    assert (done.text, done.token_ids, done.finish_reason) == ("hey", byte_ids("hey"), "stop")


def test_an_end_token_at_once_gives_an_empty_text(llm):
    done = llm.generate([5, 6], SamplingParams(logit_bias={EOS: 100.0}))
    assert (done.text, done.token_ids, done.finish_reason) == ("", [], "stop")


def test_ignore_eos_never_says_it(llm):
    params = SamplingParams(logit_bias={EOS: 100.0}, ignore_eos=True, max_tokens=20, seed=1)
    done = llm.generate([5, 6], params)
    assert EOS not in done.token_ids
    assert (len(done.token_ids), done.finish_reason) == (20, "length")


@pytest.mark.parametrize("n_prompt", [1, 31, 33, 38, 39, 40])
def test_a_full_context_ends_the_text(path, n_prompt):
    with load(path, n_ctx=40) as llm:
        params = SamplingParams(temperature=0, ignore_eos=True)
        done = llm.generate(ids_of(n_prompt), params)
        assert_idle(llm)
    assert done.finish_reason == "context"
    assert len(done.token_ids) == max(1, 40 - n_prompt)


def test_the_smallest_context_holds_one_token(path):
    with load(path, n_ctx=1, n_batch=1, n_ubatch=1) as llm:
        assert llm.logits([5]).shape == (1, N_VOCAB)
        assert llm.generate([5], GREEDY).finish_reason == "context"


def test_max_tokens_0_computes_nothing(llm, monkeypatch):
    monkeypatch.setattr(llm.runner.model, "forward", None)
    stream = llm.stream([5, 6], SamplingParams(max_tokens=0))
    assert list(stream) == []
    assert (stream.completion.text, stream.completion.finish_reason) == ("", "length")
    assert [c.token_ids for c in llm.generate([[5], [6]], SamplingParams(max_tokens=0))] == [[], []]


def test_no_prompts_give_no_completions(llm):
    assert llm.generate([]) == []


def test_ids_may_be_any_integers(llm):
    expected = llm.generate([5, 6, 7], GREEDY).token_ids
    for prompt in (np.array([5, 6, 7]), (5, 6, 7), [np.int32(5), 6, np.uint8(7)]):
        assert llm.generate(prompt, GREEDY).token_ids == expected
    both = llm.generate(np.array([[5, 6, 7], [5, 6, 7]]), GREEDY)
    assert [c.token_ids for c in both] == [expected, expected]


def test_the_prompt_is_copied(llm):
    prompt = [5, 6, 7]
    stream = llm.stream(prompt, GREEDY)
    prompt.append(N_VOCAB + 1)
    assert "".join(stream) == llm.generate([5, 6, 7], GREEDY).text
    assert prompt == [5, 6, 7, N_VOCAB + 1]


@pytest.mark.parametrize("n_ubatch", [1, 7, 512])
def test_prompt_progress_rises_to_the_whole_prompt(path, n_ubatch):
    seen: list[tuple[int, int]] = []
    with load(path, n_ubatch=n_ubatch, n_batch=32) as llm:
        stream = llm.stream(ids_of(50), GREEDY, prompt_progress=lambda *at: seen.append(at))
        assert not seen
        next(stream)
        list(stream)
    assert seen == sorted(set(seen))
    assert seen[-1] == (50, 50)
    assert {total for _, total in seen} == {50}
    assert len(seen) >= 50 // min(n_ubatch, 32)


# ---- seeds ----


def test_seeds(path, llm):
    def text(llm: LLM, seed: int | None) -> list[int]:
        params = SamplingParams(temperature=1.0, max_tokens=40, ignore_eos=True, seed=seed)
        return llm.generate([5, 6], params).token_ids

    assert text(llm, 1) == text(llm, 1)
    assert text(llm, 1) != text(llm, 2)
    assert text(llm, None) != text(llm, None)
    with load(path, seed=1) as seeded:
        assert text(seeded, None) == text(seeded, None) == text(llm, 1)
        assert text(seeded, 2) == text(llm, 2)


def test_a_seed_gives_the_same_alone_and_in_a_list(llm):
    prompts = [ids_of(n, seed=n) for n in (1, 5, 31, 32, 33, 64)]
    together = llm.generate([*prompts, prompts[0]], DRAWN)
    alone = [llm.generate(prompt, DRAWN) for prompt in prompts]
    assert [c.token_ids for c in together] == [c.token_ids for c in [*alone, alone[0]]]
    assert [c.text for c in together[:-1]] == [c.text for c in alone]
    assert [c.prompt_ids for c in together[:-1]] == prompts


# ---- logits ----


def test_logits_are_float32_and_the_callers_own(llm):
    ids = ids_of(45)
    first = llm.logits(ids)
    assert first.dtype == np.float32
    assert first.shape == (45, N_VOCAB)
    assert np.isfinite(first).all()
    copy = first.copy()
    other = llm.logits(ids_of(45, seed=1))
    assert not np.array_equal(first, other)
    assert np.array_equal(first, copy), "a later call has overwritten them"
    assert np.array_equal(llm.logits(ids), first)
    assert np.allclose(llm.logits(ids[:10]), first[:10], atol=1e-4)


def test_logits_while_a_stream_is_open(llm):
    expected = llm.generate([5, 6], DRAWN)
    logits = llm.logits(ids_of(40))
    with llm.stream([5, 6], DRAWN) as stream:
        for i, _ in enumerate(stream):
            if i % 5 == 0:
                n_free = llm.runner.cache.pool.n_free
                assert np.array_equal(llm.logits(ids_of(40)), logits)
                assert llm.runner.cache.pool.n_free == n_free
    assert stream.completion.token_ids == expected.token_ids


def test_logits_that_find_no_room_say_so_and_harm_nobody(llm):
    params = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
    prompt = ids_of(200)
    expected = llm.generate(prompt, params).token_ids
    with llm.stream(prompt, params) as stream:
        next(stream)
        with pytest.raises(ContextError, match="hold"):
            llm.logits(ids_of(100))
        assert llm.logits(ids_of(30)).shape == (30, N_VOCAB)
        list(stream)
    assert stream.completion.token_ids == expected


# ---- several at once ----


def test_streams_interleaved_in_any_order(llm):
    prompts = [ids_of(n, seed=n) for n in (3, 40, 20)]
    expected = [llm.generate(prompt, DRAWN) for prompt in prompts]
    rng = random.Random(0)
    streams = [llm.stream(prompt, DRAWN) for prompt in prompts]
    texts = ["", "", ""]
    open_ones = [0, 1, 2]
    while open_ones:
        i = rng.choice(open_ones)
        piece = next(streams[i], None)
        if piece is None:
            open_ones.remove(i)
        else:
            texts[i] += piece
    assert texts == [c.text for c in expected]
    assert [s.completion.token_ids for s in streams] == [c.token_ids for c in expected]


def test_a_stream_that_comes_later_joins(llm):
    expected = [llm.generate(ids_of(n), DRAWN).token_ids for n in (10, 60)]
    first = llm.stream(ids_of(10), DRAWN)
    next(first)
    second = llm.stream(ids_of(60), DRAWN)
    list(second), list(first)
    assert [first.completion.token_ids, second.completion.token_ids] == expected


@pytest.mark.parametrize("n_ctx", [96, 100, 128])
@pytest.mark.parametrize("params", [GREEDY, DRAWN])
def test_a_pool_too_small_for_all_completes_them_all(path, n_ctx, params):
    """Some wait, some are preempted and computed again: each says what it says alone."""
    prompts = [ids_of(n, seed=n) for n in (30, 31, 50, 2, 33, 20)]
    with load(path, n_ctx=n_ctx) as llm:
        alone = [llm.generate(prompt, params) for prompt in prompts]
        together = llm.generate(prompts, params)
        assert_idle(llm)
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    assert [c.text for c in together] == [c.text for c in alone]
    assert {c.finish_reason for c in together} == {"length"}


@pytest.mark.parametrize("n_batch", [1, 5, 33])
def test_a_small_batch_gives_the_same_tokens(path, n_batch):
    prompts = [ids_of(n, seed=n) for n in (30, 2, 33)]
    with load(path, n_batch=n_batch) as llm, load(path) as other:
        together, expected = llm.generate(prompts, GREEDY), other.generate(prompts, GREEDY)
    assert [c.token_ids for c in together] == [c.token_ids for c in expected]


def test_threads_that_generate_at_once(llm):
    """Each takes steps for all; one whose text another thread has finished does not go on."""
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    expected = [llm.generate([5 + i, 6], params).token_ids for i in range(4)]

    def work(i: int) -> None:
        for _ in range(40):
            assert llm.generate([5 + i, 6], params).token_ids == expected[i]

    run_together(work)
