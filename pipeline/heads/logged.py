"""What a step counts and a training logs."""

import torch
from mmengine.dist import all_reduce
from torch import Tensor


def counted(**counts: int | Tensor) -> dict[str, Tensor]:
    """Counts of a step, summed over all processes of a training, to be logged beside losses."""
    found = {name: torch.as_tensor(count, dtype=torch.float32) for name, count in counts.items()}
    for count in found.values():
        all_reduce(count)
    return found
