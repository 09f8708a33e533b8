"""Tensors between the CPU and a device, without waiting for each of them."""

from collections.abc import Mapping, Sequence

import numpy.typing as npt
import torch
from torch import Tensor


def send(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors of the CPU on a device: all in one copy, for which the caller does not wait.

    Args:
        tensors: of any shapes and types.
        device: where they are wanted.
    """
    # The widest types come first, so that each tensor begins where its type may.
    order = sorted(range(len(tensors)), key=lambda place: -tensors[place].element_size())
    parts = [tensors[place].flatten().view(torch.uint8) for place in order]
    sizes = [len(part) for part in parts]
    together = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=device.type == "cuda")
    torch.cat(parts, out=together)
    arrived = together.to(device, non_blocking=True).split(sizes)
    found = {
        place: part.view(tensors[place].dtype).view(tensors[place].shape)
        for place, part in zip(order, arrived, strict=True)
    }
    return [found[place] for place in range(len(tensors))]


def fetch(tensors: Mapping[str, Tensor]) -> dict[str, npt.NDArray]:
    """Tensors of a device as arrays, after one wait for all of them.

    Args:
        tensors: by name, on one device, made by the current stream's work.
    """
    # On their way from a GPU, torch puts them into pinned memory.
    arrived = {name: values.to("cpu", non_blocking=True) for name, values in tensors.items()}
    if any(values.is_cuda for values in tensors.values()):
        torch.cuda.current_stream().synchronize()
    return {name: values.numpy() for name, values in arrived.items()}
