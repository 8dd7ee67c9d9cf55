"""One fact in long prose: which RoPE finds it when it is chosen after the text was computed.

    python -m bench.experiments.rope_read -m MODEL -o results.json
    python -m bench.experiments.rope_read -o results.json --report

A passage is a message of a chat: prose that lies on any machine with Python (docstrings of the
standard library, topics of pydoc), with one sentence that states a fact at 0, 25, 50 or 75 % of it,
then a question about the fact. The prose is computed once, with plain RoPE. Question and answer are
then computed with each setting, on the same raw keys; `auto` is the engine's own choice, on the
same keys too. Each of `--facts` has its own prose, and gives four passages a length, one a depth.

An answer is right if the greedy text has the value of the fact. NLL is that of the value's tokens,
in nats a token, behind the right beginning of the answer. The file is written after each passage,
and what it has is not measured again, so a run can be stopped and go on.

Passages that begin alike are forks: the prose before the facts is computed once for all depths, and
a longer passage goes on where a shorter one ends, if the fact is at the same place.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lariat import LLM, Context, RopeConfig, SamplingParams
from lariat.cli.console import Bar
from lariat.cli.rope_read import words as rope_words
from lariat.formats.atomic import written_beside
from lariat.runtime.sampler import log_softmax

from bench.prose import prose
from models.recall import ADJECTIVES, NOUNS

_DEPTHS = (0.0, 0.25, 0.5, 0.75)
_KINDS = ("access code", "serial number", "secret number", "account number")
_N_ANSWER = 20  # tokens
_ANSWER = SamplingParams(max_tokens=_N_ANSWER, temperature=0.0, stop=("\n",))
_TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


def _extend(n: int, window: int) -> RopeConfig:
    return RopeConfig(grp_attn_n=n, grp_attn_w=window)


# By the words of --rope-read.
SETTINGS: dict[str, RopeConfig] = {
    "plain": RopeConfig(),
    "yarn:2": RopeConfig("yarn", 2.0),
    "yarn:4": RopeConfig("yarn", 4.0),
    "linear:2": RopeConfig("linear", 2.0),
    **{
        f"extend:{n}:{w}": _extend(n, w)
        for n, w in ((2, 512), (4, 512), (4, 1024), (4, 2048), (8, 1024))
    },
}


@dataclass(frozen=True)
class Task:
    """A fact, the question about it, and the prose around it, as token ids.

    begin       what stands before the prose
    paragraphs  of the prose
    fact        the sentence that states the fact, as a paragraph
    question    the end of the prompt
    answer      the same sentence
    value       its last word
    """

    begin: list[int]
    paragraphs: list[list[int]]
    fact: list[int]
    question: list[int]
    answer: str
    value: str

    def n_paragraphs(self, n_tokens: int) -> int:
        """How many paragraphs fit into so many tokens."""
        sizes = np.cumsum([len(paragraph) for paragraph in self.paragraphs])
        return int(np.searchsorted(sizes, n_tokens, side="right"))

    @property
    def n_around(self) -> int:
        """Tokens around the paragraphs, and room for the answer."""
        return len(self.begin) + len(self.fact) + len(self.question) + _N_ANSWER


def task(llm: LLM, length: int, number: int, seed: int) -> Task:
    """A task with prose for `length` tokens."""
    dice = random.Random(f"{seed}/{number}")
    subject = f"{dice.choice(ADJECTIVES)} {dice.choice(NOUNS)}"
    kind, value = dice.choice(_KINDS), "".join(dice.sample("0123456789", 4))
    answer = f"The {kind} of the {subject} is {value}."
    begin, end = _TEMPLATE.split("{}")
    texts, at, n, paragraphs = prose(), dice.randrange(len(prose())), 0, []
    while n < length:
        paragraphs.append(llm.tokenize(texts[at % len(texts)] + "\n\n", add_bos=False))
        n += len(paragraphs[-1])
        at += 1
    question = f"What is the {kind} of the {subject}?{end}"
    return Task(
        llm.tokenize(begin, parse_special=True),
        paragraphs,
        llm.tokenize(answer + "\n\n", add_bos=False),
        llm.tokenize(question, add_bos=False, parse_special=True),
        answer,
        value,
    )


def read(llm: LLM, context: Context, task: Task, rope: RopeConfig) -> dict[str, Any]:
    """Question and answer with one setting; the context stays as it is."""
    question, answer = task.question, llm.tokenize(task.answer, add_bos=False)
    beginning = task.answer.removesuffix(f" {task.value}.")
    n_before, first = len(llm.tokenize(beginning, add_bos=False)), len(question) - 1
    ids = question + answer
    llm.set_rope(rope)
    logits = context.logits(ids[:-1])
    nll = -log_softmax(logits)[np.arange(len(ids) - 1), ids[1:]]
    likeliest = logits[first:].argmax(axis=1)
    if (likeliest[:n_before] == answer[:n_before]).all():
        # Greedy text begins as the answer, and goes on with these tokens up to the first wrong one.
        n = int(np.append(likeliest == answer, False).argmin())
        text = llm.detokenize([*answer[:n], *likeliest[n : n + 1].tolist()])
    else:
        with context.fork() as copy:
            text = llm.generate(question, _ANSWER, context=copy).text
    llm.set_rope(RopeConfig())
    return {
        "question": round(float(nll[:first].mean()), 4),
        "nll": round(float(nll[first + n_before : -1].mean()), 4),
        "text": text,
        "right": task.value in text,
    }


def choose(llm: LLM, context: Context, task: Task) -> dict[str, Any]:
    """The engine's own choice; the context stays as it is."""
    with context.fork() as copy:
        done = llm.generate(task.question, _ANSWER, context=copy, rope_read="auto")
    assert done.rope is not None
    return {
        "rope": rope_words(done.rope, llm.config.rope),
        "n_tried": done.timings.n_tried,
        "text": done.text,
        "right": task.value in done.text,
    }


