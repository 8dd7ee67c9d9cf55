"""Time that a grammar adds to each token: mask, forbidden logits, the token taken, forced ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lariat import DEMO_MODEL, GGUFFile, Grammar, Tokenizer
from lariat.structured.matcher import Grammars

from bench.micro.conftest import Record
from tests.support.real_models import SMOLLM2

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 8},
        "when": {"type": "string", "format": "date-time"},
        "size": {"type": "number", "minimum": 0, "maximum": 100},
    },
    "required": ["name", "tags", "when", "size"],
    "additionalProperties": False,
}
GRAMMARS = {
    "json schema": Grammar.json_schema(SCHEMA),
    "any json": Grammar.json_object(),
    "any text": Grammar.regex(r"(?s:.)*"),
}
N_TOKENS = 64


@pytest.mark.benchmark(group="structured: what does a grammar add to a token, by vocabulary?")
@pytest.mark.parametrize("grammar", GRAMMARS)
@pytest.mark.parametrize("model", [DEMO_MODEL, SMOLLM2], ids=["2k tokens", "49k tokens"])
def bench_grammar(benchmark: Any, record: Record, model: Any, grammar: str) -> None:
    if not Path(model).is_file():
        pytest.skip("make real-models gets SmolLM2")
    with GGUFFile(model) as file:
        tokenizer = Tokenizer.from_gguf(file)
    ready = Grammars(tokenizer).of(GRAMMARS[grammar])
    rng = np.random.default_rng(0)
    chosen = _text(ready, tokenizer, rng)
    logits = rng.standard_normal(tokenizer.n_vocab).astype(np.float32)

    def write() -> None:
        matcher = ready.start()
        for token in chosen:
            matcher.mask(logits)
            matcher.accept(token)
            matcher.forced()

    benchmark.pedantic(write, rounds=50, warmup_rounds=3)
    record(correct=_follows(ready, chosen, tokenizer.n_vocab), n_tokens=len(chosen))
    seconds = benchmark.stats.stats.median / len(chosen)
    benchmark.extra_info["ms/token"] = round(1e3 * seconds, 4)


def _follows(ready: Any, chosen: list[int], n_vocab: int) -> bool:
    """Whether each token was allowed where it came, and some other was not."""
    matcher, right = ready.start(), True
    for token in chosen:
        logits = np.zeros(n_vocab, np.float32)
        matcher.mask(logits)
        right = right and logits[token] == 0 and bool((logits < 0).any())
        matcher.accept(token)
    return right


def _text(ready: Any, tokenizer: Tokenizer, rng: np.random.Generator) -> list[int]:
    """Tokens of a random text that follows a grammar."""
    matcher, chosen = ready.start(), []
    while len(chosen) < N_TOKENS and not matcher.is_done:
        logits = rng.standard_normal(tokenizer.n_vocab).astype(np.float32)
        matcher.mask(logits)
        token = int(logits.argmax())
        if token in tokenizer.eog_ids:
            break
        matcher.accept(token)
        chosen.append(token)
    return chosen
