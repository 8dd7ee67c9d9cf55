"""Run libFuzzer: `python -m tests.fuzz [-option=value ...] CORPUS`, or an input to repeat.

The corpus is a folder. It gets the seeds first, then inputs that reach new code of the engine.
Options are libFuzzer's, https://llvm.org/docs/LibFuzzer.html. With `FUZZ_INPUTS="request text"` in
the environment the seeds are of these types alone, and so is what becomes of them.
"""

from __future__ import annotations

import os
import pkgutil
import sys
import tempfile
from importlib import import_module
from pathlib import Path

import atheris

# Otherwise modules that the engine imports only when needed would not be measured.
with atheris.instrument_imports(include=["lariat"]):
    import lariat

    for found in pkgutil.walk_packages(lariat.__path__, "lariat."):
        if found.name == "lariat.__main__":
            continue
        try:
            import_module(found.name)
        except ModuleNotFoundError as error:  # of an extra that is not installed
            if (error.name or "").partition(".")[0] == "lariat":
                raise

from tests.fuzz import mutate, seeds, targets

# These are seconds of the clock, and other programs may use the processor. `targets` limits the
# processor time.
_OPTIONS = ["-timeout=120", "-rss_limit_mb=1024", "-max_len=65536", "-len_control=0"]


def main() -> None:
    """Never returns: libFuzzer ends the process."""
    types = os.environ.get("FUZZ_INPUTS", "").split() or targets.INPUTS
    unknown = [type for type in types if type not in targets.INPUTS]
    if unknown:
        sys.exit(f"FUZZ_INPUTS: {unknown[0]!r} is none of {', '.join(targets.INPUTS)}")
    with tempfile.TemporaryDirectory(prefix="lariat-fuzz-") as folder:
        for argument in sys.argv[1:]:
            if not argument.startswith("-") and Path(argument).is_dir():
                seeds.write_all(Path(argument), Path(folder), types)
                break
        run = targets.Targets(Path(folder), targets.MAX_SECONDS)

        def mutator(data: bytes, max_size: int, seed: int) -> bytes:
            return mutate.mutate(data, max_size, seed, atheris.Mutate, types)

        atheris.Setup([sys.argv[0], *_OPTIONS, *sys.argv[1:]], run, custom_mutator=mutator)
        atheris.Fuzz()


main()
