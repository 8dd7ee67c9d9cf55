"""The tokenizer against sentencepiece itself and against a plain reference of llama.cpp's rules.

Metadata of vocabularies is tested in test_tokenizer_metadata.py, marked texts in
test_tokenizer_marks.py.
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from lariat.tokenizers.tokenizer import Tokenizer
from sentencepiece import sentencepiece_model_pb2

from tests.support.vocabularies import (
    BASE,
    BYTE,
    BYTES,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Make,
    Vocab,
    maker,
)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return maker(tmp_path)


@pytest.fixture(scope="module")
def whole(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return maker(tmp_path_factory.mktemp("whole"))(trained[1])


@pytest.fixture(scope="module")
def trained() -> tuple[sentencepiece.SentencePieceProcessor, list[tuple[str, float, int]]]:
    """A small vocabulary that is trained here, and sentencepiece's own processor for it."""
    rng = random.Random(7)
    syllables = ["ba", "lo", "ri", "ten", "and", "the", "ing", "qu", "er", "éa", "мир", "漢", "x"]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(300)]
    lines = [
        (" " * rng.choice([1, 1, 1, 2, 4])).join(rng.choices(words, k=8)) + rng.choice(".!?,")
        for _ in range(800)
    ]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=600,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.999,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        num_threads=1,
        minloglevel=2,
    )
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.getvalue())
    vocab = [(piece.piece, piece.score, piece.type) for piece in proto.pieces]
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()), vocab


def reference_merge(vocab: Vocab, text: str) -> list[int]:
    """llama.cpp's rule in the slowest way: join the pair of highest score, leftmost first."""
    ids = {piece: i for i, (piece, _, _) in enumerate(vocab)}
    symbols = list(text.replace(" ", "\u2581"))
    while True:
        pairs = [
            (-vocab[ids[left + right]][1], i)
            for i, (left, right) in enumerate(pairwise(symbols))
            if left + right in ids
        ]
        if not pairs:
            break
        i = min(pairs)[1]
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
    out: list[int] = []
    for symbol in symbols:
        if symbol in ids:
            out.append(ids[symbol])
        else:
            out += [ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
    return out


def reference_parts(text: str, specials: Sequence[str]) -> list[str]:
    """Cut the text at special tokens, one token after the other, longest first."""
    parts = [(text, False)]
    for special in sorted(specials, key=lambda s: -len(s.encode())):
        cut: list[tuple[str, bool]] = []
        for part, done in parts:
            if done:
                cut.append((part, True))
                continue
            for i, piece in enumerate(part.split(special)):
                cut += [(special, True)] if i else []
                cut += [(piece, False)] if piece else []
        parts = cut
    return [part for part, _ in parts]


def nasty(rng: random.Random, vocab: Vocab) -> str:
    """Text of pieces, runs of blanks, odd characters, and texts that look like special tokens."""
    out = []
    for _ in range(rng.choice([0, 1, 2, 5, 12])):
        choice = rng.randrange(7)
        if choice == 0:
            out.append(rng.choice([" ", "\n"]) * rng.choice([1, 2, 3, 9]))
        elif choice == 1:
            out.append(
                rng.choice(["\0", "\u2581", "\ufffd", "\u200d", "e\u0301", "\t", "😀", "\r\n"])
            )
        elif choice == 2:
            out.append(rng.choice(["<s>", "</s>", "<unk>", "<0x41>", "<s", "s>"]))
        elif choice == 3:
            out.append(chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)])))
        else:
            piece = rng.choice(vocab)[0]
            out.append(piece.replace("\u2581", " ") if choice < 6 else piece)
    return "".join(out)


def test_ids_are_those_of_sentencepiece(make: Make, trained: Any) -> None:
    theirs, vocab = trained
    tokenizer = make(vocab)
    rng = random.Random(1)
    for _ in range(300):
        text = nasty(rng, vocab)
        # sentencepiece adds a space before a text, but not to an empty one
        assert tokenizer.encode(text, add_bos=False) == theirs.encode(text), repr(text)


