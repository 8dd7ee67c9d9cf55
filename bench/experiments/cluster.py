"""A batch on 1 to 1,000 nodes, simulated: rows a day and a dollar, and how to cut the work.

    python -m bench.experiments.cluster                          the tables of docs/scaling.md
    python -m bench.experiments.cluster --check -m model.gguf    two real processes beside it

The simulation (`bench.cluster`) draws lengths of rows, nodes that are slower than others and nodes
that fail. Its speeds are flags; --check measures and prints them. --check then runs rows of skewed
lengths with two processes of one processor each, of which one is killed in the midst, as a queue
and as an array of `lariat batch`, and compares the time with the simulation of the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import numpy as np

from bench import cluster, cluster_runs
from bench.cluster import Cluster, Outcome, Speed

_HOUR = 3600.0


def make_cluster(n_nodes: int, args: argparse.Namespace) -> Cluster:
    """Nodes whose speeds and failures depend on their number and `--seed` only."""
    dice = np.random.default_rng([args.seed, n_nodes])
    slowness = np.exp(args.spread * dice.standard_normal(n_nodes))
    mean = args.mtbf * _HOUR
    return Cluster(slowness, args.parallel, lambda node: dice.exponential(mean), args.replacement)


def rows_a_dollar(n_rows: int, n_nodes: int, run: Outcome, price: float) -> float:
    """All nodes are paid until the last row is done."""
    return n_rows / (n_nodes * run.seconds / _HOUR * price)


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for row in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(row) + " |")


def tables(args: argparse.Namespace) -> None:
    """Print both tables: what a cluster does, and what chunks of each size cost."""
    speed = Speed(args.row, args.prompt_token, args.step, args.text, args.start)
    dice = np.random.default_rng(args.seed)
    lengths = cluster.skewed_lengths(args.rows, args.prompt, args.tokens, args.skew, dice)
    whole = cluster.works(lengths, args.parallel)[0][-1] @ speed.of_counts
    nodes = {n: make_cluster(n, args) for n in args.nodes}
    print(
        f"{args.rows} rows of {lengths[:, 0].mean():.0f} tokens read and {lengths[:, 1].mean():.0f}"
        f" written (longest: {lengths[:, 1].max()}); one node without failures: "
        f"{args.rows / whole:.2f} rows/s, {lengths.sum() / whole:.0f} tokens/s\n"
    )
    by_size: dict[int, np.ndarray] = {}
    sorted_lengths = lengths[np.argsort(lengths[:, 1], kind="stable")]
    for size in args.chunks:
        chunks = cluster.chunks_of(lengths, size)
        by_size[size] = cluster.chunk_counts(chunks, args.parallel) @ speed.of_counts
    runs: list[tuple[str, Callable[[Cluster], Outcome]]] = [
        ("array", lambda of: cluster.run_array(lengths, speed, of)),
        ("array, sorted input", lambda of: cluster.run_array(sorted_lengths, speed, of)),
    ]
    runs += [
        (
            f"queue, {size} rows",
            lambda of, size=size: cluster.run_queue(by_size[size], args.start, of),
        )
        for size in args.chunks
    ]
    outcomes = {(name, n): run(of) for name, run in runs for n, of in nodes.items()}
    print("Efficiency: time of one node without failures, over nodes times the time until the end.")
    _print_table(
        ["cut", *(f"{n} node{'s' * (n > 1)}" for n in nodes)],
        [
            [name, *(f"{whole / (n * outcomes[name, n].seconds):.0%}" for n in nodes)]
            for name, _ in runs
        ],
    )
    print(f"\nThe best queue of each column, at {args.price} dollars a node and hour:")
    rows = []
    for n in nodes:
        name = min((name for name, _ in runs[2:]), key=lambda name: outcomes[name, n].seconds)
        run = outcomes[name, n]
        rows.append(
            [str(n), name, f"{run.seconds / _HOUR:.2f}", f"{run.n_failures}",
             f"{args.rows / run.seconds * 24 * _HOUR:,.0f}",
             f"{rows_a_dollar(args.rows, n, run, args.price):,.0f}"]
        )  # fmt: skip
    _print_table(["nodes", "cut", "hours", "failures", "rows a day", "rows a dollar"], rows)


def check(args: argparse.Namespace) -> None:
    """Run both cuts with two real processes, and compare."""
    found = cluster_runs.compare(
        args.model, args.rows_checked, (args.prompt_checked, args.tokens_checked), args.skew,
        args.parallel_checked, args.chunk_checked, args.seed,
    )  # fmt: skip
    speed = found.speed
    print(
        f"measured with both processes at work: --row {speed.row:.4g} --prompt-token "
        f"{speed.prompt:.4g} --step {speed.step:.4g} --text {speed.text:.4g} --start "
        f"{speed.start:.3g} (one processor a node)"
    )
    _print_table(
        ["two processes, one killed", "measured", "simulated", "simulated / measured"],
        [
            [one.name, f"{one.measured:.1f} s", f"{one.simulated:.1f} s",
             f"{one.simulated / one.measured:.3f}"]
            for one in found.runs
        ],
    )  # fmt: skip


def _list(text: str) -> list[int]:
    return [int(one) for one in text.split(",")]


def main(argv: Sequence[str] | None = None) -> None:
    """Simulate, or check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    rows = parser.add_argument_group("rows")
    rows.add_argument("--rows", type=int, default=1_000_000)
    rows.add_argument("--prompt", type=float, default=200, help="tokens read, mean")
    rows.add_argument("--tokens", type=float, default=50, help="tokens written, mean")
    rows.add_argument("--skew", type=float, default=1.0, help="deviation of their logarithms")
    node = parser.add_argument_group("a node, in seconds; --check prints such a line")
    node.add_argument("--row", type=float, default=1e-3, help="of a row beside its tokens")
    node.add_argument("--prompt-token", type=float, default=1e-3, help="of a token that is read")
    node.add_argument("--step", type=float, default=10e-3, help="of a decode step")
    node.add_argument("--text", type=float, default=2e-3, help="of a text in a step")
    node.add_argument("--start", type=float, default=3.0, help="of a process")
    node.add_argument("--parallel", type=int, default=32, help="texts at a time")
    nodes = parser.add_argument_group("nodes")
    nodes.add_argument("--nodes", type=_list, default=[1, 10, 100, 1000], metavar="LIST")
    nodes.add_argument("--chunks", type=_list, default=[32, 128, 512, 2048, 8192], metavar="LIST")
    nodes.add_argument("--spread", type=float, default=0.1, help="deviation of their log speed")
    nodes.add_argument("--mtbf", type=float, default=24, help="hours between a node's failures")
    nodes.add_argument(
        "--replacement", type=float, default=120, help="seconds until there is another"
    )
    nodes.add_argument("--price", type=float, default=0.05, help="dollars of a node and hour")
    nodes.add_argument("--seed", type=int, default=0)
    real = parser.add_argument_group("two real processes")
    real.add_argument("--check", action="store_true")
    real.add_argument("-m", "--model", metavar="FILE", help="default: the bundled model")
    real.add_argument("--rows-checked", type=int, default=400)
    real.add_argument("--prompt-checked", type=float, default=48)
    real.add_argument("--tokens-checked", type=float, default=24)
    real.add_argument("--parallel-checked", type=int, default=16)
    real.add_argument("--chunk-checked", type=int, default=40)
    args = parser.parse_args(argv)
    (check if args.check else tables)(args)


if __name__ == "__main__":
    main()
