"""glibc keeps what is freed: asked in a process of its own, for it cannot be undone."""

import subprocess
import sys

import pytest

from acktr.run import memory

SCRIPT = """
import resource, sys
import numpy as np
from acktr.run.memory import keep_freed_memory
kept = keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        np.ones(40_000_000, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(kept, faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is a Linux library")
def test_freed_memory_is_kept():
    out = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    kept, faults = out.stdout.split()
    if kept == "True":  # False with another C library
        assert int(faults) < 1000  # else 5 times the 9,766 pages of 40 MB


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert memory.keep_freed_memory() is False
