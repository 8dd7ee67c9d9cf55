"""The cache's arrays: what is stored, quantized by channel, copied and read back."""

from __future__ import annotations

import numpy as np
import pytest
from lariat import _cache, _kernels
from lariat._program import Program, run
from lariat.cache.blocks import BlockPool
from lariat.cache.kv_storage import CacheMemory
from lariat.formats.block_formats import GGMLType, quantize

from tests.support.cache_blocks import (
    CHANNEL_TYPES,
    QUANTIZED,
    ROW_TYPES,
    config_of,
    hadamard,
    scales_of,
    values,
    zeros_of,
)

N_BLOCKS, N_LAYERS, N_HEADS, DK, DV = 4, 2, 3, 64, 96


class Filled:
    """A cache whose first two blocks are full of random numbers, with channels of their own size
    and offset, one of zeros and one where all are equal."""

    def __init__(
        self, type: str, n_threads: int = 2, hadamard: tuple[bool, bool] = (False, False)
    ) -> None:
        rng = np.random.default_rng(3)
        config = config_of(N_LAYERS, N_HEADS, DK, DV)
        self.memory = CacheMemory(config, N_BLOCKS, type, type, hadamard)
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


def test_q8_ch_rounds_to_the_nearest_level(isa):
    filled = Filled("q8_ch")
    filled.seal()
    for x, which, layer in filled.each():
        got = values(filled.memory, which, "q8_ch", layer)[:2]
        size = np.abs(x).max(2, keepdims=True)
        assert (np.abs(got - x) <= size / 127 * 0.501 + size * 2.0**-10).all()  # a scale is f16
        assert not got[..., 7].any()
        assert np.abs(got[..., 8] - 3.3).max() < 3.3 * 2.0**-8
    assert filled.pool.is_sealed(0)
    assert filled.pool.is_sealed(1)


def test_q4_ch_finds_the_best_of_the_scales_that_it_tries(isa):
    """Squared errors, where positions count by how far they are from the mean"""
    filled = Filled("q4_ch")
    filled.seal()
    every_scale, every_zero = np.arange(1, 248, dtype=np.uint8), np.arange(-127, 128)
    scales, zeros = scales_of(every_scale), zeros_of(every_zero.astype(np.int8).view(np.uint8))
    for x, which, layer in filled.each():
        got = values(filled.memory, which, "q4_ch", layer)[:2]
        assert not got[..., 7].any()
        assert np.abs(got[..., 8] - 3.3).max() < 3.3 * 2.0**-6
        away = x - x.mean(2, keepdims=True)
        weights = (away * away).sum(-1, keepdims=True)
        low, high = x.min(2, keepdims=True), x.max(2, keepdims=True)
        middle, least = (low + high) / 2, np.inf
        for size in (1.1, 1.0, 0.9, 0.8):
            due = np.maximum((high - low) * size / 15, np.abs(middle) / 94)
            d = scales[np.abs(due[..., None] - scales).argmin(-1)]
            root = np.sqrt(1024 + 256 * np.abs(middle / d)) - 32  # of c (64 + |c|) / 256
            nearest = np.rint(np.sign(middle) * root).astype(int) + 127
            for step in (-1, 0, 1):
                z = zeros[np.clip(nearest + step, 0, 254)]
                rounded = d * (np.clip(np.rint(x / d - z), 0, 15) + z)
                least = np.minimum(least, (weights * (x - rounded) ** 2).sum(2))
        found = (weights * (x - got) ** 2).sum(2)
        few = np.ones(x.shape[-1], bool)
        few[7] = False  # zeros need no scale
        # float32 and float64 may choose another neighbour where two are as near.
        assert (found <= 1.02 * least + 1e-9)[..., few].mean() > 0.97
        assert found[..., few].sum() <= 1.01 * least[..., few].sum()


def test_a_first_token_that_is_far_from_all_others_keeps_its_keys(isa):
    rng = np.random.default_rng(5)
    memory, pool = CacheMemory(config_of(1, 1, 64, 64), 1, "q4_ch", "q4_ch"), BlockPool(1)
    x = rng.standard_normal((32, 1, 64)).astype(np.float32)
    x[0] += 30 * np.sign(rng.standard_normal(64))
    slots = np.arange(32, dtype=np.int32)
    pool.allocate()
    memory.open(slots, pool)
    run(_cache.store(memory.kernel, 0, x, x, slots))
    memory.seal(slots, pool, 1)
    error = values(memory, "k", "q4_ch", 0)[0, 0] - x[:, 0]
    assert np.sqrt((error[0] ** 2).mean()) < 0.5 * np.sqrt((error[1:] ** 2).mean())


@pytest.mark.parametrize("type", ROW_TYPES)
def test_rows_are_stored_after_a_hadamard_transform(isa, type):
    filled, plain = Filled(type, 2, (True, True)), Filled(type)
    assert filled.memory.hadamard == (True, True)
    level = 127 if type == "q8_0" else 8
    for x, which, layer in filled.each():
        got = values(filled.memory, which, type, layer)[:2]
        largest = np.abs(hadamard(x)).reshape(*x.shape[:-1], -1, 32).max(-1)
        bound = np.sqrt((largest**2).mean(-1, keepdims=True)) / level  # of the rms error
        rms = np.sqrt(((got - x) ** 2).mean(-1, keepdims=True))
        assert (rms < bound).all()
        assert not np.array_equal(got, values(plain.memory, which, type, layer)[:2])
    for by_channel in CHANNEL_TYPES:
        memory = CacheMemory(config_of(1, 1, 64, 64), 1, by_channel, "f16", (True, True))
        assert memory.hadamard == (False, False)


@pytest.mark.parametrize("type", ["f32", *ROW_TYPES])
def test_keys_that_are_stored_transformed_rotate_as_others_do(isa, type):
    rng = np.random.default_rng(2)
    angles = np.arange(9)[:, None] * rng.uniform(0, 1, DK // 2)
    rows = np.concatenate([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    rope = _kernels.Rope(rows, np.zeros((2, DK // 2), np.float32))
    filled = Filled(type, 2, (True, False))
    before = values(filled.memory, "k", type, 1)
    moved = np.array([[0, 0, 32, 8], [1, 3, 20, -8]], np.int32)
    run(_cache.shift(filled.memory.kernel, rope, moved))
    expected = before.copy()
    for block, first, n, by in moved.tolist():
        low, high = np.split(before[block, :, first : first + n], 2, -1)
        cos, sin = np.cos(angles[abs(by)]), np.sign(by) * np.sin(angles[abs(by)])
        turned = np.concatenate([low * cos - high * sin, low * sin + high * cos], -1)
        expected[block, :, first : first + n] = turned
    error = values(filled.memory, "k", type, 1) - expected
    size = np.abs(before).max(-1, keepdims=True)
    assert (np.abs(error) <= {"f32": 1e-6, "q8_0": 0.02, "q4_0": 0.3}[type] * size).all()


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