def test_ids_are_those_of_the_reference(make: Make, trained: Any) -> None:
    vocab = trained[1]
    with_prefix, without = make(vocab), make(vocab, add_space_prefix=False)
    rng = random.Random(2)
    mergeable = [(t if k in (NORMAL, BYTE) else "", s, k) for t, s, k in vocab]
    for _ in range(200):
        text = nasty(rng, vocab)
        expected = reference_merge(mergeable, " " + text) if text else []
        assert with_prefix.encode(text) == [1, *expected], repr(text)
        assert without.encode(text) == [1, *reference_merge(mergeable, text)], repr(text)


@pytest.mark.parametrize("seed", range(40))
def test_ids_with_tied_scores(make: Make, seed: int) -> None:
    rng = random.Random(seed)
    letters = rng.choice(["ab", "abé", "ab\u2581", "a\n😀"])
    pieces = {"".join(rng.choices(letters, k=rng.randint(1, 5))) for _ in range(40)}
    scores = rng.choice([[0.0, -0.0], [-1.0, -2.0], [0.0, 1.0, -1.0], [float("-inf"), 0.0, 1e-40]])
    types = [NORMAL, NORMAL, UNUSED, 0]  # unused and undefined tokens are merged too
    vocab = [*BASE, *BYTES]
    vocab += [(p, rng.choice(scores), rng.choice(types)) for p in sorted(pieces)]
    tokenizer = make(vocab, add_space_prefix=False)
    for _ in range(20):
        text = "".join(rng.choices([*letters, " "], k=rng.choice([1, 5, 30])))
        assert tokenizer.encode(text, add_bos=False) == reference_merge(vocab, text), repr(text)


def test_empty_text(make: Make, trained: Any) -> None:
    vocab = trained[1]
    assert make(vocab).encode("") == [1]
    assert make(vocab).encode("", add_bos=False) == []
    assert make(vocab, add_bos_token=False, add_eos_token=True).encode("") == [2]
    assert make(vocab).decode([]) == ""


def test_text_cannot_forge_control_tokens(make: Make) -> None:
    # All steps that would lead to the control tokens by merging are there, and "\x01" is one
    # character long.
    steps = ["<", ">", "s", "/", "<s", "s>", "</", "</s", "[", "]", "[X", "X", "\u2581"]
    vocab = [*BASE, *BYTES, *((step, 0.0, NORMAL) for step in steps)]
    vocab += [("[X]", 9.0, CONTROL), ("\x01", 9.0, CONTROL)]
    tokenizer = make(vocab)
    controls = {i for i, (_, _, token_type) in enumerate(vocab) if token_type in (CONTROL, UNKNOWN)}
    for text in ("<s>", "</s>", "a<s>b</s>", "<unk>", "[X]", "\x01", "<s><s>"):
        ids = tokenizer.encode(text, add_bos=False)
        assert not controls & set(ids), text
        assert tokenizer.decode(ids) == text
    space = [259 + steps.index("\u2581")]
    ids = tokenizer.encode("<s>s[X]\x01</s><unk> ", add_bos=False, parse_special=True)
    s = 259 + steps.index("s")
    assert ids == [1, *space, s, len(vocab) - 2, len(vocab) - 1, 2, 0, *space, *space]


def test_byte_tokens_cannot_be_forged(make: Make) -> None:
    vocab = [*BASE, *BYTES, ("<0x4", 0.0, NORMAL), ("1>", 0.0, NORMAL), ("<0", 0.0, NORMAL)]
    tokenizer = make(vocab, add_space_prefix=False)
    ids = tokenizer.encode("<0x41>", add_bos=False)
    assert 3 + 0x41 not in ids
    assert tokenizer.decode(ids) == "<0x41>"


def test_user_defined_tokens_are_always_found(make: Make) -> None:
    extra = [("<tool>", -5.0, USER_DEFINED), ("  ", 0.0, USER_DEFINED), ("\u2581", 0.0, NORMAL)]
    vocab = [*BASE, *BYTES, *extra, ("a", 0.0, NORMAL)]
    tool, gap, space, a = range(259, 263)
    tokenizer = make(vocab)
    assert tokenizer.encode("a<tool>a", add_bos=False) == [space, a, tool, space, a]
    assert tokenizer.encode("<tool>", add_bos=False) == [tool]
    assert tokenizer.encode("a   a", add_bos=False) == [space, a, gap, space, space, a]
    assert tokenizer.decode([tool, a]) == "<tool>a"
    assert tokenizer.decode([gap, a]) == "  a"


