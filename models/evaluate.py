"""Measures the demo model with the engine: perplexity, recall, stories.

    python -m models.evaluate [--peer path/to/python/with/llama_cpp]

Measures the files in the repository, or with --models those of another training. Prints Markdown.
All documents are held out: their seeds were never trained on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from lariat import DEMO_MODEL, LLM, SamplingParams
from lariat.demo import DEMO_DRAFT_MODEL
from tqdm import tqdm

from models import corpus
from models.recall import Passage

SHIPPED = {"F16": Path(__file__).with_name("demo-f16.gguf"), "Q4_0": Path(DEMO_MODEL)}
CACHES = ("roped", "raw")
_N_TOKENS = 1000  # of the longest passages; the context is 1024
_PEER = Path(__file__).with_name("peer.py")

Files = Mapping[str, Path]  # GGUF files by the type of their matrices, exact one first


def nll(llm: LLM, ids: Sequence[int]) -> float:
    """Negative log-likelihood of all ids but the first, in nats."""
    logits = llm.logits(list(ids))[:-1].astype(np.float64)
    top = logits.max(axis=1)
    log_sum = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
    return float((log_sum - logits[np.arange(len(ids) - 1), np.asarray(ids[1:])]).sum())


def perplexity(llm: LLM, texts: Sequence[str]) -> float:
    """exp of the mean over all tokens of all texts, end tokens included."""
    total, n_tokens = 0.0, 0
    assert llm.tokenizer.eos_id is not None
    for text in tqdm(texts, "perplexity", unit="text", leave=False, disable=None):
        ids = [*llm.tokenize(text), llm.tokenizer.eos_id]
        total += nll(llm, ids)
        n_tokens += len(ids) - 1
    return float(np.exp(total / n_tokens))


def held_out_passages(llm: LLM, n: int) -> list[Passage]:
    """The first `n` passages of recall, as long as the context allows."""

    def count(text: str) -> int:
        return len(llm.tokenize(text, add_bos=False))

    return [corpus.held_out_passage(i, _N_TOKENS, count) for i in range(n)]


def recall(llm: LLM, passages: Sequence[Passage]) -> list[bool]:
    """Whether each passage's question is answered, greedily."""
    params = SamplingParams(max_tokens=40, temperature=0.0, stop=("\n",))
    return [
        passage.is_right(llm.generate(passage.prompt, params).text)
        for passage in tqdm(passages, "recall", unit="passage", leave=False, disable=None)
    ]


