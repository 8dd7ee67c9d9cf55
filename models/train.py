"""Trains the demo model, or its draft model (--shape draft).

It can be stopped at any time; the same command continues.

    python -m models.train --out build/train

The folder gets `tokenizer.model` (trained first if it is missing), `checkpoint.pt`, `log.jsonl` and
`loss.png`. A GPU is used if there is one.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from models import corpus, rows, vocabulary
from models.network import SHAPES, Network
from models.vocabulary import BOS_ID, Encoder

_WARMUP = 100  # steps
_DECAY = 0.4  # share of the steps in which the learning rate falls to 0
_QUANTIZED = 0.15  # share of the steps, at the end, that also train the weights as Q4_0
_EVAL_EVERY = 200  # steps
_N_PASSAGES, _N_STORIES = 48, 32  # of an evaluation


class Batches(Dataset):  # type: ignore[type-arg]
    """Batch number -> ids and worth; see `rows.batch`."""

    def __init__(self, model: bytes, seed: int, n_steps: int, first: int) -> None:
        self.model, self.seed, self.n_steps, self.first = model, seed, n_steps, first
        self.encoder: Encoder | None = None

    def __len__(self) -> int:
        return self.n_steps - self.first

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        if self.encoder is None:  # made in the process that uses it
            self.encoder = Encoder(self.model)
        return rows.batch(self.encoder, self.seed, self.first + i, self.n_steps)


class HeldOut:
    """Stories and passages that training never sees, and how well a network does on them."""

    def __init__(self, encoder: Encoder, n_ctx: int) -> None:
        stage = rows.Stage(1.0, 256, 0, 0.0, 0.0, 0.0, 1)
        stories = [
            rows.make_row(
                encoder, corpus.Dice(corpus.HELD_OUT, i), "stories", stage, f"eval/{i}",
                corpus.HELD_OUT,
            )[0]
            for i in range(_N_STORIES)
        ]  # fmt: skip
        self.stories = torch.tensor(stories)
        self.passages: dict[int, list[tuple[list[int], int]]] = {}
        for size in sorted({min(stage.length, n_ctx) for stage in rows.CURRICULUM}):
            self.passages[size] = []
            for i in range(_N_PASSAGES):
                passage = corpus.held_out_passage(i, size - 24, encoder.count)
                prompt = [BOS_ID, *encoder.part(passage.prompt, is_first=True)]
                answer = encoder.part(" " + passage.facts[0].statement)
                self.passages[size].append(((prompt + answer)[: n_ctx + 1], len(answer)))

    @torch.no_grad()
    def measure(self, logits_of: Callable[[torch.Tensor], torch.Tensor], size: int) -> dict:
        """Story loss in nats a token, and the share of passages answered greedily without error."""
        ids = self.stories
        logits = logits_of(ids[:, :-1]).float().cpu()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        n_right = 0
        for ids_list, n_answer in self.passages[size]:
            ids = torch.tensor([ids_list])
            best = logits_of(ids[:, :-1])[0, -n_answer:].argmax(-1).cpu()
            n_right += bool((best == ids[0, -n_answer:]).all())
        return {"story_loss": loss.item(), "recall": n_right / len(self.passages[size])}


def learning_rate(step: int, n_steps: int) -> float:
    """The factor for both optimizers at a step: it rises, stays, and falls to 0."""
    return min(1.0, (step + 1) / _WARMUP, (n_steps - step) / (_DECAY * n_steps))


def make_optimizers(
    network: Network, muon_lr: float, adam_lr: float
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embedding and norms.

    Muon: https://kellerjordan.github.io/posts/muon, scaled as in arXiv 2502.16982.
    """
    matrices, others = [], []
    for name, weight in network.named_parameters():
        is_matrix = name.startswith("blk.") and weight.ndim == 2
        (matrices if is_matrix else others).append(weight)
    return [
        torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def best_precision() -> torch.dtype:
    """bfloat16 if this processor multiplies it faster than float32."""
    if torch.cuda.is_available():
        return torch.bfloat16
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(1024, 256, dtype=dtype), torch.ones(768, 256, dtype=dtype)
        times = []
        for _ in range(20):
            start = time.perf_counter()
            torch.nn.functional.linear(a, b)
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)
    return min(seconds, key=seconds.__getitem__)


