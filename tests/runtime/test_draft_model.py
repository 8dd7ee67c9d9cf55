"""A second model that guesses: nothing of the text changes, and its cache follows the text."""

from dataclasses import replace

import numpy as np
import pytest
from lariat import DEMO_MODEL, LLM, RopeConfig, SamplingParams
from lariat.errors import ModelError
from lariat.runtime import draft_model
from lariat.runtime.draft_model import DraftModel
from lariat.runtime.pace import Pace
from lariat.runtime.runner import Runner

from tests.support.contexts import CACHES, ids_of, load, n_held
from tests.support.model_files import write_llama

GREEDY = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
SAMPLED = replace(GREEDY, temperature=0.8, seed=1)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("m") / "m.gguf", n_layers=2, n_ctx=512, head_dim=32)


@pytest.fixture(scope="module")
def rough(tmp_path_factory):
    """The same weights in 8 bits: guesses that are often right."""
    path = tmp_path_factory.mktemp("d") / "d.gguf"
    return write_llama(path, n_layers=2, n_ctx=512, head_dim=32, weight_type="Q8_0")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """Other weights: guesses that are nearly always wrong."""
    path = tmp_path_factory.mktemp("d") / "d.gguf"
    return write_llama(path, n_layers=1, n_ctx=512, head_dim=32, seed=9)


@pytest.fixture(autouse=True)
def daring(monkeypatch):
    """Random weights find nothing likely; the demo model does."""
    monkeypatch.setattr(draft_model, "_MIN_PROBABILITY", 0.0)


@pytest.fixture
def drafts(monkeypatch):
    """The draft models that were made."""
    made = []
    init = DraftModel.__init__

    def noted(self, runner, *args):
        init(self, runner, *args)
        made.append(runner)

    monkeypatch.setattr(DraftModel, "__init__", noted)
    return made


def outcome(done):
    return [(d.token_ids, d.text, d.finish_reason, d.stop_reason, d.logprobs) for d in done]


def counts(done):
    return sum(d.timings.n_drafted for d in done), sum(d.timings.n_accepted for d in done)


SETTINGS = [
    GREEDY,
    replace(GREEDY, max_tokens=20, ignore_eos=False, min_tokens=9),
    replace(GREEDY, repeat_penalty=1.3, logit_bias={7: 2.0, 9: -np.inf}),
    replace(SAMPLED, logprobs=2),
    replace(SAMPLED, temperature=0.2, top_k=2, seed=5),
]


@pytest.mark.parametrize("type", ["f16", "q8_0", "q4_ch"])
@pytest.mark.parametrize("cache", CACHES)
def test_the_same_text(path, rough, stranger, cache, type):
    prompts = [ids_of(61), ids_of(33, seed=1)]
    plain = load(path, cache, type_k=type, type_v=type)
    right = load(path, cache, type_k=type, type_v=type, draft_model=rough)
    wrong = load(path, cache, type_k=type, type_v=type, draft_model=stranger)
    with plain, right, wrong:
        for llm, least, most in ((right, 0.3, 0.99), (wrong, 0.0, 0.3)):
            n_drafted = n_accepted = 0
            for params in SETTINGS:
                expected = plain.generate(prompts, params)
                done = llm.generate(prompts, params)
                assert outcome(done) == outcome(expected), params
                n_drafted += counts(done)[0]
                n_accepted += counts(done)[1]
                llm.runner.sweep()
                assert n_held(llm) == 0
            assert least <= n_accepted / n_drafted <= most


def test_its_blocks_are_given_back(path, rough, drafts):
    with load(path, draft_model=rough) as llm:
        (draft,) = drafts
        stream = llm.stream(ids_of(40), GREEDY)
        next(stream)
        for _ in range(3):
            next(stream)
        assert draft.cache.pool.n_free < draft.cache.pool.n_blocks
        stream.close()
        llm.runner.sweep()
        assert draft.cache.pool.n_free == draft.cache.pool.n_blocks
    assert draft.closed


def test_its_cache_holds_the_accepted_tokens_only(path, rough, drafts, monkeypatch):
    """Each pass of the draft model computes what is new, and nothing twice."""
    passes = []
    forward = Runner.forward

    def noted(self, parts, n_threads=None):
        if drafts and self is drafts[0]:
            passes.append([(part.n_past, list(part.token_ids)) for part in parts])
        return forward(self, parts, n_threads)

    monkeypatch.setattr(Runner, "forward", noted)
    with load(path, draft_model=rough) as llm:
        done = llm.generate(ids_of(40), GREEDY)
    ids = ids_of(40) + done.token_ids
    assert passes[0] == [(0, ids[:41])]
    for n_past, some in [part for parts in passes[1:] for part in parts]:
        assert n_past <= len(ids)
        assert len(some) <= 2  # a guess; or the token behind the last guess, and that guess
        assert n_past >= 41
    n_computed = sum(len(some) for parts in passes for _, some in parts)
    assert n_computed <= len(ids) + done.timings.n_drafted


