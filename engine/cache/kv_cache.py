"""The two cache strategies: keys stored rotated (`roped`, post-RoPE), or as projected (`raw`,
pre-RoPE).

Both have the same methods, and the model does not know which it holds. A raw key gets its position
when attention reads it, from its segment. Each layer has the RoPE table and the window that
`ModelConfig.layers` says; the cache keeps one attention plan for each distinct window.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from lariat import _attention, _cache, _kernels
from lariat._attention_plan import AttentionPlan
from lariat._program import Operation
from lariat._program import run as run_now
from lariat.cache.batch import Batch
from lariat.cache.blocks import (
    SLOTS,
    BlockPool,
    BlockTable,
    numbered,
    slots_of,
)
from lariat.cache.kv_storage import CacheMemory, Stored
from lariat.cache.rope import RopeTable, RopeTables, steps
from lariat.cache.window_only import WindowOnly
from lariat.config import ModelConfig
from lariat.errors import ContextError, ModelError
from lariat.os_memory import map_file, map_pages

SPARE_BLOCKS = 2  # when a context's oldest tokens go, two of its blocks may stay half empty


@dataclass(frozen=True)
class FileBlocks:
    """Whole blocks of keys and values that a file holds, for `KVCache.place`.

    segments      int32 [n_segments, 3]: block (counted from 0), first slot, length, in the order of
                  tokens; checked by whoever read the file
    keys, values  uint8 [n_layers, n_blocks, bytes of a block], views of the file
    file          its descriptor, open for reading
    keys_at, values_at  where the arrays begin in the file, in bytes
    identity      equal for equal contents only, such as their checksum: blocks of this identity
                  that are in the pool already are used again
    """

    segments: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    file: int
    keys_at: int
    values_at: int
    identity: str


def cache_bytes(config: ModelConfig, n_ctx: int, type_k: str, type_v: str) -> int:
    """Bytes of the keys and values of `n_ctx` positions, in whole blocks.

    Types by channel need more: a block that is not full is f16, which concerns the blocks of a
    prompt's `n_ubatch` tokens and one block of each context.
    """
    n_bytes = 0
    for type, head_dim in ((type_k, config.head_dim_k), (type_v, config.head_dim_v)):
        row, scales, _ = _cache.layout(type, head_dim)
        n_bytes += config.n_layers * config.n_kv_heads * _n_blocks(n_ctx) * (SLOTS * row + scales)
    return n_bytes


def check_types(config: ModelConfig, type_k: str, type_v: str) -> None:
    """Raise ModelError unless these types can hold the model's keys and values."""
    try:
        cache_bytes(config, 1, type_k, type_v)
    except ValueError as error:
        raise ModelError(str(error)) from None


