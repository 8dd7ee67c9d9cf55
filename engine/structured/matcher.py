"""A grammar in the tokens of a vocabulary, and the texts that follow it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
from lariat._masks import forbid
from lariat.errors import LariatError
from lariat.structured import library
from lariat.structured.grammar import Grammar
from lariat.tokenizers.tokenizer import Tokenizer

_N_KEPT = 32  # grammars that a model keeps ready


class Grammars:
    """Grammars for one vocabulary. Any thread may use it.

    Nothing is computed until the first grammar comes; the vocabulary is then read once, which takes
    up to a second.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._vocabulary: Vocabulary | None = None
        self._ready: OrderedDict[str, VocabularyGrammar] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, grammar: Grammar) -> VocabularyGrammar:
        """A grammar in the tokens of the vocabulary.

        Raises ValueError for a grammar that names a token which is not there.
        """
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = Vocabulary(self._tokenizer)
            found = self._ready.get(grammar.text)
            if found is None:
                found = VocabularyGrammar(self._vocabulary, grammar)
                self._ready[grammar.text] = found
            self._ready.move_to_end(grammar.text)
            if len(self._ready) > _N_KEPT:
                self._ready.popitem(last=False)
            return found


class VocabularyGrammar:
    """A grammar in the tokens of a vocabulary. Use `Grammars.of`."""

    def __init__(self, vocabulary: Vocabulary, grammar: Grammar) -> None:
        matcher = library.load().LLMatcher
        made = library.deeply(
            lambda: matcher(vocabulary.tree, grammar.text, log_level=0, limits=library.limits())
        )
        tried = made.deep_copy()
        if not tried.is_error():
            tried.compute_bitmask()
        if tried.is_error():
            raise ValueError(f"the grammar cannot be used: {library.sentence(tried.get_error())}")
        self._at_start, self._vocabulary = made, vocabulary

    def start(self) -> Matcher:
        """Begin a text."""
        return Matcher(self._at_start.deep_copy(), self._vocabulary)


class Matcher:
    """How far the text of one request has followed its grammar.

    After an error every call raises LariatError again, so no text goes on without its grammar.
    """

    def __init__(self, matcher: Any, vocabulary: Vocabulary) -> None:
        """Use `VocabularyGrammar.start`."""
        self._matcher, self._vocabulary = matcher, vocabulary
        self._mask = np.zeros(_n_words(vocabulary.n_tokens + 1), np.uint32)
        self._address = self._mask.ctypes.data

    def mask(self, logits: np.ndarray) -> None:
        """Set the logits of tokens that may not come to -inf; float32 [n_vocab], in place.

        Ends of generation may come where the text may end.
        """
        mask, n = self._mask, self._vocabulary.n_tokens
        self._matcher.unsafe_compute_mask_ptr(self._address, mask.nbytes)
        self._check()  # an error leaves a mask that allows the end
        forbid(logits[:n], mask[: _n_words(n)])
        logits[n:] = -np.inf  # rows that stand for no token

    def accept(self, token_id: int) -> None:
        """Take the token that came; not one that ends generation."""
        self._matcher.consume_token(token_id)
        self._check()

    def forced(self) -> list[int]:
        """The tokens that must come next, as the text that they write is tokenized."""
        tokens: list[int] = self._matcher.compute_ff_tokens()
        self._check()
        return tokens

    @property
    def is_done(self) -> bool:
        """Whether the text is complete, and nothing may follow."""
        self._check()
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise LariatError(library.sentence(self._matcher.get_error()))


class Vocabulary:
    """A vocabulary as the library takes it.

    A token without a text of its own gets a name that begins with 0xFF, which no text has: grammars
    may name it, and nothing else brings it. So does a byte token whose text an ordinary token has
    too (a newline of Gemma is two tokens): models write the ordinary one, and the library would
    know the last one alone. One more token stands behind all others: the end, for models that have
    none.

    n_tokens  of the tokenizer
    tree      the tokens as the library has them
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.n_tokens = tokenizer.n_vocab
        pieces = [tokenizer.piece(i) for i in range(tokenizer.n_vocab)]
        texts = [
            b"" if i in tokenizer.eog_ids else tokenizer.decode_token(i)
            for i in range(tokenizer.n_vocab)
        ]
        owner: dict[bytes, int] = {}
        for i, text in enumerate(texts):
            if text not in owner or _is_byte(pieces[owner[text]]):
                owner[text] = i
        tokens = [
            text if text and owner[text] == i else b"\xff" + piece.encode()
            for i, (text, piece) in enumerate(zip(texts, pieces, strict=True))
        ]
        tokens.append(b"\xff<|lariat end|>")
        ends = sorted(tokenizer.eog_ids) or [self.n_tokens]
        of_twins = {i: owner[text] for i, text in enumerate(texts) if text and owner[text] != i}
        guidance = library.load()
        encoder = guidance.TokenizerWrapper(_Encoder(tokenizer, tokens, ends[0], of_twins))
        self.tree = guidance.LLTokenizer(encoder, n_vocab=len(tokens), eos_token=ends)


class _Encoder:
    """The vocabulary and its rules of merging. The names are the library's."""

    def __init__(
        self, tokenizer: Tokenizer, tokens: list[bytes], end: int, of_twins: Mapping[int, int]
    ) -> None:
        self.tokens = tokens
        self.eos_token_id, self.bos_token_id = end, tokenizer.bos_id
        self.special_token_ids = [i for i, text in enumerate(tokens) if text[:1] == b"\xff"]
        self._tokenizer, self._of_twins = tokenizer, of_twins
        # Behind ordinary text no blank is put in front of a text.
        self._before = tokenizer.encode("a", add_bos=False)[-1:] * tokenizer.add_space_prefix

    def __call__(self, text: bytes) -> list[int]:
        """The tokens of a text that continues another one."""
        said = text.decode("utf-8", "replace")
        _, ids = self._tokenizer.encode_behind(self._before, said, add_bos=False)
        return [self._of_twins.get(i, i) for i in ids]


def _is_byte(piece: str) -> bool:
    """Whether a token is spelled as a byte token, which may have the text of an ordinary one."""
    return len(piece) == 6 and piece.startswith("<0x")


def _n_words(n_tokens: int) -> int:
    """Words of a mask, of 32 bits each."""
    return (n_tokens + 31) // 32
