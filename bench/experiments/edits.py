"""An edit in the middle of a document: what becomes of the text behind it, and what repair costs.

    python -m bench.experiments.edits -m MODEL

A document holds a fact among prose. It is computed once, then the value of the fact is replaced,
and a question is asked behind it. The text behind the fact does not speak of it at all
(unrelated), goes on about it right away (next), repeats that it was told (repeats), sums it up at
the end (sums up), or draws a conclusion from it half way, which the question is about (answers).

all      all tokens behind the edit are computed anew
again    the same, in the roped cache, whose last bits differ: what KL means on this model at all
nothing  they keep the keys and values of the old text
first    a window right behind the edit is computed anew, of as many tokens as `repair` may take
repair   `Context.repair`

Exact: greedy generation gives the new value. NLL: of the new value, nats a token. KL: from "all",
at the first token of the answer, with its standard error. Gap: the share of the distance from
"nothing" to "all" in NLL that is closed, with the 95 % interval of a paired bootstrap, where that
distance is 0.05 or more.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from lariat import DEMO_MODEL, LLM, Context
from lariat.measure.reuse_quality import bootstrap, pgr, predict
from tqdm import tqdm

from bench.reuse_tasks import prose
from models.language import Dice

_NAMES = (
    "Anna", "Tom", "Lena", "Peter", "Mary", "John", "Sarah", "David", "Emma", "Paul", "Oscar",
    "Nina",
)  # fmt: skip
_CITIES = (
    "Berlin", "Paris", "Rome", "London", "Madrid", "Vienna", "Lisbon", "Athens", "Dublin", "Oslo",
    "Warsaw", "Prague",
)  # fmt: skip
_JOBS = ("doctor", "teacher", "baker", "pilot", "lawyer", "painter", "farmer", "nurse")
_METHODS = ("all", "again", "nothing", "first", "repair")
_LEAST_GAP = 0.05  # nats a token


@dataclass(frozen=True)
class _Task:
    """A document with a value in it, and a question about the value.

    before, behind  the document around the value
    old, new        values, each with its first blank
    prompt          the question, up to where the answer begins
    """

    before: str
    behind: str
    old: str
    new: str
    prompt: str


@dataclass(frozen=True)
class _Kind:
    """A fact, a later sentence and a question; {name} stands for a person.

    fact, rest  the sentence of the fact, before and behind its value
    values      what the value may be
    question    up to where the answer begins
    later       a sentence behind the fact that speaks of it; "": none
    share       where it stands, as a share of the text behind
    """

    fact: str
    rest: str
    values: tuple[str, ...]
    question: str
    later: str = ""
    share: float = 0.0


_KINDS = {
    "unrelated": _Kind(
        "{name} lives in", ".", _CITIES,
        "In which city does {name} live?\nAnswer: {name} lives in",
    ),
    "next": _Kind(
        "{name} lives in", ".", _CITIES,
        "In which city does the mother of {name} work?\nAnswer: The mother of {name} works in",
        "She works there too, in the office of her city, and so do her brother and her mother.",
    ),
    "repeats": _Kind(
        "{name} works as a", ".", _JOBS,
        "What is the job of {name}?\nAnswer: {name} works as a",
        "As was said above, {name} has the job that was named there, and {name} likes this job.",
        0.5,
    ),
    "sums up": _Kind(
        "{name} lives in", ", has a garden and drives a red car.", _CITIES,
        "In which city does {name} live?\nAnswer: {name} lives in",
        "In summary, {name} lives in the city that was named, has a garden and likes the city.",
        1.0,
    ),
    "answers": _Kind(
        "{name} lives in", ".", _CITIES,
        "In which city does {name}'s mother live?\nAnswer: {name}'s mother lives in",
        "{name} works in the same city in which {name} lives, and {name}'s mother lives there too.",
        0.5,
    ),
}  # fmt: skip


def _task(kind: str, number: int, n_behind: int, count: Callable[[str], int]) -> _Task:
    """A task by kind and number."""
    dice = Dice("edits", kind, number)
    words = _KINDS[kind]
    name, old, new = dice.pick(_NAMES), *dice.several(words.values, 2)
    sentences = prose(dice, n_behind, count)
    if words.later:
        sentences.insert(round(words.share * len(sentences)), words.later.format(name=name))
    return _Task(
        before=" ".join([*prose(dice, 60, count), words.fact.format(name=name)]),
        behind=" ".join([words.rest, *sentences]),
        old=f" {old}",
        new=f" {new}",
        prompt=f"\n\nQuestion: {words.question.format(name=name)}",
    )


def _contexts(
    llm: LLM, roped: LLM, task: _Task, share: float
) -> tuple[dict[str, Context], dict[str, float]]:
    """A context of each method, and the share of tokens behind the edit that it computed."""
    before = llm.tokenize(task.before)
    old, new, behind = (llm.tokenize(t, add_bos=False) for t in (task.old, task.new, task.behind))
    at = len(before)
    found = {"nothing": llm.context(), "all": llm.context()}
    found["all"].append([*before, *new, *behind])
    found["nothing"].append([*before, *old, *behind])
    found["nothing"].delete(at, at + len(old))
    found["nothing"].insert(at, new)
    n_first = int(share * len(behind))
    found["first"] = found["nothing"].fork()
    found["first"].recompute([(at + len(new), at + len(new) + n_first)])
    found["repair"] = found["nothing"].fork()
    n_repaired = found["repair"].repair(share=share)
    found["again"] = roped.context()
    found["again"].append([*before, *new, *behind])
    n = len(behind)
    shares = {"nothing": 0.0, "first": n_first / n, "repair": n_repaired / n}
    return found, {"all": 1.0, "again": 1.0, **shares}


def _measure(llm: LLM, roped: LLM, kind: str, args: argparse.Namespace) -> dict[str, np.ndarray]:
    """By method, float64 [n, 4]: exact, NLL, KL, share computed."""
    rows: dict[str, list[tuple[float, ...]]] = {method: [] for method in _METHODS}
    for i in tqdm(range(args.n), kind, leave=False, disable=None):
        task = _task(kind, i, args.behind, lambda text: len(llm.tokenize(text, add_bos=False)))
        prompt, answer = (llm.tokenize(t, add_bos=False) for t in (task.prompt, task.new))
        contexts, shares = _contexts(llm, roped, task, args.share)
        predicted = {name: predict(c, prompt, answer) for name, c in contexts.items()}
        exact = predicted["all"]
        for name in _METHODS:
            p = predicted[name].astype(np.float64)
            nll = -p[np.arange(len(answer)), answer].mean()
            kl = (np.exp(exact[0]) * (exact[0] - p[0])).sum()
            is_right = bool((p.argmax(axis=1) == answer).all())
            rows[name].append((is_right, nll, kl, shares[name]))
        for context in contexts.values():
            context.close()
    return {name: np.array(values, np.float64) for name, values in rows.items()}


def _closed(found: dict[str, np.ndarray], method: str) -> str:
    """How much of the gap in NLL a method closes, with its interval."""
    got, full, without = (found[name][:, 1] for name in (method, "all", "nothing"))
    if method in ("all", "again", "nothing") or without.mean() - full.mean() < _LEAST_GAP:
        return ""
    low, high = bootstrap(got, full, without)
    return f"{100 * pgr(got, full, without):.0f} % ({100 * low:.0f} to {100 * high:.0f})"


def main(argv: list[str] | None = None) -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", default=DEMO_MODEL)
    parser.add_argument("-n", type=int, default=40, help="documents of each kind (40)")
    parser.add_argument("--behind", type=int, default=600, help="tokens behind the edit (600)")
    parser.add_argument("--share", type=float, default=0.1, help="of them that repair may take")
    parser.add_argument("--kinds", default=",".join(_KINDS), help="some of the kinds, with commas")
    args = parser.parse_args(argv)
    print("| text behind | computed anew | share | exact | NLL | KL | gap closed |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    n_ctx = 8 * (args.behind + 400)
    with (
        LLM(args.model, cache="raw", n_ctx=n_ctx, prefix_sharing=False) as llm,
        LLM(args.model, cache="roped", n_ctx=n_ctx, prefix_sharing=False) as roped,
    ):
        for kind in args.kinds.split(","):
            found = _measure(llm, roped, kind, args)
            for method in _METHODS:
                exact, nll, kl, share = found[method].mean(axis=0)
                error = found[method][:, 2].std(ddof=1) / len(found[method]) ** 0.5
                print(
                    f"| {kind} | {method} | {100 * share:.1f} % | {100 * exact:.0f} % | {nll:.3f} "
                    f"| {kl:.4f} ± {error:.4f} | {_closed(found, method)} |", flush=True,
                )  # fmt: skip


if __name__ == "__main__":
    main()
