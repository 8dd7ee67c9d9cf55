"""Random LLaMA models as GGUF files, for tests: any shape, any weight type, faults on request.

The `gguf` package writes the files, so the engine does not read its own output. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize, quantize

N_SPECIAL = 3  # <unk>, <s>, </s>
N_BYTES = 256
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6  # token types of GGUF


def write_llama(
    path: str | Path,
    *,
    dim: int = 64,
    n_layers: int = 2,
    n_heads: int = 4,
    n_kv_heads: int = 2,
    head_dim: int | None = None,
    head_dim_v: int | None = None,
    n_ff: int = 96,
    n_experts: int = 0,
    n_used: int = 2,
    n_vocab: int = 288,
    n_ctx: int = 256,
    rope_dim: int | None = None,
    arch: str = "llama",
    freq_base: float = 10000.0,
    rope_scale: float | None = None,
    rope_freqs: Sequence[float] | np.ndarray | None = None,
    weight_type: str = "F32",
    output_type: str | None = None,
    type_of: Mapping[str, str] | None = None,
    tied: bool = False,
    biases: bool = False,
    norm_eps: float = 1e-5,
    seed: int = 0,
    version: int = 3,
    split: int = 0,
    metadata: Mapping[str, Any] | None = None,
    drop_tensors: Iterable[str] = (),
    extra_tensors: Mapping[str, Any] | None = None,
) -> Path:
    """Write a random LLaMA (or what `arch` says) to `path` and return the path.

    The same arguments give the same file; the same `seed` and shapes give the same weights before
    they are quantized, whatever the types are.

    - `head_dim`, `head_dim_v`: length of a key and of a value; None is dim / n_heads and leaves
      `attention.key_length` and `value_length` out of the metadata.
    - `arch`: "qwen2" and "qwen2moe" add biases to q, k and v, "qwen3" and "qwen3moe" norms for the
      heads of q and k; "gpt-oss" sinks, and another name for a norm. Give it `biases` too.
    - `n_experts`: feed-forwards of `n_ff` in each layer, of which a token goes to `n_used`. The
      router stays F32. "qwen2moe" has a shared one too, which is half as wide again.
    - `rope_scale`: linear scaling, positions are divided by it.
    - `rope_freqs` [rope_dim / 2]: goes to `rope_freqs.weight`, frequencies are divided by it.
    - `weight_type` is for all matrices, `output_type` for the output matrix (the embedding when
      `tied`), `type_of` maps a part of a tensor's name to its type; first match wins, over both.
      A matrix whose rows do not divide into the type's blocks becomes F32, as in llama.cpp: Q6_K
      needs row lengths (dim, n_ff, n_heads * head_dim_v) that divide by 256. A type that the
      `gguf` package reads but does not write (Q4_K, ...) gets random weights of the same size; one
      that it does not know either gets random bytes, good only to be refused.
    - `metadata`: values that replace or add to the metadata; None removes the key; a pair
      (value, GGUFValueType) states the type.
    - `split`: maximum of tensors in a file, see `write_gguf`.
    - `drop_tensors`: whole names of tensors to leave out. `extra_tensors` adds or replaces: name ->
      array (its dtype is the type), or (float array, type name).
    """
    path = Path(path)
    key_dim = head_dim if head_dim is not None else dim // n_heads
    value_dim = head_dim_v if head_dim_v is not None else key_dim
    n_rot = key_dim if rope_dim is None else rope_dim

    keys: dict[str, Any] = {
        "general.name": f"random {arch}",
        f"{arch}.context_length": n_ctx,
        f"{arch}.embedding_length": dim,
        f"{arch}.block_count": n_layers,
        f"{arch}.feed_forward_length": n_ff,
        f"{arch}.attention.head_count": n_heads,
        f"{arch}.attention.head_count_kv": n_kv_heads,
        f"{arch}.attention.layer_norm_rms_epsilon": float(norm_eps),
        f"{arch}.rope.dimension_count": n_rot,
        f"{arch}.rope.freq_base": float(freq_base),
        f"{arch}.vocab_size": n_vocab,
    }
    if head_dim is not None or head_dim_v is not None:
        keys[f"{arch}.attention.key_length"] = key_dim
        keys[f"{arch}.attention.value_length"] = value_dim
    if n_experts:
        keys[f"{arch}.expert_count"], keys[f"{arch}.expert_used_count"] = n_experts, n_used
        keys[f"{arch}.expert_feed_forward_length"] = n_ff
    if arch == "qwen2moe":
        keys[f"{arch}.expert_shared_feed_forward_length"] = n_ff + n_ff // 2
    if rope_scale is not None:
        keys[f"{arch}.rope.scaling.type"] = "linear"
        keys[f"{arch}.rope.scaling.factor"] = float(rope_scale)
    keys |= vocabulary_metadata(n_vocab)
    keys |= metadata or {}

    tensors: dict[str, tuple[np.ndarray, str]] = {}

    def add_matrix(name: str, values: np.ndarray) -> None:
        chosen = weight_type
        if output_type is not None and name == ("token_embd.weight" if tied else "output.weight"):
            chosen = output_type
        for part, wanted in (type_of or {}).items():
            if part in name:
                chosen = wanted
                break
        if values.shape[-1] % GGML_QUANT_SIZES[GGMLQuantizationType[chosen]][0]:
            chosen = "F32"
        tensors[name] = (values, chosen)

    rng = np.random.default_rng(seed)
    weights = _random_weights(
        rng, dim, n_layers, n_heads, n_kv_heads, key_dim, value_dim, n_ff, n_vocab, tied
    )
    if n_experts:
        _replace_by_experts(weights, rng, n_experts, n_ff, arch == "qwen2moe")
    for name, values in weights.items():
        if values.ndim > 1 and "ffn_gate_inp" not in name:
            add_matrix(name, values)
        else:
            tensors[name] = (values, "F32")
    if arch == "gpt-oss":
        for layer in range(n_layers):
            norm = weights.pop(f"blk.{layer}.ffn_norm.weight")
            sinks = rng.standard_normal(n_heads, dtype=np.float32)
            tensors[f"blk.{layer}.post_attention_norm.weight"] = (norm, "F32")
            tensors[f"blk.{layer}.attn_sinks.weight"] = (sinks, "F32")
            del tensors[f"blk.{layer}.ffn_norm.weight"]
    if biases or arch in ("qwen2", "qwen2moe"):
        # Drawn after all weights, so that a model with biases has the weights of one without.
        parts = ("blk.",) if biases else ("attn_q.", "attn_k.", "attn_v.")
        for name, values in weights.items():
            if values.ndim > 1 and any(part in name for part in parts):
                bias = 0.3 * rng.standard_normal(values.shape[:-1], dtype=np.float32)
                tensors[name.removesuffix("weight") + "bias"] = (bias, "F32")
    if arch in ("qwen3", "qwen3moe"):
        for layer in range(n_layers):
            for name in ("attn_q_norm", "attn_k_norm"):
                norm = 1 + 0.5 * rng.standard_normal(key_dim, dtype=np.float32)
                tensors[f"blk.{layer}.{name}.weight"] = (norm, "F32")
    if rope_freqs is not None:
        tensors["rope_freqs.weight"] = (np.asarray(rope_freqs, np.float32), "F32")
    for name, extra in (extra_tensors or {}).items():
        if isinstance(extra, tuple):
            tensors[name] = (np.asarray(extra[0]), extra[1])
        else:
            tensors[name] = (np.asarray(extra), np.asarray(extra).dtype.name.replace("float", "F"))
    for name in drop_tensors:
        del tensors[name]

    return write_gguf(path, keys, tensors, version=version, arch=arch, split=split)


def _random_weights(
    rng: np.random.Generator,
    dim: int,
    n_layers: int,
    n_heads: int,
    n_kv_heads: int,
    key_dim: int,
    value_dim: int,
    n_ff: int,
    n_vocab: int,
    tied: bool,
) -> dict[str, np.ndarray]:
    """float32 weights by tensor name, scaled so that a wrong position or head shows in the logits.

    A normalised vector has entries of order 1. Queries and keys get a standard deviation of 1.5,
    so scores have one of about 2: attention is neither uniform nor a single token. Logits get
    one of about 2.
    """

    def matrix(n_rows: int, n_cols: int, gain: float = 1.0) -> np.ndarray:
        values = rng.standard_normal((n_rows, n_cols), dtype=np.float32)
        return values * np.float32(gain / np.sqrt(n_cols))

    def norm() -> np.ndarray:
        return np.float32(1) + np.float32(0.1) * rng.standard_normal(dim, dtype=np.float32)

    weights = {"token_embd.weight": matrix(n_vocab, dim, 2.0 if tied else float(np.sqrt(dim)))}
    for layer in range(n_layers):
        block = {
            "attn_norm": norm(),
            "attn_q": matrix(n_heads * key_dim, dim, 1.5),
            "attn_k": matrix(n_kv_heads * key_dim, dim, 1.5),
            "attn_v": matrix(n_kv_heads * value_dim, dim),
            "attn_output": matrix(dim, n_heads * value_dim),
            "ffn_norm": norm(),
            "ffn_gate": matrix(n_ff, dim),
            "ffn_up": matrix(n_ff, dim),
            "ffn_down": matrix(dim, n_ff),
        }
        weights |= {f"blk.{layer}.{name}.weight": values for name, values in block.items()}
    weights["output_norm.weight"] = norm()
    if not tied:
        weights["output.weight"] = matrix(n_vocab, dim, 2.0)
    return weights


def _replace_by_experts(
    weights: dict[str, np.ndarray],
    rng: np.random.Generator,
    n_experts: int,
    n_ff: int,
    shared: bool,
) -> None:
    """Put experts in the place of each layer's feed-forward, whose matrices show their shapes."""
    for gate in [name for name in weights if name.endswith("ffn_gate.weight")]:
        block, dim = gate.removesuffix("ffn_gate.weight"), weights[gate].shape[1]

        def matrix(*shape: int) -> np.ndarray:
            values = rng.standard_normal(shape, dtype=np.float32)
            return values / np.float32(np.sqrt(shape[-1]))

        for name in ("gate", "up", "down"):
            del weights[f"{block}ffn_{name}.weight"]
            shape = (dim, n_ff) if name == "down" else (n_ff, dim)
            weights[f"{block}ffn_{name}_exps.weight"] = matrix(n_experts, *shape)
        weights[f"{block}ffn_gate_inp.weight"] = 1.5 * matrix(n_experts, dim)
        if shared:
            n_shared = n_ff + n_ff // 2
            weights[f"{block}ffn_gate_inp_shexp.weight"] = matrix(dim)
            for name in ("gate", "up", "down"):
                shape = (dim, n_shared) if name == "down" else (n_shared, dim)
                weights[f"{block}ffn_{name}_shexp.weight"] = matrix(*shape)


