"""The fastest matmul tiles for the weights of a model, found by measuring.

An instruction set has tiles for several kinds of cores (simd/tuning.h). They give the same bits,
and the maker of a processor does not tell which are fastest on it: on a Zen 5 core those for
Intel's cores decode Q4_K 1.5 times as fast as the others. So when a model is loaded, each of its
weight types is multiplied with the tiles of all kinds in turns, some milliseconds long, and the
result is kept in a small file for later starts. LARIAT_CORE names one kind for all, and then
nothing is measured.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from lariat import _kernels, _tiles, processor
from lariat._program import Program, run
from lariat.architectures import measured
from lariat.architectures.packed import Packed

FILE = "tiles.json"
"""Its name in the cache folder. Processor, instruction set, kernels -> type and columns -> kind."""

_N_COLUMNS = {"few": 1, "many": 16}
_MIN_BYTES = 8 << 20  # of a type's weights: with fewer, other things take the time
_PART_BYTES = 1 << 20  # of weights that are multiplied at once, with the tiles of one kind
_N_ROUNDS = 9
_LEAST_GAIN = 1.03  # smaller ones are noise, and the maker's tiles stay
_PAGE = 4096

Loaded = Sequence[tuple[Packed, np.ndarray]]
"""Matrices, and the memory of each, uint8, with their interleaved rows."""


def choose(loaded: Loaded) -> None:
    """Use the fastest tiles for each weight type that makes up a good part of a model.

    What the file says is believed; for the rest the tiles are timed, and the file is written anew.
    Nobody misses it where it cannot be written. Threads that multiply meanwhile are not disturbed:
    all tiles give the same bits.
    """
    cores = _tiles.cores()
    if len(cores) < 2 or _kernels.core_is_forced():
        return
    known = measured.read(FILE)
    here = known.setdefault(_place(), {})
    is_new = False
    for parts in _by_type(loaded):
        for name, n_columns in _N_COLUMNS.items():
            key = f"{parts[0].matrix.type_name} {name}"
            if here.get(key) not in cores:
                here[key] = fastest(parts, n_columns)
                is_new = True
            _tiles.use(parts[0].matrix, _tiles.is_few(n_columns), here[key])
    if is_new:
        measured.write(FILE, known)


@dataclass(frozen=True)
class Part:
    """Some rows of a matrix, and their memory, uint8."""

    matrix: _kernels.Matrix
    memory: np.ndarray


def fastest(parts: Sequence[Part], n_columns: int) -> str:
    """The kind of core whose tiles multiply parts of one type fastest, with one thread.

    The kinds take turns, each with a part of its own, so that all find their weights in memory and
    a neighbour on the machine disturbs all alike. Only a kind that wins by 3 % at the median of
    all rounds replaces that of the processor's maker.
    """
    cores = _tiles.cores()
    usual = _kernels.core() if _kernels.core() in cores else cores[0]
    programs = [_program(part.matrix, n_columns) for part in parts]
    is_few = _tiles.is_few(n_columns)
    seconds: dict[str, list[float]] = {core: [] for core in cores}
    at = 0
    for _ in range(_N_ROUNDS + 1):
        for core in cores:
            part, program = parts[at % len(parts)], programs[at % len(parts)]
            at += 1
            part.memory[::_PAGE].max()  # a page that is mapped only now would take longer
            _tiles.use(part.matrix, is_few, core)
            start = time.perf_counter()
            program.run(n_threads=1)
            seconds[core].append((time.perf_counter() - start) / len(part.memory))
    # The first round of each has to fetch its instructions too.
    gain = {
        core: statistics.median(
            theirs / ours for theirs, ours in zip(seconds[usual][1:], times[1:], strict=True)
        )
        for core, times in seconds.items()
    }
    best = max(cores, key=lambda core: gain[core])
    best = best if gain[best] >= _LEAST_GAIN else usual
    _tiles.use(parts[0].matrix, is_few, best)
    return best


def _program(matrix: _kernels.Matrix, n_columns: int) -> Program:
    """A program that multiplies all rows of a matrix by some activations."""
    x = np.ones((n_columns, matrix.n_cols), np.float32)
    q8 = _kernels.Activations(n_columns, matrix.n_cols)
    if matrix.quantized:
        run(_kernels.quantize(x, q8))
    out = np.empty((n_columns, matrix.n_rows), np.float32)
    return Program().then(_kernels.matmul(matrix, x, q8, out))


def _by_type(loaded: Loaded) -> Iterator[list[Part]]:
    """Of each type that has enough weights, parts that lie far from each other."""
    types = dict.fromkeys(packed.type for packed, _ in loaded)
    for name in types:
        of_type = [(packed, memory) for packed, memory in loaded if packed.type == name]
        if sum(len(memory) for _, memory in of_type) >= _MIN_BYTES:
            parts = [part for packed, memory in of_type for part in _parts(packed, memory)]
            n_wanted = len(_tiles.cores()) * (_N_ROUNDS + 1)
            yield parts[:: max(1, len(parts) // n_wanted)][:n_wanted]


def _parts(packed: Packed, memory: np.ndarray) -> Iterator[Part]:
    """A matrix, or that of the first expert, in parts of whole groups of rows."""
    n_bytes = _kernels.packed_bytes(packed.type, _tiles.group_rows(), packed.n_cols)  # of a group
    n_at_once = max(1, _PART_BYTES // n_bytes)
    n_whole = packed.n_rows // _tiles.group_rows()
    for first in range(0, n_whole, n_at_once):
        n = min(n_at_once, n_whole - first)
        rows = memory[first * n_bytes : (first + n) * n_bytes]
        n_rows = n * _tiles.group_rows()
        yield Part(_kernels.Matrix.of_packed(rows, packed.type, n_rows, packed.n_cols), rows)


def _place() -> str:
    """What a choice holds for."""
    built = os.stat(_kernels.__file__)
    return f"{processor.name()}, {_kernels.isa()}, {built.st_size}-{int(built.st_mtime)}"
