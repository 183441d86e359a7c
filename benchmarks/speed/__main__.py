"""``python -m benchmarks.speed``: see :mod:`benchmarks.speed.measure`."""

import sys

from benchmarks.speed.measure import main

if __name__ == "__main__":
    sys.exit(main())