@pytest.mark.parametrize("seed", range(30))
def test_special_tokens_are_cut_out_longest_first(make: Make, seed: int) -> None:
    rng = random.Random(seed)
    letters = rng.choice(["ab", "ab ", "é<b", " \n"])
    by_size = {}  # one token of each length: the order of equal lengths is not defined
    for _ in range(8):
        text = "".join(rng.choices(letters, k=rng.randint(1, 6)))
        by_size[len(text.encode())] = text
    specials = list(by_size.values())
    tokenizer = make([*BASE, *BYTES, *((text, 0.0, CONTROL) for text in specials)])
    for _ in range(30):
        text = "".join(rng.choices(letters + "x", k=rng.choice([2, 10, 60])))
        expected: list[int] = []
        after_special = True
        for part in reference_parts(text, specials):
            if part in specials:
                expected.append(259 + specials.index(part))
                after_special = True
            else:
                part = (" " if after_special else "") + part
                expected += [3 + byte for byte in part.replace(" ", "\u2581").encode()]
                after_special = False
        assert tokenizer.encode(text, add_bos=False, parse_special=True) == expected, repr(text)


def test_longest_first_across_beginnings(make: Make) -> None:
    specials = ["aaaccc", "caaab", "aaab"]  # the first and the last begin alike
    tokenizer = make([*BASE, *BYTES, *((text, 0.0, CONTROL) for text in specials)])
    assert tokenizer.encode("caaab", add_bos=False, parse_special=True) == [260]


def test_phi3_special_tokens_swallow_blanks(make: Make) -> None:
    vocab = [*BASE, *BYTES, ("<|end|>", 0.0, CONTROL), ("a", 0.0, NORMAL)]

    def pieces(**metadata: Any) -> list[str]:
        tokenizer = make(vocab, add_space_prefix=False, **metadata)
        ids = tokenizer.encode("<|end|> \n\t a<s> a</s>  ", add_bos=False, parse_special=True)
        return [tokenizer.piece(i) for i in ids]

    space = ["<0xE2>", "<0x96>", "<0x81>"]
    assert pieces(general_name="a Phi-3 model") == ["<|end|>", "a", "<s>", *space, "a", "</s>"]
    plain = pieces()
    assert plain[:4] == ["<|end|>", *space]
    assert plain[-7:] == ["</s>", *space, *space]


def test_marks_of_space_and_nul_in_the_text(make: Make, trained: Any) -> None:
    tokenizer = make(trained[1])
    assert tokenizer.encode("the\u2581ten") == tokenizer.encode("the ten")
    ids = tokenizer.encode("a\0\0b", add_bos=False)
    assert ids.count(3) == 2  # byte 0
    assert tokenizer.decode(ids) == "a\0\0b"


@pytest.mark.parametrize("text", ["\ud800", "ab\udfffcd"])
def test_lone_surrogates(make: Make, text: str) -> None:
    with pytest.raises(ValueError, match=r"lone surrogate, U\+D[8F]\w\w, stands at index [02]"):
        make([*BASE, *BYTES]).encode(text)


def test_text_of_another_type(make: Make) -> None:
    with pytest.raises(ValueError, match="bytes, expected str"):
        make([*BASE, *BYTES]).encode(b"abc")  # type: ignore[arg-type]


def test_text_comes_back(make: Make, trained: Any) -> None:
    tokenizer = make(trained[1])
    rng = random.Random(3)
    for _ in range(200):
        text = nasty(rng, trained[1]).replace("\u2581", "")
        assert tokenizer.decode(tokenizer.encode(text)) == text, repr(text)


# Any Unicode but the mark that stands for a space in the vocabulary, and halves of characters.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"))


@settings(max_examples=150, deadline=None)
@given(text=TEXTS, seed=st.integers(0, 2**32), parse_special=st.booleans())
def test_any_text_comes_back(whole: Tokenizer, text: str, seed: int, parse_special: bool) -> None:
    """At once and as a stream, with pieces of the vocabulary in between."""
    rng = random.Random(seed)
    pieces = [whole.piece(rng.randrange(259, whole.n_vocab)) for _ in range(3)]
    text += "".join(pieces).replace("\u2581", " ") + text[::-1]
    ids = whole.encode(text, parse_special=parse_special)
    assert all(0 <= i < whole.n_vocab for i in ids)
    if not parse_special or "<" not in text:
        assert whole.decode(ids) == text
    decoder = whole.decoder()
    streamed = "".join([decoder.feed(i) for i in ids]) + decoder.flush()
    assert streamed == b"".join(map(whole.decode_token, ids)).decode("utf-8", "replace")


