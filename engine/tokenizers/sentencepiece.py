"""Merging for vocabularies of `tokenizer.ggml.model` = llama: sentencepiece's BPE.

The vocabulary of the file becomes a sentencepiece model, and sentencepiece merges. The ids are
those of llama.cpp, with one difference on purpose: text cannot be merged into a control, unknown or
byte token. llama.cpp allows it if the vocabulary has the steps in between (`<s` and `>` give
`<s>`); sentencepiece does not.

Source: https://github.com/google/sentencepiece (src/bpe_model.cc, src/model_interface.cc).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from lariat._strings import sentencepiece_pieces
from lariat.errors import GGUFError
from lariat.formats.gguf import GGUFFile
from lariat.tokenizers.vocabulary import (
    BYTE,
    BYTE_NAMES,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    Defaults,
    Vocabulary,
    byte_of,
    of_types,
    read_scores,
)
from numpy.typing import NDArray
from sentencepiece import SentencePieceProcessor

# The fields `trainer_spec` (2) and `normalizer_spec` (3) of a `ModelProto`, serialized: to import
# protobuf would take 15 ms.
SETTINGS = (
    b"\x12\x05"  # trainer_spec, 5 bytes
    b"\x18\x02"  # model_type: BPE
    b"\x98\x02\x01"  # byte_fallback: true
    b"\x1a\x10"  # normalizer_spec, 16 bytes
    b"\x0a\x08identity"  # name
    b"\x18\x00"  # add_dummy_prefix: false, because `merge` adds the space
    b"\x20\x00"  # remove_extra_whitespaces: false
    b"\x28\x01"  # escape_whitespaces: true
)

_SPACE = "\u2581"  # a space in a piece


class SentencePieceMerger:
    """Text without special tokens to ids, and tokens to bytes."""

    def __init__(self, gguf: GGUFFile) -> None:
        """Raises GGUFError for metadata that does not fit together."""
        self.vocabulary = Vocabulary(gguf, Defaults(bos=1, eos=2, unk=0, add_bos=True))
        # Before a text, and before text behind a special token.
        self.add_space_prefix = gguf.get_bool("tokenizer.ggml.add_space_prefix", default=True)
        tokens, types, id_of = self.vocabulary.tokens, self.vocabulary.types, self.vocabulary.id_of
        self._texts = {i: byte_of(gguf.path, i, tokens[i]) for i in of_types(types, (BYTE,))}
        scores = read_scores(gguf, len(tokens))
        proto, self._stand_ins = _sentencepiece_model(tokens, id_of, scores, types)
        try:
            self._spm = SentencePieceProcessor(model_proto=proto)
        except (RuntimeError, OSError, ValueError) as error:
            raise GGUFError(
                f"{gguf.path}: sentencepiece refuses the vocabulary: {error}"
            ) from error

    def text_of(self, token_id: int) -> bytes:
        """The bytes that a token adds to a text."""
        text = self._texts.get(token_id)
        if text is None:
            text = self._texts[token_id] = _text_of(
                self.vocabulary.tokens[token_id], self.vocabulary.types[token_id]
            )
        return text

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


def _text_of(spelled: bytes, token_type: int) -> bytes:
    """The bytes of a token in decoded text. Unused and undefined tokens have none."""
    if token_type == NORMAL:
        return spelled.replace(_SPACE.encode(), b" ")
    return spelled if token_type == USER_DEFINED else b""


def _sentencepiece_model(
    tokens: Sequence[bytes],
    id_of: Mapping[bytes, int],
    scores: NDArray[np.float32],
    types: bytearray,
) -> tuple[bytes, dict[int, int | None]]:
    """A sentencepiece model with the ids of the vocabulary, serialized.

    scores: float32 [n_vocab]. Also returns the meaning of ids past the vocabulary: another id, or
    None for a byte that no token has.
    """
    everything = b" ".join(tokens)
    hidden = "\ufffe".encode()  # a name that no text has
    while hidden in everything:
        hidden += "\ufffe".encode()
    names, piece_types = list(tokens), np.full(len(tokens), NORMAL, np.uint8)
    for i in _to_hide(tokens, id_of, types, everything):
        names[i] = hidden + b"%d" % i
        piece_types[i] = CONTROL
    # sentencepiece needs exactly one unknown piece and all 256 bytes.
    names.append(hidden)
    more_types = [UNKNOWN]
    stand_ins: dict[int, int | None] = {}
    for byte, name in enumerate(BYTE_NAMES):
        token = id_of.get(name)
        if token is not None:
            names[token], piece_types[token] = name, BYTE
            continue
        own = id_of.get(bytes([byte]))  # a vocabulary may also spell a byte as itself
        if own is not None and types[own] in (CONTROL, UNKNOWN):
            own = None
        stand_ins[len(names)] = own
        names.append(name)
        more_types.append(BYTE)
    all_types = np.concatenate([piece_types, np.array(more_types, np.uint8)])
    all_scores = np.concatenate([scores, np.zeros(len(more_types), np.float32)])
    # Protobuf puts messages together by joining their bytes.
    return sentencepiece_pieces(names, all_scores, all_types) + SETTINGS, stand_ins


def _to_hide(
    tokens: Sequence[bytes], id_of: Mapping[bytes, int], types: bytearray, everything: bytes
) -> Iterable[int]:
    """The tokens into which text must not be merged, and those that sentencepiece refuses.

    They become control pieces with a hidden name. Under its own name a control token "A" would
    match, because sentencepiece looks up single characters among control pieces too. It refuses
    texts that are empty, are there twice, have a NUL or are not UTF-8. `everything`: the tokens
    with spaces between them; a space ends an incomplete character, so this text is UTF-8 if all
    are. User-defined tokens were cut out before. In llama.cpp text may still be merged into them,
    and into unused tokens.
    """
    hide = set(of_types(types, (CONTROL, UNKNOWN, BYTE)))
    if len(id_of) < len(tokens):
        hide.update(i for i, text in enumerate(tokens) if id_of[text] != i)
    if b"\0" in everything or not _is_utf8(everything):
        hide.update(i for i, text in enumerate(tokens) if b"\0" in text or not _is_utf8(text))
    if b"" in id_of:
        hide.add(id_of[b""])
    return hide


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
