"""Chunk library: recall by recomputed tokens, time to the first token, memory.

    python -m bench.experiments.chunks recall
    python -m bench.experiments.chunks add -m .bench-models/7b.gguf --library DIR
    python -m bench.experiments.chunks time -m .bench-models/7b.gguf --library DIR

`time` adds the chunks that are missing, reads the others so that all of them are in the page cache,
and then shows medians. `recall` asks about the demo model's held-out passages whose facts stand in
documents: each document is a chunk, and the question stands behind them. Both print Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings

import numpy as np
from lariat import DEMO_MODEL, LLM, ChunkLibrary, SamplingParams
from lariat.measure.reuse_quality import predict
from lariat.reuse.library import ReuseWarning
from tqdm import tqdm

from models import corpus
from models.recall import Passage

_RECOMPUTED: tuple[str | int, ...] = ("none", "auto", 8, 16, 32, "all")
_N_PARTS = 4
_N_TOKENS = 1000  # of the longest passages; the model was trained on 1024
_ANSWER = SamplingParams(max_tokens=40, temperature=0.0, stop=("\n",))
_FIRST = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)


def recall(model: str, n: int) -> None:
    """Share of questions answered, and how likely the right answers are, by how many tokens of each
    chunk are recomputed."""
    names = [str(k) for k in _RECOMPUTED]
    print(f"| {n} passages, recomputed tokens of a chunk | {' | '.join(names)} |")
    print("| --- " * (len(names) + 1) + "|")
    for sink in (True, False):
        overrides = {} if sink else {"tokenizer.ggml.add_bos_token": False}
        right: dict[str | int, int] = dict.fromkeys(_RECOMPUTED, 0)
        surprise: dict[str | int, float] = dict.fromkeys(_RECOMPUTED, 0.0)
        with (
            LLM(model, n_ctx=1536, cache="raw", overrides=overrides, prefix_sharing=False) as llm,
            tempfile.TemporaryDirectory() as folder,
        ):
            passages = _with_documents(llm, n)
            for i, passage in enumerate(tqdm(passages, "recall", leave=False, disable=None)):
                library = ChunkLibrary(folder)
                names = [f"{i}/{j}" for j in range(len(passage.documents))]
                for name, document in zip(names, passage.documents, strict=True):
                    # As ids, with the blank in front wherever it stands: none is recomputed for it.
                    library.add(llm, name, llm.tokenize(document, add_bos=False))
                for k in _RECOMPUTED:
                    is_right, nll = _answer(llm, library, names, passage, k)
                    right[k] += is_right
                    surprise[k] += nll / n
                for name in names:
                    library.remove(name)
        shares = [f"{100 * right[k] / n:.1f} %" for k in _RECOMPUTED]
        where = "behind BOS" if sink else "at the very beginning"
        print(f"| computed {where} | {' | '.join(shares)} |", flush=True)
        nlls = [f"{surprise[k]:.4f}" for k in _RECOMPUTED]
        print(f"| NLL of the right answer, nats a token | {' | '.join(nlls)} |", flush=True)
    lengths = [len(document) for passage in passages for document in passage.documents]
    print(f"\n{len(lengths)} documents of {min(lengths)} to {max(lengths)} characters")


def _with_documents(llm: LLM, n: int) -> list[Passage]:
    def count(text: str) -> int:
        return len(llm.tokenize(text, add_bos=False))

    return [corpus.held_out_passage(3 * i + 2, _N_TOKENS, count) for i in range(n)]


def _answer(
    llm: LLM, library: ChunkLibrary, names: list[str], passage: Passage, k: str | int
) -> tuple[bool, float]:
    """Whether the question is answered, and the right answer's NLL, nats a token."""
    question = passage.prompt[passage.prompt.index("\nQuestion:") + 1 :]
    with llm.context() as context:
        if not llm.tokenizer.add_bos and llm.tokenizer.bos_id is not None:
            context.append([llm.tokenizer.bos_id])  # which the chunks were computed without
        for name in names:
            context.append(library[name], recompute=k)
        ids = llm.tokenize(question, add_bos=False)
        answer = llm.tokenize(passage.facts[0].statement, add_bos=False)  # the space is added
        predicted = predict(context, ids, answer)
        text = llm.generate(ids, _ANSWER, context=context).text
        return passage.is_right(text), -float(predicted[np.arange(len(answer)), answer].mean())


