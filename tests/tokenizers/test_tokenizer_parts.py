"""Texts in parts: those that are cut where a token ends have the ids of the whole.

SentencePiece puts a blank in front of a text, and in front of nothing else. With byte-level BPE the
words depend on the text before.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lariat import DEMO_MODEL
from lariat.formats.gguf import GGUFFile
from lariat.tokenizers.tokenizer import Tokenizer

from tests.support.model_files import write_gguf
from tests.support.real_models import SMOLLM2, needs_smollm2
from tests.support.vocabularies import (
    BASE,
    BYTES,
    CONTROL,
    NORMAL,
    USER_DEFINED,
    Make,
    maker,
)

JUDGED = json.loads((Path(__file__).parents[1] / "data" / "bpe_llama_cpp.json").read_text())


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return maker(tmp_path)


def of_file(path: Path | str) -> Tokenizer:
    with GGUFFile(path) as file:
        return Tokenizer.from_gguf(file)


@pytest.fixture(scope="module")
def demo() -> Tokenizer:
    return of_file(DEMO_MODEL)


@pytest.fixture(scope="module")
def smollm2() -> Tokenizer:
    return of_file(SMOLLM2)


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """By pre-tokenizer, a vocabulary of byte-level BPE."""
    metadata = {
        f"tokenizer.ggml.{key}": value
        for key, value in {
            "model": "gpt2",
            "tokens": JUDGED["tokens"],
            "token_type": JUDGED["types"],
            "merges": JUDGED["merges"],
        }.items()
    }
    path = write_gguf(tmp_path_factory.mktemp("every") / "v.gguf", metadata)
    tokenizers = {}
    for pre in JUDGED["ids"]:
        with GGUFFile(path, {"tokenizer.ggml.pre": pre}) as file:
            tokenizers[pre] = Tokenizer.from_gguf(file)
    return tokenizers


def boundaries(tokenizer: Tokenizer, text: str, ids: list[int]) -> Iterator[tuple[int, int]]:
    """Where tokens of `ids` end in the text: how many tokens, and how many bytes.

    Ends within a character are left out. A blank that the tokenizer has put in front is none of
    the text's, so a token of it alone ends nowhere.
    """
    data, at, last = text.encode(), 0, 0
    for n, i in enumerate(ids, start=1):
        spelled = tokenizer.decode_token(i) or tokenizer.piece(i).encode()
        if n == 1 and tokenizer.add_bos:
            continue
        is_text = tokenizer.is_continued([i])
        if is_text and tokenizer.add_space_prefix and not tokenizer.is_continued(ids[: n - 1]):
            assert spelled.startswith(b" "), (text, n)
            spelled = spelled[1:]
        assert data[at:].startswith(spelled), (text, n)
        at += len(spelled)
        if at > last and (at == len(data) or data[at] & 0xC0 != 0x80):
            yield n, at
            last = at
    assert at == len(data)


def behind(tokenizer: Tokenizer, before: list[int], text: str, special: bool = False) -> list[int]:
    """All ids of a text and those before it, as a context would have them."""
    n_kept, ids = tokenizer.encode_behind(before, text, parse_special=special)
    together = [*before[:n_kept], *ids]
    if n_kept < len(before):
        assert together[: len(before)] != before, "as many tokens as can stay do"
    return together


def check_parts(
    tokenizer: Tokenizer, text: str, rng: random.Random, *, replaces: bool, special: bool
) -> tuple[int, int]:
    """Tokenize a text in parts, and compare.

    `replaces`: whether a part may replace tokens before it. Returns the number of parts, and how
    many of them did.
    """
    whole = tokenizer.encode_part(text, parse_special=special)
    data, done, ids = text.encode(), 0, tokenizer.encode_part("")
    n_parts = n_replaced = 0
    for n, at in boundaries(tokenizer, text, whole):
        if rng.random() < 0.5 and at < len(data):
            continue
        before, ids = ids, behind(tokenizer, ids, data[done:at].decode(), special)
        assert ids == tokenizer.encode_part(data[:at].decode(), parse_special=special), text
        if not replaces:
            assert ids == whole[:n], (text, data[done:at])
        n_replaced += ids[: len(before)] != before
        done, n_parts = at, n_parts + 1
    assert ids == whole or not text, text
    return n_parts, n_replaced


def texts(pieces: list[str]) -> st.SearchStrategy[str]:
    """Texts of pieces, blanks, and any characters but the mark that stands for a blank."""
    odd = st.characters(exclude_categories=["Cs"], exclude_characters="\u2581")
    blanks = st.sampled_from(
        [" ", "  ", "   ", "\n", " \n", "\n\n ", "\t", "'", "!'s", "'re", "12"]
    )
    word = st.one_of(st.sampled_from(pieces), blanks, st.text(odd, max_size=3))
    return st.lists(word, max_size=12).map("".join)


@functools.cache
def spelled(tokenizer: Tokenizer) -> list[str]:
    """Texts of the tokens, control tokens too."""
    found = []
    for i in range(tokenizer.n_vocab):
        text = tokenizer.decode_token(i) or tokenizer.piece(i).encode()
        try:
            found.append(text.decode().replace("\u2581", " "))
        except UnicodeDecodeError:
            continue
    return found


@settings(max_examples=120, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32), special=st.booleans())
def test_sentencepiece_of_the_demo_model(
    demo: Tokenizer, data: st.DataObject, seed: int, special: bool
) -> None:
    text = data.draw(texts(spelled(demo)))
    check_parts(demo, text, random.Random(seed), replaces=False, special=special)


@pytest.mark.parametrize("seed", range(30))
def test_sentencepiece_of_random_vocabularies(make: Make, seed: int) -> None:
    rng = random.Random(seed)
    letters = rng.choice(["ab", "abé", "ab \u2581", "a\n😀 ", "ab<s>"])
    pieces = sorted({"".join(rng.choices(letters, k=rng.randint(1, 5))) for _ in range(40)})
    pieces = ["\u2581", *(p.replace(" ", "\u2581") for p in pieces)]
    vocab = [*BASE, *BYTES]
    vocab += [(p, rng.choice([0.0, -1.0, -2.0]), NORMAL) for p in dict.fromkeys(pieces)]
    vocab += [("<tool>", 0.0, USER_DEFINED), ("[X]", 0.0, CONTROL)]
    tokenizer = make(vocab, add_space_prefix=rng.random() < 0.8)
    words = [*letters.replace("\u2581", ""), " ", "<tool>", "[X]", "<s>"]
    n_parts = 0
    for _ in range(20):
        text = "".join(rng.choices(words, k=rng.choice([1, 5, 30])))
        special = rng.random() < 0.5
        n_parts += check_parts(tokenizer, text, rng, replaces=False, special=special)[0]
    assert n_parts > 40


@pytest.mark.parametrize("pre", JUDGED["ids"])
def test_byte_level_of_every_pre_tokenizer(every: dict[str, Tokenizer], pre: str) -> None:
    tokenizer, rng = every[pre], random.Random(pre)
    words = [w for w in spelled(tokenizer) if w]
    together = list(JUDGED["texts"])
    for _ in range(30):
        odd = [rng.choice(["12345 6789", "!'s", " \n x", "'RE", "a  ", "\r\n\n"]) for _ in range(5)]
        together.append("".join(rng.sample([*rng.choices(words, k=20), *odd], 25)))
    counts = [
        check_parts(tokenizer, text, rng, replaces=True, special=rng.random() < 0.5)
        for text in together
    ]
    n_parts, n_replaced = map(sum, zip(*counts, strict=True))
    assert n_parts > 300
    assert n_replaced > 0


@needs_smollm2
@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32), special=st.booleans())
def test_byte_level_of_smollm2(
    smollm2: Tokenizer, data: st.DataObject, seed: int, special: bool
) -> None:
    text = data.draw(texts(spelled(smollm2)))
    ids = smollm2.encode(text)
    assume(smollm2.decode(ids) == text)  # some bytes, of rare characters, have no token
    check_parts(smollm2, text, random.Random(seed), replaces=True, special=special)


def test_a_word_that_began_before_goes_on(every: dict[str, Tokenizer]) -> None:
    """Numbers are cut into threes from their beginning, and 's is a word only behind a word."""
    tokenizer = every["llama-bpe"]
    for text in ("so 1234567", "it'll do", "a \n\n  b", "a" * 40):
        whole = tokenizer.encode_part(text)
        for n in range(len(text)):
            assert behind(tokenizer, tokenizer.encode_part(text[:n]), text[n:]) == whole, n


