"""Converts checkpoint and tokenizer to GGUF files in F16 and Q4_0.

    python -m models.export --train build/train --out build/models
    python -m models.export --train build/draft --out build/models --shape draft

The draft model becomes one file, in Q4_0. In the Q4_0 files the embedding is Q8_0, because it is
the output matrix too. llama.cpp's quantizer also gives it more bits, and it is only an eighth of
the demo model's file. Norms are F32.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter, LlamaFileType, TokenType
from lariat.tools.quantize import QuantizeConfig, quantize_file
from sentencepiece import SentencePieceProcessor

_TEXTS = {
    "demo": (
        "Lariat demo",
        "Tells stories of a small world and recalls facts; see models/README.md",
    ),
    "draft": ("Lariat demo draft", "Guesses for the demo model; see models/README.md"),
}
_Q4_0 = QuantizeConfig("Q4_0", token_embedding_type="Q8_0")
_FILES = {
    "demo": {"demo-f16.gguf": QuantizeConfig("F16"), "demo-q4_0.gguf": _Q4_0},
    "draft": {"demo-draft.gguf": _Q4_0},
}


def write_all(
    folder: Path, state: dict[str, Any], tokenizer: bytes, shape: str = "demo"
) -> list[Path]:
    """Write demo-f16.gguf and demo-q4_0.gguf, or demo-draft.gguf, and return their paths.

    state: "shape" (see `network.Shape`) and "network": name -> float32 array, names as in
    `network.Network`. tokenizer: a sentencepiece model.
    """
    paths = []
    with tempfile.TemporaryDirectory() as scratch:
        exact = Path(scratch) / "demo-f32.gguf"
        _write_f32(exact, state, tokenizer, *_TEXTS[shape])
        for name, config in _FILES[shape].items():
            paths.append(folder / name)
            quantize_file(exact, paths[-1], config, force=True)
    return paths


def _write_f32(
    path: Path, state: dict[str, Any], tokenizer: bytes, name: str, description: str
) -> None:
    shape = state["shape"]
    writer = GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_description(description)
    writer.add_license("MIT")
    writer.add_file_type(LlamaFileType.ALL_F32)
    writer.add_vocab_size(shape["n_vocab"])
    writer.add_context_length(shape["n_ctx"])
    writer.add_embedding_length(shape["dim"])
    writer.add_block_count(shape["n_layers"])
    writer.add_feed_forward_length(shape["n_ff"])
    writer.add_head_count(shape["n_heads"])
    writer.add_head_count_kv(shape["n_kv_heads"])
    writer.add_key_length(shape["head_dim"])
    writer.add_value_length(shape["head_dim"])
    writer.add_rope_dimension_count(shape["head_dim"])
    writer.add_rope_freq_base(shape["rope_freq_base"])
    writer.add_layer_norm_rms_eps(shape["norm_eps"])
    _add_vocabulary(writer, tokenizer)
    for tensor, values in state["network"].items():
        writer.add_tensor(tensor + ".weight", np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: GGUFWriter, tokenizer: bytes) -> None:
    spm = SentencePieceProcessor(model_proto=tokenizer)
    tokens, scores, types = [], [], []
    for i in range(spm.vocab_size()):
        kind = TokenType.NORMAL
        if spm.is_unknown(i):
            kind = TokenType.UNKNOWN
        elif spm.is_control(i):
            kind = TokenType.CONTROL
        elif spm.is_byte(i):
            kind = TokenType.BYTE
        tokens.append(spm.id_to_piece(i).encode())
        scores.append(spm.get_score(i))
        types.append(kind)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(spm.bos_id())
    writer.add_eos_token_id(spm.eos_id())
    writer.add_unk_token_id(spm.unk_id())
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(True)


def main(argv: list[str] | None = None) -> None:
    """Export a checkpoint as demo-f16.gguf and demo-q4_0.gguf, or as demo-draft.gguf."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--train", type=Path, required=True, help="the --out of models.train")
    parser.add_argument("--out", type=Path, required=True, help="folder for the two files")
    parser.add_argument("--shape", default="demo", choices=_FILES, help="as for models.train")
    args = parser.parse_args(argv)
    import torch

    state = torch.load(args.train / "checkpoint.pt", map_location="cpu", weights_only=True)
    state["network"] = {name: w.float().numpy() for name, w in state["network"].items()}
    tokenizer = (args.train / "tokenizer.model").read_bytes()
    args.out.mkdir(parents=True, exist_ok=True)
    for path in write_all(args.out, state, tokenizer, args.shape):
        print(f"{path}: {path.stat().st_size:,} bytes, step {state['step']}")


if __name__ == "__main__":
    main()
