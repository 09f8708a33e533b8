"""How this process treats the memory that its tensors free."""

import ctypes
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
"""Of glibc's malloc.h."""


def keep_freed_memory() -> None:
    """Have tensors reuse the memory of freed ones, where the C library is glibc.

    It maps each large tensor anew otherwise, and the kernel clears its pages one by one: a good
    part of a network's time on a CPU. The price is a higher peak of memory.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
