"""Text to token ids and back, exactly as llama.cpp does it.

Special tokens are cut out of the text first (`vocabulary`). A library merges the text between them:
sentencepiece if `tokenizer.ggml.model` is llama, `tokenizers` if it is gpt2 or gemma4. Only the one
that a file needs is imported.
"""

from __future__ import annotations

import codecs
import operator
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol, SupportsIndex

from lariat.errors import ModelError, quote
from lariat.formats.gguf import GGUFFile
from lariat.tokenizers.vocabulary import (
    BLANKS,
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    Vocabulary,
)

_MAX_PADDING = 128  # tokens at the end of a vocabulary that nobody uses

_SPECIAL_TYPES = (CONTROL, UNKNOWN, USER_DEFINED)

# A marked character is written as its code between two noncharacters of Unicode, which texts that
# are meant for others do not have.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_NO_MARKS = {ord(_OPEN): "\ufffd", ord(_CLOSE): "\ufffd"}
_MARKED = re.compile(f"{_OPEN}([0-9a-f]{{1,6}}){_CLOSE}")


class Merger(Protocol):
    """The part that differs between the types of tokenizers."""

    vocabulary: Vocabulary
    add_space_prefix: bool

    def merge(self, text: str) -> list[int]:
        """Ids of text without special tokens that begins a text or stands behind a special one."""

    def merge_behind(self, last_first: Iterable[int], text: str) -> tuple[int, list[int]]:
        """How many tokens text without special tokens replaces, and the ids that come instead.

        It continues the ordinary text of the tokens `last_first`, which come from the last one
        backwards. Those that both texts as one begin with are not replaced.
        """

    def may_give(self, token_id: int) -> bool:
        """Whether ordinary text may become this special token."""

    def text_of(self, token_id: int) -> bytes:
        """The bytes that a token adds to a text, maybe a part of a character; b"" for control
        tokens."""