def add(model: str, folder: str, n: int) -> None:
    """Add what `first_token` needs: a document of `n` tokens, and its four parts."""
    with _load(model, n) as llm:
        for name, ids in _documents(llm, n).items():
            start = time.perf_counter()
            ChunkLibrary(folder).add(llm, name, ids)
            print(f"{name}: added in {time.perf_counter() - start:.2f} s", flush=True)


def _load(model: str, n: int) -> LLM:
    return LLM(model, n_ctx=2 * n + 512, cache="raw", prefix_sharing=False)


def _ids(llm: LLM, n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(300, min(llm.n_vocab, 10000), n).tolist()


def _documents(llm: LLM, n: int) -> dict[str, list[int]]:
    ids, part = _ids(llm, n), n // _N_PARTS
    parts = {f"part {i}": ids[i * part : (i + 1) * part] for i in range(_N_PARTS)}
    return {"document": ids, **parts}


def first_token(model: str, folder: str, n: int, n_question: int, repetitions: int) -> None:
    """Time to the first token: `n` tokens from the library, or computed, and a question.

    Each repetition loads the model anew, so that a first use is one.
    """
    add(model, folder, n)
    one, parts = ["document"], [f"part {i}" for i in range(_N_PARTS)]
    rows: dict[str, tuple[list[str], str | int]] = {
        "one chunk, first use": (one, "none"),
        "one chunk, again": (one, "none"),
        f"{_N_PARTS} chunks, first use": (parts, "none"),
        f"{_N_PARTS} chunks, again": (parts, "none"),
        f"{_N_PARTS} chunks, 16 tokens of each but the first recomputed": (parts, 16),
    }
    took: dict[str, list[float]] = {name: [] for name in rows}
    found = {}
    for _ in range(repetitions):
        with _load(model, n) as llm:
            question = _ids(llm, n_question, 1)
            for name, (names, recompute) in rows.items():
                start = time.perf_counter()
                library = ChunkLibrary(folder)
                with llm.context() as context:
                    for each in names:
                        context.append(library[each], recompute=recompute)
                    found[name] = llm.generate(question, _FIRST, context=context).token_ids
                took[name].append(time.perf_counter() - start)
    with _load(model, n) as llm:
        whole = [*llm.tokenize(""), *_ids(llm, n), *question]
        start = time.perf_counter()
        token = llm.generate(whole, _FIRST).token_ids
        cold = time.perf_counter() - start
    with _load(model, n) as llm:
        _memory(llm, ChunkLibrary(folder))
    same = all(found[name] == token for name, (names, _) in rows.items() if names == one)
    print(f"the same first token from one chunk as cold: {same}\n")
    print(f"| {n} tokens and a question of {n_question} | median | least | cold / median |")
    print("| --- | --- | --- | --- |")
    print(f"| cold: all computed | {cold:.3f} s | | |")
    for name, times in took.items():
        median = statistics.median(times)
        print(f"| library, {name} | {median:.3f} s | {min(times):.3f} s | {cold / median:.1f} |")


def _memory(llm: LLM, library: ChunkLibrary) -> None:
    with llm.context() as context:
        context.append(library["part 0"])
        once = context.nbytes
        context.append(library["part 0"])
        print(f"a chunk once: {once} bytes; twice in one context: {context.nbytes} bytes")


def main(argv: list[str] | None = None) -> None:
    """Measure and print tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("what", choices=["recall", "add", "time"])
    parser.add_argument("-m", "--model", default=DEMO_MODEL)
    parser.add_argument("-n", type=int, help="passages (100), or tokens of the library (2048)")
    parser.add_argument("--n-question", type=int, default=16)
    parser.add_argument("--library", help="a folder that stays; else a temporary one")
    parser.add_argument("-r", "--repetitions", type=int, default=5)
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore", ReuseWarning)  # this is the measurement
    if args.what == "recall":
        recall(args.model, args.n or 100)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            folder, n = args.library or temporary, args.n or 2048
            if args.what == "add":
                add(args.model, folder, n)
            else:
                first_token(args.model, folder, n, args.n_question, args.repetitions)


if __name__ == "__main__":
    main()
