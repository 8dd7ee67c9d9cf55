"""GGUF files of real shapes with random weights, for measuring speed without a download.

    python -m bench.synthetic 110m 1b        # or: make bench-models
    python -m bench.synthetic --type Q4_K 1b

Linear layers and the embedding have the type of --type, or Q4_0 where their rows do not divide by
its blocks; what chooses experts is F32. The output matrix is F16 or BF16 if they are; otherwise it
is Q6_K, or Q8_0 where rows do not divide by 256, as llama.cpp's quantizer does. Norms are F32.
Scales keep activations at the same size from layer to layer, so logits stay finite. The vocabulary
is made up. llama.cpp loads the files too.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import quantize
from tqdm import tqdm

from tests.support.model_files import set_scales

N_VOCAB = 32000
N_CTX = 16384
CACHE = Path(os.environ.get("LARIAT_BENCH_MODELS", Path(__file__).parents[1] / ".bench-models"))
_ROWS_AT_ONCE = 4096  # made and written at a time, so that memory stays small for any model


@dataclass(frozen=True)
class Shape:
    """Dimensions of a model."""

    dim: int
    n_layers: int
    n_ff: int
    n_heads: int
    n_kv_heads: int
    arch: str = "llama"
    head_dim: int = 0  # 0: dim / n_heads
    n_experts: int = 0  # of n_ff each
    n_used: int = 0  # experts that a token goes to


SHAPES = {
    "15m": Shape(288, 6, 768, 6, 6),
    "110m": Shape(768, 12, 2048, 12, 12),
    "1b": Shape(2048, 22, 5632, 32, 4),
    "7b4l": Shape(4096, 4, 11008, 32, 32),
    "7b": Shape(4096, 32, 11008, 32, 32),
    "8b": Shape(4096, 32, 14336, 32, 8),
    "gemma3-1b": Shape(1152, 26, 6912, 4, 1, "gemma3", 256),
    # Layers of Qwen3-30B-A3B with a quarter of its experts, and half as many for a token: 3 GB.
    "moe": Shape(2048, 30, 768, 32, 4, "qwen3moe", 128, 32, 4),
    "moe-small": Shape(512, 4, 256, 8, 2, "qwen3moe", 64, 16, 4),
}


@dataclass(frozen=True)
class _Tensor:
    name: str
    n_rows: int
    n_cols: int
    type: GGMLQuantizationType
    n_experts: int = 0  # it has so many matrices

    @property
    def all_rows(self) -> int:
        """Rows of all its matrices."""
        return self.n_rows * max(self.n_experts, 1)


_F32, _F16, _BF16, _Q4_0, _Q6_K, _Q8_0 = (
    GGMLQuantizationType.F32,
    GGMLQuantizationType.F16,
    GGMLQuantizationType.BF16,
    GGMLQuantizationType.Q4_0,
    GGMLQuantizationType.Q6_K,
    GGMLQuantizationType.Q8_0,
)


class _Blocks(NamedTuple):
    """Places and factors that turn random bytes into weights of a given size."""

    scale_at: int  # byte of a block where its f16 scale stands
    rms: float  # of weights with scale 1
    min_at: int | None = None  # where its f16 minimum stands
    mean: float = 0.0  # of the integers: the minimum is this times the scale, and the mean weight 0


_BLOCKS = {
    _Q4_0: _Blocks(0, 4.6),
    GGMLQuantizationType.Q4_1: _Blocks(0, 4.6, 2, -7.5),
    GGMLQuantizationType.Q5_0: _Blocks(0, 9.25),
    GGMLQuantizationType.Q5_1: _Blocks(0, 9.23, 2, -15.5),
    GGMLQuantizationType.IQ4_NL: _Blocks(0, 67.4),
    GGMLQuantizationType.IQ4_XS: _Blocks(0, 18.5 * 67.4),
    GGMLQuantizationType.MXFP4: _Blocks(0, 5.85),
    GGMLQuantizationType.IQ3_S: _Blocks(0, 140.4),
    GGMLQuantizationType.IQ3_XXS: _Blocks(0, 142.4),
    GGMLQuantizationType.IQ2_S: _Blocks(0, 56.4),
    GGMLQuantizationType.IQ2_XS: _Blocks(0, 55.8),
    GGMLQuantizationType.IQ2_XXS: _Blocks(0, 53.3),
    GGMLQuantizationType.IQ1_S: _Blocks(0, 7.19),
    GGMLQuantizationType.IQ1_M: _Blocks(48, 7.23),
    GGMLQuantizationType.TQ1_0: _Blocks(52, 0.817),
    GGMLQuantizationType.TQ2_0: _Blocks(64, 0.707),
    _Q8_0: _Blocks(0, 73.9),
    GGMLQuantizationType.Q2_K: _Blocks(80, 13.1, 82, 1.5),
    GGMLQuantizationType.Q3_K: _Blocks(108, 18.5 * 2.3),
    GGMLQuantizationType.Q4_K: _Blocks(0, 258.0, 2, 7.5),
    GGMLQuantizationType.Q5_K: _Blocks(0, 525.0, 2, 15.5),
    _Q6_K: _Blocks(208, 18.5 * 73.9),
}
_SCALE_BYTES = {GGMLQuantizationType.MXFP4: 1, GGMLQuantizationType.IQ1_M: 8}
TYPES = ("F16", "BF16", *(type.name for type in _BLOCKS))


def model_path(name: str, type_name: str = "Q4_0") -> Path:
    """Return the path of the model `name` with linear layers of a type; write it if it is new."""
    path = CACHE / (f"{name}.gguf" if type_name == "Q4_0" else f"{name}-{type_name.lower()}.gguf")
    if not path.exists():
        write(name, path, type_name)
    return path


def write(name: str, path: Path, type_name: str = "Q4_0") -> None:
    """Write the model beside its place and rename it when it is whole."""
    shape = SHAPES[name]
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.part")
    tensors = list(_tensors(shape, GGMLQuantizationType[type_name]))
    writer = GGUFWriter(unfinished, shape.arch)
    _metadata(writer, name, shape, type_name)
    for t in tensors:
        row_bytes = _row_bytes(t)
        if t.type == _F32:
            dims = (t.n_cols,) if t.n_rows == 1 else (t.n_rows, t.n_cols)
            n_bytes = t.n_rows * row_bytes
            writer.add_tensor_info(t.name, dims, np.dtype(np.float32), n_bytes)
        else:
            experts = (t.n_experts,) if t.n_experts else ()
            writer.add_tensor_info(
                t.name,
                (*experts, t.n_rows, row_bytes),
                np.dtype(np.uint8),
                t.all_rows * row_bytes,
                raw_dtype=t.type,
            )
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        _write_data(writer, tensors, name)
        writer.close()
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _write_data(writer: GGUFWriter, tensors: list[_Tensor], name: str) -> None:
    total = sum(t.all_rows * _row_bytes(t) for t in tensors)
    rng = np.random.default_rng(0)
    file = writer.fout[0]  # the package writes whole tensors only; these are made row by row
    with tqdm(total=total, unit="B", unit_scale=True, desc=f"{name}.gguf", disable=None) as bar:
        writer.write_padding(file, file.tell())
        for t in tensors:
            for start in range(0, t.all_rows, _ROWS_AT_ONCE):
                rows = _random_rows(t, min(_ROWS_AT_ONCE, t.all_rows - start), rng)
                file.write(memoryview(rows).cast("B"))
                bar.update(rows.nbytes)
            writer.write_padding(file, t.all_rows * _row_bytes(t))


def _random_rows(t: _Tensor, n_rows: int, rng: np.random.Generator) -> np.ndarray:
    if t.type == _F32 and t.n_rows == 1:
        return np.ones((n_rows, t.n_cols), np.float32)
    # Outputs have size 1 for inputs of size 1; entries of the embedding have size 1.
    size = 1.0 if t.name == "token_embd.weight" else t.n_cols**-0.5
    if t.type in (_F32, _F16, _BF16):
        values = np.float32(size) * rng.standard_normal((n_rows, t.n_cols), np.float32)
        return quantize(values, t.type)
    per_block, n_bytes = GGML_QUANT_SIZES[t.type]
    n_blocks = n_rows * t.n_cols // per_block
    blocks = np.frombuffer(bytearray(rng.bytes(n_blocks * n_bytes)), np.uint8)
    blocks = blocks.reshape(n_blocks, n_bytes)
    fields = _BLOCKS[t.type]
    for at, number in ((fields.scale_at, 1.0), (fields.min_at, fields.mean)):
        if at is not None:
            end = at + _SCALE_BYTES.get(t.type, 2)
            scales = np.full(n_blocks, number * size / fields.rms)
            set_scales(blocks, t.type.name, slice(at, end), scales)
    if t.type == GGMLQuantizationType.TQ2_0:  # a number of 3 becomes 1, so that their mean is that
        blocks[:, :64] &= ~((blocks[:, :64] & 0x55) << 1)
    return blocks


def _row_bytes(t: _Tensor) -> int:
    if t.type == _F32:
        return t.n_cols * 4
    per_block, n_bytes = GGML_QUANT_SIZES[t.type]
    return t.n_cols // per_block * n_bytes


def _tensors(s: Shape, wanted: GGMLQuantizationType) -> Iterator[_Tensor]:
    head_dim = s.head_dim or s.dim // s.n_heads

    def linear(name: str, n_rows: int, n_cols: int, n_experts: int = 0) -> _Tensor:
        whole = n_cols % GGML_QUANT_SIZES[wanted][0] == 0
        return _Tensor(name, n_rows, n_cols, wanted if whole else _Q4_0, n_experts)

    yield linear("token_embd.weight", N_VOCAB, s.dim)
    for i in range(s.n_layers):
        yield _Tensor(f"blk.{i}.attn_norm.weight", 1, s.dim, _F32)
        yield linear(f"blk.{i}.attn_q.weight", s.n_heads * head_dim, s.dim)
        yield linear(f"blk.{i}.attn_k.weight", s.n_kv_heads * head_dim, s.dim)
        yield linear(f"blk.{i}.attn_v.weight", s.n_kv_heads * head_dim, s.dim)
        yield linear(f"blk.{i}.attn_output.weight", s.dim, s.n_heads * head_dim)
        if s.arch == "gemma3":
            yield _Tensor(f"blk.{i}.post_attention_norm.weight", 1, s.dim, _F32)
            yield _Tensor(f"blk.{i}.post_ffw_norm.weight", 1, s.dim, _F32)
        if s.arch in ("qwen3moe", "gemma3"):
            yield _Tensor(f"blk.{i}.attn_q_norm.weight", 1, head_dim, _F32)
            yield _Tensor(f"blk.{i}.attn_k_norm.weight", 1, head_dim, _F32)
        yield _Tensor(f"blk.{i}.ffn_norm.weight", 1, s.dim, _F32)
        if s.n_experts:
            yield _Tensor(f"blk.{i}.ffn_gate_inp.weight", s.n_experts, s.dim, _F32)
        experts = "_exps" if s.n_experts else ""
        yield linear(f"blk.{i}.ffn_gate{experts}.weight", s.n_ff, s.dim, s.n_experts)
        yield linear(f"blk.{i}.ffn_up{experts}.weight", s.n_ff, s.dim, s.n_experts)
        yield linear(f"blk.{i}.ffn_down{experts}.weight", s.dim, s.n_ff, s.n_experts)
    yield _Tensor("output_norm.weight", 1, s.dim, _F32)
    if wanted in (_F16, _BF16):
        yield linear("output.weight", N_VOCAB, s.dim)
    else:
        yield _Tensor("output.weight", N_VOCAB, s.dim, _Q6_K if s.dim % 256 == 0 else _Q8_0)


def _metadata(writer: GGUFWriter, name: str, s: Shape, type_name: str) -> None:
    writer.add_name(f"synthetic {name}")
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(s.dim)
    writer.add_block_count(s.n_layers)
    writer.add_feed_forward_length(s.n_ff)
    writer.add_head_count(s.n_heads)
    writer.add_head_count_kv(s.n_kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    if s.head_dim:
        writer.add_key_length(s.head_dim)
        writer.add_value_length(s.head_dim)
    if s.n_experts:
        writer.add_expert_count(s.n_experts)
        writer.add_expert_used_count(s.n_used)
        writer.add_expert_feed_forward_length(s.n_ff)
    writer.add_rope_dimension_count(s.head_dim or s.dim // s.n_heads)
    writer.add_rope_freq_base(10000.0)
    if s.arch == "gemma3":
        writer.add_sliding_window(512)
    writer.add_vocab_size(N_VOCAB)
    small = "_S" if type_name in ("Q3_K", "Q4_K", "Q5_K") else ""  # fewest others
    small = "_MOE" if type_name == "MXFP4" else small
    writer.add_file_type(LlamaFileType[f"MOSTLY_{type_name}{small}"])
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    types = [2, 3, 3] + [6] * 256
    letters = "etaoinshrdlu"
    for i in range(N_VOCAB - len(tokens)):
        word, n = "", i
        while True:
            word, n = letters[n % 12] + word, n // 12 - 1
            if n < 0:
                break
        tokens.append("\u2581" + word if i % 2 else word)
        types.append(1)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 259 + [-float(i) for i in range(N_VOCAB - 259)])
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def main() -> None:
    """Write the models named on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("names", nargs="+", choices=SHAPES, metavar="|".join(SHAPES))
    parser.add_argument("--type", choices=TYPES, default="Q4_0", help="of the linear layers")
    args = parser.parse_args()
    for name in args.names:
        print(model_path(name, args.type))


if __name__ == "__main__":
    main()
