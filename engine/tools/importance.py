"""Makes importance matrices: how large the inputs of each column of a model's matrices are.

A text is cut into windows as for perplexity, and computed window by window. The squares of the
inputs of each matrix are summed up over all tokens, as llama-imatrix does it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from lariat.architectures.recorder import Product
from lariat.errors import ModelError
from lariat.llm import LLM
from lariat.runtime.batch import split

_OUTPUT = "output.weight"
_LOGITS = 64 << 20  # bytes of logits at once

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


class Importance(NamedTuple):
    """Sums of squares by the name of the tensor, as `lariat.formats.imatrix` writes them."""

    sums: Mapping[str, F32]  # [n_matrices, n_cols]: 1, or the number of experts
    counts: Mapping[str, F32]  # [n_matrices], the tokens that were summed up


def collect(
    llm: LLM,
    windows: npt.NDArray[np.int32],
    with_output: bool = False,
    progress: Callable[[float], None] | None = None,
) -> Importance:
    """Run the windows [n_windows, n_ctx], each from an empty context.

    The output matrix is left out unless `with_output`, as in llama-imatrix. `progress` is called
    with the share that is done, 0 to 1. Raises ModelError if experts are quantized, because the
    inputs of their last matrices are rounded then.
    """
    sums: dict[str, F64] = {}
    counts: dict[str, F64] = {}

    def add(product: Product) -> None:
        name = product.matrix.name
        if name == _OUTPUT and not with_output:
            return
        if product.x is None:
            raise ModelError(
                f"{llm.gguf.path}: experts are quantized; an importance matrix of experts is made "
                "from a file of F32, F16 or BF16 weights"
            )
        squares, n = _squares(product)
        sums[name] = sums[name] + squares if name in sums else squares
        counts[name] = counts[name] + n if name in counts else n

    runner = llm.runner
    # All tokens want logits: without them, the last layer would not be computed.
    step = max(1, min(runner.n_ubatch, _LOGITS // (4 * llm.n_vocab)))
    runner.model.observer = add
    try:
        for i, ids in enumerate(windows.tolist()):
            table = runner.new_table()
            try:
                for group in split([runner.part(table, ids, "all")], step):
                    runner.forward(group)
            finally:
                table.clear()
            if progress:
                progress((i + 1) / len(windows))
    finally:
        runner.model.observer = None
    return Importance(
        {name: values.astype(np.float32) for name, values in sums.items()},
        {name: n.astype(np.float32) for name, n in counts.items()},
    )


def _squares(product: Product) -> tuple[F64, F64]:
    """Sums of the squares of each column [n_matrices, n_cols], and how many rows each has."""
    x, routing = product.x, product.routing
    assert x is not None
    if routing is None:
        return np.square(x, dtype=np.float64).sum(axis=0)[None], np.array([len(x)], np.float64)
    n_tokens = len(x) // routing.n_used if product.is_grouped else len(x)
    chosen = routing.chosen(n_tokens)[0].reshape(-1)
    order = np.argsort(chosen, kind="stable")
    rows = x if product.is_grouped else x[order // routing.n_used]
    ends = np.searchsorted(chosen[order], np.arange(routing.n_experts + 1))
    sums = np.zeros((routing.n_experts, x.shape[1]))
    for expert in range(routing.n_experts):
        some = rows[ends[expert] : ends[expert + 1]]
        sums[expert] = np.square(some, dtype=np.float64).sum(axis=0)
    return sums, np.diff(ends).astype(np.float64)
