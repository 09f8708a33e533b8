"""How this process treats the memory that its tensors free, and what it says when there is none."""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial

import torch

from pipeline.project.errors import UserError

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


@contextmanager
def full_memory(remedy: str) -> Iterator[None]:
    """Turn a full memory, of a GPU or between processes, into a user's error.

    Args:
        remedy: what to do about a GPU's.

    Raises:
        UserError: there was too little.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        said = str(error).split(". ")
        raise UserError(f"the GPU's memory is full ({'. '.join(said[:2])}); {remedy}") from None
    except RuntimeError as error:
        # What torch's loader says of a process that was killed for it.
        if "shared memory" not in f"{error} {error.__cause__}":
            raise
        raise UserError(
            "the processes that load images have too little shared memory (/dev/shm); give the "
            "container more (docker run --shm-size 16g), or lower workers (0: none)"
        ) from None
