"""Small files in the cache folder with what was measured on this machine.

Each is JSON: a place, such as a processor, and what was found there. Nobody misses a file that
cannot be read or written, or that somebody has broken: what it says is measured again.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

from lariat.architectures.prepared import cache_folder
from lariat.formats.atomic import written_beside

_MAX_PLACES = 64


def read(name: str) -> dict[str, dict[str, Any]]:
    """What the file holds: place -> what was found. It may be anything of JSON."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        known = json.loads((cache_folder() / name).read_text())
        if isinstance(known, dict) and all(isinstance(here, dict) for here in known.values()):
            return known
    return {}


def write(name: str, known: dict[str, dict[str, Any]]) -> bool:
    """Write the file anew, and say whether that was possible. Of more than 64 places the first ones
    are dropped."""
    with contextlib.suppress(OSError):
        cache_folder().mkdir(parents=True, exist_ok=True)
        with written_beside(cache_folder() / name) as path:
            path.write_text(json.dumps(dict([*known.items()][-_MAX_PLACES:]), indent=1) + "\n")
        return True
    return False
