"""The verbs that an architecture writes its forward pass with.

A verb computes nothing. It adds operations to the program of one size of batch, which all threads
run together for every batch of that size, and returns the array that will hold the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np
from lariat._experts import down as times_down
from lariat._experts import gate_up
from lariat._kernels import Activations, add_bias, matmul, quantize, rms_norm, select_rows, silu_mul
from lariat._program import Operation, Program
from lariat._routing import Routing, add_gated, combine, gather, route
from lariat._rows import add_norm, add_scaled, gelu_mul, scale, soft_cap, temper
from lariat.architectures.weights import ExpertLinear, Linear
from lariat.cache.kv_cache import KVCache
from lariat.config import ModelConfig

_Layer = TypeVar("_Layer")
Readers = tuple[Linear | ExpertLinear, ...]  # matrices that will multiply a result


class Buffers:
    """The arrays of a forward pass: made once, with a row for each token of the largest batch.

    q8  the input of the next quantized matrices, rounded to 8 bits
    positions, slots  int32 [n_tokens]
    logit_rows        int32 [n_tokens], tokens whose logits are wanted
    """

    def __init__(self, n_tokens: int, n_cols: int) -> None:
        """`n_cols` is the width of the widest input of a matrix."""
        self.q8 = Activations(n_tokens, n_cols)
        self.positions, self.slots, self.logit_rows = np.zeros((3, n_tokens), np.int32)
        self._n_tokens = n_tokens
        self._arrays: dict[tuple[str, int], np.ndarray] = {}
        self._rows_q8: dict[tuple[str, int], Activations] = {}
        self._routings: dict[tuple[int, int], Routing] = {}

    def rows(self, name: str, n: int, width: int) -> np.ndarray:
        """The first `n` rows of the buffer `name`, float32 [n, width]."""
        if (name, width) not in self._arrays:
            self._arrays[name, width] = np.zeros((self._n_tokens, width), np.float32)
        return self._arrays[name, width][:n]

    def routing(self, n_experts: int, n_used: int) -> Routing:
        """Where the tokens of the largest batch go; one for all layers."""
        if (n_experts, n_used) not in self._routings:
            self._routings[n_experts, n_used] = Routing(self._n_tokens, n_experts, n_used)
        return self._routings[n_experts, n_used]

    def expert_rows(
        self, name: str, n: int, n_used: int, width: int, readers: Readers
    ) -> tuple[np.ndarray, Activations | None]:
        """Rows of n tokens for `n_used` experts each, float32 [n * n_used, width], and where to
        quantize them, if one of `readers` wants that."""
        x = self.rows(name, n, n_used * width).reshape(n * n_used, width)
        if not any(w.weight.quantized for w in readers):
            return x, None
        if (name, width) not in self._rows_q8:
            self._rows_q8[name, width] = Activations(self._n_tokens * n_used, width)
        return x, self._rows_q8[name, width]


class Product(NamedTuple):
    """A matrix, or those of experts, and what it multiplies when a program runs."""

    phase: int  # of the program
    matrix: Linear | ExpertLinear
    x: np.ndarray | None  # float32 [n, n_in]; None: only rounded to 8 bits
    routing: Routing | None = None  # of experts
    is_grouped: bool = False  # x has a row for each expert of each token, ordered by expert


class Recorder:
    """Records the forward pass of batches of `n` tokens, of which some want logits.

    x           float32 [n, dim]: the embedding of each token when the program starts
    config      of the model
    layer_ends  phases of the program up to the end of each layer
    rows        the result: logits [n_rows, n_vocab], or the normed rows [n_rows, dim] before them
    products    what is multiplied, in the order of the program

    `readers` are the matrices that will multiply a result. If one of them is quantized, the result
    is rounded to 8 bits as well, for `linear`, `add_linear` or `logits` to read.
    """

    def __init__(
        self,
        config: ModelConfig,
        cache: KVCache,
        buffers: Buffers,
        program: Program,
        n: int,
        n_rows: int,
        logits: np.ndarray | None,
    ) -> None:
        """`buffers.logit_rows` names the `n_rows` tokens that are wanted. `logits` float32
        [n_rows, n_vocab] is for their logits; None: what these are made of is wanted instead."""
        self.x = buffers.rows("x", n, config.dim)
        self.layer_ends: list[int] = []
        self.products: list[Product] = []
        self.config = config
        self._cache, self._buffers = cache, buffers
        self._program, self._n, self._n_rows, self._logits = program, n, n_rows, logits
        self.rows = np.zeros((0, config.dim), np.float32) if logits is None else logits
        self._ended = False

    def layers(self, layers: Iterable[_Layer]) -> Iterator[tuple[int, _Layer]]:
        """The layers and their numbers, to be recorded one after the other."""
        for i, layer in enumerate(layers):
            yield i, layer
            self.layer_ends.append(self._program.n_phases)

    def norm(self, x: np.ndarray, weight: np.ndarray, *, readers: Readers) -> np.ndarray:
        """RMSNorm (arXiv 1910.07467) of each row of x [n, width], in another buffer."""
        h = self._buffers.rows("h", *x.shape)
        self._then(rms_norm(x, weight, self.config.norm_eps, h, self._q8_for(readers)))
        return h

    def quantize(self, x: np.ndarray, *, readers: tuple[Linear, ...]) -> np.ndarray:
        """x itself, for matrices that read it without a norm."""
        if self._q8_for(readers):
            self._then(quantize(x, self._buffers.q8))
        return x

    def scale(self, x: np.ndarray, factor: float) -> None:
        """x *= factor"""
        if factor != 1:
            self._then(scale(x, factor))

    def norm_heads(self, *heads: tuple[np.ndarray, np.ndarray]) -> None:
        """RMSNorm of each head, in place, of each (x, weight): [n, n_heads * head_dim] and
        [head_dim]; or of all heads together, with a weight of their length."""
        eps, each = self.config.norm_eps, [(x.reshape(-1, len(w)), w) for x, w in heads]
        self._then(*[rms_norm(x, weight, eps, x) for x, weight in each])

    def linear(self, x: np.ndarray, **matrices: Linear) -> list[np.ndarray]:
        """Products of x [n, n_in] with each matrix: [n, n_out], in buffers of the given names."""
        products = [
            (w, x, self._buffers.rows(name, len(x), w.weight.n_rows))
            for name, w in matrices.items()
        ]
        self._multiply(*products)
        return [out for _, _, out in products]

    def add_linear(self, x: np.ndarray, w: Linear, y: np.ndarray) -> None:
        """x += w(y), for x [n, n_out] and y [n, n_in]."""
        self._multiply((w, y, x), add=True)

    def add_scaled(self, x: np.ndarray, w: Linear, y: np.ndarray, factor: float) -> None:
        """x += factor * w(y), for x [n, n_out] and y [n, n_in]."""
        if factor == 1:
            self.add_linear(x, w, y)
        else:
            (product,) = self.linear(y, product=w)
            self._then(add_scaled(x, product, factor))

    def add_normed(self, x: np.ndarray, w: Linear, y: np.ndarray, norm: np.ndarray) -> None:
        """x += RMSNorm(w(y)), with the weight `norm` [n_out], for x [n, n_out] and y [n, n_in]."""
        (product,) = self.linear(y, product=w)
        self._then(add_norm(x, product, norm, self.config.norm_eps))

    def grow_queries(self, q: np.ndarray) -> None:
        """q *= 1 + growth * log(1 + floor(position / trained length)), for q [n, width]."""
        c, positions = self.config, self._buffers.positions[: self._n]
        if c.query_growth:
            self._then(temper(q, positions, c.query_growth, c.rope.yarn_orig_ctx or 1))

    def rotate_and_store(self, layer: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> None:
        """Rotate q by position, as the layer's RoPE table says, and put keys and values into the
        cache, which may rotate k. All are [n, n_heads * head_dim], k and v with n_kv_heads."""
        c, n = self.config, self._n
        positions, slots = self._buffers.positions[:n], self._buffers.slots[:n]
        q_heads = q.reshape(n, c.n_heads, c.head_dim_k)
        k_heads = k.reshape(n, c.n_kv_heads, c.head_dim_k)
        v_heads = v.reshape(n, c.n_kv_heads, c.head_dim_v)
        self._then(
            self._cache.rotate_queries(layer, q_heads, positions),
            self._cache.store(layer, k_heads, v_heads, positions, slots),
        )
        for operation in self._cache.seal(layer):
            self._then(operation)

    def attend(
        self,
        layer: int,
        q: np.ndarray,
        x: np.ndarray,
        *,
        readers: tuple[Linear, ...],
        sinks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """softmax(q k / sqrt(head_dim_k)) v over the cache, within the layer's window.

        The configuration may say another scale, and a soft cap of scores. `sinks` float32 [n_heads]
        are further scores, one a head, that have no value.

        Returns x and the attention [n, n_heads * head_dim_v]. Nothing after the last attention
        mixes tokens, so from there on only tokens whose logits are wanted are computed: the last
        layer gets their rows alone. If there are none, the program ends here.
        """
        c, b, n, n_wanted = self.config, self._buffers, self._n, self._n_rows
        is_last = layer == c.n_layers - 1
        self._ended = is_last and n_wanted == 0
        out = b.rows("attention", n, c.n_heads * c.head_dim_v)
        q_heads = q.reshape(n, c.n_heads, c.head_dim_k)
        for operation in self._cache.attend(layer, q_heads, out.reshape(n, c.n_heads, -1), sinks):
            self._then(operation)
        if is_last and 0 < n_wanted < n:
            wanted = b.logit_rows[:n_wanted]
            self._then(select_rows(x, wanted), select_rows(out, wanted))
            x, out = x[:n_wanted], out[:n_wanted]
        if self._q8_for(readers):
            self._then(quantize(out, b.q8))
        return x, out

    def silu_mul(
        self, gate: np.ndarray, up: np.ndarray, *, readers: tuple[Linear, ...]
    ) -> np.ndarray:
        """silu(gate) * up, in the place of gate: SwiGLU (arXiv 2002.05202)."""
        self._then(silu_mul(gate, up, self._q8_for(readers)))
        return gate

    def route(self, h: np.ndarray, router: Linear) -> Routing:
        """The experts of each token of h [n, dim], by the logits router(h), and their weights, as
        `ModelConfig.experts` says."""
        c = self.config.experts
        assert c is not None
        (logits,) = self.linear(h, router=router)
        routing = self._buffers.routing(c.n_experts, c.n_used)
        for operation in route(logits, routing, c.gating, c.normalized, c.scale):
            self._then(operation)
        return routing

    def add_experts(
        self,
        x: np.ndarray,
        h: np.ndarray,
        routing: Routing,
        *,
        gate: ExpertLinear,
        up: ExpertLinear,
        down: ExpertLinear,
        alpha: float = 0.0,
        limit: float = 0.0,
    ) -> None:
        """x += the weighted sum of down_e(silu(gate_e(h)) * up_e(h)) over each token's experts e.

        x and h are [n, dim]; `norm` has quantized h if gate and up are among its readers. With a
        limit, SwiGLU is clamped, as `gate_up` says.
        """
        b, n, n_used = self._buffers, len(h), routing.n_used
        rows, q8 = b.expert_rows("expert_in", n, n_used, h.shape[1], (gate, up))
        rows_q8 = q8 or b.q8
        if n > 1:
            is_read = not (gate.weight.quantized and up.weight.quantized)
            self._then(gather(routing, h, rows if is_read else None, q8))
        else:  # the experts of a single token read the same column
            rows, rows_q8 = h, b.q8
        width = gate.weight.n_rows
        hidden, hidden_q8 = b.expert_rows("expert_hidden", n, n_used, width, (down,))
        out, _ = b.expert_rows("expert_out", n, n_used, h.shape[1], ())
        weights, biases = (gate.weight, up.weight), (gate.bias, up.bias)
        phase = self._program.n_phases
        grouped = None if hidden_q8 else hidden
        self._note(*[Product(phase, w, h, routing) for w in (gate, up)])
        self._note(Product(phase + 1, down, grouped, routing, is_grouped=True))
        self._then(
            gate_up(routing, *weights, rows, rows_q8, hidden, hidden_q8, *biases, alpha, limit)
        )
        self._then(times_down(routing, down.weight, hidden, hidden_q8 or b.q8, out, down.bias))
        self._then(combine(routing, out, x))

    def add_gated(self, x: np.ndarray, h: np.ndarray, gate: np.ndarray, y: np.ndarray) -> None:
        """x += y times the logistic function of gate h, for x and y [n, dim], h [n, n_in] and gate
        [n_in]."""
        self._then(add_gated(h, gate, y, x))

    def gelu_mul(
        self, gate: np.ndarray, up: np.ndarray, *, readers: tuple[Linear, ...]
    ) -> np.ndarray:
        """GELU(gate) * up, in the place of gate: GEGLU (arXiv 2002.05202), GELU by tanh."""
        self._then(gelu_mul(gate, up, self._q8_for(readers)))
        return gate

    def logits(self, w: Linear, x: np.ndarray) -> None:
        """The logits are w(x), for x [n_rows, dim], scaled and capped as the configuration says."""
        if self._ended:
            return
        if self._logits is None:
            self.rows = x
            return
        self._multiply((w, x, self._logits))
        self.scale(self._logits, self.config.logit_scale)
        if self.config.logit_soft_cap:
            self._then(soft_cap(self._logits, self.config.logit_soft_cap))

    def _multiply(
        self, *products: tuple[Linear, np.ndarray, np.ndarray], add: bool = False
    ) -> None:
        """out = w(x), or out += w(x), for each (w, x, out)."""
        q8 = self._buffers.q8
        self._note(*[Product(self._program.n_phases, w, x) for w, x, _ in products])
        self._then(*[matmul(w.weight, x, q8, out, add) for w, x, out in products])
        biases = [add_bias(w.bias, out) for w, _, out in products if w.bias is not None]
        if biases:
            self._then(*biases)

    def _q8_for(self, readers: Readers) -> Activations | None:
        """The buffer to quantize into, if one of these matrices reads it."""
        return self._buffers.q8 if any(w.weight.quantized for w in readers) else None

    def _note(self, *products: Product) -> None:
        if not self._ended:
            self.products += products

    def _then(self, *operations: Operation) -> None:
        if not self._ended:
            self._program.then(*operations)
