"""Numbers of threads that `lariat bench --tune` has found best for a model on this machine."""

from __future__ import annotations

import math
from typing import Any

import xxhash
from lariat import _kernels, processor
from lariat.architectures import measured
from lariat.formats.gguf import GGUFFile
from lariat.runtime import threads

FILE = "threads.json"
"""Its name in the cache folder. Machine and model -> numbers of threads."""


def place(gguf: GGUFFile) -> str:
    """What a choice holds for: the processor, which of its threads this process may use, the quota,
    the instruction set, and the shapes and types of the model's tensors."""
    tensors = [(name, t.type.name, t.shape) for name, t in gguf.tensors.items()]
    model = xxhash.xxh3_64(repr(tensors).encode("utf-8", "surrogatepass")).hexdigest()
    mask = xxhash.xxh3_64(repr(threads.cores()).encode()).hexdigest()
    return f"{processor.name()}, {mask}, {threads.quota()}, {_kernels.isa()}, {model}"


def most() -> int:
    """The largest number of threads that may be the fastest: one for each processor that this
    process may use, hyper-threads too, and for the last part of a quota."""
    n, quota = len(threads.processors()), threads.quota()
    return min(threads.MAX_THREADS, max(1, n if quota is None else min(n, math.ceil(quota))))


def keep(gguf: GGUFFile, n_threads: int, n_threads_batch: int) -> bool:
    """Note the best numbers of threads for a model, and say whether that was possible."""
    known = measured.read(FILE)
    known.pop(place(gguf), None)
    known[place(gguf)] = {"n_threads": n_threads, "n_threads_batch": n_threads_batch}
    return measured.write(FILE, known)


def threads_for(
    gguf: GGUFFile, n_threads: int | None, n_threads_batch: int | None
) -> tuple[int, int]:
    """Numbers of threads for decoding and for prompts, of those that the user has named.

    If that is nothing, they are those that were noted for this machine and model, else the physical
    cores. Raises ValueError outside 1 to 512.
    """
    if n_threads is None and n_threads_batch is None:
        known = measured.read(FILE)
        here = known.get(place(gguf), {}) if known else {}
        n_threads, n_threads_batch = _usable(here, "n_threads"), _usable(here, "n_threads_batch")
    n = threads.resolve(n_threads)
    return n, threads.resolve(n if n_threads_batch is None else n_threads_batch, "n_threads_batch")


def _usable(here: dict[str, Any], name: str) -> int | None:
    """A number of the file, which anybody may have changed; None if it makes no sense."""
    noted = here.get(name)
    if not isinstance(noted, int) or isinstance(noted, bool):
        return None
    return noted if 1 <= noted <= threads.MAX_THREADS else None
