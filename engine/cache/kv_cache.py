"""The two cache strategies: keys stored rotated (`roped`), or as projected (`raw`).

Both have the same methods, and the model does not know which it holds. A raw key gets its position
only when attention reads it, from the segment it stands in.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
from lariat import _attention, _cache, _kernels
from lariat._attention_plan import AttentionPlan
from lariat._program import Operation
from lariat._program import run as run_now
from lariat.cache.blocks import SLOTS, BlockPool, BlockTable, numbered, slots_of
from lariat.cache.kv_storage import CacheMemory, Stored
from lariat.cache.rope import RopeTable
from lariat.config import ModelConfig
from lariat.errors import ContextError, ModelError
from lariat.formats.chunk_file import StoredChunk, check_fits
from lariat.os_memory import map_file, map_pages
from lariat.runtime.batch import Batch

SPARE_BLOCKS = 2  # what a context loses to holes when its oldest tokens are evicted


def cache_bytes(config: ModelConfig, n_ctx: int, type_k: str, type_v: str) -> int:
    """Bytes that keys and values of `n_ctx` positions take, whole blocks.

    Types by channel need more for blocks that are not full yet: as f16, those of a prompt's
    `n_ubatch` tokens and one for each context.
    """
    n_bytes = 0
    for type, head_dim in ((type_k, config.head_dim_k), (type_v, config.head_dim_v)):
        row, scales, _ = _cache.layout(type, head_dim)
        n_bytes += config.n_layers * config.n_kv_heads * _n_blocks(n_ctx) * (SLOTS * row + scales)
    return n_bytes


def check_types(config: ModelConfig, type_k: str, type_v: str) -> None:
    """Raise ModelError unless types can hold the model's keys and values."""
    try:
        cache_bytes(config, 1, type_k, type_v)
    except ValueError as error:
        raise ModelError(str(error)) from None


