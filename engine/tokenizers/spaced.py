"""Merging for vocabularies of Gemma 4 and its kin: BPE of characters, with U+2581 for a space.

The words are the lines of a text, and runs of newlines. A character that is no token is spelled in
byte tokens. With Gemma 4 a run of newlines that is a token is not merged.

Source: https://github.com/ggml-org/llama.cpp (src/llama-vocab.cpp).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from lariat.formats.gguf import GGUFFile
from lariat.tokenizers.bpe import PairMerger
from lariat.tokenizers.vocabulary import (
    BYTE_NAMES,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    Defaults,
)
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

_SPACE = "\u2581"
_LINES = r"[^\n]+|\n+"


class SpacedMerger(PairMerger):
    """Text without special tokens to ids, and tokens to bytes."""

    hidden_types = (CONTROL, UNKNOWN)
    alphabet = tuple(name.decode() for name in BYTE_NAMES)

    def __init__(self, gguf: GGUFFile) -> None:
        """Raises GGUFError for bad metadata."""
        is_gemma4 = gguf.get_str("tokenizer.ggml.model") == "gemma4"
        default = None if is_gemma4 else 11
        super().__init__(
            gguf,
            Defaults(default, default, None, add_bos=False),
            [Split(Regex(_LINES), "isolated")],
            r"(?<=[^\n])\n",
            byte_fallback=True,
        )
        pre = gguf.get_str("tokenizer.ggml.pre", default="gemma4")
        self._keeps_newlines = is_gemma4 or pre != "sarvam-moe"

    def merge(self, text: str) -> list[int]:
        """Ids of text without special tokens."""
        text = text.replace(" ", _SPACE)
        if not self._keeps_newlines:
            return super().merge(text)
        ids: list[int] = []
        for word in re.findall(_LINES, text):
            token = self.vocabulary.id_of.get(word.encode()) if word.startswith("\n") else None
            ids += super().merge(word) if token is None else [token]
        return ids

    def spell(self, text: str) -> Iterable[str]:
        """Its bytes. A byte that has no token is nothing."""
        return () if text in self.alphabet else (self.alphabet[byte] for byte in text.encode())

    def read(self, token: bytes, token_type: int) -> bytes:
        """The bytes of a token in decoded text. Unused and undefined tokens have none."""
        if token_type == NORMAL:
            return token.replace(_SPACE.encode(), b" ")
        return token if token_type == USER_DEFINED else b""
