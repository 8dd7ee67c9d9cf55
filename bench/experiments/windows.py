"""Decoding at depth with the attention windows of a model, and with its windows ignored.

    python -m bench.experiments.windows -m .real-models/gemma-3-270m-q4_k_m.gguf

Depth costs no time here, see `bench.filled`. Each repetition runs both, the other one first every
second time. The table has medians, the median of the ratios within a repetition, and what a token
must read either way, which bounds the ratio where memory is the limit.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from dataclasses import replace

from lariat import _kernels, processor
from lariat.measure.cases import Case, Cost

from bench import filled


def main(argv: list[str] | None = None) -> None:
    """Print a line for each depth."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-d", "--n-depth", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-n", "--n-gen", type=int, default=4, help="tokens of a repetition")
    parser.add_argument("-r", "--repetitions", type=int, default=9)
    parser.add_argument("--cache", choices=("roped", "raw"), default="roped")
    args = parser.parse_args(argv)
    n_ctx = max(args.n_depth) + args.n_gen + 64
    cache = (args.cache, "f16")
    with filled.load(args.model, [cache], n_ctx, 1, args.threads) as loaded:
        c = loaded.config
        ignored = replace(c, layers=tuple(replace(layer, window=None) for layer in c.layers))
        models = [*loaded.models, filled.FilledModel(ignored, loaded.weights, cache, n_ctx, 1)]
        costs = [Cost(config, loaded.weights) for config in (c, ignored)]
        print(f"**{os.path.basename(args.model)}** on {processor.name()}, {_kernels.isa()}\n")
        print("| depth | windows t/s | ignored t/s | in pairs | MB/token | MB/token ignored |")
        print("| --- | --- | --- | --- | --- | --- |")
        for depth in args.n_depth:
            took: list[list[float]] = [[], []]
            for i, order in filled.in_turns((0, 1), args.repetitions + 1):  # the first warms up
                for which in order:
                    table = models[which].table(depth)
                    start = time.perf_counter()
                    for token in range(300, 300 + args.n_gen):
                        models[which].forward(table, [token], args.threads)
                    if i:
                        took[which].append(time.perf_counter() - start)
                    table.clear()
            pairs = statistics.median(b / a for a, b in zip(*took, strict=True))
            speeds = [args.n_gen / statistics.median(seconds) for seconds in took]
            case = Case(n_gen=args.n_gen, n_depth=depth, n_threads=args.threads, cache=args.cache)
            read = [f"{cost.bytes_per_token(case) / 1e6:.0f}" for cost in costs]
            print(
                f"| {depth} | {speeds[0]:.1f} | {speeds[1]:.1f} | {pairs:.2f} | {read[0]} |"
                f" {read[1]} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
