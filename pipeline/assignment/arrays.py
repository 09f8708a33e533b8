"""The library that computes with small arrays: NumPy on the CPU, else torch.

NumPy begins an operation in a fraction of torch's time, and on the candidates of a view that is
most of it. What is written in the words that both have runs with either.
"""

from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = Any
"""A NumPy array or a tensor."""


def library(array: Array) -> ModuleType:
    """Whose array it is: numpy or torch."""
    return torch if isinstance(array, Tensor) else np


def arrays(*tensors: Tensor) -> tuple[Any, ...]:
    """The library to compute with tensors of one device, and its arrays of the same memory.

    NumPy has no bfloat16.
    """
    if any(one.device.type != "cpu" or one.dtype == torch.bfloat16 for one in tensors):
        return torch, *tensors
    return np, *(one.detach().numpy() for one in tensors)
