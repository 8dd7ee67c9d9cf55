"""From tensors to layers: shapes, types, order of rows, ties, faults; and memory while loading."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from lariat import LLM, GGUFError, GGUFFile, LariatError, ModelError, _kernels
from lariat._program import run
from lariat.architectures.loading import load_weights, read_config
from lariat.architectures.weights import Linear, Weights, split_halves
from lariat.config import ModelConfig
from lariat.tools.quantize import QuantizeConfig, quantize_file

from tests.support.model_files import write_llama


def load(path: Path, n_threads: int = 1, progress=None) -> tuple[Weights, ModelConfig]:
    # Not closed: the embedding is read from the mapped file.
    gguf = GGUFFile(path)
    config = read_config(gguf)
    return load_weights(gguf, config, n_threads, progress), config


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    """F32 tensors as the `gguf` package reads them."""
    return {t.name: np.array(t.data) for t in GGUFReader(path).tensors}


def matrix_of(linear: Linear) -> np.ndarray:
    """The matrix [n_out, n_in] that `linear` multiplies by: its products with unit vectors."""
    w = linear.weight
    out = np.full((w.n_cols, w.n_rows), np.nan, np.float32)
    q8 = _kernels.Activations(w.n_cols, w.n_cols)
    run(_kernels.matmul(w, np.eye(w.n_cols, dtype=np.float32), q8, out))
    return out.T


# ---- order of rows ----


def test_split_halves_is_the_stated_order():
    assert split_halves(1, 6).tolist() == [0, 2, 4, 1, 3, 5]
    assert split_halves(2, 4).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert split_halves(3, 2).tolist() == [0, 1, 2, 3, 4, 5]
    assert split_halves(2, 4).dtype == np.int64


@pytest.mark.parametrize(("n_heads", "head_dim"), [(1, 2), (4, 8), (6, 80), (32, 128)])
def test_split_halves_brings_each_pair_half_a_head_apart(n_heads, head_dim):
    order = split_halves(n_heads, head_dim).reshape(n_heads, head_dim)
    assert sorted(order.reshape(-1)) == list(range(n_heads * head_dim))
    for head, rows in enumerate(order):
        assert (rows // head_dim == head).all(), "no row leaves its head"
        first, second = rows[: head_dim // 2], rows[head_dim // 2 :]
        assert (second - first == 1).all()
        assert (first % 2 == 0).all()


def test_split_halves_of_pairs_half_the_rotated_dims_apart():
    assert split_halves(2, 6, 6, neox=True).tolist() == list(range(12))
    assert split_halves(1, 10, 4, neox=True).tolist() == [0, 1, 4, 5, 6, 2, 3, 7, 8, 9]
    assert split_halves(1, 6, 2).tolist() == split_halves(1, 6).tolist()


SHAPE = {"dim": 40, "n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "head_dim_v": 10, "n_ff": 52}


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize(("arch", "tied"), [("llama", False), ("llama", True), ("qwen3", True)])
def test_each_tensor_arrives_where_it_belongs(tmp_path, arch, tied, biases, n_threads):
    shape = {**SHAPE, "arch": arch, "rope_dim": 4}
    path = write_llama(tmp_path / "m.gguf", tied=tied, biases=biases, n_vocab=275, **shape)
    source = tensors_of(path)
    weights, config = load(path, n_threads)
    assert len(weights.layers) == config.n_layers == 2
    within = [0, 1, 4, 2, 3, 5] if arch == "qwen3" else [0, 2, 4, 1, 3, 5]
    of_heads = [[6 * head + dim for head in range(n) for dim in within] for n in (4, 2)]
    orders = dict(zip(("attn_q", "attn_k"), of_heads, strict=True))
    names = {name: f"attn_{name}" for name in ("q", "k", "v", "q_norm", "k_norm")}
    for i, layer in enumerate(weights.layers):
        fields = {names.get(field, field) for field in vars(layer)}
        assert fields == {name.split(".")[2] for name in source if name.startswith(f"blk.{i}.")}
        for field, value in vars(layer).items():
            name = names.get(field, field)
            if name in ("attn_q_norm", "attn_k_norm"):
                assert np.array_equal(value, source[f"blk.{i}.{name}.weight"][within])
                continue
            if not isinstance(value, Linear):
                assert value.dtype == np.float32
                assert np.array_equal(value, source[f"blk.{i}.{name}.weight"])
                continue
            order = orders.get(name, slice(None))
            expected = source[f"blk.{i}.{name}.weight"]
            assert (value.weight.n_rows, value.weight.n_cols) == expected.shape
            assert np.array_equal(matrix_of(value), expected[order]), name
            if biases:
                assert value.bias.dtype == np.float32
                assert np.array_equal(value.bias, source[f"blk.{i}.{name}.bias"][order]), name
            else:
                assert value.bias is None
    assert np.array_equal(weights.output_norm, source["output_norm.weight"])
    output = "token_embd.weight" if tied else "output.weight"
    assert np.array_equal(matrix_of(weights.output), source[output])
    assert weights.rope_factors is None
    ids = np.array([274, 0, 3, 3, 101], np.int32)
    rows = weights.embedding[ids]
    assert rows.dtype == np.float32
    assert np.array_equal(rows, source["token_embd.weight"][ids])


def test_an_output_matrix_of_its_own_is_used_although_the_embedding_is_there(tmp_path):
    path = write_llama(tmp_path / "m.gguf")
    source = tensors_of(path)
    assert not np.array_equal(source["output.weight"], source["token_embd.weight"])
    assert np.array_equal(matrix_of(load(path)[0].output), source["output.weight"])


def test_a_bias_that_stands_alone_is_found(tmp_path):
    bias = np.arange(64, dtype=np.float32)
    path = write_llama(tmp_path / "m.gguf", extra_tensors={"blk.1.attn_q.bias": bias})
    first, second = load(path)[0].layers
    assert first.q.bias is None
    assert second.k.bias is None
    assert np.array_equal(second.q.bias, bias[split_halves(4, 16)])


def test_a_bias_changes_the_logits(tmp_path):
    plain = write_llama(tmp_path / "a.gguf")
    for name, n in (("attn_q", 64), ("attn_output", 64), ("ffn_up", 96)):
        extra = {f"blk.0.{name}.bias": np.linspace(-1, 1, n, dtype=np.float32)}
        changed = write_llama(tmp_path / f"{name}.gguf", extra_tensors=extra)
        with LLM(plain, n_threads=1) as a, LLM(changed, n_threads=1) as b:
            assert np.abs(a.logits([5, 6, 7]) - b.logits([5, 6, 7])).max() > 1e-3, name


# ---- faults ----

ALL_TENSORS = [
    "token_embd.weight",
    "output_norm.weight",
    "blk.0.attn_norm.weight",
    "blk.1.attn_q.weight",
    "blk.1.attn_k.weight",
    "blk.0.attn_v.weight",
    "blk.1.attn_output.weight",
    "blk.0.ffn_norm.weight",
    "blk.1.ffn_gate.weight",
    "blk.0.ffn_up.weight",
    "blk.1.ffn_down.weight",
]


@pytest.mark.parametrize("name", ALL_TENSORS)
def test_a_missing_tensor_is_named(tmp_path, name):
    path = write_llama(tmp_path / "m.gguf", drop_tensors=[name])
    with pytest.raises(GGUFError) as error:
        LLM(path)
    assert str(path) in str(error.value)
    assert f"'{name}' is missing" in str(error.value)


@pytest.mark.parametrize("name", ["attn_q_norm", "attn_k_norm"])
def test_the_norms_of_qwen3_are_needed_and_as_long_as_a_head(tmp_path, name):
    tensor, path = f"blk.1.{name}.weight", tmp_path / "m.gguf"
    write_llama(path, arch="qwen3", drop_tensors=[tensor])
    with pytest.raises(GGUFError, match=f"'{tensor}' is missing"):
        LLM(path)
    write_llama(path, arch="qwen3", extra_tensors={tensor: np.ones(64, np.float32)})
    with pytest.raises(GGUFError, match=rf"'{tensor}' has shape \[64\], expected \[16\]"):
        LLM(path)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"general.architecture": "qwen4"}, "'qwen4' is not .*only gemma2, .*llama, .*qwen3"),
        ({"general.architecture": "x" * 5000}, "'x{64}'... is not supported"),
        ({"qwen3.rope.scaling.type": "x" * 5000}, "'x{64}'... is not supported"),
        ({"qwen3.expert_count": 8}, "mixtures of experts are not supported in 'qwen3' models"),
        ({"qwen3.attention.causal": False}, "not causal"),
        ({"qwen3.embedding_length": None}, "qwen3.embedding_length is missing"),
        ({"qwen3.rope.dimension_count": 18}, "qwen3.rope.dimension_count is 18"),
        ({"qwen3.rope.scaling.type": "su"}, "RoPE scaling 'su' is not supported"),
    ],
)
def test_metadata_is_looked_for_under_the_name_of_the_architecture(tmp_path, metadata, words):
    path = write_llama(tmp_path / "m.gguf", arch="qwen3", metadata=metadata)
    with pytest.raises(LariatError, match=words):
        LLM(path)


@pytest.mark.parametrize("name", ["blk.0.attn_q_norm.weight", "blk.2.ffn_up.weight", "x\ny"])
def test_a_tensor_without_a_place_is_named(tmp_path, name):
    """Left out, it would make another model."""
    path = write_llama(tmp_path / "m.gguf", extra_tensors={name: np.ones(16, np.float32)})
    expected = f"tensor {name!r} has no place in a 'llama' model"
    with pytest.raises(ModelError, match=re.escape(expected)):
        LLM(path)


WRONG = {
    "blk.0.attn_q.weight": (64, 63),
    "blk.0.attn_k.weight": (64, 64),
    "blk.1.attn_v.weight": (16, 64),
    "blk.0.attn_output.weight": (63, 64),
    "blk.1.ffn_down.weight": (96, 64),
    "blk.0.attn_norm.weight": (65,),
    "output_norm.weight": (2, 64),
    "output.weight": (287, 64),
    "token_embd.weight": (288, 65),
    "blk.0.attn_q.bias": (63,),
    "rope_freqs.weight": (7,),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_shape_is_named_with_both_shapes(tmp_path, name):
    path = write_llama(tmp_path / "m.gguf")
    right = {**tensors_of(path), "blk.0.attn_q.bias": np.zeros(64), "rope_freqs.weight": np.ones(8)}
    extra = {name: np.ones(WRONG[name], np.float32)}
    write_llama(path, extra_tensors=extra)
    with pytest.raises(GGUFError) as error:
        LLM(path)
    message = str(error.value)
    assert str(path) in message
    assert f"'{name}'" in message
    assert str(list(WRONG[name])) in message
    assert str(list(right[name].shape)) in message


def test_an_embedding_with_other_rows_than_the_vocabulary_is_refused(tmp_path):
    extra = {"token_embd.weight": np.ones((287, 64), np.float32)}
    path = write_llama(tmp_path / "m.gguf", extra_tensors=extra)
    with pytest.raises(GGUFError, match=r"288.*287|287.*288"):
        LLM(path)


@pytest.mark.parametrize("type", ["Q8_K", "NVFP4", "Q1_0", "F64", "I8"])
@pytest.mark.parametrize("name", ["blk.1.attn_k.weight", "output.weight", "token_embd.weight"])
def test_an_unsupported_type_is_named_with_its_tensor(tmp_path, name, type):
    wanted = {"output_type": type} if name == "output.weight" else {"type_of": {name: type}}
    path = write_llama(tmp_path / "m.gguf", dim=256, n_ff=256, **wanted)
    with pytest.raises(ModelError) as error:
        LLM(path)
    message = str(error.value)
    assert str(path) in message
    assert f"'{name}'" in message
    assert type in message
    assert "Q4_0" in message, "says what is supported"


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_rope_factors_are_refused(tmp_path, bad):
    path = write_llama(tmp_path / "m.gguf", rope_freqs=[1.0] * 7 + [bad])
    with pytest.raises(GGUFError, match=r"'rope_freqs.weight'"):
        LLM(path)


def test_good_rope_factors_arrive_in_float64(tmp_path):
    path = write_llama(tmp_path / "m.gguf", rope_freqs=[1, 1.5, 2, 3, 4, 8, 8, 32])
    factors = load(path)[0].rope_factors
    assert factors.dtype == np.float64
    assert factors.tolist() == [1, 1.5, 2, 3, 4, 8, 8, 32]


# ---- progress ----


@pytest.mark.parametrize("tied", [False, True])
def test_progress_rises_to_one(tmp_path, tied):
    seen: list[float] = []
    path = write_llama(tmp_path / "m.gguf", tied=tied, rope_freqs=[1.0] * 8)
    load(path, progress=seen.append)
    assert len(seen) > 10
    assert seen == sorted(seen)
    assert seen[0] > 0
    assert seen[-1] == 1.0


def test_an_interrupt_while_loading_is_passed_on(tmp_path):
    path = write_llama(tmp_path / "m.gguf")

    def stop(share: float) -> None:
        if share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LLM(path, progress=stop)
    path.unlink()
    write_llama(path)
    LLM(path).close()


# ---- memory ----


def write_large(path: Path, n_layers: int, types: dict[str, str]) -> None:
    """A llama whose matrices are random bytes: only for loading, its weights mean nothing."""
    small = write_llama(
        path.with_suffix(".small"),
        n_layers=1,
        dim=2048,
        n_ff=5632,
        n_heads=16,
        n_kv_heads=16,
        n_vocab=4000,
    )
    rng = np.random.default_rng(0)
    writer = GGUFWriter(path, "llama")
    reader = GGUFReader(small)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        value = n_layers if field.name == "llama.block_count" else field.contents()
        type = field.types[0]
        writer.add_key_value(field.name, value, type, field.types[-1])
    for tensor in reader.tensors:
        copies = range(n_layers) if tensor.name.startswith("blk.0.") else [0]
        for i in copies:
            name = tensor.name.replace("blk.0.", f"blk.{i}.")
            if len(tensor.shape) == 1:
                writer.add_tensor(name, np.array(tensor.data))
                continue
            n_cols, n_rows = (int(n) for n in tensor.shape)
            type = next((of for part, of in types.items() if part in name), "Q4_0")
            n_bytes = _kernels.packed_bytes(type, 16, n_cols) // 16
            data = rng.integers(0, 256, (n_rows, n_bytes), dtype=np.uint8)
            writer.add_tensor(name, data, raw_dtype=GGMLQuantizationType[type])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    small.unlink()


LOAD = """
import os, sys
from lariat import LLM
def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024
before = peak()
llm = LLM(sys.argv[1], n_ctx=32, n_threads=2)
print(before, peak())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")
def test_loading_needs_no_more_memory_than_the_file(tmp_path):
    """The peak of a 200 MB model: 1.15 times the file, and 150 MB for Python and NumPy."""
    path = tmp_path / "large.gguf"
    write_large(path, 6, {"ffn_down": "Q4_1", "attn_v": "Q8_0", "attn_k": "F16"})
    n_bytes = path.stat().st_size
    assert 190e6 < n_bytes < 260e6
    try:
        done = subprocess.run(
            [sys.executable, "-c", LOAD, str(path)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        path.unlink()  # pytest would keep it
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    assert after > n_bytes, "the weights are in memory at all"
    assert after < 1.15 * n_bytes + 150e6
    # Stricter: loading itself holds nothing twice.
    assert after - before < 1.15 * n_bytes + 60e6, f"{(after - before) / n_bytes:.2f} of the file"


# ---- dims of 1 behind the others ----


@pytest.mark.parametrize("n_dims", [2, 3, 4])
@pytest.mark.parametrize("weight_type", ["F32", "Q8_0"])
def test_trailing_dims_of_1_mean_nothing(tmp_path, monkeypatch, n_dims, weight_type):
    """ggml gives every tensor four dims, and a file may write any number of those that are 1."""
    shape = {"weight_type": weight_type, "arch": "qwen2", "rope_freqs": [1.0] * 8}
    plain = write_llama(tmp_path / "plain.gguf", **shape)
    add = GGUFWriter.add_tensor

    def add_longer(self: GGUFWriter, name: str, tensor: np.ndarray, **more: object) -> None:
        ones = (1,) * (n_dims - tensor.ndim)
        add(self, name, tensor.reshape(*ones, *tensor.shape), **more)

    monkeypatch.setattr(GGUFWriter, "add_tensor", add_longer)
    longer = write_llama(tmp_path / "longer.gguf", **shape)
    assert longer.stat().st_size > plain.stat().st_size
    logits = []
    for path in (plain, longer):
        with LLM(path, n_threads=1) as llm:
            logits.append(llm.logits([1, 2, 3]))
        quantize_file(path, path.with_suffix(".q"), QuantizeConfig("Q8_0"), force=True)
    assert np.array_equal(*logits)
    assert plain.with_suffix(".q").read_bytes() == longer.with_suffix(".q").read_bytes()