def test_the_blank_comes_where_a_text_begins_and_behind_special_tokens(make: Make) -> None:
    blank, a, tool = 259, 260, 261
    extra = [("\u2581", -9.0, NORMAL), ("a", 0.0, NORMAL), ("<tool>", 0.0, USER_DEFINED)]
    tokenizer = make([*BASE, *BYTES, *extra])
    assert tokenizer.encode_part("a") == [1, blank, a]
    assert tokenizer.encode_part("a", add_bos=False) == [blank, a]
    assert tokenizer.encode_behind([1], "a") == (1, [blank, a])
    assert tokenizer.encode_behind([1, blank, a], "a") == (3, [a])
    assert tokenizer.encode_behind([a], "a<tool>a") == (1, [a, tool, blank, a])
    assert tokenizer.encode_behind([a, tool], "a") == (2, [blank, a])
    assert tokenizer.encode_behind([a], " a") == (1, [blank, a])
    assert tokenizer.encode_behind([a], "</s>a", parse_special=True) == (1, [2, blank, a])
    assert tokenizer.encode_behind([a], "") == (1, [])
    assert tokenizer.is_continued([1, a])
    assert not tokenizer.is_continued([a, tool])
    assert not tokenizer.is_continued([])


def test_missing_bytes_are_ordinary_text(make: Make) -> None:
    """Where they become the unknown token, no blank comes behind it."""
    extra = [("\u2581", -9.0, NORMAL), ("a", 0.0, NORMAL)]
    some_bytes = make([*BASE, *extra])
    assert some_bytes.encode_part("aé", add_bos=False) == [3, 4, 0]
    assert some_bytes.encode_behind([3, 4, 0], "a") == (3, [4])
    all_bytes = make([*BASE, *BYTES, *extra])
    assert all_bytes.encode_behind([0], "a") == (1, [259, 260])


