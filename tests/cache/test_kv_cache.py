"""Blocks of a file in a KV cache, and the plans of its layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lariat.cache.kv_cache import FileBlocks, KVCache, RawCache, RopedCache
from lariat.cache.rope import RopeTables
from lariat.config import LayerConfig, ModelConfig, RopeConfig

ROPE = RopeConfig("none", 1.0, 1e4, 64)
CONFIG = ModelConfig(
    n_vocab=8, n_ctx_train=256, dim=32, n_layers=3, n_heads=2, n_kv_heads=1, head_dim_k=16,
    head_dim_v=8, n_ff=32, norm_eps=1e-5, rope_dim=16, rope=ROPE,
)  # fmt: skip
BEGIN = 4096  # of the arrays in the file


def cache_of(strategy: type[KVCache], config: ModelConfig = CONFIG) -> KVCache:
    return strategy(config, 256, "f16", "f32", RopeTables(config, 256))


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[FileBlocks]:
    """Two blocks that 40 tokens take, random bytes."""
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 256, (3, 2, 32 * 16 * 2), np.uint8)
    values = rng.integers(0, 256, (3, 2, 32 * 8 * 4), np.uint8)
    path = tmp_path / "blocks"
    path.write_bytes(bytes(BEGIN) + keys.tobytes() + values.tobytes())
    segments = np.array([[0, 0, 32], [1, 2, 8]], np.int32)
    with path.open("rb") as file:
        yield FileBlocks(
            segments, keys, values, file.fileno(), BEGIN, BEGIN + keys.nbytes, "a checksum"
        )


def test_blocks_of_a_file_are_in_the_pool_once(stored):
    cache = cache_of(RawCache)
    assert cache.block_shape == (3, stored.keys.shape[2], stored.values.shape[2])
    one, two = cache.place(stored, 1), cache.place(stored, 2)
    assert one.n_tokens == 40
    assert np.array_equal(one.segments, two.segments)
    assert one.segments[:, 1:].tolist() == [[0, 32, 0], [2, 8, 32]]
    assert cache.pool.n_blocks - cache.pool.n_free == 2
    for got, expected in zip(
        cache.read_blocks(one.segments[:, 0]), (stored.keys, stored.values), strict=True
    ):
        assert np.array_equal(got, expected)
    other = cache.place(replace(stored, identity="another"), 1)
    assert not set(other.segments[:, 0]) & set(one.segments[:, 0])


@pytest.mark.parametrize(
    "change",
    [
        lambda s: {"keys": s.keys[:2]},
        lambda s: {"keys": s.keys[..., :-1]},
        lambda s: {"keys": s.keys[:, :1]},
        lambda s: {"values": s.values[:, :1]},
        lambda s: {"values": s.keys[..., :8]},
    ],
)
def test_blocks_of_another_cache_are_refused(stored, change):
    cache = cache_of(RawCache)
    with pytest.raises(ValueError, match="keys and values of the file are"):
        cache.place(replace(stored, **change(stored)), 1)
    assert cache.pool.n_free == cache.pool.n_blocks


@pytest.mark.parametrize("strategy", [RopedCache, RawCache])
def test_layers_with_the_same_mask_share_a_plan(strategy):
    """Their RoPE tables may differ."""
    local = LayerConfig(replace(ROPE, freq_base=100.0))
    layers = (LayerConfig(ROPE), local, LayerConfig(None), local)
    cache = cache_of(strategy, replace(CONFIG, n_layers=4, layers=layers))
    assert len(cache._plans) == 1
    assert cache._plan_of[1] is cache._plan_of[3]
