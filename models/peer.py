"""Token ids and negative log-likelihood of each text, computed by llama.cpp.

    python models/peer.py model.gguf < texts.json > answers.json

It imports nothing of this repository; `evaluate.py --peer` runs it with a Python that has
llama-cpp-python.
"""

from __future__ import annotations

import json
import sys

import numpy as np
from llama_cpp import Llama


def main() -> None:
    """Read a JSON list of texts, write a list of {"ids": [...], "nll": ...}."""
    texts = json.load(sys.stdin)
    llm = Llama(sys.argv[1], n_ctx=0, logits_all=True, n_threads=2, verbose=False)
    answers = []
    for text in texts:
        ids = llm.tokenize(text.encode(), add_bos=True, special=False)
        llm.reset()
        llm.eval(ids)
        logits = np.asarray(llm.scores[: len(ids) - 1], np.float64)
        top = logits.max(axis=1, keepdims=True)
        log_sum = top[:, 0] + np.log(np.exp(logits - top).sum(axis=1))
        nll = float((log_sum - logits[np.arange(len(ids) - 1), ids[1:]]).sum())
        answers.append({"ids": [int(i) for i in ids], "nll": nll})
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
