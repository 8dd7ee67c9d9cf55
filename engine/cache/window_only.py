"""Keys and values that no attention window will show again, given back to the system.

A token of a layer with a window sees the last keys alone. With `swa_window_only` the older ones go,
block by block, in those layers; such a block is thin. It stays in its tables, because layers
without a window read all of it, and its memory has addresses but no pages. That forbids what would
show a window older tokens again; `check` and `check_edit` refuse it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from lariat.cache.batch import Batch
from lariat.cache.blocks import SLOTS, BlockPool, BlockTable, numbered
from lariat.cache.kv_storage import CacheMemory
from lariat.errors import ContextError

# Behind a window so many keys stay, because a context takes its last tokens back where a text
# changes its last word or a stop text is cut off.
_N_SPARE = 64
GONE = (
    "needs keys outside of the attention windows, which swa_window_only (--swa-window-only) gave "
    "back: edit a context without it"
)


class WindowOnly:
    """Makes blocks thin, and knows which tokens may be computed then.

    layers  those with a window
    """

    def __init__(self, windows: Sequence[int | None], memory: CacheMemory, pool: BlockPool) -> None:
        """windows: of each layer, None for all keys. The longest counts for all of them."""
        self.layers = [layer for layer, window in enumerate(windows) if window]
        self._window = max((window for window in windows if window), default=0)
        self._memory, self._pool = memory, pool

    def thin_out(self, batch: Batch) -> None:
        """Give back what the tokens behind a batch, which is computed, will not see."""
        for r, n_past in enumerate(batch.n_past.tolist() if self.layers else ()):
            n = n_past + int(batch.token_starts[r + 1] - batch.token_starts[r])
            if self._n_hidden(n) // SLOTS != self._n_hidden(n_past) // SLOTS:
                rows = batch.segments[batch.segment_starts[r] : batch.segment_starts[r + 1]]
                self.thin_out_behind(rows, n)

    def thin_out_behind(self, rows: np.ndarray, n: int) -> None:
        """Give back what tokens behind the first n of these segments will not see. Blocks that
        another table holds stay, and so do blocks by channel that are not quantized yet."""
        if not self.layers:
            return
        hidden = rows[rows[:, 3] + rows[:, 2] <= self._n_hidden(n), 0]
        blocks, n_segments = np.unique(hidden, return_counts=True)
        whole = ~self._pool.thin[blocks] & (self._memory.open_at[blocks] < 0)
        for block, n_here in zip(blocks[whole].tolist(), n_segments[whole].tolist(), strict=True):
            if self._pool.n_holders(block) == n_here:
                self._pool.make_thin(block)
                self._memory.give_back(block, self.layers)

    def _n_hidden(self, n: int) -> int:
        """How many of the first tokens those behind n tokens will not see."""
        return max(0, n - self._window - _N_SPARE)

    def is_gone(self, rows: np.ndarray, n: int) -> bool:
        """Whether a token behind the first n of segments `rows` would look for keys that are
        gone."""
        if not self.layers:
            return False
        starts = numbered(rows)
        seen = (starts < n) & (starts + rows[:, 2] > n - self._window + 1)
        return bool(self._pool.thin[rows[seen, 0]].any())

    def n_continued(self, table: BlockTable, n: int) -> int:
        """The tokens of a table, n or none, behind which others can be computed."""
        return 0 if self.is_gone(table.segments, n) else n

    def check(self, batch: Batch) -> None:
        """ContextError if a token of a batch would look for keys that are gone."""
        for r, n_past in enumerate(batch.n_past.tolist()):
            rows = batch.segments[batch.segment_starts[r] : batch.segment_starts[r + 1]]
            if self.is_gone(rows, n_past):
                raise ContextError(f"token {n_past} {GONE}")

    def check_edit(self, rows: np.ndarray) -> None:
        """ContextError if nothing could be computed behind these segments."""
        n = int(rows[:, 2].sum())
        if self.is_gone(rows, n):
            raise ContextError(f"this edit {GONE}")

    def check_whole(self, blocks: np.ndarray) -> None:
        """ContextError if one of these blocks is thin and could not be read."""
        if self._pool.thin[blocks].any():
            raise ContextError(f"a file of these tokens {GONE}")
