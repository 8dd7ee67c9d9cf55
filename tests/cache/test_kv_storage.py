"""The cache's arrays: what is stored, quantized by channel, copied and read back."""

from __future__ import annotations

import numpy as np
import pytest
from lariat import _cache, _kernels
from lariat._program import Program, run
from lariat.cache.blocks import BlockPool
from lariat.cache.kv_storage import CacheMemory
from lariat.formats.block_formats import GGMLType, quantize

from tests.support.cache_blocks import CHANNEL_TYPES, QUANTIZED, ROW_TYPES, config_of, values

N_BLOCKS, N_LAYERS, N_HEADS, DK, DV = 4, 2, 3, 64, 96


class Filled:
    """A cache whose first two blocks are full of random numbers, with channels of their own size
    and offset, one of zeros and one where all are equal."""

    def __init__(self, type: str, n_threads: int = 2) -> None:
        rng = np.random.default_rng(3)
        self.memory = CacheMemory(config_of(N_LAYERS, N_HEADS, DK, DV), N_BLOCKS, type, type)
        self.pool = BlockPool(N_BLOCKS)
        self.slots = np.arange(64, dtype=np.int32)
        self.x = {}
        assert [self.pool.allocate(), self.pool.allocate()] == [0, 1]
        self.memory.open(self.slots, self.pool)
        for layer in range(N_LAYERS):
            k, v = (self._numbers(rng, d) for d in (DK, DV))
            self.x["k", layer], self.x["v", layer] = k, v
            run(_cache.store(self.memory.kernel, layer, k, v, self.slots), n_threads=n_threads)

    @staticmethod
    def _numbers(rng: np.random.Generator, d: int) -> np.ndarray:
        x = rng.standard_normal((64, N_HEADS, d)) * 10.0 ** rng.uniform(-3, 2, (N_HEADS, d))
        x += 5 * rng.standard_normal((N_HEADS, d))
        x[..., 7], x[..., 8] = 0, 3.3
        return x.astype(np.float16).astype(np.float32)  # as an open block holds them

    def seal(self, n_threads: int = 2) -> None:
        self.memory.seal(self.slots, self.pool, n_threads)

    def each(self):
        """(numbers, of whom, layer), [2 blocks, n_heads, 32, d]"""
        for (which, layer), x in self.x.items():
            yield x.reshape(2, 32, N_HEADS, -1).swapaxes(1, 2).astype(np.float64), which, layer


@pytest.mark.parametrize("type", ROW_TYPES)
def test_rows_are_quantized_as_ggml_does(isa, type):
    filled = Filled(type)
    for x, which, layer in filled.each():
        got = values(filled.memory, which, type, layer)[:2]
        blocks = x.astype(np.float32).reshape(-1, 32)
        ggml = quantize(blocks, GGMLType[type.upper()])
        d = np.ascontiguousarray(ggml[:, :2]).view(np.float16).astype(np.float64)
        if type == "q8_0":
            q = ggml[:, 2:].view(np.int8).astype(np.float64)
        else:
            q = np.concatenate([ggml[:, 2:] & 15, ggml[:, 2:] >> 4], 1).astype(np.float64) - 8
        levels = np.abs(got.reshape(-1, 32) - d * q) / np.where(d == 0, 1, np.abs(d))
        # A number halfway between two may go the other way, if a product is fused into a sum.
        assert levels.max() < 1.001
        assert (levels > 1e-9).mean() < 1e-3


@pytest.mark.parametrize("type", CHANNEL_TYPES)
def test_channels_are_rounded_to_their_nearest_level(isa, type):
    filled = Filled(type)
    filled.seal()
    for x, which, layer in filled.each():
        got = values(filled.memory, which, type, layer)[:2]
        low, high = x.min(2, keepdims=True), x.max(2, keepdims=True)
        size = np.abs(x).max(2, keepdims=True)
        level = size / 127 if type == "q8_ch" else (high - low) / 15
        # Scale and offset have 11 significant bits.
        assert (np.abs(got - x) <= level * 0.501 + size * 2.0**-10).all()
        assert not got[..., 7].any()
        assert np.abs(got[..., 8] - 3.3).max() < 3.3 * 2.0**-8
    assert filled.pool.is_sealed(0)
    assert filled.pool.is_sealed(1)