def test_prompts_that_begin_alike_share_its_blocks(path, rough, drafts, monkeypatch):
    n_computed = []
    forward = Runner.forward

    def noted(self, parts, n_threads=None):
        if drafts and self is drafts[0]:
            n_computed.append(sum(len(part.token_ids) for part in parts))
        return forward(self, parts, n_threads)

    monkeypatch.setattr(Runner, "forward", noted)
    with load(path, draft_model=rough) as llm:
        llm.generate(ids_of(100), replace(GREEDY, max_tokens=4))
        assert n_computed[0] == 101
        n_computed.clear()
        llm.generate([*ids_of(100), 5, 6], replace(GREEDY, max_tokens=4))
    assert n_computed[0] == 103 - 96


def test_a_long_prompt_is_read_step_by_step(path, rough, drafts, monkeypatch):
    """A text that is not read yet has no guesses, and holds nobody up."""
    monkeypatch.setattr(Pace, "budget", 48)  # whatever the machine is doing
    largest, read = [], []
    forward = Runner.forward

    def noted(self, parts, n_threads=None):
        largest.append(sum(len(part.token_ids) for part in parts))
        if self is drafts[0]:
            read.extend(n for part in parts if (n := len(part.token_ids)) > 32)
        return forward(self, parts, n_threads)

    prompts = [ids_of(200), ids_of(10, seed=3)]
    with load(path, n_ubatch=64) as llm:
        plain = llm.generate(prompts, GREEDY)
    monkeypatch.setattr(Runner, "forward", noted)
    with load(path, n_ubatch=64, draft_model=rough) as llm:
        done = llm.generate(prompts, GREEDY)
    assert outcome(done) == outcome(plain)
    assert max(largest) <= 64
    assert read[:4] == [48] * 4
    assert all(d.timings.n_accepted for d in done)


def test_a_cache_without_room_guesses_less(path, rough, drafts):
    """Prompts that share blocks fit into the large model's cache, but their texts need more."""
    prompts = [[*ids_of(96), n] for n in range(8)]
    with load(path, n_ctx=256) as llm:
        plain = llm.generate(prompts, replace(GREEDY, max_tokens=20))
    with load(path, n_ctx=256, draft_model=rough) as llm:
        done = llm.generate(prompts, replace(GREEDY, max_tokens=20))
        llm.runner.sweep()
        assert drafts[0].cache.pool.n_free == drafts[0].cache.pool.n_blocks
    assert outcome(done) == outcome(plain)


def test_an_error_of_its_pass_ends_guessing(path, rough, drafts, monkeypatch):
    forward = Runner.forward

    def broken(self, parts, n_threads=None):
        if drafts and self is drafts[0] and parts[0].n_past > 45:
            raise RuntimeError("no more")
        return forward(self, parts, n_threads)

    with load(path) as llm:
        plain = llm.generate([ids_of(40), ids_of(9)], SAMPLED)
    monkeypatch.setattr(Runner, "forward", broken)
    with load(path, draft_model=rough) as llm:
        with pytest.warns(RuntimeWarning, match="switched off: no more"):
            done = llm.generate([ids_of(40), ids_of(9)], SAMPLED)
        llm.runner.sweep()
        assert drafts[0].cache.pool.n_free == drafts[0].cache.pool.n_blocks
    assert outcome(done) == outcome(plain)


def test_an_interrupt_in_its_pass_leaves_its_cache_whole(path, rough, drafts, monkeypatch):
    forward, n_left = Runner.forward, [3]

    def interrupted(self, parts, n_threads=None):
        if drafts and self is drafts[0]:
            n_left[0] -= 1
            if not n_left[0]:
                forward(self, parts, n_threads)
                raise KeyboardInterrupt
        return forward(self, parts, n_threads)

    with load(path) as llm:
        plain = llm.generate(ids_of(40), SAMPLED)
    monkeypatch.setattr(Runner, "forward", interrupted)
    with load(path, draft_model=rough) as llm:
        stream = llm.stream(ids_of(40), SAMPLED)
        with pytest.raises(KeyboardInterrupt):
            for _ in stream:
                pass
        for _ in stream:
            pass
        llm.runner.sweep()
        assert drafts[0].cache.pool.n_free == drafts[0].cache.pool.n_blocks
    assert outcome([stream.completion]) == outcome([plain])


