"""Merging for vocabularies of `tokenizer.ggml.model` = llama: sentencepiece's BPE.

The vocabulary of the file becomes a sentencepiece model, and sentencepiece merges. The ids are
those of llama.cpp, with one difference on purpose: text cannot be merged into a control, unknown or
byte token. llama.cpp allows it if the vocabulary has the steps in between (`<s` and `>` give
`<s>`); sentencepiece does not.

Source: https://github.com/google/sentencepiece (src/bpe_model.cc, src/model_interface.cc).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lariat.errors import GGUFError, quote
from lariat.formats.gguf import GGUFFile
from lariat.tokenizers.vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    Defaults,
    Vocabulary,
    decode_or_empty,
    read_numbers,
)
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

_pb2: Any = sentencepiece_model_pb2  # generated at import, so mypy cannot see into it

_SPACE = "\u2581"  # a space in a piece
_BYTE_PIECE = re.compile(rb"<0x([0-9A-Fa-f]{2})>\Z")


class SentencePieceMerger:
    """Text without special tokens to ids, and tokens to bytes."""

    def __init__(self, gguf: GGUFFile) -> None:
        """Raises GGUFError for metadata that does not fit together."""
        self.vocabulary = Vocabulary(gguf, Defaults(bos=1, eos=2, unk=0, add_bos=True))
        # Before a text, and before text behind a special token.
        self.add_space_prefix = gguf.get_bool("tokenizer.ggml.add_space_prefix", default=True)
        tokens, types, id_of = self.vocabulary.tokens, self.vocabulary.types, self.vocabulary.id_of
        scores = read_numbers(gguf, "scores", len(tokens), default=0)
        for i, score in enumerate(scores):
            if math.isnan(score):
                raise GGUFError(f"{gguf.path}: the score of token {i} is not a number")
        self._texts = [
            _text_of(gguf.path, i, spelled, token_type)
            for i, (spelled, token_type) in enumerate(zip(tokens, types, strict=True))
        ]
        proto, self._stand_ins = _sentencepiece_model(tokens, id_of, scores, types)
        try:
            self._spm = SentencePieceProcessor(model_proto=proto)
        except (RuntimeError, OSError, ValueError) as error:
            raise GGUFError(
                f"{gguf.path}: sentencepiece refuses the vocabulary: {error}"
            ) from error

    def text_of(self, token_id: int) -> bytes:
        """The bytes that a token adds to a text."""
        return self._texts[token_id]

    def merge(self, text: str) -> list[int]:
        """Ids of text without special tokens."""
        return self._merge((" " if self.add_space_prefix else "") + text)

    def merge_behind(self, last_first: Iterable[int], text: str) -> tuple[int, list[int]]:
        """Ids of text that continues that of some tokens: without the blank. It replaces none.

        At a boundary of tokens no two pieces were merged, so the sides do not depend on each other.
        """
        return 0, self._merge(text)

    def may_give(self, token_id: int) -> bool:
        """Whether text may become this token: the unknown one, if bytes are missing."""
        return token_id == self.vocabulary.unk_id and None in self._stand_ins.values()

    def _merge(self, text: str) -> list[int]:
        ids: list[int] = self._spm.encode(text)
        if not self._stand_ins:
            return ids
        # Some bytes are missing in the vocabulary. A run of them becomes one unknown token, as
        # sentencepiece does it for characters. (llama.cpp fails on such text.)
        kept: list[int] = []
        was_missing = False
        for i in ids:
            stand_in = self._stand_ins.get(i, i)
            if stand_in is not None:
                kept.append(stand_in)
            elif not was_missing and self.vocabulary.unk_id is not None:
                kept.append(self.vocabulary.unk_id)
            was_missing = stand_in is None
        return kept


def _text_of(path: Path, token_id: int, spelled: bytes, token_type: int) -> bytes:
    """The bytes of a token in decoded text. Unused and undefined tokens have none."""
    if token_type == NORMAL:
        return spelled.replace(_SPACE.encode(), b" ")
    if token_type == USER_DEFINED:
        return spelled
    if token_type == BYTE:
        match = _BYTE_PIECE.match(spelled)
        if match is None:
            text = quote(spelled.decode("utf-8", "replace"))
            raise GGUFError(f"{path}: byte token {token_id} is {text}, expected the form '<0x0A>'")
        return bytes.fromhex(match[1].decode())
    return b""


def _sentencepiece_model(
    tokens: Sequence[bytes],
    id_of: Mapping[bytes, int],
    scores: Sequence[float],
    types: Sequence[int],
) -> tuple[bytes, dict[int, int | None]]:
    """A sentencepiece model with the ids of the vocabulary, serialized.

    Also returns the meaning of ids past the vocabulary: another id, or None for a byte that no
    token has.
    """
    proto = _pb2.ModelProto()
    proto.trainer_spec.model_type = proto.trainer_spec.BPE
    proto.trainer_spec.byte_fallback = True
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = False  # `merge` adds the space
    proto.normalizer_spec.remove_extra_whitespaces = False
    proto.normalizer_spec.escape_whitespaces = True

    # Tokens into which text must not be merged become control pieces with a name that no text has.
    # Under its own name a control token "A" would match, because sentencepiece looks up single
    # characters among control pieces too. The same name stands for pieces that sentencepiece
    # refuses: empty ones, repeated ones, and those that are not UTF-8 or have a NUL.
    hidden = "\ufffe"
    everything = b" ".join(tokens)
    while hidden.encode() in everything:
        hidden += "\ufffe"

    piece_types = proto.SentencePiece
    normal, control, byte_type = piece_types.NORMAL, piece_types.CONTROL, piece_types.BYTE
    add = proto.pieces.add
    byte_ids = [id_of.get(b"<0x%02X>" % byte) for byte in range(256)]
    bytes_found = {i for i in byte_ids if i is not None}
    for i, (text, score, token_type) in enumerate(zip(tokens, scores, types, strict=True)):
        if i in bytes_found:
            add(piece=text.decode(), score=score, type=byte_type)
            continue
        # User-defined tokens were cut out before. In llama.cpp text may still be merged into them,
        # and into unused tokens.
        name = ""
        if token_type not in (CONTROL, UNKNOWN, BYTE) and id_of[text] == i:
            name = decode_or_empty(text)
        if name and "\0" not in name:
            add(piece=name, score=score, type=normal)
        else:
            add(piece=f"{hidden}{i}", type=control)

    # sentencepiece needs exactly one unknown piece and all 256 bytes.
    add(piece=hidden, type=piece_types.UNKNOWN)
    stand_ins: dict[int, int | None] = {}
    for byte, byte_id in enumerate(byte_ids):
        if byte_id is None:
            own = id_of.get(bytes([byte]))  # a vocabulary may also spell a byte as itself
            if own is not None and types[own] in (CONTROL, UNKNOWN):
                own = None
            stand_ins[len(proto.pieces)] = own
            add(piece=f"<0x{byte:02X}>", type=byte_type)
    return proto.SerializeToString(), stand_ins
