"""Types and mixes of `lariat quantize`, importance matrices, and `lariat imatrix`.

llama.cpp is the judge: digests of its blocks, and the types that it gave the matrices of models.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from lariat import LLM, GGUFFile, _kernels
from lariat._quantize import quantize_into, targets
from lariat.cli.main import main
from lariat.errors import LariatError
from lariat.formats import block_formats
from lariat.formats.block_formats import BLOCK, GGMLType
from lariat.formats.gguf import TensorInfo
from lariat.formats.imatrix import read_imatrix, write_imatrix
from lariat.tools import importance, quantize
from lariat.tools.quantize import QuantizeConfig, quantize_file
from lariat.tools.quantize_types import FILE_TYPES, Mix, Shape, fitting, is_quantized

from tests.support import quantized
from tests.support.model_files import write_gguf, write_llama

ISAS = _kernels.supported_isas()
DATA = Path(__file__).parents[1] / "data"
BLOCKS = json.loads((DATA / "blocks_llama_cpp.json").read_text())["blocks"]
MIXES = json.loads((DATA / "mixes_llama_cpp.json").read_text())


def rounded(x: np.ndarray, target: str, isa: str = "scalar", n_threads: int = 1, worth=None):
    n_block, n_bytes = BLOCK[GGMLType[target]]
    out = np.full(x.size // n_block * n_bytes, 0xA5, np.uint8)
    raw = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
    assert quantize_into(raw, "F32", out, target, isa, n_threads, worth) is None
    return out


# ---- blocks ----


def test_every_type_has_a_digest() -> None:
    assert set(BLOCKS) == set(targets()) - {"F16"}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("target", BLOCKS)
@pytest.mark.parametrize("label", ["plain", "weighted"])
def test_blocks_are_llama_cpps(target: str, label: str, isa: str) -> None:
    worth = quantized.importance() if label == "weighted" else None
    found = rounded(quantized.rows(), target, isa, 2, worth)
    assert hashlib.sha256(found.tobytes()).hexdigest()[:32] == BLOCKS[target][label]


@pytest.mark.parametrize("target", ["Q2_K", "Q4_K", "Q5_0", "IQ4_XS"])
def test_neither_threads_nor_the_cut_matter(target: str) -> None:
    """More rows than a task has, and one that is longer than a task."""
    x = np.tile(quantized.rows(), (3, 1))
    worth = quantized.importance()
    for some, of_columns in ((x, worth), (x.reshape(1, -1), np.tile(worth, len(x)))):
        for given in (None, of_columns):
            once = rounded(some, target, ISAS[-1], 1, given)
            for n_threads in (2, 7):
                found = rounded(some, target, ISAS[-1], n_threads, given)
                np.testing.assert_array_equal(found, once)


@pytest.mark.parametrize("target", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "Q4_0"])
def test_columns_that_matter_get_smaller_errors(target: str) -> None:
    x = quantized.rows()[13:]
    worth = np.ones(quantized.N_COLS, np.float32)
    worth[::16] = 1000
    errors = []
    for given in (None, worth):
        back = block_formats.dequantize(
            rounded(x, target, worth=given).reshape(len(x), -1), GGMLType[target]
        )
        errors.append(np.abs(back - x)[:, ::16].mean())
    assert errors[1] < 0.9 * errors[0]


def test_an_importance_of_another_length_is_refused() -> None:
    x = np.zeros((2, 512), np.float32)
    for n in (256 + 128, 0, 2048):
        with pytest.raises(ValueError, match=f"importance of {n} columns"):
            rounded(x, "Q4_K", worth=np.ones(n, np.float32))


# ---- mixes ----


@pytest.mark.parametrize("name", MIXES["models"])
def test_mixes_are_llama_cpps(name: str) -> None:
    model = MIXES["models"][name]
    tensors = [TensorInfo(n, tuple(s), GGMLType.F16, 0, 0) for n, s in model["tensors"]]
    names = [t.name for t in tensors]
    for label, expected in model["types"].items():
        mix_name, _, weighted = label.partition(" ")
        shape = Shape(
            model["architecture"], model["n_layers"], model["n_heads"], model["n_kv_heads"], 0,
            "output.weight" in names, bool(weighted),
        )  # fmt: skip
        mix = Mix(mix_name, shape, sum("attn_v" in n for n in names))
        found = [fitting(mix.type_of(t), t.shape[-1]).name for t in tensors if is_quantized(t)]
        assert found == [MIXES["letters"][letter] for letter in expected], label


def test_aliases_are_those_of_llama_quantize() -> None:
    assert QuantizeConfig("Q4_K").mix == "Q4_K_M"
    assert QuantizeConfig("MXFP4").mix == "MXFP4_MOE"
    numbers = [t.number for t in FILE_TYPES.values()]
    assert len(set(numbers)) == len(numbers)


def test_experts_become_mxfp4_and_each_has_its_own_importance(tmp_path, monkeypatch) -> None:
    """Three experts; all else becomes Q8_0, and what routes tokens stays."""
    rng = np.random.default_rng(0)
    experts = rng.standard_normal((3, 64, 256)).astype(np.float32)
    tensors = {
        "token_embd.weight": (experts[0], "F32"),
        "output.weight": (experts[1], "F32"),
        "blk.0.ffn_down_exps.weight": (experts, "F32"),
        "blk.0.ffn_gate_inp.weight": (experts[0, :3], "F32"),
        "blk.0.attn_q.weight": (experts[2], "F32"),
    }
    source = write_gguf(tmp_path / "m.gguf", {"llama.expert_count": 3}, tensors)
    config = SimpleNamespace(architecture="llama", n_layers=1, n_heads=4, n_kv_heads=4)
    monkeypatch.setattr(quantize, "read_config", lambda _: config)
    quantize_file(source, tmp_path / "q.gguf", QuantizeConfig("MXFP4_MOE"))
    with GGUFFile(tmp_path / "q.gguf") as file:
        types = {name: info.type.name for name, info in file.tensors.items()}
        assert types.pop("blk.0.ffn_down_exps.weight") == "MXFP4"
        assert types.pop("blk.0.ffn_gate_inp.weight") == "F32"
        assert set(types.values()) == {"Q8_0"}
        found = file.data("blk.0.ffn_down_exps.weight").reshape(-1)
        np.testing.assert_array_equal(found, rounded(experts, "MXFP4"))
    worth = rng.random((3, 256)).astype(np.float32)
    name = "blk.0.ffn_down_exps.weight"
    write_imatrix(tmp_path / "i.gguf", {name: worth}, {name: np.ones(3, np.float32)}, "t", 1, 8)
    quantize_file(
        source, tmp_path / "k.gguf", QuantizeConfig("Q4_K_S"), imatrix=tmp_path / "i.gguf"
    )
    with GGUFFile(tmp_path / "k.gguf") as file:
        assert file.tensors[name].type.name == "Q4_K"
        found = file.data(name).reshape(3, -1)
        for expert, values, blocks in zip(experts, worth, found, strict=True):
            np.testing.assert_array_equal(blocks, rounded(expert, "Q4_K", worth=values))


# ---- importance matrices ----


def dat(entries: dict[str, np.ndarray], n_calls: int, end: bytes) -> bytes:
    """The older format: tools/imatrix of llama.cpp"""
    raw = struct.pack("<i", len(entries))
    for name, values in entries.items():
        raw += struct.pack("<i", len(name)) + name.encode()
        raw += struct.pack("<ii", n_calls, values.size) + (values * n_calls).tobytes()
    return raw + end


def test_both_formats_say_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    values = {f"blk.{i}.attn_q.weight": rng.random(64).astype(np.float32) for i in range(2)}
    end = struct.pack("<ii", 7, 8) + b"text.txt"
    (tmp_path / "i.dat").write_bytes(dat(values, 4, end))
    sums = {name: 8 * v[None] for name, v in values.items()}
    counts = {name: np.array([8], np.float32) for name in values}
    write_imatrix(tmp_path / "i.gguf", sums, counts, "text.txt", 7, 512)
    for file in ("i.dat", "i.gguf"):
        found = read_imatrix(tmp_path / file)
        assert (found.dataset, found.n_windows) == ("text.txt", 7)
        assert found.values.keys() == values.keys()
        for name, expected in values.items():
            np.testing.assert_array_equal(found.values[name], expected[None])
    (tmp_path / "i.dat").write_bytes(dat(values, 0, b""))  # as the first versions wrote it
    assert read_imatrix(tmp_path / "i.dat").n_windows == 0


def test_experts_without_tokens_count_alike(tmp_path: Path) -> None:
    sums = {"a": np.array([[2, 4], [0, 0]], np.float32)}
    write_imatrix(tmp_path / "i", sums, {"a": np.array([2, 0], np.float32)}, "", 1, 8)
    np.testing.assert_array_equal(read_imatrix(tmp_path / "i").values["a"], [[1, 2], [1, 1]])


GOOD = dat({"a": np.ones(4, np.float32)}, 1, b"")


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"", "no importance matrix"),
        (b"hello, this is a text", "no importance matrix"),
        (GOOD[:-1], "cut short"),
        (GOOD[:7], "cut short"),
        (struct.pack("<i", -1), "no importance of any"),
        (struct.pack("<ii", 1, -5), "cut short"),
        (struct.pack("<i", 0), "no importance of any"),
        (dat({"a": np.array([np.nan], np.float32)}, 1, b""), "'a' has numbers that are not finite"),
        (dat({"a": np.array([-1], np.float32)}, 1, b""), "or below 0"),
        (dat({"a": np.zeros(0, np.float32)}, 1, b""), "not finite"),
    ],
)
def test_files_that_are_no_importance_matrix(tmp_path: Path, raw: bytes, sentence: str) -> None:
    path = tmp_path / "i"
    path.write_bytes(raw)
    with pytest.raises(LariatError, match=sentence) as error:
        read_imatrix(path)
    assert str(path) in str(error.value)


def test_gguf_files_that_are_no_importance_matrix(tmp_path: Path) -> None:
    with pytest.raises(LariatError, match="no importance of any tensor"):
        read_imatrix(write_llama(tmp_path / "m.gguf"))
    ones = np.ones((1, 4), np.float32)
    for tensors in (
        {"a.in_sum2": (ones, "F32")},
        {"a.in_sum2": (ones, "F32"), "a.counts": (np.ones((3, 1)), "F32")},
        {"a.in_sum2": (ones, "F16"), "a.counts": (np.ones((1, 1)), "F32")},
    ):
        with pytest.raises(LariatError, match=r"i\.gguf"):
            read_imatrix(write_gguf(tmp_path / "i.gguf", {}, tensors))


def test_the_matrix_of_another_model_is_refused(tmp_path: Path) -> None:
    source = write_llama(tmp_path / "m.gguf", dim=256, n_ff=256)
    name = "blk.0.attn_q.weight"
    ones = np.ones((1, 255), np.float32)
    write_imatrix(tmp_path / "i", {name: ones}, {name: np.ones(1, np.float32)}, "", 1, 8)
    with pytest.raises(LariatError, match=r"1 x 255 values .*another model"):
        quantize_file(source, tmp_path / "q", QuantizeConfig("Q4_K_M"), imatrix=tmp_path / "i")
    assert not (tmp_path / "q").exists()


def test_from_a_text_to_a_smaller_model(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """The command's sums are those of the inputs of each matrix, and quantize takes the file."""
    shape = {"dim": 256, "n_ff": 512, "n_layers": 2, "n_vocab": 300, "n_ctx": 64}
    source = write_llama(tmp_path / "m.gguf", **shape)
    text, matrix = tmp_path / "t.txt", tmp_path / "i.gguf"
    text.write_text("the end and the reader on the tin " * 40)
    argv = ["-m", source, "-f", text, "-o", matrix, "-c", "32", "--chunks", "3", "-t", "2"]
    assert main(["imatrix", *map(str, argv)]) == 0
    assert "14 matrices, 96 tokens in 3 windows" in capfd.readouterr().out
    found = read_imatrix(matrix)
    assert (found.dataset, found.n_windows) == (str(text), 3)
    with LLM(source, n_ctx=32, n_threads=1) as llm:
        # The first matrices see the embedding, normed: known without the engine.
        from lariat.tools import perplexity

        windows = perplexity.cut(llm, text.read_text().removesuffix("\n"), 32, 3)
        again = importance.collect(llm, windows, with_output=True)
        assert set(again.sums) == {*found.values, "output.weight"}
        assert llm.runner.model.observer is None
        with GGUFFile(source) as file:
            embedding = file.data("token_embd.weight").view(np.float32).astype(np.float64)
            weight = file.data("blk.0.attn_norm.weight").view(np.float32).reshape(-1)
    x = embedding[windows.reshape(-1)]
    x = x / np.sqrt((x * x).mean(axis=1, keepdims=True) + 1e-5) * weight
    expected = (x * x).mean(axis=0)
    for name in ("q", "k", "v"):
        values = found.values[f"blk.0.attn_{name}.weight"][0]
        np.testing.assert_allclose(values, expected, rtol=1e-5)
    for name, values in found.values.items():
        np.testing.assert_allclose(again.sums[name] / 96, values, rtol=1e-6)
    argv = [source, tmp_path / "q.gguf", "Q4_K_M", "--imatrix", matrix, "-q"]
    assert main(["quantize", *map(str, argv)]) == 0
    with GGUFFile(tmp_path / "q.gguf") as file, GGUFFile(source) as exact:
        keys = ("file", "dataset", "entries_count", "chunks_count")
        about = [file.metadata[f"quantize.imatrix.{key}"] for key in keys]
        assert about == [str(matrix), str(text), 14, 3]
        name = "blk.1.ffn_up.weight"
        values = exact.data(name).view(np.float32)
        blocks = rounded(values, file.tensors[name].type.name, worth=found.values[name][0])
        np.testing.assert_array_equal(file.data(name).reshape(-1), blocks)


