"""Decoding deep in a context with keys and values of each type, types taking turns in one process.

    python -m bench.cache_speed -m .bench-models/7b4l.gguf

The context is not computed, see `bench.filled`.
"""

from __future__ import annotations

import argparse
import statistics
import time

from bench import filled
from engine import threads
from engine.config import CACHE_STRATEGIES
from engine.segments import SLOTS

_TYPES = ("f16", "q8_0", "q8_ch", "q4_0", "q4_ch")
_TURN = 8  # tokens that one type decodes before it is the next one's


def main(argv: list[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-d", "--depth", type=int, default=8192)
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("-r", "--repetitions", type=int, default=16)
    args = parser.parse_args(argv)
    n_threads, depth = threads.resolve(args.threads), args.depth // SLOTS * SLOTS
    kinds = [(strategy, type) for strategy in CACHE_STRATEGIES[::-1] for type in _TYPES]
    times: dict[tuple[str, str], list[float]] = {kind: [] for kind in kinds}
    with filled.load(args.model, kinds, depth + SLOTS, 1, n_threads) as (_, _, models):
        contexts = [model.context(depth) for model in models]
        runs = list(zip(models, contexts, times.values(), strict=True))
        for _, order in filled.in_turns(runs, args.repetitions):
            for model, context, took in order:
                for _ in range(_TURN):
                    start = time.perf_counter()
                    model.forward(context, [5], n_threads)
                    took.append(1000 * (time.perf_counter() - start))
                context.truncate(depth)
    print("| cache | keys and values | median | least | f16's median / this |")
    print("| --- | --- | --- | --- | --- |")
    for (strategy, type), took in times.items():
        median, of_f16 = statistics.median(took), statistics.median(times[strategy, "f16"])
        print(
            f"| {strategy} | {type} | {median:.2f} ms | {min(took):.2f} ms |"
            f" {of_f16 / median:.2f} |"
        )


if __name__ == "__main__":
    main()
