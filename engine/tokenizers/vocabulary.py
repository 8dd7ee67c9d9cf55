"""The tokens of a file, their types, and the special ones among them.

This holds for every type of tokenizer: which tokens begin and end a text, which tokens end
generation, and how special tokens are cut out of a text before the rest is merged. The rules are
those of llama.cpp, including the many texts by which it recognizes tokens.

Sources: https://github.com/ggml-org/llama.cpp (src/llama-vocab.cpp),
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (the keys).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from lariat.errors import GGUFError, quote
from lariat.formats.gguf import GGUFFile, StringArray
from lariat.formats.string_array import RawStrings
from numpy.typing import NDArray

MAX_TOKENS = 1 << 19  # twice the largest in use; bounds the time that a hostile file can take

# Token types of GGUF.
UNDEFINED, NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(7)

# Texts that end generation in the models that use them, whatever type the file gives the token.
_END_TEXTS = (
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> "
    "<|endoftext|> </s> <|eom_id|> <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> "
    "<eos> <turn|> <|tool_response> <｜end▁of▁sentence｜> [e~["
)

# Marks of fill-in-the-middle: the middle of their metadata key, and the texts to look for if the
# file has no such key. A token that is found becomes a control token. Those in _ENDING_MARKS also
# end generation.
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

# Marks of the harmony format that are always shown, and always found in text.
_SHOWN_TEXTS = (b"<|channel|>", b"<|message|>", b"<|start|>", b"<|constrain|>")

BYTE_NAMES = [b"<0x%02X>" % byte for byte in range(256)]  # of byte tokens
_BYTE_TOKEN = re.compile(rb"<0x([0-9A-Fa-f]{2})>\Z")

BLANKS = " \t\n\v\f\r"  # isspace() of C


@dataclass(frozen=True)
class _Special:
    """A token that is looked for in a text before the rest is merged."""

    text: str
    id: int
    is_user_defined: bool  # found even if special tokens are not asked for
    eats_blanks: bool  # the blanks behind it are dropped


@dataclass(frozen=True)
class Defaults:
    """The values that a type of tokenizer has where the metadata says nothing."""

    bos: int | None
    eos: int | None
    unk: int | None
    add_bos: bool


class IdsByText(Mapping[bytes, int]):
    """The id of each text of a vocabulary. Texts are kept decoded, as `tokenizers` takes them: a
    second table of 262k texts would take longer than reading the file."""

    def __init__(self, ids: dict[str, int], broken: Set[str]) -> None:
        """ids: bytes that are not UTF-8 are lone surrogates. `broken`: texts with such bytes."""
        self._ids = ids
        self._broken = broken

    def __getitem__(self, text: bytes) -> int:
        return self._ids[text.decode("utf-8", "surrogateescape")]

    def __iter__(self) -> Iterator[bytes]:
        return (text.encode("utf-8", "surrogateescape") for text in self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def of_utf8(self) -> dict[str, int]:
        """The ids of the texts that are UTF-8, for the caller to change."""
        ids = self._ids.copy()
        for text in self._broken:
            del ids[text]
        return ids


class Vocabulary:
    """Tokens, types and special tokens of a file. Never changes.

    tokens [n_vocab]: as the file spells them. types [n_vocab]: token types of the file; control for
    tokens with the text of one. id_of: a text that is there twice belongs to its last token, as in
    llama.cpp. eog_ids: tokens that end generation, eos among them. eat_blanks: special tokens that
    drop the blanks behind them.

    Raises GGUFError for metadata that is missing or does not fit together.
    """

    def __init__(self, gguf: GGUFFile, defaults: Defaults) -> None:
        strings = _read_tokens(gguf)
        tokens = self.tokens = RawStrings(strings)
        n_vocab = len(tokens)
        self.types = _read_types(gguf, n_vocab)
        self.bos_id = _read_id(gguf, "bos", n_vocab, defaults.bos)
        self.eos_id = _read_id(gguf, "eos", n_vocab, defaults.eos)
        self.unk_id = _read_id(gguf, "unknown", n_vocab, defaults.unk)
        self.add_bos = gguf.get_bool("tokenizer.ggml.add_bos_token", default=defaults.add_bos)
        self.add_eos = gguf.get_bool("tokenizer.ggml.add_eos_token", default=False)
        for name, wanted, token in (
            ("bos", self.add_bos, self.bos_id),
            ("eos", self.add_eos, self.eos_id),
        ):
            if wanted and token is None:
                raise GGUFError(
                    f"{gguf.path}: tokenizer.ggml.add_{name}_token is true, "
                    f"but the vocabulary of {n_vocab} tokens has no {name} token"
                )
        self.id_of = IdsByText(*strings.ids())
        self.eog_ids = _mark_control(gguf, self.id_of, self.types, self.eos_id)
        specials = _special_tokens(gguf, tokens, self.id_of, self.types)
        self._specials = _by_beginning(specials)
        self._user_defined = _by_beginning(s for s in specials if s.is_user_defined)
        self.eat_blanks = frozenset(s.id for s in specials if s.eats_blanks)

    def __len__(self) -> int:
        return len(self.tokens)

    def split(self, text: str, parse_special: bool) -> Sequence[str | int]:
        """Cut a text at its special tokens: their ids, and the texts between them, never empty.

        User-defined tokens are always found, control tokens only with `parse_special`.
        """
        return _split(text, self._specials if parse_special else self._user_defined)

    def special_starts(self, text: str, also: Collection[int] = ()) -> set[int]:
        """The places where special tokens begin in a text, overlapping ones included.

        Of the user-defined tokens only those in `also` are looked for.
        """
        starts = set()
        for beginning, group in self._specials.items():
            if beginning not in text:
                continue
            for _, special in group:
                if special.is_user_defined and special.id not in also:
                    continue
                at = text.find(special.text)
                while at >= 0:
                    starts.add(at)
                    at = text.find(special.text, at + 1)
        return starts


def _read_tokens(gguf: GGUFFile) -> StringArray:
    key = "tokenizer.ggml.tokens"
    tokens = gguf.metadata.get(key)
    if tokens is None:
        raise GGUFError(f"{gguf.path}: metadata key {key} is missing, expected the vocabulary")
    if not isinstance(tokens, StringArray):
        raise GGUFError(f"{gguf.path}: {key} is not an array of strings")
    if not 1 <= len(tokens) <= MAX_TOKENS:
        raise GGUFError(f"{gguf.path}: {key} has {len(tokens)} tokens, expected 1 to {MAX_TOKENS}")
    return tokens


def read_scores(gguf: GGUFFile, n_vocab: int) -> NDArray[np.float32]:
    """Scores, float32 [n_vocab]; 0 if the file has none. GGUFError for NaN."""
    values = _read_numbers(gguf, "scores", n_vocab)
    if values is None:
        return np.zeros(n_vocab, np.float32)
    with np.errstate(over="ignore"):
        # Plus zero makes 0.0 of -0.0: sentencepiece orders the two, llama.cpp ties them.
        scores: NDArray[np.float32] = values.astype(np.float32) + np.float32(0)
    bad = np.flatnonzero(np.isnan(scores))
    if bad.size:
        raise GGUFError(f"{gguf.path}: the score of token {bad[0]} is not a number")
    return scores


def _read_types(gguf: GGUFFile, n_vocab: int) -> bytearray:
    """The type of each token; NORMAL if the file has none."""
    values = _read_numbers(gguf, "token_type", n_vocab)
    if values is None:
        return bytearray([NORMAL]) * n_vocab
    bad = np.flatnonzero(~np.isin(values, range(BYTE + 1)))
    if bad.size:
        raise GGUFError(
            f"{gguf.path}: token {bad[0]} has type {values[bad[0]]}, expected 0 to {BYTE}"
        )
    return bytearray(values.astype(np.uint8).tobytes())


def _read_numbers(gguf: GGUFFile, name: str, n_vocab: int) -> np.ndarray | None:
    """An array of one number a token, None if the file has none."""
    key = f"tokenizer.ggml.{name}"
    values = gguf.metadata.get(key)
    if values is None:
        return None
    if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype.kind not in "iuf":
        raise GGUFError(f"{gguf.path}: {key} is not an array of numbers")
    if len(values) != n_vocab:
        raise GGUFError(
            f"{gguf.path}: {key} has {len(values)} values, but the vocabulary has {n_vocab} tokens"
        )
    return values


def _read_id(gguf: GGUFFile, name: str, n_vocab: int, default: int | None) -> int | None:
    """A token id of the metadata, or the default if it lies within the vocabulary."""
    key = f"tokenizer.ggml.{name}_token_id"
    if key in gguf.metadata:
        return gguf.get_int(key, minimum=0, maximum=n_vocab - 1)
    return default if default is not None and default < n_vocab else None


def _mark_control(
    gguf: GGUFFile, id_of: Mapping[bytes, int], types: bytearray, eos_id: int | None
) -> frozenset[int]:
    """The ids that end generation. Tokens with the text of a control token become control tokens.

    types: [n_vocab], changed in place.
    """
    found = {eos_id, *(_read_id(gguf, name, len(types), None) for name in ("eot", "eom"))}
    for text in _END_TEXTS.encode().split():
        token = id_of.get(text)
        if token is not None:
            found.add(token)
            types[token] = CONTROL
    for mark, texts in _MARK_TEXTS.items():
        token = None
        for name in (mark, _OLD_MARK_KEYS.get(mark, mark)):
            token = _read_id(gguf, name, len(types), token)
        if token is None:
            named = [id_of[text] for text in texts.encode().split() if text in id_of]
            if not named:
                continue
            token = min(named)
            types[token] = CONTROL
        if mark in _ENDING_MARKS:
            found.add(token)
    for text in _SHOWN_TEXTS:
        if text in id_of:
            types[id_of[text]] = USER_DEFINED
    for text, token_type in _mid_texts(id_of, found):
        found.discard(id_of[text])
        types[id_of[text]] = token_type
    return frozenset(token for token in found if token is not None)


def _mid_texts(id_of: Mapping[bytes, int], found: set[int | None]) -> list[tuple[bytes, int]]:
    """End texts that do not end generation in this vocabulary, and the types that they get.

    Other texts tell them apart: in the harmony format <|end|> closes one message of several.
    """

    def ends(*texts: bytes) -> bool:
        return any(text in id_of and id_of[text] in found for text in texts)

    mid = []
    calls = ends(b"<|call|>", b"<|calls|>")
    if ends(b"<|end|>") and calls and ends(b"<|return|>", b"<|flush|>"):
        mid.append((b"<|end|>", USER_DEFINED))
    if ends(b"</s>") and ends(b"<|tool_response>"):
        mid.append((b"</s>", NORMAL))
    return mid


def of_types(types: bytearray, wanted: tuple[int, ...]) -> list[int]:
    """The ids of the tokens of some types."""
    found: list[int] = np.flatnonzero(np.isin(np.frombuffer(types, np.uint8), wanted)).tolist()
    return found


def byte_of(path: Path, token_id: int, spelled: bytes) -> bytes:
    """The byte of a byte token. GGUFError for one that is not spelled `<0x0A>`."""
    match = _BYTE_TOKEN.match(spelled)
    if match is None:
        text = quote(spelled.decode("utf-8", "replace"))
        raise GGUFError(f"{path}: byte token {token_id} is {text}, expected the form '<0x0A>'")
    return bytes.fromhex(match[1].decode())


def decode_or_empty(raw: bytes) -> str:
    """The text of a token, "" if it is not UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return ""


