"""Inner loops of kernels in a compiled module: instructions, and cycles by llvm-mca.

    python -m bench.experiments.loops FILE.so REGEX [--objdump aarch64-linux-gnu-objdump]
        [--mca llvm-mca-19 --cpu neoverse-n1,neoverse-v2,apple-m1]

For processors that are not at hand. A loop is a backward branch with no other inside; of those of a
function with equally many multiply-adds and conversions, the one with the fewest instructions is
shown. Columns:
vector multiply-adds, conversions, loads, vectors that are kept on the stack, all instructions, and
the cycles of one pass when the loop goes on for ever and memory is as near as the L1 cache.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_MULTIPLY_ADD = re.compile(r"fml[as]|vfn?m(add|sub)\d+p|[su]dot|[su]mmla|vpdpbusd|vpmaddubsw")
_CONVERSION = re.compile(r"fcvt|scvtf|ucvtf|vcvt")
_LOAD = re.compile(r"ld[pr1]|(?!lea|prefetch).*\(%r[^)]*\),")
_BRANCH = re.compile(r"(?:b\.|cbn?z|tbn?z|b |j)\S*.*?\b([0-9a-f]+) <")
_ON_STACK = re.compile(r"\b[qds]\d+.*\[sp|%[xyz]mm.*\(%rsp|\(%rsp.*%[xyz]mm")


@dataclass
class Loop:
    """One loop: its function and the text of its instructions."""

    function: str
    body: list[str]

    def count(self, pattern: re.Pattern[str]) -> int:
        """Instructions that match."""
        return sum(bool(pattern.match(line)) for line in self.body)

    @property
    def n_on_stack(self) -> int:
        """Loads and stores of vectors that no register was left for."""
        return sum(bool(_ON_STACK.search(line)) for line in self.body)


def functions_of(listing: str, wanted: re.Pattern[str]) -> Iterator[tuple[str, list]]:
    """Names of functions in objdump's listing, and their (address, instruction)."""
    name, code = "", []
    for line in listing.splitlines():
        if header := re.match(r"^[0-9a-f]+ <(.*)>:", line):
            if code and wanted.search(name):
                yield name, code
            name, code = header[1], []
        elif len(parts := line.split(":\t", 1)) == 2:
            code.append((int(parts[0], 16), parts[1].replace("\t", " ").strip()))
    if code and wanted.search(name):
        yield name, code


def loops_of(function: str, code: Sequence[tuple[int, str]]) -> list[Loop]:
    """The inner loops that multiply and add, in the order of the code."""
    place = {address: i for i, (address, _) in enumerate(code)}
    spans = []
    for end, (_, text) in enumerate(code):
        target = _BRANCH.match(text)
        begin = place.get(int(target[1], 16), len(code)) if target else len(code)
        if begin <= end:
            spans.append((begin, end))
    inner = [a for a in spans if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in spans)]
    loops = [Loop(function, [text for _, text in code[a : b + 1]]) for a, b in inner]
    return [loop for loop in loops if loop.count(_MULTIPLY_ADD)]


def cycles(loop: Loop, mca: str, cpu: str, arch: str) -> float:
    """Cycles of a pass, by llvm-mca."""
    code = [re.sub(r"\b[0-9a-f]+ <.*", "0", re.sub(r"//.*", "", line)) for line in loop.body]
    done = subprocess.run(
        [mca, f"-march={arch}", f"-mcpu={cpu}", "-iterations=200", "-resource-pressure=0",
         "-instruction-info=0", *(["-mattr=+i8mm"] if arch == "aarch64" else [])],
        input="\n".join(code), capture_output=True, text=True, check=False,
    )  # fmt: skip
    total = re.search(r"Total Cycles: +(\d+)", done.stdout)
    if not total:
        sys.exit(f"{mca}: {done.stderr.strip().splitlines()[:1] or 'no cycles'}")
    return int(total[1]) / 200


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("functions", type=re.compile, help="regular expression of their names")
    parser.add_argument("--objdump", default="objdump")
    parser.add_argument("--mca", help="llvm-mca of LLVM 17 or newer, which knows these cores")
    parser.add_argument("--cpu", default="neoverse-n1,neoverse-v2,apple-m1")
    parser.add_argument("--least", type=int, default=8, help="multiply-adds of a loop (8)")
    args = parser.parse_args(argv)
    listing = subprocess.run(
        [args.objdump, "-d", "--no-show-raw-insn", args.file],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    arch = "aarch64" if "aarch64" in listing[:300] else "x86-64"
    cpus = args.cpu.split(",") if args.mca else []
    names = ("function", "multiply-adds", "conversions", "loads", "stack", "instructions", *cpus)
    print("|", " | ".join(names), "|\n|", " | ".join(["---"] + ["---:"] * (len(names) - 1)), "|")
    for name, code in functions_of(listing, args.functions):
        best: dict[tuple[int, int], Loop] = {}
        for loop in loops_of(name, code):
            of = (loop.count(_MULTIPLY_ADD), loop.count(_CONVERSION))
            if of[0] >= args.least and (of not in best or len(loop.body) < len(best[of].body)):
                best[of] = loop
        for of, loop in sorted(best.items()):
            row = [name, *of, loop.count(_LOAD), loop.n_on_stack, len(loop.body)]
            row += [f"{cycles(loop, args.mca, cpu, arch):.1f}" for cpu in cpus]
            print("|", " | ".join(map(str, row)), "|")


if __name__ == "__main__":
    main()
