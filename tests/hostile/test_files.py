"""Hostile files: every file is read, or refused with one sentence.

SECURITY.md has the promise. Parsing and files are here; metadata, values and messages in
test_models.py, vocabularies in test_tokenizer_metadata.py and test_tokenizer_bpe.py
(`test_bad_metadata`, `test_odd_vocabularies`), tensors that do not fit in test_weights.py, threads
and processes in test_processes.py, costs in test_costs.py.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import gguf
import numpy as np
import pytest
from gguf import GGUFEndian, GGUFValueType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lariat import LLM
from lariat.errors import GGUFError
from lariat.formats.block_formats import BLOCK, GGMLType
from lariat.formats.gguf import GGUFFile, StringArray

from tests.support.gguf_bytes import (
    ARRAY,
    BOOL,
    F32,
    F64,
    I8,
    I16,
    I32,
    I64,
    SMALL,
    STRING,
    U8,
    U16,
    U32,
    U64,
    build,
    entry,
    tensor,
    text,
    u32,
    u64,
)
from tests.support.model_files import write_llama

Put: TypeAlias = Callable[[bytes], Path]


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """Let a test fail that loops or waits for a pipe, so that the suite does not stop."""

    def stop(*_: object) -> None:
        raise TimeoutError("the reader did not return")

    old = signal.signal(signal.SIGALRM, stop)
    signal.alarm(50)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)


def contents(path: Path, use_mmap: bool = True) -> dict[str, Any]:
    """Everything in a file, as plain values."""

    def plain(value: Any) -> Any:
        if isinstance(value, StringArray):
            return list(value.iter_raw())
        if isinstance(value, list):
            return [plain(item) for item in value]
        if isinstance(value, np.ndarray):
            return value.dtype.name, value.tobytes()
        assert isinstance(value, (str, int, float, bool))
        return type(value), repr(value)  # repr: NaN equals NaN

    found: dict[str, Any] = {}
    with GGUFFile(path, use_mmap=use_mmap) as file:
        for key, value in file.metadata.items():
            found["metadata " + key] = plain(value)
        for name, info in file.tensors.items():
            view = file.data(name)
            assert view.nbytes == info.n_bytes
            assert not view.flags.writeable
            found["tensor " + name] = info, view.tobytes()
            del view
            file.release(name)
    return found


def refusals(path: Path) -> list[str]:
    """The error for a file that is refused; the same sentence whether it is mapped or read."""
    said = []
    for use_mmap in (True, False):
        with pytest.raises(GGUFError) as caught:
            contents(path, use_mmap)
        said.append(str(caught.value))
    assert said[0] == said[1]
    return said


# ---- Parsing ----


def value(value_type: int, rest: bytes) -> bytes:
    """A file with one entry, "k"; `rest` is everything behind its type."""
    return build([text("k") + u32(value_type) + rest])


def array(inner: int, count: int, rest: bytes = b"") -> bytes:
    return value(ARRAY, u32(inner) + u64(count) + rest)


def align(value_type: int, number: Any) -> bytes:
    return build([entry("general.alignment", value_type, number)])


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
    "type 42": (table(tensor(type=42)), "'t' has type 42, expected a type of ggml from 0 to 41"),
    "removed type": (table(tensor(type=31)), "'t' has type 31 (Q4_0_4_4, no longer in use)"),
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
    sentence = refusals(path)[0]
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
        path = put(SMALL[:n])
        assert str(path) in refusals(path)[0]
    assert contents(put(SMALL)) == contents(put(SMALL), use_mmap=False)


@pytest.mark.parametrize("value", [0x00, 0x01, 0x7F, 0x80, 0xFF])
def test_every_byte_replaced(put: Put, value: int) -> None:
    accepted = 0
    for i in range(len(SMALL) - 140):
        content = bytearray(SMALL)
        content[i] = value
        try:
            contents(put(bytes(content)))
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
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(edits=st.lists(EDITS, min_size=1, max_size=4))
def test_any_mutation_is_read_or_refused(put: Put, edits: list[tuple[str, int, Any]]) -> None:
    """Both ways of reading agree."""
    path, found = put(mutate(SMALL, edits)), None
    with contextlib.suppress(GGUFError):
        found = contents(path)
    if found is None:
        refusals(path)
    else:
        assert contents(path, use_mmap=False) == found


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(tail=st.binary(max_size=200), counts=st.tuples(st.integers(0, 5), st.integers(0, 5)))
def test_random_header_is_read_or_refused(put: Put, tail: bytes, counts: tuple[int, int]) -> None:
    with contextlib.suppress(GGUFError):
        contents(put(build(n_tensors=counts[0], n_entries=counts[1]) + tail))


# Values of each type: (type, value) pairs, arrays as (ARRAY, (type of elements, list)).
WHOLE = {U8: (0, 8), I8: (1, 8), U16: (0, 16), I16: (1, 16), U32: (0, 32), I32: (1, 32)}
WHOLE |= {U64: (0, 64), I64: (1, 64)}
ELEMENTS: dict[int, st.SearchStrategy[Any]] = {
    value_type: st.integers(-signed << (bits - 1), (1 << (bits - signed)) - 1)
    for value_type, (signed, bits) in WHOLE.items()
}
ELEMENTS |= {F32: st.floats(width=32), F64: st.floats(), BOOL: st.booleans()}
ELEMENTS[STRING] = st.text(max_size=8)
LISTS = st.one_of(
    [st.tuples(st.just(value_type), st.lists(e, max_size=5)) for value_type, e in ELEMENTS.items()]
)
VALUES = st.one_of(
    [st.tuples(st.just(value_type), e) for value_type, e in ELEMENTS.items()]
    + [
        st.tuples(st.just(ARRAY), LISTS),
        st.tuples(st.just(ARRAY), st.tuples(st.just(ARRAY), st.lists(LISTS, max_size=3))),
    ]
)
NAMES = st.text(min_size=1, max_size=16)  # at most 64 bytes
TENSORS = st.tuples(
    st.sampled_from([GGMLType.F32, GGMLType.F16, GGMLType.Q4_0, GGMLType.Q8_0]),
    st.lists(st.integers(1, 3), min_size=1, max_size=4),
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    metadata=st.dictionaries(
        NAMES.filter(lambda key: key != "general.alignment"), VALUES, max_size=6
    ),
    tensors=st.dictionaries(NAMES, TENSORS, max_size=4),
    use_mmap=st.booleans(),
)
def test_what_was_written_is_read(
    put: Put, metadata: dict[str, Any], tensors: dict[str, Any], use_mmap: bool
) -> None:
    def same(found: Any, value_type: int, value: Any) -> None:
        if value_type != ARRAY:
            assert repr(found) == repr(struct.unpack("<f", struct.pack("<f", value))[0]
                                       if value_type == F32 else value)  # fmt: skip
            return
        inner, items = value
        assert len(found) == len(items)
        for one, item in zip(found, items, strict=True):
            same(one.item() if isinstance(one, np.generic) else one, inner, item)

    table, data = [], b""
    for i, (name, (weight_type, dims)) in enumerate(tensors.items()):
        n_weights, n_bytes = BLOCK[weight_type]
        n_blocks = math.prod(dims)
        data += bytes(-len(data) % 32)
        table.append(tensor(name, (dims[0] * n_weights, *dims[1:]), weight_type, len(data)))
        data += bytes([i + 1]) * (n_blocks * n_bytes)
    path = put(build([entry(key, *pair) for key, pair in metadata.items()], table, data))
    with GGUFFile(path, use_mmap=use_mmap) as file:
        assert list(file.metadata) == list(metadata)
        for key, (value_type, value) in metadata.items():
            same(file.metadata[key], value_type, value)
        assert list(file.tensors) == list(tensors)
        for i, (name, (weight_type, dims)) in enumerate(tensors.items()):
            n_weights, n_bytes = BLOCK[weight_type]
            assert file.tensors[name].type == weight_type
            outer = list(reversed(dims[1:]))
            while len(outer) > 1 and outer[0] == 1:  # as in ggml, they mean nothing
                del outer[0]
            assert file.tensors[name].shape == (*outer, dims[0] * n_weights)
            assert file.data(name).tobytes() == bytes([i + 1]) * (math.prod(dims) * n_bytes)


# ---- Files ----


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
    """A pipe that replaces the file between stat and open does not block the reader."""
    path = put(SMALL)
    status = os.stat(path)
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(os, "stat", lambda *_, **__: status)
    with pytest.raises(GGUFError, match="is a named pipe"):
        GGUFFile(path)


def cut_short(path: Path) -> Path:
    os.truncate(path, path.stat().st_size - 1)
    return path


def test_cut_short_after_it_was_opened(put: Put) -> None:
    """If it were mapped, the lost pages would be a SIGBUS; if it is read, they are an error."""
    with GGUFFile(put(SMALL), use_mmap=False) as file:
        one = file.data("one")
        path = cut_short(file.path)
        with pytest.raises(GGUFError) as caught:
            file.data("two")
        assert bytes(one) == bytes(range(32))
    assert str(caught.value) == (
        f"{path}: ends at byte {len(SMALL) - 1}, but had {len(SMALL)} bytes when it was opened; "
        f"it was cut short meanwhile"
    )


def test_a_disk_that_fails(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with GGUFFile(put(SMALL), use_mmap=False) as file:
        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(GGUFError, match=r"cannot be read: Input/output error"):
            file.data("one")


def test_reading_goes_on_where_the_system_gives_less(
    put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, into, at: preadv(file, [into[0][:7]], at))
    path = put(SMALL)
    assert contents(path, use_mmap=False) == contents(path)


@pytest.mark.parametrize("use_mmap", [True, False])
def test_replaced_by_rename_while_it_is_used(tmp_path: Path, use_mmap: bool) -> None:
    """SECURITY.md asks for this: a program that has the old file open continues with it."""
    path = write_llama(tmp_path / "m.gguf", tied=True)
    other = write_llama(tmp_path / "other.gguf", tied=True, seed=1)
    with LLM(path, n_threads=1, use_mmap=use_mmap) as llm:
        before = llm.logits([1, 5, 6])
        os.replace(other, path)
        assert np.array_equal(llm.logits([1, 5, 6]), before)
        assert np.array_equal(llm.logits([1, 9]), llm.logits([1, 9]))
    with LLM(path, n_threads=1, use_mmap=use_mmap) as llm:
        assert not np.array_equal(llm.logits([1, 5, 6]), before)


def test_emptied_while_it_is_used(tmp_path: Path) -> None:
    """The worst that can happen to a file in use; a model that was read does not notice."""
    path = write_llama(tmp_path / "m.gguf", weight_type="Q8_0")
    with LLM(path, n_threads=1, use_mmap=False) as llm:
        before = llm.logits([1, 5, 6])
        os.truncate(path, 0)
        assert np.array_equal(llm.logits([1, 5, 6]), before)


def test_nothing_of_a_read_file_stays_open(put: Put) -> None:
    path = put(SMALL)
    bad = path.with_name("bad.gguf")
    bad.write_bytes(SMALL[:-1])
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        GGUFFile(path, use_mmap=False).close()
        with pytest.raises(GGUFError):
            GGUFFile(bad, use_mmap=False)
    assert len(os.listdir("/proc/self/fd")) == before
