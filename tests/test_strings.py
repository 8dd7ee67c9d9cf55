"""Runs of strings as GGUF files hold them, against plain Python."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from lariat import _strings
from lariat.tokenizers.sentencepiece import SETTINGS
from sentencepiece import sentencepiece_model_pb2

TEXTS = ["", " ", "a", "a b", " a b", "a  b", "a b c", "ab", "a ", "é 日本", "  x", "日 ", " 日 é"]


def run_of(strings: list[bytes]) -> bytes:
    return b"".join(struct.pack("<Q", len(string)) + string for string in strings)


def random_strings(rng: np.random.Generator, n: int) -> list[bytes]:
    return [rng.bytes(int(length)) for length in rng.integers(0, 40, n)]


@pytest.mark.parametrize("start", [0, 3, 1000])
@pytest.mark.parametrize("n", [0, 1, 2, 333])
def test_strings_are_found_again(start: int, n: int) -> None:
    rng = np.random.default_rng(n)
    strings = random_strings(rng, n)
    run = run_of(strings)
    bounds, end = _strings.find_bounds(rng.bytes(start) + run + rng.bytes(50), start, n)
    assert bounds.dtype == np.int64
    assert len(bounds) == n + 1
    assert end == start + len(run) == start + bounds[-1]
    assert _strings.split(run, bounds) == strings


@pytest.mark.parametrize("length", [18, 1 << 31, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
@pytest.mark.parametrize("is_last", [True, False])
def test_a_length_that_leads_out_gives_its_end(length: int, is_last: bool) -> None:
    """The end, or the end of the next length: a reader that believes the length looks there."""
    head = run_of([b"ab"]) + struct.pack("<Q", length) + b"c" * 17
    bounds, end = _strings.find_bounds(head, 0, 2 if is_last else 3)
    assert bounds[:2].tolist() == [0, 10]
    assert end == 10 + 8 + length + (0 if is_last else 8)


@pytest.mark.parametrize("n_bytes", range(8))
def test_a_length_that_is_cut(n_bytes: int) -> None:
    _, end = _strings.find_bounds(run_of([b"ab"]) + bytes(n_bytes), 0, 2)
    assert end == 10 + 8


def test_pairs_are_parted_at_the_first_space_behind_the_first_byte() -> None:
    expected = []
    for text in TEXTS:
        at = text.find(" ", 1)
        if 0 < at < len(text) - 1:
            expected.append((text[:at], text[at + 1 :]))
    run = run_of([text.encode() for text in TEXTS])
    bounds, _ = _strings.find_bounds(run, 0, len(TEXTS))
    pairs = _strings.Pairs(run, bounds)
    assert list(pairs) == expected
    assert len(pairs) == len(expected)
    assert [pairs[i] for i in range(-7, 7)] == expected * 2
    for index in (7, -8):
        with pytest.raises(IndexError):
            pairs[index]
    assert {(" a", "b"), ("a", "b c")} < set(expected)
    assert len(expected) == 7


@pytest.mark.parametrize("broken", [b"\xff b", b"a \xff", b"\xe6\x97 b"])
def test_pairs_that_are_not_text_are_left_out(broken: bytes) -> None:
    run = run_of([b"a b", broken, b"c d"])
    bounds, _ = _strings.find_bounds(run, 0, 3)
    pairs = _strings.Pairs(run, bounds)
    assert list(pairs) == [pairs[0], pairs[1]] == [("a", "b"), ("c", "d")]


@pytest.mark.parametrize("n", [0, 1, 8, 9, 5000])
def test_strings_that_repeat_are_noticed(n: int) -> None:
    strings = [b"%d" % i for i in range(n)]
    bounds, _ = _strings.find_bounds(run_of(strings), 0, n)
    assert not _strings.may_repeat(run_of(strings), bounds)
    for i in {0, n // 2, n - 1} & set(range(n)):
        again = [*strings, strings[i]]
        bounds, _ = _strings.find_bounds(run_of(again), 0, n + 1)
        assert _strings.may_repeat(run_of(again), bounds)


def test_strings_whose_hashes_crowd_may_repeat() -> None:
    """A forged file must not make the search walk over all strings for each."""
    texts = np.random.default_rng(0).integers(0, 256, (700_000, 8), np.uint8)
    hashes = np.full(len(texts), 0xCBF29CE484222325, np.uint64)
    for column in texts.T:
        hashes = (hashes ^ column) * np.uint64(0x100000001B3)
    crowd = texts[(hashes ^ hashes >> np.uint64(32)) & np.uint64(4095) < 8][:1100]
    assert len(crowd) == 1100
    run = run_of([row.tobytes() for row in crowd])
    bounds, _ = _strings.find_bounds(run, 0, len(crowd))
    assert _strings.may_repeat(run, bounds)


def test_ids_are_places_of_the_last_of_equal_texts() -> None:
    strings = [b"a", b"", b"\xff", "日é".encode(), b"a", b"x\xe6\x97", b"\xff"]
    bounds, _ = _strings.find_bounds(run_of(strings), 0, len(strings))
    ids, broken = _strings.ids_of(run_of(strings), bounds)
    assert ids == {"a": 4, "": 1, "\udcff": 6, "日é": 3, "x\udce6\udc97": 5}
    assert broken == {"\udcff", "x\udce6\udc97"}


@pytest.mark.parametrize("bounds", [[], [-1, 9], [0, 10, 9], [0, 7], [0, 99], [0, 1 << 62]])
@pytest.mark.parametrize(
    "work", [_strings.split, _strings.Pairs, _strings.may_repeat, _strings.ids_of]
)
def test_bounds_of_another_run_are_refused(work, bounds: list[int]) -> None:
    with pytest.raises(ValueError, match=r"do not lie within|its length alone takes 8"):
        work(run_of([b"ab"]), np.array(bounds, np.int64))


@pytest.mark.parametrize("longest", [1, 130, 20_000])
def test_pieces_are_those_that_protobuf_writes(longest: int) -> None:
    """Lengths of one to three bytes, any score but NaN, every type."""
    rng = np.random.default_rng(longest)
    names = [b"x" * int(n) for n in rng.integers(0, longest + 1, 40)] + ["日é\u2581".encode()]
    scores = np.append(rng.normal(0, 1e9, 39), [np.inf, -0.0]).astype(np.float32)
    types = rng.integers(1, 7, 41).astype(np.uint8)
    model = sentencepiece_model_pb2.ModelProto()
    for name, score, piece_type in zip(names, scores, types, strict=True):
        model.pieces.add(piece=name.decode(), score=score, type=int(piece_type))
    assert _strings.sentencepiece_pieces(names, scores, types) == model.SerializeToString()


def test_settings_are_those_that_protobuf_writes() -> None:
    model = sentencepiece_model_pb2.ModelProto()
    model.trainer_spec.model_type = model.trainer_spec.BPE
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = True
    assert model.SerializeToString() == SETTINGS


def test_pieces_that_do_not_fit_together_are_refused() -> None:
    scores, types = np.zeros(2, np.float32), np.ones(2, np.uint8)
    with pytest.raises(ValueError, match="1 names, 2 scores and 2 types"):
        _strings.sentencepiece_pieces([b"a"], scores, types)
    with pytest.raises(TypeError):
        _strings.sentencepiece_pieces(["a", "b"], scores, types)  # type: ignore[list-item]
    assert _strings.sentencepiece_pieces([], scores[:0], types[:0]) == b""