@pytest.mark.parametrize("type", QUANTIZED)
def test_threads_and_order_change_no_bit(type):
    one, many = Filled(type, 1), Filled(type, 3)
    one.seal(1)
    many.seal(3)
    for array, other in zip(one.memory.arrays, many.memory.arrays, strict=True):
        assert np.array_equal(array.memory, other.memory)


def test_open_places_are_used_again():
    filled = Filled("q8_ch")
    assert filled.memory.open_at.tolist() == [0, 1, -1, -1]
    filled.seal()
    assert filled.memory.open_at.tolist() == [-1] * 4
    third = filled.pool.allocate()
    filled.memory.open(np.array([third * 32]), filled.pool)
    assert filled.memory.open_at[third] in (0, 1)
    filled.pool.release(third)  # while it is open
    fourth = filled.pool.allocate()
    filled.memory.open(np.array([fourth * 32]), filled.pool)
    assert (filled.memory.open_at >= 0).sum() == 1


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("type", ["f16", *QUANTIZED])
def test_what_is_read_can_be_written_and_copied(type, sealed):
    filled = Filled(type)
    if sealed:
        filled.seal()
    memory, pool = filled.memory, filled.pool
    stored = memory.read(filled.slots)
    assert memory.fits(64, 2, stored)
    assert not memory.fits(63, 2, stored) or type in CHANNEL_TYPES
    assert not memory.fits(64, 2, stored._replace(keys=stored.keys[..., :-1]))
    assert not memory.fits(64, 2, stored._replace(open=np.full(2, 2, np.uint8)))
    for layer in range(N_LAYERS):
        before = values(memory, "k", type, layer), values(memory, "v", type, layer)
        copy = pool.allocate()
        memory.copy(1, copy, 3, 20, pool)
        assert pool.is_sealed(copy) == (sealed and type in CHANNEL_TYPES)
        for old, which in zip(before, "kv", strict=True):
            new = values(memory, which, type, layer)
            assert np.array_equal(new[copy, :, 3:23], old[1, :, 3:23])
        pool.release(copy)
    blocks = [pool.allocate(), pool.allocate()]
    memory.write(np.concatenate([block * 32 + np.arange(32) for block in blocks]), stored, pool)
    for layer in range(N_LAYERS):
        for which in "kv":
            of = values(memory, which, type, layer)
            assert np.array_equal(of[blocks], of[:2])
    assert [pool.is_sealed(b) for b in blocks] == [sealed and type in CHANNEL_TYPES] * 2


def test_an_odd_head_is_refused_by_name():
    for type in QUANTIZED:
        with pytest.raises(ValueError, match=rf"type {type} needs a head_dim .* 32, .* is 80"):
            _cache.layout(type, 80)
    assert _cache.layout("f16", 80) == (160, 0, False)
    with pytest.raises(KeyError):
        _cache.layout("q3", 64)


def test_the_pool_refuses_memory_of_another_size():
    memory = np.zeros(32 * 64 * 2, np.uint8)
    _cache.Pool(memory, memory, 1, 1, 1, 64, 64, "f16", "f16")
    for type, due in (("f32", 8192), ("q8_0", 2048 + 128), ("q8_ch", 2048 + 128)):
        match = f"for values has 4096 bytes, but 1 layers of 1 blocks .* 64 {type} take {due}"
        with pytest.raises(ValueError, match=match):
            _cache.Pool(memory, memory, 1, 1, 1, 64, 64, "f16", type)
    sealed, places = np.zeros(2048 + 128, np.uint8), np.zeros(1, np.int32)
    with pytest.raises(ValueError, match="open blocks of keys has 9 bytes, but"):
        _cache.Pool(sealed, memory, 1, 1, 1, 64, 64, "q8_ch", "f16", memory[:9], None, places)
    with pytest.raises(ValueError, match="open_at has 0 places for 1 blocks"):
        _cache.Pool(sealed, memory, 1, 1, 1, 64, 64, "q8_ch", "f16", memory)


