"""The processor at hand."""

from __future__ import annotations

import contextlib
import platform


def name() -> str:
    """Name of the processor."""
    # Of many processors the file is long, and Linux makes it while it is read.
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
