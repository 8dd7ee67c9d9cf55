"""The folder of a chunk library: its files, damaged ones, other processes, crashes, Ctrl-C."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lariat import ChunkLibrary, ContextError
from lariat.formats import chunk_file
from lariat.reuse import library

from tests.support.contexts import ids_of, load, n_held, write_mapped

A, B, C = ids_of(50), ids_of(41, 1), ids_of(37, 2)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mapped(tmp_path_factory.mktemp("model"))


def test_names_contents_and_files(deep, shelf):
    with load(deep) as llm:
        first = shelf.add(llm, "a", A)
        computed = llm.runner.model.forward
        llm.runner.model.forward = None  # the same document is not computed again
        assert shelf.add(llm, "b", A).path == first.path
        llm.runner.model.forward = computed
        shelf.add(llm, "c", "the man and the hat")
        assert [(e.name, e.n_tokens) for e in shelf.entries()] == [
            ("a", 50), ("b", 50), ("c", len(llm.tokenize("the man and the hat", add_bos=False)))
        ]  # fmt: skip
        again = ChunkLibrary(shelf.folder)
        assert again["b"].tokens == A
        shelf.remove("a")
        assert again["b"].tokens == ChunkLibrary(shelf.folder)["b"].tokens == A
        shelf.add(llm, "b", B)  # replaced; nobody refers to the old file
        assert again["b"].tokens == B
        assert len(list(shelf.folder.glob("*.safetensors"))) == 2
    assert ChunkLibrary(shelf.folder / "none").entries() == []


def test_damaged_files_are_refused(deep, shelf, tmp_path, monkeypatch):
    monkeypatch.setattr(chunk_file, "_PIECE", 1000)  # so that a file is many, the last a short one
    with load(deep) as llm, llm.context() as context:
        path = shelf.add(llm, "a", A).path
        whole = path.read_bytes()

        def refused(data: bytes, match: str = "damaged") -> None:
            path.unlink()  # a mapped file that is cut in place would end the process
            path.write_bytes(data)
            with pytest.raises(ContextError, match=match) as error:
                context.append(ChunkLibrary(shelf.folder)["a"])
            assert str(path) in str(error.value)
            assert context.tokens == []

        for n in (0, 7, 300, 4096, len(whole) - 1):
            refused(whole[:n])
        rng = random.Random(0)
        n_header = 8 + int.from_bytes(whole[:8], "little")
        for at in [
            n_header,
            len(whole) - 1,
            *(rng.randrange(n_header, len(whole)) for _ in "12345"),
        ]:
            refused(whole[:at] + bytes([whole[at] ^ 64]) + whole[at + 1 :], "checksum")
        refused(whole.replace(b"lariat-chunk", b"lariat-other"), "not a lariat-chunk")
        refused(whole.replace(b'"version": "3"', b'"version": "2"'), "another format version: '2'")
        header = b'{"\\u001b[2J":{"dtype":"U8","shape":[1],"data_offsets":[0,9]}}'
        refused(len(header).to_bytes(8, "little") + header, r"or not a chunk: '[ -~]+'$")
        path.unlink()
        path.write_bytes(whole)
        chunk = ChunkLibrary(shelf.folder)["a"]
        for forged in (-1, llm.n_vocab):  # the checksum is right
            arrays = {n: getattr(chunk, n) for n in ("keys", "values", "segments")}
            tokens = {"tokens": np.int32([*chunk.tokens[1:], forged]), "sink": np.int32(chunk.sink)}
            chunk_file.save(tmp_path / "forged", llm.signature(99), arrays | tokens)
            refused((tmp_path / "forged").read_bytes(), "damaged: token id .* out of range")
        arrays = {n: getattr(chunk, n) for n in ("keys", "values")}
        arrays |= {"tokens": np.int32(chunk.tokens), "sink": np.int32(chunk.sink)}
        segments = chunk.segments.copy()
        segments[-1, 1] = 2**31 - 1  # and its length: less than 0 in 32 bits
        chunk_file.save(tmp_path / "forged", llm.signature(99), arrays | {"segments": segments})
        refused((tmp_path / "forged").read_bytes(), "damaged: its parts do not fit")
        refused(whole + b"x")
        # It is computed again when it is added again.
        assert shelf.add(llm, "a", A).path.read_bytes() == whole
        path.unlink()
        with pytest.raises(ContextError, match="cannot be read: No such file"):
            ChunkLibrary(shelf.folder)["a"]
        index = shelf.folder / "index.json"
        for bad in ("", "[", "[1]", "[" * 5000, '[{"name": "a"}]', "{}x"):
            index.write_text(bad)
            with pytest.raises(ContextError, match=r"index.json: is damaged"):
                shelf.entries()
        entry = {"name": "a", "content": "0" * 32, "n_tokens": 1, "n_bytes": 1}
        entry |= {"model": "", "type_k": "f16", "type_v": "f16"}
        index.write_text(json.dumps([entry]))
        assert [e.name for e in shelf.entries()] == ["a"]
        for key, forged in [
            ("name", 5), ("name", "\x1b[2J"), ("content", 5), ("content", "../" * 8 + "0" * 8),
            ("content", "0" * 5000), ("n_tokens", "1"), ("n_tokens", True), ("n_bytes", -1),
            ("type_k", "\x1b[2J"), ("type_v", None), ("model", []), ("model", "\n"), ("more", 1),
        ]:  # fmt: skip
            index.write_text(json.dumps([entry | {key: forged}]))
            with pytest.raises(ContextError, match=r"index.json: is damaged"):
                shelf.entries()


_ADDER = """
import sys
from lariat import LLM, ChunkLibrary
model, folder, who = sys.argv[1:]
with LLM(model, cache="raw", n_threads=1) as llm:
    shelf = ChunkLibrary(folder)
    for i in range(12):
        shelf.add(llm, f"{who}{i}", [3 + i, 4, 5, ord(who)])
        shelf.add(llm, "common", [3 + i, 7])
        if i % 3 == 0:
            shelf.remove(f"{who}{i}")
        assert len(shelf[f"{who}{i}"] if i % 3 else [1, 2, 3, 4]) == 4
