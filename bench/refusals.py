"""Time and memory that costly files take until they are refused: `python -m bench.refusals`.

Each file is opened by `lariat generate` in a process of its own. SECURITY.md promises at most 2
seconds and 300 MB, the interpreter and its libraries included.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.costly_files import costly_files

CHILD = """
import sys
from lariat.cli.main import main
code = main(["generate", "-m", sys.argv[1], "-p", "a", "-n", "1", "-q"])
from lariat.measure.machine import peak_memory
print(code, peak_memory())
"""


def main(argv: list[str] | None = None) -> int:
    """Print a line for each file; 1 if one is not refused as it should be."""
    argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0]).parse_args(argv)
    print(f"{'file':36} {'seconds':>8} {'peak MB':>8}  refused")
    wrong = False
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "costly.gguf")
        for name, write in costly_files().items():
            message = write(path)
            start = time.perf_counter()
            command = [sys.executable, "-c", CHILD, str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            seconds = time.perf_counter() - start
            code, peak = map(int, done.stdout.split() or (done.returncode, 0))
            refused = code == 1 and message in done.stderr and done.stderr.count("\n") == 1
            wrong |= not refused
            print(f"{name:36} {seconds:8.2f} {peak / 1e6:8.0f}  {'yes' if refused else 'NO'}")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
