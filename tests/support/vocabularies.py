"""Vocabularies of sentencepiece, characters of byte-level ones, and GGUF files of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf as gguf_writer
from lariat.formats.gguf import GGUFFile
from lariat.tokenizers.tokenizer import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
BASE = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
BYTES = [(f"<0x{i:02X}>", 0.0, BYTE) for i in range(256)]

Vocab = Sequence[tuple[Any, float, int]]  # text (str, or bytes as they are), score, type
Make = Callable[..., Tokenizer]


def characters() -> list[str]:
    """GPT-2's character for each byte, written from its description."""
    table: list[str] = []
    n_shifted = 0
    for byte in range(256):
        if chr(byte).isprintable() and not chr(byte).isspace() and byte != 0xAD:
            table.append(chr(byte))
        else:
            table.append(chr(256 + n_shifted))
            n_shifted += 1
    return table


BYTE_CHARACTERS = characters()


def write(path: Path, vocab: Vocab | None, model: str | None = "llama", **metadata: Any) -> Path:
    """A GGUF file that holds only a vocabulary. `metadata`: keys after tokenizer.ggml."""
    writer = gguf_writer.GGUFWriter(path, "llama")
    entries: dict[str, Any] = {}
    if model is not None:
        writer.add_tokenizer_model(model)
    if vocab is not None:
        entries["tokens"] = [text for text, _, _ in vocab]
        entries["scores"] = [score for _, score, _ in vocab]
        entries["token_type"] = [token_type for _, _, token_type in vocab]
    for key, value in {**entries, **metadata}.items():
        name = f"tokenizer.ggml.{key}"
        if value is None:
            continue
        if key == "general_name":
            writer.add_name(value)
        elif isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_uint32(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def maker(folder: Path) -> Make:
    """Makes tokenizers from the arguments of `write`, each with a file in the folder."""

    def make(vocab: Vocab | None, model: str | None = "llama", **metadata: Any) -> Tokenizer:
        with GGUFFile(write(folder / "v.gguf", vocab, model, **metadata)) as file:
            return Tokenizer.from_gguf(file)

    return make
