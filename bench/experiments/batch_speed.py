"""`lariat batch` beside `lariat bench --sequences` at the same lengths, and llama.cpp row by row.

    python -m bench.experiments.batch_speed -m model.gguf [--python PYTHON]

Rows are prompts of words, of --prompt tokens each, with nothing in common; each is answered
greedily with --tokens tokens. Before and after the batch, `lariat bench` reads and writes as many
tokens in as many sequences as the batch has at a time, without texts and without choosing tokens.
With --python, an interpreter that has llama-cpp-python answers every tenth row, one after the
other, in turns with the batch's halves. Rates are tokens read and written a second, without the
loading of the model.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lariat import LLM
from lariat.runtime import threads

from bench.prose import prose

_PEER = """
import json, sys, time
from llama_cpp import Llama
model, path, n_threads, n_tokens = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
prompts = json.load(open(path))
llm = Llama(model, n_ctx=512, n_threads=n_threads, n_threads_batch=n_threads, verbose=False)

def answer(prompt):
    ids = llm.tokenize(prompt.encode(), add_bos=True)
    n = 0
    for token in llm.generate(ids, temp=0):
        n += 1
        if n == n_tokens:
            break
    return len(ids) + n

answer(prompts[0])
began = time.perf_counter()
n_all = sum(answer(prompt) for prompt in prompts)
print(n_all / (time.perf_counter() - began))
"""


def prompts(model: str, n_rows: int, n_tokens: int) -> list[str]:
    """Texts of so many tokens each, of words that are one token each."""
    with LLM(model, n_ctx=64) as llm:
        n_first = len(llm.tokenize("The"))
        words = sorted(
            word
            for word in set(re.findall(r"\b[a-z]{3,}\b", " ".join(prose())))
            if len(llm.tokenize(f"The {word}")) == n_first + 1
        )
        dice = random.Random(0)
        found = []
        for _ in range(n_rows):
            found.append("The " + " ".join(dice.choices(words, k=n_tokens - n_first)))
        assert all(len(llm.tokenize(text)) == n_tokens for text in found)
    return found


def ours(model: str, texts: Sequence[str], n_tokens: int, n_parallel: int, n_threads: int) -> float:
    """Tokens a second of `lariat batch`, as it prints them."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "rows.jsonl")
        rows = [
            {"custom_id": f"row-{i}", "prompt": text, "max_tokens": n_tokens, "ignore_eos": True,
             "temperature": 0}
            for i, text in enumerate(texts)
        ]  # fmt: skip
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        n_ctx = n_parallel * (len(texts[0].split()) + n_tokens + 64)
        done = subprocess.run(
            [sys.executable, "-m", "lariat", "batch", str(source), "-o", f"{folder}/out",
             "-m", model, "-np", str(n_parallel), "-c", str(n_ctx), "-t", str(n_threads)],
            stderr=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
    said = re.search(r"\((\d+) with an error\).* ([\d.]+) tokens per second", done.stderr)
    if said is None or said[1] != "0":
        raise SystemExit(done.stderr)
    return float(said[2])


def bench(model: str, n_prompt: int, n_tokens: int, n_parallel: int, n_threads: int) -> float:
    """Tokens a second of `lariat bench` with so many sequences."""
    done = subprocess.run(
        [sys.executable, "-m", "lariat", "bench", "-m", model, "-p", "0", "-n", "0",
         "-pg", f"{n_prompt},{n_tokens}", "--sequences", str(n_parallel), "-r", "5",
         "-t", str(n_threads), "-o", "json"],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    (found,) = json.loads(done.stdout)
    return float(found["avg_ts"])


def peer(python: str, model: str, texts: Sequence[str], n_tokens: int, n_threads: int) -> float:
    """Tokens a second of llama-cpp-python, one text after the other."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(list(texts), file)
        file.flush()
        done = subprocess.run(
            [python, "-c", _PEER, model, file.name, str(n_threads), str(n_tokens)],
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
    return float(done.stdout)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", required=True, metavar="FILE")
    parser.add_argument("--python", metavar="PYTHON", help="an interpreter with llama-cpp-python")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--prompt", type=int, default=32, help="tokens that are read")
    parser.add_argument("--tokens", type=int, default=16, help="tokens that are written")
    parser.add_argument("-np", "--parallel", type=int, default=32)
    parser.add_argument("-t", "--threads", type=int, default=threads.resolve(None))
    args = parser.parse_args(argv)
    texts = prompts(args.model, args.rows, args.prompt)
    half = len(texts) // 2
    rates: dict[str, list[float]] = {"lariat bench": [], "lariat batch": [], "llama.cpp": []}
    lengths = (args.prompt, args.tokens, args.parallel, args.threads)
    for part in (texts[:half], texts[half:]):
        rates["lariat bench"].append(bench(args.model, *lengths))
        rates["lariat batch"].append(ours(args.model, part, *lengths[1:]))
        if args.python:
            some = part[::10]
            rate = peer(args.python, args.model, some, args.tokens, args.threads)
            rates["llama.cpp"].append(rate)
    rates["lariat bench"].append(bench(args.model, *lengths))
    print(
        f"{args.rows} rows of {args.prompt} tokens read and {args.tokens} written, "
        f"{args.parallel} at a time, {args.threads} threads, tokens a second:"
    )
    batch = statistics.mean(rates["lariat batch"])
    for name, some in rates.items():
        if some:
            mean = statistics.mean(some)
            each = ", ".join(f"{one:.0f}" for one in some)
            print(f"{name:13} {mean:7.0f}  ({each}); lariat batch over it: {batch / mean:.2f}")


if __name__ == "__main__":
    main()
