"""Byte pair encoding of short texts, without the tables of `tokenizers`.

Building those takes most of the time that a small model needs to start. A prompt of a few words
needs some hundred of the merges, so they are looked up by the strings that the file has. The ids
are those of `bpe`, whose words these are too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable

from lariat.formats.gguf import StringArray
from lariat.tokenizers.vocabulary import Vocabulary
from tokenizers.pre_tokenizers import PreTokenizer

MAX_TEXT = 1024
"""Characters of a text that is merged here. Building the tables pays for longer ones."""

_MAX_TOTAL = 4 * MAX_TEXT  # of all texts together
_MAX_WORD = 64  # a word of n characters takes n^2 steps


class ShortTexts:
    """Merges texts until they have become too many. For byte-level BPE that merges all words."""

    def __init__(
        self,
        steps: PreTokenizer,
        merges: StringArray,
        vocabulary: Vocabulary,
        hidden_types: Collection[int],
        spell: Callable[[str], Iterable[str]],
    ) -> None:
        """`steps` cut a text into words, in the characters of byte-level BPE. No text is merged
        into a token of the `hidden_types`. `spell` as in `PairMerger`."""
        self._steps = steps
        self._merges = merges
        self._vocabulary = vocabulary
        self._hidden_types = frozenset(hidden_types)
        self._spell = spell
        self._ranks: dict[bytes, int] = {}  # of the merges as the file spells them
        self._words: dict[str, list[int]] = {}
        self._n_left = _MAX_TOTAL

    def merge(self, text: str) -> list[int] | None:
        """Ids of a text without special tokens; None if the tables should be built for it."""
        if len(text) > min(MAX_TEXT, self._n_left):
            return None
        words = [word for word, _ in self._steps.pre_tokenize_str(text)]
        if any(len(word) > _MAX_WORD for word in words):
            return None
        self._n_left -= len(text)
        ids: list[int] = []
        for word in words:
            if word not in self._words:
                self._words[word] = self._merged(word)
            ids += self._words[word]
        return ids

    def _merged(self, word: str) -> list[int]:
        """Join the pair of lowest rank, the leftmost first, until there is none."""
        symbols = list(word)
        while len(symbols) > 1:
            pairs = itertools.pairwise(symbols)
            ranked = [(rank, i) for i, pair in enumerate(pairs) if (rank := self._rank(*pair)) >= 0]
            if not ranked:
                break
            _, i = min(ranked)
            symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
        ids: list[int] = []
        for symbol in symbols:
            token = self._token(symbol)
            if token is not None:
                ids.append(token)
            else:
                spelled = (self._token(one) for one in self._spell(symbol))
                ids += [one for one in spelled if one is not None]
        return ids

    def _rank(self, left: str, right: str) -> int:
        """The place of a pair among the merges, -1 if it is not merged."""
        if not self._ranks:
            # A merge that is there twice has its first place.
            merges = list(self._merges.iter_raw())
            self._ranks = dict(zip(reversed(merges), range(len(merges) - 1, -1, -1), strict=True))
        rank = self._ranks.get(f"{left} {right}".encode(), -1)
        return -1 if rank >= 0 and self._is_hidden(left + right) else rank

    def _token(self, text: str) -> int | None:
        token = self._vocabulary.id_of.get(text.encode())
        return None if token is None or self._is_hidden(text) else token

    def _is_hidden(self, text: str) -> bool:
        token = self._vocabulary.id_of.get(text.encode())
        return token is not None and self._vocabulary.types[token] in self._hidden_types
