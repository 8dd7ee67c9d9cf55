"""Layers that see positions in different ways: two RoPE tables, and a layer without RoPE.

No family that is registered has such layers, so these tests register one of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lariat import LLM, GGUFError, _kernels
from lariat.architectures import ARCHITECTURES, llama, qwen2
from lariat.architectures.architecture import Architecture
from lariat.architectures.metadata import Metadata
from lariat.cache.rope import RopeTables
from lariat.config import LayerConfig, ModelConfig, RopeConfig

from tests.reference import Reference, relative_error
from tests.support.model_files import write_llama

ISAS = _kernels.supported_isas()
CACHES = ("roped", "raw")
F32_BOUND = 1e-5
FACTORS = [1.0, 1.5, 2.0, 4.0, 8.0, 8.0, 8.0, 8.0]

# Settings of a layer, for the reference.
MAIN: dict = {}
LOCAL = {"freq_base": 100.0, "scaling": "none", "use_factors": False}
NONE = None


def read_config(m: Metadata) -> ModelConfig:
    """`layer_types`: one letter a layer, for the main table, the local one, and none."""
    c = llama.read_config(m)
    base = m.real("rope.freq_base_local", 1e-3, 1e15)
    local = replace(c.rope, scaling="none", scale=1.0, freq_base=base)
    ropes = {1: c.rope, 2: local, 3: None}
    types = [m.whole(f"layer_type.{i}", 3) for i in range(c.n_layers)]
    return replace(c, layers=tuple(LayerConfig(ropes[type]) for type in types))


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    mixed = Architecture(read_config, qwen2.read_weights, llama.forward)
    monkeypatch.setitem(ARCHITECTURES, "mixed", mixed)
    before = _kernels.isa()
    yield
    _kernels.use_isa(before)


LAYERS = {
    "all three": [MAIN, LOCAL, NONE, LOCAL],
    "none first": [NONE, MAIN],
    "never main": [LOCAL, NONE],
    "main": [MAIN],
    "local": [LOCAL],
    "none": [NONE],
}


def write(path: Path, name: str, **shape) -> tuple[Path, Reference]:
    """A model whose layers are `LAYERS[name]`, and its reference."""
    layers = LAYERS[name]
    types = [next(i for i, of in enumerate((MAIN, LOCAL, NONE), 1) if of is own) for own in layers]
    metadata = {f"mixed.layer_type.{i}": type for i, type in enumerate(types)}
    metadata["mixed.rope.freq_base_local"] = LOCAL["freq_base"]
    write_llama(path, arch="mixed", n_layers=len(layers), metadata=metadata, **shape)
    return path, Reference(path, layers=layers)


def ids_of(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, 288, n).tolist()


def load(path: Path, **options) -> LLM:
    return LLM(path, **{"type_k": "f32", "type_v": "f32", "n_threads": 2, **options})


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("name", LAYERS)
def test_each_layer_follows_the_reference(tmp_path, name, cache, isa):
    _kernels.use_isa(isa)
    shape = {"rope_scale": 3.0, "rope_freqs": FACTORS} if name == "all three" else {}
    path, reference = write(tmp_path / "m.gguf", name, **shape)
    ids = ids_of(75)
    expected = reference.logits(ids)
    for n_ubatch in (512, 7, 1):
        with load(path, cache=cache, n_ubatch=n_ubatch) as llm:
            assert relative_error(llm.logits(ids), expected) < F32_BOUND


def test_the_layers_differ_enough_to_be_told_apart(tmp_path):
    path, reference = write(tmp_path / "m.gguf", "all three")
    ids = ids_of(75)
    expected = reference.logits(ids)
    for i, own in enumerate(LAYERS["all three"]):
        for other in (MAIN, LOCAL, NONE):
            layers = [*LAYERS["all three"][:i], other, *LAYERS["all three"][i + 1 :]]
            error = relative_error(Reference(path, layers=layers).logits(ids), expected)
            assert (error == 0) == (other is own)
            assert other is own or error > 100 * F32_BOUND


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("name", LAYERS)
def test_an_edited_context_follows_the_reference(tmp_path, name, cache, isa):
    """Roped keys that move are rotated by the table of their layer, or not at all."""
    _kernels.use_isa(isa)
    path, reference = write(tmp_path / "m.gguf", name)
    ids, last = ids_of(100), ids_of(5, seed=1)
    order = [*range(7), *range(40, 71), *range(90, 100), *range(71, 90)]
    past = [(k[order], v[order]) for k, v in reference.cached(ids)]
    expected = reference.logits(last, past=past)
    with load(path, cache=cache) as llm, llm.context() as context:
        context.append(ids)
        context.delete(7, 40)
        context.move(57, 67, 38)
        assert context.tokens == [ids[i] for i in order]
        assert relative_error(context.logits(last), expected) < F32_BOUND


@pytest.mark.parametrize("cache", CACHES)
def test_a_context_that_is_put_into_itself_follows_the_reference(tmp_path, cache):
    """Keys that stand at two positions are copied, and each copy is rotated layer by layer."""
    path, reference = write(tmp_path / "m.gguf", "all three")
    ids, last = ids_of(50), ids_of(5, seed=1)
    order = [*range(20), *range(50), *range(20, 50)]
    past = [(k[order], v[order]) for k, v in reference.cached(ids)]
    with load(path, cache=cache) as llm, llm.context() as context, llm.context() as other:
        context.append(ids)
        other.append(context)
        other.insert(20, context)
        expected = reference.logits(last, past=past)
        assert relative_error(other.logits(last), expected) < F32_BOUND
        expected = reference.logits(last, past=reference.cached(ids))
        assert relative_error(context.logits(last), expected) < F32_BOUND


@pytest.mark.parametrize("cache", CACHES)
def test_a_user_s_settings_go_into_the_main_table_alone(tmp_path, cache):
    path, _ = write(tmp_path / "m.gguf", "all three")
    rope = {"scaling": "linear", "scale": 2.0, "freq_base": 500.0}
    layers = [MAIN, LOCAL, NONE, LOCAL]
    expected = Reference(path, rope=rope, layers=layers).logits(ids_of(75))
    with load(path, cache=cache, rope=RopeConfig(**rope)) as llm:
        assert relative_error(llm.logits(ids_of(75)), expected) < F32_BOUND


def test_group_attention_is_for_the_layers_of_the_main_table(tmp_path):
    path, _ = write(tmp_path / "m.gguf", "all three")
    rope = {"grp_attn_n": 4, "grp_attn_w": 16}
    off = {"grp_attn_n": 1}
    layers = [MAIN, LOCAL | off, NONE, LOCAL | off]
    expected = Reference(path, rope=rope, layers=layers).logits(ids_of(133))
    for n_ubatch in (512, 1):
        with load(path, cache="raw", rope=RopeConfig(**rope), n_ubatch=n_ubatch) as llm:
            assert relative_error(llm.logits(ids_of(133)), expected) < F32_BOUND


def test_there_is_a_table_for_each_distinct_setting(tmp_path):
    path, _ = write(tmp_path / "m.gguf", "all three")
    with load(path) as llm:
        main, local, none, again = RopeTables(llm.config, 100).of_layer
    assert none is None
    assert local is again
    assert main is not local
    assert (main.rope.freq_base, local.rope.freq_base) == (10000.0, 100.0)


def test_keys_of_the_architecture_are_checked_like_any_other(tmp_path):
    path, _ = write(tmp_path / "m.gguf", "main")
    with pytest.raises(GGUFError, match=r"mixed.layer_type.0 is 4, expected 1 to 3"):
        LLM(path, overrides={"mixed.layer_type.0": 4})


@pytest.mark.parametrize("n", [1, 3])
def test_as_many_layers_must_be_described_as_there_are(n):
    rope = RopeConfig("none", 1.0, 1e4, 64)
    shape = {"n_vocab": 8, "n_ctx_train": 64, "dim": 32, "n_layers": 2, "n_heads": 2}
    shape |= {"n_kv_heads": 2, "head_dim_k": 16, "head_dim_v": 16, "n_ff": 32, "norm_eps": 1e-5}
    with pytest.raises(ValueError, match=f"{n} layers are described, expected 2"):
        ModelConfig(**shape, rope_dim=16, rope=rope, layers=(LayerConfig(rope),) * n)


@pytest.mark.parametrize("window", [0, -1, 1 << 28, 2.5])
def test_a_window_that_is_none_is_refused(window):
    with pytest.raises(ValueError, match="window"):
        LayerConfig(None, window=window)
