"""`python -m lariat` is the command `lariat`."""

import sys

from lariat.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
