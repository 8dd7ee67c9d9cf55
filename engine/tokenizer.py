"""Text to token ids and back, for vocabularies of `tokenizer.ggml.model` = llama.

The vocabulary of the GGUF file becomes a sentencepiece model, and sentencepiece merges. Around it
stands what llama.cpp does before it merges: special tokens are cut out of the text first, and a
space goes in front of text that follows one. The ids are llama.cpp's, with one difference that is
meant: text cannot be merged into a control, unknown or byte token. llama.cpp lets it where the
vocabulary happens to hold the steps in between (`<s` and `>` make `<s>`); sentencepiece does not.

Sources: https://github.com/google/sentencepiece (src/bpe_model.cc, src/model_interface.cc),
https://github.com/ggml-org/llama.cpp (src/llama-vocab.cpp),
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (the keys).
"""

from __future__ import annotations

import codecs
import math
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

from engine.errors import GGUFError, ModelError
from engine.gguf import GGUFFile, StringArray, quote

if TYPE_CHECKING:
    from pathlib import Path

_pb2: Any = sentencepiece_model_pb2  # generated at import, so mypy cannot see into it

_MAX_VOCAB = 1 << 19  # twice the largest in use; bounds the time a hostile file can take

# Token types of GGUF. Only the first four mean something to text; see `_visible_bytes`.
_UNDEFINED, _NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(7)

_SPACE = "\u2581"  # how pieces write a space
_BYTE_PIECE = re.compile(rb"<0x([0-9A-Fa-f]{2})>\Z")
_BLANKS = " \t\n\v\f\r"  # isspace() of C

# Texts that end generation in the models that use them, whatever type the file gives the token.
_END_TEXTS = (
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> "
    "<|endoftext|> </s> <|eom_id|> <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> "
    "<eos> <turn|> <|tool_response> <｜end▁of▁sentence｜> [e~["
)

# Marks of fill-in-the-middle, by the middle of their metadata key: texts to look for when the file
# has no such key. What is found is a control token. Those in _ENDING_MARKS end generation too.
_MARK_TEXTS = {
    "fim_pre": "<|fim_prefix|> <fim-prefix> <fim_prefix> <｜fim▁begin｜> <PRE> ▁<PRE> "
    "<|code_prefix|> <|prefix|>",
    "fim_suf": "<|fim_suffix|> <fim-suffix> <fim_suffix> <｜fim▁hole｜> <SUF> ▁<SUF> "
    "<|code_suffix|> <|suffix|>",
    "fim_mid": "<|fim_middle|> <fim-middle> <fim_middle> <｜fim▁end｜> <MID> ▁<MID> "
    "<|code_middle|> <|middle|>",
    "fim_pad": "<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]",
    "fim_rep": "<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame>",
    "fim_sep": "<|file_sep|>",
}
_OLD_MARK_KEYS = {"fim_pre": "prefix", "fim_suf": "suffix", "fim_mid": "middle"}
_ENDING_MARKS = ("fim_pad", "fim_rep", "fim_sep")


@dataclass(frozen=True)
class _Special:
    """A token that is looked for in the text before sentencepiece sees it."""

    text: str
    id: int
    forgeable: bool  # user-defined: found even where special tokens are not asked for
    eats_blanks: bool  # the blanks after it are dropped