def report_perplexity(files: Files, n_texts: int) -> None:
    """Perplexity of both files on stories and on passages."""
    stories = [corpus.story_number(corpus.HELD_OUT, i) for i in range(n_texts)]
    print("| held-out perplexity | F16 | Q4_0 | ratio |\n| --- | --- | --- | --- |")
    with LLM(files["F16"]) as llm:
        passages = [p.text for p in held_out_passages(llm, n_texts // 4)]
    rows = {"stories": stories, "passages": passages, "all": stories + passages}
    found: dict[str, list[float]] = {name: [] for name in rows}
    for file in files.values():
        with LLM(file) as llm:
            for name, texts in rows.items():
                found[name].append(perplexity(llm, texts))
    for name, (exact, rounded) in found.items():
        n = len(rows[name])
        print(f"| {n} texts: {name} | {exact:.4f} | {rounded:.4f} | {rounded / exact:.4f} |")


def report_recall(files: Files, n: int) -> None:
    """Recall of both files with both caches, also by type and length of passage."""
    columns = ["cache", "all", "facts first", "in documents", "over 500 tokens", "longest prompt"]
    print(f"\n| recall on {n} held-out passages, greedy | {' | '.join(columns)} |")
    print("| --- " * (len(columns) + 1) + "|")
    for name, file in files.items():
        for cache in CACHES:
            with LLM(file, cache=cache) as llm:
                passages = held_out_passages(llm, n)
                right = np.array(recall(llm, passages))
                lengths = np.array([len(llm.tokenize(p.prompt)) for p in passages])
            in_documents = np.array([bool(p.documents) for p in passages])
            shares = [
                f"{100 * right[which].mean():.1f} % ({right[which].sum()}/{which.sum()})"
                for which in (
                    np.ones(n, bool), ~in_documents, in_documents, lengths > 500
                )
            ]  # fmt: skip
            print(f"| {name} | {cache} | {' | '.join(shares)} | {lengths.max()} |")


def report_peer(files: Files, python: str, n: int) -> None:
    """Token ids and negative log-likelihoods beside llama.cpp's."""
    texts = ["Once upon a time", "The key of the red door is 4 8 2 1.", "Crème brûlée, 1234 → 日本"]
    texts += [corpus.story_number(corpus.HELD_OUT, i) for i in range(n)]
    texts += [corpus.held_out_passage(i, 800).text for i in range(n)]
    print("\n| against llama.cpp | texts | same ids | largest difference of NLL |\n"
          "| --- | --- | --- | --- |")  # fmt: skip
    for name, file in files.items():
        answers = json.loads(
            subprocess.run(
                [python, str(_PEER), str(file)],
                input=json.dumps(texts), capture_output=True, text=True, check=True,
            ).stdout
        )  # fmt: skip
        with LLM(file) as llm:
            ids = [llm.tokenize(text) for text in texts]
            same = sum(a == b["ids"] for a, b in zip(ids, answers, strict=True))
            worst = max(
                abs(nll(llm, b["ids"]) / b["nll"] - 1) for b in answers if len(b["ids"]) > 1
            )
        print(f"| {name} | {len(texts)} | {same} | {100 * worst:.3f} % |")


def report_draft(model: Path, draft: Path, n: int) -> None:
    """How many guesses of the draft model come, in stories and answers, greedy and sampled."""
    stories = [corpus.story_number(corpus.HELD_OUT, i) for i in range(n)]
    columns = ["tokens", "guessed", "came", "tokens a pass"]
    print(f"\n| draft model, {n} held-out texts each | {' | '.join(columns)} |")
    print("| --- " * (len(columns) + 1) + "|")
    with LLM(model, draft_model=draft, n_ctx=1 << 16) as llm:
        prompts = {
            "stories": [" ".join(story.split()[:12]) for story in stories],
            "answers": [passage.prompt for passage in held_out_passages(llm, n)],
        }
        ways = {
            "greedy": SamplingParams(max_tokens=300, temperature=0.0),
            "sampled as by default, seed 0": SamplingParams(max_tokens=300, seed=0),
        }
        for kind, texts in prompts.items():
            for way, params in ways.items():
                done = [one.timings for one in llm.generate(texts, params)]
                n_decode = sum(t.n_decode for t in done)
                n_drafted = sum(t.n_drafted for t in done)
                share = sum(t.n_accepted for t in done) / n_drafted
                per_pass = n_decode / sum(t.n_passes for t in done)
                shown = f"{n_decode} | {n_drafted} | {100 * share:.1f} % | {per_pass:.2f}"
                print(f"| {kind}, {way} | {shown} |", flush=True)


def report_stories(files: Files, n: int) -> None:
    """One story for each seed, none left out."""
    with LLM(files["Q4_0"]) as llm:
        for seed in range(n):
            done = llm.generate("Once upon a time", SamplingParams(max_tokens=500, seed=seed))
            how = f"{len(done.token_ids)} tokens, finished by {done.finish_reason}"
            text = done.text.replace("\n", "\n\n")
            print(f"\n**Seed {seed}** ({how})\n\nOnce upon a time{text}")


def main(argv: list[str] | None = None) -> None:
    """Measure the demo model and print the figures of its card."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--models", type=Path, help="the --out of models.export (default: the shipped files)"
    )
    parser.add_argument("--peer", help="a Python with llama-cpp-python, to compare with")
    parser.add_argument("--only-draft", action="store_true", help="measure the draft model alone")
    parser.add_argument("--n-texts", type=int, default=200)
    parser.add_argument("--n-passages", type=int, default=200)
    parser.add_argument("--n-stories", type=int, default=10)
    args = parser.parse_args(argv)
    files: Files = SHIPPED
    if args.models:
        files = {name: args.models / path.name for name, path in SHIPPED.items()}
    draft = args.models / Path(DEMO_DRAFT_MODEL).name if args.models else Path(DEMO_DRAFT_MODEL)
    if args.only_draft:
        report_draft(files["Q4_0"], draft, args.n_texts // 4)
        return
    report_perplexity(files, args.n_texts)
    report_recall(files, args.n_passages)
    if args.peer:
        report_peer(files, args.peer, 20)
    report_draft(files["Q4_0"], draft, args.n_texts // 4)
    report_stories(files, args.n_stories)


if __name__ == "__main__":
    main()
