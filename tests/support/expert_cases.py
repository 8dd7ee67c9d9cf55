"""A layer of experts at random, and what NumPy in float64 makes of it."""

from __future__ import annotations

import numpy as np
from lariat import _experts, _kernels
from lariat._experts import ExpertMatrix
from lariat._program import Program
from lariat._routing import Routing, combine, gather, route
from lariat.formats import block_formats
from lariat.formats.block_formats import GGMLType
from lariat.os_memory import allocate

from tests.reference import round_q8, silu, softmax
from tests.support.kernel_cases import QUANT_TYPES, raw_weights


def pack_experts(data: np.ndarray, type_name: str, n_cols: int, n_threads: int = 2) -> ExpertMatrix:
    """data uint8 [n_experts, n_rows, bytes of a row]"""
    out = allocate(len(data) * _experts.expert_bytes(type_name, data.shape[1], n_cols))
    return ExpertMatrix(list(data), type_name, n_cols, out, n_threads)


class ExpertCase:
    """`n` tokens of `dim` numbers that go to `n_used` of `n_experts`, with matrices of `types`:
    gate, up, down."""

    def __init__(
        self, rng, *, n, dim, n_ff, n_experts, n_used, types=("F32",) * 3, biases=False, clamp=()
    ):
        self.n_used, self.types, self.clamp = n_used, types, clamp
        self.h = rng.standard_normal((n, dim)).astype(np.float32)
        self.logits = (2 * rng.standard_normal((n, n_experts))).astype(np.float32)
        self.x = rng.standard_normal((n, dim)).astype(np.float32)
        shapes = ((n_ff, dim), (n_ff, dim), (dim, n_ff))
        self.data = [
            np.stack([raw_weights(type, *shape, rng) for _ in range(n_experts)])
            for type, shape in zip(types, shapes, strict=True)
        ]
        self.matrices = [
            pack_experts(data, type, shape[1])
            for data, type, shape in zip(self.data, types, shapes, strict=True)
        ]
        self.biases: list[np.ndarray | None] = [None] * 3
        if biases:
            self.biases = [
                rng.standard_normal((n_experts, shape[0])).astype(np.float32) for shape in shapes
            ]

    def program(self, gating="softmax", normalized=True, scale=1.0, routing=None, program=None):
        """The layer as the recorder writes it, perhaps behind others, and where its result will
        be."""
        n, dim = self.h.shape
        n_rows, out = n * self.n_used, self.x.copy()
        routing = routing or Routing(n, self.logits.shape[1], self.n_used)
        gate, up, down = self.matrices
        program = program or Program()
        for phase in route(self.logits, routing, gating, normalized, scale):
            program.then(phase)
        rows, q8 = self.h, _kernels.Activations(max(n_rows, 1), dim)
        wanted = q8 if gate.quantized or up.quantized else None
        if n > 1:
            rows = np.full((n_rows, dim), np.nan, np.float32)
            program.then(gather(routing, self.h, rows, wanted))
        elif wanted:
            program.then(_kernels.quantize(self.h, q8))
        hidden = np.full((n_rows, gate.n_rows), np.nan, np.float32)
        hidden_q8 = _kernels.Activations(n_rows, max(gate.n_rows, 32))
        alpha, limit = self.clamp or (0, 0)
        program.then(
            _experts.gate_up(
                routing, gate, up, rows, q8, hidden, hidden_q8 if down.quantized else None,
                *self.biases[:2], alpha, limit,
            )
        )  # fmt: skip
        y = np.full((n_rows, dim), np.nan, np.float32)
        program.then(_experts.down(routing, down, hidden, hidden_q8, y, self.biases[2]))
        program.then(combine(routing, y, out))
        return program, out

    def run(self, n_threads: int = 2, **how) -> np.ndarray:
        program, out = self.program(**how)
        program.run(n_threads)
        return out

    def expected(self, gating="softmax", normalized=True, scale=1.0) -> np.ndarray:
        out = self.x.astype(np.float64)
        for i, logits in enumerate(self.logits.astype(np.float64)):
            chosen = np.argsort(-logits, kind="stable")[: self.n_used]
            weights = {
                "softmax": softmax(logits)[chosen],
                "sigmoid": 1 / (1 + np.exp(-logits[chosen])),
                "softmax of the chosen": softmax(logits[chosen]),
            }[gating]
            if normalized:
                weights = weights / weights.sum()
            for expert, weight in zip(chosen, weights, strict=True):
                gate, up = self._times(0, expert, self.h[i]), self._times(1, expert, self.h[i])
                if self.clamp:
                    alpha, limit = self.clamp
                    gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
                    hidden = gate / (1 + np.exp(-alpha * gate)) * (up + 1)
                else:
                    hidden = silu(gate) * up
                out[i] += scale * weight * self._times(2, expert, hidden)
        return out

    def _times(self, which: int, expert: int, x: np.ndarray) -> np.ndarray:
        type_name, bias = self.types[which], self.biases[which]
        w = block_formats.dequantize(self.data[which][expert], GGMLType[type_name])
        if type_name in QUANT_TYPES:
            x = round_q8(x, short_scale=True)
        y = w.astype(np.float64) @ x
        return y if bias is None else y + bias[expert]
