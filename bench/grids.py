"""The grids of ggml's IQ1, IQ2 and IQ3 types, as `engine/simd/grids.h` has them.

    python -m bench.grids                 prints the strings of the header
    python -m bench.grids --check         says whether the header has the same

The numbers are those of the `gguf` package, whose arrays are read here. A grid is a set of points,
[n, 8] or [n, 4] digits of base 3 or 8. As numbers, the first digit being the lowest, the points
ascend, so a grid is written as the gaps between them: a letter is a gap of 1 (A) to 26 (Z), and
each + before it adds 26.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import numpy as np
from gguf import quants

HEADER = Path(__file__).parents[1] / "engine" / "simd" / "grids.h"
NAMES = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S")


def digits(name: str) -> np.ndarray:
    """uint8 [n, 8 or 4]: which of the magnitudes of the type stands at each place of each point."""
    judge = getattr(quants, name)
    judge.init_grid()
    grid = np.asarray(judge.grid).reshape(judge.grid_shape)
    return np.searchsorted(np.array(judge.grid_map, np.float32), grid).astype(np.uint8)


def gaps(name: str) -> str:
    """The grid as letters."""
    grid = digits(name).astype(np.int64)
    base = 8 if grid.shape[1] == 4 else 3
    numbers = (grid * base ** np.arange(grid.shape[1])).sum(axis=1)
    steps = np.diff(numbers, prepend=-1) - 1
    assert (steps >= 0).all(), name
    return "".join("+" * (step // 26) + chr(ord("A") + step % 26) for step in steps)


def strings(text: str) -> dict[str, str]:
    """The strings in the header, by the name of the type."""
    found = re.findall(r"GAPS_(\w+)\[\] =\s*((?:\"[A-Z+]*\"\s*)+);", text)
    return {name: "".join(re.findall(r"[A-Z+]+", lines)) for name, lines in found}


def main(argv: list[str] | None = None) -> int:
    """Print the strings, or compare them with the header: 1 if it has others."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with the header")
    args = parser.parse_args(argv)
    made = {name: gaps(name) for name in NAMES}
    if args.check:
        same = strings(HEADER.read_text()) == made
        print(f"{HEADER.name}: {'the same' if same else 'other numbers'}")
        return 0 if same else 1
    for name, text in made.items():
        lines = [f'    "{text[at : at + 92]}"' for at in range(0, len(text), 92)]
        print(f"static const char GAPS_{name}[] =\n" + "\n".join(lines) + ";")
    return 0


if __name__ == "__main__":
    sys.exit(main())
