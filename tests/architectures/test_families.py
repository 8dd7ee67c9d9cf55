"""Each family of models against the float64 reference, with random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lariat import LLM, GGUFError, ModelError, _kernels

from tests.reference import Reference, relative_error
from tests.support.family_files import FAMILIES, write_family

CACHES = ("roped", "raw")
F32_BOUND = 1e-5
QUANTIZED_BOUND = 2e-2  # see test_model.py

SHAPES = {
    **{arch: {"arch": arch} for arch in FAMILIES},
    "gemma2 odd": {"arch": "gemma2", "n_heads": 6, "n_kv_heads": 2, "head_dim": 10, "dim": 45},
    "gemma2 n layers": {"arch": "gemma2", "n_layers": 46, "dim": 40, "n_heads": 2, "head_dim": 6},
    "gemma3 odd": {"arch": "gemma3", "n_heads": 9, "n_kv_heads": 3, "head_dim": 10, "dim": 45},
    "gemma3 list": {
        "arch": "gemma3",
        "keys": {
            "attention.sliding_window_pattern": [False, True, True, False],
            "rope.freq_base_swa": 300.0,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
            "final_logit_softcapping": 2.0,
        },
    },
    "gemma3 no window": {"arch": "gemma3", "keys": {"attention.sliding_window": 0}},
    "gemma3 scale": {"arch": "gemma3", "keys": {"attention.scale": 0.1}},
    "phi3 window": {"arch": "phi3", "keys": {"attention.sliding_window": 33}, "n_kv_heads": 1},
    "phi3 part": {
        "arch": "phi3", "rope_dim": 12, "rope_factors": False, "n_heads": 6, "n_kv_heads": 3,
        "dim": 96,
    },
    "granite plain": {
        "arch": "granite",
        "biases": True,
        "keys": {"attention.scale": None, "embedding_scale": None, "residual_scale": None},
    },
    "granite no rope": {"arch": "granite", "keys": {"rope.scaling.finetuned": False}},
    "smollm3 tied": {"arch": "smollm3", "n_heads": 6, "n_kv_heads": 2, "head_dim": 6, "tied": True},
    "olmo2 plain": {"arch": "olmo2", "keys": {"attention.sliding_window": None}},
    "olmo2 yarn": {
        "arch": "olmo2", "n_heads": 3, "n_kv_heads": 1, "dim": 60,
        "keys": {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 24,
            "rope.scaling.attn_factor": 1.2,
        },
    },
    "mistral3 plain": {
        "arch": "mistral3",
        "keys": {"rope.scaling.type": None, "attention.temperature_scale": None},
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def _restore_isa():
    before = _kernels.isa()
    yield
    _kernels.use_isa(before)


def ids_of(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, 288, n).tolist()


def load(path: Path, **options) -> LLM:
    return LLM(path, **{"type_k": "f32", "type_v": "f32", "n_threads": 2, **options})


def write(path: Path, shape: str) -> Path:
    return write_family(path / "m.gguf", **SHAPES[shape])


@pytest.mark.parametrize("isa", _kernels.supported_isas())
@pytest.mark.parametrize("shape", SHAPES)
def test_f32_follows_the_reference(tmp_path, shape, isa):
    """A prompt of more than two windows in one pass, in passes of seven, and token by token."""
    _kernels.use_isa(isa)
    path, ids = write(tmp_path, shape), ids_of(90)
    expected = Reference(path).logits(ids)
    for n_ubatch in (512, 7, 1) if shape in FAMILIES else (512,):
        got = {}
        for cache in CACHES:
            with load(path, cache=cache, n_ubatch=n_ubatch) as llm:
                got[cache] = llm.logits(ids)
            assert relative_error(got[cache], expected) < F32_BOUND, (cache, n_ubatch)
        assert relative_error(got["raw"], got["roped"]) < F32_BOUND


PARTS = {
    "gemma2": ["attention.sliding_window", "attn_logit_softcapping", "final_logit_softcapping"],
    "gemma3": ["attention.sliding_window", "rope.freq_base_swa", "rope.freq_base"],
    "phi3": ["attention.sliding_window"],
    "granite": ["attention.scale", "embedding_scale", "residual_scale", "logit_scale"],
    "olmo2": ["attention.sliding_window"],
    "mistral3": [
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
        "rope.scaling.yarn_log_multiplier",
        "attention.temperature_scale",
    ],
}


@pytest.mark.parametrize("arch", PARTS)
def test_each_key_matters(tmp_path, arch):
    """Otherwise the tests above would prove little."""
    ids = ids_of(90)
    logits = Reference(write_family(tmp_path / "a.gguf", arch)).logits(ids)
    for key in PARTS[arch]:
        value = 20 if "window" in key else 7.5
        other = Reference(write_family(tmp_path / "b.gguf", arch, keys={key: value})).logits(ids)
        assert relative_error(other, logits) > 100 * F32_BOUND, key


@pytest.mark.parametrize("arch", FAMILIES)
def test_quantized_weights_follow_the_reference(tmp_path, arch):
    """See `test_quantized_weights` in test_model.py about the bounds."""
    errors = []
    for seed in range(3):
        path = write_family(
            tmp_path / "m.gguf", arch, weight_type="Q8_0", seed=seed, dim=64, n_ff=128, n_layers=2
        )
        ids = ids_of(12, seed)
        expected = Reference(path, activations="q8_f16").logits(ids)
        for cache in CACHES:
            with load(path, cache=cache) as llm:
                errors.append(relative_error(llm.logits(ids), expected))
    assert max(errors) < QUANTIZED_BOUND
    assert min(errors) < F32_BOUND


@pytest.mark.parametrize("arch", FAMILIES)
def test_n_threads_agnosticism(tmp_path, arch):
    path = write_family(tmp_path / "m.gguf", arch, weight_type="Q8_0", n_ctx=1024)
    ids = ids_of(300)
    for n_ubatch in (512, 3):
        results = []
        for n_threads in (1, 2, 3):
            with load(path, n_threads=n_threads, n_ubatch=n_ubatch, cache="raw") as llm:
                results.append(llm.logits(ids if n_ubatch > 3 else ids[:100]))
        assert np.array_equal(results[0], results[1])
        assert np.array_equal(results[0], results[2])


def test_the_room_for_a_context_chooses_the_factors(tmp_path):
    keys = {"rope.scaling.original_context_length": 128}
    path = write_family(tmp_path / "m.gguf", "phi3", keys=keys, n_ctx=512)
    ids = ids_of(90)
    results = []
    for n_ctx in (128, 129, 0):
        with load(path, n_ctx=n_ctx) as llm:
            results.append(llm.logits(ids))
            kind = "short" if n_ctx == 128 else "long"
            assert f"{kind} factors" in llm.runner.signature()["rope"]
        expected = Reference(path, n_ctx=n_ctx).logits(ids)
        assert relative_error(results[-1], expected) < F32_BOUND
    assert relative_error(results[0], results[1]) > 100 * F32_BOUND


def test_a_fused_matrix_may_have_a_bias(tmp_path):
    bias = 0.3 * np.random.default_rng(0).standard_normal(128).astype(np.float32)
    more = {f"blk.{i}.attn_qkv.bias": bias for i in range(4)}
    path = write_family(tmp_path / "m.gguf", "phi3", extra_tensors=more)
    ids = ids_of(40)
    with load(path) as llm:
        assert relative_error(llm.logits(ids), Reference(path).logits(ids)) < F32_BOUND


def test_phi3_may_have_matrices_apart(tmp_path):
    fused = [f"blk.{i}.attn_qkv.weight" for i in range(4)]
    rng = np.random.default_rng(1)
    apart = {
        f"blk.{i}.attn_{name}.weight": rng.standard_normal((n, 64)).astype(np.float32) / 8
        for i in range(4)
        for name, n in (("q", 64), ("k", 32), ("v", 32))
    }
    path = write_family(tmp_path / "m.gguf", "phi3", extra_tensors=apart, drop_tensors=fused)
    with load(path) as llm:
        ids = ids_of(40)
        assert relative_error(llm.logits(ids), Reference(path).logits(ids)) < F32_BOUND


@pytest.mark.parametrize(
    ("arch", "key", "value", "error", "words"),
    [
        ("gemma3", "attention.sliding_window", -1, GGUFError, "sliding_window is -1"),
        ("gemma3", "attention.sliding_window", 1 << 31, GGUFError, "sliding_window is 2147483648"),
        ("gemma3", "attention.sliding_window_pattern", [True], GGUFError, "has 1 values"),
        ("gemma3", "attention.sliding_window_pattern", [1, 0, 1, 0], GGUFError, "true or false"),
        ("gemma3", "attention.sliding_window_pattern", "x", GGUFError, "expected a whole number"),
        ("gemma3", "attention.key_length_swa", 32, ModelError, "key_length_swa is 32, and only 16"),
        ("gemma3", "rope.dimension_count_swa", 8, ModelError, "count_swa is 8, and only 16"),
        ("gemma3", "rope.freq_base_swa", 0.0, GGUFError, "freq_base_swa is 0"),
        ("gemma2", "attn_logit_softcapping", float("nan"), GGUFError, "softcapping is nan"),
        ("gemma2", "final_logit_softcapping", -3.0, GGUFError, "softcapping is -3"),
        ("granite", "logit_scale", 0.0, GGUFError, "logit_scale is 0"),
        ("granite", "logit_scale", None, GGUFError, "logit_scale is missing"),
        ("granite", "expert_count", 8, ModelError, "mixtures of experts are not"),
        ("mistral3", "attention.temperature_scale", float("inf"), GGUFError, "scale is inf"),
    ],
)
def test_keys_out_of_bounds_are_refused(tmp_path, arch, key, value, error, words):
    path = write_family(tmp_path / "m.gguf", arch, keys={key: value})
    with pytest.raises(error, match=words):
        LLM(path)


def test_a_tensor_too_many_is_refused_by_name(tmp_path):
    extra = {"blk.0.ffn_gate.weight": np.zeros((96, 64), np.float32)}
    path = write_family(tmp_path / "m.gguf", "phi3", extra_tensors=extra)
    with pytest.raises(ModelError, match=r"'blk.0.ffn_gate.weight' has no place in a 'phi3' model"):
        LLM(path)
    path = write_family(tmp_path / "m.gguf", "gemma3", drop_tensors=["blk.1.post_ffw_norm.weight"])
    with pytest.raises(GGUFError, match=r"'blk.1.post_ffw_norm.weight' is missing"):
        LLM(path)
