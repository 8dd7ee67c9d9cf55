"""The arrays of keys and values behind a KV cache: read, written, copied, quantized by channel.

Types f16, f32, q8_0 and q4_0 hold each position on its own. Types by channel (q8_ch, q4_ch) need
all 32 positions of a block to quantize it. Until then the block is open: its keys and values are
f16, in a place of their own. Afterwards it is sealed. Nothing is quantized twice.

A pass quantizes the blocks that it fills, layer by layer, before attention. Then they are there
twice: their own tokens see f16, tokens behind them see the quantized numbers, as if every token had
come in a pass of its own. The last full block of each request keeps its f16 for a while, so that
tokens that are taken back again leave no trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from lariat import _cache
from lariat._program import run
from lariat.cache.batch import Batch
from lariat.cache.blocks import SLOTS, BlockPool
from lariat.config import ModelConfig
from lariat.os_memory import allocate, give_back

_ELEMENTS = {"f16": np.float16, "f32": np.float32}


class Stored(NamedTuple):
    """Keys and values of a context as they are stored.

    keys, values  [n_layers, n_tokens, n_kv_heads, row]: head_dim f16 or f32, or bytes with the
                  scales behind the numbers; by channel the bytes of whole blocks, one after the
                  other, uint8 [n_bytes]
    open          uint8 [n_blocks], 1 where a block is open; without types by channel uint8 [0]
    """

    keys: np.ndarray
    values: np.ndarray
    open: np.ndarray


class KVArray:
    """Keys, or values, of all layers and blocks.

    memory        uint8 [n_bytes], as kernels take it
    blocks        uint8 [n_layers, n_blocks, n_kv_heads, bytes], a view of it
    by_channel    whether positions share scales, so that a block is quantized as a whole
    by_position   whether a position has scales of its own
    dtype         of what `read` gives
    open_memory   uint8 [n_bytes] of open blocks; None unless by channel
    open_blocks   f16 [n_blocks, n_layers, n_kv_heads, SLOTS, head_dim], a view of it, by place
    """

    def __init__(
        self, config: ModelConfig, n_blocks: int, type: str, head_dim: int, huge: bool = True
    ) -> None:
        """`huge`: in huge pages. ValueError for a type that cannot hold this head_dim."""
        row, scales, self.by_channel = _cache.layout(type, head_dim)
        self.by_position = bool(scales) and not self.by_channel
        where = (config.n_layers, n_blocks, config.n_kv_heads)
        n_bytes = SLOTS * row + scales
        self.memory = allocate(int(np.prod(where)) * n_bytes, huge)
        self.blocks = self.memory.reshape(*where, n_bytes)
        rows = self.blocks[..., : SLOTS * row].reshape(*where, SLOTS, row)
        # Views by position: [n_layers, n_blocks, n_kv_heads, SLOTS, ...]
        self._slots = [rows.view(_ELEMENTS.get(type, np.uint8))]
        self.dtype = self._slots[0].dtype
        if self.by_position:
            of_groups = self.blocks[..., SLOTS * row :].view(np.float16).reshape(*where, -1, SLOTS)
            self._slots.append(of_groups.swapaxes(3, 4))
        self.open_memory: np.ndarray | None = None
        if self.by_channel:
            shape = (n_blocks, config.n_layers, config.n_kv_heads, SLOTS, head_dim)
            self.open_memory = allocate(2 * int(np.prod(shape)))
            self.open_blocks = self.open_memory.view(np.float16).reshape(shape)

    def read(self, block: np.ndarray, slot: np.ndarray) -> np.ndarray:
        """Copies of these slots: [n_layers, n, n_kv_heads, row]."""
        parts = [np.stack([layer[block, :, slot] for layer in view]) for view in self._slots]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(
            [np.ascontiguousarray(part).view(np.uint8) for part in parts], axis=-1
        )

    def write(self, block: np.ndarray, slot: np.ndarray, rows: np.ndarray) -> None:
        """Put what `read` gave into slots."""
        at = 0
        for view, width in zip(self._slots, self._widths(), strict=True):
            part = np.ascontiguousarray(rows[..., at : at + width]).view(view.dtype)
            for layer, of_layer in zip(view, part, strict=True):
                layer[block, :, slot] = of_layer
            at += width

    def _widths(self) -> list[int]:
        """Elements of a row that `read` gives, by part."""
        if len(self._slots) == 1:
            return [self._slots[0].shape[-1]]
        return [view.shape[-1] * view.itemsize for view in self._slots]

    def copy(self, source: int, target: int, first: int, stop: int) -> None:
        """Slots of one block to the same slots of another."""
        for view in self._slots:
            view[:, target, :, first:stop] = view[:, source, :, first:stop]

    def copy_each(self, old: np.ndarray, new: np.ndarray) -> None:
        """Slots `old` [n] to slots `new`, which nobody reads."""
        source, target = (old // SLOTS, old % SLOTS), (new // SLOTS, new % SLOTS)
        for view in self._slots:
            for layer in view:
                layer[target[0], :, target[1]] = layer[source[0], :, source[1]]

    def shape(self, n_tokens: int, n_open: int, n_sealed: int) -> tuple[int, ...]:
        """The shape of what `read` gives, or by channel of the bytes of so many blocks."""
        n_layers, _, n_heads, n_bytes = self.blocks.shape
        if self.by_channel:
            n_sealed_bytes = n_layers * n_heads * n_sealed * n_bytes
            return (n_sealed_bytes + (n_open * self.open_blocks[0].nbytes if n_open else 0),)
        return n_layers, n_tokens, n_heads, sum(self._widths())


class CacheMemory:
    """Keys and values of all blocks, and which blocks are open.

    keys, values  the two arrays, also as `arrays`
    hadamard      whether keys, and values, are stored after a Hadamard transform: (bool, bool)
    open_at       int32 [n_blocks]: each block's place among open blocks, or -1
    is_full       uint8 [n_blocks]: whether a block with a place is quantized too
    kernel        all of it as kernels take it
    """

    def __init__(
        self,
        config: ModelConfig,
        n_blocks: int,
        type_k: str,
        type_v: str,
        hadamard: tuple[bool, bool] = (False, False),
        gives_back: bool = False,
    ) -> None:
        """Memory that is not used costs none. `hadamard` allows the transform of keys and values,
        and those types that gain by it get it. With `gives_back` there are no huge pages, because
        the system takes no parts of them. ValueError for a type that cannot hold a head."""
        self.keys = KVArray(config, n_blocks, type_k, config.head_dim_k, not gives_back)
        self.values = KVArray(config, n_blocks, type_v, config.head_dim_v, not gives_back)
        self.arrays = (self.keys, self.values)
        # By channel it gains nothing: a large number has its own scale there.
        self.hadamard = (
            hadamard[0] and self.keys.by_position,
            hadamard[1] and self.values.by_position,
        )
        self.by_channel = self.keys.by_channel or self.values.by_channel
        self.keys_by_channel = self.keys.by_channel
        self.open_at = np.full(n_blocks, -1, np.int32)
        self._places = list(range(n_blocks - 1, -1, -1))  # free for open blocks; the lowest on top
        self.is_full = np.zeros(n_blocks, np.uint8)
        self.kernel = _cache.Pool(
            self.keys.memory,
            self.values.memory,
            config.n_layers,
            n_blocks,
            config.n_kv_heads,
            config.head_dim_k,
            config.head_dim_v,
            type_k,
            type_v,
            self.keys.open_memory,
            self.values.open_memory,
            self.open_at,
            *self.hadamard,
            self.is_full,
        )

    @property
    def block_bytes(self) -> int:
        """Bytes of a block, keys and values, all layers, once it is full."""
        return sum(array.blocks[:, :1].nbytes for array in self.arrays)

    @property
    def blocks(self) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values as bytes, views: uint8 [n_layers, n_blocks, bytes] each."""
        k, v = (array.blocks.reshape(*array.blocks.shape[:2], -1) for array in self.arrays)
        return k, v

    def give_back(self, block: int, layers: Sequence[int]) -> None:
        """Give the memory of a block in some layers back to the system, in whole pages."""
        for of_array in self.blocks:
            for layer in layers:
                give_back(of_array[layer, block])

    # ---- open blocks, for types by channel ----

    def open(self, slots: np.ndarray, pool: BlockPool) -> None:
        """Have places for the blocks of `slots`, which are written next."""
        if not self.by_channel:
            return
        self.forget_broken(pool)
        for block in np.flatnonzero(self.open_at >= 0).tolist():
            if pool.is_empty(block):
                self._close(block)
        for block in np.unique(slots // SLOTS).tolist():
            if self.open_at[block] < 0:
                self.open_at[block] = self._places.pop()
        for block in (slots[slots % SLOTS == 0] // SLOTS).tolist():
            self._clear(block)

    def fill(self, slots: np.ndarray) -> None:
        """Have the pass that writes `slots` quantize the open blocks that it fills."""
        if self.by_channel:
            filled = slots[slots % SLOTS == SLOTS - 1] // SLOTS
            self.kernel.fill(filled)
            self.is_full[filled] = 1

    def forget_broken(self, pool: BlockPool) -> None:
        """Let blocks be open alone that were reopened, or that a pass did not seal to its end."""
        for block in np.flatnonzero(self.is_full).tolist():
            if not pool.is_sealed(block):
                self.is_full[block] = 0

    def complete(self, batch: Batch, pool: BlockPool) -> None:
        """Seal the blocks that a batch has filled. The last SLOTS tokens of a request can be taken
        back: their blocks keep their f16 numbers until a later batch of the request is complete."""
        if not self.by_channel:
            return
        for block in (batch.slots[batch.slots % SLOTS == SLOTS - 1] // SLOTS).tolist():
            pool.seal(block, reopenable=True)
        kept = _last_blocks(batch)
        seen = set(batch.segments[:, 0].tolist()) - kept
        for block in np.flatnonzero(self.is_full).tolist():
            if block in seen or not pool.n_holders(block):
                pool.seal(block)
                self._close(block)

    def _clear(self, block: int) -> None:
        """Zeros into an open block, so that no earlier contents count for its scales."""
        for array in self.arrays:
            if array.by_channel:
                array.open_blocks[self.open_at[block]] = 0

    def seal(self, slots: np.ndarray, pool: BlockPool, n_threads: int) -> None:
        """Quantize the open blocks whose last slot is among `slots`. Slots that were not written
        count as zeros."""
        if not self.by_channel:
            return
        full = set((slots[slots % SLOTS == SLOTS - 1] // SLOTS).tolist())
        full = {b for b in full if self.open_at[b] >= 0 and not pool.is_empty(b)}
        new = [b for b in full if not self._is_both(b, pool)]
        if new:
            run(_cache.seal(self.kernel, np.array(new, np.int32)), n_threads=n_threads)
        for block in full:
            pool.seal(block)
            self._close(block)

    def hold_sealed(self, block: int, pool: BlockPool) -> None:
        """Have a block that was just handed out take the contents of a sealed one."""
        if not self.by_channel:
            return
        pool.seal(block)
        if self.open_at[block] >= 0:  # it was freed when it was open
            self._close(block)

    def _is_both(self, block: int, pool: BlockPool) -> bool:
        """Whether a block is open and, all of it, quantized."""
        return bool(self.is_full[block]) and pool.is_sealed(block)

    def _close(self, block: int) -> None:
        self.is_full[block] = 0
        self._places.append(int(self.open_at[block]))
        self.open_at[block] = -1

    # ---- copies ----

    def copy(self, source: int, target: int, first: int, length: int, pool: BlockPool) -> None:
        """Slots of one block to the same slots of another that was just handed out.

        By channel, all of a sealed block is copied, and the other is sealed too. A block that can
        be reopened counts as open if not all of it is wanted.
        """
        is_open = bool(self.open_at[source] >= 0)
        if self._is_both(source, pool) and first + length == SLOTS:
            is_open = False
        if self.by_channel and is_open:
            self.open(np.array([target * SLOTS]), pool)
        elif self.by_channel:
            self.hold_sealed(target, pool)
        for array in self.arrays:
            if not array.by_channel:
                array.copy(source, target, first, first + length)
            elif is_open:
                old = array.open_blocks[self.open_at[source]]
                new = array.open_blocks[self.open_at[target]]
                new[:, :, first : first + length] = old[:, :, first : first + length]
            else:
                array.blocks[:, target] = array.blocks[:, source]

    def copy_each(self, old: np.ndarray, new: np.ndarray) -> None:
        """Keys and values of slots `old` [n] to slots `new`, which nobody reads. Not by channel."""
        assert not self.by_channel
        for array in self.arrays:
            array.copy_each(old, new)

    # ---- for files ----

    def read(self, slots: np.ndarray) -> Stored:
        """Copies of what is stored in these slots, by channel in all of their blocks."""
        blocks = np.unique(slots // SLOTS)
        is_open = ((self.open_at[blocks] >= 0) & (self.is_full[blocks] == 0)).astype(np.uint8)
        k, v = (
            self._read_blocks(array, blocks)
            if array.by_channel
            else array.read(slots // SLOTS, slots % SLOTS)
            for array in self.arrays
        )
        return Stored(k, v, is_open if self.by_channel else is_open[:0])

    def fits(self, n_tokens: int, n_blocks: int, stored: Stored) -> bool:
        """Whether `write` can take this for so many tokens in so many blocks."""
        n_marked = n_blocks if self.by_channel else 0
        marks = stored.open
        if marks.shape != (n_marked,) or marks.dtype != np.uint8 or (marks > 1).any():
            return False
        n_open = int(marks.sum())
        return all(
            data.shape == array.shape(n_tokens, n_open, n_blocks - n_open)
            and data.dtype == array.dtype
            for array, data in zip(self.arrays, stored[:2], strict=True)
        )

    def write(self, slots: np.ndarray, stored: Stored, pool: BlockPool) -> None:
        """Put what `read` gave, and `fits`, into blocks that were just handed out."""
        blocks = np.unique(slots // SLOTS)
        for block, is_open in zip(blocks.tolist(), stored.open, strict=self.by_channel):
            if is_open:
                self.open(np.array([block * SLOTS]), pool)
            else:
                self.hold_sealed(block, pool)
        for array, data in zip(self.arrays, stored[:2], strict=True):
            if array.by_channel:
                self._write_blocks(array, blocks, data)
            else:
                array.write(slots // SLOTS, slots % SLOTS, data)

    def _place_of(self, array: KVArray, block: int) -> np.ndarray:
        """Where a block is: a view, [n_layers, n_kv_heads, ...]."""
        place = int(self.open_at[block])
        is_sealed = place < 0 or self.is_full[block]
        return array.blocks[:, block] if is_sealed else array.open_blocks[place]

    def _read_blocks(self, array: KVArray, blocks: np.ndarray) -> np.ndarray:
        places = [self._place_of(array, block) for block in blocks.tolist()]
        pieces = [np.ascontiguousarray(place).view(np.uint8).reshape(-1) for place in places]
        return np.concatenate([np.zeros(0, np.uint8), *pieces])

    def _write_blocks(self, array: KVArray, blocks: np.ndarray, data: np.ndarray) -> None:
        at = 0
        for block in blocks.tolist():
            place = self._place_of(array, block)
            place[:] = data[at : at + place.nbytes].view(place.dtype).reshape(place.shape)
            at += place.nbytes


def _last_blocks(batch: Batch) -> set[int]:
    """The blocks of the last SLOTS tokens of each request."""
    blocks: set[int] = set()
    for first, end in zip(batch.segment_starts[:-1], batch.segment_starts[1:], strict=True):
        n = 0
        for block, _, length, _ in batch.segments[first:end][::-1].tolist():
            blocks.add(block)
            n += length
            if n >= SLOTS:
                break
    return blocks
