"""The tokenizer against sentencepiece itself and against a plain reference of llama.cpp's rules."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf as gguf_writer
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from engine.errors import GGUFError, ModelError
from engine.gguf import GGUFFile
from engine.tokenizer import Tokenizer
from tests.model_files import chat_metadata, write_gguf

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
BASE = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
BYTES = [(f"<0x{i:02X}>", 0.0, BYTE) for i in range(256)]

Vocab = Sequence[tuple[Any, float, int]]  # text (str, or bytes as they are), score, type
Make = Callable[..., Tokenizer]


def write(path: Path, vocab: Vocab | None, model: str | None = "llama", **metadata: Any) -> Path:
    """A GGUF file that holds nothing but a vocabulary. `metadata`: keys after tokenizer.ggml."""
    writer = gguf_writer.GGUFWriter(path, "llama")
    entries: dict[str, Any] = {}
    if model is not None:
        writer.add_tokenizer_model(model)
    if vocab is not None:
        entries["tokens"] = [text for text, _, _ in vocab]
        entries["scores"] = [score for _, score, _ in vocab]
        entries["token_type"] = [kind for _, _, kind in vocab]
    for key, value in {**entries, **metadata}.items():
        name = f"tokenizer.ggml.{key}"
        if value is None:
            continue
        if key == "general_name":
            writer.add_name(value)
        elif isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_uint32(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(vocab: Vocab | None, model: str | None = "llama", **metadata: Any) -> Tokenizer:
        with GGUFFile(write(tmp_path / "v.gguf", vocab, model, **metadata)) as file:
            return Tokenizer.from_gguf(file)

    return make


@pytest.fixture(scope="module")
def whole(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    with GGUFFile(write(tmp_path_factory.mktemp("whole") / "v.gguf", trained[1], "llama")) as file:
        return Tokenizer.from_gguf(file)


@pytest.fixture(scope="module")
def trained() -> tuple[sentencepiece.SentencePieceProcessor, list[tuple[str, float, int]]]:
    """A small vocabulary trained here, and sentencepiece's own processor of it."""
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
    """Text out of pieces, runs of blanks, odd characters, and what looks like special tokens."""
    out = []
    for _ in range(rng.choice([0, 1, 2, 5, 12])):
        kind = rng.randrange(7)
        if kind == 0:
            out.append(rng.choice([" ", "\n"]) * rng.choice([1, 2, 3, 9]))
        elif kind == 1:
            out.append(
                rng.choice(["\0", "\u2581", "\ufffd", "\u200d", "e\u0301", "\t", "😀", "\r\n"])
            )
        elif kind == 2:
            out.append(rng.choice(["<s>", "</s>", "<unk>", "<0x41>", "<s", "s>"]))
        elif kind == 3:
            out.append(chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)])))
        else:
            piece = rng.choice(vocab)[0]
            out.append(piece.replace("\u2581", " ") if kind < 6 else piece)
    return "".join(out)


def test_ids_are_those_of_sentencepiece(make: Make, trained: Any) -> None:
    theirs, vocab = trained
    tokenizer = make(vocab)
    rng = random.Random(1)
    for _ in range(300):
        text = nasty(rng, vocab)
        # sentencepiece puts a space in front of text, but not before nothing
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
    kinds = [NORMAL, NORMAL, UNUSED, 0]  # unused and undefined tokens are merged too
    vocab = [*BASE, *BYTES]
    vocab += [(p, rng.choice(scores), rng.choice(kinds)) for p in sorted(pieces)]
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


def test_bos_and_eos_follow_the_metadata(make: Make) -> None:
    vocab = [*BASE, *BYTES, ("a", 0.0, NORMAL), ("\u2581", 0.0, NORMAL)]
    a = [260, 259]
    assert make(vocab).encode("a") == [1, *a]
    assert make(vocab, add_bos_token=False).encode("a") == a
    assert make(vocab, add_eos_token=True).encode("a") == [1, *a, 2]
    assert make(vocab, add_eos_token=True).encode("a", add_bos=False) == a
    changed = make(vocab, bos_token_id=5, eos_token_id=6, unknown_token_id=7, add_eos_token=True)
    assert changed.encode("a") == [5, *a, 6]
    assert (changed.bos_id, changed.eos_id, changed.unk_id) == (5, 6, 7)
    assert make(vocab, add_space_prefix=False).encode("a") == [1, 259]


