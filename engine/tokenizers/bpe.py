"""Byte pair encoding: what its two types have in common, byte-level (gpt2) and spaced (gemma4).

The `tokenizers` library merges pairs in the order of the file's merges. The ids are those of
llama.cpp, with one difference on purpose: text cannot be merged into a control or unknown token,
nor into a byte token of a byte-level vocabulary.

llama.cpp allows more than `tokenizers`: a merge may give a text that is not a token, and a byte may
have no token. Here such texts become tokens past the vocabulary, which are replaced afterwards.

Sources: https://github.com/huggingface/tokenizers (tokenizers/src/models/bpe),
https://github.com/ggml-org/llama.cpp (src/llama-vocab.cpp).
"""

from __future__ import annotations

import contextlib
import gc
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence

from lariat.errors import GGUFError
from lariat.formats.gguf import GGUFFile, StringArray
from lariat.tokenizers.short_texts import ShortTexts
from lariat.tokenizers.vocabulary import (
    BYTE,
    Defaults,
    Vocabulary,
    byte_of,
    decode_or_empty,
    of_types,
)
from tokenizers import Tokenizer as Pipeline
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import PreTokenizer
from tokenizers.pre_tokenizers import Sequence as Steps

_MAX_MERGES = 1 << 20  # more than twice the largest number in use; bounds time and memory

# `tokenizers` needs some hundred bytes of memory for each byte of text, so it gets a long text in
# parts, which are cut at seams.
_PART = 1 << 20  # characters
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # as "surrogateescape" decodes it


