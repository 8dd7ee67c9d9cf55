"""Contexts of models with attention windows: edits, chunks, context shift, quantized keys."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lariat import LLM, ChunkLibrary, SamplingParams, _kernels
from lariat.config import RopeConfig
from lariat.runtime.batch import Part

from tests.reference import Reference, relative_error
from tests.support.cache_blocks import CHANNEL_TYPES, QUANTIZED
from tests.support.contexts import CACHES, ids_of, load
from tests.support.family_files import write_family

F32_BOUND = 1e-5
WINDOW = 40  # of three of four layers, with RoPE of another base
EOS = 2


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers, with heads that quantized types can hold."""
    folder = tmp_path_factory.mktemp("model")
    return write_family(folder / "m.gguf", "gemma3", head_dim=32, n_ctx=1024)


@pytest.fixture(scope="module")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer, with a window: there a key depends on its own token alone."""
    folder = tmp_path_factory.mktemp("model")
    return write_family(folder / "m.gguf", "gemma3", n_layers=1, n_ctx=96)


@pytest.mark.parametrize("cache", CACHES)
def test_an_edited_context_follows_the_reference(path, cache):
    """What moves into a window is seen, and what moves out of it is not."""
    reference, ids, last = Reference(path), ids_of(150), ids_of(5, seed=1)
    order = [*range(7), *range(60, 111), *range(140, 150), *range(111, 140)]
    past = [(k[order], v[order]) for k, v in reference.cached(ids)]
    with load(path, cache) as llm, llm.context() as context:
        context.append(ids)
        context.delete(7, 60)
        context.move(87, 97, 58)
        assert context.tokens == [ids[i] for i in order]
        expected = reference.logits(last, past=past)
        assert relative_error(context.logits(last), expected) < F32_BOUND
        for i in range(len(last)):  # decode sees the same
            assert relative_error(context.logits(last[: i + 1])[-1], expected[i]) < F32_BOUND


@pytest.mark.parametrize("cache", CACHES)
def test_a_full_context_loses_tokens_that_no_window_sees_as_the_reference_does(shallow, cache):
    n_ctx, n_keep, prompt = 96, 4, ids_of(70)
    reference, ids, written = Reference(shallow), list(prompt), []
    for _ in range(90):
        logits = reference.logits(ids)[-1]
        logits[EOS] = -np.inf
        written.append(int(logits.argmax()))
        ids.append(written[-1])
        if len(ids) > n_ctx:
            del ids[n_keep : n_keep + 32]
    params = SamplingParams(
        max_tokens=90, temperature=0, ignore_eos=True, context_shift=True, n_keep=n_keep
    )
    with load(shallow, cache, n_ctx=n_ctx) as llm:
        assert llm.generate(prompt, params).token_ids == written


def test_a_chunk_scores_as_at_its_place(shallow, shelf: ChunkLibrary):
    reference, chunk, before = Reference(shallow), ids_of(30), ids_of(25, 5)
    with load(shallow) as llm:
        shelf.add(llm, "a", chunk)
        with llm.context() as context:
            context.append(before)
            context.append(shelf["a"])
            expected = reference.logits([*context.tokens, 9, 10, 11])[-3:]
            assert relative_error(context.logits([9, 10, 11]), expected) < F32_BOUND


@pytest.mark.parametrize("cache", CACHES)
def test_a_saved_context_goes_on(path, tmp_path, cache):
    ids, last = ids_of(130), ids_of(4, seed=1)
    with load(path, cache) as llm:
        with llm.context() as context:
            context.append(ids)
            expected = context.logits(last)
            context.save(tmp_path / "c.safetensors")
        with llm.context() as context:
            context.load(tmp_path / "c.safetensors")
            assert np.array_equal(context.logits(last), expected)


@pytest.mark.parametrize("cache", CACHES)
def test_a_shared_prefix_changes_nothing(path, cache):
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    prompt, more = ids_of(130), ids_of(20, seed=1)
    with load(path, cache) as llm:
        alone = llm.generate([*prompt, *more], params)
    with load(path, cache) as llm:
        llm.generate(prompt, params)
        shared = llm.generate([*prompt, *more], params)
    assert shared.token_ids == alone.token_ids


@pytest.mark.parametrize("types", QUANTIZED)
@pytest.mark.parametrize("cache", CACHES)
def test_quantized_keys_in_windows(path, cache, types):
    """As near as their bits allow, in prompts and token by token, with any number of threads."""
    ids = ids_of(150)
    expected = Reference(path).logits(ids)
    # One cannot tell more of 4 bits than that keys are where they belong.
    bound = 0.05 if types.startswith("q8") else 0.6
    for n_ubatch in (512, 1):
        results = []
        for n_threads in (1, 2):
            options = {"type_k": types, "type_v": types, "n_threads": n_threads}
            with load(path, cache, n_ubatch=n_ubatch, **options) as llm:
                results.append(llm.logits(ids))
        assert relative_error(results[0], expected) < bound
        assert np.array_equal(*results)


@pytest.mark.parametrize("types", [t for t in QUANTIZED if t not in CHANNEL_TYPES])
@pytest.mark.parametrize("cache", CACHES)
def test_quantized_keys_move(path, cache, types):
    """An edit and the same tokens computed in place differ by rounding alone."""
    reference, ids, last = Reference(path), ids_of(150), ids_of(5, seed=1)
    order = [*range(7), *range(60, 150)]
    past = [(k[order], v[order]) for k, v in reference.cached(ids)]
    expected = reference.logits(last, past=past)
    with load(path, cache, type_k=types, type_v=types) as llm, llm.context() as context:
        context.append(ids)
        context.delete(7, 60)
        bound = 0.08 if types.startswith("q8") else 0.6
        assert relative_error(context.logits(last), expected) < bound


@pytest.mark.parametrize("isa", _kernels.supported_isas())
@pytest.mark.parametrize("cache", CACHES)
def test_a_long_context_in_several_spans(path, cache, isa):
    """Layers with a window read one span, the others several."""
    before = _kernels.isa()
    _kernels.use_isa(isa)
    try:
        ids = ids_of(700)
        with load(path, cache) as llm:
            context = llm.runner.new_table()
            for start in range(0, 696, 232):
                llm.runner.forward([Part(context, ids[start : start + 232])])
            got = [llm.runner.forward([Part(context, [i], "all")])[0].copy() for i in ids[696:]]
            context.clear()
    finally:
        _kernels.use_isa(before)
    assert relative_error(np.array(got), Reference(path).logits(ids)[696:]) < F32_BOUND


def test_group_attention_is_for_layers_without_a_window_alone(path):
    """They have the main table of RoPE; the others have one of their own."""
    rope = {"grp_attn_n": 4, "grp_attn_w": 16}
    reference = Reference(path, rope=rope)
    for i, window in enumerate(reference.windows):
        if window:
            reference.layers[i] = reference.layers[i] | {"grp_attn_n": 1}
    expected = reference.logits(ids_of(133))
    for n_ubatch in (512, 1):
        with load(path, "raw", rope=RopeConfig(**rope), n_ubatch=n_ubatch) as llm:
            assert relative_error(llm.logits(ids_of(133)), expected) < F32_BOUND


def test_group_attention_within_windows(tmp_path):
    """All layers have a window, and rotate by the main table."""
    path = write_family(
        tmp_path / "m.gguf", "phi3", keys={"attention.sliding_window": 40}, rope_factors=False
    )
    rope = {"grp_attn_n": 4, "grp_attn_w": 16}
    expected = Reference(path, rope=rope).logits(ids_of(133))
    for n_ubatch in (512, 1):
        with load(path, "raw", rope=RopeConfig(**rope), n_ubatch=n_ubatch) as llm:
            assert relative_error(llm.logits(ids_of(133)), expected) < F32_BOUND


def test_requests_in_one_batch_see_their_own_windows(path):
    prompts = [ids_of(n, seed=n) for n in (1, 39, 41, 100, 7)]
    params = SamplingParams(temperature=0, max_tokens=50, ignore_eos=True)
    with load(path) as llm:
        together = llm.generate(prompts, params)
        alone = [llm.generate(prompt, params) for prompt in prompts]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]


def test_the_room_is_that_of_all_tokens(path):
    """Keys that no window reaches stay, so that every edit works."""
    with LLM(path, n_ctx=512) as llm, llm.context() as context:
        context.append(ids_of(400))
        n_held = llm.runner.cache.pool.n_blocks - llm.runner.cache.pool.n_free
        assert n_held == 13
