"""How this process treats the memory that its tensors free."""

import ctypes
import os
import platform
from functools import cache, partial

_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
"""Of glibc's malloc.h."""


@cache
def keep_freed_memory() -> None:
    """Have tensors reuse the memory of freed ones, where the C library is glibc.

    It maps each large tensor anew otherwise, and the kernel clears its pages one by one: a good
    part of a network's time on a CPU. The price is a higher peak of memory.

    What is kept is given back before a fork: the new process would hold on to it, and the kernel
    copy each page that this one writes to.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    library.mallopt(_M_MMAP_MAX, 0)
    library.mallopt(_M_TRIM_THRESHOLD, -1)
    os.register_at_fork(before=partial(library.malloc_trim, 0))
