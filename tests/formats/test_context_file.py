"""Contexts in files: they continue bit for bit, and files that do not fit are refused by name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from lariat import GGUFFile
from lariat.config import CACHE_TYPES, RopeConfig
from lariat.errors import ContextError, LariatError
from lariat.formats import context_file

from tests.support.cache_blocks import CHANNEL_TYPES
from tests.support.contexts import CACHES, ids_of, load, write_deep, write_shallow
from tests.support.model_files import write_llama


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shallow(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_deep(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("types", CACHE_TYPES)
def test_saved_and_loaded_goes_on_bit_for_bit(deep, cache, types, tmp_path):
    file = tmp_path / "context.safetensors"
    with load(deep, cache, type_k=types, type_v=types) as llm, llm.context() as context:
        context.append(ids_of(90))
        if cache == "raw" or types not in CHANNEL_TYPES:
            context.delete(10, 25)
        context.save(file)
        expected = [context.logits([3, 4]), context.logits(ids_of(40))]
        tokens = context.tokens
    with load(deep, cache, type_k=types, type_v=types) as llm, llm.context() as context:
        context.append([5, 6, 7])
        context.load(file)
        assert context.tokens == tokens
        assert np.array_equal(context.logits([3, 4]), expected[0])
        assert np.array_equal(context.logits(ids_of(40)), expected[1])


def test_files_that_do_not_fit_are_refused_and_nothing_is_lost(deep, path, tmp_path):
    file = tmp_path / "context.safetensors"
    with load(deep, "raw") as llm, llm.context() as context:
        context.append(ids_of(40))
        context.save(file)
        whole = file.read_bytes()
        expected = context.logits([3])

        def refused(match: str) -> None:
            with pytest.raises(LariatError, match=match):
                context.load(file)
            assert np.array_equal(context.logits([3]), expected)

        for n in (0, 7, 100, len(whole) - 1):
            file.write_bytes(whole[:n])
            refused("damaged")
        file.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
        refused("checksum")
        # NumPy does not know every type that the format has.
        n = 8 + int.from_bytes(whole[:8], "little")
        header = json.loads(whole[8:n])
        header["keys"] |= {"dtype": "F8_E5M2", "shape": [4 * 40, *header["keys"]["shape"]]}
        header["keys"]["shape"].remove(40)
        text = json.dumps(header).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + whole[n:])
        refused("damaged: its tensors are of other types")
        file.write_bytes(whole)
        saved = context_file.load(file, {})
        for forged in (-1, llm.n_vocab, 2**31 - 1):  # the checksum is right
            tokens = np.append(saved.tokens[:-1], np.int32(forged))
            context_file.save(file, llm.signature(), saved._replace(tokens=tokens))
            refused("damaged: token id .* out of range")
        segments = saved.segments.copy()
        segments[-1, 1] = 2**31 - 1  # with its length below 0 in 32 bits
        context_file.save(file, llm.signature(), saved._replace(segments=segments))
        refused("damaged: its parts do not fit")
        with pytest.raises(FileNotFoundError):
            context.load(tmp_path / "none")
        with pytest.raises(ContextError, match="cannot be written"):
            context.save(tmp_path / "no" / "folder")
        with pytest.raises(ContextError, match="directory"):
            context.save(tmp_path)
        assert sorted(p.name for p in tmp_path.iterdir()) == [file.name]
    file.write_bytes(whole)
    for other, options, match in (
        (deep, {"cache": "roped"}, "cache strategy"),
        (deep, {"cache": "raw", "type_k": "f16"}, "type of keys"),
        (deep, {"cache": "raw", "type_v": "q8_0"}, "type of values"),
        (path, {"cache": "raw"}, "another model"),
    ):
        with load(other, **options) as llm, llm.context() as context:
            with pytest.raises(ContextError, match=match):
                context.load(file)
            assert len(context) == 0
    with (
        load(deep, "raw", n_ctx=32) as llm,
        llm.context() as context,
        pytest.raises(ContextError, match="40 tokens, more than the context of 32"),
    ):
        context.load(file)


def test_a_model_s_fingerprint_takes_little_reading(tmp_path, monkeypatch):
    """It is the same with and without a mapping."""
    path = write_llama(tmp_path / "m.gguf", dim=256, n_layers=2, n_ff=1024)
    preadv, n_read = os.preadv, []

    def counted(file, into, at):
        n_read.append(into[0].nbytes)
        return preadv(file, into, at)

    with GGUFFile(path) as mapped, GGUFFile(path, use_mmap=False) as read:
        monkeypatch.setattr(os, "preadv", counted)
        assert context_file.fingerprint(read) == context_file.fingerprint(mapped)
        assert 0 < sum(n_read) < 4096 * len(read.tensors) < read.n_bytes / 20


@pytest.mark.parametrize("cache", CACHES)
def test_a_context_of_another_rope_is_refused_by_name(deep, cache, tmp_path):
    """Rotated keys have the angles in them; raw keys depend on the angles of the layers below."""
    file, stretched = tmp_path / "context.safetensors", RopeConfig("linear", scale=2.0)
    with load(deep, cache) as llm, llm.context() as context:
        context.append(ids_of(40))
        context.save(file)
        expected = context.logits([3])
    with load(deep, cache, rope=stretched) as llm, llm.context() as context:
        context.append([4, 5])
        with pytest.raises(ContextError) as error:
            context.load(file)
        assert str(error.value) == (
            f"{file}: was saved with another RoPE: 'base 10000.0', "
            "expected 'base 10000.0, scale 2.0'"
        )
        assert context.tokens == [4, 5]
    with load(deep, cache, rope=RopeConfig("none", scale=7.0)) as llm, llm.context() as context:
        context.load(file)  # other settings with the same angles
        assert np.array_equal(context.logits([3]), expected)


def test_a_file_of_an_earlier_version_is_refused_by_name(deep, tmp_path):
    file = tmp_path / "context.safetensors"
    with load(deep, "raw") as llm, llm.context() as context:
        context.append([4, 5])
        context.save(file)
        whole = file.read_bytes()
        file.write_bytes(whole.replace(b'"version": "3"', b'"version": "2"'))
        with pytest.raises(ContextError, match="another format version: '2', expected '3'"):
            context.load(file)
        assert context.tokens == [4, 5]
