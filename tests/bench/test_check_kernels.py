"""The check of kernels on random shapes: it covers all of them, and would notice a wrong one."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from lariat import _kernels
from lariat.config import CACHE_TYPES

from bench import check_kernels


def test_every_kernel_and_type_is_checked_at_every_level():
    rng = np.random.default_rng(3)
    cases = [case for group in check_kernels.GROUPS for case in group(rng)]
    found = {(case.kernel, case.type) for case in cases}
    weights = [*check_kernels.FLOAT_TYPES, *check_kernels.QUANT_TYPES]
    assert found >= {("matmul", type) for type in weights}
    assert found >= {(f"attend {cache}", t) for cache in ("raw", "roped") for t in CACHE_TYPES}
    assert found >= {(name, "") for name in ("rms_norm", "silu_mul", "quantize", "rope")}
    assert found >= {("gelu_mul", ""), ("soft_cap", "")}
    assert found >= {("store", "f16"), ("store", "q4_0"), ("seal", "q8_ch"), ("shift", "q8_0")}
    before = _kernels.isa()
    rows = list(check_kernels.check(cases[0]))
    assert [row.isa.split("-")[0] for row in rows] == [isa for isa, _ in _kernels.variants()]
    assert all(row.is_right and row.seconds > 0 for row in rows)
    assert _kernels.isa() == before


def test_a_seed_repeats_the_shapes_and_what_is_wrong_is_named(capsys, monkeypatch):
    def shapes() -> list[str]:
        return re.findall(r"^rope .* heads of \d+", capsys.readouterr().out, re.M)

    monkeypatch.setattr(check_kernels, "GROUPS", (check_kernels.rows,))
    monkeypatch.setattr(check_kernels, "_SECONDS", 0)
    assert check_kernels.main(["--seed", "5", "--shapes", "2"]) == 0
    once = shapes()
    assert len(set(once)) == 2
    assert check_kernels.main(["--seed", "5", "--shapes", "2"]) == 0
    assert shapes() == once

    def broken(rng):
        for case in check_kernels.rows(rng):
            wrong = case.expected() * (1 + 1e-4)
            yield replace(case, expected=lambda wrong=wrong: wrong)

    monkeypatch.setattr(check_kernels, "GROUPS", (broken,))
    assert check_kernels.main(["--seed", "5", "--shapes", "1"]) == 1
    out = capsys.readouterr().out
    n = 6 * len(_kernels.variants())
    assert out.count("WRONG, bound 3e-06") == n
    assert f"{n} WRONG" in out


@pytest.mark.parametrize("of_scalar", [1e-4, 5e-3])
def test_levels_may_not_part(of_scalar):
    """A quantized cache is far from the stored numbers; two levels are near each other."""
    case = next(check_kernels.caches(np.random.default_rng(0)))
    row = check_kernels.Row(replace(case, bound=0.01), "avx2", 5e-3, of_scalar, 1.0)
    assert row.is_right == (of_scalar < 1e-3)


def test_a_target_may_have_one_kernel_alone(capsys, monkeypatch):
    """It passes all checks, and differs from the target below it in that kernel only."""
    assert ("test", "other") not in _kernels.variants()
    with pytest.raises(ValueError, match="'test' is unknown, expected one of scalar"):
        _kernels.use_isa("test")
    monkeypatch.setenv("LARIAT_TEST_TARGETS", "1")
    assert ("test", "other") in _kernels.variants()
    before = _kernels.isa()
    _kernels.use_isa("scalar")
    with monkeypatch.context() as patch:
        patch.setattr(_kernels, "variants", lambda: (("scalar", "other"), ("test", "other")))
        patch.setattr(check_kernels, "_SECONDS", 0)
        assert check_kernels.main(["--seed", "5", "--shapes", "1"]) == 0
    _kernels.use_isa(before)
    rows = [line for line in capsys.readouterr().out.splitlines() if " test " in line]
    kernels = {line.split()[0] for line in rows if "  0.0e+00 " not in line.partition(" test ")[2]}
    assert len(rows) > 80
    assert kernels == {"silu_mul"}
