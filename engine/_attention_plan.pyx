"""How the attention of a batch is cut into tasks.

One pass over the segments of a request, with online softmax (arXiv 1805.02867, 2205.14135), is cut
in one of two ways:

- A token that stands alone (decode) reads keys and values once, in one run of memory. A task is a
  span of segments times a range of KV heads, blocks outside and heads inside; the results of spans
  are merged in order.
- Tokens of a prompt share keys and values. A task is a tile of tokens times one KV head. It makes
  the keys of a block float (and rotates raw ones) once for all its queries, and adds up spans as
  for one token: results have the same bits.

With an attention window (arXiv 2004.05150) a token attends to the last keys alone, its own among
them. Segments that lie outside are not read.
"""

import numpy as np

from libc.stdint cimport INT32_MAX, int32_t, int64_t

from lariat._cache cimport TASK_FLOATS, Pool
from lariat._kernels cimport SLOTS, Rope


cdef enum:
    DECODE_TASKS = 16    # while there are fewer tasks than this, heads are cut too
    FEW_TOKENS = 4       # a request with this many tokens or fewer is cut as for decode


cdef class AttentionPlan:
    """How the attention of a batch is cut into tasks. Operations are recorded with a plan, and run
    with the batch that it was last filled with."""

    def __init__(self, Pool pool, Py_ssize_t n_heads, Py_ssize_t window=0):
        """For attention of `n_heads` query heads over `pool`. With a `window` above 0, the token at
        position i attends to keys at positions above i - window."""
        if n_heads % pool.n_kv_heads:
            raise ValueError(f"{n_heads} query heads for {pool.n_kv_heads} KV heads")
        if window < 0:
            raise ValueError(f"an attention window of {window} positions, expected 1 or more, or 0 "
                             f"for none")
        self.window, self.plan.window = window, window if window else INT32_MAX
        self.n_heads, self.n_kv_heads, self.n_blocks = n_heads, pool.n_kv_heads, pool.n_blocks
        self.head_dim_v, self.head_dims = pool.head_dim_v, pool.head_dim_k + pool.head_dim_v
        self.tile_tokens = tokens_of_tile(n_heads // pool.n_kv_heads)
        self.ropes = []
        self.spans, self.tiles = np.zeros((8, 8), np.int32), np.zeros((8, 7), np.int32)
        self.merges, self.starts = np.zeros((8, 3), np.int32), np.zeros(8, np.int32)
        self.ends = np.zeros(8, np.int32)
        self.segments, self.partials = np.zeros((0, 4), np.int32), np.zeros(1, np.float32)

    def fill(self, const int32_t[::1] token_starts, const int32_t[::1] n_past,
             const int32_t[::1] segment_starts, const int32_t[:, ::1] segments):
        """Take a batch.

        token_starts int32 [n_requests + 1]    # IN tokens of the batch by request
        n_past int32 [n_requests]              # IN tokens in each context before the batch
        segment_starts int32 [n_requests + 1]  # IN segments by request
        segments int32 [n_segments, 4]         # IN block, first slot, length, first position; they
                                               #    hold the batch's own tokens too

        ValueError for segments outside of the pool, for positions that a RoPE table of the recorded
        operations does not have, and, with a window, for positions that do not follow each other.
        """
        cdef Py_ssize_t r, t, n_requests = n_past.shape[0]
        cdef part_t part
        # No batch, if this one is refused.
        self.segments, self.plan.n_tasks, self.plan.n_merge_tasks = segments[:0], 0, 0
        self._check_segments(token_starts, n_past, segment_starts, segments)
        self._set_starts(token_starts, n_past, segment_starts, segments)
        for rope in self.ropes:
            self._check_positions(rope, segments)
        self.segments = segments
        self._reserve_tasks(token_starts, segment_starts)
        for r in range(n_requests):
            part = part_t(token_starts[r], token_starts[r + 1] - token_starts[r], n_past[r],
                          segment_starts[r], segment_starts[r + 1])
            if part.n_tokens > FEW_TOKENS:
                self._add_tiles(&part)
            else:
                for t in range(part.n_tokens):
                    self._add_spans(&part, t)
        self._show()

    cdef int _check_segments(self, const int32_t[::1] token_starts, const int32_t[::1] n_past,
                             const int32_t[::1] segment_starts,
                             const int32_t[:, ::1] segments) except -1:
        cdef Py_ssize_t i, n_requests = n_past.shape[0], n_segments = segments.shape[0]
        if (token_starts.shape[0] != n_requests + 1 or segment_starts.shape[0] != n_requests + 1
                or (n_segments and segments.shape[1] != 4)):
            raise ValueError(
                f"token_starts [{token_starts.shape[0]}], segment_starts "
                f"[{segment_starts.shape[0]}] and segments [{n_segments}, {segments.shape[1]}] for "
                f"{n_requests} requests, expected [{n_requests + 1}] twice and [n, 4]"
            )
        if segment_starts[n_requests] != n_segments:
            raise ValueError(f"segment_starts ends at {segment_starts[n_requests]}, but there are "
                             f"{n_segments} segments")
        for i in range(n_segments):
            if (min(segments[i, 0], segments[i, 1], segments[i, 2], segments[i, 3]) < 0
                    or segments[i, 1] + segments[i, 2] > SLOTS or segments[i, 0] >= self.n_blocks
                    or <int64_t>segments[i, 3] + segments[i, 2] > INT32_MAX):
                raise ValueError(
                    f"segment {i} reaches out of its block or of the pool: block {segments[i, 0]} "
                    f"of {self.n_blocks}, slots {segments[i, 1]} to "
                    f"{segments[i, 1] + segments[i, 2]} of {SLOTS}, position {segments[i, 3]}"
                )
        return 0

    cdef int _set_starts(self, const int32_t[::1] token_starts, const int32_t[::1] n_past,
                         const int32_t[::1] segment_starts,
                         const int32_t[:, ::1] segments) except -1:
        """Count the tokens of each context before each of its segments."""
        cdef Py_ssize_t r, i, n_held, n_new, tail
        if self.starts.shape[0] < segments.shape[0]:
            self.starts = np.zeros(2 * segments.shape[0], np.int32)
            self.ends = np.zeros(2 * segments.shape[0], np.int32)
        for r in range(n_past.shape[0]):
            n_held, n_new = 0, token_starts[r + 1] - token_starts[r]
            for i in range(segment_starts[r], segment_starts[r + 1]):
                self.starts[i] = n_held
                # Windows count keys, not positions.
                if self.window and segments[i, 3] - n_held != segments[segment_starts[r], 3]:
                    raise ValueError(
                        f"an attention window needs positions that follow each other, but token "
                        f"{n_held} of request {r} is at position {segments[i, 3]}"
                    )
                n_held += segments[i, 2]
                self.ends[i] = n_held
            if n_past[r] + n_new > n_held:
                raise ValueError(f"the segments of request {r} hold {n_held} tokens, but it has "
                                 f"{n_past[r]} and {n_new} in the batch")
            # Of an edited context, several segments may lie in the block that is written next.
            tail = segment_starts[r]
            while tail < segment_starts[r + 1] and self.ends[tail] <= n_past[r]:
                tail += 1
            for i in range(segment_starts[r], tail if tail < segment_starts[r + 1] else 0):
                if segments[i, 0] == segments[tail, 0]:
                    self.ends[i] = self.ends[tail]
        return 0

    cdef int use(self, Rope rope) except -1:
        """Check positions against this table from now on, and those of the batch at hand."""
        if not any(used is rope for used in self.ropes):
            self._check_positions(rope, self.segments)
            self.ropes.append(rope)
        return 0

    cdef int _check_positions(self, Rope rope, const int32_t[:, ::1] segments) except -1:
        cdef Py_ssize_t i, end
        cdef bint is_grouped = rope.table.group_n > 1
        for i in range(segments.shape[0]):
            end = segments[i, 3] + segments[i, 2]
            if end > rope.n_positions:
                raise ValueError(f"position {end - 1} is beyond the RoPE table, which has "
                                 f"{rope.n_positions}")
            if is_grouped and segments[i, 3] != self.starts[i]:
                raise ValueError(f"group attention needs positions that count from 0, but token "
                                 f"{self.starts[i]} is at position {segments[i, 3]}")
        return 0

    cdef int _reserve_tasks(self, const int32_t[::1] token_starts,
                            const int32_t[::1] segment_starts) except -1:
        """Have memory for the tasks of a batch, and none of them yet."""
        cdef Py_ssize_t r, n_new, n_segments, max_spans = 0, max_tiles = 0
        self.n_spans = self.n_tiles = self.n_merges = self.n_partials = 0
        self.n_alone = 0
        for r in range(token_starts.shape[0] - 1):
            n_new = token_starts[r + 1] - token_starts[r]
            n_segments = segment_starts[r + 1] - segment_starts[r]
            if n_new > FEW_TOKENS:
                max_tiles += (n_new + self.tile_tokens - 1) // self.tile_tokens * self.n_kv_heads
            else:
                self.n_alone += n_new
                max_spans += n_new * (n_segments // SPAN_SEGMENTS + 2) * self.n_kv_heads
        if self.tiles.shape[0] < max_tiles:
            self.tiles = np.zeros((2 * max_tiles, 7), np.int32)
        if self.spans.shape[0] < max_spans:
            self.spans = np.zeros((2 * max_spans, 8), np.int32)
        if self.merges.shape[0] < self.n_alone:
            self.merges = np.zeros((2 * self.n_alone, 3), np.int32)
        return 0

    cdef Py_ssize_t _first_segment(self, const part_t *part, Py_ssize_t end,
                                   Py_ssize_t n_keys) noexcept:
        """The first segment, of those before `end`, in the window of a token that is the last of
        n_keys."""
        cdef Py_ssize_t first = part.first_segment
        if n_keys <= self.plan.window:
            return first
        while end - 1 > first and self.starts[end - 1] > n_keys - self.plan.window:
            end -= 1
        return end - 1

    cdef void _add_tiles(self, const part_t *part) noexcept:
        cdef tile_t *tiles = <tile_t *>&self.tiles[0, 0]
        cdef Py_ssize_t h, first, t = (part.n_tokens - 1) // self.tile_tokens * self.tile_tokens
        while t >= 0:  # the last tiles have the most keys, so they start first
            first = self._first_segment(part, part.last_segment, part.n_past + t + 1)
            for h in range(self.n_kv_heads):
                tiles[self.n_tiles] = tile_t(
                    part.first_token + t, min(self.tile_tokens, part.n_tokens - t),
                    part.n_past + t + 1, first, part.last_segment, h, part.first_segment,
                )
                self.n_tiles += 1
            t -= self.tile_tokens

    cdef void _add_spans(self, const part_t *part, Py_ssize_t t) noexcept:
        """The spans of token t of a part."""
        cdef span_t *spans = <span_t *>&self.spans[0, 0]
        cdef Py_ssize_t n_keys = part.n_past + t + 1, end = part.last_segment
        cdef Py_ssize_t begin, origin, first, n_spans, i, h, n_heads
        while self.starts[end - 1] >= n_keys:
            end -= 1
        begin = self._first_segment(part, end, n_keys)
        # Spans begin where those of every other token of the request do.
        origin = begin - (begin - part.first_segment) % SPAN_SEGMENTS
        n_spans = (end - origin + SPAN_SEGMENTS - 1) // SPAN_SEGMENTS
        n_heads = max(1, self.n_kv_heads * n_spans * self.n_alone // DECODE_TASKS,
                      TASK_FLOATS // (min(n_keys, self.plan.window) * self.head_dims))
        n_heads = min(n_heads, self.n_kv_heads)
        for i in range(n_spans):
            first = origin + i * SPAN_SEGMENTS
            h = 0
            while h < self.n_kv_heads:
                spans[self.n_spans] = span_t(
                    part.first_token + t, n_keys, max(begin, first),
                    min(end, first + SPAN_SEGMENTS), h, min(self.n_kv_heads, h + n_heads),
                    self.n_partials + i, n_spans,
                )
                self.n_spans += 1
                h += n_heads
        if n_spans > 1:
            self.merges[self.n_merges, 0] = part.first_token + t
            self.merges[self.n_merges, 1] = self.n_partials
            self.merges[self.n_merges, 2] = n_spans
            self.n_merges += 1
        self.n_partials += n_spans

    cdef int _show(self) except -1:
        """Put the batch where operations look when they run."""
        cdef Py_ssize_t n = self.n_partials * self.n_heads * (self.head_dim_v + 2)
        if self.partials.shape[0] < n:
            self.partials = np.zeros(n + n // 2, np.float32)
        self.plan.tiles = <tile_t *>&self.tiles[0, 0]
        self.plan.spans = <span_t *>&self.spans[0, 0]
        self.plan.merges = &self.merges[0, 0]
        self.plan.starts, self.plan.ends = &self.starts[0], &self.ends[0]
        self.plan.partials = &self.partials[0]
        self.plan.segments = &self.segments[0, 0] if self.segments.shape[0] else NULL
        self.plan.n_tiles = self.n_tiles
        self.plan.n_tasks = self.n_tiles + self.n_spans
        self.plan.n_merge_tasks = self.n_merges * self.n_heads
        return 0
