"""`python -m lariat`, and the command `lariat`."""

from __future__ import annotations

import sys

from lariat.cli import interrupts


def main() -> int:
    """Run the command line of this process and return the exit code."""
    try:
        interrupts.watch()
        from lariat.cli.main import main as run

        return run()
    except KeyboardInterrupt:  # outside of what `run` catches
        return interrupts.CODE
    finally:
        interrupts.end_work()


if __name__ == "__main__":
    sys.exit(main())