class Tokenizer:
    """A vocabulary, and the two directions through it. Made by `from_gguf`; never changes."""

    n_vocab: int
    bos_id: int | None
    eos_id: int | None
    unk_id: int | None
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    eog_ids: frozenset[int]  # tokens that end generation, eos among them

    @classmethod
    def from_gguf(cls, gguf: GGUFFile) -> Tokenizer:
        """The tokenizer of a file; its tensors are not looked at.

        Raises `ModelError` for another kind of tokenizer, `GGUFError` for metadata that is
        missing or does not fit together.
        """
        return cls(gguf)

    def __init__(self, gguf: GGUFFile) -> None:
        """As `from_gguf`."""
        model = gguf.get_str("tokenizer.ggml.model")
        if model != "llama":
            raise ModelError(
                f"{gguf.path}: tokenizer {quote(model)} is not supported, only 'llama' is"
            )
        raw = _read_tokens(gguf)
        n_vocab = len(raw)
        scores = _read_numbers(gguf, "scores", n_vocab, default=0)
        kinds = _read_numbers(gguf, "token_type", n_vocab, default=_NORMAL)
        for i, score in enumerate(scores):
            if math.isnan(score):
                raise GGUFError(f"{gguf.path}: the score of token {i} is not a number")

        self.n_vocab = n_vocab
        self.bos_id = _read_id(gguf, "bos", n_vocab, default=1)
        self.eos_id = _read_id(gguf, "eos", n_vocab, default=2)
        self.unk_id = _read_id(gguf, "unknown", n_vocab, default=0)
        self.add_bos = gguf.get_bool("tokenizer.ggml.add_bos_token", default=True)
        self.add_eos = gguf.get_bool("tokenizer.ggml.add_eos_token", default=False)
        self.add_space_prefix = gguf.get_bool("tokenizer.ggml.add_space_prefix", default=True)
        for name, wanted, token in (
            ("bos", self.add_bos, self.bos_id),
            ("eos", self.add_eos, self.eos_id),
        ):
            if wanted and token is None:
                raise GGUFError(
                    f"{gguf.path}: tokenizer.ggml.add_{name}_token is true, "
                    f"but the vocabulary of {n_vocab} tokens has no {name} token"
                )

        # A text that stands twice belongs to its last token, as in llama.cpp's table.
        id_of = {text: i for i, text in enumerate(raw)}
        self.eog_ids = _mark_control(gguf, id_of, kinds, self.eos_id)
        self._raw = raw
        self._visible = [
            _visible_bytes(gguf.path, i, text, kind)
            for i, (text, kind) in enumerate(zip(raw, kinds, strict=True))
        ]
        self._is_plain = [kind in (_NORMAL, _BYTE) for kind in kinds]
        specials = _special_tokens(gguf, raw, id_of, kinds)
        self._specials = _by_beginning(specials)
        self._user_defined = _by_beginning(s for s in specials if s.forgeable)
        proto, self._stand_ins = _sentencepiece_model(raw, id_of, scores, kinds)
        try:
            self._spm = SentencePieceProcessor(model_proto=proto)
        except (RuntimeError, OSError, ValueError) as error:
            raise GGUFError(
                f"{gguf.path}: sentencepiece refuses the vocabulary: {error}"
            ) from error

    def encode(self, text: str, add_bos: bool = True, parse_special: bool = False) -> list[int]:
        """Ids of a text.

        add_bos: put the begin token in front and the end token behind, each only if the metadata
        asks for it. parse_special: control tokens written in the text (`<s>`) become those
        tokens; otherwise they are ordinary text. ValueError if the text is not valid Unicode.
        """
        if not isinstance(text, str):
            raise ValueError(f"the text is of type {type(text).__name__}, expected str")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the text is not valid Unicode: a lone surrogate, "
                f"U+{ord(text[error.start]):04X}, stands at index {error.start}"
            ) from None
        ids: list[int] = []
        if add_bos and self.add_bos and self.bos_id is not None:
            ids.append(self.bos_id)
        prefix = " " if self.add_space_prefix else ""  # at the start and after special tokens
        for part in _split(text, self._specials if parse_special else self._user_defined):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self._merge(prefix + part)
        if add_bos and self.add_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        return ids

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """The text of ids. Control tokens are invisible; bytes that are not UTF-8 become U+FFFD.

        The space that `add_space_prefix` put in front is taken away again. Generated ids that
        continue a text lose nothing in `decoder()`, which keeps that space. ValueError for an id
        outside the vocabulary.
        """
        tokens = [self._check_id(i) for i in ids]
        data = b"".join([self._visible[i] for i in tokens])
        if self.add_space_prefix and data.startswith(b" "):
            first = next(i for i in tokens if self._visible[i])
            if self._is_plain[first]:  # a special token has no space put before it
                data = data[1:]
        return data.decode("utf-8", "replace")

    def decode_token(self, token_id: SupportsIndex) -> bytes:
        """What a token adds to the text: maybe a part of a character, b"" for control tokens."""
        return self._visible[self._check_id(token_id)]

    def piece(self, token_id: SupportsIndex) -> str:
        """The token as the vocabulary writes it, such as `▁the`, `<0x0A>` or `</s>`."""
        return self._raw[self._check_id(token_id)].decode("utf-8", "replace")

    def decoder(self) -> StreamDecoder:
        """A fresh decoder for ids that come one at a time."""
        return StreamDecoder(self)

    def _merge(self, text: str) -> list[int]:
        """Ids of text without special tokens."""
        ids: list[int] = self._spm.encode(text, out_type=int)
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
            elif not was_missing and self.unk_id is not None:
                kept.append(self.unk_id)
            was_missing = stand_in is None
        return kept

    def _check_id(self, token_id: SupportsIndex) -> int:
        try:
            i = operator.index(token_id)
        except TypeError:
            raise ValueError(f"token id {token_id!r} is not a whole number") from None
        if not 0 <= i < self.n_vocab:
            raise ValueError(
                f"token id {i} is out of range, the vocabulary has {self.n_vocab} tokens"
            )
        return i


