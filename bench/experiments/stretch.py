"""Contexts longer than the model was trained for: recall and perplexity by type of scaling.

    python -m bench.experiments.stretch
    python -m bench.experiments.stretch --peer path/to/python/with/llama_cpp

A passage states a fact, goes on with stories until the prompt is as long as wanted, and asks for
the fact; the answer is greedy. Perplexity is of the last 512 tokens of held-out stories of that
length. The last rows change RoPE while keys stay: the passage is computed with the first RoPE, the
question and the answer with the second.

With --peer: negative log-likelihood of a text in llama.cpp and here, with the same settings.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lariat import DEMO_MODEL, LLM, RopeConfig, SamplingParams
from lariat.cli.console import Bar
from lariat.runtime.sampler import log_softmax

from bench.experiments.endless import ppl, stories
from models import corpus, recall
from models.language import Dice

_SCORED = 512  # tokens
_WINDOW = 512  # of Self-Extend
_QUESTION = 24  # tokens that are computed after a change of RoPE: more than the question has
_WORKER = Path(__file__).parents[1] / "workers" / "llama_rope.py"

# RoPE here, and the same in llama.cpp's parameters (scaling 0 to 2: none, linear, yarn)
_SETTINGS: dict[str, tuple[RopeConfig, dict[str, Any]]] = {
    "none": (RopeConfig(), {}),
    "linear, 2": (RopeConfig("linear", 2.0), {"rope_scaling_type": 1, "rope_freq_scale": 0.5}),
    "scale 2 alone": (RopeConfig(scale=2.0), {"rope_freq_scale": 0.5}),
    "base 40000": (RopeConfig(freq_base=4e4), {"rope_freq_base": 4e4}),
    "yarn, 2": (RopeConfig("yarn", 2.0), {"rope_scaling_type": 2, "rope_freq_scale": 0.5}),
    "yarn, 4, original context 512": (
        RopeConfig("yarn", 4.0, yarn_orig_ctx=512),
        {"rope_scaling_type": 2, "rope_freq_scale": 0.25, "yarn_orig_ctx": 512},
    ),
    "yarn, 2, half extrapolated": (
        RopeConfig("yarn", 2.0, yarn_ext_factor=0.5),
        {"rope_scaling_type": 2, "rope_freq_scale": 0.5, "yarn_ext_factor": 0.5},
    ),
    "yarn, 2, attention factor 1.2": (
        RopeConfig("yarn", 2.0, yarn_attn_factor=1.2),
        {"rope_scaling_type": 2, "rope_freq_scale": 0.5, "yarn_attn_factor": 1.2},
    ),
    "yarn, 2, not extrapolated, attention factor 1.2": (
        RopeConfig("yarn", 2.0, yarn_attn_factor=1.2, yarn_ext_factor=0.0),
        {
            "rope_scaling_type": 2, "rope_freq_scale": 0.5, "yarn_attn_factor": 1.2,
            "yarn_ext_factor": 0.0,
        },
    ),
    "yarn, 2, beta 16 and 2": (
        RopeConfig("yarn", 2.0, yarn_beta_fast=16.0, yarn_beta_slow=2.0),
        {
            "rope_scaling_type": 2, "rope_freq_scale": 0.5, "yarn_beta_fast": 16.0,
            "yarn_beta_slow": 2.0,
        },
    ),
}  # fmt: skip


def scalings(llm: LLM, length: int) -> dict[str, tuple[RopeConfig, RopeConfig]]:
    """Settings to compare: RoPE of the passage, and of question and answer."""
    trained = llm.config.n_ctx_train
    scale = max(1.0, length / trained)
    n = 1
    while (trained - _WINDOW) * n + _WINDOW < length:
        n *= 2
    none, yarn = RopeConfig("none"), RopeConfig("yarn", scale)
    extend = RopeConfig("none", grp_attn_n=n, grp_attn_w=_WINDOW)
    same = {
        "none": none,
        "linear": RopeConfig("linear", scale),
        "yarn": yarn,
        "dynamic": RopeConfig("dynamic"),
        f"Self-Extend, -gaw {_WINDOW}": extend,
    }
    changed = {"none, then yarn": (none, yarn), "none, then Self-Extend": (none, extend)}
    return {name: (rope, rope) for name, rope in same.items()} | changed


def passages(llm: LLM, length: int, n: int) -> list[recall.Passage]:
    """Passages whose prompts have a little less than `length` tokens."""

    def count(text: str) -> int:
        return len(llm.tokenize(text, add_bos=False))

    found = []
    for i in range(n):
        dice = Dice(corpus.HELD_OUT, "stretch", length, i)
        filler = corpus.stories(corpus.HELD_OUT, f"stretch/{i}")
        found.append(recall.passage(dice, 1, 1, length - 110, count, filler))
    return found


def is_right(llm: LLM, passage: recall.Passage, ropes: tuple[RopeConfig, RopeConfig]) -> bool:
    """Whether the question is answered, greedily."""
    ids = llm.tokenize(passage.prompt)
    params = SamplingParams(40, temperature=0.0, stop=("\n",))
    with llm.context() as context:
        llm.set_rope(ropes[0])
        context.append(ids[:-_QUESTION])
        llm.set_rope(ropes[1])
        return passage.is_right(llm.generate(ids[-_QUESTION:], params, context=context).text)


def of_stories(llm: LLM, length: int, ropes: tuple[RopeConfig, RopeConfig]) -> float:
    """Perplexity of the last tokens of `length`."""
    ids = stories(llm, length + 1)
    with llm.context() as context:
        llm.set_rope(ropes[0])
        context.append(ids[: length - _SCORED])
        llm.set_rope(ropes[1])
        logits = context.logits(ids[length - _SCORED : length])
    return ppl((-log_softmax(logits)[np.arange(_SCORED), ids[-_SCORED:]]).tolist())


def table(model: str, lengths: Sequence[int], n: int) -> None:
    """Print the comparison."""
    heads = [f"{length}: recall | perplexity" for length in lengths]
    print(f"| {n} passages of | {' | '.join(heads)} |\n{'| --- ' * (1 + 2 * len(lengths))}|")
    cells: dict[str, list[str]] = {}
    with LLM(model, cache="raw", n_ctx=max(lengths) + 64) as llm:
        for length in lengths:
            texts = passages(llm, length, n)
            for name, ropes in scalings(llm, length).items():
                with Bar(f"{length} {name}") as bar:
                    right = 0
                    for i, passage in enumerate(texts):
                        right += is_right(llm, passage, ropes)
                        bar((i + 1) / n)
                row = cells.setdefault(name, [])
                row += [f"{100 * right / n:.0f} %", f"{of_stories(llm, length, ropes):.3f}"]
    for name, row in cells.items():
        print(f"| {name} | {' | '.join(row)} |")


def nll(llm: LLM, ids: Sequence[int]) -> float:
    """Negative log-likelihood of all ids but the first, in nats."""
    scores = log_softmax(llm.logits(list(ids))[:-1])[np.arange(len(ids) - 1), ids[1:]]
    return -math.fsum(scores.tolist())


def beside_peer(model: str, python: str, n_tokens: int) -> None:
    """Print both engines' negative log-likelihoods."""
    with LLM(model) as llm:
        ids = stories(llm, n_tokens)
    question = {"model": model, "ids": ids, "settings": [other for _, other in _SETTINGS.values()]}
    done = subprocess.run(
        [python, str(_WORKER)], input=json.dumps(question), capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    theirs = json.loads(done.stdout)
    print(f"| NLL of {n_tokens} tokens | llama.cpp | raw | roped | largest difference |")
    print("| --- " * 5 + "|")
    for (name, (rope, _)), other in zip(_SETTINGS.items(), theirs, strict=True):
        ours = []
        for cache in ("raw", "roped"):
            with LLM(model, cache=cache, n_ctx=n_tokens, rope=rope) as llm:
                ours.append(nll(llm, ids))
        worst = max(abs(value / other - 1) for value in ours)
        print(f"| {name} | {other:.2f} | {ours[0]:.2f} | {ours[1]:.2f} | {100 * worst:.2f} % |")


def main(argv: list[str] | None = None) -> None:
    """Print the table asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", default=DEMO_MODEL)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 1536, 2048, 4096])
    parser.add_argument("--passages", type=int, default=20)
    parser.add_argument("--peer", help="a Python with llama-cpp-python, to compare with")
    args = parser.parse_args(argv)
    if args.peer:
        beside_peer(args.model, args.peer, 1500)
    else:
        table(args.model, args.lengths, args.passages)


if __name__ == "__main__":
    main()
