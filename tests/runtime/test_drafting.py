"""Speculation changes no token: greedy and sampled, alone and among others."""

from dataclasses import replace

import pytest
from lariat import DEMO_MODEL, LLM, Grammar, SamplingParams
from lariat.runtime import drafting
from lariat.runtime.runner import Runner

from tests.support.contexts import CACHES, ids_of, load, n_held
from tests.support.model_files import write_llama

GREEDY = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
FACTS = "The key of the red door is 4 8 2 1. The key of the blue door is 7 3 9 5. " * 3


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("m") / "m.gguf", n_layers=2, n_ctx=512, head_dim=32)


def written(path, cache, type, prompts, params, **options):
    with load(path, cache, type_k=type, type_v=type, **options) as llm:
        done = llm.generate(prompts, params)
        llm.runner.sweep()
        assert n_held(llm) == 0
    return done


def outcome(done):
    return [(d.token_ids, d.text, d.finish_reason, d.stop_reason, d.logprobs) for d in done]


SETTINGS = [
    GREEDY,
    replace(GREEDY, logprobs=2),
    replace(GREEDY, max_tokens=7),
    replace(GREEDY, max_tokens=-1, ignore_eos=False),
    *(replace(GREEDY, temperature=0.8, seed=seed) for seed in range(3)),
    replace(GREEDY, temperature=0.2, top_k=2, seed=5),
]


@pytest.mark.parametrize("speculative", ["ngram", "auto"])
@pytest.mark.parametrize("type", ["f16", "q8_0", "q4_ch"])
@pytest.mark.parametrize("cache", CACHES)
def test_the_same_text(path, cache, type, speculative):
    prompts = [ids_of(20) * 4, ids_of(33, seed=1), ids_of(20) * 3, [5, 6] * 20]
    n_accepted = n_rejected = 0
    for params in SETTINGS:
        plain = written(path, cache, type, prompts, params)
        done = written(path, cache, type, prompts, params, speculative=speculative)
        assert outcome(done) == outcome(plain), params
        n_accepted += sum(d.timings.n_accepted for d in done)
        n_rejected += sum(d.timings.n_drafted - d.timings.n_accepted for d in done)
    assert n_accepted > 20
    assert n_rejected > 20


@pytest.mark.parametrize("cache", CACHES)
def test_demo_model_with_stop_texts_and_a_context(cache):
    question = FACTS + "\nQuestion: What is the key of the red door?\nAnswer:"
    params = replace(GREEDY, stop=("\n", "8 2 1"), ignore_eos=False)
    texts = []
    for speculative in (None, "ngram"):
        with LLM(DEMO_MODEL, cache=cache, speculative=speculative) as llm:
            with llm.context() as context:
                context.append(FACTS)
                done = llm.generate(question[len(FACTS) :], params, context=context)
                n_cached = len(context)
            alone = llm.generate(question, params)
            texts.append(
                (
                    done.text,
                    done.token_ids,
                    n_cached,
                    alone.text,
                    alone.stop_reason,
                    alone.token_ids,
                )
            )
    assert texts[0] == texts[1]
    assert done.timings.n_accepted > 0


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_a_grammar_and_its_forced_tokens(temperature):
    grammar = Grammar.regex(r"(The key of the door is [0-9]\. )+")
    params = replace(GREEDY, temperature=temperature, seed=3, grammar=grammar)
    done = []
    for speculative in (None, "ngram"):
        with LLM(DEMO_MODEL, speculative=speculative) as llm:
            done.append(llm.generate(FACTS, params))
    assert outcome(done[:1]) == outcome(done[1:])


def test_preempted_requests_write_the_same(path):
    prompts = [ids_of(30, seed=n) for n in range(4)]
    plain = written(path, "roped", "f16", prompts, GREEDY, n_ctx=128)
    done = written(path, "roped", "f16", prompts, GREEDY, n_ctx=128, speculative="ngram")
    assert outcome(done) == outcome(plain)
    assert sum(d.timings.n_prompt for d in done) > sum(len(ids) for ids in prompts)  # recomputed
    assert sum(d.timings.n_accepted for d in done) > 0


def test_a_drafter_that_raises_is_switched_off(path, monkeypatch):
    class Broken:
        def propose(self, ids, k):
            raise RuntimeError("no idea")

        def accepted(self, n):
            pass

        def close(self):
            pass

    plain = written(path, "raw", "f16", [ids_of(9)], GREEDY)
    monkeypatch.setattr(drafting, "DRAFTERS", {"ngram": Broken})
    with pytest.warns(RuntimeWarning, match="switched off: no idea"):
        done = written(path, "raw", "f16", [ids_of(9)], GREEDY, speculative="ngram")
    assert outcome(done) == outcome(plain)
    assert done[0].timings.n_drafted == 0


def test_a_repeating_text_takes_fewer_passes(path, monkeypatch):
    n_passes = 0
    forward = Runner.forward

    def counting(self, *args, **options):
        nonlocal n_passes
        n_passes += 1
        return forward(self, *args, **options)

    monkeypatch.setattr(Runner, "forward", counting)
    done = written(path, "raw", "f16", [ids_of(9)], GREEDY, speculative="ngram")[0]
    assert n_passes + done.timings.n_accepted == len(done.token_ids)
