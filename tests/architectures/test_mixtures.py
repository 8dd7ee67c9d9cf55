"""Mixtures of experts: whole models against the float64 reference, and against themselves."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from lariat import LLM, GGUFError, LariatError, ModelError, SamplingParams
from lariat.config import RopeConfig
from lariat.runtime.batch import Part

from tests.reference import Reference, relative_error
from tests.support.model_files import write_llama

CACHES = ("roped", "raw")
QUANTIZED_CACHES = ("q8_0", "q4_0", "q8_ch", "q4_ch")
# As in test_model.py.
F32_BOUND = 1e-5
QUANTIZED_BOUND = 2e-2

OF_16 = {"n_experts": 16, "n_used": 4}
OSS = {  # windows are shorter than the prompts
    **{"arch": "gpt-oss", "n_heads": 6, "n_kv_heads": 2, "head_dim": 14, "n_layers": 3},
    **{"biases": True, **OF_16},
    "metadata": {
        "gpt-oss.attention.sliding_window": 20,
        "gpt-oss.rope.scaling.type": "yarn",
        "gpt-oss.rope.scaling.factor": 4.0,
        "gpt-oss.rope.scaling.original_context_length": 24,
    },
}
SHAPES = {
    "gpt-oss": OSS,
    "llama": {"n_heads": 6, "n_kv_heads": 2, "head_dim": 14, **OF_16},
    "llama, all experts": {"n_experts": 2, "n_used": 2, "biases": True},
    "llama, one expert": {"n_experts": 1, "n_used": 1},
    "qwen2moe": {"arch": "qwen2moe", "n_heads": 9, "n_kv_heads": 3, "head_dim": 6, **OF_16},
    "qwen3moe": {"arch": "qwen3moe", "n_heads": 6, "n_kv_heads": 1, "head_dim": 80, **OF_16},
    "qwen3moe, odd": {
        **{"arch": "qwen3moe", "dim": 60, "n_heads": 3, "n_kv_heads": 3, "head_dim": 26},
        **{"n_ff": 77, "n_vocab": 301, "rope_dim": 20, "tied": True, "biases": True, **OF_16},
    },
    "sigmoid": {
        **{"arch": "qwen3moe", **OF_16},
        "metadata": {"qwen3moe.expert_gating_func": 2, "qwen3moe.expert_weights_scale": 1.5},
    },
    "not normalized": {**OF_16, "metadata": {"llama.expert_weights_norm": False}},
    "of the chosen": {**OF_16, "metadata": {"llama.expert_gating_func": 3}},
}


FAMILIES = ("qwen3moe", "gpt-oss")  # all that a context can do is tested on them


def ids_of(n: int, n_vocab: int = 288, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, n_vocab, n).tolist()


def load(path: Path, **options) -> LLM:
    return LLM(path, **{"type_k": "f32", "type_v": "f32", "n_threads": 2, **options})


@pytest.mark.parametrize("shape", SHAPES)
def test_f32_follows_the_reference(tmp_path, shape, isa):
    path = write_llama(tmp_path / "m.gguf", **SHAPES[shape])
    ids = ids_of(75, SHAPES[shape].get("n_vocab", 288))
    expected = Reference(path).logits(ids)
    got = {}
    for cache in CACHES:
        with load(path, cache=cache) as llm:
            got[cache] = llm.logits(ids)
        assert relative_error(got[cache], expected) < F32_BOUND, cache
    assert relative_error(got["raw"], got["roped"]) < F32_BOUND


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("shape", ["llama", "qwen2moe", "qwen3moe", "gpt-oss", "llama, one expert"])
def test_decoding_token_by_token_follows_the_reference(tmp_path, shape, cache, isa):
    path = write_llama(tmp_path / "m.gguf", **SHAPES[shape])
    ids = ids_of(70)
    expected = Reference(path).logits(ids)
    for n_ubatch in (1, 3):
        with load(path, cache=cache, n_ubatch=n_ubatch) as llm:
            assert relative_error(llm.logits(ids), expected) < F32_BOUND


QUANTIZED = {
    **{name: {"weight_type": name, "arch": "qwen3moe"} for name in ("Q8_0", "Q4_0", "F16")},
    "Q4_K_M": {
        **{"weight_type": "Q4_K", "output_type": "Q6_K"},
        "type_of": {"attn_v": "Q6_K", "blk.0.ffn_down": "Q6_K"},
    },
    "floats among them": {"weight_type": "Q5_K", "type_of": {"ffn_up_exps": "F16"}},
    "qwen2moe": {"weight_type": "Q8_0", "arch": "qwen2moe"},
    "gpt-oss": {**OSS, "weight_type": "Q8_0"},
    "down has other blocks": {"weight_type": "Q4_K", "n_ff": 96, "type_of": {"ffn_down": "Q4_0"}},
}


@pytest.mark.parametrize("case", QUANTIZED)
def test_quantized_weights(tmp_path, case, isa):
    errors = []
    for seed in range(5):  # short ones, for every expert of a token has activations to round
        shape = {"dim": 256, "n_ff": 256, "n_vocab": 301, "seed": seed, "n_experts": 5}
        shape |= QUANTIZED[case]
        path = write_llama(tmp_path / "m.gguf", **shape)
        ids = ids_of(3, 301, seed)
        expected = Reference(path, activations="q8_f16").logits(ids)
        for cache, n_ubatch in itertools.product(CACHES, (1, 512)):
            with load(path, cache=cache, n_ubatch=n_ubatch) as llm:
                errors.append(relative_error(llm.logits(ids), expected))
    assert max(errors) < QUANTIZED_BOUND
    assert min(errors) < F32_BOUND


@pytest.mark.parametrize("shape", ["llama", "qwen2moe", "qwen3moe", "gpt-oss"])
def test_n_threads_agnosticism(tmp_path, shape, isa):
    path = write_llama(tmp_path / "m.gguf", n_ctx=1024, weight_type="Q4_0", **SHAPES[shape])
    ids = ids_of(300)
    for cache, n_ubatch in itertools.product(CACHES, (512, 3)):
        results = []
        for n_threads in (1, 2, 3):
            with load(path, cache=cache, n_threads=n_threads, n_ubatch=n_ubatch) as llm:
                results.append(llm.logits(ids if n_ubatch > 3 else ids[:50]))
        assert np.array_equal(results[0], results[1])
        assert np.array_equal(results[0], results[2])


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("weight_type", ["F32", "Q4_0"])
def test_chunk_size_agnosticism(tmp_path, cache, weight_type):
    shape = {"arch": "qwen3moe", "weight_type": weight_type, "n_ctx": 600, **OF_16}
    path = write_llama(tmp_path / "m.gguf", **shape)
    ids = ids_of(330)
    results = []
    for n_ubatch in (1, 7, 32, 512):
        with load(path, cache=cache, n_ubatch=n_ubatch) as llm:
            results.append(llm.logits(ids))
    for other in results[1:]:
        if weight_type == "F32":
            assert relative_error(other, results[0]) < F32_BOUND
        else:  # rounding may send a token to another expert, whose weight is nearly the same
            errors = [relative_error(a, b) for a, b in zip(other, results[0], strict=True)]
            assert np.median(errors) < QUANTIZED_BOUND


@pytest.mark.parametrize("cache", CACHES)
def test_batch_agnosticism(tmp_path, cache):
    """Eight requests together write the same texts as each alone."""
    shape = {"arch": "qwen3moe", "weight_type": "Q4_0", "n_ctx": 1024, **OF_16}
    path = write_llama(tmp_path / "m.gguf", **shape)
    prompts = [ids_of(n, seed=n) for n in (1, 5, 31, 32, 33, 64, 100, 7)]
    params = SamplingParams(temperature=0.9, max_tokens=20, seed=5, ignore_eos=True)
    with load(path, cache=cache) as llm:
        together = llm.generate(prompts, params)
        alone = [llm.generate(prompt, params) for prompt in prompts]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]


def test_the_router_matters(tmp_path):
    """The models of these tests do notice a wrong expert, else the tests above prove little."""
    path = write_llama(tmp_path / "m.gguf", **SHAPES["qwen3moe"])
    expected = Reference(path).logits(ids_of(40))
    other = Reference(path)
    other.weights["blk.1.ffn_gate_inp.weight"] = other.weights["blk.1.ffn_gate_inp.weight"][::-1]
    assert relative_error(other.logits(ids_of(40)), expected) > 100 * F32_BOUND


# ---- contexts and caches ----


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("shape", FAMILIES)
def test_an_edited_context_follows_the_reference(tmp_path, shape, cache, isa):
    path = write_llama(tmp_path / "m.gguf", **SHAPES[shape])
    reference = Reference(path)
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
@pytest.mark.parametrize("shape", FAMILIES)
def test_a_full_context_loses_its_oldest_tokens(tmp_path, shape, cache):
    """With one layer, keys that stay are those that they would be without the others."""
    path = write_llama(tmp_path / "m.gguf", **{**SHAPES[shape], "n_layers": 1, "n_ctx": 64})
    params = SamplingParams(
        temperature=0, max_tokens=70, ignore_eos=True, context_shift=True, n_keep=4
    )
    with load(path, cache=cache) as llm, llm.context() as context:
        done = llm.generate(ids_of(50), params, context=context)
        assert len(done.token_ids) == 70
        context.truncate(50)
        expected = Reference(path).logits([*context.tokens, 7, 8])[-2:]
        assert context.tokens[4:] != ids_of(50)[4:], "some are gone"
        assert relative_error(context.logits([7, 8]), expected) < F32_BOUND


@pytest.mark.parametrize("types", ["f16", *QUANTIZED_CACHES])
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("shape", FAMILIES)
def test_each_type_of_cache_is_evicted_from_as_an_edit_does_it(tmp_path, shape, cache, types):
    if cache == "roped" and types.endswith("_ch"):
        pytest.skip("roped keys by channel cannot move")
    heads = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 32}
    path = write_llama(tmp_path / "m.gguf", **{**SHAPES[shape], **heads, "n_ctx": 96})
    prompt = ids_of(60)
    params = SamplingParams(
        temperature=0, max_tokens=60, ignore_eos=True, context_shift=True, n_keep=5
    )
    with load(path, cache=cache, type_k=types, type_v=types) as llm, llm.context() as context:
        last = prompt[-1]
        context.append(prompt[:-1])
        with context.fork() as lent:
            written = llm.generate([last], params, context=lent).token_ids
        for expected in written:
            if len(context) == 96:
                context.delete(5, 37)
            logits = context.logits([last])[-1]
            context.append([last])
            logits[2] = -np.inf
            assert int(logits.argmax()) == expected
            last = expected
        assert len(written) == 60


@pytest.mark.parametrize("type_name", QUANTIZED_CACHES)
@pytest.mark.parametrize("shape", FAMILIES)
def test_quantized_keys_and_values(tmp_path, shape, type_name):
    """No further from exact ones than quantizing costs a model without experts."""
    bounds = {"q8_0": 0.05, "q8_ch": 0.05, "q4_0": 0.6, "q4_ch": 0.6}
    heads = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 64}
    ids = ids_of(75)
    path = write_llama(tmp_path / "m.gguf", **{**SHAPES[shape], **heads})
    expected = Reference(path).logits(ids)
    for n_ubatch in (512, 1):
        got = []
        for cache in CACHES:
            options = {"cache": cache, "type_k": type_name, "type_v": type_name}
            with load(path, n_ubatch=n_ubatch, **options) as llm:
                got.append(llm.logits(ids))
            errors = [relative_error(a, b) for a, b in zip(got[-1], expected, strict=True)]
            assert np.median(errors) < bounds[type_name]


@pytest.mark.parametrize("cache", CACHES)
def test_another_base_while_keys_stay(tmp_path, cache):
    path = write_llama(tmp_path / "m.gguf", **SHAPES["qwen3moe"])
    rope = {"scaling": "linear", "scale": 3.0, "freq_base": 500.0}
    expected = Reference(path, rope=rope).logits(ids_of(75))
    with load(path, cache=cache, rope=RopeConfig(**rope)) as llm:
        assert relative_error(llm.logits(ids_of(75)), expected) < F32_BOUND


def test_only_the_tokens_that_are_asked_for_go_to_experts_in_the_last_layer(tmp_path):
    path = write_llama(tmp_path / "m.gguf", **SHAPES["qwen2moe"])
    ids = ids_of(40)
    expected = Reference(path).logits(ids)
    with load(path) as llm:
        table = llm.runner.new_table()
        llm.runner.forward([Part(table, ids[:20])])  # none of them
        (last,) = llm.runner.forward([Part(table, ids[20:], "last")])
        assert relative_error(last, expected[-1]) < F32_BOUND


# ---- files ----


def split(path: Path, source: dict) -> None:
    """The same model with a tensor for each expert, as files were written in 2023."""
    tensors = {}
    reference = Reference(write_llama(path, **source))
    for name, values in reference.weights.items():
        if "_exps" in name:
            for i, matrix in enumerate(values.astype(np.float32)):
                tensors[name.replace("_exps.weight", f".{i}.weight")] = matrix
    dropped = [name for name in reference.weights if "_exps" in name]
    write_llama(path, **source, drop_tensors=dropped, extra_tensors=tensors)


def test_a_tensor_for_each_expert(tmp_path):
    path, ids = write_llama(tmp_path / "m.gguf", **SHAPES["llama"]), ids_of(20)
    old = tmp_path / "old.gguf"
    split(old, SHAPES["llama"])
    with load(path) as llm, load(old) as other:
        assert np.array_equal(llm.logits(ids), other.logits(ids))


def test_tensors_of_experts_of_different_types_are_refused(tmp_path):
    old = tmp_path / "old.gguf"
    split(old, SHAPES["llama"])
    extra = {"blk.0.ffn_up.3.weight": (np.zeros((96, 64), np.float32), "Q8_0")}
    reference = Reference(old)
    extra |= {
        name: values.astype(np.float32)
        for name, values in reference.weights.items()
        if ".ffn_" in name and "norm" not in name and name not in extra
    }
    dense = [f"blk.{i}.ffn_{n}_exps.weight" for i in range(2) for n in ("gate", "up", "down")]
    write_llama(old, **SHAPES["llama"], drop_tensors=dense, extra_tensors=extra)
    with pytest.raises(ModelError, match=r"'blk.0.ffn_up.0.weight' and those of the other .* F32"):
        load(old)


def test_experts_may_be_as_wide_as_other_keys_say(tmp_path):
    """Files from before there was a key for it."""
    for arch, n_ff in (("llama", 96), ("qwen2moe", 96 * 4), ("qwen3moe", 96 * 4)):
        keys = {f"{arch}.expert_feed_forward_length": None, f"{arch}.feed_forward_length": n_ff}
        path = write_llama(tmp_path / "m.gguf", arch=arch, metadata=keys, **OF_16)
        with load(path) as llm:
            assert llm.config.experts is not None
            assert llm.config.experts.n_ff == 96


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("attn_sinks.weight", np.zeros(5, np.float32), "has shape [5], expected [6]"),
        ("attn_sinks.weight", None, "'blk.0.attn_sinks.weight' is missing"),
        ("post_attention_norm.weight", None, "'blk.0.post_attention_norm.weight' is missing"),
        ("ffn_down_exps.bias", np.zeros((16, 96), np.float32), "[16, 96], expected [16, 64]"),
    ],
)
def test_wrong_tensors_of_gpt_oss_are_refused(tmp_path, name, values, said):
    name = f"blk.0.{name}"
    change = {"drop_tensors": [name]} if values is None else {"extra_tensors": {name: values}}
    with pytest.raises(GGUFError) as caught:
        load(write_llama(tmp_path / "m.gguf", **OSS, **change))
    assert said in str(caught.value)


@pytest.mark.parametrize("value", [-1, 2**31])
def test_windows_of_gpt_oss_are_checked(tmp_path, value):
    path = write_llama(tmp_path / "m.gguf", **OSS)
    with pytest.raises(GGUFError, match=f"sliding_window is {value}, expected"):
        LLM(path, overrides={"gpt-oss.attention.sliding_window": value})


def test_sinks_and_windows_matter(tmp_path):
    path = write_llama(tmp_path / "m.gguf", **OSS)
    expected = Reference(path).logits(ids_of(40))
    other = Reference(path)
    other.weights["blk.1.attn_sinks.weight"] = other.weights["blk.1.attn_sinks.weight"] - 3
    assert relative_error(other.logits(ids_of(40)), expected) > 100 * F32_BOUND
    wide = {**OSS["metadata"], "gpt-oss.attention.sliding_window": 21}
    other = Reference(write_llama(path, **{**OSS, "metadata": wide}))
    assert relative_error(other.logits(ids_of(40)), expected) > 100 * F32_BOUND


REFUSED = [
    ("expert_count", None, "expert_count is missing"),
    ("expert_count", 0, "is 0, expected 1 to 4096"),
    ("expert_count", 2**31, "is 2147483648, expected 1 to 4096"),
    ("expert_count", 17, "'blk.0.ffn_gate_inp.weight' has shape [16, 64], expected [17, 64]"),
    ("expert_count", 4096, "'blk.0.ffn_gate_inp.weight' has shape [16, 64], expected [4096, 64]"),
    ("expert_used_count", None, "expert_used_count is missing"),
    ("expert_used_count", 0, "is 0, expected 1 to 16"),
    ("expert_used_count", 17, "is 17, expected 1 to 16"),
    ("expert_used_count", -1, "is -1, expected 1 to 16"),
    ("expert_feed_forward_length", 0, "is 0, expected 1 to 131072"),
    ("expert_feed_forward_length", 95, "has shape [16, 96, 64], expected [16, 95, 64]"),
    ("expert_gating_func", 4, "expert gating function 4 is not supported, only 1 (softmax)"),
    ("expert_weights_norm", 1, "expert_weights_norm is 1, expected"),
    ("expert_weights_scale", float("nan"), "is nan, expected a finite number"),
    ("expert_weights_scale", -1.0, "is -1.0, expected 0.0 to"),
    ("expert_group_count", 4, "groups of experts are not supported"),
]


@pytest.mark.parametrize(("key", "value", "said"), REFUSED)
def test_hostile_keys_are_refused(tmp_path, key, value, said):
    keys = {f"qwen3moe.{key}": value}
    path = write_llama(tmp_path / "m.gguf", arch="qwen3moe", metadata=keys, **OF_16)
    with pytest.raises((GGUFError, ModelError)) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)


def test_experts_of_a_llama_may_be_none_but_not_too_many(tmp_path):
    path = write_llama(tmp_path / "m.gguf", metadata={"llama.expert_count": 0})
    with load(path) as llm:
        assert llm.config.experts is None
    with pytest.raises(GGUFError, match="is 2147483648, expected 0 to 4096"):
        load(write_llama(path, metadata={"llama.expert_count": 2**31}))
    with pytest.raises(ModelError, match="mixtures of experts are not supported in 'qwen3' models"):
        load(write_llama(path, arch="qwen3", metadata={"qwen3.expert_count": 4}))


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("ffn_gate_inp.weight", None, "'blk.1.ffn_gate_inp.weight' is missing"),
        ("ffn_gate_exps.weight", None, "'blk.1.ffn_gate_exps.weight' is missing"),
        ("ffn_down_exps.weight", None, "'blk.1.ffn_down_exps.weight' is missing"),
        ("ffn_up_exps.weight", (15, 96, 64), "has shape [15, 96, 64], expected [16, 96, 64]"),
        ("ffn_up_exps.weight", (16 * 96, 64), "has shape [1536, 64], expected [16, 96, 64]"),
        ("ffn_up_exps.weight", (16, 96 * 64), "has shape [16, 6144], expected [16, 96, 64]"),
        ("ffn_down_exps.weight", (16, 96, 64), "has shape [16, 96, 64], expected [16, 64, 96]"),
        ("ffn_up_exps.bias", (16, 64), "has shape [16, 64], expected [16, 96]"),
        ("ffn_gate.weight", (96, 64), "'blk.1.ffn_gate.weight' has no place"),
        ("exp_probs_b.bias", (16,), "'blk.1.exp_probs_b.bias' has no place"),
    ],
)
def test_wrong_tensors_are_refused(tmp_path, name, shape, said):
    name = f"blk.1.{name}"
    change = {"extra_tensors": {name: np.zeros(shape, np.float32)}} if shape else {}
    change |= {} if shape else {"drop_tensors": [name]}
    path = write_llama(tmp_path / "m.gguf", arch="qwen3moe", **OF_16, **change)
    with pytest.raises((GGUFError, ModelError)) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)


@pytest.mark.parametrize("name", ["ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"])
@pytest.mark.parametrize("weight_type", ["F32", "Q8_0"])
def test_nan_in_a_matrix_ends_in_an_error(tmp_path, name, weight_type):
    shape = {"n_experts": 2, "n_used": 2, "n_layers": 1, "arch": "qwen3moe"}
    path = write_llama(tmp_path / "m.gguf", **shape)
    values = Reference(path).weights[f"blk.0.{name}.weight"].astype(np.float32)
    values[1, 5] = np.nan
    type_name = "F32" if name == "ffn_gate_inp" else weight_type
    extra = {f"blk.0.{name}.weight": (values, type_name)}
    with np.errstate(invalid="ignore"):
        write_llama(path, **shape, weight_type=weight_type, extra_tensors=extra)
    greedy = SamplingParams(temperature=0, max_tokens=2)
    with load(path) as llm:
        for prompt in ([1, 5], ids_of(70)):
            with pytest.raises(LariatError, match=r"the logits hold (nan|-?inf)"):
                llm.generate(prompt, greedy)
