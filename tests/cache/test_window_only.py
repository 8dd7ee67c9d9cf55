"""`swa_window_only`: layers with a window give old keys back; what this forbids is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lariat import LLM, ChunkLibrary, ContextError, SamplingParams
from lariat.cache.blocks import SLOTS, BlockPool
from lariat.cache.kv_storage import CacheMemory
from lariat.config import ModelConfig

from tests.support.family_files import write_family
from tests.support.model_files import write_llama
from tests.support.real_models import GEMMA3, needs_gemma3

CACHES = ("roped", "raw")
TYPES = ("f16", "f32", "q8_0", "q4_0", "q8_ch", "q4_ch")
WINDOW = 40
SHAPE = {"dim": 64, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "head_dim": 64, "n_ctx": 512}
IDS: list[int] = np.random.default_rng(5).integers(3, 280, 400).tolist()
GREEDY = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A window in two of three layers, in every other layer with sinks, and in each layer."""
    folder = tmp_path_factory.mktemp("models")
    window = {"attention.sliding_window": WINDOW}
    return {
        "gemma3": write_family(folder / "gemma3.gguf", "gemma3", keys=window, **SHAPE),
        "phi3": write_family(folder / "phi3.gguf", "phi3", keys=window, **SHAPE),
        "gpt-oss": write_llama(
            folder / "gpt-oss.gguf", arch="gpt-oss", biases=True, n_experts=4,
            metadata={"gpt-oss.attention.sliding_window": WINDOW}, **SHAPE,
        ),
    }  # fmt: skip


def load(path: Path, window_only: bool = True, **options) -> LLM:
    settings = {"n_threads": 1, "n_ctx": 448, "n_ubatch": 64, "swa_window_only": window_only}
    return LLM(path, **settings | options)


def n_thin(llm: LLM) -> int:
    return int(llm.runner.cache.pool.thin.sum())


@pytest.mark.parametrize("kv_type", TYPES)
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("arch", ["gemma3", "phi3", "gpt-oss"])
def test_nothing_that_is_computed_changes(
    models: dict[str, Path], arch: str, cache: str, kv_type: str
) -> None:
    results = []
    for window_only in (False, True):
        options = {"cache": cache, "type_k": kv_type, "type_v": kv_type}
        with load(models[arch], window_only, **options) as llm, llm.context() as context:
            context.append(IDS[:230])  # in passes of 64
            done = llm.generate(IDS[230:240], GREEDY, context=context)
            logits = context.logits(IDS[240:250])
            results.append((done.token_ids, logits))
            # 299 tokens: of the first 6 blocks the last key is too old for the window and its spare
            assert n_thin(llm) == (6 if window_only else 0)
    assert results[0][0] == results[1][0]
    assert np.array_equal(results[0][1], results[1][1])


def test_many_requests_at_once(models: dict[str, Path]) -> None:
    prompts = [IDS[:150], IDS[:130], IDS[:9], IDS[200:390]]
    written = []
    for window_only in (False, True):
        with load(models["gemma3"], window_only, n_ctx=1024) as llm:
            written.append([one.token_ids for one in llm.generate(prompts, GREEDY)])
            if window_only:
                assert n_thin(llm)
            again = [one.token_ids for one in llm.generate(prompts, GREEDY)]
            assert again == written[-1]  # prefixes of which blocks are thin are computed anew
    assert written[0] == written[1]


@pytest.mark.parametrize("cache", CACHES)
def test_a_full_context_evicts_its_oldest_tokens(models: dict[str, Path], cache: str) -> None:
    params = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True, context_shift=True)
    written = []
    for window_only in (False, True):
        with load(models["gemma3"], window_only, cache=cache, n_ctx=256) as llm:
            with llm.context() as context:
                done = llm.generate(IDS[:100], params, context=context)
                assert done.finish_reason == "length"
                assert (n_thin(llm) > 0) == window_only
            written.append(done.token_ids)
    assert written[0] == written[1]


@needs_gemma3
@pytest.mark.parametrize("cache", CACHES)
def test_a_real_model_writes_the_same(cache: str) -> None:
    """Windows of 512 tokens."""
    prompt, written = np.random.default_rng(1).integers(1000, 20000, 900).tolist(), []
    for window_only in (False, True):
        options = {"cache": cache, "n_ctx": 1024, "n_threads": 2}
        with LLM(GEMMA3, swa_window_only=window_only, **options) as llm:
            written.append(llm.generate(prompt, replace(GREEDY, max_tokens=20)).token_ids)
            assert n_thin(llm) == (10 if window_only else 0)
    assert written[0] == written[1]


# ---- what is refused ----


@pytest.fixture(params=CACHES)
def llm(request: pytest.FixtureRequest, models: dict[str, Path]) -> Iterator[LLM]:
    with load(models["gemma3"], cache=request.param, n_ctx=800) as llm:
        yield llm


