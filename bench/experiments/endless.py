"""Quality, memory and speed of a stream that never ends, at its beginning and at its end.

    python -m bench.experiments.endless -n 20000
    python -m bench.experiments.endless -m MODEL -c 1024 --prose -n 8000 --seeds 1

Three perplexities, each of the first full context and of the last 2,000 tokens. Perplexity is exp
of the mean of -log p, with p from the logits before temperature and everything else.

own       of the tokens that the stream sampled (temperature 1, nothing cut off, so that it shows
          the model's uncertainty). A stream that falls into a loop looks good here.
anew      of the same text, scored from an empty context. The text is cut into windows of a context,
          and the tokens behind the first quarter of each count.
held-out  of a text that the model has never seen, put through the same context 32 tokens at a time,
          as the paper does (StreamingLLM, arXiv 2309.17453, section 4.1).

With --prose the text is that of `bench.prose`, whose parts are not alike, and which models may have
seen in training. So the last 2,000 tokens or more are compared with the same tokens anew.

When a story ends, the next begins in the same context, as in training: end token, begin token.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from lariat import DEMO_MODEL, LLM, SamplingParams
from lariat.cache.blocks import SLOTS
from lariat.cli.console import Bar
from lariat.runtime.batch import Part
from lariat.runtime.runner import Runner
from lariat.runtime.sampler import log_softmax

from bench.prose import prose
from models import corpus

_LAST = 2000  # tokens
_MIN_TOKENS = 4000  # so that the last whole thousand comes after the one after 3,000


class Scores:
    """-log p of each token that the only stream of a runner samples."""

    def __init__(self, runner: Runner) -> None:
        """Look at every forward pass of the runner from now on."""
        self.nll: list[float] = []
        self._predicted: np.ndarray | None = None  # log p [n_vocab], where a token was sampled
        self._forward = runner.forward
        runner.forward = self.forward  # type: ignore[method-assign]

    def forward(self, parts: Sequence[Part], n_threads: int | None = None) -> np.ndarray:
        """Run a pass. It begins with the token that was sampled after the pass before."""
        self.add({parts[0].token_ids[0]})
        logits = self._forward(parts, n_threads)
        if parts[-1].logits == "last":
            self._predicted = log_softmax(logits[-1:])[0]
        return logits

    def add(self, tokens: Collection[int]) -> None:
        """Add -log p of the token that was sampled last and is one of these: p is their sum."""
        if self._predicted is not None:
            self.nll.append(-float(np.logaddexp.reduce(self._predicted[list(tokens)])))
            self._predicted = None


@dataclass
class Run:
    """Tokens of a stream, their -log p, and what they cost."""

    ids: list[int] = field(default_factory=list)
    nll: list[float] = field(default_factory=list)
    resident: list[float] = field(default_factory=list)  # MiB, every 1,000 tokens
    seconds: list[float] = field(default_factory=list)


def resident() -> float:
    """MiB of memory that this process has."""
    with open("/proc/self/status") as file:
        kib = next(line for line in file if line.startswith("VmRSS")).split()[1]
    return int(kib) / 1024


def own_stream(llm: LLM, scores: Scores, n: int, n_keep: int, seed: int, bar: Bar) -> Run:
    """Sample `n` tokens into one context, story after story."""
    run, scores.nll = Run(), []
    eos, bos = llm.tokenizer.eos_id, llm.tokenizer.bos_id
    assert eos is not None
    assert bos is not None
    prompt, start = llm.tokenize("Once upon a time"), time.perf_counter()
    with llm.context() as context:
        while len(scores.nll) < n:
            params = SamplingParams(
                n - len(scores.nll), 1.0, top_k=0, top_p=1.0, min_p=0.0, seed=seed,
                context_shift=True, n_keep=n_keep,
            )  # fmt: skip
            seed += 1000
            stream = llm.stream(prompt, params, context=context)
            run.ids += prompt
            for _ in stream:
                n_sampled = len(scores.nll) + 1  # the last one is added when it is computed
                if n_sampled // 1000 > len(run.resident):
                    run.resident.append(resident())
                    run.seconds.append(time.perf_counter() - start)
                    bar(n_sampled / n)
            done = stream.completion
            is_end = done.finish_reason == "stop"
            scores.add(llm.tokenizer.eog_ids if is_end else done.token_ids[-1:])
            run.ids += done.token_ids
            prompt = [eos, bos]
    run.resident.append(resident())
    run.seconds.append(time.perf_counter() - start)
    run.nll = scores.nll
    return run


def anew(llm: LLM, ids: list[int]) -> list[float]:
    """-log p of the tokens behind the first quarter of each window of a context."""
    found: list[float] = []
    for i in range(0, len(ids) - llm.n_ctx + 1, llm.n_ctx):
        window = ids[i : i + llm.n_ctx]
        targets = np.array(window[1:])
        scores = log_softmax(llm.logits(window)[:-1])[np.arange(len(targets)), targets]
        found += (-scores[llm.n_ctx // 4 :]).tolist()
    return found


def stories(llm: LLM, n: int) -> list[int]:
    """The first `n` tokens of held-out stories, one after another."""

    def each() -> Iterator[int]:
        for number in itertools.count():
            yield from llm.tokenize(corpus.story_number(corpus.HELD_OUT, 5000 + number))
            assert llm.tokenizer.eos_id is not None
            yield llm.tokenizer.eos_id

    return list(itertools.islice(each(), n))


def paragraphs(llm: LLM, n: int) -> list[int]:
    """The first `n` tokens of prose."""
    text = itertools.chain.from_iterable(
        llm.tokenize(paragraph + "\n\n", add_bos=False) for paragraph in itertools.cycle(prose())
    )
    return list(itertools.islice(text, n))


def held_out(llm: LLM, ids: list[int], n_keep: int) -> list[float]:
    """-log p of each token but the first, a block at a time through one context."""
    found = []
    with llm.context() as context:
        for i in range(0, len(ids) - SLOTS, SLOTS):
            if len(context) + SLOTS > llm.n_ctx:
                context.delete(n_keep, n_keep + SLOTS)
            piece, targets = ids[i : i + SLOTS], ids[i + 1 : i + SLOTS + 1]
            logits = context.logits(piece)
            context.append(piece)  # computed twice, which is quick
            found += (-log_softmax(logits)[np.arange(SLOTS), targets]).tolist()
    return found


def beside_anew(
    llm: LLM, ids: list[int], fed: list[float], n: int
) -> tuple[list[float], list[float]]:
    """-log p of the same of the last `n` tokens: computed anew, and as `held_out` has found."""
    w, found = llm.n_ctx, []
    for start in range(len(ids) - n, len(ids) - w + 1, w):
        found += fed[start + w // 4 : start + w - 1]  # the first one is of token start + w // 4 + 1
    return anew(llm, ids[-n:]), found


def ppl(nll: list[float]) -> float:
    """Perplexity of tokens."""
    return math.exp(sum(nll) / len(nll))


def error(nll: list[float]) -> float:
    """Standard error of a perplexity, in per cent, were the tokens independent."""
    return 100 * float(np.std(nll) / math.sqrt(len(nll)))


def main(argv: list[str] | None = None) -> None:
    """Run every cache with every `--keep` and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", default=DEMO_MODEL)
    parser.add_argument("-c", "--ctx-size", type=int, default=0, help="0: as trained")
    parser.add_argument("--prose", action="store_true", help="unseen text is prose, not stories")
    parser.add_argument("-n", "--n-tokens", type=int, default=20000)
    parser.add_argument("--keep", type=int, nargs="+", default=[4, 0])
    parser.add_argument(
        "--seeds", type=int, default=3, help="streams, whose tokens are put together; 0: held-out"
    )
    parser.add_argument("--cache", nargs="+", default=["raw", "roped"])
    parser.add_argument("-t", "--threads", type=int)
    args = parser.parse_args(argv)
    if args.n_tokens < _MIN_TOKENS:
        parser.error(f"-n/--n-tokens: the speed at the end takes {_MIN_TOKENS} tokens or more")
    quality = ["own: first | last", "anew: first | last"] if args.seeds else []
    quality.append("prose: anew | endless" if args.prose else "held-out: first | last")
    print(f"| cache | keep | {' | '.join(f'{q} | ratio' for q in quality)} |")
    print("| --- " * (2 + 3 * len(quality)) + "|")
    costs = []
    for n_keep in args.keep:
        for cache in args.cache:
            options = {"n_ctx": args.ctx_size, "n_threads": args.threads}
            with LLM(args.model, cache=cache, **options) as llm:
                runs, scores = [], Scores(llm.runner)
                for seed in range(args.seeds):
                    with Bar(f"{cache}, keep {n_keep}, seed {seed}") as bar:
                        runs.append(own_stream(llm, scores, args.n_tokens, n_keep, seed, bar))
                unseen = paragraphs if args.prose else stories
                w, text = llm.n_ctx, unseen(llm, args.n_tokens + 1)
                fed = held_out(llm, text, n_keep)
                ends = -(-_LAST // w) * w
                first, last = slice(w), slice(-_LAST, None)
                pairs = [(fed[:w], fed[-_LAST:])]
                if args.prose:
                    pairs = [beside_anew(llm, text[: len(fed) + 1], fed, ends)]
                if runs:
                    own = [[x for r in runs for x in r.nll[piece]] for piece in (first, last)]
                    again = [
                        [x for r in runs for x in anew(llm, r.ids[piece])]
                        for piece in (first, slice(-ends, None))
                    ]
                    pairs = [(own[0], own[1]), (again[0], again[1]), *pairs]
            cells = [
                f"{ppl(a):.4f} ± {error(a):.1f} % | {ppl(b):.4f} ± {error(b):.1f} % |"
                f" {ppl(b) / ppl(a):.3f}"
                for a, b in pairs
            ]
            print(f"| {cache} | {n_keep} | {' | '.join(cells)} |", flush=True)
            if not runs:
                continue
            r = runs[-1]
            k = min(2, len(r.resident) - 2)
            costs.append(
                f"| {cache} | {n_keep} | {r.resident[k]:.1f} | {r.resident[-1]:.1f} |"
                f" {1000 / (r.seconds[k] - r.seconds[k - 1]):.0f} |"
                f" {1000 / (r.seconds[-2] - r.seconds[-3]):.0f} |"
            )
    if not costs:
        return
    print(
        "\n| cache | keep | MiB after 3,000 | MiB at the end | tokens/s after 3,000 | at the end |"
    )
    print("| --- " * 6 + "|")
    print("\n".join(costs))


if __name__ == "__main__":
    main()
