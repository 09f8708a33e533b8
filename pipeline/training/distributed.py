"""The processes of one training: `torchrun` starts several, each learns its part of a step."""

import os

import torch
from mmengine.dist import barrier, init_dist, is_distributed
from torch.distributed import init_process_group, is_torchelastic_launched

from pipeline.project.errors import UserError


def join() -> int:
    """Meet the other processes, if `torchrun` started this one; returns how many there are."""
    if not is_torchelastic_launched():
        return 1
    if not is_distributed():
        if torch.cuda.is_available():
            init_dist("pytorch", backend="nccl")
        else:  # mmengine's needs a GPU
            init_process_group("gloo")
    return int(os.environ["WORLD_SIZE"])


def is_first() -> bool:
    """Whether this process writes and prints what one process has to; before `join`, too."""
    return not is_torchelastic_launched() or os.environ["RANK"] == "0"


def wait_for_all() -> None:
    """Go on when all processes are here."""
    barrier()


def part_of(batch_size: int, processes: int) -> int:
    """How many views of a step are one process's.

    Raises:
        UserError: the parts would not be equal.
    """
    if batch_size % processes:
        raise UserError(
            f"training.batch_size: {batch_size} views of a step can't be shared out equally among "
            f"{processes} processes; make it a multiple of them"
        )
    return batch_size // processes