class StreamDecoder:
    """Text of ids that come one at a time, in whole characters.

    What all calls return together is the bytes of the ids, decoded with errors="replace".
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_id: SupportsIndex) -> str:
        """The characters that this token completes; "" while one waits for more bytes."""
        return self._utf8.decode(self._tokenizer.decode_token(token_id))

    def flush(self) -> str:
        """U+FFFD for a character left incomplete, else "". The decoder may be used again."""
        return self._utf8.decode(b"", final=True)


def _read_tokens(gguf: GGUFFile) -> list[bytes]:
    key = "tokenizer.ggml.tokens"
    tokens = gguf.metadata.get(key)
    if tokens is None:
        raise GGUFError(f"{gguf.path}: metadata key {key} is missing, expected the vocabulary")
    if not isinstance(tokens, StringArray):
        raise GGUFError(f"{gguf.path}: {key} is not an array of strings")
    if not 1 <= len(tokens) <= _MAX_VOCAB:
        raise GGUFError(f"{gguf.path}: {key} has {len(tokens)} tokens, expected 1 to {_MAX_VOCAB}")
    return list(tokens.iter_raw())


def _read_numbers(gguf: GGUFFile, name: str, n_vocab: int, default: int) -> list[Any]:
    """Scores (float32) or token types, one a token; `default` for each if the file has none."""
    key = f"tokenizer.ggml.{name}"
    values = gguf.metadata.get(key)
    if values is None:
        return [default] * n_vocab
    if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype.kind not in "iuf":
        raise GGUFError(f"{gguf.path}: {key} is not an array of numbers")
    if len(values) != n_vocab:
        raise GGUFError(
            f"{gguf.path}: {key} has {len(values)} values, but the vocabulary has {n_vocab} tokens"
        )
    if name == "scores":
        with np.errstate(over="ignore"):
            # Plus zero makes 0.0 of -0.0: sentencepiece orders the two, llama.cpp ties them.
            return list((values.astype(np.float32) + np.float32(0)).tolist())
    bad = np.flatnonzero(~np.isin(values, range(_BYTE + 1)))
    if bad.size:
        raise GGUFError(
            f"{gguf.path}: token {bad[0]} has type {values[bad[0]]}, expected 0 to {_BYTE}"
        )
    return list(values.astype(int).tolist())


def _read_id(gguf: GGUFFile, name: str, n_vocab: int, default: int | None) -> int | None:
    """A token id of the metadata; the default only where it lies within the vocabulary."""
    key = f"tokenizer.ggml.{name}_token_id"
    if key in gguf.metadata:
        return gguf.get_int(key, minimum=0, maximum=n_vocab - 1)
    return default if default is not None and default < n_vocab else None


def _mark_control(
    gguf: GGUFFile, id_of: Mapping[bytes, int], kinds: list[int], eos_id: int | None
) -> frozenset[int]:
    """The ids that end generation. Makes tokens control tokens where their text says they are.

    kinds: [n_vocab], changed in place.
    """
    found = {eos_id, *(_read_id(gguf, name, len(kinds), None) for name in ("eot", "eom"))}
    for text in _END_TEXTS.encode().split():
        token = id_of.get(text)
        if token is not None:
            found.add(token)
            kinds[token] = _CONTROL
    for mark, texts in _MARK_TEXTS.items():
        token = None
        for name in (mark, _OLD_MARK_KEYS.get(mark, mark)):
            token = _read_id(gguf, name, len(kinds), token)
        if token is None:
            named = [id_of[text] for text in texts.encode().split() if text in id_of]
            if not named:
                continue
            token = min(named)
            kinds[token] = _CONTROL
        if mark in _ENDING_MARKS:
            found.add(token)
    return frozenset(token for token in found if token is not None)


def _visible_bytes(path: Path, token_id: int, raw: bytes, kind: int) -> bytes:
    """What a token shows in decoded text. Unused and undefined tokens show nothing."""
    if kind == _NORMAL:
        return raw.replace(_SPACE.encode(), b" ")
    if kind == _USER_DEFINED:
        return raw
    if kind == _BYTE:
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
        if kind not in (_CONTROL, _UNKNOWN, _BYTE) and id_of[text] == i:
            name = _decode_or_empty(text)
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
            if own is not None and kinds[own] in (_CONTROL, _UNKNOWN):
                own = None
            stand_ins[len(proto.pieces)] = own
            add(piece=f"<0x{byte:02X}>", type=byte_type)
    return proto.SerializeToString(), stand_ins


def _decode_or_empty(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return ""


def _special_tokens(
    gguf: GGUFFile, raw: Sequence[bytes], id_of: Mapping[bytes, int], kinds: Sequence[int]
) -> list[_Special]:
    """Tokens to look for in text, in the order in which they take their part of it."""
    # The only model whose special tokens swallow blanks, known by its name alone.
    name = gguf.metadata.get("general.name")
    is_phi3 = isinstance(name, str) and any(mark in name.lower() for mark in ("phi-3", "phi3"))
    specials = []
    for i, kind in enumerate(kinds):
        if kind in (_CONTROL, _UNKNOWN, _USER_DEFINED) and id_of[raw[i]] == i:
            text = _decode_or_empty(raw[i])
            if text:
                eats = is_phi3 and text not in ("<unk>", "<s>", "<|endoftext|>")
                specials.append(_Special(text, i, kind == _USER_DEFINED, eats))
    specials.sort(key=lambda special: -len(raw[special.id]))  # longest first, then by id
    return specials


def _by_beginning(specials: Iterable[_Special]) -> dict[str, list[tuple[int, _Special]]]:
    """Special tokens and their ranks by their first three characters.

    A vocabulary may have thousands, most of which begin alike (`<unused7>`), and few beginnings
    occur in a text.
    """
    groups: dict[str, list[tuple[int, _Special]]] = {}
    for rank, special in enumerate(specials):
        groups.setdefault(special.text[:3], []).append((rank, special))
    return groups


def _split(
    text: str, specials: Mapping[str, Sequence[tuple[int, _Special]]]
) -> Sequence[str | int]:
    """Text cut at its special tokens: their ids, and the text between them, never empty.

    The longest token takes its places first, from left to right; the next one looks only at what
    is left. (Not the leftmost token first, so one regular expression could not do it.)
    """
    present = [
        ranked
        for beginning, group in specials.items()
        if beginning in text
        for ranked in group
        if ranked[1].text in text
    ]
    if not present:
        return [text] if text else []
    present.sort(key=operator.itemgetter(0))
    taken = bytearray(len(text))  # 1 for each character that belongs to a special token
    places: list[tuple[int, int, int]] = []  # start, end, id
    for _, special in present:
        start = text.find(special.text)
        while start >= 0:
            end = start + len(special.text)
            clash = taken.rfind(1, start, end)
            if clash < 0:
                while special.eats_blanks and end < len(text) and not taken[end]:
                    if text[end] not in _BLANKS:
                        break
                    end += 1
                taken[start:end] = b"\1" * (end - start)
                places.append((start, end, special.id))
            else:
                # Every match that starts up to `clash` would clash too, and so would all within
                # this run of taken characters.
                end = taken.find(0, clash)
                if end < 0:
                    break
            start = text.find(special.text, end)
    parts: list[str | int] = []
    done = 0
    for start, end, token in sorted(places):
        if done < start:
            parts.append(text[done:start])
        parts.append(token)
        done = end
    if done < len(text):
        parts.append(text[done:])
    return parts
