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
    size = sum(tensor.nbytes for tensor in tensors)
    together = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    for place, tensor in zip(_places(together, tensors), tensors, strict=True):
        place.copy_(tensor)
    return _places(together.to(device, non_blocking=True), tensors)


def _places(memory: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of the same shapes and types, side by side in some memory, (bytes,) uint8."""
    # The widest types come first, so that each tensor begins where its type may.
    order = sorted(range(len(tensors)), key=lambda number: -tensors[number].element_size())
    parts = memory.split([tensors[number].nbytes for number in order])
    of_number = dict(zip(order, parts, strict=True))
    return [
        of_number[number].view(tensor.dtype).view(tensor.shape)
        for number, tensor in enumerate(tensors)
    ]


def fetch(tensors: Mapping[str, Tensor]) -> dict[str, npt.NDArray]:
    """Tensors of a device as arrays, after one wait for all of them.

    Args:
        tensors: by name, on one device, made by the current stream's work.
    """
    # On their way from a GPU, torch puts them into pinned memory.
    arrived = {name: values.to("cpu", non_blocking=True) for name, values in tensors.items()}
    for device in {values.device for values in tensors.values() if values.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    return {name: values.numpy() for name, values in arrived.items()}
