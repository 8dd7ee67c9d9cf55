"""Greedy tokens are those without speculation: many prompts, each way to guess, caches, types.

LARIAT_SPECULATIONS says how many prompts; `make test-long` takes 500.
"""

from __future__ import annotations

import os

import pytest
from lariat import DEMO_MODEL, LLM, SamplingParams

from tests.support.contexts import CACHES

corpus = pytest.importorskip("models.corpus", reason="runs from the source tree only")

N_PROMPTS = int(os.environ.get("LARIAT_SPECULATIONS", "6"))
TYPES = ("f16", "q8_0", "q4_ch")
_TOGETHER = 20  # prompts of a batch
_GREEDY = SamplingParams(temperature=0, max_tokens=48)


def prompts(n: int) -> list[str]:
    """Beginnings of stories, and passages whose facts a question asks for: of the texts that the
    demo model was not trained on, in turns. Some are longer than a few blocks."""
    found = []
    for i in range(n):
        if i % 2:
            found.append(corpus.held_out_passage(i, 60 + 10 * (i % 20)).prompt)
        else:
            words = corpus.story_number(corpus.HELD_OUT, i).split()
            found.append(" ".join(words[: 4 + 7 * (i % 20)]))
    return found


def tokens(texts: list[str], **options: object) -> tuple[list[list[int]], int, int]:
    """Tokens of each text, and how many were guessed and came."""
    found: list[list[int]] = []
    n_drafted = n_accepted = 0
    with LLM(n_ctx=8192, n_threads=1, **options) as llm:  # type: ignore[arg-type]
        for start in range(0, len(texts), _TOGETHER):
            for done in llm.generate(texts[start : start + _TOGETHER], _GREEDY):
                assert done.finish_reason in ("stop", "length")
                found.append(done.token_ids)
                n_drafted += done.timings.n_drafted
                n_accepted += done.timings.n_accepted
    return found, n_drafted, n_accepted


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("cache", CACHES)
def test_greedy_tokens_are_the_same(cache: str, type: str) -> None:
    texts = prompts(N_PROMPTS)
    options = {"model_path": DEMO_MODEL, "cache": cache, "type_k": type, "type_v": type}
    plain, n_drafted, _ = tokens(texts, **options)
    assert n_drafted == 0
    for speculative in ("ngram", "draft"):
        found, n_drafted, n_accepted = tokens(texts, speculative=speculative, **options)
        different = [i for i, ids in enumerate(found) if ids != plain[i]]
        assert not different, (speculative, [texts[i] for i in different])
        assert len(found) == len(texts)
        assert 0 < n_accepted < n_drafted
        counts = f"{len(found)} texts, {n_drafted} guesses, {n_accepted} came"
        print(f"{cache} {type} {speculative}: {counts}")
