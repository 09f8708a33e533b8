"""A full memory, of a GPU or between processes, as a user's error."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipeline.project.errors import UserError


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