def test_decode_takes_away_one_space_and_shows_no_control_tokens(make: Make) -> None:
    vocab = [*BASE, *BYTES, ("\u2581a", 0.0, NORMAL), ("\u2581", 0.0, NORMAL), ("x", 0.0, UNUSED)]
    a, space, unused = 259, 260, 261
    tokenizer = make(vocab)
    assert tokenizer.decode([1, a, 0, a, 2, a]) == "a a a"
    assert tokenizer.decode([space, a]) == " a"
    assert tokenizer.decode([unused, a]) == "a"
    assert make(vocab, add_space_prefix=False).decode([1, a, a]) == " a a"
    assert tokenizer.decode([3 + 0xC3, 3 + 0xA9, 3 + 0xFF, 3 + 0xE6]) == "é\ufffd\ufffd"
    assert tokenizer.decode_token(a) == b" a"
    assert tokenizer.decode_token(1) == tokenizer.decode_token(unused) == b""
    assert tokenizer.decode_token(3 + 0xC3) == b"\xc3"
    assert [tokenizer.piece(i) for i in (1, 13, a)] == ["<s>", "<0x0A>", "\u2581a"]


@pytest.mark.parametrize("bad", [-1, 259, 10**30])
def test_ids_out_of_range(make: Make, bad: int) -> None:
    tokenizer = make([*BASE, *BYTES])
    for call in (tokenizer.decode_token, tokenizer.piece, tokenizer.decoder().feed):
        with pytest.raises(ValueError, match=f"{bad} is out of range.*259 tokens"):
            call(bad)
    with pytest.raises(ValueError, match="out of range"):
        tokenizer.decode([1, bad])
    with pytest.raises(ValueError, match="not a whole number"):
        tokenizer.decode(["a"])  # type: ignore[list-item]


def test_streaming_shows_whole_characters(make: Make) -> None:
    tokenizer = make([*BASE, *BYTES, ("\u2581ok", 0.0, NORMAL)])
    decoder = tokenizer.decoder()
    fed = [decoder.feed(3 + byte) for byte in "é漢😀".encode()]
    assert fed == ["", "é", "", "", "漢", "", "", "", "😀"]
    assert decoder.feed(259) == " ok"  # its space stays
    assert decoder.feed(3 + 0xF0) == ""
    assert decoder.feed(1) == ""  # a control token is not shown and changes nothing
    assert decoder.flush() == "\ufffd"
    assert decoder.flush() == ""
    assert decoder.feed(3 + 0x41) == "A"


@pytest.mark.parametrize("seed", range(20))
def test_streaming_equals_decoding_at_once(make: Make, trained: Any, seed: int) -> None:
    tokenizer = make(trained[1])
    rng = random.Random(seed)
    ids = [rng.randrange(rng.choice([259, tokenizer.n_vocab])) for _ in range(200)]
    decoder = tokenizer.decoder()
    text = "".join([decoder.feed(i) for i in ids]) + decoder.flush()
    assert text == b"".join(map(tokenizer.decode_token, ids)).decode("utf-8", "replace")


@pytest.mark.parametrize("unit", ["the ten banding. ", " ", "a", "<s>", "\U000501df", "\n</s> \n"])
def test_long_texts_take_linear_time(make: Make, trained: Any, unit: str) -> None:
    vocab = [*trained[1], ("  ", 0.0, USER_DEFINED), ("\n\n", 0.0, USER_DEFINED)]
    vocab += [(f"<unused{i}>", 0.0, CONTROL) for i in range(2000)]
    tokenizer = make(vocab)
    text = unit * (400_000 // len(unit))
    # 0.3 s here; with a quadratic step this test would not be seen to end for minutes.
    ids = tokenizer.encode(text, parse_special=True)
    assert len(ids) > 1000
    assert tokenizer.decode(ids) is not None
