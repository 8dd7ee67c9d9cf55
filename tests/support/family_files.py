"""Random models of the families that differ from LLaMA in tensors or in keys of the metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.model_files import write_llama

# Keys of a random model, which matter to its logits; without the name of the architecture.
KEYS: dict[str, dict[str, Any]] = {
    "gemma2": {
        "attention.sliding_window": 40,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 4.0,
    },
    "gemma3": {
        "attention.sliding_window": 40,
        "attention.sliding_window_pattern": 3,
        "rope.freq_base": 1e6,
    },
    "phi3": {"attention.sliding_window": 0, "rope.scaling.attn_factor": 1.2},
    "granite": {
        "attention.scale": 0.4,
        "embedding_scale": 3.0,
        "residual_scale": 0.6,
        "logit_scale": 2.5,
    },
    "smollm3": {},
    "olmo2": {"attention.sliding_window": 40},
    "mistral3": {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 24,
        "rope.scaling.yarn_beta_fast": 0.5,
        "rope.scaling.yarn_beta_slow": 0.01,
        "rope.scaling.yarn_log_multiplier": 0.7,
        "attention.temperature_scale": 0.3,
    },
}
FAMILIES = tuple(KEYS)


def write_family(
    path: str | Path,
    arch: str,
    *,
    dim: int = 64,
    n_layers: int = 4,
    n_heads: int = 4,
    n_kv_heads: int = 2,
    head_dim: int | None = None,
    n_ff: int = 96,
    seed: int = 0,
    weight_type: str = "F32",
    keys: Mapping[str, Any] | None = None,
    rope_factors: bool = True,
    **shape: Any,
) -> Path:
    """Write a random model of `arch`, one of `FAMILIES`, to `path` and return the path.

    `keys` go over those of `KEYS`; None removes one. `rope_factors` writes short and long ones for
    phi3. The rest is as for `write_llama`.
    """
    rng = np.random.default_rng((seed, 77))
    key_dim = head_dim or dim // n_heads
    own = {f"{arch}.{key}": value for key, value in (KEYS[arch] | dict(keys or {})).items()}
    tied = {"tied": True} if arch.startswith("gemma") else {}

    def matrix(n_rows: int, n_cols: int, gain: float = 1.0) -> tuple[np.ndarray, str]:
        values = rng.standard_normal((n_rows, n_cols), dtype=np.float32)
        return values * np.float32(gain / np.sqrt(n_cols)), weight_type

    def norm(n: int, spread: float = 0.3) -> tuple[np.ndarray, str]:
        return 1 + np.float32(spread) * rng.standard_normal(n, dtype=np.float32), "F32"

    extra: dict[str, Any] = {}
    drop: list[str] = []
    for i in range(n_layers):
        block: dict[str, Any] = {}
        gone: tuple[str, ...] = ()
        if arch in ("gemma2", "gemma3", "olmo2"):
            block |= {"post_attention_norm": norm(dim), "post_ffw_norm": norm(dim)}
        if arch == "gemma3":
            block |= {"attn_q_norm": norm(key_dim, 0.5), "attn_k_norm": norm(key_dim, 0.5)}
        if arch == "olmo2":
            block["attn_q_norm"] = norm(n_heads * key_dim, 0.5)
            block["attn_k_norm"] = norm(n_kv_heads * key_dim, 0.5)
            gone = ("attn_norm", "ffn_norm")
        if arch == "phi3":
            block["attn_qkv"] = matrix((n_heads + 2 * n_kv_heads) * key_dim, dim, 1.3)
            block["ffn_up"] = matrix(2 * n_ff, dim)
            gone = ("attn_q", "attn_k", "attn_v", "ffn_gate")
        extra |= {f"blk.{i}.{name}.weight": values for name, values in block.items()}
        names = [f"blk.{i}.{name}.weight" for name in gone]
        drop += [name for name in names if name not in shape.get("extra_tensors", {})]
    if arch == "phi3" and rope_factors:
        n_pairs = shape.get("rope_dim", key_dim) // 2
        extra["rope_factors_short.weight"] = np.linspace(1, 1.5, n_pairs, dtype=np.float32)
        extra["rope_factors_long.weight"] = np.linspace(1, 9, n_pairs, dtype=np.float32)
    return write_llama(
        path,
        arch=arch,
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        n_ff=n_ff,
        seed=seed,
        weight_type=weight_type,
        **{
            # llama.cpp looks for special tokens where it finds phi3 in a name.
            "metadata": {"general.name": "random"} | own | shape.pop("metadata", {}),
            "extra_tensors": extra | shape.pop("extra_tensors", {}),
            "drop_tensors": [*drop, *shape.pop("drop_tensors", ())],
            **tied,
            **shape,
        },
    )
