"""GGUF reader: sound files against the `gguf` package, and everything that can be wrong with one.

Sound files come from the `gguf` package. Hostile files are put together here, byte by byte, since
that package refuses to write them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFEndian, GGUFValueType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import GGUFError
from engine.gguf import GGUFFile, StringArray, TensorInfo, quote
from engine.quants import GGMLType

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
SCALARS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B"}
SCALARS |= {U64: "Q", I64: "q", F64: "d"}


# ---- building files ------------------------------------------------------------------------


def u32(n: int) -> bytes:
    return struct.pack("<I", n)


def u64(n: int) -> bytes:
    return struct.pack("<Q", n)


def text(s: str | bytes) -> bytes:
    raw = s.encode() if isinstance(s, str) else s
    return u64(len(raw)) + raw


def payload(kind: int, value: Any) -> bytes:
    """A value without its type; arrays are (kind of elements, list)."""
    if kind == STRING:
        return text(value)
    if kind == ARRAY:
        inner, items = value
        return u32(inner) + u64(len(items)) + b"".join(payload(inner, item) for item in items)
    return struct.pack("<" + SCALARS[kind], value)


def entry(key: str | bytes, kind: int, value: Any) -> bytes:
    return text(key) + u32(kind) + payload(kind, value)


def tensor(
    name: str | bytes = "t",
    dims: tuple[int, ...] = (8,),
    kind: int = 0,
    offset: int = 0,
    n_dims: int | None = None,
) -> bytes:
    """A line of the tensor table. dims: as in the file, the length of a row first."""
    count = len(dims) if n_dims is None else n_dims
    return text(name) + u32(count) + b"".join(map(u64, dims)) + u32(kind) + u64(offset)


def build(
    entries: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    data: bytes = b"",
    *,
    version: int = 3,
    n_entries: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    entries, tensors = entries or [], tensors or []
    head = b"GGUF" + u32(version)
    head += u64(len(tensors) if n_tensors is None else n_tensors)
    head += u64(len(entries) if n_entries is None else n_entries)
    head += b"".join(entries) + b"".join(tensors)
    if data:
        head += bytes(-len(head) % alignment)
    return head + data


# fmt: off
EXPECTED = {
    "a.u8": (U8, 255), "a.i8": (I8, -128), "a.u16": (U16, 65535), "a.i16": (I16, -32768),
    "a.u32": (U32, 2**32 - 1), "a.i32": (I32, -(2**31)), "a.u64": (U64, 2**64 - 1),
    "a.i64": (I64, -(2**63)), "a.f32": (F32, 0.5), "a.f64": (F64, 1e300),
    "a.yes": (BOOL, True), "a.no": (BOOL, False), "a.string": (STRING, "grüße"),
}
# fmt: on
ONE_OF_EACH = [entry(key, kind, value) for key, (kind, value) in EXPECTED.items()] + [
    entry("b.numbers", ARRAY, (I32, [1, -2, 3])),
    entry("b.bools", ARRAY, (BOOL, [1, 0, 1])),
    entry("b.strings", ARRAY, (STRING, ["", "a", "日本", "x\0y"])),
    entry("b.nested", ARRAY, (ARRAY, [(I32, [1, 2]), (STRING, ["z"]), (F64, [])])),
    entry("b.none", ARRAY, (STRING, [])),
]
SMALL = build(
    ONE_OF_EACH,
    [tensor("one", (8,), 0, 0), tensor("two", (32, 2, 3), GGMLType.Q4_0, 32)],
    bytes(range(32)) + bytes(range(108)),
)
Put: TypeAlias = Callable[[bytes], Path]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    def write(content: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return path

    return write


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """A test that waits on a pipe or loops fails instead of stopping the suite."""

    def stop(*_: object) -> None:
        raise TimeoutError("the reader did not return")

    old = signal.signal(signal.SIGALRM, stop)
    signal.alarm(50)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)


def read_all(path: Path) -> None:
    """Touch everything that a file offers."""

    def walk(value: Any) -> None:
        if isinstance(value, (list, StringArray)):
            for item in value:
                walk(item)
        elif isinstance(value, np.ndarray):
            value.sum()
        else:
            assert isinstance(value, (str, int, float, bool))

    with GGUFFile(path) as file:
        for value in file.metadata.values():
            walk(value)
        for name, info in file.tensors.items():
            view = file.data(name)
            assert view.nbytes == info.n_bytes
            view.sum()
            del view
            file.release(name)


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
    content[4:8] = u32(version)  # versions 2 and 3 differ in nothing else
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
    assert list(strings.iter_raw()) == raw
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


def test_large_vocabulary_opens_fast(put: Put) -> None:
    """128k tokens with 280k merges: 0.06 s on the machine of docs/results, 0.3 s promised."""
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
    path = put(content)
    best = 1e9
    for _ in range(5):
        start = time.perf_counter()
        file = GGUFFile(path)
        best = min(best, time.perf_counter() - start)
        file.close()
    tokens = file.metadata["tokenizer.ggml.tokens"]
    assert len(tokens) == n_tokens
    assert tokens[-1] == f"tok{n_tokens - 1}"
    assert len(file.metadata["tokenizer.ggml.merges"]) == n_merges
    assert best < 0.3, f"{best:.3f} s"


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


# ---- what is not a regular file ------------------------------------------------------------


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        GGUFFile(tmp_path / "none.gguf")
    (tmp_path / "link").symlink_to(tmp_path / "none.gguf")
    with pytest.raises(FileNotFoundError):
        GGUFFile(tmp_path / "link")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permission_denied(put: Put) -> None:
    path = put(SMALL)
    path.chmod(0)
    with pytest.raises(PermissionError):
        GGUFFile(path)


def test_permission_error_passes_through(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    path = put(SMALL)
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionError):
        GGUFFile(path)


def test_not_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    empty = tmp_path / "empty"
    empty.touch()
    # The path of a socket is limited to some 100 bytes, so it is bound by a relative name.
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket")
    finally:
        os.chdir(here)
    cases = {
        tmp_path: "is a directory, expected a GGUF file",
        tmp_path / "fifo": "is a named pipe, expected a GGUF file",
        tmp_path / "socket": "is a socket, expected a GGUF file",
        empty: "is empty, expected a GGUF file",
        Path("/dev/zero"): "is a character device, expected a GGUF file",
        Path("/dev/null"): "is a character device, expected a GGUF file",
        loop: "cannot be opened: Too many levels of symbolic links",
        empty / "below": "cannot be opened: Not a directory",
        tmp_path / ("n" * 300): "cannot be opened: File name too long",
        Path("nul\0"): "cannot be opened: ",
    }
    for path, message in cases.items():
        with pytest.raises(GGUFError) as caught:
            GGUFFile(path)
        assert message in str(caught.value)


def test_exchanged_for_a_pipe_after_the_look(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe that takes the place of the file between stat and open does not hang the reader."""
    path = put(SMALL)
    status = os.stat(path)
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(os, "stat", lambda *_, **__: status)
    with pytest.raises(GGUFError, match="is a named pipe"):
        GGUFFile(path)


