"""``python -m acktr``: the command line."""

import sys

from acktr.cli import main

if __name__ == "__main__":
    sys.exit(main())
