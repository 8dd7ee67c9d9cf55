"""Negative log-likelihood of token ids in llama.cpp, for each of several settings of RoPE.

    python bench/workers/llama_rope.py < question.json > answers.json

Stands alone, for a Python that has llama-cpp-python; `bench.experiments.stretch --peer` calls it.
"""

from __future__ import annotations

import json
import sys

import numpy as np
from llama_cpp import Llama


def main() -> None:
    """Read {"model", "ids", "settings": [arguments of Llama]}, write a list of numbers."""
    question = json.load(sys.stdin)
    ids = question["ids"]
    answers = []
    for settings in question["settings"]:
        llm = Llama(
            question["model"], n_ctx=len(ids), logits_all=True, n_threads=1, n_threads_batch=1,
            verbose=False, **settings,
        )  # fmt: skip
        llm.eval(ids)
        logits = np.asarray(llm.scores[: len(ids) - 1], np.float64)
        top = logits.max(axis=1)
        log_sum = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
        answers.append(float((log_sum - logits[np.arange(len(ids) - 1), ids[1:]]).sum()))
        llm.close()
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
