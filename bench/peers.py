"""The same file through other engines, alternating with ours in one run.

    python -m bench.peers -m model.gguf --python path/to/python/with/llama-cpp-python

Each engine runs in a process of its own, stays loaded, and idles while another one is measured.
Repetitions go round all engines, so that a machine that drifts slows all of them alike; the table
compares medians. llama.cpp runs with its defaults (repacked weights, f16 cache), with flash
attention off and on; Lariat runs with both caches. Each process holds the weights, so for a large
model choose one --cache and one -fa. It needs the extra `peers`, or --python for an interpreter
that has it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lariat import _kernels, processor
from lariat.errors import LariatError
from lariat.measure.machine import Probe
from lariat.runtime import threads
from tqdm import tqdm

_WORKERS = Path(__file__).parent / "workers"
_ROOT = Path(__file__).parent.parent
_PROMPT = 8  # tokens before the greedy ones that are compared
_GREEDY = 16


class PeerError(LariatError):
    """An engine cannot be run."""


class Engine(NamedTuple):
    """An engine in one of its settings."""

    name: str
    python: str
    script: str
    options: dict[str, Any]
    batches: bool = True  # whether it decodes several sequences at once


class Worker:
    """A process with an engine in it; `call` sends a request and waits."""

    def __init__(self, engine: Engine, **options: Any) -> None:
        self.engine = engine
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the process
        self._started = time.perf_counter()
        self._process = subprocess.Popen(
            [engine.python, str(_WORKERS / engine.script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,  # a file: a pipe that nobody reads would block when it is full
            text=True,
            # Our worker imports the package that this process has.
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), *sys.path]))}
            if "lariat" in engine.script
            else None,
        )
        try:
            self.about = self.call("open", **engine.options, **options)
        except BaseException:
            self.close()
            raise

    @property
    def age(self) -> float:
        """Seconds since the process was started."""
        return time.perf_counter() - self._started

    def call(self, name: str, **arguments: Any) -> Any:
        """Call a method of the engine. Returns its value, or raises PeerError with its reason."""
        process = self._process
        assert process.stdin
        assert process.stdout
        try:
            process.stdin.write(json.dumps({"name": name, "arguments": arguments}) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = process.wait()
            self._errors.seek(0)
            last = self._errors.read().strip().splitlines()[-1:] or [f"exit code {code}"]
            raise PeerError(f"{self.engine.name} ended: {last[0]}")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(f"{self.engine.name}: {answer['error']}")
        return answer["value"]

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.communicate()
        self._errors.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Row(NamedTuple):
    """One test: samples of each engine, in `unit`."""

    test: str
    n_threads: int
    unit: str
    samples: dict[str, list[float]]

    def median(self, engine: str) -> float | None:
        """Return the median of an engine's samples, None of none."""
        return statistics.median(self.samples[engine]) if self.samples.get(engine) else None


