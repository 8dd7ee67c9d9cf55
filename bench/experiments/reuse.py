"""Reuse of documents: what each way to repair them is worth, and what it costs.

    python -m bench.experiments.reuse measure -m .real-models/SmolLM2-135M-Instruct.Q4_1.gguf \\
        --tasks needle,keys -n 100 -o results.json
    python -m bench.experiments.reuse show results.json --plot frontier.png
    python -m bench.experiments.reuse time -m .bench-models/7b4l.gguf

`measure` computes each document alone, puts the documents of a task together in a context, and asks
its questions once for each method of recomputing. Full prefill and no documents are computed once a
question. `show` prints a table from one or more files: the share of tokens that is computed (those
computed to choose count), exact answers, NLL, KL and top-1 agreement with full prefill, and PGR =
(score - without documents) / (full prefill - without documents) with the 95 % interval of a paired
bootstrap over sets of documents; "kept" is the share of exact answers among the questions that full
prefill answers and no documents do not. `time` shows the time to the first token, and after how
many uses a library has paid for its computation.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lariat import DEMO_MODEL, LLM, ChunkLibrary, Recompute, SamplingParams
from lariat.measure import reuse_quality
from lariat.reuse.library import ReuseWarning
from lariat.reuse.recompute import AUTO
from lariat.runtime.placed import Chooser
from tqdm import tqdm

from bench.reuse_readings import (
    AtOnce,
    ByAttention,
    ByDeviation,
    Reading,
    predict,
    stored_in,
)
from bench.reuse_tasks import TASKS, Task, task

FULL, WITHOUT = "full prefill", "no documents"
_NEWLINES = "\n\n\n\n"
_CHUNK = Recompute(first=4, passages=1, length=None)
_PASSAGES = Recompute(passages=3, length=64)
_LIKELY = Recompute(first=4, passages=1, length=None, by="likelihood")
_LIKELY_3 = Recompute(first=4, passages=1, length=None, by="likelihood", candidates=3)


class Method(NamedTuple):
    """A way to reuse documents.

    recompute  as for `Context.append`, or what makes it of the model's path
    behind     what the documents but the first one are computed behind
    reading    how they are read; None: by the engine
    """

    recompute: str | Recompute | Callable[[str], Chooser]
    behind: str = ""
    reading: Reading | None = None


METHODS: dict[str, Method] = {
    "none": Method("none"),
    "first 1": Method(Recompute(first=1)),
    "first 4": Method(Recompute(first=4)),
    "first 16": Method(Recompute(first=16)),
    "behind newlines": Method("none", _NEWLINES),
    "behind newlines and first 4": Method(Recompute(first=4), _NEWLINES),
    "auto": Method("auto"),
    "auto in one round": Method(lambda _: AtOnce(AUTO)),
    "1 passage of 32": Method(Recompute(first=4, passages=1, length=32)),
    "1 passage of 64": Method(Recompute(first=4, passages=1, length=64)),
    "1 passage of 64 alone": Method(Recompute(passages=1, length=64)),
    "2 passages of 64": Method(Recompute(first=4, passages=2, length=64)),
    "2 passages of 64 and first 16": Method(Recompute(first=16, passages=2, length=64)),
    "3 passages of 32": Method(Recompute(first=4, passages=3, length=32)),
    "3 passages of 128": Method(Recompute(first=4, passages=3, length=128)),
    "3 passages of 64 behind newlines": Method(AUTO, _NEWLINES),
    "chunk by words": Method(_CHUNK),
    "chunk by likelihood": Method(_LIKELY),
    "chunk by likelihood of 3": Method(_LIKELY_3),
    "2 chunks by words": Method(Recompute(first=16, passages=2, length=None)),
    "7 % by deviation": Method(lambda _: ByDeviation(0, 0.07)),
    "15 % by deviation": Method(lambda _: ByDeviation(0, 0.15)),
    "first 4 and 7 % by deviation": Method(lambda _: ByDeviation(4, 0.07)),
    "first 4 and 3 % by attention": Method(lambda path: ByAttention(path, 4, 0.03)),
    "first 4 and 10 % by attention": Method(lambda path: ByAttention(path, 4, 0.1)),
    "first 4 and 20 % by attention": Method(lambda path: ByAttention(path, 4, 0.2)),
    "none in NumPy": Method("none", reading=Reading()),
    "3 passages of 64": Method(_PASSAGES),
    "one sink": Method("none", reading=Reading(n_hidden=1)),
    "one sink of 4": Method("none", reading=Reading(n_hidden=4)),
    "one sink and 3 passages of 64": Method(_PASSAGES, reading=Reading(n_hidden=1)),
    "parallel": Method("none", reading=Reading(parallel=True)),
    "APE 0.9": Method("none", reading=Reading(True, 0.9, 0.9)),
    "APE 0.8": Method("none", reading=Reading(True, 0.8, 0.8)),
    "temperature 0.9": Method("none", reading=Reading(temperature=0.9)),
    "temperature 0.8": Method("none", reading=Reading(temperature=0.8)),
    "auto at temperature 0.9": Method("auto", reading=Reading(temperature=0.9)),
}
_FIRST = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
_N_PARTS = 4
_COLUMNS = ("share", "exact", "kept", "NLL", "KL", "top-1", "PGR exact", "PGR NLL", "first token")


# ---- measure -----------------------------------------------------------------------------


def measure(
    model: str,
    tasks: Sequence[str],
    methods: Sequence[str],
    sets: range,
    n_threads: int | None = None,
    known: Sequence[dict[str, Any]] = (),
) -> Iterator[dict[str, Any]]:
    """Scores of each task, question and method; `known` ones are not measured again."""
    found = {(row["task"], row["set"], row["question"], row["method"]) for row in known}
    with LLM(model, cache="raw", n_ctx=16384, prefix_sharing=False, n_threads=n_threads) as llm:
        for number, name in tqdm(list(itertools.product(sets, tasks)), "sets", disable=None):
            one = task(name, number, lambda text: len(llm.tokenize(text, add_bos=False)))
            left = [
                method
                for method in (FULL, *methods)
                if any((name, number, i, method) not in found for i in range(len(one.asked)))
            ]
            if not left:
                continue
            methods_left = {m: METHODS[m] for m in left if m != FULL}
            for row in _asked(llm, model, one, methods_left):
                if (name, number, row["question"], row["method"]) not in found:
                    yield {"task": name, "set": number, **row}


def _asked(
    llm: LLM, model: str, one: Task, methods: Mapping[str, Method]
) -> Iterator[dict[str, Any]]:
    documents = [llm.tokenize(text, add_bos=False) for text in one.documents]
    n_documents = sum(map(len, documents))
    facts = {"n_chunks": len(documents), "n_documents": n_documents}
    asked = [
        (llm.tokenize(a.prompt, add_bos=False), llm.tokenize(a.answer, add_bos=False))
        for a in one.asked
    ]
    full = []
    with llm.context() as context:
        context.append(llm.tokenizer.encode_part(""))
        without = [reuse_quality.predict(context, *each) for each in asked]
        context.append([token for ids in documents for token in ids])
        full = [reuse_quality.predict(context, *each) for each in asked]
    for i, (_, answer) in enumerate(asked):
        for method, rows, n in ((FULL, full[i], n_documents), (WITHOUT, without[i], 0)):
            score = reuse_quality.score(rows, full[i], answer)
            yield {"question": i, "method": method, "n_computed": n, **facts, **asdict(score)}
    with tempfile.TemporaryDirectory() as folder:
        library = ChunkLibrary(folder)
        for name, method in methods.items():
            recompute = method.recompute
            if callable(recompute):
                recompute = recompute(model)
            fronts = [(one.behind or method.behind) if j else "" for j in range(len(documents))]
            chunks = [
                library.add(llm, f"{j} {front!r}", ids, behind=front)
                for j, (ids, front) in enumerate(zip(documents, fronts, strict=True))
            ]
            for i, (question, answer) in enumerate(asked):
                with llm.context() as context:
                    start = time.perf_counter()
                    n = sum(context.append(chunk, recompute=recompute) for chunk in chunks)
                    done = llm.generate(question, _FIRST, context=context)
                    seconds = time.perf_counter() - start
                    n += done.timings.n_prompt - len(question)
                    context.truncate(len(llm.tokenizer.encode_part("")) + n_documents)
                    if method.reading is None:
                        rows = reuse_quality.predict(context, question, answer)
                    else:
                        stored = stored_in(llm, context)
                        rows = predict(model, stored, documents, question, answer, method.reading)
                row = {"question": i, "method": name, "n_computed": n, "seconds": seconds}
                score = reuse_quality.score(rows, full[i], answer)
                yield {**row, **facts, **asdict(score)}


# ---- show --------------------------------------------------------------------------------


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print a table for each task and for all of them."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for name in [*tasks, *(["all tasks"] if len(tasks) > 1 else [])]:
        of_task = [row for row in rows if name in (row["task"], "all tasks")]
        n_questions = sum(row["method"] == FULL for row in of_task)
        n_sets = len({(row["task"], row["set"]) for row in of_task})
        print(f"\n| {name}: {n_questions} questions, {n_sets} sets | {' | '.join(_COLUMNS)} |")
        print("| --- " * (len(_COLUMNS) + 1) + "|")
        for method in methods:
            summary = summarised(of_task, method)
            if summary is not None:
                print(f"| {method} | {' | '.join(_cells(summary))} |")


def summarised(rows: Sequence[dict[str, Any]], method: str) -> dict[str, Any] | None:
    """Means of one method, and its PGR; None if no question was asked with it."""
    by_question = {
        name: {(r["task"], r["set"], r["question"]): r for r in rows if r["method"] == name}
        for name in (method, FULL, WITHOUT)
    }
    got = by_question[method]
    keys = list(got)
    if not keys:
        return None

    def field(name: str, of: str = method) -> np.ndarray:
        return np.array([by_question[of][key][name] for key in keys], float)

    sets = [f"{name} {number}" for name, number, _ in keys]
    hard = (field("exact", FULL) == 1) & (field("exact", WITHOUT) == 0)
    found: dict[str, Any] = {
        "share": float(np.mean(field("n_computed") / field("n_documents"))),
        "kept": float(field("exact")[hard].mean()) if hard.any() else float("nan"),
        "n_kept": int(hard.sum()),
        "seconds": float(np.median([got[key].get("seconds", np.nan) for key in keys])),
    }
    for name in ("exact", "nll", "kl", "top1"):
        found[name] = float(field(name).mean())
    for name in ("exact", "nll"):
        three = (field(name), field(name, FULL), field(name, WITHOUT))
        found[f"pgr {name}"] = (
            reuse_quality.pgr(*three), *reuse_quality.bootstrap(*three, groups=sets),
        )  # fmt: skip
    return found


def _cells(found: dict[str, Any]) -> list[str]:
    def with_interval(three: tuple[float, float, float]) -> str:
        return "{:.2f} ({:.2f} to {:.2f})".format(*three)

    seconds = found["seconds"]
    return [
        f"{100 * found['share']:.1f} %",
        f"{100 * found['exact']:.0f} %",
        f"{100 * found['kept']:.0f} % of {found['n_kept']}",
        f"{found['nll']:.3f}",
        f"{found['kl']:.3f}",
        f"{100 * found['top1']:.0f} %",
        with_interval(found["pgr exact"]),
        with_interval(found["pgr nll"]),
        "" if np.isnan(seconds) else f"{seconds:.2f} s",
    ]


def plot(rows: Sequence[dict[str, Any]], path: str) -> None:
    """Draw PGR over the share that is computed: a point for each method, with its interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    methods = [m for m in dict.fromkeys(r["method"] for r in rows) if m not in (FULL, WITHOUT)]
    found = {method: summarised(rows, method) for method in methods}
    for axes, name in zip(figure.subplots(1, 2, sharex=True), ("exact", "nll"), strict=True):
        for i, (method, summary) in enumerate(found.items()):
            assert summary is not None
            value, low, high = summary[f"pgr {name}"]
            axes.errorbar(
                100 * summary["share"], value, [[value - low], [high - value]],
                marker="os^DvPX*"[i % 8], color=f"C{i % 10}", capsize=2, label=method,
            )  # fmt: skip
        axes.axhline(1, color="grey", linewidth=0.8)
        axes.set_xlabel("tokens computed, %")
        axes.set_ylabel({"exact": "PGR, exact answers", "nll": "PGR, NLL of the answer"}[name])
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize="small")
    figure.savefig(path, dpi=150)


