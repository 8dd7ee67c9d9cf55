"""LLaMA in PyTorch, with rows in the order of llama.cpp's `llama` architecture.

Papers: LLaMA (arXiv 2302.13971), RoPE (2104.09864), grouped-query attention (2305.13245).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Sizes of the network; the names are those of `lariat.config.ModelConfig`."""

    n_vocab: int = 2048
    n_ctx: int = 1024
    dim: int = 256
    n_layers: int = 5
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 64
    n_ff: int = 768
    norm_eps: float = 1e-5
    rope_freq_base: float = 10000.0


SHAPES = {
    "demo": Shape(),
    "draft": Shape(dim=128, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=32, n_ff=384),
}


def rope_table(shape: Shape) -> tuple[Tensor, Tensor]:
    """cos and sin, each float32 [n_ctx, head_dim]; both numbers of a pair have the same angle.

    The sine's sign is that of the pair's first number: (a, b) -> (a cos - b sin, b cos + a sin).
    """
    pair = torch.arange(shape.head_dim // 2, dtype=torch.float64)
    frequency = shape.rope_freq_base ** (-2 * pair / shape.head_dim)
    angle = torch.outer(torch.arange(shape.n_ctx, dtype=torch.float64), frequency)
    angle = angle.repeat_interleave(2, dim=1)
    sign = torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat(shape.head_dim // 2)
    return angle.cos().float(), (angle.sin() * sign).float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on neighbours: x [..., n, head_dim], cos and sin [n, head_dim]."""
    swapped = torch.stack((x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
    return x * cos + swapped * sin


def round_q4_0(weight: Tensor) -> Tensor:
    """The weight [n_rows, n_cols] as Q4_0 would keep it; the gradient passes as if it were exact.

    In blocks of 32 the weight of largest magnitude becomes -8 steps, the others -8 to 7.
    """
    blocks = weight.detach().reshape(-1, 32)
    largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    step = largest / -8
    inverse = torch.where(step == 0, 0.0, 1 / step)
    q = torch.clamp(torch.floor(blocks * inverse + 8.5), 0, 15) - 8
    rounded = (q * step.half().float()).reshape(weight.shape)
    return weight + (rounded - weight).detach()


class Block(nn.Module):
    """One layer. Matrices are [n_out, n_in], as in the file."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        s = shape
        self.attn_norm = nn.Parameter(torch.ones(s.dim))
        self.attn_q = nn.Parameter(torch.empty(s.n_heads * s.head_dim, s.dim))
        self.attn_k = nn.Parameter(torch.empty(s.n_kv_heads * s.head_dim, s.dim))
        self.attn_v = nn.Parameter(torch.empty(s.n_kv_heads * s.head_dim, s.dim))
        self.attn_output = nn.Parameter(torch.empty(s.dim, s.n_heads * s.head_dim))
        self.ffn_norm = nn.Parameter(torch.ones(s.dim))
        self.ffn_gate = nn.Parameter(torch.empty(s.n_ff, s.dim))
        self.ffn_up = nn.Parameter(torch.empty(s.n_ff, s.dim))
        self.ffn_down = nn.Parameter(torch.empty(s.dim, s.n_ff))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, quantized: bool) -> Tensor:
        """x [n_rows, n, dim] -> the same shape."""
        s = self.shape

        def matrix(weight: Tensor) -> Tensor:
            return round_q4_0(weight) if quantized else weight

        h = F.rms_norm(x, (s.dim,), self.attn_norm, s.norm_eps)
        # One product for all matrices with the same input.
        qkv = F.linear(h, torch.cat([matrix(w) for w in (self.attn_q, self.attn_k, self.attn_v)]))
        heads = qkv.unflatten(-1, (-1, s.head_dim)).transpose(1, 2)  # [n_rows, heads, n, head_dim]
        q, k, v = heads.split((s.n_heads, s.n_kv_heads, s.n_kv_heads), dim=1)
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + F.linear(o.transpose(1, 2).flatten(2), matrix(self.attn_output))
        h = F.rms_norm(x, (s.dim,), self.ffn_norm, s.norm_eps)
        both = F.linear(h, torch.cat([matrix(self.ffn_gate), matrix(self.ffn_up)]))
        gate, up = both.chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, matrix(self.ffn_down))


class Network(nn.Module):
    """Token ids to logits; the embedding is also the output matrix."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Parameter(torch.empty(shape.n_vocab, shape.dim))
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.n_layers))
        self.output_norm = nn.Parameter(torch.ones(shape.dim))
        cos, sin = rope_table(shape)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self._fill()

    def _fill(self) -> None:
        """Random weights; matrices that add to the residual stream start at 0."""
        nn.init.normal_(self.token_embd, std=0.05)
        for name, weight in self.named_parameters():
            if weight.ndim == 2 and name.startswith("blk."):
                if name.endswith(("attn_output", "ffn_down")):
                    nn.init.zeros_(weight)
                else:
                    nn.init.normal_(weight, std=weight.shape[1] ** -0.5)

    def forward(self, ids: Tensor, quantized: bool = False) -> Tensor:
        """ids [n_rows, n] -> logits [n_rows, n, n_vocab]. `quantized`: matrices as Q4_0."""
        n = ids.shape[1]
        cos, sin = self.cos[:n], self.sin[:n]
        x = F.embedding(ids, self.token_embd)
        for block in self.blk:
            x = block(x, cos, sin, quantized)
        x = F.rms_norm(x, (self.shape.dim,), self.output_norm, self.shape.norm_eps)
        return F.linear(x, self.token_embd)

    def loss(self, ids: Tensor, worth: Tensor, quantized: bool = False) -> Tensor:
        """Mean negative log-likelihood of each row's next tokens, weighted: a scalar, in nats.

        ids, worth [n_rows, n + 1]; the worth is that of the token itself, as a target.
        """
        logits = self(ids[:, :-1], quantized)
        nll = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
        weights = worth[:, 1:].flatten()
        return (nll * weights).sum() / weights.sum()

    def n_parameters(self) -> int:
        """Numbers that are trained."""
        return sum(p.numel() for p in self.parameters())
