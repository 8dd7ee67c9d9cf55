"""Memory with a file mapped into it."""

from __future__ import annotations

import mmap
import os
import resource
import sys

import numpy as np
import pytest
from lariat import os_memory


@pytest.mark.skipif(
    sys.platform != "linux" or [int(part) for part in os.uname().release.split(".")[:2]] < [5, 14],
    reason="where the system cannot map pages at once, faults have to do",
)
def test_pages_are_there_before_they_are_used(tmp_path):
    """Also pages that will be written; the file stays unchanged."""
    n_pages, page = 128, mmap.PAGESIZE
    contents = np.random.default_rng(0).bytes(2 * n_pages * page)
    path = tmp_path / "file"
    path.write_bytes(contents)
    target, first_bytes = os_memory.allocate(len(contents)), np.zeros(n_pages, np.uint8)
    with open(path, "rb") as file:
        assert os_memory.map_file(target, file.fileno(), 0)
    read, written = np.split(target, 2)
    os_memory.map_pages([(read, False), (written, True)], 2)
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    first_bytes[:] = read[::page]
    written[::page] = first_bytes
    after = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    assert after - before < 8  # without it, 8 faults to read and 128 to copy
    assert target[:: 2 * page].tobytes() == contents[:: 2 * page][: n_pages // 2] * 2
    assert path.read_bytes() == contents