class PairMerger(ABC):
    """Text without special tokens to ids, and tokens to bytes.

    hidden_types  of tokens into which no text is merged
    alphabet      texts of tokens that begin all merging
    """

    add_space_prefix = False
    hidden_types: tuple[int, ...]
    alphabet: Sequence[str]

    def __init__(
        self,
        gguf: GGUFFile,
        defaults: Defaults,
        steps: Sequence[PreTokenizer],
        seam: str,
        **model: bool,
    ) -> None:
        """`steps` cut a text into words. `seam` is an expression of ASCII: where it matches, a word
        begins whatever stands around. `model`: options of `tokenizers`. GGUFError for bad metadata.
        """
        merges = _merge_strings(gguf)  # checked first, because reading the vocabulary takes longer
        self.vocabulary = Vocabulary(gguf, defaults)
        tokens, types = self.vocabulary.tokens, self.vocabulary.types
        self._texts = {i: byte_of(gguf.path, i, tokens[i]) for i in of_types(types, (BYTE,))}
        self._seam, self._seam_bytes = re.compile(seam), re.compile(seam.encode())
        self._merges, self._options, self._steps = merges, model, Steps(list(steps))
        self._whole: Pipeline | None = None  # made when a text needs it
        self._making = threading.Lock()
        self._short = None
        if not any(model.values()):
            self._short = ShortTexts(
                self._steps, merges, self.vocabulary, self.hidden_types, self.spell
            )

    @abstractmethod
    def spell(self, text: str) -> Iterable[str]:
        """The tokens that stand for a text of the merges that is not a token, as llama.cpp chooses
        them. Those that the vocabulary lacks are left out."""

    @abstractmethod
    def read(self, token: bytes, token_type: int) -> bytes:
        """The bytes of a token in decoded text, no byte token."""

    def text_of(self, token_id: int) -> bytes:
        """The bytes that a token adds to a text."""
        text = self._texts.get(token_id)
        if text is None:
            text = self._texts[token_id] = self.read(
                self.vocabulary.tokens[token_id], self.vocabulary.types[token_id]
            )
        return text

    def merge(self, text: str) -> list[int]:
        """Ids of text without special tokens."""
        if self._whole is None and self._short is not None:
            short = self._short.merge(text)
            if short is not None:
                return short
        pipeline = self._pipeline()
        ids: list[int] = []
        for part in parts(text, self._seam):
            ids += pipeline.encode(part, add_special_tokens=False).ids
        if not self._stand_ins:
            return ids
        stand_ins = self._stand_ins
        return [kept for i in ids for kept in stand_ins.get(i, (i,))]

    def merge_behind(self, last_first: Iterable[int], text: str) -> tuple[int, list[int]]:
        """Ids of text that continues that of some tokens, and how many of these it replaces.

        The last words before may become others by what follows: "12" and "345" is "123" and "45",
        and the blank behind a word belongs to the next one. So these words are merged twice, alone
        and with the text. Where the results part, the tokens are replaced. If they are not those of
        the words alone (a model or a user chose others), they stay, and the text is merged alone.
        """
        tail, before = self._last_words(last_first)
        alone, both = self.merge(before), self.merge(before + text)
        n_same = _common_prefix(alone, both)
        n_replaced = len(alone) - n_same
        if alone[n_same:] == tail[len(tail) - n_replaced :]:
            return n_replaced, both[n_same:]
        return 0, self.merge(text)

    def _last_words(self, last_first: Iterable[int]) -> tuple[list[int], str]:
        """The last tokens, from a place where a word surely begins, and their text.

        last_first: tokens of ordinary text, the last one first. If the text is not UTF-8, the
        tokens begin behind the last bytes that are not.
        """
        tail: list[int] = []
        texts: list[bytes] = []
        for i in last_first:
            text = self.text_of(i)
            if texts and self._seam_bytes.match(text[-1:] + texts[-1][:1], 1):
                break
            tail.append(i)
            texts.append(text)
        tail.reverse()
        texts.reverse()
        data = b"".join(texts)
        decoded = data.decode("utf-8", "surrogateescape")
        bad = [match.end() for match in _NOT_UTF8.finditer(decoded)]
        if not bad:
            return tail, decoded
        n_bad = len(decoded[: bad[-1]].encode("utf-8", "surrogateescape"))
        start = 0
        while n_bad > 0:
            n_bad -= len(texts[start])
            start += 1
        return tail[start:], b"".join(texts[start:]).decode()

    def may_give(self, token_id: int) -> bool:
        """Whether text may become this token."""
        return False

    def _pipeline(self) -> Pipeline:
        with self._making:
            if self._whole is None:
                with _no_collection():
                    whole = Pipeline(self._model(self._merges, self._options))
                whole.pre_tokenizer = self._steps
                self._whole = whole
            return self._whole

    def _model(self, merges: StringArray, options: Mapping[str, bool]) -> BPE:
        """The merging model. Sets `_stand_ins`: the tokens that replace ids past the vocabulary."""
        pairs = merges.pairs()
        tokens = self.vocabulary.tokens
        ids = self.vocabulary.id_of.of_utf8()
        hidden = set()
        for i in of_types(self.vocabulary.types, self.hidden_types):
            text = decode_or_empty(tokens[i])
            if ids.get(text) == i:
                hidden.add(text)
                del ids[text]
        self._stand_ins: dict[int, tuple[int, ...]] = {}
        # `tokenizers` fails on a merge that gives or uses a text that is not a token. In some
        # versions it even panics if the text is longer than every token.
        of_merges = merges.longest - 1  # without the space between the two texts
        as_long = (i for i, token in enumerate(tokens) if len(token) >= of_merges)
        is_long_enough = any(ids.get(decode_or_empty(tokens[i])) == i for i in as_long)
        if is_long_enough and all(text in ids for text in self.alphabet):
            # `tokenizers` raises plain Exceptions.
            with contextlib.suppress(Exception):
                return BPE(ids, pairs, **options)
        return self._model_with_stand_ins(ids, hidden, pairs, options)

    def _model_with_stand_ins(
        self,
        ids: dict[str, int],
        hidden: set[str],
        merges: Sequence[tuple[str, str]],
        options: Mapping[str, bool],
    ) -> BPE:
        """The model of a vocabulary in which some texts of the merges are not tokens.

        Such a text gets a stand-in, an id past the vocabulary. If one is left at the end, it is
        replaced by the tokens that spell it. Merges that give a hidden text are left out.
        """
        pairs = [(a, b) for a, b in merges if a + b not in hidden]
        missing = [text for text in self.alphabet if text not in ids]
        for left, right in pairs:
            missing += [text for text in (left, right, left + right) if text not in ids]
        everything = dict(ids)
        for i, text in enumerate(dict.fromkeys(missing), start=len(self.vocabulary)):
            everything[text] = i
            self._stand_ins[i] = tuple(ids[one] for one in self.spell(text) if one in ids)
        return BPE(everything, pairs, **options)


def parts(text: str, seam: re.Pattern[str]) -> Iterator[str]:
    """A text in parts that are cut at seams, if it has more than 2^20 characters."""
    start = 0
    while len(text) - start > _PART:
        found = seam.search(text, start + _PART)
        if found is None:
            break
        yield text[start : found.start()]
        start = found.start()
    yield text[start:]


def _common_prefix(a: list[int], b: list[int]) -> int:
    """The number of ids that both begin with."""
    differ = (n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(differ, min(len(a), len(b)))


def _merge_strings(gguf: GGUFFile) -> StringArray:
    key = "tokenizer.ggml.merges"
    merges = gguf.metadata.get(key)
    if merges is None:
        raise GGUFError(f"{gguf.path}: metadata key {key} is missing, expected the merges")
    if not isinstance(merges, StringArray):
        raise GGUFError(f"{gguf.path}: {key} is not an array of strings")
    if len(merges) > _MAX_MERGES:
        raise GGUFError(f"{gguf.path}: {key} has {len(merges)} merges, expected at most 2^20")
    return merges


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Turn off Python's search for cycles, which would visit all new pairs again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