def _n_blocks(n_ctx: int) -> int:
    return -(-n_ctx // SLOTS)


class KVCache(ABC):
    """What both strategies share."""

    _raw = False

    def __init__(
        self,
        config: ModelConfig,
        n_ctx: int,
        type_k: str,
        type_v: str,
        rope: RopeTable,
        n_spare: int = 0,
    ) -> None:
        """`n_spare` blocks more than `n_ctx` positions need; memory that is not used costs none."""
        n_blocks = _n_blocks(n_ctx) + n_spare
        self.pool = BlockPool(n_blocks, self._copy_slots)
        self._rope = rope
        self._scale = 1.0 / math.sqrt(config.head_dim_k)
        self._memory = CacheMemory(config, n_blocks, type_k, type_v)
        self._plan = AttentionPlan(self._memory.kernel, config.n_heads)

    def new_table(self) -> BlockTable:
        """Make the segment list of an empty context in this cache."""
        return BlockTable(self.pool)

    # ---- what a context's edits need ----

    @property
    def block_bytes(self) -> int:
        """Bytes of a block, keys and values, all layers."""
        return self._memory.block_bytes

    @abstractmethod
    def edit(self, context: BlockTable, rows: np.ndarray, n_threads: int) -> None:
        """Make `rows` (int32 [n, 4], in the order of tokens) the segments of `context`.

        They are segments of this or of other contexts, as `BlockTable.cut` gives them. Raises
        IndexError, with nothing changed, if the pool has too few blocks for copies.
        """

    def compact(self, context: BlockTable) -> int:
        """Copy segments that do not fill their blocks to fewer blocks, those that only this context
        holds. Exact: no key is rotated. Returns the number of blocks that became free. With types
        by channel none do: positions that share scales cannot be parted without quantizing anew.

        Raises IndexError, with nothing changed, if the pool has too few blocks for the copies.
        """
        if self._memory.by_channel:
            return 0
        rows = context.segments.copy()
        counts = np.bincount(rows[:, 0], minlength=self.pool.n_blocks)
        alone = np.array(
            [self.pool.n_holders(block) == counts[block] for block in rows[:, 0].tolist()], bool
        )
        used = np.bincount(rows[:, 0], weights=rows[:, 2], minlength=self.pool.n_blocks)
        sparse = alone & (used[rows[:, 0]] < SLOTS)
        if len(rows):
            sparse[-1] = False  # new tokens go behind it
        n_freed = len(np.unique(rows[sparse, 0])) - _n_blocks(int(rows[sparse, 2].sum()))
        if n_freed <= 0:
            return 0
        n_free = self.pool.n_free
        self._assign_copied(context, rows, sparse)
        return self.pool.n_free - n_free

    def read(self, context: BlockTable) -> Stored:
        """Copies of keys and values as stored."""
        return self._memory.read(slots_of(context.segments))

    def fits(self, n_tokens: int, n_blocks: int, stored: Stored) -> bool:
        """Whether `write` can take this for so many tokens in so many blocks."""
        return self._memory.fits(n_tokens, n_blocks, stored)

    def write(self, slots: np.ndarray, stored: Stored) -> None:
        """Put what `read` gave, and `fits`, into the slots of a context that was just placed."""
        self._memory.write(slots, stored, self.pool)

    def read_blocks(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Copies of whole blocks as they lie in memory: uint8 [n_layers, n_blocks, bytes] each."""
        self._memory.seal(blocks * SLOTS + SLOTS - 1, self.pool, 1)  # by channel, full or not
        k, v = self._memory.blocks
        return k[:, blocks], v[:, blocks]

    def place(self, chunk: StoredChunk, n_threads: int) -> BlockTable:
        """Make a segment list of a chunk's sink and tokens; they stand in the pool once, however
        often they are used.

        Blocks that are not there yet are mapped from the file, or copied where that cannot be (a
        block is no whole number of pages). Raises IndexError if the pool has too few blocks,
        `ContextError` for a chunk that does not fit.
        """
        parts = self._memory.blocks
        check_fits(chunk, len(parts[0]), *(part.shape[2] for part in parts))
        keys = [f"{chunk.checksum} {i}".encode() for i in range(chunk.n_blocks)]
        found = [self.pool.find(key) for key in keys]
        missing = [i for i, block in enumerate(found) if block is None]
        if len(missing) > self.pool.n_free:
            for block in found:
                if block is not None:
                    self.pool.release(block)
            raise IndexError("the pool has too few free blocks")
        blocks = [self.pool.allocate() if block is None else block for block in found]
        try:
            into, stored = np.array(blocks, np.int64)[missing], np.array(missing, np.int64)
            self._fill(into, stored, chunk, n_threads)
            for i in missing:
                self._memory.hold_sealed(blocks[i], self.pool)
                self.pool.keep(blocks[i], keys[i])
            placed = self.new_table()
            rows = np.zeros((len(chunk.segments), 4), np.int32)
            rows[:, :3] = chunk.segments
            rows[:, 0] = np.array(blocks, np.int32)[rows[:, 0]]
            placed.assign(rows)
        finally:
            for block in blocks:
                self.pool.release(block)
        return placed

    def _fill(
        self, blocks: np.ndarray, stored: np.ndarray, chunk: StoredChunk, n_threads: int
    ) -> None:
        """Let `blocks` hold the blocks number `stored` of a chunk."""
        # What is written behind a chunk goes into its last block, if that has room.
        last = chunk.segments[-1:]
        has_room = np.isin(stored, last[last[:, 1] + last[:, 2] < SLOTS, 0])
        # Runs that follow each other in both are mapped in one piece.
        ends = (np.diff(blocks) != 1) | (np.diff(stored) != 1) | np.diff(has_room)
        runs = (np.split(a, np.flatnonzero(ends) + 1) for a in (blocks, stored, has_room))
        mapped: list[tuple[np.ndarray, bool]] = []
        for to, at, is_written in zip(*runs, strict=True):
            for part, name in zip(self._memory.blocks, ("keys", "values"), strict=True):
                source = getattr(chunk, name)
                for layer in range(len(part) if len(to) else 0):
                    target = part[layer, to[0] : to[-1] + 1]
                    offset = chunk.offsets[name] + source[0, 0].nbytes * (
                        layer * chunk.n_blocks + int(at[0])
                    )
                    if map_file(target, chunk.file.fileno(), offset):
                        mapped.append((target, bool(is_written[0])))
                    else:
                        target[:] = source[layer, at[0] : at[-1] + 1]
        map_pages(mapped, n_threads)

    def _copy_slots(self, source: int, target: int, first: int, length: int) -> None:
        self._memory.copy(source, target, first, length, self.pool)

    def _assign_copied(self, context: BlockTable, rows: np.ndarray, which: np.ndarray) -> None:
        """Give `context` the segments `rows`, those marked by `which` bool [n] as copies.

        `context` then has the segments in the order of `rows`, but may cut and join them.
        """
        n_blocks = _n_blocks(int(rows[which, 2].sum()))
        if n_blocks > self.pool.n_free:
            raise IndexError("the pool has too few free blocks")
        blocks = [self.pool.allocate() for _ in range(n_blocks)]
        try:
            new, at = [], 0
            for row, copied in zip(rows.tolist(), which.tolist(), strict=True):
                block, first, n, position = row
                done = 0
                while copied and done < n:
                    take = min(SLOTS - at % SLOTS, n - done)
                    new.append((blocks[at // SLOTS], at % SLOTS, take, position + done))
                    at, done = at + take, done + take
                if not copied:
                    new.append((block, first, n, position))
            old, table = slots_of(rows), np.array(new, np.int32).reshape(-1, 4)
            fresh = slots_of(table)
            moved = old != fresh
            self._memory.copy_each(old[moved], fresh[moved])
            context.assign(table)
        finally:
            for block in blocks:
                self.pool.release(block)

    # ---- what the forward pass needs ----

    def prepare(self, batch: Batch) -> None:
        """Have the steps below do this batch when they are run."""
        self._rope.reach(int(batch.positions.max()), batch.rope_stage)
        self._memory.open(batch.slots, self.pool)
        self._plan.fill(batch.token_starts, batch.n_past, batch.segment_starts, batch.segments)

    def complete(self, batch: Batch, n_threads: int) -> None:
        """Quantize what the batch, all of it computed, has made whole."""
        self._memory.seal(batch.slots, self.pool, n_threads)

    # The rest are steps of a program. Arrays of float32 [n_tokens, n_heads, head_dim], where keys
    # and values have n_kv_heads; positions and slots int32 [n_tokens].

    def rotate_queries(self, q: np.ndarray, positions: np.ndarray) -> Operation:
        """Rotate q in place, and scale by 1 / sqrt(head_dim_k)."""
        return _kernels.rope(q, self._rope.kernel, positions, self._scale)

    @abstractmethod
    def store(
        self, layer: int, k: np.ndarray, v: np.ndarray, positions: np.ndarray, slots: np.ndarray
    ) -> Operation:
        """Put keys and values into their slots. May change k."""

    def attend(self, layer: int, q: np.ndarray, out: np.ndarray) -> tuple[Operation, Operation]:
        """Attention of rotated queries over the cache, in two phases."""
        where = (self._memory.kernel, layer, q, self._plan, out)
        rope = self._rope.kernel if self._raw else None
        return _attention.attend(*where, rope), _attention.merge(*where)


class RopedCache(KVCache):
    """Keys are rotated when they are written, and again when their positions are changed."""

    def edit(self, context: BlockTable, rows: np.ndarray, n_threads: int) -> None:
        """As for `KVCache`; keys that come to stand elsewhere are rotated by the difference.

        Those that another context reads too are copied first. Cost: a pass over all keys moved.
        Quantized keys are quantized anew; ContextError where that would take a whole block.
        """
        by = numbered(rows) - rows[:, 3]
        if self._memory.keys_by_channel and by.any():
            raise ContextError(
                "roped keys that are quantized by channel cannot change their positions: "
                "use the raw cache, or another type of keys"
            )
        held = np.bincount(context.segments[:, 0], minlength=self.pool.n_blocks)
        shared = [self.pool.n_holders(block) > held[block] for block in rows[:, 0].tolist()]
        copied = (by != 0) & np.array(shared, bool)
        places = slots_of(rows)
        if len(np.unique(places)) < len(places):  # a context that is put into itself
            copied = by != 0
        by_token = np.repeat(by, rows[:, 2])
        self._rope.reach(int(np.abs(by).max(initial=0)))
        if copied.any() and self._memory.by_channel:
            self._assign_cloned(context, rows, copied)
        elif copied.any():
            self._assign_copied(context, rows, copied)
        else:
            context.assign(rows)
        moved = context.segments.copy()
        moved = _split_where_changing(moved, by_token)
        for block in np.unique(moved[:, 0]).tolist():
            self.pool.forget(block)
        if len(moved):
            # Last, so that a Ctrl-C, which waits for the kernel, leaves keys and positions agreed.
            run_now(
                _cache.shift(self._memory.kernel, self._rope.kernel, moved), n_threads=n_threads
            )

    def _assign_cloned(self, context: BlockTable, rows: np.ndarray, which: np.ndarray) -> None:
        """As `_assign_copied`, each segment to the same slots of a block of its own."""
        if int(which.sum()) > self.pool.n_free:
            raise IndexError("the pool has too few free blocks")
        new = rows.copy()
        for i in np.flatnonzero(which).tolist():
            new[i, 0] = self.pool.copied(*rows[i, :3].tolist())
        context.assign(new)
        for block in new[which, 0].tolist():
            self.pool.release(block)

    def store(
        self, layer: int, k: np.ndarray, v: np.ndarray, positions: np.ndarray, slots: np.ndarray
    ) -> Operation:
        """Rotate k in place, then store both."""
        return _cache.store(self._memory.kernel, layer, k, v, slots, self._rope.kernel, positions)


class RawCache(KVCache):
    """Keys are stored as projected and rotated when they are read."""

    _raw = True

    def edit(self, context: BlockTable, rows: np.ndarray, n_threads: int) -> None:
        """As for `KVCache`: positions are numbers of the list, no key is touched."""
        context.assign(rows)

    def store(
        self, layer: int, k: np.ndarray, v: np.ndarray, positions: np.ndarray, slots: np.ndarray
    ) -> Operation:
        """Store both as they are."""
        return _cache.store(self._memory.kernel, layer, k, v, slots)


def _split_where_changing(rows: np.ndarray, by: np.ndarray) -> np.ndarray:
    """What `_cache.shift` takes, int32 [n, 4], from segments and `by` int32 [n_tokens]."""
    starts = np.repeat(numbered(rows), rows[:, 2])
    new = np.ones(len(by), bool)
    new[1:] = (by[1:] != by[:-1]) | (starts[1:] != starts[:-1])
    firsts = np.flatnonzero(new)
    lengths = np.diff(np.append(firsts, len(by)))
    slots = slots_of(rows)[firsts]
    moved = np.stack([slots // SLOTS, slots % SLOTS, lengths, by[firsts]], 1).astype(np.int32)
    return moved[moved[:, 3] != 0]


STRATEGIES: dict[str, type[KVCache]] = {"roped": RopedCache, "raw": RawCache}
