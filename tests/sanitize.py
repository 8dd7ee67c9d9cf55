"""Plugin of pytest for `make sanitize`: differences that checking addresses needs.

**Memory.** The engine takes large blocks from the system in whole pages, one block for all weights.
A read past the end of a matrix would not be noticed, because the next matrix follows. Here every
piece is an allocation of its own, so AddressSanitizer watches the bytes around it. Files are not
mapped over parts of the cache, because its memory is on the heap here; their bytes are copied.

**Chat templates** run in a process with a limit of address space, which the checks alone exceed.
That process has none of the engine's C code, so it runs without the checks.

**Tests** that cannot pass under these conditions are skipped: `_NOT_HERE` has their names and the
reasons. The checks make all else some twenty times as slow, so each test runs with some of its
parameters: as many at each instruction set as LARIAT_CASES says, 0 for all. They are drawn by their
names, always the same.
"""

from __future__ import annotations

import os
import subprocess
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lariat import os_memory

from tests.support.some_cases import leave_some

_ALIGNMENT = 64
_N_CASES = int(os.environ.get("LARIAT_CASES", "1"))
_MEASURED = "time and memory are those of the checks, not of the engine"
_UNMAPPED = "no file is mapped here"
_HEAP = "memory comes from the heap here, not in whole pages"
_TOO_LARGE = "the checks exceed the limit of memory of templates in a process of their own"
_NOT_HERE = {
    "test_refusing_takes_little_memory": _MEASURED,
    "test_loading_needs_no_more_memory_than_the_file": _MEASURED,
    "test_peak_memory_rises_and_starts_anew": _MEASURED,
    "test_programs_give_their_memory_back": _MEASURED,
    "test_decoding_allocates_no_buffers": _MEASURED,
    "test_too_little_memory_ends_in_one_sentence": _MEASURED,
    "test_processes_share_the_weights": _MEASURED,
    "test_memory_that_the_system_refuses_is_one_sentence": _HEAP,
    "test_the_memory_of_some_layers_goes_back": _HEAP,
    "test_the_worker_needs_nothing_of_the_package": _TOO_LARGE,
    "test_nothing_is_written_to_files": _TOO_LARGE,
    "test_it_answers_and_sigterm_ends_it_when_running_requests_are_finished": _TOO_LARGE,
    "test_ray_with_a_worker_that_is_killed": "Ray gives up on its processes, which the checks slow",
    "test_blocks_of_whole_pages_are_mapped_and_others_copied": _UNMAPPED,
    "test_pages_are_there_before_they_are_used": _UNMAPPED,
}


_FILES_NOT_HERE = {
    "test_page_browser.py": "a browser does not run with the library of the checks",
}


def allocate(n_bytes: int, huge: bool = True) -> np.ndarray:
    """As `lariat.os_memory.allocate`, from the heap; ends less than 64 bytes before its bound."""
    try:
        array = np.zeros(n_bytes + _ALIGNMENT, np.uint8)
    except ValueError as error:  # too large for NumPy to try
        raise MemoryError(f"the system refuses {n_bytes / 1e9:.1f} GB of memory") from error
    start = -array.ctypes.data % _ALIGNMENT
    return array[start : start + n_bytes]


# Before any module of the engine imports these names.
os_memory.allocate = allocate
os_memory.Arena.take = lambda self, n_bytes: allocate(n_bytes)  # type: ignore[method-assign]
os_memory.map_file = lambda target, fd, offset: False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what `_NOT_HERE` names, and leave out cases of tests that have many."""
    for item in items:
        reason = _NOT_HERE.get(getattr(item, "originalname", item.name))
        reason = _FILES_NOT_HERE.get(item.path.name, reason)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
    leave_some(config, items, _N_CASES, at_each_level=True)


def start_unchecked(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
    """As `subprocess.Popen`, without the library of the checks."""
    env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    return subprocess.Popen(*args, env=env, **options)


from lariat.chat import chat_template  # noqa: E402  takes no memory of its own, but others do

chat_template.subprocess = SimpleNamespace(  # type: ignore[assignment]
    **{**vars(subprocess), "Popen": start_unchecked}
)
