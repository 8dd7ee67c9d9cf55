"""Files that cost as much as possible before they are refused.

Their sizes are the limits of the reader, or just above. Long contents are holes of zeros if
possible, which take no disk space. `bench/refusals.py` measures them, tests/hostile/test_costs.py
checks their memory.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

from lariat.formats.block_formats import GGMLType
from lariat.tokenizers.vocabulary import BYTE, MAX_TOKENS, NORMAL

from tests.support.gguf_bytes import (
    ARRAY,
    BOOL,
    F32,
    I32,
    STRING,
    U8,
    U32,
    build,
    entry,
    tensor,
    text,
    u32,
    u64,
)  # fmt: skip

HOLE = 10 << 30  # bytes of the files whose end is a hole
DIM = 32
_MANY = (1 << 16) - 1
_FAR = "expected at most 67108864 bytes before the tensor data"


def _zeros(inner: int, count: int) -> bytes:
    """An entry that is an array, without its elements, which are in the hole of zeros."""
    return text("z") + u32(ARRAY) + u32(inner) + u64(count)


def _headers() -> dict[str, tuple[bytes, str]]:
    """Files that the reader itself refuses: how they begin, and their errors."""
    string = text("k") + u32(STRING)
    return {
        "zero-length strings": (build([_zeros(STRING, 1 << 21)], n_entries=2), "1 is empty"),
        "too many strings": (build([_zeros(STRING, (1 << 21) + 1)]), "expected at most 2097152"),
        "large array": (build([_zeros(U8, 1 << 33)]), _FAR),
        "large array of bools": (build([_zeros(BOOL, 60 << 20)], n_entries=2), "1 is empty"),
        "large string": (build([string + u64(60 << 20)]), "expected at most 25165824"),
        "wide characters": (
            build([string + u64((24 << 20) - 1) + "😀".encode()], n_entries=2),
            "empty",
        ),
        "many arrays": (
            build([_zeros(ARRAY, _MANY) + (u32(STRING) + u64(0)) * _MANY], n_entries=2),
            "1 is empty",
        ),
        "far string": (build([_zeros(STRING, 1 << 21) + u64(9 << 30)]), _FAR),
        "many tensors": (
            build(
                [],
                [tensor(f"t{i}", (32,), 2, 32 * i) for i in range(_MANY)],
                n_tensors=_MANY + 1,
            ),
            "the name of tensor 65535 is empty",
        ),
        "overlapping tensors": (
            build([], [tensor(f"t{i}", (32,), 2, 0) for i in range(_MANY)]),
            "overlap",
        ),
        "many entries": (
            build([entry(f"k{i}", U8, 1) for i in range(_MANY)], n_entries=_MANY + 1),
            "65535 is empty",
        ),
    }


def large_model(
    *,
    model: str = "llama",
    n_vocab: int = MAX_TOKENS,
    width: int = 64,
    last: str | None = None,
    last_type: int = NORMAL,
    last_score: float = 0.0,
    merges: list[str] | None = None,
    more: tuple[bytes, ...] = (),
    drop: str = "",
) -> bytes:
    """The beginning of a whole model of one layer with a vocabulary as large as is read.

    width: bytes of each token. last: the last token, its type and its score. drop: a tensor that is
    missing. Tensors lie in the hole, so all weights are 0.
    """
    begin, token = u64(width), f"%0{width}d".encode()
    tokens = b"".join([begin + token % i for i in range(n_vocab - 1)])
    tokens += text("x" * width if last is None else last)
    scores = bytes(4 * (n_vocab - 1)) + struct.pack("<f", last_score)
    types = struct.pack("<i", NORMAL) * (n_vocab - 1) + struct.pack("<i", last_type)
    numbers = {
        "llama.context_length": 64, "llama.embedding_length": DIM, "llama.block_count": 1,
        "llama.feed_forward_length": DIM, "llama.attention.head_count": 1,
    }  # fmt: skip
    entries = [
        entry("general.architecture", STRING, "llama"),
        *(entry(key, U32, n) for key, n in numbers.items()),
        entry("llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
        entry("tokenizer.ggml.model", STRING, model),
        text("tokenizer.ggml.tokens") + u32(ARRAY) + u32(STRING) + u64(n_vocab) + tokens,
        text("tokenizer.ggml.scores") + u32(ARRAY) + u32(F32) + u64(n_vocab) + scores,
        text("tokenizer.ggml.token_type") + u32(ARRAY) + u32(I32) + u64(n_vocab) + types,
        *([entry("tokenizer.ggml.merges", ARRAY, (STRING, merges))] if merges else ()),
        *more,
    ]
    shapes = {"token_embd": (DIM, n_vocab), "output_norm": (DIM,)}
    shapes |= {f"blk.0.{name}_norm": (DIM,) for name in ("attn", "ffn")}
    shapes |= {f"blk.0.attn_{name}": (DIM, DIM) for name in ("q", "k", "v", "output")}
    shapes |= {f"blk.0.ffn_{name}": (DIM, DIM) for name in ("gate", "up", "down")}
    table, offset = [], 0
    for name, dims in shapes.items():
        if name != drop:
            weight_type = GGMLType.Q4_0 if len(dims) == 2 else GGMLType.F32
            table.append(tensor(f"{name}.weight", dims, weight_type, offset))
            offset += MAX_TOKENS * DIM
    return build(entries, table)


def many_experts() -> bytes:
    """A whole model but for one tensor: as many experts as a layer may have, each with tensors of
    its own as in files of 2023, and as many layers as the table of tensors has room for."""
    n_experts, n_layers, n_vocab = 4096, 5, 64
    numbers = {
        "context_length": 64, "embedding_length": DIM, "block_count": n_layers,
        "feed_forward_length": DIM, "attention.head_count": 1, "expert_count": n_experts,
        "expert_used_count": n_experts,
    }  # fmt: skip
    entries = [
        entry("general.architecture", STRING, "llama"),
        *(entry(f"llama.{key}", U32, n) for key, n in numbers.items()),
        entry("llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
        entry("tokenizer.ggml.model", STRING, "llama"),
        entry("tokenizer.ggml.tokens", ARRAY, (STRING, [f"t{i}" for i in range(n_vocab)])),
    ]
    shapes = {"token_embd": (DIM, n_vocab), "output_norm": (DIM,)}
    for i in range(n_layers):
        shapes |= {f"blk.{i}.{name}_norm": (DIM,) for name in ("attn", "ffn")}
        shapes |= {f"blk.{i}.attn_{name}": (DIM, DIM) for name in ("q", "k", "v", "output")}
        shapes |= {f"blk.{i}.ffn_gate_inp": (DIM, n_experts)}
        for name in ("gate", "up", "down"):
            shapes |= {f"blk.{i}.ffn_{name}.{e}": (DIM, DIM) for e in range(n_experts)}
    del shapes[f"blk.{n_layers - 1}.ffn_down.{n_experts - 1}"]
    table, offset = [], 0
    for name, dims in shapes.items():
        weight_type = GGMLType.F32 if len(dims) == 1 else GGMLType.Q4_0
        table.append(tensor(f"{name}.weight", dims, weight_type, offset))
        offset += 4096 if "." in name and name.split(".")[-1].isdigit() else n_experts * DIM
    return build(entries, table)


def models() -> dict[str, Callable[[], tuple[bytes, str]]]:
    """Models that are refused when tensors or the vocabulary are read; made when needed, most of
    them 60 MB each."""
    wrong_id = entry("tokenizer.ggml.bos_token_id", U32, MAX_TOKENS)
    alike = [f"<|{'a' * 56}{i:06d}|>" for i in range(1 << 18)]
    return {
        "many experts": lambda: (many_experts(), "tensor 'blk.4.ffn_down.4095.weight' is missing"),
        "a tensor is missing": lambda: (
            large_model(drop="output_norm"), "tensor 'output_norm.weight' is missing",
        ),
        "the last score is NaN": lambda: (
            large_model(last_score=float("nan")), "the score of token 524287 is not a number",
        ),
        "the last byte token is none": lambda: (
            large_model(last="<0x-1>", last_type=BYTE), "expected the form '<0x0A>'",
        ),
        "the last type is unknown": lambda: (
            large_model(last_type=77), "token 524287 has type 77",
        ),
        "BOS is no token": lambda: (large_model(more=(wrong_id,)), "expected 0 to 524287"),
        "BPE: the last byte token is none": lambda: (
            large_model(model="gpt2", last="<0x-1>", last_type=BYTE, merges=["a b"]),
            "expected the form '<0x0A>'",
        ),
        "BPE: too many merges": lambda: (
            large_model(model="gpt2", width=32, merges=["a b"] * ((1 << 20) + 1)),
            "expected at most 2^20",
        ),
        "BPE: a tensor is missing": lambda: (
            large_model(
                model="gpt2", n_vocab=1 << 18, drop="output_norm", merges=[f"a {t}" for t in alike]
            ),
            "tensor 'output_norm.weight' is missing",
        ),
    }  # fmt: skip


def costly_files() -> dict[str, Callable[[Path], str]]:
    """By name, a function that writes the file to a path and returns the expected error."""

    def write(make: Callable[[], tuple[bytes, str]], path: Path) -> str:
        content, message = make()
        path.write_bytes(content)
        os.truncate(path, HOLE)
        return message

    makers = {name: (lambda pair=pair: pair) for name, pair in _headers().items()} | models()
    return {name: (lambda path, make=make: write(make, path)) for name, make in makers.items()}