class Threads:
    """The number of threads that is fastest at the moment; on a shared machine it changes.

    Threads wait for the slowest of them, so one may be faster than two beside other work.
    """

    _TRY_EVERY, _N_TRIALS = 40, 2  # steps

    def __init__(self, fixed: int) -> None:
        self.choices = [fixed] if fixed else sorted({1, len(os.sched_getaffinity(0))})
        self.now = self.choices[-1]
        self.average: dict[int, float] = {}  # threads -> seconds a token, recently
        self.n_ticks = 0
        torch.set_num_threads(self.now)

    def tick(self, seconds: float, n_tokens: int) -> None:
        """Takes the time of a step and sets the threads for the next one."""
        each = seconds / n_tokens
        self.average[self.now] = 0.7 * self.average.get(self.now, each) + 0.3 * each
        self.n_ticks += 1
        trial = self.n_ticks % self._TRY_EVERY // self._N_TRIALS
        if trial < len(self.choices):
            if self.n_ticks % self._N_TRIALS == 0:
                self.average.pop(self.choices[trial], None)  # the measurement is too old
            self.now = self.choices[trial]
        else:
            self.now = min(self.average, key=self.average.__getitem__)
        torch.set_num_threads(self.now)


def train(args: argparse.Namespace) -> None:
    """The loop: batches in, checkpoints out."""
    model_path = args.out / "tokenizer.model"
    if not model_path.exists():
        args.out.mkdir(parents=True, exist_ok=True)
        model_path.write_bytes(vocabulary.train())
    model = model_path.read_bytes()
    encoder = Encoder(model)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    threads = Threads(args.threads)
    precision = best_precision() if args.precision == "auto" else getattr(torch, args.precision)
    torch.manual_seed(args.seed)
    shape = replace(SHAPES[args.shape], n_vocab=encoder.n_vocab)
    network = Network(shape).to(device)
    optimizers = make_optimizers(network, args.muon_lr, args.adam_lr)
    first, history = 0, []
    checkpoint_path = args.out / "checkpoint.pt"
    if checkpoint_path.exists():
        state = torch.load(checkpoint_path, map_location=device, weights_only=True)
        extends = args.extend and state["step"] < args.steps
        if state["shape"] != asdict(shape):
            raise SystemExit(f"{checkpoint_path} has another shape; name another folder with --out")
        if state["seed"] != args.seed or (state["n_steps"] != args.steps and not extends):
            raise SystemExit(
                f"{checkpoint_path} is of {state['n_steps']} steps and seed {state['seed']}, not of"
                f" {args.steps} and {args.seed}; name another folder with --out"
            )
        network.load_state_dict(state["network"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first, history = state["step"], state["history"]

    held_out = HeldOut(encoder, network.shape.n_ctx)
    loader = DataLoader(
        Batches(model, args.seed, args.steps, first),
        batch_size=None,
        num_workers=args.workers,
        prefetch_factor=8 if args.workers else None,
        worker_init_fn=_leave_signals_alone,
    )
    loss_of: Callable[..., torch.Tensor] = network.loss
    if not args.no_compile:
        from torch import _dynamo, _inductor
        from torch._inductor import config  # noqa: F401

        _inductor.config.cpp.dynamic_threads = True  # see `Threads`
        _dynamo.config.recompile_limit = 32  # one graph for each length, with and without Q4_0
        loss_of = torch.compile(network.loss, dynamic=False)

    stop: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _: stop.append(n))

    def save(step: int) -> None:
        state = {
            "network": network.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "shape": asdict(network.shape),
            "step": step,
            "n_steps": args.steps,
            "seed": args.seed,
            "history": history,
        }
        torch.save(state, checkpoint_path.with_suffix(".new"))
        os.replace(checkpoint_path.with_suffix(".new"), checkpoint_path)
        (args.out / "log.jsonl").write_text("".join(json.dumps(h) + "\n" for h in history))
        if history:
            draw(history, args.out / "loss.png")

    def logits_of(ids: torch.Tensor) -> torch.Tensor:
        return network(ids.to(device))

    print(
        f"{network.n_parameters():,} parameters, {rows.n_tokens(args.steps):,} tokens, "
        f"{device.type} {str(precision).removeprefix('torch.')}, from step {first}",
        flush=True,
    )
    saved_at = time.monotonic()
    step, n_done, spent = first, 0, 0.0
    batches: Iterator[Any] = iter(loader)
    with tqdm(total=args.steps, initial=first, unit="step", mininterval=10) as bar:
        for step in range(first, args.steps):
            ids, worth = (torch.as_tensor(part).to(device) for part in next(batches))
            start = time.perf_counter()
            factor = learning_rate(step, args.steps)
            for optimizer, lr in zip(optimizers, (args.muon_lr, args.adam_lr), strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = factor * lr
            # Every second step near the end: the exact weights must stay good too.
            quantized = step >= (1 - _QUANTIZED) * args.steps and step % 2 == 1
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                loss = loss_of(ids, worth, quantized)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            value = loss.item()
            seconds = time.perf_counter() - start
            n_tokens = ids.shape[0] * (ids.shape[1] - 1)
            threads.tick(seconds, n_tokens)
            spent += seconds
            n_done += n_tokens
            history.append({"step": step, "loss": round(value, 4), "length": ids.shape[1] - 1,
                            "seconds": round(seconds, 3), "threads": threads.now})  # fmt: skip
            bar.update()
            bar.set_postfix_str(f"loss {value:.3f} {n_done / spent:.0f} token/s", refresh=False)
            if (step + 1) % _EVAL_EVERY == 0 or step + 1 == args.steps:
                stage = rows.stage_of(step, args.steps)
                with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                    history[-1] |= held_out.measure(logits_of, stage.length)
                bar.write(json.dumps(history[-1]))
            if stop or time.monotonic() - saved_at > 60 * args.minutes:
                save(step + 1)
                saved_at = time.monotonic()
            if stop:
                print(f"stopped after step {step + 1}; the same command goes on", flush=True)
                os._exit(0)  # the workers would wait for their queue
    save(args.steps)


def _leave_signals_alone(_: int) -> None:
    """A worker ends with its parent, which finishes its step first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def draw(history: list[dict[str, Any]], path: Path) -> None:
    """The loss curve as a picture: training loss smoothed, held-out story loss, recall."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps = np.array([h["step"] for h in history])
    losses = np.array([h["loss"] for h in history])
    figure, left = pyplot.subplots(figsize=(8, 4.5))
    width = min(50, len(losses))
    smooth = np.convolve(losses, np.ones(width) / width, "valid")
    left.plot(steps[width - 1 :], smooth, color="C0", label=f"training, mean of {width} steps")
    measured = [h for h in history if "recall" in h]
    right = left.twinx()
    at = [h["step"] for h in measured]
    left.plot(at, [h["story_loss"] for h in measured], "o-", color="C1", label="held-out stories")
    right.plot(at, [100 * h["recall"] for h in measured], "s--", color="C2", label="recall")
    left.set_xlabel("step")
    left.set_ylabel("loss (nats a token)")
    right.set_ylabel("held-out passages answered (%)")
    left.set_ylim(0, max(2.0, float(np.percentile(losses, 98))))
    right.set_ylim(0, 102)
    handles = left.get_legend_handles_labels()[0] + right.get_legend_handles_labels()[0]
    left.legend(handles=handles, loc="center right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> None:
    """Train, or continue training."""
    parser = argparse.ArgumentParser(
        description=main.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument(
        "--shape", default="demo", choices=SHAPES, help="the demo model, or its draft model"
    )
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--extend", action="store_true", help="--steps may be others than so far")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--muon-lr", type=float, default=5e-3)
    parser.add_argument("--adam-lr", type=float, default=3e-3)
    parser.add_argument("--threads", type=int, default=0, help="0: whatever is fastest just now")
    parser.add_argument("--workers", type=int, default=1, help="processes that make batches")
    parser.add_argument("--precision", default="auto", choices=["auto", "bfloat16", "float32"])
    parser.add_argument("--minutes", type=float, default=5.0, help="between two checkpoints")
    parser.add_argument("--no-compile", action="store_true")
    train(parser.parse_args(argv))


if __name__ == "__main__":
    main()
