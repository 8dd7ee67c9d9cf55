"""Runs within an environment that has only a wheel: is its engine right, and with which kernels?

`python probe.py expected.npz` prints JSON: the instruction set in use, all that there are, and the
relative error of the logits of `ids`. It imports nothing but the package and NumPy.
"""

import json
import sys

import numpy as np
from lariat import DEMO_MODEL, LLM, _kernels


def main() -> None:
    """Compare with `logits` of the file that is named."""
    expected = np.load(sys.argv[1])
    judge = expected["logits"]
    with LLM(DEMO_MODEL, n_ctx=64, type_k="f32", type_v="f32") as llm:
        logits = llm.logits(expected["ids"].tolist()).astype(np.float64)
    error = float(np.linalg.norm(logits - judge) / np.linalg.norm(judge))
    found = {"isa": _kernels.isa(), "isas": _kernels.supported_isas(), "error": error}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
