"""What raw keys cost: decoding at depths, and prompts, with both caches in turns.

    python -m bench.depths -m .bench-models/7b4l.gguf

Depth costs no time here: the cache is filled with random keys and values, because how long
attention takes depends on how many there are, not on what they are. Each repetition runs both
caches, the other one first every second time, so that a machine that drifts slows both alike;
medians are shown, and the median of the ratios within a repetition. The last columns are what a
token has to read, and its share of the bandwidth measured in the same repetitions.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import numpy as np

from engine import LLM, _kernels, _machine
from engine.batch import Chunk, split
from engine.cases import Case, Cost
from engine.cli.console import Bar
from engine.machine import Probe, cpu_info

_CACHES = ("roped", "raw")
_NOISE = 1 << 20  # random numbers, repeated over the cache


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def _fill(llm: LLM, rng: np.random.Generator) -> None:
    """Random keys and values in every slot of the cache."""
    noise = (rng.standard_normal(_NOISE, np.float32) * 0.5).astype(np.float16)
    for part in llm._cache._memory.blocks:
        flat = part.reshape(-1).view(np.float16)
        for at in range(0, len(flat), _NOISE):
            flat[at : at + _NOISE] = noise[: len(flat) - at]


def _alternate(
    llms: dict[str, LLM], work: Callable[[LLM], None], probe: Probe, repetitions: int
) -> tuple[dict[str, list[float]], list[float]]:
    """Seconds of `work` with each cache by repetition, and the bandwidth beside each."""
    took: dict[str, list[float]] = {cache: [] for cache in llms}
    bandwidth = []
    for i in range(repetitions + 1):  # the first warms up
        for cache in _CACHES if i % 2 else _CACHES[::-1]:
            start = time.perf_counter()
            work(llms[cache])
            if i:
                took[cache].append(time.perf_counter() - start)
        start = time.perf_counter()
        _machine.read(probe._memory, _kernels.isa(), llms["raw"].n_threads)
        bandwidth.append(probe.n_bytes / (time.perf_counter() - start))
    return took, bandwidth


def main(argv: list[str] | None = None) -> None:
    """Print a line for each number of threads and depth, and for each prompt."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-d", "--n-depth", type=_numbers, default=[128, 512, 2048, 8192])
    parser.add_argument("-p", "--n-prompt", type=_numbers, default=[])
    parser.add_argument("-t", "--threads", type=_numbers, default=[1, 2])
    parser.add_argument("-n", "--n-gen", type=int, default=4, help="tokens of a repetition")
    parser.add_argument("-r", "--repetitions", type=int, default=9)
    args = parser.parse_args(argv)
    n_ctx = max([*args.n_depth, *args.n_prompt, 0]) + args.n_gen + 64
    llms = {cache: LLM(args.model, n_ctx=n_ctx, cache=cache) for cache in _CACHES}
    for llm in llms.values():
        _fill(llm, np.random.default_rng(0))
    cost = Cost(llms["raw"].config, llms["raw"]._model._weights)
    probe = Probe(max(args.threads), 256 << 20)
    print(f"**{os.path.basename(args.model)}** on {cpu_info()}, {_kernels.isa()}\n")
    print("| test | threads | roped t/s | raw t/s | raw / roped | in pairs | MB/token | of read |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    todo = [(n, d, 0) for n in args.threads for d in args.n_depth]
    todo += [(n, 0, p) for n in args.threads for p in args.n_prompt]
    with Bar("measuring") as bar:
        for i, (n_threads, depth, n_prompt) in enumerate(todo):
            for llm in llms.values():
                llm.n_threads = llm.n_threads_batch = n_threads
            n = n_prompt or args.n_gen

            def work(llm: LLM, depth: int = depth, n_prompt: int = n_prompt) -> None:
                segments = llm.new_segments()
                segments.append(depth)
                if n_prompt:
                    chunk = Chunk(segments, list(range(300, 300 + n_prompt)), "last")
                    for group in split([chunk], llm.n_ubatch):
                        llm.forward(group)
                for token in range(300, 300 + (0 if n_prompt else args.n_gen)):
                    llm.forward([Chunk(segments, [token], "last")])
                segments.clear()

            took, bandwidth = _alternate(llms, work, probe, args.repetitions)
            medians = {cache: statistics.median(took[cache]) for cache in _CACHES}
            pairs = [a / b for a, b in zip(took["roped"], took["raw"], strict=True)]
            read = ["", ""]
            if not n_prompt:
                case = Case(n_gen=n, n_depth=depth, n_threads=n_threads, cache="raw")
                n_bytes = cost.bytes_per_token(case)
                share = n_bytes * n / medians["raw"] / statistics.median(bandwidth)
                read = [f"{n_bytes / 1e6:.0f}", f"{100 * share:.0f} %"]
            name = f"pp{n_prompt}" if n_prompt else f"tg @ d{depth}"
            print(
                f"| {name} | {n_threads} | {n / medians['roped']:.1f} | {n / medians['raw']:.1f} |"
                f" {medians['roped'] / medians['raw']:.3f} | {statistics.median(pairs):.3f} |"
                f" {read[0]} | {read[1]} |",
                flush=True,
            )
            bar((i + 1) / len(todo))


if __name__ == "__main__":
    main()
