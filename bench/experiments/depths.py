"""Cost of raw keys: decoding at several depths, and prompts, with both caches in turns.

    python -m bench.experiments.depths -m .bench-models/7b4l.gguf

Depth costs no time here, see `bench.filled`. Each repetition runs both caches, the other one first
every second time. The table has the medians, the median of the ratios within a repetition ("in
pairs"), the bytes that a token must read, and their share of the bandwidth that was measured in the
same repetitions.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

from lariat import _kernels, processor
from lariat.cli.console import Bar
from lariat.measure.cases import Case, Cost
from lariat.measure.machine import Probe

from bench import filled

_CACHES = ("roped", "raw")
_N_UBATCH = 512  # max tokens of one forward pass


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def _alternate(
    models: list[filled.FilledModel],
    work: Callable[[filled.FilledModel], None],
    probe: Probe,
    n_threads: int,
    repetitions: int,
) -> tuple[dict[str, list[float]], list[float]]:
    """Return seconds of `work` by cache and repetition, and the bandwidth beside each."""
    took: dict[str, list[float]] = {cache: [] for cache in _CACHES}
    bandwidth: list[float] = []
    for i, order in filled.in_turns(models, repetitions + 1):  # the first warms up
        for model in order:
            start = time.perf_counter()
            work(model)
            if i:
                took[model.strategy].append(time.perf_counter() - start)
        bandwidth.append(probe.read_bandwidth(n_threads, 1))
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
    probe = Probe(max(args.threads), 256 << 20)
    todo = [(n, d, 0) for n in args.threads for d in args.n_depth]
    todo += [(n, 0, p) for n in args.threads for p in args.n_prompt]
    caches = [(cache, "f16") for cache in _CACHES]
    with (
        filled.load(args.model, caches, n_ctx, _N_UBATCH, max(args.threads)) as loaded,
        Bar("measuring") as bar,
    ):
        cost = Cost(loaded.config, loaded.weights)
        print(f"**{os.path.basename(args.model)}** on {processor.name()}, {_kernels.isa()}\n")
        print(
            "| test | threads | roped t/s | raw t/s | raw / roped | in pairs | MB/token | of read |"
        )
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
        for i, (n_threads, depth, n_prompt) in enumerate(todo):
            n = n_prompt or args.n_gen
            ids = list(range(300, 300 + n))
            passes = [ids] if n_prompt else [[token] for token in ids]

            def work(
                model: filled.FilledModel,
                depth: int = depth,
                passes: list[list[int]] = passes,
                n_threads: int = n_threads,
            ) -> None:
                table = model.table(depth)
                for some in passes:
                    model.forward(table, some, n_threads)
                table.clear()

            took, bandwidth = _alternate(loaded.models, work, probe, n_threads, args.repetitions)
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