def test_experts_count_the_tokens_that_they_get(tmp_path: Path) -> None:
    """Together they see what the router sees, and a batch counts like its tokens alone."""
    source = write_llama(
        tmp_path / "m.gguf", arch="qwen3moe", dim=64, n_heads=2, n_kv_heads=1, n_layers=2,
        n_ff=96, n_vocab=300, n_experts=5, n_used=2,
    )  # fmt: skip
    windows = np.random.default_rng(0).integers(3, 300, (2, 24)).astype(np.int32)
    found = []
    for n_ubatch in (24, 1):
        with LLM(source, n_ctx=32, n_threads=2, n_ubatch=n_ubatch) as llm:
            found.append(importance.collect(llm, windows))
    sums, counts = found[0]
    router = sums["blk.1.ffn_gate_inp.weight"][0]
    for part in ("gate", "up", "down"):
        name = f"blk.1.ffn_{part}_exps.weight"
        assert counts[name].sum() == 2 * windows.size
        np.testing.assert_array_equal(counts[name], found[1].counts[name])
        np.testing.assert_allclose(sums[name], found[1].sums[name], rtol=1e-4)
        if part != "down":
            np.testing.assert_allclose(sums[name].sum(axis=0), 2 * router, rtol=1e-5)
    assert np.ptp(counts[name]) > 0
    rounded_file = tmp_path / "q.gguf"
    quantize_file(source, rounded_file, QuantizeConfig("Q8_0"))
    with LLM(rounded_file, n_ctx=32, n_threads=1) as llm:
        with pytest.raises(LariatError, match="experts are quantized"):
            importance.collect(llm, windows)
        assert llm.runner.model.observer is None


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["-f", "/dev/null"], "empty"),
        (["-p", "a b c", "--chunks", "0"], "--chunks"),
        (["-p", "a b c"], "tokens"),
        (["-p", "a b c", "-o", "/proc/nothing/i"], "/proc/nothing"),
    ],
)
def test_bad_command_lines(argv: list[str], sentence: str, capfd: pytest.CaptureFixture) -> None:
    assert main(["imatrix", *argv]) in (1, 2)
    assert sentence in capfd.readouterr().err
