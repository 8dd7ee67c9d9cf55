"""Instructions that a multiply-add takes in the matmul tiles, counted as qemu-user runs them.

    python -m bench.experiments.tile_counts [--types Q4_0,Q4_K,Q8_0] [--columns 1,16]

The tiles of each set are compiled with the flags of setup.py and run on a group of 16 rows, once
with 2048 columns of weights and once with 1024; the difference of both counts is that of 1024
columns, without what comes before and after. A count does not depend on the machine, and says
nothing of how long it takes.

It needs gcc for x86-64 and for aarch64, and qemu-user, as `make test-arm` does. AVX-512 is left
out, because qemu cannot run it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from lariat._kernels import weight_types

ROOT = Path(__file__).parents[2]
N_COLUMNS = (1024, 2048)
# Set: compiler and emulator
SETS = {
    "avx2": ("gcc", "qemu-x86_64"),
    "neon": ("aarch64-linux-gnu-gcc", "qemu-aarch64"),
    "dotprod": ("aarch64-linux-gnu-gcc", "qemu-aarch64"),
    "i8mm": ("aarch64-linux-gnu-gcc", "qemu-aarch64"),
}
FLAGS = "-O3 -std=gnu11 -w -falign-functions=64 -ffp-contract=off -static"
# Zeros are as good as other weights: no tile looks at a value before it chooses what to do.
SOURCE = """
#include <stdlib.h>
#include "simd/kernels.h"
int main(int argc, char **argv) {
    enum { N = 16 * 2048 };
    static float x[N], scale[N / BLOCK], out[16 * 16];
    static int8_t q[N];
    static int32_t neg8_sum[N / BLOCK];
    static int16_t half_sum[2 * N / BLOCK];
    static _Alignas(64) char weights[4 * N];
    const activations_t a = {x, q, scale, neg8_sum, half_sum, atoi(argv[1])};
    static matmul_fn volatile kernel = KERNEL; /* by its address, as the engine calls it */
    kernel(weights, &a, 0, atoi(argv[2]), out, 16, 16, 0);
    return argc > 3;
}
"""


def compiled(folder: Path, type_name: str, isa: str) -> Path:
    """A program that runs one tile of a type. Arguments: columns of weights, columns of the tile"""
    # As types.def writes it: the letters behind the last number of a super-block stay large.
    name = type_name[:-1].lower() + "K" if type_name.endswith("_K") else type_name.lower()
    program = folder / f"{type_name}_{isa}"
    command = [SETS[isa][0], *shlex.split(FLAGS), f"-DKERNEL=matmul_{name}_{isa}", "-I"]
    command += [str(ROOT / "engine"), "-x", "c", "-", "-o", str(program), "-lm"]
    subprocess.run(command, input=SOURCE, text=True, check=True)
    return program


def counted(program: Path, isa: str, n_k: int, n_columns: int) -> int:
    """Instructions of one run. With single steps, qemu writes a line for each into its log."""
    log = program.with_suffix(".log")
    command = [SETS[isa][1], "-cpu", "max", "-singlestep", "-d", "exec,nochain", "-D", str(log)]
    subprocess.run([*command, str(program), str(n_k), str(n_columns)], check=True)
    with log.open("rb") as lines:
        n = sum(line.startswith(b"Trace ") for line in lines)
    os.remove(log)
    return n


def per_multiply_add(program: Path, isa: str, n_columns: int) -> float:
    """Instructions of the tile for each of its multiply-adds."""
    few, many = (counted(program, isa, n_k, n_columns) for n_k in N_COLUMNS)
    return (many - few) / (16 * (N_COLUMNS[1] - N_COLUMNS[0]) * n_columns)


def main(argv: list[str] | None = None) -> int:
    """Print the table; 0, or 2 where a program is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--types", default="Q4_0,Q4_K,Q8_0", help="of weights, with commas between")
    parser.add_argument("--columns", default="1,16", help="of tiles: 1, 2, 4, 8, 16")
    parser.add_argument("--sets", default=",".join(SETS), help="instruction sets, with commas")
    args = parser.parse_args(argv)
    types, sets = args.types.split(","), args.sets.split(",")
    columns = [int(n) for n in args.columns.split(",")]
    if unknown := [name for name in types if name not in weight_types()]:
        parser.error(f"{unknown[0]} is no type of weights")
    if unknown := [name for name in sets if name not in SETS]:
        parser.error(f"{unknown[0]} is none of {', '.join(SETS)}")
    print("| | columns | " + " | ".join(sets) + " |")
    print("| --- | ---: |" + " ---: |" * len(sets))
    with tempfile.TemporaryDirectory() as folder:
        for type_name in types:
            try:
                programs = {isa: compiled(Path(folder), type_name, isa) for isa in sets}
                for n in columns:
                    cells = [f"{per_multiply_add(programs[isa], isa, n):.3f}" for isa in sets]
                    print(f"| {type_name} | {n} | " + " | ".join(cells) + " |", flush=True)
            except FileNotFoundError as error:
                print(f"error: {error.filename} is missing: see make test-arm", file=sys.stderr)
                return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
