"""The whole engine against the float64 LLaMA of tests/reference.py, and against itself."""

from __future__ import annotations

import gc
import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from lariat import LLM, SamplingParams, _kernels
from lariat.config import RopeConfig
from lariat.errors import ContextError
from lariat.runtime.batch import Part

from tests.reference import Reference, relative_error
from tests.support.model_files import write_llama

ISAS = _kernels.supported_isas()
CACHES = ("roped", "raw")

# Bounds on ||ours - reference|| / ||reference|| over all logits.
F32_BOUND = 1e-5
# f16 and bf16 weights are exact in float32, so only float32 rounding is left, as with F32.
# Quantized weights: the reference rounds activations to 8 bits as the kernels do, so logits agree
# as closely (6e-8 measured) until float32 rounding pushes one activation to the neighbouring
# integer. From there on the two differ by what 8-bit rounding itself costs (1.4e-2 against exact
# activations, measured on these models). So: each run within that cost, and of several short runs
# at least one without such a step, within float32's bound.
QUANTIZED_BOUND = 2e-2
# Keys or values in f16 carry 11 significant bits: 2^-12 relative each, averaged by attention.
F16_CACHE_BOUND = 2e-3


@pytest.fixture(autouse=True)
def _restore_isa():
    before = _kernels.isa()
    yield
    _kernels.use_isa(before)


def ids_of(n: int, n_vocab: int = 288, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, n_vocab, n).tolist()


def load(path: Path, **options) -> LLM:
    return LLM(path, **{"type_k": "f32", "type_v": "f32", "n_threads": 2, **options})


