"""Merging for vocabularies of `tokenizer.ggml.model` = gpt2: byte-level BPE.

Regular expressions cut text into words; `tokenizer.ggml.pre` names them. Each byte of a word is
written as a printable character. Pairs are merged in the order of the file's merges. The
`tokenizers` library does all three. The ids are those of llama.cpp, with one difference on purpose:
text cannot be merged into a control, unknown or byte token.

llama.cpp allows more than `tokenizers`: a merge may give a text that is not a token, and a byte may
have no token. Here such texts become tokens past the vocabulary, which are replaced afterwards.

Sources: https://github.com/huggingface/tokenizers (tokenizers/src/models/bpe),
https://github.com/ggml-org/llama.cpp (src/llama-vocab.cpp and src/unicode.cpp; the expressions
below are equal to its hand-written splitters).
"""

from __future__ import annotations

import contextlib
import gc
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from lariat.errors import GGUFError, ModelError, quote
from lariat.formats.gguf import GGUFFile, StringArray
from lariat.tokenizers.vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    Defaults,
    Vocabulary,
    byte_of,
    decode_or_empty,
    of_types,
)
from tokenizers import Regex
from tokenizers import Tokenizer as Pipeline
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

_MAX_MERGES = 1 << 20  # more than twice the largest number in use; bounds time and memory

# `tokenizers` needs some hundred bytes of memory for each byte of text, so it gets a long text in
# parts. They are cut at a space or newline behind an ASCII letter or digit, where every expression
# begins a word: none goes on from there into a blank, and none looks back.
_PART = 1 << 20  # characters
_SEAM = re.compile(r"(?<=[A-Za-z0-9])[ \n]")
_SEAM_BYTES = re.compile(_SEAM.pattern.encode())
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # as "surrogateescape" decodes it

# ---- cutting text into words ----

_CONTRACTION = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _like_llama3(digits: str) -> str:
    letters = r"[^\r\n\p{L}\p{N}]?\p{L}+"
    return rf"{_CONTRACTION}|{letters}|{digits}|{_SIGNS}|{_BLANKS}"


def _by_case(suffix: str, digits: str) -> str:
    """Words begin at a capital. Letters outside ASCII count as both cases, as in llama.cpp."""
    upper, lower = r"[\p{L}&&[^a-z]]", r"[\p{L}&&[^A-Z]]"
    words = "|".join(
        rf"[^\r\n\p{{L}}\p{{N}}]?{upper}{n_upper}{lower}{n_lower}{suffix}"
        for n_upper, n_lower in (("*", "+"), ("+", "*"))
    )
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_BLANKS}"


# Letters of scripts that have capitals, as DeepSeek's expression lists them.
_CASED_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293"
    "\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c"
    "\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5"
    "\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59"
    "\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc"
    "\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107"
    "\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee"
    "\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e"
    "\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f"
    "\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
)
# Most other scripts, without the blanks in these ranges.
_UNCASED = "[[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]&&[^\\s]]+"


class _Scheme(NamedTuple):
    """Expressions that cut text into words, used one after the other."""

    expressions: tuple[str, ...]
    add_bos: bool = False
    ignore_merges: bool = False  # a word that is a token is not merged


def _named(names: str, scheme: _Scheme) -> dict[str, _Scheme]:
    return dict.fromkeys(names.split(), scheme)


