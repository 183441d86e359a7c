"""Freed memory and the C library, which can cost more than the arithmetic."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from malloc.h


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, on Linux with glibc.

    glibc gives each block of more than 32 MB back to the system and asks for it anew, page by page.
    A batch of images and its activations are such blocks: on 320 frames of 84 x 84 x 4 a forward and
    backward pass of the paper's network took 1.8 times as long (docs/speed.md). It holds for the whole
    process, so the command line calls it and the library does not: call it yourself in a script that
    trains on pixels on a CPU. Peak memory is about the same; what is freed stays with the process.

    :return: whether the C library took it
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
