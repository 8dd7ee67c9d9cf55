"""Decoding deep in a context with keys and values of each type, types taking turns in one process.

    python -m bench.experiments.cache_speed -m .bench-models/7b4l.gguf

The cache is filled without computing, see `bench.filled`. A turn counts by its median token. Each
type is compared with the first one turn by turn, so that a slow drift hits both.
"""

from __future__ import annotations

import argparse
import statistics
import time

from lariat.cache.blocks import SLOTS
from lariat.runtime import threads

from bench import filled

_TURN = 8  # tokens that one type decodes before it is the next one's


def main(argv: list[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-d", "--depth", type=int, default=8192)
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("-r", "--repetitions", type=int, default=16)
    parser.add_argument("--cache", default="raw,roped", metavar="STRATEGY,...")
    parser.add_argument("--types", default="f16,q8_0,q8_ch,q4_0,q4_ch", metavar="TYPE,...")
    args = parser.parse_args(argv)
    n_threads, depth = threads.resolve(args.threads), args.depth // SLOTS * SLOTS
    types = args.types.split(",")
    caches = [(strategy, type) for strategy in args.cache.split(",") for type in types]
    times: dict[tuple[str, str], list[float]] = {cache: [] for cache in caches}  # ms of each turn
    with filled.load(args.model, caches, depth + SLOTS, 1, n_threads) as (_, _, models):
        tables = [model.table(depth) for model in models]
        runs = list(zip(models, tables, times.values(), strict=True))
        for _, order in filled.in_turns(runs, args.repetitions):
            for model, table, took in order:
                tokens = []
                for _ in range(_TURN):
                    start = time.perf_counter()
                    model.forward(table, [5], n_threads)
                    tokens.append(1000 * (time.perf_counter() - start))
                took.append(statistics.median(tokens))
                table.truncate(depth)
    print(f"| cache | keys and values | median | least | {types[0]} / this, in pairs |")
    print("| --- | --- | --- | --- | --- |")
    for (strategy, type), took in times.items():
        ratios = [a / b for a, b in zip(times[strategy, types[0]], took, strict=True)]
        print(
            f"| {strategy} | {type} | {statistics.median(took):.2f} ms | {min(took):.2f} ms |"
            f" {statistics.median(ratios):.2f} |"
        )


if __name__ == "__main__":
    main()