def test_edits_that_would_show_old_keys_are_refused(llm: LLM, tmp_path: Path) -> None:
    with llm.context() as context, llm.context() as other:
        context.append(IDS[:300])
        other.append(IDS[:30])
        expected = context.logits(IDS[300:303])
        edits = [
            lambda: context.delete(120, 280),
            lambda: context.insert(100, IDS[:5]),
            lambda: context.move(0, 50, 250),
            lambda: context.recompute([(90, 100)]),
            lambda: context.save(tmp_path / "context.safetensors"),
        ]
        if llm.settings.cache == "raw":
            library = ChunkLibrary(tmp_path / "library")
            edits.append(lambda: library.add(llm, "long", IDS[:300]))
        for edit in edits:
            with pytest.raises(ContextError, match=r"--swa-window-only\) gave back"):
                edit()
        assert context.tokens == IDS[:300]
        assert np.array_equal(context.logits(IDS[300:303]), expected)
        context.delete(10, 60)  # all that a window sees is there
        context.insert(250, IDS[300:310])
        context.append(other)
        assert len(context) == 290
        other.save(tmp_path / "short.safetensors")
        assert other.logits(IDS[:1]).shape == (1, llm.config.n_vocab)


def test_a_text_that_goes_back_far_is_computed_anew(models: dict[str, Path]) -> None:
    results = []
    for window_only in (False, True):
        with load(models["gemma3"], window_only) as llm, llm.context() as context:
            context.append(IDS[:300])
            context.truncate(290)  # within the spare
            context.append(IDS[300:310])
            n = n_thin(llm)
            context.truncate(200)
            assert len(context) == 200
            results.append(context.logits(IDS[:5]))
            with context.fork() as fork:
                assert fork.tokens == IDS[:200]
                results.append(fork.logits(IDS[:5]))
            assert n == (6 if window_only else 0)
    for result in results[1:]:
        assert np.abs(result - results[0]).max() < 2e-5


def test_files_made_without_it_are_read(models: dict[str, Path], tmp_path: Path) -> None:
    """A chunk and a context that are longer than a window."""
    saved, results = tmp_path / "context.safetensors", []
    for window_only in (False, True):
        with load(models["gemma3"], window_only, cache="raw", n_ctx=1024) as llm:
            library = ChunkLibrary(tmp_path / "library")
            with llm.context() as context, llm.context() as other:
                if not window_only:
                    library.add(llm, "long", IDS[:200])
                    other.append(IDS[:250])
                    other.save(saved)
                else:
                    other.load(saved)
                context.append(IDS[:5])
                context.append(library["long"], recompute="none")
                for one in (context, other):
                    one.append(IDS[250:300])
                    results.append(one.logits(IDS[300:305]))
                assert (n_thin(llm) > 0) == window_only
    assert np.array_equal(results[0], results[2])
    assert np.array_equal(results[1], results[3])


def test_a_fork_keeps_what_it_sees(llm: LLM) -> None:
    with llm.context() as context:
        context.append(IDS[:150])
        n_before = n_thin(llm)
        with context.fork() as fork:
            expected = fork.logits(IDS[150:155])
            context.append(IDS[150:350])
            assert np.array_equal(fork.logits(IDS[150:155]), expected)
            n_shared = n_thin(llm)
        context.append(IDS[350:390])
        assert n_before < n_shared < n_thin(llm)


def test_compacting_leaves_thin_blocks(llm: LLM) -> None:
    with llm.context() as context:
        context.append(IDS[:300])
        context.delete(10, 20)
        context.delete(40, 50)
        before, n = context.logits(IDS[:3]), n_thin(llm)
        assert context.compact() >= 0
        assert n_thin(llm) == n
        assert np.array_equal(context.logits(IDS[:3]), before)


def test_without_windows_nothing_happens(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "m.gguf", **SHAPE)
    with load(path) as llm, llm.context() as context:
        context.append(IDS[:300])
        context.delete(100, 280)
        assert n_thin(llm) == 0


# ---- parts ----


def test_the_memory_of_some_layers_goes_back(models: dict[str, Path]) -> None:
    with load(models["gemma3"]) as llm:
        config: ModelConfig = llm.config
    memory = CacheMemory(config, 4, "f16", "f32", gives_back=True)
    for of_array in memory.blocks:
        of_array[:] = 7
    memory.give_back(2, [0, 2])
    for of_array in memory.blocks:
        gone = {(layer, 2) for layer in (0, 2)}
        for layer in range(3):
            for block in range(4):
                assert (of_array[layer, block] == (0 if (layer, block) in gone else 7)).all()


def test_a_thin_block_has_no_key_until_it_is_handed_out_anew() -> None:
    pool = BlockPool(2)
    block = pool.allocate()
    pool.keep(block, b"key")
    pool.make_thin(block)
    assert pool.find(b"key") is None
    pool.keep(block, b"key")
    assert pool.find(b"key") is None
    assert pool.thin[pool.copied(block, 0, SLOTS)]
    pool.release(block)
    assert pool.allocate() == block
    assert not pool.thin[block]
