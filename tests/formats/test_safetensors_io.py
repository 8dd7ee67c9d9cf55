"""Safetensors files: the library reads what is written, and damaged headers are refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from lariat.errors import ContextError, LariatError
from lariat.formats import safetensors_io
from safetensors.numpy import load_file

ARRAYS = {
    "halves": np.arange(6, dtype=np.float16).reshape(2, 3),
    "bytes": np.arange(5, dtype=np.uint8),
    "none": np.zeros((0, 3), np.int32),
    "reals": np.linspace(-1, 1, 7, dtype=np.float32),
    "levels": np.array([[0, 65535]], np.uint16),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    safetensors_io.save(path, "test", {"model": "a"}, ARRAYS)
    return path


def rewrite(path: Path, change) -> None:
    """Change the header; the data stay."""
    data = path.read_bytes()
    n = 8 + int.from_bytes(data[:8], "little")
    text = change(json.loads(data[8:n]))
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + data[n:])


def test_the_library_reads_the_same_arrays(path):
    found = load_file(path)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)


@pytest.mark.parametrize("alignment", [8, 4096])
def test_what_is_written_is_read(tmp_path, alignment):
    path = tmp_path / "file"
    safetensors_io.save(path, "test", {"model": "a"}, ARRAYS, alignment)
    with safetensors_io.opened(path, "a test") as (file, header):
        assert header.metadata == {
            "format": "test",
            "version": safetensors_io.VERSION,
            "model": "a",
            "checksum": safetensors_io.checksum(ARRAYS),
        }
        assert header.tensors["halves"].offset % alignment == 0
        for name, array in ARRAYS.items():
            found = safetensors_io.read(file, header.tensors[name])
            assert (found.dtype, found.shape) == (array.dtype, array.shape)
            assert np.array_equal(found, array)


def test_the_layout_says_the_size_of_the_file(path):
    shapes = {name: (array.dtype, array.shape) for name, array in ARRAYS.items()}
    metadata = {"model": "a", "checksum": safetensors_io.checksum(ARRAYS)}
    layout = safetensors_io.layout("test", metadata, shapes)
    data = path.read_bytes()
    assert layout.n_bytes == len(data)
    assert data.startswith(layout.head)
    at = layout.offsets["reals"]
    assert data[at : at + ARRAYS["reals"].nbytes] == ARRAYS["reals"].tobytes()


def test_the_checksum_covers_names_shapes_types_and_contents():
    a = np.arange(6, dtype=np.int32)
    others = [
        {"b": a}, {"a": a.reshape(2, 3)}, {"a": a.view(np.float32)}, {"a": a + 1}, {"a": a, "b": a},
    ]  # fmt: skip
    sums = [safetensors_io.checksum(arrays) for arrays in ({"a": a}, *others)]
    assert len(set(sums)) == len(sums)


def test_the_checksum_does_not_depend_on_the_pieces():
    a = np.arange(1000, dtype=np.int32)

    def pieces_of(name: str, array: np.ndarray):
        data = array.view(np.uint8).data
        return (data[at : at + 77] for at in range(0, len(data), 77))

    assert safetensors_io.checksum({"a": a}, pieces_of) == safetensors_io.checksum({"a": a})


@pytest.mark.parametrize(
    ("signature", "match"),
    [
        ({"model": "b"}, "another model .fingerprint.: 'a', expected 'b'"),
        ({"rope": "x"}, "another RoPE: '', expected 'x'"),
        ({"other": "x"}, "another other: ''"),
    ],
)
def test_another_signature_is_refused_by_name(path, signature, match):
    with safetensors_io.opened(path, "a test") as (_, header):
        safetensors_io.check_signature(path, header, "test", {"model": "a"})
        with pytest.raises(ContextError, match=match):
            safetensors_io.check_signature(path, header, "test", signature)
        with pytest.raises(LariatError, match="but not a lariat-context"):
            safetensors_io.check_signature(path, header, "lariat-context", {}, LariatError)


def test_other_tensors_are_refused(path):
    expected = {"halves": ("F16",), "bytes": ("U8",), "none": ("I32", "F32"), "reals": ("F32",)}
    with safetensors_io.opened(path, "a test") as (_, header):
        with pytest.raises(ContextError, match="it has other tensors than a test"):
            safetensors_io.check_tensors(path, header, "a test", expected)
        expected["levels"] = ("U16",)
        safetensors_io.check_tensors(path, header, "a test", expected)
        expected["levels"] = ("I32",)
        with pytest.raises(ContextError, match="its tensors are of other types"):
            safetensors_io.check_tensors(path, header, "a test", expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda header: json.dumps(header)[:-1],
        lambda header: "[" * 5000,
        lambda header: json.dumps(header | {"\x1b[2J": {}}),
        lambda header: json.dumps(header | {"x": header["reals"]}),
        lambda header: json.dumps(header | {"reals": header["reals"] | {"shape": [8]}}),
    ],
)
def test_a_damaged_header_is_one_printable_sentence(path, change):
    rewrite(path, change)
    with (
        pytest.raises(LariatError, match="is damaged, or not a test: ") as error,
        safetensors_io.opened(path, "a test", LariatError),
    ):
        pass
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 400


def test_files_that_are_not_regular_are_refused_and_missing_ones_named(tmp_path):
    with pytest.raises(FileNotFoundError), safetensors_io.opened(tmp_path / "x", "a test"):
        pass
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with (
            pytest.raises(ContextError, match="is not a regular file, expected a test"),
            safetensors_io.opened(path, "a test"),
        ):
            pass


def test_a_file_that_becomes_shorter_is_an_error(path):
    safetensors_io.save(path, "test", {}, {"levels": np.zeros(1 << 20, np.uint16)})
    with safetensors_io.opened(path, "a test") as (file, header):
        os.truncate(path, path.stat().st_size - 1)
        with pytest.raises(ValueError, match="cut short"):
            safetensors_io.read(file, header.tensors["levels"])
