"""How `bench.peers` talks to an engine in a process of its own: JSON lines over its pipes.

Standard library only: the interpreter of a peer has the peer installed, and nothing of ours.
A worker is a script that calls `serve` with a class; the methods of the class are the requests.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any


def serve(engine: Callable[..., Any]) -> None:
    """Answer requests until standard input ends. `open` makes the engine, others call it."""
    # Output of libraries must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    made = None
    for line in sys.stdin:
        request = json.loads(line)
        name, arguments = request["name"], request["arguments"]
        try:
            if name == "open":
                made = engine(**arguments)
                value = made.about()
            else:
                value = getattr(made, name)(**arguments)
            answer = {"value": value}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def seconds(work: Callable[[], Any]) -> float:
    """Return the time that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def memory() -> dict[str, int]:
    """Return resident bytes of this process, now and at the peak (Linux)."""
    found = {}
    with open("/proc/self/status") as file:
        for line in file:
            key, _, value = line.partition(":")
            if key in ("VmRSS", "VmHWM"):
                found[key] = int(value.split()[0]) * 1024
    return {"now": found["VmRSS"], "peak": found["VmHWM"]}


def tokens(n: int, n_vocab: int, seed: int) -> list[int]:
    """Return ids that look random and are the same for every engine."""
    ids, state = [], seed * 2654435761 % 2**32 + 1
    for _ in range(n):
        state = (1103515245 * state + 12345) % 2**31
        ids.append(state // 65536 % (n_vocab - 300) + 290)  # no control tokens and no bytes
    return ids
