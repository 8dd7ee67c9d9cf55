"""`lariat bench --tune`: the fastest numbers of threads for a model, kept for later starts."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lariat.cli import console, interrupts

if TYPE_CHECKING:
    from lariat.measure.tuning import Found


def run(paths: Sequence[str | Path], output: str, use_mmap: bool) -> int:
    """Tune each model, print what was found, and return the exit code."""
    from lariat.measure import tuning
    from lariat.runtime import tuned

    interrupts.begin_work()
    n_most = tuned.most()
    rows: list[dict[str, Any]] = []
    for path in paths:
        with contextlib.ExitStack() as stack:
            with console.Bar("loading") as bar:
                gguf, work = stack.enter_context(
                    tuning.loaded(str(path), use_mmap=use_mmap, progress=bar)
                )
            with console.Bar("decoding") as bar:
                decode = tuning.fewest_fastest(work.decode, n_most, bar)
            with console.Bar("prompts") as bar:
                prompt = tuning.fewest_fastest(work.prompt, n_most, bar)
            is_kept = tuned.keep(gguf, decode.best, prompt.best)
        rows.append(_row(path, decode, prompt))
        if output == "md":
            console.write(_table(path, decode, prompt, is_kept))
    if output == "json":
        console.write(json.dumps(rows, indent=1) + "\n")
    return 0


def _speeds(found: Found, n_tokens: int) -> dict[int, float]:
    """By number of threads, tokens a second."""
    return {n: round(n_tokens * found.speed(n), 2) for n in sorted(found.seconds)}


def _row(path: str | Path, decode: Found, prompt: Found) -> dict[str, Any]:
    from lariat import processor
    from lariat.measure.tuning import N_PROMPT

    return {
        "model_filename": str(path),
        "cpu_info": processor.name(),
        "n_threads": decode.best,
        "n_threads_batch": prompt.best,
        "tokens_per_second": {
            "decode": _speeds(decode, 1),
            f"prompt of {N_PROMPT}": _speeds(prompt, N_PROMPT),
        },
    }


def _table(path: str | Path, decode: Found, prompt: Found, is_kept: bool) -> str:
    from lariat.measure.tuning import N_PROMPT

    of_decode, of_prompt = _speeds(decode, 1), _speeds(prompt, N_PROMPT)
    name = console.printable(os.path.basename(path))
    lines = [
        f"| threads | decode, t/s | prompt of {N_PROMPT}, t/s |",
        "| ---: | ---: | ---: |",
    ]
    for n in sorted({*of_decode, *of_prompt}):
        cells = [
            f"{speeds[n]:.2f}{' *' if n == best else ''}" if n in speeds else ""
            for speeds, best in ((of_decode, decode.best), (of_prompt, prompt.best))
        ]
        lines.append(f"| {n} | {cells[0]} | {cells[1]} |")
    lines.append("")
    use = (
        "from now on where no threads are given"
        if is_kept
        else "which could not be kept: the cache folder (LARIAT_CACHE) cannot be written"
    )
    lines.append(f"{name}: -t {decode.best} -tb {prompt.best}, {use}")
    return "\n".join(lines) + "\n"
