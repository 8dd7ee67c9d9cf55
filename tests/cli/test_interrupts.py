"""Ctrl-C at any moment of the start: exit code 130, and nothing is printed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command_line import ROOT
from tests.support.model_files import write_llama

# Presses Ctrl-C when the N-th module since the start of the command is about to be imported, and
# prints how many there were.
SCRIPT = """
import os, signal, sys
from lariat.__main__ import main

class Interrupt:
    n, wanted = 0, int(sys.argv.pop(1))

    def find_spec(self, name, path=None, target=None):
        Interrupt.n += 1
        if Interrupt.n == Interrupt.wanted:
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupt())
code = main()
if Interrupt.wanted == 0:
    print(Interrupt.n)
sys.exit(code)
"""
COMMANDS = {"generate": ("generate", "-p", "the", "-n", "1", "-q"), "info": ("info",)}

Run = Callable[[str, int], tuple[int, str, str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    model = str(write_llama(tmp_path_factory.mktemp("model") / "m.gguf", n_layers=1))

    def interrupted(command: str, at: int) -> tuple[int, str, str]:
        argv = [sys.executable, "-c", SCRIPT, str(at), *COMMANDS[command], "-m", model]
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout, done.stderr

    return interrupted


@pytest.mark.parametrize("command", COMMANDS)
def test_an_interrupt_within_any_import_is_quiet(run: Run, command: str) -> None:
    code, out, _ = run(command, 0)
    assert code == 0
    n_imports = int(out.split()[-1])
    assert n_imports > 100
    first = [1, 2, 5, 10, 20, 40]
    for at in [*first, *range(60, n_imports, max(1, n_imports // 8))]:
        assert run(command, at) == (130, "", ""), f"at import {at} of {n_imports}"


@pytest.mark.parametrize("module", ["numpy", "tqdm"])
def test_an_interrupt_that_libraries_turn_into_another_error_is_one(
    tmp_path: Path, module: str
) -> None:
    """Before the work begins, and after it."""
    (tmp_path / f"{module}.py").write_text(
        "import os, signal\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    for _ in range(1000): pass\n"
        "except KeyboardInterrupt:\n"
        "    raise ImportError('a page of advice') from None\n"
    )
    script = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "from lariat.cli import console\n"
        "console.stderr_is_terminal = lambda: True\n"  # so that there is a bar
        "from lariat.__main__ import main\n"
        "sys.exit(main())"
    )
    argv = [sys.executable, "-c", script, "generate", "-p", "the", "-n", "1"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_work_that_has_begun_is_cleaned_up(tmp_path: Path) -> None:
    """An interrupt within an import that comes late leaves no unfinished file."""
    script = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from lariat.__main__ import main
from lariat.cli import console
from lariat.tools import quantize
console.stderr_is_terminal = lambda: True

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "tqdm":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
quantize.anonymous_file = lambda path: open(path, "wb")  # as where O_TMPFILE is missing
sys.exit(main())
"""
    source = write_llama(tmp_path / "m.gguf", n_layers=1)
    argv = [sys.executable, "-c", script, "quantize", str(source), str(tmp_path / "q"), "Q8_0"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_an_interrupt_that_is_ignored_stays_ignored() -> None:
    """As in a background job of a shell."""
    script = (
        "import os, signal, sys\n"
        "from lariat.__main__ import main\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from lariat.cli import console\n"
        "write = console.write\n"
        "console.write = lambda text: (os.kill(os.getpid(), signal.SIGINT), write(text))\n"
        "sys.exit(main())"
    )
    argv = [sys.executable, "-c", script, "info"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout.startswith("file")
