"""Merging for vocabularies of `tokenizer.ggml.model` = llama: sentencepiece's BPE.

The vocabulary of the file becomes a sentencepiece model, and sentencepiece merges. The ids are
llama.cpp's, with one difference that is meant: text cannot be merged into a control, unknown or
byte token. llama.cpp lets it where the vocabulary happens to hold the steps in between (`<s` and
`>` make `<s>`); sentencepiece does not.

Source: https://github.com/google/sentencepiece (src/bpe_model.cc, src/model_interface.cc).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
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

_SPACE = "\u2581"  # how pieces write a space
_BYTE_PIECE = re.compile(rb"<0x([0-9A-Fa-f]{2})>\Z")


class SentencePieceMerger:
    """Text without special tokens to ids, and tokens to bytes."""

    def __init__(self, gguf: GGUFFile) -> None:
        """Raises GGUFError for metadata that does not fit together."""
        self.vocabulary = Vocabulary(gguf, Defaults(bos=1, eos=2, unk=0, add_bos=True))
        # At the start of a text, and after special tokens.
        self.add_space_prefix = gguf.get_bool("tokenizer.ggml.add_space_prefix", default=True)
        tokens, kinds, id_of = self.vocabulary.tokens, self.vocabulary.kinds, self.vocabulary.id_of
        scores = read_numbers(gguf, "scores", len(tokens), default=0)
        for i, score in enumerate(scores):
            if math.isnan(score):
                raise GGUFError(f"{gguf.path}: the score of token {i} is not a number")
        self._visible = [
            _visible_bytes(gguf.path, i, text, kind)
            for i, (text, kind) in enumerate(zip(tokens, kinds, strict=True))
        ]
        proto, self._stand_ins = _sentencepiece_model(tokens, id_of, scores, kinds)
        try:
            self._spm = SentencePieceProcessor(model_proto=proto)
        except (RuntimeError, OSError, ValueError) as error:
            raise GGUFError(
                f"{gguf.path}: sentencepiece refuses the vocabulary: {error}"
            ) from error

    def visible(self, token_id: int) -> bytes:
        """What a token adds to the text."""
        return self._visible[token_id]

    def merge(self, text: str) -> list[int]:
        """Ids of text without special tokens."""
        ids: list[int] = self._spm.encode((" " if self.add_space_prefix else "") + text)
        if not self._stand_ins:
            return ids
        # Bytes that the vocabulary lacks; a run of them is one unknown token, as sentencepiece
        # does it for characters. (llama.cpp gives up on such text.)
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


def _visible_bytes(path: Path, token_id: int, raw: bytes, kind: int) -> bytes:
    """What a token shows in decoded text. Unused and undefined tokens show nothing."""
    if kind == NORMAL:
        return raw.replace(_SPACE.encode(), b" ")
    if kind == USER_DEFINED:
        return raw
    if kind == BYTE:
        match = _BYTE_PIECE.match(raw)
        if match is None:
            text = quote(raw.decode("utf-8", "replace"))
            raise GGUFError(f"{path}: byte token {token_id} is {text}, expected the form '<0x0A>'")
        return bytes.fromhex(match[1].decode())
    return b""


def _sentencepiece_model(
    raw: Sequence[bytes],
    id_of: Mapping[bytes, int],
    scores: Sequence[float],
    kinds: Sequence[int],
) -> tuple[bytes, dict[int, int | None]]:
    """A sentencepiece model whose ids are those of the vocabulary.

    Returns it serialized, and what ids past the vocabulary stand for: None is a byte that no token
    has.
    """
    proto = _pb2.ModelProto()
    proto.trainer_spec.model_type = proto.trainer_spec.BPE
    proto.trainer_spec.byte_fallback = True
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = False  # `encode` puts the space in
    proto.normalizer_spec.remove_extra_whitespaces = False
    proto.normalizer_spec.escape_whitespaces = True

    # What text must not be merged into goes in as a control piece. Its name is one that no text
    # can have: sentencepiece looks up single characters among control pieces too, so a control
    # token "A" under its own name would match. The same name hides pieces that sentencepiece
    # refuses: empty, not UTF-8, there twice, or with a NUL.
    hidden = "\ufffe"
    everything = b" ".join(raw)
    while hidden.encode() in everything:
        hidden += "\ufffe"

    types = proto.SentencePiece
    normal, control, byte_type = types.NORMAL, types.CONTROL, types.BYTE
    add = proto.pieces.add
    byte_ids = [id_of.get(b"<0x%02X>" % byte) for byte in range(256)]
    bytes_found = {i for i in byte_ids if i is not None}
    for i, (text, score, kind) in enumerate(zip(raw, scores, kinds, strict=True)):
        if i in bytes_found:
            add(piece=text.decode(), score=score, type=byte_type)
            continue
        # User-defined tokens were cut out before; those that still come about by merging count,
        # and so do unused tokens, in llama.cpp.
        name = ""
        if kind not in (CONTROL, UNKNOWN, BYTE) and id_of[text] == i:
            name = decode_or_empty(text)
        if name and "\0" not in name:
            add(piece=name, score=score, type=normal)
        else:
            add(piece=f"{hidden}{i}", type=control)

    # sentencepiece wants exactly one unknown piece and all 256 bytes.
    add(piece=hidden, type=types.UNKNOWN)
    stand_ins: dict[int, int | None] = {}
    for byte, byte_id in enumerate(byte_ids):
        if byte_id is None:
            own = id_of.get(bytes([byte]))  # a vocabulary may also write a byte as itself
            if own is not None and kinds[own] in (CONTROL, UNKNOWN):
                own = None
            stand_ins[len(proto.pieces)] = own
            add(piece=f"<0x{byte:02X}>", type=byte_type)
    return proto.SerializeToString(), stand_ins
