"""From the start of a process to its first token: weights that are prepared, and built, in turns.

    lariat prepare model.gguf
    python -m bench.experiments.starts -m model.gguf [--peer PYTHON] [--processes 4]

The prompt is one token, with a context of 512. Rows: a Python program, the command line, both with
`prepared` and without, and with --peer llama-cpp-python in that interpreter. Each repetition runs
all of them, in another order. The model's files are read once before, so that they are in memory.

--processes N starts so many processes that share prepared weights, and prints their memory: the sum
of their proportional sets (Pss), in which a page counts once however many processes map it.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lariat.architectures.prepared import candidates

_OURS = """
import sys
from lariat import LLM, SamplingParams
llm = LLM(sys.argv[1], n_ctx=512, n_threads=int(sys.argv[2]), prepared=sys.argv[3] == "prepared")
assert (llm.prepared is not None) == (sys.argv[3] == "prepared"), llm.prepared_refused
llm.generate([1], SamplingParams(max_tokens=1, temperature=0, ignore_eos=True))
print("first token", flush=True)
sys.stdin.readline()
"""
_PEER = """
import sys
from llama_cpp import Llama
n = int(sys.argv[2])
llm = Llama(sys.argv[1], n_ctx=512, n_threads=n, n_threads_batch=n, verbose=False)
llm.eval([1])
llm.sample(temp=0)
print("first token", flush=True)
sys.stdin.readline()
"""
_READ_AT_ONCE = 64 << 20


def _commands(model: str, n_threads: int, peer: str | None) -> dict[str, list[str]]:
    n, python = str(n_threads), sys.executable
    cli = [python, "-m", "lariat", "generate", "-m", model, "-t", n, "-c", "512", "-n", "1"]
    cli += ["-p", "a", "--temp", "0", "-q"]
    rows = {
        "program, prepared": [python, "-c", _OURS, model, n, "prepared"],
        "program, built": [python, "-c", _OURS, model, n, "built"],
        "command, prepared": cli,
        "command, built": [*cli, "--no-prepared"],
    }
    if peer is not None:
        rows["llama.cpp"] = [peer, "-c", _PEER, model, n]
    return rows


def _seconds(command: Sequence[str]) -> float:
    """From the start to the first byte of standard output."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        first = process.stdout.read(1)
        seconds = time.perf_counter() - start
        process.communicate(b"\n")
    if not first or process.returncode:
        raise SystemExit(f"{' '.join(command[:4])} ... ended with {process.returncode}")
    return seconds


def _warm(model: Path) -> None:
    for path in (model, *candidates(model)):
        if path.exists():
            with open(path, "rb", buffering=0) as file:
                while file.read(_READ_AT_ONCE):
                    pass


def _pss(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pss:")) * 1024


def _print_memory(command: Sequence[str], n_processes: int) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    running: list[subprocess.Popen[bytes]] = []
    alone = 0
    try:
        for _ in range(n_processes):
            running.append(subprocess.Popen(command, **pipes))  # type: ignore[call-overload]
            stdout = running[-1].stdout
            assert stdout is not None
            stdout.readline()
            alone = alone or _pss(running[0].pid)
        together = sum(_pss(process.pid) for process in running)
    finally:
        for process in running:
            process.communicate(b"\n")
    print(
        f"Pss of one process {alone / 1e6:.0f} MB, of {n_processes} together "
        f"{together / 1e6:.0f} MB: {together / alone:.3f} times one"
    )


def main(argv: list[str] | None = None) -> None:
    """Print a table of seconds, and the memory of several processes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-r", "--repetitions", type=int, default=7)
    parser.add_argument("--peer", metavar="PYTHON", help="an interpreter with llama_cpp")
    parser.add_argument("--only", metavar="TEXT", default="", help="rows whose names have it")
    parser.add_argument("--processes", type=int, metavar="N", default=0)
    args = parser.parse_args(argv)
    _warm(Path(args.model))
    rows = _commands(args.model, args.threads, args.peer)
    chosen = {name: row for name, row in rows.items() if args.only in name}
    took: dict[str, list[float]] = {name: [] for name in chosen}
    for i in range(args.repetitions + 1):  # the first warms up
        order = list(chosen)
        random.Random(i).shuffle(order)
        for name in order:
            seconds = _seconds(chosen[name])
            if i:
                took[name].append(seconds)
    print(f"{os.path.basename(args.model)}, {args.threads} threads, prompt of one token")
    base = took.get("llama.cpp") or next(iter(took.values()))
    for name, seconds in took.items():
        ratio = statistics.median(b / s for b, s in zip(base, seconds, strict=True))
        print(
            f"{name:20}  {statistics.median(seconds):7.3f} s  (from {min(seconds):.3f})  "
            f"{ratio:5.2f} times as fast as {'llama.cpp' if 'llama.cpp' in took else 'the first'}"
        )
    if args.processes:
        _print_memory(rows["program, prepared"], args.processes)


if __name__ == "__main__":
    main()