def test_the_demo_model_behind_a_context(monkeypatch):
    monkeypatch.undo()
    facts = "The key of the red door is 4 8 2 1. The key of the blue door is 7 3 9 5. "
    question = "\nQuestion: What is the key of the red door?\nAnswer:"
    texts = []
    for options in ({}, {"draft_model": DEMO_MODEL}):
        with LLM(DEMO_MODEL, **options) as llm, llm.context() as context:
            context.append(facts)
            for _ in range(2):
                done = llm.generate(question, replace(GREEDY, stop=("\n",)), context=context)
                texts.append((done.text, len(context)))
            assert done.timings.n_drafted == done.timings.n_accepted
            assert bool(options) == (done.timings.decode_per_pass > 3)
    assert texts[:2] == texts[2:]
    assert "4 8 2 1" in texts[0][0]


def test_the_same_model_guesses_sampled_tokens_too(path):
    """Both draw with the same numbers, so a model that is its own draft is always right."""
    with load(path, type_k="f16", type_v="f16", draft_model=path, cache="roped") as llm:
        done = llm.generate([ids_of(20), ids_of(33, seed=1)], SAMPLED)
    n_drafted, n_accepted = counts(done)
    assert n_accepted == n_drafted > 50


def test_the_distribution_of_sampled_tokens(path, rough):
    """Histograms of each place of the text, with and without guesses, and other seeds."""
    n = 1024
    params = replace(SAMPLED, temperature=1.2, top_k=6, top_p=1.0, min_p=0.0, max_tokens=4, n=n)
    found = []
    for seed, options in enumerate(({}, {"draft_model": rough}, {})):
        with load(path, n_ctx=1 << 16, rope=RopeConfig(scaling="none"), **options) as llm:
            done = llm.generate(ids_of(5), replace(params, seed=seed))
        found.append(np.array([d.token_ids for d in done]))
        n_drafted, n_accepted = counts(done)
        assert bool(options) == (0 < n_accepted < n_drafted)

    def distance(a, b):
        """Half the sum of differences of shares: 0 same, 1 nothing in common."""
        size = 288
        return max(
            abs(np.bincount(x, minlength=size) - np.bincount(y, minlength=size)).sum() / (2 * n)
            for x, y in zip(a.T, b.T, strict=True)
        )

    plain, guessed, other = found
    assert distance(plain, guessed) < 1.5 * distance(plain, other) + 0.01
    assert distance(plain, np.roll(plain, 1, axis=1)) > 0.3  # the measure tells places apart


def test_vocabularies_must_be_the_same(path, tmp_path):
    other = write_llama(tmp_path / "large.gguf", n_layers=1, n_vocab=640)
    with pytest.raises(ModelError, match="its vocabulary has 640 tokens, and the model's 288"):
        load(path, draft_model=other)
    with pytest.raises(ModelError, match=r"large\.gguf: cannot guess for this model: its token"):
        load(DEMO_MODEL, draft_model=write_llama(tmp_path / "large.gguf", n_vocab=2048))


def test_padded_vocabularies(path, tmp_path):
    """One has more tokens at its end, that nobody uses."""
    shorter = write_llama(tmp_path / "s.gguf", n_layers=1, n_ctx=512, n_vocab=270)
    longer = write_llama(tmp_path / "l.gguf", n_layers=1, n_ctx=512, n_vocab=300)
    ids = [i for i in ids_of(40) if i < 270]
    for draft in (shorter, longer):
        for prompt in (ids, [*ids, 287]):
            with load(path) as llm:
                plain = llm.generate(prompt, GREEDY)
            with load(path, draft_model=draft) as llm:
                done = llm.generate(prompt, GREEDY)
            assert outcome([done]) == outcome([plain])
            assert (done.timings.n_drafted > 0) == (draft is longer or prompt is ids)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speculative": "draft"}, "needs a draft_model"),
        ({"speculative": "ngram", "draft_model": "x"}, "guesses with speculative 'draft', not"),
        ({"draft_model": 7}, "draft_model is 7, expected a path"),
    ],
)
def test_parameters_that_contradict_each_other(path, options, message):
    with pytest.raises(ValueError, match=message):
        LLM(path, **options)


def test_a_file_that_is_missing(path, tmp_path):
    with pytest.raises(FileNotFoundError):
        LLM(path, draft_model=tmp_path / "none.gguf")


def test_passes_with_guesses_have_the_threads_of_decoding(path, rough, monkeypatch):
    used = []
    from lariat.architectures.model import Model

    forward = Model.forward

    def noted(self, batch, n_threads):
        used.append((batch.n_tokens, n_threads))
        return forward(self, batch, n_threads)

    monkeypatch.setattr(Model, "forward", noted)
    with load(path, n_threads=1, n_threads_batch=2, draft_model=rough) as llm:
        llm.generate(ids_of(100), GREEDY)
    assert {n for n_tokens, n in used if n_tokens >= 100} == {2}
    assert {n for n_tokens, n in used if n_tokens < 100} == {1}
    assert any(n_tokens == 9 for n_tokens, _ in used)
