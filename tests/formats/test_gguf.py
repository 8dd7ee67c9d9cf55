"""GGUF reader: sound files, against the `gguf` package; tests/hostile has the others."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from lariat.errors import GGUFError, quote
from lariat.formats.block_formats import GGMLType
from lariat.formats.gguf import GGUFFile, TensorInfo
from lariat.formats.string_array import RawStrings

from tests.support.gguf_bytes import (
    ARRAY,
    EXPECTED,
    F32,
    F64,
    I32,
    ONE_OF_EACH,
    SMALL,
    STRING,
    U8,
    U32,
    build,
    entry,
    tensor,
    text,
    u32,
    u64,
)

Put: TypeAlias = Callable[[bytes], Path]


# ---- sound files ---------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3])
def test_same_as_gguf_package(tmp_path: Path, version: int) -> None:
    path = tmp_path / "m.gguf"
    rng = np.random.default_rng(0)
    arrays = {
        "f32": rng.normal(size=(3, 5)).astype(np.float32),
        "vector": rng.normal(size=7).astype(np.float32),
        "f16": rng.normal(size=(2, 3, 4)).astype(np.float16),
        "i32": np.arange(6, dtype=np.int32),
    }
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("n", 7)
    writer.add_float32("x", 1e-5)
    writer.add_bool("flag", True)
    writer.add_array("scores", [0.5, -1.5])
    writer.add_array("tokens", ["<s>", "▁a", "b"])
    writer.add_array("ids", [1, 2, 3])
    for name, values in arrays.items():
        writer.add_tensor(name, values)
    blocks = gguf.quants.quantize(
        rng.normal(size=(4, 64)).astype(np.float32), GGMLQuantizationType.Q4_0
    )
    writer.add_tensor("q", blocks, raw_dtype=GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    content = bytearray(path.read_bytes())
    content[4:8] = u32(version)  # the only difference between versions 2 and 3
    path.write_bytes(content)

    judge = gguf.GGUFReader(path)
    with GGUFFile(str(path)) as file:
        assert file.path == path
        assert file.version == version
        assert file.alignment == 32
        assert file.n_bytes == path.stat().st_size
        assert file.metadata["general.architecture"] == "llama"
        assert file.metadata["n"] == 7
        assert type(file.metadata["n"]) is int
        assert file.metadata["x"] == float(np.float32(1e-5))
        assert type(file.metadata["x"]) is float
        assert file.metadata["flag"] is True
        assert list(file.metadata["tokens"]) == ["<s>", "▁a", "b"]
        np.testing.assert_array_equal(file.metadata["ids"], [1, 2, 3])
        np.testing.assert_array_equal(file.metadata["scores"], np.float32([0.5, -1.5]))
        assert file.metadata["scores"].dtype == np.float32
        assert [t.name for t in judge.tensors] == list(file.tensors)
        for t in judge.tensors:
            info = file.tensors[t.name]
            assert info.shape == tuple(reversed(t.shape.tolist()))
            assert int(info.type) == int(t.tensor_type)
            assert info.offset == t.data_offset
            assert info.n_bytes == t.n_bytes
            view = file.data(t.name)
            assert view.dtype == np.uint8
            assert view.shape == (int(np.prod(info.shape[:-1])), info.n_bytes // view.shape[0])
            np.testing.assert_array_equal(
                view.ravel(), np.ascontiguousarray(t.data).view("u1").ravel()
            )
        assert file.data("q").shape == (4, 36)
        assert file.data("f16").shape == (6, 8)
        assert file.data("vector").shape == (1, 28)
        assert set(file.tensors) == {*arrays, "q"}


def test_one_of_each_type(put: Put) -> None:
    file = GGUFFile(put(SMALL))
    for key, (_, expected) in EXPECTED.items():
        assert file.metadata[key] == expected
        assert type(file.metadata[key]) is type(expected)
    numbers, bools = file.metadata["b.numbers"], file.metadata["b.bools"]
    np.testing.assert_array_equal(numbers, [1, -2, 3])
    assert numbers.dtype == np.int32
    assert bools.dtype == np.bool_
    assert bools.tolist() == [True, False, True]
    for values in (numbers, bools):
        assert not values.flags.writeable
    assert list(file.metadata["b.strings"]) == ["", "a", "日本", "x\0y"]
    nested = file.metadata["b.nested"]
    assert [list(part) for part in nested] == [[1, 2], ["z"], []]
    assert len(file.metadata["b.none"]) == 0
    start = -(-(len(SMALL) - 140) // 32) * 32
    assert file.tensors["one"] == TensorInfo("one", (8,), GGMLType.F32, start, 32)
    assert file.tensors["two"] == TensorInfo("two", (3, 2, 32), GGMLType.Q4_0, start + 32, 108)
    assert file.data("two").tolist() == np.arange(108).reshape(6, 18).tolist()
    with pytest.raises(TypeError):
        file.metadata["new"] = 1  # type: ignore[index]
    with pytest.raises(TypeError):
        file.tensors["new"] = file.tensors["one"]  # type: ignore[index]


def test_string_array(put: Put) -> None:
    words = ["", "a", "日本", "last"]
    raw = [*(w.encode() for w in words), b"\xff\xfe!"]
    strings = GGUFFile(put(build([entry("k", ARRAY, (STRING, raw))]))).metadata["k"]
    expected = [*words, "��!"]
    assert len(strings) == 5
    assert list(strings) == expected
    assert [strings[i] for i in range(-5, 5)] == expected * 2
    assert strings[1:4] == expected[1:4]
    assert strings[::-2] == expected[::-2]
    assert [strings.raw(i) for i in range(5)] == raw
    assert strings.raw(-1) == raw[-1]
    as_bytes = RawStrings(strings)
    assert list(strings.iter_raw()) == list(as_bytes) == as_bytes[:] == raw
    assert [as_bytes[i] for i in range(-len(raw), len(raw))] == raw * 2
    assert "日本" in strings
    assert strings.index("last") == 3
    assert repr(strings) == "<StringArray of 5>"
    for index in (5, -6):
        with pytest.raises(IndexError, match=f"index {index} of 5 strings"):
            strings[index]


def test_no_tensors_and_nothing_at_all(put: Put) -> None:
    file = GGUFFile(put(build([entry("general.architecture", STRING, "llama")])))
    assert file.tensors == {}
    assert GGUFFile(put(build())).metadata == {}


def test_gaps_unordered_tensors_and_missing_last_padding(put: Put) -> None:
    data = bytes(64) + b"b" * 12 + bytes(52) + b"a" * 4
    tensors = [tensor("a", (1,), 0, 128), tensor("b", (3,), 0, 64)]
    file = GGUFFile(put(build([], tensors, data)))
    assert bytes(file.data("a")) == b"a" * 4
    assert bytes(file.data("b")) == b"b" * 12


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_alignment_from_the_file(put: Put, alignment: int) -> None:
    content = build(
        [entry("general.alignment", U32, alignment)],
        [tensor("a", (1,), 0, 0), tensor("b", (1,), 0, alignment)],
        b"aaaa" + bytes(alignment - 4) + b"bbbb",
        alignment=alignment,
    )
    file = GGUFFile(put(content))
    assert file.alignment == alignment
    assert file.tensors["a"].offset % alignment == 0
    assert bytes(file.data("a")) + bytes(file.data("b")) == b"aaaabbbb"


def test_names_at_the_limits(put: Put) -> None:
    content = build([entry("k" * 65535, U8, 1)], [tensor("ü" * 32, (1, 1, 1, 2))], bytes(8))
    file = GGUFFile(put(content))
    assert list(file.tensors) == ["ü" * 32]
    assert file.tensors["ü" * 32].shape == (2, 1, 1, 1)
    assert list(file.metadata) == ["k" * 65535]


def test_views_are_zero_copy_and_read_only(put: Put) -> None:
    file = GGUFFile(put(SMALL))
    view = file.data("two")
    assert not view.flags.owndata
    assert not view.flags.writeable
    assert np.shares_memory(view, file.data("two"))
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0] = 1
    with pytest.raises(ValueError, match="cannot set WRITEABLE"):
        view.flags.writeable = True


@pytest.mark.parametrize("use_mmap", [True, False])
def test_some_rows_of_a_tensor(put: Put, use_mmap: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with GGUFFile(put(SMALL), use_mmap=use_mmap) as file:
        whole = file.data("two")
        preadv, n_read = os.preadv, []

        def counted(file: int, into: list[memoryview], at: int) -> int:
            n_read.append(into[0].nbytes)
            return preadv(file, into, at)

        monkeypatch.setattr(os, "preadv", counted)
        for start, stop in ((0, 2), (2, 5), (5, 6), (0, 6), (4, None), (4, 100), (6, 9), (3, 3)):
            rows = file.data("two", start, stop)
            np.testing.assert_array_equal(rows, whole[start:stop])
            assert rows.shape[1] == 18
            assert not rows.flags.writeable
            assert sum(n_read) == (0 if use_mmap else rows.nbytes)
            n_read.clear()
        assert file.data("one", 0, 1).shape == (1, 32)


def test_close(put: Put) -> None:
    with GGUFFile(put(SMALL)) as file:
        view = file.data("two")
        before = view.copy()
    file.close()
    np.testing.assert_array_equal(view, before)  # a view outlives the file
    assert list(file.metadata["b.strings"])[1] == "a"
    assert file.metadata["b.numbers"].sum() == 2
    assert "two" in file.tensors
    for use in (file.data, file.release):
        with pytest.raises(ValueError, match="is closed"):
            use("two")


def test_nothing_stays_open(put: Put) -> None:
    good = put(SMALL)
    bad = good.with_name("bad.gguf")
    bad.write_bytes(SMALL[:-1])
    before = len(os.listdir("/proc/self/fd")), Path("/proc/self/maps").read_text().count(".gguf")
    for _ in range(5):
        GGUFFile(good).close()
        with pytest.raises(GGUFError):
            GGUFFile(bad)
    after = len(os.listdir("/proc/self/fd")), Path("/proc/self/maps").read_text().count(".gguf")
    assert after == before


def test_release_gives_pages_back(put: Put) -> None:
    """The resident size of the mapping falls, and the data is still there."""
    n = 1 << 20
    content = build([], [tensor("a", (n,), 24, 0), tensor("b", (n,), 24, n)], b"\1" * n + b"\2" * n)
    file = GGUFFile(put(content))
    assert file.data("a").sum(dtype=np.int64) + file.data("b").sum(dtype=np.int64) == 3 * n

    def resident() -> int:
        lines = iter(Path("/proc/self/smaps").read_text().splitlines())
        for line in lines:
            if str(file.path) in line:
                return next(int(x.split()[1]) for x in lines if x.startswith("Rss:")) << 10
        raise AssertionError("not mapped")

    assert resident() >= 2 * n
    file.release("a")
    assert resident() <= n + 3 * 4096
    assert file.data("a").sum(dtype=np.int64) == n
    with pytest.raises(GGUFError, match="tensor 'c' is missing"):
        file.release("c")


def test_release_of_less_than_a_page(put: Put) -> None:
    file = GGUFFile(put(SMALL))
    file.release("one")
    assert bytes(file.data("one")) == bytes(range(32))


def test_large_vocabulary(put: Put) -> None:
    """As many tokens and merges as Llama 3 has; bench_load.py measures the time."""
    n_tokens, n_merges = 128_256, 280_147
    content = build(
        [
            entry("tokenizer.ggml.tokens", ARRAY, (STRING, [f"tok{i}" for i in range(n_tokens)])),
            text("tokenizer.ggml.scores")
            + u32(ARRAY)
            + u32(F32)
            + u64(n_tokens)
            + bytes(4 * n_tokens),
            text("tokenizer.ggml.token_type")
            + u32(ARRAY)
            + u32(I32)
            + u64(n_tokens)
            + bytes(4 * n_tokens),
            entry("tokenizer.ggml.merges", ARRAY, (STRING, [f"ab{i} cd" for i in range(n_merges)])),
        ]
    )
    file = GGUFFile(put(content))
    tokens = file.metadata["tokenizer.ggml.tokens"]
    assert len(tokens) == n_tokens
    assert tokens[-1] == f"tok{n_tokens - 1}"
    assert len(file.metadata["tokenizer.ggml.merges"]) == n_merges


# ---- typed getters -------------------------------------------------------------------------


@pytest.fixture
def typed(put: Put) -> GGUFFile:
    more = [
        entry("nan", F32, float("nan")),
        entry("inf", F64, float("inf")),
        entry("huge", STRING, "\x1b" * 99),
    ]
    return GGUFFile(put(build(ONE_OF_EACH + more)))


def test_getters(typed: GGUFFile) -> None:
    assert typed.get_int("a.u8") == 255
    assert typed.get_int("a.u8", minimum=255, maximum=255) == 255
    assert typed.get_int("missing", 5) == 5
    assert typed.get_int("missing", default=0) == 0
    assert typed.get_float("a.f32") == 0.5
    assert typed.get_float("a.u8", minimum=0, maximum=300.0) == 255.0
    assert type(typed.get_float("a.u8")) is float
    assert typed.get_float("missing", default=0.0) == 0.0
    assert typed.get_str("a.string") == "grüße"
    assert typed.get_str("missing", default="") == ""
    assert typed.get_bool("a.yes") is True
    assert typed.get_bool("a.no") is False
    assert typed.get_bool("missing", default=False) is False


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: f.get_int("none"), "metadata key none is missing, expected a whole number"),
        (lambda f: f.get_str("none"), "metadata key none is missing, expected a string"),
        (lambda f: f.get_int("a.f32"), "a.f32 is 0.5, expected a whole number"),
        (lambda f: f.get_int("a.yes"), "a.yes is true, expected a whole number"),
        (lambda f: f.get_float("a.no"), "a.no is false, expected a number"),
        (lambda f: f.get_int("b.numbers"), "b.numbers is an array of 3 int32, expected a whole"),
        (lambda f: f.get_str("b.strings"), "b.strings is an array of 4 string, expected a string"),
        (lambda f: f.get_str("b.nested"), "b.nested is an array of 3 array, expected a string"),
        (lambda f: f.get_bool("a.u8"), "a.u8 is 255, expected true or false"),
        (lambda f: f.get_str("a.u8"), "a.u8 is 255, expected a string"),
        (lambda f: f.get_float("a.string"), "a.string is 'grüße', expected a number"),
        (lambda f: f.get_float("nan"), "nan is nan, expected a finite number"),
        (lambda f: f.get_float("inf", maximum=1.0), "inf is inf, expected a finite number"),
        (lambda f: f.get_int("a.u8", maximum=254), "a.u8 is 255, expected at most 254"),
        (lambda f: f.get_int("a.i8", minimum=0), "a.i8 is -128, expected at least 0"),
        (lambda f: f.get_int("a.u8", 1, 1, 9), "a.u8 is 255, expected 1 to 9"),
        (lambda f: f.get_float("a.f64", minimum=0, maximum=1), "a.f64 is 1e+300, expected 0 to 1"),
        (lambda f: f.get_int("huge"), "huge is '" + "\\x1b" * 64 + "'..., expected a whole"),
        (lambda f: f.data("none"), "tensor 'none' is missing"),
    ],
)
def test_getter_errors(typed: GGUFFile, call: Callable[[GGUFFile], object], message: str) -> None:
    with pytest.raises(GGUFError) as caught:
        call(typed)
    assert str(caught.value).startswith(f"{typed.path}: {message}")


def test_quote() -> None:
    assert quote("a") == "'a'"
    assert quote("\x1b[2J\n") == r"'\x1b[2J\n'"
    assert quote("x" * 64) == repr("x" * 64)
    assert quote("x" * 65) == repr("x" * 64) + "..."
