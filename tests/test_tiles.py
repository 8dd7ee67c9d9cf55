"""Tiles of kinds of cores: the same bits, and a choice for each type."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from lariat import _kernels, _tiles
from lariat.formats import block_formats
from lariat.formats.block_formats import GGMLType

from tests.support.kernel_cases import FLOAT_TYPES, QUANT_TYPES, multiply, pack, raw_weights

SEVERAL = [
    isa
    for isa in _kernels.supported_isas()
    if sum(level == isa for level, _ in _kernels.variants()) > 1
]
needs_several = pytest.mark.skipif(not SEVERAL, reason="no instruction set has two kinds of cores")


@pytest.fixture(params=SEVERAL)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _kernels.isa()
    _kernels.use_isa(request.param)
    yield request.param
    _kernels.use_isa(before)


@needs_several
@pytest.mark.parametrize("type_name", [*FLOAT_TYPES, *QUANT_TYPES])
def test_kinds_of_cores_have_the_same_bits(level: str, type_name: str) -> None:
    """So a choice by time changes no result."""
    rng = np.random.default_rng(3)
    n_cols = 8 * max(32, block_formats.BLOCK[GGMLType[type_name]][0])
    matrix = pack(raw_weights(type_name, 21, n_cols, rng), type_name, n_cols)
    x = rng.standard_normal((40, n_cols)).astype(np.float32)
    for n in (1, 2, 3, 4, 5, 7, 8, 11, 16, 40):
        found = []
        for core in _tiles.cores():
            for few in (True, False):
                _tiles.use(matrix, few, core)
                assert _tiles.core_of(matrix, few) == core
            found.append(multiply(matrix, x[:n]))
        for other in found[1:]:
            assert np.array_equal(found[0].view(np.int32), other.view(np.int32)), n


@needs_several
def test_a_choice_is_of_one_type_and_number_of_columns_until_the_table_is_filled_anew(
    level: str,
) -> None:
    rng = np.random.default_rng(0)
    one, other = (pack(raw_weights(name, 16, 256, rng), name, 256) for name in ("Q4_K", "Q6_K"))
    usual = _tiles.core_of(one, True)
    chosen = next(core for core in _tiles.cores() if core != usual)
    _tiles.use(one, True, chosen)
    assert _tiles.core_of(one, True) == chosen
    assert [_tiles.core_of(one, False), _tiles.core_of(other, True)] == [usual, usual]
    _kernels.use_isa(level)
    assert _tiles.core_of(one, True) == usual