def _special_tokens(
    gguf: GGUFFile, tokens: Sequence[bytes], id_of: Mapping[bytes, int], types: bytearray
) -> list[_Special]:
    """Tokens to look for in a text, in the order in which they are cut out."""
    # Phi-3 is the only model whose special tokens drop the blanks behind them.
    name = gguf.metadata.get("general.name")
    is_phi3 = isinstance(name, str) and any(mark in name.lower() for mark in ("phi-3", "phi3"))
    specials = []
    for i in of_types(types, (CONTROL, UNKNOWN, USER_DEFINED)):
        if id_of[tokens[i]] == i:
            text = decode_or_empty(tokens[i])
            if text:
                eats = is_phi3 and text not in ("<unk>", "<s>", "<|endoftext|>")
                specials.append(_Special(text, i, types[i] == USER_DEFINED, eats))
    specials.sort(key=lambda special: -len(tokens[special.id]))  # longest first, then by id
    return specials


def _by_beginning(specials: Iterable[_Special]) -> dict[str, list[tuple[int, _Special]]]:
    """Special tokens and their ranks, by their first three characters.

    A vocabulary may have thousands of them. Most begin alike (`<unused7>`), and few beginnings
    occur in a text.
    """
    groups: dict[str, list[tuple[int, _Special]]] = {}
    for rank, special in enumerate(specials):
        groups.setdefault(special.text[:3], []).append((rank, special))
    return groups


def _split(
    text: str, specials: Mapping[str, Sequence[tuple[int, _Special]]]
) -> Sequence[str | int]:
    """Cut a text at its special tokens: their ids, and the texts between them, never empty.

    The longest token is cut out first, from left to right. The next token is looked for only in
    the rest. (One regular expression would cut out the leftmost token first.)
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
                    if text[end] not in BLANKS:
                        break
                    end += 1
                taken[start:end] = b"\1" * (end - start)
                places.append((start, end, special.id))
            else:
                # All matches that start up to `clash`, or in this run of taken characters, would
                # clash too.
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
