"""lm-evaluation-harness on a GGUF file: Lariat beside transformers.

    python -m bench.experiments.evaluation -m model.gguf [-m model-f16.gguf]

The task is the 200 questions of `bench.choices`. Both models answer it in the harness's own way,
each with its own tokens. transformers reads the file by itself, its weights as float32. Prints the
accuracy of both, and how far the log-likelihoods of all choices are apart.

Of several files, Lariat evaluates each and transformers the first. With quantized weights, Lariat's
kernels round activations to 8 bits; with those of `lariat quantize --allow-requantize model.gguf
model-f16.gguf F16`, which are the same but for their last bits, they do not.

It needs `pip install 'lariat[eval]' torch transformers gguf accelerate`.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lariat import LLM
from lariat.protocol.served import Served

from bench import choices


@dataclass(frozen=True)
class Answers:
    """A model's answers.

    logprobs   float64 [n_questions, n_choices], log-likelihood of each choice
    is_right   bool [n_questions], whether the likeliest choice is the right one
    by_length  the same, where a log-likelihood is divided by the choice's length
    """

    logprobs: np.ndarray
    is_right: np.ndarray
    by_length: np.ndarray


def apart(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """How far each of our log-likelihoods is from theirs, as a share of theirs."""
    return np.abs(ours - theirs) / np.abs(theirs)


def evaluate(model: Any, folder: Path, limit: int | None) -> Answers:
    """Answer the questions whose task is in a folder."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    found = simple_evaluate(
        model,
        tasks=[choices.TASK],
        limit=limit,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
    samples = sorted(found["samples"][choices.TASK], key=lambda one: one["doc_id"])
    return Answers(
        np.array([[float(logprob) for logprob, _ in one["filtered_resps"]] for one in samples]),
        np.array([bool(one["acc"]) for one in samples]),
        np.array([bool(one["acc_norm"]) for one in samples]),
    )


def ours(model: str, folder: Path, limit: int | None, n_threads: int | None) -> Answers:
    """The answers of Lariat."""
    from lariat.jobs.evaluation import EvaluatedModel

    with LLM(model, n_ctx=2048, n_threads=n_threads) as llm:
        return evaluate(EvaluatedModel(Served(llm, ["model"])), folder, limit)


def theirs(model: str, folder: Path, limit: int | None, n_threads: int | None) -> Answers:
    """The answers of transformers, whose weights are those of the file as float32."""
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(n_threads or torch.get_num_threads())
    place, name = os.path.split(os.path.abspath(model))
    weights = AutoModelForCausalLM.from_pretrained(place, gguf_file=name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=name)
    return evaluate(HFLM(weights.eval(), tokenizer=tokenizer, batch_size=16), folder, limit)


def report(ours: Answers, theirs: Answers) -> str:
    """What both have in common."""
    n_questions, n_choices = ours.logprobs.shape
    far = apart(ours.logprobs, theirs.logprobs)
    lines = [
        f"{n_questions} questions of {n_choices} choices; chance is {1 / n_choices:.0%}",
        "| | Lariat | transformers | questions that only one has right |",
        "| --- | --- | --- | --- |",
    ]
    for name, a, b in (
        ("acc", ours.is_right, theirs.is_right),
        ("acc_norm", ours.by_length, theirs.by_length),
    ):
        lines.append(f"| {name} | {a.mean():.3f} | {b.mean():.3f} | {int((a != b).sum())} |")
    lines.append(
        f"\nlog-likelihoods of all choices, ours from theirs: median {np.median(far):.2%}, "
        f"nine in ten within {np.quantile(far, 0.9):.2%}, all within {far.max():.2%}"
    )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate both and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", action="append", required=True, metavar="FILE")
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N questions")
    parser.add_argument("--write", type=Path, metavar="DIR", help="keep the task's files there")
    args = parser.parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.write or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        choices.write_task(folder.resolve(), choices.questions())
        rest = (folder, args.limit, args.threads)
        found = {model: ours(model, *rest) for model in args.model}
        others = theirs(args.model[0], *rest)
        for model, answers in found.items():
            print(f"\n{os.path.basename(model)}: {report(answers, others)}")


if __name__ == "__main__":
    main()
