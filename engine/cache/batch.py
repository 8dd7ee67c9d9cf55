"""A flat batch: the arrays that one forward pass computes from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from lariat.cache.rope import OWN, Reading


@dataclass(frozen=True)
class Batch:
    """Tokens of several requests, one request after the other, with one RoPE for all of them.

    All arrays are int32. `wants_hidden`: instead of logits, the rows that they are made of.
    """

    token_ids: np.ndarray  # [n_tokens]
    positions: np.ndarray  # [n_tokens]
    slots: np.ndarray  # [n_tokens] block * 32 + slot
    token_starts: np.ndarray  # [n_requests + 1] where the tokens of each request begin
    n_past: np.ndarray  # [n_requests] tokens in the cache before these
    segment_starts: np.ndarray  # [n_requests + 1]
    segments: np.ndarray  # [n_segments, 4], of all requests, with the new tokens in them
    logit_rows: np.ndarray  # [n_rows] tokens whose logits are wanted
    reading: Reading = OWN
    wants_hidden: bool = False

    @property
    def n_tokens(self) -> int:
        """Tokens of all requests."""
        return len(self.token_ids)