def test_special_tokens_that_drop_blanks_do_so_across_parts(make: Make) -> None:
    vocab = [*BASE, *BYTES, ("<|end|>", 0.0, CONTROL)]
    tokenizer = make(vocab, general_name="Phi-3 mini", add_space_prefix=False)
    first = tokenizer.encode_part("<|end|>", parse_special=True)
    whole = tokenizer.encode_part("<|end|> \n x", parse_special=True)
    assert behind(tokenizer, first, " \n x") == whole


@pytest.mark.parametrize("before", [(), (260,)])
def test_an_end_token_stands_behind_whole_texts_only(make: Make, before: tuple[int, ...]) -> None:
    extra: list[Any] = [("\u2581", -9.0, NORMAL), ("a", 0.0, NORMAL)]
    tokenizer = make([*BASE, *BYTES, *extra], add_eos_token=True)
    assert tokenizer.encode("a") == [1, 259, 260, 2]
    assert tokenizer.encode("a", add_bos=False) == [259, 260]
    assert 2 not in tokenizer.encode_behind(before, "a")[1]


def test_only_tokens_that_the_text_before_has_alone_are_replaced(
    every: dict[str, Tokenizer],
) -> None:
    """Others were chosen, by a model or a user, and stay."""
    tokenizer = every["gpt-2"]
    e, n = (tokenizer.encode(c)[0] for c in "en")
    en = tokenizer.encode("en")
    assert len(en) == 1
    assert tokenizer.encode_behind(en, "d") == (0, tokenizer.encode("end"))
    assert tokenizer.encode_behind([e, n], "d") == (2, tokenizer.encode("d"))
    # Those that were chosen further back do not matter.
    chosen_before = [e, n, *tokenizer.encode("!"), *tokenizer.encode("do")]
    assert tokenizer.encode_behind(chosen_before, "n") == (3, tokenizer.encode("don"))
    # Special tokens begin a text anew.
    tool = tokenizer.encode("<tool>")
    assert len(tool) == 1
    assert tokenizer.encode_behind([*en, *tool], "d") == (2, tokenizer.encode("d"))
    assert tokenizer.encode_behind(en, "<tool>d") == (1, [*tool, *tokenizer.encode("d")])


def test_bytes_before_that_are_no_utf8_begin_a_text(every: dict[str, Tokenizer]) -> None:
    tokenizer = every["gpt-2"]
    first, *rest = (t for t in range(tokenizer.n_vocab) if tokenizer.decode_token(t) == b"\xe2")
    assert not rest
    space = tokenizer.encode(" ")
    for before in ([first], [*space, first], [first] * 50):
        assert tokenizer.encode_behind(before, "the") == (len(before), tokenizer.encode("the"))
        n = len(before)
        assert tokenizer.encode_behind([*before, *space], "the") == (n, tokenizer.encode(" the"))


def test_parts_of_thousands_of_tokens_cost_little(every: dict[str, Tokenizer]) -> None:
    """Only the last words before are looked at."""
    tokenizer = every["gpt-2"]
    before = tokenizer.encode_part("the hen and " * 20_000)
    looked_at: list[int] = []

    class Counted(list):
        def __getitem__(self, place: Any) -> Any:
            found = super().__getitem__(place)
            looked_at.append(len(found) if isinstance(place, slice) else 1)
            return found

    n_kept, ids = tokenizer.encode_behind(Counted(before), "the hat")
    assert before[:n_kept] + ids == tokenizer.encode_part("the hen and " * 20_000 + "the hat")
    assert sum(looked_at) < 1000
