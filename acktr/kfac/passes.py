"""Whether the backward pass that goes on is one of the statistics.

A node of one's own that stands for many steps hands on the sum of what later steps made of one, and to
the statistics it may show something else than to the loss (:mod:`acktr.networks.recurrence`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_depth = 0  # of the process: a CUDA device has a thread of its own for its backward passes


@contextmanager
def statistics() -> Iterator[None]:
    """Let backward passes inside ``with`` be of the statistics."""
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1


def of_statistics() -> bool:
    """Return whether the backward pass that goes on is one of the statistics."""
    return _depth > 0
