"""Cost of deleting tokens at the beginning of a full context, with both caches.

python -m bench.experiments.shift -m .bench-models/7b4l.gguf -c 8192
"""

from __future__ import annotations

import argparse
import statistics
import time

from lariat import LLM
from lariat.cli.console import Bar

_EVICTED = 32  # tokens


def main(argv: list[str] | None = None) -> None:
    """Fill a context, delete its first block again and again, print the median time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-c", "--ctx-size", type=int, default=8192)
    parser.add_argument("-r", "--repetitions", type=int, default=9)
    parser.add_argument("-t", "--threads", type=int)
    args = parser.parse_args(argv)
    print("| cache | tokens behind | median | least | most |\n| --- | --- | --- | --- | --- |")
    for cache in ("raw", "roped"):
        with LLM(
            args.model, n_ctx=args.ctx_size, cache=cache, n_threads=args.threads
        ) as llm, llm.context() as context, Bar(f"filling the {cache} cache") as bar:  # fmt: skip
            for i in range(0, args.ctx_size, 512):
                context.append(
                    [300 + (37 * j) % 1000 for j in range(i, min(i + 512, args.ctx_size))]
                )
                bar((i + 512) / args.ctx_size)
            bar.close()
            times = []
            for _ in range(args.repetitions):
                start = time.perf_counter()
                context.delete(0, _EVICTED)
                times.append(1000 * (time.perf_counter() - start))
            median, least, most = statistics.median(times), min(times), max(times)
            print(
                f"| {cache} | {len(context)} to {args.ctx_size - _EVICTED} |"
                f" {median:.3f} ms | {least:.3f} ms | {most:.3f} ms |",
                flush=True,
            )


if __name__ == "__main__":
    main()
