"""Runs the same work in several threads, which the interpreter switches as often as it can."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable


def run_together(work: Callable[[int], object], n_threads: int = 4) -> None:
    """Call work(0), work(1)... each in a thread of its own. An exception in one is raised here."""
    raised: list[BaseException] = []

    def guarded(i: int) -> None:
        try:
            work(i)
        except BaseException as error:
            raised.append(error)

    workers = [threading.Thread(target=guarded, args=(i,), daemon=True) for i in range(n_threads)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(30)
    finally:
        sys.setswitchinterval(interval)
    assert not any(worker.is_alive() for worker in workers)
    for error in raised:
        raise error
