"""Decoding deep in a context with keys and values of each type, types taking turns in one process.

    python -m bench.cache_speed -m .bench-models/7b4l.gguf

The context is not computed: its blocks are copies of one of random numbers, which cost as much.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from engine import threads
from engine._program import run
from engine.batch import Chunk, make_batch
from engine.config import CACHE_STRATEGIES, ModelConfig
from engine.gguf import GGUFFile
from engine.kv_cache import STRATEGIES, KVCache
from engine.model import Model
from engine.rope import RopeTable
from engine.segments import SLOTS, SegmentList
from engine.weights import load_weights

_TYPES = ("f16", "q8_0", "q8_ch", "q4_0", "q4_ch")
_TURN = 8  # tokens that one type decodes before it is the next one's


def fill(cache: KVCache, config: ModelConfig, depth: int) -> SegmentList:
    """A context of `depth` positions, in whole blocks."""
    context, rng = cache.new_segments(), np.random.default_rng(0)
    slots, positions = context.append(depth)
    memory, slots, positions = cache._memory, slots[:SLOTS], positions[:SLOTS]
    memory.open(slots, cache.pool)
    for layer in range(config.n_layers):
        keys, values = (
            rng.standard_normal((SLOTS, config.n_kv_heads, d), np.float32)
            for d in (config.head_dim_k, config.head_dim_v)
        )
        run(cache.store(layer, keys, values, positions, slots))
    memory.seal(slots, cache.pool, 1)
    for block in context.segments[1:, 0].tolist():
        memory.copy(int(slots[0]) // SLOTS, block, 0, SLOTS, cache.pool)
    return context


def main(argv: list[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-d", "--depth", type=int, default=8192)
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("-r", "--repetitions", type=int, default=16)
    args = parser.parse_args(argv)
    n_threads, depth = threads.resolve(args.threads), args.depth // SLOTS * SLOTS
    with GGUFFile(args.model) as gguf:
        config = ModelConfig.from_gguf(gguf)
        weights = load_weights(gguf, config, n_threads, None)
        runs = []
        for name in CACHE_STRATEGIES[::-1]:
            for type in _TYPES:
                rope = RopeTable(config, depth + SLOTS, weights.rope_factors)
                cache = STRATEGIES[name](config, depth + SLOTS, type, type, rope)
                model = Model(config, weights, cache, 1)
                runs.append((name, type, fill(cache, config, depth), model, []))
        for _ in range(args.repetitions):
            for _, _, context, model, times in runs:
                for _ in range(_TURN):
                    start = time.perf_counter()
                    with threads.forward_pass():
                        model.forward(make_batch([Chunk(context, [5], "last")]), n_threads)
                    times.append(1000 * (time.perf_counter() - start))
                context.truncate(depth)
    print("| cache | keys and values | median | least | f16's median / this |")
    print("| --- | --- | --- | --- | --- |")
    of_f16 = {name: statistics.median(t) for name, type, _, _, t in runs if type == "f16"}
    for name, type, _, _, times in runs:
        median = statistics.median(times)
        print(
            f"| {name} | {type} | {median:.2f} ms | {min(times):.2f} ms |"
            f" {of_f16[name] / median:.2f} |"
        )


if __name__ == "__main__":
    main()