def write_gguf(
    path: str | Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, tuple[np.ndarray, str]] | None = None,
    *,
    version: int = 3,
    arch: str = "llama",
    split: int = 0,
) -> Path:
    """Write any GGUF file: metadata as in `write_llama`, tensors as name -> (array, type name).

    `metadata` may replace `general.architecture` or, with None, remove it. With `split` it becomes
    several files of that many tensors at most, and the path of the first is returned.
    """
    path = Path(path)
    writer = GGUFWriter(path, arch, split_max_tensors=split)
    for key, value in metadata.items():
        if value is None:
            writer.kv_data[0].pop(key, None)
        elif key == "general.alignment":
            writer.add_custom_alignment(int(value))
        else:
            writer.kv_data[0].pop(key, None)  # the writer warns about a key that comes twice
            writer.add_key_value(key, *_typed(value))
    for name, (values, type_name) in (tensors or {}).items():
        weight_type = GGMLQuantizationType[type_name]
        # The dtype of these types says what they are; the rest is handed over as raw bytes.
        raw = None if type_name in _PLAIN_TYPES else weight_type
        writer.add_tensor(name, encode(values, type_name), raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if split and len(writer.tensors) > 1:
        path = writer.format_shard_names(path)[0]
    if version != 3:
        # Little-endian files of version 2 and 3 differ in nothing but this number.
        with path.open("r+b") as file:
            file.seek(4)
            file.write(version.to_bytes(4, "little"))
    return path


_PLAIN_TYPES = {"F16", "F32", "F64", "I8", "I16", "I32", "I64"}


def _typed(value: Any) -> tuple[Any, GGUFValueType, GGUFValueType | None]:
    """`value` with the GGUF type that a converter would give it, and that of its elements."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], GGUFValueType):
        return value[0], value[1], None
    if isinstance(value, (list, tuple, np.ndarray)):
        items = value.tolist() if isinstance(value, np.ndarray) else list(value)
        if items and all(isinstance(item, bool) for item in items):
            return items, GGUFValueType.ARRAY, GGUFValueType.BOOL
        if items and all(isinstance(item, int) and -(1 << 31) <= item < 1 << 31 for item in items):
            return items, GGUFValueType.ARRAY, GGUFValueType.INT32
        return items, GGUFValueType.ARRAY, GGUFValueType.get_type(items[0]) if items else None
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            return value, GGUFValueType.INT64, None
        return value, GGUFValueType.UINT32 if value < 1 << 32 else GGUFValueType.UINT64, None
    return value, GGUFValueType.get_type(value), None


def encode(values: np.ndarray, type_name: str) -> np.ndarray:
    """`values` [..., n_cols] as the bytes of a GGML type, uint8; F and I types keep their dtype."""
    if type_name in _PLAIN_TYPES:
        dtype = {"F": "float", "I": "int"}[type_name[0]] + type_name[1:]
        return np.ascontiguousarray(values, dtype)
    values = np.ascontiguousarray(values, np.float32)
    if type_name == "Q6_K":
        return quantize_q6_k(values)
    weight_type = GGMLQuantizationType[type_name]
    try:
        with np.errstate(divide="ignore"):  # MXFP4 takes the logarithm of zeros
            return np.ascontiguousarray(quantize(values, weight_type)).view(np.uint8)
    except NotImplementedError:
        return random_blocks(values, weight_type)


# Byte of a block where its f16 scale stands, and that of its f16 minimum with the multiple of the
# scale that brings the mean weight near 0.
_SCALES = {
    "Q2_K": (80, 82, 1.5),
    "Q3_K": (108, None, 0),
    "Q4_K": (0, 2, 7.5),
    "Q5_K": (0, 2, 15.5),
    "IQ4_NL": (0, None, 0),
    "IQ4_XS": (0, None, 0),
    "IQ3_S": (0, None, 0),
    "IQ3_XXS": (0, None, 0),
    "IQ2_S": (0, None, 0),
    "IQ2_XS": (0, None, 0),
    "IQ2_XXS": (0, None, 0),
    "IQ1_S": (0, None, 0),
    "IQ1_M": (48, None, 0),
}


def set_scales(blocks: np.ndarray, type_name: str, at: slice, values: np.ndarray) -> None:
    """Give the scales at bytes `at` of blocks uint8 [..., n_bytes] their values [...], rounded."""
    if type_name == "MXFP4":  # powers of 2 alone
        exponents = np.log2(np.maximum(np.abs(values), 2.0**-20))
        blocks[..., at] = (128 + np.rint(exponents)).astype(np.uint8)[..., None]
        return
    raw = values.astype(np.float16)
    if type_name == "IQ1_M":
        quarters = raw.view(np.uint16)[..., None] >> np.array([0, 4, 8, 12], np.uint16) << 12
        words = np.ascontiguousarray(blocks[..., at]).view(np.uint16) & 0x0FFF
        blocks[..., at] = (words | quarters).view(np.uint8)
        return
    blocks[..., at] = raw.view(np.uint8).reshape(*values.shape, 2)


def random_blocks(values: np.ndarray, weight_type: GGMLQuantizationType) -> np.ndarray:
    """Blocks of `weight_type` with random integers and scales, as large as `values` in the mean."""
    n_weights, n_bytes = GGML_QUANT_SIZES[weight_type]
    rng = np.random.default_rng(zlib.crc32(values.tobytes()))
    blocks = rng.integers(0, 256, (values.size // n_weights, n_bytes), dtype=np.uint8)
    if weight_type.name in _SCALES:
        at, at_min, ratio = _SCALES[weight_type.name]

        spread = rng.uniform(0.5, 1.5, len(blocks))

        def set_scale(scale: float) -> None:
            scales = scale * spread
            n_bytes = 8 if weight_type.name == "IQ1_M" else 2
            set_scales(blocks, weight_type.name, slice(at, at + n_bytes), scales)
            if at_min is not None:
                at_minimum = slice(at_min, at_min + 2)
                set_scales(blocks, weight_type.name, at_minimum, scales * ratio)

        set_scale(1)
        size = np.sqrt(np.mean(dequantize(blocks, weight_type).astype(float) ** 2))
        set_scale(float(np.sqrt(np.mean(values.astype(float) ** 2)) / size))
    return blocks.reshape(*values.shape[:-1], -1)


def quantize_q6_k(values: np.ndarray) -> np.ndarray:
    """float32 [..., n_cols], n_cols a multiple of 256, to Q6_K: uint8 [..., n_cols / 256 * 210].

    A block of 256 has 4 low bits a weight (128 bytes), 2 high bits (64), 16 int8 scales and an
    f16 scale. Scales are chosen by the largest weight alone: valid, and not ggml's choice.
    """
    groups = values.reshape(-1, 16, 16)  # [n_blocks, group, weight]
    wanted = np.abs(groups).max(axis=2) / 31
    d = (wanted.max(axis=1) / 127).astype(np.float16)
    d_f32 = d.astype(np.float32)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        scales = np.where(d_f32 > 0, np.rint(wanted / d_f32), 0).clip(-127, 127)
        step = (d_f32 * scales)[:, :, None]
        q = np.where(step > 0, np.rint(groups / step), 0).clip(-32, 31).astype(np.int8) + 32
    # Eight runs of 32 weights: each half of a block has four.
    runs = q.astype(np.uint8).reshape(-1, 2, 4, 32)
    low, high = runs & 15, runs >> 4
    ql = low[:, :, :2] | low[:, :, 2:] << 4  # run 0 with 2, run 1 with 3
    qh = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    n_blocks = len(groups)
    parts = (
        ql.reshape(n_blocks, 128),
        qh.reshape(n_blocks, 64),
        scales.astype(np.int8).view(np.uint8),
        d.reshape(n_blocks, 1).view(np.uint8),
    )
    return np.concatenate(parts, axis=1).reshape(*values.shape[:-1], -1)


def vocabulary(n_vocab: int) -> tuple[list[str], list[float], list[int]]:
    """Pieces, scores and types of a made-up sentencepiece vocabulary of `n_vocab` tokens.

    <unk>, <s>, </s>, the 256 bytes, "▁" and the letters, then longer pieces that merging two
    shorter ones gives. As in a trained vocabulary, every score is different, earlier merges score
    higher and single letters lowest. A small `n_vocab` cuts the list short.
    """
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(N_BYTES)]
    types = [_UNKNOWN] + [_CONTROL] * 2 + [_BYTE] * N_BYTES
    pieces = list(itertools.islice(_pieces(), max(n_vocab - len(tokens), 0)))
    merges = [piece for piece in pieces if len(piece) > 1]
    rank = {piece: i + 1 for i, piece in enumerate(merges)}
    rank |= {p: len(rank) + i + 1 for i, p in enumerate(p for p in pieces if len(p) == 1)}
    scores = [0.0] * len(tokens) + [-float(rank[piece]) for piece in pieces]
    tokens += pieces
    types += [_NORMAL] * len(pieces)
    return tokens[:n_vocab], scores[:n_vocab], types[:n_vocab]


def _pieces() -> Iterable[str]:
    """Endless distinct pieces: singles first, then common pairs, then words of growing length."""
    singles = "▁etaoinshrdlucmfwypvbgkqjxz"
    more = ",.'!?\"-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ\néü→日本"
    pairs = ["▁t", "he", "▁a", "in", "▁the", "er", "on", "▁s", "re", "▁an", "nd", "▁and", "ou"]
    yield from singles
    yield from pairs[:8]
    yield from more
    yield from pairs[8:]
    seen = set(pairs)
    for length in itertools.count(2):
        for letters in itertools.product(singles[1:13], repeat=length):
            word = "".join(letters)
            for piece in (word, "▁" + word):
                if piece not in seen:
                    yield piece


CHAT_TEMPLATE = """\
{{ bos_token }}{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def chat_metadata(n_vocab: int, template: str | None = CHAT_TEMPLATE) -> dict[str, Any]:
    """`vocabulary_metadata` of a model for chats: its last tokens are <|im_start|>, which is
    user-defined, and the control token <|im_end|>, which ends generation."""
    metadata = vocabulary_metadata(n_vocab)
    metadata["tokenizer.ggml.tokens"][-2:] = ["<|im_start|>", "<|im_end|>"]
    metadata["tokenizer.ggml.token_type"][-2:] = [_USER_DEFINED, _CONTROL]
    return metadata | {"tokenizer.chat_template": template}


def vocabulary_metadata(n_vocab: int) -> dict[str, Any]:
    """The `tokenizer.ggml.*` keys of `vocabulary(n_vocab)`."""
    tokens, scores, types = vocabulary(n_vocab)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
    }