# ---- time --------------------------------------------------------------------------------


def first_token(model: str, n: int, n_question: int, repetitions: int) -> None:
    """Print the time to the first token behind `n` tokens in four chunks, and when it pays.

    The question shares words with one chunk, so that its passage is found.
    """
    ways: dict[str, str | Recompute] = {
        "none": "none",
        "auto": "auto",
        # The first chunk is exact, so the others have it all.
        "20 % computed": Recompute(passages=_N_PARTS, length=round(0.2 * n / (_N_PARTS - 1))),
    }
    took: dict[str, list[float]] = {name: [] for name in ("cold", *ways)}
    shares: dict[str, float] = {}
    with (
        LLM(model, n_ctx=2 * n + 512, cache="raw", prefix_sharing=False) as llm,
        tempfile.TemporaryDirectory() as folder,
    ):
        rng = np.random.default_rng(0)
        ids = rng.integers(300, min(llm.n_vocab, 10000), n).tolist()
        size = n // _N_PARTS
        parts = [ids[i * size : (i + 1) * size] for i in range(_N_PARTS)]
        question = [ids[part * size + size // 2 + i] for part in range(_N_PARTS) for i in range(4)]
        question = (question * n_question)[:n_question]
        library = ChunkLibrary(folder)
        start = time.perf_counter()
        for i, part in enumerate(parts):
            library.add(llm, str(i), part)
        building = time.perf_counter() - start
        chunks = [library[str(i)] for i in range(_N_PARTS)]
        for _ in range(repetitions):
            start = time.perf_counter()
            with llm.context() as context:
                llm.generate(
                    [*llm.tokenizer.encode_part(""), *ids, *question], _FIRST, context=context
                )
            took["cold"].append(time.perf_counter() - start)
            for name, recompute in ways.items():
                start = time.perf_counter()
                with llm.context() as context:
                    computed = sum(context.append(c, recompute=recompute) for c in chunks)
                    done = llm.generate(question, _FIRST, context=context)
                took[name].append(time.perf_counter() - start)
                shares[name] = (computed + done.timings.n_prompt - len(question)) / n
    cold = statistics.median(took["cold"])
    print(f"{n} tokens in {_N_PARTS} chunks, a question of {n_question}; built in {building:.2f} s")
    print(
        "\n| | computed | first token | cold / it | pays after |\n| --- | --- | --- | --- | --- |"
    )
    print(f"| cold | 100 % | {cold:.3f} s | 1.0 | |")
    for name in ways:
        seconds = statistics.median(took[name])
        ratio = statistics.median(a / b for a, b in zip(took["cold"], took[name], strict=True))
        uses = building / (cold - seconds) if seconds < cold else float("inf")
        print(
            f"| {name} | {100 * shares[name]:.1f} % | {seconds:.3f} s | {ratio:.1f} | "
            f"{uses:.1f} uses |"
        )


# ---- the command -------------------------------------------------------------------------


def _list(text: str, known: Sequence[str]) -> list[str]:
    names = list(known) if text == "all" else text.split(",")
    for name in names:
        if name not in known:
            raise SystemExit(f"{name!r} is unknown, expected some of: {', '.join(known)}")
    return names


def main(argv: list[str] | None = None) -> None:
    """Measure, or show what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    actions = parser.add_subparsers(dest="action", required=True)
    one = actions.add_parser("measure")
    one.add_argument("-m", "--model", default=DEMO_MODEL)
    one.add_argument("--tasks", default="all", help=",".join(TASKS))
    one.add_argument("--methods", default="all", help="; ".join(METHODS).replace("%", "%%"))
    one.add_argument("--first", type=int, default=0, help="number of the first set of documents")
    one.add_argument("-n", type=int, default=10, help="sets of documents of each task")
    one.add_argument("-t", "--threads", type=int)
    one.add_argument(
        "-o",
        "--output",
        help="a JSON file, written after each question; what it has already is not measured again",
    )
    one = actions.add_parser("show")
    one.add_argument("files", nargs="+", metavar="FILE")
    one.add_argument("--least", type=int, default=0, help="only with at least so many documents")
    one.add_argument("--plot", metavar="FILE", help="draw PGR over the share computed")
    one = actions.add_parser("time")
    one.add_argument("-m", "--model", default=DEMO_MODEL)
    one.add_argument("-n", type=int, default=2048, help="tokens of the documents")
    one.add_argument("--n-question", type=int, default=16)
    one.add_argument("-r", "--repetitions", type=int, default=3)
    args = parser.parse_args(argv)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReuseWarning)  # this is the measurement
        _run(args)


def _run(args: argparse.Namespace) -> None:
    rows: list[dict[str, Any]] = []
    if args.action == "measure":
        tasks, methods = _list(args.tasks, list(TASKS)), _list(args.methods, list(METHODS))
        sets = range(args.first, args.first + args.n)
        output = Path(args.output) if args.output else None
        if output and output.exists():
            rows = json.loads(output.read_text())
        for row in measure(args.model, tasks, methods, sets, args.threads, list(rows)):
            rows.append(row)
            if output:
                output.write_text(json.dumps(rows))
        show(rows)
    elif args.action == "show":
        for file in args.files:
            rows += json.loads(Path(file).read_text())
        rows = [row for row in rows if row["n_chunks"] >= args.least]
        show(rows)
        if args.plot:
            plot(rows, args.plot)
    else:
        first_token(args.model, args.n, args.n_question, args.repetitions)


if __name__ == "__main__":
    main()
