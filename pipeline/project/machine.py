"""The machine: what this process may use of it, and what figures were measured on."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import joblib
import torch

VERSIONS = ("torch", "torchvision", "onedl-mmdetection", "scikit-learn", "zarr", "numpy")
MOST_LOADERS = 16
"""Processes that load images, unless a setting asks for more."""


def cores() -> int:
    """The cores that this process may use, as its affinity and its container's limits say."""
    count: int = joblib.cpu_count()
    return count


def loader_processes(workers: int | None) -> int:
    """How many processes load images for this one.

    Args:
        workers: the setting; None for a process on each core, `MOST_LOADERS` at most. The processes
            that `torchrun` started on a machine share its cores.
    """
    if workers is not None:
        return workers
    together = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, min(cores() // together, MOST_LOADERS))


def machine() -> dict[str, Any]:
    """The device, its threads, and the versions of Python and of the libraries that count."""
    found = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu_name(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    } | {name: version(name) for name in VERSIONS}
    return found | ({"CUDA": torch.version.cuda} if torch.cuda.is_available() else {})


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (info.read_text().splitlines() if info.is_file() else [])
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor() or "CPU"
