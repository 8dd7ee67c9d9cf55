"""One fact in long prose: which RoPE finds it when it is chosen after the text was computed.

    python -m bench.experiments.rope_read -m MODEL -o results.json
    python -m bench.experiments.rope_read -m MODEL -o results.json --report

A passage is a message of a chat: prose that lies on any machine with Python (docstrings of the
standard library, the topics of pydoc), with one sentence that states a fact at 0, 25, 50 or 75 % of
it, then a question about the fact. The prose is computed once, with plain RoPE. Question and answer
are then computed with each setting, on the same raw keys. `auto` is `rope_read="auto"` of the
engine, on the same keys too.

An answer is right if the greedy text has the value of the fact. NLL is that of the value's tokens,
in nats a token, behind the right beginning of the answer. The file is written after each passage,
and what it has is not measured again, so a run can be stopped and go on.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import random
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
from lariat import LLM, Context, RopeConfig, SamplingParams
from lariat.cli.console import Bar
from lariat.formats.atomic import written_beside
from lariat.tools.perplexity import log_softmax

from models.recall import ADJECTIVES, NOUNS

_MIN_CHARACTERS = 150  # of a paragraph that is prose
_DEPTHS = (0.0, 0.25, 0.5, 0.75)
_KINDS = ("access code", "serial number", "secret number", "account number")
_ANSWER = SamplingParams(max_tokens=20, temperature=0.0, stop=("\n",))
_TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


def _extend(n: int, window: int) -> RopeConfig:
    return RopeConfig(grp_attn_n=n, grp_attn_w=window)


SETTINGS: dict[str, RopeConfig] = {
    "plain": RopeConfig(),
    **{f"extend {n}, {w}": _extend(n, w) for n in (2, 4, 8) for w in (512, 1024, 2048, 4096)},
    "yarn 2": RopeConfig("yarn", 2.0),
    "yarn 4": RopeConfig("yarn", 4.0),
    "linear 2": RopeConfig("linear", 2.0),
    "base x 2": RopeConfig(freq_base=2e5),
    "base x 4": RopeConfig(freq_base=4e5),
}


@cache
def prose() -> list[str]:
    """Paragraphs of the standard library's docstrings and of pydoc's topics, in a fixed order."""
    texts = [topics[name] for name in sorted(topics)]
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                texts.append(ast.get_docstring(node) or "")
    found = {}
    for text in texts:
        for paragraph in text.split("\n\n"):
            words = " ".join(paragraph.split())
            is_sentence = paragraph[:1].isupper() and words.endswith(".")
            if is_sentence and len(words) >= _MIN_CHARACTERS:
                found[words] = None
    return list(found)


@dataclass(frozen=True)
class Passage:
    """Prose with a fact, and a question about it.

    text, question  what stands before and in the question; together the prompt
    answer          the sentence that states the fact
    value           its last words
    """

    text: str
    question: str
    answer: str
    value: str


def passage(llm: LLM, length: int, number: int, seed: int = 0) -> Passage:
    """A passage whose prompt has a little less than `length` tokens. Its number says its depth."""
    dice = random.Random(f"{seed}/{number}")
    subject = f"{dice.choice(ADJECTIVES)} {dice.choice(NOUNS)}"
    kind, value = dice.choice(_KINDS), "".join(dice.sample("0123456789", 4))
    answer = f"The {kind} of the {subject} is {value}."
    begin, end = _TEMPLATE.split("{}")
    question = f"What is the {kind} of the {subject}?{end}"
    n = length - len(llm.tokenize(begin + answer + question, parse_special=True)) - 8
    paragraphs, chosen = prose(), []
    at = dice.randrange(len(paragraphs))
    while True:
        paragraph = paragraphs[at % len(paragraphs)]
        n -= len(llm.tokenize(paragraph + "\n\n"))
        if n < 0:
            break
        chosen.append(paragraph)
        at += 1
    chosen.insert(round(_DEPTHS[number % len(_DEPTHS)] * len(chosen)), answer)
    return Passage(begin + "\n\n".join(chosen) + "\n\n", question, answer, value)


def read(llm: LLM, context: Context, passage: Passage, rope: RopeConfig) -> dict[str, Any]:
    """Question and answer with one setting; the context stays as it is."""
    llm.set_rope(rope)
    question = llm.tokenize(passage.question, parse_special=True)
    answer = llm.tokenize(passage.answer)
    n_before = len(llm.tokenize(passage.answer.removesuffix(f" {passage.value}.")))
    ids = question + answer
    logits = context.logits(ids[:-1])
    scores = log_softmax(logits)
    nll = -scores[np.arange(len(ids) - 1), ids[1:]]
    first = len(question) - 1
    likeliest = logits[first:].argmax(axis=1)
    if (likeliest[:n_before] == answer[:n_before]).all():
        # Greedy text begins as the answer, and goes on with these tokens up to the first wrong one.
        n = int((np.append(likeliest == answer[: len(likeliest)], False)).argmin())
        text = llm.detokenize([*answer[:n], *likeliest[n : n + 1].tolist()])
    else:
        with context.fork() as copy:
            text = llm.generate(question, _ANSWER, context=copy).text
    return {
        "question": [round(float(x), 4) for x in nll[:first]],
        "answer": [round(float(x), 4) for x in nll[first:]],
        "nll": round(float(nll[first + n_before : -1].mean()), 4),
        "text": text,
        "right": passage.value in text,
    }


def measure(
    llm: LLM, lengths: Sequence[int], n: int, seed: int, names: Sequence[str], path: Path,
    contexts: Path | None, prefill: str,
) -> None:  # fmt: skip
    """Add passages to the file until it has `n` of each length, with all settings named."""
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for length in lengths:
        with Bar(f"{length} tokens") as bar:
            for number in range(n):
                bar(number / n)
                one = passage(llm, length, number, seed)
                key = f"{prefill}/{seed}/{length}/{number}"
                entry = results.setdefault(key, {"fact": one.answer, "read": {}})
                missing = [name for name in names if name not in entry["read"]]
                if not missing:
                    continue
                with llm.context() as context:
                    llm.set_rope(SETTINGS[prefill])
                    saved = contexts and contexts / (key.replace("/", "_") + ".safetensors")
                    start = time.perf_counter()
                    if saved and saved.exists():
                        context.load(saved)
                    else:
                        context.append(one.text, parse_special=True)
                        entry["n_tokens"] = len(context)
                        entry["seconds"] = round(time.perf_counter() - start, 1)
                        if saved:
                            context.save(saved)
                    for name in missing:
                        entry["read"][name] = read(llm, context, one, SETTINGS[name])
                    llm.set_rope(SETTINGS[prefill])
                with written_beside(path, OSError) as beside:
                    beside.write_text(json.dumps(results))


def report(path: Path, lengths: Sequence[int], n: int, seed: int, prefill: str) -> None:
    """Print exact answers and NLL by length and setting."""
    results = json.loads(path.read_text())
    heads = [f"{length}: exact | NLL | question" for length in lengths]
    print(f"| {n} passages of | {' | '.join(heads)} |\n{'| --- ' * (1 + 3 * len(lengths))}|")
    for name in SETTINGS:
        cells = []
        for length in lengths:
            keys = [f"{prefill}/{seed}/{length}/{i}" for i in range(n)]
            found = [
                results[k]["read"][name] for k in keys if name in results.get(k, {}).get("read", {})
            ]
            if not found:
                cells.append("| | ")
                continue
            share = np.mean([f["right"] for f in found])
            error = math.sqrt(share * (1 - share) / len(found))
            nll = np.mean([f["nll"] for f in found])
            q = np.mean([np.mean(f["question"]) for f in found])
            cells.append(
                f"{100 * share:.0f} ± {100 * error:.0f} % ({len(found)}) | {nll:.3f} | {q:.3f}"
            )
        print(f"| {name} | {' | '.join(cells)} |")


def main(argv: list[str] | None = None) -> None:
    """Measure, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 8192, 12288])
    parser.add_argument("--passages", type=int, default=40)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), metavar="NAME")
    parser.add_argument("--prefill", default="plain", metavar="NAME")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--contexts", type=Path, metavar="DIR", help="keep computed contexts there")
    parser.add_argument("--report", action="store_true", help="only print what the file has")
    args = parser.parse_args(argv)
    if not args.report:
        with LLM(args.model, cache="raw", n_ctx=2 * max(args.lengths) + 256) as llm:
            measure(
                llm, args.lengths, args.passages, args.seed, args.settings, args.output,
                args.contexts, args.prefill,
            )  # fmt: skip
    report(args.output, args.lengths, args.passages, args.seed, args.prefill)


if __name__ == "__main__":
    main()
