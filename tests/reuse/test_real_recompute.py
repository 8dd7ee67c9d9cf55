"""The default of chunks on a real model: answers from documents that were computed apart."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.real_models import SMOLLM2, needs_smollm2

reuse = pytest.importorskip("bench.experiments.reuse", reason="runs from the source tree only")


@needs_smollm2
def test_the_default_recovers_what_reuse_alone_loses():
    """One set of documents: 3 facts in 4 documents of some 1,100 tokens. The whole measurement is
    in docs/cache-measurements.md."""
    rows = list(reuse.measure(str(SMOLLM2), ["needle"], ["none", "auto"], range(3, 4)))
    nll = {
        name: np.mean([row["nll"] for row in rows if row["method"] == name])
        for name in (reuse.FULL, reuse.WITHOUT, "none", "auto")
    }
    gap = nll[reuse.WITHOUT] - nll[reuse.FULL]
    recovered = {name: (nll[reuse.WITHOUT] - nll[name]) / gap for name in ("none", "auto")}
    assert gap > 2
    assert recovered["auto"] > max(0.8, recovered["none"])
    assert all(r["n_computed"] < 0.25 * r["n_documents"] for r in rows if r["method"] == "auto")