def _n_blocks(n_ctx: int) -> int:
    return -(-n_ctx // SLOTS)


class KVCache(ABC):
    """Keys and values of all contexts: the part that both strategies share.

    pool  blocks of 32 positions, see `BlockPool`
    """

    _raw = False

    def __init__(
        self,
        config: ModelConfig,
        n_ctx: int,
        type_k: str,
        type_v: str,
        ropes: RopeTables,
        n_spare: int = 0,
        window_only: bool = False,
    ) -> None:
        """Room for `n_ctx` positions and `n_spare` blocks. Memory that is not used costs none. With
        `window_only`, layers with a window keep only what is in it; see `WindowOnly`."""
        n_blocks = _n_blocks(n_ctx) + n_spare
        self.pool = BlockPool(n_blocks, self._copy_slots)
        self._ropes = ropes
        self._scale = config.attention_scale or 1.0 / math.sqrt(config.head_dim_k)
        self._soft_cap = config.attention_soft_cap
        # Raw keys are rotated when they are read, and RoPE does not commute with the transform.
        hadamard = (not self._raw, True)
        self._memory = CacheMemory(config, n_blocks, type_k, type_v, hadamard, window_only)
        windows = [layer.window if window_only else None for layer in config.layers]
        self._window_only = WindowOnly(windows, self._memory, self.pool)
        plans = {
            window: AttentionPlan(self._memory.kernel, config.n_heads, window or 0)
            for window in dict.fromkeys(layer.window for layer in config.layers)
        }
        self._plans = tuple(plans.values())
        self._plan_of = [plans[layer.window] for layer in config.layers]
        still = np.zeros(config.head_dim_k // 2)  # radians per position
        rows = np.concatenate([np.cos(still), np.sin(still)])[None].astype(np.float32)
        self._no_rotation = _kernels.Rope(rows, steps(still))

    def new_table(self) -> BlockTable:
        """Make an empty block table of this cache."""
        return BlockTable(self.pool)

    # ---- for edits of contexts ----

    @property
    def block_bytes(self) -> int:
        """Bytes of a block, keys and values, all layers."""
        return self._memory.block_bytes

    @property
    def block_shape(self) -> tuple[int, int, int]:
        """Layers, and bytes of a block's keys and of its values in one layer."""
        k, v = self._memory.blocks
        return len(k), k.shape[2], v.shape[2]

    def n_continued(self, table: BlockTable, n: int) -> int:
        """The tokens of a table, n or none, behind which others can be computed: with `window_only`
        their keys may be gone."""
        return self._window_only.n_continued(table, n)

    def give_back(self, table: BlockTable) -> None:
        """With `window_only`, give back what tokens behind those of a table will not see. A pass
        does so too, but leaves blocks that another table holds then."""
        self._window_only.thin_out_behind(table.segments, table.n_tokens)

    @abstractmethod
    def edit(self, table: BlockTable, rows: np.ndarray, n_threads: int) -> None:
        """Make `rows` (int32 [n, 4], in the order of tokens) the segments of `table`.

        They are segments of this or of other tables, as `BlockTable.cut` gives them. With nothing
        changed, raises IndexError if the pool has too few blocks for copies, and ContextError if
        tokens behind `rows` would need keys that `window_only` gave back.
        """

    def compact(self, table: BlockTable) -> int:
        """Copy segments out of blocks that they do not fill into fewer blocks.

        Blocks that another table holds too stay. No key is rotated, so nothing else changes.
        Returns the number of blocks that became free. Types by channel free none: positions that
        share scales cannot be parted without quantizing them anew.

        Raises IndexError, with nothing changed, if the pool has too few blocks for the copies.
        """
        if self._memory.by_channel:
            return 0
        rows = table.segments.copy()
        counts = np.bincount(rows[:, 0], minlength=self.pool.n_blocks)
        alone = np.array(
            [self.pool.n_holders(block) == counts[block] for block in rows[:, 0].tolist()], bool
        )
        used = np.bincount(rows[:, 0], weights=rows[:, 2], minlength=self.pool.n_blocks)
        sparse = alone & (used[rows[:, 0]] < SLOTS) & ~self.pool.thin[rows[:, 0]]
        if len(rows):
            sparse[-1] = False  # new tokens go behind it
        n_freed = len(np.unique(rows[sparse, 0])) - _n_blocks(int(rows[sparse, 2].sum()))
        if n_freed <= 0:
            return 0
        n_free = self.pool.n_free
        self._assign_copied(table, rows, sparse)
        return self.pool.n_free - n_free

    def read(self, table: BlockTable) -> Stored:
        """Copies of keys and values as they are stored. ContextError if some were given back."""
        self._window_only.check_whole(table.segments[:, 0])
        self._memory.forget_broken(self.pool)
        return self._memory.read(slots_of(table.segments))

    def fits(self, n_tokens: int, n_blocks: int, stored: Stored) -> bool:
        """Whether `stored` has the shapes of `n_tokens` tokens in `n_blocks` blocks."""
        return self._memory.fits(n_tokens, n_blocks, stored)

    def write(self, slots: np.ndarray, stored: Stored) -> None:
        """Put keys and values that `read` gave, and that fit, into slots that were just placed."""
        self._memory.write(slots, stored, self.pool)

    def read_blocks(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Copies of whole blocks as they lie in memory: uint8 [n_layers, n_blocks, bytes] each.

        With types by channel the blocks are quantized first, full or not. ContextError if some were
        given back.
        """
        self._window_only.check_whole(blocks)
        self._memory.seal(blocks * SLOTS + SLOTS - 1, self.pool, 1)
        k, v = self._memory.blocks
        return k[:, blocks], v[:, blocks]

    def place(self, stored: FileBlocks, n_threads: int) -> BlockTable:
        """Make a table of the tokens of `stored`; their blocks are in the pool once, however often
        they are placed.

        Blocks that are not there yet are mapped from the file, or copied where mapping is
        impossible (a block is no whole number of pages). Raises ValueError for blocks of another
        cache, IndexError if the pool has too few blocks.
        """
        n_blocks = stored.keys.shape[1]
        n_layers, *sizes = self.block_shape
        fits = [(n_layers, n_blocks, n) for n in sizes] == [stored.keys.shape, stored.values.shape]
        if not fits:
            found_shapes = f"{stored.keys.shape} and {stored.values.shape}"
            raise ValueError(
                f"keys and values of the file are {found_shapes}, expected {n_layers} layers of "
                f"blocks of {sizes[0]} and {sizes[1]} bytes"
            )
        keys = [f"{stored.identity} {i}".encode() for i in range(n_blocks)]
        found = [self.pool.find(key) for key in keys]
        missing = [i for i, block in enumerate(found) if block is None]
        if len(missing) > self.pool.n_free:
            for block in found:
                if block is not None:
                    self.pool.release(block)
            raise IndexError("the pool has too few free blocks")
        blocks = [self.pool.allocate() if block is None else block for block in found]
        try:
            self._fill(
                np.array(blocks, np.int64)[missing], np.array(missing, np.int64), stored, n_threads
            )
            for i in missing:
                self._memory.hold_sealed(blocks[i], self.pool)
                self.pool.keep(blocks[i], keys[i])
            placed = self.new_table()
            rows = np.zeros((len(stored.segments), 4), np.int32)
            rows[:, :3] = stored.segments
            rows[:, 0] = np.array(blocks, np.int32)[rows[:, 0]]
            placed.assign(rows)
        finally:
            for block in blocks:
                self.pool.release(block)
        return placed

    def _fill(
        self, blocks: np.ndarray, numbers: np.ndarray, stored: FileBlocks, n_threads: int
    ) -> None:
        """Let `blocks` int64 [n] hold the blocks `numbers` int64 [n] of the file."""
        # The next tokens go into the last block if it has room: its pages will be written to.
        last = stored.segments[-1:]
        has_room = np.isin(numbers, last[last[:, 1] + last[:, 2] < SLOTS, 0])
        # Blocks that are neighbours both in the pool and in the file are mapped in one piece.
        ends = (np.diff(blocks) != 1) | (np.diff(numbers) != 1) | np.diff(has_room)
        runs = (np.split(a, np.flatnonzero(ends) + 1) for a in (blocks, numbers, has_room))
        of_file = ((stored.keys, stored.keys_at), (stored.values, stored.values_at))
        mapped: list[tuple[np.ndarray, bool]] = []
        for to, at, is_written in zip(*runs, strict=True):
            for part, (source, begin) in zip(self._memory.blocks, of_file, strict=True):
                for layer in range(len(part) if len(to) else 0):
                    target = part[layer, to[0] : to[-1] + 1]
                    number = layer * source.shape[1] + int(at[0])
                    if map_file(target, stored.file, begin + number * source.shape[2]):
                        mapped.append((target, bool(is_written[0])))
                    else:
                        target[:] = source[layer, at[0] : at[-1] + 1]
        map_pages(mapped, n_threads)

    def _copy_slots(self, source: int, target: int, first: int, length: int) -> None:
        self._memory.copy(source, target, first, length, self.pool)

    def _assign_copied(self, table: BlockTable, rows: np.ndarray, which: np.ndarray) -> None:
        """Make `rows` the segments of `table`, those that `which` bool [n] marks as copies.

        The tokens keep the order of `rows`; segments may be cut and joined.
        """
        n_blocks = _n_blocks(int(rows[which, 2].sum()))
        if n_blocks > self.pool.n_free:
            raise IndexError("the pool has too few free blocks")
        blocks = [self.pool.allocate() for _ in range(n_blocks)]
        try:
            copies, at = [], 0
            for row, copied in zip(rows.tolist(), which.tolist(), strict=True):
                block, first, n, position = row
                done = 0
                while copied and done < n:
                    take = min(SLOTS - at % SLOTS, n - done)
                    copies.append((blocks[at // SLOTS], at % SLOTS, take, position + done))
                    at, done = at + take, done + take
                if not copied:
                    copies.append((block, first, n, position))
            new_rows = np.array(copies, np.int32).reshape(-1, 4)
            old, new = slots_of(rows), slots_of(new_rows)
            moved = old != new
            self._memory.copy_each(old[moved], new[moved])
            for block in np.unique(new[moved & self.pool.thin[old // SLOTS]] // SLOTS).tolist():
                self.pool.make_thin(block)
            table.assign(new_rows)
        finally:
            for block in blocks:
                self.pool.release(block)

    # ---- for the forward pass ----

    def prepare(self, batch: Batch) -> None:
        """Have the operations below compute `batch` when they are run. ContextError if it needs
        keys that `window_only` gave back."""
        self._window_only.check(batch)
        self._ropes.reach(int(batch.positions.max()), batch.reading)
        self._memory.open(batch.slots, self.pool)
        self._memory.fill(batch.slots)
        for plan in self._plans:
            plan.fill(batch.token_starts, batch.n_past, batch.segment_starts, batch.segments)

    def complete(self, batch: Batch) -> None:
        """Seal the blocks that `batch`, which is computed, has filled, and give back what no window
        shows any more."""
        self._memory.complete(batch, self.pool)
        self._window_only.thin_out(batch)

    # The rest are operations of a program. Arrays of heads are float32 [n_tokens, n_heads,
    # head_dim], keys and values with n_kv_heads; positions and slots are int32 [n_tokens].

    def rotate_queries(self, layer: int, q: np.ndarray, positions: np.ndarray) -> Operation:
        """Rotate q in place, scale it as scores are to be, and transform it as keys are."""
        rope, hadamard = self._ropes.of_layer[layer], self._memory.hadamard[0]
        if rope is None:
            still = np.zeros(len(q), np.int32)
            return _kernels.rope(q, self._no_rotation, still, self._scale, hadamard)
        return _kernels.rope(q, rope.kernel, positions, self._scale, hadamard)

    @abstractmethod
    def store(
        self, layer: int, k: np.ndarray, v: np.ndarray, positions: np.ndarray, slots: np.ndarray
    ) -> Operation:
        """Put keys and values into their slots. May change k."""

    def seal(self, layer: int) -> tuple[Operation, ...]:
        """Quantize the blocks that `store` has filled; nothing unless a type is by channel."""
        if not self._memory.by_channel:
            return ()
        return (_cache.seal_filled(self._memory.kernel, layer),)

    def attend(
        self, layer: int, q: np.ndarray, out: np.ndarray, sinks: np.ndarray | None = None
    ) -> tuple[Operation, Operation]:
        """Attention of rotated queries over the cache, in two phases; `sinks` float32 [n_heads]."""
        where = (self._memory.kernel, layer, q, self._plan_of[layer], out)
        table = self._ropes.of_layer[layer] if self._raw else None  # keys are rotated when read
        rope = table.kernel if table else None
        attend = _attention.attend(*where, rope, self._soft_cap, sinks)
        return attend, _attention.merge(*where, sinks)


class RopedCache(KVCache):
    """Keys are rotated when they are written, and again when their positions change."""

    def edit(self, table: BlockTable, rows: np.ndarray, n_threads: int) -> None:
        """As for `KVCache`; keys that get other positions are rotated by the difference.

        Keys that another table holds too are copied first. All keys that move are read and written
        once. Quantized keys are quantized anew; ContextError for types that would have to quantize
        whole blocks anew.
        """
        self._window_only.check_edit(rows)
        by = numbered(rows) - rows[:, 3]
        if self._memory.keys_by_channel and by.any():
            raise ContextError(
                "roped keys that are quantized by channel cannot change their positions: "
                "use the raw cache, or another type of keys"
            )
        held = np.bincount(table.segments[:, 0], minlength=self.pool.n_blocks)
        shared = [self.pool.n_holders(block) > held[block] for block in rows[:, 0].tolist()]
        copied = (by != 0) & np.array(shared, bool)
        places = slots_of(rows)
        if len(np.unique(places)) < len(places):  # a context that is put into itself
            copied = by != 0
        by_token = np.repeat(by, rows[:, 2])
        self._ropes.reach(int(np.abs(by).max(initial=0)))
        if copied.any() and self._memory.by_channel:
            self._assign_cloned(table, rows, copied)
        elif copied.any():
            self._assign_copied(table, rows, copied)
        else:
            table.assign(rows)
        moved = _split_where_changing(table.segments.copy(), by_token)
        for block in np.unique(moved[:, 0]).tolist():
            self.pool.forget(block)
        if len(moved):
            # Last and in one run: Ctrl-C waits for it, so keys and positions always agree.
            run_now(*self._rotations(moved), n_threads=n_threads)

    def _rotations(self, moved: np.ndarray) -> list[Operation]:
        """Rotate stored keys in the layers of each RoPE table; `moved` as `_cache.shift` takes it.
        Keys of layers without RoPE stay, and so do those that were given back."""
        layers_of: dict[tuple[RopeTable, bool], list[int]] = {}
        for layer, rope in enumerate(self._ropes.of_layer):
            if rope is not None:
                is_thin = layer in self._window_only.layers
                layers_of.setdefault((rope, is_thin), []).append(layer)
        whole = moved[~self.pool.thin[moved[:, 0]]]
        return [
            _cache.shift(
                self._memory.kernel, rope.kernel, whole if is_thin else moved,
                np.array(layers, np.int32),
            )
            for (rope, is_thin), layers in layers_of.items()
        ]  # fmt: skip

    def _assign_cloned(self, table: BlockTable, rows: np.ndarray, which: np.ndarray) -> None:
        """As `_assign_copied`, but each segment goes to the same slots of a block of its own."""
        if int(which.sum()) > self.pool.n_free:
            raise IndexError("the pool has too few free blocks")
        new = rows.copy()
        for i in np.flatnonzero(which).tolist():
            new[i, 0] = self.pool.copied(*rows[i, :3].tolist())
        table.assign(new)
        for block in new[which, 0].tolist():
            self.pool.release(block)

    def store(
        self, layer: int, k: np.ndarray, v: np.ndarray, positions: np.ndarray, slots: np.ndarray
    ) -> Operation:
        """Rotate k in place, then store both."""
        rope = self._ropes.of_layer[layer]
        if rope is None:
            return _cache.store(self._memory.kernel, layer, k, v, slots)
        return _cache.store(self._memory.kernel, layer, k, v, slots, rope.kernel, positions)


class RawCache(KVCache):
    """Keys are stored as projected and rotated when they are read."""

    _raw = True

    def edit(self, table: BlockTable, rows: np.ndarray, n_threads: int) -> None:
        """As for `KVCache`; a position is a number of the list, so no key is touched."""
        self._window_only.check_edit(rows)
        table.assign(rows)

    def store(
        self, layer: int, k: np.ndarray, v: np.ndarray, positions: np.ndarray, slots: np.ndarray
    ) -> Operation:
        """Store both as they are."""
        return _cache.store(self._memory.kernel, layer, k, v, slots)


def _split_where_changing(rows: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Cut segments where tokens move by different numbers of positions.

    rows int32 [n, 4] are segments, by int32 [n_tokens] how far each of their tokens moves. Returns
    int32 [n, 4] as `_cache.shift` takes it, without the tokens that stay.
    """
    starts = np.repeat(numbered(rows), rows[:, 2])
    new = np.ones(len(by), bool)
    new[1:] = (by[1:] != by[:-1]) | (starts[1:] != starts[:-1])
    firsts = np.flatnonzero(new)
    lengths = np.diff(np.append(firsts, len(by)))
    slots = slots_of(rows)[firsts]
    moved = np.stack([slots // SLOTS, slots % SLOTS, lengths, by[firsts]], 1).astype(np.int32)
    return moved[moved[:, 3] != 0]


STRATEGIES: dict[str, type[KVCache]] = {"roped": RopedCache, "raw": RawCache}