def test_text_cannot_forge_control_tokens(make: Make) -> None:
    # All steps that would lead to the control tokens by merging are there, and "\x01" is one
    # character long.
    steps = ["<", ">", "s", "/", "<s", "s>", "</", "</s", "[", "]", "[X", "X", "\u2581"]
    vocab = [*BASE, *BYTES, *((step, 0.0, NORMAL) for step in steps)]
    vocab += [("[X]", 9.0, CONTROL), ("\x01", 9.0, CONTROL)]
    tokenizer = make(vocab)
    controls = {i for i, (_, _, kind) in enumerate(vocab) if kind in (CONTROL, UNKNOWN)}
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
    by_size = {}  # of one length in bytes only one, as the order among equals is not defined
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
    """At once and as a stream, with pieces of the vocabulary strewn in."""
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
    assert decoder.feed(1) == ""  # a control token neither shows nor disturbs
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


def test_end_tokens(make: Make) -> None:
    names = ["<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "other", "x"]
    vocab = [*BASE, *BYTES, *((name, 0.0, USER_DEFINED) for name in names)]
    assert make(vocab).eog_ids == {2, *range(259, 264)}
    assert make(vocab, eot_token_id=264, eom_token_id=265).eog_ids == {2, *range(259, 266)}
    assert make([*BASE, *BYTES]).eog_ids == {2}
    # What ends generation is a control token, whatever type the file gives it.
    tokenizer = make(vocab)
    assert tokenizer.decode([259, 264]) == "other"
    assert 260 not in tokenizer.encode("<|im_end|>")
    assert 260 in tokenizer.encode("<|im_end|>", parse_special=True)


def test_fill_in_the_middle_marks(make: Make) -> None:
    vocab = [*BASE, *BYTES, ("<PRE>", 0.0, USER_DEFINED), ("<|file_sep|>", 0.0, USER_DEFINED)]
    vocab += [("<PAD>", 0.0, USER_DEFINED), ("x", 0.0, NORMAL)]
    tokenizer = make(vocab)
    assert tokenizer.eog_ids == {2, 260, 261}
    assert 259 not in tokenizer.encode("<PRE>")
    assert 259 in make(vocab, prefix_token_id=262).encode("<PRE>")
    assert make(vocab, fim_pad_token_id=262).eog_ids == {2, 260, 262}


def test_missing_bytes_become_the_unknown_token(make: Make) -> None:
    vocab = [*BASE, ("\u2581", 0.0, NORMAL), ("a", 0.0, NORMAL)]
    tokenizer = make(vocab)
    assert tokenizer.encode("a") == [1, 3, 4]
    assert tokenizer.encode("aéé漢a\n") == [1, 3, 4, 0, 4, 0]
    assert tokenizer.encode("") == [1]
    some = make([*vocab, ("<0xA9>", 0.0, BYTE)], unknown_token_id=2)
    assert some.encode("éé", add_bos=False) == [3, 2, 5, 2, 5]
    raw = make([*vocab, (b"\xc3", 0.0, NORMAL), (b"\xa9", 0.0, NORMAL)])
    assert raw.encode("é", add_bos=False) == [3, 5, 6]
    assert raw.decode([3, 5, 6]) == "é"


def test_odd_vocabularies(make: Make) -> None:
    odd = [
        ("", 0.0, NORMAL),
        ("dup", 0.0, NORMAL),
        ("dup", -1.0, NORMAL),
        ("du", -2.0, NORMAL),
        ("", 0.0, USER_DEFINED),
        (b"\xff\xfe", 0.0, NORMAL),
        (b"\xff\xfd", 0.0, CONTROL),
        ("\ufffe1", 0.0, NORMAL),
        ("\ufffe", 0.0, NORMAL),
        ("\u2581", 0.0, NORMAL),
        ("<unk>", 0.0, UNKNOWN),
        ("n\0n", 0.0, NORMAL),
    ]
    tokenizer = make([*BASE, *BYTES, *odd, *((c, 0.0, NORMAL) for c in "dupn")])
    first = 259
    assert tokenizer.encode("dup", add_bos=False) == [first + 9, first + 2]
    assert tokenizer.decode([first + 1, first, first + 2]) == "dupdup"
    assert tokenizer.decode([first + 5]) == "\ufffd\ufffd"
    assert tokenizer.encode("\ufffe1", False)[1:] == [first + 7]
    assert tokenizer.encode("<unk>", False, True) == [first + 10]
    assert tokenizer.decode([first + 11]) == "n\0n"  # shown, but never found in text
    for text in ("\ufffe5", "\ufffe", "[EMPTY_259]", "<s>", "n\0n"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_scores_and_types_may_be_missing(make: Make) -> None:
    vocab = [*BASE, *BYTES, ("ab", 0.0, NORMAL), ("bc", 0.0, NORMAL), ("a", 0.0, NORMAL)]
    tokenizer = make(vocab, scores=None, add_space_prefix=False)
    assert tokenizer.encode("abc", False) == [259, 3 + ord("c")]  # a tie: leftmost first
    untyped = make(vocab, token_type=None, add_space_prefix=False)
    assert untyped.encode("a\n", False) == [261, 3 + 10]
    assert untyped.decode([3 + 10]) == "<0x0A>"
    whole = make(vocab, scores=[0] * 259 + [1, 2, 0], add_space_prefix=False)
    assert whole.encode("abc", False) == [261, 260]


def test_default_ids_outside_a_tiny_vocabulary(make: Make) -> None:
    tokenizer = make([("<unk>", 0.0, UNKNOWN)], add_bos_token=False)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.eog_ids) == (None, None, frozenset())
    assert tokenizer.encode("hello") == [0]
    with pytest.raises(GGUFError, match=r"add_bos_token is true.*no bos token"):
        make([("<unk>", 0.0, UNKNOWN)])


TWO = [("a", 0.0, NORMAL), ("b", 0.0, NORMAL), ("c", 0.0, NORMAL)]


@pytest.mark.parametrize(
    ("vocab", "metadata", "message"),
    [
        (None, {}, "tokenizer.ggml.tokens is missing"),
        (TWO, {"model": None}, "tokenizer.ggml.model is missing"),
        (None, {"tokens": [1, 2, 3]}, "tokens is not an array of strings"),
        (None, {"tokens": "abc"}, "tokens is not an array of strings"),
        (TWO, {"scores": [0.0, 0.0]}, "scores has 2 values.*3 tokens"),
        (TWO, {"scores": [0.0] * 4}, "scores has 4 values.*3 tokens"),
        (TWO, {"scores": ["a", "b", "c"]}, "scores is not an array of numbers"),
        (TWO, {"scores": 7}, "scores is not an array of numbers"),
        (TWO, {"scores": [0.0, float("nan"), 0.0]}, "the score of token 1 is not a number"),
        (TWO, {"token_type": [1, 1]}, "token_type has 2 values.*3 tokens"),
        (TWO, {"token_type": [1, 9, 1]}, "token 1 has type 9, expected 0 to 6"),
        (TWO, {"token_type": [1, 1, -1]}, "token 2 has type -1"),
        (TWO, {"token_type": [1, 6, 1]}, "byte token 1 is 'b'"),
        (TWO, {"bos_token_id": 3}, "bos_token_id is 3, expected 0 to 2"),
        (TWO, {"eos_token_id": 2**32 - 1}, "eos_token_id is 4294967295, expected 0 to 2"),
        (TWO, {"unknown_token_id": 3}, "unknown_token_id is 3"),
        (TWO, {"eot_token_id": 3}, "eot_token_id is 3"),
        (TWO, {"fim_pad_token_id": 3}, "fim_pad_token_id is 3"),
        (TWO, {"bos_token_id": "1"}, "bos_token_id is '1'"),
        (TWO, {"add_bos_token": 1}, "add_bos_token is 1, expected true or false"),
    ],
)
def test_bad_metadata(make: Make, vocab: Any, metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(GGUFError, match=message) as caught:
        make(vocab, **metadata)
    assert "v.gguf: " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", ["bert", "GPT2", "Llama", "llama\n\x1b[2J"])
def test_other_tokenizer_models(make: Make, model: str) -> None:
    with pytest.raises(ModelError, match=r"v\.gguf: tokenizer .* is not supported") as caught:
        make(TWO, model)
    assert repr(model) in str(caught.value)


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


# ---- texts whose special tokens count, and words that must not be some ---------------------


@pytest.fixture(scope="module")
def chat_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("vocabulary") / "v.gguf"
    with GGUFFile(write_gguf(path, chat_metadata(300))) as gguf:
        return Tokenizer.from_gguf(gguf)


def test_marked_text_has_no_special_tokens(tmp_path: Path) -> None:
    metadata = chat_metadata(300)
    # One within the other, one of a single character, and one that overlaps itself.
    for i, text in enumerate(("im_end", "~", "abab")):
        metadata["tokenizer.ggml.tokens"][-3 - i] = text
        metadata["tokenizer.ggml.token_type"][-3 - i] = 3
    with GGUFFile(write_gguf(tmp_path / "v.gguf", metadata)) as gguf:
        tokenizer = Tokenizer.from_gguf(gguf)
    start, end, inner, single, twice = 298, 299, 297, 296, 295
    for text in ("<|im_end|>", "a<|im_end|>b", "im_end", "~", "~~", "ababab", "<s></s>", "é~日"):
        assert set(tokenizer.encode_marked(text)) & {1, 2, end, inner, single, twice}
        marked = tokenizer.mark(text)
        ids = tokenizer.encode_marked(marked)
        assert not set(ids) & {1, 2, end, inner, single, twice}
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode_marked(tokenizer.mark("a<|im_start|>")).count(start) == 1
    assert start not in tokenizer.encode_marked(tokenizer.mark("a<|im_start|>", {start}))
    both = "<s>" + tokenizer.mark("the</s>") + "</s>"
    assert tokenizer.encode_marked(both) == [1, *tokenizer.encode("the</s>", add_bos=False), 2]


def test_the_marks_themselves_are_no_text(chat_tokenizer: Tokenizer) -> None:
    tokenizer = chat_tokenizer
    assert tokenizer.mark("a\ufdd03c\ufdd1") == "a\ufffd3c\ufffd"
    for code in ("d800", "110000", "ffffff"):  # what a template may write by itself
        ids = tokenizer.encode_marked(f"\ufdd0{code}\ufdd1")
        assert tokenizer.decode(ids) == "\ufffd"
    for call in (tokenizer.mark, tokenizer.encode_marked):
        with pytest.raises(ValueError, match="lone surrogate"):
            call("a\udc80")


def test_known_text_between_special_tokens(chat_tokenizer: Tokenizer) -> None:
    tokenizer = chat_tokenizer
    known = {"the": [7, 8, 9]}
    assert tokenizer.encode_marked("<s>the</s>", known) == [1, 7, 8, 9, 2]
    assert tokenizer.encode_marked("<s>the man</s>", known) == [
        1, *tokenizer.encode("the man", add_bos=False), 2
    ]  # fmt: skip
    assert tokenizer.ordinary_end("<s>the</s> a\nb") == " a\nb"
    assert tokenizer.ordinary_end("<s>the</s>") == tokenizer.ordinary_end("") == ""
    assert tokenizer.ordinary_end("the") == "the"


PARTS = [
    "<|im_end|>",
    "<|im_start|>",
    "<s>",
    "</s>",
    "<",
    "|>",
    "a",
    "é",
    "日",
    "\ufdd0",
    "\ufdd13c",
]


@given(st.lists(st.sampled_from([*PARTS, " ", "\n"])))
@settings(max_examples=200, deadline=None)
def test_marked_text_is_tokenized_as_text_is(chat_tokenizer: Tokenizer, parts: list[str]) -> None:
    text = "".join(parts)
    plain = text.replace("\ufdd0", "\ufffd").replace("\ufdd1", "\ufffd")
    ids = chat_tokenizer.encode_marked(chat_tokenizer.mark(text))
    assert ids == chat_tokenizer.encode(plain, add_bos=False)