_LLAMA3 = _like_llama3(r"\p{N}{1,3}")
_SCHEMES = {
    "default": _Scheme((r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "deepseek-coder": _Scheme((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _UNCASED, r"\p{N}")),
    "deepseek-llm": _Scheme(
        (
            r"[\r\n]",
            rf"\s?[{_CASED_LETTERS}]+",
            "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3001\u3002]+",
            r"\s+\z",
            _UNCASED,
            r"\p{N}+",
        )
    ),
    "deepseek-v3": _Scheme(
        (
            r"\p{N}{1,3}",
            "[\u4e00-\u9fa5\u3040-\u30ff]+",
            r"[!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_BLANKS}",
        )
    ),
    "tekken": _Scheme((_by_case("", r"\p{N}"),), add_bos=True, ignore_merges=True),
    **_named("dbrx smaug-bpe", _Scheme((_LLAMA3,))),
    **_named(
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2",
        _Scheme((_LLAMA3,), add_bos=True, ignore_merges=True),
    ),
    **_named("gpt-4o llama4", _Scheme((_by_case(f"{_CONTRACTION}?", r"\p{N}{1,3}"),))),
    **_named(
        "qwen2 deepseek-r1-qwen megrez kormo hunyuan stablelm2 solar-open",
        _Scheme((_like_llama3(r"\p{N}"),)),
    ),
    **_named(
        "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
        _Scheme((r"\p{N}", _GPT2)),
    ),
    **_named(
        "gpt-2 phi-2 mpt olmo jais trillion exaone4 gigachat a.x-4.0 mellum", _Scheme((_GPT2,))
    ),
}


def _scheme(gguf: GGUFFile) -> _Scheme:
    """The scheme that `tokenizer.ggml.pre` names; older files without the key get the default."""
    name = gguf.get_str("tokenizer.ggml.pre", default="default")
    if name not in _SCHEMES:
        raise ModelError(
            f"{gguf.path}: pre-tokenizer {quote(name)} is not supported, expected one of "
            f"{', '.join(sorted(_SCHEMES))}; if one of them fits, choose it with "
            f"--override-kv tokenizer.ggml.pre=str:NAME"
        )
    return _SCHEMES[name]


# ---- bytes as characters ----


def _characters() -> list[str]:
    """The character that stands for each byte.

    Printable bytes of Latin-1 stand for themselves, the others for 256 and up, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


_CHARACTERS = _characters()
_BYTES = {ord(character): byte for byte, character in enumerate(_CHARACTERS)}


class ByteLevelMerger:
    """Text without special tokens to ids, and tokens to bytes."""

    add_space_prefix = False

    def __init__(self, gguf: GGUFFile) -> None:
        """Raises ModelError for a pre-tokenizer that is unknown, GGUFError for bad metadata."""
        scheme = _scheme(gguf)
        merges = _merge_strings(gguf)  # checked first, because reading the vocabulary takes longer
        # Id 11 was the only special token of models like GPT-2 when files did not say.
        self.vocabulary = Vocabulary(gguf, Defaults(11, 11, None, scheme.add_bos))
        bytes_ids = of_types(self.vocabulary.types, (BYTE,))
        tokens = self.vocabulary.tokens
        self._texts = {i: byte_of(gguf.path, i, tokens[i]) for i in bytes_ids}
        with _no_collection():
            model, self._stand_ins = _model(self.vocabulary, merges, scheme.ignore_merges)
        self._pipeline = Pipeline(model)
        splits = [Split(Regex(expression), "isolated") for expression in scheme.expressions]
        by_bytes = ByteLevel(add_prefix_space=False, use_regex=False)
        self._pipeline.pre_tokenizer = Sequence([*splits, by_bytes])

    def text_of(self, token_id: int) -> bytes:
        """The bytes that a token adds to a text.

        A character that stands for no byte is kept as it is (llama.cpp writes a marker).
        """
        text = self._texts.get(token_id)
        if text is None:
            text = self._texts[token_id] = _text_of(
                self.vocabulary.tokens[token_id], self.vocabulary.types[token_id]
            )
        return text

    def merge(self, text: str) -> list[int]:
        """Ids of text without special tokens."""
        ids: list[int] = []
        for part in _parts(text):
            ids += self._pipeline.encode(part, add_special_tokens=False).ids
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
            if texts and _SEAM_BYTES.match(text[-1:] + texts[-1][:1], 1):
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


def _common_prefix(a: list[int], b: list[int]) -> int:
    """The number of ids that both begin with."""
    differ = (n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(differ, min(len(a), len(b)))


def _parts(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > _PART:
        seam = _SEAM.search(text, start + _PART)
        if seam is None:
            break
        yield text[start : seam.start()]
        start = seam.start()
    yield text[start:]


def _text_of(token: bytes, token_type: int) -> bytes:
    """The bytes of a token in decoded text. Unused and undefined tokens have none."""
    if token_type == USER_DEFINED:
        return token
    if token_type != NORMAL:
        return b""
    text = bytearray()
    for character in token.decode("utf-8", "replace"):
        byte = _BYTES.get(ord(character))
        text += character.encode() if byte is None else bytes((byte,))
    return bytes(text)


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


def _model(
    vocabulary: Vocabulary, merges: StringArray, ignore_merges: bool
) -> tuple[BPE, Mapping[int, tuple[int, ...]]]:
    """The merging model, and the tokens that replace its ids past the vocabulary."""
    pairs = merges.pairs()
    tokens = vocabulary.tokens
    try:
        texts = list(map(bytes.decode, tokens))
    except UnicodeDecodeError:
        texts = [decode_or_empty(token) for token in tokens]
    ids = dict(zip(texts, range(len(texts)), strict=True))
    hidden = set()
    for i in of_types(vocabulary.types, (CONTROL, UNKNOWN, BYTE)):
        text = texts[i]
        if ids.get(text) == i:
            hidden.add(text)
            del ids[text]
    # `tokenizers` fails on a merge that gives or uses a text that is not a token. In some versions
    # it even panics if the text is longer than every token.
    longest = max(map(len, map(tokens.__getitem__, ids.values())), default=0)
    of_merges = merges.longest - 1  # without the space between the two texts
    if of_merges <= longest and all(character in ids for character in _CHARACTERS):
        # `tokenizers` raises plain Exceptions.
        with contextlib.suppress(Exception):
            return BPE(ids, pairs, ignore_merges=ignore_merges), {}
    return _model_with_stand_ins(ids, len(vocabulary), hidden, pairs, ignore_merges)


def _model_with_stand_ins(
    ids: dict[str, int],
    n_vocab: int,
    hidden: set[str],
    merges: list[tuple[str, str]],
    ignore_merges: bool,
) -> tuple[BPE, Mapping[int, tuple[int, ...]]]:
    """The model of a vocabulary in which some texts of the merges are not tokens.

    Such a text gets a stand-in, an id past the vocabulary. If one is left at the end, it is
    replaced by the tokens of its ASCII characters, as in llama.cpp. Merges that give a hidden text
    are left out.
    """
    pairs = [(a, b) for a, b in merges if a + b not in hidden]
    missing = [c for c in _CHARACTERS if c not in ids]
    for left, right in pairs:
        missing += [text for text in (left, right, left + right) if text not in ids]
    stand_ins = {}
    everything = dict(ids)
    for i, text in enumerate(dict.fromkeys(missing), start=n_vocab):
        everything[text] = i
        stand_ins[i] = tuple(ids[c] for c in text if c.isascii() and c in ids)
    return BPE(everything, pairs, ignore_merges=ignore_merges), stand_ins
