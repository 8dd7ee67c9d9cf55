"""Divergence of predictions when keys and values are stored in fewer bits, with both caches.

    python -m bench.experiments.cache_quality
    python -m bench.experiments.cache_quality -m MODEL --prose

KL divergence (nats a token, mean over all scored tokens) of each cache type from f16, on held-out
text of the demo model in F16, which keeps activations exact, or on prose for other models. Prompts
are computed in passes of 32 tokens, so that all keys and values but those of the last block are
read in their own type.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from lariat import LLM
from lariat.cache.kv_cache import cache_bytes
from lariat.cli.console import Bar
from lariat.config import CACHE_STRATEGIES, CACHE_TYPES
from lariat.tools.perplexity import Base, BaseWriter, compare, cut, predictions

from bench.prose import prose
from models import corpus

_MODEL = Path(__file__).parents[2] / "models" / "demo-f16.gguf"
_N_CTX = 1024
_BASE = ("roped", "f16", "f16")


def held_out_text(llm: LLM, n_tokens: int) -> str:
    """Passages of recall and stories that training has not seen, at least so many tokens."""
    passages: list[str] = []
    n = 0
    while n < n_tokens:
        passages.append(corpus.held_out_passage(len(passages), _N_CTX).text)
        n += len(llm.tokenize(passages[-1], add_bos=False))
    return "\n".join(passages)


def rows(types: list[str]) -> list[tuple[str, str, str]]:
    """Cache, type of keys, type of values: both in each type, then keys alone."""
    pairs = [(name, name) for name in types if name in ("f16", "f32")]
    types = [name for name in types if (name, name) not in pairs]
    pairs += [(name, name) for name in types]
    pairs += [(name, "f16") for name in types]
    return [(cache, k, v) for k, v in pairs for cache in CACHE_STRATEGIES]


def main(argv: list[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--model", default=str(_MODEL))
    parser.add_argument("--windows", type=int, default=4, help="of 1024 tokens")
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("--prose", action="store_true", help="instead of the demo model's text")
    parser.add_argument("--types", default=",".join(CACHE_TYPES), metavar="TYPE,...")
    parser.add_argument("--both", action="store_true", help="only keys and values of one type")
    args = parser.parse_args(argv)

    def load(cache: str, type_k: str, type_v: str) -> LLM:
        return LLM(
            args.model, n_ctx=_N_CTX, n_ubatch=32, n_threads=args.threads, cache=cache,
            type_k=type_k, type_v=type_v, prefix_sharing=False,
        )  # fmt: skip

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "base.kl")
        with load(*_BASE) as llm:
            n_tokens = (args.windows + 1) * _N_CTX
            text = "\n".join(prose()) if args.prose else held_out_text(llm, n_tokens)
            windows = cut(llm, text, _N_CTX, args.windows)
            with BaseWriter(path, windows, llm.n_vocab) as writer:
                for some in predictions(llm, windows):
                    writer.add(some)
            config = llm.config
        print("| keys | values | bytes/token | cache | KL, mean | KL, 99 % | same top token |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        base, bar = Base(path), Bar("measuring")
        chosen = [row for row in rows(args.types.split(",")) if not args.both or row[1] == row[2]]
        for i, row in enumerate(chosen):
            with load(*row) as llm:
                found = compare(llm, base)
            cache, k, v = row
            n_bytes = cache_bytes(config, 32, k, v) // 32
            print(
                f"| {k} | {v} | {n_bytes} | {cache} | {found.kl.value:.6f} ± {found.kl.error:.6f} |"
                f" {found.kl_percentile(99):.5f} | {100 * found.same_top.value:.2f} % |",
                flush=True,
            )
            bar((i + 1) / len(chosen))
        bar.close()


if __name__ == "__main__":
    main()
