"""``python -m benchmarks.pythons``: see :mod:`benchmarks.pythons.environments`."""

import sys

from benchmarks.pythons.environments import main

if __name__ == "__main__":
    sys.exit(main())
