"""Memory of `lariat batch` as its rows grow in number.

    python -m bench.experiments.batch_memory [--rows 100000] [--points 10000,100000]

Rows are short: a few tokens of the bundled model, one to four to write. The command runs in a
process of its own, whose resident memory is read when so many rows stand in its journal. The last
line has the memory at the last point over that at the first.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

_POLL_SECONDS = 0.02


class _Lines:
    """Counts the lines of a file that grows."""

    def __init__(self, path: Path) -> None:
        self._path, self._read, self.n = path, 0, 0

    def update(self) -> int:
        """Lines that are whole now."""
        if self._path.exists():
            with open(self._path, "rb") as file:
                file.seek(self._read)
                while data := file.read(1 << 20):
                    self._read += len(data)
                    self.n += data.count(b"\n")
        return self.n


def write_rows(path: Path, n_rows: int) -> None:
    """Plain rows that differ in their prompts, in their lengths and in the tokens they ask for."""
    words = ["cat", "dog", "sun", "sea", "boy", "hat", "girl"]
    with open(path, "w") as file:
        for i in range(n_rows):
            prompt = f"The {words[i % 7]}" if i % 3 else words[i % 5]
            row = {"custom_id": f"row-{i}", "prompt": prompt, "max_tokens": 1 + i % 4}
            file.write(json.dumps(row) + "\n")


def resident(pid: int) -> int:
    """Resident bytes of a process (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(
        int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:")
    )


def measure(n_rows: int, points: list[int], flags: list[str]) -> dict[int, int]:
    """Resident bytes at each number of rows that are done."""
    found: dict[int, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder, "in.jsonl"), Path(folder, "out.jsonl")
        write_rows(source, n_rows)
        journal = _Lines(output.with_name(output.name + ".part"))
        command = [sys.executable, "-m", "lariat", "batch", str(source), "-o", str(output), *flags]
        process = subprocess.Popen(command)
        try:
            with tqdm(total=n_rows, unit=" rows", disable=None, leave=False) as bar:
                while process.poll() is None:
                    n_done = max(0, journal.update() - 1)  # the first line says what they belong to
                    bar.update(n_done - bar.n)
                    for point in points:
                        if n_done >= point and point not in found:
                            found[point] = resident(process.pid)
                    time.sleep(_POLL_SECONDS)
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            raise SystemExit(f"lariat batch ended with {process.returncode}")
    return found


def main(argv: list[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=101_000, help="default: 101000")
    parser.add_argument("--points", default="10000,25000,50000,100000", help="numbers of rows")
    parser.add_argument("-t", "--threads", default="1")
    args = parser.parse_args(argv)
    points = [int(one) for one in args.points.split(",")]
    flags = ["-q", "-t", args.threads, "-c", "1024"]
    found = measure(args.rows, points, flags)
    print("| rows done | resident MB |\n| --- | --- |")
    for point, n_bytes in found.items():
        print(f"| {point} | {n_bytes / 1e6:.1f} |")
    print(f"\nlast over first: {found[points[-1]] / found[points[0]]:.3f}")


if __name__ == "__main__":
    main()