"""


def test_two_processes_write_one_library(deep, shelf):
    processes = [
        subprocess.Popen([sys.executable, "-c", _ADDER, str(deep), str(shelf.folder), who])
        for who in "xy"
    ]
    assert [process.wait() for process in processes] == [0, 0]
    names = [e.name for e in shelf.entries()]
    assert names == sorted(["common", *(f"{who}{i}" for who in "xy" for i in range(12) if i % 3)])
    assert all(len(shelf[name]) in (2, 4) for name in names)
    files = {path.stem for path in shelf.folder.glob("*.safetensors")}
    assert files == {e.content for e in shelf.entries()}


_CRASH = """
import os, sys
from lariat import LLM, ChunkLibrary
model, folder, at = sys.argv[1:]
n = 0
def crash(*args):
    global n
    n += 1
    if n == int(at):
        os._exit(9)
    return real(*args)
name = "fsync" if int(at) < 3 else "replace"
if name == "replace":
    at = str(int(at) - 2)
real = getattr(os, name)
setattr(os, name, crash)
with LLM(model, cache="raw", n_threads=1) as llm:
    ChunkLibrary(folder).add(llm, "b", list(range(4, 90)))
"""


@pytest.mark.parametrize("at", ["1", "2", "3", "4"])
def test_a_crash_while_writing_leaves_no_broken_entry(deep, shelf, at):
    """Before the chunk's file is whole, before the index is, and before each is renamed."""
    with load(deep, type_k="f16", type_v="f16") as llm:
        shelf.add(llm, "a", A)
        command = [sys.executable, "-c", _CRASH, str(deep), str(shelf.folder), at]
        assert subprocess.run(command, check=False).returncode == 9
        assert [e.name for e in shelf.entries()] == ["a"]
        assert ChunkLibrary(shelf.folder)["a"].tokens == A
        shelf.add(llm, "c", C)
        kept = {e.content for e in shelf.entries()}
        assert {p.stem for p in shelf.folder.iterdir()} == kept | {".lock", "index"}


def test_an_interrupted_add_leaves_nothing(deep, shelf, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    with load(deep) as llm:
        shelf.add(llm, "a", A)
        before = sorted(shelf.folder.iterdir())
        monkeypatch.setattr(library, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            shelf.add(llm, "b", B)
        assert sorted(shelf.folder.iterdir()) == before
        assert n_held(llm) == 0