# ---- hostile content -----------------------------------------------------------------------


def value(kind: int, rest: bytes) -> bytes:
    """A file with one entry, "k", of which all after the type is given."""
    return build([text("k") + u32(kind) + rest])


def array(inner: int, count: int, rest: bytes = b"") -> bytes:
    return value(ARRAY, u32(inner) + u64(count) + rest)


def align(kind: int, number: Any) -> bytes:
    return build([entry("general.alignment", kind, number)])


def table(*tensors: bytes) -> bytes:
    return build([], list(tensors), bytes(64))


# fmt: off
HOSTILE: dict[str, tuple[bytes, str]] = {
    "one byte": (b"G", "has only 1 bytes, expected a GGUF file"),
    "magic only": (b"GGUF", "the version needs 4 bytes at byte 4, found 0"),
    "other magic": (b"ABCD" + SMALL[4:], "starts with b'ABCD', expected b'GGUF'"),
    "swapped magic": (b"FUGG" + SMALL[4:], "is a byte-swapped"),
    "ggml": (b"lmgg" + SMALL[4:], "is a GGML file"),
    "zip": (b"PK\3\4" + SMALL, "is a zip archive or PyTorch checkpoint"),
    "safetensors": (u64(100) + b'{"a":1}' + bytes(99), "is a safetensors file"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    "html": (b"<!DOCTYPE html><html>", "is a web page"),
    "version 0": (build(version=0), "is GGUF version 0, expected version 2 or 3"),
    "version 1": (build(version=1), "is GGUF version 1, expected"),
    "version 4": (build(version=4), "is GGUF version 4, expected"),
    "swapped version": (build(version=3 << 24), "is a byte-swapped"),
    "entries 2^64-1": (build(n_entries=2**64 - 1), "announces 18446744073709551615 metadata"),
    "tensors 2^64-1": (build(n_tensors=2**64 - 1), "announces 18446744073709551615 tensors"),
    "entries over bytes": (build(n_entries=9), "9 metadata entries, which take at least 126 bytes"),
    "tensors over bytes": (build(n_tensors=9), "9 tensors, which take at least 297 bytes"),
    "entry too many": (build([entry("k", U64, 0), bytes(30)], n_entries=2), "1 is empty"),
    "key length": (build([u64(2**62) + bytes(20)]), "key of metadata entry 0 needs 4611686018"),
    "key empty": (build([entry("", U64, 1)]), "the key of metadata entry 0 is empty, expected"),
    "key too long": (build([entry("k" * 65536, U8, 1)]), "65536 bytes, expected at most 65535"),
    "key not UTF-8": (build([entry(b"k\xff", U64, 1)]), "is not UTF-8"),
    "key twice": (build([entry("k", U32, 1)] * 2), "metadata key 'k' is there twice"),
    "key escaped": (build([entry("\x1b[2J\n", U8, 1)] * 2), r"key '\x1b[2J\n' is there twice"),
    "type 13": (value(13, bytes(8)), "'k' has value type 13, expected 0 to 12"),
    "type 2^32-1": (value(2**32 - 1, bytes(8)), "value type 4294967295"),
    "bool 2": (value(BOOL, b"\2"), "'k' holds 2 as a boolean, expected 0 or 1"),
    "bools": (array(BOOL, 3, b"\1\xff\0"), "holds 255 as a boolean"),
    "string 2^64-1": (value(STRING, u64(2**64 - 1) + b"abc"), "needs 18446744073709551615 bytes"),
    "number cut": (value(F64, bytes(4)), "'k' needs 8 bytes at byte 37, found 4 before the end"),
    "array of 77": (array(77, 0), "has value type 77"),
    "array count": (array(F32, 2**62, bytes(16)), "needs 18446744073709551616 bytes"),
    "bool count": (array(BOOL, 2**63, bytes(16)), "needs 9223372036854775808 bytes"),
    "strings 2^64-1": (array(STRING, 2**64 - 1), "18446744073709551615 strings, expected at most"),
    "strings over bytes": (array(STRING, 1000, bytes(16)), "needs 8000 bytes"),
    "string too long": (array(STRING, 2, text("ab") + u64(99) + b"abc"), "is truncated"),
    "string 2^63": (array(STRING, 2, u64(2**63) + text("abc")), "is truncated"),
    "string 2^63-40": (array(STRING, 2, u64(2**63 - 40) + text("abc")), "is truncated"),
    "length cut": (array(STRING, 2, text("abcdef") + bytes(5)), "is truncated"),
    "5 levels": (array(ARRAY, 1, (u32(ARRAY) + u64(1)) * 3 + u32(U8) + u64(0)), "nests arrays"),
    "10000 levels": (array(ARRAY, 1, (u32(ARRAY) + u64(1)) * 10000), "nests arrays deeper"),
    "nested count": (array(ARRAY, 2**60, bytes(99)), "1152921504606846976 arrays, expected at"),
    "alignment 0": (align(U32, 0), "general.alignment is 0, expected a power of two from 8"),
    "alignment 4": (align(U32, 4), "general.alignment is 4, expected"),
    "alignment 48": (align(U32, 48), "general.alignment is 48, expected"),
    "alignment 2^31": (align(U32, 2**31), "general.alignment is 2147483648, expected"),
    "alignment text": (align(STRING, "32"), "alignment is of type string, expected uint32"),
    "alignment array": (align(ARRAY, (U32, [32])), "alignment is of type array"),
    "alignment bool": (align(BOOL, 1), "alignment is of type bool"),
    "name empty": (table(tensor("")), "the name of tensor 0 is empty"),
    "name of 65 bytes": (table(tensor("n" * 65)), "has 65 bytes, expected at most 64"),
    "name not UTF-8": (table(tensor(b"\xc3")), "is not UTF-8"),
    "name length": (table(u64(2**62) + bytes(40)), "the name of tensor 0 needs"),
    "tensor twice": (table(tensor(), tensor(offset=32)), "tensor 't' is there twice"),
    "0 dims": (table(tensor("t", ()) + bytes(16)), "'t' has 0 dimensions, expected 1 to 4"),
    "5 dims": (table(tensor("t", (1,) * 5)), "'t' has 5 dimensions, expected 1 to 4"),
    "2^32-1 dims": (table(tensor(n_dims=2**32 - 1)), "has 4294967295 dimensions"),
    "dim 0": (table(tensor("t", (4, 0))), "has shape (0, 4), expected no dimension of 0"),
    "product 2^64": (table(tensor("t", (2**32, 2**32))), "expected at most 2^63 - 1"),
    "product 2^252": (table(tensor("t", (2**63 + 1,) * 4)), "expected at most 2^63 - 1"),
    "bytes 2^64": (table(tensor("t", (2**62,))), "'t' reaches to byte 18446744073709551"),
    "type 42": (table(tensor(kind=42)), "'t' has type 42, expected a type of ggml from 0 to 41"),
    "removed type": (table(tensor(kind=31)), "'t' has type 31 (Q4_0_4_4, no longer in use)"),
    "ragged row": (table(tensor("t", (33, 2), 2)), "rows of 33 weights, expected a multiple of 32"),
    "unaligned": (table(tensor(offset=16)), "'t' has offset 16, expected a multiple of 32"),
    "overlap": (table(tensor("a", (33,), 24), tensor("b", offset=32)), "'a' and 'b' overlap"),
    "same place": (table(tensor("a"), tensor("b")), "'a' and 'b' overlap"),
    "offset at the end": (table(tensor(offset=64)), "to byte 160, but the file has 128"),
    "offset 2^64-32": (table(tensor(offset=2**64 - 32)), "'t' reaches to byte 18446744073709551"),
    "end past the end": (table(tensor("t", (17,))), "to byte 132, but the file has 128"),
}
# fmt: on


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(put: Put, name: str) -> None:
    content, message = HOSTILE[name]
    path = put(content)
    with pytest.raises(GGUFError) as caught:
        GGUFFile(path)
    sentence = str(caught.value)
    assert sentence.startswith(f"{path}: ")
    assert message in sentence
    assert "\n" not in sentence
    assert "\x1b" not in sentence
    assert len(sentence) < 400 + len(str(path))


def test_big_endian_file(tmp_path: Path) -> None:
    path = tmp_path / "big.gguf"
    writer = gguf.GGUFWriter(path, "llama", endianess=GGUFEndian.BIG)
    writer.add_key_value("n", 1, GGUFValueType.UINT32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(
        GGUFError, match="byte-swapped \\(big-endian\\) GGUF file, expected a little"
    ):
        GGUFFile(path)


def test_truncated_at_every_byte(put: Put) -> None:
    for n in range(len(SMALL)):
        with pytest.raises(GGUFError):
            GGUFFile(put(SMALL[:n]))
    read_all(put(SMALL))


@pytest.mark.parametrize("value", [0x00, 0x01, 0x7F, 0x80, 0xFF])
def test_every_byte_replaced(put: Put, value: int) -> None:
    accepted = 0
    for i in range(len(SMALL) - 140):
        content = bytearray(SMALL)
        content[i] = value
        try:
            read_all(put(bytes(content)))
            accepted += 1
        except GGUFError:
            pass
    assert 0 < accepted < len(SMALL) - 140


NUMBERS = [0, 1, 2, 7, 8, 9, 12, 13, 31, 32, 33, 64, 65, 255, 256, 2**16, 2**31 - 1, 2**31]
NUMBERS += [
    2**32 - 1,
    2**32,
    2**53,
    2**61,
    2**62,
    2**63 - 8,
    2**63 - 1,
    2**63,
    2**64 - 32,
    2**64 - 1,
]
POSITIONS = st.integers(0, len(SMALL))
EDITS = st.one_of(
    st.tuples(st.just("put32"), POSITIONS, st.sampled_from(NUMBERS).filter(lambda n: n < 2**32)),
    st.tuples(st.just("put64"), POSITIONS, st.sampled_from(NUMBERS)),
    st.tuples(st.just("byte"), POSITIONS, st.integers(0, 255)),
    st.tuples(st.just("cut"), POSITIONS, st.integers(1, 64)),
    st.tuples(st.just("grow"), POSITIONS, st.binary(min_size=1, max_size=40)),
    st.tuples(st.just("copy"), POSITIONS, st.tuples(POSITIONS, st.integers(1, 200))),
    st.tuples(st.just("end"), POSITIONS, st.none()),
)


def mutate(content: bytes, edits: list[tuple[str, int, Any]]) -> bytes:
    out = bytearray(content)
    for verb, at, value in edits:
        if verb == "put32":
            out[at : at + 4] = u32(value)
        elif verb == "put64":
            out[at : at + 8] = u64(value)
        elif verb == "byte":
            out[at : at + 1] = bytes([value])
        elif verb == "cut":
            del out[at : at + value]
        elif verb == "grow":
            out[at:at] = value
        elif verb == "copy":
            out[at:at] = out[value[0] : value[0] + value[1]]
        else:
            del out[at:]
    return bytes(out)


@settings(
    max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(edits=st.lists(EDITS, min_size=1, max_size=4))
def test_any_mutation_is_read_or_refused(put: Put, edits: list[tuple[str, int, Any]]) -> None:
    with contextlib.suppress(GGUFError):
        read_all(put(mutate(SMALL, edits)))


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(tail=st.binary(max_size=200), counts=st.tuples(st.integers(0, 5), st.integers(0, 5)))
def test_random_header_is_read_or_refused(put: Put, tail: bytes, counts: tuple[int, int]) -> None:
    with contextlib.suppress(GGUFError):
        read_all(put(build(n_tensors=counts[0], n_entries=counts[1]) + tail))


# ---- what refusing costs -------------------------------------------------------------------


def zeros(inner: int, count: int) -> bytes:
    """An entry that is an array, without its elements, which the hole of zeros provides."""
    return text("z") + u32(ARRAY) + u32(inner) + u64(count)


MANY = (1 << 16) - 1
FAR = "expected at most 67108864 bytes before the tensor data"
# Each file is what stands here, made 10 GB long with a hole of zeros, which takes no disk.
# fmt: off
COSTLY: dict[str, tuple[bytes, str]] = {
    "zero-length strings": (build([zeros(STRING, 1 << 22)], n_entries=2), "1 is empty"),
    "too many strings": (build([zeros(STRING, (1 << 22) + 1)]), "expected at most 4194304"),
    "large array": (build([zeros(U8, 1 << 33)]), FAR),
    "large array of bools": (build([zeros(BOOL, 60 << 20)], n_entries=2), "1 is empty"),
    "large string": (value(STRING, u64(60 << 20)), "expected at most 25165824"),
    "wide characters": (
        build([text("k") + u32(STRING) + u64((24 << 20) - 1) + "😀".encode()], n_entries=2), "empty"
    ),
    "many arrays": (
        build([zeros(ARRAY, MANY) + (u32(STRING) + u64(0)) * MANY], n_entries=2), "1 is empty"
    ),
    "far string": (build([zeros(STRING, 1 << 22) + u64(9 << 30)]), FAR),
    "many tensors": (
        build([], [tensor(f"t{i}", (32,), 2, 32 * i) for i in range(MANY)], n_tensors=MANY + 1),
        "the name of tensor 65535 is empty",
    ),
    "overlapping tensors": (
        build([], [tensor(f"t{i}", (32,), 2, 0) for i in range(MANY)]), "overlap"
    ),
    "many entries": (
        build([entry(f"k{i}", U8, 1) for i in range(MANY)], n_entries=MANY + 1), "65535 is empty"
    ),
}
# fmt: on

CHILD = """
import resource, sys, time
from engine.gguf import GGUFFile
start = time.process_time()
try:
    GGUFFile(sys.argv[1])
    print("accepted")
except ValueError as error:
    print(error)
print(time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.parametrize("name", COSTLY)
def test_refusing_is_cheap(put: Put, name: str) -> None:
    """At most 2 s and 300 MB, whatever the size of the file."""
    head, message = COSTLY[name]
    path = put(head)
    os.truncate(path, 10 << 30)
    command = [sys.executable, "-c", CHILD, str(path)]
    root = Path(__file__).parents[1]
    answer, cost = subprocess.check_output(command, text=True, timeout=30, cwd=root).splitlines()
    seconds, peak_kb = map(float, cost.split())
    assert message in answer
    assert seconds < 2
    assert peak_kb < 300_000
