"""The judge: LLaMA and its kin in NumPy and float64, written to be read, not to be fast.

It shares no code with the engine: files are read and dequantized by the `gguf` package. Papers:
LLaMA (arXiv 2302.13971), Qwen 2 (2407.10671) and 3 (2505.09388), Gemma 2 (2408.00118) and 3
(2503.19786), Phi 3 (2404.14219), gpt-oss (2508.10925), OLMo 2 (2501.00656), Granite 3, SmolLM3 and
Mistral 3 (their cards), Mixtral (2401.04088), RoPE (2104.09864), grouped-query attention
(2305.13245), sliding windows (2004.05150), YaRN (2309.00071, with the ramp over pairs that its code
and llama.cpp have), LongRoPE (2402.13753), Self-Extend (2401.01325), GELU by tanh (1606.08415).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize

_UNQUANTIZED = {
    GGMLQuantizationType.F32,
    GGMLQuantizationType.F16,
    GGMLQuantizationType.BF16,
}


# Pairs of RoPE are neighbours in these; in all others they are half of the rotated dims apart.
_NEIGHBOURS = ("llama", "granite", "smollm3", "mistral3")
_GEMMA = ("gemma2", "gemma3")

Past = tuple[np.ndarray, np.ndarray]
"""Keys before RoPE, float64 [n, n_kv_heads, head_dim], and values [n, n_kv_heads, head_dim_v]."""


class Reference:
    """A model in float64.

    `activations` rounds the input of every matmul whose weight is quantized to 8 bits, as the
    kernels do it; the remaining difference to the engine is then that of float32 sums, and a tight
    bound can be held. "q8": with a float32 scale. "q8_f16": with a scale that has the 11
    significant bits of f16, which makes the numbers those of llama.cpp. None: no rounding.

    `rope` replaces settings of the file: freq_base, scaling, scale, yarn_orig_ctx,
    yarn_ext_factor, yarn_attn_factor, yarn_beta_fast, yarn_beta_slow, grp_attn_n, grp_attn_w, and
    n_tokens, the length of the context that dynamic scaling is for.

    `layers` has an entry for each layer: settings that replace those of `rope` there, or None for a
    layer without RoPE. `use_factors` among them tells whether the file's factors divide the
    frequencies. By default layers are what the file and its architecture say. `windows` are their
    attention windows, None for a layer that sees all.

    `n_ctx` is the room for a context, which chooses between short and long factors of LongRoPE.
    With `f16_gelu` GELU is computed as llama.cpp does it, from a table of f16 to f16.
    """

    def __init__(
        self,
        path: str | Path,
        activations: str | None = None,
        rope: Mapping[str, Any] | None = None,
        layers: Sequence[Mapping[str, Any] | None] | None = None,
        windows: Sequence[int | None] | None = None,
        n_ctx: int = 0,
        f16_gelu: bool = False,
    ) -> None:
        if activations not in (None, "q8", "q8_f16"):
            raise ValueError(f"activations is {activations!r}, expected None, 'q8' or 'q8_f16'")
        self._short_scale = activations == "q8_f16"
        self._f16_gelu = f16_gelu
        reader = GGUFReader(path)
        self._fields = reader.fields
        self.arch: str = reader.fields["general.architecture"].contents()
        self.weights: dict[str, np.ndarray] = {}  # float64, matrices are [n_rows, n_cols]
        self.rounded: set[str] = set()  # matrices that want a rounded input
        for tensor in reader.tensors:
            values = dequantize(tensor.data, tensor.tensor_type)
            name = tensor.name
            if self.arch == "gpt-oss":  # it stands before the feed-forward, whatever its name
                name = name.replace("post_attention_norm", "ffn_norm")
            self.weights[name] = values.astype(np.float64)
            if activations is not None and tensor.tensor_type not in _UNQUANTIZED:
                self.rounded.add(name)

        self.dim: int = self._get("embedding_length")
        self.n_layers: int = self._get("block_count")
        self.n_heads: int = self._get("attention.head_count")
        self.n_kv_heads: int = self._get("attention.head_count_kv", self.n_heads)
        self.head_dim: int = self._get("attention.key_length", self.dim // self.n_heads)
        self.head_dim_v: int = self._get("attention.value_length", self.dim // self.n_heads)
        self.norm_eps: float = self._get("attention.layer_norm_rms_epsilon")
        self.rope_dim: int = self._get("rope.dimension_count", self.head_dim)
        self.attn_factor: float = self._get("rope.scaling.attn_factor", 1.0)
        trained = self._get("context_length")
        of_file = {
            "freq_base": self._get("rope.freq_base", 10000.0),
            "scaling": self._get("rope.scaling.type", "linear"),
            "scale": self._get("rope.scaling.factor", 1.0),
            "yarn_orig_ctx": self._get("rope.scaling.original_context_length", trained),
        }
        if self.arch == "mistral3":
            of_file["yarn_beta_fast"] = self._get("rope.scaling.yarn_beta_fast", 32.0)
            of_file["yarn_beta_slow"] = self._get("rope.scaling.yarn_beta_slow", 1.0)
        self.rope: dict[str, Any] = of_file | dict(rope or {})
        self.windows = self._windows() if windows is None else list(windows)
        self.layers = [
            None if own is None else self.rope | dict(own)
            for own in (self._layers() if layers is None else layers)
        ]
        is_long = (n_ctx or trained) > self.rope["yarn_orig_ctx"]
        for name in ("rope_freqs", f"rope_factors_{'long' if is_long else 'short'}"):
            self.factors = self.weights.get(f"{name}.weight")
            if self.factors is not None:
                break
        self.score_scale: float = self._get("attention.scale", 0.0) or self.head_dim**-0.5
        if (self.arch, self.n_layers) in (("gemma2", 46), ("gemma3", 62)):
            self.score_scale = (self.dim // self.n_heads) ** -0.5

    def _windows(self) -> list[int | None]:
        """Of each layer: every n-th layer of a family has none."""
        length = self._get("attention.sliding_window", 4096 if self.arch == "gemma2" else 0)
        every = {"gemma2": 2, "gemma3": 6, "gpt-oss": 2, "olmo2": 4, "phi3": 0}.get(self.arch)
        if not length or every is None:
            return [None] * self.n_layers
        every = self._get("attention.sliding_window_pattern", every)
        if isinstance(every, list):
            return [length if local else None for local in every]
        return [
            None if every and (layer + 1) % every == 0 else length for layer in range(self.n_layers)
        ]

    def _layers(self) -> list[Mapping[str, Any] | None]:
        """How the RoPE of each layer differs from that of the file."""
        layers: list[Mapping[str, Any] | None] = [{} for _ in range(self.n_layers)]
        if self.arch == "smollm3":
            layers[3::4] = [None for _ in layers[3::4]]
        if self.arch == "granite" and not self._get("rope.scaling.finetuned", True):
            return [None] * self.n_layers
        if self.arch in ("gemma3", "olmo2"):
            local = {"scaling": "none", "use_factors": False, "attn_factor": 1.0}
            if self.arch == "gemma3":
                local["freq_base"] = self._get("rope.freq_base_swa", 10000.0)
            layers = [local if window else {} for window in self.windows]
        return layers

    def _get(self, key: str, default: Any = None) -> Any:
        field = self._fields.get(f"{self.arch}.{key}")
        if field is not None:
            return field.contents()
        if default is None:
            raise KeyError(f"{self.arch}.{key}")
        return default

    def logits(
        self,
        ids: Sequence[int],
        positions: Sequence[int] | np.ndarray | None = None,
        past: Sequence[Past] | None = None,
    ) -> np.ndarray:
        """Logits after each token, float64 [n, n_vocab].

        A token sees itself and those before it in `ids`. RoPE takes `positions` [n], 0, 1, 2, ...
        by default; they may have gaps, repeat, or run backwards. `past` has one entry for each
        layer, as `cached` gives them: tokens see its keys too, key i at position i, and `ids` come
        behind them.
        """
        return self._forward(ids, positions, past)[0]

    def cached(self, ids: Sequence[int]) -> list[Past]:
        """Keys before RoPE, and values, of each layer, computed from an empty context."""
        return self._forward(ids, None, None)[1]

    def hidden(self, ids: Sequence[int]) -> np.ndarray:
        """The rows behind the last norm, [n, dim], from an empty context."""
        return self._hidden(ids, None, None)[0]

    def _forward(
        self,
        ids: Sequence[int],
        positions: Sequence[int] | np.ndarray | None,
        past: Sequence[Past] | None,
    ) -> tuple[np.ndarray, list[Past]]:
        """Logits, and keys and values of the tokens `ids`."""
        x, cached = self._hidden(ids, positions, past)
        tied = "output.weight" not in self.weights
        logits = self._linear(x, "token_embd" if tied else "output")
        if self.arch == "granite":
            logits = logits / self._get("logit_scale")
        if self.arch in _GEMMA:
            cap = self._get("final_logit_softcapping", 30.0 if self.arch == "gemma2" else 0.0)
            logits = soft_cap(logits, cap)
        return logits, cached

    def _hidden(
        self,
        ids: Sequence[int],
        positions: Sequence[int] | np.ndarray | None,
        past: Sequence[Past] | None,
    ) -> tuple[np.ndarray, list[Past]]:
        """The rows behind the last norm, and keys and values of the tokens `ids`."""
        x = self.weights["token_embd.weight"][np.asarray(ids)]  # [n, dim]
        if self.arch in _GEMMA:
            x = x * np.sqrt(self.dim)
        residual_scale = 1.0
        if self.arch == "granite":
            x = x * (self._get("embedding_scale", 0.0) or 1.0)
            residual_scale = self._get("residual_scale", 0.0) or 1.0
        n_past = len(past[0][0]) if past else 0
        where = n_past + np.arange(len(ids)) if positions is None else np.asarray(positions)
        cached = []
        for layer in range(self.n_layers):
            block = f"blk.{layer}."
            h = self._norm_if_any(x, block + "attn_norm")
            seen = past[layer] if past else None
            out, of_ids = self._attention(h, layer, where, seen)
            cached.append(of_ids)
            x = x + residual_scale * self._norm_if_any(out, block + "post_attention_norm")
            out = self._feed_forward(self._norm_if_any(x, block + "ffn_norm"), block)
            x = x + residual_scale * self._norm_if_any(out, block + "post_ffw_norm")
        return self._norm(x, "output_norm"), cached

    def _attention(
        self,
        h: np.ndarray,
        layer: int,
        where: np.ndarray,
        past: Past | None,
    ) -> tuple[np.ndarray, Past]:
        """Causal grouped-query attention of h [n, dim], at positions `where` [n], with `past` and
        itself -> [n, dim], and its keys and values."""
        n, block, rope = len(h), f"blk.{layer}.", self.layers[layer]
        if block + "attn_qkv.weight" in self.weights:
            n_q, n_k = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
            q, k, v = np.split(self._linear(h, block + "attn_qkv"), (n_q, n_q + n_k), axis=1)
        else:
            q, k, v = (self._linear(h, block + f"attn_{name}") for name in "qkv")
        if self.arch == "olmo2":  # over all heads
            q, k = self._norm(q, block + "attn_q_norm"), self._norm(k, block + "attn_k_norm")
        q = q.reshape(n, self.n_heads, self.head_dim)
        k = k.reshape(n, self.n_kv_heads, self.head_dim)
        v = v.reshape(n, self.n_kv_heads, self.head_dim_v)
        if self.arch in ("qwen3", "qwen3moe", "gemma3"):
            q, k = self._norm(q, block + "attn_q_norm"), self._norm(k, block + "attn_k_norm")
        if self.arch == "mistral3":
            growth = self._get("attention.temperature_scale", 0.0)
            lengths = where // self.rope["yarn_orig_ctx"]
            q = q * (1 + growth * np.log(1 + lengths))[:, None, None]
        of_ids = k, v
        where_k = where
        if past is not None:
            k, v = np.concatenate([past[0], k]), np.concatenate([past[1], v])
            where_k = np.concatenate([np.arange(len(past[0])), where])
        rows_k = np.arange(len(k))
        rows_q = rows_k[len(k) - n :]
        scores = np.empty((self.n_heads, n, len(k)))
        if rope is None:
            self._scores(q, k, scores)
        else:
            neox = self.arch not in _NEIGHBOURS
            self._scores(
                rotate(q, *self._rope_table(where, rope), neox),
                rotate(k, *self._rope_table(where_k, rope), neox),
                scores,
            )
            n_group, window = rope.get("grp_attn_n", 1), rope.get("grp_attn_w", 512)
            if n_group > 1:
                far = np.empty_like(scores)
                far_q = rows_q // n_group + window - window // n_group
                self._scores(
                    rotate(q, *self._rope_table(far_q, rope), neox),
                    rotate(k, *self._rope_table(rows_k // n_group, rope), neox),
                    far,
                )
                scores = np.where(rows_q[:, None] - rows_k >= window, far, scores)
        if self.arch == "gemma2":
            scores = soft_cap(scores, self._get("attn_logit_softcapping", 50.0))
        scores[:, rows_k > rows_q[:, None]] = -np.inf
        window = self.windows[layer]
        if window is not None:
            scores[:, where_k <= where[:, None] - window] = -np.inf
        sinks = self.weights.get(block + "attn_sinks.weight")
        out = np.empty((n, self.n_heads, self.head_dim_v))
        group = self.n_heads // self.n_kv_heads
        for head in range(self.n_heads):
            shares = softmax_with_sink(scores[head], None if sinks is None else sinks[head])
            out[:, head] = shares @ v[:, head // group]
        return self._linear(out.reshape(n, -1), block + "attn_output"), of_ids

    def _scores(self, q: np.ndarray, k: np.ndarray, out: np.ndarray) -> None:
        """out [n_heads, query, key] = q k / sqrt(head_dim), or the scale of the architecture"""
        group = self.n_heads // self.n_kv_heads
        for head in range(self.n_heads):
            out[head] = q[:, head] @ k[:, head // group].T * self.score_scale

    def _feed_forward(self, h: np.ndarray, block: str) -> np.ndarray:
        """h [n, dim] -> [n, dim]"""
        if block + "ffn_gate_inp.weight" in self.weights:
            return self._mixture(h, block)
        if self.arch == "phi3":
            gate, up = np.split(self._linear(h, block + "ffn_up"), 2, axis=1)
        else:
            gate, up = self._linear(h, block + "ffn_gate"), self._linear(h, block + "ffn_up")
        gate = gelu(gate, self._f16_gelu) if self.arch in _GEMMA else silu(gate)
        return self._linear(gate * up, block + "ffn_down")

    def _mixture(self, h: np.ndarray, block: str) -> np.ndarray:
        """Mixtral's feed-forward (arXiv 2401.04088), token by token, h [n, dim] -> [n, dim]."""
        logits = self._linear(h, block + "ffn_gate_inp")  # [n, n_experts]
        chosen = np.argsort(-logits, axis=1, kind="stable")[:, : self._get("expert_used_count")]
        gating = self._get("expert_gating_func", 3 if self.arch == "gpt-oss" else 1)
        if gating == 3:  # a softmax of the chosen ones
            weights = softmax(np.take_along_axis(logits, chosen, axis=1))
        else:
            every = softmax(logits) if gating == 1 else 1 / (1 + np.exp(-logits))
            weights = np.take_along_axis(every, chosen, axis=1)
        if self._get("expert_weights_norm", self.arch not in ("qwen2moe", "gpt-oss")):
            weights = weights / weights.sum(axis=1, keepdims=True)
        weights = weights * self._get("expert_weights_scale", 1.0)
        out = np.zeros_like(h)
        for token, of_token in enumerate(chosen):
            for expert, weight in zip(of_token, weights[token], strict=True):
                x = h[token : token + 1]
                gate = self._linear(x, block + "ffn_gate_exps", expert)
                up = self._linear(x, block + "ffn_up_exps", expert)
                hidden = swiglu_oss(gate, up) if self.arch == "gpt-oss" else silu(gate) * up
                y = self._linear(hidden, block + "ffn_down_exps", expert)
                out[token] += weight * y[0]
        if block + "ffn_gate_inp_shexp.weight" in self.weights:  # Qwen 2: one for all tokens
            share = h @ self.weights[block + "ffn_gate_inp_shexp.weight"].reshape(-1)
            gate = self._linear(h, block + "ffn_gate_shexp")
            up = self._linear(h, block + "ffn_up_shexp")
            y = self._linear(silu(gate) * up, block + "ffn_down_shexp")
            out += y / (1 + np.exp(-share[:, None]))
        return out

    def _linear(self, x: np.ndarray, name: str, expert: int | None = None) -> np.ndarray:
        """x [n, n_cols] @ W.T + b -> [n, n_rows]; with an expert, W and b are its own."""
        if name + ".weight" in self.rounded:
            x = round_q8(x, self._short_scale)
        weight, bias = self.weights[name + ".weight"], self.weights.get(name + ".bias")
        if expert is not None:
            weight, bias = weight[expert], None if bias is None else bias[expert]
        y = x @ weight.T
        return y if bias is None else y + bias

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        """RMSNorm over the last axis."""
        mean_square = np.mean(x * x, axis=-1, keepdims=True)
        return x / np.sqrt(mean_square + self.norm_eps) * self.weights[name + ".weight"]

    def _norm_if_any(self, x: np.ndarray, name: str) -> np.ndarray:
        """RMSNorm where the file has it."""
        return self._norm(x, name) if name + ".weight" in self.weights else x

    def _rope_table(
        self, positions: np.ndarray, rope: Mapping[str, Any]
    ) -> tuple[np.ndarray, np.ndarray]:
        """cos and sin of the angles, times the attention factor, each [n, rope_dim / 2]."""
        d = self.rope_dim
        scaling, scale, trained = rope["scaling"], rope["scale"], rope["yarn_orig_ctx"]
        base = rope["freq_base"]
        if scaling == "dynamic":
            reached = max(rope.get("n_tokens", 0), trained)
            base *= (scale * reached / trained - (scale - 1)) ** (d / (d - 2))
        frequency = base ** (-2.0 * np.arange(d // 2) / d)
        if self.factors is not None and rope.get("use_factors", True):
            frequency = frequency / self.factors
        if scaling in ("none", "dynamic"):
            scale = 1.0
        extrapolated = rope.get("yarn_ext_factor", 1.0 if scaling == "yarn" else 0.0)
        if extrapolated:
            magnitude = 0.1 * math.log(scale) + 1 if scale > 1 else 1.0
            if self.arch == "mistral3" and scale > 1:
                log_mul = self._get("rope.scaling.yarn_log_multiplier", 0.0)
                magnitude /= 0.1 * log_mul * math.log(scale) + 1
        else:
            magnitude = rope.get("yarn_attn_factor", 1.0)

        def pair_with_rotations(n: float) -> float:
            """Solves trained * base ** (-2 i / d) = 2 pi n for i."""
            return d / 2 * math.log(trained / (2 * math.pi * n)) / math.log(base)

        low = max(math.floor(pair_with_rotations(rope.get("yarn_beta_fast", 32.0))), 0)
        high = min(math.ceil(pair_with_rotations(rope.get("yarn_beta_slow", 1.0))), d - 1)
        angle = np.empty((len(positions), d // 2))
        for i in range(d // 2):
            kept = 1 - min(max((i - low) / max(high - low, 0.001), 0), 1)
            kept *= extrapolated
            angle[:, i] = positions * frequency[i] * (kept + (1 - kept) / scale)
        magnitude *= rope.get("attn_factor", self.attn_factor)
        return np.cos(angle) * magnitude, np.sin(angle) * magnitude


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, neox: bool = False) -> np.ndarray:
    """RoPE: x [n, n_heads, head_dim], pair i of the leading dims rotated by angle i of row n.

    Pairs are (2i, 2i + 1) in GGUF's `llama`; with `neox` (i, i + n_pairs), as in GPT-NeoX.
    """
    n_pairs = cos.shape[1]
    cos, sin = cos[:, None, :], sin[:, None, :]  # the same for every head
    first = slice(0, n_pairs) if neox else slice(0, 2 * n_pairs, 2)
    second = slice(n_pairs, 2 * n_pairs) if neox else slice(1, 2 * n_pairs, 2)
    out = x.copy()
    out[..., first] = x[..., first] * cos - x[..., second] * sin
    out[..., second] = x[..., first] * sin + x[..., second] * cos
    return out


def silu(x: np.ndarray) -> np.ndarray:
    """x times the logistic function of x, without overflow for large negative x."""
    return x * 0.5 * (1 + np.tanh(x / 2))


def gelu(x: np.ndarray, f16: bool = False) -> np.ndarray:
    """x times the normal distribution's integral to x, approximated by tanh. With `f16` as in ggml:
    x and the result are rounded to f16 between -10 and 10; beyond, the result is 0 or x."""
    if f16:
        short = gelu(x.astype(np.float16).astype(np.float64)).astype(np.float16)
        return np.where(x <= -10, 0, np.where(x >= 10, x, short.astype(np.float64)))
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def soft_cap(x: np.ndarray, cap: float) -> np.ndarray:
    """x, squeezed to -cap to cap; a cap of 0 does nothing."""
    return cap * np.tanh(x / cap) if cap else x


def swiglu_oss(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """gpt-oss's SwiGLU, clamped (arXiv 2508.10925, and the model's code)."""
    gate, up = np.minimum(gate, 7), np.clip(up, -7, 7)
    return gate / (1 + np.exp(-1.702 * gate)) * (up + 1)


def softmax(x: np.ndarray) -> np.ndarray:
    """Over the last axis; -inf has probability 0."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def softmax_with_sink(x: np.ndarray, sink: float | None) -> np.ndarray:
    """Over the last axis, with one more logit whose share is lost."""
    if sink is None:
        return softmax(x)
    return softmax(np.append(x, np.full((*x.shape[:-1], 1), sink), axis=-1))[..., :-1]


def round_q8(x: np.ndarray, short_scale: bool = False) -> np.ndarray:
    """x [..., n_cols] rounded to 8 bits in blocks of 32 along the row, returned as float64.

    scale = max / 127 and q = x * (127 / max) rounded half to even, where `max` is the largest
    magnitude of the block, all in float32 as in the kernels (and in llama.cpp's), so that the
    integers are theirs. A block of zeros has scale 0.
    `short_scale` then rounds the scale to 11 significant bits (half to even), as f16 does, but
    without f16's small range; q stays as the exact scale gave it.
    """
    blocks = np.asarray(x, np.float32).reshape(*x.shape[:-1], -1, 32)
    largest = np.abs(blocks).max(axis=-1, keepdims=True)
    scale = largest / np.float32(127)
    q = np.rint(blocks * (np.float32(127) / np.where(largest == 0, np.float32(1), largest)))
    if short_scale:
        mantissa, exponent = np.frexp(scale)
        scale = np.ldexp(np.rint(mantissa * 2048) / 2048, exponent)
    return (q.astype(np.float64) * scale.astype(np.float64)).reshape(x.shape)


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    """||a - b|| / ||b|| over all elements; `b` is the truth.

    Anything that is not finite gives infinity, so that no bound lets it pass; a zero truth gives
    0 when `a` is zero too, else infinity. Raises ValueError when the shapes differ, for a
    broadcast would compare the wrong things.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"shapes {a.shape} and {b.shape} differ")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    difference, truth = float(np.linalg.norm(a - b)), float(np.linalg.norm(b))
    if truth == 0:
        return 0.0 if difference == 0 else float("inf")
    return difference / truth
