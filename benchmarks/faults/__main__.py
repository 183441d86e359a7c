"""``python -m benchmarks.faults``: see :mod:`benchmarks.faults.measure`."""

import sys

from benchmarks.faults.measure import main

if __name__ == "__main__":
    sys.exit(main())
