"""Rotary position embedding (RoFormer, arXiv 2104.09864): frequencies, and the tables of cosines
and sines that kernels read.

All scaling goes into the frequencies, so kernels know only a table. With base b and d rotated dims,
one position rotates pair i by theta(i) = b ** (-2 i / d), divided by the file's factor for the pair
if it has factors. Scaling by s, of a model that was trained on L positions:

    linear   theta / s (arXiv 2306.15595)
    yarn     theta (m + (1 - m) / s), where m falls from 1 to 0 between the pairs that make
             beta_fast and beta_slow rotations within L (2309.00071, section 3.2); scores are
             multiplied by (1 + 0.1 ln s) ** 2, the factor of section 3.4 for both q and k
    dynamic  b (s n / L - s + 1) ** (d / (d - 2)) instead of b once a context has n > L tokens
             (https://reddit.com/r/LocalLLaMA/comments/14mrgpr, as in transformers)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from lariat import _kernels
from lariat.config import ModelConfig, RopeConfig

_FIRST_ROWS = 1024
_STAGES = 8  # the length of "dynamic" grows by this part of the trained length
_MAX_KEPT = 6  # tables of other stages and readings


def frequencies(
    config: ModelConfig,
    factors: np.ndarray | None = None,
    rope: RopeConfig | None = None,
    n_tokens: int = 0,
) -> np.ndarray:
    """Radians per position of each pair of a head, float64 [head_dim_k / 2].

    Pairs beyond `rope_dim` have 0. The factors of the file (`rope_freqs.weight`, [rope_dim / 2])
    divide the frequencies. Fields that `rope` gives replace those of `config.rope`. `n_tokens` is
    the length of the context that "dynamic" scales for.
    """
    r = rope.over(config.rope) if rope else config.rope
    n_dims, (base, scale, trained) = config.rope_dim, _numbers(r)
    if r.scaling == "dynamic" and n_tokens > trained:
        stretched = scale * n_tokens / trained - (scale - 1)
        base *= stretched ** (n_dims / max(n_dims - 2, 1))
    pairs = np.arange(n_dims // 2, dtype=np.float64)
    theta = base ** (-2.0 * pairs / n_dims)
    if factors is not None:
        theta = theta / factors
    if r.scaling in ("linear", "yarn"):
        kept = _extrapolated(r, n_dims) * _ext_factor(r)
        theta = theta * (kept + (1 - kept) / scale)
    return np.concatenate([theta, np.zeros(config.head_dim_k // 2 - len(pairs))])


def gain(config: ModelConfig, rope: RopeConfig | None = None) -> float:
    """Factor of the scores: the attention factor of queries times that of keys."""
    r = rope.over(config.rope) if rope else config.rope
    factor = r.yarn_attn_factor or 1.0
    if _ext_factor(r) > 0:  # then llama.cpp takes the factor of the paper and no other
        scale = _numbers(r)[1] if r.scaling in ("linear", "yarn") else 1.0
        log_scale = 0.1 * math.log(max(scale, 1.0))
        factor = (1.0 + log_scale) / (1.0 + config.yarn_log_mul * log_scale)
    return (factor * config.rope_attn_factor) ** 2


def _numbers(r: RopeConfig) -> tuple[float, float, int]:
    """freq_base, scale and yarn_orig_ctx of settings that are complete."""
    assert r.freq_base is not None
    assert r.scale is not None
    assert r.yarn_orig_ctx is not None
    return r.freq_base, r.scale, r.yarn_orig_ctx


def _ext_factor(r: RopeConfig) -> float:
    if r.yarn_ext_factor is not None:
        return r.yarn_ext_factor
    return 1.0 if r.scaling == "yarn" else 0.0


def _extrapolated(r: RopeConfig, n_dims: int) -> np.ndarray:
    """How much of each pair's frequency stays unscaled, 0 to 1, float64 [n_dims / 2]."""
    base, _, trained = _numbers(r)

    def pair_with_rotations(n: float) -> float:
        """The pair, as a real number, that makes `n` rotations within the trained length."""
        positions = trained / (n * 2 * math.pi)
        return n_dims * math.log(positions) / (2 * math.log(max(base, 1.001)))

    low = max(0, math.floor(pair_with_rotations(r.yarn_beta_fast or 32.0)))
    high = min(n_dims - 1, math.ceil(pair_with_rotations(r.yarn_beta_slow or 1.0)))
    ramp = (np.arange(n_dims // 2) - low) / max(0.001, high - low)
    return 1 - np.clip(ramp, 0, 1)


def steps(theta: np.ndarray) -> np.ndarray:
    """2 (1 - cos theta) and sin theta, float32 [2, head_dim / 2]: with them a kernel steps a query
    from one position to the next."""
    return np.stack([4 * np.sin(theta / 2) ** 2, np.sin(theta)]).astype(np.float32)


class Reading(NamedTuple):
    """How the tokens of a batch turn positions into angles.

    rope   complete settings instead of the tables' own, see `RopeTables.complete`; None: those
    stage  the length that "dynamic" scales for, see `RopeTable.stage`
    """

    rope: RopeConfig | None = None
    stage: int = 0


OWN = Reading()
"""With the tables' own settings."""


@dataclass
class _Angles:
    """Angles of all settings that differ in group attention alone.

    rows float32 [n_positions, head_dim], which grow; theta float64 [head_dim / 2], see
    `frequencies`; step, see `steps`; gain, see `gain`
    """

    rows: np.ndarray
    theta: np.ndarray
    step: np.ndarray
    gain: float


class RopeTable:
    """cos and sin of position times frequency, computed in float64, stored in float32.

    kernel  rows and step as the kernels hold them; it stays the same object when they change
    rope    the settings, complete
    """

    def __init__(
        self,
        config: ModelConfig,
        n_positions: int,
        factors: np.ndarray | None = None,
        rope: RopeConfig | None = None,
    ) -> None:
        """Positions from `n_positions` on are refused; the rest is as for `frequencies`."""
        self._config, self._factors = config, factors
        self._limit = max(n_positions, 32)
        still = np.zeros(config.head_dim_k // 2)
        self.kernel = _kernels.Rope(_rows(still, 0, 32), steps(still))
        self.set(rope or RopeConfig())

    def set(self, rope: RopeConfig) -> None:
        """Give the same positions other angles; None in `rope` is as the file says."""
        self.rope = self.complete(rope)
        self._kept: dict[tuple[RopeConfig, int], _Angles] = {}  # the last one is used now
        self._choose(self.rope, 0)

    def complete(self, rope: RopeConfig) -> RopeConfig:
        """Settings with the values of the model's file where `rope` has none."""
        return rope.over(self._config.rope)

    @property
    def rows(self) -> np.ndarray:
        """float32 [n_positions, head_dim]: cos of each pair, then sin of each pair."""
        return self._angles.rows

    @property
    def step(self) -> np.ndarray:
        """float32 [2, head_dim / 2], see `steps`."""
        return self._angles.step

    def settings(self, n_tokens: int | None = None) -> str:
        """The settings in words. Two that give the same angles have the same words.

        `n_tokens` leaves out settings that matter only to longer contexts; None: leaves out none.
        """
        r, (base, scale, trained) = self.rope, _numbers(self.rope)

        def beyond(n: int) -> bool:
            return n_tokens is None or n_tokens > n

        words = [f"base {base}"]
        if r.scaling in ("linear", "yarn") and scale != 1:
            words.append(f"scale {scale}")
            if _ext_factor(r):
                low, high = r.yarn_beta_slow or 1.0, r.yarn_beta_fast or 32.0
                words.append(f"yarn {_ext_factor(r)} of {trained} ({low} to {high} rotations)")
        if r.scaling == "dynamic" and beyond(trained):
            words.append(f"dynamic {scale} of {trained}")
        factor = gain(self._config, r)
        if factor != 1:
            words.append(f"scores times {factor}")
        if r.group_n > 1 and beyond(r.group_window):
            words.append(f"Self-Extend {r.group_n} beyond {r.group_window}")
        return ", ".join(words)

    def stage(self, n_tokens: int, rope: RopeConfig | None = None) -> int:
        """The length that "dynamic" scales for in a context of `n_tokens`; 0: as it was trained.

        It grows by an eighth of the trained length, so that most tokens find their table made.
        `rope` as for `Reading`.
        """
        r = self.rope if rope is None else rope
        if r.scaling != "dynamic":
            return 0
        trained = _numbers(r)[2]
        if n_tokens <= trained:
            return 0
        part = -(-trained // _STAGES)
        return -(-n_tokens // part) * part

    def reach(self, position: int, n_tokens: int = 0, rope: RopeConfig | None = None) -> None:
        """Have rows up to `position`, for a context that will have `n_tokens`; `rope` as for
        `Reading`.

        The table doubles when it grows: a long context is paid for when it is used. ValueError for
        a position from `n_positions` on.
        """
        rope = self.rope if rope is None else rope
        stage = self.stage(max(position + 1, n_tokens), rope)
        if (rope, stage) != self._chosen:
            self._choose(rope, stage)
        n_rows = len(self._angles.rows)
        if position < n_rows:
            return
        n = min(self._limit, max(position + 1, 2 * n_rows))
        if position >= n:
            raise ValueError(f"position {position} is beyond the context of {self._limit}")
        more = _rows(self._angles.theta, n_rows, n)
        self._angles.rows = np.concatenate([self._angles.rows, more])
        self._show()

    def _choose(self, rope: RopeConfig, stage: int) -> None:
        """Let the kernels have the angles of complete settings at a stage."""
        key = replace(rope, grp_attn_n=None, grp_attn_w=None), stage
        angles = self._kept.pop(key, None)
        if angles is None:
            theta = frequencies(self._config, self._factors, rope, stage)
            rows = _rows(theta, 0, min(self._limit, _FIRST_ROWS))
            angles = _Angles(rows, theta, steps(theta), gain(self._config, rope))
        while len(self._kept) >= _MAX_KEPT:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = self._angles = angles
        self._chosen = rope, stage
        self._show()

    def _show(self) -> None:
        rope, angles = self._chosen[0], self._angles
        self.kernel.set(angles.rows, angles.step, angles.gain, rope.group_n, rope.group_window)


def _rows(theta: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Rows of the positions from `start` to before `stop`, float32 [stop - start, head_dim]."""
    angle = np.arange(start, stop, dtype=np.float64)[:, None] * theta
    return np.concatenate([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


class RopeTables:
    """The tables of a model: one for each distinct setting that its layers have.

    main      the table of `config.rope`. The file's factors and a user's settings go into this one
              alone; any other is as the file says.
    of_layer  list [n_layers]: the table of each layer, None for a layer without RoPE
    """

    def __init__(
        self,
        config: ModelConfig,
        n_positions: int,
        factors: np.ndarray | None = None,
        rope: RopeConfig | None = None,
        factors_of: str = "",
    ) -> None:
        """The parameters are those of `RopeTable`. `factors_of` says which they are, where a file
        has several."""
        self.main = RopeTable(config, n_positions, factors, rope)
        self._factors_of = factors_of
        tables = {config.rope: self.main}
        for layer in config.layers:
            if layer.rope is not None and layer.rope not in tables:
                own = replace(config, rope=layer.rope, rope_attn_factor=1.0)
                tables[layer.rope] = RopeTable(own, n_positions)
        self._others = tuple(tables.values())[1:]
        self.of_layer = [tables[of.rope] if of.rope else None for of in config.layers]

    @property
    def rope(self) -> RopeConfig:
        """The settings of the main table, complete."""
        return self.main.rope

    def set(self, rope: RopeConfig) -> None:
        """Give positions other angles in the layers of the main table, see `RopeTable.set`."""
        self.main.set(rope)

    def settings(self, n_tokens: int | None = None) -> str:
        """The settings that a user can change, in words, see `RopeTable.settings`."""
        settings = self.main.settings(n_tokens)
        return f"{settings}, {self._factors_of}" if self._factors_of else settings

    def complete(self, rope: RopeConfig) -> RopeConfig:
        """Settings with the values of the model's file where `rope` has none."""
        return self.main.complete(rope)

    def reading(self, n_tokens: int, rope: RopeConfig | None = None) -> Reading:
        """How to read a context of `n_tokens` with complete settings; None: with the own ones.

        No file asks for "dynamic", so only the main table has stages.
        """
        return Reading(None if rope == self.rope else rope, self.main.stage(n_tokens, rope))

    def reach(self, position: int, reading: Reading = OWN) -> None:
        """Have rows up to `position` in all tables, see `RopeTable.reach`.

        Settings of a reading are for the layers of the main table, as those of `set` are.
        """
        self.main.reach(position, reading.stage, reading.rope)
        for table in self._others:
            table.reach(position)