class Tokenizer:
    """Turns text into token ids and back. Made by `from_gguf`; it never changes."""

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

        Raises `ModelError` for another type of tokenizer, `GGUFError` for metadata that is missing
        or does not fit together.
        """
        return cls(_merger(gguf))

    def __init__(self, merger: Merger) -> None:
        vocabulary = merger.vocabulary
        self.n_vocab = len(vocabulary)
        self.bos_id = vocabulary.bos_id
        self.eos_id = vocabulary.eos_id
        self.unk_id = vocabulary.unk_id
        self.add_bos = vocabulary.add_bos
        self.add_eos = vocabulary.add_eos
        self.add_space_prefix = merger.add_space_prefix
        self.eog_ids = vocabulary.eog_ids
        self._vocabulary = vocabulary
        self._merger = merger

    def encode(self, text: str, add_bos: bool = True, parse_special: bool = False) -> list[int]:
        """Ids of a text.

        add_bos: add the begin token in front and the end token behind, each only if the metadata
        asks for it. parse_special: control tokens that are written in the text (`<s>`) become those
        tokens; otherwise they are ordinary text. Raises ValueError if the text is not valid
        Unicode.
        """
        ids = self.encode_part(text, add_bos=add_bos, parse_special=parse_special)
        if add_bos and self.add_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        return ids

    def encode_part(
        self,
        text: str,
        *,
        add_bos: bool = True,
        parse_special: bool = False,
    ) -> list[int]:
        """Ids of the beginning of a text, which more may follow: as `encode`, without end token."""
        return self.encode_behind((), text, add_bos=add_bos, parse_special=parse_special)[1]

    def encode_behind(
        self,
        before: Sequence[int],
        text: str,
        *,
        add_bos: bool = True,
        parse_special: bool = False,
    ) -> tuple[int, list[int]]:
        """How many of the tokens `before` stay in front of a text, and the ids behind those.

        No end token is added, and the begin token only if nothing stands before. A text that
        continues ordinary text gets no blank in front (`add_space_prefix`).

        A text that is cut where its tokens end has the ids of the whole. With byte-level BPE the
        last word before may become another one by what follows: the blank at the end of "a " is a
        part of " b" in "a b". So its tokens are replaced, but only those that are not in the whole,
        and only if they are the ones that the text before has alone: others were chosen. Raises
        ValueError as `encode` does.
        """
        _check_text(text)
        n_kept = len(before)
        ids: list[int] = []
        if add_bos and not before and self.add_bos and self.bos_id is not None:
            ids.append(self.bos_id)
        if before and before[-1] in self._vocabulary.eat_blanks:
            text = text.lstrip(BLANKS)
        for part in self._vocabulary.split(text, parse_special):
            if isinstance(part, int):
                ids.append(part)
            elif ids or not self.is_continued(before):
                ids += self._merger.merge(part)
            else:
                n_replaced, ids = self._merger.merge_behind(self._ordinary_end(before), part)
                n_kept -= n_replaced
        return n_kept, ids

    def is_continued(self, before: Sequence[int]) -> bool:
        """Whether a text behind these tokens continues ordinary text."""
        return len(before) > 0 and self._is_ordinary(before, len(before) - 1)

    def _ordinary_end(self, ids: Sequence[int]) -> Iterator[int]:
        """The ordinary text at the end of `ids`, the last token first."""
        for at in range(len(ids) - 1, -1, -1):
            if not self._is_ordinary(ids, at):
                return
            yield ids[at]

    def _is_ordinary(self, ids: Sequence[int], at: int) -> bool:
        """Whether a token of a context is ordinary text, and neither special nor its beginning."""
        i = ids[at]
        if at == 0 and self.add_bos and i == self.bos_id:  # old files may not say what type it has
            return False
        return self._vocabulary.types[i] not in _SPECIAL_TYPES or self._merger.may_give(i)

    def mark(self, text: str, also: Collection[int] = ()) -> str:
        """Mark the special tokens in a text, so that `encode_marked` takes them for ordinary text.

        A user's words are marked before they are put into a text whose special tokens count. All
        control tokens are marked, and the user-defined tokens in `also`. Other user-defined tokens
        are found wherever they stand, as in `encode`. Raises ValueError if the text is not valid
        Unicode.
        """
        _check_text(text)
        text = text.translate(_NO_MARKS)
        starts = self._vocabulary.special_starts(text, also)
        if not starts:
            return text
        # Without its first character, no token is found.
        marked = (f"{_OPEN}{ord(c):x}{_CLOSE}" if i in starts else c for i, c in enumerate(text))
        return "".join(marked)

    def unmark(self, text: str) -> str:
        """The text without the marks of `mark`."""
        return _MARKED.sub(_unmarked, text)

    def encode_marked(
        self, text: str, known: Mapping[str, Sequence[int]] = MappingProxyType({})
    ) -> list[int]:
        """Ids of a text whose special tokens count, unless they were marked.

        No begin or end token is added. If the ordinary text between two special tokens is in
        `known`, it gets the ids there. Raises ValueError if the text is not valid Unicode.
        """
        _check_text(text)
        ids: list[int] = []
        for part in self._vocabulary.split(text, parse_special=True):
            if isinstance(part, int):
                ids.append(part)
            elif part in known:
                ids += known[part]
            else:
                ids += self._merger.merge(_MARKED.sub(_unmarked, part))
        return ids

    def ordinary_end(self, text: str) -> str:
        """The text behind the last special token that `encode_marked` finds."""
        parts = self._vocabulary.split(text, parse_special=True)
        return parts[-1] if parts and isinstance(parts[-1], str) else ""

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """The text of ids. Control tokens are invisible; bytes that are not UTF-8 become U+FFFD.

        The space that `add_space_prefix` puts in front is removed. Use `decoder()` for ids that
        continue a text: it keeps that space. Raises ValueError for an id outside the vocabulary.
        """
        is_many = isinstance(ids, Iterable) and getattr(ids, "ndim", 1) > 0  # NumPy's may be one
        if isinstance(ids, (str, bytes, bytearray, memoryview)) or not is_many:
            raise ValueError(f"the token ids are of type {type(ids).__name__}, expected a list")
        tokens = [self.check_id(i) for i in ids]
        text_of = self._merger.text_of
        data = b"".join([text_of(i) for i in tokens])
        if self.add_space_prefix and data.startswith(b" "):
            first = next(i for i in tokens if text_of(i))
            # No space is put before a special token.
            if self._vocabulary.types[first] in (NORMAL, BYTE):
                data = data[1:]
        return data.decode("utf-8", "replace")

    def decode_token(self, token_id: SupportsIndex) -> bytes:
        """The bytes that a token adds to a text, maybe a part of a character; b"" for control
        tokens."""
        return self._merger.text_of(self.check_id(token_id))

    def piece(self, token_id: SupportsIndex) -> str:
        """The token as the vocabulary spells it, such as `▁the`, `Ġthe`, `<0x0A>` or `</s>`."""
        return self._vocabulary.tokens[self.check_id(token_id)].decode("utf-8", "replace")

    def decoder(self, show: Collection[int] = ()) -> StreamDecoder:
        """A new decoder for ids that come one at a time. Of control tokens, which are invisible,
        those in `show` are written as the vocabulary spells them."""
        return StreamDecoder(self, show)

    def difference(self, other: Tokenizer) -> str:
        """Where the ids of two vocabularies do not mean the same tokens; "" if all do.

        One may have up to 128 more tokens at its end: models of one family pad their vocabularies
        differently.
        """
        if abs(other.n_vocab - self.n_vocab) > _MAX_PADDING:
            return f"its vocabulary has {other.n_vocab} tokens, and the model's {self.n_vocab}"
        both = zip(self._vocabulary.tokens, other._vocabulary.tokens, strict=False)
        for i, (mine, others) in enumerate(both):
            if mine != others:
                texts = [quote(text.decode("utf-8", "replace")) for text in (others, mine)]
                return f"its token {i} is {texts[0]}, and the model's {texts[1]}"
        return ""

    def check_id(self, token_id: SupportsIndex) -> int:
        """The id as an int. Raises ValueError if it is not one of the vocabulary."""
        try:
            i = operator.index(token_id)
        except TypeError:
            raise ValueError(f"token id {token_id!r} is not a whole number") from None
        if not 0 <= i < self.n_vocab:
            raise ValueError(
                f"token id {i} is out of range, the vocabulary has {self.n_vocab} tokens"
            )
        return i


def _check_text(text: str) -> None:
    if not isinstance(text, str):
        raise ValueError(f"the text is of type {type(text).__name__}, expected str")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text is not valid Unicode: a lone surrogate, "
            f"U+{ord(text[error.start]):04X}, stands at index {error.start}"
        ) from None


def _unmarked(match: re.Match[str]) -> str:
    code = int(match[1], 16)
    return "\ufffd" if code > 0x10FFFF or 0xD800 <= code < 0xE000 else chr(code)


class StreamDecoder:
    """Turns ids that come one at a time into text, in whole characters.

    All results together are the bytes of the ids, decoded with errors="replace".
    """

    def __init__(self, tokenizer: Tokenizer, show: Collection[int] = ()) -> None:
        """Use `Tokenizer.decoder`."""
        self._tokenizer = tokenizer
        self._shown = {i: tokenizer.piece(i).encode() for i in show}
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_id: SupportsIndex) -> str:
        """The characters that this token completes; "" while a character is incomplete."""
        data = self._tokenizer.decode_token(token_id)
        if not data and self._shown:
            data = self._shown.get(operator.index(token_id), b"")
        return self._utf8.decode(data)

    def flush(self) -> str:
        """U+FFFD for a character that is still incomplete, else "". The decoder is new again."""
        return self._utf8.decode(b"", final=True)


def _merger(gguf: GGUFFile) -> Merger:
    """The merger that `tokenizer.ggml.model` asks for."""
    model = gguf.get_str("tokenizer.ggml.model")
    if model == "llama":
        from lariat.tokenizers.sentencepiece import SentencePieceMerger

        return SentencePieceMerger(gguf)
    if model in ("gpt2", "gemma4"):
        from lariat.tokenizers.byte_level import ByteLevelMerger
        from lariat.tokenizers.pre_tokenizers import SPACED
        from lariat.tokenizers.spaced import SpacedMerger

        pre = gguf.get_str("tokenizer.ggml.pre", default="default")
        is_spaced = model == "gemma4" or pre in SPACED
        return SpacedMerger(gguf) if is_spaced else ByteLevelMerger(gguf)
    raise ModelError(
        f"{gguf.path}: tokenizer {quote(model)} is not supported, only 'llama', 'gpt2' and "
        f"'gemma4' are"
    )
