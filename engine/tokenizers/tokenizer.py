"""Text to token ids and back, exactly as llama.cpp does it.

Special tokens are cut out of the text first (`vocabulary.py`); what stands between them is merged
by the library that knows how: sentencepiece for `tokenizer.ggml.model` = llama, `tokenizers` for
gpt2. Only the one that a file needs is imported.
"""

from __future__ import annotations

import codecs
import operator
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol, SupportsIndex

from lariat.errors import ModelError, quote
from lariat.formats.gguf import GGUFFile
from lariat.tokenizers.vocabulary import BYTE, NORMAL, Vocabulary

# Noncharacters, which no text has that is meant for others, around the code of a character.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_NO_MARKS = {ord(_OPEN): "\ufffd", ord(_CLOSE): "\ufffd"}
_MARKED = re.compile(f"{_OPEN}([0-9a-f]{{1,6}}){_CLOSE}")


class Merger(Protocol):
    """What differs between kinds of tokenizers."""

    vocabulary: Vocabulary
    add_space_prefix: bool

    def merge(self, text: str) -> list[int]:
        """Ids of text without special tokens."""

    def visible(self, token_id: int) -> bytes:
        """What a token adds to the text: maybe a part of a character, b"" for control tokens."""


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

        add_bos: put the begin token in front and the end token behind, each only if the metadata
        asks for it. parse_special: control tokens written in the text (`<s>`) become those
        tokens; otherwise they are ordinary text. ValueError if the text is not valid Unicode.
        """
        _check_text(text)
        ids: list[int] = []
        if add_bos and self.add_bos and self.bos_id is not None:
            ids.append(self.bos_id)
        for part in self._vocabulary.split(text, parse_special):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self._merger.merge(part)
        if add_bos and self.add_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        return ids

    def mark(self, text: str, also: Collection[int] = ()) -> str:
        """Text whose special tokens are ordinary text to `encode_marked`.

        Somebody's words go through this before they stand in a text whose special tokens count.
        Control tokens lose their power, and user-defined ones in `also`; the others are found
        wherever they stand, as in `encode`. ValueError if the text is not valid Unicode.
        """
        _check_text(text)
        text = text.translate(_NO_MARKS)
        starts = self._vocabulary.special_starts(text, also)
        if not starts:
            return text
        # Another first character, so that no token is found; Unicode keeps these for such use.
        marked = (f"{_OPEN}{ord(c):x}{_CLOSE}" if i in starts else c for i, c in enumerate(text))
        return "".join(marked)

    def encode_marked(
        self, text: str, known: Mapping[str, Sequence[int]] = MappingProxyType({})
    ) -> list[int]:
        """Ids of a text whose special tokens count, but for those in what was marked.

        It gets no begin and end tokens. Ordinary text that reaches from one special token to the
        next and is in `known` gets those ids. ValueError if the text is not valid Unicode.
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
        """What stands behind the last special token that counts to `encode_marked`."""
        parts = self._vocabulary.split(text, parse_special=True)
        return parts[-1] if parts and isinstance(parts[-1], str) else ""

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """The text of ids. Control tokens are invisible; bytes that are not UTF-8 become U+FFFD.

        The space that `add_space_prefix` put in front is taken away again. Generated ids that
        continue a text lose nothing in `decoder()`, which keeps that space. ValueError for an id
        outside the vocabulary.
        """
        tokens = [self.check_id(i) for i in ids]
        visible = self._merger.visible
        data = b"".join([visible(i) for i in tokens])
        if self.add_space_prefix and data.startswith(b" "):
            first = next(i for i in tokens if visible(i))
            # A special token has no space put before it.
            if self._vocabulary.kinds[first] in (NORMAL, BYTE):
                data = data[1:]
        return data.decode("utf-8", "replace")

    def decode_token(self, token_id: SupportsIndex) -> bytes:
        """What a token adds to the text: maybe a part of a character, b"" for control tokens."""
        return self._merger.visible(self.check_id(token_id))

    def piece(self, token_id: SupportsIndex) -> str:
        """The token as the vocabulary writes it, such as `▁the`, `Ġthe`, `<0x0A>` or `</s>`."""
        return self._vocabulary.tokens[self.check_id(token_id)].decode("utf-8", "replace")

    def decoder(self) -> StreamDecoder:
        """A fresh decoder for ids that come one at a time."""
        return StreamDecoder(self)

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


def _merger(gguf: GGUFFile) -> Merger:
    """The merger for `tokenizer.ggml.model`."""
    model = gguf.get_str("tokenizer.ggml.model")
    if model == "llama":
        from lariat.tokenizers.sentencepiece import SentencePieceMerger

        return SentencePieceMerger(gguf)
    if model == "gpt2":
        from lariat.tokenizers.bpe import ByteLevelMerger

        return ByteLevelMerger(gguf)
    raise ModelError(
        f"{gguf.path}: tokenizer {quote(model)} is not supported, only 'llama' and 'gpt2' are"
    )
