"""The fuzz targets, without the fuzzer: all seeds are accepted, and some hundred changed
inputs do no harm. `make fuzz` continues where this ends."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from lariat.errors import LariatError
from lariat.formats.gguf import GGUFFile
from lariat.llm import LLM

from tests.fuzz import mutate_gguf, mutate_safetensors, seeds
from tests.fuzz.mutate import mutate
from tests.fuzz.targets import INPUTS, Targets

N_CHANGED = 400


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("corpus")
    seeds.write_all(folder, tmp_path_factory.mktemp("scratch"))
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Targets:
    return Targets(tmp_path_factory.mktemp("targets"))


def flip(data: bytes, max_size: int) -> bytes:
    """Stands for the changes of libFuzzer: one byte becomes another."""
    at = len(data) // 2
    return data[:at] + bytes([255 - data[at]]) + data[at + 1 :] if data else b"\0"


def test_seeds_are_of_every_kind_small_and_accepted(corpus, targets):
    """A seed that is refused would reach no code behind its check."""
    assert {data[0] for data in corpus.values()} == set(range(len(INPUTS)))
    for name, data in corpus.items():
        assert len(data) < 1 << 16, name
        targets(data)
        # Cache types by channel need heads of 32; an index has no chunk beside it.
        expected = "cannot be read" if "index" in name else "q8_ch"
        assert all(expected in text for text in targets.refused), name


def test_changed_seeds_do_no_harm(corpus, targets):
    inputs = list(corpus.values())
    for seed in range(N_CHANGED):
        data = inputs[seed % len(inputs)]
        for step in range(1 + seed % 3):
            data = mutate(data, 1 << 16, seed * 4 + step, flip)
        targets(data)


def test_a_change_is_decided_by_its_seed(corpus):
    data = corpus["seed-model-q8_0"]
    assert mutate(data, 1 << 16, 5, flip) == mutate(data, 1 << 16, 5, flip)
    assert len({mutate(data, 1 << 16, seed, flip) for seed in range(50)}) > 40
    assert all(len(mutate(data, 1000, seed, flip)) <= 1000 for seed in range(50))


def test_a_file_that_is_taken_apart_is_put_together_the_same(corpus):
    for name, data in corpus.items():
        if name.startswith("seed-model"):
            assert mutate_gguf._write(mutate_gguf._read(data[1:])) == data[1:]


def test_many_changed_files_get_past_the_parser_and_into_the_model(corpus, tmp_path):
    """Otherwise the fuzzer would only try the first checks."""
    data = corpus["seed-model-f32"][1:]
    n_open = n_loaded = 0
    for seed in range(60):
        path = tmp_path / f"{seed}.gguf"
        path.write_bytes(mutate_gguf.mutate(data, random.Random(seed)))
        try:
            GGUFFile(path).close()
            n_open += 1
            LLM(path, n_ctx=32, n_threads=1).close()
            n_loaded += 1
        except LariatError:
            pass
    assert n_open > 20
    assert n_loaded > 8


def test_changed_contexts_have_the_right_checksum(corpus, tmp_path):
    """Most of them, because the code behind the checksum is to be tried."""
    from lariat.formats import context_file

    path: Path = tmp_path / "x"
    refused = []
    for seed in range(60):
        data = corpus["seed-context-1"][2:]
        path.write_bytes(mutate_safetensors.mutate(data, "context", random.Random(seed)))
        try:
            context_file.load(path, {})
            refused.append("")
        except LariatError as error:
            refused.append(str(error))
    assert sum("checksum" in text for text in refused) < 15
    assert sum("do not fit" in text for text in refused) > 5
    assert refused.count("") > 10
