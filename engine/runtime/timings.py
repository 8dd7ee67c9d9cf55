"""Seconds and counts of one completion."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Timings:
    """Seconds and counts of one completion. Only the engine's own work is counted.

    Of the computed tokens, `n_recomputed` were in the cache and were computed again, some of them
    twice; of the reused ones, `n_moved` do not stand behind the text that they were computed
    behind, and `n_exact` do.
    """

    load_s: float = 0.0
    n_prompt: int = 0  # prompt tokens computed
    prompt_s: float = 0.0
    n_decode: int = 0  # tokens computed after the prompt
    decode_s: float = 0.0  # that took, guessing included
    n_passes: int = 0  # forward passes that computed `n_decode`
    n_reused: int = 0  # prompt tokens whose keys and values were there already
    n_moved: int = 0  # of `n_reused`, those that other text stands before now
    n_tried: int = 0  # tokens computed to choose a RoPE, each once a setting; `n_prompt` has one
    n_recomputed: int = 0  # of `n_prompt`, those of chunks that were computed anew
    n_drafted: int = 0  # tokens that were guessed and computed beside another one
    n_accepted: int = 0  # of those, the ones that came

    @property
    def n_exact(self) -> int:
        """Prompt tokens that are reused and are what computing them again would give."""
        return self.n_reused - self.n_moved

    @property
    def prompt_per_s(self) -> float:
        """Prompt tokens per second."""
        return self.n_prompt / self.prompt_s if self.prompt_s else 0.0

    @property
    def decode_per_s(self) -> float:
        """Decoded tokens per second."""
        return self.n_decode / self.decode_s if self.decode_s else 0.0

    @property
    def decode_per_pass(self) -> float:
        """Decoded tokens per forward pass: 1 without speculation and forced tokens."""
        return self.n_decode / self.n_passes if self.n_passes else 0.0