FACTORS = [1.0, 1.5, 2.0, 4.0, 8.0, 8.0, 8.0, 8.0]
YARN = {
    "llama.rope.scaling.type": "yarn",
    "llama.rope.scaling.factor": 4.0,
    "llama.rope.scaling.original_context_length": 24,
}
SHAPES = {
    "mha-d8": {"dim": 32, "n_heads": 4, "n_kv_heads": 4},
    "gqa4-d64": {"dim": 256, "n_heads": 4, "n_kv_heads": 1},
    "gqa6-d80": {"dim": 64, "n_heads": 6, "n_kv_heads": 1, "head_dim": 80},
    "mha-d128": {"dim": 64, "n_heads": 2, "n_kv_heads": 2, "head_dim": 128},
    "mha-d48": {"dim": 96, "n_heads": 2, "n_kv_heads": 2},
    "gqa3-d6-v10": {"dim": 40, "n_heads": 6, "n_kv_heads": 2, "head_dim": 6, "head_dim_v": 10},
    "gqa9-d130-v36": {"dim": 33, "n_heads": 9, "n_kv_heads": 1, "head_dim": 130, "head_dim_v": 36},
    "partial-rope": {"dim": 64, "n_heads": 2, "n_kv_heads": 1, "rope_dim": 20},
    "linear-scaling": {"rope_scale": 4.0, "freq_base": 5e5},
    "rope-freqs": {"rope_freqs": FACTORS},
    "yarn": {"metadata": {**YARN, "llama.rope.scaling.attn_factor": 1.3}, "rope_freqs": FACTORS},
    "yarn-partial-rope": {
        "dim": 64,
        "n_heads": 2,
        "n_kv_heads": 1,
        "rope_dim": 20,
        "metadata": YARN,
    },
    "no-scaling": {"metadata": {**YARN, "llama.rope.scaling.type": "none"}},
    "odd-lengths": {"dim": 60, "n_heads": 3, "n_kv_heads": 3, "n_ff": 77, "n_vocab": 301},
    "tied-biases": {"tied": True, "biases": True},
    "qwen2": {"arch": "qwen2"},
    "qwen2-d6-tied": {"arch": "qwen2", "n_heads": 6, "n_kv_heads": 2, "head_dim": 6, "tied": True},
    "qwen3-d80": {"arch": "qwen3", "n_heads": 6, "n_kv_heads": 1, "head_dim": 80, "freq_base": 1e6},
    "qwen3-partial-rope": {
        **{"arch": "qwen3", "head_dim": 26, "head_dim_v": 10, "rope_dim": 20, "biases": True},
        "metadata": {key.replace("llama", "qwen3"): value for key, value in YARN.items()},
    },
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_f32_follows_the_reference(tmp_path, shape, isa):
    _kernels.use_isa(isa)
    path = write_llama(tmp_path / "m.gguf", **SHAPES[shape])
    n_vocab = SHAPES[shape].get("n_vocab", 288)
    ids = ids_of(75, n_vocab)  # two whole blocks and a part of one
    expected = Reference(path).logits(ids)
    got = {}
    for cache in CACHES:
        with load(path, cache=cache) as llm:
            got[cache] = llm.logits(ids)
        assert relative_error(got[cache], expected) < F32_BOUND, cache
    assert relative_error(got["raw"], got["roped"]) < F32_BOUND


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize(
    "shape",
    [
        "mha-d128",
        "gqa6-d80",
        "mha-d8",
        "gqa3-d6-v10",
        "partial-rope",
        "qwen2",
        "qwen3-d80",
        "qwen3-partial-rope",
    ],
)
def test_decoding_token_by_token_follows_the_reference(tmp_path, shape, cache, isa):
    _kernels.use_isa(isa)
    path = write_llama(tmp_path / "m.gguf", **SHAPES[shape])
    ids = ids_of(70)
    with load(path, cache=cache, n_ubatch=1) as llm:
        got = llm.logits(ids)
    assert relative_error(got, Reference(path).logits(ids)) < F32_BOUND


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("n_kv_heads", [1, 4])
def test_long_context_in_several_spans(tmp_path, cache, n_kv_heads, isa):
    """Over 512 positions decode is cut into spans that are merged."""
    _kernels.use_isa(isa)
    path = write_llama(
        tmp_path / "m.gguf", n_layers=1, n_heads=4, n_kv_heads=n_kv_heads, n_ctx=2048
    )
    ids = ids_of(1203)
    with load(path, cache=cache) as llm:
        context = llm.runner.new_table()
        for start in range(0, 1200, 400):
            llm.runner.forward([Part(context, ids[start : start + 400])])
        got = [llm.runner.forward([Part(context, [i], "all")])[0].copy() for i in ids[1200:]]
    assert relative_error(np.array(got), Reference(path).logits(ids)[1200:]) < F32_BOUND


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("weight_type", ["F16", "BF16"])
def test_half_precision_weights(tmp_path, weight_type, isa):
    _kernels.use_isa(isa)
    path = write_llama(tmp_path / "m.gguf", weight_type=weight_type, n_vocab=301, n_ff=77)
    ids = ids_of(45, 301)
    expected = Reference(path).logits(ids)
    for cache in CACHES:
        with load(path, cache=cache) as llm:
            assert relative_error(llm.logits(ids), expected) < F32_BOUND


QUANTIZED = {
    **{name: {"weight_type": name} for name in ("Q4_0", "Q4_1", "Q8_0", "Q6_K")},
    # as in real files: Q4_0 with a Q6_K output, some Q4_1, and a row length that stays F32
    "mixed": {
        "weight_type": "Q4_0",
        "output_type": "Q6_K",
        "type_of": {"attn_v": "Q4_1", "blk.1.ffn_up": "F16"},
        "n_ff": 172,
    },
    "Q4_K_M": {
        "weight_type": "Q4_K",
        "output_type": "Q6_K",
        "type_of": {"attn_v": "Q6_K", "blk.0.ffn_down": "Q6_K"},
    },
    "5 bits": {"weight_type": "Q5_K", "type_of": {"attn_k": "Q5_0", "ffn_up": "Q5_1"}},
    "2 and 3 bits": {"weight_type": "Q3_K", "type_of": {"ffn_": "Q2_K"}, "tied": True},
    "IQ4_NL": {"weight_type": "IQ4_NL"},
    "IQ4_XS": {"weight_type": "IQ4_XS", "type_of": {"attn_v": "Q5_K"}},
    "MXFP4": {"weight_type": "MXFP4", "type_of": {"attn_v": "Q8_0"}},
    "UD-IQ3": {"weight_type": "IQ3_XXS", "type_of": {"attn_v": "Q4_K", "ffn_up": "IQ3_S"}},
    "UD-IQ2": {
        "weight_type": "IQ2_XXS",
        "type_of": {"attn_v": "Q4_K", "ffn_up": "IQ2_S", "ffn_down": "IQ2_XS"},
        "output_type": "Q5_K",
    },
    "UD-IQ1": {"weight_type": "IQ1_S", "type_of": {"ffn_": "IQ1_M", "attn_v": "IQ2_S"}},
    "ternary": {"weight_type": "TQ1_0", "type_of": {"ffn_": "TQ2_0"}},
    "qwen2": {"weight_type": "Q8_0", "arch": "qwen2"},
    "qwen3": {"weight_type": "Q4_0", "arch": "qwen3", "tied": True, "output_type": "Q6_K"},
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", QUANTIZED)
def test_quantized_weights(tmp_path, case, isa):
    _kernels.use_isa(isa)
    errors = []
    for seed in range(3):
        shape = {"dim": 256, "n_ff": 512, "n_vocab": 301, "seed": seed, **QUANTIZED[case]}
        path = write_llama(tmp_path / "m.gguf", **shape)
        ids = ids_of(12, 301, seed)
        expected = Reference(path, activations="q8_f16").logits(ids)
        for cache, n_ubatch in itertools.product(CACHES, (5, 512)):
            with load(path, cache=cache, n_ubatch=n_ubatch) as llm:
                errors.append(relative_error(llm.logits(ids), expected))
    assert max(errors) < QUANTIZED_BOUND
    assert min(errors) < F32_BOUND


@pytest.mark.parametrize("types", [("f16", "f16"), ("f16", "f32"), ("f32", "f16")])
@pytest.mark.parametrize("isa", ISAS)
def test_f16_cache(tmp_path, types, isa):
    _kernels.use_isa(isa)
    path = write_llama(tmp_path / "m.gguf")
    ids = ids_of(75)
    expected = Reference(path).logits(ids)
    for cache, n_ubatch in itertools.product(CACHES, (1, 512)):
        with load(path, cache=cache, type_k=types[0], type_v=types[1], n_ubatch=n_ubatch) as llm:
            assert relative_error(llm.logits(ids), expected) < F16_CACHE_BOUND


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("arch", "weight_type"), [("llama", "F32"), ("qwen3", "Q4_0")])
def test_n_threads_agnosticism(tmp_path, arch, weight_type, isa):
    _kernels.use_isa(isa)
    shape = {"arch": arch, "biases": arch != "llama", "n_ctx": 1024, "n_ff": 1024}
    path = write_llama(tmp_path / "m.gguf", weight_type=weight_type, **shape)
    ids = ids_of(700)
    for cache, n_ubatch in itertools.product(CACHES, (512, 3)):
        results = []
        for n_threads in (1, 2, 3):
            with load(path, cache=cache, n_threads=n_threads, n_ubatch=n_ubatch) as llm:
                results.append(llm.logits(ids if n_ubatch > 3 else ids[:100]))
        assert np.array_equal(results[0], results[1])
        assert np.array_equal(results[0], results[2])


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("weight_type", ["F32", "Q4_0"])
def test_chunk_size_agnosticism(tmp_path, cache, weight_type):
    path = write_llama(tmp_path / "m.gguf", weight_type=weight_type, n_ctx=600)
    ids = ids_of(530)
    bound = F32_BOUND if weight_type == "F32" else QUANTIZED_BOUND
    results = []
    for n_ubatch in (1, 7, 32, 512):
        with load(path, cache=cache, n_ubatch=n_ubatch) as llm:
            results.append(llm.logits(ids))
    for other in results[1:]:
        assert relative_error(other, results[0]) < bound


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_batch_agnosticism(tmp_path, cache, temperature):
    """Eight requests together write the same texts as each alone."""
    path = write_llama(tmp_path / "m.gguf", weight_type="Q4_0", n_ctx=1024)
    prompts = [ids_of(n, seed=n) for n in (1, 5, 31, 32, 33, 64, 100, 7)]
    params = SamplingParams(temperature=temperature, max_tokens=30, seed=5, ignore_eos=True)
    with load(path, cache=cache) as llm:
        together = llm.generate(prompts, params)
        alone = [llm.generate(prompt, params) for prompt in prompts]
        assert llm.runner.cache.pool.n_free == llm.runner.cache.pool.n_blocks
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    assert all(len(c.token_ids) == 30 for c in alone)


def test_positions_matter(tmp_path):
    """The models of these tests do notice a wrong position, else the tests above prove little."""
    path = write_llama(tmp_path / "m.gguf")
    ids = ids_of(40)
    reference = Reference(path)
    shifted = [*range(20), *range(21, 41)]
    change = relative_error(reference.logits(ids, positions=shifted), reference.logits(ids))
    assert change > 100 * F32_BOUND


@pytest.mark.parametrize("cache", CACHES)
def test_decoding_allocates_no_buffers(tmp_path, cache):
    """After warm-up a token costs some lists and small arrays: nothing as wide as logits, the
    feed-forward or the context, and nothing that stays."""
    widest = 8192 * 4  # bytes of a row of logits, and of the feed-forward
    path = write_llama(tmp_path / "m.gguf", n_vocab=8192, n_ff=8192, n_ctx=8192)
    with load(path, cache=cache) as llm:
        context = llm.runner.new_table()
        llm.runner.forward([Part(context, ids_of(300), "last")])
        tracemalloc.start()
        try:
            for token in ids_of(20):
                llm.runner.forward([Part(context, [token], "last")])
            gc.collect()  # threadpoolctl's limits refer to each other, so they wait for it
            peaks = np.zeros(150, np.int64)
            before = tracemalloc.get_traced_memory()[0]
            for i, token in enumerate(ids_of(150)):
                tracemalloc.reset_peak()
                start = tracemalloc.get_traced_memory()[0]
                llm.runner.forward([Part(context, [token], "last")])
                peaks[i] = tracemalloc.get_traced_memory()[1] - start
            gc.collect()
            stays = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
    assert peaks.max() < widest
    assert stays < widest


# ---- positions: other bases and scalings, group attention, while keys stay ----


ROPES = {
    "linear": {"scaling": "linear", "scale": 3.0},
    "base": {"freq_base": 500.0},
    "yarn": {"scaling": "yarn", "scale": 4.0, "yarn_orig_ctx": 24, "yarn_beta_fast": 3.0},
    "yarn, half": {"scaling": "yarn", "scale": 4.0, "yarn_orig_ctx": 24, "yarn_ext_factor": 0.5},
    "attention factor": {"scaling": "linear", "scale": 2.0, "yarn_attn_factor": 1.4},
}
RAW_ROPES = {
    "dynamic": {"scaling": "dynamic", "scale": 2.0, "yarn_orig_ctx": 64},
    "groups": {"grp_attn_n": 4, "grp_attn_w": 16},
    "groups and linear": {
        "grp_attn_n": 3, "grp_attn_w": 30, "scaling": "linear", "scale": 2.0,
    },
}  # fmt: skip


def reference_of(path: Path, rope: dict, n_tokens: int) -> Reference:
    """Dynamic scaling grows by eighths of the trained length, here 8 tokens."""
    return Reference(path, rope={**rope, "n_tokens": -(-n_tokens // 8) * 8})


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", [*ROPES, *RAW_ROPES])
def test_positions_follow_the_reference(tmp_path, name, isa):
    """Whatever the threads, and the pieces that a prompt is computed in."""
    _kernels.use_isa(isa)
    path = write_llama(tmp_path / "m.gguf")
    rope = (ROPES | RAW_ROPES)[name]
    ids = ids_of(133)
    expected = reference_of(path, rope, len(ids)).logits(ids)
    assert relative_error(Reference(path).logits(ids), expected) > 0.01, "it matters"
    for cache in CACHES if name in ROPES else ("raw",):
        first = None
        for n_ubatch, n_threads in ((512, 2), (512, 1), (40, 2), (3, 1), (1, 2)):
            options = {"cache": cache, "n_ubatch": n_ubatch, "n_threads": n_threads}
            with load(path, rope=RopeConfig(**rope), **options) as llm:
                got = llm.logits(ids)
            assert relative_error(got, expected) < F32_BOUND
            first = got if first is None else first
            assert n_ubatch < 512 or np.array_equal(got, first)


@pytest.mark.parametrize("name", [*ROPES, *RAW_ROPES])
def test_positions_change_while_keys_stay(tmp_path, name):
    """With one layer, keys are those that the new angles would have had from the start."""
    path = write_llama(tmp_path / "m.gguf", n_layers=1)
    ids, last = ids_of(100), ids_of(3, seed=1)
    rope = (ROPES | RAW_ROPES)[name]
    with load(path, cache="raw") as llm, llm.context() as context:
        context.append(ids)
        before = context.logits(last)
        llm.set_rope(RopeConfig(**rope))
        expected = reference_of(path, rope, 103).logits([*ids, *last])[-3:]
        assert relative_error(context.logits(last), expected) < F32_BOUND
        llm.set_rope(RopeConfig())
        assert np.array_equal(context.logits(last), before)


def test_a_prompt_is_computed_anew_after_a_change(tmp_path):
    """Blocks that prompts share were computed with the old angles."""
    path, ids = write_llama(tmp_path / "m.gguf"), ids_of(90)
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    rope = RopeConfig("linear", scale=4.0)
    with load(path, cache="raw", rope=rope) as llm:
        expected = llm.generate(ids, params)
    with load(path, cache="raw") as llm:
        assert llm.generate(ids, params).token_ids != expected.token_ids
        stream = llm.stream(ids, params)
        next(stream)
        llm.set_rope(rope)
        for _ in stream:  # no block is shared that holds tokens of both settings
            pass
        got = llm.generate(ids, params)
        assert got.token_ids == expected.token_ids
        assert got.timings.n_reused == 0
        assert llm.generate(ids, params).timings.n_reused > 0


def test_dynamic_scaling_alone_or_in_a_batch(tmp_path):
    """Sequences of different lengths have different tables, in one step too."""
    path = write_llama(tmp_path / "m.gguf", n_ctx=64)
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    prompts = [ids_of(n, seed=n) for n in (50, 70, 128, 10)]
    rope = RopeConfig("dynamic")
    with load(path, cache="raw", rope=rope, n_ctx=640) as llm:
        alone = [llm.generate(prompt, params).token_ids for prompt in prompts]
        together = [done.token_ids for done in llm.generate(prompts, params)]
        assert together == alone
    with load(path, cache="raw", rope=rope, n_ctx=640, n_ubatch=16) as llm:
        assert [done.token_ids for done in llm.generate(prompts, params)] == alone


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rope": {"scaling": "dynamic"}}, "raw cache"),
        ({"rope": {"grp_attn_n": 2}}, "raw cache"),
    ],
)
def test_what_needs_raw_keys_says_so(tmp_path, options, words):
    path = write_llama(tmp_path / "m.gguf")
    rope = RopeConfig(**options["rope"])
    with pytest.raises(ValueError, match=words):
        load(path, cache="roped", rope=rope)
    with load(path, cache="roped") as llm, pytest.raises(ContextError, match=words):
        llm.set_rope(rope)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"scaling": "ntk"}, "'ntk', expected one of none, linear, yarn, dynamic"),
        ({"scale": 0.0}, "scale is 0"),
        ({"scale": -2.0}, "scale is -2"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"scale": "2"}, "a number"),
        ({"freq_base": 0.0}, "freq_base is 0"),
        ({"yarn_orig_ctx": 0}, "yarn_orig_ctx is 0"),
        ({"yarn_ext_factor": -1.0}, "yarn_ext_factor is -1"),
        ({"yarn_attn_factor": 0.0}, "yarn_attn_factor is 0"),
        ({"yarn_beta_fast": 0.0}, "yarn_beta_fast is 0"),
        ({"grp_attn_n": 0}, "grp_attn_n is 0"),
        ({"grp_attn_n": 4, "grp_attn_w": 510}, "510, expected a multiple of grp_attn_n, .* 4"),
    ],
)
def test_rope_config_refuses(values, words):
    with pytest.raises(ValueError, match=words):
        RopeConfig(**values)


def test_group_window_goes_with_the_groups():
    assert [RopeConfig(grp_attn_n=n).group_window for n in (1, 2, 3, 700)] == [512, 512, 510, 700]