def measure(
    llm: LLM, lengths: Sequence[int], number: int, seed: int, names: Sequence[str],
    results: dict[str, Any], save: Callable[[], None],
) -> None:  # fmt: skip
    """Add the passages of one fact, of all lengths and depths, to the results."""
    one = task(llm, max(lengths), number, seed)
    places: dict[int, list[tuple[int, float]]] = {}  # paragraphs before the fact: passages
    for length in sorted(lengths):
        for depth in _DEPTHS:
            n = one.n_paragraphs(min(int(depth * length), length - one.n_around))
            key = f"{seed}/{number}/{length}/{depth}"
            if set(names) - set(results.get(key, {})):
                places.setdefault(n, []).append((length, depth))
    with llm.context() as before:
        before.append(one.begin)
        n_before = 0
        for place, passages in sorted(places.items()):
            before.append(_joined(one.paragraphs[n_before:place]))
            n_before = at = place
            with before.fork() as context:
                context.append(one.fact)
                for length, depth in passages:
                    stop = one.n_paragraphs(length - one.n_around)
                    context.append(_joined(one.paragraphs[at:stop]))
                    at = stop
                    found = results.setdefault(f"{seed}/{number}/{length}/{depth}", {})
                    found["n_tokens"] = len(context) + len(one.question)
                    for name in names:
                        if name not in found and name != "auto":
                            found[name] = read(llm, context, one, SETTINGS[name])
                    if "auto" in names and "auto" not in found:
                        found["auto"] = choose(llm, context, one)
                    save()


def _joined(paragraphs: Sequence[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(paragraphs))


def report(results: dict[str, Any], seed: int) -> None:
    """Print exact answers and NLL by length and setting, then exact answers by depth."""
    passages: dict[int, dict[float, list[dict[str, Any]]]] = {}
    for key, found in results.items():
        at, _, length, depth = key.split("/")
        if int(at) == seed:
            passages.setdefault(int(length), {}).setdefault(float(depth), []).append(found)
    lengths = sorted(passages)
    counts = [sum(map(len, passages[length].values())) for length in lengths]
    heads = [f"{le}: exact of {n} | NLL" for le, n in zip(lengths, counts, strict=True)]
    print(f"| tokens | {' | '.join(heads)} |\n{'| --- ' * (1 + 2 * len(lengths))}|")
    for name in [*SETTINGS, "auto"]:
        cells = []
        for length in lengths:
            found = [f for some in passages[length].values() for f in some if name in f]
            right = [f[name]["right"] for f in found]
            nll = [f[_name_of(f, name)]["nll"] for f in found if _name_of(f, name) in f]
            share = np.mean(right) if right else math.nan
            error = math.sqrt(share * (1 - share) / max(1, len(right)))
            cells.append(
                f"{100 * share:.0f} ± {100 * error:.0f} % | {np.mean(nll or math.nan):.3f}"
            )
        print(f"| {name} | {' | '.join(cells)} |")
    print(
        f"\n| exact at depth | {' | '.join(f'{d:.0%} of {n}' for n in lengths for d in _DEPTHS)} |"
    )
    print("| --- " * (1 + len(lengths) * len(_DEPTHS)) + "|")
    for name in [*SETTINGS, "auto"]:
        cells = []
        for length in lengths:
            for depth in _DEPTHS:
                right = [f[name]["right"] for f in passages[length].get(depth, []) if name in f]
                cells.append(f"{sum(right)} of {len(right)}")
        print(f"| {name} | {' | '.join(cells)} |")


def _name_of(found: dict[str, Any], name: str) -> str:
    """The single setting behind a name, which "auto" has chosen."""
    return found["auto"]["rope"] if name == "auto" else name


def main(argv: list[str] | None = None) -> None:
    """Measure, then print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 8192, 12288])
    parser.add_argument("--facts", type=int, default=10, help="each is asked for at four depths")
    parser.add_argument("--settings", nargs="+", default=[*SETTINGS, "auto"], metavar="NAME")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", action="store_true", help="only print what the file has")
    args = parser.parse_args(argv)
    results: dict[str, Any] = json.loads(args.output.read_text()) if args.output.exists() else {}

    def save() -> None:
        with written_beside(args.output, OSError) as beside:
            beside.write_text(json.dumps(results))

    if not args.report:
        if args.model is None:
            parser.error("-m/--model: is needed to measure")
        n_ctx = 2 * max(args.lengths) + 256  # the prose before the facts, and one passage
        with LLM(args.model, cache="raw", n_ctx=n_ctx) as llm, Bar("passages") as bar:
            for number in range(args.facts):
                bar(number / args.facts)
                measure(llm, args.lengths, number, args.seed, args.settings, results, save)
    report(results, args.seed)


if __name__ == "__main__":
    main()