def test_only_open_blocks_are_sealed():
    filled = Filled("q8_ch")
    filled.seal()
    with pytest.raises(ValueError, match="block 0 is not open"):
        _cache.seal(filled.memory.kernel, np.array([0], np.int32))
    memory = np.zeros(32 * 64 * 2, np.uint8)
    pool = _cache.Pool(memory, memory, 1, 1, 1, 64, 64, "f16", "f16")
    with pytest.raises(ValueError, match="block 0 is not open"):
        _cache.seal(pool, np.array([0], np.int32))


def test_store_says_which_shapes_are_due():
    pool = CacheMemory(config_of(2, 3, 64, 32), 4, "f16", "f16").kernel
    k, v = np.zeros((5, 3, 64), np.float32), np.zeros((5, 3, 32), np.float32)
    slots = np.arange(5, dtype=np.int32)
    for bad in ((k[:4], v, slots), (k, k, slots), (k, v, slots[:4])):
        with pytest.raises(ValueError, match=r"takes \[n, 3, 64\], \[n, 3, 32\] and \[n\]"):
            _cache.store(pool, 0, *bad)
    with pytest.raises(ValueError, match="layer -1 of a cache of 2"):
        _cache.store(pool, -1, k, v, slots)
    rope = _kernels.Rope(np.zeros((9, 64), np.float32), np.zeros((2, 32), np.float32))
    for positions, n in ((slots[:3], 3), (None, 0)):
        with pytest.raises(ValueError, match=f"{n} positions for 5 keys"):
            _cache.store(pool, 0, k, v, slots, rope, positions)
    other = _kernels.Rope(np.zeros((9, 32), np.float32), np.zeros((2, 16), np.float32))
    with pytest.raises(ValueError, match="table of head_dim 32 for keys of head_dim 64"):
        _cache.store(pool, 0, k, v, slots, other, slots)


def test_shift_says_what_it_cannot_move():
    rope = _kernels.Rope(np.zeros((9, 64), np.float32), np.zeros((2, 32), np.float32))
    memory = CacheMemory(config_of(1, 1, 64, 64), 4, "f16", "f16")
    for moved, match in (
        ([4, 0, 1, 1], "of block 4, but the pool has 4 blocks of 32"),
        ([0, 30, 3, 1], "slots 30 to 33 of block 0"),
        ([0, 0, 3, -9], "by -9 positions, but the RoPE table has 9"),
    ):
        with pytest.raises(ValueError, match=match):
            _cache.shift(memory.kernel, rope, np.array([moved], np.int32))
    with pytest.raises(ValueError, match="4 columns, not 3"):
        _cache.shift(memory.kernel, rope, np.zeros((1, 3), np.int32))
    channels = CacheMemory(config_of(1, 1, 64, 64), 4, "q8_ch", "f16").kernel
    with pytest.raises(ValueError, match="by channel cannot be rotated"):
        _cache.shift(channels, rope, np.zeros((1, 4), np.int32))


@pytest.mark.parametrize("type", ["f16", "f32", *QUANTIZED])
def test_tasks_stay_in_their_working_memory(isa, type):
    """Of sealing, and of rotating stored keys forwards and backwards."""
    filled = Filled(type)
    pool = filled.memory.kernel
    if type in CHANNEL_TYPES:
        operation = _cache.seal(pool, np.array([0, 1], np.int32))
    else:
        rows = np.random.default_rng(0).standard_normal((9, DK)).astype(np.float32)
        rope = _kernels.Rope(rows, np.zeros((2, DK // 2), np.float32))
        moved = np.array([[0, 0, 32, 8], [1, 3, 20, -8]], np.int32)
        operation = _cache.shift(pool, rope, moved)
    program = Program().then(operation)
    areas = program.work_areas(2)
    areas[:] = np.nan
    program.run(2)
    assert np.isnan(areas[:, program.n_work :]).all()
    assert not np.isnan(areas[:, : program.n_work]).all()
    for which, head_dim in (("k", DK), ("v", DV)):
        assert np.isfinite(values(filled.memory, which, type, 0)[:2, :, :, :head_dim]).all()