class Options(NamedTuple):
    """Tests to run, and sizes of batches."""

    n_prompt: int
    n_gen: int
    depths: list[int]
    n_threads: list[int]
    n_seqs: int
    repetitions: int
    n_batch: int
    n_ubatch: int

    @property
    def n_ctx(self) -> int:
        """Tokens that a cache has to hold."""
        at_depth = max(self.depths) + max(self.n_prompt, self.n_gen)
        n_seqs = self.n_seqs * (self.n_gen + 32)
        return -(-max(at_depth, n_seqs, _PROMPT + _GREEDY) // 256) * 256


def engines(
    python: str | None,
    transformers_python: str | None,
    caches: Sequence[str] = ("roped", "raw"),
    flash: Sequence[int] = (0, 1),
) -> list[Engine]:
    """Return the engines that are asked for, ours first."""
    ours = [
        Engine(f"lariat {cache}", sys.executable, "lariat_worker.py", {"cache": cache})
        for cache in caches
    ]
    if python is None and importlib.util.find_spec("llama_cpp"):
        python = sys.executable
    theirs = []
    if python:
        for on in flash:
            name = "llama.cpp -fa" if on else "llama.cpp"
            theirs.append(Engine(name, python, "llama_cpp_worker.py", {"flash": bool(on)}))
    if transformers_python:
        script = "transformers_worker.py"
        theirs.append(Engine("transformers f32", transformers_python, script, {}, batches=False))
    if not theirs:
        raise PeerError(
            "there is no engine to compare with: pip install 'lariat[peers]', or name an"
            " interpreter that has llama-cpp-python with --python"
        )
    return ours + theirs


def same_start(workers: Sequence[Worker]) -> dict[str, int]:
    """Count the greedy tokens, of 16, that each engine has in common with the first one."""
    found = {w.engine.name: w.call("greedy", n_prompt=_PROMPT, n=_GREEDY) for w in workers}
    first = found[workers[0].engine.name]
    common = {}
    for name, ids in found.items():
        equal = [a == b for a, b in zip(first, ids, strict=True)]
        common[name] = equal.index(False) if False in equal else len(equal)
    return common


def measure(workers: Sequence[Worker], options: Options) -> Iterator[Row]:
    """Run all tests and yield a row for each."""
    for n_threads in options.n_threads:
        for worker in workers:
            worker.call("threads", n=n_threads)
        for depth in options.depths:
            for worker in workers:
                worker.call("fill", depth=depth)
            at = f" @ d{depth}" if depth else ""
            for phase, n in (("prompt", options.n_prompt), ("decode", options.n_gen)):
                if n:
                    name = f"{'pp' if phase == 'prompt' else 'tg'}{n}{at}"
                    yield _repeat(workers, options, name, n_threads, n, phase, {"n": n})
        if options.n_seqs > 1:
            n, n_seqs = options.n_gen or 32, options.n_seqs
            able = [w for w in workers if w.engine.batches]
            arguments = {"n_seqs": n_seqs, "n": n}
            name = f"tg{n} x {n_seqs} sequences"
            yield _repeat(able, options, name, n_threads, n * n_seqs, "decode_together", arguments)


def _repeat(
    workers: Sequence[Worker],
    options: Options,
    name: str,
    n_threads: int,
    n_tokens: int,
    request: str,
    arguments: dict[str, int],
) -> Row:
    samples: dict[str, list[float]] = {w.engine.name: [] for w in workers}
    warm_up = {**arguments, "n": min(arguments["n"], 4 if request != "prompt" else 1 << 30)}
    for worker in workers:
        worker.call(request, **warm_up)
    for _ in range(options.repetitions):
        for worker in workers:
            seconds = worker.call(request, **arguments)
            samples[worker.engine.name].append(n_tokens / seconds)
    return Row(name, n_threads, "t/s", samples)


def starts(model: str, chosen: Sequence[Engine], options: Options, times: int) -> list[Row]:
    """Time processes from their start to the first token, and their memory; files are cached."""
    n_threads = max(options.n_threads)
    names = [engine.name for engine in chosen]
    opened = Row("start to ready", n_threads, "s", {name: [] for name in names})
    first = Row("start to first token", n_threads, "s", {name: [] for name in names})
    memory = Row("peak memory", n_threads, "GB", {name: [] for name in names})
    for i in range(times + 1):  # the first round warms the file cache
        for engine in chosen:
            with _open(engine, model, options) as worker:
                ready = worker.age
                worker.call("threads", n=n_threads)
                worker.call("prompt", n=2)
                done = worker.age
                peak = worker.call("memory")["peak"] / 1e9
            for row, value in ((opened, ready), (first, done), (memory, peak)):
                if i:
                    row.samples[engine.name].append(value)
    return [opened, first, memory]


def _open(engine: Engine, model: str, options: Options) -> Worker:
    return Worker(
        engine,
        model=model,
        n_ctx=options.n_ctx,
        n_seqs=max(1, options.n_seqs),
        n_batch=options.n_batch,
        n_ubatch=options.n_ubatch,
    )


def table(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Return a Markdown table. A ratio above 1 says that our better cache beats the best other."""
    columns = ["test", "threads", "unit", *names, "ratio"]
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join(["---"] * len(columns)) + " |"]
    for row in rows:
        cells = [row.test, str(row.n_threads), row.unit]
        for name in names:
            value = row.median(name)
            cells.append("" if value is None else f"{value:.3f}" if value < 10 else f"{value:.1f}")
        cells.append(f"{ratio(row):.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratio(row: Row) -> float:
    """Return the best of ours over the best of theirs; for seconds and bytes, theirs over ours."""
    medians = {name: value for name in row.samples if (value := row.median(name)) is not None}
    ours = [value for name, value in medians.items() if name.startswith("lariat")]
    theirs = [value for name, value in medians.items() if not name.startswith("lariat")]
    if row.unit == "t/s":
        return max(ours) / max(theirs)
    return min(theirs) / min(ours)


def machine_line(n_threads: Sequence[int]) -> str:
    """The processor and its ceilings, measured now."""
    probe = Probe(max(n_threads))
    parts = [
        f"{n} threads {probe.read_bandwidth(n) / 1e9:.1f} GB/s and"
        f" {probe.int8_peak(n) / 1e9:.0f} GMAC/s int8"
        for n in n_threads
    ]
    machine = f"{processor.name()}, {threads.available()} processors, {_kernels.isa()}"
    return f"{machine}; {'; '.join(parts)}"


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", action="append", required=True, metavar="FILE")
    parser.add_argument("--python", help="an interpreter with llama-cpp-python")
    parser.add_argument(
        "--transformers-python", help="one with transformers, torch, gguf and accelerate"
    )
    parser.add_argument("--cache", choices=("roped", "raw"), action="append", help="ours; both")
    parser.add_argument("-fa", "--flash-attn", type=_list, default=[0, 1], metavar="LIST")
    parser.add_argument("-p", "--n-prompt", type=int, default=512)
    parser.add_argument("-n", "--n-gen", type=int, default=64)
    parser.add_argument("-d", "--n-depth", type=_list, default=[0], metavar="LIST")
    parser.add_argument("-t", "--threads", type=_list, default=[threads.resolve(None)])
    parser.add_argument("--sequences", type=int, default=8, help="decoded together; 1: not at all")
    parser.add_argument("-r", "--repetitions", type=int, default=5)
    parser.add_argument("-b", "--batch-size", type=int, default=2048)
    parser.add_argument("-ub", "--ubatch-size", type=int, default=512)
    parser.add_argument("--starts", type=int, default=0, help="processes to start and time, each")
    parser.add_argument("-o", "--output", choices=("md", "json"), default="md")
    args = parser.parse_args(argv)
    options = Options(
        args.n_prompt, args.n_gen, args.n_depth, args.threads, args.sequences, args.repetitions,
        args.batch_size, args.ubatch_size,
    )  # fmt: skip
    try:
        caches = args.cache or ("roped", "raw")
        chosen = engines(args.python, args.transformers_python, caches, args.flash_attn)
        for model in args.model:
            _one_model(model, chosen, options, args)
    except (PeerError, OSError) as error:
        print(f"bench.peers: error: {error}", file=sys.stderr)
        return 1
    return 0


def _one_model(
    model: str, chosen: Sequence[Engine], options: Options, args: argparse.Namespace
) -> None:
    if not os.path.isfile(model):
        raise PeerError(f"{model}: no such file")
    before = machine_line(options.n_threads)
    workers: list[Worker] = []
    rows: list[Row] = []
    try:
        for engine in chosen:
            workers.append(_open(engine, model, options))
            workers[-1].call("threads", n=max(options.n_threads))
        common = same_start(workers)
        n_rows = len(options.n_threads) * (2 * len(options.depths) + (options.n_seqs > 1))
        for row in tqdm(
            measure(workers, options), os.path.basename(model), n_rows, disable=None, leave=False
        ):
            rows.append(row)
        about = {w.engine.name: w.about for w in workers}
    finally:
        for worker in workers:
            worker.close()
    if args.starts:
        rows += starts(model, chosen, options, args.starts)
    names = [engine.name for engine in chosen]
    if args.output == "json":
        print(
            json.dumps(
                {
                    "model": os.path.basename(model),
                    "machine": before,
                    "command": " ".join(map(shlex.quote, sys.argv)),
                    "engines": about,
                    "greedy_tokens_in_common": common,
                    "rows": [{**row._asdict(), "ratio": ratio(row)} for row in rows],
                },
                indent=2,
            )
        )
        return
    print(f"\n**{os.path.basename(model)}** on {before}\n")
    print(table(rows, names))
    versions = {str(a["version"]) for a in about.values() if "version" in a}
    print(f"\nMedians of {options.repetitions}. Others: {'; '.join(sorted(versions))}.")
    print(f"Of {_GREEDY} greedy tokens in common with {names[0]}: {common}", flush=True)


def _list(text: str) -> list[int]:
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers like 1,2") from None
    if min(values) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} has a negative number")
    return values


if __name__ == "__main__":
    sys.exit(main())
