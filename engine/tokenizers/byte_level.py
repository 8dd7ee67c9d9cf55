"""Merging for vocabularies of `tokenizer.ggml.model` = gpt2: byte-level BPE.

Expressions cut text into words (`pre_tokenizers`). Each byte of a word is written as a printable
character, and pairs of these are merged (`bpe`).

Source: https://github.com/openai/gpt-2 (src/encoder.py).
"""

from __future__ import annotations

from collections.abc import Iterable

from lariat.formats.gguf import GGUFFile
from lariat.tokenizers.bpe import PairMerger
from lariat.tokenizers.pre_tokenizers import scheme_of
from lariat.tokenizers.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Defaults
from tokenizers.pre_tokenizers import ByteLevel


def _characters() -> list[str]:
    """The character that stands for each byte.

    Printable bytes of Latin-1 stand for themselves, the others for 256 and up, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


_CHARACTERS = _characters()
_BYTES = {ord(character): byte for byte, character in enumerate(_CHARACTERS)}


class ByteLevelMerger(PairMerger):
    """Text without special tokens to ids, and tokens to bytes."""

    hidden_types = (CONTROL, UNKNOWN, BYTE)
    alphabet = _CHARACTERS

    def __init__(self, gguf: GGUFFile) -> None:
        """Raises ModelError for a pre-tokenizer that is unknown, GGUFError for bad metadata."""
        scheme = scheme_of(gguf)
        by_bytes = ByteLevel(add_prefix_space=False, use_regex=False)
        super().__init__(
            gguf,
            Defaults(scheme.bos, 11, None, scheme.add_bos),
            [*scheme.steps(), by_bytes],
            scheme.seam,
            ignore_merges=scheme.ignore_merges,
        )

    def spell(self, text: str) -> Iterable[str]:
        """Its ASCII characters."""
        return (character for character in text if character.isascii())

    def read(self, token: bytes, token_type: int) -> bytes:
        """The bytes of a token in decoded text. Unused and undefined tokens have none.

        A character that stands for no byte is kept as it is (llama.cpp writes a marker).
        """
        if token_type == USER_DEFINED:
            return token
        if token_type != NORMAL:
            return b""
        text = bytearray()
        for character in token.decode("utf-8", "replace"):
            byte = _BYTES.get(ord(character))
            text += character.encode() if byte is None else bytes((byte,))
        return bytes(text)
