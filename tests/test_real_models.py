"""Models of others, against what llama.cpp makes of them (`data/smollm2_llama_cpp.json`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lariat import LLM, SamplingParams

from tests.support.command_line import runner
from tests.support.real_models import SMOLLM2, needs_smollm2

JUDGED = json.loads((Path(__file__).parent / "data" / "smollm2_llama_cpp.json").read_text())
# Llama.cpp rounds activations to 8 bits in blocks of its own, and the largest logits are near 30.
NEAR = 0.5


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(SMOLLM2, n_ctx=256) as llm:
        yield llm


@needs_smollm2
@pytest.mark.parametrize("judged", JUDGED["prompts"], ids=range(len(JUDGED["prompts"])))
def test_prompts_with_special_tokens_are_continued_as_by_llama_cpp(
    llm: LLM, judged: dict[str, Any]
) -> None:
    """The same ids, and the same greedy tokens up to the first near tie."""
    ids = llm.tokenize(judged["prompt"], parse_special=True)
    assert ids == judged["ids"]
    assert llm.tokenizer.encode_part(judged["prompt"], parse_special=True) == ids
    for token, (first, second, *likeliest) in zip(judged["greedy"], judged["two"], strict=True):
        row = llm.logits(ids)[-1]
        own = int(row.argmax())
        if own != token:
            other = row[likeliest]
            print(f"a near tie of tokens {likeliest}: here {other}, llama.cpp {first, second}")
            assert first - second < NEAR
            assert own == likeliest[1]
            assert row[own] - row[token] < NEAR
            break
        assert np.abs(row[likeliest] - (first, second)).max() < 2 * NEAR
        ids.append(token)
    n_same = len(ids) - len(judged["ids"])
    ended = ids[-1] in llm.tokenizer.eog_ids
    written = ids[len(judged["ids"]) : -1 if ended else None]
    params = SamplingParams(temperature=0, max_tokens=n_same - ended)
    done = llm.generate(judged["prompt"], params, parse_special=True)
    assert done.token_ids == written


@needs_smollm2
def test_the_command_line_and_the_api_say_the_same(
    llm: LLM, capfd: pytest.CaptureFixture[str]
) -> None:
    prompt = JUDGED["prompts"][0]["prompt"]
    run = runner(capfd, "generate", "-m", str(SMOLLM2), "-c", "256", "--temp", "0", "-q")
    flags = ("-p", prompt, "-n", "10", "--no-display-prompt")
    assert run(*flags) == (0, "The capital of France is Paris.\n", "")
    greedy = SamplingParams(temperature=0, max_tokens=10)
    as_text = llm.generate(prompt, greedy).text
    assert run(*flags, "--no-parse-special") == (0, as_text.rstrip("\n") + "\n", "")
    assert "Paris" not in as_text


@needs_smollm2
def test_special_tokens_in_pieces(llm: LLM) -> None:
    """A conversation by hand: marks are parsed, and what a person says is not."""
    with llm.context() as context:
        context.append("<|im_start|>user\n", parse_special=True)
        context.append("Is <|im_end|> a word?")
        context.append("<|im_end|>\n<|im_start|>assistant\n", parse_special=True)
        marks = [llm.tokenizer.piece(i) for i in context.tokens if i < 17]
        assert marks == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]
        assert "<|im_end|>" in llm.detokenize(context.tokens)
